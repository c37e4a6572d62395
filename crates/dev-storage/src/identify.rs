//! IDENTIFY DEVICE and IDENTIFY PACKET DEVICE (ATA-6, 8.15 and 8.16).

use crate::drive::{Drive, DriveState, HEADS, MAX_MULTIPLE, SECTORS};

/// The largest number of sectors that 28 bits address.
pub(crate) const MAX_SECTORS_28: u64 = 0x0fff_ffff;
const WORDS: usize = 256;

struct Words([u16; WORDS]);

impl Words {
    fn set(&mut self, index: usize, value: u16) {
        if let Some(place) = self.0.get_mut(index) {
            *place = value;
        }
    }

    /// A number of several words, lowest first.
    fn number(&mut self, index: usize, count: usize, value: u64) {
        for word in 0..count {
            self.set(index + word, (value >> (16 * word) & 0xffff) as u16);
        }
    }

    /// Text, two characters to a word, the first in its high byte, filled up with spaces.
    fn text(&mut self, index: usize, count: usize, text: &str) {
        let mut bytes = text
            .bytes()
            .filter(|byte| (0x20..0x7f).contains(byte))
            .chain(std::iter::repeat(b' '));
        for word in 0..count {
            let pair = [(); 2].map(|()| bytes.next().unwrap_or(b' '));
            self.set(index + word, u16::from_be_bytes(pair));
        }
    }

    /// As bytes, with the checksum.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        if let [all @ .., signature, sum] = bytes.as_mut_slice() {
            *signature = 0xa5;
            let total = all
                .iter()
                .fold(0xa5_u8, |sum, byte| sum.wrapping_add(*byte));
            *sum = total.wrapping_neg();
        }
        bytes
    }
}

/// Cylinders of a disk that has this many sectors, in the default geometry.
pub(crate) fn cylinders(sectors: u64) -> u16 {
    let track = u64::from(HEADS) * u64::from(SECTORS);
    u16::try_from((sectors / track).clamp(1, 16383)).unwrap_or(16383)
}

/// What disks and CD-ROMs have in common: names, transfer modes, versions.
fn begin(drive: &Drive, state: &DriveState) -> Words {
    let mut words = Words([0; WORDS]);
    words.text(10, 10, &drive.options.serial);
    words.text(23, 4, &drive.options.version);
    words.text(27, 20, &drive.options.model);
    // Words of 32 bits; LBA, DMA and IORDY.
    words.set(48, 1);
    words.set(49, 1 << 11 | 1 << 9 | 1 << 8);
    let selected = |first: u8| match state.transfer_mode {
        mode if mode & 0xf8 == first => 1_u16.checked_shl(u32::from(8 + (mode & 7))).unwrap_or(0),
        _ => 0,
    };
    words.set(53, 7);
    words.set(63, 7 | selected(0x20));
    words.set(64, 3);
    for cycle in 65..=68 {
        words.set(cycle, 120);
    }
    // ATA/ATAPI-4 to 6.
    words.set(80, 0x70);
    words.set(88, 0x3f | selected(0x40));
    // A cable of 80 wires; the reset went well.
    words.set(93, 1 << 14 | 1 << 13 | 1);
    words
}

/// What a disk says.
pub(crate) fn disk(drive: &Drive, state: &DriveState) -> Vec<u8> {
    let mut words = begin(drive, state);
    let sectors = drive.sectors();
    words.set(0, 0x0040);
    words.set(1, cylinders(sectors));
    words.set(3, u16::from(HEADS));
    words.set(6, u16::from(SECTORS));
    words.set(47, 0x8000 | u16::from(MAX_MULTIPLE));
    words.set(50, 1 << 14);
    let track = u64::from(state.heads) * u64::from(state.sectors);
    let now = (sectors / track.max(1)).clamp(1, 0xffff);
    words.number(54, 1, now);
    words.set(55, u16::from(state.heads));
    words.set(56, u16::from(state.sectors));
    words.number(57, 2, now * track);
    let multiple = match state.multiple {
        0 => 0,
        count => 0x100 | u16::from(count),
    };
    words.set(59, multiple);
    words.number(60, 2, sectors.min(MAX_SECTORS_28));
    // Power management, write cache, read ahead; 48 bits, FLUSH CACHE and its EXT; writes with FUA.
    let cache = u16::from(state.write_cache) << 5;
    words.set(82, 1 << 6 | 1 << 5 | 1 << 3);
    words.set(83, 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10);
    words.set(84, 1 << 14 | 1 << 6);
    words.set(85, 1 << 6 | 1 << 3 | cache);
    words.set(86, 1 << 13 | 1 << 12 | 1 << 10);
    words.set(87, 1 << 14 | 1 << 6);
    words.number(100, 4, sectors);
    words.bytes()
}

/// What a CD-ROM says.
pub(crate) fn cdrom(drive: &Drive, state: &DriveState) -> Vec<u8> {
    let mut words = begin(drive, state);
    // ATAPI, CD-ROM, removable, asks for the packet at once, packets of 12 bytes.
    words.set(0, 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5);
    // DEVICE RESET, PACKET, power management.
    words.set(82, 1 << 9 | 1 << 4 | 1 << 3);
    words.set(83, 1 << 14);
    words.set(84, 1 << 14);
    words.set(85, 1 << 9 | 1 << 4 | 1 << 3);
    words.set(87, 1 << 14);
    words.bytes()
}
