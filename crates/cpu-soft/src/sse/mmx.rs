//! MMX: the low 64 bits of the x87's registers, by their own numbers, not from the top.
//!
//! Any MMX instruction leaves the x87 with its top at 0 and all registers in use, and a write
//! with ones in sign and exponent (Intel SDM 1, "Transitions Between x87 FPU and MMX Code"). The
//! operations are those of the XMM registers, see [`Packed`].

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use crate::cpu::{Cpu, DS, RDI, cr};
use crate::domain::{Domain, Flow, Helper, Op, Stop, W8, W32, W64, Width, helper, helpers};
use crate::lower::{Lowered, bits_of, go, prefix};
use crate::sse::{Env, Packed, convert, integer, lane, packed};

impl Cpu {
    fn mmx_ready(&mut self) -> Flow {
        if self.system.cr0 & cr::CR0_EM != 0 {
            return Err(self.ud());
        }
        self.x87_ready()?;
        self.x87_waits()
    }

    fn mm(&self, number: u8) -> u64 {
        let index = usize::from(number.wrapping_sub(self.top() as u8) & 7);
        self.fpu.st.get(index).map_or(0, |value| *value as u64)
    }

    /// The x87 after an MMX instruction.
    fn enter_mmx(&mut self) {
        self.top_to_zero();
        self.fpu.tags = 0xff;
    }

    fn set_mm(&mut self, number: u8, value: u64) {
        self.enter_mmx();
        if let Some(slot) = self.fpu.st.get_mut(usize::from(number & 7)) {
            *slot = u128::from(value) | (0xffff << 64);
        }
    }

    /// The second operand: a register, or `bytes` of memory.
    fn mm_source(&mut self, op: &Op, bytes: u64) -> Result<u64, Stop> {
        if op.prefix & prefix::MEMORY != 0 {
            Ok(self.load_vector(op, bytes, false)? as u64)
        } else {
            Ok(self.mm(op.src))
        }
    }
}

/// An operation on MMX registers.
struct Mmx<F, const BYTES: u64>(std::marker::PhantomData<F>);
impl<F: Packed, const BYTES: u64> Helper for Mmx<F, BYTES> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.run_mmx(op, F::f, BYTES)
    }
}

impl Cpu {
    #[inline(never)]
    fn run_mmx(&mut self, op: &Op, f: fn(&mut Env, u128, u128, u8) -> u128, bytes: u64) -> Flow {
        self.mmx_ready()?;
        let b = self.mm_source(op, bytes)?;
        let a = self.mm(op.dst);
        let mut env = Env::default();
        let r = f(&mut env, u128::from(a), u128::from(b), op.imm as u8);
        self.set_mm(op.dst, r as u64);
        Ok(())
    }
}

/// An operation that makes one vector of two: of both operands as one.
struct Joined<F>(std::marker::PhantomData<F>);
impl<F: Packed> Packed for Joined<F> {
    fn f(env: &mut Env, a: u128, b: u128, imm: u8) -> u128 {
        F::f(env, a | (b << 64), 0, imm)
    }
}

/// The upper half of what the operation makes.
struct Upper<F>(std::marker::PhantomData<F>);
impl<F: Packed> Packed for Upper<F> {
    fn f(env: &mut Env, a: u128, b: u128, imm: u8) -> u128 {
        F::f(env, a, b, imm) >> 64
    }
}

packed! {
    Shuffle(a, b, _) => integer::Pshufb::f(&mut Env::default(), a, b & 0x8787_8787_8787_8787, 0);
    Align(a, b, imm) => {
        let both = (a << 64) | b;
        both.checked_shr(u32::from(imm) * 8).unwrap_or(0)
    };
}

/// A shift by an immediate.
struct ByImmediate<F>(std::marker::PhantomData<F>);
impl<F: Packed> Helper for ByImmediate<F> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.mmx_ready()?;
        let (a, count) = (u128::from(cpu.mm(op.dst)), u128::from(op.imm & 0xff));
        let r = F::f(&mut Env::default(), a, count, 0);
        cpu.set_mm(op.dst, r as u64);
        Ok(())
    }
}

/// MOVD and MOVQ from a general register or memory.
struct Load<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for Load<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.mmx_ready()?;
        let value = if op.prefix & prefix::MEMORY != 0 {
            cpu.load::<W>(op)?
        } else {
            cpu.reg::<W>(op.src)
        };
        cpu.set_mm(op.dst, value);
        Ok(())
    }
}

struct Store<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for Store<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.mmx_ready()?;
        let value = cpu.mm(op.src) & W::MASK;
        if op.prefix & prefix::MEMORY != 0 {
            cpu.store::<W>(op, value)?;
        } else {
            cpu.set_reg::<W>(op.dst, value);
        }
        cpu.enter_mmx();
        Ok(())
    }
}

/// CVTPI2PS and CVTPI2PD: into an XMM register. CVTPI2PD of memory leaves the x87 alone.
struct ToXmm<F>(std::marker::PhantomData<F>);
impl<F: Packed> Helper for ToXmm<F> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        let memory = op.prefix & prefix::MEMORY != 0;
        if !memory {
            cpu.mmx_ready()?;
        }
        let b = cpu.mm_source(op, 8)?;
        let mut env = cpu.float_env();
        let r = F::f(&mut env, cpu.xmm(op.dst), u128::from(b), 0);
        if !memory {
            cpu.enter_mmx();
        }
        cpu.float_done(&env)?;
        cpu.set_xmm(op.dst, r);
        Ok(())
    }
}

/// CVTPS2PI and the like: from an XMM register or memory.
struct FromXmm<F>(std::marker::PhantomData<F>);
impl<F: Packed> Helper for FromXmm<F> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        cpu.mmx_ready()?;
        let b = cpu.vector_source(op, F::BYTES, F::BYTES == 16)?;
        let mut env = cpu.float_env();
        let r = F::f(&mut env, 0, b, 0);
        cpu.enter_mmx();
        cpu.float_done(&env)?;
        cpu.set_mm(op.dst, r as u64);
        Ok(())
    }
}

helpers! {
    Move => |cpu, op| {
        cpu.mmx_ready()?;
        let value = cpu.mm_source(op, 8)?;
        cpu.set_mm(op.dst, value);
        Ok(())
    },
    Movq2dq => |cpu, op| {
        cpu.sse_ready()?;
        cpu.mmx_ready()?;
        let value = cpu.mm(op.src);
        cpu.enter_mmx();
        cpu.set_xmm(op.dst, u128::from(value));
        Ok(())
    },
    Movdq2q => |cpu, op| {
        cpu.sse_ready()?;
        cpu.mmx_ready()?;
        let value = cpu.xmm(op.src) as u64;
        cpu.set_mm(op.dst, value);
        Ok(())
    },
    SignMask => |cpu, op| {
        cpu.mmx_ready()?;
        let value = u128::from(cpu.mm(op.src));
        let bits = (0..8).fold(0, |bits, n| bits | ((lane::<8>(value, n) >> 7) << n));
        cpu.enter_mmx();
        cpu.put(op.dst, bits);
        Ok(())
    },
    Extract => |cpu, op| {
        cpu.mmx_ready()?;
        let value = lane::<16>(u128::from(cpu.mm(op.src)), op.imm as u32 & 3);
        cpu.enter_mmx();
        cpu.put(op.dst, value);
        Ok(())
    },
    Insert => |cpu, op| {
        cpu.mmx_ready()?;
        let value = if op.prefix & prefix::MEMORY != 0 {
            cpu.load_vector(op, 2, false)? as u64
        } else {
            cpu.get(op.src)
        };
        let at = (op.imm & 3) * 16;
        let old = cpu.mm(op.dst) & !(0xffff << at);
        cpu.set_mm(op.dst, old | ((value & 0xffff) << at));
        Ok(())
    },
    // Only bytes whose mask has its top bit set are written; a byte at a time.
    Maskmovq => |cpu, op| {
        cpu.mmx_ready()?;
        let offset = cpu.get(RDI) & Cpu::address_mask(op.addr);
        let seg = if op.seg == 7 { DS } else { op.seg };
        let (value, mask) = (cpu.mm(op.src), cpu.mm(op.aux));
        let linear = cpu.implied_linear(seg, offset, 8, true)?;
        if mask & 0x8080_8080_8080_8080 != 0 {
            cpu.probe_write(linear, 8, cpu.data_kind)?;
        }
        for n in (0..8).filter(|n| mask >> (n * 8) & 0x80 != 0) {
            cpu.store_linear::<W8>(linear.wrapping_add(n), (value >> (n * 8)) & 0xff)?;
        }
        cpu.enter_mmx();
        Ok(())
    },
}

pub(crate) fn uses_mmx(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
        || matches!(i.mnemonic(), M::Cvtpi2ps | M::Cvtpi2pd)
}

fn operation<D: Domain, F: Packed>(i: &Instruction) -> Option<Lowered<D>> {
    go(if i.memory_size().size() == 4 {
        helper::<D, Mmx<F, 4>>
    } else {
        helper::<D, Mmx<F, 8>>
    })
}

fn shift<D: Domain, F: Packed>(i: &Instruction) -> Option<Lowered<D>> {
    if i.op_kind(1) == OpKind::Immediate8 {
        return go(helper::<D, ByImmediate<F>>);
    }
    operation::<D, F>(i)
}

macro_rules! by_name {
    ($i:expr, $run:ident; $($name:ident)*) => {
        match $i.mnemonic() {
            $(M::$name => return $run::<D, integer::$name>($i),)*
            _ => {}
        }
    };
}

fn joined<D: Domain, F: Packed>(i: &Instruction) -> Option<Lowered<D>> {
    operation::<D, Joined<F>>(i)
}

fn lower_operation<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    by_name!(i, operation;
        Paddb Paddw Paddd Paddq Psubb Psubw Psubd Psubq Paddsb Paddsw Psubsb Psubsw
        Paddusb Paddusw Psubusb Psubusw Pmullw Pmulhw Pmulhuw Pmulhrsw Pmuludq
        Pmaddwd Pmaddubsw Psadbw Pavgb Pavgw Pminub Pmaxub Pminsw Pmaxsw Pand Pandn Por Pxor
        Pcmpeqb Pcmpeqw Pcmpeqd Pcmpgtb Pcmpgtw Pcmpgtd
        Psignb Psignw Psignd Pabsb Pabsw Pabsd Punpcklbw Punpcklwd Punpckldq);
    by_name!(i, joined;
        Packsswb Packssdw Packuswb Phaddw Phaddd Phaddsw Phsubw Phsubd Phsubsw);
    by_name!(i, shift; Psllw Pslld Psllq Psrlw Psrld Psrlq Psraw Psrad);
    match i.mnemonic() {
        M::Punpckhbw => operation::<D, Upper<integer::Punpcklbw>>(i),
        M::Punpckhwd => operation::<D, Upper<integer::Punpcklwd>>(i),
        M::Punpckhdq => operation::<D, Upper<integer::Punpckldq>>(i),
        M::Pshufw => operation::<D, integer::Pshuflw>(i),
        M::Pshufb => operation::<D, Shuffle>(i),
        M::Palignr => operation::<D, Align>(i),
        _ => None,
    }
}

fn lower_move<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let is_mm = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm();
    let gpr = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_gpr();
    go(match (i.mnemonic(), is_mm(0)) {
        (M::Movd, true) => helper::<D, Load<W32>>,
        (M::Movd, false) => helper::<D, Store<W32>>,
        (M::Movq, true) if gpr(1) => helper::<D, Load<W64>>,
        (M::Movq, true) => helper::<D, Move>,
        (M::Movq, false) if bits_of(i, 0) == 64 => helper::<D, Store<W64>>,
        _ => return None,
    })
}

pub(crate) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        M::Movd | M::Movq => return lower_move(i),
        M::Movntq => helper::<D, Store<W64>>,
        M::Maskmovq => helper::<D, Maskmovq>,
        M::Movq2dq => helper::<D, Movq2dq>,
        M::Movdq2q => helper::<D, Movdq2q>,
        M::Pmovmskb => helper::<D, SignMask>,
        M::Pextrw => helper::<D, Extract>,
        M::Pinsrw => helper::<D, Insert>,
        M::Cvtpi2ps => helper::<D, ToXmm<convert::Cvtpi2ps>>,
        M::Cvtpi2pd => helper::<D, ToXmm<convert::Cvtpi2pd>>,
        M::Cvtps2pi => helper::<D, FromXmm<convert::Cvtps2pi>>,
        M::Cvttps2pi => helper::<D, FromXmm<convert::Cvttps2pi>>,
        M::Cvtpd2pi => helper::<D, FromXmm<convert::Cvtpd2pi>>,
        M::Cvttpd2pi => helper::<D, FromXmm<convert::Cvttpd2pi>>,
        _ => return lower_operation(i),
    })
}
