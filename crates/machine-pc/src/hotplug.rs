//! Slots of the PCI bus: who sits where, and how devices come and go while a guest runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use api::{DeviceDeletedEvent, Event, QmpError};
use dev_pc::pci_hotplug::{Ejection, HOTPLUG_GPE};
use device::pci::{PciAddress, PciBus, PciFunction};
use guest_memory::GuestMemory;

use crate::chipset::PciChips;
use crate::control::Control;
use crate::devices::{Place, Plugged, Properties};
use crate::machine::Requests;

/// The first slot that is not the chip set's.
const FIRST_SLOT: u8 = 2;

/// Notes the slots that the guest has let go of.
pub(crate) struct Ejections {
    slots: AtomicU32,
    requests: Arc<Requests>,
}

impl Ejections {
    pub(crate) fn new(requests: Arc<Requests>) -> Arc<Self> {
        Arc::new(Self {
            slots: AtomicU32::new(0),
            requests,
        })
    }

    fn take(&self) -> u32 {
        self.slots.swap(0, Ordering::AcqRel)
    }
}

impl Ejection for Ejections {
    fn eject(&self, slot: u8) {
        let bit = 1_u32.checked_shl(u32::from(slot)).unwrap_or(0);
        self.slots.fetch_or(bit, Ordering::AcqRel);
        self.requests.ring();
    }
}

/// `06.0` or `6`, hexadecimal as on PCI.
fn parse_address(text: &str) -> Option<PciAddress> {
    let digits = |text: &str| u8::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    match text.split_once('.') {
        Some((slot, function)) => PciAddress::new(digits(slot)?, digits(function)?),
        None => PciAddress::new(digits(text)?, 0),
    }
}

impl Control {
    fn pci(&self) -> Option<&PciChips> {
        self.chips.as_ref()?.pci.as_ref()
    }

    /// What a PCI device is made over.
    pub(crate) fn pci_bus_and_memory(&self) -> Result<(Arc<PciBus>, Arc<GuestMemory>), QmpError> {
        match (self.pci(), &self.memory) {
            (Some(pci), Some(memory)) => Ok((Arc::clone(&pci.bus), Arc::clone(memory))),
            _ => Err(QmpError::generic("this machine has no PCI bus")),
        }
    }

    /// The slot that `addr` asks for, or the first free one.
    pub(crate) fn choose_slot(&self, properties: &mut Properties) -> Result<PciAddress, QmpError> {
        let Some(pci) = self.pci() else {
            return Err(QmpError::generic("this machine has no PCI bus"));
        };
        let taken = pci.bus.functions();
        let is_taken = |address: PciAddress| taken.iter().any(|(known, _)| *known == address);
        let driver = properties.kind().name;
        if let Some(text) = properties.text("addr")? {
            let address = parse_address(&text).ok_or_else(|| {
                QmpError::generic(format!(
                    "Property '{driver}.addr' doesn't take value '{text}': slot and function are expected, as in 06.0"
                ))
            })?;
            if is_taken(address) {
                return Err(QmpError::generic(format!(
                    "PCI: slot {} function {} not available for {driver}, in use{}",
                    address.slot(),
                    address.function(),
                    self.holder_of(address)
                )));
            }
            return Ok(address);
        }
        let free = (FIRST_SLOT..32)
            .filter_map(|slot| PciAddress::new(slot, 0))
            .find(|address| !is_taken(*address));
        free.ok_or_else(|| {
            QmpError::generic(format!(
                "PCI: no slot/function available for {driver}, all in use or reserved"
            ))
        })
    }

    /// Who sits in a slot, as words behind "in use"; chips of the board have no name there.
    fn holder_of(&self, address: PciAddress) -> String {
        let mut devices = self.devices.iter();
        let holder = devices.find(|device| device.made.place == Place::Pci(address));
        holder.map_or_else(String::new, |device| match &device.id {
            Some(id) => format!(" by {},id={id}", device.kind.name),
            None => format!(" by {}", device.kind.name),
        })
    }

    /// Puts a function into its slot, and tells the guest if it runs already.
    pub(crate) fn plug(
        &self,
        address: PciAddress,
        function: Arc<dyn PciFunction>,
    ) -> Result<(), QmpError> {
        let Some(pci) = self.pci() else {
            return Err(QmpError::generic("this machine has no PCI bus"));
        };
        let plugged = pci.bus.plug(address, function);
        plugged.map_err(|_| QmpError::generic(format!("PCI: slot {} in use", address.slot())))?;
        pci.hotplug.set_removable(address.slot(), true);
        if self.is_powered() && address.function() == 0 {
            pci.hotplug.announce(address.slot());
            pci.pm.raise_gpe(HOTPLUG_GPE);
        }
        Ok(())
    }

    /// Asks the guest to let go of a slot; what follows is [`Control::take_ejected`].
    pub(crate) fn ask_back(&self, address: PciAddress) {
        if let Some(pci) = self.pci() {
            pci.hotplug.ask_back(address.slot());
            pci.pm.raise_gpe(HOTPLUG_GPE);
        }
    }

    /// Takes out what the guest has let go of.
    pub(crate) fn take_ejected(&mut self) {
        let slots = self.ejections.take();
        self.take_out(|device| match device.made.place {
            Place::Pci(address) => slots >> address.slot() & 1 != 0,
            _ => false,
        });
    }

    /// Takes out devices that were asked back, at a reset: the guest that held them is gone.
    pub(crate) fn take_asked_back(&mut self) {
        self.take_out(|device| device.asked_back);
    }

    /// Takes out ports that were asked back: their controller tells the guest, and does not wait for it.
    pub(crate) fn take_asked_back_ports(&mut self) {
        self.take_out(|device| device.asked_back && device.made.place == Place::Port);
    }

    fn take_out(&mut self, chosen: impl Fn(&Plugged) -> bool) {
        let devices = std::mem::take(&mut self.devices);
        let (gone, stay): (Vec<Plugged>, Vec<Plugged>) = devices.into_iter().partition(chosen);
        self.devices = stay;
        self.objects.update(self);
        for device in gone {
            self.let_go(device);
        }
    }

    fn let_go(&mut self, device: Plugged) {
        if let Place::Pci(address) = device.made.place
            && let Some(pci) = self.pci()
        {
            pci.hotplug.set_removable(address.slot(), false);
            // Nobody reaches its registers any more; then what it does of its own ends.
            drop(pci.bus.unplug(address));
        }
        device.made.device.reset(device::ResetKind::PowerOn);
        if let Some(detach) = &device.made.detach {
            detach();
        }
        let path = device.qom_path();
        let event = DeviceDeletedEvent {
            device: device.id,
            path,
        };
        self.events.emit(Event::DeviceDeleted(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(parse_address("06.0"), PciAddress::new(6, 0));
        assert_eq!(parse_address("0x1f.7"), PciAddress::new(31, 7));
        assert_eq!(parse_address("a"), PciAddress::new(10, 0));
        for wrong in ["", "20", "1.8", "x", "1."] {
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
    }
}
