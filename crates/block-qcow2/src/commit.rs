//! Writing metadata back in an order that a power failure cannot turn into corruption.
//!
//! All changes to L1, L2 and refcounts are made in memory first. [`Image::commit`] takes a
//! snapshot of what has changed, under the one lock that every change is made under, and writes
//! it in this order:
//!
//! 1. refcount blocks; a flush and the refcount table, where that points to new blocks;
//! 2. a flush, of the data file too: counts and data are durable;
//! 3. L2 entries and L1 entries;
//! 4. a flush: the references are durable, and what they no longer refer to is free.
//!
//! Why this is enough:
//! - An L2 entry is changed in memory after its data was written and its cluster's count was
//!   raised in memory. So step 2 makes both durable before step 3 writes the entry.
//! - A new L2 table is written as zeroes before its L1 entry is changed in memory; step 2 makes
//!   that durable before step 3 writes the L1 entry.
//! - What a change frees keeps its count in memory until step 4 is done. So counts in memory are
//!   never lower than any state of the disk needs, and refcount blocks may be written any time.
//! - A freed cluster is not used again before that, nor before the requests that began before it
//!   was freed have ended: they may still read or write it through an old mapping.
//!
//! A crash in between leaves clusters with a count and no reference: a leak, never corruption.
//! With lazy refcounts step 1 is left out, the dirty bit is durable before step 3, and the
//! counts are rebuilt when a dirty image is opened for writing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use block_graph::{BlockError, BlockOperation};
use host_io::{IoBuf, IoBytes};

use crate::allocate::table_chunk;
use crate::header::{field, incompatible};
use crate::image::{Freed, Image, L1_CHUNK_ENTRIES};
use crate::together::{Operation, together};
use crate::types::{HostCluster, HostOffset, SliceNumber};

/// After how many freed and not yet reusable clusters a request commits by itself.
const MAX_FREED_BYTES: u64 = 64 << 20;
/// L2 writes that lie next to each other go out as one, up to this many bytes.
const MAX_METADATA_WRITE: usize = 1 << 20;

/// A snapshot of what is to be written.
#[derive(Default)]
struct Snapshot {
    slices: Vec<(u64, IoBytes)>,
    l1_chunks: BTreeSet<usize>,
    l1: Vec<(u64, IoBytes)>,
    freed: Vec<Freed>,
}

impl Image {
    /// Writes all metadata changes made so far; returns with them, and with all data written
    /// before, durable.
    pub(crate) async fn commit(&self) -> Result<(), BlockError> {
        let _turn = self.commit_lock.lock(0, 1).await;
        self.check_usable(BlockOperation::Flush)?;
        if !self.meta.lock().has_changes() {
            return self.flush_all().await;
        }
        let snapshot = self.take_snapshot();
        let result = self.write_snapshot(&snapshot).await;
        self.end_snapshot(snapshot, result.is_ok());
        result?;
        self.release_freed().await
    }

    fn take_snapshot(&self) -> Snapshot {
        let geometry = &self.layout.geometry;
        let mut meta = self.meta.lock();
        meta.committing = true;
        let mut slices: Vec<(SliceNumber, usize, IoBytes)> = Vec::new();
        meta.slices.begin_write(|number, range, words| {
            debug_assert_eq!(range.len(), words.len());
            slices.push((number, range.start, big_endian(words)));
        });
        let mut placed = Vec::with_capacity(slices.len());
        for (number, first_word, bytes) in slices {
            let (index, in_table) = geometry.slice_place(number);
            // A slice that has changed has a table: it cannot go away without the slice.
            if let Ok(Some(table)) = meta.table_at(&self.layout, index) {
                placed.push((table.0 + in_table + first_word as u64 * 8, bytes));
            }
        }
        placed.sort_unstable_by_key(|&(at, _)| at);
        let l1_chunks = std::mem::take(&mut meta.dirty_l1);
        let l1 = l1_chunks
            .iter()
            .map(|&chunk| {
                let at = meta.l1_at.0 + (chunk * L1_CHUNK_ENTRIES * 8) as u64;
                (at, table_chunk(&meta.l1, chunk, L1_CHUNK_ENTRIES))
            })
            .collect();
        Snapshot {
            slices: merged(placed),
            l1_chunks,
            l1,
            freed: std::mem::take(&mut meta.freed),
        }
    }

    async fn write_snapshot(&self, snapshot: &Snapshot) -> Result<(), BlockError> {
        if self.lazy_refcounts {
            self.mark_dirty().await?;
            self.flush_all().await?;
        } else {
            let _turn = self.alloc_lock.lock(0, 1).await;
            let changes = self.write_refcount_changes().await;
            let durable = if changes.result.is_ok() {
                self.flush_all().await
            } else {
                Ok(())
            };
            self.end_refcount_write(changes, durable.is_ok())?;
            durable?;
        }
        let writes = snapshot.slices.iter().chain(&snapshot.l1);
        together(writes.map(|(at, bytes)| {
            let write: Operation<'_, ()> = Box::pin(self.write_metadata(*at, bytes.clone()));
            write
        }))
        .await?;
        self.flush_file().await
    }

    fn end_snapshot(&self, snapshot: Snapshot, durable: bool) {
        let mut meta = self.meta.lock();
        meta.committing = false;
        meta.slices.end_write(durable);
        if durable {
            meta.quarantine.extend(snapshot.freed);
        } else {
            meta.dirty_l1.extend(snapshot.l1_chunks);
            meta.freed.extend(snapshot.freed);
        }
    }

    /// Lowers the counts of what was freed durably and is used by no earlier request any more.
    pub(crate) async fn release_freed(&self) -> Result<(), BlockError> {
        loop {
            let freed = {
                let mut meta = self.meta.lock();
                match meta.quarantine.front() {
                    Some(first) if self.in_flight.has_passed(first.since) => {
                        meta.quarantine.pop_front()
                    }
                    _ => None,
                }
            };
            let Some(freed) = freed else {
                return Ok(());
            };
            self.release(freed).await?;
        }
    }

    async fn release(&self, freed: Freed) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let mut free = Vec::new();
        for cluster in freed.first.0..freed.first.0.saturating_add(freed.count) {
            // Looked at while the count is still there, so that nobody takes the cluster before
            // its content is thrown away.
            if freed.discard && self.is_last_reference(HostCluster(cluster)).await? {
                let at = geometry.host_offset(HostCluster(cluster));
                self.discard_in(&self.file, at, geometry.cluster_size())
                    .await;
            }
            let changed = self
                .change_refcount(BlockOperation::Write, HostCluster(cluster), -1)
                .await?;
            if changed.is_none() {
                free.push(cluster);
            }
        }
        if let Some(&cluster) = free.first() {
            // The count was zero already: the image was wrong before, and is not more so now.
            tracing::warn!(node = %self.node_name, cluster, "freed cluster had no refcount");
        }
        Ok(())
    }

    async fn is_last_reference(&self, cluster: HostCluster) -> Result<bool, BlockError> {
        // Adding nothing loads the block and tells the count.
        let count = self
            .change_refcount(BlockOperation::Discard, cluster, 0)
            .await?;
        Ok(count == Some(1))
    }

    /// Gives space of a file back, if that can be done.
    pub(crate) async fn discard_in(&self, edge: &block_graph::Edge, at: HostOffset, len: u64) {
        let node = edge.node_arc();
        let len = len.min(node.length().saturating_sub(at.0));
        if let Err(error) = node.discard(at.0, len).await {
            tracing::debug!(node = %self.node_name, %error, "the file keeps freed space");
        }
    }

    /// Commits if much has piled up: slices that cannot be dropped, or clusters that cannot be
    /// used again.
    pub(crate) async fn commit_if_full(&self) -> Result<(), BlockError> {
        let full = {
            let meta = self.meta.lock();
            let freed: u64 = meta.freed.iter().map(|freed| freed.count).sum();
            meta.slices.dirty_count() > meta.slices.capacity() / 2
                || freed << self.layout.geometry.cluster_bits > MAX_FREED_BYTES
        };
        if full { self.commit().await } else { Ok(()) }
    }

    /// Writes metadata to the image file.
    pub(crate) async fn write_metadata(&self, at: u64, bytes: IoBytes) -> Result<(), BlockError> {
        let node = self.file.node_arc();
        node.write(at, bytes, block_graph::WriteFlags::empty())
            .await
    }

    pub(crate) async fn flush_file(&self) -> Result<(), BlockError> {
        self.file.node_arc().flush().await
    }

    /// Flushes the data file, if there is one, and the image file.
    pub(crate) async fn flush_all(&self) -> Result<(), BlockError> {
        if let Some(data_file) = &self.data_file {
            data_file.node_arc().flush().await?;
        }
        self.flush_file().await
    }

    /// Sets the dirty bit; whoever calls flushes.
    async fn mark_dirty(&self) -> Result<(), BlockError> {
        if self.state.lock().incompatible & incompatible::DIRTY != 0 {
            return Ok(());
        }
        self.set_incompatible(incompatible::DIRTY, 0).await
    }

    /// Sets the dirty bit durably.
    pub(crate) async fn mark_dirty_durably(&self) -> Result<(), BlockError> {
        if self.state.lock().incompatible & incompatible::DIRTY != 0 {
            return Ok(());
        }
        self.set_incompatible(incompatible::DIRTY, 0).await?;
        self.flush_file().await
    }

    /// Sets and clears incompatible feature bits in the header.
    pub(crate) async fn set_incompatible(&self, set: u64, clear: u64) -> Result<(), BlockError> {
        let bits = {
            let mut state = self.state.lock();
            state.incompatible = (state.incompatible | set) & !clear;
            state.incompatible
        };
        let result = self
            .change_header(&[(field::INCOMPATIBLE, &bits.to_be_bytes())])
            .await;
        if result.is_err() {
            let mut state = self.state.lock();
            state.incompatible = (state.incompatible & !set) | clear;
        }
        result
    }

    /// Changes fields of the header; one sector, so it happens whole or not at all.
    pub(crate) async fn change_header(&self, fields: &[(usize, &[u8])]) -> Result<(), BlockError> {
        let _turn = self.header_lock.lock(0, 1).await;
        let sector = {
            let mut state = self.state.lock();
            for (at, bytes) in fields {
                if let Some(place) = state.sector.get_mut(*at..at + bytes.len()) {
                    place.copy_from_slice(bytes);
                }
            }
            IoBytes::copy_of(&state.sector)
        };
        self.write_metadata(0, sector).await
    }

    /// Leaves the image clean: everything written, nothing quarantined, the dirty bit cleared.
    pub(crate) async fn finish(&self) -> Result<(), BlockError> {
        if self.options.read_only || self.is_broken() || self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.commit().await?;
        self.in_flight.grace_period().await;
        self.release_freed().await?;
        {
            let _turn = self.alloc_lock.lock(0, 1).await;
            let changes = self.write_refcount_changes().await;
            let durable = self.flush_all().await;
            self.end_refcount_write(changes, durable.is_ok())?;
            durable?;
        }
        // Only who has mended the counts, or has written them all, may say that they are right.
        let is_dirty = self.state.lock().incompatible & incompatible::DIRTY != 0;
        if is_dirty && self.activated.load(Ordering::Acquire) {
            self.set_incompatible(0, incompatible::DIRTY).await?;
            self.flush_file().await?;
        }
        Ok(())
    }
}

fn big_endian(words: &[u64]) -> IoBytes {
    let mut buf = IoBuf::with_len(words.len() * 8);
    for (bytes, word) in buf.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_be_bytes();
    }
    buf.freeze()
}

/// Joins writes that follow each other.
fn merged(writes: Vec<(u64, IoBytes)>) -> Vec<(u64, IoBytes)> {
    let mut out: Vec<(u64, Vec<IoBytes>, usize)> = Vec::new();
    for (at, bytes) in writes {
        match out.last_mut() {
            Some((start, parts, len))
                if *start + *len as u64 == at && *len + bytes.len() <= MAX_METADATA_WRITE =>
            {
                *len += bytes.len();
                parts.push(bytes);
            }
            _ => out.push((at, vec![bytes.clone()], bytes.len())),
        }
    }
    out.into_iter()
        .map(|(at, mut parts, len)| match (parts.len(), parts.pop()) {
            (1, Some(only)) => (at, only),
            (_, last) => {
                let mut buf = IoBuf::with_len(len);
                let mut from = 0;
                for part in parts.iter().chain(&last) {
                    if let Some(to) = buf.get_mut(from..from + part.len()) {
                        to.copy_from_slice(part);
                    }
                    from += part.len();
                }
                (at, buf.freeze())
            }
        })
        .collect()
}
