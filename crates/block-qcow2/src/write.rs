//! Writing where metadata has to change: allocation and copy on write.
//!
//! Steps for a run of clusters that need a new place: take host clusters; write the data and
//! around it what the touched subclusters held before; then change the L2 entries in memory; then
//! let go of the old place. [`crate::commit`] says why no crash can hurt that.

use block_graph::{BlockError, BlockOperation, Edge, WriteFlags};
use host_io::{IoBuf, IoBytes};

use crate::allocate::Allocated;
use crate::entries::{COPIED, Cluster, Place, Standard};
use crate::image::{Freed, Image};
use crate::overlap::Structure;
use crate::types::{GuestOffset, HostOffset, L1Index};

/// The most clusters that one allocation takes, in bytes.
const MAX_RUN_BYTES: u64 = 16 << 20;
/// Data and what is copied around it go out as one write up to this many bytes.
const MAX_JOINED_WRITE: usize = 256 << 10;

const WRITE: BlockOperation = BlockOperation::Write;

/// How the next part of a write is done.
enum Plan {
    /// Over what is there.
    InPlace { host: HostOffset, len: u64 },
    /// Into the host cluster that is kept already; some subclusters are not allocated.
    Fill { cluster: Standard, len: u64 },
    /// Into new host clusters.
    Allocate { clusters: Vec<Cluster>, len: u64 },
}

/// What lies around the data in the subclusters that it touches, in guest bytes.
struct Around {
    start: u64,
    end: u64,
}

impl Image {
    /// Stores `data` at `offset`, taking turns with others that touch the same clusters.
    pub(crate) async fn write_guest(&self, offset: u64, data: IoBytes) -> Result<(), BlockError> {
        self.check_usable(WRITE)?;
        let geometry = &self.layout.geometry;
        let end = offset.saturating_add(data.len() as u64);
        let start = geometry.cluster_start(offset);
        let _turn = self
            .guest_locks
            .lock(start, geometry.cluster_end(end))
            .await;
        self.write_locked(offset, data).await?;
        self.commit_if_full().await
    }

    /// The same for a caller that holds the guest range.
    pub(crate) async fn write_locked(&self, offset: u64, data: IoBytes) -> Result<(), BlockError> {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let guest = GuestOffset(at);
            self.ensure_table(WRITE, guest).await?;
            let plan = self.plan(guest, rest.len() as u64).await?;
            let len = match &plan {
                Plan::InPlace { len, .. } | Plan::Fill { len, .. } | Plan::Allocate { len, .. } => {
                    *len
                }
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let part = rest.slice(..len);
            let done = match plan {
                Plan::InPlace { host, .. } => {
                    self.write_data(host, part).await?;
                    len
                }
                Plan::Fill { cluster, .. } => {
                    self.fill_cluster(guest, cluster, part).await?;
                    len
                }
                Plan::Allocate { clusters, .. } => self.write_new(guest, &clusters, part).await?,
            };
            at += done as u64;
            rest = rest.slice(done..);
        }
        Ok(())
    }

    /// Writes guest data at its host offset, if no metadata is there.
    async fn write_data(&self, host: HostOffset, data: IoBytes) -> Result<(), BlockError> {
        if self.data_file.is_none() {
            self.check_overlap(WRITE, host, data.len() as u64).await?;
        }
        let node = self.data_edge().node_arc();
        node.write(host.0, data, WriteFlags::empty()).await
    }

    async fn plan(&self, guest: GuestOffset, len: u64) -> Result<Plan, BlockError> {
        let geometry = &self.layout.geometry;
        let len = len.min(geometry.slice_end(guest) - guest.0);
        let (place, covered) = self.run_at(WRITE, guest, len).await?;
        if let Place::Data { host, copied: true } = place {
            return Ok(Plan::InPlace { host, len: covered });
        }
        let first = self.cluster_at(WRITE, guest).await?;
        if let Cluster::Standard(cluster) = first
            && cluster.host.is_some()
            && cluster.copied
        {
            let in_cluster = geometry.cluster_size() - geometry.in_cluster(guest.0);
            return Ok(Plan::Fill {
                cluster,
                len: len.min(in_cluster),
            });
        }
        let mut clusters = vec![first];
        let mut next = geometry.cluster_start(guest.0) + geometry.cluster_size();
        let end = guest.0 + len.min(MAX_RUN_BYTES);
        while next < end {
            match self.cluster_at(WRITE, GuestOffset(next)).await? {
                Cluster::Standard(standard) if standard.host.is_some() && standard.copied => break,
                other => clusters.push(other),
            }
            next += geometry.cluster_size();
        }
        Ok(Plan::Allocate {
            clusters,
            len: len.min(next - guest.0),
        })
    }

    /// Writes into a host cluster that is ours, where some of the touched subclusters are not
    /// allocated yet.
    async fn fill_cluster(
        &self,
        guest: GuestOffset,
        cluster: Standard,
        data: IoBytes,
    ) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let Some(host) = cluster.host else {
            return Ok(());
        };
        let within = geometry.in_cluster(guest.0);
        let to = within + data.len() as u64;
        let touched = geometry.subclusters_of(within, to);
        // Subclusters at the edges that hold data already are written in place, exactly.
        let sub = geometry.subcluster_size();
        let has_data = |at: u64| cluster.allocated & geometry.subclusters_of(at, at + 1) != 0;
        let start = guest.0 - within;
        let around = Around {
            start: if has_data(within) {
                guest.0
            } else {
                guest.0 & !(sub - 1)
            },
            end: if has_data(to - 1) {
                start + to
            } else {
                start + to.next_multiple_of(sub)
            },
        };
        self.write_around(guest, data, &around, host, false).await?;
        let changed = Standard {
            allocated: cluster.allocated | touched,
            zero: cluster.zero & !touched,
            ..cluster
        };
        self.set_cluster(guest, &changed).await
    }

    /// Writes to newly taken host clusters; returns how many bytes found room.
    async fn write_new(
        &self,
        guest: GuestOffset,
        old: &[Cluster],
        data: IoBytes,
    ) -> Result<usize, BlockError> {
        let geometry = &self.layout.geometry;
        let start = geometry.cluster_start(guest.0);
        let taken = self.take_clusters(start, old.len() as u64).await?;
        let end = start + (taken.count << geometry.cluster_bits);
        let room = usize::try_from(end - guest.0).unwrap_or(usize::MAX);
        let len = data.len().min(room);
        let data_end = guest.0 + len as u64;
        let around = self.around_new(guest.0, data_end, old);
        let at = HostOffset(taken.at.0 + geometry.in_cluster(guest.0));
        let written = self
            .write_around(
                guest,
                data.slice(..len),
                &around,
                HostOffset(at.0 - geometry.in_cluster(guest.0)),
                taken.fresh,
            )
            .await;
        let set = match written {
            Ok(()) => self.set_new(start, old, &around, taken).await,
            Err(error) => Err(error),
        };
        if let Err(error) = set {
            if self.data_file.is_none() {
                self.give_back(WRITE, taken).await;
            }
            return Err(error);
        }
        Ok(len)
    }

    /// Host clusters for guest clusters from `start` on: with an external data file they are
    /// where the guest's are.
    pub(crate) async fn take_clusters(
        &self,
        start: u64,
        want: u64,
    ) -> Result<Allocated, BlockError> {
        if self.data_file.is_some() {
            return Ok(Allocated {
                at: HostOffset(start),
                count: want,
                fresh: false,
            });
        }
        self.allocate(WRITE, want, false).await
    }

    /// What must be written besides the data `from..to` so that the subclusters it touches are
    /// whole; for a cluster that moves with data of its own, the whole cluster.
    fn around_new(&self, from: u64, to: u64, old: &[Cluster]) -> Around {
        let geometry = &self.layout.geometry;
        let moves_data = |cluster: Option<&Cluster>| match cluster {
            Some(Cluster::Standard(standard)) => standard.allocated != 0,
            Some(Cluster::Compressed(_)) => true,
            None => false,
        };
        let sub = geometry.subcluster_size();
        let last_start = geometry.cluster_start(to - 1);
        let last = (last_start - geometry.cluster_start(from)) >> geometry.cluster_bits;
        let last = usize::try_from(last).unwrap_or(usize::MAX);
        Around {
            start: if moves_data(old.first()) {
                geometry.cluster_start(from)
            } else {
                from & !(sub - 1)
            },
            end: if moves_data(old.get(last)) {
                last_start + geometry.cluster_size()
            } else {
                to.next_multiple_of(sub)
            },
        }
    }

    /// Writes `data` for `guest`, and around it what the guest reads there now. `host` is the
    /// place of the first touched cluster's beginning.
    async fn write_around(
        &self,
        guest: GuestOffset,
        data: IoBytes,
        around: &Around,
        host: HostOffset,
        fresh: bool,
    ) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let data_end = guest.0 + data.len() as u64;
        let head = self.copied(around.start, guest.0, fresh).await?;
        let tail = self.copied(data_end, around.end, fresh).await?;
        let base = geometry.cluster_start(guest.0);
        let place = |at: u64| HostOffset(host.0 + (at - base));
        let total = head.as_ref().map_or(0, |h| h.len())
            + data.len()
            + tail.as_ref().map_or(0, |t| t.len());
        if total > data.len() && total <= MAX_JOINED_WRITE {
            let mut whole = IoBuf::with_len(total);
            let mut from = 0;
            let empty = IoBuf::zeroed(0);
            let parts: [&[u8]; 3] = [
                head.as_ref().unwrap_or(&empty),
                &data,
                tail.as_ref().unwrap_or(&empty),
            ];
            for part in parts {
                if let Some(to) = whole.get_mut(from..from + part.len()) {
                    to.copy_from_slice(part);
                }
                from += part.len();
            }
            let start = if head.is_some() {
                around.start
            } else {
                guest.0
            };
            return self.write_data(place(start), whole.freeze()).await;
        }
        if let Some(head) = head {
            self.write_data(place(around.start), head.freeze()).await?;
        }
        self.write_data(place(guest.0), data).await?;
        if let Some(tail) = tail {
            self.write_data(place(data_end), tail.freeze()).await?;
        }
        Ok(())
    }

    /// What the guest reads at `from..to`; nothing where that is zeroes and the place it goes to
    /// holds zeroes anyway.
    async fn copied(&self, from: u64, to: u64, fresh: bool) -> Result<Option<IoBuf>, BlockError> {
        if to <= from || (fresh && self.reads_as_zeroes(from, to - from).await?) {
            return Ok(None);
        }
        let len = usize::try_from(to - from).unwrap_or(usize::MAX);
        self.read_guest(WRITE, from, IoBuf::with_len(len))
            .await
            .map(Some)
    }

    /// Whether all of a range reads as zeroes by this image's own word.
    pub(crate) async fn reads_as_zeroes(&self, from: u64, len: u64) -> Result<bool, BlockError> {
        let end = from + len;
        let mut at = from;
        while at < end {
            let (place, covered) = self.run_at(WRITE, GuestOffset(at), end - at).await?;
            let zero = match place {
                Place::Zero { .. } => true,
                Place::Unallocated => self
                    .backing
                    .as_ref()
                    .is_none_or(|backing| backing.node().length() <= at),
                Place::Data { .. } | Place::Compressed(_) => false,
            };
            if !zero {
                return Ok(false);
            }
            at += covered.max(1);
        }
        Ok(true)
    }

    /// Points the entries from `start` on at their new clusters and lets go of the old ones.
    async fn set_new(
        &self,
        start: u64,
        old: &[Cluster],
        around: &Around,
        taken: Allocated,
    ) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let Some(mut meta) = self.lock_with_slice(WRITE, GuestOffset(start)).await? else {
            return Err(BlockError::corrupt(WRITE, "an L2 table is gone"));
        };
        let cluster_size = geometry.cluster_size();
        for (number, cluster) in (0..taken.count).zip(old) {
            let guest = start + number * cluster_size;
            let from = around.start.clamp(guest, guest + cluster_size) - guest;
            let to = around.end.clamp(guest, guest + cluster_size) - guest;
            if to <= from {
                continue;
            }
            let touched = geometry.subclusters_of(from, to);
            let zero = match cluster {
                Cluster::Standard(standard) => standard.zero & !touched,
                Cluster::Compressed(_) => 0,
            };
            let new = Standard {
                host: Some(HostOffset(taken.at.0 + number * cluster_size)),
                copied: true,
                allocated: touched,
                zero,
            };
            let entry = self.layout.encode(&new);
            meta.set_entry(&self.layout, GuestOffset(guest), entry);
            self.let_go(&mut meta, cluster, false);
        }
        Ok(())
    }

    /// The host clusters of `cluster` are not referred to by it any more.
    pub(crate) fn let_go(&self, meta: &mut crate::image::Meta, cluster: &Cluster, discard: bool) {
        if self.data_file.is_some() {
            return;
        }
        let geometry = &self.layout.geometry;
        let clusters = match cluster {
            Cluster::Standard(standard) => match standard.host {
                Some(host) => {
                    let first = geometry.host_cluster(host).0;
                    first..first + 1
                }
                None => return,
            },
            Cluster::Compressed(compressed) => compressed.clusters(geometry),
        };
        let since = self.in_flight.mark();
        if let Some(last) = meta.freed.last_mut()
            && last.first.0 + last.count == clusters.start
            && last.discard == discard
        {
            last.count += clusters.end - clusters.start;
            last.since = since;
            return;
        }
        meta.freed.push(Freed {
            first: crate::types::HostCluster(clusters.start),
            count: clusters.end - clusters.start,
            discard,
            since,
        });
    }

    /// Changes one L2 entry to a standard cluster.
    pub(crate) async fn set_cluster(
        &self,
        guest: GuestOffset,
        cluster: &Standard,
    ) -> Result<(), BlockError> {
        let Some(mut meta) = self.lock_with_slice(WRITE, guest).await? else {
            return Err(BlockError::corrupt(WRITE, "an L2 table is gone"));
        };
        meta.set_entry(&self.layout, guest, self.layout.encode(cluster));
        Ok(())
    }

    /// Sees to it that `guest` has an L2 table that may be changed in place.
    pub(crate) async fn ensure_table(
        &self,
        operation: BlockOperation,
        guest: GuestOffset,
    ) -> Result<(), BlockError> {
        let index = self.layout.geometry.l1_index(guest);
        if self.has_own_table(index) {
            return Ok(());
        }
        let key = index.0 as u64;
        let _turn = self.table_locks.lock(key, key + 1).await;
        if self.has_own_table(index) {
            return Ok(());
        }
        let old = match self.old_table(index) {
            Ok(old) => old,
            Err(fault) => return Err(self.table_fault(operation, fault, guest).await),
        };
        // A table that is copied must be as the file has it, and stay so meanwhile.
        let _commits = match old {
            Some(_) => Some(self.commit_lock.lock(0, 1).await),
            None => None,
        };
        let taken = self.allocate(operation, 1, true).await?;
        let made = self.make_table(old, taken).await;
        if let Err(error) = made {
            self.give_back(operation, taken).await;
            return Err(error);
        }
        let cluster_size = self.layout.geometry.cluster_size();
        let mut meta = self.meta.lock();
        meta.set_l1(index, taken.at.0 | COPIED);
        meta.map.add(Structure::ActiveL2, taken.at, cluster_size);
        if let Some(old) = old {
            meta.map.remove(old, cluster_size);
            meta.freed.push(Freed {
                first: self.layout.geometry.host_cluster(old),
                count: 1,
                discard: false,
                since: self.in_flight.mark(),
            });
        }
        Ok(())
    }

    fn has_own_table(&self, index: L1Index) -> bool {
        let meta = self.meta.lock();
        meta.l1.get(index.0).is_some_and(|&entry| {
            entry & COPIED != 0 && matches!(self.layout.l1_entry(entry), Ok(Some(_)))
        })
    }

    fn old_table(&self, index: L1Index) -> Result<Option<HostOffset>, crate::entries::Fault> {
        self.meta.lock().table_at(&self.layout, index)
    }

    async fn make_table(
        &self,
        old: Option<HostOffset>,
        taken: Allocated,
    ) -> Result<(), BlockError> {
        let len = self.layout.geometry.cluster_len();
        match old {
            Some(old) => {
                let content = self.read_file(&self.file, old, len).await?;
                self.write_metadata(taken.at.0, content.freeze()).await
            }
            None => {
                let zeroes = IoBuf::zeroed(len).freeze();
                self.write_metadata(taken.at.0, zeroes).await
            }
        }
    }

    pub(crate) async fn read_file(
        &self,
        edge: &Edge,
        at: HostOffset,
        len: usize,
    ) -> Result<IoBuf, BlockError> {
        edge.node_arc().read(at.0, IoBuf::with_len(len)).await
    }
}
