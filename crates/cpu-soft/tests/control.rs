//! Control and debug registers, and the other instructions of supervisors, against tables from
//! the Intel SDM (volume 2, the instructions' "Exceptions" sections; volume 3, 2.5 "Control
//! Registers", 4.1.2 "Paging-Mode Enabling", 17.2 "Debug Registers").
//!
//! Where the SDM leaves freedom: reserved bits of CR3 below the root are not looked at; MOV of
//! DR4 by a user where CR4.DE is set may be #UD or #GP; writes of EFER.LMA are ignored.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod guest;

use guest::machine::{GP, MODES, Machine, Mode, Outcome, UD, expect};
use guest::random::{Random, cases};
use guest::{CODE, DATA, GDT, TABLES, put};
use vcpu::VcpuState;

const PDPT_PAE: u64 = 0xb000;

/// What privilege an instruction needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// CPL 0, else #GP(0).
    Cpl0,
    /// CPL 0 and protected mode: #UD in real and virtual-8086 mode.
    Cpl0Protected,
    /// Protected mode, any CPL.
    Protected,
    /// CPL 0 if CR4.UMIP.
    Umip,
    /// The same, and protected mode.
    UmipProtected,
    /// 64-bit mode only.
    Long,
    /// 64-bit mode and CPL 0.
    LongCpl0,
    Nothing,
    Never,
}

#[test]
fn who_may_use_an_instruction() {
    // Bytes that are the same in every mode. DS:[DI], [EDI] and [RDI] are zero bytes at DATA or
    // in the first 64 KiB.
    let table: &[(&str, &[u8], Needs)] = &[
        ("mov eax, cr0", &[0x0f, 0x20, 0xc0], Needs::Cpl0),
        ("mov eax, cr2", &[0x0f, 0x20, 0xd0], Needs::Cpl0),
        ("mov eax, cr3", &[0x0f, 0x20, 0xd8], Needs::Cpl0),
        ("mov eax, cr4", &[0x0f, 0x20, 0xe0], Needs::Cpl0),
        ("mov cr2, eax", &[0x0f, 0x22, 0xd0], Needs::Cpl0),
        ("mov eax, cr1", &[0x0f, 0x20, 0xc8], Needs::Never),
        ("mov cr5, eax", &[0x0f, 0x22, 0xe8], Needs::Never),
        ("mov cr7, eax", &[0x0f, 0x22, 0xf8], Needs::Never),
        ("mov eax, dr0", &[0x0f, 0x21, 0xc0], Needs::Cpl0),
        ("mov dr3, eax", &[0x0f, 0x23, 0xd8], Needs::Cpl0),
        ("mov eax, dr4", &[0x0f, 0x21, 0xe0], Needs::Cpl0),
        ("mov eax, dr7", &[0x0f, 0x21, 0xf8], Needs::Cpl0),
        ("clts", &[0x0f, 0x06], Needs::Cpl0),
        ("lmsw ax", &[0x0f, 0x01, 0xf0], Needs::Cpl0),
        ("smsw ax", &[0x0f, 0x01, 0xe0], Needs::Umip),
        ("lgdt [di]", &[0x0f, 0x01, 0x15], Needs::Cpl0),
        ("lidt [di]", &[0x0f, 0x01, 0x1d], Needs::Cpl0),
        ("sgdt [di]", &[0x0f, 0x01, 0x05], Needs::Umip),
        ("sidt [di]", &[0x0f, 0x01, 0x0d], Needs::Umip),
        ("lldt bx", &[0x0f, 0x00, 0xd3], Needs::Cpl0Protected),
        ("ltr cx", &[0x0f, 0x00, 0xd9], Needs::Cpl0Protected),
        ("sldt ax", &[0x0f, 0x00, 0xc0], Needs::UmipProtected),
        ("str ax", &[0x0f, 0x00, 0xc8], Needs::UmipProtected),
        ("verr ax", &[0x0f, 0x00, 0xe0], Needs::Protected),
        ("verw ax", &[0x0f, 0x00, 0xe8], Needs::Protected),
        ("lar eax, bx", &[0x0f, 0x02, 0xc3], Needs::Protected),
        ("lsl eax, bx", &[0x0f, 0x03, 0xc3], Needs::Protected),
        ("invd", &[0x0f, 0x08], Needs::Cpl0),
        ("wbinvd", &[0x0f, 0x09], Needs::Cpl0),
        ("invlpg [di]", &[0x0f, 0x01, 0x3d], Needs::Cpl0),
        ("hlt", &[0xf4], Needs::Cpl0),
        ("rdmsr", &[0x0f, 0x32], Needs::Cpl0),
        ("wrmsr", &[0x0f, 0x30], Needs::Cpl0),
        ("swapgs", &[0x0f, 0x01, 0xf8], Needs::LongCpl0),
        ("rdtsc", &[0x0f, 0x31], Needs::Nothing),
        ("cpuid", &[0x0f, 0xa2], Needs::Nothing),
        ("rdfsbase eax", &[0xf3, 0x0f, 0xae, 0xc0], Needs::Long),
        ("wrgsbase ebx", &[0xf3, 0x0f, 0xae, 0xdb], Needs::Long),
        ("monitor", &[0x0f, 0x01, 0xc8], Needs::Never),
        ("mwait", &[0x0f, 0x01, 0xc9], Needs::Never),
        ("vmcall", &[0x0f, 0x01, 0xc1], Needs::Never),
        ("rsm", &[0x0f, 0xaa], Needs::Never),
        ("xsetbv", &[0x0f, 0x01, 0xd1], Needs::Cpl0),
        ("xgetbv", &[0x0f, 0x01, 0xd0], Needs::Nothing),
        ("stac", &[0x0f, 0x01, 0xcb], Needs::Cpl0Protected),
        ("clac", &[0x0f, 0x01, 0xca], Needs::Cpl0Protected),
    ];
    let mut machine = Machine::new();
    let mut count = 0;
    for &(name, bytes, needs) in table {
        for (mode, cpl) in MODES {
            for umip in [false, true] {
                let mut state = machine.state(mode, cpl);
                state.system.cr4 |= 1 << 18 | 1 << 16 | u64::from(umip) << 11;
                let mut code = bytes.to_vec();
                if name.contains("[di]") {
                    // An absolute address: 16 bits, 32 bits, or relative to RIP.
                    let at = DATA as u32;
                    match mode {
                        Mode::Real | Mode::Virtual86 => {
                            let last = code.len() - 1;
                            code[last] += 1;
                            code.extend_from_slice(&0x6800_u16.to_le_bytes());
                        }
                        Mode::Long => {
                            let behind = CODE as u32 + code.len() as u32 + 4;
                            code.extend_from_slice(&at.wrapping_sub(behind).to_le_bytes());
                        }
                        _ => code.extend_from_slice(&at.to_le_bytes()),
                    }
                }
                prepare(&machine, name, &mut state);
                let outcome = machine.run(mode, &state, &code);
                // STAC and CLAC raise #UD where others raise #GP.
                let alignment = name == "stac" || name == "clac";
                let denied = if alignment { UD } else { GP };
                let segmented = matches!(mode, Mode::Real | Mode::Virtual86);
                let real_stac = alignment && mode == Mode::Real;
                let wanted = match needs {
                    Needs::Never => Some(UD),
                    Needs::Long | Needs::LongCpl0 if mode != Mode::Long => Some(UD),
                    Needs::Cpl0Protected | Needs::UmipProtected | Needs::Protected
                        if segmented || real_stac =>
                    {
                        Some(UD)
                    }
                    Needs::Cpl0 | Needs::Cpl0Protected | Needs::LongCpl0 if cpl > 0 => Some(denied),
                    Needs::Umip | Needs::UmipProtected if umip && cpl > 0 => Some(GP),
                    _ => None,
                };
                expect(&outcome, wanted, &(name, mode, cpl, umip));
                count += 1;
            }
        }
    }
    println!("{count} cases");
}

/// Operands with which an instruction does nothing bad.
fn prepare(machine: &Machine, name: &str, state: &mut VcpuState) {
    put(&machine.memory, DATA, &[0; 16]);
    put(&machine.memory, 0x6800, &[0; 16]);
    let general = &mut state.registers.general;
    // LMSW must not clear PE by itself (it cannot), nor set it.
    general[0] = 0;
    general[1] = 0x174;
    general[2] = 0;
    general[3] = 0;
    match name {
        "lmsw ax" => general[0] = state.system.cr0 & 1,
        "ltr cx" => {
            put(
                &machine.memory,
                GDT + 0x30,
                &0x0000_8900_6000_0067_u64.to_le_bytes(),
            );
            put(
                &machine.memory,
                GDT + 0x50,
                &0x0000_8900_6000_0067_u64.to_le_bytes(),
            );
            put(&machine.memory, GDT + 0x58, &[0; 8]);
            general[1] = 0x50;
        }
        "xsetbv" | "xgetbv" => {
            general[0] = 1;
            general[1] = 0;
        }
        _ => {}
    }
}

/// MOV to CR0: SDM 2, "MOV—Move to/from Control Registers", and SDM 3, 4.1.2.
fn cr0_is_bad(s: &vcpu::SystemRegisters, mode: Mode, value: u64) -> bool {
    let bit = |n: u32| value >> n & 1 != 0;
    let (pe, nw, cd, pg) = (bit(0), bit(29), bit(30), bit(31));
    let was_paging = s.cr0 >> 31 != 0;
    let lme = s.efer & 0x100 != 0;
    let entering = pg && !was_paging && lme;
    value >> 32 != 0
        || (pg && !pe)
        || (nw && !cd)
        || (entering && (s.cr4 & 0x20 == 0 || s.segments[1].long || s.tr.kind & 8 == 0))
        || (!pg && was_paging && (mode == Mode::Long || s.cr4 >> 17 & 1 != 0))
}

#[test]
fn values_of_cr0() {
    let mut random = Random::new("CR0");
    let mut machine = Machine::new();
    put(&machine.memory, PDPT_PAE, &[0; 32]);
    for _ in 0..cases(20_000, 500_000) {
        let (mode, cpl) = random.pick(&[(Mode::Real, 0), (Mode::Protected, 0), (Mode::Long, 0)]);
        let mut state = machine.state(mode, cpl);
        let s = &mut state.system;
        if mode != Mode::Long && random.flip() {
            s.efer = 0x100;
        }
        if mode != Mode::Long {
            s.cr4 |= random.pick(&[0, 0x20]);
        } else {
            s.cr4 |= random.pick(&[0, 1 << 17]);
        }
        if mode == Mode::Protected && random.once_in(3) {
            s.tr.kind = 3;
        }
        if mode == Mode::Protected && random.once_in(3) {
            s.segments[1].long = true;
            s.segments[1].big = true;
        }
        let mut value = s.cr0 ^ (1 << random.below(32)) ^ (1 << random.below(32));
        if random.flip() {
            value ^= random.next() & 0xe005_003e;
        }
        if random.once_in(8) {
            value ^= 1 << (32 + random.below(32));
        }
        if mode != Mode::Long {
            value &= 0xffff_ffff;
        }
        state.registers.general[0] = value;
        let turns_on = s.cr0 >> 31 == 0 && value >> 31 & 1 != 0;
        let bad = cr0_is_bad(s, mode, value);
        if turns_on && !bad {
            // What follows would need tables: it is the next test's.
            continue;
        }
        // Real to protected and back: the code goes on as it is, with its segments.
        if mode != Mode::Long && (s.cr0 ^ value) & 1 != 0 && !bad {
            continue;
        }
        let before = s.cr0;
        let outcome = machine.run(mode, &state, &[0x0f, 0x22, 0xc0]);
        let what = (mode, before, value, state.system.cr4, state.system.efer);
        expect(&outcome, bad.then_some(GP), &what);
        if let Outcome::Done(after) = outcome {
            // Reserved bits are ignored, ET is always one.
            assert_eq!(after.system.cr0, value & 0xe005_003f | 0x10, "{what:x?}");
        }
    }
}

#[test]
fn lmsw_sets_the_low_bits() {
    let mut machine = Machine::new();
    for (mode, cpl) in [(Mode::Protected, 0), (Mode::Long, 0)] {
        for old in 0..8_u64 {
            for value in 0..16_u64 {
                let mut state = machine.state(mode, cpl);
                state.system.cr0 = state.system.cr0 & !0xe | old << 1;
                state.registers.general[0] = value | 0xfff0;
                let before = state.system.cr0;
                let Outcome::Done(after) = machine.run(mode, &state, &[0x0f, 0x01, 0xf0]) else {
                    panic!("LMSW faulted");
                };
                assert_eq!(after.system.cr0, before & !0xe | value & 0xe);
            }
        }
    }
}

/// The bits of CR4 that CPUID's features give.
fn cr4_known() -> u64 {
    let cpuid = cpu_soft::table(cpu_soft::Model::Max, 0, 1);
    let (one, seven) = (cpuid.answer(1, 0), cpuid.answer(7, 0));
    let has = |register: u32, bit: u32, cr4: u32| u64::from(register >> bit & 1) << cr4;
    has(one.edx, 1, 0)
        | has(one.edx, 1, 1)
        | has(one.edx, 4, 2)
        | has(one.edx, 2, 3)
        | has(one.edx, 3, 4)
        | has(one.edx, 6, 5)
        | has(one.edx, 7, 6)
        | has(one.edx, 13, 7)
        | 1 << 8
        | has(one.edx, 24, 9)
        | has(one.edx, 25, 10)
        | has(seven.ecx, 2, 11)
        | has(seven.ecx, 16, 12)
        | has(one.ecx, 5, 13)
        | has(one.ecx, 6, 14)
        | has(seven.ebx, 0, 16)
        | has(one.ecx, 17, 17)
        | has(one.ecx, 26, 18)
        | has(seven.ebx, 7, 20)
        | has(seven.ebx, 20, 21)
        | has(seven.ecx, 3, 22)
}

#[test]
fn values_of_cr4() {
    let mut random = Random::new("CR4");
    let mut machine = Machine::new();
    let known = cr4_known();
    for _ in 0..cases(20_000, 500_000) {
        let (mode, cpl) = random.pick(&[(Mode::Real, 0), (Mode::Protected, 0), (Mode::Long, 0)]);
        let mut state = machine.state(mode, cpl);
        let s = &mut state.system;
        let long = mode == Mode::Long;
        // The code must go on: no SMEP where its page is the user's.
        let mut value = s.cr4 ^ random.next() & random.next() & known & !(1 << 20 | 1 << 21);
        if random.once_in(3) {
            value ^= 1 << random.below(if long { 64 } else { 32 });
        }
        if long && random.once_in(4) {
            s.cr3 |= 0x18;
        }
        let was = s.cr4;
        let changed = was ^ value;
        let bad = value & !known != 0
            || (long && (value & 0x20 == 0 || changed & 1 << 12 != 0))
            || (changed & value & 1 << 17 != 0 && (!long || s.cr3 & 0xfff != 0));
        if !bad && long && value & (1 << 20) != 0 {
            continue;
        }
        state.registers.general[0] = value;
        let cr3 = state.system.cr3;
        let outcome = machine.run(mode, &state, &[0x0f, 0x22, 0xe0]);
        expect(&outcome, bad.then_some(GP), &(mode, was, value, cr3));
        if let Outcome::Done(after) = outcome {
            assert_eq!(after.system.cr4, value);
        }
    }
}

#[test]
fn values_of_cr3_and_the_pointers_of_pae() {
    let mut machine = Machine::new();
    // 64-bit mode: bits from MAXPHYADDR up are reserved; bit 63 says "keep" with PCIDs.
    for bit in 0..64_u32 {
        for pcids in [false, true] {
            let mut state = machine.state(Mode::Long, 0);
            state.system.cr4 |= u64::from(pcids) << 17;
            // A root that is the same: low bits do not move it.
            if (12..40).contains(&bit) {
                continue;
            }
            state.registers.general[0] = TABLES | 1 << bit;
            let bad = (40..63).contains(&bit) || (bit == 63 && !pcids);
            let outcome = machine.run(Mode::Long, &state, &[0x0f, 0x22, 0xd8]);
            expect(&outcome, bad.then_some(GP), &(bit, pcids));
            if let Outcome::Done(after) = outcome {
                let kept = if bit == 63 { 0 } else { 1 << bit };
                assert_eq!(after.system.cr3, TABLES | kept);
            }
        }
    }
    // PAE: each bit of a present pointer; table 4-8.
    for bit in 1..64_u32 {
        for slot in 0..4_u64 {
            for present in [0, 1] {
                let mut state = machine.state(Mode::Protected, 0);
                for pointer in 0..4_u64 {
                    put(
                        &machine.memory,
                        PDPT_PAE + pointer * 8,
                        &0xc001_u64.to_le_bytes(),
                    );
                }
                for page in 0..4_u64 {
                    put(
                        &machine.memory,
                        0xc000 + page * 8,
                        &(page << 21 | 0x83).to_le_bytes(),
                    );
                }
                state.system.cr0 |= 1 << 31;
                state.system.cr4 |= 0x20;
                state.system.cr3 = PDPT_PAE;
                // The state is set with good pointers, then the bad one is loaded.
                machine.vcpu.set_state(&state).unwrap();
                let other = PDPT_PAE + 0x100;
                for pointer in 0..4_u64 {
                    let value: u64 = if pointer == slot {
                        0xc000 | present | 1 << bit
                    } else {
                        0xc001
                    };
                    put(&machine.memory, other + pointer * 8, &value.to_le_bytes());
                }
                state.registers.general[0] = other;
                let reserved = matches!(bit, 1 | 2 | 5..=8 | 40..=63);
                // A pointer elsewhere, or none, is harmless only where no code is.
                if slot == 0 && (present == 0 || !reserved) {
                    continue;
                }
                let outcome = machine.run(Mode::Protected, &state, &[0x0f, 0x22, 0xd8]);
                let bad = present == 1 && reserved;
                expect(&outcome, bad.then_some(GP), &(bit, slot, present));
                if let Outcome::Done(after) = outcome {
                    assert_eq!(after.system.cr3, other);
                }
            }
        }
    }
}

#[test]
fn values_of_cr8_dr6_dr7_efer_and_xcr0() {
    let mut machine = Machine::new();
    let run = |machine: &mut Machine, code: &[u8], rax: u64, change: &dyn Fn(&mut VcpuState)| {
        let mut state = machine.state(Mode::Long, 0);
        state.registers.general[0] = rax & 0xffff_ffff;
        state.registers.general[2] = rax >> 32;
        if code[0] == 0x0f && code[1] & 0xfe == 0x22 || code[0] == 0x44 {
            state.registers.general[0] = rax;
        }
        change(&mut state);
        machine.run(Mode::Long, &state, code)
    };
    for bit in 0..64_u32 {
        let value = 1 << bit;
        let outcome = run(&mut machine, &[0x44, 0x0f, 0x22, 0xc0], value, &|_| {});
        expect(&outcome, (bit > 3).then_some(GP), &("CR8", bit));
        if let Outcome::Done(after) = outcome {
            assert_eq!(after.system.cr8, value);
        }
        for (number, ones, writable) in [(6, 0xffff_0ff0, 0xe00f), (7, 0x400, 0xffff_23ff_u64)] {
            // GD would trap what follows; nothing follows.
            let code = [0x0f, 0x23, 0xc0 | number << 3];
            let outcome = run(&mut machine, &code, value, &|_| {});
            expect(&outcome, (bit > 31).then_some(GP), &("DR", number, bit));
            if let Outcome::Done(after) = outcome {
                let now = if number == 6 {
                    after.system.dr6
                } else {
                    after.system.dr7
                };
                assert_eq!(now, ones | value & writable, "DR{number} bit {bit}");
            }
        }
        let outcome = run(&mut machine, &[0x0f, 0x23, 0xc0], value, &|_| {});
        expect(&outcome, None, &("DR0", bit));
        // EFER: SCE, LME, LMA, NXE; with paging LME stays.
        let outcome = run(&mut machine, &[0x0f, 0x30], 0xd01 ^ value, &|state| {
            state.registers.general[1] = 0xc000_0080;
        });
        let bad = !matches!(bit, 0 | 10 | 11);
        expect(&outcome, bad.then_some(GP), &("EFER", bit));
        if let Outcome::Done(after) = outcome {
            assert_eq!(after.system.efer, (0xd01 ^ value) | 0x400);
        }
    }
    // XCR0: x87 always, AVX not without SSE, nothing that CPUID has not.
    for value in 0..64_u64 {
        for index in [0, 1] {
            for enabled in [false, true] {
                let outcome = run(&mut machine, &[0x0f, 0x01, 0xd1], value, &|state| {
                    state.registers.general[1] = index;
                    state.system.cr4 = state.system.cr4 & !(1 << 18) | u64::from(enabled) << 18;
                });
                let wanted = match (enabled, matches!(value, 1 | 3 | 7) && index == 0) {
                    (false, _) => Some(UD),
                    (true, false) => Some(GP),
                    (true, true) => None,
                };
                expect(&outcome, wanted, &("XCR0", value, index, enabled));
            }
        }
    }
}

#[test]
fn debug_registers_by_de_and_gd() {
    let mut machine = Machine::new();
    for (mode, cpl) in MODES {
        for number in 0..8_u8 {
            for write in [false, true] {
                for (de, gd) in [(false, false), (true, false), (false, true), (true, true)] {
                    let mut state = machine.state(mode, cpl);
                    state.system.cr4 |= u64::from(de) << 3;
                    state.system.dr7 = 0x400 | u64::from(gd) << 13;
                    state.system.dr6 = 0xffff_0ff0;
                    state.registers.general[0] = 0;
                    let alias = matches!(number, 4 | 5);
                    let code = [0x0f, if write { 0x23 } else { 0x21 }, 0xc0 | number << 3];
                    let outcome = machine.run(mode, &state, &code);
                    let what = (mode, cpl, number, write, de, gd);
                    // Several of them at once: the SDM does not order them.
                    let mut wanted = Vec::new();
                    if alias && de {
                        wanted.push(UD);
                    }
                    if cpl > 0 {
                        wanted.push(GP);
                    }
                    if gd {
                        wanted.push((1, u64::MAX));
                    }
                    match outcome {
                        Outcome::Done(_) => assert!(wanted.is_empty(), "{what:?}"),
                        Outcome::Fault(vector, error) => {
                            assert!(wanted.contains(&(vector, error)), "{what:?}: {vector}");
                            let after = machine.vcpu.state().unwrap().system;
                            let bd = after.dr6 >> 13 & 1;
                            assert_eq!(bd, u64::from(vector == 1), "DR6.BD {what:?}");
                            if vector == 1 {
                                assert_eq!(after.dr7 >> 13 & 1, 0, "GD goes: {what:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn tables_have_canonical_bases() {
    let mut machine = Machine::new();
    let edge = 1_u64 << 47;
    for code in [&[0x0f, 0x01, 0x10][..], &[0x0f, 0x01, 0x18]] {
        for (base, good) in [
            (0, true),
            (edge - 1, true),
            (1 << 62, false),
            (1 << 57, false),
            (!(edge - 1), true),
            (u64::MAX, true),
        ] {
            let mut state = machine.state(Mode::Long, 0);
            state.registers.general[0] = DATA;
            put(
                &machine.memory,
                DATA,
                &[&0x1ff_u16.to_le_bytes()[..], &base.to_le_bytes()].concat(),
            );
            let outcome = machine.run(Mode::Long, &state, code);
            expect(&outcome, (!good).then_some(GP), &(code, base));
            if let Outcome::Done(after) = outcome {
                let table = if code[2] == 0x10 {
                    after.system.gdtr
                } else {
                    after.system.idtr
                };
                assert_eq!((table.base, table.limit), (base, 0x1ff));
            }
        }
    }
    // In 16-bit operand size the base has 24 bits.
    let mut state = machine.state(Mode::Protected, 0);
    state.registers.general[0] = DATA;
    put(&machine.memory, DATA, &[0xff, 1, 0x78, 0x56, 0x34, 0x12]);
    let Outcome::Done(after) = machine.run(Mode::Protected, &state, &[0x66, 0x0f, 0x01, 0x10])
    else {
        panic!("LGDT faulted");
    };
    assert_eq!(after.system.gdtr.base, 0x34_5678);
}

#[test]
fn addresses_in_machine_specific_registers_are_canonical() {
    let mut machine = Machine::new();
    for index in [
        0x175,
        0x176,
        0xc000_0082,
        0xc000_0083,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102_u64,
    ] {
        for (value, good) in [
            (0x7fff_ffff_ffff_u64, true),
            (1 << 58, false),
            (u64::MAX, true),
        ] {
            let mut state = machine.state(Mode::Long, 0);
            state.registers.general[0] = value & 0xffff_ffff;
            state.registers.general[2] = value >> 32;
            state.registers.general[1] = index;
            let outcome = machine.run(Mode::Long, &state, &[0x0f, 0x30]);
            expect(&outcome, (!good).then_some(GP), &(index, value));
        }
    }
}
