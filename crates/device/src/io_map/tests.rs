use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

/// Answers with its number in the high nibble and the offset in the low one, byte by byte; remembers writes.
struct Tagged {
    tag: u8,
    written: Mutex<Vec<(u64, Width, u64)>>,
}

impl Tagged {
    fn new(tag: u8) -> Arc<Tagged> {
        Arc::new(Tagged {
            tag,
            written: Mutex::default(),
        })
    }

    fn byte(&self, offset: u64) -> u8 {
        self.tag << 4 | (offset & 0xf) as u8
    }
}

impl IoHandler for Tagged {
    fn read(&self, offset: u64, width: Width) -> u64 {
        crate::read_bytes(offset, width, |at| self.byte(at))
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.written.lock().push((offset, width, value));
    }
}

#[test]
fn an_access_reaches_the_handler_with_its_offset() {
    let map = IoMap::new(IoMap::LAST_PORT);
    let one = Tagged::new(1);
    map.map("one", 0x60, 8, 0, one.clone()).unwrap();
    assert_eq!(map.read(0x62, Width::Word), 0x1312);
    map.write(0x64, Width::Dword, 0x1_0000_0001);
    assert_eq!(one.written.lock().as_slice(), [(4, Width::Dword, 1)]);
}

#[test]
fn where_nothing_is_there_are_ones() {
    let map = IoMap::new(IoMap::LAST_PORT);
    assert_eq!(map.read(0, Width::Byte), 0xff);
    assert_eq!(map.read(u64::MAX, Width::Qword), u64::MAX);
    assert_eq!(map.read(0xffff, Width::Dword), 0xffff_ffff);
    map.write(u64::MAX, Width::Qword, 0);
    assert!(!map.is_mapped(0));
}

#[test]
fn an_access_across_two_handlers_is_split() {
    let map = IoMap::new(IoMap::LAST_PORT);
    let (one, two) = (Tagged::new(1), Tagged::new(2));
    map.map("one", 0x10, 2, 0, one.clone()).unwrap();
    map.map("two", 0x13, 5, 0, two.clone()).unwrap();
    assert_eq!(map.read(0x10, Width::Dword), 0x20ff_1110);
    map.write(0x10, Width::Dword, 0x4433_2211);
    assert_eq!(one.written.lock().as_slice(), [(0, Width::Word, 0x2211)]);
    assert_eq!(two.written.lock().as_slice(), [(0, Width::Byte, 0x44)]);
}

#[test]
fn priority_decides_then_age() {
    let map = IoMap::new(u64::MAX);
    map.map("low", 0, 0x100, 0, Tagged::new(1)).unwrap();
    let high = map.map("high", 0x40, 0x10, 1, Tagged::new(2)).unwrap();
    map.map("new", 0x48, 0x10, 0, Tagged::new(3)).unwrap();
    assert_eq!(map.read(0x3f, Width::Byte), 0x1f);
    assert_eq!(map.read(0x48, Width::Byte), 0x28);
    assert_eq!(map.read(0x50, Width::Byte), 0x38);
    map.unmap(high).unwrap();
    assert_eq!(map.read(0x41, Width::Byte), 0x11);
    assert_eq!(map.read(0x48, Width::Byte), 0x30);
    assert_eq!(map.unmap(high), Err(Error::NoSuchMapping));
}

#[test]
fn a_mapping_moves() {
    let map = IoMap::new(0xfff);
    let bar = map.map("bar", 0x100, 0x10, 0, Tagged::new(4)).unwrap();
    map.move_to(bar, 0xff0).unwrap();
    assert!(!map.is_mapped(0x100));
    assert_eq!(map.read(0xff3, Width::Byte), 0x43);
    assert!(matches!(
        map.move_to(bar, 0xff1),
        Err(Error::BadRange { length: 0x10, .. })
    ));
    assert_eq!(map.read(0xff3, Width::Byte), 0x43);
}

#[test]
fn ranges_that_do_not_fit_are_refused() {
    let map = IoMap::new(0xffff);
    assert!(map.map("empty", 0, 0, 0, Tagged::new(1)).is_err());
    assert!(map.map("long", 0xffff, 2, 0, Tagged::new(1)).is_err());
    assert!(map.map("wrap", u64::MAX, 2, 0, Tagged::new(1)).is_err());
    assert!(map.map("last", 0xffff, 1, 0, Tagged::new(1)).is_ok());
}

proptest! {
    /// Whatever is mapped, a read of any width is the bytes that a byte-wise search of the list finds.
    #[test]
    fn reads_agree_with_a_search_of_the_list(
        ranges in prop::collection::vec((0_u64..64, 1_u64..24, -2_i32..3), 0..12),
        address in 0_u64..96,
        width in prop::sample::select(Width::ALL.to_vec()),
    ) {
        let map = IoMap::new(u64::MAX);
        for (index, (start, length, priority)) in ranges.iter().enumerate() {
            map.map("range", *start, *length, *priority, Tagged::new(index as u8)).unwrap();
        }
        let expected = crate::read_bytes(address, width, |at| {
            let mut best: Option<(i32, u8)> = None;
            for (index, (start, length, priority)) in ranges.iter().enumerate() {
                if *start <= at && at < start + length && best.is_none_or(|(seen, _)| *priority >= seen) {
                    best = Some((*priority, (index as u8) << 4 | ((at - start) & 0xf) as u8));
                }
            }
            best.map_or(0xff, |(_, byte)| byte)
        });
        prop_assert_eq!(map.read(address, width), expected);
    }
}
