//! An open image: its state, and the way to the L2 entry of a guest offset.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use block_graph::{
    BlockError, BlockErrorKind, BlockEvents, BlockOperation, Edge, ImageCorrupted, InFlight,
    InFlightMark, RangeLocks,
};
use host_io::IoBuf;
use parking_lot::{Mutex, MutexGuard};

use crate::entries::{Cluster, Fault, Layout, Place};
use crate::header::{ImageHeader, incompatible};
use crate::options::{CacheSizes, OpenOptions};
use crate::overlap::{self, MetadataMap, Structure};
use crate::refcounts::Refcounts;
use crate::slice_cache::{Slice, SliceCache};
use crate::types::{GuestOffset, HostCluster, HostOffset, L1Index, SliceNumber};

/// L1 entries that are written as one (512 bytes).
pub(crate) const L1_CHUNK_ENTRIES: usize = 64;

/// Host clusters that nothing refers to any more, but that may not be used again yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freed {
    pub first: HostCluster,
    pub count: u64,
    /// Whether the guest asked for it, so that the file's space can be given back.
    pub discard: bool,
    /// When it was freed: requests from before may still read or write these clusters.
    pub since: InFlightMark,
}

/// All metadata in memory, behind one short lock that is never held across waiting.
pub(crate) struct Meta {
    pub l1: Vec<u64>,
    pub l1_at: HostOffset,
    /// Parts of the L1 table that the file does not hold yet.
    pub dirty_l1: BTreeSet<usize>,
    pub slices: SliceCache,
    pub refcounts: Refcounts,
    pub map: MetadataMap,
    /// Freed by a change that is not durable yet.
    pub freed: Vec<Freed>,
    /// Freed durably; waiting for requests from before.
    pub quarantine: VecDeque<Freed>,
    /// Where the next compressed cluster may begin, within a cluster that has room.
    pub compressed_at: Option<HostOffset>,
    /// A commit is between its snapshot and its end.
    pub committing: bool,
}

/// The header's changing part.
pub(crate) struct HeaderState {
    pub sector: Vec<u8>,
    pub incompatible: u64,
    pub autoclear: u64,
}

/// An open image. Everything that changes it runs as a task of its own that holds this by `Arc`,
/// so that a request that is dropped half way leaves nothing half done.
pub(crate) struct Image {
    /// This very image, for the tasks that it starts.
    pub this: Weak<Image>,
    pub layout: Layout,
    pub node_name: String,
    pub header: ImageHeader,
    pub options: OpenOptions,
    pub caches: CacheSizes,
    pub lazy_refcounts: bool,
    pub file: Arc<Edge>,
    pub data_file: Option<Arc<Edge>>,
    pub backing: Option<Arc<Edge>>,
    pub in_flight: Arc<InFlight>,
    pub events: Arc<dyn BlockEvents>,
    pub length: AtomicU64,
    pub meta: Mutex<Meta>,
    pub state: Mutex<HeaderState>,
    /// Taken by whoever changes how guest clusters are stored.
    pub guest_locks: RangeLocks,
    /// Taken by whoever loads an L2 slice, by its number.
    pub slice_locks: RangeLocks,
    /// Taken by whoever makes an L2 table, by L1 index.
    pub table_locks: RangeLocks,
    /// Taken whole by whoever writes metadata back. Before `alloc_lock`.
    pub commit_lock: RangeLocks,
    /// Taken whole by whoever loads, makes or writes refcount blocks, or grows their table.
    pub alloc_lock: RangeLocks,
    /// Taken whole by whoever looks for room for a compressed cluster.
    pub packing_lock: RangeLocks,
    /// Taken whole by whoever writes the header. After all others.
    pub header_lock: RangeLocks,
    /// Nothing works any more: the image turned out to be corrupt while it was open for writing.
    pub broken: AtomicBool,
    pub corruption_told: AtomicBool,
    /// The image may be written, and its counts are right but for what is in memory.
    pub activated: AtomicBool,
    /// [`Image::finish`] has been called.
    pub closed: AtomicBool,
}

impl Image {
    pub(crate) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The edge that stores guest data.
    pub(crate) fn data_edge(&self) -> &Arc<Edge> {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    pub(crate) fn check_usable(&self, operation: BlockOperation) -> Result<(), BlockError> {
        if self.is_broken() {
            return Err(BlockError {
                errno: ENOMEDIUM,
                ..BlockError::corrupt(operation, "the image is corrupt and was taken out of use")
            });
        }
        Ok(())
    }

    /// Runs something that must not be left half way, as a task that goes on even when the
    /// request that waits for it is dropped. It counts as a request under way itself.
    pub(crate) async fn detached<T, F>(
        &self,
        operation: BlockOperation,
        make: impl FnOnce(Arc<Self>) -> F + 'static,
    ) -> Result<T, BlockError>
    where
        T: 'static,
        F: Future<Output = Result<T, BlockError>> + 'static,
    {
        self.task(operation, |image| async move {
            let in_flight = Arc::clone(&image.in_flight);
            let _under_way = in_flight.enter();
            make(image).await
        })
        .await
    }

    /// The same for what is no request, and waits for requests to end.
    pub(crate) async fn task<T, F>(
        &self,
        operation: BlockOperation,
        make: impl FnOnce(Arc<Self>) -> F + 'static,
    ) -> Result<T, BlockError>
    where
        T: 'static,
        F: Future<Output = Result<T, BlockError>> + 'static,
    {
        let gone = || BlockError {
            kind: BlockErrorKind::Cancelled,
            operation,
            errno: ECANCELED,
            message: "the executor was stopped".to_owned(),
        };
        let image = self.this.upgrade().ok_or_else(gone)?;
        let task = host_io::spawn_local(async move { make(image).await });
        task.await.map_err(|_| gone())?
    }

    /// Whether what this image has not allocated may be something else than zeroes.
    pub(crate) fn may_have_backing(&self) -> bool {
        self.backing.is_some() || self.header.backing_file().is_some()
    }

    /// The image's structures are wrong: tells the world once, and where the image is writable
    /// takes it out of use and marks it.
    pub(crate) async fn corrupt(
        &self,
        operation: BlockOperation,
        message: String,
        place: Option<(u64, u64)>,
    ) -> BlockError {
        let fatal = !self.options.read_only;
        if fatal {
            self.broken.store(true, Ordering::Release);
        }
        if !self.corruption_told.swap(true, Ordering::AcqRel) {
            self.events.image_corrupted(ImageCorrupted {
                node_name: self.node_name.clone(),
                message: message.clone(),
                offset: place.map(|(offset, _)| offset),
                size: place.map(|(_, size)| size),
                fatal,
            });
            if fatal && self.layout.version >= 3 {
                let marked = self
                    .detached(operation, |image| async move {
                        image.set_incompatible(incompatible::CORRUPT, 0).await
                    })
                    .await;
                if let Err(error) = marked {
                    tracing::error!(node = %self.node_name, %error, "cannot mark image as corrupt");
                }
            }
        }
        BlockError::corrupt(operation, message)
    }

    /// The words for a wrong L2 entry.
    pub(crate) fn entry_fault(&self, fault: Fault, guest: GuestOffset) -> String {
        let index = (guest.0 >> self.layout.geometry.cluster_bits)
            & ((1 << self.layout.geometry.table_bits()) - 1);
        let l1_index = self.layout.geometry.l1_index(guest).0;
        let table = self.meta.lock().l1.get(l1_index).copied().unwrap_or(0) & 0x00ff_ffff_ffff_fe00;
        match fault {
            Fault::Unaligned(at) => format!(
                "Cluster allocation offset {:#x} unaligned (L2 offset: {table:#x}, L2 index: \
                 {index:#x})",
                at.0
            ),
            Fault::NotGuestOffset(at) => format!(
                "External data file host cluster offset {:#x} does not match guest cluster \
                 offset: {:#x}, L2 index: {index:#x})",
                at.0,
                self.layout.geometry.cluster_start(guest.0)
            ),
            Fault::Reserved => format!(
                "L2 entry with reserved bits set (L2 offset: {table:#x}, L2 index: {index:#x})"
            ),
            Fault::Subclusters => {
                format!("Invalid cluster entry found (L2 offset: {table:#x}, L2 index: {index:#x})")
            }
            Fault::Compressed => format!(
                "Compressed cluster in an image with external data file (L2 offset: {table:#x}, \
                 L2 index: {index:#x})"
            ),
        }
    }

    /// Loads the slice that describes `guest` if need be, and returns the metadata with the slice
    /// in the cache. `None` where there is no L2 table.
    pub(crate) async fn lock_with_slice(
        &self,
        operation: BlockOperation,
        guest: GuestOffset,
    ) -> Result<Option<MutexGuard<'_, Meta>>, BlockError> {
        let number = self.layout.geometry.slice_number(guest);
        loop {
            let place = {
                let meta = self.meta.lock();
                if meta.slices.contains(number) {
                    return Ok(Some(meta));
                }
                meta.slice_place(&self.layout, number)
            };
            let at = match place {
                Ok(None) => return Ok(None),
                Ok(Some(at)) => at,
                Err(fault) => return Err(self.table_fault(operation, fault, guest).await),
            };
            let _loading = self.slice_locks.lock(number.0, number.0 + 1).await;
            if self.meta.lock().slices.contains(number) {
                continue;
            }
            self.make_room().await?;
            let len = usize::try_from(self.layout.geometry.slice_bytes()).unwrap_or(0);
            let bytes = self
                .file
                .node_arc()
                .read(at.0, IoBuf::with_len(len))
                .await?;
            let words = bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|word| u64::from_be_bytes(*word))
                .collect();
            let mut meta = self.meta.lock();
            // The table may have moved while its old place was read: then that is stale.
            if meta.slice_place(&self.layout, number) == Ok(Some(at)) {
                meta.slices.insert(number, words);
                return Ok(Some(meta));
            }
        }
    }

    /// Makes room for one more slice, by writing changes back where all have changed.
    async fn make_room(&self) -> Result<(), BlockError> {
        {
            let mut meta = self.meta.lock();
            if meta.slices.has_room() || meta.slices.evict_one() {
                return Ok(());
            }
        }
        self.detached(BlockOperation::Flush, |image| async move {
            image.commit().await
        })
        .await?;
        // Where others have changed everything again meanwhile, the cache grows by one.
        self.meta.lock().slices.evict_one();
        Ok(())
    }

    pub(crate) async fn table_fault(
        &self,
        operation: BlockOperation,
        fault: Fault,
        guest: GuestOffset,
    ) -> BlockError {
        let index = self.layout.geometry.l1_index(guest).0;
        let message = match fault {
            Fault::Unaligned(at) => {
                format!(
                    "L2 table offset {:#x} unaligned (L1 index: {index:#x})",
                    at.0
                )
            }
            _ => format!("L1 entry with reserved bits set (L1 index: {index:#x})"),
        };
        self.corrupt(operation, message, None).await
    }

    /// What lies at `guest` for at most `len` bytes, within one slice.
    pub(crate) async fn run_at(
        &self,
        operation: BlockOperation,
        guest: GuestOffset,
        len: u64,
    ) -> Result<(Place, u64), BlockError> {
        let len = len.min(self.layout.geometry.slice_end(guest) - guest.0);
        let found = {
            let Some(mut meta) = self.lock_with_slice(operation, guest).await? else {
                return Ok((Place::Unallocated, len));
            };
            let number = self.layout.geometry.slice_number(guest);
            match meta.slices.get(number) {
                Some(slice) => run_in_slice(&self.layout, slice, guest, len),
                None => Ok((Place::Unallocated, len)),
            }
        };
        match found {
            Ok(run) => Ok(run),
            Err(fault) => {
                let message = self.entry_fault(fault, guest);
                Err(self.corrupt(operation, message, Some((guest.0, len))).await)
            }
        }
    }

    /// What the L2 entry of `guest` says; an unallocated cluster where there is no table.
    pub(crate) async fn cluster_at(
        &self,
        operation: BlockOperation,
        guest: GuestOffset,
    ) -> Result<Cluster, BlockError> {
        let found = {
            match self.lock_with_slice(operation, guest).await? {
                Some(mut meta) => meta.cluster(&self.layout, guest),
                None => Ok(Cluster::Standard(Default::default())),
            }
        };
        match found {
            Ok(cluster) => Ok(cluster),
            Err(fault) => {
                let message = self.entry_fault(fault, guest);
                let place = Some((guest.0, self.layout.geometry.cluster_size()));
                Err(self.corrupt(operation, message, place).await)
            }
        }
    }

    /// Refuses to write `bytes` at `at` of the image file where metadata is.
    pub(crate) async fn check_overlap(
        &self,
        operation: BlockOperation,
        at: HostOffset,
        bytes: u64,
    ) -> Result<(), BlockError> {
        let overlap = self.meta.lock().map.overlap(at, bytes);
        match overlap {
            None => Ok(()),
            Some(structure) => Err(self.overlap_found(operation, structure, at, bytes).await),
        }
    }

    pub(crate) async fn overlap_found(
        &self,
        operation: BlockOperation,
        structure: Structure,
        at: HostOffset,
        bytes: u64,
    ) -> BlockError {
        let message = overlap::message(structure);
        self.corrupt(operation, message, Some((at.0, bytes))).await
    }
}

/// `ENOMEDIUM`: what QEMU answers once it has taken a corrupt image out of use.
const ENOMEDIUM: i32 = 123;
const ECANCELED: i32 = 125;

impl Meta {
    /// Where a slice is in the file, if its L2 table exists.
    fn slice_place(
        &self,
        layout: &Layout,
        number: SliceNumber,
    ) -> Result<Option<HostOffset>, Fault> {
        let (index, in_table) = layout.geometry.slice_place(number);
        let table = self.table_at(layout, index)?;
        Ok(table.map(|table| HostOffset(table.0 + in_table)))
    }

    /// Where the L2 table of an L1 entry is.
    pub(crate) fn table_at(
        &self,
        layout: &Layout,
        index: L1Index,
    ) -> Result<Option<HostOffset>, Fault> {
        match self.l1.get(index.0) {
            Some(&entry) => layout.l1_entry(entry),
            None => Ok(None),
        }
    }

    pub(crate) fn set_l1(&mut self, index: L1Index, entry: u64) {
        if let Some(known) = self.l1.get_mut(index.0) {
            *known = entry;
            self.dirty_l1.insert(index.0 / L1_CHUNK_ENTRIES);
        }
    }

    /// What a cached L2 entry says; unallocated if its slice is not cached.
    pub(crate) fn cluster(
        &mut self,
        layout: &Layout,
        guest: GuestOffset,
    ) -> Result<Cluster, Fault> {
        let geometry = &layout.geometry;
        match self.slices.get(geometry.slice_number(guest)) {
            Some(slice) => {
                let (entry, bitmap) =
                    slice.entry(geometry.slice_index(guest), geometry.entry_words());
                layout.decode(entry, bitmap, guest)
            }
            None => Ok(Cluster::Standard(Default::default())),
        }
    }

    /// Changes a cached L2 entry.
    pub(crate) fn set_entry(&mut self, layout: &Layout, guest: GuestOffset, entry: (u64, u64)) {
        let geometry = &layout.geometry;
        let number = geometry.slice_number(guest);
        let index = geometry.slice_index(guest);
        self.slices
            .set_entry(number, index, geometry.entry_words(), entry);
    }

    /// Whether anything waits to be written back that a flush has to.
    pub(crate) fn has_changes(&self) -> bool {
        self.slices.dirty_count() > 0
            || !self.dirty_l1.is_empty()
            || !self.freed.is_empty()
            || self.committing
    }
}

/// What lies at `guest` for at most `len` bytes, as far as this slice goes.
pub(crate) fn run_in_slice(
    layout: &Layout,
    slice: &Slice,
    guest: GuestOffset,
    len: u64,
) -> Result<(Place, u64), Fault> {
    let geometry = &layout.geometry;
    let words = geometry.entry_words();
    let mut index = geometry.slice_index(guest);
    let mut within = geometry.in_cluster(guest.0);
    let mut at = guest;
    let mut run: Option<(Place, u64)> = None;
    while index < geometry.slice_entries() {
        let covered = run.map_or(0, |(_, covered)| covered);
        if covered >= len {
            break;
        }
        let (entry, bitmap) = slice.entry(index, words);
        let cluster = match layout.decode(entry, bitmap, at) {
            Ok(cluster) => cluster,
            // What is good before a bad entry can be used still.
            Err(_) if run.is_some() => break,
            Err(fault) => return Err(fault),
        };
        let (place, piece) = match cluster {
            Cluster::Compressed(compressed) => (
                Place::Compressed(compressed),
                geometry.cluster_size() - within,
            ),
            Cluster::Standard(standard) => standard.place_at(geometry, within),
        };
        run = match run {
            None => Some((place, piece)),
            Some((first, covered)) if first.continues_with(covered, &place) => {
                Some((first, covered + piece))
            }
            Some(_) => break,
        };
        within += piece;
        at = GuestOffset(at.0 + piece);
        if within == geometry.cluster_size() {
            within = 0;
            index += 1;
        }
    }
    let (place, covered) = run.unwrap_or((Place::Unallocated, len));
    Ok((place, covered.min(len)))
}
