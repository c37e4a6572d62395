//! MMX, SSE to SSE4.2, AES, SHA, AVX, AVX2, FMA and F16C.
//!
//! An operation is a [`Packed`]: a function of 128-bit values, pure but for what [`Env`] carries
//! of MXCSR. It is written once; [`operation`] makes the handler of the form at hand: on XMM
//! registers, with VEX prefix (of 128 bits, or of 256: once for each half), or on MMX registers
//! (`mmx.rs`). What crosses the halves of a YMM register is in `avx.rs`. Interpreter and
//! translated code both call it.

mod avx;
mod convert;
mod crypto;
pub(crate) mod float;
mod fma;
mod integer;
mod mmx;
mod moves;
mod names;
mod text;

use iced_x86::{EncodingKind, Instruction, OpKind};

use crate::cpu::{Cpu, cr, vector};
use crate::domain::{Domain, Flow, Helper, Op, Stop, W8, W16, W32, W64, helper};
use crate::ieee::Context;
use crate::lower::{Lowered, Shape, go, prefix};

impl Cpu {
    /// #UD without the operating system's support, #NM for another task's registers.
    pub(crate) fn sse_ready(&mut self) -> Flow {
        if self.system.cr0 & cr::CR0_EM != 0 || self.system.cr4 & cr::CR4_OSFXSR == 0 {
            return Err(self.ud());
        }
        if self.system.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }

    /// #UD unless the operating system has switched AVX on; never in real and virtual-8086 mode.
    pub(crate) fn avx_ready(&mut self) -> Flow {
        let on = self.system.cr4 & cr::CR4_OSXSAVE != 0 && self.system.xcr0 & 6 == 6;
        if !on || !self.protected() || self.v86() {
            return Err(self.ud());
        }
        if self.system.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }

    /// [`Cpu::sse_ready`] or [`Cpu::avx_ready`].
    pub(crate) fn vector_ready(&mut self, op: &Op) -> Flow {
        if op.prefix & prefix::VEX != 0 {
            self.avx_ready()
        } else {
            self.sse_ready()
        }
    }

    /// Writes an XMM register as the instruction does: with VEX prefix the upper half of the YMM
    /// register becomes zero, else it stays.
    pub(crate) fn put_xmm(&mut self, op: &Op, number: u8, value: u128) {
        if op.prefix & prefix::VEX != 0 {
            self.set_ymm(number, [value, 0]);
        } else {
            self.set_xmm(number, value);
        }
    }

    /// The register whose lanes stay: the first operand, with VEX prefix the second.
    pub(crate) fn kept_xmm(&self, op: &Op) -> u128 {
        if op.prefix & prefix::VEX != 0 {
            self.xmm(op.src)
        } else {
            self.xmm(op.dst)
        }
    }

    /// The number of the register behind the one whose lanes stay.
    pub(crate) fn last_register(op: &Op) -> u8 {
        if op.prefix & prefix::VEX != 0 {
            op.aux
        } else {
            op.src
        }
    }

    /// What an operation on floats starts with.
    pub(crate) fn float_env(&self) -> Env {
        let mxcsr = self.fpu.mxcsr;
        let unmasked = !(mxcsr >> 7) as u8 & 0x3f;
        Env {
            context: Context {
                rounding: (mxcsr >> 13) as u8 & 3,
                flush: mxcsr >> 15 & 1 != 0,
                unmasked,
                ..Context::default()
            },
            daz: mxcsr >> 6 & 1 != 0,
        }
    }

    /// Notes what was signalled. Unmasked: #XM, and nothing is written. Those that are known
    /// before the operation (invalid, denormal, division by zero) come before the others.
    pub(crate) fn float_done(&mut self, env: &Env) -> Flow {
        let flags = env.context.flags;
        if flags == 0 {
            return Ok(());
        }
        let unmasked = env.context.unmasked;
        let before = flags & 7;
        if before & unmasked != 0 {
            self.fpu.mxcsr |= u32::from(before);
        } else {
            self.fpu.mxcsr |= u32::from(flags);
            if flags & unmasked == 0 {
                return Ok(());
            }
        }
        if self.system.cr4 & cr::CR4_OSXMMEXCPT == 0 {
            return Err(self.ud());
        }
        Err(self.raise(vector::XM, None))
    }

    /// A YMM register, low half first.
    pub(crate) fn ymm(&self, number: u8) -> [u128; 2] {
        self.fpu
            .vector
            .get(usize::from(number & 15))
            .copied()
            .unwrap_or_default()
    }

    pub(crate) fn set_ymm(&mut self, number: u8, value: [u128; 2]) {
        if let Some(slot) = self.fpu.vector.get_mut(usize::from(number & 15)) {
            *slot = value;
        }
    }

    /// A register or a memory operand of up to 32 bytes.
    #[inline(never)]
    fn wide_source(&mut self, op: &Op, register: u8, bytes: u64) -> Result<[u128; 2], Stop> {
        if op.prefix & prefix::MEMORY == 0 {
            return Ok(self.ymm(register));
        }
        if bytes < 32 {
            return Ok([self.load_vector(op, bytes, false)?, 0]);
        }
        let linear = self.linear_of(op, 0, 32, false)?;
        self.load_32(linear)
    }

    /// 32 bytes at a linear address.
    fn load_32(&mut self, linear: u64) -> Result<[u128; 2], Stop> {
        Ok([
            self.load_16(linear)?,
            self.load_16(linear.wrapping_add(16))?,
        ])
    }

    #[inline(never)]
    fn store_wide(&mut self, op: &Op, value: [u128; 2], aligned: bool) -> Flow {
        let linear = self.linear_of(op, 0, 32, true)?;
        if aligned && linear & 31 != 0 {
            return Err(self.gp(0));
        }
        self.probe_write(linear, 32, self.data_kind)?;
        let [low, high] = value;
        self.store_16(linear, low)?;
        self.store_16(linear.wrapping_add(16), high)
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
    #[inline(never)]
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

    /// The second operand: a register, or `bytes` of memory; with VEX prefix of any alignment.
    fn vector_source(&mut self, op: &Op, bytes: u64, aligned: bool) -> Result<u128, Stop> {
        if op.prefix & prefix::MEMORY != 0 {
            let aligned = aligned && op.prefix & prefix::VEX == 0;
            self.load_vector(op, bytes, aligned)
        } else {
            Ok(self.xmm(op.src))
        }
    }

    #[inline(never)]
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

/// What floats need of MXCSR, and what they signal.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Env {
    pub context: Context,
    /// Denormal operands count as zero.
    pub daz: bool,
}

/// `first = f(first, second, immediate)`.
pub(crate) trait Packed {
    /// Bytes of a memory operand; only 16 must be aligned, and are 32 for YMM registers.
    const BYTES: u64 = 16;
    /// It looks at `env`.
    const FLOAT: bool = false;
    /// The immediate's bits that count without VEX.
    const IMMEDIATE: u8 = 0xff;
    /// How many bits of the immediate the lower half of a YMM register uses up.
    const UPPER: u32 = 0;
    /// Bytes of a memory operand of the form on YMM registers.
    const WIDE_BYTES: u64 = if Self::BYTES == 16 { 32 } else { Self::BYTES };
    /// Both halves of a YMM register have the same second operand, an XMM register.
    const SHARED: bool = false;
    /// Each half of a YMM register is made of `BYTES` of an XMM register.
    const WIDENS: bool = false;
    /// Each half of a YMM register becomes half of an XMM register.
    const NARROWS: bool = false;
    fn f(env: &mut Env, a: u128, b: u128, imm: u8) -> u128;
}

/// A [`Packed`] as a value, so that what surrounds the operations exists once.
#[derive(Clone, Copy)]
struct Operation {
    f: fn(&mut Env, u128, u128, u8) -> u128,
    bytes: u64,
    wide_bytes: u64,
    float: bool,
    immediate: u8,
    upper: u32,
    shared: bool,
    widens: bool,
    narrows: bool,
}

impl Operation {
    const fn of<F: Packed>() -> Self {
        Self {
            f: F::f,
            bytes: F::BYTES,
            wide_bytes: F::WIDE_BYTES,
            float: F::FLOAT,
            immediate: F::IMMEDIATE,
            upper: F::UPPER,
            shared: F::SHARED,
            widens: F::WIDENS,
            narrows: F::NARROWS,
        }
    }
}

impl Cpu {
    #[inline(never)]
    fn run_sse(&mut self, op: &Op, operation: &Operation) -> Flow {
        self.sse_ready()?;
        let b = self.vector_source(op, operation.bytes, operation.bytes == 16)?;
        let a = self.xmm(op.dst);
        let imm = op.imm as u8 & operation.immediate;
        let r = if operation.float {
            let mut env = self.float_env();
            let r = (operation.f)(&mut env, a, b, imm);
            self.float_done(&env)?;
            r
        } else {
            (operation.f)(&mut Env::default(), a, b, imm)
        };
        self.set_xmm(op.dst, r);
        Ok(())
    }

    /// With VEX prefix. `wide`: YMM registers. `three`: the first operand is only written.
    #[inline(never)]
    fn run_vex(&mut self, op: &Op, operation: &Operation, wide: bool, three: bool) -> Flow {
        self.avx_ready()?;
        let bytes = if wide {
            operation.wide_bytes
        } else {
            operation.bytes
        };
        let register = if three { op.aux } else { op.src };
        let [b0, mut b1] = self.wide_source(op, register, bytes)?;
        if operation.shared {
            b1 = b0;
        }
        if operation.widens {
            b1 = b0 >> (operation.bytes * 8);
        }
        let [a0, a1] = if three { self.ymm(op.src) } else { [0; 2] };
        let mut env = self.float_env();
        let imm = op.imm as u8;
        let mut r = [(operation.f)(&mut env, a0, b0, imm), 0];
        if wide {
            let high = (operation.f)(&mut env, a1, b1, imm >> operation.upper);
            let [low, _] = r;
            r = if operation.narrows {
                [low | (high << 64), 0]
            } else {
                [low, high]
            };
        }
        if operation.float {
            self.float_done(&env)?;
        }
        self.set_ymm(op.dst, r);
        Ok(())
    }
}

struct Run<F>(std::marker::PhantomData<F>);
impl<F: Packed> Helper for Run<F> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.run_sse(op, const { &Operation::of::<F>() })
    }
}

struct Vex<F, const WIDE: bool, const THREE: bool>(std::marker::PhantomData<F>);
impl<F: Packed, const WIDE: bool, const THREE: bool> Helper for Vex<F, WIDE, THREE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.run_vex(op, const { &Operation::of::<F>() }, WIDE, THREE)
    }
}

/// The handler of an operation, for the form of the instruction.
fn operation<D: Domain, F: Packed>(i: &Instruction) -> Option<Lowered<D>> {
    if !is_vex(i) {
        return go(helper::<D, Run<F>>);
    }
    go(match (is_wide(i), has_three(i)) {
        (false, false) => helper::<D, Vex<F, false, false>>,
        (false, true) => helper::<D, Vex<F, false, true>>,
        (true, false) => helper::<D, Vex<F, true, false>>,
        (true, true) => helper::<D, Vex<F, true, true>>,
    })
}

pub(crate) fn is_vex(i: &Instruction) -> bool {
    i.encoding() == EncodingKind::VEX
}

/// Whether a YMM register or 32 bytes of memory come into it.
fn is_wide(i: &Instruction) -> bool {
    i.memory_size().size() == 32
        || (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_ymm())
}

/// Whether three operands are vectors: the second then is a register that the first is not.
fn has_three(i: &Instruction) -> bool {
    i.op_count() >= 3 && matches!(i.op_kind(2), OpKind::Register | OpKind::Memory)
}

/// Defines operations: `Name(a, b, imm) => expression`, optionally with the bytes of memory and
/// other constants of [`Packed`].
macro_rules! packed {
    ($($name:ident $([$bytes:literal])? $({$($key:ident: $type:ty = $value:expr),*})?
        ($a:pat, $b:pat, $imm:pat) => $body:expr;)*) => {$(
        pub(super) struct $name;
        impl $crate::sse::Packed for $name {
            $(const BYTES: u64 = $bytes;)?
            $($(const $key: $type = $value;)*)?
            #[inline(always)]
            fn f(_: &mut $crate::sse::Env, $a: u128, $b: u128, $imm: u8) -> u128 {
                $body
            }
        }
    )*};
}
use packed;

/// Applies `f` to each pair of lanes of `BITS`; its result is cut to the lane.
#[inline(always)]
fn zip<const BITS: u32>(a: u128, b: u128, mut f: impl FnMut(u64, u64) -> u64) -> u128 {
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
fn map<const BITS: u32>(a: u128, mut f: impl FnMut(u64) -> u64) -> u128 {
    zip::<BITS>(a, 0, |x, _| f(x))
}

/// Lane `index`.
#[inline(always)]
fn lane<const BITS: u32>(a: u128, index: u32) -> u64 {
    (a >> (index * BITS % 128)) as u64 & (u64::MAX >> (64 - BITS))
}

/// A vector of lanes made by `f` of their numbers.
#[inline(always)]
fn build<const BITS: u32>(mut f: impl FnMut(u32) -> u64) -> u128 {
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

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    match i.encoding() {
        EncodingKind::Legacy | EncodingKind::VEX => {}
        _ => return None,
    }
    if mmx::uses_mmx(i) {
        return mmx::lower(i);
    }
    if is_vex(i)
        && let Some(lowered) = avx::lower(i, s).or_else(|| fma::lower(i))
    {
        return Some(lowered);
    }
    // With VEX prefix or without, an operation is the same.
    let m = if is_vex(i) {
        names::without_vex(i.mnemonic())?
    } else {
        i.mnemonic()
    };
    moves::lower(i, m, s)
        .or_else(|| integer::lower(i, m))
        .or_else(|| float::lower(i, m))
        .or_else(|| convert::lower(i, m, s))
        .or_else(|| text::lower(i, m))
        .or_else(|| crypto::lower(i, m))
}
