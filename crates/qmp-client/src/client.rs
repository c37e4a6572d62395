//! The handle: connecting and calling.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::{Command, FromQapi, ToQapi, UnknownMember};
use qmp_wire::ServerMessage;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;

use crate::connection::{CallError, Connection, Request};
use crate::{Address, EVENT_QUEUE, Error, Event, EventStream, Lost, MAX_DESCRIPTORS, Stream};

/// How many commands wait for the connection's task; the rest waits in its callers.
const REQUEST_QUEUE: usize = 32;

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Time for the connection, and again for greeting and negotiation.
    pub timeout: Duration,
    /// Whether to enable out-of-band execution.
    pub oob: Oob,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            oob: Oob::No,
        }
    }
}

/// Whether to enable out-of-band execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oob {
    /// No.
    No,
    /// Where the server offers it; [`Client::has_oob`] tells.
    IfOffered,
    /// Yes; a server that does not offer it is an error.
    Required,
}

/// A command to be run.
#[derive(Debug)]
pub struct Call {
    name: String,
    arguments: Option<Value>,
    oob: bool,
    descriptors: Vec<OwnedFd>,
}

impl Call {
    /// A command without arguments, in band.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            arguments: None,
            oob: false,
            descriptors: Vec::new(),
        }
    }

    /// With these arguments (an object); null and an empty object are left out.
    #[must_use]
    pub fn arguments(mut self, arguments: Value) -> Self {
        let empty = match &arguments {
            Value::Null => true,
            Value::Object(members) => members.is_empty(),
            _ => false,
        };
        self.arguments = (!empty).then_some(arguments);
        self
    }

    /// Out of band: it overtakes commands that wait, and is answered out of order.
    #[must_use]
    pub fn out_of_band(mut self) -> Self {
        self.oob = true;
        self
    }

    /// With these file descriptors, which are closed here once they are sent (at most
    /// [`MAX_DESCRIPTORS`]).
    #[must_use]
    pub fn descriptors(mut self, descriptors: Vec<OwnedFd>) -> Self {
        self.descriptors = descriptors;
        self
    }
}

/// A typed reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply<T> {
    /// What the schema knows.
    pub value: T,
    /// Members that the schema does not know, such as those of a later server.
    pub unknown: Vec<UnknownMember>,
}

/// What was agreed on when the connection began.
#[derive(Debug)]
struct Agreement {
    version: Value,
    capabilities: Vec<String>,
    oob: bool,
    carries_descriptors: bool,
}

/// A handle to a connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    requests: mpsc::Sender<Request>,
    events: broadcast::WeakSender<Arc<Event>>,
    agreement: Arc<Agreement>,
    lost: Arc<OnceLock<Lost>>,
}

impl Client {
    /// Connects and negotiates. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::ConnectTimedOut`], and those of [`Client::over`].
    pub async fn connect(address: &Address, options: &ConnectOptions) -> Result<Self, Error> {
        let stream = timeout(options.timeout, Stream::connect(address))
            .await
            .map_err(|_| Error::ConnectTimedOut {
                address: address.clone(),
                limit: options.timeout,
            })?
            .map_err(|source| Error::Connect {
                address: address.clone(),
                source,
            })?;
        Self::over(stream, options).await
    }

    /// Negotiates on a stream that is connected already. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::GreetingTimedOut`], [`Error::NoGreeting`], [`Error::OobNotOffered`],
    /// [`Error::Lost`], and [`Error::Server`] if the server refuses the negotiation.
    pub async fn over(stream: impl Into<Stream>, options: &ConnectOptions) -> Result<Self, Error> {
        let stream = stream.into();
        let limit = options.timeout;
        timeout(limit, Self::negotiate(stream, options))
            .await
            .map_err(|_| Error::GreetingTimedOut { limit })?
    }

    async fn negotiate(stream: Stream, options: &ConnectOptions) -> Result<Self, Error> {
        let carries_descriptors = stream.carries_descriptors();
        let (event_sender, _) = broadcast::channel(EVENT_QUEUE);
        let events = event_sender.downgrade();
        let mut connection = Connection::new(stream, event_sender);
        let ServerMessage::Greeting {
            version,
            capabilities,
        } = connection.first_message().await?
        else {
            return Err(Error::NoGreeting);
        };
        let offered = capabilities.iter().any(|name| name == "oob");
        let oob = match options.oob {
            Oob::Required if !offered => return Err(Error::OobNotOffered),
            Oob::No => false,
            Oob::IfOffered | Oob::Required => offered,
        };
        let lost = Arc::<OnceLock<Lost>>::default();
        let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
        tokio::spawn(connection.serve(queue, Arc::clone(&lost)));
        let client = Self {
            requests,
            events,
            agreement: Arc::new(Agreement {
                version,
                capabilities,
                oob,
                carries_descriptors,
            }),
            lost,
        };
        // Servers before 2.12 take no arguments here, so none are sent unless they are needed.
        let mut call = Call::new("qmp_capabilities");
        if oob {
            call = call.arguments(serde_json::json!({"enable": ["oob"]}));
        }
        client.exchange(call).await?;
        Ok(client)
    }

    /// Runs a command that the schema knows.
    ///
    /// # Errors
    /// As [`Client::run_call`], and [`Error::ReplyDoesNotFit`].
    pub async fn run<C: Command>(
        &self,
        arguments: &C::Args,
        limit: Duration,
    ) -> Result<Reply<C::Output>, Error> {
        self.run_typed::<C>(arguments, |call| call, limit).await
    }

    /// Runs a command that the schema knows, out of band.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub async fn run_oob<C: Command>(
        &self,
        arguments: &C::Args,
        limit: Duration,
    ) -> Result<Reply<C::Output>, Error> {
        self.run_typed::<C>(arguments, Call::out_of_band, limit)
            .await
    }

    /// Runs a command that the schema knows, and passes file descriptors with it.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub async fn run_with_descriptors<C: Command>(
        &self,
        arguments: &C::Args,
        descriptors: Vec<OwnedFd>,
        limit: Duration,
    ) -> Result<Reply<C::Output>, Error> {
        self.run_typed::<C>(arguments, |call| call.descriptors(descriptors), limit)
            .await
    }

    async fn run_typed<C: Command>(
        &self,
        arguments: &C::Args,
        adapt: impl FnOnce(Call) -> Call,
        limit: Duration,
    ) -> Result<Reply<C::Output>, Error> {
        let call = adapt(Call::new(C::NAME).arguments(arguments.to_qapi()));
        let reply = self.run_call(call, limit).await?;
        read_reply(C::NAME, reply)
    }

    /// Runs a command by its name, with its arguments as an object (or null).
    ///
    /// # Errors
    /// As [`Client::run_call`].
    pub async fn run_raw(
        &self,
        name: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, Error> {
        self.run_call(Call::new(name).arguments(arguments), limit)
            .await
    }

    /// Runs a command and waits for its result, but no longer than `limit`. Dropping the future gives
    /// the call up; if the command was sent by then, the server executes it all the same.
    ///
    /// # Errors
    /// [`Error::Server`], [`Error::TimedOut`], [`Error::Lost`], [`Error::Encode`],
    /// [`Error::OobNotNegotiated`], [`Error::DescriptorsNotPossible`], [`Error::TooManyDescriptors`].
    pub async fn run_call(&self, call: Call, limit: Duration) -> Result<Value, Error> {
        if call.oob && !self.agreement.oob {
            return Err(Error::OobNotNegotiated);
        }
        let count = call.descriptors.len();
        if count > 0 && !self.agreement.carries_descriptors {
            return Err(Error::DescriptorsNotPossible);
        }
        if count > MAX_DESCRIPTORS {
            return Err(Error::TooManyDescriptors {
                count,
                max: MAX_DESCRIPTORS,
            });
        }
        let command = call.name.clone();
        timeout(limit, self.exchange(call))
            .await
            .map_err(|_| Error::TimedOut { command, limit })?
    }

    async fn exchange(&self, call: Call) -> Result<Value, Error> {
        let (outcome, answer) = oneshot::channel();
        let request = Request {
            name: call.name,
            arguments: call.arguments,
            oob: call.oob,
            descriptors: call.descriptors,
            outcome,
        };
        let sent = self.requests.send(request).await;
        sent.map_err(|_| self.reason())?;
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(CallError::Server(error))) => Err(error.into()),
            Ok(Err(CallError::Encode(error))) => Err(Error::Encode(error)),
            Err(_) => Err(self.reason().into()),
        }
    }

    /// The events from now on.
    pub fn events(&self) -> EventStream {
        let receiver = match self.events.upgrade() {
            Some(sender) => sender.subscribe(),
            // The connection is lost: a stream that has ended.
            None => broadcast::channel(1).1,
        };
        EventStream::new(receiver, self.clone())
    }

    /// What the greeting said of the server's version, as `query-version` returns it.
    pub fn version(&self) -> &Value {
        &self.agreement.version
    }

    /// The capabilities that the greeting offered.
    pub fn capabilities(&self) -> &[String] {
        &self.agreement.capabilities
    }

    /// Whether out-of-band execution is enabled.
    pub fn has_oob(&self) -> bool {
        self.agreement.oob
    }

    /// Whether the connection is there, as far as is known.
    pub fn is_connected(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Waits until the connection is lost, and tells why.
    pub async fn lost(&self) -> Lost {
        self.requests.closed().await;
        self.reason()
    }

    fn reason(&self) -> Lost {
        self.lost.get().cloned().unwrap_or(Lost::ShutDown)
    }
}

fn read_reply<T: FromQapi>(command: &'static str, reply: Value) -> Result<Reply<T>, Error> {
    let (value, unknown) = api::reply_from_json(reply).map_err(|error| Error::ReplyDoesNotFit {
        command,
        desc: error.desc,
    })?;
    Ok(Reply { value, unknown })
}
