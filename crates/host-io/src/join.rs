//! The result of a task, carried to whoever waits for it: a task of any runtime, or a thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Condvar, Mutex};

/// The task ended without a result: it panicked, or its executor stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task was dropped before it ended")]
pub struct Gone;

struct State<T> {
    value: Option<T>,
    sender_alive: bool,
    waker: Option<Waker>,
}

struct Inner<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

/// Makes the two ends.
pub(crate) fn pair<T>() -> (Sender<T>, JoinHandle<T>) {
    let state = State {
        value: None,
        sender_alive: true,
        waker: None,
    };
    let inner = Arc::new(Inner {
        state: Mutex::new(state),
        changed: Condvar::new(),
    });
    (
        Sender {
            inner: Arc::clone(&inner),
        },
        JoinHandle { inner },
    )
}

pub(crate) struct Sender<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Sender<T> {
    pub(crate) fn send(self, value: T) {
        self.inner.state.lock().value = Some(value);
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.sender_alive = false;
        let waker = state.waker.take();
        drop(state);
        self.inner.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Waits for a task's result. Dropping it lets the task run on.
#[must_use = "the task's result tells whether it failed"]
pub struct JoinHandle<T> {
    inner: Arc<Inner<T>>,
}

impl<T> JoinHandle<T> {
    /// Blocks the calling thread until the task has ended.
    ///
    /// # Errors
    /// [`Gone`] when it ended without a result.
    pub fn wait(self) -> Result<T, Gone> {
        let mut state = self.inner.state.lock();
        while state.sender_alive {
            self.inner.changed.wait(&mut state);
        }
        state.value.take().ok_or(Gone)
    }

    /// Lets the task run on and forgets its result.
    pub fn detach(self) {}
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Gone>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.inner.state.lock();
        if !state.sender_alive {
            return Poll::Ready(state.value.take().ok_or(Gone));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
