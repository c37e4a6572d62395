//! The engine beneath one executor: an io_uring, or a poll loop with threads where the kernel
//! refuses rings. Both keep the operations' slots; only how one is started and reaped differs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::executor::Shared;
use crate::op::{Outcome, Request, Resources};
use crate::ring::Ring;
use crate::threads::Threads;

/// Which engine an executor runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, one ring per executor.
    Uring,
    /// Worker threads with preadv/pwritev, and poll(2) for sockets.
    Threads,
}

/// An operation that has been started and not yet been collected.
pub(crate) struct Slot {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) request: Request,
    pub(crate) resources: Resources,
    waker: Option<Waker>,
    result: Option<i32>,
    abandoned: bool,
}

/// The started operations, addressed by a small number that travels through the kernel.
#[derive(Default)]
pub(crate) struct Slots {
    entries: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Operations that the kernel still does although nobody waits for them any more.
    orphans: usize,
    waiting_for_orphans: Vec<Waker>,
}

impl Slots {
    fn insert(&mut self, slot: Slot) -> usize {
        match self.free.pop() {
            Some(index) => {
                if let Some(entry) = self.entries.get_mut(index) {
                    *entry = Some(slot);
                }
                index
            }
            None => {
                self.entries.push(Some(slot));
                self.entries.len() - 1
            }
        }
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Slot> {
        self.entries.get_mut(index).and_then(Option::as_mut)
    }

    fn remove(&mut self, index: usize) -> Option<Slot> {
        let slot = self.entries.get_mut(index)?.take();
        if slot.is_some() {
            self.free.push(index);
        }
        slot
    }

    fn live(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn orphan_ended(&mut self) {
        self.orphans -= 1;
        if self.orphans == 0 {
            for waker in self.waiting_for_orphans.drain(..) {
                waker.wake();
            }
        }
    }

    /// Records the kernel's answer and wakes whoever waits; drops the operation if nobody does.
    pub(crate) fn complete(&mut self, index: usize, result: i32) {
        let Some(slot) = self.get_mut(index) else {
            return;
        };
        slot.result = Some(result);
        if slot.abandoned {
            self.orphan_ended();
            self.remove(index);
        } else if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }
}

pub(crate) enum Backend {
    Ring(Box<Ring>),
    Threads(Threads),
}

pub(crate) struct Reactor {
    slots: Slots,
    backend: Backend,
}

impl Reactor {
    /// Builds the wanted engine; falls back to threads when the kernel refuses a ring.
    pub(crate) fn new(engine: Engine, shared: &Arc<Shared>) -> io::Result<Self> {
        let backend = match engine {
            Engine::Uring => match Ring::new(Arc::clone(&shared.wake_fd)) {
                Ok(ring) => Backend::Ring(Box::new(ring)),
                Err(error) => {
                    tracing::warn!(%error, "io_uring is not available; using worker threads");
                    Backend::Threads(Threads::new(Arc::clone(shared)))
                }
            },
            Engine::Threads => Backend::Threads(Threads::new(Arc::clone(shared))),
        };
        Ok(Self {
            slots: Slots::default(),
            backend,
        })
    }

    pub(crate) fn engine(&self) -> Engine {
        match self.backend {
            Backend::Ring(_) => Engine::Uring,
            Backend::Threads(_) => Engine::Threads,
        }
    }

    pub(crate) fn start(
        &mut self,
        fd: Arc<OwnedFd>,
        request: Request,
        resources: Resources,
    ) -> usize {
        let slot = Slot {
            fd,
            request,
            resources,
            waker: None,
            result: None,
            abandoned: false,
        };
        let index = self.slots.insert(slot);
        match &mut self.backend {
            Backend::Ring(ring) => ring.start(index, &mut self.slots),
            Backend::Threads(threads) => threads.start(index, &mut self.slots),
        }
        index
    }

    pub(crate) fn poll(&mut self, index: usize, waker: &Waker) -> Option<Outcome> {
        let slot = self.slots.get_mut(index)?;
        let Some(result) = slot.result else {
            match &slot.waker {
                Some(known) if known.will_wake(waker) => {}
                _ => slot.waker = Some(waker.clone()),
            }
            return None;
        };
        let slot = self.slots.remove(index)?;
        let result = match usize::try_from(result) {
            Ok(count) => Ok(count),
            Err(_) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
        };
        Some(Outcome {
            result,
            resources: slot.resources,
        })
    }

    pub(crate) fn abandon(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if slot.result.is_some() {
            self.slots.remove(index);
            return;
        }
        slot.abandoned = true;
        slot.waker = None;
        let waits = slot.request.is_waiting();
        self.slots.orphans += 1;
        if waits {
            match &mut self.backend {
                Backend::Ring(ring) => ring.cancel(index),
                Backend::Threads(threads) => {
                    if threads.cancel(index) {
                        self.slots.complete(index, -libc::ECANCELED);
                    }
                }
            }
        }
    }

    /// How many operations are still under way although nobody waits for them.
    pub(crate) fn orphans(&self) -> usize {
        self.slots.orphans
    }

    /// Wakes `waker` when there are none of them any more.
    pub(crate) fn wake_without_orphans(&mut self, waker: &Waker) {
        self.slots.waiting_for_orphans.push(waker.clone());
    }

    /// Prepares for [`Reactor::has_news`]; says whether it can tell at all.
    pub(crate) fn begin_polling(&mut self) -> io::Result<bool> {
        match &mut self.backend {
            Backend::Ring(ring) => ring.submit().map(|()| true),
            Backend::Threads(_) => Ok(false),
        }
    }

    /// Whether a turn would find something, without asking the kernel.
    pub(crate) fn has_news(&mut self) -> bool {
        match &mut self.backend {
            Backend::Ring(ring) => ring.has_news(),
            Backend::Threads(_) => false,
        }
    }

    /// Hands what was started to the kernel and collects what has ended; waits for the first
    /// completion, the wake descriptor or `timeout` if `wait` is set. Says whether the wake
    /// descriptor rang.
    pub(crate) fn turn(&mut self, wait: bool, timeout: Option<Duration>) -> io::Result<bool> {
        match &mut self.backend {
            Backend::Ring(ring) => ring.turn(&mut self.slots, wait, timeout),
            Backend::Threads(threads) => threads.turn(&mut self.slots, wait, timeout),
        }
    }

    /// Records an answer that a worker thread brought.
    pub(crate) fn complete_from_thread(&mut self, index: usize, result: i32, back: Resources) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.resources = back;
        }
        self.slots.complete(index, result);
    }

    /// Whether the kernel still owns any operation's buffer.
    pub(crate) fn has_live_operations(&self) -> bool {
        self.slots.live() > 0
    }
}

/// The raw descriptor of a slot, for system calls.
pub(crate) fn raw_fd(slot: &Slot) -> i32 {
    slot.fd.as_raw_fd()
}
