//! pvpanic: a guest says that it has panicked, or shut down (QEMU's `docs/specs/pvpanic.rst`).
//!
//! | bit | event |
//! |---|---|
//! | 0 | a panic, for the host to handle |
//! | 1 | a panic that the guest handles itself (a crash kernel was loaded) |
//! | 2 | a shutdown |
//!
//! Reading gives the bits that are known. The ISA form is port 0x505; the PCI form is one byte in its BAR 0. A write with
//! several bits tells each event once.

use std::sync::Arc;

use device::{
    Device, Error, IoHandler, MachineRequest, MachineSink, ResetKind, SavedState, Width,
    read_bytes, write_bytes,
};

use device::pci::{
    Bar, BarKind, HeaderSaved, PciAddress, PciBus, PciFunction, PciHeader, PciIdentity,
};

const ISA_NAME: &str = "pvpanic";
const PCI_NAME: &str = "pvpanic-pci";
const VERSION: u32 = 1;

/// Events a board offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvpanicEvents(u8);

impl PvpanicEvents {
    /// A panic.
    pub const PANICKED: PvpanicEvents = PvpanicEvents(1);
    /// A panic, with a crash kernel.
    pub const CRASH_LOADED: PvpanicEvents = PvpanicEvents(2);
    /// A shutdown.
    pub const SHUTDOWN: PvpanicEvents = PvpanicEvents(4);
    /// All.
    pub const ALL: PvpanicEvents = PvpanicEvents(7);

    /// From the bits that the guest reads; others than the three known ones are dropped.
    pub fn from_bits(bits: u8) -> PvpanicEvents {
        PvpanicEvents(bits & PvpanicEvents::ALL.0)
    }
}

/// The register, and the ISA form of the device.
pub struct Pvpanic {
    events: PvpanicEvents,
    machine: Arc<dyn MachineSink>,
}

impl Pvpanic {
    /// A register that offers these events.
    pub fn new(events: PvpanicEvents, machine: Arc<dyn MachineSink>) -> Arc<Pvpanic> {
        Arc::new(Pvpanic { events, machine })
    }
}

impl IoHandler for Pvpanic {
    fn read(&self, offset: u64, width: Width) -> u64 {
        read_bytes(offset, width, |at| if at == 0 { self.events.0 } else { 0 })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        write_bytes(offset, width, value, |at, byte| {
            let told = if at == 0 { byte & self.events.0 } else { 0 };
            let requests = [
                (PvpanicEvents::PANICKED, MachineRequest::GuestPanicked),
                (
                    PvpanicEvents::CRASH_LOADED,
                    MachineRequest::GuestCrashLoaded,
                ),
                (PvpanicEvents::SHUTDOWN, MachineRequest::GuestShutdown),
            ];
            for (event, request) in requests {
                if told & event.0 != 0 {
                    self.machine.request(request);
                }
            }
        });
    }
}

/// The register holds nothing: the state is empty.
impl Device for Pvpanic {
    fn reset(&self, _kind: ResetKind) {}

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(ISA_NAME, VERSION, &())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        state.read::<()>(ISA_NAME, VERSION)
    }
}

/// The PCI form.
pub struct PvpanicPci {
    header: PciHeader,
}

impl PvpanicPci {
    /// A function that offers these events.
    pub fn new(
        bus: &PciBus,
        address: PciAddress,
        events: PvpanicEvents,
        machine: Arc<dyn MachineSink>,
    ) -> Arc<PvpanicPci> {
        let identity = PciIdentity {
            vendor: 0x1b36,
            device: 0x0011,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x08_8000,
            revision: 1,
            pin: 0,
            multifunction: false,
        };
        let header = PciHeader::new(&identity, bus, address);
        header.add_bar(Bar {
            index: 0,
            kind: BarKind::Memory,
            length: 16,
            handler: Pvpanic::new(events, machine),
            name: PCI_NAME.to_owned(),
        });
        Arc::new(PvpanicPci { header })
    }
}

impl PciFunction for PvpanicPci {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn config_written(&self, _first: u8, _last: u8) {}
}

impl Device for PvpanicPci {
    fn reset(&self, _kind: ResetKind) {
        self.header.reset();
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(PCI_NAME, VERSION, &self.header.save())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let saved: HeaderSaved = state.read(PCI_NAME, VERSION)?;
        self.header.restore(PCI_NAME, saved)
    }
}

#[cfg(test)]
mod tests {
    use device::conformance::{self, Subject};
    use device::doubles::{RecordingMachine, RecordingPins};
    use device::{Clock, IoMap, IrqLine};

    use super::*;

    fn bus() -> Arc<PciBus> {
        PciBus::new(
            Arc::new(IoMap::new(IoMap::LAST_PORT)),
            Arc::new(IoMap::new(u64::MAX)),
            Arc::new(RecordingPins::default()),
            std::array::from_fn(|_| IrqLine::unconnected()),
        )
    }

    #[test]
    fn events_are_told_if_they_are_offered() {
        let machine = Arc::new(RecordingMachine::default());
        let register = Pvpanic::new(PvpanicEvents::from_bits(0xfb), machine.clone());
        assert_eq!(register.read(0, Width::Byte), 3);
        register.write(0, Width::Byte, 0xfc);
        assert!(machine.take().is_empty());
        register.write(0, Width::Byte, 1);
        register.write(0, Width::Byte, 2);
        assert_eq!(
            machine.take(),
            [
                MachineRequest::GuestPanicked,
                MachineRequest::GuestCrashLoaded
            ]
        );
    }

    #[test]
    fn the_pci_form_answers_in_its_bar() {
        let machine = Arc::new(RecordingMachine::default());
        let bus = bus();
        let address = PciAddress::new(6, 0).unwrap();
        let function = PvpanicPci::new(&bus, address, PvpanicEvents::ALL, machine.clone());
        assert!(bus.plug(address, function).is_ok());
        bus.config_write(6 << 3, 0x10, Width::Dword, 0xfebf_0000);
        bus.config_write(6 << 3, 0x04, Width::Word, 2);
        assert_eq!(bus.config_read(6 << 3, 0, Width::Dword), 0x0011_1b36);
        assert_eq!(bus.memory().read(0xfebf_0000, Width::Byte), 7);
        bus.memory().write(0xfebf_0000, Width::Byte, 4);
        assert_eq!(machine.take(), [MachineRequest::GuestShutdown]);
    }

    #[test]
    fn they_conform() {
        conformance::check(|| {
            let device = Pvpanic::new(PvpanicEvents::ALL, Arc::new(RecordingMachine::default()));
            Subject {
                ranges: vec![(device.clone(), 1)],
                device,
                clock: Clock::stepped(),
                kept_by_reset: &[],
            }
        });
        conformance::check(|| {
            let bus = bus();
            let address = PciAddress::new(6, 0).unwrap();
            let machine = Arc::new(RecordingMachine::default());
            let device = PvpanicPci::new(&bus, address, PvpanicEvents::ALL, machine);
            assert!(bus.plug(address, device.clone()).is_ok());
            let unused = Pvpanic::new(PvpanicEvents::ALL, Arc::new(RecordingMachine::default()));
            let ports = device::pci::PciConfigPorts::new(bus, unused);
            ports_at(&ports, 6 << 11);
            Subject {
                ranges: vec![(device::IoPart::new(ports, device::pci::ConfigPart::Data), 4)],
                device,
                clock: Clock::stepped(),
                kept_by_reset: &[],
            }
        });
    }

    fn ports_at(ports: &Arc<device::pci::PciConfigPorts>, address: u64) {
        use device::IoParts;

        // The command register: the most changeable one.
        ports.write_part(
            device::pci::ConfigPart::Address,
            0,
            Width::Dword,
            0x8000_0004 | address,
        );
    }
}
