//! Every command, in each of the three reply formats, by a client over the wire machine.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod rig;

use std::time::{Duration, Instant};

use export::Export;
use export_nbd::NbdServerOptions;
use host_io::Engine;
use nbd_wire::reply::ReplyFormat;
use nbd_wire::{Command, CommandFlags, ErrorCode, StatusSelection, TransmissionFlags};
use rig::{Client, Rig, eventually, pattern};

const FORMATS: [ReplyFormat; 3] = [
    ReplyFormat::Simple,
    ReplyFormat::Structured,
    ReplyFormat::Extended,
];
const NONE: CommandFlags = CommandFlags::empty();
const MIB: u64 = 1 << 20;

#[test]
fn what_is_written_is_read_back_on_both_engines() {
    for engine in [Engine::Uring, Engine::Threads] {
        let rig = Rig::start_on(NbdServerOptions::default(), engine, 2);
        let node = rig.raw_node("disk", 64 * MIB);
        let export = rig.export(&node, true);
        for (index, format) in FORMATS.into_iter().enumerate() {
            let mut client = rig.client("disk", format);
            assert_eq!(client.ready.export.size_bytes, 64 * MIB);
            let sizes = [1, 511, 4096, 65_536, 200_000, 3 << 20, 32 << 20];
            for (seed, size) in sizes.into_iter().enumerate() {
                let data = pattern(size, (index * 10 + seed) as u64);
                let offset = 777 * seed as u64;
                client.write(offset, &data).unwrap();
                assert_eq!(client.read(offset, size as u64).unwrap(), data);
            }
            let fua = CommandFlags::FUA;
            client.plain(Command::Write, fua, 5, 3, b"fua").unwrap();
            client.plain(Command::Flush, NONE, 0, 0, &[]).unwrap();
            client.plain(Command::Cache, NONE, 0, 3 * MIB, &[]).unwrap();
            client.send(Command::Disconnect, NONE, 0, 0, &[]);
            client.expect_end();
        }
        eventually("clients have gone", || export.client_count() == 0);
        let file = std::fs::read(rig.path("disk")).unwrap();
        assert_eq!(&file[5..8], b"fua");
    }
}

#[test]
fn many_requests_at_once_are_all_answered_with_their_own_data() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 16 * MIB);
    rig.export(&node, true);
    for format in FORMATS {
        let mut client = rig.client("disk", format);
        let image = pattern(16 << 20, 9);
        for (index, part) in image.chunks(1 << 20).enumerate() {
            client.send(Command::Write, NONE, index as u64 * MIB, MIB, part);
        }
        for _ in 0..16 {
            client.receive_chunk(&mut rig::Reply::default(), 0);
        }
        // More than are served at a time, so the rest waits in the socket.
        let wanted: Vec<u64> = (0..700).map(|n| (n * 7919) % 4000 * 4096).collect();
        let first = client.send_reads(&wanted, 4096);
        for _ in &wanted {
            let mut reply = rig::Reply::default();
            let (cookie, done) = client.receive_chunk(&mut reply, 4096);
            assert!(done);
            let offset = usize::try_from(wanted[(cookie - first) as usize]).unwrap();
            assert_eq!(reply.data, &image[offset..offset + 4096]);
        }
    }
}

#[test]
fn holes_are_sent_as_holes_unless_the_client_wants_one_chunk() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 16 * MIB);
    rig.export(&node, true);
    for format in [ReplyFormat::Structured, ReplyFormat::Extended] {
        let mut client = rig.client("disk", format);
        let data = pattern(1 << 20, 3);
        client.write(4 * MIB, &data).unwrap();
        let reply = client.call(Command::Read, NONE, 3 * MIB, 3 * MIB, &[]);
        assert_eq!(reply.holes, [(3 * MIB, MIB), (5 * MIB, MIB)]);
        assert_eq!(&reply.data[1 << 20..2 << 20], &data);
        let dense = client.call(Command::Read, CommandFlags::DF, 3 * MIB, 3 * MIB, &[]);
        assert_eq!(dense.holes, []);
        assert_eq!(dense.data, reply.data);
        // What was data and becomes a hole reads as zeroes all the same.
        client
            .plain(Command::Trim, NONE, 4 * MIB, MIB, &[])
            .unwrap();
        assert_eq!(client.read(4 * MIB, MIB).unwrap(), vec![0; 1 << 20]);
    }
}

#[test]
fn zeroes_and_trims_show_in_block_status() {
    const HOLE_ZERO: u64 = 3;
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 8 * MIB);
    rig.export(&node, true);
    for format in [ReplyFormat::Structured, ReplyFormat::Extended] {
        let mut client = rig.client("disk", format);
        client.write(0, &pattern(8 << 20, 5)).unwrap();
        client
            .plain(Command::WriteZeroes, NONE, MIB, MIB, &[])
            .unwrap();
        client
            .plain(Command::Trim, NONE, 3 * MIB, MIB, &[])
            .unwrap();
        let no_hole = CommandFlags::NO_HOLE | CommandFlags::FUA;
        client
            .plain(Command::WriteZeroes, no_hole, 5 * MIB, MIB, &[])
            .unwrap();
        assert_eq!(client.read(5 * MIB, MIB).unwrap(), vec![0; 1 << 20]);
        let reply = client.call(Command::BlockStatus, NONE, 0, 4 * MIB, &[]);
        let (id, extents) = &reply.status[0];
        assert_eq!(*id, client.ready.negotiated.meta_contexts[0].id);
        let expected = [(MIB, 0), (MIB, HOLE_ZERO), (MIB, 0), (MIB, HOLE_ZERO)];
        assert_eq!(*extents, expected);
        assert_eq!(reply.status.len(), 2, "the depth is told, too");
        let total: u64 = reply.status[1].1.iter().map(|extent| extent.0).sum();
        assert_eq!(total, 4 * MIB);
        let one = client.call(Command::BlockStatus, CommandFlags::REQ_ONE, 0, 4 * MIB, &[]);
        assert_eq!(one.status[0].1, [(MIB, 0)]);
    }
    let mut client = rig.client("disk", ReplyFormat::Simple);
    let refused = client.plain(Command::BlockStatus, NONE, 0, MIB, &[]);
    assert_eq!(refused, Err(ErrorCode::Invalid));
}

#[test]
fn block_status_can_name_its_contexts_in_a_payload() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.null_node("disk", 1 << 40, Duration::ZERO);
    rig.export(&node, true);
    let mut client = rig.client("disk", ReplyFormat::Extended);
    let depth = client.ready.negotiated.meta_contexts[1].clone();
    assert_eq!(depth.name, "qemu:allocation-depth");
    let mut payload = Vec::new();
    let selection = StatusSelection {
        length: 1 << 40,
        context_ids: vec![depth.id],
    };
    selection.encode(&mut payload);
    let flags = CommandFlags::PAYLOAD_LEN;
    let length = payload.len() as u64;
    let reply = client.call(Command::BlockStatus, flags, 0, length, &payload);
    assert_eq!(reply.status, [(depth.id, vec![(1 << 40, 1)])]);
    payload.push(0);
    let wrong = client.call(Command::BlockStatus, flags, 0, length + 1, &payload);
    assert_eq!(wrong.error.unwrap().0, ErrorCode::Invalid);
    // 64-bit lengths go whole.
    client
        .plain(Command::WriteZeroes, NONE, 0, 1 << 40, &[])
        .unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_and_the_session_goes_on() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 4 * MIB);
    rig.export(&node, true);
    let read_only = rig.null_node("ro", MIB, Duration::ZERO);
    rig.export(&read_only, false);
    for format in FORMATS {
        let mut client = rig.client("disk", format);
        assert_eq!(client.read(4 * MIB, 1), Err(ErrorCode::Invalid));
        assert_eq!(client.read(u64::MAX, 1), Err(ErrorCode::Invalid));
        assert_eq!(client.read(0, 33 * MIB), Err(ErrorCode::Invalid));
        assert_eq!(client.write(4 * MIB - 1, b"xy"), Err(ErrorCode::NoSpace));
        let unknown = Command::from_number(77);
        let refused = client.plain(unknown, NONE, 0, 0, &[]);
        assert_eq!(refused, Err(ErrorCode::Invalid));
        let resize = client.plain(Command::Resize, NONE, 0, MIB, &[]);
        assert_eq!(resize, Err(ErrorCode::Invalid));
        client.write(0, b"on").unwrap();
        assert_eq!(client.read(0, 2).unwrap(), b"on");
        assert_eq!(client.read(0, 0).unwrap(), b"");

        let mut client = rig.client("ro", format);
        let flags = client.ready.export.flags;
        assert!(flags.contains(TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN));
        assert_eq!(client.write(0, b"no"), Err(ErrorCode::Permission));
        assert_eq!(client.read(0, 512).unwrap(), vec![0; 512]);
    }
}

#[test]
fn fast_zeroes_are_refused_where_they_are_not_fast() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 4 * MIB);
    rig.export(&node, true);
    let mut client = rig.client("disk", ReplyFormat::Structured);
    let fast = CommandFlags::FAST_ZERO;
    // The host's file system says whether it can: both answers are right, silence is not.
    let answer = client.plain(Command::WriteZeroes, fast, 0, MIB, &[]);
    assert!(matches!(answer, Ok(()) | Err(ErrorCode::NotSupported)));
}

#[test]
fn clients_see_a_new_length() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", MIB);
    let export = rig.export(&node, true);
    let mut client = rig.client("disk", ReplyFormat::Structured);
    assert_eq!(client.read(MIB, 512), Err(ErrorCode::Invalid));
    rig.run(move || async move { node.resize(2 * MIB, true, Default::default()).await })
        .unwrap();
    assert_eq!(client.read(MIB, 512).unwrap(), vec![0; 512]);
    let second = rig.client("disk", ReplyFormat::Simple);
    assert_eq!(second.ready.export.size_bytes, 2 * MIB);
    eventually("both are counted", || export.client_count() == 2);
}

#[test]
fn shutting_down_waits_for_requests_and_lets_the_node_go() {
    let latency = Duration::from_millis(400);
    let mut rig = Rig::start(NbdServerOptions::default());
    let node = rig.null_node("disk", MIB, latency);
    let export = rig.export(&node, true);
    let mut client = rig.client("disk", ReplyFormat::Structured);
    let idle = rig.client("disk", ReplyFormat::Simple);
    let began = Instant::now();
    for _ in 0..50 {
        client.send(Command::Write, NONE, 0, 4, b"data");
    }
    eventually("requests are under way", || {
        node.in_flight().count_now() >= 50
    });
    assert!(export.has_clients());
    assert!(!node.parents().is_empty());
    rig.shutdown(&export);
    assert!(began.elapsed() >= latency);
    assert_eq!(node.in_flight().count_now(), 0);
    assert!(node.parents().is_empty() && !export.has_clients());
    client.expect_end();
    idle.expect_end();
    let gone = Client::try_start(rig.connect(), "disk", ReplyFormat::Simple);
    assert!(gone.is_err());
    rig.stop();
    assert!(std::os::unix::net::UnixStream::connect(rig.socket()).is_err());
}

#[test]
fn an_export_can_have_an_executor_of_its_own() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 4 * MIB);
    let own = host_io::Executor::start("iothread0", Engine::Uring).unwrap();
    let handle = own.handle();
    rig.export_with(&node, true, |options| options.executor = Some(handle));
    let mut client = rig.client("disk", ReplyFormat::Structured);
    client.write(1, b"elsewhere").unwrap();
    assert_eq!(client.read(1, 9).unwrap(), b"elsewhere");
    // With the thread gone, so are its connections; the server goes on.
    drop(own);
    client.expect_end();
    let other = rig.null_node("other", MIB, Duration::ZERO);
    rig.export(&other, false);
    let mut client = rig.client("other", ReplyFormat::Simple);
    assert_eq!(client.read(0, 1).unwrap(), [0]);
}

#[test]
fn names_are_checked() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.null_node("disk", MIB, Duration::ZERO);
    rig.export(&node, false);
    let asked = block_graph::Permissions::NONE;
    let backend = rig.graph.attach_backend("x", &node, asked).unwrap();
    let options = |name: &str, description: Option<String>| export_nbd::NbdExportOptions {
        id: "x".to_owned(),
        name: name.to_owned(),
        description,
        backend: backend.clone(),
        graph: rig.graph.clone(),
        writable: false,
        allocation_depth: false,
        writethrough: false,
        resizer: None,
        executor: None,
    };
    let server = rig.server.as_ref().unwrap();
    let refusal = |options| server.add_export(options).err().unwrap().to_string();
    assert_eq!(
        refusal(options("disk", None)),
        "NBD server already has export named 'disk'"
    );
    let long = "x".repeat(4097);
    assert_eq!(
        refusal(options(&long, None)),
        format!("export name '{long}' too long")
    );
    assert_eq!(
        refusal(options("d", Some(long.clone()))),
        format!("description '{long}' too long")
    );
    server
        .add_export(options(&long[1..], Some("y".repeat(4096))))
        .unwrap();
}
