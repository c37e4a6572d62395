//! One storage daemon of either kind, from its command line to its end.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::Settings;
use crate::images::{Disk, WRITTEN_BYTES};

/// How long a daemon has to come up, and to go.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait before a connection is tried again: small against any start-up.
const RETRY: Duration = Duration::from_micros(50);
/// The unit of processor times in `/proc`: `USER_HZ` is 100 on every Linux there is.
const MILLISECONDS_PER_TICK: u64 = 10;
/// The name of the export.
pub(crate) const EXPORT: &str = "disk";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ratite,
    Peer,
}

/// A running daemon with a QMP monitor and, if it was given a disk, an NBD export.
pub(crate) struct Daemon {
    child: Child,
    /// From before its program was executed until the greeting had been read.
    pub(crate) start_up: Duration,
    monitor: BufReader<UnixStream>,
    folder: TempDir,
}

/// What a process has in memory, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) rss_kib: u64,
    pub(crate) pss_kib: u64,
    pub(crate) anonymous_kib: u64,
}

impl Memory {
    /// The larger value of each.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            rss_kib: self.rss_kib.max(other.rss_kib),
            pss_kib: self.pss_kib.max(other.pss_kib),
            anonymous_kib: self.anonymous_kib.max(other.anonymous_kib),
        }
    }

    /// Of the process with this id.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            kib.with_context(|| format!("smaps_rollup has no '{name}'"))
        };
        Ok(Self {
            rss_kib: field("Rss:")?,
            pss_kib: field("Pss:")?,
            anonymous_kib: field("Anonymous:")?,
        })
    }
}

/// How long a process has had a processor so far, all its threads together.
pub(crate) fn cpu_time(process: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Behind the name, which is in parentheses and may hold anything.
    let (_, rest) = text
        .rsplit_once(") ")
        .context("no name in /proc/PID/stat")?;
    let mut fields = rest.split(' ').skip(11);
    let mut ticks = || -> Option<u64> { fields.next()?.parse().ok() };
    let (user, system) = (ticks(), ticks());
    let ticks = user.zip(system).map(|(user, system)| user + system);
    let ticks = ticks.context("no times in /proc/PID/stat")?;
    Ok(Duration::from_millis(ticks * MILLISECONDS_PER_TICK))
}

impl Daemon {
    /// Starts a daemon and waits for its greeting.
    pub(crate) fn start(side: Side, settings: &Settings, disk: Option<Disk>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ratite-bench-").tempdir()?;
        let mut command = match side {
            Side::Ratite => {
                let mut command = Command::new(&settings.ratite);
                command.arg("storage-daemon");
                command
            }
            Side::Peer => Command::new(&settings.peer),
        };
        let monitor_path = folder.path().join("qmp");
        let chardev = format!(
            "socket,id=qmp,path={},server=on,wait=off",
            monitor_path.display()
        );
        command.args(["--chardev", &chardev, "--monitor", "chardev=qmp"]);
        if let Some(disk) = disk {
            let file = settings.images.file(disk, side)?;
            let aio = settings.peer_aio.as_deref();
            let aio = aio.filter(|_| side == Side::Peer);
            command.args(disk_arguments(disk, file.as_deref(), aio)?);
            let server = format!(
                "addr.type=unix,addr.path={}",
                folder.path().join("nbd").display()
            );
            let export = format!("type=nbd,id=export,node-name=disk,name={EXPORT},writable=on");
            command.args(["--nbd-server", &server, "--export", &export]);
        }
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let greeted = read_greeting(&mut child, &monitor_path);
        let start_up = began.elapsed();
        if greeted.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let mut daemon = Self {
            child,
            start_up,
            monitor: greeted?,
            folder,
        };
        daemon.execute("qmp_capabilities")?;
        Ok(daemon)
    }

    /// Its process id.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// The socket of its NBD server.
    pub(crate) fn nbd_socket(&self) -> PathBuf {
        self.folder.path().join("nbd")
    }

    /// The monitor's connection, after its negotiation.
    pub(crate) fn monitor(&mut self) -> &mut UnixStream {
        self.monitor.get_mut()
    }

    /// Runs a command without arguments that returns nothing of interest.
    fn execute(&mut self, command: &str) -> Result<()> {
        let text = format!("{{\"execute\": \"{command}\"}}\n");
        self.monitor.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        loop {
            line.clear();
            if self.monitor.read_line(&mut line)? == 0 {
                bail!("the daemon ended before it answered '{command}'");
            }
            if line.starts_with("{\"return\"") {
                return Ok(());
            }
            if line.starts_with("{\"error\"") {
                bail!("'{command}' failed: {line}");
            }
        }
    }

    /// Ends it in good order.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.execute("quit")?;
        // Until it has closed the connection it may still be saying farewell.
        let mut rest = Vec::new();
        match self.monitor.read_to_end(&mut rest) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(error.into()),
            _ => {}
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("a daemon ended with {status}"),
                None if Instant::now() > deadline => bail!("a daemon does not end"),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended, unless something went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn disk_arguments(disk: Disk, file: Option<&Path>, aio: Option<&str>) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    let mut blockdev = |text: String| arguments.extend(["--blockdev".to_owned(), text]);
    let Some(file) = file else {
        let size = format!("driver=null-co,node-name=disk,read-zeroes=on,size={WRITTEN_BYTES}");
        blockdev(size);
        return Ok(arguments);
    };
    let aio = aio.map(|aio| format!(",aio={aio}")).unwrap_or_default();
    let name = file
        .to_str()
        .context("the folder's name is not valid UTF-8")?
        .replace(',', ",,");
    let locking = if disk == Disk::FreshQcow2 {
        "auto"
    } else {
        "off"
    };
    blockdev(format!(
        "driver=file,node-name=file,locking={locking},filename={name}{aio}"
    ));
    blockdev(match disk {
        Disk::Raw | Disk::Null => "driver=raw,node-name=disk,file=file".to_owned(),
        Disk::Qcow2 | Disk::FreshQcow2 => "driver=qcow2,node-name=disk,file=file".to_owned(),
    });
    Ok(arguments)
}

fn read_greeting(child: &mut Child, path: &Path) -> Result<BufReader<UnixStream>> {
    let deadline = Instant::now() + PATIENCE;
    let stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("a daemon opens no monitor socket");
            }
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("a daemon ended with {status} before its greeting");
        }
        std::thread::sleep(RETRY);
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut monitor = BufReader::new(stream);
    let mut line = String::new();
    monitor.read_line(&mut line).context("reading a greeting")?;
    if !line.starts_with("{\"QMP\"") {
        bail!("this is no greeting: {line}");
    }
    Ok(monitor)
}
