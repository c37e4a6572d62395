//! The qtest protocol: somebody outside drives registers, memory and time of a machine whose processors do not run.
//!
//! | line | answer |
//! |---|---|
//! | `inb`, `inw`, `inl` ADDR | `OK 0xVALUE` |
//! | `outb`, `outw`, `outl` ADDR VALUE | `OK` |
//! | `readb`, `readw`, `readl`, `readq` ADDR | `OK 0xVALUE` |
//! | `writeb`, `writew`, `writel`, `writeq` ADDR VALUE | `OK` |
//! | `read` ADDR SIZE | `OK 0xBYTES` |
//! | `write` ADDR SIZE 0xBYTES | `OK` |
//! | `memset` ADDR SIZE VALUE | `OK` |
//! | `clock_step` \[NS\] | `OK NOW`; without NS, to the next timer |
//! | `clock_set` NS | `OK NOW` |
//! | `irq_intercept_in` PATH | `OK`; then `IRQ raise N` and `IRQ lower N` for the I/O APIC's inputs, whatever the path |
//! | `endianness` | `OK little` |
//!
//! Source: QEMU's `docs/devel/testing/qtest.rst`. Numbers may be hexadecimal with `0x`. What is wrong is answered with
//! `FAIL` and why; so is what the table does not have.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use chardev::{ByteStream, ChardevClaim};
use device::{InterruptController, Width};
use guest_memory::{Backing, GuestMemory, GuestPhysAddr};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::chipset::Chipset;
use crate::control::Control;
use crate::machine::Machine;

/// The most bytes that one line moves.
const MAX_BYTES: u64 = 16 << 20;
/// The longest line.
const MAX_LINE_BYTES: u64 = 2 * MAX_BYTES + 64;
/// The most changes of interrupt lines that wait to be told.
const MAX_CHANGES: usize = 65_536;

/// Listens to the I/O APIC's inputs.
#[derive(Default)]
pub(crate) struct IrqTap {
    is_on: AtomicBool,
    changes: Mutex<VecDeque<(u32, bool)>>,
}

impl IrqTap {
    fn start(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> VecDeque<(u32, bool)> {
        std::mem::take(&mut *self.changes.lock())
    }
}

impl InterruptController for IrqTap {
    fn set_level(&self, pin: u32, high: bool) {
        if self.is_on.load(Ordering::Relaxed) {
            let mut changes = self.changes.lock();
            if changes.len() < MAX_CHANGES {
                changes.push_back((pin, high));
            }
        }
    }
}

/// Serves the protocol on a chardev, one connection after the other.
pub fn serve(machine: &Machine, claim: ChardevClaim, runtime: &tokio::runtime::Handle) {
    let machine = machine.clone();
    runtime.spawn(async move {
        let mut claim = claim;
        let Some(connections) = claim.connections() else {
            return;
        };
        while let Some(stream) = connections.recv().await {
            if let Err(error) = serve_one(&machine, stream).await {
                tracing::debug!(%error, "a qtest connection ended");
            }
        }
    });
}

async fn serve_one(machine: &Machine, stream: Box<dyn ByteStream>) -> std::io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        let mut bounded = (&mut reader).take(MAX_LINE_BYTES);
        if bounded.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer = machine
            .ask(move |control| execute(control, line.trim()))
            .await;
        let Ok(answer) = answer else {
            return Ok(());
        };
        writer.write_all(answer.as_bytes()).await?;
        writer.flush().await?;
    }
}

/// Does what a line says; gives the answer, with the changes of interrupt lines before it.
pub fn execute(control: &mut Control, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let answer = match words.split_first() {
        None => Err("no command".to_owned()),
        Some((command, arguments)) => run(control, command, arguments),
    };
    let mut text = String::new();
    if let Some(chips) = &control.chips {
        for (pin, high) in chips.interrupts.tap.take() {
            let change = if high { "raise" } else { "lower" };
            text.push_str(&format!("IRQ {change} {pin}\n"));
        }
    }
    match answer {
        Ok(value) if value.is_empty() => text.push_str("OK\n"),
        Ok(value) => text.push_str(&format!("OK {value}\n")),
        Err(reason) => text.push_str(&format!("FAIL {reason}\n")),
    }
    text
}

fn number(text: Option<&&str>) -> Result<u64, String> {
    let text = *text.ok_or("an argument is missing")?;
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is not a number"))
}

fn width(letter: char) -> Option<Width> {
    match letter {
        'b' => Some(Width::Byte),
        'w' => Some(Width::Word),
        'l' => Some(Width::Dword),
        'q' => Some(Width::Qword),
        _ => None,
    }
}

fn run(control: &mut Control, command: &str, arguments: &[&str]) -> Result<String, String> {
    let (Some(chips), Some(memory)) = (&control.chips, &control.memory) else {
        return Err("this machine has no registers".to_owned());
    };
    let clock = &control.clock;
    let first = arguments.first();
    match command {
        "endianness" => return Ok("little".to_owned()),
        "irq_intercept_in" => {
            chips.interrupts.tap.start();
            return Ok(String::new());
        }
        "clock_step" | "clock_set" => {
            let now = clock.now_ns();
            let next = || clock.next_deadline_ns().unwrap_or(now).saturating_sub(now);
            let by = match (command, first) {
                ("clock_step", None) => next(),
                ("clock_step", given) => number(given)?,
                (_, given) => number(given)?.saturating_sub(now),
            };
            clock.step(by);
            return Ok(clock.now_ns().to_string());
        }
        "read" | "write" | "memset" => return bulk(memory, chips, command, arguments),
        _ => {}
    }
    let operation = command
        .char_indices()
        .last()
        .map(|(at, _)| command.split_at(at));
    let (operation, letter) = operation.ok_or("no command")?;
    let unknown = || format!("unknown command '{command}'");
    let width = letter.chars().next().and_then(width).ok_or_else(unknown)?;
    let address = number(first)?;
    match operation {
        "in" => Ok(format!("0x{:04x}", chips.ports.read(address, width))),
        "out" => {
            chips.ports.write(address, width, number(arguments.get(1))?);
            Ok(String::new())
        }
        "read" => Ok(format!("0x{:016x}", load(memory, chips, address, width))),
        "write" => {
            store(memory, chips, address, width, number(arguments.get(1))?);
            Ok(String::new())
        }
        _ => Err(unknown()),
    }
}

fn is_memory(memory: &GuestMemory, address: u64) -> bool {
    matches!(
        memory.lookup(GuestPhysAddr(address)),
        Backing::Memory { .. }
    )
}

fn load(memory: &GuestMemory, chips: &Chipset, address: u64, width: Width) -> u64 {
    if !is_memory(memory, address) {
        return chips.memory.read(address, width);
    }
    let mut bytes = [0; 8];
    let length = usize::try_from(width.bytes()).unwrap_or(8);
    let read = bytes
        .get_mut(..length)
        .map(|bytes| memory.read(GuestPhysAddr(address), bytes));
    match read {
        Some(Ok(())) => u64::from_le_bytes(bytes),
        _ => width.ones(),
    }
}

fn store(memory: &GuestMemory, chips: &Chipset, address: u64, width: Width, value: u64) {
    if !is_memory(memory, address) {
        return chips.memory.write(address, width, value & width.ones());
    }
    let bytes = value.to_le_bytes();
    let length = usize::try_from(width.bytes()).unwrap_or(8);
    // A write that leaves memory goes nowhere, as on the bus.
    let _ = memory.write(
        GuestPhysAddr(address),
        bytes.get(..length).unwrap_or(&bytes),
    );
}

fn bulk(
    memory: &GuestMemory,
    chips: &Chipset,
    command: &str,
    arguments: &[&str],
) -> Result<String, String> {
    let (address, size) = (number(arguments.first())?, number(arguments.get(1))?);
    if size > MAX_BYTES {
        return Err(format!("at most {MAX_BYTES} bytes at once"));
    }
    let places = (0..size).map(|offset| address.wrapping_add(offset));
    if command == "read" {
        let byte = |at| format!("{:02x}", load(memory, chips, at, Width::Byte));
        return Ok(format!("0x{}", places.map(byte).collect::<String>()));
    }
    let digits = match command {
        "write" => arguments.get(2).and_then(|text| text.strip_prefix("0x")),
        _ => None,
    };
    let fill = match digits {
        Some(_) => 0,
        None => number(arguments.get(2))?,
    };
    for (at, index) in places.zip(0..) {
        let pair = digits.map(|digits| digits.get(index * 2..index * 2 + 2));
        let value = match pair {
            None => fill,
            Some(pair) => {
                let pair = pair.ok_or("there are fewer bytes than the size says")?;
                u64::from_str_radix(pair, 16).map_err(|_| format!("'{pair}' is not a byte"))?
            }
        };
        store(memory, chips, at, Width::Byte, value);
    }
    Ok(String::new())
}
