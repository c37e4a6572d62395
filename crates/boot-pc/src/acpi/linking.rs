//! Tables in files, the pointers between them, and the checksums over both.
//!
//! A command of the loader is 128 bytes: its number in four, then
//!
//! | number | fields |
//! |---|---|
//! | 1, allocate | file name (56 bytes), alignment (4), zone (1: high or 2: 0xf_0000) |
//! | 2, add pointer | name of the file to change (56), name of the file pointed to (56), offset (4), size (1) |
//! | 3, add checksum | file name (56), offset of the sum (4), start (4), length (4) |

use acpi_tables::sdt::Sdt;

const OEM_ID: [u8; 6] = *b"RATITE";
const OEM_TABLE_ID: [u8; 8] = *b"RATITEPC";
const OEM_REVISION: u32 = 1;
/// Bytes of a table's header, and where its checksum is.
const HEADER_BYTES: u32 = 36;
const HEADER_CHECKSUM: u64 = 9;
/// What every table begins at a multiple of: the FACS needs it.
const ALIGNMENT: usize = 64;

const COMMAND_BYTES: usize = 128;
const NAME_BYTES: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;

/// ACPI 6.3, 5.2.5.3.
const RSDP_BYTES: usize = 36;
const RSDP_RSDT: u64 = 16;
const RSDP_XSDT: u64 = 24;

/// One of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    Tables,
    Rsdp,
}

impl File {
    fn name(self) -> &'static str {
        match self {
            Self::Tables => "etc/acpi/tables",
            Self::Rsdp => "etc/acpi/rsdp",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Command {
    /// A field of `file` that holds an offset in the tables becomes an address.
    Pointer { file: File, at: u64, bytes: u8 },
    /// A byte of `file` makes the sum of a range zero.
    Checksum {
        file: File,
        at: u64,
        start: u64,
        bytes: u64,
    },
}

/// A place that holds the offset of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pointer {
    pub(super) at: u64,
    pub(super) bytes: u8,
}

/// The files as they are before anybody knows their addresses: pointers are offsets in the
/// tables, sums are zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Linker {
    tables: Vec<u8>,
    rsdp: Vec<u8>,
    pointers: Vec<Command>,
    checksums: Vec<Command>,
}

impl Linker {
    pub(super) fn tables_bytes(&self) -> u64 {
        self.tables.len() as u64
    }

    /// Adds what has no header and sum of the usual kind; gives its offset.
    pub(super) fn add(&mut self, bytes: &[u8]) -> u64 {
        let at = self.tables.len().next_multiple_of(ALIGNMENT);
        self.tables.resize(at, 0);
        self.tables.extend_from_slice(bytes);
        at as u64
    }

    /// Adds a table; gives its offset.
    pub(super) fn add_table(&mut self, signature: &[u8; 4], revision: u8, body: &[u8]) -> u64 {
        let mut table = Sdt::new(
            *signature,
            HEADER_BYTES,
            revision,
            OEM_ID,
            OEM_TABLE_ID,
            OEM_REVISION,
        );
        table.append_slice(body);
        let bytes = table.len() as u64;
        let start = self.add(table.as_slice());
        let sum = start + HEADER_CHECKSUM;
        put(&mut self.tables, sum, &[0]);
        self.checksums.push(Command::Checksum {
            file: File::Tables,
            at: sum,
            start,
            bytes,
        });
        start
    }

    /// Lets a field of a table point to another table.
    pub(super) fn point(&mut self, table: u64, field: Pointer, target: u64) {
        let (at, bytes) = (table + field.at, field.bytes);
        let value = target.to_le_bytes();
        put(
            &mut self.tables,
            at,
            value.get(..usize::from(bytes)).unwrap_or_default(),
        );
        self.pointers.push(Command::Pointer {
            file: File::Tables,
            at,
            bytes,
        });
    }

    /// Adds the RSDT and XSDT that list these tables, and the RSDP.
    pub(super) fn add_roots(&mut self, listed: &[u64]) {
        let mut root = |signature, bytes: u8| {
            let body = vec![0; listed.len() * usize::from(bytes)];
            let table = self.add_table(signature, 1, &body);
            for (index, target) in (0_u64..).zip(listed) {
                let at = u64::from(HEADER_BYTES) + index * u64::from(bytes);
                self.point(table, Pointer { at, bytes }, *target);
            }
            table
        };
        let rsdt = root(b"RSDT", 4);
        let xsdt = root(b"XSDT", 8);
        self.rsdp = b"RSD PTR \0".to_vec();
        self.rsdp.extend_from_slice(&OEM_ID);
        self.rsdp.push(2);
        self.rsdp.extend(rsdt.to_le_bytes().into_iter().take(4));
        self.rsdp.extend_from_slice(&36_u32.to_le_bytes());
        self.rsdp.extend_from_slice(&xsdt.to_le_bytes());
        self.rsdp.resize(RSDP_BYTES, 0);
        for (at, bytes) in [(RSDP_RSDT, 4), (RSDP_XSDT, 8)] {
            let file = File::Rsdp;
            self.pointers.push(Command::Pointer { file, at, bytes });
        }
        // The old sum is over the old part, the new one over all, with the old sum in it.
        for (at, bytes) in [(8, 20), (32, 36)] {
            self.checksums.push(Command::Checksum {
                file: File::Rsdp,
                at,
                start: 0,
                bytes,
            });
        }
    }

    pub(super) fn firmware_files(&self) -> [(&'static str, Vec<u8>); 3] {
        let allocations = [
            (File::Tables, ALIGNMENT as u32, ZONE_HIGH),
            (File::Rsdp, 16, ZONE_FSEG),
        ];
        let mut script = Vec::new();
        for (file, alignment, zone) in allocations {
            let mut command = LoaderCommand::new(ALLOCATE);
            command.name(file);
            command.0.extend_from_slice(&alignment.to_le_bytes());
            command.0.push(zone);
            script.extend(command.finish());
        }
        for command in self.pointers.iter().chain(&self.checksums) {
            script.extend(command.to_bytes());
        }
        [
            (File::Tables.name(), self.tables.clone()),
            (File::Rsdp.name(), self.rsdp.clone()),
            ("etc/table-loader", script),
        ]
    }

    /// Carries out the commands for these addresses; gives the tables and the root pointer.
    pub(super) fn linked(&self, tables_at: u64) -> (Vec<u8>, Vec<u8>) {
        let (mut tables, mut rsdp) = (self.tables.clone(), self.rsdp.clone());
        for command in self.pointers.iter().chain(&self.checksums) {
            let (Command::Pointer { file, .. } | Command::Checksum { file, .. }) = command;
            let bytes = match file {
                File::Tables => &mut tables,
                File::Rsdp => &mut rsdp,
            };
            command.carry_out(bytes, tables_at);
        }
        (tables, rsdp)
    }
}

fn put(bytes: &mut [u8], at: u64, value: &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    for (to, from) in bytes.iter_mut().skip(at).zip(value) {
        *to = *from;
    }
}

/// The bytes of a range.
fn part(bytes: &[u8], at: u64, length: u64) -> impl Iterator<Item = u8> {
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    bytes.iter().skip(count(at)).take(count(length)).copied()
}

impl Command {
    fn carry_out(&self, file: &mut [u8], tables_at: u64) {
        match self {
            Self::Pointer { at, bytes, .. } => {
                let mut value = [0; 8];
                for (to, from) in value.iter_mut().zip(part(file, *at, (*bytes).into())) {
                    *to = from;
                }
                let value = u64::from_le_bytes(value).wrapping_add(tables_at);
                let value = value.to_le_bytes();
                let value = value.get(..usize::from(*bytes)).unwrap_or_default();
                put(file, *at, value);
            }
            Self::Checksum {
                at, start, bytes, ..
            } => {
                let sum = part(file, *start, *bytes).fold(0_u8, u8::wrapping_add);
                put(file, *at, &[sum.wrapping_neg()]);
            }
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let dword = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        match self {
            Self::Pointer { file, at, bytes } => {
                let mut command = LoaderCommand::new(ADD_POINTER);
                command.name(*file);
                command.name(File::Tables);
                command.0.extend_from_slice(&dword(*at));
                command.0.push(*bytes);
                command.finish()
            }
            Self::Checksum {
                file,
                at,
                start,
                bytes,
            } => {
                let mut command = LoaderCommand::new(ADD_CHECKSUM);
                command.name(*file);
                for value in [at, start, bytes] {
                    command.0.extend_from_slice(&dword(*value));
                }
                command.finish()
            }
        }
    }
}

/// A command of the loader while it is written.
struct LoaderCommand(Vec<u8>);

impl LoaderCommand {
    fn new(number: u32) -> Self {
        Self(number.to_le_bytes().to_vec())
    }

    fn name(&mut self, file: File) {
        let end = self.0.len() + NAME_BYTES;
        self.0.extend_from_slice(file.name().as_bytes());
        self.0.resize(end, 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(COMMAND_BYTES, 0);
        self.0
    }
}
