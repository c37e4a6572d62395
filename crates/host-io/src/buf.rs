//! I/O buffers that an operation can own until the kernel has finished with them.
//!
//! An [`IoBuf`] is exclusive, page-aligned memory that can be split into disjoint parts without
//! copying (a request that touches several extents gives each extent its part) and joined again.
//! [`IoBuf::freeze`] turns it into [`IoBytes`]: shared, read-only, cheap to clone and slice.
//!
//! Memory is recycled through a small per-thread pool, so that the hot path allocates nothing.
//! Recycled memory is *not* cleared: whoever makes an `IoBuf` for a read either fills it whole or
//! zeroes the rest ([`IoBuf::zero_from`]).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::sync::Arc;

/// Every buffer begins on this boundary, which satisfies `O_DIRECT` on any disk.
pub const BUF_ALIGN: usize = 4096;

/// The smallest size class the pool keeps, as a power of two (4 KiB).
const MIN_CLASS: u32 = 12;
/// The largest size class the pool keeps, as a power of two (2 MiB).
const MAX_CLASS: u32 = 21;
/// How many idle bytes one thread's pool keeps of each class.
const CLASS_BUDGET: usize = 4 << 20;

/// One allocation, shared by the buffers cut from it.
struct Slab {
    memory: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a slab is plain memory; the buffers cut from it are disjoint (`IoBuf`) or read-only
// (`IoBytes`), so threads never race on a byte.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    fn layout(capacity: usize) -> Layout {
        match Layout::from_size_align(capacity.max(1), BUF_ALIGN) {
            Ok(layout) => layout,
            Err(_) => handle_alloc_error(Layout::new::<u8>()),
        }
    }

    fn new(capacity: usize) -> Arc<Self> {
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        match NonNull::new(raw) {
            Some(memory) => Arc::new(Self { memory, capacity }),
            None => handle_alloc_error(layout),
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and this is the last owner.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.capacity)) }
    }
}

thread_local! {
    static POOL: RefCell<Vec<Vec<Arc<Slab>>>> = const { RefCell::new(Vec::new()) };
}

fn class_of(len: usize) -> Option<u32> {
    let class = len
        .max(1)
        .next_power_of_two()
        .trailing_zeros()
        .max(MIN_CLASS);
    (class <= MAX_CLASS).then_some(class)
}

fn take_slab(len: usize) -> Arc<Slab> {
    let Some(class) = class_of(len) else {
        return Slab::new(len);
    };
    let index = (class - MIN_CLASS) as usize;
    let pooled = POOL
        .try_with(|pool| pool.borrow_mut().get_mut(index).and_then(Vec::pop))
        .ok()
        .flatten();
    pooled.unwrap_or_else(|| Slab::new(1 << class))
}

fn recycle(slab: Arc<Slab>) {
    let mut slab = slab;
    if Arc::get_mut(&mut slab).is_none() || !slab.capacity.is_power_of_two() {
        return;
    }
    let Some(class) = class_of(slab.capacity) else {
        return;
    };
    let index = (class - MIN_CLASS) as usize;
    let keep = (CLASS_BUDGET >> class).max(2);
    // A thread that is going away has no pool any more: then the memory is simply freed.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() <= index {
            pool.resize_with(index + 1, Vec::new);
        }
        if let Some(shelf) = pool.get_mut(index)
            && shelf.len() < keep
        {
            shelf.push(slab);
        }
    });
}

/// Exclusive, page-aligned memory for one I/O operation. See the module's text.
pub struct IoBuf {
    slab: Option<Arc<Slab>>,
    start: usize,
    len: usize,
}

impl IoBuf {
    /// A buffer of `len` bytes whose content is unspecified (whatever its memory held before).
    ///
    /// For reads that fill it whole; anything else wants [`IoBuf::zeroed`].
    pub fn with_len(len: usize) -> Self {
        Self {
            slab: Some(take_slab(len)),
            start: 0,
            len,
        }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::with_len(len);
        buf.fill(0);
        buf
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::with_len(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Splits off and returns the first `at` bytes (all, where there are fewer).
    pub fn split_to(&mut self, at: usize) -> Self {
        let at = at.min(self.len);
        let front = Self {
            slab: self.slab.clone(),
            start: self.start,
            len: at,
        };
        self.start += at;
        self.len -= at;
        front
    }

    /// Joins `next` behind `self` if the two were neighbours in one allocation.
    ///
    /// # Errors
    /// Gives `next` back when they were not.
    pub fn join(&mut self, next: Self) -> Result<(), Self> {
        let same = match (&self.slab, &next.slab) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if same && self.start + self.len == next.start {
            self.len += next.len;
            Ok(())
        } else {
            Err(next)
        }
    }

    /// Shortens the buffer to `len` bytes; does nothing if it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Drops the first `count` bytes.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.len);
        self.start += count;
        self.len -= count;
    }

    /// Zeroes everything from byte `from` on.
    pub fn zero_from(&mut self, from: usize) {
        if let Some(tail) = self.get_mut(from..) {
            tail.fill(0);
        }
    }

    /// Makes the content shared and read-only.
    pub fn freeze(mut self) -> IoBytes {
        IoBytes {
            slab: self.slab.take(),
            start: self.start,
            len: self.len,
        }
    }

    fn memory(&self) -> *mut u8 {
        match &self.slab {
            // SAFETY: `start + len <= capacity` is an invariant of every constructor and split.
            Some(slab) => unsafe { slab.memory.as_ptr().add(self.start) },
            None => NonNull::<u8>::dangling().as_ptr(),
        }
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the slab, was initialised by `alloc_zeroed`, and is
        // exclusively ours.
        unsafe { std::slice::from_raw_parts(self.memory(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory(), self.len) }
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            recycle(slab);
        }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

/// Shared, read-only bytes: what a write carries. Cloning and slicing copy nothing.
#[derive(Clone)]
pub struct IoBytes {
    slab: Option<Arc<Slab>>,
    start: usize,
    len: usize,
}

impl IoBytes {
    /// Bytes that hold a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        IoBuf::copy_of(bytes).freeze()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part `range` of these bytes, clamped to what there is.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let from = match range.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n.saturating_add(1),
            Bound::Unbounded => 0,
        }
        .min(self.len);
        let to = match range.end_bound() {
            Bound::Included(&n) => n.saturating_add(1),
            Bound::Excluded(&n) => n,
            Bound::Unbounded => self.len,
        }
        .clamp(from, self.len);
        Self {
            slab: self.slab.clone(),
            start: self.start + from,
            len: to - from,
        }
    }

    /// Takes the memory back for writing if nobody else holds it, else copies.
    pub fn into_buf(mut self) -> IoBuf {
        let Some(mut slab) = self.slab.take() else {
            return IoBuf::zeroed(0);
        };
        if Arc::get_mut(&mut slab).is_some() {
            return IoBuf {
                slab: Some(slab),
                start: self.start,
                len: self.len,
            };
        }
        self.slab = Some(slab);
        IoBuf::copy_of(&self)
    }
}

impl Deref for IoBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.slab {
            // SAFETY: the range lies within the slab and, being frozen, is written by nobody.
            Some(slab) => unsafe {
                std::slice::from_raw_parts(slab.memory.as_ptr().add(self.start), self.len)
            },
            None => &[],
        }
    }
}

impl Drop for IoBytes {
    fn drop(&mut self) {
        if let Some(slab) = self.slab.take() {
            recycle(slab);
        }
    }
}

impl fmt::Debug for IoBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBytes({} bytes)", self.len)
    }
}

impl From<IoBuf> for IoBytes {
    fn from(buf: IoBuf) -> Self {
        buf.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_split_without_copying() {
        let mut buf = IoBuf::zeroed(10_000);
        assert_eq!(buf.as_ptr() as usize % BUF_ALIGN, 0);
        let mut front = buf.split_to(4096);
        front.fill(1);
        buf.fill(2);
        assert_eq!(front.len(), 4096);
        assert_eq!(buf.len(), 5904);
        front.join(buf).unwrap();
        assert_eq!(front.len(), 10_000);
        assert_eq!(front[4095], 1);
        assert_eq!(front[4096], 2);
    }

    #[test]
    fn strangers_do_not_join() {
        let mut a = IoBuf::zeroed(8);
        let b = IoBuf::zeroed(8);
        assert_eq!(a.join(b).unwrap_err().len(), 8);
        assert_eq!(a.len(), 8);
    }

    #[test]
    fn a_shared_slab_is_not_recycled_while_a_part_lives() {
        let mut buf = IoBuf::zeroed(8192);
        let front = buf.split_to(4096).freeze();
        let copy = front.slice(10..20);
        drop(front);
        drop(buf);
        let mut other = IoBuf::with_len(8192);
        other.fill(7);
        assert_eq!(&*copy, &[0; 10]);
    }

    #[test]
    fn frozen_bytes_come_back_writable_only_when_unshared() {
        let bytes = IoBytes::copy_of(b"hello");
        let clone = bytes.clone();
        let mut copied = bytes.into_buf();
        copied[0] = b'j';
        assert_eq!(&*clone, b"hello");
        let at = clone.as_ptr();
        let taken = clone.into_buf();
        assert_eq!(taken.as_ptr(), at);
    }
}
