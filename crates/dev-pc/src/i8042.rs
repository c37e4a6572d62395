//! The 8042 keyboard controller with a PS/2 keyboard and a PS/2 mouse.
//!
//! | port | read | write |
//! |---|---|---|
//! | 0x60 | the byte in the output buffer | a byte for the keyboard, or a command's parameter |
//! | 0x64 | status: OBF 0, IBF 1, SYS 2, command 3, unlocked 4, from the mouse 5 | a command |
//!
//! Sources: Intel UPI-42 datasheet and the IBM PS/2 technical reference ("Keyboard and auxiliary device controller").
//! Commands are carried out at once: IBF is never seen set. The output port's bit 0 resets the machine when it is low, bit 1
//! opens address line 20. A command that the controller does not know is ignored.

mod keyboard;
mod keys;
mod mouse;

use std::sync::Arc;

use device::{
    Device, Error, IoParts, IrqLine, MachineRequest, MachineSink, ResetKind, SavedState, Width,
    read_bytes, write_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use keyboard::Keyboard;
pub use keys::Key;
use mouse::Mouse;
pub use mouse::MouseButton;

const NAME: &str = "pckbd";
const VERSION: u32 = 1;

const STATUS_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_MOUSE: u8 = 0x20;
const CONFIG_KEYBOARD_IRQ: u8 = 0x01;
const CONFIG_MOUSE_IRQ: u8 = 0x02;
const CONFIG_SYSTEM: u8 = 0x04;
const CONFIG_KEYBOARD_OFF: u8 = 0x10;
const CONFIG_MOUSE_OFF: u8 = 0x20;
const CONFIG_TRANSLATE: u8 = 0x40;
const OUT_NOT_RESET: u8 = 0x01;
const OUT_A20: u8 = 0x02;
const OUT_KEYBOARD_FULL: u8 = 0x10;
const OUT_MOUSE_FULL: u8 = 0x20;
/// Lines of the output port that commands set: not the two that follow the output buffer.
const OUT_STORED: u8 = 0xcf;
const RAM_BYTES: usize = 32;

/// Where a byte in the output buffer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Controller,
    Keyboard,
    Mouse,
}

/// A command that waits for a byte at port 0x60.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Waiting {
    Ram(u8),
    OutputPort,
    AsKeyboard,
    AsMouse,
    ToMouse,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct I8042State {
    keyboard: Keyboard,
    mouse: Mouse,
    /// Byte 0 is the configuration.
    ram: Vec<u8>,
    out: u8,
    buffer: Option<(u8, Source)>,
    /// What port 0x60 reads when the buffer is empty: the last byte again.
    last: u8,
    wrote_command: bool,
    waiting: Option<Waiting>,
    /// The break prefix of set 2 has come; the next code becomes a break code.
    translating_break: bool,
}

impl I8042State {
    fn new() -> I8042State {
        let mut state = I8042State {
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            ram: vec![0; RAM_BYTES],
            out: OUT_STORED & !OUT_A20,
            buffer: None,
            last: 0,
            wrote_command: false,
            waiting: None,
            translating_break: false,
        };
        state.set_config(CONFIG_KEYBOARD_IRQ | CONFIG_MOUSE_IRQ | CONFIG_TRANSLATE);
        state
    }

    fn config(&self) -> u8 {
        self.ram.first().copied().unwrap_or(0)
    }

    fn set_config(&mut self, config: u8) {
        if let Some(first) = self.ram.first_mut() {
            *first = config;
        }
    }

    fn status(&self) -> u8 {
        let from = match self.buffer {
            None => 0,
            Some((_, Source::Mouse)) => STATUS_FULL | STATUS_MOUSE,
            Some(_) => STATUS_FULL,
        };
        let system = if self.config() & CONFIG_SYSTEM != 0 {
            STATUS_SYSTEM
        } else {
            0
        };
        let command = if self.wrote_command {
            STATUS_COMMAND
        } else {
            0
        };
        from | system | command | STATUS_UNLOCKED
    }

    /// Moves the next byte of a device into the output buffer, if that is empty.
    fn fill(&mut self) {
        while self.buffer.is_none() {
            if self.config() & CONFIG_KEYBOARD_OFF == 0 && self.keyboard.has_output() {
                let Some(byte) = self.keyboard.next() else {
                    return;
                };
                if self.config() & CONFIG_TRANSLATE == 0 {
                    self.buffer = Some((byte, Source::Keyboard));
                } else if byte == 0xf0 {
                    self.translating_break = true;
                } else {
                    let mark = if self.translating_break { 0x80 } else { 0 };
                    self.translating_break = false;
                    self.buffer = Some((keys::translate(byte) | mark, Source::Keyboard));
                }
            } else if self.config() & CONFIG_MOUSE_OFF == 0 && self.mouse.has_output() {
                let Some(byte) = self.mouse.next() else {
                    return;
                };
                self.buffer = Some((byte, Source::Mouse));
            } else {
                return;
            }
        }
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.buffer.take() {
            self.last = byte;
        }
        self.last
    }

    fn output_port(&self) -> u8 {
        self.out
            | match self.buffer {
                None => 0,
                Some((_, Source::Mouse)) => OUT_MOUSE_FULL,
                Some(_) => OUT_KEYBOARD_FULL,
            }
    }

    fn answer(&mut self, byte: u8) {
        self.buffer = Some((byte, Source::Controller));
    }

    /// Sets the output port; says whether it asks for a reset.
    fn set_output_port(&mut self, byte: u8) -> bool {
        // The reset line is not stored low: the machine comes back with it high.
        self.out = byte & OUT_STORED | OUT_NOT_RESET;
        byte & OUT_NOT_RESET == 0
    }

    /// A write to port 0x64; says whether the machine is to be reset.
    fn write_command(&mut self, command: u8) -> bool {
        self.wrote_command = true;
        self.waiting = None;
        match command {
            0x20..=0x3f => {
                let byte = self.ram.get(usize::from(command & 0x1f)).copied();
                self.answer(byte.unwrap_or(0));
            }
            0x60..=0x7f => self.waiting = Some(Waiting::Ram(command & 0x1f)),
            // No password is installed.
            0xa4 => self.answer(0xf1),
            0xa7 => self.set_config(self.config() | CONFIG_MOUSE_OFF),
            0xa8 => self.set_config(self.config() & !CONFIG_MOUSE_OFF),
            // The interfaces' tests find no error.
            0xa9 | 0xab => self.answer(0),
            0xaa => {
                self.set_config(self.config() | CONFIG_SYSTEM);
                self.answer(0x55);
            }
            0xad => self.set_config(self.config() | CONFIG_KEYBOARD_OFF),
            0xae => self.set_config(self.config() & !CONFIG_KEYBOARD_OFF),
            // Input port: the keyboard is not locked, the display is a colour one.
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.output_port()),
            0xd1 => self.waiting = Some(Waiting::OutputPort),
            0xd2 => self.waiting = Some(Waiting::AsKeyboard),
            0xd3 => self.waiting = Some(Waiting::AsMouse),
            0xd4 => self.waiting = Some(Waiting::ToMouse),
            0xdd => self.out &= !OUT_A20,
            0xdf => self.out |= OUT_A20,
            // Test inputs: both clocks are high when the interfaces are on.
            0xe0 => {
                let config = self.config();
                self.answer(
                    u8::from(config & CONFIG_KEYBOARD_OFF == 0)
                        | u8::from(config & CONFIG_MOUSE_OFF == 0) << 1,
                );
            }
            // Pulses the lines whose bits are 0: only the reset line can be pulsed on a PC.
            0xf0..=0xff => return command & OUT_NOT_RESET == 0,
            _ => {}
        }
        false
    }

    /// A write to port 0x60; says whether the machine is to be reset.
    fn write_data(&mut self, byte: u8) -> bool {
        self.wrote_command = false;
        match self.waiting.take() {
            None => {
                self.set_config(self.config() & !CONFIG_KEYBOARD_OFF);
                self.keyboard.command(byte);
            }
            Some(Waiting::Ram(index)) => {
                if let Some(place) = self.ram.get_mut(usize::from(index)) {
                    *place = byte;
                }
            }
            Some(Waiting::OutputPort) => return self.set_output_port(byte),
            Some(Waiting::AsKeyboard) => self.buffer = Some((byte, Source::Keyboard)),
            Some(Waiting::AsMouse) => self.buffer = Some((byte, Source::Mouse)),
            Some(Waiting::ToMouse) => {
                self.set_config(self.config() & !CONFIG_MOUSE_OFF);
                self.mouse.command(byte);
            }
        }
        false
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.ram.len() != RAM_BYTES {
            return Err("the controller's memory does not have 32 bytes");
        }
        if self.out & !OUT_STORED != 0 || self.out & OUT_NOT_RESET == 0 {
            return Err("the output port has a value that is not stored");
        }
        self.keyboard.check()?;
        self.mouse.check()
    }
}

/// The ports of an [`I8042`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum I8042Part {
    /// 0x60, one port.
    Data,
    /// 0x64, one port.
    Command,
}

/// The lines of an [`I8042`].
#[derive(Debug)]
pub struct I8042Lines {
    /// IRQ 1.
    pub keyboard: IrqLine,
    /// IRQ 12.
    pub mouse: IrqLine,
    /// Address line 20; port 92 is the other source.
    pub a20: IrqLine,
}

/// The controller, with its keyboard and mouse.
pub struct I8042 {
    lines: I8042Lines,
    machine: Arc<dyn MachineSink>,
    state: Mutex<I8042State>,
}

impl I8042 {
    /// A controller on these lines; its reset line goes to `machine`.
    pub fn new(lines: I8042Lines, machine: Arc<dyn MachineSink>) -> Arc<I8042> {
        Arc::new(I8042 {
            lines,
            machine,
            state: Mutex::new(I8042State::new()),
        })
    }

    /// Presses or releases a key; false if the keyboard is switched off or its queue is full.
    pub fn key(&self, key: Key, pressed: bool) -> bool {
        self.change(|state| state.keyboard.key(key, pressed))
    }

    /// Moves the mouse, in counts: right, down, and the wheel towards the user are positive.
    pub fn move_mouse(&self, right: i32, down: i32, wheel: i32) {
        self.change(|state| state.mouse.moves(right, down, wheel));
    }

    /// Presses or releases a button of the mouse.
    pub fn mouse_button(&self, button: MouseButton, pressed: bool) {
        self.change(|state| state.mouse.button(button, pressed));
    }

    /// The keyboard's lights: scroll, num and caps lock in bits 0 to 2.
    pub fn leds(&self) -> u8 {
        self.state.lock().keyboard.leds()
    }

    fn change<T>(&self, work: impl FnOnce(&mut I8042State) -> T) -> T {
        let mut state = self.state.lock();
        let result = work(&mut state);
        state.fill();
        self.drive(&state);
        result
    }

    fn drive(&self, state: &I8042State) {
        let config = state.config();
        let asks = |irq: u8, mouse: bool| {
            config & irq != 0
                && state
                    .buffer
                    .is_some_and(|(_, source)| (source == Source::Mouse) == mouse)
        };
        self.lines.keyboard.set(asks(CONFIG_KEYBOARD_IRQ, false));
        self.lines.mouse.set(asks(CONFIG_MOUSE_IRQ, true));
        self.lines.a20.set(state.out & OUT_A20 != 0);
    }

    fn read_data(&self) -> u8 {
        let mut state = self.state.lock();
        let byte = state.read_data();
        // The line falls before the next byte raises it: each byte is an edge.
        self.drive(&state);
        state.fill();
        self.drive(&state);
        byte
    }
}

impl IoParts for I8042 {
    type Part = I8042Part;

    fn read_part(&self, part: I8042Part, offset: u64, width: Width) -> u64 {
        read_bytes(offset, width, |at| match (part, at) {
            (I8042Part::Data, 0) => self.read_data(),
            (I8042Part::Command, 0) => self.state.lock().status(),
            _ => 0xff,
        })
    }

    fn write_part(&self, part: I8042Part, offset: u64, width: Width, value: u64) {
        let reset = self.change(|state| {
            let mut reset = false;
            write_bytes(offset, width, value, |at, byte| match (part, at) {
                (I8042Part::Data, 0) => reset |= state.write_data(byte),
                (I8042Part::Command, 0) => reset |= state.write_command(byte),
                _ => {}
            });
            reset
        });
        if reset {
            self.machine
                .request(MachineRequest::Reset(ResetKind::System));
        }
    }
}

impl Device for I8042 {
    fn reset(&self, _kind: ResetKind) {
        self.change(|state| *state = I8042State::new());
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.state.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: I8042State = state.read(NAME, VERSION)?;
        new.check()
            .map_err(|reason| device::Error::bad_state(NAME, reason))?;
        self.change(|state| *state = new);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
