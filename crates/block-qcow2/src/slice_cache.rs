//! The cache of L2 slices: bounded, and aware of what is not written back yet.

use std::collections::HashMap;
use std::ops::Range;

use crate::types::SliceNumber;

/// 64-bit words in 512 bytes.
const SECTOR_WORDS: usize = 64;

/// Which words of a piece of metadata differ from what the file holds.
///
/// `dirty` has changed since the last write began; `writing` is what that write carries. A write
/// that fails gives its range back.
#[derive(Clone, Debug, Default)]
pub(crate) struct DirtyRange {
    dirty: Option<Range<usize>>,
    writing: Option<Range<usize>>,
}

impl DirtyRange {
    pub(crate) fn mark(&mut self, range: Range<usize>) {
        self.dirty = Some(union(self.dirty.take(), range));
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.dirty.is_none() && self.writing.is_none()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.is_some()
    }

    /// The range that a write beginning now has to carry.
    pub(crate) fn begin(&mut self) -> Option<Range<usize>> {
        let range = self.dirty.take()?;
        let range = match self.writing.take() {
            Some(other) => union(Some(other), range),
            None => range,
        };
        self.writing = Some(range.clone());
        Some(range)
    }

    /// The write has ended.
    pub(crate) fn end(&mut self, durable: bool) {
        if let Some(range) = self.writing.take()
            && !durable
        {
            self.mark(range);
        }
    }
}

fn union(a: Option<Range<usize>>, b: Range<usize>) -> Range<usize> {
    match a {
        Some(a) => a.start.min(b.start)..a.end.max(b.end),
        None => b,
    }
}

/// One cached slice: its entries in the machine's byte order.
pub(crate) struct Slice {
    pub(crate) words: Box<[u64]>,
    pub(crate) dirty: DirtyRange,
    used: bool,
}

impl Slice {
    /// The words of entry `index`: the second is zero without extended entries.
    pub(crate) fn entry(&self, index: usize, entry_words: usize) -> (u64, u64) {
        let at = index * entry_words;
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        match entry_words {
            1 => (word(at), 0),
            _ => (word(at), word(at + 1)),
        }
    }

    fn set_entry(&mut self, index: usize, entry_words: usize, entry: (u64, u64)) {
        let at = index * entry_words;
        if let Some(word) = self.words.get_mut(at) {
            *word = entry.0;
        }
        if entry_words == 2
            && let Some(word) = self.words.get_mut(at + 1)
        {
            *word = entry.1;
        }
        self.dirty.mark(at..at + entry_words);
    }
}

/// Slices by number, at most `capacity` while clean ones can be dropped.
pub(crate) struct SliceCache {
    slices: HashMap<SliceNumber, Slice>,
    order: Vec<SliceNumber>,
    hand: usize,
    capacity: usize,
    dirty_count: usize,
}

impl SliceCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            slices: HashMap::new(),
            order: Vec::new(),
            hand: 0,
            capacity: capacity.max(2),
            dirty_count: 0,
        }
    }

    pub(crate) fn get(&mut self, number: SliceNumber) -> Option<&mut Slice> {
        let slice = self.slices.get_mut(&number)?;
        slice.used = true;
        Some(slice)
    }

    pub(crate) fn contains(&self, number: SliceNumber) -> bool {
        self.slices.contains_key(&number)
    }

    /// Whether one more slice fits.
    pub(crate) fn has_room(&self) -> bool {
        self.slices.len() < self.capacity
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many slices have changed since [`SliceCache::begin_write`].
    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty_count
    }

    /// Changes an entry of a slice that is here.
    pub(crate) fn set_entry(
        &mut self,
        number: SliceNumber,
        index: usize,
        entry_words: usize,
        entry: (u64, u64),
    ) {
        if let Some(slice) = self.slices.get_mut(&number) {
            self.dirty_count += usize::from(!slice.dirty.is_dirty());
            slice.set_entry(index, entry_words, entry);
        }
    }

    /// Gives `take` every slice that has changed, with the words that a write now must carry.
    pub(crate) fn begin_write(&mut self, mut take: impl FnMut(SliceNumber, Range<usize>, &[u64])) {
        self.dirty_count = 0;
        for (&number, slice) in &mut self.slices {
            if let Some(range) = slice.dirty.begin() {
                // Whole sectors, so that nothing below has to read before it writes.
                let start = range.start & !(SECTOR_WORDS - 1);
                let end = range
                    .end
                    .next_multiple_of(SECTOR_WORDS)
                    .min(slice.words.len());
                let words = slice.words.get(start..end).unwrap_or_default();
                take(number, start..end, words);
            }
        }
    }

    /// The write of all slices that [`SliceCache::begin_write`] gave out has ended.
    pub(crate) fn end_write(&mut self, durable: bool) {
        for slice in self.slices.values_mut() {
            slice.dirty.end(durable);
            self.dirty_count += usize::from(!durable && slice.dirty.is_dirty());
        }
    }

    /// Drops one clean slice that was not used lately. `false` when all are dirty.
    pub(crate) fn evict_one(&mut self) -> bool {
        for _ in 0..self.order.len() * 2 {
            if self.hand >= self.order.len() {
                self.hand = 0;
            }
            let Some(&number) = self.order.get(self.hand) else {
                return false;
            };
            let Some(slice) = self.slices.get_mut(&number) else {
                self.order.swap_remove(self.hand);
                continue;
            };
            if slice.dirty.is_clean() && !slice.used {
                self.slices.remove(&number);
                self.order.swap_remove(self.hand);
                return true;
            }
            slice.used = false;
            self.hand += 1;
        }
        false
    }

    pub(crate) fn insert(&mut self, number: SliceNumber, words: Box<[u64]>) {
        let slice = Slice {
            words,
            dirty: DirtyRange::default(),
            used: true,
        };
        if self.slices.insert(number, slice).is_none() {
            self.order.push(number);
        }
    }

    /// Forgets a slice, written or not.
    pub(crate) fn remove(&mut self, number: SliceNumber) {
        self.slices.remove(&number);
        self.order.retain(|&known| known != number);
    }

    /// Drops all clean slices that were not used since the last call.
    pub(crate) fn drop_unused(&mut self) {
        self.slices
            .retain(|_, slice| std::mem::take(&mut slice.used) || !slice.dirty.is_clean());
        let slices = &self.slices;
        self.order.retain(|number| slices.contains_key(number));
        self.hand = 0;
    }
}
