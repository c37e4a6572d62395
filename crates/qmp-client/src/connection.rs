//! The task that owns a stream: commands out, replies and events in.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use qmp_wire::{ClientSession, ServerMessage};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::stream::{Reader, Stream, Writer};
use crate::{Event, Lost, ServerError};

/// How many calls may be without a reply at a time; more wait their turn, within their deadlines.
/// Calls that were given up count until their reply comes, or until the room is needed.
pub const MAX_UNANSWERED: usize = 1024;

/// How many bytes may wait to be written before further commands wait their turn.
pub const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// How many bytes are read at a time.
const READ_BYTES: usize = 64 << 10;

/// What a call ends with.
pub(crate) type Outcome = Result<Value, CallError>;

/// Why a call that was sent did not succeed.
pub(crate) enum CallError {
    Server(ServerError),
    Encode(qmp_wire::Error),
}

/// A command for the task to send.
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) arguments: Option<Value>,
    pub(crate) oob: bool,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) outcome: oneshot::Sender<Outcome>,
}

struct Unanswered {
    oob: bool,
    outcome: oneshot::Sender<Outcome>,
}

/// Bytes that go out together with descriptors, which go with the first of them.
struct Segment {
    bytes: Vec<u8>,
    written: usize,
    descriptors: Vec<OwnedFd>,
}

pub(crate) struct Connection {
    reader: Reader,
    writer: Writer,
    session: ClientSession,
    input: Box<[u8]>,
    /// Whether the bytes so far ended within a message, for the words of [`Lost`] alone.
    in_message: bool,
    output: VecDeque<Segment>,
    output_bytes: usize,
    /// Whether something was written that an inner layer may keep back.
    unflushed: bool,
    next_id: u64,
    unanswered: BTreeMap<u64, Unanswered>,
    events: broadcast::Sender<Arc<Event>>,
}

enum Step {
    Read(usize),
    Wrote(usize),
    Flushed,
    Request(Option<Request>),
}

impl Connection {
    pub(crate) fn new(stream: Stream, events: broadcast::Sender<Arc<Event>>) -> Self {
        let (reader, writer) = stream.split();
        Self {
            reader,
            writer,
            session: ClientSession::new(),
            input: vec![0; READ_BYTES].into_boxed_slice(),
            in_message: false,
            output: VecDeque::new(),
            output_bytes: 0,
            unflushed: false,
            next_id: 1,
            unanswered: BTreeMap::new(),
            events,
        }
    }

    /// Reads the server's first message.
    pub(crate) async fn first_message(&mut self) -> Result<ServerMessage, Lost> {
        loop {
            if let Some(message) = self.session.next_message() {
                return message.map_err(Lost::NotQmp);
            }
            let count = self.reader.read(&mut self.input).await.map_err(io_lost)?;
            self.feed(count)?;
        }
    }

    /// Serves calls until the connection is lost, or nobody is left who could call.
    pub(crate) async fn serve(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        lost: Arc<OnceLock<Lost>>,
    ) {
        if let Err(reason) = self.converse(&mut requests).await {
            // Before the calls under way are dropped, and with them told to look here.
            let _ = lost.set(reason);
        }
    }

    async fn converse(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), Lost> {
        loop {
            // What came along with the greeting is in the session already.
            self.take_messages()?;
            match self.next_step(requests).await? {
                Step::Read(count) => self.feed(count)?,
                Step::Wrote(count) => self.wrote(count)?,
                Step::Flushed => self.unflushed = false,
                Step::Request(None) => return Ok(()),
                Step::Request(Some(request)) => self.send(request),
            }
        }
    }

    async fn next_step(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<Step, Lost> {
        let has_room = self.has_room();
        let (bytes, descriptors): (&[u8], &[OwnedFd]) = match self.output.front() {
            Some(segment) => (
                segment.bytes.get(segment.written..).unwrap_or_default(),
                &segment.descriptors,
            ),
            None => (&[], &[]),
        };
        let (writer, unflushed) = (&mut self.writer, self.unflushed);
        let out = async {
            match (bytes.is_empty(), unflushed) {
                (false, _) => writer.write(bytes, descriptors).await.map(Step::Wrote),
                (true, true) => writer.flush().await.map(|()| Step::Flushed),
                (true, false) => std::future::pending().await,
            }
        };
        tokio::select! {
            step = out => step,
            read = self.reader.read(&mut self.input) => read.map(Step::Read),
            request = requests.recv(), if has_room => Ok(Step::Request(request)),
        }
        .map_err(io_lost)
    }

    fn has_room(&mut self) -> bool {
        if self.unanswered.len() >= MAX_UNANSWERED {
            self.unanswered.retain(|_, call| !call.outcome.is_closed());
        }
        self.unanswered.len() < MAX_UNANSWERED && self.output_bytes < MAX_OUTPUT_BYTES
    }

    fn feed(&mut self, count: usize) -> Result<(), Lost> {
        let bytes = self.input.get(..count).unwrap_or_default();
        let Some(last) = bytes.last() else {
            return Err(if self.in_message {
                Lost::EndedInMessage
            } else {
                Lost::Ended
            });
        };
        self.in_message = !matches!(last, b'\n' | b'}');
        self.session.feed(bytes);
        Ok(())
    }

    fn wrote(&mut self, count: usize) -> Result<(), Lost> {
        if count == 0 {
            return Err(Lost::Ended);
        }
        self.output_bytes = self.output_bytes.saturating_sub(count);
        if let Some(segment) = self.output.front_mut() {
            segment.written = segment.written.saturating_add(count);
            // They have gone with the first byte; ours are closed.
            segment.descriptors.clear();
            if segment.written >= segment.bytes.len() {
                self.output.pop_front();
            }
        }
        self.unflushed = true;
        Ok(())
    }

    fn send(&mut self, request: Request) {
        if request.outcome.is_closed() {
            // Given up before it was sent: the server need not know.
            return;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut bytes = Vec::new();
        let arguments = request.arguments.as_ref();
        let encoded = self.session.encode_command(
            &request.name,
            arguments,
            Some(&Value::from(id)),
            request.oob,
            &mut bytes,
        );
        let encoded = encoded.and(match bytes.len() {
            0..=qmp_wire::json::MAX_MESSAGE_BYTES => Ok(()),
            _ => Err(qmp_wire::Error::TokenSize),
        });
        if let Err(error) = encoded {
            let _ = request.outcome.send(Err(CallError::Encode(error)));
            return;
        }
        self.output_bytes = self.output_bytes.saturating_add(bytes.len());
        match self.output.back_mut() {
            // Behind the segment that is being written (it may wait for room), small commands share one.
            Some(last) if request.descriptors.is_empty() && last.bytes.len() < READ_BYTES => {
                last.bytes.extend_from_slice(&bytes);
            }
            _ => self.output.push_back(Segment {
                bytes,
                written: 0,
                descriptors: request.descriptors,
            }),
        }
        self.unanswered.insert(
            id,
            Unanswered {
                oob: request.oob,
                outcome: request.outcome,
            },
        );
    }

    fn take_messages(&mut self) -> Result<(), Lost> {
        while let Some(message) = self.session.next_message() {
            match message {
                Ok(ServerMessage::Return { id, value }) => self.answer(id.as_ref(), Ok(value)),
                Ok(ServerMessage::Error { id, class, desc }) => {
                    let error = CallError::Server(ServerError { class, desc });
                    self.answer(id.as_ref(), Err(error));
                }
                Ok(ServerMessage::Event {
                    name,
                    data,
                    timestamp,
                }) => {
                    // That nobody listens is no error.
                    let _ = self.events.send(Arc::new(Event {
                        name,
                        data,
                        timestamp,
                    }));
                }
                Ok(ServerMessage::Greeting { .. }) => {
                    tracing::warn!("the server greeted twice");
                }
                // A kind of message that a later protocol may have.
                Err(error @ qmp_wire::Error::NotAServerMessage(_)) => tracing::warn!(%error),
                Err(error) => return Err(Lost::NotQmp(error)),
            }
        }
        Ok(())
    }

    fn answer(&mut self, id: Option<&Value>, outcome: Outcome) {
        let key = match id {
            Some(id) => id.as_u64(),
            // A server leaves the id out when it could not read the command; in-band replies keep
            // the commands' order.
            None => self
                .unanswered
                .iter()
                .find(|(_, call)| !call.oob)
                .map(|(key, _)| *key),
        };
        match key.and_then(|key| self.unanswered.remove(&key)) {
            // Whoever called may have given up.
            Some(call) => drop(call.outcome.send(outcome)),
            None => tracing::debug!(?id, "a reply that no call waits for"),
        }
    }
}

fn io_lost(error: std::io::Error) -> Lost {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    match error.kind() {
        BrokenPipe | ConnectionReset => Lost::Ended,
        _ => Lost::Io(Arc::new(error)),
    }
}
