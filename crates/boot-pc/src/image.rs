//! Pieces of memory, and how they get there.

use std::borrow::Cow;
use std::ops::Range;

use guest_memory::{GuestMemory, GuestPhysAddr, MemoryError};

use crate::{Start, low_memory};

/// Bytes for one place in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where they go.
    pub at: GuestPhysAddr,
    /// The bytes; large ones are those of the file that was given.
    pub bytes: Cow<'a, [u8]>,
    /// Zeros that follow the bytes.
    pub zeros: u64,
}

impl Piece<'_> {
    /// The addresses that are written.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let bytes = (self.bytes.len() as u64).saturating_add(self.zeros);
        self.at.0..self.at.0.saturating_add(bytes)
    }

    /// Writes it.
    ///
    /// # Errors
    /// There is no memory at some of its addresses.
    pub fn write_to(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        memory.load_image(self.at, &self.bytes)?;
        let mut at = self.at.wrapping_add(self.bytes.len() as u64);
        let mut left = self.zeros;
        while left > 0 {
            let now = left.min(ZEROS.len() as u64);
            let chunk = usize::try_from(now).ok().and_then(|now| ZEROS.get(..now));
            memory.load_image(at, chunk.unwrap_or_default())?;
            at = at.wrapping_add(now);
            left -= now;
        }
        Ok(())
    }
}

/// All that a kernel finds, and how it is entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootImage<'a> {
    /// What to write, in the order of addresses.
    pub pieces: Vec<Piece<'a>>,
    /// How the boot CPU starts.
    pub start: Start,
}

impl<'a> BootImage<'a> {
    pub(crate) fn new(start: Start) -> Self {
        let gdt = start.gdt();
        let mut image = Self {
            pieces: Vec::new(),
            start,
        };
        image.push(low_memory::GDT, gdt);
        image
    }

    pub(crate) fn push(&mut self, at: u64, bytes: impl Into<Cow<'a, [u8]>>) {
        self.push_zeroed(at, bytes, 0);
    }

    pub(crate) fn push_zeroed(&mut self, at: u64, bytes: impl Into<Cow<'a, [u8]>>, zeros: u64) {
        let piece = Piece {
            at: GuestPhysAddr(at),
            bytes: bytes.into(),
            zeros,
        };
        let index = self.pieces.partition_point(|other| other.at <= piece.at);
        self.pieces.insert(index, piece);
    }

    /// The command line at its place, with its zero.
    pub(crate) fn push_command_line(&mut self, text: &[u8]) {
        let bytes: Vec<u8> = text.iter().copied().chain([0]).collect();
        self.push(low_memory::COMMAND_LINE, bytes);
    }

    /// Writes all pieces, into RAM or ROM.
    ///
    /// # Errors
    /// There is no memory where the layout says there is.
    pub fn write_to(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        self.pieces
            .iter()
            .try_for_each(|piece| piece.write_to(memory))
    }
}
