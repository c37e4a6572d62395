//! The machine protocol as Rust types: Ratite's QAPI schema and what is generated from it.
//!
//! `schema/*.json` says which commands, events and types there are; `cargo xtask codegen` turns that
//! into [`generated`], which is checked in. What `schema/pending.toml` lists is left out of all of
//! it, so what this crate has is what the servers serve.
//!
//! There are two programs: the storage daemon, whose root file is `schema/schema.json`, and the
//! machine, whose root file `schema/machine.json` includes that one and adds to it. The Rust types are
//! made once, from the machine's schema; what each program lists is its [`Interface`].
//!
//! A value of an enum that only some builds have is under a condition in the schema (`'if':
//! 'CONFIG_TLS_ANON_PSK'`) and under a cargo feature here (`tls-anon-psk`): a build without it neither
//! lists the value nor takes it, and says which feature it lacks.
//!
//! # What a server uses
//!
//! - per schema module a trait of handlers (`JobCommands`) and a function (`register_job`) that
//!   enters them into a [`CommandTable`]; a handler that is missing does not compile, and
//!   [`CommandTable::missing`] tells which modules were never registered. A program registers the
//!   modules of its own schema and leaves the others alone;
//! - [`Event`], one variant per event;
//! - [`Interface::STORAGE_DAEMON`] or [`Interface::MACHINE`]: the names of its commands and events, and
//!   the answer to `query-qmp-schema`.
//!
//! # What a client uses
//!
//! [`commands`]: one type per command, each a [`Command`] with its arguments and its output, and
//! [`reply_from_json`], which keeps members that the schema does not know.
//!
//! # Reading values
//!
//! Every type reads itself from an [`Input`] ([`FromQapi`]) and writes itself to JSON ([`ToQapi`]).
//! Reading checks what QEMU's visitors check, in the same order and with the same words; see
//! [`visit`] for the three modes.
//!
//! # Invariants
//!
//! No socket, clock, thread or file. No input panics; nesting is bounded by
//! [`visit::VISIT_DEPTH_MAX`].
//!
//! # Where a new thing goes
//!
//! A command, event or type: `schema/*.json`, in a file that `schema.json` includes if the storage
//! daemon has it and in one that only `machine.json` includes if not; then `cargo xtask codegen`.
//! Something that every command should know: [`CommandSpec`] and the crate `qapi-codegen`.

mod builtin;
mod command;
mod error;
mod event_sink;
#[rustfmt::skip]
#[allow(
    missing_docs,
    unreachable_patterns,
    clippy::all,
    clippy::pedantic,
    reason = "generated: the schema's checker has its own rules on names and documentation"
)]
pub mod generated;
mod interface;
pub mod keyval;
pub mod visit;

pub use builtin::{NoArguments, Null};
pub use command::{Command, CommandSpec, CommandTable, Handler, Registered, Return};
pub use error::QmpError;
pub use event_sink::{EventSink, is_well_formed_id};
pub use generated::*;
pub use interface::{INTROSPECTION, Interface, MACHINE_INTROSPECTION};
pub use visit::{
    FromQapi, Input, Members, QapiObject, ToQapi, UnknownMember, from_json, from_keyval,
    reply_from_json,
};

pub use qmp_wire::ErrorClass;

#[cfg(test)]
mod tests;
