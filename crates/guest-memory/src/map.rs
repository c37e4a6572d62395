//! Which guest physical addresses are memory.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::{
    Arena, Attention, CodeMarks, DmaMemory, Gate, GuestPhysAddr, MAX_REGIONS, MemoryError,
    PAGE_BYTES, RamOffset, dma,
};

/// What a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Read and written by the guest.
    Ram,
    /// Read by the guest; its writes go to the bus.
    Rom,
}

/// A range of guest physical addresses that is memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its first address.
    pub start: GuestPhysAddr,
    /// Its size.
    pub bytes: u64,
    /// Where it lives.
    pub ram: RamOffset,
    /// What it is.
    pub kind: RegionKind,
}

/// What an address is backed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Memory, at this place.
    Memory {
        /// Where.
        at: RamOffset,
        /// RAM or ROM.
        kind: RegionKind,
        /// Bytes from here to the region's end.
        left: u64,
    },
    /// Nothing here; `left` bytes until memory begins (`u64::MAX`: none follows).
    Hole {
        /// Bytes until the next region.
        left: u64,
    },
}

/// A machine's memory. Shared by reference between all that use it.
#[derive(Debug)]
pub struct GuestMemory {
    arena: Arc<Arena>,
    marks: Arc<CodeMarks>,
    gate: Gate,
    map: RwLock<Arc<[Region]>>,
    used: Mutex<u64>,
}

impl GuestMemory {
    /// Reserves memory for `capacity_bytes` of RAM and ROM together (whole pages).
    ///
    /// # Errors
    /// A size that cannot be, or the host's refusal.
    pub fn new(capacity_bytes: u64) -> Result<Self, MemoryError> {
        Ok(Self {
            arena: Arc::new(Arena::new(capacity_bytes)?),
            marks: Arc::new(CodeMarks::new(capacity_bytes)),
            gate: Gate::default(),
            map: RwLock::new(Arc::from([])),
            used: Mutex::new(0),
        })
    }

    /// The memory itself, without the map.
    #[inline(always)]
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The marks of decoded code.
    #[inline(always)]
    #[must_use]
    pub fn code_marks(&self) -> &CodeMarks {
        &self.marks
    }

    /// Where vCPUs go in and out.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The map as it is now, sorted by address.
    #[must_use]
    pub fn regions(&self) -> Arc<[Region]> {
        Arc::clone(&self.map.read())
    }

    /// Makes `bytes` of zeroed RAM appear at `start`.
    ///
    /// # Errors
    /// Unaligned, overlapping, or no room left.
    pub fn add_ram(&self, start: GuestPhysAddr, bytes: u64) -> Result<Region, MemoryError> {
        let ram = self.take_room(start, bytes)?;
        self.insert(start, bytes, ram, RegionKind::Ram)
    }

    /// Makes `contents` appear at `start`, filled up with zeroes to whole pages.
    ///
    /// # Errors
    /// Unaligned, overlapping, or no room left.
    pub fn add_rom(&self, start: GuestPhysAddr, contents: &[u8]) -> Result<Region, MemoryError> {
        let bytes = (contents.len() as u64).next_multiple_of(PAGE_BYTES);
        let ram = self.take_room(start, bytes)?;
        self.arena.write(ram, contents);
        self.insert(start, bytes, ram, RegionKind::Rom)
    }

    /// Makes memory that is there appear at `start` too, or again: aliases and shadow RAM.
    ///
    /// # Errors
    /// Unaligned, overlapping, or outside what was ever given out.
    pub fn add_alias(
        &self,
        start: GuestPhysAddr,
        bytes: u64,
        ram: RamOffset,
        kind: RegionKind,
    ) -> Result<Region, MemoryError> {
        let used = *self.used.lock();
        let inside = ram.0.is_multiple_of(PAGE_BYTES)
            && ram.0.checked_add(bytes).is_some_and(|end| end <= used);
        if !inside {
            let left = used.saturating_sub(ram.0);
            return Err(MemoryError::Full { bytes, left });
        }
        self.check_range(start, bytes)?;
        self.insert(start, bytes, ram, kind)
    }

    /// Makes the region that begins at `start` disappear. What it held stays in the arena, for
    /// [`GuestMemory::add_alias`].
    ///
    /// # Errors
    /// No region begins there.
    pub fn remove(&self, start: GuestPhysAddr) -> Result<Region, MemoryError> {
        let mut map = self.map.write();
        let region = map
            .iter()
            .find(|region| region.start == start)
            .copied()
            .ok_or(MemoryError::NoRegion(start))?;
        *map = map
            .iter()
            .copied()
            .filter(|other| other.start != start)
            .collect();
        drop(map);
        self.marks.tell(Attention::MAP_CHANGED);
        Ok(region)
    }

    fn check_range(&self, start: GuestPhysAddr, bytes: u64) -> Result<(), MemoryError> {
        let whole = start.0.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES);
        if !whole || bytes == 0 || start.0.checked_add(bytes).is_none() {
            return Err(MemoryError::Unaligned { at: start, bytes });
        }
        Ok(())
    }

    fn take_room(&self, start: GuestPhysAddr, bytes: u64) -> Result<RamOffset, MemoryError> {
        self.check_range(start, bytes)?;
        let overlap = self
            .map
            .read()
            .iter()
            .any(|region| overlaps(region, start, bytes));
        if overlap {
            return Err(MemoryError::Overlap { at: start, bytes });
        }
        let mut used = self.used.lock();
        let left = self.arena.bytes().saturating_sub(*used);
        if bytes > left {
            return Err(MemoryError::Full { bytes, left });
        }
        let ram = RamOffset(*used);
        *used += bytes;
        Ok(ram)
    }

    fn insert(
        &self,
        start: GuestPhysAddr,
        bytes: u64,
        ram: RamOffset,
        kind: RegionKind,
    ) -> Result<Region, MemoryError> {
        let region = Region {
            start,
            bytes,
            ram,
            kind,
        };
        let mut map = self.map.write();
        if map.iter().any(|other| overlaps(other, start, bytes)) {
            return Err(MemoryError::Overlap { at: start, bytes });
        }
        if map.len() >= MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        let mut regions: Vec<Region> = map.iter().copied().chain([region]).collect();
        regions.sort_by_key(|region| region.start);
        *map = regions.into();
        drop(map);
        self.marks.tell(Attention::MAP_CHANGED);
        Ok(region)
    }

    /// What is at an address.
    #[must_use]
    pub fn lookup(&self, addr: GuestPhysAddr) -> Backing {
        let map = self.map.read();
        let after = map.partition_point(|region| region.start <= addr);
        if let Some(region) = after.checked_sub(1).and_then(|index| map.get(index)) {
            let into = addr.0 - region.start.0;
            if into < region.bytes {
                return Backing::Memory {
                    at: RamOffset(region.ram.0 + into),
                    kind: region.kind,
                    left: region.bytes - into,
                };
            }
        }
        let left = map
            .get(after)
            .map_or(u64::MAX, |next| next.start.0 - addr.0);
        Backing::Hole { left }
    }

    /// Copies `into.len()` bytes from RAM or ROM.
    ///
    /// # Errors
    /// Not all of it is memory; nothing then is promised about `into`.
    pub fn read(&self, addr: GuestPhysAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = into.len();
        let mut at = addr;
        let mut rest = into;
        while !rest.is_empty() {
            let Backing::Memory { at: ram, left, .. } = self.lookup(at) else {
                return Err(MemoryError::Hole { at: addr, bytes });
            };
            let now = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (here, later) = rest.split_at_mut(now);
            self.arena.read(ram, here);
            rest = later;
            at = at.wrapping_add(now as u64);
        }
        Ok(())
    }

    /// Copies bytes into RAM, as a device does; decoded code there is invalidated. All of the
    /// range must be RAM, else nothing is written.
    ///
    /// # Errors
    /// Not all of it is RAM.
    pub fn write(&self, addr: GuestPhysAddr, from: &[u8]) -> Result<(), MemoryError> {
        self.write_where(addr, from, |kind| kind == RegionKind::Ram)
    }

    /// Copies bytes into RAM or ROM: how a board loads firmware.
    ///
    /// # Errors
    /// Not all of it is memory.
    pub fn load_image(&self, addr: GuestPhysAddr, from: &[u8]) -> Result<(), MemoryError> {
        self.write_where(addr, from, |_| true)
    }

    fn write_where(
        &self,
        addr: GuestPhysAddr,
        from: &[u8],
        allowed: impl Fn(RegionKind) -> bool,
    ) -> Result<(), MemoryError> {
        let mut pieces = Vec::new();
        let mut at = addr;
        let mut rest = from;
        while !rest.is_empty() {
            match self.lookup(at) {
                Backing::Memory {
                    at: ram,
                    kind,
                    left,
                } if allowed(kind) => {
                    let now = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let (here, later) = rest.split_at(now);
                    pieces.push((ram, here));
                    rest = later;
                    at = at.wrapping_add(now as u64);
                }
                _ => {
                    return Err(MemoryError::Hole {
                        at: addr,
                        bytes: from.len(),
                    });
                }
            }
        }
        for (ram, bytes) in pieces {
            self.arena.write(ram, bytes);
            self.marks.written(ram, bytes.len() as u64);
        }
        Ok(())
    }

    /// Gives whole pages of RAM back to the host: they read as zeroes from now on. What lies there and is no RAM, and
    /// pages that the range does not cover whole, stay as they are. Returns how many bytes were given back.
    pub fn discard(&self, addr: GuestPhysAddr, bytes: u64) -> u64 {
        let Some(first) = addr.0.checked_next_multiple_of(PAGE_BYTES) else {
            return 0;
        };
        let end = addr.0.saturating_add(bytes) & !(PAGE_BYTES - 1);
        let mut at = first;
        let mut discarded = 0;
        while at < end {
            let now = match self.lookup(GuestPhysAddr(at)) {
                Backing::Memory {
                    at: ram,
                    kind,
                    left,
                } => {
                    let now = left.min(end - at);
                    if kind == RegionKind::Ram && self.arena.discard(ram, now) {
                        self.marks.written(ram, now);
                        discarded += now;
                    }
                    now
                }
                Backing::Hole { left } => left.min(end - at),
            };
            at += now;
        }
        discarded
    }

    /// The RAM as `vm-memory` sees it, for virtio queues. Writes through it invalidate decoded
    /// code. It shows the map as it is now: make a new one after [`Attention::MAP_CHANGED`].
    ///
    /// # Errors
    /// The crate refuses the regions.
    pub fn dma_view(&self) -> Result<DmaMemory, MemoryError> {
        dma::view(&self.arena, &self.marks, &self.regions())
    }
}

fn overlaps(region: &Region, start: GuestPhysAddr, bytes: u64) -> bool {
    let end = start.0.saturating_add(bytes);
    let region_end = region.start.0.saturating_add(region.bytes);
    start.0 < region_end && region.start.0 < end
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn machine() -> GuestMemory {
        let memory = GuestMemory::new(1 << 20).unwrap();
        memory.add_ram(GuestPhysAddr(0), 0x4000).unwrap();
        memory.add_rom(GuestPhysAddr(0x8000), b"firmware").unwrap();
        memory.add_ram(GuestPhysAddr(0x4000), 0x1000).unwrap();
        memory
    }

    #[test]
    fn ram_rom_and_holes() {
        let memory = machine();
        let Backing::Memory { kind, left, .. } = memory.lookup(GuestPhysAddr(0x3fff)) else {
            panic!("RAM expected");
        };
        assert_eq!((kind, left), (RegionKind::Ram, 1));
        assert_eq!(
            memory.lookup(GuestPhysAddr(0x5000)),
            Backing::Hole { left: 0x3000 }
        );
        assert_eq!(
            memory.lookup(GuestPhysAddr(0x9000)),
            Backing::Hole { left: u64::MAX }
        );
        let mut seen = [0; 8];
        memory.read(GuestPhysAddr(0x8000), &mut seen).unwrap();
        assert_eq!(&seen, b"firmware");
        assert!(memory.write(GuestPhysAddr(0x8000), b"x").is_err());
        memory.load_image(GuestPhysAddr(0x8000), b"x").unwrap();
    }

    #[test]
    fn a_copy_runs_over_regions_or_not_at_all() {
        let memory = machine();
        memory.write(GuestPhysAddr(0x3ffc), b"12345678").unwrap();
        let mut seen = [0; 8];
        memory.read(GuestPhysAddr(0x3ffc), &mut seen).unwrap();
        assert_eq!(&seen, b"12345678");
        assert!(memory.write(GuestPhysAddr(0x4ffc), b"abcdefgh").is_err());
        memory.read(GuestPhysAddr(0x4ff8), &mut seen).unwrap();
        assert_eq!(seen, [0; 8]);
        assert!(memory.read(GuestPhysAddr(u64::MAX - 2), &mut seen).is_err());
    }

    #[test]
    fn the_map_changes() {
        let memory = machine();
        let attention = Arc::new(Attention::default());
        memory.code_marks().watch(&attention);
        assert!(memory.add_ram(GuestPhysAddr(0x3000), 0x1000).is_err());
        assert!(memory.add_ram(GuestPhysAddr(0x10010), 0x1000).is_err());
        assert!(memory.add_ram(GuestPhysAddr(0x10000), 1 << 30).is_err());
        assert!(
            memory
                .add_ram(GuestPhysAddr(u64::MAX - 4095), 4096)
                .is_err()
        );
        let region = memory.remove(GuestPhysAddr(0x8000)).unwrap();
        assert_eq!(attention.take(u32::MAX), Attention::MAP_CHANGED);
        memory
            .add_alias(GuestPhysAddr(0x9000), 0x1000, region.ram, RegionKind::Ram)
            .unwrap();
        memory.write(GuestPhysAddr(0x9000), b"F").unwrap();
        assert!(memory.remove(GuestPhysAddr(0x8000)).is_err());
        let outside = RamOffset(1 << 19);
        assert!(
            memory
                .add_alias(GuestPhysAddr(0xa000), 0x1000, outside, RegionKind::Ram)
                .is_err()
        );
    }

    #[test]
    fn pages_are_given_back() {
        let memory = machine();
        let attention = Arc::new(Attention::default());
        memory.code_marks().watch(&attention);
        memory.write(GuestPhysAddr(0x3000), &[1; 0x2000]).unwrap();
        let Backing::Memory { at, .. } = memory.lookup(GuestPhysAddr(0x4000)) else {
            panic!("RAM expected");
        };
        let _ = memory.code_marks().mark(at, 16);
        // From the middle of one region's page over the next region, a hole, and ROM.
        assert_eq!(memory.discard(GuestPhysAddr(0x3800), 0x5800), 0x1000);
        assert_eq!(attention.take(u32::MAX), Attention::CODE_CHANGED);
        let mut seen = [0; 0x2000];
        memory.read(GuestPhysAddr(0x3000), &mut seen).unwrap();
        assert!(seen[..0x1000] == [1; 0x1000] && seen[0x1000..] == [0; 0x1000]);
        let mut firmware = [0; 8];
        memory.read(GuestPhysAddr(0x8000), &mut firmware).unwrap();
        assert_eq!(&firmware, b"firmware");
        assert_eq!(memory.discard(GuestPhysAddr(0x3001), 0x1ffe), 0);
        assert_eq!(memory.discard(GuestPhysAddr(u64::MAX - 5), u64::MAX), 0);
        assert_eq!(memory.discard(GuestPhysAddr(0), u64::MAX), 0x5000);
    }

    #[test]
    fn writes_of_devices_invalidate_code() {
        let memory = machine();
        let attention = Arc::new(Attention::default());
        memory.code_marks().watch(&attention);
        let _ = memory.code_marks().mark(RamOffset(0x4000), 16);
        let view = memory.dma_view().unwrap();
        view.write_obj(0x1234_u32, GuestAddress(0x3000)).unwrap();
        assert_eq!(attention.pending(), 0);
        // The second RAM region was made after the ROM, and lives behind it in the arena.
        let Backing::Memory { at, .. } = memory.lookup(GuestPhysAddr(0x4000)) else {
            panic!("RAM expected");
        };
        let _ = memory.code_marks().mark(at, 16);
        view.write_obj(0x1234_u32, GuestAddress(0x4008)).unwrap();
        assert_eq!(attention.take(u32::MAX), Attention::CODE_CHANGED);
        drop(memory);
        assert_eq!(view.read_obj::<u32>(GuestAddress(0x4008)).unwrap(), 0x1234);
    }
}
