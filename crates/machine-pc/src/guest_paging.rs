//! Where a processor's linear addresses lie, for people who look into a guest (SDM volume 3, chapter "Paging").
//!
//! Access rights are not looked at, and no A or D bit is set: nobody in the guest notices.

use guest_memory::{GuestMemory, GuestPhysAddr};
use vcpu::VcpuState;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

fn read(memory: &GuestMemory, at: u64, bytes: usize) -> Option<u64> {
    let mut entry = [0; 8];
    memory
        .read(GuestPhysAddr(at), entry.get_mut(..bytes)?)
        .ok()?;
    Some(u64::from_le_bytes(entry))
}

/// The physical address behind a linear one; `None` where nothing is mapped.
pub(crate) fn translate(
    memory: &GuestMemory,
    state: &VcpuState,
    linear: u64,
) -> Option<GuestPhysAddr> {
    let system = &state.system;
    let long = system.efer & EFER_LMA != 0;
    if system.cr0 & CR0_PG == 0 {
        return Some(GuestPhysAddr(linear & 0xffff_ffff));
    }
    if !long && system.cr4 & CR4_PAE == 0 {
        return two_levels(memory, system.cr3, system.cr4, linear & 0xffff_ffff);
    }
    let levels = match (long, system.cr4 & CR4_LA57 != 0) {
        (false, _) => 3,
        (true, false) => 4,
        (true, true) => 5,
    };
    let linear = if long { linear } else { linear & 0xffff_ffff };
    let unused = 64 - (12 + 9 * levels);
    let canonical = (linear << unused).cast_signed() >> unused;
    if long && canonical.cast_unsigned() != linear {
        return None;
    }
    let root = if long { ADDRESS } else { 0xffff_ffe0 };
    let mut table = system.cr3 & root;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let entry = read(memory, table + ((linear >> shift) & 0x1ff) * 8, 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        let is_page = level == 0 || (matches!(level, 1 | 2) && entry & LARGE != 0);
        if is_page {
            let inside = (1_u64 << shift) - 1;
            return Some(GuestPhysAddr(
                (entry & ADDRESS & !inside) | (linear & inside),
            ));
        }
        table = entry & ADDRESS;
    }
    None
}

/// 32-bit paging.
fn two_levels(memory: &GuestMemory, cr3: u64, cr4: u64, linear: u64) -> Option<GuestPhysAddr> {
    let directory = read(memory, (cr3 & 0xffff_f000) + (linear >> 22) * 4, 4)?;
    if directory & PRESENT == 0 {
        return None;
    }
    if directory & LARGE != 0 && cr4 & CR4_PSE != 0 {
        // Bits 39-32 are in bits 20-13 (PSE-36).
        let high = (directory >> 13 & 0xff) << 32;
        return Some(GuestPhysAddr(
            high | (directory & 0xffc0_0000) | (linear & 0x3f_ffff),
        ));
    }
    let entry = read(
        memory,
        (directory & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4,
        4,
    )?;
    let there = entry & PRESENT != 0;
    there.then_some(GuestPhysAddr((entry & 0xffff_f000) | (linear & 0xfff)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(entries: &[(u64, u64)]) -> GuestMemory {
        let memory = GuestMemory::new(1 << 20).unwrap();
        memory.add_ram(GuestPhysAddr(0), 1 << 20).unwrap();
        for (at, entry) in entries {
            memory
                .write(GuestPhysAddr(*at), &entry.to_le_bytes())
                .unwrap();
        }
        memory
    }

    fn state(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> VcpuState {
        let mut state = VcpuState::default();
        state.system.cr0 = cr0;
        state.system.cr3 = cr3;
        state.system.cr4 = cr4;
        state.system.efer = efer;
        state
    }

    fn at(memory: &GuestMemory, state: &VcpuState, linear: u64) -> Option<u64> {
        translate(memory, state, linear).map(|address| address.0)
    }

    #[test]
    fn four_levels_with_large_pages() {
        let memory = memory(&[
            (0x1000 + 511 * 8, 0x2003),
            (0x2000 + 510 * 8, 0x3003),
            (0x3000, 0x4003),
            (0x3008, 0x0060_0083),
            (0x4000 + 8, 0x8000_0000_0007_7003),
        ]);
        let state = state(CR0_PG, 0x1000, CR4_PAE, EFER_LMA);
        assert_eq!(at(&memory, &state, 0xffff_ffff_8000_1234), Some(0x7_7234));
        assert_eq!(at(&memory, &state, 0xffff_ffff_8021_2345), Some(0x61_2345));
        assert_eq!(at(&memory, &state, 0xffff_ffff_8000_2000), None);
        assert_eq!(at(&memory, &state, 0x0000_ffff_8000_1234), None);
    }

    #[test]
    fn two_levels_and_none() {
        let memory = memory(&[(0x1004, 0x00c0_0083_0000_2003)]);
        memory
            .write(GuestPhysAddr(0x2008), &0x5003_u32.to_le_bytes())
            .unwrap();
        let paged = state(CR0_PG, 0x1000, CR4_PSE, 0);
        assert_eq!(at(&memory, &paged, 0x40_2abc), Some(0x5abc));
        assert_eq!(at(&memory, &paged, 0x81_2345), Some(0xc1_2345));
        assert_eq!(at(&memory, &paged, 0), None);
        assert_eq!(at(&memory, &state(0, 0, 0, 0), 0x1234), Some(0x1234));
    }
}
