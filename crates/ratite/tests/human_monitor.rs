//! Monitors for people, on real sockets, terminals and pipes.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

mod support;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use serde_json::json;
use support::machine::Machine;
use support::{PATIENCE, RATITE};

const BANNER: &str = "QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ";
/// Far more than a line may have.
const ENDLESS_BYTES: usize = 4 << 20;

/// A person at one end of a monitor.
struct Person {
    output: Box<dyn Write>,
    input: Receiver<Vec<u8>>,
    /// What came and was not waited for yet.
    seen: String,
}

impl Person {
    fn new(mut input: impl Read + Send + 'static, output: impl Write + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = input.read(&mut bytes) {
                if sender
                    .send(bytes.iter().take(count).copied().collect())
                    .is_err()
                {
                    return;
                }
            }
        });
        Self {
            output: Box::new(output),
            input: receiver,
            seen: String::new(),
        }
    }

    fn at_socket(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        Self::new(stream.try_clone().unwrap(), stream)
    }

    fn at_terminal(path: &Path) -> Self {
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        Self::new(file.try_clone().unwrap(), file)
    }

    fn type_text(&mut self, text: &str) {
        self.output.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for this, after nothing else.
    fn expect(&mut self, text: &str) {
        while self.seen.len() < text.len() {
            let more = self.input.recv_timeout(PATIENCE);
            let more = more.unwrap_or_else(|error| panic!("{text:?}: {error}, {:?}", self.seen));
            self.seen.push_str(&String::from_utf8(more).unwrap());
        }
        let rest = self.seen.split_off(text.len());
        assert_eq!(self.seen, text);
        self.seen = rest;
    }

    /// Waits for this, whatever comes before.
    fn wait_for(&mut self, text: &str) {
        let end = loop {
            if let Some(at) = self.seen.find(text) {
                break at + text.len();
            }
            let more = self.input.recv_timeout(PATIENCE);
            let more = more.unwrap_or_else(|error| panic!("{text:?}: {error}, {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&more));
        };
        self.seen.drain(..end);
    }

    /// Types, and waits for what comes of it.
    fn say(&mut self, typed: &str, answer: &str) {
        self.type_text(typed);
        self.expect(answer);
    }
}

const SMALL: &[&str] = &["-m", "64", "-S"];

fn start(options: &[&str]) -> Machine {
    Machine::start_bare(&[SMALL, options].concat())
}

#[test]
fn people_talk_at_a_socket() {
    let mut machine = start(&["-monitor", "unix:{dir}/hmp,server,nowait", "-name", "n"]);
    let mut qmp = machine.qmp();
    let mut one = Person::at_socket(&machine.path("hmp"));
    one.expect(BANNER);
    let prelaunch = "info status\r\nVM status: paused (prelaunch)\r\n(qemu) ";
    one.say("info status\r\n", prelaunch);
    one.say("c\n", "c\r\n(qemu) ");
    qmp.event("RESUME");
    one.say("stop\n", "stop\r\n(qemu) ");
    qmp.event("STOP");
    one.say(
        "nosuch x\n",
        "nosuch x\r\nunknown command: 'nosuch'\r\n(qemu) ",
    );
    // Editing, completion, history.
    one.say("inXf\x1b[D\x08", "inXf\x1b[1D\x1b[1Df\x1b[K\x1b[1D");
    one.say("\x05o na\t", "\x1b[1Co name ");
    one.say("\r", "\r\nn\r\n(qemu) ");
    one.say(
        "sys\t",
        "sys\r\nsystem_powerdown  system_reset      system_wakeup     \r\n(qemu) system_",
    );
    one.say("\x15", "\x1b[7D\x1b[K");
    one.say("\x1b[A\x1b[A", "info name \x1b[K\x1b[10Dnosuch x\x1b[K");
    one.say("\x03", "^C\r\n(qemu) ");
    // Another person has a line and a history of their own.
    let mut two = Person::at_socket(&machine.path("hmp"));
    two.expect(BANNER);
    one.say("info st", "info st");
    two.say("\x1b[Ainfo name\n", "info name\r\nn\r\n(qemu) ");
    one.say("atus\n", "atus\r\nVM status: paused\r\n(qemu) ");
    // One that goes in the middle of a line harms nobody.
    two.type_text("sto");
    drop(two);
    let mut three = Person::at_socket(&machine.path("hmp"));
    three.expect(BANNER);
    three.type_text("quit\n");
    let reason = json!({"guest": false, "reason": "host-qmp-quit"});
    assert_eq!(qmp.event("SHUTDOWN").get("data"), Some(&reason));
    machine.end();
}

fn resident_pages(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_line_without_an_end_is_bounded() {
    let mut machine = start(&["-monitor", "unix:{dir}/hmp,server=on,wait=off"]);
    let mut person = Person::at_socket(&machine.path("hmp"));
    person.expect(BANNER);
    let before = resident_pages(machine.pid());
    for _ in 0..ENDLESS_BYTES / 1024 {
        person.type_text(&"x".repeat(1024));
    }
    person.expect(&"x".repeat(4095));
    person.type_text("\x15");
    person.expect("\x1b[4095D\x1b[K");
    person.say(
        "info status\n",
        "info status\r\nVM status: paused (prelaunch)\r\n(qemu) ",
    );
    let after = resident_pages(machine.pid());
    assert!(after < before + 512, "from {before} to {after} pages");
    machine.quit();
}

#[test]
fn people_sit_at_a_terminal() {
    let options = ["-chardev", "pty,id=tty,path={dir}/tty", "-mon", "tty"];
    let mut machine = start(&options);
    let mut person = Person::at_terminal(&machine.path("tty"));
    person.expect(BANNER);
    person.say(
        "help sto\t\n",
        "help stop \r\nstop|s  -- let the guest stand still\r\n(qemu) ",
    );
    person.say("info kvm\r", "info kvm\r\nkvm support: disabled\r\n(qemu) ");
    machine.quit();
}

#[test]
fn standard_input_and_output_can_be_a_monitor() {
    for options in [
        &["-monitor", "stdio"][..],
        &["-chardev", "stdio,id=c", "-mon", "chardev=c,mode=readline"],
        // The last one: nothing is connected to the others.
        &["-monitor", "none", "-serial", "null", "-monitor", "stdio"],
    ] {
        let mut machine = start(options);
        machine.wait_for(BANNER);
        machine.type_text("info version\n");
        let version = format!("\r\n10.0.2Ratite {}\r\n", env!("CARGO_PKG_VERSION"));
        machine.wait_for(&version);
        machine.type_text("q\n");
        machine.end();
    }
}

#[test]
fn both_kinds_on_one_machine() {
    let options = [
        "-chardev",
        "socket,id=a,path={dir}/a,server=on,wait=off",
        "-mon",
        "chardev=a,mode=control,pretty=on",
        "-monitor",
        "chardev:b",
        "-chardev",
        "socket,id=b,path={dir}/b,server=on,wait=off",
    ];
    let mut machine = start(&options);
    let mut program = Person::at_socket(&machine.path("a"));
    program.expect("{\r\n    \"QMP\": {");
    let mut person = Person::at_socket(&machine.path("b"));
    person.expect(BANNER);
    person.say(
        "info status\n",
        "info status\r\nVM status: paused (prelaunch)\r\n(qemu) ",
    );
    machine.quit();
}

#[test]
fn what_cannot_be_a_monitor_is_refused() {
    for (options, words) in [
        (
            &["-monitor", "nosuch"][..],
            "-monitor nosuch: 'nosuch' is not a valid char driver",
        ),
        (
            &["-mon", "chardev=nosuch"],
            "-mon chardev=nosuch: chardev \"nosuch\" not found",
        ),
        (
            &["-monitor", "stdio", "-monitor", "stdio"],
            "-monitor stdio: cannot use stdio by multiple character devices",
        ),
        (
            &["-chardev", "null,id=c", "-mon", "c,pretty=on"],
            "'pretty' is not compatible with HMP monitors",
        ),
        (
            &["-chardev", "null,id=c", "-mon", "c,mode=nosuch"],
            "Parameter 'mode' does not accept value 'nosuch'",
        ),
    ] {
        let output = std::process::Command::new(RATITE)
            .args(["system", "-M", "none", "-display", "none"])
            .args(options)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(words),
            "{options:?}: {said}"
        );
    }
}

#[test]
fn a_serial_port_and_a_monitor_share_a_terminal() {
    for options in [&["-serial", "mon:stdio"][..], &["-nographic"]] {
        let folder = support::new_folder();
        // Without another monitor, that is: the process is our own.
        let mut process = std::process::Command::new(RATITE)
            .args(["system", "-m", "64", "-nodefaults", "-display", "none"])
            .args(options)
            .current_dir(folder.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdout.take(), process.stdin.take());
        let mut person = Person::new(input.unwrap(), output.unwrap());
        person.wait_for("tick 4\r\n");
        person.type_text("nonsense\r");
        person.wait_for("nonsense: not known");
        person.type_text("\x01c");
        person.wait_for(BANNER);
        person.type_text("stop\n");
        person.wait_for("stop\r\n(qemu) ");
        person.say(
            "info status\n",
            "info status\r\nVM status: paused\r\n(qemu) ",
        );
        person.say("\x01h", "\r\nC-a h    print this help\r\n");
        person.type_text("c\n");
        person.wait_for("(qemu) ");
        // Back: the guest hears the keys again.
        person.type_text("\x01cmem\r");
        person.wait_for("mem: 0x0 to 0x9fc00 type 1");
        person.type_text("\x01x");
        person.wait_for("QEMU: Terminated\r\n");
        assert!(process.wait().unwrap().success());
    }
}
