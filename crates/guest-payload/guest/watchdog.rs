//! The watchdog of the Intel 6300ESB, first of its kind on the bus: started by a command, fed
//! whenever the guest looks around, until another command lets it starve.

use crate::cpu::write_register;
use crate::pci::{self, Function};

pub const IDENTITY: u32 = 0x25ab_8086;
/// No interrupt after the first stage; the slow clock.
const CONFIG: u8 = 0x60;
const NO_INTERRUPT: u16 = 3;
const LOCK: u8 = 0x68;
const ENABLED: u8 = 2;
const RELOAD_REGISTER: u64 = 0xc;
const RELOAD: u16 = 1 << 8;
/// The length of each of its two stages, in units of 2^15 clocks at 33 MHz, about 1 ms.
const STAGE: u32 = 1000;

pub struct Watchdog {
    registers: u64,
    is_fed: bool,
}

impl Watchdog {
    /// Starts the watchdog, if there is one.
    pub fn start() -> Option<Self> {
        let mut found = None;
        pci::each(&mut |function| {
            if found.is_none() && function.read(0) == IDENTITY {
                found = Self::start_function(function);
            }
        });
        found
    }

    fn start_function(function: &mut Function) -> Option<Self> {
        let registers = function.memory_of(0)?;
        function.switch_on();
        let watchdog = Self {
            registers,
            is_fed: true,
        };
        function.write_word(CONFIG, NO_INTERRUPT);
        for preload in [0, 4] {
            watchdog.unlock();
            write_register(registers + preload, STAGE);
        }
        function.write_byte(LOCK, ENABLED);
        watchdog.feed();
        Some(watchdog)
    }

    /// Lets one write to a preload or to the reload register pass.
    fn unlock(&self) {
        for key in [0x80_u16, 0x86] {
            write_register(self.registers + RELOAD_REGISTER, key);
        }
    }

    /// Feeds it, unless it shall starve.
    pub fn feed(&self) {
        if self.is_fed {
            self.unlock();
            write_register(self.registers + RELOAD_REGISTER, RELOAD);
        }
    }

    /// Nobody feeds it any more.
    pub fn starve(&mut self) {
        self.is_fed = false;
    }
}
