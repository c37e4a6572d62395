//! The local APIC's timer: counting down at 1 GHz of guest time, divided; or a deadline of the time stamp counter.

use serde::{Deserialize, Serialize};

/// What the mode bits of the timer's local vector say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The reserved mode: the timer stands.
    Reserved,
}

impl TimerMode {
    pub(super) fn of(local_vector: u32) -> TimerMode {
        match local_vector >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApicTimer {
    pub(super) initial: u32,
    /// Bits 0, 1 and 3.
    pub(super) divide: u8,
    start_ns: u64,
    /// Counts before `start_ns`, with another divider.
    counted_before: u64,
    /// Expirations since the start that have been delivered; a one-shot counts to 1.
    expired: u64,
    pub(super) tsc_deadline: u64,
}

impl ApicTimer {
    /// Nanoseconds per count.
    fn count_ns(&self) -> u64 {
        match self.divide & 3 | self.divide >> 1 & 4 {
            7 => 1,
            shift => 2 << shift,
        }
    }

    fn counted(&self, now_ns: u64) -> u64 {
        let since = now_ns.saturating_sub(self.start_ns) / self.count_ns();
        self.counted_before.saturating_add(since)
    }

    pub(super) fn current(&self, mode: TimerMode, now_ns: u64) -> u32 {
        let initial = u64::from(self.initial);
        let counted = self.counted(now_ns);
        let left = match mode {
            _ if initial == 0 => 0,
            TimerMode::OneShot => initial.saturating_sub(counted),
            TimerMode::Periodic => initial - counted % initial,
            TimerMode::TscDeadline | TimerMode::Reserved => 0,
        };
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    pub(super) fn start(&mut self, initial: u32, now_ns: u64) {
        self.initial = initial;
        self.start_ns = now_ns;
        self.counted_before = 0;
        self.expired = 0;
    }

    /// Changes the divider; what is left to count stays.
    pub(super) fn set_divide(&mut self, divide: u8, now_ns: u64) {
        self.counted_before = self.counted(now_ns);
        self.start_ns = now_ns;
        self.divide = divide & 0x0b;
    }

    /// When it expires next, for the counting modes.
    pub(super) fn deadline_ns(&self, mode: TimerMode) -> Option<u64> {
        let next = match mode {
            _ if self.initial == 0 => None,
            TimerMode::OneShot => (self.expired == 0).then_some(1),
            TimerMode::Periodic => Some(self.expired.saturating_add(1)),
            TimerMode::TscDeadline | TimerMode::Reserved => None,
        }?;
        let counts = next
            .saturating_mul(u64::from(self.initial))
            .saturating_sub(self.counted_before);
        Some(
            self.start_ns
                .saturating_add(counts.saturating_mul(self.count_ns())),
        )
    }

    /// Notes expirations up to now; true if there is one. Periods that passed unnoticed are one interrupt, as they are one
    /// bit of the request register.
    pub(super) fn expire(&mut self, mode: TimerMode, now_ns: u64) -> bool {
        if self
            .deadline_ns(mode)
            .is_none_or(|deadline| now_ns < deadline)
        {
            return false;
        }
        self.expired = match mode {
            TimerMode::Periodic => self.counted(now_ns) / u64::from(self.initial.max(1)),
            _ => 1,
        };
        true
    }
}
