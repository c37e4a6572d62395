//! The software TLB: where pages are in the arena, as long as that is known.
//!
//! Direct mapped, one table each for reads, writes and fetches, so that a hit needs no look at
//! permissions. A tag is the page's linear address with, in its low 12 bits, a *context number*
//! and the kind of access. To flush is to take a new context number; a PCID keeps its number
//! until it is flushed. Entries of global pages are not kept across contexts: they are made
//! again, which the architecture allows. A large page has an entry for each of its small ones that
//! was used; how large it is stands beside them, so that all of them are forgotten together.

use guest_memory::RamOffset;

/// Entries of each table.
const ENTRIES: usize = 512;
/// Context numbers have 10 bits; the last is never used, so that [`EMPTY`] matches nothing.
const LAST_CONTEXT: u64 = 1022;
/// The tag of an entry that holds nothing: no address and context make it up.
const EMPTY: u64 = u64::MAX;

/// Who accesses: the low two bits of a tag.
pub(crate) struct Kind;

impl Kind {
    pub(crate) const SUPERVISOR: u64 = 0;
    pub(crate) const USER: u64 = 1;
    /// A supervisor that may touch user pages although SMAP is on: RFLAGS.AC is set.
    pub(crate) const OVERRIDE: u64 = 2;
}

/// Why memory is accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u64,
    /// What to add to a linear address to get its place in the arena, wrapping.
    addend: u64,
}

/// The three tables, and the contexts.
#[derive(Debug)]
pub(crate) struct Tlb {
    read: [Entry; ENTRIES],
    write: [Entry; ENTRIES],
    fetch: [Entry; ENTRIES],
    /// By slot, of whichever of the three was filled last: how large the page is, as a power of
    /// two. All zero as long as there was no large page.
    sizes: [u8; ENTRIES],
    has_large: bool,
    /// The present context number, shifted over the kind.
    context: u64,
    next_context: u64,
    /// The context numbers of PCIDs.
    by_pcid: Vec<u16>,
    /// What must be the same for a linear address to mean the same code, see `blocks.rs`: a
    /// count of everything that makes translations of code stale, and in the low eight bits mode
    /// and privilege.
    pub code_tag: u64,
}

impl Default for Tlb {
    fn default() -> Self {
        let none = [Entry {
            tag: EMPTY,
            addend: 0,
        }; ENTRIES];
        Self {
            read: none,
            write: none,
            fetch: none,
            sizes: [0; ENTRIES],
            has_large: false,
            context: 0,
            next_context: 1,
            by_pcid: Vec::new(),
            code_tag: 1 << 8,
        }
    }
}

#[inline(always)]
fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

impl Tlb {
    /// The place of `bytes` at `linear`, if they are in one page that is known.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "slot() is below ENTRIES")]
    pub(crate) fn hit(
        &self,
        access: Access,
        linear: u64,
        bytes: u64,
        kind: u64,
    ) -> Option<RamOffset> {
        let table = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
            Access::Fetch => &self.fetch,
        };
        let entry = &table[slot(linear)];
        // The page of the last byte, so that an access over its end does not match.
        let page = linear.wrapping_add(bytes - 1) & !0xfff;
        (entry.tag == page | self.context | kind)
            .then(|| RamOffset(linear.wrapping_add(entry.addend)))
    }

    #[expect(clippy::indexing_slicing, reason = "slot() is below ENTRIES")]
    pub(crate) fn fill(
        &mut self,
        access: Access,
        linear: u64,
        kind: u64,
        at: RamOffset,
        page_bits: u8,
    ) {
        let size = &mut self.sizes[slot(linear)];
        *size = page_bits.max(*size);
        self.has_large |= page_bits > 12;
        let entry = Entry {
            tag: (linear & !0xfff) | self.context | kind,
            addend: at.0.wrapping_sub(linear),
        };
        match access {
            Access::Read => self.read[slot(linear)] = entry,
            Access::Write => self.write[slot(linear)] = entry,
            Access::Fetch => self.fetch[slot(linear)] = entry,
        }
    }

    /// Makes every translation of code stale.
    pub(crate) fn forget_code(&mut self) {
        self.code_tag = self.code_tag.wrapping_add(1 << 8);
    }

    fn new_context(&mut self) -> u64 {
        if self.next_context > LAST_CONTEXT {
            let tag = self.code_tag;
            *self = Self::default();
            self.code_tag = tag;
        }
        let number = self.next_context;
        self.next_context += 1;
        number << 2
    }

    /// Forgets everything, of all PCIDs.
    pub(crate) fn flush(&mut self) {
        self.context = self.new_context();
        self.by_pcid.clear();
        self.forget_code();
    }

    /// Goes to a PCID; what is known of it is kept if `keep`.
    pub(crate) fn switch(&mut self, pcid: u16, keep: bool) {
        if self.by_pcid.len() <= usize::from(pcid) {
            self.by_pcid.resize(usize::from(pcid) + 1, 0);
        }
        let known = self.by_pcid.get(usize::from(pcid)).copied().unwrap_or(0);
        self.context = if keep && known != 0 {
            u64::from(known) << 2
        } else {
            self.new_context()
        };
        if self.by_pcid.len() <= usize::from(pcid) {
            self.by_pcid.resize(usize::from(pcid) + 1, 0);
        }
        if let Some(known) = self.by_pcid.get_mut(usize::from(pcid)) {
            *known = (self.context >> 2) as u16;
        }
        self.forget_code();
    }

    /// Forgets what is known of a PCID that is not the present one.
    pub(crate) fn forget_pcid(&mut self, pcid: u16) {
        if let Some(known) = self.by_pcid.get_mut(usize::from(pcid)) {
            *known = 0;
        }
    }

    /// Forgets the small page that an access faulted on. What is known of code, which is dear, is
    /// forgotten only if the page is code.
    #[expect(clippy::indexing_slicing, reason = "slot() is below ENTRIES")]
    pub(crate) fn forget_faulting(&mut self, access: Access, linear: u64) {
        let is_code = (self.fetch[slot(linear)].tag ^ linear) >> 12 == 0;
        if is_code || access == Access::Fetch {
            return self.forget_small(linear);
        }
        for table in [&mut self.read, &mut self.write] {
            table[slot(linear)].tag = EMPTY;
        }
    }

    /// Forgets one small page, of all PCIDs: a slot holds a page of one of them only.
    #[expect(clippy::indexing_slicing, reason = "slot() is below ENTRIES")]
    pub(crate) fn forget_small(&mut self, linear: u64) {
        for table in [&mut self.read, &mut self.write, &mut self.fetch] {
            table[slot(linear)].tag = EMPTY;
        }
        self.forget_code();
    }

    /// Forgets the page of an address, however large it is, of all PCIDs: it may be a global one,
    /// which INVLPG drops everywhere.
    pub(crate) fn forget_page(&mut self, linear: u64) {
        self.forget_small(linear);
        if !self.has_large {
            return;
        }
        for table in [&mut self.read, &mut self.write, &mut self.fetch] {
            for (entry, size) in table.iter_mut().zip(&self.sizes) {
                if (entry.tag ^ linear) >> (*size).clamp(12, 63) == 0 {
                    entry.tag = EMPTY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_over_the_end_of_a_page_misses() {
        let mut tlb = Tlb::default();
        tlb.flush();
        tlb.fill(Access::Read, 0x5000, Kind::USER, RamOffset(0x9000), 12);
        let hit = |at, bytes| tlb.hit(Access::Read, at, bytes, Kind::USER);
        assert_eq!(hit(0x5ffc, 4), Some(RamOffset(0x9ffc)));
        assert_eq!(hit(0x5ffd, 4), None);
        assert_eq!(hit(0x4ffd, 4), None);
        assert_eq!(tlb.hit(Access::Write, 0x5000, 1, Kind::USER), None);
        assert_eq!(tlb.hit(Access::Read, 0x5000, 1, Kind::SUPERVISOR), None);
    }

    #[test]
    fn contexts_come_back_and_wear_out() {
        let mut tlb = Tlb::default();
        tlb.switch(5, true);
        tlb.fill(Access::Read, 0x5000, 0, RamOffset(0), 12);
        for round in 0..3000_u32 {
            tlb.switch(6, false);
            assert_eq!(tlb.hit(Access::Read, 0x5000, 1, 0), None);
            tlb.switch(5, round < 10);
            let known = tlb.hit(Access::Read, 0x5000, 1, 0).is_some();
            assert_eq!(known, round < 10, "round {round}");
        }
        tlb.switch(5, true);
        tlb.fill(Access::Read, 0x5000, 0, RamOffset(0), 12);
        tlb.switch(6, true);
        tlb.forget_pcid(5);
        tlb.switch(5, true);
        assert_eq!(tlb.hit(Access::Read, 0x5000, 1, 0), None);
        // A page forgotten in one PCID is forgotten in the others: it may be global.
        tlb.fill(Access::Read, 0x5000, 0, RamOffset(0), 12);
        tlb.switch(6, true);
        tlb.forget_page(0x5000);
        tlb.switch(5, true);
        assert_eq!(tlb.hit(Access::Read, 0x5000, 1, 0), None);
    }

    #[test]
    fn a_large_page_is_forgotten_as_a_whole() {
        let mut tlb = Tlb::default();
        tlb.flush();
        for (page, bits) in [(0x20_1000, 21), (0x20_2000, 21), (0x40_1000, 12)] {
            tlb.fill(Access::Read, page, Kind::USER, RamOffset(0), bits);
        }
        tlb.forget_page(0x3f_f000);
        let hit = |at| tlb.hit(Access::Read, at, 1, Kind::USER).is_some();
        assert!(!hit(0x20_1000) && !hit(0x20_2000) && hit(0x40_1000));
    }
}
