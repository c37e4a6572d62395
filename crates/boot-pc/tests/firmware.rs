//! Firmware that others wrote takes the tables from fw_cfg and links them: SeaBIOS, on QEMU's
//! machine without ACPI of its own. The embedded guest then finds them by the root pointer.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use boot_pc::acpi::{AcpiDescription, AcpiTables};

#[test]
fn seabios_links_the_tables() {
    // SeaBIOS on QEMU: in the long form only, which needs the Debian package qemu-system-x86.
    if std::env::var_os("RATITE_FULL").is_none_or(|value| value == "0") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("ratite-firmware-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let kernel = folder.join("guest.elf");
    std::fs::write(&kernel, guest_payload::image().unwrap()).unwrap();
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-M",
            "pc,acpi=off",
            "-accel",
            "tcg",
            "-m",
            "64",
            "-nodefaults",
        ])
        .args(["-display", "none", "-serial", "stdio", "-kernel"])
        .arg(&kernel);
    // Five CPUs, as only our tables say.
    let description = AcpiDescription::pc((0..5).collect(), 0xe000_0000..0xfec0_0000);
    for (name, bytes) in AcpiTables::new(&description).unwrap().firmware_files() {
        let path = folder.join(name.replace('/', "-"));
        std::fs::write(&path, bytes).unwrap();
        let option = format!("name={name},file={}", path.display());
        command.arg("-fw_cfg").arg(option);
    }
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut qemu = spawned.unwrap_or_else(|error| {
        panic!("cannot run qemu-system-x86_64: {error}; install the Debian package qemu-system-x86")
    });
    let output = BufReader::new(qemu.stdout.take().unwrap());
    let said: Vec<String> = output.lines().take(1).map(Result::unwrap).collect();
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(said, ["Ratite guest: 64 MiB, 5 CPUs, command line ''"]);
}
