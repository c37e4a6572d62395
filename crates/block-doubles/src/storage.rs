//! A block driver over memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block_graph::{
    Access, BlockError, BlockErrorKind, BlockFuture, BlockOperation, Driver, DriverInfo, Edge,
    Extent, ExtentKind, Limits, Mapping, Permissions, Preallocation, WriteFlags,
};
use host_io::{IoBuf, IoBytes};
use parking_lot::Mutex;

use crate::log::{Change, Log, Rng, apply};

/// The double's size limit in bytes: changes behind it fail with `EFBIG`, as on a filesystem.
pub const MAX_CONTENT: u64 = 64 << 20;

/// What is to go wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The change with this number (from 0) and all after it fail with `EIO`.
    pub fail_from: Option<u64>,
    /// Only this one fails.
    pub fail_only: Option<u64>,
    /// Each operation lets other tasks run a random number of times first.
    pub yielding: Option<u64>,
}

struct State {
    content: Vec<u8>,
    log: Option<Log>,
    clock: Arc<AtomicU64>,
    faults: Faults,
    changes: u64,
    reads: u64,
    rng: Rng,
    hold_at: Option<u64>,
    holding: bool,
}

impl State {
    fn log_change(&mut self, change: Change) {
        if let Some(log) = &mut self.log {
            log.changes.push(change);
            log.times.push(self.clock.fetch_add(1, Ordering::SeqCst));
        }
    }
}

/// Memory that looks like a disk. Clones share it.
#[derive(Clone)]
pub struct Storage {
    state: Arc<Mutex<State>>,
}

impl Storage {
    /// A storage that holds `content`.
    pub fn new(content: Vec<u8>) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                content,
                log: None,
                clock: Arc::default(),
                faults: Faults::default(),
                changes: 0,
                reads: 0,
                rng: Rng::new(0),
                hold_at: None,
                holding: false,
            })),
        }
    }

    /// What it holds now.
    pub fn content(&self) -> Vec<u8> {
        self.state.lock().content.clone()
    }

    /// Begins to record.
    pub fn record(&self) {
        self.record_by(Arc::default());
    }

    /// Begins to record, with times by a clock that other storages may go by too: so that the
    /// power can fail for all of them at once.
    pub fn record_by(&self, clock: Arc<AtomicU64>) {
        let mut state = self.state.lock();
        state.clock = clock;
        state.log = Some(Log {
            start: state.content.clone(),
            ..Log::default()
        });
    }

    /// Ends recording.
    pub fn take_log(&self) -> Log {
        self.state.lock().log.take().unwrap_or_default()
    }

    /// Puts a mark into the log.
    pub fn mark(&self, mark: u64) {
        self.state.lock().log_change(Change::Mark(mark));
    }

    /// Says what is to go wrong from now on; numbers count from here.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state.lock();
        state.rng = Rng::new(faults.yielding.unwrap_or(0));
        state.faults = faults;
        state.changes = 0;
    }

    /// Holds the next read or write that begins at `offset` until [`Storage::release`].
    pub fn hold_at_offset(&self, offset: u64) {
        let mut state = self.state.lock();
        state.hold_at = Some(offset);
        state.holding = false;
    }

    /// Whether an operation is being held.
    pub fn is_holding(&self) -> bool {
        self.state.lock().holding
    }

    /// Lets the held operation go on.
    pub fn release(&self) {
        self.state.lock().holding = false;
    }

    async fn wait_if_held(&self, offset: u64) {
        {
            let mut state = self.state.lock();
            if state.hold_at != Some(offset) {
                return;
            }
            state.hold_at = None;
            state.holding = true;
        }
        while self.is_holding() {
            host_io::yield_now().await;
        }
    }

    /// How many changes and flushes there were since the faults were set.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// How many reads there were in all.
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    async fn give_way(&self) {
        let turns = {
            let mut state = self.state.lock();
            match state.faults.yielding {
                Some(_) => state.rng.below(4),
                None => 0,
            }
        };
        for _ in 0..turns {
            host_io::yield_now().await;
        }
    }

    fn change(&self, operation: BlockOperation, change: Change) -> Result<(), BlockError> {
        let mut state = self.state.lock();
        let number = state.changes;
        state.changes += 1;
        let end = match &change {
            Change::Write { offset, bytes } => offset.saturating_add(bytes.len() as u64),
            Change::Zero { offset, len } => offset.saturating_add(*len),
            Change::Resize(len) => *len,
            Change::Flush | Change::Mark(_) => 0,
        };
        if end > MAX_CONTENT {
            return Err(BlockError {
                kind: BlockErrorKind::Host,
                operation,
                errno: 27,
                message: "File too large".to_owned(),
            });
        }
        let fails = state.faults.fail_from.is_some_and(|from| number >= from)
            || state.faults.fail_only == Some(number);
        if fails {
            return Err(BlockError {
                kind: BlockErrorKind::Host,
                operation,
                errno: 5,
                message: "Input/output error".to_owned(),
            });
        }
        apply(&mut state.content, &change, |_| true);
        state.log_change(change);
        Ok(())
    }
}

impl Driver for Storage {
    fn name(&self) -> &'static str {
        "double"
    }

    fn length(&self) -> u64 {
        self.state.lock().content.len() as u64
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn filename(&self) -> String {
        "double:".to_owned()
    }

    fn info(&self) -> DriverInfo {
        DriverInfo::default()
    }

    fn children(&self) -> Vec<Arc<Edge>> {
        Vec::new()
    }

    fn storage_edge(&self) -> Option<&Edge> {
        None
    }

    fn mappings_are_fixed(&self) -> bool {
        true
    }

    fn child_permissions(&self, _edge: &Edge, asked: Permissions) -> Permissions {
        asked
    }

    fn permissions_wanted(&self, _wanted: Permissions) -> Result<(), String> {
        Ok(())
    }

    fn permissions_settled(&self, _settled: Permissions) {}

    fn map_now(&self, _access: Access, _offset: u64, _len: u64) -> Mapping<'_> {
        Mapping::Ask
    }

    fn read(&self, offset: u64, buf: IoBuf) -> BlockFuture<'_, IoBuf> {
        Box::pin(async move {
            self.give_way().await;
            self.wait_if_held(offset).await;
            let mut buf = buf;
            buf.fill(0);
            let mut state = self.state.lock();
            state.reads += 1;
            let from = (offset as usize).min(state.content.len());
            let there = &state.content[from..];
            let len = there.len().min(buf.len());
            buf[..len].copy_from_slice(&there[..len]);
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoBytes, _flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            self.give_way().await;
            self.wait_if_held(offset).await;
            let bytes = data.to_vec().into();
            self.change(BlockOperation::Write, Change::Write { offset, bytes })?;
            self.give_way().await;
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            self.give_way().await;
            self.change(BlockOperation::WriteZeroes, Change::Zero { offset, len })
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            self.give_way().await;
            self.change(BlockOperation::Discard, Change::Zero { offset, len })
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            // Durable is what was written when the flush began.
            let result = self.change(BlockOperation::Flush, Change::Flush);
            self.give_way().await;
            result
        })
    }

    fn extent(&self, offset: u64, len: u64) -> BlockFuture<'_, Extent> {
        Box::pin(async move {
            Ok(Extent {
                len,
                kind: ExtentKind::Data {
                    offset: Some(offset),
                    in_child: false,
                    compressed: false,
                },
            })
        })
    }

    fn resize(&self, length: u64, _exact: bool, _how: Preallocation) -> BlockFuture<'_, ()> {
        Box::pin(async move { self.change(BlockOperation::Resize, Change::Resize(length)) })
    }

    fn activate(&self) -> BlockFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BlockFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
