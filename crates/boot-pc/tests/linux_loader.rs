//! The same kernels through rust-vmm's `linux-loader`: what it loads, and where, must be the same.
//! (It exists for x86 hosts only.)
#![cfg(target_arch = "x86_64")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use std::io::Cursor;

use boot_pc::{BootOptions, EntryMode, MachineLayout, load};
use guest_memory::{GuestMemory, GuestPhysAddr};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult, bzimage::BzImage};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RAM_BYTES: u64 = 48 << 20;

fn ours(kernel: &[u8], entry: EntryMode) -> (GuestMemory, u64) {
    let layout = MachineLayout::new(RAM_BYTES).unwrap();
    let options = BootOptions {
        entry,
        ..BootOptions::default()
    };
    let image = load(kernel, &options, &layout).unwrap();
    let memory = GuestMemory::new(RAM_BYTES).unwrap();
    memory.add_ram(GuestPhysAddr(0), RAM_BYTES).unwrap();
    image.write_to(&memory).unwrap();
    (memory, image.start.state.registers.rip)
}

fn theirs<L: KernelLoader>(
    kernel: &[u8],
    at: Option<u64>,
) -> (GuestMemoryMmap, KernelLoaderResult) {
    let ranges = [(GuestAddress(0), usize::try_from(RAM_BYTES).unwrap())];
    let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    let mut file = Cursor::new(kernel);
    let result = L::load(&memory, at.map(GuestAddress), &mut file, None).unwrap();
    (memory, result)
}

/// From 1 MiB on, both have the same bytes.
fn assert_same(ours: &GuestMemory, theirs: &GuestMemoryMmap) {
    let start = 1_u64 << 20;
    let length = usize::try_from(RAM_BYTES - start).unwrap();
    let (mut one, mut other) = (vec![0; length], vec![0; length]);
    ours.read(GuestPhysAddr(start), &mut one).unwrap();
    theirs.read_slice(&mut other, GuestAddress(start)).unwrap();
    assert!(one == other, "the loaded bytes differ");
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn bzimages_are_loaded_alike(sectors in 0_u8..5, kernel in proptest::collection::vec(any::<u8>(), 1..9000)) {
        let setup = if sectors == 0 { 4 } else { usize::from(sectors) };
        let mut file = vec![0; (setup + 1) * 512];
        put(&mut file, 0x1f1, &[sectors]);
        put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(&mut file, 0x202, b"HdrS\x0c\x02");
        put(&mut file, 0x211, &[1]);
        put(&mut file, 0x230, &[0, 0, 0x20, 0, 1]);
        put(&mut file, 0x236, &[1]);
        put(&mut file, 0x258, &(16_u64 << 20).to_le_bytes());
        file.extend(kernel);
        let (memory, rip) = ours(&file, EntryMode::Bits64);
        let (expected, result) = theirs::<BzImage>(&file, Some(rip - 0x200));
        assert_same(&memory, &expected);
        prop_assert_eq!(result.kernel_load.0, 16 << 20);
    }

    #[test]
    fn elf_images_are_loaded_alike(
        first in proptest::collection::vec(any::<u8>(), 1..5000),
        second in proptest::collection::vec(any::<u8>(), 1..5000),
        into in 0_u64..100,
    ) {
        let entry = (1_u64 << 20) + into % first.len() as u64;
        let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x40\0\x10\0";
        let headers = 64 + 3 * 56_u64;
        let segments = [
            (1_u32, headers, 1_u64 << 20, first.len() as u64),
            (1, headers + first.len() as u64, 40 << 20, second.len() as u64),
            (4, headers + (first.len() + second.len()) as u64, 0, note.len() as u64),
        ];
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for field in [entry, 64, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 64, 0, 0, 0, 0, 0]);
        for (kind, offset, at, bytes) in segments {
            file.extend(kind.to_le_bytes());
            file.extend([7, 0, 0, 0]);
            for field in [offset, at, at, bytes, bytes, 4] {
                file.extend(field.to_le_bytes());
            }
        }
        file.extend(&first);
        file.extend(&second);
        file.extend(note);
        let (expected, result) = theirs::<Elf>(&file, None);
        let (memory, rip) = ours(&file, EntryMode::Bits64);
        assert_same(&memory, &expected);
        prop_assert_eq!(result.kernel_load.0, rip);
        let (_, pvh) = ours(&file, EntryMode::Best);
        prop_assert_eq!(result.pvh_boot_cap, PvhBootCapability::PvhEntryPresent(GuestAddress(pvh)));
    }
}
