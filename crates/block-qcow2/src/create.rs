//! Making a new image.
//!
//! Layout: header, refcount table, refcount blocks, L1 table, each from a cluster of its own. The
//! header's first sector is written last, when everything that it refers to is durable: so a crash
//! leaves the old content, no image, or the new one.

use std::sync::Arc;

use block_graph::{
    BlockError, BlockErrorKind, BlockEvents, BlockOperation, Edge, ImageCorrupted, InFlight,
    Preallocation, WriteFlags,
};
use host_io::IoBytes;
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U32, U64};

use crate::driver::{Children, Qcow2};
use crate::extensions::{Extension, FeatureName};
use crate::header::{
    CompressionType, ImageHeader, MAGIC, MAX_BACKING_NAME, RawHeader, V2_LEN, V3_LEN, autoclear,
    compatible, incompatible, libc_efbig, serialize,
};
use crate::options::OpenOptions;
use crate::refcounts::write_count;
use crate::types::{
    Geometry, MAX_CLUSTER_BITS, MAX_DISK_BYTES, MAX_L1_BYTES, MIN_CLUSTER_BITS,
    MIN_EXTENDED_CLUSTER_BITS,
};

/// What a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;

/// What a new image is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Length of the virtual disk in bytes, a multiple of 512.
    pub size: u64,
    /// Format version, 2 or 3.
    pub version: u32,
    /// Cluster size in bytes, a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Width of refcounts in bits, a power of two up to 64.
    pub refcount_bits: u64,
    /// Whether L2 entries describe subclusters.
    pub extended_l2: bool,
    /// How compressed clusters are to be compressed.
    pub compression_type: CompressionType,
    /// The name of the external data file that the header is to hold, if there is one.
    pub data_file_name: Option<String>,
    /// Whether the external data file is to stay readable as a raw image.
    pub data_file_raw: bool,
    /// The name of the backing file.
    pub backing_file: Option<String>,
    /// The format of the backing file.
    pub backing_format: Option<String>,
    /// How space is to be reserved.
    pub preallocation: Preallocation,
    /// Whether refcount updates may be postponed.
    pub lazy_refcounts: bool,
}

impl CreateOptions {
    /// The defaults for a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            extended_l2: false,
            compression_type: CompressionType::Zlib,
            data_file_name: None,
            data_file_raw: false,
            backing_file: None,
            backing_format: None,
            preallocation: Preallocation::Off,
            lazy_refcounts: false,
        }
    }
}

fn refuse(message: impl Into<String>) -> BlockError {
    BlockError::invalid(BlockOperation::Open, message)
}

/// Refuses options that make no sense together, in the words that clients know.
fn check(options: &CreateOptions, has_data_file: bool) -> Result<(), BlockError> {
    let cluster = options.cluster_size;
    let sizes = 1u64 << MIN_CLUSTER_BITS..=1u64 << MAX_CLUSTER_BITS;
    if !cluster.is_power_of_two() || !sizes.contains(&cluster) {
        return Err(refuse(
            "Cluster size must be a power of two between 512 and 2048k",
        ));
    }
    if !options.size.is_multiple_of(512) {
        return Err(refuse("Image size must be a multiple of 512 bytes"));
    }
    if options.backing_format.is_some() && options.backing_file.is_none() {
        return Err(refuse("Backing format cannot be used without backing file"));
    }
    if let Some(name) = &options.backing_file
        && name.len() as u64 > u64::from(MAX_BACKING_NAME)
    {
        let format = options.backing_format.as_deref().unwrap_or("");
        return Err(refuse(format!(
            "Could not assign backing file '{name}' with format '{format}': Invalid argument"
        )));
    }
    let reserves = options.preallocation != Preallocation::Off;
    if options.backing_file.is_some() && reserves && !options.extended_l2 {
        return Err(refuse(
            "Backing file and preallocation can only be used at the same time if extended_l2 is \
             on",
        ));
    }
    if options.backing_file.is_some() && options.data_file_raw {
        return Err(refuse(
            "Backing file and data-file-raw cannot be used at the same time",
        ));
    }
    if options.data_file_raw && !has_data_file {
        return Err(refuse("data-file-raw requires data-file"));
    }
    if !options.refcount_bits.is_power_of_two() || options.refcount_bits > 64 {
        return Err(refuse(
            "Refcount width must be a power of two and may not exceed 64 bits",
        ));
    }
    let least = 1u64 << MIN_EXTENDED_CLUSTER_BITS;
    if options.extended_l2 && options.version >= 3 && cluster < least {
        return Err(refuse(
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ));
    }
    check_version(options, has_data_file)
}

fn check_version(options: &CreateOptions, has_data_file: bool) -> Result<(), BlockError> {
    if options.version == 3 {
        return Ok(());
    }
    if options.version != 2 {
        let version = options.version;
        return Err(refuse(format!("Unsupported qcow2 version {version}")));
    }
    let needs = |what: &str| Err(refuse(format!("{what} (use version=v3 or greater)")));
    if options.extended_l2 {
        return needs(
            "Extended L2 entries are only supported with compatibility level 1.1 and above",
        );
    }
    if options.lazy_refcounts {
        return needs("Lazy refcounts only supported with compatibility level 1.1 and above");
    }
    if options.refcount_bits != 16 {
        return needs(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above",
        );
    }
    if has_data_file {
        return needs(
            "External data files are only supported with compatibility level 1.1 and above",
        );
    }
    if options.compression_type != CompressionType::Zlib {
        return needs(
            "Non-zlib compression type is only supported with compatibility level 1.1 and above",
        );
    }
    Ok(())
}

/// Where the parts of a new image go, in clusters.
struct Plan {
    geometry: Geometry,
    table_clusters: u64,
    blocks: u64,
    l1_entries: u64,
    l1_start: u64,
    end: u64,
}

fn plan(options: &CreateOptions) -> Result<Plan, BlockError> {
    let geometry = Geometry::new(
        options.cluster_size.ilog2(),
        options.refcount_bits.ilog2(),
        options.extended_l2,
        4096,
    );
    let l1_entries = geometry.l1_entries_for(options.size);
    if options.size > MAX_DISK_BYTES {
        let size = options.size;
        return Err(refuse(format!(
            "Could not resize image: offset({size}) exceeds maximum({MAX_DISK_BYTES})"
        )));
    }
    if l1_entries.saturating_mul(8) > MAX_L1_BYTES {
        return Err(BlockError {
            errno: libc_efbig(),
            ..refuse("Could not resize image: Failed to grow the L1 table: File too large")
        });
    }
    // None for a disk of no bytes.
    let l1_clusters = geometry.clusters_for(l1_entries * 8);
    let (mut table_clusters, mut blocks) = (1, 1);
    loop {
        let end = 1 + table_clusters + blocks + l1_clusters;
        let blocks_needed = end.div_ceil(1 << geometry.block_bits());
        let table_needed = geometry.clusters_for(blocks_needed * 8);
        if blocks_needed <= blocks && table_needed <= table_clusters {
            break;
        }
        blocks = blocks.max(blocks_needed);
        table_clusters = table_clusters.max(table_needed);
    }
    let l1_start = 1 + table_clusters + blocks;
    Ok(Plan {
        geometry,
        table_clusters,
        blocks,
        l1_entries,
        l1_start,
        end: l1_start + l1_clusters,
    })
}

/// Makes a new image in `file`, whose old content is lost.
///
/// # Errors
/// Options that make no sense; the host's.
pub async fn create(
    file: &Arc<Edge>,
    data_file: Option<&Arc<Edge>>,
    options: &CreateOptions,
) -> Result<(), BlockError> {
    check(options, data_file.is_some())?;
    let plan = plan(options)?;
    let header = header_bytes(options, &plan, data_file.is_some())?;
    let node = file.node_arc();
    match node.resize(0, false, Preallocation::Off).await {
        // A device keeps its length: then its old content is overwritten where it matters.
        Err(error) if error.kind != BlockErrorKind::Host && node.length() > 0 => {
            let no_header = IoBytes::copy_of(&[0; SECTOR_BYTES]);
            node.write(0, no_header, WriteFlags::empty()).await?;
        }
        other => other?,
    }
    // An old header must not come back over new tables.
    node.flush().await?;
    write_tables(&node, &plan).await?;
    let (first, rest) = header.split_at(header.len().min(SECTOR_BYTES));
    let none = WriteFlags::empty();
    let behind = SECTOR_BYTES as u64;
    node.write(behind, IoBytes::copy_of(rest), none).await?;
    node.flush().await?;
    node.write(0, IoBytes::copy_of(first), none).await?;
    node.flush().await?;
    if let Some(data_file) = data_file {
        let data = data_file.node_arc();
        // What a data file holds already may be what the guest is to see: it is not thrown away.
        if data.length() < options.size {
            let how = match options.preallocation {
                Preallocation::Metadata => Preallocation::Off,
                other => other,
            };
            data.resize(options.size, false, how).await?;
        } else if data.length() > options.size {
            data.resize(options.size, false, Preallocation::Off).await?;
        }
    }
    preallocate(file, data_file, options).await
}

async fn write_tables(node: &Arc<block_graph::Node>, plan: &Plan) -> Result<(), BlockError> {
    let geometry = &plan.geometry;
    let size = geometry.cluster_size();
    let mut table = vec![0u64; (plan.table_clusters * size / 8) as usize];
    for (number, entry) in (0..plan.blocks).zip(&mut table) {
        *entry = ((1 + plan.table_clusters + number) * size).to_be();
    }
    let bytes = IoBytes::copy_of(table.as_bytes());
    node.write(size, bytes, WriteFlags::empty()).await?;
    let per_block = 1u64 << geometry.block_bits();
    for number in 0..plan.blocks {
        let mut block = vec![0; geometry.cluster_len()];
        let first = number * per_block;
        for cluster in first..plan.end.min(first + per_block) {
            write_count(&mut block, cluster - first, geometry.refcount_order, 1);
        }
        let at = (1 + plan.table_clusters + number) * size;
        node.write(at, IoBytes::copy_of(&block), WriteFlags::empty())
            .await?;
    }
    if plan.l1_entries == 0 {
        return Ok(());
    }
    let l1_bytes = (plan.l1_entries * 8).next_multiple_of(512);
    let at = plan.l1_start * size;
    node.write_zeroes(at, l1_bytes, WriteFlags::empty()).await
}

fn header_bytes(
    options: &CreateOptions,
    plan: &Plan,
    has_data_file: bool,
) -> Result<Vec<u8>, BlockError> {
    let size = plan.geometry.cluster_size();
    let mut features = 0;
    if has_data_file {
        features |= incompatible::DATA_FILE;
    }
    if options.compression_type != CompressionType::Zlib {
        features |= incompatible::COMPRESSION;
    }
    if options.extended_l2 {
        features |= incompatible::EXTENDED_L2;
    }
    let is_v2 = options.version == 2;
    let lazy = if options.lazy_refcounts {
        compatible::LAZY_REFCOUNTS
    } else {
        0
    };
    let raw_data = if options.data_file_raw {
        autoclear::RAW_DATA
    } else {
        0
    };
    let raw = RawHeader {
        magic: U32::new(MAGIC),
        version: U32::new(options.version),
        cluster_bits: U32::new(plan.geometry.cluster_bits),
        size: U64::new(options.size),
        l1_size: U32::new(u32::try_from(plan.l1_entries).unwrap_or(u32::MAX)),
        l1_table_offset: U64::new(if plan.l1_entries == 0 {
            0
        } else {
            plan.l1_start * size
        }),
        refcount_table_offset: U64::new(size),
        refcount_table_clusters: U32::new(u32::try_from(plan.table_clusters).unwrap_or(1)),
        incompatible: U64::new(features),
        compatible: U64::new(lazy),
        autoclear: U64::new(raw_data),
        refcount_order: U32::new(plan.geometry.refcount_order),
        header_length: U32::new(if is_v2 { V2_LEN } else { V3_LEN }),
        compression_type: match options.compression_type {
            CompressionType::Zlib => 0,
            CompressionType::Zstd => 1,
        },
        ..RawHeader::default()
    };
    let mut extensions = Vec::new();
    if let Some(format) = &options.backing_format {
        extensions.push(Extension::BackingFormat(format.clone()));
    }
    if let (true, Some(name)) = (has_data_file, &options.data_file_name) {
        extensions.push(Extension::DataFile(name.clone()));
    }
    let backing = options.backing_file.as_deref();
    if !is_v2 {
        extensions.push(Extension::FeatureNames(FeatureName::known()));
        // The table of names is a courtesy: in small clusters there may be no room for it.
        if let Ok(bytes) = serialize(&raw, &extensions, backing) {
            return Ok(bytes);
        }
        extensions.pop();
    }
    serialize(&raw, &extensions, backing)
}

/// Nobody listens while an image is being made.
struct Silent;

impl BlockEvents for Silent {
    fn image_corrupted(&self, event: ImageCorrupted) {
        tracing::error!(message = %event.message, "a new image is corrupt");
    }
}

async fn preallocate(
    file: &Arc<Edge>,
    data_file: Option<&Arc<Edge>>,
    options: &CreateOptions,
) -> Result<(), BlockError> {
    let how = match options.preallocation {
        // What a raw data file holds is what the guest sees: every cluster must be there.
        Preallocation::Off if options.data_file_raw => Preallocation::Metadata,
        other => other,
    };
    if how == Preallocation::Off || options.size == 0 {
        return Ok(());
    }
    let header = ImageHeader::read(file).await?;
    let children = Children {
        file: Arc::clone(file),
        data_file: data_file.cloned(),
        backing: None,
    };
    let in_flight = Arc::new(InFlight::default());
    let open_options = OpenOptions {
        lazy_refcounts: Some(false),
        ..OpenOptions::default()
    };
    let driver = Qcow2::open(
        header,
        children,
        open_options,
        "#new",
        in_flight,
        Arc::new(Silent),
    )
    .await?;
    let image = &driver.image;
    image.preallocate(0, options.size, how).await?;
    image.finish().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_words_that_clients_know() {
        let words = |change: fn(&mut CreateOptions), data| {
            let mut options = CreateOptions::new(1 << 20);
            change(&mut options);
            check(&options, data).unwrap_err().message
        };
        assert_eq!(
            words(|o| o.cluster_size = 300, false),
            "Cluster size must be a power of two between 512 and 2048k"
        );
        assert_eq!(
            words(|o| o.refcount_bits = 3, false),
            "Refcount width must be a power of two and may not exceed 64 bits"
        );
        assert_eq!(
            words(
                |o| {
                    o.version = 2;
                    o.lazy_refcounts = true;
                },
                false
            ),
            "Lazy refcounts only supported with compatibility level 1.1 and above (use \
             version=v3 or greater)"
        );
        assert_eq!(
            words(|o| o.data_file_raw = true, false),
            "data-file-raw requires data-file"
        );
        assert!(check(&CreateOptions::new(1 << 30), false).is_ok());
    }

    #[test]
    fn plans_describe_themselves() {
        for cluster_bits in [9, 12, 16, 21] {
            for refcount_bits in [1, 16, 64] {
                let options = CreateOptions {
                    cluster_size: 1 << cluster_bits,
                    refcount_bits,
                    ..CreateOptions::new(1 << 34)
                };
                let plan = plan(&options).unwrap();
                let per_block = 1u64 << plan.geometry.block_bits();
                assert!(plan.blocks * per_block >= plan.end);
                assert!(plan.table_clusters << cluster_bits >= plan.blocks * 8);
            }
        }
    }
}
