//! The events of a board with hardware-reduced ACPI: a register that says which of them happened, and a line.
//!
//! | offset | register |
//! |---|---|
//! | 0, four bytes | event selector: bit 1, the power button was pressed; reading clears it and lowers the line |
//!
//! The line is up while an event waits. Tables describe both as a Generic Event Device, whose `_EVT` reads the register
//! and notifies the devices that its bits stand for.
//!
//! Source: ACPI 6.3, 5.6.9 (interrupt-signaled events) and 5.6.9.2; the register is QEMU's
//! (`docs/specs/acpi_hw_reduced_hotplug.rst`).

use std::sync::Arc;

use device::{Device, Error, IoHandler, IrqLine, ResetKind, SavedState, Width, read_register};
use parking_lot::Mutex;

const NAME: &str = "acpi-ged";
const VERSION: u32 = 1;
/// The bit of the power button.
pub const POWER_BUTTON: u32 = 1 << 1;
/// How many bytes of registers there are.
pub const SELECTOR_BYTES: u64 = 4;

/// The register and its line.
pub struct GenericEvents {
    line: IrqLine,
    selector: Mutex<u32>,
}

impl GenericEvents {
    /// A register with this line.
    pub fn new(line: IrqLine) -> Arc<GenericEvents> {
        Arc::new(GenericEvents {
            line,
            selector: Mutex::new(0),
        })
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&self) {
        let mut selector = self.selector.lock();
        *selector |= POWER_BUTTON;
        self.line.set(true);
    }

    fn set(&self, value: u32) {
        let mut selector = self.selector.lock();
        *selector = value;
        self.line.set(value != 0);
    }

    /// What has happened, which is told once.
    fn take(&self) -> u32 {
        let mut selector = self.selector.lock();
        self.line.set(false);
        std::mem::take(&mut *selector)
    }
}

impl IoHandler for GenericEvents {
    fn read(&self, offset: u64, width: Width) -> u64 {
        // Who reads a part of it may not have seen all: nothing is cleared.
        if offset == 0 && width == Width::Dword {
            return u64::from(self.take());
        }
        let value = *self.selector.lock();
        read_register(offset, width, |at| if at == 0 { value } else { 0 })
    }

    fn write(&self, _offset: u64, _width: Width, _value: u64) {}
}

impl Device for GenericEvents {
    fn reset(&self, _kind: ResetKind) {
        self.set(0);
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.selector.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let selector: u32 = state.read(NAME, VERSION)?;
        self.set(selector & POWER_BUTTON);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use device::Clock;
    use device::conformance::{self, Subject};
    use device::doubles::RecordingPins;

    use super::*;

    #[test]
    fn a_press_is_told_once() {
        let pins = Arc::new(RecordingPins::default());
        let events = GenericEvents::new(IrqLine::new(pins.clone(), 9));
        assert_eq!(events.read(0, Width::Dword), 0);
        events.press_power_button();
        events.press_power_button();
        assert!(pins.level(9));
        // A look at a part of the register is none.
        assert_eq!(events.read(0, Width::Byte), 2);
        assert!(pins.level(9));
        assert_eq!(events.read(0, Width::Dword), 2);
        assert!(!pins.level(9));
        assert_eq!(events.read(0, Width::Dword), 0);
        events.press_power_button();
        assert!(pins.level(9));
        events.reset(ResetKind::System);
        assert!(!pins.level(9));
        assert_eq!(events.read(0, Width::Dword), 0);
    }

    #[test]
    fn a_press_that_waits_is_saved() {
        let pins = Arc::new(RecordingPins::default());
        let events = GenericEvents::new(IrqLine::new(pins.clone(), 9));
        events.press_power_button();
        let saved = events.save().unwrap();
        assert_eq!(events.read(0, Width::Dword), 2);
        events.restore(&saved).unwrap();
        assert!(pins.level(9));
        assert_eq!(events.read(0, Width::Dword), 2);
    }

    #[test]
    fn it_conforms() {
        conformance::check(|| {
            let device = GenericEvents::new(IrqLine::unconnected());
            Subject {
                ranges: vec![(device.clone(), SELECTOR_BYTES)],
                device,
                clock: Clock::stepped(),
                kept_by_reset: &[],
            }
        });
    }
}
