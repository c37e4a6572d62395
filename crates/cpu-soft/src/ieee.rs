//! Arithmetic of IEEE 754 numbers, to the last bit and with all exceptions.
//!
//! A [`Number`] is unpacked: any format, 128 bits of significand. Operations ([`Number::plus`]
//! and so on) are exact but for a last bit that is sticky; [`Context::round`] makes a number of
//! a format of it. So each operation rounds once, whatever the precision, and one piece of code
//! serves SSE, AVX, FMA, F16C and the x87 (whose precision control has the exponents of one
//! format and the significand of another, which is why no library's formats fit). Exceptions
//! have the bits of MXCSR and of the x87's status word, which are the same.
//!
//! Tininess is found after rounding, as x86 does (Intel SDM 1, "Numeric Underflow Exception").

/// Bits of exceptions.
pub(crate) const IE: u8 = 1;
pub(crate) const DE: u8 = 2;
pub(crate) const ZE: u8 = 4;
pub(crate) const OE: u8 = 8;
pub(crate) const UE: u8 = 16;
pub(crate) const PE: u8 = 32;

/// What to add to or take from the exponent of a result whose overflow or underflow the x87
/// does not mask.
const WRAP: i32 = 24_576;

/// A binary interchange format, or the x87's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    /// Bits of significand with the leading one.
    pub precision: u32,
    /// The leading one is there.
    explicit: bool,
}

pub(crate) const HALF: Format = Format {
    exponent_bits: 5,
    precision: 11,
    explicit: false,
};
pub(crate) const SINGLE: Format = Format {
    exponent_bits: 8,
    precision: 24,
    explicit: false,
};
pub(crate) const DOUBLE: Format = Format {
    exponent_bits: 11,
    precision: 53,
    explicit: false,
};
pub(crate) const EXTENDED: Format = Format {
    exponent_bits: 15,
    precision: 64,
    explicit: true,
};

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    /// Bits below the exponent.
    fn low_bits(self) -> u32 {
        self.precision - u32::from(!self.explicit)
    }

    fn exponent_mask(self) -> u128 {
        (1 << self.exponent_bits) - 1
    }

    fn pack(self, sign: bool, exponent: u128, low: u128) -> u128 {
        let low_bits = self.low_bits();
        (u128::from(sign) << (low_bits + self.exponent_bits)) | (exponent << low_bits) | low
    }

    pub(crate) fn zero(self, sign: bool) -> u128 {
        self.pack(sign, 0, 0)
    }

    pub(crate) fn infinity(self, sign: bool) -> u128 {
        let lead = u128::from(self.explicit) << (self.low_bits() - 1);
        self.pack(sign, self.exponent_mask(), lead)
    }

    fn largest(self, sign: bool, precision: u32) -> u128 {
        let ones = ((1_u128 << precision) - 1) << (self.precision - precision);
        let low = ones & ((1 << self.low_bits()) - 1);
        self.pack(sign, self.exponent_mask() - 1, low)
    }

    /// What an invalid operation gives: the negative quiet NaN.
    pub(crate) fn indefinite(self) -> u128 {
        self.infinity(true) | (1 << (self.precision - 2))
    }

    pub(crate) fn unpack(self, bits: u128) -> Number {
        let low_bits = self.low_bits();
        let low = bits & ((1 << low_bits) - 1);
        let raw = (bits >> low_bits) & self.exponent_mask();
        let sign = (bits >> (low_bits + self.exponent_bits)) & 1 != 0;
        let lead = low >> (low_bits - 1) & 1 != 0;
        // The significand with its binary point behind bit 127.
        let at = low << (128 - self.precision);
        let number = |class, exponent, significand| Number {
            class,
            sign,
            exponent,
            significand,
            denormal: false,
        };
        if raw == self.exponent_mask() {
            let fraction = at & (u128::MAX >> 1);
            let class = match (self.explicit && !lead, fraction) {
                (true, _) => Class::Unsupported,
                (false, 0) => Class::Infinite,
                _ if fraction >> 126 != 0 => Class::Quiet,
                _ => Class::Signaling,
            };
            return number(class, 0, fraction);
        }
        if raw == 0 {
            if low == 0 {
                return number(Class::Zero, 0, 0);
            }
            let shift = at.leading_zeros();
            let exponent = 1 - self.bias() - shift as i32;
            return Number {
                denormal: true,
                ..number(Class::Finite, exponent, at << shift)
            };
        }
        if self.explicit && !lead {
            return number(Class::Unsupported, 0, 0);
        }
        number(Class::Finite, raw as i32 - self.bias(), at | (1 << 127))
    }

    /// A NaN of another format in this one, quiet.
    pub(crate) fn quiet(self, nan: Number) -> u128 {
        let fraction = (nan.significand | (1 << 126)) >> (128 - self.precision);
        self.infinity(nan.sign) | fraction
    }
}

/// What kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Zero,
    Finite,
    Infinite,
    Quiet,
    Signaling,
    /// An encoding of the x87's format that no operation takes.
    Unsupported,
}

/// A number: `significand * 2^(exponent - 127)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    pub class: Class,
    pub sign: bool,
    pub exponent: i32,
    /// Of finite numbers with bit 127 set; of NaNs the fraction, with bit 126 the quiet bit.
    pub significand: u128,
    pub denormal: bool,
}

/// Shifts right; what is lost makes the last bit one.
fn jam(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..=127 => {
            let lost = value << (128 - by) != 0;
            (value >> by) | u128::from(lost)
        }
        _ => u128::from(value != 0),
    }
}

/// The 256-bit product, high and low.
fn wide_product(a: u128, b: u128) -> (u128, u128) {
    let mask = u128::from(u64::MAX);
    let (a1, a0, b1, b0) = (a >> 64, a & mask, b >> 64, b & mask);
    let low = a0 * b0;
    let (m1, m2) = (a1 * b0, a0 * b1);
    let middle = (low >> 64) + (m1 & mask) + (m2 & mask);
    let high = a1 * b1 + (m1 >> 64) + (m2 >> 64) + (middle >> 64);
    (high, (middle << 64) | (low & mask))
}

impl Number {
    pub(crate) fn zero(sign: bool) -> Self {
        Self {
            class: Class::Zero,
            sign,
            exponent: 0,
            significand: 0,
            denormal: false,
        }
    }

    /// `significand * 2^exponent`, whatever the leading bit.
    pub(crate) fn new(sign: bool, exponent: i32, significand: u128) -> Self {
        if significand == 0 {
            return Self::zero(sign);
        }
        let shift = significand.leading_zeros();
        Self {
            class: Class::Finite,
            sign,
            exponent: exponent + 127 - shift as i32,
            significand: significand << shift,
            denormal: false,
        }
    }

    pub(crate) fn integer(value: i128) -> Self {
        Self::new(value < 0, 0, value.unsigned_abs())
    }

    pub(crate) fn is_nan(self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling)
    }

    pub(crate) fn is_zero(self) -> bool {
        self.class == Class::Zero
    }

    pub(crate) fn is_infinite(self) -> bool {
        self.class == Class::Infinite
    }

    pub(crate) fn negated(self, negate: bool) -> Self {
        Self {
            sign: self.sign != negate,
            ..self
        }
    }

    /// The sum of two finite numbers. An exact zero of different signs is positive.
    pub(crate) fn plus(self, other: Self) -> Self {
        if other.is_zero() && self.is_zero() {
            return Self::zero(self.sign && other.sign);
        }
        if other.is_zero() {
            return self;
        }
        if self.is_zero() {
            return other;
        }
        let first_larger = (self.exponent, self.significand) >= (other.exponent, other.significand);
        let (big, small) = if first_larger {
            (self, other)
        } else {
            (other, self)
        };
        let by = u32::try_from(i64::from(big.exponent) - i64::from(small.exponent));
        let other_part = jam(small.significand, by.unwrap_or(u32::MAX));
        if big.sign == small.sign {
            let (sum, carry) = big.significand.overflowing_add(other_part);
            if carry {
                return Self {
                    exponent: big.exponent + 1,
                    significand: jam(sum, 1) | (1 << 127),
                    denormal: false,
                    ..big
                };
            }
            return Self {
                significand: sum,
                denormal: false,
                ..big
            };
        }
        let rest = big.significand - other_part;
        if rest == 0 {
            return Self::zero(false);
        }
        Self::new(big.sign, big.exponent - 127, rest)
    }

    pub(crate) fn times(self, other: Self) -> Self {
        let sign = self.sign != other.sign;
        if self.is_zero() || other.is_zero() {
            return Self::zero(sign);
        }
        let (high, low) = wide_product(self.significand, other.significand);
        let exponent = self.exponent + other.exponent;
        // The product's binary point is behind bit 126 of the high half.
        let (significand, more) = if high >> 127 != 0 {
            (high | u128::from(low != 0), 1)
        } else {
            let shifted = (high << 1) | (low >> 127);
            (shifted | u128::from(low << 1 != 0), 0)
        };
        Self {
            class: Class::Finite,
            sign,
            exponent: exponent + more,
            significand,
            denormal: false,
        }
    }

    /// The quotient of a finite number and one that is not zero.
    pub(crate) fn over(self, other: Self) -> Self {
        let sign = self.sign != other.sign;
        if self.is_zero() || other.is_zero() {
            return Self::zero(sign);
        }
        let mut exponent = self.exponent - other.exponent;
        let (a, b) = (self.significand, other.significand);
        // Both are in [1, 2): so is the quotient after at most one doubling of the dividend.
        let (mut rest, mut quotient) = if a >= b { (a - b, 1_u128) } else { (a, 0) };
        let mut bits = if a >= b { 127 } else { 128 };
        if a < b {
            exponent -= 1;
        }
        if b as u64 == 0 {
            // A short divisor: two divisions.
            let d = b >> 64;
            let high = rest / d;
            let rest_high = rest % d;
            let low = (rest_high << 64) / d;
            let sticky = (rest_high << 64) % d != 0;
            let fraction = (high << 64) | low;
            let significand = if a >= b {
                (1 << 127) | jam(fraction, 1)
            } else {
                fraction
            };
            return Self {
                class: Class::Finite,
                sign,
                exponent,
                significand: significand | u128::from(sticky),
                denormal: false,
            };
        }
        while bits > 0 {
            let carry = rest >> 127 != 0;
            rest <<= 1;
            quotient <<= 1;
            if carry || rest >= b {
                rest = rest.wrapping_sub(b);
                quotient |= 1;
            }
            bits -= 1;
        }
        Self {
            class: Class::Finite,
            sign,
            exponent,
            significand: quotient | u128::from(rest != 0),
            denormal: false,
        }
    }

    /// The square root of a positive number of at most 64 bits of significand.
    pub(crate) fn root(self) -> Self {
        if self.is_zero() {
            return self;
        }
        let m = self.significand >> 64;
        let radicand = if self.exponent & 1 != 0 {
            m << 64
        } else {
            m << 63
        };
        let root = radicand.isqrt();
        let rest = radicand - root * root;
        let half = u128::from(rest > root) << 63;
        Self {
            exponent: self.exponent >> 1,
            significand: (root << 64) | half | u128::from(rest != 0),
            denormal: false,
            ..self
        }
    }

    /// The number scaled by a power of two.
    pub(crate) fn scaled(self, by: i32) -> Self {
        Self {
            exponent: self.exponent.saturating_add(by),
            ..self
        }
    }

    /// Rounded to an integer of any size; whether that changed it, and whether upwards in size.
    pub(crate) fn integral(self, rounding: u8) -> (Self, bool, bool) {
        if self.class != Class::Finite || self.exponent >= 127 {
            return (self, false, false);
        }
        if self.exponent < -1 {
            // Below a half: zero or one.
            let up = rounds_up(self.sign, rounding, false, 1, 2);
            let one = Self::new(self.sign, 0, u128::from(up));
            return (one, true, up);
        }
        let keep = (self.exponent + 1) as u32;
        let (whole, rest, half) = if keep == 0 {
            (0, jam(self.significand, 1), 1_u128 << 126)
        } else {
            let drop = 128 - keep;
            let mask = (1_u128 << drop) - 1;
            (
                self.significand >> drop,
                self.significand & mask,
                1 << (drop - 1),
            )
        };
        let up = rest != 0 && rounds_up(self.sign, rounding, whole & 1 != 0, rest, half);
        let result = Self::new(self.sign, 0, whole + u128::from(up));
        (result, rest != 0, up)
    }

    /// Orders two numbers that are no NaNs.
    pub(crate) fn order(self, other: Self) -> std::cmp::Ordering {
        let magnitude = |n: Self| match n.class {
            Class::Zero => (0, 0, 0),
            Class::Infinite => (2, 0, 0),
            _ => (1, n.exponent, n.significand),
        };
        match (self.is_zero() && other.is_zero(), self.sign, other.sign) {
            (true, ..) => std::cmp::Ordering::Equal,
            (_, false, true) => std::cmp::Ordering::Greater,
            (_, true, false) => std::cmp::Ordering::Less,
            (_, false, false) => magnitude(self).cmp(&magnitude(other)),
            (_, true, true) => magnitude(other).cmp(&magnitude(self)),
        }
    }
}

/// Whether a magnitude is to be rounded up. `odd`: what is kept ends with a one.
fn rounds_up(sign: bool, rounding: u8, odd: bool, rest: u128, half: u128) -> bool {
    match rounding & 3 {
        0 => rest > half || (rest == half && odd),
        1 => sign && rest != 0,
        2 => !sign && rest != 0,
        _ => false,
    }
}

/// How to round, and what happened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Context {
    /// As RC of MXCSR and of the x87's control word: nearest, down, up, towards zero.
    pub rounding: u8,
    /// Bits of significand, if fewer than the format's.
    pub precision: Option<u32>,
    /// Tiny results become zero.
    pub flush: bool,
    /// Exceptions that are not masked.
    pub unmasked: u8,
    /// Unmasked overflow and underflow give a result with another exponent (x87 registers).
    pub wrap: bool,
    /// What was signalled.
    pub flags: u8,
    /// The result is larger in size than the exact one.
    pub up: bool,
}

impl Context {
    /// Rounds the significand to `precision` bits: the result, whether something was lost, and
    /// whether the size grew.
    fn cut(&self, n: Number, precision: u32) -> (Number, bool, bool) {
        let drop = 128 - precision;
        let mask = (1_u128 << drop) - 1;
        let rest = n.significand & mask;
        let odd = n.significand >> drop & 1 != 0;
        let up = rounds_up(n.sign, self.rounding, odd, rest, 1 << (drop - 1));
        let kept = n.significand & !mask;
        let (sum, carry) = kept.overflowing_add(u128::from(up) << drop);
        let result = if carry {
            Number {
                exponent: n.exponent + 1,
                significand: 1 << 127,
                ..n
            }
        } else {
            Number {
                significand: sum,
                ..n
            }
        };
        (result, rest != 0, up)
    }

    /// A number, finite or not, as bits of a format. NaNs become quiet.
    pub(crate) fn round(&mut self, format: Format, n: Number) -> u128 {
        self.up = false;
        match n.class {
            Class::Zero => return format.zero(n.sign),
            Class::Infinite => return format.infinity(n.sign),
            Class::Quiet | Class::Signaling => return format.quiet(n),
            Class::Unsupported => return format.indefinite(),
            Class::Finite => {}
        }
        let precision = self
            .precision
            .unwrap_or(format.precision)
            .min(format.precision);
        let (rounded, inexact, up) = self.cut(n, precision);
        let bias = format.bias();
        let tiny = rounded.exponent < 1 - bias;
        if tiny {
            return self.tiny(format, n, precision);
        }
        self.flags |= if inexact { PE } else { 0 };
        self.up = up;
        if rounded.exponent > bias {
            return self.overflow(format, rounded, precision, inexact);
        }
        Self::assemble(format, rounded)
    }

    fn assemble(format: Format, n: Number) -> u128 {
        let low = n.significand >> (128 - format.precision);
        let low = low & ((1 << format.low_bits()) - 1);
        format.pack(n.sign, (n.exponent + format.bias()) as u128, low)
    }

    fn overflow(&mut self, format: Format, n: Number, precision: u32, inexact: bool) -> u128 {
        self.flags |= OE;
        if self.unmasked & OE != 0 {
            self.up &= inexact;
            if self.wrap && n.exponent - WRAP <= format.bias() {
                return Self::assemble(format, n.scaled(-WRAP));
            }
            self.flags |= if self.wrap { PE } else { 0 };
            self.up = true;
            return format.infinity(n.sign);
        }
        self.flags |= PE;
        let infinite = rounds_up(n.sign, self.rounding, true, 3, 2);
        self.up = infinite;
        if infinite {
            format.infinity(n.sign)
        } else {
            format.largest(n.sign, precision)
        }
    }

    fn tiny(&mut self, format: Format, n: Number, precision: u32) -> u128 {
        let bias = format.bias();
        if self.unmasked & UE != 0 {
            let (rounded, lost, up) = self.cut(n, precision);
            self.flags |= UE | if lost { PE } else { 0 };
            self.up = up;
            if self.wrap && rounded.exponent + WRAP >= 1 - bias {
                return Self::assemble(format, rounded.scaled(WRAP));
            }
            self.flags |= if self.wrap { PE } else { 0 };
            return format.zero(n.sign);
        }
        if self.flush {
            self.flags |= UE | PE;
            return format.zero(n.sign);
        }
        let by = u32::try_from(1 - bias - n.exponent).unwrap_or(u32::MAX);
        let shifted = Number {
            significand: jam(n.significand, by.min(200)),
            exponent: 1 - bias,
            ..n
        };
        let (rounded, lost, up) = self.cut(shifted, precision);
        self.flags |= if lost { UE | PE } else { 0 };
        self.up = up;
        let low = rounded.significand >> (128 - format.precision);
        let normal = rounded.significand >> 127;
        format.pack(n.sign, normal, low & ((1 << format.low_bits()) - 1))
    }

    /// A finite number as an integer of `bits`, two's complement; `None` if it does not fit.
    pub(crate) fn integer_of(&mut self, n: Number, bits: u32) -> Option<u64> {
        let (whole, inexact, up) = n.integral(self.rounding);
        self.up = up;
        let size = match whole.class {
            Class::Zero => 0,
            Class::Finite if whole.exponent < 64 => whole.significand >> (127 - whole.exponent),
            _ => return None,
        };
        let limit = (1_u128 << (bits - 1)) - u128::from(!n.sign);
        if size > limit {
            return None;
        }
        self.flags |= if inexact { PE } else { 0 };
        let value = size as u64;
        let value = if n.sign { value.wrapping_neg() } else { value };
        Some(value & (u64::MAX >> (64 - bits)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(rounding: u8) -> Context {
        Context {
            rounding,
            ..Context::default()
        }
    }

    #[test]
    fn each_rounding_goes_where_it_says() {
        // 1 + 2^-24, halfway between two singles; and its negative.
        let tie = |sign| Number::new(sign, -24, (1 << 24) + 1);
        for (rounding, above, below) in [
            (0, 0x3f80_0000, 0xbf80_0000_u128),
            (1, 0x3f80_0000, 0xbf80_0001),
            (2, 0x3f80_0001, 0xbf80_0000),
            (3, 0x3f80_0000, 0xbf80_0000),
        ] {
            let mut context = context(rounding);
            assert_eq!(context.round(SINGLE, tie(false)), above);
            assert_eq!(context.flags, PE);
            assert_eq!(context.round(SINGLE, tie(true)), below);
            assert_eq!(context.up, below & 1 != 0);
        }
    }

    #[test]
    fn tiny_is_found_after_rounding() {
        // Just below the smallest normal single: with 24 bits it rounds up to that one, and is
        // not tiny; what 24 bits hold is, though as a denormal it rounds up just so.
        let mut nearest = context(0);
        let n = Number::new(false, -126 - 26, (1 << 26) - 1);
        assert_eq!(nearest.round(SINGLE, n), 0x0080_0000);
        assert_eq!(nearest.flags, PE);
        let mut nearest = context(0);
        let n = Number::new(false, -126 - 24, (1 << 24) - 1);
        assert_eq!(nearest.round(SINGLE, n), 0x0080_0000);
        assert_eq!(nearest.flags, UE | PE);
        // An exact denormal signals nothing, and is flushed with both flags.
        let n = Number::new(false, -149, 3);
        let mut exact = context(0);
        assert_eq!((exact.round(SINGLE, n), exact.flags), (3, 0));
        let mut flush = Context {
            flush: true,
            ..context(0)
        };
        assert_eq!((flush.round(SINGLE, n), flush.flags), (0, UE | PE));
    }

    #[test]
    fn overflow_is_infinite_or_the_largest() {
        let huge = |sign| Number::new(sign, 1024, 1);
        for (rounding, above, below) in [
            (0, 0x7ff0, 0xfff0),
            (1, 0x7fef, 0xfff0),
            (2, 0x7ff0, 0xffef),
            (3, 0x7fef, 0xffef_u128),
        ] {
            let mut context = context(rounding);
            assert_eq!(context.round(DOUBLE, huge(false)) >> 48, above);
            assert_eq!(context.round(DOUBLE, huge(true)) >> 48, below);
            assert_eq!(context.flags, OE | PE);
        }
    }

    #[test]
    fn precision_control_has_the_exponents_of_the_format() {
        let mut context = Context {
            precision: Some(24),
            ..context(0)
        };
        // 2^10000 + 2^9970: the second part is out of reach of 24 bits.
        let n = Number::new(false, 9970, (1 << 30) + 1);
        let bits = context.round(EXTENDED, n);
        assert_eq!(bits, ((16383 + 10000) << 64) | 1 << 63);
        assert_eq!(context.flags, PE);
    }

    #[test]
    fn a_long_divisor_gives_what_a_short_one_does() {
        // a / b with b of 64 bits, and the same with both multiplied by an odd constant.
        let factor = Number::new(false, 0, 0xffff_ffff_ffff_fff1);
        for (a, b) in [
            (1_u128, 3_u128),
            (10, 7),
            (0xdead_beef, 0x1_0001),
            (5, 5),
            (7, 8),
        ] {
            let (a, b) = (Number::new(false, 0, a), Number::new(true, 3, b));
            let short = a.over(b);
            let long = a.times(factor).over(b.times(factor));
            assert_eq!(short, long);
        }
    }

    #[test]
    fn integers_of_any_rounding() {
        let half = |n: i128| Number::integer(n).scaled(-1);
        for (n, expected) in [
            (5, [2, 2, 3, 2]),
            (7, [4, 3, 4, 3]),
            (-5, [-2, -3, -2, -2]),
            (1, [0, 0, 1, 0]),
            (-1, [0, -1, 0, 0_i64]),
        ] {
            for (rounding, expected) in (0..).zip(expected) {
                let value = context(rounding).integer_of(half(n), 64);
                assert_eq!(value, Some(expected as u64), "{n} / 2, rounding {rounding}");
            }
        }
        let edge = Number::new(true, 31, 1);
        assert_eq!(context(0).integer_of(edge, 32), Some(0x8000_0000));
        assert_eq!(context(0).integer_of(edge.negated(true), 32), None);
    }
}
