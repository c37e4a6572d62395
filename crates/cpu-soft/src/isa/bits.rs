//! BT, BTS, BTR, BTC, BSF, BSR, POPCNT, LZCNT, TZCNT, CRC32, and BMI1/2 without the shifts.

use iced_x86::{Instruction, Mnemonic};

use crate::domain::{Domain, Flags, Flow, Handler, Op, W64, Width};
use crate::flags;
use crate::lower::{
    Aux, Dst, Imm, Kind, LockedMem, Lowered, Mem, Place, Shape, Src, bits_of, by_wide, by_width, go,
};

/// What is done with the bit.
trait Change {
    fn apply<D: Domain>(d: &mut D, v: D::Val, bit: D::Val) -> D::Val;
}
struct Keep;
struct Set;
struct Reset;
struct Flip;
impl Change for Keep {
    fn apply<D: Domain>(_: &mut D, v: D::Val, _: D::Val) -> D::Val {
        v
    }
}
impl Change for Set {
    fn apply<D: Domain>(d: &mut D, v: D::Val, bit: D::Val) -> D::Val {
        d.or(v, bit)
    }
}
impl Change for Reset {
    fn apply<D: Domain>(d: &mut D, v: D::Val, bit: D::Val) -> D::Val {
        let not = d.not(bit);
        d.and(v, not)
    }
}
impl Change for Flip {
    fn apply<D: Domain>(d: &mut D, v: D::Val, bit: D::Val) -> D::Val {
        d.xor(v, bit)
    }
}

fn take_bit<D: Domain, C: Change>(d: &mut D, v: D::Val, n: D::Val) -> (D::Val, D::Val) {
    let one = d.lit(1);
    let bit = d.shl(one, n);
    let low = d.shr(v, n);
    let c = d.and(low, one);
    (C::apply(d, v, bit), c)
}

fn set_carry<D: Domain>(d: &mut D, c: D::Val) {
    let f = d.flags();
    let cv = flags::with_cf(d, f.cv, c);
    d.set_flags(Flags { cv, ..f });
}

/// A bit of a register, or of memory with an immediate: the number is taken modulo the size.
fn bit_near<D: Domain, C: Change, W: Width, P: Place, N: Place>(d: &mut D, op: &Op) -> Flow {
    let n = N::get::<D, W>(d, op)?;
    let mask = d.lit(u64::from(W::BITS - 1));
    let n = d.and(n, mask);
    let c = P::update::<D, W, _>(d, op, |d, v| take_bit::<D, C>(d, v, n))?;
    set_carry(d, c);
    Ok(())
}

/// BT does not write.
fn test_near<D: Domain, W: Width, P: Place, N: Place>(d: &mut D, op: &Op) -> Flow {
    let n = N::get::<D, W>(d, op)?;
    let mask = d.lit(u64::from(W::BITS - 1));
    let n = d.and(n, mask);
    let v = P::get::<D, W>(d, op)?;
    let (_, c) = take_bit::<D, Keep>(d, v, n);
    set_carry(d, c);
    Ok(())
}

/// How many bytes from the operand the word with bit `n` (signed) is, and the bit in it.
fn far_bit<D: Domain, W: Width>(d: &mut D, op: &Op) -> (D::Val, D::Val) {
    let n = d.reg::<W>(op.src);
    let wide = d.sext::<W>(n);
    let shift = d.lit(u64::from(W::BITS.trailing_zeros()));
    let words = d.sar(wide, shift);
    let size = d.lit(u64::from(W::BYTES.trailing_zeros()));
    let bytes = d.shl(words, size);
    let mask = d.lit(u64::from(W::BITS - 1));
    (bytes, d.and(n, mask))
}

fn bit_far<D: Domain, C: Change, W: Width, const LOCKED: bool>(d: &mut D, op: &Op) -> Flow {
    let (bytes, n) = far_bit::<D, W>(d, op);
    let c = d.update::<W, _>(op, LOCKED, bytes, |d, v| take_bit::<D, C>(d, v, n))?;
    set_carry(d, c);
    Ok(())
}

fn test_far<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let (bytes, n) = far_bit::<D, W>(d, op);
    let v = d.load_at::<W>(op, bytes)?;
    let (_, c) = take_bit::<D, Keep>(d, v, n);
    set_carry(d, c);
    Ok(())
}

fn pick_bit<D: Domain, C: Change>(s: &Shape) -> Option<Handler<D>> {
    Some(by_wide!(s.bits, W => match (s.first, s.second, s.lock) {
        (Kind::Reg, Kind::Reg, _) => bit_near::<D, C, W, Dst, Src>,
        (Kind::Reg, _, _) => bit_near::<D, C, W, Dst, Imm>,
        (_, Kind::Reg, false) => bit_far::<D, C, W, false>,
        (_, Kind::Reg, true) => bit_far::<D, C, W, true>,
        (_, _, false) => bit_near::<D, C, W, Mem, Imm>,
        (_, _, true) => bit_near::<D, C, W, LockedMem, Imm>,
    }))
}

fn pick_test<D: Domain>(s: &Shape) -> Option<Handler<D>> {
    Some(by_wide!(s.bits, W => match (s.first, s.second) {
        (Kind::Reg, Kind::Reg) => test_near::<D, W, Dst, Src>,
        (Kind::Reg, _) => test_near::<D, W, Dst, Imm>,
        (_, Kind::Reg) => test_far::<D, W>,
        _ => test_near::<D, W, Mem, Imm>,
    }))
}

/// BSF and BSR: of zero the destination stays, ZF is set; CF, OF, SF, AF, PF are undefined.
fn scan<D: Domain, W: Width, P: Place, const REVERSE: bool>(d: &mut D, op: &Op) -> Flow {
    let v = P::get::<D, W>(d, op)?;
    let f: fn(u64, u64, u64) -> (u64, u64) = if REVERSE {
        |v, _, _| (63 - u64::from((v | 1).leading_zeros()), 0)
    } else {
        |v, _, _| (u64::from(v.trailing_zeros()) & 63, 0)
    };
    let found = d.pure(f, [v, v, v]).0;
    let none = d.is_zero(v);
    // Processors leave the whole register as it was, also for 32-bit operands.
    let old = d.reg::<W64>(op.dst);
    let cut = d.zext::<W>(found);
    let merged = if W::BITS == 16 {
        let high = d.lit(!0xffff);
        let kept = d.and(old, high);
        d.or(kept, cut)
    } else {
        cut
    };
    let r = d.select(none, old, merged);
    d.set_reg::<W64>(op.dst, r);
    let f = flags::of_logic::<D, W>(d, v);
    d.set_flags(f);
    Ok(())
}

/// POPCNT, LZCNT, TZCNT by a function of (value, bits).
fn counting<D: Domain, W: Width, P: Place, const WHAT: u8>(d: &mut D, op: &Op) -> Flow {
    let v = P::get::<D, W>(d, op)?;
    let bits = d.lit(u64::from(W::BITS));
    let f: fn(u64, u64, u64) -> (u64, u64) = match WHAT {
        0 => |v, _, _| (u64::from(v.count_ones()), 0),
        1 => |v, bits, _| (u64::from(v.leading_zeros()) + bits - 64, 0),
        _ => |v, bits, _| (u64::from(v.trailing_zeros()).min(bits), 0),
    };
    let r = d.pure(f, [v, bits, bits]).0;
    d.set_reg::<W>(op.dst, r);
    let f = if WHAT == 0 {
        // All flags are cleared but ZF: the operand zero.
        let zero = d.lit(0);
        let one = d.lit(1);
        Flags {
            zr: v,
            sr: one,
            cv: zero,
        }
    } else {
        // CF: the operand is zero; ZF: the result is. SF, OF, PF, AF are undefined.
        let none = d.is_zero(v);
        let c = d.value(none);
        let zero = d.lit(0);
        let cv = flags::compose(d, c, zero, zero);
        flags::result::<D, W>(d, r, cv)
    };
    d.set_flags(f);
    Ok(())
}

fn crc32c(crc: u64, data: u64, bytes: u64) -> (u64, u64) {
    let mut crc = crc as u32;
    for byte in data.to_le_bytes().into_iter().take(bytes as usize) {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let low = crc & 1;
            // The Castagnoli polynomial, reflected.
            crc = (crc >> 1) ^ (0x82f6_3b78 & low.wrapping_neg());
        }
    }
    (u64::from(crc), 0)
}

fn crc32<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let v = P::get::<D, W>(d, op)?;
    let crc = d.reg::<W64>(op.dst);
    let bytes = d.lit(W::BYTES);
    let r = d.pure(crc32c, [crc, v, bytes]).0;
    d.set_reg::<W64>(op.dst, r);
    Ok(())
}

fn spread(v: u64, mask: u64, _: u64) -> (u64, u64) {
    let (mut r, mut left, mut v) = (0, mask, v);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        if v & 1 != 0 {
            r |= bit;
        }
        v >>= 1;
        left ^= bit;
    }
    (r, 0)
}

fn gather(v: u64, mask: u64, _: u64) -> (u64, u64) {
    let (mut r, mut left, mut n) = (0, mask, 0);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        if v & bit != 0 {
            r |= 1 << n;
        }
        n += 1;
        left ^= bit;
    }
    (r, 0)
}

/// PDEP and PEXT: `dst = f(src, third)`.
fn deposit<D: Domain, W: Width, P: Place, const EXTRACT: bool>(d: &mut D, op: &Op) -> Flow {
    let mask = P::get::<D, W>(d, op)?;
    let v = d.reg::<W>(op.src);
    let f = if EXTRACT { gather } else { spread };
    let r = d.pure(f, [v, mask, mask]).0;
    d.set_reg::<W>(op.dst, r);
    Ok(())
}

fn andn<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let b = P::get::<D, W>(d, op)?;
    let a = d.reg::<W>(op.src);
    let not = d.not(a);
    let r = d.and(not, b);
    d.set_reg::<W>(op.dst, r);
    let f = flags::of_logic::<D, W>(d, r);
    d.set_flags(f);
    Ok(())
}

/// BEXTR: bits `start`, `length` (both in the third operand) of the second.
fn bextr<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let v = P::get::<D, W>(d, op)?;
    let control = d.reg::<W>(op.aux);
    let f = |v: u64, control: u64, _: u64| {
        let (start, length) = (control & 0xff, (control >> 8) & 0xff);
        let moved = if start > 63 { 0 } else { v >> start };
        let mask = if length > 63 {
            u64::MAX
        } else {
            (1 << length) - 1
        };
        (moved & mask, 0)
    };
    let r = d.pure(f, [v, control, control]).0;
    d.set_reg::<W>(op.dst, r);
    let f = flags::of_logic::<D, W>(d, r);
    d.set_flags(f);
    Ok(())
}

fn bzhi<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let v = P::get::<D, W>(d, op)?;
    let n = d.reg::<W>(op.aux);
    let bits = d.lit(u64::from(W::BITS));
    let f = |v: u64, n: u64, bits: u64| {
        let n = n & 0xff;
        if n >= bits {
            (v, 1)
        } else {
            (v & ((1 << n) - 1), 0)
        }
    };
    let (r, c) = d.pure(f, [v, n, bits]);
    d.set_reg::<W>(op.dst, r);
    let zero = d.lit(0);
    let cv = flags::compose(d, c, zero, zero);
    let f = flags::result::<D, W>(d, r, cv);
    d.set_flags(f);
    Ok(())
}

/// BLSI, BLSMSK, BLSR: the first operand from the second's lowest set bit.
fn lowest<D: Domain, W: Width, P: Place, const WHAT: u8>(d: &mut D, op: &Op) -> Flow {
    let v = P::get::<D, W>(d, op)?;
    let none = d.is_zero(v);
    let one = d.lit(1);
    let less = d.sub(v, one);
    let r = match WHAT {
        0 => {
            let zero = d.lit(0);
            let minus = d.sub(zero, v);
            d.and(v, minus)
        }
        1 => d.xor(v, less),
        _ => d.and(v, less),
    };
    let r = d.zext::<W>(r);
    d.set_reg::<W>(op.dst, r);
    let is = if WHAT == 0 { d.negate(none) } else { none };
    let c = d.value(is);
    let zero = d.lit(0);
    let cv = flags::compose(d, c, zero, zero);
    let f = flags::result::<D, W>(d, r, cv);
    d.set_flags(f);
    Ok(())
}

macro_rules! second {
    ($s:expr, $f:ident $(, $x:expr)?) => {
        by_wide!($s.bits, W => match $s.second {
            Kind::Reg => $f::<D, W, Src $(, $x)?>,
            _ => $f::<D, W, Mem $(, $x)?>,
        })
    };
}

macro_rules! third {
    ($s:expr, $f:ident $(, $x:expr)?) => {
        by_wide!($s.bits, W => match $s.third {
            Kind::Reg => $f::<D, W, Aux $(, $x)?>,
            _ => $f::<D, W, Mem $(, $x)?>,
        })
    };
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    let run: Handler<D> = match i.mnemonic() {
        Mnemonic::Bt => pick_test::<D>(s)?,
        Mnemonic::Bts => pick_bit::<D, Set>(s)?,
        Mnemonic::Btr => pick_bit::<D, Reset>(s)?,
        Mnemonic::Btc => pick_bit::<D, Flip>(s)?,
        Mnemonic::Bsf => second!(s, scan, false),
        Mnemonic::Bsr => second!(s, scan, true),
        Mnemonic::Popcnt => second!(s, counting, 0),
        Mnemonic::Lzcnt => second!(s, counting, 1),
        Mnemonic::Tzcnt => second!(s, counting, 2),
        Mnemonic::Crc32 => by_width!(bits_of(i, 1), W => match s.second {
            Kind::Reg => crc32::<D, W, Src>,
            _ => crc32::<D, W, Mem>,
        }),
        Mnemonic::Andn => third!(s, andn),
        Mnemonic::Pdep => third!(s, deposit, false),
        Mnemonic::Pext => third!(s, deposit, true),
        Mnemonic::Bextr => second!(s, bextr),
        Mnemonic::Bzhi => second!(s, bzhi),
        Mnemonic::Blsi => second!(s, lowest, 0),
        Mnemonic::Blsmsk => second!(s, lowest, 1),
        Mnemonic::Blsr => second!(s, lowest, 2),
        _ => return None,
    };
    go(run)
}
