//! The transmission phase of one connection: one task that receives, serves and sends.
//!
//! The three parts are futures of one task. They share the [`Session`] and need no wakers for each
//! other: whenever the task runs, all three are polled, and again as long as one of them has moved
//! something that another may wait for. Everything that a wake makes ready is thus answered with
//! one system call, and a lone request costs one receive and one send.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use block_graph::BlockBackend;
use host_io::{IoBuf, RequestSlots};
use nbd_wire::reply::ReplyFormat;
use nbd_wire::{
    Command, CommandFlags, ErrorCode, MAX_PAYLOAD_BYTES, Negotiated, Ready, Request, RequestFormat,
    StatusSelection, WireError, validate,
};

use crate::inbox::Inbox;
use crate::nbd_export::NbdExport;
use crate::outbox::{Outbox, Sendable};
use crate::transport::Transport;

/// How many requests of one connection are under way at a time; each counts until its reply has
/// been sent. More stay in the socket.
pub const MAX_REQUESTS: usize = SLOT_WORDS * 64;
/// Words of slots for them.
const SLOT_WORDS: usize = 2;
/// How many bytes of data the requests of one connection hold at a time, likewise.
pub const MAX_HELD_PAYLOAD_BYTES: usize = 64 << 20;

/// What other requests than reads and writes are taken to hold, in bytes: chunks that are read
/// ahead, or extents.
const SMALL_HOLD_BYTES: usize = 1 << 20;

/// What a request came with.
pub(crate) enum Payload {
    None,
    Data(IoBuf),
    Status(StatusSelection),
}

/// A request that is to be served.
pub(crate) struct Work {
    pub(crate) request: Request,
    pub(crate) payload: Payload,
    /// Why it may not run, if it may not.
    pub(crate) refused: Option<ErrorCode>,
    held_bytes: usize,
}

/// What the parts of one connection share.
pub(crate) struct Session<'a> {
    pub(crate) export: &'a NbdExport,
    pub(crate) backend: &'a BlockBackend,
    pub(crate) negotiated: &'a Negotiated,
    pub(crate) format: ReplyFormat,
    pub(crate) writethrough: bool,
    pub(crate) outbox: RefCell<Outbox>,
    /// A range that was data when it was last asked about. It need not be asked about again: data
    /// is a right answer even if it has become a hole.
    pub(crate) known_data: Cell<(u64, u64)>,
    received: RefCell<VecDeque<Work>>,
    held_requests: Cell<usize>,
    held_bytes: Cell<usize>,
    /// One part has done something that another may wait for.
    moved: Cell<bool>,
    /// Sending has failed; replies are dropped.
    broken: Cell<bool>,
}

/// Why receiving ended before its time.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
}

/// Serves a client's requests until it disconnects and the last one has been answered.
pub(crate) async fn run(export: &NbdExport, transport: Transport, ready: &Ready, first: &[u8]) {
    let session = Session {
        export,
        backend: export.backend(),
        negotiated: &ready.negotiated,
        format: ready.negotiated.reply_format(),
        writethrough: export.writethrough(),
        outbox: RefCell::new(Outbox::new()),
        known_data: Cell::new((0, 0)),
        received: RefCell::default(),
        held_requests: Cell::new(0),
        held_bytes: Cell::new(0),
        moved: Cell::new(false),
        broken: Cell::new(false),
    };
    let mut receive = pin!(session.receive(&transport, ready, first));
    let mut send = pin!(session.send(&transport));
    let mut slots = RequestSlots::<_, SLOT_WORDS>::new();
    let mut receiving = true;
    poll_fn(|cx| {
        slots.set_task(cx.waker());
        loop {
            session.moved.set(false);
            if receiving && receive.as_mut().poll(cx).is_ready() {
                receiving = false;
            }
            while !slots.is_full()
                && let Some(work) = session.next_received()
            {
                slots.insert(session.run_request(work));
            }
            slots.poll_ready();
            let _endless = send.as_mut().poll(cx);
            if !session.moved.get() {
                break;
            }
        }
        if receiving || session.held_requests.get() > 0 {
            Poll::Pending
        } else {
            debug_assert!(slots.is_empty());
            Poll::Ready(())
        }
    })
    .await;
    if !session.broken.get() {
        transport.finish().await;
    }
}

impl Session<'_> {
    async fn receive(&self, transport: &Transport, ready: &Ready, first: &[u8]) {
        if let Err(error) = self.receive_requests(transport, ready, first).await {
            tracing::debug!(%error, "an NBD client is dropped");
        }
    }

    async fn receive_requests(
        &self,
        transport: &Transport,
        ready: &Ready,
        first: &[u8],
    ) -> Result<(), ReceiveError> {
        let mut inbox = Inbox::new(first);
        let mut export = ready.export.clone();
        if !ready.negotiated.block_size_requested {
            // A client that was not told of an alignment cannot be held to it.
            export.block_size.minimum = 1;
        }
        let format = ready.negotiated.request_format();
        loop {
            let Some(header) = inbox.peek(format.header_bytes()) else {
                if inbox.receive(transport).await? > 0 {
                    continue;
                }
                return if inbox.is_empty() {
                    Ok(())
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            };
            let request = with_payload_flag(format, Request::decode(format, header)?)?;
            inbox.advance(format.header_bytes());
            if request.command == Command::Disconnect || self.broken.get() {
                return Ok(());
            }
            let held_bytes = held_bytes(&request);
            self.hold(held_bytes).await;
            let payload_bytes = usize::try_from(request.payload_bytes()).unwrap_or(usize::MAX);
            let data = match payload_bytes {
                0 => None,
                count => Some(inbox.take_payload(count, transport).await),
            };
            let data = data
                .transpose()
                .inspect_err(|_| self.release(1, held_bytes))?;
            // The node may have grown or shrunk since the handshake.
            export.size_bytes = self.backend.length();
            let (payload, refused) = match validate(&request, &export, &ready.negotiated) {
                Err(code) => (Payload::None, Some(code)),
                Ok(()) => match (request.command, data) {
                    (Command::BlockStatus, Some(data)) => {
                        let selection =
                            StatusSelection::decode(&request, &data, &export, &ready.negotiated);
                        match selection {
                            Ok(selection) => (Payload::Status(selection), None),
                            Err(code) => (Payload::None, Some(code)),
                        }
                    }
                    (_, Some(data)) => (Payload::Data(data), None),
                    (_, None) => (Payload::None, None),
                },
            };
            self.received.borrow_mut().push_back(Work {
                request,
                payload,
                refused,
                held_bytes,
            });
            self.moved.set(true);
        }
    }

    fn next_received(&self) -> Option<Work> {
        self.received.borrow_mut().pop_front()
    }

    async fn run_request(&self, work: Work) {
        let held_bytes = work.held_bytes;
        self.serve(work).await;
        self.outbox.borrow_mut().request_done(held_bytes);
        self.moved.set(true);
    }

    /// Sends what is ready, for ever.
    async fn send(&self, transport: &Transport) {
        let mut sendable = Sendable::default();
        loop {
            poll_fn(|_| {
                if self.outbox.borrow().is_empty() {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
            self.outbox.borrow_mut().take(&mut sendable);
            if !self.broken.get()
                && let Err(error) = transport.send(&mut sendable.parts).await
            {
                tracing::debug!(%error, "cannot send to an NBD client");
                self.broken.set(true);
                // Receiving ends, too.
                transport.stream().shutdown();
            }
            sendable.parts.clear();
            self.release(sendable.requests, sendable.payload_bytes);
        }
    }

    /// Counts a request that holds so many bytes, as soon as there is room for it.
    async fn hold(&self, bytes: usize) {
        let has_room = || {
            let requests = self.held_requests.get();
            let fits = self.held_bytes.get() + bytes <= MAX_HELD_PAYLOAD_BYTES;
            requests < MAX_REQUESTS && (fits || requests == 0)
        };
        poll_fn(|_| {
            if has_room() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        self.held_requests.set(self.held_requests.get() + 1);
        self.held_bytes.set(self.held_bytes.get() + bytes);
    }

    fn release(&self, requests: usize, bytes: usize) {
        self.held_requests
            .set(self.held_requests.get().saturating_sub(requests));
        self.held_bytes
            .set(self.held_bytes.get().saturating_sub(bytes));
        self.moved.set(true);
    }
}

/// A write has a payload also where the client has forgotten to say so in an extended header, as
/// QEMU's does.
fn with_payload_flag(format: RequestFormat, request: Request) -> Result<Request, WireError> {
    let forgotten = format == RequestFormat::Extended
        && request.command == Command::Write
        && !request.flags.contains(CommandFlags::PAYLOAD_LEN);
    if !forgotten {
        return Ok(request);
    }
    let Request {
        flags,
        command,
        cookie,
        offset,
        length,
        ..
    } = request;
    Request::new(format, command, flags, cookie, offset, length)
}

/// What a request makes the server hold until it is answered.
fn held_bytes(request: &Request) -> usize {
    let bytes = match request.command {
        Command::Read if request.length <= MAX_PAYLOAD_BYTES.into() => request.length,
        Command::Write => request.payload_bytes().into(),
        Command::Cache | Command::BlockStatus => {
            return SMALL_HOLD_BYTES.max(usize::try_from(request.payload_bytes()).unwrap_or(0));
        }
        _ => request.payload_bytes().into(),
    };
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
