//! The connections of one server or one export: counted, cut off, waited for.

use std::collections::HashMap;
use std::sync::Arc;

use host_io::Stream;
use parking_lot::Mutex;

use crate::changed::Changed;

#[derive(Default)]
struct State {
    streams: HashMap<u64, Stream>,
    next: u64,
    closed: bool,
}

/// Connections that are under way.
#[derive(Default)]
pub(crate) struct Clients {
    state: Mutex<State>,
    changed: Changed,
}

/// One connection among its [`Clients`], until it is dropped.
#[must_use]
pub(crate) struct Client {
    among: Arc<Clients>,
    number: u64,
}

impl Clients {
    /// Counts a connection; none once [`Self::cut_off`] has been called.
    pub(crate) fn enter(self: &Arc<Self>, stream: &Stream) -> Option<Client> {
        self.try_enter(usize::MAX, stream).flatten()
    }

    /// Counts a connection as soon as there are fewer than `limit`.
    pub(crate) async fn enter_below(
        self: &Arc<Self>,
        limit: usize,
        stream: &Stream,
    ) -> Option<Client> {
        self.changed.until(|| self.try_enter(limit, stream)).await
    }

    /// Waits until there are fewer than `limit`, or no more are let in.
    pub(crate) async fn room_below(&self, limit: usize) {
        let room = || {
            let state = self.state.lock();
            (state.closed || state.streams.len() < limit).then_some(())
        };
        self.changed.until(room).await;
    }

    /// Whether nobody is let in any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// None while there is no room.
    fn try_enter(self: &Arc<Self>, limit: usize, stream: &Stream) -> Option<Option<Client>> {
        let mut state = self.state.lock();
        if state.closed {
            return Some(None);
        }
        if state.streams.len() >= limit {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.streams.insert(number, stream.clone());
        drop(state);
        Some(Some(Client {
            among: Arc::clone(self),
            number,
        }))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().streams.len()
    }

    /// Lets nobody in any more, and ends the streams of those who are there.
    pub(crate) fn cut_off(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for stream in state.streams.values() {
            stream.shutdown();
        }
        drop(state);
        self.changed.notify();
    }

    /// Waits until all have gone.
    pub(crate) async fn all_gone(&self) {
        self.changed
            .until(|| self.state.lock().streams.is_empty().then_some(()))
            .await;
    }

    /// Waits until [`Self::cut_off`] is called.
    pub(crate) async fn closed(&self) {
        self.changed
            .until(|| self.state.lock().closed.then_some(()))
            .await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.among.state.lock().streams.remove(&self.number);
        self.among.changed.notify();
    }
}
