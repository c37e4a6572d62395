//! Waiting for a condition that other threads bring about, on any executor or runtime.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// Those who wait for some state to change.
#[derive(Default)]
pub(crate) struct Changed {
    waiting: Mutex<Vec<Waker>>,
}

impl Changed {
    /// Lets everybody who waits look at the state again. To be called after it has changed.
    pub(crate) fn notify(&self) {
        let wakers = std::mem::take(&mut *self.waiting.lock());
        for waker in wakers {
            waker.wake();
        }
    }

    /// Waits until `condition` gives something.
    pub(crate) async fn until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            if let Some(value) = condition() {
                return Poll::Ready(value);
            }
            let mut waiting = self.waiting.lock();
            if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            drop(waiting);
            // It may have changed before the waker was there to be found.
            condition().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
