//! Block drivers that are no image formats with metadata of their own: host files and devices,
//! `raw`, and the `null` drivers.
//!
//! Each driver is one file with its options type, an `open` or constructor, and its
//! [`block_graph::Driver`] implementation. A new one is a file here and a line in the storage
//! service's registry.

mod file;
mod file_lock;
mod null;
mod raw;

#[cfg(test)]
mod tests;

pub use file::{FileDriver, FileOpener, FileOptions, HostOpener, HostProtocol};
pub use null::{NullDriver, NullOptions};
pub use raw::{RawDriver, RawOptions};
