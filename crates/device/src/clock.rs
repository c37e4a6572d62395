//! Guest time, timers, and the time of day.
//!
//! Guest time is nanoseconds since the machine was made, not counting the times when it stood. A real clock follows the
//! host's monotonic clock while it runs and calls timers from one thread; a stepped clock moves only when it is told to
//! and calls timers from there, in the order of their deadlines: the same steps give the same run.

use std::fmt;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

type Callback = Arc<dyn Fn() + Send + Sync>;

struct Entry {
    id: u64,
    deadline_ns: u64,
    /// When it was armed, among all armings: equal deadlines are called in this order.
    armed: u64,
    period_ns: Option<u64>,
    callback: Callback,
}

/// How guest time moves.
enum Motion {
    Stepped,
    Standing,
    /// Guest time was `now_ns` of [`State`] at this instant.
    Running(Instant),
}

struct State {
    now_ns: u64,
    motion: Motion,
    next_id: u64,
    next_armed: u64,
    armed: Vec<Entry>,
    ending: bool,
}

impl State {
    fn now_ns(&self) -> u64 {
        match self.motion {
            Motion::Stepped | Motion::Standing => self.now_ns,
            Motion::Running(since) => {
                let passed = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.now_ns.saturating_add(passed)
            }
        }
    }

    fn first(&self) -> Option<&Entry> {
        self.armed
            .iter()
            .min_by_key(|entry| (entry.deadline_ns, entry.armed))
    }

    /// Takes the first timer that is due at `now_ns`; a periodic one is armed again.
    fn take_due(&mut self, now_ns: u64) -> Option<(u64, Callback)> {
        let first = self.first().filter(|entry| entry.deadline_ns <= now_ns)?;
        let (id, armed) = (first.id, self.next_armed);
        let entry = self.armed.iter_mut().find(|entry| entry.id == id)?;
        let due = (entry.deadline_ns, entry.callback.clone());
        match entry.period_ns {
            Some(period_ns) => {
                entry.deadline_ns = entry.deadline_ns.saturating_add(period_ns);
                entry.armed = armed;
                self.next_armed += 1;
            }
            None => self.armed.retain(|entry| entry.id != id),
        }
        Some(due)
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// The thread of a real clock.
    fn serve(&self) {
        let mut state = self.state.lock();
        while !state.ending {
            let running = matches!(state.motion, Motion::Running(_));
            let now_ns = state.now_ns();
            if running && let Some((_, callback)) = state.take_due(now_ns) {
                drop(state);
                callback();
                state = self.state.lock();
                continue;
            }
            match state.first().map(|entry| entry.deadline_ns) {
                Some(deadline_ns) if running => {
                    let wait = Duration::from_nanos(deadline_ns.saturating_sub(now_ns));
                    self.changed.wait_for(&mut state, wait);
                }
                _ => self.changed.wait(&mut state),
            }
        }
    }
}

/// Ends the thread of a real clock when the last handle is gone.
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.state.lock().ending = true;
        self.shared.changed.notify_all();
        if let Some(handle) = self.thread.lock().take()
            && handle.thread().id() != thread::current().id()
        {
            // A panic of a timer has been reported by the thread itself.
            let _ = handle.join();
        }
    }
}

/// A machine's clock; clones are handles of the same clock.
#[derive(Clone)]
pub struct Clock {
    owner: Arc<Owner>,
}

impl Clock {
    /// A clock that follows the host's, standing at 0 until [`Clock::start`].
    pub fn real() -> Clock {
        Clock::with_motion(Motion::Standing)
    }

    /// A clock at 0 that moves only by [`Clock::step`].
    pub fn stepped() -> Clock {
        Clock::with_motion(Motion::Stepped)
    }

    fn with_motion(motion: Motion) -> Clock {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                now_ns: 0,
                motion,
                next_id: 0,
                next_armed: 0,
                armed: Vec::new(),
                ending: false,
            }),
            changed: Condvar::new(),
        });
        let thread = Mutex::new(None);
        Clock {
            owner: Arc::new(Owner { shared, thread }),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// Guest time.
    pub fn now_ns(&self) -> u64 {
        self.shared().state.lock().now_ns()
    }

    /// Lets a real clock run. A stepped clock, or one that runs, is as before.
    pub fn start(&self) {
        let mut state = self.shared().state.lock();
        if !matches!(state.motion, Motion::Standing) {
            return;
        }
        state.motion = Motion::Running(Instant::now());
        drop(state);
        let mut thread = self.owner.thread.lock();
        if thread.is_none() {
            let shared = self.shared().clone();
            // A host that gives no thread at all gives no vCPU either: the machine does not get this far.
            *thread = thread::Builder::new()
                .name("clock".to_owned())
                .spawn(move || shared.serve())
                .ok();
        }
        self.shared().changed.notify_all();
    }

    /// Stops a real clock: guest time stands and no timer is called; one that is being called just now ends on its own.
    pub fn stop(&self) {
        let mut state = self.shared().state.lock();
        if let Motion::Running(_) = state.motion {
            state.now_ns = state.now_ns();
            state.motion = Motion::Standing;
        }
        drop(state);
        self.shared().changed.notify_all();
    }

    /// Moves a stepped clock forward and calls the timers on the way, each at its deadline. A real clock is as before.
    pub fn step(&self, by_ns: u64) {
        let target = self.now_ns().saturating_add(by_ns);
        loop {
            let mut state = self.shared().state.lock();
            if !matches!(state.motion, Motion::Stepped) {
                return;
            }
            let Some((deadline_ns, callback)) = state.take_due(target) else {
                state.now_ns = target.max(state.now_ns);
                return;
            };
            state.now_ns = state.now_ns.max(deadline_ns);
            drop(state);
            callback();
        }
    }

    /// Sets guest time, to restore a saved machine. Timers keep their deadlines; devices arm them anew when restored.
    pub fn set_ns(&self, now_ns: u64) {
        let mut state = self.shared().state.lock();
        state.now_ns = now_ns;
        if let Motion::Running(since) = &mut state.motion {
            *since = Instant::now();
        }
        drop(state);
        self.shared().changed.notify_all();
    }

    /// The deadline of the next timer.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let state = self.shared().state.lock();
        state.first().map(|entry| entry.deadline_ns)
    }

    /// A timer, not armed.
    ///
    /// The callback is called without any lock of the clock and may arm and cancel timers. A call that has begun when
    /// the timer is cancelled goes on: the callback looks at the device's state and the time, it does not trust the call.
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let mut state = self.shared().state.lock();
        let id = state.next_id;
        state.next_id += 1;
        drop(state);
        Timer {
            shared: Arc::downgrade(self.shared()),
            id,
            callback: Arc::new(callback),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("now_ns", &self.now_ns())
            .finish_non_exhaustive()
    }
}

/// A timer of a [`Clock`]; dropping it cancels it.
pub struct Timer {
    shared: Weak<Shared>,
    id: u64,
    callback: Callback,
}

impl Timer {
    /// The shortest period: a guest that asks for less gets this, so that it cannot keep the clock's thread for itself.
    pub const SHORTEST_PERIOD_NS: u64 = 10_000;

    /// Calls once at a time; at once if it has passed. Replaces what was armed before.
    pub fn arm(&self, deadline_ns: u64) {
        self.insert(deadline_ns, None);
    }

    /// Calls at a time and then every `period_ns` (at least [`Timer::SHORTEST_PERIOD_NS`]). Periods that pass while the
    /// host is late are called late, not left out.
    pub fn arm_every(&self, first_ns: u64, period_ns: u64) {
        self.insert(first_ns, Some(period_ns.max(Timer::SHORTEST_PERIOD_NS)));
    }

    /// Not armed any more.
    pub fn cancel(&self) {
        if let Some(shared) = self.shared.upgrade() {
            let mut state = shared.state.lock();
            state.armed.retain(|entry| entry.id != self.id);
        }
    }

    /// When it will be called next.
    pub fn deadline_ns(&self) -> Option<u64> {
        let shared = self.shared.upgrade()?;
        let state = shared.state.lock();
        state
            .armed
            .iter()
            .find(|entry| entry.id == self.id)
            .map(|entry| entry.deadline_ns)
    }

    fn insert(&self, deadline_ns: u64, period_ns: Option<u64>) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut state = shared.state.lock();
        state.armed.retain(|entry| entry.id != self.id);
        let armed = state.next_armed;
        state.next_armed += 1;
        state.armed.push(Entry {
            id: self.id,
            deadline_ns,
            armed,
            period_ns,
            callback: self.callback.clone(),
        });
        drop(state);
        shared.changed.notify_all();
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer")
            .field("deadline_ns", &self.deadline_ns())
            .finish_non_exhaustive()
    }
}

/// The time of day.
#[derive(Clone, Debug)]
pub enum WallClock {
    /// The host's.
    Host,
    /// Guest time, counted from a date.
    Guest {
        /// The guest's clock.
        clock: Clock,
        /// The time of day when guest time was 0, in nanoseconds since 1970-01-01 00:00 UTC.
        start_unix_ns: u64,
    },
}

impl WallClock {
    /// Nanoseconds since 1970-01-01 00:00 UTC; a host before that is at 0.
    pub fn now_unix_ns(&self) -> u64 {
        match self {
            WallClock::Host => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |passed| {
                    u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX)
                }),
            WallClock::Guest {
                clock,
                start_unix_ns,
            } => start_unix_ns.saturating_add(clock.now_ns()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn recorder(
        clock: &Clock,
        name: &'static str,
        log: &Arc<Mutex<Vec<(&'static str, u64)>>>,
    ) -> Timer {
        let (log, inner) = (log.clone(), clock.clone());
        clock.timer(move || log.lock().push((name, inner.now_ns())))
    }

    #[test]
    fn steps_call_timers_in_order_at_their_deadlines() {
        let clock = Clock::stepped();
        let log = Arc::default();
        let (late, early, same) = (
            recorder(&clock, "late", &log),
            recorder(&clock, "early", &log),
            recorder(&clock, "same", &log),
        );
        late.arm(200_000);
        early.arm_every(50_000, 60_000);
        same.arm(110_000);
        clock.step(200_000);
        assert_eq!(
            log.lock().as_slice(),
            [
                ("early", 50_000),
                ("same", 110_000),
                ("early", 110_000),
                ("early", 170_000),
                ("late", 200_000)
            ]
        );
        assert_eq!(clock.next_deadline_ns(), Some(230_000));
        early.cancel();
        assert_eq!(clock.next_deadline_ns(), None);
        assert_eq!(clock.now_ns(), 200_000);
    }

    #[test]
    fn a_timer_armed_in_the_past_is_called_at_the_next_step() {
        let clock = Clock::stepped();
        clock.step(1000);
        let log = Arc::default();
        let timer = recorder(&clock, "past", &log);
        timer.arm(5);
        assert_eq!(timer.deadline_ns(), Some(5));
        clock.step(0);
        assert_eq!(log.lock().as_slice(), [("past", 1000)]);
        assert_eq!(timer.deadline_ns(), None);
    }

    #[test]
    fn a_dropped_timer_is_not_called() {
        let clock = Clock::stepped();
        let log = Arc::default();
        let timer = recorder(&clock, "dropped", &log);
        timer.arm(5);
        drop(timer);
        clock.step(10);
        assert_eq!(log.lock().len(), 0);
    }

    #[test]
    fn a_callback_may_arm_its_own_timer() {
        let clock = Clock::stepped();
        let count = Arc::new(Mutex::new(0));
        let slot: Arc<Mutex<Option<Timer>>> = Arc::default();
        let (inner, weak, counter) = (clock.clone(), Arc::downgrade(&slot), count.clone());
        *slot.lock() = Some(clock.timer(move || {
            *counter.lock() += 1;
            if let Some(slot) = weak.upgrade()
                && let Some(timer) = slot.lock().as_ref()
            {
                timer.arm(inner.now_ns() + 10);
            }
        }));
        slot.lock().as_ref().unwrap().arm(10);
        clock.step(35);
        assert_eq!(*count.lock(), 3);
    }

    #[test]
    fn a_real_clock_stands_runs_and_stands_again() {
        let clock = Clock::real();
        assert_eq!(clock.now_ns(), 0);
        let (sender, receiver) = mpsc::channel();
        let timer = clock.timer(move || sender.send(()).unwrap());
        timer.arm(1_000_000);
        clock.start();
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        clock.stop();
        let stopped = clock.now_ns();
        assert!(stopped >= 1_000_000);
        timer.arm(stopped + 1);
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
        assert_eq!(clock.now_ns(), stopped);
        clock.start();
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn the_time_of_day_can_follow_guest_time() {
        let clock = Clock::stepped();
        let wall = WallClock::Guest {
            clock: clock.clone(),
            start_unix_ns: 100,
        };
        clock.step(11);
        assert_eq!(wall.now_unix_ns(), 111);
        assert!(WallClock::Host.now_unix_ns() > 1_700_000_000_000_000_000);
    }
}
