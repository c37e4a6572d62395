//! virtio devices, and how they sit on PCI and MMIO. After the specification, version 1.2.
//!
//! ```text
//!   VirtioPci / VirtioMmio      registers, interrupts; a device::Device
//!        |
//!    VirtioCore                 status, features, set-up of queues, configuration space
//!        |                \
//!   dyn VirtioDevice      DeviceQueue (virtio-queue's ring + guest memory)
//!   VirtioBlk, VirtioRng, VirtioConsole, VirtioBalloon
//! ```
//!
//! # Lifecycle
//!
//! A board makes a device, puts it behind a transport, and the transport into its bus. The driver negotiates and sets up
//! queues; from DRIVER_OK on they run ([`VirtioDevice::activate`]) until a reset. [`VirtioCore::pause`] and
//! [`VirtioCore::resume`] hold them still while the machine stands; `save` and `restore` happen in between.
//!
//! ```
//! use std::sync::Arc;
//! use dev_virtio::{HostEntropy, VirtioMmio, VirtioRng};
//! use device::{Clock, IrqLine};
//! use guest_memory::{GuestMemory, GuestPhysAddr};
//!
//! let memory = Arc::new(GuestMemory::new(1 << 20)?);
//! memory.add_ram(GuestPhysAddr(0), 1 << 20)?;
//! let rng = VirtioRng::new(Box::new(HostEntropy), None, &Clock::real());
//! let registers = VirtioMmio::new(rng, memory, IrqLine::unconnected())?;
//! assert!(!registers.core().is_active());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Invariants
//!
//! - Guest memory is touched only with a queue's lock held ([`DeviceQueue::lock`]), and that is given only while the queue
//!   runs and the device is neither paused nor broken. So after a pause or a reset nothing late is written.
//! - What a driver does wrong (chains that loop, leave RAM or are too long, rings that are not RAM, heads given twice)
//!   breaks its device: status NEEDS_RESET, until it resets it. It costs no more memory than the limits below say.
//! - A chain that the device has taken is either given back or part of the saved state; a device takes it anew when it has
//!   been restored.
//!
//! # Where a new thing goes
//!
//! A new device: a file or folder that implements [`VirtioDevice`], its type in [`DeviceType`], tests that drive it by
//! `test_driver`, and the conformance cases of [`device::conformance`]. What the queues of all devices should be able to
//! do goes into `queue.rs`, registers of all transports into `virtio_core.rs`.

mod balloon;
mod bell;
mod blk;
mod console;
mod link;
mod mmio;
mod pci;
mod queue;
mod rng;
mod virtio_core;
mod virtio_device;

pub use balloon::{
    BALLOON_STAT_NAMES, BalloonOptions, BalloonSink, BalloonStats, MAX_BALLOON_CHAIN_BYTES,
    VirtioBalloon,
};
pub use blk::{BlkOptions, MAX_HELD_BYTES, VirtioBlk};
pub use console::{
    DEFAULT_MAX_PORTS, MAX_PORT_INPUT_BYTES, MAX_PORT_NAME_BYTES, MAX_PORT_OUTPUT_BYTES,
    PortOptions, PortSink, VirtioConsole,
};
pub use link::{Link, VirtioInterrupt};
pub use mmio::{MMIO_BYTES, VirtioMmio};
pub use pci::{PciOptions, VirtioPci};
pub use queue::{Chain, DeviceQueue, QueueGuard};
pub use rng::{EntropySource, HostEntropy, MAX_RNG_CHAIN_BYTES, RngLimit, VirtioRng};
pub use virtio_core::VirtioCore;
pub use virtio_device::{DeviceType, VirtioDevice};

#[cfg(test)]
mod test_driver;
#[cfg(test)]
mod tests;

/// The largest queue, in descriptors.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// The most queues of a device.
pub const MAX_QUEUES: u16 = 256;
/// The most buffers of a chain, indirect ones included. A queue remembers at most this many for each of its descriptors,
/// 16 bytes each, so a driver that does its worst costs 16 MiB for a queue of 1024.
pub const MAX_CHAIN_BUFFERS: usize = 1024;

/// What can be wrong with a device that a board makes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The size of a queue.
    #[error(
        "a virtio queue of {0} descriptors: it must be a power of two, at most {MAX_QUEUE_SIZE}"
    )]
    QueueSize(u16),
    /// The number of queues.
    #[error("a virtio device with {0} queues: it must be 1 to {MAX_QUEUES}")]
    QueueCount(usize),
    /// The number of ports that a console device may have.
    #[error("virtio-serial: max_ports {0} must be 1 to 127")]
    ConsolePorts(u32),
    /// A port, in the words that clients read.
    #[error("{0}")]
    Port(String),
    /// Options of a disk.
    #[error("virtio-blk: {0}")]
    BlkOptions(&'static str),
    /// The capabilities do not fit into the configuration space.
    #[error("the capabilities of a virtio device do not fit into its PCI configuration space")]
    PciCapabilities,
}
