#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cdrom;
mod disk;
mod lives;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::BlockdevOnError;
use block_doubles::Storage;
use block_graph::{BlockBackend, BlockErrorSink, BlockIoError, NodeOptions};
use device::doubles::{RecordingPins, SmallMemory};
use device::pci::{PciAddress, PciBus, PciFunction};
use device::{Device, DmaSpace, IoHandler, IoMap, IrqLine, ResetKind, Width};
use host_io::{Engine, Executor};
use parking_lot::Mutex;

use crate::{DriveEvents, DriveKind, DriveOptions, Ide, IdePart, IdePlace};

pub(crate) const PRIMARY: IdePlace = IdePlace {
    channel: 0,
    unit: 0,
};
const COMMAND: u64 = 7;
const MASTER: u64 = 0xc000;
const TABLE: u64 = 0x100;

#[derive(Default)]
pub(crate) struct Events {
    pub(crate) errors: Mutex<Vec<BlockIoError>>,
    pub(crate) tray: Mutex<Vec<bool>>,
}

impl BlockErrorSink for Events {
    fn block_io_error(&self, error: &BlockIoError) {
        self.errors.lock().push(error.clone());
    }
}

impl DriveEvents for Events {
    fn tray_moved(&self, is_open: bool) {
        self.tray.lock().push(is_open);
    }
}

pub(crate) fn backend_over(storage: &Storage, is_writable: bool) -> Arc<BlockBackend> {
    let driver = Box::new(storage.clone());
    block_doubles::backend(driver, NodeOptions::default(), is_writable)
}

/// Bytes that tell where they are.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at as u8) ^ ((at >> 8) as u8).wrapping_mul(31) ^ ((at >> 16) as u8))
        .collect()
}

/// A controller with one drive, and what stands around it.
pub(crate) struct Rig {
    pub(crate) ide: Arc<Ide>,
    pub(crate) ports: Arc<IoMap>,
    pub(crate) command: Arc<dyn IoHandler>,
    pub(crate) control: Arc<dyn IoHandler>,
    pub(crate) pins: Arc<RecordingPins>,
    pub(crate) memory: Arc<SmallMemory>,
    pub(crate) events: Arc<Events>,
    pub(crate) storage: Storage,
    _executor: Executor,
}

pub(crate) struct Choices {
    pub(crate) kind: DriveKind,
    pub(crate) content: Vec<u8>,
    pub(crate) has_medium: bool,
    pub(crate) is_writable: bool,
    pub(crate) werror: BlockdevOnError,
}

impl Rig {
    pub(crate) fn disk(sectors: usize) -> Rig {
        Rig::new(Choices {
            kind: DriveKind::Disk,
            content: pattern(sectors * 512),
            has_medium: true,
            is_writable: true,
            werror: BlockdevOnError::Auto,
        })
    }

    pub(crate) fn cdrom(sectors: usize) -> Rig {
        Rig::new(Choices {
            kind: DriveKind::CdRom,
            content: pattern(sectors * 2048),
            has_medium: sectors > 0,
            is_writable: false,
            werror: BlockdevOnError::Auto,
        })
    }

    pub(crate) fn new(choices: Choices) -> Rig {
        let pins = Arc::new(RecordingPins::default());
        let ports = Arc::new(IoMap::new(IoMap::LAST_PORT));
        let registers = Arc::new(IoMap::new(u64::MAX));
        let lines = [0; 4].map(|_: u8| IrqLine::unconnected());
        let bus = PciBus::new(Arc::clone(&ports), registers, pins.clone(), lines);
        let memory = Arc::new(SmallMemory::new(4 << 20));
        let dma: Arc<dyn DmaSpace> = memory.clone();
        let irqs = [14, 15].map(|pin| IrqLine::new(pins.clone(), pin));
        let ide = Ide::new(&bus, PciAddress::new(1, 1).unwrap(), &dma, irqs);
        let executor = Executor::start("ide", Engine::Threads).unwrap();
        let storage = Storage::new(choices.content);
        let events = Arc::<Events>::default();
        let medium = choices
            .has_medium
            .then(|| backend_over(&storage, choices.is_writable));
        let options = DriveOptions {
            kind: choices.kind,
            medium,
            executor: executor.handle(),
            serial: "QM00001".to_owned(),
            model: "RATITE HARDDISK".to_owned(),
            version: "1.0".to_owned(),
            write_cache: true,
            rerror: BlockdevOnError::Auto,
            werror: choices.werror,
            events: events.clone(),
        };
        ide.attach(PRIMARY, options).unwrap();
        let rig = Rig {
            command: ide.handler(0, IdePart::Command).unwrap(),
            control: ide.handler(0, IdePart::Control).unwrap(),
            ide,
            ports,
            pins,
            memory,
            events,
            storage,
            _executor: executor,
        };
        rig.ide.reset(ResetKind::PowerOn);
        // The bus master at its ports, and allowed to be one.
        let header = rig.ide.header();
        header.write(0x20, Width::Dword, MASTER);
        header.write(0x04, Width::Word, 5);
        rig
    }

    pub(crate) fn get(&self, register: u64) -> u8 {
        self.command.read(register, Width::Byte) as u8
    }

    pub(crate) fn set(&self, register: u64, value: u8) {
        self.command.write(register, Width::Byte, value.into());
    }

    /// Count, LBA of 28 bits, command.
    pub(crate) fn issue(&self, command: u8, lba: u32, count: u8) {
        let [low, mid, high, top] = lba.to_le_bytes();
        self.set(6, 0xe0 | top & 15);
        for (register, value) in [
            (2, count),
            (3, low),
            (4, mid),
            (5, high),
            (COMMAND, command),
        ] {
            self.set(register, value);
        }
    }

    /// Count, LBA of 48 bits, command.
    pub(crate) fn issue_48(&self, command: u8, lba: u64, count: u16) {
        let [count_low, count_high] = count.to_le_bytes();
        let [b0, b1, b2, b3, b4, b5, ..] = lba.to_le_bytes();
        self.set(6, 0x40);
        let writes = [
            (2, count_high),
            (3, b3),
            (4, b4),
            (5, b5),
            (2, count_low),
            (3, b0),
            (4, b1),
            (5, b2),
        ];
        for (register, value) in writes {
            self.set(register, value);
        }
        self.set(COMMAND, command);
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(20), "no {what}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The status once the drive is not busy.
    pub(crate) fn settled(&self) -> u8 {
        self.until("end of BSY", || {
            self.control.read(0, Width::Byte) & 0x80 == 0
        });
        self.control.read(0, Width::Byte) as u8
    }

    pub(crate) fn quiet(&self) {
        self.until("end of the task", || self.ide.is_quiet());
    }

    /// The status once the drive interrupts; that is acknowledged.
    pub(crate) fn interrupted(&self) -> u8 {
        self.until("interrupt", || self.pins.level(14));
        let status = self.get(COMMAND);
        assert!(!self.pins.level(14), "reading the status acknowledges");
        status
    }

    pub(crate) fn words(&self, bytes: usize) -> Vec<u8> {
        (0..bytes / 2)
            .flat_map(|_| (self.command.read(0, Width::Word) as u16).to_le_bytes())
            .collect()
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        for word in bytes.chunks(2) {
            let word = u16::from_le_bytes([word[0], word[1]]);
            self.command.write(0, Width::Word, word.into());
        }
    }

    /// Sets up the bus master with a table of `(address, bytes)`, and starts it.
    pub(crate) fn start_dma(&self, table: &[(u32, u16)], is_to_memory: bool) {
        for (index, (address, bytes)) in (0..).zip(table) {
            let last = index + 1 == table.len() as u64;
            let flags = if last { 0x8000_u16 } else { 0 };
            let entry = [
                &address.to_le_bytes()[..],
                &bytes.to_le_bytes(),
                &flags.to_le_bytes(),
            ];
            self.memory
                .write(TABLE + index * 8, &entry.concat())
                .unwrap();
        }
        self.ports.write(MASTER, Width::Byte, 0);
        self.ports.write(MASTER + 2, Width::Byte, 6);
        self.ports.write(MASTER + 4, Width::Dword, TABLE);
        let command = 1 | u64::from(is_to_memory) << 3;
        self.ports.write(MASTER, Width::Byte, command);
    }

    pub(crate) fn master_status(&self) -> u8 {
        self.ports.read(MASTER + 2, Width::Byte) as u8
    }

    pub(crate) fn in_memory(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        self.memory.read(address, &mut found).unwrap();
        found
    }

    /// Sends a packet; gives the status once it is taken.
    pub(crate) fn packet(&self, features: u8, limit: u16, packet: &[u8]) {
        let [low, high] = limit.to_le_bytes();
        self.set(6, 0xa0);
        for (register, value) in [(1, features), (4, low), (5, high), (COMMAND, 0xa0)] {
            self.set(register, value);
        }
        assert_eq!(self.settled(), 0x58);
        assert_eq!(self.get(2), 1, "a command is wanted");
        let mut all = packet.to_vec();
        all.resize(12, 0);
        self.send(&all);
    }

    /// A packet whose reply is read piece by piece, until the end.
    pub(crate) fn reply(&self, limit: u16, packet: &[u8]) -> (u8, Vec<u8>) {
        self.packet(0, limit, packet);
        let mut bytes = Vec::new();
        loop {
            let status = self.interrupted();
            if status & 8 == 0 {
                assert_eq!(self.get(2), 3);
                return (status, bytes);
            }
            assert_eq!(self.get(2), 2);
            let piece = usize::from(u16::from_le_bytes([self.get(4), self.get(5)]));
            assert!(piece > 0 && piece <= usize::from(limit).max(2));
            bytes.extend(self.words(piece.next_multiple_of(2)));
        }
    }
}

impl Rig {
    pub(crate) fn memory_put(&self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes).unwrap();
    }
}
