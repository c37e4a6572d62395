//! The QMP clients people have: `qemu.qmp` of PyPI, the older clients' way of speaking, several at
//! once, and descriptors passed over the socket.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod support;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use support::tools::{self, create_image, qemu_io, run};
use support::{Daemon, PATIENCE, Qmp, new_folder};

#[test]
fn qemu_qmp_uses_every_command_and_sees_events_in_order() {
    let folder = new_folder();
    create_image(&folder.path().join("disk.qcow2"), "qcow2", "", "8M");
    let mut daemon = Daemon::start_in(folder, &[]);
    let script = tools::script("every_command.py");
    let socket = daemon.path("qmp.sock");
    run(tools::python_with_qmp()
        .arg(script)
        .arg(socket)
        .arg(daemon.folder()));
    let status = daemon.wait();
    assert!(
        status.success() && daemon.stderr().is_empty(),
        "{status}: {}",
        daemon.stderr()
    );
}

/// Clients of the first years: no `enable`, everything in one write without line ends, replies
/// read until one has `return`, the connection closed without a word.
#[test]
fn an_older_client_says_everything_at_once() {
    let daemon = Daemon::start(&[]);
    let mut stream = UnixStream::connect(daemon.path("qmp.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let all = concat!(
        r#"{"execute":"qmp_capabilities"}"#,
        r#"{ "execute" : "query-events" } {"execute":"query-commands"}"#,
        r#"{'execute':'query-version','id':'last'}"#,
    );
    stream.write_all(all.as_bytes()).unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("\"last\"") {
        let count = stream.read(&mut buffer).expect("more replies");
        assert!(count > 0, "the end after {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).expect("ASCII"));
    }
    assert!(text.is_ascii() && text.ends_with("\r\n"));
    let lines: Vec<Value> = text
        .split_terminator("\r\n")
        .map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}")))
        .collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0]["QMP"]["version"]["qemu"]["major"].is_u64());
    assert_eq!(lines[1], json!({"return": {}}));
    let events = lines[2]["return"].as_array().expect("events");
    assert!(
        events.contains(&json!({"name": "BLOCK_EXPORT_DELETED"})),
        "{events:?}"
    );
    let commands = lines[3]["return"].as_array().expect("commands");
    assert!(commands.contains(&json!({"name": "quit"})), "{commands:?}");
    assert_eq!(lines[4]["id"], "last");
    drop(stream);
    daemon.quit();
}

#[test]
fn two_clients_at_once_on_one_socket() {
    let daemon = Daemon::start(&["--blockdev", "null-co,node-name=n,read-zeroes=on"]);
    let mut one = daemon.qmp();
    // The second one's negotiation is its own.
    let mut other = Qmp::connect_raw(&daemon.path("qmp.sock")).unwrap();
    let greeting = other.read(PATIENCE).expect("a greeting");
    assert!(greeting.get("QMP").is_some(), "{greeting}");
    let refused = other.execute("query-version", &json!({})).unwrap_err();
    assert_eq!(refused["class"], "CommandNotFound");
    one.ok("query-version", &json!({}));
    other.ok("qmp_capabilities", &json!({"enable": ["oob"]}));

    // Each sees what the other did, and the events of it.
    one.ok(
        "nbd-server-start",
        &json!({"addr": {"type": "unix", "data": {"path": daemon.path("nbd.sock")}}}),
    );
    other.ok(
        "block-export-add",
        &json!({"type": "nbd", "id": "e", "node-name": "n"}),
    );
    assert_eq!(one.ok("query-block-exports", &json!({}))[0]["id"], "e");
    one.ok("block-export-del", &json!({"id": "e"}));
    for client in [&mut one, &mut other] {
        assert_eq!(client.event("BLOCK_EXPORT_DELETED")["data"]["id"], "e");
    }

    // Replies go to who asked: ids of the two may be the same.
    one.send(b"{\"execute\":\"query-version\",\"id\":7}");
    other.send(b"{\"execute\":\"query-block\",\"id\":7}");
    assert!(one.read(PATIENCE).unwrap()["return"]["qemu"].is_object());
    assert_eq!(
        other.read(PATIENCE).unwrap(),
        json!({"return": [], "id": 7})
    );
    drop(other);
    one.ok("query-version", &json!({}));
    daemon.quit();
}

#[test]
fn many_clients_and_a_deaf_one() {
    let daemon = Daemon::start(&[]);
    // It asks for more than fits into its socket, and never reads.
    let mut deaf = UnixStream::connect(daemon.path("qmp.sock")).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    deaf.write_all(b"{\"execute\":\"qmp_capabilities\"}")
        .unwrap();
    let request = b"{\"execute\":\"query-qmp-schema\"}".repeat(200);
    // What does not fit any more times out, as it should.
    let _ = deaf.write_all(&request);
    let mut clients: Vec<Qmp> = (0..20).map(|_| daemon.qmp()).collect();
    let began = Instant::now();
    for _ in 0..10 {
        for client in &mut clients {
            client.ok("query-version", &json!({}));
        }
    }
    assert!(began.elapsed() < PATIENCE);
    drop(clients);
    drop(deaf);
    daemon.quit();
}

#[test]
fn a_slow_command_of_one_client_does_not_delay_another() {
    let daemon = Daemon::start(&[]);
    let fifo = daemon.path("fifo");
    run(tools::tool("sh").args(["-c", &format!("mkfifo {}", fifo.display())]));
    let mut slow = daemon.qmp();
    let mut quick = daemon.qmp();
    // Waits until somebody writes to it.
    let backend = json!({"type": "file", "data": {"in": fifo, "out": "/dev/null"}});
    let request =
        json!({"execute": "chardev-add", "id": 1, "arguments": {"id": "c", "backend": backend}});
    slow.send(request.to_string().as_bytes());
    assert!(
        slow.read(Duration::from_millis(300)).is_none(),
        "opening a fifo waits"
    );
    let began = Instant::now();
    quick.ok("query-version", &json!({}));
    quick.ok("query-block", &json!({}));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    let writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    assert_eq!(slow.read(PATIENCE).expect("the reply")["id"], 1);
    drop(writer);
    daemon.quit();
}

/// Sends a descriptor with these bytes.
fn send_with_descriptor(stream: &UnixStream, bytes: &[u8], descriptor: impl AsFd) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let parts = [std::io::IoSlice::new(bytes)];
    let sent = sendmsg(stream, &parts, &mut control, SendFlags::empty()).expect("sent");
    assert_eq!(sent, bytes.len());
}

#[test]
fn a_passed_descriptor_becomes_a_node() {
    let folder = new_folder();
    let image = folder.path().join("disk.qcow2");
    create_image(&image, "qcow2", "", "8M");
    qemu_io("qcow2", &image.display().to_string(), &["write -P 3 0 64k"]);
    let daemon = Daemon::start_in(folder, &[]);
    // The file has no name any more when the daemon opens it, and the daemon's folder does not
    // matter: only the descriptor leads there.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&image)
        .unwrap();
    let kept = daemon.path("kept.qcow2");
    std::fs::rename(&image, &kept).unwrap();

    let raw = UnixStream::connect(daemon.path("qmp.sock")).unwrap();
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    send_with_descriptor(
        &raw,
        b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"add-fd\",\"arguments\":{\"fdset-id\":5}}",
        &file,
    );
    drop(file);
    let mut qmp = daemon.qmp();
    support::wait_until("the set is there", || {
        qmp.ok("query-fdsets", &json!({}))
            .as_array()
            .is_some_and(|sets| !sets.is_empty())
    });
    assert_eq!(qmp.ok("query-fdsets", &json!({}))[0]["fdset-id"], 5);
    qmp.ok(
        "blockdev-add",
        &json!({"driver": "qcow2", "node-name": "disk",
            "file": {"driver": "file", "filename": "/dev/fdset/5"}}),
    );
    qmp.ok(
        "nbd-server-start",
        &json!({"addr": {"type": "unix", "data": {"path": daemon.path("nbd.sock")}}}),
    );
    qmp.ok(
        "block-export-add",
        &json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true}),
    );
    qemu_io(
        "raw",
        &daemon.nbd_uri("disk"),
        &["read -P 3 0 64k", "write -P 4 1M 64k", "flush"],
    );
    qmp.ok("block-export-del", &json!({"id": "e"}));
    qmp.ok("blockdev-del", &json!({"node-name": "disk"}));
    qemu_io(
        "qcow2",
        &kept.display().to_string(),
        &["read -P 3 0 64k", "read -P 4 1M 64k"],
    );

    // An unknown set, and one without a descriptor that may be written to.
    let unknown = qmp.error(
        "blockdev-add",
        &json!({"driver": "file", "node-name": "x", "filename": "/dev/fdset/6"}),
    );
    assert!(unknown.contains("/dev/fdset/6"), "{unknown}");
    send_with_descriptor(
        &raw,
        b" {\"execute\":\"add-fd\",\"arguments\":{\"fdset-id\":7}}",
        std::fs::File::open(&kept).unwrap(),
    );
    support::wait_until("the second set is there", || {
        qmp.ok("query-fdsets", &json!({}))
            .as_array()
            .is_some_and(|sets| sets.len() == 2)
    });
    qmp.ok(
        "blockdev-add",
        &json!({"driver": "file", "node-name": "ro", "filename": "/dev/fdset/7",
            "read-only": true}),
    );
    qmp.error(
        "blockdev-add",
        &json!({"driver": "file", "node-name": "rw", "filename": "/dev/fdset/7",
            "read-only": false}),
    );
    drop(raw);
    daemon.quit();
}

#[test]
fn an_nbd_client_comes_in_through_a_passed_listener() {
    let daemon = Daemon::start(&[
        "--blockdev",
        "null-co,node-name=n,size=1048576,read-zeroes=on",
    ]);
    let path = daemon.path("passed.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let raw = UnixStream::connect(daemon.path("qmp.sock")).unwrap();
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    // Names given with getfd are this client's own, so the same client starts the server.
    send_with_descriptor(
        &raw,
        concat!(
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"execute":"getfd","arguments":{"fdname":"listener"}}"#,
            r#"{"execute":"nbd-server-start","arguments":{"addr":{"type":"fd","data":{"str":"listener"}}}}"#,
            r#"{"execute":"block-export-add","arguments":{"type":"nbd","id":"e","node-name":"n"}}"#,
            r#"{"execute":"query-version","id":"last"}"#,
        )
        .as_bytes(),
        &listener,
    );
    drop(listener);
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("\"last\"") {
        let count = (&raw).read(&mut buffer).expect("more replies");
        assert!(count > 0, "the end after {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).expect("ASCII"));
    }
    assert!(!text.contains("error"), "{text}");
    let uri = format!("nbd+unix:///n?socket={}", path.display());
    let size = run(tools::tool("nbdinfo").args(["--size", &uri]));
    assert_eq!(size.trim(), (1 << 20).to_string());
    drop(raw);
    daemon.quit();
}
