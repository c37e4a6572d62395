//! Page tables: 2, 3, 4 and 5 levels (Intel SDM 3, chapter "Paging").

use guest_memory::{Backing, GuestPhysAddr, RamOffset, RegionKind};

use crate::cpu::{Cpu, cr, vector};
use crate::domain::Stop;
use crate::tlb::{Access, Kind};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Physical addresses have 40 bits, as CPUID says.
pub(crate) const PHYS_BITS: u32 = 40;
const FRAME: u64 = ((1 << PHYS_BITS) - 1) & !0xfff;
/// Physical address bits that must be zero in entries of 8 bytes.
const RESERVED: u64 = ((1 << 52) - 1) & !((1 << PHYS_BITS) - 1);
/// Software may use these bits of an entry in long mode; in PAE paging they must be zero.
const RESERVED_PAE: u64 = 0x7ff << 52;

/// Bits of a page fault's error code.
pub(crate) mod error {
    pub(crate) const PRESENT: u32 = 1;
    pub(crate) const WRITE: u32 = 1 << 1;
    pub(crate) const USER: u32 = 1 << 2;
    pub(crate) const RESERVED: u32 = 1 << 3;
    pub(crate) const FETCH: u32 = 1 << 4;
}

/// What a linear address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In memory.
    Memory(RamOffset),
    /// On the bus.
    Bus(u64),
}

/// The levels and the size of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    TwoLevel,
    Pae,
    Four,
    Five,
}

/// What the walk has gathered: the rights are those of all levels together.
struct Found {
    frame: u64,
    /// The page's size, as a power of two.
    page_bits: u8,
    writable: bool,
    user: bool,
    executable: bool,
    /// Where the last entry is, and what it was.
    last: (u64, u64),
}

impl Cpu {
    /// Whether an address is canonical for the present paging.
    #[inline]
    pub(crate) fn canonical(&self, linear: u64) -> bool {
        let bits = if self.system.cr4 & cr::CR4_LA57 != 0 {
            57
        } else {
            48
        };
        let shift = 64 - bits;
        ((linear << shift) as i64 >> shift) as u64 == linear
    }

    /// Translates an address for an access that was not a TLB hit, and fills the TLB.
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        access: Access,
        kind: u64,
    ) -> Result<Place, Stop> {
        let (phys, page_bits) = if self.system.cr0 & cr::CR0_PG == 0 {
            (linear & 0xffff_ffff, 12)
        } else {
            self.walk(linear, access, kind)?
        };
        if phys.wrapping_sub(self.region.0) >= self.region.1 {
            self.remember_region(phys);
        }
        let page = linear & !0xfff;
        match self.backing(phys) {
            Backing::Memory {
                at,
                kind: RegionKind::Ram,
                ..
            } => {
                let start = RamOffset(at.0 - (phys & 0xfff));
                self.tlb.fill(access, page, kind, start, page_bits);
                Ok(Place::Memory(at))
            }
            Backing::Memory { at, .. } if access != Access::Write => {
                let start = RamOffset(at.0 - (phys & 0xfff));
                self.tlb.fill(access, page, kind, start, page_bits);
                Ok(Place::Memory(at))
            }
            _ => Ok(Place::Bus(phys)),
        }
    }

    /// What is at a physical address: mostly the region that was found last.
    fn backing(&self, phys: u64) -> Backing {
        let (start, bytes, ram) = self.region;
        let into = phys.wrapping_sub(start);
        if into < bytes {
            return Backing::Memory {
                at: RamOffset(ram + into),
                kind: RegionKind::Ram,
                left: bytes - into,
            };
        }
        self.memory.lookup(GuestPhysAddr(phys))
    }

    /// The place of an address, from the TLB or the page tables.
    #[inline]
    pub(crate) fn place(&mut self, linear: u64, access: Access, kind: u64) -> Result<Place, Stop> {
        match self.tlb.hit(access, linear, 1, kind) {
            Some(at) => Ok(Place::Memory(at)),
            None => self.translate(linear, access, kind),
        }
    }

    /// Remembers the RAM region of an address, if it is one.
    fn remember_region(&mut self, phys: u64) {
        let regions = self.memory.regions();
        let found = regions.iter().find(|region| {
            region.kind == RegionKind::Ram && phys.wrapping_sub(region.start.0) < region.bytes
        });
        if let Some(region) = found {
            self.region = (region.start.0, region.bytes, region.ram.0);
        }
    }

    fn shape(&self) -> Shape {
        if self.system.cr4 & cr::CR4_PAE == 0 {
            Shape::TwoLevel
        } else if !self.long_mode() {
            Shape::Pae
        } else if self.system.cr4 & cr::CR4_LA57 != 0 {
            Shape::Five
        } else {
            Shape::Four
        }
    }

    /// #PF, which also makes the processor forget the page (Intel SDM 3, "Operations that
    /// Invalidate TLBs"): it may be known by rights that it has no longer.
    fn page_fault(&mut self, linear: u64, access: Access, kind: u64, present: u32) -> Stop {
        self.tlb.forget_faulting(access, linear);
        let mut code = present;
        if access == Access::Write {
            code |= error::WRITE;
        }
        if kind == Kind::USER {
            code |= error::USER;
        }
        let nx = self.system.efer & cr::EFER_NXE != 0 && self.system.cr4 & cr::CR4_PAE != 0;
        if access == Access::Fetch && (nx || self.system.cr4 & cr::CR4_SMEP != 0) {
            code |= error::FETCH;
        }
        self.system.cr2 = linear;
        self.raise(vector::PF, Some(code))
    }

    fn walk(&mut self, linear: u64, access: Access, kind: u64) -> Result<(u64, u8), Stop> {
        let found = match self.gather(linear) {
            Ok(found) => found,
            Err(present) => return Err(self.page_fault(linear, access, kind, present)),
        };
        let wp = self.system.cr0 & cr::CR0_WP != 0;
        let allowed = match (access, kind == Kind::USER) {
            (Access::Read, true) => found.user,
            (Access::Write, true) => found.user && found.writable,
            (Access::Fetch, true) => found.user && found.executable,
            (Access::Read, false) => !self.smap_forbids(&found, kind),
            (Access::Write, false) => (found.writable || !wp) && !self.smap_forbids(&found, kind),
            (Access::Fetch, false) => {
                found.executable && !(found.user && self.system.cr4 & cr::CR4_SMEP != 0)
            }
        };
        if !allowed {
            return Err(self.page_fault(linear, access, kind, error::PRESENT));
        }
        self.mark_used(&found, access);
        Ok((found.frame, found.page_bits))
    }

    fn smap_forbids(&self, found: &Found, kind: u64) -> bool {
        found.user && kind == Kind::SUPERVISOR && self.system.cr4 & cr::CR4_SMAP != 0
    }

    /// Sets A, and D for a write, in the last entry; the others got their A on the way.
    fn mark_used(&self, found: &Found, access: Access) {
        let (at, entry) = found.last;
        let mut wanted = ACCESSED;
        if access == Access::Write {
            wanted |= DIRTY;
        }
        if entry & wanted != wanted {
            self.or_phys(at, wanted);
        }
    }

    /// Sets bits of a table entry. Other vCPUs may change it at the same time: only what is
    /// still present is marked.
    fn or_phys(&self, at: u64, bits: u64) {
        if let Backing::Memory {
            at,
            kind: RegionKind::Ram,
            ..
        } = self.backing(at)
        {
            // The low half holds all the bits there are to set, in entries of 4 and 8 bytes.
            let _ = self.memory.arena().fetch_update::<u32>(at, |old| {
                if old & PRESENT as u32 == 0 {
                    old
                } else {
                    old | bits as u32
                }
            });
        }
    }

    fn read_phys64(&self, at: u64) -> u64 {
        match self.backing(at) {
            Backing::Memory { at, .. } => self.memory.arena().load(at),
            Backing::Hole { .. } => u64::MAX,
        }
    }

    fn read_phys32(&self, at: u64) -> u32 {
        match self.backing(at) {
            Backing::Memory { at, .. } => self.memory.arena().load(at),
            Backing::Hole { .. } => u32::MAX,
        }
    }

    /// Walks the tables. `Err` is the part of the error code that says why.
    fn gather(&self, linear: u64) -> Result<Found, u32> {
        match self.shape() {
            Shape::TwoLevel => self.gather_two(linear & 0xffff_ffff),
            Shape::Pae => {
                let linear = linear & 0xffff_ffff;
                let index = (linear >> 30) as usize;
                let pdpte = self.pdptes.get(index).copied().unwrap_or(0);
                if pdpte & PRESENT == 0 {
                    return Err(0);
                }
                self.gather_long(linear, pdpte & FRAME, 2, RESERVED | RESERVED_PAE)
            }
            Shape::Four => self.gather_long(linear, self.system.cr3 & FRAME, 4, RESERVED),
            Shape::Five => self.gather_long(linear, self.system.cr3 & FRAME, 5, RESERVED),
        }
    }

    /// `reserved`: what must be zero in the entries of every level.
    fn gather_long(
        &self,
        linear: u64,
        root: u64,
        levels: u32,
        mut reserved: u64,
    ) -> Result<Found, u32> {
        if self.system.efer & cr::EFER_NXE == 0 {
            reserved |= NO_EXECUTE;
        }
        let largest = if self.features.gigabyte_pages { 3 } else { 2 };
        let mut found = Found {
            frame: 0,
            page_bits: 12,
            writable: true,
            user: true,
            executable: true,
            last: (0, 0),
        };
        let mut table = root;
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let at = table + ((linear >> shift) & 0x1ff) * 8;
            let entry = self.read_phys64(at);
            if entry & PRESENT == 0 {
                return Err(0);
            }
            let large = level > 1 && entry & LARGE != 0;
            let mut reserved = reserved;
            if large {
                // Bit 12 is PAT; the others below the frame must be zero.
                reserved |= ((1 << shift) - 1) & !0x1fff;
            }
            if entry & reserved != 0 || (large && level > largest) {
                return Err(error::PRESENT | error::RESERVED);
            }
            found.writable &= entry & WRITABLE != 0;
            found.user &= entry & USER != 0;
            found.executable &= entry & NO_EXECUTE == 0;
            if large || level == 1 {
                let inside = (1_u64 << shift) - 1;
                found.frame = (entry & FRAME & !inside) | (linear & inside);
                found.page_bits = shift as u8;
                found.last = (at, entry);
                return Ok(found);
            }
            if entry & ACCESSED == 0 {
                self.or_phys(at, ACCESSED);
            }
            table = entry & FRAME;
        }
        Err(0)
    }

    fn gather_two(&self, linear: u64) -> Result<Found, u32> {
        let at = (self.system.cr3 & 0xffff_f000) + (linear >> 22) * 4;
        let entry = u64::from(self.read_phys32(at));
        if entry & PRESENT == 0 {
            return Err(0);
        }
        let mut found = Found {
            frame: 0,
            page_bits: 12,
            writable: entry & WRITABLE != 0,
            user: entry & USER != 0,
            executable: true,
            last: (at, entry),
        };
        if entry & LARGE != 0 && self.system.cr4 & cr::CR4_PSE != 0 {
            // PSE-36: bits 20:13 are bits 39:32 of the address; bit 21 is reserved.
            if entry & (1 << 21) != 0 {
                return Err(error::PRESENT | error::RESERVED);
            }
            let high = ((entry >> 13) & 0xff) << 32;
            found.frame = high | (entry & 0xffc0_0000) | (linear & 0x3f_ffff);
            found.page_bits = 22;
            return Ok(found);
        }
        if entry & ACCESSED == 0 {
            self.or_phys(at, ACCESSED);
        }
        let at = (entry & 0xffff_f000) + ((linear >> 12) & 0x3ff) * 4;
        let entry = u64::from(self.read_phys32(at));
        if entry & PRESENT == 0 {
            return Err(0);
        }
        found.writable &= entry & WRITABLE != 0;
        found.user &= entry & USER != 0;
        found.frame = (entry & 0xffff_f000) | (linear & 0xfff);
        found.last = (at, entry);
        Ok(found)
    }

    /// Loads the four pointers of PAE paging. #GP if one has reserved bits.
    pub(crate) fn load_pdptes(&mut self, cr3: u64) -> Result<(), Stop> {
        let mut pointers = [0; 4];
        for (index, pointer) in (0_u64..).zip(pointers.iter_mut()) {
            *pointer = self.read_phys64((cr3 & 0xffff_ffe0) + index * 8);
            if *pointer & PRESENT != 0 && *pointer & (0x1e6 | RESERVED | (0xfff << 52)) != 0 {
                return Err(self.gp(0));
            }
        }
        self.pdptes = pointers;
        Ok(())
    }

    /// Whether PAE paging without long mode would be on with these registers.
    pub(crate) fn is_pae(cr0: u64, cr4: u64, efer: u64) -> bool {
        cr0 & cr::CR0_PG != 0 && cr4 & cr::CR4_PAE != 0 && efer & cr::EFER_LMA == 0
    }
}
