//! MUL, IMUL, MULX, DIV, IDIV.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, RAX, RDX, vector};
use crate::domain::{Domain, Flags, Flow, Handler, Helper, Op, W16, Width, helper};
use crate::flags;
use crate::lower::{Dst, Imm, Kind, Lowered, Mem, Place, Shape, Src, by_wide, by_width, go};

/// CF and OF as `c` says; SF, ZF, PF and AF are undefined, and follow the low half here.
fn product_flags<D: Domain, W: Width>(d: &mut D, low: D::Val, c: D::Bit) -> Flags<D::Val> {
    let one = d.value(c);
    let zero = d.lit(0);
    let cv = flags::compose(d, one, one, zero);
    flags::result::<D, W>(d, low, cv)
}

/// The product of two operands of `W`, in halves of `W`.
fn halves<D: Domain, W: Width, const SIGNED: bool>(
    d: &mut D,
    a: D::Val,
    b: D::Val,
) -> (D::Val, D::Val) {
    let (a, b) = if SIGNED {
        (d.sext::<W>(a), d.sext::<W>(b))
    } else {
        (a, b)
    };
    let (low, high) = if SIGNED {
        d.mul_signed(a, b)
    } else {
        d.mul_unsigned(a, b)
    };
    if W::BITS == 64 {
        return (low, high);
    }
    let n = d.lit(u64::from(W::BITS));
    let upper = d.shr(low, n);
    (d.zext::<W>(low), d.zext::<W>(upper))
}

/// Whether the upper half says something: nonzero, or not the sign of the lower.
fn overflows<D: Domain, W: Width, const SIGNED: bool>(
    d: &mut D,
    low: D::Val,
    high: D::Val,
) -> D::Bit {
    let wanted = if SIGNED {
        let s = d.sext::<W>(low);
        let n = d.lit(63);
        let s = d.sar(s, n);
        d.zext::<W>(s)
    } else {
        d.lit(0)
    };
    let x = d.xor(wanted, high);
    let fits = d.is_zero(x);
    d.negate(fits)
}

/// The accumulator times an operand, into DX:AX (AX for bytes).
fn multiply<D: Domain, W: Width, P: Place, const SIGNED: bool>(d: &mut D, op: &Op) -> Flow {
    let b = P::get::<D, W>(d, op)?;
    let a = d.reg::<W>(RAX);
    let (low, high) = halves::<D, W, SIGNED>(d, a, b);
    let c = overflows::<D, W, SIGNED>(d, low, high);
    if W::BITS == 8 {
        let n = d.lit(8);
        let up = d.shl(high, n);
        let v = d.or(up, low);
        d.set_reg::<W16>(RAX, v);
    } else {
        d.set_reg::<W>(RAX, low);
        d.set_reg::<W>(RDX, high);
    }
    let f = product_flags::<D, W>(d, low, c);
    d.set_flags(f);
    Ok(())
}

/// IMUL with two or three operands.
fn multiply_into<D: Domain, W: Width, A: Place, B: Place>(d: &mut D, op: &Op) -> Flow {
    let a = A::get::<D, W>(d, op)?;
    let b = B::get::<D, W>(d, op)?;
    let (low, high) = halves::<D, W, true>(d, a, b);
    let c = overflows::<D, W, true>(d, low, high);
    d.set_reg::<W>(op.dst, low);
    let f = product_flags::<D, W>(d, low, c);
    d.set_flags(f);
    Ok(())
}

/// MULX: RDX times an operand, no flags.
fn mulx<D: Domain, W: Width, P: Place, const REGISTER: bool>(d: &mut D, op: &Op) -> Flow {
    let b = if REGISTER {
        d.reg::<W>(op.aux)
    } else {
        P::get::<D, W>(d, op)?
    };
    let a = d.reg::<W>(RDX);
    let (low, high) = halves::<D, W, false>(d, a, b);
    d.set_reg::<W>(op.src, low);
    d.set_reg::<W>(op.dst, high);
    Ok(())
}

struct Divide<W, P, const SIGNED: bool>(std::marker::PhantomData<(W, P)>);

impl<W: Width, P: Place, const SIGNED: bool> Helper for Divide<W, P, SIGNED> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let by = P::get::<Cpu, W>(cpu, op)?;
        let dividend = if W::BITS == 8 {
            u128::from(cpu.reg::<W16>(RAX))
        } else {
            let (low, high) = (cpu.reg::<W>(RAX), cpu.reg::<W>(RDX));
            (u128::from(high) << W::BITS) | u128::from(low)
        };
        let parts = if SIGNED {
            signed::<W>(dividend, by)
        } else {
            unsigned::<W>(dividend, by)
        };
        let Some((quotient, rest)) = parts else {
            return Err(cpu.raise(vector::DE, None));
        };
        if W::BITS == 8 {
            cpu.set_reg::<W16>(RAX, (quotient & 0xff) | ((rest & 0xff) << 8));
        } else {
            cpu.set_reg::<W>(RAX, quotient);
            cpu.set_reg::<W>(RDX, rest);
        }
        Ok(())
    }
}

fn unsigned<W: Width>(dividend: u128, by: u64) -> Option<(u64, u64)> {
    if let (Ok(short), true) = (u64::try_from(dividend), W::BITS <= 32) {
        let quotient = short.checked_div(by)?;
        return (quotient <= W::MASK).then_some((quotient, short % by));
    }
    let quotient = dividend.checked_div(u128::from(by))?;
    let rest = dividend.checked_rem(u128::from(by))?;
    (quotient <= u128::from(W::MASK)).then_some((quotient as u64, rest as u64))
}

fn signed<W: Width>(dividend: u128, by: u64) -> Option<(u64, u64)> {
    let shift = 128 - 2 * W::BITS;
    let dividend = (dividend << shift) as i128 >> shift;
    let by = i128::from(W::sext(by) as i64);
    let quotient = dividend.checked_div(by)?;
    let rest = dividend.checked_rem(by)?;
    let fits = i128::from(W::sext(quotient as u64) as i64) == quotient;
    fits.then_some((quotient as u64, rest as u64))
}

fn pick<D: Domain, const SIGNED: bool>(s: &Shape) -> Option<Handler<D>> {
    Some(by_width!(s.bits, W => match s.first {
        Kind::Reg => multiply::<D, W, Dst, SIGNED>,
        _ => multiply::<D, W, Mem, SIGNED>,
    }))
}

fn pick_divide<D: Domain, const SIGNED: bool>(s: &Shape) -> Option<Handler<D>> {
    Some(by_width!(s.bits, W => match s.first {
        Kind::Reg => helper::<D, Divide<W, Dst, SIGNED>>,
        _ => helper::<D, Divide<W, Mem, SIGNED>>,
    }))
}

fn pick_into<D: Domain>(s: &Shape) -> Option<Handler<D>> {
    Some(by_wide!(s.bits, W => match (s.second, s.third) {
        (Kind::Reg, Kind::Imm) => multiply_into::<D, W, Src, Imm>,
        (_, Kind::Imm) => multiply_into::<D, W, Mem, Imm>,
        (Kind::Reg, _) => multiply_into::<D, W, Dst, Src>,
        _ => multiply_into::<D, W, Dst, Mem>,
    }))
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        Mnemonic::Mul => pick::<D, false>(s)?,
        Mnemonic::Imul if i.op_count() == 1 => pick::<D, true>(s)?,
        Mnemonic::Imul => pick_into::<D>(s)?,
        Mnemonic::Mulx => by_wide!(s.bits, W => match s.third {
            Kind::Reg => mulx::<D, W, Mem, true>,
            _ => mulx::<D, W, Mem, false>,
        }),
        Mnemonic::Div => pick_divide::<D, false>(s)?,
        Mnemonic::Idiv => pick_divide::<D, true>(s)?,
        _ => return None,
    })
}
