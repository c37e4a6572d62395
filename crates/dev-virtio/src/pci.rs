//! virtio over PCI, modern only (virtio 1.2, 4.1).
//!
//! | place | what |
//! |---|---|
//! | BAR 1 | MSI-X table and pending bits |
//! | BAR 4, 64 bits, 16 KiB | `0x0000` common configuration, `0x1000` ISR, `0x2000` device configuration, `0x3000` notifications, four bytes for each queue |
//! | capability `0x40` | common configuration |
//! | `0x50`, `0x60`, `0x70` | ISR, device configuration, notifications |
//! | `0x84` | access through configuration space (4.1.4.9) |
//!
//! The places are those at which QEMU has them.
//!
//! The window of capability `0x84` reads when its place is written: a driver that reads the same place twice through it
//! writes the place twice.

use std::sync::{Arc, Weak};

use device::pci::{
    Bar, BarKind, HeaderSaved, Msix, PciAddress, PciBus, PciFunction, PciHeader, PciIdentity,
};
use device::{Device, Error as DeviceError, IoHandler, ResetKind, SavedState, Width, read_bytes};
use guest_memory::GuestMemory;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::virtio_core::{CoreSaved, QueueArea};
use crate::{Error, VirtioCore, VirtioDevice, VirtioInterrupt};

const VERSION: u32 = 1;
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;
const MSIX_BAR: u8 = 1;
const MEMORY_BAR: u8 = 4;
const AREA_BYTES: u64 = 0x1000;
const MEMORY_BYTES: u64 = 4 * AREA_BYTES;
const COMMON: u64 = 0;
const ISR: u64 = AREA_BYTES;
const DEVICE: u64 = 2 * AREA_BYTES;
const NOTIFY: u64 = 3 * AREA_BYTES;
const NOTIFY_MULTIPLIER: u64 = 4;
/// The last byte of the common configuration that is known here, plus one.
const COMMON_BYTES: usize = 0x38;
const COMMAND: u8 = 0x04;
const VENDOR_CAPABILITY: u8 = 9;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// Stands for no MSI-X vector (4.1.4.3).
const NO_VECTOR: u16 = 0xffff;

/// What a board chooses about a device on PCI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciOptions {
    /// MSI-X vectors; 0 for none, `None` for one for each queue and one more.
    pub vectors: Option<u16>,
    /// Whether other functions share its slot.
    pub multifunction: bool,
}

/// Which vector stands for what, and what the ISR holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterruptState {
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl InterruptState {
    fn new(queues: usize) -> InterruptState {
        InterruptState {
            isr: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
        }
    }
}

struct PciInterrupt {
    header: Arc<PciHeader>,
    msix: Option<Arc<Msix>>,
    state: Mutex<InterruptState>,
}

impl PciInterrupt {
    fn raise(&self, bit: u8, vector: impl FnOnce(&InterruptState) -> Option<u16>) {
        let mut state = self.state.lock();
        match &self.msix {
            Some(msix) if msix.is_enabled() => {
                if let Some(vector) = vector(&state) {
                    // No vector is one that does not exist, which is ignored.
                    msix.notify(vector);
                }
            }
            _ => {
                state.isr |= bit;
                self.header.set_intx(true);
            }
        }
    }

    /// Reading the ISR clears it.
    fn take_isr(&self) -> u8 {
        let mut state = self.state.lock();
        let isr = std::mem::take(&mut state.isr);
        self.header.set_intx(false);
        isr
    }

    /// A vector that a driver asks for, or none if there is no such vector.
    fn valid_vector(&self, vector: u64) -> u16 {
        let count = self.msix.as_ref().map_or(0, |msix| msix.vectors());
        let vector = u16::try_from(vector).unwrap_or(NO_VECTOR);
        if usize::from(vector) < count {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// The driver has reset the device, or the machine has been.
    fn reset(&self) {
        let mut state = self.state.lock();
        *state = InterruptState::new(state.queue_vectors.len());
        self.header.set_intx(false);
    }
}

impl VirtioInterrupt for PciInterrupt {
    fn queue(&self, index: u16) {
        self.raise(ISR_QUEUE, |state| {
            state.queue_vectors.get(usize::from(index)).copied()
        });
    }

    fn config(&self) {
        self.raise(ISR_CONFIG, |state| Some(state.config_vector));
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PciSaved {
    header: HeaderSaved,
    interrupt: InterruptState,
    core: CoreSaved,
}

/// BAR 4. Does not own the function, which owns it.
struct Window(Weak<VirtioPci>);

impl IoHandler for Window {
    fn read(&self, offset: u64, width: Width) -> u64 {
        let function = self.0.upgrade();
        function.map_or(width.ones(), |function| function.read_memory(offset, width))
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        if let Some(function) = self.0.upgrade() {
            function.write_memory(offset, width, value & width.ones());
        }
    }
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    header: Arc<PciHeader>,
    interrupt: Arc<PciInterrupt>,
    core: VirtioCore,
    name: String,
    /// Where the capability of the access through configuration space lies.
    window_capability: u8,
}

impl VirtioPci {
    /// Puts a device behind a function for `address` of `bus`; the board plugs it there.
    ///
    /// # Errors
    /// As [`VirtioCore::new`]; or there are more MSI-X vectors than can be.
    pub fn new(
        bus: &PciBus,
        address: PciAddress,
        device: Arc<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        options: PciOptions,
    ) -> Result<Arc<VirtioPci>, Error> {
        let kind = device.device_type();
        let identity = PciIdentity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind.id(),
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
            class: kind.pci_class(),
            revision: 1,
            pin: 1,
            multifunction: options.multifunction,
        };
        let header = Arc::new(PciHeader::new(&identity, bus, address));
        let window_capability = add_capabilities(&header).ok_or(Error::PciCapabilities)?;
        let queues = device.queue_sizes().len();
        let vectors = options
            .vectors
            .unwrap_or_else(|| u16::try_from(queues + 1).unwrap_or(u16::MAX));
        let msix = match vectors {
            0 => None,
            vectors => Some(
                header
                    .add_msix(vectors, MSIX_BAR)
                    .ok_or(Error::PciCapabilities)?,
            ),
        };
        let interrupt = Arc::new(PciInterrupt {
            header: header.clone(),
            msix,
            state: Mutex::new(InterruptState::new(queues)),
        });
        let core = VirtioCore::new(device, memory, interrupt.clone())?;
        core.set_master(false);
        Ok(Arc::new_cyclic(|function| {
            header.add_bar(Bar {
                index: MEMORY_BAR,
                kind: BarKind::Memory64,
                length: MEMORY_BYTES,
                handler: Arc::new(Window(function.clone())),
                name: kind.name().to_owned(),
            });
            VirtioPci {
                header,
                interrupt,
                core,
                name: format!("{}-pci", kind.name()),
                window_capability,
            }
        }))
    }

    /// The device and what it has in common with all others: pausing, the driver's status.
    pub fn core(&self) -> &VirtioCore {
        &self.core
    }

    /// The MSI-X table's registers, if there are any: for tests, which have no processor.
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.interrupt.msix.as_ref()
    }

    /// Reads in BAR 4.
    pub(crate) fn read_memory(&self, offset: u64, width: Width) -> u64 {
        match offset & !(AREA_BYTES - 1) {
            COMMON => {
                let common = self.common();
                read_bytes(offset, width, |at| {
                    let byte = usize::try_from(at).ok().and_then(|at| common.get(at));
                    byte.copied().unwrap_or(0)
                })
            }
            ISR if offset == ISR => u64::from(self.interrupt.take_isr()),
            DEVICE => self.core.read_config(offset - DEVICE, width),
            _ => 0,
        }
    }

    /// Writes in BAR 4.
    pub(crate) fn write_memory(&self, offset: u64, width: Width, value: u64) {
        match offset & !(AREA_BYTES - 1) {
            COMMON => self.write_common(offset, width, value),
            DEVICE => self.core.write_config(offset - DEVICE, width, value),
            NOTIFY => {
                let index = (offset - NOTIFY) / NOTIFY_MULTIPLIER;
                if let Ok(index) = u16::try_from(index) {
                    self.core.notify(index);
                }
            }
            _ => {}
        }
    }

    /// The common configuration (4.1.4.3) as it is now.
    fn common(&self) -> [u8; COMMON_BYTES] {
        let core = &self.core;
        let setup = core.queue_setup();
        let select = core.queue_select();
        let state = self.interrupt.state.lock();
        let queue_vector = state.queue_vectors.get(usize::from(select)).copied();
        let config_vector = state.config_vector;
        drop(state);
        let mut bytes = [0; COMMON_BYTES];
        let mut place = bytes.as_mut_slice();
        let mut put = |value: &[u8]| {
            if let Some((field, rest)) =
                std::mem::take(&mut place).split_at_mut_checked(value.len())
            {
                field.copy_from_slice(value);
                place = rest;
            }
        };
        put(&core.device_feature_select().to_le_bytes());
        put(&core.device_features().to_le_bytes());
        put(&core.driver_feature_select().to_le_bytes());
        put(&core.driver_features().to_le_bytes());
        put(&config_vector.to_le_bytes());
        put(&core.queue_count().to_le_bytes());
        put(&[core.status()]);
        put(&core.config_generation().to_le_bytes()[..1]);
        put(&select.to_le_bytes());
        put(&setup.size.to_le_bytes());
        put(&queue_vector.unwrap_or(NO_VECTOR).to_le_bytes());
        put(&u16::from(setup.enabled).to_le_bytes());
        put(&select.to_le_bytes());
        put(&setup.descriptors.to_le_bytes());
        put(&setup.driver.to_le_bytes());
        put(&setup.device.to_le_bytes());
        bytes
    }

    /// Writes a field of the common configuration, as a whole; addresses of queues also in halves.
    fn write_common(&self, offset: u64, width: Width, value: u64) {
        let core = &self.core;
        let low = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
        let high = u32::try_from(value >> 32).unwrap_or(0);
        let word = u16::try_from(value & 0xffff).unwrap_or(0);
        match (offset, width) {
            (0x00, Width::Dword) => core.select_device_features(low),
            (0x08, Width::Dword) => core.select_driver_features(low),
            (0x0c, Width::Dword) => core.write_driver_features(low),
            (0x10, Width::Word) => {
                self.interrupt.state.lock().config_vector = self.interrupt.valid_vector(value);
            }
            (0x14, Width::Byte) => {
                let status = u8::try_from(value & 0xff).unwrap_or(0);
                core.write_status(status);
                if status == 0 {
                    self.interrupt.reset();
                }
            }
            (0x16, Width::Word) => core.select_queue(word),
            (0x18, Width::Word) => core.set_queue_size(word),
            (0x1a, Width::Word) => self.set_queue_vector(value),
            (0x1c, Width::Word) if word == 1 => core.enable_queue(),
            (0x20 | 0x24 | 0x28 | 0x2c | 0x30 | 0x34, Width::Dword | Width::Qword) => {
                let area = match offset & 0x38 {
                    0x20 => QueueArea::Descriptors,
                    0x28 => QueueArea::Driver,
                    _ => QueueArea::Device,
                };
                core.set_queue_address(area, offset & 4 != 0, low);
                if width == Width::Qword && offset & 4 == 0 {
                    core.set_queue_address(area, true, high);
                }
            }
            _ => {}
        }
    }

    fn set_queue_vector(&self, vector: u64) {
        let vector = self.interrupt.valid_vector(vector);
        let select = usize::from(self.core.queue_select());
        let mut state = self.interrupt.state.lock();
        if let Some(place) = state.queue_vectors.get_mut(select) {
            *place = vector;
        }
    }

    /// Does what the capability of the access through configuration space asks for.
    fn use_window(&self, is_write: bool) {
        let at = |offset: u8| {
            self.header
                .byte(self.window_capability.wrapping_add(offset))
        };
        let dword = |offset: u8| {
            u32::from_le_bytes([at(offset), at(offset + 1), at(offset + 2), at(offset + 3)])
        };
        let offset = u64::from(dword(8));
        let Some(width) = Width::from_bytes(u64::from(dword(12))) else {
            return;
        };
        let fits = at(4) == MEMORY_BAR && width != Width::Qword;
        if !fits || !offset.is_multiple_of(width.bytes()) || offset >= MEMORY_BYTES {
            return;
        }
        if is_write {
            self.write_memory(offset, width, u64::from(dword(16)) & width.ones());
        } else {
            let value = self.read_memory(offset, width).to_le_bytes();
            let data = self.window_capability.wrapping_add(16);
            self.header.set_bytes(data, &value[..4]);
        }
    }

    fn follow_header(&self) {
        self.core.set_master(self.header.is_master());
    }

    fn restore_parts(&self, saved: PciSaved) -> Result<(), DeviceError> {
        let queues = usize::from(self.core.queue_count());
        if saved.interrupt.queue_vectors.len() != queues {
            return Err(DeviceError::bad_state(
                &self.name,
                "it has another number of queues",
            ));
        }
        self.header.restore(&self.name, saved.header)?;
        self.core.restore(saved.core)?;
        *self.interrupt.state.lock() = saved.interrupt;
        self.follow_header();
        Ok(())
    }

    fn save_parts(&self) -> Result<PciSaved, DeviceError> {
        Ok(PciSaved {
            header: self.header.save(),
            interrupt: self.interrupt.state.lock().clone(),
            core: self.core.save()?,
        })
    }
}

/// Adds the capabilities that say where the areas are; gives the offset of the last one.
fn add_capabilities(header: &PciHeader) -> Option<u8> {
    let capability = |kind: u8, offset: u64, more: &[u8]| -> Option<Vec<u8>> {
        let length = u8::try_from(16 + more.len()).ok()?;
        let mut body = vec![length, kind, MEMORY_BAR, 0, 0, 0];
        body.extend(u32::try_from(offset).ok()?.to_le_bytes());
        body.extend(u32::try_from(AREA_BYTES).ok()?.to_le_bytes());
        body.extend(more);
        Some(body)
    };
    for (kind, offset) in [(1, COMMON), (3, ISR), (4, DEVICE)] {
        header.add_capability(VENDOR_CAPABILITY, &capability(kind, offset, &[])?, &[])?;
    }
    let multiplier = u32::try_from(NOTIFY_MULTIPLIER).ok()?.to_le_bytes();
    header.add_capability(VENDOR_CAPABILITY, &capability(2, NOTIFY, &multiplier)?, &[])?;
    let body = [20, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut writable = [0xff; 18];
    for fixed in [0, 1, 3, 4, 5] {
        if let Some(byte) = writable.get_mut(fixed) {
            *byte = 0;
        }
    }
    header.add_capability(VENDOR_CAPABILITY, &body, &writable)
}

impl PciFunction for VirtioPci {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn config_written(&self, first: u8, last: u8) {
        if first < COMMAND + 2 && last >= COMMAND {
            self.follow_header();
        }
        let window = self.window_capability;
        if first < window.saturating_add(20) && last >= window.saturating_add(4) {
            self.use_window(last >= window.saturating_add(16));
        }
    }
}

impl Device for VirtioPci {
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.header.reset();
        self.interrupt.reset();
        self.follow_header();
    }

    fn save(&self) -> Result<SavedState, DeviceError> {
        SavedState::of(&self.name, VERSION, &self.save_parts()?)
    }

    fn restore(&self, state: &SavedState) -> Result<(), DeviceError> {
        let saved: PciSaved = state.read(&self.name, VERSION)?;
        let before = self.save_parts()?;
        self.restore_parts(saved).inspect_err(|_| {
            // What was good before is good now.
            let _ = self.restore_parts(before);
        })
    }
}
