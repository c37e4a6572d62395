//! ADD, ADC, SUB, SBB, AND, OR, XOR, CMP, TEST, INC, DEC, NEG, NOT, ADCX, ADOX.

use iced_x86::{Instruction, Mnemonic};

use crate::domain::{Domain, Flags, Flow, Handler, Op, Width};
use crate::flags;
use crate::lower::{
    Dst, Imm, Kind, LockedMem, Lowered, Mem, Place, Shape, Src, by_wide, by_width, go,
};

/// A two-operand operation: its result and its flags.
pub(crate) trait Alu {
    fn eval<D: Domain, W: Width>(d: &mut D, a: D::Val, b: D::Val) -> (D::Val, Flags<D::Val>);
}

macro_rules! alu {
    ($name:ident, $d:ident, $w:ident, $a:ident, $b:ident => $body:expr) => {
        struct $name;
        impl Alu for $name {
            #[inline(always)]
            fn eval<D: Domain, $w: Width>(
                $d: &mut D,
                $a: D::Val,
                $b: D::Val,
            ) -> (D::Val, Flags<D::Val>) {
                $body
            }
        }
    };
}

alu!(Add, d, W, a, b => {
    let r = d.add(a, b);
    let r = d.zext::<W>(r);
    (r, flags::of_add::<D, W>(d, a, b, r))
});
alu!(Adc, d, W, a, b => {
    let f = d.flags();
    let c = flags::cf_value(d, f);
    let r = d.add(a, b);
    let r = d.add(r, c);
    let r = d.zext::<W>(r);
    (r, flags::of_add::<D, W>(d, a, b, r))
});
alu!(Sub, d, W, a, b => {
    let r = d.sub(a, b);
    let r = d.zext::<W>(r);
    (r, flags::of_sub::<D, W>(d, a, b, r))
});
alu!(Sbb, d, W, a, b => {
    let f = d.flags();
    let c = flags::cf_value(d, f);
    let r = d.sub(a, b);
    let r = d.sub(r, c);
    let r = d.zext::<W>(r);
    (r, flags::of_sub::<D, W>(d, a, b, r))
});
alu!(And, d, W, a, b => {
    let r = d.and(a, b);
    (r, flags::of_logic::<D, W>(d, r))
});
alu!(Or, d, W, a, b => {
    let r = d.or(a, b);
    (r, flags::of_logic::<D, W>(d, r))
});
alu!(Xor, d, W, a, b => {
    let r = d.xor(a, b);
    (r, flags::of_logic::<D, W>(d, r))
});
alu!(Inc, d, W, a, _b => {
    let one = d.lit(1);
    let r = d.add(a, one);
    let r = d.zext::<W>(r);
    let f = flags::of_add::<D, W>(d, a, one, r);
    (r, keep_cf(d, f))
});
alu!(Dec, d, W, a, _b => {
    let one = d.lit(1);
    let r = d.sub(a, one);
    let r = d.zext::<W>(r);
    let f = flags::of_sub::<D, W>(d, a, one, r);
    (r, keep_cf(d, f))
});
alu!(Neg, d, W, a, _b => {
    let zero = d.lit(0);
    let r = d.sub(zero, a);
    let r = d.zext::<W>(r);
    (r, flags::of_sub::<D, W>(d, zero, a, r))
});
alu!(Not, d, W, a, _b => {
    let r = d.not(a);
    let r = d.zext::<W>(r);
    (r, d.flags())
});

fn keep_cf<D: Domain>(d: &mut D, f: Flags<D::Val>) -> Flags<D::Val> {
    let old = d.flags();
    let c = flags::cf_value(d, old);
    let cv = flags::with_cf(d, f.cv, c);
    Flags { cv, ..f }
}

/// `destination = destination op source`.
fn binary<D: Domain, A: Alu, W: Width, P: Place, S: Place>(d: &mut D, op: &Op) -> Flow {
    let b = S::get::<D, W>(d, op)?;
    let f = P::update::<D, W, _>(d, op, |d, a| A::eval::<D, W>(d, a, b))?;
    d.set_flags(f);
    Ok(())
}

/// As `binary`, for the flags only.
fn compare<D: Domain, A: Alu, W: Width, P: Place, S: Place>(d: &mut D, op: &Op) -> Flow {
    let a = P::get::<D, W>(d, op)?;
    let b = S::get::<D, W>(d, op)?;
    let (_, f) = A::eval::<D, W>(d, a, b);
    d.set_flags(f);
    Ok(())
}

/// `xor r, r`: what compilers write for zero.
fn clear<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let zero = d.lit(0);
    d.set_reg::<W>(op.dst, zero);
    let f = flags::of_logic::<D, W>(d, zero);
    d.set_flags(f);
    Ok(())
}

fn pick<D: Domain, A: Alu>(s: &Shape) -> Option<Handler<D>> {
    Some(by_width!(s.bits, W => match (s.first, s.second, s.lock) {
        (Kind::Reg, Kind::Reg, false) => binary::<D, A, W, Dst, Src>,
        (Kind::Reg, Kind::Mem, false) => binary::<D, A, W, Dst, Mem>,
        (Kind::Reg, Kind::Imm, false) => binary::<D, A, W, Dst, Imm>,
        (Kind::Mem, Kind::Reg, false) => binary::<D, A, W, Mem, Src>,
        (Kind::Mem, Kind::Imm, false) => binary::<D, A, W, Mem, Imm>,
        (Kind::Mem, Kind::Reg, true) => binary::<D, A, W, LockedMem, Src>,
        (Kind::Mem, Kind::Imm, true) => binary::<D, A, W, LockedMem, Imm>,
        _ => return None,
    }))
}

fn pick_compare<D: Domain, A: Alu>(s: &Shape) -> Option<Handler<D>> {
    Some(by_width!(s.bits, W => match (s.first, s.second) {
        (Kind::Reg, Kind::Reg) => compare::<D, A, W, Dst, Src>,
        (Kind::Reg, Kind::Mem) => compare::<D, A, W, Dst, Mem>,
        (Kind::Reg, Kind::Imm) => compare::<D, A, W, Dst, Imm>,
        (Kind::Mem, Kind::Reg) => compare::<D, A, W, Mem, Src>,
        (Kind::Mem, Kind::Imm) => compare::<D, A, W, Mem, Imm>,
        _ => return None,
    }))
}

fn pick_unary<D: Domain, A: Alu>(s: &Shape) -> Option<Handler<D>> {
    Some(by_width!(s.bits, W => match (s.first, s.lock) {
        (Kind::Reg, false) => binary::<D, A, W, Dst, Imm>,
        (Kind::Mem, false) => binary::<D, A, W, Mem, Imm>,
        (Kind::Mem, true) => binary::<D, A, W, LockedMem, Imm>,
        _ => return None,
    }))
}

/// ADCX and ADOX: an addition with one flag as carry, that changes no other flag.
fn add_one_flag<D: Domain, W: Width, S: Place, const OVERFLOW: bool>(d: &mut D, op: &Op) -> Flow {
    let b = S::get::<D, W>(d, op)?;
    let a = d.reg::<W>(op.dst);
    let f = d.flags();
    let cf = flags::cf_value(d, f);
    let of = flags::of_value(d, f.cv);
    let c = if OVERFLOW { of } else { cf };
    let r = d.add(a, b);
    let r = d.add(r, c);
    let r = d.zext::<W>(r);
    let sum = flags::of_add::<D, W>(d, a, b, r);
    let out = flags::cf_value(d, sum);
    let cv = if OVERFLOW {
        flags::compose(d, cf, out, f.cv)
    } else {
        flags::compose(d, out, of, f.cv)
    };
    d.set_reg::<W>(op.dst, r);
    d.set_flags(Flags { cv, ..f });
    Ok(())
}

fn pick_one_flag<D: Domain, const OVERFLOW: bool>(s: &Shape) -> Option<Handler<D>> {
    Some(by_wide!(s.bits, W => match s.second {
        Kind::Reg => add_one_flag::<D, W, Src, OVERFLOW>,
        _ => add_one_flag::<D, W, Mem, OVERFLOW>,
    }))
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    let same = s.second == Kind::Reg && i.op0_register() == i.op1_register();
    go(match i.mnemonic() {
        Mnemonic::Add => pick::<D, Add>(s)?,
        Mnemonic::Adc => pick::<D, Adc>(s)?,
        Mnemonic::Sub => pick::<D, Sub>(s)?,
        Mnemonic::Sbb => pick::<D, Sbb>(s)?,
        Mnemonic::And => pick::<D, And>(s)?,
        Mnemonic::Or => pick::<D, Or>(s)?,
        Mnemonic::Xor if same && s.bits >= 32 => by_width!(s.bits, W => clear::<D, W>),
        Mnemonic::Xor => pick::<D, Xor>(s)?,
        Mnemonic::Cmp => pick_compare::<D, Sub>(s)?,
        Mnemonic::Test => pick_compare::<D, And>(s)?,
        Mnemonic::Inc => pick_unary::<D, Inc>(s)?,
        Mnemonic::Dec => pick_unary::<D, Dec>(s)?,
        Mnemonic::Neg => pick_unary::<D, Neg>(s)?,
        Mnemonic::Not => pick_unary::<D, Not>(s)?,
        Mnemonic::Adcx => pick_one_flag::<D, false>(s)?,
        Mnemonic::Adox => pick_one_flag::<D, true>(s)?,
        _ => return None,
    })
}
