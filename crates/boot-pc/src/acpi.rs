//! ACPI tables (ACPI 6.3), in two forms of the same bytes.
//!
//! [`AcpiTables::new`] makes two files, as firmware loads them from fw_cfg: `etc/acpi/tables`,
//! with every table but the root pointer, and `etc/acpi/rsdp`; and the commands that say how they
//! are linked together once their addresses are known. [`AcpiTables::firmware_files`] gives the
//! files with the commands as `etc/table-loader`; [`AcpiTables::place`] carries the commands out
//! here, for a machine that starts without firmware.
//!
//! | module | tables |
//! |---|---|
//! | `fixed` | FADT, FACS, MADT, HPET, WAET |
//! | `dsdt` | DSDT: what the others point to |
//! | `linking` | RSDP, RSDT, XSDT, and the loader's commands |

mod aml;
mod dsdt;
mod fixed;
mod linking;

pub use dsdt::REDUCED_S5;

use std::ops::Range;

use guest_memory::GuestPhysAddr;

use crate::{E820Kind, Error, MachineLayout, Piece, low_memory};
use linking::Linker;

/// The most CPUs that tables are made for.
pub const MAX_CPUS: usize = 4096;
/// The most legacy and virtio-mmio devices.
pub const MAX_DEVICES: usize = 256;

/// A register of the platform, as tables name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// A port.
    Port(u16),
    /// A byte in memory.
    Memory(u64),
}

/// The register that tells which events happened, and its interrupt (5.6.9.2). The bits are QEMU's
/// (`docs/specs/acpi_hw_reduced_hotplug.rst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRegister {
    /// Its address: four bytes of memory.
    pub address: u32,
    /// The interrupt, edge-triggered.
    pub gsi: u32,
    /// The bit of the power button.
    pub power_button: u32,
}

/// How the platform is switched off, put to sleep and reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// The registers of a PIIX4, with fixed-feature power button.
    Piix4 {
        /// PMBASE: status, enable, control (+4), timer (+8).
        pm_base: u16,
        /// General-purpose events: two bytes of status, two of enable.
        gpe_base: u16,
        /// The SMI command port.
        smi_port: u16,
        /// The interrupt of the events.
        sci: u8,
        /// Whether the machine can suspend to memory.
        s3: bool,
        /// Whether the machine can hibernate.
        s4: bool,
    },
    /// Hardware-reduced ACPI: a sleep control and a sleep status register; events by an interrupt.
    Reduced {
        /// Takes the sleep type and the bit that enters it.
        sleep_control: Register,
        /// Says that the machine woke.
        sleep_status: Register,
        /// The port of a PM timer. Tables of this kind do not need one; an operating system that finds it measures its other
        /// clocks by it.
        timer: Option<u16>,
        /// Where events are told; without it there is no power button.
        events: Option<EventRegister>,
    },
}

/// The PCI root bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciRoot {
    /// Where devices' memory may be placed below 4 GiB.
    pub memory: Range<u32>,
    /// Where it may be placed above.
    pub high_memory: Option<Range<u64>>,
    /// Slots that can be filled and emptied while the machine runs, a bit each.
    pub hotplug_slots: u32,
    /// The registers for that (`docs/specs/acpi_pci_hotplug.rst`), sixteen ports.
    pub hotplug_base: u16,
}

/// A device that is not found on PCI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyDevice {
    /// MC146818 at 0x70, IRQ 8.
    Rtc,
    /// Keyboard at 0x60 and 0x64, IRQ 1.
    Keyboard,
    /// PS/2 mouse, IRQ 12.
    Mouse,
    /// A 16550.
    Serial {
        /// Which COM port, from 1.
        number: u8,
        /// Its first port.
        base: u16,
        /// Its interrupt.
        irq: u8,
    },
    /// fw_cfg with DMA: twelve ports.
    FwCfg {
        /// Its first port.
        base: u16,
    },
    /// pvpanic.
    Pvpanic {
        /// Its port.
        base: u16,
    },
    /// A virtio device with registers in memory.
    VirtioMmio {
        /// Its first address.
        base: u32,
        /// Its size in bytes.
        bytes: u32,
        /// Its interrupt, edge-triggered.
        gsi: u32,
    },
}

/// An ISA interrupt that arrives elsewhere, or otherwise, than ISA says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptOverride {
    /// The ISA interrupt.
    pub irq: u8,
    /// The I/O APIC's input.
    pub gsi: u32,
    /// Level-triggered and active high; else as ISA has it.
    pub level: bool,
}

/// An I/O APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoApic {
    /// Its identity.
    pub id: u8,
    /// Its address.
    pub address: u32,
    /// The global number of its first input.
    pub gsi_base: u32,
}

/// All that the tables say about a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiDescription {
    /// The local APIC identities of all CPUs, in order. Those above 254 are x2APICs.
    pub apic_ids: Vec<u32>,
    /// Where the local APICs are.
    pub local_apic: u32,
    /// I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// Interrupts that are not as ISA has them.
    pub overrides: Vec<InterruptOverride>,
    /// Whether there is a pair of 8259s too.
    pub has_pics: bool,
    /// Power management.
    pub power: Power,
    /// The reset register and what to write to it.
    pub reset: Option<(Register, u8)>,
    /// The HPET's address.
    pub hpet: Option<u32>,
    /// The PCI bus, with a PIIX3 in slot 1.
    pub pci: Option<PciRoot>,
    /// Other devices.
    pub devices: Vec<LegacyDevice>,
}

impl AcpiDescription {
    /// The board `pc` with these CPUs and this room for PCI devices: everything a PIIX has.
    #[must_use]
    pub fn pc(apic_ids: Vec<u32>, memory: Range<u32>) -> Self {
        let level = |irq: u8| InterruptOverride {
            irq,
            gsi: irq.into(),
            level: true,
        };
        let power = Power::Piix4 {
            pm_base: 0x600,
            gpe_base: 0xafe0,
            smi_port: 0xb2,
            sci: 9,
            s3: true,
            s4: true,
        };
        let timer = InterruptOverride {
            irq: 0,
            gsi: 2,
            level: false,
        };
        Self {
            overrides: [timer]
                .into_iter()
                .chain([5, 9, 10, 11].map(level))
                .collect(),
            has_pics: true,
            reset: Some((Register::Port(0xcf9), 6)),
            hpet: Some(0xfed0_0000),
            pci: Some(PciRoot {
                memory,
                high_memory: None,
                hotplug_slots: !3,
                hotplug_base: 0xae00,
            }),
            devices: vec![
                LegacyDevice::Rtc,
                LegacyDevice::Keyboard,
                LegacyDevice::Mouse,
                LegacyDevice::Serial {
                    number: 1,
                    base: 0x3f8,
                    irq: 4,
                },
                LegacyDevice::FwCfg { base: 0x510 },
            ],
            ..Self::bare(apic_ids, power)
        }
    }

    /// The board `microvm` with these CPUs: hardware-reduced, no PCI, no old interrupt
    /// controllers, and no devices until they are added. Off is sleep type [`REDUCED_S5`].
    #[must_use]
    pub fn microvm(
        apic_ids: Vec<u32>,
        sleep_control: Register,
        sleep_status: Register,
        reset: Option<(Register, u8)>,
    ) -> Self {
        let power = Power::Reduced {
            sleep_control,
            sleep_status,
            timer: None,
            events: None,
        };
        Self {
            reset,
            ..Self::bare(apic_ids, power)
        }
    }

    fn bare(apic_ids: Vec<u32>, power: Power) -> Self {
        Self {
            apic_ids,
            local_apic: 0xfee0_0000,
            io_apics: vec![IoApic {
                id: 0,
                address: 0xfec0_0000,
                gsi_base: 0,
            }],
            overrides: Vec::new(),
            has_pics: false,
            power,
            reset: None,
            hpet: None,
            pci: None,
            devices: Vec::new(),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let limit = |what, count: usize, max: usize| {
            if count > max {
                return Err(Error::TooMany { what, count, max });
            }
            Ok(())
        };
        if let Some(pci) = &self.pci {
            let high = pci.high_memory.as_ref().is_none_or(|high| !high.is_empty());
            if pci.memory.is_empty() || !high {
                return Err(Error::EmptyRange("the PCI bus's memory"));
            }
        }
        limit("CPUs", self.apic_ids.len(), MAX_CPUS)?;
        limit("devices", self.devices.len(), MAX_DEVICES)?;
        limit("I/O APICs", self.io_apics.len(), MAX_DEVICES)?;
        limit("interrupt overrides", self.overrides.len(), MAX_DEVICES)
    }
}

/// The tables of a machine, not placed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    linker: Linker,
    facs_offset: u64,
}

/// Tables with addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedAcpi {
    /// What to write.
    pub pieces: Vec<Piece<'static>>,
    /// The root pointer, for [`crate::BootOptions::rsdp`].
    pub rsdp: GuestPhysAddr,
    /// The FACS, in which an operating system leaves its waking vector (offset 12) before it
    /// suspends to memory.
    pub facs: GuestPhysAddr,
}

impl AcpiTables {
    /// Makes the tables.
    ///
    /// # Errors
    /// The description has too many of something, or no room for PCI devices' memory.
    pub fn new(description: &AcpiDescription) -> Result<Self, Error> {
        description.check()?;
        let mut linker = Linker::default();
        // The FACS comes first: it wants the file's alignment of 64 bytes.
        let facs_offset = linker.add(&fixed::facs());
        let dsdt = linker.add_table(b"DSDT", 2, &dsdt::body(description));
        let fadt = linker.add_table(b"FACP", 6, &fixed::fadt(description));
        for field in fixed::FADT_DSDT_FIELDS {
            linker.point(fadt, field, dsdt);
        }
        linker.point(fadt, fixed::FADT_FACS_FIELD, facs_offset);
        let mut listed = vec![
            fadt,
            linker.add_table(b"APIC", 5, &fixed::madt(description)),
        ];
        if let Some(hpet) = description.hpet {
            listed.push(linker.add_table(b"HPET", 1, &fixed::hpet(hpet)));
        }
        listed.push(linker.add_table(b"WAET", 1, &fixed::waet()));
        linker.add_roots(&listed);
        Ok(Self {
            linker,
            facs_offset,
        })
    }

    /// The fw_cfg files by which firmware gets the tables: `etc/acpi/tables`, `etc/acpi/rsdp` and
    /// `etc/table-loader`.
    #[must_use]
    pub fn firmware_files(&self) -> [(&'static str, Vec<u8>); 3] {
        self.linker.firmware_files()
    }

    /// Finds a place at the top of low RAM, reserves it in the layout, and links the tables for
    /// it, with the root pointer at [`low_memory::SCANNED`].
    ///
    /// # Errors
    /// No room.
    pub fn place(&self, layout: &mut MachineLayout) -> Result<PlacedAcpi, Error> {
        let bytes = self.linker.tables_bytes();
        let tables = layout.reserve_top(bytes, E820Kind::AcpiNvs)?;
        let rsdp = GuestPhysAddr(low_memory::SCANNED);
        let (tables_bytes, rsdp_bytes) = self.linker.linked(tables.0);
        let piece = |at, bytes: Vec<u8>| Piece {
            at,
            bytes: bytes.into(),
            zeros: 0,
        };
        Ok(PlacedAcpi {
            pieces: vec![piece(rsdp, rsdp_bytes), piece(tables, tables_bytes)],
            rsdp,
            facs: tables.wrapping_add(self.facs_offset),
        })
    }
}

#[cfg(test)]
mod tests;
