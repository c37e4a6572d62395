//! Power failures at every write and flush of every metadata operation.
//!
//! A sequence of operations runs once over storage that records; from the record, what a disk
//! could hold after a failure at each point is made, with none, all, and parts of what was not
//! flushed. Each of these images must have no corruption (leaks are allowed), and every byte must
//! be what was flushed last, or something that was written since.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use block_doubles::{Change, Log, Rng, Storage, Survivors};
use block_graph::{Node, Preallocation, WriteFlags};
use block_qcow2::{CompressionType, OpenOptions};

use crate::model::Model;
use crate::reference;
use crate::support::{Disk, Variant, bytes, noise, run, small_caches};

/// What a guest may find: its view after each operation.
pub struct History {
    pub contents: Vec<Vec<u8>>,
}

/// Marks in the log: operation `n` begins; the flush that is operation `n` has ended.
fn begins(n: usize) -> u64 {
    n as u64 * 2
}

fn flushed(n: usize) -> u64 {
    n as u64 * 2 + 1
}

/// What was done to an image's file, and to its data file if it has one.
pub struct Logs {
    file: Log,
    data: Option<Log>,
}

/// What a crash leaves: of the image's file and of the data file.
#[derive(Clone, Copy, Debug)]
pub struct Left(Survivors, Survivors);

impl Logs {
    pub fn record(disk: &Disk) {
        let clock = Arc::<AtomicU64>::default();
        disk.file.record_by(Arc::clone(&clock));
        if let Some(data) = &disk.data {
            data.record_by(clock);
        }
    }

    pub fn take(disk: &Disk) -> Self {
        Self {
            file: disk.file.take_log(),
            data: disk.data.as_ref().map(Storage::take_log),
        }
    }

    /// The times before which the power may fail, where that makes a difference.
    pub fn times(&self) -> Vec<u64> {
        let mut all: Vec<_> = [Some(&self.file), self.data.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|log| log.times.iter().zip(&log.changes))
            .map(|(time, change)| (*time, !matches!(change, Change::Mark(_) | Change::Flush)))
            .collect();
        all.sort_unstable();
        // Before the first change, after each that changes something, and at the end.
        let last = all.last().map_or(0, |(time, _)| time + 1);
        let after = all.into_iter().filter(|(_, is_change)| *is_change);
        let mut times: Vec<_> = after.map(|(time, _)| time + 1).collect();
        times.insert(0, 0);
        times.push(last);
        times.dedup();
        times
    }

    pub fn pending_at(&self, time: u64) -> usize {
        let pending = |log: &Log| log.pending_at(log.first_at(time));
        pending(&self.file) + self.data.as_ref().map_or(0, pending)
    }

    pub fn crash_at(&self, time: u64, left: Left, disk: &Disk) -> Disk {
        let crash =
            |log: &Log, survivors| Storage::new(log.crash_at(log.first_at(time), survivors));
        Disk {
            file: crash(&self.file, left.0),
            data: self.data.as_ref().map(|log| crash(log, left.1)),
            backing: disk.backing.clone(),
        }
    }

    /// What a crash may leave: all or nothing, of either file, and parts.
    pub fn kinds(&self, pending: usize, rng: &mut Rng) -> Vec<Left> {
        use Survivors::{AllBut, Everything, Nothing, Only, Some};
        let mut kinds = vec![Left(Nothing, Nothing), Left(Everything, Everything)];
        if self.data.is_some() {
            kinds.push(Left(Nothing, Everything));
            kinds.push(Left(Everything, Nothing));
        }
        if pending == 1 {
            // One write, of which a part of the sectors is there.
            kinds.extend([0, 1].map(|_| Left(Some(rng.next_u64()), Some(rng.next_u64()))));
        }
        if pending > 1 {
            for _ in 0..2 {
                kinds.push(Left(Some(rng.next_u64()), Some(rng.next_u64())));
                kinds.push(Left(AllBut(rng.next_u64()), AllBut(rng.next_u64())));
                kinds.push(Left(Only(rng.next_u64()), Only(rng.next_u64())));
            }
        }
        kinds
    }
}

/// For a crash at `time`: the last operation that is durable, and the last that began.
fn bounds(log: &Log, time: u64) -> (usize, usize) {
    let (mut durable, mut begun) = (0, 0);
    for change in &log.changes[..log.first_at(time)] {
        if let Change::Mark(mark) = change {
            let number = (*mark / 2) as usize;
            if mark % 2 == 1 {
                durable = number;
            } else {
                begun = number;
            }
        }
    }
    (durable, begun)
}

/// An image and what lies beside it, as bytes.
pub struct Content {
    file: Vec<u8>,
    data: Option<Vec<u8>>,
    backing: Vec<u8>,
}

impl Content {
    pub fn of(disk: &Disk) -> Self {
        Self {
            file: disk.file.content(),
            data: disk.data.as_ref().map(Storage::content),
            backing: disk
                .backing
                .as_ref()
                .map(Storage::content)
                .unwrap_or_default(),
        }
    }

    pub fn reference(&self) -> Result<reference::Image<'_>, String> {
        reference::Image::new(&self.file, self.data.as_deref(), &self.backing)
    }

    /// Whether the header says that the data file reads like the disk.
    fn has_raw_data(&self) -> bool {
        self.data.is_some() && self.file.get(95).is_some_and(|byte| byte & 2 != 0)
    }
}

pub fn verify(
    crashed: &Disk,
    history: &History,
    bounds: (usize, usize),
    what: &dyn Fn() -> String,
) {
    let content = Content::of(crashed);
    let reference = content.reference().unwrap();
    assert!(!reference.corrupt, "{}", what());
    if !reference.dirty {
        reference
            .check()
            .unwrap_or_else(|wrong| panic!("{}: {wrong}", what()));
    }
    let found = reference
        .read()
        .unwrap_or_else(|wrong| panic!("{}: {wrong}", what()));
    check_content(history, bounds.0, bounds.1, &found, what);
    if content.has_raw_data() {
        // Whoever reads the data file by itself finds the same disk.
        let mut raw = content.data.clone().unwrap_or_default();
        raw.resize(found.len(), 0);
        let what = || format!("{}, raw data file", what());
        check_content(history, bounds.0, bounds.1, &raw, &what);
    }
}

fn check_content(
    history: &History,
    durable: usize,
    begun: usize,
    found: &[u8],
    what: &dyn Fn() -> String,
) {
    let candidates = &history.contents[durable..=begun];
    assert!(
        candidates.iter().any(|c| c.len() == found.len()),
        "{}: size {}",
        what(),
        found.len()
    );
    for (i, &byte) in found.iter().enumerate() {
        // What lies behind the end in one of the states is zero there.
        let good = candidates
            .iter()
            .any(|content| content.get(i).copied().unwrap_or(0) == byte);
        assert!(
            good,
            "{}: byte {i:#x} is {byte}, not one of operations {durable} to {begun}",
            what()
        );
    }
}

/// Crashes everywhere; opens some of the images again, which mends the dirty ones.
pub fn crash_everywhere(logs: &Logs, history: &History, disk: &Disk, options: &OpenOptions) {
    let mut rng = Rng::new(11);
    let mut states = 0;
    for time in logs.times() {
        let pending = logs.pending_at(time);
        for left in logs.kinds(pending, &mut rng) {
            let crashed = logs.crash_at(time, left, disk);
            let what = || format!("crash at {time} with {left:?}");
            verify(&crashed, history, bounds(&logs.file, time), &what);
            states += 1;
            if rng.one_in(16) {
                reopen(crashed, options);
            }
        }
    }
    println!("{} changes, {states} crashes", logs.file.changes.len());
}

/// A driver that opens a crashed image reads the same and leaves it in order.
pub fn reopen(crashed: Disk, options: &OpenOptions) {
    let before = Content::of(&crashed).reference().unwrap().read().unwrap();
    let (again, options) = (crashed.clone(), options.clone());
    run(move || async move {
        let node = again.open_with(options, Default::default()).await.unwrap();
        let data = bytes(&noise(3, 5000));
        node.write(1000, data, WriteFlags::empty()).await.unwrap();
        node.driver().close().await.unwrap();
    });
    let mut expected = before;
    expected[1000..6000].copy_from_slice(&noise(3, 5000));
    let after = Content::of(&crashed);
    let reference = after.reference().unwrap();
    assert!(!reference.dirty);
    reference.check().unwrap();
    assert!(reference.read().unwrap() == expected);
}

/// Runs `operations` on a disk that `prepare` has written to before.
fn scenario<P, O>(variant: Variant, options: OpenOptions, prepare: P, operations: O)
where
    P: AsyncFn(&Node, &mut [u8]) + Send + 'static,
    O: AsyncFn(&mut Recorder) + Send + 'static,
{
    println!("{variant:?}");
    let for_open = options.clone();
    let (logs, history, disk) = run(move || async move {
        let disk = variant.create().await;
        let mut content = variant.fresh_content();
        let node = disk
            .open_with(options.clone(), Default::default())
            .await
            .unwrap();
        prepare(&node, &mut content).await;
        node.driver().close().await.unwrap();
        Logs::record(&disk);
        let node = disk
            .open_with(options.clone(), Default::default())
            .await
            .unwrap();
        let mut recorder = Recorder {
            disk: disk.clone(),
            node,
            options,
            history: History {
                contents: vec![content],
            },
        };
        operations(&mut recorder).await;
        recorder.begin();
        recorder.node.driver().close().await.unwrap();
        (Logs::take(&disk), recorder.history, disk)
    });
    crash_everywhere(&logs, &history, &disk, &for_open);
}

struct Recorder {
    disk: Disk,
    node: Arc<Node>,
    options: OpenOptions,
    history: History,
}

impl Recorder {
    /// As `blockdev-reopen` does: one instance is closed, another takes its place.
    async fn reopen(&mut self) {
        let number = self.begin();
        self.node.driver().close().await.unwrap();
        self.disk.file.mark(flushed(number));
        self.begin();
        let opened = self.disk.open_with(self.options.clone(), Arc::default());
        self.node = opened.await.unwrap();
    }

    /// As `blockdev-reopen` does where it fails: the instance that was closed goes on.
    async fn close_and_activate(&mut self) {
        let number = self.begin();
        self.node.driver().close().await.unwrap();
        self.disk.file.mark(flushed(number));
        self.begin();
        self.node.driver().activate().await.unwrap();
    }

    /// A new operation begins; its result is what the last content becomes.
    fn begin(&mut self) -> usize {
        let last = self.history.contents.last().unwrap().clone();
        self.history.contents.push(last);
        let number = self.history.contents.len() - 1;
        self.disk.file.mark(begins(number));
        number
    }

    fn content(&mut self) -> &mut Vec<u8> {
        self.history.contents.last_mut().unwrap()
    }

    async fn write(&mut self, at: usize, data: &[u8]) {
        self.begin();
        let flags = WriteFlags::empty();
        self.node
            .write(at as u64, bytes(data), flags)
            .await
            .unwrap();
        self.content()[at..at + data.len()].copy_from_slice(data);
    }

    async fn compressed(&mut self, at: usize, data: &[u8]) {
        self.begin();
        let flags = WriteFlags::COMPRESSED;
        self.node
            .write(at as u64, bytes(data), flags)
            .await
            .unwrap();
        self.content()[at..at + data.len()].copy_from_slice(data);
    }

    async fn zero(&mut self, at: usize, len: usize, flags: WriteFlags) {
        self.begin();
        self.node
            .write_zeroes(at as u64, len as u64, flags)
            .await
            .unwrap();
        self.content()[at..at + len].fill(0);
    }

    async fn discard(&mut self, at: usize, len: usize) {
        self.begin();
        self.node.discard(at as u64, len as u64).await.unwrap();
        let found = crate::support::read(&self.node, at as u64, len).await;
        self.content()[at..at + len].copy_from_slice(&found);
    }

    async fn flush(&mut self) {
        let number = self.begin();
        self.node.flush().await.unwrap();
        self.disk.file.mark(flushed(number));
    }

    async fn resize(&mut self, len: usize) {
        let number = self.begin();
        // Until it has ended, the disk may have either length.
        self.content().resize(len, 0);
        self.node
            .resize(len as u64, true, Preallocation::Off)
            .await
            .unwrap();
        self.disk.file.mark(flushed(number));
    }

    /// Random operations.
    async fn mixed(&mut self, steps: usize, cluster: usize, seed: u64) {
        let mut model = Model {
            content: self.history.contents.last().unwrap().clone(),
            cluster,
            rng: Rng::new(seed),
            external: false,
        };
        for _ in 0..steps {
            self.begin();
            model.step(&self.node).await;
            *self.content() = model.content.clone();
            if model.rng.one_in(5) {
                self.flush().await;
            }
        }
    }
}

async fn nothing(_node: &Node, _content: &mut [u8]) {}

async fn some_data(node: &Node, content: &mut [u8]) {
    let data = noise(1, 60_000);
    node.write(3000, bytes(&data), WriteFlags::empty())
        .await
        .unwrap();
    content[3000..63_000].copy_from_slice(&data);
    let packed = vec![7; 32 << 10];
    node.write(64 << 10, bytes(&packed), WriteFlags::COMPRESSED)
        .await
        .unwrap();
    content[64 << 10..96 << 10].copy_from_slice(&packed);
}

fn small() -> Variant {
    Variant {
        size: 160 << 10,
        ..Variant::default()
    }
}

async fn every_operation(recorder: &mut Recorder) {
    recorder.write(100_000, &noise(2, 9000)).await;
    recorder.write(5000, &noise(3, 3000)).await;
    recorder.flush().await;
    recorder.write(66_000, &noise(4, 100)).await;
    recorder.zero(8192, 8192, WriteFlags::MAY_UNMAP).await;
    recorder.zero(16384, 10_000, WriteFlags::empty()).await;
    recorder.write(20_000, &noise(5, 700)).await;
    recorder.flush().await;
    recorder.discard(32768, 16384).await;
    recorder.write(110_000, &noise(6, 20_000)).await;
    recorder.flush().await;
    recorder.write(33_000, &noise(7, 12_000)).await;
    recorder.compressed(0, &[1; 16384]).await;
    recorder.flush().await;
    recorder.discard(65536, 32768).await;
    recorder.flush().await;
    recorder.flush().await;
    recorder.compressed(65536, &[9; 32768]).await;
    recorder.write(66_000, &noise(8, 10)).await;
    recorder.flush().await;
}

#[test]
fn no_operation_corrupts_whenever_it_is_cut_off() {
    let variants = [
        small(),
        Variant {
            version: 2,
            ..small()
        },
        Variant {
            cluster_size: 512,
            refcount_bits: 1,
            ..small()
        },
        Variant {
            backing_len: Some(150_000),
            ..small()
        },
        Variant {
            extended_l2: true,
            cluster_size: 16384,
            backing_len: Some(100_000),
            compression: CompressionType::Zstd,
            ..small()
        },
        Variant {
            lazy: true,
            ..small()
        },
    ];
    for variant in variants {
        scenario(variant.clone(), small_caches(), some_data, every_operation);
        scenario(variant, OpenOptions::default(), nothing, every_operation);
    }
}

#[test]
fn random_operations_do_not_corrupt_when_they_are_cut_off() {
    for seed in 0..3 {
        let cluster_size = [512, 4096, 16384][seed as usize];
        let variant = Variant {
            cluster_size,
            extended_l2: cluster_size == 16384,
            ..small()
        };
        scenario(
            variant,
            small_caches(),
            some_data,
            async move |recorder: &mut Recorder| {
                recorder.mixed(60, cluster_size as usize, seed).await;
            },
        );
    }
}

#[test]
fn resizing_does_not_corrupt_when_it_is_cut_off() {
    let variant = Variant {
        cluster_size: 512,
        // One more L1 entry than fits into the table's cluster comes with 2 MiB.
        size: 200 << 10,
        backing_len: Some(300 << 10),
        ..Variant::default()
    };
    for version in [2, 3] {
        let variant = Variant {
            version,
            ..variant.clone()
        };
        scenario(
            variant,
            small_caches(),
            some_data,
            async |recorder: &mut Recorder| {
                recorder.write(150_000, &noise(1, 30_000)).await;
                recorder.resize(2500 << 10).await;
                recorder.write((2400 << 10) + 100, &noise(2, 9000)).await;
                recorder.flush().await;
                recorder.resize(100 << 10).await;
                recorder.flush().await;
                recorder.resize(180 << 10).await;
                recorder.write(120 << 10, &noise(3, 9000)).await;
                recorder.flush().await;
            },
        );
    }
}

#[test]
fn a_growing_refcount_table_does_not_corrupt_when_it_is_cut_off() {
    for lazy in [false, true] {
        let variant = Variant {
            cluster_size: 512,
            refcount_bits: 64,
            size: 2100 << 10,
            lazy,
            ..Variant::default()
        };
        scenario(
            variant,
            small_caches(),
            async |node: &Node, content: &mut [u8]| {
                let data = noise(1, 1900 << 10);
                node.write(0, bytes(&data), WriteFlags::empty())
                    .await
                    .unwrap();
                content[..data.len()].copy_from_slice(&data);
            },
            async |recorder: &mut Recorder| {
                let before = recorder.disk.file.content()[48..60].to_vec();
                recorder.write(1900 << 10, &noise(2, 100 << 10)).await;
                recorder.flush().await;
                recorder.write(2000 << 10, &noise(3, 50 << 10)).await;
                recorder.flush().await;
                let after = recorder.disk.file.content()[48..60].to_vec();
                assert_ne!(before, after, "the table did not grow");
            },
        );
    }
}

fn with_data_file(raw: bool) -> Variant {
    Variant {
        data_file: Some(raw),
        ..small()
    }
}

/// What can be done without compression.
async fn every_plain_operation(recorder: &mut Recorder) {
    recorder.write(100_000, &noise(2, 9000)).await;
    recorder.write(5000, &noise(3, 3000)).await;
    recorder.flush().await;
    recorder.zero(8192, 8192, WriteFlags::MAY_UNMAP).await;
    recorder.zero(16384, 10_000, WriteFlags::empty()).await;
    recorder.write(20_000, &noise(5, 700)).await;
    recorder.flush().await;
    recorder.discard(32768, 16384).await;
    recorder.write(110_000, &noise(6, 20_000)).await;
    recorder.flush().await;
    recorder.write(33_000, &noise(7, 12_000)).await;
    recorder.discard(65536, 32768).await;
    recorder.flush().await;
    recorder.write(66_000, &noise(8, 10)).await;
    recorder.discard(65536, 32768).await;
    recorder.write(66_000, &noise(9, 10_000)).await;
    recorder.flush().await;
    recorder.resize(300 << 10).await;
    recorder.write(200_000, &noise(10, 70_000)).await;
    recorder.flush().await;
    recorder.resize(100 << 10).await;
    recorder.resize(160 << 10).await;
    recorder.write(120_000, &noise(11, 30_000)).await;
    recorder.flush().await;
}

async fn some_plain_data(node: &Node, content: &mut [u8]) {
    let data = noise(1, 90_000);
    let flags = WriteFlags::empty();
    node.write(3000, bytes(&data), flags).await.unwrap();
    content[3000..93_000].copy_from_slice(&data);
}

#[test]
fn data_files_hold_what_their_images_say_whenever_the_power_fails() {
    let variants = [
        with_data_file(false),
        with_data_file(true),
        Variant {
            lazy: true,
            ..with_data_file(false)
        },
        Variant {
            extended_l2: true,
            cluster_size: 16384,
            ..with_data_file(true)
        },
        Variant {
            backing_len: Some(100_000),
            ..with_data_file(false)
        },
    ];
    for variant in variants {
        let (plain, options) = (every_plain_operation, small_caches());
        scenario(variant.clone(), options, some_plain_data, plain);
        scenario(variant, OpenOptions::default(), nothing, plain);
    }
}

async fn operations_between_reopenings(recorder: &mut Recorder) {
    recorder.write(100_000, &noise(2, 9000)).await;
    recorder.reopen().await;
    recorder.write(5000, &noise(3, 3000)).await;
    recorder.discard(32768, 16384).await;
    recorder.close_and_activate().await;
    recorder.write(33_000, &noise(7, 12_000)).await;
    recorder.zero(8192, 8192, WriteFlags::MAY_UNMAP).await;
    recorder.reopen().await;
    recorder.reopen().await;
    recorder.resize(200 << 10).await;
    recorder.write(170_000, &noise(4, 20_000)).await;
    recorder.close_and_activate().await;
    recorder.resize(160 << 10).await;
    recorder.close_and_activate().await;
    recorder.write(66_000, &noise(8, 10_000)).await;
}

#[test]
fn reopening_does_not_corrupt_when_it_is_cut_off() {
    let variants = [
        small(),
        Variant {
            lazy: true,
            ..small()
        },
        Variant {
            version: 2,
            ..small()
        },
        with_data_file(false),
        with_data_file(true),
    ];
    for variant in variants {
        let (options, prepare) = (small_caches(), some_plain_data);
        scenario(variant, options, prepare, operations_between_reopenings);
    }
}
