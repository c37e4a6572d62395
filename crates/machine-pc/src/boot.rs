//! From the configuration to what the first processor finds: kernel, tables, its own state; or what firmware finds.

use std::borrow::Cow;

use boot_pc::acpi::{AcpiDescription, AcpiTables, EventRegister, LegacyDevice, Power, Register};
use boot_pc::smbios::{SmbiosDescription, SmbiosTables};
use boot_pc::{BootOptions, MachineLayout};
use dev_pc::fw_cfg::{FwCfg, Item};
use dev_pc::generic_event::POWER_BUTTON;
use dev_pc::reduced_power::RESET_VALUE;
use dev_pc::rtc::Rtc;
use guest_memory::{GuestMemory, GuestPhysAddr};
use vcpu::{SegmentRegister, VcpuState};

use crate::board::Chips;
use crate::config::MachineConfig;
use crate::error::MachineError;
use crate::guest_file::GuestFile;
use crate::memory;
use crate::pci_setup::{MEMORY_END, MEMORY_START};

/// Numbered items of fw_cfg that SeaBIOS reads.
const ITEM_RAM_BYTES: u16 = 0x03;
const ITEM_NO_GRAPHIC: u16 = 0x04;
const ITEM_CPUS: u16 = 0x05;
const ITEM_MACHINE: u16 = 0x06;
const ITEM_BOOT_MENU: u16 = 0x0e;
const ITEM_MAX_CPUS: u16 = 0x0f;
/// Where the guest's waking vector lies in the FACS (ACPI 6.3, 5.2.10).
const WAKING_VECTOR: u64 = 12;
/// The event register of board `microvm`, in memory.
pub(crate) const MICROVM_EVENTS: u32 = 0xfea0_0000;
/// The ISA IRQ, and I/O APIC input, of its events.
pub(crate) const MICROVM_EVENT_IRQ: u8 = 9;
/// Its sleep and reset registers, in memory: control, status, reset.
pub(crate) const MICROVM_POWER: u32 = 0xfea0_0200;
/// Its PM timer.
pub(crate) const MICROVM_TIMER: u16 = 0x0608;

/// Reads a file for the guest.
pub(crate) fn read(
    what: &'static str,
    file: &GuestFile,
) -> Result<Cow<'static, [u8]>, MachineError> {
    file.read().map_err(|error| MachineError::Image {
        what,
        path: file.path().to_owned(),
        reason: error.to_string(),
    })
}

/// The tables that describe a machine to its guest.
struct Tables {
    layout: MachineLayout,
    acpi: AcpiTables,
    smbios: SmbiosTables,
}

impl Tables {
    fn new(config: &MachineConfig, extra: &[LegacyDevice]) -> Result<Self, boot_pc::Error> {
        let layout = MachineLayout::new(config.ram_bytes)?;
        let ids: Vec<u32> = (0..config.topology.cpus).collect();
        let mut description = match config.board.chips {
            Chips::Microvm => {
                let power = |offset: u64| Register::Memory(u64::from(MICROVM_POWER) + offset);
                let reset = (power(2), RESET_VALUE);
                AcpiDescription::microvm(ids, power(0), power(1), Some(reset))
            }
            _ => {
                let end = u32::try_from(MEMORY_END + 1).unwrap_or(u32::MAX);
                AcpiDescription::pc(ids, u32::try_from(MEMORY_START).unwrap_or(0)..end)
            }
        };
        if let Power::Reduced { timer, events, .. } = &mut description.power {
            *timer = Some(MICROVM_TIMER);
            *events = Some(EventRegister {
                address: MICROVM_EVENTS,
                gsi: MICROVM_EVENT_IRQ.into(),
                power_button: POWER_BUTTON,
            });
            // What board `pc` has in its tables anyway.
            description.devices.extend([
                LegacyDevice::Rtc,
                LegacyDevice::Serial {
                    number: 1,
                    base: 0x3f8,
                    irq: 4,
                },
                LegacyDevice::FwCfg { base: 0x510 },
            ]);
        }
        description.devices.extend_from_slice(extra);
        let acpi = AcpiTables::new(&description)?;
        let sockets = u16::try_from(config.topology.sockets).unwrap_or(u16::MAX);
        let name = config.board.name;
        let version = env!("CARGO_PKG_VERSION");
        let mut smbios = SmbiosDescription::new("Ratite", name, version, sockets);
        smbios.uuid = config.uuid.as_deref().map_or([0; 16], uuid_bytes);
        let smbios = SmbiosTables::new(&smbios, &layout)?;
        Ok(Self {
            layout,
            acpi,
            smbios,
        })
    }
}

/// The bytes of a UUID in its usual form; digits that are none count as zeroes.
fn uuid_bytes(text: &str) -> [u8; 16] {
    let mut digits = text.chars().filter_map(|digit| digit.to_digit(16));
    std::array::from_fn(|_| {
        let mut next = || digits.next().and_then(|digit| u8::try_from(digit).ok());
        next().unwrap_or(0) << 4 | next().unwrap_or(0)
    })
}

/// What was put into memory, as far as it matters later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The FACS, where a sleeping guest leaves its waking vector.
    facs: Option<GuestPhysAddr>,
}

/// Writes what the guest starts with, and gives the state in which its first processor begins; none with firmware, which
/// begins at the reset vector.
pub(crate) fn load(
    config: &MachineConfig,
    extra: &[LegacyDevice],
    memory: &GuestMemory,
) -> Result<(Placed, Option<Box<VcpuState>>), MachineError> {
    let payload = &config.payload;
    let kernel_file = payload
        .kernel
        .as_ref()
        .filter(|_| payload.firmware.is_none());
    let Some(kernel_file) = kernel_file else {
        return Ok((Placed::default(), None));
    };
    let boot_error = |source| MachineError::Boot {
        path: kernel_file.path().to_owned(),
        source,
    };
    let kernel = read("kernel", kernel_file)?;
    let initrd = payload
        .initrd
        .as_ref()
        .map(|file| read("initial ram disk", file))
        .transpose()?;
    let Tables {
        mut layout,
        acpi,
        smbios,
    } = Tables::new(config, extra).map_err(boot_error)?;
    let acpi = acpi.place(&mut layout).map_err(boot_error)?;
    let smbios = smbios.place(&mut layout).map_err(boot_error)?;
    for piece in acpi.pieces.iter().chain(&smbios) {
        piece.write_to(memory)?;
    }
    let options = BootOptions {
        command_line: payload.command_line.as_bytes(),
        initrd: initrd.as_deref(),
        rsdp: Some(acpi.rsdp),
        ..BootOptions::default()
    };
    let image = boot_pc::load(&kernel, &options, &layout).map_err(boot_error)?;
    image.write_to(memory)?;
    let placed = Placed {
        facs: Some(acpi.facs),
    };
    Ok((placed, Some(Box::new(image.start.state))))
}

/// The state in which a guest that slept in memory goes on: real mode at its waking vector (ACPI 6.3, 16.3.2). With
/// firmware, none: it begins at the reset vector and finds the way itself.
pub(crate) fn wake_state(
    placed: Placed,
    memory: &GuestMemory,
    reset: Option<VcpuState>,
) -> Option<Box<VcpuState>> {
    let mut vector = [0; 4];
    let at = placed.facs?.wrapping_add(WAKING_VECTOR);
    memory.read(at, &mut vector).ok()?;
    let vector = u32::from_le_bytes(vector);
    let mut state = reset?;
    let code = state
        .system
        .segments
        .get_mut(SegmentRegister::Cs as usize)?;
    code.selector = u16::try_from(vector >> 4).ok()?;
    code.base = u64::from(vector & !15);
    state.registers.rip = u64::from(vector & 15);
    Some(Box::new(state))
}

/// What firmware finds in fw_cfg and CMOS.
pub(crate) fn tell_firmware(
    config: &MachineConfig,
    extra: &[LegacyDevice],
    fw_cfg: &FwCfg,
    rtc: &Rtc,
) -> Result<(), MachineError> {
    let Some(file) = &config.payload.firmware else {
        return Ok(());
    };
    let tables = Tables::new(config, extra).map_err(|source| MachineError::Boot {
        path: file.path().to_owned(),
        source,
    })?;
    let cpus = u16::try_from(config.topology.cpus).unwrap_or(u16::MAX);
    fw_cfg.set_item(ITEM_RAM_BYTES, bytes(&config.ram_bytes.to_le_bytes()));
    fw_cfg.set_item(ITEM_NO_GRAPHIC, bytes(&1_u16.to_le_bytes()));
    fw_cfg.set_item(ITEM_CPUS, bytes(&cpus.to_le_bytes()));
    fw_cfg.set_item(ITEM_MACHINE, bytes(&0_u32.to_le_bytes()));
    fw_cfg.set_item(
        ITEM_BOOT_MENU,
        bytes(&u16::from(config.boot_menu).to_le_bytes()),
    );
    fw_cfg.set_item(ITEM_MAX_CPUS, bytes(&cpus.to_le_bytes()));
    let mut files = vec![
        ("etc/e820", tables.layout.e820_file()),
        // The firmware's own console goes to the first serial port.
        ("etc/sercon-port", 0x3f8_u64.to_le_bytes().to_vec()),
    ];
    files.extend(tables.acpi.firmware_files());
    files.extend(tables.smbios.firmware_files());
    for (name, content) in files {
        let added = fw_cfg.add_file(name, bytes(&content));
        added.map_err(|error| MachineError::Config(error.to_string()))?;
    }
    set_cmos(config, rtc);
    Ok(())
}

fn bytes(content: &[u8]) -> Item {
    Item::Bytes(content.into())
}

/// The sizes of memory where a PC's firmware has always looked for them.
fn set_cmos(config: &MachineConfig, rtc: &Rtc) {
    let (low, high) = memory::split(config.ram_bytes);
    let word = |index: u8, value: u64| {
        let [first, second, ..] = value.min(0xffff).to_le_bytes();
        rtc.set_cmos(index, first);
        rtc.set_cmos(index + 1, second);
    };
    let kib_above_1m = low.saturating_sub(1 << 20) >> 10;
    word(0x15, 640);
    word(0x17, kib_above_1m);
    word(0x30, kib_above_1m);
    word(0x34, low.saturating_sub(16 << 20) >> 16);
    word(0x5b, high >> 16);
    rtc.set_cmos(0x5d, high.to_le_bytes()[4]);
    // A coprocessor, a mouse.
    rtc.set_cmos(0x14, 0x06);
    rtc.set_cmos(
        0x5f,
        u8::try_from(config.topology.cpus.saturating_sub(1)).unwrap_or(0),
    );
    // Disk, then CD-ROM.
    rtc.set_cmos(0x3d, 0x32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids() {
        let bytes = uuid_bytes("00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(bytes[..4], [0, 0x11, 0x22, 0x33]);
        assert_eq!(bytes[15], 0xff);
    }

    #[test]
    fn a_guest_wakes_where_it_said() {
        let memory = GuestMemory::new(1 << 20).unwrap();
        memory.add_ram(GuestPhysAddr(0), 1 << 20).unwrap();
        let vector = 0x0009_a018_u32;
        memory
            .write(GuestPhysAddr(0x5000 + 12), &vector.to_le_bytes())
            .unwrap();
        let placed = Placed {
            facs: Some(GuestPhysAddr(0x5000)),
        };
        let state = wake_state(placed, &memory, Some(VcpuState::default())).unwrap();
        let code = state.system.segments[1];
        assert_eq!((code.selector, code.base), (0x9a01, 0x9_a010));
        assert_eq!(state.registers.rip, 8);
    }
}
