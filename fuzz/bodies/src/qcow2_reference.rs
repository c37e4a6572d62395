//! A naive reader of qcow2, written from the specification alone: no caches, no speed, one cluster
//! at a time. Bytes behind the file's end count as zeroes.

use std::collections::HashMap;
use std::io::Read;

const EXTENDED_L2: u64 = 1 << 4;
const COMPRESSION_TYPE: u64 = 1 << 3;
const DATA_FILE: u64 = 1 << 2;
/// Bits 9 to 55: a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// How many entries of the L1 table are looked at when clusters are searched for.
const MAX_L1_SEARCHED: u64 = 4096;

/// An image whose header is understood.
pub(crate) struct Reference<'a> {
    image: &'a [u8],
    backing: Option<&'a [u8]>,
    data: &'a [u8],
    version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    l1_size: u64,
    l1_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u64,
    incompatible: u64,
    zstd: bool,
}

/// What one subcluster is.
enum Content {
    At(u64),
    Zero,
    Backing,
    Compressed { at: u64, len: u64 },
}

/// The bytes at `offset`, as far as they are there, then zeroes.
fn padded(bytes: &[u8], offset: u64, len: usize) -> Vec<u8> {
    let from = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let mut out: Vec<u8> = bytes[from..].iter().take(len).copied().collect();
    out.resize(len, 0);
    out
}

fn be32(bytes: &[u8], at: u64) -> u64 {
    padded(bytes, at, 4)
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

fn be64(bytes: &[u8], at: u64) -> u64 {
    be32(bytes, at) << 32 | be32(bytes, at.saturating_add(4))
}

impl<'a> Reference<'a> {
    /// Understands the header. `backing` and `data` are the content of the backing and the external
    /// data file, which are used where the header says so.
    pub(crate) fn open(image: &'a [u8], backing: &'a [u8], data: &'a [u8]) -> Option<Self> {
        let version = u32::try_from(be32(image, 4)).ok()?;
        let cluster_bits = u32::try_from(be32(image, 20)).ok()?;
        if !image.starts_with(b"QFI\xfb") || !(2..=3).contains(&version) {
            return None;
        }
        if !(9..=21).contains(&cluster_bits) || be32(image, 32) != 0 {
            return None;
        }
        let incompatible = if version == 3 { be64(image, 72) } else { 0 };
        if incompatible >> 5 != 0 || (incompatible & EXTENDED_L2 != 0 && cluster_bits < 14) {
            return None;
        }
        let zstd = incompatible & COMPRESSION_TYPE != 0;
        if zstd && image.get(104) != Some(&1) {
            return None;
        }
        Some(Self {
            image,
            backing: (be64(image, 8) != 0).then_some(backing),
            data,
            version,
            cluster_bits,
            size: be64(image, 24),
            l1_size: be32(image, 36),
            l1_offset: be64(image, 40),
            refcount_table_offset: be64(image, 48),
            refcount_table_clusters: be32(image, 56),
            incompatible,
            zstd,
        })
    }

    fn extended(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    /// Whether the counts are to be made anew before the image is used.
    pub(crate) fn is_dirty(&self) -> bool {
        self.incompatible & 1 != 0
    }

    /// Whether guest data is in a file of its own.
    pub(crate) fn has_data_file(&self) -> bool {
        self.incompatible & DATA_FILE != 0
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry_bytes(&self) -> u64 {
        if self.extended() { 16 } else { 8 }
    }

    fn entries_per_table(&self) -> u64 {
        self.cluster_size() / self.entry_bytes()
    }

    /// The L2 table for an L1 index: none if there is none; an error if the entry is wrong.
    fn table(&self, l1_index: u64) -> Result<Option<u64>, ()> {
        if l1_index >= self.l1_size {
            return Err(());
        }
        let entry = be64(
            self.image,
            self.l1_offset.checked_add(l1_index * 8).ok_or(())?,
        );
        let offset = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 || !offset.is_multiple_of(self.cluster_size()) {
            return Err(());
        }
        Ok((offset != 0).then_some(offset))
    }

    /// The L2 entry of a guest cluster, both words.
    fn entry(&self, cluster: u64) -> Result<(u64, u64), ()> {
        let Some(table) = self.table(cluster / self.entries_per_table())? else {
            return Ok((0, 0));
        };
        let at = table + cluster % self.entries_per_table() * self.entry_bytes();
        let bitmap = if self.extended() {
            be64(self.image, at + 8)
        } else {
            0
        };
        Ok((be64(self.image, at), bitmap))
    }

    fn content(&self, guest: u64) -> Result<Content, ()> {
        let cluster_size = self.cluster_size();
        let (entry, bitmap) = self.entry(guest / cluster_size)?;
        if entry & COMPRESSED != 0 {
            return self.compressed(entry, bitmap);
        }
        let mut known = OFFSET | COPIED;
        if self.version == 3 && !self.extended() {
            known |= 1;
        }
        let offset = entry & OFFSET;
        if entry & !known != 0 || !offset.is_multiple_of(cluster_size) {
            return Err(());
        }
        let external = self.has_data_file();
        let there = offset != 0 || (external && entry & COPIED != 0);
        if external && there && offset != guest - guest % cluster_size {
            return Err(());
        }
        let at = Content::At(offset + guest % cluster_size);
        if self.extended() {
            let subcluster = guest % cluster_size / (cluster_size / 32);
            let (allocated, zero) = (bitmap & 0xffff_ffff, bitmap >> 32);
            if allocated & zero != 0 || (allocated != 0 && !there) {
                return Err(());
            }
            return Ok(if allocated >> subcluster & 1 != 0 {
                at
            } else if zero >> subcluster & 1 != 0 {
                Content::Zero
            } else {
                Content::Backing
            });
        }
        Ok(match (entry & 1 != 0, there) {
            (true, _) => Content::Zero,
            (false, true) => at,
            (false, false) => Content::Backing,
        })
    }

    fn compressed(&self, entry: u64, bitmap: u64) -> Result<Content, ()> {
        if self.has_data_file() || entry & COPIED != 0 || bitmap != 0 {
            return Err(());
        }
        let bits = 62 - (self.cluster_bits - 8);
        let at = entry & ((1 << bits) - 1);
        let more_sectors = (entry & (COMPRESSED - 1)) >> bits;
        if at >> 56 != 0 {
            return Err(());
        }
        let len = (more_sectors + 1) * 512 - at % 512;
        Ok(Content::Compressed { at, len })
    }

    fn decompress(&self, at: u64, len: u64) -> Result<Vec<u8>, ()> {
        let packed = padded(self.image, at, usize::try_from(len).map_err(|_| ())?);
        let mut cluster = vec![0; 1 << self.cluster_bits];
        let unpacked = if self.zstd {
            zstd::stream::read::Decoder::new(packed.as_slice())
                .and_then(|mut decoder| decoder.read_exact(&mut cluster))
        } else {
            flate2::read::DeflateDecoder::new(packed.as_slice()).read_exact(&mut cluster)
        };
        unpacked.map(|()| cluster).map_err(|_| ())
    }

    /// The guest's bytes, or nothing where any of them lies under a wrong entry.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let step = if self.extended() {
            self.cluster_size() / 32
        } else {
            self.cluster_size()
        };
        let end = offset + len as u64;
        let mut out = Vec::with_capacity(len);
        let mut at = offset;
        while at < end {
            let part = usize::try_from((step - at % step).min(end - at)).ok()?;
            let bytes = match self.content(at).ok()? {
                Content::At(host) if self.has_data_file() => padded(self.data, host, part),
                Content::At(host) => padded(self.image, host, part),
                Content::Zero => vec![0; part],
                Content::Backing => padded(self.backing.unwrap_or_default(), at, part),
                Content::Compressed { at: host, len } => {
                    let cluster = self.decompress(host, len).ok()?;
                    padded(&cluster, at % self.cluster_size(), part)
                }
            };
            out.extend_from_slice(&bytes);
            at += part as u64;
        }
        Some(out)
    }

    /// Some guest clusters that have an L2 entry, at most `max`.
    pub(crate) fn mapped(&self, max: usize) -> Vec<u64> {
        let there = (self.image.len() as u64).saturating_sub(self.l1_offset) / 8;
        let per_table = self.entries_per_table();
        (0..self.l1_size.min(there).min(MAX_L1_SEARCHED))
            .filter_map(|index| Some((index, self.table(index).ok()??)))
            .filter(|&(_, table)| table < self.image.len() as u64)
            .take(max)
            .flat_map(|(index, _)| index * per_table..(index + 1) * per_table)
            .filter(|&cluster| self.entry(cluster).is_ok_and(|entry| entry != (0, 0)))
            .take(max)
            .collect()
    }

    /// How many counts the refcount table describes.
    pub(crate) fn counts(&self) -> u64 {
        let table_bytes = self.refcount_table_clusters << self.cluster_bits;
        let in_file = (self.image.len() as u64).saturating_sub(self.refcount_table_offset);
        let blocks = (0..table_bytes.min(in_file) / 8)
            .filter(|index| be64(self.image, self.refcount_table_offset + index * 8) != 0)
            .count() as u64;
        let order = if self.version == 3 {
            be32(self.image, 96).min(6)
        } else {
            4
        };
        blocks << (self.cluster_bits + 3) >> order
    }

    /// Whether no host cluster has two uses, compressed data apart, so that changing one thing
    /// cannot change another, and no entry is wrong.
    pub(crate) fn is_plain(&self) -> bool {
        self.uses().is_some()
    }

    fn uses(&self) -> Option<HashMap<u64, Use>> {
        let mut uses = HashMap::new();
        let bits = self.cluster_bits;
        let mut add = |at: u64, kind: Use| match uses.insert(at >> bits, kind) {
            None => Some(()),
            Some(Use::Packed) if kind == Use::Packed => Some(()),
            Some(_) => None,
        };
        let cluster_size = self.cluster_size();
        let in_file = self.image.len() as u64;
        add(0, Use::Alone)?;
        let l1_bytes = self.l1_size * 8;
        let table_bytes = self.refcount_table_clusters << bits;
        if l1_bytes > in_file + cluster_size || table_bytes > in_file + cluster_size {
            return None;
        }
        for at in (0..l1_bytes).step_by(1 << bits) {
            add(self.l1_offset.checked_add(at)?, Use::Alone)?;
        }
        for at in (0..table_bytes).step_by(1 << bits) {
            add(self.refcount_table_offset.checked_add(at)?, Use::Alone)?;
        }
        for index in 0..table_bytes / 8 {
            let block = be64(self.image, self.refcount_table_offset + index * 8);
            if !block.is_multiple_of(cluster_size) {
                return None;
            } else if block != 0 {
                add(block, Use::Alone)?;
            }
        }
        for index in 0..self.l1_size {
            let Some(table) = self.table(index).ok()? else {
                continue;
            };
            add(table, Use::Alone)?;
            let first = index * self.entries_per_table();
            for cluster in first..first + self.entries_per_table() {
                let (entry, _) = self.entry(cluster).ok()?;
                let guest = cluster.checked_mul(cluster_size)?;
                match self.content(guest).ok()? {
                    Content::Compressed { at, len } => {
                        for cluster in at >> bits..=(at + len - 1) >> bits {
                            add(cluster << bits, Use::Packed)?;
                        }
                    }
                    _ if entry & OFFSET != 0 && !self.has_data_file() => {
                        add(entry & OFFSET, Use::Alone)?;
                    }
                    _ => {}
                }
            }
        }
        Some(uses)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Alone,
    Packed,
}
