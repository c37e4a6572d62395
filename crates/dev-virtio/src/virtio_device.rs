//! What a kind of device is to the part that all of them share.

use std::sync::Arc;

use device::{Error, SavedState};

use crate::{DeviceQueue, Link};

/// The kinds of device, with their numbers (virtio 1.2, chapter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// A disk (5.2).
    Block,
    /// Serial ports and consoles (5.3).
    Console,
    /// Random numbers (5.4).
    Entropy,
    /// Memory that the guest gives back for a while (5.5).
    Balloon,
}

impl DeviceType {
    /// The device ID.
    pub fn id(self) -> u16 {
        match self {
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
            Self::Balloon => 5,
        }
    }

    /// The class code that the device has on PCI, in 24 bits.
    pub fn pci_class(self) -> u32 {
        match self {
            Self::Block => 0x01_0000,
            Self::Console => 0x07_8000,
            Self::Entropy | Self::Balloon => 0x00_ff00,
        }
    }

    /// The name of its saved state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "virtio-blk",
            Self::Console => "virtio-console",
            Self::Entropy => "virtio-rng",
            Self::Balloon => "virtio-balloon",
        }
    }
}

/// A kind of device: what it offers, its configuration space, and what it does with its queues.
///
/// Calls come from vCPU threads, from the control side and (its own work) from wherever the device lets that run. It
/// reaches guest memory only through [`DeviceQueue::lock`], which says no while the device may not.
pub trait VirtioDevice: Send + Sync + 'static {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// The feature bits 0 to 23 that it offers; those of queues and transport are added by [`crate::VirtioCore`].
    fn features(&self) -> u64;

    /// The largest size of each of its queues, in descriptors: powers of two, at most [`crate::MAX_QUEUE_SIZE`]. There
    /// are at least one and at most [`crate::MAX_QUEUES`] of them.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration space as it is now.
    fn config(&self) -> Vec<u8>;

    /// The driver has written these bytes of the configuration space, which end within it.
    fn write_config(&self, offset: usize, bytes: &[u8]);

    /// Its queues, and its way to tell the driver something. Called once, before anything else but the methods above.
    fn connect(&self, link: Arc<Link>, queues: Vec<Arc<DeviceQueue>>);

    /// The driver is ready (DRIVER_OK) and has chosen these features; queues run. Queues may hold buffers already.
    fn activate(&self, features: u64);

    /// The driver says that a queue has new buffers, or the machine goes on after a pause. The queue may be one that is
    /// not running.
    fn queue_notified(&self, index: u16);

    /// Back to the state before [`VirtioDevice::activate`]. The queues have stopped; what is under way can reach guest
    /// memory no more.
    fn reset(&self);

    /// What the device itself must remember, without what its queues hold.
    ///
    /// # Errors
    /// As [`device::Device::save`].
    fn save(&self) -> Result<SavedState, Error>;

    /// Takes over what [`VirtioDevice::save`] gave, possibly elsewhere. The device has been reset before, and is
    /// activated afterwards if it was active. On an error it is as after a reset.
    ///
    /// # Errors
    /// As [`device::Device::restore`].
    fn restore(&self, state: &SavedState) -> Result<(), Error>;
}
