//! Packed and scalar floats.
//!
//! Results, rounding, denormals and exceptions are those of MXCSR, by way of `ieee.rs`. What is
//! usual (round to nearest, normal numbers far from the ends of the range) is done with the
//! host's arithmetic; whether it was exact is found out as well. NaNs are those of the
//! processor: the first operand that is one, made quiet; else the negative default NaN for an
//! invalid operation.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use crate::cpu::Cpu;
use crate::domain::{Domain, Flags, Flow, Helper, Op, helper};
use crate::ieee::{Class, DE, DOUBLE, Format, IE, Number, PE, SINGLE, ZE};
use crate::lower::{Lowered, go};
use crate::sse::{Env, build, lane, packed, truth, zip};

/// A float of the vector registers.
pub(super) trait Float: Copy {
    const BITS: u32;
    const BYTES: u64;
    const FORMAT: Format;
    /// The host's result and whether it is exact, for operands where that is all there is to
    /// it; else `None`.
    fn quick(x: u64, y: u64, what: u8) -> Option<(u64, bool)>;
}

macro_rules! quick {
    ($t:ty, $int:ty, $mantissa:literal, $bias:literal, $reach:literal) => {
        fn quick(x: u64, y: u64, what: u8) -> Option<(u64, bool)> {
            // Exponents from which neither the result nor its error can leave the range.
            let plain = |bits: u64| {
                let exponent = (bits >> $mantissa) & (2 * $bias + 1);
                exponent.abs_diff($bias) < $reach
            };
            if !plain(y) || (what != SQRT && !plain(x)) {
                return None;
            }
            let (a, b) = (<$t>::from_bits(x as $int), <$t>::from_bits(y as $int));
            let (r, rest) = match what {
                ADD | SUB => {
                    let b = if what == SUB { -b } else { b };
                    let sum = a + b;
                    let part = sum - a;
                    (sum, (a - (sum - part)) + (b - part))
                }
                MUL => (a * b, a.mul_add(b, -(a * b))),
                DIV => (a / b, (a / b).mul_add(b, -a)),
                SQRT if b > 0.0 => (b.sqrt(), b.sqrt().mul_add(b.sqrt(), -b)),
                _ => return None,
            };
            if r == 0.0 {
                return None;
            }
            Some((u64::from(r.to_bits()), rest == 0.0))
        }
    };
}

impl Float for f32 {
    const BITS: u32 = 32;
    const BYTES: u64 = 4;
    const FORMAT: Format = SINGLE;
    quick!(f32, u32, 23, 127, 30);
}

impl Float for f64 {
    const BITS: u32 = 64;
    const BYTES: u64 = 8;
    const FORMAT: Format = DOUBLE;
    quick!(f64, u64, 52, 1023, 250);
}

pub(super) const ADD: u8 = 0;
const SUB: u8 = 1;
pub(super) const MUL: u8 = 2;
const DIV: u8 = 3;
const MIN: u8 = 4;
const MAX: u8 = 5;
const SQRT: u8 = 6;

impl Env {
    /// An operand, with denormals as MXCSR wants them.
    pub(super) fn unpack<F: Float>(&self, bits: u64) -> Number {
        self.flushed(F::FORMAT.unpack(u128::from(bits)))
    }

    pub(super) fn flushed(&self, n: Number) -> Number {
        if self.daz && n.denormal {
            Number::zero(n.sign)
        } else {
            n
        }
    }

    pub(super) fn flag(&mut self, flag: u8) {
        self.context.flags |= flag;
    }

    pub(super) fn invalid<F: Float>(&mut self) -> u64 {
        self.flag(IE);
        F::FORMAT.indefinite() as u64
    }

    /// The NaN that comes out when an operand is one.
    pub(super) fn nan<F: Float>(&mut self, operands: &[Number]) -> Option<u64> {
        let first = operands.iter().find(|n| n.is_nan())?;
        if operands.iter().any(|n| n.class == Class::Signaling) {
            self.flag(IE);
        }
        Some(F::FORMAT.quiet(*first) as u64)
    }

    pub(super) fn denormals(&mut self, operands: &[Number]) {
        if operands.iter().any(|n| n.denormal) {
            self.flag(DE);
        }
    }

    pub(super) fn round<F: Float>(&mut self, n: Number) -> u64 {
        self.context.round(F::FORMAT, n) as u64
    }
}

/// The sum of two numbers that are no NaNs; `None`: invalid. An exact zero gets its sign from
/// the rounding.
pub(crate) fn sum(a: Number, b: Number, rounding: u8) -> Option<Number> {
    match (a.is_infinite(), b.is_infinite()) {
        (true, true) if a.sign != b.sign => None,
        (true, _) => Some(a),
        (_, true) => Some(b),
        _ => {
            let r = a.plus(b);
            if r.is_zero() && a.sign != b.sign {
                return Some(Number::zero(rounding == 1));
            }
            Some(r)
        }
    }
}

pub(crate) fn product(a: Number, b: Number) -> Option<Number> {
    if a.is_infinite() || b.is_infinite() {
        let infinity = Number {
            class: Class::Infinite,
            sign: a.sign != b.sign,
            ..a
        };
        return (!a.is_zero() && !b.is_zero()).then_some(infinity);
    }
    Some(a.times(b))
}

/// The quotient, and whether it is of a division by zero.
pub(crate) fn quotient(a: Number, b: Number) -> Option<(Number, bool)> {
    let sign = a.sign != b.sign;
    let infinity = Number {
        class: Class::Infinite,
        sign,
        ..a
    };
    match (a.class, b.class) {
        (Class::Infinite, Class::Infinite) | (Class::Zero, Class::Zero) => None,
        (Class::Infinite, _) => Some((infinity, false)),
        (_, Class::Infinite) => Some((Number::zero(sign), false)),
        (_, Class::Zero) => Some((infinity, true)),
        _ => Some((a.over(b), false)),
    }
}

/// MIN and MAX: the second operand if either is a NaN or both are zeroes.
fn smaller<F: Float>(env: &mut Env, a: Number, b: Number, max: bool) -> u64 {
    let first = if a.is_nan() || b.is_nan() {
        env.flag(IE);
        false
    } else {
        env.denormals(&[a, b]);
        let order = a.order(b);
        if max { order.is_gt() } else { order.is_lt() }
    };
    let n = if first { a } else { b };
    if n.class == Class::Signaling {
        // As it is.
        return (F::FORMAT.quiet(n) & !(1 << (F::FORMAT.precision - 2))) as u64;
    }
    // Exact: rounding signals nothing.
    let mut exact = crate::ieee::Context::default();
    exact.round(F::FORMAT, n) as u64
}

pub(super) fn operate<F: Float>(env: &mut Env, x: u64, y: u64, what: u8) -> u64 {
    if env.context.rounding == 0
        && let Some((r, exact)) = F::quick(x, y, what)
    {
        env.flag(if exact { 0 } else { PE });
        return r;
    }
    let (a, b) = (env.unpack::<F>(x), env.unpack::<F>(y));
    match what {
        MIN | MAX => return smaller::<F>(env, a, b, what == MAX),
        SQRT => return root::<F>(env, b),
        _ => {}
    }
    if let Some(nan) = env.nan::<F>(&[a, b]) {
        return nan;
    }
    let rounding = env.context.rounding;
    let r = match what {
        ADD => sum(a, b, rounding),
        SUB => sum(a, b.negated(true), rounding),
        MUL => product(a, b),
        _ => quotient(a, b).map(|(r, by_zero)| {
            env.flag(if by_zero { ZE } else { 0 });
            r
        }),
    };
    let Some(r) = r else {
        return env.invalid::<F>();
    };
    if env.context.flags & ZE == 0 || !b.is_zero() {
        env.denormals(&[a, b]);
    }
    env.round::<F>(r)
}

fn root<F: Float>(env: &mut Env, b: Number) -> u64 {
    if let Some(nan) = env.nan::<F>(&[b]) {
        return nan;
    }
    if b.sign && !b.is_zero() {
        return env.invalid::<F>();
    }
    env.denormals(&[b]);
    let r = if b.is_infinite() { b } else { b.root() };
    env.round::<F>(r)
}

pub(super) fn every<F: Float>(a: u128, b: u128, f: impl FnMut(u64, u64) -> u64) -> u128 {
    if F::BITS == 32 {
        zip::<32>(a, b, f)
    } else {
        zip::<64>(a, b, f)
    }
}

/// The lowest lane from `f`, the others of `a`.
pub(super) fn lowest<F: Float>(a: u128, b: u128, mut f: impl FnMut(u64, u64) -> u64) -> u128 {
    let mask = u128::from(u64::MAX >> (64 - F::BITS));
    let r = f((a & mask) as u64, (b & mask) as u64);
    (a & !mask) | (u128::from(r) & mask)
}

struct All<F, const WHAT: u8>(std::marker::PhantomData<F>);
impl<F: Float, const WHAT: u8> super::Packed for All<F, WHAT> {
    const FLOAT: bool = true;
    fn f(env: &mut Env, a: u128, b: u128, _: u8) -> u128 {
        every::<F>(a, b, |x, y| operate::<F>(env, x, y, WHAT))
    }
}

struct One<F, const WHAT: u8>(std::marker::PhantomData<F>);
impl<F: Float, const WHAT: u8> super::Packed for One<F, WHAT> {
    const FLOAT: bool = true;
    const BYTES: u64 = F::BYTES;
    fn f(env: &mut Env, a: u128, b: u128, _: u8) -> u128 {
        lowest::<F>(a, b, |x, y| operate::<F>(env, x, y, WHAT))
    }
}

/// The predicates of CMPxx: eight, and with VEX prefix thirty-two (Intel SDM 2, table 3-1).
fn compare<F: Float>(env: &mut Env, x: u64, y: u64, predicate: u8) -> u64 {
    let (a, b) = (env.unpack::<F>(x), env.unpack::<F>(y));
    let opposite = predicate & 4 != 0;
    if a.is_nan() || b.is_nan() {
        let signals = matches!(predicate & 3, 1 | 2) != (predicate & 16 != 0);
        if signals || a.class == Class::Signaling || b.class == Class::Signaling {
            env.flag(IE);
        }
        return truth((predicate & 3 == 3) ^ opposite ^ (predicate & 8 != 0));
    }
    env.denormals(&[a, b]);
    let order = a.order(b);
    let holds = match predicate & 3 {
        0 => order.is_eq(),
        1 => order.is_lt(),
        2 => order.is_le(),
        _ => false,
    };
    truth(holds != opposite)
}

struct CompareAll<F>(std::marker::PhantomData<F>);
impl<F: Float> super::Packed for CompareAll<F> {
    const FLOAT: bool = true;
    const IMMEDIATE: u8 = 7;
    fn f(env: &mut Env, a: u128, b: u128, imm: u8) -> u128 {
        every::<F>(a, b, |x, y| compare::<F>(env, x, y, imm))
    }
}

struct CompareOne<F>(std::marker::PhantomData<F>);
impl<F: Float> super::Packed for CompareOne<F> {
    const FLOAT: bool = true;
    const IMMEDIATE: u8 = 7;
    const BYTES: u64 = F::BYTES;
    fn f(env: &mut Env, a: u128, b: u128, imm: u8) -> u128 {
        lowest::<F>(a, b, |x, y| compare::<F>(env, x, y, imm))
    }
}

/// Lane `n` of a vector of `F`s.
fn float_lane<F: Float>(a: u128, n: u32) -> u64 {
    if F::BITS == 32 {
        lane::<32>(a, n)
    } else {
        lane::<64>(a, n)
    }
}

fn build_floats<F: Float>(f: impl FnMut(u32) -> u64) -> u128 {
    if F::BITS == 32 {
        build::<32>(f)
    } else {
        build::<64>(f)
    }
}

/// Neighbours of both vectors, added or subtracted.
struct Horizontal<F, const WHAT: u8>(std::marker::PhantomData<F>);
impl<F: Float, const WHAT: u8> super::Packed for Horizontal<F, WHAT> {
    const FLOAT: bool = true;
    fn f(env: &mut Env, a: u128, b: u128, _: u8) -> u128 {
        let half = 64 / F::BITS;
        build_floats::<F>(|n| {
            let from = if n < half { a } else { b };
            let at = (n % half) * 2;
            let (x, y) = (float_lane::<F>(from, at), float_lane::<F>(from, at + 1));
            operate::<F>(env, x, y, WHAT)
        })
    }
}

/// ADDSUBxx: even lanes subtracted, odd ones added.
struct Alternate<F>(std::marker::PhantomData<F>);
impl<F: Float> super::Packed for Alternate<F> {
    const FLOAT: bool = true;
    fn f(env: &mut Env, a: u128, b: u128, _: u8) -> u128 {
        build_floats::<F>(|n| {
            let what = if n & 1 == 0 { SUB } else { ADD };
            operate::<F>(env, float_lane::<F>(a, n), float_lane::<F>(b, n), what)
        })
    }
}

/// DPPS and DPPD: products that bits 7:4 choose, summed in pairs, to where bits 3:0 say.
struct Dot<F>(std::marker::PhantomData<F>);
impl<F: Float> super::Packed for Dot<F> {
    const FLOAT: bool = true;
    fn f(env: &mut Env, a: u128, b: u128, imm: u8) -> u128 {
        let mut product = |n: u32| {
            if imm >> (4 + n) & 1 == 0 {
                return 0;
            }
            operate::<F>(env, float_lane::<F>(a, n), float_lane::<F>(b, n), MUL)
        };
        // Each lane adds up in its own order, as processors do: that decides about NaNs.
        let mut sums = [product(0), product(1), 0, 0];
        if F::BITS == 32 {
            sums = [sums[0], sums[1], product(2), product(3)];
        }
        for step in (0..3 - F::BITS / 32).map(|n| 1 << n) {
            let old = sums;
            let of = |n: usize| old.get(n).copied().unwrap_or(0);
            for (n, sum) in sums.iter_mut().enumerate().take(128 / F::BITS as usize) {
                let other = of(n ^ step);
                *sum = if step == 1 && F::BITS == 32 {
                    operate::<F>(env, other, of(n), ADD)
                } else {
                    operate::<F>(env, of(n), other, ADD)
                };
            }
        }
        build_floats::<F>(|n| {
            let chosen = imm >> n & 1 != 0;
            sums.get(n as usize)
                .copied()
                .filter(|_| chosen)
                .unwrap_or(0)
        })
    }
}

/// RCPxS and RSQRTxS. The architecture allows a relative error of 1.5 * 2^-12; these are cut to
/// 14 bits. Denormals count as zero, tiny results become zero, nothing is signalled.
fn estimate(y: u64, root: bool) -> u64 {
    let n = SINGLE.unpack(u128::from(y));
    let sign = n.sign;
    match n.class {
        Class::Quiet | Class::Signaling => return SINGLE.quiet(n) as u64,
        Class::Zero => return SINGLE.infinity(sign) as u64,
        Class::Finite if n.denormal => return SINGLE.infinity(sign) as u64,
        _ if root && sign => return SINGLE.indefinite() as u64,
        Class::Infinite => return SINGLE.zero(sign) as u64,
        _ => {}
    }
    let one = Number::new(false, 0, 1);
    let mut wide = crate::ieee::Context {
        flush: true,
        rounding: 3,
        precision: Some(14),
        ..Default::default()
    };
    let of = if root {
        let root = n.root();
        // What `over` divides by quickly: 64 bits are plenty.
        Number {
            significand: root.significand >> 64 << 64,
            ..root
        }
    } else {
        n
    };
    wide.round(SINGLE, one.over(of).negated(false)) as u64
}

struct Estimate<const ROOT: bool, const ALL: bool>;
impl<const ROOT: bool, const ALL: bool> super::Packed for Estimate<ROOT, ALL> {
    const BYTES: u64 = if ALL { 16 } else { 4 };
    fn f(_: &mut Env, a: u128, b: u128, _: u8) -> u128 {
        if ALL {
            every::<f32>(a, b, |_, y| estimate(y, ROOT))
        } else {
            lowest::<f32>(a, b, |_, y| estimate(y, ROOT))
        }
    }
}

packed! {
    Insertps[4](a, b, imm) => insert(a, b as u64, imm);
    // From a register: the lane that bits 7:6 say.
    InsertRegister(a, b, imm) => insert(a, lane::<32>(b, u32::from(imm >> 6)), imm);
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

/// ROUNDxx.
fn round_lane<F: Float>(env: &mut Env, y: u64, imm: u8) -> u64 {
    let n = env.unpack::<F>(y);
    if let Some(nan) = env.nan::<F>(&[n]) {
        return nan;
    }
    let mode = if imm & 4 != 0 {
        env.context.rounding
    } else {
        imm & 3
    };
    let (whole, inexact, _) = n.integral(mode);
    if inexact && imm & 8 == 0 {
        env.flag(PE);
    }
    env.round::<F>(whole)
}

struct Round<F, const ALL: bool>(std::marker::PhantomData<F>);
impl<F: Float, const ALL: bool> super::Packed for Round<F, ALL> {
    const FLOAT: bool = true;
    const BYTES: u64 = if ALL { 16 } else { F::BYTES };
    fn f(env: &mut Env, a: u128, b: u128, imm: u8) -> u128 {
        if ALL {
            every::<F>(a, b, |_, y| round_lane::<F>(env, y, imm))
        } else {
            lowest::<F>(a, b, |_, y| round_lane::<F>(env, y, imm))
        }
    }
}

/// COMISx, and UCOMISx (`QUIET`: only signalling NaNs are invalid).
struct Order<F, const QUIET: bool>(std::marker::PhantomData<F>);
impl<F: Float, const QUIET: bool> Helper for Order<F, QUIET> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let b = cpu.vector_source(op, F::BYTES, false)?;
        let mask = u64::MAX >> (64 - F::BITS);
        let mut env = cpu.float_env();
        let x = env.unpack::<F>(cpu.xmm(op.dst) as u64 & mask);
        let y = env.unpack::<F>(b as u64 & mask);
        let unordered = x.is_nan() || y.is_nan();
        if !unordered {
            env.denormals(&[x, y]);
        } else if !QUIET || x.class == Class::Signaling || y.class == Class::Signaling {
            env.flag(IE);
        }
        cpu.float_done(&env)?;
        let order = x.order(y);
        let carry = unordered || order.is_lt();
        cpu.flags = Flags {
            zr: u64::from(!(unordered || order.is_eq())),
            sr: u64::from(!unordered),
            cv: if carry { 3 << 62 } else { 0 },
        };
        Ok(())
    }
}

macro_rules! four {
    ($i:expr, $m:expr; $($ps:ident $pd:ident $ss:ident $sd:ident $what:ident;)*) => {
        match $m {
            $(
                M::$ps => return crate::sse::operation::<D, All<f32, $what>>($i),
                M::$pd => return crate::sse::operation::<D, All<f64, $what>>($i),
                M::$ss => return crate::sse::operation::<D, One<f32, $what>>($i),
                M::$sd => return crate::sse::operation::<D, One<f64, $what>>($i),
            )*
            _ => {}
        }
    };
}

pub(crate) fn lower<D: Domain>(i: &Instruction, m: M) -> Option<Lowered<D>> {
    four!(i, m;
        Addps Addpd Addss Addsd ADD;
        Subps Subpd Subss Subsd SUB;
        Mulps Mulpd Mulss Mulsd MUL;
        Divps Divpd Divss Divsd DIV;
        Minps Minpd Minss Minsd MIN;
        Maxps Maxpd Maxss Maxsd MAX;
        Sqrtps Sqrtpd Sqrtss Sqrtsd SQRT;
    );
    match m {
        M::Cmpps => super::operation::<D, CompareAll<f32>>(i),
        M::Cmppd => super::operation::<D, CompareAll<f64>>(i),
        M::Cmpss => super::operation::<D, CompareOne<f32>>(i),
        M::Cmpsd => super::operation::<D, CompareOne<f64>>(i),
        M::Haddps => super::operation::<D, Horizontal<f32, ADD>>(i),
        M::Haddpd => super::operation::<D, Horizontal<f64, ADD>>(i),
        M::Hsubps => super::operation::<D, Horizontal<f32, SUB>>(i),
        M::Hsubpd => super::operation::<D, Horizontal<f64, SUB>>(i),
        M::Addsubps => super::operation::<D, Alternate<f32>>(i),
        M::Addsubpd => super::operation::<D, Alternate<f64>>(i),
        M::Dpps => super::operation::<D, Dot<f32>>(i),
        M::Dppd => super::operation::<D, Dot<f64>>(i),
        M::Rcpps => super::operation::<D, Estimate<false, true>>(i),
        M::Rcpss => super::operation::<D, Estimate<false, false>>(i),
        M::Rsqrtps => super::operation::<D, Estimate<true, true>>(i),
        M::Rsqrtss => super::operation::<D, Estimate<true, false>>(i),
        M::Insertps if i.op_kinds().any(|kind| kind == OpKind::Memory) => {
            super::operation::<D, Insertps>(i)
        }
        M::Insertps => super::operation::<D, InsertRegister>(i),
        M::Roundps => super::operation::<D, Round<f32, true>>(i),
        M::Roundpd => super::operation::<D, Round<f64, true>>(i),
        M::Roundss => super::operation::<D, Round<f32, false>>(i),
        M::Roundsd => super::operation::<D, Round<f64, false>>(i),
        M::Comiss => go(helper::<D, Order<f32, false>>),
        M::Comisd => go(helper::<D, Order<f64, false>>),
        M::Ucomiss => go(helper::<D, Order<f32, true>>),
        M::Ucomisd => go(helper::<D, Order<f64, true>>),
        _ => None,
    }
}
