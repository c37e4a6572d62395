//! What the TLB may remember, against a model of the Intel SDM's section "Caching Translation
//! Information" (volume 3, 4.10): a guest changes its tables and invalidates at random, and
//! whatever it reads, writes or runs must be by a translation that the processor may still hold.
//!
//! The model is the most that may be cached: at every step all present translations of the
//! current PCID may be taken up, without an access; they go when an instruction invalidates
//! them. The SDM lets a processor drop any of them earlier, so no access *must* be stale.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod guest;

use std::collections::HashSet;
use std::sync::Arc;

use guest::random::{Random, cases};
use guest::{CODE, GDT, IDT, STACK, assemble, gate64, put, word};
use guest_memory::{GuestMemory, GuestPhysAddr};
use iced_x86::code_asm::*;
use vcpu::{Exit, Vcpu};

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const XD: u64 = 1 << 63;

const PCIDS: [u64; 3] = [0, 1, 5];
/// The linear pages under test.
const PAGES: usize = 8;
const REGION: u64 = 1 << 39;
/// Command, two arguments, a result, and INVPCID's descriptor.
const MAIL: u64 = 0x2_0000;
const TABLES: u64 = 0x4_0000;
/// The pages that entries refer to: small ones from here, and two frames of 2 MiB.
const FRAMES: u64 = 0x10_0000;
const LARGE_FRAMES: [u64; 2] = [2 << 20, 4 << 20];
const FAULTED: u64 = u64::MAX;

const CR4: u64 = 0x4_06b0;
const PGE: u64 = 1 << 7;
const PCIDE: u64 = 1 << 17;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;

fn table(pcid: usize, level: u64) -> u64 {
    TABLES + pcid as u64 * 0x8000 + level * 0x1000
}

/// A translation of one small page, as the TLB may hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    frame: u64,
    rights: u64,
    large: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Fetch,
}

#[derive(Default, Clone)]
struct Space {
    /// The page-directory entry, and those of the page table.
    pde: u64,
    ptes: [u64; PAGES],
    /// What may be cached, by page; not the global translations.
    cached: [HashSet<Entry>; PAGES],
    /// The paging-structure caches may hold the reference to the page table.
    table_cached: bool,
}

impl Space {
    fn by_table(&self, page: usize) -> Option<Entry> {
        let pte = self.ptes[page];
        (pte & P != 0).then_some(Entry {
            frame: pte & 0xf_ffff_f000,
            rights: pte & (RW | US | XD | G),
            large: false,
        })
    }

    /// The translation that the tables give now.
    fn present(&self, page: usize) -> Option<Entry> {
        if self.pde & P == 0 {
            return None;
        }
        if self.pde & PS == 0 {
            return self.by_table(page);
        }
        Some(Entry {
            frame: (self.pde & 0xf_ffe0_0000) + page as u64 * 0x1000,
            rights: self.pde & (RW | US | XD | G),
            large: true,
        })
    }
}

struct Test {
    memory: Arc<GuestMemory>,
    vcpu: Box<dyn Vcpu>,
    random: Random,
    spaces: [Space; 3],
    global: [HashSet<Entry>; PAGES],
    current: usize,
    cr4: u64,
    wp: bool,
    /// PWT and PCD of CR3.
    low: u64,
    log: Vec<String>,
}

fn program() -> Vec<u8> {
    assemble(64, CODE, |a| {
        let mut next = a.create_label();
        let mut labels: Vec<_> = (0..8).map(|_| a.create_label()).collect();
        a.set_label(&mut next)?;
        a.mov(rsp, STACK)?;
        a.out(0x10, al)?;
        a.mov(rcx, qword_ptr(MAIL))?;
        a.mov(rbx, qword_ptr(MAIL + 8))?;
        a.mov(rdx, qword_ptr(MAIL + 16))?;
        for (number, label) in (0..).zip(&labels) {
            a.cmp(rcx, number)?;
            a.je(*label)?;
        }
        a.ud2()?;
        let mut behind = |a: &mut CodeAssembler, number: usize| a.set_label(&mut labels[number]);
        behind(a, 0)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(qword_ptr(MAIL + 24), rax)?;
        a.jmp(next)?;
        behind(a, 1)?;
        a.mov(qword_ptr(rbx + 8), rdx)?;
        a.mov(qword_ptr(MAIL + 24), 0)?;
        a.jmp(next)?;
        behind(a, 2)?;
        a.add(rbx, 16)?;
        a.call(rbx)?;
        a.mov(qword_ptr(MAIL + 24), rax)?;
        a.jmp(next)?;
        behind(a, 3)?;
        a.invlpg(byte_ptr(rbx))?;
        a.jmp(next)?;
        behind(a, 4)?;
        a.mov(cr3, rbx)?;
        a.jmp(next)?;
        behind(a, 5)?;
        a.invpcid(rbx, xmmword_ptr(MAIL + 32))?;
        a.jmp(next)?;
        behind(a, 6)?;
        a.mov(cr4, rbx)?;
        a.jmp(next)?;
        behind(a, 7)?;
        a.mov(cr0, rbx)?;
        a.jmp(next)
    })
}

impl Test {
    fn new() -> Self {
        let memory = GuestMemory::new(16 << 20).unwrap();
        memory.add_ram(GuestPhysAddr(0), 8 << 20).unwrap();
        let memory = Arc::new(memory);
        guest::prepare_long_mode(&memory);
        let link = |at: u64, entry: u64| put(&memory, at, &entry.to_le_bytes());
        for pcid in 0..PCIDS.len() {
            // The first 512 GiB by supervisor pages of 1 GiB, then the region under test.
            link(table(pcid, 0), (TABLES + 0x1_8000) | P | RW);
            link(table(pcid, 0) + 8, table(pcid, 1) | P | RW | US);
            link(table(pcid, 1), table(pcid, 2) | P | RW | US);
        }
        link(TABLES + 0x1_8000, P | RW | PS);
        for frame in (FRAMES..FRAMES + 0x1_0000)
            .chain(2 << 20..(2 << 20) + 0x1_0000)
            .chain(4 << 20..(4 << 20) + 0x1_0000)
            .step_by(0x1000)
        {
            link(frame, frame);
            // mov eax, frame; ret
            put(
                &memory,
                frame + 16,
                &[&[0xb8][..], &(frame as u32).to_le_bytes(), &[0xc3]].concat(),
            );
        }
        put(&memory, CODE, &program());
        let handler = assemble(64, CODE + 0x1000, |a| {
            a.mov(qword_ptr(MAIL + 24), -1)?;
            a.mov(rax, CODE)?;
            a.jmp(rax)
        });
        put(&memory, CODE + 0x1000, &handler);
        put(&memory, IDT + 14 * 16, &gate64(CODE + 0x1000, 8, 0, 0, 14));
        let mut vcpu = guest::long_vcpu(&memory, 0);
        let mut state = vcpu.state().unwrap();
        state.system.cr3 = table(0, 0);
        state.system.cr4 = CR4 | PCIDE;
        state.system.gdtr.base = GDT;
        vcpu.set_state(&state).unwrap();
        Self {
            memory,
            vcpu,
            random: Random::new("tlb"),
            spaces: Default::default(),
            global: Default::default(),
            current: 0,
            cr4: CR4 | PCIDE,
            wp: true,
            low: 0,
            log: Vec::new(),
        }
    }

    /// The guest does a command; what it says about it.
    fn command(&mut self, number: u64, first: u64, second: u64) -> u64 {
        for (slot, value) in (0..).zip([number, first, second]) {
            put(&self.memory, MAIL + slot * 8, &value.to_le_bytes());
        }
        let exit = self.vcpu.run().unwrap();
        assert!(matches!(exit, Exit::PortOut { port: 0x10, .. }), "{exit:?}");
        word(&self.memory, MAIL + 24)
    }

    fn note(&mut self, text: String) {
        if self.log.len() == 30 {
            self.log.remove(0);
        }
        self.log.push(text);
    }

    /// Everything that may be taken up now is.
    fn take_up(&mut self) {
        let space = &mut self.spaces[self.current];
        space.table_cached |= space.pde & (P | PS) == P;
        for page in 0..PAGES {
            let by_table = space.table_cached.then(|| space.by_table(page)).flatten();
            for entry in space.present(page).into_iter().chain(by_table) {
                if entry.rights & G != 0 && self.cr4 & PGE != 0 {
                    self.global[page].insert(entry);
                } else {
                    space.cached[page].insert(entry);
                }
            }
        }
    }

    fn forget_space(&mut self, pcid: usize) {
        self.spaces[pcid].cached = Default::default();
        self.spaces[pcid].table_cached = false;
    }

    fn forget_all(&mut self, with_global: bool) {
        for pcid in 0..PCIDS.len() {
            self.forget_space(pcid);
        }
        if with_global {
            self.global = Default::default();
        }
    }

    /// The translations of the page that holds an address: all of a large page's.
    fn forget_page(&mut self, pcid: usize, page: usize, with_global: bool) {
        let space = &mut self.spaces[pcid];
        space.table_cached = false;
        for other in 0..PAGES {
            let keep = |entry: &Entry| other != page && !entry.large;
            space.cached[other].retain(keep);
            if with_global {
                self.global[other].retain(keep);
            }
        }
    }

    fn change_tables(&mut self) {
        let pcid = self.random.below(3) as usize;
        let random = &mut self.random;
        let mut rights = P;
        for bit in [RW, US] {
            if random.flip() {
                rights |= bit;
            }
        }
        for bit in [XD, G] {
            if random.once_in(3) {
                rights |= bit;
            }
        }
        if random.once_in(4) {
            let pde = match random.below(5) {
                0 => 0,
                1 | 2 => random.pick(&LARGE_FRAMES) | rights | PS,
                _ => table(pcid, 3) | P | RW | US,
            };
            self.spaces[pcid].pde = pde;
            put(&self.memory, table(pcid, 2), &pde.to_le_bytes());
            self.note(format!("PDE of {pcid} = {pde:x}"));
        } else {
            let page = random.below(PAGES as u64) as usize;
            let frame = FRAMES + random.below(16) * 0x1000;
            let pte = if random.once_in(6) { 0 } else { frame | rights };
            self.spaces[pcid].ptes[page] = pte;
            put(
                &self.memory,
                table(pcid, 3) + page as u64 * 8,
                &pte.to_le_bytes(),
            );
            self.note(format!("PTE {page} of {pcid} = {pte:x}"));
        }
    }

    /// Anywhere in a page.
    fn random_address(&mut self) -> (usize, u64) {
        let page = self.random.below(PAGES as u64);
        (page as usize, REGION + page * 0x1000)
    }

    fn invalidate(&mut self) {
        let what = self.random.below(7);
        let (page, linear) = self.random_address();
        match what {
            0 | 1 => {
                let linear = linear + self.random.below(0x1000);
                self.note(format!("INVLPG {linear:x}"));
                self.command(3, linear, 0);
                let current = self.current;
                self.forget_page(current, page, true);
            }
            2 | 3 => {
                let to = self.random.below(3) as usize;
                let keep = self.random.flip();
                // Without PCIDs all are PCID 0, and the low bits are PWT and PCD.
                let pcids = self.cr4 & PCIDE != 0;
                self.low = if pcids {
                    0
                } else {
                    self.random.pick(&[0, 8, 0x18])
                };
                let low = if pcids {
                    PCIDS[to] | u64::from(keep) << 63
                } else {
                    self.low
                };
                let to = if pcids { to } else { 0 };
                self.note(format!("MOV CR3 {to} keep {keep}"));
                self.command(4, table(to, 0) | low, 0);
                self.current = to;
                if !pcids || !keep {
                    self.forget_space(to);
                }
            }
            4 => self.invpcid(page, linear),
            5 => self.change_cr4(),
            _ => {
                self.wp = !self.wp;
                self.note(format!("CR0.WP = {}", self.wp));
                self.command(7, 0x8000_0033 | u64::from(self.wp) << 16, 0);
            }
        }
    }

    fn invpcid(&mut self, page: usize, linear: u64) {
        let kind = self.random.below(4);
        let pcids = self.cr4 & PCIDE != 0;
        let pcid = if pcids {
            self.random.below(3) as usize
        } else {
            0
        };
        put(&self.memory, MAIL + 32, &PCIDS[pcid].to_le_bytes());
        put(&self.memory, MAIL + 40, &linear.to_le_bytes());
        self.note(format!("INVPCID {kind} of {pcid}, {linear:x}"));
        self.command(5, kind, 0);
        match kind {
            0 => self.forget_page(pcid, page, false),
            1 => self.forget_space(pcid),
            _ => self.forget_all(kind == 2),
        }
    }

    fn change_cr4(&mut self) {
        let bit = self.random.pick(&[PGE, PCIDE, SMEP, SMAP, SMAP]);
        // PCIDs are switched on with PCID 0 in CR3; off, so that what is current stays so.
        if bit == PCIDE && (self.current != 0 || self.low != 0) {
            return;
        }
        self.cr4 ^= bit;
        self.note(format!("CR4 = {:x}", self.cr4));
        self.command(6, self.cr4, 0);
        if bit == PGE || (bit == PCIDE && self.cr4 & PCIDE == 0) {
            self.forget_all(true);
        } else if bit == SMEP && self.cr4 & SMEP != 0 {
            let current = self.current;
            self.forget_space(current);
        }
    }

    /// Whether a supervisor without RFLAGS.AC may.
    fn may(&self, entry: Entry, access: Access) -> bool {
        let user = entry.rights & US != 0;
        let smap = user && self.cr4 & SMAP != 0;
        match access {
            Access::Read => !smap,
            Access::Write => !smap && (entry.rights & RW != 0 || !self.wp),
            Access::Fetch => entry.rights & XD == 0 && !(user && self.cr4 & SMEP != 0),
        }
    }

    fn access(&mut self) {
        let (page, linear) = self.random_address();
        let access = self
            .random
            .pick(&[Access::Read, Access::Write, Access::Fetch]);
        let stamp = self.random.next() | 1;
        let result = self.command(access as u64, linear, stamp);
        let space = &self.spaces[self.current];
        let now = space.present(page);
        let mut may_fault = now.is_none();
        let mut frames = HashSet::new();
        let cached = space.cached[page].iter().chain(&self.global[page]).copied();
        for entry in cached.chain(now) {
            if self.may(entry, access) {
                frames.insert(entry.frame);
            } else {
                may_fault = true;
            }
        }
        let seen = match (result, access) {
            (FAULTED, _) => None,
            (frame, Access::Read | Access::Fetch) => Some(frame),
            (_, Access::Write) => frames
                .iter()
                .copied()
                .find(|frame| word(&self.memory, frame + 8) == stamp),
        };
        let good = match seen {
            None => result == FAULTED && may_fault,
            Some(frame) => frames.contains(&frame),
        };
        assert!(
            good,
            "{access:?} of page {page} in {}: {seen:x?}, may be {frames:x?} or fault {may_fault}; before: {:#?}",
            self.current, self.log
        );
        self.note(format!("{access:?} {page}: {seen:x?}"));
        if seen.is_none() {
            // A page fault drops what is cached of its address (SDM 3, 4.10.4.1). Of a large page
            // there may be more: it is not said that they go too.
            self.spaces[self.current].cached[page].clear();
            self.spaces[self.current].table_cached = false;
            self.global[page].clear();
        }
    }
}

#[test]
fn no_translation_outlives_its_invalidation() {
    let mut test = Test::new();
    // Up to the first command.
    assert!(matches!(test.vcpu.run().unwrap(), Exit::PortOut { .. }));
    for _ in 0..cases(150_000, 5_000_000) {
        test.take_up();
        match test.random.below(8) {
            0 | 1 => test.change_tables(),
            2 => test.invalidate(),
            _ => test.access(),
        }
    }
}
