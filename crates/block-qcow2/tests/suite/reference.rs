//! A naive reader and checker of whole images in memory, written apart from the crate's code
//! straight from the specification, as an oracle.

use std::collections::BTreeMap;

pub struct Image<'a> {
    file: &'a [u8],
    data: Option<&'a [u8]>,
    backing: &'a [u8],
    version: u32,
    cluster: usize,
    extended: bool,
    zstd: bool,
    external: bool,
    pub dirty: bool,
    pub corrupt: bool,
    pub size: usize,
    l1: Vec<u64>,
    l1_at: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    for (i, byte) in word.iter_mut().enumerate() {
        *byte = bytes.get(at + i).copied().unwrap_or(0);
    }
    u32::from_be_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

impl<'a> Image<'a> {
    pub fn new(file: &'a [u8], data: Option<&'a [u8]>, backing: &'a [u8]) -> Result<Self, String> {
        if u32_at(file, 0) != 0x514649fb {
            return Err("no magic".into());
        }
        let version = u32_at(file, 4);
        let v3 = version >= 3;
        let incompatible = if v3 { u64_at(file, 72) } else { 0 };
        let l1_at = u64_at(file, 40);
        let l1 = (0..u32_at(file, 36) as usize)
            .map(|i| u64_at(file, l1_at as usize + 8 * i))
            .collect();
        Ok(Self {
            file,
            data,
            backing,
            version,
            cluster: 1 << u32_at(file, 20),
            extended: incompatible & 16 != 0,
            zstd: v3 && u32_at(file, 100) > 104 && file.get(104) == Some(&1),
            external: incompatible & 4 != 0,
            dirty: incompatible & 1 != 0,
            corrupt: incompatible & 2 != 0,
            size: u64_at(file, 24) as usize,
            l1,
            l1_at,
        })
    }

    fn entry_len(&self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    fn entry(&self, guest_cluster: usize) -> (u64, u64) {
        let per_table = self.cluster / self.entry_len();
        let Some(l1) = self.l1.get(guest_cluster / per_table) else {
            return (0, 0);
        };
        let table = (l1 & 0x00ff_ffff_ffff_fe00) as usize;
        if table == 0 {
            return (0, 0);
        }
        let at = table + guest_cluster % per_table * self.entry_len();
        let bitmap = if self.extended {
            u64_at(self.file, at + 8)
        } else {
            0
        };
        (u64_at(self.file, at), bitmap)
    }

    /// The guest's view.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        for number in 0..self.size.div_ceil(self.cluster) {
            out.extend(self.read_cluster(number)?);
        }
        out.truncate(self.size);
        Ok(out)
    }

    fn read_cluster(&self, number: usize) -> Result<Vec<u8>, String> {
        let guest = number * self.cluster;
        let (entry, bitmap) = self.entry(number);
        if entry & 1 << 62 != 0 {
            return self.unpack(entry);
        }
        let host = (entry & 0x00ff_ffff_ffff_fe00) as usize;
        let allocated = host != 0 || (self.external && entry >> 63 != 0);
        if !host.is_multiple_of(self.cluster) {
            return Err(format!("unaligned cluster {host:#x}"));
        }
        let from = if self.external {
            self.data.unwrap_or(&[])
        } else {
            self.file
        };
        let sub = if self.extended {
            self.cluster / 32
        } else {
            self.cluster
        };
        let mut out = Vec::with_capacity(self.cluster);
        for index in 0..self.cluster / sub {
            let (data, zero) = if self.extended {
                (bitmap >> index & 1 != 0, bitmap >> (32 + index) & 1 != 0)
            } else {
                let zero = self.version >= 3 && entry & 1 != 0;
                (allocated && !zero, zero)
            };
            if data && zero {
                return Err("subcluster both allocated and zero".into());
            }
            let mut part = vec![0; sub];
            let (source, start) = if data {
                (from, host)
            } else if zero {
                (&[][..], 0)
            } else {
                (self.backing, guest)
            };
            let there = source.get(start + index * sub..).unwrap_or_default();
            let len = there.len().min(sub);
            part[..len].copy_from_slice(&there[..len]);
            out.extend(part);
        }
        Ok(out)
    }

    fn compressed(&self, entry: u64) -> (usize, usize) {
        let bits = 62 - (self.cluster.ilog2() - 8);
        let at = (entry & ((1 << bits) - 1)) as usize;
        let sectors = ((entry & !(3 << 62)) >> bits) as usize + 1;
        (at, at / 512 * 512 + sectors * 512)
    }

    fn unpack(&self, entry: u64) -> Result<Vec<u8>, String> {
        use std::io::Read;
        let (at, end) = self.compressed(entry);
        let raw = self
            .file
            .get(at..end.min(self.file.len()))
            .ok_or("compressed cluster outside the file")?;
        let mut out = vec![0; self.cluster];
        let result = if self.zstd {
            zstd::stream::read::Decoder::new(raw)
                .map_err(|e| e.to_string())?
                .read_exact(&mut out)
        } else {
            flate2::read::DeflateDecoder::new(raw).read_exact(&mut out)
        };
        result.map_err(|e| format!("compressed cluster at {at:#x}: {e}"))?;
        Ok(out)
    }

    /// Compares references with refcounts: the number of leaked clusters, or what is corrupt.
    pub fn check(&self) -> Result<usize, String> {
        let references = self.references()?;
        let bits = if self.version >= 3 {
            1usize << u32_at(self.file, 96)
        } else {
            16
        };
        let per_block = self.cluster * 8 / bits;
        let table = u64_at(self.file, 48) as usize;
        let entries = u32_at(self.file, 56) as usize * self.cluster / 8;
        let count = |cluster: usize| -> u64 {
            if cluster / per_block >= entries {
                return 0;
            }
            let block = u64_at(self.file, table + cluster / per_block * 8) as usize;
            if block == 0 {
                return 0;
            }
            let index = cluster % per_block;
            if bits < 8 {
                let byte = self
                    .file
                    .get(block + index * bits / 8)
                    .copied()
                    .unwrap_or(0);
                return u64::from(byte >> (index * bits % 8)) & ((1 << bits) - 1);
            }
            (0..bits / 8).fold(0, |sum, i| {
                let at = block + index * bits / 8 + i;
                sum << 8 | u64::from(self.file.get(at).copied().unwrap_or(0))
            })
        };
        let mut leaks = 0;
        for cluster in 0..(entries * per_block).min(self.file.len() / self.cluster + 64) {
            let expected = references.get(&cluster).map_or(0, |r| r.count);
            let actual = count(cluster);
            if actual < expected {
                return Err(format!(
                    "cluster {cluster}: count {actual}, references {expected}"
                ));
            }
            leaks += usize::from(actual > expected);
        }
        for (cluster, reference) in references {
            let actual = count(cluster);
            if actual < reference.count {
                return Err(format!("cluster {cluster}: count {actual} is too low"));
            }
            if reference.copied && actual != 1 {
                return Err(format!("cluster {cluster}: COPIED with count {actual}"));
            }
            if reference.exclusive && reference.count > 1 {
                return Err(format!("cluster {cluster} is used twice"));
            }
        }
        Ok(leaks)
    }

    fn references(&self) -> Result<BTreeMap<usize, Reference>, String> {
        let mut map: BTreeMap<usize, Reference> = BTreeMap::new();
        let mut add = |at: usize, len: usize, copied: bool, exclusive: bool| {
            for cluster in at / self.cluster..(at + len).div_ceil(self.cluster) {
                let reference = map.entry(cluster).or_default();
                reference.count += 1;
                reference.copied |= copied;
                reference.exclusive |= exclusive;
            }
        };
        add(0, 1, false, true);
        add(self.l1_at as usize, self.l1.len() * 8, false, true);
        let table = u64_at(self.file, 48) as usize;
        let table_len = u32_at(self.file, 56) as usize * self.cluster;
        add(table, table_len, false, true);
        for i in 0..table_len / 8 {
            let block = u64_at(self.file, table + i * 8) as usize;
            if !block.is_multiple_of(self.cluster) {
                return Err(format!("refcount block at {block:#x}"));
            }
            if block != 0 {
                add(block, self.cluster, false, true);
            }
        }
        let per_table = self.cluster / self.entry_len();
        for (index, &l1) in self.l1.iter().enumerate() {
            let at = (l1 & 0x00ff_ffff_ffff_fe00) as usize;
            if at == 0 {
                continue;
            }
            if !at.is_multiple_of(self.cluster) {
                return Err(format!("L2 table at {at:#x}"));
            }
            add(at, self.cluster, l1 >> 63 != 0, true);
            for number in index * per_table..(index + 1) * per_table {
                let (entry, _) = self.entry(number);
                if entry & 1 << 62 != 0 {
                    let (at, end) = self.compressed(entry);
                    let start = at / 512 * 512;
                    add(start, end - start, false, false);
                    continue;
                }
                let host = (entry & 0x00ff_ffff_ffff_fe00) as usize;
                if !host.is_multiple_of(self.cluster) {
                    return Err(format!("cluster at {host:#x}"));
                }
                if host != 0 && !self.external {
                    add(host, self.cluster, entry >> 63 != 0, true);
                }
            }
        }
        Ok(map)
    }
}

#[derive(Default)]
struct Reference {
    count: u64,
    copied: bool,
    exclusive: bool,
}
