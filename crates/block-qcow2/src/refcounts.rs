//! Refcounts in memory: the refcount table, the cached refcount blocks of every width, and the
//! search for free clusters. What this says is done without waiting; what must be loaded or
//! grown first is told to the caller (`allocate.rs`).

use std::collections::{BTreeSet, HashMap};

use crate::entries::{Fault, Layout};
use crate::slice_cache::DirtyRange;
use crate::types::{HostCluster, HostOffset};

/// Refcount table entries that are written as one (512 bytes).
pub(crate) const TABLE_CHUNK_ENTRIES: usize = 64;

/// A cached refcount block: its bytes as in the file.
pub(crate) struct Block {
    pub(crate) bytes: Box<[u8]>,
    pub(crate) dirty: DirtyRange,
    used: bool,
}

/// The refcount table, the cached blocks, and where to look for free clusters first.
pub(crate) struct Refcounts {
    layout: Layout,
    /// The refcount table as in the file.
    pub(crate) table: Vec<u64>,
    /// Where the table is.
    pub(crate) table_at: HostOffset,
    /// Parts of the table that the file does not hold yet.
    pub(crate) dirty_table: BTreeSet<usize>,
    blocks: HashMap<usize, Block>,
    /// No cluster below this one is free.
    hint: u64,
    /// Nothing below this may be allocated, whatever the refcounts say (during repair).
    floor: u64,
}

/// Where the search for free clusters ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// These are ours now: their refcounts are one.
    Run { first: HostCluster, count: u64 },
    /// The refcount block with this index must be loaded first.
    Load(usize),
    /// A refcount block for this cluster must be made first; the cluster is where it goes.
    NeedBlock(HostCluster),
    /// The refcount table must grow first, so as to describe this cluster.
    NeedTable(HostCluster),
    /// The refcount table has an entry that makes no sense.
    Wrong(usize, Fault),
}

/// What is known about one refcount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Count(u64),
    Load(usize),
    NoBlock,
    Wrong(usize, Fault),
}

impl Refcounts {
    pub(crate) fn new(layout: Layout, table: Vec<u64>, table_at: HostOffset) -> Self {
        Self {
            layout,
            table,
            table_at,
            dirty_table: BTreeSet::new(),
            blocks: HashMap::new(),
            hint: 0,
            floor: 0,
        }
    }

    /// Nothing below cluster `floor` is to be allocated from now on.
    pub(crate) fn set_floor(&mut self, floor: u64) {
        self.floor = floor;
        self.hint = 0;
    }

    /// The index of the block that counts a cluster.
    pub(crate) fn block_index(&self, cluster: HostCluster) -> usize {
        usize::try_from(cluster.0 >> self.layout.geometry.block_bits()).unwrap_or(usize::MAX)
    }

    fn in_block(&self, cluster: HostCluster) -> u64 {
        cluster.0 & ((1 << self.layout.geometry.block_bits()) - 1)
    }

    /// Where the block with this index is in the file.
    pub(crate) fn block_place(&self, index: usize) -> Result<Option<HostOffset>, Fault> {
        match self.table.get(index) {
            Some(&entry) => self.layout.refcount_table_entry(entry),
            None => Ok(None),
        }
    }

    pub(crate) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn insert_block(&mut self, index: usize, bytes: Box<[u8]>) {
        self.blocks.entry(index).or_insert(Block {
            bytes,
            dirty: DirtyRange::default(),
            used: true,
        });
    }

    /// Makes a block of zeroes for `cluster`, which becomes the block's own place.
    pub(crate) fn make_block(&mut self, cluster: HostCluster) {
        let index = self.block_index(cluster);
        self.make_block_at(index, self.layout.geometry.host_offset(cluster));
        self.set(cluster, 1);
    }

    /// Makes a block of zeroes with this index at `place`, whose own count is another's matter.
    pub(crate) fn make_block_at(&mut self, index: usize, place: HostOffset) {
        let len = self.layout.geometry.cluster_len();
        let mut dirty = DirtyRange::default();
        dirty.mark(0..len);
        let block = Block {
            bytes: vec![0; len].into_boxed_slice(),
            dirty,
            used: true,
        };
        self.blocks.insert(index, block);
        self.set_table_entry(index, place);
    }

    /// Points a table entry at a block.
    pub(crate) fn set_table_entry(&mut self, index: usize, place: HostOffset) {
        if let Some(entry) = self.table.get_mut(index) {
            *entry = place.0;
            self.dirty_table.insert(index / TABLE_CHUNK_ENTRIES);
        }
    }

    /// A refcount, as far as it is known without loading.
    pub(crate) fn get(&mut self, cluster: HostCluster) -> Known {
        let index = self.block_index(cluster);
        let at = self.in_block(cluster);
        if let Some(block) = self.blocks.get_mut(&index) {
            block.used = true;
            let order = self.layout.geometry.refcount_order;
            return Known::Count(read_count(&block.bytes, at, order));
        }
        match self.block_place(index) {
            Ok(Some(_)) => Known::Load(index),
            Ok(None) => Known::NoBlock,
            Err(fault) => Known::Wrong(index, fault),
        }
    }

    /// Sets a refcount whose block is loaded.
    pub(crate) fn set(&mut self, cluster: HostCluster, count: u64) {
        let index = self.block_index(cluster);
        let at = self.in_block(cluster);
        let order = self.layout.geometry.refcount_order;
        if let Some(block) = self.blocks.get_mut(&index) {
            let byte = write_count(&mut block.bytes, at, order, count);
            block.dirty.mark(byte);
        }
        if count == 0 {
            self.hint = self.hint.min(cluster.0);
        }
    }

    /// Takes up to `want` free clusters in a row, at least one; exactly `want` if `exact`.
    ///
    /// Without `exact` the run ends with its refcount block.
    pub(crate) fn allocate(&mut self, want: u64, exact: bool) -> Found {
        let start = self.hint.max(self.floor);
        let mut first = None;
        let mut at = start;
        let mut all_used = start == self.hint;
        loop {
            let cluster = HostCluster(at);
            match self.get(cluster) {
                Known::Count(0) => {
                    all_used = false;
                    let from = *first.get_or_insert(at);
                    if at - from + 1 == want {
                        let gapless = !exact || from == start || want == 1;
                        return self.take(gapless, from, want);
                    }
                }
                Known::Count(_) => {
                    if let (Some(from), false) = (first, exact) {
                        return self.take(true, from, at - from);
                    }
                    first = None;
                    // Remembered at once: the blocks behind may be dropped again for others
                    // before the search comes back here.
                    if all_used {
                        self.hint = at + 1;
                    }
                }
                other => {
                    if let (Some(from), false) = (first, exact) {
                        return self.take(true, from, at - from);
                    }
                    return match other {
                        Known::Load(index) => Found::Load(index),
                        Known::Wrong(index, fault) => Found::Wrong(index, fault),
                        _ if self.block_index(cluster) >= self.table.len() => {
                            Found::NeedTable(cluster)
                        }
                        _ => Found::NeedBlock(cluster),
                    };
                }
            }
            at += 1;
        }
    }

    fn take(&mut self, gapless: bool, first: u64, count: u64) -> Found {
        for cluster in first..first + count {
            self.set(HostCluster(cluster), 1);
        }
        // Before an exact run there may be free clusters that were too few.
        if gapless {
            self.hint = self.hint.max(first + count);
        }
        Found::Run {
            first: HostCluster(first),
            count,
        }
    }

    /// A block to drop for another: clean, or to be written first. Not the ones used lately.
    pub(crate) fn victim(&mut self) -> Option<(usize, bool)> {
        for _ in 0..2 {
            let found = self
                .blocks
                .iter()
                .find(|(_, block)| !block.used)
                .map(|(&index, block)| (index, block.dirty.is_clean()));
            if found.is_some() {
                return found;
            }
            for block in self.blocks.values_mut() {
                block.used = false;
            }
        }
        None
    }

    /// Drops a block if it is clean.
    pub(crate) fn drop_block(&mut self, index: usize) {
        if self.blocks.get(&index).is_some_and(|b| b.dirty.is_clean()) {
            self.blocks.remove(&index);
        }
    }

    pub(crate) fn block_mut(&mut self, index: usize) -> Option<&mut Block> {
        self.blocks.get_mut(&index)
    }

    /// The indices of all blocks with changes.
    pub(crate) fn dirty_blocks(&self) -> Vec<usize> {
        let mut list: Vec<_> = self
            .blocks
            .iter()
            .filter(|(_, block)| block.dirty.is_dirty())
            .map(|(&index, _)| index)
            .collect();
        list.sort_unstable();
        list
    }

    /// The write of all changed blocks has ended.
    pub(crate) fn end_write(&mut self, durable: bool) {
        for block in self.blocks.values_mut() {
            block.dirty.end(durable);
        }
    }

    /// Drops clean blocks that were not used since the last call.
    pub(crate) fn drop_unused(&mut self) {
        self.blocks
            .retain(|_, block| std::mem::take(&mut block.used) || !block.dirty.is_clean());
    }
}

/// Reads refcount number `at` of a block with `1 << order` bits each.
pub(crate) fn read_count(bytes: &[u8], at: u64, order: u32) -> u64 {
    let at = at as usize;
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = bytes.get(at / per_byte).copied().unwrap_or(0);
        let shift = (at % per_byte) << order;
        let mask = (1u16 << (1 << order)) - 1;
        return u64::from((u16::from(byte) >> shift) & mask);
    }
    let len = 1usize << (order - 3);
    let field = bytes.get(at * len..at * len + len).unwrap_or_default();
    field
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// Writes refcount number `at`; returns the bytes that changed.
pub(crate) fn write_count(
    bytes: &mut [u8],
    at: u64,
    order: u32,
    count: u64,
) -> std::ops::Range<usize> {
    let at = at as usize;
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (at % per_byte) << order;
        let mask = (((1u16 << (1 << order)) - 1) << shift) as u8;
        let index = at / per_byte;
        if let Some(byte) = bytes.get_mut(index) {
            *byte = (*byte & !mask) | (((count as u8) << shift) & mask);
        }
        return index..index + 1;
    }
    let len = 1usize << (order - 3);
    let range = at * len..at * len + len;
    let all = count.to_be_bytes();
    if let (Some(field), Some(low)) = (bytes.get_mut(range.clone()), all.get(8 - len..)) {
        field.copy_from_slice(low);
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Geometry;

    #[test]
    fn every_width_keeps_its_neighbours() {
        for order in 0..=6 {
            let max = if order == 6 {
                u64::MAX
            } else {
                (1u64 << (1 << order)) - 1
            };
            let mut bytes = vec![0; 512];
            let entries = 4096u64 >> order;
            for at in 0..entries {
                write_count(&mut bytes, at, order, at.wrapping_mul(7) & max);
            }
            write_count(&mut bytes, 3, order, max);
            for at in 0..entries {
                let expected = if at == 3 {
                    max
                } else {
                    at.wrapping_mul(7) & max
                };
                assert_eq!(
                    read_count(&bytes, at, order),
                    expected,
                    "order {order} at {at}"
                );
            }
        }
        // Bit 0 is the least significant: entry 1 of a 1-bit block is bit 1 of byte 0.
        let mut bytes = vec![0; 512];
        write_count(&mut bytes, 1, 0, 1);
        assert_eq!(bytes[0], 2);
        write_count(&mut bytes, 5, 4, 0x0102);
        assert_eq!(bytes[10..12], [1, 2]);
    }

    fn refcounts() -> Refcounts {
        let layout = Layout {
            geometry: Geometry::new(9, 4, false, 512),
            version: 3,
            external_data: false,
        };
        let mut refcounts = Refcounts::new(layout, vec![0; 64], HostOffset(512));
        refcounts.make_block(HostCluster(2));
        refcounts.set(HostCluster(0), 1);
        refcounts.set(HostCluster(1), 1);
        refcounts
    }

    #[test]
    fn free_clusters_are_found_lowest_first() {
        let mut refcounts = refcounts();
        let run = |first, count| Found::Run {
            first: HostCluster(first),
            count,
        };
        assert_eq!(refcounts.allocate(3, false), run(3, 3));
        assert_eq!(refcounts.allocate(1, true), run(6, 1));
        refcounts.set(HostCluster(4), 0);
        assert_eq!(refcounts.allocate(5, true), run(7, 5));
        assert_eq!(refcounts.allocate(5, false), run(4, 1));
        assert_eq!(refcounts.allocate(1000, false), run(12, 256 - 12));
        assert_eq!(
            refcounts.allocate(1, false),
            Found::NeedBlock(HostCluster(256))
        );
        refcounts.make_block(HostCluster(256));
        assert_eq!(refcounts.allocate(1, false), run(257, 1));
    }

    #[test]
    fn the_end_of_the_table_is_told() {
        let mut refcounts = refcounts();
        refcounts.floor = 64 * 256;
        assert_eq!(
            refcounts.allocate(1, false),
            Found::NeedTable(HostCluster(64 * 256))
        );
    }
}
