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
//! | `b64read` ADDR SIZE | `OK BYTES`, in base64 |
//! | `b64write` ADDR SIZE BYTES | `OK` |
//! | `memset` ADDR SIZE VALUE | `OK` |
//! | `clock_step` \[NS\] | `OK NOW`; without NS, to the next timer |
//! | `clock_set` NS | `OK NOW` |
//! | `irq_intercept_in` PATH | `OK`; from then on `IRQ raise N` and `IRQ lower N` for the inputs of the controller |
//! | `irq_intercept_out` PATH | the same for its outputs |
//! | `set_irq_in` PATH NAME N LEVEL | `OK`; the controller's input has that level (NAME is `unnamed-gpio-in`) |
//! | `endianness` | `OK little` |
//!
//! PATH is a controller's path in the object tree, or the name of its type: `ioapic`, with 24 inputs and no outputs, or
//! `i8259`, with 16 inputs and one output. One controller is listened to at a time. Changes are told as they come, before
//! the answer of the command that led to them.
//!
//! Source: QEMU's `docs/devel/testing/qtest.rst`. Numbers may be hexadecimal with `0x`, or octal with
//! `0`. What is wrong is answered with
//! `FAIL` and why; so is what the table does not have.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chardev::{ByteStream, ChardevClaim};
use device::{InterruptController, Width};
use guest_memory::{Backing, GuestMemory, GuestPhysAddr};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Notify;

use crate::chipset::Chipset;
use crate::control::Control;
use crate::machine::Machine;
use crate::qom::chip_at;

/// The most bytes that one line moves.
const MAX_BYTES: u64 = 16 << 20;
/// The longest line.
const MAX_LINE_BYTES: u64 = 2 * MAX_BYTES + 64;
/// The most changes of interrupt lines that wait to be told.
const MAX_CHANGES: usize = 65_536;

/// Where a tap sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TapPlace {
    /// The I/O APIC's inputs.
    IoApicInputs,
    /// The inputs of the 8259s.
    PicInputs,
    /// The output of the first 8259.
    PicOutput,
}

/// Who listens to interrupt lines, and what has been heard.
#[derive(Default)]
struct Reports {
    /// Somebody listens at all: on other machines a line costs nothing.
    is_on: AtomicBool,
    listened_to: Mutex<Option<Interception>>,
    heard: Mutex<Heard>,
    has_changes: Notify,
}

/// What has been heard since somebody listens.
#[derive(Default)]
struct Heard {
    changes: VecDeque<(u32, bool)>,
    /// The lines that were high last, a bit each; all are taken for low at first.
    levels: u32,
}

/// What somebody listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interception {
    At(TapPlace),
    /// A controller without lines of that kind.
    Nothing,
}

/// Taps on a board's interrupt lines.
#[derive(Clone, Default)]
pub(crate) struct IrqTaps {
    reports: Arc<Reports>,
}

/// The end of a line at a tap.
struct IrqTap {
    place: TapPlace,
    reports: Arc<Reports>,
}

impl IrqTaps {
    /// An end for a line that is pin `pin` of the tapped chip.
    pub(crate) fn end(&self, place: TapPlace, pin: u32) -> (Arc<dyn InterruptController>, u32) {
        let reports = Arc::clone(&self.reports);
        (Arc::new(IrqTap { place, reports }), pin)
    }

    fn listen_to(&self, what: Interception) -> Result<(), String> {
        let mut listened_to = self.reports.listened_to.lock();
        match *listened_to {
            Some(other) if other != what => Err("IRQ intercept already enabled".to_owned()),
            _ => {
                *listened_to = Some(what);
                self.reports.is_on.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn take(&self) -> VecDeque<(u32, bool)> {
        std::mem::take(&mut self.reports.heard.lock().changes)
    }
}

impl InterruptController for IrqTap {
    fn set_level(&self, pin: u32, high: bool) {
        let is_on = self.reports.is_on.load(Ordering::Relaxed);
        if !is_on || *self.reports.listened_to.lock() != Some(Interception::At(self.place)) {
            return;
        }
        let mut heard = self.reports.heard.lock();
        let bit = 1_u32.checked_shl(pin).unwrap_or(0);
        if (heard.levels & bit != 0) == high {
            return;
        }
        heard.levels ^= bit;
        if heard.changes.len() < MAX_CHANGES {
            heard.changes.push_back((pin, high));
        }
        drop(heard);
        self.reports.has_changes.notify_one();
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
    let taps = machine.ask(|control| {
        control
            .chips
            .as_ref()
            .map(|chips| chips.interrupts.taps.clone())
    });
    let Ok(taps) = taps.await else {
        return Ok(());
    };
    let taps = taps.unwrap_or_default();
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        let room = MAX_LINE_BYTES.saturating_sub(line.len() as u64);
        let mut bounded = (&mut reader).take(room);
        let answer = tokio::select! {
            // What has been read of a line stays in it if something is told meanwhile.
            read = bounded.read_until(b'\n', &mut line) => {
                read?;
                match line.last() {
                    Some(b'\n') => {}
                    None => return Ok(()),
                    Some(_) if line.len() as u64 >= MAX_LINE_BYTES => {
                        let words = format!("FAIL a line has at most {MAX_LINE_BYTES} bytes\n");
                        return writer.write_all(words.as_bytes()).await;
                    }
                    // The last line has no end.
                    Some(_) => {}
                }
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                machine.ask(move |control| execute(control, &text)).await
            }
            () = taps.reports.has_changes.notified() => Ok(tell(&taps)),
        };
        let Ok(answer) = answer else {
            return Ok(());
        };
        writer.write_all(answer.as_bytes()).await?;
        writer.flush().await?;
    }
}

/// The changes of lines that have not been told yet.
fn tell(taps: &IrqTaps) -> String {
    let changes = taps.take().into_iter();
    let lines = changes.map(|(pin, high)| {
        let change = if high { "raise" } else { "lower" };
        format!("IRQ {change} {pin}\n")
    });
    lines.collect()
}

/// Does what a line says; gives the answer, with the changes of interrupt lines before it.
pub fn execute(control: &mut Control, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let answer = match words.split_first() {
        None => Err("no command".to_owned()),
        Some((command, arguments)) => run(control, command, arguments),
    };
    let mut text = match &control.chips {
        Some(chips) => tell(&chips.interrupts.taps),
        None => String::new(),
    };
    match answer {
        Ok(value) if value.is_empty() => text.push_str("OK\n"),
        Ok(value) => text.push_str(&format!("OK {value}\n")),
        Err(reason) => text.push_str(&format!("FAIL {reason}\n")),
    }
    text
}

fn number(text: Option<&&str>) -> Result<u64, String> {
    let text = *text.ok_or("an argument is missing")?;
    let parsed = match (text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(digits), _) => u64::from_str_radix(digits, 16),
        (None, Some(digits)) if !digits.is_empty() => u64::from_str_radix(digits, 8),
        (None, _) => text.parse(),
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
        "irq_intercept_in" | "irq_intercept_out" => {
            let chip = chip_of(control, first)?;
            let what = match (chip, command) {
                (Chip::IoApic, "irq_intercept_in") => Interception::At(TapPlace::IoApicInputs),
                (Chip::Pic, "irq_intercept_in") => Interception::At(TapPlace::PicInputs),
                (Chip::Pic, _) => Interception::At(TapPlace::PicOutput),
                // It sends messages.
                (Chip::IoApic, _) => Interception::Nothing,
            };
            chips.interrupts.taps.listen_to(what)?;
            return Ok(String::new());
        }
        "set_irq_in" => {
            let chip = chip_of(control, first)?;
            set_input(chips, chip, arguments)?;
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
        "read" | "write" | "b64read" | "b64write" | "memset" => {
            return bulk(memory, chips, command, arguments);
        }
        _ => {}
    }
    let operation = command
        .char_indices()
        .last()
        .map(|(at, _)| command.split_at(at));
    let (operation, letter) = operation.ok_or("no command")?;
    let unknown = || format!("Unknown command '{command}'");
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

/// A controller with lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chip {
    IoApic,
    Pic,
}

fn chip_of(control: &Control, path: Option<&&str>) -> Result<Chip, String> {
    let path = path.ok_or("an argument is missing")?;
    match chip_at(control, path) {
        Some("ioapic") => Ok(Chip::IoApic),
        Some("i8259") => Ok(Chip::Pic),
        _ => Err("Unknown device".to_owned()),
    }
}

/// `set_irq_in PATH NAME N LEVEL`.
fn set_input(chips: &Chipset, chip: Chip, arguments: &[&str]) -> Result<(), String> {
    if arguments.get(1) != Some(&"unnamed-gpio-in") {
        return Err("its inputs have no name: 'unnamed-gpio-in' is expected".to_owned());
    }
    let pin = number(arguments.get(2))?;
    let high = number(arguments.get(3))? != 0;
    let (place, inputs): (_, u32) = match chip {
        Chip::IoApic => (TapPlace::IoApicInputs, 24),
        Chip::Pic => (TapPlace::PicInputs, 16),
    };
    let pin = u32::try_from(pin).ok().filter(|pin| *pin < inputs);
    let pin = pin.ok_or_else(|| format!("it has {inputs} inputs"))?;
    match (chip, chips.interrupts.own_chips()) {
        (Chip::IoApic, Some((_, ioapic))) => ioapic.set_level(pin, high),
        (Chip::Pic, Some((pic, _))) => pic.set_level(pin, high),
        (_, None) => return Err("the accelerator keeps the interrupt controllers".to_owned()),
    }
    let (tap, pin) = chips.interrupts.taps.end(place, pin);
    tap.set_level(pin, high);
    Ok(())
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
    let load = |at| u8::try_from(load(memory, chips, at, Width::Byte)).unwrap_or(0);
    let store = |at, byte: u8| store(memory, chips, at, Width::Byte, byte.into());
    let third = arguments.get(2);
    match command {
        "read" => {
            let bytes = places.map(|at| format!("{:02x}", load(at)));
            return Ok(format!("0x{}", bytes.collect::<String>()));
        }
        "b64read" => return Ok(BASE64_STANDARD.encode(places.map(load).collect::<Vec<u8>>())),
        "memset" => {
            let [fill, ..] = number(third)?.to_le_bytes();
            places.for_each(|at| store(at, fill));
        }
        _ => {
            let text = third.ok_or("an argument is missing")?;
            let bytes = match command {
                "write" => from_hexadecimal(text, size)?,
                _ => BASE64_STANDARD
                    .decode(text)
                    .map_err(|error| error.to_string())?,
            };
            if (bytes.len() as u64) < size {
                return Err("there are fewer bytes than the size says".to_owned());
            }
            for (at, byte) in places.zip(bytes) {
                store(at, byte);
            }
        }
    }
    Ok(String::new())
}

/// The first `size` bytes of a text of digits.
fn from_hexadecimal(text: &str, size: u64) -> Result<Vec<u8>, String> {
    let digits = text.strip_prefix("0x").ok_or("0x is missing")?;
    let count = usize::try_from(size).unwrap_or(usize::MAX);
    let pairs = (0..count).map(|index| {
        let pair = digits.get(index.saturating_mul(2)..index.saturating_mul(2).saturating_add(2));
        let pair = pair.ok_or("there are fewer bytes than the size says")?;
        u8::from_str_radix(pair, 16).map_err(|_| format!("'{pair}' is not a byte"))
    });
    pairs.collect()
}
