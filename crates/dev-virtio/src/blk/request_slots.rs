//! The futures of a queue's requests under way.
//!
//! All are of one type and live in slots that are used again and again, so that a request allocates nothing once the
//! queue has warmed up. Each slot has its own waker: a completion polls the request it belongs to and no other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;

const WORDS: usize = 4;
/// The most requests of a queue that are under way at a time; more wait in the ring.
pub(crate) const MAX_REQUESTS: usize = WORDS * 64;

/// Which slots want to be polled, a bit each, and the task that does it.
#[derive(Default)]
struct Ready {
    words: [AtomicU64; WORDS],
    task: Mutex<Option<Waker>>,
}

impl Ready {
    fn mark(&self, index: usize) {
        if let Some(word) = self.words.get(index / 64) {
            word.fetch_or(1 << (index % 64), Ordering::AcqRel);
        }
    }
}

struct SlotWaker {
    ready: Arc<Ready>,
    index: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.mark(self.index);
        let task = self.ready.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    waker: Waker,
}

/// Up to [`MAX_REQUESTS`] futures.
pub(super) struct RequestSlots<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    ready: Arc<Ready>,
}

impl<F: Future<Output = ()>> RequestSlots<F> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ready: Arc::default(),
        }
    }

    /// Which task is woken when a future can go on.
    pub(super) fn set_task(&self, waker: &Waker) {
        let mut task = self.ready.task.lock();
        if !task.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= MAX_REQUESTS
    }

    /// Takes a future in, to be polled by the next [`Self::poll_ready`]. The caller has seen to it that there is room.
    pub(super) fn insert(&mut self, future: F) {
        let index = match self.free.pop() {
            Some(index) => {
                if let Some(slot) = self.slots.get_mut(index) {
                    slot.future.as_mut().set(Some(future));
                }
                index
            }
            None => {
                let index = self.slots.len();
                let ready = Arc::clone(&self.ready);
                self.slots.push(Slot {
                    future: Box::pin(Some(future)),
                    waker: Waker::from(Arc::new(SlotWaker { ready, index })),
                });
                index
            }
        };
        self.ready.mark(index);
    }

    /// Polls what can go on; says whether a future has ended.
    pub(super) fn poll_ready(&mut self) -> bool {
        let mut has_ended = false;
        for word in 0..WORDS {
            let bits = self.ready.words.get(word);
            let mut bits = bits.map_or(0, |bits| bits.swap(0, Ordering::AcqRel));
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                has_ended |= self.poll_slot(word * 64 + bit);
            }
        }
        has_ended
    }

    fn poll_slot(&mut self, index: usize) -> bool {
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        // A late wake of a request that has ended finds nothing here, or the next request, which does not mind.
        let Some(future) = slot.future.as_mut().as_pin_mut() else {
            return false;
        };
        if future
            .poll(&mut Context::from_waker(&slot.waker))
            .is_pending()
        {
            return false;
        }
        slot.future.as_mut().set(None);
        self.free.push(index);
        true
    }
}
