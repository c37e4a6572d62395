use guest_memory::GuestPhysAddr;

use super::*;
use crate::elf::tests::{elf, part};
use crate::{MAX_MODULES, Module};

const MIB: u64 = 1 << 20;

fn layout() -> MachineLayout {
    MachineLayout::new(32 * MIB).unwrap()
}

#[test]
fn a_pvh_kernel_finds_all_it_was_given() {
    for is_64_bit in [true, false] {
        let file = elf(
            is_64_bit,
            0,
            &[part(MIB, &[0x90; 64], 4096)],
            Some(0x10_0004),
        );
        let options = BootOptions {
            command_line: b"one two",
            initrd: Some(&[1; 5000]),
            modules: &[Module {
                bytes: &[2; 10],
                text: b"second",
            }],
            rsdp: Some(GuestPhysAddr(0xe_0000)),
            ..BootOptions::default()
        };
        let image = crate::load(&file, &options, &layout()).unwrap();
        let state = &image.start.state;
        assert_eq!(state.registers.rip, 0x10_0004);
        assert_eq!(state.registers.general[3], low_memory::START_INFO);
        assert_eq!((state.system.cr0, state.system.cr4), (0x11, 0));
        let memory = guest_memory::GuestMemory::new(32 * MIB).unwrap();
        memory.add_ram(GuestPhysAddr(0), 32 * MIB).unwrap();
        image.write_to(&memory).unwrap();
        let read = |at: u64, length: usize| {
            let mut bytes = vec![0; length];
            memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
            bytes
        };
        let number = |at: u64, length: usize| {
            let bytes = read(at, length);
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        let info = low_memory::START_INFO;
        assert_eq!(number(info, 4), 0x336e_c578);
        assert_eq!((number(info + 4, 4), number(info + 12, 4)), (1, 2));
        assert_eq!(read(number(info + 24, 8), 8), b"one two\0");
        assert_eq!(number(info + 32, 8), 0xe_0000);
        let modules = number(info + 16, 8);
        let (first, second) = (number(modules, 8), number(modules + 32, 8));
        assert_eq!((first, second), (32 * MIB - 8192, 32 * MIB - 12288));
        assert_eq!(read(first, 5000), [1; 5000]);
        assert_eq!(number(modules + 8, 8), 5000);
        assert_eq!(read(number(modules + 48, 8), 7), b"second\0");
        let map = number(info + 40, 8);
        assert_eq!(number(info + 48, 4), 4);
        assert_eq!((number(map + 72, 8), number(map + 88, 4)), (MIB, 1));
    }
}

#[test]
fn modules_are_limited() {
    let file = elf(true, 0, &[part(MIB, &[0x90; 64], 64)], Some(0x10_0004));
    let many = vec![
        Module {
            bytes: &[],
            text: b""
        };
        MAX_MODULES + 1
    ];
    let load = |modules: &[Module]| {
        let options = BootOptions {
            modules,
            ..BootOptions::default()
        };
        crate::load(&file, &options, &layout()).map(|_| ())
    };
    assert_eq!(load(&many), Err(Error::TooManyModules(MAX_MODULES + 1)));
    load(&many[1..]).unwrap();
    let long = [b'x'; 60_000];
    let talkative = [Module {
        bytes: &[],
        text: &long,
    }; 10];
    assert!(matches!(
        load(&talkative),
        Err(Error::CommandLineTooLong { .. })
    ));
    let zero = [Module {
        bytes: &[],
        text: b"\0",
    }];
    assert_eq!(load(&zero), Err(Error::CommandLineZero(0)));
}
