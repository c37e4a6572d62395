//! Checking an image's references against its refcounts, and mending what can be mended.
//!
//! All references are counted from the header down; then every count of the refcount blocks is
//! compared. A count that is too high is a leak; one that is too low is corruption, for the
//! cluster could be used twice. The COPIED flags must say whether a count is exactly one.

use std::collections::HashMap;

use block_graph::{BlockError, BlockOperation};
use host_io::IoBuf;

use crate::driver::Qcow2;
use crate::entries::{COPIED, Cluster, Fault};
use crate::header::incompatible;
use crate::image::Image;
use crate::overlap::Structure;
use crate::refcounts::Known;
use crate::types::{GuestOffset, HostCluster, HostOffset, L1Index};

/// How many messages a report keeps.
pub const MAX_CHECK_MESSAGES: usize = 1000;
/// How far behind the file's end leaked clusters are looked for.
const MAX_BEHIND_END: u64 = 1 << 22;
/// Clusters that are counted as one piece of memory.
const PIECE: u64 = 64;

const CHECK: BlockOperation = BlockOperation::Open;

/// What [`Qcow2::check`] may mend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Counts that are too high.
    pub leaks: bool,
    /// Counts that are too low, and wrong flags.
    pub corruptions: bool,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Corruptions that are still there.
    pub corruptions: u64,
    /// Leaked clusters that are still there.
    pub leaks: u64,
    /// Corruptions that were mended.
    pub corruptions_fixed: u64,
    /// Leaks that were mended.
    pub leaks_fixed: u64,
    /// Guest clusters that have a host cluster.
    pub allocated_clusters: u64,
    /// Guest clusters that are compressed.
    pub compressed_clusters: u64,
    /// Guest clusters that do not follow the one before in the file.
    pub fragmented_clusters: u64,
    /// Guest clusters in all.
    pub total_clusters: u64,
    /// One past the last used byte of the image file.
    pub image_end_offset: u64,
    /// What was found, in words; at most [`MAX_CHECK_MESSAGES`].
    pub messages: Vec<String>,
}

impl CheckReport {
    fn tell(&mut self, message: String) {
        if self.messages.len() < MAX_CHECK_MESSAGES {
            self.messages.push(message);
        }
    }

    fn corruption(&mut self, message: String) {
        self.corruptions += 1;
        self.tell(format!("ERROR {message}"));
    }
}

/// How often each host cluster is referred to.
#[derive(Default)]
struct References {
    pieces: HashMap<u64, [u32; PIECE as usize]>,
    end: u64,
}

impl References {
    fn add(&mut self, cluster: u64) {
        let piece = self
            .pieces
            .entry(cluster / PIECE)
            .or_insert([0; PIECE as usize]);
        if let Some(count) = piece.get_mut((cluster % PIECE) as usize) {
            *count = count.saturating_add(1);
        }
        self.end = self.end.max(cluster + 1);
    }

    fn get(&self, cluster: u64) -> u64 {
        self.pieces
            .get(&(cluster / PIECE))
            .and_then(|piece| piece.get((cluster % PIECE) as usize))
            .map_or(0, |&count| u64::from(count))
    }
}

/// An entry whose COPIED flag may have to be looked at.
struct Flagged {
    place: FlagPlace,
    host: HostCluster,
    copied: bool,
}

enum FlagPlace {
    L1(L1Index),
    L2(GuestOffset),
}

/// A check under way.
struct Check<'a> {
    image: &'a Image,
    references: References,
    flags: Vec<Flagged>,
    report: CheckReport,
    file_clusters: u64,
    expected_next: u64,
}

/// How many flags that look wrong a check remembers to mend.
const MAX_FLAGS: usize = 1 << 22;

impl Qcow2 {
    /// Compares all references with the refcounts. Nothing else may use the image meanwhile.
    ///
    /// # Errors
    /// The host's; images with snapshots, bitmaps or encryption, whose references this does not
    /// know yet.
    pub async fn check(&self, repair: Repair) -> Result<CheckReport, BlockError> {
        self.image
            .detached(CHECK, move |image| async move {
                let report = image.check_and_repair(repair).await?;
                let all = repair.leaks && repair.corruptions;
                if all && report.corruptions + report.leaks == 0 {
                    image.clear_marks().await?;
                }
                Ok(report)
            })
            .await
    }
}

impl Image {
    /// Rebuilds the counts of an image that was not closed, and clears its dirty bit.
    pub(crate) async fn repair_dirty(&self) -> Result<(), BlockError> {
        let repair = Repair {
            leaks: true,
            corruptions: true,
        };
        let report = self.check_and_repair(repair).await?;
        if report.corruptions > 0 {
            return Err(BlockError::corrupt(
                BlockOperation::Open,
                "qcow2: Could not repair dirty image: Input/output error",
            ));
        }
        if self.lazy_refcounts {
            // It is going to be written with lazy refcounts again: the bit may stay.
            return Ok(());
        }
        self.set_incompatible(0, incompatible::DIRTY).await?;
        self.flush_file().await
    }

    /// Nothing is wrong any more: the image is neither dirty nor corrupt.
    async fn clear_marks(&self) -> Result<(), BlockError> {
        let marks = incompatible::DIRTY | incompatible::CORRUPT;
        if self.options.read_only || self.state.lock().incompatible & marks == 0 {
            return Ok(());
        }
        self.set_incompatible(0, marks).await?;
        self.flush_file().await
    }

    async fn check_and_repair(&self, repair: Repair) -> Result<CheckReport, BlockError> {
        if self.header.snapshots() > 0
            || self.header.has_bitmaps()
            || self.header.encryption().is_some()
        {
            return Err(BlockError::not_supported(
                CHECK,
                "images with internal snapshots, bitmaps or encryption cannot be checked yet",
            ));
        }
        if !self.options.read_only {
            self.commit().await?;
        }
        let file_clusters = self.layout.geometry.clusters_for(self.file.node().length());
        let mut check = Check {
            image: self,
            references: References::default(),
            flags: Vec::new(),
            report: CheckReport::default(),
            file_clusters,
            expected_next: 0,
        };
        check.count_references().await?;
        if repair.leaks || repair.corruptions {
            let floor = check.references.end.max(file_clusters);
            self.meta.lock().refcounts.set_floor(floor);
        }
        let result = check.compare_all(repair).await;
        self.meta.lock().refcounts.set_floor(0);
        result?;
        let mut report = check.report;
        report.total_clusters = self.layout.geometry.clusters_for(self.length());
        report.image_end_offset = check.references.end << self.layout.geometry.cluster_bits;
        if report.corruptions_fixed + report.leaks_fixed > 0 {
            self.write_repairs().await?;
        }
        Ok(report)
    }

    async fn write_repairs(&self) -> Result<(), BlockError> {
        {
            let _turn = self.alloc_lock.lock(0, 1).await;
            let changes = self.write_refcount_changes().await;
            let durable = self.flush_file().await;
            self.end_refcount_write(changes, durable.is_ok())?;
            durable?;
        }
        self.commit().await
    }

    /// Makes a zeroed refcount block with this index in a place of its own.
    async fn make_missing_block(&self, cluster: HostCluster) -> Result<(), BlockError> {
        let geometry = &self.layout.geometry;
        let taken = self.allocate(CHECK, 1, true).await?;
        let mut meta = self.meta.lock();
        let index = meta.refcounts.block_index(cluster);
        if !matches!(meta.refcounts.block_place(index), Ok(Some(_))) {
            meta.refcounts.make_block_at(index, taken.at);
            meta.map
                .add(Structure::RefcountBlock, taken.at, geometry.cluster_size());
        }
        Ok(())
    }
}

impl Check<'_> {
    async fn count_references(&mut self) -> Result<(), BlockError> {
        let image = self.image;
        let geometry = image.layout.geometry;
        self.references.add(0);
        let (l1_at, l1, table_at, table) = {
            let meta = image.meta.lock();
            let refcounts = &meta.refcounts;
            let l1 = (meta.l1_at, meta.l1.clone());
            (l1.0, l1.1, refcounts.table_at, refcounts.table.clone())
        };
        self.add_bytes(l1_at, l1.len() as u64 * 8, "L1 table");
        self.add_bytes(table_at, table.len() as u64 * 8, "refcount table");
        for (index, &entry) in table.iter().enumerate() {
            match image.layout.refcount_table_entry(entry) {
                Ok(None) => {}
                Ok(Some(at)) => {
                    self.add_bytes(at, geometry.cluster_size(), "refcount block");
                }
                Err(Fault::Reserved) => self.report.corruption(format!(
                    "refcount table entry {index} has reserved bits set"
                )),
                Err(_) => self.report.corruption(format!(
                    "refcount block {index} is not cluster aligned; refcount table entry corrupted"
                )),
            }
        }
        for (index, &entry) in l1.iter().enumerate() {
            match image.layout.l1_entry(entry) {
                Ok(None) => {}
                Ok(Some(at)) => self.count_table(L1Index(index), entry, at).await?,
                Err(Fault::Unaligned(at)) => self.report.corruption(format!(
                    "l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted",
                    at.0
                )),
                Err(_) => self
                    .report
                    .corruption(format!("found L1 entry with reserved bits set: {entry:x}")),
            }
        }
        Ok(())
    }

    fn add_bytes(&mut self, at: HostOffset, bytes: u64, what: &str) {
        let geometry = &self.image.layout.geometry;
        if bytes == 0 {
            return;
        }
        let first = at.0 >> geometry.cluster_bits;
        let end = geometry.clusters_for(at.0.saturating_add(bytes));
        if end > self.file_clusters + 1 {
            self.report.corruption(format!(
                "counting reference for region exceeding the end of the file by one cluster or \
                 more: {what} offset {:#x} size {bytes:#x}",
                at.0
            ));
            return;
        }
        for cluster in first..end {
            self.references.add(cluster);
        }
    }

    async fn count_table(
        &mut self,
        index: L1Index,
        entry: u64,
        at: HostOffset,
    ) -> Result<(), BlockError> {
        let image = self.image;
        let geometry = image.layout.geometry;
        self.add_bytes(at, geometry.cluster_size(), "L2 table");
        self.flag(
            FlagPlace::L1(index),
            geometry.host_cluster(at),
            entry & COPIED != 0,
        );
        let bytes = image
            .file
            .node_arc()
            .read(at.0, IoBuf::with_len(geometry.cluster_len()))
            .await?;
        let words: Vec<u64> = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_be_bytes(*word))
            .collect();
        let base = (index.0 as u64) << geometry.l1_span_bits();
        for (number, pair) in words.chunks_exact(geometry.entry_words()).enumerate() {
            let word = pair.first().copied().unwrap_or(0);
            let bitmap = pair.get(1).copied().unwrap_or(0);
            if word == 0 && bitmap == 0 {
                continue;
            }
            let guest = GuestOffset(base + ((number as u64) << geometry.cluster_bits));
            self.count_entry(guest, word, bitmap);
        }
        Ok(())
    }

    fn count_entry(&mut self, guest: GuestOffset, word: u64, bitmap: u64) {
        let image = self.image;
        let geometry = image.layout.geometry;
        match image.layout.decode(word, bitmap, guest) {
            Ok(Cluster::Compressed(compressed)) => {
                self.report.compressed_clusters += 1;
                self.report.allocated_clusters += 1;
                self.report.fragmented_clusters += 1;
                // QEMU counts the sectors that hold it, so whole clusters as far as they reach.
                self.add_bytes(compressed.at, compressed.max_len, "compressed cluster");
            }
            Ok(Cluster::Standard(standard)) => {
                let Some(host) = standard.host else {
                    return;
                };
                self.report.allocated_clusters += 1;
                if self.expected_next != 0 && self.expected_next != host.0 {
                    self.report.fragmented_clusters += 1;
                }
                self.expected_next = host.0 + geometry.cluster_size();
                if image.layout.external_data {
                    return;
                }
                self.add_bytes(host, geometry.cluster_size(), "data cluster");
                let cluster = geometry.host_cluster(host);
                self.flag(FlagPlace::L2(guest), cluster, word & COPIED != 0);
            }
            Err(Fault::Unaligned(at)) => self.report.corruption(format!(
                "offset={:x}: Data cluster is not properly aligned; L2 entry corrupted.",
                at.0
            )),
            Err(Fault::Reserved) => self
                .report
                .corruption(format!("found l2 entry with reserved bits set: {word:x}")),
            Err(_) => self.report.corruption(format!(
                "invalid L2 entry {word:x} for guest offset {:#x}",
                guest.0
            )),
        }
    }

    fn flag(&mut self, place: FlagPlace, host: HostCluster, copied: bool) {
        if self.flags.len() < MAX_FLAGS {
            self.flags.push(Flagged {
                place,
                host,
                copied,
            });
        }
    }

    async fn compare_all(&mut self, repair: Repair) -> Result<(), BlockError> {
        let image = self.image;
        if repair.corruptions {
            self.drop_wrong_blocks();
        }
        let described = {
            let meta = image.meta.lock();
            let blocks = meta.refcounts.table.iter().rposition(|&entry| entry != 0);
            let blocks = blocks.map_or(0, |last| last as u64 + 1);
            blocks << image.layout.geometry.block_bits()
        };
        let per_block = 1u64 << image.layout.geometry.block_bits();
        // Counts for clusters far behind the file's end are of no use to anybody, and an image
        // could have more of them than can be looked at.
        let near_end = self.file_clusters.saturating_add(MAX_BEHIND_END);
        let end = described.min(near_end).max(self.references.end);
        let mut cluster = 0;
        while cluster < end {
            // Blocks that do not exist and whose clusters nobody refers to need no look.
            let skip = cluster % per_block == 0 && cluster >= self.references.end;
            if skip && self.count(cluster).await? == Known::NoBlock {
                cluster += per_block;
                continue;
            }
            self.compare(cluster, repair).await?;
            cluster += 1;
        }
        self.compare_flags(repair).await
    }

    /// Refcount table entries that point nowhere are emptied, so that their blocks are made anew.
    fn drop_wrong_blocks(&mut self) {
        let mut meta = self.image.meta.lock();
        for index in 0..meta.refcounts.table.len() {
            if meta.refcounts.block_place(index).is_err() {
                meta.refcounts.set_table_entry(index, HostOffset(0));
                self.report.corruptions = self.report.corruptions.saturating_sub(1);
                self.report.corruptions_fixed += 1;
            }
        }
    }

    async fn count(&self, cluster: u64) -> Result<Known, BlockError> {
        let image = self.image;
        let known = image.meta.lock().refcounts.get(HostCluster(cluster));
        if !matches!(known, Known::Load(_)) {
            return Ok(known);
        }
        // Adding nothing loads the block.
        image
            .change_refcount(CHECK, HostCluster(cluster), 0)
            .await?;
        Ok(image.meta.lock().refcounts.get(HostCluster(cluster)))
    }

    async fn compare(&mut self, cluster: u64, repair: Repair) -> Result<(), BlockError> {
        let expected = self.references.get(cluster);
        let known = self.count(cluster).await?;
        let actual = match known {
            Known::Count(count) => count,
            _ => 0,
        };
        if actual == expected {
            return Ok(());
        }
        let leak = actual > expected;
        let mend = if leak {
            repair.leaks
        } else {
            repair.corruptions
        };
        if mend && expected <= self.image.layout.geometry.max_refcount() {
            self.set_count(cluster, expected).await?;
            if leak {
                self.report.leaks_fixed += 1;
            } else {
                self.report.corruptions_fixed += 1;
            }
        } else if leak {
            self.report.leaks += 1;
            self.report.tell(format!(
                "Leaked cluster {cluster} refcount={actual} reference={expected}"
            ));
        } else {
            self.report.corruption(format!(
                "cluster {cluster} refcount={actual} reference={expected}"
            ));
        }
        Ok(())
    }

    async fn set_count(&mut self, cluster: u64, count: u64) -> Result<(), BlockError> {
        let image = self.image;
        for _ in 0..16 {
            match self.count(cluster).await? {
                Known::Count(_) => {
                    image.meta.lock().refcounts.set(HostCluster(cluster), count);
                    return Ok(());
                }
                _ => {
                    image.make_missing_block(HostCluster(cluster)).await?;
                }
            }
        }
        Err(BlockError::corrupt(
            CHECK,
            format!("the refcount of cluster {cluster} cannot be set"),
        ))
    }

    async fn compare_flags(&mut self, repair: Repair) -> Result<(), BlockError> {
        for flagged in std::mem::take(&mut self.flags) {
            let Known::Count(count) = self.count(flagged.host.0).await? else {
                continue;
            };
            if flagged.copied == (count == 1) {
                continue;
            }
            if repair.corruptions {
                self.mend_flag(&flagged, count == 1).await?;
                self.report.corruptions_fixed += 1;
            } else if flagged.copied {
                self.report.corruption(format!(
                    "OFLAG_COPIED cluster {}: refcount={count}",
                    flagged.host.0
                ));
            } else {
                self.report.corruption(format!(
                    "cluster {} lacks OFLAG_COPIED: refcount={count}",
                    flagged.host.0
                ));
            }
        }
        Ok(())
    }

    async fn mend_flag(&self, flagged: &Flagged, copied: bool) -> Result<(), BlockError> {
        let image = self.image;
        let set = |word: u64| {
            if copied {
                word | COPIED
            } else {
                word & !COPIED
            }
        };
        match flagged.place {
            FlagPlace::L1(index) => {
                let mut meta = image.meta.lock();
                if let Some(&entry) = meta.l1.get(index.0) {
                    meta.set_l1(index, set(entry));
                }
            }
            FlagPlace::L2(guest) => {
                let geometry = &image.layout.geometry;
                let number = geometry.slice_number(guest);
                let Some(mut meta) = image.lock_with_slice(CHECK, guest).await? else {
                    return Ok(());
                };
                let words = geometry.entry_words();
                let index = geometry.slice_index(guest);
                let entry = meta
                    .slices
                    .get(number)
                    .map(|slice| slice.entry(index, words));
                if let Some((word, bitmap)) = entry {
                    meta.set_entry(&image.layout, guest, (set(word), bitmap));
                }
            }
        }
        Ok(())
    }
}
