//! A disk (virtio 1.2, 5.2) over a node of the block graph.
//!
//! Each queue is served by one task, on an executor that the owner chooses: it takes requests from the ring, has up to 256
//! of them under way, and tells the driver of batches of answers.
//!
//! # Reset and pause
//!
//! A request that is under way when the driver resets the device goes on at the node, but nothing of it reaches guest
//! memory, and no request of the next driver begins before it has ended. During a pause answers wait.
//!
//! # Errors
//!
//! `rerror` and `werror` say what is done when a request fails. The owner's [`BlockErrorSink`] hears of each failure; with
//! [`BlockErrorAction::Stop`] it stops the machine ([`crate::VirtioCore::pause`]), and the request is kept, and tried again
//! after [`crate::VirtioCore::resume`].

mod queue_task;
mod request;
mod shared;

use std::sync::Arc;

use api::BlockdevOnError;
use block_graph::{BlockBackend, BlockErrorSink};
use device::{Error as DeviceError, SavedState};
use host_io::{ExecutorHandle, JoinHandle};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use self::request::{MAX_RANGE_SECTORS, SECTOR_BYTES};
use self::shared::Shared;
use crate::{DeviceQueue, DeviceType, Error, Link, MAX_QUEUE_SIZE, MAX_QUEUES, VirtioDevice};

pub use self::queue_task::MAX_HELD_BYTES;

const VERSION: u32 = 1;
/// Where the driver switches the write cache (`writeback`).
const WRITEBACK: usize = 32;

/// What a board chooses about a disk.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// Queues: `num-queues`, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Descriptors of each queue: `queue-size`, a power of two from 4 on.
    pub queue_size: u16,
    /// What the driver gets as the disk's identity; 20 bytes of it count.
    pub serial: String,
    /// Whether the driver may write. The backend must be able to.
    pub is_writable: bool,
    /// The block size in bytes: a power of two, at least 512.
    pub logical_block_bytes: u32,
    /// The physical block size in bytes, a power of two; `None` for what the node likes.
    pub physical_block_bytes: Option<u32>,
    /// Whether the driver may discard.
    pub discard: bool,
    /// Whether the driver may write zeroes without sending them.
    pub write_zeroes: bool,
    /// Whether writes may wait for a flush, unless the driver wants otherwise.
    pub write_cache: bool,
    /// Whether the driver may choose that: `config-wce`.
    pub config_wce: bool,
    /// What is done when a read fails.
    pub rerror: BlockdevOnError,
    /// What is done when anything else fails.
    pub werror: BlockdevOnError,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            serial: String::new(),
            is_writable: true,
            logical_block_bytes: 512,
            physical_block_bytes: None,
            discard: true,
            write_zeroes: true,
            write_cache: true,
            config_wce: true,
            rerror: BlockdevOnError::Auto,
            werror: BlockdevOnError::Auto,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlkSaved {
    write_cache: bool,
}

/// A virtio-blk device.
pub struct VirtioBlk {
    shared: Arc<Shared>,
    /// Where the queues are served, in turn.
    executors: Vec<ExecutorHandle>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl VirtioBlk {
    /// A disk over a backend, its queues served on `executors` in turn (an iothread's, several, or the machine's own).
    ///
    /// # Errors
    /// [`Error::BlkOptions`] for options that cannot be.
    pub fn new(
        backend: Arc<BlockBackend>,
        options: BlkOptions,
        executors: Vec<ExecutorHandle>,
        errors: Arc<dyn BlockErrorSink>,
    ) -> Result<Arc<VirtioBlk>, Error> {
        let is_block = |bytes: u32| bytes.is_power_of_two() && (512..=2 << 20).contains(&bytes);
        let complaint = if executors.is_empty() {
            Some("there is no executor to serve it")
        } else if options.queues == 0 || options.queues > MAX_QUEUES {
            Some("num-queues must be 1 to 256")
        } else if !options.queue_size.is_power_of_two()
            || !(4..=MAX_QUEUE_SIZE).contains(&options.queue_size)
        {
            Some("queue-size must be a power of two from 4 to 1024")
        } else if !is_block(options.logical_block_bytes)
            || !options.physical_block_bytes.is_none_or(is_block)
        {
            Some("block sizes must be powers of two from 512 to 2097152")
        } else if options
            .physical_block_bytes
            .is_some_and(|bytes| bytes < options.logical_block_bytes)
        {
            Some("the logical block size must not exceed the physical one")
        } else {
            None
        };
        if let Some(complaint) = complaint {
            return Err(Error::BlkOptions(complaint));
        }
        Ok(Arc::new(VirtioBlk {
            shared: Arc::new(Shared::new(options, backend, errors)),
            executors,
            tasks: Mutex::default(),
        }))
    }

    /// The node's length has changed: the driver is told.
    pub fn length_changed(&self) {
        if let Some(link) = self.shared.link() {
            link.config_changed();
        }
    }

    /// Takes no more requests and waits for the end of those under way, without telling the driver; after that the
    /// backend may be detached. For unplugging; the device is dead then.
    pub async fn shutdown(&self) {
        self.shared.close();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task whose executor has gone has ended too.
            let _ = task.await;
        }
    }
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl VirtioDevice for VirtioBlk {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let options = self.shared.options();
        let features = [
            (VIRTIO_BLK_F_SEG_MAX, true),
            (VIRTIO_BLK_F_GEOMETRY, true),
            (VIRTIO_BLK_F_RO, !options.is_writable),
            (VIRTIO_BLK_F_BLK_SIZE, true),
            (VIRTIO_BLK_F_FLUSH, true),
            (VIRTIO_BLK_F_TOPOLOGY, true),
            (VIRTIO_BLK_F_CONFIG_WCE, options.config_wce),
            (VIRTIO_BLK_F_MQ, options.queues > 1),
            (VIRTIO_BLK_F_DISCARD, options.discard),
            (VIRTIO_BLK_F_WRITE_ZEROES, options.write_zeroes),
        ];
        let offered = features.iter().filter(|(_, is_offered)| *is_offered);
        offered.fold(0, |bits, (feature, _)| bits | 1 << feature)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let options = self.shared.options();
        vec![options.queue_size; usize::from(options.queues)]
    }

    /// The fields of `struct virtio_blk_config` up to `write_zeroes_may_unmap`, in order.
    fn config(&self) -> Vec<u8> {
        let options = self.shared.options();
        let limits = self.shared.backend().edge().node().driver().limits();
        let sectors = self.shared.backend().length() / SECTOR_BYTES;
        let block = options.logical_block_bytes.max(512);
        let physical = options.physical_block_bytes.unwrap_or_else(|| {
            let liked = limits.request_alignment.checked_next_power_of_two();
            liked.unwrap_or(0).clamp(block, 2 << 20)
        });
        let exponent = physical.ilog2().saturating_sub(block.ilog2());
        let opt_io = limits.preferred_transfer / block;
        let discard_alignment = u64::from(limits.discard_alignment.max(block)) / SECTOR_BYTES;
        let cylinders = (sectors / (16 * 63)).clamp(2, 16383);
        let mut config = Vec::with_capacity(60);
        config.extend(sectors.to_le_bytes());
        config.extend(0_u32.to_le_bytes());
        config.extend(u32::from(options.queue_size - 2).to_le_bytes());
        config.extend(u16::try_from(cylinders).unwrap_or(u16::MAX).to_le_bytes());
        config.extend([16, 63]);
        config.extend(block.to_le_bytes());
        config.extend([u8::try_from(exponent).unwrap_or(0), 0]);
        config.extend(0_u16.to_le_bytes());
        config.extend(opt_io.to_le_bytes());
        config.extend([u8::from(self.shared.write_cache()), 0]);
        config.extend(options.queues.to_le_bytes());
        config.extend(MAX_RANGE_SECTORS.to_le_bytes());
        config.extend(1_u32.to_le_bytes());
        config.extend(u32::try_from(discard_alignment).unwrap_or(1).to_le_bytes());
        config.extend(MAX_RANGE_SECTORS.to_le_bytes());
        config.extend(1_u32.to_le_bytes());
        config.extend([1, 0, 0, 0]);
        config
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) {
        if let (WRITEBACK, [value], true) = (offset, bytes, self.shared.options().config_wce) {
            self.shared.set_write_cache(value & 1 != 0);
        }
    }

    fn connect(&self, link: Arc<Link>, queues: Vec<Arc<DeviceQueue>>) {
        self.shared.connect(link);
        let mut tasks = self.tasks.lock();
        for (queue, executor) in queues.into_iter().zip(self.executors.iter().cycle()) {
            let shared = self.shared.clone();
            tasks.push(executor.spawn(move || queue_task::serve(shared, queue)));
        }
    }

    fn activate(&self, features: u64) {
        if features & 1 << VIRTIO_BLK_F_CONFIG_WCE == 0 {
            // A driver that does not flush wants every write durable (5.2.5.2).
            self.shared
                .set_write_cache(features & 1 << VIRTIO_BLK_F_FLUSH != 0);
        }
        self.shared.ring_all();
    }

    fn queue_notified(&self, index: u16) {
        if let Some(bell) = self.shared.bell(index) {
            bell.ring();
        }
        self.shared.waiters().wake_all();
    }

    fn reset(&self) {
        self.shared.begin_epoch();
        self.shared
            .set_write_cache(self.shared.options().write_cache);
    }

    fn save(&self) -> Result<SavedState, DeviceError> {
        let saved = BlkSaved {
            write_cache: self.shared.write_cache(),
        };
        SavedState::of(DeviceType::Block.name(), VERSION, &saved)
    }

    fn restore(&self, state: &SavedState) -> Result<(), DeviceError> {
        let saved: BlkSaved = state.read(DeviceType::Block.name(), VERSION)?;
        self.shared.set_write_cache(saved.write_cache);
        Ok(())
    }
}
