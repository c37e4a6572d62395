//! Writing zeroes and discarding: mostly a matter of L2 entries.

use block_graph::{BlockError, BlockOperation, WriteFlags};
use host_io::IoBuf;

use crate::entries::{Cluster, Standard};
use crate::image::{Image, Meta};
use crate::types::{GuestOffset, HostOffset};

/// Zeroes that must be written as data go out in pieces of this size.
const ZERO_PIECE: u64 = 1 << 20;

/// Why entries of whole clusters are being changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clearing {
    /// Zeroes were written; space is kept.
    Zero,
    /// Zeroes were written; space may be given up.
    ZeroUnmap,
    /// The guest discards.
    Discard,
    /// The disk becomes shorter.
    Shrink,
}

fn not_without_data() -> BlockError {
    let message = "these zeroes would have to be written as data";
    BlockError::not_supported(BlockOperation::WriteZeroes, message)
}

impl Image {
    /// Makes `len` bytes from `offset` read as zeroes.
    pub(crate) async fn write_zeroes_guest(
        &self,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        self.check_usable(BlockOperation::WriteZeroes)?;
        let geometry = &self.layout.geometry;
        let end = offset.saturating_add(len);
        let _turn = self
            .guest_locks
            .lock(geometry.cluster_start(offset), geometry.cluster_end(end))
            .await;
        self.write_zeroes_locked(offset, end, flags).await?;
        self.commit_if_full().await
    }

    pub(crate) async fn write_zeroes_locked(
        &self,
        offset: u64,
        end: u64,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        let unit = self.layout.geometry.subcluster_size();
        // The disk's last cluster may be incomplete: its end counts as aligned.
        let whole_end = if end >= self.length() {
            end.next_multiple_of(unit)
        } else {
            end & !(unit - 1)
        };
        let whole_start = offset.next_multiple_of(unit);
        if whole_start >= whole_end {
            return self.zero_part(offset, end, flags).await;
        }
        if flags.contains(WriteFlags::NO_FALLBACK) {
            let parts = [(offset, whole_start), (whole_end, end)];
            self.check_without_data(parts, whole_start, whole_end)
                .await?;
        }
        if offset < whole_start {
            self.zero_part(offset, whole_start, flags).await?;
        }
        let clearing = if flags.contains(WriteFlags::MAY_UNMAP) {
            Clearing::ZeroUnmap
        } else {
            Clearing::Zero
        };
        self.zero_whole(whole_start, whole_end, clearing, flags)
            .await?;
        if whole_end < end {
            self.zero_part(whole_end, end, flags).await?;
        }
        Ok(())
    }

    /// Refuses zeroes of which something would have to be written as data, before anything has
    /// changed: `parts` of (sub)clusters, or subclusters of compressed clusters.
    async fn check_without_data(
        &self,
        parts: [(u64, u64); 2],
        whole_start: u64,
        whole_end: u64,
    ) -> Result<(), BlockError> {
        for (from, to) in parts {
            if from < to && !self.is_zero_part(from, to).await? {
                return Err(not_without_data());
            }
        }
        let operation = BlockOperation::WriteZeroes;
        for (from, to) in self.borders(whole_start, whole_end) {
            if from < to
                && let Cluster::Compressed(_) =
                    self.cluster_at(operation, GuestOffset(from)).await?
            {
                return Err(not_without_data());
            }
        }
        Ok(())
    }

    /// Whether nothing has to be done for a part of a (sub)cluster to be zero.
    async fn is_zero_part(&self, from: u64, to: u64) -> Result<bool, BlockError> {
        Ok(!self.is_raw_external() && self.reads_as_zeroes(from, to - from).await?)
    }

    /// The parts of a range of whole subclusters that are less than a cluster, at its two ends.
    fn borders(&self, from: u64, to: u64) -> [(u64, u64); 2] {
        let geometry = &self.layout.geometry;
        let first_end = from.next_multiple_of(geometry.cluster_size()).min(to);
        let last_start = geometry.cluster_start(to).max(first_end);
        [(from, first_end), (last_start, to)]
    }

    /// Less than a (sub)cluster: nothing to do where it reads as zeroes already, else data.
    async fn zero_part(&self, from: u64, to: u64, flags: WriteFlags) -> Result<(), BlockError> {
        if self.is_zero_part(from, to).await? {
            return Ok(());
        }
        self.zero_as_data(from, to, flags).await
    }

    async fn zero_as_data(&self, from: u64, to: u64, flags: WriteFlags) -> Result<(), BlockError> {
        if flags.contains(WriteFlags::NO_FALLBACK) {
            return Err(not_without_data());
        }
        let to = to.min(self.length().max(from));
        let mut at = from;
        while at < to {
            let piece = ZERO_PIECE.min(to - at);
            let zeroes = IoBuf::zeroed(usize::try_from(piece).unwrap_or(0)).freeze();
            self.write_locked(at, zeroes).await?;
            at += piece;
        }
        Ok(())
    }

    /// Whether the external data file must read like the disk.
    pub(crate) fn is_raw_external(&self) -> bool {
        self.data_file.is_some() && self.header.data_file_raw()
    }

    /// Whole subclusters.
    async fn zero_whole(
        &self,
        from: u64,
        to: u64,
        clearing: Clearing,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        if self.layout.version < 3 {
            // Version 2 has no zero flag: what is not allocated reads as zeroes, but only where
            // nothing can be behind it.
            if self.may_have_backing() {
                return self.zero_as_data(from, to, flags).await;
            }
            return self.clear_range(from, to, clearing).await;
        }
        if self.is_raw_external() {
            // The raw file must say the same as the image.
            let node = self.data_edge().node_arc();
            let to = to.min(self.length().max(from));
            node.write_zeroes(from, to - from, flags).await?;
        }
        // A part of a compressed cluster has no bits of its own: that is written as data.
        let borders = self.borders(from, to);
        let [(_, first_end), (last_start, _)] = borders;
        for (from, to) in borders {
            if from == to {
                continue;
            }
            let operation = BlockOperation::WriteZeroes;
            match self.cluster_at(operation, GuestOffset(from)).await? {
                Cluster::Compressed(_) => self.zero_as_data(from, to, flags).await?,
                Cluster::Standard(_) => self.clear_range(from, to, clearing).await?,
            }
        }
        self.clear_range(first_end, last_start, clearing).await
    }

    /// Discards `len` bytes from `offset`, as far as they are whole clusters.
    pub(crate) async fn discard_guest(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.check_usable(BlockOperation::Discard)?;
        let geometry = &self.layout.geometry;
        let size = geometry.cluster_size();
        let end = offset.saturating_add(len);
        let from = offset.next_multiple_of(size);
        let to = if end >= self.length() {
            geometry.cluster_end(end)
        } else {
            geometry.cluster_start(end)
        };
        if from >= to {
            return Ok(());
        }
        let _turn = self.guest_locks.lock(from, to).await;
        if self.is_raw_external() {
            let node = self.data_edge().node_arc();
            let to = to.min(self.length().max(from));
            node.write_zeroes(from, to - from, WriteFlags::MAY_UNMAP)
                .await?;
        }
        self.clear_range(from, to, Clearing::Discard).await?;
        self.commit_if_full().await
    }

    /// Changes all entries of `from..to`, whole subclusters, so that they read as zeroes (or in
    /// version 2 are unallocated). The caller holds the guest range.
    pub(crate) async fn clear_range(
        &self,
        from: u64,
        to: u64,
        clearing: Clearing,
    ) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let operation = BlockOperation::WriteZeroes;
        let mut at = from;
        while at < to {
            let guest = GuestOffset(at);
            let slice_end = geometry.slice_end(guest).min(to);
            let makes_zero = matches!(clearing, Clearing::Zero | Clearing::ZeroUnmap);
            let index = geometry.l1_index(guest);
            let table = self.meta.lock().table_at(&self.layout, index);
            if matches!(table, Ok(None)) && !(makes_zero && self.layout.version >= 3) {
                // No table: nothing to discard here or up to the end of what it would describe.
                let span = 1u64 << geometry.l1_span_bits();
                at = (at & !(span - 1)).saturating_add(span);
                continue;
            }
            self.ensure_table(operation, guest).await?;
            // Entries that are wrong must be told before any is changed.
            let cleared = {
                let Some(mut meta) = self.lock_with_slice(operation, guest).await? else {
                    continue;
                };
                self.clear_in_slice(&mut meta, at, slice_end, clearing)
            };
            match cleared {
                Ok(emptied) => {
                    for (host, len) in emptied {
                        self.discard_in(self.data_edge(), host, len).await;
                    }
                }
                Err((fault, at)) => {
                    let message = self.entry_fault(fault, GuestOffset(at));
                    return Err(self.corrupt(operation, message, None).await);
                }
            }
            at = slice_end;
        }
        Ok(())
    }

    /// Returns the host clusters whose content is not needed any more, in runs.
    fn clear_in_slice(
        &self,
        meta: &mut Meta,
        from: u64,
        to: u64,
        clearing: Clearing,
    ) -> Result<Vec<(HostOffset, u64)>, (crate::entries::Fault, u64)> {
        let geometry = &self.layout.geometry;
        let mut emptied: Vec<(HostOffset, u64)> = Vec::new();
        let mut at = from;
        while at < to {
            let start = geometry.cluster_start(at);
            let end = (start + geometry.cluster_size()).min(to);
            let mask = geometry.subclusters_of(at - start, end - start);
            let old = meta
                .cluster(&self.layout, GuestOffset(at))
                .map_err(|fault| (fault, at))?;
            let host = self.clear_cluster(meta, GuestOffset(start), &old, mask, clearing);
            match (host, emptied.last_mut()) {
                (Some(host), Some((first, len))) if first.0 + *len == host.0 => {
                    *len += geometry.cluster_size();
                }
                (Some(host), _) => emptied.push((host, geometry.cluster_size())),
                (None, _) => {}
            }
            at = end;
        }
        Ok(emptied)
    }

    fn clear_cluster(
        &self,
        meta: &mut Meta,
        guest: GuestOffset,
        old: &Cluster,
        mask: u32,
        clearing: Clearing,
    ) -> Option<HostOffset> {
        let all = self.layout.geometry.all_subclusters();
        let old_standard = match old {
            Cluster::Standard(standard) => *standard,
            // Parts of compressed clusters are written as data before this is called.
            Cluster::Compressed(_) => Standard::default(),
        };
        let is_compressed = matches!(old, Cluster::Compressed(_));
        let discards = matches!(clearing, Clearing::Discard | Clearing::Shrink);
        if discards && !is_compressed && old_standard.host.is_none() {
            // Nothing is kept for it; it stays what it is.
            return None;
        }
        if clearing == Clearing::Discard && self.layout.version < 3 && self.may_have_backing() {
            // Unallocated would let the backing file show through.
            return None;
        }
        let zero = if self.layout.version >= 3 {
            old_standard.zero | mask
        } else {
            0
        };
        let allocated = old_standard.allocated & !mask;
        let keep_host = !is_compressed
            && old_standard.host.is_some()
            && (allocated != 0
                || (clearing == Clearing::Zero && old_standard.copied && self.layout.version >= 3)
                || (clearing == Clearing::Discard
                    && self.options.discard_no_unref
                    && self.layout.version >= 3)
                || self.is_raw_external());
        let new = Standard {
            host: old_standard.host.filter(|_| keep_host),
            copied: old_standard.copied && keep_host,
            allocated,
            zero,
        };
        if !is_compressed && new == old_standard {
            return None;
        }
        meta.set_entry(&self.layout, guest, self.layout.encode(&new));
        let pass = self.options.pass_discard_request && clearing != Clearing::Zero;
        if !keep_host {
            self.let_go(meta, old, pass);
        }
        // Space that is kept, or is the data file's, is emptied at once, while nobody else can
        // write there. A crash that keeps the old entry shows zeroes, as it may.
        let gone = mask == all && pass && !self.is_raw_external();
        let stays = self.data_file.is_some() || keep_host;
        old_standard.host.filter(|_| gone && stays)
    }
}
