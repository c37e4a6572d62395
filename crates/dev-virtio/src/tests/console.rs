use std::sync::Arc;

use chardev::doubles::{Duplex, Plug};
use chardev::{ByteStream, ChardevRegistry};
use device::conformance::{self, Subject};
use device::{Clock, Device, Width};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::test_driver::*;
use crate::{MAX_PORT_OUTPUT_BYTES, MMIO_BYTES, PortOptions, PortSink, VirtioConsole};

const MULTIPORT: u64 = 2;

#[derive(Default)]
struct Opened(Mutex<Vec<bool>>);

impl PortSink for Opened {
    fn guest_open_changed(&self, is_open: bool) {
        self.0.lock().push(is_open);
    }
}

type Socket = mpsc::Sender<Box<dyn ByteStream>>;

struct Rig {
    runtime: Runtime,
    registry: Arc<ChardevRegistry>,
    console: Arc<VirtioConsole>,
    driver: Driver,
}

impl Rig {
    fn new() -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let console = VirtioConsole::new(4, runtime.handle().clone()).unwrap();
        let driver = Driver::new(console.clone());
        Rig {
            runtime,
            registry: Arc::default(),
            console,
            driver,
        }
    }

    fn add(&self, number: Option<u32>, name: &str, is_console: bool) -> (Socket, Arc<Opened>) {
        let (socket, connections) = mpsc::channel(4);
        let id = format!("char-{name}");
        let plug = Plug::new(connections);
        self.registry.add(&id, Arc::new(plug)).unwrap();
        let opened = Arc::<Opened>::default();
        let options = PortOptions {
            number,
            name: name.to_owned(),
            is_console,
            chardev: Some(self.registry.claim(&id).unwrap()),
            sink: Some(opened.clone()),
        };
        self.console.add_port(options).unwrap();
        (socket, opened)
    }

    fn connect(&self, socket: &Socket) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1024);
        socket.try_send(Box::new(Duplex(theirs))).ok().unwrap();
        ours
    }

    /// Gives the device room for control messages.
    fn offer_control(&mut self, count: u64) {
        for index in 0..count {
            self.driver
                .offer(2, &[writable(BUFFERS + 0x100 * index, 64)]);
        }
        self.driver.notify(2);
    }

    /// The next control message: port, event, value, and name.
    fn control(&mut self) -> (u32, u16, u16, Vec<u8>) {
        let (head, bytes) = self.driver.wait_used(2);
        let message = self
            .driver
            .get(BUFFERS + 0x100 * u64::from(head), bytes as usize);
        let word = |at: usize| u16::from_le_bytes([message[at], message[at + 1]]);
        (
            u32::from(word(0)) | u32::from(word(2)) << 16,
            word(4),
            word(6),
            message[8..].to_vec(),
        )
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let at = BUFFERS + 0x8000;
        self.driver.put(at, &port.to_le_bytes());
        self.driver.put(at + 4, &event.to_le_bytes());
        self.driver.put(at + 6, &value.to_le_bytes());
        self.driver.send(3, &[readable(at, 8)]);
        self.driver.wait_used(3);
    }

    fn start(&mut self) {
        self.driver.start(MULTIPORT);
        self.offer_control(16);
        self.say(0, 0, 1);
    }

    /// Takes the messages that introduce a port, and opens it.
    fn open(&mut self, port: u32) {
        self.say(port, 3, 1);
        self.say(port, 6, 1);
    }

    fn host_reads(&self, host: &mut DuplexStream, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        self.runtime.block_on(host.read_exact(&mut into)).unwrap();
        into
    }

    fn host_writes(&self, host: &mut DuplexStream, bytes: &[u8]) {
        self.runtime.block_on(host.write_all(bytes)).unwrap();
    }
}

#[test]
fn a_driver_without_multiport_has_one_console() {
    let mut rig = Rig::new();
    let (socket, opened) = rig.add(None, "console", true);
    rig.driver.start(0);
    assert_eq!(*opened.0.lock(), [true]);
    let mut host = rig.connect(&socket);
    rig.driver.put(BUFFERS, b"hello");
    // Until the connection has been seen, what the guest says is lost.
    rig.host_writes(&mut host, b"ab");
    let head = rig.driver.send(0, &[writable(BUFFERS + 64, 16)]);
    assert_eq!(rig.driver.wait_used(0), (head, 2));
    assert_eq!(rig.driver.get(BUFFERS + 64, 3), b"ab\0");
    rig.driver
        .send(1, &[readable(BUFFERS, 2), readable(BUFFERS + 2, 3)]);
    assert_eq!(rig.host_reads(&mut host, 5), b"hello");
    // The emergency way.
    rig.driver.mmio_config(8, Width::Dword, u64::from(b'!'));
    assert_eq!(rig.host_reads(&mut host, 1), b"!");
    assert_eq!(rig.driver.config(4, Width::Dword), 4);
}

#[test]
fn ports_are_introduced_opened_and_closed() {
    let mut rig = Rig::new();
    let (socket, opened) = rig.add(None, "org.qemu.guest_agent.0", false);
    let _console = rig.add(None, "con", true);
    rig.start();
    assert_eq!(rig.control(), (0, 1, 1, vec![]));
    assert_eq!(rig.control(), (1, 1, 1, vec![]));
    rig.say(0, 3, 1);
    assert_eq!(rig.control(), (0, 4, 1, vec![]));
    assert_eq!(rig.control(), (0, 7, 1, b"con\0".to_vec()));
    rig.say(1, 3, 1);
    assert_eq!(
        rig.control(),
        (1, 7, 1, b"org.qemu.guest_agent.0\0".to_vec())
    );
    let host = rig.connect(&socket);
    assert_eq!(rig.control(), (1, 6, 1, vec![]));
    assert!(!rig.console.is_guest_open(1));
    rig.say(1, 6, 1);
    rig.say(1, 6, 1);
    assert!(rig.console.is_guest_open(1));
    rig.say(1, 6, 0);
    assert_eq!(*opened.0.lock(), [true, false]);
    drop(host);
    assert_eq!(rig.control(), (1, 6, 0, vec![]));
    // A reset closes what is open.
    rig.say(1, 6, 1);
    rig.driver.start(MULTIPORT);
    assert_eq!(*opened.0.lock(), [true, false, true, false]);
}

#[test]
fn bytes_wait_until_the_guest_opens_the_port() {
    let mut rig = Rig::new();
    let (socket, _) = rig.add(None, "port", false);
    let mut host = rig.connect(&socket);
    rig.start();
    let head = rig.driver.send(4, &[writable(BUFFERS + 0x9000, 5)]);
    rig.host_writes(&mut host, b"a long line");
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert_eq!(rig.driver.take_used(4), None);
    rig.open(1);
    assert_eq!(rig.driver.wait_used(4), (head, 5));
    assert_eq!(rig.driver.get(BUFFERS + 0x9000, 5), b"a lon");
    let head = rig.driver.send(4, &[writable(BUFFERS + 0x9000, 100)]);
    assert_eq!(rig.driver.wait_used(4), (head, 6));
    assert_eq!(rig.driver.get(BUFFERS + 0x9000, 6), b"g line");
}

#[test]
fn a_slow_host_holds_the_guest_back() {
    const BYTES: usize = 300 << 10;
    let mut rig = Rig::new();
    let (socket, _) = rig.add(None, "port", false);
    let mut host = rig.connect(&socket);
    rig.start();
    rig.open(1);
    eventually("connected", || {
        let state = rig.driver.mmio.save().unwrap();
        state.data.pointer("/core/device/data/ports/1/is_host_open") == Some(&true.into())
    });
    let at = BUFFERS + 0x2_0000;
    let sent: Vec<u8> = (0..BYTES).map(|at| (at % 253) as u8).collect();
    rig.driver.put(at, &sent);
    let head = rig.driver.send(5, &[readable(at, BYTES as u32)]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(rig.driver.take_used(5), None, "more than there is room for");
    let state = rig.driver.mmio.save().unwrap();
    let waiting = state
        .data
        .pointer("/core/device/data/ports/1/output")
        .unwrap();
    assert!(waiting.as_array().unwrap().len() <= MAX_PORT_OUTPUT_BYTES);
    assert!(rig.host_reads(&mut host, BYTES) == sent);
    assert_eq!(rig.driver.wait_used(5).0, head);
}

#[test]
fn what_nobody_hears_is_dropped() {
    let mut rig = Rig::new();
    let (socket, _) = rig.add(None, "port", false);
    rig.start();
    rig.open(1);
    let head = rig.driver.send(5, &[readable(BUFFERS, 1 << 20)]);
    assert_eq!(rig.driver.wait_used(5).0, head);
    drop(socket);
}

#[test]
fn ports_come_and_go_while_the_driver_runs() {
    let mut rig = Rig::new();
    rig.start();
    let (_socket, opened) = rig.add(Some(3), "late", false);
    assert_eq!(rig.control(), (3, 1, 1, vec![]));
    rig.open(3);
    assert_eq!(rig.control(), (3, 7, 1, b"late\0".to_vec()));
    assert!(rig.console.remove_port(3));
    assert!(!rig.console.remove_port(3));
    assert_eq!(rig.control(), (3, 2, 1, vec![]));
    assert_eq!(*opened.0.lock(), [true, false]);
    // The chardev is free again.
    eventually("free", || rig.registry.claim("char-late").is_ok());
}

#[test]
fn several_ports_at_once() {
    let mut rig = Rig::new();
    let sockets = [1, 2, 3].map(|number| rig.add(Some(number), &format!("port{number}"), false).0);
    let mut hosts = sockets.each_ref().map(|socket| rig.connect(socket));
    rig.start();
    for number in 1..=3 {
        rig.open(number);
    }
    for (index, host) in hosts.iter_mut().enumerate() {
        let queue = 4 + 2 * index as u16;
        let at = BUFFERS + 0x9000;
        rig.host_writes(host, &[index as u8; 7]);
        rig.driver.send(queue, &[writable(at, 7)]);
        assert_eq!(rig.driver.wait_used(queue).1, 7);
        assert_eq!(rig.driver.get(at, 7), [index as u8; 7]);
        rig.driver.send(queue + 1, &[readable(at, 7)]);
        assert_eq!(rig.host_reads(host, 7), [index as u8; 7]);
    }
}

#[test]
fn a_saved_port_goes_on_elsewhere() {
    let mut rig = Rig::new();
    let (socket, _) = rig.add(None, "port", false);
    let mut host = rig.connect(&socket);
    rig.start();
    rig.open(1);
    rig.host_writes(&mut host, b"input");
    eventually("read ahead", || {
        let state = rig.driver.mmio.save().unwrap();
        let input = state.data.pointer("/core/device/data/ports/1/input");
        input
            .and_then(|input| input.as_array())
            .is_some_and(|input| input.len() == 5)
    });
    rig.driver.mmio.core().pause();
    let saved = rig.driver.mmio.save().unwrap();

    let other = Rig::new();
    let (_socket, opened) = other.add(None, "port", false);
    let memory = rig.driver.memory.clone();
    let empty = VirtioConsole::new(4, other.runtime.handle().clone()).unwrap();
    let empty = Driver::over(empty, memory.clone());
    assert!(
        empty.mmio.restore(&saved).is_err(),
        "another number of ports"
    );
    let console = other.console.clone();
    let target = &other.driver.mmio;
    target.core().pause();
    // The other machine has a memory of its own: a copy.
    let mut copy = vec![0; RAM_BYTES as usize];
    memory
        .read(guest_memory::GuestPhysAddr(RAM_START), &mut copy)
        .unwrap();
    other.driver.put(RAM_START, &copy);
    target.restore(&saved).unwrap();
    target.core().resume();
    assert!(console.is_guest_open(1));
    assert_eq!(*opened.0.lock(), [true]);
    let mut driver = other.driver;
    let head = driver.send(4, &[writable(BUFFERS + 0x9000, 100)]);
    assert_eq!(driver.wait_used(4), (head, 5));
    assert_eq!(driver.get(BUFFERS + 0x9000, 5), b"input");
}

#[test]
fn ports_that_cannot_be() {
    let rig = Rig::new();
    let _port = rig.add(Some(2), "taken", false);
    let add = |number, name: &str, is_console| {
        let options = PortOptions {
            number,
            name: name.to_owned(),
            is_console,
            chardev: None,
            sink: None,
        };
        rig.console
            .add_port(options)
            .map_err(|error| error.to_string())
    };
    assert!(
        add(Some(0), "a", false)
            .unwrap_err()
            .contains("reserved for virtconsole")
    );
    assert!(
        add(Some(2), "a", false)
            .unwrap_err()
            .contains("already exists at id 2")
    );
    assert!(
        add(Some(4), "a", false)
            .unwrap_err()
            .contains("max. allowed: 3")
    );
    assert!(add(Some(u32::MAX), "a", false).is_err());
    assert!(
        add(None, "taken", false)
            .unwrap_err()
            .contains("by name taken")
    );
    assert!(add(None, &"x".repeat(256), false).is_err());
    assert_eq!(add(None, "", false), Ok(1));
    assert_eq!(add(None, "", false), Ok(3));
    assert!(
        add(None, "", false)
            .unwrap_err()
            .contains("Maximum port limit")
    );
    assert_eq!(add(None, "", true), Ok(0));
    assert!(VirtioConsole::new(0, rig.runtime.handle().clone()).is_err());
    assert!(VirtioConsole::new(128, rig.runtime.handle().clone()).is_err());
}

#[test]
fn control_messages_that_make_no_sense() {
    let mut rig = Rig::new();
    let _port = rig.add(None, "port", false);
    rig.driver.start(MULTIPORT);
    for (port, event, value) in [
        (9, 3, 1),
        (u32::MAX, 6, 1),
        (1, 99, 1),
        (0, 0, 0),
        (1, 2, 0),
    ] {
        rig.say(port, event, value);
    }
    rig.driver.send(3, &[readable(BUFFERS, 3)]);
    rig.driver.wait_used(3);
    rig.driver.send(3, &[writable(BUFFERS, 8)]);
    rig.driver.wait_used(3);
    // A driver that never gives room makes nothing grow: what it is to hear is a few bits for each port.
    rig.say(0, 0, 1);
    for _ in 0..1000 {
        rig.say(1, 3, 1);
    }
    rig.driver.offer(2, &[writable(BUFFERS, 4)]);
    rig.offer_control(0);
    let (_, bytes) = rig.driver.wait_used(2);
    assert_eq!(bytes, 4, "cut to the buffer");
    assert!(!rig.driver.is_broken());
}

#[test]
fn conforms() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    conformance::check(|| {
        let console = VirtioConsole::new(2, runtime.handle().clone()).unwrap();
        let driver = Driver::new(console.clone());
        for is_console in [true, false] {
            let options = PortOptions {
                number: None,
                name: String::new(),
                is_console,
                chardev: None,
                sink: None,
            };
            console.add_port(options).unwrap();
        }
        Subject {
            device: driver.mmio.clone(),
            ranges: vec![(driver.mmio.clone(), MMIO_BYTES)],
            clock: Clock::stepped(),
            kept_by_reset: &[],
        }
    });
}
