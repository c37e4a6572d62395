//! Stream sockets for the data side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::buf::{IoBuf, IoBytes};
use crate::op::{Operation, Request, Resources, SendBatch};
use crate::threads::socket_call;

/// A connected stream socket, used from an executor's thread.
#[derive(Clone, Debug)]
pub struct Stream {
    fd: Arc<OwnedFd>,
}

impl Stream {
    /// Takes over a connected socket. TCP sockets get `TCP_NODELAY`.
    pub fn from_fd(fd: OwnedFd) -> Self {
        // Fails on sockets that are not TCP, which need it not.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
        Self { fd: Arc::new(fd) }
    }

    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Receives up to `buf.len()` bytes; 0 is the peer's end of stream.
    pub async fn recv(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        self.recv_with(buf, Request::Recv { whole: false }).await
    }

    /// Receives up to `buf.len()` bytes and waits, where the engine can, until it is full. Fewer
    /// bytes are no end of stream: that is 0.
    pub async fn recv_whole(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        self.recv_with(buf, Request::Recv { whole: true }).await
    }

    async fn recv_with(&self, buf: IoBuf, request: Request) -> (io::Result<usize>, IoBuf) {
        let outcome = Operation::start(&self.fd, request, Resources::Buf(buf)).await;
        match outcome.resources {
            Resources::Buf(buf) => (outcome.result, buf),
            _ => (outcome.result, IoBuf::with_len(0)),
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// The host's; `BrokenPipe` when the peer has gone.
    pub async fn send_all(&self, bytes: IoBytes) -> io::Result<()> {
        let (mut sent, _) = self.send_now(Resources::Bytes(bytes.clone()))?;
        while sent < bytes.len() {
            let resources = Resources::Bytes(bytes.slice(sent..));
            let outcome = Operation::start(&self.fd, Request::Send, resources).await;
            sent += outcome.result?;
        }
        Ok(())
    }

    /// Sends everything in `batch` and gives it back empty, for the next time.
    ///
    /// # Errors
    /// The host's; `BrokenPipe` when the peer has gone.
    pub async fn send_batch(&self, mut batch: Box<SendBatch>) -> io::Result<Box<SendBatch>> {
        if batch.is_empty() {
            return Ok(batch);
        }
        let (mut sent, mut resources) = self.send_now(Resources::Batch(batch))?;
        loop {
            let Resources::Batch(back) = resources else {
                return Ok(Box::default());
            };
            batch = back;
            batch.advance(sent);
            if batch.is_empty() {
                return Ok(batch);
            }
            let outcome = Operation::start(&self.fd, Request::Send, Resources::Batch(batch)).await;
            sent = outcome.result?;
            resources = outcome.resources;
        }
    }

    /// Sends what the socket has room for, which mostly is all there is: that needs neither a
    /// completion nor another turn of the loop. Says how much that was; the rest has to wait, and
    /// meanwhile it is other tasks' turn.
    fn send_now(&self, mut resources: Resources) -> io::Result<(usize, Resources)> {
        match socket_call(&self.fd, Request::Send, &mut resources) {
            result if result == -libc::EAGAIN || result == -libc::EINTR => Ok((0, resources)),
            result => match usize::try_from(result) {
                Ok(sent) => Ok((sent, resources)),
                Err(_) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
            },
        }
    }

    /// Ends both directions; operations under way end with an error or end of stream.
    pub fn shutdown(&self) {
        // Fails when the peer has gone already, which is what is wanted.
        let _ = rustix::net::shutdown(&*self.fd, rustix::net::Shutdown::Both);
    }
}

/// A listening socket, used from an executor's thread.
#[derive(Clone, Debug)]
pub struct Listener {
    fd: Arc<OwnedFd>,
}

impl Listener {
    /// Takes over a listening socket and makes it non-blocking.
    ///
    /// # Errors
    /// The host's.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The host's. Running out of descriptors is among them: the caller should wait a little
    /// before it asks again.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let flags = rustix::net::SocketFlags::CLOEXEC;
            match rustix::net::accept_with(&*self.fd, flags) {
                Ok(fd) => return Ok(fd),
                Err(rustix::io::Errno::AGAIN) => {
                    Operation::start(&self.fd, Request::PollIn, Resources::None)
                        .await
                        .result?;
                }
                // The peer gave up between connecting and being accepted.
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
