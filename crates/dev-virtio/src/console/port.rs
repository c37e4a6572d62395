//! One port: what waits to be sent each way, and who has it open.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::{ControlEvent, PortSink};
use crate::{Chain, DeviceQueue};

/// The most bytes from the guest that wait for the chardev.
pub const MAX_PORT_OUTPUT_BYTES: usize = 64 << 10;
/// The most bytes from the chardev that wait for the guest.
pub const MAX_PORT_INPUT_BYTES: usize = 4 << 10;
/// The most chains that are taken at once; more are taken by the port's task, so that a guest cannot keep a thread.
const MAX_CHAINS_AT_ONCE: u32 = 1024;

/// What the driver is to hear of a port, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Announcements {
    add: bool,
    console: bool,
    name: bool,
    /// Opened or closed by the host.
    open: Option<bool>,
}

#[derive(Default)]
struct State {
    is_driver_ready: bool,
    is_guest_open: bool,
    is_host_open: bool,
    announcements: Announcements,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A chain from the driver that did not fit into the output.
    sending: Option<Chain>,
    /// How much of that chain, or (after a restore) of the first one of the queue, is in the output.
    sent_bytes: u64,
}

/// The state of a port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortSaved {
    is_driver_ready: bool,
    is_guest_open: bool,
    is_host_open: bool,
    announcements: Announcements,
    input: Vec<u8>,
    output: Vec<u8>,
    sent_bytes: u64,
}

impl PortSaved {
    pub(super) fn is_possible(&self) -> bool {
        self.input.len() <= MAX_PORT_INPUT_BYTES && self.output.len() <= MAX_PORT_OUTPUT_BYTES
    }
}

pub(super) struct Port {
    number: u32,
    name: String,
    is_console: bool,
    sink: Option<Arc<dyn PortSink>>,
    to_driver: Arc<DeviceQueue>,
    from_driver: Arc<DeviceQueue>,
    state: Mutex<State>,
    task: Mutex<Option<AbortHandle>>,
    /// There is something to do for the port's task.
    pub(super) news: Notify,
}

impl Port {
    pub(super) fn new(
        number: u32,
        name: String,
        is_console: bool,
        sink: Option<Arc<dyn PortSink>>,
        to_driver: Arc<DeviceQueue>,
        from_driver: Arc<DeviceQueue>,
    ) -> Arc<Port> {
        Arc::new(Port {
            number,
            name,
            is_console,
            sink,
            to_driver,
            from_driver,
            state: Mutex::default(),
            task: Mutex::default(),
            news: Notify::new(),
        })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn set_task(&self, task: AbortHandle) {
        *self.task.lock() = Some(task);
    }

    /// Lets go of the chardev.
    pub(super) fn close(&self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
        self.set_guest_open(false);
        let mut state = self.state.lock();
        state.is_host_open = false;
        if let (Some(chain), Some(mut queue)) = (state.sending.take(), self.from_driver.lock()) {
            queue.finish(chain, 0);
            queue.signal();
        }
    }

    pub(super) fn is_guest_open(&self) -> bool {
        self.state.lock().is_guest_open
    }

    /// The driver is to hear that the port is there.
    pub(super) fn announce(&self) {
        self.state.lock().announcements.add = true;
    }

    /// The driver knows the port and is to hear the rest.
    pub(super) fn driver_is_ready(&self) {
        let mut state = self.state.lock();
        state.is_driver_ready = true;
        state.announcements.console = self.is_console;
        state.announcements.name = !self.name.is_empty();
        state.announcements.open = state.is_host_open.then_some(true);
        drop(state);
        if self.is_console {
            self.set_guest_open(true);
        }
    }

    /// Sends what the driver is to hear, by `send`, which says whether there was room.
    pub(super) fn send_announcements(&self, mut send: impl FnMut(ControlEvent, u16, &str) -> bool) {
        let mut state = self.state.lock();
        let due = &mut state.announcements;
        if due.add && !send(ControlEvent::PortAdd, 1, "") {
            return;
        }
        due.add = false;
        if due.console && !send(ControlEvent::ConsolePort, 1, "") {
            return;
        }
        due.console = false;
        if due.name && !send(ControlEvent::PortName, 1, &self.name) {
            return;
        }
        due.name = false;
        if let Some(is_open) = due.open
            && !send(ControlEvent::PortOpen, u16::from(is_open), "")
        {
            return;
        }
        due.open = None;
    }

    pub(super) fn set_guest_open(&self, is_open: bool) {
        let before = std::mem::replace(&mut self.state.lock().is_guest_open, is_open);
        if before != is_open
            && let Some(sink) = &self.sink
        {
            sink.guest_open_changed(is_open);
        }
        self.work();
    }

    /// The host has connected or gone; true if the driver is to hear of it.
    pub(super) fn set_host_open(&self, is_open: bool) -> bool {
        let mut state = self.state.lock();
        state.is_host_open = is_open;
        if !is_open {
            state.output.clear();
        }
        if state.is_driver_ready {
            state.announcements.open = Some(is_open);
        }
        state.is_driver_ready
    }

    /// Moves what can be moved, both ways.
    pub(super) fn work(&self) {
        self.deliver();
        self.transmit();
    }

    /// Gives the guest what has come from the chardev.
    fn deliver(&self) {
        let mut state = self.state.lock();
        if state.input.is_empty() || !state.is_guest_open {
            return;
        }
        let Some(mut queue) = self.to_driver.lock() else {
            return;
        };
        while !state.input.is_empty() {
            let Some(chain) = queue.pop() else {
                if queue.listen_to_driver() {
                    continue;
                }
                break;
            };
            let written = queue.write(chain, 0, &state.input);
            let length = state.input.len();
            state.input.drain(..written.min(length));
            queue.finish(chain, u32::try_from(written).unwrap_or(0));
        }
        queue.signal();
        if state.input.is_empty() {
            self.news.notify_one();
        }
    }

    /// Takes from the guest what the chardev has room for.
    fn transmit(&self) {
        let mut state = self.state.lock();
        let Some(mut queue) = self.from_driver.lock() else {
            return;
        };
        let state = &mut *state;
        let mut chains = 0;
        queue.silence_driver();
        loop {
            let room = MAX_PORT_OUTPUT_BYTES.saturating_sub(state.output.len());
            if state.is_host_open && room == 0 {
                break;
            }
            if chains >= MAX_CHAINS_AT_ONCE {
                self.news.notify_one();
                break;
            }
            let Some(chain) = state.sending.take().or_else(|| queue.pop()) else {
                if queue.listen_to_driver() {
                    continue;
                }
                break;
            };
            chains += 1;
            let left = queue.readable_bytes(chain).saturating_sub(state.sent_bytes);
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            if state.is_host_open && left > 0 {
                let start = state.output.len();
                state.output.resize(start + left.min(room), 0);
                let into = state.output.get_mut(start..).unwrap_or_default();
                let count = queue.read(chain, state.sent_bytes, into);
                state.output.truncate(start + count);
                if count < left && count > 0 {
                    state.sent_bytes = state.sent_bytes.saturating_add(count as u64);
                    state.sending = Some(chain);
                    continue;
                }
            }
            state.sent_bytes = 0;
            queue.finish(chain, 0);
        }
        queue.signal();
        if !state.output.is_empty() {
            self.news.notify_one();
        }
    }

    /// A byte that goes out without a queue, if there is room.
    pub(super) fn write_now(&self, byte: u8) {
        let mut state = self.state.lock();
        if state.is_host_open && state.output.len() < MAX_PORT_OUTPUT_BYTES {
            state.output.push(byte);
            self.news.notify_one();
        }
    }

    /// How many bytes from the chardev there is room for.
    pub(super) fn input_room(&self) -> usize {
        MAX_PORT_INPUT_BYTES.saturating_sub(self.state.lock().input.len())
    }

    /// Takes bytes from the chardev, at most [`Port::input_room`].
    pub(super) fn receive(&self, bytes: &[u8]) {
        self.state.lock().input.extend(bytes);
        self.deliver();
    }

    /// Moves what is to go out into `into`, which is empty.
    pub(super) fn take_output(&self, into: &mut Vec<u8>) {
        std::mem::swap(&mut self.state.lock().output, into);
    }

    pub(super) fn reset(&self) {
        let mut state = self.state.lock();
        let was_guest_open = state.is_guest_open;
        *state = State {
            is_host_open: state.is_host_open,
            output: std::mem::take(&mut state.output),
            ..State::default()
        };
        drop(state);
        if was_guest_open && let Some(sink) = &self.sink {
            sink.guest_open_changed(false);
        }
        // The chardev may be read again.
        self.news.notify_one();
    }

    pub(super) fn save(&self) -> PortSaved {
        let state = self.state.lock();
        PortSaved {
            is_driver_ready: state.is_driver_ready,
            is_guest_open: state.is_guest_open,
            is_host_open: state.is_host_open,
            announcements: state.announcements,
            input: state.input.clone(),
            output: state.output.clone(),
            sent_bytes: state.sent_bytes,
        }
    }

    pub(super) fn restore(&self, saved: PortSaved) {
        let mut state = self.state.lock();
        let is_host_open = state.is_host_open;
        *state = State {
            is_driver_ready: saved.is_driver_ready,
            is_guest_open: saved.is_guest_open,
            is_host_open,
            announcements: saved.announcements,
            input: saved.input,
            output: if is_host_open {
                saved.output
            } else {
                Vec::new()
            },
            sending: None,
            sent_bytes: saved.sent_bytes,
        };
        if saved.is_driver_ready && saved.is_host_open != is_host_open {
            state.announcements.open = Some(is_host_open);
        }
        drop(state);
        if saved.is_guest_open
            && let Some(sink) = &self.sink
        {
            sink.guest_open_changed(true);
        }
        self.news.notify_one();
    }
}
