//! Counting the requests that are under way, to wait for their end.
//!
//! Two generations are counted apart, so that one can wait for the requests that *began before
//! now* ([`InFlight::grace_period`]) without stopping new ones: an image format frees a
//! cluster for reuse only when nobody can still be writing to it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

#[derive(Default)]
struct Waiting {
    wakers: Vec<Waker>,
}

/// The requests under way at one node or one backend.
#[derive(Default)]
pub struct InFlight {
    generation: AtomicUsize,
    counts: [AtomicUsize; 2],
    waiting: Mutex<Waiting>,
    waiters: AtomicUsize,
}

/// One request under way; its end is the guard's drop.
#[must_use]
pub struct InFlightGuard<'a> {
    owner: &'a InFlight,
    side: usize,
}

/// A request that does I/O itself. When it is dropped before its end, it counts as under way
/// until the kernel has ended what it began.
#[must_use]
pub(crate) struct RequestGuard<'a> {
    owner: &'a Arc<InFlight>,
    side: usize,
    ended: bool,
}

/// A point in time; see [`InFlight::mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlightMark {
    generation: usize,
}

impl InFlight {
    /// Counts a request until the guard is dropped.
    pub fn enter(&self) -> InFlightGuard<'_> {
        loop {
            let generation = self.generation.load(Ordering::SeqCst);
            let side = generation & 1;
            self.count(side).fetch_add(1, Ordering::SeqCst);
            // The generation may have moved on in between; then this count would be waited for
            // by nobody who should.
            if self.generation.load(Ordering::SeqCst) == generation {
                return InFlightGuard { owner: self, side };
            }
            self.leave(side);
        }
    }

    /// Counts a request that does I/O itself until the guard's end or drop.
    pub(crate) fn request(self: &Arc<Self>) -> RequestGuard<'_> {
        let guard = self.enter();
        let side = guard.side;
        std::mem::forget(guard);
        RequestGuard {
            owner: self,
            side,
            ended: false,
        }
    }

    /// How many requests are under way.
    pub fn count_now(&self) -> usize {
        self.count(0).load(Ordering::SeqCst) + self.count(1).load(Ordering::SeqCst)
    }

    /// Waits until no request is under way. New ones may begin afterwards unless the caller
    /// holds them off.
    pub async fn idle(&self) {
        self.wait_until(|this| this.count_now() == 0).await;
    }

    /// Waits until every request that began before this call has ended.
    pub async fn grace_period(&self) {
        // Both sides are flipped through: after the first flip the old side only shrinks, and
        // what began before it is all on that side or on the other one, which the second covers.
        for _ in 0..2 {
            let generation = self.generation.load(Ordering::SeqCst);
            let other = (generation + 1) & 1;
            self.wait_until(|this| this.count(other).load(Ordering::SeqCst) == 0)
                .await;
            let flipped = self.generation.compare_exchange(
                generation,
                generation.wrapping_add(1),
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            let old = generation & 1;
            if flipped.is_ok() {
                self.wait_until(|this| this.count(old).load(Ordering::SeqCst) == 0)
                    .await;
                return;
            }
        }
    }

    /// A point in time that [`InFlight::has_passed`] can be asked about.
    pub fn mark(&self) -> InFlightMark {
        InFlightMark {
            generation: self.generation.load(Ordering::SeqCst),
        }
    }

    /// Whether every request that began before `mark` has ended, without waiting for it. For
    /// callers that are requests themselves and could wait for ever.
    ///
    /// May say no for a while after the last one ended: until this was asked again.
    pub fn has_passed(&self, mark: InFlightMark) -> bool {
        for _ in 0..2 {
            let generation = self.generation.load(Ordering::SeqCst);
            if generation.wrapping_sub(mark.generation) >= 2 {
                return true;
            }
            // What began two generations ago must have ended before a third may begin.
            let other = generation.wrapping_add(1);
            if self.count(other).load(Ordering::SeqCst) > 0 {
                return false;
            }
            // Losing the race means that another has moved it on.
            let _ = self.generation.compare_exchange(
                generation,
                other,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        }
        self.generation
            .load(Ordering::SeqCst)
            .wrapping_sub(mark.generation)
            >= 2
    }

    fn count(&self, side: usize) -> &AtomicUsize {
        let [even, odd] = &self.counts;
        if side & 1 == 0 { even } else { odd }
    }

    fn leave(&self, side: usize) {
        let before = self.count(side).fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.waiters.load(Ordering::SeqCst) > 0 {
            let wakers = std::mem::take(&mut self.waiting.lock().wakers);
            for waker in wakers {
                waker.wake();
            }
        }
    }

    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        if done(self) {
            return;
        }
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let _counted = Waiter { owner: self };
        poll_fn(|cx| {
            self.waiting.lock().wakers.push(cx.waker().clone());
            if done(self) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

struct Waiter<'a> {
    owner: &'a InFlight,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.owner.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        self.owner.leave(self.side);
    }
}

impl RequestGuard<'_> {
    /// The request has ended, and the kernel has nothing left to do for it.
    pub(crate) fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        if self.ended || !host_io::has_orphans() {
            self.owner.leave(self.side);
            return;
        }
        let (owner, side) = (Arc::clone(self.owner), self.side);
        host_io::spawn_local(async move {
            host_io::orphans_ended().await;
            owner.leave(side);
        })
        .detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_passes_when_what_began_before_it_has_ended() {
        let in_flight = InFlight::default();
        let before = in_flight.enter();
        let mark = in_flight.mark();
        assert!(!in_flight.has_passed(mark));
        let after = in_flight.enter();
        drop(before);
        let later = in_flight.enter();
        drop(after);
        // `later` may stand on the side that the mark waits for, but nothing newer does.
        drop(later);
        assert!(in_flight.has_passed(mark));
        let fresh = in_flight.mark();
        assert!(in_flight.has_passed(fresh));
    }

    #[test]
    fn newer_requests_do_not_hold_a_mark_up() {
        let in_flight = InFlight::default();
        let before = in_flight.enter();
        let mark = in_flight.mark();
        assert!(!in_flight.has_passed(mark));
        drop(before);
        let mut newer = in_flight.enter();
        let mut passed = false;
        for _ in 0..3 {
            passed |= in_flight.has_passed(mark);
            let next = in_flight.enter();
            drop(newer);
            newer = next;
        }
        assert!(passed);
    }
}
