//! Reading what the fast path could not answer.

use block_graph::{BlockError, BlockOperation, Extent, ExtentKind};
use host_io::IoBuf;

use crate::compression;
use crate::entries::{Compressed, Place};
use crate::image::Image;
use crate::together::{Operation, together};
use crate::types::{GuestOffset, HostOffset};

impl Image {
    /// Fills `buf` with guest data from `offset`. What lies behind the disk's end, in its last
    /// cluster, can be read too.
    pub(crate) async fn read_guest(
        &self,
        operation: BlockOperation,
        offset: u64,
        buf: IoBuf,
    ) -> Result<IoBuf, BlockError> {
        let len = buf.len();
        let mut rest = buf;
        let mut at = offset;
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (place, covered) = self
                .run_at(operation, GuestOffset(at), rest.len() as u64)
                .await?;
            let part = rest.split_to(usize::try_from(covered.max(1)).unwrap_or(usize::MAX));
            let from = at;
            at += part.len() as u64;
            if from == offset && rest.is_empty() {
                return self.fill(operation, place, from, part).await;
            }
            let fill: Operation<'_, IoBuf> = Box::pin(self.fill(operation, place, from, part));
            parts.push(fill);
        }
        Ok(joined(together(parts).await?, len))
    }

    /// Fills a part that is all of one kind.
    async fn fill(
        &self,
        operation: BlockOperation,
        place: Place,
        guest: u64,
        part: IoBuf,
    ) -> Result<IoBuf, BlockError> {
        match place {
            Place::Data { host, .. } => self.data_edge().node_arc().read(host.0, part).await,
            Place::Zero { .. } => {
                let mut part = part;
                part.fill(0);
                Ok(part)
            }
            Place::Unallocated => self.read_backing(guest, part).await,
            Place::Compressed(compressed) => {
                self.read_compressed(operation, compressed, guest, part)
                    .await
            }
        }
    }

    async fn read_backing(&self, guest: u64, part: IoBuf) -> Result<IoBuf, BlockError> {
        let mut part = part;
        let Some(backing) = &self.backing else {
            part.fill(0);
            return Ok(part);
        };
        let node = backing.node_arc();
        let there = node.length().saturating_sub(guest);
        if there >= part.len() as u64 {
            return node.read(guest, part).await;
        }
        let front = part.split_to(usize::try_from(there).unwrap_or(0));
        let len = front.len() + part.len();
        part.fill(0);
        let front = if front.is_empty() {
            front
        } else {
            node.read(guest, front).await?
        };
        Ok(joined(vec![front, part], len))
    }

    async fn read_compressed(
        &self,
        operation: BlockOperation,
        compressed: Compressed,
        guest: u64,
        part: IoBuf,
    ) -> Result<IoBuf, BlockError> {
        let geometry = &self.layout.geometry;
        let mut cluster = self.decompress_cluster(operation, compressed).await?;
        let within = usize::try_from(geometry.in_cluster(guest)).unwrap_or(0);
        if within == 0 && part.len() == cluster.len() {
            return Ok(cluster);
        }
        cluster.advance(within);
        let mut part = part;
        part.iter_mut()
            .zip(cluster.iter())
            .for_each(|(to, from)| *to = *from);
        Ok(part)
    }

    /// The whole content of a compressed cluster.
    pub(crate) async fn decompress_cluster(
        &self,
        operation: BlockOperation,
        compressed: Compressed,
    ) -> Result<IoBuf, BlockError> {
        // Whole sectors are read, for files that are accessed past the page cache.
        let HostOffset(at) = compressed.at;
        let start = at & !511;
        let skip = usize::try_from(at - start).unwrap_or(0);
        let len = usize::try_from(compressed.max_len).unwrap_or(0) + skip;
        let raw = self
            .file
            .node_arc()
            .read(start, IoBuf::with_len(len))
            .await?;
        let kind = self.header.compression_type();
        let cluster_len = self.layout.geometry.cluster_len();
        let unpack = move || {
            let mut cluster = IoBuf::with_len(cluster_len);
            let input = raw.get(skip..).unwrap_or_default();
            compression::decompress(kind, input, &mut cluster).map(|()| cluster)
        };
        let unpacked = if cluster_len > INLINE_LIMIT {
            host_io::blocking(unpack).await.unwrap_or(Err(()))
        } else {
            unpack()
        };
        unpacked.map_err(|()| BlockError {
            errno: EIO,
            ..BlockError::corrupt(
                operation,
                format!("compressed cluster at {at:#x} cannot be decompressed"),
            )
        })
    }

    /// What the range at `offset` is, for at most `len` bytes.
    pub(crate) async fn extent_at(&self, offset: u64, len: u64) -> Result<Extent, BlockError> {
        let mut at = offset;
        let end = offset.saturating_add(len);
        let mut found: Option<(Place, ExtentKind)> = None;
        // Slices end runs; go on while nothing changes, but not for ever.
        for _ in 0..MAX_EXTENT_SLICES {
            if at >= end {
                break;
            }
            let (place, covered) = self
                .run_at(BlockOperation::BlockStatus, GuestOffset(at), end - at)
                .await?;
            let kind = self.extent_kind(place);
            match &found {
                None => found = Some((place, kind)),
                Some((first, _)) if first.continues_with(at - offset, &place) => {}
                Some(_) => break,
            }
            at += covered.max(1);
        }
        let kind = found.map_or(ExtentKind::Unallocated, |(_, kind)| kind);
        Ok(Extent {
            len: (at - offset).clamp(1, len.max(1)),
            kind,
        })
    }

    fn extent_kind(&self, place: Place) -> ExtentKind {
        match place {
            Place::Unallocated => ExtentKind::Unallocated,
            Place::Zero { host } => ExtentKind::Zero {
                allocated: host.is_some(),
                offset: host.map(|host| host.0),
            },
            Place::Data { host, .. } => ExtentKind::Data {
                offset: Some(host.0),
                in_child: true,
                compressed: false,
            },
            Place::Compressed(_) => ExtentKind::Data {
                offset: None,
                in_child: false,
                compressed: true,
            },
        }
    }
}

const EIO: i32 = 5;
/// Clusters up to this size are decompressed on the executor's own thread, in some 60 us.
const INLINE_LIMIT: usize = 64 << 10;
/// How many slices one allocation query looks at.
const MAX_EXTENT_SLICES: usize = 256;

/// One buffer of the parts, which were neighbours unless a child answered from memory of its own.
fn joined(parts: Vec<IoBuf>, len: usize) -> IoBuf {
    let mut parts = parts.into_iter();
    let Some(mut whole) = parts.next() else {
        return IoBuf::zeroed(0);
    };
    for part in parts {
        if let Err(part) = whole.join(part) {
            let mut copy = IoBuf::with_len(whole.len() + part.len());
            let mut front = copy.split_to(whole.len());
            front.copy_from_slice(&whole);
            copy.copy_from_slice(&part);
            if let Err(rest) = front.join(copy) {
                debug_assert!(rest.is_empty(), "parts of one buffer join");
            }
            whole = front;
        }
    }
    debug_assert_eq!(whole.len(), len);
    whole
}
