//! A bus, and configuration mechanism 1.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{
    Device, Error, IoHandler, IoMap, IoParts, IrqLine, MsiSink, ResetKind, SavedState, Width,
};
use parking_lot::{Mutex, RwLock};

use super::PciHeader;

const NAME: &str = "pci-config-ports";
const VERSION: u32 = 1;
const ENABLE: u32 = 1 << 31;
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;

/// A place on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    /// 0 to 31.
    slot: u8,
    /// 0 to 7.
    function: u8,
}

impl PciAddress {
    /// `None` beyond 32 slots of 8 functions.
    pub fn new(slot: u8, function: u8) -> Option<PciAddress> {
        (slot < 32 && function < 8).then_some(PciAddress { slot, function })
    }

    fn from_devfn(devfn: u8) -> PciAddress {
        PciAddress {
            slot: devfn >> 3,
            function: devfn & 7,
        }
    }

    /// The slot, 0 to 31.
    pub fn slot(self) -> u8 {
        self.slot
    }

    /// The function, 0 to 7.
    pub fn function(self) -> u8 {
        self.function
    }
}

/// A function on a bus.
pub trait PciFunction: Device {
    /// Its configuration space.
    fn header(&self) -> &PciHeader;

    /// The guest has written configuration bytes `first` to `last`; the header has taken them.
    fn config_written(&self, first: u8, last: u8);
}

/// A bus: who sits where, and what functions need from their surroundings.
pub struct PciBus {
    ports: Arc<IoMap>,
    memory: Arc<IoMap>,
    msi: Arc<dyn MsiSink>,
    /// The bus's interrupt lines, A to D of the host.
    lines: [IrqLine; 4],
    functions: RwLock<BTreeMap<PciAddress, Arc<dyn PciFunction>>>,
}

impl PciBus {
    /// A bus whose functions' registers appear in these spaces.
    pub fn new(
        ports: Arc<IoMap>,
        memory: Arc<IoMap>,
        msi: Arc<dyn MsiSink>,
        lines: [IrqLine; 4],
    ) -> Arc<PciBus> {
        Arc::new(PciBus {
            ports,
            memory,
            msi,
            lines,
            functions: RwLock::default(),
        })
    }

    /// The space of I/O ports.
    pub fn ports(&self) -> &Arc<IoMap> {
        &self.ports
    }

    /// The space of memory-mapped registers.
    pub fn memory(&self) -> &Arc<IoMap> {
        &self.memory
    }

    /// Where functions' messages go.
    pub fn msi(&self) -> &Arc<dyn MsiSink> {
        &self.msi
    }

    /// A source on the line of a function's pin (1 is INTA to 4, INTD): lines rotate from slot to slot, so that the
    /// INTA pins of neighbours are different lines. Pin 0, no pin, is connected to nothing.
    pub fn line(&self, address: PciAddress, pin: u8) -> IrqLine {
        match pin {
            0 => IrqLine::unconnected(),
            pin => {
                let index = usize::from(address.slot) + usize::from(pin) + 2;
                self.lines
                    .get(index & 3)
                    .map_or_else(IrqLine::unconnected, IrqLine::share)
            }
        }
    }

    /// Puts a function into its place; gives it back if the place is taken.
    ///
    /// # Errors
    /// The function, if another sits there.
    pub fn plug(
        &self,
        address: PciAddress,
        function: Arc<dyn PciFunction>,
    ) -> Result<(), Arc<dyn PciFunction>> {
        let mut functions = self.functions.write();
        if functions.contains_key(&address) {
            return Err(function);
        }
        functions.insert(address, function);
        Ok(())
    }

    /// Takes a function out; its registers disappear from the spaces.
    pub fn unplug(&self, address: PciAddress) -> Option<Arc<dyn PciFunction>> {
        let function = self.functions.write().remove(&address)?;
        function.header().unmap();
        Some(function)
    }

    /// All functions, by address.
    pub fn functions(&self) -> Vec<(PciAddress, Arc<dyn PciFunction>)> {
        let functions = self.functions.read();
        functions
            .iter()
            .map(|(address, function)| (*address, function.clone()))
            .collect()
    }

    fn find(&self, devfn: u8) -> Option<Arc<dyn PciFunction>> {
        let functions = self.functions.read();
        functions.get(&PciAddress::from_devfn(devfn)).cloned()
    }

    /// Reads configuration bytes; all ones where nobody sits.
    pub fn config_read(&self, devfn: u8, offset: u8, width: Width) -> u64 {
        self.find(devfn).map_or(width.ones(), |function| {
            function.header().read(offset, width)
        })
    }

    /// Writes configuration bytes.
    pub fn config_write(&self, devfn: u8, offset: u8, width: Width, value: u64) {
        if let Some(function) = self.find(devfn) {
            function.header().write(offset, width, value);
            let beyond_first = u8::try_from(width.bytes() - 1).unwrap_or(0);
            function.config_written(offset, offset.saturating_add(beyond_first));
        }
    }
}

/// The ports of configuration mechanism 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigPart {
    /// 0xcf8, four ports: bit 31 on, bits 23-16 bus, 15-11 slot, 10-8 function, 7-2 register. Only as 32 bits: other
    /// accesses are no configuration accesses and are passed on (3.2.2.3.2).
    Address,
    /// 0xcfc, four ports: the register's bytes.
    Data,
}

/// Configuration mechanism 1 for one root bus, number 0.
pub struct PciConfigPorts {
    bus: Arc<PciBus>,
    beyond: Arc<dyn IoHandler>,
    address: Mutex<u32>,
}

impl PciConfigPorts {
    /// The ports of this bus. `beyond` takes what is passed on, with offsets from 0xcf8: the ISA bridge, whose reset control
    /// register is 0xcf9.
    pub fn new(bus: Arc<PciBus>, beyond: Arc<dyn IoHandler>) -> Arc<PciConfigPorts> {
        Arc::new(PciConfigPorts {
            bus,
            beyond,
            address: Mutex::new(0),
        })
    }

    /// Device and function, and offset, that an access of the data ports means; `None` if there is none.
    fn target(&self, offset: u64, width: Width) -> Option<(u8, u8)> {
        let [register, devfn, bus, _] = self.address.lock().to_le_bytes();
        let on = *self.address.lock() & ENABLE != 0;
        let inside = offset.checked_add(width.bytes())? <= 4;
        (on && bus == 0 && inside).then_some((devfn, register | u8::try_from(offset).ok()?))
    }
}

impl IoParts for PciConfigPorts {
    type Part = ConfigPart;

    fn read_part(&self, part: ConfigPart, offset: u64, width: Width) -> u64 {
        match (part, offset, width) {
            (ConfigPart::Address, 0, Width::Dword) => u64::from(*self.address.lock()),
            (ConfigPart::Address, ..) => self.beyond.read(offset, width),
            (ConfigPart::Data, ..) => match self.target(offset, width) {
                Some((devfn, register)) => self.bus.config_read(devfn, register, width),
                None => width.ones(),
            },
        }
    }

    fn write_part(&self, part: ConfigPart, offset: u64, width: Width, value: u64) {
        match (part, offset, width) {
            (ConfigPart::Address, 0, Width::Dword) => {
                let value = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
                *self.address.lock() = value & ADDRESS_WRITABLE;
            }
            (ConfigPart::Address, ..) => self.beyond.write(offset, width, value),
            (ConfigPart::Data, ..) => {
                if let Some((devfn, register)) = self.target(offset, width) {
                    self.bus.config_write(devfn, register, width, value);
                }
            }
        }
    }
}

impl Device for PciConfigPorts {
    fn reset(&self, _kind: ResetKind) {
        *self.address.lock() = 0;
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.address.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let address: u32 = state.read(NAME, VERSION)?;
        *self.address.lock() = address & ADDRESS_WRITABLE;
        Ok(())
    }
}
