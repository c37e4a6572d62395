//! What operating systems run: modes, segments, interrupts, control registers, ports.

pub(crate) mod control;
pub(crate) mod cpuid;
pub(crate) mod interrupt;
pub(crate) mod msr;
pub(crate) mod port;
pub(crate) mod segment;
pub(crate) mod sreg;
pub(crate) mod transfer;

use iced_x86::Instruction;

use crate::domain::Domain;
use crate::lower::{Lowered, Shape};

pub(crate) fn lower<D: Domain>(i: &Instruction, s: &Shape) -> Option<Lowered<D>> {
    transfer::lower(i, s)
        .or_else(|| sreg::lower(i, s))
        .or_else(|| port::lower(i))
        .or_else(|| control::lower(i, s))
}
