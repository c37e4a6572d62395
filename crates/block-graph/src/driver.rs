//! What a block driver is: the one trait that formats, protocols and filters implement.
//!
//! Two ways lead to a driver's data. [`Driver::map_now`] answers from cached metadata, without
//! waiting or allocating, where a range lives; the shared layer in [`crate::Node`] then does the
//! I/O itself, however many drivers lie between. Everything else goes through the asynchronous
//! methods, which may load metadata, allocate, copy and decompress.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bitflags::bitflags;
use host_io::{File, IoBuf, IoBytes};

use crate::edge::Edge;
use crate::error::BlockError;
use crate::permissions::Permissions;

/// A driver's answer to come. Futures stay on the executor's thread that polls them.
pub type BlockFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BlockError>> + 'a>>;

bitflags! {
    /// How a write, a write of zeroes or a discard is to be done.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u32 {
        /// Durable before the request ends.
        const FUA = 1;
        /// Zeroes may be stored as a hole.
        const MAY_UNMAP = 1 << 1;
        /// Zeroes only if that is faster than writing them; else `ENOTSUP`.
        const NO_FALLBACK = 1 << 2;
        /// The data is what a read would give already (copy on read).
        const UNCHANGED = 1 << 3;
        /// Store compressed, where the format can.
        const COMPRESSED = 1 << 4;
    }
}

/// What a mapping is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Overwriting in place, without changing metadata.
    Write,
}

/// Where a range of a node lives, as far as cached metadata tells.
#[derive(Debug)]
pub enum Mapping<'a> {
    /// `len` bytes from the asked offset live in a child at `offset`.
    Child {
        /// The edge to the child.
        edge: &'a Edge,
        /// Byte offset in the child.
        offset: u64,
        /// How many bytes from the asked offset on this holds for.
        len: u64,
    },
    /// `len` bytes from the asked offset live in a host file at `offset`.
    File {
        /// The host's file.
        file: &'a File,
        /// Byte offset in the file.
        offset: u64,
        /// How many bytes this holds for.
        len: u64,
    },
    /// `len` bytes read as zeroes. For reading only.
    Zero {
        /// How many bytes this holds for.
        len: u64,
    },
    /// The driver's asynchronous methods must be asked.
    Ask,
}

/// What a driver says about a range, for allocation queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes from the asked offset this holds for; at least one.
    pub len: u64,
    /// What they are.
    pub kind: ExtentKind,
}

/// The kinds of extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Data of this layer.
    Data {
        /// Where, if it lies plainly (not compressed, not encrypted) in a child or file.
        offset: Option<u64>,
        /// Whether `offset` is one of the child that [`Driver::storage_edge`] names, so that its
        /// own extents may tell more (a hole in the file reads as zeroes).
        in_child: bool,
        /// Whether it is stored compressed.
        compressed: bool,
    },
    /// Reads as zeroes by this layer's own word.
    Zero {
        /// Whether space is kept for it here.
        allocated: bool,
        /// Where that space is.
        offset: Option<u64>,
    },
    /// The storage child's own answer at `offset` holds here too: filters, and formats that only
    /// shift.
    InChild {
        /// Byte offset in the child.
        offset: u64,
    },
    /// This layer has nothing: the backing node decides, or zeroes where there is none.
    Unallocated,
}

/// What a node wants of requests, in bytes. All are powers of two where they are alignments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that are not aligned to this cost a read-modify-write.
    pub request_alignment: u32,
    /// The smallest unit in which discarding frees anything.
    pub discard_alignment: u32,
    /// The best size for requests (a cluster).
    pub preferred_transfer: u32,
    /// The largest request; zero for no limit.
    pub max_transfer: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            discard_alignment: 1,
            preferred_transfer: 0,
            max_transfer: 0,
        }
    }
}

/// What can be said about an open image in one place, for queries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverInfo {
    /// Cluster size in bytes, for formats that have clusters.
    pub cluster_size: Option<u64>,
    /// Whether the image is marked dirty; `None` where nothing is known of it.
    pub dirty: Option<bool>,
    /// Whether the image is marked corrupt.
    pub corrupt: bool,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The name of the backing file as the image stores it.
    pub backing_file: Option<String>,
    /// The format of the backing file as the image stores it.
    pub backing_format: Option<String>,
    /// Bytes the host has allocated, where the driver knows.
    pub allocated_bytes: Option<u64>,
    /// The driver's own statistics, shaped as QMP's `BlockStatsSpecific`.
    pub statistics: Option<serde_json::Value>,
    /// The format's own facts, shaped as QMP's `ImageInfoSpecific`.
    pub specific: Option<serde_json::Value>,
}

/// How space is to be reserved when a node grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Not at all.
    #[default]
    Off,
    /// Metadata only.
    Metadata,
    /// By the filesystem's reservation.
    Falloc,
    /// By writing zeroes.
    Full,
}

/// A block driver's instance: one open image, file or filter.
///
/// Instances are shared by threads; any executor may call any method at any time. The caller has
/// checked ranges against [`Driver::length`] (a storage child may be written beyond it, which
/// makes it longer) and that the node may be written.
pub trait Driver: Any + Send + Sync {
    /// The driver's name as in `BlockdevDriver`.
    fn name(&self) -> &'static str;

    /// Length in bytes.
    fn length(&self) -> u64;

    /// What it wants of requests.
    fn limits(&self) -> Limits;

    /// The file name that stands for it, or a `json:` description, as queries show it.
    fn filename(&self) -> String;

    /// Facts for queries.
    fn info(&self) -> DriverInfo;

    /// The edges to its children.
    fn children(&self) -> Vec<Arc<Edge>>;

    /// The child that holds what this driver's extents point to.
    fn storage_edge(&self) -> Option<&Edge>;

    /// The child that answers for what this layer has not allocated.
    fn backing_edge(&self) -> Option<&Edge> {
        None
    }

    /// Whether a mapping that [`Driver::map_now`] gave stays true for as long as the length stays.
    /// Formats that free and reuse space answer no.
    fn mappings_are_fixed(&self) -> bool;

    /// What it asks of one child, given what its own parents ask of it.
    fn child_permissions(&self, edge: &Edge, asked: Permissions) -> Permissions;

    /// Makes room for new permissions, for example by taking a lock that other processes see.
    /// What is taken here beyond what is held is given up by `permissions_settled`.
    ///
    /// # Errors
    /// Words for the client; nothing has changed then.
    fn permissions_wanted(&self, wanted: Permissions) -> Result<(), String>;

    /// The permissions are now these: whatever was held beyond them is given up.
    fn permissions_settled(&self, settled: Permissions);

    /// Where `offset` lives for at most `len` bytes, if that can be said at once.
    fn map_now(&self, access: Access, offset: u64, len: u64) -> Mapping<'_>;

    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: IoBuf) -> BlockFuture<'_, IoBuf>;

    /// Stores `data` at `offset`. `FUA` is the caller's business.
    fn write(&self, offset: u64, data: IoBytes, flags: WriteFlags) -> BlockFuture<'_, ()>;

    /// Makes `len` bytes from `offset` read as zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> BlockFuture<'_, ()>;

    /// Says that the content of a range is not needed any more.
    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()>;

    /// Makes everything that was written durable.
    fn flush(&self) -> BlockFuture<'_, ()>;

    /// What a range is, beginning at `offset`, for at most `len` bytes.
    fn extent(&self, offset: u64, len: u64) -> BlockFuture<'_, Extent>;

    /// Changes the length. `exact` refuses what cannot be had to the byte.
    fn resize(&self, length: u64, exact: bool, how: Preallocation) -> BlockFuture<'_, ()>;

    /// Called once the permissions for writing are held and before the first write: the place to
    /// mark an image as in use. After [`Driver::close`] it brings the image back into use.
    fn activate(&self) -> BlockFuture<'_, ()>;

    /// Leaves everything behind clean and durable; the last call, or the last before
    /// [`Driver::activate`].
    fn close(&self) -> BlockFuture<'_, ()>;
}
