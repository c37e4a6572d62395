//! Moves between XMM registers, memory and general registers.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, DS, RDI};
use crate::domain::{Domain, Flow, Helper, Op, W8, W32, W64, Width, helper, helpers};
use crate::lower::{Kind, Lowered, Shape, go, prefix};
use crate::sse::{build, lane, packed};

/// The whole register, from or to memory or another. `ALIGNED`: memory must be. `WIDE`: a YMM
/// register.
struct Whole<const STORE: bool, const ALIGNED: bool, const WIDE: bool>;
impl<const STORE: bool, const ALIGNED: bool, const WIDE: bool> Helper
    for Whole<STORE, ALIGNED, WIDE>
{
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        if WIDE {
            if STORE {
                let value = cpu.ymm(op.src);
                return cpu.store_wide(op, value, ALIGNED);
            }
            if ALIGNED && op.prefix & prefix::MEMORY != 0 {
                let linear = cpu.linear_of(op, 0, 32, false)?;
                if linear & 31 != 0 {
                    return Err(cpu.gp(0));
                }
            }
            let value = cpu.wide_source(op, op.src, 32)?;
            cpu.set_ymm(op.dst, value);
            return Ok(());
        }
        if STORE {
            let value = cpu.xmm(op.src);
            return cpu.store_vector(op, value, 16, ALIGNED);
        }
        let value = if op.prefix & prefix::MEMORY != 0 {
            cpu.load_vector(op, 16, ALIGNED)?
        } else {
            cpu.xmm(op.src)
        };
        cpu.put_xmm(op, op.dst, value);
        Ok(())
    }
}

/// The low `BYTES`: loads clear the rest, moves between registers keep it (`KEEP`) or not.
struct Low<const BYTES: u64, const STORE: bool, const KEEP: bool>;
impl<const BYTES: u64, const STORE: bool, const KEEP: bool> Helper for Low<BYTES, STORE, KEEP> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let memory = op.prefix & prefix::MEMORY != 0;
        if STORE && memory {
            let value = cpu.xmm(op.src);
            return cpu.store_vector(op, value, BYTES, false);
        }
        let mask = (1_u128 << (BYTES * 8)) - 1;
        let value = if KEEP && !memory {
            let low = cpu.xmm(Cpu::last_register(op));
            (low & mask) | (cpu.kept_xmm(op) & !mask)
        } else {
            cpu.vector_source(op, BYTES, false)? & mask
        };
        cpu.put_xmm(op, op.dst, value);
        Ok(())
    }
}

/// MOVLPS, MOVHPS and the like: one half, from or to memory.
struct Half<const HIGH: bool, const STORE: bool>;
impl<const HIGH: bool, const STORE: bool> Helper for Half<HIGH, STORE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let shift = if HIGH { 64 } else { 0 };
        if STORE {
            let value = cpu.xmm(op.src) >> shift;
            return cpu.store_vector(op, value, 8, false);
        }
        let value = cpu.load_vector(op, 8, false)?;
        let kept = cpu.kept_xmm(op) & !(u128::from(u64::MAX) << shift);
        cpu.put_xmm(op, op.dst, kept | (value << shift));
        Ok(())
    }
}

/// MOVD and MOVQ from a general register or memory.
struct FromGeneral<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for FromGeneral<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let value = if op.prefix & prefix::MEMORY != 0 {
            cpu.load::<W>(op)?
        } else {
            cpu.reg::<W>(op.src)
        };
        cpu.put_xmm(op, op.dst, u128::from(value));
        Ok(())
    }
}

struct ToGeneral<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for ToGeneral<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let value = cpu.xmm(op.src) as u64 & W::MASK;
        if op.prefix & prefix::MEMORY != 0 {
            return cpu.store::<W>(op, value);
        }
        cpu.set_reg::<W>(op.dst, value);
        Ok(())
    }
}

/// PEXTRx and EXTRACTPS: a lane into a general register or memory.
struct Extract<const BITS: u32>;
impl<const BITS: u32> Helper for Extract<BITS> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let index = op.imm as u32 % (128 / BITS);
        let value = lane::<BITS>(cpu.xmm(op.src), index);
        if op.prefix & prefix::MEMORY != 0 {
            return cpu.store_vector(op, u128::from(value), u64::from(BITS / 8), false);
        }
        cpu.put(op.dst, value);
        Ok(())
    }
}

struct Insert<const BITS: u32>;
impl<const BITS: u32> Helper for Insert<BITS> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let value = if op.prefix & prefix::MEMORY != 0 {
            cpu.load_vector(op, u64::from(BITS / 8), false)? as u64
        } else {
            cpu.get(Cpu::last_register(op))
        };
        let index = op.imm as u32 % (128 / BITS);
        let old = cpu.kept_xmm(op);
        let new = build::<BITS>(|n| {
            if n == index {
                value
            } else {
                lane::<BITS>(old, n)
            }
        });
        cpu.put_xmm(op, op.dst, new);
        Ok(())
    }
}

/// The sign bits of the lanes, of both halves of a YMM register if `WIDE`.
struct SignMask<const BITS: u32, const WIDE: bool>;
impl<const BITS: u32, const WIDE: bool> Helper for SignMask<BITS, WIDE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let signs = |value: u128| {
            (0..128 / BITS).fold(0, |bits, n| {
                bits | ((lane::<BITS>(value, n) >> (BITS - 1)) << n)
            })
        };
        let [low, high] = cpu.ymm(op.src);
        let upper = if WIDE { signs(high) << (128 / BITS) } else { 0 };
        cpu.put(op.dst, signs(low) | upper);
        Ok(())
    }
}

packed! {
    Movhlps(a, b, _) => (a >> 64 << 64) | (b >> 64);
    Movlhps(a, b, _) => (a & u128::from(u64::MAX)) | (b << 64);
    Movddup[8]{WIDE_BYTES: u64 = 32}(_, b, _) => (b & u128::from(u64::MAX)) | (b << 64);
    Movshdup(_, b, _) => build::<32>(|n| lane::<32>(b, n | 1));
    Movsldup(_, b, _) => build::<32>(|n| lane::<32>(b, n & !1));
}

helpers! {
    // Only bytes whose mask has its top bit set are written; a byte at a time.
    Maskmov => |cpu, op| {
        cpu.vector_ready(op)?;
        let offset = cpu.get(RDI) & Cpu::address_mask(op.addr);
        let seg = if op.seg == 7 { DS } else { op.seg };
        let (value, mask) = (cpu.xmm(op.src), cpu.xmm(op.aux));
        let linear = cpu.implied_linear(seg, offset, 16, true)?;
        if mask & 0x8080_8080_8080_8080_8080_8080_8080_8080 != 0 {
            cpu.probe_write(linear, 16, cpu.data_kind)?;
        }
        for n in 0..16 {
            if lane::<8>(mask, n) & 0x80 != 0 {
                let at = linear.wrapping_add(u64::from(n));
                cpu.store_linear::<W8>(at, lane::<8>(value, n))?;
            }
        }
        Ok(())
    },
}

fn whole<D: Domain>(i: &Instruction, s: &Shape, aligned: bool) -> Option<Lowered<D>> {
    go(match (s.first, aligned, super::is_wide(i)) {
        (Kind::Mem, true, false) => helper::<D, Whole<true, true, false>>,
        (Kind::Mem, false, false) => helper::<D, Whole<true, false, false>>,
        (_, true, false) => helper::<D, Whole<false, true, false>>,
        (_, false, false) => helper::<D, Whole<false, false, false>>,
        (Kind::Mem, true, true) => helper::<D, Whole<true, true, true>>,
        (Kind::Mem, false, true) => helper::<D, Whole<true, false, true>>,
        (_, true, true) => helper::<D, Whole<false, true, true>>,
        (_, false, true) => helper::<D, Whole<false, false, true>>,
    })
}

fn sign_mask<D: Domain, const BITS: u32>(i: &Instruction) -> Option<Lowered<D>> {
    go(if super::is_wide(i) {
        helper::<D, SignMask<BITS, true>>
    } else {
        helper::<D, SignMask<BITS, false>>
    })
}

fn lower_movd<D: Domain>(i: &Instruction, m: Mnemonic, s: &Shape) -> Option<Lowered<D>> {
    let first_xmm = s.first == Kind::Reg && i.op0_register().is_xmm();
    let second_xmm = s.second == Kind::Reg && i.op1_register().is_xmm();
    let wide = m == Mnemonic::Movq;
    let from_general = s.second == Kind::Reg && i.op1_register().is_gpr();
    let to_general = s.first == Kind::Reg && i.op0_register().is_gpr();
    go(match (first_xmm, second_xmm, wide) {
        (true, true, _) => helper::<D, Low<8, false, false>>,
        (true, _, true) if from_general => helper::<D, FromGeneral<W64>>,
        (true, _, true) => helper::<D, Low<8, false, false>>,
        (true, _, false) => helper::<D, FromGeneral<W32>>,
        (_, true, true) if to_general => helper::<D, ToGeneral<W64>>,
        (_, true, true) => helper::<D, Low<8, true, false>>,
        (_, true, false) => helper::<D, ToGeneral<W32>>,
        _ => return None,
    })
}

fn half<D: Domain, const HIGH: bool>(s: &Shape) -> Option<Lowered<D>> {
    go(match s.first {
        Kind::Mem => helper::<D, Half<HIGH, true>>,
        _ => helper::<D, Half<HIGH, false>>,
    })
}

pub(crate) fn lower<D: Domain>(i: &Instruction, m: Mnemonic, s: &Shape) -> Option<Lowered<D>> {
    match m {
        Mnemonic::Movaps
        | Mnemonic::Movapd
        | Mnemonic::Movdqa
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Movntdq
        | Mnemonic::Movntdqa => whole(i, s, true),
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu => {
            whole(i, s, false)
        }
        Mnemonic::Movd | Mnemonic::Movq => lower_movd(i, m, s),
        Mnemonic::Movss => go(match s.first {
            Kind::Mem => helper::<D, Low<4, true, true>>,
            _ => helper::<D, Low<4, false, true>>,
        }),
        Mnemonic::Movsd => go(match s.first {
            Kind::Mem => helper::<D, Low<8, true, true>>,
            _ => helper::<D, Low<8, false, true>>,
        }),
        Mnemonic::Movlps | Mnemonic::Movlpd => half::<D, false>(s),
        Mnemonic::Movhps | Mnemonic::Movhpd => half::<D, true>(s),
        Mnemonic::Movhlps => crate::sse::operation::<D, Movhlps>(i),
        Mnemonic::Movlhps => crate::sse::operation::<D, Movlhps>(i),
        Mnemonic::Movddup => crate::sse::operation::<D, Movddup>(i),
        Mnemonic::Movshdup => crate::sse::operation::<D, Movshdup>(i),
        Mnemonic::Movsldup => crate::sse::operation::<D, Movsldup>(i),
        Mnemonic::Movmskps => sign_mask::<D, 32>(i),
        Mnemonic::Movmskpd => sign_mask::<D, 64>(i),
        Mnemonic::Pmovmskb => sign_mask::<D, 8>(i),
        Mnemonic::Maskmovdqu => go(helper::<D, Maskmov>),
        Mnemonic::Pextrb => go(helper::<D, Extract<8>>),
        Mnemonic::Pextrw => go(helper::<D, Extract<16>>),
        Mnemonic::Pextrd | Mnemonic::Extractps => go(helper::<D, Extract<32>>),
        Mnemonic::Pextrq => go(helper::<D, Extract<64>>),
        Mnemonic::Pinsrb => go(helper::<D, Insert<8>>),
        Mnemonic::Pinsrw => go(helper::<D, Insert<16>>),
        Mnemonic::Pinsrd => go(helper::<D, Insert<32>>),
        Mnemonic::Pinsrq => go(helper::<D, Insert<64>>),
        _ => None,
    }
}
