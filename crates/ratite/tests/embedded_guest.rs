//! The embedded guest on whole machines: every command of a machine, and what the guest makes of it.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::machine::{Machine, number_at};
use support::tools::{create_image, qemu_img, qemu_io};
use support::{PATIENCE, Qmp, new_folder, wait_until};

const HELLO: &str = "Ratite guest: ";
const DISK_BYTES: u64 = 1 << 20;
const MIB: u64 = 1 << 20;
/// Longer than two ticks.
const TWO_TICKS: Duration = Duration::from_millis(600);

/// A PC with one of each virtio device; what the disk is comes besides.
const PC: &[&str] = &[
    "-m",
    "64",
    "-smp",
    "3",
    "-device",
    "virtio-blk-pci,drive=disk,id=disk0",
    "-device",
    "virtio-balloon-pci,id=balloon0",
    "-device",
    "virtio-rng-pci,id=rng0",
    "-device",
    "virtio-serial-pci,id=ports",
    "-chardev",
    "file,id=console,path={dir}/console.txt",
    "-device",
    "virtconsole,chardev=console,id=console0",
    "-chardev",
    "socket,id=named,path={dir}/named,server=on,wait=off",
    "-device",
    "virtserialport,chardev=named,name=org.ratite.test,id=port0",
    "-device",
    "pvpanic",
];
const RAW_DISK: &[&str] = &["-drive", "if=none,id=disk,format=raw,file={dir}/disk.img"];
const QCOW2_DISK: &[&str] = &["-drive", "if=none,id=disk,format=qcow2,file={dir}/disk.img"];

/// A machine with a disk `disk.img` of this format, whose sector 0 begins with `sector 0`.
fn start_with_disk(format: &str, options: &[&[&str]]) -> Machine {
    let folder = new_folder();
    let image = folder.path().join("disk.img");
    if format == "raw" {
        let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap()];
        bytes[..8].copy_from_slice(b"sector 0");
        std::fs::write(image, bytes).unwrap();
    } else {
        let raw = folder.path().join("raw.img");
        let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap()];
        bytes[..8].copy_from_slice(b"sector 0");
        std::fs::write(&raw, bytes).unwrap();
        convert("raw", &raw, format, &image);
    }
    Machine::start_in(folder, &options.concat())
}

fn convert(from_format: &str, from: &Path, to_format: &str, to: &Path) {
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    qemu_img(&["convert", "-f", from_format, "-O", to_format, from, to]);
}

/// A small machine without a disk.
fn start_small(options: &[&str]) -> Machine {
    Machine::start(&[&["-m", "64", "-device", "pvpanic"], options].concat())
}

fn status(qmp: &mut Qmp) -> String {
    let status = qmp.ok("query-status", &json!({}));
    let name = status["status"].as_str().unwrap().to_owned();
    assert_eq!(status["running"], name == "running", "{status}");
    name
}

fn hmp(qmp: &mut Qmp, line: &str) -> String {
    let text = qmp.ok("human-monitor-command", &json!({"command-line": line}));
    text.as_str().unwrap().to_owned()
}

fn data_of(qmp: &mut Qmp, event: &str) -> Value {
    qmp.event(event)["data"].clone()
}

/// Sends bytes to a socket, and gives as many that come back.
fn echo(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// What a guest's counter on the disk must be after the machine has ended.
fn check_disk(machine: &Machine, format: &str, at_least: u64) {
    let image = machine.path("disk.img");
    let raw = machine.path("after.img");
    convert(format, &image, "raw", &raw);
    if format == "qcow2" {
        qemu_img(&["check", "-f", "qcow2", image.to_str().unwrap()]);
    }
    let bytes = std::fs::read(raw).unwrap();
    assert_eq!(bytes[..8], *b"sector 0");
    let last = &bytes[bytes.len() - 512..];
    assert_eq!(last[..8], *b"RATITEDC");
    assert!(number_at(last, 8) >= at_least);
    let between = &bytes[8..bytes.len() - 512];
    assert!(between.iter().all(|byte| *byte == 0));
}

fn counts_and_answers(format: &str, disk: &[&str]) {
    let append = &["-append", "one disk=write"];
    let mut machine = start_with_disk(format, &[PC, disk, append]);
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
    machine.type_line("mem");
    machine.wait_for("mem: 0x0 to 0x9fc00 type 1");
    assert_eq!(
        echo(&machine.path("named"), b"there and back"),
        b"there and back"
    );
    machine.type_line("nonsense");
    machine.wait_for("nonsense: not known");
    let mut qmp = machine.qmp();
    qmp.ok("stop", &json!({}));
    let page = machine.tick_page(&mut qmp);
    assert_eq!(page.bytes()[..8], guest_payload::TICK_PAGE_MAGIC);
    assert_eq!(page.bytes()[8..16], [1, 0, 0, 0, 250, 0, 0, 0]);
    assert!(page.ticks() >= 8);
    assert!(page.disk_counter() >= 2);
    assert_eq!((page.balloon_pages(), page.cpus()), (0, 3));
    qmp.ok("cont", &json!({}));
    qmp.ok("system_powerdown", &json!({}));
    qmp.event("POWERDOWN");
    machine.wait_for("power button");
    let reason = json!({"guest": true, "reason": "guest-shutdown"});
    assert_eq!(data_of(&mut qmp, "SHUTDOWN"), reason);
    machine.end();
    check_disk(&machine, format, page.disk_counter());
    assert_eq!(
        machine.file("console.txt"),
        b"Ratite guest on the virtio console\r\n"
    );
}

#[test]
fn it_counts_and_answers_on_a_pc_with_a_raw_disk() {
    counts_and_answers("raw", RAW_DISK);
}

#[test]
fn it_counts_and_answers_on_a_pc_with_a_qcow2_disk() {
    counts_and_answers("qcow2", QCOW2_DISK);
}

#[test]
fn it_runs_on_a_microvm() {
    // Off by ACPI, by its button, and by what a guest without it can do.
    for (end, reason) in [
        ("poweroff", "guest-shutdown"),
        ("button", "guest-shutdown"),
        ("reboot", "guest-reset"),
        ("triple", "guest-reset"),
    ] {
        let board = [
            "-M",
            "microvm",
            "-m",
            "64",
            "-smp",
            "2",
            "-device",
            "virtio-blk-device,drive=disk,id=disk0",
            "-device",
            "virtio-balloon-device",
            "-append",
            "disk=write",
            "-no-reboot",
        ];
        let mut machine = start_with_disk("raw", &[&board, RAW_DISK]);
        machine.wait_for("Ratite guest: 64 MiB, 2 CPUs");
        machine.wait_for("disk: 2048 sectors");
        machine.wait_for("disk counter 2\r\n");
        machine.type_line("cpus");
        machine.wait_for("cpu 1: started, APIC id 1");
        let mut qmp = machine.qmp();
        qmp.ok("balloon", &json!({"value": 48 * MIB}));
        machine.wait_for("balloon: 16 MiB given away");
        qmp.ok("inject-nmi", &json!({}));
        machine.wait_for("NMI");
        assert_eq!(qmp.ok("query-pci", &json!({})), json!([]));
        let current = qmp.ok("query-current-machine", &json!({}));
        assert_eq!(current["wakeup-suspend-support"], false);
        if end == "button" {
            qmp.ok("system_powerdown", &json!({}));
            qmp.event("POWERDOWN");
            machine.wait_for("power button");
        } else {
            machine.type_line(end);
        }
        let data = json!({"guest": true, "reason": reason});
        assert_eq!(data_of(&mut qmp, "SHUTDOWN"), data);
        machine.end();
        check_disk(&machine, "raw", 2);
    }
}

#[test]
fn all_cpus_start() {
    for (count, smp) in [(1, "1"), (2, "2,sockets=1,cores=2"), (4, "4,threads=2")] {
        let mut machine = start_small(&["-smp", smp]);
        machine.wait_for(&format!("Ratite guest: 64 MiB, {count} CPUs"));
        machine.wait_for("tick 4");
        machine.type_line("cpus");
        machine.wait_for("cpu 0: boot CPU, APIC id 0");
        for cpu in 1..count {
            machine.wait_for(&format!("cpu {cpu}: started, APIC id {cpu}"));
        }
        let mut qmp = machine.qmp();
        let cpus = qmp.ok("query-cpus-fast", &json!({}));
        let tasks = format!("/proc/{}/task", machine.pid());
        for (index, cpu) in cpus.as_array().unwrap().iter().enumerate() {
            let (core, thread, socket) = match count {
                2 => (index, 0, 0),
                4 => (0, index % 2, index / 2),
                _ => (0, 0, 0),
            };
            let thread_id = cpu["thread-id"].as_u64().unwrap();
            let expected = json!({
                "cpu-index": index,
                "qom-path": format!("/machine/unattached/device[{index}]"),
                "thread-id": thread_id,
                "props": {"socket-id": socket, "core-id": core, "thread-id": thread},
                "target": "x86_64",
            });
            assert_eq!(*cpu, expected);
            assert!(Path::new(&tasks).join(thread_id.to_string()).exists());
        }
        assert_eq!(cpus.as_array().unwrap().len(), count);
        machine.quit();
    }
}

#[test]
fn it_stands_still_while_stopped() {
    let mut machine = start_small(&["-S"]);
    let mut qmp = machine.qmp();
    assert_eq!(status(&mut qmp), "prelaunch");
    assert_eq!(machine.listen(TWO_TICKS), "");
    qmp.ok("cont", &json!({}));
    qmp.event("RESUME");
    machine.wait_for("tick 4");
    assert_eq!(status(&mut qmp), "running");
    for _ in 0..3 {
        qmp.ok("stop", &json!({}));
        qmp.event("STOP");
        assert_eq!(status(&mut qmp), "paused");
        // Again changes nothing.
        qmp.ok("stop", &json!({}));
        let before = machine.tick_page(&mut qmp);
        std::thread::sleep(TWO_TICKS);
        let after = machine.tick_page(&mut qmp);
        assert_eq!(before.bytes(), after.bytes());
        qmp.ok("cont", &json!({}));
        qmp.event("RESUME");
        qmp.ok("cont", &json!({}));
        wait_until("the guest goes on", || {
            machine.tick_page(&mut qmp).ticks() > after.ticks()
        });
        // The time that it stood is not made up for.
        assert!(machine.tick_page(&mut qmp).ticks() <= after.ticks() + 2);
    }
    qmp.ok("quit", &json!({}));
    let reason = json!({"guest": false, "reason": "host-qmp-quit"});
    assert_eq!(data_of(&mut qmp, "SHUTDOWN"), reason);
    machine.end();
}

#[test]
fn a_signal_ends_it_in_good_order() {
    for name in ["TERM", "INT", "HUP"] {
        let mut machine = start_small(&[]);
        machine.wait_for(HELLO);
        let mut qmp = machine.qmp();
        support::signal(machine.pid(), name);
        let reason = json!({"guest": false, "reason": "host-signal"});
        assert_eq!(data_of(&mut qmp, "SHUTDOWN"), reason);
        machine.end();
    }
}

#[test]
fn off_and_back_with_no_shutdown() {
    let mut machine = start_small(&["-no-shutdown"]);
    machine.wait_for("tick 4");
    let mut qmp = machine.qmp();
    machine.type_line("poweroff");
    let reason = json!({"guest": true, "reason": "guest-shutdown"});
    assert_eq!(data_of(&mut qmp, "SHUTDOWN"), reason);
    qmp.event("STOP");
    assert_eq!(status(&mut qmp), "shutdown");
    let refused = "Resetting the Virtual Machine is required";
    assert_eq!(qmp.error("cont", &json!({})), refused);
    qmp.ok("system_reset", &json!({}));
    let reason = json!({"guest": false, "reason": "host-qmp-system-reset"});
    assert_eq!(data_of(&mut qmp, "RESET"), reason);
    assert_eq!(status(&mut qmp), "prelaunch");
    qmp.ok("cont", &json!({}));
    machine.wait_for(HELLO);
    machine.wait_for("tick 4");
    // Whoever is outside wants the end, whatever a guest's own wishes lead to.
    machine.quit();
}

#[test]
fn it_starts_again() {
    for way in ["reboot", "triple", "system_reset"] {
        let mut machine = start_small(&["-smp", "2"]);
        let mut qmp = machine.qmp();
        machine.wait_for("tick 4");
        for _ in 0..3 {
            machine.type_line("cpus");
            machine.wait_for("cpu 1: started");
            let reason = if way == "system_reset" {
                qmp.ok("system_reset", &json!({}));
                json!({"guest": false, "reason": "host-qmp-system-reset"})
            } else {
                machine.type_line(way);
                json!({"guest": true, "reason": "guest-reset"})
            };
            assert_eq!(data_of(&mut qmp, "RESET"), reason, "{way}");
            machine.wait_for("Ratite guest: 64 MiB, 2 CPUs, command line ''");
            machine.wait_for("tick 4\r\n");
        }
        machine.quit();
    }
}

#[test]
fn a_halted_guest_needs_a_reset() {
    let mut machine = start_small(&[]);
    let mut qmp = machine.qmp();
    machine.wait_for("tick 4");
    machine.type_line("halt");
    machine.wait_for("halt\r\nhalt\r\n");
    wait_until("it halts", || {
        hmp(&mut qmp, "info registers").contains("HLT=1")
    });
    let before = machine.tick_page(&mut qmp);
    std::thread::sleep(TWO_TICKS);
    assert_eq!(before.bytes(), machine.tick_page(&mut qmp).bytes());
    assert_eq!(status(&mut qmp), "running");
    // It does not look at its button.
    qmp.ok("system_powerdown", &json!({}));
    qmp.ok("system_reset", &json!({}));
    machine.wait_for("tick 4");
    machine.quit();
}

#[test]
fn no_reboot_ends_it() {
    for way in ["reboot", "triple"] {
        let mut machine = start_small(&["-no-reboot"]);
        let mut qmp = machine.qmp();
        machine.wait_for("tick 4");
        machine.type_line(way);
        let reason = json!({"guest": true, "reason": "guest-reset"});
        assert_eq!(data_of(&mut qmp, "SHUTDOWN"), reason, "{way}");
        machine.end();
    }
}

#[test]
fn a_panic_leads_to_what_its_action_says() {
    for (action, told) in [
        ("none", "run"),
        ("pause", "pause"),
        ("shutdown", "poweroff"),
        ("exit-failure", "poweroff"),
    ] {
        let mut machine = start_small(&["-action", &format!("panic={action}")]);
        let mut qmp = machine.qmp();
        machine.wait_for("tick 4");
        machine.type_line("panic");
        let data = data_of(&mut qmp, "GUEST_PANICKED");
        assert_eq!(data, json!({"action": told}), "{action}");
        match action {
            "none" => {
                machine.wait_for("tick ");
                assert_eq!(status(&mut qmp), "running");
                machine.quit();
            }
            "pause" => {
                qmp.event("STOP");
                assert_eq!(status(&mut qmp), "guest-panicked");
                let before = machine.tick_page(&mut qmp);
                std::thread::sleep(TWO_TICKS);
                assert_eq!(before.bytes(), machine.tick_page(&mut qmp).bytes());
                qmp.ok("cont", &json!({}));
                machine.wait_for("tick ");
                machine.quit();
            }
            _ => {
                let reason = json!({"guest": true, "reason": "guest-panic"});
                assert_eq!(data_of(&mut qmp, "SHUTDOWN"), reason);
                let code = i32::from(action == "exit-failure");
                assert_eq!(machine.wait().code(), Some(code), "{}", machine.stderr());
            }
        }
    }
}

/// Longer than the watchdog's two stages.
const WATCHDOG_PATIENCE: Duration = Duration::from_millis(2500);

/// What follows the WATCHDOG event of each action.
fn check_watchdog(machine: &mut Machine, qmp: &mut Qmp, action: &str) {
    match action {
        "reset" => {
            let reason = json!({"guest": true, "reason": "guest-reset"});
            assert_eq!(data_of(qmp, "RESET"), reason);
            machine.wait_for(HELLO);
            machine.wait_for("tick 4");
            assert_eq!(status(qmp), "running");
            machine.quit();
        }
        "shutdown" | "poweroff" => {
            // "shutdown" asks the guest, "poweroff" does not.
            if action == "shutdown" {
                qmp.event("POWERDOWN");
                machine.wait_for("power button");
            }
            let reason = json!({"guest": true, "reason": "guest-shutdown"});
            assert_eq!(data_of(qmp, "SHUTDOWN"), reason);
            machine.end();
        }
        "pause" => {
            qmp.event("STOP");
            assert_eq!(status(qmp), "watchdog");
            let before = machine.tick_page(qmp);
            std::thread::sleep(TWO_TICKS);
            assert_eq!(before.bytes(), machine.tick_page(qmp).bytes());
            qmp.ok("cont", &json!({}));
            machine.wait_for("tick ");
            machine.quit();
        }
        _ => {
            if action == "inject-nmi" {
                machine.wait_for("NMI");
            }
            assert_eq!(status(qmp), "running");
            machine.wait_for("tick ");
            // It has barked, and stands until it is fed again.
            machine.type_line("watchdog");
            machine.wait_for("fed from now on");
            machine.type_line("starve");
            assert_eq!(data_of(qmp, "WATCHDOG"), json!({"action": action}));
            qmp.ok("quit", &json!({}));
            assert!(machine.wait().success());
            let said = machine.stderr();
            let told = if action == "debug" { 2 } else { 0 };
            assert_eq!(
                said.matches("watchdog: timer fired\n").count(),
                told,
                "{said}"
            );
        }
    }
}

#[test]
fn a_watchdog_that_starves_leads_to_what_its_action_says() {
    let actions = [
        "reset",
        "shutdown",
        "poweroff",
        "pause",
        "debug",
        "none",
        "inject-nmi",
    ];
    std::thread::scope(|scope| {
        for (number, action) in actions.into_iter().enumerate() {
            // By option, and by command while it runs.
            scope.spawn(move || watchdog_starves(action, number % 2 == 1));
        }
    });
}

fn watchdog_starves(action: &str, by_command: bool) {
    let on_command_line = format!("watchdog={action}");
    let mut options = vec!["-device", "i6300esb,id=dog"];
    if !by_command {
        options.extend(["-action", &on_command_line]);
    }
    let mut machine = start_small(&options);
    let mut qmp = machine.qmp();
    if by_command {
        qmp.ok("watchdog-set-action", &json!({"action": action}));
    }
    machine.wait_for("tick 4");
    machine.type_line("watchdog");
    machine.wait_for("watchdog: fed from now on");
    // As long as it is fed nothing happens.
    std::thread::sleep(WATCHDOG_PATIENCE);
    while let Some(event) = qmp.read(Duration::from_millis(1)) {
        assert_ne!(event["event"], "WATCHDOG", "{action}");
    }
    machine.type_line("starve");
    machine.wait_for("watchdog: fed no more");
    assert_eq!(data_of(&mut qmp, "WATCHDOG"), json!({"action": action}));
    check_watchdog(&mut machine, &mut qmp, action);
}

#[test]
fn actions_can_be_set_while_it_runs() {
    let mut machine = start_small(&[]);
    let mut qmp = machine.qmp();
    machine.wait_for("tick 4");
    let actions = json!({"reboot": "shutdown", "shutdown": "pause", "panic": "none"});
    qmp.ok("set-action", &actions);
    machine.type_line("panic");
    assert_eq!(
        data_of(&mut qmp, "GUEST_PANICKED"),
        json!({"action": "run"})
    );
    machine.type_line("reboot");
    let reason = json!({"guest": true, "reason": "guest-reset"});
    assert_eq!(data_of(&mut qmp, "SHUTDOWN"), reason);
    qmp.event("STOP");
    assert_eq!(status(&mut qmp), "shutdown");
    machine.quit();
}

#[test]
fn it_sleeps_and_wakes() {
    let mut machine = start_with_disk("raw", &[PC, RAW_DISK]);
    machine.wait_for("tick 4\r\n");
    let mut qmp = machine.qmp();
    let refused = "Unable to wake up: guest is not in suspended state";
    assert_eq!(qmp.error("system_wakeup", &json!({})), refused);
    machine.type_line("sleep");
    qmp.event("SUSPEND");
    assert_eq!(status(&mut qmp), "suspended");
    // Who stops it and lets it go on has not woken it.
    qmp.ok("stop", &json!({}));
    qmp.event("STOP");
    assert_eq!(status(&mut qmp), "paused");
    assert_eq!(qmp.error("system_wakeup", &json!({})), refused);
    qmp.ok("cont", &json!({}));
    qmp.event("RESUME");
    assert_eq!(status(&mut qmp), "suspended");
    machine.wait_for("sleep\r\nsleep\r\n");
    assert_eq!(machine.listen(TWO_TICKS), "");
    qmp.ok("system_wakeup", &json!({}));
    qmp.event("WAKEUP");
    assert_eq!(status(&mut qmp), "running");
    machine.wait_for("awake");
    let before = machine.wait_for("tick ");
    assert!(before.contains("disk: 2048 sectors"), "{before}");
    // A reset ends the sleep.
    machine.type_line("sleep");
    qmp.event("SUSPEND");
    qmp.ok("system_reset", &json!({}));
    assert_eq!(status(&mut qmp), "running");
    machine.wait_for(HELLO);
    machine.wait_for("tick 4\r\n");
    // So does one of a sleeper that is stopped besides.
    machine.type_line("sleep");
    qmp.event("SUSPEND");
    qmp.ok("stop", &json!({}));
    qmp.ok("system_reset", &json!({}));
    assert_eq!(status(&mut qmp), "prelaunch");
    qmp.ok("cont", &json!({}));
    assert_eq!(status(&mut qmp), "running");
    machine.wait_for(HELLO);
    machine.wait_for("tick 4\r\n");
    machine.type_line("spin");
    machine.wait_for("until a key comes");
    machine.type_line("");
    machine.wait_for("spin: done");
    machine.quit();
    assert!(machine.file("disk.img")[8..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_the_guest_asks_for_holds_through_stop_and_cont() {
    let mut machine = start_small(&[]);
    let mut qmp = machine.qmp();
    machine.wait_for("tick 4");
    for round in 0..60 {
        machine.type_line("sleep");
        std::thread::sleep(Duration::from_micros(round * 37 % 1500));
        wait_until("the guest sleeps", || {
            qmp.ok("stop", &json!({}));
            qmp.ok("cont", &json!({}));
            status(&mut qmp) == "suspended"
        });
        qmp.ok("system_wakeup", &json!({}));
        let said = machine.wait_for("awake\r\n");
        assert!(!said.contains("not possible"), "round {round}: {said}");
    }
    machine.quit();
}

#[test]
fn the_balloon_goes_both_ways() {
    let mut machine = start_with_disk("raw", &[PC, RAW_DISK]);
    machine.wait_for("balloon: up to 31 MiB");
    machine.wait_for("tick 4");
    let mut qmp = machine.qmp();
    let actual = |qmp: &mut Qmp| qmp.ok("query-balloon", &json!({}))["actual"].as_u64();
    assert_eq!(actual(&mut qmp), Some(64 * MIB));
    for (value, given_away) in [(48, 16), (56, 8), (33, 31), (64, 0)] {
        qmp.ok("balloon", &json!({"value": value * MIB}));
        machine.wait_for(&format!("balloon: {given_away} MiB given away"));
        wait_until("the balloon is told", || {
            actual(&mut qmp) == Some(value * MIB)
        });
        let pages = machine.tick_page(&mut qmp).balloon_pages();
        assert_eq!(pages, given_away * 256);
    }
    let change = data_of(&mut qmp, "BALLOON_CHANGE");
    assert!(change["actual"].as_u64().unwrap() <= 64 * MIB);
    // What the guest cannot give, it keeps: what lies below 32 MiB, and tables at the end.
    qmp.ok("balloon", &json!({"value": MIB}));
    machine.wait_for("balloon: 31 MiB given away");
    let kept = 64 * MIB - machine.tick_page(&mut qmp).balloon_pages() * 4096;
    assert!((32 * MIB..33 * MIB).contains(&kept), "{kept}");
    wait_until("the balloon is told", || actual(&mut qmp) == Some(kept));
    assert!(!qmp.error("balloon", &json!({"value": 0})).is_empty());
    let set = json!({
        "path": "/machine/peripheral/balloon0",
        "property": "guest-stats-polling-interval",
        "value": 1,
    });
    qmp.ok("qom-set", &set);
    let get = json!({"path": "/machine/peripheral/balloon0", "property": "guest-stats"});
    let mut stats = Value::Null;
    wait_until("statistics come", || {
        stats = qmp.ok("qom-get", &get);
        stats["last-update"].as_u64().unwrap() > 0
    });
    assert!(stats["stats"]["stat-total-memory"].as_u64().unwrap() >= 63 * MIB);
    machine.quit();
    let mut machine = start_small(&[]);
    let mut qmp = machine.qmp();
    let refused = "No balloon device has been activated";
    assert_eq!(qmp.error("query-balloon", &json!({})), refused);
    machine.quit();
}

#[test]
fn ports_tell_when_the_guest_opens_them() {
    let mut machine = start_with_disk("raw", &[PC, RAW_DISK, &["-S"]]);
    let mut qmp = machine.qmp();
    qmp.ok("cont", &json!({}));
    let ports = |is_open: bool| {
        ["console0", "port0"].map(|id| json!({"id": id, "open": is_open}).to_string())
    };
    let both = |qmp: &mut Qmp, is_open| {
        let mut told = [0; 2].map(|_| data_of(qmp, "VSERPORT_CHANGE").to_string());
        told.sort();
        assert_eq!(told, ports(is_open));
    };
    both(&mut qmp, true);
    machine.wait_for("tick 4");
    let long: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
    for bytes in [&b"x"[..], b"there and back", &long] {
        assert_eq!(echo(&machine.path("named"), bytes), bytes);
    }
    qmp.ok("system_reset", &json!({}));
    both(&mut qmp, false);
    both(&mut qmp, true);
    machine.wait_for(HELLO);
    machine.wait_for("tick 4");
    assert_eq!(echo(&machine.path("named"), b"again"), b"again");
    // A port goes at once, and its chardev is free for another.
    qmp.ok("device_del", &json!({"id": "port0"}));
    let gone = json!({"device": "port0", "path": "/machine/peripheral/port0"});
    assert_eq!(data_of(&mut qmp, "DEVICE_DELETED"), gone);
    machine.wait_for("port 1: removed");
    let port =
        json!({"driver": "virtserialport", "id": "port1", "chardev": "named", "name": "two"});
    qmp.ok("device_add", &port);
    machine.wait_for("port 1: 'two' opened");
    assert_eq!(echo(&machine.path("named"), b"by another"), b"by another");
    machine.quit();
}

#[test]
fn nmis_and_keys() {
    let mut machine = start_small(&["-smp", "2"]);
    machine.wait_for("tick 4");
    let mut qmp = machine.qmp();
    for _ in 0..3 {
        qmp.ok("inject-nmi", &json!({}));
        machine.wait_for("NMI");
    }
    qmp.ok("stop", &json!({}));
    qmp.ok("inject-nmi", &json!({}));
    assert!(!machine.listen(TWO_TICKS).contains("NMI"));
    qmp.ok("cont", &json!({}));
    machine.wait_for("NMI");
    for keys in [
        json!([{"type": "qcode", "data": "ret"}]),
        json!([{"type": "qcode", "data": "ctrl"}, {"type": "qcode", "data": "alt"}, {"type": "qcode", "data": "delete"}]),
        json!([{"type": "number", "data": 28}]),
    ] {
        qmp.ok("send-key", &json!({"keys": keys, "hold-time": 10}));
    }
    let wrong = json!({"keys": [{"type": "qcode", "data": "nosuch"}]});
    assert_eq!(
        qmp.error("send-key", &wrong),
        "Parameter 'data' does not accept value 'nosuch'"
    );
    machine.wait_for("tick ");
    machine.quit();
}

#[test]
fn memory_is_saved_as_it_is() {
    let mut machine = start_small(&["-smp", "2"]);
    machine.wait_for("tick 4");
    let mut qmp = machine.qmp();
    qmp.ok("stop", &json!({}));
    let page = machine.tick_page(&mut qmp);
    // The guest maps its memory where it is.
    let mut memsave = |arguments: Value| {
        let mut arguments = arguments;
        arguments["filename"] = json!(machine.path("memory"));
        qmp.execute("memsave", &arguments)
            .map(|_| machine.file("memory"))
    };
    let saved = memsave(json!({"val": 0x9000, "size": 64})).unwrap();
    assert_eq!(saved, page.bytes());
    let across = memsave(json!({"val": 0x8ff0, "size": 64, "cpu-index": 0})).unwrap();
    assert_eq!(across[16..], page.bytes()[..48]);
    let refused = memsave(json!({"val": 0x9000, "size": 64, "cpu-index": 2})).unwrap_err();
    assert_eq!(
        refused["desc"],
        "Parameter 'cpu-index' expects a CPU number"
    );
    let refused = memsave(json!({"val": 1_u64 << 46, "size": 64})).unwrap_err();
    assert_eq!(
        refused["desc"],
        "Invalid addr 0x0000400000000000/size 64 specified"
    );
    let pmemsave = |path: &Path| json!({"val": 0, "size": 64 * MIB, "filename": path});
    qmp.ok("pmemsave", &pmemsave(&machine.path("all")));
    let all = machine.file("all");
    assert_eq!(u64::try_from(all.len()).unwrap(), 64 * MIB);
    assert_eq!(all[0x9000..0x9040], *page.bytes());
    let refused = qmp.error("pmemsave", &pmemsave(Path::new("/nosuch/file")));
    assert_eq!(
        refused,
        "Could not open '/nosuch/file': No such file or directory"
    );
    machine.quit();
}

/// Adds a node on an image, and a disk over it.
fn add_disk(machine: &Machine, qmp: &mut Qmp, node: &str, id: &str, more: Value) {
    let file = machine.path(&format!("{node}.img"));
    create_image(&file, "qcow2", "", "4M");
    let options = json!({
        "driver": "qcow2",
        "node-name": node,
        "file": {"driver": "file", "filename": file},
    });
    qmp.ok("blockdev-add", &options);
    let mut device = json!({"driver": "virtio-blk-pci", "id": id, "drive": node});
    for (name, value) in more.as_object().unwrap() {
        device[name] = value.clone();
    }
    qmp.ok("device_add", &device);
}

fn pci_slots(qmp: &mut Qmp) -> Vec<(u64, String)> {
    let buses = qmp.ok("query-pci", &json!({}));
    let devices = buses[0]["devices"].as_array().unwrap();
    let devices = devices.iter().map(|device| {
        let id = device["qdev_id"].as_str().unwrap().to_owned();
        (device["slot"].as_u64().unwrap(), id)
    });
    devices.filter(|(_, id)| !id.is_empty()).collect()
}

#[test]
fn disks_come_and_go() {
    let mut machine = start_small(&["-object", "iothread,id=io0"]);
    machine.wait_for("tick 4");
    let mut qmp = machine.qmp();
    add_disk(
        &machine,
        &mut qmp,
        "node0",
        "disk0",
        json!({"iothread": "io0"}),
    );
    add_disk(
        &machine,
        &mut qmp,
        "node1",
        "disk1",
        json!({"addr": "1f.0"}),
    );
    let both = [(2, "disk0".to_owned()), (0x1f, "disk1".to_owned())];
    assert_eq!(pci_slots(&mut qmp), both);
    for (device, words) in [
        (
            json!({"driver": "virtio-blk-pci", "id": "disk0", "drive": "node0"}),
            "Duplicate device ID 'disk0'",
        ),
        (
            json!({"driver": "virtio-rng-pci", "addr": "1f.0"}),
            "PCI: slot 31 function 0 not available for virtio-rng-pci, in use by virtio-blk-pci,id=disk1",
        ),
        (
            json!({"driver": "nosuch"}),
            "'nosuch' is not a valid device model name",
        ),
        (json!({"id": "x"}), "Parameter 'driver' is missing"),
        (
            json!({"driver": "virtio-rng-pci", "nosuch": 1}),
            "Property 'virtio-rng-pci.nosuch' not found",
        ),
        (
            json!({"driver": "pvpanic"}),
            "Bus 'isa.0' does not support hotplugging",
        ),
        (
            json!({"driver": "virtio-blk-pci", "drive": "nosuch"}),
            "Property 'virtio-blk-device.drive' can't find value 'nosuch'",
        ),
    ] {
        assert_eq!(qmp.error("device_add", &device), words, "{device}");
    }
    // The embedded guest looks for devices when it starts.
    qmp.ok("system_reset", &json!({}));
    machine.wait_for("disk: 8192 sectors (4 MiB)");
    machine.wait_for("tick 4");
    let words = qmp.error("blockdev-del", &json!({"node-name": "node0"}));
    assert!(words.contains("node0"), "{words}");
    // It does not know the bus' hotplug registers: what it is asked for goes with its end.
    for id in ["disk0", "/machine/peripheral/disk1"] {
        qmp.ok("device_del", &json!({"id": id}));
        let again = format!("Device {id} is already in the process of unplug");
        assert_eq!(qmp.error("device_del", &json!({"id": id})), again);
    }
    assert_eq!(pci_slots(&mut qmp), both);
    qmp.ok("system_reset", &json!({}));
    for id in ["disk0", "disk1"] {
        let gone = json!({"device": id, "path": format!("/machine/peripheral/{id}")});
        assert_eq!(data_of(&mut qmp, "DEVICE_DELETED"), gone);
    }
    assert_eq!(pci_slots(&mut qmp), []);
    machine.wait_for(HELLO);
    assert!(!machine.wait_for("tick 4").contains("disk:"));
    let unknown = qmp.error("device_del", &json!({"id": "disk0"}));
    assert_eq!(unknown, "Device 'disk0' not found");
    for node in ["node0", "node1"] {
        qmp.ok("blockdev-del", &json!({"node-name": node}));
    }
    machine.quit();
}

#[test]
fn the_guest_sees_a_disk_grow() {
    for format in ["raw", "qcow2"] {
        let disk = if format == "raw" {
            RAW_DISK
        } else {
            QCOW2_DISK
        };
        let mut machine = start_with_disk(format, &[PC, disk, &["-append", "disk=write"]]);
        machine.wait_for("disk counter 1");
        let mut qmp = machine.qmp();
        qmp.ok(
            "block_resize",
            &json!({"node-name": "drive-disk", "size": 3 * MIB}),
        );
        machine.wait_for("disk counter 1");
        machine.type_line("disk");
        machine.wait_for("disk: 6144 sectors (3 MiB)");
        machine.wait_for("disk counter 2");
        machine.quit();
        let image = machine.path("disk.img");
        let at = |start: u64| format!("read -P 0x52 {start} 1");
        let counters = [at(MIB - 512), at(3 * MIB - 512)];
        qemu_io(format, image.to_str().unwrap(), &counters);
    }
}

#[test]
fn queries_have_their_exact_values() {
    let uuid = "2f7f6f0a-1d5b-4f86-93f5-5b5b0a2a7d11";
    let options = [
        "-name",
        "first",
        "-uuid",
        uuid,
        "-object",
        "iothread,id=io0",
    ];
    let mut machine = start_with_disk("raw", &[PC, RAW_DISK, &options]);
    machine.wait_for("tick 4");
    let mut qmp = machine.qmp();
    for (command, expected) in [
        (
            "query-status",
            json!({"running": true, "status": "running"}),
        ),
        (
            "query-current-machine",
            json!({"wakeup-suspend-support": true}),
        ),
        ("query-target", json!({"arch": "x86_64"})),
        ("query-name", json!({"name": "first"})),
        ("query-uuid", json!({"UUID": uuid})),
        ("query-balloon", json!({"actual": 64 * MIB})),
        (
            "query-memory-size-summary",
            json!({"base-memory": 64 * MIB, "plugged-memory": 0}),
        ),
    ] {
        assert_eq!(qmp.ok(command, &json!({})), expected, "{command}");
    }
    // Whether there is KVM is the host's; the software CPU runs without.
    let kvm = qmp.ok("query-kvm", &json!({}));
    assert_eq!(kvm["enabled"], false);
    assert!(kvm["present"].is_boolean());
    let iothreads = qmp.ok("query-iothreads", &json!({}));
    let expected = json!([{
        "id": "io0",
        "thread-id": iothreads[0]["thread-id"].as_u64().unwrap(),
        "poll-max-ns": 32768,
        "poll-grow": 0,
        "poll-shrink": 0,
        "aio-max-batch": 0,
    }]);
    assert_eq!(iothreads, expected);
    let machines = qmp.ok("query-machines", &json!({}));
    let pc = &machines[0];
    assert_eq!(pc["alias"], "pc");
    assert_eq!(
        (&pc["is-default"], &pc["cpu-max"]),
        (&json!(true), &json!(255))
    );
    let names = machines.as_array().unwrap().iter();
    let names: Vec<_> = names.map(|machine| machine["name"].as_str()).collect();
    assert_eq!(
        names,
        [Some("pc-i440fx-10.0"), Some("microvm"), Some("none")]
    );
    let blocks = qmp.ok("query-block", &json!({}));
    assert_eq!(blocks[0]["qdev"], "disk0");
    assert_eq!(blocks[0]["inserted"]["node-name"], "drive-disk");
    check_pci(&mut qmp);
    machine.quit();
    let mut machine = start_small(&[]);
    let mut qmp = machine.qmp();
    assert_eq!(qmp.ok("query-name", &json!({})), json!({}));
    let nobody = "00000000-0000-0000-0000-000000000000";
    assert_eq!(qmp.ok("query-uuid", &json!({})), json!({"UUID": nobody}));
    machine.quit();
}

/// `query-pci` of the PC with one of each virtio device.
fn check_pci(qmp: &mut Qmp) {
    let pci = qmp.ok("query-pci", &json!({}));
    let devices = pci[0]["devices"].as_array().unwrap();
    let summary: Vec<_> = devices
        .iter()
        .map(|device| {
            (
                device["slot"].as_u64().unwrap(),
                device["function"].as_u64().unwrap(),
                device["id"]["vendor"].as_u64().unwrap(),
                device["id"]["device"].as_u64().unwrap(),
                device["qdev_id"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        (0, 0, 0x8086, 0x1237, ""),
        (1, 0, 0x8086, 0x7000, ""),
        (1, 3, 0x8086, 0x7113, ""),
        (2, 0, 0x1af4, 0x1042, "disk0"),
        (3, 0, 0x1af4, 0x1045, "balloon0"),
        (4, 0, 0x1af4, 0x1044, "rng0"),
        (5, 0, 0x1af4, 0x1043, "ports"),
    ];
    for found in &expected {
        assert!(summary.contains(found), "{found:?} in {summary:?}");
    }
    for device in devices.iter().filter(|device| device["slot"] != json!(0)) {
        for region in device["regions"].as_array().unwrap() {
            let (address, size) = (region["address"].as_u64(), region["size"].as_u64());
            let (address, size) = (address.unwrap(), size.unwrap());
            assert!(address > 0 && address % size == 0, "{device}");
        }
    }
}

#[test]
fn the_monitor_for_people() {
    let mut machine = start_with_disk("raw", &[PC, RAW_DISK]);
    machine.wait_for("tick 4");
    let mut qmp = machine.qmp();
    assert_eq!(hmp(&mut qmp, "info status"), "VM status: running\r\n");
    qmp.ok("stop", &json!({}));
    assert_eq!(hmp(&mut qmp, "info status"), "VM status: paused\r\n");
    let magic = "0000000000009000: 0x49544152 0x50474554 0x00000001 0x000000fa\r\n";
    for line in ["xp /4xw 0x9000", "x /4xw 0x9000", "xp/4 36864"] {
        assert_eq!(hmp(&mut qmp, line), magic, "{line}");
    }
    assert_eq!(
        hmp(&mut qmp, "xp /8c 0x9000"),
        "0000000000009000: 'R' 'A' 'T' 'I' 'T' 'E' 'G' 'P'\r\n"
    );
    let page = machine.tick_page(&mut qmp);
    let ticks = format!("0000000000009010: {}\r\n", page.ticks());
    assert_eq!(hmp(&mut qmp, "xp /1ug 0x9010"), ticks);
    assert!(hmp(&mut qmp, "x /4xw 0x400000000000").contains("Cannot access memory"));
    let registers = hmp(&mut qmp, "info registers");
    for part in [
        "CPU#0\r\n",
        "RIP=0000000000",
        "CPL=0",
        "EFER=0000000000000500",
        "CR0=80000013",
    ] {
        assert!(registers.contains(part), "{part} in {registers}");
    }
    for (line, parts) in [
        (
            "info mtree",
            &[
                "address-space: memory",
                "pc.ram",
                "ioapic",
                "00000000000003f8-00000000000003ff",
            ][..],
        ),
        (
            "info pci",
            &[
                "Bus  0, device   2, function 0:",
                "PCI device 1af4:1042",
                "id \"disk0\"",
            ],
        ),
        (
            "info qtree",
            &[
                "dev: virtio-blk-pci, id \"disk0\"",
                "drive = \"disk\"",
                "dev: pvpanic",
            ],
        ),
        ("help", &["info [subcommand]"]),
    ] {
        let text = hmp(&mut qmp, line);
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    assert_eq!(hmp(&mut qmp, "nosuch"), "unknown command: 'nosuch'\r\n");
    machine.quit();
}

#[test]
fn people_look_at_disks_and_into_them() {
    let folder = new_folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (base, overlay, cd) = (path("base.qcow2"), path("over.qcow2"), path("cd.iso"));
    create_image(Path::new(&base), "qcow2", "", "1M");
    qemu_io("qcow2", &base, &["write -P 0x41 0 64k"]);
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base];
    qemu_img(&[&create[..], &[&overlay]].concat());
    std::fs::write(&cd, vec![0; 64 << 10]).unwrap();
    let options = [
        "-drive",
        "if=none,id=d0,format=qcow2,file={dir}/over.qcow2,cache=none",
        "-device",
        "virtio-blk-pci,drive=d0,id=disk0",
        "-drive",
        "if=none,id=cd0,format=raw,readonly=on,file={dir}/cd.iso",
        "-device",
        "ide-cd,drive=cd0,id=cd",
    ];
    let mut machine = Machine::start_in(folder, &options);
    machine.wait_for("disk: 2048 sectors (1 MiB), sector 0 begins [41, 41, 41, 41");
    let mut qmp = machine.qmp();
    let disk = format!(
        "d0 (drive-d0): {overlay} (qcow2)\r\n    \
             Attached to:      disk0\r\n    \
             Cache mode:       writeback, direct\r\n    \
             Backing file:     {base} (chain depth: 1)\r\n"
    );
    let cd = format!(
        "cd0 (drive-cd0): {cd} (raw, read-only)\r\n    \
             Attached to:      cd\r\n    \
             Cache mode:       writeback\r\n"
    );
    assert_eq!(hmp(&mut qmp, "info block"), format!("{disk}\r\n{cd}"));
    for name in ["d0", "disk0"] {
        assert_eq!(hmp(&mut qmp, &format!("info block {name}")), disk);
    }
    assert_eq!(hmp(&mut qmp, "info block nosuch"), "");
    let mut io = |device: &str, command: &str, expected: &str| {
        let line = format!("qemu-io {device} \"{command}\"");
        assert_eq!(hmp(&mut qmp, &line), expected, "{line}");
    };
    let failed = "Pattern verification failed at offset 0, 512 bytes\r\n";
    let read = "read 512/512 bytes at offset 0\r\n";
    io(
        "d0",
        "read -P 0x41 0 64k",
        "read 65536/65536 bytes at offset 0\r\n",
    );
    io(
        "d0",
        "write -P 0x55 0 512",
        "wrote 512/512 bytes at offset 0\r\n",
    );
    io("-d disk0", "read -P 0x55 0 512", read);
    io("drive-d0", "read -P 85 0 512", read);
    io("d0", "read -P 0x41 0 512", &format!("{failed}{read}"));
    io(
        "d0",
        "discard 512k 64k",
        "discard 65536/65536 bytes at offset 524288\r\n",
    );
    io("d0", "flush", "");
    io("d0", "", "");
    io("d0", "nosuch", "command \"nosuch\" not found\r\n");
    io(
        "d0",
        "read 0",
        "bad argument count 1 to read, expected 2 arguments\r\n",
    );
    io(
        "cd0",
        "write 0 512",
        "write failed: write: the node is read-only\r\n",
    );
    let nobody = "Error: Cannot find device='' nor node-name='nosuch'\r\n";
    io("nosuch", "read 0 512", nobody);
    // The guest reads what was written from outside.
    machine.type_line("disk");
    machine.wait_for("sector 0 begins [55, 55, 55, 55, 55, 55, 55, 55]");
    machine.quit();
    let parts = ["read -P 0x55 0 512", "read -P 0x41 512 65024"];
    qemu_io("qcow2", &overlay, &parts);
}

#[test]
fn the_tree_of_objects_is_the_machines() {
    let mut machine = start_with_disk("raw", &[PC, RAW_DISK]);
    machine.wait_for(HELLO);
    let mut qmp = machine.qmp();
    let mut list = |path: &str| {
        let properties = qmp.ok("qom-list", &json!({"path": path}));
        let properties = properties.as_array().unwrap().iter();
        let properties = properties.map(|property| {
            let name = property["name"].as_str().unwrap().to_owned();
            (name, property["type"].as_str().unwrap().to_owned())
        });
        properties.collect::<Vec<_>>()
    };
    let has = |properties: &[(String, String)], name: &str, kind: &str| {
        let wanted = (name.to_owned(), kind.to_owned());
        assert!(properties.contains(&wanted), "{wanted:?} in {properties:?}");
    };
    let machine_properties = list("/machine");
    for name in ["peripheral", "peripheral-anon", "unattached"] {
        has(&machine_properties, name, "child<container>");
    }
    let peripheral = list("/machine/peripheral");
    for (id, kind) in [
        ("disk0", "virtio-blk-pci"),
        ("balloon0", "virtio-balloon-pci"),
        ("rng0", "virtio-rng-pci"),
        ("ports", "virtio-serial-pci"),
        ("console0", "virtconsole"),
        ("port0", "virtserialport"),
    ] {
        has(&peripheral, id, &format!("child<{kind}>"));
    }
    let disk = list("/machine/peripheral/disk0");
    has(&disk, "drive", "str");
    has(&disk, "logical_block_size", "size");
    let unattached = list("/machine/unattached");
    for cpu in 0..3 {
        has(
            &unattached,
            &format!("device[{cpu}]"),
            "child<max-x86_64-cpu>",
        );
    }
    for (path, property, value) in [
        ("/machine", "type", "pc-i440fx-10.0-machine"),
        ("/machine/peripheral/disk0", "type", "virtio-blk-pci"),
        ("/machine/peripheral/disk0", "drive", "disk"),
        ("/machine/peripheral/port0", "name", "org.ratite.test"),
    ] {
        let get = json!({"path": path, "property": property});
        assert_eq!(qmp.ok("qom-get", &get), value, "{path} {property}");
    }
    let nosuch = json!({"path": "/machine/peripheral/disk0", "property": "nosuch"});
    assert_eq!(
        qmp.error("qom-get", &nosuch),
        "Property 'virtio-blk-pci.nosuch' not found"
    );
    let properties = qmp.ok(
        "device-list-properties",
        &json!({"typename": "virtio-blk-pci"}),
    );
    let names = properties.as_array().unwrap().iter();
    assert!(
        names
            .into_iter()
            .any(|property| property["name"] == "serial")
    );
    machine.quit();
}

#[test]
fn the_board_without_chips_is_for_management() {
    let mut machine = Machine::start_bare(&["-M", "none"]);
    let mut qmp = machine.qmp();
    assert_eq!(qmp.ok("query-cpus-fast", &json!({})), json!([]));
    assert_eq!(qmp.ok("query-pci", &json!({})), json!([]));
    for command in ["stop", "cont", "system_reset"] {
        qmp.ok(command, &json!({}));
    }
    let words = qmp.error("device_add", &json!({"driver": "virtio-rng-pci"}));
    assert_eq!(words, "No 'PCI' bus found for device 'virtio-rng-pci'");
    machine.quit();
}
