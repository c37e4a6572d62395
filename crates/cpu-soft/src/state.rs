//! All architectural state, out and in.

use vcpu::{MsrValue, Registers, VcpuError, VcpuState};

use crate::cpu::{Cpu, cr};
use crate::flags;
use crate::system::msr;

impl Cpu {
    pub(crate) fn save(&self) -> VcpuState {
        let mut general = [0; 16];
        for (to, from) in general.iter_mut().zip(&self.regs) {
            *to = *from;
        }
        VcpuState {
            registers: Registers {
                general,
                rip: self.rip,
                rflags: self.rflags(),
            },
            system: self.system,
            msrs: self.saved_msrs(),
            xsave: self.fpu.area(),
            event: self.event,
            nmi_pending: self.nmi_pending,
            nmi_masked: self.nmi_masked,
            interrupt_shadow: self.shadow,
            local_apic: None,
        }
    }

    fn saved_msrs(&self) -> Vec<MsrValue> {
        let value = |index: u32| self.peek_msr(index).map(|value| MsrValue { index, value });
        msr::SAVED.iter().copied().filter_map(value).collect()
    }

    pub(crate) fn restore(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        let s = &state.system;
        let bad = |what: &str| Err(VcpuError::BadState(what.to_owned()));
        if s.cr0 & cr::CR0_PG != 0 && s.cr0 & cr::CR0_PE == 0 {
            return bad("CR0.PG without CR0.PE");
        }
        if s.efer & cr::EFER_LMA != 0
            && (s.cr0 & cr::CR0_PG == 0 || s.cr4 & cr::CR4_PAE == 0 || s.efer & cr::EFER_LME == 0)
        {
            return bad("EFER.LMA without paging, PAE and EFER.LME");
        }
        if s.xcr0 & 1 == 0 || s.xcr0 & !self.xcr0_allowed() != 0 {
            return bad("XCR0 with what this CPU has not");
        }
        for value in &state.msrs {
            if !msr::SAVED.contains(&value.index) {
                return Err(VcpuError::UnknownMsr(value.index));
            }
        }
        for (to, from) in self.regs.iter_mut().zip(&state.registers.general) {
            *to = *from;
        }
        self.rip = state.registers.rip;
        self.sysflags = (state.registers.rflags & !flags::bit::ARITHMETIC & 0x3f_7fd5) | 2;
        self.flags = flags::from_bits(state.registers.rflags);
        self.system = *s;
        self.system.cr0 |= cr::CR0_ET;
        self.system.cr8 &= 15;
        for value in &state.msrs {
            if self.set_own_msr(value.index, value.value) != Some(true) {
                return Err(VcpuError::BadState(format!("MSR {:#x}", value.index)));
            }
        }
        self.fpu.set_area(&state.xsave);
        self.event = state.event;
        self.nmi_pending = state.nmi_pending;
        self.nmi_masked = state.nmi_masked;
        self.shadow = state.interrupt_shadow;
        self.drop_replay();
        self.tlb.flush();
        self.refresh();
        if Self::is_pae(self.system.cr0, self.system.cr4, self.system.efer)
            && self.load_pdptes(self.system.cr3).is_err()
        {
            return bad("page-directory pointers with reserved bits");
        }
        Ok(())
    }
}
