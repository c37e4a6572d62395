//! Events on their way from the subsystems to the clients.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::{Event, EventSink};
use parking_lot::Mutex;
use qmp_wire::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;

/// How many events may wait for one client. A client that falls further behind is disconnected:
/// it would otherwise miss events without knowing.
pub const EVENT_QUEUE: usize = 4096;

/// For so long after an event with a rate limit, later ones of its kind are held back; only the last of them is
/// then sent.
const RATE_PERIOD: Duration = Duration::from_millis(1000);

/// The most kinds of event that are held back at a time; beyond that they are sent at once.
const MAX_THROTTLED: usize = 1024;

/// The events with a rate limit, and the member of their data that tells kinds apart.
const RATE_LIMITED: &[(&str, Option<&str>)] = &[
    ("RTC_CHANGE", None),
    ("WATCHDOG", None),
    ("BALLOON_CHANGE", None),
    ("BLOCK_IO_ERROR", Some("qom-path")),
    ("QUORUM_REPORT_BAD", Some("node-name")),
    ("QUORUM_FAILURE", None),
    ("VSERPORT_CHANGE", Some("id")),
    ("MEMORY_DEVICE_SIZE_CHANGE", Some("qom-path")),
];

/// An event as clients get it.
#[derive(Debug)]
pub struct Occurrence {
    /// Its name.
    pub name: &'static str,
    /// Its data, if it has any.
    pub data: Option<Value>,
    /// When it happened.
    pub timestamp: Timestamp,
}

type Kind = (&'static str, String);

#[derive(Default)]
struct State {
    subscribers: Vec<mpsc::Sender<Arc<Occurrence>>>,
    // What is held back: nothing yet, or the latest.
    throttled: HashMap<Kind, Option<Arc<Occurrence>>>,
}

/// Takes events from any thread and hands them to every client that listens.
pub struct EventBus {
    state: Arc<Mutex<State>>,
    runtime: tokio::runtime::Handle,
}

impl EventBus {
    /// A bus whose timers run on `runtime`.
    pub fn new(runtime: tokio::runtime::Handle) -> Arc<Self> {
        Arc::new(Self {
            state: Arc::default(),
            runtime,
        })
    }

    /// A queue that gets every event from now on. It ends when its reader falls too far behind.
    pub fn subscribe(&self) -> mpsc::Receiver<Arc<Occurrence>> {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        self.state.lock().subscribers.push(sender);
        receiver
    }

    fn hold_back(&self, kind: Kind) {
        let state = Arc::clone(&self.state);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(RATE_PERIOD).await;
                let mut state = state.lock();
                match state.throttled.remove(&kind) {
                    Some(Some(latest)) => {
                        state.throttled.insert(kind.clone(), None);
                        broadcast(&mut state, &latest);
                    }
                    _ => return,
                }
            }
        });
    }
}

impl EventSink for EventBus {
    fn emit(&self, event: Event) {
        let data = match event.data() {
            Value::Object(members) if members.is_empty() => None,
            data => Some(data),
        };
        self.publish(event.name(), data);
    }
}

impl EventBus {
    /// Sends an event to every client, unless its rate limit holds it back.
    pub(crate) fn publish(&self, name: &'static str, data: Option<Value>) {
        let limit = RATE_LIMITED.iter().find(|(limited, _)| *limited == name);
        let kind = limit.map(|(_, member)| {
            let part = member.and_then(|member| data.as_ref()?.get(member)?.as_str());
            (name, part.unwrap_or_default().to_owned())
        });
        let occurrence = Arc::new(Occurrence {
            name,
            data,
            timestamp: now(),
        });
        let mut state = self.state.lock();
        if let Some(kind) = kind {
            if let Some(held) = state.throttled.get_mut(&kind) {
                *held = Some(occurrence);
                return;
            }
            if state.throttled.len() < MAX_THROTTLED {
                state.throttled.insert(kind.clone(), None);
                self.hold_back(kind);
            }
        }
        broadcast(&mut state, &occurrence);
    }
}

fn broadcast(state: &mut State, occurrence: &Arc<Occurrence>) {
    // A full queue ends its client: dropping the sender tells it.
    state
        .subscribers
        .retain(|subscriber| subscriber.try_send(Arc::clone(occurrence)).is_ok());
}

fn now() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(-1),
            microseconds: i64::from(since.subsec_micros()),
        },
        Err(_) => Timestamp {
            seconds: -1,
            microseconds: -1,
        },
    }
}
