//! Conversions between integers and floats.

use iced_x86::{Instruction, Mnemonic as M};

use crate::cpu::Cpu;
use crate::domain::{Domain, Flow, Helper, Op, W32, W64, Width, helper};
use crate::lower::{Lowered, Shape, bits_of, go, prefix};
use crate::sse::float::Float;
use crate::sse::{build, lane};

/// A single as a double; NaNs keep their payload and become quiet.
fn widen(x: u64) -> u64 {
    let value = f32::from_bits(x as u32);
    if value.is_nan() {
        let sign = (x & 0x8000_0000) << 32;
        return sign | 0x7ff8_0000_0000_0000 | ((x & 0x7f_ffff) << 29);
    }
    f64::from(value).to_bits()
}

fn narrow(x: u64) -> u64 {
    let value = f64::from_bits(x);
    if value.is_nan() {
        let sign = (x >> 32) & 0x8000_0000;
        return sign | 0x7fc0_0000 | ((x >> 29) & 0x3f_ffff);
    }
    u64::from((value as f32).to_bits())
}

/// A float as an integer of 32 or 64 bits; what does not fit is the smallest integer. `mode`:
/// 0 to 3 as MXCSR.RC.
fn to_integer(value: f64, bits: u32, mode: u8) -> u64 {
    let rounded = value.round_by(mode);
    let limit = if bits == 32 {
        2_147_483_648.0
    } else {
        9_223_372_036_854_775_808.0
    };
    if rounded.is_nan() || rounded >= limit || rounded < -limit {
        return 1 << (bits - 1);
    }
    (rounded as i64) as u64 & (u64::MAX >> (64 - bits))
}

fn rounding(cpu: &Cpu, truncate: bool) -> u8 {
    if truncate {
        3
    } else {
        (cpu.fpu.mxcsr >> 13) as u8 & 3
    }
}

/// What a whole-vector conversion makes of its source.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum To {
    DoublesOfInts,
    SinglesOfInts,
    IntsOfSingles,
    IntsOfDoubles,
    DoublesOfSingles,
    SinglesOfDoubles,
}

const CONVERSIONS: [To; 6] = [
    To::DoublesOfInts,
    To::SinglesOfInts,
    To::IntsOfSingles,
    To::IntsOfDoubles,
    To::DoublesOfSingles,
    To::SinglesOfDoubles,
];

struct Vector<const TO: usize, const TRUNCATE: bool>;
impl<const TO: usize, const TRUNCATE: bool> Helper for Vector<TO, TRUNCATE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        let to = CONVERSIONS.get(TO).copied().unwrap_or(To::DoublesOfInts);
        let short = matches!(to, To::DoublesOfInts | To::DoublesOfSingles);
        let b = cpu.vector_source(op, if short { 8 } else { 16 }, !short)?;
        let mode = rounding(cpu, TRUNCATE);
        let int = |n| lane::<32>(b, n) as u32 as i32;
        let single = |n| f64::from(f32::from_bits(lane::<32>(b, n) as u32));
        let double = |n| f64::from_bits(lane::<64>(b, n));
        let low = |n: u32, f: &dyn Fn(u32) -> u64| if n < 2 { f(n) } else { 0 };
        let r = match to {
            To::DoublesOfInts => build::<64>(|n| f64::from(int(n)).to_bits()),
            To::SinglesOfInts => build::<32>(|n| u64::from((int(n) as f32).to_bits())),
            To::IntsOfSingles => build::<32>(|n| to_integer(single(n), 32, mode)),
            To::IntsOfDoubles => build::<32>(|n| low(n, &|n| to_integer(double(n), 32, mode))),
            To::DoublesOfSingles => build::<64>(|n| widen(lane::<32>(b, n))),
            To::SinglesOfDoubles => build::<32>(|n| low(n, &|n| narrow(lane::<64>(b, n)))),
        };
        cpu.set_xmm(op.dst, r);
        Ok(())
    }
}

/// An integer of a register or memory into the lowest lane.
struct FromInteger<W, F>(std::marker::PhantomData<(W, F)>);
impl<W: Width, F: Float> Helper for FromInteger<W, F> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        let value = if op.prefix & prefix::MEMORY != 0 {
            cpu.load::<W>(op)?
        } else {
            cpu.reg::<W>(op.src)
        };
        let value = W::sext(value) as i64;
        let bits = if F::BITS == 32 {
            u64::from((value as f32).to_bits())
        } else {
            (value as f64).to_bits()
        };
        let mask = u128::from(u64::MAX >> (64 - F::BITS));
        let kept = cpu.xmm(op.dst) & !mask;
        cpu.set_xmm(op.dst, kept | u128::from(bits));
        Ok(())
    }
}

/// The lowest lane into an integer register.
struct ToInteger<W, F, const TRUNCATE: bool>(std::marker::PhantomData<(W, F)>);
impl<W: Width, F: Float, const TRUNCATE: bool> Helper for ToInteger<W, F, TRUNCATE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        let b = cpu.vector_source(op, F::BYTES, false)? as u64;
        let value = if F::BITS == 32 {
            f64::from(f32::from_bits(b as u32))
        } else {
            f64::from_bits(b)
        };
        let mode = rounding(cpu, TRUNCATE);
        cpu.set_reg::<W>(op.dst, to_integer(value, W::BITS, mode));
        Ok(())
    }
}

super::packed! {
    Cvtss2sd[4](a, b, _) => (a >> 64 << 64) | u128::from(widen(b as u64 & 0xffff_ffff));
    Cvtsd2ss[8](a, b, _) => (a >> 32 << 32) | u128::from(narrow(b as u64));
}

fn to_integer_of<D: Domain, F: Float, const TRUNCATE: bool>(s: &Shape) -> Option<Lowered<D>> {
    go(match s.bits {
        64 => helper::<D, ToInteger<W64, F, TRUNCATE>>,
        _ => helper::<D, ToInteger<W32, F, TRUNCATE>>,
    })
}

fn from_integer_of<D: Domain, F: Float>(i: &Instruction) -> Option<Lowered<D>> {
    go(match bits_of(i, 1) {
        64 => helper::<D, FromInteger<W64, F>>,
        _ => helper::<D, FromInteger<W32, F>>,
    })
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    match i.mnemonic() {
        M::Cvtdq2pd => go(helper::<D, Vector<0, false>>),
        M::Cvtdq2ps => go(helper::<D, Vector<1, false>>),
        M::Cvtps2dq => go(helper::<D, Vector<2, false>>),
        M::Cvttps2dq => go(helper::<D, Vector<2, true>>),
        M::Cvtpd2dq => go(helper::<D, Vector<3, false>>),
        M::Cvttpd2dq => go(helper::<D, Vector<3, true>>),
        M::Cvtps2pd => go(helper::<D, Vector<4, false>>),
        M::Cvtpd2ps => go(helper::<D, Vector<5, false>>),
        M::Cvtss2sd => super::operation::<D, Cvtss2sd>(),
        M::Cvtsd2ss => super::operation::<D, Cvtsd2ss>(),
        M::Cvtsi2ss => from_integer_of::<D, f32>(i),
        M::Cvtsi2sd => from_integer_of::<D, f64>(i),
        M::Cvtss2si => to_integer_of::<D, f32, false>(s),
        M::Cvttss2si => to_integer_of::<D, f32, true>(s),
        M::Cvtsd2si => to_integer_of::<D, f64, false>(s),
        M::Cvttsd2si => to_integer_of::<D, f64, true>(s),
        _ => None,
    }
}
