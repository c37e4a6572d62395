//! Backends as frontends see them: their bytes, their names and their words.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::{ChardevBackend, QmpError};
use chardev::socket_address::FdLookup;
use chardev::{ByteStream, Chardev, Connections};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Opened, Surroundings};

struct NoFds;

impl FdLookup for NoFds {
    fn named_fd(&self, name: &str) -> Result<OwnedFd, QmpError> {
        Err(QmpError::generic(format!("no descriptor '{name}'")))
    }
}

fn open(kind: &str, data: &Value) -> Result<Opened, String> {
    let surroundings = Surroundings::new(tokio::runtime::Handle::current());
    let backend: ChardevBackend = api::from_json(json!({"type": kind, "data": data})).unwrap();
    crate::open("c", backend, &NoFds, &surroundings).map_err(|error| error.desc)
}

fn words(kind: &str, data: &Value) -> String {
    open(kind, data).err().unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(5), future).await;
    waited.unwrap()
}

/// Whether nothing comes for a while.
async fn never<T>(future: impl Future<Output = T>) -> bool {
    let waited = tokio::time::timeout(Duration::from_millis(30), future).await;
    waited.is_err()
}

fn connections(opened: &Opened) -> Connections {
    opened.chardev.take_connections().unwrap()
}

async fn only_stream(opened: &Opened) -> Box<dyn ByteStream> {
    soon(connections(opened).recv()).await.unwrap()
}

async fn read(stream: &mut Box<dyn ByteStream>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

#[tokio::test]
async fn a_file_takes_output_anew_or_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (out, input) = (path(&folder, "out"), path(&folder, "in"));
    std::fs::write(&input, b"from the file").unwrap();
    for (options, expected) in [
        (json!({"out": out}), "one\n"),
        (json!({"out": out, "append": true}), "one\none\n"),
        (json!({"out": out, "append": false, "in": input}), "one\n"),
    ] {
        let opened = open("file", &options).unwrap();
        assert_eq!(opened.chardev.type_name(), "chardev-file");
        let mut stream = only_stream(&opened).await;
        soon(stream.write_all(b"one\n")).await.unwrap();
        soon(stream.flush()).await.unwrap();
        if options.get("in").is_some() {
            assert_eq!(read(&mut stream, 13).await, b"from the file");
            // There is no more, which is not the end of the stream.
            let mut more = [0];
            let wait = std::time::Duration::from_millis(20);
            let more = tokio::time::timeout(wait, stream.read(&mut more)).await;
            assert!(more.is_err(), "{more:?}");
        }
        assert_eq!(std::fs::read_to_string(&out).unwrap(), expected);
    }
    let missing = path(&folder, "none/out");
    assert_eq!(
        words("file", &json!({"out": missing})),
        format!("Failed to add chardev 'c': Could not open '{missing}': No such file or directory")
    );
}

fn fifo(path: &str) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
}

#[tokio::test]
async fn a_pipe_is_a_pair_of_fifos_or_one() {
    let folder = tempfile::tempdir().unwrap();
    let name = path(&folder, "p");
    assert_eq!(
        words("pipe", &json!({"device": name})),
        format!("Failed to add chardev 'c': Could not open '{name}': No such file or directory")
    );
    fifo(&format!("{name}.in"));
    fifo(&format!("{name}.out"));
    let opened = open("pipe", &json!({"device": name})).unwrap();
    let mut stream = only_stream(&opened).await;
    let both = |end: &str| {
        let mut options = std::fs::OpenOptions::new();
        options
            .read(true)
            .write(true)
            .open(format!("{name}.{end}"))
            .unwrap()
    };
    let (mut to, mut from) = (both("in"), both("out"));
    to.write_all(b"in").unwrap();
    assert_eq!(read(&mut stream, 2).await, b"in");
    soon(stream.write_all(b"out")).await.unwrap();
    let mut found = [0; 3];
    from.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"out");
    fifo(&name);
    std::fs::remove_file(format!("{name}.in")).unwrap();
    let opened = open("pipe", &json!({"device": name})).unwrap();
    let mut stream = only_stream(&opened).await;
    soon(stream.write_all(b"round")).await.unwrap();
    assert_eq!(read(&mut stream, 5).await, b"round");
}

#[tokio::test]
async fn a_pty_has_another_side_and_a_link_for_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let link = path(&folder, "link");
    let opened = open("pty", &json!({"path": link})).unwrap();
    let name = opened.pty.clone().unwrap();
    assert_eq!(opened.chardev.filename(), format!("pty:{name}"));
    assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(&name));
    let mut stream = only_stream(&opened).await;
    let mut options = std::fs::OpenOptions::new();
    let mut other = options.read(true).write(true).open(&link).unwrap();
    // Raw: nothing is echoed, held back or changed.
    other.write_all(b"a\x03\r").unwrap();
    assert_eq!(read(&mut stream, 3).await, b"a\x03\r");
    soon(stream.write_all(b"b\n")).await.unwrap();
    let mut found = [0; 2];
    other.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"b\n");
    let taken = words("pty", &json!({"path": link}));
    let expected = "Failed to add chardev 'c': Failed to create PTY symlink: File exists";
    assert_eq!(taken, expected);
    drop(stream);
    drop(opened);
    assert!(!Path::new(&link).exists() && std::fs::symlink_metadata(&link).is_err());
}

#[tokio::test]
async fn null_swallows_and_says_nothing() {
    let opened = open("null", &json!({})).unwrap();
    let mut stream = only_stream(&opened).await;
    soon(stream.write_all(&[7; 100_000])).await.unwrap();
    let mut byte = [0];
    assert!(never(stream.read(&mut byte)).await);
    assert_eq!(opened.chardev.filename(), "null");
}

#[tokio::test]
async fn rings_have_the_size_that_was_asked() {
    for kind in ["ringbuf", "memory"] {
        let opened = open(kind, &json!({"size": 4})).unwrap();
        let ring = opened.chardev.ring_buffer().unwrap();
        ring.write(b"abcdef");
        assert_eq!(ring.read(10), b"cdef");
        assert!(
            soon(connections(&opened).recv()).await.is_none(),
            "a stream"
        );
        for size in [3, -1, i64::MIN] {
            let refused = words(kind, &json!({"size": size}));
            assert!(
                refused.starts_with("Failed to add chardev 'c': "),
                "{refused}"
            );
        }
        for options in [json!({}), json!({"size": 0})] {
            let opened = open(kind, &options).unwrap();
            let ring = opened.chardev.ring_buffer().unwrap();
            ring.write(&[1; 70_000]);
            assert_eq!(ring.read(100_000).len(), 65_536);
        }
    }
}

#[tokio::test]
async fn standard_input_has_one_owner_at_a_time() {
    let surroundings = Surroundings::new(tokio::runtime::Handle::current());
    let claim = surroundings.claim_stdio().unwrap();
    let refused = surroundings.claim_stdio().err().unwrap().desc;
    assert_eq!(refused, "cannot use stdio by multiple character devices");
    drop(claim);
    surroundings.claim_stdio().unwrap();
}

fn unix(path: &str, more: &Value) -> Value {
    let mut options = json!({"addr": {"type": "unix", "data": {"path": path}}});
    let members = options.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    options
}

#[tokio::test]
async fn a_listening_socket_has_a_stream_for_each_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder, "s");
    let opened = open("socket", &unix(&path, &json!({"wait": false}))).unwrap();
    let chardev: &Arc<dyn Chardev> = &opened.chardev;
    let name = format!("unix:{path},server=on");
    assert_eq!(chardev.filename(), format!("disconnected:{name}"));
    let mut streams = connections(&opened);
    assert!(chardev.take_connections().is_none(), "they are taken");
    let (mut one, mut two) = (
        UnixStream::connect(&path).unwrap(),
        UnixStream::connect(&path).unwrap(),
    );
    let mut first = soon(streams.recv()).await.unwrap();
    let mut second = soon(streams.recv()).await.unwrap();
    assert_eq!(chardev.filename(), name);
    one.write_all(b"1").unwrap();
    two.write_all(b"2").unwrap();
    assert_eq!(read(&mut first, 1).await, b"1");
    assert_eq!(read(&mut second, 1).await, b"2");
    soon(second.write_all(b"to two")).await.unwrap();
    let mut found = [0; 6];
    two.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"to two");
    // One goes: its stream ends, the other one does not.
    drop(one);
    assert_eq!(soon(first.read(&mut found)).await.unwrap(), 0);
    drop(first);
    assert_eq!(chardev.filename(), name);
    drop(second);
    assert_eq!(chardev.filename(), format!("disconnected:{name}"));
    chardev.return_connections(streams);
    assert!(chardev.take_connections().is_some());
    drop(opened);
    assert!(!Path::new(&path).exists(), "the socket stays behind");
}

#[tokio::test]
async fn descriptors_come_with_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder, "s");
    let opened = open("socket", &unix(&path, &json!({"wait": false}))).unwrap();
    let mut streams = connections(&opened);
    let client = UnixStream::connect(&path).unwrap();
    let mut stream = soon(streams.recv()).await.unwrap();
    let (mut mine, theirs) = UnixStream::pair().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [theirs.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let part = std::io::IoSlice::new(b"x");
    sendmsg(&client, &[part], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(read(&mut stream, 1).await, b"x");
    let passed = stream.take_fds();
    assert_eq!(passed.len(), 1);
    assert!(stream.take_fds().is_empty(), "taken twice");
    let mut passed = UnixStream::from(passed.into_iter().next().unwrap());
    passed.write_all(b"through").unwrap();
    let mut found = [0; 7];
    mine.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"through");
}

#[tokio::test]
async fn a_connecting_socket_connects_again_where_that_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder, "s");
    let client = |more: Value| {
        let mut options = unix(&path, &more);
        options
            .as_object_mut()
            .unwrap()
            .insert("server".into(), false.into());
        options
    };
    // Nobody listens yet.
    let refused = words("socket", &client(json!({})));
    assert_eq!(
        refused,
        format!(
            "Failed to add chardev 'c': Failed to connect to '{path}': No such file or directory"
        )
    );
    let opened = open("socket", &client(json!({"reconnect-ms": 5}))).unwrap();
    let mut streams = connections(&opened);
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..3 {
        let mut stream = soon(streams.recv()).await.unwrap();
        let (mut other, _) = listener.accept().unwrap();
        other.write_all(b"hello").unwrap();
        assert_eq!(read(&mut stream, 5).await, b"hello");
        drop(other);
        assert_eq!(soon(stream.read(&mut [0])).await.unwrap(), 0);
        // Only when this one is gone, another is made.
        assert!(never(streams.recv()).await);
    }
}

#[tokio::test]
async fn options_that_exclude_each_other_are_refused() {
    let both = unix(
        "/nowhere",
        &json!({"server": false, "reconnect": 1, "reconnect-ms": 1}),
    );
    assert_eq!(
        words("socket", &both),
        "Failed to add chardev 'c': 'reconnect' and 'reconnect-ms' are mutually exclusive"
    );
    let waits = unix("/nowhere", &json!({"server": false, "wait": true}));
    assert_eq!(
        words("socket", &waits),
        "Failed to add chardev 'c': 'wait' option is incompatible with socket in client connect mode"
    );
    let named = json!({"addr": {"type": "fd", "data": {"str": "f"}}});
    assert_eq!(
        words("socket", &named),
        "Failed to add chardev 'c': no descriptor 'f'"
    );
}
