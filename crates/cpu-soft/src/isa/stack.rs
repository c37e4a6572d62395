//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::cpu::{Cpu, RBP, RSP};
use crate::domain::{Domain, Flow, Handler, Helper, Op, W16, W32, W64, Width, helper};
use crate::flags::bit;
use crate::lower::{Dst, Imm, Kind, Lowered, Mem, Place, Shape, by_wide, end, go};

fn push<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let v = P::get::<D, W>(d, op)?;
    d.push::<W>(v)
}

fn pop<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let v = d.peek::<W>()?;
    let bytes = d.lit(W::BYTES);
    d.drop_stack(bytes);
    d.set_reg::<W>(op.dst, v);
    Ok(())
}

/// POP to memory: an address that uses RSP uses it as it is after the pop.
struct PopMemory<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for PopMemory<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let v = cpu.peek_value::<W>(0)?;
        let before = cpu.get(RSP);
        cpu.drop_stack(W::BYTES);
        let stored = cpu.store::<W>(op, v);
        if stored.is_err() {
            cpu.put(RSP, before);
        }
        stored
    }
}

struct PushFlags<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for PushFlags<W> {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        if cpu.v86() && cpu.iopl() < 3 {
            return Err(cpu.gp(0));
        }
        // VM and RF are pushed as zero.
        let v = cpu.rflags() & !(bit::VM | bit::RF);
        cpu.push_value::<W>(v)
    }
}

struct PopFlags<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for PopFlags<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        if cpu.v86() && cpu.iopl() < 3 {
            return Err(cpu.gp(0));
        }
        let v = cpu.peek_value::<W>(0)?;
        let mut mask = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
        if cpu.cpl == 0 {
            mask |= bit::IOPL;
        }
        if cpu.cpl <= cpu.iopl() {
            mask |= bit::IF;
        }
        if W::BITS == 16 {
            mask &= 0xffff;
        }
        cpu.drop_stack(W::BYTES);
        cpu.set_rflags(v & !bit::RF, mask | bit::RF);
        cpu.rip = cpu.next_ip_of(op);
        Err(crate::domain::Stop::Branch)
    }
}

struct PushAll<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for PushAll<W> {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        let before = cpu.get(RSP);
        // All or nothing: the last address is checked first, and the rest is the same stack.
        let lowest = before.wrapping_sub(W::BYTES * 8);
        let linear = cpu.stack_linear(lowest, W::BYTES, true)?;
        cpu.probe_write(linear, W::BYTES, cpu.data_kind)?;
        for number in 0..8 {
            let v = if number == RSP {
                before
            } else {
                cpu.get(number)
            };
            if let Err(stop) = cpu.push_value::<W>(v & W::MASK) {
                cpu.put(RSP, before);
                return Err(stop);
            }
        }
        Ok(())
    }
}

struct PopAll<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for PopAll<W> {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        let mut values = [0; 8];
        for (slot, value) in (0_u64..).zip(values.iter_mut()) {
            *value = cpu.peek_value::<W>(slot * W::BYTES)?;
        }
        for (slot, value) in (0_u8..).zip(values) {
            let number = 7 - slot;
            if number != RSP {
                cpu.set_reg::<W>(number, value);
            }
        }
        cpu.drop_stack(W::BYTES * 8);
        Ok(())
    }
}

/// ENTER: `imm` is the size of the frame, `aux` the nesting level.
struct Enter<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for Enter<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let level = u64::from(op.aux & 31);
        let before = cpu.get(RSP);
        let undo = |cpu: &mut Cpu, stop| {
            cpu.put(RSP, before);
            Err(stop)
        };
        let old = cpu.reg::<W>(RBP);
        if let Err(stop) = cpu.push_value::<W>(old) {
            return undo(cpu, stop);
        }
        let frame = cpu.get(RSP);
        for number in 1..level {
            let from = cpu.get(RBP).wrapping_sub(W::BYTES * number);
            let value = match cpu.stack_linear(from, W::BYTES, false) {
                Ok(linear) => cpu.load_linear::<W>(linear),
                Err(stop) => Err(stop),
            };
            let pushed = value.and_then(|value| cpu.push_value::<W>(value));
            if let Err(stop) = pushed {
                let stop = cpu.stack_stop(stop);
                return undo(cpu, stop);
            }
        }
        if level > 0
            && let Err(stop) = cpu.push_value::<W>(frame & W::MASK)
        {
            return undo(cpu, stop);
        }
        let sp = cpu.get(RSP).wrapping_sub(op.imm & 0xffff);
        // A frame that cannot be written faults here (Intel SDM, ENTER).
        let checked = match cpu.stack_linear(sp, W::BYTES, true) {
            Ok(linear) => cpu.probe_write(linear, W::BYTES, cpu.data_kind),
            Err(stop) => Err(stop),
        };
        if let Err(stop) = checked {
            let stop = cpu.stack_stop(stop);
            return undo(cpu, stop);
        }
        cpu.set_stack(sp);
        cpu.set_reg::<W>(RBP, frame);
        Ok(())
    }
}

struct Leave<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for Leave<W> {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        let sp = cpu.get(RBP);
        let linear = cpu.stack_linear(sp, W::BYTES, false)?;
        let v = match cpu.load_linear::<W>(linear) {
            Ok(v) => v,
            Err(stop) => return Err(cpu.stack_stop(stop)),
        };
        let sp = sp.wrapping_add(W::BYTES);
        if cpu.flat_stack {
            cpu.put(RSP, sp);
        } else {
            cpu.set_stack(sp);
        }
        cpu.set_reg::<W>(RBP, v);
        Ok(())
    }
}

fn push_immediate_bits(i: &Instruction) -> Option<u32> {
    Some(match i.code() {
        Code::Pushw_imm8 | Code::Push_imm16 => 16,
        Code::Pushd_imm8 | Code::Pushd_imm32 => 32,
        Code::Pushq_imm8 | Code::Pushq_imm32 => 64,
        _ => return None,
    })
}

fn pick_push<D: Domain>(i: &Instruction, s: &Shape) -> Option<Handler<D>> {
    match s.first {
        Kind::Imm => {
            let bits = push_immediate_bits(i)?;
            Some(by_wide!(bits, W => push::<D, W, Imm>))
        }
        Kind::Reg if !i.op0_register().is_gpr() => None,
        Kind::Reg => Some(by_wide!(s.bits, W => push::<D, W, Dst>)),
        _ => Some(by_wide!(s.bits, W => push::<D, W, Mem>)),
    }
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        Mnemonic::Push => pick_push::<D>(i, s)?,
        Mnemonic::Pop => match s.first {
            Kind::Reg if !i.op0_register().is_gpr() => return None,
            Kind::Reg => by_wide!(s.bits, W => pop::<D, W>),
            _ => by_wide!(s.bits, W => helper::<D, PopMemory<W>>),
        },
        Mnemonic::Pushf => helper::<D, PushFlags<W16>>,
        Mnemonic::Pushfd => helper::<D, PushFlags<W32>>,
        Mnemonic::Pushfq => helper::<D, PushFlags<W64>>,
        Mnemonic::Popf => return end(helper::<D, PopFlags<W16>>),
        Mnemonic::Popfd => return end(helper::<D, PopFlags<W32>>),
        Mnemonic::Popfq => return end(helper::<D, PopFlags<W64>>),
        Mnemonic::Pusha => helper::<D, PushAll<W16>>,
        Mnemonic::Pushad => helper::<D, PushAll<W32>>,
        Mnemonic::Popa => helper::<D, PopAll<W16>>,
        Mnemonic::Popad => helper::<D, PopAll<W32>>,
        Mnemonic::Enter => match i.code() {
            Code::Enterw_imm16_imm8 => helper::<D, Enter<W16>>,
            Code::Enterd_imm16_imm8 => helper::<D, Enter<W32>>,
            _ => helper::<D, Enter<W64>>,
        },
        Mnemonic::Leave => match i.code() {
            Code::Leavew => helper::<D, Leave<W16>>,
            Code::Leaved => helper::<D, Leave<W32>>,
            _ => helper::<D, Leave<W64>>,
        },
        _ => return None,
    })
}
