//! Machine-specific registers the CPU keeps itself; the others are the board's.

use vcpu::Exit;

use crate::cpu::{Cpu, FS, GS, ReplayKind, cr};
use crate::domain::{Flow, Stop};

const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const SPEC_CTRL: u32 = 0x48;
const MTRR_CAP: u32 = 0xfe;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MISC_ENABLE: u32 = 0x1a0;
const MTRR_PHYS: u32 = 0x200;
const MTRR_PHYS_END: u32 = 0x20f;
const PAT: u32 = 0x277;
const MTRR_DEF_TYPE: u32 = 0x2ff;
pub(crate) const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// The fixed-range MTRRs, in the order they are kept.
const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// Those that belong to the state which is saved and restored.
pub(crate) const SAVED: &[u32] = &[
    TSC,
    TSC_ADJUST,
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    MISC_ENABLE,
    PAT,
    MTRR_DEF_TYPE,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    KERNEL_GS_BASE,
    TSC_AUX,
    SPEC_CTRL,
    0x200,
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
    0x250,
    0x258,
    0x259,
    0x268,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x26e,
    0x26f,
];

impl Cpu {
    fn mtrr_value(&self, index: u32) -> Option<u64> {
        if (MTRR_PHYS..=MTRR_PHYS_END).contains(&index) {
            let place = (index - MTRR_PHYS) as usize;
            return self.msrs.mtrr_variable.get(place).copied();
        }
        let place = MTRR_FIXED.iter().position(|known| *known == index)?;
        self.msrs.mtrr_fixed.get(place).copied()
    }

    fn mtrr(&mut self, index: u32) -> Option<&mut u64> {
        if (MTRR_PHYS..=MTRR_PHYS_END).contains(&index) {
            return self
                .msrs
                .mtrr_variable
                .get_mut((index - MTRR_PHYS) as usize);
        }
        let place = MTRR_FIXED.iter().position(|known| *known == index)?;
        self.msrs.mtrr_fixed.get_mut(place)
    }

    /// An MSR the CPU keeps; `None` if it is not one.
    pub(crate) fn peek_msr(&self, index: u32) -> Option<u64> {
        Some(match index {
            TSC => self.tsc(),
            TSC_ADJUST => self.msrs.tsc_adjust,
            SPEC_CTRL => self.msrs.spec_ctrl,
            // Eight variable ranges, fixed ranges, write combining.
            MTRR_CAP => 0x508,
            SYSENTER_CS => self.msrs.sysenter_cs,
            SYSENTER_ESP => self.msrs.sysenter_esp,
            SYSENTER_EIP => self.msrs.sysenter_eip,
            MISC_ENABLE => self.msrs.misc_enable,
            PAT => self.msrs.pat,
            MTRR_DEF_TYPE => self.msrs.mtrr_def_type,
            EFER => self.system.efer,
            STAR => self.msrs.star,
            LSTAR => self.msrs.lstar,
            CSTAR => self.msrs.cstar,
            SFMASK => self.msrs.sfmask,
            FS_BASE => self.segment(FS).base,
            GS_BASE => self.segment(GS).base,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            TSC_AUX => self.msrs.tsc_aux,
            _ => self.mtrr_value(index)?,
        })
    }

    /// Writes an MSR the CPU keeps. `None` if it is not one; `Some(false)`: #GP.
    pub(crate) fn set_own_msr(&mut self, index: u32, value: u64) -> Option<bool> {
        let address = matches!(
            index,
            SYSENTER_ESP | SYSENTER_EIP | LSTAR | CSTAR | FS_BASE | GS_BASE | KERNEL_GS_BASE
        );
        if address && !self.canonical(value) {
            return Some(false);
        }
        match index {
            TSC => self.set_tsc(value),
            TSC_ADJUST => {
                let by = value.wrapping_sub(self.msrs.tsc_adjust);
                let now = self.tsc();
                self.set_tsc(now.wrapping_add(by));
                self.msrs.tsc_adjust = value;
            }
            SPEC_CTRL => self.msrs.spec_ctrl = value,
            MTRR_CAP => return Some(false),
            SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            SYSENTER_ESP => self.msrs.sysenter_esp = value,
            SYSENTER_EIP => self.msrs.sysenter_eip = value,
            MISC_ENABLE => self.msrs.misc_enable = value,
            PAT => {
                let known = |byte: u8| matches!(byte, 0 | 1 | 4 | 5 | 6 | 7);
                if !value.to_le_bytes().into_iter().all(known) {
                    return Some(false);
                }
                self.msrs.pat = value;
            }
            MTRR_DEF_TYPE => self.msrs.mtrr_def_type = value & 0xcff,
            EFER => return Some(self.set_efer(value)),
            STAR => self.msrs.star = value,
            LSTAR => self.msrs.lstar = value,
            CSTAR => self.msrs.cstar = value,
            SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            FS_BASE => self.set_base(FS, value),
            GS_BASE => self.set_base(GS, value),
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            _ => *self.mtrr(index)? = value,
        }
        Some(true)
    }

    /// The base of FS or GS alone.
    pub(crate) fn set_base(&mut self, seg: u8, base: u64) {
        let mut segment = self.segment(seg);
        segment.base = base;
        self.set_segment(seg, segment);
        self.refresh();
    }

    fn set_efer(&mut self, value: u64) -> bool {
        let known = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        let paging = self.system.cr0 & cr::CR0_PG != 0;
        if value & !known != 0 || (paging && (value ^ self.system.efer) & cr::EFER_LME != 0) {
            return false;
        }
        self.system.efer = (value & !cr::EFER_LMA) | (self.system.efer & cr::EFER_LMA);
        self.tlb.flush();
        self.refresh();
        true
    }

    pub(crate) fn read_msr(&mut self, index: u32) -> Result<u64, Stop> {
        if let Some(value) = self.peek_msr(index) {
            return Ok(value);
        }
        let exit = || Exit::MsrRead { index };
        match self.bus(ReplayKind::MsrRead, u64::from(index), 8, exit)? {
            Some(value) => Ok(value),
            None => Err(self.gp(0)),
        }
    }

    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> Flow {
        match self.set_own_msr(index, value) {
            Some(true) => return Ok(()),
            Some(false) => return Err(self.gp(0)),
            None => {}
        }
        let exit = || Exit::MsrWrite { index, value };
        match self.bus(ReplayKind::MsrWrite, u64::from(index), 8, exit)? {
            Some(_) => Ok(()),
            None => Err(self.gp(0)),
        }
    }
}
