//! A client's byte stream, plain or in TLS.

use std::cell::Cell;
use std::io;

use host_io::{IoBuf, IoBytes, SendBatch, Stream};

use crate::tls::TlsStream;

/// A client's byte stream. One receive and one send may be under way at a time.
pub(crate) enum Transport {
    /// As it comes from the socket.
    Plain(PlainStream),
    /// In TLS.
    Tls(Box<TlsStream>),
}

/// A socket, and the memory of its last send.
pub(crate) struct PlainStream {
    stream: Stream,
    spare: Cell<Option<Box<SendBatch>>>,
}

impl Transport {
    /// A stream without TLS.
    pub(crate) fn plain(stream: Stream) -> Self {
        Self::Plain(PlainStream {
            stream,
            spare: Cell::new(None),
        })
    }

    /// The socket beneath.
    pub(crate) fn stream(&self) -> &Stream {
        match self {
            Self::Plain(plain) => &plain.stream,
            Self::Tls(tls) => tls.stream(),
        }
    }

    /// Receives up to `buf.len()` bytes; 0 is the end of the stream.
    pub(crate) async fn recv(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        match self {
            Self::Plain(plain) => plain.stream.recv(buf).await,
            Self::Tls(tls) => tls.recv(buf).await,
        }
    }

    /// As [`Self::recv`], waiting until the buffer is full where that can be had.
    pub(crate) async fn recv_whole(&self, buf: IoBuf) -> (io::Result<usize>, IoBuf) {
        match self {
            Self::Plain(plain) => plain.stream.recv_whole(buf).await,
            Self::Tls(tls) => tls.recv(buf).await,
        }
    }

    /// Sends all `parts` and leaves them empty.
    ///
    /// # Errors
    /// The host's; what was sent is unknown then.
    pub(crate) async fn send(&self, parts: &mut Vec<IoBytes>) -> io::Result<()> {
        match self {
            Self::Plain(plain) => {
                let mut batch = plain.spare.take().unwrap_or_default();
                for part in parts.drain(..) {
                    batch.push(part);
                }
                let batch = plain.stream.send_batch(batch).await?;
                plain.spare.set(Some(batch));
                Ok(())
            }
            Self::Tls(tls) => tls.send(parts).await,
        }
    }

    /// Says that nothing more comes.
    pub(crate) async fn finish(&self) {
        if let Self::Tls(tls) = self {
            tls.finish().await;
        }
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) async fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(&mut vec![IoBytes::copy_of(bytes)]).await
    }
}
