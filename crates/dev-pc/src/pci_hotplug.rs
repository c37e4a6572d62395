//! PCI hotplug by ACPI (`docs/specs/acpi_pci_hotplug.rst`), 0xae00, sixteen ports.
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | up: slots that were filled, a bit each; a byte that is read is cleared |
//! | 0x04 | down: slots that the machine wants back; cleared when the slot is ejected |
//! | 0x08 | write: eject these slots; read: features, none |
//! | 0x0c | slots whose function can be removed |

use std::sync::Arc;

use device::{Device, Error, IoHandler, ResetKind, SavedState, Width, read_bytes, write_bytes};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const NAME: &str = "acpi-pci-hotplug";
const VERSION: u32 = 1;
/// The general-purpose event that tells the guest to look.
pub const HOTPLUG_GPE: u32 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slots {
    up: u32,
    down: u32,
    removable: u32,
}

/// Takes ejections.
pub trait Ejection: Send + Sync {
    /// The guest has let go of this slot. Called without the chip's lock.
    fn eject(&self, slot: u8);
}

/// The registers. The board raises [`HOTPLUG_GPE`] after it has changed them.
pub struct PciHotplug {
    ejection: Arc<dyn Ejection>,
    slots: Mutex<Slots>,
}

fn slot_bit(slot: u8) -> u32 {
    1_u32.checked_shl(u32::from(slot)).unwrap_or(0)
}

impl PciHotplug {
    /// Registers for 32 slots, none of which is removable yet.
    pub fn new(ejection: Arc<dyn Ejection>) -> Arc<PciHotplug> {
        Arc::new(PciHotplug {
            ejection,
            slots: Mutex::default(),
        })
    }

    /// Whether the function in a slot can be removed.
    pub fn set_removable(&self, slot: u8, removable: bool) {
        let mut slots = self.slots.lock();
        if removable {
            slots.removable |= slot_bit(slot);
        } else {
            slots.removable &= !slot_bit(slot);
        }
    }

    /// A slot has been filled.
    pub fn announce(&self, slot: u8) {
        self.slots.lock().up |= slot_bit(slot);
    }

    /// The machine wants a slot back.
    pub fn ask_back(&self, slot: u8) {
        self.slots.lock().down |= slot_bit(slot);
    }
}

impl IoHandler for PciHotplug {
    fn read(&self, offset: u64, width: Width) -> u64 {
        let mut slots = self.slots.lock();
        read_bytes(offset, width, |at| {
            let shift = at % 4 * 8;
            let lane = |register: u32| (register >> shift).to_le_bytes()[0];
            match at {
                0..=3 => {
                    let byte = lane(slots.up);
                    slots.up &= !(0xff << shift);
                    byte
                }
                4..=7 => lane(slots.down),
                8..=11 => 0,
                12..=15 => lane(slots.removable),
                _ => 0xff,
            }
        })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        write_bytes(offset, width, value, |at, byte| {
            if !(8..12).contains(&at) {
                return;
            }
            let shift = u32::try_from(at % 4 * 8).unwrap_or(0);
            let mut slots = self.slots.lock();
            let wanted = u32::from(byte) << shift & slots.removable;
            slots.down &= !wanted;
            slots.up &= !wanted;
            drop(slots);
            for slot in (0..32).filter(|slot| wanted & slot_bit(*slot) != 0) {
                self.ejection.eject(slot);
            }
        });
    }
}

impl Device for PciHotplug {
    fn reset(&self, _kind: ResetKind) {
        // A guest that starts anew finds what is plugged by looking at the bus.
        let mut slots = self.slots.lock();
        slots.up = 0;
        slots.down = 0;
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.slots.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        *self.slots.lock() = state.read(NAME, VERSION)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use device::Clock;
    use device::conformance::{self, Subject};

    use super::*;

    #[derive(Default)]
    struct Ejected(Mutex<Vec<u8>>);

    impl Ejection for Ejected {
        fn eject(&self, slot: u8) {
            self.0.lock().push(slot);
        }
    }

    #[test]
    fn a_slot_is_filled_asked_back_and_ejected() {
        let ejected = Arc::new(Ejected::default());
        let hotplug = PciHotplug::new(ejected.clone());
        hotplug.set_removable(9, true);
        hotplug.announce(9);
        assert_eq!(hotplug.read(0, Width::Dword), 0x200);
        assert_eq!(hotplug.read(0, Width::Dword), 0);
        assert_eq!(hotplug.read(12, Width::Dword), 0x200);
        hotplug.ask_back(9);
        assert_eq!(hotplug.read(4, Width::Dword), 0x200);
        hotplug.write(8, Width::Dword, 0x600);
        assert_eq!(ejected.0.lock().as_slice(), [9]);
        assert_eq!(hotplug.read(4, Width::Dword), 0);
        assert_eq!(hotplug.read(8, Width::Dword), 0);
    }

    #[test]
    fn it_conforms() {
        conformance::check(|| {
            let device = PciHotplug::new(Arc::new(Ejected::default()));
            Subject {
                ranges: vec![(device.clone(), 16)],
                device,
                clock: Clock::stepped(),
                kept_by_reset: &["removable"],
            }
        });
    }
}
