//! fw_cfg: how a board hands data to its firmware (QEMU's `docs/specs/fw_cfg.rst`).
//!
//! | range | ports | memory |
//! |---|---|---|
//! | selector, 16 bits, write only | 0x510, little-endian | base + 8, big-endian |
//! | data | 0x511, a byte | base, 1 to 8 bytes, in the order of addresses |
//! | DMA address, 64 bits, big-endian | 0x514 | base + 16 |
//!
//! Items 0x00 (signature), 0x01 (features) and 0x19 (directory of files) are there from the start; files get keys from 0x20
//! on, in the order in which they are added, and stand in the directory sorted by name. Writes go only through DMA and only
//! to items that were added as writable.

mod items;

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{Device, DmaSpace, Error, IoParts, ResetKind, SavedState, Width, read_bytes};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use items::Items;
pub use items::{FwCfgSink, FwCfgSource, Item};

const NAME: &str = "fw_cfg";
const VERSION: u32 = 1;
/// Bits of a selector that name the item; bit 14 asks for writing and names nothing.
const KEY_MASK: u16 = 0xbfff;
/// What the DMA address reads as: "QEMU CFG".
const DMA_MARK: [u8; 8] = *b"QEMU CFG";
const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;
/// Bytes moved to guest memory at a time.
const CHUNK_BYTES: usize = 4096;

/// The ranges of a [`FwCfg`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FwCfgPart {
    /// 0x510, two ports: selector and data.
    Ports,
    /// 0x514, eight ports: the DMA address.
    DmaPorts,
    /// 24 bytes of memory: data, selector, DMA address.
    Memory,
}

struct Access {
    items: Items,
    selector: u16,
    offset: u32,
    /// The selected item's bytes, as they were when it was selected.
    content: Arc<[u8]>,
    dma_high: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FwCfgState {
    selector: u16,
    offset: u32,
    dma_high: u32,
    /// The writable items' bytes, by key.
    written: BTreeMap<u16, Vec<u8>>,
}

/// A write that a guest has made, for the item's sink.
struct Written {
    sink: Arc<dyn FwCfgSink>,
    bytes: Arc<[u8]>,
}

impl Access {
    fn select(&mut self, selector: u16) {
        self.selector = selector;
        self.offset = 0;
        self.content = self.items.content(selector & KEY_MASK);
    }

    /// The next byte; zero beyond the end.
    fn next(&mut self) -> u8 {
        let at = usize::try_from(self.offset).unwrap_or(usize::MAX);
        self.content.get(at).map_or(0, |byte| {
            self.offset = self.offset.saturating_add(1);
            *byte
        })
    }

    fn read_data(&mut self, width: Width) -> u64 {
        read_bytes(0, width, |_| self.next())
    }

    fn dma(&mut self, memory: &dyn DmaSpace, address: u64) -> Option<Written> {
        let mut request = [0; 16];
        memory.read(address, &mut request).ok()?;
        let [c0, c1, c2, c3, l0, l1, l2, l3, target @ ..] = request;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let target = u64::from_be_bytes(target);
        if control & DMA_SELECT != 0 {
            self.select(u16::from_be_bytes([c0, c1]));
        }
        // The outer option is success, the inner one something to be told.
        let done = if control & DMA_READ != 0 {
            self.dma_read(memory, target, length).map(|()| None)
        } else if control & DMA_WRITE != 0 {
            self.dma_write(memory, target, length)
        } else {
            if control & DMA_SKIP != 0 {
                self.offset = self.offset.saturating_add(length);
            }
            Some(None)
        };
        let answer = if done.is_some() { 0 } else { DMA_ERROR };
        // Where the request was read, its answer can be written, or the guest's memory has gone: nobody is there to tell.
        let _ = memory.write(address, &u32::to_be_bytes(answer));
        done.flatten()
    }

    /// Bytes of the item, then zeros.
    fn dma_read(&mut self, memory: &dyn DmaSpace, target: u64, length: u32) -> Option<()> {
        let mut left = usize::try_from(length).ok()?;
        let mut target = target;
        while left > 0 {
            let part = left.min(CHUNK_BYTES);
            let start = usize::try_from(self.offset).ok()?;
            let mut chunk: Vec<u8> = self
                .content
                .iter()
                .skip(start)
                .take(part)
                .copied()
                .collect();
            let from_item = u32::try_from(chunk.len()).ok()?;
            chunk.resize(part, 0);
            memory.write(target, &chunk).ok()?;
            self.offset = self.offset.saturating_add(from_item);
            target = target.checked_add(part as u64)?;
            left -= part;
        }
        Some(())
    }

    /// All or nothing, within the item.
    fn dma_write(
        &mut self,
        memory: &dyn DmaSpace,
        target: u64,
        length: u32,
    ) -> Option<Option<Written>> {
        let end = self.offset.checked_add(length)?;
        let place = usize::try_from(self.offset).ok()?..usize::try_from(end).ok()?;
        let key = self.selector & KEY_MASK;
        if place.end > self.items.writable_length(key)? {
            return None;
        }
        let mut new = vec![0; place.len()];
        memory.read(target, &mut new).ok()?;
        let sink = self.items.overwrite(key, place, &new);
        self.offset = end;
        self.content = self.items.content(key);
        let bytes = self.content.clone();
        Some(sink.map(|sink| Written { sink, bytes }))
    }
}

/// The device.
pub struct FwCfg {
    memory: Arc<dyn DmaSpace>,
    access: Mutex<Access>,
}

impl FwCfg {
    /// A device without files, whose DMA goes to this memory.
    pub fn new(memory: Arc<dyn DmaSpace>) -> Arc<FwCfg> {
        let items = Items::new();
        let content = items.content(0);
        Arc::new(FwCfg {
            memory,
            access: Mutex::new(Access {
                items,
                selector: 0,
                offset: 0,
                content,
                dma_high: 0,
            }),
        })
    }

    /// Adds or replaces the item with this key (bit 14 is ignored), as boards do for the numbered items.
    pub fn set_item(&self, key: u16, item: Item) {
        self.access.lock().items.set(key & KEY_MASK, item);
    }

    /// Adds a file, or replaces the one with this name; gives its key.
    ///
    /// # Errors
    /// [`crate::Error::FileName`] or [`crate::Error::TooManyFiles`].
    pub fn add_file(&self, name: &str, item: Item) -> Result<u16, crate::Error> {
        self.access.lock().items.add_file(name, item)
    }

    /// The names of all files, with their keys.
    pub fn files(&self) -> Vec<(String, u16)> {
        self.access.lock().items.files()
    }

    /// The bytes of an item now, if it is there.
    pub fn content(&self, key: u16) -> Arc<[u8]> {
        self.access.lock().items.content(key & KEY_MASK)
    }

    fn write_dma(&self, offset: u64, width: Width, value: u64) {
        let mut access = self.access.lock();
        let high = |access: &Access| u64::from(access.dma_high) << 32;
        let address = match (offset, width) {
            (0, Width::Qword) => value.swap_bytes(),
            (0, Width::Dword) => {
                access.dma_high = u32::try_from(value & 0xffff_ffff).unwrap_or(0).swap_bytes();
                return;
            }
            (4, Width::Dword) => {
                let low = u32::try_from(value & 0xffff_ffff).unwrap_or(0).swap_bytes();
                high(&access) | u64::from(low)
            }
            _ => return,
        };
        access.dma_high = 0;
        let written = access.dma(self.memory.as_ref(), address);
        drop(access);
        if let Some(written) = written {
            written.sink.written(&written.bytes);
        }
    }
}

fn read_mark(offset: u64, width: Width) -> u64 {
    read_bytes(offset, width, |at| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        DMA_MARK.get(at).copied().unwrap_or(0)
    })
}

impl IoParts for FwCfg {
    type Part = FwCfgPart;

    fn read_part(&self, part: FwCfgPart, offset: u64, width: Width) -> u64 {
        match (part, offset) {
            (FwCfgPart::Ports, 1) => {
                // One byte per access, however wide it is.
                u64::from(self.access.lock().next())
            }
            (FwCfgPart::DmaPorts, _) => read_mark(offset, width),
            (FwCfgPart::Memory, 0) => self.access.lock().read_data(width),
            (FwCfgPart::Memory, 16..24) => read_mark(offset - 16, width),
            _ => 0,
        }
    }

    fn write_part(&self, part: FwCfgPart, offset: u64, width: Width, value: u64) {
        let selector = u16::try_from(value & 0xffff).unwrap_or(0);
        match (part, offset, width) {
            (FwCfgPart::Ports, 0, Width::Word) => self.access.lock().select(selector),
            (FwCfgPart::Memory, 8, Width::Word) => {
                self.access.lock().select(selector.swap_bytes());
            }
            (FwCfgPart::DmaPorts, ..) => self.write_dma(offset, width, value),
            (FwCfgPart::Memory, 16..24, _) => self.write_dma(offset - 16, width, value),
            // Writes to the data register have had no effect since QEMU 2.4.
            _ => {}
        }
    }
}

impl Device for FwCfg {
    fn reset(&self, _kind: ResetKind) {
        let mut access = self.access.lock();
        access.dma_high = 0;
        access.items.reset();
        access.select(0);
    }

    fn save(&self) -> Result<SavedState, Error> {
        let access = self.access.lock();
        let state = FwCfgState {
            selector: access.selector,
            offset: access.offset,
            dma_high: access.dma_high,
            written: access.items.written(),
        };
        SavedState::of(NAME, VERSION, &state)
    }

    fn restore(&self, state: &SavedState) -> Result<(), Error> {
        let new: FwCfgState = state.read(NAME, VERSION)?;
        let mut access = self.access.lock();
        if !access.items.restore(&new.written) {
            return Err(device::Error::bad_state(
                NAME,
                "the writable items are others",
            ));
        }
        access.select(new.selector);
        access.offset = new.offset;
        access.dma_high = new.dma_high;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
