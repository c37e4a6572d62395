//! The numbers of the format, each with its own type, and the arithmetic between them.

/// A byte offset in the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

/// A byte offset in the image file, or in the external data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

/// The number of a host cluster: its offset divided by the cluster size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostCluster(pub u64);

/// An index into the active L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L1Index(pub usize);

/// The number of an L2 slice, counted over the whole virtual disk. A slice is a part of an L2
/// table that is loaded and cached as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceNumber(pub u64);

/// The smallest cluster size as a power of two (512 bytes).
pub const MIN_CLUSTER_BITS: u32 = 9;
/// The largest cluster size as a power of two (2 MiB).
pub const MAX_CLUSTER_BITS: u32 = 21;
/// The smallest cluster size of images with extended L2 entries, as a power of two (16 KiB).
pub const MIN_EXTENDED_CLUSTER_BITS: u32 = 14;
/// The widest refcount, as a power of two of bits (64 bits).
pub const MAX_REFCOUNT_ORDER: u32 = 6;
/// The largest active L1 table in bytes.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// The largest refcount table in bytes.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Host offsets in L1 and L2 tables have 56 bits.
pub const MAX_HOST_OFFSET: u64 = 1 << 56;
/// The longest virtual disk in bytes: as QEMU's, 1 GiB less than 2^63.
pub const MAX_DISK_BYTES: u64 = 0x7fff_ffff_c000_0000;
/// How many subclusters a cluster has with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;

/// The sizes that follow from an image's header and its cache options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cluster size as a power of two.
    pub cluster_bits: u32,
    /// Refcount width in bits as a power of two.
    pub refcount_order: u32,
    /// Whether L2 entries have 128 bits and a bitmap of subclusters.
    pub extended_l2: bool,
    /// Entries of an L2 slice as a power of two.
    pub slice_bits: u32,
}

impl Geometry {
    /// The sizes of an image; slices have `slice_bytes`, at most a cluster, at least 512.
    pub fn new(
        cluster_bits: u32,
        refcount_order: u32,
        extended_l2: bool,
        slice_bytes: u64,
    ) -> Self {
        let entry_bits = if extended_l2 { 4 } else { 3 };
        let slice_bytes_bits = slice_bytes.max(512).min(1 << cluster_bits).ilog2();
        Self {
            cluster_bits,
            refcount_order,
            extended_l2,
            slice_bits: slice_bytes_bits - entry_bits,
        }
    }

    /// Cluster size in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The same for memory.
    pub fn cluster_len(&self) -> usize {
        1 << self.cluster_bits
    }

    /// Where in its cluster an offset lies.
    pub fn in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// The beginning of the cluster that holds an offset.
    pub fn cluster_start(&self, offset: u64) -> u64 {
        offset & !(self.cluster_size() - 1)
    }

    /// The first multiple of the cluster size that is not below `offset`.
    pub fn cluster_end(&self, offset: u64) -> u64 {
        self.cluster_start(offset.saturating_add(self.cluster_size() - 1))
    }

    /// How many clusters `bytes` need.
    pub fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// Bytes of one L2 entry as a power of two.
    pub fn entry_bits(&self) -> u32 {
        if self.extended_l2 { 4 } else { 3 }
    }

    /// 64-bit words of one L2 entry.
    pub fn entry_words(&self) -> usize {
        if self.extended_l2 { 2 } else { 1 }
    }

    /// Entries of an L2 table as a power of two.
    pub fn table_bits(&self) -> u32 {
        self.cluster_bits - self.entry_bits()
    }

    /// Bytes of guest data that one L1 entry stands for, as a power of two.
    pub fn l1_span_bits(&self) -> u32 {
        self.cluster_bits + self.table_bits()
    }

    /// Bytes of one L2 slice.
    pub fn slice_bytes(&self) -> u64 {
        1 << (self.slice_bits + self.entry_bits())
    }

    /// The L1 entry that stands for a guest offset.
    pub fn l1_index(&self, guest: GuestOffset) -> L1Index {
        L1Index(usize::try_from(guest.0 >> self.l1_span_bits()).unwrap_or(usize::MAX))
    }

    /// How many L1 entries a disk of `bytes` needs.
    pub fn l1_entries_for(&self, bytes: u64) -> u64 {
        let span_bits = self.l1_span_bits();
        (bytes >> span_bits) + u64::from(bytes & ((1 << span_bits) - 1) != 0)
    }

    /// The slice that describes a guest offset.
    pub fn slice_number(&self, guest: GuestOffset) -> SliceNumber {
        SliceNumber(guest.0 >> (self.cluster_bits + self.slice_bits))
    }

    /// Where in its slice the entry of a guest offset stands.
    pub fn slice_index(&self, guest: GuestOffset) -> usize {
        ((guest.0 >> self.cluster_bits) & ((1 << self.slice_bits) - 1)) as usize
    }

    /// Entries of a slice.
    pub fn slice_entries(&self) -> usize {
        1 << self.slice_bits
    }

    /// The L1 entry of a slice, and the slice's byte offset in that entry's table.
    pub fn slice_place(&self, slice: SliceNumber) -> (L1Index, u64) {
        let per_table_bits = self.table_bits() - self.slice_bits;
        let in_table = slice.0 & ((1 << per_table_bits) - 1);
        (
            L1Index(usize::try_from(slice.0 >> per_table_bits).unwrap_or(usize::MAX)),
            in_table * self.slice_bytes(),
        )
    }

    /// The end of the range that the slice of `guest` describes, in guest bytes.
    pub fn slice_end(&self, guest: GuestOffset) -> u64 {
        let bits = self.cluster_bits + self.slice_bits;
        ((guest.0 >> bits) + 1) << bits
    }

    /// How many subclusters a cluster has: one without extended L2 entries.
    pub fn subclusters(&self) -> u32 {
        if self.extended_l2 { SUBCLUSTERS } else { 1 }
    }

    /// Subcluster size as a power of two of bytes.
    pub fn subcluster_bits(&self) -> u32 {
        if self.extended_l2 {
            self.cluster_bits - SUBCLUSTERS.ilog2()
        } else {
            self.cluster_bits
        }
    }

    /// Subcluster size in bytes.
    pub fn subcluster_size(&self) -> u64 {
        1 << self.subcluster_bits()
    }

    /// One bit for each subcluster.
    pub fn all_subclusters(&self) -> u32 {
        if self.extended_l2 { u32::MAX } else { 1 }
    }

    /// The subclusters that the bytes `from..to` of a cluster touch, one bit each.
    pub fn subclusters_of(&self, from: u64, to: u64) -> u32 {
        if to <= from {
            return 0;
        }
        let bits = self.subcluster_bits();
        let first = (from >> bits).min(31);
        let last = ((to - 1) >> bits).min(31);
        let up_to_last = ((1u64 << (last + 1)) - 1) as u32;
        let below_first = ((1u64 << first) - 1) as u32;
        up_to_last & !below_first
    }

    /// The cluster of a host offset.
    pub fn host_cluster(&self, host: HostOffset) -> HostCluster {
        HostCluster(host.0 >> self.cluster_bits)
    }

    /// The offset of a host cluster.
    pub fn host_offset(&self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }

    /// Refcounts in one refcount block, as a power of two.
    pub fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// The largest refcount.
    pub fn max_refcount(&self) -> u64 {
        match self.refcount_order {
            6.. => u64::MAX,
            order => (1 << (1 << order)) - 1,
        }
    }

    /// How many bits of a compressed cluster's descriptor hold the host offset.
    pub fn compressed_offset_bits(&self) -> u32 {
        62 - (self.cluster_bits - 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_from_the_cluster_size() {
        let geometry = Geometry::new(16, 4, false, 4096);
        assert_eq!(geometry.table_bits(), 13);
        assert_eq!(geometry.slice_entries(), 512);
        assert_eq!(geometry.l1_entries_for(1 << 29), 1);
        assert_eq!(geometry.l1_entries_for((1 << 29) + 1), 2);
        let guest = GuestOffset((1 << 29) + (513 << 16) + 5);
        assert_eq!(geometry.l1_index(guest), L1Index(1));
        assert_eq!(geometry.slice_index(guest), 1);
        assert_eq!(
            geometry.slice_place(geometry.slice_number(guest)),
            (L1Index(1), 4096)
        );
        assert_eq!(geometry.max_refcount(), 65535);
    }

    #[test]
    fn subcluster_masks_cover_what_a_range_touches() {
        let geometry = Geometry::new(16, 4, true, 4096);
        assert_eq!(geometry.subclusters_of(0, 65536), u32::MAX);
        assert_eq!(geometry.subclusters_of(2047, 2049), 0b11);
        assert_eq!(geometry.subclusters_of(63 << 10, 64 << 10), 1 << 31);
        assert_eq!(geometry.subclusters_of(7, 7), 0);
        let plain = Geometry::new(9, 0, false, 4096);
        assert_eq!(plain.subclusters_of(0, 512), 1);
        assert_eq!(plain.max_refcount(), 1);
        assert_eq!(plain.slice_bytes(), 512);
    }
}
