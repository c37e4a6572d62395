//! What CPUID may say under KVM.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vcpu::{CpuidEntry, CpuidTable, XSAVE_AREA_BYTES};

use crate::KvmError;

/// Leaf 1 ECX: MONITOR, VMX, PDCM, x2APIC (with the board's APICs each access would be an exit), TSC deadline (the board's
/// APICs have none), OSXSAVE (follows CR4).
const ONE_ECX_NOT: u32 = 1 << 3 | 1 << 5 | 1 << 15 | X2APIC | TSC_DEADLINE | 1 << 27;
/// Leaf 1 ECX, with local APICs in the kernel.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is there.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: DS, HTT (one thread to a socket).
const ONE_EDX_NOT: u32 = 1 << 21 | 1 << 28;
/// Leaf 7 EBX: SGX, RTM's PQM and PQE, MPX, AVX-512 (F, DQ, IFMA, PF, ER, CD, BW, VL), processor trace.
const SEVEN_EBX_NOT: u32 = 1 << 2
    | 1 << 12
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 21
    | 1 << 25
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 30
    | 1 << 31;
/// Leaf 7 ECX: AVX512-VBMI, PKU, OSPKE, WAITPKG, VBMI2, shadow stacks, VNNI, BITALG, VPOPCNTDQ, SGX_LC, PKS.
const SEVEN_ECX_NOT: u32 = 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 11
    | 1 << 12
    | 1 << 14
    | 1 << 30
    | 1 << 31;
/// Leaf 7 EDX: AVX512 4VNNIW and 4FMAPS, VP2INTERSECT, LBRs, branch tracking, AMX and AVX512-FP16.
const SEVEN_EDX_NOT: u32 =
    1 << 2 | 1 << 3 | 1 << 8 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25;
/// Leaf 7.1 EAX without AVX512_BF16 and AMX_FP16, and EDX without AMX_COMPLEX, CET_SSS and AVX10.
const SEVEN_ONE_EAX_NOT: u32 = 1 << 5 | 1 << 21;
const SEVEN_ONE_EDX_NOT: u32 = 1 << 8 | 1 << 18 | 1 << 19;
/// The state components that a `VcpuState` carries: x87, SSE, AVX.
const COMPONENTS: u32 = 7;
const AVX_COMPONENT: u32 = 4;
/// Bytes of an XSAVE area with x87 and SSE only.
const LEGACY_XSAVE_BYTES: u32 = 576;
/// Leaf 0xd.1 EAX: XSAVEOPT, XSAVEC, XGETBV 1; XSAVES and XFD have state that is not carried.
const XSAVE_FORMS: u32 = 7;
/// Leaf 0x8000_0001 ECX: SVM, and AMD's topology, counters, IBS and trace.
const EXTENDED_ECX_NOT: u32 =
    1 << 1 | 1 << 2 | 1 << 3 | 1 << 10 | 1 << 15 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 28;
/// KVM's leaf of features: kvmclock in both forms, no need of I/O delays, and the stability of the clock. The others
/// need local APICs in the kernel, or have state of their own.
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 24;
const KVM_LEAVES: u32 = 0x4000_0000;

/// Leaves that are kept. The others describe what is not offered: counters, trace, SGX, AMX, memory encryption.
fn is_kept(leaf: u32) -> bool {
    matches!(
        leaf,
        0..=2 | 4..=7 | 0xb | 0xd | 0x15 | 0x16 | KVM_LEAVES | 0x4000_0001 | 0x8000_0000
            ..=0x8000_0008 | 0x8000_0021
    )
}

/// Without topology, which is the board's, and without what is not offered.
fn filter(entry: &mut CpuidEntry) {
    match (entry.leaf, entry.subleaf.unwrap_or(0)) {
        (1, _) => {
            entry.ebx &= 0x0000_ffff;
            entry.ecx = entry.ecx & !ONE_ECX_NOT | HYPERVISOR;
            entry.edx &= !ONE_EDX_NOT;
        }
        // Cores of a package and threads that share a cache: one.
        (4, _) => entry.eax &= 0x3fff,
        (7, 0) => {
            entry.eax = entry.eax.min(1);
            entry.ebx &= !SEVEN_EBX_NOT;
            entry.ecx &= !SEVEN_ECX_NOT;
            entry.edx &= !SEVEN_EDX_NOT;
        }
        (7, _) => {
            entry.eax &= !SEVEN_ONE_EAX_NOT;
            entry.edx &= !SEVEN_ONE_EDX_NOT;
        }
        (0xd, 0) => {
            entry.eax &= COMPONENTS;
            entry.ecx = xsave_bytes(entry.eax);
            entry.ebx = entry.ecx;
            entry.edx = 0;
        }
        (0xd, 1) => {
            entry.eax &= XSAVE_FORMS;
            (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
        }
        (KVM_LEAVES, _) => entry.eax = 0x4000_0001,
        (0x4000_0001, _) => entry.eax &= KVM_FEATURES,
        (0x8000_0001, _) => entry.ecx &= !EXTENDED_ECX_NOT,
        (0x8000_0008, _) => entry.ecx = 0,
        _ => {}
    }
}

fn xsave_bytes(components: u32) -> u32 {
    match components & AVX_COMPONENT {
        0 => LEGACY_XSAVE_BYTES,
        _ => XSAVE_AREA_BYTES as u32,
    }
}

fn is_wanted(entry: &CpuidEntry) -> bool {
    let subleaf = entry.subleaf.unwrap_or(0);
    is_kept(entry.leaf)
        && match entry.leaf {
            7 => subleaf <= 1,
            0xb => false,
            0xd => subleaf <= 2,
            _ => true,
        }
}

/// What the kernel supports, as far as it is offered here.
pub(crate) fn supported(list: &CpuId) -> CpuidTable {
    let mut table = CpuidTable::new();
    for entry in list.as_slice() {
        let by_index = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        let mut entry = CpuidEntry {
            leaf: entry.function,
            subleaf: by_index.then_some(entry.index),
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        };
        if is_wanted(&entry) {
            filter(&mut entry);
            table.set(entry);
        }
    }
    table
}

/// The same with local APICs in the kernel. It tells of their deadline mode elsewhere than in CPUID.
pub(crate) fn supported_with_apics(list: &CpuId, has_deadline: bool) -> CpuidTable {
    let mut table = supported(list);
    let one = list.as_slice().iter().find(|entry| entry.function == 1);
    if let (Some(one), Some(entry)) = (one, table.get_mut(1, 0)) {
        entry.ecx |= one.ecx & X2APIC;
        if has_deadline {
            entry.ecx |= TSC_DEADLINE;
        }
    }
    table
}

/// The table of one processor, in a socket of its own.
pub(crate) fn host(supported: &CpuidTable, index: u32) -> CpuidTable {
    let mut table = supported.clone();
    if let Some(one) = table.get_mut(1, 0) {
        one.ebx |= (index & 0xff) << 24 | 1 << 16;
    }
    if supported.get(0, 0).is_some_and(|zero| zero.eax >= 0xb) {
        // One thread to a core, one core to a socket.
        for (subleaf, kind) in [(0, 1), (1, 2)] {
            table.set(CpuidEntry {
                leaf: 0xb,
                subleaf: Some(subleaf),
                eax: 0,
                ebx: 1,
                ecx: kind << 8 | subleaf,
                edx: index,
            });
        }
    }
    table
}

/// A model without what is not supported, under the host's vendor: SYSCALL and SYSENTER go by that.
pub(crate) fn narrow(model: &CpuidTable, supported: &CpuidTable) -> CpuidTable {
    let mut table = CpuidTable::new();
    let vendor = supported.answer(0, 0);
    for entry in model.entries() {
        let mut entry = *entry;
        let host = supported
            .get(entry.leaf, entry.subleaf.unwrap_or(0))
            .copied()
            .unwrap_or_default();
        match (entry.leaf, entry.subleaf.unwrap_or(0)) {
            (0 | 0x8000_0000, _) => {
                (entry.ebx, entry.ecx, entry.edx) = (vendor.ebx, vendor.ecx, vendor.edx);
            }
            (1, _) => {
                entry.ecx &= host.ecx | HYPERVISOR;
                // That there are several threads to a package is the board's word.
                entry.edx &= host.edx | 1 << 28;
            }
            (7, _) => {
                entry.eax = entry.eax.min(host.eax);
                entry.ebx &= host.ebx;
                entry.ecx &= host.ecx;
                entry.edx &= host.edx;
            }
            (0xd, 0) => {
                entry.eax &= host.eax;
                entry.ecx = xsave_bytes(entry.eax);
                entry.ebx = entry.ecx;
            }
            (0xd, _) => entry.eax &= host.eax,
            (0x8000_0001, _) => {
                entry.ecx &= host.ecx;
                entry.edx &= host.edx;
            }
            (0x8000_0007, _) => entry.edx &= host.edx,
            (0x8000_0008, _) => {
                let least = |shift: u32| {
                    ((entry.eax >> shift) & 0xff).min((host.eax >> shift) & 0xff) << shift
                };
                entry.eax = least(0) | least(8);
            }
            _ => {}
        }
        table.set(entry);
    }
    set_brand(&mut table);
    table
}

/// The name that people read.
fn set_brand(table: &mut CpuidTable) {
    let mut bytes = b"Ratite virtual CPU".iter().copied();
    for leaf in 0x8000_0002..=0x8000_0004 {
        if let Some(entry) = table.get_mut(leaf, 0) {
            let words = [(); 4].map(|()| [(); 4].map(|()| bytes.next().unwrap_or(0)));
            [entry.eax, entry.ebx, entry.ecx, entry.edx] = words.map(u32::from_le_bytes);
        }
    }
}

/// A table in the kernel's form.
pub(crate) fn for_kernel(table: &CpuidTable) -> Result<CpuId, KvmError> {
    let entries: Vec<kvm_cpuid_entry2> = table
        .entries()
        .iter()
        .map(|entry| kvm_cpuid_entry2 {
            function: entry.leaf,
            index: entry.subleaf.unwrap_or(0),
            flags: if entry.subleaf.is_some() {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..kvm_cpuid_entry2::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| KvmError::Refused {
        what: "take so long a CPUID table",
        source: std::io::Error::from_raw_os_error(libc::E2BIG),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        let indexed = matches!(leaf, 4 | 7 | 0xb | 0xd);
        kvm_cpuid_entry2 {
            function: leaf,
            index: subleaf,
            flags: u32::from(indexed),
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn everything() -> CpuidTable {
        let all = [u32::MAX; 4];
        let leaves = [
            of(0, 0, [0x20, 1, 2, 3]),
            of(1, 0, all),
            of(4, 0, all),
            of(7, 0, all),
            of(7, 1, all),
            of(7, 2, all),
            of(0xa, 0, all),
            of(0xb, 0, all),
            of(0xd, 0, all),
            of(0xd, 1, all),
            of(0xd, 2, [256, 576, 0, 0]),
            of(0xd, 9, all),
            of(0x4000_0001, 0, all),
            of(0x8000_0001, 0, all),
            of(0x8000_0008, 0, [0x3028, 0, 7, 0]),
            of(0x8000_000a, 0, all),
        ];
        supported(&CpuId::from_entries(&leaves).unwrap())
    }

    #[test]
    fn what_cannot_be_saved_is_not_offered() {
        let table = everything();
        assert_eq!(table.answer(0xd, 0).eax, 7);
        assert_eq!(table.answer(0xd, 0).ecx, 832);
        for gone in [(7, 2), (0xd, 9), (0xa, 0), (0x8000_000a, 0)] {
            assert!(table.get(gone.0, gone.1).is_none(), "{gone:x?}");
        }
        // AVX-512F, PKU, AMX-TILE.
        let seven = table.answer(7, 0);
        assert_eq!(
            (seven.ebx >> 16 & 1, seven.ecx >> 3 & 1, seven.edx >> 24 & 1),
            (0, 0, 0)
        );
        // AVX2 and SMEP stay.
        assert_eq!(seven.ebx & (1 << 5 | 1 << 7), 1 << 5 | 1 << 7);
        assert_eq!(table.answer(0x4000_0001, 0).eax, 0x0100_000b);
    }

    #[test]
    fn apics_in_the_kernel_have_more_modes() {
        let list = CpuId::from_entries(&[of(1, 0, [0, 0, X2APIC | 1 << 27, 0])]).unwrap();
        let ecx = |table: CpuidTable| table.answer(1, 0).ecx;
        assert_eq!(ecx(supported(&list)), HYPERVISOR);
        let with_deadline = ecx(supported_with_apics(&list, true));
        assert_eq!(with_deadline, HYPERVISOR | X2APIC | TSC_DEADLINE);
        let without = ecx(supported_with_apics(&list, false));
        assert_eq!(without, HYPERVISOR | X2APIC);
    }

    #[test]
    fn each_processor_has_its_id() {
        let table = host(&everything(), 3);
        assert_eq!(table.answer(1, 0).ebx >> 16, 0x0301);
        assert_eq!(table.answer(0xb, 1).edx, 3);
        assert_eq!(table.answer(0xb, 1).ecx, 0x201);
    }

    #[test]
    fn a_model_is_cut_to_the_host() {
        let mut model = CpuidTable::new();
        let mut set = |leaf, eax, ebx, ecx, edx| {
            assert!(model.set(CpuidEntry {
                leaf,
                subleaf: None,
                eax,
                ebx,
                ecx,
                edx,
            }));
        };
        set(0, 7, 9, 9, 9);
        set(1, 0x60fb1, 0x0100_0800, 1 | 1 << 5 | 1 << 31, 1 | 1 << 28);
        set(0x8000_0002, 1, 1, 1, 1);
        set(0x8000_0008, 0x3930, 0, 0, 0);
        let cut = narrow(&model, &everything());
        assert_eq!(cut.answer(0, 0).ebx, 1);
        assert_eq!(cut.answer(0, 0).eax, 7);
        let one = cut.answer(1, 0);
        assert_eq!((one.eax, one.ebx), (0x60fb1, 0x0100_0800));
        assert_eq!((one.ecx, one.edx), (1 | 1 << 31, 1 | 1 << 28));
        assert_eq!(cut.answer(0x8000_0002, 0).eax.to_le_bytes(), *b"Rati");
        assert_eq!(cut.answer(0x8000_0008, 0).eax, 0x3028);
    }
}
