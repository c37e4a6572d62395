//! Devices at fixed ports.

use std::sync::Arc;

use api::QmpError;
use boot_pc::acpi::LegacyDevice;
use chardev::ChardevClaim;
use dev_pc::debug_ports::{DebugConsole, DebugExit};
use dev_pc::pvpanic::{Pvpanic, PvpanicEvents};
use device::IrqLine;

use super::properties::property;
use super::{BusKind, DeviceKind, Made, Properties};
use crate::control::Control;
use crate::serial;

/// Ports and IRQs of the serial ports, in order.
const SERIAL_PLACES: [(u64, u64); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// A 16550A.
pub(super) const SERIAL: DeviceKind = DeviceKind {
    name: "isa-serial",
    category: "Input",
    description: "serial port (16550A)",
    bus: BusKind::Isa,
    hotpluggable: false,
    properties: &[
        property("chardev", "str", "ID of a chardev to connect"),
        property("index", "uint32", "which port: 0 is COM1"),
        property("iobase", "uint32", "its first port"),
        property("irq", "uint32", "its IRQ"),
    ],
    make: make_serial,
};

/// Bytes for people who debug firmware.
pub(super) const DEBUG_CONSOLE: DeviceKind = DeviceKind {
    name: "isa-debugcon",
    category: "Misc",
    description: "debug console, one byte wide",
    bus: BusKind::Isa,
    hotpluggable: false,
    properties: &[
        property("chardev", "str", "ID of a chardev to connect"),
        property("iobase", "uint32", "its port (0xe9)"),
    ],
    make: make_debug_console,
};

/// A port that ends the program.
pub(super) const DEBUG_EXIT: DeviceKind = DeviceKind {
    name: "isa-debug-exit",
    category: "Misc",
    description: "a write ends the program with status value * 2 + 1",
    bus: BusKind::Isa,
    hotpluggable: false,
    properties: &[
        property("iobase", "uint32", "its first port (0x501)"),
        property("iosize", "uint32", "how many ports (2)"),
    ],
    make: make_debug_exit,
};

/// pvpanic.
pub(super) const PVPANIC: DeviceKind = DeviceKind {
    name: "pvpanic",
    category: "Misc",
    description: "the guest tells that it has panicked",
    bus: BusKind::Isa,
    hotpluggable: false,
    properties: &[
        property("ioport", "uint16", "its port (0x505)"),
        property("events", "uint8", "the events it knows (7)"),
    ],
    make: make_pvpanic,
};

fn claim(control: &Control, properties: &mut Properties) -> Result<Option<ChardevClaim>, QmpError> {
    let Some(id) = properties.text("chardev")? else {
        return Ok(None);
    };
    control.services.chardevs.claim(&id).map(Some)
}

fn irq(control: &Control, irq: u64) -> IrqLine {
    let line = |chips: &crate::chipset::Chipset| chips.irq(usize::try_from(irq).unwrap_or(16));
    control
        .chips
        .as_ref()
        .map_or_else(IrqLine::unconnected, line)
}

fn make_serial(
    control: &mut Control,
    _kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let there = control
        .devices
        .iter()
        .filter(|device| device.kind.name == "isa-serial")
        .count();
    let index = match properties.number("index", 3)? {
        Some(index) => usize::try_from(index).unwrap_or(0),
        None => there,
    };
    let Some((base, line)) = SERIAL_PLACES.get(index).copied() else {
        return Err(QmpError::generic(
            "Max. supported number of ISA serial ports is 4.",
        ));
    };
    let base = properties.number("iobase", 0xfff8)?.unwrap_or(base);
    let line = properties.number("irq", 15)?.unwrap_or(line);
    let claim = claim(control, properties)?;
    let runtime = control.services.runtime.clone();
    let (uart, cable) = serial::port(irq(control, line), claim, &runtime);
    control.place_isa("serial", base, 8, uart.clone())?;
    Ok(Made {
        described: described_serial(index, base, line),
        cable: Some(cable),
        ..Made::new(uart)
    })
}

/// The first port of a PC is in the tables anyway.
fn described_serial(index: usize, base: u64, line: u64) -> Option<LegacyDevice> {
    Some(LegacyDevice::Serial {
        number: u8::try_from(index)
            .ok()
            .filter(|index| *index > 0)?
            .checked_add(1)?,
        base: u16::try_from(base).ok()?,
        irq: u8::try_from(line).ok()?,
    })
}

fn make_debug_console(
    control: &mut Control,
    _kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let base = properties.number("iobase", 0xffff)?.unwrap_or(0xe9);
    let Some(claim) = claim(control, properties)? else {
        return Err(QmpError::generic(
            "Can't create debugcon device, empty char device",
        ));
    };
    let cable = serial::writer(claim, &control.services.runtime);
    let console = DebugConsole::new(cable.clone());
    control.place_isa("isa-debugcon", base, 1, console.clone())?;
    Ok(Made {
        cable: Some(cable),
        ..Made::new(console)
    })
}

fn make_debug_exit(
    control: &mut Control,
    _kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let base = properties.number("iobase", 0xffff)?.unwrap_or(0x501);
    let length = properties.number("iosize", 8)?.unwrap_or(2).max(1);
    let exit = DebugExit::new(Arc::clone(&control.requests) as _);
    control.place_isa("isa-debug-exit", base, length, exit.clone())?;
    Ok(Made::new(exit))
}

fn make_pvpanic(
    control: &mut Control,
    _kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let port = properties.number("ioport", 0xffff)?.unwrap_or(0x505);
    let events = properties.number("events", 7)?.unwrap_or(7);
    let events = PvpanicEvents::from_bits(u8::try_from(events).unwrap_or(7));
    let device = Pvpanic::new(events, Arc::clone(&control.requests) as _);
    control.place_isa("pvpanic", port, 1, device.clone())?;
    Ok(Made {
        described: Some(LegacyDevice::Pvpanic {
            base: u16::try_from(port).unwrap_or(0),
        }),
        ..Made::new(device)
    })
}
