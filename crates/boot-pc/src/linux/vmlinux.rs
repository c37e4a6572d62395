//! An uncompressed Linux kernel (`vmlinux`), or another ELF image of 64 bits that is entered as
//! one: in 64-bit mode, with RSI pointing to boot parameters.

use super::params::{BootParams, offset};
use super::{BOOT_FLAG, LOADED_HIGH, MAGIC, check_command_line, no_modules};
use crate::elf::ElfImage;
use crate::entry::{General, page_tables};
use crate::{BootImage, BootOptions, Error, MachineLayout, Start, low_memory};

/// The protocol that the made-up header says: the first with a 64-bit entry.
const VERSION: u16 = 0x20c;
/// The end of the RAM disk that every kernel of 64 bits takes.
const INITRD_END: u64 = 0x8000_0000;

pub(crate) fn load<'a>(
    elf: &ElfImage<'a>,
    options: &BootOptions<'a>,
    layout: &MachineLayout,
) -> Result<BootImage<'a>, Error> {
    no_modules(options)?;
    check_command_line(options.command_line, low_memory::MAX_COMMAND_LINE_BYTES)?;
    let mut taken = elf.check_places(layout)?;
    let entry = elf.physical_entry()?;
    let mut params = BootParams::new(&[], options, layout);
    params.put(offset::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
    params.put(offset::MAGIC, MAGIC);
    params.put(offset::VERSION, &VERSION.to_le_bytes());
    params.put(offset::LOADFLAGS, &[LOADED_HIGH]);
    let mut image = BootImage::new(Start::long(
        entry,
        &[(General::Rsi, low_memory::BOOT_PARAMS)],
    ));
    if let Some(bytes) = options.initrd.filter(|bytes| !bytes.is_empty()) {
        let size = bytes.len() as u64;
        let at = layout.find_top("the initial RAM disk", size, INITRD_END, &taken)?;
        taken.push(at..at.saturating_add(size));
        params.initrd(at, size);
        image.push(at, bytes);
    }
    image.push(low_memory::PAGE_TABLES, page_tables());
    image.push(low_memory::BOOT_PARAMS, params.into_bytes());
    image.push_command_line(options.command_line);
    elf.push_into(&mut image);
    Ok(image)
}
