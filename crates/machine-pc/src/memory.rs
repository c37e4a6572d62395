//! Where a PC's memory lies, and what devices see of it.
//!
//! | addresses | what |
//! |---|---|
//! | 0 to 0x9ffff | RAM |
//! | 0xa0000 to 0xbffff | the bus (a display's window) |
//! | 0xc0000 to 0xfffff | RAM, or with firmware what the host bridge's PAM registers say: RAM or the firmware's last 128 KiB |
//! | 0x100000 to [`LOW_END`] | RAM, as far as there is some |
//! | [`LOW_END`] to 4 GiB | the bus; the firmware ends at 4 GiB |
//! | from 4 GiB | the rest of the RAM |

use std::sync::Arc;

use dev_pc::i440fx::{LowMemoryRouting, PamSegment, Smram};
use device::DmaSpace;
use guest_memory::{GuestMemory, GuestPhysAddr, MemoryError, PAGE_BYTES, RamOffset, RegionKind};
use parking_lot::Mutex;

/// The highest address of RAM below the bus: 3 GiB, as the board of the same name has it.
pub const LOW_END: u64 = 0xc000_0000;
/// Where RAM goes on behind the bus.
pub const HIGH_START: u64 = 1 << 32;
const DISPLAY_START: u64 = 0xa_0000;
const SHADOW_START: u64 = 0xc_0000;
const SHADOW_END: u64 = 0x10_0000;
/// How much of the firmware's end shows below 1 MiB.
const FIRMWARE_SHADOW: u64 = 0x2_0000;
/// The least RAM a machine may have.
pub const MIN_RAM_BYTES: u64 = 1 << 20;
/// The largest firmware image.
pub const MAX_FIRMWARE_BYTES: u64 = 16 << 20;

/// How much RAM lies below the bus, and how much above 4 GiB.
#[must_use]
pub fn split(ram_bytes: u64) -> (u64, u64) {
    (ram_bytes.min(LOW_END), ram_bytes.saturating_sub(LOW_END))
}

/// Makes a PC's memory: RAM, and the firmware where there is one.
///
/// # Errors
/// Sizes that cannot be, or the host's refusal.
pub(crate) fn build(
    ram_bytes: u64,
    firmware: Option<&[u8]>,
) -> Result<(Arc<GuestMemory>, Arc<LowMemory>), MemoryError> {
    let firmware_bytes = firmware.map_or(0, |image| image.len() as u64);
    let capacity = ram_bytes.saturating_add(firmware_bytes.next_multiple_of(PAGE_BYTES));
    let memory = Arc::new(GuestMemory::new(capacity)?);
    let (low, high) = split(ram_bytes);
    let first = memory.add_ram(GuestPhysAddr(0), DISPLAY_START)?;
    // What lies behind the display's window is shadow RAM: in the arena, shown by aliases.
    let hidden = memory.add_ram(GuestPhysAddr(SHADOW_END), low - DISPLAY_START)?;
    memory.remove(hidden.start)?;
    let at = |address: u64| RamOffset(hidden.ram.0 + (address - DISPLAY_START));
    debug_assert_eq!(first.ram.0, 0);
    if low > SHADOW_END {
        let start = GuestPhysAddr(SHADOW_END);
        memory.add_alias(start, low - SHADOW_END, at(SHADOW_END), RegionKind::Ram)?;
    }
    if high > 0 {
        memory.add_ram(GuestPhysAddr(HIGH_START), high)?;
    }
    let mut rom = None;
    if let Some(image) = firmware {
        let start = HIGH_START - (image.len() as u64).next_multiple_of(PAGE_BYTES);
        let region = memory.add_rom(GuestPhysAddr(start), image)?;
        let shown = FIRMWARE_SHADOW.min(region.bytes);
        rom = Some((RamOffset(region.ram.0 + region.bytes - shown), shown));
    }
    let low_memory = Arc::new(LowMemory {
        memory: Arc::clone(&memory),
        ram: at(SHADOW_START),
        rom,
        shown: Mutex::default(),
    });
    low_memory.show(&[Shown::open(SHADOW_START, SHADOW_END - SHADOW_START)])?;
    Ok((memory, low_memory))
}

/// A piece below 1 MiB, and what shows there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    start: u64,
    length: u64,
    read_memory: bool,
    write_memory: bool,
}

impl Shown {
    fn open(start: u64, length: u64) -> Self {
        Self {
            start,
            length,
            read_memory: true,
            write_memory: true,
        }
    }
}

/// What shows between 768 KiB and 1 MiB.
pub(crate) struct LowMemory {
    memory: Arc<GuestMemory>,
    /// The RAM of this range.
    ram: RamOffset,
    /// The end of the firmware, and how much of it.
    rom: Option<(RamOffset, u64)>,
    /// What shows now, and the regions that were made for it.
    shown: Mutex<(Vec<Shown>, Vec<GuestPhysAddr>)>,
}

impl LowMemory {
    fn show(&self, pieces: &[Shown]) -> Result<(), MemoryError> {
        let mut shown = self.shown.lock();
        if shown.0 == pieces {
            return Ok(());
        }
        for start in shown.1.drain(..) {
            self.memory.remove(start)?;
        }
        shown.0 = pieces.to_vec();
        for piece in pieces {
            let ram = RamOffset(self.ram.0 + (piece.start - SHADOW_START));
            let start = GuestPhysAddr(piece.start);
            let rom = self.rom_at(piece.start);
            let (at, kind) = match (piece.read_memory, piece.write_memory, rom) {
                (true, true, _) => (ram, RegionKind::Ram),
                (true, false, _) => (ram, RegionKind::Rom),
                (false, _, Some(rom)) => (rom, RegionKind::Rom),
                (false, _, None) => continue,
            };
            self.memory.add_alias(start, piece.length, at, kind)?;
            shown.1.push(start);
        }
        Ok(())
    }

    fn rom_at(&self, address: u64) -> Option<RamOffset> {
        let (rom, bytes) = self.rom?;
        let into = address.checked_sub(SHADOW_END - bytes)?;
        Some(RamOffset(rom.0 + into))
    }
}

impl LowMemoryRouting for LowMemory {
    fn route(&self, segments: &[PamSegment; 13], _smram: Smram) {
        // Without firmware nobody programs the registers, and all of it is RAM.
        if self.rom.is_none() {
            return;
        }
        let mut pieces: Vec<Shown> = segments
            .iter()
            .map(|segment| Shown {
                start: segment.start,
                length: segment.length,
                read_memory: segment.read_memory,
                write_memory: segment.write_memory,
            })
            .collect();
        pieces.sort_by_key(|piece| piece.start);
        if let Err(error) = self.show(&pieces) {
            tracing::error!(%error, "the memory below 1 MiB could not be routed");
        }
    }
}

/// Guest memory as devices see it.
pub(crate) struct MemoryDma(pub(crate) Arc<GuestMemory>);

impl DmaSpace for MemoryDma {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), device::Error> {
        let read = self.0.read(GuestPhysAddr(address), into);
        read.map_err(|_| device::Error::Dma {
            address,
            length: into.len() as u64,
        })
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), device::Error> {
        let written = self.0.write(GuestPhysAddr(address), from);
        written.map_err(|_| device::Error::Dma {
            address,
            length: from.len() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(memory: &GuestMemory, address: u64) -> Option<u8> {
        let mut byte = [0];
        memory.read(GuestPhysAddr(address), &mut byte).ok()?;
        Some(byte[0])
    }

    #[test]
    fn ram_goes_round_the_bus() {
        let (memory, _) = build(LOW_END + (1 << 20), None).unwrap();
        for there in [0, 0x9_ffff, 0xc_0000, 0xf_ffff, 0x10_0000, LOW_END - 1] {
            assert_eq!(byte(&memory, there), Some(0), "{there:#x}");
        }
        assert_eq!(byte(&memory, HIGH_START + (1 << 20) - 1), Some(0));
        for hole in [0xa_0000, 0xb_ffff, LOW_END, HIGH_START - 1] {
            assert_eq!(byte(&memory, hole), None, "{hole:#x}");
        }
        assert_eq!(byte(&memory, HIGH_START + (1 << 20)), None);
    }

    #[test]
    fn the_shadow_follows_the_registers() {
        let image = vec![0xea; 0x4_0000];
        let (memory, low) = build(16 << 20, Some(&image)).unwrap();
        let segment = |start, length, on| PamSegment {
            start,
            length,
            read_memory: on,
            write_memory: on,
        };
        let all = |on| {
            std::array::from_fn(|index| match index {
                0 => segment(0xf_0000, 0x1_0000, on),
                _ => segment(0xc_0000 + (index as u64 - 1) * 0x4000, 0x4000, on),
            })
        };
        let smram = Smram {
            enabled: false,
            open: false,
            data_closed: false,
        };
        low.route(&all(false), smram);
        assert_eq!(byte(&memory, 0xf_fff0), Some(0xea));
        assert_eq!(byte(&memory, 0xe_0000), Some(0xea));
        assert_eq!(byte(&memory, 0xc_0000), None);
        assert_eq!(byte(&memory, HIGH_START - 16), Some(0xea));
        low.route(&all(true), smram);
        assert_eq!(byte(&memory, 0xf_fff0), Some(0));
        assert_eq!(byte(&memory, 0xc_0000), Some(0));
        memory.write(GuestPhysAddr(0xf_fff0), &[7]).unwrap();
        low.route(&all(false), smram);
        low.route(&all(true), smram);
        assert_eq!(byte(&memory, 0xf_fff0), Some(7));
    }
}
