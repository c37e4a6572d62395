//! Lengths that clients change: the `RESIZE` extension of proto.md.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_graph::{BlockBackend, BlockError, Graph, Preallocation};

use crate::changed::Changed;

/// The way by which the clients of one export change its length, one change at a time.
///
/// It is a backend beside the one that serves requests: those are held off while the length
/// changes, whichever connection they came from.
pub(crate) struct Resizer {
    backend: Arc<BlockBackend>,
    busy: AtomicBool,
    freed: Changed,
}

/// The turn of one change, until it is dropped.
pub(crate) struct Turn<'a>(&'a Resizer);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
        self.0.freed.notify();
    }
}

impl Resizer {
    /// `backend` must have the permission to resize, and nobody else may have it.
    pub(crate) fn new(backend: Arc<BlockBackend>) -> Self {
        Self {
            backend,
            busy: AtomicBool::new(false),
            freed: Changed::default(),
        }
    }

    pub(crate) fn backend(&self) -> &Arc<BlockBackend> {
        &self.backend
    }

    /// Waits until the changes that came before have been made.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let free = || (!self.busy.swap(true, Ordering::Acquire)).then_some(());
        self.freed.until(free).await;
        Turn(self)
    }
}

impl Turn<'_> {
    /// Changes the length once all requests that reach the node have ended; those that come
    /// meanwhile wait. What sees the node is told.
    ///
    /// # Errors
    /// The host's, or the image's; the length is as before then.
    pub(crate) async fn resize(self, graph: &Graph, length_bytes: u64) -> Result<(), BlockError> {
        let backend = &self.0.backend;
        let node = backend.edge().node_arc();
        let drained = graph.drain(&node, Some(backend)).await;
        let resized = backend
            .resize(length_bytes, false, Preallocation::Off)
            .await;
        drop(drained);
        resized?;
        graph.tell_length_changed();
        Ok(())
    }
}
