//! Disks over nodes of the block graph.

use std::sync::{Arc, Weak};

use api::{BlockDeviceIoStatus, BlockErrorAction, BlockdevOnError, QmpError};
use block_graph::{
    BlockBackend, BlockErrorSink, BlockIoError, Frontend, Graph, Permission, Permissions,
};
use dev_virtio::{BlkOptions, VirtioBlk};
use host_io::ExecutorHandle;
use parking_lot::Mutex;

use super::properties::{PropertySpec, property};
use super::{BusKind, DeviceKind, Made, Properties, virtio};
use crate::control::Control;
use crate::machine::{IoErrorNote, Requests};

const BLK_PROPERTIES: &[PropertySpec] = &[
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
    property("serial", "str", "the disk's serial number"),
    property(
        "num-queues",
        "uint16",
        "queues; one for each processor if not given",
    ),
    property("queue-size", "uint16", "descriptors of each queue (256)"),
    property(
        "logical_block_size",
        "size",
        "A power of two between 512 B and 2 MiB",
    ),
    property(
        "physical_block_size",
        "size",
        "A power of two between 512 B and 2 MiB",
    ),
    property("discard", "bool", "on/off"),
    property("write-zeroes", "bool", "on/off"),
    property("write-cache", "OnOffAuto", "on/off/auto"),
    property("config-wce", "bool", "on/off"),
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
    virtio::PCI_PROPERTIES[0],
    virtio::PCI_PROPERTIES[1],
    virtio::PCI_PROPERTIES[2],
];

/// A virtio disk.
pub(super) const BLK_PCI: DeviceKind = DeviceKind {
    name: "virtio-blk-pci",
    category: "Storage",
    description: "disk",
    bus: BusKind::Pci,
    hotpluggable: true,
    properties: BLK_PROPERTIES,
    make: make_blk,
};

/// A virtio disk, without PCI.
pub(super) const BLK_MMIO: DeviceKind = DeviceKind {
    name: "virtio-blk-device",
    bus: BusKind::VirtioMmio,
    hotpluggable: false,
    ..BLK_PCI
};

/// Who a disk is to clients.
pub(super) struct DiskIdentity {
    qdev: String,
    qom_path: String,
    drive: String,
    io_status: Mutex<BlockDeviceIoStatus>,
    requests: Arc<Requests>,
}

impl DiskIdentity {
    pub(super) fn new(control: &Control, properties: &Properties, drive: &str) -> Arc<Self> {
        let is_drive = control.services.drives.contains_key(drive);
        Arc::new(Self {
            qdev: properties.id().unwrap_or(properties.path()).to_owned(),
            qom_path: properties.path().to_owned(),
            drive: if is_drive {
                drive.to_owned()
            } else {
                String::new()
            },
            io_status: Mutex::new(BlockDeviceIoStatus::Ok),
            requests: Arc::clone(&control.requests),
        })
    }
}

impl DiskIdentity {
    /// Its id, or its path in the object tree.
    pub(super) fn qdev(&self) -> &str {
        &self.qdev
    }

    /// The name of its drive; empty if it has none.
    pub(super) fn drive(&self) -> &str {
        &self.drive
    }

    /// Whether the machine was stopped for an error of it, and which.
    pub(super) fn io_status(&self) -> BlockDeviceIoStatus {
        *self.io_status.lock()
    }

    /// The machine goes on.
    pub(super) fn reset_io_status(&self) {
        *self.io_status.lock() = BlockDeviceIoStatus::Ok;
    }
}

impl BlockErrorSink for DiskIdentity {
    fn block_io_error(&self, error: &BlockIoError) {
        if error.action == BlockErrorAction::Stop {
            // The first error counts.
            let mut status = self.io_status.lock();
            *status = match (*status, error.no_space) {
                (BlockDeviceIoStatus::Ok, true) => BlockDeviceIoStatus::Nospace,
                (BlockDeviceIoStatus::Ok, false) => BlockDeviceIoStatus::Failed,
                (known, _) => known,
            };
        }
        self.requests.note_io_error(IoErrorNote {
            qom_path: self.qom_path.clone(),
            device: self.drive.clone(),
            error: error.clone(),
        });
    }
}

/// A virtio disk as the block graph sees it.
struct BlkFrontend {
    identity: Arc<DiskIdentity>,
    device: Weak<VirtioBlk>,
}

impl Frontend for BlkFrontend {
    fn qdev(&self) -> String {
        self.identity.qdev().to_owned()
    }

    fn device_name(&self) -> String {
        self.identity.drive().to_owned()
    }

    fn io_status(&self) -> BlockDeviceIoStatus {
        self.identity.io_status()
    }

    fn reset_io_status(&self) {
        self.identity.reset_io_status();
    }

    fn length_changed(&self) {
        if let Some(device) = self.device.upgrade() {
            device.length_changed();
        }
    }
}

/// The backend that `drive` names, and whether the guest may write.
pub(super) fn attach(
    control: &Control,
    properties: &mut Properties,
    drive: &str,
    may_write: bool,
) -> Result<(Arc<BlockBackend>, bool), QmpError> {
    let graph = &control.services.graph;
    let name = control
        .services
        .drives
        .get(drive)
        .map_or(drive, String::as_str);
    let node = graph.node(name).map_err(|_| {
        // To clients the disk is a device of its own, behind its adapter for the bus.
        let kind = properties.kind().name;
        let kind = kind.strip_suffix("-pci").unwrap_or(kind);
        let kind = kind.strip_suffix("-device").unwrap_or(kind);
        QmpError::generic(format!(
            "Property '{kind}-device.drive' can't find value '{drive}'"
        ))
    })?;
    let is_writable = may_write && !node.is_read_only();
    let share_rw = properties.switch("share-rw")? == Some(true);
    let mut required = Permission::CONSISTENT_READ;
    if is_writable {
        required |= Permission::WRITE;
    }
    let mut shared = Permission::all() - Permission::WRITE;
    if share_rw {
        shared |= Permission::WRITE;
    }
    let asked = Permissions { required, shared };
    let user = match properties.id() {
        Some(id) => format!("device '{id}'"),
        None => format!("device '{}'", properties.path()),
    };
    let backend = graph
        .attach_backend(&user, &node, asked)
        .map_err(|error| QmpError::generic(error.to_string()))?;
    Ok((backend, is_writable))
}

/// The executor that `iothread` names, or the machine's own.
pub(super) fn executor(
    control: &Control,
    properties: &mut Properties,
) -> Result<ExecutorHandle, QmpError> {
    match properties.text("iothread")? {
        None => Ok(control.services.data_side.clone()),
        Some(id) => match control.services.objects.iothread(&id) {
            Ok(iothread) => Ok(iothread.handle().clone()),
            Err(error) => Err(QmpError::generic(error.to_string())),
        },
    }
}

/// What `rerror` or `werror` asks for.
pub(super) fn policy(properties: &mut Properties, name: &str) -> Result<BlockdevOnError, QmpError> {
    match properties.text(name)? {
        None => Ok(BlockdevOnError::Auto),
        Some(text) => api::from_json(text.into()),
    }
}

fn block_bytes(properties: &mut Properties, name: &str) -> Result<Option<u32>, QmpError> {
    let bytes = properties.number(name, 2 << 20)?;
    Ok(bytes.and_then(|bytes| u32::try_from(bytes).ok()))
}

fn options(
    control: &Control,
    properties: &mut Properties,
    is_writable: bool,
) -> Result<BlkOptions, QmpError> {
    let plain = BlkOptions::default();
    let short = |number: Option<u64>| number.and_then(|number| u16::try_from(number).ok());
    let queues = short(properties.number("num-queues", 256)?);
    let cpus = u16::try_from(control.config.topology.cpus).unwrap_or(1);
    let write_cache = match properties.text("write-cache")?.as_deref() {
        Some("off") => false,
        Some("on" | "auto") | None => true,
        Some(other) => {
            return Err(QmpError::generic(format!(
                "Parameter 'write-cache' does not accept value '{other}'"
            )));
        }
    };
    // The order of booting is firmware's; it takes what it finds first.
    properties.number("bootindex", i32::MAX.unsigned_abs().into())?;
    Ok(BlkOptions {
        queues: queues.unwrap_or(cpus),
        queue_size: short(properties.number("queue-size", 1024)?).unwrap_or(plain.queue_size),
        serial: properties.text("serial")?.unwrap_or_default(),
        is_writable,
        logical_block_bytes: block_bytes(properties, "logical_block_size")?
            .unwrap_or(plain.logical_block_bytes),
        physical_block_bytes: block_bytes(properties, "physical_block_size")?,
        discard: properties.switch("discard")?.unwrap_or(plain.discard),
        write_zeroes: properties
            .switch("write-zeroes")?
            .unwrap_or(plain.write_zeroes),
        write_cache,
        config_wce: properties.switch("config-wce")?.unwrap_or(plain.config_wce),
        rerror: policy(properties, "rerror")?,
        werror: policy(properties, "werror")?,
    })
}

fn make_blk(
    control: &mut Control,
    kind: BusKind,
    properties: &mut Properties,
) -> Result<Made, QmpError> {
    let drive = properties
        .text("drive")?
        .ok_or_else(|| QmpError::generic("drive property not set"))?;
    let executor = executor(control, properties)?;
    let (backend, is_writable) = attach(control, properties, &drive, true)?;
    let made = over_backend(
        control,
        kind,
        properties,
        &drive,
        &backend,
        is_writable,
        executor,
    );
    if made.is_err() {
        control.services.graph.detach_backend(&backend);
    }
    made
}

fn over_backend(
    control: &mut Control,
    kind: BusKind,
    properties: &mut Properties,
    drive: &str,
    backend: &Arc<BlockBackend>,
    is_writable: bool,
    executor: ExecutorHandle,
) -> Result<Made, QmpError> {
    let options = options(control, properties, is_writable)?;
    let identity = DiskIdentity::new(control, properties, drive);
    let device = VirtioBlk::new(
        Arc::clone(backend),
        options,
        vec![executor],
        identity.clone(),
    )
    .map_err(|error| QmpError::generic(error.to_string()))?;
    let made = virtio::connect(control, kind, properties, device.clone())?;
    backend.set_frontend(Arc::new(BlkFrontend {
        identity,
        device: Arc::downgrade(&device),
    }));
    let detach = Detach {
        device,
        backend: Arc::clone(backend),
        graph: Arc::clone(&control.services.graph),
        runtime: control.services.runtime.clone(),
    };
    Ok(Made {
        detach: Some(Box::new(move || detach.run())),
        ..made
    })
}

/// What is left to do when a disk goes.
struct Detach {
    device: Arc<VirtioBlk>,
    backend: Arc<BlockBackend>,
    graph: Arc<Graph>,
    runtime: tokio::runtime::Handle,
}

impl Detach {
    /// Waits for requests under way and lets go of the node. On the machine's thread, which may wait.
    fn run(&self) {
        self.runtime.block_on(self.device.shutdown());
        self.graph.detach_backend(&self.backend);
    }
}
