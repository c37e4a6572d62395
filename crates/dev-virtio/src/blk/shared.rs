//! What a disk and the tasks of its queues share.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use api::BlockErrorAction;
use block_graph::{BlockBackend, BlockError, BlockErrorSink, ErrorPolicy, WriteFlags};
use parking_lot::Mutex;

use super::BlkOptions;
use super::request::{Judge, SECTOR_BYTES};
use crate::Link;
use crate::bell::{Bell, Waiters};

/// The requests under way, of this driver and of those before it.
#[derive(Default)]
struct Ledger {
    /// Counts resets.
    epoch: u64,
    current: usize,
    /// Requests of earlier epochs.
    old: usize,
}

pub(super) struct Shared {
    options: BlkOptions,
    backend: Arc<BlockBackend>,
    errors: Arc<dyn BlockErrorSink>,
    link: OnceLock<Arc<Link>>,
    bells: Vec<Bell>,
    /// Requests that wait for the machine to go on.
    waiters: Waiters,
    ledger: Mutex<Ledger>,
    write_cache: AtomicBool,
    closed: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        options: BlkOptions,
        backend: Arc<BlockBackend>,
        errors: Arc<dyn BlockErrorSink>,
    ) -> Shared {
        Shared {
            bells: (0..options.queues).map(|_| Bell::default()).collect(),
            write_cache: AtomicBool::new(options.write_cache),
            options,
            backend,
            errors,
            link: OnceLock::new(),
            waiters: Waiters::default(),
            ledger: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn options(&self) -> &BlkOptions {
        &self.options
    }

    pub(super) fn serial(&self) -> &str {
        &self.options.serial
    }

    pub(super) fn backend(&self) -> &Arc<BlockBackend> {
        &self.backend
    }

    pub(super) fn connect(&self, link: Arc<Link>) {
        // A device is connected once.
        let _ = self.link.set(link);
    }

    pub(super) fn link(&self) -> Option<&Arc<Link>> {
        self.link.get()
    }

    pub(super) fn bell(&self, index: u16) -> Option<&Bell> {
        self.bells.get(usize::from(index))
    }

    pub(super) fn ring_all(&self) {
        for bell in &self.bells {
            bell.ring();
        }
    }

    pub(super) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// No more requests; those under way end.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waiters.wake_all();
        self.ring_all();
    }

    pub(super) fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Acquire)
    }

    pub(super) fn set_write_cache(&self, is_on: bool) {
        self.write_cache.store(is_on, Ordering::Release);
    }

    pub(super) fn write_flags(&self) -> WriteFlags {
        if self.write_cache() {
            WriteFlags::empty()
        } else {
            WriteFlags::FUA
        }
    }

    /// How often the machine has gone on after a pause.
    pub(super) fn resumes(&self) -> u64 {
        self.link().map_or(0, |link| link.resumes())
    }

    /// What requests are judged by now.
    pub(super) fn judge(&self) -> Judge {
        let is_writable = self.options.is_writable && self.backend.is_writable();
        Judge {
            length_bytes: self.backend.length() / SECTOR_BYTES * SECTOR_BYTES,
            block_bytes: u64::from(self.options.logical_block_bytes),
            is_writable,
            can_discard: self.options.discard,
            can_write_zeroes: self.options.write_zeroes,
        }
    }

    /// Counts a request; gives its epoch. None while requests of a driver before are under way.
    pub(super) fn begin_request(&self) -> Option<u64> {
        let mut ledger = self.ledger.lock();
        if ledger.old > 0 {
            return None;
        }
        ledger.current += 1;
        Some(ledger.epoch)
    }

    pub(super) fn end_request(&self, epoch: u64) {
        let mut ledger = self.ledger.lock();
        if epoch == ledger.epoch {
            ledger.current = ledger.current.saturating_sub(1);
            return;
        }
        ledger.old = ledger.old.saturating_sub(1);
        if ledger.old == 0 {
            drop(ledger);
            self.ring_all();
        }
    }

    /// The driver has gone: nobody waits for the requests under way.
    pub(super) fn begin_epoch(&self) {
        let mut ledger = self.ledger.lock();
        ledger.epoch += 1;
        ledger.old += std::mem::take(&mut ledger.current);
        drop(ledger);
        self.waiters.wake_all();
        self.ring_all();
    }

    /// Whether the driver that made requests in this epoch is still there.
    pub(super) fn is_current(&self, epoch: u64) -> bool {
        !self.is_closed() && self.ledger.lock().epoch == epoch
    }

    /// Waits until the machine has gone on more often than `resumes` times; false if the driver has gone before.
    pub(super) async fn wait_for_resume(&self, resumes: u64, epoch: u64) -> bool {
        poll_fn(|cx| {
            self.waiters.add(cx.waker());
            if !self.is_current(epoch) {
                Poll::Ready(false)
            } else if self.resumes() > resumes {
                Poll::Ready(true)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    pub(super) fn count_invalid(&self, is_read: bool) {
        let stats = self.backend.stats();
        let stats = if is_read { &stats.read } else { &stats.write };
        stats.invalid.fetch_add(1, Ordering::Relaxed);
    }

    /// Decides what is done about an error, and tells the owner.
    pub(super) fn report(&self, error: &BlockError, is_read: bool) -> BlockErrorAction {
        let policy = ErrorPolicy {
            rerror: self.options.rerror,
            werror: self.options.werror,
        };
        let node_name = self.backend.edge().node().name().to_owned();
        let judged = policy.judge(node_name, error, is_read);
        self.errors.block_io_error(&judged);
        judged.action
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use api::BlockdevOnError;
    use block_doubles::Storage;
    use block_graph::{BlockIoError, BlockOperation};

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<BlockIoError>>);

    impl BlockErrorSink for Told {
        fn block_io_error(&self, error: &BlockIoError) {
            self.0.lock().push(error.clone());
        }
    }

    #[test]
    fn a_full_host_stops_the_machine_unless_told_otherwise() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let full = BlockError::host(BlockOperation::Write, &full);
        let cases = [
            (BlockdevOnError::Auto, BlockErrorAction::Stop),
            (BlockdevOnError::Enospc, BlockErrorAction::Stop),
            (BlockdevOnError::Stop, BlockErrorAction::Stop),
            (BlockdevOnError::Report, BlockErrorAction::Report),
            (BlockdevOnError::Ignore, BlockErrorAction::Ignore),
        ];
        for (werror, action) in cases {
            let told = Arc::<Told>::default();
            let backend = crate::tests::backend_over(&Storage::new(vec![0; 512]), true);
            let options = BlkOptions {
                werror,
                ..BlkOptions::default()
            };
            let shared = Shared::new(options, backend, told.clone());
            shared.report(&full, false);
            let told = told.0.lock().pop().unwrap();
            assert_eq!((told.action, told.no_space), (action, true));
            assert_eq!(told.reason, "No space left on device");
        }
    }
}
