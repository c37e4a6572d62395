//! Streams over descriptors: sockets with descriptors coming along, and pairs of pipes or files.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use chardev::ByteStream;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::Notify;

/// The most descriptors one message carries on Linux.
const MAX_FDS_PER_MESSAGE: usize = 253;

/// How many streams of a chardev are open, and a bell for when one closes.
#[derive(Default)]
pub(crate) struct OpenCount {
    open: AtomicUsize,
    pub(crate) changed: Notify,
}

impl OpenCount {
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn opened(self: &Arc<Self>) -> OpenToken {
        self.open.fetch_add(1, Ordering::SeqCst);
        OpenToken {
            count: Arc::clone(self),
        }
    }
}

/// Counts one open stream until it is dropped.
pub(crate) struct OpenToken {
    count: Arc<OpenCount>,
}

impl Drop for OpenToken {
    fn drop(&mut self) {
        self.count.open.fetch_sub(1, Ordering::SeqCst);
        self.count.changed.notify_waiters();
    }
}

/// A connected socket.
pub(crate) struct SocketStream {
    fd: AsyncFd<OwnedFd>,
    received: Vec<OwnedFd>,
    _open: OpenToken,
}

impl SocketStream {
    /// Takes over a connected socket and makes it non-blocking.
    pub(crate) fn new(fd: OwnedFd, open: OpenToken) -> io::Result<Self> {
        let fd = host_io::watch_fd(fd, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            fd,
            received: Vec::new(),
            _open: open,
        })
    }
}

fn receive(fd: &OwnedFd, into: &mut [u8], received: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(into)];
    let message = recvmsg(fd, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = ancillary {
            received.extend(fds);
        }
    }
    Ok(message.bytes)
}

impl AsyncRead for SocketStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.fd.poll_read_ready(cx))?;
            let into = buf.initialize_unfilled();
            let received = &mut this.received;
            match ready.try_io(|fd| receive(fd.get_ref(), into, received)) {
                Ok(result) => {
                    buf.advance(result?);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for SocketStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.fd.poll_write_ready(cx))?;
            let sent =
                ready.try_io(|fd| send(fd.get_ref(), buf, SendFlags::NOSIGNAL).map_err(Into::into));
            match sent {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = rustix::net::shutdown(self.fd.get_ref(), rustix::net::Shutdown::Write);
        Poll::Ready(ended.map_err(Into::into))
    }
}

impl ByteStream for SocketStream {
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.received)
    }
}

/// One direction of a [`PairStream`].
enum End {
    /// Pipes, terminals: waited for.
    Polled(AsyncFd<OwnedFd>),
    /// Regular files, which are always ready.
    Always(OwnedFd),
    /// Nothing: reads wait for ever, writes vanish.
    Nothing,
}

impl End {
    fn new(fd: Option<OwnedFd>, interest: Interest) -> io::Result<Self> {
        let Some(fd) = fd else {
            return Ok(Self::Nothing);
        };
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if kind == rustix::fs::FileType::RegularFile {
            return Ok(Self::Always(fd));
        }
        // /dev/null and its like cannot be watched, and are always ready.
        let unwatched = fd.try_clone()?;
        match host_io::watch_fd(fd, interest) {
            Ok(watched) => Ok(Self::Polled(watched)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Ok(Self::Always(unwatched))
            }
            Err(error) => Err(error),
        }
    }
}

/// A stream made of two descriptors (stdio, a pipe pair, a file and nothing to read) or one used
/// twice (a pty).
///
/// It is not a connection that the other side could close: after the end of its input nothing
/// comes any more, and output goes on. A guest is heard also with `</dev/null`.
pub(crate) struct PairStream {
    input: End,
    output: End,
    _open: OpenToken,
}

impl PairStream {
    /// A stream that reads from `input` and writes to `output`.
    pub(crate) fn new(
        input: Option<OwnedFd>,
        output: Option<OwnedFd>,
        open: OpenToken,
    ) -> io::Result<Self> {
        Ok(Self {
            input: End::new(input, Interest::READABLE)?,
            output: End::new(output, Interest::WRITABLE)?,
            _open: open,
        })
    }
}

fn read_some(fd: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let mut parts = [IoSliceMut::new(into)];
    Ok(rustix::io::readv(fd, &mut parts)?)
}

fn write_some(fd: impl AsFd, from: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::writev(fd, &[IoSlice::new(from)])?)
}

impl AsyncRead for PairStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let into = buf.initialize_unfilled();
        if into.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let count = match &self.input {
            End::Nothing => return Poll::Pending,
            End::Always(fd) => read_some(fd, into)?,
            End::Polled(fd) => loop {
                let mut ready = ready!(fd.poll_read_ready(cx))?;
                if let Ok(result) = ready.try_io(|fd| read_some(fd.get_ref(), &mut *into)) {
                    break result?;
                }
            },
        };
        if count == 0 {
            self.input = End::Nothing;
            return Poll::Pending;
        }
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PairStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &self.output {
            End::Nothing => Poll::Ready(Ok(buf.len())),
            End::Always(fd) => Poll::Ready(write_some(fd, buf)),
            End::Polled(fd) => loop {
                let mut ready = ready!(fd.poll_write_ready(cx))?;
                if let Ok(result) = ready.try_io(|fd| write_some(fd.get_ref(), buf)) {
                    return Poll::Ready(result);
                }
            },
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl ByteStream for PairStream {
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        Vec::new()
    }
}
