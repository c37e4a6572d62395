//! Disks and CD-ROMs on the IDE controller.

use std::sync::Arc;

use api::{BlockDeviceIoStatus, QmpError};
use block_graph::{BlockBackend, Frontend};
use dev_storage::{DriveEvents, DriveKind, DriveOptions, IdePlace};

use super::disk::{DiskIdentity, attach, executor, policy};
use super::properties::{PropertySpec, property};
use super::{BusKind, DeviceKind, Made, Place, Properties};
use crate::control::Control;

const PROPERTIES: &[PropertySpec] = &[
    property(
        "drive",
        "str",
        "Node name or ID of a block device to use as a backend",
    ),
    property(
        "iothread",
        "link<iothread>",
        "ID of the iothread that serves it",
    ),
    property("unit", "uint32", "0 or 1: device 0 or 1 of its channel"),
    property("serial", "str", "the drive's serial number"),
    property("model", "str", "the drive's model"),
    property("ver", "str", "the version of its firmware"),
    property("write-cache", "OnOffAuto", "on/off/auto"),
    property("share-rw", "bool", "on/off"),
    property(
        "rerror",
        "BlockdevOnError",
        "Error handling policy, report/ignore/enospc/stop/auto",
    ),
    property(
        "werror",
        "BlockdevOnError",
        "Error handling policy, report/ignore/enospc/stop/auto",
    ),
    property("bootindex", "int32", "its place in the boot order"),
];

/// An ATA disk.
pub(super) const DISK: DeviceKind = DeviceKind {
    name: "ide-hd",
    category: "Storage",
    description: "virtual IDE disk",
    bus: BusKind::Ide,
    hotpluggable: false,
    properties: PROPERTIES,
    make: |control, _, properties| make(control, properties, DriveKind::Disk),
};

/// An ATAPI CD-ROM.
pub(super) const CD_ROM: DeviceKind = DeviceKind {
    name: "ide-cd",
    description: "virtual IDE CD-ROM",
    make: |control, _, properties| make(control, properties, DriveKind::CdRom),
    ..DISK
};

impl DriveEvents for DiskIdentity {
    fn tray_moved(&self, _is_open: bool) {
        // Clients hear of trays with the commands that change media.
    }
}

/// A drive as the block graph sees it. ATA has no way to tell of a new length.
struct IdeFrontend(Arc<DiskIdentity>);

impl Frontend for IdeFrontend {
    fn qdev(&self) -> String {
        self.0.qdev().to_owned()
    }

    fn device_name(&self) -> String {
        self.0.drive().to_owned()
    }

    fn io_status(&self) -> BlockDeviceIoStatus {
        self.0.io_status()
    }

    fn reset_io_status(&self) {
        self.0.reset_io_status();
    }

    fn length_changed(&self) {}
}

/// The place that `bus` (`ide.0`, `ide.1`) and `unit` ask for, or the first free one.
fn place(control: &Control, properties: &mut Properties) -> Result<IdePlace, QmpError> {
    let channel = match properties.bus() {
        None => None,
        Some("ide.0") => Some(0),
        Some("ide.1") => Some(1),
        Some(other) => return Err(QmpError::generic(format!("Bus '{other}' not found"))),
    };
    let unit = properties.number("unit", 1)?;
    let unit = unit.and_then(|unit| u8::try_from(unit).ok());
    let taken = |place: IdePlace| {
        let devices = control.devices.iter();
        let mut places = devices.map(|device| device.made.place);
        places.any(|taken| taken == Place::Ide(place.channel, place.unit))
    };
    let all = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(channel, unit)| IdePlace { channel, unit });
    let fits = |place: &&IdePlace| {
        channel.is_none_or(|channel| place.channel == channel)
            && unit.is_none_or(|unit| place.unit == unit)
    };
    match all.iter().filter(fits).find(|place| !taken(**place)) {
        Some(place) => Ok(*place),
        None => Err(QmpError::generic("IDE unit is in use")),
    }
}

fn make(
    control: &mut Control,
    properties: &mut Properties,
    kind: DriveKind,
) -> Result<Made, QmpError> {
    let place = place(control, properties)?;
    let executor = executor(control, properties)?;
    properties.number("bootindex", i32::MAX.unsigned_abs().into())?;
    let drive = properties.text("drive")?.unwrap_or_default();
    let backend = match &*drive {
        "" => None,
        drive => Some(attach(control, properties, drive, kind == DriveKind::Disk)?.0),
    };
    let identity = DiskIdentity::new(control, properties, &drive);
    let options = DriveOptions {
        kind,
        medium: backend.clone(),
        executor,
        serial: properties.text("serial")?.unwrap_or_else(|| {
            let number = u32::from(place.channel) * 2 + u32::from(place.unit) + 1;
            format!("RT{number:05}")
        }),
        model: properties.text("model")?.unwrap_or_else(|| match kind {
            DriveKind::Disk => "RATITE HARDDISK".to_owned(),
            DriveKind::CdRom => "RATITE DVD-ROM".to_owned(),
        }),
        version: properties
            .text("ver")?
            .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        write_cache: properties.text("write-cache")?.as_deref() != Some("off"),
        rerror: policy(properties, "rerror")?,
        werror: policy(properties, "werror")?,
        events: identity.clone(),
    };
    let attached = control.attach_ide(place, options);
    if let (Err(_), Some(backend)) = (&attached, &backend) {
        control.services.graph.detach_backend(backend);
    }
    let device = attached?;
    if let Some(backend) = &backend {
        backend.set_frontend(Arc::new(IdeFrontend(identity)));
    }
    Ok(Made {
        place: Place::Ide(place.channel, place.unit),
        detach: backend.map(|backend| detach(control, backend)),
        ..Made::new(device)
    })
}

/// Lets go of a drive's node at the end; the controller has let go before.
fn detach(control: &Control, backend: Arc<BlockBackend>) -> Box<dyn Fn() + Send> {
    let graph = Arc::clone(&control.services.graph);
    Box::new(move || graph.detach_backend(&backend))
}
