//! The same driver on QEMU's devices (steered over the qtest protocol) and on ours: what they answer is compared.
//!
//! Part of the long form of the tests (`RATITE_FULL=1`), which needs the Debian package qemu-system-x86.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_doubles::Storage;
use block_graph::{BlockErrorSink, BlockIoError, NodeOptions};
use chardev::ChardevRegistry;
use chardev::doubles::{Duplex, Plug};
use dev_virtio::{
    BalloonOptions, BalloonSink, BlkOptions, HostEntropy, PciOptions, PortOptions, VirtioBalloon,
    VirtioBlk, VirtioConsole, VirtioDevice, VirtioPci, VirtioRng,
};
use device::doubles::RecordingPins;
use device::pci::{PciAddress, PciBus};
use device::{Clock, IoMap, IrqLine, WallClock, Width};
use guest_memory::{GuestMemory, GuestPhysAddr};
use host_io::{Engine, Executor};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

const DISK_BYTES: usize = 1 << 20;
const SLOT: u8 = 4;
const BASE: u64 = 0xe000_0000;
const BUFFERS: u64 = 0x20_0000;
const RAM_BYTES: u64 = 16 << 20;

/// A machine with one virtio function in slot 4.
trait Machine {
    fn config_read(&mut self, offset: u8) -> u32;
    fn config_write(&mut self, offset: u8, value: u32);
    fn read(&mut self, address: u64, bytes: u64) -> u64;
    fn write(&mut self, address: u64, bytes: u64, value: u64);
    fn get(&mut self, address: u64, bytes: usize) -> Vec<u8>;
    fn put(&mut self, address: u64, bytes: &[u8]);
}

struct Ours {
    bus: Arc<PciBus>,
    memory: Arc<GuestMemory>,
    _executor: Executor,
}

impl Machine for Ours {
    fn config_read(&mut self, offset: u8) -> u32 {
        self.bus.config_read(SLOT << 3, offset, Width::Dword) as u32
    }

    fn config_write(&mut self, offset: u8, value: u32) {
        self.bus
            .config_write(SLOT << 3, offset, Width::Dword, value.into());
    }

    fn read(&mut self, address: u64, bytes: u64) -> u64 {
        self.bus
            .memory()
            .read(address, Width::from_bytes(bytes).unwrap())
    }

    fn write(&mut self, address: u64, bytes: u64, value: u64) {
        self.bus
            .memory()
            .write(address, Width::from_bytes(bytes).unwrap(), value);
    }

    fn get(&mut self, address: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        self.memory.read(GuestPhysAddr(address), &mut into).unwrap();
        into
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.memory.write(GuestPhysAddr(address), bytes).unwrap();
    }
}

struct Qemu {
    process: Child,
    socket: BufReader<UnixStream>,
    _folder: tempfile::TempDir,
}

impl Qemu {
    fn start(content: &[u8], device: &[&str]) -> Option<Qemu> {
        if std::env::var_os("RATITE_FULL").is_none_or(|value| value == "0") {
            eprintln!("compared with QEMU in the long form only: RATITE_FULL=1");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let disk: PathBuf = folder.path().join("disk");
        fs::write(&disk, content).unwrap();
        let path = folder.path().join("qtest");
        let listener = UnixListener::bind(&path).unwrap();
        let process = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-M",
                "pc",
                "-m",
                "16",
                "-S",
            ])
            .args(["-qtest-log", "/dev/null", "-qtest"])
            .arg(format!("unix:{}", path.display()))
            .arg("-blockdev")
            .arg(format!("file,node-name=disk,filename={}", disk.display()))
            .args(device)
            .stdin(Stdio::null())
            .spawn();
        let process = process.unwrap_or_else(|error| {
            panic!("qemu-system-x86_64: {error}; install the Debian package qemu-system-x86")
        });
        let (socket, _) = listener.accept().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Some(Qemu {
            process,
            socket: BufReader::new(socket),
            _folder: folder,
        })
    }

    fn call(&mut self, command: &str) -> String {
        self.socket.get_mut().write_all(command.as_bytes()).unwrap();
        self.socket.get_mut().write_all(b"\n").unwrap();
        loop {
            let mut line = String::new();
            assert!(
                self.socket.read_line(&mut line).unwrap() > 0,
                "QEMU is gone"
            );
            if let Some(answer) = line.strip_prefix("OK") {
                return answer.trim().to_owned();
            }
            assert!(line.starts_with("IRQ"), "{command}: {line}");
        }
    }

    fn number(&mut self, command: &str) -> u64 {
        let answer = self.call(command);
        u64::from_str_radix(answer.strip_prefix("0x").unwrap(), 16).unwrap()
    }

    fn select(&mut self, offset: u8) {
        let address = 0x8000_0000 | u32::from(SLOT) << 11 | u32::from(offset);
        self.call(&format!("outl 0xcf8 {address:#x}"));
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn letter(bytes: u64) -> char {
    match bytes {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => 'q',
    }
}

impl Machine for Qemu {
    fn config_read(&mut self, offset: u8) -> u32 {
        self.select(offset);
        self.number("inl 0xcfc") as u32
    }

    fn config_write(&mut self, offset: u8, value: u32) {
        self.select(offset);
        self.call(&format!("outl 0xcfc {value:#x}"));
    }

    fn read(&mut self, address: u64, bytes: u64) -> u64 {
        self.number(&format!("read{} {address:#x}", letter(bytes)))
    }

    fn write(&mut self, address: u64, bytes: u64, value: u64) {
        self.call(&format!("write{} {address:#x} {value:#x}", letter(bytes)));
    }

    fn get(&mut self, address: u64, bytes: usize) -> Vec<u8> {
        if bytes == 0 {
            return Vec::new();
        }
        let answer = self.call(&format!("read {address:#x} {bytes:#x}"));
        let digits = answer.strip_prefix("0x").unwrap();
        (0..bytes)
            .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            self.call(&format!("write {address:#x} {:#x} 0x{digits}", bytes.len()));
        }
    }
}

struct NoBalloon;

impl BalloonSink for NoBalloon {
    fn memory_changed(&self, _actual_bytes: u64) {}
}

struct Nobody;

impl BlockErrorSink for Nobody {
    fn block_io_error(&self, error: &BlockIoError) {
        panic!("{error:?}");
    }
}

fn ours(make: impl FnOnce(&Executor) -> Arc<dyn VirtioDevice>) -> Ours {
    let pins = Arc::new(RecordingPins::default());
    let bus = PciBus::new(
        Arc::new(IoMap::new(IoMap::LAST_PORT)),
        Arc::new(IoMap::new((1 << 40) - 1)),
        pins.clone(),
        std::array::from_fn(|pin| IrqLine::new(pins.clone(), pin as u32)),
    );
    let memory = Arc::new(GuestMemory::new(RAM_BYTES).unwrap());
    memory.add_ram(GuestPhysAddr(0), RAM_BYTES).unwrap();
    let executor = Executor::start("disk", Engine::Threads).unwrap();
    let device = make(&executor);
    let address = PciAddress::new(SLOT, 0).unwrap();
    let options = PciOptions::default();
    let function = VirtioPci::new(&bus, address, device, memory.clone(), options).unwrap();
    assert!(bus.plug(address, function).is_ok());
    Ours {
        bus,
        memory,
        _executor: executor,
    }
}

fn our_disk(content: Vec<u8>, serial: &str, is_writable: bool) -> Ours {
    let driver = Box::new(Storage::new(content));
    let backend = block_doubles::backend(driver, NodeOptions::default(), true);
    let options = BlkOptions {
        serial: serial.to_owned(),
        is_writable,
        ..BlkOptions::default()
    };
    ours(|executor| {
        VirtioBlk::new(backend, options, vec![executor.handle()], Arc::new(Nobody)).unwrap()
    })
}

fn table(queue: u16) -> u64 {
    0x10_0000 + u64::from(queue) * 0x4000
}

fn available(queue: u16) -> u64 {
    table(queue) + 0x1000
}

fn used(queue: u16) -> u64 {
    table(queue) + 0x2000
}

/// Brings the function up with so many queues of a size; gives what a driver sees on the way.
fn start(machine: &mut dyn Machine, wanted_features: u64, queues: u16, size: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    for offset in [0x00, 0x08, 0x2c] {
        seen.push(u64::from(machine.config_read(offset)));
    }
    seen.push(u64::from(machine.config_read(0x3c) >> 8 & 0xff));
    // Capabilities by kind: the order in the list is anybody's.
    for at in [0x40_u8, 0x50, 0x60, 0x70] {
        for word in [4, 8, 12] {
            seen.push(u64::from(machine.config_read(at + word)));
        }
        seen.push(u64::from(machine.config_read(at) & 0xffff_00ff));
    }
    machine.config_write(0x20, BASE as u32);
    machine.config_write(0x24, 0);
    machine.config_write(4, 7);
    let mut step = |offset: u64, bytes: u64, value: u64| {
        machine.write(BASE + offset, bytes, value);
        seen.push(machine.read(BASE + 0x14, 1));
        seen.push(machine.read(BASE + offset, bytes));
    };
    for status in [0, 1, 3] {
        step(0x14, 1, status);
    }
    for half in 0..2 {
        step(0x08, 4, half);
        step(0x0c, 4, wanted_features >> (32 * half) & 0xffff_ffff);
    }
    step(0x14, 1, 11);
    for queue in 0..queues {
        step(0x16, 2, queue.into());
        step(0x18, 2, size);
        step(0x1a, 2, 77);
        let areas = [
            (0x20, table(queue)),
            (0x28, available(queue)),
            (0x30, used(queue)),
        ];
        for (offset, address) in areas {
            step(offset, 4, address);
            step(offset + 4, 4, 0);
        }
        step(0x1c, 2, 1);
    }
    step(0x14, 1, 15);
    seen
}

/// Makes chain number `count` (from 0) available, with descriptors from `head` on.
fn offer(
    machine: &mut dyn Machine,
    queue: u16,
    count: u16,
    head: u16,
    buffers: &[(u64, u32, bool)],
) {
    for (index, (address, bytes, is_writable)) in (head..).zip(buffers) {
        let is_last = usize::from(index - head) + 1 == buffers.len();
        let flags = u16::from(!is_last) | u16::from(*is_writable) << 1;
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(bytes.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend((index + 1).to_le_bytes());
        machine.put(table(queue) + 16 * u64::from(index), &descriptor);
    }
    let slot = u64::from(count % 16);
    machine.put(available(queue) + 4 + 2 * slot, &head.to_le_bytes());
    machine.put(available(queue) + 2, &(count + 1).to_le_bytes());
    machine.write(BASE + 0x3000 + 4 * u64::from(queue), 2, queue.into());
}

/// Waits until chain number `count` has been used: what the used ring says.
fn wait(machine: &mut dyn Machine, queue: u16, count: u16) -> Vec<u8> {
    let began = Instant::now();
    loop {
        let index = machine.get(used(queue) + 2, 2);
        let index = u16::from_le_bytes([index[0], index[1]]);
        if index.wrapping_sub(count + 1) < 0x8000 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "no answer");
    }
    machine.get(used(queue) + 4 + 8 * u64::from(count % 16), 8)
}

/// Sends one chain on queue 0 and waits for its answer.
fn send(machine: &mut dyn Machine, count: u16, buffers: &[(u64, u32, bool)]) -> Vec<u8> {
    offer(machine, 0, count, 0, buffers);
    wait(machine, 0, count)
}

/// Random numbers with a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}

/// Sends random requests; gives every answer, status byte and byte read.
fn random_requests(machine: &mut dyn Machine, seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    let mut seen = Vec::new();
    let sectors = (DISK_BYTES / 512) as u64;
    for count in 0..150 {
        let kind = [0, 1, 0, 1, 4, 8, 13, 77][random.below(8) as usize];
        let sector = match random.below(8) {
            0 => sectors - random.below(4),
            1 => u64::MAX - random.below(3),
            _ => random.below(sectors - 8),
        };
        let bytes = match random.below(8) {
            0 => random.below(1500),
            _ => 512 * (1 + random.below(4)),
        };
        let is_range = kind == 13;
        let mut header = u64::to_le_bytes(kind).to_vec();
        header.extend(sector.to_le_bytes());
        machine.put(BUFFERS, &header);
        let mut data = vec![random.below(256) as u8; 2048];
        if is_range {
            let flags = [0, 1, 2][random.below(3) as usize];
            data = if random.below(5) == 0 { 0_u64 } else { sector }
                .to_le_bytes()
                .to_vec();
            data.extend((1 + random.below(8) as u32).to_le_bytes());
            data.extend(u32::to_le_bytes(flags));
        }
        machine.put(BUFFERS + 0x1000, &data);
        machine.put(BUFFERS + 0x100, &[0xee]);
        let bytes = if is_range { 16 } else { bytes as u32 };
        let first = random.below(u64::from(bytes) + 1) as u32;
        let is_read = kind == 0 || kind == 8;
        let mut chain = vec![(BUFFERS, 16, false)];
        if kind != 4 {
            for (from, part) in [(0, first), (first, bytes - first)] {
                if part > 0 {
                    chain.push((BUFFERS + 0x1000 + u64::from(from), part, is_read));
                }
            }
        }
        chain.push((BUFFERS + 0x100, 1, true));
        let used = send(machine, count, &chain);
        let status = machine.get(BUFFERS + 0x100, 1);
        let what = format!(
            "{count}: kind {kind} sector {sector} bytes {bytes} data {:?}",
            &data[..16]
        );
        seen.push(what.into_bytes());
        seen.push(used);
        // What a failed read leaves in its buffer is nobody's business.
        if status == [0] && is_read {
            let mut data = machine.get(BUFFERS + 0x1000, bytes as usize);
            if kind == 8 {
                // QEMU does not fill the identity up with zeros, as the specification has it.
                data.truncate(8.min(bytes as usize));
            }
            seen.push(data);
        }
        seen.push(status);
    }
    seen
}

fn content() -> Vec<u8> {
    (0..DISK_BYTES)
        .map(|at| (at / 512 * 7 + at) as u8)
        .collect()
}

fn assert_same(ours: &[Vec<u8>], theirs: &[Vec<u8>]) {
    let mut what = String::new();
    for (ours, theirs) in ours.iter().zip(theirs) {
        if let Ok(text) = String::from_utf8(ours.clone())
            && text.contains("kind")
        {
            what = text;
        }
        let is_same = ours == theirs;
        let (ours, theirs) = (&ours[..ours.len().min(16)], &theirs[..theirs.len().min(16)]);
        assert!(is_same, "{what}: {ours:?} {theirs:?}");
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn a_disk() {
    let options = "virtio-blk-pci,drive=disk,disable-legacy=on,addr=4,serial=a serial";
    for (seed, is_writable) in [(1, true), (2, true), (3, false), (4, true), (5, false)] {
        let read_only = if is_writable { "off" } else { "on" };
        let device = [
            "-blockdev",
            &format!("raw,file=disk,node-name=top,read-only={read_only}"),
            "-device",
            &options.replace("drive=disk", "drive=top"),
        ];
        let Some(mut qemu) = Qemu::start(&content(), &device) else {
            return;
        };
        let mut ours = our_disk(content(), "a serial", is_writable);
        // VERSION_1, flush, write zeroes.
        let features = 1 << 32 | 1 << 9 | 1 << 14;
        assert_eq!(
            start(&mut ours, features, 1, 16),
            start(&mut qemu, features, 1, 16)
        );
        let config = |machine: &mut dyn Machine| -> Vec<u64> {
            (0..57)
                .map(|at| machine.read(BASE + 0x2000 + at, 1))
                .collect()
        };
        assert_eq!(config(&mut ours), config(&mut qemu));
        let (seen, wanted) = (
            random_requests(&mut ours, seed),
            random_requests(&mut qemu, seed),
        );
        assert_same(&seen, &wanted);
    }
}

#[test]
fn random_numbers() {
    // QEMU gives none while the machine stands, as it must here: only the registers are compared.
    let device = ["-device", "virtio-rng-pci,disable-legacy=on,addr=4"];
    let Some(mut qemu) = Qemu::start(&content(), &device) else {
        return;
    };
    let mut ours = ours(|_| VirtioRng::new(Box::new(HostEntropy), None, &Clock::stepped()));
    for features in [1 << 32 | 1 << 29, 1 << 32] {
        assert_eq!(
            start(&mut ours, features, 1, 8),
            start(&mut qemu, features, 1, 8)
        );
    }
}

/// What a driver hears when it introduces itself, opens a port, and sends.
fn introduce(machine: &mut dyn Machine) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    for count in 0..12 {
        let address = BUFFERS + 0x100 * u64::from(count);
        offer(machine, 2, count, count, &[(address, 64, true)]);
    }
    let mut heard = 0;
    // Port, event, value; and how many answers follow.
    let sayings = [
        (0_u32, 0_u16, 1_u16, 2),
        (0, 3, 1, 1),
        (1, 3, 1, 2),
        (7, 3, 1, 0),
        (1, 6, 1, 0),
        (1, 99, 1, 0),
        (1, 3, 1, 2),
    ];
    for (said, (port, event, value, answers)) in (0..).zip(sayings) {
        let mut message = port.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        machine.put(BUFFERS + 0x8000, &message);
        offer(machine, 3, said, 0, &[(BUFFERS + 0x8000, 8, false)]);
        seen.push(wait(machine, 3, said));
        let mut messages = Vec::new();
        for _ in 0..answers {
            let used = wait(machine, 2, heard);
            let address = BUFFERS + 0x100 * u64::from(used[0]);
            messages.push(machine.get(address, usize::from(used[4])));
            heard += 1;
        }
        seen.extend(messages);
    }
    machine.put(BUFFERS + 0x9000, b"hello");
    offer(machine, 5, 0, 0, &[(BUFFERS + 0x9000, 5, false)]);
    seen.push(wait(machine, 5, 0));
    seen.push(machine.get(used(2) + 2, 2));
    seen
}

#[test]
fn ports() {
    let device = [
        "-chardev",
        "ringbuf,id=c",
        "-device",
        "virtio-serial-pci,disable-legacy=on,addr=4,max_ports=4",
        "-device",
        "virtconsole",
        "-device",
        "virtserialport,chardev=c,name=org.qemu.guest_agent.0",
    ];
    let Some(mut qemu) = Qemu::start(&content(), &device) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let console = VirtioConsole::new(4, runtime.handle().clone()).unwrap();
    let mut ours = ours(|_| console.clone());
    let registry = Arc::<ChardevRegistry>::default();
    let (socket, connections) = mpsc::channel(1);
    let plug = Plug::new(connections);
    registry.add("c", Arc::new(plug)).unwrap();
    let port = |name: &str, chardev| PortOptions {
        number: None,
        name: name.to_owned(),
        is_console: name.is_empty(),
        chardev,
        sink: None,
    };
    assert_eq!(console.add_port(port("", None)), Ok(0));
    let claim = registry.claim("c").unwrap();
    assert_eq!(
        console.add_port(port("org.qemu.guest_agent.0", Some(claim))),
        Ok(1)
    );
    let (mut host, theirs) = tokio::io::duplex(64);
    socket.try_send(Box::new(Duplex(theirs))).ok().unwrap();
    // The port's task has seen the connection when it has taken it.
    while socket.capacity() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
    let features = 1 << 32 | 1 << 1;
    assert_eq!(
        start(&mut ours, features, 6, 16),
        start(&mut qemu, features, 6, 16)
    );
    let config = |machine: &mut dyn Machine| machine.read(BASE + 0x2000, 8);
    assert_eq!(config(&mut ours), config(&mut qemu));
    assert_eq!(introduce(&mut ours), introduce(&mut qemu));
    let mut heard = [0; 5];
    runtime.block_on(host.read_exact(&mut heard)).unwrap();
    assert_eq!(&heard, b"hello");
}

#[test]
fn a_balloon() {
    let device = [
        "-device",
        "virtio-balloon-pci,disable-legacy=on,addr=4,page-poison=off",
    ];
    let Some(mut qemu) = Qemu::start(&content(), &device) else {
        return;
    };
    let mut ours = ours(|_| {
        let options = BalloonOptions {
            ram_bytes: RAM_BYTES,
            deflate_on_oom: false,
            sink: Arc::new(NoBalloon),
        };
        VirtioBalloon::new(options, &Clock::stepped(), WallClock::Host)
    });
    let features = 1 << 32 | 1 << 1;
    assert_eq!(
        start(&mut ours, features, 3, 16),
        start(&mut qemu, features, 3, 16)
    );
    let run = |machine: &mut dyn Machine| {
        let page = 0x30_0000_u64;
        machine.put(page - 1, &[7; 4098]);
        machine.put(BUFFERS, &u32::to_le_bytes((page >> 12) as u32));
        let mut seen = vec![send(machine, 0, &[(BUFFERS, 4, false)])];
        seen.push(machine.get(page - 1, 4098));
        machine.write(BASE + 0x2004, 4, 1);
        seen.push(machine.read(BASE + 0x2000, 8).to_le_bytes().to_vec());
        offer(machine, 1, 0, 0, &[(BUFFERS, 4, false)]);
        seen.push(wait(machine, 1, 0));
        seen
    };
    assert_eq!(run(&mut ours), run(&mut qemu));
}
