//! Events on their way to those who listen.

use std::sync::Arc;

use qmp_wire::Timestamp;
use serde_json::Value;
use tokio::sync::broadcast;

use crate::Client;

/// How many events are kept for a listener that does not take them; of those before it is told the
/// number alone.
pub const EVENT_QUEUE: usize = 1024;

/// An event as the server sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// What belongs to it.
    pub data: Option<Value>,
    /// When it happened, by the server's clock.
    pub timestamp: Timestamp,
}

impl Event {
    /// The event as the schema types it; `None` if the schema does not know its name.
    ///
    /// # Errors
    /// When the data do not fit the type.
    pub fn typed(&self) -> Result<Option<api::Event>, api::QmpError> {
        let data = self
            .data
            .clone()
            .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        api::Event::from_parts(&self.name, data)
    }
}

/// What an [`EventStream`] yields.
#[derive(Debug, Clone, PartialEq)]
pub enum Occurrence {
    /// An event.
    Event(Arc<Event>),
    /// So many events were dropped here because the listener was too slow.
    Missed(u64),
}

/// The events since it was made, in the server's order. It keeps the connection open.
#[derive(Debug)]
pub struct EventStream {
    receiver: broadcast::Receiver<Arc<Event>>,
    _keeps_open: Client,
}

impl EventStream {
    pub(crate) fn new(receiver: broadcast::Receiver<Arc<Event>>, client: Client) -> Self {
        Self {
            receiver,
            _keeps_open: client,
        }
    }

    /// The next event, or how many were missed; `None` when the connection is lost
    /// ([`Client::lost`] tells why). Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Occurrence> {
        match self.receiver.recv().await {
            Ok(event) => Some(Occurrence::Event(event)),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Occurrence::Missed(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
