//! Our client machine against `qemu-nbd`, and QEMU's and libnbd's clients against our server machine.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nbd_wire::protocol::OptionKind;
use nbd_wire::reply::{Chunk, ChunkWriter, Extent, ReplyFormat, ReplyHeader, encode_simple};
use nbd_wire::{
    BlockSize, ClientHandshake, ClientStatus, ClientWishes, Command, CommandFlags, ErrorCode,
    ExportInfo, Exports, Goal, ListedExport, MetaContext, Ready, ReplyFlags, Request,
    RequestFormat, ServerHandshake, ServerStatus, Tls, TransmissionFlags, validate,
};

const DISK_BYTES: u64 = 4 << 20;

fn run(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = Program::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run {program}: {error}; install the Debian package {package}")
        });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{errors}"
    );
    text
}

// ---- qemu-nbd as the server ----

struct QemuNbd {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl QemuNbd {
    /// Serves a disk whose second MiB is a hole and whose other bytes are all 0x5a.
    fn start(read_only: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (disk, socket) = (folder.path().join("disk"), folder.path().join("socket"));
        let mut contents = vec![0x5a; 4 << 20];
        contents[1 << 20..2 << 20].fill(0);
        std::fs::write(&disk, contents).expect("writing the disk");
        let mut program = Program::new("qemu-nbd");
        program.args([
            "-t", "-e", "8", "-f", "raw", "-x", "disk", "-D", "a disk", "-A",
        ]);
        program.args(["--detect-zeroes=off", "--discard=unmap"]);
        if read_only {
            program.arg("-r");
        }
        let child = program
            .arg("-k")
            .args([&socket, &disk])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("cannot run qemu-nbd: {error}; install the Debian package qemu-utils")
            });
        let server = Self {
            child,
            socket,
            _folder: folder,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&server.socket).is_err() {
            assert!(Instant::now() < deadline, "qemu-nbd opens no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("a connection");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    stream
}

/// Goes through a client's handshake.
fn shake_hands(stream: &mut UnixStream, wishes: ClientWishes) -> ClientStatus {
    let mut client = ClientHandshake::new(wishes);
    let mut byte = [0; 1];
    loop {
        stream.read_exact(&mut byte).expect("reading");
        let status = client.feed(&byte);
        stream.write_all(&client.take_output()).expect("writing");
        if status != ClientStatus::NeedMore {
            assert!(client.take_input().is_empty());
            return status;
        }
    }
}

fn wishes(structured: bool, extended: bool) -> ClientWishes {
    ClientWishes {
        goal: Goal::Transmission("disk".to_owned()),
        tls: false,
        structured,
        extended,
        meta_contexts: ["base:allocation", "qemu:allocation-depth"]
            .map(str::to_owned)
            .to_vec(),
    }
}

struct Client {
    stream: UnixStream,
    ready: Ready,
    cookie: u64,
}

/// All that came back for a request.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    data: Vec<u8>,
    statuses: Vec<(u32, Vec<Extent>)>,
    error: Option<ErrorCode>,
}

impl Client {
    fn connect(socket: &Path, structured: bool, extended: bool) -> Self {
        let mut stream = connect(socket);
        match shake_hands(&mut stream, wishes(structured, extended)) {
            ClientStatus::Ready(ready) => Self {
                stream,
                ready: *ready,
                cookie: 0,
            },
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, command: Command, flags: CommandFlags, offset: u64, length: u64) -> Answer {
        self.ask_with(command, flags, offset, length, &[])
    }

    fn ask_with(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Answer {
        self.cookie += 1;
        let format = self.ready.negotiated.request_format();
        let request =
            Request::new(format, command, flags, self.cookie, offset, length).expect("a request");
        assert_eq!(request.payload_bytes() as usize, payload.len());
        match format {
            RequestFormat::Compact => self.stream.write_all(&request.encode_compact()),
            RequestFormat::Extended => self.stream.write_all(&request.encode_extended()),
        }
        .expect("writing");
        self.stream.write_all(payload).expect("writing");
        let mut answer = Answer::default();
        while !self.reply(&request, &mut answer) {}
        answer
    }

    /// Reads one reply or chunk; whether it was the last.
    fn reply(&mut self, request: &Request, answer: &mut Answer) -> bool {
        let mut input = Vec::new();
        let format = ReplyFormat::of(&self.ready.negotiated);
        let header = loop {
            if let Some((header, _)) = ReplyHeader::decode(format, &input).expect("a reply") {
                break header;
            }
            let mut byte = [0; 1];
            self.stream.read_exact(&mut byte).expect("reading");
            input.push(byte[0]);
        };
        match header {
            ReplyHeader::Simple { cookie, error } => {
                assert_eq!(cookie, request.cookie);
                answer.error = error;
                if request.command == Command::Read && error.is_none() {
                    answer.data = vec![0; request.length as usize];
                    self.stream.read_exact(&mut answer.data).expect("reading");
                }
                true
            }
            ReplyHeader::Chunk {
                flags,
                kind,
                cookie,
                payload_bytes,
            } => {
                assert_eq!(cookie, request.cookie);
                let mut payload = vec![0; payload_bytes as usize];
                self.stream.read_exact(&mut payload).expect("reading");
                answer.take(request, Chunk::decode(kind, &payload).expect("a chunk"));
                flags.contains(ReplyFlags::DONE)
            }
        }
    }
}

impl Answer {
    fn take(&mut self, request: &Request, chunk: Chunk<'_>) {
        let mut put = |offset: u64, data: &[u8]| {
            let at = (offset - request.offset) as usize;
            self.data.resize(request.length as usize, 0xee);
            self.data[at..at + data.len()].copy_from_slice(data);
        };
        match chunk {
            Chunk::None => {}
            Chunk::Data { offset, data } => put(offset, data),
            Chunk::Hole { offset, length } => put(offset, &vec![0; length as usize]),
            Chunk::BlockStatus {
                context_id,
                extents,
            } => self.statuses.push((context_id, extents)),
            Chunk::Error { code, .. } => self.error = Some(code),
        }
    }
}

const PLAIN: CommandFlags = CommandFlags::empty();

/// Whether the installed qemu-nbd knows extended headers, which came with 8.2.
fn qemu_has_extended_headers() -> bool {
    qemu_nbd_version() >= Some((8, 2))
}

fn qemu_nbd_version() -> Option<(u32, u32)> {
    let output = Program::new("qemu-nbd").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split_whitespace().nth(1)?.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

fn formats() -> Vec<(bool, bool, ReplyFormat)> {
    let mut formats = vec![
        (false, false, ReplyFormat::Simple),
        (true, false, ReplyFormat::Structured),
    ];
    if qemu_has_extended_headers() {
        formats.push((true, true, ReplyFormat::Extended));
    }
    formats
}

#[test]
fn our_client_uses_qemu_nbd_in_every_format() {
    for (structured, extended, format) in formats() {
        let server = QemuNbd::start(false);
        let mut client = Client::connect(&server.socket, structured, extended);
        assert_eq!(ReplyFormat::of(&client.ready.negotiated), format);
        let export = client.ready.export.clone();
        assert_eq!(
            (export.size_bytes, export.name.as_str()),
            (DISK_BYTES, "disk")
        );
        assert_eq!(export.description.as_deref(), Some("a disk"));
        assert!(export.flags.contains(TransmissionFlags::SEND_FLUSH));

        let mut expected = vec![0x5a; 2 << 20];
        expected[1 << 19..3 << 19].fill(0);
        let read = client.ask(Command::Read, PLAIN, 1 << 19, 2 << 20);
        assert!(read.error.is_none() && read.data == expected);

        let data = vec![0x77; 1000];
        let written = client.ask_with(Command::Write, CommandFlags::FUA, 123, 1000, &data);
        assert_eq!(written, Answer::default());
        assert_eq!(client.ask(Command::Read, PLAIN, 123, 1000).data, data);
        let zeroed = client.ask(Command::WriteZeroes, CommandFlags::NO_HOLE, 0, 4096);
        assert_eq!(zeroed, Answer::default());
        assert_eq!(
            client.ask(Command::Read, PLAIN, 0, 4096).data,
            vec![0; 4096]
        );
        for command in [Command::Flush, Command::Trim, Command::Cache] {
            assert_eq!(
                client.ask(command, PLAIN, 0, 0),
                Answer::default(),
                "{command:?}"
            );
        }
        let beyond = client.ask(Command::Read, PLAIN, DISK_BYTES, 1);
        assert_eq!(beyond.error, Some(ErrorCode::Invalid));
    }
}

#[test]
fn block_status_of_qemu_nbd_is_understood() {
    for (structured, extended, _) in &formats()[1..] {
        let server = QemuNbd::start(true);
        let mut client = Client::connect(&server.socket, *structured, *extended);
        let ids: Vec<u32> = client
            .ready
            .negotiated
            .meta_contexts
            .iter()
            .map(|context| context.id)
            .collect();
        assert_eq!(ids.len(), 2);
        let status = client.ask(Command::BlockStatus, PLAIN, 0, DISK_BYTES);
        assert_eq!(
            status
                .statuses
                .iter()
                .map(|(id, _)| *id)
                .collect::<Vec<_>>(),
            ids
        );
        for (_, extents) in status.statuses {
            assert_eq!(
                extents.iter().map(|extent| extent.length).sum::<u64>(),
                DISK_BYTES
            );
        }
    }
}

/// The error codes of [`validate`], against those that qemu-nbd replies. What is not in the list:
/// zeroes beyond the end, where the specification wants ENOSPC and qemu-nbd replies EINVAL.
#[test]
fn requests_are_refused_as_by_qemu_nbd() {
    let end = DISK_BYTES;
    let requests = [
        (Command::Read, PLAIN, end - 1, 1),
        (Command::Read, PLAIN, end - 1, 2),
        (Command::Read, PLAIN, 0, (32 << 20) + 1),
        (Command::Read, PLAIN, u64::MAX, 1),
        (Command::Read, CommandFlags::NO_HOLE, 0, 1),
        (Command::Read, CommandFlags::from_bits_retain(1 << 8), 0, 1),
        (Command::WriteZeroes, CommandFlags::REQ_ONE, 0, 1),
        (Command::WriteZeroes, PLAIN, 0, 512),
        (Command::Trim, PLAIN, end, 1),
        (Command::Trim, CommandFlags::DF, 0, 1),
        (Command::Trim, PLAIN, 0, 512),
        (Command::BlockStatus, PLAIN, end, 1),
        (Command::BlockStatus, CommandFlags::NO_HOLE, 0, 1),
        (Command::Cache, PLAIN, end, 1),
        (Command::Unknown(99), PLAIN, 0, 0),
    ];
    for read_only in [false, true] {
        let server = QemuNbd::start(read_only);
        for (structured, extended, _) in formats() {
            let mut client = Client::connect(&server.socket, structured, extended);
            let Ready {
                export, negotiated, ..
            } = client.ready.clone();
            for (command, flags, offset, length) in requests {
                let format = negotiated.request_format();
                let request =
                    Request::new(format, command, flags, 0, offset, length).expect("a request");
                let ours = validate(&request, &export, &negotiated).err();
                let theirs = client.ask(command, flags, offset, length).error;
                assert_eq!(
                    ours, theirs,
                    "{request:?} on {negotiated:?} {:?}",
                    export.flags
                );
            }
        }
    }
}

#[test]
fn exports_of_qemu_nbd_are_listed_and_unknown_ones_refused() {
    let server = QemuNbd::start(true);
    let list = ClientWishes {
        goal: Goal::List,
        ..wishes(true, true)
    };
    let listed = shake_hands(&mut connect(&server.socket), list);
    let expected = ListedExport {
        name: "disk".to_owned(),
        description: "a disk".to_owned(),
    };
    assert_eq!(listed, ClientStatus::Listed(vec![expected]));
    let nope = ClientWishes {
        goal: Goal::Transmission("nope".to_owned()),
        ..wishes(true, true)
    };
    let refused = shake_hands(&mut connect(&server.socket), nope);
    assert!(matches!(refused, ClientStatus::Failed(_)), "{refused:?}");
    let tls = ClientWishes {
        tls: true,
        ..wishes(true, true)
    };
    let refused = shake_hands(&mut connect(&server.socket), tls);
    assert!(matches!(refused, ClientStatus::Failed(_)), "{refused:?}");
}

/// Sends options as they are and returns the type of the last reply to each.
fn last_replies(socket: &Path, options: &[(OptionKind, Vec<u8>)]) -> Vec<u32> {
    let mut stream = connect(socket);
    stream.read_exact(&mut [0; 18]).expect("the greeting");
    stream.write_all(&[0, 0, 0, 3]).expect("writing");
    let mut last = Vec::new();
    for (option, data) in options {
        let length = u32::try_from(data.len()).expect("a short option");
        let header = [
            b"IHAVEOPT",
            &option.number().to_be_bytes()[..],
            &length.to_be_bytes(),
        ]
        .concat();
        stream.write_all(&header).expect("writing");
        stream.write_all(data).expect("writing");
        loop {
            let mut header = [0; 20];
            stream.read_exact(&mut header).expect("a reply");
            let number = |at: usize| {
                u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            assert_eq!(number(8), option.number());
            stream
                .read_exact(&mut vec![0; number(16) as usize])
                .expect("a reply's data");
            let kind = number(12);
            if kind == 1 || kind >= 1 << 31 {
                last.push(kind);
                break;
            }
        }
    }
    last
}

fn info(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(kinds.len() as u16).to_be_bytes());
    kinds
        .iter()
        .for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    data
}

fn query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

#[test]
fn options_are_answered_as_by_qemu_nbd() {
    use OptionKind::{
        Abort, ExtendedHeaders, Info, List, ListMetaContext, SetMetaContext, StartTls,
        StructuredReply, Unknown,
    };
    let qemu = QemuNbd::start(true);
    let (socket, _folder) = serve();
    let none = Vec::new;
    let conversations: Vec<Vec<(OptionKind, Vec<u8>)>> = vec![
        vec![
            (List, none()),
            (List, b"x".to_vec()),
            (Unknown(4), none()),
            (Unknown(99), b"x".to_vec()),
        ],
        vec![
            (StartTls, none()),
            (Info, info("disk", &[])),
            (Info, info("disk", &[1, 2, 3, 77])),
        ],
        vec![
            (Info, info("nope", &[])),
            (Info, none()),
            (Info, b"\0\0\0\x09disk\0\0".to_vec()),
        ],
        vec![
            (Info, b"\0\0\0\x04disk\0\x01".to_vec()),
            (Info, b"\0\0\0\x04disk\0\0x".to_vec()),
        ],
        vec![
            (SetMetaContext, query("disk", &["base:allocation"])),
            (StructuredReply, b"x".to_vec()),
        ],
        vec![
            (StructuredReply, none()),
            (StructuredReply, none()),
            (ExtendedHeaders, none()),
        ],
        vec![
            (ExtendedHeaders, none()),
            (StructuredReply, none()),
            (ExtendedHeaders, none()),
        ],
        vec![
            (ListMetaContext, query("disk", &[])),
            (StructuredReply, none()),
        ],
        vec![
            (StructuredReply, none()),
            (ListMetaContext, query("disk", &[])),
            (
                ListMetaContext,
                query("disk", &["base:", "qemu:", "x-a:b", "nocolon"]),
            ),
            (ListMetaContext, query("nope", &[])),
            (
                SetMetaContext,
                query("disk", &["base:allocation", "base:x", "x-a:b"]),
            ),
            (SetMetaContext, query("nope", &["base:allocation"])),
            (
                SetMetaContext,
                b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x09ab".to_vec(),
            ),
            (Abort, none()),
        ],
    ];
    let knows_extended = qemu_has_extended_headers();
    for options in conversations {
        let asks_for_extended = options.iter().any(|(option, _)| *option == ExtendedHeaders);
        if asks_for_extended && !knows_extended {
            continue;
        }
        let (theirs, ours) = (
            last_replies(&qemu.socket, &options),
            last_replies(&socket, &options),
        );
        assert_eq!(ours, theirs, "{options:?}");
    }
}

// ---- a small server around our machine ----

struct OneDisk;

impl Exports for OneDisk {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        use TransmissionFlags as F;
        (name == "disk").then(|| ExportInfo {
            name: name.to_owned(),
            size_bytes: DISK_BYTES,
            flags: F::SEND_FLUSH
                | F::SEND_FUA
                | F::SEND_TRIM
                | F::SEND_WRITE_ZEROES
                | F::SEND_FAST_ZERO
                | F::SEND_CACHE
                | F::CAN_MULTI_CONN,
            description: Some("a disk".to_owned()),
            block_size: BlockSize::default(),
            meta_contexts: vec!["base:allocation".to_owned()],
        })
    }

    fn list(&self) -> Vec<ListedExport> {
        vec![ListedExport {
            name: "disk".to_owned(),
            description: "a disk".to_owned(),
        }]
    }
}

type Disk = Arc<Mutex<Vec<u8>>>;

/// Serves a disk in memory, until the test ends.
fn serve() -> (PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let disk = Disk::new(Mutex::new(vec![0; DISK_BYTES as usize]));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let disk = disk.clone();
            // What goes wrong here shows at the client.
            std::thread::spawn(move || serve_one(stream, &disk));
        }
    });
    (socket, folder)
}

fn serve_one(mut stream: UnixStream, disk: &Disk) -> std::io::Result<()> {
    let mut server = ServerHandshake::new(Tls::Unavailable);
    let mut block = [0; 37];
    let ready = loop {
        stream.write_all(&server.take_output())?;
        let count = stream.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        match server.feed(&block[..count], &OneDisk) {
            ServerStatus::NeedMore => {}
            ServerStatus::Ready(ready) => break *ready,
            _ => return stream.write_all(&server.take_output()),
        }
    };
    stream.write_all(&server.take_output())?;
    let early = server.take_input();
    let mut input = early.chain(stream.try_clone()?);
    let format = ready.negotiated.request_format();
    loop {
        let mut header = vec![0; format.header_bytes()];
        input.read_exact(&mut header)?;
        let Ok(request) = Request::decode(format, &header) else {
            return Ok(());
        };
        let mut payload = vec![0; request.payload_bytes() as usize];
        input.read_exact(&mut payload)?;
        if request.command == Command::Disconnect {
            return Ok(());
        }
        stream.write_all(&execute(&request, &payload, &ready, disk))?;
    }
}

/// `Read::chain` for bytes that are owned.
trait ChainOwned {
    fn chain(self, next: UnixStream) -> Box<dyn Read>;
}

impl ChainOwned for Vec<u8> {
    fn chain(self, next: UnixStream) -> Box<dyn Read> {
        Box::new(Read::chain(std::io::Cursor::new(self), next))
    }
}

fn execute(request: &Request, payload: &[u8], ready: &Ready, disk: &Disk) -> Vec<u8> {
    let format = ReplyFormat::of(&ready.negotiated);
    let (cookie, offset) = (request.cookie, request.offset);
    let writer = ChunkWriter {
        extended: format == ReplyFormat::Extended,
        cookie,
        offset,
    };
    let mut out = Vec::new();
    if let Err(code) = validate(request, &ready.export, &ready.negotiated) {
        match format {
            ReplyFormat::Simple => out.extend_from_slice(&encode_simple(cookie, Some(code))),
            _ => writer.error(code, "refused", &mut out),
        }
        return out;
    }
    let mut disk = disk.lock().expect("no test server panics");
    let range = offset as usize..(offset + request.length) as usize;
    match request.command {
        Command::Write => disk[range].copy_from_slice(payload),
        Command::WriteZeroes | Command::Trim => disk[range].fill(0),
        Command::Read if format == ReplyFormat::Simple => {
            out.extend_from_slice(&encode_simple(cookie, None));
            out.extend_from_slice(&disk[range]);
            return out;
        }
        Command::Read if !range.is_empty() => {
            let data = &disk[range];
            // Half as data, half as a hole where it is one: both kinds are read.
            let (first, second) = data.split_at(data.len() / 2);
            let none = ReplyFlags::empty();
            let whole = second.iter().any(|&byte| byte != 0) || first.is_empty();
            let data = if whole { data } else { first };
            writer.data(none, offset, data.len() as u32, &mut out);
            out.extend_from_slice(data);
            if !whole {
                let at = offset + first.len() as u64;
                writer.hole(none, at, second.len() as u32, &mut out);
            }
        }
        Command::BlockStatus => {
            let mut extents: Vec<Extent> = Vec::new();
            for chunk in disk[range].chunks(64 << 10) {
                let zero = chunk.iter().all(|&byte| byte == 0);
                let (length, status) = (chunk.len() as u64, if zero { 3 } else { 0 });
                match extents.last_mut() {
                    Some(last) if last.status == status => last.length += length,
                    _ => extents.push(Extent { length, status }),
                }
            }
            if request.flags.contains(CommandFlags::REQ_ONE) {
                extents.truncate(1);
            }
            for MetaContext { id, .. } in &ready.negotiated.meta_contexts {
                writer.block_status(ReplyFlags::empty(), *id, &extents, &mut out);
            }
        }
        _ => {}
    }
    match format {
        ReplyFormat::Simple => out.extend_from_slice(&encode_simple(cookie, None)),
        _ => writer.done(&mut out),
    }
    out
}

#[test]
fn our_client_uses_our_server_in_every_format() {
    let (socket, _folder) = serve();
    for (structured, extended, format) in formats() {
        let mut client = Client::connect(&socket, structured, extended);
        assert_eq!(ReplyFormat::of(&client.ready.negotiated), format);
        let data = vec![0x31; 5000];
        let written = client.ask_with(Command::Write, CommandFlags::FUA, 77, 5000, &data);
        assert_eq!(written, Answer::default());
        let zeroed = client.ask(Command::WriteZeroes, PLAIN, 77 + 2500, 2500);
        assert_eq!(zeroed, Answer::default());
        let expected = [vec![0x31; 2500], vec![0; 2500]].concat();
        assert_eq!(client.ask(Command::Read, PLAIN, 77, 5000).data, expected);
        let beyond = client.ask_with(Command::Write, PLAIN, DISK_BYTES, 3, b"abc");
        assert_eq!(beyond.error, Some(ErrorCode::NoSpace));
        assert_eq!(client.ask(Command::Flush, PLAIN, 0, 0), Answer::default());
    }
}

#[test]
fn qemus_clients_use_our_server() {
    let (socket, folder) = serve();
    let url = format!("nbd+unix:///disk?socket={}", socket.display());
    let script = [
        "write -P 7 0 1M",
        "write -z 256k 4k",
        "write -f -P 8 12345 678",
        "discard 3M 64k",
        "flush",
        "read -P 7 0 12345",
        "read -P 8 12345 678",
        "read -P 0 256k 4k",
        "read -P 0 3M 1M",
    ];
    let arguments = script.iter().flat_map(|command| ["-c", command]);
    let arguments: Vec<&str> = ["-f", "raw", &url].into_iter().chain(arguments).collect();
    let output = run("qemu-io", "qemu-utils", &arguments);
    assert!(!output.contains("failed"), "{output}");
    let copy = folder.path().join("copy").display().to_string();
    run(
        "qemu-img",
        "qemu-utils",
        &["convert", "-f", "raw", "-O", "raw", &url, &copy],
    );
    let compare = ["compare", "-f", "raw", "-F", "raw", &url, &copy];
    let compared = run("qemu-img", "qemu-utils", &compare);
    assert!(compared.contains("identical"), "{compared}");
    let map = run(
        "qemu-img",
        "qemu-utils",
        &["map", "-f", "raw", "--output=json", &url],
    );
    assert!(map.contains("\"zero\": true"), "{map}");
}

#[test]
fn libnbds_clients_use_our_server() {
    let (socket, _folder) = serve();
    let url = format!("nbd+unix:///disk?socket={}", socket.display());
    let told = run("nbdinfo", "libnbd-bin", &["--json", &url]);
    for expected in [
        "\"export-name\": \"disk\"",
        "\"description\": \"a disk\"",
        "\"export-size\": 4194304",
        "\"base:allocation\"",
        "\"can_fast_zero\": true",
        "\"is_read_only\": false",
        "\"can_df\": true",
    ] {
        assert!(told.contains(expected), "{expected} is not in {told}");
    }
    let listed = run("nbdinfo", "libnbd-bin", &["--list", &url]);
    assert!(listed.contains("export=\"disk\""), "{listed}");
    let map = run("nbdinfo", "libnbd-bin", &["--map", &url]);
    assert!(map.contains("hole,zero"), "{map}");
}
