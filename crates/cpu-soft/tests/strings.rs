//! REP strings that stop midway, by a page fault, by a trap and by an interrupt, against a model
//! that does one element after the other (Intel SDM 2, REP): the registers are those of the
//! iteration that did not happen, and going on gives what would have been without it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod guest;

use guest::machine::{Machine, Mode};
use guest::random::{Random, cases};
use guest::{HANDLERS, TSS, put, word};
use guest_memory::GuestPhysAddr;
use vcpu::{Exit, VcpuState};

/// Two windows of four pages each, which are small pages of their own.
const WINDOW: u64 = 1 << 39;
const WINDOW_PAGES: u64 = 4;
const PHYS: [u64; 2] = [0x4_0000, 0x5_0000];
const SECOND: u64 = WINDOW + 0x10_0000;
const CODE: u64 = guest::CODE;
const TABLES: u64 = 0x6_0000;
const BYTES: usize = 0x4000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
}

#[derive(Debug, Clone)]
struct Case {
    form: Form,
    width: u64,
    /// 0xf3 or 0xf2.
    prefix: u8,
    down: bool,
    /// The source's and the destination's page that is missing.
    missing: [Option<u64>; 2],
    count: u64,
    source: u64,
    destination: u64,
    rax: u64,
}

/// Registers and memory as the model has them.
#[derive(Clone)]
struct Model {
    rcx: u64,
    rsi: u64,
    rdi: u64,
    rax: u64,
    zf: Option<bool>,
    memory: [Vec<u8>; 2],
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    /// The linear address of the first byte that is missing, and whether it was written.
    Fault(u64, bool),
    /// One more element is done.
    Step,
}

impl Model {
    fn find(&self, case: &Case, linear: u64) -> (usize, u64, bool) {
        let window = usize::from(linear >= SECOND);
        let start = [WINDOW, SECOND][window];
        let offset = linear - start;
        (window, offset, case.missing[window] == Some(offset >> 12))
    }

    fn check(&self, case: &Case, at: u64, write: bool) -> Option<End> {
        (0..case.width)
            .find(|byte| self.find(case, at + byte).2)
            .map(|byte| End::Fault(at + byte, write))
    }

    fn read(&self, case: &Case, at: u64) -> u64 {
        (0..case.width).rev().fold(0, |value, byte| {
            let (window, offset, _) = self.find(case, at + byte);
            value << 8 | u64::from(self.memory[window][offset as usize])
        })
    }

    fn write(&mut self, case: &Case, at: u64, value: u64) {
        for byte in 0..case.width {
            let (window, offset, _) = self.find(case, at + byte);
            self.memory[window][offset as usize] = (value >> (byte * 8)) as u8;
        }
    }

    /// One iteration.
    fn step(&mut self, case: &Case) -> End {
        if self.rcx == 0 {
            return End::Done;
        }
        let by = if case.down {
            case.width.wrapping_neg()
        } else {
            case.width
        };
        let mask = u64::MAX >> (64 - case.width * 8);
        let reads_source = matches!(case.form, Form::Movs | Form::Lods | Form::Cmps);
        let uses_destination = case.form != Form::Lods;
        let writes = matches!(case.form, Form::Movs | Form::Stos);
        if reads_source && let Some(end) = self.check(case, self.rsi, false) {
            return end;
        }
        if uses_destination && let Some(end) = self.check(case, self.rdi, writes) {
            return end;
        }
        match case.form {
            Form::Movs => {
                let value = self.read(case, self.rsi);
                self.write(case, self.rdi, value);
            }
            Form::Stos => self.write(case, self.rdi, self.rax),
            Form::Lods => {
                let value = self.read(case, self.rsi);
                // 32-bit results clear the upper half.
                let kept = if case.width == 4 { 0 } else { self.rax & !mask };
                self.rax = kept | value;
            }
            Form::Cmps => self.zf = Some(self.read(case, self.rsi) == self.read(case, self.rdi)),
            Form::Scas => self.zf = Some(self.rax & mask == self.read(case, self.rdi)),
        }
        if reads_source {
            self.rsi = self.rsi.wrapping_add(by);
        }
        if uses_destination {
            self.rdi = self.rdi.wrapping_add(by);
        }
        self.rcx -= 1;
        let compares = matches!(case.form, Form::Cmps | Form::Scas);
        if self.rcx == 0 || (compares && self.zf == Some(case.prefix == 0xf2)) {
            return End::Done;
        }
        End::Step
    }

    fn run(&mut self, case: &Case) -> End {
        loop {
            let end = self.step(case);
            if end != End::Step {
                return end;
            }
        }
    }
}

struct Rig {
    machine: Machine,
}

impl Rig {
    fn new() -> Self {
        let machine = Machine::new();
        let link = |at: u64, value: u64| put(&machine.memory, at, &value.to_le_bytes());
        link(guest::TABLES + 8, TABLES | 7);
        link(TABLES, (TABLES + 0x1000) | 7);
        link(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        link(TSS + 4, guest::STACK);
        Self { machine }
    }

    fn map(&self, missing: [Option<u64>; 2]) {
        for (window, start) in [(0, WINDOW), (1, SECOND)] {
            for page in 0..WINDOW_PAGES {
                let present = u64::from(missing[window] != Some(page));
                let entry = (PHYS[window] + page * 0x1000) | 6 | present;
                let at = TABLES + 0x2000 + ((start >> 12 & 0x1ff) + page) * 8;
                put(&self.machine.memory, at, &entry.to_le_bytes());
            }
        }
    }

    fn memory(&self) -> [Vec<u8>; 2] {
        PHYS.map(|at| {
            let mut bytes = vec![0; BYTES];
            self.machine
                .memory
                .read(GuestPhysAddr(at), &mut bytes)
                .unwrap();
            bytes
        })
    }

    fn code(case: &Case) -> Vec<u8> {
        let opcode = match case.form {
            Form::Movs => 0xa4,
            Form::Stos => 0xaa,
            Form::Lods => 0xac,
            Form::Cmps => 0xa6,
            Form::Scas => 0xae,
        };
        let mut code = vec![case.prefix];
        match case.width {
            2 => code.push(0x66),
            8 => code.push(0x48),
            _ => {}
        }
        code.push(opcode | u8::from(case.width > 1));
        code.push(0xf4);
        code
    }

    fn start(&mut self, case: &Case) -> VcpuState {
        put(&self.machine.memory, CODE, &Self::code(case));
        let mut state = self.machine.state(Mode::Long, 0);
        let general = &mut state.registers.general;
        (general[0], general[1], general[6], general[7]) =
            (case.rax, case.count, case.source, case.destination);
        state.registers.rflags |= u64::from(case.down) << 10;
        state
    }

    fn compare(&self, state: &VcpuState, model: &Model, case: &Case) {
        let general = &state.registers.general;
        let found = (general[1], general[6], general[7], general[0]);
        assert_eq!(
            found,
            (model.rcx, model.rsi, model.rdi, model.rax),
            "{case:x?}"
        );
        assert!(self.memory() == model.memory, "memory: {case:x?}");
        if let Some(zf) = model.zf {
            assert_eq!(state.registers.rflags >> 6 & 1 != 0, zf, "ZF: {case:x?}");
        }
    }
}

fn random_case(random: &mut Random) -> Case {
    let width = random.pick(&[1, 2, 4, 8]);
    let down = random.flip();
    let form = random.pick(&[Form::Movs, Form::Stos, Form::Lods, Form::Cmps, Form::Scas]);
    let count = random.pick(&[0, 1, 2, 17, 300, 900]);
    let count = (count * 2).min((BYTES as u64 - 64) / width / 2);
    // Room for all of it, in either direction, at any alignment.
    let mut place = |start: u64| {
        let span = count.max(1) * width;
        let offset = random.below(BYTES as u64 - span - 16);
        start + if down { offset + span - width } else { offset }
    };
    let source = place(WINDOW);
    let destination = place(SECOND);
    let mut missing = || (!random.once_in(3)).then(|| random.below(WINDOW_PAGES));
    let missing = [missing(), missing()];
    Case {
        form,
        width,
        prefix: random.pick(&[0xf3, 0xf2]),
        down,
        missing,
        count,
        source,
        destination,
        rax: random.pick(&[0, 0x0101_0101_0101_0101]),
    }
}

/// Memory of few values, so that comparisons go on for a while.
fn fill(random: &mut Random, case: &Case) -> [Vec<u8>; 2] {
    let mut bytes = || -> Vec<u8> {
        let odd = random.below(2000) as usize;
        (0..BYTES)
            .map(|at| u8::from(case.prefix == 0xf2) * 2 + u8::from(at % 2000 == odd))
            .collect()
    };
    let first = bytes();
    let second = if case.form == Form::Cmps && case.prefix == 0xf2 {
        first.iter().map(|byte| byte + 1).collect()
    } else {
        bytes()
    };
    [first, second]
}

#[test]
fn a_fault_leaves_what_can_go_on() {
    let mut random = Random::new("strings");
    let mut rig = Rig::new();
    let mut faults = 0;
    for _ in 0..cases(3_000, 200_000) {
        let mut case = random_case(&mut random);
        let memory = fill(&mut random, &case);
        for (at, bytes) in PHYS.iter().zip(&memory) {
            put(&rig.machine.memory, *at, bytes);
        }
        let mut model = Model {
            rcx: case.count,
            rsi: case.source,
            rdi: case.destination,
            rax: case.rax,
            zf: None,
            memory,
        };
        let mut state = rig.start(&case);
        // Each missing page faults once, is mapped, and the instruction goes on.
        loop {
            rig.map(case.missing);
            rig.machine.vcpu.set_state(&state).unwrap();
            assert_eq!(rig.machine.vcpu.run().unwrap(), Exit::Halt);
            let after = rig.machine.vcpu.state().unwrap();
            let code = Rig::code(&case);
            match model.run(&case) {
                End::Fault(at, write) => {
                    faults += 1;
                    let sp = after.registers.general[4];
                    let frame = (
                        word(&rig.machine.memory, sp),
                        word(&rig.machine.memory, sp + 8),
                    );
                    assert_eq!(after.registers.rip, HANDLERS + 15, "{case:x?}");
                    assert_eq!(frame, (u64::from(write) * 2, CODE), "{case:x?}");
                    assert_eq!(after.system.cr2, at, "{case:x?}");
                    rig.compare(&after, &model, &case);
                    let (window, _, _) = model.find(&case, at);
                    case.missing[window] = None;
                    state.registers.general = after.registers.general;
                    state.registers.general[4] = guest::STACK;
                    state.registers.rflags = word(&rig.machine.memory, sp + 24) & !(1 << 16);
                }
                _ => {
                    assert_eq!(after.registers.rip, CODE + code.len() as u64, "{case:x?}");
                    rig.compare(&after, &model, &case);
                    break;
                }
            }
        }
    }
    assert!(faults > 500, "only {faults} faults");
}

/// With RFLAGS.TF each iteration traps: RIP is the string's until the last.
#[test]
fn a_trap_comes_after_each_iteration() {
    let mut random = Random::new("traps");
    let mut rig = Rig::new();
    rig.map([None, None]);
    for _ in 0..cases(150, 5_000) {
        let mut case = random_case(&mut random);
        case.missing = [None, None];
        case.count = case.count.min(20);
        let memory = fill(&mut random, &case);
        for (at, bytes) in PHYS.iter().zip(&memory) {
            put(&rig.machine.memory, *at, bytes);
        }
        let mut model = Model {
            rcx: case.count,
            rsi: case.source,
            rdi: case.destination,
            rax: case.rax,
            zf: None,
            memory,
        };
        let mut state = rig.start(&case);
        loop {
            state.registers.rflags |= 1 << 8;
            rig.machine.vcpu.set_state(&state).unwrap();
            assert_eq!(rig.machine.vcpu.run().unwrap(), Exit::Halt);
            let after = rig.machine.vcpu.state().unwrap();
            let end = model.step(&case);
            let sp = after.registers.general[4];
            let behind = CODE + Rig::code(&case).len() as u64 - 1;
            let at = if end == End::Step { CODE } else { behind };
            assert_eq!(after.registers.rip, HANDLERS + 2, "{case:x?}");
            assert_eq!(word(&rig.machine.memory, sp), at, "{case:x?}");
            assert!(after.system.dr6 >> 14 & 1 != 0, "DR6.BS");
            rig.compare(&after, &model, &case);
            if end != End::Step {
                break;
            }
            state.registers.general = after.registers.general;
            state.registers.general[4] = guest::STACK;
            state.registers.rflags = word(&rig.machine.memory, sp + 16);
        }
    }
}

/// An interrupt that waits is taken before the first iteration or between two; the frame is the
/// string's, and it ends as without.
#[test]
fn an_interrupt_comes_between_iterations() {
    let mut random = Random::new("interrupts");
    let mut rig = Rig::new();
    rig.map([None, None]);
    let mut midway = 0;
    for _ in 0..cases(300, 20_000) {
        let mut case = random_case(&mut random);
        case.missing = [None, None];
        let memory = fill(&mut random, &case);
        for (at, bytes) in PHYS.iter().zip(&memory) {
            put(&rig.machine.memory, *at, bytes);
        }
        let mut model = Model {
            rcx: case.count,
            rsi: case.source,
            rdi: case.destination,
            rax: case.rax,
            zf: None,
            memory,
        };
        let state = rig.start(&case);
        rig.machine.vcpu.set_state(&state).unwrap();
        // Kicked from another thread while it runs, or just before or behind.
        let kicker = rig.machine.vcpu.kicker();
        let thread = std::thread::spawn(move || kicker.kick());
        loop {
            let exit = rig.machine.vcpu.run().unwrap();
            let after = rig.machine.vcpu.state().unwrap();
            if exit == Exit::Halt {
                model.run(&case);
                rig.compare(&after, &model, &case);
                break;
            }
            assert_eq!(exit, Exit::Kicked);
            // The model goes on to the same count, and must be the same then.
            while model.rcx > after.registers.general[1] {
                model.step(&case);
            }
            if after.registers.rip == CODE {
                midway += u64::from(model.rcx != case.count);
                rig.compare(&after, &model, &case);
            }
        }
        thread.join().unwrap();
        // A kick that came too late is taken now.
        rig.machine.vcpu.kicker().kick();
        assert_eq!(rig.machine.vcpu.run().unwrap(), Exit::Kicked);
    }
    println!("{midway} of them midway");
}
