//! The 82441FX host bridge (PMC): what the processor sees between 640 KiB and 1 MiB.
//!
//! | offset | register |
//! |---|---|
//! | 0x59 to 0x5f | PAM0 to PAM6: for each segment, bit 0 (4) read and bit 1 (5) write memory; else the bus |
//! | 0x72 | SMRAM: bit 3 enabled, 4 locked, 5 closed for data, 6 open |
//!
//! Source: Intel 82441FX datasheet (290549), 3.2. DRAM timing and size registers are not there: firmware for virtual
//! machines learns the size of memory from fw_cfg or CMOS.

use std::sync::Arc;

use device::{Device, Error, ResetKind, SavedState};

use device::pci::{HeaderSaved, PciAddress, PciBus, PciFunction, PciHeader, PciIdentity};

const NAME: &str = "i440FX";
const VERSION: u32 = 1;
const PAM0: u8 = 0x59;
const SMRAM: u8 = 0x72;
const SMRAM_LOCKED: u8 = 0x10;
const SMRAM_OPEN: u8 = 0x40;
const SMRAM_WRITABLE: u8 = 0x78;

/// A segment of the first megabyte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PamSegment {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Reads go to memory, not to the bus.
    pub read_memory: bool,
    /// Writes go to memory, not to the bus.
    pub write_memory: bool,
}

/// System management memory at 0xa0000, 128 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smram {
    /// It is there at all.
    pub enabled: bool,
    /// It shows to code outside of system management mode, too.
    pub open: bool,
    /// Data accesses in system management mode go to the display instead.
    pub data_closed: bool,
}

/// Takes the routing of the first megabyte: the board's memory map.
pub trait LowMemoryRouting: Send + Sync {
    /// The routing has changed.
    fn route(&self, segments: &[PamSegment; 13], smram: Smram);
}

/// The bridge, function 0 of slot 0.
pub struct I440fx {
    header: PciHeader,
    routing: Arc<dyn LowMemoryRouting>,
}

impl I440fx {
    /// The bridge of this bus.
    pub fn new(
        bus: &PciBus,
        address: PciAddress,
        routing: Arc<dyn LowMemoryRouting>,
    ) -> Arc<I440fx> {
        let identity = PciIdentity {
            vendor: 0x8086,
            device: 0x1237,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x06_0000,
            revision: 2,
            pin: 0,
            multifunction: false,
        };
        let header = PciHeader::new(&identity, bus, address);
        header.set_register(PAM0, &[0; 7], &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        header.set_register(SMRAM, &[0x02], &[SMRAM_WRITABLE]);
        Arc::new(I440fx { header, routing })
    }

    /// The segments: 0xf0000 (64 KiB), then twelve of 16 KiB from 0xc0000 to 0xeffff.
    pub fn segments(&self) -> [PamSegment; 13] {
        std::array::from_fn(|index| {
            let index = u64::try_from(index).unwrap_or(0);
            // Segment 0 sits in the high half of PAM0; the others fill PAM1 to PAM6, low half first.
            let half = index + 1;
            let register = PAM0.saturating_add(u8::try_from(half / 2).unwrap_or(0));
            let attributes = self.header.byte(register) >> (half % 2 * 4);
            let (start, length) = match index {
                0 => (0xf_0000, 0x1_0000),
                _ => (0xc_0000 + (index - 1) * 0x4000, 0x4000),
            };
            PamSegment {
                start,
                length,
                read_memory: attributes & 1 != 0,
                write_memory: attributes & 2 != 0,
            }
        })
    }

    /// System management memory.
    pub fn smram(&self) -> Smram {
        let value = self.header.byte(SMRAM);
        Smram {
            enabled: value & 0x08 != 0,
            open: value & SMRAM_OPEN != 0,
            data_closed: value & 0x20 != 0,
        }
    }

    fn tell(&self) {
        self.routing.route(&self.segments(), self.smram());
    }

    /// Once locked, SMRAM is closed and its register read-only until reset.
    fn lock_smram(&self) {
        let value = self.header.byte(SMRAM);
        let locked = value & SMRAM_LOCKED != 0;
        self.header.set_locked(SMRAM, SMRAM_WRITABLE, locked);
        if locked {
            self.header.set_bytes(SMRAM, &[value & !SMRAM_OPEN]);
        }
    }
}

impl PciFunction for I440fx {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn config_written(&self, first: u8, last: u8) {
        if first <= SMRAM && last >= PAM0 {
            self.lock_smram();
            self.tell();
        }
    }
}

impl Device for I440fx {
    fn reset(&self, _kind: ResetKind) {
        self.header.reset();
        self.lock_smram();
        self.tell();
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &self.header.save())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let saved: HeaderSaved = state.read(NAME, VERSION)?;
        self.header.restore(NAME, saved)?;
        self.lock_smram();
        self.tell();
        Ok(())
    }
}
