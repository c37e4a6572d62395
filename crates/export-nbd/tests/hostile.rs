//! Clients that break the rules, vanish, flood or wait.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod rig;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use export_nbd::{MAX_REQUESTS, NbdServer, NbdServerOptions};
use host_io::{Engine, Executor};
use nbd_wire::reply::ReplyFormat;
use nbd_wire::{Command, CommandFlags};
use rig::{Client, Rig, eventually, pattern};

const NONE: CommandFlags = CommandFlags::empty();
const MIB: u64 = 1 << 20;

fn works(rig: &Rig) {
    let mut client = rig.client("disk", ReplyFormat::Structured);
    client.write(0, b"still here").unwrap();
    assert_eq!(client.read(0, 10).unwrap(), b"still here");
}

#[test]
fn garbage_at_every_stage_harms_nobody_else() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 4 * MIB);
    let export = rig.export(&node, true);
    let mut steady = rig.client("disk", ReplyFormat::Extended);
    for seed in 0..60 {
        let garbage = pattern(20_000, seed);
        let mut stream = rig.connect();
        // Behind the greeting, behind the client flags, and behind a good option header.
        let mut before: Vec<u8> = Vec::new();
        if seed % 3 > 0 {
            before.extend_from_slice(&[0, 0, 0, 3]);
        }
        if seed % 3 > 1 {
            before.extend_from_slice(b"IHAVEOPT\0\0\0\x07\0\0\x10\0");
        }
        let _ = stream.write_all(&[before, garbage.clone()].concat());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        for format in [ReplyFormat::Simple, ReplyFormat::Extended] {
            let mut client = rig.client("disk", format);
            client.send_raw(&garbage);
            client.expect_end();
        }
        assert_eq!(steady.read(0, 1).unwrap().len(), 1);
    }
    eventually("only one is left", || export.client_count() == 1);
    works(&rig);
}

#[test]
fn half_a_header_and_then_nothing_ends_the_connection() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 4 * MIB);
    rig.export(&node, true);
    let mut client = rig.client("disk", ReplyFormat::Simple);
    client.send_raw(&0x2560_9513_u32.to_be_bytes());
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    client.expect_end();
    works(&rig);
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_a_write_changes_nothing() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.raw_node("disk", 64 * MIB);
    let export = rig.export(&node, true);
    for _ in 0..20 {
        let mut client = rig.client("disk", ReplyFormat::Structured);
        let half = pattern(1 << 20, 1);
        client.send(Command::Write, NONE, 0, 32 * MIB, &half);
    }
    eventually("they have gone", || export.client_count() == 0);
    let file = std::fs::read(rig.path("disk")).unwrap();
    assert!(file.iter().all(|byte| *byte == 0));
    works(&rig);
}

#[test]
fn a_client_that_does_not_read_is_bounded_and_can_be_cut_off() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.null_node("disk", 64 * MIB, Duration::ZERO);
    let export = rig.export(&node, true);
    let mut client = rig.client("disk", ReplyFormat::Structured);
    client
        .stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    // Reads of 1 MiB each, never fetched: sooner or later the server stops taking them.
    let one: Vec<u64> = vec![0; 64];
    let mut sent = 0;
    let began = Instant::now();
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        loop {
            client.send_reads(&one, MIB);
            sent += one.len();
            assert!(began.elapsed() < Duration::from_secs(30));
        }
    }));
    assert!(stopped.is_err() && sent < 100_000);
    assert!(export.client_count() == 1);
    let done = node.in_flight().count_now();
    assert!(done <= MAX_REQUESTS);
    rig.shutdown(&export);
    assert_eq!(node.in_flight().count_now(), 0);
}

#[test]
fn requests_that_began_end_when_the_client_has_gone() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.null_node("disk", MIB, Duration::from_millis(300));
    let export = rig.export(&node, true);
    let mut client = rig.client("disk", ReplyFormat::Structured);
    for _ in 0..10 {
        client.send(Command::Write, NONE, 0, 4, b"data");
    }
    eventually("they have begun", || node.in_flight().count_now() == 10);
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(export.client_count(), 1, "the export waits for them");
    eventually("they have ended", || export.client_count() == 0);
    assert_eq!(node.in_flight().count_now(), 0);
}

#[test]
fn a_client_that_closes_its_end_still_gets_its_replies() {
    let rig = Rig::start(NbdServerOptions::default());
    let node = rig.null_node("disk", MIB, Duration::from_millis(100));
    rig.export(&node, true);
    let mut client = rig.client("disk", ReplyFormat::Simple);
    client.send_reads(&[0, 512, 1024], 512);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..3 {
        let mut reply = rig::Reply::default();
        client.receive_chunk(&mut reply, 512);
        assert_eq!(reply.data, [0; 512]);
    }
    client.expect_end();
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let options = NbdServerOptions {
        max_connections: 3,
        ..NbdServerOptions::default()
    };
    let mut rig = Rig::start(options);
    let node = rig.raw_node("disk", MIB);
    rig.export(&node, true);
    let mut first: Vec<Client> = (0..3)
        .map(|_| rig.client("disk", ReplyFormat::Simple))
        .collect();
    let mut waiting = rig.connect();
    waiting
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(waiting.read(&mut [0; 8]).is_err(), "no greeting yet");
    assert_eq!(rig.server.as_ref().unwrap().client_count(), 3);
    first.pop();
    waiting
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut client = Client::start(waiting, "disk", ReplyFormat::Simple);
    client.write(0, b"x").unwrap();
    drop((client, first));
    // Two hundred at once on a limit of three: each gets its turn.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..25 {
                    works(&rig);
                }
            });
        }
    });
    rig.stop();
}

#[test]
fn two_hundred_clients_at_once_are_served_without_a_limit() {
    let options = NbdServerOptions {
        max_connections: 0,
        ..NbdServerOptions::default()
    };
    let rig = Rig::start_on(options, Engine::Uring, 2);
    let node = rig.raw_node("disk", MIB);
    let export = rig.export(&node, true);
    let mut clients: Vec<Client> = (0..200)
        .map(|_| rig.client("disk", ReplyFormat::Structured))
        .collect();
    eventually("all are counted", || export.client_count() == 200);
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(Command::Write, NONE, index as u64, 1, &[index as u8]);
    }
    for client in &mut clients {
        client.receive_chunk(&mut rig::Reply::default(), 0);
    }
    let expected: Vec<u8> = (0..200).collect();
    assert_eq!(clients[77].read(0, 200).unwrap(), expected);
}

#[test]
fn a_handshake_has_a_deadline() {
    let options = NbdServerOptions {
        handshake_max_seconds: 1,
        ..NbdServerOptions::default()
    };
    let rig = Rig::start(options);
    let node = rig.raw_node("disk", MIB);
    rig.export(&node, true);
    let mut steady = rig.client("disk", ReplyFormat::Simple);
    let began = Instant::now();
    let mut idle = rig.connect();
    let mut greeting = Vec::new();
    idle.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting.len(), 18);
    assert!(began.elapsed() >= Duration::from_millis(900));
    // The deadline is the handshake's only.
    steady.write(0, b"x").unwrap();
    assert_eq!(rig.server.as_ref().unwrap().client_count(), 1);
}

#[test]
fn tcp_and_several_listeners_serve_the_same_exports() {
    let four = TcpListener::bind("127.0.0.1:0").unwrap();
    let six = TcpListener::bind("[::1]:0").unwrap();
    let ports = [four.local_addr().unwrap(), six.local_addr().unwrap()];
    let executor = Executor::start("nbd", Engine::Uring).unwrap();
    let listeners: Vec<OwnedFd> = vec![four.into(), six.into()];
    let options = NbdServerOptions {
        max_connections: 1,
        ..NbdServerOptions::default()
    };
    let server = NbdServer::start(listeners, vec![executor.handle()], options).unwrap();
    for address in ports.into_iter().cycle().take(10) {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..8], b"NBDMAGIC");
    }
    executor
        .handle()
        .spawn(move || server.stop())
        .wait()
        .unwrap();
    assert!(TcpStream::connect(ports[0]).is_err());
}
