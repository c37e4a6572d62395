//! What lies where in the first megabyte when a kernel is started without firmware.
//!
//! | address | what |
//! |---|---|
//! | 0x0000 | free: vectors and data of a BIOS that is not there |
//! | 0x1000 | the descriptor table of the [start state](crate::Start) |
//! | 0x2000 | PVH start info or multiboot information, with their lists |
//! | 0x7000 | Linux boot parameters |
//! | 0x8000 | free, for guests that want a fixed place (the embedded guest does) |
//! | 0x1_0000 | page tables of the 64-bit entry: six pages |
//! | 0x2_0000 | the command line |
//! | 0x9_fc00 | end of usable memory; where an EBDA would be |
//! | 0xe_0000 | ACPI root pointer, SMBIOS anchor and tables: read by scanning |

/// The global descriptor table.
pub const GDT: u64 = 0x1000;
/// PVH start info or multiboot information, up to [`BOOT_PARAMS`].
pub const START_INFO: u64 = 0x2000;
/// The "zero page" of Linux, 4 KiB.
pub const BOOT_PARAMS: u64 = 0x7000;
/// PML4, PDPT and four page directories, one page each.
pub const PAGE_TABLES: u64 = 0x1_0000;
/// The command line with its zero.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The most bytes of a command line, without its zero, whatever a kernel says it takes.
pub const MAX_COMMAND_LINE_BYTES: usize = 0xffff;
/// The end of usable low memory.
pub const LOW_END: u64 = 0x9_fc00;
/// Where tables that operating systems scan for may lie, up to 1 MiB.
pub const SCANNED: u64 = 0xe_0000;
/// The end of the first megabyte.
pub const HIGH_START: u64 = 0x10_0000;
