//! Finding, giving back and counting host clusters, where that needs loading or growing.

use std::collections::BTreeSet;

use block_graph::{BlockError, BlockOperation};
use host_io::{IoBuf, IoBytes};
use zerocopy::IntoBytes;

use crate::entries::Fault;
use crate::header::field;
use crate::image::{Freed, Image};
use crate::overlap::Structure;
use crate::refcounts::{Found, Known, TABLE_CHUNK_ENTRIES};
use crate::types::{HostCluster, HostOffset, MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES};

/// Host clusters that were taken for a new use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocated {
    pub at: HostOffset,
    pub count: u64,
    /// Whether they lie behind the file's end, so that they hold zeroes.
    pub fresh: bool,
}

impl Image {
    /// Takes up to `want` clusters in a row; exactly `want` if `exact`.
    ///
    /// # Errors
    /// The host's; out of space at the format's limits; a corrupt refcount structure.
    pub(crate) async fn allocate(
        &self,
        operation: BlockOperation,
        want: u64,
        exact: bool,
    ) -> Result<Allocated, BlockError> {
        // With lazy refcounts the image is marked in commit(), before anything refers to these.
        let found = self.meta.lock().refcounts.allocate(want, exact);
        if let Found::Run { first, count } = found {
            return self.allocated(operation, first, count).await;
        }
        let _turn = self.alloc_lock.lock(0, 1).await;
        loop {
            let found = self.meta.lock().refcounts.allocate(want, exact);
            match found {
                Found::Run { first, count } => {
                    return self.allocated(operation, first, count).await;
                }
                Found::Load(index) => self.load_block(operation, index, !exact).await?,
                Found::NeedBlock(cluster) => self.make_block(operation, cluster).await?,
                Found::NeedTable(cluster) => self.grow_table(operation, cluster).await?,
                Found::Wrong(index, fault) => {
                    return Err(self.block_fault(operation, index, fault).await);
                }
            }
        }
    }

    async fn allocated(
        &self,
        operation: BlockOperation,
        first: HostCluster,
        count: u64,
    ) -> Result<Allocated, BlockError> {
        let geometry = &self.layout.geometry;
        let at = geometry.host_offset(first);
        let bytes = count << geometry.cluster_bits;
        if at.0.saturating_add(bytes) > MAX_HOST_OFFSET {
            return Err(BlockError::no_space(
                operation,
                "the image file would grow beyond the format's limit",
            ));
        }
        self.check_overlap(operation, at, bytes).await?;
        Ok(Allocated {
            at,
            count,
            fresh: at.0 >= self.file.node().length(),
        })
    }

    async fn block_fault(
        &self,
        operation: BlockOperation,
        index: usize,
        fault: Fault,
    ) -> BlockError {
        let message = match fault {
            Fault::Unaligned(at) => format!(
                "Refblock offset {:#x} unaligned (reftable index: {index:#x})",
                at.0
            ),
            _ => format!("Refcount table entry {index:#x} has reserved bits set"),
        };
        self.corrupt(operation, message, None).await
    }

    /// Brings a refcount block into the cache. The caller holds `alloc_lock`.
    async fn load_block(
        &self,
        operation: BlockOperation,
        index: usize,
        evict: bool,
    ) -> Result<(), BlockError> {
        let place = self.meta.lock().refcounts.block_place(index);
        let at = match place {
            Ok(Some(at)) => at,
            Ok(None) => return Ok(()),
            Err(fault) => return Err(self.block_fault(operation, index, fault).await),
        };
        if evict {
            self.evict_blocks().await?;
        }
        let len = self.layout.geometry.cluster_len();
        let bytes = self
            .file
            .node_arc()
            .read(at.0, IoBuf::with_len(len))
            .await?;
        self.meta
            .lock()
            .refcounts
            .insert_block(index, bytes.to_vec().into_boxed_slice());
        Ok(())
    }

    /// Drops blocks until one more fits. Changed ones are written first, which needs no order:
    /// a count in memory is never lower than what any state of the tables on disk needs.
    async fn evict_blocks(&self) -> Result<(), BlockError> {
        loop {
            let victim = {
                let mut meta = self.meta.lock();
                if meta.refcounts.block_count() < self.caches.refcount_blocks {
                    return Ok(());
                }
                meta.refcounts.victim()
            };
            let Some((index, clean)) = victim else {
                return Ok(());
            };
            if !clean {
                if self.lazy_refcounts {
                    self.mark_dirty_durably().await?;
                }
                self.write_block(index).await?;
                if let Some(block) = self.meta.lock().refcounts.block_mut(index) {
                    block.dirty.end(true);
                }
            }
            self.meta.lock().refcounts.drop_block(index);
        }
    }

    /// Writes what has changed in a refcount block, and leaves it to the caller, who holds
    /// `alloc_lock`, to say when that is durable.
    pub(crate) async fn write_block(&self, index: usize) -> Result<(), BlockError> {
        let write = {
            let mut meta = self.meta.lock();
            let place = meta.refcounts.block_place(index);
            let (Ok(Some(at)), Some(block)) = (place, meta.refcounts.block_mut(index)) else {
                return Ok(());
            };
            block.dirty.begin().map(|range| {
                // Whole sectors, so that nothing below has to read before it writes.
                let start = range.start & !511;
                let end = range.end.next_multiple_of(512).min(block.bytes.len());
                let bytes = block.bytes.get(start..end).unwrap_or_default();
                (at.0 + start as u64, IoBytes::copy_of(bytes))
            })
        };
        let Some((at, bytes)) = write else {
            return Ok(());
        };
        let written = self.write_metadata(at, bytes).await;
        if written.is_err()
            && let Some(block) = self.meta.lock().refcounts.block_mut(index)
        {
            block.dirty.end(false);
        }
        written
    }

    /// Makes a block that counts `cluster`, in `cluster` itself. The caller holds `alloc_lock`.
    async fn make_block(
        &self,
        operation: BlockOperation,
        cluster: HostCluster,
    ) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let at = geometry.host_offset(cluster);
        self.allocated(operation, cluster, 1).await?;
        self.evict_blocks().await?;
        let mut meta = self.meta.lock();
        meta.refcounts.make_block(cluster);
        meta.map
            .add(Structure::RefcountBlock, at, geometry.cluster_size());
        Ok(())
    }

    /// Moves the refcount table to a larger place behind everything that it describes now. The
    /// caller holds `alloc_lock`.
    ///
    /// Order: the new blocks and the new table durable, then the header, durable, then the old
    /// table is free.
    async fn grow_table(
        &self,
        operation: BlockOperation,
        needed: HostCluster,
    ) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let plan = self.plan_table(operation, needed)?;
        let end = plan.start + plan.blocks + plan.table_clusters;
        let bytes = (end - plan.start) << geometry.cluster_bits;
        let start_at = geometry.host_offset(HostCluster(plan.start));
        self.check_overlap(operation, start_at, bytes).await?;
        let changes = self.write_refcount_changes().await;
        let mut table = self.meta.lock().refcounts.table.clone();
        let entries = (plan.table_clusters << geometry.cluster_bits) / 8;
        table.resize(usize::try_from(entries).unwrap_or(usize::MAX), 0);
        let per_block = 1u64 << geometry.block_bits();
        let mut blocks = Vec::new();
        for number in 0..plan.blocks {
            let index = usize::try_from(plan.first_block + number).unwrap_or(usize::MAX);
            let mut content = vec![0; geometry.cluster_len()].into_boxed_slice();
            let counted = index as u64 * per_block;
            for cluster in plan.start.max(counted)..end.min(counted + per_block) {
                let order = geometry.refcount_order;
                crate::refcounts::write_count(&mut content, cluster - counted, order, 1);
            }
            let at = geometry.host_offset(HostCluster(plan.start + number));
            if let Some(entry) = table.get_mut(index) {
                *entry = at.0;
            }
            self.write_metadata(at.0, IoBytes::copy_of(&content))
                .await?;
            blocks.push((index, content));
        }
        let table_at = geometry.host_offset(HostCluster(plan.start + plan.blocks));
        let big_endian: Vec<u64> = table.iter().map(|entry| entry.to_be()).collect();
        self.write_metadata(table_at.0, IoBytes::copy_of(big_endian.as_bytes()))
            .await?;
        let durable = self.flush_file().await;
        self.end_refcount_write(changes, durable.is_ok())?;
        durable?;
        let mut place = table_at.0.to_be_bytes().to_vec();
        let clusters = u32::try_from(plan.table_clusters).unwrap_or(u32::MAX);
        place.extend_from_slice(&clusters.to_be_bytes());
        self.change_header(&[(field::REFCOUNT_TABLE, &place)])
            .await?;
        self.flush_file().await?;
        self.adopt_table(table, table_at, blocks);
        Ok(())
    }

    /// How large the new table is to be, and where it and the blocks for it go.
    fn plan_table(
        &self,
        operation: BlockOperation,
        needed: HostCluster,
    ) -> Result<TablePlan, BlockError> {
        let geometry = &self.layout.geometry;
        let entries_per_cluster = geometry.cluster_size() / 8;
        let old_entries = self.meta.lock().refcounts.table.len() as u64;
        let start = (old_entries << geometry.block_bits()).max(needed.0);
        let first_block = start >> geometry.block_bits();
        let mut table_clusters = (old_entries / entries_per_cluster) * 3 / 2 + 1;
        let mut blocks = 1;
        loop {
            let end = start + blocks + table_clusters;
            let last_block = (end - 1) >> geometry.block_bits();
            let blocks_needed = last_block - first_block + 1;
            let clusters_needed = (last_block + 1).div_ceil(entries_per_cluster);
            if blocks_needed <= blocks && clusters_needed <= table_clusters {
                break;
            }
            blocks = blocks.max(blocks_needed);
            table_clusters = table_clusters.max(clusters_needed);
        }
        if table_clusters << geometry.cluster_bits > MAX_REFCOUNT_TABLE_BYTES {
            return Err(BlockError::no_space(
                operation,
                "the refcount table would grow beyond 8 MiB",
            ));
        }
        Ok(TablePlan {
            start,
            first_block,
            blocks,
            table_clusters,
        })
    }

    fn adopt_table(&self, table: Vec<u64>, at: HostOffset, blocks: Vec<(usize, Box<[u8]>)>) {
        let geometry = &self.layout.geometry;
        let mut meta = self.meta.lock();
        let old_at = meta.refcounts.table_at;
        let old_bytes = meta.refcounts.table.len() as u64 * 8;
        meta.map.remove(old_at, old_bytes);
        meta.map
            .add(Structure::RefcountTable, at, table.len() as u64 * 8);
        for (index, content) in blocks {
            if let Some(&place) = table.get(index) {
                let cluster_size = geometry.cluster_size();
                meta.map
                    .add(Structure::RefcountBlock, HostOffset(place), cluster_size);
            }
            meta.refcounts.insert_block(index, content);
        }
        meta.refcounts.table = table;
        meta.refcounts.table_at = at;
        meta.refcounts.dirty_table.clear();
        let freed = Freed {
            first: geometry.host_cluster(old_at),
            count: geometry.clusters_for(old_bytes),
            discard: false,
            since: self.in_flight.mark(),
        };
        meta.freed.push(freed);
    }

    /// Adds to or takes from the refcount of one cluster; returns the new count.
    ///
    /// # Errors
    /// The host's; corrupt structures; `None` where the count would not fit or fall below zero.
    pub(crate) async fn change_refcount(
        &self,
        operation: BlockOperation,
        cluster: HostCluster,
        by: i64,
    ) -> Result<Option<u64>, BlockError> {
        let max = self.layout.geometry.max_refcount();
        let mut turn = None;
        loop {
            let known = {
                let mut meta = self.meta.lock();
                let known = meta.refcounts.get(cluster);
                if let Known::Count(count) = known {
                    let new = count.checked_add_signed(by).filter(|&new| new <= max);
                    // A count that stays is not written: a check may not change the image.
                    if let Some(new) = new.filter(|&new| new != count) {
                        meta.refcounts.set(cluster, new);
                        let left = meta
                            .compressed_at
                            .map(|at| self.layout.geometry.host_cluster(at));
                        if new == 0 && left == Some(cluster) {
                            meta.compressed_at = None;
                        }
                    }
                    return Ok(new);
                }
                known
            };
            if turn.is_none() {
                turn = Some(self.alloc_lock.lock(0, 1).await);
                continue;
            }
            match known {
                Known::Load(index) => self.load_block(operation, index, true).await?,
                Known::Wrong(index, fault) => {
                    return Err(self.block_fault(operation, index, fault).await);
                }
                Known::NoBlock | Known::Count(_) => return Ok(None),
            }
        }
    }

    /// Gives clusters back that were taken for something that then failed, so that nothing ever
    /// referred to them.
    pub(crate) async fn give_back(&self, operation: BlockOperation, taken: Allocated) {
        let first = self.layout.geometry.host_cluster(taken.at).0;
        for cluster in first..first + taken.count {
            // What cannot be given back is leaked, which harms nobody.
            let _ = self
                .change_refcount(operation, HostCluster(cluster), -1)
                .await;
        }
    }

    /// Writes all changed refcount blocks, then the table's changes. The caller holds
    /// `alloc_lock`, and calls [`Image::end_refcount_write`] with the result after a flush.
    ///
    /// A new block is durable before the table points to it.
    pub(crate) async fn write_refcount_changes(&self) -> RefcountWrite {
        let blocks = self.meta.lock().refcounts.dirty_blocks();
        for index in blocks {
            if let Err(error) = self.write_block(index).await {
                return RefcountWrite {
                    chunks: BTreeSet::new(),
                    result: Err(error),
                };
            }
        }
        let (chunks, table_at) = {
            let mut meta = self.meta.lock();
            let chunks = std::mem::take(&mut meta.refcounts.dirty_table);
            (chunks, meta.refcounts.table_at)
        };
        let result = if chunks.is_empty() {
            Ok(())
        } else {
            self.write_table_chunks(&chunks, table_at).await
        };
        RefcountWrite { chunks, result }
    }

    /// What was written is durable now, or has to be written again.
    pub(crate) fn end_refcount_write(
        &self,
        write: RefcountWrite,
        durable: bool,
    ) -> Result<(), BlockError> {
        let good = durable && write.result.is_ok();
        let mut meta = self.meta.lock();
        meta.refcounts.end_write(good);
        if !good {
            meta.refcounts.dirty_table.extend(write.chunks);
        }
        write.result
    }

    async fn write_table_chunks(
        &self,
        chunks: &BTreeSet<usize>,
        table_at: HostOffset,
    ) -> Result<(), BlockError> {
        self.flush_file().await?;
        for &chunk in chunks {
            let bytes = {
                let meta = self.meta.lock();
                table_chunk(&meta.refcounts.table, chunk, TABLE_CHUNK_ENTRIES)
            };
            let at = table_at.0 + (chunk * TABLE_CHUNK_ENTRIES * 8) as u64;
            self.write_metadata(at, bytes).await?;
        }
        Ok(())
    }
}

/// One 512-byte part of a table of 64-bit entries, as in the file.
pub(crate) fn table_chunk(table: &[u64], chunk: usize, entries: usize) -> IoBytes {
    let mut words = vec![0u64; entries];
    let there = table.iter().skip(chunk * entries);
    for (to, from) in words.iter_mut().zip(there) {
        *to = from.to_be();
    }
    IoBytes::copy_of(words.as_bytes())
}

/// Refcount changes that are on their way to the disk.
#[must_use]
pub(crate) struct RefcountWrite {
    chunks: BTreeSet<usize>,
    pub(crate) result: Result<(), BlockError>,
}

struct TablePlan {
    start: u64,
    first_block: u64,
    blocks: u64,
    table_clusters: u64,
}
