//! The futures of the requests under way on one connection.
//!
//! All futures are of one type and live in slots that are used again and again, so starting a
//! request allocates nothing once the connection has warmed up. Each slot has its own waker, so a
//! completion polls the request that it belongs to and no other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;

/// How many slots there can be: the bits of [`Ready`].
pub(crate) const MAX_SLOTS: usize = 128;

/// Which slots want to be polled, one bit each, and the task that does it.
#[derive(Default)]
struct Ready {
    bits: [AtomicU64; 2],
    task: Mutex<Option<Waker>>,
}

impl Ready {
    fn mark(&self, index: usize) {
        if let Some(word) = self.bits.get(index / 64) {
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

/// Up to [`MAX_SLOTS`] futures of one type.
pub(crate) struct RequestSlots<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    ready: Arc<Ready>,
}

impl<F: Future<Output = ()>> RequestSlots<F> {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ready: Arc::default(),
        }
    }

    /// Which task is woken when a future can go on.
    pub(crate) fn set_task(&self, waker: &Waker) {
        let mut task = self.ready.task.lock();
        if !task.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    /// Whether no future is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether there is no room for another future.
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= MAX_SLOTS
    }

    /// Takes a future in, to be polled by the next [`Self::poll_ready`]. The caller has seen to it
    /// that there is room.
    pub(crate) fn insert(&mut self, future: F) {
        debug_assert!(!self.is_full());
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
    pub(crate) fn poll_ready(&mut self) -> bool {
        let mut ended = false;
        for word in 0..2 {
            let bits = self.ready.bits.get(word);
            let mut bits = bits.map_or(0, |bits| bits.swap(0, Ordering::AcqRel));
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                ended |= self.poll_slot(word * 64 + bit);
            }
        }
        ended
    }

    fn poll_slot(&mut self, index: usize) -> bool {
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        // A late wake of a request that has ended finds nothing here, or the next request, which
        // does not mind being polled once more.
        let Some(future) = slot.future.as_mut().as_pin_mut() else {
            return false;
        };
        let polled = future.poll(&mut Context::from_waker(&slot.waker));
        if polled.is_pending() {
            return false;
        }
        slot.future.as_mut().set(None);
        self.free.push(index);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::task::Poll;

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_what_was_woken_is_polled() {
        let task = Arc::<Counting>::default();
        let wakers: Vec<Cell<Option<Waker>>> = (0..MAX_SLOTS).map(|_| Cell::new(None)).collect();
        let polls: Vec<Cell<u32>> = (0..MAX_SLOTS).map(|_| Cell::new(0)).collect();
        let go_on = Cell::new(usize::MAX);
        let mut slots = RequestSlots::new();
        slots.set_task(&Waker::from(Arc::clone(&task)));
        for index in 0..MAX_SLOTS {
            let (waker, polls, go_on) = (&wakers[index], &polls[index], &go_on);
            slots.insert(poll_fn(move |cx| {
                polls.set(polls.get() + 1);
                waker.set(Some(cx.waker().clone()));
                if go_on.get() == index {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
        }
        assert!(slots.is_full());
        assert!(!slots.poll_ready());
        for index in [127, 0, 64] {
            go_on.set(index);
            wakers[index].take().unwrap().wake();
            assert!(slots.poll_ready());
            assert_eq!(polls[index].get(), 2);
        }
        assert_eq!(task.0.load(Ordering::SeqCst), 3);
        assert_eq!(polls.iter().map(Cell::get).sum::<u32>(), 128 + 3);
        assert!(!slots.is_full() && !slots.is_empty());
    }
}
