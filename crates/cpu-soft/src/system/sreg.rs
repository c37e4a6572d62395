//! MOV, PUSH and POP of segment registers, LxS, and the instructions about selectors.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::cpu::{CS, Cpu, DS, ES, FS, GS, RSP, SS, cr};
use crate::domain::{Domain, Flow, Helper, Op, W16, W32, W64, Width, helper, helpers};
use crate::flags;
use crate::lower::{Kind, Lowered, Shape, bits_of, by_wide, end, go, prefix};
use crate::system::segment::{number_of, system_type};

/// MOV from a segment register (`src`).
struct Store<W, const MEMORY: bool>(std::marker::PhantomData<W>);
impl<W: Width, const MEMORY: bool> Helper for Store<W, MEMORY> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let selector = u64::from(cpu.segment(op.src).selector);
        if MEMORY {
            return cpu.store::<W16>(op, selector);
        }
        cpu.set_reg::<W>(op.dst, selector);
        Ok(())
    }
}

/// The 16-bit source of an instruction, from register or memory.
fn source16(cpu: &mut Cpu, op: &Op, register: u8) -> Result<u16, crate::domain::Stop> {
    let value = if op.prefix & prefix::MEMORY != 0 {
        cpu.load::<W16>(op)?
    } else {
        cpu.reg::<W16>(register)
    };
    Ok(value as u16)
}

fn load(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = source16(cpu, op, op.src)?;
    cpu.load_segment(op.dst, selector)?;
    if op.dst == SS {
        cpu.shadow = true;
    }
    cpu.rip = cpu.next_ip_of(op);
    Err(crate::domain::Stop::Branch)
}

struct Push<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for Push<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let selector = u64::from(cpu.segment(op.dst).selector);
        if W::BITS == 32 {
            // Only the low half is written (as processors do).
            let sp = cpu.get(RSP).wrapping_sub(4);
            let linear = cpu.stack_linear(sp, 4, true)?;
            cpu.store_linear::<W16>(linear, selector)?;
            cpu.set_stack(sp);
            return Ok(());
        }
        cpu.push_value::<W>(selector)
    }
}

struct Pop<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for Pop<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let selector = cpu.peek_value::<W>(0)? as u16;
        cpu.attempt(|cpu| {
            cpu.drop_stack(W::BYTES);
            cpu.load_segment(op.dst, selector)
        })?;
        if op.dst == SS {
            cpu.shadow = true;
        }
        cpu.rip = cpu.next_ip_of(op);
        Err(crate::domain::Stop::Branch)
    }
}

/// LDS and its relatives: `aux` is the segment register.
struct LoadFar<W, const SEG: u8>(std::marker::PhantomData<W>);
impl<W: Width, const SEG: u8> Helper for LoadFar<W, SEG> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let offset = cpu.load_at::<W>(op, 0)?;
        let selector = cpu.load_at::<W16>(op, W::BYTES)? as u16;
        cpu.load_segment(SEG, selector)?;
        cpu.set_reg::<W>(op.dst, offset);
        cpu.rip = cpu.next_ip_of(op);
        Err(crate::domain::Stop::Branch)
    }
}

fn privileged(cpu: &mut Cpu) -> Flow {
    if !cpu.protected() || cpu.v86() {
        return Err(cpu.ud());
    }
    if cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

/// SLDT, STR: a selector into a register of `W` or 16 bits of memory.
fn store_selector(cpu: &mut Cpu, op: &Op, selector: u16) -> Flow {
    if !cpu.protected() || cpu.v86() {
        return Err(cpu.ud());
    }
    if cpu.system.cr4 & cr::CR4_UMIP != 0 && cpu.cpl > 0 {
        return Err(cpu.gp(0));
    }
    let value = u64::from(selector);
    if op.prefix & prefix::MEMORY != 0 {
        return cpu.store::<W16>(op, value);
    }
    match op.prefix >> prefix::SIZE_SHIFT {
        2 => cpu.set_reg::<W16>(op.dst, value),
        4 => cpu.set_reg::<W32>(op.dst, value),
        _ => cpu.set_reg::<W64>(op.dst, value),
    }
    Ok(())
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    cpu.flags = flags::with_zf(cpu, cpu.flags, zf);
}

fn verify(cpu: &mut Cpu, op: &Op, write: bool) -> Flow {
    if !cpu.protected() || cpu.v86() {
        return Err(cpu.ud());
    }
    let selector = source16(cpu, op, op.dst)?;
    let good = cpu.verifies(selector, write)?;
    set_zf(cpu, good);
    Ok(())
}

/// LAR (rights) and LSL (limit).
struct Inspect<W, const LIMIT: bool>(std::marker::PhantomData<W>);
impl<W: Width, const LIMIT: bool> Helper for Inspect<W, LIMIT> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        if !cpu.protected() || cpu.v86() {
            return Err(cpu.ud());
        }
        let selector = source16(cpu, op, op.src)?;
        let long = cpu.long_mode();
        let found = cpu.visible_descriptor(selector)?.filter(|descriptor| {
            let kind = descriptor.kind();
            let tss = matches!(
                kind,
                system_type::TSS32 | system_type::TSS32_BUSY | system_type::LDT
            );
            let tss16 = matches!(kind, system_type::TSS16 | system_type::TSS16_BUSY);
            let gate = kind == system_type::CALL_GATE32
                || (!long && matches!(kind, system_type::CALL_GATE16 | system_type::TASK_GATE));
            descriptor.code_or_data() || tss || (!long && tss16) || (!LIMIT && gate)
        });
        if let Some(descriptor) = found {
            let value = if LIMIT {
                u64::from(descriptor.segment(selector).limit)
            } else {
                (descriptor.raw >> 32) & 0x00ff_ff00
            };
            cpu.set_reg::<W>(op.dst, value);
        }
        set_zf(cpu, found.is_some());
        Ok(())
    }
}

helpers! {
    Load => |cpu, op| load(cpu, op),
    Sldt => |cpu, op| store_selector(cpu, op, cpu.system.ldtr.selector),
    Str => |cpu, op| store_selector(cpu, op, cpu.system.tr.selector),
    Lldt => |cpu, op| {
        privileged(cpu)?;
        let selector = source16(cpu, op, op.dst)?;
        cpu.load_ldtr(selector)
    },
    Ltr => |cpu, op| {
        privileged(cpu)?;
        let selector = source16(cpu, op, op.dst)?;
        cpu.load_tr(selector)
    },
    Verr => |cpu, op| verify(cpu, op, false),
    Verw => |cpu, op| verify(cpu, op, true),
    Arpl => |cpu, op| {
        if !cpu.protected() || cpu.v86() {
            return Err(cpu.ud());
        }
        let wanted = cpu.reg::<W16>(op.src) & 3;
        let adjust = |v: u64| if v & 3 < wanted { ((v & !3) | wanted, true) } else { (v, false) };
        let changed = if op.prefix & prefix::MEMORY != 0 {
            cpu.update::<W16, _>(op, false, 0, |_, v| adjust(v))?
        } else {
            let (value, changed) = adjust(cpu.reg::<W16>(op.dst));
            cpu.set_reg::<W16>(op.dst, value);
            changed
        };
        set_zf(cpu, changed);
        Ok(())
    },
}

fn pick_far<D: Domain, const SEG: u8>(s: &Shape) -> Option<Lowered<D>> {
    end(by_wide!(s.bits, W => helper::<D, LoadFar<W, SEG>>))
}

fn lower_mov<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    if s.first == Kind::Reg
        && let Some(seg) = number_of(i.op0_register())
    {
        // MOV to CS does not exist.
        return if seg == CS {
            None
        } else {
            end(helper::<D, Load>)
        };
    }
    number_of(i.op1_register())?;
    if s.first == Kind::Mem {
        return go(helper::<D, Store<W16, true>>);
    }
    go(by_wide!(s.bits, W => helper::<D, Store<W, false>>))
}

fn lower_stack<D: Domain>(i: &Instruction) -> Option<Lowered<D>> {
    let seg = number_of(i.op0_register())?;
    let push = i.mnemonic() == Mnemonic::Push;
    let bits = match i.code() {
        Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_FS
        | Code::Pushw_GS
        | Code::Popw_ES
        | Code::Popw_CS
        | Code::Popw_SS
        | Code::Popw_DS
        | Code::Popw_FS
        | Code::Popw_GS => 16,
        Code::Pushd_ES
        | Code::Pushd_CS
        | Code::Pushd_SS
        | Code::Pushd_DS
        | Code::Pushd_FS
        | Code::Pushd_GS
        | Code::Popd_ES
        | Code::Popd_SS
        | Code::Popd_DS
        | Code::Popd_FS
        | Code::Popd_GS => 32,
        _ => 64,
    };
    if !push && seg == CS {
        return None;
    }
    if push {
        return go(by_wide!(bits, W => helper::<D, Push<W>>));
    }
    end(by_wide!(bits, W => helper::<D, Pop<W>>))
}

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    match i.mnemonic() {
        Mnemonic::Mov => lower_mov(i, s),
        Mnemonic::Push | Mnemonic::Pop => lower_stack(i),
        Mnemonic::Lds => pick_far::<D, DS>(s),
        Mnemonic::Les => pick_far::<D, ES>(s),
        Mnemonic::Lss => pick_far::<D, SS>(s),
        Mnemonic::Lfs => pick_far::<D, FS>(s),
        Mnemonic::Lgs => pick_far::<D, GS>(s),
        Mnemonic::Sldt => go(helper::<D, Sldt>),
        Mnemonic::Str => go(helper::<D, Str>),
        Mnemonic::Lldt => end(helper::<D, Lldt>),
        Mnemonic::Ltr => end(helper::<D, Ltr>),
        Mnemonic::Verr => go(helper::<D, Verr>),
        Mnemonic::Verw => go(helper::<D, Verw>),
        Mnemonic::Arpl => go(helper::<D, Arpl>),
        Mnemonic::Lar => go(by_wide!(bits_of(i, 0), W => helper::<D, Inspect<W, false>>)),
        Mnemonic::Lsl => go(by_wide!(bits_of(i, 0), W => helper::<D, Inspect<W, true>>)),
        _ => None,
    }
}
