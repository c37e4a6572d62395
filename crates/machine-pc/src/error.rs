//! What can go wrong with a machine.

use guest_memory::MemoryError;
use vcpu::VcpuError;

/// Why a machine cannot be made, or cannot do what is asked. The words are what people read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Registers of the board collide; a defect of the board's table.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The memory cannot be had.
    #[error("cannot set up guest memory: {0}")]
    Memory(#[from] MemoryError),
    /// The accelerator refuses.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// This host has no KVM for us.
    #[error("failed to initialize kvm: {0}")]
    Kvm(#[from] accel_kvm::KvmError),
    /// No slot has this number.
    #[error("there is no PCI slot {0}; slots are 0 to 31")]
    NoSuchSlot(u8),
    /// Another function sits there.
    #[error("PCI: slot {0} function 0 already occupied")]
    SlotTaken(u8),
    /// All slots are taken.
    #[error("no slot/function available for {0}, all in use or reserved")]
    NoFreeSlot(String),
    /// A file for the guest cannot be read or used.
    #[error("could not load {what} '{path}': {reason}")]
    Image {
        /// Kernel, initrd, firmware.
        what: &'static str,
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// What is to be booted cannot be.
    #[error("could not load kernel '{path}': {source}")]
    Boot {
        /// The kernel's path.
        path: String,
        /// Why.
        source: boot_pc::Error,
    },
    /// Something in the configuration that cannot be.
    #[error("{0}")]
    Config(String),
    /// The host refuses a thread.
    #[error("cannot start a thread for {what}: {source}")]
    Thread {
        /// What it is for.
        what: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
}
