//! Chardev backends: sockets, stdio, pty, file, pipe, null, ring buffer.
//!
//! [`open`] turns the schema's `ChardevBackend` into a [`Chardev`]. Each backend is one file. A
//! new one is a file, an arm in `open`, and its line in `schema/pending.toml` gone.

mod plain;
mod socket;
mod stream;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::{ChardevBackend, ChardevBackendBranch, QmpError};
use chardev::socket_address::FdLookup;
use chardev::{Chardev, RingBuffer};

pub use socket::SocketChardev;

/// What backends need of the program around them.
pub struct Surroundings {
    /// Where their connections are served.
    pub runtime: tokio::runtime::Handle,
    stdio_taken: Arc<AtomicBool>,
}

impl Surroundings {
    /// Surroundings on `runtime`; stdio is free.
    pub fn new(runtime: tokio::runtime::Handle) -> Self {
        Self {
            runtime,
            stdio_taken: Arc::default(),
        }
    }

    /// Claims the process's standard input and output until the claim is dropped.
    pub(crate) fn claim_stdio(&self) -> Result<StdioClaim, QmpError> {
        if self.stdio_taken.swap(true, Ordering::SeqCst) {
            return Err(QmpError::generic(
                "cannot use stdio by multiple character devices",
            ));
        }
        Ok(StdioClaim {
            taken: Arc::clone(&self.stdio_taken),
        })
    }
}

/// Holds standard input and output.
pub(crate) struct StdioClaim {
    taken: Arc<AtomicBool>,
}

impl Drop for StdioClaim {
    fn drop(&mut self) {
        self.taken.store(false, Ordering::SeqCst);
    }
}

/// An opened backend, and the pty that was made for it, if any.
pub struct Opened {
    /// The backend.
    pub chardev: Arc<dyn Chardev>,
    /// The pty's path.
    pub pty: Option<String>,
}

/// Opens a backend. Blocks: files are opened, names resolved, and with `wait` a first client is
/// waited for.
///
/// # Errors
/// Words for the client, with QEMU's beginning "Failed to add chardev".
pub fn open(
    id: &str,
    backend: ChardevBackend,
    fds: &dyn FdLookup,
    surroundings: &Surroundings,
) -> Result<Opened, QmpError> {
    let _entered = surroundings.runtime.enter();
    let opened = match backend.r#type {
        ChardevBackendBranch::Socket(wrapper) => {
            SocketChardev::open(wrapper.data, fds, &surroundings.runtime)
                .map(|chardev| Opened { chardev, pty: None })
        }
        ChardevBackendBranch::Stdio(wrapper) => plain::open_stdio(&wrapper.data, surroundings),
        ChardevBackendBranch::File(wrapper) => plain::open_file(&wrapper.data),
        ChardevBackendBranch::Pipe(wrapper) => plain::open_pipe(&wrapper.data),
        ChardevBackendBranch::Pty(wrapper) => plain::open_pty(&wrapper.data),
        ChardevBackendBranch::Null(_) => plain::open_null(),
        ChardevBackendBranch::Ringbuf(wrapper) => {
            plain::open_ring("chardev-ringbuf", wrapper.data.size)
        }
        ChardevBackendBranch::Memory(wrapper) => {
            plain::open_ring("chardev-memory", wrapper.data.size)
        }
    };
    opened
        .map_err(|error| QmpError::generic(format!("Failed to add chardev '{id}': {}", error.desc)))
}

/// The ring buffer for a size that a client gave; like QEMU, 0 or none is the default size.
fn ring_of(size: Option<i64>) -> Result<RingBuffer, QmpError> {
    let size = match size {
        None | Some(0) => RingBuffer::DEFAULT_SIZE,
        // A negative size would be a very large one, and is no power of two.
        Some(size) => u64::try_from(size).unwrap_or(u64::MAX),
    };
    RingBuffer::new(size).map_err(QmpError::generic)
}
