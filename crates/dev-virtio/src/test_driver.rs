//! A driver for tests: memory with rings in it, behind MMIO registers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use device::doubles::RecordingPins;
use device::{IoHandler, IrqLine, Width};
use guest_memory::{GuestMemory, GuestPhysAddr};
use virtio_bindings::virtio_mmio::*;

use crate::{VirtioDevice, VirtioMmio};

/// Guest RAM begins here, so that address 0 is a hole.
pub const RAM_START: u64 = 0x10_0000;
/// Its size.
pub const RAM_BYTES: u64 = 0x40_0000;
/// Descriptors of each queue that the driver sets up.
pub const SIZE: u16 = 16;
/// Where the rings of a queue lie, beyond those of the one before.
const QUEUE_BYTES: u64 = 0x2000;
/// What a test may use for its buffers begins here.
pub const BUFFERS: u64 = RAM_START + 0x10_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub bytes: u32,
    pub is_writable: bool,
}

pub fn readable(address: u64, bytes: u32) -> Buffer {
    Buffer {
        address,
        bytes,
        is_writable: false,
    }
}

pub fn writable(address: u64, bytes: u32) -> Buffer {
    Buffer {
        address,
        bytes,
        is_writable: true,
    }
}

#[derive(Clone, Copy, Default)]
struct Ring {
    /// The next descriptor to use; they are used round and round.
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

pub struct Driver {
    pub memory: Arc<GuestMemory>,
    pub pins: Arc<RecordingPins>,
    pub mmio: Arc<VirtioMmio>,
    rings: Vec<Ring>,
}

pub fn guest_memory() -> Arc<GuestMemory> {
    guest_memory_of(RAM_BYTES)
}

pub fn guest_memory_of(bytes: u64) -> Arc<GuestMemory> {
    let memory = GuestMemory::new(bytes).unwrap();
    memory.add_ram(GuestPhysAddr(RAM_START), bytes).unwrap();
    Arc::new(memory)
}

impl Driver {
    pub fn new(device: Arc<dyn VirtioDevice>) -> Driver {
        Driver::over(device, guest_memory())
    }

    pub fn over(device: Arc<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> Driver {
        let pins = Arc::new(RecordingPins::default());
        let line = IrqLine::new(pins.clone(), 5);
        let queues = device.queue_sizes().len();
        Driver {
            mmio: VirtioMmio::new(device, memory.clone(), line).unwrap(),
            memory,
            pins,
            rings: vec![Ring::default(); queues],
        }
    }

    pub fn read(&self, register: u32) -> u32 {
        self.mmio.read(register.into(), Width::Dword) as u32
    }

    pub fn write(&self, register: u32, value: u32) {
        self.mmio.write(register.into(), Width::Dword, value.into());
    }

    pub fn offered(&self) -> u64 {
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let low = self.read(VIRTIO_MMIO_DEVICE_FEATURES);
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES)) << 32 | u64::from(low)
    }

    pub fn negotiate(&self, features: u64) -> bool {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.write(VIRTIO_MMIO_STATUS, 1);
        self.write(VIRTIO_MMIO_STATUS, 3);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
        self.write(VIRTIO_MMIO_STATUS, 11);
        self.status() & 8 != 0
    }

    pub fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    pub fn is_broken(&self) -> bool {
        self.status() & 64 != 0
    }

    pub fn table(queue: u16) -> u64 {
        RAM_START + u64::from(queue) * QUEUE_BYTES
    }

    pub fn available(queue: u16) -> u64 {
        Self::table(queue) + 0x800
    }

    pub fn used(queue: u16) -> u64 {
        Self::table(queue) + 0x1000
    }

    pub fn set_address(&self, low: u32, address: u64) {
        self.write(low, address as u32);
        self.write(low + 4, (address >> 32) as u32);
    }

    pub fn set_up_queue(&mut self, queue: u16) {
        self.memory
            .write(
                GuestPhysAddr(Self::table(queue)),
                &[0; QUEUE_BYTES as usize],
            )
            .unwrap();
        self.rings[usize::from(queue)] = Ring::default();
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue.into());
        let max = self.read(VIRTIO_MMIO_QUEUE_NUM_MAX) as u16;
        self.write(VIRTIO_MMIO_QUEUE_NUM, SIZE.min(max).into());
        self.set_address(VIRTIO_MMIO_QUEUE_DESC_LOW, Self::table(queue));
        self.set_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, Self::available(queue));
        self.set_address(VIRTIO_MMIO_QUEUE_USED_LOW, Self::used(queue));
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Negotiates, sets up all queues and begins.
    pub fn start(&mut self, features: u64) {
        assert!(self.negotiate(features | VERSION_1));
        for queue in 0..self.rings.len() as u16 {
            self.set_up_queue(queue);
        }
        self.write(VIRTIO_MMIO_STATUS, 15);
        assert_eq!(self.status(), 15);
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write(GuestPhysAddr(address), bytes).unwrap();
    }

    pub fn get(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        self.memory.read(GuestPhysAddr(address), &mut into).unwrap();
        into
    }

    fn word(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address, 2).try_into().unwrap())
    }

    pub fn put_descriptor(&self, at: u64, address: u64, bytes: u32, flags: u16, next: u16) {
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &bytes.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    fn size(&self, queue: u16) -> u16 {
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue.into());
        SIZE.min(self.read(VIRTIO_MMIO_QUEUE_NUM_MAX) as u16)
    }

    /// Makes a chain available without notifying; gives its head.
    pub fn offer(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let size = self.size(queue);
        let head = self.rings[usize::from(queue)].next_descriptor;
        for (index, buffer) in buffers.iter().enumerate() {
            let at = (head + index as u16) % size;
            let is_last = index + 1 == buffers.len();
            let flags = if buffer.is_writable { WRITE } else { 0 } | if is_last { 0 } else { NEXT };
            self.put_descriptor(
                Self::table(queue) + 16 * u64::from(at),
                buffer.address,
                buffer.bytes,
                flags,
                (at + 1) % size,
            );
        }
        self.rings[usize::from(queue)].next_descriptor = (head + buffers.len() as u16) % size;
        self.offer_head(queue, head);
        head
    }

    pub fn offer_head(&mut self, queue: u16, head: u16) {
        let size = self.size(queue);
        let ring = &mut self.rings[usize::from(queue)];
        let slot = Self::available(queue) + 4 + 2 * u64::from(ring.next_available % size);
        ring.next_available = ring.next_available.wrapping_add(1);
        let index = ring.next_available;
        self.put(slot, &head.to_le_bytes());
        self.put(Self::available(queue) + 2, &index.to_le_bytes());
    }

    pub fn notify(&self, queue: u16) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
    }

    /// Offers and notifies.
    pub fn send(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let head = self.offer(queue, buffers);
        self.notify(queue);
        head
    }

    /// Takes the next used chain: head and bytes written.
    pub fn take_used(&mut self, queue: u16) -> Option<(u16, u32)> {
        let size = self.size(queue);
        let ring = &mut self.rings[usize::from(queue)];
        let next = ring.next_used;
        if self.memory_word(Self::used(queue) + 2) == next {
            return None;
        }
        let at = Self::used(queue) + 4 + 8 * u64::from(next % size);
        self.rings[usize::from(queue)].next_used = next.wrapping_add(1);
        let bytes = self.get(at, 8);
        let head = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let written = u32::from_le_bytes(bytes[4..].try_into().unwrap());
        Some((u16::try_from(head).unwrap(), written))
    }

    fn memory_word(&self, address: u64) -> u16 {
        self.word(address)
    }

    /// Waits for the next used chain.
    pub fn wait_used(&mut self, queue: u16) -> (u16, u32) {
        let began = Instant::now();
        loop {
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "no answer");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether the interrupt line is high; acknowledges.
    pub fn take_interrupt(&self) -> u32 {
        let status = self.read(VIRTIO_MMIO_INTERRUPT_STATUS);
        assert_eq!(self.pins.level(5), status != 0);
        self.write(VIRTIO_MMIO_INTERRUPT_ACK, status);
        status
    }

    pub fn mmio_config(&self, offset: u64, width: Width, value: u64) {
        self.mmio.write(0x100 + offset, width, value);
    }

    pub fn config(&self, offset: u64, width: Width) -> u64 {
        self.mmio.read(0x100 + offset, width)
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
