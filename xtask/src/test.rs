//! `cargo xtask test`: everything that must hold before a change lands.
//!
//! Installs what the tests need (with apt-get as root; else it says the command), fetches the guests
//! that tests boot, then runs the checks from the quickest to the slowest. A tool that is missing is an
//! error that names its package.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The programs that tests talk to, and the Debian package of each.
const PEERS: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    // Since QEMU 8 in qemu-utils.
    ("qemu-storage-daemon", "qemu-system-common"),
    ("cpio", "cpio"),
    ("iasl", "acpica-tools"),
    ("dmidecode", "dmidecode"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("fio", "fio"),
    ("cc", "build-essential"),
    ("python3", "python3-venv"),
    ("pkg-config", "pkg-config"),
];

/// The libraries that optional features are built on: the name that pkg-config knows, and the
/// Debian package.
const LIBRARIES: &[(&str, &str)] = &[("openssl", "libssl-dev")];

/// The features that are off unless asked for. Lints and tests run with all of them; that a build
/// without them is right, too, is checked by itself.
const FEATURES: &str = "ratite/tls-anon-psk,export-nbd/tls-anon-psk";

/// The packages of PyPI that tests use, in an environment of their own below `target`.
const PYTHON_PACKAGES: &[&str] = &["qemu.qmp"];

pub fn run() -> Result<ExitCode> {
    install_packages()?;
    crate::test_guests::fetch()?;
    install_python_packages()?;
    let began = Instant::now();
    step("format", "cargo", &["fmt", "--all", "--check"])?;
    let tidy = crate::tidy::run()?;
    if tidy != ExitCode::SUCCESS {
        return Ok(tidy);
    }
    let stale = crate::codegen::run(&["--check".to_owned()])?;
    if stale != ExitCode::SUCCESS {
        bail!("generated code is stale: run 'cargo xtask codegen'");
    }
    step(
        "lints",
        "cargo",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            FEATURES,
            "--",
            "-D",
            "warnings",
        ],
    )?;
    step(
        "lints without features",
        "cargo",
        &["clippy", "--package", "ratite", "--", "-D", "warnings"],
    )?;
    step(
        "tests",
        "cargo",
        &[
            "test",
            "--workspace",
            "--features",
            FEATURES,
            "--no-fail-fast",
        ],
    )?;
    // Which types there are is decided in this crate.
    step(
        "tests without features",
        "cargo",
        &["test", "--package", "api", "--lib", "feature"],
    )?;
    println!("all checks passed in {} s", began.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

fn step<S: AsRef<OsStr>>(name: &str, program: &str, arguments: &[S]) -> Result<()> {
    println!("== {name}");
    let began = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .current_dir(crate::root()?)
        .env("RATITE_TEST_PYTHON", python()?)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{name} failed");
    }
    println!("== {name}: {} s", began.elapsed().as_secs());
    Ok(())
}

fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}

fn has_library(name: &str) -> bool {
    Command::new("pkg-config")
        .args(["--exists", name])
        .status()
        .is_ok_and(|status| status.success())
}

fn install_packages() -> Result<()> {
    let mut missing: Vec<&str> = PEERS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .chain(LIBRARIES.iter().filter(|(name, _)| !has_library(name)))
        .map(|(_, package)| *package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let is_root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout == b"0\n");
    if !is_root {
        bail!("the tests need more programs; as root: apt-get install -y {list}");
    }
    println!("== installing {list}");
    apt_get(&["update"])?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(&missing);
    apt_get(&arguments)
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed", arguments.join(" "));
    }
    Ok(())
}

/// The Python that has the packages of PyPI.
fn python() -> Result<std::path::PathBuf> {
    Ok(crate::root()?.join("target/test-python/bin/python3"))
}

fn install_python_packages() -> Result<()> {
    let python = python()?;
    let folder = python
        .parent()
        .and_then(Path::parent)
        .context("a folder for Python")?;
    let has_all = Command::new(&python)
        .args(["-c", "import qemu.qmp"])
        .output()
        .is_ok_and(|output| output.status.success());
    if has_all {
        return Ok(());
    }
    println!("== installing {} for Python", PYTHON_PACKAGES.join(" "));
    let made = Command::new("python3")
        .args(["-m", "venv"])
        .arg(folder)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        bail!("cannot make a Python environment; as root: apt-get install -y python3-venv");
    }
    let status = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet"])
        .args(PYTHON_PACKAGES)
        .status()
        .context("cannot run pip")?;
    if !status.success() {
        bail!("pip install {} failed", PYTHON_PACKAGES.join(" "));
    }
    Ok(())
}
