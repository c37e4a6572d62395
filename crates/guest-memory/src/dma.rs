//! Guest memory as `vm-memory` sees it, for virtio queues and other users of that crate.

use std::sync::Arc;

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::{Arena, CodeMarks, MemoryError, RamOffset, Region, RegionKind};

/// Tells the code marks of every write that goes through `vm-memory`, whatever writes it. One for each region.
#[derive(Debug)]
pub struct MarkedRegion {
    marks: Arc<CodeMarks>,
    /// Keeps the memory mapped as long as anything points into it.
    _arena: Arc<Arena>,
    start: u64,
}

impl<'a> WithBitmapSlice<'a> for MarkedRegion {
    type S = MarkedSlice<'a>;
}

impl Bitmap for MarkedRegion {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark_dirty(offset, len);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        // No dirty log is kept here: this is about code only.
        false
    }

    fn slice_at(&self, offset: usize) -> MarkedSlice<'_> {
        MarkedSlice {
            marks: &self.marks,
            start: self.start.saturating_add(offset as u64),
        }
    }
}

/// A part of a [`MarkedRegion`]. Borrowed, since one is made for every access.
#[derive(Debug, Clone, Copy)]
pub struct MarkedSlice<'a> {
    marks: &'a CodeMarks,
    start: u64,
}

impl WithBitmapSlice<'_> for MarkedSlice<'_> {
    type S = Self;
}

impl BitmapSlice for MarkedSlice<'_> {}

impl Bitmap for MarkedSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let at = self.start.saturating_add(offset as u64);
        self.marks.written(RamOffset(at), len as u64);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            start: self.start.saturating_add(offset as u64),
            ..*self
        }
    }
}

/// The RAM of a map, as it was when the view was made; ROM is not in it.
pub type DmaMemory = GuestMemoryMmap<MarkedRegion>;

pub(crate) fn view(
    arena: &Arc<Arena>,
    marks: &Arc<CodeMarks>,
    map: &[Region],
) -> Result<DmaMemory, MemoryError> {
    let mut regions = Vec::new();
    for region in map.iter().filter(|region| region.kind == RegionKind::Ram) {
        let refused = |reason: String| MemoryError::Reserve {
            bytes: region.bytes,
            reason,
        };
        let size = usize::try_from(region.bytes).map_err(|e| refused(e.to_string()))?;
        let Some(pointer) = arena.host_pointer(region.ram) else {
            return Err(refused("outside the arena".into()));
        };
        let bitmap = MarkedRegion {
            marks: Arc::clone(marks),
            _arena: Arc::clone(arena),
            start: region.ram.0,
        };
        let builder = MmapRegionBuilder::new_with_bitmap(size, bitmap)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: a region lies within the arena (checked when it was made), and the bitmap that
        // travels with the mapping keeps the arena alive.
        let builder = unsafe { builder.with_raw_mmap_pointer(pointer) };
        let mapping = builder
            .build()
            .map_err(|error| refused(error.to_string()))?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(region.start.0))
            .ok_or_else(|| refused("past the end of the address space".into()))?;
        regions.push(mapped);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|error| MemoryError::Reserve {
        bytes: 0,
        reason: error.to_string(),
    })
}
