//! Commands on the serial line.

use crate::disk::{Operation, Sector};
use crate::serial::{self, say};
use crate::watchdog::Watchdog;
use crate::{Guest, cpu, ide, interrupts, processors};

const MAX_LINE: usize = 80;
const PVPANIC_PORT: u16 = 0x505;
const PANICKED: u8 = 1;

pub struct Shell {
    line: Line,
}

/// What was typed.
#[derive(Clone, Copy)]
pub struct Line {
    bytes: [u8; MAX_LINE],
    length: usize,
}

impl Line {
    const EMPTY: Self = Self {
        bytes: [0; MAX_LINE],
        length: 0,
    };

    fn text(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or(&[]);
        core::str::from_utf8(bytes).unwrap_or("?").trim()
    }
}

impl Shell {
    pub fn new() -> Self {
        Self { line: Line::EMPTY }
    }

    /// Takes a byte; gives the line that it ends.
    pub fn typed(&mut self, byte: u8) -> Option<Line> {
        let line = &mut self.line;
        match byte {
            b'\r' | b'\n' => {
                say!("");
                let whole = *line;
                *line = Line::EMPTY;
                return (whole.length > 0).then_some(whole);
            }
            8 | 0x7f if line.length > 0 => {
                line.length -= 1;
                serial::print(format_args!("\x08 \x08"));
            }
            b' '..=b'~' => {
                if let Some(place) = line.bytes.get_mut(line.length) {
                    *place = byte;
                    line.length += 1;
                    serial::write(byte);
                }
            }
            _ => {}
        }
        None
    }
}

/// Does what a line says.
pub fn obey(guest: &mut Guest, line: &Line) {
    match line.text() {
        "" => {}
        "help" => say!(
            "help reboot poweroff panic sleep triple halt spin cpus disk mem watchdog starve read write"
        ),
        "reboot" => guest.acpi.reset(),
        "poweroff" => {
            guest.acpi.power_off();
            say!("poweroff: not possible here");
        }
        "panic" => {
            say!("panic");
            cpu::out8(PVPANIC_PORT, PANICKED);
        }
        "sleep" => {
            say!("sleep");
            guest.acpi.suspend(guest.info.address());
            say!("sleep: not possible here");
        }
        "triple" => cpu::triple_fault(),
        "halt" => {
            say!("halt");
            loop {
                cpu::halt_for_good();
            }
        }
        "spin" => spin(),
        "cpus" => processors::start_others(&guest.acpi),
        "disk" => match &mut guest.disk {
            Some(disk) => disk.describe(),
            None => say!("disk: none"),
        },
        "mem" => {
            for range in guest.info.memory_map() {
                let end = range.start + range.bytes;
                say!("mem: {:#x} to {end:#x} type {}", range.start, range.kind);
            }
        }
        "watchdog" => {
            guest.watchdog = Watchdog::start();
            match guest.watchdog {
                Some(_) => say!("watchdog: fed from now on"),
                None => say!("watchdog: none"),
            }
        }
        "starve" => {
            if let Some(watchdog) = &mut guest.watchdog {
                say!("watchdog: fed no more");
                watchdog.starve();
            }
        }
        line => {
            let mut words = line.split_whitespace();
            let sector = match (words.next(), words.next(), words.next()) {
                (Some("read"), Some(disk), Some(number)) => Some((Operation::Read, disk, number)),
                (Some("write"), Some(disk), Some(number)) => Some((Operation::Write, disk, number)),
                _ => None,
            };
            match sector.map(|(operation, disk, number)| (operation, disk, number.parse())) {
                Some((operation, disk, Ok(number))) => do_sector(guest, operation, disk, number),
                _ => say!("{line}: not known; try help"),
            }
        }
    }
}

/// `read` and `write` of a sector; what is written is the sector's number in each of its bytes.
fn do_sector(guest: &mut Guest, operation: Operation, disk: &str, number: u64) {
    let mut sector = Sector([0; 512]);
    let name = match operation {
        Operation::Read => "read",
        Operation::Write => {
            sector.0 = [number as u8; 512];
            "write"
        }
    };
    let done = match (disk, &mut guest.disk) {
        ("virtio", Some(disk)) => Some(disk.do_sector(operation, number, &mut sector)),
        ("ide", _) => ide::transfer(operation, number, &mut sector),
        _ => None,
    };
    match done {
        None => say!("{name} {disk} {number}: no such disk"),
        Some(Err(code)) => say!("{name} {disk} {number}: failed, {code}"),
        Some(Ok(())) => say!("{name} {disk} {number}: done, {:02x?}", &sector.0[..4]),
    }
}

/// Keeps the CPU busy until a key comes.
fn spin() {
    say!("spin: until a key comes");
    while serial::read().is_none() {
        for _ in 0..100_000 {
            core::hint::spin_loop();
        }
        interrupts::breathe();
    }
    say!("spin: done");
}
