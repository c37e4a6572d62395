//! The MSRs that belong to a vCPU's state.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vcpu::{MsrValue, VcpuError};

/// The time stamp counter: never what it was, and not touched by a reset.
const TSC: u32 = 0x10;
/// Of the local APIC's timer: state where the kernel has it.
const TSC_DEADLINE: u32 = 0x6e0;

/// What has a place of its own in the state (EFER, FS and GS base, APIC base), is the board's (TSC deadline), or is of a
/// feature that CPUID does not offer: Hyper-V, VMX, and KVM's own beyond its clock.
fn is_elsewhere(index: u32, has_apic: bool) -> bool {
    matches!(
        index,
        0xc000_0080
            | 0xc000_0100
            | 0xc000_0101
            | 0x1b
            | 0x480..=0x493
            | 0x4000_0000..=0x4000_01ff
            | 0x4b56_4d02..=0x4b56_4dff
    ) || index == TSC_DEADLINE && !has_apic
}

/// Which MSRs this vCPU keeps, and what they are after a reset.
#[derive(Debug)]
pub(crate) struct KeptMsrs {
    kept: Vec<u32>,
    initial: Vec<MsrValue>,
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Host {
        what,
        reason: error.to_string(),
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, VcpuError> {
    Msrs::from_entries(entries).map_err(|_| VcpuError::BadState("too many MSRs".to_owned()))
}

/// Reads as many as there are; one that this vCPU has not is `None`.
fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Option<MsrValue>>, VcpuError> {
    let mut values = Vec::new();
    while values.len() < indices.len() {
        let entries: Vec<kvm_msr_entry> = indices
            .iter()
            .skip(values.len())
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|index| kvm_msr_entry {
                index: *index,
                ..kvm_msr_entry::default()
            })
            .collect();
        let mut batch = list(&entries)?;
        let count = vcpu.get_msrs(&mut batch).map_err(refused("read MSRs"))?;
        values.extend(batch.as_slice().iter().take(count).map(|entry| {
            Some(MsrValue {
                index: entry.index,
                value: entry.data,
            })
        }));
        if count < entries.len() {
            values.push(None);
        }
    }
    Ok(values)
}

impl KeptMsrs {
    /// Finds out which of `candidates` this vCPU has. To be called after CPUID is set, before the vCPU runs.
    /// `has_apic`: the local APIC is in the kernel.
    pub(crate) fn probe(
        vcpu: &VcpuFd,
        candidates: &[u32],
        has_apic: bool,
    ) -> Result<Self, VcpuError> {
        let candidates: Vec<u32> = candidates
            .iter()
            .copied()
            .filter(|index| !is_elsewhere(*index, has_apic))
            .collect();
        let values = read(vcpu, &candidates)?;
        let there: Vec<MsrValue> = values.into_iter().flatten().collect();
        Ok(Self {
            kept: there.iter().map(|value| value.index).collect(),
            initial: there
                .into_iter()
                .filter(|value| value.index != TSC)
                .collect(),
        })
    }

    /// Their values.
    pub(crate) fn get(&self, vcpu: &VcpuFd) -> Result<Vec<MsrValue>, VcpuError> {
        Ok(read(vcpu, &self.kept)?.into_iter().flatten().collect())
    }

    /// Sets those that are given.
    pub(crate) fn set(&self, vcpu: &VcpuFd, values: &[MsrValue]) -> Result<(), VcpuError> {
        if let Some(unknown) = values
            .iter()
            .find(|value| !self.kept.contains(&value.index))
        {
            return Err(VcpuError::UnknownMsr(unknown.index));
        }
        // Some can be read only: they need not be written with what they are.
        let now = self.get(vcpu)?;
        let changed: Vec<kvm_msr_entry> = values
            .iter()
            .filter(|value| !now.contains(value))
            .map(|value| kvm_msr_entry {
                index: value.index,
                data: value.value,
                ..kvm_msr_entry::default()
            })
            .collect();
        for chunk in changed.chunks(KVM_MAX_MSR_ENTRIES) {
            let count = vcpu
                .set_msrs(&list(chunk)?)
                .map_err(refused("write MSRs"))?;
            if let Some(wrong) = chunk.get(count) {
                return Err(VcpuError::BadState(format!(
                    "MSR {:#x} cannot be {:#x}",
                    wrong.index, wrong.data
                )));
            }
        }
        Ok(())
    }

    /// Sets them as they are after a reset.
    pub(crate) fn reset(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        self.set(vcpu, &self.initial)
    }
}
