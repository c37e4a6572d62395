//! The image header: reading it with every field checked, and writing it.

use std::sync::Arc;

use block_graph::{BlockError, BlockOperation, Edge};
use host_io::IoBuf;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::extensions::{self, Extension, FeatureName};
use crate::types::{
    Geometry, HostOffset, MAX_CLUSTER_BITS, MAX_HOST_OFFSET, MAX_L1_BYTES, MAX_REFCOUNT_ORDER,
    MAX_REFCOUNT_TABLE_BYTES, MIN_CLUSTER_BITS, MIN_EXTENDED_CLUSTER_BITS,
};

/// `QFI\xfb`.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header.
pub(crate) const V2_LEN: u32 = 72;
/// Bytes of a version 3 header without additional fields.
const V3_MIN_LEN: u32 = 104;
/// Bytes of the version 3 header that this crate writes.
pub(crate) const V3_LEN: u32 = 112;
/// The longest backing file name in bytes.
pub const MAX_BACKING_NAME: u32 = 1023;
/// The most internal snapshots.
pub const MAX_SNAPSHOTS: u32 = 65536;

/// Incompatible feature bits.
pub(crate) mod incompatible {
    pub(crate) const DIRTY: u64 = 1;
    pub(crate) const CORRUPT: u64 = 1 << 1;
    pub(crate) const DATA_FILE: u64 = 1 << 2;
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
    pub(crate) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Compatible feature bits.
pub(crate) mod compatible {
    pub(crate) const LAZY_REFCOUNTS: u64 = 1;
}

/// Autoclear feature bits.
pub(crate) mod autoclear {
    pub(crate) const BITMAPS: u64 = 1;
    pub(crate) const RAW_DATA: u64 = 1 << 1;
    pub(crate) const KNOWN: u64 = BITMAPS | RAW_DATA;
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate.
    #[default]
    Zlib,
    /// Zstandard.
    Zstd,
}

impl CompressionType {
    /// The name as clients write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// The fixed fields, as they stand in the file. Version 2 ends before `incompatible`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub magic: U32,
    pub version: U32,
    pub backing_file_offset: U64,
    pub backing_file_size: U32,
    pub cluster_bits: U32,
    pub size: U64,
    pub crypt_method: U32,
    pub l1_size: U32,
    pub l1_table_offset: U64,
    pub refcount_table_offset: U64,
    pub refcount_table_clusters: U32,
    pub nb_snapshots: U32,
    pub snapshots_offset: U64,
    pub incompatible: U64,
    pub compatible: U64,
    pub autoclear: U64,
    pub refcount_order: U32,
    pub header_length: U32,
    pub compression_type: u8,
    pub padding: [u8; 7],
}

/// Encryption of an image's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// The old AES-CBC scheme.
    Aes,
    /// LUKS.
    Luks,
}

/// A header that was read and found to be in order. The second phase is [`crate::Qcow2::open`].
#[derive(Clone, Debug)]
pub struct ImageHeader {
    pub(crate) raw: RawHeader,
    /// The header's first 512 bytes, in which feature bits and offsets are changed later.
    pub(crate) sector: Vec<u8>,
    pub(crate) extensions: Vec<Extension>,
    backing_file: Option<String>,
    compression: CompressionType,
}

fn refuse(message: impl Into<String>) -> BlockError {
    BlockError::invalid(BlockOperation::Open, message)
}

impl ImageHeader {
    /// Reads and checks the header of the image in `file`.
    ///
    /// # Errors
    /// The host's, or in words what is wrong with the header.
    pub async fn read(file: &Arc<Edge>) -> Result<Self, BlockError> {
        let node = file.node_arc();
        let sector = node.read(0, IoBuf::zeroed(512)).await?.to_vec();
        let (mut raw, _) = RawHeader::read_from_prefix(&sector)
            .map_err(|_| refuse("Could not read qcow2 header"))?;
        check_identity(&raw)?;
        if raw.version.get() == 2 {
            raw.incompatible = U64::ZERO;
            raw.compatible = U64::ZERO;
            raw.autoclear = U64::ZERO;
            raw.refcount_order = U32::new(4);
            raw.header_length = U32::new(V2_LEN);
            raw.compression_type = 0;
        }
        let cluster_size = 1u64 << raw.cluster_bits.get();
        let header_len = raw.header_length.get();
        if raw.version.get() >= 3 && header_len < V3_MIN_LEN {
            return Err(refuse("qcow2 header too short"));
        }
        if u64::from(header_len) > cluster_size {
            return Err(refuse("qcow2 header exceeds cluster size"));
        }
        if header_len <= V3_MIN_LEN {
            raw.compression_type = 0;
        }
        let backing_at = raw.backing_file_offset.get();
        if backing_at > cluster_size {
            return Err(refuse("Invalid backing file offset"));
        }
        let area_end = if backing_at > 0 {
            backing_at
        } else {
            cluster_size
        };
        let area_len = usize::try_from(area_end).unwrap_or(0);
        let head = node.read(0, IoBuf::zeroed(area_len)).await?;
        let area = head.get(header_len as usize..).unwrap_or_default();
        let extensions = extensions::parse(area)?;
        check_features(&raw, &extensions)?;
        let backing_file = read_backing_name(&node, &raw).await?;
        check_tables(&raw)?;
        let compression = check_compression(&raw)?;
        let header = Self {
            raw,
            sector,
            extensions,
            backing_file,
            compression,
        };
        header.check_extensions()?;
        Ok(header)
    }

    fn check_extensions(&self) -> Result<(), BlockError> {
        let raw_data = self.raw.autoclear.get() & autoclear::RAW_DATA != 0;
        if raw_data && !self.needs_data_file() {
            return Err(refuse("data-file-raw requires a data file"));
        }
        if self.raw.crypt_method.get() == 2
            && !self
                .extensions
                .iter()
                .any(|e| matches!(e, Extension::Crypto(_)))
        {
            return Err(refuse("Missing CRYPTO header for crypt method 2"));
        }
        Ok(())
    }

    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.raw.version.get()
    }

    /// Length of the virtual disk in bytes.
    pub fn size(&self) -> u64 {
        self.raw.size.get()
    }

    /// Cluster size in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.raw.cluster_bits.get()
    }

    /// The name of the backing file, if the image has one.
    pub fn backing_file(&self) -> Option<&str> {
        self.backing_file.as_deref()
    }

    /// The format of the backing file, if the image says so.
    pub fn backing_format(&self) -> Option<&str> {
        self.extensions.iter().find_map(|e| match e {
            Extension::BackingFormat(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether guest data is in an external data file.
    pub fn needs_data_file(&self) -> bool {
        self.has_incompatible(incompatible::DATA_FILE)
    }

    /// Whether the external data file is to stay readable as a raw image.
    pub fn data_file_raw(&self) -> bool {
        self.raw.autoclear.get() & autoclear::RAW_DATA != 0
    }

    /// The name of the external data file, if the image says so.
    pub fn data_file_name(&self) -> Option<&str> {
        self.extensions.iter().find_map(|e| match e {
            Extension::DataFile(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether it was in use when it was last written, so that its refcounts may be wrong.
    pub fn is_dirty(&self) -> bool {
        self.has_incompatible(incompatible::DIRTY)
    }

    /// Whether it is marked corrupt.
    pub fn is_corrupt(&self) -> bool {
        self.has_incompatible(incompatible::CORRUPT)
    }

    /// Whether L2 entries describe subclusters.
    pub fn extended_l2(&self) -> bool {
        self.has_incompatible(incompatible::EXTENDED_L2)
    }

    /// Whether lazy refcounts are allowed.
    pub fn lazy_refcounts(&self) -> bool {
        self.raw.compatible.get() & compatible::LAZY_REFCOUNTS != 0
    }

    /// How compressed clusters are compressed.
    pub fn compression_type(&self) -> CompressionType {
        self.compression
    }

    /// Width of refcounts in bits.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.raw.refcount_order.get()
    }

    /// How many internal snapshots there are.
    pub fn snapshots(&self) -> u32 {
        self.raw.nb_snapshots.get()
    }

    /// Whether there are persistent bitmaps that the image vouches for.
    pub fn has_bitmaps(&self) -> bool {
        self.raw.autoclear.get() & autoclear::BITMAPS != 0
            && self
                .extensions
                .iter()
                .any(|e| matches!(e, Extension::Bitmaps(_)))
    }

    /// How the data is encrypted, if it is.
    pub fn encryption(&self) -> Option<Encryption> {
        match self.raw.crypt_method.get() {
            0 => None,
            1 => Some(Encryption::Aes),
            _ => Some(Encryption::Luks),
        }
    }

    fn has_incompatible(&self, bit: u64) -> bool {
        self.raw.incompatible.get() & bit != 0
    }

    pub(crate) fn geometry(&self, slice_bytes: u64) -> Geometry {
        Geometry::new(
            self.raw.cluster_bits.get(),
            self.raw.refcount_order.get(),
            self.extended_l2(),
            slice_bytes,
        )
    }
}

fn check_identity(raw: &RawHeader) -> Result<(), BlockError> {
    if raw.magic.get() != MAGIC {
        return Err(refuse("Image is not in qcow2 format"));
    }
    let version = raw.version.get();
    if !(2..=3).contains(&version) {
        return Err(refuse(format!("Unsupported qcow2 version {version}")));
    }
    let bits = raw.cluster_bits.get();
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits) {
        return Err(refuse(format!("Unsupported cluster size: 2^{bits}")));
    }
    Ok(())
}

/// Refuses unknown incompatible features by the names that the image gives them.
fn check_features(raw: &RawHeader, extensions: &[Extension]) -> Result<(), BlockError> {
    let mut unknown = raw.incompatible.get() & !incompatible::KNOWN;
    if unknown != 0 {
        let table: Vec<&FeatureName> = extensions
            .iter()
            .filter_map(|e| match e {
                Extension::FeatureNames(names) => Some(names),
                _ => None,
            })
            .flatten()
            .collect();
        let mut words = Vec::new();
        for name in table {
            let bit = 1u64.checked_shl(u32::from(name.bit)).unwrap_or(0);
            if name.bitmap == 0 && unknown & bit != 0 {
                unknown &= !bit;
                words.push(name.name.clone());
            }
        }
        if unknown != 0 {
            words.push(format!("Unknown incompatible feature: {unknown:x}"));
        }
        let list = words.join(", ");
        return Err(BlockError::not_supported(
            BlockOperation::Open,
            format!("Unsupported qcow2 feature(s): {list}"),
        ));
    }
    let extended = raw.incompatible.get() & incompatible::EXTENDED_L2 != 0;
    if extended && raw.cluster_bits.get() < MIN_EXTENDED_CLUSTER_BITS {
        return Err(refuse(
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ));
    }
    Ok(())
}

async fn read_backing_name(
    node: &Arc<block_graph::Node>,
    raw: &RawHeader,
) -> Result<Option<String>, BlockError> {
    let at = raw.backing_file_offset.get();
    if at == 0 {
        return Ok(None);
    }
    let len = raw.backing_file_size.get();
    let cluster_size = 1u64 << raw.cluster_bits.get();
    if len > MAX_BACKING_NAME || u64::from(len) > cluster_size - at {
        return Err(refuse("Backing file name too long"));
    }
    let name = node.read(at, IoBuf::zeroed(len as usize)).await?;
    String::from_utf8(name.to_vec())
        .map(Some)
        .map_err(|_| refuse("Backing file name is not UTF-8 text"))
}

fn check_tables(raw: &RawHeader) -> Result<(), BlockError> {
    if raw.refcount_order.get() > MAX_REFCOUNT_ORDER {
        return Err(refuse(
            "Reference count entry width too large; may not exceed 64 bits",
        ));
    }
    let crypt = raw.crypt_method.get();
    if crypt > 2 {
        return Err(refuse(format!("Unsupported encryption method {crypt}")));
    }
    let geometry = Geometry::new(
        raw.cluster_bits.get(),
        raw.refcount_order.get(),
        false,
        4096,
    );
    let aligned = |offset: u64| geometry.in_cluster(offset) == 0;
    let ends_well = |offset: u64, bytes: u64| {
        offset
            .checked_add(bytes)
            .is_some_and(|end| end <= MAX_HOST_OFFSET)
    };
    let clusters = u64::from(raw.refcount_table_clusters.get());
    if clusters == 0 {
        return Err(refuse("Image does not contain a reference count table"));
    }
    let table_bytes = clusters << raw.cluster_bits.get();
    if table_bytes > MAX_REFCOUNT_TABLE_BYTES {
        return Err(refuse("Reference count table too large"));
    }
    let table_at = raw.refcount_table_offset.get();
    if !aligned(table_at) || table_at == 0 || !ends_well(table_at, table_bytes) {
        return Err(refuse("Reference count table offset invalid"));
    }
    if raw.nb_snapshots.get() > MAX_SNAPSHOTS {
        return Err(refuse("Snapshot table too large"));
    }
    if raw.nb_snapshots.get() > 0 && !aligned(raw.snapshots_offset.get()) {
        return Err(refuse("Snapshot table offset invalid"));
    }
    let l1_bytes = u64::from(raw.l1_size.get()) * 8;
    if l1_bytes > MAX_L1_BYTES {
        return Err(refuse("Active L1 table too large"));
    }
    let l1_at = raw.l1_table_offset.get();
    if !aligned(l1_at) || !ends_well(l1_at, l1_bytes) || (l1_at == 0 && l1_bytes > 0) {
        return Err(refuse("Active L1 table offset invalid"));
    }
    check_size(raw)
}

fn check_size(raw: &RawHeader) -> Result<(), BlockError> {
    let extended = raw.incompatible.get() & incompatible::EXTENDED_L2 != 0;
    let geometry = Geometry::new(
        raw.cluster_bits.get(),
        raw.refcount_order.get(),
        extended,
        4096,
    );
    let size = raw.size.get();
    let needed = geometry.l1_entries_for(size);
    if size > i64::MAX as u64 || needed > i32::MAX as u64 {
        return Err(BlockError {
            errno: libc_efbig(),
            ..refuse("Image is too big")
        });
    }
    if u64::from(raw.l1_size.get()) < needed {
        return Err(refuse("L1 table is too small"));
    }
    Ok(())
}

/// `EFBIG`, which the kernel numbers 27 on every architecture of ours.
pub(crate) const fn libc_efbig() -> i32 {
    27
}

fn check_compression(raw: &RawHeader) -> Result<CompressionType, BlockError> {
    let bit = raw.incompatible.get() & incompatible::COMPRESSION != 0;
    let kind = match raw.compression_type {
        0 => CompressionType::Zlib,
        1 => CompressionType::Zstd,
        other => return Err(refuse(format!("qcow2: unknown compression type: {other}"))),
    };
    match (kind, bit) {
        (CompressionType::Zlib, true) => Err(refuse(
            "qcow2: Compression type incompatible feature bit must not be set",
        )),
        (CompressionType::Zstd, false) => Err(refuse(
            "qcow2: Compression type incompatible feature bit must be set",
        )),
        _ => Ok(kind),
    }
}

/// The bytes of a whole header: fixed fields, extensions, backing file name.
///
/// # Errors
/// When they do not fit into one cluster.
pub(crate) fn serialize(
    raw: &RawHeader,
    extensions: &[Extension],
    backing_file: Option<&str>,
) -> Result<Vec<u8>, BlockError> {
    let mut raw = *raw;
    let cluster_len = 1usize << raw.cluster_bits.get();
    let tail = extensions::serialize(extensions);
    let fixed = if raw.version.get() == 2 {
        V2_LEN
    } else {
        V3_LEN
    } as usize;
    if let Some(name) = backing_file {
        raw.backing_file_offset = U64::new((fixed + tail.len()) as u64);
        raw.backing_file_size = U32::new(u32::try_from(name.len()).unwrap_or(u32::MAX));
    }
    let mut bytes = raw.as_bytes().to_vec();
    bytes.truncate(fixed);
    bytes.extend_from_slice(&tail);
    bytes.extend_from_slice(backing_file.unwrap_or_default().as_bytes());
    if bytes.len() > cluster_len {
        return Err(BlockError {
            errno: 28,
            ..refuse("Could not write qcow2 header: No space left on device")
        });
    }
    Ok(bytes)
}

/// Where fields stand that are changed in place later.
pub(crate) mod field {
    /// `size`.
    pub(crate) const SIZE: usize = 24;
    /// `l1_size` and `l1_table_offset`.
    pub(crate) const L1: usize = 36;
    /// `refcount_table_offset` and `refcount_table_clusters`.
    pub(crate) const REFCOUNT_TABLE: usize = 48;
    /// `incompatible_features`.
    pub(crate) const INCOMPATIBLE: usize = 72;
    /// `autoclear_features`.
    pub(crate) const AUTOCLEAR: usize = 88;
}

/// The active L1 table and the refcount table, as the header places them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TablePlaces {
    pub l1: HostOffset,
    pub l1_entries: usize,
    pub refcount_table: HostOffset,
    pub refcount_clusters: u64,
}

impl ImageHeader {
    pub(crate) fn places(&self) -> TablePlaces {
        TablePlaces {
            l1: HostOffset(self.raw.l1_table_offset.get()),
            l1_entries: self.raw.l1_size.get() as usize,
            refcount_table: HostOffset(self.raw.refcount_table_offset.get()),
            refcount_clusters: u64::from(self.raw.refcount_table_clusters.get()),
        }
    }
}
