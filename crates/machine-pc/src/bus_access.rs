//! Exits' accesses, cut to the widths that registers have.

use device::{IoHandler, IoMap, Width};

/// Something with addresses.
pub(crate) trait AddressSpace {
    fn read(&self, address: u64, width: Width) -> u64;
    fn write(&self, address: u64, width: Width, value: u64);
}

impl AddressSpace for IoMap {
    fn read(&self, address: u64, width: Width) -> u64 {
        IoMap::read(self, address, width)
    }

    fn write(&self, address: u64, width: Width, value: u64) {
        IoMap::write(self, address, width, value);
    }
}

impl AddressSpace for dyn IoHandler + '_ {
    fn read(&self, address: u64, width: Width) -> u64 {
        IoHandler::read(self, address, width)
    }

    fn write(&self, address: u64, width: Width, value: u64) {
        IoHandler::write(self, address, width, value);
    }
}

/// The widest access that is not wider than `len` bytes.
fn widest(len: u8) -> Width {
    match len {
        0 | 1 => Width::Byte,
        2 | 3 => Width::Word,
        4..=7 => Width::Dword,
        _ => Width::Qword,
    }
}

/// Reads 1 to 8 bytes; a length that registers do not have is cut, widest part first.
pub(crate) fn read(space: &(impl AddressSpace + ?Sized), address: u64, len: u8) -> u64 {
    let (mut value, mut done) = (0, 0);
    while done < len.min(8) {
        let width = widest(len - done);
        let part = space.read(address.wrapping_add(u64::from(done)), width);
        value |= part << (u32::from(done) * 8);
        done += u8::try_from(width.bytes()).unwrap_or(8);
    }
    value
}

/// Writes 1 to 8 bytes.
pub(crate) fn write(space: &(impl AddressSpace + ?Sized), address: u64, len: u8, value: u64) {
    let mut done = 0;
    while done < len.min(8) {
        let width = widest(len - done);
        let part = (value >> (u32::from(done) * 8)) & width.ones();
        space.write(address.wrapping_add(u64::from(done)), width, part);
        done += u8::try_from(width.bytes()).unwrap_or(8);
    }
}

/// IN and INS.
pub(crate) fn read_ports(ports: &IoMap, port: u16, size: u8, count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        let value = read(ports, u64::from(port), size).to_le_bytes();
        bytes.extend(value.iter().take(usize::from(size)));
    }
    bytes
}

/// OUT and OUTS.
pub(crate) fn write_ports(ports: &IoMap, port: u16, size: u8, data: &[u8]) {
    for element in data.chunks(usize::from(size.max(1))) {
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(element) {
            *to = *from;
        }
        write(ports, u64::from(port), size, u64::from_le_bytes(value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Bytes(Mutex<Vec<(u64, u64, u64)>>);

    impl IoHandler for Bytes {
        fn read(&self, offset: u64, width: Width) -> u64 {
            (0x1716_1514_1312_1110_u64 >> (offset * 8)) & width.ones()
        }

        fn write(&self, offset: u64, width: Width, value: u64) {
            self.0.lock().push((offset, width.bytes(), value));
        }
    }

    #[test]
    fn odd_lengths_are_cut() {
        let bytes = Bytes::default();
        assert_eq!(read(&bytes as &dyn IoHandler, 0, 7), 0x16_1514_1312_1110);
        assert_eq!(read(&bytes as &dyn IoHandler, 1, 3), 0x13_1211);
        write(&bytes as &dyn IoHandler, 0, 7, 0x16_1514_1312_1110);
        let written = std::mem::take(&mut *bytes.0.lock());
        assert_eq!(written, [(0, 4, 0x1312_1110), (4, 2, 0x1514), (6, 1, 0x16)]);
    }

    #[test]
    fn strings_are_element_by_element() {
        let map = IoMap::new(IoMap::LAST_PORT);
        let bytes = Arc::new(Bytes::default());
        map.map("bytes", 0x10, 4, 0, bytes.clone()).unwrap();
        assert_eq!(read_ports(&map, 0x10, 2, 2), [0x10, 0x11, 0x10, 0x11]);
        write_ports(&map, 0x10, 2, &[1, 2, 3, 4]);
        assert_eq!(*bytes.0.lock(), [(0, 2, 0x0201), (0, 2, 0x0403)]);
    }
}
