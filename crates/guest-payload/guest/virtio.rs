//! virtio 1.2: devices on PCI or in memory, and split queues with one request at a time.

use core::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::cpu::{read_register, write_register};
use crate::interrupts;

pub const BLOCK: u32 = 2;
pub const CONSOLE: u32 = 3;
pub const ENTROPY: u32 = 4;
pub const BALLOON: u32 = 5;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const MODERN: u32 = 2;
const VERSION_1: u64 = 1 << 32;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// The largest queue that a page is laid out for.
const MAX_QUEUE_SIZE: u16 = 32;
const MAX_QUEUES: usize = 24;
/// The available ring and the used ring in a queue's page, behind the descriptors.
const AVAILABLE: u64 = 0x200;
const USED: u64 = 0x300;
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
const NO_INTERRUPT: u16 = 1;
/// Looks at a queue before the CPU sleeps over it.
const BUSY_LOOKS: u32 = 20_000;

/// Where the parts of a device on PCI are.
pub struct PciParts {
    pub common: u64,
    pub notify: u64,
    pub multiplier: u32,
    pub config: u64,
}

enum Transport {
    Pci(PciParts),
    Memory(u64),
}

pub struct Device {
    kind: u32,
    transport: Transport,
}

/// A queue with its page.
pub struct Queue {
    page: u64,
    doorbell: u64,
    index: u16,
    size: u16,
    /// Wide doorbells: those in memory take 32 bits.
    wide: bool,
    sent: u16,
    seen: u16,
}

/// A part of a request.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub bytes: u32,
    pub device_writes: bool,
}

#[repr(C, align(4096))]
struct Pages([[u8; 4096]; MAX_QUEUES]);

static mut PAGES: Pages = Pages([[0; 4096]; MAX_QUEUES]);
static PAGES_TAKEN: AtomicUsize = AtomicUsize::new(0);

/// After the devices were reset, all pages are free.
pub fn forget_queues() {
    PAGES_TAKEN.store(0, Ordering::Relaxed);
}

impl Device {
    pub fn on_pci(kind: u32, parts: PciParts) -> Self {
        Self {
            kind,
            transport: Transport::Pci(parts),
        }
    }

    /// A device in memory, if there is one of today's kind.
    pub fn at_memory(base: u64) -> Option<Self> {
        let modern =
            read_register::<u32>(base) == MAGIC && read_register::<u32>(base + 4) == MODERN;
        let kind = read_register(base + 8);
        (modern && kind != 0).then_some(Self {
            kind,
            transport: Transport::Memory(base),
        })
    }

    pub fn kind(&self) -> u32 {
        self.kind
    }

    /// A 32-bit field of the device's own configuration.
    pub fn config(&self, offset: u64) -> u32 {
        read_register(self.config_at() + offset)
    }

    pub fn set_config(&self, offset: u64, value: u32) {
        write_register(self.config_at() + offset, value);
    }

    fn config_at(&self) -> u64 {
        match &self.transport {
            Transport::Pci(parts) => parts.config,
            Transport::Memory(base) => base + 0x100,
        }
    }

    fn status(&self) -> u8 {
        match &self.transport {
            Transport::Pci(parts) => read_register(parts.common + 0x14),
            Transport::Memory(base) => read_register::<u32>(base + 0x70) as u8,
        }
    }

    fn set_status(&self, status: u8) {
        match &self.transport {
            Transport::Pci(parts) => write_register(parts.common + 0x14, status),
            Transport::Memory(base) => write_register(base + 0x70, u32::from(status)),
        }
    }

    fn features(&self) -> u64 {
        let (select, value) = match &self.transport {
            Transport::Pci(parts) => (parts.common, parts.common + 4),
            Transport::Memory(base) => (base + 0x14, base + 0x10),
        };
        let half = |number: u32| {
            write_register(select, number);
            u64::from(read_register::<u32>(value))
        };
        half(0) | half(1) << 32
    }

    fn set_features(&self, features: u64) {
        let (select, value) = match &self.transport {
            Transport::Pci(parts) => (parts.common + 8, parts.common + 12),
            Transport::Memory(base) => (base + 0x24, base + 0x20),
        };
        for (number, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            write_register(select, number);
            write_register(value, half);
        }
    }

    /// Resets the device and agrees on features: those wanted that it has (3.1.1, steps 1 to 6).
    pub fn begin(&self, wanted: u64) -> Option<u64> {
        self.set_status(0);
        while self.status() != 0 {
            core::hint::spin_loop();
        }
        self.set_status(ACKNOWLEDGE | DRIVER);
        let features = self.features() & (wanted | VERSION_1);
        self.set_features(features);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        (self.status() & FEATURES_OK != 0).then_some(features)
    }

    /// The device may go (step 8).
    pub fn ready(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn queue(&self, index: u16) -> Option<Queue> {
        let number = PAGES_TAKEN.fetch_add(1, Ordering::Relaxed);
        if number >= MAX_QUEUES {
            return None;
        }
        let page = (&raw mut PAGES) as u64 + number as u64 * 4096;
        // SAFETY: nobody else has this page.
        unsafe { (page as *mut u8).write_bytes(0, 4096) };
        write_register(page + AVAILABLE, NO_INTERRUPT);
        let (doorbell, size) = match &self.transport {
            Transport::Pci(parts) => pci_queue(parts, index, page)?,
            Transport::Memory(base) => memory_queue(*base, index, page)?,
        };
        Some(Queue {
            page,
            doorbell,
            index,
            size,
            wide: matches!(self.transport, Transport::Memory(_)),
            sent: 0,
            seen: 0,
        })
    }
}

/// Gives the doorbell and the queue's size.
fn pci_queue(parts: &PciParts, index: u16, page: u64) -> Option<(u64, u16)> {
    let common = parts.common;
    write_register(common + 0x16, index);
    let size = read_register::<u16>(common + 0x18).min(MAX_QUEUE_SIZE);
    if size == 0 {
        return None;
    }
    write_register(common + 0x18, size);
    for (at, address) in [(0x20, page), (0x28, page + AVAILABLE), (0x30, page + USED)] {
        write_register(common + at, address as u32);
        write_register(common + at + 4, (address >> 32) as u32);
    }
    let offset: u16 = read_register(common + 0x1e);
    write_register(common + 0x1c, 1_u16);
    let doorbell = parts.notify + u64::from(offset) * u64::from(parts.multiplier);
    Some((doorbell, size))
}

fn memory_queue(base: u64, index: u16, page: u64) -> Option<(u64, u16)> {
    write_register(base + 0x30, u32::from(index));
    let size = read_register::<u32>(base + 0x34).min(u32::from(MAX_QUEUE_SIZE));
    if size == 0 {
        return None;
    }
    write_register(base + 0x38, size);
    for (at, address) in [(0x80, page), (0x90, page + AVAILABLE), (0xa0, page + USED)] {
        write_register(base + at, address as u32);
        write_register(base + at + 4, (address >> 32) as u32);
    }
    write_register(base + 0x44, 1_u32);
    Some((base + 0x50, size as u16))
}

impl Queue {
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Hands a request to the device. The one before must be [`Queue::finished`].
    pub fn send(&mut self, buffers: &[Buffer]) {
        self.send_from(0, buffers);
    }

    /// Hands a request to the device whose descriptors begin at `first`; it is known by that.
    pub fn send_from(&mut self, first: u16, buffers: &[Buffer]) {
        let last = buffers.len().saturating_sub(1);
        for (number, buffer) in buffers.iter().enumerate() {
            let descriptor = first + number as u16;
            let at = self.page + u64::from(descriptor) * 16;
            let mut flags = if number < last { NEXT } else { 0 };
            if buffer.device_writes {
                flags |= DEVICE_WRITES;
            }
            write_register(at, buffer.address);
            write_register(at + 8, buffer.bytes);
            write_register(at + 12, flags);
            write_register(at + 14, descriptor + 1);
        }
        let available = self.page + AVAILABLE;
        write_register(available + 4 + u64::from(self.sent % self.size) * 2, first);
        self.sent = self.sent.wrapping_add(1);
        fence(Ordering::SeqCst);
        write_register(available + 2, self.sent);
        fence(Ordering::SeqCst);
        if self.wide {
            write_register(self.doorbell, u32::from(self.index));
        } else {
            write_register(self.doorbell, self.index);
        }
    }

    /// The number of bytes that the device wrote, if it has finished.
    pub fn finished(&mut self) -> Option<u32> {
        self.next_finished().map(|(_, bytes)| bytes)
    }

    /// A request that the device has finished: its first descriptor, and the bytes written.
    pub fn next_finished(&mut self) -> Option<(u16, u32)> {
        let used = self.page + USED;
        if read_register::<u16>(used + 2) == self.seen {
            return None;
        }
        fence(Ordering::SeqCst);
        let entry = used + 4 + u64::from(self.seen % self.size) * 8;
        let (first, bytes): (u32, u32) = (read_register(entry), read_register(entry + 4));
        self.seen = self.seen.wrapping_add(1);
        Some((first as u16, bytes))
    }

    /// Hands a request over and waits for its end: first busily, then from timer to timer.
    pub fn run(&mut self, buffers: &[Buffer]) -> u32 {
        self.send(buffers);
        let mut looks = 0;
        loop {
            if let Some(bytes) = self.finished() {
                return bytes;
            }
            looks += 1;
            if looks < BUSY_LOOKS {
                core::hint::spin_loop();
            } else {
                interrupts::wait();
            }
        }
    }
}

/// A buffer over a value.
pub fn over<T>(value: &mut T, device_writes: bool) -> Buffer {
    Buffer {
        address: (&raw mut *value) as u64,
        bytes: size_of::<T>() as u32,
        device_writes,
    }
}
