//! virtio devices, on PCI and, on a board without it, behind registers of their own.

use std::sync::Arc;

use api::QmpError;
use dev_virtio::{
    HostEntropy, MMIO_BYTES, PciOptions, RngLimit, VirtioDevice, VirtioMmio, VirtioPci, VirtioRng,
};
use device::IrqLine;

use super::properties::{PropertySpec, property};
use super::{BusKind, DeviceKind, Made, Place, Properties};
use crate::control::{Control, Pausable};

/// Where board `microvm` has its virtio devices, [`MMIO_SLOTS`] of them.
const MMIO_START: u64 = 0xfeb0_0000;
const MMIO_SLOTS: u64 = 8;
/// The IOAPIC's input of the first.
const MMIO_FIRST_GSI: u32 = 16;

/// What every PCI device takes.
pub(super) const PCI_PROPERTIES: [PropertySpec; 3] = [
    property(
        "addr",
        "str",
        "Slot and optional function number, example: 06.0 or 06",
    ),
    property("multifunction", "bool", "on/off"),
    property("vectors", "uint32", "MSI-X vectors"),
];

const RNG_PROPERTIES: &[PropertySpec] = &[
    property("rng", "link<rng-backend>", "where random numbers come from"),
    property("max-bytes", "uint64", "bytes in each period"),
    property("period", "uint32", "the period, in milliseconds"),
    PCI_PROPERTIES[0],
    PCI_PROPERTIES[1],
    PCI_PROPERTIES[2],
];

/// Random numbers.
pub(super) const RNG_PCI: DeviceKind = DeviceKind {
    name: "virtio-rng-pci",
    category: "Misc",
    description: "random numbers",
    bus: BusKind::Pci,
    hotpluggable: true,
    properties: RNG_PROPERTIES,
    make: make_rng,
};

/// Random numbers, without PCI.
pub(super) const RNG_MMIO: DeviceKind = DeviceKind {
    name: "virtio-rng-device",
    bus: BusKind::VirtioMmio,
    hotpluggable: false,
    ..RNG_PCI
};

impl Pausable for VirtioPci {
    fn pause(&self) {
        self.core().pause();
    }

    fn resume(&self) {
        self.core().resume();
    }
}

impl Pausable for VirtioMmio {
    fn pause(&self) {
        self.core().pause();
    }

    fn resume(&self) {
        self.core().resume();
    }
}

/// Puts a device onto the bus of its kind.
pub(super) fn connect(
    control: &mut Control,
    kind: BusKind,
    properties: &mut Properties,
    device: Arc<dyn VirtioDevice>,
) -> Result<Made, QmpError> {
    match kind {
        BusKind::VirtioMmio => connect_mmio(control, device),
        _ => connect_pci(control, properties, device),
    }
}

fn connect_pci(
    control: &mut Control,
    properties: &mut Properties,
    device: Arc<dyn VirtioDevice>,
) -> Result<Made, QmpError> {
    let vectors = properties.number("vectors", 2048)?;
    let options = PciOptions {
        vectors: vectors.and_then(|vectors| u16::try_from(vectors).ok()),
        multifunction: properties.switch("multifunction")? == Some(true),
    };
    let address = control.choose_slot(properties)?;
    let (bus, memory) = control.pci_bus_and_memory()?;
    let function = VirtioPci::new(&bus, address, device, memory, options)
        .map_err(|error| QmpError::generic(error.to_string()))?;
    control.plug(address, function.clone())?;
    Ok(Made {
        place: Place::Pci(address),
        pausable: Some(function.clone()),
        ..Made::new(function)
    })
}

fn connect_mmio(control: &mut Control, device: Arc<dyn VirtioDevice>) -> Result<Made, QmpError> {
    let taken = |slot: u64| {
        let devices = control.devices.iter();
        devices
            .map(|device| device.made.place)
            .any(|place| place == Place::Mmio(slot))
    };
    let slot = (0..MMIO_SLOTS).find(|slot| !taken(*slot));
    let slot = slot.ok_or_else(|| QmpError::generic("all virtio-mmio slots are taken"))?;
    let (Some(chips), Some(memory)) = (&control.chips, &control.memory) else {
        return Err(QmpError::generic("this machine has no virtio-mmio bus"));
    };
    let gsi = MMIO_FIRST_GSI + u32::try_from(slot).unwrap_or(0);
    let line = IrqLine::new(chips.interrupts.ioapic.clone(), gsi);
    let function = VirtioMmio::new(device, memory.clone(), line)
        .map_err(|error| QmpError::generic(error.to_string()))?;
    let base = MMIO_START + slot * MMIO_BYTES;
    chips
        .memory
        .map("virtio-mmio", base, MMIO_BYTES, 0, function.clone())
        .map_err(|error| QmpError::generic(error.to_string()))?;
    Ok(Made {
        place: Place::Mmio(slot),
        described: Some(boot_pc::acpi::LegacyDevice::VirtioMmio {
            base: u32::try_from(base).unwrap_or(0),
            bytes: u32::try_from(MMIO_BYTES).unwrap_or(0),
            gsi,
        }),
        pausable: Some(function.clone()),
        ..Made::new(function)
    })
}

fn make_rng(
    control: &mut Control,
    kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    // Every backend there is takes the host's.
    properties.text("rng")?;
    let max_bytes = properties.number("max-bytes", i64::MAX.unsigned_abs())?;
    let period = properties.number("period", u64::from(u32::MAX))?;
    let limit = max_bytes.map(|max_bytes| RngLimit {
        max_bytes,
        period_ms: period
            .and_then(|period| u32::try_from(period).ok())
            .unwrap_or(1 << 16),
    });
    let device = VirtioRng::new(Box::new(HostEntropy), limit, &control.clock);
    connect(control, kind, properties, device)
}
