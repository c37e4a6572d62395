//! The guest on QEMU's machines: what it says, and how it answers.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long a machine without acceleration may take for anything, on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 1 << 20;

struct Machine {
    process: Child,
    keyboard: ChildStdin,
    output: Receiver<u8>,
    /// What was said since the last thing that was waited for.
    said: String,
    folder: tempfile::TempDir,
}

impl Machine {
    /// Starts QEMU with the guest, a disk `disk.img`, and QMP at `qmp`.
    fn start(command_line: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("guest.elf"), guest_payload::image().unwrap()).unwrap();
        let mut disk = vec![0; usize::try_from(DISK_BYTES).unwrap()];
        disk[..8].copy_from_slice(b"sector 0");
        std::fs::write(path("disk.img"), disk).unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .current_dir(folder.path())
            .args([
                "-accel",
                "tcg",
                "-m",
                "64",
                "-nodefaults",
                "-display",
                "none",
            ])
            .args([
                "-serial",
                "stdio",
                "-no-reboot",
                "-qmp",
                "unix:qmp,server=on,wait=off",
            ])
            .args(["-kernel", "guest.elf", "-append", command_line])
            .args(["-drive", "if=none,id=disk,format=raw,file=disk.img"])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = command.spawn().unwrap_or_else(|error| {
            panic!(
                "cannot run qemu-system-x86_64: {error}; install the Debian package qemu-system-x86"
            )
        });
        let (sender, output) = channel();
        let stdout = process.stdout.take().unwrap();
        std::thread::spawn(move || {
            for byte in BufReader::new(stdout).bytes() {
                if sender.send(byte.unwrap()).is_err() {
                    return;
                }
            }
        });
        Self {
            keyboard: process.stdin.take().unwrap(),
            process,
            output,
            said: String::new(),
            folder,
        }
    }

    /// Waits until the guest has said this; gives what it said before.
    fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.said.find(text) {
                let rest = self.said.split_off(at + text.len());
                return std::mem::replace(&mut self.said, rest);
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(byte) => self.said.push(char::from(byte)),
                Err(error) => panic!("'{text}' did not come ({error}), but:\n{}", self.said),
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(line.as_bytes()).unwrap();
        self.keyboard.write_all(b"\r").unwrap();
    }

    /// Runs QMP commands, each with its arguments as JSON; gives the last answer.
    fn qmp(&self, commands: &[(&str, &str)]) -> String {
        let mut stream = UnixStream::connect(self.folder.path().join("qmp")).unwrap();
        let mut answers = BufReader::new(stream.try_clone().unwrap());
        let mut answer = String::new();
        for (command, arguments) in [("qmp_capabilities", "{}")].iter().chain(commands) {
            writeln!(
                stream,
                r#"{{"execute": "{command}", "arguments": {arguments}}}"#
            )
            .unwrap();
            answer.clear();
            while !answer.contains(r#""return""#) {
                answer.clear();
                assert_ne!(answers.read_line(&mut answer).unwrap(), 0);
                assert!(!answer.contains(r#""error""#), "{command}: {answer}");
            }
        }
        answer
    }

    /// Sends bytes to a socket, and gives as many that come back.
    fn echo(&self, socket: &str, bytes: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.folder.path().join(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = vec![0; bytes.len()];
        stream.read_exact(&mut answer).unwrap();
        answer
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    /// Waits for the end of the process, which must be a clean one.
    fn end(&mut self) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the machine goes on");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

const PC: &[&str] = &[
    "-smp",
    "3",
    "-device",
    "virtio-blk-pci,drive=disk",
    "-device",
    "virtio-balloon-pci",
    "-device",
    "virtio-rng-pci",
    "-device",
    "virtio-serial-pci",
    "-chardev",
    "file,id=console,path=console.txt",
    "-device",
    "virtconsole,chardev=console",
    "-chardev",
    "socket,id=named,path=named,server=on,wait=off",
    "-device",
    "virtserialport,chardev=named,name=org.ratite.test",
    "-device",
    "pvpanic",
    "-action",
    "panic=none",
];

#[test]
fn it_counts_and_answers_on_a_pc() {
    let mut machine = Machine::start("one disk=write", PC);
    machine.wait_for("Ratite guest: 64 MiB, 3 CPUs, command line 'one disk=write'");
    // Devices come in the order of slots.
    machine
        .wait_for("disk: 2048 sectors (1 MiB), sector 0 begins [73, 65, 63, 74, 6f, 72, 20, 30]");
    machine.wait_for("balloon: up to 31 MiB");
    machine.wait_for("rng: 8 bytes");
    machine.wait_for("console: greeted");
    machine.wait_for("port 1: 'org.ratite.test' opened");
    machine.wait_for("tick 4\r\n");
    machine.wait_for("disk counter 1\r\n");
    machine.wait_for("disk counter 2\r\n");
    machine.type_line("cpus");
    machine.wait_for("cpu 0: boot CPU, APIC id 0");
    machine.wait_for("cpu 1: started, APIC id 1");
    machine.wait_for("cpu 2: started, APIC id 2");
    machine.type_line("mem");
    machine.wait_for("mem: 0x0 to 0x9fc00 type 1");
    assert_eq!(machine.echo("named", b"there and back"), b"there and back");
    machine.type_line("panic");
    machine.type_line("nonsense");
    machine.wait_for("nonsense: not known");
    machine.qmp(&[("balloon", r#"{"value": 50331648}"#)]);
    machine.wait_for("balloon: 16 MiB given away");
    machine.qmp(&[("balloon", r#"{"value": 58720256}"#)]);
    machine.wait_for("balloon: 8 MiB given away");
    machine.qmp(&[("inject-nmi", "{}")]);
    machine.wait_for("NMI");
    machine.qmp(&[
        ("stop", "{}"),
        (
            "pmemsave",
            r#"{"val": 36864, "size": 64, "filename": "page"}"#,
        ),
        ("cont", "{}"),
    ]);
    let page = machine.file("page");
    assert_eq!(page[..8], guest_payload::TICK_PAGE_MAGIC);
    assert_eq!(page[8..16], [1, 0, 0, 0, 250, 0, 0, 0]);
    assert!(number(&page, 16) >= 8);
    assert!(number(&page, 24) >= 2);
    assert_eq!(page[32..40], [0, 8, 0, 0, 3, 0, 0, 0]);
    machine.qmp(&[("system_powerdown", "{}")]);
    machine.wait_for("power button");
    machine.end();
    let disk = machine.file("disk.img");
    let last = &disk[disk.len() - 512..];
    assert_eq!(last[..8], *b"RATITEDC");
    assert!(number(last, 8) >= number(&page, 24));
    assert_eq!(
        machine.file("console.txt"),
        b"Ratite guest on the virtio console\r\n"
    );
}

#[test]
fn it_sleeps_and_wakes_and_leaves_a_disk_alone() {
    let mut machine = Machine::start("", PC);
    machine.wait_for("tick 4\r\n");
    machine.type_line("sleep");
    machine.wait_for("sleep\r\nsleep\r\n");
    // The machine sleeps a little later than the guest says so.
    let end = Instant::now() + PATIENCE;
    while !machine.qmp(&[("query-status", "{}")]).contains("suspended") {
        assert!(Instant::now() < end, "the machine does not sleep");
        std::thread::sleep(Duration::from_millis(20));
    }
    machine.qmp(&[("system_wakeup", "{}")]);
    machine.wait_for("awake");
    let before = machine.wait_for("tick ");
    assert!(before.contains("disk: 2048 sectors"), "{before}");
    machine.type_line("spin");
    machine.wait_for("until a key comes");
    machine.type_line("");
    machine.wait_for("spin: done");
    // Without -no-reboot it would start again.
    machine.type_line("reboot");
    machine.end();
    assert!(machine.file("disk.img")[8..].iter().all(|byte| *byte == 0));
}

#[test]
fn it_runs_on_a_microvm() {
    // Devices by ACPI or by the command line; timers of a PC or of the CPU; off by ACPI.
    for (board, has_acpi) in [
        ("microvm,pit=off,pic=off", true),
        ("microvm,acpi=off", false),
    ] {
        let options = [
            "-M",
            board,
            "-global",
            "virtio-mmio.force-legacy=false",
            "-device",
            "virtio-blk-device,drive=disk",
        ];
        let mut machine = Machine::start("disk=write", &options);
        machine.wait_for("Ratite guest: 64 MiB, 1 CPUs");
        machine.wait_for("disk: 2048 sectors");
        machine.wait_for("disk counter 2\r\n");
        if has_acpi {
            machine.type_line("poweroff");
        } else {
            machine.type_line("triple");
        }
        machine.end();
        let disk = machine.file("disk.img");
        assert!(number(&disk[disk.len() - 512..], 8) >= 2);
    }
}
