//! SSE to SSE4.2, on XMM registers. MMX forms are not built.
//!
//! An operation is a [`Packed`]: a pure function of 128-bit values. Interpreter and translated
//! code both call it.

mod convert;
mod float;
mod integer;
mod moves;
mod text;

use iced_x86::{EncodingKind, Instruction, OpKind};

use crate::cpu::{Cpu, cr, vector};
use crate::domain::{Domain, Flow, Helper, Op, Stop, W8, W16, W32, W64, helper};
use crate::lower::{Lowered, Shape, go, prefix};

impl Cpu {
    /// #UD without the operating system's support, #NM for another task's registers.
    pub(crate) fn sse_ready(&mut self) -> Flow {
        if self.cr0 & cr::CR0_EM != 0 || self.cr4 & cr::CR4_OSFXSR == 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }

    /// An XMM register.
    pub(crate) fn xmm(&self, number: u8) -> u128 {
        self.fpu
            .vector
            .get(usize::from(number & 15))
            .map_or(0, |[low, _]| *low)
    }

    /// Writes an XMM register; the upper half of its YMM register stays.
    pub(crate) fn set_xmm(&mut self, number: u8, value: u128) {
        if let Some([low, _]) = self.fpu.vector.get_mut(usize::from(number & 15)) {
            *low = value;
        }
    }

    /// A memory operand of 1 to 16 bytes, zero-extended.
    fn load_vector(&mut self, op: &Op, bytes: u64, aligned: bool) -> Result<u128, Stop> {
        let linear = self.linear_of(op, 0, bytes, false)?;
        if aligned && linear & (bytes - 1) != 0 {
            return Err(self.gp(0));
        }
        Ok(match bytes {
            1 => u128::from(self.load_linear::<W8>(linear)?),
            2 => u128::from(self.load_linear::<W16>(linear)?),
            4 => u128::from(self.load_linear::<W32>(linear)?),
            8 => u128::from(self.load_linear::<W64>(linear)?),
            _ => self.load_16(linear)?,
        })
    }

    /// The second operand: a register, or `bytes` of memory.
    fn vector_source(&mut self, op: &Op, bytes: u64, aligned: bool) -> Result<u128, Stop> {
        if op.prefix & prefix::MEMORY != 0 {
            self.load_vector(op, bytes, aligned)
        } else {
            Ok(self.xmm(op.src))
        }
    }

    fn store_vector(&mut self, op: &Op, value: u128, bytes: u64, aligned: bool) -> Flow {
        let linear = self.linear_of(op, 0, bytes, true)?;
        if aligned && linear & (bytes - 1) != 0 {
            return Err(self.gp(0));
        }
        match bytes {
            1 => self.store_linear::<W8>(linear, value as u64 & 0xff),
            2 => self.store_linear::<W16>(linear, value as u64 & 0xffff),
            4 => self.store_linear::<W32>(linear, value as u64 & 0xffff_ffff),
            8 => self.store_linear::<W64>(linear, value as u64),
            _ => self.store_16(linear, value),
        }
    }
}

/// `first = f(first, second, immediate)`.
pub(crate) trait Packed {
    /// Bytes of a memory operand; only 16 must be aligned.
    const BYTES: u64 = 16;
    fn f(a: u128, b: u128, imm: u8) -> u128;
}

struct Run<F>(std::marker::PhantomData<F>);
impl<F: Packed> Helper for Run<F> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        let b = cpu.vector_source(op, F::BYTES, F::BYTES == 16)?;
        let a = cpu.xmm(op.dst);
        cpu.set_xmm(op.dst, F::f(a, b, op.imm as u8));
        Ok(())
    }
}

/// The handler of an operation.
fn operation<D: Domain, F: Packed>() -> Option<Lowered<D>> {
    go(helper::<D, Run<F>>)
}

/// Defines operations: `Name(a, b, imm) => expression`, optionally with the bytes of memory.
macro_rules! packed {
    ($($name:ident $([$bytes:literal])? ($a:pat, $b:pat, $imm:pat) => $body:expr;)*) => {$(
        struct $name;
        impl $crate::sse::Packed for $name {
            $(const BYTES: u64 = $bytes;)?
            #[inline(always)]
            fn f($a: u128, $b: u128, $imm: u8) -> u128 {
                $body
            }
        }
    )*};
}
use packed;

/// Applies `f` to each pair of lanes of `BITS`; its result is cut to the lane.
#[inline(always)]
fn zip<const BITS: u32>(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    let mask = u64::MAX >> (64 - BITS);
    let mut r = 0;
    let mut at = 0;
    while at < 128 {
        let (x, y) = ((a >> at) as u64 & mask, (b >> at) as u64 & mask);
        r |= u128::from(f(x, y) & mask) << at;
        at += BITS;
    }
    r
}

/// Applies `f` to each lane.
#[inline(always)]
fn map<const BITS: u32>(a: u128, f: impl Fn(u64) -> u64) -> u128 {
    zip::<BITS>(a, 0, |x, _| f(x))
}

/// Lane `index`.
#[inline(always)]
fn lane<const BITS: u32>(a: u128, index: u32) -> u64 {
    (a >> (index * BITS % 128)) as u64 & (u64::MAX >> (64 - BITS))
}

/// A vector of lanes made by `f` of their numbers.
#[inline(always)]
fn build<const BITS: u32>(f: impl Fn(u32) -> u64) -> u128 {
    let mask = u64::MAX >> (64 - BITS);
    (0..128 / BITS).fold(0, |r, index| {
        r | (u128::from(f(index) & mask) << (index * BITS))
    })
}

/// A lane as a signed number.
#[inline(always)]
fn signed<const BITS: u32>(x: u64) -> i64 {
    ((x << (64 - BITS)) as i64) >> (64 - BITS)
}

/// Signed saturation to `BITS`.
#[inline(always)]
fn saturate<const BITS: u32>(x: i64) -> u64 {
    let top = (1_i64 << (BITS - 1)) - 1;
    x.clamp(-top - 1, top) as u64
}

/// Unsigned saturation to `BITS` of a signed number.
#[inline(always)]
fn saturate_unsigned<const BITS: u32>(x: i64) -> u64 {
    x.clamp(0, (1_i64 << BITS) - 1) as u64
}

/// All ones or zero.
#[inline(always)]
fn truth(x: bool) -> u64 {
    if x { u64::MAX } else { 0 }
}

/// Whether an operand is an MMX register: those forms are not built.
fn uses_mmx(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    if i.encoding() != EncodingKind::Legacy || uses_mmx(i) {
        return None;
    }
    moves::lower(i, s)
        .or_else(|| integer::lower(i))
        .or_else(|| float::lower(i))
        .or_else(|| convert::lower(i, s))
        .or_else(|| text::lower(i))
}
