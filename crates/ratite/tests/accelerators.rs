//! The same firmware on each accelerator: ports, memory that is none, interrupts through the board's controllers. The
//! embedded guest on KVM, with each kind of interrupt controllers in the kernel.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic; that is how it fails"
)]

mod support;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::machine::Machine;
use support::{Qmp, new_folder, wait_until};

/// Where KVM's interrupt controllers are: `kernel-irqchip`.
const IRQCHIPS: [&str; 3] = ["off", "split", "on"];
const MIB: u64 = 1 << 20;

/// Code at F000:0000, hand-assembled. It reaches the local APIC by a segment of 4 GiB, lets the 8259's output through, counts
/// three interrupts of the 8254, and ends the machine by the debug exit: its status is all there is to see.
const CODE: &[&[u8]] = &[
    // cli; lgdt cs:[0x110]; mov eax, cr0; or al, 1; mov cr0, eax
    &[0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x10, 0x01],
    &[0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0],
    // mov ax, 8; mov ds, ax; mov eax, cr0; and al, ~1; mov cr0, eax
    &[0xb8, 0x08, 0x00, 0x8e, 0xd8],
    &[0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0],
    // mov dword [0xfee000f0], 0x1ff; mov dword [0xfee00350], 0x700
    &[
        0x67, 0x66, 0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0, 0,
    ],
    &[
        0x67, 0x66, 0xc7, 0x05, 0x50, 0x03, 0xe0, 0xfe, 0x00, 0x07, 0, 0,
    ],
    // xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7000
    &[0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x70],
    // vector 8 is F000:0180
    &[0xc7, 0x06, 0x20, 0x00, 0x80, 0x01],
    &[0xc7, 0x06, 0x22, 0x00, 0x00, 0xf0],
    // the 8259: vectors from 8, IRQ 0 only
    &[0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x08, 0xe6, 0x21],
    &[0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21],
    &[0xb0, 0xfe, 0xe6, 0x21],
    // the 8254: counter 0, mode 2, each 4096 ticks
    &[0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x00, 0xe6, 0x40],
    &[0xb0, 0x10, 0xe6, 0x40],
    // xor bx, bx; sti; again: hlt; cmp bx, 3; jb again
    &[0x31, 0xdb, 0xfb, 0xf4, 0x83, 0xfb, 0x03, 0x72, 0xfa],
    // mov al, 16; out 0xf4, al; hlt
    &[0xb0, 0x10, 0xe6, 0xf4, 0xf4],
];
/// inc bx; end of interrupt; iret
const HANDLER: &[u8] = &[0x43, 0xb0, 0x20, 0xe6, 0x20, 0xcf];
/// What the debug exit makes of 16.
const STATUS: i32 = 33;

fn firmware() -> Vec<u8> {
    let mut image = vec![0x90; 0x1_0000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let code = CODE.concat();
    assert!(code.len() <= 0x100);
    put(0, &code);
    put(0x180, HANDLER);
    // The accessed bit is set: the processor cannot set it in ROM.
    put(0x100, &[0; 8]);
    put(0x108, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    put(0x110, &[15, 0]);
    put(0x112, &0xf_0100_u32.to_le_bytes());
    // jmp F000:0000
    put(0xfff0, &[0xea, 0, 0, 0, 0xf0]);
    image
}

fn run(accel: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let bios = folder.path().join("firmware.bin");
    std::fs::write(&bios, firmware()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_ratite"))
        .args(["system", "-m", "16", "-display", "none", "-accel", accel])
        .args(["-serial", "null"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .arg("-bios")
        .arg(&bios)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn check(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(STATUS), "{errors}");
}

#[test]
fn the_software_cpu() {
    check(&run("tcg"));
}

/// Whether this host is said to have no KVM.
fn has_no_kvm() -> bool {
    let none = std::env::var_os("RATITE_NO_KVM").is_some_and(|value| value == "1");
    if none {
        eprintln!("skipped: RATITE_NO_KVM=1 says that this host has no /dev/kvm");
    }
    none
}

#[test]
fn kvm() {
    if has_no_kvm() {
        return;
    }
    check(&run("kvm"));
    for irqchip in IRQCHIPS {
        check(&run(&format!("kvm,kernel-irqchip={irqchip}")));
    }
}

/// Stops, and gives the guest's ticks, which do not grow while it stands.
fn ticks_while_stopped(machine: &Machine, qmp: &mut Qmp) -> u64 {
    qmp.ok("stop", &json!({}));
    let ticks = machine.tick_page(qmp).ticks();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(machine.tick_page(qmp).ticks(), ticks);
    qmp.ok("cont", &json!({}));
    ticks
}

fn registers(qmp: &mut Qmp, cpu: u32) -> String {
    let arguments = json!({"command-line": "info registers", "cpu-index": cpu});
    let text = qmp.ok("human-monitor-command", &arguments);
    text.as_str().unwrap().to_owned()
}

fn reason(qmp: &mut Qmp, event: &str) -> Value {
    qmp.event(event)["data"]["reason"].clone()
}

/// A board with a disk and a balloon of these kinds, and two processors.
fn embedded_guest(accel: &str, board: &str, disk: &str, balloon: &str) -> (Machine, Qmp) {
    let folder = new_folder();
    std::fs::write(folder.path().join("disk.img"), vec![0; 1 << 20]).unwrap();
    let options = [
        "-accel",
        accel,
        "-M",
        board,
        "-m",
        "64",
        "-smp",
        "2",
        "-append",
        "disk=write",
        "-drive",
        "if=none,id=disk,format=raw,file={dir}/disk.img",
        "-device",
        &format!("{disk},drive=disk,id=disk0"),
        "-device",
        &format!("{balloon},id=balloon0"),
    ];
    let mut machine = Machine::start_in(folder, &options);
    machine.wait_for("Ratite guest: 64 MiB, 2 CPUs, command line 'disk=write'");
    machine.wait_for("disk: 2048 sectors (1 MiB)");
    machine.wait_for("balloon: up to 31 MiB");
    let qmp = machine.qmp();
    (machine, qmp)
}

/// Counts, stops and goes on, starts the other processor, takes NMIs and a wish of the balloon.
fn steer(machine: &mut Machine, qmp: &mut Qmp) {
    machine.wait_for("tick 4\r\n");
    machine.wait_for("disk counter 1\r\n");
    let kvm = qmp.ok("query-kvm", &json!({}));
    assert_eq!(kvm, json!({"enabled": true, "present": true}));
    let ticks = ticks_while_stopped(machine, qmp);
    machine.wait_for(&format!("tick {}\r\n", (ticks / 4 + 2) * 4));
    machine.type_line("cpus");
    machine.wait_for("cpu 0: boot CPU, APIC id 0");
    machine.wait_for("cpu 1: started, APIC id 1");
    assert_eq!(
        qmp.ok("query-cpus-fast", &json!({}))
            .as_array()
            .unwrap()
            .len(),
        2
    );
    wait_until("the second processor halts", || {
        let shown = registers(qmp, 1);
        shown.contains(" HLT=1") && shown.contains("EFER=0000000000000500")
    });
    qmp.ok("inject-nmi", &json!({}));
    machine.wait_for("NMI");
    qmp.ok("balloon", &json!({"value": 48 * MIB}));
    machine.wait_for("balloon: 16 MiB given away");
    // Interrupts of the serial line, and of whatever else there is, after all that.
    machine.type_line("nonsense");
    machine.wait_for("nonsense: not known");
    machine.wait_for("disk counter");
}

/// Machines with each kind of controllers, at the same time: most of it is waiting for the guest's seconds.
fn with_each_irqchip(test: impl Fn(String) + Sync) {
    if has_no_kvm() {
        return;
    }
    std::thread::scope(|scope| {
        for irqchip in IRQCHIPS {
            let test = &test;
            scope.spawn(move || test(format!("kvm,kernel-irqchip={irqchip}")));
        }
    });
}

#[test]
fn the_embedded_guest_on_a_pc() {
    with_each_irqchip(|accel| {
        let (mut machine, mut qmp) =
            embedded_guest(&accel, "pc", "virtio-blk-pci", "virtio-balloon-pci");
        steer(&mut machine, &mut qmp);
        qmp.ok("system_reset", &json!({}));
        assert_eq!(reason(&mut qmp, "RESET"), "host-qmp-system-reset");
        machine.wait_for("Ratite guest: 64 MiB, 2 CPUs");
        machine.wait_for("disk counter");
        machine.type_line("cpus");
        machine.wait_for("cpu 1: started, APIC id 1");
        for way in ["reboot", "triple"] {
            machine.type_line(way);
            assert_eq!(reason(&mut qmp, "RESET"), "guest-reset");
            machine.wait_for("tick 4\r\n");
        }
        qmp.ok("system_powerdown", &json!({}));
        machine.wait_for("power button");
        assert_eq!(reason(&mut qmp, "SHUTDOWN"), "guest-shutdown");
        machine.end();
        let disk = machine.file("disk.img");
        assert_eq!(disk[disk.len() - 512..][..8], *b"RATITEDC");
    });
}

#[test]
fn the_embedded_guest_on_a_microvm() {
    with_each_irqchip(|accel| {
        let (mut machine, mut qmp) = embedded_guest(
            &accel,
            "microvm",
            "virtio-blk-device",
            "virtio-balloon-device",
        );
        steer(&mut machine, &mut qmp);
        machine.type_line("poweroff");
        assert_eq!(reason(&mut qmp, "SHUTDOWN"), "guest-shutdown");
        machine.end();
    });
}

#[test]
fn the_first_that_there_is() {
    let output = run("hvf:kvm:tcg");
    check(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("invalid accelerator hvf"), "{errors}");
    assert!(errors.contains("falling back to "), "{errors}");
    let output = run("hvf");
    assert_eq!(output.status.code(), Some(1));
}
