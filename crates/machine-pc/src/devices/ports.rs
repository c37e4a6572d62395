//! The virtio serial controller and its ports.

use std::sync::Arc;

use api::{Event, EventSink, QmpError, VserportChangeEvent};
use dev_virtio::{DEFAULT_MAX_PORTS, PortOptions, PortSink, VirtioConsole};

use super::properties::{PropertySpec, property};
use super::{BusKind, DeviceKind, Made, NoRegisters, Part, Place, Properties, virtio};
use crate::control::Control;

const CONTROLLER_PROPERTIES: &[PropertySpec] = &[
    property("max_ports", "uint32", "the most ports (31)"),
    virtio::PCI_PROPERTIES[0],
    virtio::PCI_PROPERTIES[1],
    virtio::PCI_PROPERTIES[2],
];

const PORT_PROPERTIES: &[PropertySpec] = &[
    property("chardev", "str", "ID of a chardev to connect"),
    property("name", "str", "its name in the guest"),
    property("nr", "uint32", "its number"),
];

/// A controller.
pub(super) const CONTROLLER_PCI: DeviceKind = DeviceKind {
    name: "virtio-serial-pci",
    category: "Input",
    description: "controller of virtio serial ports",
    bus: BusKind::Pci,
    hotpluggable: true,
    properties: CONTROLLER_PROPERTIES,
    make: make_controller,
};

/// A controller, without PCI.
pub(super) const CONTROLLER_MMIO: DeviceKind = DeviceKind {
    name: "virtio-serial-device",
    bus: BusKind::VirtioMmio,
    hotpluggable: false,
    ..CONTROLLER_PCI
};

/// A port that is a console in the guest.
pub(super) const CONSOLE: DeviceKind = DeviceKind {
    name: "virtconsole",
    category: "Input",
    description: "console on a virtio serial port",
    bus: BusKind::VirtioSerial,
    hotpluggable: true,
    properties: PORT_PROPERTIES,
    make: |control, _, properties| make_port(control, properties, true),
};

/// A port.
pub(super) const PORT: DeviceKind = DeviceKind {
    name: "virtserialport",
    description: "virtio serial port",
    make: |control, _, properties| make_port(control, properties, false),
    ..CONSOLE
};

/// Tells clients when the guest opens or closes a port.
struct Openings {
    id: String,
    events: Arc<dyn EventSink>,
}

impl PortSink for Openings {
    fn guest_open_changed(&self, is_open: bool) {
        self.events.emit(Event::VserportChange(VserportChangeEvent {
            id: self.id.clone(),
            open: is_open,
        }));
    }
}

fn make_controller(
    control: &mut Control,
    kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let most = properties.number("max_ports", 1024)?;
    let most = most.and_then(|most| u32::try_from(most).ok());
    let runtime = control.services.runtime.clone();
    let console = VirtioConsole::new(most.unwrap_or(DEFAULT_MAX_PORTS), runtime)
        .map_err(|error| QmpError::generic(error.to_string()))?;
    let made = virtio::connect(control, kind, properties, console.clone())?;
    Ok(Made {
        part: Part::Ports(console),
        ..made
    })
}

/// The controller that `bus` names (its id and `.0`), or the first.
fn controller(control: &Control, properties: &Properties) -> Result<Arc<VirtioConsole>, QmpError> {
    let wanted = properties.bus();
    let mut controllers = control.devices.iter().filter_map(|device| {
        let Part::Ports(console) = &device.made.part else {
            return None;
        };
        let is_wanted = wanted.is_none_or(|bus| {
            let id = bus.strip_suffix(".0").unwrap_or(bus);
            device.id.as_deref() == Some(id)
        });
        is_wanted.then(|| Arc::clone(console))
    });
    controllers.next().ok_or_else(|| match wanted {
        Some(bus) => QmpError::generic(format!("Bus '{bus}' not found")),
        None => QmpError::generic(format!(
            "No 'virtio-serial-bus' bus found for device '{}'",
            properties.kind().name
        )),
    })
}

fn make_port(
    control: &mut Control,
    properties: &mut Properties,
    is_console: bool,
) -> Result<Made, QmpError> {
    let console = controller(control, properties)?;
    let chardev = properties
        .text("chardev")?
        .map(|id| control.services.chardevs.claim(&id))
        .transpose()?;
    let number = properties.number("nr", u64::from(u32::MAX))?;
    let id = properties.id().unwrap_or_default().to_owned();
    let sink = Openings {
        id,
        events: Arc::clone(&control.events),
    };
    let options = PortOptions {
        number: number.and_then(|number| u32::try_from(number).ok()),
        name: properties.text("name")?.unwrap_or_default(),
        is_console,
        chardev,
        sink: Some(Arc::new(sink)),
    };
    let number = console
        .add_port(options)
        .map_err(|error| QmpError::generic(error.to_string()))?;
    Ok(Made {
        place: Place::Port,
        detach: Some(Box::new(move || {
            console.remove_port(number);
        })),
        ..Made::new(Arc::new(NoRegisters("virtserialport")))
    })
}
