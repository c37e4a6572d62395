//! CPUID: what the CPU does with its table, and the tables of the models `qemu64` and `max`.

use vcpu::{CpuidEntry, CpuidTable};

use crate::cpu::{Cpu, RAX, RCX, cr};

/// The features that instructions ask for at run time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Features {
    pub smep: bool,
    pub smap: bool,
    pub pcid: bool,
    pub invpcid: bool,
    pub umip: bool,
    pub la57: bool,
    pub fsgsbase: bool,
    pub xsave: bool,
    pub avx: bool,
    pub rdrand: bool,
    pub gigabyte_pages: bool,
}

impl Features {
    pub(crate) fn of(table: &CpuidTable) -> Self {
        let one = table.answer(1, 0);
        let seven = table.get(7, 0).copied().unwrap_or_default();
        let has = |register: u32, bit: u32| register & (1 << bit) != 0;
        Self {
            smep: has(seven.ebx, 7),
            smap: has(seven.ebx, 20),
            pcid: has(one.ecx, 17),
            invpcid: has(seven.ebx, 10),
            umip: has(seven.ecx, 2),
            la57: has(seven.ecx, 16),
            fsgsbase: has(seven.ebx, 0),
            xsave: has(one.ecx, 26),
            avx: has(one.ecx, 28),
            rdrand: has(one.ecx, 30),
            gigabyte_pages: has(table.answer(0x8000_0001, 0).edx, 26),
        }
    }
}

impl Cpu {
    /// What XCR0 may hold.
    pub(crate) fn xcr0_allowed(&self) -> u64 {
        if self.features.avx { 7 } else { 3 }
    }

    /// The table's answer, with what follows the CPU's state.
    pub(crate) fn cpuid_answer(&self) -> CpuidEntry {
        let (leaf, subleaf) = (self.get(RAX) as u32, self.get(RCX) as u32);
        let mut entry = self.cpuid.answer(leaf, subleaf);
        if leaf == 1 {
            let osxsave = self.system.cr4 & cr::CR4_OSXSAVE != 0;
            entry.ecx = (entry.ecx & !(1 << 27)) | (u32::from(osxsave) << 27);
        }
        if leaf == 0xd && subleaf == 0 && self.features.xsave {
            entry.ebx = if self.system.xcr0 & 4 != 0 { 832 } else { 576 };
        }
        if leaf == 0xd && subleaf == 1 && self.features.avx {
            entry.ebx = if self.system.xcr0 & 4 != 0 { 832 } else { 576 };
        }
        entry
    }
}

/// A CPU model that this accelerator offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// The least of a 64-bit PC processor: SSE3, CX16.
    Qemu64,
    /// Everything that is built.
    Max,
}

impl Model {
    /// The model with a name that options know.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "qemu64" => Some(Self::Qemu64),
            "max" => Some(Self::Max),
            _ => None,
        }
    }
}

/// Bits of leaf 1 EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36
/// CLFLUSH MMX FXSR SSE SSE2.
const ONE_EDX: u32 = 0x078b_fbfd;

fn text(name: &[u8; 12]) -> [u32; 3] {
    let word = |at: usize| {
        name.iter()
            .skip(at)
            .take(4)
            .rev()
            .fold(0_u32, |word, byte| (word << 8) | u32::from(*byte))
    };
    [word(0), word(4), word(8)]
}

/// The CPUID table of a model for one of `cpus` CPUs. The board may change it before it makes
/// the vCPU (topology, APIC ids beyond 255, paravirtual leaves).
#[must_use]
pub fn table(model: Model, index: u32, cpus: u32) -> CpuidTable {
    let mut table = CpuidTable::new();
    let mut set = |leaf: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]| {
        table.set(CpuidEntry {
            leaf,
            subleaf,
            eax,
            ebx,
            ecx,
            edx,
        });
    };
    let max = model == Model::Max;
    let [v0, v1, v2] = text(b"AuthenticAMD");
    set(0, None, [if max { 0xd } else { 7 }, v0, v2, v1]);
    let apic = (index & 0xff) << 24 | (cpus.min(255) << 16) | 0x800;
    // SSE3, CX16, hypervisor; and for max what else is built.
    let mut ecx = 1 | (1 << 13) | (1 << 31);
    if max {
        // PCLMULQDQ, SSSE3, FMA, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C,
        // RDRAND.
        ecx |= (1 << 1)
            | (1 << 9)
            | (1 << 12)
            | (1 << 17)
            | (1 << 19)
            | (1 << 20)
            | (1 << 22)
            | (1 << 23)
            | (1 << 25)
            | (1 << 26)
            | (1 << 28)
            | (1 << 29)
            | (1 << 30);
    }
    let htt = u32::from(cpus > 1) << 28;
    set(1, None, [0x0006_0fb1, apic, ecx, ONE_EDX | htt]);
    set(4, None, [0; 4]);
    let mut seven = [0; 4];
    if max {
        // FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP SHA; UMIP LA57 RDPID.
        let ebx = 1
            | (1 << 3)
            | (1 << 5)
            | (1 << 7)
            | (1 << 8)
            | (1 << 9)
            | (1 << 10)
            | (1 << 18)
            | (1 << 19)
            | (1 << 20)
            | (1 << 29);
        seven = [0, ebx, (1 << 2) | (1 << 16) | (1 << 22), 0];
    }
    set(7, Some(0), seven);
    if max {
        set(0xd, Some(0), [7, 576, 832, 0]);
        // XSAVEOPT, XSAVEC, XGETBV of what is in use.
        set(0xd, Some(1), [7, 832, 0, 0]);
        // The upper halves of YMM registers: how many bytes, and where.
        set(0xd, Some(2), [256, 576, 0, 0]);
    }
    extended(&mut set, model);
    table
}

/// The leaves from 0x8000_0000.
fn extended(set: &mut impl FnMut(u32, Option<u32>, [u32; 4]), model: Model) {
    let max = model == Model::Max;
    let [v0, v1, v2] = text(b"AuthenticAMD");
    set(0x8000_0000, None, [0x8000_0008, v0, v2, v1]);
    // SYSCALL NX LM besides leaf 1's, and for max pages of 1 GiB and RDTSCP; LAHF, and LZCNT for
    // max.
    let for_max = if max { (1 << 26) | (1 << 27) } else { 0 };
    let ext_edx = (1 << 11) | (1 << 20) | (1 << 29) | for_max;
    let ext_ecx = 1 | (u32::from(max) << 5);
    set(
        0x8000_0001,
        None,
        [0x0006_0fb1, 0, ext_ecx, (ONE_EDX & 0x0183_f3ff) | ext_edx],
    );
    let mut bytes = b"Ratite software CPU".iter().copied();
    for leaf in 0x8000_0002..=0x8000_0004 {
        let words = [(); 4].map(|()| {
            let four = [(); 4].map(|()| bytes.next().unwrap_or(0));
            u32::from_le_bytes(four)
        });
        set(leaf, None, words);
    }
    // TSC runs at one rate.
    set(0x8000_0007, None, [0, 0, 0, 1 << 8]);
    let linear = if max { 57 } else { 48 };
    set(
        0x8000_0008,
        None,
        [(linear << 8) | crate::paging::PHYS_BITS, 0, 0, 0],
    );
}
