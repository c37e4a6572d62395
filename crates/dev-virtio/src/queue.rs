//! A queue as a device sees it: chains of buffers come, are filled or read, and go back.
//!
//! The ring itself is `virtio-queue`'s. Here is what a device needs around it: whether it may be touched now, a bound and
//! a check for each chain before the device sees it, and a memory of the chains that the device holds, so that they can
//! be saved, and so that a device that is late (after a reset) can do no harm.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{DmaMemory, Region};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::{Error, Link, MAX_CHAIN_BUFFERS, MAX_QUEUE_SIZE};

/// A part of guest memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    address: u64,
    bytes: u32,
}

/// A chain that the device holds. What it is made of stays with the queue: see [`QueueGuard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    generation: u64,
}

/// What the driver sets up before it enables a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueueSetup {
    pub(crate) size: u16,
    pub(crate) enabled: bool,
    /// Descriptor table.
    pub(crate) descriptors: u64,
    /// Available ring.
    pub(crate) driver: u64,
    /// Used ring.
    pub(crate) device: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChainSaved {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

/// The state of a queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueueSaved {
    setup: QueueSetup,
    next_available: u16,
    next_used: u16,
    held: Vec<ChainSaved>,
}

/// What is known of the chain with one head. The vectors are used again and again.
#[derive(Default)]
struct Slot {
    is_held: bool,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

struct Inner {
    setup: QueueSetup,
    ring: Queue,
    is_running: bool,
    generation: u64,
    slots: Vec<Slot>,
    /// Chains that were held when the state was saved; the device takes them first.
    restored: VecDeque<u16>,
    view: Option<(Arc<[Region]>, DmaMemory)>,
    is_signal_due: bool,
    /// The state has been restored; whether a signal was due when it was saved is not known.
    is_signal_doubtful: bool,
}

/// One queue of a device.
pub struct DeviceQueue {
    index: u16,
    max_size: u16,
    link: Arc<Link>,
    inner: Mutex<Inner>,
}

impl DeviceQueue {
    pub(crate) fn new(index: u16, max_size: u16, link: Arc<Link>) -> Result<Arc<Self>, Error> {
        let ring = Queue::new(max_size)
            .ok()
            .filter(|_| max_size <= MAX_QUEUE_SIZE)
            .ok_or(Error::QueueSize(max_size))?;
        Ok(Arc::new(Self {
            index,
            max_size,
            link,
            inner: Mutex::new(Inner {
                setup: QueueSetup {
                    size: max_size,
                    ..QueueSetup::default()
                },
                ring,
                is_running: false,
                generation: 0,
                slots: Vec::new(),
                restored: VecDeque::new(),
                view: None,
                is_signal_due: false,
                is_signal_doubtful: false,
            }),
        }))
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Access to the queue and to the buffers of its chains; `None` while it is not running, or the device is paused,
    /// broken, or no bus master. Guest memory is reached by this way only: when [`crate::VirtioCore::pause`] has had
    /// the lock once, nobody touches it any more.
    pub fn lock(&self) -> Option<QueueGuard<'_>> {
        let mut inner = self.inner.lock();
        if !inner.is_running || !self.link.may_work() {
            return None;
        }
        if !inner.refresh_view(&self.link) {
            self.link.mark_broken("there is no RAM any more");
            return None;
        }
        Some(QueueGuard { queue: self, inner })
    }

    /// Returns when nobody has the lock whom [`DeviceQueue::lock`] let in before.
    pub(crate) fn wait_unlocked(&self) {
        drop(self.inner.lock());
    }

    pub(crate) fn setup(&self) -> QueueSetup {
        self.inner.lock().setup
    }

    /// Changes what the driver sets up; not while the queue is enabled.
    pub(crate) fn change_setup(&self, change: impl FnOnce(&mut QueueSetup)) {
        let mut inner = self.inner.lock();
        if !inner.setup.enabled {
            let mut setup = inner.setup;
            change(&mut setup);
            inner.setup = setup;
        }
    }

    /// The largest size.
    pub(crate) fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Begins to run, if the driver has enabled it. False if what the driver set up cannot be.
    pub(crate) fn start(&self, event_idx: bool) -> bool {
        let mut inner = self.inner.lock();
        if !inner.setup.enabled || inner.is_running {
            return true;
        }
        let QueueSetup {
            size,
            descriptors,
            driver,
            device,
            ..
        } = inner.setup;
        let ring = &mut inner.ring;
        let is_set = ring.try_set_size(size).is_ok()
            && ring
                .try_set_desc_table_address(GuestAddress(descriptors))
                .is_ok()
            && ring
                .try_set_avail_ring_address(GuestAddress(driver))
                .is_ok()
            && ring.try_set_used_ring_address(GuestAddress(device)).is_ok();
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        if !is_set || !inner.refresh_view(&self.link) {
            return false;
        }
        let is_valid = match &inner.view {
            Some((_, view)) => inner.ring.is_valid(view),
            None => false,
        };
        inner.slots.resize_with(usize::from(size), Slot::default);
        inner.is_running = is_valid;
        is_valid
    }

    /// Stops, forgets all chains and all that the driver set up.
    pub(crate) fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.setup = QueueSetup {
            size: self.max_size,
            ..QueueSetup::default()
        };
        inner.ring.reset();
        inner.is_running = false;
        inner.generation += 1;
        inner.slots = Vec::new();
        inner.restored.clear();
        inner.view = None;
        inner.is_signal_due = false;
        inner.is_signal_doubtful = false;
    }

    pub(crate) fn save(&self) -> QueueSaved {
        let inner = self.inner.lock();
        let held = (0..).zip(&inner.slots).filter(|(_, slot)| slot.is_held);
        QueueSaved {
            setup: inner.setup,
            next_available: inner.ring.next_avail(),
            next_used: inner.ring.next_used(),
            held: held
                .map(|(head, slot)| ChainSaved {
                    head,
                    readable: slot.readable.clone(),
                    writable: slot.writable.clone(),
                })
                .collect(),
        }
    }

    /// Takes over a state after a reset; [`DeviceQueue::start`] follows if the device was active.
    pub(crate) fn restore(&self, saved: QueueSaved) -> Result<(), &'static str> {
        let size = saved.setup.size;
        if size > self.max_size {
            return Err("a queue is larger than the device's");
        }
        let mut inner = self.inner.lock();
        inner.is_signal_doubtful = true;
        inner.setup = saved.setup;
        inner.ring.set_next_avail(saved.next_available);
        inner.ring.set_next_used(saved.next_used);
        inner.slots.resize_with(usize::from(size), Slot::default);
        for chain in saved.held {
            let buffers = chain.readable.len().saturating_add(chain.writable.len());
            let slot = inner.slots.get_mut(usize::from(chain.head));
            let slot = slot.filter(|slot| !slot.is_held && buffers <= MAX_CHAIN_BUFFERS);
            let Some(slot) = slot else {
                return Err("a held chain cannot be one of its queue's");
            };
            *slot = Slot {
                is_held: true,
                readable: chain.readable,
                writable: chain.writable,
            };
            inner.restored.push_back(chain.head);
        }
        Ok(())
    }
}

impl Inner {
    /// Sees to it that the view shows memory as it is mapped now.
    fn refresh_view(&mut self, link: &Link) -> bool {
        let regions = link.memory().regions();
        if let Some((known, _)) = &self.view
            && Arc::ptr_eq(known, &regions)
        {
            return true;
        }
        self.view = link.memory().dma_view().ok().map(|view| (regions, view));
        self.view.is_some()
    }

    fn slot(&self, chain: Chain) -> Option<&Slot> {
        let slot = self.slots.get(usize::from(chain.head))?;
        (chain.generation == self.generation && slot.is_held).then_some(slot)
    }
}

/// Why a chain cannot be taken.
type Fault = &'static str;

/// Access to a running queue.
pub struct QueueGuard<'a> {
    queue: &'a DeviceQueue,
    inner: MutexGuard<'a, Inner>,
}

impl QueueGuard<'_> {
    /// Takes the next chain that the driver has made available. It stays the device's until [`QueueGuard::finish`].
    ///
    /// A chain that loops, is longer than [`MAX_CHAIN_BUFFERS`], has buffers that are no RAM, or is held already breaks
    /// the device.
    pub fn pop(&mut self) -> Option<Chain> {
        let generation = self.inner.generation;
        if let Some(head) = self.inner.restored.pop_front() {
            return Some(Chain { head, generation });
        }
        match take_chain(&mut self.inner) {
            Ok(head) => head.map(|head| Chain { head, generation }),
            Err(fault) => {
                self.queue.link.mark_broken(fault);
                None
            }
        }
    }

    /// What the driver has put into a chain makes no sense: the device stops until it is reset.
    pub fn mark_broken(&self, reason: &str) {
        self.queue.link.mark_broken(reason);
    }

    /// The bytes that the driver has put into the chain.
    pub fn readable_bytes(&self, chain: Chain) -> u64 {
        let slot = self.inner.slot(chain);
        slot.map_or(0, |slot| total(&slot.readable))
    }

    /// The bytes that the device may put into the chain.
    pub fn writable_bytes(&self, chain: Chain) -> u64 {
        let slot = self.inner.slot(chain);
        slot.map_or(0, |slot| total(&slot.writable))
    }

    /// Copies what the driver has put into the chain from byte `offset` on; gives the number of bytes.
    pub fn read(&self, chain: Chain, offset: u64, into: &mut [u8]) -> usize {
        let (Some(slot), Some((_, view))) = (self.inner.slot(chain), &self.inner.view) else {
            return 0;
        };
        let mut done = 0;
        for (address, bytes) in cut(&slot.readable, offset) {
            let rest = into.get_mut(done..).unwrap_or_default();
            let count = rest.len().min(bytes);
            let Some(part) = rest.get_mut(..count).filter(|part| !part.is_empty()) else {
                break;
            };
            if view.read_slice(part, GuestAddress(address)).is_err() {
                self.queue
                    .link
                    .mark_broken("a buffer is not in RAM any more");
                break;
            }
            done += count;
        }
        done
    }

    /// Copies into the chain from byte `offset` of its writable part on; gives the number of bytes.
    pub fn write(&self, chain: Chain, offset: u64, from: &[u8]) -> usize {
        let (Some(slot), Some((_, view))) = (self.inner.slot(chain), &self.inner.view) else {
            return 0;
        };
        let mut done = 0;
        for (address, bytes) in cut(&slot.writable, offset) {
            let rest = from.get(done..).unwrap_or_default();
            let Some(part) = rest
                .get(..rest.len().min(bytes))
                .filter(|part| !part.is_empty())
            else {
                break;
            };
            if view.write_slice(part, GuestAddress(address)).is_err() {
                self.queue
                    .link
                    .mark_broken("a buffer is not in RAM any more");
                break;
            }
            done += part.len();
        }
        done
    }

    /// Gives a chain back, with so many bytes written to it. The driver hears of it by [`QueueGuard::signal`]. A chain of
    /// an earlier generation is forgotten.
    pub fn finish(&mut self, chain: Chain, written_bytes: u32) {
        if self.inner.slot(chain).is_none() {
            return;
        }
        let inner = &mut *self.inner;
        if let Some(slot) = inner.slots.get_mut(usize::from(chain.head)) {
            slot.is_held = false;
        }
        let Some((_, view)) = &inner.view else { return };
        if inner
            .ring
            .add_used(view, chain.head, written_bytes)
            .is_err()
        {
            self.queue
                .link
                .mark_broken("the used ring is not in RAM any more");
        }
        inner.is_signal_due = true;
    }

    /// Interrupts the driver if chains were given back since the last time and it wants to hear of them. Once for a batch.
    pub fn signal(&mut self) {
        let inner = &mut *self.inner;
        let is_due = std::mem::take(&mut inner.is_signal_due);
        if std::mem::take(&mut inner.is_signal_doubtful) {
            self.queue.link.interrupt_queue(self.queue.index);
            return;
        }
        if !is_due {
            return;
        }
        let Some((_, view)) = &inner.view else { return };
        let is_wanted = inner.ring.needs_notification(view).unwrap_or(true)
            && (inner.ring.event_idx_enabled() || !suppresses_interrupts(&inner.ring, view));
        if is_wanted {
            self.queue.link.interrupt_queue(self.queue.index);
        }
    }

    /// Asks the driver not to notify of new chains: the device is looking anyway.
    pub fn silence_driver(&mut self) {
        let inner = &mut *self.inner;
        if let Some((_, view)) = &inner.view
            && inner.ring.disable_notification(view).is_err()
        {
            self.queue
                .link
                .mark_broken("the used ring is not in RAM any more");
        }
    }

    /// Asks the driver to notify again; true if there are chains already, of which it will not tell.
    pub fn listen_to_driver(&mut self) -> bool {
        let inner = &mut *self.inner;
        let Some((_, view)) = &inner.view else {
            return false;
        };
        match inner.ring.enable_notification(view) {
            Ok(more) => (more || !inner.restored.is_empty()) && !self.queue.link.is_broken(),
            Err(_) => {
                self.queue
                    .link
                    .mark_broken("the rings are not in RAM any more");
                false
            }
        }
    }
}

fn suppresses_interrupts(ring: &Queue, view: &DmaMemory) -> bool {
    let flags = view.read_obj::<u16>(GuestAddress(ring.avail_ring()));
    flags.is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
}

fn total(segments: &[Segment]) -> u64 {
    segments
        .iter()
        .map(|segment| u64::from(segment.bytes))
        .sum()
}

/// The addresses and lengths that begin `offset` bytes into the segments.
fn cut(segments: &[Segment], offset: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut skip = offset;
    segments
        .iter()
        .filter_map(move |segment| {
            let skipped = skip.min(u64::from(segment.bytes));
            skip -= skipped;
            let bytes = usize::try_from(u64::from(segment.bytes) - skipped).ok()?;
            // Checked when the chain was taken: it ends within the address space.
            Some((segment.address.checked_add(skipped)?, bytes))
        })
        .filter(|(_, bytes)| *bytes > 0)
}

/// Takes the next chain of the ring into its slot.
fn take_chain(inner: &mut Inner) -> Result<Option<u16>, Fault> {
    let Some((_, view)) = &inner.view else {
        return Ok(None);
    };
    let index = inner.ring.avail_idx(view, Ordering::Acquire);
    if index.is_ok_and(|index| index.0 == inner.ring.next_avail()) {
        return Ok(None);
    }
    let mut available = inner
        .ring
        .iter(view)
        .map_err(|_| "the available ring's index cannot be")?;
    let chain = available
        .next()
        .ok_or("the available ring is not in RAM any more")?;
    let head = chain.head_index();
    let slot = inner
        .slots
        .get_mut(usize::from(head))
        .ok_or("a chain's head is not in the descriptor table")?;
    if slot.is_held {
        return Err("a chain is made available that the device holds already");
    }
    slot.readable.clear();
    slot.writable.clear();
    // An iteration that ends early, for whatever is wrong, ends with a descriptor that has a next one.
    let mut is_complete = false;
    for (count, descriptor) in chain.enumerate() {
        if count >= MAX_CHAIN_BUFFERS {
            return Err("a chain has too many buffers");
        }
        is_complete = !descriptor.has_next();
        let segment = Segment {
            address: descriptor.addr().0,
            bytes: descriptor.len(),
        };
        let (list, access) = if descriptor.is_write_only() {
            (&mut slot.writable, Permissions::Write)
        } else if slot.writable.is_empty() {
            (&mut slot.readable, Permissions::Read)
        } else {
            return Err("a chain has a buffer to read behind one to write");
        };
        let bytes = usize::try_from(segment.bytes).map_err(|_| "a buffer is too long")?;
        if bytes > 0 && !view.check_range(descriptor.addr(), bytes, access) {
            return Err("a buffer is not in RAM");
        }
        list.push(segment);
    }
    if !is_complete {
        return Err("a chain loops, or leads out of its table");
    }
    slot.is_held = true;
    Ok(Some(head))
}
