//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD, and the flagless shifts of BMI2.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::domain::{Domain, Flags, Flow, Handler, Op, Width};
use crate::flags;
use crate::lower::{
    Aux, Cl, Dst, Imm, Kind, Lowered, Mem, Place, Shape, Src, by_wide, by_width, go,
};

/// A shift by `n`, which is masked and may be zero: then the flags are dropped.
trait Shift {
    /// Whether `n` that is zero modulo something else but not zero itself still sets flags is
    /// decided here: the flags to take if `n` is not zero.
    fn eval<D: Domain, W: Width>(d: &mut D, a: D::Val, n: D::Val) -> (D::Val, Flags<D::Val>);
}

macro_rules! shift {
    ($name:ident, $d:ident, $w:ident, $a:ident, $n:ident => $body:expr) => {
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn eval<D: Domain, $w: Width>(
                $d: &mut D,
                $a: D::Val,
                $n: D::Val,
            ) -> (D::Val, Flags<D::Val>) {
                $body
            }
        }
    };
}

/// `a >> (n - 1)`, its low bit.
fn last_out<D: Domain>(d: &mut D, a: D::Val, n: D::Val) -> D::Val {
    let one = d.lit(1);
    let m = d.sub(n, one);
    let v = d.shr(a, m);
    d.and(v, one)
}

fn shifted<D: Domain, W: Width>(
    d: &mut D,
    r: D::Val,
    cf: D::Val,
    of: D::Val,
) -> (D::Val, Flags<D::Val>) {
    let af = d.lit(0);
    let cv = flags::compose(d, cf, of, af);
    (r, flags::result::<D, W>(d, r, cv))
}

shift!(Shl, d, W, a, n => {
    let wide = d.shl(a, n);
    let r = d.zext::<W>(wide);
    // The last bit out: bit BITS of the wide result, or for 64 bits what `a >> (64 - n)` ends in.
    let cf = if W::BITS == 64 {
        let size = d.lit(64);
        let m = d.sub(size, n);
        let v = d.shr(a, m);
        let one = d.lit(1);
        d.and(v, one)
    } else {
        let m = d.lit(u64::from(W::BITS));
        let v = d.shr(wide, m);
        let one = d.lit(1);
        d.and(v, one)
    };
    let top = flags::sign::<D, W>(d, r);
    let of = d.xor(top, cf);
    shifted::<D, W>(d, r, cf, of)
});
shift!(Shr, d, W, a, n => {
    let r = d.shr(a, n);
    let cf = last_out(d, a, n);
    let of = flags::sign::<D, W>(d, a);
    shifted::<D, W>(d, r, cf, of)
});
shift!(Sar, d, W, a, n => {
    let wide = d.sext::<W>(a);
    let r = d.sar(wide, n);
    let r = d.zext::<W>(r);
    let one = d.lit(1);
    let m = d.sub(n, one);
    let v = d.sar(wide, m);
    let cf = d.and(v, one);
    let of = d.lit(0);
    shifted::<D, W>(d, r, cf, of)
});

/// Rotations change CF and OF only.
fn rotated<D: Domain>(d: &mut D, r: D::Val, cf: D::Val, of: D::Val) -> (D::Val, Flags<D::Val>) {
    let f = d.flags();
    let cv = flags::compose(d, cf, of, f.cv);
    (r, Flags { cv, ..f })
}

fn rotate_left<D: Domain, W: Width>(d: &mut D, a: D::Val, n: D::Val) -> D::Val {
    let mask = d.lit(u64::from(W::BITS - 1));
    let n = d.and(n, mask);
    let size = d.lit(u64::from(W::BITS));
    let m = d.sub(size, n);
    let m = d.and(m, mask);
    let high = d.shl(a, n);
    let low = d.shr(a, m);
    let r = d.or(high, low);
    d.zext::<W>(r)
}

shift!(Rol, d, W, a, n => {
    let r = rotate_left::<D, W>(d, a, n);
    let one = d.lit(1);
    let cf = d.and(r, one);
    let top = flags::sign::<D, W>(d, r);
    let of = d.xor(top, cf);
    rotated(d, r, cf, of)
});
shift!(Ror, d, W, a, n => {
    let size = d.lit(u64::from(W::BITS * 2));
    let m = d.sub(size, n);
    let r = rotate_left::<D, W>(d, a, m);
    let cf = flags::sign::<D, W>(d, r);
    let one = d.lit(1);
    let twice = d.shl(r, one);
    let next = flags::sign::<D, W>(d, twice);
    let of = d.xor(cf, next);
    rotated(d, r, cf, of)
});

/// Rotates `bits` and the carry (bit `bits`) left by `n`.
fn through_carry(value: u64, n: u64, bits: u64) -> (u64, u64) {
    let size = (bits & 0xff) as u32 + 1;
    let carry = u128::from(bits >> 8);
    let wide = (carry << (size - 1)) | u128::from(value);
    let n = (n % u64::from(size)) as u32;
    let mask = (1_u128 << size) - 1;
    let turned = if n == 0 {
        wide
    } else {
        ((wide << n) | (wide >> (size - n))) & mask
    };
    (
        turned as u64 & (mask >> 1) as u64,
        (turned >> (size - 1)) as u64,
    )
}

fn rotate_carry<D: Domain, W: Width>(d: &mut D, a: D::Val, n: D::Val) -> (D::Val, D::Val) {
    let f = d.flags();
    let c = flags::cf_value(d, f);
    let eight = d.lit(8);
    let high = d.shl(c, eight);
    let bits = d.lit(u64::from(W::BITS));
    let packed = d.or(high, bits);
    d.pure(through_carry, [a, n, packed])
}

shift!(Rcl, d, W, a, n => {
    let (r, cf) = rotate_carry::<D, W>(d, a, n);
    let top = flags::sign::<D, W>(d, r);
    let of = d.xor(top, cf);
    rotated(d, r, cf, of)
});
shift!(Rcr, d, W, a, n => {
    // To the right by n is to the left by (size - n), with the count reduced first.
    let size = d.lit(u64::from(W::BITS + 1));
    let m = d.pure(|n, size, _| (size - n % size, 0), [n, size, size]).0;
    let (r, cf) = rotate_carry::<D, W>(d, a, m);
    let one = d.lit(1);
    let twice = d.shl(r, one);
    let top = flags::sign::<D, W>(d, r);
    let next = flags::sign::<D, W>(d, twice);
    let of = d.xor(top, next);
    rotated(d, r, cf, of)
});

fn count<D: Domain, W: Width, N: Place>(d: &mut D, op: &Op) -> Result<D::Val, crate::domain::Stop> {
    let n = N::get::<D, W>(d, op)?;
    let mask = d.lit(if W::BITS == 64 { 63 } else { 31 });
    Ok(d.and(n, mask))
}

fn shift<D: Domain, S: Shift, W: Width, P: Place, N: Place>(d: &mut D, op: &Op) -> Flow {
    let n = count::<D, W, N>(d, op)?;
    let new = P::update::<D, W, _>(d, op, |d, a| S::eval::<D, W>(d, a, n))?;
    let old = d.flags();
    let none = d.is_zero(n);
    let f = flags::choose(d, none, old, new);
    d.set_flags(f);
    Ok(())
}

/// SHLD and SHRD. For 16 bits and counts above 16 the result is undefined; it is here what a
/// shift of `destination:source:destination` gives.
fn double<D: Domain, W: Width, P: Place, N: Place, const LEFT: bool>(d: &mut D, op: &Op) -> Flow {
    let n = count::<D, W, N>(d, op)?;
    let b = d.reg::<W>(op.src);
    let new = P::update::<D, W, _>(d, op, |d, a| {
        let f = if LEFT { double_left } else { double_right };
        let eight = d.lit(8);
        let high = d.shl(n, eight);
        let bits = d.lit(u64::from(W::BITS));
        let packed = d.or(high, bits);
        let (r, cf) = d.pure(f, [a, b, packed]);
        let top = flags::sign::<D, W>(d, r);
        let before = flags::sign::<D, W>(d, a);
        let of = d.xor(top, before);
        shifted::<D, W>(d, r, cf, of)
    })?;
    let old = d.flags();
    let none = d.is_zero(n);
    let f = flags::choose(d, none, old, new);
    d.set_flags(f);
    Ok(())
}

fn double_left(a: u64, b: u64, packed: u64) -> (u64, u64) {
    let (bits, n) = ((packed & 0xff) as u32, (packed >> 8) as u32);
    let mask = u64::MAX >> (64 - bits);
    if n == 0 {
        return (a, 0);
    }
    if n > bits {
        let wide = (u128::from(b) << bits) | u128::from(a);
        let n = n - bits;
        let cf = (wide >> (2 * bits - n)) & 1;
        let turned = (wide << n) | (wide >> (2 * bits - n));
        return ((turned >> bits) as u64 & mask, cf as u64);
    }
    let wide = (u128::from(a) << bits) | u128::from(b);
    (
        ((wide << n) >> bits) as u64 & mask,
        ((wide >> (2 * bits - n)) & 1) as u64,
    )
}

fn double_right(a: u64, b: u64, packed: u64) -> (u64, u64) {
    let (bits, n) = ((packed & 0xff) as u32, (packed >> 8) as u32);
    let mask = u64::MAX >> (64 - bits);
    if n == 0 {
        return (a, 0);
    }
    if n > bits {
        let wide = (u128::from(a) << bits) | u128::from(b);
        let n = n - bits;
        return ((wide >> n) as u64 & mask, ((wide >> (n - 1)) & 1) as u64);
    }
    let wide = (u128::from(b) << bits) | u128::from(a);
    ((wide >> n) as u64 & mask, ((wide >> (n - 1)) & 1) as u64)
}

/// RORX, SHLX, SHRX, SARX: the first operand gets the second shifted; no flags.
fn flagless<D: Domain, S: Shift, W: Width, P: Place, N: Place>(d: &mut D, op: &Op) -> Flow {
    let a = P::get::<D, W>(d, op)?;
    let n = count::<D, W, N>(d, op)?;
    let (r, _) = S::eval::<D, W>(d, a, n);
    d.set_reg::<W>(op.dst, r);
    Ok(())
}

fn pick<D: Domain, S: Shift>(i: &Instruction, s: &Shape) -> Option<Handler<D>> {
    let by_cl = i.op_count() > 1 && i.op_kind(1) == OpKind::Register;
    Some(by_width!(s.bits, W => match (s.first, by_cl) {
        (Kind::Reg, true) => shift::<D, S, W, Dst, Cl>,
        (Kind::Reg, false) => shift::<D, S, W, Dst, Imm>,
        (_, true) => shift::<D, S, W, Mem, Cl>,
        (_, false) => shift::<D, S, W, Mem, Imm>,
    }))
}

fn pick_double<D: Domain, const LEFT: bool>(s: &Shape) -> Option<Handler<D>> {
    Some(by_wide!(s.bits, W => match (s.first, s.third) {
        (Kind::Reg, Kind::Reg) => double::<D, W, Dst, Cl, LEFT>,
        (Kind::Reg, _) => double::<D, W, Dst, Imm, LEFT>,
        (_, Kind::Reg) => double::<D, W, Mem, Cl, LEFT>,
        _ => double::<D, W, Mem, Imm, LEFT>,
    }))
}

fn pick_flagless<D: Domain, S: Shift>(s: &Shape) -> Option<Handler<D>> {
    Some(by_wide!(s.bits, W => match (s.second, s.third) {
        (Kind::Reg, Kind::Imm) => flagless::<D, S, W, Src, Imm>,
        (_, Kind::Imm) => flagless::<D, S, W, Mem, Imm>,
        (Kind::Reg, _) => flagless::<D, S, W, Src, Aux>,
        _ => flagless::<D, S, W, Mem, Aux>,
    }))
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => pick::<D, Shl>(i, s)?,
        Mnemonic::Shr => pick::<D, Shr>(i, s)?,
        Mnemonic::Sar => pick::<D, Sar>(i, s)?,
        Mnemonic::Rol => pick::<D, Rol>(i, s)?,
        Mnemonic::Ror => pick::<D, Ror>(i, s)?,
        Mnemonic::Rcl => pick::<D, Rcl>(i, s)?,
        Mnemonic::Rcr => pick::<D, Rcr>(i, s)?,
        Mnemonic::Shld => pick_double::<D, true>(s)?,
        Mnemonic::Shrd => pick_double::<D, false>(s)?,
        Mnemonic::Rorx => pick_flagless::<D, Ror>(s)?,
        Mnemonic::Shlx => pick_flagless::<D, Shl>(s)?,
        Mnemonic::Shrx => pick_flagless::<D, Shr>(s)?,
        Mnemonic::Sarx => pick_flagless::<D, Sar>(s)?,
        _ => return None,
    })
}
