//! The functions themselves, on unpacked numbers: to about 110 bits, before the one rounding.

use crate::ieee::Number;

/// What a term must be smaller by, in bits, to matter no more.
const ENOUGH: i32 = 118;

fn constant(exponent: i32, significand: u128) -> Number {
    Number::new(false, exponent - 127, significand)
}

fn ln_2() -> Number {
    constant(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af)
}

fn log2_e() -> Number {
    constant(0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88)
}

pub(super) fn pi() -> Number {
    constant(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1)
}

pub(super) fn integer(value: u32) -> Number {
    Number::integer(i128::from(value))
}

/// Adds up terms until they matter no more. `next`: the term behind one, and its number.
fn sum(first: Number, mut next: impl FnMut(Number, u32) -> Number) -> Number {
    let (mut total, mut term) = (first, first);
    for n in 1..400 {
        term = next(term, n);
        if term.is_zero() || term.exponent < total.exponent - ENOUGH {
            // Even what is too small counts for the rounding: it makes a last bit sticky.
            return total.plus(term);
        }
        total = total.plus(term);
    }
    total
}

/// 2^x - 1, for x of at most 1 in size.
pub(super) fn exp2_minus_1(x: Number) -> Number {
    let y = x.times(ln_2());
    sum(y, |term, n| term.times(y).over(integer(n + 1)))
}

/// The logarithm to base 2 of (1 + z) / (1 - z).
fn log2_of_ratio(z: Number) -> Number {
    let square = z.times(z);
    let mut power = z;
    let series = sum(z, |_, n| {
        power = power.times(square);
        power.over(integer(2 * n + 1))
    });
    series.times(log2_e()).scaled(1)
}

/// The logarithm to base 2 of a positive number.
pub(super) fn log2(x: Number) -> Number {
    let mut exponent = x.exponent;
    let mut m = Number { exponent: 0, ..x };
    // m between the roots of 1/2 and of 2.
    if m.significand > 0xb504_f333_f9de_6484_597d_89b3_754a_be9f {
        m.exponent = -1;
        exponent += 1;
    }
    let one = integer(1);
    let above = m.plus(one.negated(true));
    let whole = Number::integer(i128::from(exponent));
    if above.is_zero() {
        return whole;
    }
    let fraction = log2_of_ratio(above.over(m.plus(one)));
    whole.plus(fraction)
}

/// The logarithm to base 2 of 1 + x, for x above -1.
pub(super) fn log2_plus_1(x: Number) -> Number {
    if x.exponent < -1 {
        return log2_of_ratio(x.over(x.plus(integer(2))));
    }
    log2(x.plus(integer(1)))
}

/// Sine and cosine of what is at most pi / 4 in size.
pub(super) fn sine(r: Number) -> Number {
    let square = r.times(r).negated(true);
    sum(r, |term, n| {
        term.times(square).over(integer(2 * n * (2 * n + 1)))
    })
}

pub(super) fn cosine(r: Number) -> Number {
    let square = r.times(r).negated(true);
    sum(integer(1), |term, n| {
        term.times(square).over(integer(2 * n * (2 * n - 1)))
    })
}

/// The arc tangent of what is between 0 and 1 (Euler's series, whose terms are all positive).
pub(super) fn arc_tangent(t: Number) -> Number {
    let square = t.times(t);
    let under = square.plus(integer(1));
    let w = square.over(under);
    sum(t.over(under), |term, n| {
        term.times(w).times(integer(2 * n)).over(integer(2 * n + 1))
    })
}
