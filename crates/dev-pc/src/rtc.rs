//! The MC146818 real-time clock with 128 bytes of CMOS memory.
//!
//! | port | register |
//! |---|---|
//! | 0x70 | index (bits 0-6; bit 7 masks NMI on a PC), write only |
//! | 0x71 | the byte at the index |
//!
//! | index | byte |
//! |---|---|
//! | 0, 2, 4 | seconds, minutes, hours; 1, 3, 5 their alarms (0xc0 to 0xff: any) |
//! | 6 to 9 | day of week (1 = Sunday), day, month, year of the century |
//! | 0x0a | A: update in progress, divider, periodic rate |
//! | 0x0b | B: SET, PIE, AIE, UIE, SQWE, DM (1 = binary), 24/12, DSE |
//! | 0x0c | C: IRQF, PF, AF, UF; cleared by reading |
//! | 0x0d | D: bit 7, the battery is good |
//! | 0x32 | century, as a PC has it |
//!
//! Source: Motorola MC146818A datasheet. The time is kept as a distance from the time of day ([`WallClock`]); while SET
//! stands or the divider is held in reset, it is kept as the bytes of the registers. Daylight saving (DSE) is stored and not
//! acted upon, as in all PCs since the dates of the law changed. Registers change at the moment of the update; UIP is set
//! for 2228 µs before it (244 µs of warning, 1984 µs of update).

mod calendar;

use std::sync::Arc;

use device::{
    Clock, Device, Error, IoHandler, IrqLine, ResetKind, SavedState, Timer, WallClock, Width,
    read_bytes, write_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use calendar::{Registers, SECONDS_PER_DAY};

const NAME: &str = "mc146818rtc";
const VERSION: u32 = 1;
/// Bytes behind the index.
const CMOS_BYTES: usize = 128;
const SECOND_NS: u64 = 1_000_000_000;
/// How long UIP announces an update.
const UIP_NS: u64 = 2_228_000;
/// The first update comes this long after the divider starts.
const FIRST_UPDATE_NS: u64 = 500_000_000;
const OSCILLATOR_HZ: u128 = 32_768;

const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_RUNS: u8 = 0x20;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_SQUARE: u8 = 0x08;
const C_ANY: u8 = 0x80;
/// Bits of C, at the places of their enables in B.
const C_FLAGS: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
/// The index of the century in a PC.
const CENTURY: usize = 0x32;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RtcState {
    index: u8,
    register_a: u8,
    register_b: u8,
    register_c: u8,
    /// All other bytes; those of the time are current only while the clock is held.
    memory: Vec<u8>,
    /// The clock's seconds since 1970 are those of the time of day plus this.
    offset_s: i64,
    /// Its seconds begin this much earlier than those of the time of day, 0 to 999999999.
    phase_ns: u64,
    /// Its day of week is this many days ahead of the calendar's, 0 to 6.
    weekday_shift: i64,
    /// The clock's second up to which UF and AF have been looked at.
    settled_s: i64,
    /// The periodic tick up to which PF has been looked at.
    settled_tick: u64,
}

/// The moments that matter, read once per access.
#[derive(Clone, Copy)]
struct Moment {
    guest_ns: u64,
    wall_ns: u64,
}

impl RtcState {
    fn new() -> RtcState {
        RtcState {
            index: 0,
            register_a: 0x26,
            register_b: 0x02,
            register_c: 0,
            memory: vec![0; CMOS_BYTES],
            offset_s: 0,
            phase_ns: 0,
            weekday_shift: 0,
            settled_s: 0,
            settled_tick: 0,
        }
    }

    fn is_held(&self) -> bool {
        self.register_b & B_SET != 0 || self.register_a & A_DIVIDER != A_DIVIDER_RUNS
    }

    fn clock_ns(&self, moment: Moment) -> u64 {
        moment.wall_ns.saturating_add(self.phase_ns)
    }

    fn second(&self, moment: Moment) -> i64 {
        let seconds = self.clock_ns(moment) / SECOND_NS;
        i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_add(self.offset_s)
            .clamp(calendar::FIRST_SECOND, calendar::LAST_SECOND)
    }

    fn ns_to_update(&self, moment: Moment) -> u64 {
        SECOND_NS - self.clock_ns(moment) % SECOND_NS
    }

    fn registers(&self) -> Registers {
        let at = |index: usize| self.memory.get(index).copied().unwrap_or(0);
        Registers {
            second: at(0),
            minute: at(2),
            hour: at(4),
            weekday: at(6),
            day: at(7),
            month: at(8),
            year: at(9),
            century: at(CENTURY),
        }
    }

    fn store(&mut self, registers: &Registers) {
        let bytes = [
            (0, registers.second),
            (2, registers.minute),
            (4, registers.hour),
            (6, registers.weekday),
            (7, registers.day),
            (8, registers.month),
            (9, registers.year),
            (CENTURY, registers.century),
        ];
        for (index, byte) in bytes {
            if let Some(place) = self.memory.get_mut(index) {
                *place = byte;
            }
        }
    }

    /// Writes the running time into the registers.
    fn show(&mut self, second: i64) {
        let registers = Registers::of(second, self.weekday_shift, self.register_b);
        self.store(&registers);
    }

    /// Takes the time from the registers: it is that now.
    fn take(&mut self, moment: Moment) {
        let registers = self.registers();
        let (second, weekday_shift) = registers.second_of(self.register_b);
        let wall_s = i64::try_from(self.clock_ns(moment) / SECOND_NS).unwrap_or(i64::MAX);
        self.offset_s = second.saturating_sub(wall_s);
        self.weekday_shift = weekday_shift;
        self.settled_s = self.second(moment);
    }

    /// The length of the periodic interrupt's period, in clocks of the oscillator.
    fn period_clocks(&self) -> Option<u64> {
        if self.register_a & A_DIVIDER != A_DIVIDER_RUNS {
            return None;
        }
        match self.register_a & 0x0f {
            0 => None,
            // 3.90625 ms and 7.8125 ms.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn tick(&self, moment: Moment) -> u64 {
        let clocks = u128::from(moment.guest_ns) * OSCILLATOR_HZ / u128::from(SECOND_NS);
        self.period_clocks().map_or(0, |period| {
            u64::try_from(clocks / u128::from(period)).unwrap_or(u64::MAX)
        })
    }

    fn next_tick_ns(&self, moment: Moment) -> Option<u64> {
        let clocks =
            u128::from(self.tick(moment)).saturating_add(1) * u128::from(self.period_clocks()?);
        u64::try_from((clocks * u128::from(SECOND_NS)).div_ceil(OSCILLATOR_HZ)).ok()
    }

    /// Brings registers and flags up to the moment.
    fn settle(&mut self, moment: Moment) {
        let tick = self.tick(moment);
        if tick != self.settled_tick {
            self.settled_tick = tick;
            if self.period_clocks().is_some() {
                self.register_c |= B_PERIODIC;
            }
        }
        if self.is_held() {
            return;
        }
        let second = self.second(moment);
        if second != self.settled_s {
            self.register_c |= B_UPDATE;
            if self.alarm_within(self.settled_s, second) {
                self.register_c |= B_ALARM;
            }
            self.settled_s = second;
        }
        self.show(second);
    }

    /// Whether the alarm's time lies after `from` and not after `to`.
    fn alarm_within(&self, from: i64, to: i64) -> bool {
        let first = from
            .saturating_add(1)
            .max(to.saturating_sub(SECONDS_PER_DAY - 1));
        (first..=to).any(|second| {
            let time = Registers::of(second, 0, self.register_b);
            let fits = |index: usize, now: u8| {
                self.memory
                    .get(index)
                    .is_some_and(|alarm| *alarm >= 0xc0 || *alarm == now)
            };
            fits(1, time.second) && fits(3, time.minute) && fits(5, time.hour)
        })
    }

    fn asks(&self) -> bool {
        self.register_c & self.register_b & C_FLAGS != 0
    }

    fn read_data(&mut self, moment: Moment) -> u8 {
        match self.index {
            0x0a => {
                let announced = !self.is_held() && self.ns_to_update(moment) <= UIP_NS;
                self.register_a | u8::from(announced) << 7
            }
            0x0b => self.register_b,
            0x0c => {
                let value = self.register_c | if self.asks() { C_ANY } else { 0 };
                self.register_c = 0;
                value
            }
            0x0d => 0x80,
            index => self.memory.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write_data(&mut self, byte: u8, moment: Moment) {
        let was_held = self.is_held();
        match self.index {
            0x0a => {
                let divider_stood = self.register_a & A_DIVIDER != A_DIVIDER_RUNS;
                self.register_a = byte & 0x7f;
                self.settled_tick = self.tick(moment);
                if divider_stood && self.register_a & A_DIVIDER == A_DIVIDER_RUNS {
                    // Half a second to the first update.
                    let within = moment.wall_ns % SECOND_NS;
                    self.phase_ns = (SECOND_NS + FIRST_UPDATE_NS - within) % SECOND_NS;
                }
            }
            0x0b => {
                // SET clears UIE (datasheet, register B).
                let update_off = if byte & B_SET != 0 { B_UPDATE } else { 0 };
                self.register_b = byte & !update_off;
            }
            0x0c | 0x0d => {}
            index => {
                if let Some(place) = self.memory.get_mut(usize::from(index)) {
                    *place = byte;
                }
                let of_time = matches!(index, 0 | 2 | 4 | 6..=9) || usize::from(index) == CENTURY;
                if of_time && !was_held {
                    self.take(moment);
                }
            }
        }
        if was_held && !self.is_held() {
            self.take(moment);
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.memory.len() != CMOS_BYTES {
            Err("the memory does not have 128 bytes")
        } else if self.phase_ns >= SECOND_NS {
            Err("the phase is a second or more")
        } else if !(0..7).contains(&self.weekday_shift) {
            Err("the day of week is not one of seven")
        } else if self.index >= 0x80 || self.register_a >= 0x80 || self.register_c & !C_FLAGS != 0 {
            Err("a register has bits that are not stored")
        } else if self.offset_s.unsigned_abs() > calendar::LAST_SECOND.unsigned_abs() {
            Err("the time is further away than the calendar reaches")
        } else {
            Ok(())
        }
    }
}

/// The clock.
pub struct Rtc {
    clock: Clock,
    wall: WallClock,
    irq: IrqLine,
    timer: Timer,
    state: Mutex<RtcState>,
}

impl Rtc {
    /// A clock that shows `wall` (in UTC, or shifted by whoever made it) and asks on `irq` (IRQ 8).
    pub fn new(clock: &Clock, wall: WallClock, irq: IrqLine) -> Arc<Rtc> {
        let rtc = Arc::new_cyclic(|weak: &std::sync::Weak<Rtc>| {
            let weak = weak.clone();
            Rtc {
                clock: clock.clone(),
                wall,
                irq,
                timer: clock.timer(move || {
                    if let Some(rtc) = weak.upgrade() {
                        rtc.change(|_, _| ());
                    }
                }),
                state: Mutex::new(RtcState::new()),
            }
        });
        let moment = rtc.moment();
        let mut state = rtc.state.lock();
        state.settled_s = state.second(moment);
        state.settled_tick = state.tick(moment);
        let second = state.settled_s;
        state.show(second);
        drop(state);
        rtc
    }

    /// Sets a byte of CMOS memory, as a board does for its firmware. Registers and time are not memory: those indices
    /// (0 to 0x0d and the century) and indices beyond 0x7f are ignored.
    pub fn set_cmos(&self, index: u8, byte: u8) {
        let index = usize::from(index);
        if index >= 0x0e && index != CENTURY {
            let mut state = self.state.lock();
            if let Some(place) = state.memory.get_mut(index) {
                *place = byte;
            }
        }
    }

    /// The distance of the guest's clock from the time of day, in seconds (`RTC_CHANGE` tells it).
    pub fn offset_s(&self) -> i64 {
        self.state.lock().offset_s
    }

    fn moment(&self) -> Moment {
        Moment {
            guest_ns: self.clock.now_ns(),
            wall_ns: self.wall.now_unix_ns(),
        }
    }

    fn change<T>(&self, work: impl FnOnce(&mut RtcState, Moment) -> T) -> T {
        let mut state = self.state.lock();
        let moment = self.moment();
        state.settle(moment);
        let result = work(&mut state, moment);
        self.drive(&state, moment);
        result
    }

    fn drive(&self, state: &RtcState, moment: Moment) {
        self.irq.set(state.asks());
        let periodic = (state.register_b & B_PERIODIC != 0)
            .then(|| state.next_tick_ns(moment))
            .flatten();
        let updates = state.register_b & (B_UPDATE | B_ALARM) != 0 && !state.is_held();
        let update = updates.then(|| moment.guest_ns.saturating_add(state.ns_to_update(moment)));
        match [periodic, update].into_iter().flatten().min() {
            Some(deadline_ns) => self.timer.arm(deadline_ns),
            None => self.timer.cancel(),
        }
    }
}

impl IoHandler for Rtc {
    fn read(&self, offset: u64, width: Width) -> u64 {
        self.change(|state, moment| {
            read_bytes(offset, width, |at| match at {
                1 => state.read_data(moment),
                _ => 0xff,
            })
        })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.change(|state, moment| {
            write_bytes(offset, width, value, |at, byte| match at {
                0 => state.index = byte & 0x7f,
                1 => state.write_data(byte, moment),
                _ => {}
            });
        });
    }
}

impl Device for Rtc {
    fn reset(&self, _kind: ResetKind) {
        // The RESET pin (datasheet, "Reset"): enables, flags and the square wave; time and memory stay.
        self.change(|state, _| {
            state.index = 0;
            state.register_b &= !(C_FLAGS | B_SQUARE);
            state.register_c = 0;
        });
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.state.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: RtcState = state.read(NAME, VERSION)?;
        new.check()
            .map_err(|reason| device::Error::bad_state(NAME, reason))?;
        let mut state = self.state.lock();
        *state = new;
        self.drive(&state, self.moment());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
