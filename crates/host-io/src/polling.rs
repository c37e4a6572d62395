//! How long an executor looks for news before it goes to sleep.
//!
//! Going to sleep and being woken takes longer than many a request does, above all in a virtual
//! machine, whose idle processor has to be woken by the host. So an executor that lately slept
//! for a short time only stays awake instead; one that slept long does not, and costs nothing.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where looking for news begins.
const FIRST: Duration = Duration::from_micros(4);

/// What is asked of an executor's looking for news. Written from any thread, at any time.
#[derive(Debug)]
pub struct PollingLimits {
    max_ns: AtomicU64,
    grow: AtomicU64,
    shrink: AtomicU64,
}

impl PollingLimits {
    /// Nanoseconds at most where nobody says otherwise.
    pub const DEFAULT_MAX_NS: u64 = 32_768;

    /// Sets how many nanoseconds to look for news at most (0: never), the factor by which that
    /// grows (0: 2), and the divisor by which it shrinks (0: to nothing at once).
    pub fn set(&self, max_ns: u64, grow: u64, shrink: u64) {
        self.max_ns.store(max_ns, Ordering::Relaxed);
        self.grow.store(grow, Ordering::Relaxed);
        self.shrink.store(shrink, Ordering::Relaxed);
    }

    fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns.load(Ordering::Relaxed))
    }
}

impl Default for PollingLimits {
    fn default() -> Self {
        Self {
            max_ns: AtomicU64::new(Self::DEFAULT_MAX_NS),
            grow: AtomicU64::new(0),
            shrink: AtomicU64::new(0),
        }
    }
}

/// How long one executor looks for news now.
#[derive(Default)]
pub(crate) struct Polling {
    now: Cell<Duration>,
}

impl Polling {
    /// For how long to look.
    pub(crate) fn duration(&self, limits: &PollingLimits) -> Duration {
        self.now.get().min(limits.max())
    }

    /// Nothing came while it looked, and it slept: `idle` is how long it had nothing to do in all.
    pub(crate) fn slept(&self, idle: Duration, limits: &PollingLimits) {
        let (now, max) = (self.now.get(), limits.max());
        let next = if idle > max {
            match limits.shrink.load(Ordering::Relaxed) {
                0 => Duration::ZERO,
                divisor => now / u32::try_from(divisor).unwrap_or(u32::MAX),
            }
        } else if now.is_zero() {
            FIRST
        } else {
            let factor = match limits.grow.load(Ordering::Relaxed) {
                0 => 2,
                factor => u32::try_from(factor).unwrap_or(u32::MAX),
            };
            now.saturating_mul(factor)
        };
        self.now.set(next.min(max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(10);
    const LONG: Duration = Duration::from_millis(1);

    #[test]
    fn short_sleeps_make_it_look_longer_and_a_long_one_ends_that() {
        let (polling, limits) = (Polling::default(), PollingLimits::default());
        assert!(polling.duration(&limits).is_zero());
        for expected in [4_000, 8_000, 16_000, 32_000, 32_768, 32_768] {
            polling.slept(SHORT, &limits);
            assert_eq!(polling.duration(&limits).as_nanos(), expected);
        }
        polling.slept(LONG, &limits);
        assert!(polling.duration(&limits).is_zero());
    }

    #[test]
    fn limits_hold_from_when_they_are_set() {
        let (polling, limits) = (Polling::default(), PollingLimits::default());
        limits.set(100_000, 10, 2);
        polling.slept(SHORT, &limits);
        polling.slept(SHORT, &limits);
        assert_eq!(polling.duration(&limits).as_nanos(), 40_000);
        polling.slept(LONG, &limits);
        assert_eq!(polling.duration(&limits).as_nanos(), 20_000);
        limits.set(0, 0, 0);
        assert!(polling.duration(&limits).is_zero());
        polling.slept(SHORT, &limits);
        assert!(polling.duration(&limits).is_zero());
    }
}
