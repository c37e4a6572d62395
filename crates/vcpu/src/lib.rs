//! What an accelerator is, and what a virtual CPU can do. Boards and devices know this crate
//! only; the software CPU and KVM are behind its traits.
//!
//! # Lifecycle
//!
//! An [`Accelerator`] is made over a machine's [`GuestMemory`](guest_memory::GuestMemory) and
//! makes [`Vcpu`]s, each with its CPUID table. A vCPU belongs to one thread, which calls
//! [`Vcpu::run`] in a loop. `run` returns an [`Exit`]: what the guest wants from the machine.
//! An exit that asks for data is answered with [`Vcpu::complete`]; then `run` goes on with the
//! instruction that asked. Other threads reach a running vCPU through its [`Kicker`] only.
//!
//! # Invariants
//!
//! * An exit that reads ([`Exit::is_read`]) must be completed before the next `run`; the next
//!   `run` acknowledges the others. `run` refuses otherwise ([`VcpuError::NotCompleted`]).
//! * While an exit stands uncompleted the instruction is in flight, and the architectural state
//!   is that of before it. State is set between exits only ([`VcpuError::InFlight`]).
//! * The interrupt controllers are the board's, unless [`Accelerator::irqchip`] says otherwise. When
//!   one has an interrupt for this CPU, the board kicks it; on its thread it asks
//!   [`Vcpu::can_take_interrupt`], and either injects the vector or asks for an
//!   [`Exit::InterruptWindow`]. This is how KVM without its own irqchip works too.
//! * A guest that halts ([`Exit::Halt`]) has its RIP behind the HLT. The board waits until there
//!   is something to inject and calls `run` again.
//! * With a [`KernelIrqchip`], `run` itself waits while the CPU is halted or has not been started
//!   (there is no [`Exit::Halt`]), and interrupts come to it by the irqchip; only external interrupts
//!   of a [`KernelIrqchip::Split`] are injected. The CPU's local APIC is part of its state
//!   ([`VcpuState::local_apic`]).
//!
//! # Where a new thing goes
//!
//! A new kind of exit: [`Exit`], with its completion in [`Completion`]. New architectural state:
//! `state.rs`. What only some accelerators can do: a trait of its own that they implement.

mod cpuid;
mod dirty;
mod exit;
mod irqchip;
mod state;

pub use cpuid::{CpuidEntry, CpuidTable, MAX_CPUID_ENTRIES};
pub use dirty::{DirtyLog, DirtyRange};
pub use exit::{Completion, Exit, MAX_PORT_BYTES, PortBytes};
pub use irqchip::{
    APIC_REGISTER_BYTES, Activity, ChipState, FullIrqchip, IOAPIC_INPUTS, ISA_LINES, KernelApics,
    KernelIrqchip, LocalApicState, Msi, SplitIrqchip,
};
pub use state::{
    DescriptorTable, Event, MsrValue, Registers, Segment, SegmentRegister, SystemRegisters,
    VcpuState, XSAVE_AREA_BYTES, XsaveArea,
};

use std::sync::Arc;

/// What an accelerator or a vCPU refuses.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// `run` while the data of the last exit is missing.
    #[error("the vCPU waits for the data of its last exit; complete it before running on")]
    NotCompleted,
    /// A completion that does not fit the last exit.
    #[error("the vCPU's last exit was not one that {0} completes")]
    WrongCompletion(&'static str),
    /// State was to be set while an instruction is in flight.
    #[error("the vCPU has an instruction in flight; run it to the next exit that is no access")]
    InFlight,
    /// An interrupt was injected that the CPU cannot take now.
    #[error("the vCPU cannot take interrupt {0:#x} now; ask for an interrupt window")]
    CannotInject(u8),
    /// State that no processor can be in.
    #[error("state that no processor can be in: {0}")]
    BadState(String),
    /// An MSR that this CPU does not know.
    #[error("MSR {0:#x} is not one this CPU keeps")]
    UnknownMsr(u32),
    /// The host refused something.
    #[error("the accelerator failed to {what}: {reason}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        reason: String,
    },
}

/// Makes vCPUs over one machine's memory.
pub trait Accelerator: Send + Sync {
    /// The name by which options know it (`kvm`, `tcg`).
    fn name(&self) -> &'static str;

    /// Makes a vCPU in its state after reset. `index` counts from 0 and is unique in the machine.
    ///
    /// # Errors
    /// The host refuses, or the CPUID table asks for what this accelerator cannot do.
    fn create_vcpu(&self, index: u32, cpuid: CpuidTable) -> Result<Box<dyn Vcpu>, VcpuError>;

    /// The interrupt controllers that the accelerator keeps itself; `None` if all are the board's.
    fn irqchip(&self) -> Option<KernelIrqchip> {
        None
    }
}

/// Makes a running vCPU return from [`Vcpu::run`] with [`Exit::Kicked`]. Cheap to clone, usable
/// from any thread, and remembered if the vCPU is not running.
pub trait Kick: Send + Sync {
    /// Asks the vCPU to come back as soon as it can.
    fn kick(&self);
}

/// A shared [`Kick`].
pub type Kicker = Arc<dyn Kick>;

/// One virtual CPU. Moves to the thread that runs it.
pub trait Vcpu: Send {
    /// Runs the guest until it wants something.
    ///
    /// # Errors
    /// The last exit was not completed, or the accelerator failed; the guest's own faults are
    /// the guest's business.
    fn run(&mut self) -> Result<Exit, VcpuError>;

    /// Answers the last exit.
    ///
    /// # Errors
    /// The completion is not of the last exit's kind or size.
    fn complete(&mut self, data: Completion) -> Result<(), VcpuError>;

    /// The handle with which other threads interrupt [`Vcpu::run`].
    fn kicker(&self) -> Kicker;

    /// All architectural state.
    ///
    /// # Errors
    /// The host refuses, or an instruction is in flight.
    fn state(&self) -> Result<VcpuState, VcpuError>;

    /// Replaces all architectural state.
    ///
    /// # Errors
    /// No processor can be in it, the host refuses, or an instruction is in flight.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError>;

    /// Puts the CPU into the state after a hardware reset. What was in flight or pending is
    /// dropped.
    ///
    /// # Errors
    /// The host refuses.
    fn reset(&mut self) -> Result<(), VcpuError>;

    /// Whether an external interrupt would be taken before the next instruction: RFLAGS.IF is
    /// set, no shadow of STI or MOV SS, nothing else pending or in flight.
    fn can_take_interrupt(&self) -> bool;

    /// Injects an external interrupt, which is delivered when the vCPU runs next.
    ///
    /// # Errors
    /// [`Vcpu::can_take_interrupt`] is false.
    fn inject_interrupt(&mut self, vector: u8) -> Result<(), VcpuError>;

    /// Makes an NMI pending. Delivered as soon as no other NMI is being handled. A CPU that waits in
    /// `run` to be started drops it.
    ///
    /// # Errors
    /// The host refuses.
    fn inject_nmi(&mut self) -> Result<(), VcpuError>;

    /// Asks, or stops asking, for [`Exit::InterruptWindow`] as soon as an interrupt can be taken.
    fn request_interrupt_window(&mut self, wanted: bool);
}
