//! ELF images of 32 and 64 bits: what to load where, and the PVH note.

use std::ops::Range;

use crate::{BootImage, Error, MachineLayout};

/// The most program headers an image may have.
pub const MAX_PROGRAM_HEADERS: u16 = 256;

const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`, of the owner `Xen`.
const NOTE_PVH_ENTRY: u32 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_HEADER_BYTES: usize = 12;

/// A part of the image that is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment<'a> {
    bytes: &'a [u8],
    physical: u64,
    virtual_start: u64,
    memory_bytes: u64,
}

impl Segment<'_> {
    fn range(&self) -> Range<u64> {
        self.physical..self.physical.saturating_add(self.memory_bytes)
    }
}

/// An ELF image for x86, checked against its own size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ElfImage<'a> {
    pub(crate) is_64_bit: bool,
    pub(crate) pvh_entry: Option<u32>,
    entry: u64,
    segments: Vec<Segment<'a>>,
}

/// Reads fields whose place and size depend on the class.
struct Fields<'a> {
    file: &'a [u8],
    is_64_bit: bool,
}

impl<'a> Fields<'a> {
    fn number(&self, at: usize, bytes: usize) -> Result<u64, Error> {
        let end = at.checked_add(bytes);
        let field = end.and_then(|end| self.file.get(at..end));
        let field = field.ok_or(Error::Truncated("ELF headers"))?;
        Ok(field
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A field of four bytes in the small class at `small`, of eight at `large` in the other.
    fn address(&self, small: usize, large: usize) -> Result<u64, Error> {
        if self.is_64_bit {
            self.number(large, 8)
        } else {
            self.number(small, 4)
        }
    }

    fn part(&self, offset: u64, bytes: u64) -> Result<&'a [u8], Error> {
        let end = offset.checked_add(bytes);
        let place = |n: u64| usize::try_from(n).ok();
        end.and_then(|end| self.file.get(place(offset)?..place(end)?))
            .ok_or(Error::Truncated("ELF segments"))
    }
}

pub(crate) fn is_elf(file: &[u8]) -> bool {
    file.starts_with(&MAGIC)
}

impl<'a> ElfImage<'a> {
    /// Reads the headers.
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, Error> {
        let bad = |field, value: u64, hint| Error::BadField { field, value, hint };
        if !is_elf(file) {
            return Err(Error::UnknownKernel);
        }
        let ident: [u8; 6] = *file.first_chunk().ok_or(Error::Truncated("ELF header"))?;
        let [.., class, order] = ident;
        if !matches!(class, CLASS_32 | CLASS_64) || order != LITTLE_ENDIAN {
            let value = u64::from(class) << 8 | u64::from(order);
            return Err(bad("ELF class and byte order", value, "it is not for x86"));
        }
        let is_64_bit = class == CLASS_64;
        let fields = Fields { file, is_64_bit };
        let machine = fields.number(18, 2)?;
        if machine != u64::from(MACHINE_386) && machine != u64::from(MACHINE_X86_64) {
            let hint = "it was built for another processor; use one for x86";
            return Err(bad("ELF machine", machine, hint));
        }
        let (size_at, count_at) = if is_64_bit { (54, 56) } else { (42, 44) };
        let size = fields.number(size_at, 2)?;
        let count = fields.number(count_at, 2)?;
        if count > MAX_PROGRAM_HEADERS.into() {
            return Err(bad("number of program headers", count, "256 is the most"));
        }
        let smallest = if is_64_bit { 56 } else { 32 };
        if count > 0 && size < smallest {
            let hint = "it is smaller than a program header; the file is damaged";
            return Err(bad("program header size", size, hint));
        }
        let table = fields.address(28, 32)?;
        let mut image = Self {
            is_64_bit,
            pvh_entry: None,
            entry: fields.address(24, 24)?,
            segments: Vec::new(),
        };
        for index in 0..count {
            let at = table.checked_add(index * size);
            let header = at.ok_or(Error::Truncated("program headers"))?;
            image.add_header(&fields, header)?;
        }
        Ok(image)
    }

    fn add_header(&mut self, fields: &Fields<'a>, header: u64) -> Result<(), Error> {
        let truncated = Error::Truncated("program headers");
        let at = usize::try_from(header)
            .ok()
            .filter(|at| *at < fields.file.len());
        let at = at.ok_or(truncated)?;
        let kind = fields.number(at, 4)?;
        let offset = fields.address(at + 4, at + 8)?;
        let file_bytes = fields.address(at + 16, at + 32)?;
        if kind == u64::from(NOTE) {
            let notes = fields.part(offset, file_bytes)?;
            self.pvh_entry = self.pvh_entry.or(pvh_entry(notes));
        }
        let memory_bytes = fields.address(at + 20, at + 40)?;
        if kind != u64::from(LOAD) || memory_bytes == 0 {
            return Ok(());
        }
        if memory_bytes < file_bytes {
            return Err(Error::BadField {
                field: "segment size in memory",
                value: memory_bytes,
                hint: "it is less than in the file; the file is damaged",
            });
        }
        self.segments.push(Segment {
            bytes: fields.part(offset, file_bytes)?,
            physical: fields.address(at + 12, at + 24)?,
            virtual_start: fields.address(at + 8, at + 16)?,
            memory_bytes,
        });
        Ok(())
    }

    /// Checks that every segment lies in free RAM and on no other; gives the ranges they take.
    pub(crate) fn check_places(&self, layout: &MachineLayout) -> Result<Vec<Range<u64>>, Error> {
        if self.segments.is_empty() {
            return Err(Error::BadField {
                field: "number of segments to load",
                value: 0,
                hint: "there is nothing to run; use a linked image",
            });
        }
        let mut taken: Vec<Range<u64>> = self.segments.iter().map(Segment::range).collect();
        taken.sort_by_key(|range| range.start);
        for range in &taken {
            if !layout.is_free(range) {
                return Err(Error::FixedPlace {
                    what: "a segment of the kernel",
                    start: range.start,
                    end: range.end,
                });
            }
        }
        let pairs = taken.iter().zip(taken.iter().skip(1));
        for (one, next) in pairs {
            if next.start < one.end {
                return Err(Error::BadField {
                    field: "segment address",
                    value: next.start,
                    hint: "it overlaps another segment; the file is damaged",
                });
            }
        }
        Ok(taken)
    }

    /// The entry as a physical address: some images give a virtual one.
    pub(crate) fn physical_entry(&self) -> Result<u64, Error> {
        let entry = self.entry;
        if self
            .segments
            .iter()
            .any(|segment| segment.range().contains(&entry))
        {
            return Ok(entry);
        }
        self.segments
            .iter()
            .find_map(|segment| {
                let into = entry.checked_sub(segment.virtual_start)?;
                (into < segment.memory_bytes).then(|| segment.physical.checked_add(into))?
            })
            .ok_or(Error::BadField {
                field: "entry",
                value: entry,
                hint: "it lies in no segment; the file is damaged",
            })
    }

    /// Adds the segments to what is written.
    pub(crate) fn push_into(&self, image: &mut BootImage<'a>) {
        for segment in &self.segments {
            let zeros = segment.memory_bytes - segment.bytes.len() as u64;
            image.push_zeroed(segment.physical, segment.bytes, zeros);
        }
    }
}

/// The PVH entry, if the notes have one. Names and contents are padded to four bytes.
fn pvh_entry(notes: &[u8]) -> Option<u32> {
    let mut rest = notes;
    loop {
        let (head, body) = rest.split_at_checked(NOTE_HEADER_BYTES)?;
        let mut fields = head
            .chunks_exact(4)
            .filter_map(|chunk| chunk.first_chunk().copied().map(u32::from_le_bytes));
        let (name_bytes, bytes, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let padded = |bytes: u32| usize::try_from(bytes).ok()?.checked_next_multiple_of(4);
        let (name, body) = body.split_at_checked(padded(name_bytes)?)?;
        // The last note's padding may be missing.
        let length = usize::try_from(bytes).ok()?;
        let contents = body.get(..length)?;
        if kind == NOTE_PVH_ENTRY && name == NOTE_OWNER {
            return contents.first_chunk().copied().map(u32::from_le_bytes);
        }
        rest = body.get(padded(bytes)?..)?;
    }
}

#[cfg(test)]
pub(crate) mod tests;
