//! A driver that does anything, on a virtio device behind MMIO registers.
//!
//! The input is a program in lines, each a letter and hexadecimal numbers; what is missing is 0, what makes no sense is
//! left out.
//!
//! | line | meaning |
//! |---|---|
//! | `d KIND` | the device, in the first line: 0 random numbers, 1 balloon, 2 console |
//! | `s FEATURES` | reset, agree on features, set up all queues, begin |
//! | `r AT VALUE` | write a register |
//! | `m AT VALUE` | write eight bytes of RAM |
//! | `t QUEUE INDEX AT BYTES FLAGS NEXT` | write a descriptor |
//! | `a QUEUE INDEX HEAD` | write an entry of the available ring |
//! | `i QUEUE INDEX` | write the index of the available ring |
//! | `n QUEUE` | notify |
//! | `k NS` | time passes |
//! | `c` | pause, save, restore, go on |
//!
//! What has to hold: RAM outside of what descriptors and rings name is as the driver left it (a guard page is checked, where
//! descriptors can be told);
//! a restored state is the state that was saved; and after a reset the device works.

use std::io;
use std::sync::Arc;

use dev_virtio::{
    BalloonOptions, BalloonSink, EntropySource, PortOptions, VirtioBalloon, VirtioConsole,
    VirtioDevice, VirtioMmio, VirtioRng,
};
use device::doubles::RecordingPins;
use device::{Clock, Device, IoHandler, IrqLine, WallClock, Width};
use guest_memory::{GuestMemory, GuestPhysAddr};

const RAM_START: u64 = 0x1000;
const RAM_BYTES: u64 = 0x4_0000;
/// The last page of RAM, which no address of a program reaches.
const GUARD: u64 = RAM_START + RAM_BYTES;
const GUARD_BYTES: usize = 0x1000;
const QUEUE_BYTES: u64 = 0x2000;
const QUEUES: u16 = 8;
const SIZE: u16 = 8;
/// The most lines of a program that count.
const MAX_LINES: usize = 400;

struct Zeros;

impl EntropySource for Zeros {
    fn fill(&self, into: &mut [u8]) -> io::Result<usize> {
        into.fill(0xa5);
        Ok(into.len())
    }
}

struct Silent;

impl BalloonSink for Silent {
    fn memory_changed(&self, _actual_bytes: u64) {}
}

struct Bench {
    mmio: Arc<VirtioMmio>,
    memory: Arc<GuestMemory>,
    clock: Clock,
    queues: u16,
    _runtime: tokio::runtime::Runtime,
}

fn bench(kind: u64) -> Bench {
    let clock = Clock::stepped();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without drivers");
    let memory = GuestMemory::new(RAM_BYTES + GUARD_BYTES as u64).expect("a small memory");
    let bytes = RAM_BYTES + GUARD_BYTES as u64;
    memory
        .add_ram(GuestPhysAddr(RAM_START), bytes)
        .expect("the first region");
    memory
        .write(GuestPhysAddr(GUARD), &[0x5a; GUARD_BYTES])
        .expect("RAM");
    let memory = Arc::new(memory);
    let mut console = None;
    let device: Arc<dyn VirtioDevice> = match kind % 3 {
        0 => VirtioRng::new(Box::new(Zeros), None, &clock),
        1 => {
            let options = BalloonOptions {
                ram_bytes: bytes,
                deflate_on_oom: true,
                sink: Arc::new(Silent),
            };
            let balloon = VirtioBalloon::new(options, &clock, WallClock::Host);
            balloon.set_polling_interval_s(1);
            balloon
        }
        _ => {
            let device = VirtioConsole::new(2, runtime.handle().clone()).expect("two ports");
            console = Some(device.clone());
            device
        }
    };
    let queues = u16::try_from(device.queue_sizes().len()).expect("a few queues");
    let line = IrqLine::new(Arc::new(RecordingPins::default()), 0);
    let mmio = VirtioMmio::new(device, memory.clone(), line).expect("queues that can be");
    if let Some(console) = console {
        for name in ["", "port"] {
            let options = PortOptions {
                number: None,
                name: name.to_owned(),
                is_console: name.is_empty(),
                chardev: None,
                sink: None,
            };
            console.add_port(options).expect("a free number");
        }
    }
    Bench {
        mmio,
        memory,
        clock,
        queues,
        _runtime: runtime,
    }
}

fn table(queue: u64) -> u64 {
    RAM_START + queue % u64::from(QUEUES) * QUEUE_BYTES
}

impl Bench {
    fn register(&self, at: u64, value: u64) {
        self.mmio.write(at, Width::Dword, value & 0xffff_ffff);
    }

    fn status(&self) -> u64 {
        self.mmio.read(0x70, Width::Dword)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // Addresses are made so that this is RAM.
        self.memory.write(GuestPhysAddr(at), bytes).expect("RAM");
    }

    fn start(&self, features: u64) {
        for status in [0, 1, 3] {
            self.register(0x70, status);
        }
        self.register(0x14, 0);
        let offered = self.mmio.read(0x10, Width::Dword);
        for (half, bits) in [(0, features & offered), (1, 1)] {
            self.register(0x24, half);
            self.register(0x20, bits);
        }
        self.register(0x70, 11);
        for queue in 0..u64::from(self.queues.min(QUEUES)) {
            self.put(table(queue), &[0; QUEUE_BYTES as usize]);
            self.register(0x30, queue);
            self.register(0x38, SIZE.into());
            for (register, offset) in [(0x80, 0), (0x90, 0x800), (0xa0, 0x1000)] {
                self.register(register, table(queue) + offset);
                self.register(register + 4, 0);
            }
            self.register(0x44, 1);
        }
        self.register(0x70, 15);
        assert_eq!(self.status(), 15, "a good driver is at fault");
    }

    fn descriptor(&self, queue: u64, index: u64, address: u64, rest: &[u64; 3]) {
        let [bytes, flags, next] = *rest;
        // Never the guard: a device that writes there does so of its own accord.
        let reaches_guard = address < GUARD + GUARD_BYTES as u64
            && address.saturating_add(bytes & 0xffff_ffff) > GUARD;
        if reaches_guard || flags & 4 != 0 && address.saturating_add(bytes) > GUARD {
            return;
        }
        let at = table(queue) + 16 * (index % 64);
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &(bytes as u32).to_le_bytes());
        self.put(at + 12, &(flags as u16).to_le_bytes());
        self.put(at + 14, &(next as u16).to_le_bytes());
    }

    fn round_trip(&self) {
        let core = self.mmio.core();
        core.pause();
        let saved = self.mmio.save().expect("a state");
        if self.mmio.restore(&saved).is_ok() {
            assert_eq!(self.mmio.save().expect("a state"), saved);
        }
        core.resume();
    }

    fn line(&self, letter: &str, numbers: [u64; 6]) {
        let [a, b, c, d, e, f] = numbers;
        match letter {
            "s" => self.start(a),
            // Not the addresses of queues, which could be the guard's.
            "r" if !(0x80..0xa8).contains(&a) => self.register(a & 0x1ff, b),
            "m" => {
                // A descriptor must not come about by this, so not in the tables.
                let at = 0x2_0000 + a % (RAM_BYTES - 0x2_0008);
                self.put(RAM_START + at, &b.to_le_bytes());
            }
            "t" => self.descriptor(a, b, c, &[d, e, f]),
            "a" => self.put(table(a) + 0x804 + 2 * (b % 8), &(c as u16).to_le_bytes()),
            "i" => self.put(table(a) + 0x802, &(b as u16).to_le_bytes()),
            "n" => self.register(0x50, a),
            "k" => self.clock.step(a % 10_000_000_000),
            "c" => self.round_trip(),
            _ => {}
        }
    }
}

/// Runs a program. See the module's text.
pub fn virtio_driver(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines().map(|line| {
        let mut words = line.split_whitespace();
        let letter = words.next().unwrap_or_default();
        let mut numbers = [0; 6];
        for (number, word) in numbers.iter_mut().zip(words) {
            *number = u64::from_str_radix(word, 16).unwrap_or(0);
        }
        (letter, numbers)
    });
    let (letter, [kind, ..]) = lines.next().unwrap_or(("", [0; 6]));
    if letter != "d" {
        return;
    }
    let bench = bench(kind);
    // Pages of a balloon, and buffers in an indirect table, can name the guard.
    let mut is_guarded = kind % 3 != 1;
    for (letter, numbers) in lines.take(MAX_LINES) {
        let [.., flags, _] = numbers;
        is_guarded &= letter != "t" || flags & 4 == 0;
        bench.line(letter, numbers);
    }
    let mut guard = [0; GUARD_BYTES];
    let at = GuestPhysAddr(GUARD);
    bench.memory.read(at, &mut guard).expect("RAM");
    let is_same = guard == [0x5a; GUARD_BYTES];
    assert!(is_same || !is_guarded, "written where nobody asked");
    bench.start(2);
    if kind.is_multiple_of(3) {
        let buffer = RAM_START + 0x2_0000;
        bench.put(buffer, &[0; 4]);
        bench.descriptor(0, 0, buffer, &[4, 2, 0]);
        bench.line("i", [0, 1, 0, 0, 0, 0]);
        bench.line("n", [0; 6]);
        let mut filled = [0; 4];
        let at = GuestPhysAddr(buffer);
        bench.memory.read(at, &mut filled).expect("RAM");
        assert_eq!(filled, [0xa5; 4], "no answer after a reset");
    }
}
