//! The states in which boot protocols let a CPU start.

use vcpu::{DescriptorTable, Registers, Segment, SystemRegisters, VcpuState, XsaveArea};

use crate::low_memory;

/// Selectors of the Linux boot protocol (`__BOOT_CS`, `__BOOT_DS`), which suit the others too.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// What a page table entry says: present, writable.
const TABLE: u64 = 3;
/// A page of 2 MiB in a page directory.
const LARGE_PAGE: u64 = 1 << 7;
const TABLE_BYTES: u64 = 4096;
/// Page directories: 1 GiB each.
const DIRECTORIES: u64 = 4;

/// A general register, by its place in [`Registers::general`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum General {
    Rax = 0,
    Rbx = 3,
    Rsi = 6,
}

/// How the boot CPU starts. The other CPUs wait for their start-up message, as after any reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// All state, with what no boot protocol speaks of as after a reset. MSRs are not listed:
    /// set this on a CPU that was reset.
    pub state: VcpuState,
}

impl Start {
    /// 32-bit protected mode without paging, flat segments, interrupts off.
    pub(crate) fn protected(entry: u32, registers: &[(General, u32)]) -> Self {
        let mut start = Self::flat(u64::from(entry), false);
        for (register, value) in registers {
            start.set(*register, u64::from(*value));
        }
        start
    }

    /// 64-bit mode with the first 4 GiB mapped to themselves by [`page_tables`].
    pub(crate) fn long(entry: u64, registers: &[(General, u64)]) -> Self {
        let mut start = Self::flat(entry, true);
        let system = &mut start.state.system;
        system.cr0 |= CR0_PG;
        system.cr3 = low_memory::PAGE_TABLES;
        system.cr4 = CR4_PAE;
        system.efer = EFER_LME | EFER_LMA;
        for (register, value) in registers {
            start.set(*register, *value);
        }
        start
    }

    fn flat(entry: u64, long: bool) -> Self {
        let code = flat_segment(CODE_SELECTOR, 0xb, long);
        let data = flat_segment(DATA_SELECTOR, 3, false);
        let system = SystemRegisters {
            segments: [data, code, data, data, data, data],
            ldtr: Segment {
                kind: 2,
                unusable: true,
                ..Segment::default()
            },
            tr: Segment {
                selector: TASK_SELECTOR,
                limit: 0x67,
                kind: 0xb,
                present: true,
                ..Segment::default()
            },
            gdtr: DescriptorTable {
                base: low_memory::GDT,
                limit: GDT_BYTES - 1,
            },
            idtr: DescriptorTable::default(),
            cr0: CR0_PE | CR0_ET,
            xcr0: 1,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            ..SystemRegisters::default()
        };
        let registers = Registers {
            rip: entry,
            rflags: 2,
            ..Registers::default()
        };
        Self {
            state: VcpuState {
                registers,
                system,
                xsave: initial_xsave(),
                ..VcpuState::default()
            },
        }
    }

    fn set(&mut self, register: General, value: u64) {
        let place = self.state.registers.general.get_mut(register as usize);
        if let Some(place) = place {
            *place = value;
        }
    }

    /// The descriptor table that the segments came from, for [`low_memory::GDT`].
    pub(crate) fn gdt(&self) -> Vec<u8> {
        let system = &self.state.system;
        let [_, code, _, data, ..] = &system.segments;
        let (low, high) = (descriptor(&system.tr), 0);
        [0, 0, descriptor(code), descriptor(data), low, high]
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect()
    }
}

/// Two nulls, code, data, and a task state of two entries, as it is in 64-bit mode.
const GDT_BYTES: u16 = 6 * 8;

fn flat_segment(selector: u16, kind: u8, long: bool) -> Segment {
    Segment {
        selector,
        limit: u32::MAX,
        kind,
        code_or_data: true,
        present: true,
        long,
        big: !long,
        granular: true,
        ..Segment::default()
    }
}

/// A segment as it stands in a descriptor table (Intel SDM 3, 3.4.5).
fn descriptor(segment: &Segment) -> u64 {
    let limit = if segment.granular {
        segment.limit >> 12
    } else {
        segment.limit
    };
    let limit = u64::from(limit);
    let attributes = u64::from(segment.kind & 15)
        | u64::from(segment.code_or_data) << 4
        | u64::from(segment.dpl & 3) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.available) << 12
        | u64::from(segment.long) << 13
        | u64::from(segment.big) << 14
        | u64::from(segment.granular) << 15;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | attributes << 40
        | (limit >> 16 & 15) << 48
        | (segment.base >> 24 & 0xff) << 56
}

/// x87 and SSE as FINIT and a reset leave them.
fn initial_xsave() -> XsaveArea {
    let mut area = XsaveArea::default();
    let fields = [(0, 0x7f_u8), (1, 0x03), (24, 0x80), (25, 0x1f)];
    for (at, value) in fields {
        if let Some(byte) = area.0.get_mut(at) {
            *byte = value;
        }
    }
    area
}

/// Tables for [`low_memory::PAGE_TABLES`]: the first 4 GiB mapped to themselves, in 2 MiB pages.
pub(crate) fn page_tables() -> Vec<u8> {
    let first_directory = low_memory::PAGE_TABLES + 2 * TABLE_BYTES;
    let root = [(low_memory::PAGE_TABLES + TABLE_BYTES) | TABLE];
    let pointers = (0..DIRECTORIES).map(|index| (first_directory + index * TABLE_BYTES) | TABLE);
    let pages = (0..DIRECTORIES * 512).map(|index| index << 21 | LARGE_PAGE | TABLE);
    let padded = |entries: Vec<u64>| entries.into_iter().chain(std::iter::repeat(0)).take(512);
    padded(root.to_vec())
        .chain(padded(pointers.collect()))
        .chain(pages)
        .flat_map(u64::to_le_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_flat_segments() {
        // The well-known values of Linux's own boot descriptor table.
        assert_eq!(
            descriptor(&flat_segment(0, 0xb, false)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&flat_segment(0, 3, false)),
            0x00cf_9300_0000_ffff
        );
        assert_eq!(
            descriptor(&flat_segment(0, 0xb, true)),
            0x00af_9b00_0000_ffff
        );
        let start = Start::protected(0x10_0000, &[(General::Rsi, 7)]);
        assert_eq!(start.gdt().len(), usize::from(GDT_BYTES));
        assert_eq!(start.gdt()[32..40], 0x0000_8b00_0000_0067_u64.to_le_bytes());
        assert_eq!(start.state.registers.general[6], 7);
        assert_eq!(start.state.system.cr0, 0x11);
    }

    #[test]
    fn page_tables_map_each_address_to_itself() {
        let tables = page_tables();
        assert_eq!(tables.len(), 6 * 4096);
        let entry = |table: u64, index: u64| {
            let at = usize::try_from(table - low_memory::PAGE_TABLES + index * 8).unwrap();
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        for address in [0_u64, 0x20_0000, 0x3fff_ffff, 0x8000_1234, 0xffff_ffff] {
            let pdpt = entry(low_memory::PAGE_TABLES, address >> 39) & !0xfff;
            let directory = entry(pdpt, address >> 30) & !0xfff;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & 0xfff, 0x83);
            assert_eq!(page & !0xfff, address & !0x1f_ffff);
        }
    }
}
