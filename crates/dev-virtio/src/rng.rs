//! Random numbers for the guest (virtio 1.2, 5.4).
//!
//! Chains are filled on the thread that notifies: the host's numbers come at once.

use std::io;
use std::sync::{Arc, OnceLock, Weak};

use device::{Clock, Error as DeviceError, SavedState, Timer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{DeviceQueue, DeviceType, Link, QueueGuard, VirtioDevice};

const VERSION: u32 = 1;
const QUEUE_SIZE: u16 = 8;
/// The most bytes that one chain gets; a driver that wants more asks again.
pub const MAX_RNG_CHAIN_BYTES: usize = 64 << 10;

/// Where random numbers come from.
pub trait EntropySource: Send + Sync + 'static {
    /// Fills some of `into` without waiting; gives how many bytes from its beginning, 0 if there are none now.
    ///
    /// # Errors
    /// The source's; the guest gets nothing now.
    fn fill(&self, into: &mut [u8]) -> io::Result<usize>;
}

/// The host kernel's random numbers: what `rng-builtin`, and `rng-random` with `/dev/urandom`, stand for.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostEntropy;

impl EntropySource for HostEntropy {
    fn fill(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            done += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(done)
    }
}

/// How many bytes a guest gets in how much guest time: the properties `max-bytes` and `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngLimit {
    /// Bytes in each period.
    pub max_bytes: u64,
    /// The period, in milliseconds.
    pub period_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quota {
    left_bytes: u64,
    /// When the period ends, if one has begun.
    ends_ns: Option<u64>,
}

/// A virtio-rng device.
pub struct VirtioRng {
    source: Box<dyn EntropySource>,
    limit: Option<RngLimit>,
    clock: Clock,
    timer: Timer,
    connection: OnceLock<Arc<DeviceQueue>>,
    quota: Mutex<Quota>,
}

impl VirtioRng {
    /// A device that gives what `source` has, within a limit if there is one.
    pub fn new(
        source: Box<dyn EntropySource>,
        limit: Option<RngLimit>,
        clock: &Clock,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<VirtioRng>| {
            let weak = this.clone();
            VirtioRng {
                source,
                limit,
                clock: clock.clone(),
                timer: clock.timer(move || {
                    if let Some(this) = weak.upgrade() {
                        this.queue_notified(0);
                    }
                }),
                connection: OnceLock::new(),
                quota: Mutex::new(Quota::full(limit)),
            }
        })
    }

    /// The bytes that may be given now; arms the timer when there are none.
    fn allowance(&self, quota: &mut Quota) -> usize {
        let Some(limit) = self.limit else {
            return MAX_RNG_CHAIN_BYTES;
        };
        let now_ns = self.clock.now_ns();
        let is_over = quota.ends_ns.is_none_or(|ends_ns| ends_ns <= now_ns);
        if is_over {
            let period_ns = u64::from(limit.period_ms).saturating_mul(1_000_000);
            *quota = Quota {
                left_bytes: limit.max_bytes,
                ends_ns: Some(now_ns.saturating_add(period_ns)),
            };
        }
        if quota.left_bytes == 0
            && let Some(ends_ns) = quota.ends_ns
        {
            self.timer.arm(ends_ns);
        }
        usize::try_from(quota.left_bytes)
            .unwrap_or(usize::MAX)
            .min(MAX_RNG_CHAIN_BYTES)
    }

    /// Fills chains as long as there are some and the limit allows; true if that was all for now.
    fn fill_chains(&self, queue: &mut QueueGuard<'_>) -> bool {
        let mut quota = self.quota.lock();
        let mut buffer = Vec::new();
        for _ in 0..QUEUE_SIZE {
            let allowed = self.allowance(&mut quota);
            if allowed == 0 {
                return true;
            }
            let Some(chain) = queue.pop() else {
                return !queue.listen_to_driver();
            };
            let wanted = usize::try_from(queue.writable_bytes(chain)).unwrap_or(usize::MAX);
            buffer.resize(wanted.min(allowed), 0);
            let count = match self.source.fill(&mut buffer) {
                Ok(count) => count,
                Err(error) => {
                    tracing::warn!(%error, "no random numbers for the guest");
                    0
                }
            };
            let written = queue.write(chain, 0, buffer.get(..count).unwrap_or_default());
            if self.limit.is_some() {
                quota.left_bytes = quota.left_bytes.saturating_sub(written as u64);
            }
            queue.finish(chain, u32::try_from(written).unwrap_or(0));
        }
        false
    }
}

impl Quota {
    fn full(limit: Option<RngLimit>) -> Quota {
        Quota {
            left_bytes: limit.map_or(0, |limit| limit.max_bytes),
            ends_ns: None,
        }
    }
}

impl VirtioDevice for VirtioRng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn write_config(&self, _offset: usize, _bytes: &[u8]) {}

    fn connect(&self, _link: Arc<Link>, queues: Vec<Arc<DeviceQueue>>) {
        if let Some(queue) = queues.into_iter().next() {
            // A device is connected once.
            let _ = self.connection.set(queue);
        }
    }

    fn activate(&self, _features: u64) {
        self.queue_notified(0);
    }

    fn queue_notified(&self, _index: u16) {
        let Some(mut queue) = self.connection.get().and_then(|queue| queue.lock()) else {
            return;
        };
        queue.silence_driver();
        if !self.fill_chains(&mut queue) {
            // A driver that adds chains all the time does not keep this thread for ever.
            self.timer.arm(self.clock.now_ns());
        }
        queue.signal();
    }

    fn reset(&self) {
        self.timer.cancel();
        *self.quota.lock() = Quota::full(self.limit);
    }

    fn save(&self) -> Result<SavedState, DeviceError> {
        SavedState::of(DeviceType::Entropy.name(), VERSION, &*self.quota.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), DeviceError> {
        let quota: Quota = state.read(DeviceType::Entropy.name(), VERSION)?;
        let allowed = self.limit.map_or(0, |limit| limit.max_bytes);
        let bad = |reason| DeviceError::bad_state(DeviceType::Entropy.name(), reason);
        if quota.left_bytes > allowed {
            return Err(bad("more is left than a period gives"));
        }
        *self.quota.lock() = quota;
        Ok(())
    }
}
