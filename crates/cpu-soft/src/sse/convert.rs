//! Conversions between integers and floats, and between floats.

use iced_x86::{Instruction, Mnemonic as M};

use crate::cpu::Cpu;
use crate::domain::{Domain, Flow, Helper, Op, W32, W64, Width, helper};
use crate::ieee::{Context, HALF, IE, Number};
use crate::lower::{Lowered, Shape, bits_of, go, prefix};
use crate::sse::float::{Float, lowest};
use crate::sse::{Env, Packed, build, lane, signed};

/// A float of one format in another.
fn reformat<From: Float, To: Float>(env: &mut Env, x: u64) -> u64 {
    let n = env.unpack::<From>(x);
    if let Some(nan) = env.nan::<To>(&[n]) {
        return nan;
    }
    env.denormals(&[n]);
    env.round::<To>(n)
}

/// A float as an integer of 32 or 64 bits; what does not fit is the smallest integer.
pub(super) fn to_integer<F: Float>(env: &mut Env, x: u64, bits: u32, truncate: bool) -> u64 {
    let n = env.unpack::<F>(x);
    let mut context = Context {
        rounding: if truncate { 3 } else { env.context.rounding },
        ..env.context
    };
    let value = if n.is_nan() {
        None
    } else {
        context.integer_of(n, bits)
    };
    env.flag(if value.is_some() { context.flags } else { IE });
    value.unwrap_or(1 << (bits - 1))
}

pub(super) fn from_integer<F: Float>(env: &mut Env, value: i64) -> u64 {
    env.round::<F>(Number::integer(i128::from(value)))
}

fn int_lane(b: u128, n: u32) -> i64 {
    signed::<32>(lane::<32>(b, n))
}

/// Lanes of 32 bits, the upper two zero.
fn two(mut f: impl FnMut(u32) -> u64) -> u128 {
    u128::from(f(0) & 0xffff_ffff) | (u128::from(f(1) & 0xffff_ffff) << 32)
}

/// Defines conversions: as `packed!`, with `env`.
macro_rules! conversions {
    ($($name:ident $([$bytes:literal])? $({$($key:ident: $type:ty = $value:expr),*})?
        ($env:ident, $a:pat, $b:pat) => $body:expr;)*) => {$(
        pub(super) struct $name;
        impl Packed for $name {
            const FLOAT: bool = true;
            $(const BYTES: u64 = $bytes;)?
            $($(const $key: $type = $value;)*)?
            fn f($env: &mut Env, $a: u128, $b: u128, _: u8) -> u128 {
                $body
            }
        }
    )*};
}

conversions! {
    Cvtdq2pd[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(env, _, b) =>
        build::<64>(|n| from_integer::<f64>(env, int_lane(b, n)));
    Cvtdq2ps(env, _, b) => build::<32>(|n| from_integer::<f32>(env, int_lane(b, n)));
    Cvtps2dq(env, _, b) =>
        build::<32>(|n| to_integer::<f32>(env, lane::<32>(b, n), 32, false));
    Cvttps2dq(env, _, b) =>
        build::<32>(|n| to_integer::<f32>(env, lane::<32>(b, n), 32, true));
    Cvtpd2dq{NARROWS: bool = true}(env, _, b) =>
        two(|n| to_integer::<f64>(env, lane::<64>(b, n), 32, false));
    Cvttpd2dq{NARROWS: bool = true}(env, _, b) =>
        two(|n| to_integer::<f64>(env, lane::<64>(b, n), 32, true));
    Cvtps2pd[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(env, _, b) =>
        build::<64>(|n| reformat::<f32, f64>(env, lane::<32>(b, n)));
    Cvtpd2ps{NARROWS: bool = true}(env, _, b) =>
        two(|n| reformat::<f64, f32>(env, lane::<64>(b, n)));
    Cvtss2sd[4](env, a, b) =>
        (a >> 64 << 64) | u128::from(reformat::<f32, f64>(env, lane::<32>(b, 0)));
    Cvtsd2ss[8](env, a, b) =>
        (a >> 32 << 32) | u128::from(reformat::<f64, f32>(env, lane::<64>(b, 0)));
    Vcvtph2ps[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(env, _, b) =>
        build::<32>(|n| from_half(env, lane::<16>(b, n)));
    // With MMX registers.
    Cvtpi2ps[8](env, a, b) =>
        (a >> 64 << 64) | two(|n| from_integer::<f32>(env, int_lane(b, n)));
    Cvtpi2pd[8](env, _, b) => build::<64>(|n| from_integer::<f64>(env, int_lane(b, n)));
    Cvtps2pi[8](env, _, b) => two(|n| to_integer::<f32>(env, lane::<32>(b, n), 32, false));
    Cvttps2pi[8](env, _, b) => two(|n| to_integer::<f32>(env, lane::<32>(b, n), 32, true));
    Cvtpd2pi(env, _, b) => two(|n| to_integer::<f64>(env, lane::<64>(b, n), 32, false));
    Cvttpd2pi(env, _, b) => two(|n| to_integer::<f64>(env, lane::<64>(b, n), 32, true));
}

/// Denormal halves are numbers whatever MXCSR says, and do not signal.
fn from_half(env: &mut Env, x: u64) -> u64 {
    let n = HALF.unpack(u128::from(x));
    match env.nan::<f32>(&[n]) {
        Some(nan) => nan,
        None => env.round::<f32>(n),
    }
}

/// A single as a half, rounded as the immediate says; tiny results are never flushed.
pub(super) fn to_half(env: &mut Env, x: u64, imm: u8) -> u64 {
    let n = env.unpack::<f32>(x);
    if let Some(nan) = n.is_nan().then(|| HALF.quiet(n)) {
        env.nan::<f32>(&[n]);
        return nan as u64;
    }
    env.denormals(&[n]);
    let mut context = Context {
        rounding: if imm & 4 != 0 {
            env.context.rounding
        } else {
            imm & 3
        },
        flush: false,
        ..env.context
    };
    let r = context.round(HALF, n) as u64;
    env.flag(context.flags);
    r
}

/// An integer of a register or memory into the lowest lane.
struct FromInteger<W, F>(std::marker::PhantomData<(W, F)>);
impl<W: Width, F: Float> Helper for FromInteger<W, F> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let value = if op.prefix & prefix::MEMORY != 0 {
            cpu.load::<W>(op)?
        } else {
            cpu.reg::<W>(Cpu::last_register(op))
        };
        let mut env = cpu.float_env();
        let bits = from_integer::<F>(&mut env, W::sext(value) as i64);
        cpu.float_done(&env)?;
        let r = lowest::<F>(cpu.kept_xmm(op), 0, |_, _| bits);
        cpu.put_xmm(op, op.dst, r);
        Ok(())
    }
}

/// The lowest lane into an integer register.
struct ToInteger<W, F, const TRUNCATE: bool>(std::marker::PhantomData<(W, F)>);
impl<W: Width, F: Float, const TRUNCATE: bool> Helper for ToInteger<W, F, TRUNCATE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let b = cpu.vector_source(op, F::BYTES, false)? as u64;
        let mut env = cpu.float_env();
        let b = b & (u64::MAX >> (64 - F::BITS));
        let value = to_integer::<F>(&mut env, b, W::BITS, TRUNCATE);
        cpu.float_done(&env)?;
        cpu.set_reg::<W>(op.dst, value);
        Ok(())
    }
}

fn to_integer_of<D: Domain, F: Float, const TRUNCATE: bool>(s: &Shape) -> Option<Lowered<D>> {
    go(match s.bits {
        64 => helper::<D, ToInteger<W64, F, TRUNCATE>>,
        _ => helper::<D, ToInteger<W32, F, TRUNCATE>>,
    })
}

fn from_integer_of<D: Domain, F: Float>(i: &Instruction) -> Option<Lowered<D>> {
    go(match bits_of(i, i.op_count() - 1) {
        64 => helper::<D, FromInteger<W64, F>>,
        _ => helper::<D, FromInteger<W32, F>>,
    })
}

pub(crate) fn lower<D: Domain>(i: &Instruction, m: M, s: &Shape) -> Option<Lowered<D>> {
    match m {
        M::Cvtdq2pd => super::operation::<D, Cvtdq2pd>(i),
        M::Cvtdq2ps => super::operation::<D, Cvtdq2ps>(i),
        M::Cvtps2dq => super::operation::<D, Cvtps2dq>(i),
        M::Cvttps2dq => super::operation::<D, Cvttps2dq>(i),
        M::Cvtpd2dq => super::operation::<D, Cvtpd2dq>(i),
        M::Cvttpd2dq => super::operation::<D, Cvttpd2dq>(i),
        M::Cvtps2pd => super::operation::<D, Cvtps2pd>(i),
        M::Cvtpd2ps => super::operation::<D, Cvtpd2ps>(i),
        M::Cvtss2sd => super::operation::<D, Cvtss2sd>(i),
        M::Cvtsd2ss => super::operation::<D, Cvtsd2ss>(i),
        M::Cvtsi2ss => from_integer_of::<D, f32>(i),
        M::Cvtsi2sd => from_integer_of::<D, f64>(i),
        M::Cvtss2si => to_integer_of::<D, f32, false>(s),
        M::Cvttss2si => to_integer_of::<D, f32, true>(s),
        M::Cvtsd2si => to_integer_of::<D, f64, false>(s),
        M::Cvttsd2si => to_integer_of::<D, f64, true>(s),
        _ => None,
    }
}
