use std::borrow::Cow;

use guest_memory::{GuestMemory, GuestPhysAddr};
use proptest::prelude::*;

use super::*;
use crate::{E820Kind, kernel_format, load};

const MIB: u64 = 1 << 20;

/// A bzImage of protocol 2.15 with one setup sector, as small as it can be: relocatable, 64-bit,
/// wanting to run at 16 MiB.
struct Synthetic(Vec<u8>);

impl Synthetic {
    fn new(kernel: &[u8]) -> Self {
        let mut file = Self(vec![0; 2 * SECTOR_BYTES]);
        file.put(offset::SETUP_SECTS, &[1]);
        file.put(offset::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
        file.put(offset::JUMP - 1, &[0xeb, 0x6a]);
        file.put(offset::MAGIC, MAGIC);
        file.put(offset::VERSION, &0x20f_u16.to_le_bytes());
        file.put(offset::LOADFLAGS, &[LOADED_HIGH]);
        file.put(offset::CODE32_START, &0x10_0000_u32.to_le_bytes());
        file.put(offset::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
        file.put(offset::KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
        file.put(offset::RELOCATABLE, &[1]);
        file.put(offset::XLOADFLAGS, &3_u16.to_le_bytes());
        file.put(offset::CMDLINE_SIZE, &2047_u32.to_le_bytes());
        file.put(offset::PREF_ADDRESS, &0x100_0000_u64.to_le_bytes());
        file.put(offset::INIT_SIZE, &0x20_0000_u32.to_le_bytes());
        file.0.extend_from_slice(kernel);
        file
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

fn layout(mib: u64) -> MachineLayout {
    MachineLayout::new(mib * MIB).unwrap()
}

fn read<const N: usize>(memory: &GuestMemory, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
    bytes
}

/// Loads into a machine's memory and gives that.
fn boot<'a>(
    file: &'a [u8],
    options: &BootOptions<'a>,
    layout: &MachineLayout,
) -> (BootImage<'a>, GuestMemory) {
    let image = load(file, options, layout).unwrap();
    let memory = GuestMemory::new(layout.below_4g() + layout.above_4g()).unwrap();
    for (start, bytes) in layout.ram() {
        memory.add_ram(start, bytes).unwrap();
    }
    image.write_to(&memory).unwrap();
    (image, memory)
}

#[test]
fn a_64_bit_kernel_finds_all_it_was_given() {
    let file = Synthetic::new(&[0x90; 5000]);
    let initrd = [7; 10_000];
    let options = BootOptions {
        command_line: b"console=ttyS0 quiet",
        initrd: Some(&initrd),
        rsdp: Some(GuestPhysAddr(0xe_0010)),
        ..BootOptions::default()
    };
    let (image, memory) = boot(&file.0, &options, &layout(64));
    let state = &image.start.state;
    assert_eq!(state.registers.rip, 0x100_0200);
    let params = state.registers.general[6];
    assert_eq!(state.system.cr0, 0x8000_0011);
    assert_eq!(state.system.efer, 0x500);
    assert_eq!(state.system.segments[1].selector, 0x10);
    assert!(state.system.segments[1].long);
    assert_eq!(read::<4>(&memory, state.system.cr3), [3, 0x10, 1, 0]);
    // The header is the file's, with the loader's fields filled in.
    assert_eq!(&read::<4>(&memory, params + 0x202), b"HdrS");
    assert_eq!(read::<1>(&memory, params + 0x210), [0xff]);
    assert_eq!(
        read::<8>(&memory, params + 0x70),
        0xe_0010_u64.to_le_bytes()
    );
    let command_line = u32::from_le_bytes(read(&memory, params + 0x228));
    assert_eq!(
        &read::<20>(&memory, command_line.into()),
        b"console=ttyS0 quiet\0"
    );
    let ramdisk = u64::from(u32::from_le_bytes(read(&memory, params + 0x218)));
    assert_eq!(ramdisk, 64 * MIB - 12288);
    assert_eq!(read::<4>(&memory, params + 0x21c), 10_000_u32.to_le_bytes());
    assert_eq!(read::<10_000>(&memory, ramdisk), initrd);
    assert_eq!(read::<5000>(&memory, 0x100_0000), [0x90; 5000]);
    // 0 to 639 KiB, EBDA, BIOS, 1 MiB to the end.
    assert_eq!(read::<1>(&memory, params + 0x1e8), [4]);
    let last = read::<20>(&memory, params + 0x2d0 + 3 * 20);
    assert_eq!(last[..8], MIB.to_le_bytes());
    assert_eq!(last[8..16], (63 * MIB).to_le_bytes());
    assert_eq!(last[16], E820Kind::Usable as u8);
}

#[test]
fn a_32_bit_entry_is_used_if_there_is_no_other_or_if_asked_for() {
    let file = Synthetic::new(&[0x90; 100]);
    let ask = |entry| BootOptions {
        entry,
        ..BootOptions::default()
    };
    let image = load(&file.0, &ask(EntryMode::Bits32), &layout(64)).unwrap();
    let state = &image.start.state;
    assert_eq!(state.registers.rip, 0x100_0000);
    assert_eq!(state.registers.general[6], low_memory::BOOT_PARAMS);
    assert_eq!((state.system.cr0, state.system.efer), (0x11, 0));
    assert!(state.system.segments[1].big);
    let mut old = Synthetic::new(&[0x90; 100]);
    old.put(offset::XLOADFLAGS, &[0, 0]);
    let best = load(&old.0, &ask(EntryMode::Best), &layout(64)).unwrap();
    assert_eq!(best, image_without_xloadflags(&image));
    let refused = load(&old.0, &ask(EntryMode::Bits64), &layout(64));
    assert_eq!(refused, Err(Error::NoEntry(64)));
}

fn image_without_xloadflags<'a>(image: &BootImage<'a>) -> BootImage<'a> {
    let mut image = image.clone();
    for piece in &mut image.pieces {
        if piece.at.0 == low_memory::BOOT_PARAMS {
            let Cow::Owned(bytes) = &mut piece.bytes else {
                panic!("made here")
            };
            bytes[offset::XLOADFLAGS..offset::XLOADFLAGS + 2].fill(0);
        }
    }
    image
}

#[test]
fn kernels_go_where_they_can_run() {
    let mut file = Synthetic::new(&[0; 100]);
    // What is reserved at the preferred address makes a relocatable kernel go higher.
    let mut taken = layout(64);
    taken.reserve(17 * MIB, 4096, E820Kind::Reserved).unwrap();
    let image = load(&file.0, &BootOptions::default(), &taken).unwrap();
    assert_eq!(image.start.state.registers.rip, 18 * MIB + 0x200);
    // One that cannot move is loaded at 1 MiB, and moves itself.
    file.put(offset::RELOCATABLE, &[0]);
    let image = load(&file.0, &BootOptions::default(), &layout(64)).unwrap();
    assert_eq!(image.start.state.registers.rip, MIB + 0x200);
    for layout in [&taken, &layout(17)] {
        assert_eq!(
            load(&file.0, &BootOptions::default(), layout),
            Err(Error::FixedPlace {
                what: "the kernel",
                start: 16 * MIB,
                end: 18 * MIB
            })
        );
    }
}

#[test]
fn an_initial_ram_disk_goes_high_but_never_onto_the_kernel() {
    let mut file = Synthetic::new(&[0; 100]);
    let initrd = vec![1; (40 * MIB) as usize];
    let options = BootOptions {
        initrd: Some(&initrd),
        ..BootOptions::default()
    };
    let place = |file: &Synthetic, mib| {
        load(&file.0, &options, &layout(mib)).map(|image| image.pieces.last().unwrap().at.0)
    };
    assert_eq!(place(&file, 4096), Ok(0x8000_0000 - 40 * MIB));
    assert_eq!(place(&file, 64), Ok(24 * MIB));
    assert!(place(&file, 48).is_err());
    // Between 1 MiB and the kernel, if nothing else is left.
    let small = vec![1; (14 * MIB) as usize];
    let options = BootOptions {
        initrd: Some(&small),
        ..BootOptions::default()
    };
    let image = load(&file.0, &options, &layout(20)).unwrap();
    assert!(image.pieces.iter().any(|piece| piece.at.0 == 2 * MIB));
    // Above 4 GiB, if the kernel can and the limit leaves nothing else.
    file.put(offset::INITRD_ADDR_MAX, &0x10_ffff_u32.to_le_bytes());
    assert_eq!(place(&file, 4096), Ok((5 << 30) - 40 * MIB));
    file.put(offset::XLOADFLAGS, &[1, 0]);
    assert!(matches!(place(&file, 4096), Err(Error::NoRoom { .. })));
}

#[test]
fn what_is_wrong_is_said() {
    let good = Synthetic::new(&[0; 100]);
    let default = BootOptions::default();
    let bad = |at: usize, bytes: &[u8]| {
        let mut file = Synthetic::new(&[0; 100]);
        file.put(at, bytes);
        load(&file.0, &default, &layout(64)).unwrap_err()
    };
    assert_eq!(bad(0x1fe, &[0]), Error::UnknownKernel);
    assert!(bad(0x206, &[1, 2]).to_string().contains("newer kernel"));
    assert!(bad(0x211, &[0]).to_string().contains("bzImage"));
    assert!(bad(0x1f1, &[200]).to_string().contains("fetch it again"));
    assert!(bad(0x201, &[0xff]).to_string().contains("header end"));
    assert!(bad(0x230, &[1]).to_string().contains("power of two"));
    assert!(matches!(bad(0x258, &[0xff; 8]), Error::FixedPlace { .. }));
    assert!(matches!(bad(0x260, &[0xff; 4]), Error::FixedPlace { .. }));
    let long = vec![b'x'; 2048];
    let options = BootOptions {
        command_line: &long,
        ..default
    };
    let refused = load(&good.0, &options, &layout(64)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the command line has 2048 bytes; this kernel takes 2047: shorten -append"
    );
    let options = BootOptions {
        command_line: b"a\0b",
        ..default
    };
    assert_eq!(
        load(&good.0, &options, &layout(64)),
        Err(Error::CommandLineZero(1))
    );
    assert_eq!(kernel_format(b"MZ"), None);
}

#[test]
fn an_old_header_means_what_it_meant() {
    let mut file = Synthetic::new(&[0; 100]);
    // Protocol 2.02 with its short header: what stands behind it is code.
    file.put(offset::VERSION, &[2, 2])
        .put(offset::JUMP, &[0x2a]);
    let header = LinuxHeader::parse(&file.0).unwrap();
    assert_eq!(header.initrd_max, 0x37ff_ffff);
    assert_eq!(header.command_line_max, 255);
    assert!(!header.has_64_bit_entry && !header.relocatable);
    assert_eq!(header.preferred, MIB);
}

proptest! {
    /// Whatever the header says: an error, or pieces in RAM that do not overlap.
    #[test]
    fn hostile_headers(
        changes in proptest::collection::vec((0x1f1_usize..0x290, any::<u8>()), 0..12),
        cut in 0_usize..3000,
        initrd in 0_usize..100_000,
        mib in 1_u64..70,
    ) {
        let mut file = Synthetic::new(&[0x90; 2000]);
        for (at, value) in changes {
            file.put(at, &[value]);
        }
        file.0.truncate(cut.max(100));
        let initrd = vec![1; initrd];
        let layout = layout(mib);
        let options = BootOptions { initrd: Some(&initrd), command_line: b"x", ..BootOptions::default() };
        if let Ok(image) = load(&file.0, &options, &layout) {
            for pair in image.pieces.windows(2) {
                prop_assert!(pair[0].range().end <= pair[1].at.0);
            }
            let end = image.pieces.last().unwrap().range().end;
            prop_assert!(end <= mib * MIB);
        }
    }
}
