//! The bus master of a channel: moves data between a drive and guest memory by a table of descriptors.
//!
//! | offset | register |
//! |---|---|
//! | 0 | command: start 0, direction 3 (1: to memory) |
//! | 2 | status: active 0, error 1, interrupt 2 (both cleared by ones), drives are capable 5-6 (scratch) |
//! | 4 | address of the table, four bytes |

use device::DmaSpace;
use serde::{Deserialize, Serialize};

const COMMAND_START: u8 = 1;
const COMMAND_TO_MEMORY: u8 = 8;
const STATUS_ACTIVE: u8 = 1;
const STATUS_ERROR: u8 = 2;
const STATUS_INTERRUPT: u8 = 4;
const STATUS_SCRATCH: u8 = 0x60;
const ENTRY_BYTES: u32 = 8;
const END_OF_TABLE: u8 = 0x80;
/// A table lies within 64 KiB.
const MAX_ENTRIES: u32 = 0x1_0000 / ENTRY_BYTES;

/// Where in its table a transfer is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cursor {
    /// The next entry.
    entry: u32,
    /// Entries read so far.
    entries: u32,
    address: u32,
    left: u32,
    is_last: bool,
}

/// How a transfer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// All of it.
    All,
    /// The table ended before.
    Short,
    /// A descriptor, or what it names, is not memory.
    Failed,
}

impl Cursor {
    /// The next piece of memory, of at most `wanted` bytes; `None` at the end of the table.
    fn piece(
        &mut self,
        memory: &dyn DmaSpace,
        wanted: usize,
    ) -> Result<Option<(u64, usize)>, device::Error> {
        if self.left == 0 {
            if self.is_last || self.entries >= MAX_ENTRIES {
                return Ok(None);
            }
            let mut entry = [0; ENTRY_BYTES as usize];
            memory.read(u64::from(self.entry), &mut entry)?;
            let [a0, a1, a2, a3, c0, c1, _, flags] = entry;
            self.address = u32::from_le_bytes([a0 & !1, a1, a2, a3]);
            let count = u32::from(u16::from_le_bytes([c0 & !1, c1]));
            self.left = if count == 0 { 0x1_0000 } else { count };
            self.is_last = flags & END_OF_TABLE != 0;
            self.entry = self.entry.wrapping_add(ENTRY_BYTES);
            self.entries += 1;
        }
        let length = self.left.min(u32::try_from(wanted).unwrap_or(u32::MAX));
        let at = u64::from(self.address);
        self.address = self.address.wrapping_add(length);
        self.left -= length;
        Ok(Some((at, usize::try_from(length).unwrap_or(0))))
    }

    /// Copies to guest memory.
    pub(crate) fn put(&mut self, memory: &dyn DmaSpace, mut bytes: &[u8]) -> Moved {
        while !bytes.is_empty() {
            match self.piece(memory, bytes.len()) {
                Ok(Some((at, length))) => {
                    let Some((here, rest)) = bytes.split_at_checked(length) else {
                        return Moved::Failed;
                    };
                    if memory.write(at, here).is_err() {
                        return Moved::Failed;
                    }
                    bytes = rest;
                }
                Ok(None) => return Moved::Short,
                Err(_) => return Moved::Failed,
            }
        }
        Moved::All
    }

    /// Copies from guest memory.
    pub(crate) fn take(&mut self, memory: &dyn DmaSpace, mut bytes: &mut [u8]) -> Moved {
        while !bytes.is_empty() {
            match self.piece(memory, bytes.len()) {
                Ok(Some((at, length))) => {
                    let Some((here, rest)) = bytes.split_at_mut_checked(length) else {
                        return Moved::Failed;
                    };
                    if memory.read(at, here).is_err() {
                        return Moved::Failed;
                    }
                    bytes = rest;
                }
                Ok(None) => return Moved::Short,
                Err(_) => return Moved::Failed,
            }
        }
        Moved::All
    }

    fn is_at_end(&self) -> bool {
        self.left == 0 && self.is_last
    }
}

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
    cursor: Cursor,
}

impl BusMaster {
    pub(crate) fn read(&self, offset: u64) -> u8 {
        match offset {
            0 => self.command,
            2 => self.status,
            4..=7 => {
                let at = usize::try_from(offset - 4).unwrap_or(0);
                self.table.to_le_bytes().get(at).copied().unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Writes a byte.
    pub(crate) fn write(&mut self, offset: u64, byte: u8) {
        match offset {
            0 => {
                let was = self.command & COMMAND_START != 0;
                let is = byte & COMMAND_START != 0;
                self.command = byte & (COMMAND_START | COMMAND_TO_MEMORY);
                if is && !was {
                    self.status |= STATUS_ACTIVE;
                    self.cursor = Cursor {
                        entry: self.table,
                        ..Cursor::default()
                    };
                } else if !is {
                    self.status &= !STATUS_ACTIVE;
                }
            }
            2 => {
                let cleared = byte & (STATUS_ERROR | STATUS_INTERRUPT);
                self.status = self.status & !cleared & !STATUS_SCRATCH | byte & STATUS_SCRATCH;
            }
            4..=7 => {
                let mut bytes = self.table.to_le_bytes();
                let at = usize::try_from(offset - 4).unwrap_or(0);
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
    }

    /// Whether a transfer may go on.
    pub(crate) fn is_started(&self) -> bool {
        self.command & COMMAND_START != 0 && self.status & STATUS_ACTIVE != 0
    }

    /// Whether it moves in this direction.
    pub(crate) fn is_to_memory(&self) -> bool {
        self.command & COMMAND_TO_MEMORY != 0
    }

    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor.clone()
    }

    pub(crate) fn set_cursor(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }

    /// The drive interrupts.
    pub(crate) fn interrupt(&mut self) {
        self.status |= STATUS_INTERRUPT;
    }

    /// The transfer has ended; with a table of the same length the bus master rests, too.
    pub(crate) fn finish(&mut self) {
        if self.cursor.is_at_end() {
            self.status &= !STATUS_ACTIVE;
        }
    }

    /// The transfer cannot go on.
    pub(crate) fn stop(&mut self, is_error: bool) {
        self.status &= !STATUS_ACTIVE;
        if is_error {
            self.status |= STATUS_ERROR;
        }
    }
}

#[cfg(test)]
mod tests {
    use device::doubles::SmallMemory;

    use super::*;

    fn master(memory: &SmallMemory, entries: &[(u32, u16, u8)]) -> BusMaster {
        for (index, (address, count, flags)) in (0..).zip(entries) {
            let at = 0x100 + index * 8;
            memory.write(at, &address.to_le_bytes()).unwrap();
            memory.write(at + 4, &count.to_le_bytes()).unwrap();
            memory.write(at + 6, &[0, *flags]).unwrap();
        }
        let mut master = BusMaster::default();
        for (offset, byte) in (4..).zip(0x100_u32.to_le_bytes()) {
            master.write(offset, byte);
        }
        master.write(0, COMMAND_START | COMMAND_TO_MEMORY);
        master
    }

    #[test]
    fn data_is_scattered_and_gathered() {
        let memory = SmallMemory::new(0x1000);
        let mut master = master(&memory, &[(0x800, 4, 0), (0x900, 6, 0x80)]);
        assert!(master.is_started() && master.is_to_memory());
        let mut cursor = master.cursor();
        assert_eq!(cursor.put(&memory, &[1, 2, 3]), Moved::All);
        assert_eq!(cursor.put(&memory, &[4, 5, 6, 7, 8, 9, 10]), Moved::All);
        let mut back = [0; 6];
        memory.read(0x900, &mut back).unwrap();
        assert_eq!(back, [5, 6, 7, 8, 9, 10]);
        let mut again = master.cursor();
        let mut all = [0; 10];
        assert_eq!(again.take(&memory, &mut all), Moved::All);
        assert_eq!(all, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        master.set_cursor(cursor);
        master.finish();
        assert!(!master.is_started());
    }

    #[test]
    fn tables_that_do_not_fit() {
        let memory = SmallMemory::new(0x1000);
        let short = master(&memory, &[(0x800, 4, 0x80)]);
        assert_eq!(short.cursor().put(&memory, &[0; 5]), Moved::Short);
        // No bytes named are 64 KiB, more than there is.
        let wild = master(&memory, &[(0x800, 0, 0x80)]);
        assert_eq!(wild.cursor().put(&memory, &[0; 0x801]), Moved::Failed);
        let mut nowhere = master(&memory, &[]);
        nowhere.write(0, 0);
        nowhere.write(7, 0xff);
        nowhere.write(0, COMMAND_START);
        assert_eq!(nowhere.cursor().put(&memory, &[0; 5]), Moved::Failed);
    }

    #[test]
    fn an_endless_table_ends() {
        // All of memory is one table of entries of two bytes each.
        let memory = SmallMemory::new(0x2_0000);
        for entry in 0..0x4000_u64 {
            memory.write(entry * 8, &[0, 0, 0, 0, 2, 0, 0, 0]).unwrap();
        }
        let mut cursor = Cursor::default();
        let mut bytes = vec![0; 0x1_0000];
        assert_eq!(cursor.take(&memory, &mut bytes), Moved::Short);
        assert_eq!(cursor.entries, MAX_ENTRIES);
    }

    #[test]
    fn status_bits_are_cleared_by_ones() {
        let mut master = BusMaster::default();
        master.interrupt();
        master.stop(true);
        master.write(2, 0x60);
        assert_eq!(master.read(2), 0x66);
        master.write(2, 0x04);
        assert_eq!(master.read(2), 0x02);
        master.write(4, 0xff);
        assert_eq!(master.read(4), 0xfc);
    }
}
