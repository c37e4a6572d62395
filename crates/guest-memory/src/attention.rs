//! What asks a running vCPU to look up from its work.

use std::sync::atomic::{AtomicU32, Ordering};

/// A vCPU's flags that others raise. The vCPU looks at them once per block of instructions, with
/// one relaxed load; whoever raises one does so after the thing it tells of.
#[derive(Debug, Default)]
pub struct Attention(AtomicU32);

impl Attention {
    /// Code was written to: decoded instructions must be checked against their pages.
    pub const CODE_CHANGED: u32 = 1;
    /// The memory map changed: translations must be dropped.
    pub const MAP_CHANGED: u32 = 1 << 1;
    /// Somebody waits to run alone: pass through the [`Gate`](crate::Gate).
    pub const EXCLUSIVE: u32 = 1 << 2;
    /// Leave the guest and return to the caller.
    pub const KICK: u32 = 1 << 3;
    /// The first of the flags that a vCPU may use for itself.
    pub const FIRST_OWN: u32 = 1 << 8;

    /// Raises flags.
    pub fn raise(&self, flags: u32) {
        self.0.fetch_or(flags, Ordering::SeqCst);
    }

    /// Takes flags back.
    pub fn lower(&self, flags: u32) {
        self.0.fetch_and(!flags, Ordering::SeqCst);
    }

    /// Takes flags back and says which of them were up.
    #[must_use]
    pub fn take(&self, flags: u32) -> u32 {
        self.0.fetch_and(!flags, Ordering::SeqCst) & flags
    }

    /// The flags that are up.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}
