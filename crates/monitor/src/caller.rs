//! What a handler knows of the client that called it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fdset::NamedFds;

/// The descriptors that came with one piece of a client's bytes. Whatever no command of that
/// piece has taken when the last of them has ended is closed.
#[derive(Default)]
pub(crate) struct FdBatch {
    fds: Mutex<VecDeque<OwnedFd>>,
}

impl FdBatch {
    pub(crate) fn new(fds: Vec<OwnedFd>) -> Arc<Self> {
        Arc::new(Self {
            fds: Mutex::new(fds.into()),
        })
    }
}

/// The caller of one command.
pub struct Caller {
    pub(crate) named_fds: Arc<NamedFds>,
    pub(crate) batch: Option<Arc<FdBatch>>,
}

impl Caller {
    /// A caller that is no QMP client: the program itself, from its command line.
    pub fn program() -> Arc<Self> {
        Arc::new(Self {
            named_fds: Arc::default(),
            batch: None,
        })
    }

    /// The next descriptor that came with the command, if any is left.
    pub fn take_fd(&self) -> Option<OwnedFd> {
        self.batch.as_ref()?.fds.lock().pop_front()
    }

    /// The descriptors that this client has named with `getfd`.
    pub fn named_fds(&self) -> &NamedFds {
        &self.named_fds
    }
}
