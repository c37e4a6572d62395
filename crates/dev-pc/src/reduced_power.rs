//! Power management of a board with hardware-reduced ACPI: switching off, resetting, and a timer.
//!
//! | port | register |
//! |---|---|
//! | 0x604 | sleep control: bits 4-2 sleep type, bit 5 sleep; reads 0 |
//! | 0x605 | sleep status: bit 7 wake, cleared by a one; nothing here wakes |
//! | 0x608, four ports | timer: 24 bits at 3.579545 MHz |
//! | 0xcf9 | reset control: bit 2 resets |
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
const RESET: u8 = 4;
const TIMER_MASK: u128 = 0xff_ffff;

/// The ranges of a [`ReducedPower`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReducedPart {
    /// 0x604, two ports.
    Sleep,
    /// 0x608, four ports.
    Timer,
    /// 0xcf9, one port.
    Reset,
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
            ReducedPart::Sleep | ReducedPart::Reset => read_bytes(offset, width, |_| 0),
        }
    }

    fn write_part(&self, part: ReducedPart, offset: u64, width: Width, value: u64) {
        write_bytes(offset, width, value, |at, byte| match (part, at) {
            (ReducedPart::Sleep, 0) if byte & SLEEP != 0 && byte >> 2 & 7 == SLEEP_TYPE_OFF => {
                self.machine.request(MachineRequest::PowerOff);
            }
            (ReducedPart::Reset, 0) if byte & RESET != 0 => {
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
        let sleep = IoPart::new(power.clone(), ReducedPart::Sleep);
        let reset = IoPart::new(power, ReducedPart::Reset);
        sleep.write(0, Width::Byte, 0x14);
        sleep.write(0, Width::Byte, 0x24);
        reset.write(0, Width::Byte, 2);
        assert_eq!(machine.take(), []);
        sleep.write(0, Width::Byte, 0x34);
        reset.write(0, Width::Byte, 6);
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
                    (IoPart::new(power.clone(), ReducedPart::Sleep), 2),
                    (IoPart::new(power.clone(), ReducedPart::Timer), 4),
                    (IoPart::new(power, ReducedPart::Reset), 1),
                ],
                clock,
                kept_by_reset: &[],
            }
        });
    }
}
