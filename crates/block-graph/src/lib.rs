//! The block graph: nodes, the edges between them, what their users may do, and the shared layer
//! that does their I/O.
//!
//! ```text
//!   export, device, job
//!        |  BlockBackend     range check, counting, drain gate
//!        v
//!      Node  "disk"  (qcow2) --- read/write: map_now() all the way down, then one host operation,
//!        |  Edge "file"          or the driver's asynchronous methods
//!        v
//!      Node  "file0" (file)
//! ```
//!
//! Control side: [`Graph`] (names, edges, permissions, drains). Data side: [`Node`], [`Edge`],
//! [`BlockBackend`], from any executor.
//!
//! Invariants:
//! - The node at the lower end of an edge changes only while every backend above it is drained.
//! - No two edges to one node exist of which one needs what the other refuses.
//! - A driver is asked to write only while its node is writable.
//!
//! A new driver implements [`Driver`] in a crate of layer 3 and is registered by the storage
//! service; a new kind of user takes a [`BlockBackend`].

mod backend;
mod description;
mod driver;
mod edge;
mod error;
mod events;
mod graph;
mod in_flight;
mod io_error;
mod node;
mod permissions;
mod range_lock;

pub use backend::{BackendStats, BlockBackend, Frontend, OperationStats};
pub use description::{JSON_PREFIX, beside, description, stored_path};
pub use driver::{
    Access, BlockFuture, Driver, DriverInfo, Extent, ExtentKind, Limits, Mapping, Preallocation,
    WriteFlags,
};
pub use edge::{ChildRole, Edge, ParentName};
pub use error::{BlockError, BlockErrorKind, BlockOperation, GraphError};
pub use events::{BlockEvents, ImageCorrupted};
pub use graph::{Drained, Graph, MAX_NODE_NAME, Replacement};
pub use in_flight::{InFlight, InFlightGuard, InFlightMark};
pub use io_error::{BlockErrorSink, BlockIoError, ErrorPolicy};
pub use node::{BlockStatus, DetectZeroes, MAX_LENGTH_BYTES, Node, NodeOptions, is_zero};
pub use permissions::{Permission, Permissions};
pub use range_lock::{RangeGuard, RangeLocks};
