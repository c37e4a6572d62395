//! The virtio console with its ports (virtio 1.2, 5.3): a console is greeted, and what comes in at
//! a named port is sent back.

use crate::serial::say;
use crate::virtio::{Buffer, Device, Queue};

const MULTIPORT: u64 = 1 << 1;
const MAX_PORTS: usize = 4;
const BUFFER_BYTES: usize = 128;
const GREETING: &[u8] = b"Ratite guest on the virtio console\r\n";

const CONTROL_IN: u16 = 2;
const CONTROL_OUT: u16 = 3;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_REMOVE: u16 = 2;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;
const ALL_PORTS: u32 = u32::MAX;
const MESSAGE_BYTES: usize = 8;

type Bytes = [u8; BUFFER_BYTES];

struct Port {
    input: Queue,
    output: Queue,
    /// Whether what comes in is sent back.
    echoes: bool,
}

pub struct Ports {
    control_in: Queue,
    control_out: Queue,
    ports: [Option<Port>; MAX_PORTS],
}

/// Control messages that may wait: a device drops those for which there is no buffer.
const CONTROL_BUFFERS: usize = 32;

/// Where devices put what comes in: one buffer for each port, then those for control messages. They
/// stay where they are, since the device writes whenever it likes.
static mut BUFFERS: [Bytes; MAX_PORTS + CONTROL_BUFFERS] =
    [[0; BUFFER_BYTES]; MAX_PORTS + CONTROL_BUFFERS];

fn buffer(number: usize) -> Buffer {
    Buffer {
        address: (&raw mut BUFFERS) as u64 + (number * BUFFER_BYTES) as u64,
        bytes: BUFFER_BYTES as u32,
        device_writes: true,
    }
}

/// What a device has put there.
fn received(number: usize, length: u32) -> (Bytes, usize) {
    let bytes = crate::cpu::peek(buffer(number).address);
    (bytes, (length as usize).min(BUFFER_BYTES))
}

fn out(bytes: &[u8]) -> Buffer {
    Buffer {
        address: bytes.as_ptr() as u64,
        bytes: bytes.len() as u32,
        device_writes: false,
    }
}

/// The queues of a port: its input's number, its output's being one more.
fn input_of(port: usize) -> u16 {
    match port {
        0 => 0,
        port => 2 + 2 * port as u16,
    }
}

impl Ports {
    pub fn start(device: Device) -> Option<Self> {
        let features = device.begin(MULTIPORT)?;
        if features & MULTIPORT == 0 {
            let mut output = device.queue(1)?;
            device.ready();
            output.run(&[out(GREETING)]);
            say!("console: greeted");
            return None;
        }
        // Queues must be there before the device is ready.
        let count = (device.config(4) as usize).min(MAX_PORTS);
        let (control_in, control_out) = (device.queue(CONTROL_IN)?, device.queue(CONTROL_OUT)?);
        let mut ports = [const { None }; MAX_PORTS];
        for (number, place) in ports.iter_mut().enumerate().take(count) {
            let input = input_of(number);
            *place = Some(Port {
                input: device.queue(input)?,
                output: device.queue(input + 1)?,
                echoes: false,
            });
        }
        device.ready();
        let mut all = Self {
            control_in,
            control_out,
            ports,
        };
        let count = all.control_in.size().min(CONTROL_BUFFERS as u16);
        for number in 0..count {
            all.wait_for_control(number);
        }
        all.tell(ALL_PORTS, DEVICE_READY);
        all.follow();
        Some(all)
    }

    fn wait_for_control(&mut self, number: u16) {
        let buffer = buffer(MAX_PORTS + usize::from(number));
        self.control_in.send_from(number, &[buffer]);
    }

    fn tell(&mut self, port: u32, event: u16) {
        let [a, b, c, d] = port.to_le_bytes();
        let [e, f] = event.to_le_bytes();
        let message = [a, b, c, d, e, f, 1, 0];
        self.control_out.run(&[out(&message)]);
    }

    /// Does what the device asks for, and sends back what came in.
    pub fn follow(&mut self) {
        while let Some((number, length)) = self.control_in.next_finished() {
            let (bytes, length) = received(MAX_PORTS + usize::from(number), length);
            self.wait_for_control(number);
            self.obey(&bytes[..length]);
        }
        for (number, place) in self.ports.iter_mut().enumerate() {
            if let Some(port) = place
                && port.echoes
                && let Some(length) = port.input.finished()
            {
                let (bytes, length) = received(number, length);
                port.input.send(&[buffer(number)]);
                port.output.run(&[out(&bytes[..length])]);
            }
        }
    }

    fn obey(&mut self, message: &[u8]) {
        let Some((head, name)) = message.split_at_checked(MESSAGE_BYTES) else {
            return;
        };
        let number = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let event = u16::from_le_bytes([head[4], head[5]]);
        match event {
            PORT_ADD => self.tell(number, PORT_READY),
            CONSOLE_PORT => {
                self.tell(number, PORT_OPEN);
                if let Some(port) = self.port(number) {
                    port.output.run(&[out(GREETING)]);
                    say!("console: greeted");
                }
            }
            PORT_NAME => self.open_named(number, name),
            PORT_REMOVE => {
                if let Some(port) = self.port(number) {
                    port.echoes = false;
                }
                say!("port {number}: removed");
            }
            _ => {}
        }
    }

    fn port(&mut self, number: u32) -> Option<&mut Port> {
        self.ports.get_mut(number as usize)?.as_mut()
    }

    fn open_named(&mut self, number: u32, name: &[u8]) {
        let length = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        let name = core::str::from_utf8(&name[..length]).unwrap_or("?");
        let Some(port) = self.port(number) else {
            say!("port {number}: '{name}' is one too many");
            return;
        };
        // A port that comes back has its buffer still.
        if !core::mem::replace(&mut port.echoes, true) {
            port.input.send(&[buffer(number as usize)]);
        }
        self.tell(number, PORT_OPEN);
        say!("port {number}: '{name}' opened");
    }
}
