//! Multiboot 0.6.96: ELF images, and images of any format that say themselves where they go
//! (the "a.out kludge").

use crate::elf::{self, ElfImage};
use crate::entry::General;
use crate::{BootImage, BootOptions, E820Kind, Error, MachineLayout, Start, handover, low_memory};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies within the first bytes of the file (3.1).
const SEARCHED_BYTES: usize = 8192;
/// Flags that a loader must know or refuse: bits 0 to 15. Known are page-aligned modules (always
/// so here), memory information (always given) and a wish for a video mode (a preference).
const MUST_KNOW: u32 = 0xffff;
const KNOWN: u32 = 7;
const HAS_ADDRESSES: u32 = 1 << 16;

/// What the information has: memory sizes, command line, modules, memory map, loader's name.
const INFO_FLAGS: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const INFO_BYTES: usize = 116;
const MODULE_BYTES: u64 = 16;
const MAP_ENTRY_BYTES: u32 = 20;
const LOADER_NAME: &[u8] = b"Ratite\0";

struct Header<'a> {
    /// Offset in the file.
    at: u64,
    flags: u32,
    /// The header from its magic on.
    bytes: &'a [u8],
}

impl<'a> Header<'a> {
    fn find(file: &'a [u8]) -> Option<Self> {
        let searched = file.get(..SEARCHED_BYTES.min(file.len()))?;
        (0_u64..)
            .step_by(4)
            .zip(searched.chunks_exact(4))
            .find_map(|(at, _)| {
                let bytes = file.get(usize::try_from(at).ok()?..)?;
                let header = Self {
                    at,
                    flags: field(bytes, 1)?,
                    bytes,
                };
                let sum = HEADER_MAGIC
                    .wrapping_add(header.flags)
                    .wrapping_add(field(bytes, 2)?);
                (field(bytes, 0)? == HEADER_MAGIC && sum == 0).then_some(header)
            })
    }
}

/// The header's field of this number.
fn field(bytes: &[u8], number: usize) -> Option<u32> {
    let at = number * 4;
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u32::from_le_bytes)
}

pub(crate) fn has_header(file: &[u8]) -> bool {
    Header::find(file).is_some()
}

/// Where an image without ELF headers goes (3.1.3).
struct Placed<'a> {
    at: u64,
    bytes: &'a [u8],
    zeros: u64,
    entry: u32,
}

fn by_addresses<'a>(file: &'a [u8], header: &Header) -> Result<Placed<'a>, Error> {
    let get = |number| field(header.bytes, number).ok_or(Error::Truncated("multiboot header"));
    let (header_at, start, end) = (get(3)?, get(4)?, get(5)?);
    let (bss_end, entry) = (get(6)?, get(7)?);
    let bad = |field, value: u32, hint| Error::BadField {
        field,
        value: value.into(),
        hint,
    };
    let into = u64::from(header_at).checked_sub(start.into());
    let offset = into.and_then(|into| header.at.checked_sub(into));
    let Some(offset) = offset else {
        let hint = "what is to be loaded begins before the file; the header is damaged";
        return Err(bad("multiboot load_addr", start, hint));
    };
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = file.get(offset..).unwrap_or_default();
    let bytes = if end == 0 {
        Some(rest)
    } else {
        let length = end.checked_sub(start).and_then(|n| usize::try_from(n).ok());
        length.and_then(|length| rest.get(..length))
    };
    let bytes = bytes.ok_or(Error::Truncated("multiboot load_end_addr"))?;
    let loaded_end = u64::from(start).saturating_add(bytes.len() as u64);
    let zeros = match bss_end {
        0 => 0,
        end => u64::from(end).checked_sub(loaded_end).ok_or_else(|| {
            let hint = "it is below the end of what is loaded; the header is damaged";
            bad("multiboot bss_end_addr", end, hint)
        })?,
    };
    Ok(Placed {
        at: start.into(),
        bytes,
        zeros,
        entry,
    })
}

pub(crate) fn load<'a>(
    file: &'a [u8],
    options: &BootOptions<'a>,
    layout: &MachineLayout,
) -> Result<BootImage<'a>, Error> {
    let header = Header::find(file).ok_or(Error::UnknownKernel)?;
    if header.flags & MUST_KNOW & !KNOWN != 0 {
        return Err(Error::BadField {
            field: "multiboot flags",
            value: header.flags.into(),
            hint: "it asks for what multiboot 0.6.96 does not have; use another kernel",
        });
    }
    let enter = |entry: u32| {
        let info = u32::try_from(low_memory::START_INFO).unwrap_or(0);
        let registers = [(General::Rax, LOADER_MAGIC), (General::Rbx, info)];
        BootImage::new(Start::protected(entry, &registers))
    };
    let (mut image, taken) = if header.flags & HAS_ADDRESSES != 0 {
        let placed = by_addresses(file, &header)?;
        let mut image = enter(placed.entry);
        let end = placed.at + placed.bytes.len() as u64 + placed.zeros;
        let range = placed.at..end;
        if !layout.is_free(&range) {
            return Err(Error::FixedPlace {
                what: "the kernel",
                start: range.start,
                end: range.end,
            });
        }
        image.push_zeroed(placed.at, placed.bytes, placed.zeros);
        (image, Vec::from([range]))
    } else if elf::is_elf(file) {
        let elf = ElfImage::parse(file)?;
        let taken = elf.check_places(layout)?;
        let entry = u32::try_from(elf.physical_entry()?).map_err(|_| Error::NoEntry(32))?;
        let mut image = enter(entry);
        elf.push_into(&mut image);
        (image, taken)
    } else {
        return Err(Error::BadField {
            field: "multiboot flags",
            value: header.flags.into(),
            hint: "it is no ELF image and has no addresses (bit 16); use another kernel",
        });
    };
    let modules = handover::place(&mut image, options, layout, taken)?;
    image.push(low_memory::START_INFO, information(&modules, layout));
    Ok(image)
}

/// The information structure (3.3) with its lists behind it.
fn information(modules: &[handover::PlacedModule], layout: &MachineLayout) -> Vec<u8> {
    let dword = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let name_at = low_memory::START_INFO + INFO_BYTES as u64;
    let modules_at = name_at + LOADER_NAME.len() as u64 + 1;
    let map_at = modules_at + MODULE_BYTES * modules.len() as u64;
    let map = layout.e820();
    let upper = map
        .iter()
        .find(|entry| entry.start == low_memory::HIGH_START && entry.kind == E820Kind::Usable);
    let map_bytes = map.len() as u64 * u64::from(MAP_ENTRY_BYTES + 4);
    let mut info = [0_u32; INFO_BYTES / 4];
    let fields = [
        (0, INFO_FLAGS),
        (1, dword(low_memory::LOW_END / 1024)),
        (2, dword(upper.map_or(0, |entry| entry.bytes / 1024))),
        (4, dword(low_memory::COMMAND_LINE)),
        (5, dword(modules.len() as u64)),
        (6, dword(modules_at)),
        (11, dword(map_bytes)),
        (12, dword(map_at)),
        (16, dword(name_at)),
    ];
    for (number, value) in fields {
        if let Some(field) = info.get_mut(number) {
            *field = value;
        }
    }
    let mut bytes: Vec<u8> = info.iter().flat_map(|field| field.to_le_bytes()).collect();
    bytes.extend_from_slice(LOADER_NAME);
    bytes.push(0);
    for module in modules {
        let end = module.start.saturating_add(module.bytes);
        for field in [module.start, end, module.text, 0] {
            bytes.extend_from_slice(&dword(field).to_le_bytes());
        }
    }
    for entry in map {
        bytes.extend_from_slice(&MAP_ENTRY_BYTES.to_le_bytes());
        bytes.extend_from_slice(&entry.to_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests;
