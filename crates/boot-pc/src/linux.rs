//! bzImage by the Linux boot protocol (the kernel's `Documentation/arch/x86/boot.rst` and
//! `zero-page.rst`), entered at its 32-bit or 64-bit entry. The 16-bit setup code never runs.

use std::ops::Range;

use crate::entry::{General, page_tables};
use crate::{BootImage, BootOptions, Error, MachineLayout, Start, low_memory};

mod params;
pub(crate) mod vmlinux;

use params::{BootParams, offset};

const SECTOR_BYTES: usize = 512;
/// `HdrS`.
const MAGIC: &[u8] = b"HdrS";
const BOOT_FLAG: u16 = 0xaa55;
/// "The kernel is at 1 MiB or above": a bzImage.
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
/// Where the 64-bit entry is, from the start of what was loaded.
const ENTRY_64: u64 = 0x200;
/// The oldest protocol that has a pointer to the command line.
const OLDEST_VERSION: u16 = 0x202;
/// Before 2.03, where the initial RAM disk must end.
const OLD_INITRD_MAX: u64 = 0x37ff_ffff;
/// Before 2.06, the length of the command line.
const OLD_COMMAND_LINE: usize = 255;
const MAX_ALIGNMENT: u64 = 1 << 30;
const FOUR_GIB: u64 = 1 << 32;

/// Which entry of a kernel to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryMode {
    /// The best one it has.
    #[default]
    Best,
    /// 32-bit protected mode: for CPUs without long mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// What a bzImage says of itself, with what older protocols imply filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinuxHeader {
    /// Version of the boot protocol, 0x20f being 2.15.
    pub version: u16,
    /// Bytes of the file before the protected-mode kernel.
    pub setup_bytes: usize,
    /// The end of the header, an offset in the file and in the boot parameters.
    pub header_end: usize,
    /// Whether there is a 64-bit entry.
    pub has_64_bit_entry: bool,
    /// Whether the initial RAM disk may lie above 4 GiB.
    pub high_initrd: bool,
    /// The address that the initial RAM disk must end at or below.
    pub initrd_max: u64,
    /// Bytes of command line it takes, without the zero.
    pub command_line_max: usize,
    /// Whether it runs elsewhere than at `preferred`.
    pub relocatable: bool,
    /// What a relocatable kernel is moved up to a multiple of.
    pub alignment: u64,
    /// Where it runs, or wants to run.
    pub preferred: u64,
    /// Bytes it needs from where it runs.
    pub init_bytes: u64,
}

fn bytes_at<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], Error> {
    file.get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(Error::Truncated("setup header"))
}

fn word(file: &[u8], at: usize) -> Result<u16, Error> {
    bytes_at(file, at).map(u16::from_le_bytes)
}

fn dword(file: &[u8], at: usize) -> Result<u64, Error> {
    bytes_at(file, at).map(|bytes| u64::from(u32::from_le_bytes(bytes)))
}

fn byte(file: &[u8], at: usize) -> Result<u8, Error> {
    bytes_at(file, at).map(u8::from_le_bytes)
}

/// Whether a file has the marks of a Linux kernel.
pub(crate) fn is_bzimage(file: &[u8]) -> bool {
    let magic = file.get(offset::MAGIC..offset::MAGIC + MAGIC.len());
    magic == Some(MAGIC) && word(file, offset::BOOT_FLAG) == Ok(BOOT_FLAG)
}

impl LinuxHeader {
    /// Reads and checks the header of a bzImage.
    ///
    /// # Errors
    /// It is none, or too old, or says what cannot be.
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        if !is_bzimage(file) {
            return Err(Error::UnknownKernel);
        }
        let version = word(file, offset::VERSION)?;
        let bad = |field, value: u64, hint| Error::BadField { field, value, hint };
        if version < OLDEST_VERSION {
            let hint = "boot protocols before 2.02 are not supported; use a newer kernel";
            return Err(bad("boot protocol version", version.into(), hint));
        }
        let loadflags = byte(file, offset::LOADFLAGS)?;
        if loadflags & LOADED_HIGH == 0 {
            let hint = "it is a zImage, to be loaded below 1 MiB; build a bzImage";
            return Err(bad("loadflags", loadflags.into(), hint));
        }
        let sectors = match byte(file, offset::SETUP_SECTS)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let setup_bytes = (sectors + 1) * SECTOR_BYTES;
        if file.len() <= setup_bytes {
            return Err(Error::Truncated("protected-mode kernel"));
        }
        let header_end = offset::MAGIC + usize::from(byte(file, offset::JUMP)?);
        if header_end > offset::HEADER_END {
            let hint = "the header does not fit into the boot parameters; use another kernel";
            return Err(bad("header end", header_end as u64, hint));
        }
        let kernel_bytes = (file.len() - setup_bytes) as u64;
        Self::fields(file, version, setup_bytes, header_end, kernel_bytes)
    }

    fn fields(
        file: &[u8],
        version: u16,
        setup_bytes: usize,
        header_end: usize,
        kernel_bytes: u64,
    ) -> Result<Self, Error> {
        // A field counts if the version has it and the header reaches it.
        let has = |since: u16, at: usize| version >= since && at < header_end;
        let xloadflags = if has(0x20c, offset::XLOADFLAGS) {
            word(file, offset::XLOADFLAGS)?
        } else {
            0
        };
        let initrd_max = if has(0x203, offset::INITRD_ADDR_MAX) {
            dword(file, offset::INITRD_ADDR_MAX)?
        } else {
            OLD_INITRD_MAX
        };
        let command_line_max = if has(0x206, offset::CMDLINE_SIZE) {
            usize::try_from(dword(file, offset::CMDLINE_SIZE)?).unwrap_or(usize::MAX)
        } else {
            OLD_COMMAND_LINE
        };
        let relocatable = has(0x205, offset::RELOCATABLE) && byte(file, offset::RELOCATABLE)? != 0;
        let alignment = match relocatable {
            true => dword(file, offset::KERNEL_ALIGNMENT)?,
            false => 1,
        };
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            let hint = "it must be a power of two, at most 1 GiB; the file is damaged";
            return Err(Error::BadField {
                field: "kernel_alignment",
                value: alignment,
                hint,
            });
        }
        let (preferred, init_bytes) = if has(0x20a, offset::INIT_SIZE) {
            let preferred = u64::from_le_bytes(bytes_at(file, offset::PREF_ADDRESS)?);
            (preferred, dword(file, offset::INIT_SIZE)?)
        } else {
            (low_memory::HIGH_START, 0)
        };
        Ok(Self {
            version,
            setup_bytes,
            header_end,
            has_64_bit_entry: xloadflags & XLF_KERNEL_64 != 0,
            high_initrd: xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
            initrd_max,
            command_line_max: command_line_max.min(low_memory::MAX_COMMAND_LINE_BYTES),
            relocatable,
            alignment,
            preferred,
            init_bytes: init_bytes.max(kernel_bytes),
        })
    }

    /// Where the kernel is loaded, and what it takes: the file's bytes, and where it runs.
    fn place(&self, file_bytes: u64, layout: &MachineLayout) -> Result<(u64, Range<u64>), Error> {
        let runs_at = |load: u64| {
            let start = if self.relocatable {
                load.max(self.preferred)
                    .checked_next_multiple_of(self.alignment)?
            } else {
                self.preferred
            };
            Some(start..start.checked_add(self.init_bytes)?)
        };
        let fits = |range: &Range<u64>| range.end <= FOUR_GIB && layout.is_free(range);
        let low = low_memory::HIGH_START;
        // What can run anywhere above where it wants to is loaded where it will run.
        let load = if self.relocatable {
            layout.find_low(self.preferred, self.init_bytes, self.alignment)
        } else {
            Some(low)
        };
        if let Some(load) = load {
            let loaded = load..load.saturating_add(file_bytes);
            if let Some(runs) = runs_at(load)
                && fits(&runs)
                && fits(&loaded)
            {
                return Ok((load, load.min(runs.start)..loaded.end.max(runs.end)));
            }
        }
        let start = self.preferred.max(low);
        Err(Error::FixedPlace {
            what: "the kernel",
            start,
            end: start.saturating_add(self.init_bytes),
        })
    }

    /// Where the initial RAM disk lies: as high as it may.
    fn initrd_place(
        &self,
        bytes: u64,
        long_mode: bool,
        layout: &MachineLayout,
        kernel: &Range<u64>,
    ) -> Result<u64, Error> {
        let taken = [kernel.clone()];
        let what = "the initial RAM disk";
        let limit = self.initrd_max.saturating_add(1).min(FOUR_GIB);
        let low = layout.find_top(what, bytes, limit, &taken);
        if low.is_err() && self.high_initrd && long_mode {
            return layout.find_top(what, bytes, u64::MAX, &taken).or(low);
        }
        low
    }
}

/// Whether to use the 64-bit entry.
fn is_64_bit(header: &LinuxHeader, mode: EntryMode) -> Result<bool, Error> {
    match mode {
        EntryMode::Best => Ok(header.has_64_bit_entry),
        EntryMode::Bits32 => Ok(false),
        EntryMode::Bits64 if header.has_64_bit_entry => Ok(true),
        EntryMode::Bits64 => Err(Error::NoEntry(64)),
    }
}

pub(crate) fn check_command_line(text: &[u8], max: usize) -> Result<(), Error> {
    let bytes = text.len();
    if bytes > max {
        return Err(Error::CommandLineTooLong { bytes, max });
    }
    Ok(())
}

fn no_modules(options: &BootOptions) -> Result<(), Error> {
    if options.modules.is_empty() {
        return Ok(());
    }
    Err(Error::Modules)
}

pub(crate) fn load<'a>(
    file: &'a [u8],
    options: &BootOptions<'a>,
    layout: &MachineLayout,
) -> Result<BootImage<'a>, Error> {
    no_modules(options)?;
    let header = LinuxHeader::parse(file)?;
    let long_mode = is_64_bit(&header, options.entry)?;
    check_command_line(options.command_line, header.command_line_max)?;
    let kernel = file.get(header.setup_bytes..).unwrap_or_default();
    let (load, taken) = header.place(kernel.len() as u64, layout)?;
    let setup = file.get(offset::SETUP_SECTS..header.header_end);
    let mut params = BootParams::new(setup.unwrap_or_default(), options, layout);
    let mut initrd = None;
    if let Some(bytes) = options.initrd.filter(|bytes| !bytes.is_empty()) {
        let size = bytes.len() as u64;
        let at = header.initrd_place(size, long_mode, layout, &taken)?;
        params.initrd(at, size);
        initrd = Some((at, bytes));
    }
    let entry = u32::try_from(load).map_err(|_| Error::NoEntry(32))?;
    params.put(offset::CODE32_START, &entry.to_le_bytes());
    let start = if long_mode {
        let rsi = (General::Rsi, low_memory::BOOT_PARAMS);
        Start::long(load + ENTRY_64, &[rsi])
    } else {
        let esi = u32::try_from(low_memory::BOOT_PARAMS).unwrap_or(0);
        Start::protected(entry, &[(General::Rsi, esi)])
    };
    let mut image = BootImage::new(start);
    if long_mode {
        image.push(low_memory::PAGE_TABLES, page_tables());
    }
    image.push(low_memory::BOOT_PARAMS, params.into_bytes());
    image.push_command_line(options.command_line);
    image.push(load, kernel);
    if let Some((at, bytes)) = initrd {
        image.push(at, bytes);
    }
    Ok(image)
}

#[cfg(test)]
mod tests;
