#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod balloon;
mod blk;
mod console;
mod hostile;
mod pci;
mod queues;
mod rng;

pub(crate) use blk::backend_over;
