//! Segment registers and descriptors (Intel SDM 3, "Protected-Mode Memory Management").

use iced_x86::Register;
use vcpu::Segment;

use crate::cpu::{CS, Cpu, DS, ES, FS, GS, SS, vector};
use crate::domain::{Flow, Stop};

/// Type field of system descriptors.
pub(crate) mod system_type {
    pub(crate) const TSS16: u8 = 1;
    pub(crate) const LDT: u8 = 2;
    pub(crate) const TSS16_BUSY: u8 = 3;
    pub(crate) const CALL_GATE16: u8 = 4;
    pub(crate) const TASK_GATE: u8 = 5;
    pub(crate) const INTERRUPT_GATE16: u8 = 6;
    pub(crate) const TRAP_GATE16: u8 = 7;
    pub(crate) const TSS32: u8 = 9;
    pub(crate) const TSS32_BUSY: u8 = 11;
    pub(crate) const CALL_GATE32: u8 = 12;
    pub(crate) const INTERRUPT_GATE32: u8 = 14;
    pub(crate) const TRAP_GATE32: u8 = 15;
}

/// A descriptor as it stands in a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub raw: u64,
    /// Where it is, to set its accessed or busy bit.
    pub at: u64,
}

impl Descriptor {
    pub(crate) fn kind(self) -> u8 {
        (self.raw >> 40) as u8 & 15
    }
    pub(crate) fn code_or_data(self) -> bool {
        self.raw & (1 << 44) != 0
    }
    pub(crate) fn dpl(self) -> u8 {
        (self.raw >> 45) as u8 & 3
    }
    pub(crate) fn present(self) -> bool {
        self.raw & (1 << 47) != 0
    }
    pub(crate) fn is_code(self) -> bool {
        self.code_or_data() && self.kind() & 8 != 0
    }
    pub(crate) fn conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }
    fn writable_data(self) -> bool {
        self.code_or_data() && self.kind() & 8 == 0 && self.kind() & 2 != 0
    }
    fn readable(self) -> bool {
        self.code_or_data() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }
    pub(crate) fn long(self) -> bool {
        self.raw & (1 << 53) != 0
    }
    pub(crate) fn big(self) -> bool {
        self.raw & (1 << 54) != 0
    }

    /// What a segment register holds of it.
    pub(crate) fn segment(self, selector: u16) -> Segment {
        let granular = self.raw & (1 << 55) != 0;
        let raw_limit = (self.raw & 0xffff) | ((self.raw >> 32) & 0xf_0000);
        let limit = if granular {
            (raw_limit << 12) | 0xfff
        } else {
            raw_limit
        };
        Segment {
            selector,
            base: ((self.raw >> 16) & 0xff_ffff) | ((self.raw >> 32) & 0xff00_0000),
            limit: limit as u32,
            kind: self.kind(),
            code_or_data: self.code_or_data(),
            dpl: self.dpl(),
            present: self.present(),
            available: self.raw & (1 << 52) != 0,
            long: self.long(),
            big: self.big(),
            granular,
            unusable: false,
        }
    }
}

/// The error code of a selector: without its RPL.
pub(crate) fn code_of(selector: u16) -> u32 {
    u32::from(selector & !3)
}

/// A segment register that holds a null selector.
pub(crate) fn null(selector: u16) -> Segment {
    Segment {
        selector,
        unusable: true,
        ..Segment::default()
    }
}

/// The number of a segment register of the decoder.
pub(crate) fn number_of(register: Register) -> Option<u8> {
    Some(match register {
        Register::ES => ES,
        Register::CS => CS,
        Register::SS => SS,
        Register::DS => DS,
        Register::FS => FS,
        Register::GS => GS,
        _ => return None,
    })
}

impl Cpu {
    /// Reads a descriptor from GDT or LDT. A selector past the table faults with `vector`.
    pub(crate) fn descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor, Stop> {
        let offset = u64::from(selector & !7);
        let (base, limit, usable) = if selector & 4 == 0 {
            (
                self.system.gdtr.base,
                u64::from(self.system.gdtr.limit),
                true,
            )
        } else {
            let ldt = self.system.ldtr;
            (ldt.base, u64::from(ldt.limit), ldt.present && !ldt.unusable)
        };
        if !usable || offset + 7 > limit {
            return Err(self.raise(vector, Some(code_of(selector))));
        }
        let at = base.wrapping_add(offset);
        let raw = self.load_system(at, 8)?;
        Ok(Descriptor { raw, at })
    }

    /// Sets bits in a descriptor's second word, where accessed and busy are.
    fn mark_descriptor(&mut self, descriptor: Descriptor, bits: u64) -> Flow {
        if descriptor.raw & bits == bits {
            return Ok(());
        }
        let at = descriptor.at.wrapping_add(5);
        self.store_system(at, 1, ((descriptor.raw | bits) >> 40) & 0xff)
    }

    /// Marks a code or data segment accessed, as loading does.
    pub(crate) fn mark_accessed(&mut self, descriptor: Descriptor) -> Flow {
        self.mark_descriptor(descriptor, 1 << 40)
    }

    /// Loads a segment register as real mode and virtual-8086 mode do.
    pub(crate) fn load_real(&mut self, seg: u8, selector: u16) {
        let old = self.segment(seg);
        let mut new = Segment {
            selector,
            base: u64::from(selector) << 4,
            present: true,
            code_or_data: true,
            unusable: false,
            ..old
        };
        if self.v86() {
            new = Segment {
                limit: 0xffff,
                kind: 3,
                dpl: 3,
                big: false,
                long: false,
                granular: false,
                ..new
            };
        } else if seg == CS {
            // The limit stays (as real processors do); the type becomes that of real mode.
            new = Segment {
                kind: 3,
                dpl: 0,
                big: false,
                long: false,
                ..new
            };
        }
        self.set_segment(seg, new);
        self.refresh();
    }

    /// MOV, POP and LxS to a segment register other than CS.
    pub(crate) fn load_segment(&mut self, seg: u8, selector: u16) -> Flow {
        if !self.protected() || self.v86() {
            self.load_real(seg, selector);
            return Ok(());
        }
        if seg == SS {
            let new = self.stack_segment(selector, self.cpl, vector::GP)?;
            self.set_segment(SS, new);
            self.refresh();
            return Ok(());
        }
        if selector & !3 == 0 {
            let base = self.segment(seg).base;
            // In 64-bit mode a null FS or GS keeps its base on some processors; it is cleared
            // here, as on Intel's.
            let _ = base;
            self.set_segment(seg, null(selector));
            self.refresh();
            return Ok(());
        }
        let descriptor = self.descriptor(selector, vector::GP)?;
        let rpl = (selector & 3) as u8;
        let privileged =
            !descriptor.conforming() && (rpl > descriptor.dpl() || self.cpl > descriptor.dpl());
        if !descriptor.readable() || privileged {
            return Err(self.gp(code_of(selector)));
        }
        if !descriptor.present() {
            return Err(self.raise(vector::NP, Some(code_of(selector))));
        }
        self.mark_accessed(descriptor)?;
        self.set_segment(seg, descriptor.segment(selector));
        self.refresh();
        Ok(())
    }

    /// Checks a stack segment for a privilege level; other faults than #SS come as `vector`.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        vector: u8,
    ) -> Result<Segment, Stop> {
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            // Null is a stack segment in 64-bit mode only, and not for user code.
            if self.is64() && cpl < 3 && rpl == cpl {
                return Ok(Segment {
                    dpl: cpl,
                    ..null(selector)
                });
            }
            return Err(self.raise(vector, Some(0)));
        }
        let descriptor = self.descriptor(selector, vector)?;
        if rpl != cpl || descriptor.dpl() != cpl || !descriptor.writable_data() {
            return Err(self.raise(vector, Some(code_of(selector))));
        }
        if !descriptor.present() {
            return Err(self.raise(vector::SS, Some(code_of(selector))));
        }
        self.mark_accessed(descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// The second half of a 16-byte descriptor of long mode. It must not look like a descriptor
    /// itself: its type is zero.
    pub(crate) fn upper_half(&mut self, selector: u16) -> Result<u64, Stop> {
        let next = selector.checked_add(8);
        let upper = match next {
            Some(next) => self.descriptor(next, vector::GP),
            None => Err(self.gp(0)),
        };
        match upper {
            Ok(upper) if upper.raw & (0x1f << 40) == 0 => Ok(upper.raw),
            Err(stop) if stop != Stop::Fault || self.fault.vector != vector::GP => Err(stop),
            _ => Err(self.gp(code_of(selector))),
        }
    }

    /// The high half of a 16-byte descriptor's base, in long mode.
    fn upper_base(&mut self, descriptor: Descriptor, selector: u16) -> Result<u64, Stop> {
        if !self.long_mode() {
            return Ok(0);
        }
        let high = self.upper_half(selector)?;
        let base = (high & 0xffff_ffff) << 32;
        if !self.canonical(base | descriptor.segment(selector).base) {
            return Err(self.gp(code_of(selector)));
        }
        Ok(base)
    }

    /// LLDT.
    pub(crate) fn load_ldtr(&mut self, selector: u16) -> Flow {
        if selector & !3 == 0 {
            self.system.ldtr = null(selector);
            return Ok(());
        }
        let descriptor = self.system_descriptor(selector, &[system_type::LDT])?;
        let high = self.upper_base(descriptor, selector)?;
        self.system.ldtr = descriptor.segment(selector);
        self.system.ldtr.base |= high;
        Ok(())
    }

    /// LTR.
    pub(crate) fn load_tr(&mut self, selector: u16) -> Flow {
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let kinds: &[u8] = if self.long_mode() {
            &[system_type::TSS32]
        } else {
            &[system_type::TSS32, system_type::TSS16]
        };
        let descriptor = self.system_descriptor(selector, kinds)?;
        let high = self.upper_base(descriptor, selector)?;
        self.mark_descriptor(descriptor, 1 << 41)?;
        self.system.tr = descriptor.segment(selector);
        self.system.tr.kind |= 2;
        self.system.tr.base |= high;
        Ok(())
    }

    fn system_descriptor(&mut self, selector: u16, kinds: &[u8]) -> Result<Descriptor, Stop> {
        if selector & 4 != 0 {
            return Err(self.gp(code_of(selector)));
        }
        let descriptor = self.descriptor(selector, vector::GP)?;
        if descriptor.code_or_data() || !kinds.contains(&descriptor.kind()) {
            return Err(self.gp(code_of(selector)));
        }
        if !descriptor.present() {
            return Err(self.raise(vector::NP, Some(code_of(selector))));
        }
        Ok(descriptor)
    }

    /// Loads CS with a checked descriptor at a privilege level, and SS's level with it.
    pub(crate) fn set_code(&mut self, descriptor: Descriptor, selector: u16, cpl: u8) -> Flow {
        self.mark_accessed(descriptor)?;
        let selector = (selector & !3) | u16::from(cpl);
        self.set_segment(CS, descriptor.segment(selector));
        Ok(())
    }

    /// After a return to less privilege: data segments that are too privileged become null.
    pub(crate) fn drop_privileged_segments(&mut self) {
        let cpl = self.cpl;
        for seg in [ES, DS, FS, GS] {
            let segment = self.segment(seg);
            let conforming = segment.kind & 12 == 12;
            if !segment.unusable && !conforming && segment.dpl < cpl {
                self.set_segment(seg, null(0));
            }
        }
        self.refresh();
    }

    /// LAR, LSL, VERR, VERW: a descriptor that the program may know of.
    pub(crate) fn visible_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Stop> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let saved = self.fault;
        match self.descriptor(selector, vector::GP) {
            Ok(descriptor) => {
                let rpl = (selector & 3) as u8;
                let hidden = !descriptor.conforming()
                    && (rpl > descriptor.dpl() || self.cpl > descriptor.dpl());
                Ok((!hidden).then_some(descriptor))
            }
            Err(Stop::Fault) if self.fault.vector == vector::GP => {
                self.fault = saved;
                Ok(None)
            }
            Err(stop) => Err(stop),
        }
    }

    /// VERR and VERW.
    pub(crate) fn verifies(&mut self, selector: u16, write: bool) -> Result<bool, Stop> {
        Ok(self
            .visible_descriptor(selector)?
            .is_some_and(|descriptor| {
                if write {
                    descriptor.writable_data()
                } else {
                    descriptor.readable()
                }
            }))
    }

    /// Runs something that changes much in steps, all or nothing.
    pub(crate) fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let saved = (
            self.regs,
            self.system.segments,
            self.sysflags,
            self.flags,
            self.rip,
        );
        let result = work(self);
        let undone = matches!(
            result,
            Err(Stop::Fault | Stop::Exit | Stop::CodeWrite | Stop::Exclusive)
        );
        if undone {
            (
                self.regs,
                self.system.segments,
                self.sysflags,
                self.flags,
                self.rip,
            ) = saved;
            self.refresh();
        }
        result
    }
}
