//! The byte stream to a server, and descriptors on it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadHalf, WriteHalf,
};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use crate::Address;

/// How many descriptors one command can carry (Linux' own limit for one message is 253; QEMU takes 16).
pub const MAX_DESCRIPTORS: usize = 16;

/// A stream of bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connected stream. Descriptors can be passed over [`Stream::Unix`] only.
pub enum Stream {
    /// A Unix socket.
    Unix(UnixStream),
    /// A TCP connection.
    Tcp(TcpStream),
    /// Anything else: a pipe within the process, TLS, ...
    Other(Box<dyn Duplex>),
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl Stream {
    pub(crate) async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Ok(UnixStream::connect(path).await?.into()),
            Address::Abstract(name) => Ok(UnixStream::connect(format!("\0{name}")).await?.into()),
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                // Commands are short and their replies are waited for.
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
        }
    }

    pub(crate) fn carries_descriptors(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    pub(crate) fn split(self) -> (Reader, Writer) {
        match self {
            Self::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                (Reader::Unix(reader), Writer::Unix(writer))
            }
            Self::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                (Reader::Tcp(reader), Writer::Tcp(writer))
            }
            Self::Other(stream) => {
                let (reader, writer) = tokio::io::split(Box::into_pin(stream));
                (Reader::Other(reader), Writer::Other(writer))
            }
        }
    }
}

type Other = std::pin::Pin<Box<dyn Duplex>>;

pub(crate) enum Reader {
    Unix(unix::OwnedReadHalf),
    Tcp(tcp::OwnedReadHalf),
    Other(ReadHalf<Other>),
}

impl Reader {
    /// Reads what is there; 0 at the end. Dropping the future loses nothing.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(reader) => reader.read(buffer).await,
            Self::Tcp(reader) => reader.read(buffer).await,
            Self::Other(reader) => reader.read(buffer).await,
        }
    }
}

pub(crate) enum Writer {
    Unix(unix::OwnedWriteHalf),
    Tcp(tcp::OwnedWriteHalf),
    Other(WriteHalf<Other>),
}

impl Writer {
    /// Writes some of the bytes, with the descriptors beside the first of them. Dropping the future
    /// before it is ready means that nothing was written.
    pub(crate) async fn write(&mut self, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
        match self {
            Self::Unix(writer) if !fds.is_empty() => {
                let stream: &UnixStream = writer.as_ref();
                stream
                    .async_io(Interest::WRITABLE, || {
                        send_with_descriptors(stream, bytes, fds)
                    })
                    .await
            }
            Self::Unix(writer) => writer.write(bytes).await,
            Self::Tcp(writer) => writer.write(bytes).await,
            Self::Other(writer) => writer.write(bytes).await,
        }
    }

    /// Pushes out what an inner layer keeps back.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        match self {
            // Sockets keep nothing back.
            Self::Unix(_) | Self::Tcp(_) => Ok(()),
            Self::Other(writer) => writer.flush().await,
        }
    }
}

fn send_with_descriptors(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(sent)
}
