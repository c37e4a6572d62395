//! Guest memory as a device sees it.

use crate::Error;

/// Reads and writes guest memory in bulk, by guest-physical address.
///
/// Only memory: an address where a register lies, or nothing, is [`Error::Dma`]. An access is refused as a whole if any
/// of its bytes is not memory, before a byte of it is moved. Atomicity towards vCPUs is per byte.
pub trait DmaSpace: Send + Sync {
    /// Fills `into` from guest memory at `address`.
    ///
    /// # Errors
    /// [`Error::Dma`] if not all of it is guest memory.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Error>;

    /// Writes `from` to guest memory at `address`.
    ///
    /// # Errors
    /// [`Error::Dma`] if not all of it is writable guest memory.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Error>;
}
