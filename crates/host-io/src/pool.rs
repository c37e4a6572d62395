//! Threads for calls that block: opening, truncating, seeking for holes, device ioctls.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The most threads one pool starts.
pub const MAX_POOL_THREADS: usize = 16;
/// How long an idle thread waits for work before it goes away.
const IDLE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    work: Condvar,
}

/// A pool that starts threads as they are needed and lets idle ones go.
#[derive(Clone, Default)]
pub struct BlockingPool {
    inner: Arc<Inner>,
}

impl BlockingPool {
    /// Runs `work` on some thread of the pool, soon.
    pub fn run(&self, work: Work) {
        let mut state = self.inner.state.lock();
        state.queue.push_back(work);
        if state.idle >= state.queue.len() || state.threads >= MAX_POOL_THREADS {
            drop(state);
            self.inner.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let inner = Arc::clone(&self.inner);
        let started = std::thread::Builder::new()
            .name("blocking".to_owned())
            .spawn(move || worker(&inner));
        if let Err(error) = started {
            // No thread to be had: the work is done here, late being better than never.
            tracing::warn!(%error, "cannot start a worker thread");
            let mut state = self.inner.state.lock();
            state.threads -= 1;
            let work = if state.threads == 0 {
                state.queue.pop_front()
            } else {
                None
            };
            drop(state);
            if let Some(work) = work {
                work();
            }
        }
    }
}

fn worker(inner: &Inner) {
    let mut state = inner.state.lock();
    loop {
        if let Some(work) = state.queue.pop_front() {
            drop(state);
            // A panic in one piece of work must not take the thread's account with it.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            if ended.is_err() {
                tracing::error!("blocking work panicked");
            }
            state = inner.state.lock();
            continue;
        }
        state.idle += 1;
        let timed_out = inner.work.wait_for(&mut state, IDLE).timed_out();
        state.idle -= 1;
        if timed_out && state.queue.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}
