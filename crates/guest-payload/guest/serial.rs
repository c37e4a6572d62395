//! The serial line at 0x3f8.

use core::fmt::{self, Write};

use crate::cpu::{in8, out8};

const PORT: u16 = 0x3f8;
const HAS_DATA: u8 = 1;
const CAN_SEND: u8 = 0x20;
/// A port that nobody answers at reads as this.
const NOBODY: u8 = 0xff;

/// 115200 baud, eight bits, FIFOs, interrupts for what comes in.
pub fn prepare() {
    let settings = [(3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0x0b), (1, 1)];
    for (register, value) in settings {
        out8(PORT + register, value);
    }
}

pub fn read() -> Option<u8> {
    let status = in8(PORT + 5);
    (status != NOBODY && status & HAS_DATA != 0).then(|| in8(PORT))
}

pub fn write(byte: u8) {
    while in8(PORT + 5) & CAN_SEND == 0 {
        core::hint::spin_loop();
    }
    out8(PORT, byte);
}

pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                write(b'\r');
            }
            write(byte);
        }
        Ok(())
    }
}

pub fn print(arguments: fmt::Arguments) {
    // The line cannot fail.
    let _ = Serial.write_fmt(arguments);
}

/// Says a line.
macro_rules! say {
    ($($what:tt)*) => {
        $crate::serial::print(format_args!("{}\n", format_args!($($what)*)))
    };
}
pub(crate) use say;
