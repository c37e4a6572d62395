//! One queue of a disk: a task that takes requests from the ring, has many of them under way, and gives them back in
//! batches.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::BlockErrorAction;
use block_graph::{BlockError, WriteFlags};
use host_io::{IoBuf, IoBytes, RequestSlots};

use super::request::{self, PIECE_BYTES, Status, Work};
use super::shared::Shared;
use crate::{Chain, DeviceQueue, QueueGuard};

/// The most bytes of data that the requests of one queue hold before no more of them are taken, beyond the one that goes
/// over this.
pub const MAX_HELD_BYTES: u64 = 32 << 20;

/// Words of slots for requests: of a queue at most 256 are under way at a time; more wait in the ring.
const SLOT_WORDS: usize = 4;

/// How often the task looks for more to do before others on its executor have their turn.
const MAX_ROUNDS: u32 = 64;

/// What the parts of the task share.
struct QueueTask {
    shared: Arc<Shared>,
    queue: Arc<DeviceQueue>,
    held_bytes: Cell<u64>,
    has_finished: Cell<bool>,
}

/// Serves a queue until the disk is closed and the last request has ended.
pub(super) async fn serve(shared: Arc<Shared>, queue: Arc<DeviceQueue>) {
    let task = QueueTask {
        shared,
        queue,
        held_bytes: Cell::new(0),
        has_finished: Cell::new(false),
    };
    let bell = task.shared.bell(task.queue.index());
    let mut slots = RequestSlots::<_, SLOT_WORDS>::new();
    poll_fn(|cx| {
        slots.set_task(cx.waker());
        for round in 0.. {
            if round == MAX_ROUNDS {
                // Others on this executor want their turn, too.
                cx.waker().wake_by_ref();
                break;
            }
            let has_rung = bell.is_some_and(|bell| bell.listen(cx.waker()));
            let has_ended = slots.poll_ready();
            let has_begun = task.take_requests(|request, chain, epoch| {
                slots.insert(task.run(request, chain, epoch));
                !slots.is_full()
            });
            task.signal();
            if !has_rung && !has_ended && !has_begun {
                break;
            }
        }
        if task.shared.is_closed() && slots.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

impl QueueTask {
    /// Takes requests from the ring as long as `begin` has room for more; says whether it took any.
    fn take_requests(&self, mut begin: impl FnMut(Work, Chain, u64) -> bool) -> bool {
        if self.shared.is_closed() || self.held_bytes.get() >= MAX_HELD_BYTES {
            return false;
        }
        let Some(mut queue) = self.queue.lock() else {
            return false;
        };
        let judge = self.shared.judge();
        let mut has_begun = false;
        queue.silence_driver();
        while self.held_bytes.get() < MAX_HELD_BYTES {
            // Requests of a driver before a reset must not come after those of the driver after it.
            let Some(epoch) = self.shared.begin_request() else {
                break;
            };
            let Some(chain) = queue.pop() else {
                self.shared.end_request(epoch);
                if queue.listen_to_driver() {
                    continue;
                }
                break;
            };
            match judge.read(&queue, chain) {
                Ok(work) => {
                    has_begun = true;
                    self.held_bytes
                        .set(self.held_bytes.get() + work.held_bytes());
                    if !begin(work, chain, epoch) {
                        break;
                    }
                }
                Err(fault) => {
                    self.shared.end_request(epoch);
                    queue.mark_broken(fault);
                    break;
                }
            }
        }
        has_begun
    }

    /// Tells the driver of what was finished since the last time.
    fn signal(&self) {
        if self.has_finished.get()
            && let Some(mut queue) = self.queue.lock()
        {
            self.has_finished.set(false);
            queue.signal();
        }
    }

    async fn run(&self, work: Work, chain: Chain, epoch: u64) {
        let held_bytes = work.held_bytes();
        let done = self.run_with_policy(work, chain, epoch).await;
        if let Some(status) = done {
            self.finish(chain, epoch, status).await;
        }
        self.shared.end_request(epoch);
        self.held_bytes
            .set(self.held_bytes.get().saturating_sub(held_bytes));
    }

    /// Does the work until the owner's policy for errors is content; none if the driver has gone meanwhile.
    async fn run_with_policy(&self, work: Work, chain: Chain, epoch: u64) -> Option<Status> {
        let is_read = matches!(work, Work::Read { .. });
        let mut work = match work {
            Work::Refused(status) => return Some(status),
            Work::Invalid { is_read } => {
                self.shared.count_invalid(is_read);
                return Some(Status::IoError);
            }
            Work::Write {
                offset,
                bytes,
                first,
            } => {
                let first = first.freeze();
                return self
                    .write_with_policy(chain, epoch, offset, bytes, first)
                    .await;
            }
            other => other,
        };
        loop {
            let result = self.attempt(&mut work, chain, epoch).await;
            match self.judge_result(result, is_read, epoch).await {
                Some(status) => return status,
                None => continue,
            }
        }
    }

    async fn write_with_policy(
        &self,
        chain: Chain,
        epoch: u64,
        offset: u64,
        bytes: u64,
        first: IoBytes,
    ) -> Option<Status> {
        loop {
            let result = self.write(chain, epoch, offset, bytes, first.clone()).await;
            match self.judge_result(result, false, epoch).await {
                Some(status) => return status,
                None => continue,
            }
        }
    }

    /// What becomes of a request: `Some(Some)` is its answer, `Some(None)` that nobody waits for one, `None` that it is
    /// to be tried again, now that the machine has been stopped and goes on.
    async fn judge_result(
        &self,
        result: Result<Option<()>, BlockError>,
        is_read: bool,
        epoch: u64,
    ) -> Option<Option<Status>> {
        let error = match result {
            Ok(Some(())) => return Some(Some(Status::Ok)),
            Ok(None) => return Some(None),
            Err(error) => error,
        };
        let resumes = self.shared.resumes();
        match self.shared.report(&error, is_read) {
            BlockErrorAction::Ignore => Some(Some(Status::Ok)),
            BlockErrorAction::Report => Some(Some(Status::IoError)),
            BlockErrorAction::Stop => {
                let can_go_on = self.shared.wait_for_resume(resumes, epoch).await;
                if can_go_on { None } else { Some(None) }
            }
        }
    }

    async fn attempt(
        &self,
        work: &mut Work,
        chain: Chain,
        epoch: u64,
    ) -> Result<Option<()>, BlockError> {
        let backend = self.shared.backend();
        match work {
            Work::Read { offset, bytes } => {
                return self.read(chain, epoch, *offset, *bytes).await;
            }
            Work::Flush => backend.flush().await?,
            Work::Discard { offset, bytes } => backend.discard(*offset, *bytes).await?,
            Work::WriteZeroes {
                offset,
                bytes,
                may_unmap,
            } => {
                let mut flags = self.shared.write_flags();
                flags.set(WriteFlags::MAY_UNMAP, *may_unmap);
                backend.write_zeroes(*offset, *bytes, flags).await?;
            }
            Work::GetId => {
                let identity = request::identity(self.shared.serial());
                return Ok(self
                    .with_queue(epoch, |queue| {
                        let room = queue.writable_bytes(chain).saturating_sub(1);
                        let room = usize::try_from(room).unwrap_or(usize::MAX);
                        let identity = identity.get(..room.min(identity.len()));
                        queue.write(chain, 0, identity.unwrap_or_default());
                    })
                    .await);
            }
            Work::Write { .. } | Work::Refused(_) | Work::Invalid { .. } => {}
        }
        Ok(Some(()))
    }

    async fn read(
        &self,
        chain: Chain,
        epoch: u64,
        offset: u64,
        bytes: u64,
    ) -> Result<Option<()>, BlockError> {
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(PIECE_BYTES);
            let buffer = IoBuf::with_len(usize::try_from(piece).unwrap_or(0));
            let buffer = self.shared.backend().read(offset + done, buffer).await?;
            let copied = self.with_queue(epoch, |queue| {
                queue.write(chain, done, &buffer);
            });
            if copied.await.is_none() {
                return Ok(None);
            }
            done += piece;
        }
        Ok(Some(()))
    }

    async fn write(
        &self,
        chain: Chain,
        epoch: u64,
        offset: u64,
        bytes: u64,
        first: IoBytes,
    ) -> Result<Option<()>, BlockError> {
        let flags = self.shared.write_flags();
        let backend = self.shared.backend();
        let mut done = first.len() as u64;
        backend.write(offset, first, flags).await?;
        while done < bytes {
            let piece = self.with_queue(epoch, |queue| {
                request::data(queue, chain, done, bytes)
                    .inspect_err(|fault| queue.mark_broken(fault))
            });
            let Some(Ok(piece)) = piece.await else {
                return Ok(None);
            };
            let length = piece.len() as u64;
            backend.write(offset + done, piece.freeze(), flags).await?;
            done += length;
        }
        Ok(Some(()))
    }

    async fn finish(&self, chain: Chain, epoch: u64, status: Status) {
        self.with_queue(epoch, |queue| {
            let room = queue.writable_bytes(chain);
            queue.write(chain, room.saturating_sub(1), &[status.byte()]);
            queue.finish(chain, u32::try_from(room).unwrap_or(u32::MAX));
            self.has_finished.set(true);
        })
        .await;
    }

    /// Works on guest memory as soon as that may be done; not at all if the driver has gone.
    async fn with_queue<T>(
        &self,
        epoch: u64,
        work: impl FnOnce(&mut QueueGuard<'_>) -> T,
    ) -> Option<T> {
        let mut work = Some(work);
        poll_fn(|cx| self.poll_queue(cx, epoch, &mut work)).await
    }

    fn poll_queue<T>(
        &self,
        cx: &Context<'_>,
        epoch: u64,
        work: &mut Option<impl FnOnce(&mut QueueGuard<'_>) -> T>,
    ) -> Poll<Option<T>> {
        let mut queue = self.queue.lock();
        if queue.is_none() {
            self.shared.waiters().add(cx.waker());
            queue = self.queue.lock();
        }
        match queue {
            Some(mut queue) if self.shared.is_current(epoch) => {
                Poll::Ready(work.take().map(|work| work(&mut queue)))
            }
            Some(_) => Poll::Ready(None),
            None if self.shared.is_current(epoch) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}
