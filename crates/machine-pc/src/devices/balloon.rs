//! The balloon.

use std::sync::Arc;

use api::{BalloonChangeEvent, Event, EventSink, QmpError};
use dev_virtio::{BALLOON_STAT_NAMES, BalloonOptions, BalloonSink, VirtioBalloon};
use serde_json::{Map, Value, json};

use super::properties::{PropertySpec, property};
use super::{BusKind, DeviceKind, Made, Part, Properties, virtio};
use crate::control::Control;

const PROPERTIES: &[PropertySpec] = &[
    property("deflate-on-oom", "bool", "on/off"),
    property(
        "guest-stats",
        "guest statistics",
        "what the guest told last; read only",
    ),
    property(
        "guest-stats-polling-interval",
        "int",
        "seconds between questions; 0 for none",
    ),
    virtio::PCI_PROPERTIES[0],
    virtio::PCI_PROPERTIES[1],
    virtio::PCI_PROPERTIES[2],
];

/// A balloon.
pub(super) const BALLOON_PCI: DeviceKind = DeviceKind {
    name: "virtio-balloon-pci",
    category: "Misc",
    description: "memory that comes and goes",
    bus: BusKind::Pci,
    hotpluggable: true,
    properties: PROPERTIES,
    make,
};

/// A balloon, without PCI.
pub(super) const BALLOON_MMIO: DeviceKind = DeviceKind {
    name: "virtio-balloon-device",
    bus: BusKind::VirtioMmio,
    hotpluggable: false,
    ..BALLOON_PCI
};

struct Changes(Arc<dyn EventSink>);

impl BalloonSink for Changes {
    fn memory_changed(&self, actual_bytes: u64) {
        let actual = i64::try_from(actual_bytes).unwrap_or(i64::MAX);
        self.0
            .emit(Event::BalloonChange(BalloonChangeEvent { actual }));
    }
}

fn make(
    control: &mut Control,
    kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let there = control.devices.iter();
    if there
        .into_iter()
        .any(|device| matches!(device.made.part, Part::Balloon(_)))
    {
        return Err(QmpError::generic("Only one balloon device is supported"));
    }
    let options = BalloonOptions {
        ram_bytes: control.config.ram_bytes,
        deflate_on_oom: properties.switch("deflate-on-oom")? == Some(true),
        sink: Arc::new(Changes(Arc::clone(&control.events))),
    };
    let interval = properties.number("guest-stats-polling-interval", u64::from(u32::MAX))?;
    let (_, wall) = control.config.wall_clock_of(&control.clock);
    let balloon = VirtioBalloon::new(options, &control.clock, wall);
    if let Some(interval) = interval.and_then(|interval| u32::try_from(interval).ok()) {
        balloon.set_polling_interval_s(interval);
    }
    let made = virtio::connect(control, kind, properties, balloon.clone())?;
    Ok(Made {
        part: Part::Balloon(balloon),
        ..made
    })
}

/// The property `guest-stats`.
pub(crate) fn guest_stats(balloon: &VirtioBalloon) -> Value {
    let told = balloon.stats();
    let named = BALLOON_STAT_NAMES.iter().zip(told.values);
    let stats: Map<String, Value> = named
        // What the guest has not told is all ones.
        .map(|(name, value)| ((*name).to_owned(), value.unwrap_or(u64::MAX).into()))
        .collect();
    json!({"stats": stats, "last-update": told.updated_unix_s})
}

impl Control {
    fn the_balloon(&self) -> Result<&Arc<VirtioBalloon>, QmpError> {
        let mut parts = self.devices.iter().map(|device| &device.made.part);
        let balloon = parts.find_map(|part| match part {
            Part::Balloon(balloon) => Some(balloon),
            _ => None,
        });
        balloon.ok_or_else(|| QmpError::device_not_active("balloon"))
    }

    /// `balloon`.
    ///
    /// # Errors
    /// There is no balloon, or the target is not positive.
    pub(crate) fn set_balloon(&mut self, target: i64) -> Result<(), QmpError> {
        let balloon = self.the_balloon()?;
        let target = u64::try_from(target).ok().filter(|target| *target > 0);
        let target = target.ok_or_else(|| QmpError::invalid_parameter_value("target", "a size"))?;
        balloon.set_target(target);
        Ok(())
    }

    /// What the guest has, as its balloon leaves it.
    ///
    /// # Errors
    /// There is no balloon.
    pub(crate) fn balloon_bytes(&self) -> Result<i64, QmpError> {
        let actual = self.the_balloon()?.actual_bytes();
        Ok(i64::try_from(actual).unwrap_or(i64::MAX))
    }
}
