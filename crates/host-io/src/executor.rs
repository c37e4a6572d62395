//! A thin single-threaded executor: one thread, one ring, futures that need not be `Send`.
//!
//! Lifecycle: [`Executor::start`] makes the thread; [`ExecutorHandle::spawn`] gives it work from
//! any thread; [`spawn_local`] gives it work from inside; dropping the [`Executor`] asks it to stop, waits
//! for operations that the kernel still owns, and joins the thread. Tasks that have not ended by then are dropped.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::JoinHandle as ThreadHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::join::{self, JoinHandle};
use crate::op::Resources;
use crate::polling::{Polling, PollingLimits};
use crate::pool::BlockingPool;
use crate::reactor::{Engine, Reactor};

/// How many tasks are polled before the ring is looked at again.
const POLL_BUDGET: usize = 256;

enum Remote {
    Wake(usize, u64),
    Run(Box<dyn FnOnce() + Send>),
    Completion {
        index: usize,
        result: i32,
        resources: Resources,
    },
    Stop,
}

/// What other threads may touch of an executor.
pub(crate) struct Shared {
    id: u64,
    remote: Mutex<VecDeque<Remote>>,
    sleeping: AtomicBool,
    stopped: AtomicBool,
    /// Whether `remote` may hold something.
    has_remote: AtomicBool,
    polling: PollingLimits,
    pub(crate) wake_fd: Arc<OwnedFd>,
    pub(crate) pool: BlockingPool,
}

impl Shared {
    fn push(&self, remote: Remote) {
        self.remote.lock().push_back(remote);
        self.has_remote.store(true, Ordering::Release);
        // The executor announces its sleep before it looks at the queue for the last time, so
        // one of the two sides always sees the other.
        if self.sleeping.swap(false, Ordering::SeqCst) {
            self.ring_wake_fd();
        }
    }

    fn ring_wake_fd(&self) {
        let one: u64 = 1;
        // SAFETY: eight bytes are read from a live u64.
        unsafe { libc::write(self.wake_fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    pub(crate) fn drain_wake_fd(&self) {
        let mut value: u64 = 0;
        // SAFETY: eight bytes are written to a live u64.
        unsafe { libc::read(self.wake_fd.as_raw_fd(), (&raw mut value).cast(), 8) };
    }

    pub(crate) fn post_completion(&self, index: usize, result: i32, resources: Resources) {
        self.push(Remote::Completion {
            index,
            result,
            resources,
        });
    }
}

/// Wakes one task of one executor, from any thread.
struct TaskWaker {
    shared: Arc<Shared>,
    task: usize,
    generation: u64,
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let local = try_with_current(|context| {
            if context.shared.id == self.shared.id {
                context
                    .ready
                    .borrow_mut()
                    .push_back((self.task, self.generation));
                true
            } else {
                false
            }
        });
        if local != Some(true) {
            self.shared.push(Remote::Wake(self.task, self.generation));
        }
    }
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    generation: u64,
    // Taken out while it is being polled, so that a task may spawn others.
    future: Option<LocalFuture>,
    waker: Waker,
    flag: Arc<TaskWaker>,
}

/// One executor's thread-bound state.
pub(crate) struct Context {
    shared: Arc<Shared>,
    pub(crate) reactor: RefCell<Reactor>,
    ready: RefCell<VecDeque<(usize, u64)>>,
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    next_generation: Cell<u64>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_timer: Cell<u64>,
    stopping: Cell<bool>,
    polling: Polling,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Context>>> = const { RefCell::new(None) };
}

/// Runs `f` with this thread's executor.
///
/// # Panics
/// On a thread that is no executor's: the operations of this crate only run inside one, which is
/// a mistake in the program, never something that comes from outside.
pub(crate) fn with_current<R>(f: impl FnOnce(&Context) -> R) -> R {
    match try_with_current(f) {
        Some(result) => result,
        #[expect(clippy::panic, reason = "documented programming error")]
        None => panic!("host-io operations run on an executor's thread only"),
    }
}

pub(crate) fn try_with_current<R>(f: impl FnOnce(&Context) -> R) -> Option<R> {
    // The Rc is cloned so that no borrow of CURRENT is held while `f` runs.
    let context = CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()?;
    Some(f(&context))
}

impl Context {
    fn spawn(&self, future: LocalFuture) {
        let generation = self.next_generation.get();
        self.next_generation.set(generation + 1);
        let mut tasks = self.tasks.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            tasks.push(None);
            tasks.len() - 1
        });
        let flag = Arc::new(TaskWaker {
            shared: Arc::clone(&self.shared),
            task: index,
            generation,
            queued: AtomicBool::new(true),
        });
        let waker = Waker::from(Arc::clone(&flag));
        if let Some(entry) = tasks.get_mut(index) {
            *entry = Some(Task {
                generation,
                future: Some(future),
                waker,
                flag,
            });
        }
        self.ready.borrow_mut().push_back((index, generation));
    }

    fn poll_task(&self, index: usize, generation: u64) {
        let taken = {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get_mut(index).and_then(Option::as_mut) {
                Some(task) if task.generation == generation => {
                    task.flag.queued.store(false, Ordering::Release);
                    task.future
                        .take()
                        .map(|future| (future, task.waker.clone()))
                }
                _ => None,
            }
        };
        let Some((mut future, waker)) = taken else {
            return;
        };
        let mut cx = TaskContext::from_waker(&waker);
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            future.as_mut().poll(&mut cx)
        }));
        if matches!(polled, Ok(Poll::Pending)) {
            if let Some(Some(task)) = self.tasks.borrow_mut().get_mut(index) {
                task.future = Some(future);
            }
            return;
        }
        // A task that panicked is gone like one that ended; its join handle says so.
        drop(future);
        if let Some(entry) = self.tasks.borrow_mut().get_mut(index) {
            *entry = None;
        }
        self.free.borrow_mut().push(index);
    }

    fn take_remote(&self) {
        self.shared.has_remote.store(false, Ordering::Relaxed);
        let batch = std::mem::take(&mut *self.shared.remote.lock());
        for remote in batch {
            match remote {
                Remote::Wake(task, generation) => {
                    self.ready.borrow_mut().push_back((task, generation));
                }
                Remote::Run(run) => run(),
                Remote::Completion {
                    index,
                    result,
                    resources,
                } => {
                    self.reactor
                        .borrow_mut()
                        .complete_from_thread(index, result, resources);
                }
                Remote::Stop => self.stopping.set(true),
            }
        }
    }

    fn fire_timers(&self) -> Option<Duration> {
        let now = Instant::now();
        loop {
            let mut timers = self.timers.borrow_mut();
            let first = timers.first_entry()?;
            let deadline = first.key().0;
            if deadline > now {
                return Some(deadline - now);
            }
            let waker = first.remove();
            drop(timers);
            waker.wake();
        }
    }

    fn turn(&self, wait: bool, until_timer: Option<Duration>) -> io::Result<()> {
        if self.reactor.borrow_mut().turn(wait, until_timer)? {
            self.shared.drain_wake_fd();
        }
        Ok(())
    }

    /// Stays awake for a while to see whether there is something to do.
    fn news_comes_soon(&self, until_timer: Option<Duration>) -> io::Result<bool> {
        let limit = self.polling.duration(&self.shared.polling);
        let limit = until_timer.map_or(limit, |timer| limit.min(timer));
        let mut reactor = self.reactor.borrow_mut();
        if limit.is_zero() || !reactor.begin_polling()? {
            return Ok(false);
        }
        let began = Instant::now();
        loop {
            if reactor.has_news() || self.shared.has_remote.load(Ordering::Acquire) {
                return Ok(true);
            }
            if began.elapsed() >= limit {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    fn sleep(&self, until_timer: Option<Duration>) -> io::Result<()> {
        let polled = self.polling.duration(&self.shared.polling);
        self.shared.sleeping.store(true, Ordering::SeqCst);
        if self.shared.remote.lock().is_empty() {
            let began = Instant::now();
            self.turn(true, until_timer)?;
            let idle = polled + began.elapsed();
            self.polling.slept(idle, &self.shared.polling);
        }
        self.shared.sleeping.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn run(&self) -> io::Result<()> {
        while !self.stopping.get() {
            for _ in 0..POLL_BUDGET {
                let next = self.ready.borrow_mut().pop_front();
                let Some((task, generation)) = next else {
                    break;
                };
                self.poll_task(task, generation);
            }
            let until_timer = if self.timers.borrow().is_empty() {
                None
            } else {
                self.fire_timers()
            };
            let is_idle = self.ready.borrow().is_empty();
            if is_idle && !self.news_comes_soon(until_timer)? {
                self.sleep(until_timer)?;
            } else {
                self.turn(false, until_timer)?;
            }
            self.take_remote();
        }
        Ok(())
    }

    /// Drops every task, then waits until the kernel owns none of our buffers any more.
    fn wind_down(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        while self.reactor.borrow().has_live_operations() {
            let turned = self
                .reactor
                .borrow_mut()
                .turn(true, Some(Duration::from_millis(50)));
            if turned.is_err() {
                break;
            }
            self.take_remote();
        }
    }
}

/// An executor's thread. Dropping it stops the thread.
pub struct Executor {
    handle: ExecutorHandle,
    thread: Option<ThreadHandle<()>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Executor {
    /// Starts a thread called `name` that runs on `engine`, or on worker threads where the kernel
    /// refuses io_uring.
    ///
    /// # Errors
    /// When the thread or its wake descriptor cannot be made.
    pub fn start(name: &str, engine: Engine) -> io::Result<Self> {
        // SAFETY: eventfd returns a new descriptor that nobody else owns, or -1.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was just made and is owned by nobody.
        let wake_fd = Arc::new(unsafe { OwnedFd::from_raw_fd(raw) });
        let shared = Arc::new(Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            remote: Mutex::new(VecDeque::new()),
            has_remote: AtomicBool::new(false),
            polling: PollingLimits::default(),
            sleeping: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            wake_fd,
            pool: BlockingPool::default(),
        });
        let (ready_tx, ready_rx) = std::sync::mpsc::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                thread_main(for_thread, engine, &ready_tx);
            })?;
        match ready_rx.recv() {
            Ok(Ok((engine, tid))) => Ok(Self {
                handle: ExecutorHandle {
                    shared,
                    engine,
                    tid,
                },
                thread: Some(thread),
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the executor's thread ended at once")),
        }
    }

    /// A handle to give it work with.
    pub fn handle(&self) -> ExecutorHandle {
        self.handle.clone()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.handle.shared.push(Remote::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("an executor's thread panicked");
        }
    }
}

type Ready = std::sync::mpsc::Sender<io::Result<(Engine, i32)>>;

fn thread_main(shared: Arc<Shared>, engine: Engine, ready: &Ready) {
    let reactor = match Reactor::new(engine, &shared) {
        Ok(reactor) => reactor,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let engine = reactor.engine();
    let context = Rc::new(Context {
        shared,
        reactor: RefCell::new(reactor),
        ready: RefCell::default(),
        tasks: RefCell::default(),
        free: RefCell::default(),
        next_generation: Cell::new(0),
        timers: RefCell::default(),
        next_timer: Cell::new(0),
        stopping: Cell::new(false),
        polling: Polling::default(),
    });
    CURRENT.with(|current| *current.borrow_mut() = Some(Rc::clone(&context)));
    let tid = rustix::thread::gettid().as_raw_nonzero().get();
    let _ = ready.send(Ok((engine, tid)));
    if let Err(error) = context.run() {
        tracing::error!(%error, "an executor's engine failed");
    }
    context.wind_down();
    CURRENT.with(|current| *current.borrow_mut() = None);
}

/// Gives work to an executor from any thread.
#[derive(Clone)]
pub struct ExecutorHandle {
    shared: Arc<Shared>,
    engine: Engine,
    tid: i32,
}

impl ExecutorHandle {
    /// Runs the future that `make` builds on the executor's thread. The future itself need not
    /// be `Send`.
    ///
    /// The result comes through the handle, which is itself a future for any runtime.
    pub fn spawn<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> JoinHandle<T>
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, handle) = join::pair();
        if !self.shared.stopped.load(Ordering::SeqCst) {
            self.shared.push(Remote::Run(Box::new(move || {
                spawn_boxed(Box::pin(async move { sender.send(make().await) }));
            })));
        }
        handle
    }

    /// The engine it runs on.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The kernel's id of its thread.
    pub fn thread_id(&self) -> i32 {
        self.tid
    }

    /// Whether the calling code runs on this executor.
    pub fn is_current(&self) -> bool {
        try_with_current(|context| context.shared.id == self.shared.id) == Some(true)
    }

    /// How long it looks for news before it goes to sleep.
    pub fn polling(&self) -> &PollingLimits {
        &self.shared.polling
    }

    /// The threads for calls that block.
    pub fn blocking_pool(&self) -> &BlockingPool {
        &self.shared.pool
    }
}

impl PartialEq for ExecutorHandle {
    fn eq(&self, other: &Self) -> bool {
        self.shared.id == other.shared.id
    }
}

impl std::fmt::Debug for ExecutorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecutorHandle")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

fn spawn_boxed(future: LocalFuture) {
    with_current(|context| context.spawn(future));
}

/// Runs `future` on the calling executor beside the current task.
pub fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    let (sender, handle) = join::pair();
    spawn_boxed(Box::pin(async move { sender.send(future.await) }));
    handle
}

/// The handle of the executor that runs the calling code, if one does.
pub fn current() -> Option<ExecutorHandle> {
    try_with_current(|context| ExecutorHandle {
        shared: Arc::clone(&context.shared),
        engine: context.reactor.borrow().engine(),
        tid: rustix::thread::gettid().as_raw_nonzero().get(),
    })
}

/// Runs a call that blocks on another thread and waits for its result.
///
/// # Errors
/// [`join::Gone`] when the call panicked.
pub async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, join::Gone> {
    let (sender, handle) = join::pair();
    with_current(|context| {
        context
            .shared
            .pool
            .run(Box::new(move || sender.send(call())));
    });
    handle.await
}

/// Whether the kernel still works on operations of this executor whose futures were dropped, and
/// still uses their buffers and descriptors. Never on threads that are no executor's.
pub fn has_orphans() -> bool {
    try_with_current(|context| context.reactor.borrow().orphans() > 0) == Some(true)
}

/// Waits until there are none of them.
pub async fn orphans_ended() {
    std::future::poll_fn(|cx| {
        with_current(|context| {
            let mut reactor = context.reactor.borrow_mut();
            if reactor.orphans() == 0 {
                return Poll::Ready(());
            }
            reactor.wake_without_orphans(cx.waker());
            Poll::Pending
        })
    })
    .await;
}

/// Waits for `duration`.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep {
        deadline: Instant::now() + duration,
        key: None,
    }
}

/// The future of [`sleep`].
#[must_use = "a sleep that is not awaited waits for nothing"]
pub struct Sleep {
    deadline: Instant,
    key: Option<(Instant, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        let deadline = self.deadline;
        let key = self.key;
        let key = with_current(|context| {
            let key = key.unwrap_or_else(|| {
                let number = context.next_timer.get();
                context.next_timer.set(number + 1);
                (deadline, number)
            });
            context.timers.borrow_mut().insert(key, cx.waker().clone());
            key
        });
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            try_with_current(|context| context.timers.borrow_mut().remove(&key));
        }
    }
}

/// Lets other tasks of this executor run before going on.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
