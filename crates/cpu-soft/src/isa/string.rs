//! MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, with REP.
//!
//! Each iteration is complete in itself: registers move on with it, so that an interrupt, a
//! fault or an exit in the middle leaves an instruction that can be started again.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, ES, RAX, RCX, RDI, RDX, RSI};
use crate::domain::{Domain, Flow, Handler, Helper, Op, Stop, Width, helper};
use crate::flags::{self, bit};
use crate::lower::{Lowered, Shape, bits_of, by_width, go, prefix};

/// One iteration; moves RSI and RDI itself.
trait Iteration {
    /// REPE and REPNE look at ZF.
    const COMPARES: bool = false;
    fn once<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow;
    /// Does up to `count` iterations at once if that is easy; says how many.
    fn many<W: Width>(_cpu: &mut Cpu, _op: &Op, _count: u64) -> u64 {
        0
    }
}

struct Repeat<I, W>(std::marker::PhantomData<(I, W)>);

/// Iterations between two looks at the attention flags.
const BATCH: u64 = 256;

impl<I: Iteration, W: Width> Helper for Repeat<I, W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        if op.prefix & (prefix::REP | prefix::REPNE) == 0 {
            return I::once::<W>(cpu, op);
        }
        let mask = Cpu::address_mask(op.addr);
        let mut turns = 0;
        loop {
            let count = cpu.get(RCX) & mask;
            if count == 0 {
                return Ok(());
            }
            let done = I::many::<W>(cpu, op, count);
            if done > 0 {
                advance(cpu, RCX, done.wrapping_neg(), mask);
            } else {
                I::once::<W>(cpu, op)?;
                advance(cpu, RCX, u64::MAX, mask);
                cpu.drop_replay();
                if I::COMPARES && ends(cpu, op) {
                    return Ok(());
                }
            }
            turns += done.max(1);
            // A single step ends after one iteration; so does one that may touch code.
            let stop = turns >= BATCH && cpu.attention.pending() != 0;
            if (stop || cpu.alone) && cpu.get(RCX) & mask != 0 {
                return Err(Stop::Again);
            }
        }
    }
}

fn ends(cpu: &Cpu, op: &Op) -> bool {
    let zero = cpu.flags.zr == 0;
    if op.prefix & prefix::REPNE != 0 {
        zero
    } else {
        !zero
    }
}

/// Adds to a register as wide as addresses are.
fn advance(cpu: &mut Cpu, number: u8, by: u64, mask: u64) {
    let old = cpu.get(number);
    let new = old.wrapping_add(by) & mask;
    cpu.put(
        number,
        if mask == 0xffff {
            (old & !mask) | new
        } else {
            new
        },
    );
}

fn step<W: Width>(cpu: &Cpu) -> u64 {
    if cpu.sysflags & bit::DF != 0 {
        W::BYTES.wrapping_neg()
    } else {
        W::BYTES
    }
}

fn source<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    let offset = cpu.get(RSI) & Cpu::address_mask(op.addr);
    let linear = cpu.implied_linear(op.seg, offset, W::BYTES, false)?;
    cpu.load_linear::<W>(linear)
}

fn destination<W: Width>(cpu: &mut Cpu, op: &Op, write: bool) -> Result<u64, Stop> {
    let offset = cpu.get(RDI) & Cpu::address_mask(op.addr);
    cpu.implied_linear(ES, offset, W::BYTES, write)
}

fn move_on<W: Width>(cpu: &mut Cpu, op: &Op, number: u8) {
    let by = step::<W>(cpu);
    advance(cpu, number, by, Cpu::address_mask(op.addr));
}

/// How many elements from `offset` upwards stay in its page and below the address mask, with
/// one to spare so that the plain way meets every fault.
fn room<W: Width>(cpu: &Cpu, op: &Op, number: u8) -> u64 {
    let mask = Cpu::address_mask(op.addr);
    let offset = cpu.get(number) & mask;
    let page_left = (0x1000 - (offset & 0xfff)) / W::BYTES;
    let mask_left = (mask - offset) / W::BYTES;
    page_left.min(mask_left)
}

struct Movs;
impl Iteration for Movs {
    fn once<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
        let v = source::<W>(cpu, op)?;
        let to = destination::<W>(cpu, op, true)?;
        cpu.store_linear::<W>(to, v)?;
        move_on::<W>(cpu, op, RSI);
        move_on::<W>(cpu, op, RDI);
        Ok(())
    }

    /// Upwards in 64-bit mode, both operands in pages the TLB knows, no decoded code.
    fn many<W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> u64 {
        use crate::tlb::Access;
        if !cpu.is64() || cpu.sysflags & bit::DF != 0 || cpu.alone {
            return 0;
        }
        let count = count
            .min(room::<W>(cpu, op, RSI))
            .min(room::<W>(cpu, op, RDI));
        if count < 2 {
            return 0;
        }
        let mask = Cpu::address_mask(op.addr);
        let from = (cpu.get(RSI) & mask).wrapping_add(cpu.base_of(op.seg));
        let to = (cpu.get(RDI) & mask).wrapping_add(cpu.base_of(ES));
        let bytes = count * W::BYTES;
        let (Some(from), Some(to)) = (
            cpu.tlb.hit(Access::Read, from, bytes, cpu.data_kind),
            cpu.tlb.hit(Access::Write, to, bytes, cpu.data_kind),
        ) else {
            return 0;
        };
        if cpu.memory.code_marks().is_marked(to, bytes) {
            return 0;
        }
        let arena = cpu.memory.arena();
        let at = |start: guest_memory::RamOffset, n: u64| guest_memory::RamOffset(start.0 + n);
        // Words of 8 where no element can see another that this same string wrote.
        let apart = from.0.abs_diff(to.0) >= 8;
        let mut done = 0;
        if apart {
            while done + 8 <= bytes {
                arena.store::<u64>(at(to, done), arena.load(at(from, done)));
                done += 8;
            }
        }
        while done < bytes {
            arena.store::<W::Int>(at(to, done), arena.load(at(from, done)));
            done += W::BYTES;
        }
        cpu.memory.code_marks().after_store(to, bytes);
        advance(cpu, RSI, bytes, mask);
        advance(cpu, RDI, bytes, mask);
        count
    }
}

struct Stos;
impl Iteration for Stos {
    fn once<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
        let v = cpu.reg::<W>(RAX);
        let to = destination::<W>(cpu, op, true)?;
        cpu.store_linear::<W>(to, v)?;
        move_on::<W>(cpu, op, RDI);
        Ok(())
    }

    fn many<W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> u64 {
        use crate::tlb::Access;
        if !cpu.is64() || cpu.sysflags & bit::DF != 0 || cpu.alone {
            return 0;
        }
        let count = count.min(room::<W>(cpu, op, RDI));
        if count < 2 {
            return 0;
        }
        let mask = Cpu::address_mask(op.addr);
        let to = (cpu.get(RDI) & mask).wrapping_add(cpu.base_of(ES));
        let bytes = count * W::BYTES;
        let Some(to) = cpu.tlb.hit(Access::Write, to, bytes, cpu.data_kind) else {
            return 0;
        };
        if cpu.memory.code_marks().is_marked(to, bytes) {
            return 0;
        }
        let value = W::int(cpu.get(RAX));
        let arena = cpu.memory.arena();
        let mut done = 0;
        while done < bytes {
            arena.store(guest_memory::RamOffset(to.0 + done), value);
            done += W::BYTES;
        }
        cpu.memory.code_marks().after_store(to, bytes);
        advance(cpu, RDI, bytes, mask);
        count
    }
}

struct Lods;
impl Iteration for Lods {
    fn once<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
        let v = source::<W>(cpu, op)?;
        cpu.set_reg::<W>(RAX, v);
        move_on::<W>(cpu, op, RSI);
        Ok(())
    }
}

fn compare<W: Width>(cpu: &mut Cpu, a: u64, b: u64) {
    let r = a.wrapping_sub(b) & W::MASK;
    cpu.flags = flags::of_sub::<Cpu, W>(cpu, a, b, r);
}

struct Cmps;
impl Iteration for Cmps {
    const COMPARES: bool = true;
    fn once<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
        let a = source::<W>(cpu, op)?;
        let at = destination::<W>(cpu, op, false)?;
        let b = cpu.load_linear::<W>(at)?;
        compare::<W>(cpu, a, b);
        move_on::<W>(cpu, op, RSI);
        move_on::<W>(cpu, op, RDI);
        Ok(())
    }
}

struct Scas;
impl Iteration for Scas {
    const COMPARES: bool = true;
    fn once<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
        let at = destination::<W>(cpu, op, false)?;
        let b = cpu.load_linear::<W>(at)?;
        let a = cpu.reg::<W>(RAX);
        compare::<W>(cpu, a, b);
        move_on::<W>(cpu, op, RDI);
        Ok(())
    }
}

struct Ins;
impl Iteration for Ins {
    fn once<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
        let port = cpu.get(RDX) as u16;
        cpu.check_port(port, W::BYTES as u32)?;
        // The destination is checked before the port is read, which may have effects.
        let to = destination::<W>(cpu, op, true)?;
        cpu.probe_write(to, W::BYTES, cpu.data_kind)?;
        let v = cpu.port_in(port, W::BYTES as u32)?;
        cpu.store_linear::<W>(to, v)?;
        move_on::<W>(cpu, op, RDI);
        Ok(())
    }
}

struct Outs;
impl Iteration for Outs {
    fn once<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
        let port = cpu.get(RDX) as u16;
        cpu.check_port(port, W::BYTES as u32)?;
        let v = source::<W>(cpu, op)?;
        cpu.port_out(port, W::BYTES as u32, v)?;
        move_on::<W>(cpu, op, RSI);
        Ok(())
    }
}

fn pick<D: Domain, I: Iteration>(bits: u32) -> Option<Handler<D>> {
    Some(by_width!(bits, W => helper::<D, Repeat<I, W>>))
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    if !i.is_string_instruction() {
        return None;
    }
    go(match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            pick::<D, Movs>(s.bits)?
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            pick::<D, Stos>(s.bits)?
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            pick::<D, Lods>(s.bits)?
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
            pick::<D, Cmps>(s.bits)?
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            pick::<D, Scas>(s.bits)?
        }
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => pick::<D, Ins>(s.bits)?,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => pick::<D, Outs>(bits_of(i, 1))?,
        _ => return None,
    })
}
