//! The machine's options: one table for parsing, help and completions.
//!
//! Scripts write them with one dash (`-m 1G`) or two. Most repeat; those that do not, take the last one given.

use std::ffi::OsString;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Argument {
    None,
    Text(&'static str),
}

/// An option of the table.
struct Spec {
    name: &'static str,
    argument: Argument,
    help: &'static str,
}

const fn text(name: &'static str, value: &'static str, help: &'static str) -> Spec {
    Spec {
        name,
        argument: Argument::Text(value),
        help,
    }
}

const fn flag(name: &'static str, help: &'static str) -> Spec {
    Spec {
        name,
        argument: Argument::None,
        help,
    }
}

/// The options, in the order of `--help`.
const OPTIONS: &[Spec] = &[
    text(
        "machine",
        "[type=]NAME[,PROP=VALUE...]",
        "the board: pc, microvm, none ('help' lists them)",
    ),
    text("M", "NAME", "the same as -machine"),
    text(
        "accel",
        "NAME[,PROP=VALUE...]",
        "who executes: kvm, tcg, qtest; the first that works of several",
    ),
    text(
        "cpu",
        "MODEL",
        "the CPU model: qemu64, max ('help' lists them)",
    ),
    text("smp", "N[,sockets=..,cores=..,threads=..]", "processors"),
    text("m", "[size=]SIZE", "RAM, in MiB if there is no suffix"),
    text("name", "NAME", "the machine's name"),
    text("uuid", "UUID", "the machine's UUID"),
    text(
        "rtc",
        "[base=utc|localtime|DATE][,clock=..]",
        "the guest's time of day",
    ),
    text("kernel", "FILE", "a kernel: bzImage, PVH or multiboot ELF"),
    text("initrd", "FILE", "the kernel's initial RAM disk"),
    text("append", "TEXT", "the kernel's command line"),
    text("bios", "FILE", "firmware that starts at the reset vector"),
    text(
        "object",
        "TYPE,id=ID[,PROP=VALUE...]",
        "create an object: secret, iothread ...",
    ),
    text(
        "chardev",
        "BACKEND,id=ID[,...]",
        "create a character device: socket, stdio, pty, file ...",
    ),
    text(
        "blockdev",
        "[driver=]DRIVER,node-name=NAME[,...]",
        "add a block node",
    ),
    text(
        "drive",
        "file=FILE[,if=..][,format=..][,id=..]",
        "add a block node, and a disk over it",
    ),
    text("hda", "FILE", "a disk from a file"),
    text("cdrom", "FILE", "a CD-ROM from a file"),
    text(
        "device",
        "DRIVER[,id=ID][,PROP=VALUE...]",
        "add a device ('help' lists them)",
    ),
    text(
        "serial",
        "DEV",
        "connect the next serial port: stdio, mon:stdio, none, chardev:ID, file:.., unix:.. ...",
    ),
    text("debugcon", "DEV", "connect the debug console, port 0xe9"),
    text(
        "monitor",
        "DEV",
        "a monitor for people on a character device",
    ),
    text("qmp", "DEV", "QMP on a character device"),
    text(
        "mon",
        "[chardev=]ID[,mode=control|readline][,pretty=on]",
        "a monitor on a chardev: for people (readline, the default), or QMP (control)",
    ),
    text("qtest", "DEV", "the qtest protocol on a character device"),
    text(
        "display",
        "none",
        "what shows the guest's display; there is none yet",
    ),
    text("vga", "none", "the display adapter; there is none yet"),
    text("net", "none", "network; there is none yet"),
    text("nic", "none", "network; there is none yet"),
    text("boot", "ORDER", "what firmware boots from"),
    text(
        "action",
        "EVENT=ACTION[,...]",
        "what guests' reboot, shutdown, panic and watchdog lead to",
    ),
    text(
        "watchdog-action",
        "ACTION",
        "the same as -action watchdog=ACTION",
    ),
    text("pidfile", "FILE", "leave the process id there"),
    flag("S", "do not start the guest; 'cont' does"),
    flag(
        "nographic",
        "no display; the first serial port is standard input and output, with a monitor behind Ctrl-A c",
    ),
    flag("nodefaults", "no devices that nobody asked for"),
    flag(
        "no-user-config",
        "nothing; there are no configuration files",
    ),
    flag("no-reboot", "the same as -action reboot=shutdown"),
    flag("no-shutdown", "the same as -action shutdown=pause"),
    flag("enable-kvm", "the same as -accel kvm"),
    flag(
        "daemonize",
        "go to the background once everything is set up",
    ),
    flag("version", "print the version"),
    flag("help", "this text"),
    flag("h", "this text"),
];

const EXAMPLES: &str = "\
Examples:
  Boot a kernel on the serial console, with QMP on a socket:

    ratite system -m 512M -smp 2 -nographic -kernel vmlinuz -initrd initrd.img \\
        -append console=ttyS0 -qmp unix:/tmp/qmp.sock,server=on,wait=off

  Give it a disk:

    -blockdev driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2 \\
    -device virtio-blk-pci,drive=disk
";

/// An option as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// Its name in the table.
    pub(crate) option: &'static str,
    /// Its argument; empty for a switch.
    pub(crate) text: String,
}

/// What came of reading the command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Go on with these, in the order given.
    Run(Vec<Given>),
    /// Print this and end.
    Print(String),
}

/// The text of `--help`.
pub(crate) fn help(program: &str) -> String {
    let mut text = format!(
        "A PC under QMP.\n\nusage: {program} [OPTION...] [DISK-IMAGE]\n\noptions, with one dash or two:\n"
    );
    for spec in OPTIONS {
        let left = match spec.argument {
            Argument::None => format!("-{}", spec.name),
            Argument::Text(value) => format!("-{} {value}", spec.name),
        };
        if left.len() > 38 {
            text.push_str(&format!("  {left}\n{:42}{}\n", "", spec.help));
        } else {
            text.push_str(&format!("  {left:38}  {}\n", spec.help));
        }
    }
    text.push('\n');
    text.push_str(EXAMPLES);
    text
}

/// The table for completions and the manual page, which write options with two dashes.
pub(crate) fn command() -> clap::Command {
    let arguments = OPTIONS.iter().map(|spec| {
        let argument = clap::Arg::new(spec.name).long(spec.name).help(spec.help);
        match spec.argument {
            Argument::None => argument.action(clap::ArgAction::SetTrue),
            Argument::Text(value) => argument.value_name(value).action(clap::ArgAction::Append),
        }
    });
    clap::Command::new("system")
        .about("A PC under QMP.")
        .after_help(EXAMPLES)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(arguments)
}

/// Reads the command line.
///
/// # Errors
/// One line for people, in QEMU's words.
pub(crate) fn parse(program: &str, arguments: Vec<OsString>) -> Result<Parsed, String> {
    let mut given = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let argument = into_text(argument)?;
        let Some(name) = argument.strip_prefix('-').filter(|name| !name.is_empty()) else {
            given.push(Given {
                option: "hda",
                text: argument,
            });
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let spec = OPTIONS.iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| format!("{argument}: invalid option"))?;
        let text = match spec.argument {
            Argument::None => String::new(),
            Argument::Text(_) => {
                let next = arguments.next();
                into_text(next.ok_or_else(|| format!("{argument}: requires an argument"))?)?
            }
        };
        match spec.name {
            "help" | "h" => return Ok(Parsed::Print(help(program))),
            "version" => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Parsed::Print(format!("ratite system {version}\n")));
            }
            _ => given.push(Given {
                option: spec.name,
                text,
            }),
        }
    }
    Ok(Parsed::Run(given))
}

fn into_text(argument: OsString) -> Result<String, String> {
    argument
        .into_string()
        .map_err(|argument| format!("{}: is not UTF-8", argument.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Parsed, String> {
        parse(
            "ratite system",
            arguments.iter().map(OsString::from).collect(),
        )
    }

    #[test]
    fn one_dash_or_two() {
        let Ok(Parsed::Run(given)) = parsed(&["-m", "1G", "--kernel", "k", "-S", "disk.img"])
        else {
            panic!("options expected");
        };
        let given: Vec<_> = given.iter().map(|one| (one.option, &*one.text)).collect();
        let expected = [("m", "1G"), ("kernel", "k"), ("S", ""), ("hda", "disk.img")];
        assert_eq!(given, expected);
    }

    #[test]
    fn complaints_are_qemus() {
        assert_eq!(parsed(&["-nosuch"]).unwrap_err(), "-nosuch: invalid option");
        assert_eq!(parsed(&["-m"]).unwrap_err(), "-m: requires an argument");
    }

    #[test]
    fn names_are_unique() {
        command().debug_assert();
        let mut all: Vec<_> = OPTIONS.iter().map(|spec| spec.name).collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
