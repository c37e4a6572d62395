//! Packed integers.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use crate::cpu::Cpu;
use crate::domain::{Domain, Flags, Flow, Helper, Op, helper};
use crate::lower::{Lowered, go, prefix};
use crate::sse::{build, lane, map, packed, saturate, saturate_unsigned, signed, truth, zip};

packed! {
    Paddb(a, b, _) => zip::<8>(a, b, u64::wrapping_add);
    Paddw(a, b, _) => zip::<16>(a, b, u64::wrapping_add);
    Paddd(a, b, _) => zip::<32>(a, b, u64::wrapping_add);
    Paddq(a, b, _) => zip::<64>(a, b, u64::wrapping_add);
    Psubb(a, b, _) => zip::<8>(a, b, u64::wrapping_sub);
    Psubw(a, b, _) => zip::<16>(a, b, u64::wrapping_sub);
    Psubd(a, b, _) => zip::<32>(a, b, u64::wrapping_sub);
    Psubq(a, b, _) => zip::<64>(a, b, u64::wrapping_sub);
    Paddsb(a, b, _) => zip::<8>(a, b, |x, y| saturate::<8>(signed::<8>(x) + signed::<8>(y)));
    Paddsw(a, b, _) => zip::<16>(a, b, |x, y| saturate::<16>(signed::<16>(x) + signed::<16>(y)));
    Psubsb(a, b, _) => zip::<8>(a, b, |x, y| saturate::<8>(signed::<8>(x) - signed::<8>(y)));
    Psubsw(a, b, _) => zip::<16>(a, b, |x, y| saturate::<16>(signed::<16>(x) - signed::<16>(y)));
    Paddusb(a, b, _) => zip::<8>(a, b, |x, y| (x + y).min(0xff));
    Paddusw(a, b, _) => zip::<16>(a, b, |x, y| (x + y).min(0xffff));
    Psubusb(a, b, _) => zip::<8>(a, b, u64::saturating_sub);
    Psubusw(a, b, _) => zip::<16>(a, b, u64::saturating_sub);
    Pmullw(a, b, _) => zip::<16>(a, b, u64::wrapping_mul);
    Pmulld(a, b, _) => zip::<32>(a, b, u64::wrapping_mul);
    Pmulhw(a, b, _) => zip::<16>(a, b, |x, y| ((signed::<16>(x) * signed::<16>(y)) >> 16) as u64);
    Pmulhuw(a, b, _) => zip::<16>(a, b, |x, y| (x * y) >> 16);
    Pmulhrsw(a, b, _) => zip::<16>(a, b, |x, y| {
        ((((signed::<16>(x) * signed::<16>(y)) >> 14) + 1) >> 1) as u64
    });
    Pmuludq(a, b, _) => zip::<64>(a, b, |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff));
    Pmuldq(a, b, _) => zip::<64>(a, b, |x, y| (signed::<32>(x) * signed::<32>(y)) as u64);
    Pmaddwd(a, b, _) => zip::<32>(a, b, |x, y| {
        let low = signed::<16>(x) * signed::<16>(y);
        (low + signed::<16>(x >> 16) * signed::<16>(y >> 16)) as u64
    });
    Pmaddubsw(a, b, _) => zip::<16>(a, b, |x, y| {
        let low = (x & 0xff) as i64 * signed::<8>(y);
        saturate::<16>(low + (x >> 8) as i64 * signed::<8>(y >> 8))
    });
    Psadbw(a, b, _) => zip::<64>(a, b, |x, y| {
        (0..8).map(|n| ((x >> (n * 8)) & 0xff).abs_diff((y >> (n * 8)) & 0xff)).sum()
    });
    Pavgb(a, b, _) => zip::<8>(a, b, |x, y| (x + y + 1) >> 1);
    Pavgw(a, b, _) => zip::<16>(a, b, |x, y| (x + y + 1) >> 1);
    Pminub(a, b, _) => zip::<8>(a, b, u64::min);
    Pminuw(a, b, _) => zip::<16>(a, b, u64::min);
    Pminud(a, b, _) => zip::<32>(a, b, u64::min);
    Pmaxub(a, b, _) => zip::<8>(a, b, u64::max);
    Pmaxuw(a, b, _) => zip::<16>(a, b, u64::max);
    Pmaxud(a, b, _) => zip::<32>(a, b, u64::max);
    Pminsb(a, b, _) => zip::<8>(a, b, |x, y| if signed::<8>(x) < signed::<8>(y) { x } else { y });
    Pminsw(a, b, _) => zip::<16>(a, b, |x, y| if signed::<16>(x) < signed::<16>(y) { x } else { y });
    Pminsd(a, b, _) => zip::<32>(a, b, |x, y| if signed::<32>(x) < signed::<32>(y) { x } else { y });
    Pmaxsb(a, b, _) => zip::<8>(a, b, |x, y| if signed::<8>(x) > signed::<8>(y) { x } else { y });
    Pmaxsw(a, b, _) => zip::<16>(a, b, |x, y| if signed::<16>(x) > signed::<16>(y) { x } else { y });
    Pmaxsd(a, b, _) => zip::<32>(a, b, |x, y| if signed::<32>(x) > signed::<32>(y) { x } else { y });
    Pand(a, b, _) => a & b;
    Pandn(a, b, _) => !a & b;
    Por(a, b, _) => a | b;
    Pxor(a, b, _) => a ^ b;
    Pcmpeqb(a, b, _) => zip::<8>(a, b, |x, y| truth(x == y));
    Pcmpeqw(a, b, _) => zip::<16>(a, b, |x, y| truth(x == y));
    Pcmpeqd(a, b, _) => zip::<32>(a, b, |x, y| truth(x == y));
    Pcmpeqq(a, b, _) => zip::<64>(a, b, |x, y| truth(x == y));
    Pcmpgtb(a, b, _) => zip::<8>(a, b, |x, y| truth(signed::<8>(x) > signed::<8>(y)));
    Pcmpgtw(a, b, _) => zip::<16>(a, b, |x, y| truth(signed::<16>(x) > signed::<16>(y)));
    Pcmpgtd(a, b, _) => zip::<32>(a, b, |x, y| truth(signed::<32>(x) > signed::<32>(y)));
    Pcmpgtq(a, b, _) => zip::<64>(a, b, |x, y| truth(signed::<64>(x) > signed::<64>(y)));
    Packsswb(a, b, _) => build::<8>(|n| saturate::<8>(signed::<16>(of_both::<16>(a, b, n))));
    Packssdw(a, b, _) => build::<16>(|n| saturate::<16>(signed::<32>(of_both::<32>(a, b, n))));
    Packuswb(a, b, _) => build::<8>(|n| saturate_unsigned::<8>(signed::<16>(of_both::<16>(a, b, n))));
    Packusdw(a, b, _) => build::<16>(|n| saturate_unsigned::<16>(signed::<32>(of_both::<32>(a, b, n))));
    Punpcklbw(a, b, _) => interleave::<8>(a, b, 0);
    Punpcklwd(a, b, _) => interleave::<16>(a, b, 0);
    Punpckldq(a, b, _) => interleave::<32>(a, b, 0);
    Punpcklqdq(a, b, _) => interleave::<64>(a, b, 0);
    Punpckhbw(a, b, _) => interleave::<8>(a, b, 8);
    Punpckhwd(a, b, _) => interleave::<16>(a, b, 4);
    Punpckhdq(a, b, _) => interleave::<32>(a, b, 2);
    Punpckhqdq(a, b, _) => interleave::<64>(a, b, 1);
    Pshufd(_, b, imm) => build::<32>(|n| lane::<32>(b, u32::from(imm >> (n * 2)) & 3));
    Pshuflw(_, b, imm) => build::<16>(|n| {
        lane::<16>(b, if n < 4 { u32::from(imm >> (n * 2)) & 3 } else { n })
    });
    Pshufhw(_, b, imm) => build::<16>(|n| {
        lane::<16>(b, if n < 4 { n } else { 4 + (u32::from(imm >> ((n - 4) * 2)) & 3) })
    });
    Shufps(a, b, imm) => build::<32>(|n| {
        lane::<32>(if n < 2 { a } else { b }, u32::from(imm >> (n * 2)) & 3)
    });
    Shufpd{UPPER: u32 = 2}(a, b, imm) => build::<64>(|n| lane::<64>(if n == 0 { a } else { b }, u32::from(imm >> n) & 1));
    Pshufb(a, b, _) => map::<8>(b, |c| if c & 0x80 != 0 { 0 } else { lane::<8>(a, c as u32 & 15) });
    Palignr(a, b, imm) => match u32::from(imm) * 8 {
        0 => b,
        n if n < 128 => (a << (128 - n)) | (b >> n),
        n if n < 256 => a >> (n - 128),
        _ => 0,
    };
    Phaddw(a, b, _) => build::<16>(|n| of_both::<16>(a, b, n * 2).wrapping_add(of_both::<16>(a, b, n * 2 + 1)));
    Phaddd(a, b, _) => build::<32>(|n| of_both::<32>(a, b, n * 2).wrapping_add(of_both::<32>(a, b, n * 2 + 1)));
    Phaddsw(a, b, _) => build::<16>(|n| {
        saturate::<16>(signed::<16>(of_both::<16>(a, b, n * 2)) + signed::<16>(of_both::<16>(a, b, n * 2 + 1)))
    });
    Phsubw(a, b, _) => build::<16>(|n| of_both::<16>(a, b, n * 2).wrapping_sub(of_both::<16>(a, b, n * 2 + 1)));
    Phsubd(a, b, _) => build::<32>(|n| of_both::<32>(a, b, n * 2).wrapping_sub(of_both::<32>(a, b, n * 2 + 1)));
    Phsubsw(a, b, _) => build::<16>(|n| {
        saturate::<16>(signed::<16>(of_both::<16>(a, b, n * 2)) - signed::<16>(of_both::<16>(a, b, n * 2 + 1)))
    });
    Psignb(a, b, _) => zip::<8>(a, b, |x, y| x.wrapping_mul(signed::<8>(y).signum() as u64));
    Psignw(a, b, _) => zip::<16>(a, b, |x, y| x.wrapping_mul(signed::<16>(y).signum() as u64));
    Psignd(a, b, _) => zip::<32>(a, b, |x, y| x.wrapping_mul(signed::<32>(y).signum() as u64));
    Pabsb(_, b, _) => map::<8>(b, |x| signed::<8>(x).unsigned_abs());
    Pabsw(_, b, _) => map::<16>(b, |x| signed::<16>(x).unsigned_abs());
    Pabsd(_, b, _) => map::<32>(b, |x| signed::<32>(x).unsigned_abs());
    Pblendw(a, b, imm) => build::<16>(|n| lane::<16>(if imm >> n & 1 != 0 { b } else { a }, n));
    Blendps{UPPER: u32 = 4}(a, b, imm) => build::<32>(|n| lane::<32>(if imm >> n & 1 != 0 { b } else { a }, n));
    Blendpd{UPPER: u32 = 2}(a, b, imm) => build::<64>(|n| lane::<64>(if imm >> n & 1 != 0 { b } else { a }, n));
    Phminposuw(_, b, _) => {
        let (value, index) = (0..8).map(|n| (lane::<16>(b, n), n)).min().unwrap_or((0, 0));
        u128::from(value) | (u128::from(index) << 16)
    };
    Mpsadbw{UPPER: u32 = 3}(a, b, imm) => {
        let (from, with) = (u32::from(imm >> 2 & 1) * 4, u32::from(imm & 3) * 4);
        build::<16>(|n| (0..4).map(|k| lane::<8>(a, from + n + k).abs_diff(lane::<8>(b, with + k))).sum())
    };
    Pmovsxbw[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(_, b, _) => build::<16>(|n| signed::<8>(lane::<8>(b, n)) as u64);
    Pmovsxbd[4]{WIDE_BYTES: u64 = 8, WIDENS: bool = true}(_, b, _) => build::<32>(|n| signed::<8>(lane::<8>(b, n)) as u64);
    Pmovsxbq[2]{WIDE_BYTES: u64 = 4, WIDENS: bool = true}(_, b, _) => build::<64>(|n| signed::<8>(lane::<8>(b, n)) as u64);
    Pmovsxwd[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(_, b, _) => build::<32>(|n| signed::<16>(lane::<16>(b, n)) as u64);
    Pmovsxwq[4]{WIDE_BYTES: u64 = 8, WIDENS: bool = true}(_, b, _) => build::<64>(|n| signed::<16>(lane::<16>(b, n)) as u64);
    Pmovsxdq[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(_, b, _) => build::<64>(|n| signed::<32>(lane::<32>(b, n)) as u64);
    Pmovzxbw[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(_, b, _) => build::<16>(|n| lane::<8>(b, n));
    Pmovzxbd[4]{WIDE_BYTES: u64 = 8, WIDENS: bool = true}(_, b, _) => build::<32>(|n| lane::<8>(b, n));
    Pmovzxbq[2]{WIDE_BYTES: u64 = 4, WIDENS: bool = true}(_, b, _) => build::<64>(|n| lane::<8>(b, n));
    Pmovzxwd[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(_, b, _) => build::<32>(|n| lane::<16>(b, n));
    Pmovzxwq[4]{WIDE_BYTES: u64 = 8, WIDENS: bool = true}(_, b, _) => build::<64>(|n| lane::<16>(b, n));
    Pmovzxdq[8]{WIDE_BYTES: u64 = 16, WIDENS: bool = true}(_, b, _) => build::<64>(|n| lane::<32>(b, n));
    Psllw{WIDE_BYTES: u64 = 16, SHARED: bool = true}(a, b, _) => zip::<16>(a, 0, |x, _| left(x, b as u64, 16));
    Pslld{WIDE_BYTES: u64 = 16, SHARED: bool = true}(a, b, _) => zip::<32>(a, 0, |x, _| left(x, b as u64, 32));
    Psllq{WIDE_BYTES: u64 = 16, SHARED: bool = true}(a, b, _) => zip::<64>(a, 0, |x, _| left(x, b as u64, 64));
    Psrlw{WIDE_BYTES: u64 = 16, SHARED: bool = true}(a, b, _) => zip::<16>(a, 0, |x, _| right(x, b as u64, 16));
    Psrld{WIDE_BYTES: u64 = 16, SHARED: bool = true}(a, b, _) => zip::<32>(a, 0, |x, _| right(x, b as u64, 32));
    Psrlq{WIDE_BYTES: u64 = 16, SHARED: bool = true}(a, b, _) => zip::<64>(a, 0, |x, _| right(x, b as u64, 64));
    Psraw{WIDE_BYTES: u64 = 16, SHARED: bool = true}(a, b, _) => zip::<16>(a, 0, |x, _| (signed::<16>(x) >> (b as u64).min(15)) as u64);
    Psrad{WIDE_BYTES: u64 = 16, SHARED: bool = true}(a, b, _) => zip::<32>(a, 0, |x, _| (signed::<32>(x) >> (b as u64).min(31)) as u64);
    Pslldq(a, b, _) => if b as u8 > 15 { 0 } else { a << ((b as u32 & 15) * 8) };
    Psrldq(a, b, _) => if b as u8 > 15 { 0 } else { a >> ((b as u32 & 15) * 8) };
    Pclmulqdq(a, b, imm) => {
        let (x, y) = (lane::<64>(a, u32::from(imm & 1)), lane::<64>(b, u32::from(imm >> 4 & 1)));
        (0..64).filter(|n| y >> n & 1 != 0).fold(0, |r, n| r ^ (u128::from(x) << n))
    };
}

fn left(x: u64, n: u64, bits: u64) -> u64 {
    if n >= bits { 0 } else { x << n }
}

fn right(x: u64, n: u64, bits: u64) -> u64 {
    if n >= bits { 0 } else { x >> n }
}

/// Lane `n` of the two vectors one behind the other.
fn of_both<const BITS: u32>(a: u128, b: u128, n: u32) -> u64 {
    let lanes = 128 / BITS;
    if n < lanes {
        lane::<BITS>(a, n)
    } else {
        lane::<BITS>(b, n - lanes)
    }
}

fn interleave<const BITS: u32>(a: u128, b: u128, from: u32) -> u128 {
    build::<BITS>(|n| lane::<BITS>(if n & 1 == 0 { a } else { b }, from + n / 2))
}

/// A shift by an immediate: the count is where the second operand would be.
struct ByImmediate<F, const WIDE: bool>(std::marker::PhantomData<F>);
impl<F: super::Packed, const WIDE: bool> Helper for ByImmediate<F, WIDE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let [low, high] = cpu.ymm(if op.prefix & prefix::VEX != 0 {
            op.src
        } else {
            op.dst
        });
        let count = u128::from(op.imm & 0xff);
        let mut env = super::Env::default();
        let low = F::f(&mut env, low, count, 0);
        if WIDE {
            let high = F::f(&mut env, high, count, 0);
            cpu.set_ymm(op.dst, [low, high]);
        } else {
            cpu.put_xmm(op, op.dst, low);
        }
        Ok(())
    }
}

/// Lanes are chosen by the signs of a mask's.
pub(super) fn blend_by_sign<const BITS: u32>(a: u128, b: u128, mask: u128) -> u128 {
    let choose = |n| lane::<BITS>(mask, n) >> (BITS - 1) != 0;
    build::<BITS>(|n| lane::<BITS>(if choose(n) { b } else { a }, n))
}

/// PBLENDVB and its relatives: the mask is XMM0.
struct BlendBySign<const BITS: u32>;
impl<const BITS: u32> Helper for BlendBySign<BITS> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.sse_ready()?;
        let b = cpu.vector_source(op, 16, true)?;
        let r = blend_by_sign::<BITS>(cpu.xmm(op.dst), b, cpu.xmm(0));
        cpu.set_xmm(op.dst, r);
        Ok(())
    }
}

/// PTEST: all bits. VTESTPS and VTESTPD: those of `SIGNS`.
pub(super) struct Test<const SIGNS: u128, const WIDE: bool>;
impl<const SIGNS: u128, const WIDE: bool> Helper for Test<SIGNS, WIDE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.vector_ready(op)?;
        let (a, b) = if WIDE {
            (cpu.ymm(op.dst), cpu.wide_source(op, op.src, 32)?)
        } else {
            ([cpu.xmm(op.dst), 0], [cpu.vector_source(op, 16, true)?, 0])
        };
        let any = |f: fn(u128, u128) -> u128| {
            let mut pairs = a.iter().zip(&b);
            pairs.any(|(a, b)| f(*a, *b) & SIGNS != 0)
        };
        cpu.flags = Flags {
            zr: u64::from(any(|a, b| a & b)),
            sr: 1,
            cv: if any(|a, b| !a & b) { 0 } else { 3 << 62 },
        };
        Ok(())
    }
}

fn shift<D: Domain, F: super::Packed>(i: &Instruction) -> Option<Lowered<D>> {
    let last = i.op_count() - 1;
    if i.op_kind(last) == OpKind::Immediate8 {
        return go(if super::is_wide(i) {
            helper::<D, ByImmediate<F, true>>
        } else {
            helper::<D, ByImmediate<F, false>>
        });
    }
    super::operation::<D, F>(i)
}

/// `match` arms of operations that are called like their mnemonics.
macro_rules! by_name {
    ($i:expr, $m:expr; $($name:ident)*) => {
        match $m {
            $(M::$name => return crate::sse::operation::<D, $name>($i),)*
            _ => {}
        }
    };
}

fn lower_arithmetic<D: Domain>(i: &Instruction, m: M) -> Option<Lowered<D>> {
    by_name!(i, m;
        Paddb Paddw Paddd Paddq Psubb Psubw Psubd Psubq Paddsb Paddsw Psubsb Psubsw
        Paddusb Paddusw Psubusb Psubusw Pmullw Pmulld Pmulhw Pmulhuw Pmulhrsw Pmuludq Pmuldq
        Pmaddwd Pmaddubsw Psadbw Pavgb Pavgw Pminub Pminuw Pminud Pmaxub Pmaxuw Pmaxud
        Pminsb Pminsw Pminsd Pmaxsb Pmaxsw Pmaxsd Pand Pandn Por Pxor
        Pcmpeqb Pcmpeqw Pcmpeqd Pcmpeqq Pcmpgtb Pcmpgtw Pcmpgtd Pcmpgtq
        Phaddw Phaddd Phaddsw Phsubw Phsubd Phsubsw Psignb Psignw Psignd Pabsb Pabsw Pabsd
        Mpsadbw Phminposuw Pclmulqdq);
    None
}

fn lower_arrangement<D: Domain>(i: &Instruction, m: M) -> Option<Lowered<D>> {
    by_name!(i, m;
        Packsswb Packssdw Packuswb Packusdw
        Punpcklbw Punpcklwd Punpckldq Punpcklqdq Punpckhbw Punpckhwd Punpckhdq Punpckhqdq
        Pshufd Pshuflw Pshufhw Pshufb Shufps Shufpd Palignr Pblendw Blendps Blendpd
        Pmovsxbw Pmovsxbd Pmovsxbq Pmovsxwd Pmovsxwq Pmovsxdq
        Pmovzxbw Pmovzxbd Pmovzxbq Pmovzxwd Pmovzxwq Pmovzxdq);
    None
}

pub(crate) fn lower<D: Domain>(i: &Instruction, m: M) -> Option<Lowered<D>> {
    match m {
        M::Andps | M::Andpd => super::operation::<D, Pand>(i),
        M::Andnps | M::Andnpd => super::operation::<D, Pandn>(i),
        M::Orps | M::Orpd => super::operation::<D, Por>(i),
        M::Xorps | M::Xorpd => super::operation::<D, Pxor>(i),
        M::Unpcklps => super::operation::<D, Punpckldq>(i),
        M::Unpckhps => super::operation::<D, Punpckhdq>(i),
        M::Unpcklpd => super::operation::<D, Punpcklqdq>(i),
        M::Unpckhpd => super::operation::<D, Punpckhqdq>(i),
        M::Psllw => shift::<D, Psllw>(i),
        M::Pslld => shift::<D, Pslld>(i),
        M::Psllq => shift::<D, Psllq>(i),
        M::Psrlw => shift::<D, Psrlw>(i),
        M::Psrld => shift::<D, Psrld>(i),
        M::Psrlq => shift::<D, Psrlq>(i),
        M::Psraw => shift::<D, Psraw>(i),
        M::Psrad => shift::<D, Psrad>(i),
        M::Pslldq => shift::<D, Pslldq>(i),
        M::Psrldq => shift::<D, Psrldq>(i),
        M::Pblendvb => go(helper::<D, BlendBySign<8>>),
        M::Blendvps => go(helper::<D, BlendBySign<32>>),
        M::Blendvpd => go(helper::<D, BlendBySign<64>>),
        M::Ptest => go(if super::is_wide(i) {
            helper::<D, Test<{ u128::MAX }, true>>
        } else {
            helper::<D, Test<{ u128::MAX }, false>>
        }),
        _ => lower_arithmetic(i, m).or_else(|| lower_arrangement(i, m)),
    }
}
