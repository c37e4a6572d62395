//! The server: listeners, exports by name, all clients.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use host_io::{ExecutorHandle, Listener, Stream};
use nbd_wire::{ExportInfo, Exports, ListedExport};
use parking_lot::Mutex;
use tls_session::ServerTls;

use crate::NbdServerError;
use crate::changed::Changed;
use crate::clients::Clients;
use crate::connection;
use crate::nbd_export::{NbdExport, NbdExportOptions};

/// Says whether the client with this distinguished name (see RFC 4514) may use the server.
pub type Authorizer = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// How long accepting pauses when the host has run out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a server treats its clients.
#[derive(Clone)]
pub struct NbdServerOptions {
    /// TLS, which clients must then use.
    pub tls: Option<ServerTls>,
    /// Asked about each client's certificate.
    pub authorizer: Option<Authorizer>,
    /// How many clients may be connected at once; 0 for no limit. Others wait.
    pub max_connections: u32,
    /// How long a client may take for the handshake, in seconds; 0 for no limit.
    pub handshake_max_seconds: u32,
}

impl Default for NbdServerOptions {
    /// QEMU's defaults: no TLS, 100 connections, 10 seconds.
    fn default() -> Self {
        Self {
            tls: None,
            authorizer: None,
            max_connections: 100,
            handshake_max_seconds: 10,
        }
    }
}

/// What a server's connections share.
pub(crate) struct ServerState {
    pub(crate) options: NbdServerOptions,
    executors: Vec<ExecutorHandle>,
    next_executor: AtomicUsize,
    /// In the order in which they were added.
    exports: Mutex<Vec<Arc<NbdExport>>>,
    clients: Arc<Clients>,
    /// How many listeners are still open.
    listening: Mutex<usize>,
    stopped_listening: Changed,
}

impl ServerState {
    pub(crate) fn find_export(&self, name: &str) -> Option<Arc<NbdExport>> {
        let exports = self.exports.lock();
        let found = exports.iter().find(|export| export.name() == name);
        found.map(Arc::clone)
    }

    pub(crate) fn forget_export(&self, export: &NbdExport) {
        self.exports
            .lock()
            .retain(|known| !std::ptr::eq(&**known, export));
    }

    fn next_executor(&self) -> Option<&ExecutorHandle> {
        let turn = self.next_executor.fetch_add(1, Ordering::Relaxed);
        self.executors.get(turn % self.executors.len().max(1))
    }
}

impl Exports for ServerState {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        self.find_export(name).map(|export| export.info())
    }

    fn list(&self) -> Vec<ListedExport> {
        let exports = self.exports.lock();
        let listed = |export: &Arc<NbdExport>| ListedExport {
            name: export.name().to_owned(),
            description: export.description().unwrap_or_default().to_owned(),
        };
        exports.iter().map(listed).collect()
    }
}

/// An NBD server. Dropping it stops it without waiting.
pub struct NbdServer {
    state: Arc<ServerState>,
}

impl NbdServer {
    /// Starts serving on `listeners`: sockets that are bound and listening. Connections are spread
    /// over `executors` in turn; the first one accepts them.
    ///
    /// The sockets are closed when the server stops; a path in the file system stays the caller's.
    ///
    /// # Errors
    /// [`NbdServerError::Lacking`] without executor or listener, [`NbdServerError::Listen`].
    pub fn start(
        listeners: Vec<OwnedFd>,
        executors: Vec<ExecutorHandle>,
        options: NbdServerOptions,
    ) -> Result<Self, NbdServerError> {
        let Some(first) = executors.first().cloned() else {
            return Err(NbdServerError::Lacking("an iothread"));
        };
        if listeners.is_empty() {
            return Err(NbdServerError::Lacking("a listening socket"));
        }
        let listeners: Vec<Listener> = listeners
            .into_iter()
            .map(Listener::from_fd)
            .collect::<io::Result<_>>()
            .map_err(NbdServerError::Listen)?;
        let state = Arc::new(ServerState {
            options,
            executors,
            next_executor: AtomicUsize::new(0),
            exports: Mutex::default(),
            clients: Arc::default(),
            listening: Mutex::new(0),
            stopped_listening: Changed::default(),
        });
        for listener in listeners {
            let listening = Listening::new(Arc::clone(&state));
            let accepting = first.spawn(move || async move {
                accept_clients(&listening.state, &listener).await;
                drop(listener);
                // The kernel holds the socket until it has cancelled the wait for a connection.
                host_io::orphans_ended().await;
                drop(listening);
            });
            accepting.detach();
        }
        Ok(Self { state })
    }

    /// Offers a node.
    ///
    /// # Errors
    /// [`NbdServerError::Stopped`], [`NbdServerError::DuplicateName`],
    /// [`NbdServerError::NameTooLong`], [`NbdServerError::DescriptionTooLong`]. The caller then
    /// still has to detach the backend.
    pub fn add_export(&self, options: NbdExportOptions) -> Result<Arc<NbdExport>, NbdServerError> {
        let export = NbdExport::new(options, Arc::downgrade(&self.state))?;
        if self.state.clients.is_closed() {
            return Err(NbdServerError::Stopped);
        }
        let mut exports = self.state.exports.lock();
        if exports.iter().any(|known| known.name() == export.name()) {
            return Err(NbdServerError::DuplicateName(export.name().to_owned()));
        }
        exports.push(Arc::clone(&export));
        Ok(export)
    }

    /// How many clients are connected.
    pub fn client_count(&self) -> usize {
        self.state.clients.len()
    }

    /// Stops listening, cuts all clients off, and waits until their requests have ended and the
    /// listening sockets are closed. The exports stay without clients until they are shut down.
    pub async fn stop(self) {
        self.state.clients.cut_off();
        self.state.clients.all_gone().await;
        let state = &self.state;
        let all_closed = || (*state.listening.lock() == 0).then_some(());
        state.stopped_listening.until(all_closed).await;
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.state.clients.cut_off();
    }
}

/// One open listener, counted until its task has ended.
struct Listening {
    state: Arc<ServerState>,
}

impl Listening {
    fn new(state: Arc<ServerState>) -> Self {
        *state.listening.lock() += 1;
        Self { state }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        *self.state.listening.lock() -= 1;
        self.state.stopped_listening.notify();
    }
}

/// Accepts until the server is stopped.
async fn accept_clients(state: &Arc<ServerState>, listener: &Listener) {
    let limit = match state.options.max_connections {
        0 => usize::MAX,
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let stopped = connection::either(state.clients.closed(), async {
        loop {
            // With the last place taken, further connections wait in the socket's queue.
            state.clients.room_below(limit).await;
            match listener.accept().await {
                Ok(fd) => begin(state, limit, Stream::from_fd(fd)).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an NBD connection");
                    host_io::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    stopped.await;
}

async fn begin(state: &Arc<ServerState>, limit: usize, stream: Stream) {
    // Another listener may have taken the place in between: then this one waits for the next.
    let Some(client) = state.clients.enter_below(limit, &stream).await else {
        return;
    };
    let Some(executor) = state.next_executor() else {
        return;
    };
    let state = Arc::clone(state);
    executor
        .spawn(move || connection::run(state, stream, client))
        .detach();
}
