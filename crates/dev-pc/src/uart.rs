//! The 16550A serial port.
//!
//! | offset | read | write | with DLAB |
//! |---|---|---|---|
//! | 0 | received byte | byte to send | divisor, low |
//! | 1 | interrupt enable | interrupt enable | divisor, high |
//! | 2 | interrupt identification | FIFO control | |
//! | 3 | line control | line control | |
//! | 4 | modem control | modem control | |
//! | 5 | line status | | |
//! | 6 | modem status | | |
//! | 7 | scratch | scratch | |
//!
//! Source: National PC16550D datasheet. Timing is not modelled: a byte is sent when it is written, and a FIFO that holds
//! fewer bytes than its trigger level asks with the character timeout at once. The interrupt is not gated by OUT2 (that
//! gate is part of some boards, not of the chip).

use std::collections::VecDeque;
use std::sync::Arc;

use device::{
    Device, Error, IoHandler, IrqLine, ResetKind, SavedState, Width, read_bytes, write_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const NAME: &str = "serial-16550a";
const VERSION: u32 = 1;
/// Bytes in each FIFO.
pub const FIFO_BYTES: usize = 16;

const IER_RECEIVED: u8 = 1;
const IER_SENT: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;
const LCR_BREAK: u8 = 0x40;
const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const LSR_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_BREAK: u8 = 0x10;
const LSR_EMPTY: u8 = 0x60;
const LSR_FIFO_ERROR: u8 = 0x80;
/// Status bits that belong to one received byte: parity, framing, break.
const LSR_PER_BYTE: u8 = 0x1c;
const LSR_ERRORS: u8 = LSR_OVERRUN | LSR_PER_BYTE;

/// The far end of the line. Called without the chip's lock; it may call [`Uart::receive`] back.
pub trait SerialLine: Send + Sync {
    /// A byte was sent.
    fn transmit(&self, byte: u8);

    /// There is room for input again.
    fn input_wanted(&self);

    /// A break condition began or ended.
    fn set_break(&self, on: bool);
}

/// The modem's lines, as the chip's inputs; bits as in the modem status register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModemLines(u8);

impl ModemLines {
    /// Nobody is there.
    pub const NONE: ModemLines = ModemLines(0);
    /// A peer is there and ready: clear to send, data set ready, carrier.
    pub const READY: ModemLines = ModemLines(0xb0);

    /// From the four lines.
    pub fn new(clear_to_send: bool, data_set_ready: bool, ring: bool, carrier: bool) -> ModemLines {
        ModemLines(
            u8::from(clear_to_send) << 4
                | u8::from(data_set_ready) << 5
                | u8::from(ring) << 6
                | u8::from(carrier) << 7,
        )
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UartState {
    /// Received bytes, each with its bits of the line status.
    received: VecDeque<(u8, u8)>,
    divisor: u16,
    ier: u8,
    lcr: u8,
    mcr: u8,
    /// Overrun, and the per-byte bits of the byte at the front as far as they have not been read.
    lsr_errors: u8,
    msr_deltas: u8,
    lines: ModemLines,
    scratch: u8,
    fifo: bool,
    /// Bits 6 and 7 of FCR.
    trigger: u8,
    /// The transmitter became empty and nobody has asked since.
    sent: bool,
}

/// What is to be told the line once the lock is released.
#[derive(Default)]
struct Told {
    transmit: Vec<u8>,
    input_wanted: bool,
    set_break: Option<bool>,
}

impl UartState {
    fn new(lines: ModemLines) -> UartState {
        UartState {
            received: VecDeque::new(),
            divisor: 12,
            ier: 0,
            lcr: 0,
            mcr: 0,
            lsr_errors: 0,
            msr_deltas: 0,
            lines,
            scratch: 0,
            fifo: false,
            trigger: 0,
            sent: false,
        }
    }

    fn capacity(&self) -> usize {
        if self.fifo { FIFO_BYTES } else { 1 }
    }

    fn trigger_bytes(&self) -> usize {
        match (self.fifo, self.trigger) {
            (false, _) | (true, 0) => 1,
            (true, 0x40) => 4,
            (true, 0x80) => 8,
            (true, _) => 14,
        }
    }

    fn looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    /// The modem inputs as the chip sees them: in loopback they are its own outputs.
    fn seen_lines(&self) -> u8 {
        if !self.looped() {
            return self.lines.0;
        }
        // DTR -> DSR, RTS -> CTS, OUT1 -> RI, OUT2 -> DCD.
        (self.mcr & 1) << 5 | (self.mcr & 2) << 3 | (self.mcr & 0x0c) << 4
    }

    /// Notes what changed of the modem inputs.
    fn note_lines(&mut self, before: u8) {
        let now = self.seen_lines();
        let changed = before ^ now;
        self.msr_deltas |= changed >> 4 & 0x0b;
        // The ring indicator counts when it ends.
        if before & 0x40 != 0 && now & 0x40 == 0 {
            self.msr_deltas |= 0x04;
        }
    }

    fn push(&mut self, byte: u8, status: u8) {
        if self.received.len() < self.capacity() {
            if self.received.is_empty() {
                self.lsr_errors |= status;
            }
            self.received.push_back((byte, status));
            return;
        }
        self.lsr_errors |= LSR_OVERRUN;
        if !self.fifo
            && let Some(front) = self.received.front_mut()
        {
            *front = (byte, status);
            self.lsr_errors |= status;
        }
    }

    fn pop(&mut self) -> u8 {
        let Some((byte, status)) = self.received.pop_front() else {
            return 0;
        };
        self.lsr_errors &= !status;
        if let Some((_, next)) = self.received.front() {
            self.lsr_errors |= next;
        }
        byte
    }

    fn lsr(&self) -> u8 {
        let later_errors = self.fifo && self.received.iter().any(|(_, status)| *status != 0);
        LSR_EMPTY
            | self.lsr_errors
            | if self.received.is_empty() {
                0
            } else {
                LSR_READY
            }
            | if later_errors { LSR_FIFO_ERROR } else { 0 }
    }

    /// The interrupt with the highest priority, as IIR shows it.
    fn interrupt(&self) -> Option<u8> {
        if self.ier & IER_LINE != 0 && self.lsr_errors & LSR_ERRORS != 0 {
            Some(0x06)
        } else if self.ier & IER_RECEIVED != 0 && self.received.len() >= self.trigger_bytes() {
            Some(0x04)
        } else if self.ier & IER_RECEIVED != 0 && !self.received.is_empty() {
            Some(0x0c)
        } else if self.ier & IER_SENT != 0 && self.sent {
            Some(0x02)
        } else if self.ier & IER_MODEM != 0 && self.msr_deltas != 0 {
            Some(0x00)
        } else {
            None
        }
    }

    fn read(&mut self, offset: u64, told: &mut Told) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if dlab => divisor_low,
            1 if dlab => divisor_high,
            0 => {
                told.input_wanted = !self.received.is_empty();
                self.pop()
            }
            1 => self.ier,
            2 => {
                let interrupt = self.interrupt();
                if interrupt == Some(0x02) {
                    self.sent = false;
                }
                interrupt.unwrap_or(0x01) | if self.fifo { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let lsr = self.lsr();
                self.lsr_errors = 0;
                if let Some((_, status)) = self.received.front_mut() {
                    *status = 0;
                }
                lsr
            }
            6 => {
                let msr = self.seen_lines() | self.msr_deltas;
                self.msr_deltas = 0;
                msr
            }
            7 => self.scratch,
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u64, byte: u8, told: &mut Told) {
        let dlab = self.lcr & LCR_DLAB != 0;
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if dlab => self.divisor = u16::from_le_bytes([byte, divisor_high]),
            1 if dlab => self.divisor = u16::from_le_bytes([divisor_low, byte]),
            0 => {
                if self.looped() {
                    self.push(byte, 0);
                } else {
                    told.transmit.push(byte);
                }
                self.sent = true;
            }
            1 => {
                // Enabling the interrupt of an empty transmitter asks at once.
                if byte & !self.ier & IER_SENT != 0 {
                    self.sent = true;
                }
                self.ier = byte & 0x0f;
            }
            2 => self.write_fifo_control(byte, told),
            3 => {
                let changed = self.lcr ^ byte;
                self.lcr = byte;
                if changed & LCR_BREAK != 0 && !self.looped() {
                    told.set_break = Some(byte & LCR_BREAK != 0);
                }
            }
            4 => {
                let before = self.seen_lines();
                self.mcr = byte & 0x1f;
                self.note_lines(before);
            }
            7 => self.scratch = byte,
            // The status registers are for the factory to write.
            _ => {}
        }
    }

    fn write_fifo_control(&mut self, byte: u8, told: &mut Told) {
        let enable = byte & 1 != 0;
        if enable != self.fifo || byte & 2 != 0 {
            told.input_wanted = true;
            self.received.clear();
            self.lsr_errors &= !LSR_PER_BYTE;
        }
        if enable != self.fifo || byte & 4 != 0 {
            self.sent = true;
        }
        self.fifo = enable;
        self.trigger = if enable { byte & 0xc0 } else { 0 };
    }
}

/// The port.
pub struct Uart {
    irq: IrqLine,
    line: Arc<dyn SerialLine>,
    state: Mutex<UartState>,
}

impl Uart {
    /// A port with a ready peer at `line`.
    pub fn new(irq: IrqLine, line: Arc<dyn SerialLine>) -> Arc<Uart> {
        Arc::new(Uart {
            irq,
            line,
            state: Mutex::new(UartState::new(ModemLines::READY)),
        })
    }

    /// Input from the line: takes as many bytes as there is room for and says how many. When there is room again, the
    /// line hears of it. In loopback the input is not connected, and nothing is taken.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        self.change(|state, _| {
            if state.looped() {
                return 0;
            }
            let room = state.capacity().saturating_sub(state.received.len());
            let taken = bytes.len().min(room);
            for byte in bytes.iter().take(taken) {
                state.push(*byte, 0);
            }
            taken
        })
    }

    /// A break from the line: a zero byte marked as break. Lost, as an overrun, if there is no room.
    pub fn receive_break(&self) {
        self.change(|state, _| {
            if !state.looped() {
                state.push(0, LSR_BREAK);
            }
        });
    }

    /// The modem's lines change.
    pub fn set_modem_lines(&self, lines: ModemLines) {
        self.change(|state, _| {
            let before = state.seen_lines();
            state.lines = lines;
            state.note_lines(before);
        });
    }

    /// The speed in baud that the guest has set, with the PC's clock of 1.8432 MHz.
    pub fn baud(&self) -> u32 {
        match self.state.lock().divisor {
            0 => 115_200,
            divisor => 115_200 / u32::from(divisor),
        }
    }

    fn change<T>(&self, work: impl FnOnce(&mut UartState, &mut Told) -> T) -> T {
        let mut told = Told::default();
        let mut state = self.state.lock();
        let result = work(&mut state, &mut told);
        self.irq.set(state.interrupt().is_some());
        drop(state);
        for byte in told.transmit {
            self.line.transmit(byte);
        }
        if let Some(on) = told.set_break {
            self.line.set_break(on);
        }
        if told.input_wanted {
            self.line.input_wanted();
        }
        result
    }
}

impl IoHandler for Uart {
    fn read(&self, offset: u64, width: Width) -> u64 {
        self.change(|state, told| read_bytes(offset, width, |at| state.read(at, told)))
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        self.change(|state, told| {
            write_bytes(offset, width, value, |at, byte| state.write(at, byte, told));
        });
    }
}

impl Device for Uart {
    fn reset(&self, _kind: ResetKind) {
        self.change(|state, told| {
            told.set_break = (state.lcr & LCR_BREAK != 0).then_some(false);
            told.input_wanted = true;
            *state = UartState::new(state.lines);
        });
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.state.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: UartState = state.read(NAME, VERSION)?;
        if new.received.len() > new.capacity() {
            return Err(device::Error::bad_state(
                NAME,
                "more bytes were received than the FIFO holds",
            ));
        }
        if new.trigger & !0xc0 != 0 || new.ier & !0x0f != 0 || new.mcr & !0x1f != 0 {
            return Err(device::Error::bad_state(
                NAME,
                "a register has bits that do not exist",
            ));
        }
        self.change(|state, _| *state = new);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
