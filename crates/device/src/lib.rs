//! What a device is to a board.
//!
//! | what | for |
//! |---|---|
//! | [`IoHandler`], [`IoMap`] | registers behind ports and MMIO |
//! | [`IrqLine`], [`InterruptController`], [`MsiSink`] | interrupts |
//! | [`Clock`], [`Timer`], [`WallClock`] | guest time and the time of day |
//! | [`DmaSpace`] | guest memory, in bulk |
//! | [`Device`], [`SavedState`] | the phases of a device's life |
//! | [`MachineSink`] | what a device asks of the whole machine: reset, power off, a panic |
//! | [`pci`] | configuration space, base address registers, MSI, MSI-X, the bus |
//! | [`conformance`] | the table of cases that every device runs |
//!
//! # Lifecycle
//!
//! A board makes a device with everything it needs (lines, clock, memory), puts its handlers into an [`IoMap`], and calls
//! [`Device::reset`] with [`ResetKind::PowerOn`] before the first guest instruction. From then on any vCPU thread may
//! access it. `save` and `restore` happen while the clock stands and no vCPU runs.
//!
//! # Invariants
//!
//! - A device has one short lock of its own. It is never held while a device nearer to the CPU is asked for something
//!   (that is: while calling *upwards*). Interrupt lines and messages go *downwards* (device, interrupt controller, CPU)
//!   and may be driven under the lock; whoever receives them never calls back from inside.
//! - Devices reach guest memory only through [`DmaSpace`], which never reaches registers: a guest cannot make a device
//!   program itself.
//! - Nothing a guest does and nothing in a saved state panics.
//!
//! A new kind of connection between boards and devices goes here; a new chip goes into a `dev-*` crate.

pub mod conformance;
pub mod doubles;

mod clock;
mod dma;
mod io;
mod io_map;
mod irq;
mod life;
mod machine;
pub mod pci;

pub use clock::{Clock, Timer, WallClock};
pub use dma::DmaSpace;
pub use io::{
    IoHandler, IoPart, IoParts, Width, merge_register, read_bytes, read_register, write_bytes,
};
pub use io_map::{IoMap, MappedRange, MappingId};
pub use irq::{InterruptController, IrqLine, MsiMessage, MsiSink};
pub use life::{Device, ResetKind, SavedState};
pub use machine::{MachineRequest, MachineSink};

/// What can go wrong between a board and its devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A range of addresses is empty or ends beyond the address space.
    #[error(
        "range '{name}' of {length:#x} bytes at {start:#x} does not fit into the address space, which ends at {last:#x}"
    )]
    BadRange {
        /// The range's name.
        name: String,
        /// Its first address.
        start: u64,
        /// Its length in bytes.
        length: u64,
        /// The last address of the space.
        last: u64,
    },
    /// A mapping that is not (or no longer) in the map.
    #[error("no such mapping in this address space; it may have been removed before")]
    NoSuchMapping,
    /// A device wanted guest memory where there is none.
    #[error("{length} bytes at guest address {address:#x} are not all guest memory")]
    Dma {
        /// First guest-physical address.
        address: u64,
        /// Length in bytes.
        length: u64,
    },
    /// A saved state belongs to another kind of device.
    #[error("the saved state is one of '{found}', not of '{expected}'")]
    WrongDevice {
        /// The device that was to be restored.
        expected: String,
        /// The device that the state names.
        found: String,
    },
    /// A saved state has a version that this build does not know.
    #[error(
        "the saved state of '{device}' has version {found}; this build reads version {expected}"
    )]
    WrongVersion {
        /// The device.
        device: String,
        /// The version that this build reads.
        expected: u32,
        /// The version found.
        found: u32,
    },
    /// A saved state has values that the device cannot be in.
    #[error("the saved state of '{device}' cannot be used: {reason}")]
    BadState {
        /// The device.
        device: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// A saved state that a device cannot be in.
    pub fn bad_state(device: &str, reason: &str) -> Error {
        Error::BadState {
            device: device.to_owned(),
            reason: reason.to_owned(),
        }
    }
}
