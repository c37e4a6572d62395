//! Delivery of interrupts and exceptions (Intel SDM 3, "Interrupt and Exception Handling").

use vcpu::Segment;

use crate::cpu::{CS, Cpu, DS, ES, FS, Fault, GS, RSP, SS, vector};
use crate::domain::{Flow, Stop, W16, W32, W64};
use crate::flags::bit;
use crate::system::segment::{code_of, null, system_type};

/// Where an interrupt comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// INT n, INT3, INTO: gates have a DPL for them.
    Software,
    /// An exception; INT1 is one in this respect.
    Exception,
    /// An interrupt from outside, or an NMI.
    External,
}

/// Whether an exception is a fault: the frame's RF then is set, so that a breakpoint at the
/// instruction does not match again (Intel SDM 3, "Instruction-Breakpoint Exception Condition").
fn is_fault(number: u8) -> bool {
    !matches!(
        number,
        vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC
    )
}

/// A gate of the IDT, checked.
struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    kind: u8,
}

/// A new stack from the TSS, or the one there is.
struct Switch {
    cpl: u8,
    changed: bool,
}

impl Cpu {
    /// Delivers an exception, and the double fault it may become. `Err`: triple fault, or the
    /// tables are where the CPU cannot read them by itself.
    pub(crate) fn deliver_fault(&mut self, first: Fault, origin: Origin) -> Result<(), ()> {
        let (mut fault, mut origin) = (first, origin);
        let mut doubled = fault.vector == vector::DF && origin == Origin::Exception;
        loop {
            if fault.vector == vector::DB && origin == Origin::Exception {
                self.system.dr7 &= !(1 << 13);
            }
            match self.interrupt(fault.vector, fault.error, origin) {
                Ok(()) => return Ok(()),
                Err(Stop::Fault) => {
                    let second = self.fault;
                    if doubled {
                        return Err(());
                    }
                    // Interrupts from outside are benign, whatever their number.
                    let is_exception = origin == Origin::Exception;
                    origin = Origin::Exception;
                    if is_exception && makes_double(fault.vector, second.vector) {
                        doubled = true;
                        fault = Fault {
                            vector: vector::DF,
                            error: Some(0),
                        };
                    } else {
                        fault = second;
                    }
                }
                Err(_) => return Err(()),
            }
        }
    }

    /// Delivers one interrupt or exception: state afterwards is that of the handler's start.
    pub(crate) fn interrupt(&mut self, number: u8, error: Option<u32>, origin: Origin) -> Flow {
        let alone = std::mem::replace(&mut self.alone, true);
        let result = self.attempt(|cpu| {
            if !cpu.protected() {
                cpu.real_interrupt(number)
            } else {
                cpu.protected_interrupt(number, error, origin)
            }
        });
        self.alone = alone;
        let selects = matches!(
            self.fault.vector,
            vector::TS | vector::NP | vector::SS | vector::GP
        );
        if result == Err(Stop::Fault) && origin != Origin::Software && selects {
            // EXT: the program did not ask for the event that met this fault.
            self.fault.error = self.fault.error.map(|error| error | 1);
        }
        result
    }

    fn real_interrupt(&mut self, number: u8) -> Flow {
        let at = u64::from(number) * 4;
        if at + 3 > u64::from(self.system.idtr.limit) {
            return Err(self.gp(u32::from(number) * 8 + 2));
        }
        let entry = self.load_system(self.system.idtr.base.wrapping_add(at), 4)?;
        let flags = self.rflags();
        self.push_value::<W16>(flags & 0xffff)?;
        self.push_value::<W16>(u64::from(self.segment(CS).selector))?;
        self.push_value::<W16>(self.rip & 0xffff)?;
        self.sysflags &= !(bit::IF | bit::TF | bit::AC | bit::RF);
        self.load_real(CS, (entry >> 16) as u16);
        self.rip = entry & 0xffff;
        Ok(())
    }

    fn gate(&mut self, number: u8, origin: Origin) -> Result<Gate, Stop> {
        let code = u32::from(number) * 8 + 2;
        let size = if self.long_mode() { 16 } else { 8 };
        let at = u64::from(number) * size;
        if at + size - 1 > u64::from(self.system.idtr.limit) {
            return Err(self.gp(code));
        }
        let at = self.system.idtr.base.wrapping_add(at);
        let raw = self.load_system(at, 8)?;
        let high = if size == 16 {
            self.load_system(at.wrapping_add(8), 8)? & 0xffff_ffff
        } else {
            0
        };
        let kind = (raw >> 40) as u8 & 0x1f;
        let known = match kind {
            system_type::INTERRUPT_GATE32 | system_type::TRAP_GATE32 => true,
            system_type::INTERRUPT_GATE16 | system_type::TRAP_GATE16 => !self.long_mode(),
            // Task gates are refused: hardware task switches are not built.
            _ => false,
        };
        let dpl = (raw >> 45) as u8 & 3;
        if !known || (origin == Origin::Software && dpl < self.cpl) {
            return Err(self.gp(code));
        }
        if raw & (1 << 47) == 0 {
            return Err(self.raise(vector::NP, Some(code)));
        }
        let narrow = kind & 8 == 0;
        let low = (raw & 0xffff) | if narrow { 0 } else { (raw >> 32) & 0xffff_0000 };
        Ok(Gate {
            selector: (raw >> 16) as u16,
            offset: low | (high << 32),
            ist: if self.long_mode() {
                (raw >> 32) as u8 & 7
            } else {
                0
            },
            kind,
        })
    }

    fn protected_interrupt(&mut self, number: u8, error: Option<u32>, origin: Origin) -> Flow {
        let gate = self.gate(number, origin)?;
        if gate.selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let code = self.descriptor(gate.selector, vector::GP)?;
        let bad_long = self.long_mode() && (!code.long() || code.big());
        if !code.is_code() || code.dpl() > self.cpl || bad_long {
            return Err(self.gp(code_of(gate.selector)));
        }
        if !code.present() {
            return Err(self.raise(vector::NP, Some(code_of(gate.selector))));
        }
        let old = (self.segment(SS), self.get(RSP));
        let rf = if origin == Origin::Exception && is_fault(number) {
            bit::RF
        } else {
            0
        };
        let back = (self.rflags() | rf, self.segment(CS).selector, self.rip);
        let from_v86 = self.v86();
        let cpl = if code.conforming() {
            self.cpl
        } else {
            code.dpl()
        };
        if from_v86 && cpl != 0 {
            return Err(self.gp(code_of(gate.selector)));
        }
        let switch = Switch {
            cpl,
            changed: cpl < self.cpl,
        };
        if self.long_mode() {
            self.long_stack(&gate, &switch)?;
        } else if switch.changed {
            self.legacy_stack(&switch)?;
        }
        self.sysflags &= !(bit::TF | bit::NT | bit::RF | bit::VM);
        self.set_code(code, gate.selector, cpl)?;
        self.refresh();
        self.push_frame(&gate, &switch, old, back, from_v86)?;
        if let Some(error) = error {
            self.push_as(&gate, u64::from(error))?;
        }
        self.enter_handler(&gate)
    }

    fn enter_handler(&mut self, gate: &Gate) -> Flow {
        if gate.kind & 1 == 0 {
            self.sysflags &= !bit::IF;
        }
        let limit = u64::from(self.segment(CS).limit);
        let good = if self.is64() {
            self.canonical(gate.offset)
        } else {
            gate.offset <= limit
        };
        if !good {
            return Err(self.gp(0));
        }
        self.rip = gate.offset;
        Ok(())
    }

    fn push_as(&mut self, gate: &Gate, value: u64) -> Flow {
        if self.long_mode() {
            self.push_value::<W64>(value)
        } else if gate.kind & 8 != 0 {
            self.push_value::<W32>(value & 0xffff_ffff)
        } else {
            self.push_value::<W16>(value & 0xffff)
        }
    }

    fn push_frame(
        &mut self,
        gate: &Gate,
        switch: &Switch,
        old: (Segment, u64),
        back: (u64, u16, u64),
        from_v86: bool,
    ) -> Flow {
        if from_v86 {
            for seg in [GS, FS, DS, ES] {
                let selector = self.segment(seg).selector;
                self.push_as(gate, u64::from(selector))?;
                self.set_segment(seg, null(0));
            }
        }
        if switch.changed || self.long_mode() {
            self.push_as(gate, u64::from(old.0.selector))?;
            self.push_as(gate, old.1)?;
        }
        self.push_as(gate, back.0)?;
        self.push_as(gate, u64::from(back.1))?;
        self.push_as(gate, back.2)
    }

    /// A stack pointer of a 64-bit TSS: slot 0 to 2 are RSP0 to RSP2, 4 to 10 are IST1 to IST7.
    pub(crate) fn tss64(&mut self, slot: u64) -> Result<u64, Stop> {
        let at = 4 + slot * 8;
        if at + 7 > u64::from(self.system.tr.limit) {
            let selector = self.system.tr.selector;
            return Err(self.raise(vector::TS, Some(code_of(selector))));
        }
        self.load_system(self.system.tr.base.wrapping_add(at), 8)
    }

    fn long_stack(&mut self, gate: &Gate, switch: &Switch) -> Flow {
        let mut sp = self.get(RSP);
        if gate.ist != 0 {
            sp = self.tss64(3 + u64::from(gate.ist))?;
        } else if switch.changed {
            sp = self.tss64(u64::from(switch.cpl))?;
        }
        if !self.canonical(sp) {
            return Err(self.raise(vector::SS, Some(0)));
        }
        if switch.changed {
            let new = Segment {
                dpl: switch.cpl,
                ..null(u16::from(switch.cpl))
            };
            self.set_segment(SS, new);
        }
        self.put(RSP, sp & !15);
        Ok(())
    }

    /// The stack of a more privileged level, from a 16- or 32-bit TSS.
    pub(crate) fn tss_stack(&mut self, cpl: u8) -> Result<(u16, u64), Stop> {
        let wide = self.system.tr.kind & 8 != 0;
        let (at, size) = if wide {
            (4 + u64::from(cpl) * 8, 4)
        } else {
            (2 + u64::from(cpl) * 4, 2)
        };
        if at + u64::from(size) + 1 > u64::from(self.system.tr.limit) {
            let selector = self.system.tr.selector;
            return Err(self.raise(vector::TS, Some(code_of(selector))));
        }
        let at = self.system.tr.base.wrapping_add(at);
        let sp = self.load_system(at, size)?;
        let selector = self.load_system(at.wrapping_add(u64::from(size)), 2)?;
        Ok((selector as u16, sp))
    }

    fn legacy_stack(&mut self, switch: &Switch) -> Flow {
        let (selector, sp) = self.tss_stack(switch.cpl)?;
        let new = self.stack_segment(selector, switch.cpl, vector::TS)?;
        self.sysflags &= !bit::VM;
        self.set_segment(SS, new);
        self.refresh();
        self.set_stack(sp);
        Ok(())
    }
}

/// Whether a fault while another is delivered is a double fault (Intel SDM 3, table "Conditions
/// for Generating a Double Fault").
fn makes_double(first: u8, second: u8) -> bool {
    let contributory = |v| {
        matches!(
            v,
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP
        )
    };
    (contributory(first) && contributory(second))
        || (first == vector::PF && (contributory(second) || second == vector::PF))
}
