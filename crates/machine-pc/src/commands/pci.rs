//! `query-pci`.

use std::sync::Arc;

use api::{
    PciCommands, PciDeviceClass, PciDeviceId, PciDeviceInfo, PciInfo, PciMemoryRegion, QmpError,
};
use device::Width;
use device::pci::{BarKind, PciAddress, PciBus, PciFunction};
use monitor::Caller;

use super::MachineHandlers;
use crate::control::Control;

/// What people call a class, by its 16 bits.
const CLASSES: &[(u64, &str)] = &[
    (0x0001, "VGA controller"),
    (0x0100, "SCSI controller"),
    (0x0101, "IDE controller"),
    (0x0200, "Ethernet controller"),
    (0x0300, "VGA controller"),
    (0x0500, "RAM controller"),
    (0x0600, "Host bridge"),
    (0x0601, "ISA bridge"),
    (0x0604, "PCI bridge"),
    (0x0680, "Bridge"),
    (0x0780, "Communication controller"),
    (0x0880, "System peripheral"),
];

impl PciCommands<Caller> for MachineHandlers {
    async fn query_pci(&self, _caller: Arc<Caller>) -> Result<Vec<PciInfo>, QmpError> {
        self.ask(|control| query(control)).await
    }
}

/// What sits on the bus.
pub(crate) fn query(control: &Control) -> Vec<PciInfo> {
    let Some(pci) = control.chips.as_ref().and_then(|chips| chips.pci.as_ref()) else {
        return Vec::new();
    };
    let functions = pci.bus.functions();
    let devices = functions
        .iter()
        .map(|(address, function)| {
            device(
                &pci.bus,
                *address,
                function.as_ref(),
                control.id_at(*address),
            )
        })
        .collect();
    vec![PciInfo { bus: 0, devices }]
}

fn device(
    bus: &PciBus,
    address: PciAddress,
    function: &dyn PciFunction,
    id: String,
) -> PciDeviceInfo {
    let devfn = address.slot() << 3 | address.function();
    let word = |offset| bus.config_read(devfn, offset, Width::Word);
    let byte = |offset| bus.config_read(devfn, offset, Width::Byte);
    let class = word(0x0a);
    let named = CLASSES.iter().find(|(number, _)| *number == class);
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let subsystem = |offset| Some(number(word(offset))).filter(|value| *value != 0);
    PciDeviceInfo {
        bus: 0,
        slot: i64::from(address.slot()),
        function: i64::from(address.function()),
        class_info: PciDeviceClass {
            desc: named.map(|(_, name)| (*name).to_owned()),
            class: number(class),
        },
        id: PciDeviceId {
            device: number(word(0x02)),
            vendor: number(word(0x00)),
            subsystem: subsystem(0x2e),
            subsystem_vendor: subsystem(0x2c),
        },
        irq: (byte(0x3d) != 0).then(|| number(byte(0x3c))),
        irq_pin: number(byte(0x3d)),
        qdev_id: id,
        pci_bridge: None,
        regions: function
            .header()
            .bars()
            .into_iter()
            .map(|bar| {
                let ports = bar.kind == BarKind::Ports;
                let wide = bar.kind == BarKind::Memory64;
                PciMemoryRegion {
                    bar: i64::from(bar.index),
                    r#type: if ports { "io" } else { "memory" }.to_owned(),
                    address: bar.address.map_or(-1, number),
                    size: number(bar.length),
                    prefetch: (!ports).then_some(wide),
                    mem_type_64: (!ports).then_some(wide),
                }
            })
            .collect(),
    }
}
