//! From a decoded instruction to a handler and its operands.
//!
//! [`lower`] asks the groups of `isa/` and `system/` in turn; each knows its mnemonics and picks
//! the handler for operand kinds and width. It is generic over the domain, so that a translator
//! gets the same definitions. What nobody knows is `None`, and becomes #UD.

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::CodeMode;
use crate::domain::{
    AddressKind, BLOCK_IP, Domain, HIGH_BYTE, Handler, NO_REGISTER, Op, W8, Width,
};
use crate::isa;
use crate::system;

/// Bits of [`Op::prefix`].
pub(crate) mod prefix {
    pub(crate) const REP: u8 = 1;
    pub(crate) const REPNE: u8 = 2;
    pub(crate) const LOCK: u8 = 4;
    /// The instruction has a VEX prefix, with which LOCK does not go.
    pub(crate) const VEX: u8 = 4;
    /// The operand at hand is in memory (for handlers that look at run time).
    pub(crate) const MEMORY: u8 = 8;
    /// Operand size 2, 4 or 8 bytes, for handlers that look at run time.
    pub(crate) const SIZE_SHIFT: u8 = 4;
}

/// What comes behind an instruction in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behind {
    /// The next instruction.
    Next,
    /// The next instruction, unless it branches.
    Fork,
    /// Nothing: the block ends.
    End,
}

/// A handler, and what comes behind it.
pub(crate) struct Lowered<D> {
    pub run: Handler<D>,
    pub behind: Behind,
}

/// A handler behind which the block goes on.
pub(crate) fn go<D>(run: Handler<D>) -> Option<Lowered<D>> {
    Some(Lowered {
        run,
        behind: Behind::Next,
    })
}

/// A handler that leaves its block, or goes on.
pub(crate) fn fork<D>(run: Handler<D>) -> Option<Lowered<D>> {
    Some(Lowered {
        run,
        behind: Behind::Fork,
    })
}

/// A handler that ends its block.
pub(crate) fn end<D>(run: Handler<D>) -> Option<Lowered<D>> {
    Some(Lowered {
        run,
        behind: Behind::End,
    })
}

/// What kind of operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Reg,
    Mem,
    Imm,
    None,
}

/// What the pickers look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Width of the first operand in bits.
    pub bits: u32,
    pub first: Kind,
    pub second: Kind,
    pub third: Kind,
    pub lock: bool,
}

fn kind_of(i: &Instruction, n: u32) -> Kind {
    if n >= i.op_count() {
        return Kind::None;
    }
    match i.op_kind(n) {
        OpKind::Register => Kind::Reg,
        kind if is_memory(kind) => Kind::Mem,
        _ => Kind::Imm,
    }
}

fn is_memory(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// The width of an operand in bits; 0 if it has none of its own.
pub(crate) fn bits_of(i: &Instruction, n: u32) -> u32 {
    match kind_of(i, n) {
        Kind::Reg => (i.op_register(n).size() * 8) as u32,
        Kind::Mem => (i.memory_size().size() * 8) as u32,
        Kind::Imm | Kind::None => 0,
    }
}

pub(crate) fn shape_of(i: &Instruction) -> Shape {
    Shape {
        bits: bits_of(i, 0),
        first: kind_of(i, 0),
        second: kind_of(i, 1),
        third: kind_of(i, 2),
        lock: i.has_lock_prefix(),
    }
}

/// A register's number as [`Op`] has it.
pub(crate) fn number(register: Register) -> u8 {
    match register {
        Register::None => NO_REGISTER,
        Register::AH | Register::CH | Register::DH | Register::BH => {
            register.full_register().number() as u8 | HIGH_BYTE
        }
        Register::RIP | Register::EIP => BLOCK_IP,
        _ => register.full_register().number() as u8,
    }
}

fn address_kind(i: &Instruction, mode: CodeMode) -> AddressKind {
    let mut bits = match mode {
        CodeMode::Bits16 => 16,
        CodeMode::Bits32 => 32,
        CodeMode::Bits64 => 64,
    };
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Memory => {
                let (base, index) = (i.memory_base(), i.memory_index());
                bits = if base != Register::None {
                    base.size() as u32 * 8
                } else if index != Register::None && index != Register::AL {
                    index.size() as u32 * 8
                } else {
                    i.memory_displ_size() * 8
                };
                break;
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => bits = 16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => bits = 32,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => bits = 64,
            _ => {}
        }
    }
    match (mode, bits) {
        (CodeMode::Bits64, 32) => AddressKind::Flat32,
        (CodeMode::Bits64, _) => AddressKind::Flat,
        (_, 16) => AddressKind::Legacy16,
        _ => AddressKind::Legacy32,
    }
}

/// The operands. `block_ip` is where the block begins.
pub(crate) fn operands(i: &Instruction, mode: CodeMode, block_ip: u64) -> Op {
    let mut op = Op {
        imm: 0,
        disp: 0,
        dst: NO_REGISTER,
        src: NO_REGISTER,
        aux: NO_REGISTER,
        base: NO_REGISTER,
        index: NO_REGISTER,
        scale: 0,
        seg: number(i.memory_segment()) & 7,
        addr: address_kind(i, mode),
        offset: i.ip().wrapping_sub(block_ip) as u16,
        len: i.len() as u8,
        prefix: 0,
    };
    if i.memory_segment() == Register::None {
        op.seg = 7;
    }
    let mut immediate_seen = false;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                let register = number(i.op_register(n));
                match n {
                    0 => op.dst = register,
                    1 => op.src = register,
                    2 => op.aux = register,
                    _ => op.imm = u64::from(register),
                }
            }
            OpKind::Memory => memory(i, block_ip, &mut op),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = i.near_branch_target().wrapping_sub(block_ip);
            }
            OpKind::FarBranch16 => {
                op.imm = u64::from(i.far_branch16()) | (u64::from(i.far_branch_selector()) << 32);
            }
            OpKind::FarBranch32 => {
                op.imm = u64::from(i.far_branch32()) | (u64::from(i.far_branch_selector()) << 32);
            }
            kind if is_memory(kind) => op.prefix |= prefix::MEMORY,
            _ if immediate_seen => op.aux = i.immediate(n) as u8,
            _ => {
                op.imm = i.immediate(n);
                immediate_seen = true;
            }
        }
    }
    if i.has_rep_prefix() {
        op.prefix |= prefix::REP;
    }
    if i.has_repne_prefix() {
        op.prefix |= prefix::REPNE;
    }
    if i.has_lock_prefix() {
        op.prefix |= prefix::LOCK;
    }
    if crate::sse::is_vex(i) {
        op.prefix |= prefix::VEX;
    }
    let size = match bits_of(i, 0) {
        16 => 2,
        32 => 4,
        64 => 8,
        _ => 0,
    };
    op.prefix |= size << prefix::SIZE_SHIFT;
    op
}

fn memory(i: &Instruction, block_ip: u64, op: &mut Op) {
    op.prefix |= prefix::MEMORY;
    if i.is_ip_rel_memory_operand() {
        op.base = BLOCK_IP;
        op.disp = i.memory_displacement64().wrapping_sub(block_ip) as i32;
        return;
    }
    op.base = number(i.memory_base());
    op.index = number(i.memory_index());
    op.scale = i.memory_index_scale().trailing_zeros() as u8;
    op.disp = i.memory_displacement64() as i32;
    if i.memory_displ_size() == 8 && i.memory_displacement64() != op.disp as i64 as u64 {
        // MOV with a 64-bit offset; see `isa/moves.rs`.
        op.imm = i.memory_displacement64();
    }
}

/// Finds the handler.
pub(crate) fn lower<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let s = shape_of(i);
    isa::moves::lower(i, &s)
        .or_else(|| isa::alu::lower(i, &s))
        .or_else(|| isa::branch::lower(i, &s))
        .or_else(|| isa::stack::lower(i, &s))
        .or_else(|| isa::shift::lower(i, &s))
        .or_else(|| isa::bits::lower(i, &s))
        .or_else(|| isa::muldiv::lower(i, &s))
        .or_else(|| isa::string::lower(i, &s))
        .or_else(|| isa::flag_ops::lower(i, &s))
        .or_else(|| isa::exchange::lower(i, &s))
        .or_else(|| isa::bcd::lower(i))
        .or_else(|| system::lower(i, &s))
        .or_else(|| crate::sse::lower(i, &s))
        .or_else(|| crate::fpu::lower(i))
        .or_else(|| crate::x87::lower(i))
}

/// Where an operand comes from or goes to, at compile time.
pub(crate) trait Place {
    fn get<D: Domain, W: Width>(d: &mut D, op: &Op) -> Result<D::Val, crate::domain::Stop>;
    fn put<D: Domain, W: Width>(d: &mut D, op: &Op, v: D::Val) -> crate::domain::Flow;
    fn update<D: Domain, W: Width, R>(
        d: &mut D,
        op: &Op,
        change: impl FnMut(&mut D, D::Val) -> (D::Val, R),
    ) -> Result<R, crate::domain::Stop>;
}

macro_rules! register_place {
    ($name:ident, $field:ident) => {
        /// The register that the operand field of the same name names.
        pub(crate) struct $name;
        impl Place for $name {
            #[inline(always)]
            fn get<D: Domain, W: Width>(d: &mut D, op: &Op) -> Result<D::Val, crate::domain::Stop> {
                Ok(d.reg::<W>(op.$field))
            }
            #[inline(always)]
            fn put<D: Domain, W: Width>(d: &mut D, op: &Op, v: D::Val) -> crate::domain::Flow {
                d.set_reg::<W>(op.$field, v);
                Ok(())
            }
            #[inline(always)]
            fn update<D: Domain, W: Width, R>(
                d: &mut D,
                op: &Op,
                mut change: impl FnMut(&mut D, D::Val) -> (D::Val, R),
            ) -> Result<R, crate::domain::Stop> {
                let old = d.reg::<W>(op.$field);
                let (new, result) = change(d, old);
                d.set_reg::<W>(op.$field, new);
                Ok(result)
            }
        }
    };
}

register_place!(Dst, dst);
register_place!(Src, src);
register_place!(Aux, aux);

macro_rules! memory_place {
    ($name:ident, $locked:literal) => {
        /// The memory operand.
        pub(crate) struct $name;
        impl Place for $name {
            #[inline(always)]
            fn get<D: Domain, W: Width>(d: &mut D, op: &Op) -> Result<D::Val, crate::domain::Stop> {
                d.load::<W>(op)
            }
            #[inline(always)]
            fn put<D: Domain, W: Width>(d: &mut D, op: &Op, v: D::Val) -> crate::domain::Flow {
                d.store::<W>(op, v)
            }
            #[inline(always)]
            fn update<D: Domain, W: Width, R>(
                d: &mut D,
                op: &Op,
                change: impl FnMut(&mut D, D::Val) -> (D::Val, R),
            ) -> Result<R, crate::domain::Stop> {
                let zero = d.lit(0);
                d.update::<W, R>(op, $locked, zero, change)
            }
        }
    };
}

memory_place!(Mem, false);
memory_place!(LockedMem, true);

/// The immediate.
pub(crate) struct Imm;
impl Place for Imm {
    #[inline(always)]
    fn get<D: Domain, W: Width>(d: &mut D, op: &Op) -> Result<D::Val, crate::domain::Stop> {
        Ok(d.lit(op.imm & W::MASK))
    }
    #[inline(always)]
    fn put<D: Domain, W: Width>(_: &mut D, _: &Op, _: D::Val) -> crate::domain::Flow {
        Ok(())
    }
    #[inline(always)]
    fn update<D: Domain, W: Width, R>(
        d: &mut D,
        op: &Op,
        mut change: impl FnMut(&mut D, D::Val) -> (D::Val, R),
    ) -> Result<R, crate::domain::Stop> {
        let value = d.lit(op.imm & W::MASK);
        Ok(change(d, value).1)
    }
}

/// CL.
pub(crate) struct Cl;
impl Place for Cl {
    #[inline(always)]
    fn get<D: Domain, W: Width>(d: &mut D, _: &Op) -> Result<D::Val, crate::domain::Stop> {
        Ok(d.reg::<W8>(crate::cpu::RCX))
    }
    #[inline(always)]
    fn put<D: Domain, W: Width>(_: &mut D, _: &Op, _: D::Val) -> crate::domain::Flow {
        Ok(())
    }
    #[inline(always)]
    fn update<D: Domain, W: Width, R>(
        d: &mut D,
        _: &Op,
        mut change: impl FnMut(&mut D, D::Val) -> (D::Val, R),
    ) -> Result<R, crate::domain::Stop> {
        let value = d.reg::<W8>(crate::cpu::RCX);
        Ok(change(d, value).1)
    }
}

/// `expression` with `W` as the width of `bits`; `None` for another.
macro_rules! by_width {
    ($bits:expr, $w:ident => $e:expr) => {
        match $bits {
            8 => {
                type $w = $crate::domain::W8;
                $e
            }
            bits => $crate::lower::by_wide!(bits, $w => $e),
        }
    };
}
pub(crate) use by_width;

/// As `by_width`, without 8 bits.
macro_rules! by_wide {
    ($bits:expr, $w:ident => $e:expr) => {
        match $bits {
            16 => {
                type $w = $crate::domain::W16;
                $e
            }
            32 => {
                type $w = $crate::domain::W32;
                $e
            }
            64 => {
                type $w = $crate::domain::W64;
                $e
            }
            _ => return None,
        }
    };
}
pub(crate) use by_wide;
