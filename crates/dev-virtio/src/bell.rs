//! Wakes one task from any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

/// Rings for one task; what rings before it listens is not lost.
#[derive(Default)]
pub(crate) struct Bell {
    has_rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Bell {
    pub(crate) fn ring(&self) {
        if self.has_rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = self.task.lock().clone();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Whether it has rung since the last call; the task is woken when it rings again.
    pub(crate) fn listen(&self, task: &Waker) -> bool {
        let mut known = self.task.lock();
        if !known.as_ref().is_some_and(|known| known.will_wake(task)) {
            *known = Some(task.clone());
        }
        drop(known);
        self.has_rung.swap(false, Ordering::AcqRel)
    }
}

/// Tasks that wait until something may be so; each looks again when it is woken.
#[derive(Default)]
pub(crate) struct Waiters {
    tasks: Mutex<Vec<Waker>>,
}

impl Waiters {
    /// Has the task woken by the next [`Waiters::wake_all`]. It looks whether to wait *after* this.
    pub(crate) fn add(&self, task: &Waker) {
        let mut tasks = self.tasks.lock();
        if !tasks.iter().any(|known| known.will_wake(task)) {
            tasks.push(task.clone());
        }
    }

    pub(crate) fn wake_all(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            task.wake();
        }
    }
}
