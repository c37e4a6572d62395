//! The page that a vCPU shares with the kernel: `struct kvm_run` (KVM API, section 5).
//!
//! This is a mapping of our own, beside the one in `kvm-ioctls`: whoever kicks keeps it alive, and no reference to its
//! contents is ever made, since the kernel and other threads write to it.

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

use crate::KvmError;

const REQUEST_INTERRUPT_WINDOW: usize = std::mem::offset_of!(kvm_run, request_interrupt_window);
const IMMEDIATE_EXIT: usize = std::mem::offset_of!(kvm_run, immediate_exit);
const EXIT_REASON: usize = std::mem::offset_of!(kvm_run, exit_reason);
const READY_FOR_INTERRUPT: usize = std::mem::offset_of!(kvm_run, ready_for_interrupt_injection);
const CR8: usize = std::mem::offset_of!(kvm_run, cr8);
/// The union of what the exits say.
const DETAILS: usize = std::mem::offset_of!(kvm_run, __bindgen_anon_1);

/// What `KVM_EXIT_IO` says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortAccess {
    pub(crate) is_out: bool,
    pub(crate) size: u8,
    pub(crate) port: u16,
    pub(crate) count: u32,
    /// Where in the mapping the bytes are.
    data: u64,
}

impl PortAccess {
    /// Bytes of all its elements.
    pub(crate) fn bytes(&self) -> usize {
        usize::from(self.size).saturating_mul(usize::try_from(self.count).unwrap_or(usize::MAX))
    }
}

/// What `KVM_EXIT_MMIO` says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryAccess {
    pub(crate) addr: u64,
    pub(crate) data: u64,
    /// 1 to 8.
    pub(crate) len: u8,
    pub(crate) is_write: bool,
}

/// What `KVM_EXIT_X86_RDMSR` and `KVM_EXIT_X86_WRMSR` say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MsrAccess {
    pub(crate) index: u32,
    pub(crate) data: u64,
}

/// The mapping.
#[derive(Debug)]
pub(crate) struct RunPage {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value and is only accessed by volatile and atomic operations.
unsafe impl Send for RunPage {}
// SAFETY: as above. All but `immediate_exit`, which is atomic, is used by the vCPU's own thread only.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps a vCPU's page and what follows it, `bytes` in all.
    pub(crate) fn map(vcpu: &VcpuFd, bytes: usize) -> Result<Self, KvmError> {
        let failed = || KvmError::Refused {
            what: "map a vCPU's run page",
            source: std::io::Error::last_os_error(),
        };
        // SAFETY: a new mapping at an address that the kernel chooses; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(failed());
        }
        let base = NonNull::new(base.cast()).ok_or_else(failed)?;
        Ok(Self { base, bytes })
    }

    fn place(&self, at: usize, bytes: usize) -> Option<*mut u8> {
        let end = at.checked_add(bytes)?;
        // SAFETY: `at + bytes` is within the mapping.
        (end <= self.bytes).then(|| unsafe { self.base.as_ptr().add(at) })
    }

    /// Copies out; outside the mapping there are zeroes.
    fn copy_out(&self, at: usize, into: &mut [u8]) {
        let Some(from) = self.place(at, into.len()) else {
            into.fill(0);
            return;
        };
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: `place` has checked the range.
            *byte = unsafe { from.add(index).read_volatile() };
        }
    }

    /// Copies in; what is outside the mapping is dropped.
    fn copy_in(&self, at: usize, from: &[u8]) {
        let Some(to) = self.place(at, from.len()) else {
            return;
        };
        for (index, byte) in from.iter().enumerate() {
            // SAFETY: `place` has checked the range.
            unsafe { to.add(index).write_volatile(*byte) };
        }
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.copy_out(at, &mut bytes);
        bytes
    }

    fn byte(&self, at: usize) -> u8 {
        u8::from_ne_bytes(self.get(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.get(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.get(at))
    }

    /// Makes the next `KVM_RUN` finish the instruction in flight and come back at once. Any thread may.
    pub(crate) fn set_immediate_exit(&self, wanted: bool) {
        if let Some(at) = self.place(IMMEDIATE_EXIT, 1) {
            // SAFETY: within the mapping, and only ever accessed like this.
            unsafe { AtomicU8::from_ptr(at) }.store(u8::from(wanted), Ordering::SeqCst);
        }
    }

    /// Makes `KVM_RUN` come back when an interrupt can be injected.
    pub(crate) fn request_interrupt_window(&self, wanted: bool) {
        self.copy_in(REQUEST_INTERRUPT_WINDOW, &[u8::from(wanted)]);
    }

    /// Why the last `KVM_RUN` came back.
    pub(crate) fn exit_reason(&self) -> u32 {
        self.u32(EXIT_REASON)
    }

    /// Whether an interrupt could be injected when the last `KVM_RUN` came back.
    pub(crate) fn ready_for_interrupt(&self) -> bool {
        self.byte(READY_FOR_INTERRUPT) != 0
    }

    /// CR8 as the last `KVM_RUN` left it.
    pub(crate) fn cr8(&self) -> u64 {
        self.u64(CR8)
    }

    /// CR8 for the next `KVM_RUN`.
    pub(crate) fn set_cr8(&self, cr8: u64) {
        self.copy_in(CR8, &cr8.to_ne_bytes());
    }

    /// `io`: direction, size, port, count, data offset.
    pub(crate) fn port_access(&self) -> PortAccess {
        PortAccess {
            is_out: self.byte(DETAILS) != 0,
            size: self.byte(DETAILS + 1),
            port: u16::from_ne_bytes(self.get(DETAILS + 2)),
            count: self.u32(DETAILS + 4),
            data: self.u64(DETAILS + 8),
        }
    }

    /// The bytes of an OUT; `None` if the kernel names more than there is room for.
    pub(crate) fn port_data(&self, access: &PortAccess) -> Option<Vec<u8>> {
        let at = usize::try_from(access.data).ok()?;
        self.place(at, access.bytes())?;
        let mut bytes = vec![0; access.bytes()];
        self.copy_out(at, &mut bytes);
        Some(bytes)
    }

    /// The bytes for an IN.
    pub(crate) fn set_port_data(&self, access: &PortAccess, bytes: &[u8]) {
        if let Ok(at) = usize::try_from(access.data) {
            self.copy_in(at, bytes);
        }
    }

    /// `mmio`: address, eight bytes, length, direction.
    pub(crate) fn memory_access(&self) -> MemoryAccess {
        let len = self.u32(DETAILS + 16).clamp(1, 8);
        let data = u64::from_le_bytes(self.get(DETAILS + 8));
        MemoryAccess {
            addr: self.u64(DETAILS),
            data: data & (u64::MAX >> (64 - 8 * len)),
            len: u8::try_from(len).unwrap_or(8),
            is_write: self.byte(DETAILS + 20) != 0,
        }
    }

    /// The bytes for a read of what is not memory.
    pub(crate) fn set_memory_data(&self, data: u64) {
        self.copy_in(DETAILS + 8, &data.to_le_bytes());
    }

    /// `msr`: error, reason, index, data.
    pub(crate) fn msr_access(&self) -> MsrAccess {
        MsrAccess {
            index: self.u32(DETAILS + 12),
            data: self.u64(DETAILS + 16),
        }
    }

    /// `eoi`: the vector.
    pub(crate) fn ended_vector(&self) -> u8 {
        self.byte(DETAILS)
    }

    /// The answer to an MSR access; `None` is a fault. A write takes no notice of the value.
    pub(crate) fn set_msr_answer(&self, value: Option<u64>) {
        self.copy_in(DETAILS, &[u8::from(value.is_none())]);
        if let Some(value) = value {
            self.copy_in(DETAILS + 16, &value.to_ne_bytes());
        }
    }

    /// What an exit that tells of a failure says: `KVM_EXIT_FAIL_ENTRY`'s reason, `KVM_EXIT_INTERNAL_ERROR`'s kind.
    pub(crate) fn failure(&self) -> u64 {
        self.u64(DETAILS)
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing points into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
