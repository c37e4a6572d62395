//! PVH start info: the command line, the memory map and the ACPI root pointer.

use crate::cpu::{bytes_at, peek};

const USABLE: u32 = 1;
const MAP_ENTRY_BYTES: u64 = 24;
const MIB: u64 = 1 << 20;
/// The longest command line that is looked at.
const MAX_COMMAND_LINE: usize = 4096;

#[derive(Clone, Copy)]
pub struct StartInfo {
    address: u64,
    command_line: &'static str,
}

/// A range of the memory map.
pub struct Range {
    pub start: u64,
    pub bytes: u64,
    pub kind: u32,
}

impl StartInfo {
    pub fn at(address: u64) -> Self {
        let text: u64 = peek(address + 24);
        let length = match text {
            0 => 0,
            text => bytes_at(text, MAX_COMMAND_LINE)
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(0),
        };
        let command_line = core::str::from_utf8(bytes_at(text.max(1), length)).unwrap_or("");
        Self {
            address,
            command_line,
        }
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn command_line(&self) -> &'static str {
        self.command_line
    }

    pub fn has_word(&self, word: &str) -> bool {
        self.command_line
            .split_whitespace()
            .any(|known| known == word)
    }

    pub fn rsdp(&self) -> u64 {
        peek(self.address + 32)
    }

    pub fn memory_map(&self) -> impl Iterator<Item = Range> {
        let map: u64 = peek(self.address + 40);
        let count: u32 = peek(self.address + 48);
        (0..u64::from(count)).map(move |index| {
            let at = map + index * MAP_ENTRY_BYTES;
            Range {
                start: peek(at),
                bytes: peek(at + 8),
                kind: peek(at + 16),
            }
        })
    }

    fn usable(&self) -> impl Iterator<Item = Range> {
        self.memory_map().filter(|range| range.kind == USABLE)
    }

    /// Usable memory, rounded up: what firmware keeps for itself is little.
    pub fn usable_mib(&self) -> u64 {
        self.usable()
            .map(|range| range.bytes)
            .sum::<u64>()
            .div_ceil(MIB)
    }

    /// The end of the usable range in which an address lies.
    pub fn usable_end(&self, address: u64) -> u64 {
        self.usable()
            .find(|range| range.start <= address && address - range.start < range.bytes)
            .map_or(address, |range| range.start + range.bytes)
    }

    /// The addresses in `virtio_mmio.device=SIZE@ADDRESS:IRQ`, as Linux takes them.
    pub fn mmio_devices(&self) -> impl Iterator<Item = u64> {
        self.command_line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("virtio_mmio.device="))
            .filter_map(|value| value.split_once('@')?.1.split(':').next())
            .filter_map(|address| match address.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => address.parse().ok(),
            })
    }
}
