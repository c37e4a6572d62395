//! System control port A, port 0x92 (PS/2; 82371SB datasheet 2.5.5.3).
//!
//! | bit | meaning |
//! |---|---|
//! | 0 | write 1 after 0: reset the machine |
//! | 1 | address line 20 is open |
//! | 2-7 | read as written (bit 2 as 0) |

use std::sync::Arc;

use device::{
    Device, Error, IoHandler, IrqLine, MachineRequest, MachineSink, ResetKind, SavedState, Width,
    read_bytes, write_bytes,
};
use parking_lot::Mutex;

const NAME: &str = "port92";
const VERSION: u32 = 1;
const FAST_RESET: u8 = 1;
const OPEN_A20: u8 = 2;

/// The port.
pub struct Port92 {
    a20: IrqLine,
    machine: Arc<dyn MachineSink>,
    value: Mutex<u8>,
}

impl Port92 {
    /// A port that is one of the sources of the line `a20` (the keyboard controller is the other).
    pub fn new(a20: IrqLine, machine: Arc<dyn MachineSink>) -> Arc<Port92> {
        Arc::new(Port92 {
            a20,
            machine,
            value: Mutex::new(0),
        })
    }

    fn set(&self, value: u8) {
        *self.value.lock() = value;
        self.a20.set(value & OPEN_A20 != 0);
    }
}

impl IoHandler for Port92 {
    fn read(&self, offset: u64, width: Width) -> u64 {
        let value = *self.value.lock();
        read_bytes(offset, width, |at| if at == 0 { value } else { 0xff })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        write_bytes(offset, width, value, |at, byte| {
            if at != 0 {
                return;
            }
            let before = *self.value.lock();
            self.set(byte & !4);
            if byte & !before & FAST_RESET != 0 {
                self.machine
                    .request(MachineRequest::Reset(ResetKind::System));
            }
        });
    }
}

impl Device for Port92 {
    fn reset(&self, _kind: ResetKind) {
        self.set(0);
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.value.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let value: u8 = state.read(NAME, VERSION)?;
        self.set(value & !4);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use device::Clock;
    use device::conformance::{self, Subject};
    use device::doubles::{RecordingMachine, RecordingPins};

    use super::*;

    #[test]
    fn it_opens_a20_and_resets_on_an_edge() {
        let pins = Arc::new(RecordingPins::default());
        let machine = Arc::new(RecordingMachine::default());
        let port = Port92::new(IrqLine::new(pins.clone(), 20), machine.clone());
        port.write(0, Width::Byte, 2);
        assert!(pins.level(20));
        assert_eq!(port.read(0, Width::Byte), 2);
        assert_eq!(machine.take(), []);
        port.write(0, Width::Byte, 3);
        port.write(0, Width::Byte, 3);
        assert_eq!(machine.take(), [MachineRequest::Reset(ResetKind::System)]);
        port.reset(ResetKind::System);
        assert!(!pins.level(20));
    }

    #[test]
    fn it_conforms() {
        conformance::check(|| {
            let device = Port92::new(
                IrqLine::unconnected(),
                Arc::new(RecordingMachine::default()),
            );
            Subject {
                ranges: vec![(device.clone(), 1)],
                device,
                clock: Clock::stepped(),
                kept_by_reset: &[],
            }
        });
    }
}
