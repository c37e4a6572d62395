//! Which bytes of memory somebody keeps in decoded form.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::{Attention, PAGE_BYTES, RamOffset};

/// Bytes that share a mark: a write beside code, but not in its line, disturbs nobody.
pub const LINE_BYTES: u64 = PAGE_BYTES / 64;

/// The marks of an arena: for each page one bit for each of its 64 lines, and a generation.
///
/// How a reader of code and a writer agree, without a lock on the writer's side: the reader
/// sets the mark, makes every other thread of the process pass a full barrier (`membarrier`),
/// takes the generation and then reads the bytes. A writer stores first and looks at the mark
/// then. So either the reader sees the new bytes, or the writer sees the mark and moves the
/// generation on. Where the host has no `membarrier`, each writer makes a barrier of its own.
#[derive(Debug)]
pub struct CodeMarks {
    lines: Box<[AtomicU64]>,
    generations: Box<[AtomicU32]>,
    watchers: Mutex<Vec<Weak<Attention>>>,
    writers_fence: bool,
}

impl CodeMarks {
    pub(crate) fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes / PAGE_BYTES).unwrap_or(0);
        // SAFETY: all zero bytes are a valid atomic integer. Zeroed by the host, page by page,
        // when first touched: marks of memory without code cost nothing.
        let lines = unsafe { Box::<[AtomicU64]>::new_zeroed_slice(pages).assume_init() };
        // SAFETY: as above.
        let generations = unsafe { Box::<[AtomicU32]>::new_zeroed_slice(pages).assume_init() };
        Self {
            lines,
            generations,
            watchers: Mutex::default(),
            writers_fence: !register_membarrier(),
        }
    }

    /// From now on tells `attention` when code changes or the map does.
    pub fn watch(&self, attention: &Arc<Attention>) {
        let mut watchers = self.watchers.lock();
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(Arc::downgrade(attention));
    }

    pub(crate) fn tell(&self, flags: u32) {
        for watcher in self.watchers.lock().iter().filter_map(Weak::upgrade) {
            watcher.raise(flags);
        }
    }

    pub(crate) fn untell(&self, flags: u32) {
        for watcher in self.watchers.lock().iter().filter_map(Weak::upgrade) {
            watcher.lower(flags);
        }
    }

    fn page(&self, at: RamOffset) -> Option<(&AtomicU64, &AtomicU32)> {
        let page = usize::try_from(at.0 / PAGE_BYTES).ok()?;
        Some((self.lines.get(page)?, self.generations.get(page)?))
    }

    /// The lines of one page that `bytes` from `at` touch; the range is cut at the page's end.
    fn bits(at: RamOffset, bytes: u64) -> u64 {
        let first = (at.0 % PAGE_BYTES) / LINE_BYTES;
        let end = (at.0 % PAGE_BYTES).saturating_add(bytes.max(1) - 1);
        let last = end.min(PAGE_BYTES - 1) / LINE_BYTES;
        let count = last - first + 1;
        if count == 64 {
            u64::MAX
        } else {
            ((1_u64 << count) - 1) << first
        }
    }

    /// Marks `bytes` from `at`, within one page, as decoded, and returns the page's generation:
    /// to be taken *before* the bytes are read. What is decoded then holds as long as
    /// [`CodeMarks::generation`] says the same.
    #[must_use]
    pub fn mark(&self, at: RamOffset, bytes: u64) -> u32 {
        let Some((lines, generation)) = self.page(at) else {
            return 0;
        };
        let bits = Self::bits(at, bytes);
        if lines.load(Ordering::SeqCst) & bits != bits {
            lines.fetch_or(bits, Ordering::SeqCst);
            if self.writers_fence {
                fence(Ordering::SeqCst);
            } else {
                barrier_everywhere();
            }
        }
        generation.load(Ordering::SeqCst)
    }

    /// Whether the page that holds `at` is still at `generation` and still watched: to be asked
    /// after decoding, before the result is kept.
    #[must_use]
    pub fn holds(&self, at: RamOffset, bytes: u64, generation: u32) -> bool {
        let bits = Self::bits(at, bytes);
        self.page(at).is_some_and(|(lines, current)| {
            lines.load(Ordering::SeqCst) & bits == bits
                && current.load(Ordering::SeqCst) == generation
        })
    }

    /// The generation of the page that holds `at`.
    #[must_use]
    pub fn generation(&self, at: RamOffset) -> u32 {
        self.page(at)
            .map_or(0, |(_, generation)| generation.load(Ordering::Acquire))
    }

    /// Whether a store of up to 16 bytes to `at`, within one page, hit or would hit marked
    /// lines.
    #[inline(always)]
    #[must_use]
    pub fn is_marked(&self, at: RamOffset, bytes: u64) -> bool {
        match self.lines.get((at.0 / PAGE_BYTES) as usize) {
            Some(lines) => {
                let lines = lines.load(Ordering::Relaxed);
                lines != 0 && lines & Self::bits(at, bytes) != 0
            }
            None => false,
        }
    }

    /// To be called after each store, with what [`CodeMarks::is_marked`] needs: orders the store
    /// before the look at the mark, and tells everybody if it was code.
    #[inline(always)]
    pub fn after_store(&self, at: RamOffset, bytes: u64) {
        if self.writers_fence {
            fence(Ordering::SeqCst);
        }
        if self.is_marked(at, bytes) {
            self.written(at, bytes);
        }
    }

    /// Code in a range of any length was written: its pages move on, and everybody is told.
    #[cold]
    pub fn written(&self, at: RamOffset, bytes: u64) {
        fence(Ordering::SeqCst);
        let mut changed = false;
        let mut here = at.0;
        let end = at.0.saturating_add(bytes);
        while here < end {
            let next = (here / PAGE_BYTES + 1).saturating_mul(PAGE_BYTES);
            if let Some((lines, generation)) = self.page(RamOffset(here))
                && lines.load(Ordering::SeqCst) & Self::bits(RamOffset(here), end - here) != 0
            {
                // First the marks, then the generation: who marks anew meanwhile either keeps
                // its mark or sees that the generation moves.
                lines.store(0, Ordering::SeqCst);
                generation.fetch_add(1, Ordering::SeqCst);
                changed = true;
            }
            here = next;
        }
        if changed {
            self.tell(Attention::CODE_CHANGED);
        }
    }
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes two integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

fn register_membarrier() -> bool {
    membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
}

fn barrier_everywhere() {
    fence(Ordering::SeqCst);
    membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_beside_code_disturbs_nobody() {
        let marks = CodeMarks::new(8192);
        let attention = Arc::new(Attention::default());
        marks.watch(&attention);
        let generation = marks.mark(RamOffset(4096 + 100), 10);
        assert!(marks.holds(RamOffset(4096 + 100), 10, generation));
        marks.after_store(RamOffset(4096 + 200), 8);
        marks.after_store(RamOffset(100), 8);
        assert_eq!(attention.pending(), 0);
        assert!(marks.holds(RamOffset(4096 + 100), 10, generation));
        marks.after_store(RamOffset(4096 + 108), 1);
        assert_eq!(attention.take(u32::MAX), Attention::CODE_CHANGED);
        assert!(!marks.holds(RamOffset(4096 + 100), 10, generation));
        assert_eq!(marks.generation(RamOffset(4096 + 100)), generation + 1);
    }

    #[test]
    fn a_bulk_write_hits_all_its_pages() {
        let marks = CodeMarks::new(4 * 4096);
        let first = marks.mark(RamOffset(4095), 1);
        let last = marks.mark(RamOffset(3 * 4096), 4096);
        marks.written(RamOffset(4000), 8300);
        assert_ne!(marks.generation(RamOffset(4095)), first);
        assert_ne!(marks.generation(RamOffset(3 * 4096)), last);
    }

    #[test]
    fn lines_of_a_range() {
        assert_eq!(CodeMarks::bits(RamOffset(0), 4096), u64::MAX);
        assert_eq!(CodeMarks::bits(RamOffset(63), 2), 3);
        assert_eq!(CodeMarks::bits(RamOffset(4095), 8), 1 << 63);
        assert_eq!(CodeMarks::bits(RamOffset(64), 0), 2);
        assert_eq!(CodeMarks::bits(RamOffset(0), u64::MAX), u64::MAX);
    }
}
