//! The machine in the object tree.
//!
//! | path | what |
//! |---|---|
//! | `/machine` | the board |
//! | `/machine/peripheral/ID` | devices with an id |
//! | `/machine/peripheral-anon/device[N]` | devices without one |
//! | `/machine/unattached/device[N]` | processors, then the chips of the board |
//!
//! Objects show what their devices were made with; to change a machine there are commands.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use dev_virtio::VirtioBalloon;
use objects::{ChildSource, Object, ObjectError, ObjectTree, ObjectTypes, Property, TypeSpec};
use parking_lot::Mutex;
use serde_json::Value;

use crate::board::BOARDS;
use crate::control::Control;
use crate::devices::{KINDS, Part, guest_stats};

/// How often the balloon asks the guest.
const POLLING: &str = "guest-stats-polling-interval";
/// Properties of a board.
const BOARD_PROPERTIES: [&str; 4] = ["type", "memory", "kernel", "append"];
/// Chips of the boards, as types.
const CHIPS: &[&str] = &[
    "i8259",
    "ioapic",
    "kvm-ioapic",
    "apic",
    "isa-pit",
    "mc146818rtc",
    "fw_cfg",
    "hpet",
    "i8042",
    "port92",
    "i440FX",
    "PIIX3",
    "piix3-ide",
    "PIIX4_PM",
    "pci-config-ports",
    "acpi-pci-hotplug",
    "reduced-power",
    "acpi-ged",
];
/// The CPU models' types.
const CPUS: &[&str] = &["qemu64-x86_64-cpu", "max-x86_64-cpu", "host-x86_64-cpu"];

/// Adds the machine's types to the object types.
pub fn register_types(types: &mut ObjectTypes) {
    types.register(TypeSpec::abstract_type("device", "object", Vec::new()));
    types.register(TypeSpec::abstract_type("machine", "object", Vec::new()));
    types.register(TypeSpec::abstract_type("cpu", "device", Vec::new()));
    let board = || {
        let names = BOARD_PROPERTIES.iter().skip(1);
        names
            .map(|name| Property::read_only(name, "string"))
            .collect()
    };
    for name in BOARD_TYPES {
        types.register(TypeSpec::concrete(name, "machine", board()));
    }
    for name in CPUS {
        types.register(TypeSpec::concrete(name, "cpu", Vec::new()));
    }
    for name in CHIPS {
        types.register(TypeSpec::concrete(name, "device", Vec::new()));
    }
    for kind in KINDS {
        let properties = kind.properties.iter();
        let properties = properties
            .map(|spec| match spec.name {
                POLLING => Property::writable(spec.name, spec.type_name),
                _ => Property::read_only(spec.name, spec.type_name),
            })
            .collect();
        types.register(TypeSpec::concrete(kind.name, "device", properties));
    }
}

/// The types of the boards: their names with `-machine` behind them.
const BOARD_TYPES: &[&str] = &["pc-i440fx-10.0-machine", "microvm-machine", "none-machine"];

/// A part of the machine as an object.
struct Shown {
    type_name: &'static str,
    values: BTreeMap<String, Value>,
    balloon: Option<Arc<VirtioBalloon>>,
}

impl Object for Shown {
    fn type_name(&self) -> &str {
        self.type_name
    }

    fn get(&self, property: &str) -> Result<Value, ObjectError> {
        match (&self.balloon, property) {
            (Some(balloon), "guest-stats") => return Ok(guest_stats(balloon)),
            (Some(balloon), POLLING) => return Ok(balloon.polling_interval_s().into()),
            _ => {}
        }
        // A property that nobody set has no value to show.
        Ok(self
            .values
            .get(property)
            .cloned()
            .unwrap_or_else(|| Value::from("")))
    }

    fn set(&self, property: &str, value: Value) -> Result<(), ObjectError> {
        let interval = value.as_u64().and_then(|value| u32::try_from(value).ok());
        if let (Some(balloon), POLLING, Some(interval)) = (&self.balloon, property, interval) {
            balloon.set_polling_interval_s(interval);
            return Ok(());
        }
        Err(ObjectError::PropertyNotFound {
            type_name: self.type_name.to_owned(),
            property: property.to_owned(),
        })
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Children that the machine's thread keeps up to date.
#[derive(Default)]
struct Children(Mutex<Vec<(String, Arc<dyn Object>)>>);

impl ChildSource for Children {
    fn children(&self) -> Vec<(String, Arc<dyn Object>)> {
        self.0.lock().clone()
    }
}

/// The machine's places in the tree.
#[derive(Default)]
pub(crate) struct MachineObjects {
    peripheral: Arc<Children>,
    anonymous: Arc<Children>,
}

fn shown(type_name: &'static str, values: BTreeMap<String, Value>) -> Arc<dyn Object> {
    Arc::new(Shown {
        type_name,
        values,
        balloon: None,
    })
}

/// The static text of a name that the tables above know.
fn known(tables: &[&'static [&'static str]], name: &str) -> Option<&'static str> {
    let mut all = tables.iter().flat_map(|table| table.iter().copied());
    all.find(|known| *known == name)
}

/// The types of the board's chips, in the order in which they stand behind the processors.
fn chips(control: &Control) -> impl Iterator<Item = &'static str> {
    let chips = control.chips.iter().flat_map(|chips| &chips.devices);
    chips.filter_map(|named| known(&[CHIPS], &named.name))
}

/// The type of the chip at a path, or of this name.
pub(crate) fn chip_at(control: &Control, path: &str) -> Option<&'static str> {
    let number = path.strip_prefix("/machine/unattached/device[");
    match number.and_then(|rest| rest.strip_suffix(']')) {
        Some(number) => {
            let number = number.parse::<usize>().ok()?;
            chips(control).nth(number.checked_sub(control.cpus.len())?)
        }
        None => chips(control).find(|name| *name == path),
    }
}

impl MachineObjects {
    /// Puts the board, its processors and its chips into the tree.
    ///
    /// # Errors
    /// A type is not registered or a place is taken: the tree belongs to another machine.
    pub(crate) fn attach(control: &Control, tree: &ObjectTree) -> Result<Self, ObjectError> {
        let objects = Self::default();
        let config = &control.config;
        let place = BOARDS.iter().position(|board| *board == *config.board);
        let board = place.and_then(|place| BOARD_TYPES.get(place).copied());
        let payload = &config.payload;
        let kernel = payload.kernel.as_ref().map_or("", |file| file.path());
        let values = [
            ("memory", config.ram_bytes.to_string()),
            ("kernel", kernel.to_owned()),
            ("append", payload.command_line.clone()),
        ];
        let values = values.map(|(name, value)| (name.to_owned(), Value::from(value)));
        tree.attach("/machine", shown(board.unwrap_or("machine"), values.into()))?;
        let cpu_type = format!("{}-x86_64-cpu", config.cpu_model);
        let cpu_type = known(&[CPUS], &cpu_type).unwrap_or("cpu");
        let cpus = control.cpus.iter().map(|_| cpu_type);
        for (number, type_name) in cpus.chain(chips(control)).enumerate() {
            let path = format!("/machine/unattached/device[{number}]");
            tree.attach(&path, shown(type_name, BTreeMap::new()))?;
        }
        for (name, source) in [
            ("peripheral", &objects.peripheral),
            ("peripheral-anon", &objects.anonymous),
        ] {
            tree.attach(
                &format!("/machine/{name}"),
                shown("container", BTreeMap::new()),
            )?;
            tree.mount(&format!("/machine/{name}"), Arc::clone(source) as _)?;
        }
        Ok(objects)
    }

    /// Shows the devices there are now.
    pub(crate) fn update(&self, control: &Control) {
        let (mut named, mut anonymous) = (Vec::new(), Vec::new());
        for device in &control.devices {
            let balloon = match &device.made.part {
                Part::Balloon(balloon) => Some(Arc::clone(balloon)),
                _ => None,
            };
            let object: Arc<dyn Object> = Arc::new(Shown {
                type_name: device.kind.name,
                values: device.properties.clone(),
                balloon,
            });
            match &device.id {
                Some(id) => named.push((id.clone(), object)),
                None => anonymous.push((format!("device[{}]", device.number), object)),
            }
        }
        *self.peripheral.0.lock() = named;
        *self.anonymous.0.lock() = anonymous;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_board_has_its_type() {
        let names: Vec<String> = BOARDS
            .iter()
            .map(|board| format!("{}-machine", board.name))
            .collect();
        assert_eq!(names, BOARD_TYPES);
    }
}
