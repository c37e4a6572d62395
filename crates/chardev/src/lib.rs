//! Character devices: what carries the bytes of a monitor, a serial port, a console.
//!
//! A *backend* (socket, stdio, pty, file, ring buffer ...) implements [`Chardev`] and lives in a
//! crate of layer 3. A *frontend* (monitor, device) claims a chardev by its id from the
//! [`ChardevRegistry`] and gets its connections, one [`ByteStream`] after the other or, from a
//! listening socket, several at once.
//!
//! One terminal can be two frontends': [`mux`].
//!
//! Lifecycle: `add` -> (`claim` -> connections ... -> claim dropped)* -> `remove`. A claimed
//! chardev cannot be removed.
//!
//! Invariants: ids are unique; a chardev has at most one frontend; a stream's descriptors come with the bytes they
//! were sent with.

pub mod doubles;
pub mod mux;
mod registry;
mod ring;
pub mod socket_address;

pub use registry::{ChardevClaim, ChardevRegistry};
pub use ring::RingBuffer;

use std::os::fd::OwnedFd;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A connection's bytes, both ways, with the descriptors that come along.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The descriptors that came with the bytes of the last read.
    fn take_fds(&mut self) -> Vec<OwnedFd>;
}

/// The connections of a chardev, as they come. A chardev that is one stream for good (stdio, a
/// pty) gives one; a listening socket gives one for each client.
pub type Connections = mpsc::Receiver<Box<dyn ByteStream>>;

/// How many connections may wait for their frontend.
pub const CONNECTION_BACKLOG: usize = 16;

/// A backend.
pub trait Chardev: Send + Sync + 'static {
    /// The name of its type in the object tree: `chardev-socket`.
    fn type_name(&self) -> &'static str;

    /// What `query-chardev` shows as its filename.
    fn filename(&self) -> String;

    /// The connections; only the first call gets them, until the claim gives them back.
    fn take_connections(&self) -> Option<Connections>;

    /// Gives the connections back when the frontend goes.
    fn return_connections(&self, connections: Connections);

    /// The ring buffer, if it is one.
    fn ring_buffer(&self) -> Option<&RingBuffer>;

    /// Sends a break condition, where there is a line to send it on.
    fn send_break(&self);
}
