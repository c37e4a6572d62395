//! The model of far transfers: what descriptors, gates and frames give, from the Intel SDM's
//! operation sections of JMP, CALL, RET, IRET and INT.

use vcpu::VcpuState;

use super::STACK;
use super::machine::{INNER_STACK, Mode};

pub const GP: u64 = 13;
pub const NP: u64 = 11;
pub const SS: u64 = 12;

pub type Fault = (u64, u64);

#[derive(Debug, Clone, Copy)]
pub struct Descriptor(pub u64);

impl Descriptor {
    pub fn kind(self) -> u64 {
        self.0 >> 40 & 15
    }
    pub fn is_code(self) -> bool {
        self.0 >> 43 & 3 == 3
    }
    pub fn is_writable(self) -> bool {
        self.0 >> 43 & 3 == 2 && self.0 >> 41 & 1 != 0
    }
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.0 >> 42 & 1 != 0
    }
    pub fn is_system(self) -> bool {
        self.0 >> 44 & 1 == 0
    }
    pub fn dpl(self) -> u64 {
        self.0 >> 45 & 3
    }
    pub fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }
    pub fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }
    pub fn big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }
    pub fn limit(self) -> u64 {
        let raw = (self.0 & 0xffff) | (self.0 >> 32 & 0xf_0000);
        if self.0 >> 55 & 1 != 0 {
            raw << 12 | 0xfff
        } else {
            raw
        }
    }
}

/// What a transfer gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// One of these.
    Faults(Vec<Fault>),
    To {
        cs: u64,
        cpl: u64,
        /// SS and the stack pointer; `None`: as before.
        stack: Option<(u64, u64)>,
        /// Values on the stack from its top, each of so many bytes.
        pushed: (u64, Vec<u64>),
    },
}

pub fn fault(vector: u64, error: u64) -> Result<Wanted, Fault> {
    Err((vector, error))
}

pub struct Case {
    pub mode: Mode,
    pub cpl: u64,
    pub table: Vec<u64>,
    pub state: VcpuState,
}

impl Case {
    pub fn lma(&self) -> bool {
        matches!(self.mode, Mode::Long | Mode::Compatibility)
    }

    pub fn descriptor(&self, selector: u64) -> Result<Descriptor, Fault> {
        let index = (selector >> 3) as usize;
        // There is no LDT.
        if selector & 4 != 0 || index >= self.table.len() {
            return Err((GP, selector & 0xfffc));
        }
        Ok(Descriptor(self.table[index]))
    }

    /// Whether code may go on at an offset of a segment.
    pub fn offset(&self, code: Descriptor, offset: u64) -> Result<(), Fault> {
        let good = if self.lma() && code.long() {
            (offset << 16) as i64 >> 16 == offset as i64
        } else {
            offset <= code.limit()
        };
        if good { Ok(()) } else { Err((GP, 0)) }
    }

    pub fn inner_stack(&self, cpl: u64) -> (u64, u64) {
        let ss = match (self.lma(), cpl) {
            (true, _) => cpl,
            (_, 0) => 0x40,
            (_, 1) => 0x61,
            _ => 0x6a,
        };
        (ss, INNER_STACK - cpl * 0x400)
    }

    /// JMP or CALL through a far pointer; `back` is what a call pushes, of `width` bytes.
    pub fn far(
        &self,
        selector: u64,
        offset: u64,
        width: u64,
        back: Option<u64>,
    ) -> Result<Wanted, Fault> {
        if selector & 0xfffc == 0 {
            return fault(GP, 0);
        }
        let error = selector & 0xfffc;
        let target = self.descriptor(selector)?;
        let rpl = selector & 3;
        if target.is_system() {
            let gate = target.kind() == 12 || (target.kind() == 4 && !self.lma());
            return if gate {
                self.gate(selector, back)
            } else {
                fault(GP, error)
            };
        }
        if !target.is_code() || (self.lma() && target.long() && target.big()) {
            return fault(GP, error);
        }
        let allowed = if target.is_conforming() {
            target.dpl() <= self.cpl
        } else {
            rpl <= self.cpl && target.dpl() == self.cpl
        };
        if !allowed {
            return fault(GP, error);
        }
        if !target.present() {
            return fault(NP, error);
        }
        self.offset(target, offset)?;
        let pushed = back.map_or(Vec::new(), |back| vec![back, self.cs()]);
        Ok(Wanted::To {
            cs: selector & !3 | self.cpl,
            cpl: self.cpl,
            stack: None,
            pushed: (width, pushed),
        })
    }

    pub fn cs(&self) -> u64 {
        u64::from(self.state.system.segments[1].selector)
    }

    pub fn gate(&self, selector: u64, back: Option<u64>) -> Result<Wanted, Fault> {
        let (error, rpl) = (selector & 0xfffc, selector & 3);
        let gate = self.descriptor(selector)?;
        if gate.dpl() < self.cpl || gate.dpl() < rpl {
            return fault(GP, error);
        }
        if !gate.present() {
            return fault(NP, error);
        }
        let mut offset = gate.0 & 0xffff;
        if gate.kind() == 12 {
            offset |= gate.0 >> 32 & 0xffff_0000;
        }
        if self.lma() {
            let Ok(upper) = self.descriptor(selector + 8) else {
                return fault(GP, error);
            };
            if upper.0 >> 40 & 0x1f != 0 {
                return fault(GP, error);
            }
            offset |= upper.0 << 32;
        }
        let selector = gate.0 >> 16 & 0xffff;
        if selector & 0xfffc == 0 {
            return fault(GP, 0);
        }
        let code = self.descriptor(selector)?;
        let error = selector & 0xfffc;
        let jump = back.is_none() && !code.is_conforming() && code.dpl() != self.cpl;
        if !code.is_code()
            || code.dpl() > self.cpl
            || jump
            || (self.lma() && (!code.long() || code.big()))
        {
            return fault(GP, error);
        }
        if !code.present() {
            return fault(NP, error);
        }
        self.offset(code, offset)?;
        let more = back.is_some() && !code.is_conforming() && code.dpl() < self.cpl;
        let cpl = if more { code.dpl() } else { self.cpl };
        let width = match (self.lma(), gate.kind()) {
            (true, _) => 8,
            (false, 12) => 4,
            _ => 2,
        };
        let mut pushed = Vec::new();
        if let Some(back) = back {
            pushed = vec![back, self.cs()];
        }
        let mut stack = None;
        if more {
            let inner = self.inner_stack(cpl);
            // Parameters are copied from the old stack, which counts from 0x100.
            let count = if self.lma() { 0 } else { gate.0 >> 32 & 31 };
            pushed.extend((0..count).map(|n| stack_value(width, n)));
            pushed.push(STACK);
            pushed.push(u64::from(self.state.system.segments[2].selector));
            stack = Some((inner.0, inner.1 - pushed.len() as u64 * width));
        }
        Ok(Wanted::To {
            cs: selector & !3 | cpl,
            cpl,
            stack,
            pushed: (width, pushed),
        })
    }

    /// What RETF and IRET have in common. `frame`: IP, CS, SP, SS.
    pub fn back(
        &self,
        frame: [u64; 4],
        pops_stack: bool,
        above: u64,
    ) -> Result<Wanted, Vec<Fault>> {
        let [ip, cs, sp, ss] = frame;
        let one = |fault: Fault| vec![fault];
        let (error, rpl) = (cs & 0xfffc, cs & 3);
        if error == 0 {
            return Err(one((GP, 0)));
        }
        let code = self.descriptor(cs).map_err(one)?;
        let level = if code.is_conforming() {
            code.dpl() <= rpl
        } else {
            code.dpl() == rpl
        };
        if !code.is_code() || rpl < self.cpl || !level || (self.lma() && code.long() && code.big())
        {
            return Err(one((GP, error)));
        }
        if !code.present() {
            return Err(one((NP, error)));
        }
        let mut faults = Vec::new();
        if let Err(fault) = self.offset(code, ip) {
            faults.push(fault);
        }
        let mut stack = Some((
            u64::from(self.state.system.segments[2].selector),
            STACK + above,
        ));
        if rpl > self.cpl || pops_stack {
            stack = Some((ss, sp));
            if let Err(fault) = self.outer_stack(ss, rpl, self.lma() && code.long()) {
                faults.push(fault);
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Wanted::To {
            cs,
            cpl: rpl,
            stack,
            pushed: (8, Vec::new()),
        })
    }

    pub fn outer_stack(&self, ss: u64, cpl: u64, to_64: bool) -> Result<(), Fault> {
        let error = ss & 0xfffc;
        if error == 0 {
            let allowed = to_64 && cpl < 3 && ss & 3 == cpl;
            return if allowed { Ok(()) } else { Err((GP, 0)) };
        }
        let stack = self.descriptor(ss)?;
        if ss & 3 != cpl || !stack.is_writable() || stack.dpl() != cpl {
            return Err((GP, error));
        }
        if stack.present() {
            Ok(())
        } else {
            Err((SS, error))
        }
    }

    /// An interrupt through the gate `gate` (and its second half). `ext`: not by INT n.
    pub fn interrupt(&self, number: u64, gate: [u64; 2], ext: u64) -> Result<Wanted, Fault> {
        let own = number * 8 + 2 + ext;
        let entry = Descriptor(gate[0]);
        let known = entry.is_system()
            && match entry.kind() {
                14 | 15 => true,
                6 | 7 => !self.lma(),
                _ => false,
            };
        if !known || (ext == 0 && entry.dpl() < self.cpl) {
            return fault(GP, own);
        }
        if !entry.present() {
            return fault(NP, own);
        }
        let selector = gate[0] >> 16 & 0xffff;
        if selector & 0xfffc == 0 {
            return fault(GP, ext);
        }
        let with_ext = |(vector, error)| (vector, error | ext);
        let code = self.descriptor(selector).map_err(with_ext)?;
        let error = selector & 0xfffc | ext;
        if !code.is_code() || code.dpl() > self.cpl || (self.lma() && (!code.long() || code.big()))
        {
            return fault(GP, error);
        }
        if !code.present() {
            return fault(NP, error);
        }
        let v86 = self.mode == Mode::Virtual86;
        if v86 && (code.is_conforming() || code.dpl() != 0) {
            return fault(GP, error);
        }
        let mut offset = gate[0] & 0xffff;
        if entry.kind() & 8 != 0 {
            offset |= gate[0] >> 32 & 0xffff_0000;
        }
        if self.lma() {
            offset |= gate[1] << 32;
        }
        self.offset(code, offset).map_err(with_ext)?;
        let cpl = if code.is_conforming() {
            self.cpl
        } else {
            code.dpl()
        };
        Ok(self.handler(entry, selector & !3 | cpl, cpl, ext))
    }

    pub fn handler(&self, entry: Descriptor, cs: u64, cpl: u64, ext: u64) -> Wanted {
        let changed = cpl < self.cpl;
        let width = match (self.lma(), entry.kind() & 8) {
            (true, _) => 8,
            (false, 8) => 4,
            _ => 2,
        };
        let s = &self.state;
        let selector = |n: usize| u64::from(s.system.segments[n].selector);
        // INT imm8 has two bytes; an interrupt from outside comes before the instruction.
        let rip = s.registers.rip + if ext == 0 { 2 } else { 0 };
        let mut pushed = vec![rip, self.cs(), s.registers.rflags];
        if changed || self.lma() {
            pushed.extend([s.registers.general[4], selector(2)]);
        }
        if self.mode == Mode::Virtual86 {
            pushed.extend([selector(0), selector(3), selector(4), selector(5)]);
        }
        let ist = if self.lma() { entry.0 >> 32 & 7 } else { 0 };
        let (mut ss, mut sp) = (selector(2), s.registers.general[4]);
        if changed {
            (ss, sp) = self.inner_stack(cpl);
        }
        if ist != 0 {
            sp = INNER_STACK - 0x1000 - ist * 0x100;
        }
        if self.lma() {
            sp &= !15;
        }
        Wanted::To {
            cs,
            cpl,
            stack: Some((ss, sp - pushed.len() as u64 * width)),
            pushed: (width, pushed),
        }
    }
}

/// What the old stack holds.
pub fn stack_value(width: u64, number: u64) -> u64 {
    let at = number * width;
    (at / 8 * 0x0101_0101_0101_0101 + 0x7766_5544_3322_1100) >> (at % 8 * 8)
}
