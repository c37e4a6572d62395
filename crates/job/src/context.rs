//! What a job's work sees of its job.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::JobFailure;
use crate::registry::Job;

/// How far a job has come. The unit is the job's own; mostly bytes.
#[derive(Debug, Default)]
pub struct Progress {
    current: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// What is done.
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }

    /// What there is to do, as far as known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// So much more is done.
    pub fn advance(&self, amount: u64) {
        self.current.fetch_add(amount, Ordering::Relaxed);
    }

    /// So much is left to do from here.
    pub fn set_remaining(&self, amount: u64) {
        self.total
            .store(self.current().saturating_add(amount), Ordering::Relaxed);
    }
}

/// The wishes that verbs leave for the work.
#[derive(Default)]
pub(crate) struct Wishes {
    pub(crate) pause: AtomicBool,
    pub(crate) cancel: AtomicBool,
    pub(crate) complete: AtomicBool,
    pub(crate) finalize: AtomicBool,
    pub(crate) changed: Notify,
}

impl Wishes {
    pub(crate) fn set(&self, wish: &AtomicBool, value: bool) {
        wish.store(value, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Waits until `done` holds.
    pub(crate) async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            // Registered before the look, so that a change in between is not missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if done(self) {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::SeqCst)
    }
}

/// Handed to a job's work while it runs.
pub struct JobContext {
    pub(crate) job: Arc<Job>,
}

impl JobContext {
    /// The job's progress.
    pub fn progress(&self) -> &Progress {
        self.job.progress()
    }

    /// To be awaited between any two steps: waits while the job is paused.
    ///
    /// # Errors
    /// [`JobFailure::Cancelled`] when the work is to stop.
    pub async fn checkpoint(&self) -> Result<(), JobFailure> {
        let wishes = &self.job.wishes;
        if wishes.is_cancelled() {
            return Err(JobFailure::Cancelled);
        }
        if wishes.pause.load(Ordering::SeqCst) {
            self.job.enter_pause();
            wishes
                .wait_until(|wishes| wishes.is_cancelled() || !wishes.pause.load(Ordering::SeqCst))
                .await;
            self.job.leave_pause();
        }
        if wishes.is_cancelled() {
            Err(JobFailure::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Says that the job could complete now, and waits for somebody to ask for it.
    ///
    /// # Errors
    /// [`JobFailure::Cancelled`] when it is to stop instead.
    pub async fn ready(&self) -> Result<(), JobFailure> {
        self.job.become_ready();
        loop {
            self.checkpoint().await?;
            let wishes = &self.job.wishes;
            if wishes.complete.load(Ordering::SeqCst) {
                return Ok(());
            }
            wishes
                .wait_until(|wishes| {
                    wishes.is_cancelled()
                        || wishes.pause.load(Ordering::SeqCst)
                        || wishes.complete.load(Ordering::SeqCst)
                })
                .await;
        }
    }
}
