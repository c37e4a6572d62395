//! An asynchronous QMP client for servers of every age, Ratite's and QEMU's.
//!
//! ```no_run
//! # async fn example() -> Result<(), qmp_client::Error> {
//! use std::time::Duration;
//! use qmp_client::{Address, Client, ConnectOptions};
//!
//! let address: Address = "unix:/run/vm/qmp.sock".parse()?;
//! let client = Client::connect(&address, &ConnectOptions::default()).await?;
//! let mut events = client.events();
//! let version = client
//!     .run::<api::commands::QueryVersion>(&api::NoArguments, Duration::from_secs(5))
//!     .await?;
//! println!("{}.{}", version.value.qemu.major, version.value.qemu.minor);
//! println!("{:?}", events.next().await);
//! # Ok(())
//! # }
//! ```
//!
//! # Lifecycle
//! [`Client::connect`] (or [`Client::over`] for a stream that is connected already) waits for the
//! greeting and negotiates. From then on one task owns the stream; [`Client`] is a handle to it that
//! can be cloned at will. The connection ends when the server ends it, when it breaks the protocol,
//! or when the last handle and the last [`EventStream`] are dropped.
//!
//! # Invariants
//! - Every call ends by its deadline. A reply that comes later is recognised by its id and dropped.
//! - Calls do not wait for each other: commands are pipelined, replies are matched by id in any order.
//! - Memory is bounded: at most [`MAX_UNANSWERED`] calls and [`MAX_OUTPUT_BYTES`] of output (and one
//!   command more) are under way, [`EVENT_QUEUE`] events are kept, and a message of the server's is at most
//!   what `qmp_wire` accepts.
//! - Events that an [`EventStream`] was too slow for are counted and told, never lost in silence.
//! - When the connection is lost, every call under way and every later one fails with the same [`Lost`].
//!
//! # Where a new thing goes
//! A way to reach a server: `address.rs` and `stream.rs`; something to do with the conversation itself:
//! `connection.rs`; a way to call that is more convenient: `client.rs`.

mod address;
mod client;
mod connection;
mod error;
mod events;
mod stream;
#[cfg(test)]
mod tests;

pub use address::Address;
pub use client::{Call, Client, ConnectOptions, Oob, Reply};
pub use connection::{MAX_OUTPUT_BYTES, MAX_UNANSWERED};
pub use error::{Error, Lost, ServerError};
pub use events::{EVENT_QUEUE, Event, EventStream, Occurrence};
pub use stream::{Duplex, MAX_DESCRIPTORS, Stream};
