//! What a PC finds in memory when it starts, if nobody's firmware puts it there.
//!
//! # What it is
//!
//! Pure functions: the bytes of files and descriptions of the machine go in; out come pieces of
//! memory ([`BootImage`]) and the state in which the boot CPU starts ([`Start`]). No files, no
//! threads, no devices. A board reads the files, calls [`load`], writes the image with
//! [`BootImage::write_to`], sets the boot CPU to [`Start::state`], and does the last two again
//! whenever the machine is reset.
//!
//! ```
//! use boot_pc::{BootOptions, MachineLayout, load};
//! # fn boot(kernel: &[u8], memory: &guest_memory::GuestMemory) -> Result<(), Box<dyn std::error::Error>> {
//! let layout = MachineLayout::new(128 << 20)?;
//! let options = BootOptions { command_line: b"console=ttyS0", ..BootOptions::default() };
//! let image = load(kernel, &options, &layout)?;
//! image.write_to(memory)?;
//! let state = &image.start.state; // for Vcpu::set_state
//! # Ok(()) }
//! ```
//!
//! ACPI ([`acpi`]) and SMBIOS ([`smbios`]) tables reserve their places in the layout, so they come
//! first; the root pointer goes into [`BootOptions::rsdp`].
//!
//! # What else firmware would have done
//!
//! Kernels that are started here count on more than memory. A board without firmware also
//!
//! * has memory from 0xe_0000 to 1 MiB, for the root pointer and the SMBIOS anchor;
//! * programs the PIIX4's PMBASE (configuration 0x40 of 00:01.3) with what the tables say, and lets
//!   it be decoded (0x80, bit 0);
//! * lets the boot CPU's local APIC pass the 8259s' interrupts (LINT0 as ExtINT), as the MADT's
//!   "PC/AT compatible" promises;
//! * wakes from S3 by starting the boot CPU in real mode at the waking vector, offset 12 of
//!   [`acpi::PlacedAcpi::facs`]: CS is the vector / 16, IP its low four bits.
//!
//! PCI memory and interrupts need not be assigned: Linux and the embedded guest do it themselves.
//!
//! # Invariants
//!
//! * Kernels, initial RAM disks and command lines are a user's files, and may be hostile: what is
//!   wrong with them is an [`Error`] that says what to do; memory use is bounded by the size of
//!   what was given ([`MAX_FILE_BYTES`]), since pieces borrow from it.
//! * The pieces of an image never overlap, and lie in RAM that the layout does not reserve.
//! * The same input gives the same bytes.
//!
//! # Where a new thing goes
//!
//! A kernel format: a module beside `linux`, with a line in [`KernelFormat`]. A fixed address in
//! low memory: the table in [`low_memory`].

pub mod acpi;
mod elf;
mod entry;
mod handover;
mod image;
mod layout;
mod linux;
pub mod low_memory;
mod multiboot;
mod pvh;
pub mod smbios;

use elf::ElfImage;
pub use elf::MAX_PROGRAM_HEADERS;
pub use entry::Start;
pub use image::{BootImage, Piece};
pub use layout::{
    E820Entry, E820Kind, MAX_E820_ENTRIES, MAX_RESERVED, MachineLayout, PCI_HOLE_START,
};
pub use linux::{EntryMode, LinuxHeader};

/// The most bytes a kernel, an initial RAM disk or a module may have: 4 GiB less one, what their
/// size fields can say.
pub const MAX_FILE_BYTES: u64 = 0xffff_ffff;

/// The most modules.
pub const MAX_MODULES: usize = 64;

/// What can be wrong with what is to be booted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// RAM of a size that cannot be.
    #[error("{0} bytes of RAM: must be whole pages of 4096 bytes, from 1 MiB to 1 TiB; change -m")]
    RamSize(u64),
    /// A text that SMBIOS cannot hold.
    #[error("SMBIOS text '{0}': it must have at most 1024 bytes and no zero byte; change -smbios")]
    SmbiosText(String),
    /// More ranges than a memory map has room for.
    #[error("more than {MAX_RESERVED} reserved ranges; join neighbours")]
    TooManyReserved,
    /// Modules for a kernel that takes none.
    #[error("a Linux kernel takes one initial RAM disk and no other modules; name one file")]
    Modules,
    /// Too many modules.
    #[error("{0} modules; {MAX_MODULES} is the most")]
    TooManyModules(usize),
    /// Too many of something for ACPI or SMBIOS tables.
    #[error("{count} {what} are too many for the machine's tables; {max} is the most")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A range that must have something in it.
    #[error("{0} is an empty range; give it an end above its start")]
    EmptyRange(&'static str),
    /// A reserved range that is empty, wraps, or overlaps another one.
    #[error("reserved range of {bytes:#x} bytes at {start:#x} is empty, wraps or overlaps another")]
    Reserved {
        /// Its first address.
        start: u64,
        /// Its size.
        bytes: u64,
    },
    /// No format that is known.
    #[error(
        "the kernel is neither a bzImage, nor an ELF image with a PVH note or a 64-bit entry, nor \
         a multiboot image; give one of these to -kernel"
    )]
    UnknownKernel,
    /// The file ends too early.
    #[error("the kernel ends before its {0}; the file is cut off, fetch it again")]
    Truncated(&'static str),
    /// A field of the kernel says what it must not.
    #[error("the kernel's {field} is {value:#x}: {hint}")]
    BadField {
        /// Which.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What is wrong with that.
        hint: &'static str,
    },
    /// The kernel cannot be entered the way that was asked for.
    #[error("the kernel has no {0}-bit entry; use the other one")]
    NoEntry(u8),
    /// A file that is too large.
    #[error("{what} has {bytes} bytes; {max} is the most")]
    FileTooLarge {
        /// Which.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The command line is too long.
    #[error("the command line has {bytes} bytes; this kernel takes {max}: shorten -append")]
    CommandLineTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A zero byte in the command line.
    #[error("the command line has a zero byte at {0}; remove it")]
    CommandLineZero(usize),
    /// Something does not fit into the machine's memory.
    #[error(
        "{what} needs {bytes} bytes of free RAM below {limit:#x}; give the machine more with -m"
    )]
    NoRoom {
        /// What.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The first address it must not reach.
        limit: u64,
    },
    /// Something that cannot be moved lies where there is no RAM for it.
    #[error(
        "{what} must lie at {start:#x} to {end:#x}, where there is no free RAM; give the machine \
         more with -m, or use a relocatable kernel"
    )]
    FixedPlace {
        /// What.
        what: &'static str,
        /// Its first address.
        start: u64,
        /// The address behind it.
        end: u64,
    },
}

/// What a kernel image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// A Linux bzImage, boot protocol 2.02 or later.
    BzImage,
    /// An image with a multiboot header.
    Multiboot,
    /// An ELF image with a PVH note.
    Pvh,
    /// An ELF image of 64 bits, entered as Linux is: `vmlinux`.
    Elf64,
}

/// A file for a kernel, with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Its text: the file's name and arguments, say.
    pub text: &'a [u8],
}

/// What is handed to a kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootOptions<'a> {
    /// The command line, without a zero at its end.
    pub command_line: &'a [u8],
    /// The initial RAM disk. A PVH or multiboot kernel gets it as its first module.
    pub initrd: Option<&'a [u8]>,
    /// More modules, for PVH and multiboot kernels.
    pub modules: &'a [Module<'a>],
    /// Which entry to use where a kernel has several.
    pub entry: EntryMode,
    /// Where the ACPI root pointer lies, for kernels that are told.
    pub rsdp: Option<guest_memory::GuestPhysAddr>,
}

/// What a file is, if it is a kernel that [`load`] knows. A kernel with several headers is the
/// first of: bzImage, multiboot, PVH, ELF of 64 bits.
#[must_use]
pub fn kernel_format(kernel: &[u8]) -> Option<KernelFormat> {
    if linux::is_bzimage(kernel) {
        return Some(KernelFormat::BzImage);
    }
    if multiboot::has_header(kernel) {
        return Some(KernelFormat::Multiboot);
    }
    let elf = ElfImage::parse(kernel).ok()?;
    match (elf.pvh_entry, elf.is_64_bit) {
        (Some(_), _) => Some(KernelFormat::Pvh),
        (None, true) => Some(KernelFormat::Elf64),
        (None, false) => None,
    }
}

/// Places a kernel and what it is handed into memory.
///
/// # Errors
/// The kernel is of no known format or damaged, or something does not fit into the machine.
pub fn load<'a>(
    kernel: &'a [u8],
    options: &BootOptions<'a>,
    layout: &MachineLayout,
) -> Result<BootImage<'a>, Error> {
    check_file("the kernel", kernel)?;
    let files = options.modules.iter().map(|module| module.bytes);
    for file in options.initrd.into_iter().chain(files) {
        check_file("the initial RAM disk", file)?;
    }
    if let Some(at) = options.command_line.iter().position(|byte| *byte == 0) {
        return Err(Error::CommandLineZero(at));
    }
    if linux::is_bzimage(kernel) {
        return linux::load(kernel, options, layout);
    }
    if multiboot::has_header(kernel) {
        if options.entry == EntryMode::Bits64 {
            return Err(Error::NoEntry(64));
        }
        return multiboot::load(kernel, options, layout);
    }
    let elf = ElfImage::parse(kernel)?;
    match options.entry {
        EntryMode::Bits64 if elf.is_64_bit => linux::vmlinux::load(&elf, options, layout),
        EntryMode::Bits64 => Err(Error::NoEntry(64)),
        EntryMode::Best if elf.pvh_entry.is_none() && elf.is_64_bit => {
            linux::vmlinux::load(&elf, options, layout)
        }
        EntryMode::Best if elf.pvh_entry.is_none() => Err(Error::UnknownKernel),
        EntryMode::Best | EntryMode::Bits32 => pvh::load(&elf, options, layout),
    }
}

fn check_file(what: &'static str, file: &[u8]) -> Result<(), Error> {
    let bytes = file.len() as u64;
    if bytes > MAX_FILE_BYTES {
        let max = MAX_FILE_BYTES;
        return Err(Error::FileTooLarge { what, bytes, max });
    }
    Ok(())
}
