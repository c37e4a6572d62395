//! The high precision event timer: a counter of 100 MHz and three timers.
//!
//! | offset | register (64 bits) |
//! |---|---|
//! | 0x000 | capabilities: revision 1, three timers, 64-bit counter, legacy replacement, period of 10 ns |
//! | 0x010 | configuration: enabled 0, legacy replacement 1 |
//! | 0x020 | interrupt status of level-triggered timers, cleared by ones |
//! | 0x0f0 | main counter |
//! | 0x100 + 0x20n | timer n: configuration and capabilities |
//! | 0x108 + 0x20n | timer n: comparator |
//! | 0x110 + 0x20n | timer n: message (value 31-0, address 63-32) |
//!
//! Source: IA-PC HPET specification 1.0a. All timers can be periodic, are 64 bits wide, and can send messages. A timer fires
//! when the counter reaches its comparator, not when the comparator is set behind it. Periods under 10 µs fire each 10 µs.

use std::sync::{Arc, Weak};

use device::{
    Clock, Device, Error, IoHandler, IrqLine, MsiMessage, MsiSink, ResetKind, SavedState, Timer,
    Width, merge_register, read_register,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::irq_gate::IrqGate;

const NAME: &str = "hpet";
const VERSION: u32 = 1;
/// Where a PC's timer lies, in guest-physical memory, 1 KiB.
pub const HPET_ADDRESS: u64 = 0xfed0_0000;
/// Nanoseconds per count.
const COUNT_NS: u64 = 10;
const TIMERS: usize = 3;
/// Revision 1, vendor 0x8086, 10^7 fs per count.
const CAPABILITIES: u64 = 10_000_000 << 32 | 0x8086_a001 | (TIMERS as u64 - 1) << 8;

const ENABLED: u64 = 1;
const LEGACY: u64 = 2;
const T_LEVEL: u64 = 1 << 1;
const T_INTERRUPTS: u64 = 1 << 2;
const T_PERIODIC: u64 = 1 << 3;
const T_SET_VALUE: u64 = 1 << 6;
const T_32_BITS: u64 = 1 << 8;
const T_MESSAGE: u64 = 1 << 14;
const T_WRITABLE: u64 = 0x7f4e;
/// Can be periodic, is 64 bits wide, can send messages.
const T_CAPABILITIES: u64 = 1 << 15 | 1 << 5 | 1 << 4;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HpetTimer {
    /// The writable bits.
    config: u64,
    comparator: u64,
    period: u64,
    message: u64,
}

impl HpetTimer {
    fn mask(&self) -> u64 {
        if self.config & T_32_BITS != 0 {
            0xffff_ffff
        } else {
            u64::MAX
        }
    }

    /// Counts until the counter equals the comparator; a whole turn if it does now.
    fn counts_left(&self, counter: u64) -> u64 {
        let left = self.comparator.wrapping_sub(counter) & self.mask();
        if left == 0 { self.mask() } else { left }
    }

    fn is_periodic(&self) -> bool {
        self.config & T_PERIODIC != 0
    }

    /// Whether the counter has reached the comparator on its way from `before` to `now`. A periodic comparator goes on to
    /// the first multiple of its period that lies ahead.
    fn reached(&mut self, before: u64, now: u64) -> bool {
        let passed = now.wrapping_sub(before);
        let left = self.comparator.wrapping_sub(before) & self.mask();
        if left == 0 || left > passed {
            return false;
        }
        let period = self.period & self.mask();
        if self.is_periodic() && period != 0 {
            let periods = (passed - left) / period + 1;
            let on = periods.wrapping_mul(period);
            self.comparator = self.comparator.wrapping_add(on) & self.mask();
        }
        true
    }

    fn write_comparator(&mut self, value: u64) {
        let value = value & self.mask();
        if !self.is_periodic() {
            self.comparator = value;
            return;
        }
        // With VAL_SET the write goes to the comparator and to the period, without it to the period alone.
        if self.config & T_SET_VALUE != 0 {
            self.comparator = value;
            self.config &= !T_SET_VALUE;
        }
        self.period = value;
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HpetState {
    config: u64,
    status: u64,
    /// The counter at `since_ns` of guest time.
    counter: u64,
    since_ns: u64,
    timers: [HpetTimer; TIMERS],
}

impl HpetState {
    fn counter(&self, now_ns: u64) -> u64 {
        if self.config & ENABLED == 0 {
            return self.counter;
        }
        let passed = now_ns.saturating_sub(self.since_ns) / COUNT_NS;
        self.counter.wrapping_add(passed)
    }

    /// Brings the counter to now; the timers that fire on the way, as bits.
    fn settle(&mut self, now_ns: u64) -> u64 {
        let before = self.counter;
        let now = self.counter(now_ns);
        if self.config & ENABLED == 0 || now == before {
            return 0;
        }
        self.counter = now;
        // The part of a count that has not passed stays.
        self.since_ns = self
            .since_ns
            .saturating_add(now.wrapping_sub(before).saturating_mul(COUNT_NS));
        let reached = self
            .timers
            .iter_mut()
            .map(|timer| timer.reached(before, now));
        reached.enumerate().fold(0, |bits, (index, reached)| {
            bits | u64::from(reached) << index
        })
    }

    /// When a timer that asks for interrupts fires next.
    fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        if self.config & ENABLED == 0 {
            return None;
        }
        let asking = self
            .timers
            .iter()
            .filter(|timer| timer.config & T_INTERRUPTS != 0);
        let next = asking
            .map(|timer| {
                let left = timer.counts_left(self.counter).saturating_mul(COUNT_NS);
                let deadline_ns = self.since_ns.saturating_add(left);
                if timer.is_periodic() {
                    deadline_ns.max(now_ns.saturating_add(Timer::SHORTEST_PERIOD_NS))
                } else {
                    deadline_ns
                }
            })
            .min();
        // A deadline at the end of time is none.
        next.filter(|deadline_ns| *deadline_ns < u64::MAX)
    }

    fn read(&self, offset: u64, routes: u32) -> u64 {
        let timer = || {
            let index = usize::try_from(offset.checked_sub(0x100)? / 0x20).ok()?;
            self.timers.get(index)
        };
        match (offset, offset % 0x20) {
            (0x000, _) => CAPABILITIES,
            (0x010, _) => self.config,
            (0x020, _) => self.status,
            (0x0f0, _) => self.counter,
            (0x100.., 0x00) => timer().map_or(0, |timer| {
                timer.config | T_CAPABILITIES | u64::from(routes) << 32
            }),
            (0x100.., 0x08) => timer().map_or(0, |timer| timer.comparator),
            (0x100.., 0x10) => timer().map_or(0, |timer| timer.message),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u64, now_ns: u64) {
        match (offset, offset % 0x20) {
            (0x010, _) => {
                self.config = value & (ENABLED | LEGACY);
                self.since_ns = now_ns;
            }
            (0x020, _) => self.status &= !value,
            (0x0f0, _) if self.config & ENABLED == 0 => self.counter = value,
            (0x100.., field) => {
                let index = usize::try_from((offset - 0x100) / 0x20).unwrap_or(usize::MAX);
                let Some(timer) = self.timers.get_mut(index) else {
                    return;
                };
                match field {
                    0x00 => {
                        timer.config = value & T_WRITABLE;
                        timer.comparator &= timer.mask();
                        timer.period &= timer.mask();
                        if value & T_LEVEL == 0 {
                            self.status &= !(1 << index);
                        }
                    }
                    0x08 => timer.write_comparator(value),
                    0x10 => timer.message = value,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.config & !(ENABLED | LEGACY) != 0 || self.status >> TIMERS != 0 {
            Err("a register has bits that do not exist")
        } else if self.timers.iter().any(|timer| {
            timer.config & !T_WRITABLE != 0
                || (timer.comparator | timer.period) & !timer.mask() != 0
        }) {
            Err("a timer has bits that do not exist")
        } else {
            Ok(())
        }
    }
}

/// What surrounds a [`Hpet`].
pub struct HpetLines {
    /// The interrupt controllers' inputs (of the IOAPIC, and of the 8259s for the first sixteen), by number.
    pub inputs: Vec<IrqLine>,
    /// Which of them timers may be routed to.
    pub routes: u32,
    /// Where timer 0 goes in legacy replacement (IRQ 0, which is input 2 of an IOAPIC).
    pub legacy_timer: IrqLine,
    /// Where timer 1 goes in legacy replacement (IRQ 8).
    pub legacy_rtc: IrqLine,
    /// The switches in the lines of the 8254 and of the MC146818.
    pub gates: Vec<Arc<IrqGate>>,
    /// Where messages go.
    pub messages: Arc<dyn MsiSink>,
}

/// The timer.
pub struct Hpet {
    clock: Clock,
    lines: HpetLines,
    timer: Timer,
    state: Mutex<HpetState>,
}

impl Hpet {
    /// A timer with these lines.
    pub fn new(clock: &Clock, lines: HpetLines) -> Arc<Hpet> {
        Arc::new_cyclic(|weak: &Weak<Hpet>| {
            let weak = weak.clone();
            Hpet {
                clock: clock.clone(),
                lines,
                timer: clock.timer(move || {
                    if let Some(hpet) = weak.upgrade() {
                        hpet.change(|_, _| ());
                    }
                }),
                state: Mutex::default(),
            }
        })
    }

    fn change<T>(&self, work: impl FnOnce(&mut HpetState, u64) -> T) -> T {
        let mut state = self.state.lock();
        let now_ns = self.clock.now_ns();
        let fired = state.settle(now_ns);
        for index in (0..TIMERS).filter(|index| fired & 1 << index != 0) {
            self.fire(&mut state, index);
        }
        let result = work(&mut state, now_ns);
        self.drive(&state, now_ns);
        result
    }

    /// Whether a timer drives the line of an old one.
    fn replaces(state: &HpetState, index: usize) -> bool {
        state.config & LEGACY != 0 && index < 2
    }

    /// The input that a timer is routed to; none if it sends messages, replaces an old timer, or may not go there.
    fn route(&self, state: &HpetState, index: usize) -> Option<usize> {
        let config = state.timers.get(index)?.config;
        let route = config >> 9 & 0x1f;
        let routed = config & T_MESSAGE == 0 && self.lines.routes & 1 << route != 0;
        usize::try_from(route)
            .ok()
            .filter(|_| routed && !Hpet::replaces(state, index))
    }

    fn line(&self, state: &HpetState, index: usize) -> Option<&IrqLine> {
        match index {
            0 if Hpet::replaces(state, index) => Some(&self.lines.legacy_timer),
            1 if Hpet::replaces(state, index) => Some(&self.lines.legacy_rtc),
            _ => self.lines.inputs.get(self.route(state, index)?),
        }
    }

    fn fire(&self, state: &mut HpetState, index: usize) {
        let Some(timer) = state.timers.get(index) else {
            return;
        };
        let config = timer.config;
        if config & T_LEVEL != 0 {
            // The status bit, and with it the line, stands until it is cleared.
            state.status |= 1 << index;
            return;
        }
        if config & T_INTERRUPTS == 0 {
            return;
        }
        if config & T_MESSAGE != 0 && !Hpet::replaces(state, index) {
            self.lines.messages.send(MsiMessage {
                address: timer.message >> 32,
                data: u32::try_from(timer.message & 0xffff_ffff).unwrap_or(0),
            });
        } else if let Some(line) = self.line(state, index) {
            line.pulse();
        }
    }

    fn drive(&self, state: &HpetState, now_ns: u64) {
        let replaces = state.config & (ENABLED | LEGACY) == ENABLED | LEGACY;
        for gate in &self.lines.gates {
            gate.set_open(!replaces);
        }
        let asks = |index: usize| {
            let level = T_LEVEL | T_INTERRUPTS;
            let timer = state.timers.get(index);
            state.status & 1 << index != 0 && timer.is_some_and(|one| one.config & level == level)
        };
        let legacy = [&self.lines.legacy_timer, &self.lines.legacy_rtc];
        for (index, line) in legacy.into_iter().enumerate() {
            line.set(Hpet::replaces(state, index) && asks(index));
        }
        for (input, line) in self.lines.inputs.iter().enumerate() {
            line.set(
                (0..TIMERS).any(|index| asks(index) && self.route(state, index) == Some(input)),
            );
        }
        match state.deadline_ns(now_ns) {
            Some(deadline_ns) => self.timer.arm(deadline_ns),
            None => self.timer.cancel(),
        }
    }
}

impl IoHandler for Hpet {
    fn read(&self, offset: u64, width: Width) -> u64 {
        let routes = self.lines.routes;
        self.change(|state, _| {
            read_register(offset, width, |at| {
                let value = state.read(at & !7, routes);
                let half = if at & 4 != 0 {
                    value >> 32
                } else {
                    value & 0xffff_ffff
                };
                u32::try_from(half).unwrap_or(0)
            })
        })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        // The specification allows accesses of 32 and of 64 bits, aligned.
        if !matches!(width, Width::Dword | Width::Qword) || !offset.is_multiple_of(width.bytes()) {
            return;
        }
        let register = offset & !7;
        self.change(|state, now_ns| {
            let old = match register {
                // Writing ones clears: what is not written is zero.
                0x020 => 0,
                _ => state.read(register, 0),
            };
            let half = |at: u64, old: u64| {
                let old = u32::try_from(old & 0xffff_ffff).unwrap_or(0);
                merge_register(at, old, offset, width, value).map_or(old, |(merged, _)| merged)
            };
            let low = half(register, old);
            let high = half(register.saturating_add(4), old >> 32);
            state.write(register, u64::from(high) << 32 | u64::from(low), now_ns);
        });
    }
}

impl Device for Hpet {
    fn reset(&self, _kind: ResetKind) {
        self.change(|state, now_ns| {
            *state = HpetState {
                since_ns: now_ns,
                ..HpetState::default()
            };
        });
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.state.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: HpetState = state.read(NAME, VERSION)?;
        new.check()
            .map_err(|reason| device::Error::bad_state(NAME, reason))?;
        let mut state = self.state.lock();
        *state = new;
        self.drive(&state, self.clock.now_ns());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
