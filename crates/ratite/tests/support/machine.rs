//! A whole machine: `ratite system` in a folder of its own, with the guest's serial line and QMP.

#![allow(clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::{PATIENCE, Qmp, RATITE, new_folder, wait_for_end};

/// How much of what the guest said a failure shows, in bytes.
const SHOWN_BYTES: usize = 8192;

/// A machine; it goes with its folder.
pub struct Machine {
    folder: TempDir,
    process: Child,
    keyboard: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// What the guest said since the last thing that was waited for.
    said: String,
    /// All that was said before.
    before: String,
    /// How long anything may take.
    patience: Duration,
    has_ended: bool,
}

impl Machine {
    /// Starts a machine; `{dir}` in options becomes the folder. What a guest does without these
    /// options is not here: nothing but a serial line on standard input and output, and QMP.
    pub fn start(options: &[&str]) -> Self {
        Self::start_in(new_folder(), options)
    }

    /// The same, in a folder that has been prepared.
    pub fn start_in(folder: TempDir, options: &[&str]) -> Self {
        Self::launch(folder, &[&["-serial", "stdio"], options].concat())
    }

    /// A machine without a serial line.
    pub fn start_bare(options: &[&str]) -> Self {
        Self::launch(new_folder(), options)
    }

    fn launch(folder: TempDir, options: &[&str]) -> Self {
        let dir = folder.path().display().to_string();
        let mut process = Command::new(RATITE)
            .args(["system", "-nodefaults", "-display", "none"])
            .args(["-qmp", &format!("unix:{dir}/qmp.sock,server=on,wait=off")])
            .args(options.iter().map(|option| option.replace("{dir}", &dir)))
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.path().join(".stderr")).expect("a file"))
            .spawn()
            .expect("our program starts");
        let (sender, output) = channel();
        let mut stdout = process.stdout.take().expect("a pipe");
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut machine = Self {
            folder,
            keyboard: process.stdin.take().expect("a pipe"),
            process,
            output,
            said: String::new(),
            before: String::new(),
            patience: PATIENCE,
            has_ended: false,
        };
        machine.wait_for_socket();
        machine
    }

    /// Lets everything take this long.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn wait_for_socket(&mut self) {
        let socket = self.path("qmp.sock");
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("the machine ended with {status}: {}", self.stderr());
            }
            assert!(began.elapsed() < PATIENCE, "no socket: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A new client, with negotiation done.
    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.path("qmp.sock"))
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// What a file in the folder holds.
    pub fn file(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What the program wrote to its standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.path(".stderr")).unwrap_or_default()
    }

    /// Waits until the guest has said this; gives what it said before.
    pub fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + self.patience;
        loop {
            if let Some(at) = self.said.find(text) {
                let rest = self.said.split_off(at + text.len());
                let said = std::mem::replace(&mut self.said, rest);
                self.before.push_str(&said);
                return said;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!(
                    "'{text}' did not come ({error}), but:\n{}",
                    self.last_words()
                ),
            }
        }
    }

    /// What the guest says in this time, besides what it has said.
    pub fn listen(&mut self, time: Duration) -> String {
        std::thread::sleep(time);
        while let Ok(bytes) = self.output.try_recv() {
            self.said.push_str(&String::from_utf8_lossy(&bytes));
        }
        self.before.push_str(&self.said);
        std::mem::take(&mut self.said)
    }

    /// The last that the guest said.
    pub fn last_words(&self) -> String {
        let all = format!("{}{}", self.before, self.said);
        let from = all.len().saturating_sub(SHOWN_BYTES);
        let from = (from..=all.len()).find(|at| all.is_char_boundary(*at));
        all[from.unwrap_or(0)..].to_owned()
    }

    /// Types at the serial line.
    pub fn type_text(&mut self, text: &str) {
        self.keyboard
            .write_all(text.as_bytes())
            .expect("a serial line that takes input");
    }

    /// Types a line at the embedded guest.
    pub fn type_line(&mut self, line: &str) {
        self.type_text(&format!("{line}\r"));
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let status = wait_for_end(&mut self.process, "the machine");
        self.has_ended = true;
        status
    }

    /// Waits for the end of the process, which must be in good order and say nothing.
    pub fn end(&mut self) {
        let status = self.wait();
        let said = self.stderr();
        assert!(
            status.success() && said.is_empty(),
            "the machine ended with {status}: {said}"
        );
    }

    /// Ends the machine by `quit`.
    pub fn quit(&mut self) {
        self.qmp().ok("quit", &json!({}));
        self.end();
    }

    /// The embedded guest's page of counters, as it is now.
    pub fn tick_page(&self, qmp: &mut Qmp) -> TickPage {
        let path = self.path("tick-page");
        let arguments = json!({"val": guest_payload::TICK_PAGE, "size": 64, "filename": path});
        qmp.ok("pmemsave", &arguments);
        TickPage(self.file("tick-page"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.has_ended {
            // It may have ended by itself.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        if std::thread::panicking() {
            self.listen(Duration::ZERO);
            eprintln!("the machine's standard error: {}", self.stderr());
            eprintln!("the guest's last words:\n{}", self.last_words());
        }
    }
}

/// The page in which the embedded guest counts.
pub struct TickPage(Vec<u8>);

impl TickPage {
    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn number(&self, at: usize) -> u64 {
        number_at(&self.0, at)
    }

    pub fn ticks(&self) -> u64 {
        self.number(16)
    }

    pub fn disk_counter(&self) -> u64 {
        self.number(24)
    }

    pub fn balloon_pages(&self) -> u64 {
        self.number(32) & 0xffff_ffff
    }

    pub fn cpus(&self) -> u64 {
        self.number(32) >> 32
    }
}

/// Eight bytes as a number.
pub fn number_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
