//! Memory that the guest gives back for a while (virtio 1.2, 5.5).
//!
//! The driver puts pages into the balloon until it holds as many as the host asks for; each is given back to the host's
//! system at once. On a poll the driver also tells how its memory is used.

use std::sync::{Arc, OnceLock, Weak};

use device::{Clock, Error as DeviceError, SavedState, Timer, WallClock};
use guest_memory::{GuestPhysAddr, PAGE_BYTES};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{Chain, DeviceQueue, DeviceType, Link, QueueGuard, VirtioDevice};

const VERSION: u32 = 1;
const STATS_QUEUE_FEATURE: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const QUEUE_SIZE: u16 = 128;
const INFLATE: u16 = 0;
const STATS: u16 = 2;
/// Where the driver writes how many pages it has given (`actual`).
const ACTUAL_OFFSET: usize = 4;
/// Bytes of one statistic: tag and value.
const STAT_BYTES: u64 = 10;
/// The longest chain of page numbers, in bytes. One of Linux has 1024; longer ones break the device, so that nobody who
/// wants to pause it waits long.
pub const MAX_BALLOON_CHAIN_BYTES: u64 = 256 << 10;

/// The names of the statistics, by tag (5.5.6.4, and what Linux has added).
pub const BALLOON_STAT_NAMES: [&str; 16] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-async-scans",
    "stat-direct-scans",
    "stat-async-reclaims",
    "stat-direct-reclaims",
];

/// What the guest has told of its memory: the property `guest-stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStats {
    /// In the order of [`BALLOON_STAT_NAMES`]; `None` for what the guest does not tell, which QEMU shows as 2^64-1.
    pub values: [Option<u64>; BALLOON_STAT_NAMES.len()],
    /// When, in seconds since 1970; 0 for never.
    pub updated_unix_s: u64,
}

/// Hears how much memory the guest has: BALLOON_CHANGE.
pub trait BalloonSink: Send + Sync + 'static {
    /// The guest has so many bytes now. Called on the driver's thread; it calls nothing of the device from inside.
    fn memory_changed(&self, actual_bytes: u64);
}

/// What a board chooses about a balloon.
pub struct BalloonOptions {
    /// The machine's RAM, in bytes: what the guest has with an empty balloon.
    pub ram_bytes: u64,
    /// Whether the driver may take memory back when it has none left: `deflate-on-oom`.
    pub deflate_on_oom: bool,
    /// Who hears of changes.
    pub sink: Arc<dyn BalloonSink>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Pages that the host asks for.
    target_pages: u32,
    /// Pages that the driver says it has given.
    actual_pages: u32,
    stats: BalloonStats,
}

/// The driver's buffer for statistics, which waits for a poll.
#[derive(Default)]
struct Polling {
    interval_s: u32,
    waiting: Option<Chain>,
}

struct Connection {
    link: Arc<Link>,
    queues: Vec<Arc<DeviceQueue>>,
}

/// A virtio-balloon device.
pub struct VirtioBalloon {
    options: BalloonOptions,
    clock: Clock,
    wall_clock: WallClock,
    timer: Timer,
    connection: OnceLock<Connection>,
    state: Mutex<State>,
    /// Taken before the lock of the queue of statistics.
    polling: Mutex<Polling>,
}

impl VirtioBalloon {
    /// An empty balloon that asks for nothing.
    pub fn new(options: BalloonOptions, clock: &Clock, wall_clock: WallClock) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<VirtioBalloon>| {
            let weak = this.clone();
            VirtioBalloon {
                options,
                clock: clock.clone(),
                wall_clock,
                timer: clock.timer(move || {
                    if let Some(this) = weak.upgrade() {
                        this.poll_stats();
                    }
                }),
                connection: OnceLock::new(),
                state: Mutex::new(State::new(0)),
                polling: Mutex::default(),
            }
        })
    }

    /// Asks the guest to have so much memory: the command `balloon`. More than there is means all.
    pub fn set_target(&self, memory_bytes: u64) {
        let pages = self.options.ram_bytes.saturating_sub(memory_bytes) / PAGE_BYTES;
        self.state.lock().target_pages = u32::try_from(pages).unwrap_or(u32::MAX);
        if let Some(connection) = self.connection.get() {
            connection.link.config_changed();
        }
    }

    /// How much memory the guest has, in bytes: what `query-balloon` tells.
    pub fn actual_bytes(&self) -> u64 {
        self.memory_with(self.state.lock().actual_pages)
    }

    fn memory_with(&self, pages: u32) -> u64 {
        self.options
            .ram_bytes
            .saturating_sub(u64::from(pages) * PAGE_BYTES)
    }

    /// What the guest has told of its memory.
    pub fn stats(&self) -> BalloonStats {
        self.state.lock().stats
    }

    /// How often the guest is asked, in seconds of guest time: `guest-stats-polling-interval`.
    pub fn polling_interval_s(&self) -> u32 {
        self.polling.lock().interval_s
    }

    /// Sets how often the guest is asked; 0 for never.
    pub fn set_polling_interval_s(&self, interval_s: u32) {
        self.polling.lock().interval_s = interval_s;
        self.arm(interval_s);
    }

    fn arm(&self, interval_s: u32) {
        if interval_s == 0 {
            self.timer.cancel();
        } else {
            let passes_ns = u64::from(interval_s) * 1_000_000_000;
            self.timer
                .arm(self.clock.now_ns().saturating_add(passes_ns));
        }
    }

    fn queue(&self, index: u16) -> Option<&Arc<DeviceQueue>> {
        self.connection.get()?.queues.get(usize::from(index))
    }

    /// Gives the driver its buffer back, for it to fill anew.
    fn poll_stats(&self) {
        let mut polling = self.polling.lock();
        if polling.waiting.is_some()
            && let Some(mut queue) = self.queue(STATS).and_then(|queue| queue.lock())
            && let Some(chain) = polling.waiting.take()
        {
            queue.finish(chain, 0);
            queue.signal();
        }
        self.arm(polling.interval_s);
    }

    /// Takes statistics; their buffer waits for the next poll.
    fn receive_stats(&self) {
        let mut polling = self.polling.lock();
        let Some(mut queue) = self.queue(STATS).and_then(|queue| queue.lock()) else {
            return;
        };
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = queue.pop() else { break };
            self.read_stats(&queue, chain);
            if let Some(earlier) = polling.waiting.replace(chain) {
                queue.finish(earlier, 0);
            }
        }
        queue.signal();
    }

    fn read_stats(&self, queue: &QueueGuard<'_>, chain: Chain) {
        let mut state = self.state.lock();
        state.stats.values = Default::default();
        // More entries than there are tags tell nothing.
        for index in 0..BALLOON_STAT_NAMES.len() as u64 {
            let mut entry = [0; STAT_BYTES as usize];
            if queue.read(chain, index * STAT_BYTES, &mut entry) < entry.len() {
                break;
            }
            let [t0, t1, value @ ..] = entry;
            let tag = usize::from(u16::from_le_bytes([t0, t1]));
            if let Some(place) = state.stats.values.get_mut(tag) {
                *place = Some(u64::from_le_bytes(value));
            }
        }
        state.stats.updated_unix_s = self.wall_clock.now_unix_ns() / 1_000_000_000;
    }

    /// Takes one chain of page numbers; false if there is none.
    fn take_pages(&self, index: u16) -> bool {
        let Some(mut queue) = self.queue(index).and_then(|queue| queue.lock()) else {
            return false;
        };
        let Some(chain) = queue.pop() else {
            return queue.listen_to_driver();
        };
        let bytes = queue.readable_bytes(chain);
        if bytes > MAX_BALLOON_CHAIN_BYTES {
            queue.mark_broken("a chain of page numbers is too long");
            return false;
        }
        if index == INFLATE {
            self.give_back(&queue, chain);
        }
        // Pages of the other queue are the guest's again: they come back when it touches them.
        queue.finish(chain, 0);
        queue.signal();
        true
    }

    /// Gives the pages that a chain names back to the host, runs of neighbours at once.
    fn give_back(&self, queue: &QueueGuard<'_>, chain: Chain) {
        let Some(connection) = self.connection.get() else {
            return;
        };
        let memory = connection.link.memory();
        let mut numbers = [0; 1024];
        let mut offset = 0;
        let mut run = (0, 0);
        loop {
            let count = queue.read(chain, offset, &mut numbers);
            offset += count as u64;
            let (whole, _) = numbers.get(..count).unwrap_or_default().as_chunks::<4>();
            for number in whole {
                let page = u64::from(u32::from_le_bytes(*number));
                run = match run {
                    (first, pages) if page == first + pages => (first, pages + 1),
                    (first, pages) if pages > 0 && page + 1 == first => (page, pages + 1),
                    (first, pages) => {
                        memory.discard(GuestPhysAddr(first * PAGE_BYTES), pages * PAGE_BYTES);
                        (page, 1)
                    }
                };
            }
            if count < numbers.len() {
                break;
            }
        }
        let (first, pages) = run;
        memory.discard(GuestPhysAddr(first * PAGE_BYTES), pages * PAGE_BYTES);
    }
}

impl State {
    fn new(target_pages: u32) -> State {
        State {
            target_pages,
            actual_pages: 0,
            stats: BalloonStats {
                values: Default::default(),
                updated_unix_s: 0,
            },
        }
    }
}

impl VirtioDevice for VirtioBalloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        let oom = if self.options.deflate_on_oom {
            DEFLATE_ON_OOM
        } else {
            0
        };
        STATS_QUEUE_FEATURE | oom
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn config(&self) -> Vec<u8> {
        let state = self.state.lock();
        let target = state.target_pages.to_le_bytes();
        [target, state.actual_pages.to_le_bytes()].concat()
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) {
        let mut state = self.state.lock();
        let before = state.actual_pages;
        let mut actual = before.to_le_bytes();
        for (at, byte) in (offset..).zip(bytes) {
            let place = at
                .checked_sub(ACTUAL_OFFSET)
                .and_then(|at| actual.get_mut(at));
            if let Some(place) = place {
                *place = *byte;
            }
        }
        state.actual_pages = u32::from_le_bytes(actual);
        let now = state.actual_pages;
        drop(state);
        if now != before {
            self.options.sink.memory_changed(self.memory_with(now));
        }
    }

    fn connect(&self, link: Arc<Link>, queues: Vec<Arc<DeviceQueue>>) {
        // A device is connected once.
        let _ = self.connection.set(Connection { link, queues });
    }

    fn activate(&self, _features: u64) {
        for index in 0..=STATS {
            self.queue_notified(index);
        }
    }

    fn queue_notified(&self, index: u16) {
        if index == STATS {
            self.receive_stats();
            return;
        }
        // The lock is given up after each chain, for who wants to pause the device.
        while self.take_pages(index) {}
    }

    fn reset(&self) {
        self.polling.lock().waiting = None;
        let mut state = self.state.lock();
        *state = State::new(state.target_pages);
    }

    fn save(&self) -> Result<SavedState, DeviceError> {
        SavedState::of(DeviceType::Balloon.name(), VERSION, &*self.state.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), DeviceError> {
        *self.state.lock() = state.read(DeviceType::Balloon.name(), VERSION)?;
        Ok(())
    }
}
