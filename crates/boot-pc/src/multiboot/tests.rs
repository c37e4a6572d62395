use super::*;
use crate::elf::tests::{elf, part};
use crate::{KernelFormat, Module, kernel_format};

const MIB: u64 = 1 << 20;

/// A header with these flags and fields behind them.
fn header(flags: u32, fields: &[u32]) -> Vec<u8> {
    let sum = 0_u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
    [HEADER_MAGIC, flags, sum]
        .iter()
        .chain(fields)
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

fn layout() -> MachineLayout {
    let mut layout = MachineLayout::new(32 * MIB).unwrap();
    layout.reserve(31 * MIB, MIB, E820Kind::AcpiNvs).unwrap();
    layout
}

fn piece<'a>(image: &'a BootImage, at: u64) -> &'a crate::Piece<'a> {
    image.pieces.iter().find(|piece| piece.at.0 == at).unwrap()
}

fn dword(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

#[test]
fn an_elf_image_finds_all_it_was_given() {
    let file = elf(false, MIB + 12, &[part(MIB, &header(3, &[]), 100)], None);
    assert_eq!(kernel_format(&file), Some(KernelFormat::Multiboot));
    let options = BootOptions {
        command_line: b"hello",
        initrd: Some(&[1; 5000]),
        modules: &[Module {
            bytes: &[2; 10],
            text: b"second",
        }],
        ..BootOptions::default()
    };
    let image = crate::load(&file, &options, &layout()).unwrap();
    let state = &image.start.state;
    assert_eq!(state.registers.rip, MIB + 12);
    assert_eq!(state.registers.general[0], 0x2bad_b002);
    assert_eq!(state.registers.general[3], low_memory::START_INFO);
    let info = piece(&image, low_memory::START_INFO);
    let at = |address: u64| usize::try_from(address - low_memory::START_INFO).unwrap();
    let bytes = &info.bytes;
    assert_eq!(dword(bytes, 0), 0x24d);
    assert_eq!((dword(bytes, 4), dword(bytes, 8)), (639, 30 * 1024));
    assert_eq!(
        *piece(&image, dword(bytes, 16)).bytes,
        *b"hello\0\0second\0"
    );
    assert_eq!(dword(bytes, 20), 2);
    let modules = at(dword(bytes, 24));
    let first = dword(bytes, modules);
    assert_eq!(first, 31 * MIB - 8192);
    assert_eq!(dword(bytes, modules + 4), first + 5000);
    assert_eq!(*piece(&image, first).bytes, [1; 5000]);
    assert_eq!(dword(bytes, modules + 24), low_memory::COMMAND_LINE + 7);
    let map = at(dword(bytes, 48));
    assert_eq!(dword(bytes, 44), 5 * 24);
    assert_eq!(bytes.len(), map + 5 * 24);
    let kinds: Vec<u64> = (0..5)
        .map(|index| dword(bytes, map + index * 24 + 20))
        .collect();
    assert_eq!(kinds, [1, 2, 2, 1, 4]);
    assert_eq!(dword(bytes, map), 20);
    assert_eq!(&bytes[at(dword(bytes, 64))..][..7], b"Ratite\0");
}

#[test]
fn an_image_says_itself_where_it_goes() {
    let start = 0x20_0000;
    // The header is 16 bytes into what is loaded, which is 32 bytes into the file.
    let image_of = |load_end, bss_end| {
        let fields = [start + 16, start, load_end, bss_end, start + 4];
        let mut file = vec![9; 48];
        file.extend(header(1 << 16, &fields));
        file.extend([7; 100]);
        file
    };
    let file = image_of(start + 60, start + 5000);
    let image = crate::load(&file, &BootOptions::default(), &layout()).unwrap();
    assert_eq!(image.start.state.registers.rip, 0x20_0004);
    let loaded = piece(&image, 0x20_0000);
    assert_eq!(*loaded.bytes, file[32..92]);
    assert_eq!(loaded.zeros, 5000 - 60);
    let whole = image_of(0, 0);
    let image = crate::load(&whole, &BootOptions::default(), &layout()).unwrap();
    let loaded = piece(&image, 0x20_0000);
    assert_eq!((*loaded.bytes).len(), whole.len() - 32);
    assert_eq!(loaded.zeros, 0);
    for (load_end, bss_end) in [
        (start + 500, 0),
        (start - 1, 0),
        (start + 60, start + 59),
        (0, 0x7000_0000),
    ] {
        let bad = image_of(load_end, bss_end);
        let refused = crate::load(&bad, &BootOptions::default(), &layout());
        assert!(refused.is_err(), "{load_end:#x} {bss_end:#x}");
    }
}

#[test]
fn headers_that_cannot_be_met_are_refused() {
    let refused = |flags, fields: &[u32], options: &BootOptions| {
        let mut file = vec![0; 64];
        file.extend(header(flags, fields));
        crate::load(&file, options, &layout())
            .unwrap_err()
            .to_string()
    };
    let default = BootOptions::default();
    assert!(refused(8, &[], &default).contains("does not have"));
    assert!(refused(3, &[], &default).contains("no ELF image"));
    assert!(refused(1 << 16, &[], &default).contains("cut off"));
    let before = [0x20_0100, 0x20_0000, 0, 0, 0];
    assert!(refused(1 << 16, &before, &default).contains("before the file"));
    let low = [0x8000, 0x8000, 0, 0, 0x8000];
    assert!(refused(1 << 16, &low, &default).contains("no free RAM"));
    let long = BootOptions {
        entry: crate::EntryMode::Bits64,
        ..default
    };
    assert!(refused(3, &[], &long).contains("no 64-bit entry"));
    // A header beyond the first 8 KiB is none.
    let mut late = vec![0; 8192];
    late.extend(header(3, &[]));
    assert_eq!(kernel_format(&late), None);
}
