//! What can be selected: items by key, and the directory of files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

const SIGNATURE: u16 = 0x00;
const FEATURES: u16 = 0x01;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// The first key that is no generic item.
const BEYOND_FILES: u16 = 0x4000;
/// Bytes of a name in the directory, with the zero at its end.
const NAME_BYTES: usize = 56;
/// Traditional interface and DMA.
const FEATURE_BITS: u32 = 3;

/// Gives an item's bytes when a guest selects it.
pub trait FwCfgSource: Send + Sync {
    /// The bytes at this moment. Called with the device's lock held: it does not call the device.
    fn content(&self) -> Vec<u8>;
}

/// Hears what a guest writes.
pub trait FwCfgSink: Send + Sync {
    /// The item has these bytes now. Called without the device's lock.
    fn written(&self, bytes: &[u8]);
}

/// An item.
#[derive(Clone)]
pub enum Item {
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// Bytes that are made when a guest selects the item.
    Computed(Arc<dyn FwCfgSource>),
    /// Bytes that a guest may overwrite; a reset brings these back.
    Writable {
        /// The bytes at first; their number never changes.
        initial: Vec<u8>,
        /// Hears of writes.
        sink: Option<Arc<dyn FwCfgSink>>,
    },
}

struct Entry {
    item: Item,
    /// What a writable item has now.
    now: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Items {
    entries: BTreeMap<u16, Entry>,
    /// Keys by name.
    files: BTreeMap<String, u16>,
}

impl Items {
    pub(super) fn new() -> Items {
        let mut items = Items::default();
        items.set(SIGNATURE, Item::Bytes(Arc::from(*b"QEMU")));
        items.set(FEATURES, Item::Bytes(Arc::from(FEATURE_BITS.to_le_bytes())));
        items
    }

    pub(super) fn set(&mut self, key: u16, item: Item) {
        let now = match &item {
            Item::Writable { initial, .. } => initial.clone(),
            Item::Bytes(_) | Item::Computed(_) => Vec::new(),
        };
        self.entries.insert(key, Entry { item, now });
    }

    pub(super) fn add_file(&mut self, name: &str, item: Item) -> Result<u16, crate::Error> {
        if name.is_empty() || name.len() >= NAME_BYTES || !name.is_ascii() || name.contains('\0') {
            return Err(crate::Error::FileName {
                name: name.to_owned(),
            });
        }
        let key = match self.files.get(name) {
            Some(key) => *key,
            None => {
                let taken = u16::try_from(self.files.len()).unwrap_or(u16::MAX);
                FIRST_FILE
                    .checked_add(taken)
                    .filter(|key| *key < BEYOND_FILES)
                    .ok_or(crate::Error::TooManyFiles)?
            }
        };
        self.files.insert(name.to_owned(), key);
        self.set(key, item);
        Ok(key)
    }

    pub(super) fn files(&self) -> Vec<(String, u16)> {
        let files = self.files.iter();
        files.map(|(name, key)| (name.clone(), *key)).collect()
    }

    /// An item that is not there is empty.
    pub(super) fn content(&self, key: u16) -> Arc<[u8]> {
        if key == DIRECTORY {
            return self.directory();
        }
        match self.entries.get(&key) {
            None => Arc::from([]),
            Some(entry) => match &entry.item {
                Item::Bytes(bytes) => bytes.clone(),
                Item::Computed(source) => Arc::from(source.content()),
                Item::Writable { .. } => Arc::from(entry.now.as_slice()),
            },
        }
    }

    /// How many bytes a writable item has; `None` if it is not one.
    pub(super) fn writable_length(&self, key: u16) -> Option<usize> {
        let entry = self.entries.get(&key)?;
        matches!(entry.item, Item::Writable { .. }).then_some(entry.now.len())
    }

    /// Overwrites bytes of a writable item, whose sink is to hear of it.
    pub(super) fn overwrite(
        &mut self,
        key: u16,
        place: Range<usize>,
        new: &[u8],
    ) -> Option<Arc<dyn FwCfgSink>> {
        let entry = self.entries.get_mut(&key)?;
        let Item::Writable { sink, .. } = &entry.item else {
            return None;
        };
        for (old, new) in entry.now.get_mut(place)?.iter_mut().zip(new) {
            *old = *new;
        }
        sink.clone()
    }

    pub(super) fn written(&self) -> BTreeMap<u16, Vec<u8>> {
        let writable = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.item, Item::Writable { .. }));
        writable
            .map(|(key, entry)| (*key, entry.now.clone()))
            .collect()
    }

    /// Takes over the bytes of writable items; false, and nothing changes, if they are not the same items.
    pub(super) fn restore(&mut self, written: &BTreeMap<u16, Vec<u8>>) -> bool {
        let lengths = |items: &BTreeMap<u16, Vec<u8>>| -> Vec<(u16, usize)> {
            items
                .iter()
                .map(|(key, bytes)| (*key, bytes.len()))
                .collect()
        };
        if lengths(&self.written()) != lengths(written) {
            return false;
        }
        for (key, bytes) in written {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.now.clone_from(bytes);
            }
        }
        true
    }

    pub(super) fn reset(&mut self) {
        for entry in self.entries.values_mut() {
            if let Item::Writable { initial, .. } = &entry.item {
                entry.now.clone_from(initial);
            }
        }
    }

    fn directory(&self) -> Arc<[u8]> {
        let count = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let mut bytes = count.to_be_bytes().to_vec();
        for (name, key) in &self.files {
            let size = u32::try_from(self.content(*key).len()).unwrap_or(u32::MAX);
            bytes.extend(size.to_be_bytes());
            bytes.extend(key.to_be_bytes());
            bytes.extend([0, 0]);
            let mut padded = name.clone().into_bytes();
            padded.resize(NAME_BYTES, 0);
            bytes.extend(padded);
        }
        Arc::from(bytes)
    }
}
