//! The boot parameters ("zero page"), for every kernel that is entered the Linux way.

use crate::layout::{E820_ENTRY_BYTES, MAX_E820_ENTRIES};
use crate::{BootOptions, MachineLayout, low_memory};

/// Offsets in the file and, from `SETUP_SECTS` on, in the boot parameters.
pub(super) mod offset {
    pub const ACPI_RSDP: usize = 0x70;
    pub const EXT_RAMDISK_IMAGE: usize = 0xc0;
    pub const EXT_RAMDISK_SIZE: usize = 0xc4;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const VID_MODE: usize = 0x1fa;
    pub const BOOT_FLAG: usize = 0x1fe;
    /// The second byte of the jump over the header says where the header ends.
    pub const JUMP: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// Where the room for the header ends in the boot parameters.
    pub const HEADER_END: usize = 0x290;
    pub const E820_TABLE: usize = 0x2d0;
}

const BOOT_PARAMS_BYTES: usize = 4096;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const VIDEO_NORMAL: u16 = 0xffff;

/// The "zero page".
pub(super) struct BootParams(Vec<u8>);

impl BootParams {
    /// Parameters with this setup header (from [`offset::SETUP_SECTS`] on), the command line at
    /// its place, the memory map and the ACPI root pointer.
    pub(super) fn new(setup: &[u8], options: &BootOptions, layout: &MachineLayout) -> Self {
        let mut params = Self(vec![0; BOOT_PARAMS_BYTES]);
        params.put(offset::SETUP_SECTS, setup);
        params.put(offset::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        params.put(offset::VID_MODE, &VIDEO_NORMAL.to_le_bytes());
        let command_line = u32::try_from(low_memory::COMMAND_LINE).unwrap_or(0);
        params.put(offset::CMD_LINE_PTR, &command_line.to_le_bytes());
        let rsdp = options.rsdp.map_or(0, |at| at.0);
        params.put(offset::ACPI_RSDP, &rsdp.to_le_bytes());
        params.memory_map(layout);
        params
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// An address or size of eight bytes, its halves apart.
    fn put_halves(&mut self, low: usize, high: usize, value: u64) {
        let [a, b, c, d, high_half @ ..] = value.to_le_bytes();
        self.put(low, &[a, b, c, d]);
        self.put(high, &high_half);
    }

    /// Where the initial RAM disk is.
    pub(super) fn initrd(&mut self, at: u64, bytes: u64) {
        self.put_halves(offset::RAMDISK_IMAGE, offset::EXT_RAMDISK_IMAGE, at);
        self.put_halves(offset::RAMDISK_SIZE, offset::EXT_RAMDISK_SIZE, bytes);
    }

    fn memory_map(&mut self, layout: &MachineLayout) {
        let map = layout.e820();
        let mut count = 0_u8;
        for (index, entry) in map.iter().take(MAX_E820_ENTRIES).enumerate() {
            let at = offset::E820_TABLE + index * E820_ENTRY_BYTES;
            self.put(at, &entry.to_bytes());
            count = count.saturating_add(1);
        }
        self.put(offset::E820_ENTRIES, &[count]);
    }
}
