//! One node offered over NBD.

use std::sync::{Arc, Weak};

use api::BlockExportType;
use block_graph::{BlockBackend, Graph, MAX_LENGTH_BYTES};
use export::{Export, ShutdownFuture};
use host_io::{ExecutorHandle, Stream};
use nbd_wire::{BlockSize, ErrorCode, ExportInfo, MAX_PAYLOAD_BYTES, TransmissionFlags};

use crate::NbdServerError;
use crate::block_status::{ALLOCATION_CONTEXT, DEPTH_CONTEXT};
use crate::clients::{Client, Clients};
use crate::resize::Resizer;
use crate::server::ServerState;

/// The longest name and the longest description of an export, in bytes.
pub const MAX_NAME_BYTES: usize = nbd_wire::MAX_STRING_BYTES;

/// The smallest preferred block size that is told, in bytes.
const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// The largest minimum block size that the protocol allows, in bytes.
const LARGEST_MINIMUM_BLOCK_BYTES: u32 = 64 << 10;

/// What an export over NBD is made from.
pub struct NbdExportOptions {
    /// Its id among all exports.
    pub id: String,
    /// The name that clients ask for, at most [`MAX_NAME_BYTES`].
    pub name: String,
    /// For people who list the exports, at most [`MAX_NAME_BYTES`].
    pub description: Option<String>,
    /// The way into the graph; let go by the export's shutdown.
    pub backend: Arc<BlockBackend>,
    /// The graph that the backend is attached to.
    pub graph: Arc<Graph>,
    /// Whether clients may write. The backend must be able to.
    pub writable: bool,
    /// Whether the metadata context `qemu:allocation-depth` is offered.
    pub allocation_depth: bool,
    /// Whether every write is made durable before it is answered.
    pub writethrough: bool,
    /// The way by which clients may change the length: a second backend of the same node, the only
    /// one with the permission to resize. None where they may not. Let go by the export's shutdown.
    pub resizer: Option<Arc<BlockBackend>>,
    /// Where its clients are served, if not where the server is.
    pub executor: Option<ExecutorHandle>,
}

/// One node offered over NBD.
pub struct NbdExport {
    options: NbdExportOptions,
    resizer: Option<Resizer>,
    clients: Arc<Clients>,
    server: Weak<ServerState>,
}

impl NbdExport {
    pub(crate) fn new(
        mut options: NbdExportOptions,
        server: Weak<ServerState>,
    ) -> Result<Arc<Self>, NbdServerError> {
        if options.name.len() > MAX_NAME_BYTES {
            return Err(NbdServerError::NameTooLong(options.name));
        }
        if let Some(description) = &options.description
            && description.len() > MAX_NAME_BYTES
        {
            return Err(NbdServerError::DescriptionTooLong(description.clone()));
        }
        let resizer = options.resizer.take().map(Resizer::new);
        Ok(Arc::new(Self {
            options,
            resizer,
            clients: Arc::default(),
            server,
        }))
    }

    /// The name that clients ask for.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// How many clients use it.
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn backend(&self) -> &Arc<BlockBackend> {
        &self.options.backend
    }

    pub(crate) fn writethrough(&self) -> bool {
        self.options.writethrough
    }

    pub(crate) fn executor(&self) -> Option<&ExecutorHandle> {
        self.options.executor.as_ref()
    }

    /// Changes the length for a client, one of those counted.
    ///
    /// A smaller length takes data from under the others, so it needs the only client.
    ///
    /// # Errors
    /// The code to reply and why.
    pub(crate) async fn resize(&self, length_bytes: u64) -> Result<(), (ErrorCode, String)> {
        let Some(resizer) = &self.resizer else {
            let why = "clients may not resize this export".to_owned();
            return Err((ErrorCode::Permission, why));
        };
        if length_bytes > MAX_LENGTH_BYTES {
            let why = format!("the largest length is {MAX_LENGTH_BYTES} bytes");
            return Err((ErrorCode::NoSpace, why));
        }
        let turn = resizer.turn().await;
        // Only now: a change that came before may have made the length greater.
        if length_bytes < self.options.backend.length() && self.clients.len() > 1 {
            let why = "other clients use the export, so it cannot become smaller".to_owned();
            return Err((ErrorCode::Permission, why));
        }
        let resized = turn.resize(&self.options.graph, length_bytes).await;
        resized.map_err(|error| (ErrorCode::from_linux_errno(error.errno), error.message))
    }

    pub(crate) fn description(&self) -> Option<&str> {
        self.options.description.as_deref()
    }

    /// Counts a client; none when the export is shutting down.
    pub(crate) fn enter(&self, stream: &Stream) -> Option<Client> {
        self.clients.enter(stream)
    }

    /// What the handshake tells of it, as it is now.
    pub(crate) fn info(&self) -> ExportInfo {
        let options = &self.options;
        let mut contexts = vec![ALLOCATION_CONTEXT.to_owned()];
        if options.allocation_depth {
            contexts.push(DEPTH_CONTEXT.to_owned());
        }
        ExportInfo {
            name: options.name.clone(),
            size_bytes: options.backend.length(),
            flags: self.flags(),
            description: options.description.clone(),
            block_size: self.block_size(),
            meta_contexts: contexts,
        }
    }

    fn flags(&self) -> TransmissionFlags {
        // A flush reaches everything that was written to the node, by whichever connection, so
        // clients may use several even for writing.
        let mut flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_CACHE
            | TransmissionFlags::SEND_DF
            | TransmissionFlags::BLOCK_STATUS_PAYLOAD
            | TransmissionFlags::CAN_MULTI_CONN;
        if self.options.writable {
            flags |= TransmissionFlags::SEND_TRIM
                | TransmissionFlags::SEND_WRITE_ZEROES
                | TransmissionFlags::SEND_FAST_ZERO;
        } else {
            flags |= TransmissionFlags::READ_ONLY;
        }
        if self.resizer.is_some() {
            flags |= TransmissionFlags::SEND_RESIZE;
        }
        flags
    }

    fn block_size(&self) -> BlockSize {
        let limits = self.options.backend.edge().node().driver().limits();
        let power_of_two = |bytes: u32| bytes.max(1).checked_next_power_of_two().unwrap_or(1 << 31);
        let minimum = power_of_two(limits.request_alignment).min(LARGEST_MINIMUM_BLOCK_BYTES);
        let preferred = power_of_two(limits.preferred_transfer)
            .max(PREFERRED_BLOCK_BYTES)
            .clamp(minimum, MAX_PAYLOAD_BYTES);
        BlockSize {
            minimum,
            preferred,
            maximum_payload: MAX_PAYLOAD_BYTES,
        }
    }
}

impl Export for NbdExport {
    fn id(&self) -> &str {
        &self.options.id
    }

    fn kind(&self) -> BlockExportType {
        BlockExportType::Nbd
    }

    fn node_name(&self) -> String {
        self.options.backend.edge().node().name().to_owned()
    }

    fn has_clients(&self) -> bool {
        self.clients.len() > 0
    }

    fn shutdown(self: Arc<Self>) -> ShutdownFuture {
        if let Some(server) = self.server.upgrade() {
            server.forget_export(&self);
        }
        self.clients.cut_off();
        Box::pin(async move {
            self.clients.all_gone().await;
            let graph = &self.options.graph;
            graph.detach_backend(&self.options.backend);
            if let Some(resizer) = &self.resizer {
                graph.detach_backend(resizer.backend());
            }
        })
    }
}
