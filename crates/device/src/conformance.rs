//! The cases that every device runs: one call of [`check`] in its tests.
//!
//! 1. Accesses of every width at every offset, and a long run of random ones with time passing, do not panic.
//! 2. A state that is saved and restored into a fresh device is the same state, and every register reads the same.
//! 3. A reset gives the power-on values.
//! 4. States with something wrong in them are refused or taken, never a panic, and the device goes on working.

use std::sync::Arc;

use serde_json::Value;

use crate::{Clock, Device, IoHandler, ResetKind, SavedState, Width};

/// A device with everything around it, as it is before the first reset.
pub struct Subject {
    /// The device.
    pub device: Arc<dyn Device>,
    /// Its ranges of registers, with their lengths in bytes.
    pub ranges: Vec<(Arc<dyn IoHandler>, u64)>,
    /// The stepped clock that it was made with.
    pub clock: Clock,
    /// Fields of its saved state that a power-on reset leaves alone (what a battery holds, what the board set).
    pub kept_by_reset: &'static [&'static str],
}

/// How many random accesses a run makes.
const ACCESSES: u32 = 4000;
/// How many runs, each with its own random numbers.
const RUNS: u64 = 6;
/// Offsets tried one by one in each range; longer ranges are covered by the random accesses.
const OFFSETS: u64 = 0x1000;

/// Random numbers with a seed (xorshift64*), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11).checked_rem(bound).unwrap_or(0)
    }

    fn width(&mut self) -> Width {
        match self.below(8) {
            0 => Width::Qword,
            1 | 2 => Width::Word,
            3 | 4 => Width::Dword,
            _ => Width::Byte,
        }
    }

    /// Often a small number or one with a single bit, sometimes anything.
    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(16),
            1 => 1 << self.below(64),
            2 => self.below(256),
            _ => self.next(),
        }
    }
}

/// Runs all cases on devices that `make` gives, each a new one.
///
/// # Panics
/// If the device does not conform; the message says where.
#[expect(clippy::panic, reason = "this is a test, called by tests")]
pub fn check(make: impl Fn() -> Subject) {
    every_offset(&make());
    for seed in 1..=RUNS {
        if let Err(complaint) = one_run(&make, seed) {
            panic!("seed {seed}: {complaint}");
        }
    }
}

fn every_offset(subject: &Subject) {
    subject.device.reset(ResetKind::PowerOn);
    for (handler, length) in &subject.ranges {
        for offset in (0..(*length).min(OFFSETS)).chain([*length, u64::MAX - 8, u64::MAX]) {
            for width in Width::ALL {
                handler.read(offset, width);
                handler.write(offset, width, 0);
                handler.write(offset, width, u64::MAX);
                handler.read(offset, width);
            }
        }
    }
}

fn random_accesses(subject: &Subject, random: &mut Random, accesses: u32) {
    for _ in 0..accesses {
        let index = random.below(subject.ranges.len() as u64);
        let Some((handler, length)) = subject.ranges.get(index as usize) else {
            return;
        };
        let offset = random.below(*length);
        let width = random.width();
        match random.below(16) {
            0 => subject.clock.step(random.below(50_000_000)),
            1..=6 => {
                let value = handler.read(offset, width);
                assert!(
                    value & !width.ones() == 0,
                    "a {width:?} read at {offset:#x} gave {value:#x}"
                );
            }
            _ => handler.write(offset, width, random.value()),
        }
    }
}

fn one_run(make: &impl Fn() -> Subject, seed: u64) -> Result<(), String> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let first = make();
    first.device.reset(ResetKind::PowerOn);
    random_accesses(&first, &mut random, ACCESSES);
    round_trip(&first, &make())?;
    if seed.is_multiple_of(2) {
        hostile_states(&first, &mut random)?;
    }
    reset_is_power_on(&first, &make())
}

fn save(subject: &Subject, when: &str) -> Result<SavedState, String> {
    subject
        .device
        .save()
        .map_err(|error| format!("save {when}: {error}"))
}

fn same(what: &str, left: &Value, right: &Value) -> Result<(), String> {
    if left == right {
        Ok(())
    } else {
        Err(format!("{what}:\n  {left}\n  {right}"))
    }
}

fn round_trip(first: &Subject, second: &Subject) -> Result<(), String> {
    second.device.reset(ResetKind::PowerOn);
    second.clock.set_ns(first.clock.now_ns());
    let state = save(first, "before the round trip")?;
    // Through text, as a file would hold it.
    let text = serde_json::to_string(&state).map_err(|error| error.to_string())?;
    let state: SavedState = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    second
        .device
        .restore(&state)
        .map_err(|error| format!("restore of an own state: {error}"))?;
    let again = save(second, "after the round trip")?;
    same(
        "the state changed in a round trip",
        &state.data,
        &again.data,
    )?;
    for ((left, length), (right, _)) in first.ranges.iter().zip(&second.ranges) {
        for offset in 0..(*length).min(OFFSETS) {
            let (left, right) = (
                left.read(offset, Width::Byte),
                right.read(offset, Width::Byte),
            );
            if left != right {
                return Err(format!(
                    "after a round trip the byte at {offset:#x} reads {right:#x}, not {left:#x}"
                ));
            }
        }
    }
    Ok(())
}

fn reset_is_power_on(used: &Subject, fresh: &Subject) -> Result<(), String> {
    fresh.clock.set_ns(used.clock.now_ns());
    let mut states = Vec::new();
    for subject in [used, fresh] {
        subject.device.reset(ResetKind::PowerOn);
        let mut data = save(subject, "after reset")?.data;
        if let Some(fields) = data.as_object_mut() {
            fields.retain(|name, _| !subject.kept_by_reset.contains(&name.as_str()));
        }
        states.push(data);
    }
    match states.as_slice() {
        [used, fresh] => same("a reset does not give the power-on state", used, fresh),
        _ => Ok(()),
    }
}

fn hostile_states(subject: &Subject, random: &mut Random) -> Result<(), String> {
    let good = save(subject, "before hostile states")?;
    for _ in 0..150 {
        let mut bad = good.clone();
        for _ in 0..=random.below(3) {
            let leaves = count(&bad.data);
            let mut index = random.below(leaves);
            damage(&mut bad.data, &mut index, random);
        }
        // Refused or not: what must not happen is a panic, now or later.
        let _ = subject.device.restore(&bad);
        random_accesses(subject, random, 60);
    }
    subject
        .device
        .restore(&good)
        .map_err(|error| format!("restore after hostile states: {error}"))
}

fn count(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<u64>(),
        Value::Object(fields) => 1 + fields.values().map(count).sum::<u64>(),
        _ => 1,
    }
}

/// Replaces the value with number `index` by something else.
fn damage(value: &mut Value, index: &mut u64, random: &mut Random) -> bool {
    if *index == 0 {
        *value = match random.below(8) {
            0 => Value::Null,
            1 => Value::from("nonsense"),
            2 => Value::from(-1),
            3 => Value::from(random.next()),
            4 => Value::from(random.below(2) == 0),
            5 => Value::from(Vec::<u8>::new()),
            6 => Value::from(u64::from(u32::MAX)),
            _ => Value::from(random.below(256)),
        };
        return true;
    }
    *index -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| damage(item, index, random)),
        Value::Object(fields) => fields.values_mut().any(|item| damage(item, index, random)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::Error;

    /// One byte of scratch; with `forgetful`, a device that forgets it in `save`.
    struct Scratch {
        byte: Mutex<u8>,
        forgetful: bool,
        sticky: bool,
    }

    impl IoHandler for Scratch {
        fn read(&self, _offset: u64, _width: Width) -> u64 {
            u64::from(*self.byte.lock())
        }

        fn write(&self, _offset: u64, _width: Width, value: u64) {
            *self.byte.lock() = value as u8;
        }
    }

    impl Device for Scratch {
        fn reset(&self, _kind: ResetKind) {
            if !self.sticky {
                *self.byte.lock() = 0;
            }
        }

        fn save(&self) -> Result<SavedState, Error> {
            let byte = if self.forgetful { 0 } else { *self.byte.lock() };
            SavedState::of("scratch", 1, &[byte])
        }

        fn restore(&self, state: &SavedState) -> Result<(), Error> {
            *self.byte.lock() = state.read::<[u8; 1]>("scratch", 1)?[0];
            Ok(())
        }
    }

    fn subject(forgetful: bool, sticky: bool) -> Subject {
        let device = Arc::new(Scratch {
            byte: Mutex::new(0),
            forgetful,
            sticky,
        });
        Subject {
            device: device.clone(),
            ranges: vec![(device, 4)],
            clock: Clock::stepped(),
            kept_by_reset: &[],
        }
    }

    #[test]
    fn a_good_device_passes() {
        check(|| subject(false, false));
    }

    #[test]
    #[should_panic(expected = "after a round trip the byte at")]
    fn a_device_that_forgets_is_found() {
        check(|| subject(true, false));
    }

    #[test]
    #[should_panic(expected = "a reset does not give the power-on state")]
    fn a_device_that_does_not_reset_is_found() {
        check(|| subject(false, true));
    }
}
