use device::Width;

use super::{PRIMARY, Rig, backend_over, pattern};

const NOT_YET: &[u8] = &[0x00];

/// Takes the unit attention that comes with the power.
fn ready(sectors: usize) -> Rig {
    let rig = Rig::cdrom(sectors);
    let (status, _) = rig.reply(0xfffe, NOT_YET);
    assert_eq!((status, rig.get(1)), (0x51, 0x64));
    assert_eq!(sense(&rig), (6, 0x29, 0));
    rig
}

fn sense(rig: &Rig) -> (u8, u8, u8) {
    let (status, reply) = rig.reply(0xfffe, &[3, 0, 0, 0, 18]);
    assert_eq!((status, reply.len()), (0x50, 18));
    (reply[2], reply[12], reply[13])
}

fn fails(rig: &Rig, packet: &[u8], wanted: (u8, u8, u8)) {
    let (status, reply) = rig.reply(0xfffe, packet);
    assert_eq!((status, reply.len()), (0x51, 0), "{packet:x?}");
    assert_eq!(rig.get(1), wanted.0 << 4 | 4);
    assert_eq!(sense(rig), wanted, "{packet:x?}");
}

fn fine(rig: &Rig, packet: &[u8]) -> Vec<u8> {
    let (status, reply) = rig.reply(0xfffe, packet);
    assert_eq!(status, 0x50, "{packet:x?}: {:x?}", sense(rig));
    reply
}

#[test]
fn it_says_what_it_is() {
    let rig = Rig::cdrom(100);
    assert_eq!(
        (rig.get(2), rig.get(3), rig.get(4), rig.get(5)),
        (1, 1, 0x14, 0xeb)
    );
    assert_eq!(rig.get(7), 0);
    // A disk's IDENTIFY is refused, with the signature.
    rig.issue(0xec, 0, 0);
    assert_eq!(rig.interrupted(), 0x51);
    assert_eq!((rig.get(1), rig.get(4), rig.get(5)), (4, 0x14, 0xeb));
    rig.issue(0xa1, 0, 0);
    assert_eq!(rig.interrupted(), 0x58);
    let words = rig.words(512);
    assert_eq!(words[..2], [0xc0, 0x85]);
    assert_eq!(
        words.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    assert_eq!(rig.settled(), 0x50);
    rig.set(7, 8);
    assert_eq!((rig.get(7), rig.get(4)), (0, 0x14));
    assert!(!rig.pins.level(14));
}

#[test]
fn replies_to_packets() {
    let rig = ready(1000);
    let inquiry = fine(&rig, &[0x12, 0, 0, 0, 36]);
    assert_eq!(&inquiry[8..32], b"RATITE  HARDDISK        ");
    assert_eq!(inquiry[..2], [5, 0x80]);
    assert_eq!(
        fine(&rig, &[0x12, 0, 0, 0, 5]).len(),
        5 + 1,
        "words are whole"
    );
    assert_eq!(fine(&rig, &[0x25]), [0, 0, 3, 231, 0, 0, 8, 0]);
    let table = fine(&rig, &[0x43, 0, 0, 0, 0, 0, 0, 0, 100]);
    assert_eq!(table.len(), 20);
    assert_eq!(table[..4], [0, 18, 1, 1]);
    assert_eq!(table[16..], 1000_u32.to_be_bytes());
    // As minutes, seconds and frames: 1150 frames are 15 seconds and 25.
    let table = fine(&rig, &[0x43, 2, 0, 0, 0, 0, 0, 0, 100]);
    assert_eq!(
        (&table[8..12], &table[16..]),
        (&[0, 0, 2, 0][..], &[0, 0, 15, 25][..])
    );
    let session = fine(&rig, &[0x43, 0, 1, 0, 0, 0, 0, 0, 12]);
    assert_eq!(session, [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
    let pages = fine(&rig, &[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 200]);
    assert_eq!(usize::from(pages[1]) + 2, pages.len());
    assert_eq!((pages[8], pages[16]), (0x01, 0x2a));
    let configuration = fine(&rig, &[0x46, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(configuration[6..8], [0, 8], "a CD");
    assert_eq!(usize::from(configuration[3]) + 4, configuration.len());
    assert_eq!(
        fine(&rig, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]),
        [0, 6, 4, 0x10, 0, 2, 0, 0]
    );
    fails(&rig, &[0x5a, 0, 0x0f, 0, 0, 0, 0, 0, 200], (5, 0x24, 0));
    fails(&rig, &[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8], (5, 0x24, 0));
    fails(&rig, &[0x04], (5, 0x20, 0));
    assert_eq!(sense(&rig), (0, 0, 0));
}

#[test]
fn sectors_in_pieces_and_by_dma() {
    let rig = ready(1000);
    let content = rig.storage.content();
    let (status, read) = rig.reply(3000, &[0x28, 0, 0, 0, 0, 10, 0, 0, 70]);
    assert_eq!(status, 0x50);
    assert!(read == content[10 * 2048..][..70 * 2048]);
    let (_, read) = rig.reply(2048, &[0xa8, 0, 0, 0, 3, 231, 0, 0, 0, 1]);
    assert!(read == content[999 * 2048..]);
    assert_eq!(
        fine(&rig, &[0xbe, 0, 0, 0, 0, 1, 0, 0, 2, 0x10]),
        content[2048..][..4096]
    );
    fails(&rig, &[0x28, 0, 0, 0, 3, 231, 0, 0, 2], (5, 0x21, 0));
    fails(
        &rig,
        &[0xa8, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        (5, 0x21, 0),
    );
    assert!(fine(&rig, &[0x28, 0, 0, 0, 0, 10, 0, 0, 0]).is_empty());
    // By the bus master: data of the medium, and an answer.
    rig.start_dma(
        &[
            (0x10_0000, 0),
            (0x12_0000, 0),
            (0x14_0000, 0),
            (0x16_0000, 0),
            (0x18_0000, 0xc000),
        ],
        true,
    );
    rig.packet(1, 0, &[0x28, 0, 0, 0, 0, 100, 0, 0, 152]);
    assert_eq!(rig.interrupted(), 0x50);
    assert_eq!(rig.get(2), 3);
    assert_eq!(rig.master_status() & 7, 4);
    assert!(rig.in_memory(0x12_0000, 0x1_0000) == content[100 * 2048 + 0x1_0000..][..0x1_0000]);
    assert!(rig.in_memory(0x18_0000, 0xc000) == content[100 * 2048 + 0x4_0000..][..0xc000]);
    rig.start_dma(&[(0x1_0000, 8)], true);
    rig.packet(1, 0, &[0x25]);
    assert_eq!(rig.interrupted(), 0x50);
    assert_eq!(rig.in_memory(0x1_0000, 8), [0, 0, 3, 231, 0, 0, 8, 0]);
}

#[test]
fn the_tray_and_the_medium() {
    let rig = ready(0);
    fails(&rig, NOT_YET, (2, 0x3a, 0));
    fails(&rig, &[0x25], (2, 0x3a, 0));
    rig.ide
        .set_medium(PRIMARY, Some(backend_over(&rig.storage, false)));
    fails(&rig, NOT_YET, (6, 0x28, 0));
    fine(&rig, NOT_YET);
    // Locked, the tray stays; the owner may open it by force.
    fine(&rig, &[0x1e, 0, 0, 0, 1]);
    assert!(rig.ide.is_locked(PRIMARY));
    fails(&rig, &[0x1b, 0, 0, 0, 2], (5, 0x53, 2));
    rig.ide.request_eject(PRIMARY);
    assert_eq!(fine(&rig, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[4], 1);
    assert_eq!(fine(&rig, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[4], 0);
    fine(&rig, &[0x1e, 0, 0, 0, 0]);
    fine(&rig, &[0x1b, 0, 0, 0, 2]);
    assert!(rig.ide.is_tray_open(PRIMARY));
    fails(&rig, NOT_YET, (2, 0x3a, 2));
    assert_eq!(fine(&rig, &[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8])[1], 0x10);
    fine(&rig, &[0x1b, 0, 0, 0, 3]);
    assert_eq!(*rig.events.tray.lock(), [true, false]);
    fails(&rig, NOT_YET, (6, 0x28, 0));
    assert!(rig.ide.move_tray(PRIMARY, true));
    assert!(!rig.ide.move_tray(PRIMARY, true));
    assert!(rig.ide.set_medium(PRIMARY, None).unwrap().is_some());
}

#[test]
fn a_reset_ends_a_packet() {
    let rig = ready(10);
    rig.packet(0, 100, &[0x28, 0, 0, 0, 0, 0, 0, 0, 4]);
    rig.interrupted();
    rig.words(50);
    rig.control.write(0, Width::Byte, 4);
    rig.control.write(0, Width::Byte, 0);
    assert_eq!((rig.settled(), rig.get(4), rig.get(5)), (0, 0x14, 0xeb));
    let (status, read) = rig.reply(0xfffe, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(status, 0x50);
    assert_eq!(read, pattern(2048));
}
