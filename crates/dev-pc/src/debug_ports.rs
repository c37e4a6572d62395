//! Two ports for firmware and tests: a console that is one byte wide, and an exit.
//!
//! | device | ports | register |
//! |---|---|---|
//! | debug console | 0x402 (SeaBIOS) or 0xe9 (Bochs) | write: a byte of output; read: 0xe9, "a console is here" |
//! | debug exit | 0xf4, four ports | write: the process ends with status `value * 2 + 1`; read: 0 |

use std::sync::Arc;

use device::{
    Device, Error, IoHandler, MachineRequest, MachineSink, ResetKind, SavedState, Width,
    write_bytes,
};

/// What the console's port reads as.
pub const DEBUG_CONSOLE_MARK: u8 = 0xe9;

/// Takes the console's output.
pub trait DebugOutput: Send + Sync {
    /// A byte was written.
    fn put(&self, byte: u8);
}

/// The debug console.
pub struct DebugConsole {
    output: Arc<dyn DebugOutput>,
}

impl DebugConsole {
    /// A console with this output.
    pub fn new(output: Arc<dyn DebugOutput>) -> Arc<DebugConsole> {
        Arc::new(DebugConsole { output })
    }
}

impl IoHandler for DebugConsole {
    fn read(&self, _offset: u64, width: Width) -> u64 {
        u64::from(DEBUG_CONSOLE_MARK) | width.ones() & !0xff
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        write_bytes(offset, width, value, |at, byte| {
            if at == offset {
                self.output.put(byte);
            }
        });
    }
}

/// The debug exit.
pub struct DebugExit {
    machine: Arc<dyn MachineSink>,
}

impl DebugExit {
    /// An exit of this machine.
    pub fn new(machine: Arc<dyn MachineSink>) -> Arc<DebugExit> {
        Arc::new(DebugExit { machine })
    }
}

impl IoHandler for DebugExit {
    fn read(&self, _offset: u64, _width: Width) -> u64 {
        0
    }

    fn write(&self, _offset: u64, _width: Width, value: u64) {
        // A process's status has eight bits.
        let [low, ..] = value.to_le_bytes();
        self.machine
            .request(MachineRequest::Exit(low.wrapping_shl(1) | 1));
    }
}

/// Both devices hold nothing: their state is empty.
macro_rules! stateless {
    ($device:ty, $name:literal) => {
        impl Device for $device {
            fn reset(&self, _kind: ResetKind) {}

            fn save(&self) -> Result<SavedState, Error> {
                SavedState::of($name, 1, &())
            }

            fn restore(&self, state: &SavedState) -> Result<(), Error> {
                state.read::<()>($name, 1)
            }
        }
    };
}

stateless!(DebugConsole, "isa-debugcon");
stateless!(DebugExit, "isa-debug-exit");

#[cfg(test)]
mod tests {
    use device::Clock;
    use device::conformance::{self, Subject};
    use device::doubles::RecordingMachine;
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Text(Mutex<Vec<u8>>);

    impl DebugOutput for Text {
        fn put(&self, byte: u8) {
            self.0.lock().push(byte);
        }
    }

    #[test]
    fn the_console_takes_the_lowest_byte_of_each_write() {
        let text = Arc::new(Text::default());
        let console = DebugConsole::new(text.clone());
        console.write(0, Width::Byte, u64::from(b'h'));
        console.write(0, Width::Word, 0x2069);
        assert_eq!(text.0.lock().as_slice(), b"hi");
        assert_eq!(console.read(0, Width::Byte), 0xe9);
    }

    #[test]
    fn the_exit_gives_an_odd_status() {
        let machine = Arc::new(RecordingMachine::default());
        let exit = DebugExit::new(machine.clone());
        exit.write(0, Width::Byte, 0);
        exit.write(0, Width::Dword, 0x10);
        exit.write(0, Width::Byte, 0xff);
        assert_eq!(machine.take(), [1, 0x21, 0xff].map(MachineRequest::Exit));
        assert_eq!(exit.read(0, Width::Byte), 0);
    }

    #[test]
    fn they_conform() {
        conformance::check(|| {
            let device = DebugConsole::new(Arc::new(Text::default()));
            Subject {
                ranges: vec![(device.clone(), 1)],
                device,
                clock: Clock::stepped(),
                kept_by_reset: &[],
            }
        });
        conformance::check(|| {
            let device = DebugExit::new(Arc::new(RecordingMachine::default()));
            Subject {
                ranges: vec![(device.clone(), 4)],
                device,
                clock: Clock::stepped(),
                kept_by_reset: &[],
            }
        });
    }
}
