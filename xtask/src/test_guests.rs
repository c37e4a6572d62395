//! Kernels and firmware that others built, for tests to boot: Debian packages below
//! `target/test-guests`. They are fetched and unpacked, as any user, and not installed: nothing of
//! the host changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What the default form of the tests boots. A package that only depends on the newest one of its
/// kind is behind a `>`.
const PACKAGES: &[&str] = &[">linux-image-cloud-amd64", "busybox-static"];

/// What the long form boots besides.
const LONG_FORM_PACKAGES: &[&str] = &["memtest86+", "debian-installer-12-netboot-amd64", "seabios"];

/// Fetches and unpacks what is not there yet.
pub fn fetch() -> Result<()> {
    let guests = crate::root()?.join("target/test-guests");
    fs::create_dir_all(guests.join("packages")).context("a folder for packages")?;
    let is_full = std::env::var_os("RATITE_FULL").is_some_and(|value| value != "0");
    let long_form = LONG_FORM_PACKAGES.iter().filter(|_| is_full);
    for package in PACKAGES.iter().chain(long_form) {
        let fetched = match package.strip_prefix('>') {
            // Once there is one, it is good for ever.
            Some(package) if find(&guests, "linux-image-")?.is_none() => {
                fetch_package(&guests, &newest(package)?)
            }
            Some(_) => Ok(()),
            None => fetch_package(&guests, package),
        };
        fetched.with_context(|| format!("package {package}, a guest of the tests"))?;
    }
    Ok(())
}

/// The package that one of this name stands for today.
fn newest(package: &str) -> Result<String> {
    let text = output(Path::new("."), "apt-cache", &["depends", package])?;
    let depends = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"));
    depends
        .map(str::to_owned)
        .with_context(|| format!("{package} depends on no kernel; as root: apt-get update"))
}

/// The file of a package that has been unpacked, by how its name begins.
fn find(guests: &Path, beginning: &str) -> Result<Option<PathBuf>> {
    let folder = guests.join("packages");
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let entry = entry.with_context(|| folder.display().to_string())?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(beginning) && name.ends_with(".deb") {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn fetch_package(guests: &Path, package: &str) -> Result<()> {
    let beginning = format!("{package}_");
    if find(guests, &beginning)?.is_some() {
        return Ok(());
    }
    println!("== fetching {package}");
    // What is installed may be of no source that is known now: the newest that has one.
    let versions = output(Path::new("."), "apt-cache", &["madison", package])?;
    let version = versions.split('|').nth(1).map(str::trim);
    let version = version.context("no source has it; as root: apt-get update")?;
    let arriving = guests.join("arriving");
    if arriving.exists() {
        fs::remove_dir_all(&arriving).with_context(|| arriving.display().to_string())?;
    }
    fs::create_dir_all(&arriving).with_context(|| arriving.display().to_string())?;
    let wanted = format!("{package}={version}");
    output(&arriving, "apt-get", &["download", &wanted])?;
    let file = fs::read_dir(&arriving)?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&beginning))
        .context("apt-get download left no package")?;
    let root = guests.join("root");
    let (from, to) = (file.path(), root.display().to_string());
    output(guests, "dpkg", &["-x", &from.display().to_string(), &to])?;
    // Now that it is unpacked.
    fs::rename(&from, guests.join("packages").join(file.file_name()))
        .context("cannot keep the package")?;
    Ok(())
}

fn output(folder: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
