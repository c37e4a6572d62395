//! Packed and scalar floats, with the host's arithmetic.
//!
//! Results are those of the default MXCSR: round to nearest, no flushing of denormals, all
//! exceptions masked. What deviates: the sticky flags of MXCSR are not set, its rounding mode
//! counts for conversions to integers and ROUNDxx only, and unmasked exceptions do not trap.
//! NaNs are those of the processor: the first operand that is one, made quiet; else the
//! negative default NaN for an invalid operation.

use iced_x86::{Instruction, Mnemonic as M};

use crate::cpu::Cpu;
use crate::domain::{Domain, Flags, Flow, Helper, Op, helper};
use crate::lower::{Lowered, go};
use crate::sse::{build, lane, packed, truth, zip};

/// A float of the vector registers.
pub(super) trait Float: Copy + PartialOrd {
    const BITS: u32;
    const BYTES: u64;
    fn of_bits(bits: u64) -> Self;
    fn bits(self) -> u64;
    fn nan(self) -> bool;
    /// Sets the quiet bit.
    fn quiet(bits: u64) -> u64;
    /// What an invalid operation gives.
    fn indefinite() -> u64;
    fn arithmetic(a: Self, b: Self, what: u8) -> Self;
    fn root(self) -> Self;
    fn round_by(self, mode: u8) -> Self;
}

macro_rules! float {
    ($t:ty, $int:ty, $bits:literal, $quiet:literal, $indefinite:literal) => {
        impl Float for $t {
            const BITS: u32 = $bits;
            const BYTES: u64 = $bits / 8;
            fn of_bits(bits: u64) -> Self {
                Self::from_bits(bits as $int)
            }
            fn bits(self) -> u64 {
                u64::from(self.to_bits())
            }
            fn nan(self) -> bool {
                self.is_nan()
            }
            fn quiet(bits: u64) -> u64 {
                bits | $quiet
            }
            fn indefinite() -> u64 {
                $indefinite
            }
            fn arithmetic(a: Self, b: Self, what: u8) -> Self {
                match what {
                    ADD => a + b,
                    SUB => a - b,
                    MUL => a * b,
                    _ => a / b,
                }
            }
            fn root(self) -> Self {
                self.sqrt()
            }
            fn round_by(self, mode: u8) -> Self {
                match mode & 3 {
                    0 => self.round_ties_even(),
                    1 => self.floor(),
                    2 => self.ceil(),
                    _ => self.trunc(),
                }
            }
        }
    };
}

float!(f32, u32, 32, 0x40_0000, 0xffc0_0000);
float!(f64, u64, 64, 0x8_0000_0000_0000, 0xfff8_0000_0000_0000);

const ADD: u8 = 0;
const SUB: u8 = 1;
const MUL: u8 = 2;
const DIV: u8 = 3;
const MIN: u8 = 4;
const MAX: u8 = 5;
const SQRT: u8 = 6;

/// A result, or the NaN that an operation without NaN operands made.
fn settle<F: Float>(r: F) -> u64 {
    if r.nan() { F::indefinite() } else { r.bits() }
}

fn operate<F: Float>(x: u64, y: u64, what: u8) -> u64 {
    let (a, b) = (F::of_bits(x), F::of_bits(y));
    match what {
        // The second operand if either is a NaN or both are zeroes.
        MIN => return if a < b { x } else { y },
        MAX => return if a > b { x } else { y },
        SQRT if b.nan() => return F::quiet(y),
        SQRT => return settle(b.root()),
        _ => {}
    }
    if a.nan() {
        F::quiet(x)
    } else if b.nan() {
        F::quiet(y)
    } else {
        settle(F::arithmetic(a, b, what))
    }
}

fn every<F: Float>(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    if F::BITS == 32 {
        zip::<32>(a, b, f)
    } else {
        zip::<64>(a, b, f)
    }
}

/// The lowest lane from `f`, the others of `a`.
fn lowest<F: Float>(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    let mask = u128::from(u64::MAX >> (64 - F::BITS));
    let r = f((a & mask) as u64, (b & mask) as u64);
    (a & !mask) | (u128::from(r) & mask)
}

struct All<F, const WHAT: u8>(std::marker::PhantomData<F>);
impl<F: Float, const WHAT: u8> super::Packed for All<F, WHAT> {
    fn f(a: u128, b: u128, _: u8) -> u128 {
        every::<F>(a, b, |x, y| operate::<F>(x, y, WHAT))
    }
}

struct One<F, const WHAT: u8>(std::marker::PhantomData<F>);
impl<F: Float, const WHAT: u8> super::Packed for One<F, WHAT> {
    const BYTES: u64 = F::BYTES;
    fn f(a: u128, b: u128, _: u8) -> u128 {
        lowest::<F>(a, b, |x, y| operate::<F>(x, y, WHAT))
    }
}

/// The eight predicates of CMPxx.
fn compare<F: Float>(x: u64, y: u64, predicate: u8) -> u64 {
    let (a, b) = (F::of_bits(x), F::of_bits(y));
    let unordered = a.nan() || b.nan();
    let holds = match predicate & 3 {
        0 => a == b,
        1 => a < b,
        2 => a <= b,
        _ => unordered,
    };
    truth(holds != (predicate & 4 != 0))
}

struct CompareAll<F>(std::marker::PhantomData<F>);
impl<F: Float> super::Packed for CompareAll<F> {
    fn f(a: u128, b: u128, imm: u8) -> u128 {
        every::<F>(a, b, |x, y| compare::<F>(x, y, imm))
    }
}

struct CompareOne<F>(std::marker::PhantomData<F>);
impl<F: Float> super::Packed for CompareOne<F> {
    const BYTES: u64 = F::BYTES;
    fn f(a: u128, b: u128, imm: u8) -> u128 {
        lowest::<F>(a, b, |x, y| compare::<F>(x, y, imm))
    }
}

fn f32_of(x: u64, y: u64, what: u8) -> u64 {
    operate::<f32>(x, y, what)
}

fn f64_of(x: u64, y: u64, what: u8) -> u64 {
    operate::<f64>(x, y, what)
}

/// Neighbours of both vectors, added or subtracted.
fn horizontal32(a: u128, b: u128, what: u8) -> u128 {
    build::<32>(|n| {
        let from = if n < 2 { a } else { b };
        let at = (n & 1) * 2;
        f32_of(lane::<32>(from, at), lane::<32>(from, at + 1), what)
    })
}

fn horizontal64(a: u128, b: u128, what: u8) -> u128 {
    build::<64>(|n| {
        let from = if n == 0 { a } else { b };
        f64_of(lane::<64>(from, 0), lane::<64>(from, 1), what)
    })
}

fn alternate(n: u32) -> u8 {
    if n & 1 == 0 { SUB } else { ADD }
}

packed! {
    Haddps(a, b, _) => horizontal32(a, b, ADD);
    Haddpd(a, b, _) => horizontal64(a, b, ADD);
    Hsubps(a, b, _) => horizontal32(a, b, SUB);
    Hsubpd(a, b, _) => horizontal64(a, b, SUB);
    Addsubps(a, b, _) => build::<32>(|n| f32_of(lane::<32>(a, n), lane::<32>(b, n), alternate(n)));
    Addsubpd(a, b, _) => build::<64>(|n| f64_of(lane::<64>(a, n), lane::<64>(b, n), alternate(n)));
    Insertps[4](a, b, imm) => insert(a, b as u64, imm);
}

/// INSERTPS: the source lane was chosen already.
fn insert(a: u128, value: u64, imm: u8) -> u128 {
    let at = u32::from(imm >> 4 & 3);
    build::<32>(|n| {
        if imm >> n & 1 != 0 {
            0
        } else if n == at {
            value & 0xffff_ffff
        } else {
            lane::<32>(a, n)
        }
    })
}

/// INSERTPS from a register takes the lane that bits 7:6 say.
struct InsertRegister;
impl super::Packed for InsertRegister {
    fn f(a: u128, b: u128, imm: u8) -> u128 {
        insert(a, lane::<32>(b, u32::from(imm >> 6)), imm)
    }
}

/// ROUNDxx.
struct Round<F, const ALL: bool>(std::marker::PhantomData<F>);
impl<F: Float, const ALL: bool> Helper for Round<F, ALL> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        let bytes = if ALL { 16 } else { F::BYTES };
        let b = cpu.vector_source(op, bytes, ALL)?;
        let a = cpu.xmm(op.dst);
        let imm = op.imm as u8;
        let mode = if imm & 4 != 0 {
            (cpu.fpu.mxcsr >> 13) as u8 & 3
        } else {
            imm & 3
        };
        let round = |_: u64, y: u64| {
            let value = F::of_bits(y);
            if value.nan() {
                F::quiet(y)
            } else {
                value.round_by(mode).bits()
            }
        };
        let r = if ALL {
            every::<F>(a, b, round)
        } else {
            lowest::<F>(a, b, round)
        };
        cpu.set_xmm(op.dst, r);
        Ok(())
    }
}

/// COMISx and UCOMISx.
struct Order<F>(std::marker::PhantomData<F>);
impl<F: Float> Helper for Order<F> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        let b = cpu.vector_source(op, F::BYTES, false)?;
        let mask = u64::MAX >> (64 - F::BITS);
        let (x, y) = (
            F::of_bits(cpu.xmm(op.dst) as u64 & mask),
            F::of_bits(b as u64 & mask),
        );
        let unordered = x.nan() || y.nan();
        let carry = unordered || x < y;
        cpu.flags = Flags {
            zr: u64::from(!(unordered || x == y)),
            sr: u64::from(!unordered),
            cv: if carry { 3 << 62 } else { 0 },
        };
        Ok(())
    }
}

macro_rules! four {
    ($m:expr; $($ps:ident $pd:ident $ss:ident $sd:ident $what:ident;)*) => {
        match $m {
            $(
                M::$ps => return crate::sse::operation::<D, All<f32, $what>>(),
                M::$pd => return crate::sse::operation::<D, All<f64, $what>>(),
                M::$ss => return crate::sse::operation::<D, One<f32, $what>>(),
                M::$sd => return crate::sse::operation::<D, One<f64, $what>>(),
            )*
            _ => {}
        }
    };
}

pub(crate) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let m = i.mnemonic();
    four!(m;
        Addps Addpd Addss Addsd ADD;
        Subps Subpd Subss Subsd SUB;
        Mulps Mulpd Mulss Mulsd MUL;
        Divps Divpd Divss Divsd DIV;
        Minps Minpd Minss Minsd MIN;
        Maxps Maxpd Maxss Maxsd MAX;
        Sqrtps Sqrtpd Sqrtss Sqrtsd SQRT;
    );
    match m {
        M::Cmpps => super::operation::<D, CompareAll<f32>>(),
        M::Cmppd => super::operation::<D, CompareAll<f64>>(),
        M::Cmpss => super::operation::<D, CompareOne<f32>>(),
        M::Cmpsd => super::operation::<D, CompareOne<f64>>(),
        M::Haddps => super::operation::<D, Haddps>(),
        M::Haddpd => super::operation::<D, Haddpd>(),
        M::Hsubps => super::operation::<D, Hsubps>(),
        M::Hsubpd => super::operation::<D, Hsubpd>(),
        M::Addsubps => super::operation::<D, Addsubps>(),
        M::Addsubpd => super::operation::<D, Addsubpd>(),
        M::Insertps if i.op_kind(1) == iced_x86::OpKind::Register => {
            super::operation::<D, InsertRegister>()
        }
        M::Insertps => super::operation::<D, Insertps>(),
        M::Roundps => go(helper::<D, Round<f32, true>>),
        M::Roundpd => go(helper::<D, Round<f64, true>>),
        M::Roundss => go(helper::<D, Round<f32, false>>),
        M::Roundsd => go(helper::<D, Round<f64, false>>),
        M::Comiss | M::Ucomiss => go(helper::<D, Order<f32>>),
        M::Comisd | M::Ucomisd => go(helper::<D, Order<f64>>),
        _ => None,
    }
}
