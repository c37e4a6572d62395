//! Kernels and firmware that others built, on whole machines.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod support;

use std::time::Instant;

use serde_json::json;
use support::linux::{GUEST_PATIENCE, Linux, guest_file};
use support::machine::Machine;
use support::tools::{create_image, qemu_img};
use support::{is_full, new_folder};

const MIB: u64 = 1 << 20;
/// What is written to the disk in the guest.
const FILE_MIB: u32 = 16;

/// Whether the long forms were asked for; says so if not.
fn is_wanted() -> bool {
    if !is_full() {
        println!("not in the default form; RATITE_FULL=1 runs it");
    }
    is_full()
}

/// What the kernel has told came on the console, whole and in its order.
fn check_console(linux: &mut Linux) {
    let console = linux.console.replace('\r', "");
    let told = linux.run("dmesg").replace('\r', "");
    let lines: Vec<&str> = told.lines().filter(|line| line.starts_with('[')).collect();
    let userspace = lines
        .iter()
        .position(|line| line.contains("Run /init as init process"))
        .unwrap();
    assert!(userspace > 100, "{told}");
    let mut rest = console.as_str();
    for line in &lines[..=userspace] {
        let Some(at) = rest.find(line.trim_end()) else {
            unreachable!("'{line}' is not, or not in its place, on the console:\n{console}");
        };
        rest = &rest[at + line.trim_end().len()..];
    }
    assert!(rest.contains("init is ready"), "{rest}");
}

fn check_cpus(linux: &mut Linux, count: usize) {
    let info = linux.run("cat /proc/cpuinfo");
    let cpus: Vec<&str> = info
        .lines()
        .filter(|line| line.starts_with("processor"))
        .map(|line| line.rsplit(' ').next().unwrap().trim())
        .collect();
    let expected: Vec<String> = (0..count).map(|cpu| cpu.to_string()).collect();
    assert_eq!(cpus, expected, "{info}");
    // All of them do something.
    let tasks = "for cpu in 0 1 2 3 4 5 6 7; do sha256sum /bin/busybox & done; wait";
    let sums = linux.run(tasks);
    let first_words = sums.lines().filter_map(|line| {
        let (sum, name) = line.trim().split_once("  ")?;
        (name == "/bin/busybox").then(|| sum.to_owned())
    });
    let sums: Vec<String> = first_words.collect();
    assert_eq!(sums.len(), 8);
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}

/// Formats the disk, writes, and reads back after unmounting.
fn check_disk(linux: &mut Linux, file_mib: u32) {
    linux.run("mke2fs /dev/vda > /mke2fs.txt 2>&1");
    linux.run("mount -t ext4 /dev/vda /mnt");
    linux.run(&format!(
        "dd if=/dev/urandom of=/mnt/file bs=1M count={file_mib} 2> /dd.txt"
    ));
    let before = linux.run("sha256sum /mnt/file");
    let sum = |text: &str| {
        let line = text.lines().find(|line| line.contains("  /mnt/file"));
        line.unwrap().trim().to_owned()
    };
    linux.run("umount /mnt && echo 3 > /proc/sys/vm/drop_caches");
    linux.run("mount -t ext4 /dev/vda /mnt");
    let after = linux.run("sha256sum /mnt/file");
    assert_eq!(sum(&before), sum(&after));
    linux.run("umount /mnt");
}

/// A disk comes, grows and goes while the guest runs.
fn check_hotplug(linux: &mut Linux) {
    let mut qmp = linux.machine.qmp();
    let image = linux.machine.path("second.qcow2");
    create_image(&image, "qcow2", "", "8M");
    let file = json!({"driver": "file", "filename": image});
    let node = json!({"driver": "qcow2", "node-name": "second", "file": file});
    qmp.ok("blockdev-add", &node);
    let device = json!({"driver": "virtio-blk-pci", "id": "second", "drive": "second"});
    qmp.ok("device_add", &device);
    let wait = |what: &str| {
        format!("n=0; while ! {what} && [ $n -lt 600 ]; do sleep 0.1; n=$((n+1)); done; {what}")
    };
    linux.run(&wait("[ -b /dev/vdb ]"));
    linux.run("[ $(cat /sys/block/vdb/size) = 16384 ]");
    let bigger = json!({"node-name": "second", "size": 12 * MIB});
    qmp.ok("block_resize", &bigger);
    linux.run(&wait("[ $(cat /sys/block/vdb/size) = 24576 ]"));
    linux.run("dd if=/bin/busybox of=/dev/vdb conv=fsync 2> /dd.txt");
    qmp.ok("device_del", &json!({"id": "second"}));
    let gone = json!({"device": "second", "path": "/machine/peripheral/second"});
    assert_eq!(qmp.event("DEVICE_DELETED")["data"], gone);
    linux.run(&wait("[ ! -e /dev/vdb ]"));
    qmp.ok("blockdev-del", &json!({"node-name": "second"}));
    qemu_img(&["check", "-f", "qcow2", image.to_str().unwrap()]);
}

/// Boots with so many CPUs and a disk, does all of the above, and switches off.
fn boots_and_works(cpus: usize) {
    let began = Instant::now();
    let folder = new_folder();
    let image = folder.path().join("disk.qcow2");
    create_image(&image, "qcow2", "", "64M");
    let options = [
        "-smp",
        &cpus.to_string(),
        "-drive",
        "if=virtio,format=qcow2,file={dir}/disk.qcow2",
    ];
    let mut linux = Linux::boot(folder, &options);
    println!("a shell after {:.1} s", began.elapsed().as_secs_f64());
    check_console(&mut linux);
    check_cpus(&mut linux, cpus);
    check_disk(&mut linux, FILE_MIB);
    check_hotplug(&mut linux);
    let mut qmp = linux.machine.qmp();
    linux.run_last("poweroff -f");
    linux.machine.wait_for("reboot: Power down");
    let reason = json!({"guest": true, "reason": "guest-shutdown"});
    assert_eq!(qmp.event("SHUTDOWN")["data"], reason);
    linux.machine.end();
    let image = linux.machine.path("disk.qcow2");
    qemu_img(&["check", "-f", "qcow2", image.to_str().unwrap()]);
    println!("all after {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn debian_works_on_two_cpus() {
    boots_and_works(2);
}

#[test]
fn debian_works_on_a_microvm() {
    let began = Instant::now();
    let folder = new_folder();
    let image = folder.path().join("disk.qcow2");
    create_image(&image, "qcow2", "", "32M");
    let options = [
        "-M",
        "microvm",
        "-drive",
        "if=virtio,format=qcow2,file={dir}/disk.qcow2",
    ];
    let mut linux = Linux::boot(folder, &options);
    println!("a shell after {:.1} s", began.elapsed().as_secs_f64());
    check_console(&mut linux);
    linux.run("[ ! -e /sys/bus/pci/devices ] || [ -z \"$(ls /sys/bus/pci/devices)\" ]");
    linux.run("[ $(cat /sys/block/vda/size) = 65536 ]");
    check_disk(&mut linux, FILE_MIB / 8);
    // The kernel hears of the power button by the Generic Event Device.
    let presses = |linux: &mut Linux| {
        let table = linux.run("cat /proc/interrupts");
        let line = table.lines().find(|line| line.contains("ACPI:Ged"));
        let count = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
        count.unwrap()
    };
    let mut qmp = linux.machine.qmp();
    let before = presses(&mut linux);
    qmp.ok("system_powerdown", &json!({}));
    qmp.event("POWERDOWN");
    assert_eq!(presses(&mut linux), before + 1);
    linux.run_last("poweroff -f");
    linux.machine.wait_for("reboot: Power down");
    let reason = json!({"guest": true, "reason": "guest-shutdown"});
    assert_eq!(qmp.event("SHUTDOWN")["data"], reason);
    linux.machine.end();
    let image = linux.machine.path("disk.qcow2");
    qemu_img(&["check", "-f", "qcow2", image.to_str().unwrap()]);
    println!("all after {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn debian_works_on_one_cpu() {
    if is_wanted() {
        boots_and_works(1);
    }
}

#[test]
fn debian_works_on_four_cpus() {
    if is_wanted() {
        boots_and_works(4);
    }
}

#[test]
fn debian_reboots() {
    if !is_wanted() {
        return;
    }
    let mut linux = Linux::boot(new_folder(), &["-smp", "2"]);
    let mut qmp = linux.machine.qmp();
    let reason = json!({"guest": true, "reason": "guest-reset"});
    linux.run_last("reboot -f");
    assert_eq!(qmp.event("RESET")["data"], reason);
    linux.wait_for_shell();
    check_console(&mut linux);
    check_cpus(&mut linux, 2);
    qmp.ok("set-action", &json!({"reboot": "shutdown"}));
    linux.run_last("reboot -f");
    assert_eq!(qmp.event("SHUTDOWN")["data"], reason);
    linux.machine.end();
}

#[test]
fn debian_ends_at_a_reboot_with_no_reboot() {
    if !is_wanted() {
        return;
    }
    let mut linux = Linux::boot(new_folder(), &["-no-reboot"]);
    let mut qmp = linux.machine.qmp();
    linux.run_last("reboot -f");
    let reason = json!({"guest": true, "reason": "guest-reset"});
    assert_eq!(qmp.event("SHUTDOWN")["data"], reason);
    linux.machine.end();
}

#[test]
fn memtest_counts_passes() {
    if !is_wanted() {
        return;
    }
    let kernel = guest_file("boot/memtest86+x64.bin");
    let options = ["-m", "32", "-append", "console=ttyS0", "-kernel"];
    let mut machine = Machine::start(&[&options[..], &[kernel.to_str().unwrap()]].concat());
    machine.set_patience(GUEST_PATIENCE);
    machine.wait_for("Memtest86+");
    machine.wait_for("Pass:  0        Errors: 0");
    machine.wait_for(" 10% ");
    machine.quit();
}

#[test]
fn the_debian_installer_asks() {
    if !is_wanted() {
        return;
    }
    let folder = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";
    let (kernel, initrd) = (
        guest_file(&format!("{folder}/linux")),
        guest_file(&format!("{folder}/initrd.gz")),
    );
    // With less it begins with a word on memory.
    let options = ["-m", "1024", "-smp", "2", "-append", "console=ttyS0"];
    let files = [
        "-kernel",
        kernel.to_str().unwrap(),
        "-initrd",
        initrd.to_str().unwrap(),
    ];
    let mut machine = Machine::start(&[&options[..], &files].concat());
    machine.set_patience(GUEST_PATIENCE);
    machine.wait_for("Run /init as init process");
    machine.wait_for("Select a language");
    machine.wait_for("activates buttons");
    machine.quit();
}

#[test]
fn seabios_starts() {
    if !is_wanted() {
        return;
    }
    let firmware = guest_file("usr/share/seabios/bios-256k.bin");
    let options = ["-bios", firmware.to_str().unwrap()];
    let mut machine = Machine::start(&options);
    machine.set_patience(GUEST_PATIENCE);
    machine.wait_for("SeaBIOS (version");
    machine.wait_for("No bootable device.");
    machine.quit();
}
