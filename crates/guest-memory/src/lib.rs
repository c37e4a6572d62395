//! Guest physical memory: what every vCPU thread and every device reads and writes at once.
//!
//! # What it is
//!
//! A [`GuestMemory`] is made once per machine with a *capacity*. It reserves one host mapping of
//! that size (the [`Arena`]; pages cost nothing until they are touched) and a *map* that says
//! which guest physical addresses are RAM or ROM, and where in the arena they live; everything
//! else is a hole, for the bus of the board. Addresses of the guest are [`GuestPhysAddr`];
//! places in the arena are [`RamOffset`], what [`GuestMemory::lookup`] translates to. A vCPU
//! keeps the difference of the two in its TLB and then reaches memory without any lookup.
//!
//! # Lifecycle
//!
//! [`GuestMemory::new`], then [`GuestMemory::add_ram`] and [`GuestMemory::add_rom`]; regions may
//! be made or removed later ([`GuestMemory::remove`]): the map is replaced as a whole and each
//! registered [`Attention`] is told with [`Attention::MAP_CHANGED`], upon which a vCPU drops
//! what it derived from the old map. The arena lives as long as anything that refers to it.
//!
//! # Invariants
//!
//! * **Sound under races.** Guests race with themselves; so no reference to guest memory is ever
//!   made. Loads and stores are single machine instructions where the host allows (x86-64: one
//!   `mov`, any alignment; elsewhere one atomic access if aligned, else one for each byte),
//!   acquire and release at least, which is the order x86 guests count on.
//! * **Bounds always hold.** An access outside the arena reads ones and writes nothing, like a
//!   bus on which nobody answers; it cannot happen by way of [`GuestMemory::lookup`].
//! * **Locked operations** are naturally aligned compare-exchanges of the host. What is not
//!   aligned runs in an exclusive section ([`Gate::exclusively`]) in which every other vCPU
//!   stands still.
//! * **Code marks.** Who decodes instructions marks the 64-byte lines they come from
//!   ([`CodeMarks::mark`]) and keeps the page's generation. Who writes asks
//!   [`CodeMarks::is_marked`] after the store and calls [`CodeMarks::written`] if so: the page's
//!   generation moves on, and every [`Attention`] gets [`Attention::CODE_CHANGED`]. The bulk
//!   writes here and the view for virtio queues ([`GuestMemory::dma_view`]) do that themselves.
//!
//! # Where a new thing goes
//!
//! Another backing (files, huge pages): [`Arena`]. Another kind of region: `map.rs`. A dirty log
//! for migration belongs beside the code marks, in `code.rs`.

mod arena;
mod attention;
mod code;
mod dma;
mod gate;
mod map;

pub use arena::{Arena, RamOffset, Word};
pub use attention::Attention;
pub use code::{CodeMarks, LINE_BYTES};
pub use dma::{DmaMemory, MarkedRegion, MarkedSlice};
pub use gate::Gate;
pub use map::{Backing, GuestMemory, Region, RegionKind};

/// Bytes in a page, the granularity of the map and of the code marks' generations.
pub const PAGE_BYTES: u64 = 4096;

/// The most RAM and ROM one machine may have: 1 TiB, so that a mistyped size is an error here
/// and not a failing host later.
pub const MAX_CAPACITY_BYTES: u64 = 1 << 40;

/// The most regions a map may have.
pub const MAX_REGIONS: usize = 512;

/// An address in the guest's physical address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestPhysAddr(pub u64);

impl GuestPhysAddr {
    /// The address `bytes` further on, wrapping at the end of the address space as a bus does.
    #[must_use]
    pub const fn wrapping_add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl std::fmt::Display for GuestPhysAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The capacity is zero, too large or not whole pages.
    #[error(
        "guest memory of {0} bytes: must be whole pages of 4096 bytes, more than 0 and at most 1 TiB"
    )]
    Capacity(u64),
    /// The host refused the mapping.
    #[error("cannot reserve {bytes} bytes of guest memory: {reason}")]
    Reserve {
        /// What was asked for.
        bytes: u64,
        /// What the host said.
        reason: String,
    },
    /// A region is not whole pages, empty, or runs over the end of the address space.
    #[error("region of {bytes} bytes at {at}: start and size must be whole pages of 4096 bytes")]
    Unaligned {
        /// Where it should be.
        at: GuestPhysAddr,
        /// How large it should be.
        bytes: u64,
    },
    /// A region overlaps one that is there.
    #[error("region of {bytes} bytes at {at} overlaps one that is there; remove that first")]
    Overlap {
        /// Where it should be.
        at: GuestPhysAddr,
        /// How large it should be.
        bytes: u64,
    },
    /// The arena is used up.
    #[error("region of {bytes} bytes: only {left} bytes of the memory's capacity are left")]
    Full {
        /// What was asked for.
        bytes: u64,
        /// What there is.
        left: u64,
    },
    /// Too many regions.
    #[error("more than {MAX_REGIONS} regions of guest memory")]
    TooManyRegions,
    /// No region begins there.
    #[error("no region of guest memory begins at {0}")]
    NoRegion(GuestPhysAddr),
    /// A bulk access touches something that is not memory.
    #[error("{bytes} bytes at {at}: not all of that is memory")]
    Hole {
        /// Where the access began.
        at: GuestPhysAddr,
        /// Its length.
        bytes: usize,
    },
}
