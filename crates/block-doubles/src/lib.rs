//! Storage for tests of what stands upon it.
//!
//! [`Storage`] is a block driver over memory. It can record every write, zeroing, resize and
//! flush in a [`Log`]; from that, [`Log::crash_at`] makes what a disk could hold after a power
//! failure at any point: everything flushed, and any part, in sectors and in any order, of what
//! was not. It can fail the n-th change, and give way to other tasks before each operation.
//!
//! [`conformance`] is the table of cases that every block driver passes.
//!
//! For tests only: it panics on its own misuse, and where a driver fails.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a double for tests may panic on its own misuse"
)]

mod backend;
pub mod conformance;
mod log;
mod storage;

pub use backend::backend;
pub use log::{Change, Log, Rng, SECTOR, Survivors};
pub use storage::{Faults, MAX_CONTENT, Storage};
