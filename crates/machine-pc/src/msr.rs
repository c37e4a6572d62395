//! The model-specific registers that are the board's, and those that only have to be there.

use dev_pc::apic::LocalApic;
use vcpu::Completion;

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// Registers that read as zero and take no notice of writes, as those of a processor without the feature that they
/// steer: microcode revision (0x8b), feature control (0x3a), platform (0x17), machine check (0x179 to 0x17b), miscellaneous
/// enables (0x1a0), debug control (0x1d9), and AMD's system and hardware configuration, NB configuration, patch level,
/// and DE_CFG.
const SILENT: &[u32] = &[
    0x17,
    0x3a,
    0x8b,
    0x179,
    0x17a,
    0x17b,
    0x1a0,
    0x1d9,
    0xc001_0010,
    0xc001_0015,
    0xc001_001f,
    0xc001_0055,
    0xc001_1029,
];

/// Reads an MSR that the CPU does not keep itself; `apic` is the board's.
pub(crate) fn read(apic: Option<&LocalApic>, index: u32) -> Completion {
    let Some(apic) = apic else {
        return match SILENT.contains(&index) {
            true => Completion::Msr(0),
            false => Completion::MsrFault,
        };
    };
    match index {
        APIC_BASE => Completion::Msr(apic.base()),
        TSC_DEADLINE => Completion::Msr(apic.tsc_deadline()),
        _ if X2APIC.contains(&index) => match apic.read_msr(index) {
            Ok(value) => Completion::Msr(value),
            Err(_) => Completion::MsrFault,
        },
        _ if SILENT.contains(&index) => Completion::Msr(0),
        _ => Completion::MsrFault,
    }
}

/// Writes an MSR that the CPU does not keep itself.
pub(crate) fn write(apic: Option<&LocalApic>, index: u32, value: u64) -> Completion {
    let written = match (index, apic) {
        (_, None) => SILENT.contains(&index),
        (APIC_BASE, Some(apic)) => apic.set_base(value).is_ok(),
        (TSC_DEADLINE, Some(apic)) => {
            apic.set_tsc_deadline(value);
            true
        }
        (_, Some(apic)) if X2APIC.contains(&index) => apic.write_msr(index, value).is_ok(),
        _ => SILENT.contains(&index),
    };
    if written {
        Completion::MsrDone
    } else {
        Completion::MsrFault
    }
}
