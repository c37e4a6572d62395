//! A ring buffer: keeps the last bytes that were written.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// The last `size` bytes written and not yet read.
pub struct RingBuffer {
    size: usize,
    bytes: Mutex<VecDeque<u8>>,
}

impl RingBuffer {
    /// The size used where none is given.
    pub const DEFAULT_SIZE: u64 = 65_536;
    /// The largest size, in bytes; QEMU has no limit of its own here.
    pub const MAX_SIZE: u64 = 1 << 30;

    /// A buffer for `size` bytes.
    ///
    /// # Errors
    /// When `size` is not a power of two, or beyond [`RingBuffer::MAX_SIZE`].
    pub fn new(size: u64) -> Result<Self, String> {
        if !size.is_power_of_two() || size > Self::MAX_SIZE {
            return Err("size of ringbuf chardev must be power of two".to_owned());
        }
        let size = usize::try_from(size).map_err(|error| error.to_string())?;
        Ok(Self {
            size,
            bytes: Mutex::default(),
        })
    }

    /// Appends `data`; what does not fit pushes out the oldest bytes.
    pub fn write(&self, data: &[u8]) {
        let kept = data
            .get(data.len().saturating_sub(self.size)..)
            .unwrap_or_default();
        let mut bytes = self.bytes.lock();
        let excess = (bytes.len() + kept.len()).saturating_sub(self.size);
        bytes.drain(..excess);
        bytes.extend(kept);
    }

    /// Takes at most `count` of the oldest bytes.
    pub fn read(&self, count: usize) -> Vec<u8> {
        let mut bytes = self.bytes.lock();
        let count = count.min(bytes.len());
        bytes.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_bytes_go_first() {
        let ring = RingBuffer::new(4).unwrap();
        ring.write(b"ab");
        ring.write(b"cdef");
        assert_eq!(ring.read(2), b"cd");
        ring.write(b"0123456789");
        assert_eq!(ring.read(100), b"6789");
        assert_eq!(ring.read(100), b"");
    }

    #[test]
    fn sizes_are_powers_of_two() {
        assert!(RingBuffer::new(0).is_err());
        assert!(RingBuffer::new(100).is_err());
        assert!(RingBuffer::new(1 << 31).is_err());
    }
}
