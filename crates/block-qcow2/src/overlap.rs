//! What is metadata, so that no data is ever written over it.
//!
//! A wrong image can say that guest data lies where the L1 table is. Each cluster of the header,
//! the tables and the blocks is remembered here, and every write of data or of new metadata asks
//! first.

use std::collections::HashMap;

use crate::types::{Geometry, HostCluster, HostOffset};

/// The structures that can be guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// The header's cluster.
    MainHeader,
    /// The active L1 table.
    ActiveL1,
    /// The L2 tables of the active L1 table.
    ActiveL2,
    /// The refcount table.
    RefcountTable,
    /// The refcount blocks.
    RefcountBlock,
}

impl Structure {
    /// The name that corruption messages use.
    fn name(self) -> &'static str {
        match self {
            Self::MainHeader => "qcow2_header",
            Self::ActiveL1 => "active L1 table",
            Self::ActiveL2 => "active L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
        }
    }
}

/// Which structures are guarded: `overlap-check` with its template and exceptions.
///
/// Snapshot tables, inactive L1 and L2 tables and bitmap directories are not listed: an image
/// that has them is not opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlapChecks {
    /// The header's cluster.
    pub main_header: bool,
    /// The active L1 table.
    pub active_l1: bool,
    /// The L2 tables of the active L1 table.
    pub active_l2: bool,
    /// The refcount table.
    pub refcount_table: bool,
    /// The refcount blocks.
    pub refcount_block: bool,
}

impl OverlapChecks {
    /// Nothing is guarded (template `none`).
    pub const NONE: Self = Self {
        main_header: false,
        active_l1: false,
        active_l2: false,
        refcount_table: false,
        refcount_block: false,
    };
    /// What never moves, and the refcount table (template `constant`).
    pub const CONSTANT: Self = Self {
        main_header: true,
        active_l1: true,
        refcount_table: true,
        ..Self::NONE
    };
    /// Everything that is known in memory (templates `cached` and `all`).
    pub const CACHED: Self = Self {
        active_l2: true,
        refcount_block: true,
        ..Self::CONSTANT
    };

    fn guards(self, structure: Structure) -> bool {
        match structure {
            Structure::MainHeader => self.main_header,
            Structure::ActiveL1 => self.active_l1,
            Structure::ActiveL2 => self.active_l2,
            Structure::RefcountTable => self.refcount_table,
            Structure::RefcountBlock => self.refcount_block,
        }
    }
}

impl Default for OverlapChecks {
    fn default() -> Self {
        Self::CACHED
    }
}

/// The clusters of an image that hold metadata.
pub(crate) struct MetadataMap {
    geometry: Geometry,
    checks: OverlapChecks,
    clusters: HashMap<HostCluster, Structure>,
}

impl MetadataMap {
    pub(crate) fn new(geometry: Geometry, checks: OverlapChecks) -> Self {
        let mut map = Self {
            geometry,
            checks,
            clusters: HashMap::new(),
        };
        map.add(Structure::MainHeader, HostOffset(0), 1);
        map
    }

    /// Remembers `bytes` from `at` as metadata.
    pub(crate) fn add(&mut self, structure: Structure, at: HostOffset, bytes: u64) {
        for cluster in self.range(at, bytes) {
            self.clusters.insert(HostCluster(cluster), structure);
        }
    }

    /// The structure that `bytes` from `at` held is gone.
    pub(crate) fn remove(&mut self, at: HostOffset, bytes: u64) {
        for cluster in self.range(at, bytes) {
            self.clusters.remove(&HostCluster(cluster));
        }
    }

    fn range(&self, at: HostOffset, bytes: u64) -> std::ops::Range<u64> {
        let first = at.0 >> self.geometry.cluster_bits;
        first..self.geometry.clusters_for(at.0.saturating_add(bytes))
    }

    /// The guarded structure that a write of `bytes` at `at` would destroy, if any.
    pub(crate) fn overlap(&self, at: HostOffset, bytes: u64) -> Option<Structure> {
        self.range(at, bytes).find_map(|cluster| {
            let structure = *self.clusters.get(&HostCluster(cluster))?;
            self.checks.guards(structure).then_some(structure)
        })
    }
}

/// The words for an overlap, as clients know them.
pub(crate) fn message(structure: Structure) -> String {
    format!(
        "Preventing invalid write on metadata (overlaps with {})",
        structure.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_over_metadata_are_seen_where_they_are_guarded() {
        let geometry = Geometry::new(16, 4, false, 4096);
        let mut map = MetadataMap::new(geometry, OverlapChecks::CONSTANT);
        map.add(Structure::ActiveL1, HostOffset(0x30000), 65537);
        map.add(Structure::ActiveL2, HostOffset(0x60000), 65536);
        assert_eq!(map.overlap(HostOffset(10), 1), Some(Structure::MainHeader));
        assert_eq!(
            map.overlap(HostOffset(0x2ffff), 2),
            Some(Structure::ActiveL1)
        );
        assert_eq!(map.overlap(HostOffset(0x50000), 65536), None);
        assert_eq!(map.overlap(HostOffset(0x60000), 1), None);
        map.remove(HostOffset(0x30000), 65537);
        assert_eq!(map.overlap(HostOffset(0x40000), 1), None);
    }
}
