//! Block exports: what one is, and the registry of them all.
//!
//! An export offers one node of the block graph to clients outside: over NBD, vhost-user, FUSE.
//! How it does so is the business of the crate that implements [`Export`]; this crate keeps the
//! exports by their ids, removes them in the two modes that clients know, and tells when one is
//! gone.
//!
//! Lifecycle: the maker checks the id ([`ExportRegistry::check_new_id`]), makes the export, and
//! gives it to [`ExportRegistry::add`]. [`ExportRegistry::remove`] shuts it down; while clients'
//! requests run out it is listed as shutting down; then it leaves the list and
//! `BLOCK_EXPORT_DELETED` is emitted.
//!
//! Invariants:
//! - An id is in use until its export has let go of its node.
//! - Each export is shut down once.
//!
//! The registry lives on the control side: its waiting methods run on tokio. A new kind of export
//! is a crate of layer 3 that implements [`Export`].

mod registry;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use api::{BlockExportType, QmpError};

pub use registry::ExportRegistry;

/// The future of [`Export::shutdown`].
pub type ShutdownFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A node of the block graph as it is offered to clients outside.
pub trait Export: Send + Sync + 'static {
    /// Its id among all exports.
    fn id(&self) -> &str;

    /// How it is exported.
    fn kind(&self) -> BlockExportType;

    /// The name of the node that it offers now.
    fn node_name(&self) -> String;

    /// Whether a client uses it now.
    fn has_clients(&self) -> bool;

    /// Refuses new clients and cuts off those there are, all before this returns. The future ends
    /// when the last client's requests have ended and the node has been let go.
    fn shutdown(self: Arc<Self>) -> ShutdownFuture;
}

/// Why an export cannot be added or removed, in the words that clients read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The id breaks the rules for identifiers.
    #[error("Invalid block export id")]
    InvalidId,
    /// The id is in use.
    #[error("Block export id '{0}' is already in use")]
    DuplicateId(String),
    /// No export has this id.
    #[error("Export '{0}' is not found")]
    NotFound(String),
    /// It is being removed already.
    #[error("Export '{0}' is already shutting down")]
    ShuttingDown(String),
    /// Removing in mode `safe`, and a client uses it.
    #[error("export '{0}' still in use")]
    InUse(String),
}

impl From<ExportError> for QmpError {
    fn from(error: ExportError) -> Self {
        Self::generic(error.to_string())
    }
}

#[cfg(test)]
mod tests;
