//! Power management of a board with hardware-reduced ACPI: switching off, resetting, and a timer.
//!
//! | in memory, offset | register |
//! |---|---|
//! | 0 | sleep control: bits 4-2 sleep type, bit 5 sleep; reads 0 |
//! | 1 | sleep status: bit 7 wake, cleared by a one; nothing here wakes |
//! | 2 | reset: [`RESET_VALUE`] resets |
//!
//! | four ports | register |
//! |---|---|
//! | 0 | timer: 24 bits at 3.579545 MHz |
//!
//! Source: ACPI 6.3, 4.8.3.7 (sleep registers), 4.8.3.6 (reset register) and 4.8.3.3 (timer).

use std::sync::Arc;

use device::{
    Clock, Device, Error, IoParts, MachineRequest, MachineSink, ResetKind, SavedState, Width,
    read_bytes, read_register, write_bytes,
};

use crate::acpi_pm::PM_TIMER_HZ;

const NAME: &str = "reduced-power";
const VERSION: u32 = 1;
const SLEEP: u8 = 0x20;
/// The sleep type of S5, as the tables say.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// What resets, as the tables say.
pub const RESET_VALUE: u8 = 0x42;
/// How many bytes of registers there are in memory.
pub const POWER_BYTES: u64 = 3;
const TIMER_MASK: u128 = 0xff_ffff;

/// The ranges of a [`ReducedPower`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReducedPart {
    /// Sleep and reset, [`POWER_BYTES`] of memory.
    Power,
    /// The timer, four ports.
    Timer,
}

/// The registers. They hold nothing.
pub struct ReducedPower {
    clock: Clock,
    machine: Arc<dyn MachineSink>,
}

impl ReducedPower {
    /// Registers that ask this machine.
    pub fn new(clock: &Clock, machine: Arc<dyn MachineSink>) -> Arc<ReducedPower> {
        Arc::new(ReducedPower {
            clock: clock.clone(),
            machine,
        })
    }

    fn timer(&self) -> u32 {
        let ticks = u128::from(self.clock.now_ns()) * u128::from(PM_TIMER_HZ) / 1_000_000_000;
        u32::try_from(ticks & TIMER_MASK).unwrap_or(0)
    }
}

impl IoParts for ReducedPower {
    type Part = ReducedPart;

    fn read_part(&self, part: ReducedPart, offset: u64, width: Width) -> u64 {
        match part {
            ReducedPart::Timer => read_register(offset, width, |_| self.timer()),
            ReducedPart::Power => read_bytes(offset, width, |_| 0),
        }
    }

    fn write_part(&self, part: ReducedPart, offset: u64, width: Width, value: u64) {
        write_bytes(offset, width, value, |at, byte| match (part, at) {
            (ReducedPart::Power, 0) if byte & SLEEP != 0 && byte >> 2 & 7 == SLEEP_TYPE_OFF => {
                self.machine.request(MachineRequest::PowerOff);
            }
            (ReducedPart::Power, 2) if byte == RESET_VALUE => {
                let reset = MachineRequest::Reset(ResetKind::System);
                self.machine.request(reset);
            }
            _ => {}
        });
    }
}

impl Device for ReducedPower {
    fn reset(&self, _kind: ResetKind) {}

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        state.read(NAME, VERSION)
    }
}

#[cfg(test)]
mod tests {
    use device::conformance::{self, Subject};
    use device::doubles::RecordingMachine;
    use device::{IoHandler, IoPart};

    use super::*;

    #[test]
    fn off_and_reset() {
        let machine = Arc::new(RecordingMachine::default());
        let power = ReducedPower::new(&Clock::stepped(), machine.clone());
        let power = IoPart::new(power, ReducedPart::Power);
        power.write(0, Width::Byte, 0x14);
        power.write(0, Width::Byte, 0x24);
        power.write(2, Width::Byte, 6);
        assert_eq!(machine.take(), []);
        power.write(0, Width::Byte, 0x34);
        power.write(2, Width::Byte, 0x42);
        let expected = [
            MachineRequest::PowerOff,
            MachineRequest::Reset(ResetKind::System),
        ];
        assert_eq!(machine.take(), expected);
    }

    #[test]
    fn the_timer_follows_guest_time() {
        let clock = Clock::stepped();
        let power = ReducedPower::new(&clock, Arc::new(RecordingMachine::default()));
        let timer = IoPart::new(power, ReducedPart::Timer);
        clock.step(1_000_000_000);
        assert_eq!(timer.read(0, Width::Dword), 3_579_545);
        clock.step(4_000_000_000);
        assert_eq!(timer.read(0, Width::Dword), 17_897_725 & 0xff_ffff);
    }

    #[test]
    fn it_conforms() {
        conformance::check(|| {
            let clock = Clock::stepped();
            let power = ReducedPower::new(&clock, Arc::new(RecordingMachine::default()));
            Subject {
                device: power.clone(),
                ranges: vec![
                    (IoPart::new(power.clone(), ReducedPart::Power), POWER_BYTES),
                    (IoPart::new(power, ReducedPart::Timer), 4),
                ],
                clock,
                kept_by_reset: &[],
            }
        });
    }
}
