//! The first virtio disk: sector 0 is read, and if the command line says `disk=write` a counter in
//! the last sector goes up, once a second.

use crate::serial::say;
use crate::tick_page;
use crate::virtio::{Device, Queue, over};

const READ: u32 = 0;
const WRITE: u32 = 1;
const MAGIC: [u8; 8] = *b"RATITEDC";
const SECTORS_A_MIB: u64 = 2048;

#[repr(C, align(512))]
pub struct Sector(pub [u8; 512]);

/// What is done with a sector.
#[derive(Clone, Copy)]
pub enum Operation {
    Read,
    Write,
}

#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

pub struct Disk {
    queue: Queue,
    sectors: u64,
    writes: bool,
    device: Device,
}

impl Disk {
    pub fn start(device: Device, writes: bool) -> Option<Self> {
        device.begin(0)?;
        let queue = device.queue(0)?;
        device.ready();
        let mut disk = Self {
            queue,
            sectors: 0,
            writes,
            device,
        };
        disk.measure();
        disk.describe();
        Some(disk)
    }

    /// The disk may have been resized.
    fn measure(&mut self) {
        let (low, high) = (self.device.config(0), self.device.config(4));
        self.sectors = u64::from(low) | u64::from(high) << 32;
    }

    fn transfer(&mut self, kind: u32, number: u64, sector: &mut Sector) -> Result<(), u8> {
        let mut header = Header {
            kind,
            reserved: 0,
            sector: number,
        };
        let mut status = 0xff_u8;
        let buffers = [
            over(&mut header, false),
            over(sector, kind == READ),
            over(&mut status, true),
        ];
        self.queue.run(&buffers);
        // The device wrote it behind the compiler's back.
        // SAFETY: a byte of ours.
        match unsafe { (&raw const status).read_volatile() } {
            0 => Ok(()),
            other => Err(other),
        }
    }

    /// Reads or writes a sector.
    pub fn do_sector(
        &mut self,
        operation: Operation,
        number: u64,
        sector: &mut Sector,
    ) -> Result<(), u8> {
        let kind = match operation {
            Operation::Read => READ,
            Operation::Write => WRITE,
        };
        self.transfer(kind, number, sector)
    }

    pub fn describe(&mut self) {
        self.measure();
        let mut sector = Sector([0; 512]);
        let mib = self.sectors / SECTORS_A_MIB;
        match self.transfer(READ, 0, &mut sector) {
            Ok(()) => say!(
                "disk: {} sectors ({mib} MiB), sector 0 begins {:02x?}",
                self.sectors,
                &sector.0[..8]
            ),
            Err(status) => say!("disk: {} sectors, reading failed: {status}", self.sectors),
        }
    }

    pub fn every_second(&mut self) {
        let mut sector = Sector([0; 512]);
        if let Err(status) = self.transfer(READ, 0, &mut sector) {
            say!("disk: reading failed: {status}");
        }
        if self.writes {
            match self.count() {
                Ok(count) => say!("disk counter {count}"),
                Err(status) => say!("disk: counting failed: {status}"),
            }
        }
    }

    fn count(&mut self) -> Result<u64, u8> {
        self.measure();
        let last = self.sectors.saturating_sub(1);
        let mut sector = Sector([0; 512]);
        self.transfer(READ, last, &mut sector)?;
        let [magic, count] = [0, 8].map(|at| {
            let mut field = [0; 8];
            field.copy_from_slice(&sector.0[at..at + 8]);
            field
        });
        let count = match magic {
            MAGIC => u64::from_le_bytes(count).wrapping_add(1),
            _ => 1,
        };
        sector.0[..8].copy_from_slice(&MAGIC);
        sector.0[8..16].copy_from_slice(&count.to_le_bytes());
        self.transfer(WRITE, last, &mut sector)?;
        tick_page::set_disk_counter(count);
        Ok(count)
    }
}
