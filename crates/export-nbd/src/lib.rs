//! The NBD server: block nodes offered to clients over stream sockets, plain and in TLS.
//!
//! ```text
//!   NbdServer --- listeners, exports by name, all clients
//!      |  accept: one task per listener          (server.rs)
//!      v
//!   connection  handshake with a deadline, TLS   (connection.rs, tls.rs)
//!      |
//!      v
//!   Transmission: one task, three parts          (transmission.rs)
//!      receive   Inbox: requests from a large buffer, payloads into their own
//!      serve     RequestSlots: one future per request, no allocation for any (serve.rs)
//!      send      Outbox: all replies that are ready go out in one system call
//! ```
//!
//! Lifecycle: [`NbdServer::start`] with bound sockets and the executors to run on;
//! [`NbdServer::add_export`] makes an [`NbdExport`], which goes into the registry of exports and
//! leaves the server when it is shut down; [`NbdServer::stop`] cuts every client off.
//!
//! Invariants:
//! - A connection lives on one executor: it changes once, between handshake and transmission, when
//!   its export has an executor of its own.
//! - What a client makes the server hold is bounded: [`MAX_REQUESTS`] requests and
//!   [`MAX_HELD_PAYLOAD_BYTES`] bytes of data per connection, counted until the reply has been sent.
//! - A request that has begun runs to its end, also when the client has gone; an export waits for
//!   the last one before it lets go of its node.
//! - Nothing that a client sends panics or harms another client.
//!
//! A new command: `serve.rs`. A new metadata context: `block_status.rs` and `nbd_export.rs`.

mod block_status;
mod changed;
mod clients;
mod connection;
mod distinguished_name;
mod inbox;
mod nbd_export;
mod outbox;
mod resize;
mod serve;
mod server;
mod tls;
mod transmission;
mod transport;

pub use nbd_export::{MAX_NAME_BYTES, NbdExport, NbdExportOptions};
pub use server::{Authorizer, NbdServer, NbdServerOptions};
pub use transmission::{MAX_HELD_PAYLOAD_BYTES, MAX_REQUESTS};

/// Why a server cannot be started or an export cannot be added. The words are those that clients
/// of the control protocol read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdServerError {
    /// Another export has the name.
    #[error("NBD server already has export named '{0}'")]
    DuplicateName(String),
    /// The name is over [`MAX_NAME_BYTES`].
    #[error("export name '{0}' too long")]
    NameTooLong(String),
    /// The description is over [`MAX_NAME_BYTES`].
    #[error("description '{0}' too long")]
    DescriptionTooLong(String),
    /// The server has been stopped.
    #[error("NBD server not running")]
    Stopped,
    /// No executor to run on, or nothing to listen on.
    #[error("An NBD server needs {0}")]
    Lacking(&'static str),
    /// A listening socket cannot be used.
    #[error("Cannot listen: {0}")]
    Listen(#[source] std::io::Error),
}
