//! The QMP server: any number of clients on any number of monitors; and the monitors of people.
//!
//! ```text
//!   chardev --connections--> Client task --Session--> command --> task of its own --> typed handler
//!                              ^   ^                                                      |
//!                     output --'   '---- events (bounded queue) <--- EventBus <--- subsystems
//! ```
//!
//! - A *client* is one connection: its own negotiation, ids, named descriptors, event queue.
//! - In-band commands of one client run one after the other; of different clients side by side.
//!   Out-of-band commands run at once.
//! - No handler runs in a client's task: a handler that takes long, or panics, harms nobody else.
//! - Everything a client can make grow is bounded; a client that does not read is disconnected
//!   once its events overflow, and is left unread before that.
//!
//! People have monitors of their own ([`MonitorServer::serve_people`], `human.rs`): a prompt and line editing over whatever
//! [`HumanCommands`] runs.
//!
//! Subsystems emit events through [`api::EventSink`], which [`EventBus`] implements, and register
//! handlers in an [`api::CommandTable`] of [`Caller`]. The commands about the monitor itself are in `control.rs`.

mod caller;
mod client;
mod control;
mod events;
mod fdset;
mod human;
mod server;

#[cfg(test)]
mod tests;

pub use caller::Caller;
pub use client::{COMMAND_QUEUE, MAX_OOB_RUNNING, OUTPUT_LIMIT};
pub use control::{ControlHandlers, FdHandlers, version_info};
pub use events::{EVENT_QUEUE, EventBus, Occurrence};
pub use fdset::{FdSets, MAX_FDSET_FDS, MAX_NAMED_FDS, NamedFds, fdset_number};
pub use human::{HISTORY_LINES, HumanCommands, HumanReply, MAX_LINE_CHARS, Readline, Typed};
pub use server::{MAX_CLIENTS, MonitorOptions, MonitorServer};
