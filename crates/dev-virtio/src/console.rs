//! Serial ports and consoles (virtio 1.2, 5.3): `virtio-serial` with `virtconsole` and `virtserialport`.
//!
//! A device has ports; each has two queues, and a chardev behind it. A multiport driver learns of ports over a control
//! queue, and both sides tell each other when a port is opened and closed.
//!
//! | queues | for |
//! |---|---|
//! | 0, 1 | port 0: to the driver, from the driver |
//! | 2, 3 | control: to the driver, from the driver |
//! | 2n+2, 2n+3 | port n |
//!
//! # Flow control
//!
//! From the guest, at most [`MAX_PORT_OUTPUT_BYTES`] wait for the chardev; more stay in the queue. While no host is
//! connected, what the guest sends is dropped. To the guest, [`MAX_PORT_INPUT_BYTES`] are read ahead; the rest stays in the
//! chardev until the guest has opened the port and made room.

mod port;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use chardev::ChardevClaim;
use device::{Error as DeviceError, SavedState};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use self::port::{Port, PortSaved};
use crate::{DeviceQueue, DeviceType, Error, Link, MAX_QUEUES, QueueGuard, VirtioDevice};

pub use self::port::{MAX_PORT_INPUT_BYTES, MAX_PORT_OUTPUT_BYTES};

const VERSION: u32 = 1;
const MULTIPORT: u64 = 1 << 1;
const EMERGENCY_WRITE: u64 = 1 << 2;
const DATA_QUEUE_SIZE: u16 = 128;
const CONTROL_QUEUE_SIZE: u16 = 32;
const CONTROL_TO_DRIVER: u16 = 2;
const CONTROL_FROM_DRIVER: u16 = 3;
/// Where the driver writes a character without a queue (`emerg_wr`).
const EMERGENCY_OFFSET: usize = 8;
/// Ports that a device has by default, beyond which `max_ports` goes.
pub const DEFAULT_MAX_PORTS: u32 = 31;
/// The longest name of a port, in bytes.
pub const MAX_PORT_NAME_BYTES: usize = 255;

/// Events of the control queue (5.3.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlEvent {
    DeviceReady = 0,
    PortAdd = 1,
    PortRemove = 2,
    PortReady = 3,
    ConsolePort = 4,
    PortOpen = 6,
    PortName = 7,
}

/// Hears when the guest opens or closes a port: VSERPORT_CHANGE.
pub trait PortSink: Send + Sync + 'static {
    /// The guest has opened or closed it. Called on any thread; it calls nothing of the device from inside.
    fn guest_open_changed(&self, is_open: bool);
}

/// A port that a board adds.
pub struct PortOptions {
    /// Its number; `None` for the first that is free. 0 is for consoles only.
    pub number: Option<u32>,
    /// Its name in the guest; at most [`MAX_PORT_NAME_BYTES`], may be empty.
    pub name: String,
    /// Whether the guest has a console on it (`virtconsole`), or a plain port.
    pub is_console: bool,
    /// What stands behind it; without it nobody is ever connected.
    pub chardev: Option<ChardevClaim>,
    /// Who hears of it.
    pub sink: Option<Arc<dyn PortSink>>,
}

/// What a multiport driver and the device know of each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Control {
    is_multiport: bool,
    /// The driver has said DEVICE_READY.
    is_ready: bool,
    /// Ports that are gone, of which the driver does not know yet.
    removed: BTreeSet<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleSaved {
    control: Control,
    ports: BTreeMap<u32, PortSaved>,
}

/// A virtio-console device.
pub struct VirtioConsole {
    max_ports: u32,
    runtime: tokio::runtime::Handle,
    queues: OnceLock<Vec<Arc<DeviceQueue>>>,
    /// Taken before a queue's lock, and that (of the control queue) before a port's state.
    control: Mutex<Control>,
    ports: Mutex<BTreeMap<u32, Arc<Port>>>,
}

impl VirtioConsole {
    /// A device without ports; chardevs are served on `runtime`.
    ///
    /// # Errors
    /// [`Error::ConsolePorts`] if `max_ports` is not 1 to 127.
    pub fn new(
        max_ports: u32,
        runtime: tokio::runtime::Handle,
    ) -> Result<Arc<VirtioConsole>, Error> {
        let most = u32::from(MAX_QUEUES / 2 - 1);
        if max_ports == 0 || max_ports > most {
            return Err(Error::ConsolePorts(max_ports));
        }
        Ok(Arc::new(VirtioConsole {
            max_ports,
            runtime,
            queues: OnceLock::new(),
            control: Mutex::default(),
            ports: Mutex::default(),
        }))
    }

    /// Adds a port, also while the driver runs; gives its number. The device has been put behind its transport before.
    ///
    /// # Errors
    /// [`Error::Port`] with the words that clients read.
    pub fn add_port(self: &Arc<Self>, options: PortOptions) -> Result<u32, Error> {
        let mut control = self.control.lock();
        let mut ports = self.ports.lock();
        let number = self.choose_number(&ports, &options)?;
        let name = options.name;
        if name.len() > MAX_PORT_NAME_BYTES {
            return Err(Error::Port(format!(
                "virtio-serial port name of {} bytes: at most {MAX_PORT_NAME_BYTES} are possible",
                name.len()
            )));
        }
        if !name.is_empty() && ports.values().any(|port| port.name() == name) {
            return Err(Error::Port(format!(
                "virtio-serial-bus: A port already exists by name {name}"
            )));
        }
        let (Some(input), Some(output)) = (
            self.queue(port_queue(number)),
            self.queue(port_queue(number) + 1),
        ) else {
            return Err(Error::Port(
                "virtio-serial: ports are added when the device is behind its transport".to_owned(),
            ));
        };
        let port = Port::new(
            number,
            name,
            options.is_console,
            options.sink,
            input.clone(),
            output.clone(),
        );
        if let Some(claim) = options.chardev {
            let console = Arc::downgrade(self);
            let tell_driver = move || {
                if let Some(console) = console.upgrade() {
                    console.send_control();
                }
            };
            let task = serve::serve(port.clone(), claim, tell_driver);
            let task = self.runtime.spawn(task);
            port.set_task(task.abort_handle());
        }
        ports.insert(number, port.clone());
        control.removed.remove(&number);
        let is_ready = control.is_ready;
        drop((ports, control));
        if is_ready {
            port.announce();
            self.send_control();
        }
        Ok(number)
    }

    fn choose_number(
        &self,
        ports: &BTreeMap<u32, Arc<Port>>,
        options: &PortOptions,
    ) -> Result<u32, Error> {
        let first = u32::from(!options.is_console);
        let number = match options.number {
            Some(0) if !options.is_console => {
                return Err(Error::Port(
                    "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility."
                        .to_owned(),
                ));
            }
            Some(number) => number,
            None => (first..self.max_ports)
                .find(|number| !ports.contains_key(number))
                .ok_or_else(|| {
                    Error::Port(
                        "virtio-serial-bus: Maximum port limit for this device reached".to_owned(),
                    )
                })?,
        };
        if ports.contains_key(&number) {
            return Err(Error::Port(format!(
                "virtio-serial-bus: A port already exists at id {number}"
            )));
        }
        if number >= self.max_ports {
            return Err(Error::Port(format!(
                "virtio-serial-bus: Out-of-range port id specified, max. allowed: {}",
                self.max_ports - 1
            )));
        }
        Ok(number)
    }

    /// Takes a port away; false if there is none of this number.
    pub fn remove_port(&self, number: u32) -> bool {
        let Some(port) = self.ports.lock().remove(&number) else {
            return false;
        };
        port.close();
        let mut control = self.control.lock();
        if control.is_ready {
            control.removed.insert(number);
        }
        drop(control);
        self.send_control();
        true
    }

    /// Whether the guest has opened a port.
    pub fn is_guest_open(&self, number: u32) -> bool {
        self.port(number).is_some_and(|port| port.is_guest_open())
    }

    fn port(&self, number: u32) -> Option<Arc<Port>> {
        self.ports.lock().get(&number).cloned()
    }

    fn all_ports(&self) -> Vec<Arc<Port>> {
        self.ports.lock().values().cloned().collect()
    }

    fn queue(&self, index: u16) -> Option<&Arc<DeviceQueue>> {
        self.queues.get()?.get(usize::from(index))
    }

    /// Tells the driver what it does not know yet, as far as it has room.
    fn send_control(&self) {
        let mut control = self.control.lock();
        if !control.is_ready {
            return;
        }
        let ports = self.all_ports();
        let Some(mut queue) = self.queue(CONTROL_TO_DRIVER).and_then(|queue| queue.lock()) else {
            return;
        };
        while let Some(number) = control.removed.first().copied() {
            if !send_message(&mut queue, number, ControlEvent::PortRemove, 1, "") {
                break;
            }
            control.removed.remove(&number);
        }
        for port in ports {
            port.send_announcements(|event, value, name| {
                send_message(&mut queue, port.number(), event, value, name)
            });
        }
        queue.signal();
    }

    /// Takes what the driver says, a bounded number of messages at a time.
    fn receive_control(&self) {
        loop {
            let mut messages = Vec::new();
            let has_more = self.take_messages(&mut messages);
            for [a, b, c, d, e0, e1, v0, v1] in messages {
                let number = u32::from_le_bytes([a, b, c, d]);
                let event = u16::from_le_bytes([e0, e1]);
                self.handle_control(number, event, u16::from_le_bytes([v0, v1]));
            }
            if !has_more {
                break;
            }
        }
        self.send_control();
    }

    /// Takes at most as many messages as the queue holds; says whether there may be more.
    fn take_messages(&self, messages: &mut Vec<[u8; 8]>) -> bool {
        let Some(mut queue) = self
            .queue(CONTROL_FROM_DRIVER)
            .and_then(|queue| queue.lock())
        else {
            return false;
        };
        let mut has_more = true;
        for _ in 0..CONTROL_QUEUE_SIZE {
            let Some(chain) = queue.pop() else {
                has_more = queue.listen_to_driver();
                break;
            };
            let mut message = [0; 8];
            if queue.read(chain, 0, &mut message) == message.len() {
                messages.push(message);
            }
            queue.finish(chain, 0);
        }
        queue.signal();
        has_more
    }

    /// Output to a port that is not there goes nowhere: a driver that waits for its end gets it.
    fn discard(&self, index: u16) {
        // Even queues carry input.
        if index.is_multiple_of(2) {
            return;
        }
        let Some(mut queue) = self.queue(index).and_then(|queue| queue.lock()) else {
            return;
        };
        for _ in 0..DATA_QUEUE_SIZE {
            let Some(chain) = queue.pop() else {
                break;
            };
            queue.finish(chain, 0);
        }
        queue.listen_to_driver();
        queue.signal();
    }

    fn handle_control(&self, number: u32, event: u16, value: u16) {
        const DEVICE_READY: u16 = ControlEvent::DeviceReady as u16;
        const PORT_READY: u16 = ControlEvent::PortReady as u16;
        const PORT_OPEN: u16 = ControlEvent::PortOpen as u16;
        let port = self.port(number);
        match (event, port) {
            (DEVICE_READY, _) => {
                let mut control = self.control.lock();
                control.is_ready = control.is_multiport && value != 0;
                let is_ready = control.is_ready;
                drop(control);
                if is_ready {
                    for port in self.all_ports() {
                        port.announce();
                    }
                }
            }
            (PORT_READY, Some(port)) if value != 0 => port.driver_is_ready(),
            (PORT_OPEN, Some(port)) => port.set_guest_open(value != 0),
            _ => {}
        }
    }
}

/// The queue to the driver of a port; the one from the driver follows.
fn port_queue(number: u32) -> u16 {
    match u16::try_from(number) {
        Ok(0) => 0,
        Ok(number) => number.saturating_mul(2).saturating_add(2),
        Err(_) => u16::MAX - 1,
    }
}

/// Sends a control message, cut to the driver's buffer; false if there is none.
fn send_message(
    queue: &mut QueueGuard<'_>,
    number: u32,
    event: ControlEvent,
    value: u16,
    name: &str,
) -> bool {
    let mut chain = queue.pop();
    if chain.is_none() && queue.listen_to_driver() {
        // Some buffers have come just now, of which the driver has not told.
        chain = queue.pop();
    }
    let Some(chain) = chain else { return false };
    let mut message = number.to_le_bytes().to_vec();
    message.extend((event as u16).to_le_bytes());
    message.extend(value.to_le_bytes());
    if !name.is_empty() {
        message.extend(name.as_bytes());
        message.push(0);
    }
    let written = queue.write(chain, 0, &message);
    queue.finish(chain, u32::try_from(written).unwrap_or(0));
    true
}

impl Drop for VirtioConsole {
    fn drop(&mut self) {
        for port in self.all_ports() {
            port.close();
        }
    }
}

impl VirtioDevice for VirtioConsole {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        MULTIPORT | EMERGENCY_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let queues = 2 * (self.max_ports + 1);
        (0..queues)
            .map(|index| match index {
                2 | 3 => CONTROL_QUEUE_SIZE,
                _ => DATA_QUEUE_SIZE,
            })
            .collect()
    }

    /// Columns, rows (not offered), the number of ports, and where the driver writes in an emergency.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 4];
        config.extend(self.max_ports.to_le_bytes());
        config.extend([0; 4]);
        config
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) {
        if offset == EMERGENCY_OFFSET
            && let Some(byte) = bytes.first()
            && let Some(port) = self.port(0)
        {
            port.write_now(*byte);
        }
    }

    fn connect(&self, _link: Arc<Link>, queues: Vec<Arc<DeviceQueue>>) {
        // A device is connected once.
        let _ = self.queues.set(queues);
    }

    fn activate(&self, features: u64) {
        let is_multiport = features & MULTIPORT != 0;
        self.control.lock().is_multiport = is_multiport;
        if !is_multiport && let Some(port) = self.port(0) {
            // The only port there is for such a driver is always open.
            port.set_guest_open(true);
        }
        if is_multiport {
            self.receive_control();
        }
        for port in self.all_ports() {
            port.work();
        }
    }

    fn queue_notified(&self, index: u16) {
        match index {
            CONTROL_TO_DRIVER => self.send_control(),
            CONTROL_FROM_DRIVER => self.receive_control(),
            index => {
                let number = match index / 2 {
                    0 => 0,
                    pair => u32::from(pair) - 1,
                };
                match self.port(number) {
                    Some(port) => port.work(),
                    None => self.discard(index),
                }
            }
        }
    }

    fn reset(&self) {
        *self.control.lock() = Control::default();
        for port in self.all_ports() {
            port.reset();
        }
    }

    fn save(&self) -> Result<SavedState, DeviceError> {
        let control = self.control.lock().clone();
        let ports = self.all_ports();
        let saved = ConsoleSaved {
            control,
            ports: ports
                .iter()
                .map(|port| (port.number(), port.save()))
                .collect(),
        };
        SavedState::of(DeviceType::Console.name(), VERSION, &saved)
    }

    fn restore(&self, state: &SavedState) -> Result<(), DeviceError> {
        let saved: ConsoleSaved = state.read(DeviceType::Console.name(), VERSION)?;
        let bad = |reason| DeviceError::bad_state(DeviceType::Console.name(), reason);
        let ports = self.all_ports();
        let is_same = ports.len() == saved.ports.len()
            && ports
                .iter()
                .all(|port| saved.ports.contains_key(&port.number()));
        if !is_same {
            return Err(bad("it has other ports"));
        }
        if saved.ports.values().any(|port| !port.is_possible()) {
            return Err(bad("a port holds more bytes than it can"));
        }
        if saved
            .control
            .removed
            .iter()
            .any(|number| *number >= self.max_ports)
        {
            return Err(bad("a port was removed that cannot have been there"));
        }
        *self.control.lock() = saved.control;
        for port in ports {
            if let Some(saved) = saved.ports.get(&port.number()) {
                port.restore(saved.clone());
            }
        }
        Ok(())
    }
}
