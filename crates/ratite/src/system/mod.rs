//! `ratite system`: a PC under QMP.

mod drive;
mod legacy_chardev;
mod machine_options;
pub(crate) mod options;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use api::keyval::Options;
use api::{Interface, MonitorMode, MonitorOptions, QmpError};
use chardev::ChardevClaim;
use machine_pc::devices::DeviceServices;
use machine_pc::{ExitStatus, Machine, ShutdownCause};
use monitor::{MonitorServer, version_info};
use serde_json::Value;
use storage_service::StorageService;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::service_option::{self, SERVICE_OPTIONS};
use crate::standard_output;
use crate::storage_daemon::{EndSignals, background, control_runtime};
use drive::{Drive, Interface as DriveInterface};
use legacy_chardev::LegacyChardev;
use machine_options::{MachineOptions, Wanted};
use options::{Given, Parsed};

/// How many of [`SERVICE_OPTIONS`] come before the machine, which uses what they make; the others
/// offer what is there then, the machine's disks too.
const BEFORE_THE_MACHINE: usize = 3;

/// Runs the personality; `program` is the name for messages.
pub(crate) fn main(program: &str, arguments: Vec<OsString>) -> ExitCode {
    let given = match options::parse(program, arguments) {
        Ok(Parsed::Run(given)) => given,
        Ok(Parsed::Print(text)) => return standard_output::print(program, &text),
        Err(complaint) => {
            eprintln!("{program}: {complaint}");
            return ExitCode::FAILURE;
        }
    };
    let daemonize = given.iter().any(|given| given.option == "daemonize");
    if daemonize && !background::is_background() {
        return match background::start_again() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("{program}: cannot go to the background: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match run(program, &given, daemonize) {
        Ok(code) => code,
        Err(complaint) => {
            eprintln!("{program}: {complaint}");
            ExitCode::FAILURE
        }
    }
}

fn run(program: &str, given: &[Given], daemonize: bool) -> Result<ExitCode, String> {
    let machine = match machine_options::read(given).map_err(|error| error.desc)? {
        Wanted::Machine(machine) => *machine,
        Wanted::Help(text) => return Ok(standard_output::print(program, &text)),
    };
    for warning in &machine.warnings {
        eprintln!("{program}: {warning}");
    }
    let runtime = control_runtime().map_err(|error| format!("cannot start: {error}"))?;
    let ended = runtime.block_on(async {
        let mut signals =
            EndSignals::take().map_err(|error| format!("cannot wait for signals: {error}"))?;
        let mut system = tokio::select! {
            system = System::new(&runtime, given, machine) => system?,
            () = signals.any() => return Ok(ExitStatus(0)),
        };
        let pidfile = given.iter().rev().find(|given| given.option == "pidfile");
        let pidfile = pidfile
            .map(|given| background::PidFile::create(&given.text))
            .transpose()?;
        if daemonize {
            background::settle().map_err(|error| format!("cannot go on: {error}"))?;
        }
        system.start().await?;
        let status = system.wait_for_end(&mut signals).await;
        system.close().await;
        drop(pidfile);
        Ok(status)
    });
    // A chardev may still wait for a connection on a thread that nobody needs any more.
    runtime.shutdown_background();
    ended.map(|ExitStatus(code): ExitStatus| ExitCode::from(code))
}

/// The machine's own options among those given.
///
/// # Errors
/// Words for people; a list that was asked for instead of a machine, too.
pub(crate) fn machine_options_of(given: &[Given]) -> Result<MachineOptions, String> {
    match machine_options::read(given).map_err(|error| error.desc)? {
        Wanted::Machine(machine) => Ok(*machine),
        Wanted::Help(text) => Err(text),
    }
}

/// A machine with its disks and monitors, in this process.
pub(crate) struct System {
    storage: StorageService,
    machine: Machine,
    monitors: Arc<MonitorServer>,
    waiting_monitors: Vec<(ChardevClaim, Listener)>,
    quit: Arc<Notify>,
    stopped: bool,
}

/// Who is behind a monitor.
enum Listener {
    /// Programs, by QMP.
    Client(monitor::MonitorOptions),
    /// People.
    Person,
}

/// An option's complaint, with the option before it.
fn of_option(given: &Given) -> impl Fn(QmpError) -> String {
    move |error| format!("-{} {}: {}", given.option, given.text, error.desc)
}

impl System {
    /// Makes everything that the options ask for; the machine is on and stands.
    pub(crate) async fn new(
        runtime: &Runtime,
        given: &[Given],
        machine: MachineOptions,
    ) -> Result<Self, String> {
        let storage = machine_storage(runtime).map_err(|error| format!("cannot start: {error}"))?;
        Self::set_up(storage, given, machine).await
    }

    /// The same over a service that may have something already.
    pub(crate) async fn set_up(
        storage: StorageService,
        given: &[Given],
        machine: MachineOptions,
    ) -> Result<Self, String> {
        let handle = tokio::runtime::Handle::current();
        let (parts, _) = SERVICE_OPTIONS.split_at(BEFORE_THE_MACHINE);
        add_to_service(&storage, given, parts).await?;
        let drives = add_drives(&storage, given).await?;
        let services = DeviceServices {
            chardevs: Arc::clone(storage.chardevs()),
            graph: Arc::clone(storage.graph()),
            data_side: storage.data_side().clone(),
            drives: drives
                .iter()
                .map(|drive| (drive.id.clone(), drive.node_name.clone()))
                .collect(),
            objects: Arc::clone(storage.objects()),
            runtime: handle.clone(),
        };
        let events = Arc::clone(storage.event_bus()) as _;
        let MachineOptions {
            config, stopped, ..
        } = machine;
        let made = tokio::task::spawn_blocking(move || Machine::new(config, events, services));
        let made = made.await.map_err(|error| error.to_string())?;
        let machine = made.map_err(|error| error.to_string())?;
        let quit = Arc::<Notify>::default();
        let mut table = storage.commands(Interface::MACHINE, Arc::clone(&quit));
        machine_pc::commands::register(&mut table, &machine);
        let bus = Arc::clone(storage.event_bus());
        let monitors = MonitorServer::new(table, bus, &version_info(), handle);
        let mut system = Self {
            storage,
            machine,
            monitors,
            waiting_monitors: Vec::new(),
            quit,
            stopped,
        };
        let done = system.add_parts(given, drives).await;
        if let Err(error) = done {
            system.machine.close();
            return Err(error);
        }
        Ok(system)
    }

    async fn add_parts(&mut self, given: &[Given], drives: Vec<Drive>) -> Result<(), String> {
        self.add_serial_ports(given).await?;
        for drive in drives {
            let complain = |error: QmpError| format!("drive '{}': {}", drive.id, error.desc);
            let driver = match drive.interface {
                DriveInterface::None => None,
                DriveInterface::Virtio => Some(self.virtio_disk().await.map_err(complain)?),
                // A board without IDE has its disks by virtio.
                DriveInterface::IdeDisk => match self.virtio_disk().await.map_err(complain)? {
                    "virtio-blk-pci" => Some("ide-hd"),
                    other => Some(other),
                },
                DriveInterface::IdeCdRom => Some("ide-cd"),
            };
            if let Some(driver) = driver {
                let mut properties: BTreeMap<String, Value> =
                    drive.properties.clone().into_iter().collect();
                properties.insert("drive".to_owned(), drive.id.clone().into());
                let made = self.make_device(driver, None, properties).await;
                made.map_err(complain)?;
            }
        }
        for one in given {
            let added = match one.option {
                "device" => self.add_device(&one.text).await,
                "debugcon" => self.add_debug_console(&one.text).await,
                "qtest" => self.add_qtest(&one.text).await,
                "qmp" => self.add_qmp(&one.text).await,
                "mon" => self.add_monitor(&one.text),
                "monitor" => self.add_human_monitor(&one.text).await,
                _ => continue,
            };
            added.map_err(of_option(one))?;
        }
        let (_, exports) = SERVICE_OPTIONS.split_at(BEFORE_THE_MACHINE);
        add_to_service(&self.storage, given, exports).await?;
        let powered = self.machine.ask(|control| control.power_on()).await;
        powered
            .and_then(|powered| powered)
            .map_err(|error| error.to_string())
    }

    /// The chardev that a one-word option means; made if it is new.
    async fn chardev(&self, text: &str, id: &str) -> Result<Option<String>, QmpError> {
        match legacy_chardev::parse(text, id)? {
            LegacyChardev::None => Ok(None),
            LegacyChardev::Existing(id) => Ok(Some(id)),
            LegacyChardev::New(arguments) => {
                service_option::add_chardev(&self.storage, *arguments).await?;
                Ok(Some(id.to_owned()))
            }
        }
    }

    /// The kind of virtio disk that the board takes.
    async fn virtio_disk(&self) -> Result<&'static str, QmpError> {
        let has_pci = self.machine.ask(|control| control.has_pci()).await;
        match has_pci.map_err(|error| QmpError::generic(error.to_string()))? {
            true => Ok("virtio-blk-pci"),
            false => Ok("virtio-blk-device"),
        }
    }

    async fn make_device(
        &self,
        driver: &str,
        id: Option<String>,
        properties: BTreeMap<String, Value>,
    ) -> Result<(), QmpError> {
        let driver = driver.to_owned();
        let added = self
            .machine
            .ask(move |control| control.add_device(&driver, id, properties));
        let added = added.await;
        added.map_err(|error| QmpError::generic(error.to_string()))?
    }

    async fn add_serial_ports(&mut self, given: &[Given]) -> Result<(), String> {
        let nographic = given.iter().any(|one| one.option == "nographic");
        let nodefaults = given.iter().any(|one| one.option == "nodefaults");
        let has_monitor = given
            .iter()
            .any(|one| matches!(one.option, "monitor" | "mon" | "qmp"));
        let texts: Vec<&str> = given
            .iter()
            .filter(|one| one.option == "serial")
            .map(|one| one.text.as_str())
            .collect();
        let texts = match (texts.is_empty(), nographic, nodefaults) {
            (false, _, _) => texts,
            (true, true, _) if has_monitor => vec!["stdio"],
            (true, true, _) => vec!["mon:stdio"],
            (true, false, true) => vec![],
            (true, false, false) => match self.machine.ask(|control| control.has_chips()).await {
                Ok(true) => vec!["null"],
                _ => vec![],
            },
        };
        for (number, text) in texts.into_iter().enumerate() {
            let complain = |error: QmpError| format!("-serial {text}: {}", error.desc);
            let id = format!("serial{number}");
            let chardev = match text.strip_prefix("mon:") {
                Some(terminal) => self.with_monitor(terminal, &id).await.map(Some),
                None => self.chardev(text, &id).await,
            };
            if let Some(chardev) = chardev.map_err(complain)? {
                let properties = BTreeMap::from([
                    ("chardev".to_owned(), Value::from(chardev)),
                    ("index".to_owned(), Value::from(number)),
                ]);
                let made = self.make_device("isa-serial", None, properties).await;
                made.map_err(complain)?;
            }
        }
        Ok(())
    }

    /// Makes a terminal that a device, under this id, and a monitor for people share.
    async fn with_monitor(&mut self, terminal: &str, id: &str) -> Result<String, QmpError> {
        let base = format!("{id}-base");
        let made = match terminal {
            // Ctrl-C is the guest's.
            "stdio" => {
                let option = format!("stdio,id={base},signal=off");
                service_option::add(&self.storage, "chardev", &option).await?;
                Some(base)
            }
            other => self.chardev(other, &base).await?,
        };
        let words = || QmpError::generic("a monitor needs a terminal");
        let chardevs = self.storage.chardevs();
        let claim = chardevs.claim(&made.ok_or_else(words)?)?;
        let quit = Arc::clone(&self.quit);
        let runtime = tokio::runtime::Handle::current();
        let ends = chardev::mux::multiplex(claim, &runtime, Box::new(move || quit.notify_one()));
        let [device, monitor] = ends;
        let monitor_id = format!("compat_monitor{}", self.waiting_monitors.len());
        chardevs.add(id, device)?;
        chardevs.add(&monitor_id, monitor)?;
        let claim = chardevs.claim(&monitor_id)?;
        self.waiting_monitors.push((claim, Listener::Person));
        Ok(id.to_owned())
    }

    async fn add_device(&self, text: &str) -> Result<(), QmpError> {
        let (Options::Json(value) | Options::Keyval(value)) = Options::parse(text, Some("driver"))?;
        let Value::Object(members) = value else {
            return Err(QmpError::generic("an object is expected"));
        };
        let (driver, id, properties) = machine_pc::devices::split_arguments(members)?;
        self.make_device(&driver, id, properties).await
    }

    async fn add_debug_console(&self, text: &str) -> Result<(), QmpError> {
        let Some(chardev) = self.chardev(text, "debugcon").await? else {
            return Ok(());
        };
        let properties = BTreeMap::from([("chardev".to_owned(), Value::from(chardev))]);
        self.make_device("isa-debugcon", None, properties).await
    }

    async fn add_qtest(&self, text: &str) -> Result<(), QmpError> {
        if let Some(chardev) = self.chardev(text, "qtest").await? {
            let claim = self.storage.chardevs().claim(&chardev)?;
            let runtime = tokio::runtime::Handle::current();
            machine_pc::qtest::serve(&self.machine, claim, &runtime);
        }
        Ok(())
    }

    async fn add_qmp(&mut self, text: &str) -> Result<(), QmpError> {
        let id = format!("compat_monitor{}", self.waiting_monitors.len());
        if let Some(chardev) = self.chardev(text, &id).await? {
            let claim = self.storage.chardevs().claim(&chardev)?;
            let listener = Listener::Client(monitor::MonitorOptions {
                id: Some(id),
                pretty: false,
            });
            self.waiting_monitors.push((claim, listener));
        }
        Ok(())
    }

    async fn add_human_monitor(&mut self, text: &str) -> Result<(), QmpError> {
        let id = format!("compat_monitor{}", self.waiting_monitors.len());
        if let Some(chardev) = self.chardev(text, &id).await? {
            let claim = self.storage.chardevs().claim(&chardev)?;
            self.waiting_monitors.push((claim, Listener::Person));
        }
        Ok(())
    }

    fn add_monitor(&mut self, text: &str) -> Result<(), QmpError> {
        let options: MonitorOptions = Options::parse(text, Some("chardev"))?.read()?;
        let listener = match options.mode {
            Some(MonitorMode::Control) => Listener::Client(monitor::MonitorOptions {
                id: options.id,
                pretty: options.pretty == Some(true),
            }),
            // A machine's monitor is for people unless told otherwise.
            None | Some(MonitorMode::Readline) if options.pretty.is_some() => {
                let words = "'pretty' is not compatible with HMP monitors";
                return Err(QmpError::generic(words));
            }
            None | Some(MonitorMode::Readline) => Listener::Person,
        };
        let claim = self.storage.chardevs().claim(&options.chardev)?;
        self.waiting_monitors.push((claim, listener));
        Ok(())
    }

    /// Lets the monitors answer and starts the guest.
    ///
    /// # Errors
    /// The machine has ended meanwhile.
    pub(crate) async fn start(&mut self) -> Result<(), String> {
        for (claim, listener) in std::mem::take(&mut self.waiting_monitors) {
            match listener {
                Listener::Client(options) => self.monitors.serve_chardev(claim, &options),
                Listener::Person => {
                    let commands = machine_pc::human_commands(&self.machine);
                    self.monitors.serve_people(claim, commands);
                }
            }
        }
        if self.stopped {
            return Ok(());
        }
        let started = self.machine.ask(|control| control.cont()).await;
        started
            .and_then(|started| started)
            .map_err(|error| error.to_string())
    }

    /// Waits until the guest, a client or a signal ends the machine.
    pub(crate) async fn wait_for_end(&self, signals: &mut EndSignals) -> ExitStatus {
        let cause = tokio::select! {
            status = self.machine.ended() => return status,
            () = self.quit.notified() => ShutdownCause::HostQmpQuit,
            () = signals.any() => ShutdownCause::HostSignal,
        };
        self.end_by(cause).await
    }

    /// Ends the machine as a person at its window would.
    pub(crate) async fn switch_off(&self) -> ExitStatus {
        self.end_by(ShutdownCause::HostUi).await
    }

    async fn end_by(&self, cause: ShutdownCause) -> ExitStatus {
        let ending = self.machine.ask(move |control| control.shutdown(cause));
        // A machine that has ended meanwhile has ended.
        let _ = ending.await;
        self.machine.ended().await
    }

    /// Ends everything in good order.
    pub(crate) async fn close(self) {
        let machine = self.machine.clone();
        machine.deliver_output().await;
        if let Err(error) = tokio::task::spawn_blocking(move || machine.close()).await {
            tracing::error!(%error, "the machine did not end well");
        }
        self.storage.close().await;
        self.monitors.close().await;
    }
}

/// A storage service with the objects of a machine.
///
/// # Errors
/// When the data side cannot be started.
pub(crate) fn machine_storage(runtime: &Runtime) -> std::io::Result<StorageService> {
    StorageService::with_types(runtime.handle().clone(), machine_pc::register_types)
}

/// Does what the options of these names ask for, all of one name before those of the next.
async fn add_to_service(
    storage: &StorageService,
    given: &[Given],
    names: &[&str],
) -> Result<(), String> {
    for name in names {
        for one in given.iter().filter(|one| one.option == *name) {
            let added = service_option::add(storage, name, &one.text).await;
            added.map_err(of_option(one))?;
        }
    }
    Ok(())
}

/// Adds the nodes of all drives.
async fn add_drives(storage: &StorageService, given: &[Given]) -> Result<Vec<Drive>, String> {
    let mut drives = Vec::new();
    for one in given {
        let text = match one.option {
            "drive" => one.text.clone(),
            "hda" => format!("file={}", one.text.replace(',', ",,")),
            "cdrom" => format!("file={},media=cdrom", one.text.replace(',', ",,")),
            _ => continue,
        };
        let drive = drive::parse(&text, drives.len()).map_err(of_option(one))?;
        let options = api::from_json(drive.node.clone()).map_err(of_option(one))?;
        storage.add_node(options).await.map_err(of_option(one))?;
        drives.push(drive);
    }
    Ok(drives)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `query-commands` lists has a handler.
    #[test]
    fn every_command_of_the_machine_is_there() {
        let runtime = control_runtime().unwrap();
        let given = [Given {
            option: "machine",
            text: "none".to_owned(),
        }];
        runtime.block_on(async {
            let machine = machine_options_of(&given).unwrap();
            let system = System::new(&runtime, &given, machine).await.unwrap();
            let mut table = system
                .storage
                .commands(Interface::MACHINE, Arc::clone(&system.quit));
            machine_pc::commands::register(&mut table, &system.machine);
            let missing = table.missing(Interface::MACHINE.command_names);
            assert_eq!(missing, [""; 0]);
            system.close().await;
        });
        runtime.shutdown_background();
    }
}
