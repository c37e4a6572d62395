//! From options to what a machine is made from.

use api::{PanicAction, QmpError, RebootAction, ShutdownAction, WatchdogAction};
use machine_pc::board::{BOARDS, Board};
use machine_pc::devices;
use machine_pc::{
    AcceleratorKind, Actions, GuestFile, IrqchipMode, MachineConfig, Payload, RtcBase, Topology,
};

use super::options::Given;
use crate::flat_options::Flat;

/// What of the options is the machine's own.
pub(crate) struct MachineOptions {
    /// What the machine is made from.
    pub(crate) config: MachineConfig,
    /// Do not start the guest.
    pub(crate) stopped: bool,
    /// What people are told although it goes on.
    pub(crate) warnings: Vec<String>,
}

/// What a person asked to be told instead.
pub(crate) enum Wanted {
    /// A machine.
    Machine(Box<MachineOptions>),
    /// A list.
    Help(String),
}

fn wrong(option: &str, text: &str, why: &str) -> QmpError {
    QmpError::generic(format!("-{option} {text}: {why}"))
}

/// Reads the machine's own options; others are left alone.
///
/// # Errors
/// Words for people.
pub(crate) fn read(given: &[Given]) -> Result<Wanted, QmpError> {
    let mut config = MachineConfig {
        board: Board::default_board(),
        ram_bytes: 0,
        topology: Topology::of(1),
        cpu_model: "max".to_owned(),
        accelerator: AcceleratorKind::Tcg,
        kernel_irqchip: None,
        payload: Payload::default(),
        name: None,
        uuid: None,
        boot_menu: false,
        rtc: RtcBase::Utc,
        actions: Actions::default(),
    };
    let mut accelerators = Vec::new();
    let mut stopped = false;
    for Given { option, text } in given {
        if matches!(*option, "machine" | "M" | "cpu" | "accel") && matches!(&**text, "help" | "?") {
            return Ok(Wanted::Help(help(option)));
        }
        if *option == "device"
            && let Some(text) = device_help(text)
        {
            return Ok(Wanted::Help(text));
        }
        match *option {
            "machine" | "M" => machine(&mut config, &mut accelerators, text)?,
            "accel" => {
                accel(&mut config, &mut accelerators, text)?;
            }
            "enable-kvm" => accelerators.push("kvm".to_owned()),
            "cpu" => config.cpu_model = cpu(text)?,
            "smp" => config.topology = smp(text)?,
            "m" => config.ram_bytes = memory(text)?,
            "name" => config.name = name(text)?,
            "uuid" => config.uuid = Some(uuid(text)?),
            "rtc" => config.rtc = rtc(text)?,
            "kernel" => config.payload.kernel = Some(open("kernel", text)?),
            "initrd" => config.payload.initrd = Some(open("initrd", text)?),
            "bios" => config.payload.firmware = Some(open("bios", text)?),
            "append" => config.payload.command_line.clone_from(text),
            "boot" => config.boot_menu = boot(text)?,
            "S" => stopped = true,
            "no-reboot" => config.actions.reboot = RebootAction::Shutdown,
            "no-shutdown" => config.actions.shutdown = ShutdownAction::Pause,
            "action" => action(&mut config.actions, text)?,
            "watchdog-action" => action(&mut config.actions, &format!("watchdog={text}"))?,
            _ => {}
        }
    }
    if config.ram_bytes == 0 {
        config.ram_bytes = config.board.default_ram_bytes;
    }
    let (accelerator, warnings) = choose(&accelerators)?;
    config.accelerator = accelerator;
    choose_payload(&mut config)?;
    Ok(Wanted::Machine(Box::new(MachineOptions {
        config,
        stopped,
        warnings,
    })))
}

/// Without a kernel and firmware the guest is the embedded one.
fn choose_payload(config: &mut MachineConfig) -> Result<(), QmpError> {
    if config.payload.kernel.is_some() {
        return Ok(());
    }
    let append = !config.payload.command_line.is_empty();
    let is_embedded = config.payload.firmware.is_none()
        && config.payload.initrd.is_none()
        && config.accelerator != AcceleratorKind::Qtest;
    let embedded = guest_payload::image().filter(|_| is_embedded);
    config.payload.kernel = embedded.map(GuestFile::Embedded);
    let needs = [
        ("initrd", config.payload.initrd.is_some()),
        ("append", append),
    ];
    if config.payload.kernel.is_none()
        && let Some((option, _)) = needs.iter().find(|(_, given)| *given)
    {
        return Err(QmpError::generic(format!(
            "-{option} only allowed with -kernel option"
        )));
    }
    Ok(())
}

fn help(option: &str) -> String {
    match option {
        "cpu" => "Available CPUs:\n  host                  The host's processor, under KVM\n  \
                  max                   Every feature that the accelerator has\n  \
                  qemu64                Ratite's least 64-bit processor\n"
            .to_owned(),
        "accel" => "Accelerators supported in this program:\nkvm\nqtest\ntcg\n".to_owned(),
        _ => {
            let mut text = "Supported machines are:\n".to_owned();
            for board in BOARDS {
                for alias in board.aliases {
                    let name = board.name;
                    text.push_str(&format!(
                        "{alias:20} {} (alias of {name})\n",
                        board.description
                    ));
                }
                let default = if board.is_default { " (default)" } else { "" };
                text.push_str(&format!(
                    "{:20} {}{default}\n",
                    board.name, board.description
                ));
            }
            text
        }
    }
}

fn device_help(text: &str) -> Option<String> {
    match text {
        "help" | "?" => Some(devices::help()),
        _ => text.strip_suffix(",help").and_then(devices::help_of),
    }
}

fn open(option: &str, path: &str) -> Result<GuestFile, QmpError> {
    GuestFile::open(path).map_err(|error| wrong(option, path, &error.to_string()))
}

fn machine(
    config: &mut MachineConfig,
    accelerators: &mut Vec<String>,
    text: &str,
) -> Result<(), QmpError> {
    let mut flat = Flat::parse(text, "type")?.with_dashes();
    if let Some(name) = flat.take("type") {
        config.board = Board::find(&name).ok_or_else(|| {
            QmpError::generic(format!(
                "unsupported machine type: \"{name}\"\nUse -machine help to list supported machines"
            ))
        })?;
    }
    if let Some(accel) = flat.take("accel") {
        accelerators.extend(accel.split(':').map(str::to_owned));
    }
    // It is KVM's alone: other accelerators take no notice.
    if let Some(mode) = flat.take("kernel-irqchip") {
        config.kernel_irqchip = Some(kernel_irqchip(&mode)?);
    }
    // Switches of what this board does not have may be off.
    for switch in [
        "usb",
        "vmport",
        "smm",
        "graphics",
        "dump-guest-core",
        "mem-merge",
        "hpet",
        "acpi",
        "pit",
        "pic",
        "rtc",
        "isa-serial",
        "x-option-roms",
        "auto-kernel-cmdline",
    ] {
        flat.switch(switch)?;
    }
    flat.end()
}

fn accel(
    config: &mut MachineConfig,
    accelerators: &mut Vec<String>,
    text: &str,
) -> Result<(), QmpError> {
    // Other properties of accelerators are hints.
    let mut flat = Flat::parse(text, "accel")?;
    let names = flat.take("accel").unwrap_or_default();
    if let Some(mode) = flat.take("kernel-irqchip") {
        if !names.split(':').any(|name| name == "kvm") {
            let why = format!("Property '{names}-accel.kernel-irqchip' not found");
            return Err(wrong("accel", text, &why));
        }
        let mode = kernel_irqchip(&mode);
        config.kernel_irqchip = Some(mode.map_err(|error| wrong("accel", text, &error.desc))?);
    }
    accelerators.extend(names.split(':').map(str::to_owned));
    Ok(())
}

fn kernel_irqchip(mode: &str) -> Result<IrqchipMode, QmpError> {
    match mode {
        "on" => Ok(IrqchipMode::On),
        "split" => Ok(IrqchipMode::Split),
        "off" => Ok(IrqchipMode::Off),
        other => Err(QmpError::generic(format!(
            "Parameter 'kernel-irqchip' does not accept value '{other}'"
        ))),
    }
}

/// The first of those asked for that this host has, and why not those before it.
fn choose(asked: &[String]) -> Result<(AcceleratorKind, Vec<String>), QmpError> {
    let mut reasons = Vec::new();
    for name in asked {
        let kind = match name.as_str() {
            "kvm" => AcceleratorKind::Kvm,
            "tcg" => AcceleratorKind::Tcg,
            "qtest" => AcceleratorKind::Qtest,
            other => {
                reasons.push(format!("invalid accelerator {other}"));
                continue;
            }
        };
        match kind.probe() {
            Ok(()) => {
                if !reasons.is_empty() {
                    reasons.push(format!("falling back to {name}"));
                }
                return Ok((kind, reasons));
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    match reasons.is_empty() {
        true => Ok((AcceleratorKind::Tcg, reasons)),
        false => Err(QmpError::generic(reasons.join("\n"))),
    }
}

fn cpu(text: &str) -> Result<String, QmpError> {
    let (model, features) = text.split_once(',').unwrap_or((text, ""));
    if let Some(feature) = features.split(',').find(|feature| !feature.is_empty()) {
        return Err(wrong(
            "cpu",
            text,
            &format!("feature '{feature}' cannot be changed yet"),
        ));
    }
    Ok(model
        .strip_suffix("-x86_64-cpu")
        .unwrap_or(model)
        .to_owned())
}

fn smp(text: &str) -> Result<Topology, QmpError> {
    let mut flat = Flat::parse(text, "cpus")?;
    let mut take = |key: &str| -> Result<Option<u32>, QmpError> {
        let Some(text) = flat.take(key) else {
            return Ok(None);
        };
        let number = text
            .parse()
            .ok()
            .filter(|number| (1..=1024).contains(number));
        let number = number.ok_or_else(|| QmpError::invalid_parameter_value(key, "a number"))?;
        Ok(Some(number))
    };
    let (cpus, max) = (take("cpus")?, take("maxcpus")?);
    let (sockets, dies) = (take("sockets")?, take("dies")?.unwrap_or(1));
    let (cores, threads) = (take("cores")?, take("threads")?);
    flat.end()?;
    // What is not given follows from the number of CPUs.
    let is_complete = sockets.is_some() && cores.is_some() && threads.is_some();
    let threads = threads.unwrap_or(1);
    let given = sockets.unwrap_or(1) * dies * cores.unwrap_or(1) * threads;
    let wanted = max.or(cpus.filter(|_| !is_complete)).unwrap_or(given);
    let per_socket = dies * cores.unwrap_or(1) * threads;
    let sockets = sockets.unwrap_or_else(|| (wanted / per_socket).max(1));
    let cores = cores.unwrap_or_else(|| (wanted / (sockets * dies * threads)).max(1));
    let product = sockets * dies * cores * threads;
    if product != wanted {
        return Err(QmpError::generic(format!(
            "Invalid CPU topology: product of the hierarchy must match maxcpus: sockets ({sockets}) * dies \
             ({dies}) * cores ({cores}) * threads ({threads}) != maxcpus ({wanted})"
        )));
    }
    let cpus = cpus.unwrap_or(product);
    if cpus > product {
        return Err(QmpError::generic(format!(
            "Invalid CPU topology: maxcpus must be equal to or greater than smp: maxcpus ({product}) < smp_cpus ({cpus})"
        )));
    }
    Ok(Topology {
        cpus,
        sockets,
        dies,
        cores,
        threads,
    })
}

fn memory(text: &str) -> Result<u64, QmpError> {
    let mut flat = Flat::parse(text, "size")?;
    let size = flat.take("size").unwrap_or_default();
    flat.end()?;
    // Without a suffix it is MiB.
    let size = match size.bytes().last() {
        Some(b'0'..=b'9') => format!("{size}M"),
        _ => size,
    };
    api::keyval::parse_size(&size).ok_or_else(|| {
        QmpError::invalid_parameter_value("size", "a non-negative number below 2^64")
    })
}

fn name(text: &str) -> Result<Option<String>, QmpError> {
    let mut flat = Flat::parse(text, "guest")?;
    let name = flat.take("guest");
    flat.switch("debug-threads")?;
    flat.take("process");
    flat.end()?;
    Ok(name)
}

/// Whether the boot menu is wanted; the order is firmware's own.
fn boot(text: &str) -> Result<bool, QmpError> {
    let mut flat = Flat::parse(text, "order")?;
    let menu = flat.switch("menu")? == Some(true.into());
    for ignored in ["order", "once", "strict", "splash-time", "reboot-timeout"] {
        flat.take(ignored);
    }
    flat.end()?;
    Ok(menu)
}

fn uuid(text: &str) -> Result<String, QmpError> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let digits = groups
        .iter()
        .all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if digits && lengths == [8, 4, 4, 4, 12] {
        return Ok(text.to_ascii_lowercase());
    }
    Err(QmpError::generic(
        "failed to parse UUID string: wrong format",
    ))
}

fn rtc(text: &str) -> Result<RtcBase, QmpError> {
    let mut flat = Flat::parse(text, "base")?;
    let base = flat.take("base").unwrap_or_else(|| "utc".to_owned());
    flat.take("clock");
    flat.take("driftfix");
    flat.end()?;
    match base.as_str() {
        "utc" => Ok(RtcBase::Utc),
        date => parse_date(date).map(RtcBase::UnixSeconds).ok_or_else(|| {
            wrong(
                "rtc",
                text,
                "'base' is 'utc' or a date such as 2006-06-17T16:01:21",
            )
        }),
    }
}

/// Seconds since 1970 of `YYYY-MM-DD` or `YYYY-MM-DDThh:mm:ss`.
fn parse_date(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, separator: char| -> Option<[i64; 3]> {
        let parts: Option<Vec<i64>> = text
            .split(separator)
            .map(|part| part.parse().ok())
            .collect();
        parts?.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let sound = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..60).contains(&second);
    if !sound {
        return None;
    }
    // Days since 1970 in the proleptic Gregorian calendar, years beginning in March.
    let (shifted_year, shifted_month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = shifted_year * 365 + shifted_year / 4 - shifted_year / 100
        + shifted_year / 400
        + (shifted_month * 153 + 2) / 5
        + day
        - 1
        - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn action(actions: &mut Actions, text: &str) -> Result<(), QmpError> {
    let mut flat = Flat::parse(text, "event")?;
    let unknown = |event: &str, action: &str| {
        QmpError::generic(format!(
            "-action: '{action}' is not an action for '{event}'"
        ))
    };
    if let Some(action) = flat.take("reboot") {
        actions.reboot = match action.as_str() {
            "reset" => RebootAction::Reset,
            "shutdown" => RebootAction::Shutdown,
            _ => return Err(unknown("reboot", &action)),
        };
    }
    if let Some(action) = flat.take("shutdown") {
        actions.shutdown = match action.as_str() {
            "poweroff" => ShutdownAction::Poweroff,
            "pause" => ShutdownAction::Pause,
            _ => return Err(unknown("shutdown", &action)),
        };
    }
    if let Some(action) = flat.take("panic") {
        actions.panic = match action.as_str() {
            "none" => PanicAction::None,
            "pause" => PanicAction::Pause,
            "shutdown" => PanicAction::Shutdown,
            "exit-failure" => PanicAction::ExitFailure,
            _ => return Err(unknown("panic", &action)),
        };
    }
    if let Some(action) = flat.take("watchdog") {
        actions.watchdog = match action.as_str() {
            "reset" => WatchdogAction::Reset,
            "shutdown" => WatchdogAction::Shutdown,
            "poweroff" => WatchdogAction::Poweroff,
            "pause" => WatchdogAction::Pause,
            "debug" => WatchdogAction::Debug,
            "none" => WatchdogAction::None,
            "inject-nmi" => WatchdogAction::InjectNmi,
            _ => return Err(unknown("watchdog", &action)),
        };
    }
    flat.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_accelerator_that_there_is() {
        let choose = |names: &str| {
            let names: Vec<String> = names.split(':').map(str::to_owned).collect();
            choose(&names)
        };
        assert_eq!(choose("tcg").unwrap(), (AcceleratorKind::Tcg, Vec::new()));
        let (kind, warnings) = choose("hvf:tcg").unwrap();
        assert_eq!(kind, AcceleratorKind::Tcg);
        assert_eq!(warnings, ["invalid accelerator hvf", "falling back to tcg"]);
        assert_eq!(choose("hvf").unwrap_err().desc, "invalid accelerator hvf");
        // Whatever this host has, one of them is chosen.
        assert!(choose("kvm:tcg").is_ok());
    }

    #[test]
    fn interrupt_controllers_of_the_kernel() {
        let given = |option: &'static str, text: &str| {
            let given = [Given {
                option,
                text: text.into(),
            }];
            match read(&given)? {
                Wanted::Machine(machine) => Ok(machine.config.kernel_irqchip),
                Wanted::Help(text) => panic!("{text}"),
            }
        };
        assert_eq!(given("machine", "pc").unwrap(), None);
        for (mode, expected) in [
            ("on", IrqchipMode::On),
            ("split", IrqchipMode::Split),
            ("off", IrqchipMode::Off),
        ] {
            for (option, text) in [
                ("machine", format!("pc,kernel-irqchip={mode}")),
                ("machine", format!("pc,kernel_irqchip={mode}")),
                ("accel", format!("kvm:tcg,kernel-irqchip={mode}")),
            ] {
                assert_eq!(given(option, &text).unwrap(), Some(expected));
            }
        }
        let desc = |option, text| given(option, text).map_err(|error: QmpError| error.desc);
        assert_eq!(
            desc("accel", "kvm,kernel-irqchip=bogus").unwrap_err(),
            "-accel kvm,kernel-irqchip=bogus: Parameter 'kernel-irqchip' does not accept value 'bogus'"
        );
        assert_eq!(
            desc("accel", "tcg,kernel-irqchip=on").unwrap_err(),
            "-accel tcg,kernel-irqchip=on: Property 'tcg-accel.kernel-irqchip' not found"
        );
        assert!(desc("machine", "pc,kernel-irqchip=bogus").is_err());
    }

    #[test]
    fn sizes_dates_and_topologies() {
        assert_eq!(memory("512").unwrap(), 512 << 20);
        assert_eq!(memory("size=1G").unwrap(), 1 << 30);
        assert!(memory("x").is_err());
        assert_eq!(parse_date("1970-01-01"), Some(0));
        assert_eq!(parse_date("2006-06-17T16:01:21"), Some(1_150_560_081));
        assert_eq!(parse_date("2000-02-29"), Some(951_782_400));
        assert_eq!(parse_date("2000-13-01"), None);
        assert_eq!(smp("4").unwrap(), Topology::of(4));
        let topology = smp("cpus=2,sockets=1,cores=2,threads=2").unwrap();
        assert_eq!((topology.cpus, topology.threads), (2, 2));
        assert!(smp("5,sockets=2,cores=2").is_err());
        assert!(smp("0").is_err());
    }
}
