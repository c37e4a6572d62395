//! L1, L2 and refcount table entries: what their bits say, checked.
//!
//! A cluster without extended L2 entries is treated as one with a single subcluster, so that
//! everything above knows one shape only ([`Standard`]).

use crate::types::{Geometry, GuestOffset, HostOffset, MAX_HOST_OFFSET};

/// Bit 63 of L1 and L2 entries: the refcount is exactly one.
pub(crate) const COPIED: u64 = 1 << 63;
/// Bit 62 of L2 entries: a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of L2 entries: reads as zeroes.
const ZERO: u64 = 1;
/// Bits 9 to 55: a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What an L2 entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    Standard(Standard),
    Compressed(Compressed),
}

/// A standard cluster: perhaps a host cluster, and two bits for each subcluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standard {
    /// The host cluster, if one is kept.
    pub host: Option<HostOffset>,
    /// Whether the host cluster may be written in place.
    pub copied: bool,
    /// Subclusters whose data is in the host cluster.
    pub allocated: u32,
    /// Subclusters that read as zeroes.
    pub zero: u32,
}

/// A compressed cluster: where its data begins, and how long it is at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compressed {
    pub at: HostOffset,
    pub max_len: u64,
}

impl Compressed {
    /// The first and one past the last host cluster that its sectors touch.
    pub(crate) fn clusters(&self, geometry: &Geometry) -> std::ops::Range<u64> {
        let start = self.at.0 & !511;
        let end = self.at.0 + self.max_len;
        (start >> geometry.cluster_bits)..geometry.clusters_for(end)
    }
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A reserved bit is set.
    Reserved,
    /// An offset that is no multiple of the cluster size.
    Unaligned(HostOffset),
    /// A cluster of the external data file that is not where the guest's is.
    NotGuestOffset(HostOffset),
    /// Bits of subclusters that contradict each other.
    Subclusters,
    /// A compressed cluster where none may be.
    Compressed,
}

/// The image's traits that decide how L2 entries read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub geometry: Geometry,
    pub version: u32,
    pub external_data: bool,
}

impl Layout {
    /// The L2 table that an L1 entry points to.
    pub(crate) fn l1_entry(&self, entry: u64) -> Result<Option<HostOffset>, Fault> {
        let host = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 {
            return Err(Fault::Reserved);
        }
        if host == 0 {
            return Ok(None);
        }
        if self.geometry.in_cluster(host) != 0 {
            return Err(Fault::Unaligned(HostOffset(host)));
        }
        Ok(Some(HostOffset(host)))
    }

    /// The refcount block that a refcount table entry points to.
    pub(crate) fn refcount_table_entry(&self, entry: u64) -> Result<Option<HostOffset>, Fault> {
        if entry & 511 != 0 {
            return Err(Fault::Reserved);
        }
        if entry == 0 {
            return Ok(None);
        }
        if self.geometry.in_cluster(entry) != 0 || entry >= MAX_HOST_OFFSET {
            return Err(Fault::Unaligned(HostOffset(entry)));
        }
        Ok(Some(HostOffset(entry)))
    }

    /// What an L2 entry says; `bitmap` is its second word, zero without extended entries.
    pub(crate) fn decode(
        &self,
        entry: u64,
        bitmap: u64,
        guest: GuestOffset,
    ) -> Result<Cluster, Fault> {
        if entry & COMPRESSED != 0 {
            return self.decode_compressed(entry, bitmap);
        }
        let extended = self.geometry.extended_l2;
        let has_zero_flag = self.version >= 3 && !extended;
        let zero_flag = if has_zero_flag { ZERO } else { 0 };
        if entry & !(OFFSET | COPIED | zero_flag) != 0 {
            return Err(Fault::Reserved);
        }
        let copied = entry & COPIED != 0;
        let offset = HostOffset(entry & OFFSET);
        let host = if offset.0 != 0 || (self.external_data && copied) {
            Some(offset)
        } else {
            None
        };
        if self.geometry.in_cluster(offset.0) != 0 {
            return Err(Fault::Unaligned(offset));
        }
        if self.external_data && host.is_some() {
            let expected = self.geometry.cluster_start(guest.0);
            if offset.0 != expected {
                return Err(Fault::NotGuestOffset(offset));
            }
        }
        let (allocated, zero) = if extended {
            (bitmap as u32, (bitmap >> 32) as u32)
        } else {
            let zero = u32::from(entry & zero_flag != 0);
            (u32::from(host.is_some() && zero == 0), zero)
        };
        if allocated & zero != 0 || (allocated != 0 && host.is_none()) {
            return Err(Fault::Subclusters);
        }
        Ok(Cluster::Standard(Standard {
            host,
            copied: copied && host.is_some(),
            allocated,
            zero,
        }))
    }

    fn decode_compressed(&self, entry: u64, bitmap: u64) -> Result<Cluster, Fault> {
        if self.external_data {
            return Err(Fault::Compressed);
        }
        if entry & COPIED != 0 || bitmap != 0 {
            return Err(Fault::Reserved);
        }
        let bits = self.geometry.compressed_offset_bits();
        let descriptor = entry & !(COPIED | COMPRESSED);
        let at = descriptor & ((1 << bits) - 1);
        let more_sectors = descriptor >> bits;
        if at >= MAX_HOST_OFFSET {
            return Err(Fault::Reserved);
        }
        Ok(Cluster::Compressed(Compressed {
            at: HostOffset(at),
            max_len: (more_sectors + 1) * 512 - (at & 511),
        }))
    }

    /// The two words of a standard cluster's entry.
    pub(crate) fn encode(&self, cluster: &Standard) -> (u64, u64) {
        let mut entry = cluster.host.map_or(0, |host| host.0);
        if cluster.copied {
            entry |= COPIED;
        }
        if self.geometry.extended_l2 {
            let bitmap = u64::from(cluster.allocated) | u64::from(cluster.zero) << 32;
            (entry, bitmap)
        } else {
            if cluster.zero != 0 {
                entry |= ZERO;
            }
            (entry, 0)
        }
    }

    /// The entry of a compressed cluster of `len` bytes at `at`, if its offset can be expressed.
    pub(crate) fn encode_compressed(&self, at: HostOffset, len: u64) -> Option<u64> {
        let bits = self.geometry.compressed_offset_bits();
        let last = at.0.checked_add(len.checked_sub(1)?)?;
        if last >= 1 << bits || last >= MAX_HOST_OFFSET {
            return None;
        }
        let more_sectors = (last >> 9) - (at.0 >> 9);
        Some(COMPRESSED | more_sectors << bits | at.0)
    }
}

/// What a run of bytes within one slice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The backing node decides.
    Unallocated,
    /// Zeroes, perhaps with a host cluster kept.
    Zero { host: Option<HostOffset> },
    /// Data, from this very offset on.
    Data { host: HostOffset, copied: bool },
    /// One compressed cluster (or the rest of it).
    Compressed(Compressed),
}

impl Standard {
    /// What lies at `within` of this cluster, and for how many bytes.
    pub(crate) fn place_at(&self, geometry: &Geometry, within: u64) -> (Place, u64) {
        let bits = geometry.subcluster_bits();
        let first = (within >> bits) as u32;
        let kind = |index: u32| (self.allocated >> index & 1, self.zero >> index & 1);
        let here = kind(first);
        let mut next = first + 1;
        while next < geometry.subclusters() && kind(next) == here {
            next += 1;
        }
        let len = (u64::from(next) << bits) - within;
        let at = self.host.map(|host| HostOffset(host.0 + within));
        let place = match (here, at) {
            ((1, _), Some(host)) => Place::Data {
                host,
                copied: self.copied,
            },
            ((_, 1), host) => Place::Zero { host },
            _ => Place::Unallocated,
        };
        (place, len)
    }
}

impl Place {
    /// Whether `next` continues this after `len` bytes.
    pub(crate) fn continues_with(&self, len: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Unallocated, Self::Unallocated) => true,
            (Self::Zero { host: None }, Self::Zero { host: None }) => true,
            (Self::Zero { host: Some(a) }, Self::Zero { host: Some(b) }) => a.0 + len == b.0,
            (
                Self::Data { host, copied },
                Self::Data {
                    host: next,
                    copied: next_copied,
                },
            ) => host.0 + len == next.0 && copied == next_copied,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(extended_l2: bool) -> Layout {
        Layout {
            geometry: Geometry::new(16, 4, extended_l2, 4096),
            version: 3,
            external_data: false,
        }
    }

    #[test]
    fn standard_entries_go_both_ways() {
        let cluster = Standard {
            host: Some(HostOffset(0x50000)),
            copied: true,
            allocated: 0,
            zero: 1,
        };
        let (word, bitmap) = layout(false).encode(&cluster);
        assert_eq!((word, bitmap), (0x8000_0000_0005_0001, 0));
        let back = layout(false).decode(word, bitmap, GuestOffset(0));
        assert_eq!(back, Ok(Cluster::Standard(cluster)));
        let cluster = Standard {
            host: Some(HostOffset(0x50000)),
            copied: true,
            allocated: 0xff00,
            zero: 1,
        };
        let (word, bitmap) = layout(true).encode(&cluster);
        let back = layout(true).decode(word, bitmap, GuestOffset(0));
        assert_eq!(back, Ok(Cluster::Standard(cluster)));
    }

    #[test]
    fn wrong_entries_are_told_apart() {
        let plain = layout(false);
        let guest = GuestOffset(0);
        assert_eq!(
            plain.decode(COPIED | 0x50200, 0, guest),
            Err(Fault::Unaligned(HostOffset(0x50200)))
        );
        assert_eq!(plain.decode(1 << 60, 0, guest), Err(Fault::Reserved));
        assert_eq!(layout(true).decode(ZERO, 0, guest), Err(Fault::Reserved));
        assert_eq!(
            layout(true).decode(0x50000, 1 << 32 | 1, guest),
            Err(Fault::Subclusters)
        );
        assert_eq!(layout(true).decode(0, 1, guest), Err(Fault::Subclusters));
        let external = Layout {
            external_data: true,
            ..plain
        };
        assert_eq!(
            external.decode(COPIED, 0, GuestOffset(0x10000)),
            Err(Fault::NotGuestOffset(HostOffset(0)))
        );
        assert_eq!(
            external.decode(COMPRESSED, 0, guest),
            Err(Fault::Compressed)
        );
    }

    #[test]
    fn compressed_descriptors_cover_their_sectors() {
        let plain = layout(false);
        let word = plain.encode_compressed(HostOffset(0x50010), 1000).unwrap();
        let Ok(Cluster::Compressed(back)) = plain.decode(word, 0, GuestOffset(0)) else {
            panic!("not compressed");
        };
        assert_eq!(back.at, HostOffset(0x50010));
        assert_eq!(back.max_len, 1024 - 16);
        let spanning = Compressed {
            at: HostOffset(0x5fff0),
            max_len: 32,
        };
        assert_eq!(spanning.clusters(&plain.geometry), 5..7);
        assert_eq!(plain.encode_compressed(HostOffset(1 << 55), 0), None);
    }

    #[test]
    fn places_follow_the_subclusters() {
        let geometry = layout(true).geometry;
        let cluster = Standard {
            host: Some(HostOffset(0x50000)),
            copied: true,
            allocated: 0b0011,
            zero: 0b0100,
        };
        let (place, len) = cluster.place_at(&geometry, 100);
        assert_eq!(len, 4096 - 100);
        assert_eq!(
            place,
            Place::Data {
                host: HostOffset(0x50000 + 100),
                copied: true
            }
        );
        let (place, len) = cluster.place_at(&geometry, 4096);
        assert_eq!(len, 2048);
        assert!(matches!(place, Place::Zero { host: Some(_) }));
        let (place, len) = cluster.place_at(&geometry, 6144);
        assert_eq!(len, 65536 - 6144);
        assert_eq!(place, Place::Unallocated);
    }
}
