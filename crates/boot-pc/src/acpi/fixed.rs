//! Tables that are plain data. Bodies are what follows the header of 36 bytes.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::linking::Pointer;
use super::{AcpiDescription, Power, Register};

const HEADER_BYTES: usize = 36;
/// DSDT and X_DSDT.
pub(super) const FADT_DSDT_FIELDS: [Pointer; 2] =
    [Pointer { at: 40, bytes: 4 }, Pointer { at: 140, bytes: 8 }];
/// FIRMWARE_CTRL; X_FIRMWARE_CTRL stays zero, as it must if the other is used.
pub(super) const FADT_FACS_FIELD: Pointer = Pointer { at: 36, bytes: 4 };

/// Latencies that say "this state is not there" (ACPI 6.3, table 5-33).
const NO_C2_US: u16 = 101;
const NO_C3_US: u16 = 1001;
const LEGACY_DEVICES: u16 = 1;
const HAS_8042: u16 = 2;
const NO_VGA: u16 = 4;
const NO_CMOS_RTC: u16 = 1 << 5;
const ACPI_ENABLE: u8 = 0xf1;
const ACPI_DISABLE: u8 = 0xf0;
/// The byte of CMOS memory with the century.
const CMOS_CENTURY: u8 = 0x32;

const MADT_PCAT_COMPAT: u32 = 1;
/// The largest identity of a local APIC that is not an x2APIC; 255 means all.
const MAX_XAPIC_ID: u32 = 254;
const ALL_CPUS: u8 = 0xff;
const LEVEL_ACTIVE_HIGH: u16 = 0xd;
/// Hardware revision 1, three timers, 64-bit counter, legacy replacement, Intel.
const HPET_BLOCK_ID: u32 = 0x8086_a201;
/// The fewest counts between periodic interrupts.
const HPET_MIN_TICK: u16 = 100;
/// The PM timer needs one read only.
const WAET_PM_TIMER_GOOD: u32 = 2;

fn body(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes.split_off(HEADER_BYTES.min(bytes.len()))
}

pub(super) fn facs() -> Vec<u8> {
    let mut bytes = Vec::new();
    acpi_tables::facs::FACS::new().to_aml_bytes(&mut bytes);
    bytes
}

fn gas(register: Register) -> GAS {
    let (space, address) = match register {
        Register::Port(port) => (AddressSpace::SystemIo, port.into()),
        Register::Memory(address) => (AddressSpace::SystemMemory, address),
    };
    GAS::new(space, 8, 0, AccessSize::ByteAccess, address)
}

pub(super) fn fadt(description: &AcpiDescription) -> Vec<u8> {
    let has = |wanted: fn(&super::LegacyDevice) -> bool| description.devices.iter().any(wanted);
    let mut boot_arch = LEGACY_DEVICES | NO_VGA;
    if has(|device| matches!(device, super::LegacyDevice::Keyboard)) {
        boot_arch |= HAS_8042;
    }
    if !has(|device| matches!(device, super::LegacyDevice::Rtc)) {
        boot_arch |= NO_CMOS_RTC;
    }
    let mut fadt = FADTBuilder::new([0; 6], [0; 8], 0)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton);
    fadt.p_lvl2_lat = NO_C2_US.into();
    fadt.p_lvl3_lat = NO_C3_US.into();
    fadt.iapc_boot_arch = boot_arch.into();
    if let Some((register, value)) = description.reset {
        fadt = fadt.flag(Flags::ResetRegSup);
        fadt.reset_reg = gas(register);
        fadt.reset_value = value;
    }
    match description.power {
        Power::Piix4 {
            pm_base,
            gpe_base,
            smi_port,
            sci,
            ..
        } => {
            let port = |offset: u16| u32::from(pm_base.saturating_add(offset)).into();
            fadt = fadt
                .flag(Flags::UsePlatformClock)
                .preferred_pm_profile(PmProfile::Desktop)
                .gpe_info(gpe_base.into(), 0, 4, 0, 0);
            fadt.sci_int = u16::from(sci).into();
            fadt.smi_cmd = u32::from(smi_port).into();
            fadt.acpi_enable = ACPI_ENABLE;
            fadt.acpi_disable = ACPI_DISABLE;
            fadt.pm1a_evt_blk = port(0);
            fadt.pm1a_cnt_blk = port(4);
            fadt.pm_tmr_blk = port(8);
            (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
            fadt.century = CMOS_CENTURY;
        }
        Power::Reduced {
            sleep_control,
            sleep_status,
            timer,
            ..
        } => {
            if let Some(timer) = timer {
                fadt.pm_tmr_blk = u32::from(timer).into();
                fadt.pm_tmr_len = 4;
                fadt.x_pm_tmr_blk = GAS::new(
                    AddressSpace::SystemIo,
                    32,
                    0,
                    AccessSize::DwordAccess,
                    timer.into(),
                );
            }
            fadt = fadt.flag(Flags::HwReducedAcpi).flag(Flags::PwrButton);
            fadt.sleep_control_reg = gas(sleep_control);
            fadt.sleep_status_reg = gas(sleep_status);
        }
    }
    body(&fadt.finalize())
}

pub(super) fn madt(description: &AcpiDescription) -> Vec<u8> {
    let mut table = description.local_apic.to_le_bytes().to_vec();
    let flags = if description.has_pics {
        MADT_PCAT_COMPAT
    } else {
        0
    };
    table.extend_from_slice(&flags.to_le_bytes());
    let mut has_x2apic = false;
    for (uid, id) in (0_u32..).zip(&description.apic_ids) {
        match (u8::try_from(*id), u8::try_from(uid)) {
            (Ok(small), Ok(uid)) if *id <= MAX_XAPIC_ID && uid != ALL_CPUS => {
                table.extend_from_slice(&[0, 8, uid, small, 1, 0, 0, 0]);
            }
            _ => {
                has_x2apic = true;
                table.extend_from_slice(&[9, 16, 0, 0]);
                for field in [*id, 1, uid] {
                    table.extend_from_slice(&field.to_le_bytes());
                }
            }
        }
    }
    for io_apic in &description.io_apics {
        table.extend_from_slice(&[1, 12, io_apic.id, 0]);
        table.extend_from_slice(&io_apic.address.to_le_bytes());
        table.extend_from_slice(&io_apic.gsi_base.to_le_bytes());
    }
    for other in &description.overrides {
        let flags = if other.level { LEVEL_ACTIVE_HIGH } else { 0 };
        table.extend_from_slice(&[2, 10, 0, other.irq]);
        table.extend_from_slice(&other.gsi.to_le_bytes());
        table.extend_from_slice(&flags.to_le_bytes());
    }
    // NMI comes in at LINT1 of all CPUs.
    table.extend_from_slice(&[4, 6, ALL_CPUS, 0, 0, 1]);
    if has_x2apic {
        table.extend_from_slice(&[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    table
}

pub(super) fn hpet(address: u32) -> Vec<u8> {
    let mut table = HPET_BLOCK_ID.to_le_bytes().to_vec();
    let base = GAS::new(
        AddressSpace::SystemMemory,
        0,
        0,
        AccessSize::Undefined,
        address.into(),
    );
    base.to_aml_bytes(&mut table);
    table.push(0);
    table.extend_from_slice(&HPET_MIN_TICK.to_le_bytes());
    table.push(0);
    table
}

pub(super) fn waet() -> Vec<u8> {
    WAET_PM_TIMER_GOOD.to_le_bytes().to_vec()
}
