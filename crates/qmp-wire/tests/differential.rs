//! The same bytes to `qemu-storage-daemon` and to a [`Session`]: the replies must be the same.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use qmp_wire::{Answer, Incoming, Session, Style};
use serde_json::Value;

/// Brings any parser into a known state and then asks for a reply that marks the end.
const END: &[u8] = b"\xff\n{\"execute\":\"no-such-command\",\"id\":\"END\"}\n";

struct Daemon {
    child: Child,
    socket: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(style: Style) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("qmp");
        let chardev = format!("socket,id=c,path={},server=on,wait=off", socket.display());
        let pretty = if style == Style::Pretty { "on" } else { "off" };
        let child = Command::new("qemu-storage-daemon")
            .args([
                "--chardev",
                &chardev,
                "--monitor",
                &format!("chardev=c,pretty={pretty}"),
            ])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot run qemu-storage-daemon: {error}; install the Debian package \
                     qemu-utils (bookworm-backports and later) or qemu-system-common (bookworm)"
                )
            });
        let deadline = Instant::now() + Duration::from_secs(20);
        // The file is there a moment before anybody listens.
        while UnixStream::connect(&socket).is_err() {
            assert!(
                Instant::now() < deadline,
                "qemu-storage-daemon opens no socket"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            child,
            socket,
            _folder: folder,
        }
    }

    /// The replies to `input` after the greeting, with the one to [`END`].
    fn talk(&self, input: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        stream.write_all(input).expect("writing");
        stream.write_all(END).expect("writing");
        let mut seen = Vec::new();
        let mut block = [0; 1 << 16];
        while !ends(&seen) {
            let count = stream.read(&mut block).unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&seen))
            });
            assert_ne!(
                count,
                0,
                "closed after {:?}",
                String::from_utf8_lossy(&seen)
            );
            seen.extend_from_slice(&block[..count]);
        }
        let text = String::from_utf8(seen).expect("ASCII");
        let after_greeting = text
            .find("\r\n{")
            .filter(|_| text.starts_with("{\"QMP\": "));
        text[after_greeting.map_or(0, |at| at + 2)..].to_owned()
    }
}

fn ends(seen: &[u8]) -> bool {
    let tail = &seen[seen.len().saturating_sub(400)..];
    let tail = String::from_utf8_lossy(tail);
    tail.contains("\"id\": \"END\"") && (tail.ends_with("}}\r\n") || tail.ends_with("\r\n}\r\n"))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server without commands of its own replies.
fn ours(input: &[u8], style: Style) -> String {
    let mut session = Session::new(style, true);
    let mut out = Vec::new();
    for bytes in [input, END] {
        session.feed(bytes);
        while let Some(request) = session.next_request() {
            let answer = match request {
                Incoming::Answer(answer) => answer,
                Incoming::Command { id, name, .. } => Answer::unknown_command(id, &name),
            };
            session
                .encode_answer(&answer, &mut out)
                .expect("an answer is JSON");
        }
    }
    String::from_utf8(out).expect("ASCII")
}

/// Equal in every byte; only an `id` with several members may have them in another order, since
/// QEMU forgets the order.
fn assert_same(theirs: &str, ours: &str, input: &[u8]) {
    let lines = |text: &str| text.split("\r\n").map(str::to_owned).collect::<Vec<_>>();
    let (theirs, ours) = (lines(theirs), lines(ours));
    let same = theirs.len() == ours.len()
        && theirs.iter().zip(&ours).all(|(theirs, ours)| {
            theirs == ours
                || match (parse(theirs), parse(ours)) {
                    (Some(theirs), Some(ours)) => theirs == ours,
                    _ => false,
                }
        });
    assert!(
        same,
        "to {}:\nQEMU {theirs:#?}\nours {ours:#?}",
        input.escape_ascii()
    );
}

fn parse(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}

const NEGOTIATE: &[u8] = b"{\"execute\":\"qmp_capabilities\"}";
const NEGOTIATE_OOB: &[u8] =
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}";

fn nasty() -> Vec<Vec<u8>> {
    let mut inputs: Vec<Vec<u8>> = [
        &b"1"[..],
        b"null ",
        b"nul",
        b"01",
        b"-",
        b"- 1",
        b"1.",
        b"1.e5",
        b"1e+",
        b"0e0 ",
        b"trueT",
        b"{",
        b"}",
        b"[",
        b"]",
        b"[}",
        b"{]",
        b"{'a':[}",
        b"[{]}",
        b"[[}]",
        b"{'a':[}]}",
        b"[1,]",
        b"{\"a\":1,}",
        b"{\"a\":1 \"b\"}",
        b"{\"a\" 1}",
        b"{a:1}",
        b"{1:1}",
        b"{[1]:2}",
        b"{[1 2]:2}",
        b"{\"a\":1,\"a\":2}",
        b"{\"a\":1,\"a\":foo}",
        b"{\"id\":1,\"id\":2,\"execute\":\"x\"}",
        b"\"abc",
        b"\"a\nb\"",
        b"\"a\x01b\"",
        b"\"abc\x00",
        b"\x00",
        b"@",
        b"%d",
        b"{\"id\":%d}",
        b"% foo",
        b"%\t1",
        b"%\r1",
        b"%\xff1",
        b"\x01\x01 \x01",
        b"\xef\xbb\xbf{}",
        b"\xff\xff",
        b"\"\xff\"",
        b"\"\xfe\"",
        b"\"\xc3\"",
        b"\"\xc0\x80\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xef\xbf\xbe\"",
        b"\"\xc3\x01",
        b"\"\xe2\x82\x01",
        b"\"\xf0\x9f\x98\x01",
        b"\"\xed\xa0\x80\x01",
        b"\"\x80\x80\x01",
        b"\"\xf8\x88\x80\x80\x80\x01",
        b"\"\xfc\x84\x80\x80\x80\x80\x01",
        b"\"\xf4\x90\x80\x80\x01",
        b"\"\xef\xbf\xbe\x01",
        b"\"\xc0\x80\x01",
        b"\"\xc0\x81\x01",
        b"\"\xe0\x80\x80\x01",
        b"\"\\x\"",
        b"\"\\u12\"",
        b"\"\\u12G4\"",
        b"\"\\ud800\"",
        b"\"\\udc00\"",
        b"\"\\ud83f\\udffe\"",
        b"\"\\ud800\\u0041\"",
        b"\"\\u1\xc3\xa9\xe2\x82\xac\"",
        b"\"\\",
        b"\"\\\"",
        b"{'id':'a\"b\\'c'}",
        b"{\"id\":\"\\ud83d\\ude00\xf0\x9f\x98\x80\xc3\xa9\x7f\\u0001\\u0000\"}",
        b"{\"id\":[]}",
        b"{\"id\":{}}",
        b"{\"id\":[{},[],[1,null,true,\"x\"],{\"a\":{\"b\":[]}}]}",
        b"{\"id\":18446744073709551615}",
        b"{\"id\":18446744073709551616}",
        b"{\"id\":-9223372036854775808}",
        b"{\"id\":-9223372036854775809}",
        b"{\"id\":-0}",
        b"{\"id\":-0.0}",
        b"{\"id\":0.1}",
        b"{\"id\":1e16}",
        b"{\"id\":1e17}",
        b"{\"id\":1e-4}",
        b"{\"id\":1e-5}",
        b"{\"id\":5e-324}",
        b"{\"id\":1.7976931348623157e308}",
        b"{\"id\":123456.789}",
        b"{\"id\":1e22}",
        b"{\"id\":1e-400}",
        b"{\"execute\":1}",
        b"{\"execute\":\"x\",\"y\":1,\"id\":5}",
        b"{\"execute\":\"x\",\"arguments\":1}",
        b"{\"execute\":\"a\\u00e9\\n\"}",
        b"{\"a\\u00e9\":1}",
        b"{\"\":1}",
        b"{\"execute\":\"x\"}}",
        b"{\"execute\":\"qmp_capabilities\",\"id\":null}",
        b"{\"exec-oob\":\"x\"}",
        b"{\"exec-oob\":1}",
        b"{\"exec-oob\":\"qmp_capabilities\"}",
        b"{\"exec-oob\":\"x\",\"execute\":\"x\"}",
        b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"foo\"]}}",
        b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\",1]}}",
        b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":{}}}",
        b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"x\":{}}}",
        b"{\"execute\":\"qmp_capabilities\",\"arguments\":[]}",
    ]
    .iter()
    .map(|input| input.to_vec())
    .collect();
    inputs.extend([1023, 1024, 1025, 1500].map(|n| [vec![b'['; n], vec![b']'; n]].concat()));
    inputs.extend([1024, 1025].map(|n| vec![b'['; n]));
    inputs.extend((0x20..=0xff).map(|byte| vec![b'"', byte, b'"', b' ']));
    inputs.extend((0..=0xff).map(|byte| vec![byte, b' ', b'1', b'\n', b'2', b' ']));
    inputs
}

#[test]
fn nasty_input_is_answered_as_by_qemu() {
    let daemon = Daemon::start(Style::Compact);
    for input in nasty() {
        for prefix in [&b""[..], NEGOTIATE, NEGOTIATE_OOB] {
            let input = [prefix, &input].concat();
            assert_same(&daemon.talk(&input), &ours(&input, Style::Compact), &input);
        }
    }
}

#[test]
fn pretty_output_looks_as_qemus() {
    let daemon = Daemon::start(Style::Pretty);
    let input = [NEGOTIATE, b"{\"id\":[1,[],{},{\"a\":[{}]}]}"].concat();
    let theirs = daemon.talk(&input);
    assert!(theirs.ends_with(&ours(&input, Style::Pretty)), "{theirs}");
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => proptest::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "'", "\\", " ", "\n", "\t", "-", ".", "e", "0", "12", "x",
            "%", "T", "\\u00e9", "\\ud83d", "\\ude00", "\u{e9}", "\u{1f600}", "\u{fffe}", "\u{7f}",
        ]).prop_map(|s| s.as_bytes().to_vec()),
        4 => proptest::sample::select(vec![
            "\"id\":", "\"a\":", "[1,", "{\"execute\":\"x\"}", "null", "true", "1.5", "\"s\"", "'s'",
            "{\"id\":", "\"id\":1,", "[]", "{}", "{\"execute\":\"x\",\"id\":",
        ]).prop_map(|s| s.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    proptest::collection::vec(piece, 1..30).prop_map(|pieces| pieces.concat())
}

#[test]
fn random_input_is_answered_as_by_qemu() {
    let daemon = Daemon::start(Style::Compact);
    let config = ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..Default::default()
    };
    proptest!(config, |(input in stream())| {
        let input = [NEGOTIATE, &input].concat();
        assert_same(&daemon.talk(&input), &ours(&input, Style::Compact), &input);
    });
}
