//! Memory slots: the map of guest memory as the kernel knows it, and its log of written pages.

use std::sync::Arc;

use guest_memory::{Arena, PAGE_BYTES, RamOffset, Region, RegionKind};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vcpu::DirtyRange;

use crate::{KvmError, refused};

/// What the kernel knows.
#[derive(Debug)]
pub(crate) struct Slots {
    /// The map that the slots show; compared by identity.
    map: Option<Arc<[Region]>>,
    /// By slot number.
    used: Vec<Option<Region>>,
    limit: usize,
    logging: bool,
    /// Written pages of slots that are gone.
    left_over: Vec<RamOffset>,
}

impl Slots {
    /// None yet; the kernel has room for `limit`.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            map: None,
            used: Vec::new(),
            limit,
            logging: false,
            left_over: Vec::new(),
        }
    }

    /// Whether the slots show this map.
    pub(crate) fn show(&self, map: &Arc<[Region]>) -> bool {
        self.map
            .as_ref()
            .is_some_and(|shown| Arc::ptr_eq(shown, map))
    }

    /// Makes the slots show a map. No vCPU is in the guest.
    pub(crate) fn follow(
        &mut self,
        vm: &VmFd,
        arena: &Arena,
        map: Arc<[Region]>,
    ) -> Result<(), KvmError> {
        self.map = None;
        for slot in 0..self.used.len() {
            if let Some(region) = self.used.get(slot).copied().flatten()
                && !map.contains(&region)
            {
                self.collect(vm, slot, region)?;
                self.tell(vm, arena, slot, region, 0)?;
                if let Some(place) = self.used.get_mut(slot) {
                    *place = None;
                }
            }
        }
        for region in map.iter().copied() {
            if self.used.contains(&Some(region)) {
                continue;
            }
            let slot = self.free_slot()?;
            self.tell(vm, arena, slot, region, region.bytes)?;
            if let Some(place) = self.used.get_mut(slot) {
                *place = Some(region);
            }
        }
        self.map = Some(map);
        Ok(())
    }

    fn free_slot(&mut self) -> Result<usize, KvmError> {
        if let Some(slot) = self.used.iter().position(Option::is_none) {
            return Ok(slot);
        }
        if self.used.len() >= self.limit {
            return Err(KvmError::TooManyRegions(self.limit));
        }
        self.used.push(None);
        Ok(self.used.len() - 1)
    }

    /// Makes, changes or (with no bytes) deletes a slot.
    fn tell(
        &self,
        vm: &VmFd,
        arena: &Arena,
        slot: usize,
        region: Region,
        bytes: u64,
    ) -> Result<(), KvmError> {
        let what = "map guest memory";
        let missing = || KvmError::Refused {
            what,
            source: std::io::Error::from_raw_os_error(libc::EFAULT),
        };
        let end = region.ram.0.checked_add(region.bytes).ok_or_else(missing)?;
        let pointer = arena.host_pointer(region.ram).ok_or_else(missing)?;
        if end > arena.bytes() {
            return Err(missing());
        }
        let flags = match region.kind {
            RegionKind::Rom => KVM_MEM_READONLY,
            RegionKind::Ram if self.logging => KVM_MEM_LOG_DIRTY_PAGES,
            RegionKind::Ram => 0,
        };
        let request = kvm_userspace_memory_region {
            slot: u32::try_from(slot).map_err(|_| missing())?,
            flags,
            guest_phys_addr: region.start.0,
            memory_size: bytes,
            userspace_addr: pointer.addr() as u64,
        };
        // SAFETY: the range lies within the arena (checked above), which lives as long as the virtual machine; the
        // guest may do to it whatever other threads may, as the arena's contract says.
        unsafe { vm.set_user_memory_region(request) }.map_err(refused(what))
    }

    /// Begins or ends to log. No vCPU is in the guest.
    pub(crate) fn set_logging(
        &mut self,
        vm: &VmFd,
        arena: &Arena,
        wanted: bool,
    ) -> Result<(), KvmError> {
        self.logging = wanted;
        self.left_over.clear();
        for (slot, region) in self.used.iter().enumerate() {
            if let Some(region) = region
                && region.kind == RegionKind::Ram
            {
                self.tell(vm, arena, slot, *region, region.bytes)?;
            }
        }
        Ok(())
    }

    /// Keeps the log of a slot.
    fn collect(&mut self, vm: &VmFd, slot: usize, region: Region) -> Result<(), KvmError> {
        if !self.logging || region.kind == RegionKind::Rom {
            return Ok(());
        }
        let number = u32::try_from(slot).unwrap_or(u32::MAX);
        let bytes = usize::try_from(region.bytes).unwrap_or(usize::MAX);
        let log = vm
            .get_dirty_log(number, bytes)
            .map_err(refused("tell which pages were written"))?;
        for (word, bits) in (0_u64..).zip(log) {
            let pages = (0..64).filter(|bit| bits & (1 << bit) != 0);
            self.left_over
                .extend(pages.map(|bit| RamOffset(region.ram.0 + (word * 64 + bit) * PAGE_BYTES)));
        }
        Ok(())
    }

    /// Takes the log, sorted and joined; it begins anew.
    pub(crate) fn take_log(&mut self, vm: &VmFd) -> Result<Vec<DirtyRange>, KvmError> {
        for slot in 0..self.used.len() {
            if let Some(region) = self.used.get(slot).copied().flatten() {
                self.collect(vm, slot, region)?;
            }
        }
        Ok(join(std::mem::take(&mut self.left_over)))
    }
}

/// Pages in any order, some of them more than once, as ranges.
fn join(mut pages: Vec<RamOffset>) -> Vec<DirtyRange> {
    pages.sort_unstable();
    pages.dedup();
    let mut ranges: Vec<DirtyRange> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if last.start.0 + last.bytes == page.0 => last.bytes += PAGE_BYTES,
            _ => ranges.push(DirtyRange {
                start: page,
                bytes: PAGE_BYTES,
            }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_joined() {
        let pages = [5, 1, 2, 2, 9, 4].map(|page| RamOffset(page * PAGE_BYTES));
        let ranges: Vec<(u64, u64)> = join(pages.to_vec())
            .iter()
            .map(|range| (range.start.0 / PAGE_BYTES, range.bytes / PAGE_BYTES))
            .collect();
        assert_eq!(ranges, [(1, 2), (4, 2), (9, 1)]);
    }
}
