//! What a device and its queues have in common with the transport: status, interrupts, and leave to touch memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use guest_memory::GuestMemory;
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};

/// Status bit: the driver uses the device.
pub(crate) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
/// Status bit: the device is broken until the driver resets it.
pub(crate) const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// How a transport interrupts the driver. Called with a queue's lock held: it calls nothing upwards.
pub trait VirtioInterrupt: Send + Sync + 'static {
    /// A queue has used buffers.
    fn queue(&self, index: u16);

    /// The configuration space or the device's status has changed.
    fn config(&self);
}

/// One device's connection to its driver, shared by the device, its queues and the transport.
pub struct Link {
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn VirtioInterrupt>,
    status: AtomicU8,
    config_generation: AtomicU32,
    paused: AtomicBool,
    resumes: AtomicU64,
    is_master: AtomicBool,
}

impl Link {
    pub(crate) fn new(memory: Arc<GuestMemory>, interrupt: Arc<dyn VirtioInterrupt>) -> Arc<Link> {
        Arc::new(Link {
            memory,
            interrupt,
            status: AtomicU8::new(0),
            config_generation: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            resumes: AtomicU64::new(0),
            is_master: AtomicBool::new(true),
        })
    }

    /// The configuration space is another now; the driver is told, if there is one.
    pub fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        if self.status() & DRIVER_OK != 0 {
            self.interrupt.config();
        }
    }

    /// The driver did what it must not: the device stops until it is reset (virtio 1.2, 2.1.2). `reason` is for people.
    pub fn mark_broken(&self, reason: &str) {
        let before = self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
        if before & NEEDS_RESET == 0 {
            tracing::warn!(
                reason,
                "a guest's virtio driver is at fault; the device needs a reset"
            );
            if before & DRIVER_OK != 0 {
                self.interrupt.config();
            }
        }
    }

    /// Whether the device waits for a reset.
    pub fn is_broken(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    /// Guest memory, for devices that reach it otherwise than through queues.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Whether queues may be worked on: not paused, not broken, a bus master.
    pub(crate) fn may_work(&self) -> bool {
        !self.paused.load(Ordering::SeqCst)
            && self.is_master.load(Ordering::SeqCst)
            && !self.is_broken()
    }

    pub(crate) fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    pub(crate) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    pub(crate) fn set_status(&self, status: u8) {
        self.status.store(status, Ordering::Release);
    }

    pub(crate) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::Acquire)
    }

    pub(crate) fn set_config_generation(&self, generation: u32) {
        self.config_generation.store(generation, Ordering::Release);
    }

    pub(crate) fn interrupt_queue(&self, index: u16) {
        self.interrupt.queue(index);
    }

    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
        self.resumes.fetch_add(1, Ordering::SeqCst);
    }

    /// How often the machine has gone on after a pause.
    pub fn resumes(&self) -> u64 {
        self.resumes.load(Ordering::SeqCst)
    }

    /// Says whether the function may reach memory; true if that is news.
    pub(crate) fn set_master(&self, is_master: bool) -> bool {
        self.is_master.swap(is_master, Ordering::SeqCst) != is_master
    }
}
