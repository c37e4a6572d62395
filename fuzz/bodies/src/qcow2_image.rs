//! A qcow2 image: reading it, and writing to it.

use std::sync::{Arc, LazyLock};

use block_doubles::{Rng, Storage};
use block_graph::{
    BlockError, BlockEvents, ChildRole, Edge, Graph, ImageCorrupted, InFlight, Node, NodeOptions,
    ParentName, Permissions, Preallocation, WriteFlags,
};
use block_qcow2::{CheckReport, Children, ImageHeader, OpenOptions, Qcow2, Repair};
use host_io::{Engine, Executor, IoBuf, IoBytes};

use crate::qcow2_reference::Reference;

/// Where packed images end: room for a few clusters of 2 MiB.
const PACKED_IMAGE_MAX: usize = 1 << 24;
/// A packed image's record: 3 bytes offset and 2 bytes length.
const RECORD_HEADER_BYTES: usize = 5;
/// Longest piece that is read at once.
const WINDOW_BYTES: u64 = 64 << 10;
/// How many clusters are compared at most, of those with an L2 entry.
const MAPPED_MAX: usize = 32;
/// Disks up to this size are kept as a whole in memory, to be compared after writing.
const MODEL_BYTES_MAX: u64 = 1 << 20;
/// Images with more refcounts are only read: checking takes time for each, and a check is run
/// before and after writing.
const COUNTS_MAX: u64 = 1 << 17;
/// How many changes are made to an image.
const CHANGES: u64 = 8;
/// How long the backing file and the data file are; neither is a whole number of clusters.
const BACKING_BYTES: usize = 40_000;
const DATA_BYTES: usize = 70_000;

/// One thread for all inputs: starting one for each would take longer than the inputs.
static EXECUTOR: LazyLock<Executor> =
    LazyLock::new(|| Executor::start("fuzz", Engine::Threads).expect("a thread can be started"));

/// The backing file and the data file of every image.
static BEHIND: LazyLock<(Vec<u8>, Vec<u8>)> =
    LazyLock::new(|| (pattern(1, BACKING_BYTES), pattern(2, DATA_BYTES)));

/// How much a run has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Bytes on which the reference reader agreed.
    pub bytes_read: u64,
    /// Whether the image was sound when it was opened for writing, so that it had to be sound after.
    pub was_sound: bool,
    /// Bytes that were compared with a model after writing.
    pub bytes_written: u64,
}

/// An image, or records (3 bytes offset, 2 bytes length, content) that make one.
pub fn qcow2_image(data: &[u8]) {
    compare_and_write(&unpack_image(data));
}

/// The image that the records make; bytes that are an image already are left alone.
pub fn unpack_image(data: &[u8]) -> Vec<u8> {
    if data.starts_with(b"QFI\xfb") {
        return data.iter().copied().take(PACKED_IMAGE_MAX).collect();
    }
    let mut image = Vec::new();
    let mut rest = data;
    while let Some((header, behind)) = rest.split_at_checked(RECORD_HEADER_BYTES) {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, &b| sum << 8 | usize::from(b));
        let (offset, len) = (number(&header[..3]), number(&header[3..]));
        let (content, next) = behind.split_at(len.min(behind.len()));
        let end = (offset + content.len()).min(PACKED_IMAGE_MAX);
        if image.len() < end {
            image.resize(end, 0);
        }
        for (to, from) in image.iter_mut().skip(offset).zip(content) {
            *to = *from;
        }
        rest = next;
    }
    image
}

/// The records for an image, without its longer runs of zeroes. `None` for one over 16 MiB.
pub fn pack_image(image: &[u8]) -> Option<Vec<u8>> {
    if image.len() > PACKED_IMAGE_MAX {
        return None;
    }
    let mut out = Vec::new();
    let mut record = |offset: usize, content: &[u8]| {
        out.extend_from_slice(&offset.to_be_bytes()[5..]);
        out.extend_from_slice(&content.len().to_be_bytes()[6..]);
        out.extend_from_slice(content);
    };
    let mut at = 0;
    while let Some(skipped) = image[at..].iter().position(|&byte| byte != 0) {
        at += skipped;
        let rest = &image[at..];
        let zeroes = rest.windows(16).position(|window| window == [0; 16]);
        let len = zeroes.unwrap_or(rest.len()).min(0xffff);
        record(at, &rest[..len]);
        at += len;
    }
    // The end is kept even where it is zeroes.
    if image.last() == Some(&0) {
        record(image.len() - 1, &[0]);
    }
    Some(out)
}

/// Reads an image and writes to it, both compared with what should be.
pub fn compare_and_write(image: &[u8]) -> Compared {
    let disk = Disk {
        image: image.to_vec(),
        backing: BEHIND.0.clone(),
        data: BEHIND.1.clone(),
    };
    let run = EXECUTOR.handle().spawn(move || async move {
        let bytes_read = compare_reads(&disk).await;
        let mut compared = write(&disk).await;
        compared.bytes_read = bytes_read;
        compared
    });
    run.wait().expect("the run ends without a panic")
}

/// Bytes without zeroes that differ from place to place.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| (rng.below(255) + 1) as u8).collect()
}

struct Disk {
    image: Vec<u8>,
    backing: Vec<u8>,
    data: Vec<u8>,
}

struct NoEvents;

impl BlockEvents for NoEvents {
    fn image_corrupted(&self, _event: ImageCorrupted) {}
}

fn edge(storage: &Storage, name: &str, role: ChildRole) -> Arc<Edge> {
    let options = NodeOptions {
        discard_unmap: true,
        ..NodeOptions::default()
    };
    let driver = Box::new(storage.clone());
    let node = Node::new(name.to_owned(), driver, options, false, Arc::default());
    Graph::default()
        .attach(
            ParentName::Node("image".to_owned()),
            name,
            role,
            &node,
            Permissions::NONE,
        )
        .expect("nothing else uses the storage")
}

async fn driver(
    file: &Storage,
    disk: &Disk,
    data: &Storage,
    options: OpenOptions,
    in_flight: &Arc<InFlight>,
) -> Result<Qcow2, BlockError> {
    let file = edge(file, "file", ChildRole::Image);
    let header = ImageHeader::read(&file).await?;
    let backing = Storage::new(disk.backing.clone());
    let children = Children {
        file,
        data_file: header
            .needs_data_file()
            .then(|| edge(data, "data-file", ChildRole::Data)),
        backing: header
            .backing_file()
            .map(|_| edge(&backing, "backing", ChildRole::Backing)),
    };
    let in_flight = Arc::clone(in_flight);
    Qcow2::open(
        header,
        children,
        options,
        "image",
        in_flight,
        Arc::new(NoEvents),
    )
    .await
}

async fn open(
    file: &Storage,
    disk: &Disk,
    data: &Storage,
    options: OpenOptions,
) -> Result<Arc<Node>, BlockError> {
    let in_flight = Arc::default();
    let read_only = options.read_only;
    let driver = driver(file, disk, data, options, &in_flight).await?;
    let options = NodeOptions {
        discard_unmap: true,
        ..NodeOptions::default()
    };
    let name = "image".to_owned();
    let node = Node::new(name, Box::new(driver), options, read_only, in_flight);
    if !read_only {
        node.driver().activate().await?;
    }
    Ok(node)
}

/// Caches so small that everything is evicted all the time.
fn small_caches(read_only: bool) -> OpenOptions {
    OpenOptions {
        read_only,
        l2_cache_size: Some(4096),
        l2_cache_entry_size: Some(512),
        refcount_cache_size: Some(1024),
        ..OpenOptions::default()
    }
}

async fn read(node: &Node, offset: u64, len: usize) -> Option<Vec<u8>> {
    let buf = node.read(offset, IoBuf::with_len(len)).await.ok()?;
    assert_eq!(buf.len(), len, "a read fills its buffer");
    Some(buf.to_vec())
}

/// Reads what the reference reads too; how many bytes both accepted.
async fn compare_reads(disk: &Disk) -> u64 {
    let file = Storage::new(disk.image.clone());
    let data = Storage::new(disk.data.clone());
    let Ok(node) = open(&file, disk, &data, small_caches(true)).await else {
        return 0;
    };
    let Some(reference) = Reference::open(&disk.image, &disk.backing, &disk.data) else {
        panic!("an image was opened that is none");
    };
    assert_eq!(node.length(), reference.size);
    let mut compared = 0;
    for (offset, len) in windows(&reference) {
        let ours = read(&node, offset, len).await;
        let theirs = reference.read(offset, len);
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!(differs, None, "at {offset} + {differs:?} of {len} bytes");
            compared += len as u64;
        }
        let extent = node.extent(offset, len as u64).await;
        if let Ok(extent) = extent {
            assert!((1..=len as u64).contains(&extent.len), "{extent:?}");
        }
    }
    assert!(file.content() == disk.image, "reading wrote");
    compared
}

/// Pieces of the disk worth reading: its beginning, its end, and clusters with entries.
fn windows(reference: &Reference<'_>) -> Vec<(u64, usize)> {
    let (size, cluster_size) = (reference.size, reference.cluster_size());
    let mut clusters: Vec<u64> = (0..8).collect();
    clusters.extend(reference.mapped(MAPPED_MAX));
    clusters.sort_unstable();
    clusters.dedup();
    let mut windows = Vec::new();
    let mut add = |from: u64, len: u64| {
        let len = len.min(size.saturating_sub(from));
        if let (1.., Ok(len)) = (len, usize::try_from(len)) {
            windows.push((from, len));
        }
    };
    for start in clusters.iter().filter_map(|c| c.checked_mul(cluster_size)) {
        if cluster_size <= WINDOW_BYTES {
            add(start, cluster_size);
        } else {
            let middle = cluster_size / 2;
            add(start, 4096);
            add(start.saturating_add(middle - 512), 1024);
            add(start.saturating_add(cluster_size - 600), 600);
        }
    }
    // Across the first clusters in one go, and the last bytes.
    add(100, WINDOW_BYTES);
    add(size.saturating_sub(700), 700);
    windows
}

async fn check(file: &Storage, disk: &Disk, data: &Storage) -> Option<CheckReport> {
    let in_flight = Arc::default();
    let driver = driver(file, disk, data, small_caches(true), &in_flight)
        .await
        .ok()?;
    driver.check(Repair::default()).await.ok()
}

/// Writes to the image; if it was sound before, it has to be afterwards.
async fn write(disk: &Disk) -> Compared {
    let reference = Reference::open(&disk.image, &disk.backing, &disk.data);
    if reference
        .as_ref()
        .is_some_and(|image| image.counts() > COUNTS_MAX)
    {
        return Compared::default();
    }
    let file = Storage::new(disk.image.clone());
    let data = Storage::new(disk.data.clone());
    let before = check(&file, disk, &data).await;
    let now = file.content();
    let differs = now.iter().zip(&disk.image).position(|(a, b)| a != b);
    assert!(
        now == disk.image,
        "checking wrote, first at {differs:?}, {} bytes were {}",
        now.len(),
        disk.image.len()
    );
    // Two uses of one cluster with a matching count are no corruption to a check, but changing the
    // one changes the other.
    let plain = reference.as_ref().is_some_and(Reference::is_plain);
    // Opening mends the counts of a dirty image.
    let dirty = reference.as_ref().is_some_and(Reference::is_dirty);
    let was_sound = plain && before.is_some_and(|report| dirty || report.corruptions == 0);
    let Ok(node) = open(&file, disk, &data, small_caches(false)).await else {
        return Compared::default();
    };
    let mut model = if was_sound && node.length() <= MODEL_BYTES_MAX {
        Model::of(&node).await
    } else {
        None
    };
    let mut rng = Rng::new(disk.image.iter().fold(0, |sum: u64, &byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    }));
    for _ in 0..CHANGES {
        change(&node, &mut rng, &mut model).await;
    }
    let closed = node.driver().close().await.is_ok();
    drop(node);
    let mut compared = Compared {
        was_sound,
        ..Compared::default()
    };
    if !was_sound || !closed {
        return compared;
    }
    let after = check(&file, disk, &data).await;
    let after = after.expect("a sound image can be checked after writing");
    assert_eq!(after.corruptions, 0, "{:?}", after.messages);
    if let Some(model) = model {
        let again = open(&file, disk, &data, small_caches(true)).await;
        let node = again.expect("a sound image can be opened after writing");
        model.agrees(&node).await;
        compared.bytes_written = model.content.len() as u64;
    }
    compared
}

/// The disk's content as it should be.
struct Model {
    content: Vec<u8>,
}

impl Model {
    async fn of(node: &Node) -> Option<Self> {
        let len = usize::try_from(node.length()).ok()?;
        let content = read(node, 0, len).await?;
        Some(Self { content })
    }

    async fn agrees(&self, node: &Node) {
        assert_eq!(node.length(), self.content.len() as u64);
        let now = Self::of(node).await.expect("a sound image can be read");
        let differs = now
            .content
            .iter()
            .zip(&self.content)
            .position(|(a, b)| a != b);
        assert_eq!(differs, None, "the content is not what was written");
    }

    fn set(&mut self, offset: u64, bytes: impl IntoIterator<Item = u8>) {
        let from = usize::try_from(offset).expect("the model is small");
        for (to, from) in self.content.iter_mut().skip(from).zip(bytes) {
            *to = from;
        }
    }

    /// Takes over what the disk has in a range of which nothing is promised: it was discarded, or
    /// writing to it failed. Everything else has to be as before.
    async fn look_again(model: &mut Option<Self>, node: &Node, offset: u64, len: u64) {
        let Some(before) = model.take() else { return };
        let Some(now) = Self::of(node).await else {
            return;
        };
        let promised = |content: &[u8]| {
            let (start, end) = (offset as usize, (offset + len) as usize);
            [&content[..start], &content[end..]].concat()
        };
        assert!(
            promised(&before.content) == promised(&now.content),
            "a change of {len} bytes at {offset} spilt"
        );
        *model = Some(now);
    }
}

/// Makes one change to the disk and the model.
async fn change(node: &Node, rng: &mut Rng, model: &mut Option<Model>) {
    let length = node.length();
    let cluster_size = node.driver().info().cluster_size.unwrap_or(512);
    // Near the beginning, where small images have their clusters.
    let reach = if rng.one_in(4) {
        length
    } else {
        length.min(16 * cluster_size)
    };
    let offset = rng.below(reach);
    let longest = (3 * cluster_size)
        .min(WINDOW_BYTES)
        .min(length.saturating_sub(offset));
    let len = if longest == 0 {
        0
    } else {
        1 + rng.below(longest)
    };
    match rng.below(8) {
        0..=2 => put(node, rng, model, offset, len, WriteFlags::empty()).await,
        3 => {
            let flags = [
                WriteFlags::empty(),
                WriteFlags::MAY_UNMAP,
                WriteFlags::NO_FALLBACK,
            ];
            let flags = flags[rng.below(3) as usize];
            if node.write_zeroes(offset, len, flags).await.is_err() {
                Model::look_again(model, node, offset, len).await;
            } else if let Some(model) = model {
                model.set(offset, (0..len).map(|_| 0));
            }
        }
        4 => {
            // Whether it did anything is the image's choice.
            let _ = node.discard(offset, len).await;
            Model::look_again(model, node, offset, len).await;
        }
        5 => {
            let start = offset - offset % cluster_size;
            let len = cluster_size.min(length - start);
            if len <= 2 * WINDOW_BYTES {
                put(node, rng, model, start, len, WriteFlags::COMPRESSED).await;
            }
        }
        6 => {
            let to = length.saturating_add(rng.below(4 * cluster_size));
            let resized = node.resize(to, true, Preallocation::Off).await.is_ok();
            if let (Some(model), true) = (model, resized) {
                model.content.resize(to as usize, 0);
            }
        }
        _ => {
            // A failure shows in what is read afterwards.
            let _ = node.flush().await;
        }
    }
}

async fn put(
    node: &Node,
    rng: &mut Rng,
    model: &mut Option<Model>,
    offset: u64,
    len: u64,
    flags: WriteFlags,
) {
    // Long runs of one byte, so that compressing is worth it.
    let fill = rng.next_u64() as u8;
    let content: Vec<u8> = (0..len).map(|at| fill ^ (at >> 9) as u8).collect();
    let data = IoBytes::copy_of(&content);
    if node.write(offset, data, flags).await.is_err() {
        Model::look_again(model, node, offset, len).await;
    } else if let Some(model) = model {
        model.set(offset, content);
    }
}
