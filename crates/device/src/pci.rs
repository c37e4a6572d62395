//! PCI: configuration space, base address registers, capabilities, interrupts, and the bus.
//!
//! Sources: PCI Local Bus Specification 3.0 (chapter 6 and 3.2.2.3.2, configuration mechanism 1).
//!
//! A function has a [`PciHeader`], which holds its 256 bytes, knows which bits the guest may write, moves its base address
//! registers' handlers in the bus's [`crate::IoMap`]s, and gives its interrupts (a pin, MSI, MSI-X). [`PciBus`] finds
//! functions; [`PciConfigPorts`] is how a PC's processor reaches them.

mod bus;
mod header;
mod msix;

pub use bus::{ConfigPart, PciAddress, PciBus, PciConfigPorts, PciFunction};
pub use header::{Bar, BarKind, BarPlace, HeaderSaved, PciHeader, PciIdentity};
pub use msix::{MSIX_ENTRY_BYTES, Msix};
