//! Registers: accesses of 1, 2, 4 or 8 bytes at an offset.

use std::sync::Arc;

/// The width of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Word,
    /// Four bytes.
    Dword,
    /// Eight bytes.
    Qword,
}

impl Width {
    /// All widths, narrow ones first.
    pub const ALL: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

    /// The width of so many bytes, if there is one.
    pub fn from_bytes(bytes: u64) -> Option<Width> {
        Width::ALL.into_iter().find(|width| width.bytes() == bytes)
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Width::Byte => 1,
            Width::Word => 2,
            Width::Dword => 4,
            Width::Qword => 8,
        }
    }

    /// All ones of this width: what an access that nobody answers reads.
    pub fn ones(self) -> u64 {
        match self {
            Width::Byte => 0xff,
            Width::Word => 0xffff,
            Width::Dword => 0xffff_ffff,
            Width::Qword => u64::MAX,
        }
    }

    /// Half as wide; `None` for a byte.
    pub fn half(self) -> Option<Width> {
        match self {
            Width::Byte => None,
            Width::Word => Some(Width::Byte),
            Width::Dword => Some(Width::Word),
            Width::Qword => Some(Width::Dword),
        }
    }
}

/// Registers in a range of ports or memory addresses.
///
/// Any vCPU thread may call, at any time, with any offset and width: what the device does not decode reads as all ones
/// (or as its datasheet says) and ignores writes. Values are little-endian; bits above the width are zero in reads and
/// ignored in writes.
pub trait IoHandler: Send + Sync {
    /// Reads at `offset` from the start of the range.
    fn read(&self, offset: u64, width: Width) -> u64;

    /// Writes at `offset` from the start of the range.
    fn write(&self, offset: u64, width: Width, value: u64);
}

/// A device with several ranges of registers.
pub trait IoParts: Send + Sync + 'static {
    /// Names a range.
    type Part: Copy + Send + Sync + 'static;

    /// Reads in one of the ranges.
    fn read_part(&self, part: Self::Part, offset: u64, width: Width) -> u64;

    /// Writes in one of the ranges.
    fn write_part(&self, part: Self::Part, offset: u64, width: Width, value: u64);
}

/// One range of a device that has several.
pub struct IoPart<D: IoParts> {
    device: Arc<D>,
    part: D::Part,
}

impl<D: IoParts> IoPart<D> {
    /// The handler of this range.
    pub fn new(device: Arc<D>, part: D::Part) -> Arc<IoPart<D>> {
        Arc::new(IoPart { device, part })
    }
}

impl<D: IoParts> IoHandler for IoPart<D> {
    fn read(&self, offset: u64, width: Width) -> u64 {
        self.device.read_part(self.part, offset, width)
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.device.write_part(self.part, offset, width, value);
    }
}

/// Reads registers of one byte each: a wider access is one access per byte, lowest first.
pub fn read_bytes(offset: u64, width: Width, mut read: impl FnMut(u64) -> u8) -> u64 {
    (0..width.bytes()).fold(0, |value, index| {
        value | u64::from(read(offset.wrapping_add(index))) << (8 * index)
    })
}

/// Writes registers of one byte each: a wider access is one access per byte, lowest first.
pub fn write_bytes(offset: u64, width: Width, value: u64, mut write: impl FnMut(u64, u8)) {
    let bytes = value.to_le_bytes();
    for (index, byte) in (0..width.bytes()).zip(bytes) {
        write(offset.wrapping_add(index), byte);
    }
}

/// Reads registers of four bytes each at multiples of four; narrower accesses see their part, wider ones two registers.
pub fn read_register(offset: u64, width: Width, mut read: impl FnMut(u64) -> u32) -> u64 {
    let mut value = 0_u128;
    let first = offset & !3;
    for index in 0..3 {
        let at = first.wrapping_add(4 * index);
        if at < offset.saturating_add(width.bytes()) {
            value |= u128::from(read(at)) << (32 * index);
        }
    }
    let shifted = value >> (8 * (offset - first));
    u64::try_from(shifted & u128::from(width.ones())).unwrap_or(0)
}

/// The value a register of four bytes at `register` has after `value` is written at `offset`, and which of its bits the
/// write touched; `None` if the access does not touch it.
pub fn merge_register(
    register: u64,
    old: u32,
    offset: u64,
    width: Width,
    value: u64,
) -> Option<(u32, u32)> {
    let end = offset.checked_add(width.bytes())?;
    if end <= register || offset >= register.checked_add(4)? {
        return None;
    }
    let place = |bits: u64| -> u32 {
        let bits = u128::from(bits);
        let moved = if offset >= register {
            bits << (8 * (offset - register))
        } else {
            bits >> (8 * (register - offset))
        };
        u32::try_from(moved & 0xffff_ffff).unwrap_or(0)
    };
    let touched = place(width.ones());
    Some((
        old & !touched | place(value & width.ones()) & touched,
        touched,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_little_endian_and_in_order() {
        let mut seen = Vec::new();
        let value = read_bytes(0x10, Width::Dword, |at| {
            seen.push(at);
            (at & 0xf) as u8 + 1
        });
        assert_eq!(value, 0x0403_0201);
        assert_eq!(seen, [0x10, 0x11, 0x12, 0x13]);
        let mut written = Vec::new();
        write_bytes(3, Width::Word, 0xabcd, |at, byte| written.push((at, byte)));
        assert_eq!(written, [(3, 0xcd), (4, 0xab)]);
    }

    #[test]
    fn registers_are_seen_in_parts_and_together() {
        let read = |at: u64| 0x0302_0100 + 0x0404_0404 * (at / 4) as u32;
        assert_eq!(read_register(0, Width::Dword, read), 0x0302_0100);
        assert_eq!(read_register(1, Width::Word, read), 0x0201);
        assert_eq!(read_register(3, Width::Word, read), 0x0403);
        assert_eq!(read_register(4, Width::Qword, read), 0x0b0a_0908_0706_0504);
        assert_eq!(read_register(2, Width::Qword, read), 0x0908_0706_0504_0302);
    }

    #[test]
    fn a_write_touches_the_bytes_it_covers() {
        let merge = |offset, width, value| merge_register(8, 0x1122_3344, offset, width, value);
        assert_eq!(merge(8, Width::Byte, 0xff), Some((0x1122_33ff, 0xff)));
        assert_eq!(
            merge(10, Width::Word, 0xaabb),
            Some((0xaabb_3344, 0xffff_0000))
        );
        assert_eq!(merge(7, Width::Word, 0xaabb), Some((0x1122_33aa, 0xff)));
        assert_eq!(
            merge(4, Width::Qword, 0x0102_0304_0506_0708),
            Some((0x0102_0304, 0xffff_ffff))
        );
        assert_eq!(merge(12, Width::Dword, 0), None);
        assert_eq!(merge(4, Width::Dword, 0), None);
    }
}
