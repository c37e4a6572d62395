//! `socket`: a listening or connecting stream socket.
//!
//! A listening chardev takes any number of clients; each is one connection. A connecting one is
//! one connection at a time, made again after `reconnect-ms` if that is asked for.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use api::{ChardevSocket, QmpError, SocketAddress};
use chardev::socket_address::{FdLookup, Listening, connect_to, describe, from_legacy, listen_at};
use chardev::{ByteStream, CONNECTION_BACKLOG, Chardev, Connections, RingBuffer};
use parking_lot::Mutex;
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::stream::{OpenCount, SocketStream};

/// How many connections wait in the kernel.
const LISTEN_BACKLOG: i32 = 128;
/// How long accepting rests when the process has run out of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// A socket backend.
pub struct SocketChardev {
    address: String,
    server: bool,
    open: Arc<OpenCount>,
    connections: Mutex<Option<Connections>>,
    tasks: Vec<JoinHandle<()>>,
    unlink: Vec<String>,
}

type Sender = mpsc::Sender<Box<dyn ByteStream>>;

impl SocketChardev {
    /// Binds or connects. Blocks.
    ///
    /// # Errors
    /// Words for the client.
    pub(crate) fn open(
        options: ChardevSocket,
        fds: &dyn FdLookup,
        runtime: &Handle,
    ) -> Result<Arc<dyn Chardev>, QmpError> {
        let server = options.server != Some(false);
        let reconnect = reconnect_interval(&options)?;
        if !server && options.wait.is_some() {
            return Err(QmpError::generic(
                "'wait' option is incompatible with socket in client connect mode",
            ));
        }
        let wait = options.wait == Some(true);
        let address = from_legacy(options.addr);
        let (sender, receiver) = mpsc::channel(CONNECTION_BACKLOG);
        let mut chardev = Self {
            address: describe(&address),
            server,
            open: Arc::default(),
            connections: Mutex::new(Some(receiver)),
            tasks: Vec::new(),
            unlink: Vec::new(),
        };
        if server {
            chardev.listen(&address, wait, fds, &sender, runtime)?;
        } else {
            chardev.connect(address, reconnect, fds, sender, runtime)?;
        }
        Ok(Arc::new(chardev))
    }

    fn listen(
        &mut self,
        address: &SocketAddress,
        wait: bool,
        fds: &dyn FdLookup,
        sender: &Sender,
        runtime: &Handle,
    ) -> Result<(), QmpError> {
        let sockets = listen_at(address, LISTEN_BACKLOG, fds)?;
        if let Some(first) = sockets.first() {
            self.address.clone_from(&first.description);
        }
        if wait && let Some(first) = sockets.first() {
            tracing::info!(address = self.address, "waiting for a connection");
            let fd = accept_with(&first.fd, SocketFlags::CLOEXEC)
                .map_err(|error| QmpError::generic(format!("Failed to accept: {error}")))?;
            let stream = SocketStream::new(fd, self.open.opened())
                .map_err(|error| QmpError::generic(format!("Failed to accept: {error}")))?;
            let _ = sender.try_send(Box::new(stream));
        }
        for Listening { fd, unlink, .. } in sockets {
            self.unlink.extend(unlink);
            let open = Arc::clone(&self.open);
            self.tasks
                .push(runtime.spawn(accept_all(fd, open, sender.clone())));
        }
        Ok(())
    }

    fn connect(
        &mut self,
        address: SocketAddress,
        reconnect: Option<Duration>,
        fds: &dyn FdLookup,
        sender: Sender,
        runtime: &Handle,
    ) -> Result<(), QmpError> {
        let first = match (connect_to(&address, fds), reconnect) {
            (Ok(fd), _) => Some(fd),
            (Err(error), None) => return Err(error),
            (Err(error), Some(_)) => {
                tracing::warn!("{error}; trying again");
                None
            }
        };
        let open = Arc::clone(&self.open);
        if let Some(fd) = first {
            let stream = SocketStream::new(fd, open.opened())
                .map_err(|error| QmpError::generic(format!("Failed to connect: {error}")))?;
            let _ = sender.try_send(Box::new(stream));
        }
        if let Some(interval) = reconnect {
            self.tasks
                .push(runtime.spawn(connect_again(address, interval, open, sender)));
        }
        Ok(())
    }
}

impl Chardev for SocketChardev {
    fn type_name(&self) -> &'static str {
        "chardev-socket"
    }

    fn filename(&self) -> String {
        let state = if self.open.is_open() {
            ""
        } else {
            "disconnected:"
        };
        let role = if self.server { ",server=on" } else { "" };
        format!("{state}{}{role}", self.address)
    }

    fn take_connections(&self) -> Option<Connections> {
        self.connections.lock().take()
    }

    fn return_connections(&self, connections: Connections) {
        *self.connections.lock() = Some(connections);
    }

    fn ring_buffer(&self) -> Option<&RingBuffer> {
        None
    }

    fn send_break(&self) {}
}

impl Drop for SocketChardev {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        for path in &self.unlink {
            // Somebody else may have removed it: then there is nothing to do.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn reconnect_interval(options: &ChardevSocket) -> Result<Option<Duration>, QmpError> {
    let millis = match (options.reconnect, options.reconnect_ms) {
        (Some(_), Some(_)) => {
            return Err(QmpError::generic(
                "'reconnect' and 'reconnect-ms' are mutually exclusive",
            ));
        }
        (Some(seconds), None) => seconds.saturating_mul(1000),
        (None, millis) => millis.unwrap_or(0),
    };
    Ok(u64::try_from(millis)
        .ok()
        .filter(|millis| *millis > 0)
        .map(Duration::from_millis))
}

async fn accept_all(listener: OwnedFd, open: Arc<OpenCount>, sender: Sender) {
    let listener = match host_io::watch_fd(listener, Interest::READABLE) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a listening socket cannot be used");
            return;
        }
    };
    loop {
        match accept_one(&listener).await {
            Ok(fd) => match SocketStream::new(fd, open.opened()) {
                Ok(stream) => {
                    // While its frontend takes none, further clients wait in the kernel.
                    if sender.send(Box::new(stream)).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "a connection cannot be used"),
            },
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn accept_one(listener: &AsyncFd<OwnedFd>) -> std::io::Result<OwnedFd> {
    loop {
        let mut ready = listener.readable().await?;
        let accepted = ready.try_io(|listener| {
            accept_with(listener.get_ref(), SocketFlags::CLOEXEC).map_err(Into::into)
        });
        if let Ok(result) = accepted {
            return result;
        }
    }
}

/// No descriptor can be named once a connection is made again.
struct NoFds;

impl FdLookup for NoFds {
    fn named_fd(&self, name: &str) -> Result<OwnedFd, QmpError> {
        Err(QmpError::generic(format!(
            "File descriptor named '{name}' not found"
        )))
    }
}

async fn connect_again(
    address: SocketAddress,
    interval: Duration,
    open: Arc<OpenCount>,
    sender: Sender,
) {
    loop {
        while open.is_open() {
            let changed = open.changed.notified();
            if open.is_open() {
                changed.await;
            }
        }
        tokio::time::sleep(interval).await;
        let address = address.clone();
        let connected = tokio::task::spawn_blocking(move || connect_to(&address, &NoFds)).await;
        let Ok(Ok(fd)) = connected else { continue };
        match SocketStream::new(fd, open.opened()) {
            Ok(stream) => {
                if sender.send(Box::new(stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "a connection cannot be used"),
        }
    }
}
