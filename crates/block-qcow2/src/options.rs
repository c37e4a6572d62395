//! What an image can be opened with.

use block_graph::{BlockError, BlockOperation};

use crate::overlap::OverlapChecks;

/// The L2 cache's default size, where the disk is not smaller (32 MiB).
pub const DEFAULT_MAX_L2_CACHE_BYTES: u64 = 32 << 20;
/// The refcount cache's default and least size in clusters.
pub const MIN_REFCOUNT_CACHE_CLUSTERS: u64 = 4;
/// The default size of an L2 cache entry, unless clusters are smaller: 4 KiB, the unit in which
/// small changes are written back.
pub const DEFAULT_L2_ENTRY_BYTES: u64 = 4096;

/// Options for opening. Sizes are in bytes; `None` is the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Never write, whatever the permissions.
    pub read_only: bool,
    /// Postpone refcount updates; `None` does as the image's compatible feature bit says.
    pub lazy_refcounts: Option<bool>,
    /// Size of both caches together.
    pub cache_size: Option<u64>,
    /// Size of the cache of L2 tables.
    pub l2_cache_size: Option<u64>,
    /// Size of one entry of the L2 cache, a power of two between 512 and the cluster size.
    pub l2_cache_entry_size: Option<u64>,
    /// Size of the cache of refcount blocks.
    pub refcount_cache_size: Option<u64>,
    /// Pass on discards that a guest asked for to the file.
    pub pass_discard_request: bool,
    /// Discard in the file what snapshot operations free.
    pub pass_discard_snapshot: bool,
    /// Discard in the file what anything else frees.
    pub pass_discard_other: bool,
    /// Keep the host clusters of what is discarded.
    pub discard_no_unref: bool,
    /// Opened to be checked and mended only: then a corrupt image may be opened for writing.
    pub for_check: bool,
    /// Which structures are guarded against being overwritten.
    pub overlap_checks: OverlapChecks,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            lazy_refcounts: None,
            cache_size: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            pass_discard_request: true,
            pass_discard_snapshot: true,
            pass_discard_other: false,
            discard_no_unref: false,
            for_check: false,
            overlap_checks: OverlapChecks::default(),
        }
    }
}

/// The sizes of the caches that follow from the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheSizes {
    pub slices: usize,
    pub slice_bytes: u64,
    pub refcount_blocks: usize,
}

fn refuse(message: impl Into<String>) -> BlockError {
    BlockError::invalid(BlockOperation::Open, message)
}

impl OpenOptions {
    /// Works out the caches for a disk of `size` bytes.
    pub(crate) fn cache_sizes(
        &self,
        size: u64,
        cluster_size: u64,
        extended_l2: bool,
    ) -> Result<CacheSizes, BlockError> {
        let slice_bytes = self
            .l2_cache_entry_size
            .unwrap_or(DEFAULT_L2_ENTRY_BYTES.min(cluster_size));
        if !slice_bytes.is_power_of_two() || !(512..=cluster_size).contains(&slice_bytes) {
            return Err(refuse(format!(
                "L2 cache entry size must be a power of two between 512 and the cluster size \
                 ({cluster_size})"
            )));
        }
        let entry_bytes = if extended_l2 { 16 } else { 8 };
        let whole_disk = size.div_ceil(cluster_size).saturating_mul(entry_bytes);
        let least_refcounts = MIN_REFCOUNT_CACHE_CLUSTERS * cluster_size;
        let (l2, refcounts) = match (
            self.cache_size,
            self.l2_cache_size,
            self.refcount_cache_size,
        ) {
            (Some(_), Some(_), Some(_)) => {
                return Err(refuse(
                    "cache-size, l2-cache-size and refcount-cache-size may not be set at the \
                     same time",
                ));
            }
            (Some(all), Some(l2), None) if l2 > all => {
                return Err(refuse("l2-cache-size may not exceed cache-size"));
            }
            (Some(all), None, Some(refcounts)) if refcounts > all => {
                return Err(refuse("refcount-cache-size may not exceed cache-size"));
            }
            (Some(all), Some(l2), None) => (l2, all - l2),
            (Some(all), None, Some(refcounts)) => (all - refcounts, refcounts),
            (Some(all), None, None) => {
                let l2 = whole_disk.min(all.saturating_sub(least_refcounts));
                (l2, all.saturating_sub(l2).min(least_refcounts))
            }
            (None, l2, refcounts) => (
                l2.unwrap_or(whole_disk.min(DEFAULT_MAX_L2_CACHE_BYTES)),
                refcounts.unwrap_or(least_refcounts),
            ),
        };
        let count = |bytes: u64, each: u64| usize::try_from(bytes / each).unwrap_or(usize::MAX);
        Ok(CacheSizes {
            slices: count(l2.min(whole_disk.max(slice_bytes * 2)), slice_bytes).max(2),
            slice_bytes,
            refcount_blocks: count(refcounts, cluster_size).max(2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_cover_the_disk_or_what_was_asked() {
        let options = OpenOptions::default();
        let sizes = options.cache_sizes(1 << 30, 65536, false).unwrap();
        assert_eq!(sizes.slices, 32);
        assert_eq!(sizes.refcount_blocks, 4);
        let sizes = options.cache_sizes(1 << 50, 65536, false).unwrap();
        assert_eq!(sizes.slices, 8192);
        let both = OpenOptions {
            cache_size: Some(1 << 20),
            l2_cache_size: Some(2 << 20),
            ..OpenOptions::default()
        };
        assert_eq!(
            both.cache_sizes(1 << 30, 65536, false).unwrap_err().message,
            "l2-cache-size may not exceed cache-size"
        );
        let odd = OpenOptions {
            l2_cache_entry_size: Some(3000),
            ..OpenOptions::default()
        };
        assert!(odd.cache_sizes(1 << 30, 65536, false).is_err());
    }
}
