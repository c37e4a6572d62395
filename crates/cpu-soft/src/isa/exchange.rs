//! XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, RAX, RBX, RCX, RDX};
use crate::domain::{Domain, Flags, Flow, Handler, Helper, Op, Stop, W32, W64, Width, helper};
use crate::flags;
use crate::lower::{Dst, Kind, LockedMem, Lowered, Mem, Place, Shape, by_width, go, prefix};
use crate::paging::Place as Location;
use crate::tlb::Access;

/// With a register (which is not the same as the destination's: both are read first).
fn exchange_registers<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let a = d.reg::<W>(op.dst);
    let b = d.reg::<W>(op.src);
    d.set_reg::<W>(op.dst, b);
    d.set_reg::<W>(op.src, a);
    Ok(())
}

/// With memory: always locked.
fn exchange_memory<D: Domain, W: Width, const REGISTER_FIRST: bool>(d: &mut D, op: &Op) -> Flow {
    let number = if REGISTER_FIRST { op.dst } else { op.src };
    let b = d.reg::<W>(number);
    let old = LockedMem::update::<D, W, _>(d, op, |_, a| (b, a))?;
    d.set_reg::<W>(number, old);
    Ok(())
}

fn exchange_add<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let b = d.reg::<W>(op.src);
    let (old, f) = P::update::<D, W, _>(d, op, |d, a| {
        let r = d.add(a, b);
        let r = d.zext::<W>(r);
        (r, (a, flags::of_add::<D, W>(d, a, b, r)))
    })?;
    d.set_flags(f);
    // If both are the same register it gets the sum (the destination is written last).
    let sum = d.add(old, b);
    let sum = d.zext::<W>(sum);
    d.set_reg::<W>(op.src, old);
    if op.dst == op.src {
        d.set_reg::<W>(op.dst, sum);
    }
    Ok(())
}

/// With a register: the one of the two that is not written keeps its upper half too.
fn compare_exchange_register<D: Domain, W: Width>(d: &mut D, op: &Op) -> Flow {
    let wanted = d.reg::<W>(RAX);
    let new = d.reg::<W>(op.src);
    let old = d.reg::<W>(op.dst);
    let f = compare::<D, W>(d, wanted, old);
    let same = d.is_zero(f.zr);
    if W::BITS < 32 {
        let v = d.select(same, new, old);
        d.set_reg::<W>(op.dst, v);
    } else {
        let whole = d.reg::<W64>(op.dst);
        let v = d.select(same, new, whole);
        d.set_reg::<W64>(op.dst, v);
    }
    load_accumulator::<D, W>(d, same, old);
    d.set_flags(f);
    Ok(())
}

fn compare<D: Domain, W: Width>(d: &mut D, wanted: D::Val, old: D::Val) -> Flags<D::Val> {
    let r = d.sub(wanted, old);
    let r = d.zext::<W>(r);
    flags::of_sub::<D, W>(d, wanted, old, r)
}

/// The accumulator gets what was there unless it was the same: 32 bits would clear its upper
/// half.
fn load_accumulator<D: Domain, W: Width>(d: &mut D, same: D::Bit, old: D::Val) {
    let before = d.reg::<W64>(RAX);
    d.set_reg::<W>(RAX, old);
    let loaded = d.reg::<W64>(RAX);
    let v = d.select(same, before, loaded);
    d.set_reg::<W64>(RAX, v);
}

fn compare_exchange<D: Domain, W: Width, P: Place>(d: &mut D, op: &Op) -> Flow {
    let wanted = d.reg::<W>(RAX);
    let new = d.reg::<W>(op.src);
    let (old, f) = P::update::<D, W, _>(d, op, |d, a| {
        let f = compare::<D, W>(d, wanted, a);
        let same = d.is_zero(f.zr);
        (d.select(same, new, a), (a, f))
    })?;
    let same = d.is_zero(f.zr);
    load_accumulator::<D, W>(d, same, old);
    d.set_flags(f);
    Ok(())
}

/// CMPXCHG8B.
struct Exchange8;
impl Helper for Exchange8 {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let pair = |cpu: &mut Cpu, high, low| (cpu.reg::<W32>(high) << 32) | cpu.reg::<W32>(low);
        let wanted = pair(cpu, RDX, RAX);
        let new = pair(cpu, RCX, RBX);
        let locked = op.prefix & prefix::LOCK != 0;
        let old = cpu.update::<W64, _>(op, locked, 0, |_, old| {
            (if old == wanted { new } else { old }, old)
        })?;
        let same = old == wanted;
        if !same {
            cpu.set_reg::<W32>(RAX, old);
            cpu.set_reg::<W32>(RDX, old >> 32);
        }
        cpu.flags = flags::with_zf(cpu, cpu.flags, same);
        Ok(())
    }
}

/// CMPXCHG16B: the operand must be aligned to 16 bytes.
struct Exchange16;
impl Helper for Exchange16 {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let pair =
            |cpu: &Cpu, high, low| (u128::from(cpu.get(high)) << 64) | u128::from(cpu.get(low));
        let wanted = pair(cpu, RDX, RAX);
        let new = pair(cpu, RCX, RBX);
        let linear = cpu.linear_of(op, 0, 16, true)?;
        if linear & 15 != 0 {
            return Err(cpu.gp(0));
        }
        let old = exchange_16(cpu, linear, wanted, new)?;
        let same = old == wanted;
        if !same {
            cpu.put(RAX, old as u64);
            cpu.put(RDX, (old >> 64) as u64);
        }
        cpu.flags = flags::with_zf(cpu, cpu.flags, same);
        Ok(())
    }
}

fn exchange_16(cpu: &mut Cpu, linear: u64, wanted: u128, new: u128) -> Result<u128, Stop> {
    cpu.probe_write(linear, 16, cpu.data_kind)?;
    if let Location::Memory(at) = cpu.translate(linear, Access::Write, cpu.data_kind)? {
        if let Some(result) = cpu.memory.arena().compare_exchange_16(at, wanted, new) {
            cpu.memory.code_marks().after_store(at, 16);
            return Ok(result.err().unwrap_or(wanted));
        }
        // A host without the instruction.
        if !cpu.exclusive {
            return Err(Stop::Exclusive);
        }
    }
    let old = cpu.load_16(linear)?;
    cpu.store_16(linear, if old == wanted { new } else { old })?;
    Ok(old)
}

fn pick_exchange<D: Domain>(s: &Shape) -> Option<Handler<D>> {
    Some(by_width!(s.bits, W => match (s.first, s.second) {
        (Kind::Reg, Kind::Reg) => exchange_registers::<D, W>,
        (Kind::Reg, _) => exchange_memory::<D, W, true>,
        _ => exchange_memory::<D, W, false>,
    }))
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    go(match i.mnemonic() {
        Mnemonic::Xchg => pick_exchange::<D>(s)?,
        Mnemonic::Xadd => by_width!(s.bits, W => match (s.first, s.lock) {
            (Kind::Reg, _) => exchange_add::<D, W, Dst>,
            (_, false) => exchange_add::<D, W, Mem>,
            (_, true) => exchange_add::<D, W, LockedMem>,
        }),
        Mnemonic::Cmpxchg => by_width!(s.bits, W => match (s.first, s.lock) {
            (Kind::Reg, _) => compare_exchange_register::<D, W>,
            (_, false) => compare_exchange::<D, W, Mem>,
            (_, true) => compare_exchange::<D, W, LockedMem>,
        }),
        Mnemonic::Cmpxchg8b => helper::<D, Exchange8>,
        Mnemonic::Cmpxchg16b => helper::<D, Exchange16>,
        _ => return None,
    })
}
