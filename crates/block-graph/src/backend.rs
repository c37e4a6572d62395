//! A user of the graph from outside: an export, a device, a job.
//!
//! All requests of the outside enter through a [`BlockBackend`]. It checks them against the
//! node's length, counts them, and holds them off while the graph is drained.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};

use api::BlockDeviceIoStatus;
use host_io::{IoBuf, IoBytes};
use parking_lot::Mutex;

use crate::driver::{Preallocation, WriteFlags};
use crate::edge::Edge;
use crate::error::{BlockError, BlockOperation};
use crate::in_flight::{InFlight, RequestGuard};
use crate::node::BlockStatus;

/// Numbers of one kind of request.
#[derive(Debug, Default)]
pub struct OperationStats {
    /// Requests that ended well.
    pub completed: AtomicU64,
    /// Bytes that they moved.
    pub bytes: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
    /// Requests that were refused at once.
    pub invalid: AtomicU64,
}

/// Numbers of one backend, for `query-blockstats`.
#[derive(Debug, Default)]
pub struct BackendStats {
    /// Reads.
    pub read: OperationStats,
    /// Writes.
    pub write: OperationStats,
    /// Writes of zeroes.
    pub write_zeroes: OperationStats,
    /// Discards.
    pub discard: OperationStats,
    /// Flushes.
    pub flush: OperationStats,
}

/// The gate that drains close.
#[derive(Default)]
struct DrainGate {
    closed: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

/// A device of a machine that a guest sees over a backend.
pub trait Frontend: Send + Sync + 'static {
    /// Its id, or its path in the object tree.
    fn qdev(&self) -> String;

    /// The name that clients of old know it by (`-drive id=`); empty if it has none.
    fn device_name(&self) -> String;

    /// Whether requests have failed so that the machine was stopped, and for want of room.
    fn io_status(&self) -> BlockDeviceIoStatus;

    /// The machine goes on: what has failed is tried again.
    fn reset_io_status(&self);

    /// The node has another length now.
    fn length_changed(&self);
}

/// A user's way into the graph.
pub struct BlockBackend {
    edge: Arc<Edge>,
    frontend: OnceLock<Arc<dyn Frontend>>,
    in_flight: Arc<InFlight>,
    gate: DrainGate,
    stats: BackendStats,
    writable: AtomicBool,
}

impl BlockBackend {
    /// A backend over an edge that [`crate::Graph::attach`] made with the role `Root`.
    pub fn new(edge: Arc<Edge>, writable: bool) -> Arc<Self> {
        Arc::new(Self {
            edge,
            frontend: OnceLock::new(),
            in_flight: Arc::default(),
            gate: DrainGate::default(),
            stats: BackendStats::default(),
            writable: AtomicBool::new(writable),
        })
    }

    /// Its edge.
    pub fn edge(&self) -> &Arc<Edge> {
        &self.edge
    }

    /// Says which device of a machine it is for. The first word counts.
    pub fn set_frontend(&self, frontend: Arc<dyn Frontend>) {
        let _ = self.frontend.set(frontend);
    }

    /// The device of a machine that it is for.
    pub fn frontend(&self) -> Option<&Arc<dyn Frontend>> {
        self.frontend.get()
    }

    /// Its numbers.
    pub fn stats(&self) -> &BackendStats {
        &self.stats
    }

    /// Length of the node in bytes.
    pub fn length(&self) -> u64 {
        self.edge.node().length()
    }

    /// Whether its user may write.
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Reads `buf.len()` bytes from `offset`.
    ///
    /// # Errors
    /// `OutOfRange`, the host's, or the image's.
    pub async fn read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let len = buf.len() as u64;
        let guard = self.enter().await;
        self.check(BlockOperation::Read, &self.stats.read, offset, len)?;
        let result = self.edge.node().read(offset, buf).await;
        guard.end();
        self.stats.read.record(len, result.is_ok());
        result
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// `OutOfRange`, `ReadOnly`, the host's, or the image's.
    pub async fn write(
        &self,
        offset: u64,
        data: IoBytes,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        let len = data.len() as u64;
        let guard = self.enter().await;
        self.check_write(BlockOperation::Write, &self.stats.write, offset, len)?;
        let result = self.edge.node().write(offset, data, flags).await;
        guard.end();
        self.stats.write.record(len, result.is_ok());
        result
    }

    /// Makes `len` bytes from `offset` read as zeroes.
    ///
    /// # Errors
    /// As [`BlockBackend::write`].
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        let _guard = self.enter().await;
        self.check_write(
            BlockOperation::WriteZeroes,
            &self.stats.write_zeroes,
            offset,
            len,
        )?;
        let result = self.edge.node().write_zeroes(offset, len, flags).await;
        self.stats.write_zeroes.record(len, result.is_ok());
        result
    }

    /// Says that `len` bytes from `offset` are not needed any more.
    ///
    /// # Errors
    /// As [`BlockBackend::write`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let _guard = self.enter().await;
        self.check_write(BlockOperation::Discard, &self.stats.discard, offset, len)?;
        let result = self.edge.node().discard(offset, len).await;
        self.stats.discard.record(len, result.is_ok());
        result
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// The host's.
    pub async fn flush(&self) -> Result<(), BlockError> {
        let _guard = self.enter().await;
        let result = self.edge.node().flush().await;
        self.stats.flush.record(0, result.is_ok());
        result
    }

    /// Changes the node's length.
    ///
    /// # Errors
    /// The host's, or the image's.
    pub async fn resize(
        &self,
        length: u64,
        exact: bool,
        how: Preallocation,
    ) -> Result<(), BlockError> {
        let _guard = self.enter().await;
        self.edge.node().resize(length, exact, how).await
    }

    /// What a reader finds at `offset`, for at most `len` bytes.
    ///
    /// # Errors
    /// `OutOfRange`, the host's, or the image's.
    pub async fn status(&self, offset: u64, len: u64) -> Result<BlockStatus, BlockError> {
        let _guard = self.enter().await;
        self.check(BlockOperation::BlockStatus, &self.stats.read, offset, len)?;
        self.edge.node().status(offset, len).await
    }

    /// Holds off new requests; [`BlockBackend::idle`] then waits for those under way.
    pub(crate) fn close_gate(&self) {
        self.gate.closed.fetch_add(1, Ordering::SeqCst);
    }

    /// Lets requests in again, once per [`BlockBackend::close_gate`].
    pub(crate) fn open_gate(&self) {
        if self.gate.closed.fetch_sub(1, Ordering::SeqCst) == 1 {
            let wakers = std::mem::take(&mut *self.gate.waiting.lock());
            for waker in wakers {
                waker.wake();
            }
        }
    }

    /// Waits until no request is under way.
    pub async fn idle(&self) {
        self.in_flight.idle().await;
    }

    async fn enter(&self) -> RequestGuard<'_> {
        loop {
            let guard = self.in_flight.request();
            if self.gate.closed.load(Ordering::SeqCst) == 0 {
                return guard;
            }
            drop(guard);
            poll_fn(|cx| {
                self.gate.waiting.lock().push(cx.waker().clone());
                let closed = self.gate.closed.load(Ordering::SeqCst) > 0;
                if closed {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
        }
    }

    fn check(
        &self,
        operation: BlockOperation,
        stats: &OperationStats,
        offset: u64,
        len: u64,
    ) -> Result<(), BlockError> {
        let length = self.length();
        if offset.checked_add(len).is_some_and(|end| end <= length) {
            return Ok(());
        }
        stats.invalid.fetch_add(1, Ordering::Relaxed);
        Err(BlockError::out_of_range(operation, offset, len, length))
    }

    fn check_write(
        &self,
        operation: BlockOperation,
        stats: &OperationStats,
        offset: u64,
        len: u64,
    ) -> Result<(), BlockError> {
        if !self.is_writable() {
            stats.invalid.fetch_add(1, Ordering::Relaxed);
            return Err(BlockError::read_only(operation));
        }
        self.check(operation, stats, offset, len)
    }
}

impl OperationStats {
    fn record(&self, bytes: u64, good: bool) {
        if good {
            self.completed.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
