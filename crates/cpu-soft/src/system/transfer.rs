//! Far jumps, calls and returns, IRET, SYSCALL, SYSENTER and their returns.

use iced_x86::{Code, Instruction, Mnemonic};
use vcpu::Segment;

use crate::cpu::{CS, Cpu, DS, ES, FS, GS, RCX, RDX, RSP, SS, cr, vector};
use crate::domain::{Domain, Flow, Helper, Op, Stop, W16, W32, W64, Width, helper, helpers};
use crate::flags::bit;
use crate::lower::{Lowered, Shape, by_wide, end};
use crate::system::interrupt::Origin;
use crate::system::segment::{Descriptor, code_of, null, system_type};

/// Flags that IRET and SYSRET may load at any privilege.
const LOADABLE: u64 = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::RF | bit::AC | bit::ID;

/// What SYSRET takes of R11.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

impl Cpu {
    /// A jump or call through a far pointer.
    fn far<W: Width>(&mut self, selector: u16, offset: u64, back: Option<u64>) -> Flow {
        if !self.protected() || self.v86() {
            if let Some(back) = back {
                let cs = self.segment(CS).selector;
                self.push_value::<W>(u64::from(cs))?;
                self.push_value::<W>(back)?;
            }
            if offset > u64::from(self.segment(CS).limit) {
                return Err(self.gp(0));
            }
            self.load_real(CS, selector);
            self.rip = offset;
            return Err(Stop::Branch);
        }
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let target = self.descriptor(selector, vector::GP)?;
        if target.is_code() {
            return self.far_direct::<W>(target, selector, offset, back);
        }
        let gate = match target.kind() {
            system_type::CALL_GATE32 => true,
            system_type::CALL_GATE16 => !self.long_mode(),
            _ => false,
        };
        if target.code_or_data() || !gate {
            // A TSS or a task gate: hardware task switches are not built and refused here.
            return Err(self.gp(code_of(selector)));
        }
        self.through_gate(target, selector, back)
    }

    fn far_direct<W: Width>(
        &mut self,
        target: Descriptor,
        selector: u16,
        offset: u64,
        back: Option<u64>,
    ) -> Flow {
        let rpl = (selector & 3) as u8;
        let allowed = if target.conforming() {
            target.dpl() <= self.cpl
        } else {
            rpl <= self.cpl && target.dpl() == self.cpl
        };
        if !allowed || (self.long_mode() && target.long() && target.big()) {
            return Err(self.gp(code_of(selector)));
        }
        if !target.present() {
            return Err(self.raise(vector::NP, Some(code_of(selector))));
        }
        if let Some(back) = back {
            let cs = self.segment(CS).selector;
            self.push_value::<W>(u64::from(cs))?;
            self.push_value::<W>(back)?;
        }
        self.set_code(target, selector, self.cpl)?;
        self.refresh();
        self.land(offset)
    }

    /// Continues at an offset of the new CS.
    fn land(&mut self, offset: u64) -> Flow {
        let good = if self.is64() {
            self.canonical(offset)
        } else {
            offset <= u64::from(self.segment(CS).limit)
        };
        if !good {
            return Err(self.gp(0));
        }
        self.rip = offset;
        Err(Stop::Branch)
    }

    fn through_gate(&mut self, gate: Descriptor, selector: u16, back: Option<u64>) -> Flow {
        let rpl = (selector & 3) as u8;
        if gate.dpl() < self.cpl || gate.dpl() < rpl {
            return Err(self.gp(code_of(selector)));
        }
        if !gate.present() {
            return Err(self.raise(vector::NP, Some(code_of(selector))));
        }
        let wide = gate.kind() == system_type::CALL_GATE32;
        let code_selector = (gate.raw >> 16) as u16;
        let mut offset = gate.raw & 0xffff;
        if wide {
            offset |= (gate.raw >> 32) & 0xffff_0000;
        }
        if self.long_mode() {
            let upper = self.upper_half(selector)?;
            offset |= (upper & 0xffff_ffff) << 32;
        }
        if code_selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let code = self.descriptor(code_selector, vector::GP)?;
        let bad_long = self.long_mode() && (!code.long() || code.big());
        // A jump does not change the privilege.
        let inner_jump = back.is_none() && !code.conforming() && code.dpl() != self.cpl;
        if !code.is_code() || code.dpl() > self.cpl || bad_long || inner_jump {
            return Err(self.gp(code_of(code_selector)));
        }
        if !code.present() {
            return Err(self.raise(vector::NP, Some(code_of(code_selector))));
        }
        self.enter_gate(gate, wide, (code, code_selector), offset, back)
    }

    /// The second half of a call gate: everything about the target is checked.
    fn enter_gate(
        &mut self,
        gate: Descriptor,
        wide: bool,
        (code, code_selector): (Descriptor, u16),
        offset: u64,
        back: Option<u64>,
    ) -> Flow {
        let more = back.is_some() && !code.conforming() && code.dpl() < self.cpl;
        let cpl = if more { code.dpl() } else { self.cpl };
        let old = (
            self.segment(SS).selector,
            self.get(RSP),
            self.segment(CS).selector,
        );
        let parameters = if self.long_mode() {
            0
        } else {
            (gate.raw >> 32) & 31
        };
        let mut copied = Vec::new();
        if more {
            for slot in 0..parameters {
                copied.push(if wide {
                    self.peek_value::<W32>(slot * 4)?
                } else {
                    self.peek_value::<W16>(slot * 2)?
                });
            }
            self.gate_stack(cpl)?;
        }
        self.set_code(code, code_selector, cpl)?;
        self.refresh();
        if more {
            self.push_gate(wide, u64::from(old.0))?;
            self.push_gate(wide, old.1)?;
            for value in copied.into_iter().rev() {
                self.push_gate(wide, value)?;
            }
        }
        if let Some(back) = back {
            self.push_gate(wide, u64::from(old.2))?;
            self.push_gate(wide, back)?;
        }
        self.land(offset)
    }

    fn gate_stack(&mut self, cpl: u8) -> Flow {
        if self.long_mode() {
            let sp = self.tss64(u64::from(cpl))?;
            let new = Segment {
                dpl: cpl,
                ..null(u16::from(cpl))
            };
            self.set_segment(SS, new);
            self.put(RSP, sp);
            return Ok(());
        }
        let (selector, sp) = self.tss_stack(cpl)?;
        let new = self.stack_segment(selector, cpl, vector::TS)?;
        self.set_segment(SS, new);
        self.refresh();
        self.set_stack(sp);
        Ok(())
    }

    fn push_gate(&mut self, wide: bool, value: u64) -> Flow {
        match (self.long_mode(), wide) {
            (true, _) => self.push_value::<W64>(value),
            (false, true) => self.push_value::<W32>(value & 0xffff_ffff),
            (false, false) => self.push_value::<W16>(value & 0xffff),
        }
    }

    /// RETF and the protected part of IRET: `slot` values of `W` from the stack are IP and CS
    /// (and flags, for IRET); behind them, for a return to another level, SP and SS.
    fn return_to<W: Width>(
        &mut self,
        ip: u64,
        selector: u16,
        above: u64,
        release: u64,
        always_stack: bool,
    ) -> Flow {
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let rpl = (selector & 3) as u8;
        let code = self.descriptor(selector, vector::GP)?;
        let level = if code.conforming() {
            code.dpl() <= rpl
        } else {
            code.dpl() == rpl
        };
        let bad_long = self.long_mode() && code.long() && code.big();
        if !code.is_code() || rpl < self.cpl || !level || bad_long {
            return Err(self.gp(code_of(selector)));
        }
        if !code.present() {
            return Err(self.raise(vector::NP, Some(code_of(selector))));
        }
        let outer = rpl > self.cpl;
        if !outer && !always_stack {
            let sp = self.get(RSP).wrapping_add(above + release);
            self.set_stack(sp);
            self.set_code(code, selector, rpl)?;
            self.refresh();
            return self.land(ip);
        }
        let new_sp = self.peek_value::<W>(above + release)?;
        let new_ss = self.peek_value::<W>(above + release + W::BYTES)? as u16;
        // Whether null is a stack segment depends on the mode that is returned to.
        let to_64 = self.long_mode() && code.long();
        let stack = if new_ss & !3 == 0 && to_64 && rpl < 3 && (new_ss & 3) as u8 == rpl {
            Segment {
                dpl: rpl,
                ..null(new_ss)
            }
        } else {
            if new_ss & !3 == 0 {
                return Err(self.gp(0));
            }
            self.stack_segment(new_ss, rpl, vector::GP)?
        };
        self.set_code(code, selector, rpl)?;
        self.set_segment(SS, stack);
        self.refresh();
        self.put(RSP, if to_64 { new_sp } else { self.get(RSP) });
        if !to_64 {
            self.set_stack(new_sp);
        }
        if outer {
            if release != 0 {
                let sp = self.get(RSP).wrapping_add(release);
                self.set_stack(sp);
            }
            self.drop_privileged_segments();
        }
        self.land(ip)
    }

    fn retf<W: Width>(&mut self, release: u64) -> Flow {
        let ip = self.peek_value::<W>(0)?;
        let selector = self.peek_value::<W>(W::BYTES)? as u16;
        if !self.protected() || self.v86() {
            let sp = self.get(RSP).wrapping_add(W::BYTES * 2 + release);
            self.set_stack(sp);
            self.load_real(CS, selector);
            return self.land(ip);
        }
        self.return_to::<W>(ip, selector, W::BYTES * 2, release, false)
    }

    fn iret<W: Width>(&mut self) -> Flow {
        if self.v86() && self.iopl() < 3 {
            return Err(self.gp(0));
        }
        if self.protected() && !self.v86() && self.sysflags & bit::NT != 0 {
            // A return to another task: hardware task switches are not built.
            return Err(self.gp(0));
        }
        let ip = self.peek_value::<W>(0)?;
        let selector = self.peek_value::<W>(W::BYTES)? as u16;
        let flags = self.peek_value::<W>(W::BYTES * 2)?;
        let mut mask = LOADABLE;
        if W::BITS == 16 {
            mask &= 0xffff;
        }
        if !self.protected() || self.v86() {
            let sp = self.get(RSP).wrapping_add(W::BYTES * 3);
            self.set_stack(sp);
            mask |= bit::IF;
            if !self.v86() {
                mask |= bit::IOPL;
            }
            self.set_rflags(flags & !bit::RF, mask);
            self.load_real(CS, selector);
            return self.land(ip);
        }
        if !self.long_mode() && self.cpl == 0 && W::BITS == 32 && flags & bit::VM != 0 {
            return self.iret_to_v86(ip, selector, flags);
        }
        let cpl = self.cpl;
        if cpl == 0 {
            mask |= bit::IOPL;
            if W::BITS > 16 {
                mask |= bit::VIF | bit::VIP;
            }
        }
        if cpl <= self.iopl() {
            mask |= bit::IF;
        }
        let always = self.is64();
        match self.return_to::<W>(ip, selector, W::BYTES * 3, 0, always) {
            Err(Stop::Branch) => {
                self.set_rflags(flags & !bit::RF, mask);
                Err(Stop::Branch)
            }
            other => other,
        }
    }

    fn iret_to_v86(&mut self, ip: u64, selector: u16, flags: u64) -> Flow {
        let mut values = [0; 6];
        for (slot, value) in (3_u64..).zip(values.iter_mut()) {
            *value = self.peek_value::<W32>(slot * 4)?;
        }
        let [sp, ss, es, ds, fs, gs] = values;
        self.set_rflags(
            flags & !bit::RF,
            LOADABLE | bit::IF | bit::IOPL | bit::VM | bit::VIF | bit::VIP,
        );
        for (seg, value) in [(SS, ss), (ES, es), (DS, ds), (FS, fs), (GS, gs)] {
            self.load_real(seg, value as u16);
        }
        self.load_real(CS, selector);
        self.put(RSP, sp);
        self.land(ip)
    }

    /// INT3 and INTO, which virtual-8086 mode does not restrict; INT1, which is not bound by the
    /// gate's DPL either.
    fn software_interrupt(&mut self, number: u8, origin: Origin, op: &Op) -> Flow {
        let before = self.rip;
        self.rip = self.next_ip_of(op);
        match self.interrupt(number, None, origin) {
            Ok(()) => Err(Stop::Branch),
            Err(stop) => {
                self.rip = before;
                Err(stop)
            }
        }
    }

    /// Flat code and stack segments, as SYSCALL and its relatives load them.
    fn flat_segments(&mut self, code: u16, stack: u16, cpl: u8, long: bool) {
        let flat = Segment {
            limit: 0xffff_ffff,
            code_or_data: true,
            dpl: cpl,
            present: true,
            granular: true,
            ..Segment::default()
        };
        self.set_segment(
            CS,
            Segment {
                selector: code,
                kind: 11,
                long,
                big: !long,
                ..flat
            },
        );
        self.set_segment(
            SS,
            Segment {
                selector: stack,
                kind: 3,
                big: true,
                ..flat
            },
        );
        self.refresh();
    }

    fn syscall(&mut self, op: &Op) -> Flow {
        if self.system.efer & cr::EFER_SCE == 0 || !self.protected() || !self.long_mode() {
            return Err(self.ud());
        }
        let back = self.next_ip_of(op);
        let from_64 = self.is64();
        let flags = self.rflags();
        self.put(RCX, back);
        self.put(11, flags & !bit::RF);
        let selector = (self.msrs.star >> 32) as u16;
        let mask = self.msrs.sfmask & 0xffff_ffff;
        self.set_rflags(flags & !mask & !bit::RF, u64::MAX);
        self.flat_segments(selector & !3, (selector & !3).wrapping_add(8), 0, true);
        self.rip = if from_64 {
            self.msrs.lstar
        } else {
            self.msrs.cstar
        };
        Err(Stop::Branch)
    }

    fn sysret(&mut self, wide: bool) -> Flow {
        if self.system.efer & cr::EFER_SCE == 0 || !self.long_mode() || !self.is64() {
            return Err(self.ud());
        }
        if self.cpl != 0 {
            return Err(self.gp(0));
        }
        let target = self.get(RCX);
        if wide && !self.canonical(target) {
            return Err(self.gp(0));
        }
        let selector = (self.msrs.star >> 48) as u16;
        let code = if wide {
            selector.wrapping_add(16)
        } else {
            selector
        } | 3;
        let flags = self.get(11);
        self.set_rflags(flags & SYSRET_FLAGS, u64::MAX);
        self.flat_segments(code, selector.wrapping_add(8) | 3, 3, wide);
        self.rip = if wide { target } else { target & 0xffff_ffff };
        Err(Stop::Branch)
    }

    fn sysenter(&mut self) -> Flow {
        if !self.protected() || self.msrs.sysenter_cs & 0xfffc == 0 {
            return Err(self.gp(0));
        }
        let selector = self.msrs.sysenter_cs as u16 & 0xfffc;
        self.sysflags &= !(bit::VM | bit::IF | bit::RF);
        let long = self.long_mode();
        self.flat_segments(selector, selector.wrapping_add(8), 0, long);
        let cut = if long { u64::MAX } else { 0xffff_ffff };
        self.put(RSP, self.msrs.sysenter_esp & cut);
        self.rip = self.msrs.sysenter_eip & cut;
        Err(Stop::Branch)
    }

    fn sysexit(&mut self, wide: bool) -> Flow {
        if !self.protected() || self.cpl != 0 || self.msrs.sysenter_cs & 0xfffc == 0 {
            return Err(self.gp(0));
        }
        let selector = self.msrs.sysenter_cs as u16 & 0xfffc;
        let (ip, sp) = (self.get(RDX), self.get(RCX));
        if wide && !(self.canonical(ip) && self.canonical(sp)) {
            return Err(self.gp(0));
        }
        let (code, stack) = if wide { (32, 40) } else { (16, 24) };
        self.flat_segments(
            selector.wrapping_add(code) | 3,
            selector.wrapping_add(stack) | 3,
            3,
            wide,
        );
        let cut = if wide { u64::MAX } else { 0xffff_ffff };
        self.put(RSP, sp & cut);
        self.rip = ip & cut;
        Err(Stop::Branch)
    }
}

/// A far pointer in the instruction. `CALL`: a call.
struct FarImmediate<W, const CALL: bool>(std::marker::PhantomData<W>);
impl<W: Width, const CALL: bool> Helper for FarImmediate<W, CALL> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let back = CALL.then(|| cpu.next_ip_of(op));
        let (selector, offset) = ((op.imm >> 32) as u16, op.imm & 0xffff_ffff);
        cpu.attempt(|cpu| cpu.far::<W>(selector, offset, back))
    }
}

/// A far pointer in memory.
struct FarMemory<W, const CALL: bool>(std::marker::PhantomData<W>);
impl<W: Width, const CALL: bool> Helper for FarMemory<W, CALL> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        let back = CALL.then(|| cpu.next_ip_of(op));
        let offset = cpu.load_at::<W>(op, 0)?;
        let selector = cpu.load_at::<W16>(op, W::BYTES)? as u16;
        cpu.attempt(|cpu| cpu.far::<W>(selector, offset, back))
    }
}

struct RetFar<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for RetFar<W> {
    fn run(cpu: &mut Cpu, op: &Op) -> Flow {
        cpu.attempt(|cpu| cpu.retf::<W>(op.imm & 0xffff))
    }
}

struct Iret<W>(std::marker::PhantomData<W>);
impl<W: Width> Helper for Iret<W> {
    fn run(cpu: &mut Cpu, _: &Op) -> Flow {
        let result = cpu.attempt(Cpu::iret::<W>);
        // Also if it faults (Intel SDM 3, "Handling Multiple NMIs").
        if matches!(result, Err(Stop::Branch | Stop::Fault)) {
            cpu.nmi_masked = false;
        }
        result
    }
}

helpers! {
    Int => |cpu, op| {
        if cpu.v86() && cpu.iopl() < 3 {
            return Err(cpu.gp(0));
        }
        cpu.software_interrupt(op.imm as u8, Origin::Software, op)
    },
    Int3 => |cpu, op| cpu.software_interrupt(vector::BP, Origin::Software, op),
    Int1 => |cpu, op| cpu.software_interrupt(vector::DB, Origin::Exception, op),
    Into => |cpu, op| {
        if cpu.rflags() & bit::OF != 0 {
            return cpu.software_interrupt(vector::OF, Origin::Software, op);
        }
        Ok(())
    },
    Syscall => |cpu, op| cpu.syscall(op),
    Sysret => |cpu, _| cpu.sysret(false),
    SysretWide => |cpu, _| cpu.sysret(true),
    Sysenter => |cpu, _| cpu.sysenter(),
    Sysexit => |cpu, _| cpu.sysexit(false),
    SysexitWide => |cpu, _| cpu.sysexit(true),
}

/// Operand size of a far transfer through memory: that of the pointer less its selector.
fn far_bits(i: &Instruction) -> u32 {
    match i.memory_size().size() {
        4 => 16,
        6 => 32,
        _ => 64,
    }
}

pub(crate) fn lower<D: Domain>(i: &Instruction, _: &Shape) -> Option<Lowered<D>> {
    end(match i.code() {
        Code::Jmp_ptr1616 => helper::<D, FarImmediate<W16, false>>,
        Code::Jmp_ptr1632 => helper::<D, FarImmediate<W32, false>>,
        Code::Call_ptr1616 => helper::<D, FarImmediate<W16, true>>,
        Code::Call_ptr1632 => helper::<D, FarImmediate<W32, true>>,
        Code::Retfw | Code::Retfw_imm16 => helper::<D, RetFar<W16>>,
        Code::Retfd | Code::Retfd_imm16 => helper::<D, RetFar<W32>>,
        Code::Retfq | Code::Retfq_imm16 => helper::<D, RetFar<W64>>,
        Code::Iretw => helper::<D, Iret<W16>>,
        Code::Iretd => helper::<D, Iret<W32>>,
        Code::Iretq => helper::<D, Iret<W64>>,
        Code::Sysretd => helper::<D, Sysret>,
        Code::Sysretq => helper::<D, SysretWide>,
        Code::Sysexitd => helper::<D, Sysexit>,
        Code::Sysexitq => helper::<D, SysexitWide>,
        _ => match i.mnemonic() {
            Mnemonic::Jmp if i.is_jmp_far_indirect() => {
                by_wide!(far_bits(i), W => helper::<D, FarMemory<W, false>>)
            }
            Mnemonic::Call if i.is_call_far_indirect() => {
                by_wide!(far_bits(i), W => helper::<D, FarMemory<W, true>>)
            }
            Mnemonic::Int => helper::<D, Int>,
            Mnemonic::Int3 => helper::<D, Int3>,
            Mnemonic::Int1 => helper::<D, Int1>,
            Mnemonic::Into => helper::<D, Into>,
            Mnemonic::Syscall => helper::<D, Syscall>,
            Mnemonic::Sysenter => helper::<D, Sysenter>,
            _ => return None,
        },
    })
}
