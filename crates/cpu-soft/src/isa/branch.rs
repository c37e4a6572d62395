//! JMP, Jcc, JCXZ, LOOP, CALL, RET: the near ones.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::RCX;
use crate::domain::{Domain, Flow, Handler, Op, W16, W32, W64, Width};
use crate::flags;
use crate::isa::moves::{by_condition, condition_number};
use crate::lower::{Dst, Kind, Lowered, Mem, Place, Shape, by_wide, end, fork};

fn jcc<D: Domain, W: Width, const CC: u8>(d: &mut D, op: &Op) -> Flow {
    let c = flags::condition::<D, CC>(d);
    d.branch_if::<W>(c, op)
}

fn jmp<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let target = d.target(op);
    d.check_target::<W>(target)?;
    d.jump::<W>(target)
}

fn jmp_to<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let target = P::get::<D, W>(d, op)?;
    d.check_target::<W>(target)?;
    d.jump::<W>(target)
}

fn call<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let target = d.target(op);
    d.check_target::<W>(target)?;
    let back = d.next_ip(op);
    d.push::<W>(back)?;
    d.jump::<W>(target)
}

fn call_to<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let target = P::get::<D, W>(d, op)?;
    d.check_target::<W>(target)?;
    let back = d.next_ip(op);
    d.push::<W>(back)?;
    d.jump::<W>(target)
}

fn ret<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let target = d.peek::<W>()?;
    d.check_target::<W>(target)?;
    let bytes = d.lit(W::BYTES + (op.imm & 0xffff));
    d.drop_stack(bytes);
    d.jump::<W>(target)
}

fn jcxz<D: Domain, W: Width, C: Width>(d: &mut D, op: &Op) -> Flow {
    let n = d.reg::<C>(RCX);
    let c = d.is_zero(n);
    d.branch_if::<W>(c, op)
}

/// LOOP (0), LOOPE (1), LOOPNE (2).
fn looping<D: Domain, W: Width, C: Width, const WHAT: u8>(d: &mut D, op: &Op) -> Flow {
    let n = d.reg::<C>(RCX);
    let one = d.lit(1);
    let n = d.sub(n, one);
    let n = d.zext::<C>(n);
    let zero = d.is_zero(n);
    let mut c = d.negate(zero);
    let f = d.flags();
    let zf = d.is_zero(f.zr);
    if WHAT == 1 {
        c = d.both(c, zf);
    } else if WHAT == 2 {
        let nz = d.negate(zf);
        c = d.both(c, nz);
    }
    // A target that is out of bounds faults with the counter as it was.
    let taken = d.target(op);
    let next = d.next_ip(op);
    let target = d.select(c, taken, next);
    d.check_target::<W>(target)?;
    d.set_reg::<C>(RCX, n);
    d.jump::<W>(target)
}

/// Operand size of a near branch: that of its target.
fn branch_bits(i: &Instruction) -> u32 {
    match i.op_kind(0) {
        OpKind::NearBranch16 => 16,
        OpKind::NearBranch32 => 32,
        _ => 64,
    }
}

fn pick_loop<D: Domain, const WHAT: u8>(i: &Instruction, count: u32) -> Option<Handler<D>> {
    Some(by_wide!(branch_bits(i), W => match count {
        16 => looping::<D, W, W16, WHAT>,
        32 => looping::<D, W, W32, WHAT>,
        _ => looping::<D, W, W64, WHAT>,
    }))
}

fn pick_jcxz<D: Domain>(i: &Instruction, count: u32) -> Option<Handler<D>> {
    Some(by_wide!(branch_bits(i), W => match count {
        16 => jcxz::<D, W, W16>,
        32 => jcxz::<D, W, W32>,
        _ => jcxz::<D, W, W64>,
    }))
}

/// The width of the counter of LOOP: the code says it.
fn loop_counter_bits(i: &Instruction) -> u32 {
    use iced_x86::Code as C;
    match i.code() {
        C::Loop_rel8_64_RCX | C::Loope_rel8_64_RCX | C::Loopne_rel8_64_RCX => 64,
        C::Loop_rel8_16_RCX | C::Loope_rel8_16_RCX | C::Loopne_rel8_16_RCX => 64,
        C::Loop_rel8_16_CX | C::Loope_rel8_16_CX | C::Loopne_rel8_16_CX => 16,
        C::Loop_rel8_32_CX | C::Loope_rel8_32_CX | C::Loopne_rel8_32_CX => 16,
        _ => 32,
    }
}

fn ret_bits(i: &Instruction) -> u32 {
    use iced_x86::Code;
    match i.code() {
        Code::Retnw | Code::Retnw_imm16 => 16,
        Code::Retnd | Code::Retnd_imm16 => 32,
        _ => 64,
    }
}

fn lower_conditional<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    fork(match i.mnemonic() {
        Mnemonic::Jcxz => pick_jcxz::<D>(i, 16)?,
        Mnemonic::Jecxz => pick_jcxz::<D>(i, 32)?,
        Mnemonic::Jrcxz => pick_jcxz::<D>(i, 64)?,
        _ if i.is_jcc_short_or_near() => {
            let cc = condition_number(i)?;
            by_wide!(branch_bits(i), W => by_condition!(cc, CC => jcc::<D, W, CC>))
        }
        _ => return None,
    })
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    let near =
        s.first == Kind::Imm && !matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
    end(match i.mnemonic() {
        Mnemonic::Jmp if near => by_wide!(branch_bits(i), W => jmp::<D, W>),
        Mnemonic::Call if near => by_wide!(branch_bits(i), W => call::<D, W>),
        Mnemonic::Jmp if i.is_jmp_near_indirect() => by_wide!(s.bits, W => match s.first {
            Kind::Reg => jmp_to::<D, W, Dst>,
            _ => jmp_to::<D, W, Mem>,
        }),
        Mnemonic::Call if i.is_call_near_indirect() => by_wide!(s.bits, W => match s.first {
            Kind::Reg => call_to::<D, W, Dst>,
            _ => call_to::<D, W, Mem>,
        }),
        Mnemonic::Ret => by_wide!(ret_bits(i), W => ret::<D, W>),
        Mnemonic::Loop => pick_loop::<D, 0>(i, loop_counter_bits(i))?,
        Mnemonic::Loope => pick_loop::<D, 1>(i, loop_counter_bits(i))?,
        Mnemonic::Loopne => pick_loop::<D, 2>(i, loop_counter_bits(i))?,
        _ => return lower_conditional(i),
    })
}
