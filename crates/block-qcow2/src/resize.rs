//! Making the disk longer and shorter, and reserving space.

use block_graph::{BlockError, BlockOperation, Preallocation, WriteFlags};
use host_io::IoBytes;
use zerocopy::IntoBytes;

use crate::entries::{Cluster, Standard};
use crate::header::{field, libc_efbig};
use crate::image::{Freed, Image};
use crate::overlap::Structure;
use crate::types::{GuestOffset, HostOffset, L1Index, MAX_DISK_BYTES, MAX_L1_BYTES};
use crate::zero::Clearing;

const RESIZE: BlockOperation = BlockOperation::Resize;

fn refuse(message: impl Into<String>) -> BlockError {
    BlockError::invalid(RESIZE, message)
}

impl Image {
    /// Changes the disk's length to `length` bytes.
    ///
    /// Growing: the L1 table, space and zeroes first, then the header, each durable before the
    /// next. Shrinking: the header first, so that a crash shows the old disk or the new one, then
    /// what lies behind the new end is discarded; growing looks for what a crash left there.
    pub(crate) async fn resize(
        &self,
        length: u64,
        _exact: bool,
        how: Preallocation,
    ) -> Result<(), BlockError> {
        self.check_usable(RESIZE)?;
        if !length.is_multiple_of(512) {
            return Err(refuse("The new size must be a multiple of 512"));
        }
        if length > MAX_DISK_BYTES {
            return Err(refuse(format!(
                "offset({length}) exceeds maximum({MAX_DISK_BYTES})"
            )));
        }
        // Nobody else changes the mapping while the length changes.
        let _turn = self.guest_locks.lock(0, u64::MAX).await;
        let old = self.length();
        if length < old {
            self.shrink(old, length, how).await
        } else {
            self.grow(old, length, how).await
        }
    }

    async fn shrink(&self, old: u64, new: u64, how: Preallocation) -> Result<(), BlockError> {
        if how != Preallocation::Off {
            return Err(refuse("Preallocation can't be used for shrinking an image"));
        }
        let geometry = self.layout.geometry;
        let from = geometry.cluster_end(new);
        let to = geometry.cluster_end(old);
        self.commit().await?;
        let length = new.to_be_bytes();
        self.change_header(&[(field::SIZE, &length)]).await?;
        self.flush_file().await?;
        self.set_length(new);
        if from < to {
            self.clear_range(from, to, Clearing::Shrink).await?;
        }
        self.drop_tables(geometry.l1_entries_for(new));
        self.commit().await?;
        if let Some(data_file) = &self.data_file {
            data_file
                .node_arc()
                .resize(new, false, Preallocation::Off)
                .await?;
        }
        Ok(())
    }

    /// Frees the L2 tables from L1 entry `first` on: nothing in them is needed any more.
    fn drop_tables(&self, first: u64) {
        let geometry = &self.layout.geometry;
        let mut meta = self.meta.lock();
        let entries = meta.l1.len();
        for index in usize::try_from(first).unwrap_or(usize::MAX)..entries {
            let index = L1Index(index);
            let Ok(Some(table)) = meta.table_at(&self.layout, index) else {
                continue;
            };
            let slices = 1u64 << (geometry.table_bits() - geometry.slice_bits);
            let first_slice = index.0 as u64 * slices;
            for number in first_slice..first_slice + slices {
                meta.slices.remove(crate::types::SliceNumber(number));
            }
            meta.set_l1(index, 0);
            meta.map.remove(table, geometry.cluster_size());
            meta.freed.push(Freed {
                first: geometry.host_cluster(table),
                count: 1,
                discard: false,
                since: self.in_flight.mark(),
            });
        }
    }

    async fn grow(&self, old: u64, new: u64, how: Preallocation) -> Result<(), BlockError> {
        let geometry = self.layout.geometry;
        let needed = geometry.l1_entries_for(new);
        if needed.saturating_mul(8) > MAX_L1_BYTES {
            return Err(too_large());
        }
        self.grow_l1(needed).await?;
        let (from, to) = (geometry.cluster_end(old), geometry.cluster_end(new));
        if from < to {
            self.clear_range(from, to, Clearing::Shrink).await?;
        }
        if let Some(data_file) = &self.data_file {
            let node = data_file.node_arc();
            let stale = node.length().min(new);
            if self.is_raw_external() && stale > old {
                node.write_zeroes(old, stale - old, WriteFlags::empty())
                    .await?;
            }
            if node.length() < new {
                let how = match how {
                    Preallocation::Metadata => Preallocation::Off,
                    other => other,
                };
                node.resize(new, false, how).await?;
            }
        }
        // What the last cluster holds behind the old end, or the backing file has there, must
        // not come to light.
        let in_last = geometry.cluster_end(old).min(new);
        let hidden = self
            .backing
            .as_ref()
            .map_or(0, |backing| backing.node().length())
            .min(new);
        let zero_end = in_last.max(hidden);
        if zero_end > old {
            self.zero_hidden(old, zero_end).await?;
        }
        if how != Preallocation::Off {
            self.preallocate(old, new, how).await?;
        }
        self.commit().await?;
        let length = new.to_be_bytes();
        self.change_header(&[(field::SIZE, &length)]).await?;
        self.flush_file().await?;
        self.set_length(new);
        Ok(())
    }

    async fn zero_hidden(&self, from: u64, to: u64) -> Result<(), BlockError> {
        let before = self.length();
        self.set_length(to.max(before));
        let result = self
            .write_zeroes_locked(from, to, WriteFlags::empty())
            .await;
        self.set_length(before);
        result
    }

    /// Moves the L1 table to a place where it can have `needed` entries.
    ///
    /// Order: everything pending durable; the new table durable; the header durable; then the
    /// old table is free.
    async fn grow_l1(&self, needed: u64) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let have = self.meta.lock().l1.len() as u64;
        if needed <= have {
            return Ok(());
        }
        self.commit().await?;
        let _commits = self.commit_lock.lock(0, 1).await;
        let clusters = geometry.clusters_for(needed * 8);
        let taken = self.allocate(RESIZE, clusters, true).await?;
        let (table, old_at) = {
            let meta = self.meta.lock();
            let mut table = meta.l1.clone();
            table.resize(usize::try_from(needed).unwrap_or(usize::MAX), 0);
            (table, meta.l1_at)
        };
        let result = self.write_l1(&table, taken.at).await;
        if let Err(error) = result {
            self.give_back(RESIZE, taken).await;
            return Err(error);
        }
        let mut meta = self.meta.lock();
        meta.map.remove(old_at, have * 8);
        meta.map.add(Structure::ActiveL1, taken.at, needed * 8);
        meta.l1 = table;
        meta.l1_at = taken.at;
        if have > 0 {
            meta.freed.push(Freed {
                first: geometry.host_cluster(old_at),
                count: geometry.clusters_for(have * 8),
                discard: false,
                since: self.in_flight.mark(),
            });
        }
        Ok(())
    }

    async fn write_l1(&self, table: &[u64], at: HostOffset) -> Result<(), BlockError> {
        let mut entries: Vec<u64> = table.iter().map(|entry| entry.to_be()).collect();
        let cluster_words = self.layout.geometry.cluster_len() / 8;
        entries.resize(entries.len().next_multiple_of(cluster_words), 0);
        self.write_metadata(at.0, IoBytes::copy_of(entries.as_bytes()))
            .await?;
        // The new table's clusters must be counted before the header refers to them.
        if self.lazy_refcounts {
            self.mark_dirty_durably().await?;
            self.flush_file().await?;
        } else {
            let _turn = self.alloc_lock.lock(0, 1).await;
            let changes = self.write_refcount_changes().await;
            let durable = self.flush_file().await;
            self.end_refcount_write(changes, durable.is_ok())?;
            durable?;
        }
        let count = u32::try_from(table.len()).map_err(|_| too_large())?;
        let mut place = count.to_be_bytes().to_vec();
        place.extend_from_slice(&at.0.to_be_bytes());
        self.change_header(&[(field::L1, &place)]).await?;
        self.flush_file().await
    }

    /// Gives every cluster of `from..to` a host cluster that reads as zeroes. The caller holds
    /// the guest range.
    pub(crate) async fn preallocate(
        &self,
        from: u64,
        to: u64,
        how: Preallocation,
    ) -> Result<(), BlockError> {
        let geometry = self.layout.geometry;
        let mut at = geometry.cluster_start(from);
        while at < to {
            let guest = GuestOffset(at);
            self.ensure_table(RESIZE, guest).await?;
            let end = geometry.slice_end(guest).min(geometry.cluster_end(to));
            let cluster = self.cluster_at(RESIZE, guest).await?;
            let empty = matches!(cluster, Cluster::Standard(Standard { host: None, .. }));
            if !empty {
                at += geometry.cluster_size();
                continue;
            }
            at = self.preallocate_run(at, end, how).await?;
            self.commit_if_full().await?;
        }
        // The file must be as long as its last cluster says.
        Ok(())
    }

    /// The same for clusters within one slice, of which the first is not allocated.
    async fn preallocate_run(
        &self,
        from: u64,
        end: u64,
        how: Preallocation,
    ) -> Result<u64, BlockError> {
        let geometry = self.layout.geometry;
        let mut want = 1;
        while from + (want << geometry.cluster_bits) < end {
            let next = GuestOffset(from + (want << geometry.cluster_bits));
            let cluster = self.cluster_at(RESIZE, next).await?;
            if !matches!(cluster, Cluster::Standard(Standard { host: None, .. })) {
                break;
            }
            want += 1;
        }
        let taken = self.take_clusters(from, want).await?;
        let bytes = taken.count << geometry.cluster_bits;
        let node = self.data_edge().node_arc();
        if self.data_file.is_some() {
            // What a raw data file holds is the guest's data; any other may hold anything.
            if !self.is_raw_external() {
                node.write_zeroes(taken.at.0, bytes, WriteFlags::empty())
                    .await?;
            }
        } else {
            let file_end = taken.at.0 + bytes;
            if !taken.fresh {
                node.write_zeroes(taken.at.0, bytes, WriteFlags::empty())
                    .await?;
            } else if node.length() < file_end {
                let reserve = match how {
                    Preallocation::Off | Preallocation::Metadata => Preallocation::Off,
                    other => other,
                };
                node.resize(file_end, false, reserve).await?;
            }
        }
        let Some(mut meta) = self.lock_with_slice(RESIZE, GuestOffset(from)).await? else {
            return Err(BlockError::corrupt(RESIZE, "an L2 table is gone"));
        };
        for number in 0..taken.count {
            let offset = number << geometry.cluster_bits;
            // With subclusters, space is kept without saying that there is data.
            let cluster = Standard {
                host: Some(HostOffset(taken.at.0 + offset)),
                copied: true,
                allocated: if geometry.extended_l2 && self.may_have_backing() {
                    0
                } else {
                    geometry.all_subclusters()
                },
                zero: 0,
            };
            let entry = self.layout.encode(&cluster);
            meta.set_entry(&self.layout, GuestOffset(from + offset), entry);
        }
        Ok(from + bytes)
    }
}

fn too_large() -> BlockError {
    BlockError {
        errno: libc_efbig(),
        ..refuse("Failed to grow the L1 table: File too large")
    }
}
