//! Which exception is raised where an instruction has several, what a fault during the delivery
//! of another becomes, who may change RFLAGS, and what is canonical: tables of the Intel SDM
//! (volume 3, table "Priority Among Concurrent Events", table 6-5 "Conditions for Generating a
//! Double Fault"; volume 2, POPF, STI, CLI).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod guest;

use guest::machine::{GP, MODES, Machine, Mode, Outcome, expect};
use guest::random::{Random, cases};
use guest::{CODE, HANDLERS, IDT, TABLES, TSS, gate64, put, word};
use vcpu::{Event, Exit, VcpuState};

/// Nothing is there.
const MISSING: u64 = 1 << 39;

/// What goes wrong while an event is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    Ts,
    Np,
    Ss,
    Gp,
    Pf,
}

const SECONDS: [Second; 5] = [Second::Ts, Second::Np, Second::Ss, Second::Gp, Second::Pf];

impl Second {
    fn vector(self) -> u64 {
        match self {
            Second::Ts => 10,
            Second::Np => 11,
            Second::Ss => 12,
            Second::Gp => 13,
            Second::Pf => 14,
        }
    }

    /// A gate whose use ends so.
    fn gate(self, at: u64) -> [u8; 16] {
        match self {
            // Behind the TSS's limit; not canonical; not there.
            Second::Ts => gate64(at, 8, 7, 3, 14),
            Second::Ss => gate64(at, 8, 5, 3, 14),
            Second::Pf => gate64(at, 8, 6, 3, 14),
            Second::Gp => gate64(at, 8, 0, 3, 9),
            Second::Np => {
                let mut gate = gate64(at, 8, 0, 3, 14);
                gate[5] &= 0x7f;
                gate
            }
        }
    }

    fn error(self, first: u64, ext: u64) -> u64 {
        match self {
            // The TSS's selector; nothing; the gate; a write.
            Second::Ts => 0x30 + ext,
            Second::Ss => ext,
            Second::Np | Second::Gp => first * 8 + 2 + ext,
            Second::Pf => 2,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Exception(u64),
    External(u64),
    Nmi,
    /// INT n.
    Software(u64),
}

fn gate_of(machine: &Machine, vector: u64, bad: Option<Second>) {
    let at = HANDLERS + vector;
    let gate = bad.map_or(gate64(at, 8, 0, 3, 14), |bad| bad.gate(at));
    put(&machine.memory, IDT + vector * 16, &gate);
}

/// SDM 3, table 6-5.
fn becomes_double(first: First, second: u64) -> bool {
    let contributory = |vector| matches!(vector, 0 | 10..=13);
    match first {
        First::Exception(14) => contributory(second) || second == 14,
        First::Exception(vector) => contributory(vector) && contributory(second),
        _ => false,
    }
}

#[test]
fn double_and_triple_faults() {
    let mut machine = Machine::new();
    put(&machine.memory, CODE, &[0xcd, 0x30]);
    put(
        &machine.memory,
        TSS + 0x1c + 5 * 8,
        &(1_u64 << 60).to_le_bytes(),
    );
    put(
        &machine.memory,
        TSS + 0x1c + 6 * 8,
        &(MISSING + 0x800).to_le_bytes(),
    );
    let exceptions = (0..20).filter(|vector| !matches!(vector, 2 | 9 | 15));
    let mut firsts: Vec<First> = exceptions.map(First::Exception).collect();
    firsts.extend([
        First::External(0x30),
        First::External(8),
        First::External(13),
    ]);
    firsts.extend([
        First::External(14),
        First::External(0),
        First::Nmi,
        First::Software(0x30),
    ]);
    for first in firsts {
        let vector = match first {
            First::Exception(vector) | First::External(vector) | First::Software(vector) => vector,
            First::Nmi => 2,
        };
        for second in SECONDS {
            for double_is_bad in [None, Some(Second::Np), Some(Second::Pf)] {
                let is_double_first = first == First::Exception(8);
                if vector == 8 && !is_double_first && double_is_bad.is_some() {
                    continue;
                }
                gate_of(&machine, 8, double_is_bad);
                gate_of(&machine, vector, Some(second));
                let mut state = machine.state(Mode::Long, 0);
                state.system.tr.limit = 0x53;
                state.registers.rflags |= 1 << 9;
                let error = matches!(vector, 8 | 10..=14 | 17).then_some(0);
                match first {
                    First::Exception(vector) => {
                        let vector = vector as u8;
                        state.event = Some(Event::Exception { vector, error });
                    }
                    First::External(vector) => state.event = Some(Event::Interrupt(vector as u8)),
                    First::Nmi => state.nmi_pending = true,
                    First::Software(_) => {}
                }
                machine.vcpu.set_state(&state).unwrap();
                let exit = machine.vcpu.run().unwrap();
                gate_of(&machine, 8, None);
                gate_of(&machine, vector, None);
                let what = (first, second, double_is_bad);
                let ext = u64::from(first != First::Software(0x30));
                let same = vector == second.vector();
                let double = becomes_double(first, second.vector());
                // The second exception's own gate may be the one that is bad.
                let serial_again = same && !double;
                if is_double_first || (double && double_is_bad.is_some()) {
                    assert_eq!(exit, Exit::Shutdown, "{what:?}");
                    continue;
                }
                if serial_again {
                    // It is contributory, or a page fault, and meets the same fault.
                    let wanted = if double_is_bad.is_some() {
                        Exit::Shutdown
                    } else {
                        Exit::Halt
                    };
                    assert_eq!(exit, wanted, "{what:?}");
                    if exit == Exit::Halt {
                        let after = machine.vcpu.state().unwrap().registers;
                        assert_eq!(after.rip - HANDLERS - 1, 8, "{what:?}");
                    }
                    continue;
                }
                assert_eq!(exit, Exit::Halt, "{what:?}");
                let after = machine.vcpu.state().unwrap();
                let taken = after.registers.rip - HANDLERS - 1;
                let sp = after.registers.general[4];
                let found = (
                    taken,
                    word(&machine.memory, sp),
                    word(&machine.memory, sp + 8),
                );
                let wanted = if double {
                    (8, 0, CODE)
                } else {
                    (second.vector(), second.error(vector, ext), CODE)
                };
                assert_eq!(found, wanted, "{what:?}");
                if second == Second::Pf {
                    assert_eq!(after.system.cr2 & !0xfff, MISSING, "{what:?}");
                }
            }
        }
    }
}

/// The frame's RF: set for faults, as it is for the rest (SDM 3, 17.3.1.1).
#[test]
fn frames_of_faults_have_rf() {
    let mut machine = Machine::new();
    for (code, vector, rf) in [
        (&[0x0f, 0x0b][..], 6, true),
        (&[0xcc], 3, false),
        (&[0xcd, 0x0d], 13, false),
        (&[0xf1], 1, false),
        (&[0xf7, 0xf3], 0, true),
        (&[0x48, 0x8b, 0x01], 13, true),
    ] {
        let mut state = machine.state(Mode::Long, 0);
        state.registers.general[1] = 1 << 60;
        let Outcome::Fault(taken, _) = machine.run(Mode::Long, &state, code) else {
            panic!("no event");
        };
        let sp = machine.vcpu.state().unwrap().registers.general[4];
        let error = u64::from(vector == 13 && rf) * 8;
        let flags = word(&machine.memory, sp + error + 16);
        assert_eq!((taken, flags >> 16 & 1 != 0), (vector, rf), "{code:x?}");
    }
}

struct Priority {
    name: &'static str,
    code: &'static [u8],
    cpl: u8,
    change: fn(&mut VcpuState),
    /// Vector, error code or all ones, and CR2 if it is a page fault.
    wanted: (u64, u64, u64),
}

fn on(_: &mut VcpuState) {}

const NO_CODE: u64 = u64::MAX;

#[test]
fn one_exception_of_several() {
    fn bx_missing(state: &mut VcpuState) {
        state.registers.general[3] = MISSING;
    }
    fn task_switched(state: &mut VcpuState) {
        bx_missing(state);
        state.system.cr0 |= 8;
    }
    fn sse_off(state: &mut VcpuState) {
        task_switched(state);
        state.system.cr4 &= !(1 << 9);
    }
    let table = [
        // LOCK where it is not allowed, before the operand is looked at.
        Priority {
            name: "lock mov [bx], eax",
            code: &[0xf0, 0x89, 0x03],
            cpl: 0,
            change: bx_missing,
            wanted: (6, NO_CODE, 0),
        },
        // #NM before the operand's #PF and before alignment.
        Priority {
            name: "fld [rbx]",
            code: &[0xd9, 0x03],
            cpl: 0,
            change: task_switched,
            wanted: (7, NO_CODE, 0),
        },
        Priority {
            name: "movaps xmm0, [rbx + 1]",
            code: &[0x0f, 0x28, 0x43, 1],
            cpl: 0,
            change: task_switched,
            wanted: (7, NO_CODE, 0),
        },
        // #UD before #NM.
        Priority {
            name: "movaps without OSFXSR",
            code: &[0x0f, 0x28, 0x43, 1],
            cpl: 0,
            change: sse_off,
            wanted: (6, NO_CODE, 0),
        },
        // The divisor is read before it is found to be zero.
        Priority {
            name: "div [rbx]",
            code: &[0xf7, 0x33],
            cpl: 0,
            change: bx_missing,
            wanted: (14, 0, MISSING),
        },
        // A read-modify-write asks for the right to write first.
        Priority {
            name: "add [rbx], eax",
            code: &[0x01, 0x03],
            cpl: 0,
            change: bx_missing,
            wanted: (14, 2, MISSING),
        },
        Priority {
            name: "cmpxchg [rbx], ecx",
            code: &[0x0f, 0xb1, 0x0b],
            cpl: 0,
            change: bx_missing,
            wanted: (14, 2, MISSING),
        },
        // Alignment before the page.
        Priority {
            name: "cmpxchg16b [rbx + 8]",
            code: &[0x48, 0x0f, 0xc7, 0x4b, 8],
            cpl: 0,
            change: bx_missing,
            wanted: (13, 0, 0),
        },
        // The source of PUSH and the stack of POP come first.
        Priority {
            name: "push [rbx]",
            code: &[0xff, 0x33],
            cpl: 3,
            change: |state| {
                bx_missing(state);
                state.registers.general[4] = MISSING + 0x5000;
            },
            wanted: (14, 4, MISSING),
        },
        Priority {
            name: "pop [rbx]",
            code: &[0x8f, 0x03],
            cpl: 3,
            change: |state| {
                bx_missing(state);
                state.registers.general[4] = MISSING + 0x5000;
            },
            wanted: (14, 4, MISSING + 0x5000),
        },
        // The source of MOVS, then its destination.
        Priority {
            name: "movsd",
            code: &[0xa5],
            cpl: 3,
            change: |state| {
                state.registers.general[6] = MISSING + 0x2000;
                state.registers.general[7] = MISSING;
            },
            wanted: (14, 4, MISSING + 0x2000),
        },
        Priority {
            name: "cmpsd",
            code: &[0xa7],
            cpl: 3,
            change: |state| {
                state.registers.general[6] = MISSING + 0x2000;
                state.registers.general[7] = MISSING;
            },
            wanted: (14, 4, MISSING + 0x2000),
        },
        // The port's permission before the destination.
        Priority {
            name: "insb",
            code: &[0x6c],
            cpl: 3,
            change: |state| {
                state.registers.general[2] = 0xffff;
                state.registers.general[7] = MISSING;
            },
            wanted: (13, 0, 0),
        },
        // Privilege before operands: LGDT, LLDT, INVPCID, WRMSR of what is not there.
        Priority {
            name: "lgdt [rbx]",
            code: &[0x0f, 0x01, 0x13],
            cpl: 3,
            change: bx_missing,
            wanted: (13, 0, 0),
        },
        Priority {
            name: "lldt [rbx]",
            code: &[0x0f, 0x00, 0x13],
            cpl: 3,
            change: bx_missing,
            wanted: (13, 0, 0),
        },
        Priority {
            name: "invpcid",
            code: &[0x66, 0x0f, 0x38, 0x82, 0x03],
            cpl: 3,
            change: bx_missing,
            wanted: (13, 0, 0),
        },
        // The far pointer is read before its selector is looked at.
        Priority {
            name: "jmp far [rbx]",
            code: &[0xff, 0x2b],
            cpl: 3,
            change: bx_missing,
            wanted: (14, 4, MISSING),
        },
        // Where the target of a call is bad, nothing is pushed.
        Priority {
            name: "call rbx",
            code: &[0xff, 0xd3],
            cpl: 3,
            change: |state| {
                state.registers.general[3] = 1 << 60;
                state.registers.general[4] = MISSING;
            },
            wanted: (13, 0, 0),
        },
        // More than 15 bytes, whatever they are.
        Priority {
            name: "16 bytes",
            code: &[
                0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                0x66, 0x90,
            ],
            cpl: 0,
            change: on,
            wanted: (13, 0, 0),
        },
        // Over the end of a page: the first page's fault, else the second's first byte.
        Priority {
            name: "mov over two pages",
            code: &[0x48, 0x8b, 0x03],
            cpl: 0,
            change: |state| {
                state.registers.general[3] = MISSING + 0xffd;
            },
            wanted: (14, 0, MISSING + 0xffd),
        },
        Priority {
            name: "mov into a missing page",
            code: &[0x48, 0x8b, 0x03],
            cpl: 0,
            change: |state| {
                state.registers.general[3] = MISSING - 3;
            },
            wanted: (14, 0, MISSING),
        },
    ];
    let mut machine = Machine::new();
    // The last page below what is missing is there.
    put(
        &machine.memory,
        TABLES + 0x1000 + 511 * 8,
        &0x87_u64.to_le_bytes(),
    );
    for case in table {
        let mut state = machine.state(Mode::Long, case.cpl);
        (case.change)(&mut state);
        let outcome = machine.run(Mode::Long, &state, case.code);
        expect(&outcome, Some((case.wanted.0, case.wanted.1)), &case.name);
        if case.wanted.0 == 14 {
            let cr2 = machine.vcpu.state().unwrap().system.cr2;
            assert_eq!(cr2, case.wanted.2, "{}", case.name);
        }
    }
}

#[test]
fn code_ends_with_its_segment() {
    let mut machine = Machine::new();
    for (mode, cpl) in [
        (Mode::Protected, 0),
        (Mode::Protected, 3),
        (Mode::Compatibility, 3),
    ] {
        // Three bytes: a NOP of two and one of one.
        for limit in 0..8_u32 {
            let mut state = machine.state(mode, cpl);
            let code = [0x66, 0x90, 0x90];
            let base = state.registers.rip as u32;
            state.system.segments[1].limit = base + limit;
            let outcome = machine.run(mode, &state, &code);
            // OUT follows: bytes 3 and 4.
            let wanted = (limit < 4).then_some(GP);
            expect(&outcome, wanted, &(mode, cpl, limit));
            if limit < 4 {
                let after = machine.vcpu.state().unwrap();
                let sp = after.registers.general[4];
                let at = if mode == Mode::Compatibility {
                    word(&machine.memory, sp + 8)
                } else {
                    word(&machine.memory, sp + 4) & 0xffff_ffff
                };
                let wanted = [0, 2, 3, 3][limit as usize];
                // With one byte of the first instruction it does not begin.
                let wanted = if limit == 0 { 0 } else { wanted };
                assert_eq!(at - CODE, wanted, "{mode:?} {limit}");
            }
        }
    }
}

#[test]
fn addresses_are_canonical_by_48_or_57_bits() {
    let mut machine = Machine::new();
    let forms: &[(&str, &[u8], bool, u64)] = &[
        ("mov eax, [rbx]", &[0x8b, 0x03], false, 4),
        ("mov [rbx], eax", &[0x89, 0x03], false, 4),
        ("mov rax, [rbp]", &[0x48, 0x8b, 0x45, 0], true, 8),
        ("mov [rsp], ecx", &[0x89, 0x0c, 0x24], true, 4),
        ("pop rcx", &[0x59], true, 8),
        ("popfq", &[0x9d], true, 8),
        ("leave", &[0xc9], true, 8),
        ("ret", &[0xc3], true, 8),
        ("movups xmm0, [rbp]", &[0x0f, 0x10, 0x45, 0], true, 16),
        ("jmp rbx", &[0xff, 0xe3], false, 1),
        ("lock inc [rbx]", &[0xf0, 0xff, 0x03], false, 4),
        ("lodsb", &[0xac], false, 1),
    ];
    // A five-level root over the four-level one.
    let root = 0xd000_u64;
    put(&machine.memory, root, &(TABLES | 7).to_le_bytes());
    for (bits, five) in [(48, false), (57, true)] {
        let edge = 1_u64 << (bits - 1);
        for &(name, code, stack, bytes) in forms {
            // The last and the first of each half, and what is between them.
            for (address, good) in [
                (edge - bytes, true),
                (edge - bytes + 1, false),
                (edge, false),
                (1 << 62, false),
                (edge.wrapping_neg() - 1, false),
                (edge.wrapping_neg(), true),
            ] {
                let mut state = machine.state(Mode::Long, 3);
                if five {
                    state.system.cr4 |= 1 << 12;
                    state.system.cr3 = root;
                }
                for number in [3, 4, 5, 6] {
                    state.registers.general[number] = address;
                }
                let outcome = machine.run(Mode::Long, &state, code);
                let what = (name, bits, address);
                match outcome {
                    Outcome::Fault(14, _) => assert!(good, "{what:x?}: a page fault"),
                    Outcome::Fault(vector, error) => {
                        let wanted = if stack { 12 } else { 13 };
                        assert_eq!((good, vector, error), (false, wanted, 0), "{what:x?}");
                    }
                    Outcome::Done(_) => panic!("{what:x?}"),
                }
            }
        }
    }
}

#[test]
fn who_may_change_the_flags() {
    let mut random = Random::new("flags");
    let mut machine = Machine::new();
    for number in 0..cases(16_000, 400_000) {
        let (mode, cpl) = MODES[number as usize % MODES.len()];
        let mut state = machine.state(mode, cpl);
        let iopl = random.below(4);
        let vm = state.registers.rflags & 1 << 17;
        let v86 = vm != 0;
        // Neither TF nor RF; VIF and VIP without VME only stay as they are.
        state.registers.rflags = 2 | vm | iopl << 12 | random.next() & 0x3c_4ed5;
        let old = state.registers.rflags;
        let image = random.next() & !(1 << 8);
        let (code, width): (&[u8], u32) = match (random.below(4), mode) {
            (0, _) => (&[0xfa], 0),
            (1, _) => (&[0xfb], 1),
            (2, Mode::Real | Mode::Virtual86) => (&[0x9d], 2),
            (2, _) => (&[0x66, 0x9d], 2),
            (_, Mode::Real | Mode::Virtual86) => (&[0x66, 0x9d], 4),
            (_, Mode::Long) => (&[0x9d], 8),
            _ => (&[0x9d], 4),
        };
        let sp = state.registers.general[4];
        put(&machine.memory, sp, &image.to_le_bytes());
        // OUT must be allowed at its end: in virtual-8086 mode by the bitmap alone.
        let outcome = machine.run(mode, &state, code);
        let what = (mode, cpl, iopl, code, old, image);
        let cpl = u64::from(cpl);
        let may_if = cpl <= iopl;
        let wanted_fault = if width > 1 { v86 && iopl < 3 } else { !may_if };
        expect(&outcome, wanted_fault.then_some(GP), &what);
        let Outcome::Done(after) = outcome else {
            continue;
        };
        let mut mask = match width {
            0 | 1 => 1 << 9,
            2 => 0x4cd5,
            _ => 0x4cd5 | 1 << 18 | 1 << 21,
        };
        if width > 1 && may_if {
            mask |= 1 << 9;
        }
        if width > 1 && cpl == 0 {
            mask |= 3 << 12;
        }
        let new = match width {
            0 => 0,
            1 => 1 << 9,
            _ => image,
        };
        assert_eq!(
            after.registers.rflags,
            old & !mask | new & mask,
            "{what:x?}"
        );
    }
}
