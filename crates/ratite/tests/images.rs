//! qcow2 images of every kind: what QEMU's tools made reads back identical through our export, and
//! what is written through us, QEMU's tools find in good order.
//!
//! The matrix is pairwise: each two values of two properties meet in some image. `RATITE_FULL=1`
//! makes each three meet.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod support;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use support::tools::{create_image, qemu_img, qemu_io, run, tool};
use support::{Daemon, Qmp, Random};

/// Daemons at work at the same time, each with its share of the images.
const WORKERS: usize = 3;
/// Candidates among which the next row of the matrix is chosen.
const CANDIDATES: usize = 150;
/// Size of the disks: no multiple of any cluster size, and several of the largest clusters.
const SIZE: u64 = (6 << 20) + 7 * 512;

/// Where an image's data is.
#[derive(Clone, Copy, PartialEq)]
enum DataFile {
    Within,
    External,
    /// External, and a raw image by itself.
    Raw,
}

/// The values of each property. The first of each is the plainest.
const COMPAT: &[&str] = &["1.1", "0.10"];
const CLUSTER_BITS: &[u32] = &[16, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21];
const REFCOUNT_BITS: &[u32] = &[16, 1, 2, 4, 8, 32, 64];
const EXTENDED_L2: &[bool] = &[false, true];
const COMPRESSION: &[&str] = &["zlib", "zstd"];
const DATA_FILE: &[DataFile] = &[DataFile::Within, DataFile::External, DataFile::Raw];
const BACKING_DEPTH: &[usize] = &[0, 1, 2, 3];
const PREALLOCATION: &[&str] = &["off", "metadata", "falloc", "full"];
const LAZY: &[bool] = &[false, true];

/// How many values each property has.
const COUNTS: [usize; 9] = [
    COMPAT.len(),
    CLUSTER_BITS.len(),
    REFCOUNT_BITS.len(),
    EXTENDED_L2.len(),
    COMPRESSION.len(),
    DATA_FILE.len(),
    BACKING_DEPTH.len(),
    PREALLOCATION.len(),
    LAZY.len(),
];

/// One image: for each property, which of its values.
#[derive(Clone, Copy)]
struct Row([usize; COUNTS.len()]);

impl Row {
    fn compat(self) -> &'static str {
        COMPAT[self.0[0]]
    }

    fn cluster_bytes(self) -> u64 {
        1 << CLUSTER_BITS[self.0[1]]
    }

    fn refcount_bits(self) -> u32 {
        REFCOUNT_BITS[self.0[2]]
    }

    fn is_extended(self) -> bool {
        EXTENDED_L2[self.0[3]]
    }

    fn compression(self) -> &'static str {
        COMPRESSION[self.0[4]]
    }

    fn data_file(self) -> DataFile {
        DATA_FILE[self.0[5]]
    }

    fn backing_depth(self) -> usize {
        BACKING_DEPTH[self.0[6]]
    }

    fn preallocation(self) -> &'static str {
        PREALLOCATION[self.0[7]]
    }

    fn is_lazy(self) -> bool {
        LAZY[self.0[8]]
    }

    /// Whether there can be such an image.
    fn is_possible(self) -> bool {
        let is_version_3 = self.compat() == "1.1";
        let needs_version_3 = self.refcount_bits() != 16
            || self.is_extended()
            || self.compression() != "zlib"
            || self.data_file() != DataFile::Within
            || self.is_lazy();
        let has_backing = self.backing_depth() > 0;
        let is_preallocated = self.preallocation() != "off";
        (is_version_3 || !needs_version_3)
            // Subclusters have at least 512 bytes, and there are 32 of them.
            && (!self.is_extended() || self.cluster_bytes() >= 32 * 512)
            && !(has_backing && is_preallocated)
            && !(has_backing && self.data_file() == DataFile::Raw)
            // Data files of raw images have all their clusters from the start.
            && (self.data_file() != DataFile::Raw || is_preallocated)
    }

    fn options(self, folder: &Path) -> String {
        let mut options = format!(
            "compat={},cluster_size={},preallocation={}",
            self.compat(),
            self.cluster_bytes(),
            self.preallocation()
        );
        if self.compat() == "1.1" {
            options += &format!(
                ",refcount_bits={},extended_l2={},compression_type={},lazy_refcounts={}",
                self.refcount_bits(),
                on_off(self.is_extended()),
                self.compression(),
                on_off(self.is_lazy())
            );
        }
        if self.data_file() != DataFile::Within {
            options += &format!(
                ",data_file={}/data,data_file_raw={}",
                folder.display(),
                on_off(self.data_file() == DataFile::Raw)
            );
        }
        options
    }
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// Values of `strength` properties, which are to meet in some image.
type Meeting = Vec<(usize, usize)>;

fn meetings(row: Row, strength: usize) -> Vec<Meeting> {
    let mut all: Vec<Meeting> = vec![Vec::new()];
    for property in 0..COUNTS.len() {
        let more: Vec<Meeting> = all
            .iter()
            .filter(|meeting| meeting.len() < strength)
            .map(|meeting| {
                let mut meeting = meeting.clone();
                meeting.push((property, row.0[property]));
                meeting
            })
            .collect();
        all.extend(more);
    }
    all.retain(|meeting| meeting.len() == strength);
    all
}

/// Every possible image.
fn all_rows() -> Vec<Row> {
    let mut rows = vec![Row([0; COUNTS.len()])];
    for (property, count) in COUNTS.iter().enumerate() {
        rows = rows
            .into_iter()
            .flat_map(|row| {
                (0..*count).map(move |value| {
                    let mut row = row;
                    row.0[property] = value;
                    row
                })
            })
            .collect();
    }
    rows.retain(|row| row.is_possible());
    rows
}

/// Images in which all possible meetings of `strength` values occur.
fn matrix(strength: usize) -> Vec<Row> {
    let rows = all_rows();
    let mut random = Random(1);
    let mut open: HashSet<Meeting> = HashSet::new();
    for row in &rows {
        open.extend(meetings(*row, strength));
    }
    let mut chosen = Vec::new();
    while let Some(next) = open.iter().min().cloned() {
        // Among images that have the next open meeting, one that has many others as well.
        let able: Vec<&Row> = rows
            .iter()
            .filter(|row| {
                next.iter()
                    .all(|(property, value)| row.0[*property] == *value)
            })
            .collect();
        let best = (0..CANDIDATES)
            .map(|_| *able[usize::try_from(random.below(able.len() as u64)).unwrap()])
            .max_by_key(|row| {
                let meetings = meetings(*row, strength);
                meetings
                    .iter()
                    .filter(|meeting| open.contains(*meeting))
                    .count()
            })
            .expect("candidates");
        for meeting in meetings(best, strength) {
            open.remove(&meeting);
        }
        chosen.push(best);
    }
    chosen
}

#[test]
fn every_kind_of_image_reads_and_writes_alike() {
    let strength = if support::is_full() { 3 } else { 2 };
    let rows = matrix(strength);
    eprintln!("{} images", rows.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let worker = Worker::new();
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    worker.test(*row, next.load(Ordering::Relaxed) as u64);
                }
                worker.daemon.quit();
            });
        }
    });
}

/// A daemon, and a folder in it for one image after the other.
struct Worker {
    daemon: Daemon,
}

impl Worker {
    fn new() -> Self {
        let daemon = Daemon::start(&["--nbd-server", "addr.type=unix,addr.path={dir}/nbd.sock"]);
        Self { daemon }
    }

    fn test(&self, row: Row, seed: u64) {
        let folder = self.daemon.path("image");
        fs::create_dir(&folder).expect("a new folder");
        let test = Case {
            row,
            folder,
            uri: self.daemon.nbd_uri("disk"),
        };
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            test.run(&mut self.daemon.qmp(), seed);
        }));
        if let Err(panic) = said {
            eprintln!("the image was made with {}", row.options(&test.folder));
            eprintln!("and {} backing images, seed {seed}", row.backing_depth());
            std::panic::resume_unwind(panic);
        }
        fs::remove_dir_all(&test.folder).expect("the folder");
    }
}

/// One image under test.
struct Case {
    row: Row,
    folder: PathBuf,
    uri: String,
}

impl Case {
    fn at(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn run(&self, qmp: &mut Qmp, seed: u64) {
        let mut random = Random(seed);
        self.make(&mut random);
        let (image, model) = (self.at("top.qcow2"), self.at("model.raw"));
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &image, &model]);

        // Reading what QEMU made.
        self.serve(qmp, false);
        self.compare_export();
        self.close(qmp);

        // Writing, to the image through us and to the model.
        self.serve(qmp, true);
        let commands = guest_writes(&mut random);
        qemu_io("raw", &self.uri, &commands);
        qemu_io("raw", &model, &commands);
        self.compare_export();
        self.close(qmp);

        let mut check = tool("qemu-img");
        let text = run(check.args(["check", "-f", "qcow2", &image]));
        assert!(text.contains("No errors were found"), "{text}");
        qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw", &image, &model]);
        if self.row.data_file() == DataFile::Raw {
            let data = self.at("data");
            qemu_img(&["compare", "-q", "-f", "raw", "-F", "raw", &data, &model]);
        }

        // And reading again what we wrote.
        self.serve(qmp, false);
        self.compare_export();
        self.close(qmp);
    }

    fn compare_export(&self) {
        let model = self.at("model.raw");
        qemu_img(&["compare", "-q", "-f", "raw", "-F", "raw", &self.uri, &model]);
    }

    /// Makes the chain of images, with QEMU's tools, from the base to the top.
    fn make(&self, random: &mut Random) {
        let depth = self.row.backing_depth();
        let mut below: Option<(String, &str)> = None;
        for level in (1..=depth).rev() {
            // The lowest one is raw or of version 2, and shorter than what stands above it.
            let (name, format, options, size) = match level {
                3 => (
                    "base.raw".to_owned(),
                    "raw",
                    String::new(),
                    SIZE / 2 / 512 * 512,
                ),
                2 => (
                    "old.qcow2".to_owned(),
                    "qcow2",
                    "compat=0.10".to_owned(),
                    SIZE - 512,
                ),
                _ => {
                    let options = "extended_l2=on,cluster_size=128k".to_owned();
                    ("extended.qcow2".to_owned(), "qcow2", options, SIZE)
                }
            };
            self.make_image(&name, format, &options, size, below.as_ref());
            qemu_io(
                format,
                &self.at(&name),
                &host_writes(random, size, None, format != "raw"),
            );
            below = Some((name, format));
        }
        let options = self.row.options(&self.folder);
        self.make_image("top.qcow2", "qcow2", &options, SIZE, below.as_ref());
        // Only clusters that have no place yet can be written compressed.
        let can_compress =
            self.row.data_file() == DataFile::Within && self.row.preallocation() == "off";
        let compressed = can_compress.then(|| self.row.cluster_bytes());
        qemu_io(
            "qcow2",
            &self.at("top.qcow2"),
            &host_writes(random, SIZE, compressed, true),
        );
    }

    fn make_image(
        &self,
        name: &str,
        format: &str,
        options: &str,
        size: u64,
        below: Option<&(String, &str)>,
    ) {
        let mut options = options.to_owned();
        if let Some((backing, backing_format)) = below {
            // A relative name, which our daemon finds beside the image.
            options += &format!(",backing_file={backing},backing_fmt={backing_format}");
        }
        let options = options.trim_start_matches(',');
        create_image(&self.folder.join(name), format, options, &size.to_string());
    }

    fn serve(&self, qmp: &mut Qmp, writable: bool) {
        qmp.ok(
            "blockdev-add",
            &json!({
                "driver": "qcow2", "node-name": "disk", "read-only": !writable,
                "discard": "unmap",
                "file": {"driver": "file", "filename": self.at("top.qcow2"), "discard": "unmap"},
            }),
        );
        let export = json!({"type": "nbd", "id": "disk", "node-name": "disk", "name": "disk",
            "writable": writable});
        qmp.ok("block-export-add", &export);
    }

    fn close(&self, qmp: &mut Qmp) {
        // The client is gone, of which the daemon may hear a little later.
        qmp.ok("block-export-del", &json!({"id": "disk", "mode": "hard"}));
        qmp.event("BLOCK_EXPORT_DELETED");
        qmp.ok("blockdev-del", &json!({"node-name": "disk"}));
    }
}

/// A range of the disk, at odd offsets, mostly short.
fn range(random: &mut Random, size: u64, unit: u64) -> (u64, u64) {
    let units = size / unit;
    let start = random.below(units);
    let longest = [8, 64, 400, 3000][usize::try_from(random.below(4)).unwrap()] * 512 / unit;
    let length = (1 + random.below(longest.max(1))).min(units - start);
    (start * unit, length * unit)
}

/// What QEMU writes: data, zeroes, discards, and compressed clusters of the given size.
fn host_writes(
    random: &mut Random,
    size: u64,
    compressed: Option<u64>,
    can_discard: bool,
) -> Vec<String> {
    let mut commands = Vec::new();
    if let Some(cluster) = compressed {
        // Each once: what is written must have no place yet.
        let clusters: BTreeSet<u64> = (0..6).map(|_| random.below(size / cluster)).collect();
        for index in clusters {
            let pattern = 1 + random.below(255);
            commands.push(format!(
                "write -c -P {pattern} {} {cluster}",
                index * cluster
            ));
        }
        // The last cluster is not a whole one.
        let start = size / cluster * cluster;
        commands.push(format!("write -c -P 77 {start} {}", size - start));
    }
    for _ in 0..14 {
        let (start, length) = range(random, size, 512);
        let pattern = 1 + random.below(255);
        commands.push(match random.below(8) {
            0 => format!("write -z {start} {length}"),
            1 => format!("write -z -u {start} {length}"),
            2 if can_discard => format!("discard {start} {length}"),
            _ => format!("write -P {pattern} {start} {length}"),
        });
    }
    commands
}

/// What a guest writes through us, which ends alike on any disk.
fn guest_writes(random: &mut Random) -> Vec<String> {
    let mut commands = Vec::new();
    for _ in 0..24 {
        let (start, length) = range(random, SIZE, 512);
        let pattern = 1 + random.below(255);
        match random.below(8) {
            0 => commands.push(format!("write -z {start} {length}")),
            1 => commands.push(format!("write -z -u {start} {length}")),
            2 => {
                // What is discarded holds anything until it is written again.
                commands.push(format!("discard {start} {length}"));
                commands.push(format!("write -z {start} {length}"));
            }
            3 => commands.push(format!("write -f -P {pattern} {start} {length}")),
            // Not even whole sectors.
            4 if length > 600 => {
                commands.push(format!(
                    "write -P {pattern} {} {}",
                    start + 77,
                    length - 200
                ));
            }
            _ => commands.push(format!("write -P {pattern} {start} {length}")),
        }
    }
    // The first byte and the last.
    commands.push("write -P 1 0 1".to_owned());
    commands.push(format!("write -P 2 {} 1", SIZE - 1));
    commands.push("flush".to_owned());
    commands
}
