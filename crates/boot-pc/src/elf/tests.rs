use proptest::prelude::*;

use super::*;
use crate::{BootOptions, EntryMode, KernelFormat, kernel_format, load};

const MIB: u64 = 1 << 20;

/// What a made-up ELF image loads.
pub(crate) struct Part {
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory_bytes: u64,
}

pub(crate) fn part(at: u64, bytes: &[u8], memory_bytes: u64) -> Part {
    Part {
        at,
        bytes: bytes.to_vec(),
        memory_bytes,
    }
}

/// An ELF image, written from the specification. Virtual addresses are 0x8000_0000 above the
/// physical ones.
pub(crate) fn elf(is_64_bit: bool, entry: u64, parts: &[Part], pvh: Option<u32>) -> Vec<u8> {
    let (header_bytes, entry_bytes) = if is_64_bit { (64, 56) } else { (52, 32) };
    let note = pvh.map(|entry| {
        // Another owner's note of the same type comes first.
        let mut bytes = Vec::new();
        for (name, value) in [(*b"Abc\0", 1), (*b"Xen\0", entry)] {
            for field in [4_u32, 4, 18] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes.extend_from_slice(&name);
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes
    });
    let count = parts.len() + usize::from(note.is_some());
    let mut headers = Vec::new();
    let mut contents = Vec::new();
    let contents_at = header_bytes + count * entry_bytes;
    let loads = parts
        .iter()
        .map(|part| (1_u32, part.at, &part.bytes, part.memory_bytes));
    let notes = note.iter().map(|bytes| (4, 0, bytes, bytes.len() as u64));
    for (kind, at, bytes, memory) in loads.chain(notes) {
        let offset = (contents_at + contents.len()) as u64;
        let size = bytes.len() as u64;
        let virtual_start = at + 0x8000_0000;
        headers.extend_from_slice(&kind.to_le_bytes());
        let fields = [offset, virtual_start, at, size, memory];
        if is_64_bit {
            headers.extend_from_slice(&7_u32.to_le_bytes());
            fields
                .iter()
                .for_each(|f| headers.extend_from_slice(&f.to_le_bytes()));
            headers.extend_from_slice(&8_u64.to_le_bytes());
        } else {
            fields
                .iter()
                .for_each(|f| headers.extend_from_slice(&f.to_le_bytes()[..4]));
            headers.extend_from_slice(&[7, 0, 0, 0, 8, 0, 0, 0]);
        }
        contents.extend_from_slice(bytes);
    }
    let class = if is_64_bit { 2 } else { 1 };
    let machine = if is_64_bit { 62_u8 } else { 3 };
    let mut file = vec![0x7f, b'E', b'L', b'F', class, 1, 1];
    file.resize(16, 0);
    file.extend_from_slice(&[2, 0, machine, 0, 1, 0, 0, 0]);
    let size = if is_64_bit { 8 } else { 4 };
    for field in [entry, header_bytes as u64, 0] {
        file.extend_from_slice(&field.to_le_bytes()[..size]);
    }
    file.extend_from_slice(&[0; 4]);
    for field in [header_bytes, entry_bytes, count, 0, 0, 0] {
        file.extend_from_slice(&u16::try_from(field).unwrap().to_le_bytes());
    }
    assert_eq!(file.len(), header_bytes);
    file.extend(headers);
    file.extend(contents);
    file
}

fn layout() -> MachineLayout {
    MachineLayout::new(32 * MIB).unwrap()
}

#[test]
fn a_vmlinux_is_entered_in_64_bit_mode() {
    let parts = [
        part(16 * MIB, &[0x90; 64], 8192),
        part(24 * MIB, &[1; 8], 8),
    ];
    // Linux gives a physical entry, others a virtual one.
    for entry in [16 * MIB + 16, 16 * MIB + 16 + 0x8000_0000] {
        let file = elf(true, entry, &parts, None);
        assert_eq!(kernel_format(&file), Some(KernelFormat::Elf64));
        let options = BootOptions {
            initrd: Some(&[5; 100]),
            command_line: b"a=b",
            ..BootOptions::default()
        };
        let image = load(&file, &options, &layout()).unwrap();
        let state = &image.start.state;
        assert_eq!(state.registers.rip, 16 * MIB + 16);
        assert_eq!(state.system.efer, 0x500);
        let at = |address: u64| {
            image
                .pieces
                .iter()
                .find(|piece| piece.at.0 == address)
                .unwrap()
        };
        let params = at(state.registers.general[6]);
        assert_eq!(&params.bytes[0x202..0x206], b"HdrS");
        assert_eq!(params.bytes[0x21c..0x220], 100_u32.to_le_bytes());
        assert_eq!(*at(32 * MIB - 4096).bytes, [5; 100]);
        assert_eq!(at(16 * MIB).zeros, 8192 - 64);
        assert_eq!(*at(crate::low_memory::COMMAND_LINE).bytes, *b"a=b\0");
    }
}

#[test]
fn the_note_decides_and_the_entry_can_be_chosen() {
    let parts = [part(MIB, &[0x90; 64], 64)];
    let file = elf(true, MIB, &parts, Some(0x10_0020));
    assert_eq!(kernel_format(&file), Some(KernelFormat::Pvh));
    let with = |entry| {
        let options = BootOptions {
            entry,
            ..BootOptions::default()
        };
        load(&file, &options, &layout()).unwrap().start.state
    };
    assert_eq!(with(EntryMode::Best).registers.rip, 0x10_0020);
    assert_eq!(with(EntryMode::Bits32), with(EntryMode::Best));
    assert_eq!(with(EntryMode::Bits64).registers.rip, MIB);
    assert_eq!(with(EntryMode::Bits64).system.efer, 0x500);
    let small = elf(false, MIB, &parts, None);
    assert_eq!(kernel_format(&small), None);
    assert_eq!(
        load(&small, &BootOptions::default(), &layout()),
        Err(Error::UnknownKernel)
    );
}

#[test]
fn segments_must_lie_in_free_ram_side_by_side() {
    let refused = |parts: &[Part]| {
        let file = elf(true, MIB, parts, None);
        load(&file, &BootOptions::default(), &layout())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&[part(0x8000, &[1; 8], 8)]).contains("no free RAM"));
    assert!(refused(&[part(32 * MIB - 4, &[1; 8], 8)]).contains("no free RAM"));
    assert!(refused(&[part(MIB, &[1; 8], u64::MAX)]).contains("no free RAM"));
    assert!(refused(&[part(MIB, &[1; 8], 7)]).contains("less than in the file"));
    let two = [part(MIB + 4, &[1; 8], 8), part(MIB, &[1; 5], 5)];
    assert!(refused(&two).contains("overlaps another segment"));
    assert!(refused(&[]).contains("nothing to run"));
    assert!(refused(&[part(2 * MIB, &[1; 8], 8)]).contains("lies in no segment"));
}

#[test]
fn images_for_others_are_refused() {
    let good = elf(true, MIB, &[part(MIB, &[1; 8], 8)], None);
    let refused = |at: usize, value: u8| {
        let mut file = good.clone();
        file[at] = value;
        load(&file, &BootOptions::default(), &layout())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(5, 2).contains("not for x86"));
    assert!(refused(18, 183).contains("another processor"));
    assert!(refused(54, 8).contains("smaller than a program header"));
    assert!(refused(57, 2).contains("256 is the most"));
    assert!(refused(39, 0xff).contains("cut off"));
    assert_eq!(kernel_format(&[]), None);
    assert_eq!(
        load(&[], &BootOptions::default(), &layout()),
        Err(Error::UnknownKernel)
    );
}

proptest! {
    /// Whatever the file says: an error, or pieces in RAM that do not overlap.
    #[test]
    fn hostile_images(
        is_64_bit: bool,
        changes in proptest::collection::vec((4_usize..240, any::<u8>()), 0..8),
        cut in 0_usize..400,
        starts in proptest::collection::vec((0_u64..40, 0_u64..0x10_0000), 0..3),
        multiboot: bool,
    ) {
        let mut parts = vec![part(MIB, &[0x90; 64], 100)];
        if multiboot {
            parts[0].bytes[..12].copy_from_slice(&[2, 0xb0, 0xad, 0x1b, 3, 0, 0, 0, 0xfb, 0x4f, 0x52, 0xe4]);
        }
        parts.extend(starts.iter().map(|(mib, size)| part(mib * MIB, &[1; 16], *size)));
        let mut file = elf(is_64_bit, MIB, &parts, Some(0x10_0000));
        for (at, value) in changes {
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
        }
        file.truncate(file.len().saturating_sub(cut % 100));
        for entry in [EntryMode::Best, EntryMode::Bits64] {
            let options = BootOptions { entry, initrd: Some(&[1; 5000]), ..BootOptions::default() };
            if let Ok(image) = load(&file, &options, &layout()) {
                for pair in image.pieces.windows(2) {
                    prop_assert!(pair[0].range().end <= pair[1].at.0);
                }
                prop_assert!(image.pieces.last().unwrap().range().end <= 32 * MIB);
            }
        }
    }
}
