//! Kernels of every format, placed into a machine's memory.

use boot_pc::{BootImage, BootOptions, E820Kind, EntryMode, MachineLayout, Module, load};
use guest_memory::{GuestMemory, GuestPhysAddr};

const MIB: u64 = 1 << 20;
/// What nobody may lie on: the second page above 2 MiB, and the last of RAM.
const RESERVED_AT: u64 = (2 << 20) + 4096;
const RESERVED_BYTES: u64 = 4096;
/// Zeros that are worth writing.
const WRITTEN_MAX: u64 = 1 << 20;

/// Two bytes say the machine (MiB of RAM; entry mode, modules, size of the initial RAM disk), the
/// rest is the kernel.
pub fn kernel_image(data: &[u8]) {
    let [ram, choice, kernel @ ..] = data else {
        return;
    };
    let ram_bytes = (u64::from(ram % 64) + 2) * MIB;
    let mut layout = MachineLayout::new(ram_bytes).expect("whole MiB");
    let top = layout
        .reserve_top(1, E820Kind::AcpiNvs)
        .expect("a page is free")
        .0;
    let hole = layout.reserve(RESERVED_AT, RESERVED_BYTES, E820Kind::Reserved);
    let initrd = vec![0xa5; usize::from(choice >> 4) * 70_000];
    let modules = [Module {
        bytes: &[1, 2, 3],
        text: b"a module",
    }];
    let options = BootOptions {
        command_line: b"console=ttyS0",
        initrd: (!initrd.is_empty()).then_some(&initrd),
        modules: if choice & 4 != 0 { &modules } else { &[] },
        entry: match choice & 3 {
            1 => EntryMode::Bits32,
            2 => EntryMode::Bits64,
            _ => EntryMode::Best,
        },
        rsdp: Some(GuestPhysAddr(0xe_0000)),
    };
    let result = load(kernel, &options, &layout);
    assert_eq!(result, load(kernel, &options, &layout));
    match result {
        Ok(image) => {
            assert!(boot_pc::kernel_format(kernel).is_some());
            check(&image, ram_bytes, top, hole.is_ok());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check(image: &BootImage, ram_bytes: u64, top: u64, has_hole: bool) {
    for pair in image.pieces.windows(2) {
        assert!(pair[0].range().end <= pair[1].at.0, "pieces overlap");
    }
    let mut zeros = 0_u64;
    for piece in &image.pieces {
        let range = piece.range();
        assert_eq!(
            range.end - range.start,
            piece.bytes.len() as u64 + piece.zeros,
            "a piece wraps"
        );
        let low = range.end <= 0x9_fc00;
        assert!(low || range.start >= MIB, "below 1 MiB: {range:x?}");
        assert!(range.end <= top, "not in free RAM: {range:x?}");
        let on_hole = range.start < RESERVED_AT + RESERVED_BYTES && RESERVED_AT < range.end;
        assert!(
            !(has_hole && on_hole && range.start < range.end),
            "{range:x?}"
        );
        zeros += piece.zeros;
    }
    let state = &image.start.state;
    assert!(state.registers.rip < 1 << 32);
    if zeros <= WRITTEN_MAX {
        let memory = GuestMemory::new(ram_bytes).expect("the host has memory");
        memory
            .add_ram(GuestPhysAddr(0), ram_bytes)
            .expect("it is empty");
        image.write_to(&memory).expect("all pieces lie in RAM");
    }
}
