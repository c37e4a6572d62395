//! The chips of a PC, each from its datasheet, each in a file or folder of its own.
//!
//! A chip is made with its surroundings ([`device::Clock`], [`device::IrqLine`], sinks), gives handlers for its ranges of
//! registers, and lives as [`device::Device`] says. Chips do not know each other: a board connects them by lines and
//! handlers. All of them run [`device::conformance::check`].
//!
//! | module | chip |
//! |---|---|
//! | [`pic`] | 8259A pair with ELCR |
//! | [`pit`] | 8254 and port 0x61 |
//! | [`rtc`] | MC146818 clock and CMOS memory |
//! | [`uart`] | 16550A |
//! | [`debug_ports`] | debug console and debug exit |
//! | [`port92`] | system control port A |
//! | [`i8042`] | keyboard controller, PS/2 keyboard and mouse |
//! | [`apic`], [`ioapic`], [`msi`] | local APICs, 82093AA, interrupt messages |
//! | [`i440fx`], [`piix3`], [`acpi_pm`] | host bridge, ISA bridge, power management |
//! | [`pci_hotplug`] | slots that come and go |
//! | [`fw_cfg`] | what a board hands to its firmware |
//! | [`hpet`], [`irq_gate`] | high precision timers, and how they replace the old ones |
//! | [`pvpanic`] | a guest says that it has panicked |
//! | [`i6300esb`] | watchdog |
//! | [`generic_event`] | events of a board with hardware-reduced ACPI |
//! | [`reduced_power`] | off and reset on a board with hardware-reduced ACPI |
//!
//! A new chip: its module, a line in this table, its registers in its module's documentation, tests against expectations
//! from the datasheet, and the conformance cases.

pub mod acpi_pm;
pub mod apic;
pub mod debug_ports;
pub mod fw_cfg;
pub mod generic_event;
pub mod hpet;
pub mod i440fx;
pub mod i6300esb;
pub mod i8042;
pub mod ioapic;
pub mod irq_gate;
pub mod msi;
pub mod pci_hotplug;
pub mod pic;
pub mod piix3;
pub mod pit;
pub mod port92;
pub mod pvpanic;
pub mod reduced_power;
pub mod rtc;
pub mod uart;

/// What a board can do wrong with the chips.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name that does not fit into the directory of fw_cfg.
    #[error("fw_cfg: '{name}' is not a name of 1 to 55 ASCII characters")]
    FileName {
        /// The name.
        name: String,
    },
    /// All keys for files of fw_cfg are taken.
    #[error("fw_cfg: there are no keys for more files")]
    TooManyFiles,
}

#[cfg(test)]
mod pci_tests;
#[cfg(test)]
mod wiring_tests;
