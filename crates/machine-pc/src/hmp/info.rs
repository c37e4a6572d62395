//! `info`.

use std::fmt::Write;

use guest_memory::RegionKind;
use monitor::version_info;

use super::{Answer, block, put, registers};
use crate::commands::{NO_UUID, query_pci};
use crate::control::Control;

const MIB: i64 = 1 << 20;

/// A subject of `info`.
struct Subject {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    /// With the words behind its name, and the processor that is looked at.
    show: fn(&mut Control, &[String], i64) -> Answer,
}

const SUBJECTS: &[Subject] = &[
    Subject {
        name: "balloon",
        arguments: "",
        help: "how much memory the balloon leaves the guest",
        show: |control, _, _| balloon(control),
    },
    Subject {
        name: "block",
        arguments: "[device]",
        help: "disks and what is in them",
        show: |control, words, _| Ok(block::info(control, words)),
    },
    Subject {
        name: "chardev",
        arguments: "",
        help: "chardevs and where they lead",
        show: |control, _, _| Ok(chardev(control)),
    },
    Subject {
        name: "cpus",
        arguments: "",
        help: "CPUs and their threads",
        show: |control, _, cpu| Ok(cpus(control, cpu)),
    },
    Subject {
        name: "iothreads",
        arguments: "",
        help: "iothreads and their polling",
        show: |control, _, _| Ok(iothreads(control)),
    },
    Subject {
        name: "kvm",
        arguments: "",
        help: "whether KVM runs the guest",
        show: |control, _, _| Ok(kvm(control)),
    },
    Subject {
        name: "mtree",
        arguments: "",
        help: "what is where in memory and among the ports",
        show: |control, _, _| Ok(mtree(control)),
    },
    Subject {
        name: "name",
        arguments: "",
        help: "the name given by -name",
        show: |control, _, _| Ok(name(control)),
    },
    Subject {
        name: "pci",
        arguments: "",
        help: "PCI devices and their ranges",
        show: |control, _, _| Ok(pci(control)),
    },
    Subject {
        name: "qtree",
        arguments: "",
        help: "devices on their buses, with their properties",
        show: |control, _, _| Ok(qtree(control)),
    },
    Subject {
        name: "registers",
        arguments: "",
        help: "registers of the CPU at hand",
        show: |control, _, cpu| Ok(registers::show(control, cpu)),
    },
    Subject {
        name: "status",
        arguments: "",
        help: "whether the guest runs, and if not, why",
        show: |control, _, _| Ok(status(control)),
    },
    Subject {
        name: "uuid",
        arguments: "",
        help: "the UUID given by -uuid",
        show: |control, _, _| Ok(uuid(control)),
    },
    Subject {
        name: "version",
        arguments: "",
        help: "the version, as QMP tells it",
        show: |_, _, _| Ok(version()),
    },
];

impl Subject {
    fn help_line(&self) -> String {
        format!("info {} {} -- {}\n", self.name, self.arguments, self.help)
    }
}

/// The names of all subjects.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SUBJECTS.iter().map(|subject| subject.name)
}

/// What `info` alone prints.
pub(super) fn list() -> String {
    SUBJECTS.iter().map(Subject::help_line).collect()
}

/// `help info SUBJECT`.
pub(super) fn help(name: &str) -> Answer {
    Ok(match SUBJECTS.iter().find(|subject| subject.name == name) {
        Some(subject) => subject.help_line(),
        None => unknown(name),
    })
}

fn unknown(name: &str) -> String {
    format!("unknown command: 'info {name}'\n")
}

pub(super) fn run(control: &mut Control, words: &[String], cpu: i64) -> Answer {
    let Some((name, rest)) = words.split_first() else {
        return Ok(list());
    };
    // Options of the subjects (`-f`, `-a`) change nothing here.
    let rest: Vec<String> = rest
        .iter()
        .filter(|word| !word.starts_with('-'))
        .cloned()
        .collect();
    match SUBJECTS.iter().find(|subject| subject.name == name) {
        Some(subject) => (subject.show)(control, &rest, cpu),
        None => Ok(unknown(name)),
    }
}

fn balloon(control: &Control) -> Answer {
    let actual = control.balloon_bytes()?;
    Ok(format!("balloon: actual={}\n", actual / MIB))
}

fn chardev(control: &Control) -> String {
    let mut text = String::new();
    for info in control.services.chardevs.query() {
        put(
            &mut text,
            format_args!("{}: filename={}", info.label, info.filename),
        );
    }
    text
}

fn cpus(control: &Control, looked_at: i64) -> String {
    let mut text = String::new();
    for cpu in &control.cpus {
        let mark = if i64::from(cpu.index()) == looked_at {
            '*'
        } else {
            ' '
        };
        let (index, thread) = (cpu.index(), cpu.thread_id());
        put(
            &mut text,
            format_args!("{mark} CPU #{index}: thread_id={thread}"),
        );
    }
    text
}

fn iothreads(control: &Control) -> String {
    let mut text = String::new();
    for info in control.iothreads() {
        put(&mut text, format_args!("{}:", info.id));
        for (name, value) in [
            ("thread_id", info.thread_id),
            ("poll-max-ns", info.poll_max_ns),
            ("poll-grow", info.poll_grow),
            ("poll-shrink", info.poll_shrink),
            ("aio-max-batch", info.aio_max_batch),
        ] {
            put(&mut text, format_args!("  {name}={value}"));
        }
    }
    text
}

fn kvm(control: &Control) -> String {
    let state = if control.is_kvm() {
        "enabled"
    } else {
        "disabled"
    };
    format!("kvm support: {state}\n")
}

fn name(control: &Control) -> String {
    match &control.config.name {
        Some(name) => format!("{name}\n"),
        None => String::new(),
    }
}

fn uuid(control: &Control) -> String {
    format!("{}\n", control.config.uuid.as_deref().unwrap_or(NO_UUID))
}

fn version() -> String {
    let version = version_info();
    let number = version.qemu;
    format!(
        "{}.{}.{}{}\n",
        number.major, number.minor, number.micro, version.package
    )
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
    format!("VM status: {word}{why}\n")
}

fn mtree(control: &Control) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let mut line = |level: usize, start: u64, last: u64, priority: i32, name: &str, kind: &str| {
        let indent = "  ".repeat(level);
        let _ = writeln!(
            text,
            "{indent}{start:016x}-{last:016x} (prio {priority}, {kind}): {name}"
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
        let _ = writeln!(
            text,
            "  Bus {:2}, device {:3}, function {}:\n    {}: PCI device {:04x}:{:04x}",
            device.bus,
            device.slot,
            device.function,
            device.class_info.desc.as_deref().unwrap_or("Class"),
            device.id.vendor,
            device.id.device
        );
        if let (Some(vendor), Some(subsystem)) = (device.id.subsystem_vendor, device.id.subsystem) {
            let _ = writeln!(text, "      PCI subsystem {vendor:04x}:{subsystem:04x}");
        }
        if let Some(irq) = device.irq {
            let pin = char::from(b'@' + u8::try_from(device.irq_pin).unwrap_or(0) % 8);
            let _ = writeln!(text, "      IRQ {irq}, pin {pin}");
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
            let _ = writeln!(
                text,
                "      BAR{}: {kind} at 0x{:x} [0x{last:x}].",
                region.bar, region.address
            );
        }
        let _ = writeln!(text, "      id \"{}\"", device.qdev_id);
    }
    text
}

fn qtree(control: &Control) -> String {
    let mut text = "bus: main-system-bus\n  type System\n".to_owned();
    if let Some(chips) = &control.chips {
        for named in &chips.devices {
            let _ = writeln!(text, "  dev: {}, id \"\"", named.name);
        }
    }
    for device in &control.devices {
        let id = device.id.as_deref().unwrap_or_default();
        let bus = device.kind.bus.as_str();
        let _ = writeln!(text, "  dev: {}, id \"{id}\" ({bus})", device.kind.name);
        for (name, value) in &device.properties {
            let _ = writeln!(text, "    {name} = {value}");
        }
    }
    text
}
