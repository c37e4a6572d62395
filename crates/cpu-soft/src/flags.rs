//! Arithmetic flags, defined over a domain.

use crate::domain::{Domain, Flags, Width};

/// The bits of RFLAGS.
pub(crate) mod bit {
    pub(crate) const CF: u64 = 1;
    pub(crate) const PF: u64 = 1 << 2;
    pub(crate) const AF: u64 = 1 << 4;
    pub(crate) const ZF: u64 = 1 << 6;
    pub(crate) const SF: u64 = 1 << 7;
    pub(crate) const TF: u64 = 1 << 8;
    pub(crate) const IF: u64 = 1 << 9;
    pub(crate) const DF: u64 = 1 << 10;
    pub(crate) const OF: u64 = 1 << 11;
    pub(crate) const IOPL: u64 = 3 << 12;
    pub(crate) const NT: u64 = 1 << 14;
    pub(crate) const RF: u64 = 1 << 16;
    pub(crate) const VM: u64 = 1 << 17;
    pub(crate) const AC: u64 = 1 << 18;
    pub(crate) const VIF: u64 = 1 << 19;
    pub(crate) const VIP: u64 = 1 << 20;
    pub(crate) const ID: u64 = 1 << 21;
    /// The six that [`super::Flags`] holds.
    pub(crate) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Moves a vector of carries up, so that the last one is at bit 63 and AF at bit 3.
pub(crate) fn carries<D: Domain, W: Width>(d: &mut D, c: D::Val) -> D::Val {
    if W::BITS == 64 {
        return c;
    }
    let shift = d.lit(u64::from(64 - W::BITS));
    let up = d.shl(c, shift);
    let eight = d.lit(8);
    let af = d.and(c, eight);
    d.or(up, af)
}

/// The flags of a result with given carries.
pub(crate) fn result<D: Domain, W: Width>(d: &mut D, r: D::Val, cv: D::Val) -> Flags<D::Val> {
    let sr = d.sext::<W>(r);
    Flags { zr: sr, sr, cv }
}

/// The flags of `r = a + b` (and a carry).
pub(crate) fn of_add<D: Domain, W: Width>(
    d: &mut D,
    a: D::Val,
    b: D::Val,
    r: D::Val,
) -> Flags<D::Val> {
    let both = d.and(a, b);
    let either = d.or(a, b);
    let not_r = d.not(r);
    let through = d.and(either, not_r);
    let c = d.or(both, through);
    let cv = carries::<D, W>(d, c);
    result::<D, W>(d, r, cv)
}

/// The flags of `r = a - b` (and a borrow).
pub(crate) fn of_sub<D: Domain, W: Width>(
    d: &mut D,
    a: D::Val,
    b: D::Val,
    r: D::Val,
) -> Flags<D::Val> {
    let not_a = d.not(a);
    let both = d.and(not_a, b);
    let either = d.or(not_a, b);
    let through = d.and(either, r);
    let c = d.or(both, through);
    let cv = carries::<D, W>(d, c);
    result::<D, W>(d, r, cv)
}

/// The flags of a logical result: no carry, no overflow.
pub(crate) fn of_logic<D: Domain, W: Width>(d: &mut D, r: D::Val) -> Flags<D::Val> {
    let cv = d.lit(0);
    result::<D, W>(d, r, cv)
}

/// CF as 0 or 1.
pub(crate) fn cf_value<D: Domain>(d: &mut D, f: Flags<D::Val>) -> D::Val {
    let n = d.lit(63);
    d.shr(f.cv, n)
}

/// OF as 0 or 1.
pub(crate) fn of_value<D: Domain>(d: &mut D, cv: D::Val) -> D::Val {
    let one = d.lit(1);
    let next = d.shl(cv, one);
    let x = d.xor(cv, next);
    let n = d.lit(63);
    d.shr(x, n)
}

/// Puts CF, OF (each 0 or 1) and AF (bit 3 of a value) together.
pub(crate) fn compose<D: Domain>(d: &mut D, cf: D::Val, of: D::Val, af: D::Val) -> D::Val {
    let n63 = d.lit(63);
    let n62 = d.lit(62);
    let high = d.shl(cf, n63);
    let mixed = d.xor(cf, of);
    let next = d.shl(mixed, n62);
    let eight = d.lit(8);
    let af = d.and(af, eight);
    let a = d.or(high, next);
    d.or(a, af)
}

/// `cv` with another CF (0 or 1); OF and AF stay.
pub(crate) fn with_cf<D: Domain>(d: &mut D, cv: D::Val, cf: D::Val) -> D::Val {
    let of = of_value(d, cv);
    compose(d, cf, of, cv)
}

/// `new` where `c` holds, else `old`.
pub(crate) fn choose<D: Domain>(
    d: &mut D,
    c: D::Bit,
    new: Flags<D::Val>,
    old: Flags<D::Val>,
) -> Flags<D::Val> {
    Flags {
        zr: d.select(c, new.zr, old.zr),
        sr: d.select(c, new.sr, old.sr),
        cv: d.select(c, new.cv, old.cv),
    }
}

/// `f` with ZF as `zf` says. SF and PF stay.
pub(crate) fn with_zf<D: Domain>(d: &mut D, f: Flags<D::Val>, zf: D::Bit) -> Flags<D::Val> {
    let zero = d.lit(0);
    let one = d.lit(1);
    Flags {
        zr: d.select(zf, zero, one),
        ..f
    }
}

/// Condition codes as the encoding numbers them: O, B, Z, BE, S, P, L, LE; odd ones negate.
pub(crate) fn condition<D: Domain, const CC: u8>(d: &mut D) -> D::Bit {
    let f = d.flags();
    let holds = match CC >> 1 {
        0 => {
            let of = overflow_sign::<D>(d, f);
            d.is_negative(of)
        }
        1 => d.is_negative(f.cv),
        2 => d.is_zero(f.zr),
        3 => {
            let c = d.is_negative(f.cv);
            let z = d.is_zero(f.zr);
            d.either(c, z)
        }
        4 => d.is_negative(f.sr),
        5 => d.is_even_parity(f.sr),
        6 => less(d, f),
        _ => {
            let l = less(d, f);
            let z = d.is_zero(f.zr);
            d.either(l, z)
        }
    };
    if CC & 1 == 1 { d.negate(holds) } else { holds }
}

fn overflow_sign<D: Domain>(d: &mut D, f: Flags<D::Val>) -> D::Val {
    let one = d.lit(1);
    let next = d.shl(f.cv, one);
    d.xor(f.cv, next)
}

fn less<D: Domain>(d: &mut D, f: Flags<D::Val>) -> D::Bit {
    let of = overflow_sign::<D>(d, f);
    let x = d.xor(of, f.sr);
    d.is_negative(x)
}

/// The sign bit of a `W`-wide value as 0 or 1.
pub(crate) fn sign<D: Domain, W: Width>(d: &mut D, a: D::Val) -> D::Val {
    let n = d.lit(u64::from(W::BITS - 1));
    let s = d.shr(a, n);
    let one = d.lit(1);
    d.and(s, one)
}

/// Flags from the low bits of RFLAGS: of integers only.
pub(crate) fn from_bits(value: u64) -> Flags<u64> {
    let zf = value & bit::ZF != 0;
    let sf = value & bit::SF != 0;
    let pf = value & bit::PF != 0;
    let cf = value & 1;
    let of = u64::from(value & bit::OF != 0);
    let af = u64::from(value & bit::AF != 0);
    Flags {
        zr: u64::from(!zf),
        sr: (u64::from(sf) << 63) | u64::from(!pf),
        cv: (cf << 63) | ((cf ^ of) << 62) | (af << 3),
    }
}

/// The low bits of RFLAGS of flags: of integers only.
pub(crate) fn to_bits(f: Flags<u64>) -> u64 {
    let mut value = f.cv >> 63;
    if (f.sr as u8).count_ones().is_multiple_of(2) {
        value |= bit::PF;
    }
    if f.cv & 8 != 0 {
        value |= bit::AF;
    }
    if f.zr == 0 {
        value |= bit::ZF;
    }
    if f.sr >> 63 != 0 {
        value |= bit::SF;
    }
    if (f.cv ^ (f.cv << 1)) >> 63 != 0 {
        value |= bit::OF;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive() {
        for value in 0..0x1000_u64 {
            let wanted = value & bit::ARITHMETIC;
            assert_eq!(to_bits(from_bits(wanted)), wanted);
        }
    }
}
