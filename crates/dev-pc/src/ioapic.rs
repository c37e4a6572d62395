//! The 82093AA I/O APIC, with the EOI register of its successors (version 0x20).
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | IOREGSEL: index |
//! | 0x10 | IOWIN: the register at the index |
//! | 0x40 | EOI: the vector that has ended (version 0x20) |
//!
//! | index | register |
//! |---|---|
//! | 0x00 | identity, bits 24-27 |
//! | 0x01 | version 0x20, number of the last input in bits 16-23 |
//! | 0x02 | arbitration identity |
//! | 0x10 + 2n, 0x11 + 2n | redirection of input n, low and high half |
//!
//! Source: Intel 82093AA datasheet (290566). An access that is not four bytes wide at a register's offset reads zero and
//! is ignored. A level input whose interrupt has been sent waits for its end ("remote IRR") before it is sent again.

use std::sync::Arc;

use device::{Device, Error, InterruptController, IoHandler, ResetKind, SavedState, Width};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::apic::{ApicBus, Delivery, Destination, EoiListener, InterruptMessage, MessageBus};

const NAME: &str = "ioapic";
const VERSION: u32 = 1;
/// Inputs.
pub const INPUTS: usize = 24;
/// Where a PC's first I/O APIC lies, in guest-physical memory, 4 KiB.
pub const IOAPIC_ADDRESS: u64 = 0xfec0_0000;
const VERSION_REGISTER: u32 = 0x20 | (INPUTS as u32 - 1) << 16;

const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// What a guest may write of the low half.
const LOW_WRITABLE: u64 = 0x1_afff;
const HIGH_WRITABLE: u64 = 0xff00_0000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IoApicState {
    select: u8,
    id: u8,
    redirections: [u64; INPUTS],
    /// Levels of the inputs, a bit each; true is "asks", whatever the polarity.
    levels: u32,
    /// Edges to be sent. An edge at a masked input is lost, so this is empty between accesses.
    requests: u32,
}

impl IoApicState {
    fn new() -> IoApicState {
        IoApicState {
            select: 0,
            id: 0,
            redirections: [MASKED; INPUTS],
            levels: 0,
            requests: 0,
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION_REGISTER,
            index => {
                let half = index.checked_sub(0x10).map(usize::from);
                let entry = half.and_then(|half| self.redirections.get(half / 2));
                let shift = u32::from(index & 1) * 32;
                entry.map_or(0, |entry| low_half(entry >> shift))
            }
        }
    }

    fn write_register(&mut self, value: u32) {
        match self.select {
            0 => self.id = u8::try_from(value >> 24 & 0xf).unwrap_or(0),
            1 | 2 => {}
            index => {
                let half = index.checked_sub(0x10).map(usize::from);
                let Some(entry) = half.and_then(|half| self.redirections.get_mut(half / 2)) else {
                    return;
                };
                let value = u64::from(value);
                if index & 1 == 1 {
                    *entry = *entry & 0xffff_ffff | (value & HIGH_WRITABLE) << 32;
                } else {
                    *entry = *entry & !LOW_WRITABLE | value & LOW_WRITABLE;
                    if *entry & LEVEL == 0 {
                        // An edge has no end to wait for; software clears a stuck one this way.
                        *entry &= !REMOTE_IRR;
                    }
                }
            }
        }
    }

    /// The messages that are due, each noted as sent.
    fn take_due(&mut self) -> Vec<InterruptMessage> {
        let mut due = Vec::new();
        for (input, entry) in self.redirections.iter_mut().enumerate() {
            let bit = 1_u32 << input;
            let level = *entry & LEVEL != 0;
            let asks = if level {
                self.levels & bit != 0 && *entry & REMOTE_IRR == 0
            } else {
                self.requests & bit != 0
            };
            if !asks || *entry & MASKED != 0 {
                continue;
            }
            self.requests &= !bit;
            let Some(message) = message_of(*entry) else {
                continue;
            };
            if level && matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority) {
                *entry |= REMOTE_IRR;
            }
            due.push(message);
        }
        due
    }

    /// What the level inputs send.
    fn level_messages(&self) -> Vec<InterruptMessage> {
        let levels = self.redirections.iter().filter(|entry| *entry & LEVEL != 0);
        levels.filter_map(|entry| message_of(*entry)).collect()
    }

    fn set_level(&mut self, input: u32, high: bool) {
        let Some(entry) = usize::try_from(input)
            .ok()
            .and_then(|input| self.redirections.get(input))
        else {
            return;
        };
        let bit = 1_u32 << input;
        let rises = high && self.levels & bit == 0;
        if high {
            self.levels |= bit;
        } else {
            self.levels &= !bit;
        }
        if rises && *entry & (LEVEL | MASKED) == 0 {
            self.requests |= bit;
        }
    }

    fn end(&mut self, vector: u8) {
        for entry in &mut self.redirections {
            let [own, ..] = entry.to_le_bytes();
            if own == vector && *entry & LEVEL != 0 {
                *entry &= !REMOTE_IRR;
            }
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        let bits = LOW_WRITABLE | REMOTE_IRR | HIGH_WRITABLE << 32;
        let inputs = (1_u32 << INPUTS) - 1;
        if self.redirections.iter().any(|entry| entry & !bits != 0) {
            Err("a redirection has bits that do not exist")
        } else if (self.levels | self.requests) & !inputs != 0 || self.id > 0xf {
            Err("an input or the identity does not exist")
        } else {
            Ok(())
        }
    }
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn message_of(entry: u64) -> Option<InterruptMessage> {
    let [vector, mode, _, _, _, _, _, destination] = entry.to_le_bytes();
    Some(InterruptMessage {
        destination: Destination::from_field(u32::from(destination), entry & LOGICAL != 0),
        delivery: Delivery::from_bits(mode & 7)?,
        vector,
        level: entry & LEVEL != 0,
    })
}

/// The controller. As an [`InterruptController`] its pins are its 24 inputs.
pub struct IoApic {
    bus: Arc<dyn MessageBus>,
    state: Mutex<IoApicState>,
}

impl IoApic {
    /// A controller that sends to the local APICs on `bus`, and hears of their ends of interrupt.
    pub fn new(bus: &Arc<ApicBus>) -> Arc<IoApic> {
        let ioapic = IoApic::on(bus.clone());
        let listener: Arc<dyn EoiListener> = ioapic.clone();
        bus.add_eoi_listener(Arc::downgrade(&listener));
        ioapic
    }

    /// A controller on another bus; who owns that tells it of ends of interrupt.
    pub fn on(bus: Arc<dyn MessageBus>) -> Arc<IoApic> {
        Arc::new(IoApic {
            bus,
            state: Mutex::new(IoApicState::new()),
        })
    }

    /// The message that an input would send now, unless it is masked (a board routes interrupts of the kernel so).
    pub fn message(&self, input: usize) -> Option<InterruptMessage> {
        let state = self.state.lock();
        let entry = state.redirections.get(input)?;
        if entry & MASKED == 0 {
            message_of(*entry)
        } else {
            None
        }
    }

    fn change<T>(&self, work: impl FnOnce(&mut IoApicState) -> T) -> T {
        let mut state = self.state.lock();
        let before = state.redirections;
        let result = work(&mut state);
        let differs = |(old, new): (&u64, &u64)| (old ^ new) & !REMOTE_IRR != 0;
        if before.iter().zip(&state.redirections).any(differs) {
            // Under the lock, so that the last change is the last that is told.
            self.bus.set_level_messages(&state.level_messages());
        }
        let due = state.take_due();
        drop(state);
        for message in due {
            self.bus.deliver(&message);
        }
        result
    }
}

impl InterruptController for IoApic {
    fn set_level(&self, pin: u32, level: bool) {
        self.change(|state| state.set_level(pin, level));
    }
}

impl EoiListener for IoApic {
    fn end_of_interrupt(&self, vector: u8) {
        self.change(|state| state.end(vector));
    }
}

impl IoHandler for IoApic {
    fn read(&self, offset: u64, width: Width) -> u64 {
        let state = self.state.lock();
        match (offset, width) {
            (0x00, Width::Dword | Width::Byte) => u64::from(state.select),
            (0x10, Width::Dword) => u64::from(state.read_register()),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        let value = low_half(value);
        let [low, ..] = value.to_le_bytes();
        self.change(|state| match (offset, width) {
            (0x00, Width::Dword | Width::Byte) => state.select = low,
            (0x10, Width::Dword) => state.write_register(value),
            (0x40, Width::Dword) => state.end(low),
            _ => {}
        });
    }
}

impl Device for IoApic {
    fn reset(&self, _kind: ResetKind) {
        self.change(|state| {
            *state = IoApicState {
                // What the devices drive stays.
                levels: state.levels,
                ..IoApicState::new()
            };
        });
    }

    fn save(&self) -> Result<SavedState, Error> {
        SavedState::of(NAME, VERSION, &*self.state.lock())
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: IoApicState = state.read(NAME, VERSION)?;
        new.check()
            .map_err(|reason| device::Error::bad_state(NAME, reason))?;
        // What was due had been sent before the state was saved: nothing is sent now.
        let mut state = self.state.lock();
        self.bus.set_level_messages(&new.level_messages());
        *state = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
