//! The chips wired as on a board: interrupts find their way, and many threads at once do not stand in each other's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::acpi_pm::{AcpiPm, PmPart};
use crate::apic::{ApicBus, ApicPlace, CpuPort, CpuSignal, LocalApic, Pending, TscClock};
use crate::hpet::{Hpet, HpetLines};
use crate::i6300esb::I6300esb;
use crate::i8042::{I8042, I8042Lines, I8042Part};
use crate::ioapic::IoApic;
use crate::irq_gate::IrqGate;
use crate::msi::ApicMsi;
use crate::pic::{Pic, PicPart};
use crate::piix3::{Piix3, PirqRouter};
use crate::pit::{Pit, PitPart};
use crate::rtc::Rtc;
use crate::uart::{SerialLine, Uart};
use device::doubles::RecordingMachine;
use device::pci::{ConfigPart, PciAddress, PciBus, PciConfigPorts, PciFunction};
use device::{
    Clock, Device, InterruptController, IoHandler, IoMap, IoPart, IrqLine, ResetKind, WallClock,
    Width,
};

#[derive(Default)]
struct Cpu {
    wakes: AtomicU64,
}

impl CpuPort for Cpu {
    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }

    fn signal(&self, _signal: CpuSignal) {}
}

impl TscClock for Cpu {
    fn ns_at(&self, tsc: u64) -> u64 {
        tsc
    }
}

struct Silence;

impl SerialLine for Silence {
    fn transmit(&self, _byte: u8) {}

    fn input_wanted(&self) {}

    fn set_break(&self, _on: bool) {}
}

const APIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
const HPET: u64 = 0xfed0_0000;

struct Board {
    clock: Clock,
    ports: Arc<IoMap>,
    memory: Arc<IoMap>,
    pic: Arc<Pic>,
    local: Arc<LocalApic>,
    uart: Arc<Uart>,
    pm: Arc<AcpiPm>,
    devices: Vec<Arc<dyn Device>>,
    pirq: [IrqLine; 4],
}

/// The interrupt controllers, and a line to each ISA IRQ.
struct Controllers {
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    local: Arc<LocalApic>,
    apics: Arc<ApicBus>,
    irqs: [IrqLine; 16],
}

fn controllers(clock: &Clock) -> Controllers {
    let apics = ApicBus::new();
    let place = ApicPlace {
        id: 0,
        bootstrap: true,
    };
    let cpu = Arc::new(Cpu::default());
    let local = LocalApic::new(place, &apics, cpu.clone(), cpu, clock);
    let pic = Pic::new(IrqLine::new(local.clone(), 0));
    let ioapic = IoApic::new(&apics);
    let irqs = std::array::from_fn(|irq| {
        let irq = irq as u32;
        let input = if irq == 0 { 2 } else { irq };
        IrqLine::with_ends(vec![
            (pic.clone(), irq),
            (ioapic.clone() as Arc<dyn InterruptController>, input),
        ])
    });
    Controllers {
        pic,
        ioapic,
        local,
        apics,
        irqs,
    }
}

impl Board {
    fn new(clock: Clock) -> Board {
        let machine = Arc::new(RecordingMachine::default());
        let Controllers {
            pic,
            ioapic,
            local,
            apics,
            irqs,
        } = controllers(&clock);
        let gates = [0, 8].map(|irq: usize| IrqGate::new(irqs[irq].share()));
        let pit = Pit::new(&clock, IrqLine::new(gates[0].clone(), 0));
        let wall = WallClock::Host;
        let rtc = Rtc::new(&clock, wall, IrqLine::new(gates[1].clone(), 0));
        let hpet = Hpet::new(
            &clock,
            HpetLines {
                inputs: (16..40)
                    .map(|pin| IrqLine::new(ioapic.clone(), pin - 16))
                    .collect(),
                routes: 0x00ff_0000,
                legacy_timer: irqs[0].share(),
                legacy_rtc: irqs[8].share(),
                gates: gates.to_vec(),
                messages: ApicMsi::new(apics.clone()),
            },
        );
        let uart = Uart::new(irqs[4].share(), Arc::new(Silence));
        let keyboard_lines = I8042Lines {
            keyboard: irqs[1].share(),
            mouse: irqs[12].share(),
            a20: IrqLine::unconnected(),
        };
        let i8042 = I8042::new(keyboard_lines, machine.clone());
        let router = PirqRouter::new(&irqs);
        let line = |pin| IrqLine::new(router.clone(), pin);
        let pirq = [line(0), line(1), line(2), line(3)];
        let ports = Arc::new(IoMap::new(IoMap::LAST_PORT));
        let memory = Arc::new(IoMap::new(u64::MAX));
        let msi = ApicMsi::new(apics);
        let lines = std::array::from_fn(|index: usize| pirq[index].share());
        let bus = PciBus::new(ports.clone(), memory.clone(), msi, lines);
        let at = |slot, function| PciAddress::new(slot, function).unwrap();
        let piix3 = Piix3::new(&bus, at(1, 0), router, machine.clone());
        let pm = AcpiPm::new(&bus, at(1, 3), &clock, irqs[9].share(), machine.clone());
        let watchdog = I6300esb::new(&bus, at(4, 0), &clock, machine);
        let plug =
            |address, function: Arc<dyn PciFunction>| assert!(bus.plug(address, function).is_ok());
        plug(at(1, 0), piix3.clone());
        plug(at(1, 3), pm.clone());
        plug(at(4, 0), watchdog.clone());
        let config = PciConfigPorts::new(bus, piix3.clone());
        let place = |start, length, handler: Arc<dyn IoHandler>| {
            ports.map("chip", start, length, 0, handler).unwrap();
        };
        place(0x20, 2, IoPart::new(pic.clone(), PicPart::Master));
        place(0xa0, 2, IoPart::new(pic.clone(), PicPart::Slave));
        place(0x4d0, 2, IoPart::new(pic.clone(), PicPart::EdgeLevel));
        place(0x40, 4, IoPart::new(pit.clone(), PitPart::Counters));
        place(0x61, 1, IoPart::new(pit.clone(), PitPart::Port61));
        place(0x60, 1, IoPart::new(i8042.clone(), I8042Part::Data));
        place(0x64, 1, IoPart::new(i8042.clone(), I8042Part::Command));
        place(0x70, 2, rtc.clone());
        place(0x3f8, 8, uart.clone());
        place(0xb2, 2, pm.handler(PmPart::Apm));
        place(0xafe0, 4, pm.handler(PmPart::Gpe));
        place(0xcf8, 4, IoPart::new(config.clone(), ConfigPart::Address));
        place(0xcfc, 4, IoPart::new(config.clone(), ConfigPart::Data));
        memory.map("apic", APIC, 0x1000, 0, local.clone()).unwrap();
        memory
            .map("ioapic", IOAPIC, 0x1000, 0, ioapic.clone())
            .unwrap();
        memory.map("hpet", HPET, 0x400, 0, hpet.clone()).unwrap();
        let devices: Vec<Arc<dyn Device>> = vec![
            pic.clone(),
            ioapic,
            local.clone(),
            pit,
            rtc,
            hpet,
            uart.clone(),
            i8042,
            piix3,
            pm.clone(),
            watchdog,
            config,
        ];
        let board = Board {
            clock,
            ports,
            memory,
            pic,
            local,
            uart,
            pm,
            devices,
            pirq,
        };
        board.reset();
        board
    }

    fn reset(&self) {
        for device in &self.devices {
            device.reset(ResetKind::PowerOn);
        }
    }

    fn out(&self, port: u64, bytes: &[u8]) {
        for byte in bytes {
            self.ports.write(port, Width::Byte, u64::from(*byte));
        }
    }

    fn apic(&self, offset: u64, value: u64) {
        self.memory.write(APIC + offset, Width::Dword, value);
    }

    fn ioapic(&self, index: u64, value: u64) {
        self.memory.write(IOAPIC, Width::Dword, index);
        self.memory.write(IOAPIC + 0x10, Width::Dword, value);
    }
}

#[test]
fn the_interval_timer_arrives_through_the_8259s() {
    let board = Board::new(Clock::stepped());
    board.apic(0xf0, 0x1ff);
    board.apic(0x350, 0x700);
    board.out(0x20, &[0x11]);
    board.out(0x21, &[0x20, 4, 1, 0xfe]);
    board.out(0x43, &[0x34]);
    board.out(0x40, &[0x9c, 0x2e]);
    // The output of mode 2 rises when the mode is set: that is an edge, too.
    assert_eq!(board.local.pending(), Some(Pending::External));
    assert_eq!(board.pic.acknowledge(), 0x20);
    board.out(0x20, &[0x20]);
    assert_eq!(board.local.pending(), None);
    let mut count = 0;
    for _ in 0..1000 {
        board.clock.step(1_000_000);
        while board.local.pending() == Some(Pending::External) {
            assert_eq!(board.pic.acknowledge(), 0x20);
            board.out(0x20, &[0x20]);
            count += 1;
        }
    }
    // 11932 clocks of 1193182 Hz: 99.998 a second.
    assert_eq!(count, 99);
}

#[test]
fn a_pci_interrupt_arrives_through_the_ioapic() {
    let board = Board::new(Clock::stepped());
    board.apic(0xf0, 0x1ff);
    // PIRQB to IRQ 10, level, vector 0x3a.
    board.ports.write(0xcf8, Width::Dword, 0x8000_0860);
    board.ports.write(0xcfd, Width::Byte, 10);
    board.ioapic(0x10 + 20, 0x803a);
    board.pirq[1].set(true);
    assert_eq!(board.local.pending(), Some(Pending::Vector(0x3a)));
    assert!(board.local.accept(0x3a));
    board.apic(0xb0, 0);
    // It still stands.
    assert_eq!(board.local.pending(), Some(Pending::Vector(0x3a)));
    board.pirq[1].set(false);
    assert!(board.local.accept(0x3a));
    board.apic(0xb0, 0);
    assert_eq!(board.local.pending(), None);
}

#[test]
fn the_hpet_replaces_the_interval_timer() {
    let board = Board::new(Clock::stepped());
    board.apic(0xf0, 0x1ff);
    board.ioapic(0x14, 0x30);
    board.out(0x43, &[0x34]);
    board.out(0x40, &[0x9c, 0x2e]);
    assert!(board.local.accept(0x30));
    board.apic(0xb0, 0);
    let hpet = |offset, value| board.memory.write(HPET + offset, Width::Qword, value);
    hpet(0x100, 4);
    hpet(0x108, 3_000_000);
    hpet(0x10, 3);
    board.clock.step(29_000_000);
    assert_eq!(board.local.pending(), None);
    board.clock.step(1_000_000);
    assert_eq!(board.local.pending(), Some(Pending::Vector(0x30)));
}

/// Four threads hammer every chip on a running clock, another one resets and saves: whoever takes locks in the wrong order
/// stops here for good.
#[test]
fn many_threads_do_not_wedge() {
    let board = Arc::new(Board::new(Clock::real()));
    board.clock.start();
    let (done, finished) = std::sync::mpsc::channel();
    for seed in 1..=4_u64 {
        let (board, done) = (board.clone(), done.clone());
        thread::spawn(move || {
            hammer(&board, seed);
            done.send(()).unwrap();
        });
    }
    let (saver, saved) = (board.clone(), done.clone());
    thread::spawn(move || {
        for _ in 0..100 {
            for device in &saver.devices {
                let state = device.save().unwrap();
                device.restore(&state).unwrap();
            }
            saver.reset();
        }
        saved.send(()).unwrap();
    });
    for _ in 0..5 {
        finished
            .recv_timeout(Duration::from_secs(120))
            .expect("a thread is wedged");
    }
    board.clock.stop();
}

fn hammer(board: &Board, seed: u64) {
    const PORTS: [(u64, u64); 12] = [
        (0x20, 2),
        (0xa0, 2),
        (0x4d0, 2),
        (0x40, 4),
        (0x60, 5),
        (0x70, 2),
        (0x3f8, 8),
        (0xb2, 2),
        (0xafe0, 4),
        (0xcf8, 8),
        (0x600, 64),
        (0xcfc, 4),
    ];
    const PAGES: [(u64, u64); 3] = [(APIC, 0x400), (IOAPIC, 0x50), (HPET, 0x160)];
    let mut random = seed;
    let mut next = move |bound: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    for round in 0..60_000 {
        let value = next(1 << 31) << 1;
        match next(4) {
            0 => {
                let (start, length) = PAGES[next(3) as usize];
                let offset = next(length) & !0xf;
                board.memory.write(start + offset, Width::Dword, value);
                board.memory.read(start + offset, Width::Dword);
            }
            1 => board.pirq[next(4) as usize].set(value & 2 != 0),
            _ => {
                let (start, length) = PORTS[next(12) as usize];
                let port = start + next(length);
                let width = if next(3) == 0 {
                    Width::Dword
                } else {
                    Width::Byte
                };
                board.ports.write(port, width, value >> 3);
                board.ports.read(port, width);
            }
        }
        match round % 64 {
            0 => {
                board.uart.receive(b"x");
            }
            1 => {
                board.pm.press_power_button();
            }
            2 => {
                if let Some(Pending::Vector(vector)) = board.local.pending() {
                    board.local.accept(vector);
                }
                board.pic.acknowledge();
            }
            _ => {}
        }
    }
}
