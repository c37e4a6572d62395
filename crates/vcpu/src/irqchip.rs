//! Interrupt controllers that an accelerator keeps itself.

use std::sync::Arc;

use crate::VcpuError;

/// Lines of a [`FullIrqchip`] that are ISA IRQs: each goes to the 8259 pair and to the I/O APIC, IRQ 0 there to input 2.
pub const ISA_LINES: u32 = 16;
/// Inputs of an I/O APIC. Line [`ISA_LINES`]` + n` of a [`FullIrqchip`] is its input n alone.
pub const IOAPIC_INPUTS: u32 = 24;

/// A message-signalled interrupt: what a device writes, and where (Intel SDM volume 3, 11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Msi {
    /// The guest-physical address.
    pub address: u64,
    /// The datum.
    pub data: u32,
}

/// Which interrupt controllers an accelerator keeps.
#[derive(Clone)]
pub enum KernelIrqchip {
    /// Local APICs; the 8259 pair and the I/O APIC are the board's.
    Split(Arc<dyn SplitIrqchip>),
    /// Local APICs, the I/O APIC and the 8259 pair, with their registers in memory and at ports.
    Full(Arc<dyn FullIrqchip>),
}

impl KernelIrqchip {
    /// What reaches the local APICs.
    #[must_use]
    pub fn apics(&self) -> &dyn KernelApics {
        match self {
            Self::Split(chip) => chip.as_ref(),
            Self::Full(chip) => chip.as_ref(),
        }
    }
}

impl std::fmt::Debug for KernelIrqchip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Split(_) => "Split",
            Self::Full(_) => "Full",
        })
    }
}

/// The local APICs of an accelerator that keeps them. Their state is the vCPUs' ([`LocalApicState`]).
pub trait KernelApics: Send + Sync {
    /// Delivers a message to the APICs that it addresses; those that do not listen drop it.
    ///
    /// # Errors
    /// The host refuses, as for a message that is none.
    fn send_msi(&self, message: Msi) -> Result<(), VcpuError>;
}

/// An accelerator that keeps the local APICs only. External interrupts of the board's 8259 go in with
/// [`Vcpu::inject_interrupt`](crate::Vcpu::inject_interrupt); [`Exit::EndOfInterrupt`](crate::Exit::EndOfInterrupt) tells
/// of the ends of level interrupts.
pub trait SplitIrqchip: KernelApics {
    /// Says what the I/O APIC's level inputs send, at most [`IOAPIC_INPUTS`]: the ends of these are told.
    ///
    /// # Errors
    /// The host refuses.
    fn set_level_messages(&self, messages: &[Msi]) -> Result<(), VcpuError>;
}

/// An accelerator that keeps all interrupt controllers.
pub trait FullIrqchip: KernelApics {
    /// Drives a line, below [`ISA_LINES`]` + `[`IOAPIC_INPUTS`].
    ///
    /// # Errors
    /// The host refuses.
    fn set_line(&self, line: u32, high: bool) -> Result<(), VcpuError>;

    /// Writes the edge/level registers of the 8259 pair: a bit to each IRQ, 1 for level.
    ///
    /// # Errors
    /// The host refuses.
    fn set_edge_level(&self, levels: u16) -> Result<(), VcpuError>;

    /// The state of the 8259 pair and of the I/O APIC, in the accelerator's own form, each with its number.
    ///
    /// # Errors
    /// The host refuses.
    fn state(&self) -> Result<Vec<ChipState>, VcpuError>;

    /// Replaces that state.
    ///
    /// # Errors
    /// It is not one that [`FullIrqchip::state`] gave, or the host refuses.
    fn set_state(&self, chips: &[ChipState]) -> Result<(), VcpuError>;

    /// Puts the 8259 pair and the I/O APIC into their state after a hardware reset.
    ///
    /// # Errors
    /// The host refuses.
    fn reset(&self) -> Result<(), VcpuError>;
}

/// The state of one chip, as its accelerator writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChipState {
    /// Which one.
    pub chip: u32,
    /// Its registers.
    pub bytes: Vec<u8>,
}

/// Bytes of a local APIC's page that hold registers.
pub const APIC_REGISTER_BYTES: usize = 1024;

/// What a processor does whose halts and start-up messages are the accelerator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// It executes instructions.
    #[default]
    Running,
    /// It has executed HLT and waits for an interrupt.
    Halted,
    /// It has not been initialised since the reset: it waits for INIT.
    WaitsForInit,
    /// It waits for a start-up message.
    WaitsForStartUp,
}

/// A local APIC that an accelerator keeps, and what depends on it.
#[derive(Clone, PartialEq, Eq)]
pub struct LocalApicState {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// What the processor does.
    pub activity: Activity,
    /// The page of registers, little-endian words at multiples of 16 (Intel SDM volume 3, table 11-1).
    pub registers: Box<[u8; APIC_REGISTER_BYTES]>,
}

impl LocalApicState {
    /// A register at an offset of the page; zero where there is none.
    #[must_use]
    pub fn register(&self, offset: usize) -> u32 {
        let bytes = self.registers.get(offset..).unwrap_or_default();
        bytes
            .first_chunk()
            .map_or(0, |word| u32::from_le_bytes(*word))
    }

    /// Writes a register; outside of the page nothing happens.
    pub fn set_register(&mut self, offset: usize, value: u32) {
        let place = self.registers.get_mut(offset..);
        if let Some(word) = place.and_then(<[u8]>::first_chunk_mut) {
            *word = value.to_le_bytes();
        }
    }
}

impl std::fmt::Debug for LocalApicState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalApicState")
            .field("base", &self.base)
            .field("activity", &self.activity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_words() {
        let mut apic = LocalApicState {
            base: 0xfee0_0900,
            activity: Activity::Running,
            registers: Box::new([0; APIC_REGISTER_BYTES]),
        };
        apic.set_register(0xf0, 0x1ff);
        apic.set_register(APIC_REGISTER_BYTES - 3, u32::MAX);
        apic.set_register(usize::MAX, 1);
        assert_eq!(apic.register(0xf0), 0x1ff);
        assert_eq!(apic.registers[0xf0..0xf3], [0xff, 1, 0]);
        assert_eq!(apic.registers.iter().filter(|byte| **byte != 0).count(), 2);
        assert_eq!(apic.register(APIC_REGISTER_BYTES - 3), 0);
    }
}
