//! The QMP protocol as a pure state machine: bytes in, messages out.
//!
//! What a peer sends is fed to a [`Session`] (the server's side, one per client) or a
//! [`ClientSession`] (the client's side); what it means comes out as typed messages, and what is to
//! be sent is appended to a byte vector of the caller. The crate knows no socket, clock, thread or
//! file, so every sequence of bytes can be tried in a test.
//!
//! # Lifecycle
//! 1. [`Session::new`], then send [`Session::encode_greeting`].
//! 2. For every block of bytes that arrives: [`Session::feed`], then [`Session::next_request`]
//!    until it answers `None`. An [`Incoming::Answer`] is already decided (negotiation, malformed
//!    input); it must be sent in its place among the replies, by [`Session::encode_answer`].
//! 3. The commands' results go out by [`Session::encode_return`], [`Session::encode_error`] and,
//!    once [`Session::is_negotiated`], [`Session::encode_event`].
//!
//! # Invariants
//! - How the input was split into blocks changes nothing but the time at which messages appear.
//! - Bytes are looked at once; time is linear in the input and no recursion follows its nesting.
//! - A session holds at most the bytes fed and not yet asked for, and one unfinished message within
//!   the limits [`json::MAX_MESSAGE_BYTES`], [`json::MAX_MESSAGE_TOKENS`] and
//!   [`json::MAX_NESTING_DEPTH`].
//! - After any error the parser is where QEMU's would be (docs/interop/qmp-spec, "Forcing the JSON
//!   parser into known-good state").
//!
//! # Where a new thing goes
//! Characters and tokens: `json/lexer.rs`; grammar and limits: `json/parser.rs`; the look of output:
//! `encode.rs`; the envelope (`execute`, `id`, ...) and negotiation: `session.rs`.

mod client;
mod encode;
mod error;
pub mod json;
mod session;

pub use client::{ClientSession, ServerMessage};
pub use encode::{Style, encode_value};
pub use error::{Error, ErrorClass};
pub use session::{Answer, Incoming, Outcome, Session, Timestamp};
