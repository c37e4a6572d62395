//! What all devices on all transports have in common: status, features, queues, configuration space.

use std::sync::Arc;

use device::{Error as DeviceError, SavedState, Width, read_bytes};
use guest_memory::GuestMemory;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::link::{DRIVER_OK, NEEDS_RESET};
use crate::queue::{QueueSaved, QueueSetup};
use crate::{DeviceQueue, Error, Link, MAX_QUEUES, VirtioDevice, VirtioInterrupt};

const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
/// The bits that a driver sets.
const DRIVER_BITS: u8 =
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FAILED) as u8
        | FEATURES_OK
        | DRIVER_OK;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The three parts of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueArea {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
}

/// The state of a [`VirtioCore`] with its device and queues, as part of its transport's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CoreSaved {
    registers: Registers,
    status: u8,
    config_generation: u32,
    queues: Vec<QueueSaved>,
    device: SavedState,
}

/// A device with its registers, whatever transport they are reached by.
pub struct VirtioCore {
    device: Arc<dyn VirtioDevice>,
    link: Arc<Link>,
    queues: Vec<Arc<DeviceQueue>>,
    registers: Mutex<Registers>,
}

impl VirtioCore {
    /// Connects a device that has not been connected before.
    ///
    /// # Errors
    /// The device's queues are not what queues can be.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Result<VirtioCore, Error> {
        let link = Link::new(memory, interrupt);
        let sizes = device.queue_sizes();
        if sizes.is_empty() || sizes.len() > usize::from(MAX_QUEUES) {
            return Err(Error::QueueCount(sizes.len()));
        }
        let queues: Vec<_> = (0..)
            .zip(sizes)
            .map(|(index, size)| DeviceQueue::new(index, size, link.clone()))
            .collect::<Result<_, _>>()?;
        device.connect(link.clone(), queues.clone());
        Ok(VirtioCore {
            device,
            link,
            queues,
            registers: Mutex::default(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// Holds the queues still: when this returns, guest memory is not touched any more until [`VirtioCore::resume`].
    /// What is under way elsewhere (on a disk) may go on; its results wait.
    pub fn pause(&self) {
        self.link.pause();
        self.wait_for_queues();
    }

    /// Lets the queues go on, and looks into each.
    pub fn resume(&self) {
        self.link.resume();
        self.look_into_queues();
    }

    /// Whether the device is broken until its driver resets it.
    pub fn is_broken(&self) -> bool {
        self.link.is_broken()
    }

    /// Whether a driver uses the device.
    pub fn is_active(&self) -> bool {
        self.link.status() & DRIVER_OK != 0
    }

    /// Back to the state of power-on. A pause goes on.
    pub fn reset(&self) {
        let mut registers = self.registers.lock();
        *registers = Registers::default();
        self.reset_device();
        self.link.set_config_generation(0);
    }

    fn reset_device(&self) {
        for queue in &self.queues {
            queue.reset();
        }
        self.device.reset();
        // At last: who had a queue until now may have found the driver at fault.
        self.link.set_status(0);
    }

    /// Sees every queue unlocked once.
    fn wait_for_queues(&self) {
        for queue in &self.queues {
            queue.wait_unlocked();
        }
    }

    fn look_into_queues(&self) {
        for queue in &self.queues {
            // What was finished just before the pause, or before the state was saved.
            if let Some(mut queue) = queue.lock() {
                queue.signal();
            }
            self.device.queue_notified(queue.index());
        }
    }

    /// The function may reach memory, or may not.
    pub(crate) fn set_master(&self, is_master: bool) {
        if self.link.set_master(is_master) {
            if is_master {
                self.look_into_queues();
            } else {
                self.wait_for_queues();
            }
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    pub(crate) fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(MAX_QUEUES)
    }

    pub(crate) fn device_feature_select(&self) -> u32 {
        self.registers.lock().device_feature_select
    }

    pub(crate) fn select_device_features(&self, select: u32) {
        self.registers.lock().device_feature_select = select;
    }

    /// 32 of the bits that the device offers.
    pub(crate) fn device_features(&self) -> u32 {
        half(self.offered(), self.device_feature_select())
    }

    pub(crate) fn driver_feature_select(&self) -> u32 {
        self.registers.lock().driver_feature_select
    }

    pub(crate) fn select_driver_features(&self, select: u32) {
        self.registers.lock().driver_feature_select = select;
    }

    /// 32 of the bits that the driver takes.
    pub(crate) fn driver_features(&self) -> u32 {
        let registers = self.registers.lock();
        half(registers.driver_features, registers.driver_feature_select)
    }

    pub(crate) fn write_driver_features(&self, bits: u32) {
        let mut registers = self.registers.lock();
        if self.link.status() & FEATURES_OK != 0 {
            return;
        }
        let bits = u64::from(bits);
        let features = registers.driver_features;
        registers.driver_features = match registers.driver_feature_select {
            0 => features >> 32 << 32 | bits,
            1 => bits << 32 | features & 0xffff_ffff,
            // Bits that do not exist yet are not offered either.
            _ => features,
        };
    }

    pub(crate) fn status(&self) -> u8 {
        self.link.status()
    }

    /// The driver writes the status: zero resets, bits are added one after the other (virtio 1.2, 3.1.1).
    pub(crate) fn write_status(&self, value: u8) {
        let mut registers = self.registers.lock();
        if value == 0 {
            let generation = self.link.config_generation();
            *registers = Registers::default();
            self.reset_device();
            self.link.set_config_generation(generation);
            return;
        }
        let mut news = value & DRIVER_BITS & !self.link.status();
        let features = registers.driver_features;
        if news & FEATURES_OK != 0 && (features & VERSION_1 == 0 || features & !self.offered() != 0)
        {
            news &= !FEATURES_OK;
        }
        let is_start = news & DRIVER_OK != 0;
        if is_start && (self.link.status() | news) & FEATURES_OK == 0 {
            self.link.add_status(news & !DRIVER_OK);
            self.link
                .mark_broken("the driver began without agreeing on features");
            return;
        }
        self.link.add_status(news);
        if is_start {
            self.activate(features);
        }
    }

    fn activate(&self, features: u64) {
        for queue in &self.queues {
            if !queue.start(features & EVENT_IDX != 0) {
                self.link.mark_broken("a queue is not set up as it must be");
                return;
            }
        }
        self.device.activate(features);
    }

    pub(crate) fn config_generation(&self) -> u32 {
        self.link.config_generation()
    }

    pub(crate) fn queue_select(&self) -> u16 {
        self.registers.lock().queue_select
    }

    pub(crate) fn select_queue(&self, index: u16) {
        self.registers.lock().queue_select = index;
    }

    fn selected(&self) -> Option<&Arc<DeviceQueue>> {
        self.queues.get(usize::from(self.queue_select()))
    }

    /// The largest size of the selected queue; 0 where there is none.
    pub(crate) fn queue_max_size(&self) -> u16 {
        self.selected().map_or(0, |queue| queue.max_size())
    }

    pub(crate) fn queue_setup(&self) -> QueueSetup {
        self.selected()
            .map_or(QueueSetup::default(), |queue| queue.setup())
    }

    pub(crate) fn set_queue_size(&self, size: u16) {
        if let Some(queue) = self.selected() {
            // A size that cannot be breaks the device when the queue is to begin.
            let size = if size > queue.max_size() { 0 } else { size };
            queue.change_setup(|setup| setup.size = size);
        }
    }

    /// Sets the lower or upper half of an address of the selected queue.
    pub(crate) fn set_queue_address(&self, area: QueueArea, is_high: bool, value: u32) {
        let Some(queue) = self.selected() else { return };
        queue.change_setup(|setup| {
            let address = match area {
                QueueArea::Descriptors => &mut setup.descriptors,
                QueueArea::Driver => &mut setup.driver,
                QueueArea::Device => &mut setup.device,
            };
            *address = if is_high {
                u64::from(value) << 32 | *address & 0xffff_ffff
            } else {
                *address >> 32 << 32 | u64::from(value)
            };
        });
    }

    /// Enables the selected queue. One that is enabled late begins at once.
    pub(crate) fn enable_queue(&self) {
        let registers = self.registers.lock();
        let Some(queue) = self.queues.get(usize::from(registers.queue_select)) else {
            return;
        };
        queue.change_setup(|setup| setup.enabled = true);
        if self.link.status() & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            return;
        }
        if queue.start(registers.driver_features & EVENT_IDX != 0) {
            self.device.queue_notified(queue.index());
        } else {
            self.link.mark_broken("a queue is not set up as it must be");
        }
    }

    /// The driver notifies of a queue. One that is not there is ignored.
    pub(crate) fn notify(&self, index: u16) {
        if self.is_active() && usize::from(index) < self.queues.len() {
            self.device.queue_notified(index);
        }
    }

    /// Reads the configuration space; all ones behind its end.
    pub(crate) fn read_config(&self, offset: u64, width: Width) -> u64 {
        let config = self.device.config();
        read_bytes(offset, width, |at| {
            let byte = usize::try_from(at).ok().and_then(|at| config.get(at));
            byte.copied().unwrap_or(0xff)
        })
    }

    /// Writes the configuration space, as far as the access lies within.
    pub(crate) fn write_config(&self, offset: u64, width: Width, value: u64) {
        let end = offset.checked_add(width.bytes());
        if end.is_none_or(|end| end > self.device.config().len() as u64) {
            return;
        }
        let bytes = value.to_le_bytes();
        let length = usize::try_from(width.bytes()).unwrap_or(bytes.len());
        if let (Ok(offset), Some(bytes)) = (usize::try_from(offset), bytes.get(..length)) {
            self.device.write_config(offset, bytes);
        }
    }

    pub(crate) fn save(&self) -> Result<CoreSaved, DeviceError> {
        Ok(CoreSaved {
            registers: *self.registers.lock(),
            status: self.link.status(),
            config_generation: self.link.config_generation(),
            queues: self.queues.iter().map(|queue| queue.save()).collect(),
            device: self.device.save()?,
        })
    }

    /// Takes over a state. The machine is paused. On an error the device is as after a reset.
    pub(crate) fn restore(&self, saved: CoreSaved) -> Result<(), DeviceError> {
        self.reset();
        let mut registers = self.registers.lock();
        let result = self.restore_queues(&mut registers, saved);
        if result.is_err() {
            *registers = Registers::default();
            self.reset_device();
            self.link.set_config_generation(0);
        }
        result
    }

    fn restore_queues(
        &self,
        registers: &mut Registers,
        saved: CoreSaved,
    ) -> Result<(), DeviceError> {
        let bad = |reason| DeviceError::bad_state(self.device.device_type().name(), reason);
        if saved.queues.len() != self.queues.len() {
            return Err(bad("it has another number of queues"));
        }
        let features = saved.registers.driver_features;
        let is_agreed = saved.status & FEATURES_OK != 0;
        if is_agreed && (features & VERSION_1 == 0 || features & !self.offered() != 0) {
            return Err(bad("the driver uses features that are not offered"));
        }
        if saved.status & !(DRIVER_BITS | NEEDS_RESET) != 0
            || saved.status & DRIVER_OK != 0 && !is_agreed
        {
            return Err(bad("its status cannot be"));
        }
        for (queue, saved) in self.queues.iter().zip(saved.queues) {
            queue.restore(saved).map_err(bad)?;
        }
        self.device.restore(&saved.device)?;
        *registers = saved.registers;
        self.link.set_config_generation(saved.config_generation);
        self.link.set_status(saved.status);
        if saved.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK {
            for queue in &self.queues {
                if !queue.start(features & EVENT_IDX != 0) {
                    return Err(bad("a queue is not in RAM"));
                }
            }
            self.device.activate(features);
        }
        Ok(())
    }
}

fn half(bits: u64, select: u32) -> u32 {
    let shifted = match select {
        0 => bits & 0xffff_ffff,
        1 => bits >> 32,
        _ => 0,
    };
    u32::try_from(shifted).unwrap_or(0)
}
