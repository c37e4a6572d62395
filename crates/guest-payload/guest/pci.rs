//! PCI bus 0, by configuration mechanism 1, and the virtio devices on it.
//!
//! Where no firmware has placed a device's memory, it is placed here.

use crate::cpu::{in32, out8, out16, out32};
use crate::virtio::{Device, PciParts};

const VIRTIO_VENDOR: u32 = 0x1af4;
const COMMAND: u8 = 4;
/// Memory, bus master, no INTx: the guest polls.
const COMMAND_BITS: u32 = 2 | 4 | 1 << 10;
/// Where memory of devices is placed, from here upwards.
const WINDOW: u32 = 0xd000_0000;
const MULTIFUNCTION: u32 = 1 << 23;

/// A function on bus 0.
#[derive(Clone, Copy)]
pub struct Function {
    address: u32,
    /// Where the next device's memory goes.
    next: u32,
}

impl Function {
    pub fn read(&self, register: u8) -> u32 {
        out32(0xcf8, self.address | u32::from(register & 0xfc));
        in32(0xcfc)
    }

    fn write(&self, register: u8, value: u32) {
        out32(0xcf8, self.address | u32::from(register & 0xfc));
        out32(0xcfc, value);
    }

    pub fn write_word(&self, register: u8, value: u16) {
        out32(0xcf8, self.address | u32::from(register & 0xfc));
        out16(0xcfc + u16::from(register & 2), value);
    }

    pub fn write_byte(&self, register: u8, value: u8) {
        out32(0xcf8, self.address | u32::from(register & 0xfc));
        out8(0xcfc + u16::from(register & 3), value);
    }

    fn byte(&self, register: u8) -> u8 {
        (self.read(register) >> (register % 4 * 8)) as u8
    }

    /// Where a BAR's memory lies; it is placed if it lies nowhere, or beyond what is mapped.
    pub fn memory_of(&mut self, bar: u8) -> Option<u64> {
        let register = 0x10 + bar * 4;
        let value = self.read(register);
        if bar > 5 || value & 1 != 0 {
            return None;
        }
        let is_64_bit = value & 6 == 4;
        let high = if is_64_bit {
            self.read(register + 4)
        } else {
            0
        };
        if value & !15 != 0 && high == 0 {
            return Some(u64::from(value & !15));
        }
        self.write(register, u32::MAX);
        let bytes = !(self.read(register) & !15) + 1;
        let place = self.next.next_multiple_of(bytes.max(4096));
        self.next = place + bytes;
        self.write(register, place);
        if is_64_bit {
            self.write(register + 4, 0);
        }
        Some(u64::from(place))
    }

    /// The parts of a modern virtio device, by its capabilities (virtio 1.2, 4.1.4).
    fn parts(&mut self) -> Option<PciParts> {
        let (mut common, mut notify, mut config, mut multiplier) = (None, None, None, 0);
        let mut at = self.byte(0x34);
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let head = self.read(at);
            if head as u8 == 9 {
                let bar = self.byte(at + 4);
                let offset = self.read(at + 8);
                let place = match head >> 24 {
                    1 => Some(&mut common),
                    2 => {
                        multiplier = self.read(at + 16);
                        Some(&mut notify)
                    }
                    4 => Some(&mut config),
                    _ => None,
                };
                if let Some(place) = place
                    && let Some(memory) = self.memory_of(bar)
                {
                    *place = Some(memory + u64::from(offset));
                }
            }
            at = (head >> 8) as u8;
        }
        Some(PciParts {
            common: common?,
            notify: notify?,
            multiplier,
            config: config?,
        })
    }

    fn device(&mut self) -> Option<Device> {
        let identity = self.read(0);
        if identity & 0xffff != VIRTIO_VENDOR {
            return None;
        }
        let kind = match identity >> 16 {
            // Transitional devices say what they are in the subsystem.
            0x1000..=0x103f => self.read(0x2c) >> 16,
            modern @ 0x1040..=0x107f => modern - 0x1040,
            _ => return None,
        };
        let parts = self.parts()?;
        self.switch_on();
        Some(Device::on_pci(kind, parts))
    }

    /// Lets its memory answer, and lets it be master of the bus.
    pub fn switch_on(&self) {
        self.write(COMMAND, self.read(COMMAND) & 0xffff | COMMAND_BITS);
    }
}

/// Tells of every virtio device on bus 0.
pub fn find(found: &mut dyn FnMut(Device)) {
    each(&mut |function| {
        if let Some(device) = function.device() {
            found(device);
        }
    });
}

/// Looks at every function on bus 0.
pub fn each(look: &mut dyn FnMut(&mut Function)) {
    let mut next = WINDOW;
    for slot in 0..32_u32 {
        let mut functions = 1;
        let mut number = 0;
        while number < functions {
            let address = 1 << 31 | slot << 11 | number << 8;
            let mut function = Function { address, next };
            number += 1;
            if function.read(0) & 0xffff == 0xffff {
                continue;
            }
            if function.read(0x0c) & MULTIFUNCTION != 0 {
                functions = 8;
            }
            look(&mut function);
            next = function.next;
        }
    }
}
