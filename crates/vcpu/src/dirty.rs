//! Which pages the guest has written.

use guest_memory::RamOffset;

use crate::{Accelerator, VcpuError};

/// Pages that were written, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyRange {
    /// The first of them.
    pub start: RamOffset,
    /// Their size, in whole pages of 4096 bytes.
    pub bytes: u64,
}

/// An accelerator that can tell which pages of RAM its vCPUs have written: what migration sends again. What devices
/// write is not the accelerator's and not in its log.
pub trait DirtyLog: Accelerator {
    /// Begins to log. The log is empty then.
    ///
    /// # Errors
    /// The host refuses.
    fn start_dirty_log(&self) -> Result<(), VcpuError>;

    /// Ends logging and forgets the log.
    ///
    /// # Errors
    /// The host refuses.
    fn stop_dirty_log(&self) -> Result<(), VcpuError>;

    /// What was written since the log began or was last taken, sorted, without overlap. Nothing if no log is kept.
    ///
    /// # Errors
    /// The host refuses.
    fn take_dirty_log(&self) -> Result<Vec<DirtyRange>, VcpuError>;
}
