//! Remainders, scaling, logarithms and trigonometry.
//!
//! The transcendental functions are within one unit in the last place of the exact result, as
//! processors' are; processors differ in the last bit. Angles are reduced by a pi of 66 bits, as
//! Intel's processors do (Intel SDM 1, "Approximation of Pi").

use iced_x86::{Instruction, Mnemonic as M};

use super::{INDEFINITE, ONE, series, status};
use crate::cpu::Cpu;
use crate::domain::{Domain, Flow, Helper, Op, helper, helpers};
use crate::ieee::{Class, Context, DE, EXTENDED as FORMAT, IE, Number, PE, UE, ZE};
use crate::lower::{Lowered, go};

/// The pi of 66 bits: this, times 2^-64.
const PI_66: u128 = 0x3_243f_6a88_85a3_08d3;

/// An operation of ST1 and ST0 whose result replaces both (`POP`) or ST0.
fn two_operands(cpu: &mut Cpu, pop: bool, f: fn(&mut Context, Number, Number) -> u128) {
    let (Some(st0), Some(st1)) = (cpu.st(0), cpu.st(1)) else {
        if cpu.stack_fault(false) {
            cpu.set_st(u8::from(pop), INDEFINITE);
            if pop {
                cpu.pop_st();
            }
        }
        return;
    };
    let (st0, st1) = (FORMAT.unpack(st0), FORMAT.unpack(st1));
    let mut context = cpu.x87_context();
    let result = match cpu.special([st0, st1], &mut context) {
        Some(special) => special,
        None => {
            let result = f(&mut context, st0, st1);
            let invalid = context.flags & (IE | ZE) != 0;
            if !invalid && (st0.denormal || st1.denormal) {
                context.flags |= DE;
            }
            result
        }
    };
    if cpu.settle(&context) {
        cpu.set_st(u8::from(pop), result);
        if pop {
            cpu.pop_st();
        }
    }
}

fn invalid(context: &mut Context) -> u128 {
    context.flags |= IE;
    INDEFINITE
}

/// A result that is not exact: its precision flag is set whatever the digits.
fn inexact(context: &mut Context, n: Number) -> u128 {
    context.flags |= PE;
    context.round(FORMAT, n)
}

/// FSCALE.
fn scale(context: &mut Context, st0: Number, st1: Number) -> u128 {
    let down = st1.sign;
    match (st0.class, st1.class) {
        (Class::Zero, Class::Infinite) if !down => return invalid(context),
        (Class::Infinite, Class::Infinite) if down => return invalid(context),
        (Class::Zero | Class::Infinite, _) => return context.round(FORMAT, st0),
        (_, Class::Infinite) if down => return FORMAT.zero(st0.sign),
        (_, Class::Infinite) => return FORMAT.infinity(st0.sign),
        _ => {}
    }
    let (whole, ..) = st1.integral(3);
    let by = match whole.class {
        Class::Zero => 0,
        // More than this overflows or underflows whatever is scaled.
        _ if whole.exponent > 16 => 1 << 17,
        _ => (whole.significand >> (127 - whole.exponent)) as i32,
    };
    context.round(FORMAT, st0.scaled(if down { -by } else { by }))
}

/// FYL2X.
fn y_log2_x(context: &mut Context, x: Number, y: Number) -> u128 {
    if x.sign && !x.is_zero() {
        return invalid(context);
    }
    if x.is_zero() {
        if y.is_zero() {
            return invalid(context);
        }
        if !y.is_infinite() {
            context.flags |= ZE;
        }
        return FORMAT.infinity(!y.sign);
    }
    if x.is_infinite() {
        if y.is_zero() {
            return invalid(context);
        }
        return FORMAT.infinity(y.sign);
    }
    let log = series::log2(x);
    if y.is_infinite() {
        if log.is_zero() {
            return invalid(context);
        }
        return FORMAT.infinity(y.sign != log.sign);
    }
    if log.is_zero() || y.is_zero() {
        return FORMAT.zero(y.sign != log.sign);
    }
    // Even of a power of two: processors say that it is not exact.
    inexact(context, log.times(y))
}

/// FYL2XP1.
fn y_log2_x_plus_1(context: &mut Context, x: Number, y: Number) -> u128 {
    if x.is_infinite() {
        if x.sign || y.is_zero() {
            return invalid(context);
        }
        return FORMAT.infinity(y.sign);
    }
    if x.is_zero() || y.is_zero() {
        if y.is_infinite() {
            return invalid(context);
        }
        return FORMAT.zero(x.sign != y.sign);
    }
    if y.is_infinite() {
        return FORMAT.infinity(x.sign != y.sign);
    }
    if x.sign && x.exponent >= 0 {
        // Outside of what is defined: as processors do.
        return inexact(context, x);
    }
    inexact(context, series::log2_plus_1(x).times(y))
}

/// FPATAN: the angle of the point (x, y).
fn arc_tangent(context: &mut Context, x: Number, y: Number) -> u128 {
    let sign = y.sign;
    let pi = series::pi();
    let signed = |context: &mut Context, n: Number| inexact(context, n.negated(sign));
    match (x.class, y.class) {
        (Class::Infinite, Class::Infinite) => {
            let quarter = pi.scaled(-2);
            let three = quarter.times(series::integer(3));
            return signed(context, if x.sign { three } else { quarter });
        }
        (_, Class::Infinite) => return signed(context, pi.scaled(-1)),
        (_, Class::Zero) | (Class::Infinite, _) if !x.sign => return FORMAT.zero(sign),
        (_, Class::Zero) | (Class::Infinite, _) => return signed(context, pi),
        (Class::Zero, _) => return signed(context, pi.scaled(-1)),
        _ => {}
    }
    let (ax, ay) = (x.negated(x.sign), y.negated(y.sign));
    let angle = if ay.order(ax).is_le() {
        series::arc_tangent(ay.over(ax))
    } else {
        let other = series::arc_tangent(ax.over(ay));
        pi.scaled(-1).plus(other.negated(true))
    };
    let angle = if x.sign {
        pi.plus(angle.negated(true))
    } else {
        angle
    };
    signed(context, angle)
}

/// The remainder of `x` by half of pi, of at most pi / 4 in size, and the quotient's low bits.
fn reduce(x: Number) -> (Number, u32) {
    if x.exponent < -1 {
        return (x, 0);
    }
    let units = (x.exponent + 2) as u32;
    let (mut rest, mut quotient) = (x.significand >> 64, 0_u32);
    for _ in 0..units {
        rest <<= 1;
        quotient <<= 1;
        if rest >= PI_66 {
            rest -= PI_66;
            quotient |= 1;
        }
    }
    if rest > PI_66 / 2 {
        let under = Number::new(!x.sign, -65, PI_66 - rest);
        return (under, quotient.wrapping_add(1));
    }
    (Number::new(x.sign, -65, rest), quotient)
}

/// Sine and cosine of a finite number.
fn sine_and_cosine(x: Number) -> (Number, Number) {
    let (r, quadrant) = reduce(x);
    let (sine, cosine) = (series::sine(r), series::cosine(r));
    // Backwards for negative angles.
    let quadrant = if x.sign {
        quadrant.wrapping_neg()
    } else {
        quadrant
    };
    match quadrant & 3 {
        0 => (sine, cosine),
        1 => (cosine, sine.negated(true)),
        2 => (sine.negated(true), cosine.negated(true)),
        _ => (cosine.negated(true), sine),
    }
}

/// FSIN (0), FCOS (1), FSINCOS (2), FPTAN (3).
struct Trigonometry<const WHAT: u8>;
impl<const WHAT: u8> Helper for Trigonometry<WHAT> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.x87_begin(op)?;
        let pushes = WHAT >= 2;
        let Some(bits) = cpu.st(0) else {
            if cpu.stack_fault(false) {
                cpu.set_st(0, INDEFINITE);
                if pushes {
                    cpu.push_free(INDEFINITE);
                }
            }
            return Ok(());
        };
        if pushes && cpu.holds(7) {
            if cpu.stack_fault(true) {
                cpu.set_st(0, INDEFINITE);
                cpu.push_free(INDEFINITE);
            }
            return Ok(());
        }
        let x = FORMAT.unpack(bits);
        if x.class == Class::Finite && x.exponent >= 63 {
            // Out of range: the program is to reduce it.
            cpu.fpu.status = (cpu.fpu.status | status::C2) & !status::C1;
            return Ok(());
        }
        let mut context = cpu.x87_context();
        let results = match cpu.special([x, Number::zero(false)], &mut context) {
            Some(nan) => [nan, nan],
            None => trigonometry(&mut context, x, WHAT),
        };
        cpu.fpu.status &= !status::C2;
        if cpu.settle(&context) {
            let [first, second] = results;
            cpu.set_st(0, first);
            if pushes {
                cpu.push_free(second);
            }
        }
        Ok(())
    }
}

/// What is to be in ST0, and what is pushed then.
fn trigonometry(context: &mut Context, x: Number, what: u8) -> [u128; 2] {
    if x.is_infinite() {
        context.flags |= IE;
        return [INDEFINITE; 2];
    }
    if x.is_zero() {
        let zero = FORMAT.zero(x.sign);
        return if what == 1 { [ONE, ONE] } else { [zero, ONE] };
    }
    if x.denormal {
        context.flags |= DE;
    }
    let (sine, cosine) = sine_and_cosine(x);
    match what {
        0 => [inexact(context, sine), 0],
        1 => [inexact(context, cosine), 0],
        2 => [inexact(context, sine), inexact(context, cosine)],
        _ => [inexact(context, sine.over(cosine)), ONE],
    }
}

/// 2^x - 1.
fn exp2_minus_1(context: &mut Context, x: Number) -> u128 {
    if x.is_zero() {
        return FORMAT.zero(x.sign);
    }
    if x.denormal {
        context.flags |= DE;
    }
    // Outside of -1 to 1 nothing is defined; the ends are.
    if x.is_infinite() || x.exponent >= 0 {
        let one = series::integer(1);
        let result = match (x.is_infinite(), x.sign) {
            (true, false) => return FORMAT.infinity(false),
            (true, true) => one.negated(true),
            (false, true) if x == one.negated(true) => Number::new(true, -1, 1),
            // 1 of 1; else as processors do.
            _ => x,
        };
        return if x.is_infinite() {
            context.round(FORMAT, result)
        } else {
            inexact(context, result)
        };
    }
    inexact(context, series::exp2_minus_1(x))
}

/// FXTRACT.
fn extract(cpu: &mut Cpu) {
    let Some(bits) = cpu.st(0) else {
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
            cpu.push_free(INDEFINITE);
        }
        return;
    };
    if cpu.holds(7) {
        if cpu.stack_fault(true) {
            cpu.set_st(0, INDEFINITE);
            cpu.push_free(INDEFINITE);
        }
        return;
    }
    let x = FORMAT.unpack(bits);
    let mut context = cpu.x87_context();
    let (exponent, significand) = match cpu.special([x, Number::zero(false)], &mut context) {
        Some(nan) => (nan, nan),
        None => match x.class {
            Class::Zero => {
                context.flags |= ZE;
                (FORMAT.infinity(true), bits)
            }
            Class::Infinite => (FORMAT.infinity(false), bits),
            _ => {
                context.flags |= if x.denormal { DE } else { 0 };
                let exponent = Number::integer(i128::from(x.exponent));
                let significand = Number { exponent: 0, ..x };
                (
                    context.round(FORMAT, exponent),
                    context.round(FORMAT, significand),
                )
            }
        },
    };
    if cpu.settle(&context) {
        cpu.set_st(0, exponent);
        cpu.push_free(significand);
    }
}

/// FPREM, and FPREM1 (`NEAREST`: the quotient is rounded to nearest, not cut off).
fn remainder(cpu: &mut Cpu, nearest: bool) {
    let (Some(a), Some(b)) = (cpu.st(0), cpu.st(1)) else {
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return;
    };
    let (a, b) = (FORMAT.unpack(a), FORMAT.unpack(b));
    let mut context = cpu.x87_context();
    let mut conditions = 0;
    let result = if let Some(special) = cpu.special([a, b], &mut context) {
        special
    } else if a.is_infinite() || b.is_zero() {
        invalid(&mut context)
    } else {
        context.flags |= if a.denormal || b.denormal { DE } else { 0 };
        let (rest, bits) = partial_remainder(a, b, nearest);
        conditions = bits;
        if b.is_infinite() {
            // As it was: not even an underflow.
            context.unmasked &= !UE;
        }
        context.round(FORMAT, rest)
    };
    if cpu.settle(&context) {
        cpu.set_st(0, result);
        if context.flags & IE == 0 {
            let kept = cpu.fpu.status & !status::CONDITIONS;
            cpu.fpu.status = kept | conditions;
        }
    }
}

/// The remainder, and the condition bits: C2 if there is more to do, else the quotient.
fn partial_remainder(a: Number, b: Number, nearest: bool) -> (Number, u16) {
    if a.is_zero() || b.is_infinite() {
        return (a, 0);
    }
    let apart = a.exponent - b.exponent;
    if apart < -1 || (apart < 0 && !nearest) {
        return (a, 0);
    }
    let (mut rest, divisor) = (a.significand >> 64, b.significand >> 64);
    if apart >= 64 {
        // As many bits of the quotient as leave a multiple of 32.
        let bits = 32 + apart % 32;
        for n in 0..=bits {
            rest = (if n == 0 { rest } else { rest << 1 }) % divisor;
        }
        let exponent = a.exponent - bits - 63;
        let left = Number::new(a.sign, exponent, rest);
        return (left, status::C2);
    }
    let mut quotient = 0_u64;
    let mut unit = b.exponent - 63;
    if apart < 0 {
        // Half the divisor's unit: the quotient is zero or one.
        unit -= 1;
    } else {
        for n in 0..=apart {
            if n > 0 {
                rest <<= 1;
                quotient <<= 1;
            }
            if rest >= divisor {
                rest -= divisor;
                quotient |= 1;
            }
        }
    }
    let whole = if apart < 0 { divisor << 1 } else { divisor };
    let mut result = Number::new(a.sign, unit, rest);
    if nearest && (rest * 2 > whole || (rest * 2 == whole && quotient & 1 != 0)) {
        quotient = quotient.wrapping_add(1);
        result = Number::new(!a.sign, unit, whole - rest);
    }
    let mut bits = 0;
    for (bit, flag) in [(4, status::C0), (2, status::C3), (1, status::C1)] {
        if quotient & bit != 0 {
            bits |= flag;
        }
    }
    (result, bits)
}

helpers! {
    F2xm1 => |cpu, op| {
        cpu.x87_begin(op)?;
        let context = cpu.x87_context();
        cpu.replace(context, exp2_minus_1);
        Ok(())
    },
    Fscale => |cpu, op| {
        cpu.x87_begin(op)?;
        two_operands(cpu, false, scale);
        Ok(())
    },
    Fyl2x => |cpu, op| {
        cpu.x87_begin(op)?;
        two_operands(cpu, true, y_log2_x);
        Ok(())
    },
    Fyl2xp1 => |cpu, op| {
        cpu.x87_begin(op)?;
        two_operands(cpu, true, y_log2_x_plus_1);
        Ok(())
    },
    Fpatan => |cpu, op| {
        cpu.x87_begin(op)?;
        two_operands(cpu, true, arc_tangent);
        Ok(())
    },
    Fxtract => |cpu, op| {
        cpu.x87_begin(op)?;
        extract(cpu);
        Ok(())
    },
    Fprem => |cpu, op| {
        cpu.x87_begin(op)?;
        remainder(cpu, false);
        Ok(())
    },
    Fprem1 => |cpu, op| {
        cpu.x87_begin(op)?;
        remainder(cpu, true);
        Ok(())
    },
}

pub(super) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        M::F2xm1 => helper::<D, F2xm1>,
        M::Fscale => helper::<D, Fscale>,
        M::Fyl2x => helper::<D, Fyl2x>,
        M::Fyl2xp1 => helper::<D, Fyl2xp1>,
        M::Fpatan => helper::<D, Fpatan>,
        M::Fxtract => helper::<D, Fxtract>,
        M::Fprem => helper::<D, Fprem>,
        M::Fprem1 => helper::<D, Fprem1>,
        M::Fsin => helper::<D, Trigonometry<0>>,
        M::Fcos => helper::<D, Trigonometry<1>>,
        M::Fsincos => helper::<D, Trigonometry<2>>,
        M::Fptan => helper::<D, Trigonometry<3>>,
        _ => return None,
    })
}
