//! Why a vCPU came back, and what it is answered.

use guest_memory::GuestPhysAddr;

/// The most bytes one port exit carries: a page, which is also how much KVM gathers.
pub const MAX_PORT_BYTES: usize = 4096;

/// The bytes of a port access: `count` elements of `size` bytes, in the order of the guest.
pub type PortBytes = Vec<u8>;

/// What the guest wants from the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// IN or INS: wants `size * count` bytes of a port, [`Completion::PortIn`].
    PortIn {
        /// The port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: u8,
        /// How many accesses of that size follow each other; 1 except for strings.
        count: u32,
    },
    /// OUT or OUTS: gives bytes to a port.
    PortOut {
        /// The port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: u8,
        /// The bytes of all accesses, at most [`MAX_PORT_BYTES`].
        data: PortBytes,
    },
    /// A read of what is not memory, [`Completion::Mmio`].
    MmioRead {
        /// Where.
        addr: GuestPhysAddr,
        /// How many bytes, 1 to 8.
        len: u8,
    },
    /// A write to what is not RAM.
    MmioWrite {
        /// Where.
        addr: GuestPhysAddr,
        /// How many bytes, 1 to 8.
        len: u8,
        /// The bytes, little endian, zero beyond `len`.
        data: u64,
    },
    /// RDMSR of what the CPU does not keep itself, [`Completion::Msr`] or
    /// [`Completion::MsrFault`].
    MsrRead {
        /// ECX.
        index: u32,
    },
    /// WRMSR of what the CPU does not keep itself. Answered with [`Completion::MsrDone`] or
    /// [`Completion::MsrFault`].
    MsrWrite {
        /// ECX.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// HLT. RIP is behind it.
    Halt,
    /// A triple fault.
    Shutdown,
    /// An interrupt can be taken now, as asked for. Comes again from each `run`, without progress
    /// of the guest, until one is injected or the board no longer asks.
    InterruptWindow,
    /// Somebody kicked the vCPU.
    Kicked,
    /// A local APIC that the accelerator keeps has ended the level interrupt with this vector: for
    /// the board's I/O APIC.
    EndOfInterrupt(u8),
    /// The guest wrote CR8, the task priority: bits 7:4 of the local APIC's TPR.
    TaskPriority(u8),
}

impl Exit {
    /// Whether `run` must not be called before [`Vcpu::complete`](crate::Vcpu::complete).
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::PortIn { .. }
                | Self::MmioRead { .. }
                | Self::MsrRead { .. }
                | Self::MsrWrite { .. }
        )
    }
}

/// The answer to an [`Exit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// What [`Exit::PortIn`] wants: exactly `size * count` bytes.
    PortIn(PortBytes),
    /// What [`Exit::MmioRead`] wants, little endian; bits beyond its length are ignored.
    Mmio(u64),
    /// What [`Exit::MsrRead`] wants.
    Msr(u64),
    /// [`Exit::MsrWrite`] is done.
    MsrDone,
    /// There is no such MSR, or not such a value: the guest gets #GP(0).
    MsrFault,
}
