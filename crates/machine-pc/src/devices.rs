//! Devices that users add: `-device`, `device_add`.
//!
//! [`KINDS`] is the registry: a kind has a name, a bus, properties, and a function that makes the device and connects
//! it. What a device is made over (chardevs, nodes, threads) comes with [`DeviceServices`].

mod balloon;
mod chips;
mod disk;
mod ide;
mod isa;
mod ports;
mod properties;
mod virtio;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{IOThreadInfo, QmpError};
use block_graph::Graph;
use boot_pc::acpi::LegacyDevice;
use chardev::ChardevRegistry;
use dev_storage::{DriveOptions, IdePlace};
use dev_virtio::{VirtioBalloon, VirtioConsole};
use device::pci::PciAddress;
use device::{Device, IoHandler, ResetKind, SavedState};
use host_io::ExecutorHandle;
use objects::ObjectTree;
use serde_json::{Map, Value};

pub(crate) use balloon::guest_stats;
pub(crate) use properties::unsigned;
pub use properties::{Properties, PropertySpec};

use crate::control::{Control, Pausable};
use crate::serial::SerialCable;

/// What devices are made over.
#[derive(Clone)]
pub struct DeviceServices {
    /// The chardevs.
    pub chardevs: Arc<ChardevRegistry>,
    /// The graph of block nodes.
    pub graph: Arc<Graph>,
    /// Where disks' requests run that have no iothread.
    pub data_side: ExecutorHandle,
    /// Nodes by the names that `-drive` gave them.
    pub drives: BTreeMap<String, String>,
    /// The objects: iothreads, random number generators.
    pub objects: Arc<ObjectTree>,
    /// Where frontends of chardevs are served.
    pub runtime: tokio::runtime::Handle,
}

/// Where devices of a kind sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusKind {
    /// Fixed ports.
    Isa,
    /// A PCI slot.
    Pci,
    /// One of board `microvm`'s places for virtio devices.
    VirtioMmio,
    /// A controller of virtio serial ports.
    VirtioSerial,
    /// A channel of the IDE controller.
    Ide,
}

/// What the machine's commands reach of a device.
pub(crate) enum Part {
    /// Nothing beyond what every device has.
    None,
    /// The balloon.
    Balloon(Arc<VirtioBalloon>),
    /// A controller of serial ports.
    Ports(Arc<VirtioConsole>),
}

/// Where a device sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Fixed ports.
    Isa,
    /// A slot.
    Pci(PciAddress),
    /// A place for a virtio device, by number.
    Mmio(u64),
    /// A controller of serial ports.
    Port,
    /// A channel and a unit.
    Ide(u8, u8),
}

impl BusKind {
    /// Its type's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Isa => "ISA",
            Self::Pci => "PCI",
            Self::VirtioMmio => "virtio-bus",
            Self::VirtioSerial => "virtio-serial-bus",
            Self::Ide => "IDE",
        }
    }
}

/// A kind of device.
pub struct DeviceKind {
    /// Its name: the type of the objects.
    pub name: &'static str,
    /// Its group in `-device help`.
    pub category: &'static str,
    /// What people read.
    pub description: &'static str,
    /// Where it sits.
    pub bus: BusKind,
    /// Whether one may come and go while the guest runs.
    pub hotpluggable: bool,
    /// Its properties.
    pub properties: &'static [PropertySpec],
    make: fn(&mut Control, BusKind, &mut Properties) -> Result<Made, QmpError>,
}

/// Every kind that can be added.
pub const KINDS: &[&DeviceKind] = &[
    &isa::SERIAL,
    &isa::DEBUG_CONSOLE,
    &isa::DEBUG_EXIT,
    &isa::PVPANIC,
    &chips::PVPANIC_PCI,
    &chips::WATCHDOG,
    &disk::BLK_PCI,
    &disk::BLK_MMIO,
    &balloon::BALLOON_PCI,
    &balloon::BALLOON_MMIO,
    &ports::CONTROLLER_PCI,
    &ports::CONTROLLER_MMIO,
    &ports::CONSOLE,
    &ports::PORT,
    &ide::DISK,
    &ide::CD_ROM,
    &virtio::RNG_PCI,
    &virtio::RNG_MMIO,
];

/// A device that was made and connected.
pub(crate) struct Made {
    /// What is reset and saved.
    pub(crate) device: Arc<dyn Device>,
    pub(crate) place: Place,
    pub(crate) part: Part,
    /// What works on its own and is held still with the machine.
    pub(crate) pausable: Option<Arc<dyn Pausable>>,
    /// How tables tell the guest of it, where it is not found on a bus.
    pub(crate) described: Option<LegacyDevice>,
    /// Output that is to be delivered before the program ends.
    pub(crate) cable: Option<Arc<SerialCable>>,
    /// Lets go of what it uses, when it goes.
    pub(crate) detach: Option<Box<dyn Fn() + Send>>,
}

impl Made {
    /// A device at fixed ports with nothing else to it.
    fn new(device: Arc<dyn Device>) -> Self {
        Self {
            device,
            place: Place::Isa,
            part: Part::None,
            pausable: None,
            described: None,
            cable: None,
            detach: None,
        }
    }
}

/// A device whose registers are its controller's; so is what it remembers.
struct NoRegisters(&'static str);

impl Device for NoRegisters {
    fn reset(&self, _kind: ResetKind) {}

    fn save(&self) -> Result<SavedState, device::Error> {
        SavedState::of(self.0, 1, &())
    }

    fn restore(&self, state: &SavedState) -> Result<(), device::Error> {
        state.read(self.0, 1)
    }
}

/// A device that is there.
pub struct Plugged {
    /// Its id, if its maker gave one.
    pub id: Option<String>,
    /// Its place among those without an id.
    pub number: usize,
    /// Its kind.
    pub kind: &'static DeviceKind,
    /// The properties it was made with.
    pub properties: BTreeMap<String, Value>,
    /// `device_del` has been called, and the guest has not let go yet.
    pub(crate) asked_back: bool,
    pub(crate) made: Made,
}

impl Plugged {
    /// Its path in the object tree.
    #[must_use]
    pub fn qom_path(&self) -> String {
        match &self.id {
            Some(id) => format!("/machine/peripheral/{id}"),
            None => format!("/machine/peripheral-anon/device[{}]", self.number),
        }
    }
}

/// A driver, an id, and properties.
pub type DeviceArguments = (String, Option<String>, BTreeMap<String, Value>);

/// Driver, id and properties from the arguments of `device_add` or `-device`.
///
/// # Errors
/// There is no driver, or the id is no text.
pub fn split_arguments(mut members: Map<String, Value>) -> Result<DeviceArguments, QmpError> {
    let mut text = |name: &str| match members.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(QmpError::invalid_parameter_type(name, "string")),
    };
    let (driver, id) = (text("driver")?, text("id")?);
    let driver = driver.ok_or_else(|| QmpError::missing_parameter("driver"))?;
    Ok((driver, id, members.into_iter().collect()))
}

/// What `-device help` prints: every kind, by category.
#[must_use]
pub fn help() -> String {
    let mut kinds = KINDS.to_vec();
    kinds.sort_by_key(|kind| (kind.category, kind.name));
    let mut text = String::new();
    let mut category = "";
    for kind in kinds {
        if kind.category != category {
            category = kind.category;
            text.push_str(&format!("{category} devices:\n"));
        }
        let (name, bus, description) = (kind.name, kind.bus.as_str(), kind.description);
        text.push_str(&format!(
            "name \"{name}\", bus {bus}, desc \"{description}\"\n"
        ));
    }
    text
}

/// What `-device DRIVER,help` prints: the properties of a kind.
#[must_use]
pub fn help_of(driver: &str) -> Option<String> {
    let kind = DeviceKind::find(driver)?;
    let mut text = format!("{} options:\n", kind.name);
    for property in kind.properties {
        let left = format!("{}=<{}>", property.name, property.type_name);
        text.push_str(&format!("  {left:22} - {}\n", property.description));
    }
    Some(text)
}

impl DeviceKind {
    /// The kind of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KINDS.iter().copied().find(|kind| kind.name == name)
    }
}

impl Control {
    /// Makes a device.
    ///
    /// # Errors
    /// In the words of `device_add`.
    pub fn add_device(
        &mut self,
        driver: &str,
        id: Option<String>,
        properties: BTreeMap<String, Value>,
    ) -> Result<(), QmpError> {
        let Some(kind) = DeviceKind::find(driver) else {
            return Err(QmpError::generic(format!(
                "'{driver}' is not a valid device model name"
            )));
        };
        if let Some(id) = &id {
            if !api::is_well_formed_id(id) {
                return Err(QmpError::generic("Parameter 'id' expects an identifier"));
            }
            if self
                .devices
                .iter()
                .any(|device| device.id.as_ref() == Some(id))
            {
                return Err(QmpError::generic(format!("Duplicate device ID '{id}'")));
            }
        }
        if self.chips.is_none() {
            return Err(QmpError::generic(format!(
                "No '{}' bus found for device '{driver}'",
                kind.bus.as_str()
            )));
        }
        if self.is_powered() && !kind.hotpluggable {
            return Err(QmpError::generic(match kind.bus {
                BusKind::Isa => "Bus 'isa.0' does not support hotplugging".to_owned(),
                _ => format!("Device '{driver}' does not support hotplugging"),
            }));
        }
        let path = match &id {
            Some(id) => format!("/machine/peripheral/{id}"),
            None => format!(
                "/machine/peripheral-anon/device[{}]",
                self.next_device_number
            ),
        };
        let mut reader = Properties::new(kind, id.clone(), path, properties.clone());
        reader.check_names()?;
        let made = (kind.make)(self, kind.bus, &mut reader)?;
        let number = self.next_device_number;
        self.next_device_number += 1;
        if self.state().is_live()
            && let Some(pausable) = &made.pausable
        {
            pausable.resume();
        }
        self.devices.push(Plugged {
            id,
            number,
            kind,
            properties,
            asked_back: false,
            made,
        });
        self.objects.update(self);
        Ok(())
    }

    /// The id of the device at a place on the bus; empty if it has none.
    pub(crate) fn id_at(&self, address: PciAddress) -> String {
        let place = Place::Pci(address);
        let device = self
            .devices
            .iter()
            .find(|device| device.made.place == place);
        device
            .and_then(|device| device.id.clone())
            .unwrap_or_default()
    }

    /// Takes a device away, as far as the guest lets go of it.
    ///
    /// # Errors
    /// There is no such device, or it cannot go.
    pub fn remove_device(&mut self, id: &str) -> Result<(), QmpError> {
        let mut devices = self.devices.iter_mut();
        let device = devices
            .find(|device| device.id.as_deref() == Some(id) || device.qom_path() == id)
            .ok_or_else(|| QmpError::device_not_found(id))?;
        let place = device.made.place;
        if !matches!(place, Place::Pci(_) | Place::Port) {
            let name = device.kind.name;
            return Err(QmpError::generic(format!(
                "Device '{name}' does not support hotplugging"
            )));
        }
        if device.asked_back {
            return Err(QmpError::generic(format!(
                "Device {id} is already in the process of unplug"
            )));
        }
        device.asked_back = true;
        match place {
            Place::Pci(address) => self.ask_back(address),
            _ => self.take_asked_back_ports(),
        }
        Ok(())
    }

    /// Threads that devices' requests run on.
    pub(crate) fn iothreads(&self) -> Vec<IOThreadInfo> {
        let mut found = Vec::new();
        let names = self.services.objects.list("/objects").unwrap_or_default();
        for name in names.into_iter().map(|property| property.name) {
            let Ok(iothread) = self.services.objects.iothread(&name) else {
                continue;
            };
            let settings = iothread.settings();
            found.push(IOThreadInfo {
                id: name,
                thread_id: i64::from(iothread.handle().thread_id()),
                poll_max_ns: settings.poll_max_ns,
                poll_grow: settings.poll_grow,
                poll_shrink: settings.poll_shrink,
                aio_max_batch: settings.aio_max_batch,
            });
        }
        found
    }

    /// Output on its way to chardevs.
    pub(crate) fn cables(&self) -> Vec<Arc<SerialCable>> {
        let cables = self
            .devices
            .iter()
            .filter_map(|device| device.made.cable.clone());
        cables.collect()
    }

    /// Puts a drive onto the IDE controller.
    fn attach_ide(
        &self,
        place: IdePlace,
        options: DriveOptions,
    ) -> Result<Arc<dyn Device>, QmpError> {
        let pci = self.chips.as_ref().and_then(|chips| chips.pci.as_ref());
        let pci = pci.ok_or_else(|| QmpError::generic("this machine has no IDE bus"))?;
        let attached = pci.ide.attach(place, options);
        attached.map_err(|error| QmpError::generic(error.to_string()))?;
        Ok(Arc::new(NoRegisters("ide-drive")))
    }

    /// Puts a handler of an ISA device at ports.
    pub(crate) fn place_isa(
        &self,
        name: &str,
        start: u64,
        length: u64,
        handler: Arc<dyn IoHandler>,
    ) -> Result<(), QmpError> {
        let Some(chips) = &self.chips else {
            return Err(QmpError::generic("this machine has no ISA bus"));
        };
        let placed = chips.place(name, start, length, handler);
        placed.map_err(|error| QmpError::generic(error.to_string()))
    }
}
