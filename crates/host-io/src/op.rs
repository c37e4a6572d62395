//! One asynchronous operation: what is asked of the host, what it needs to keep alive, its result.

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use crate::buf::{IoBuf, IoBytes};
use crate::executor;

/// What is asked of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Read into the buffer at a file offset.
    ReadAt { offset: u64 },
    /// Write the bytes at a file offset.
    WriteAt { offset: u64 },
    /// fsync or fdatasync.
    Sync { data_only: bool },
    /// fallocate with these mode flags.
    Fallocate { mode: i32, offset: u64, len: u64 },
    /// Receive into the buffer: what there is, or so much that it is full. Fewer bytes may come in
    /// either case.
    Recv { whole: bool },
    /// Send the bytes, or the batch.
    Send,
    /// Wait until the descriptor is readable.
    PollIn,
}

impl Request {
    /// Whether it waits for others, for any length of time, and can be cancelled. The others go
    /// to a file and always end.
    pub(crate) fn is_waiting(self) -> bool {
        matches!(self, Self::Recv { .. } | Self::Send | Self::PollIn)
    }
}

/// What the kernel uses while an operation runs, and therefore nobody may free before it ends.
pub(crate) enum Resources {
    None,
    Buf(IoBuf),
    Bytes(IoBytes),
    Batch(Box<SendBatch>),
}

/// Several byte runs to be sent by one system call. Its allocations serve again and again.
#[derive(Default)]
pub struct SendBatch {
    parts: Vec<IoBytes>,
    iov: Vec<libc::iovec>,
    header: Option<Box<libc::msghdr>>,
}

// SAFETY: the raw pointers inside point into `parts`, which the batch owns and which are Send.
unsafe impl Send for SendBatch {}

/// How many byte runs one batch carries: the kernel's IOV_MAX is 1024.
pub const MAX_BATCH_PARTS: usize = 256;

impl SendBatch {
    /// Appends `bytes`; empty runs are left out.
    pub fn push(&mut self, bytes: IoBytes) {
        if !bytes.is_empty() {
            self.parts.push(bytes);
        }
    }

    /// How many byte runs it holds.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// How many bytes it holds.
    pub fn total_len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Drops the first `count` bytes, those that have been sent.
    pub fn advance(&mut self, mut count: usize) {
        let mut whole = 0;
        for part in &mut self.parts {
            if count < part.len() {
                *part = part.slice(count..);
                break;
            }
            count -= part.len();
            whole += 1;
        }
        self.parts.drain(..whole);
    }

    /// Empties the batch, keeping its allocations.
    pub fn clear(&mut self) {
        self.parts.clear();
    }

    /// The message header for `sendmsg`, valid until the batch is next changed or dropped.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        self.iov.clear();
        self.iov.extend(
            self.parts
                .iter()
                .take(MAX_BATCH_PARTS)
                .map(|part| libc::iovec {
                    iov_base: part.as_ptr().cast_mut().cast(),
                    iov_len: part.len(),
                }),
        );
        let header = self.header.get_or_insert_with(|| {
            // SAFETY: `msghdr` is plain data for which all zeroes is a valid, empty value.
            Box::new(unsafe { std::mem::zeroed() })
        });
        header.msg_iov = self.iov.as_mut_ptr();
        header.msg_iovlen = self.iov.len();
        &raw const **header
    }
}

/// The future of a started operation.
///
/// Dropping it does not stop the operation: buffer and descriptor stay alive until the kernel is
/// done with them. Waiting operations (receive, poll) are cancelled.
#[must_use = "an operation that is not awaited reports no error"]
pub(crate) struct Operation {
    slot: Option<usize>,
    _thread_bound: PhantomData<*const ()>,
}

/// What an operation came to: the kernel's answer, and the buffer given to it.
pub(crate) struct Outcome {
    pub(crate) result: io::Result<usize>,
    pub(crate) resources: Resources,
}

impl Operation {
    pub(crate) fn start(fd: &Arc<OwnedFd>, request: Request, resources: Resources) -> Self {
        let slot = executor::with_current(|context| {
            context
                .reactor
                .borrow_mut()
                .start(Arc::clone(fd), request, resources)
        });
        Self {
            slot: Some(slot),
            _thread_bound: PhantomData,
        }
    }
}

impl Future for Operation {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Outcome> {
        let Some(slot) = self.slot else {
            return Poll::Pending;
        };
        let polled =
            executor::with_current(|context| context.reactor.borrow_mut().poll(slot, cx.waker()));
        match polled {
            Some(outcome) => {
                self.slot = None;
                Poll::Ready(outcome)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            executor::try_with_current(|context| context.reactor.borrow_mut().abandon(slot));
        }
    }
}
