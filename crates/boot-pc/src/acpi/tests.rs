use std::process::Command;

use guest_memory::GuestMemory;

use super::*;

fn pc(cpus: u32) -> AcpiDescription {
    let mut description = AcpiDescription::pc((0..cpus).collect(), 0xe000_0000..0xfec0_0000);
    let extra = [
        LegacyDevice::Serial {
            number: 2,
            base: 0x2f8,
            irq: 3,
        },
        LegacyDevice::Pvpanic { base: 0x505 },
    ];
    description.devices.extend(extra);
    if let Some(pci) = &mut description.pci {
        pci.high_memory = Some(0x1_4000_0000..0x2_0000_0000);
    }
    description
}

fn microvm() -> AcpiDescription {
    let register = |offset: u64| Register::Memory(0xfea0_0200 + offset);
    let reset = Some((register(2), 0x42));
    let mut description = AcpiDescription::microvm(vec![0, 1], register(0), register(1), reset);
    if let Power::Reduced { events, .. } = &mut description.power {
        *events = Some(EventRegister {
            address: 0xfea0_0000,
            gsi: 9,
            power_button: 2,
        });
    }
    description.devices = vec![
        LegacyDevice::Serial {
            number: 1,
            base: 0x3f8,
            irq: 4,
        },
        LegacyDevice::VirtioMmio {
            base: 0xfeb0_0000,
            bytes: 512,
            gsi: 16,
        },
    ];
    description
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn le(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Follows the pointers as an operating system does; each table with its signature.
fn walk(memory: &GuestMemory, rsdp: GuestPhysAddr) -> Vec<(String, u64, Vec<u8>)> {
    let read = |at: u64, length: u64| {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
        bytes
    };
    let root = read(rsdp.0, 36);
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
    let table = |at: u64| {
        let bytes = read(at, le(&read(at + 4, 4)));
        let signature = String::from_utf8(bytes[..4].to_vec()).unwrap();
        if signature != "FACS" {
            assert_eq!(sum(&bytes), 0, "{signature}");
        }
        (signature, at, bytes)
    };
    let (_, _, rsdt) = table(le(&root[16..20]));
    let (_, _, xsdt) = table(le(&root[24..32]));
    let short: Vec<u64> = rsdt[36..].chunks(4).map(le).collect();
    let long: Vec<u64> = xsdt[36..].chunks(8).map(le).collect();
    assert_eq!(short, long);
    let mut found: Vec<_> = long.into_iter().map(table).collect();
    let fadt = found[0].2.clone();
    assert_eq!(le(&fadt[40..44]), le(&fadt[140..148]));
    found.push(table(le(&fadt[40..44])));
    found.push(table(le(&fadt[36..40])));
    found
}

fn placed(description: &AcpiDescription) -> (GuestMemory, PlacedAcpi) {
    let tables = AcpiTables::new(description).unwrap();
    let mut layout = MachineLayout::new(16 << 20).unwrap();
    let placed = tables.place(&mut layout).unwrap();
    let memory = GuestMemory::new(16 << 20).unwrap();
    memory.add_ram(GuestPhysAddr(0), 16 << 20).unwrap();
    for piece in &placed.pieces {
        piece.write_to(&memory).unwrap();
    }
    (memory, placed)
}

#[test]
fn placed_tables_are_found_by_their_pointers() {
    let (memory, placed) = placed(&pc(3));
    let tables = walk(&memory, placed.rsdp);
    let names: Vec<&str> = tables.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["FACP", "APIC", "HPET", "WAET", "DSDT", "FACS"]);
    let (_, facs, _) = &tables[5];
    assert_eq!(*facs, placed.facs.0);
    assert_eq!(facs % 64, 0);
    let fadt = &tables[0].2;
    assert_eq!(fadt.len(), 276);
    assert_eq!(le(&fadt[56..60]), 0x600);
    assert_eq!(le(&fadt[64..68]), 0x604);
    assert_eq!(le(&fadt[76..80]), 0x608);
    assert_eq!(le(&fadt[80..84]), 0xafe0);
    assert_eq!(fadt[46..54], [9, 0, 0xb2, 0, 0, 0, 0xf1, 0xf0]);
    // The reset register: a port, a byte wide, 0xcf9, value 6.
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0, 6]);
}

#[test]
fn cpus_with_large_identities_are_x2apics() {
    let mut description = pc(2);
    description.apic_ids = vec![0, 254, 255, 1000];
    let table = fixed::madt(&description);
    let mut kinds = Vec::new();
    let mut rest = &table[8..];
    while let [kind, length, ..] = rest {
        kinds.push(*kind);
        rest = &rest[usize::from(*length)..];
    }
    // CPUs, I/O APIC, overrides of 0, 5, 9, 10, 11, NMI of both kinds.
    assert_eq!(kinds, [0, 0, 9, 9, 1, 2, 2, 2, 2, 2, 4, 10]);
    assert_eq!(table[4], 1);
    assert_eq!(table[24 + 16 + 4..][..4], 1000_u32.to_le_bytes());
}

/// What SeaBIOS and others do with the three files, written from the format's description.
fn as_firmware(files: &[(&str, Vec<u8>)], bases: &[(&str, u64)]) -> Vec<Vec<u8>> {
    let text = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(field[..end].to_vec()).unwrap()
    };
    let mut contents: Vec<Vec<u8>> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
    let index = |name: &str| files.iter().position(|(known, _)| *known == name).unwrap();
    let mut allocated = Vec::new();
    for command in files[index("etc/table-loader")].1.chunks(128) {
        let first = text(&command[4..60]);
        match le(&command[..4]) {
            1 => allocated.push((first, le(&command[60..64]), command[64])),
            2 => {
                let base = bases
                    .iter()
                    .find(|(name, _)| *name == text(&command[60..116]));
                let at = usize::try_from(le(&command[116..120])).unwrap();
                let size = usize::from(command[120]);
                let field = &mut contents[index(&first)][at..at + size];
                let value = le(field) + base.unwrap().1;
                field.copy_from_slice(&value.to_le_bytes()[..size]);
            }
            3 => {
                let [at, start, length] = [60, 64, 68]
                    .map(|field| usize::try_from(le(&command[field..field + 4])).unwrap());
                let file = &mut contents[index(&first)];
                file[at] = file[at].wrapping_sub(sum(&file[start..start + length]));
            }
            other => panic!("command {other}"),
        }
    }
    assert_eq!(
        allocated,
        [
            ("etc/acpi/tables".to_owned(), 64, 1),
            ("etc/acpi/rsdp".to_owned(), 16, 2)
        ]
    );
    contents
}

#[test]
fn firmware_gets_the_same_tables() {
    for description in [pc(2), microvm()] {
        let (memory, placed) = placed(&description);
        let files = AcpiTables::new(&description).unwrap().firmware_files();
        let tables_at = placed.pieces[1].at.0;
        let bases = [("etc/acpi/tables", tables_at), ("etc/acpi/rsdp", 0xf_5000)];
        let made = as_firmware(&files, &bases);
        assert_eq!(made[0], *placed.pieces[1].bytes);
        assert_eq!(made[1], *placed.pieces[0].bytes);
        assert!(walk(&memory, placed.rsdp).len() >= 5);
    }
}

/// Disassembles a table with `iasl`, and compiles what that gives; the listing.
fn iasl(name: &str, table: &[u8]) -> String {
    let folder = std::env::temp_dir().join(format!("ratite-acpi-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("table.aml"), table).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("iasl")
            .args(arguments)
            .current_dir(&folder)
            .output();
        let output = output.unwrap_or_else(|error| {
            panic!("cannot run iasl: {error}; install the Debian package acpica-tools")
        });
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {text}");
        text
    };
    let said = run(&["-d", "table.aml"]);
    assert!(
        !said.contains("Invalid") && !said.contains("rror"),
        "{said}"
    );
    let listing = std::fs::read_to_string(folder.join("table.dsl")).unwrap();
    if name.starts_with("DSDT") {
        let said = run(&["-tc", "table.dsl"]);
        assert!(said.contains("0 Errors, 0 Warnings, 0 Remarks"), "{said}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
    listing
}

#[test]
fn iasl_understands_every_table() {
    for (board, description) in [("pc", pc(300)), ("microvm", microvm())] {
        let (memory, placed) = placed(&description);
        for (name, _, bytes) in walk(&memory, placed.rsdp) {
            let listing = iasl(&format!("{name}-{board}"), &bytes);
            let expected: &[&str] = match (name.as_str(), board) {
                ("FACP", "pc") => &[
                    "PM1A Event Block Address : 00000600",
                    "Use Platform Timer (V4) : 1",
                ],
                ("FACP", _) => &["Hardware Reduced (V5) : 1", "Address : 00000000FEA00201"],
                ("APIC", "pc") => &["Processor x2Apic ID : 0000012B", "Interrupt : 00000002"],
                ("HPET", _) => &["Hardware Block ID : 8086A201"],
                ("DSDT", "pc") => &["Device (S1F)", "Method (_E01, 0, Serialized)", "LNKD"],
                ("DSDT", _) => &[
                    "LNRO0005",
                    "Name (_S5, Package",
                    "\"ACPI0013\" /* Generic Event Device */",
                    "OperationRegion (EREG, SystemMemory, 0xFEA00000, 0x04)",
                    "Method (_EVT, 1, Serialized)",
                    "Notify (PWRB, 0x80)",
                    "\"PNP0C0C\") /* Power Button Device */",
                ],
                _ => &[],
            };
            for text in expected {
                assert!(listing.contains(text), "{name} of {board} lacks {text}");
            }
        }
    }
}

#[test]
fn what_cannot_be_described_is_refused() {
    let refused = AcpiTables::new(&pc(4097)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "4097 CPUs are too many for the machine's tables; 4096 is the most"
    );
    let mut description = pc(1);
    for (start, end) in [(5, 5), (9, 2)] {
        description.pci.as_mut().unwrap().high_memory = Some(start..end);
        assert!(AcpiTables::new(&description).is_err());
    }
}
