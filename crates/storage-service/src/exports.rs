//! The NBD server and the exports.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use api::{
    BlockExportCommands, BlockExportDelArgs, BlockExportInfo, BlockExportOptions,
    BlockExportOptionsBranch, BlockExportOptionsNbd, BlockExportRemoveMode, BlockExportType,
    EventSink, NbdServerAddOptions, NbdServerOptions, NbdServerOptionsLegacy, NbdServerRemoveArgs,
    QmpError, SocketAddress,
};
use block_graph::{BlockBackend, Node, Permission, Permissions};
use chardev::socket_address::{FdLookup, from_legacy, listen_at};
use export::{Export, ExportRegistry};
use export_nbd::{NbdExportOptions, NbdServer};
use monitor::Caller;
use objects::IoThread;
use tokio::sync::Mutex;

use crate::open::graph_words;
use crate::service::{CallerFds, Handlers, Inner};

/// How many clients wait in the kernel to be accepted.
const LISTEN_BACKLOG: i32 = 128;
/// The most clients at a time, where nothing else is asked for.
const DEFAULT_MAX_CONNECTIONS: u32 = 100;
/// How long a handshake may take, in seconds, where nothing else is asked for.
const DEFAULT_HANDSHAKE_SECONDS: u32 = 10;

/// The running NBD server.
struct Running {
    server: NbdServer,
    /// Socket files to remove when it stops.
    unlink: Vec<String>,
}

impl Running {
    async fn stop(self) {
        self.server.stop().await;
        for path in &self.unlink {
            // Somebody else may have removed it: then there is nothing to do.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// All exports, and the NBD server that carries some.
pub(crate) struct Exports {
    pub(crate) registry: Arc<ExportRegistry>,
    // Starting and stopping wait; whoever comes second waits for the first.
    nbd: Mutex<Option<Running>>,
    // The iothreads that exports run on, by export: an iothread that is deleted as an object
    // lives on until its last export is gone.
    iothreads: parking_lot::Mutex<HashMap<String, Arc<IoThread>>>,
}

impl Exports {
    pub(crate) fn new(events: Arc<dyn EventSink>) -> Self {
        Self {
            registry: ExportRegistry::new(events),
            nbd: Mutex::default(),
            iothreads: parking_lot::Mutex::default(),
        }
    }

    /// Keeps an export's iothread alive, and lets go of those whose exports are gone.
    fn hold_iothread(&self, export: &str, iothread: Option<Arc<IoThread>>) {
        let live: Vec<String> = self
            .registry
            .query()
            .into_iter()
            .map(|info| info.id)
            .collect();
        let mut held = self.iothreads.lock();
        held.retain(|id, _| live.contains(id));
        if let Some(iothread) = iothread {
            held.insert(export.to_owned(), iothread);
        }
    }
}

fn not_running() -> QmpError {
    QmpError::generic("NBD server not running")
}

impl Inner {
    /// `nbd-server-start`, also for the command line.
    pub(crate) async fn start_nbd(
        &self,
        caller: Arc<Caller>,
        options: NbdServerOptions,
    ) -> Result<(), QmpError> {
        let mut running = self.exports.nbd.lock().await;
        if running.is_some() {
            return Err(QmpError::generic("NBD server already running"));
        }
        let tls = match &options.tls_creds {
            Some(id) => Some(self.objects.tls_server(id)?),
            None => None,
        };
        let authorizer = options.tls_authz.map(|id| self.late_authorizer(id));
        let address = options.addr;
        let sockets = tokio::task::spawn_blocking(move || listen(&address, &CallerFds(&caller)));
        let (listeners, unlink) = sockets
            .await
            .map_err(|error| QmpError::generic(error.to_string()))??;
        let server_options = export_nbd::NbdServerOptions {
            tls,
            authorizer,
            max_connections: options.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS),
            handshake_max_seconds: options
                .handshake_max_seconds
                .unwrap_or(DEFAULT_HANDSHAKE_SECONDS),
        };
        let server = NbdServer::start(listeners, vec![self.data_side.clone()], server_options);
        let server = server.map_err(|error| QmpError::generic(error.to_string()))?;
        *running = Some(Running { server, unlink });
        Ok(())
    }

    /// An authorizer that looks its object up for each client, so that the object may be made,
    /// changed or removed while the server runs; without it nobody is let in.
    fn late_authorizer(&self, id: String) -> export_nbd::Authorizer {
        let objects = Arc::clone(&self.objects);
        Arc::new(move |name| match objects.authorizer(&id) {
            Ok(authorizer) => authorizer.is_allowed(name),
            Err(error) => {
                tracing::warn!(%error, "a client is turned away");
                false
            }
        })
    }

    async fn stop_nbd(&self) -> Result<(), QmpError> {
        let mut running = self.exports.nbd.lock().await;
        let Some(stopping) = running.take() else {
            return Err(not_running());
        };
        self.exports.registry.close_kind(BlockExportType::Nbd).await;
        stopping.stop().await;
        Ok(())
    }

    /// `block-export-add`, also for the command line.
    pub(crate) async fn add_export(&self, options: BlockExportOptions) -> Result<(), QmpError> {
        self.exports.registry.check_new_id(&options.id)?;
        let node = self.graph.node(&options.node_name).map_err(|_| {
            QmpError::generic(format!(
                "Cannot find device='' nor node-name='{}'",
                options.node_name
            ))
        })?;
        let iothread = match &options.iothread {
            Some(id) => Some(self.objects.iothread(id)?),
            None => None,
        };
        let writable = options.writable == Some(true);
        if writable && node.is_read_only() {
            return Err(QmpError::generic(
                "Cannot export read-only node as writable",
            ));
        }
        let BlockExportOptionsBranch::Nbd(nbd) = options.r#type;
        let BlockExportOptionsNbd {
            name,
            description,
            allocation_depth,
            resizable,
        } = *nbd;
        let running = self.exports.nbd.lock().await;
        let Some(running) = &*running else {
            return Err(not_running());
        };
        let (backend, resizer) = self.attach_nbd(&node, writable, resizable == Some(true))?;
        let made = running.server.add_export(NbdExportOptions {
            id: options.id,
            name: name.unwrap_or(options.node_name),
            description,
            backend: Arc::clone(&backend),
            resizer: resizer.clone(),
            graph: Arc::clone(&self.graph),
            writable,
            allocation_depth: allocation_depth == Some(true),
            writethrough: options.writethrough == Some(true),
            executor: iothread.as_ref().map(|iothread| iothread.handle().clone()),
        });
        match made {
            Ok(export) => {
                self.exports.hold_iothread(export.id(), iothread);
                Ok(self.exports.registry.add(export)?)
            }
            Err(error) => {
                for backend in std::iter::once(backend).chain(resizer) {
                    self.graph.detach_backend(&backend);
                }
                Err(QmpError::generic(error.to_string()))
            }
        }
    }

    /// The ways into the graph of an export over NBD: for requests, and for clients that may
    /// change the length. Nobody else changes it while the export is there.
    fn attach_nbd(
        &self,
        node: &Arc<Node>,
        writable: bool,
        resizable: bool,
    ) -> Result<(Arc<BlockBackend>, Option<Arc<BlockBackend>>), QmpError> {
        if resizable && !writable {
            return Err(QmpError::generic(
                "Parameter 'resizable' needs parameter 'writable'",
            ));
        }
        let attach = |required, shared| {
            self.graph
                .attach_backend(
                    "an unnamed block device",
                    node,
                    Permissions { required, shared },
                )
                .map_err(|error| graph_words(&error))
        };
        let mut required = Permission::CONSISTENT_READ;
        if writable {
            required |= Permission::WRITE;
        }
        let but_resize = Permission::all() - Permission::RESIZE;
        if !resizable {
            return Ok((attach(required, but_resize)?, None));
        }
        let backend = attach(required, Permission::all())?;
        match attach(Permission::RESIZE, but_resize) {
            Ok(resizer) => Ok((backend, Some(resizer))),
            Err(error) => {
                self.graph.detach_backend(&backend);
                Err(error)
            }
        }
    }

    /// The older command: the export's id is its name, and a read-only node is exported so.
    async fn add_nbd_export(&self, options: NbdServerAddOptions) -> Result<(), QmpError> {
        let node = self
            .graph
            .node(&options.device)
            .map_err(|error| graph_words(&error))?;
        let id = options
            .name
            .clone()
            .unwrap_or_else(|| options.device.clone());
        let writable = options
            .writable
            .map(|writable| writable && !node.is_read_only());
        let nbd = BlockExportOptionsNbd {
            name: options.name,
            description: options.description,
            allocation_depth: None,
            resizable: None,
        };
        self.add_export(BlockExportOptions {
            r#type: BlockExportOptionsBranch::Nbd(Box::new(nbd)),
            id,
            fixed_iothread: None,
            iothread: None,
            node_name: options.device,
            writable,
            writethrough: None,
        })
        .await
    }

    /// Ends all exports and the NBD server.
    pub(crate) async fn close_exports(&self) {
        self.exports.registry.close_all().await;
        if let Some(running) = self.exports.nbd.lock().await.take() {
            running.stop().await;
        }
    }
}

fn listen(
    address: &SocketAddress,
    fds: &dyn FdLookup,
) -> Result<(Vec<OwnedFd>, Vec<String>), QmpError> {
    let sockets = listen_at(address, LISTEN_BACKLOG, fds)?;
    let mut listeners = Vec::new();
    let mut unlink = Vec::new();
    for socket in sockets {
        listeners.push(socket.fd);
        unlink.extend(socket.unlink);
    }
    Ok((listeners, unlink))
}

impl BlockExportCommands<Caller> for Handlers {
    async fn nbd_server_start(
        &self,
        caller: Arc<Caller>,
        options: NbdServerOptionsLegacy,
    ) -> Result<(), QmpError> {
        let options = NbdServerOptions {
            handshake_max_seconds: options.handshake_max_seconds,
            tls_creds: options.tls_creds,
            tls_authz: options.tls_authz,
            max_connections: options.max_connections,
            addr: from_legacy(options.addr),
        };
        self.inner.start_nbd(caller, options).await
    }

    async fn nbd_server_add(
        &self,
        _caller: Arc<Caller>,
        options: NbdServerAddOptions,
    ) -> Result<(), QmpError> {
        let inner = Arc::clone(&self.inner);
        self.inner
            .sequence
            .run(async move { inner.add_nbd_export(options).await })
            .await
    }

    async fn nbd_server_remove(
        &self,
        _caller: Arc<Caller>,
        arguments: NbdServerRemoveArgs,
    ) -> Result<(), QmpError> {
        let mode = arguments.mode.unwrap_or(BlockExportRemoveMode::Safe);
        Ok(self
            .inner
            .exports
            .registry
            .remove(&arguments.name, mode)
            .await?)
    }

    async fn nbd_server_stop(&self, _caller: Arc<Caller>) -> Result<(), QmpError> {
        self.inner.stop_nbd().await
    }

    async fn block_export_add(
        &self,
        _caller: Arc<Caller>,
        options: BlockExportOptions,
    ) -> Result<(), QmpError> {
        let inner = Arc::clone(&self.inner);
        self.inner
            .sequence
            .run(async move { inner.add_export(options).await })
            .await
    }

    async fn block_export_del(
        &self,
        _caller: Arc<Caller>,
        arguments: BlockExportDelArgs,
    ) -> Result<(), QmpError> {
        let mode = arguments.mode.unwrap_or(BlockExportRemoveMode::Safe);
        Ok(self
            .inner
            .exports
            .registry
            .remove(&arguments.id, mode)
            .await?)
    }

    async fn query_block_exports(
        &self,
        _caller: Arc<Caller>,
    ) -> Result<Vec<BlockExportInfo>, QmpError> {
        Ok(self.inner.exports.registry.query())
    }
}
