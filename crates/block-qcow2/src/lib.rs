//! The qcow2 image format, versions 2 and 3.
//!
//! ```text
//!   header.rs, extensions.rs   what the header says, checked
//!   entries.rs                 what L1, L2 and refcount table entries say, checked
//!   driver.rs                  block_graph::Driver: the fast path, and tasks for the rest
//!   read.rs write.rs zero.rs compressed_write.rs resize.rs create.rs
//!        |                     requests: change metadata in memory only
//!   image.rs                   Image (the open image), Meta (all metadata in memory)
//!   slice_cache.rs refcounts.rs overlap.rs
//!        |                     L2 slices, counts, what is metadata; no waiting
//!   allocate.rs commit.rs      loading, growing, and writing back in a safe order
//!   check.rs                   finding and mending what is wrong
//!   together.rs                several operations under way at once
//! ```
//!
//! Lifecycle: [`ImageHeader::read`] reads and checks the header; the caller opens what the header
//! names (a data file, a backing file), as its policy allows; [`Qcow2::open`] makes the driver;
//! [`block_graph::Driver::activate`] is called before the first write; [`block_graph::Driver::close`] last.
//!
//! Requests are polled on a [`host_io::Executor`]: what changes an image becomes a task of it.
//!
//! Invariants:
//! - Metadata is changed under one lock that is never held across waiting, and written back only
//!   by `commit.rs`, whose text says why no crash corrupts an image.
//! - Whatever changes an image runs as a task of its own: a request that is dropped half way
//!   leaves nothing half done.
//! - Every offset from the image is checked before it is used; wrong ones are errors.
//! - Data is never written where metadata is.
//!
//! Limits: clusters of 512 bytes to 2 MiB, an L1 table of 32 MiB, a refcount table of 8 MiB, host
//! offsets of 56 bits, 65536 snapshots, 256 header extensions; see the constants of `types`.
//!
//! Where a new thing goes: a header extension in `extensions.rs`; a kind of cluster in
//! `entries.rs`; a request in a file of its own, which changes `Meta` and nothing else.

mod allocate;
mod check;
mod commit;
mod compressed_write;
mod compression;
mod create;
mod driver;
mod entries;
mod extensions;
mod header;
mod image;
mod options;
mod overlap;
mod read;
mod refcounts;
mod resize;
mod slice_cache;
mod together;
mod types;
mod write;
mod zero;

pub use check::{CheckReport, MAX_CHECK_MESSAGES, Repair};
pub use create::{CreateOptions, create};
pub use driver::{Children, Qcow2};
pub use extensions::{Extension, FeatureName};
pub use header::{CompressionType, Encryption, ImageHeader, MAX_BACKING_NAME, MAX_SNAPSHOTS};
pub use options::{
    DEFAULT_L2_ENTRY_BYTES, DEFAULT_MAX_L2_CACHE_BYTES, MIN_REFCOUNT_CACHE_CLUSTERS, OpenOptions,
};
pub use overlap::{OverlapChecks, Structure};
pub use types::{
    MAX_CLUSTER_BITS, MAX_DISK_BYTES, MAX_HOST_OFFSET, MAX_L1_BYTES, MAX_REFCOUNT_ORDER,
    MAX_REFCOUNT_TABLE_BYTES, MIN_CLUSTER_BITS, MIN_EXTENDED_CLUSTER_BITS,
};
