//! The DSDT: buses, links, slots, CPUs and sleep states.

use acpi_tables::aml::{
    Acquire, AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, EISAName, Else,
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Interrupt, Local,
    Memory32Fixed, MethodCall, Mutex, Notify, ONE, OpRegion, OpRegionSpace, Or, PackageBuilder,
    Path, Release, Return, ShiftLeft, Store, ZERO,
};

use super::aml::{
    Code, code, device, isa_irq, level_interrupts, method, name, path, ports, resources, scope,
    terms,
};
use super::{AcpiDescription, EventRegister, LegacyDevice, PciRoot, Power};

/// PIRQRC of a PIIX3 in slot 1, and the bit that says "not routed".
const PIRQ_REGISTERS: u8 = 0x60;
const PIRQ_NOT_ROUTED: u8 = 0x80;
/// What a link may be routed to.
const LINK_IRQS: [u32; 3] = [5, 10, 11];
/// Where the interrupt number is in an extended interrupt descriptor.
const INTERRUPT_NUMBER: u8 = 5;
const PRESENT_DISABLED: u8 = 0x09;
const PRESENT_ENABLED: u8 = 0x0b;
const NOTIFY_DEVICE_CHECK: u8 = 1;
const NOTIFY_EJECT_REQUEST: u8 = 3;
/// The button was pressed (5.6.6, table 5-171).
const NOTIFY_POWER_BUTTON: u8 = 0x80;
const FOREVER: u16 = 0xffff;
/// Ports of the PIIX4's PMBASE range.
const PM_PORTS: u8 = 64;

pub(super) fn body(description: &AcpiDescription) -> Vec<u8> {
    let mut system = cpus(description);
    let mut legacy: Vec<Code> = Vec::new();
    for (index, device) in (0_u8..=u8::MAX).zip(&description.devices) {
        legacy.push(legacy_device(*device, index));
    }
    if let Some(hpet) = description.hpet {
        system.push(hpet_device(hpet));
    }
    if let Some(pci) = &description.pci {
        system.push(pci_root(pci, &legacy));
        system.push(motherboard(description, pci));
        system.extend((0..4).map(link));
    } else {
        system.append(&mut legacy);
    }
    if let Power::Reduced {
        events: Some(register),
        ..
    } = description.power
    {
        system.extend(generic_events(register));
    }
    let mut all = vec![scope("\\_SB_", &system)];
    if description
        .pci
        .as_ref()
        .is_some_and(|pci| pci.hotplug_slots != 0)
    {
        all.push(hotplug_event());
    }
    all.extend(sleep_states(description.power));
    all.into_iter().flat_map(|term| term.0).collect()
}

fn hid(id: &str) -> Code {
    name("_HID", &EISAName::new(id))
}

fn cpus(description: &AcpiDescription) -> Vec<Code> {
    (0_u32..)
        .zip(&description.apic_ids)
        .map(|(uid, _)| {
            let id = [name("_HID", &"ACPI0007"), name("_UID", &uid)];
            device(&format!("C{uid:03X}"), &id)
        })
        .collect()
}

fn hpet_device(address: u32) -> Code {
    let range = resources(&[code(&Memory32Fixed::new(false, address, 0x400))]);
    device(
        "HPET",
        &[hid("PNP0103"), name("_UID", &ZERO), name("_CRS", &range)],
    )
}

fn legacy_device(kind: LegacyDevice, index: u8) -> Code {
    let simple = |path: &str, id: &str, list: &[Code]| {
        device(path, &[hid(id), name("_CRS", &resources(list))])
    };
    match kind {
        LegacyDevice::Rtc => simple("RTC_", "PNP0B00", &[ports(0x70, 2), isa_irq(8)]),
        LegacyDevice::Keyboard => simple(
            "KBD_",
            "PNP0303",
            &[ports(0x60, 1), ports(0x64, 1), isa_irq(1)],
        ),
        LegacyDevice::Mouse => simple("MOU_", "PNP0F13", &[isa_irq(12)]),
        LegacyDevice::Serial { number, base, irq } => device(
            &format!("COM{:X}", number & 15),
            &[
                hid("PNP0501"),
                name("_UID", &number),
                name("_CRS", &resources(&[ports(base, 8), isa_irq(irq)])),
            ],
        ),
        LegacyDevice::FwCfg { base } => device(
            "FWCF",
            &[
                name("_HID", &"QEMU0002"),
                name("_STA", &PRESENT_ENABLED),
                name("_CRS", &resources(&[ports(base, 12)])),
            ],
        ),
        LegacyDevice::Pvpanic { base } => device(
            "PEVT",
            &[
                name("_HID", &"QEMU0001"),
                name("_STA", &PRESENT_ENABLED),
                name("_CRS", &resources(&[ports(base, 1)])),
            ],
        ),
        LegacyDevice::VirtioMmio { base, bytes, gsi } => {
            let list = [
                code(&Memory32Fixed::new(true, base, bytes)),
                code(&Interrupt::new(true, true, false, false, gsi)),
            ];
            device(
                &format!("VR{index:02X}"),
                &[
                    name("_HID", &"LNRO0005"),
                    name("_UID", &index),
                    name("_CCA", &ONE),
                    name("_CRS", &resources(&list)),
                ],
            )
        }
    }
}

/// The Generic Event Device and the power button that it tells of (5.6.9.2, 4.8.2.2.1.2).
fn generic_events(register: EventRegister) -> [Code; 2] {
    let interrupt = code(&Interrupt::new(true, true, false, false, register.gsi));
    let selector = path("ESEL");
    let (happened, button) = (Local(0), path("PWRB"));
    let is_pressed = And::new(&ZERO, &happened, &register.power_button);
    let pressed = Notify::new(&button, &NOTIFY_POWER_BUTTON);
    let event = [
        // Reading clears the register: it is read once.
        code(&Store::new(&happened, &selector)),
        code(&If::new(&is_pressed, vec![&pressed])),
    ];
    let events = device(
        "GED_",
        &[
            name("_HID", &"ACPI0013"),
            name("_UID", &"GED"),
            name("_CRS", &resources(&[interrupt])),
            code(&OpRegion::new(
                "EREG".into(),
                OpRegionSpace::SystemMemory,
                &register.address,
                &4_u8,
            )),
            code(&Field::new(
                "EREG".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(four("ESEL"), 32)],
            )),
            method("_EVT", 1, &event),
        ],
    );
    let button = device("PWRB", &[hid("PNP0C0C"), name("_UID", &ZERO)]);
    [events, button]
}

/// Ports that no PCI device may be given.
fn motherboard(description: &AcpiDescription, pci: &PciRoot) -> Code {
    let mut list = vec![ports(pci.hotplug_base, 16)];
    if let Power::Piix4 {
        pm_base,
        gpe_base,
        smi_port,
        ..
    } = description.power
    {
        list.extend([
            ports(pm_base, PM_PORTS),
            ports(gpe_base, 4),
            ports(smi_port, 2),
        ]);
    }
    device(
        "MBRD",
        &[
            hid("PNP0C02"),
            name("_UID", &ONE),
            name("_CRS", &resources(&list)),
        ],
    )
}

fn pci_root(pci: &PciRoot, legacy: &[Code]) -> Code {
    let mut inside = vec![
        hid("PNP0A03"),
        name("_UID", &ZERO),
        name("_CRS", &root_resources(pci)),
        name("_PRT", &routing()),
        isa_bridge(legacy),
    ];
    if pci.hotplug_slots != 0 {
        inside.extend(hotplug(pci));
    }
    device("PCI0", &inside)
}

fn root_resources(pci: &PciRoot) -> Code {
    let cacheable = AddressSpaceCacheable::Cacheable;
    let plain = AddressSpaceCacheable::NotCacheable;
    let mut list = vec![
        code(&AddressSpace::new_bus_number(0_u16, 0xff)),
        ports(0xcf8, 8),
        code(&AddressSpace::new_io(0_u16, 0xcf7, None)),
        code(&AddressSpace::new_io(0xd00_u16, 0xffff, None)),
        code(&AddressSpace::new_memory(
            cacheable,
            true,
            0xa_0000_u32,
            0xb_ffff,
            None,
        )),
    ];
    if let Some(last) = pci.memory.end.checked_sub(1) {
        list.push(code(&AddressSpace::new_memory(
            plain,
            true,
            pci.memory.start,
            last,
            None,
        )));
    }
    if let Some(high) = &pci.high_memory
        && let Some(last) = high.end.checked_sub(1)
    {
        list.push(code(&AddressSpace::new_memory(
            cacheable, true, high.start, last, None,
        )));
    }
    resources(&list)
}

/// Lines rotate from slot to slot: pin A of slot 1 is link A.
fn routing() -> Code {
    let mut table = PackageBuilder::new();
    for slot in 0_u32..32 {
        for pin in 0_u8..4 {
            let link = (slot + u32::from(pin) + 3) % 4;
            let mut entry = PackageBuilder::new();
            entry.add_element(&(slot << 16 | 0xffff));
            entry.add_element(&pin);
            entry.add_element(&Path::new(link_path(link)));
            entry.add_element(&ZERO);
            table.add_element(&entry);
        }
    }
    code(&table)
}

fn link_path(link: u32) -> &'static str {
    match link {
        0 => "\\_SB_.LNKA",
        1 => "\\_SB_.LNKB",
        2 => "\\_SB_.LNKC",
        _ => "\\_SB_.LNKD",
    }
}

fn isa_bridge(legacy: &[Code]) -> Code {
    let registers =
        ["PRQ0", "PRQ1", "PRQ2", "PRQ3"].map(|register| FieldEntry::Named(four(register), 8));
    let mut inside = vec![
        name("_ADR", &0x1_0000_u32),
        code(&OpRegion::new(
            "P40C".into(),
            OpRegionSpace::PCIConfig,
            &PIRQ_REGISTERS,
            &4_u8,
        )),
        code(&Field::new(
            "P40C".into(),
            FieldAccessType::Byte,
            FieldLockRule::NoLock,
            FieldUpdateRule::Preserve,
            registers.to_vec(),
        )),
    ];
    inside.extend_from_slice(legacy);
    device("ISA_", &inside)
}

fn four(text: &str) -> [u8; 4] {
    text.as_bytes().first_chunk().copied().unwrap_or(*b"____")
}

/// A link of the PIIX3's interrupt router (ACPI 6.3, 6.2.13).
fn link(index: u8) -> Code {
    let register = path(&format!("\\_SB_.PCI0.ISA_.PRQ{index}"));
    let full = link_path(index.into());
    let own = full.rsplit('.').next().unwrap_or(full);
    let is_off = And::new(&ZERO, &register, &PIRQ_NOT_ROUTED);
    let none = name("PRR0", &resources(&[level_interrupts(&[0])]));
    let number = path("PRRI");
    let buffer = path("PRR0");
    let of_buffer = CreateDWordField::new(&number, &buffer, &INTERRUPT_NUMBER);
    let of_argument = CreateDWordField::new(&number, &Arg(0), &INTERRUPT_NUMBER);
    let irq = And::new(&ZERO, &register, &0xf_u8);
    let off = Or::new(&register, &register, &PIRQ_NOT_ROUTED);
    let current = [
        code(&of_buffer),
        code(&Store::new(&Local(0), &irq)),
        code(&If::new(&is_off, vec![&Store::new(&Local(0), &ZERO)])),
        code(&Store::new(&number, &Local(0))),
        code(&Return::new(&buffer)),
    ];
    let status = [
        code(&If::new(&is_off, vec![&Return::new(&PRESENT_DISABLED)])),
        code(&Else::new(vec![&Return::new(&PRESENT_ENABLED)])),
    ];
    device(
        own,
        &[
            hid("PNP0C0F"),
            name("_UID", &index),
            none,
            name("_PRS", &resources(&[level_interrupts(&LINK_IRQS)])),
            method("_STA", 0, &status),
            method("_CRS", 0, &current),
            method(
                "_SRS",
                1,
                &[code(&of_argument), code(&Store::new(&register, &number))],
            ),
            method("_DIS", 0, &[code(&off)]),
        ],
    )
}

fn slot_name(slot: u8) -> String {
    format!("S{slot:02X}_")
}

fn slots(pci: &PciRoot) -> impl Iterator<Item = u8> {
    let slots = pci.hotplug_slots;
    (0..32_u8).filter(move |slot| slots >> slot & 1 != 0)
}

/// Slots, and the methods that look at the registers (`docs/specs/acpi_pci_hotplug.rst`).
fn hotplug(pci: &PciRoot) -> Vec<Code> {
    let dwords = |region: &str, names: &[&str]| {
        code(&Field::new(
            region.into(),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            names
                .iter()
                .map(|name| FieldEntry::Named(four(name), 32))
                .collect(),
        ))
    };
    let bit = ShiftLeft::new(&ZERO, &ONE, &Arg(0));
    let (up, down, eject) = (path("PCIU"), path("PCID"), path("B0EJ"));
    let notify =
        |slots: Code, event: u8| code(&MethodCall::new("DVNT".into(), vec![&slots, &event]));
    let mut list = vec![
        code(&OpRegion::new(
            "PCST".into(),
            OpRegionSpace::SystemIO,
            &pci.hotplug_base,
            &12_u8,
        )),
        dwords("PCST", &["PCIU", "PCID", "B0EJ"]),
        code(&Mutex::new("BLCK".into(), 0)),
        method("PCEJ", 1, &locked(&[code(&Store::new(&eject, &bit))])),
        method(
            "PCNT",
            0,
            &locked(&[
                code(&Store::new(&Local(0), &up)),
                code(&Store::new(&Local(1), &down)),
                notify(code(&Local(0)), NOTIFY_DEVICE_CHECK),
                notify(code(&Local(1)), NOTIFY_EJECT_REQUEST),
            ]),
        ),
    ];
    let tells: Vec<Code> = slots(pci)
        .map(|slot| {
            let object = path(&slot_name(slot));
            let bit = 1_u32 << slot;
            let asked = And::new(&ZERO, &Arg(0), &bit);
            code(&If::new(&asked, vec![&Notify::new(&object, &Arg(1))]))
        })
        .collect();
    list.push(method("DVNT", 2, &tells));
    list.extend(slots(pci).map(|slot| {
        let eject = code(&MethodCall::new("PCEJ".into(), vec![&slot]));
        device(
            &slot_name(slot),
            &[
                name("_ADR", &(u32::from(slot) << 16)),
                name("_SUN", &slot),
                method("_EJ0", 1, &[eject]),
            ],
        )
    }));
    list
}

fn locked(inside: &[Code]) -> Vec<Code> {
    let take = code(&Acquire::new("BLCK".into(), FOREVER));
    let give = code(&Release::new("BLCK".into()));
    [take]
        .into_iter()
        .chain(inside.iter().cloned())
        .chain([give])
        .collect()
}

/// General-purpose event 1: look at the slots.
fn hotplug_event() -> Code {
    let look = code(&MethodCall::new("\\_SB_.PCI0.PCNT".into(), Vec::new()));
    scope("\\_GPE", &[method("_E01", 0, &[look])])
}

/// The sleep types of each board (ACPI 6.3, 7.4.2).
fn sleep_states(power: Power) -> Vec<Code> {
    let state = |path: &str, kind: u8| {
        let values = [kind, kind, 0, 0].map(|value| code(&value));
        let package = acpi_tables::aml::Package::new(terms(&values));
        name(path, &package)
    };
    match power {
        Power::Piix4 { s3, s4, .. } => [(s3, "_S3_", 1), (s4, "_S4_", 2), (true, "_S5_", 0)]
            .into_iter()
            .filter(|(offered, ..)| *offered)
            .map(|(_, path, kind)| state(path, kind))
            .collect(),
        Power::Reduced { .. } => vec![state("_S5_", REDUCED_S5)],
    }
}

/// The sleep type of "off" for boards with hardware-reduced ACPI: in bits 2 to 4 of the sleep
/// control register, with bit 5 to enter it.
pub const REDUCED_S5: u8 = 5;
