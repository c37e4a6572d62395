//! `ratite storage-daemon`: block nodes, jobs and exports under QMP, without a machine.

pub(crate) mod background;
pub(crate) mod chardev_option;
pub(crate) mod options;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use api::keyval::Options;
use api::{Interface, MonitorMode, MonitorOptions, QmpError};
use chardev::ChardevClaim;
use monitor::{MonitorServer, version_info};
use storage_service::StorageService;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::{service_option, standard_output};
use options::{CommandLine, Parsed, Step};

/// Threads of the control side. Handlers that block use threads of their own.
const CONTROL_THREADS: usize = 2;

/// When start-up is over, clients that came at once included.
const START_UP: Duration = Duration::from_millis(100);

/// Runs the personality; `program` is the name for messages.
pub(crate) fn main(program: &str, arguments: Vec<OsString>) -> ExitCode {
    let line = match options::parse(arguments) {
        Ok(Parsed::Run(line)) => line,
        Ok(Parsed::Print(text)) => return standard_output::print(program, &text),
        Err(complaint) => {
            eprintln!("{program}: {complaint}");
            if std::io::stderr().is_terminal() {
                eprintln!("Try '{program} --help' for what there is.");
            }
            return ExitCode::FAILURE;
        }
    };
    if line.daemonize && !background::is_background() {
        return match background::start_again() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("{program}: cannot go to the background: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match run(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("{program}: {complaint}");
            if let Some(hint) = hint(&complaint) {
                eprintln!("{hint}");
            }
            ExitCode::FAILURE
        }
    }
}

/// More about a complaint, where its words leave a person wondering.
fn hint(complaint: &str) -> Option<&'static str> {
    if complaint.ends_with("expects an identifier") {
        Some("Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.")
    } else if complaint.ends_with("expects a non-negative number below 2^64") {
        Some(
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively.",
        )
    } else if complaint.ends_with("lock") && complaint.contains("Failed to get ") {
        Some("Is another process using the image?")
    } else {
        None
    }
}

/// The control side's runtime.
pub(crate) fn control_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
}

fn run(line: &CommandLine) -> Result<(), String> {
    let runtime = control_runtime().map_err(|error| format!("cannot start: {error}"))?;
    let daemon = Daemon::new(&runtime).map_err(|error| format!("cannot start: {error}"))?;
    let ended = runtime.block_on(async {
        let mut signals =
            EndSignals::take().map_err(|error| format!("cannot wait for signals: {error}"))?;
        // A step may wait for others without end: for a client, with `wait=on`.
        tokio::select! {
            done = set_up_all(&daemon, &line.steps) => done?,
            () = signals.any() => return Ok(()),
        }
        let pidfile = line
            .pidfile
            .as_deref()
            .map(background::PidFile::create)
            .transpose()?;
        if line.daemonize {
            background::settle().map_err(|error| format!("cannot go on: {error}"))?;
        }
        daemon.serve_monitors();
        tokio::select! {
            () = daemon.wait_for_end(&mut signals) => {}
            () = rest_lightly() => {}
        }
        drop(pidfile);
        Ok(())
    });
    runtime.block_on(daemon.close());
    drop(daemon);
    // A chardev may still wait for a connection on a thread that nobody needs any more.
    runtime.shutdown_background();
    ended
}

/// Gives back the memory that only start-up needed, once that is over.
async fn rest_lightly() {
    tokio::time::sleep(START_UP).await;
    if let Err(error) = host_io::give_back_code() {
        tracing::debug!(%error, "cannot give back the code of start-up");
    }
    std::future::pending().await
}

async fn set_up_all(daemon: &Daemon, steps: &[Step]) -> Result<(), String> {
    for step in steps {
        daemon
            .set_up(step)
            .await
            .map_err(|error| format!("--{} {}: {}", step.option, step.text, error.desc))?;
    }
    Ok(())
}

/// The signals that end the daemon in good order, from when this is made.
pub(crate) struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl EndSignals {
    /// Takes the signals from their default, which is the end at once.
    ///
    /// # Errors
    /// When signals cannot be waited for.
    pub(crate) fn take() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them.
    pub(crate) async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// A storage daemon in this process.
pub(crate) struct Daemon {
    service: StorageService,
    monitors: Arc<MonitorServer>,
    /// Monitors that do not serve yet.
    waiting_monitors: RefCell<Vec<(ChardevClaim, monitor::MonitorOptions)>>,
    quit: Arc<Notify>,
}

impl Daemon {
    /// A daemon without anything yet.
    ///
    /// # Errors
    /// When the data side cannot be started.
    pub(crate) fn new(runtime: &Runtime) -> std::io::Result<Self> {
        let handle = runtime.handle().clone();
        let service = StorageService::new(handle.clone())?;
        let quit = Arc::<Notify>::default();
        let table = service.commands(Interface::STORAGE_DAEMON, Arc::clone(&quit));
        let bus = Arc::clone(service.event_bus());
        let monitors = MonitorServer::new(table, bus, &version_info(), handle);
        Ok(Self {
            service,
            monitors,
            waiting_monitors: RefCell::default(),
            quit,
        })
    }

    /// Does what one option asks for.
    ///
    /// # Errors
    /// Words for people.
    pub(crate) async fn set_up(&self, step: &Step) -> Result<(), QmpError> {
        match step.option {
            "monitor" => self.add_monitor(Options::parse(&step.text, Some("chardev"))?.read()?),
            option => service_option::add(&self.service, option, &step.text).await,
        }
    }

    fn add_monitor(&self, options: MonitorOptions) -> Result<(), QmpError> {
        if options.mode == Some(MonitorMode::Readline) {
            return Err(QmpError::generic("Only QMP is supported"));
        }
        let claim = self.service.chardevs().claim(&options.chardev)?;
        let options = monitor::MonitorOptions {
            id: options.id,
            pretty: options.pretty == Some(true),
        };
        self.waiting_monitors.borrow_mut().push((claim, options));
        Ok(())
    }

    /// Lets the monitors answer, once all is set up: who gets a greeting finds everything there.
    pub(crate) fn serve_monitors(&self) {
        for (claim, options) in self.waiting_monitors.take() {
            self.monitors.serve_chardev(claim, &options);
        }
    }

    /// Waits for `quit` or a signal to end.
    pub(crate) async fn wait_for_end(&self, signals: &mut EndSignals) {
        tokio::select! {
            () = self.quit.notified() => {}
            () = signals.any() => {}
        }
    }

    /// Flushes and closes everything, then lets the clients go.
    pub(crate) async fn close(&self) {
        self.service.close().await;
        self.monitors.close().await;
    }
}
