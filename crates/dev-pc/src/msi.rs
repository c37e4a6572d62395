//! Message-signalled interrupts of the x86: what an address and a datum say to the local APICs.
//!
//! Source: Intel SDM volume 3, 11.11 "Message Signalled Interrupts".
//!
//! | address bits | meaning | data bits | meaning |
//! |---|---|---|---|
//! | 31-20 | 0xfee | 7-0 | vector |
//! | 19-12 | destination | 10-8 | delivery mode |
//! | 3 | redirection hint | 14 | level: assert |
//! | 2 | destination is logical | 15 | trigger: level |

use std::sync::Arc;

use device::{MsiMessage, MsiSink};

use crate::apic::{ApicBus, Delivery, Destination, InterruptMessage};

/// Where interrupt messages go, in guest-physical memory: 1 MiB.
pub const MSI_ADDRESS: u64 = 0xfee0_0000;

/// What a message says; `None` if it does not go to the local APICs, or asks for a delivery mode that does not exist.
pub fn decode(message: MsiMessage) -> Option<InterruptMessage> {
    if message.address >> 20 != MSI_ADDRESS >> 20 {
        return None;
    }
    let field = |shift: u32, bits: u32| {
        let shifted = message.address >> shift & ((1 << bits) - 1);
        u32::try_from(shifted).unwrap_or(0)
    };
    let logical = field(2, 1) != 0;
    let [vector, mode, ..] = message.data.to_le_bytes();
    let level = message.data & 1 << 15 != 0;
    if level && message.data & 1 << 14 == 0 {
        // A deassertion says nothing to an APIC.
        return None;
    }
    Some(InterruptMessage {
        destination: Destination::from_field(field(12, 8), logical),
        delivery: Delivery::from_bits(mode & 7)?,
        vector,
        level,
    })
}

/// The message that says this; `None` if an address cannot name the destination.
pub fn encode(message: &InterruptMessage) -> Option<MsiMessage> {
    let (field, logical) = match message.destination {
        Destination::All => (0xff, false),
        Destination::Physical(id) => (id, false),
        Destination::Logical(mask) => (mask, true),
        Destination::AllBut(_) => return None,
    };
    let field = u64::from(u8::try_from(field).ok()?);
    let mode = match message.delivery {
        Delivery::Fixed => 0,
        Delivery::LowestPriority => 1,
        Delivery::Smi => 2,
        Delivery::Nmi => 4,
        Delivery::Init => 5,
        Delivery::StartUp => return None,
        Delivery::ExtInt => 7,
    };
    let trigger = if message.level { 0xc000 } else { 0 };
    Some(MsiMessage {
        address: MSI_ADDRESS | field << 12 | u64::from(logical) << 2,
        data: u32::from(message.vector) | mode << 8 | trigger,
    })
}

/// Messages that go to an [`ApicBus`].
pub struct ApicMsi {
    bus: Arc<ApicBus>,
}

impl ApicMsi {
    /// For this bus.
    pub fn new(bus: Arc<ApicBus>) -> Arc<ApicMsi> {
        Arc::new(ApicMsi { bus })
    }
}

impl MsiSink for ApicMsi {
    fn send(&self, message: MsiMessage) {
        if let Some(message) = decode(message) {
            self.bus.deliver(&message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_decoded() {
        let message = |address, data| decode(MsiMessage { address, data });
        assert_eq!(
            message(0xfee0_3000, 0x0041),
            Some(InterruptMessage {
                destination: Destination::Physical(3),
                delivery: Delivery::Fixed,
                vector: 0x41,
                level: false,
            })
        );
        assert_eq!(
            message(0xfeef_f00c, 0xc131),
            Some(InterruptMessage {
                destination: Destination::Logical(0xff),
                delivery: Delivery::LowestPriority,
                vector: 0x31,
                level: true,
            })
        );
        assert_eq!(
            message(0xfeef_f000, 0x0400).map(|message| (message.destination, message.delivery)),
            Some((Destination::All, Delivery::Nmi))
        );
        for (address, data) in [
            (0xfee0_3000, 0x0041),
            (0xfeef_f004, 0xc131),
            (0xfeef_f000, 0x0400),
            (0xfee0_0000, 0x0700),
        ] {
            let message = MsiMessage { address, data };
            assert_eq!(encode(&decode(message).unwrap()), Some(message));
        }
        assert_eq!(message(0xfef0_0000, 0x41), None);
        assert_eq!(message(0x1_fee0_0000, 0x41), None);
        assert_eq!(message(0xfee0_0000, 0x0341), None);
        assert_eq!(message(0xfee0_0000, 0x8041), None);
    }
}
