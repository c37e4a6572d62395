//! A request of a driver, taken from its chain (virtio 1.2, 5.2.6).

use host_io::IoBuf;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::{Chain, QueueGuard};

/// The unit of sectors in requests, whatever the disk's block size.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Type, reserved, sector.
pub(super) const HEADER_BYTES: u64 = 16;
/// Requests that are longer are done in pieces of this size, one after the other.
pub(super) const PIECE_BYTES: u64 = 4 << 20;
/// The most sectors that one discard or writing of zeroes may name.
pub(super) const MAX_RANGE_SECTORS: u32 = 0x3f_ffff;
/// Bytes of a range to discard: sector, number of sectors, flags.
const RANGE_BYTES: usize = 16;

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub(super) fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        value as u8
    }
}

/// What is to be done. Offsets and lengths are in bytes.
pub(super) enum Work {
    Read {
        offset: u64,
        bytes: u64,
    },
    /// With a copy of the first piece of the data.
    Write {
        offset: u64,
        bytes: u64,
        first: IoBuf,
    },
    Flush,
    GetId,
    Discard {
        offset: u64,
        bytes: u64,
    },
    WriteZeroes {
        offset: u64,
        bytes: u64,
        may_unmap: bool,
    },
    /// Nothing: this is the answer.
    Refused(Status),
    /// Nothing, for a reason that the owner's statistics count.
    Invalid {
        is_read: bool,
    },
}

impl Work {
    /// What the request makes the device hold in memory.
    pub(super) fn held_bytes(&self) -> u64 {
        match self {
            Self::Read { bytes, .. } | Self::Write { bytes, .. } => (*bytes).min(PIECE_BYTES),
            _ => 0,
        }
    }
}

/// What a request is judged by.
#[derive(Clone, Copy)]
pub(super) struct Judge {
    pub(super) length_bytes: u64,
    pub(super) block_bytes: u64,
    pub(super) is_writable: bool,
    pub(super) can_discard: bool,
    pub(super) can_write_zeroes: bool,
}

impl Judge {
    fn is_in_range(&self, offset: u64, bytes: u64) -> bool {
        let is_aligned =
            offset.is_multiple_of(self.block_bytes) && bytes.is_multiple_of(self.block_bytes);
        let end = offset.checked_add(bytes);
        is_aligned && end.is_some_and(|end| end <= self.length_bytes)
    }

    /// Reads a request out of its chain. An error is a chain that is no request: the driver is at fault.
    pub(super) fn read(&self, queue: &QueueGuard<'_>, chain: Chain) -> Result<Work, &'static str> {
        let mut header = [0; HEADER_BYTES as usize];
        if queue.read(chain, 0, &mut header) < header.len() {
            return Err("a disk request has no whole header");
        }
        let room = queue.writable_bytes(chain);
        let Some(data_room) = room.checked_sub(1) else {
            return Err("a disk request has no room for its status");
        };
        let [kind, _, low, high] = words(&header);
        let sector = u64::from(high) << 32 | u64::from(low);
        let offset = sector.checked_mul(SECTOR_BYTES);
        let data_bytes = queue.readable_bytes(chain).saturating_sub(HEADER_BYTES);
        Ok(match kind {
            VIRTIO_BLK_T_IN => match offset {
                Some(offset) if self.is_in_range(offset, data_room) => Work::Read {
                    offset,
                    bytes: data_room,
                },
                _ => Work::Invalid { is_read: true },
            },
            VIRTIO_BLK_T_OUT => match offset {
                Some(offset) if self.is_writable && self.is_in_range(offset, data_bytes) => {
                    Work::Write {
                        offset,
                        bytes: data_bytes,
                        first: data(queue, chain, 0, data_bytes)?,
                    }
                }
                _ => Work::Invalid { is_read: false },
            },
            VIRTIO_BLK_T_FLUSH => Work::Flush,
            VIRTIO_BLK_T_GET_ID => Work::GetId,
            VIRTIO_BLK_T_DISCARD if self.can_discard => self.range(queue, chain, data_bytes, true),
            VIRTIO_BLK_T_WRITE_ZEROES if self.can_write_zeroes => {
                self.range(queue, chain, data_bytes, false)
            }
            _ => Work::Refused(Status::Unsupported),
        })
    }

    /// Reads the one range of a discard or a writing of zeroes.
    fn range(
        &self,
        queue: &QueueGuard<'_>,
        chain: Chain,
        data_bytes: u64,
        is_discard: bool,
    ) -> Work {
        let mut range = [0; RANGE_BYTES];
        if data_bytes != RANGE_BYTES as u64
            || queue.read(chain, HEADER_BYTES, &mut range) < range.len()
        {
            return Work::Invalid { is_read: false };
        }
        let [low, high, sectors, flags] = words(&range);
        let sector = u64::from(high) << 32 | u64::from(low);
        let bytes = u64::from(sectors) * SECTOR_BYTES;
        let offset = sector.checked_mul(SECTOR_BYTES);
        let offset = offset.filter(|offset| self.is_in_range(*offset, bytes));
        let Some(offset) = offset.filter(|_| sectors <= MAX_RANGE_SECTORS) else {
            return Work::Invalid { is_read: false };
        };
        // A discard unmaps anyway, and has no flag to say so (5.2.6.2).
        let known = if is_discard {
            0
        } else {
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        };
        if flags & !known != 0 {
            Work::Refused(Status::Unsupported)
        } else if !self.is_writable {
            Work::Invalid { is_read: false }
        } else if is_discard {
            Work::Discard { offset, bytes }
        } else {
            Work::WriteZeroes {
                offset,
                bytes,
                may_unmap: flags != 0,
            }
        }
    }
}

/// A copy of the piece of a write's data that begins at byte `done`.
pub(super) fn data(
    queue: &QueueGuard<'_>,
    chain: Chain,
    done: u64,
    bytes: u64,
) -> Result<IoBuf, &'static str> {
    let piece = bytes.saturating_sub(done).min(PIECE_BYTES);
    let mut buffer = IoBuf::with_len(usize::try_from(piece).unwrap_or(0));
    let count = queue.read(chain, HEADER_BYTES.saturating_add(done), &mut buffer);
    if count < buffer.len() {
        return Err("a disk request's data cannot be read");
    }
    Ok(buffer)
}

/// What identifies the disk: `serial`, cut or filled with zeros.
pub(super) fn identity(serial: &str) -> [u8; VIRTIO_BLK_ID_BYTES as usize] {
    let mut bytes = [0; VIRTIO_BLK_ID_BYTES as usize];
    for (place, byte) in bytes.iter_mut().zip(serial.bytes()) {
        *place = byte;
    }
    bytes
}

fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    let mut values = [0; 4];
    for (value, word) in values.iter_mut().zip(words) {
        *value = u32::from_le_bytes(*word);
    }
    values
}
