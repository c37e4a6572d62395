//! What can go wrong between a client and its server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use qmp_wire::ErrorClass;

use crate::Address;

/// An error that the server replied with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {desc}")]
pub struct ServerError {
    /// The class's name as it came; servers of other ages know other classes.
    pub class: String,
    /// What happened, for people.
    pub desc: String,
}

impl ServerError {
    /// The class, if it is one of those that the protocol defines today.
    pub fn known_class(&self) -> Option<ErrorClass> {
        self.class.parse().ok()
    }
}

/// Why a connection is no more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Lost {
    /// The server ended it.
    #[error("the server ended the connection")]
    Ended,
    /// The server ended it within a message.
    #[error("the server ended the connection in the middle of a message")]
    EndedInMessage,
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(Arc<io::Error>),
    /// What the server sent is no JSON. Replies may have been lost with it.
    #[error("the server does not speak QMP: {0}")]
    NotQmp(qmp_wire::Error),
    /// The task that keeps the connection is gone, because its runtime is.
    #[error("the client was shut down")]
    ShutDown,
}

/// Everything that can go wrong with a connection or a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no address.
    #[error("'{text}' is no address: {why}; use PATH, unix:PATH, unix:@NAME or tcp:HOST:PORT")]
    Address {
        /// The text.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nobody answers at the address.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// No connection within the time that the options give.
    #[error("no connection to {address} within {limit:?}")]
    ConnectTimedOut {
        /// Where.
        address: Address,
        /// The time that there was.
        limit: Duration,
    },
    /// Connected, but the negotiation did not end in time.
    #[error(
        "no QMP greeting within {limit:?}: is it a QMP socket, and is another client connected to it?"
    )]
    GreetingTimedOut {
        /// The time that there was.
        limit: Duration,
    },
    /// The server's first message is something else than a greeting.
    #[error("the server's first message is no QMP greeting")]
    NoGreeting,
    /// Out-of-band execution was required and the server does not offer it.
    #[error("the server does not offer the capability 'oob'")]
    OobNotOffered,
    /// An out-of-band call on a connection that did not negotiate it.
    #[error("out-of-band execution was not negotiated: connect with ConnectOptions::oob")]
    OobNotNegotiated,
    /// The connection is lost.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// No reply in time. The server may still execute the command.
    #[error("no reply to '{command}' within {limit:?}")]
    TimedOut {
        /// The command.
        command: String,
        /// The time that there was.
        limit: Duration,
    },
    /// The server refused or failed the command.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The reply is not of the type that the schema gives; `desc` names the path to what does not fit.
    #[error("the reply to '{command}' does not fit its type: {desc}")]
    ReplyDoesNotFit {
        /// The command.
        command: &'static str,
        /// Where and why.
        desc: String,
    },
    /// The command cannot be written as JSON, or is longer than servers accept.
    #[error("the command cannot be sent: {0}")]
    Encode(qmp_wire::Error),
    /// Descriptors were given for a connection that cannot carry them.
    #[error("file descriptors can be passed over Unix sockets only")]
    DescriptorsNotPossible,
    /// More descriptors than one message carries.
    #[error("{count} file descriptors with one command, and {max} are the most")]
    TooManyDescriptors {
        /// How many there were.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

impl Error {
    /// The server's error, if it is one.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            _ => None,
        }
    }
}
