//! Builds the guest in `guest/` with the compiler and linker that build everything else: `core` of
//! an x86-64 Linux host runs without an operating system too. Elsewhere there is no guest.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    println!("cargo::rustc-check-cfg=cfg(has_guest)");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let host = variable("HOST");
    if !(host.starts_with("x86_64-") && host.contains("-linux-")) {
        return;
    }
    let image = PathBuf::from(variable("OUT_DIR")).join("guest.elf");
    match build(&variable("RUSTC"), &variable("RUSTC_LINKER"), &host, &image) {
        Ok(()) => println!("cargo::rustc-cfg=has_guest"),
        // One line each, as cargo wants it.
        Err(reason) => reason
            .lines()
            .for_each(|line| println!("cargo::error={line}")),
    }
}

fn build(rustc: &str, linker: &str, host: &str, image: &Path) -> Result<(), String> {
    let linker = if linker.is_empty() { "cc" } else { linker };
    let script = std::env::current_dir()
        .map_err(|error| format!("no current folder: {error}"))?
        .join("guest/link.ld");
    let mut command = Command::new(rustc);
    command
        .args([
            "guest/main.rs",
            "--crate-name",
            "guest",
            "--crate-type",
            "bin",
        ])
        .args(["--edition", "2024", "--target", host])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "lto=fat"])
        .args(["-C", "codegen-units=1", "-C", "strip=symbols"])
        // No overflow checks: the guest has nobody to complain to, and its room is small.
        .args(["-C", "relocation-model=static", "-C", "no-redzone=yes"])
        .args(["-C", "target-cpu=x86-64", "-C", "force-unwind-tables=no"])
        // Hosts whose KVM emulates the guest know no SSE. Without it the ABI for floating-point numbers is another one,
        // which rustc warns of (rust-lang/rust#116344); the guest has none, and all of it is compiled in one piece.
        .args(["-C", "target-feature=-sse"])
        .args(["-C", &format!("linker={linker}")])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"])
        .args([
            "-C",
            "link-arg=-static",
            "-C",
            "link-arg=-Wl,--build-id=none",
        ])
        .args(["-C", "link-arg=-Wl,-z,max-page-size=4096,-z,norelro"])
        .args(["-C", &format!("link-arg=-Wl,-T,{}", script.display())])
        .arg("-o")
        .arg(image);
    let output = command
        .output()
        .map_err(|error| format!("cannot run {rustc}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "the embedded guest does not build (cc is in the package build-essential):\n{said}"
    ))
}
