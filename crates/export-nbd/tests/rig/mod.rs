//! A server over nodes in a temporary folder, and clients for it.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test program uses a part; a test fails by panicking"
)]

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_drivers::{
    FileDriver, FileOptions, HostOpener, HostProtocol, NullDriver, NullOptions, RawDriver,
    RawOptions,
};
use block_graph::{
    ChildRole, Driver, Graph, InFlight, Node, NodeOptions, ParentName, Permission, Permissions,
};
use export::Export;
use export_nbd::{NbdExport, NbdExportOptions, NbdServer, NbdServerOptions};
use host_io::{Engine, Executor};
use nbd_wire::reply::{Chunk, ReplyFormat, ReplyHeader};
use nbd_wire::{
    ClientHandshake, ClientStatus, ClientWishes, Command as NbdCommand, CommandFlags, ErrorCode,
    Goal, Ready, ReplyFlags, Request, RequestFormat,
};

/// A server with its graph, its folder and its thread.
pub struct Rig {
    pub graph: Arc<Graph>,
    pub server: Option<NbdServer>,
    pub folder: tempfile::TempDir,
    executors: Vec<Executor>,
}

impl Rig {
    pub fn start(options: NbdServerOptions) -> Self {
        Self::start_on(options, Engine::Uring, 1)
    }

    pub fn start_on(options: NbdServerOptions, engine: Engine, threads: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("nbd.sock")).unwrap();
        let executors: Vec<_> = (0..threads)
            .map(|_| Executor::start("nbd", engine).unwrap())
            .collect();
        let handles = executors.iter().map(Executor::handle).collect();
        let server = NbdServer::start(vec![listener.into()], handles, options).unwrap();
        Self {
            graph: Arc::default(),
            server: Some(server),
            folder,
            executors,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    pub fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.socket().to_str().unwrap()
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn node(&self, name: &str, driver: Box<dyn Driver>, read_only: bool) -> Arc<Node> {
        let options = NodeOptions {
            discard_unmap: true,
            ..NodeOptions::default()
        };
        let counter = Arc::<InFlight>::default();
        let node = Node::new(name.to_owned(), driver, options, read_only, counter);
        let place = self.graph.reserve_place();
        self.graph.insert(place, Arc::clone(&node)).unwrap();
        node
    }

    pub fn null_node(&self, name: &str, size: u64, latency: Duration) -> Arc<Node> {
        let options = NullOptions {
            name: "null-co",
            size,
            latency_ns: u64::try_from(latency.as_nanos()).unwrap(),
            read_zeroes: true,
        };
        self.node(name, Box::new(NullDriver::new(options)), false)
    }

    /// `raw` over `file`; the file is called like the node.
    pub fn raw_node(&self, name: &str, size: u64) -> Arc<Node> {
        let path = self.path(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .unwrap();
        file.set_len(size).unwrap();
        let options = FileOptions {
            protocol: HostProtocol::File,
            filename: path.to_str().unwrap().to_owned(),
            read_only: false,
            auto_read_only: false,
            direct: false,
            locking: true,
        };
        let driver = FileDriver::open(options, Arc::new(HostOpener)).unwrap();
        let file = self.node(&format!("{name}-file"), Box::new(driver), false);
        let parent = ParentName::Node(name.to_owned());
        let edge = self
            .graph
            .attach(parent, "file", ChildRole::Image, &file, Permissions::NONE);
        let raw = RawDriver::new(edge.unwrap(), RawOptions::default()).unwrap();
        self.node(name, Box::new(raw), false)
    }

    pub fn export(&self, node: &Arc<Node>, writable: bool) -> Arc<NbdExport> {
        self.export_with(node, writable, |_| {})
    }

    pub fn export_with(
        &self,
        node: &Arc<Node>,
        writable: bool,
        change: impl FnOnce(&mut NbdExportOptions),
    ) -> Arc<NbdExport> {
        let mut required = Permission::CONSISTENT_READ;
        if writable {
            required |= Permission::WRITE;
        }
        let asked = Permissions {
            required,
            shared: Permission::all(),
        };
        let backend = self
            .graph
            .attach_backend("block export", node, asked)
            .unwrap();
        let mut options = NbdExportOptions {
            id: format!("{}-export", node.name()),
            name: node.name().to_owned(),
            description: None,
            backend,
            graph: Arc::clone(&self.graph),
            writable,
            allocation_depth: true,
            writethrough: false,
            resizer: None,
            executor: None,
        };
        change(&mut options);
        self.server.as_ref().unwrap().add_export(options).unwrap()
    }

    /// An export whose clients may change its length.
    pub fn resizable_export(&self, node: &Arc<Node>) -> Arc<NbdExport> {
        let asked = Permissions {
            required: Permission::RESIZE,
            shared: Permission::all() - Permission::RESIZE,
        };
        let resizer = self.graph.attach_backend("resizer", node, asked).unwrap();
        self.export_with(node, true, |options| options.resizer = Some(resizer))
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    pub fn client(&self, export: &str, format: ReplyFormat) -> Client {
        Client::start(self.connect(), export, format)
    }

    /// Runs the future to its end on a thread of its own.
    pub fn run<T, F>(&self, make: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let executor = Executor::start("control", Engine::Threads).unwrap();
        executor.handle().spawn(make).wait().unwrap()
    }

    pub fn shutdown(&self, export: &Arc<NbdExport>) {
        let export = Arc::clone(export);
        self.run(move || export.shutdown());
    }

    pub fn stop(&mut self) {
        let server = self.server.take().unwrap();
        self.run(move || server.stop());
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: not yet");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a tool of other people; it is in the Debian package `package`.
pub fn tool(package: &str, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", program]).args(arguments);
    let output = command.output().unwrap();
    assert!(
        output.status.code() != Some(127),
        "{program} is not here: install the Debian package {package}"
    );
    output
}

/// Runs a tool that has to succeed; gives what it printed.
pub fn tool_ok(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = tool(package, program, arguments);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{printed}\n{complained}",
        output.status
    );
    printed
}

/// Writes a file of pseudo-random bytes with holes; the same for the same seed.
pub fn write_pattern(path: &Path, size: usize, seed: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size as u64).unwrap();
    for (index, block) in pattern(size, seed).chunks(64 << 10).enumerate() {
        if index % 3 != 1 {
            file.write_all_at(block, (index as u64) << 16).unwrap();
        }
    }
}

/// Pseudo-random bytes.
pub fn pattern(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A client over the wire machine, with blocking calls.
pub struct Client {
    pub stream: UnixStream,
    pub ready: Ready,
    input: Vec<u8>,
    next_cookie: u64,
}

/// All chunks of one reply.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub error: Option<(ErrorCode, String)>,
    pub data: Vec<u8>,
    pub holes: Vec<(u64, u64)>,
    /// Context id and its extents: length and status.
    pub status: Vec<(u32, Vec<(u64, u64)>)>,
}

const NONE: CommandFlags = CommandFlags::empty();

impl Client {
    pub fn start(stream: UnixStream, export: &str, format: ReplyFormat) -> Self {
        Self::try_start(stream, export, format).unwrap()
    }

    pub fn try_start(
        mut stream: UnixStream,
        export: &str,
        format: ReplyFormat,
    ) -> Result<Self, String> {
        let wishes = ClientWishes {
            structured: format != ReplyFormat::Simple,
            extended: format == ReplyFormat::Extended,
            meta_contexts: match format {
                ReplyFormat::Simple => Vec::new(),
                _ => vec!["base:allocation".into(), "qemu:allocation-depth".into()],
            },
            goal: Goal::Transmission(export.into()),
            tls: false,
        };
        let mut handshake = ClientHandshake::new(wishes);
        let mut buf = vec![0; 4096];
        loop {
            stream.write_all(&handshake.take_output()).unwrap();
            let count = stream.read(&mut buf).map_err(|error| error.to_string())?;
            if count == 0 {
                return Err("the server has closed the connection".to_owned());
            }
            match handshake.feed(&buf[..count]) {
                ClientStatus::NeedMore => {}
                ClientStatus::Ready(ready) => {
                    stream.write_all(&handshake.take_output()).unwrap();
                    return Ok(Self {
                        stream,
                        ready: *ready,
                        input: handshake.take_input(),
                        next_cookie: 1,
                    });
                }
                other => return Err(format!("{other:?}")),
            }
        }
    }

    fn fill(&mut self, count: usize) {
        let mut buf = vec![0; 256 << 10];
        while self.input.len() < count {
            let more = self.stream.read(&mut buf).unwrap();
            assert!(more > 0, "the server has closed the connection");
            self.input.extend_from_slice(&buf[..more]);
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        self.fill(count);
        self.input.drain(..count).collect()
    }

    /// Sends a request and gives its cookie.
    pub fn send(
        &mut self,
        command: NbdCommand,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> u64 {
        let (cookie, mut bytes) = self.encode(command, flags, offset, length);
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes).unwrap();
        cookie
    }

    /// Sends reads of `length` bytes all at once; their cookies count up from the one given.
    pub fn send_reads(&mut self, offsets: &[u64], length: u64) -> u64 {
        let mut bytes = Vec::new();
        let mut first = None;
        for offset in offsets {
            let (cookie, header) = self.encode(NbdCommand::Read, NONE, *offset, length);
            first.get_or_insert(cookie);
            bytes.extend_from_slice(&header);
        }
        self.stream.write_all(&bytes).unwrap();
        first.unwrap()
    }

    fn encode(
        &mut self,
        command: NbdCommand,
        flags: CommandFlags,
        offset: u64,
        length: u64,
    ) -> (u64, Vec<u8>) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let format = self.ready.negotiated.request_format();
        let request = Request::new(format, command, flags, cookie, offset, length).unwrap();
        let bytes = match format {
            RequestFormat::Compact => request.encode_compact().to_vec(),
            RequestFormat::Extended => request.encode_extended().to_vec(),
        };
        (cookie, bytes)
    }

    /// Reads one chunk; gives its cookie, adds it to `reply`, and says whether it was the last.
    /// `simple_bytes` follow a simple reply without an error.
    pub fn receive_chunk(&mut self, reply: &mut Reply, simple_bytes: usize) -> (u64, bool) {
        let format = self.ready.negotiated.reply_format();
        let header = loop {
            match ReplyHeader::decode(format, &self.input).unwrap() {
                Some((header, bytes)) => {
                    self.input.drain(..bytes);
                    break header;
                }
                None => self.fill(self.input.len() + 1),
            }
        };
        match header {
            ReplyHeader::Simple { cookie, error } => {
                reply.error = error.map(|code| (code, String::new()));
                if error.is_none() {
                    reply.data = self.take(simple_bytes);
                }
                (cookie, true)
            }
            ReplyHeader::Chunk {
                flags,
                kind,
                cookie,
                payload_bytes,
            } => {
                let payload = self.take(usize::try_from(payload_bytes).unwrap());
                match Chunk::decode(kind, &payload).unwrap() {
                    Chunk::None => {}
                    Chunk::Data { data, .. } => reply.data.extend_from_slice(data),
                    Chunk::Hole { offset, length } => {
                        reply.holes.push((offset, length));
                        let zeroes = usize::try_from(length).unwrap();
                        reply.data.resize(reply.data.len() + zeroes, 0);
                    }
                    Chunk::BlockStatus {
                        context_id,
                        extents,
                    } => {
                        let extents = extents.iter().map(|e| (e.length, e.status)).collect();
                        reply.status.push((context_id, extents));
                    }
                    Chunk::Error { code, message, .. } => {
                        reply.error = Some((code, message.to_owned()));
                    }
                }
                (cookie, flags.contains(ReplyFlags::DONE))
            }
        }
    }

    /// One request and its whole reply.
    pub fn call(
        &mut self,
        command: NbdCommand,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Reply {
        let sent = self.send(command, flags, offset, length, payload);
        let simple_bytes = if command == NbdCommand::Read {
            usize::try_from(length).unwrap()
        } else {
            0
        };
        let mut reply = Reply::default();
        loop {
            let (cookie, done) = self.receive_chunk(&mut reply, simple_bytes);
            assert_eq!(cookie, sent);
            if done {
                return reply;
            }
        }
    }

    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, ErrorCode> {
        let reply = self.call(NbdCommand::Read, NONE, offset, length, &[]);
        match reply.error {
            Some((code, _)) => Err(code),
            None => Ok(reply.data),
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), ErrorCode> {
        let length = data.len() as u64;
        self.plain(NbdCommand::Write, NONE, offset, length, data)
    }

    /// A request without data in its reply.
    pub fn plain(
        &mut self,
        command: NbdCommand,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<(), ErrorCode> {
        match self.call(command, flags, offset, length, payload).error {
            Some((code, _)) => Err(code),
            None => Ok(()),
        }
    }

    /// Sends raw bytes; says whether the server still took them.
    pub fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Waits for the end of the stream.
    pub fn expect_end(mut self) {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = self.stream.read_to_end(&mut rest);
    }
}
