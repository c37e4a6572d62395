//! The storage daemon's heart: block nodes, jobs, exports, objects and chardevs behind one table
//! of QMP commands.
//!
//! [`StorageService`] owns all of it and is made without globals, so that several can live in one
//! process. The command line uses the same calls as QMP clients ([`StorageService::add_node`]...).
//!
//! Flow of a command: monitor -> typed handler here -> the graph's [`sequence`] if it changes the
//! graph -> the data side's executor for I/O -> answer. Queries look at the graph's present state
//! and never wait.
//!
//! A new block driver is an arm in `open.rs`; a new command is its handler in the file of its
//! subject, named by the schema module's trait.

mod chardev_objects;
mod chardevs;
mod create;
mod exports;
mod image_name;
mod jobs;
mod nodes;
mod open;
mod qcow2_options;
mod queries;
mod reopen;
mod sequence;
mod service;

pub use service::StorageService;
