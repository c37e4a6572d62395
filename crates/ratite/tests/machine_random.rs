//! Random commands to a machine whose guest is busy: no command waits for ever, no answer is wrong,
//! and the guest still counts at the end.
//!
//! The oracle is a model of the run state and of the devices that were added.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use support::machine::{Machine, TickPage};
use support::tools::create_image;
use support::{Qmp, Random, is_full, new_folder, seed, wait_until};

/// Random sequences of each of the two guests; the long form has ten times as many.
const SEQUENCES: usize = 500;
/// Commands of a sequence, on average.
const STEPS: u64 = 3;
/// Sequences after which the guest must count.
const BETWEEN_LOOKS: usize = 25;
const MAX_DEVICES: usize = 6;

/// A device that was added.
struct Device {
    id: String,
    /// The node under it, if it is a disk.
    node: Option<String>,
    asked_back: bool,
    is_port: bool,
}

/// What the machine must be like.
struct Model {
    status: &'static str,
    cpus: u64,
    devices: Vec<Device>,
    free_nodes: Vec<String>,
    next_id: usize,
    /// Ticks when the machine was stopped; none while it runs.
    stopped_at: Option<u64>,
}

struct Run {
    machine: Machine,
    qmp: Qmp,
    model: Model,
    random: Random,
    /// The last commands, for who has to find out.
    history: Vec<String>,
    commands: usize,
    /// Whether the guest is kept busy by a command of its own.
    spins: bool,
    /// Whether the guest is far enough since the last reset to stand an NMI.
    is_up: bool,
}

impl Run {
    fn start(options: &[&str], cpus: u64, random: Random) -> Self {
        let folder = new_folder();
        let nodes: Vec<String> = (0..MAX_DEVICES).map(|n| format!("node{n}")).collect();
        for node in &nodes {
            let path = folder.path().join(format!("{node}.img"));
            create_image(&path, "qcow2", "", "1M");
        }
        create_image(&folder.path().join("disk.img"), "raw", "", "1M");
        let smp = cpus.to_string();
        let all = [
            &["-m", "64", "-smp", &smp, "-device", "virtio-serial-pci"],
            &["-object", "iothread,id=io0"][..],
            options,
        ];
        let machine = Machine::start_in(folder, &all.concat());
        let mut run = Self {
            qmp: machine.qmp(),
            machine,
            model: Model {
                status: "running",
                cpus,
                devices: Vec::new(),
                free_nodes: nodes.clone(),
                next_id: 0,
                stopped_at: None,
            },
            random,
            history: Vec::new(),
            commands: 0,
            spins: false,
            is_up: false,
        };
        for node in &nodes {
            let file = run.path(&format!("{node}.img"));
            let file = json!({"driver": "file", "filename": file});
            let options = json!({"driver": "qcow2", "node-name": node, "file": file});
            run.ok("blockdev-add", &options);
        }
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.machine.path(name)
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Value> {
        self.commands += 1;
        self.history.push(format!("{command} {arguments}"));
        self.qmp.execute(command, arguments)
    }

    fn ok(&mut self, command: &str, arguments: &Value) -> Value {
        let answer = self.execute(command, arguments);
        answer.unwrap_or_else(|error| panic!("{command} {arguments}: {error}"))
    }

    fn error(&mut self, command: &str, arguments: &Value) -> String {
        match self.execute(command, arguments) {
            Ok(value) => panic!("{command} {arguments} returned {value}"),
            Err(error) => error["desc"].as_str().unwrap_or_default().to_owned(),
        }
    }

    fn is_running(&self) -> bool {
        self.model.status == "running"
    }

    fn page(&mut self) -> TickPage {
        self.commands += 1;
        self.history.push("pmemsave".to_owned());
        self.machine.tick_page(&mut self.qmp)
    }

    fn stop(&mut self) {
        self.ok("stop", &json!({}));
        if self.is_running() {
            self.qmp.event("STOP");
            self.model.status = "paused";
            self.model.stopped_at = Some(self.page().ticks());
        }
    }

    fn cont(&mut self) {
        self.ok("cont", &json!({}));
        if !self.is_running() {
            self.qmp.event("RESUME");
            self.model.status = "running";
            self.model.stopped_at = None;
        }
    }

    fn reset(&mut self) {
        self.ok("system_reset", &json!({}));
        self.is_up = false;
        if !self.is_running() {
            self.model.status = "prelaunch";
        }
        let (gone, stay) = std::mem::take(&mut self.model.devices)
            .into_iter()
            .partition(|device| device.asked_back);
        self.model.devices = stay;
        self.await_gone(gone);
        let event = self.qmp.event("RESET");
        let data = json!({"guest": false, "reason": "host-qmp-system-reset"});
        assert_eq!(event["data"], data);
        // What is in memory now is the next guest's.
        if !self.is_running() {
            self.model.stopped_at = Some(self.page().ticks());
        }
    }

    fn await_gone(&mut self, gone: Vec<Device>) {
        for device in gone {
            let event = self.qmp.event("DEVICE_DELETED");
            assert_eq!(event["data"]["device"], device.id);
            self.model.free_nodes.extend(device.node);
        }
    }

    fn look_at_memory(&mut self) {
        let cpu = self.random.below(self.model.cpus + 1);
        let path = self.path("linear");
        let arguments = json!({
            "val": guest_payload::TICK_PAGE,
            "size": 64,
            "cpu-index": cpu,
            "filename": path,
        });
        if cpu == self.model.cpus {
            let words = self.error("memsave", &arguments);
            assert_eq!(words, "Parameter 'cpu-index' expects a CPU number");
            return;
        }
        self.ok("memsave", &arguments);
        let linear = self.machine.file("linear");
        assert_eq!(linear.len(), 64);
        let page = self.page();
        if let Some(ticks) = self.model.stopped_at {
            assert_eq!(page.ticks(), ticks, "a stopped guest counts");
            // A processor that waits to be started sees memory as it is, as does the guest.
            assert_eq!(linear, page.bytes());
        }
    }

    fn query(&mut self) {
        let status = self.ok("query-status", &json!({}));
        let expected = json!({"running": self.is_running(), "status": self.model.status});
        assert_eq!(status, expected);
        let cpus = self.ok("query-cpus-fast", &json!({}));
        assert_eq!(
            u64::try_from(cpus.as_array().unwrap().len()),
            Ok(self.model.cpus)
        );
        let pci = self.ok("query-pci", &json!({}));
        let devices = pci[0]["devices"].as_array().unwrap().iter();
        let mut found: Vec<_> = devices
            .filter_map(|device| device["qdev_id"].as_str())
            .filter(|id| id.starts_with("dev"))
            .collect();
        let devices = self.model.devices.iter().filter(|device| !device.is_port);
        let mut expected: Vec<_> = devices.map(|device| &*device.id).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        let tree = self.ok("qom-list", &json!({"path": "/machine/peripheral"}));
        for device in &self.model.devices {
            let properties = tree.as_array().unwrap();
            assert!(
                properties.iter().any(|one| one["name"] == *device.id),
                "{}",
                device.id
            );
        }
        // "type" besides the devices.
        assert_eq!(tree.as_array().unwrap().len(), self.model.devices.len() + 1);
    }

    fn look_at_registers(&mut self) {
        let cpu = self.random.below(self.model.cpus);
        let arguments = json!({"command-line": "info registers", "cpu-index": cpu});
        let text = self.ok("human-monitor-command", &arguments);
        let text = text.as_str().unwrap();
        assert!(text.contains(&format!("CPU#{cpu}")), "{text}");
    }

    fn inject_nmi(&mut self) {
        if !self.is_up {
            self.must_count();
        }
        self.ok("inject-nmi", &json!({}));
    }

    fn add(&mut self) {
        if self.model.devices.len() == MAX_DEVICES {
            return;
        }
        let id = format!("dev{}", self.model.next_id);
        self.model.next_id += 1;
        let (kind, node) = match self.random.below(3) {
            0 => ("virtio-rng-pci", None),
            1 => ("virtserialport", None),
            _ => ("virtio-blk-pci", self.model.free_nodes.pop()),
        };
        let mut arguments = json!({"driver": kind, "id": id});
        if kind == "virtio-blk-pci" {
            let Some(node) = &node else {
                return;
            };
            arguments["drive"] = json!(node);
            if self.random.below(2) == 0 {
                arguments["iothread"] = json!("io0");
            }
        }
        self.ok("device_add", &arguments);
        let words = self.error("device_add", &arguments);
        assert_eq!(words, format!("Duplicate device ID '{id}'"));
        self.model.devices.push(Device {
            id,
            node,
            asked_back: false,
            is_port: kind == "virtserialport",
        });
    }

    fn remove(&mut self) {
        let count = u64::try_from(self.model.devices.len()).unwrap();
        if count == 0 {
            let words = self.error("device_del", &json!({"id": "nosuch"}));
            assert_eq!(words, "Device 'nosuch' not found");
            return;
        }
        let place = usize::try_from(self.random.below(count)).unwrap();
        let arguments = json!({"id": self.model.devices[place].id});
        if self.model.devices[place].asked_back {
            let words = self.error("device_del", &arguments);
            assert!(
                words.contains("is already in the process of unplug"),
                "{words}"
            );
            return;
        }
        self.ok("device_del", &arguments);
        if self.model.devices[place].is_port {
            let device = self.model.devices.remove(place);
            self.await_gone(vec![device]);
        } else {
            // The embedded guest does not let go of devices; a reset does.
            self.model.devices[place].asked_back = true;
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=3 => self.stop(),
            4..=8 => self.cont(),
            9..=11 => self.query(),
            12..=13 => self.look_at_memory(),
            14 => self.look_at_registers(),
            15 => self.inject_nmi(),
            16..=17 => self.add(),
            18 => self.remove(),
            _ => self.reset(),
        }
        if self.random.below(4) == 0 {
            let pause = self.random.below(20);
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    /// The guest runs and counts.
    fn must_count(&mut self) {
        self.cont();
        if self.spins {
            // The first key ends the spinning, if it spins.
            self.machine.type_text("\rspin\r");
        }
        let before = self.page().ticks();
        wait_until("the guest counts", || {
            let now = self.page().ticks();
            // A guest that begins anew counts from 0.
            now != before && now > 0
        });
        self.is_up = true;
    }

    fn all(&mut self, sequences: usize) {
        for sequence in 0..sequences {
            if sequence % BETWEEN_LOOKS == 0 {
                self.must_count();
                self.history.clear();
            }
            for _ in 0..=self.random.below(2 * STEPS) {
                self.step();
            }
        }
        self.must_count();
        println!("{sequences} sequences, {} commands", self.commands);
        self.machine.quit();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last commands:\n{}", self.history.join("\n"));
        }
    }
}

fn run(options: &[&str], cpus: u64, spins: bool) {
    let seed = seed();
    println!("RATITE_SEED={seed}");
    let sequences = SEQUENCES * if is_full() { 10 } else { 1 };
    let mut run = Run::start(options, cpus, Random(seed));
    run.spins = spins;
    run.all(sequences);
}

#[test]
fn a_guest_with_a_disk() {
    let disk = "if=none,id=disk,format=raw,file={dir}/disk.img";
    let device = "virtio-blk-pci,drive=disk";
    let options = ["-drive", disk, "-device", device, "-append", "disk=write"];
    run(&options, 2, false);
}

#[test]
fn a_guest_that_spins() {
    run(&[], 1, true);
}

#[test]
fn a_guest_on_kvm() {
    if std::env::var_os("RATITE_NO_KVM").is_some_and(|value| value == "1") {
        eprintln!("skipped: RATITE_NO_KVM=1 says that this host has no /dev/kvm");
        return;
    }
    let disk = "if=none,id=disk,format=raw,file={dir}/disk.img";
    let device = "virtio-blk-pci,drive=disk";
    let options = ["-drive", disk, "-device", device, "-append", "disk=write"];
    run(&[&["-accel", "kvm"], &options[..]].concat(), 2, false);
}
