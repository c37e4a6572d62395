//! The 8254 interval timer, and port 0x61 that gates its channel 2.
//!
//! | port | register |
//! |---|---|
//! | 0x40 to 0x42 | counters 0 to 2 |
//! | 0x43 | control word, latch and read-back commands (write only) |
//! | 0x61 | bit 0 gate 2, bit 1 speaker, bits 2-3 parity checks off; read: bit 4 refresh, bit 5 output 2 |
//!
//! Sources: Intel 8254 datasheet (231164); 82371SB datasheet 2.5.3 and 2.5.5.1 (NMISC). Counters run at 1193182 Hz of guest
//! time. A count is loaded at the moment it is written (the chip takes one clock more). Output 0 is IRQ 0; in mode 2 its low
//! clock of 838 ns is given as an edge at its end.

use std::sync::Arc;

use device::{
    Clock, Device, Error, IoParts, IrqLine, ResetKind, SavedState, Timer, Width, read_bytes,
    write_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const NAME: &str = "i8254";
const VERSION: u32 = 1;

/// The input clock of all counters.
pub const PIT_HZ: u64 = 1_193_182;
const SECOND_NS: u128 = 1_000_000_000;
/// The refresh bit of port 0x61 toggles this often.
const REFRESH_NS: u64 = 15_085;

fn ticks_of(ns: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(PIT_HZ) / SECOND_NS).unwrap_or(u64::MAX)
}

/// The first nanosecond at which so many ticks have passed.
fn ns_of(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * SECOND_NS).div_ceil(u128::from(PIT_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Which bytes of a count a counter's port moves (control word, bits 4 and 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    /// The count as written; `None` until the first is complete.
    initial: Option<u16>,
    /// In modes 2 and 3: the count that follows at the end of the present cycle.
    next: Option<u16>,
    start_ns: u64,
    gate: bool,
    /// Modes 1 and 5 count from a trigger.
    triggered: bool,
    /// Ticks counted when the gate closed (modes 0 and 4).
    held: Option<u64>,
    /// The first byte of a count of two.
    written_low: Option<u8>,
    read_high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    fn new(gate: bool) -> Counter {
        Counter {
            mode: 0,
            bcd: false,
            access: Access::Both,
            initial: None,
            next: None,
            start_ns: 0,
            gate,
            triggered: false,
            held: None,
            written_low: None,
            read_high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// A written count in clocks: 0 is the greatest, and modes 2 and 3 need two at least.
    fn clocks(&self, written: u16) -> u64 {
        let value = if self.bcd {
            [12, 8, 4, 0].iter().fold(0_u64, |sum, shift| {
                sum * 10 + u64::from(written >> shift & 0xf)
            })
        } else {
            u64::from(written)
        };
        match value {
            0 if self.bcd => 10_000,
            0 => 0x1_0000,
            1 if matches!(self.mode, 2 | 3) => 2,
            _ => value,
        }
    }

    /// Length of the present cycle; `None` without a count.
    fn period(&self) -> Option<u64> {
        self.initial.map(|written| self.clocks(written))
    }

    /// Ticks since the count was loaded, or since the trigger.
    fn ticks(&self, now_ns: u64) -> u64 {
        self.held
            .unwrap_or_else(|| ticks_of(now_ns.saturating_sub(self.start_ns)))
    }

    /// Loads the next count of modes 2 and 3 when its time has come.
    fn settle(&mut self, now_ns: u64) {
        let (Some(next), Some(period)) = (self.next, self.period()) else {
            return;
        };
        let ends_ns = self.start_ns.saturating_add(ns_of(period));
        if matches!(self.mode, 2 | 3) && self.gate && now_ns >= ends_ns {
            self.initial = Some(next);
            self.next = None;
            self.start_ns = ends_ns;
        }
    }

    fn output(&self, now_ns: u64) -> bool {
        let Some(period) = self.period() else {
            return self.mode != 0;
        };
        let ticks = self.ticks(now_ns);
        match self.mode {
            0 => ticks >= period && self.written_low.is_none(),
            1 => !self.triggered || ticks >= period,
            2 => !self.gate || ticks % period != period - 1,
            3 => !self.gate || ticks % period < period.div_ceil(2),
            4 => ticks != period,
            _ => !self.triggered || ticks != period,
        }
    }

    /// The counting element.
    fn count(&self, now_ns: u64) -> u16 {
        let Some(period) = self.period() else {
            return 0;
        };
        let ticks = self.ticks(now_ns);
        let modulus: u64 = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 if self.gate => period - ticks % period,
            3 if self.gate => {
                let phase = ticks % period;
                let high = period.div_ceil(2);
                let within = if phase < high { phase } else { phase - high };
                (period & !1).saturating_sub(2 * within)
            }
            2 | 3 => period,
            1 | 5 if !self.triggered => period,
            _ => {
                let past = ticks % modulus;
                (period % modulus + modulus - past) % modulus
            }
        } % modulus;
        let value = u16::try_from(value).unwrap_or(0);
        if !self.bcd {
            return value;
        }
        [1000, 100, 10, 1]
            .iter()
            .fold(0, |sum, unit| (sum << 4) | (value / unit % 10))
    }

    /// When the output changes next; in mode 2, when it rises.
    fn next_change_ns(&self, now_ns: u64) -> Option<u64> {
        let period = self.period()?;
        if self.held.is_some() || (!self.gate && self.mode != 1 && self.mode != 5) {
            return None;
        }
        let ticks = self.ticks(now_ns);
        let at = match self.mode {
            0 => (ticks < period).then_some(period),
            1 => (self.triggered && ticks < period).then_some(period),
            2 => Some((ticks / period + 1) * period),
            3 => {
                let phase = ticks % period;
                let high = period.div_ceil(2);
                let step = if phase < high { high } else { period };
                Some(ticks - phase + step)
            }
            4 => (ticks <= period).then_some(if ticks < period { period } else { period + 1 }),
            _ if self.triggered && ticks <= period => {
                Some(if ticks < period { period } else { period + 1 })
            }
            _ => None,
        }?;
        Some(self.start_ns.saturating_add(ns_of(at)))
    }

    fn control(&mut self, word: u8, now_ns: u64) {
        let access = match word >> 4 & 3 {
            0 => {
                self.latch_count(now_ns);
                return;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        let mode = match word >> 1 & 7 {
            // Bit 2 of the mode does not matter when bit 1 is set.
            6 => 2,
            7 => 3,
            mode => mode,
        };
        *self = Counter {
            mode,
            bcd: word & 1 != 0,
            access,
            ..Counter::new(self.gate)
        };
    }

    fn latch_count(&mut self, now_ns: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(now_ns));
        }
    }

    fn latch_status(&mut self, now_ns: u64) {
        if self.latched_status.is_some() {
            return;
        }
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let null = self.initial.is_none() || self.next.is_some();
        self.latched_status = Some(
            u8::from(self.output(now_ns)) << 7
                | u8::from(null) << 6
                | access << 4
                | self.mode << 1
                | u8::from(self.bcd),
        );
    }

    fn write(&mut self, byte: u8, now_ns: u64) {
        let written = match (self.access, self.written_low) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::Both, None) => {
                self.written_low = Some(byte);
                return;
            }
            (Access::Both, Some(low)) => u16::from(byte) << 8 | u16::from(low),
        };
        self.written_low = None;
        match self.mode {
            2 | 3 if self.initial.is_some() && self.gate => {
                // The present cycle ends first: count from its own beginning.
                if let Some(period) = self.period() {
                    let cycles = self.ticks(now_ns) / period;
                    self.start_ns = self.start_ns.saturating_add(ns_of(cycles * period));
                }
                self.next = Some(written);
            }
            1 | 5 => {
                // Takes effect at the next trigger.
                if self.triggered && self.initial.is_some() {
                    self.next = Some(written);
                } else {
                    self.initial = Some(written);
                }
            }
            _ => {
                self.initial = Some(written);
                self.next = None;
                self.start_ns = now_ns;
                self.held = (!self.gate && matches!(self.mode, 0 | 4)).then_some(0);
            }
        }
    }

    fn read(&mut self, now_ns: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.count(now_ns));
        let [low, high] = count.to_le_bytes();
        match self.access {
            Access::Low => {
                self.latched_count = None;
                low
            }
            Access::High => {
                self.latched_count = None;
                high
            }
            Access::Both if self.read_high_next => {
                self.read_high_next = false;
                self.latched_count = None;
                high
            }
            Access::Both => {
                self.read_high_next = true;
                low
            }
        }
    }

    fn set_gate(&mut self, open: bool, now_ns: u64) {
        if self.gate == open {
            return;
        }
        let ticks = self.ticks(now_ns);
        self.gate = open;
        match self.mode {
            0 | 4 if open => {
                self.start_ns = now_ns.saturating_sub(ns_of(self.held.take().unwrap_or(0)));
            }
            0 | 4 if self.initial.is_some() => self.held = Some(ticks),
            0 | 4 => {}
            _ if open => {
                self.start_ns = now_ns;
                self.triggered = self.initial.is_some();
                if let Some(next) = self.next.take() {
                    self.initial = Some(next);
                }
            }
            _ => {}
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PitState {
    counters: [Counter; 3],
    /// Bits 1 to 3 of port 0x61.
    port_61: u8,
}

impl PitState {
    fn new() -> PitState {
        PitState {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            port_61: 0,
        }
    }

    fn settle(&mut self, now_ns: u64) {
        for counter in &mut self.counters {
            counter.settle(now_ns);
        }
    }

    fn write_control(&mut self, word: u8, now_ns: u64) {
        let select = word >> 6;
        if select < 3 {
            if let Some(counter) = self.counters.get_mut(usize::from(select)) {
                counter.control(word, now_ns);
            }
            return;
        }
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if word & 2 << index == 0 {
                continue;
            }
            if word & 0x20 == 0 {
                counter.latch_count(now_ns);
            }
            if word & 0x10 == 0 {
                counter.latch_status(now_ns);
            }
        }
    }

    fn read_61(&self, now_ns: u64) -> u8 {
        let [_, _, two] = &self.counters;
        let refresh = now_ns / REFRESH_NS % 2 == 1;
        u8::from(two.gate)
            | self.port_61
            | u8::from(refresh) << 4
            | u8::from(two.output(now_ns)) << 5
    }
}

/// The ranges of ports of a [`Pit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PitPart {
    /// 0x40, four ports.
    Counters,
    /// 0x61, one port.
    Port61,
}

/// The timer.
pub struct Pit {
    clock: Clock,
    irq: IrqLine,
    timer: Timer,
    state: Mutex<PitState>,
}

impl Pit {
    /// A timer whose output 0 drives `irq`.
    pub fn new(clock: &Clock, irq: IrqLine) -> Arc<Pit> {
        Arc::new_cyclic(|weak: &std::sync::Weak<Pit>| {
            let weak = weak.clone();
            Pit {
                clock: clock.clone(),
                irq,
                timer: clock.timer(move || {
                    if let Some(pit) = weak.upgrade() {
                        pit.expired();
                    }
                }),
                state: Mutex::new(PitState::new()),
            }
        })
    }

    /// Whether the speaker sounds, and at which frequency: gate 2 and the speaker's bit are set in a periodic mode.
    pub fn speaker_hz(&self) -> Option<u32> {
        let state = self.state.lock();
        let [_, _, two] = &state.counters;
        let sounds = two.gate && state.port_61 & 2 != 0 && matches!(two.mode, 2 | 3);
        let period = two.period().filter(|_| sounds)?;
        u32::try_from(PIT_HZ / period).ok()
    }

    fn expired(&self) {
        let mut state = self.state.lock();
        let now_ns = self.clock.now_ns();
        state.settle(now_ns);
        let [zero, ..] = &state.counters;
        if zero.mode == 2 && zero.period().is_some() {
            self.irq.set(false);
        }
        self.drive(&state, now_ns);
    }

    fn drive(&self, state: &PitState, now_ns: u64) {
        let [zero, ..] = &state.counters;
        // In mode 2 the low clock is shown as an edge when it ends, by `expired`.
        let high = zero.output(now_ns) || (zero.mode == 2 && zero.period().is_some());
        self.irq.set(high);
        match zero.next_change_ns(now_ns) {
            Some(deadline_ns) => self.timer.arm(deadline_ns),
            None => self.timer.cancel(),
        }
    }

    fn change<T>(&self, work: impl FnOnce(&mut PitState, u64) -> T) -> T {
        let mut state = self.state.lock();
        let now_ns = self.clock.now_ns();
        state.settle(now_ns);
        let result = work(&mut state, now_ns);
        self.drive(&state, now_ns);
        result
    }
}

impl IoParts for Pit {
    type Part = PitPart;

    fn read_part(&self, part: PitPart, offset: u64, width: Width) -> u64 {
        let mut state = self.state.lock();
        let now_ns = self.clock.now_ns();
        state.settle(now_ns);
        read_bytes(offset, width, |at| match (part, at) {
            (PitPart::Counters, 0..3) => usize::try_from(at)
                .ok()
                .and_then(|index| state.counters.get_mut(index))
                .map_or(0xff, |counter| counter.read(now_ns)),
            (PitPart::Port61, 0) => state.read_61(now_ns),
            _ => 0xff,
        })
    }

    fn write_part(&self, part: PitPart, offset: u64, width: Width, value: u64) {
        self.change(|state, now_ns| {
            write_bytes(offset, width, value, |at, byte| match (part, at) {
                (PitPart::Counters, 3) => state.write_control(byte, now_ns),
                (PitPart::Counters, 0..3) => {
                    let index = usize::try_from(at).unwrap_or(usize::MAX);
                    if let Some(counter) = state.counters.get_mut(index) {
                        counter.write(byte, now_ns);
                    }
                }
                (PitPart::Port61, 0) => {
                    let [_, _, two] = &mut state.counters;
                    two.set_gate(byte & 1 != 0, now_ns);
                    state.port_61 = byte & 0x0e;
                }
                _ => {}
            });
        });
    }
}

impl Device for Pit {
    fn reset(&self, _kind: ResetKind) {
        self.change(|state, _| *state = PitState::new());
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.state.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: PitState = state.read(NAME, VERSION)?;
        if new.counters.iter().any(|counter| counter.mode > 5) {
            return Err(device::Error::bad_state(
                NAME,
                "a counter's mode is not one of 0 to 5",
            ));
        }
        if new
            .counters
            .iter()
            .any(|counter| counter.held.is_some_and(|ticks| ticks > ticks_of(u64::MAX)))
        {
            return Err(device::Error::bad_state(
                NAME,
                "a counter was held after more time than there is",
            ));
        }
        if new.port_61 & !0x0e != 0 {
            return Err(device::Error::bad_state(
                NAME,
                "port 0x61 has bits that are not stored",
            ));
        }
        let mut state = self.state.lock();
        *state = new;
        self.drive(&state, self.clock.now_ns());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
