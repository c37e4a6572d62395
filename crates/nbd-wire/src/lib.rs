//! The NBD protocol's messages and handshake as pure state machines: bytes in, messages out.
//!
//! No socket, clock, thread or file: the server and client above feed bytes and send what comes
//! back. The specification is the NBD project's `doc/proto.md`, with its extended headers extension.
//!
//! # Lifecycle
//! - Handshake: [`ServerHandshake`] or [`ClientHandshake`]. Send `take_output`, feed what arrives,
//!   look at the status, until it says that the transmission phase begins (or TLS, or the end).
//! - Transmission: read [`RequestFormat::header_bytes`] bytes and give them to [`Request::decode`];
//!   read [`Request::payload_bytes`] bytes straight into a buffer of yours; ask [`validate`] whether
//!   the request may run; answer with the encoders of [`reply`]. None of these allocates.
//!
//! # Invariants
//! - Whatever a peer sends leads to an error value, in bounded memory: see the `MAX_*` constants.
//! - How input was split changes nothing.
//! - Everything from before STARTTLS is forgotten, and plain text behind it ends the session.
//!
//! # Where a new thing goes
//! Numbers: `protocol.rs`. A command: [`Command`], [`validate`]. An option: `handshake/server.rs` and
//! `handshake/client.rs`. A kind of reply: `reply.rs`.

mod bytes;
mod error;
mod handshake;
pub mod protocol;
pub mod reply;
mod request;

pub use error::WireError;
pub use handshake::client::{ClientHandshake, ClientStatus, ClientWishes, Goal};
pub use handshake::server::{CloseReason, Exports, ServerHandshake, ServerStatus, Tls};
pub use handshake::{
    BlockSize, ExportInfo, ListedExport, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_PENDING_OUTPUT_BYTES,
    MAX_REPLIES, MAX_SKIPPED_OPTION_BYTES, MetaContext, Negotiated, Ready,
};
pub use protocol::{Command, CommandFlags, ErrorCode, ReplyFlags, TransmissionFlags};
pub use request::{
    COMPACT_REQUEST_BYTES, EXTENDED_REQUEST_BYTES, MAX_PAYLOAD_BYTES, Request, RequestFormat,
    StatusSelection, validate,
};

/// The longest name, description, query or message that the protocol allows.
pub const MAX_STRING_BYTES: usize = 4096;
