//! Big-endian numbers and strings from a peer's bytes, without slicing by hand.

use crate::{MAX_STRING_BYTES, WireError};

/// Reads a message from its beginning to its end.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// What is being read, for errors.
    place: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(place: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, place }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(WireError::BadLength(self.place))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(WireError::BadLength(self.place))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a number that has to be `expected`.
    pub(crate) fn magic64(&mut self, expected: u64) -> Result<(), WireError> {
        let found = self.u64()?;
        self.check_magic(found, expected)
    }

    /// Likewise.
    pub(crate) fn magic32(&mut self, expected: u32) -> Result<(), WireError> {
        let found = self.u32()?;
        self.check_magic(found.into(), expected.into())
    }

    fn check_magic(&self, found: u64, expected: u64) -> Result<(), WireError> {
        if found == expected {
            return Ok(());
        }
        Err(WireError::BadMagic {
            place: self.place,
            found,
            expected,
        })
    }

    /// A string of so many bytes.
    pub(crate) fn string(&mut self, count: usize) -> Result<&'a str, WireError> {
        if count > MAX_STRING_BYTES {
            return Err(WireError::BadString(self.place));
        }
        let bytes = self.take(count)?;
        let text = std::str::from_utf8(bytes).map_err(|_| WireError::BadString(self.place))?;
        if text.contains('\0') {
            Err(WireError::BadString(self.place))
        } else {
            Ok(text)
        }
    }

    /// A string with its length, 32 bits, before it.
    pub(crate) fn counted_string(&mut self) -> Result<&'a str, WireError> {
        let count = self.u32()?;
        self.string(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// All that is left, as a string.
    pub(crate) fn last_string(mut self) -> Result<&'a str, WireError> {
        self.string(self.rest.len())
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::BadLength(self.place))
        }
    }
}

/// The fields' bytes one after the other. Whether they add up to `N` is settled when a message's
/// layout is written down, and each layout has a test.
#[inline]
pub(crate) fn concat<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let mut rest = &mut out[..];
    for field in fields {
        let whole = std::mem::take(&mut rest);
        let Some((to, left)) = whole.split_at_mut_checked(field.len()) else {
            debug_assert!(false, "the fields are longer than the message");
            break;
        };
        to.copy_from_slice(field);
        rest = left;
    }
    debug_assert!(rest.is_empty(), "the fields are shorter than the message");
    out
}
