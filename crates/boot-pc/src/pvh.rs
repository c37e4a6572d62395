//! PVH: ELF images with a note that says where their 32-bit entry is (Xen's
//! `docs/misc/pvh.pandoc` and the public header `arch-x86/hvm/start_info.h`).

use crate::elf::ElfImage;
use crate::entry::General;
use crate::{BootImage, BootOptions, Error, MachineLayout, Start, handover, low_memory};

const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;
const START_INFO_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;

pub(crate) fn load<'a>(
    elf: &ElfImage<'a>,
    options: &BootOptions<'a>,
    layout: &MachineLayout,
) -> Result<BootImage<'a>, Error> {
    let entry = elf.pvh_entry.ok_or(Error::NoEntry(32))?;
    let taken = elf.check_places(layout)?;
    let info = u32::try_from(low_memory::START_INFO).unwrap_or(0);
    let mut image = BootImage::new(Start::protected(entry, &[(General::Rbx, info)]));
    elf.push_into(&mut image);
    let modules = handover::place(&mut image, options, layout, taken)?;
    let map = layout.e820();
    let modules_at = low_memory::START_INFO + START_INFO_BYTES;
    let map_at = modules_at + MODULE_BYTES * modules.len() as u64;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    for field in [MAGIC, VERSION, 0, count(modules.len())] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    let rsdp = options.rsdp.map_or(0, |at| at.0);
    for field in [modules_at, low_memory::COMMAND_LINE, rsdp, map_at] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for field in [count(map.len()), 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for module in modules {
        for field in [module.start, module.bytes, module.text, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
    }
    for entry in map {
        bytes.extend_from_slice(&entry.to_bytes());
        bytes.extend_from_slice(&[0; 4]);
    }
    image.push(low_memory::START_INFO, bytes);
    Ok(image)
}

#[cfg(test)]
mod tests;
