//! Chips on PCI that users add: the watchdog, and pvpanic.

use std::sync::Arc;

use api::QmpError;
use dev_pc::i6300esb::I6300esb;
use dev_pc::pvpanic::{PvpanicEvents, PvpanicPci};

use super::properties::property;
use super::virtio::PCI_PROPERTIES;
use super::{BusKind, DeviceKind, Made, Place, Properties};
use crate::control::Control;

/// The watchdog of the Intel 6300ESB.
pub(super) const WATCHDOG: DeviceKind = DeviceKind {
    name: "i6300esb",
    category: "Watchdog",
    description: "Intel 6300ESB",
    bus: BusKind::Pci,
    hotpluggable: true,
    properties: &[PCI_PROPERTIES[0]],
    make: make_watchdog,
};

/// pvpanic on PCI.
pub(super) const PVPANIC_PCI: DeviceKind = DeviceKind {
    name: "pvpanic-pci",
    category: "Misc",
    description: "the guest tells that it has panicked",
    bus: BusKind::Pci,
    hotpluggable: true,
    properties: &[
        property("events", "uint8", "the events it knows (7)"),
        PCI_PROPERTIES[0],
    ],
    make: make_pvpanic,
};

fn make_watchdog(
    control: &mut Control,
    _kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let address = control.choose_slot(properties)?;
    let (bus, _) = control.pci_bus_and_memory()?;
    let machine = Arc::clone(&control.requests) as _;
    let function = I6300esb::new(&bus, address, &control.clock, machine);
    control.plug(address, function.clone())?;
    Ok(Made {
        place: Place::Pci(address),
        ..Made::new(function)
    })
}

fn make_pvpanic(
    control: &mut Control,
    _kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let events = properties.number("events", 7)?.unwrap_or(7);
    let events = PvpanicEvents::from_bits(u8::try_from(events).unwrap_or(7));
    let address = control.choose_slot(properties)?;
    let (bus, _) = control.pci_bus_and_memory()?;
    let machine = Arc::clone(&control.requests) as _;
    let function = PvpanicPci::new(&bus, address, events, machine);
    control.plug(address, function.clone())?;
    Ok(Made {
        place: Place::Pci(address),
        ..Made::new(function)
    })
}
