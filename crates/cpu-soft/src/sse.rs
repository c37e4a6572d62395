//! SSE.
use iced_x86::Instruction;

use crate::cpu::{Cpu, cr, vector};
use crate::domain::{Domain, Flow};
use crate::lower::{Lowered, Shape};

impl Cpu {
    /// #UD without the operating system's support, #NM for another task's registers.
    pub(crate) fn sse_ready(&mut self) -> Flow {
        if self.cr0 & cr::CR0_EM != 0 || self.cr4 & cr::CR4_OSFXSR == 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }
}

pub(crate) fn lower<D: Domain>(_: &Instruction, _: &Shape) -> Option<Lowered<D>> {
    None
}
