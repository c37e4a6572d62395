//! MOV, MOVZX, MOVSX, MOVSXD, LEA, CMOVcc, SETcc, BSWAP, MOVBE, XLAT, sign extensions, MOVNTI.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::{Cpu, RAX, RBX, RDX};
use crate::domain::{Domain, Flow, Handler, Op, W8, W16, W32, W64, Width, helper, helpers};
use crate::flags;
use crate::lower::{
    Dst, Imm, Kind, Lowered, Mem, Place, Shape, Src, bits_of, by_wide, by_width, go,
};

fn mov<D: Domain, W: Width, P: Place, S: Place>(d: &mut D, op: &Op) -> Flow {
    let v = S::get::<D, W>(d, op)?;
    P::put::<D, W>(d, op, v)
}

fn extend<D: Domain, W: Width, F: Width, S: Place, const SIGNED: bool>(d: &mut D, op: &Op) -> Flow {
    let v = S::get::<D, F>(d, op)?;
    let v = if SIGNED { d.sext::<F>(v) } else { v };
    d.set_reg::<W>(op.dst, v);
    Ok(())
}

fn lea<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let v = d.effective(op);
    d.set_reg::<W>(op.dst, v);
    Ok(())
}

fn cmov<D: Domain, W: Width, S: Place, const CC: u8>(d: &mut D, op: &Op) -> Flow {
    let v = S::get::<D, W>(d, op)?;
    let c = flags::condition::<D, CC>(d);
    let old = d.reg::<W>(op.dst);
    let v = d.select(c, v, old);
    d.set_reg::<W>(op.dst, v);
    Ok(())
}

fn setcc<D: Domain, P: Place, const CC: u8>(d: &mut D, op: &Op) -> Flow {
    let c = flags::condition::<D, CC>(d);
    let v = d.value(c);
    P::put::<D, W8>(d, op, v)
}

fn swap_bytes<D: Domain, W: Width>(d: &mut D, v: D::Val) -> D::Val {
    let v = d.pure(|v, _, _| (v.swap_bytes(), 0), [v, v, v]).0;
    let shift = d.lit(u64::from(64 - W::BITS));
    d.shr(v, shift)
}

fn bswap<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let v = d.reg::<W>(op.dst);
    let v = swap_bytes::<D, W>(d, v);
    d.set_reg::<W>(op.dst, v);
    Ok(())
}

/// BSWAP of 16 bits is undefined; processors store zero.
fn bswap16<D: Domain>(d: &mut D, op: &Op) -> Flow {
    let zero = d.lit(0);
    d.set_reg::<W16>(op.dst, zero);
    Ok(())
}

fn movbe<D: Domain, W: Width, P: Place, S: Place>(d: &mut D, op: &Op) -> Flow {
    let v = S::get::<D, W>(d, op)?;
    let v = swap_bytes::<D, W>(d, v);
    P::put::<D, W>(d, op, v)
}

/// CBW, CWDE, CDQE: sign-extends the lower half of the accumulator.
fn extend_accumulator<D: Domain, W: Width, F: Width>(d: &mut D, _: &Op) -> Flow {
    let v = d.reg::<F>(RAX);
    let v = d.sext::<F>(v);
    d.set_reg::<W>(RAX, v);
    Ok(())
}

/// CWD, CDQ, CQO: fills DX with the accumulator's sign.
fn spread_sign<D: Domain, W: Width>(d: &mut D, _: &Op) -> Flow {
    let v = d.reg::<W>(RAX);
    let v = d.sext::<W>(v);
    let n = d.lit(63);
    let v = d.sar(v, n);
    d.set_reg::<W>(RDX, v);
    Ok(())
}

fn nothing<D: Domain>(_: &mut D, _: &Op) -> Flow {
    Ok(())
}

helpers! {
    Xlat => |cpu, op| {
        let mask = Cpu::address_mask(op.addr);
        let offset = cpu.get(RBX).wrapping_add(cpu.get(RAX) & 0xff) & mask;
        let linear = cpu.implied_linear(op.seg, offset, 1, false)?;
        let v = cpu.load_linear::<W8>(linear)?;
        cpu.set_reg::<W8>(RAX, v);
        Ok(())
    },
}

/// MOV between the accumulator and a 64-bit offset.
struct Offset<W: Width, const STORE: bool>(std::marker::PhantomData<W>);
impl<W: Width, const STORE: bool> crate::domain::Helper for Offset<W, STORE> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let linear = op.imm.wrapping_add(cpu.base_of(op.seg));
        if STORE {
            let v = cpu.reg::<W>(RAX);
            return cpu.store_linear::<W>(linear, v);
        }
        let v = cpu.load_linear::<W>(linear)?;
        cpu.set_reg::<W>(RAX, v);
        Ok(())
    }
}

fn pick_mov<D: Domain>(i: &Instruction, s: &Shape) -> Option<Handler<D>> {
    let plain = (0..2).all(|n| i.op_kind(n) != OpKind::Register || i.op_register(n).is_gpr());
    if !plain {
        return None;
    }
    let wide_offset = i.memory_displ_size() == 8
        && i.memory_displacement64() as i32 as i64 as u64 != i.memory_displacement64()
        && !i.is_ip_rel_memory_operand();
    Some(by_width!(s.bits, W => match (s.first, s.second) {
        (Kind::Reg, Kind::Mem) if wide_offset => helper::<D, Offset<W, false>>,
        (Kind::Mem, Kind::Reg) if wide_offset => helper::<D, Offset<W, true>>,
        (Kind::Reg, Kind::Reg) => mov::<D, W, Dst, Src>,
        (Kind::Reg, Kind::Mem) => mov::<D, W, Dst, Mem>,
        (Kind::Reg, Kind::Imm) => mov::<D, W, Dst, Imm>,
        (Kind::Mem, Kind::Reg) => mov::<D, W, Mem, Src>,
        (Kind::Mem, Kind::Imm) => mov::<D, W, Mem, Imm>,
        _ => return None,
    }))
}

fn pick_extend<D: Domain, const SIGNED: bool>(i: &Instruction, s: &Shape) -> Option<Handler<D>> {
    let from = bits_of(i, 1);
    Some(by_wide!(s.bits, W => match (from, s.second) {
        (8, Kind::Reg) => extend::<D, W, W8, Src, SIGNED>,
        (8, Kind::Mem) => extend::<D, W, W8, Mem, SIGNED>,
        (16, Kind::Reg) => extend::<D, W, W16, Src, SIGNED>,
        (16, Kind::Mem) => extend::<D, W, W16, Mem, SIGNED>,
        (32, Kind::Reg) => extend::<D, W, W32, Src, SIGNED>,
        (32, Kind::Mem) => extend::<D, W, W32, Mem, SIGNED>,
        _ => return None,
    }))
}

/// `expression` with `CC` as the constant of a condition code.
macro_rules! by_condition {
    ($cc:expr, $c:ident => $e:expr) => {
        match $cc {
            0 => {
                const $c: u8 = 0;
                $e
            }
            1 => {
                const $c: u8 = 1;
                $e
            }
            2 => {
                const $c: u8 = 2;
                $e
            }
            3 => {
                const $c: u8 = 3;
                $e
            }
            4 => {
                const $c: u8 = 4;
                $e
            }
            5 => {
                const $c: u8 = 5;
                $e
            }
            6 => {
                const $c: u8 = 6;
                $e
            }
            7 => {
                const $c: u8 = 7;
                $e
            }
            8 => {
                const $c: u8 = 8;
                $e
            }
            9 => {
                const $c: u8 = 9;
                $e
            }
            10 => {
                const $c: u8 = 10;
                $e
            }
            11 => {
                const $c: u8 = 11;
                $e
            }
            12 => {
                const $c: u8 = 12;
                $e
            }
            13 => {
                const $c: u8 = 13;
                $e
            }
            14 => {
                const $c: u8 = 14;
                $e
            }
            15 => {
                const $c: u8 = 15;
                $e
            }
            _ => return None,
        }
    };
}
pub(crate) use by_condition;

/// The number of a condition code in encodings.
pub(crate) fn condition_number(i: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as C;
    Some(match i.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
        C::None => return None,
    })
}

fn pick_conditional<D: Domain>(i: &Instruction, s: &Shape) -> Option<Handler<D>> {
    let cc = condition_number(i)?;
    if (Mnemonic::Seta..=Mnemonic::Sets).contains(&i.mnemonic()) && i.op_count() == 1 {
        return Some(by_condition!(cc, CC => match s.first {
            Kind::Reg => setcc::<D, Dst, CC>,
            _ => setcc::<D, Mem, CC>,
        }));
    }
    if !(Mnemonic::Cmova..=Mnemonic::Cmovs).contains(&i.mnemonic()) {
        return None;
    }
    Some(
        by_wide!(s.bits, W => by_condition!(cc, CC => match s.second {
            Kind::Reg => cmov::<D, W, Src, CC>,
            _ => cmov::<D, W, Mem, CC>,
        })),
    )
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        Mnemonic::Mov => pick_mov::<D>(i, s)?,
        Mnemonic::Movnti => by_width!(s.bits, W => mov::<D, W, Mem, Src>),
        Mnemonic::Movzx => pick_extend::<D, false>(i, s)?,
        Mnemonic::Movsx | Mnemonic::Movsxd => pick_extend_or_mov::<D>(i, s)?,
        Mnemonic::Lea => by_wide!(s.bits, W => lea::<D, W>),
        Mnemonic::Bswap => match s.bits {
            16 => bswap16::<D>,
            32 => bswap::<D, W32>,
            _ => bswap::<D, W64>,
        },
        Mnemonic::Movbe => by_wide!(s.bits, W => match s.first {
            Kind::Reg => movbe::<D, W, Dst, Mem>,
            _ => movbe::<D, W, Mem, Src>,
        }),
        Mnemonic::Xlatb => helper::<D, Xlat>,
        Mnemonic::Cbw => extend_accumulator::<D, W16, W8>,
        Mnemonic::Cwde => extend_accumulator::<D, W32, W16>,
        Mnemonic::Cdqe => extend_accumulator::<D, W64, W32>,
        Mnemonic::Cwd => spread_sign::<D, W16>,
        Mnemonic::Cdq => spread_sign::<D, W32>,
        Mnemonic::Cqo => spread_sign::<D, W64>,
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Reservednop
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetch
        | Mnemonic::Lfence
        | Mnemonic::Sfence => nothing::<D>,
        _ => pick_conditional::<D>(i, s)?,
    })
}

/// MOVSXD without REX.W is a plain move.
fn pick_extend_or_mov<D: Domain>(i: &Instruction, s: &Shape) -> Option<Handler<D>> {
    if bits_of(i, 1) == s.bits {
        return Some(by_wide!(s.bits, W => match s.second {
            Kind::Reg => mov::<D, W, Dst, Src>,
            _ => mov::<D, W, Dst, Mem>,
        }));
    }
    pick_extend::<D, true>(i, s)
}
