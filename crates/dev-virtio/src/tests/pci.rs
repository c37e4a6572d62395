use std::sync::Arc;

use device::conformance::{self, Subject};
use device::doubles::RecordingPins;
use device::pci::{PciAddress, PciBus, PciFunction};
use device::{Clock, Device, IoHandler, IoMap, IrqLine, MsiMessage, ResetKind, Width};
use guest_memory::GuestMemory;

use crate::test_driver::*;
use crate::{HostEntropy, PciOptions, VirtioPci, VirtioRng};

const DEVFN: u8 = 3 << 3;
const BASE: u64 = 0x8_0000_0000;
const MSIX_BASE: u64 = 0xe000_0000;

struct Bench {
    bus: Arc<PciBus>,
    pins: Arc<RecordingPins>,
    memory: Arc<GuestMemory>,
    function: Arc<VirtioPci>,
    clock: Clock,
}

impl Bench {
    fn new(options: PciOptions) -> Bench {
        let pins = Arc::new(RecordingPins::default());
        let bus = PciBus::new(
            Arc::new(IoMap::new(IoMap::LAST_PORT)),
            Arc::new(IoMap::new((1 << 40) - 1)),
            pins.clone(),
            std::array::from_fn(|pin| IrqLine::new(pins.clone(), pin as u32)),
        );
        let address = PciAddress::new(3, 0).unwrap();
        let memory = guest_memory();
        let clock = Clock::stepped();
        let device = VirtioRng::new(Box::new(HostEntropy), None, &clock);
        let function = VirtioPci::new(&bus, address, device, memory.clone(), options).unwrap();
        assert!(bus.plug(address, function.clone()).is_ok());
        Bench {
            bus,
            pins,
            memory,
            function,
            clock,
        }
    }

    fn config(&self, offset: u8, width: Width) -> u64 {
        self.bus.config_read(DEVFN, offset, width)
    }

    fn set_config(&self, offset: u8, width: Width, value: u64) {
        self.bus.config_write(DEVFN, offset, width, value);
    }

    fn place(&self) {
        self.set_config(0x14, Width::Dword, MSIX_BASE);
        self.set_config(0x20, Width::Dword, BASE & 0xffff_ffff);
        self.set_config(0x24, Width::Dword, BASE >> 32);
        self.set_config(4, Width::Word, 7);
    }

    fn read(&self, offset: u64, width: Width) -> u64 {
        self.bus.memory().read(BASE + offset, width)
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.bus.memory().write(BASE + offset, width, value);
    }

    fn start(&self, vector: u16) {
        for status in [0, 1, 3] {
            self.write(0x14, Width::Byte, status);
        }
        self.write(0x08, Width::Dword, 1);
        self.write(0x0c, Width::Dword, 1);
        self.write(0x14, Width::Byte, 11);
        self.write(0x10, Width::Word, 0);
        self.write(0x16, Width::Word, 0);
        self.write(0x1a, Width::Word, vector.into());
        self.write(0x20, Width::Qword, Driver::table(0));
        self.write(0x28, Width::Dword, Driver::available(0));
        self.write(0x2c, Width::Dword, 0);
        self.write(0x30, Width::Dword, Driver::used(0));
        self.write(0x1c, Width::Word, 1);
        self.write(0x14, Width::Byte, 15);
        assert_eq!(self.read(0x14, Width::Byte), 15);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write(guest_memory::GuestPhysAddr(address), bytes)
            .unwrap();
    }

    /// Offers chain number `count`, counted from 1.
    fn offer(&self, count: u16) {
        self.put(Driver::table(0), &BUFFERS.to_le_bytes());
        self.put(Driver::table(0) + 8, &[4, 0, 0, 0, 2, 0, 0, 0]);
        self.put(Driver::available(0) + 2, &count.to_le_bytes());
    }

    fn used(&self) -> u16 {
        let mut bytes = [0; 2];
        let at = guest_memory::GuestPhysAddr(Driver::used(0) + 2);
        self.memory.read(at, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }
}

#[test]
fn it_looks_as_qemus_does() {
    let bench = Bench::new(PciOptions::default());
    assert_eq!(bench.config(0x00, Width::Dword), 0x1044_1af4);
    assert_eq!(bench.config(0x08, Width::Dword), 0x00ff_0001);
    assert_eq!(bench.config(0x2c, Width::Dword), 0x1100_1af4);
    assert_eq!(bench.config(0x3c, Width::Word), 0x0100);
    let areas = [
        (0x40, 0x0110, 0x0000),
        (0x50, 0x0310, 0x1000),
        (0x60, 0x0410, 0x2000),
        (0x70, 0x0214, 0x3000),
    ];
    for (at, kind, offset) in areas {
        assert_eq!(bench.config(at, Width::Byte), 9);
        assert_eq!(bench.config(at + 2, Width::Word), kind);
        assert_eq!(bench.config(at + 4, Width::Dword), 4);
        assert_eq!(bench.config(at + 8, Width::Dword), offset);
        assert_eq!(bench.config(at + 12, Width::Dword), 0x1000);
    }
    assert_eq!(bench.config(0x80, Width::Dword), 4);
    assert_eq!(bench.config(0x84, Width::Dword), 0x0514_9809);
    assert_eq!(bench.config(0x98, Width::Dword), 0x0001_0011);
    bench.place();
    assert_eq!(bench.read(0x12, Width::Word), 1);
    assert_eq!(bench.read(0x10, Width::Word), 0xffff);
    assert_eq!(bench.read(0x18, Width::Word), 8);
    assert_eq!(bench.read(0x04, Width::Dword), 0x3000_0000);
}

#[test]
fn an_interrupt_pin() {
    let bench = Bench::new(PciOptions {
        vectors: Some(0),
        multifunction: false,
    });
    bench.place();
    bench.start(0);
    assert_eq!(
        bench.read(0x1a, Width::Word),
        0xffff,
        "there are no vectors"
    );
    bench.offer(1);
    bench.write(0x3000, Width::Word, 0);
    assert_eq!(bench.used(), 1);
    // Slot 3, INTA: line C.
    assert!(bench.pins.level(2));
    assert_eq!(bench.read(0x1000, Width::Byte), 1);
    assert!(!bench.pins.level(2));
    assert_eq!(bench.read(0x1000, Width::Byte), 0);
}

#[test]
fn messages() {
    let bench = Bench::new(PciOptions::default());
    bench.place();
    let msix = bench.bus.memory();
    for vector in 0..2 {
        let entry = MSIX_BASE + 16 * vector;
        msix.write(entry, Width::Dword, 0xfee0_0000);
        msix.write(entry + 8, Width::Dword, 0x40 + vector);
        msix.write(entry + 12, Width::Dword, 0);
    }
    bench.set_config(0x9a, Width::Word, 0x8000);
    bench.start(1);
    bench.offer(1);
    bench.write(0x3000, Width::Word, 0);
    let message = |data| MsiMessage {
        address: 0xfee0_0000,
        data,
    };
    assert_eq!(bench.pins.take_messages(), [message(0x41)]);
    assert_eq!(bench.read(0x1000, Width::Byte), 0);
    // A driver at fault hears of it by the other vector.
    bench.offer(100);
    bench.write(0x3000, Width::Word, 0);
    assert_eq!(bench.read(0x14, Width::Byte), 15 | 64);
    assert_eq!(bench.pins.take_messages(), [message(0x40)]);
    bench.write(0x1a, Width::Word, 2);
    assert_eq!(bench.read(0x1a, Width::Word), 0xffff);
}

#[test]
fn memory_is_reached_by_a_bus_master_only() {
    let bench = Bench::new(PciOptions::default());
    bench.place();
    bench.start(0xffff);
    bench.set_config(4, Width::Word, 2);
    bench.offer(1);
    bench.write(0x3000, Width::Word, 0);
    assert_eq!(bench.used(), 0);
    bench.set_config(4, Width::Word, 6);
    assert_eq!(bench.used(), 1);
}

#[test]
fn access_through_configuration_space() {
    let bench = Bench::new(PciOptions::default());
    let access = |offset: u64, width: u64| {
        bench.set_config(0x88, Width::Byte, 4);
        bench.set_config(0x8c, Width::Dword, offset);
        bench.set_config(0x90, Width::Dword, width);
    };
    access(0x12, 2);
    assert_eq!(bench.config(0x94, Width::Word), 1);
    access(0x14, 1);
    bench.set_config(0x94, Width::Byte, 3);
    access(0x14, 1);
    assert_eq!(bench.config(0x94, Width::Byte), 3);
    for (offset, width) in [(0x4000, 4), (0xffff_fffc, 4), (2, 4), (0, 3), (0, 8)] {
        access(offset, width);
        bench.set_config(0x94, Width::Dword, 0);
    }
    access(0x14, 1);
    assert_eq!(bench.config(0x94, Width::Byte), 3);
}

#[test]
fn a_reset_machine_and_an_unplugged_function() {
    let bench = Bench::new(PciOptions::default());
    bench.place();
    bench.start(0xffff);
    bench.function.reset(ResetKind::System);
    assert!(!bench.function.core().is_active());
    assert_eq!(bench.read(0x14, Width::Byte), 0xff, "not mapped any more");
    bench.place();
    bench.start(0xffff);
    assert!(bench.bus.unplug(PciAddress::new(3, 0).unwrap()).is_some());
    bench.offer(1);
    assert_eq!(bench.read(0x14, Width::Byte), 0xff);
    let weak = Arc::downgrade(&bench.function);
    drop(bench);
    assert!(weak.upgrade().is_none(), "nothing keeps the function");
}

/// A function's configuration space as a range, for the conformance cases.
struct ConfigWindow(Arc<VirtioPci>);

impl IoHandler for ConfigWindow {
    fn read(&self, offset: u64, width: Width) -> u64 {
        u8::try_from(offset).map_or(width.ones(), |offset| self.0.header().read(offset, width))
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        if let Ok(offset) = u8::try_from(offset) {
            self.0.header().write(offset, width, value);
            let last = offset.saturating_add(width.bytes() as u8 - 1);
            self.0.config_written(offset, last);
        }
    }
}

/// BAR 4, wherever it is.
struct Memory(Arc<VirtioPci>);

impl IoHandler for Memory {
    fn read(&self, offset: u64, width: Width) -> u64 {
        self.0.read_memory(offset, width)
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.0.write_memory(offset, width, value & width.ones());
    }
}

#[test]
fn conforms() {
    conformance::check(|| {
        let bench = Bench::new(PciOptions::default());
        let function = bench.function;
        Subject {
            device: function.clone(),
            ranges: vec![
                (Arc::new(ConfigWindow(function.clone())), 0x100),
                (Arc::new(Memory(function.clone())), 0x4000),
                (function.msix().unwrap().clone(), 0x800),
            ],
            clock: bench.clock,
            kept_by_reset: &[],
        }
    });
}
