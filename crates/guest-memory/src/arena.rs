//! The one host mapping behind all RAM and ROM, and the accesses to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::MmapRegion;

use crate::{MAX_CAPACITY_BYTES, MemoryError, PAGE_BYTES};

/// A place in the arena, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RamOffset(pub u64);

/// The host mapping. All of it may be accessed by anyone at any time; see the crate's text.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    bytes: u64,
    /// Owns the mapping that `base` points to.
    mapping: Arc<MmapRegion>,
}

// SAFETY: `base` points to memory that `mapping` owns and that is only accessed by the volatile
// and atomic operations below, which any thread may do.
unsafe impl Send for Arena {}
// SAFETY: as above; no operation needs exclusive access.
unsafe impl Sync for Arena {}

/// An integer that guest memory can be read and written as.
pub trait Word: Copy + sealed::Raw {
    /// Its size in bytes.
    const BYTES: u64;
    /// All bits set: what an access outside memory reads.
    const ONES: Self;
}

mod sealed {
    /// The raw accesses. `at` must be valid for the word's size; no alignment is needed for
    /// `read` and `write`, natural alignment for `compare_exchange`.
    pub trait Raw: Sized {
        /// # Safety
        /// `at` is valid for reads of this size.
        unsafe fn read(at: *const u8) -> Self;
        /// # Safety
        /// `at` is valid for writes of this size.
        unsafe fn write(at: *mut u8, value: Self);
        /// # Safety
        /// `at` is valid for reads and writes and naturally aligned.
        unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Result<(), Self>;
    }
}

macro_rules! word {
    ($t:ty, $atomic:ty, $load:literal, $store:literal, $class:ident $(, $as:ty)?) => {
        impl Word for $t {
            const BYTES: u64 = size_of::<$t>() as u64;
            const ONES: Self = Self::MAX;
        }
        impl sealed::Raw for $t {
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn read(at: *const u8) -> Self {
                let value: $t;
                // SAFETY: one load from memory the caller vouches for. Other threads may write
                // it meanwhile: to the compiler this is an opaque instruction, not a data race.
                unsafe {
                    std::arch::asm!($load, out($class) value, at = in(reg) at,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn write(at: *mut u8, value: Self) {
                // SAFETY: one store to memory the caller vouches for, opaque as above.
                unsafe {
                    std::arch::asm!($store, at = in(reg) at, value = in($class) value,
                        options(nostack, preserves_flags));
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            unsafe fn read(at: *const u8) -> Self {
                if at.addr() % size_of::<$t>() == 0 {
                    // SAFETY: valid by the caller, aligned by the test; atomics may race.
                    return <$t>::from_le(unsafe { <$atomic>::from_ptr(at.cast_mut().cast()) }
                        .load(Ordering::Acquire));
                }
                let mut bytes = [0_u8; size_of::<$t>()];
                for (index, byte) in bytes.iter_mut().enumerate() {
                    // SAFETY: within the word that the caller vouches for.
                    *byte = unsafe { AtomicU8::from_ptr(at.add(index).cast_mut()) }
                        .load(Ordering::Acquire);
                }
                <$t>::from_le_bytes(bytes)
            }
            #[cfg(not(target_arch = "x86_64"))]
            unsafe fn write(at: *mut u8, value: Self) {
                if at.addr() % size_of::<$t>() == 0 {
                    // SAFETY: valid by the caller, aligned by the test; atomics may race.
                    unsafe { <$atomic>::from_ptr(at.cast()) }.store(value.to_le(), Ordering::Release);
                    return;
                }
                for (index, byte) in value.to_le_bytes().into_iter().enumerate() {
                    // SAFETY: within the word that the caller vouches for.
                    unsafe { AtomicU8::from_ptr(at.add(index)) }.store(byte, Ordering::Release);
                }
            }
            #[inline(always)]
            unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Result<(), Self> {
                // SAFETY: valid and aligned by the caller; atomics may race with anything.
                unsafe { <$atomic>::from_ptr(at.cast()) }
                    .compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst)
                    .map(|_| ())
                    .map_err(<$t>::from_le)
            }
        }
    };
}

word!(
    u8,
    AtomicU8,
    "mov {0}, byte ptr [{at}]",
    "mov byte ptr [{at}], {value}",
    reg_byte
);
word!(
    u16,
    AtomicU16,
    "mov {0:x}, word ptr [{at}]",
    "mov word ptr [{at}], {value:x}",
    reg
);
word!(
    u32,
    AtomicU32,
    "mov {0:e}, dword ptr [{at}]",
    "mov dword ptr [{at}], {value:e}",
    reg
);
word!(
    u64,
    AtomicU64,
    "mov {0:r}, qword ptr [{at}]",
    "mov qword ptr [{at}], {value:r}",
    reg
);

impl Arena {
    /// Reserves `bytes` (whole pages) of zeroed memory.
    ///
    /// # Errors
    /// A size that cannot be, or the host's refusal.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        if bytes == 0 || bytes > MAX_CAPACITY_BYTES || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(MemoryError::Capacity(bytes));
        }
        let size = usize::try_from(bytes).map_err(|_| MemoryError::Capacity(bytes))?;
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let mapping = MmapRegion::build(None, size, libc::PROT_READ | libc::PROT_WRITE, flags)
            .map_err(|error| MemoryError::Reserve {
                bytes,
                reason: error.to_string(),
            })?;
        Ok(Self {
            base: mapping.as_ptr(),
            bytes,
            mapping: Arc::new(mapping),
        })
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The mapping, for whoever must keep it alive.
    #[must_use]
    pub fn mapping(&self) -> &Arc<MmapRegion> {
        &self.mapping
    }

    /// Where `at` is in this process: for an accelerator of the host, which maps memory by
    /// address. `None` outside the arena. The pointer is valid as long as the arena lives.
    #[must_use]
    pub fn host_pointer(&self, at: RamOffset) -> Option<*mut u8> {
        (at.0 < self.bytes).then(|| self.base.wrapping_add(usize::try_from(at.0).unwrap_or(0)))
    }

    #[inline(always)]
    fn place(&self, at: RamOffset, bytes: u64) -> Option<*mut u8> {
        // A capacity is at most 2^40 and a word at most 16 bytes, so that this cannot wrap.
        if at.0 <= self.bytes - bytes {
            // SAFETY: `at.0 + bytes <= self.bytes`, which is the size of the mapping.
            Some(unsafe { self.base.add(at.0 as usize) })
        } else {
            None
        }
    }

    /// Loads a word; any alignment. Outside the arena: all ones.
    #[inline(always)]
    #[must_use]
    pub fn load<T: Word>(&self, at: RamOffset) -> T {
        match self.place(at, T::BYTES) {
            // SAFETY: `place` has checked the range.
            Some(pointer) => unsafe { T::read(pointer) },
            None => T::ONES,
        }
    }

    /// Stores a word; any alignment. Outside the arena: nothing. Code marks are the caller's
    /// duty, see [`CodeMarks`](crate::CodeMarks).
    #[inline(always)]
    pub fn store<T: Word>(&self, at: RamOffset, value: T) {
        if let Some(pointer) = self.place(at, T::BYTES) {
            // SAFETY: `place` has checked the range.
            unsafe { T::write(pointer, value) };
        }
    }

    /// Stores `new` if `old` is there, as one operation that all threads see in one order.
    /// Returns what is there otherwise. `None`: not naturally aligned (use an exclusive section).
    #[inline]
    pub fn compare_exchange<T: Word>(
        &self,
        at: RamOffset,
        old: T,
        new: T,
    ) -> Option<Result<(), T>> {
        if !at.0.is_multiple_of(T::BYTES) {
            return None;
        }
        let Some(pointer) = self.place(at, T::BYTES) else {
            return Some(Err(T::ONES));
        };
        // SAFETY: in range by `place`; aligned, since the mapping starts on a page.
        Some(unsafe { T::compare_exchange(pointer, old, new) })
    }

    /// Replaces a word by what `change` makes of it, as one operation, and returns what was
    /// there. `change` may be called more than once. `None`: not naturally aligned.
    #[inline]
    pub fn fetch_update<T: Word + PartialEq>(
        &self,
        at: RamOffset,
        mut change: impl FnMut(T) -> T,
    ) -> Option<T> {
        let mut old = self.load::<T>(at);
        loop {
            let new = change(old);
            match self.compare_exchange(at, old, new)? {
                Ok(()) => return Some(old),
                Err(_) if at.0 > self.bytes - T::BYTES => return Some(old),
                Err(seen) => old = seen,
            }
        }
    }

    /// The 16-byte compare-exchange of CMPXCHG16B. `None`: not aligned to 16 bytes, or the host
    /// has no such instruction.
    #[inline]
    pub fn compare_exchange_16(
        &self,
        at: RamOffset,
        old: u128,
        new: u128,
    ) -> Option<Result<(), u128>> {
        if !at.0.is_multiple_of(16) || !has_cmpxchg16b() {
            return None;
        }
        let Some(pointer) = self.place(at, 16) else {
            return Some(Err(u128::MAX));
        };
        // SAFETY: in range by `place`, aligned to 16, and the host has the instruction.
        Some(unsafe { cmpxchg16b(pointer, old, new) })
    }

    /// Loads 16 bytes, as two words.
    #[inline]
    #[must_use]
    pub fn load_16(&self, at: RamOffset) -> u128 {
        let low: u64 = self.load(at);
        let high: u64 = self.load(RamOffset(at.0.wrapping_add(8)));
        u128::from(low) | (u128::from(high) << 64)
    }

    /// Stores 16 bytes, as two words.
    #[inline]
    pub fn store_16(&self, at: RamOffset, value: u128) {
        self.store(at, value as u64);
        self.store(RamOffset(at.0.wrapping_add(8)), (value >> 64) as u64);
    }

    /// Copies out of the arena. Returns how many bytes there were.
    pub fn read(&self, at: RamOffset, into: &mut [u8]) -> usize {
        let mut done = 0;
        let (chunks, rest) = into.as_chunks_mut::<8>();
        for chunk in chunks {
            *chunk = self
                .load::<u64>(RamOffset(at.0.wrapping_add(done)))
                .to_le_bytes();
            done += 8;
        }
        for byte in rest {
            *byte = self.load(RamOffset(at.0.wrapping_add(done)));
            done += 1;
        }
        let left = self.bytes.saturating_sub(at.0);
        usize::try_from(done.min(left)).unwrap_or(0)
    }

    /// Gives whole pages back to the host; they read as zeroes from now on, and cost nothing until they are touched
    /// again. False if the range is not whole pages of the arena, or the host refuses. Code marks are the caller's duty.
    pub fn discard(&self, at: RamOffset, bytes: u64) -> bool {
        let is_inside = at.0.is_multiple_of(PAGE_BYTES)
            && bytes.is_multiple_of(PAGE_BYTES)
            && at.0.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        let (Some(pointer), Ok(length), true) =
            (self.host_pointer(at), usize::try_from(bytes), is_inside)
        else {
            return false;
        };
        // SAFETY: whole pages within the mapping, which is private and anonymous: it stays mapped, and its bytes become
        // zero as if somebody had written them. Nobody has a reference to any of them.
        unsafe { libc::madvise(pointer.cast(), length, libc::MADV_DONTNEED) == 0 }
    }

    /// Copies into the arena; what does not fit is dropped. Code marks are the caller's duty.
    pub fn write(&self, at: RamOffset, from: &[u8]) {
        let mut done = 0;
        let (chunks, rest) = from.as_chunks::<8>();
        for chunk in chunks {
            self.store(
                RamOffset(at.0.wrapping_add(done)),
                u64::from_le_bytes(*chunk),
            );
            done += 8;
        }
        for byte in rest {
            self.store(RamOffset(at.0.wrapping_add(done)), *byte);
            done += 1;
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_cmpxchg16b() -> bool {
    std::arch::is_x86_feature_detected!("cmpxchg16b")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_cmpxchg16b() -> bool {
    false
}

/// # Safety
/// `at` is valid for 16 bytes and aligned to 16, and the host has the instruction.
#[cfg(target_arch = "x86_64")]
unsafe fn cmpxchg16b(at: *mut u8, old: u128, new: u128) -> Result<(), u128> {
    let (low, high): (u64, u64);
    let done: u8;
    // SAFETY: by the contract. The compiler keeps RBX for itself, so that it is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {new_low}",
            "lock cmpxchg16b [{at}]",
            "sete {done}",
            "mov rbx, {new_low}",
            at = in(reg) at,
            new_low = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => low,
            inout("rdx") (old >> 64) as u64 => high,
            done = out(reg_byte) done,
            options(nostack),
        );
    }
    if done == 1 {
        Ok(())
    } else {
        Err(u128::from(low) | (u128::from(high) << 64))
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn cmpxchg16b(_at: *mut u8, old: u128, _new: u128) -> Result<(), u128> {
    Err(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_alignment() {
        let arena = Arena::new(8192).unwrap();
        for at in 4090..4102 {
            arena.store(RamOffset(at), 0x1122_3344_5566_7788_u64);
            assert_eq!(arena.load::<u64>(RamOffset(at)), 0x1122_3344_5566_7788);
            assert_eq!(arena.load::<u8>(RamOffset(at + 7)), 0x11);
            assert_eq!(arena.load::<u16>(RamOffset(at + 1)), 0x6677);
            assert_eq!(arena.load::<u32>(RamOffset(at + 2)), 0x3344_5566);
        }
    }

    #[test]
    fn nobody_answers_outside() {
        let arena = Arena::new(4096).unwrap();
        arena.store(RamOffset(4093), 5_u32);
        arena.store(RamOffset(u64::MAX), 5_u32);
        assert_eq!(arena.load::<u32>(RamOffset(4093)), u32::MAX);
        assert_eq!(arena.load::<u32>(RamOffset(u64::MAX - 1)), u32::MAX);
        assert_eq!(arena.load::<u32>(RamOffset(4092)), 0);
        assert_eq!(arena.read(RamOffset(4090), &mut [0; 16]), 6);
    }

    #[test]
    fn sizes_that_cannot_be() {
        assert!(Arena::new(0).is_err());
        assert!(Arena::new(100).is_err());
        assert!(Arena::new(MAX_CAPACITY_BYTES + PAGE_BYTES).is_err());
    }

    #[test]
    fn sixteen_bytes_at_once() {
        let arena = Arena::new(4096).unwrap();
        arena.store_16(RamOffset(32), 7);
        if let Some(result) = arena.compare_exchange_16(RamOffset(32), 7, u128::MAX - 3) {
            assert_eq!(result, Ok(()));
            assert_eq!(arena.load_16(RamOffset(32)), u128::MAX - 3);
            let result = arena.compare_exchange_16(RamOffset(32), 7, 1).unwrap();
            assert_eq!(result, Err(u128::MAX - 3));
        }
        assert!(arena.compare_exchange_16(RamOffset(8), 7, 1).is_none());
    }

    #[test]
    fn discarded_pages_are_zero() {
        let arena = Arena::new(4 * PAGE_BYTES).unwrap();
        arena.write(RamOffset(0), &[7; 4 * 4096]);
        assert!(arena.discard(RamOffset(PAGE_BYTES), 2 * PAGE_BYTES));
        let mut seen = vec![0; 4 * 4096];
        arena.read(RamOffset(0), &mut seen);
        assert_eq!(seen[4095..4097], [7, 0]);
        assert_eq!(seen[3 * 4096 - 1..3 * 4096 + 1], [0, 7]);
        arena.store(RamOffset(PAGE_BYTES), 5_u8);
        assert_eq!(arena.load::<u8>(RamOffset(PAGE_BYTES)), 5);
        assert!(!arena.discard(RamOffset(1), PAGE_BYTES));
        assert!(!arena.discard(RamOffset(0), 5 * PAGE_BYTES));
        assert!(!arena.discard(RamOffset(PAGE_BYTES), u64::MAX - 4095));
        assert!(!arena.discard(RamOffset(0), 100));
    }

    #[test]
    fn threads_count_together() {
        let arena = Arena::new(4096).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        arena
                            .fetch_update::<u32>(RamOffset(64), |old| old + 1)
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(arena.load::<u32>(RamOffset(64)), 40_000);
        assert!(
            arena
                .fetch_update::<u32>(RamOffset(65), |old| old)
                .is_none()
        );
    }

    proptest::proptest! {
        #[test]
        fn behaves_like_a_slice(ops in proptest::collection::vec((0_u64..4096, proptest::collection::vec(0_u8..=255, 0..40)), 1..30)) {
            let arena = Arena::new(4096).unwrap();
            let mut model = vec![0_u8; 4096];
            for (at, bytes) in ops {
                let fits = bytes.len().min(4096 - at as usize);
                arena.write(RamOffset(at), &bytes[..fits]);
                model[at as usize..at as usize + fits].copy_from_slice(&bytes[..fits]);
            }
            let mut seen = vec![0_u8; 4096];
            proptest::prop_assert_eq!(arena.read(RamOffset(0), &mut seen), 4096);
            proptest::prop_assert_eq!(seen, model);
        }
    }
}
