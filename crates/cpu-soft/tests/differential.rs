//! Each instruction form against the host's own processor, with random operands and flags.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

#[allow(dead_code, reason = "a part of the forms is for other tests")]
mod forms;
mod guest;

use exec_memory::{CODE_ADDRESS, DATA_ADDRESS, NativeMachine, NativeState, Outcome};
use forms::Form;
use guest_memory::GuestPhysAddr;
use vcpu::{Exit, Vcpu};

/// Random states of each form.
const CASES: usize = 400;
const ARITHMETIC: u64 = 0x8d5;

/// xorshift: the same cases each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number that is often at an edge.
    fn value(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
            0x0123_4567_89ab_cdef,
        ];
        let pick = self.next();
        match pick % 4 {
            0 => EDGES[(pick >> 8) as usize % EDGES.len()],
            1 => self.next() & 0xff,
            2 => self.next() >> (pick >> 8 & 63),
            _ => self.next(),
        }
    }
}

fn cases(form: &Form, count: usize, random: &mut Random) -> Vec<NativeState> {
    (0..count)
        .map(|_| {
            let mut case = NativeState::default();
            for register in &mut case.general {
                *register = random.value();
            }
            case.rflags = 2 | (random.next() & ARITHMETIC);
            for word in case.data.chunks_exact_mut(8) {
                word.copy_from_slice(&random.value().to_le_bytes());
            }
            for word in case.fx[160..416].chunks_exact_mut(8) {
                let value = if form.floats {
                    float(random)
                } else {
                    random.value()
                };
                word.copy_from_slice(&value.to_le_bytes());
            }
            if form.floats {
                for word in case.data.chunks_exact_mut(8) {
                    word.copy_from_slice(&float(random).to_le_bytes());
                }
            }
            if form.floats {
                case.fx[24..28].copy_from_slice(&mxcsr(random).to_le_bytes());
            }
            if form.x87 {
                // Whether the last bit makes a result tiny must not decide about a trap.
                let masked = if form.ulps > 0 { 0x10 } else { 0 };
                let control = x87_control(random) | masked;
                case.fx[0..2].copy_from_slice(&control.to_le_bytes());
            }
            case.general[3] = DATA_ADDRESS + 128;
            case.general[4] = DATA_ADDRESS + 256;
            case.general[6] = random.next() & 7;
            (form.prepare)(&mut case, random.next());
            if form.narrow {
                for register in &mut case.general[..8] {
                    *register &= 0xffff_ffff;
                }
            }
            case
        })
        .collect()
}

/// Any rounding and precision; sometimes with exceptions that trap.
fn x87_control(random: &mut Random) -> u16 {
    let pick = random.next() as u16;
    let precision = [0, 0x200, 0x300, 0x300][usize::from(pick >> 4 & 3)];
    let rounding = pick & 0xc00;
    match pick & 7 {
        0..4 => 0x37f,
        4..7 => 0x7f | precision | rounding,
        _ => 0x40 | (pick >> 10 & 0x3f) | precision | rounding,
    }
}

/// Any rounding, denormals as zero or not; sometimes with exceptions that trap.
fn mxcsr(random: &mut Random) -> u32 {
    let pick = random.next() as u32;
    let flags = (pick >> 8) & 0x3f;
    match pick % 8 {
        0..3 => 0x1f80,
        3..6 => 0x1f80 | flags | (pick & 0xe040),
        6 => 0x1f80 | (pick & 0xe000),
        _ => (pick >> 4) & 0xffc0,
    }
}

/// Two singles or a double, often special.
fn float(random: &mut Random) -> u64 {
    let single = |random: &mut Random| -> u64 {
        let edges = [
            0.0_f32,
            -0.0,
            1.0,
            -1.5,
            f32::MAX,
            f32::MIN_POSITIVE,
            f32::INFINITY,
            f32::NEG_INFINITY,
            3.5,
            -2_147_483_648.0,
            2_147_483_648.0,
            0.1,
        ];
        let pick = random.next();
        u64::from(match pick % 3 {
            0 => edges[(pick >> 8) as usize % edges.len()].to_bits(),
            1 => ((pick >> 20) as i16 as f32 / 16.0).to_bits(),
            _ => (pick >> 13) as u32,
        })
    };
    let edges = [
        0.0_f64,
        -0.0,
        1.0,
        -2.5,
        f64::MAX,
        f64::INFINITY,
        1e-310,
        0.1,
        1e9,
        -3e18,
        f64::NAN,
    ];
    let pick = random.next();
    match pick % 4 {
        0 => edges[(pick >> 8) as usize % edges.len()].to_bits(),
        1 => ((pick >> 20) as i32 as f64 / 256.0).to_bits(),
        2 => random.next(),
        _ => single(random) | (single(random) << 32),
    }
}

/// The soft CPU's answer to one case.
fn run_soft(
    vcpu: &mut dyn Vcpu,
    memory: &guest_memory::GuestMemory,
    case: &NativeState,
    base: &vcpu::VcpuState,
) -> (NativeState, Option<u64>) {
    let mut state = base.clone();
    state.registers.general = case.general;
    state.registers.rflags = case.rflags;
    state.xsave.0[..512].copy_from_slice(&case.fx);
    state.xsave.0[512] = 3;
    vcpu.set_state(&state).unwrap();
    memory
        .write(GuestPhysAddr(DATA_ADDRESS), &case.data)
        .unwrap();
    let exit = vcpu.run().unwrap();
    assert_eq!(exit, Exit::Halt);
    let after = vcpu.state().unwrap();
    let mut result = *case;
    result.general = after.registers.general;
    result.rflags = after.registers.rflags;
    result.fx.copy_from_slice(&after.xsave.0[..512]);
    memory
        .read(GuestPhysAddr(DATA_ADDRESS), &mut result.data)
        .unwrap();
    let rip = after.registers.rip;
    let faulted = (guest::HANDLERS + 1..guest::HANDLERS + 257).contains(&rip);
    (result, faulted.then(|| rip - 1 - guest::HANDLERS))
}

/// Whether singles of XMM1 (or of where it was stored) differ by more than the form allows.
fn far(form: &Form, host: &NativeState, ours: &NativeState) -> Option<String> {
    let single = |state: &NativeState, at: usize| {
        f32::from_bits(u32::from_le_bytes(state.fx[at..at + 4].try_into().unwrap()))
    };
    (176..192).step_by(4).find_map(|at| {
        let (a, b) = (single(host, at), single(ours, at));
        let same = a.to_bits() == b.to_bits();
        // At the edge of what is normal one may have become zero.
        let edge = a.abs().max(b.abs()) < f32::MIN_POSITIVE * 1.01 && a * b == 0.0;
        let near = (a - b).abs() <= a.abs() * form.tolerance || edge;
        (!same && !near).then(|| format!("{b:e}, host {a:e}"))
    })
}

fn signal_of(vector: u64) -> i32 {
    match vector {
        0 | 16 | 19 => 8,
        1 | 3 => 5,
        6 => 4,
        _ => 11,
    }
}

fn check(forms: &[Form]) {
    check_with(forms, CASES);
}

fn check_with(forms: &[Form], count: usize) {
    let memory = guest::memory();
    memory.add_ram(GuestPhysAddr(CODE_ADDRESS), 0x1000).unwrap();
    memory.add_ram(GuestPhysAddr(DATA_ADDRESS), 0x1000).unwrap();
    guest::prepare_long_mode(&memory);
    // For 32-bit code, as the host has them: at 0x20 a 32-bit code segment, at 0x28 data, at
    // 0x30 a 64-bit code segment. The guest runs at privilege 0, so the code is conforming.
    for (at, descriptor) in [
        (0x20, 0x00cf_9f00_0000_ffff_u64),
        (0x28, 0x00cf_f300_0000_ffff),
        (0x30, 0x00af_9f00_0000_ffff),
    ] {
        guest::put(&memory, guest::GDT + at, &descriptor.to_le_bytes());
    }
    let mut vcpu = guest::vcpu(&memory, 0);
    let mut base = guest::long_state(&*vcpu, CODE_ADDRESS);
    // FSGSBASE too.
    base.system.cr4 |= 1 << 16;
    let mut native = NativeMachine::new().unwrap();
    let mut random = Random(0x5eed_0123_4567_89ab);
    let mut wrong = Vec::new();
    for form in forms {
        let inputs = cases(form, count, &mut random);
        let mut outputs = inputs.clone();
        let outcomes = native.run(&form.code, &mut outputs).unwrap();
        let mut code = form.code.clone();
        code.push(0xf4);
        memory.write(GuestPhysAddr(CODE_ADDRESS), &code).unwrap();
        let mut bad = 0;
        for ((input, output), outcome) in inputs.iter().zip(&outputs).zip(outcomes) {
            let (ours, vector) = run_soft(&mut *vcpu, &memory, input, &base);
            let complaint = match (outcome, vector) {
                (Outcome::Signal(signal), _) if form.narrow => {
                    Some(format!("signal {signal}: nothing was compared"))
                }
                (Outcome::Done, None) => differs(form, input, output, &ours),
                (Outcome::Signal(signal), Some(vector)) if signal_of(vector) == signal => None,
                (outcome, vector) => Some(format!("host {outcome:?}, ours vector {vector:?}")),
            };
            if let Some(complaint) = complaint {
                bad += 1;
                if bad == 1 {
                    wrong.push(format!(
                        "{} {:02x?}: {complaint}\n   in: {:x?} flags {:x}",
                        form.name, form.code, input.general, input.rflags
                    ));
                }
            }
        }
        if bad > 0 {
            wrong.push(format!("   {bad} of {count} cases"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn differs(
    form: &Form,
    input: &NativeState,
    host: &NativeState,
    ours: &NativeState,
) -> Option<String> {
    let mask = (ARITHMETIC | 0x400) & !(form.undefined)(input);
    if (host.rflags ^ ours.rflags) & mask != 0 {
        return Some(format!(
            "flags {:x}, host {:x} (compared {mask:x})",
            ours.rflags & mask,
            host.rflags & mask
        ));
    }
    if host.general != ours.general {
        return Some(format!(
            "ours {:x?}\n host {:x?}",
            ours.general, host.general
        ));
    }
    if host.data != ours.data {
        let at = host.data.iter().zip(&ours.data).position(|(a, b)| a != b);
        let at = at.unwrap_or(0) & !7;
        return Some(format!(
            "memory at {at}: {:02x?}, host {:02x?}",
            &ours.data[at..at + 8],
            &host.data[at..at + 8]
        ));
    }
    if form.floats && host.fx[24..28] != ours.fx[24..28] {
        return Some(format!(
            "mxcsr {:02x?}, host {:02x?}, before {:02x?}\n from {:02x?}\n and  {:02x?}\n memory {:02x?}",
            &ours.fx[24..26],
            &host.fx[24..26],
            &input.fx[24..26],
            &input.fx[176..192],
            &input.fx[192..208],
            &input.data[144..160],
        ));
    }
    if form.tolerance > 0.0 {
        return far(form, host, ours);
    }
    if host.fx[160..416] != ours.fx[160..416] {
        let at = (160..416)
            .find(|at| host.fx[*at] != ours.fx[*at])
            .unwrap_or(160)
            & !15;
        return Some(format!(
            "xmm{}: {:02x?}\n host {:02x?}\n from {:02x?}\n and  {:02x?}",
            (at - 160) / 16,
            &ours.fx[at..at + 16],
            &host.fx[at..at + 16],
            &input.fx[at..at + 16],
            &input.fx[160 + 32..160 + 48],
        ));
    }
    // Of a function that may differ in the last bit, C1, underflow and precision may too.
    let loose = if form.ulps > 0 { 0x230 } else { 0 };
    let status = |state: &NativeState| u16::from_le_bytes([state.fx[2], state.fx[3]]) & !loose;
    let register = |state: &NativeState, n: usize| {
        let bytes: [u8; 16] = state.fx[32 + n * 16..48 + n * 16].try_into().unwrap();
        u128::from_le_bytes(bytes) & (u128::MAX >> 48)
    };
    let near = |n| {
        let (a, b) = (register(host, n), register(ours, n));
        // Without the leading bit neighbours are neighbours over the powers of two too.
        let order = |x: u128| (x >> 64 << 63) | (x & (u128::MAX >> 65));
        a == b || form.ulps > 0 && order(a).abs_diff(order(b)) <= u128::from(form.ulps)
    };
    let same = host.fx[0..2] == ours.fx[0..2]
        && host.fx[4] == ours.fx[4]
        && status(host) == status(ours)
        && (0..8).all(near);
    if form.x87 && !same {
        let show = |state: &NativeState| {
            let registers = (0..8).map(|n| format!("{:x}", register(state, n)));
            format!(
                "{:04x} {:04x} {:02x} {:?}",
                u16::from_le_bytes([state.fx[0], state.fx[1]]),
                u16::from_le_bytes([state.fx[2], state.fx[3]]),
                state.fx[4],
                registers.collect::<Vec<_>>()
            )
        };
        return Some(format!(
            "{}\n host {}\n from {:02x?}\n and {:02x?}",
            show(ours),
            show(host),
            &input.data[144..154],
            &input.data[160..170]
        ));
    }
    None
}

#[test]
fn arithmetic() {
    check(&forms::arithmetic());
}

#[test]
fn moves() {
    check(&forms::moves());
}

#[test]
fn shifts() {
    check(&forms::shifts());
}

#[test]
fn multiplication_and_division() {
    check(&forms::multiplication());
}

#[test]
fn bits() {
    check(&forms::bit_forms());
}

#[test]
fn exchanges() {
    check(&forms::exchanges());
}

#[test]
fn strings() {
    check(&forms::strings());
}

#[test]
fn stack() {
    check(&forms::stack());
}

#[test]
fn sse_integers() {
    check(&forms::sse_integer());
}

#[test]
fn sse_moves() {
    check(&forms::sse_moves());
}

#[test]
fn sse_floats() {
    check(&forms::sse_float());
}

#[test]
fn x87() {
    let forms = forms::x87::all();
    assert!(forms.len() > 1000, "{}", forms.len());
    check_with(&forms, CASES / 4);
}

#[test]
fn mmx() {
    let forms = forms::vector::mmx();
    assert!(forms.len() > 250, "{}", forms.len());
    check_with(&forms, CASES / 2);
}

#[test]
fn estimates() {
    check(&forms::vector::estimates());
}

/// Needs a host with AVX2, FMA and F16C.
#[test]
fn avx() {
    let has = std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c");
    assert!(
        has,
        "this host has not AVX2, FMA and F16C: compared on others"
    );
    let forms = forms::vector::avx();
    assert!(forms.len() > 2000, "{}", forms.len());
    // So many forms that a few cases each will do.
    check_with(&forms, CASES / 8);
}

#[test]
fn code_of_32_bits() {
    let forms = forms::narrow::all();
    assert!(forms.len() > 800, "{}", forms.len());
    check_with(&forms, CASES / 4);
}

/// Needs a kernel that lets programs use FSGSBASE.
#[test]
fn segment_bases() {
    let forms = forms::bases();
    let first = &forms.first().unwrap().code;
    let mut case = [NativeState::default()];
    let allowed = NativeMachine::new().unwrap().run(first, &mut case).unwrap();
    assert_eq!(allowed, [Outcome::Done], "compared on hosts that allow it");
    check(&forms);
}
