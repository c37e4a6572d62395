//! The program from outside: help, background, signals, the first look.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use support::tools::{self, create_image, qemu_img, qemu_io};
use support::{Daemon, Qmp, RATITE, new_folder, wait_for_end, wait_until};

/// The options of the storage daemon, each of which its help names.
const OPTIONS: &[&str] = &[
    "--blockdev",
    "--chardev",
    "--daemonize",
    "--export",
    "--help",
    "--monitor",
    "--nbd-server",
    "--object",
    "--pidfile",
    "--version",
];

fn ratite(arguments: &[&str]) -> Output {
    let mut command = Command::new(RATITE);
    tools::output(command.args(arguments).stdin(Stdio::null()))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn help_names_every_option() {
    let help = ratite(&["storage-daemon", "--help"]);
    assert!(help.status.success() && help.stderr.is_empty());
    let help = stdout(&help);
    for option in OPTIONS {
        assert!(help.contains(option), "{option} is missing in\n{help}");
    }
    assert_eq!(stdout(&ratite(&["storage-daemon", "-h"])), help);
    let top = ratite(&["--help"]);
    assert!(top.status.success() && stdout(&top).contains("storage-daemon"));
}

#[test]
fn version_tells_whose_program_it_is() {
    let own = ratite(&["--version"]);
    assert_eq!(
        stdout(&own),
        format!("ratite {}\n", env!("CARGO_PKG_VERSION"))
    );
    for option in ["--version", "-V"] {
        let daemon = ratite(&["storage-daemon", option]);
        assert!(daemon.status.success());
        let text = stdout(&daemon);
        assert!(text.to_lowercase().contains("ratite"), "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_what_helps() {
    for (arguments, words) in [
        (&["no-such-personality"][..], "'ratite help'"),
        (&["storage-daemon", "--no-such-option"], "--no-such-option"),
        (&["storage-daemon", "--blockdev"], "--blockdev"),
        (
            &[
                "storage-daemon",
                "--blockdev",
                "driver=qcow2,file=none,node-name=a",
            ],
            "none",
        ),
        (&["storage-daemon", "stray"], "stray"),
    ] {
        let output = ratite(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(
            stderr(&output).contains(words),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn the_name_it_is_called_by_chooses_the_personality() {
    let folder = new_folder();
    let program = support::storage_daemon_in(folder.path());
    let output = tools::output(Command::new(&program).arg("--help"));
    assert!(stdout(&output).contains("--nbd-server"));
    let wrong = tools::output(
        Command::new(&program)
            .arg("--blockdev")
            .stdin(Stdio::null()),
    );
    assert!(
        stderr(&wrong).starts_with("qemu-storage-daemon: "),
        "{}",
        stderr(&wrong)
    );
}

/// Options for a daemon in the background, serving `disk.qcow2` in a folder.
fn background(folder: &Path) -> Command {
    let dir = folder.display();
    let mut command = Command::new(support::storage_daemon_in(folder));
    command
        .current_dir(folder)
        .args([
            "--chardev",
            &format!("socket,id=qmp0,path={dir}/qmp.sock,server=on,wait=off"),
        ])
        .args(["--monitor", "chardev=qmp0"])
        .args(["--blockdev", "file,node-name=file,filename=disk.qcow2"])
        .args(["--blockdev", "qcow2,node-name=disk,file=file"])
        .args(["--nbd-server", "addr.type=unix,addr.path=nbd.sock"])
        .args([
            "--export",
            "nbd,id=disk,node-name=disk,name=disk,writable=on",
        ])
        .args(["--daemonize", "--pidfile", "daemon.pid"]);
    command
}

#[test]
fn daemonize_returns_when_all_is_set_up() {
    let folder = new_folder();
    let at = |name: &str| folder.path().join(name);
    create_image(&at("disk.qcow2"), "qcow2", "", "8M");
    let output = tools::output(background(folder.path()).stdin(Stdio::null()));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );

    // All is there already: no waiting.
    let pid: u32 = fs::read_to_string(at("daemon.pid"))
        .unwrap()
        .trim()
        .parse()
        .expect("a pid");
    let end = EndOfProcess(pid);
    let mut qmp = Qmp::connect(&at("qmp.sock"));
    assert_eq!(
        qmp.ok("query-block-exports", &serde_json::json!({}))[0]["id"],
        "disk"
    );
    let status = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("the pid is right");
    assert!(status.contains("--pidfile"));
    // It has left our terminal, session and folder.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(3));
    assert_eq!(session, Some(pid.to_string().as_str()), "{stat}");
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    for number in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        assert_eq!(target, Path::new("/dev/null"), "descriptor {number}");
    }

    // A second one with the same file for its pid is refused, and leaves the first alone.
    let again = tools::output(
        Command::new(RATITE)
            .args(["storage-daemon", "--daemonize", "--pidfile"])
            .arg(at("daemon.pid"))
            .stdin(Stdio::null()),
    );
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("PID file"), "{}", stderr(&again));

    let uri = format!("nbd+unix:///disk?socket={}", at("nbd.sock").display());
    qemu_io("raw", &uri, &["write -P 5 1M 64k"]);
    support::signal(pid, "TERM");
    end.wait();
    for left in ["daemon.pid", "nbd.sock", "qmp.sock"] {
        assert!(!at(left).exists(), "{left} is left behind");
    }
    let image = at("disk.qcow2").display().to_string();
    qemu_img(&["check", "-q", &image]);
    qemu_io("qcow2", &image, &["read -P 5 1M 64k"]);
}

/// A process that is not our child, ended with the test.
struct EndOfProcess(u32);

impl EndOfProcess {
    fn is_there(&self) -> bool {
        // What has ended may wait for its parent to notice.
        fs::read_to_string(format!("/proc/{}/stat", self.0))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn wait(&self) {
        wait_until("the daemon has ended", || !self.is_there());
    }
}

impl Drop for EndOfProcess {
    fn drop(&mut self) {
        if self.is_there() {
            support::signal(self.0, "KILL");
        }
    }
}

#[test]
fn daemonize_tells_what_failed() {
    let folder = new_folder();
    let output = tools::output(background(folder.path()).stdin(Stdio::null()));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("No such file or directory"),
        "{}",
        stderr(&output)
    );
    assert!(!folder.path().join("daemon.pid").exists());
}

#[test]
fn signals_flush_everything() {
    for name in ["INT", "TERM", "HUP"] {
        let folder = new_folder();
        let image = folder.path().join("disk.qcow2");
        create_image(&image, "qcow2", "lazy_refcounts=on", "8M");
        let mut daemon = Daemon::start_in(
            folder,
            &[
                "--blockdev",
                "driver=qcow2,node-name=disk,file.driver=file,file.filename={dir}/disk.qcow2",
                "--nbd-server",
                "addr.type=unix,addr.path={dir}/nbd.sock",
                "--export",
                "type=nbd,id=disk,node-name=disk,name=disk,writable=on",
            ],
        );
        // No flush: the client leaves without one when it is in cache mode unsafe.
        let uri = daemon.nbd_uri("disk");
        let mut command = tools::tool("qemu-io");
        command.args([
            "-t",
            "unsafe",
            "-f",
            "raw",
            "-c",
            "write -P 9 3M 200k",
            &uri,
        ]);
        tools::run(&mut command);
        daemon.signal(name);
        let status = daemon.wait();
        assert!(
            status.success(),
            "after SIG{name}: {status}: {}",
            daemon.stderr()
        );
        assert!(!daemon.path("nbd.sock").exists() && !daemon.path("qmp.sock").exists());
        let image = image.display().to_string();
        qemu_img(&["check", "-q", &image]);
        qemu_io("qcow2", &image, &["read -P 9 3M 200k"]);
        let info = qemu_img(&["info", "-f", "qcow2", &image]);
        assert!(!info.contains("dirty flag: true"), "{info}");
    }
}

/// A daemon that still waits for somebody at set-up leaves the image and the folder as clean.
#[test]
fn a_signal_ends_the_wait_for_a_client() {
    let folder = new_folder();
    let image = folder.path().join("disk.qcow2");
    create_image(&image, "qcow2", "", "1M");
    let dir = folder.path().display().to_string();
    let mut child = Command::new(support::storage_daemon_in(folder.path()))
        .args([
            "--blockdev",
            &format!("driver=qcow2,node-name=disk,file.driver=file,file.filename={dir}/disk.qcow2"),
        ])
        .args([
            "--nbd-server",
            &format!("addr.type=unix,addr.path={dir}/nbd.sock"),
        ])
        .args(["--export", "type=nbd,id=disk,node-name=disk,writable=on"])
        .args([
            "--chardev",
            &format!("socket,id=wait,path={dir}/wait.sock,server=on,wait=on"),
        ])
        .stdin(Stdio::null())
        .spawn()
        .expect("our program starts");
    support::wait_until("the daemon waits", || {
        folder.path().join("wait.sock").exists()
    });
    support::signal(child.id(), "TERM");
    let status = wait_for_end(&mut child, "the daemon");
    assert!(status.success(), "{status}");
    assert!(!folder.path().join("nbd.sock").exists());
    qemu_io("qcow2", &image.display().to_string(), &["write 0 64k"]);
}

/// A newcomer's program, and what it printed.
struct Newcomer(Child);

impl Drop for Newcomer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_first_look_without_a_terminal() {
    let mut child = Newcomer(
        Command::new(RATITE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("our program starts"),
    );
    let mut stdout = BufReader::new(child.0.stdout.take().expect("a pipe"));
    let mut text = String::new();
    let uri = loop {
        let mut line = String::new();
        assert!(
            stdout.read_line(&mut line).unwrap() > 0,
            "it ended after {text}"
        );
        text.push_str(&line);
        if let Some(found) = line
            .split_whitespace()
            .find(|word| word.starts_with("nbd+unix:"))
        {
            break found.trim_matches('\'').to_owned();
        }
    };
    let socket = text
        .split_whitespace()
        .find(|word| word.ends_with("/qmp.sock"))
        .unwrap_or_else(|| panic!("no QMP socket in {text}"))
        .to_owned();
    let folder = Path::new(&socket).parent().expect("a folder").to_path_buf();

    tools::run(tools::tool("nbdinfo").arg(&uri));
    let mut qmp = Qmp::connect(Path::new(&socket));
    let nothing = serde_json::json!({});
    assert_eq!(qmp.ok("query-block-exports", &nothing)[0]["type"], "nbd");
    assert_eq!(qmp.ok("query-status", &nothing)["status"], "running");
    while !text.contains("Ratite guest: 128 MiB") {
        assert!(
            stdout.read_line(&mut text).unwrap() > 0,
            "ended after {text}"
        );
    }
    drop(child.0.stdin.take());
    let status = wait_for_end(&mut child.0, "ratite");
    let mut said = String::new();
    child
        .0
        .stderr
        .take()
        .expect("a pipe")
        .read_to_string(&mut said)
        .unwrap();
    assert!(status.success() && said.is_empty(), "{status}: {said}");
    assert!(!folder.exists(), "{} is left behind", folder.display());
}

/// `| true`, and a full file system.
#[test]
fn texts_that_nobody_can_read_end_in_good_order() {
    let all: [&[&str]; 7] = [
        &[],
        &["help"],
        &["version"],
        &["completions", "bash"],
        &["system", "--help"],
        &["system", "-machine", "help"],
        &["storage-daemon", "--help"],
    ];
    for arguments in all {
        let ended = |stdout: Stdio| {
            let mut command = Command::new(RATITE);
            command.args(arguments).stdin(Stdio::null()).stdout(stdout);
            let child = command.stderr(Stdio::piped()).spawn();
            child.expect("our program starts").wait_with_output()
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = ended(writer.into()).unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(output.stderr.is_empty(), "{}", stderr(&output));
        let full = std::fs::File::create("/dev/full").unwrap();
        let output = ended(full.into()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = stderr(&output);
        assert!(said.contains("No space left on device"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn new_terminals_are_told_of() {
    let machine = [
        "system",
        "-nodefaults",
        "-display",
        "none",
        "-S",
        "-m",
        "16",
        "-serial",
        "pty",
    ];
    let daemon = ["storage-daemon", "--chardev", "pty,id=serial0"];
    for arguments in [&machine[..], &daemon[..]] {
        let mut child = Newcomer(
            Command::new(RATITE)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("our program starts"),
        );
        let mut line = String::new();
        let mut stdout = BufReader::new(child.0.stdout.take().expect("a pipe"));
        stdout.read_line(&mut line).unwrap();
        let name = line
            .strip_prefix("char device redirected to ")
            .and_then(|rest| rest.strip_suffix(" (label serial0)\n"));
        let name = name.unwrap_or_else(|| panic!("{line:?}"));
        assert!(Path::new(name).exists(), "{name}");
    }
}

/// As under cron, or as a service.
#[test]
fn a_guest_is_heard_where_nobody_types() {
    let mut child = Newcomer(
        Command::new(RATITE)
            .args(["system", "-nodefaults", "-display", "none"])
            .args(["-M", "microvm", "-m", "32", "-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("our program starts"),
    );
    let stdout = BufReader::new(child.0.stdout.take().expect("a pipe"));
    // Long after the end of input has been seen.
    let ticks = stdout
        .lines()
        .map(|line| line.unwrap())
        .filter(|line| line.starts_with("tick"));
    assert_eq!(ticks.take(2).count(), 2);
}

#[test]
fn a_first_look_at_the_end_of_input() {
    let output = ratite(&[]);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        stderr(&output)
    );
    let text = stdout(&output);
    for word in ["nbd+unix:///", "qmp.sock", "disk.qcow2"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
}

#[test]
fn a_first_look_ends_with_a_signal() {
    let mut child = Newcomer(
        Command::new(RATITE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("our program starts"),
    );
    let mut line = String::new();
    let mut stdout = BufReader::new(child.0.stdout.take().expect("a pipe"));
    stdout.read_line(&mut line).unwrap();
    support::signal(child.0.id(), "INT");
    let status = wait_for_end(&mut child.0, "ratite");
    assert!(status.success(), "{status}");
}
