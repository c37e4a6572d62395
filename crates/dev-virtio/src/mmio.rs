//! virtio over MMIO, version 2 (virtio 1.2, 4.2).

use std::sync::Arc;

use device::{Device, Error as DeviceError, IoHandler, IrqLine, ResetKind, SavedState, Width};
use guest_memory::GuestMemory;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};

use crate::virtio_core::{CoreSaved, QueueArea};
use crate::{Error, VirtioCore, VirtioDevice, VirtioInterrupt};

const VERSION: u32 = 1;
/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// "QEMU": drivers do not ask, people who compare do.
const VENDOR: u32 = 0x554d_4551;
const REGISTERS_VERSION: u32 = 2;

/// The length of a device's range of registers, in bytes.
pub const MMIO_BYTES: u64 = 0x200;

struct MmioInterrupt {
    line: IrqLine,
    status: Mutex<u32>,
}

impl MmioInterrupt {
    fn change(&self, change: impl FnOnce(u32) -> u32) {
        let mut status = self.status.lock();
        *status = change(*status) & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
        self.line.set(*status != 0);
    }
}

impl VirtioInterrupt for MmioInterrupt {
    fn queue(&self, _index: u16) {
        self.change(|status| status | VIRTIO_MMIO_INT_VRING);
    }

    fn config(&self) {
        self.change(|status| status | VIRTIO_MMIO_INT_CONFIG);
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MmioSaved {
    interrupt_status: u32,
    core: CoreSaved,
}

/// A virtio device behind registers of its own. As an [`IoHandler`] it is [`MMIO_BYTES`] long.
pub struct VirtioMmio {
    interrupt: Arc<MmioInterrupt>,
    core: VirtioCore,
    name: String,
}

impl VirtioMmio {
    /// A device with an interrupt line.
    ///
    /// # Errors
    /// As [`VirtioCore::new`].
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        line: IrqLine,
    ) -> Result<Arc<VirtioMmio>, Error> {
        let name = format!("{}-mmio", device.device_type().name());
        let interrupt = Arc::new(MmioInterrupt {
            line,
            status: Mutex::new(0),
        });
        let core = VirtioCore::new(device, memory, interrupt.clone())?;
        Ok(Arc::new(VirtioMmio {
            interrupt,
            core,
            name,
        }))
    }

    /// The device and what it has in common with all others: pausing, the driver's status.
    pub fn core(&self) -> &VirtioCore {
        &self.core
    }

    fn read_register(&self, register: u32) -> u32 {
        let core = &self.core;
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => REGISTERS_VERSION,
            VIRTIO_MMIO_DEVICE_ID => u32::from(core.device().device_type().id()),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => core.device_features(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => u32::from(core.queue_max_size()),
            VIRTIO_MMIO_QUEUE_READY => u32::from(core.queue_setup().enabled),
            VIRTIO_MMIO_INTERRUPT_STATUS => *self.interrupt.status.lock(),
            VIRTIO_MMIO_STATUS => u32::from(core.status()),
            VIRTIO_MMIO_CONFIG_GENERATION => core.config_generation(),
            // Length and base of a shared memory region that is not there.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        let core = &self.core;
        let word = u16::try_from(value).ok();
        let address = |area, is_high| core.set_queue_address(area, is_high, value);
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => core.select_device_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => core.select_driver_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES => core.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => core.select_queue(word.unwrap_or(u16::MAX)),
            VIRTIO_MMIO_QUEUE_NUM => core.set_queue_size(word.unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_READY if value & 1 == 1 => core.enable_queue(),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(index) = word {
                    core.notify(index);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.change(|status| status & !value),
            VIRTIO_MMIO_STATUS => {
                let status = u8::try_from(value & 0xff).unwrap_or(0);
                core.write_status(status);
                if status == 0 {
                    self.interrupt.change(|_| 0);
                }
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => address(QueueArea::Descriptors, false),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => address(QueueArea::Descriptors, true),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => address(QueueArea::Driver, false),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => address(QueueArea::Driver, true),
            VIRTIO_MMIO_QUEUE_USED_LOW => address(QueueArea::Device, false),
            VIRTIO_MMIO_QUEUE_USED_HIGH => address(QueueArea::Device, true),
            _ => {}
        }
    }

    fn restore_parts(&self, saved: MmioSaved) -> Result<(), DeviceError> {
        self.core.restore(saved.core)?;
        self.interrupt.change(|_| saved.interrupt_status);
        Ok(())
    }

    fn save_parts(&self) -> Result<MmioSaved, DeviceError> {
        Ok(MmioSaved {
            interrupt_status: *self.interrupt.status.lock(),
            core: self.core.save()?,
        })
    }
}

impl IoHandler for VirtioMmio {
    fn read(&self, offset: u64, width: Width) -> u64 {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            return self.core.read_config(offset, width);
        }
        // Registers are 32 bits wide and are accessed so (4.2.2.2).
        match u32::try_from(offset) {
            Ok(register) if width == Width::Dword => u64::from(self.read_register(register)),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        let value = value & width.ones();
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.core.write_config(offset, width, value);
        } else if let (Ok(register), Ok(value), Width::Dword) =
            (u32::try_from(offset), u32::try_from(value), width)
        {
            self.write_register(register, value);
        }
    }
}

impl Device for VirtioMmio {
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.interrupt.change(|_| 0);
    }

    fn save(&self) -> Result<SavedState, DeviceError> {
        SavedState::of(&self.name, VERSION, &self.save_parts()?)
    }

    fn restore(&self, state: &SavedState) -> Result<(), DeviceError> {
        let saved: MmioSaved = state.read(&self.name, VERSION)?;
        let before = self.save_parts()?;
        self.restore_parts(saved).inspect_err(|_| {
            // What was good before is good now.
            let _ = self.restore_parts(before);
        })
    }
}
