//! Power management of a board with hardware-reduced ACPI: switching off and resetting, nothing else.
//!
//! | port | register |
//! |---|---|
//! | 0x604 | sleep control: bits 4-2 sleep type, bit 5 sleep; reads 0 |
//! | 0x605 | sleep status: bit 7 wake, cleared by a one; nothing here wakes |
//! | 0xcf9 | reset control: bit 2 resets |
//!
//! Source: ACPI 6.3, 4.8.3.7 (sleep registers) and 4.8.3.6 (reset register).

use std::sync::Arc;

use device::{
    Device, Error, IoParts, MachineRequest, MachineSink, ResetKind, SavedState, Width, read_bytes,
    write_bytes,
};

const NAME: &str = "reduced-power";
const VERSION: u32 = 1;
const SLEEP: u8 = 0x20;
/// The sleep type of S5, as the tables say.
pub const SLEEP_TYPE_OFF: u8 = 5;
const RESET: u8 = 4;

/// The ranges of a [`ReducedPower`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReducedPart {
    /// 0x604, two ports.
    Sleep,
    /// 0xcf9, one port.
    Reset,
}

/// The registers. They hold nothing.
pub struct ReducedPower {
    machine: Arc<dyn MachineSink>,
}

impl ReducedPower {
    /// Registers that ask this machine.
    pub fn new(machine: Arc<dyn MachineSink>) -> Arc<ReducedPower> {
        Arc::new(ReducedPower { machine })
    }
}

impl IoParts for ReducedPower {
    type Part = ReducedPart;

    fn read_part(&self, _part: ReducedPart, offset: u64, width: Width) -> u64 {
        read_bytes(offset, width, |_| 0)
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
    use device::{Clock, IoHandler, IoPart};

    use super::*;

    #[test]
    fn off_and_reset() {
        let machine = Arc::new(RecordingMachine::default());
        let power = ReducedPower::new(machine.clone());
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
    fn it_conforms() {
        conformance::check(|| {
            let power = ReducedPower::new(Arc::new(RecordingMachine::default()));
            Subject {
                device: power.clone(),
                ranges: vec![
                    (IoPart::new(power.clone(), ReducedPart::Sleep), 2),
                    (IoPart::new(power, ReducedPart::Reset), 1),
                ],
                clock: Clock::stepped(),
                kept_by_reset: &[],
            }
        });
    }
}
