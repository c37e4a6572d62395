//! The host beneath Ratite's data side: a single-threaded executor over io_uring, files, stream
//! sockets, timers, buffers, and threads for calls that block.
//!
//! ```text
//!   export, job, device            (futures that need not be Send)
//!        |  File::read_at, Stream::recv, sleep, blocking ...
//!   Operation ---> Reactor (slots: buffer + descriptor are kept until the kernel is done)
//!                    |-- Ring     io_uring, one per executor
//!                    `-- Threads  preadv/pwritev on threads, poll(2) for sockets
//! ```
//!
//! Invariants:
//! - A buffer that was given to an operation belongs to that operation until it ends, even when
//!   the future that waits for it is dropped: the kernel never writes to freed memory.
//! - An operation is started on the executor's thread that runs the calling task, and completes
//!   there. Any file can be used from any executor.
//! - Nothing here is global: each [`Executor`] has its own ring, threads and timers.
//!
//! A new kind of operation is a variant of `op::Request`, one arm in `ring.rs`, one in
//! `threads.rs`, and a method on [`File`] or [`Stream`].

mod buf;
mod code_pages;
mod executor;
mod file;
mod join;
mod op;
mod polling;
mod pool;
mod reactor;
mod request_slots;
mod ring;
mod socket;
mod threads;
mod watch;
mod words;

pub use buf::{BUF_ALIGN, IoBuf, IoBytes};
pub use code_pages::give_back_code;
pub use executor::{
    Executor, ExecutorHandle, Sleep, blocking, current, has_orphans, orphans_ended, sleep,
    spawn_local, yield_now,
};
pub use file::{
    AllocateMode, File, FileExtent, FileKind, LockKind, OpenMode, duplicate_inherited_fd,
};
pub use join::{Gone, JoinHandle};
pub use op::{MAX_BATCH_PARTS, SendBatch};
pub use polling::PollingLimits;
pub use pool::{BlockingPool, MAX_POOL_THREADS};
pub use reactor::Engine;
pub use request_slots::RequestSlots;
pub use socket::{Listener, Stream};
pub use watch::watch_fd;
pub use words::strerror;

#[cfg(test)]
mod tests;
