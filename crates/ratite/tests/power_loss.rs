//! `kill -9` in the middle of a verified write load: no corruption, and nothing that was flushed
//! is lost.
//!
//! `scripts/power_loss.py` writes over two connections and remembers what was acknowledged and
//! flushed. After each kill, QEMU's tools judge the image, and often the next daemon goes on with
//! it. `RATITE_FULL=1` kills 200 times instead of 20; `RATITE_SEED` repeats a run's choices.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use support::tools::{self, create_image, qemu_img, run, tool};
use support::{Daemon, Random, new_folder};
use tempfile::TempDir;

/// How many kills there are, over all variants.
const KILLS: u32 = 20;
const KILLS_FULL: u32 = 200;
/// How many variants there are: each is a test below.
const VARIANTS: u32 = 10;

/// Size of the disk, in bytes; large enough that clusters are allocated until the end.
const SIZE: u64 = 128 << 20;
/// Size of what is prepared below or within the image.
const PREPARED: u64 = 24 << 20;

/// When the power fails after the load has begun, in milliseconds.
const EARLIEST_MS: u64 = 5;
const LATEST_MS: u64 = 700;

/// What the image is like.
struct Variant {
    name: &'static str,
    options: &'static str,
    start: Start,
}

/// What the disk holds at first.
#[derive(PartialEq)]
enum Start {
    Zero,
    /// The pattern, from a backing image.
    Backing,
    /// The pattern, in compressed clusters.
    Compressed,
}

#[test]
fn default_image() {
    test(&Variant {
        name: "default",
        options: "",
        start: Start::Zero,
    });
}

#[test]
fn small_clusters() {
    let options = "cluster_size=4k,refcount_bits=1";
    test(&Variant {
        name: "small",
        options,
        start: Start::Zero,
    });
}

#[test]
fn smallest_clusters() {
    let options = "cluster_size=512,refcount_bits=64";
    test(&Variant {
        name: "smallest",
        options,
        start: Start::Zero,
    });
}

#[test]
fn lazy_refcounts() {
    test(&Variant {
        name: "lazy",
        options: "lazy_refcounts=on",
        start: Start::Zero,
    });
}

#[test]
fn extended_l2() {
    test(&Variant {
        name: "extended",
        options: "extended_l2=on",
        start: Start::Zero,
    });
}

#[test]
fn extended_l2_over_a_backing_image() {
    let options = "extended_l2=on,cluster_size=128k,lazy_refcounts=on";
    test(&Variant {
        name: "extended-backing",
        options,
        start: Start::Backing,
    });
}

#[test]
fn over_a_backing_image() {
    test(&Variant {
        name: "backing",
        options: "",
        start: Start::Backing,
    });
}

#[test]
fn over_compressed_clusters() {
    let options = "compression_type=zstd";
    test(&Variant {
        name: "compressed",
        options,
        start: Start::Compressed,
    });
}

#[test]
fn version_2() {
    test(&Variant {
        name: "v2",
        options: "compat=0.10",
        start: Start::Backing,
    });
}

#[test]
fn external_data_file() {
    test(&Variant {
        name: "data-file",
        options: "data_file=data.raw",
        start: Start::Zero,
    });
}

fn test(variant: &Variant) {
    let kills = if support::is_full() {
        KILLS_FULL
    } else {
        KILLS
    };
    let seed = support::seed();
    eprintln!("RATITE_SEED={seed}");
    let mut random = Random(seed);
    let mut disk = Disk::new(variant);
    for kill in 0..kills.div_ceil(VARIANTS) {
        // Some losses hit an image that has been through some.
        if kill > 0 && random.below(2) == 0 {
            disk = Disk::new(variant);
        }
        disk = disk.lose_power(&mut random);
        disk.judge();
    }
}

/// An image, and what is known about its content.
struct Disk<'a> {
    variant: &'a Variant,
    folder: TempDir,
}

impl<'a> Disk<'a> {
    fn new(variant: &'a Variant) -> Self {
        let disk = Self {
            variant,
            folder: new_folder(),
        };
        let starts_zero = variant.start == Start::Zero;
        disk.script(&[
            "fresh",
            &disk.at("state"),
            if starts_zero { "zero" } else { "pattern" },
        ]);
        let size = match variant.start {
            Start::Zero => SIZE,
            Start::Backing | Start::Compressed => PREPARED,
        };
        if !starts_zero {
            disk.script(&["prepare", &disk.at("base.raw"), &size.to_string()]);
        }
        match variant.start {
            Start::Zero => {
                // A relative name of a data file is relative to the current folder when created.
                let options = variant.options.replace("data.raw", &disk.at("data.raw"));
                create_image(&disk.image(), "qcow2", &options, &size.to_string());
            }
            Start::Backing => {
                let backing = format!("backing_file={},backing_fmt=raw", disk.at("base.raw"));
                let options = [variant.options, &backing].join(",");
                create_image(
                    &disk.image(),
                    "qcow2",
                    options.trim_start_matches(','),
                    "24M",
                );
            }
            Start::Compressed => {
                let (base, image) = (disk.at("base.raw"), disk.at("disk.qcow2"));
                let convert = [
                    "convert",
                    "-c",
                    "-f",
                    "raw",
                    "-O",
                    "qcow2",
                    "-o",
                    variant.options,
                ];
                run(tool("qemu-img").args(convert).args([base, image]));
            }
        }
        disk
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk.qcow2")
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn script(&self, arguments: &[&str]) {
        let mut command = tools::python_with_nbd();
        let output = tools::output(command.arg(tools::script("power_loss.py")).args(arguments));
        if !output.status.success() {
            let kept = keep(self.folder.path());
            panic!(
                "{}: {}\nthe folder is kept in {kept}",
                self.variant.name,
                tools::describe(&command, &output)
            );
        }
    }

    /// Starts a daemon and a load, and kills the daemon at a random moment.
    fn lose_power(self, random: &mut Random) -> Self {
        let daemon = Daemon::start_in(
            self.folder,
            &[
                "--blockdev",
                "driver=file,node-name=file,filename={dir}/disk.qcow2,discard=unmap",
                "--blockdev",
                "driver=qcow2,node-name=disk,file=file,discard=unmap",
                "--nbd-server",
                "addr.type=unix,addr.path={dir}/nbd.sock",
                "--export",
                "type=nbd,id=disk,node-name=disk,name=disk,writable=on",
            ],
        );
        let mut load = Load::start(daemon.folder(), random.next());
        let delay_ms = EARLIEST_MS + random.below(LATEST_MS - EARLIEST_MS);
        std::thread::sleep(Duration::from_millis(delay_ms));
        let said = daemon.stderr();
        let folder = daemon.kill();
        let summary = load.finish();
        eprintln!("{} after {delay_ms} ms: {summary}", self.variant.name);
        assert!(said.is_empty(), "the daemon said {said}");
        let disk = Self {
            variant: self.variant,
            folder,
        };
        // The kernel takes down a dead process's io_uring, and lets go of its files, a little
        // after the process has been waited for.
        support::wait_until("the image is unlocked", || {
            let image = disk.at("disk.qcow2");
            tools::output(tool("qemu-img").args(["info", &image]))
                .status
                .success()
        });
        disk
    }

    /// QEMU's tools find no corruption, and all that was flushed.
    fn judge(&self) {
        let image = self.at("disk.qcow2");
        let is_lazy = self.variant.options.contains("lazy_refcounts=on");
        let judged = if is_lazy {
            // Reference counts are repaired at the next opening: here in a copy, so that our own
            // daemon has them to repair too.
            let copy = self.at("copy.qcow2");
            std::fs::copy(&image, &copy).expect("a copy of the image");
            tools::output(tool("qemu-img").args(["check", "-q", "-r", "all", &copy]));
            copy
        } else {
            image
        };
        let mut check = tool("qemu-img");
        let output = tools::output(check.args(["check", &judged]));
        // 3: there are leaks, and nothing else.
        if !matches!(output.status.code(), Some(0 | 3)) {
            let kept = keep(self.folder.path());
            panic!(
                "{}: {}\nthe folder is kept in {kept}",
                self.variant.name,
                tools::describe(&check, &output)
            );
        }
        let raw = self.at("content.raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &judged, &raw]);
        self.script(&["check", &raw, &self.at("state")]);
    }
}

/// Moves the files of a failed test to where they stay; that folder.
fn keep(folder: &Path) -> String {
    let kept = tempfile::Builder::new()
        .prefix("ratite-lost-")
        .tempdir_in("/tmp")
        .unwrap()
        .keep();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(folder.join("."))
        .arg(&kept)
        .status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "cannot keep {}",
        folder.display()
    );
    kept.display().to_string()
}

/// The client that writes.
struct Load {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Load {
    fn start(folder: &Path, seed: u64) -> Self {
        let mut child = tools::python_with_nbd()
            .arg(tools::script("power_loss.py"))
            .arg("load")
            .arg(folder.join("nbd.sock"))
            .arg(seed.to_string())
            .arg(folder.join("state"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the load starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line of the load");
        assert_eq!(line, "started\n");
        Self { child, stdout }
    }

    /// Waits for its end; what it says about itself.
    fn finish(&mut self) -> String {
        let mut line = String::new();
        self.stdout
            .read_line(&mut line)
            .expect("a line of the load");
        let status = support::wait_for_end(&mut self.child, "the load");
        assert!(status.success(), "the load failed: {status}");
        line.trim_end().to_owned()
    }
}
