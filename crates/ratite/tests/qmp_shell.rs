//! `ratite qmp` as a program, against QEMU's storage daemon.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

struct Daemon {
    child: Child,
    folder: TempDir,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let child = Command::new("qemu-storage-daemon")
            .arg("--chardev")
            .arg(format!(
                "socket,id=c,path={},server=on,wait=off",
                socket.display()
            ))
            .args(["--monitor", "c"])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon (Debian package qemu-system-common) is needed");
        let started = Instant::now();
        while !socket.exists() {
            assert!(started.elapsed() < PATIENCE, "the daemon does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    fn run(&self, words: &[&str]) -> Output {
        let socket = self.socket();
        let mut all = vec!["qmp", socket.to_str().unwrap()];
        all.extend(words);
        ratite(&all, "")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratite"));
    command.env_remove("RATITE_QMP").env_remove("NO_COLOR");
    command
}

fn ratite(words: &[&str], input: &str) -> Output {
    let mut command = command();
    command.args(words);
    run(command, input)
}

fn run(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may leave without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn status(output: &Output, expected: i32) {
    assert_eq!(output.status.code(), Some(expected), "{output:?}");
}

#[test]
fn a_command_prints_its_result_as_one_line_of_json() {
    let daemon = Daemon::start();
    let output = daemon.run(&["query-version"]);
    status(&output, 0);
    let out = text(&output.stdout);
    assert_eq!(out.lines().count(), 1, "{out}");
    let version: Value = serde_json::from_str(out).unwrap();
    assert!(version["qemu"]["major"].as_u64() >= Some(7), "{out}");
    let pretty = daemon.run(&["query-version", "--output", "pretty"]);
    assert_eq!(
        serde_json::from_slice::<Value>(&pretty.stdout).unwrap(),
        version
    );
    assert!(pretty.stdout.len() > output.stdout.len());
    assert!(
        !pretty.stdout.contains(&0x1b),
        "colours belong to terminals"
    );
}

#[test]
fn arguments_become_what_the_server_expects() {
    let daemon = Daemon::start();
    let words = [
        "blockdev-add",
        "driver=null-co",
        "node-name=n0",
        "size=64M",
        "read-only=on",
    ];
    status(&daemon.run(&words), 0);
    let nodes = daemon.run(&["query-named-block-nodes", "{'flat': true}"]);
    let nodes: Value = serde_json::from_slice(&nodes.stdout).unwrap();
    assert_eq!(nodes[0]["node-name"], "n0");
    assert_eq!(nodes[0]["ro"], true);
    assert_eq!(nodes[0]["image"]["virtual-size"], 64 << 20);
}

#[test]
fn the_exit_status_tells_the_kinds_of_trouble_apart() {
    let daemon = Daemon::start();
    let refused = daemon.run(&["blockdev-del", "node-name=none"]);
    status(&refused, 1);
    assert_eq!(
        text(&refused.stderr),
        "GenericError: Failed to find node with node-name='none'\n"
    );
    let unknown = daemon.run(&["{\"execute\": \"none-such\"}"]);
    status(&unknown, 1);
    assert!(text(&unknown.stderr).starts_with("CommandNotFound: "));

    status(&daemon.run(&["query-version", "word"]), 2);
    status(&daemon.run(&["query-version", "--timeout", "soon"]), 2);
    status(&daemon.run(&["--none-such"]), 2);
    let nobody = ratite(&["qmp", "/none/such", "query-version"], "");
    status(&nobody, 2);
    assert!(text(&nobody.stderr).contains("cannot connect to unix:/none/such"));
    let nowhere = ratite(&["qmp"], "");
    status(&nowhere, 2);
    assert!(text(&nowhere.stderr).contains("RATITE_QMP"));
    status(&ratite(&["qmp", "--help"], ""), 0);
}

#[test]
fn the_address_can_come_from_the_environment() {
    let daemon = Daemon::start();
    for words in [&["qmp", "-", "query-jobs"][..], &["qmp"]] {
        let mut command = command();
        command.env("RATITE_QMP", daemon.socket()).args(words);
        let output = run(command, "query-jobs\n");
        status(&output, 0);
        assert_eq!(text(&output.stdout), "[]\n");
    }
}

#[test]
fn lines_of_standard_input_are_run_one_by_one() {
    let daemon = Daemon::start();
    let socket = daemon.socket();
    let input = "\
query-jobs
blockdev-add driver=null-co node-name='a b'
blockdev-add driver=null-co node-name=ok
{'execute': 'blockdev-del', 'arguments': {'node-name': 'ok'}}
help blockdev-del
quit
query-jobs
";
    let output = ratite(&["qmp", socket.to_str().unwrap()], input);
    status(&output, 1);
    let expected = "[]\n{}\n{}\ncommand blockdev-del\n  node-name: str\nreturns {}\n";
    assert_eq!(text(&output.stdout), expected);
    assert_eq!(
        text(&output.stderr),
        "GenericError: Invalid node-name: 'a b'\n"
    );
}

#[test]
fn the_servers_end_is_no_trouble_when_it_was_asked_for() {
    let daemon = Daemon::start();
    let output = daemon.run(&["quit"]);
    status(&output, 0);
    assert_eq!(text(&output.stdout), "{}\n");
}

#[test]
fn events_follow_the_command_until_the_time_is_over() {
    let daemon = Daemon::start();
    let file = daemon.folder.path().join("new");
    let options = json!({"driver": "file", "filename": file, "size": 4096});
    let output = daemon.run(&[
        "blockdev-create",
        "job-id=j7",
        &format!("options={options}"),
        "--events",
        "--timeout",
        "1",
    ]);
    status(&output, 0);
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (result, events) = lines.split_first().unwrap();
    assert_eq!(*result, json!({}));
    let states: Vec<&str> = events
        .iter()
        .map(|event| event["data"]["status"].as_str().unwrap())
        .collect();
    assert_eq!(
        states,
        ["created", "running", "waiting", "pending", "concluded"]
    );
    assert!(
        events
            .iter()
            .all(|event| event["event"] == "JOB_STATUS_CHANGE")
    );
    assert!(events.iter().all(|event| event["data"]["id"] == "j7"));
}

#[test]
fn it_answers_to_the_name_qmp_shell() {
    let daemon = Daemon::start();
    let mut command = command();
    command.arg0("/usr/bin/qmp-shell").arg(daemon.socket());
    let output = run(command, "query-jobs\n");
    status(&output, 0);
    assert_eq!(text(&output.stdout), "[]\n");
}

/// A shell on a terminal, and a person before it.
struct Person {
    child: Child,
    keyboard: File,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Person {
    fn sit_down(daemon: &Daemon) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let stdio = || Stdio::from(OwnedFd::from(slave.try_clone().unwrap()));
        let child = command()
            .arg("qmp")
            .arg(daemon.socket())
            .env("TERM", "xterm")
            .env("XDG_STATE_HOME", daemon.folder.path())
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        drop(slave);
        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone().unwrap();
        let (sender, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keyboard,
            screen,
            seen: String::new(),
        }
    }

    fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the text appears, and forgets everything up to it.
    #[track_caller]
    fn sees(&mut self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(wanted) {
                self.seen.drain(..at + wanted.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("'{wanted}' does not appear, but {:?}", self.seen),
            }
        }
    }

    #[track_caller]
    fn leaves(mut self, expected: i32) {
        assert_eq!(self.child.wait().unwrap().code(), Some(expected));
    }
}

#[test]
fn a_person_completes_runs_and_sees_events_and_errors_in_colour() {
    let daemon = Daemon::start();
    let file = daemon.folder.path().join("new");
    let mut person = Person::sit_down(&daemon);
    person.sees("Connected: version ");
    person.sees("qmp> ");
    person.types("query-vers\t\r");
    person.sees("\x1b[36m\"qemu\"\x1b[0m");
    person.sees("qmp> ");
    person.types("blockdev-del node-name=none\r");
    person.sees("\x1b[1;31mGenericError\x1b[0m: Failed to find node with node-name='none'");
    person.sees("qmp> ");
    let options = format!(
        "{{'driver':'file','filename':'{}','size':4096}}",
        file.display()
    );
    person.types(&format!("blockdev-create job-id=j options={options}\r"));
    person.sees("JOB_STATUS_CHANGE");
    person.sees("concluded");
    person.sees("qmp> ");
    person.types("object-add qom-type=secret id=s data=x\r");
    person.sees("{}");
    person.sees("qmp> ");
    person.types("job-dismiss ");
    // The hint says what it needs; Ctrl-C drops the line.
    person.sees("id=<str>");
    person.types("\x03");
    person.sees("qmp> ");
    person.types("help job-dismiss\r");
    person.sees("command job-dismiss");
    person.sees("qmp> ");
    person.types("\x04");
    person.leaves(0);

    let history = std::fs::read_to_string(daemon.folder.path().join("ratite/qmp_history")).unwrap();
    assert!(history.contains("query-version"), "{history}");
    assert!(!history.contains("secret"), "{history}");
}

#[test]
fn a_person_is_told_when_the_server_goes() {
    let mut daemon = Daemon::start();
    let mut person = Person::sit_down(&daemon);
    person.sees("qmp> ");
    daemon.child.kill().unwrap();
    person.sees("the server ended the connection; Enter leaves");
    person.types("\r");
    person.leaves(2);
}

#[test]
fn a_person_can_end_the_server() {
    let daemon = Daemon::start();
    let mut person = Person::sit_down(&daemon);
    person.sees("qmp> ");
    person.types("{'execute': 'quit'}\r");
    person.leaves(0);
}
