//! A chardev for tests, whose connections the test makes.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use crate::{ByteStream, Chardev, Connections, RingBuffer};

/// A chardev of the connections that come out of a channel.
pub struct Plug(Mutex<Option<Connections>>);

impl Plug {
    /// A chardev that nobody has claimed.
    pub fn new(connections: Connections) -> Self {
        Self(Mutex::new(Some(connections)))
    }
}

impl Chardev for Plug {
    fn type_name(&self) -> &'static str {
        "chardev-test"
    }
    fn filename(&self) -> String {
        String::new()
    }
    fn take_connections(&self) -> Option<Connections> {
        self.0.lock().take()
    }
    fn return_connections(&self, connections: Connections) {
        *self.0.lock() = Some(connections);
    }
    fn ring_buffer(&self) -> Option<&RingBuffer> {
        None
    }
    fn send_break(&self) {}
}

/// One end of [`tokio::io::duplex`] as a connection.
pub struct Duplex(pub DuplexStream);

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl ByteStream for Duplex {
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        Vec::new()
    }
}
