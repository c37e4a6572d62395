//! `info`.

use std::fmt::Write;

use guest_memory::RegionKind;

use super::{block, registers};
use crate::commands::query_pci;
use crate::control::Control;

/// A subcommand of `info`.
struct Subject {
    name: &'static str,
    help: &'static str,
    show: fn(&mut Control, i64) -> String,
}

const SUBJECTS: &[Subject] = &[
    Subject {
        name: "block",
        help: "show info of block devices",
        show: |control, _| block::info(control),
    },
    Subject {
        name: "mtree",
        help: "show memory tree",
        show: |control, _| mtree(control),
    },
    Subject {
        name: "pci",
        help: "show PCI info",
        show: |control, _| pci(control),
    },
    Subject {
        name: "qtree",
        help: "show device tree",
        show: |control, _| qtree(control),
    },
    Subject {
        name: "registers",
        help: "show the cpu registers",
        show: registers::show,
    },
    Subject {
        name: "status",
        help: "show the current VM status (running|paused)",
        show: |control, _| status(control),
    },
];

pub(super) fn run(control: &mut Control, rest: &str, cpu: i64) -> String {
    // Options of the subcommands (`-f`, `-a`) change nothing here.
    let name = rest.split_whitespace().next().unwrap_or_default();
    if name.is_empty() {
        let line = |subject: &Subject| format!("info {} -- {}\r\n", subject.name, subject.help);
        return SUBJECTS.iter().map(line).collect();
    }
    match SUBJECTS.iter().find(|subject| subject.name == name) {
        Some(subject) => (subject.show)(control, cpu),
        None => format!("unknown command: 'info {name}'\r\n"),
    }
}

fn status(control: &Control) -> String {
    let state = control.state();
    let word = if state.is_running() {
        "running"
    } else {
        "paused"
    };
    let why = match state.as_str() {
        "running" | "paused" => String::new(),
        other => format!(" ({other})"),
    };
    format!("VM status: {word}{why}\r\n")
}

fn mtree(control: &Control) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let mut line = |level: usize, start: u64, last: u64, priority: i32, name: &str, kind: &str| {
        let indent = "  ".repeat(level);
        let _ = write!(
            text,
            "{indent}{start:016x}-{last:016x} (prio {priority}, {kind}): {name}\r\n"
        );
    };
    line(0, 0, u64::MAX, 0, "address-space: memory", "container");
    if let Some(memory) = &control.memory {
        for region in memory.regions().iter() {
            let kind = match region.kind {
                RegionKind::Ram => "ram",
                RegionKind::Rom => "rom",
            };
            let last = region.start.0 + (region.bytes - 1);
            let name = format!(
                "{} @{:016x}",
                control.config.board.default_ram_id, region.ram.0
            );
            line(1, region.start.0, last, 0, &name, kind);
        }
    }
    if let Some(chips) = &control.chips {
        for range in chips.memory.ranges() {
            line(
                1,
                range.start,
                range.last,
                range.priority,
                &range.name,
                "i/o",
            );
        }
        line(0, 0, 0xffff, 0, "address-space: I/O", "container");
        for range in chips.ports.ranges() {
            line(
                1,
                range.start,
                range.last,
                range.priority,
                &range.name,
                "i/o",
            );
        }
    }
    text
}

fn pci(control: &Control) -> String {
    let mut text = String::new();
    for device in query_pci(control).into_iter().flat_map(|bus| bus.devices) {
        let _ = write!(
            text,
            "  Bus {:2}, device {:3}, function {}:\r\n    {}: PCI device {:04x}:{:04x}\r\n",
            device.bus,
            device.slot,
            device.function,
            device.class_info.desc.as_deref().unwrap_or("Class"),
            device.id.vendor,
            device.id.device
        );
        if let (Some(vendor), Some(subsystem)) = (device.id.subsystem_vendor, device.id.subsystem) {
            let _ = write!(text, "      PCI subsystem {vendor:04x}:{subsystem:04x}\r\n");
        }
        if let Some(irq) = device.irq {
            let pin = char::from(b'@' + u8::try_from(device.irq_pin).unwrap_or(0) % 8);
            let _ = write!(text, "      IRQ {irq}, pin {pin}\r\n");
        }
        for region in device.regions {
            let kind = match (&*region.r#type, region.mem_type_64, region.prefetch) {
                ("io", _, _) => "I/O".to_owned(),
                (_, wide, prefetch) => format!(
                    "{} bit{} memory",
                    if wide == Some(true) { 64 } else { 32 },
                    if prefetch == Some(true) {
                        " prefetchable"
                    } else {
                        ""
                    }
                ),
            };
            let last = region.address.wrapping_add(region.size - 1);
            let _ = write!(
                text,
                "      BAR{}: {kind} at 0x{:x} [0x{last:x}].\r\n",
                region.bar, region.address
            );
        }
        let _ = write!(text, "      id \"{}\"\r\n", device.qdev_id);
    }
    text
}

fn qtree(control: &Control) -> String {
    let mut text = "bus: main-system-bus\r\n  type System\r\n".to_owned();
    if let Some(chips) = &control.chips {
        for named in &chips.devices {
            let _ = write!(text, "  dev: {}, id \"\"\r\n", named.name);
        }
    }
    for device in &control.devices {
        let id = device.id.as_deref().unwrap_or_default();
        let bus = device.kind.bus.as_str();
        let _ = write!(text, "  dev: {}, id \"{id}\" ({bus})\r\n", device.kind.name);
        for (name, value) in &device.properties {
            let _ = write!(text, "    {name} = {value}\r\n");
        }
    }
    text
}
