//! `cargo xtask soak [SECONDS [TARGET...]]`: fuzz targets under libFuzzer, one after the other.
//!
//! What it finds stands in `fuzz/artifacts`. New inputs go to `fuzz/corpus.found`, which is not
//! kept; what is worth keeping is moved to `fuzz/corpus` by hand.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

/// The binaries of `fuzz/Cargo.toml`, and the longest input of each in bytes.
const TARGETS: &[(&str, u32)] = &[
    ("qapi_text", 4096),
    ("qmp_bytes", 4096),
    ("qcow2_image", 65_536),
    ("nbd_client_bytes", 4096),
    ("kernel_image", 8192),
    ("option_text", 1024),
    ("pc_registers", 8192),
    ("virtio_driver", 4096),
];

/// How long one input may take before it counts as a hang.
const INPUT_SECONDS_MAX: u32 = 20;
/// How much memory a target may take.
const MEMORY_MIB_MAX: u32 = 2048;

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let (seconds, wanted): (u32, _) = match arguments.split_first() {
        None => (60, arguments),
        Some((text, wanted)) => {
            let seconds = text.parse();
            let seconds = seconds.with_context(|| format!("'{text}' is no number of seconds"))?;
            (seconds, wanted)
        }
    };
    if let Some(unknown) = wanted.iter().find(|name| !is_target(name)) {
        bail!("there is no fuzz target '{unknown}'");
    }
    require(
        "nightly Rust",
        &["+nightly", "--version"],
        "rustup toolchain install nightly",
    )?;
    require(
        "cargo-fuzz",
        &["+nightly", "fuzz", "--version"],
        "cargo install cargo-fuzz --locked",
    )?;
    let root = crate::root()?;
    let mut failed = Vec::new();
    for (target, longest) in TARGETS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == target) {
            continue;
        }
        println!("== {target}, {seconds} s");
        let found = root.join("fuzz/corpus.found").join(target);
        std::fs::create_dir_all(&found)
            .with_context(|| format!("cannot make {}", found.display()))?;
        let status = Command::new("cargo")
            // Without a sanitizer there are several times more inputs; unsafe code is in host-io only.
            .args(["+nightly", "fuzz", "run", "--sanitizer=none", target])
            .arg(&found)
            .arg(root.join("fuzz/corpus").join(target))
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={longest}"))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
            .arg("-print_final_stats=1")
            .current_dir(&root)
            .status()
            .context("cannot run cargo")?;
        if !status.success() {
            failed.push(*target);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "failed: {}; the inputs are in fuzz/artifacts",
        failed.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

fn is_target(name: &str) -> bool {
    TARGETS.iter().any(|(target, _)| *target == name)
}

/// Says how to get what is missing; installs nothing.
fn require(what: &str, probe: &[&str], install: &str) -> Result<()> {
    let found = Command::new("cargo")
        .args(probe)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    if !found.success() {
        bail!("{what} is missing: run '{install}'");
    }
    Ok(())
}
