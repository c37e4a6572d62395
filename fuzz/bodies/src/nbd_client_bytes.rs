//! A client's bytes on an NBD socket: the handshake, then requests.

use nbd_wire::reply::{ChunkWriter, ReplyFormat, ReplyHeader, encode_simple};
use nbd_wire::{
    BlockSize, Command, ErrorCode, ExportInfo, Exports, ListedExport, MAX_PAYLOAD_BYTES,
    MAX_PENDING_OUTPUT_BYTES, Ready, Request, RequestFormat, ServerHandshake, ServerStatus,
    StatusSelection, Tls, TransmissionFlags, validate,
};

use crate::pieces::pieces;

/// More output than may wait, and what one option's answer can be at most.
const MAX_OUTPUT_BYTES: usize = 2 * MAX_PENDING_OUTPUT_BYTES;

struct Three;

impl Exports for Three {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
        let (name, size_bytes, minimum, more) = match name {
            "" | "disk" => ("disk", 1 << 40, 1, TransmissionFlags::all()),
            "aligned" => (
                "aligned",
                1 << 20,
                4096,
                TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES,
            ),
            "empty" => ("empty", 0, 512, TransmissionFlags::SEND_FUA),
            _ => return None,
        };
        let more = match name {
            "disk" => more - TransmissionFlags::READ_ONLY,
            "empty" => more | TransmissionFlags::READ_ONLY,
            _ => more,
        };
        Some(ExportInfo {
            name: name.to_owned(),
            size_bytes,
            flags: flags | more,
            description: (name == "disk").then(|| "a disk".to_owned()),
            block_size: BlockSize {
                minimum,
                ..BlockSize::default()
            },
            meta_contexts: vec![
                "base:allocation".to_owned(),
                "qemu:allocation-depth".to_owned(),
            ],
        })
    }

    fn list(&self) -> Vec<ListedExport> {
        ["disk", "aligned", "empty"]
            .map(|name| ListedExport {
                name: name.to_owned(),
                description: String::new(),
            })
            .to_vec()
    }
}

/// What a handshake came to.
#[derive(Debug, PartialEq)]
struct Handshake {
    status: ServerStatus,
    output: Vec<u8>,
    rest: Vec<u8>,
    in_tls: bool,
}

/// The first byte chooses TLS and the cutting; the rest is the stream, in which what follows
/// STARTTLS came through TLS if the first byte says so.
pub fn nbd_client_bytes(data: &[u8]) {
    let Some((&choice, stream)) = data.split_first() else {
        return;
    };
    let tls = match choice & 3 {
        0 => Tls::Unavailable,
        1 | 2 => Tls::Offered,
        _ => Tls::Required,
    };
    let parts = if choice & 4 != 0 {
        stream.split_at(start_tls_position(tls, stream))
    } else {
        (stream, [].as_slice())
    };
    let whole = shake_hands(tls, &[parts.0], &[parts.1]);
    let seed = choice.into();
    let cut = shake_hands(tls, &pieces(parts.0, seed), &pieces(parts.1, seed + 1));
    assert_eq!(whole, cut, "the cutting changed the meaning");
    assert!(
        whole.output.len() <= MAX_OUTPUT_BYTES,
        "{} bytes of output",
        whole.output.len()
    );
    if let ServerStatus::Ready(ready) = &whole.status {
        assert!(tls != Tls::Required || whole.in_tls, "TLS was required");
        requests(ready, &whole.rest);
    }
}

/// Where the STARTTLS option ends that makes the server start TLS; the stream's end if none does.
fn start_tls_position(tls: Tls, stream: &[u8]) -> usize {
    let mut server = ServerHandshake::new(tls);
    let ends = stream
        .chunks(1)
        .position(|byte| server.feed(byte, &Three) == ServerStatus::StartTls);
    ends.map_or(stream.len(), |at| at + 1)
}

fn shake_hands(tls: Tls, plain: &[&[u8]], through_tls: &[&[u8]]) -> Handshake {
    let mut server = ServerHandshake::new(tls);
    let mut status = ServerStatus::NeedMore;
    for block in plain {
        status = server.feed(block, &Three);
    }
    if status == ServerStatus::StartTls && through_tls.iter().any(|block| !block.is_empty()) {
        server.tls_started();
        for block in through_tls {
            status = server.feed(block, &Three);
        }
    }
    Handshake {
        status,
        output: server.take_output(),
        in_tls: server.is_in_tls(),
        rest: server.take_input(),
    }
}

fn requests(ready: &Ready, stream: &[u8]) {
    let format = ready.negotiated.request_format();
    let mut rest = stream;
    while let Some((header, behind)) = rest.split_at_checked(format.header_bytes()) {
        let Ok(request) = Request::decode(format, header) else {
            return;
        };
        survives(format, &request);
        let payload_bytes = request.payload_bytes();
        assert!(payload_bytes <= MAX_PAYLOAD_BYTES);
        let payload_bytes = usize::try_from(payload_bytes).expect("a payload fits");
        let Some((payload, next)) = behind.split_at_checked(payload_bytes) else {
            return;
        };
        let verdict = validate(&request, &ready.export, &ready.negotiated);
        if verdict.is_ok() {
            may_run(ready, &request, payload);
        }
        reply(ready.negotiated.reply_format(), &request, verdict.err());
        rest = next;
    }
}

/// A header is the same after encoding.
fn survives(format: RequestFormat, request: &Request) {
    let back = match format {
        RequestFormat::Compact => Request::decode(format, &request.encode_compact()),
        RequestFormat::Extended => Request::decode(format, &request.encode_extended()),
    };
    assert_eq!(back.as_ref(), Ok(request));
}

/// What a request that was found good must be.
fn may_run(ready: &Ready, request: &Request, payload: &[u8]) {
    let size = u128::from(ready.export.size_bytes);
    let end = |length: u64| u128::from(request.offset) + u128::from(length);
    let read_only = ready.export.flags.contains(TransmissionFlags::READ_ONLY);
    match request.command {
        Command::Write | Command::Trim | Command::WriteZeroes => {
            assert!(!read_only && end(request.length) <= size);
        }
        Command::Read => {
            assert!(request.length <= MAX_PAYLOAD_BYTES.into() && end(request.length) <= size);
        }
        Command::Cache => assert!(end(request.length) <= size),
        Command::BlockStatus if request.payload_bytes() > 0 => {
            let Ready {
                export, negotiated, ..
            } = ready;
            if let Ok(chosen) = StatusSelection::decode(request, payload, export, negotiated) {
                assert!(end(chosen.length) <= size);
                let mut again = Vec::new();
                chosen.encode(&mut again);
                assert_eq!(again, payload);
            }
        }
        Command::BlockStatus => {
            assert!(!ready.negotiated.meta_contexts.is_empty() && end(request.length) <= size);
        }
        Command::Flush | Command::Disconnect => {}
        Command::Resize | Command::Unknown(_) => panic!("{request:?} may not run"),
    }
}

/// The reply's header is read by our client as it was meant.
fn reply(format: ReplyFormat, request: &Request, error: Option<ErrorCode>) {
    let cookie = request.cookie;
    let mut out = Vec::new();
    if format == ReplyFormat::Simple {
        out.extend_from_slice(&encode_simple(cookie, error));
    } else {
        let writer = ChunkWriter {
            extended: format == ReplyFormat::Extended,
            cookie,
            offset: request.offset,
        };
        match error {
            Some(code) => writer.error(code, "refused", &mut out),
            None => writer.done(&mut out),
        }
    }
    let read = ReplyHeader::decode(format, &out).expect("our own reply can be read");
    match read {
        Some((
            ReplyHeader::Simple {
                cookie: back,
                error: told,
            },
            _,
        )) => {
            assert_eq!((back, told), (cookie, error));
        }
        Some((
            ReplyHeader::Chunk {
                cookie: back, kind, ..
            },
            _,
        )) => {
            assert_eq!((back, kind.is_error()), (cookie, error.is_some()));
        }
        None => panic!("our own reply is cut off"),
    }
}
