//! Clients that change an export's length.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod rig;

use std::time::Duration;

use block_graph::MAX_LENGTH_BYTES;
use export_nbd::NbdServerOptions;
use host_io::Engine;
use nbd_wire::reply::ReplyFormat;
use nbd_wire::{Command, CommandFlags, ErrorCode, TransmissionFlags};
use rig::{Client, Reply, Rig, pattern};

const FORMATS: [ReplyFormat; 3] = [
    ReplyFormat::Simple,
    ReplyFormat::Structured,
    ReplyFormat::Extended,
];
const NONE: CommandFlags = CommandFlags::empty();
const MIB: u64 = 1 << 20;

fn resize(client: &mut Client, length_bytes: u64) -> Result<(), ErrorCode> {
    client.plain(Command::Resize, NONE, length_bytes, 0, &[])
}

#[test]
fn a_client_makes_its_disk_longer_and_shorter() {
    for format in FORMATS {
        let rig = Rig::start(NbdServerOptions::default());
        let node = rig.raw_node("disk", 4 * MIB);
        rig.resizable_export(&node);
        let mut client = rig.client("disk", format);
        let flags = client.ready.export.flags;
        assert!(flags.contains(TransmissionFlags::SEND_RESIZE));
        let data = pattern(1 << 20, 1);
        client.write(3 * MIB, &data).unwrap();
        assert_eq!(client.read(4 * MIB, 1), Err(ErrorCode::NoSpace));

        resize(&mut client, 6 * MIB).unwrap();
        assert_eq!(client.read(3 * MIB, MIB).unwrap(), data);
        assert_eq!(client.read(5 * MIB, MIB).unwrap(), vec![0; 1 << 20]);
        client.write(5 * MIB, &data).unwrap();
        assert_eq!(client.read(6 * MIB, 1), Err(ErrorCode::NoSpace));

        resize(&mut client, 5 * MIB).unwrap();
        assert_eq!(client.read(5 * MIB, 1), Err(ErrorCode::NoSpace));
        assert_eq!(client.write(5 * MIB, b"x"), Err(ErrorCode::NoSpace));
        assert_eq!(std::fs::metadata(rig.path("disk")).unwrap().len(), 5 * MIB);
        // What was cut off does not come back.
        resize(&mut client, 6 * MIB).unwrap();
        assert_eq!(client.read(5 * MIB, MIB).unwrap(), vec![0; 1 << 20]);
        assert_eq!(rig.client("disk", format).ready.export.size_bytes, 6 * MIB);
    }
}

#[test]
fn an_export_that_is_not_resizable_says_so() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", MIB);
    rig.export(&node, true);
    for format in FORMATS {
        let mut client = rig.client("disk", format);
        let flags = client.ready.export.flags;
        assert!(!flags.contains(TransmissionFlags::SEND_RESIZE));
        assert_eq!(resize(&mut client, 2 * MIB), Err(ErrorCode::Invalid));
        assert_eq!(client.read(MIB, 1), Err(ErrorCode::Invalid));
        assert_eq!(client.read(0, 1).unwrap(), [0]);
    }
    assert_eq!(node.length(), MIB);
}

#[test]
fn data_is_not_taken_from_under_another_client() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 4 * MIB);
    let export = rig.resizable_export(&node);
    let mut first = rig.client("disk", ReplyFormat::Structured);
    let mut second = rig.client("disk", ReplyFormat::Extended);
    assert_eq!(resize(&mut first, MIB), Err(ErrorCode::Permission));
    assert_eq!(node.length(), 4 * MIB);
    resize(&mut first, 8 * MIB).unwrap();
    second.write(7 * MIB, b"here").unwrap();
    assert_eq!(first.read(7 * MIB, 4).unwrap(), b"here");

    second.send(Command::Disconnect, NONE, 0, 0, &[]);
    second.expect_end();
    rig::eventually("the second client has gone", || export.client_count() == 1);
    resize(&mut first, MIB).unwrap();
    assert_eq!(node.length(), MIB);
}

#[test]
fn what_is_shorter_is_decided_when_its_turn_has_come() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 4 * MIB);
    rig.resizable_export(&node);
    let mut first = rig.client("disk", ReplyFormat::Structured);
    let _second = rig.client("disk", ReplyFormat::Structured);
    // Longer than the disk is when it is asked for, shorter than it is then.
    let longer = first.send(Command::Resize, NONE, 8 * MIB, 0, &[]);
    let shorter = first.send(Command::Resize, NONE, 6 * MIB, 0, &[]);
    for _ in 0..2 {
        let mut reply = Reply::default();
        let (answered, _) = first.receive_chunk(&mut reply, 0);
        let code = reply.error.map(|(code, _)| code);
        assert!(answered == longer || answered == shorter);
        assert_eq!(code.is_some(), answered == shorter, "{code:?}");
    }
    assert_eq!(node.length(), 8 * MIB);
}

#[test]
fn what_was_cut_off_while_a_request_waited_has_no_space() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 4 * MIB);
    rig.resizable_export(&node);
    let mut client = rig.client("disk", ReplyFormat::Structured);
    let mut too_late = 0;
    for _ in 0..200 {
        let shorter = client.send(Command::Resize, NONE, MIB, 0, &[]);
        client.send_reads(&[MIB, 2 * MIB, 3 * MIB], 4096);
        let mut left = 4;
        while left > 0 {
            let mut reply = Reply::default();
            let (answered, is_last) = client.receive_chunk(&mut reply, 0);
            left -= u32::from(is_last);
            if let Some((code, _)) = reply.error {
                assert_ne!(answered, shorter);
                assert_eq!(code, ErrorCode::NoSpace);
                too_late += 1;
            }
        }
        resize(&mut client, 4 * MIB).unwrap();
    }
    assert!(too_late > 0);
}

#[test]
fn requests_under_way_end_before_the_length_changes() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.null_node("slow", 4 * MIB, Duration::from_millis(300));
    rig.resizable_export(&node);
    let mut client = rig.client("slow", ReplyFormat::Structured);
    let first = client.send_reads(&[0, MIB, 2 * MIB, 3 * MIB], 4096);
    let cookie = client.send(Command::Resize, NONE, 2 * MIB, 0, &[]);
    let mut order = Vec::new();
    for _ in 0..5 {
        let mut reply = Reply::default();
        let (answered, _) = client.receive_chunk(&mut reply, 0);
        // The double has no length to change; that it was asked last is what counts here.
        assert_eq!(reply.error.is_some(), answered == cookie, "{reply:?}");
        order.push(answered);
    }
    assert_eq!(order.pop(), Some(cookie));
    order.sort_unstable();
    assert_eq!(order, (first..first + 4).collect::<Vec<_>>());
    assert_eq!(client.read(3 * MIB, 1).unwrap(), [0]);
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", MIB);
    rig.resizable_export(&node);
    let mut client = rig.client("disk", ReplyFormat::Extended);
    for length in [u64::MAX, 1 << 63, MAX_LENGTH_BYTES + 1] {
        assert_eq!(resize(&mut client, length), Err(ErrorCode::NoSpace));
    }
    // Within our limit, beyond any file system's.
    assert!(resize(&mut client, MAX_LENGTH_BYTES).is_err());
    let flagged = client.plain(Command::Resize, CommandFlags::FAST_ZERO, MIB, 0, &[]);
    assert_eq!(flagged, Err(ErrorCode::Invalid));
    assert_eq!(node.length(), MIB);
    assert_eq!(client.read(MIB - 1, 1).unwrap(), [0]);
}

#[test]
fn clients_that_resize_all_at_once_get_all_their_answers() {
    let rig = Rig::start_on(NbdServerOptions::default(), Engine::Uring, 2);
    let node = rig.raw_node("disk", MIB);
    rig.resizable_export(&node);
    let mut clients: Vec<_> = (0..4)
        .map(|_| rig.client("disk", ReplyFormat::Structured))
        .collect();
    let data = pattern(4096, 7);
    for round in 1..=50_u64 {
        for client in &mut clients {
            client.send(Command::Write, NONE, 4096 * round, 4096, &data);
            client.send(Command::Resize, NONE, MIB + round * 65_536, 0, &[]);
            client.send(Command::Read, NONE, 4096 * round, 4096, &[]);
        }
    }
    for client in &mut clients {
        for _ in 0..150 {
            let mut reply = Reply::default();
            client.receive_chunk(&mut reply, 0);
            // One that comes late would make it shorter again, under the others.
            if let Some((code, _)) = reply.error {
                assert_eq!(code, ErrorCode::Permission);
            }
        }
    }
    assert!(node.length() >= MIB + 65_536);
    assert_eq!(clients[0].read(4096, 4096).unwrap(), data);
}
