//! The futures of the requests under way on one connection, or of one queue.
//!
//! All futures are of one type and live in slots that are used again and again, so starting a
//! request allocates nothing once the slots have been used. Each slot has its own waker, so a
//! completion polls the request that it belongs to and no other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;

/// Slots that share a word of ready bits.
const WORD_SLOTS: usize = 64;

/// Which slots want to be polled, one bit each, and the task that does it.
struct Ready<const WORDS: usize> {
    bits: [AtomicU64; WORDS],
    task: Mutex<Option<Waker>>,
}

impl<const WORDS: usize> Ready<WORDS> {
    fn mark(&self, index: usize) {
        if let Some(word) = self.bits.get(index / WORD_SLOTS) {
            word.fetch_or(1 << (index % WORD_SLOTS), Ordering::AcqRel);
        }
    }
}

struct SlotWaker<const WORDS: usize> {
    ready: Arc<Ready<WORDS>>,
    index: usize,
}

impl<const WORDS: usize> Wake for SlotWaker<WORDS> {
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

/// Up to 64 futures of one type for each of `WORDS`.
pub struct RequestSlots<F, const WORDS: usize> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    ready: Arc<Ready<WORDS>>,
}

impl<F: Future<Output = ()>, const WORDS: usize> Default for RequestSlots<F, WORDS> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Future<Output = ()>, const WORDS: usize> RequestSlots<F, WORDS> {
    /// No futures; each slot is made when it is first needed.
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ready: Arc::new(Ready {
                bits: std::array::from_fn(|_| AtomicU64::new(0)),
                task: Mutex::new(None),
            }),
        }
    }

    /// Which task is woken when a future can go on.
    pub fn set_task(&self, waker: &Waker) {
        let mut task = self.ready.task.lock();
        if !task.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    /// Whether no future is under way.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether there is no room for another future.
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= WORDS * WORD_SLOTS
    }

    /// Takes a future in, to be polled by the next [`Self::poll_ready`]. The caller has seen to it
    /// that there is room.
    pub fn insert(&mut self, future: F) {
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
    pub fn poll_ready(&mut self) -> bool {
        let mut ended = false;
        for word in 0..WORDS {
            let bits = self.ready.bits.get(word);
            let mut bits = bits.map_or(0, |bits| bits.swap(0, Ordering::AcqRel));
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                ended |= self.poll_slot(word * WORD_SLOTS + bit);
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

    const MAX_SLOTS: usize = 2 * WORD_SLOTS;

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
        let mut slots = RequestSlots::<_, 2>::new();
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
