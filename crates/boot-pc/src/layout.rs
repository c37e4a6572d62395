//! Where the machine's RAM is, and what of it is taken: the source of every memory map.

use std::ops::Range;

use guest_memory::GuestPhysAddr;

use crate::{Error, low_memory};

/// Where the hole for devices below 4 GiB begins; RAM that does not fit below it goes to 4 GiB.
pub const PCI_HOLE_START: u64 = 0xc000_0000;
const FOUR_GIB: u64 = 1 << 32;
const PAGE_BYTES: u64 = guest_memory::PAGE_BYTES;
/// The most ranges in a map for an operating system: what Linux' boot parameters have room for.
pub const MAX_E820_ENTRIES: usize = 128;
/// The most ranges that can be reserved, so that every map stays within [`MAX_E820_ENTRIES`]: each
/// splits one range of RAM into two, and the first megabyte and the hole bring eight more.
pub const MAX_RESERVED: usize = 60;
/// RAM that a machine has at least.
const MIN_RAM_BYTES: u64 = 1 << 20;

/// What a range of the memory map is (ACPI 6.3, table 15-374).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum E820Kind {
    /// For anybody.
    Usable = 1,
    /// For nobody.
    Reserved = 2,
    /// ACPI tables: usable once they were read.
    AcpiTables = 3,
    /// ACPI's own: to be kept over sleep.
    AcpiNvs = 4,
}

/// A range of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// Its first address.
    pub start: u64,
    /// Its size.
    pub bytes: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// Bytes of an [`E820Entry`] in boot parameters and in fw_cfg.
pub const E820_ENTRY_BYTES: usize = 20;

impl E820Entry {
    /// The entry as it stands in memory: address and size of eight bytes, kind of four.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; E820_ENTRY_BYTES] {
        let mut bytes = [0; E820_ENTRY_BYTES];
        let fields = self
            .start
            .to_le_bytes()
            .into_iter()
            .chain(self.bytes.to_le_bytes())
            .chain((self.kind as u32).to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

/// RAM from 0 up to the hole for devices, the rest from 4 GiB on; and what of the address space
/// is reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineLayout {
    below_4g: u64,
    above_4g: u64,
    reserved: Vec<E820Entry>,
}

impl MachineLayout {
    /// A machine with this much RAM.
    ///
    /// # Errors
    /// The size is not whole pages, under 1 MiB or over 1 TiB.
    pub fn new(ram_bytes: u64) -> Result<Self, Error> {
        let fits = (MIN_RAM_BYTES..=guest_memory::MAX_CAPACITY_BYTES).contains(&ram_bytes);
        if !fits || !ram_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(Error::RamSize(ram_bytes));
        }
        let below_4g = ram_bytes.min(PCI_HOLE_START);
        Ok(Self {
            below_4g,
            above_4g: ram_bytes - below_4g,
            reserved: Vec::new(),
        })
    }

    /// Bytes of RAM from address 0 on.
    #[must_use]
    pub fn below_4g(&self) -> u64 {
        self.below_4g
    }

    /// Bytes of RAM from 4 GiB on.
    #[must_use]
    pub fn above_4g(&self) -> u64 {
        self.above_4g
    }

    /// All RAM: first address and size, for [`guest_memory::GuestMemory::add_ram`].
    #[must_use]
    pub fn ram(&self) -> Vec<(GuestPhysAddr, u64)> {
        [(0, self.below_4g), (FOUR_GIB, self.above_4g)]
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(start, bytes)| (GuestPhysAddr(start), bytes))
            .collect()
    }

    /// Says that a range, in RAM or outside, is not for the guest to use.
    ///
    /// # Errors
    /// It is empty, wraps, overlaps one that is reserved already, or is one too many.
    pub fn reserve(&mut self, start: u64, bytes: u64, kind: E820Kind) -> Result<(), Error> {
        let entry = E820Entry { start, bytes, kind };
        let overlaps = |other: &E820Entry| other.start < entry.end() && start < other.end();
        if bytes == 0 || start.checked_add(bytes).is_none() || self.reserved.iter().any(overlaps) {
            return Err(Error::Reserved { start, bytes });
        }
        if self.reserved.len() >= MAX_RESERVED {
            return Err(Error::TooManyReserved);
        }
        self.reserved.push(entry);
        self.reserved.sort_by_key(|entry| entry.start);
        Ok(())
    }

    /// Reserves the highest free pages below 4 GiB that hold `bytes`, and says where they are.
    ///
    /// # Errors
    /// No room.
    pub fn reserve_top(&mut self, bytes: u64, kind: E820Kind) -> Result<GuestPhysAddr, Error> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let what = "the firmware's tables";
        let at = self.find_top(what, bytes, FOUR_GIB, &[])?;
        self.reserve(at, bytes, kind)?;
        Ok(GuestPhysAddr(at))
    }

    /// The map for an operating system, sorted, without overlaps: RAM with the first megabyte as
    /// on every PC, and what is reserved.
    #[must_use]
    pub fn e820(&self) -> Vec<E820Entry> {
        let mut reserved = self.reserved.clone();
        let fixed = [
            (low_memory::LOW_END, 0xa_0000),
            (low_memory::SCANNED, low_memory::HIGH_START),
        ];
        for (start, end) in fixed {
            let known = |entry: &E820Entry| entry.start < end && start < entry.end();
            if !reserved.iter().any(known) {
                let (bytes, kind) = (end - start, E820Kind::Reserved);
                reserved.push(E820Entry { start, bytes, kind });
            }
        }
        // No RAM between the EBDA's end and the tables, whatever lies there.
        reserved.sort_by_key(|entry| entry.start);
        let mut taken: Vec<Range<u64>> = reserved.iter().map(|e| e.start..e.end()).collect();
        taken.push(low_memory::LOW_END..low_memory::HIGH_START);
        let mut map = reserved;
        map.extend(self.free(&taken).into_iter().map(|range| E820Entry {
            start: range.start,
            bytes: range.end - range.start,
            kind: E820Kind::Usable,
        }));
        map.sort_by_key(|entry| entry.start);
        map
    }

    /// The fw_cfg file `etc/e820`: RAM and what is reserved, for firmware to make its map of.
    #[must_use]
    pub fn e820_file(&self) -> Vec<u8> {
        let ram = self.ram().into_iter().map(|(start, bytes)| E820Entry {
            start: start.0,
            bytes,
            kind: E820Kind::Usable,
        });
        self.reserved
            .iter()
            .copied()
            .chain(ram)
            .flat_map(|entry| entry.to_bytes())
            .collect()
    }

    /// Whether a range is RAM from 1 MiB on that nobody has reserved.
    pub(crate) fn is_free(&self, range: &Range<u64>) -> bool {
        self.free_high(&[])
            .iter()
            .any(|free| free.start <= range.start && range.end <= free.end)
    }

    /// The highest place for whole pages, from 1 MiB on and below `limit`, that is free and not
    /// `taken`.
    pub(crate) fn find_top(
        &self,
        what: &'static str,
        bytes: u64,
        limit: u64,
        taken: &[Range<u64>],
    ) -> Result<u64, Error> {
        let place = |free: &Range<u64>| {
            let end = free.end.min(limit);
            let at = end.checked_sub(bytes)? & !(PAGE_BYTES - 1);
            (at >= free.start).then_some(at)
        };
        self.free_high(taken)
            .iter()
            .rev()
            .find_map(place)
            .ok_or(Error::NoRoom { what, bytes, limit })
    }

    /// The lowest place for `bytes` at a multiple of `align`, from `from` (and 1 MiB) on and
    /// below 4 GiB.
    pub(crate) fn find_low(&self, from: u64, bytes: u64, align: u64) -> Option<u64> {
        self.free_high(&[]).iter().find_map(|free| {
            let at = free.start.max(from).checked_next_multiple_of(align)?;
            let end = at.checked_add(bytes)?;
            (end <= free.end && end <= FOUR_GIB).then_some(at)
        })
    }

    fn free_high(&self, taken: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut all: Vec<Range<u64>> = self.reserved.iter().map(|e| e.start..e.end()).collect();
        all.extend_from_slice(taken);
        all.push(0..low_memory::HIGH_START);
        self.free(&all)
    }

    /// RAM less what is taken, sorted.
    fn free(&self, taken: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut taken = taken.to_vec();
        taken.sort_by_key(|range| range.start);
        let mut free = Vec::new();
        for (start, bytes) in self.ram() {
            let end = start.0.saturating_add(bytes);
            let mut at = start.0;
            for range in &taken {
                if range.start > at && at < end {
                    free.push(at..range.start.min(end));
                }
                at = at.max(range.end);
            }
            if at < end {
                free.push(at..end);
            }
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ram_is_split_at_the_hole() {
        let layout = MachineLayout::new(4 << 30).unwrap();
        assert_eq!(
            layout.ram(),
            [
                (GuestPhysAddr(0), 0xc000_0000),
                (GuestPhysAddr(1 << 32), 1 << 30)
            ]
        );
        assert_eq!(
            MachineLayout::new(3 << 30).unwrap().ram(),
            [(GuestPhysAddr(0), 3 << 30)]
        );
        for wrong in [0, 4096, MIB + 1, (1 << 40) + 4096] {
            assert_eq!(MachineLayout::new(wrong), Err(Error::RamSize(wrong)));
        }
    }

    #[test]
    fn the_map_has_the_first_megabyte_of_a_pc() {
        let mut layout = MachineLayout::new(16 * MIB).unwrap();
        let tables = layout.reserve_top(5000, E820Kind::AcpiTables).unwrap();
        assert_eq!(tables.0, 16 * MIB - 8192);
        layout
            .reserve(0xfffc_0000, 0x4_0000, E820Kind::Reserved)
            .unwrap();
        let map: Vec<_> = layout
            .e820()
            .iter()
            .map(|entry| (entry.start, entry.end(), entry.kind as u32))
            .collect();
        assert_eq!(
            map,
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0xa_0000, 2),
                (0xe_0000, 0x10_0000, 2),
                (MIB, tables.0, 1),
                (tables.0, 16 * MIB, 3),
                (0xfffc_0000, 1 << 32, 2)
            ]
        );
        let file = layout.e820_file();
        assert_eq!(file.len(), 3 * E820_ENTRY_BYTES);
        assert_eq!(
            file.chunks(E820_ENTRY_BYTES).last().unwrap(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]
        );
    }

    #[test]
    fn ranges_are_reserved_once() {
        let mut layout = MachineLayout::new(16 * MIB).unwrap();
        layout.reserve(MIB, 4096, E820Kind::AcpiNvs).unwrap();
        for (start, bytes) in [(MIB, 1), (MIB + 4095, 4096), (5, 0), (u64::MAX, 2)] {
            let refused = layout.reserve(start, bytes, E820Kind::Reserved);
            assert_eq!(refused, Err(Error::Reserved { start, bytes }));
        }
        assert!(!layout.is_free(&(MIB..2 * MIB)));
        assert!(layout.is_free(&(MIB + 4096..2 * MIB)));
        assert_eq!(layout.find_low(0, 4096, MIB), Some(2 * MIB));
    }

    proptest! {
        #[test]
        fn an_address_is_usable_exactly_if_it_is_free_ram(
            pages in 256_u64..2_000_000,
            wanted in proptest::collection::vec((0_u64..0x1_2000_0000, 1_u64..0x10_0000), 0..80),
            probes in proptest::collection::vec(0_u64..0x2_4000_0000, 64),
        ) {
            let mut layout = MachineLayout::new(pages * 4096).unwrap();
            let mut taken = Vec::new();
            taken.push(low_memory::LOW_END..MIB);
            for (start, bytes) in wanted {
                if layout.reserve(start, bytes, E820Kind::Reserved).is_ok() {
                    taken.push(start..start + bytes);
                }
            }
            let map = layout.e820();
            prop_assert!(map.len() <= MAX_E820_ENTRIES);
            for pair in map.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].start, "{map:?}");
            }
            let edges = map.iter().flat_map(|e| [e.start, e.end() - 1, e.end()]);
            for address in probes.into_iter().chain(edges) {
                let ram = layout.ram().iter().any(|(at, bytes)| (at.0..at.0 + bytes).contains(&address));
                let free = ram && !taken.iter().any(|range| range.contains(&address));
                let says = map.iter().any(|entry| {
                    entry.kind == E820Kind::Usable && (entry.start..entry.end()).contains(&address)
                });
                prop_assert_eq!(free, says, "{:#x}", address);
            }
        }
    }
}
