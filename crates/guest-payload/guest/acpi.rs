//! What ACPI tables say about CPUs and power (ACPI 6.3, 5.2).

use crate::cpu::{self, bytes_at, in16, out8, out16, peek, read_register, write_register};
use crate::{entry, interrupts};

const POWER_BUTTON: u16 = 1 << 8;
const WAKE: u16 = 1 << 15;
/// A port that nobody answers at reads as this.
const NOBODY: u16 = 0xffff;
const SCI_ENABLED: u16 = 1;
const SLEEP: u16 = 1 << 13;
/// How long the machine may take to go to sleep.
const PATIENCE_MS: u64 = 1000;
const MAX_CPUS: usize = 64;
const RESET_SUPPORTED: u32 = 1 << 10;
const HARDWARE_REDUCED: u32 = 1 << 20;
/// The name by which a DSDT knows virtio devices in memory, and the descriptor with their place:
/// Memory32Fixed, nine bytes.
const VIRTIO_MMIO: &[u8] = b"LNRO0005";
const MEMORY_32_FIXED: &[u8] = &[0x86, 9, 0];

/// A DSDT's Generic Event Device, its interrupt (an extended descriptor of one), and the region of
/// memory with its register: an operator, a name, "memory", a number of 32 bits.
const GENERIC_EVENTS: &[u8] = b"ACPI0013";
const ONE_INTERRUPT: &[u8] = &[0x89, 6, 0];
const EVENT_REGION: &[u8] = b"\x5b\x80EREG\x00\x0c";
/// The bit of the power button in QEMU's event register. Without an interpreter of AML, the guest
/// does what the device's method does.
const EVENT_POWER_BUTTON: u32 = 1 << 1;

/// Where events are told on a machine with hardware-reduced ACPI.
#[derive(Clone, Copy)]
struct EventRegister {
    address: u64,
    line: u16,
}

pub struct Acpi {
    fadt: u64,
    events: Option<EventRegister>,
    ids: [u32; MAX_CPUS],
    count: usize,
    io_apic: u64,
}

/// A generic address: memory or a port.
fn write_generic(structure: u64, value: u8) {
    let address: u64 = peek(structure + 4);
    match (peek::<u8>(structure), address) {
        (_, 0) => {}
        (0, address) => write_register(address, value),
        (1, port) => out8(port as u16, value),
        _ => {}
    }
}

impl Acpi {
    pub fn find(rsdp: u64) -> Self {
        let mut acpi = Self {
            fadt: 0,
            events: None,
            ids: [0; MAX_CPUS],
            count: 0,
            io_apic: 0xfec0_0000,
        };
        if rsdp != 0 {
            acpi.read_tables(rsdp);
        }
        acpi.count = acpi.count.max(1);
        acpi.events = acpi.find_events();
        acpi
    }

    fn find_events(&self) -> Option<EventRegister> {
        let mut rest = self.dsdt();
        let mut number_behind = |wanted: &[u8], skipped: usize| {
            let at = rest
                .windows(wanted.len())
                .position(|window| window == wanted)?;
            rest = rest.get(at + wanted.len()..)?;
            let number = rest.get(skipped..)?.first_chunk()?;
            Some(u32::from_le_bytes(*number))
        };
        number_behind(GENERIC_EVENTS, 0)?;
        // Flags and the count are between the descriptor's head and its interrupt.
        let line = number_behind(ONE_INTERRUPT, 2)?;
        let address = number_behind(EVENT_REGION, 0)?;
        Some(EventRegister {
            address: address.into(),
            line: line as u16,
        })
    }

    fn read_tables(&mut self, rsdp: u64) {
        let revision: u8 = peek(rsdp + 15);
        let (root, bytes) = match (revision, peek::<u64>(rsdp + 24)) {
            (2.., xsdt) if xsdt != 0 => (xsdt, 8),
            _ => (u64::from(peek::<u32>(rsdp + 16)), 4),
        };
        let end = root + u64::from(peek::<u32>(root + 4));
        let mut at = root + 36;
        while at + bytes <= end {
            let table = if bytes == 8 {
                peek(at)
            } else {
                u64::from(peek::<u32>(at))
            };
            match &peek::<[u8; 4]>(table) {
                b"FACP" => self.fadt = table,
                b"APIC" => self.read_madt(table),
                _ => {}
            }
            at += bytes;
        }
    }

    fn read_madt(&mut self, table: u64) {
        let end = table + u64::from(peek::<u32>(table + 4));
        let mut at = table + 44;
        while at + 2 <= end {
            let (kind, length): (u8, u8) = (peek(at), peek(at + 1));
            let cpu = match kind {
                0 => Some((u32::from(peek::<u8>(at + 3)), peek::<u32>(at + 4))),
                9 => Some((peek::<u32>(at + 4), peek::<u32>(at + 8))),
                _ => None,
            };
            if let Some((id, 1)) = cpu
                && let Some(place) = self.ids.get_mut(self.count)
            {
                *place = id;
                self.count += 1;
            }
            if kind == 1 {
                self.io_apic = u64::from(peek::<u32>(at + 4));
            }
            at += u64::from(length.max(2));
        }
    }

    /// The identities of the local APICs.
    pub fn cpus(&self) -> &[u32] {
        self.ids.get(..self.count).unwrap_or(&[])
    }

    pub fn io_apic(&self) -> u64 {
        self.io_apic
    }

    fn flags(&self) -> u32 {
        peek(self.fadt + 112)
    }

    /// The ports of the PM1 event and control blocks, if there are such.
    fn pm1(&self) -> Option<(u16, u16)> {
        if self.fadt == 0 || self.flags() & HARDWARE_REDUCED != 0 {
            return None;
        }
        let (event, control): (u32, u32) = (peek(self.fadt + 56), peek(self.fadt + 64));
        (event != 0 && control != 0).then_some((event as u16, control as u16))
    }

    /// The line of the interrupt that ACPI's events raise.
    pub fn sci(&self) -> Option<u16> {
        match self.pm1() {
            Some(_) => Some(peek(self.fadt + 46)),
            None => self.events.map(|events| events.line),
        }
    }

    /// Switches ACPI mode and the power button's event on.
    pub fn watch_power_button(&self) {
        let Some((event, control)) = self.pm1() else {
            return;
        };
        let (command, enable): (u32, u8) = (peek(self.fadt + 48), peek(self.fadt + 52));
        if in16(control) & SCI_ENABLED == 0 && command != 0 {
            out8(command as u16, enable);
            while in16(control) & SCI_ENABLED == 0 {
                core::hint::spin_loop();
            }
        }
        out16(event, POWER_BUTTON);
        out16(event + 2, POWER_BUTTON);
    }

    pub fn power_button_pressed(&self) -> bool {
        let Some((event, _)) = self.pm1() else {
            // Reading clears it.
            let happened = self.events.map_or(0, |at| read_register(at.address));
            return happened & EVENT_POWER_BUTTON != 0;
        };
        let status = in16(event);
        let pressed = status & POWER_BUTTON != 0 && status != NOBODY;
        if pressed {
            out16(event, POWER_BUTTON);
        }
        pressed
    }

    pub fn acknowledge_wake(&self) {
        if let Some((event, _)) = self.pm1() {
            out16(event, WAKE);
        }
    }

    fn dsdt(&self) -> &'static [u8] {
        if self.fadt == 0 {
            return &[];
        }
        let table = u64::from(peek::<u32>(self.fadt + 40));
        bytes_at(table, peek::<u32>(table + 4) as usize)
    }

    /// Where virtio devices in memory are.
    pub fn mmio_devices(&self) -> impl Iterator<Item = u64> {
        let mut rest = self.dsdt();
        core::iter::from_fn(move || {
            for wanted in [VIRTIO_MMIO, MEMORY_32_FIXED] {
                let at = rest
                    .windows(wanted.len())
                    .position(|window| window == wanted)?;
                rest = rest.get(at + wanted.len()..)?;
            }
            // A byte says whether it can be written; the address follows.
            let address = rest.get(1..)?.first_chunk()?;
            Some(u32::from_le_bytes(*address).into())
        })
    }

    /// The first value of the package `_Sx_`: the sleep type.
    fn sleep_type(&self, name: &[u8; 4]) -> Option<u8> {
        let code = self.dsdt();
        let at = code.windows(4).position(|window| window == name)?;
        // A name is followed by a package: its operator, a length of 1 to 4 bytes, the count.
        let package = code.get(at + 4..)?;
        let [0x12, lead, ..] = package else {
            return None;
        };
        match package.get(3 + usize::from(lead >> 6)..)? {
            [0x0a, value, ..] => Some(*value),
            [value @ (0 | 1), ..] => Some(*value),
            _ => None,
        }
    }

    fn enter_sleep(&self, kind: u8) {
        if let Some((_, control)) = self.pm1() {
            let value = in16(control) & SCI_ENABLED | u16::from(kind) << 10;
            out16(control, value | SLEEP);
        } else if self.fadt != 0 {
            write_generic(self.fadt + 244, kind << 2 | 0x20);
        }
        // The machine may take a little while.
        interrupts::wait_ms(PATIENCE_MS);
    }

    /// Off. Comes back only where that is not possible.
    pub fn power_off(&self) {
        if self.fadt != 0 {
            self.enter_sleep(self.sleep_type(b"_S5_").unwrap_or(0));
        }
    }

    /// Suspends to memory; the machine wakes in [`crate::wake`]. Comes back only where that is not
    /// possible.
    pub fn suspend(&self, start_info: u64) {
        let kind = (self.fadt != 0).then(|| self.sleep_type(b"_S3_")).flatten();
        let Some(kind) = kind else {
            return;
        };
        let facs = match peek::<u32>(self.fadt + 36) {
            0 => peek::<u64>(self.fadt + 132),
            facs => facs.into(),
        };
        if facs == 0 {
            return;
        }
        let stack = (&raw const entry::main_stack_end) as u64;
        entry::set_trampoline(crate::wake, stack, start_info);
        write_register(facs + 12, entry::TRAMPOLINE as u32);
        self.enter_sleep(kind);
    }

    /// Resets the machine by its reset register, that of a PIIX3, or what else there is.
    pub fn reset(&self) -> ! {
        if self.fadt != 0 && self.flags() & RESET_SUPPORTED != 0 {
            write_generic(self.fadt + 116, peek(self.fadt + 128));
        }
        out8(0xcf9, 2);
        out8(0xcf9, 6);
        interrupts::wait_ms(PATIENCE_MS);
        // The keyboard controller's line, and what no machine survives.
        out8(0x64, 0xfe);
        interrupts::wait_ms(PATIENCE_MS);
        cpu::triple_fault()
    }
}
