//! The CPUID table a vCPU is made with.

/// The most entries a table may have (KVM's limit is 256).
pub const MAX_CPUID_ENTRIES: usize = 256;

/// The answer to one leaf of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuidEntry {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question; `None` if this leaf does not look at it.
    pub subleaf: Option<u32>,
    /// The answer.
    pub eax: u32,
    /// The answer.
    pub ebx: u32,
    /// The answer.
    pub ecx: u32,
    /// The answer.
    pub edx: u32,
}

/// What CPUID answers. The accelerator itself fills in what follows the CPU's state: OSXSAVE,
/// the APIC id fields are the board's, which writes them before it makes the vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuidTable {
    entries: Vec<CpuidEntry>,
}

impl CpuidTable {
    /// An empty table: every leaf answers zeroes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The entries, in the order they were set.
    #[must_use]
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    /// Sets or replaces an entry. Entries beyond [`MAX_CPUID_ENTRIES`] are refused with `false`.
    pub fn set(&mut self, entry: CpuidEntry) -> bool {
        let same = |old: &&mut CpuidEntry| old.leaf == entry.leaf && old.subleaf == entry.subleaf;
        if let Some(old) = self.entries.iter_mut().find(same) {
            *old = entry;
        } else if self.entries.len() < MAX_CPUID_ENTRIES {
            self.entries.push(entry);
        } else {
            return false;
        }
        true
    }

    /// The entry that answers a question, if there is one.
    #[must_use]
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
        self.entries
            .iter()
            .find(|e| e.leaf == leaf && e.subleaf.is_none_or(|wanted| wanted == subleaf))
    }

    /// The entry to change, if there is one.
    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut CpuidEntry> {
        self.entries
            .iter_mut()
            .find(|e| e.leaf == leaf && e.subleaf.is_none_or(|wanted| wanted == subleaf))
    }

    /// What CPUID answers, by the rules for leaves that are not there: above the highest leaf of
    /// its range a question is answered with the highest basic leaf (Intel SDM, CPUID), and a
    /// missing leaf below it with zeroes.
    #[must_use]
    pub fn answer(&self, leaf: u32, subleaf: u32) -> CpuidEntry {
        if let Some(entry) = self.get(leaf, subleaf) {
            return *entry;
        }
        let highest = |range: u32| self.get(range, 0).map_or(0, |entry| entry.eax);
        let range = leaf & 0xf000_0000;
        if leaf > highest(range) {
            return self.get(highest(0), subleaf).copied().unwrap_or_default();
        }
        CpuidEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers() {
        let mut table = CpuidTable::new();
        for (leaf, subleaf, eax) in [(0, None, 7), (7, Some(0), 1), (7, Some(1), 2)] {
            assert!(table.set(CpuidEntry {
                leaf,
                subleaf,
                eax,
                ..CpuidEntry::default()
            }));
        }
        assert_eq!(table.answer(0, 99).eax, 7);
        assert_eq!(table.answer(7, 1).eax, 2);
        assert_eq!(table.answer(7, 5).eax, 0);
        assert_eq!(table.answer(3, 0).eax, 0);
        assert_eq!(table.answer(0x20, 1).eax, 2);
        if let Some(entry) = table.get_mut(7, 0) {
            entry.eax = 9;
        }
        assert_eq!(table.answer(7, 0).eax, 9);
    }

    #[test]
    fn a_table_has_an_end() {
        let mut table = CpuidTable::new();
        let full = (0..=MAX_CPUID_ENTRIES as u32).all(|leaf| {
            table.set(CpuidEntry {
                leaf,
                ..CpuidEntry::default()
            })
        });
        assert!(!full);
        assert_eq!(table.entries().len(), MAX_CPUID_ENTRIES);
    }
}
