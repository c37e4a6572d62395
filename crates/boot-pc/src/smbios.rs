//! SMBIOS 3 tables (DMTF DSP0134): who made this machine, and what is in it.
//!
//! | type | structure | how many |
//! |---|---|---|
//! | 0, 1, 3 | firmware, system, chassis | one |
//! | 4 | processor | one for each socket |
//! | 16, 17 | memory array, memory device | one; one for each 16 GiB |
//! | 19 | memory array mapped address | one for each range of RAM |
//! | 32, 127 | boot status, end | one |
//!
//! As with ACPI there are two forms: [`SmbiosTables::firmware_files`] and [`SmbiosTables::place`].

use guest_memory::GuestPhysAddr;

use crate::{E820Kind, Error, MachineLayout, Piece, low_memory};

/// The most bytes of one text.
pub const MAX_TEXT_BYTES: usize = 1024;
/// The most sockets.
pub const MAX_SOCKETS: u16 = 4096;

/// Where the anchor lies: operating systems look here, in steps of 16 bytes.
const ANCHOR: u64 = 0xf_0000;
const ANCHOR_BYTES: u8 = 24;
/// The version of the specification that the structures follow.
const VERSION: (u8, u8) = (3, 0);
const NO_HANDLE: u16 = 0xfffe;
const NO_CACHE: u16 = 0xffff;
const UNKNOWN_WIDTH: u16 = 0xffff;
/// The largest memory device that is made: 16 GiB.
const DEVICE_BYTES: u64 = 16 << 30;
const MIB: u64 = 1 << 20;
/// From here on, a size in MiB is told by the extended field.
const EXTENDED_MIB: u64 = 0x7fff;
const EXTENDED_KIB: u64 = 0x8000_0000;
const EXTENDED_ADDRESS: u32 = 0xffff_ffff;
/// "BIOS characteristics are not supported", and of the second extension byte: this is a virtual
/// machine.
const CHARACTERISTICS: u64 = 8;
const VIRTUAL_MACHINE: u8 = 0x10;
const NO_CONTROLLER: u8 = 0xff;

/// Texts of the firmware (type 0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BiosTexts {
    /// Who made it.
    pub vendor: String,
    /// Which one.
    pub version: String,
    /// When, as mm/dd/yyyy.
    pub date: String,
}

/// Texts of the system (type 1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SystemTexts {
    /// Who made it.
    pub manufacturer: String,
    /// What it is.
    pub product: String,
    /// Which one.
    pub version: String,
    /// Its serial number.
    pub serial: String,
    /// Its stock-keeping unit.
    pub sku: String,
    /// Its family.
    pub family: String,
}

/// Texts of the chassis (type 3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChassisTexts {
    /// Who made it.
    pub manufacturer: String,
    /// Which one.
    pub version: String,
    /// Its serial number.
    pub serial: String,
    /// Its asset tag.
    pub asset: String,
    /// Its stock-keeping unit.
    pub sku: String,
}

/// The processors (type 4), all alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processors {
    /// Who made them.
    pub manufacturer: String,
    /// Which ones.
    pub version: String,
    /// EAX and EDX (high half) of CPUID 1.
    pub signature: u64,
    /// How many sockets.
    pub sockets: u16,
    /// Cores in each.
    pub cores: u16,
    /// Threads in each socket.
    pub threads: u16,
}

/// All that the tables say about a machine, besides its RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmbiosDescription {
    /// The firmware.
    pub bios: BiosTexts,
    /// The system.
    pub system: SystemTexts,
    /// The system's UUID, its bytes in the order in which they are written.
    pub uuid: [u8; 16],
    /// The chassis.
    pub chassis: ChassisTexts,
    /// The processors.
    pub processors: Processors,
    /// Who made the memory.
    pub memory_manufacturer: String,
}

impl SmbiosDescription {
    /// A machine of this make and model, with these processors.
    #[must_use]
    pub fn new(manufacturer: &str, product: &str, version: &str, sockets: u16) -> Self {
        let text = str::to_owned;
        Self {
            bios: BiosTexts {
                vendor: text(manufacturer),
                version: text(version),
                date: text("01/01/2026"),
            },
            system: SystemTexts {
                manufacturer: text(manufacturer),
                product: text(product),
                version: text(version),
                ..SystemTexts::default()
            },
            uuid: [0; 16],
            chassis: ChassisTexts {
                manufacturer: text(manufacturer),
                version: text(version),
                ..ChassisTexts::default()
            },
            processors: Processors {
                manufacturer: text(manufacturer),
                version: text(version),
                signature: 0,
                sockets,
                cores: 1,
                threads: 1,
            },
            memory_manufacturer: text(manufacturer),
        }
    }
}

/// A structure while it is written: the header, fields, and the texts that they number.
struct Structure {
    fields: Vec<u8>,
    texts: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self {
            fields: vec![kind, 0, low, high],
            texts: Vec::new(),
            count: 0,
        }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.fields.extend_from_slice(bytes);
        self
    }

    fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// The number of a text; 0 stands for none.
    fn text(mut self, text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(self.byte(0));
        }
        if text.len() > MAX_TEXT_BYTES || text.contains('\0') {
            return Err(Error::SmbiosText(text.chars().take(40).collect()));
        }
        self.texts.extend_from_slice(text.as_bytes());
        self.texts.push(0);
        self.count = self.count.saturating_add(1);
        let number = self.count;
        Ok(self.byte(number))
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u8::try_from(self.fields.len()).unwrap_or(u8::MAX);
        if let Some(place) = self.fields.get_mut(1) {
            *place = length;
        }
        if self.texts.is_empty() {
            self.texts.push(0);
        }
        self.texts.push(0);
        self.fields.append(&mut self.texts);
        self.fields
    }
}

/// The tables of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmbiosTables {
    tables: Vec<u8>,
}

impl SmbiosTables {
    /// Makes the tables.
    ///
    /// # Errors
    /// A text is longer than [`MAX_TEXT_BYTES`] or has a zero in it, or there are too many
    /// sockets.
    pub fn new(description: &SmbiosDescription, layout: &MachineLayout) -> Result<Self, Error> {
        let sockets = description.processors.sockets;
        if sockets > MAX_SOCKETS {
            return Err(Error::TooMany {
                what: "sockets",
                count: sockets.into(),
                max: MAX_SOCKETS.into(),
            });
        }
        let mut tables = Vec::new();
        tables.extend(bios(&description.bios)?);
        tables.extend(system(&description.system, &description.uuid)?);
        tables.extend(chassis(&description.chassis)?);
        for socket in 0..sockets {
            tables.extend(processor(&description.processors, socket)?);
        }
        tables.extend(memory(&description.memory_manufacturer, layout)?);
        let boot = Structure::new(32, 0x2000).bytes(&[0; 6]).byte(0);
        tables.extend(boot.finish());
        tables.extend(Structure::new(127, 0x7f00).finish());
        Ok(Self { tables })
    }

    /// The entry point for tables at this address.
    fn anchor(&self, tables_at: u64) -> Vec<u8> {
        let size = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        let mut anchor = b"_SM3_".to_vec();
        anchor.extend_from_slice(&[0, ANCHOR_BYTES, VERSION.0, VERSION.1, 0, 1, 0]);
        anchor.extend_from_slice(&size.to_le_bytes());
        anchor.extend_from_slice(&tables_at.to_le_bytes());
        let sum = anchor.iter().copied().fold(0_u8, u8::wrapping_add);
        if let Some(place) = anchor.get_mut(5) {
            *place = sum.wrapping_neg();
        }
        anchor
    }

    /// The fw_cfg files by which firmware gets the tables; it places them and corrects the anchor.
    #[must_use]
    pub fn firmware_files(&self) -> [(&'static str, Vec<u8>); 2] {
        [
            ("etc/smbios/smbios-anchor", self.anchor(0)),
            ("etc/smbios/smbios-tables", self.tables.clone()),
        ]
    }

    /// Finds a place at the top of low RAM, reserves it in the layout, and puts the anchor where
    /// operating systems look.
    ///
    /// # Errors
    /// No room.
    pub fn place(&self, layout: &mut MachineLayout) -> Result<Vec<Piece<'static>>, Error> {
        let at = layout.reserve_top(self.tables.len() as u64, E820Kind::Reserved)?;
        let piece = |at, bytes: Vec<u8>| Piece {
            at,
            bytes: bytes.into(),
            zeros: 0,
        };
        Ok(vec![
            piece(GuestPhysAddr(ANCHOR), self.anchor(at.0)),
            piece(at, self.tables.clone()),
        ])
    }
}

const _: () = assert!(ANCHOR >= low_memory::SCANNED && ANCHOR < low_memory::HIGH_START);

fn bios(texts: &BiosTexts) -> Result<Vec<u8>, Error> {
    Ok(Structure::new(0, 0)
        .text(&texts.vendor)?
        .text(&texts.version)?
        .word(0xe800)
        .text(&texts.date)?
        .byte(0)
        .qword(CHARACTERISTICS)
        .bytes(&[0, VIRTUAL_MACHINE, 0, 0, NO_CONTROLLER, NO_CONTROLLER])
        .finish())
}

fn system(texts: &SystemTexts, uuid: &[u8; 16]) -> Result<Vec<u8>, Error> {
    const WAKE_POWER_SWITCH: u8 = 6;
    // The first three fields of a UUID are little-endian here.
    let [a, b, c, d, e, f, g, h, rest @ ..] = *uuid;
    Ok(Structure::new(1, 0x100)
        .text(&texts.manufacturer)?
        .text(&texts.product)?
        .text(&texts.version)?
        .text(&texts.serial)?
        .bytes(&[d, c, b, a, f, e, h, g])
        .bytes(&rest)
        .byte(WAKE_POWER_SWITCH)
        .text(&texts.sku)?
        .text(&texts.family)?
        .finish())
}

fn chassis(texts: &ChassisTexts) -> Result<Vec<u8>, Error> {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    Ok(Structure::new(3, 0x300)
        .text(&texts.manufacturer)?
        .byte(OTHER)
        .text(&texts.version)?
        .text(&texts.serial)?
        .text(&texts.asset)?
        .bytes(&[SAFE, SAFE, SAFE, UNKNOWN])
        .dword(0)
        .bytes(&[0, 0, 0, 0])
        .text(&texts.sku)?
        .finish())
}

fn processor(texts: &Processors, socket: u16) -> Result<Vec<u8>, Error> {
    const CENTRAL: u8 = 3;
    const OTHER: u8 = 1;
    const POPULATED_ENABLED: u8 = 0x41;
    const CAN_64_BITS: u16 = 4;
    // Bytes say 255 where the words have to be looked at.
    let small = |count: u16| u8::try_from(count).unwrap_or(u8::MAX);
    Ok(Structure::new(4, 0x400_u16.saturating_add(socket))
        .text(&format!("CPU {socket}"))?
        .bytes(&[CENTRAL, OTHER])
        .text(&texts.manufacturer)?
        .qword(texts.signature)
        .text(&texts.version)?
        .byte(0)
        .bytes(&[0; 6])
        .bytes(&[POPULATED_ENABLED, OTHER])
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .bytes(&[0, 0, 0])
        .bytes(&[small(texts.cores), small(texts.cores), small(texts.threads)])
        .word(CAN_64_BITS)
        .word(OTHER.into())
        .word(texts.cores)
        .word(texts.cores)
        .word(texts.threads)
        .finish())
}

/// The array, its devices, and where they are mapped.
fn memory(manufacturer: &str, layout: &MachineLayout) -> Result<Vec<u8>, Error> {
    const ARRAY: u16 = 0x1600;
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    let total: u64 = layout.ram().iter().map(|(_, bytes)| bytes).sum();
    let devices = u16::try_from(total.div_ceil(DEVICE_BYTES)).unwrap_or(u16::MAX);
    let capacity_kib = (total / 1024).min(EXTENDED_KIB);
    let mut all = Structure::new(16, ARRAY)
        .bytes(&[SYSTEM_BOARD, SYSTEM_MEMORY, NO_CORRECTION])
        .dword(u32::try_from(capacity_kib).unwrap_or(u32::MAX))
        .word(NO_HANDLE)
        .word(devices)
        .qword(if capacity_kib == EXTENDED_KIB {
            total
        } else {
            0
        })
        .finish();
    for index in 0..devices {
        let left = total - u64::from(index) * DEVICE_BYTES;
        all.extend(device(manufacturer, ARRAY, index, left.min(DEVICE_BYTES))?);
    }
    for (handle, (start, bytes)) in (0x1900_u16..).zip(layout.ram()) {
        let last = start.0 + bytes - 1;
        let (first_kib, last_kib) = (start.0 / 1024, last / 1024);
        let mapped = Structure::new(19, handle);
        // The small fields reach up to 4 TiB.
        let mapped = match (u32::try_from(first_kib), u32::try_from(last_kib)) {
            (Ok(first), Ok(last_kib)) if last_kib != EXTENDED_ADDRESS => mapped
                .dword(first)
                .dword(last_kib)
                .word(ARRAY)
                .byte(1)
                .qword(0)
                .qword(0),
            _ => mapped
                .dword(EXTENDED_ADDRESS)
                .dword(EXTENDED_ADDRESS)
                .word(ARRAY)
                .byte(1)
                .qword(start.0)
                .qword(last),
        };
        all.extend(mapped.finish());
    }
    Ok(all)
}

fn device(manufacturer: &str, array: u16, index: u16, bytes: u64) -> Result<Vec<u8>, Error> {
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const OTHER_DETAIL: u16 = 2;
    const IN_KIB: u16 = 0x8000;
    let mib = bytes / MIB;
    // Sizes that are not whole MiB are told in KiB.
    let (size, extended) = if mib >= EXTENDED_MIB {
        (0x7fff, u32::try_from(mib).unwrap_or(u32::MAX))
    } else if bytes.is_multiple_of(MIB) {
        (u16::try_from(mib).unwrap_or(0), 0)
    } else {
        match u16::try_from(bytes / 1024) {
            Ok(kib) if kib < IN_KIB => (kib | IN_KIB, 0),
            _ => (u16::try_from(mib).unwrap_or(0), 0),
        }
    };
    Ok(Structure::new(17, 0x1700_u16.saturating_add(index))
        .word(array)
        .word(NO_HANDLE)
        .word(UNKNOWN_WIDTH)
        .word(UNKNOWN_WIDTH)
        .word(size)
        .bytes(&[DIMM, 0])
        .text(&format!("DIMM {index}"))?
        .byte(0)
        .byte(RAM)
        .word(OTHER_DETAIL)
        .word(0)
        .text(manufacturer)?
        .bytes(&[0, 0, 0, 0])
        .dword(extended)
        .bytes(&[0; 8])
        .finish())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn description() -> SmbiosDescription {
        let mut description = SmbiosDescription::new("Ratite", "Test PC", "v1", 2);
        description.uuid = *b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef";
        description.system.serial = "S-77".into();
        description.system.sku = "SKU".into();
        description.system.family = "Birds".into();
        description.chassis.asset = "Tag".into();
        description.processors.cores = 300;
        description.processors.threads = 600;
        description
    }

    /// What `dmidecode` reads from the tables.
    fn dmidecode(anchor: &[u8], tables: &[u8]) -> String {
        // A dump has the tables at 32; its anchor says so, and its sum is right.
        let mut dump = anchor.to_vec();
        dump[16] = 32;
        dump[5] = dump[5].wrapping_sub(32);
        dump.resize(32, 0);
        dump.extend_from_slice(tables);
        let path = std::env::temp_dir().join(format!(
            "ratite-smbios-{}-{}",
            std::process::id(),
            tables.len()
        ));
        std::fs::write(&path, dump).unwrap();
        let output = Command::new("dmidecode")
            .arg("--from-dump")
            .arg(&path)
            .output();
        let output = output.unwrap_or_else(|error| {
            panic!("cannot run dmidecode: {error}; install the Debian package dmidecode")
        });
        std::fs::remove_file(path).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{said}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn dmidecode_reads_every_structure() {
        let layout = MachineLayout::new(36 << 30).unwrap();
        let tables = SmbiosTables::new(&description(), &layout).unwrap();
        let [(_, anchor), (_, bytes)] = tables.firmware_files();
        assert_eq!(
            anchor
                .iter()
                .fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        let text = dmidecode(&anchor, &bytes);
        for line in [
            "SMBIOS 3.0.0 present.",
            "Product Name: Test PC",
            "Serial Number: S-77",
            "UUID: 01234567-89ab-cdef-0123-456789abcdef",
            "Family: Birds",
            "Asset Tag: Tag",
            "System is a virtual machine",
            "Socket Designation: CPU 1",
            "Core Count: 300",
            "Thread Count: 600",
            "Maximum Capacity: 36 GB",
            "Number Of Devices: 3",
            "Size: 16 GB",
            "Size: 4 GB",
            "Locator: DIMM 2",
            "Starting Address: 0x00100000000",
            "Ending Address: 0x0093FFFFFFF",
            "Status: No errors detected",
            "End Of Table",
        ] {
            assert!(text.contains(line), "{line} is missing:\n{text}");
        }
        for bad in ["BROKEN", "TRUNCATED", "BAD INDEX", "<OUT OF SPEC>", "Wrong"] {
            assert!(!text.contains(bad), "{text}");
        }
    }

    #[test]
    fn odd_sizes_are_told_as_well_as_they_can_be() {
        for (bytes, size) in [
            (10 << 20 | 4096, "10244 kB"),
            (MIB, "1 MB"),
            (300 << 20 | 4096, "300 MB"),
        ] {
            let layout = MachineLayout::new(bytes).unwrap();
            let tables = SmbiosTables::new(&description(), &layout).unwrap();
            let [(_, anchor), (_, bytes)] = tables.firmware_files();
            let text = dmidecode(&anchor, &bytes);
            assert!(text.contains(&format!("Size: {size}")), "{size}:\n{text}");
        }
    }

    #[test]
    fn placed_tables_are_reserved() {
        let mut layout = MachineLayout::new(16 << 20).unwrap();
        let tables = SmbiosTables::new(&description(), &layout).unwrap();
        let pieces = tables.place(&mut layout).unwrap();
        assert_eq!(pieces[0].at.0, 0xf_0000);
        assert_eq!(pieces[0].bytes[16..24], pieces[1].at.0.to_le_bytes());
        assert!(!layout.is_free(&pieces[1].range()));
    }

    #[test]
    fn texts_are_limited() {
        let layout = MachineLayout::new(16 << 20).unwrap();
        for text in ["a\0b".to_owned(), "x".repeat(1025)] {
            let mut description = description();
            description.system.product = text;
            let refused = SmbiosTables::new(&description, &layout).unwrap_err();
            assert!(refused.to_string().contains("-smbios"), "{refused}");
        }
        let mut description = description();
        description.processors.sockets = 5000;
        assert!(SmbiosTables::new(&description, &layout).is_err());
    }
}
