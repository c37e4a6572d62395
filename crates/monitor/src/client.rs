//! One client: its session, its commands under way, its events, its output.
//!
//! One task owns all of it and does nothing but move bytes and messages; every command runs in a task
//! of its own, so a slow one keeps neither this client's out-of-band commands nor any other client waiting.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api::{QmpError, Registered, Return};
use chardev::ByteStream;
use qmp_wire::{Answer, Incoming, Session, Style};
use serde_json::Value;
use tokio::io::ReadBuf;
use tokio::sync::{mpsc, watch};

use crate::caller::{Caller, FdBatch};
use crate::events::Occurrence;
use crate::fdset::NamedFds;
use crate::server::Shared;

/// How many in-band commands of one client wait for their turn before its bytes are left unread.
pub const COMMAND_QUEUE: usize = 8;
/// How many out-of-band commands of one client run at a time before its bytes are left unread.
pub const MAX_OOB_RUNNING: usize = 32;
/// How many bytes of output may wait before a client's bytes are left unread and its events are
/// left in their queue.
pub const OUTPUT_LIMIT: usize = 1 << 20;
/// How long a client has, at shutdown, to take its last output.
const FAREWELL: Duration = Duration::from_millis(500);
/// How many bytes are read at a time.
const READ_SIZE: usize = 16 << 10;

/// A command that has ended.
struct Finished {
    id: Option<Value>,
    in_band: bool,
    result: Result<Return, QmpError>,
}

/// Tells the client of its command's end, also where that was a panic of its handler.
struct Ending {
    finish: mpsc::UnboundedSender<Finished>,
    name: &'static str,
    id: Option<Value>,
    in_band: bool,
    result: Option<Result<Return, QmpError>>,
}

impl Ending {
    fn end_with(mut self, result: Result<Return, QmpError>) {
        self.result = Some(result);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let name = self.name;
        let result = self.result.take().unwrap_or_else(|| {
            // A program that ends drops what runs for clients that have gone.
            if std::thread::panicking() {
                tracing::error!(name, "a command's handler panicked");
            }
            Err(QmpError::generic(format!(
                "Internal error while running '{name}'"
            )))
        });
        // The client may have gone: then nobody wants the result.
        let _ = self.finish.send(Finished {
            id: self.id.take(),
            in_band: self.in_band,
            result,
        });
    }
}

/// A command or a ready answer that waits for its turn.
enum Waiting {
    Command {
        id: Option<Value>,
        command: Registered<Caller>,
        arguments: Value,
        caller: Arc<Caller>,
    },
    Answer(Answer),
}

enum Step {
    Read(usize),
    Wrote(usize),
    Finished(Finished),
    Event(Option<Arc<Occurrence>>),
    Closed,
}

pub(crate) struct Client {
    shared: Arc<Shared>,
    stream: Box<dyn ByteStream>,
    session: Session,
    named_fds: Arc<NamedFds>,
    batch: Option<Arc<FdBatch>>,
    waiting: VecDeque<Waiting>,
    in_band_running: bool,
    oob_running: usize,
    finished: mpsc::UnboundedReceiver<Finished>,
    finish: mpsc::UnboundedSender<Finished>,
    events: Option<mpsc::Receiver<Arc<Occurrence>>>,
    output: Vec<u8>,
    written: usize,
    input: Box<[u8]>,
    input_ended: bool,
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, stream: Box<dyn ByteStream>, style: Style) -> Self {
        let (finish, finished) = mpsc::unbounded_channel();
        Self {
            shared,
            stream,
            session: Session::new(style, true),
            named_fds: Arc::default(),
            batch: None,
            waiting: VecDeque::new(),
            in_band_running: false,
            oob_running: 0,
            finished,
            finish,
            events: None,
            output: Vec::new(),
            written: 0,
            input: vec![0; READ_SIZE].into_boxed_slice(),
            input_ended: false,
        }
    }

    /// Serves the client until it goes, or until `closing` says that the program does.
    pub(crate) async fn serve(mut self, mut closing: watch::Receiver<bool>) {
        let greeted = self
            .session
            .encode_greeting(&self.shared.version, &mut self.output);
        if let Err(error) = greeted {
            tracing::error!(%error, "the greeting cannot be written");
            return;
        }
        loop {
            let step = tokio::select! {
                biased;
                step = poll_fn(|cx| self.poll_step(cx)) => step,
                () = asked_to_close(&mut closing) => {
                    let _ = tokio::time::timeout(FAREWELL, self.say_farewell()).await;
                    return;
                }
            };
            if !self.take_step(step) {
                return;
            }
        }
    }

    /// What comes first: an event, a command's end, room in the socket, the client's bytes. Events
    /// come first so that what a command emitted stands before its reply.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if self.output.len() < OUTPUT_LIMIT
            && let Some(events) = &mut self.events
            && let Poll::Ready(event) = events.poll_recv(cx)
        {
            return Poll::Ready(Step::Event(event));
        }
        if let Poll::Ready(Some(finished)) = self.finished.poll_recv(cx) {
            return Poll::Ready(Step::Finished(finished));
        }
        if self.written < self.output.len() {
            let rest = self.output.get(self.written..).unwrap_or_default();
            match Pin::new(&mut *self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Step::Closed),
                Poll::Ready(Ok(count)) => return Poll::Ready(Step::Wrote(count)),
                Poll::Pending => {}
            }
        }
        if self.wants_input() {
            let mut buf = ReadBuf::new(&mut self.input);
            match Pin::new(&mut *self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) => return Poll::Ready(Step::Read(buf.filled().len())),
                Poll::Ready(Err(_)) => return Poll::Ready(Step::Closed),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    fn wants_input(&self) -> bool {
        !self.input_ended
            && self.waiting.len() < COMMAND_QUEUE
            && self.oob_running < MAX_OOB_RUNNING
            && self.output.len() < OUTPUT_LIMIT
    }

    /// Does what a step asks for; says whether the conversation goes on.
    fn take_step(&mut self, step: Step) -> bool {
        match step {
            Step::Read(count) => self.take_input(count),
            Step::Wrote(count) => {
                self.written += count;
                if self.written >= self.output.len() {
                    self.output.clear();
                    self.output.shrink_to(OUTPUT_LIMIT);
                    self.written = 0;
                }
            }
            Step::Finished(finished) => {
                if finished.in_band {
                    self.in_band_running = false;
                } else {
                    self.oob_running = self.oob_running.saturating_sub(1);
                }
                self.encode_result(finished.id.as_ref(), finished.result);
                self.start_waiting();
            }
            Step::Event(Some(event)) => {
                let (name, data) = (event.name, event.data.as_ref());
                let timestamp = event.timestamp;
                let done = self
                    .session
                    .encode_event(name, data, timestamp, &mut self.output);
                log_unencodable(done);
            }
            Step::Event(None) => {
                tracing::warn!("a client fell too far behind its events; it is disconnected");
                return false;
            }
            Step::Closed => return false,
        }
        // What came in before the end is still answered.
        let idle = self.waiting.is_empty() && !self.in_band_running && self.oob_running == 0;
        !(self.input_ended && idle && self.output.is_empty())
    }

    fn take_input(&mut self, count: usize) {
        if count == 0 {
            self.input_ended = true;
            return;
        }
        let fds = self.stream.take_fds();
        if !fds.is_empty() {
            self.batch = Some(FdBatch::new(fds));
        }
        let bytes = self.input.get(..count).unwrap_or_default();
        self.session.feed(bytes);
        let mut has_message = false;
        while let Some(incoming) = self.session.next_request() {
            has_message = true;
            self.take_message(incoming);
        }
        // Clients send descriptors with a blank of its own, before the command that claims them.
        if has_message && self.session.is_between_messages() {
            self.batch = None;
        }
        if self.events.is_none() && self.session.is_negotiated() {
            self.events = Some(self.shared.events.subscribe());
        }
        self.start_waiting();
    }

    fn take_message(&mut self, incoming: Incoming) {
        let (id, name, arguments, oob) = match incoming {
            Incoming::Answer(answer) => {
                self.waiting.push_back(Waiting::Answer(answer));
                return;
            }
            Incoming::Command {
                id,
                name,
                arguments,
                oob,
            } => (id, name, arguments, oob),
        };
        let Some(command) = self.shared.table.get(&name).cloned() else {
            self.waiting
                .push_back(Waiting::Answer(Answer::unknown_command(id, &name)));
            return;
        };
        if oob && !command.spec.allow_oob {
            self.waiting
                .push_back(Waiting::Answer(Answer::no_oob_support(id, &name)));
            return;
        }
        let arguments = arguments.map_or(Value::Null, Value::Object);
        let named_fds = Arc::clone(&self.named_fds);
        let caller = Arc::new(Caller {
            named_fds,
            batch: self.batch.clone(),
        });
        if oob {
            self.oob_running += 1;
            self.start(id, command, arguments, caller, false);
        } else {
            self.waiting.push_back(Waiting::Command {
                id,
                command,
                arguments,
                caller,
            });
        }
    }

    /// Gives the next command its turn, and ready answers theirs.
    fn start_waiting(&mut self) {
        while !self.in_band_running {
            match self.waiting.pop_front() {
                None => return,
                Some(Waiting::Answer(answer)) => {
                    let done = self.session.encode_answer(&answer, &mut self.output);
                    log_unencodable(done);
                }
                Some(Waiting::Command {
                    id,
                    command,
                    arguments,
                    caller,
                }) => {
                    self.in_band_running = true;
                    self.start(id, command, arguments, caller, true);
                }
            }
        }
    }

    /// Runs a command in a task of its own. It runs to its end even if the client goes: a change
    /// that is half made helps nobody.
    fn start(
        &self,
        id: Option<Value>,
        command: Registered<Caller>,
        arguments: Value,
        caller: Arc<Caller>,
        in_band: bool,
    ) {
        let ending = Ending {
            finish: self.finish.clone(),
            name: command.spec.name,
            id,
            in_band,
            result: None,
        };
        // One task and no more: a second one that waits for the first would wake another thread
        // for each command.
        tokio::spawn(async move {
            let result = (command.handler)(caller, arguments).await;
            ending.end_with(result);
        });
    }

    fn encode_result(&mut self, id: Option<&Value>, result: Result<Return, QmpError>) {
        let done = match result {
            Ok(Return::Value(value)) => self.session.encode_return(id, &value, &mut self.output),
            Ok(Return::Encoded(text)) => {
                self.session.encode_return_json(id, &text, &mut self.output)
            }
            Ok(Return::Nothing) => Ok(()),
            Err(error) => self
                .session
                .encode_error(id, error.class, &error.desc, &mut self.output),
        };
        log_unencodable(done);
    }

    /// Lets the command under way end and writes what there is to say.
    async fn say_farewell(&mut self) {
        while self.in_band_running || self.oob_running > 0 || self.written < self.output.len() {
            self.input_ended = true;
            let step = poll_fn(|cx| self.poll_step(cx)).await;
            if !self.take_step(step) {
                return;
            }
        }
    }
}

/// Waits until the program says that it ends.
async fn asked_to_close(closing: &mut watch::Receiver<bool>) {
    // The reference that comes back must not live across another wait.
    drop(closing.wait_for(|closing| *closing).await);
}

fn log_unencodable(done: Result<(), qmp_wire::Error>) {
    if let Err(error) = done {
        tracing::error!(%error, "a message cannot be written as JSON");
    }
}
