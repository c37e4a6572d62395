//! The block graph's view of an image.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block_graph::{
    Access, BlockError, BlockEvents, BlockFuture, BlockOperation, ChildRole, Driver, DriverInfo,
    Edge, Extent, InFlight, JSON_PREFIX, Limits, Mapping, Node, Permissions, Preallocation,
    RangeLocks, WriteFlags, description, stored_path,
};
use host_io::{IoBuf, IoBytes};
use parking_lot::Mutex;

use crate::entries::{Layout, Place};
use crate::header::{Encryption, ImageHeader, autoclear, field, incompatible};
use crate::image::{HeaderState, Image, Meta, run_in_slice};
use crate::options::{CacheSizes, OpenOptions};
use crate::overlap::{MetadataMap, Structure};
use crate::refcounts::Refcounts;
use crate::slice_cache::SliceCache;
use crate::types::{GuestOffset, HostOffset};

/// The nodes below an image.
#[derive(Clone, Debug)]
pub struct Children {
    /// Stores the image.
    pub file: Arc<Edge>,
    /// Stores guest data, for images with an external data file.
    pub data_file: Option<Arc<Edge>>,
    /// Answers for what the image has not allocated.
    pub backing: Option<Arc<Edge>>,
}

/// An open qcow2 image.
pub struct Qcow2 {
    pub(crate) image: Arc<Image>,
}

fn refuse(message: impl Into<String>) -> BlockError {
    BlockError::invalid(BlockOperation::Open, message)
}

impl Qcow2 {
    /// Opens the image whose header was read from `children.file`.
    ///
    /// `in_flight` is to be the counter of the node that this driver is given to, so that freed
    /// clusters are not used again while a request may still touch them. The image is not written
    /// before [`Driver::activate`].
    ///
    /// # Errors
    /// The host's; in words why this image cannot be opened, or not for writing.
    pub async fn open(
        header: ImageHeader,
        children: Children,
        options: OpenOptions,
        node_name: &str,
        in_flight: Arc<InFlight>,
        events: Arc<dyn BlockEvents>,
    ) -> Result<Self, BlockError> {
        check_openable(&header, &children, &options)?;
        let caches =
            options.cache_sizes(header.size(), header.cluster_size(), header.extended_l2())?;
        let layout = Layout {
            geometry: header.geometry(caches.slice_bytes),
            version: header.version(),
            external_data: header.needs_data_file(),
        };
        let meta = load_meta(&header, &children.file, &layout, &options, &caches).await?;
        let state = HeaderState {
            sector: header.sector.clone(),
            incompatible: header.raw.incompatible.get(),
            autoclear: header.raw.autoclear.get(),
        };
        let lazy = options.lazy_refcounts.unwrap_or(header.lazy_refcounts());
        let image = Arc::new_cyclic(|this| Image {
            this: this.clone(),
            layout,
            node_name: node_name.to_owned(),
            length: AtomicU64::new(header.size()),
            lazy_refcounts: lazy,
            header,
            options,
            caches,
            file: children.file,
            data_file: children.data_file,
            backing: children.backing,
            in_flight,
            events,
            meta: Mutex::new(meta),
            state: Mutex::new(state),
            guest_locks: RangeLocks::default(),
            slice_locks: RangeLocks::default(),
            table_locks: RangeLocks::default(),
            commit_lock: RangeLocks::default(),
            alloc_lock: RangeLocks::default(),
            packing_lock: RangeLocks::default(),
            header_lock: RangeLocks::default(),
            broken: AtomicBool::new(false),
            corruption_told: AtomicBool::new(false),
            activated: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        Ok(Self { image })
    }

    /// Drops what the caches hold and nobody has used since the last call: to be called every
    /// `cache-clean-interval` seconds.
    pub fn clean_caches(&self) {
        let mut meta = self.image.meta.lock();
        meta.slices.drop_unused();
        meta.refcounts.drop_unused();
    }

    /// The header as it was when the image was opened.
    pub fn header(&self) -> &ImageHeader {
        &self.image.header
    }
}

/// Refuses what cannot be opened, or not for writing.
fn check_openable(
    header: &ImageHeader,
    children: &Children,
    options: &OpenOptions,
) -> Result<(), BlockError> {
    match header.encryption() {
        Some(Encryption::Aes) => {
            return Err(refuse("qcow2 images with AES encryption are not supported"));
        }
        Some(Encryption::Luks) => {
            return Err(refuse(
                "qcow2 images with LUKS encryption are not supported yet",
            ));
        }
        None => {}
    }
    if header.needs_data_file() && children.data_file.is_none() {
        return Err(refuse("'data-file' is required for this image"));
    }
    if !header.needs_data_file() && children.data_file.is_some() {
        return Err(refuse(
            "'data-file' can only be set for images with an external data file",
        ));
    }
    if options.lazy_refcounts == Some(true) && header.version() < 3 {
        return Err(refuse(
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
        ));
    }
    if options.discard_no_unref && header.version() < 3 {
        return Err(refuse(
            "discard-no-unref is only supported since qcow2 version 3",
        ));
    }
    if options.read_only {
        return Ok(());
    }
    if header.is_corrupt() && !options.for_check {
        return Err(BlockError {
            errno: 13,
            ..refuse("qcow2: Image is corrupt; cannot be opened read/write")
        });
    }
    if header.snapshots() > 0 {
        return Err(BlockError::not_supported(
            BlockOperation::Open,
            "Images with internal snapshots can only be opened read-only for now",
        ));
    }
    if header.has_bitmaps() {
        return Err(BlockError::not_supported(
            BlockOperation::Open,
            "Images with persistent bitmaps can only be opened read-only for now",
        ));
    }
    Ok(())
}

/// Reads the L1 table and the refcount table, and notes what is metadata.
async fn load_meta(
    header: &ImageHeader,
    file: &Arc<Edge>,
    layout: &Layout,
    options: &OpenOptions,
    caches: &CacheSizes,
) -> Result<Meta, BlockError> {
    let places = header.places();
    let l1 = read_table(file, places.l1, places.l1_entries as u64).await?;
    let table_entries = (places.refcount_clusters << layout.geometry.cluster_bits) / 8;
    let table = read_table(file, places.refcount_table, table_entries).await?;
    let mut map = MetadataMap::new(layout.geometry, options.overlap_checks);
    map_metadata(
        &mut map,
        layout,
        places.l1,
        &l1,
        places.refcount_table,
        &table,
    );
    Ok(Meta {
        l1,
        l1_at: places.l1,
        dirty_l1: BTreeSet::new(),
        slices: SliceCache::new(caches.slices),
        refcounts: Refcounts::new(*layout, table, places.refcount_table),
        map,
        freed: Vec::new(),
        quarantine: VecDeque::new(),
        compressed_at: None,
        committing: false,
    })
}

/// Reads a table of big-endian 64-bit entries.
pub(crate) async fn read_table(
    file: &Arc<Edge>,
    at: HostOffset,
    entries: u64,
) -> Result<Vec<u64>, BlockError> {
    let len = usize::try_from(entries * 8).unwrap_or(0);
    if len == 0 {
        return Ok(Vec::new());
    }
    let bytes = file.node_arc().read(at.0, IoBuf::with_len(len)).await?;
    Ok(bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|entry| u64::from_be_bytes(*entry))
        .collect())
}

fn map_metadata(
    map: &mut MetadataMap,
    layout: &Layout,
    l1_at: HostOffset,
    l1: &[u64],
    table_at: HostOffset,
    table: &[u64],
) {
    let cluster_size = layout.geometry.cluster_size();
    for &entry in l1 {
        if let Ok(Some(at)) = layout.l1_entry(entry) {
            map.add(Structure::ActiveL2, at, cluster_size);
        }
    }
    for &entry in table {
        if let Ok(Some(at)) = layout.refcount_table_entry(entry) {
            map.add(Structure::RefcountBlock, at, cluster_size);
        }
    }
    map.add(Structure::ActiveL1, l1_at, l1.len() as u64 * 8);
    map.add(Structure::RefcountTable, table_at, table.len() as u64 * 8);
    map.add(Structure::MainHeader, HostOffset(0), 1);
}

impl Image {
    async fn activate(&self) -> Result<(), BlockError> {
        if self.options.read_only {
            return Ok(());
        }
        self.check_usable(BlockOperation::Open)?;
        // It may have been closed to be opened anew, and that did not succeed.
        self.closed.store(false, Ordering::Release);
        let (dirty, features) = {
            let state = self.state.lock();
            (
                state.incompatible & incompatible::DIRTY != 0,
                state.autoclear,
            )
        };
        if features & !autoclear::KNOWN != 0 || features & autoclear::BITMAPS != 0 {
            // Bitmaps reach this place only without their extension, which makes them void.
            let kept = features & autoclear::RAW_DATA;
            self.change_header(&[(field::AUTOCLEAR, &kept.to_be_bytes())])
                .await?;
            self.flush_file().await?;
            self.state.lock().autoclear = kept;
        }
        if dirty {
            self.repair_dirty().await?;
        }
        self.activated.store(true, Ordering::Release);
        Ok(())
    }

    /// The fast path: an answer from the cached slice alone.
    fn map_now(&self, access: Access, offset: u64, len: u64) -> Mapping<'_> {
        if self.is_broken() {
            return Mapping::Ask;
        }
        let geometry = &self.layout.geometry;
        let guest = GuestOffset(offset);
        let number = geometry.slice_number(guest);
        let mut meta = self.meta.lock();
        let found = match meta.slices.get(number) {
            Some(slice) => run_in_slice(&self.layout, slice, guest, len),
            None => match meta.table_at(&self.layout, geometry.l1_index(guest)) {
                Ok(None) => Ok((
                    Place::Unallocated,
                    len.min(geometry.slice_end(guest) - offset),
                )),
                _ => return Mapping::Ask,
            },
        };
        let Ok((place, covered)) = found else {
            return Mapping::Ask;
        };
        match (place, access) {
            (Place::Data { host, .. }, Access::Read) => Mapping::Child {
                edge: self.data_edge(),
                offset: host.0,
                len: covered,
            },
            (Place::Data { host, copied: true }, Access::Write) => {
                if self.data_file.is_none() && meta.map.overlap(host, covered).is_some() {
                    return Mapping::Ask;
                }
                Mapping::Child {
                    edge: self.data_edge(),
                    offset: host.0,
                    len: covered,
                }
            }
            (Place::Zero { .. }, Access::Read) => Mapping::Zero { len: covered },
            (Place::Unallocated, Access::Read) => match &self.backing {
                None => Mapping::Zero { len: covered },
                Some(backing) => {
                    let there = backing.node().length().saturating_sub(offset);
                    match there {
                        0 => Mapping::Zero { len: covered },
                        _ => Mapping::Child {
                            edge: backing,
                            offset,
                            len: covered.min(there),
                        },
                    }
                }
            },
            _ => Mapping::Ask,
        }
    }

    fn specific_info(&self) -> serde_json::Value {
        let state = self.state.lock();
        let mut data = serde_json::Map::new();
        let mut put = |key: &str, value: serde_json::Value| data.insert(key.to_owned(), value);
        if self.layout.version < 3 {
            put("compat", "0.10".into());
            put("compression-type", "zlib".into());
            put("refcount-bits", 16.into());
        } else {
            put("compat", "1.1".into());
            put(
                "compression-type",
                self.header.compression_type().as_str().into(),
            );
            put("lazy-refcounts", self.header.lazy_refcounts().into());
            put("refcount-bits", self.header.refcount_bits().into());
            put(
                "corrupt",
                (state.incompatible & incompatible::CORRUPT != 0).into(),
            );
            put("extended-l2", self.layout.geometry.extended_l2.into());
            if self.header.needs_data_file() {
                if let Some(name) = self.header.data_file_name() {
                    put("data-file", name.into());
                }
                put("data-file-raw", self.header.data_file_raw().into());
            }
        }
        serde_json::json!({ "type": "qcow2", "data": data })
    }
}

/// Whether the backing node is the one that the image names.
fn is_as_stored(stored: Option<&str>, backing: Option<&Node>, own: &str) -> bool {
    match (stored, backing) {
        (None, None) => true,
        (Some(stored), Some(node)) => {
            // Options can be written in many ways; what was opened by them is taken for the same.
            stored_path(stored, own).is_none_or(|path| path == node.driver().filename())
        }
        _ => false,
    }
}

impl Driver for Qcow2 {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn length(&self) -> u64 {
        self.image.length()
    }

    fn limits(&self) -> Limits {
        let geometry = &self.image.layout.geometry;
        let cluster_size = u32::try_from(geometry.cluster_size()).unwrap_or(u32::MAX);
        Limits {
            request_alignment: 1,
            discard_alignment: cluster_size,
            preferred_transfer: cluster_size,
            max_transfer: 0,
        }
    }

    fn filename(&self) -> String {
        let image = &self.image;
        let own = image.file.node().driver().filename();
        let backing = image.backing.as_ref().map(|edge| edge.node_arc());
        let stored = image.header.backing_file();
        let is_as_stored = is_as_stored(stored, backing.as_deref(), &own);
        if !own.starts_with(JSON_PREFIX) && is_as_stored {
            return own;
        }
        let mut told = serde_json::Map::new();
        told.insert("driver".to_owned(), "qcow2".into());
        told.insert("file".to_owned(), description(&image.file.node()));
        if let Some(data_file) = &image.data_file {
            told.insert("data-file".to_owned(), description(&data_file.node()));
        }
        if !is_as_stored {
            let backing = backing.map_or(serde_json::Value::Null, |node| description(&node));
            told.insert("backing".to_owned(), backing);
        }
        let told = serde_json::Value::Object(told);
        format!("{JSON_PREFIX}{told}")
    }

    fn info(&self) -> DriverInfo {
        let state = self.image.state.lock();
        let (dirty, corrupt) = (
            state.incompatible & incompatible::DIRTY != 0,
            state.incompatible & incompatible::CORRUPT != 0,
        );
        drop(state);
        let header = &self.image.header;
        DriverInfo {
            statistics: None,
            cluster_size: Some(header.cluster_size()),
            dirty: Some(dirty),
            corrupt,
            encrypted: header.encryption().is_some(),
            backing_file: header.backing_file().map(str::to_owned),
            backing_format: header.backing_format().map(str::to_owned),
            allocated_bytes: None,
            specific: Some(self.image.specific_info()),
        }
    }

    fn children(&self) -> Vec<Arc<Edge>> {
        let image = &self.image;
        let mut list = vec![Arc::clone(&image.file)];
        list.extend(image.data_file.clone());
        list.extend(image.backing.clone());
        list
    }

    fn storage_edge(&self) -> Option<&Edge> {
        Some(self.image.data_edge())
    }

    fn backing_edge(&self) -> Option<&Edge> {
        self.image.backing.as_deref()
    }

    fn mappings_are_fixed(&self) -> bool {
        false
    }

    fn child_permissions(&self, edge: &Edge, asked: Permissions) -> Permissions {
        match edge.role() {
            ChildRole::Backing => asked.of_backing(),
            _ => asked.of_image_storage(!self.image.options.read_only),
        }
    }

    fn permissions_wanted(&self, _wanted: Permissions) -> Result<(), String> {
        Ok(())
    }

    fn permissions_settled(&self, _settled: Permissions) {}

    fn map_now(&self, access: Access, offset: u64, len: u64) -> Mapping<'_> {
        self.image.map_now(access, offset, len)
    }

    fn read(&self, offset: u64, buf: IoBuf) -> BlockFuture<'_, IoBuf> {
        Box::pin(async move {
            self.image.check_usable(BlockOperation::Read)?;
            self.image
                .read_guest(BlockOperation::Read, offset, buf)
                .await
        })
    }

    fn write(&self, offset: u64, data: IoBytes, flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(
            self.image
                .detached(BlockOperation::Write, move |image| async move {
                    if flags.contains(WriteFlags::COMPRESSED) {
                        image.write_compressed(offset, data).await
                    } else {
                        image.write_guest(offset, data).await
                    }
                }),
        )
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(
            self.image
                .detached(BlockOperation::WriteZeroes, move |image| async move {
                    image.write_zeroes_guest(offset, len, flags).await
                }),
        )
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        Box::pin(
            self.image
                .detached(BlockOperation::Discard, move |image| async move {
                    image.discard_guest(offset, len).await
                }),
        )
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            if self.image.options.read_only {
                return Ok(());
            }
            self.image.check_usable(BlockOperation::Flush)?;
            if !self.image.meta.lock().has_changes() {
                return self.image.flush_all().await;
            }
            self.image
                .detached(BlockOperation::Flush, |image| async move {
                    image.commit().await
                })
                .await
        })
    }

    fn extent(&self, offset: u64, len: u64) -> BlockFuture<'_, Extent> {
        Box::pin(async move {
            self.image.check_usable(BlockOperation::BlockStatus)?;
            self.image.extent_at(offset, len).await
        })
    }

    fn resize(&self, length: u64, exact: bool, how: Preallocation) -> BlockFuture<'_, ()> {
        Box::pin(
            self.image
                .detached(BlockOperation::Resize, move |image| async move {
                    image.resize(length, exact, how).await
                }),
        )
    }

    fn activate(&self) -> BlockFuture<'_, ()> {
        Box::pin(
            self.image
                .detached(BlockOperation::Open, |image| async move {
                    image.activate().await
                }),
        )
    }

    fn close(&self) -> BlockFuture<'_, ()> {
        Box::pin(self.image.task(BlockOperation::Flush, |image| async move {
            image.finish().await
        }))
    }
}

impl Image {
    /// Takes over a new length.
    pub(crate) fn set_length(&self, length: u64) {
        self.length.store(length, Ordering::Release);
    }
}
