//! The pair of 8259A interrupt controllers, with the edge/level registers of the 82371 (PIIX).
//!
//! | port | register |
//! |---|---|
//! | 0x20, 0xa0 | write ICW1 (bit 4), OCW2, OCW3 (bit 3); read IRR, ISR or the poll byte |
//! | 0x21, 0xa1 | write ICW2 to ICW4 after ICW1, else OCW1; read and write the mask |
//! | 0x4d0, 0x4d1 | ELCR: one bit per input, 1 = level; inputs 0, 1, 2, 8 and 13 are always edge |
//!
//! Sources: Intel 8259A datasheet (231468); 82371SB datasheet, 2.5.6 and 2.5.7. Interrupt outputs as in 8086 mode only, as
//! a PC has it. ICW1's LTIM is ignored where the ELCR decides, as the 82371 does.
//!
//! In edge mode a request stays latched until it is acknowledged or the chip is initialised, even when the input falls
//! before: devices here may pulse their lines. A level request that falls gives the spurious vector 7 (or 15).

use std::sync::Arc;

use device::{
    Device, Error, InterruptController, IoParts, IrqLine, ResetKind, SavedState, Width, read_bytes,
    write_bytes,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const NAME: &str = "i8259";
const VERSION: u32 = 1;
/// The master's input that the slave drives.
const CASCADE: u8 = 2;

/// What the next write to the odd port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    /// No ICW1 yet: no interrupts.
    Uninitialised,
    Icw2,
    Icw3,
    Icw4,
    Ready,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chip {
    step: Step,
    needs_icw3: bool,
    needs_icw4: bool,
    /// ICW2: the vector of input 0; the low three bits are zero.
    vector: u8,
    lines: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    /// The input with the lowest priority, 0 to 7.
    lowest: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_nested: bool,
    poll: bool,
    read_isr: bool,
}

impl Chip {
    fn new() -> Chip {
        Chip {
            step: Step::Uninitialised,
            needs_icw3: false,
            needs_icw4: false,
            vector: 0,
            lines: 0,
            irr: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            lowest: 7,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_nested: false,
            poll: false,
            read_isr: false,
        }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = bit(input);
        let rises = high && self.lines & bit == 0;
        if high {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.elcr & bit != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rises {
            self.irr |= bit;
        }
    }

    /// The inputs from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let first = self.lowest.wrapping_add(1);
        (0..8_u8).map(move |index| first.wrapping_add(index) & 7)
    }

    /// The request that would be acknowledged now.
    fn pending(&self) -> Option<u8> {
        if self.step != Step::Ready {
            return None;
        }
        for input in self.by_priority() {
            let bit = bit(input);
            let in_service = self.isr & bit != 0;
            if in_service && self.special_mask && self.imr & bit != 0 {
                // A level in service that is masked holds back nothing but itself.
                continue;
            }
            let nested = self.special_nested && input == CASCADE;
            if in_service && !nested {
                return None;
            }
            if self.irr & !self.imr & bit != 0 {
                return Some(input);
            }
            if in_service {
                return None;
            }
        }
        None
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = bit(input);
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input;
            }
        } else {
            self.isr |= bit;
        }
    }

    /// OCW2's commands; `input` is its level field.
    fn end_of_interrupt(&mut self, command: u8, input: u8) {
        let highest = self.by_priority().find(|input| {
            let masked = self.special_mask && self.imr & bit(*input) != 0;
            self.isr & bit(*input) != 0 && !masked
        });
        match command {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 | 0b101 => {
                if let Some(highest) = highest {
                    self.isr &= !bit(highest);
                    if command == 0b101 {
                        self.lowest = highest;
                    }
                }
            }
            0b011 => self.isr &= !bit(input),
            0b111 => {
                self.isr &= !bit(input);
                self.lowest = input;
            }
            0b110 => self.lowest = input,
            // 0b010: no operation.
            _ => {}
        }
    }

    fn write_even(&mut self, value: u8) {
        if value & 0x10 != 0 {
            *self = Chip {
                step: Step::Icw2,
                needs_icw3: value & 2 == 0,
                needs_icw4: value & 1 != 0,
                lines: self.lines,
                elcr: self.elcr,
                // The edge sense circuit is reset; a level that stands is a request again.
                irr: self.lines & self.elcr,
                ..Chip::new()
            };
        } else if value & 8 != 0 {
            match value >> 5 & 3 {
                2 => self.special_mask = false,
                3 => self.special_mask = true,
                _ => {}
            }
            self.poll = value & 4 != 0;
            match value & 3 {
                2 => self.read_isr = false,
                3 => self.read_isr = true,
                _ => {}
            }
        } else {
            self.end_of_interrupt(value >> 5, value & 7);
        }
    }

    fn write_odd(&mut self, value: u8) {
        let after_icw3 = if self.needs_icw4 {
            Step::Icw4
        } else {
            Step::Ready
        };
        match self.step {
            Step::Uninitialised | Step::Ready => self.imr = value,
            Step::Icw2 => {
                self.vector = value & 0xf8;
                self.step = if self.needs_icw3 {
                    Step::Icw3
                } else {
                    after_icw3
                };
            }
            // The wiring of the cascade is fixed on a PC.
            Step::Icw3 => self.step = after_icw3,
            Step::Icw4 => {
                self.special_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.step = Step::Ready;
            }
        }
    }

    fn read(&mut self, odd: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.pending() {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (odd, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.lowest > 7 {
            Err("the lowest priority is not one of 8 inputs")
        } else if self.vector & 7 != 0 {
            Err("the vector's low bits are not zero")
        } else {
            Ok(())
        }
    }
}

fn bit(input: u8) -> u8 {
    1_u8.checked_shl(u32::from(input)).unwrap_or(0)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PicState {
    master: Chip,
    slave: Chip,
}

impl PicState {
    /// Lets the slave's output reach the master; says whether the master asks for an interrupt.
    fn settle(&mut self) -> bool {
        let slave_asks = self.slave.pending().is_some();
        self.master.set_line(CASCADE, slave_asks);
        self.master.pending().is_some()
    }

    fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending() else {
            return self.master.vector | 7;
        };
        self.master.acknowledge(input);
        if input != CASCADE {
            return self.master.vector | input;
        }
        let vector = match self.slave.pending() {
            Some(input) => {
                self.slave.acknowledge(input);
                self.slave.vector | input
            }
            None => self.slave.vector | 7,
        };
        // The slave's output falls with the acknowledgement, so that its next request is an edge.
        self.master.set_line(CASCADE, false);
        vector
    }
}

/// The ranges of ports of a [`Pic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicPart {
    /// 0x20, two ports.
    Master,
    /// 0xa0, two ports.
    Slave,
    /// 0x4d0, two ports.
    EdgeLevel,
}

/// Both controllers. As an [`InterruptController`] its pins are IRQ 0 to 15 (2 is the cascade and not a pin).
pub struct Pic {
    output: IrqLine,
    state: Mutex<PicState>,
}

impl Pic {
    /// A pair whose master drives `output` (the processor's INTR, or LINT0 of the local APICs).
    pub fn new(output: IrqLine) -> Arc<Pic> {
        Arc::new(Pic {
            output,
            state: Mutex::new(PicState {
                master: Chip::new(),
                slave: Chip::new(),
            }),
        })
    }

    /// The processor's interrupt acknowledge cycle: the vector, which is the spurious one if no request is left.
    pub fn acknowledge(&self) -> u8 {
        self.change(PicState::acknowledge)
    }

    /// Whether the processor is asked to take an interrupt.
    pub fn has_request(&self) -> bool {
        self.state.lock().master.pending().is_some()
    }

    fn change<T>(&self, work: impl FnOnce(&mut PicState) -> T) -> T {
        let mut state = self.state.lock();
        let result = work(&mut state);
        let asks = state.settle();
        self.output.set(asks);
        result
    }
}

impl InterruptController for Pic {
    fn set_level(&self, pin: u32, level: bool) {
        self.change(|state| match u8::try_from(pin) {
            Ok(CASCADE) | Err(_) => {}
            Ok(input @ 0..8) => state.master.set_line(input, level),
            Ok(input @ 8..16) => state.slave.set_line(input - 8, level),
            Ok(_) => {}
        });
    }
}

impl IoParts for Pic {
    type Part = PicPart;

    fn read_part(&self, part: PicPart, offset: u64, width: Width) -> u64 {
        self.change(|state| {
            read_bytes(offset, width, |at| match (part, at) {
                (PicPart::Master, 0 | 1) => state.master.read(at == 1),
                (PicPart::Slave, 0 | 1) => state.slave.read(at == 1),
                (PicPart::EdgeLevel, 0) => state.master.elcr,
                (PicPart::EdgeLevel, 1) => state.slave.elcr,
                _ => 0xff,
            })
        })
    }

    fn write_part(&self, part: PicPart, offset: u64, width: Width, value: u64) {
        self.change(|state| {
            write_bytes(offset, width, value, |at, byte| match (part, at) {
                (PicPart::Master, 0) => state.master.write_even(byte),
                (PicPart::Master, 1) => state.master.write_odd(byte),
                (PicPart::Slave, 0) => state.slave.write_even(byte),
                (PicPart::Slave, 1) => state.slave.write_odd(byte),
                (PicPart::EdgeLevel, 0) => state.master.elcr = byte & 0xf8,
                (PicPart::EdgeLevel, 1) => state.slave.elcr = byte & 0xde,
                _ => {}
            });
        });
    }
}

impl Device for Pic {
    fn reset(&self, _kind: ResetKind) {
        self.change(|state| {
            for chip in [&mut state.master, &mut state.slave] {
                // The inputs are what devices drive; they reset their lines themselves.
                let lines = chip.lines;
                *chip = Chip::new();
                chip.lines = lines;
            }
        });
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.state.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: PicState = state.read(NAME, VERSION)?;
        for chip in [&new.master, &new.slave] {
            chip.check()
                .map_err(|reason| device::Error::bad_state(NAME, reason))?;
        }
        self.change(|state| *state = new);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
