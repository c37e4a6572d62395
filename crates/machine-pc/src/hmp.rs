//! The monitor for people, as far as `human-monitor-command` has it.
//!
//! | command | what it shows |
//! |---|---|
//! | `info status` | the run state |
//! | `info registers` | a processor's registers |
//! | `info mtree` | memory and registers by address |
//! | `info block` | disks with their images |
//! | `info pci` | functions on the bus |
//! | `info qtree` | devices with their properties |
//! | `qemu-io DEVICE "COMMAND"` | reads, writes, flushes or discards on a disk |
//! | `x /FMT ADDR`, `xp /FMT ADDR` | memory, by linear or physical address |
//!
//! A new command: a line in [`COMMANDS`] and its function.

mod block;
mod examine;
mod info;
mod registers;

use api::QmpError;

use crate::control::Control;

/// A command of the monitor.
struct Command {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(&mut Control, &str, i64) -> String,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "help",
        arguments: "",
        help: "show the help",
        run: |_, _, _| help(),
    },
    Command {
        name: "info",
        arguments: "[subcommand]",
        help: "show various information about the system state",
        run: info::run,
    },
    Command {
        name: "qemu-io",
        arguments: "[-d] device \"command\"",
        help: "run a qemu-io command on a block device",
        run: block::qemu_io,
    },
    Command {
        name: "x",
        arguments: "/fmt addr",
        help: "virtual memory dump starting at 'addr'",
        run: examine::linear,
    },
    Command {
        name: "xp",
        arguments: "/fmt addr",
        help: "physical memory dump starting at 'addr'",
        run: examine::physical,
    },
];

fn help() -> String {
    let line = |command: &Command| {
        format!(
            "{} {} -- {}\r\n",
            command.name, command.arguments, command.help
        )
    };
    COMMANDS.iter().map(line).collect()
}

/// Runs a line; `cpu` is the processor that is looked at.
///
/// # Errors
/// There is no such processor. What the line itself does wrong stands in the text.
pub(crate) fn run(control: &mut Control, line: &str, cpu: i64) -> Result<String, QmpError> {
    let has_cpu = usize::try_from(cpu).is_ok_and(|cpu| cpu < control.cpus.len());
    if !has_cpu && cpu != 0 {
        return Err(QmpError::invalid_parameter_value(
            "cpu-index",
            "a CPU number",
        ));
    }
    let line = line.trim();
    let end = line.find([' ', '/']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return Ok(String::new());
    }
    Ok(match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(control, rest.trim(), cpu),
        None => format!("unknown command: '{name}'\r\n"),
    })
}
