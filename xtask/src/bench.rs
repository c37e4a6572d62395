//! `cargo xtask bench [--profile PROFILE] [ROW...]`: builds Ratite and the benchmarks, and runs them.
//!
//! Everything behind the profile goes to the program in `benches/`; `--help` says what there is.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

/// What is measured against, and the Debian package of each.
const PEERS: [(&str, &str); 2] = [
    ("qemu-storage-daemon", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
];

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let (profile, rest) = match arguments {
        [option, profile, rest @ ..] if option == "--profile" => (profile.as_str(), rest),
        all => ("release", all),
    };
    for (program, package) in PEERS {
        if Command::new(program).arg("--version").output().is_err() {
            bail!("{program} is missing; as root: apt-get install -y {package}");
        }
    }
    crate::test_guests::fetch()?;
    let root = crate::root()?;
    let build = ["build", "--profile", profile, "-p", "ratite", "-p", "bench"];
    let built = Command::new("cargo")
        .args(build)
        .args(["--bin", "ratite", "--bin", "bench"])
        .current_dir(&root)
        .status()
        .context("cannot run cargo")?;
    if !built.success() {
        bail!("the build failed");
    }
    let status = Command::new("cargo")
        .args(["run", "--quiet", "--profile", profile, "-p", "bench", "--"])
        .args(rest)
        .current_dir(&root)
        .status()
        .context("cannot run cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
