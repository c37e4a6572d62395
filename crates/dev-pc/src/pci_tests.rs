use std::sync::Arc;

use device::conformance::{self, Subject};
use device::doubles::{RecordingMachine, RecordingPins};
use device::{
    Clock, Device, Error, IoHandler, IoMap, IoPart, IoParts, IrqLine, MachineRequest, MsiMessage,
    ResetKind, SavedState, Width, read_bytes,
};
use parking_lot::Mutex;

use crate::acpi_pm::{ACPI_DISABLE, ACPI_ENABLE, AcpiPm, PmPart, WakeReason};
use crate::i440fx::{I440fx, LowMemoryRouting, PamSegment, Smram};
use crate::piix3::{Piix3, PirqRouter};
use device::pci::*;

struct Bench {
    bus: Arc<PciBus>,
    pins: Arc<RecordingPins>,
    machine: Arc<RecordingMachine>,
    clock: Clock,
}

impl Bench {
    fn new() -> Bench {
        let pins = Arc::new(RecordingPins::default());
        let lines = std::array::from_fn(|pin| IrqLine::new(pins.clone(), pin as u32));
        Bench {
            bus: PciBus::new(
                Arc::new(IoMap::new(IoMap::LAST_PORT)),
                Arc::new(IoMap::new((1 << 40) - 1)),
                pins.clone(),
                lines,
            ),
            pins,
            machine: Arc::new(RecordingMachine::default()),
            clock: Clock::stepped(),
        }
    }

    fn read(&self, devfn: u8, offset: u8) -> u32 {
        self.bus.config_read(devfn, offset, Width::Dword) as u32
    }

    fn write(&self, devfn: u8, offset: u8, value: u32) {
        self.bus
            .config_write(devfn, offset, Width::Dword, u64::from(value));
    }
}

/// A function's configuration space as a range, for the conformance cases.
struct ConfigWindow(Arc<dyn PciFunction>);

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

struct Scratch;

impl IoHandler for Scratch {
    fn read(&self, offset: u64, width: Width) -> u64 {
        read_bytes(offset, width, |at| at as u8)
    }

    fn write(&self, _offset: u64, _width: Width, _value: u64) {}
}

/// A function with a BAR of each kind, MSI and MSI-X.
struct Sample {
    header: PciHeader,
    msix: Arc<Msix>,
}

const SAMPLE: u8 = 5 << 3;

impl Sample {
    fn new(bench: &Bench) -> Arc<Sample> {
        let identity = PciIdentity {
            vendor: 0x1b36,
            device: 0x0005,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0xff_0000,
            revision: 1,
            pin: 1,
            multifunction: false,
        };
        let address = PciAddress::new(5, 0).unwrap();
        let header = PciHeader::new(&identity, &bench.bus, address);
        let bar = |index, kind, length| Bar {
            index,
            kind,
            length,
            handler: Arc::new(Scratch),
            name: "scratch".to_owned(),
        };
        header.add_bar(bar(0, BarKind::Ports, 0x20));
        header.add_bar(bar(1, BarKind::Memory, 0x900));
        header.add_bar(bar(2, BarKind::Memory64, 0x10000));
        assert_eq!(header.add_msi(), Some(0x40));
        let msix = header.add_msix(3, 4).unwrap();
        Arc::new(Sample { header, msix })
    }

    fn plugged(bench: &Bench) -> Arc<Sample> {
        let sample = Sample::new(bench);
        let address = PciAddress::new(5, 0).unwrap();
        assert!(bench.bus.plug(address, sample.clone()).is_ok());
        sample
    }
}

impl PciFunction for Sample {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn config_written(&self, _first: u8, _last: u8) {}
}

impl Device for Sample {
    fn reset(&self, _kind: ResetKind) {
        self.header.reset();
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of("sample", 1, &self.header.save())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        self.header.restore("sample", state.read("sample", 1)?)
    }
}

#[test]
fn mechanism_1_finds_functions() {
    let bench = Bench::new();
    let _sample = Sample::plugged(&bench);
    let ports = PciConfigPorts::new(bench.bus.clone(), Arc::new(Scratch));
    let write = |part, offset, width, value| ports.write_part(part, offset, width, value);
    let read = |part, offset, width| ports.read_part(part, offset, width);
    assert_eq!(read(ConfigPart::Data, 0, Width::Dword), 0xffff_ffff);
    write(
        ConfigPart::Address,
        0,
        Width::Dword,
        0xff00_0000 | u64::from(SAMPLE) << 8 | 3,
    );
    assert_eq!(read(ConfigPart::Address, 0, Width::Dword), 0x8000_2800);
    assert_eq!(read(ConfigPart::Data, 0, Width::Dword), 0x0005_1b36);
    assert_eq!(read(ConfigPart::Data, 2, Width::Word), 0x0005);
    assert_eq!(read(ConfigPart::Data, 1, Width::Byte), 0x1b);
    // A byte is no configuration access: it is passed on, here to registers that read as their offsets.
    write(ConfigPart::Address, 0, Width::Byte, 0);
    assert_eq!(read(ConfigPart::Address, 1, Width::Byte), 1);
    assert_eq!(read(ConfigPart::Address, 0, Width::Dword), 0x8000_2800);
    write(ConfigPart::Address, 0, Width::Dword, 0x8001_2800);
    assert_eq!(read(ConfigPart::Data, 0, Width::Dword), 0xffff_ffff);
}

#[test]
fn a_guest_sizes_and_places_base_address_registers() {
    let bench = Bench::new();
    let sample = Sample::plugged(&bench);
    for (offset, size) in [
        (0x10, 0xffff_ffe1),
        (0x14, 0xffff_f000),
        (0x18, 0xffff_000c),
        (0x1c, 0xffff_ffff),
        (0x24, 0),
    ] {
        bench.write(SAMPLE, offset, 0xffff_ffff);
        assert_eq!(bench.read(SAMPLE, offset), size, "{offset:#x}");
    }
    bench.write(SAMPLE, 0x10, 0xc000);
    bench.write(SAMPLE, 0x14, 0xe000_0000);
    bench.write(SAMPLE, 0x18, 0x0010_0000);
    bench.write(SAMPLE, 0x1c, 0x1);
    assert!(!bench.bus.ports().is_mapped(0xc000));
    bench.write(SAMPLE, 0x04, 3);
    assert_eq!(bench.bus.ports().read(0xc01f, Width::Byte), 0x1f);
    assert!(bench.bus.memory().is_mapped(0xe000_0fff));
    assert_eq!(bench.bus.memory().read(0x1_0010_0003, Width::Byte), 3);
    assert_eq!(sample.header.bar_address(2), Some(0x1_0010_0000));
    bench.write(SAMPLE, 0x10, 0xd000);
    assert!(!bench.bus.ports().is_mapped(0xc000));
    assert!(bench.bus.ports().is_mapped(0xd000));
    bench.bus.unplug(PciAddress::new(5, 0).unwrap());
    assert!(!bench.bus.ports().is_mapped(0xd000));
    assert_eq!(bench.read(SAMPLE, 0), 0xffff_ffff);
}

#[test]
fn read_only_bytes_stay() {
    let bench = Bench::new();
    let _sample = Sample::plugged(&bench);
    for offset in (0..0x100_u16).step_by(4) {
        bench.write(SAMPLE, offset as u8, 0xffff_ffff);
    }
    assert_eq!(bench.read(SAMPLE, 0x00), 0x0005_1b36);
    assert_eq!(bench.read(SAMPLE, 0x08), 0xff00_0001);
    assert_eq!(bench.read(SAMPLE, 0x04), 0x0010_0547);
    assert_eq!(bench.read(SAMPLE, 0x34), 0x40);
    assert_eq!(bench.read(SAMPLE, 0x3c), 0x01ff);
}

#[test]
fn lines_rotate_and_can_be_switched_off() {
    let bench = Bench::new();
    let sample = Sample::plugged(&bench);
    sample.header.set_intx(true);
    // Slot 5, INTA: line (5 + 1 + 2) & 3.
    assert_eq!(bench.pins.take(), [(0, true)]);
    assert_eq!(bench.read(SAMPLE, 0x04) >> 16, 0x18);
    bench.write(SAMPLE, 0x04, 0x400);
    assert_eq!(bench.pins.take(), [(0, false)]);
    assert_eq!(bench.read(SAMPLE, 0x04) >> 16, 0x18);
    sample.header.set_intx(false);
    assert_eq!(bench.read(SAMPLE, 0x04) >> 16, 0x10);
}

#[test]
fn msi_is_sent_and_masked() {
    let bench = Bench::new();
    let sample = Sample::plugged(&bench);
    assert!(!sample.header.send_msi());
    assert_eq!(bench.read(SAMPLE, 0x40), 0x0180_5805);
    bench.write(SAMPLE, 0x44, 0xfee0_1003);
    bench.write(SAMPLE, 0x48, 0);
    bench.write(SAMPLE, 0x4c, 0x4041);
    bench.write(SAMPLE, 0x40, 0x0001_0000);
    let message = MsiMessage {
        address: 0xfee0_1000,
        data: 0x4041,
    };
    assert!(sample.header.send_msi());
    assert_eq!(bench.pins.take_messages(), [message]);
    bench.write(SAMPLE, 0x50, 1);
    assert!(sample.header.send_msi());
    assert!(bench.pins.take_messages().is_empty());
    assert_eq!(bench.read(SAMPLE, 0x54), 1);
    bench.write(SAMPLE, 0x50, 0);
    assert_eq!(bench.pins.take_messages(), [message]);
    assert_eq!(bench.read(SAMPLE, 0x54), 0);
}

#[test]
fn msix_is_sent_and_masked() {
    let bench = Bench::new();
    let sample = Sample::plugged(&bench);
    assert_eq!(bench.read(SAMPLE, 0x58), 0x0002_0011);
    assert_eq!(bench.read(SAMPLE, 0x5c), 4);
    assert_eq!(bench.read(SAMPLE, 0x60), 0x34);
    bench.write(SAMPLE, 0x20, 0xe000_0000);
    bench.write(SAMPLE, 0x04, 2);
    let memory = bench.bus.memory();
    for (offset, value) in [(0x10, 0xfee0_2000), (0x14, 0), (0x18, 0x51), (0x1c, 0)] {
        memory.write(0xe000_0000 + offset, Width::Dword, value);
    }
    sample.msix.notify(1);
    assert!(bench.pins.take_messages().is_empty());
    bench.write(SAMPLE, 0x58, 0x8000_0000);
    assert!(sample.msix.is_enabled());
    sample.msix.notify(1);
    sample.msix.notify(2);
    sample.msix.notify(3);
    let message = MsiMessage {
        address: 0xfee0_2000,
        data: 0x51,
    };
    assert_eq!(bench.pins.take_messages(), [message]);
    assert_eq!(memory.read(0xe000_0030, Width::Dword), 4);
    bench.write(SAMPLE, 0x58, 0xc000_0000);
    sample.msix.notify(1);
    assert_eq!(memory.read(0xe000_0030, Width::Dword), 6);
    bench.write(SAMPLE, 0x58, 0x8000_0000);
    assert_eq!(bench.pins.take_messages(), [message]);
    memory.write(0xe000_002c, Width::Dword, 0);
    assert_eq!(bench.pins.take_messages().len(), 1);
    assert_eq!(memory.read(0xe000_0030, Width::Qword), 0);
}

#[test]
fn a_foreign_state_is_refused() {
    let bench = Bench::new();
    let sample = Sample::new(&bench);
    let mut state = sample.save().unwrap();
    state.data["config"][0] = 0.into();
    assert!(matches!(
        sample.restore(&state),
        Err(Error::BadState { .. })
    ));
}

#[derive(Default)]
struct Routes(Mutex<Option<([PamSegment; 13], Smram)>>);

impl LowMemoryRouting for Routes {
    fn route(&self, segments: &[PamSegment; 13], smram: Smram) {
        *self.0.lock() = Some((*segments, smram));
    }
}

fn i440fx(bench: &Bench) -> (Arc<I440fx>, Arc<Routes>) {
    let routes = Arc::new(Routes::default());
    let address = PciAddress::new(0, 0).unwrap();
    let bridge = I440fx::new(&bench.bus, address, routes.clone());
    assert!(bench.bus.plug(address, bridge.clone()).is_ok());
    bridge.reset(ResetKind::PowerOn);
    (bridge, routes)
}

#[test]
fn pam_registers_route_the_first_megabyte() {
    let bench = Bench::new();
    let (bridge, routes) = i440fx(&bench);
    assert_eq!(bench.read(0, 0), 0x1237_8086);
    assert!(
        bridge
            .segments()
            .iter()
            .all(|one| !one.read_memory && !one.write_memory)
    );
    bench.bus.config_write(0, 0x59, Width::Byte, 0x30);
    bench.bus.config_write(0, 0x5a, Width::Byte, 0x12);
    bench.bus.config_write(0, 0x5f, Width::Byte, 0xff);
    let (segments, _) = routes.0.lock().unwrap();
    let on: Vec<_> = segments
        .iter()
        .filter(|one| one.read_memory || one.write_memory)
        .map(|one| (one.start, one.length, one.read_memory, one.write_memory))
        .collect();
    assert_eq!(
        on,
        [
            (0xf_0000, 0x1_0000, true, true),
            (0xc_0000, 0x4000, false, true),
            (0xc_4000, 0x4000, true, false),
            (0xe_8000, 0x4000, true, true),
            (0xe_c000, 0x4000, true, true),
        ]
    );
}

#[test]
fn smram_can_be_locked() {
    let bench = Bench::new();
    let (bridge, _) = i440fx(&bench);
    bench.bus.config_write(0, 0x72, Width::Byte, 0x48);
    assert!(bridge.smram().open && bridge.smram().enabled);
    bench.bus.config_write(0, 0x72, Width::Byte, 0x58);
    assert!(!bridge.smram().open && bridge.smram().enabled);
    bench.bus.config_write(0, 0x72, Width::Byte, 0x40);
    assert_eq!(bench.bus.config_read(0, 0x72, Width::Byte), 0x1a);
    bridge.reset(ResetKind::System);
    assert_eq!(bench.bus.config_read(0, 0x72, Width::Byte), 0x02);
    bench.bus.config_write(0, 0x72, Width::Byte, 0x40);
    assert!(bridge.smram().open);
}

fn piix3(bench: &Bench) -> (Arc<Piix3>, Arc<PirqRouter>) {
    let irqs = std::array::from_fn(|irq| IrqLine::new(bench.pins.clone(), 100 + irq as u32));
    let router = PirqRouter::new(&irqs);
    let address = PciAddress::new(1, 0).unwrap();
    let bridge = Piix3::new(&bench.bus, address, router.clone(), bench.machine.clone());
    assert!(bench.bus.plug(address, bridge.clone()).is_ok());
    bridge.reset(ResetKind::PowerOn);
    (bridge, router)
}

#[test]
fn pirqs_are_routed_and_shared() {
    use device::InterruptController;

    let bench = Bench::new();
    let (bridge, router) = piix3(&bench);
    assert_eq!(bench.read(8, 0x60), 0x8080_8080);
    router.set_level(0, true);
    assert!(bench.pins.take().is_empty());
    bench.write(8, 0x60, 0x0b0a_000b);
    assert_eq!(bench.pins.take(), [(111, true)]);
    // PIRQB to IRQ 0 is not possible.
    assert_eq!(
        [0, 1, 2, 3].map(|pirq| router.irq(pirq)),
        [Some(11), None, Some(10), Some(11)]
    );
    router.set_level(3, true);
    router.set_level(0, false);
    assert!(bench.pins.take().is_empty());
    router.set_level(3, false);
    assert_eq!(bench.pins.take(), [(111, false)]);
    bridge.write(1, Width::Byte, 2);
    assert!(bench.machine.take().is_empty());
    bridge.write(1, Width::Byte, 6);
    assert_eq!(
        bench.machine.take(),
        [MachineRequest::Reset(ResetKind::System)]
    );
}

const PM: u8 = 1 << 3 | 3;
const PM_BASE: u64 = 0x600;

fn acpi_pm(bench: &Bench) -> Arc<AcpiPm> {
    let address = PciAddress::new(1, 3).unwrap();
    let sci = IrqLine::new(bench.pins.clone(), 9);
    let pm = AcpiPm::new(
        &bench.bus,
        address,
        &bench.clock,
        sci,
        bench.machine.clone(),
    );
    assert!(bench.bus.plug(address, pm.clone()).is_ok());
    pm.reset(ResetKind::PowerOn);
    pm
}

/// With registers at 0x600, in ACPI mode.
fn acpi_ready(bench: &Bench) -> Arc<AcpiPm> {
    let pm = acpi_pm(bench);
    bench.write(PM, 0x40, PM_BASE as u32 | 1);
    bench.write(PM, 0x80, 1);
    pm.handler(PmPart::Apm)
        .write(0, Width::Byte, u64::from(ACPI_ENABLE));
    pm
}

#[test]
fn pm_registers_follow_their_base() {
    let bench = Bench::new();
    let pm = acpi_pm(&bench);
    assert_eq!(bench.read(PM, 0x40), 1);
    assert_eq!(bench.read(PM, 0x58), 0x0200_0000);
    bench.write(PM, 0x40, 0xb001);
    assert_eq!(pm.base(), None);
    bench.write(PM, 0x80, 1);
    assert_eq!(pm.base(), Some(0xb000));
    bench.write(PM, 0x40, 0x601);
    assert!(!bench.bus.ports().is_mapped(0xb000));
    assert!(bench.bus.ports().is_mapped(0x63f));
    let apm = pm.handler(PmPart::Apm);
    apm.write(0, Width::Word, 0x5500 | u64::from(ACPI_ENABLE));
    assert_eq!(bench.bus.ports().read(0x604, Width::Word), 1);
    assert_eq!(apm.read(1, Width::Byte), 0x55);
    apm.write(0, Width::Byte, u64::from(ACPI_DISABLE));
    assert_eq!(bench.bus.ports().read(0x604, Width::Word), 0);
}

#[test]
fn the_pm_timer_counts_and_carries() {
    let bench = Bench::new();
    let _pm = acpi_ready(&bench);
    let ports = bench.bus.ports();
    bench.clock.step(1_000_000_000);
    assert_eq!(ports.read(0x608, Width::Dword), 3_579_545);
    ports.write(0x602, Width::Word, 1);
    bench.clock.step(1_343_000_000);
    assert!(!bench.pins.level(9));
    bench.clock.step(1_000_000);
    assert!(bench.pins.level(9));
    assert_eq!(ports.read(0x600, Width::Word), 1);
    ports.write(0x600, Width::Word, 1);
    assert!(!bench.pins.level(9));
    bench.clock.step(2_344_000_000);
    assert!(bench.pins.level(9));
    assert!(ports.read(0x608, Width::Dword) < 1 << 24);
}

#[test]
fn the_power_button_asks_by_sci() {
    let bench = Bench::new();
    let pm = acpi_ready(&bench);
    let ports = bench.bus.ports();
    assert!(!pm.press_power_button());
    assert!(!bench.pins.level(9));
    ports.write(0x602, Width::Word, 0x100);
    assert!(bench.pins.level(9));
    ports.write(0x601, Width::Byte, 1);
    assert!(!bench.pins.level(9));
    assert!(pm.press_power_button());
}

#[test]
fn sleeping_and_waking() {
    let bench = Bench::new();
    let pm = acpi_ready(&bench);
    let ports = bench.bus.ports();
    ports.write(0x604, Width::Word, 0x2001);
    assert_eq!(bench.machine.take(), [MachineRequest::PowerOff]);
    ports.write(0x604, Width::Word, 0x2401);
    assert_eq!(bench.machine.take(), [MachineRequest::Suspend]);
    assert_eq!(ports.read(0x604, Width::Word), 0x0401);
    pm.wake(WakeReason::Rtc);
    assert_eq!(ports.read(0x600, Width::Word), 0x8400);
    ports.write(0x604, Width::Word, 0x0801);
    assert!(bench.machine.take().is_empty());
    ports.write(0x605, Width::Byte, 0x28);
    assert_eq!(bench.machine.take(), [MachineRequest::Hibernate]);
}

#[test]
fn general_purpose_events() {
    let bench = Bench::new();
    let pm = acpi_ready(&bench);
    let gpe = pm.handler(PmPart::Gpe);
    pm.raise_gpe(1);
    pm.raise_gpe(16);
    assert_eq!(gpe.read(0, Width::Word), 2);
    assert!(!bench.pins.level(9));
    gpe.write(2, Width::Byte, 2);
    assert!(bench.pins.level(9));
    gpe.write(0, Width::Byte, 2);
    assert!(!bench.pins.level(9));
}

fn subject(device: Arc<dyn PciFunction>, bench: &Bench) -> Subject {
    Subject {
        ranges: vec![(Arc::new(ConfigWindow(device.clone())), 256)],
        device,
        clock: bench.clock.clone(),
        kept_by_reset: &[],
    }
}

#[test]
fn they_conform() {
    conformance::check(|| {
        let bench = Bench::new();
        let sample = Sample::new(&bench);
        let mut subject = subject(sample.clone(), &bench);
        subject.ranges.push((sample.msix.clone(), 0x38));
        subject
    });
    conformance::check(|| {
        let bench = Bench::new();
        subject(i440fx(&bench).0, &bench)
    });
    conformance::check(|| {
        let bench = Bench::new();
        let bridge = piix3(&bench).0;
        let mut subject = subject(bridge.clone(), &bench);
        subject.ranges.push((bridge, 4));
        subject
    });
    conformance::check(|| {
        let bench = Bench::new();
        let pm = acpi_pm(&bench);
        let mut subject = subject(pm.clone(), &bench);
        for (part, length) in [(PmPart::Pm, 64), (PmPart::Apm, 2), (PmPart::Gpe, 4)] {
            subject.ranges.push((pm.handler(part), length));
        }
        subject
    });
    conformance::check(|| {
        let bench = Bench::new();
        let _sample = Sample::plugged(&bench);
        let device = PciConfigPorts::new(bench.bus.clone(), Arc::new(Scratch));
        Subject {
            ranges: vec![(IoPart::new(device.clone(), ConfigPart::Address), 4)],
            device,
            clock: bench.clock.clone(),
            kept_by_reset: &[],
        }
    });
}
