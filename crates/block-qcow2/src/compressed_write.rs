//! Writing compressed clusters.
//!
//! Compressed clusters are packed one behind the other, each beginning on a 512-byte sector, so
//! that writing one never rewrites a sector of another. A host cluster's refcount is the number
//! of compressed clusters that touch it.

use block_graph::{BlockError, BlockOperation, WriteFlags};
use host_io::{IoBuf, IoBytes};

use crate::compression;
use crate::image::Image;
use crate::types::{GuestOffset, HostCluster, HostOffset};

const WRITE: BlockOperation = BlockOperation::Write;
const SECTOR: u64 = 512;

/// Space for one compressed cluster: counted, not referred to yet.
struct Packed {
    at: HostOffset,
    clusters: std::ops::Range<u64>,
}

impl Image {
    /// Stores `data` compressed, cluster by cluster; what is no whole cluster, or does not
    /// shrink, is stored plainly.
    pub(crate) async fn write_compressed(
        &self,
        offset: u64,
        data: IoBytes,
    ) -> Result<(), BlockError> {
        self.check_usable(WRITE)?;
        if self.data_file.is_some() {
            return Err(BlockError::not_supported(
                WRITE,
                "compression is not possible with an external data file",
            ));
        }
        let geometry = &self.layout.geometry;
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let room = geometry.cluster_size() - geometry.in_cluster(at);
            let part = rest.slice(..usize::try_from(room).unwrap_or(usize::MAX));
            let len = part.len() as u64;
            let whole = geometry.in_cluster(at) == 0
                && (len == geometry.cluster_size() || at + len >= self.length());
            if whole {
                self.write_compressed_cluster(at, part).await?;
            } else {
                self.write_guest(at, part).await?;
            }
            at += len;
            rest = rest.slice(usize::try_from(len).unwrap_or(usize::MAX)..);
        }
        Ok(())
    }

    async fn write_compressed_cluster(&self, at: u64, data: IoBytes) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let kind = self.header.compression_type();
        let cluster_len = geometry.cluster_len();
        let source = data.clone();
        let packed = host_io::blocking(move || {
            if source.len() == cluster_len {
                return compression::compress(kind, &source);
            }
            // The disk's last cluster: what lies behind its end is zeroes.
            let mut whole = vec![0; cluster_len];
            if let Some(front) = whole.get_mut(..source.len()) {
                front.copy_from_slice(&source);
            }
            compression::compress(kind, &whole)
        })
        .await
        .unwrap_or(None);
        let Some(packed) = packed else {
            return self.write_guest(at, data).await;
        };
        let turn = self
            .guest_locks
            .lock(at, at + geometry.cluster_size())
            .await;
        let stored = self.store_compressed(GuestOffset(at), &packed).await?;
        drop(turn);
        if stored {
            self.commit_if_full().await
        } else {
            self.write_guest(at, data).await
        }
    }

    /// `false` where the image cannot express the place it would go to.
    async fn store_compressed(
        &self,
        guest: GuestOffset,
        packed: &[u8],
    ) -> Result<bool, BlockError> {
        self.ensure_table(WRITE, guest).await?;
        let old = self.cluster_at(WRITE, guest).await?;
        let len = packed.len() as u64;
        let space = self.take_space(len).await?;
        let entry = self.layout.encode_compressed(space.at, len);
        let written = match entry {
            Some(_) => self.write_packed(&space, packed).await,
            None => Ok(()),
        };
        let (Some(entry), Ok(())) = (entry, &written) else {
            self.give_space_back(&space).await;
            return written.map(|()| false);
        };
        let Some(mut meta) = self.lock_with_slice(WRITE, guest).await? else {
            return Err(BlockError::corrupt(WRITE, "an L2 table is gone"));
        };
        meta.set_entry(&self.layout, guest, (entry, 0));
        self.let_go(&mut meta, &old, false);
        Ok(true)
    }

    async fn write_packed(&self, space: &Packed, packed: &[u8]) -> Result<(), BlockError> {
        let mut sectors = IoBuf::zeroed(packed.len().next_multiple_of(512));
        if let Some(front) = sectors.get_mut(..packed.len()) {
            front.copy_from_slice(packed);
        }
        self.check_overlap(WRITE, space.at, sectors.len() as u64)
            .await?;
        let node = self.file.node_arc();
        node.write(space.at.0, sectors.freeze(), WriteFlags::empty())
            .await
    }

    /// Finds room for `len` bytes: in the cluster that the last one left open, or from there
    /// into a new one that follows it, or in a new one.
    async fn take_space(&self, len: u64) -> Result<Packed, BlockError> {
        let geometry = &self.layout.geometry;
        let _turn = self.packing_lock.lock(0, 1).await;
        let padded = len.next_multiple_of(SECTOR);
        let open = self.meta.lock().compressed_at;
        let open_cluster = open.map(|at| geometry.host_cluster(at));
        if let (Some(at), Some(cluster)) = (open, open_cluster)
            && geometry.in_cluster(at.0) + padded <= geometry.cluster_size()
            && self.count_open(cluster).await?
        {
            self.leave_open(at.0 + padded);
            return Ok(Packed {
                at,
                clusters: cluster.0..cluster.0 + 1,
            });
        }
        let taken = self.allocate(WRITE, 1, true).await?;
        let new = geometry.host_cluster(taken.at);
        if let (Some(at), Some(cluster)) = (open, open_cluster)
            && cluster.0 + 1 == new.0
            && self.count_open(cluster).await?
        {
            self.leave_open(at.0 + padded);
            return Ok(Packed {
                at,
                clusters: cluster.0..new.0 + 1,
            });
        }
        self.leave_open(taken.at.0 + padded);
        Ok(Packed {
            at: taken.at,
            clusters: new.0..new.0 + 1,
        })
    }

    /// Counts one more user of the open cluster, if its count has room and it is open still.
    async fn count_open(&self, cluster: HostCluster) -> Result<bool, BlockError> {
        let count = self.change_refcount(WRITE, cluster, 1).await?;
        match count {
            Some(1) => {
                // Everything in it was freed meanwhile, and somebody else may take it.
                self.change_refcount(WRITE, cluster, -1).await?;
                Ok(false)
            }
            Some(_) => {
                let open = self.meta.lock().compressed_at;
                if open.map(|at| self.layout.geometry.host_cluster(at)) == Some(cluster) {
                    return Ok(true);
                }
                self.change_refcount(WRITE, cluster, -1).await?;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn leave_open(&self, next: u64) {
        let open = self.layout.geometry.in_cluster(next) != 0;
        self.meta.lock().compressed_at = open.then_some(HostOffset(next));
    }

    async fn give_space_back(&self, space: &Packed) {
        for cluster in space.clusters.clone() {
            // What cannot be given back is leaked, which harms nobody.
            let _ = self.change_refcount(WRITE, HostCluster(cluster), -1).await;
        }
    }
}
