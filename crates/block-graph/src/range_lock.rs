//! Locks on byte ranges, held across waiting: overlapping holders take turns, in order.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

struct Entry {
    ticket: u64,
    start: u64,
    end: u64,
    waiting: Vec<Waker>,
}

#[derive(Default)]
struct State {
    next_ticket: u64,
    entries: Vec<Entry>,
}

/// A set of byte ranges of which overlapping ones are held one after the other.
///
/// Whoever asks first is served first, so nobody starves.
#[derive(Default)]
pub struct RangeLocks {
    state: Mutex<State>,
}

/// A held range; dropping it lets the next holder in.
#[must_use]
pub struct RangeGuard<'a> {
    owner: &'a RangeLocks,
    ticket: u64,
}

impl RangeLocks {
    /// Waits until no earlier holder's range overlaps `start..end`, then holds it.
    pub async fn lock(&self, start: u64, end: u64) -> RangeGuard<'_> {
        let ticket = {
            let mut state = self.state.lock();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.entries.push(Entry {
                ticket,
                start,
                end,
                waiting: Vec::new(),
            });
            ticket
        };
        let guard = RangeGuard {
            owner: self,
            ticket,
        };
        poll_fn(|cx| {
            let mut state = self.state.lock();
            // Entries stand in the order of their tickets.
            let earlier = state
                .entries
                .iter_mut()
                .take_while(|entry| entry.ticket < ticket);
            for entry in earlier {
                if entry.start < end && start < entry.end {
                    entry.waiting.push(cx.waker().clone());
                    return Poll::Pending;
                }
            }
            Poll::Ready(())
        })
        .await;
        guard
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.owner.state.lock();
        let position = state
            .entries
            .iter()
            .position(|entry| entry.ticket == self.ticket);
        let entry = position.map(|position| state.entries.remove(position));
        drop(state);
        for waker in entry.into_iter().flat_map(|entry| entry.waiting) {
            waker.wake();
        }
    }
}
