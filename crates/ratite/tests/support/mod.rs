//! What the tests of whole daemons share: a daemon in a folder of its own, a small blocking QMP
//! client, and the tools of others.
//!
//! Everything here ends a test by panicking, with what is known in its message.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "part of several tests, each of which uses some of it and may end by panicking"
)]

pub mod linux;
pub mod machine;
pub mod qmp;
pub mod tools;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use qmp::Qmp;

/// The program under test.
pub const RATITE: &str = env!("CARGO_BIN_EXE_ratite");

/// How long anything may take that is not a load: far beyond what a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the long forms of the tests were asked for.
pub fn is_full() -> bool {
    std::env::var_os("RATITE_FULL").is_some_and(|value| value != "0")
}

/// An empty folder with a short absolute path (unix sockets have room for 107 bytes).
pub fn new_folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("rat")
        .tempdir_in("/tmp")
        .expect("a folder below /tmp")
}

/// A seed for a test that makes random choices: `RATITE_SEED`, or another one each time. Tests
/// print it.
pub fn seed() -> u64 {
    match std::env::var("RATITE_SEED") {
        Ok(text) => text.parse().expect("RATITE_SEED is a number"),
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_secs() ^ u64::from(since.subsec_nanos())),
    }
}

/// Random numbers good enough for choosing offsets (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A storage daemon with a monitor on `qmp.sock`, in a folder of its own that goes with it.
pub struct Daemon {
    folder: TempDir,
    child: Child,
    has_ended: bool,
}

impl Daemon {
    /// Starts `qemu-storage-daemon`, which is ours by that name, with these arguments. `{dir}` in
    /// them becomes the folder.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(new_folder(), arguments)
    }

    /// The same, in a folder that has been prepared.
    pub fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        let child = spawn(folder.path(), arguments);
        let mut daemon = Self {
            folder,
            child,
            has_ended: false,
        };
        daemon.wait_for_socket();
        daemon
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new client, with negotiation done.
    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.path("qmp.sock"))
    }

    /// What NBD clients call the export of this name, on `nbd.sock`.
    pub fn nbd_uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.path("nbd.sock").display()
        )
    }

    /// What the daemon wrote to its standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.path(".stderr")).unwrap_or_default()
    }

    /// Ends the daemon by `quit`; it must be in good order and say nothing.
    pub fn quit(mut self) -> TempDir {
        self.qmp().ok("quit", &serde_json::json!({}));
        let status = self.wait();
        let said = self.stderr();
        assert!(
            status.success() && said.is_empty(),
            "the daemon ended with {status}: {said}"
        );
        self.take_folder()
    }

    /// Ends the daemon at once, as a loss of power would.
    pub fn kill(mut self) -> TempDir {
        self.child.kill().expect("a daemon to kill");
        self.wait();
        self.take_folder()
    }

    /// Waits for the end of the daemon.
    pub fn wait(&mut self) -> ExitStatus {
        let status = wait_for_end(&mut self.child, "the daemon");
        self.has_ended = true;
        status
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    fn take_folder(mut self) -> TempDir {
        std::mem::replace(&mut self.folder, new_folder())
    }

    fn wait_for_socket(&mut self) {
        let socket = self.path("qmp.sock");
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the daemon ended with {status}: {}", self.stderr());
            }
            assert!(began.elapsed() < PATIENCE, "no socket: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.has_ended {
            // It may have ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the daemon's standard error: {}", self.stderr());
        }
    }
}

/// Makes our program answer to the name `qemu-storage-daemon` in a folder; the path of it.
pub fn storage_daemon_in(folder: &Path) -> PathBuf {
    let program = folder.join("qemu-storage-daemon");
    if !program.exists() {
        symlink(RATITE, &program).expect("a symbolic link");
    }
    program
}

fn spawn(folder: &Path, arguments: &[&str]) -> Child {
    let program = storage_daemon_in(folder);
    let dir = folder.display().to_string();
    Command::new(program)
        .args(
            arguments
                .iter()
                .map(|argument| argument.replace("{dir}", &dir)),
        )
        // Last, so that all else is set up when the socket is there.
        .args([
            "--chardev",
            &format!("socket,id=qmp0,path={dir}/qmp.sock,server=on,wait=off"),
        ])
        .args(["--monitor", "chardev=qmp0"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(folder.join(".stderr")).expect("a file for standard error"))
        .process_group(0)
        .spawn()
        .expect("our program starts")
}

/// Waits for the end of a process, and kills it when that takes too long.
pub fn wait_for_end(child: &mut Child, name: &str) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a process to wait for") {
            return status;
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name} did not end within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal, by its name, to a process.
pub fn signal(pid: u32, name: &str) {
    let signal = match name {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "TERM" => Signal::TERM,
        _ => panic!("no signal {name} here"),
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let sent = kill_process(pid.expect("a process id"), signal);
    sent.unwrap_or_else(|error| panic!("cannot send {name} to {pid:?}: {error}"));
}

/// Waits until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
