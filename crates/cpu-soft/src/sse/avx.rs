//! What AVX, AVX2 and F16C have beyond operations with a VEX prefix: broadcasts, what crosses
//! the halves of a YMM register, masked accesses, gathers.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use crate::cpu::Cpu;
use crate::domain::{
    AddressKind, Domain, Flow, Helper, NO_REGISTER, Op, Stop, W32, W64, helper, helpers,
};
use crate::lower::{Lowered, Shape, go, prefix};
use crate::sse::convert::{Vcvtph2ps, to_half};
use crate::sse::integer::{Test, blend_by_sign};
use crate::sse::{build, is_wide, lane, operation, packed, signed};

fn is_memory(op: &Op) -> bool {
    op.prefix & prefix::MEMORY != 0
}

/// Lane `n` of a YMM register.
fn wide_lane<const BITS: u32>(v: [u128; 2], n: u32) -> u64 {
    let [low, high] = v;
    let lanes = 128 / BITS;
    if n < lanes {
        lane::<BITS>(low, n)
    } else {
        lane::<BITS>(high, n - lanes)
    }
}

fn wide_build<const BITS: u32>(mut f: impl FnMut(u32) -> u64) -> [u128; 2] {
    let low = build::<BITS>(&mut f);
    let lanes = 128 / BITS;
    [low, build::<BITS>(|n| f(n + lanes))]
}

packed! {
    // The immediate forms and those with a vector of controls.
    Vpermilps(_, b, imm) => build::<32>(|n| lane::<32>(b, u32::from(imm >> (n * 2)) & 3));
    Vpermilpd{UPPER: u32 = 2}(_, b, imm) => build::<64>(|n| lane::<64>(b, u32::from(imm >> n) & 1));
    PermilpsBy(a, b, _) => build::<32>(|n| lane::<32>(a, lane::<32>(b, n) as u32 & 3));
    PermilpdBy(a, b, _) => build::<64>(|n| lane::<64>(a, lane::<64>(b, n) as u32 >> 1 & 1));
    Vpblendd{UPPER: u32 = 4}(a, b, imm) => {
        build::<32>(|n| lane::<32>(if imm >> n & 1 != 0 { b } else { a }, n))
    };
    Vpsllvd(a, b, _) => build::<32>(|n| shifted(lane::<32>(a, n), lane::<32>(b, n), 32, true));
    Vpsllvq(a, b, _) => build::<64>(|n| shifted(lane::<64>(a, n), lane::<64>(b, n), 64, true));
    Vpsrlvd(a, b, _) => build::<32>(|n| shifted(lane::<32>(a, n), lane::<32>(b, n), 32, false));
    Vpsrlvq(a, b, _) => build::<64>(|n| shifted(lane::<64>(a, n), lane::<64>(b, n), 64, false));
    Vpsravd(a, b, _) => {
        build::<32>(|n| (signed::<32>(lane::<32>(a, n)) >> lane::<32>(b, n).min(31)) as u64)
    };
}

fn shifted(x: u64, by: u64, bits: u64, left: bool) -> u64 {
    match (by < bits, left) {
        (false, _) => 0,
        (true, true) => x << by,
        (true, false) => x >> by,
    }
}

/// Lanes of `BITS` of the lowest one, or of memory.
struct Broadcast<const BITS: u32, const WIDE: bool>;
impl<const BITS: u32, const WIDE: bool> Helper for Broadcast<BITS, WIDE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.avx_ready()?;
        let value = cpu.vector_source(op, u64::from(BITS / 8), false)?;
        let all = if BITS == 128 {
            value
        } else {
            build::<BITS>(|_| lane::<BITS>(value, 0))
        };
        cpu.set_ymm(op.dst, [all, if WIDE { all } else { 0 }]);
        Ok(())
    }
}

/// Lanes of the whole register, chosen by an immediate or by a vector (`BY_VECTOR`).
struct Permute<const BITS: u32, const BY_VECTOR: bool>;
impl<const BITS: u32, const BY_VECTOR: bool> Helper for Permute<BITS, BY_VECTOR> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.avx_ready()?;
        let last = if BY_VECTOR { op.aux } else { op.src };
        let from = cpu.wide_source(op, last, 32)?;
        let by = cpu.ymm(op.src);
        let r = wide_build::<BITS>(|n| {
            let index = if BY_VECTOR {
                wide_lane::<BITS>(by, n) as u32
            } else {
                (op.imm >> (n * 2)) as u32 & 3
            };
            wide_lane::<BITS>(from, index % (256 / BITS))
        });
        cpu.set_ymm(op.dst, r);
        Ok(())
    }
}

/// VBLENDVPS, VBLENDVPD and VPBLENDVB: the mask is the fourth operand.
struct BlendBySign<const BITS: u32, const WIDE: bool>;
impl<const BITS: u32, const WIDE: bool> Helper for BlendBySign<BITS, WIDE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.avx_ready()?;
        let [b0, b1] = cpu.wide_source(op, op.aux, if WIDE { 32 } else { 16 })?;
        // With a memory operand the fourth is the third register.
        let [m0, m1] = cpu.ymm(op.imm as u8);
        let [a0, a1] = cpu.ymm(op.src);
        let low = blend_by_sign::<BITS>(a0, b0, m0);
        let high = if WIDE {
            blend_by_sign::<BITS>(a1, b1, m1)
        } else {
            0
        };
        cpu.set_ymm(op.dst, [low, high]);
        Ok(())
    }
}

/// Where the lanes of a masked access are: those whose mask has its sign set.
fn chosen<const BITS: u32>(mask: [u128; 2], lanes: u32) -> impl Iterator<Item = u32> {
    (0..lanes).filter(move |n| wide_lane::<BITS>(mask, *n) >> (BITS - 1) != 0)
}

/// VMASKMOVPS, VPMASKMOVD and the like. Lanes that are not chosen do not fault.
struct Masked<const BITS: u32, const WIDE: bool, const STORE: bool>;
impl<const BITS: u32, const WIDE: bool, const STORE: bool> Helper for Masked<BITS, WIDE, STORE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.avx_ready()?;
        let lanes = if WIDE { 256 } else { 128 } / BITS;
        let bytes = u64::from(BITS / 8);
        // Of a load the second operand is the mask, of a store too (the first is memory).
        let mask = cpu.ymm(op.src);
        if STORE {
            let value = cpu.ymm(op.aux);
            for n in chosen::<BITS>(mask, lanes) {
                let at = cpu.linear_of(op, u64::from(n) * bytes, bytes, true)?;
                cpu.probe_write(at, bytes, cpu.data_kind)?;
            }
            for n in chosen::<BITS>(mask, lanes) {
                let at = cpu.linear_of(op, u64::from(n) * bytes, bytes, true)?;
                cpu.store_lane::<BITS>(at, wide_lane::<BITS>(value, n))?;
            }
            return Ok(());
        }
        let mut values = [0_u64; 8];
        for (n, value) in (0_u32..).zip(&mut values).take(lanes as usize) {
            if wide_lane::<BITS>(mask, n) >> (BITS - 1) != 0 {
                let at = cpu.linear_of(op, u64::from(n) * bytes, bytes, false)?;
                *value = cpu.load_lane::<BITS>(at)?;
            }
        }
        let r = wide_build::<BITS>(|n| values.get(n as usize).copied().unwrap_or(0));
        cpu.set_ymm(op.dst, r);
        Ok(())
    }
}

impl Cpu {
    fn load_lane<const BITS: u32>(&mut self, at: u64) -> Result<u64, Stop> {
        if BITS == 32 {
            self.load_linear::<W32>(at)
        } else {
            self.load_linear::<W64>(at)
        }
    }

    fn store_lane<const BITS: u32>(&mut self, at: u64, value: u64) -> Flow {
        if BITS == 32 {
            self.store_linear::<W32>(at, value)
        } else {
            self.store_linear::<W64>(at, value)
        }
    }
}

/// VGATHERxxx and VPGATHERxx: each chosen lane from its own address. What has been read when a
/// lane faults is kept, and its mask cleared. `INDEX`: bits of an index. `LANES`: how many.
struct Gather<const BITS: u32, const INDEX: u32, const LANES: u32>;
impl<const BITS: u32, const INDEX: u32, const LANES: u32> Helper for Gather<BITS, INDEX, LANES> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.avx_ready()?;
        let (to, index, mask_at) = (op.dst, op.index, op.aux);
        if to == index || to == mask_at || index == mask_at {
            return Err(cpu.ud());
        }
        let indexes = cpu.ymm(index);
        for n in 0..LANES {
            let mask = cpu.ymm(mask_at);
            if wide_lane::<BITS>(mask, n) >> (BITS - 1) != 0 {
                let by = signed::<INDEX>(wide_lane::<INDEX>(indexes, n)) as u64;
                let plain = Op {
                    index: NO_REGISTER,
                    ..*op
                };
                let far = by << (op.scale & 3);
                let at = cpu.gathered(&plain, far, u64::from(BITS / 8))?;
                let value = cpu.load_lane::<BITS>(at)?;
                let old = cpu.ymm(to);
                let new = |k| {
                    if k == n {
                        value
                    } else {
                        wide_lane::<BITS>(old, k)
                    }
                };
                cpu.set_ymm(to, wide_build::<BITS>(new));
            }
            let cleared = |k| {
                if k == n {
                    0
                } else {
                    wide_lane::<BITS>(mask, k)
                }
            };
            cpu.set_ymm(mask_at, wide_build::<BITS>(cleared));
        }
        let last = cpu.ymm(to);
        let kept = |n| {
            if n < LANES {
                wide_lane::<BITS>(last, n)
            } else {
                0
            }
        };
        cpu.set_ymm(to, wide_build::<BITS>(kept));
        cpu.set_ymm(mask_at, [0; 2]);
        Ok(())
    }
}

impl Cpu {
    /// The address of a lane: with 32-bit addresses the sum is cut once.
    fn gathered(&mut self, plain: &Op, far: u64, bytes: u64) -> Result<u64, Stop> {
        if plain.addr == AddressKind::Flat {
            return self.linear_of(plain, far, bytes, false);
        }
        let offset = self.offset_of(plain).wrapping_add(far) & Self::address_mask(plain.addr);
        self.implied_linear(plain.seg, offset, bytes, false)
    }
}

helpers! {
    Vzeroupper => |cpu, _| {
        cpu.avx_ready()?;
        let count = cpu.visible();
        for [_, high] in cpu.fpu.vector.iter_mut().take(count) {
            *high = 0;
        }
        Ok(())
    },
    Vzeroall => |cpu, _| {
        cpu.avx_ready()?;
        let count = cpu.visible();
        for both in cpu.fpu.vector.iter_mut().take(count) {
            *both = [0; 2];
        }
        Ok(())
    },
    ExtractHalf => |cpu, op| {
        cpu.avx_ready()?;
        let [low, high] = cpu.ymm(op.src);
        let value = if op.imm & 1 != 0 { high } else { low };
        if is_memory(op) {
            return cpu.store_vector(op, value, 16, false);
        }
        cpu.set_ymm(op.dst, [value, 0]);
        Ok(())
    },
    InsertHalf => |cpu, op| {
        cpu.avx_ready()?;
        let [value, _] = cpu.wide_source(op, op.aux, 16)?;
        let [low, high] = cpu.ymm(op.src);
        let r = if op.imm & 1 != 0 { [low, value] } else { [value, high] };
        cpu.set_ymm(op.dst, r);
        Ok(())
    },
    // VPERM2F128 and VPERM2I128.
    PermuteHalves => |cpu, op| {
        cpu.avx_ready()?;
        let [b0, b1] = cpu.wide_source(op, op.aux, 32)?;
        let [a0, a1] = cpu.ymm(op.src);
        let half = |control: u64| match control & 11 {
            0 => a0,
            1 => a1,
            2 => b0,
            3 => b1,
            _ => 0,
        };
        cpu.set_ymm(op.dst, [half(op.imm), half(op.imm >> 4)]);
        Ok(())
    },
}

/// VCVTPS2PH: the first operand is written, and may be memory.
struct ToHalf<const WIDE: bool>;
impl<const WIDE: bool> Helper for ToHalf<WIDE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.avx_ready()?;
        let [low, high] = cpu.ymm(op.src);
        let mut env = cpu.float_env();
        let mut four = |v: u128| {
            (0..4).fold(0, |r, n| {
                r | (u128::from(to_half(&mut env, lane::<32>(v, n), op.imm as u8)) << (n * 16))
            })
        };
        let r = four(low) | if WIDE { four(high) << 64 } else { 0 };
        if is_memory(op) {
            let bytes = if WIDE { 16 } else { 8 };
            let linear = cpu.linear_of(op, 0, bytes, true)?;
            cpu.probe_write(linear, bytes, cpu.data_kind)?;
            cpu.float_done(&env)?;
            return cpu.store_vector(op, r, bytes, false);
        }
        cpu.float_done(&env)?;
        cpu.set_ymm(op.dst, [r, 0]);
        Ok(())
    }
}

/// `expression` with `W` as whether the form is on YMM registers.
macro_rules! by_size {
    ($i:expr, $w:ident => $e:expr) => {
        if is_wide($i) {
            const $w: bool = true;
            $e
        } else {
            const $w: bool = false;
            $e
        }
    };
}

fn masked<D: Domain, const BITS: u32>(i: &Instruction) -> Option<Lowered<D>> {
    let store = i.op_kind(0) == OpKind::Memory;
    go(match (is_wide(i), store) {
        (false, false) => helper::<D, Masked<BITS, false, false>>,
        (false, true) => helper::<D, Masked<BITS, false, true>>,
        (true, false) => helper::<D, Masked<BITS, true, false>>,
        (true, true) => helper::<D, Masked<BITS, true, true>>,
    })
}

fn lower_gather<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let wide = is_wide(i) || i.memory_index().is_ymm();
    go(match (i.mnemonic(), wide) {
        (M::Vpgatherdd | M::Vgatherdps, false) => helper::<D, Gather<32, 32, 4>>,
        (M::Vpgatherdd | M::Vgatherdps, true) => helper::<D, Gather<32, 32, 8>>,
        (M::Vpgatherdq | M::Vgatherdpd, false) => helper::<D, Gather<64, 32, 2>>,
        (M::Vpgatherdq | M::Vgatherdpd, true) => helper::<D, Gather<64, 32, 4>>,
        (M::Vpgatherqd | M::Vgatherqps, false) => helper::<D, Gather<32, 64, 2>>,
        (M::Vpgatherqd | M::Vgatherqps, true) => helper::<D, Gather<32, 64, 4>>,
        (M::Vpgatherqq | M::Vgatherqpd, false) => helper::<D, Gather<64, 64, 2>>,
        (M::Vpgatherqq | M::Vgatherqpd, true) => helper::<D, Gather<64, 64, 4>>,
        _ => return None,
    })
}

fn lower_crossing<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        M::Vbroadcastss | M::Vpbroadcastd => by_size!(i, W => helper::<D, Broadcast<32, W>>),
        M::Vbroadcastsd | M::Vpbroadcastq => by_size!(i, W => helper::<D, Broadcast<64, W>>),
        M::Vpbroadcastb => by_size!(i, W => helper::<D, Broadcast<8, W>>),
        M::Vpbroadcastw => by_size!(i, W => helper::<D, Broadcast<16, W>>),
        M::Vbroadcastf128 | M::Vbroadcasti128 => helper::<D, Broadcast<128, true>>,
        M::Vpermq | M::Vpermpd => helper::<D, Permute<64, false>>,
        M::Vpermd | M::Vpermps => helper::<D, Permute<32, true>>,
        M::Vperm2f128 | M::Vperm2i128 => helper::<D, PermuteHalves>,
        M::Vextractf128 | M::Vextracti128 => helper::<D, ExtractHalf>,
        M::Vinsertf128 | M::Vinserti128 => helper::<D, InsertHalf>,
        M::Vpblendvb => by_size!(i, W => helper::<D, BlendBySign<8, W>>),
        M::Vblendvps => by_size!(i, W => helper::<D, BlendBySign<32, W>>),
        M::Vblendvpd => by_size!(i, W => helper::<D, BlendBySign<64, W>>),
        M::Vmaskmovps | M::Vpmaskmovd => return masked::<D, 32>(i),
        M::Vmaskmovpd | M::Vpmaskmovq => return masked::<D, 64>(i),
        M::Vzeroupper => helper::<D, Vzeroupper>,
        M::Vzeroall => helper::<D, Vzeroall>,
        M::Vtestps => by_size!(i, W => helper::<D, Test<SIGNS_32, W>>),
        M::Vtestpd => by_size!(i, W => helper::<D, Test<SIGNS_64, W>>),
        M::Vcvtps2ph => by_size!(i, W => helper::<D, ToHalf<W>>),
        _ => return lower_gather(i),
    })
}

const SIGNS_32: u128 = 0x8000_0000_8000_0000_8000_0000_8000_0000;
const SIGNS_64: u128 = 0x8000_0000_0000_0000_8000_0000_0000_0000;

pub(crate) fn lower<D: Domain>(i: &Instruction, _: &Shape) -> Option<Lowered<D>> {
    let by_vector = matches!(i.op_count(), 3) && i.op_kind(2) != OpKind::Immediate8;
    match i.mnemonic() {
        M::Vpermilps if by_vector => operation::<D, PermilpsBy>(i),
        M::Vpermilpd if by_vector => operation::<D, PermilpdBy>(i),
        M::Vpermilps => operation::<D, Vpermilps>(i),
        M::Vpermilpd => operation::<D, Vpermilpd>(i),
        M::Vpblendd => operation::<D, Vpblendd>(i),
        M::Vpsllvd => operation::<D, Vpsllvd>(i),
        M::Vpsllvq => operation::<D, Vpsllvq>(i),
        M::Vpsrlvd => operation::<D, Vpsrlvd>(i),
        M::Vpsrlvq => operation::<D, Vpsrlvq>(i),
        M::Vpsravd => operation::<D, Vpsravd>(i),
        M::Vcvtph2ps => operation::<D, Vcvtph2ps>(i),
        _ => lower_crossing(i),
    }
}
