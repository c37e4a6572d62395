//! Page tables against a model of the Intel SDM's chapter "Paging" (volume 3, 4.3 to 4.8): what
//! an access gives, its error code, CR2, and the accessed and dirty bits.
//!
//! Where the SDM leaves freedom: a walk that ends in a fault may have set accessed bits in the
//! entries above the one that faults, or none; CR2 of a descriptor's accessed bit being set may
//! be any byte of the descriptor.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod guest;

use std::sync::Arc;

use cpu_soft::{Model, table};
use guest::random::{Random, cases};
use guest::{flat, gate64, put, word};
use guest_memory::{GuestMemory, GuestPhysAddr};
use vcpu::{DescriptorTable, Exit, Segment, Vcpu, VcpuState};

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const XD: u64 = 1 << 63;

/// Roots by levels, and the tables that map the first 2 MiB to themselves.
const PML5: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const PD: u64 = 0x4000;
const PT: u64 = 0x5000;
const PD32: u64 = 0x6000;
const PT32: u64 = 0x7000;
const PDPT_PAE: u64 = 0x8000;
/// The tables under test: those of levels 4, 3, 2 and 1.
const TESTED: [u64; 5] = [0, 0x1_3000, 0x1_2000, 0x1_1000, 0x1_0000];
/// The page under test, and what is in it: data at 0x800, UD2 at 0xf00, an LDT at 0.
const PAGE: u64 = 0x2_0000;
const GDT: u64 = 0x3_0000;
const IDT64: u64 = 0x3_1000;
const IDT32: u64 = 0x3_2000;
const TSS: u64 = 0x3_3000;
const HANDLERS: u64 = 0x3_5000;
const CODE: u64 = 0x3_6000;
const STACK: u64 = 0x3_8000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Two,
    Pae,
    Four,
    Five,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Fetch,
    /// A segment register is loaded from an LDT in the page, by an entry that is marked
    /// accessed or must be.
    DescriptorRead,
    DescriptorWrite,
}

const ACCESSES: [Access; 5] = [
    Access::Read,
    Access::Write,
    Access::Fetch,
    Access::DescriptorRead,
    Access::DescriptorWrite,
];

/// One case: the entries are those of the levels from the root's down, as many as there are.
#[derive(Debug, Clone)]
struct Case {
    mode: Mode,
    access: Access,
    user: bool,
    wp: bool,
    pse: bool,
    smep: bool,
    smap: bool,
    ac: bool,
    nxe: bool,
    linear: u64,
    entries: Vec<u64>,
}

/// What the processor is, as CPUID says.
#[derive(Debug, Clone, Copy)]
struct Features {
    maxphyaddr: u32,
    gigabyte_pages: bool,
    pse36: bool,
}

impl Features {
    fn of(model: Model) -> Self {
        let cpuid = table(model, 0, 1);
        Self {
            maxphyaddr: cpuid.answer(0x8000_0008, 0).eax & 0xff,
            gigabyte_pages: cpuid.answer(0x8000_0001, 0).edx & (1 << 26) != 0,
            pse36: cpuid.answer(1, 0).edx & (1 << 17) != 0,
        }
    }
}

/// Bits `high` to `low`.
fn bits(high: u32, low: u32) -> u64 {
    (low..=high).fold(0, |mask, bit| mask | 1 << bit)
}

/// The level of `entries[0]`.
fn top(mode: Mode) -> u32 {
    match mode {
        Mode::Two | Mode::Pae => 2,
        Mode::Four => 4,
        Mode::Five => 5,
    }
}

/// The reserved bits of a present entry: SDM 3, tables 4-4 to 4-6 (32-bit), 4-8 to 4-11 (PAE),
/// 4-13 to 4-20 (4- and 5-level).
fn reserved(case: &Case, level: u32, entry: u64, features: Features) -> u64 {
    let large = level > 1 && entry & PS != 0;
    let m = features.maxphyaddr;
    if case.mode == Mode::Two {
        return match (large && case.pse, features.pse36) {
            (false, _) => 0,
            (true, true) => bits(21, m.min(40) - 19),
            (true, false) => bits(21, 13),
        };
    }
    let mut mask = match case.mode {
        Mode::Pae => bits(62, m),
        _ => bits(51, m),
    };
    if !case.nxe {
        mask |= XD;
    }
    match level {
        4 | 5 => mask |= PS,
        3 if large && features.gigabyte_pages => mask |= bits(29, 13),
        3 if large => mask |= PS,
        2 if large => mask |= bits(20, 13),
        _ => {}
    }
    mask
}

/// Which of the entries a walk uses, and what it ends with: the error code's P and RSVD bits.
#[derive(Debug, Clone, Copy)]
struct Walk {
    used: usize,
    error: Option<u32>,
}

fn walk(case: &Case, features: Features) -> Walk {
    let mut level = top(case.mode);
    for (index, &entry) in case.entries.iter().enumerate() {
        if entry & P == 0 {
            return Walk {
                used: index,
                error: Some(0),
            };
        }
        if entry & reserved(case, level, entry, features) != 0 {
            return Walk {
                used: index,
                error: Some(1 | 8),
            };
        }
        let pse = case.mode != Mode::Two || case.pse;
        if level == 1 || (level <= 3 && entry & PS != 0 && pse) {
            return Walk {
                used: index + 1,
                error: None,
            };
        }
        level -= 1;
    }
    unreachable!("the last entry is of level 1")
}

/// One access to the page: `write`, `fetch`, and whether it is made by the user's rights.
fn allowed(case: &Case, used: &[u64], write: bool, fetch: bool, implicit: bool) -> bool {
    let all = |bit: u64| used.iter().all(|entry| entry & bit != 0);
    let user_page = all(US);
    let writable = all(RW);
    let never = case.nxe && case.mode != Mode::Two && used.iter().any(|entry| entry & XD != 0);
    if case.user && !implicit {
        return user_page && (!write || writable) && !(fetch && never);
    }
    if fetch {
        return !(never || (user_page && case.smep));
    }
    let smap = case.smap && user_page && (implicit || !case.ac);
    !smap && (!write || writable || !case.wp)
}

/// What the SDM says the access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Done { dirty: bool },
    Fault { error: u32 },
}

fn verdict(case: &Case, features: Features) -> (Verdict, Walk) {
    let walk = walk(case, features);
    let implicit = matches!(
        case.access,
        Access::DescriptorRead | Access::DescriptorWrite
    );
    let fetch = case.access == Access::Fetch;
    let id = case.smep || (case.nxe && case.mode != Mode::Two);
    let code = |present: u32, write: bool| {
        present
            | u32::from(write) << 1
            | u32::from(case.user && !implicit) << 2
            | u32::from(fetch && id) << 4
    };
    // A descriptor is read before it is marked.
    let steps: &[bool] = match case.access {
        Access::Write => &[true],
        Access::DescriptorWrite => &[false, true],
        _ => &[false],
    };
    for &write in steps {
        if let Some(error) = walk.error {
            return (
                Verdict::Fault {
                    error: code(error, write),
                },
                walk,
            );
        }
        if !allowed(case, &case.entries[..walk.used], write, fetch, implicit) {
            return (
                Verdict::Fault {
                    error: code(1, write),
                },
                walk,
            );
        }
    }
    let dirty = steps.contains(&true);
    (Verdict::Done { dirty }, walk)
}

struct Machine {
    memory: Arc<GuestMemory>,
    vcpu: Box<dyn Vcpu>,
    blank: VcpuState,
}

fn entry_bytes(mode: Mode) -> u64 {
    if mode == Mode::Two { 4 } else { 8 }
}

impl Machine {
    fn new(model: Model) -> Self {
        let memory = GuestMemory::new(8 << 20).unwrap();
        memory.add_ram(GuestPhysAddr(0), 2 << 20).unwrap();
        let memory = Arc::new(memory);
        let all = P | RW | US;
        let link = |at: u64, entry: u64| put(&memory, at, &entry.to_le_bytes());
        link(PML5, PML4 | all);
        link(PML4, PDPT | all);
        link(PDPT, PD | all);
        link(PDPT_PAE, PD | P);
        link(PD, PT | all);
        put(&memory, PD32, &((PT32 | all) as u32).to_le_bytes());
        let gdt: [u64; 8] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0,
            0x00cf_9b00_0000_ffff,
        ];
        for (index, entry) in (0..).zip(gdt) {
            link(GDT + index * 8, entry);
        }
        for vector in 0..32 {
            let at = HANDLERS + vector;
            put(&memory, IDT64 + vector * 16, &gate64(at, 8, 0, 0, 14));
            let gate = (at & 0xffff) | 0x38 << 16 | 0x8e00 << 32 | (at >> 16) << 48;
            link(IDT32 + vector * 8, gate);
            put(&memory, at, &[0xf4]);
        }
        // An LDT: data of DPL 3, marked accessed and not.
        link(PAGE + 8, 0x00cf_f300_0000_ffff);
        put(&memory, PAGE + 0xf00, &[0x0f, 0x0b]);
        let vcpu = guest::vcpu_of(model, &memory, 0);
        let blank = vcpu.state().unwrap();
        Self {
            memory,
            vcpu,
            blank,
        }
    }

    /// Maps the first 2 MiB; the page of code is the user's if it runs there.
    fn map_low(&self, user: bool) {
        for page in 0..512_u64 {
            let is_code = page == CODE >> 12;
            let rights = P | RW | A | D | if is_code && user { US } else { 0 };
            put(
                &self.memory,
                PT + page * 8,
                &(page << 12 | rights).to_le_bytes(),
            );
            let entry = (page << 12 | rights) as u32;
            put(&self.memory, PT32 + page * 4, &entry.to_le_bytes());
        }
    }

    /// Where the entries of a case are.
    fn places(case: &Case) -> Vec<u64> {
        let bytes = entry_bytes(case.mode);
        let (root, index_bits) = match case.mode {
            Mode::Two => (PD32, 10),
            Mode::Pae => (TESTED[2], 9),
            Mode::Four => (PML4, 9),
            Mode::Five => (PML5, 9),
        };
        let top = top(case.mode);
        (1..=top)
            .rev()
            .map(|level| {
                let shift = 12 + index_bits * (level - 1);
                let index = case.linear >> shift & ((1 << index_bits) - 1);
                let table = if level == top {
                    root
                } else {
                    TESTED[level as usize]
                };
                table + index * bytes
            })
            .collect()
    }

    fn write_entry(&self, mode: Mode, at: u64, entry: u64) {
        let bytes = entry.to_le_bytes();
        put(&self.memory, at, &bytes[..entry_bytes(mode) as usize]);
    }

    fn state(&self, case: &Case) -> VcpuState {
        let long = matches!(case.mode, Mode::Four | Mode::Five);
        let mut state = self.blank.clone();
        let s = &mut state.system;
        let bit = |on: bool, bit: u32| u64::from(on) << bit;
        s.cr0 = 0x8000_0031 | bit(case.wp, 16);
        s.cr3 = match case.mode {
            Mode::Two => PD32,
            Mode::Pae => PDPT_PAE,
            Mode::Four => PML4,
            Mode::Five => PML5,
        };
        s.cr4 = bit(case.pse, 4)
            | bit(case.mode != Mode::Two, 5)
            | bit(case.mode == Mode::Five, 12)
            | bit(case.smep, 20)
            | bit(case.smap, 21);
        s.efer = bit(case.nxe, 11) | if long { 0x500 } else { 0 };
        let dpl = if case.user { 3 } else { 0 };
        let data = if case.user { 0x23 } else { 0x10 };
        s.segments = [flat(data, 3, false, dpl); 6];
        let code = match (long, case.user) {
            (true, false) => 8,
            (true, true) => 0x2b,
            (false, false) => 0x38,
            (false, true) => 0x1b,
        };
        s.segments[1] = flat(code, 11, long, dpl);
        s.gdtr = DescriptorTable {
            base: GDT,
            limit: 63,
        };
        s.idtr = DescriptorTable {
            base: if long { IDT64 } else { IDT32 },
            limit: 0x1ff,
        };
        let system = Segment {
            present: true,
            ..Segment::default()
        };
        s.tr = Segment {
            base: TSS,
            limit: 0x67,
            kind: 11,
            ..system
        };
        s.ldtr = Segment {
            selector: 0x50,
            base: case.linear & !0xfff,
            limit: 0xff,
            kind: 2,
            ..system
        };
        state.registers.rip = CODE;
        state.registers.rflags = 2 | bit(case.ac, 18);
        let general = &mut state.registers.general;
        general[4] = STACK;
        general[3] = case.linear & !0xfff
            | if case.access == Access::Fetch {
                0xf00
            } else {
                0x800
            };
        general[0] = if case.access == Access::DescriptorRead {
            0x0f
        } else {
            0x17
        };
        state
    }

    /// The instruction that makes an access; the same bytes in 32- and 64-bit code.
    fn instruction(access: Access) -> &'static [u8] {
        match access {
            Access::Read => &[0x8b, 0x0b, 0x0f, 0x0b],
            Access::Write => &[0x89, 0x03, 0x0f, 0x0b],
            Access::Fetch => &[0xff, 0xe3, 0x0f, 0x0b],
            Access::DescriptorRead | Access::DescriptorWrite => &[0x8e, 0xc0, 0x0f, 0x0b],
        }
    }

    fn check(&mut self, case: &Case, features: Features) {
        let long = matches!(case.mode, Mode::Four | Mode::Five);
        let code_at = CODE + case.access as u64 * 16;
        let places = Self::places(case);
        for (&at, &entry) in places.iter().zip(&case.entries) {
            self.write_entry(case.mode, at, entry);
        }
        if case.mode == Mode::Pae {
            let at = PDPT_PAE + (case.linear >> 30) * 8;
            put(&self.memory, at, &(TESTED[2] | P).to_le_bytes());
        }
        put(
            &self.memory,
            PAGE + 16,
            &0x00cf_f200_0000_ffff_u64.to_le_bytes(),
        );
        let mut state = self.state(case);
        state.registers.rip = code_at;
        // The stack of CPL 0, in the 64- or the 32-bit form.
        if long {
            put(&self.memory, TSS + 4, &STACK.to_le_bytes());
        } else {
            put(&self.memory, TSS + 4, &(STACK | 0x10 << 32).to_le_bytes());
        }
        self.vcpu.set_state(&state).unwrap();
        let exit = self.vcpu.run().unwrap();
        assert_eq!(exit, Exit::Halt, "{case:x?}");
        let after = self.vcpu.state().unwrap();
        let vector = after.registers.rip - HANDLERS - 1;
        let sp = after.registers.general[4];
        let slot = |n: u64| {
            if long {
                word(&self.memory, sp + n * 8)
            } else {
                word(&self.memory, sp + n * 4) & 0xffff_ffff
            }
        };
        let (verdict, walk) = verdict(case, features);
        match verdict {
            Verdict::Done { .. } => {
                let at = if case.access == Access::Fetch {
                    state.registers.general[3]
                } else {
                    code_at + 2
                };
                assert_eq!(
                    (vector, slot(0)),
                    (6, at),
                    "not done: {case:x?}, error {:x}",
                    slot(0)
                );
            }
            Verdict::Fault { error } => {
                assert_eq!(
                    (vector, slot(0)),
                    (14, u64::from(error)),
                    "{case:x?}, {walk:?}"
                );
                let (low, high) = match case.access {
                    Access::DescriptorRead => (8, 8),
                    Access::DescriptorWrite if error & 2 != 0 => (16, 23),
                    Access::DescriptorWrite => (16, 16),
                    Access::Fetch => (0xf00, 0xf00),
                    _ => (0x800, 0x800),
                };
                let offset = after.system.cr2.wrapping_sub(case.linear & !0xfff);
                assert!(
                    (low..=high).contains(&offset),
                    "CR2 {:x}: {case:x?}",
                    after.system.cr2
                );
                let at = if case.access == Access::Fetch {
                    state.registers.general[3]
                } else {
                    code_at
                };
                assert_eq!(slot(1), at, "where it faults: {case:x?}");
            }
        }
        self.check_marks(case, &places, verdict, walk);
        for at in places {
            self.write_entry(case.mode, at, 0);
        }
    }

    /// Accessed and dirty bits: SDM 3, 4.8.
    fn check_marks(&self, case: &Case, places: &[u64], verdict: Verdict, walk: Walk) {
        for (index, (&at, &before)) in places.iter().zip(&case.entries).enumerate() {
            let mask = if case.mode == Mode::Two {
                0xffff_ffff
            } else {
                u64::MAX
            };
            let after = word(&self.memory, at) & mask;
            let leaf = index + 1 == walk.used;
            let good = match verdict {
                Verdict::Done { dirty } if index < walk.used => {
                    after == before | A | if leaf && dirty { D } else { 0 }
                }
                Verdict::Fault { .. } if index < walk.used => {
                    after == before || after == before | A
                }
                _ => after == before,
            };
            assert!(
                good,
                "entry {index} was {before:x}, is {after:x}: {case:x?}, {verdict:?}"
            );
        }
    }
}

/// An entry of a level: rights mostly given, reserved bits rarely set, the ignored ones at will.
fn random_entry(random: &mut Random, mode: Mode, level: u32) -> u64 {
    let mut entry = 0;
    for (bit, out_of) in [(P, 16), (RW, 4), (US, 4)] {
        if !random.once_in(out_of) {
            entry |= bit;
        }
    }
    // PWT, PCD, G and what software may use.
    entry |= random.next() & (bits(4, 3) | bits(6, 5) | bits(11, 8));
    let large = level > 1 && random.once_in(if level > 3 { 40 } else { 4 });
    if large || (level == 1 && random.flip()) {
        entry |= PS;
    }
    if mode != Mode::Two {
        if random.once_in(6) {
            entry |= XD;
        }
        if mode != Mode::Pae || random.once_in(20) {
            entry |= random.next() & random.next() & bits(62, 52);
        }
        if random.once_in(20) {
            entry |= 1 << (40 + random.below(12));
        }
    }
    if large {
        // Bit 12 is PAT; the others up to the frame are reserved.
        entry |= random.next() & (1 << 12);
        if random.once_in(5) {
            let end = match (mode, level) {
                (Mode::Two, _) => 22,
                (_, 2) => 21,
                _ => 30,
            };
            let first = if mode == Mode::Two { 21 } else { 13 };
            entry |= 1 << (first + random.below(end - first));
        }
        return entry;
    }
    entry
        | if level > 1 {
            TESTED[level as usize - 1]
        } else {
            PAGE
        }
}

fn random_linear(random: &mut Random, mode: Mode) -> u64 {
    let low = random.below(512) << 21 | PAGE;
    match mode {
        Mode::Two => (1 + random.below(1023)) << 22 | PAGE,
        Mode::Pae => (1 + random.below(3)) << 30 | low,
        Mode::Four => {
            let linear = (1 + random.below(511)) << 39 | random.below(512) << 30 | low;
            (linear << 16) as i64 as u64 >> 16
                | if linear >> 47 & 1 != 0 {
                    0xffff << 48
                } else {
                    0
                }
        }
        Mode::Five => {
            let linear = (1 + random.below(511)) << 48 | random.below(1 << 18) << 30 | low;
            linear | if linear >> 56 & 1 != 0 { 0xfe << 56 } else { 0 }
        }
    }
}

fn random_case(random: &mut Random, mode: Mode, user: bool) -> Case {
    let mut entries: Vec<u64> = (1..=top(mode))
        .rev()
        .map(|level| random_entry(random, mode, level))
        .collect();
    let long = matches!(mode, Mode::Four | Mode::Five);
    let pse = long || random.flip();
    if mode == Mode::Two && !pse && entries[0] & PS != 0 {
        // The bit means nothing: the entry refers to a table.
        entries[0] = entries[0] & 0xfff | TESTED[1];
    }
    Case {
        mode,
        access: random.pick(&ACCESSES),
        user,
        wp: random.flip(),
        pse,
        smep: random.flip(),
        smap: random.flip(),
        ac: random.flip(),
        nxe: !random.once_in(4),
        // What a page of 1 GiB holds is in its first 2 MiB.
        linear: if long && entries[entries.len() - 3] & PS != 0 {
            random_linear(random, mode) & !(0x1ff << 21)
        } else {
            random_linear(random, mode)
        },
        entries,
    }
}

const MODES: [Mode; 4] = [Mode::Two, Mode::Pae, Mode::Four, Mode::Five];

fn prepare(model: Model, user: bool) -> Machine {
    let machine = Machine::new(model);
    machine.map_low(user);
    for access in ACCESSES {
        put(
            &machine.memory,
            CODE + access as u64 * 16,
            Machine::instruction(access),
        );
    }
    machine
}

#[test]
fn random_tables_are_walked_as_the_manual_says() {
    let mut random = Random::new("paging");
    for (model, user) in [
        (Model::Max, false),
        (Model::Max, true),
        (Model::Qemu64, false),
    ] {
        let features = Features::of(model);
        let mut machine = prepare(model, user);
        for mode in MODES {
            for _ in 0..cases(15_000, 1_000_000) {
                let case = random_case(&mut random, mode, user);
                machine.check(&case, features);
            }
        }
    }
}

/// Every combination of P, R/W, U/S and XD at two levels and everything that is switched on or
/// off, for every access: of the two lowest levels, or of any two with `RATITE_FULL=1`.
#[test]
fn all_rights_of_two_levels_together() {
    let features = Features::of(Model::Max);
    let full = cases(0, 1) == 1;
    let mut random = Random::new("rights");
    for user in [false, true] {
        let mut machine = prepare(Model::Max, user);
        for mode in MODES {
            let levels = top(mode) as usize;
            let pairs = if full { levels - 1 } else { 1 };
            for pair in 0..pairs {
                for number in 0..(1_u64 << 8) * 32 * 5 {
                    // The default takes a seventh of them, another each time.
                    if !full && !random.once_in(7) {
                        continue;
                    }
                    let case = case_of(mode, user, levels - 2 - pair, number);
                    machine.check(&case, features);
                }
            }
        }
    }
}

fn case_of(mode: Mode, user: bool, first: usize, number: u64) -> Case {
    let flag = |bit: u32| number >> bit & 1 != 0;
    let rights = |n: u64| {
        let xd = if n & 8 != 0 && mode != Mode::Two {
            XD
        } else {
            0
        };
        n & 7 | xd
    };
    let mut entries: Vec<u64> = (1..=top(mode))
        .rev()
        .map(|level| {
            P | RW
                | US
                | if level > 1 {
                    TESTED[level as usize - 1]
                } else {
                    PAGE
                }
        })
        .collect();
    entries[first] = entries[first] & !7 | rights(number & 15);
    entries[first + 1] = entries[first + 1] & !7 | rights(number >> 4 & 15);
    Case {
        mode,
        access: ACCESSES[(number >> 13) as usize % 5],
        user,
        wp: flag(8),
        pse: true,
        smep: flag(9),
        smap: flag(10),
        ac: flag(11),
        nxe: flag(12),
        linear: match mode {
            Mode::Two => 0x8040_0000 | PAGE,
            Mode::Pae => 0x8020_0000 | PAGE,
            Mode::Four => 0xffff_9234_5000_0000 & !0x3fff_ffff | PAGE,
            Mode::Five => 0xff12_3456_4000_0000 & !0x3fff_ffff | PAGE,
        },
        entries,
    }
}
