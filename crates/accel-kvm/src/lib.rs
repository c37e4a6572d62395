//! KVM as an accelerator: the host's processor runs the guest.
//!
//! # What it is
//!
//! [`KvmAccelerator`] is one virtual machine of `/dev/kvm` over a [`GuestMemory`](guest_memory::GuestMemory); its vCPUs
//! are [`vcpu::Vcpu`]s like those of any other accelerator. This crate is the shim to the kernel, so that `unsafe` is
//! allowed here: mapping a vCPU's run page, naming host memory to the kernel, and the few calls that `kvm-ioctls` has not.
//!
//! # Lifecycle
//!
//! [`KvmAccelerator::new`] opens the device, checks what the kernel offers ([`KvmError`] says what is missing and what to
//! do), and makes the virtual machine. [`vcpu::Accelerator::create_vcpu`] makes processors, with a CPUID table from
//! [`KvmAccelerator::host_cpuid`] or one that [`KvmAccelerator::narrow`] has cut to what this host can do. All of it
//! goes when the last vCPU and its kickers are dropped.
//!
//! # Invariants
//!
//! * **Interrupt controllers** are where [`IrqchipMode`] says. With none in the kernel HLT comes out as an exit, interrupts
//!   go in with `KVM_INTERRUPT` when `can_take_interrupt` says so, and the registers of the local APIC that live in MSRs
//!   come out as MSR exits (the kernel would answer some of them itself, so that a filter takes them away from it). With
//!   local APICs in the kernel HLT, INIT and start-up messages are the kernel's: `run` waits there, until a kick.
//!   External interrupts of the board's 8259 still go in with `KVM_INTERRUPT`; one that was injected and not yet taken
//!   when the vCPU is reset is delivered after the reset (the kernel does not take it back), and is not in its state.
//! * **Memory slots follow the map.** Each `run` compares the slots with the map first. When they differ, all vCPUs leave
//!   the guest before a slot changes, so that no vCPU sees memory missing that is there. A map that changes while every
//!   vCPU is in the guest shows there when the next one enters: who changes it from another thread kicks one.
//! * **A kick is not lost**: it sets `immediate_exit` in the run page first, and then interrupts the thread if that is
//!   in `KVM_RUN`. Either the kernel sees the flag, or the thread is there to be interrupted. A `run` may come back
//!   with [`vcpu::Exit::Kicked`] without a kick, too.
//! * **What cannot be saved is not offered.** CPUID tells the guest of no state that [`vcpu::VcpuState`] does not carry
//!   (AVX-512, AMX, protection keys, shadow stacks, performance counters).
//! * The time stamp counter runs on over a reset, so that those of several vCPUs stay together.
//!
//! # Where a new thing goes
//!
//! A new exit: `processor.rs` (its layout in `run_page.rs`). New state: `state.rs`. What CPUID may say: `cpuid.rs`.
//! Interrupt controllers: `irqchip.rs`; a local APIC's registers are a vCPU's state.
//!
//! # Where it was tried
//!
//! In all three modes, with one and two vCPUs, on Linux 6.18 with `kvm_pvm`, which emulates each instruction of a guest.
//! There a local APIC in the kernel shows no interrupt in service while it is handled, and a level interrupt comes once
//! more when its line falls before its end. Not on `kvm_intel` and `kvm_amd`.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod accelerator;
mod cpuid;
mod irqchip;
mod kick;
mod msrs;
mod processor;
mod run_page;
mod slots;
mod state;

pub use accelerator::KvmAccelerator;
pub use irqchip::IrqchipMode;

use vcpu::VcpuError;

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

/// The version of KVM's interface, the only one since Linux 2.6.22.
pub const API_VERSION: i32 = 12;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmError {
    /// There is no device.
    #[error(
        "Could not access KVM kernel module: No such file or directory; {DEVICE} is missing: load the module kvm_intel or \
         kvm_amd, enable virtualization in the host's firmware, or run on the software CPU with '-accel tcg'"
    )]
    NoDevice,
    /// The device may not be opened.
    #[error(
        "Could not access KVM kernel module: Permission denied; {DEVICE} is not open to this user: join its group (usually \
         'kvm'), or run on the software CPU with '-accel tcg'"
    )]
    NoPermission,
    /// The kernel speaks another version.
    #[error(
        "{DEVICE} speaks version {0} of its interface, where {API_VERSION} is needed; use another kernel"
    )]
    Version(i32),
    /// The kernel lacks something.
    #[error("{DEVICE} lacks {0}; use a newer kernel, or run on the software CPU with '-accel tcg'")]
    Lacks(&'static str),
    /// The kernel has no interrupt controllers, or not in this mode.
    #[error("{}: {source}; try kernel-irqchip=off", match mode {
        IrqchipMode::Split => "Could not enable split irqchip mode",
        _ => "Create kernel irqchip failed",
    })]
    Irqchip {
        /// What was asked for.
        mode: IrqchipMode,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused something.
    #[error("KVM refuses to {what}: {source}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel has no room for so many regions of memory.
    #[error("the machine's memory has more regions than KVM has slots, {0}")]
    TooManyRegions(usize),
}

impl From<KvmError> for VcpuError {
    fn from(error: KvmError) -> Self {
        match error {
            KvmError::Refused { what, source } => Self::Host {
                what,
                reason: source.to_string(),
            },
            other => Self::Host {
                what: "use KVM",
                reason: other.to_string(),
            },
        }
    }
}

/// Turns the kernel's refusal into an error that says what was tried.
fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Refused {
        what,
        source: error.into(),
    }
}
