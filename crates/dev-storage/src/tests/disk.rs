use api::{BlockErrorAction, BlockdevOnError};
use block_doubles::Faults;
use device::Width;

use super::{Choices, Rig, pattern};
use crate::DriveKind;

fn word(bytes: &[u8], index: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])
}

#[test]
fn it_says_what_it_is() {
    let rig = Rig::disk(5000);
    assert_eq!(
        (rig.get(2), rig.get(3), rig.get(4), rig.get(5)),
        (1, 1, 0, 0)
    );
    assert_eq!((rig.get(7), rig.get(1)), (0x50, 1));
    rig.issue(0xec, 0, 0);
    assert_eq!(rig.interrupted(), 0x58);
    let words = rig.words(512);
    assert_eq!(rig.settled(), 0x50);
    assert_eq!(&words[54..60], b"ARITET");
    assert_eq!(word(&words, 60), 5000);
    assert_eq!(word(&words, 100), 5000);
    assert_eq!(
        (word(&words, 1), word(&words, 3), word(&words, 6)),
        (4, 16, 63)
    );
    assert_eq!(
        words.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    // It is chosen how DMA is done; and what is not there is refused.
    for (mode, status) in [(0x22, 0x50), (0x44, 0x50), (0x46, 0x51)] {
        rig.set(1, 3);
        rig.issue(0xef, 0, mode);
        assert_eq!(rig.interrupted(), status);
    }
    rig.issue(0xec, 0, 0);
    rig.interrupted();
    assert_eq!(word(&rig.words(512), 88), 0x103f);
}

#[test]
fn sectors_by_the_data_register() {
    let rig = Rig::disk(1000);
    let content = rig.storage.content();
    rig.issue(0x20, 7, 3);
    for sector in 7..10 {
        assert_eq!(rig.interrupted(), 0x58);
        assert_eq!(rig.words(512), content[sector * 512..][..512]);
    }
    assert_eq!(rig.settled(), 0x50);
    assert!(!rig.pins.level(14));
    // Blocks of four: the last one is shorter.
    rig.issue(0xc6, 0, 4);
    assert_eq!(rig.interrupted(), 0x50);
    rig.issue(0xc4, 100, 6);
    for (first, count) in [(100, 4), (104, 2)] {
        assert_eq!(rig.interrupted(), 0x58);
        assert_eq!(
            rig.words(count * 512),
            content[first * 512..][..count * 512]
        );
    }
    let data = pattern(1024);
    rig.issue(0x30, 998, 2);
    assert_eq!(rig.settled(), 0x58);
    assert!(!rig.pins.level(14), "the first block is asked for silently");
    rig.send(&data[..512]);
    assert_eq!(rig.interrupted(), 0x58);
    rig.send(&data[512..]);
    assert_eq!(rig.interrupted(), 0x50);
    assert_eq!(rig.storage.content()[998 * 512..], data);
    rig.issue(0xe7, 0, 0);
    assert_eq!(rig.interrupted(), 0x50);
}

#[test]
fn names_of_sectors() {
    let rig = Rig::disk(70_000);
    let content = rig.storage.content();
    rig.issue_48(0x24, 65_537, 1);
    assert_eq!(rig.interrupted(), 0x58);
    assert_eq!(rig.words(512), content[65_537 * 512..][..512]);
    // Cylinder 2, head 3, sector 4.
    rig.set(6, 0xa3);
    for (register, value) in [(2, 1), (3, 4), (4, 2), (5, 0), (7, 0x20)] {
        rig.set(register, value);
    }
    assert_eq!(rig.interrupted(), 0x58);
    let sector = (2 * 16 + 3) * 63 + 3;
    assert_eq!(rig.words(512), content[sector * 512..][..512]);
    // The last sector, and what is behind it.
    rig.issue(0xf8, 0, 0);
    assert_eq!(rig.interrupted(), 0x50);
    let last = 69_999_u32.to_le_bytes();
    assert_eq!([rig.get(3), rig.get(4), rig.get(5)], last[..3]);
    rig.issue(0x40, 69_999, 1);
    assert_eq!(rig.interrupted(), 0x50);
    for (command, lba) in [
        (0x20, 70_000),
        (0xc8, 69_999),
        (0x40, 69_999),
        (0x30, 0x0fff_ffff),
    ] {
        rig.issue(command, lba, 2);
        assert_eq!(rig.interrupted(), 0x51, "{command:#x}");
        assert_eq!(rig.get(1), 0x10);
    }
    rig.issue_48(0x25, u64::MAX, 0);
    assert_eq!(rig.interrupted(), 0x51);
    // Older bytes of the registers show when asked for.
    rig.issue_48(0x27, 0, 0);
    rig.interrupted();
    rig.control.write(0, Width::Byte, 0x80);
    assert_eq!((rig.get(3), rig.get(4)), (0, 0));
    rig.control.write(0, Width::Byte, 0);
    assert_eq!(rig.get(5), 1);
}

#[test]
fn dma_in_both_directions() {
    let rig = Rig::disk(4000);
    let content = rig.storage.content();
    rig.issue(0xc8, 16, 16);
    assert_eq!(
        rig.control.read(0, Width::Byte),
        0xd0,
        "waits for the bus master"
    );
    rig.start_dma(&[(0x1_0000, 0x1000), (0x3_0000, 0x1000)], true);
    assert_eq!(rig.interrupted(), 0x50);
    assert_eq!(rig.master_status() & 7, 4);
    assert_eq!(rig.in_memory(0x1_0000, 0x1000), content[0x2000..][..0x1000]);
    assert_eq!(rig.in_memory(0x3_0000, 0x1000), content[0x3000..][..0x1000]);
    // To the disk, more than moves at once, the bus master first.
    let bytes = 1500 * 512;
    let data: Vec<u8> = pattern(bytes).iter().map(|byte| !byte).collect();
    rig.memory_put(0x10_0000, &data);
    let table: Vec<(u32, u16)> = (0..12)
        .map(|piece| {
            (
                0x10_0000 + piece * 0x1_0000,
                if piece == 11 { 0xb800 } else { 0 },
            )
        })
        .collect();
    rig.start_dma(&table, false);
    rig.issue_48(0x35, 2500, 1500);
    assert_eq!(rig.interrupted(), 0x50);
    assert_eq!(rig.master_status() & 7, 4);
    assert_eq!(rig.storage.content()[2500 * 512..][..bytes], data);
    // A longer table: the bus master stays active.
    rig.start_dma(&[(0x1_0000, 0x1000)], true);
    rig.issue(0xc8, 0, 1);
    assert_eq!(rig.interrupted(), 0x50);
    assert_eq!(rig.master_status() & 7, 5);
}

#[test]
fn dma_that_cannot_be() {
    let rig = Rig::disk(1000);
    // A table that is too short: nobody interrupts, and a reset helps.
    rig.start_dma(&[(0x1_0000, 0x200)], true);
    rig.issue(0xc8, 0, 2);
    rig.quiet();
    assert_eq!(rig.master_status() & 7, 0);
    assert_eq!(rig.control.read(0, Width::Byte), 0xd0);
    assert!(!rig.pins.level(14));
    rig.control.write(0, Width::Byte, 4);
    assert_eq!(rig.control.read(0, Width::Byte), 0x80);
    rig.control.write(0, Width::Byte, 0);
    assert_eq!(rig.settled(), 0x50);
    // Memory that is none; the wrong direction; a function that is no master.
    for case in 0..3 {
        let address = if case == 0 { 0xf000_0000 } else { 0x1_0000 };
        if case == 2 {
            device::pci::PciFunction::header(&*rig.ide).write(4, Width::Word, 1);
        }
        rig.start_dma(&[(address, 0x200)], case != 1);
        rig.issue(0xc8, 0, 1);
        assert_eq!(rig.interrupted(), 0x51, "case {case}");
        assert_eq!((rig.get(1), rig.master_status() & 7), (0x84, 6));
    }
}

#[test]
fn who_is_not_there_and_what_is_not_there() {
    let rig = Rig::disk(100);
    rig.set(6, 0xf0);
    assert_eq!((rig.get(7), rig.control.read(0, Width::Byte)), (0, 0));
    rig.set(3, 0x55);
    assert_eq!(rig.get(3), 0);
    rig.set(7, 0xec);
    assert!(!rig.pins.level(14));
    rig.set(6, 0xe0);
    for command in [0x00, 0xa0, 0xa1, 0xb0, 0xff, 0x08] {
        rig.issue(command, 0, 1);
        assert_eq!(rig.interrupted(), 0x51, "{command:#x}");
        assert_eq!(rig.get(1), 4);
    }
    for command in [0x10, 0x70, 0x95, 0xe0, 0xe1, 0xe2, 0xe3] {
        rig.issue(command, 0, 1);
        assert_eq!(rig.interrupted(), 0x50, "{command:#x}");
    }
    rig.issue(0xe5, 0, 0);
    rig.interrupted();
    assert_eq!(rig.get(2), 0xff);
    rig.issue(0x90, 0, 0);
    assert_eq!((rig.interrupted(), rig.get(1), rig.get(2)), (0x50, 1, 1));
    // Interrupts may be off; they come when they are on again.
    rig.control.write(0, Width::Byte, 2);
    rig.issue(0xec, 0, 0);
    assert!(!rig.pins.level(14));
    rig.control.write(0, Width::Byte, 0);
    assert!(rig.pins.level(14));
}

#[test]
fn a_disk_that_may_not_be_written() {
    let rig = Rig::new(Choices {
        kind: DriveKind::Disk,
        content: vec![7; 51_200],
        has_medium: true,
        is_writable: false,
        werror: BlockdevOnError::Auto,
    });
    rig.issue(0x30, 0, 1);
    assert_eq!((rig.interrupted(), rig.get(1)), (0x51, 4));
    assert_eq!(rig.storage.content(), vec![7; 51_200]);
}

#[test]
fn errors_are_reported() {
    let rig = Rig::disk(100);
    rig.storage.set_faults(Faults {
        fail_only: Some(0),
        ..Faults::default()
    });
    rig.issue(0x30, 9, 1);
    rig.settled();
    rig.send(&[1; 512]);
    assert_eq!((rig.interrupted(), rig.get(1), rig.get(3)), (0x51, 4, 9));
    let errors = std::mem::take(&mut *rig.events.errors.lock());
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].action, BlockErrorAction::Report);
    assert_eq!(errors[0].node_name, "disk");
}

#[test]
fn errors_stop_the_machine_and_are_tried_again() {
    let rig = Rig::new(Choices {
        kind: DriveKind::Disk,
        content: vec![0; 51_200],
        has_medium: true,
        is_writable: true,
        werror: BlockdevOnError::Stop,
    });
    rig.storage.set_faults(Faults {
        fail_only: Some(0),
        ..Faults::default()
    });
    rig.issue(0x30, 9, 1);
    rig.settled();
    rig.send(&[5; 512]);
    rig.quiet();
    assert_eq!(rig.events.errors.lock()[0].action, BlockErrorAction::Stop);
    assert_eq!(rig.control.read(0, Width::Byte), 0xd0, "it is not done");
    rig.ide.pause();
    rig.storage.set_faults(Faults::default());
    rig.ide.resume();
    assert_eq!(rig.interrupted(), 0x50);
    assert_eq!(rig.storage.content()[9 * 512..][..512], [5; 512]);
}
