//! Disks that fail under a running guest: what `rerror` and `werror` lead to.
//!
//! A disk is made to fail in two ways that need no privileges: a compressed cluster of a qcow2 image is spoilt in the file
//! and mended again (reading it, and writing a part of it, is an input/output error), and a file lies on a file system
//! that is full, and then is not.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod support;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::machine::Machine;
use support::tools::{qemu_img, qemu_io};
use support::{Qmp, new_folder};

const CLUSTER: usize = 64 << 10;
/// A sector of the cluster that is spoilt.
const BAD_SECTOR: u64 = 130;

/// A disk's device, with the name that the guest has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Virtio,
    Ide,
}

impl Disk {
    fn device(self, policies: &str) -> String {
        match self {
            Self::Virtio => format!("virtio-blk-pci,drive=disk,id=disk0{policies}"),
            Self::Ide => format!("ide-hd,drive=disk,id=disk0{policies}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Ide => "ide",
        }
    }

    /// What the guest's driver is told: virtio's status; the bits of IDE's error register for data that cannot be read, and
    /// for a command that is given up.
    fn code(self, operation: &str) -> u8 {
        match (self, operation) {
            (Self::Virtio, _) => 1,
            (Self::Ide, "read") => 0x40,
            (Self::Ide, _) => 4,
        }
    }
}

/// The next error that clients are told of, with the stop that goes with it; its reason is for people, and says this.
fn check_event(qmp: &mut Qmp, expected: Value, reason: &str) {
    let mut event = if expected["action"] == "stop" {
        let [error, _] = qmp.both_events(["BLOCK_IO_ERROR", "STOP"]);
        error
    } else {
        qmp.event("BLOCK_IO_ERROR")
    };
    let mut data = event["data"].take();
    let told = data.as_object_mut().unwrap().remove("reason").unwrap();
    assert!(told.as_str().unwrap().contains(reason), "{told}");
    assert_eq!(data, expected);
}

fn io_status(qmp: &mut Qmp) -> Value {
    qmp.ok("query-block", &json!({}))[0]["io-status"].take()
}

fn expect_state(qmp: &mut Qmp, state: &str) {
    let status = qmp.ok("query-status", &json!({}));
    let running = state == "running";
    assert_eq!(status, json!({"status": state, "running": running}));
}

/// A machine over an image whose second cluster is compressed.
struct Rig {
    machine: Machine,
    qmp: Qmp,
    disk: Disk,
    /// Where the cluster's data is in the file, and how it was.
    place: u64,
    good: Vec<u8>,
}

/// Makes an image of four compressed clusters; where the data of the second is, and its bytes in the file.
fn make_image(image: &Path) -> (u64, Vec<u8>) {
    let raw = image.with_extension("raw");
    // Bytes that compress to something that is not all the same.
    let bytes: Vec<u8> = (0..4 * CLUSTER)
        .map(|at| (at / CLUSTER + at % 7) as u8)
        .collect();
    std::fs::write(&raw, &bytes).unwrap();
    let (from, to) = (raw.to_str().unwrap(), image.to_str().unwrap());
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", from, to]);
    let file = std::fs::read(image).unwrap();
    let number = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
    let offset_bits = 0x00ff_ffff_ffff_fe00;
    let l2 = usize::try_from(number(usize::try_from(number(40)).unwrap()) & offset_bits).unwrap();
    // A compressed cluster's entry: 62 bits, of which the lower 54 are the place of the data.
    let place = number(l2 + 8) & ((1 << 54) - 1);
    let start = usize::try_from(place).unwrap();
    (place, file[start..start + 64].to_vec())
}

impl Rig {
    fn start(disk: Disk, policies: &str) -> Self {
        let folder = new_folder();
        let (place, good) = make_image(&folder.path().join("disk.qcow2"));
        let device = disk.device(policies);
        let options = [
            "-m",
            "64",
            "-drive",
            "if=none,id=disk,format=qcow2,file={dir}/disk.qcow2",
            "-device",
            &device,
        ];
        let mut machine = Machine::start_in(folder, &options);
        machine.wait_for("tick 4");
        let qmp = machine.qmp();
        Self {
            machine,
            qmp,
            disk,
            place,
            good,
        }
    }

    fn put(&self, bytes: &[u8]) {
        let path = self.machine.path("disk.qcow2");
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(bytes, self.place).unwrap();
    }

    fn spoil(&self) {
        self.put(&vec![0xff; self.good.len()]);
    }

    fn mend(&self) {
        self.put(&self.good);
    }

    fn ask(&mut self, operation: &str) {
        let name = self.disk.name();
        self.machine
            .type_line(&format!("{operation} {name} {BAD_SECTOR}"));
    }

    fn expect(&mut self, operation: &str, outcome: &str) {
        let name = self.disk.name();
        let line = format!("{operation} {name} {BAD_SECTOR}: {outcome}");
        self.machine.wait_for(&line);
    }

    /// The error that clients are told of.
    fn expect_event(&mut self, operation: &str, action: &str) {
        let mut expected = json!({
            "qom-path": "/machine/peripheral/disk0",
            "device": "disk",
            "node-name": "drive-disk",
            "operation": operation,
            "action": action,
        });
        if action == "stop" {
            expected["nospace"] = json!(false);
        }
        check_event(&mut self.qmp, expected, "cannot be decompressed");
    }

    fn io_status(&mut self) -> Value {
        io_status(&mut self.qmp)
    }

    fn expect_state(&mut self, state: &str) {
        expect_state(&mut self.qmp, state);
    }
}

/// What a sector of the second cluster begins with.
const GOOD: &str = "done, [";

#[test]
fn the_machine_stops_until_the_cause_is_gone() {
    for disk in [Disk::Virtio, Disk::Ide] {
        let mut rig = Rig::start(disk, ",rerror=stop,werror=stop");
        rig.ask("read");
        rig.expect("read", GOOD);
        assert_eq!(rig.io_status(), "ok");
        for operation in ["read", "write"] {
            rig.spoil();
            rig.ask(operation);
            rig.expect_event(operation, "stop");
            rig.expect_state("io-error");
            assert_eq!(rig.io_status(), "failed");
            // While the cause is there it stops again.
            rig.qmp.ok("cont", &json!({}));
            rig.qmp.event("RESUME");
            rig.expect_event(operation, "stop");
            rig.expect_state("io-error");
            rig.mend();
            rig.qmp.ok("cont", &json!({}));
            rig.qmp.event("RESUME");
            // The guest sees nothing of it.
            rig.expect(operation, GOOD);
            rig.expect_state("running");
            assert_eq!(rig.io_status(), "ok");
        }
        rig.machine.quit();
        let image = rig.machine.path("disk.qcow2");
        let sector = format!("read -P {BAD_SECTOR} {} 512", BAD_SECTOR * 512);
        qemu_io("qcow2", image.to_str().unwrap(), &[sector.as_str()]);
        qemu_img(&["check", "-f", "qcow2", image.to_str().unwrap()]);
    }
}

#[test]
fn the_guest_is_told_of_errors() {
    for disk in [Disk::Virtio, Disk::Ide] {
        // What has no place is told is not told of other errors; it is the default for writes, and "report" for reads.
        for policies in ["", ",rerror=report,werror=report", ",werror=enospc"] {
            let mut rig = Rig::start(disk, policies);
            rig.spoil();
            for operation in ["read", "write", "read"] {
                rig.ask(operation);
                rig.expect(operation, &format!("failed, {}", disk.code(operation)));
                rig.expect_event(operation, "report");
                rig.expect_state("running");
                assert_eq!(rig.io_status(), "ok");
            }
            rig.mend();
            rig.ask("read");
            rig.expect("read", GOOD);
            rig.machine.quit();
        }
    }
}

#[test]
fn errors_can_be_ignored() {
    for disk in [Disk::Virtio, Disk::Ide] {
        let mut rig = Rig::start(disk, ",rerror=ignore,werror=ignore");
        rig.spoil();
        for operation in ["write", "read"] {
            rig.ask(operation);
            rig.expect(operation, GOOD);
            rig.expect_event(operation, "ignore");
            rig.expect_state("running");
        }
        rig.machine.quit();
    }
}

/// A file system of 1 MiB in a namespace of its own, which any user may make where the host allows it.
struct SmallFileSystem {
    holder: Child,
    folder: PathBuf,
    _place: tempfile::TempDir,
}

impl SmallFileSystem {
    /// None where the host does not allow it.
    fn new() -> Option<Self> {
        let place = new_folder();
        let at = place.path().display();
        // It lasts as long as its standard input is open.
        let script = format!("mount -t tmpfs -o size=1m none {at} && echo ready && exec cat");
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let output = holder.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut said).unwrap();
        if said != "ready\n" {
            println!("not tested: this host lets nobody make a small file system");
            holder.wait().unwrap();
            return None;
        }
        // As the holder sees it.
        let folder = PathBuf::from(format!("/proc/{}/root{at}", holder.id()));
        Some(Self {
            holder,
            folder,
            _place: place,
        })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut file = File::create(self.path("filler")).unwrap();
        let error = loop {
            if let Err(error) = file.write_all(&[1; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path("filler")).unwrap();
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // It may have ended by itself.
        let _ = self.holder.wait();
    }
}

#[test]
fn a_full_file_system_stops_the_machine_until_there_is_room() {
    let Some(small) = SmallFileSystem::new() else {
        return;
    };
    for (disk, policies, action) in [
        (Disk::Virtio, "", "stop"),
        (Disk::Virtio, ",werror=enospc", "stop"),
        (Disk::Virtio, ",werror=stop", "stop"),
        (Disk::Virtio, ",werror=report", "report"),
        (Disk::Virtio, ",werror=ignore", "ignore"),
        (Disk::Ide, "", "stop"),
        (Disk::Ide, ",werror=report", "report"),
        (Disk::Ide, ",werror=ignore", "ignore"),
    ] {
        write_to_full_disk(&small, disk, policies, action);
    }
}

fn write_to_full_disk(small: &SmallFileSystem, disk: Disk, policies: &str, action: &str) {
    let image = small.path("disk.img");
    File::create(&image).unwrap().set_len(512 << 10).unwrap();
    small.fill();
    let drive = format!("if=none,id=disk,format=raw,file={image}");
    let device = disk.device(policies);
    let options = ["-m", "64", "-drive", &drive, "-device", &device];
    let mut machine = Machine::start(&options);
    machine.wait_for("tick 4");
    let mut qmp = machine.qmp();
    let name = disk.name();
    machine.type_line(&format!("write {name} 130"));
    let mut expected = json!({
        "qom-path": "/machine/peripheral/disk0",
        "device": "disk",
        "node-name": "drive-disk",
        "operation": "write",
        "action": action,
    });
    if action == "stop" {
        expected["nospace"] = json!(true);
    }
    check_event(&mut qmp, expected, "No space left on device");
    let outcome = match action {
        "report" => format!("failed, {}", disk.code("write")),
        _ => "done, [82, 82, 82, 82]".to_owned(),
    };
    if action == "stop" {
        expect_state(&mut qmp, "io-error");
        assert_eq!(io_status(&mut qmp), "nospace");
        small.make_room();
        qmp.ok("cont", &json!({}));
    }
    machine.wait_for(&format!("write {name} 130: {outcome}"));
    expect_state(&mut qmp, "running");
    assert_eq!(io_status(&mut qmp), "ok");
    machine.quit();
    let written = std::fs::read(&image).unwrap()[130 * 512];
    assert_eq!(written, if action == "stop" { 130 } else { 0 });
    if action != "stop" {
        small.make_room();
    }
    std::fs::remove_file(&image).unwrap();
}
