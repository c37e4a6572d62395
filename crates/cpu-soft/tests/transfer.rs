//! Far jumps, calls and returns, IRET and interrupts, against a model of the Intel SDM (volume 2,
//! JMP, CALL, RET, IRET, INT; volume 3, chapters "Protection" and "Interrupt and Exception
//! Handling"): random descriptors, gates, frames and privileges.
//!
//! Where the SDM leaves freedom: a return whose stack and whose instruction pointer are both bad
//! may fault for either; the upper half of ESP where SP is loaded is not looked at. Hardware task
//! switches are refused by #GP, which is this CPU's choice and not the SDM's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod guest;

use std::cell::Cell;

use guest::gates::{Case, Descriptor, Fault, GP, Wanted, stack_value};
use guest::machine::{IDT32, INNER_STACK, Machine, Mode, Outcome};
use guest::random::{Random, cases};
use guest::{DATA, GDT, IDT, STACK, TSS, put, word};
use vcpu::VcpuState;

/// Where everything that works goes: OUT, which ends a case.
const TARGET: u64 = 0x7000;
const NOT_CANONICAL: u64 = 1 << 60 | TARGET;
/// The random descriptors are slots 16 to 31, up to the limit.
const FIRST: u64 = 16;
const SLOTS: u64 = 32;

fn random_descriptor(random: &mut Random) -> u64 {
    let present = u64::from(!random.once_in(10)) << 47;
    let dpl = random.pick(&[0, 0, 1, 2, 3, 3]) << 45;
    let limit = if random.once_in(6) {
        0x6fff
    } else {
        0x8f_0000_0000_ffff & !(0x7f << 48) | 0xf << 48
    };
    if random.once_in(6) {
        // A system descriptor, or nonsense.
        return present | dpl | random.below(16) << 40 | random.next() & 0xffff_ffff;
    }
    let kind = random.pick(&[0x12, 0x13, 0x1a, 0x1b, 0x1b, 0x1f, 0x1e, 0x18, 0x10, 0x16]) << 40;
    let long = random.pick(&[1, 2, 2, 1, 0, 3]) << 53;
    present | dpl | kind | limit | long
}

fn random_selector(random: &mut Random) -> u64 {
    if random.once_in(24) {
        return random.below(4);
    }
    let table = u64::from(random.once_in(24)) << 2;
    random_slot(random) << 3 | table | random.pick(&[0, 0, 1, 2, 3, 3])
}

/// CS and SS of a frame: at random, or such as can be returned to.
fn random_frame(random: &mut Random, case: &Case) -> (u64, u64) {
    let slots = |wanted: &dyn Fn(Descriptor) -> bool| -> Vec<u64> {
        let raw = (1..SLOTS).zip(case.table.iter().skip(1));
        raw.filter(|(_, raw)| wanted(Descriptor(**raw)))
            .map(|(slot, _)| slot)
            .collect()
    };
    let codes = slots(&|code| code.is_code() && code.present() && code.dpl() >= case.cpl);
    if codes.is_empty() || random.flip() {
        return (random_selector(random), random_selector(random));
    }
    let code = random.pick(&codes);
    let rpl = Descriptor(case.table[code as usize]).dpl();
    let stacks = slots(&|stack| stack.is_writable() && stack.present() && stack.dpl() == rpl);
    let ss = if stacks.is_empty() {
        0
    } else {
        random.pick(&stacks)
    };
    (code << 3 | rpl, ss << 3 | rpl)
}

fn random_slot(random: &mut Random) -> u64 {
    FIRST + random.below(SLOTS - FIRST + 2)
}

/// A call gate to a random segment, in two slots.
fn random_gate(random: &mut Random) -> [u64; 2] {
    let kind = random.pick(&[12, 12, 12, 4]);
    let selector = random_selector(random);
    let high = if random.once_in(10) { 1 << 28 } else { 0 };
    let upper = if random.once_in(10) {
        1 << (40 + random.below(5))
    } else {
        0
    };
    let gate = TARGET
        | selector << 16
        | random.pick(&[0, 0, 3, 7]) << 32
        | kind << 40
        | random.pick(&[0, 3, 3, 3]) << 45
        | u64::from(!random.once_in(12)) << 47;
    [gate, high | upper]
}

struct Rig {
    machine: Machine,
    random: Random,
    /// How many transfers were to succeed.
    done: Cell<u64>,
}

const SOURCES: [(Mode, u8); 8] = [
    (Mode::Protected, 0),
    (Mode::Protected, 1),
    (Mode::Protected, 2),
    (Mode::Protected, 3),
    (Mode::Compatibility, 0),
    (Mode::Compatibility, 3),
    (Mode::Long, 0),
    (Mode::Long, 3),
];

impl Rig {
    fn new(what: &str) -> Self {
        let machine = Machine::new();
        put(&machine.memory, TARGET, &[0xe6, 0x80]);
        for (slot, value) in [(12, 0x00cf_b300_0000_ffff_u64), (13, 0x00cf_d300_0000_ffff)] {
            put(&machine.memory, GDT + slot * 8, &value.to_le_bytes());
        }
        Self {
            machine,
            random: Random::new(what),
            done: Cell::new(0),
        }
    }

    /// A state, with new random descriptors behind the fixed ones.
    fn case(&mut self, (mode, cpl): (Mode, u8)) -> Case {
        let random = &mut self.random;
        let mut slot = FIRST;
        while slot < SLOTS {
            if random.once_in(4) {
                for half in random_gate(random) {
                    put(&self.machine.memory, GDT + slot * 8, &half.to_le_bytes());
                    slot += 1;
                }
            } else {
                let value = random_descriptor(random);
                put(&self.machine.memory, GDT + slot * 8, &value.to_le_bytes());
                slot += 1;
            }
        }
        let memory = &self.machine.memory;
        let table = (0..SLOTS)
            .map(|slot| word(memory, GDT + slot * 8))
            .collect();
        let mut state = self.machine.state(mode, cpl);
        state.registers.general[0] = DATA;
        let rflags = 2
            | random.below(4) << 12
            | random.next() & 0x6c_0cd5 & !(3 << 17)
            | random.below(2) << 9;
        state.registers.rflags = rflags & 0x20_3fff & !0x100 | state.registers.rflags & 1 << 17;
        for number in 0..16 {
            put(
                memory,
                STACK + number * 8,
                &stack_value(8, number).to_le_bytes(),
            );
        }
        // IST and the stacks of levels 1 and 2; the machine writes that of level 0.
        let lma = matches!(mode, Mode::Long | Mode::Compatibility);
        for cpl in 0..3_u64 {
            let sp = INNER_STACK - cpl * 0x400;
            let ss = [0x40, 0x61, 0x6a][cpl as usize] << 32;
            let value = if lma { sp } else { sp | ss };
            put(memory, TSS + 4 + cpl * 8, &value.to_le_bytes());
        }
        if lma {
            for ist in 1..8 {
                let sp = INNER_STACK - 0x1000 - ist * 0x100;
                put(memory, TSS + 0x1c + ist * 8, &sp.to_le_bytes());
            }
        }
        Case {
            mode,
            cpl: u64::from(cpl),
            table,
            state,
        }
    }

    fn check(&self, case: &Case, outcome: &Outcome, wanted: &Wanted, what: &str) {
        let told = || {
            let table: Vec<String> = case
                .table
                .iter()
                .skip(16)
                .map(|raw| format!("{raw:016x}"))
                .collect();
            format!(
                "{what} in {:?} CPL {}, wanted {wanted:x?}; slots {table:#?}",
                case.mode, case.cpl
            )
        };
        match (outcome, wanted) {
            (Outcome::Fault(vector, error), Wanted::Faults(faults)) => {
                assert!(
                    faults.contains(&(*vector, *error)),
                    "{vector} {error:x}: {}",
                    told()
                );
            }
            (
                Outcome::Done(after),
                Wanted::To {
                    cs,
                    cpl,
                    stack,
                    pushed,
                },
            ) => {
                self.done.set(self.done.get() + 1);
                let s = &after.system.segments;
                assert_eq!(after.registers.rip, TARGET + 2, "{}", told());
                assert_eq!(u64::from(s[1].selector), *cs, "CS: {}", told());
                assert_eq!(u64::from(s[2].dpl), *cpl, "CPL: {}", told());
                let sp = after.registers.general[4];
                let before = case.state.registers.general[4];
                let (ss, wanted_sp) = stack.unwrap_or_else(|| {
                    let ss = case.state.system.segments[2].selector;
                    (u64::from(ss), before - pushed.0 * pushed.1.len() as u64)
                });
                assert_eq!(u64::from(s[2].selector), ss, "SS: {}", told());
                let wide = s[2].big || (s[1].long && case.lma());
                let mask = if wide { u64::MAX } else { 0xffff };
                assert_eq!(sp & mask, wanted_sp & mask, "stack pointer: {}", told());
                for (slot, value) in (0..).zip(&pushed.1) {
                    let mask = u64::MAX >> (64 - pushed.0 * 8);
                    let found = word(&self.machine.memory, wanted_sp + slot * pushed.0) & mask;
                    assert_eq!(found, value & mask, "pushed {slot}: {}", told());
                }
            }
            (outcome, _) => panic!("{outcome:x?}: {}", told()),
        }
    }
}

/// Bytes of an instruction with a prefix for its operand size; none where there is no such size.
fn sized(mode: Mode, width: u64, code: &[u8]) -> Option<Vec<u8>> {
    let prefix: &[u8] = match (width, mode) {
        (2, _) => &[0x66],
        (4, _) => &[],
        (_, Mode::Long) => &[0x48],
        _ => return None,
    };
    Some([prefix, code].concat())
}

fn wanted(result: Result<Wanted, Fault>) -> Wanted {
    result.unwrap_or_else(|fault| Wanted::Faults(vec![fault]))
}

#[test]
fn far_jumps_and_calls() {
    let mut rig = Rig::new("far");
    for number in 0..cases(16_000, 1_000_000) {
        let case = rig.case(SOURCES[number as usize % 8]);
        let random = &mut rig.random;
        let width = random.pick(&[2, 4, 8]);
        let call = random.flip();
        let Some(code) = sized(case.mode, width, &[0xff, if call { 0x18 } else { 0x28 }]) else {
            continue;
        };
        let selector = random_selector(random);
        let mut offset = TARGET;
        if random.once_in(12) && width == 8 {
            offset = NOT_CANONICAL;
        }
        let pointer = [
            &offset.to_le_bytes()[..width as usize],
            &(selector as u16).to_le_bytes(),
        ]
        .concat();
        put(&rig.machine.memory, DATA, &pointer);
        let back = call.then_some(case.state.registers.rip + code.len() as u64);
        let wanted = wanted(case.far(selector, offset, width, back));
        let outcome = rig.machine.run(case.mode, &case.state, &code);
        let what = format!("{code:x?} to {selector:x}:{offset:x}");
        rig.check(&case, &outcome, &wanted, &what);
    }
    println!("{} went through", rig.done.get());
    assert!(rig.done.get() > 500, "only {} went through", rig.done.get());
}

#[test]
fn far_returns() {
    let mut rig = Rig::new("return");
    for number in 0..cases(16_000, 1_000_000) {
        let case = rig.case(SOURCES[number as usize % 8]);
        let random = &mut rig.random;
        let width = random.pick(&[2, 4, 8]);
        let release = random.pick(&[0, 0, 16]);
        let bytes: &[u8] = if release == 0 {
            &[0xcb]
        } else {
            &[0xca, 16, 0]
        };
        let Some(code) = sized(case.mode, width, bytes) else {
            continue;
        };
        let ip = if random.once_in(12) && width == 8 {
            NOT_CANONICAL
        } else {
            TARGET
        };
        let (cs, ss) = random_frame(random, &case);
        let frame = [ip, cs, 0x6800, ss];
        for (slot, value) in (0..).zip(frame) {
            let gap = if slot > 1 { release } else { 0 };
            put(
                &rig.machine.memory,
                STACK + slot * width + gap,
                &value.to_le_bytes()[..width as usize],
            );
        }
        let wanted = match case.back(frame, false, width * 2 + release) {
            Ok(Wanted::To {
                cs,
                cpl,
                stack,
                pushed,
            }) if cpl > case.cpl => {
                let stack = stack.map(|(ss, sp)| (ss, sp + release));
                Wanted::To {
                    cs,
                    cpl,
                    stack,
                    pushed,
                }
            }
            other => other.unwrap_or_else(Wanted::Faults),
        };
        let outcome = rig.machine.run(case.mode, &case.state, &code);
        let what = format!("{code:x?} by {frame:x?}");
        rig.check(&case, &outcome, &wanted, &what);
        if let Outcome::Done(after) = &outcome {
            check_data_segments(&case, after);
        }
    }
    println!("{} went through", rig.done.get());
    assert!(rig.done.get() > 500, "only {} went through", rig.done.get());
}

/// Data segments that the outer level may not use are null then.
fn check_data_segments(case: &Case, after: &VcpuState) {
    let cpl = after.system.segments[2].dpl;
    for number in [0, 3, 4, 5] {
        let (old, new) = (
            case.state.system.segments[number],
            after.system.segments[number],
        );
        if u64::from(cpl) > case.cpl && old.dpl < cpl {
            assert!(new.selector == 0 && new.unusable, "segment {number} stays");
        } else {
            assert_eq!(old, new);
        }
    }
}

#[test]
fn interrupt_returns() {
    let mut rig = Rig::new("IRET");
    for number in 0..cases(20_000, 1_000_000) {
        let mut case = rig.case(SOURCES[number as usize % 8]);
        let random = &mut rig.random;
        let width = random.pick(&[2, 4, 8]);
        let Some(code) = sized(case.mode, width, &[0xcf]) else {
            continue;
        };
        let nested = random.once_in(16);
        case.state.registers.rflags |= u64::from(nested) << 14;
        let ip = if random.once_in(12) && width == 8 {
            NOT_CANONICAL
        } else {
            TARGET
        };
        // Not TF, which would trap behind the next instruction, nor VM, which is another test's.
        let flags = random.next() & 0x3f_7fd7 & !(1 << 8 | 1 << 17);
        let (cs, ss) = random_frame(random, &case);
        let frame = [ip, cs, 0x6800, ss];
        let mut values = frame.to_vec();
        values.insert(2, flags);
        for (slot, value) in (0..).zip(values) {
            put(
                &rig.machine.memory,
                STACK + slot * width,
                &value.to_le_bytes()[..width as usize],
            );
        }
        let is64 = case.mode == Mode::Long;
        let wanted = if nested {
            Wanted::Faults(vec![(GP, 0)])
        } else {
            case.back(frame, is64, width * 3)
                .unwrap_or_else(Wanted::Faults)
        };
        let outcome = rig.machine.run(case.mode, &case.state, &code);
        let what = format!("{code:x?} by {frame:x?}");
        rig.check(&case, &outcome, &wanted, &what);
        if let Outcome::Done(after) = &outcome {
            let old = case.state.registers.rflags;
            let now = returned_flags(old, flags, case.cpl, width);
            assert_eq!(after.registers.rflags, now, "{old:x} {flags:x} {what}");
            check_data_segments(&case, after);
        }
    }
    println!("{} went through", rig.done.get());
    assert!(rig.done.get() > 500, "only {} went through", rig.done.get());
}

/// RFLAGS after IRET (SDM 2, IRET; SDM 1, table 6-2 for the privileges). RF goes with the next
/// instruction.
fn returned_flags(old: u64, image: u64, cpl: u64, width: u64) -> u64 {
    let mut mask = 0xdd5 & !(1 << 9) | 1 << 14;
    if width > 2 {
        mask |= 1 << 18 | 1 << 21;
    }
    if cpl <= old >> 12 & 3 {
        mask |= 1 << 9;
    }
    if cpl == 0 {
        mask |= 3 << 12;
        if width > 2 {
            mask |= 3 << 19;
        }
    }
    (old & !mask | image & mask) & !(1 << 16) | 2
}

#[test]
fn interrupts_through_gates() {
    let mut rig = Rig::new("INT");
    let sources = [&SOURCES[..], &[(Mode::Virtual86, 3)]].concat();
    for number in 0..cases(20_000, 1_000_000) {
        let mut case = rig.case(sources[number as usize % 9]);
        let random = &mut rig.random;
        let any = random.below(32);
        let kind = random.pick(&[14, 15, 14, 15, 6, 7, any]);
        let selector = random_selector(random);
        let gate = [
            TARGET
                | selector << 16
                | random.pick(&[0, 0, 0, 1, 5]) << 32
                | kind << 40
                | random.pick(&[0, 3, 3]) << 45
                | u64::from(!random.once_in(12)) << 47,
            if random.once_in(12) { 1 << 28 } else { 0 },
        ];
        let external = random.once_in(3);
        let vector = random.pick(&[0x30, 0x1f, 13, 14, 8]);
        let number = if external { vector } else { 0x30 };
        let lma = case.lma();
        let (at, size) = if lma {
            (IDT + number * 16, 16)
        } else {
            (IDT32 + number * 8, 8)
        };
        let mut saved = vec![0; size];
        rig.machine
            .memory
            .read(guest_memory::GuestPhysAddr(at), &mut saved)
            .unwrap();
        case.state.system.idtr.limit = 0xfff;
        if case.mode == Mode::Virtual86 {
            // IOPL 3, else INT is #GP.
            case.state.registers.rflags |= 3 << 12;
        }
        if external {
            case.state.registers.rflags |= 1 << 9;
            case.state.event = Some(vcpu::Event::Interrupt(number as u8));
        }
        let ext = u64::from(external);
        let wanted = wanted(case.interrupt(number, gate, ext));
        // A fault through the very gate that is bad is another one.
        if let Wanted::Faults(faults) = &wanted
            && faults.iter().any(|fault| fault.0 == number)
        {
            continue;
        }
        let bytes: Vec<u8> = gate
            .iter()
            .flat_map(|half| half.to_le_bytes())
            .take(size)
            .collect();
        put(&rig.machine.memory, at, &bytes);
        let outcome = rig.machine.run(case.mode, &case.state, &[0xcd, 0x30]);
        put(&rig.machine.memory, at, &saved);
        let what = format!("vector {number:x} external {external} gate {gate:x?}");
        rig.check(&case, &outcome, &wanted, &what);
        if let Outcome::Done(after) = &outcome {
            let cleared = if kind & 1 == 0 { 0x3_4300 } else { 0x3_4100 };
            assert_eq!(
                after.registers.rflags,
                case.state.registers.rflags & !cleared,
                "{what}"
            );
        }
    }
    println!("{} went through", rig.done.get());
    assert!(rig.done.get() > 500, "only {} went through", rig.done.get());
}

/// IRET and RETF where segments are not checked: real mode, and to and from virtual-8086 mode.
#[test]
fn returns_without_descriptors() {
    let mut rig = Rig::new("real");
    let sources = [(Mode::Real, 0), (Mode::Virtual86, 3), (Mode::Protected, 0)];
    for number in 0..cases(8_000, 200_000) {
        let (mode, cpl) = sources[number as usize % 3];
        let mut case = rig.case((mode, cpl));
        let random = &mut rig.random;
        let to_v86 = mode == Mode::Protected;
        let width = if to_v86 { 4 } else { random.pick(&[2, 4]) };
        let returns = to_v86 || random.flip();
        let mut code = vec![if returns { 0xcf } else { 0xcb }];
        if !to_v86 && width == 4 {
            code.insert(0, 0x66);
        }
        // CS * 16 + IP is TARGET; or IP is behind the limit.
        let cs = random.below(0x700);
        let far = random.once_in(6) && width == 4;
        let ip = TARGET - cs * 16 + if far { 0x1_0000 } else { 0 };
        let vm = 1 << 17;
        let image = random.next() & 0x3f_7fd7 & !(1 << 8 | vm) | if to_v86 { vm } else { 0 };
        let iopl = random.below(4);
        if mode == Mode::Virtual86 {
            case.state.registers.rflags = 2 | vm | iopl << 12;
        }
        let sp = 0x6400;
        case.state.registers.general[4] = sp;
        let mut frame = vec![ip, cs];
        if returns {
            frame.push(image);
        }
        let popped = frame.len() as u64 * width;
        frame.extend([0x6000, 0x123, 0x234, 0x345, 0x456, 0x567]);
        for (slot, value) in (0..).zip(&frame) {
            let bytes = &value.to_le_bytes()[..width as usize];
            put(&rig.machine.memory, sp + slot * width, bytes);
        }
        let old = case.state.registers.rflags;
        let outcome = rig.machine.run(mode, &case.state, &code);
        let what = format!("{mode:?} {code:x?} {frame:x?} IOPL {iopl}");
        let denied = mode == Mode::Virtual86 && returns && iopl < 3;
        let Outcome::Done(after) = outcome else {
            assert_eq!(outcome, Outcome::Fault(GP, 0), "{what}");
            assert!(denied || far, "{what}");
            continue;
        };
        assert!(!denied && !far, "{what}");
        let s = &after.system.segments;
        let found = (u64::from(s[1].selector), s[1].base, after.registers.rip);
        assert_eq!(found, (cs, cs * 16, ip + 2), "{what}");
        let mut wanted_sp = sp + popped;
        if to_v86 {
            wanted_sp = 0x6000;
            let data = [s[2], s[0], s[3], s[4], s[5]].map(|segment| u64::from(segment.selector));
            assert_eq!(data[..], frame[4..], "{what}");
            let plain = |segment: &vcpu::Segment| segment.dpl == 3 && segment.limit == 0xffff;
            assert!(s.iter().all(plain), "{what}");
        }
        assert_eq!(after.registers.general[4], wanted_sp, "{what}");
        let mut mask = 0x4ed5;
        if width == 4 {
            mask |= 1 << 18 | 1 << 21;
        }
        if mode != Mode::Virtual86 {
            mask |= 3 << 12;
        }
        if to_v86 {
            mask |= vm | 3 << 19;
        }
        let mask = if returns { mask } else { 0 };
        assert_eq!(
            after.registers.rflags,
            old & !mask | image & mask | 2,
            "{what}"
        );
    }
}
