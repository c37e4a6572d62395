//! What firmware does for PCI before an operating system comes: addresses, decoding, interrupt lines.
//!
//! Memory comes from [`MEMORY_START`] on, ports from [`PORTS_START`] on, each range aligned to its size, large ones first.

use std::sync::Arc;

use device::Width;
use device::pci::{PciAddress, PciBus, PciFunction};

use crate::chipset::PIRQ_IRQS;

/// The window of memory-mapped registers, below the interrupt controllers.
pub(crate) const MEMORY_START: u64 = 0xe000_0000;
/// Its end.
pub(crate) const MEMORY_END: u64 = 0xfebf_ffff;
/// The window of ports.
const PORTS_START: u64 = 0xc000;
const PORTS_END: u64 = 0xffff;
const COMMAND: u8 = 0x04;
const FIRST_BAR: u8 = 0x10;
const LAST_BAR: u8 = 0x24;
const INTERRUPT_LINE: u8 = 0x3c;
const INTERRUPT_PIN: u8 = 0x3d;

/// A base address register that wants a place.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    devfn: u8,
    offset: u8,
    length: u64,
    ports: bool,
    wide: bool,
}

fn devfn(address: PciAddress) -> u8 {
    address.slot() << 3 | address.function()
}

fn read(bus: &PciBus, devfn: u8, offset: u8) -> u64 {
    bus.config_read(devfn, offset, Width::Dword)
}

fn write(bus: &PciBus, devfn: u8, offset: u8, value: u64) {
    bus.config_write(devfn, offset, Width::Dword, value & 0xffff_ffff);
}

/// The length of what a register decodes (PCI 3.0, 6.2.5.1); 0 if it is none.
fn length_of(bus: &PciBus, devfn: u8, offset: u8) -> (u64, bool, bool) {
    let old = read(bus, devfn, offset);
    write(bus, devfn, offset, 0xffff_ffff);
    let mask = read(bus, devfn, offset);
    write(bus, devfn, offset, old);
    let ports = mask & 1 != 0;
    let wide = !ports && mask & 6 == 4;
    let bits = if ports {
        mask & 0xfffc
    } else {
        mask & 0xffff_fff0
    };
    (
        if bits == 0 {
            0
        } else {
            bits & bits.wrapping_neg()
        },
        ports,
        wide,
    )
}

fn wanted(bus: &PciBus, devfn: u8) -> Vec<Wanted> {
    let mut found = Vec::new();
    let mut offset = FIRST_BAR;
    while offset <= LAST_BAR {
        let (length, ports, wide) = length_of(bus, devfn, offset);
        if length > 0 {
            found.push(Wanted {
                devfn,
                offset,
                length,
                ports,
                wide,
            });
        }
        offset += if wide { 8 } else { 4 };
    }
    found
}

/// The IRQ of a function's pin, by the rotation of lines and the routing that the board has programmed.
fn irq_of(address: PciAddress, pin: u8) -> Option<u8> {
    let index = usize::from(address.slot()) + usize::from(pin.checked_sub(1)?) + 3;
    PIRQ_IRQS.get(index & 3).copied()
}

/// Gives every function its addresses and lets it decode them.
pub(crate) fn assign(bus: &PciBus) {
    let functions = bus.functions();
    let mut all: Vec<Wanted> = functions
        .iter()
        .flat_map(|(address, _)| wanted(bus, devfn(*address)))
        .collect();
    all.sort_by_key(|wanted| std::cmp::Reverse(wanted.length));
    let (mut memory, mut ports) = (MEMORY_START, PORTS_START);
    for wanted in all {
        place(bus, wanted, &mut memory, &mut ports);
    }
    for (address, function) in &functions {
        enable(bus, *address, function);
    }
}

/// Gives one function that has just come its addresses, behind those that are taken.
///
/// An operating system does this itself; it is for guests that do not.
pub(crate) fn enable(bus: &PciBus, address: PciAddress, _function: &Arc<dyn PciFunction>) {
    let devfn = devfn(address);
    let command = bus.config_read(devfn, COMMAND, Width::Word);
    bus.config_write(devfn, COMMAND, Width::Word, command | 3);
    let pin = bus.config_read(devfn, INTERRUPT_PIN, Width::Byte);
    if let Some(irq) = u8::try_from(pin).ok().and_then(|pin| irq_of(address, pin)) {
        bus.config_write(devfn, INTERRUPT_LINE, Width::Byte, u64::from(irq));
    }
}

fn place(bus: &PciBus, wanted: Wanted, memory: &mut u64, ports: &mut u64) {
    let (next, end) = if wanted.ports {
        (ports, PORTS_END)
    } else {
        (memory, MEMORY_END)
    };
    let start = next.next_multiple_of(wanted.length);
    let Some(last) = start
        .checked_add(wanted.length - 1)
        .filter(|last| *last <= end)
    else {
        tracing::warn!(
            slot = wanted.devfn >> 3,
            length = wanted.length,
            "no room for a base address register; the guest may find some"
        );
        return;
    };
    write(bus, wanted.devfn, wanted.offset, start);
    if wanted.wide {
        write(bus, wanted.devfn, wanted.offset + 4, start >> 32);
    }
    *next = last + 1;
}
