//! MSI-X: a table of messages behind a base address register.

use std::sync::Arc;

use crate::{IoHandler, MsiMessage, MsiSink, Width, merge_register, read_register};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Bytes of a table entry: address low and high, data, control (bit 0: masked).
pub const MSIX_ENTRY_BYTES: u64 = 16;
/// Vectors of a function at most (PCI 3.0, 6.8.2.3).
const MOST_VECTORS: u16 = 2048;
const MASKED: u32 = 1;
const ENABLED: u16 = 0x8000;
const ALL_MASKED: u16 = 0x4000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MsixState {
    entries: Vec<[u32; 4]>,
    pending: Vec<bool>,
    control: u16,
}

/// A function's vectors. As an [`IoHandler`] it is the table followed by the pending bits.
pub struct Msix {
    sink: Arc<dyn MsiSink>,
    state: Mutex<MsixState>,
}

impl Msix {
    /// So many vectors, 1 to 2048 (more are cut).
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Arc<Msix> {
        let vectors = usize::from(vectors.clamp(1, MOST_VECTORS));
        Arc::new(Msix {
            sink,
            state: Mutex::new(MsixState {
                entries: vec![[0, 0, 0, MASKED]; vectors],
                pending: vec![false; vectors],
                control: 0,
            }),
        })
    }

    /// Bytes that the table and the pending bits take, and where the pending bits begin.
    pub fn layout(&self) -> (u64, u64) {
        let vectors = self.vectors() as u64;
        let table = vectors * MSIX_ENTRY_BYTES;
        (table + vectors.div_ceil(64) * 8, table)
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// Whether the guest uses MSI-X.
    pub fn is_enabled(&self) -> bool {
        self.state.lock().control & ENABLED != 0
    }

    /// Sends a vector's message, or notes it as pending while it is masked. Nothing happens while MSI-X is off or for a
    /// vector that does not exist.
    pub fn notify(&self, vector: u16) {
        let mut state = self.state.lock();
        if state.control & ENABLED != 0
            && let Some(pending) = state.pending.get_mut(usize::from(vector))
        {
            *pending = true;
        }
        self.send_due(&mut state);
    }

    pub(super) fn set_control(&self, control: u16) {
        let mut state = self.state.lock();
        state.control = control & (ENABLED | ALL_MASKED);
        self.send_due(&mut state);
    }

    pub(super) fn reset(&self) {
        let mut state = self.state.lock();
        state.entries.fill([0, 0, 0, MASKED]);
        state.pending.fill(false);
        state.control = 0;
    }

    pub(super) fn save(&self) -> MsixState {
        self.state.lock().clone()
    }

    pub(super) fn fits(&self, saved: &MsixState) -> bool {
        let state = self.state.lock();
        saved.entries.len() == state.entries.len() && saved.pending.len() == state.pending.len()
    }

    pub(super) fn restore(&self, saved: MsixState) {
        *self.state.lock() = saved;
    }

    fn send_due(&self, state: &mut MsixState) {
        if state.control & (ENABLED | ALL_MASKED) != ENABLED {
            return;
        }
        for ([low, high, data, control], pending) in state.entries.iter().zip(&mut state.pending) {
            if *pending && control & MASKED == 0 {
                *pending = false;
                self.sink.send(MsiMessage {
                    address: u64::from(*high) << 32 | u64::from(*low),
                    data: *data,
                });
            }
        }
    }
}

/// Entry and word of a table offset that is a multiple of four.
fn table_word(offset: u64) -> Option<(usize, usize)> {
    let entry = usize::try_from(offset / MSIX_ENTRY_BYTES).ok()?;
    let word = usize::try_from(offset % MSIX_ENTRY_BYTES / 4).ok()?;
    Some((entry, word))
}

impl IoHandler for Msix {
    fn read(&self, offset: u64, width: Width) -> u64 {
        let (length, table) = self.layout();
        let state = self.state.lock();
        read_register(offset, width, |at| {
            if at < table {
                return table_word(at)
                    .and_then(|(entry, word)| state.entries.get(entry)?.get(word).copied())
                    .unwrap_or(0);
            }
            if at >= length {
                return 0;
            }
            let first = usize::try_from((at - table) * 8).unwrap_or(usize::MAX);
            let bits = state.pending.iter().skip(first).take(32);
            bits.enumerate().fold(0, |word, (index, pending)| {
                word | u32::from(*pending) << index
            })
        })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        let (_, table) = self.layout();
        let mut state = self.state.lock();
        let first = offset & !3;
        for index in 0..3 {
            let at = first.saturating_add(4 * index);
            if at >= table {
                break;
            }
            let place = table_word(at).and_then(|(entry, word)| {
                Some((state.entries.get_mut(entry)?.get_mut(word)?, word))
            });
            if let Some((place, word)) = place
                && let Some((merged, _)) = merge_register(at, *place, offset, width, value)
            {
                *place = match word {
                    0 => merged & !3,
                    3 => merged & MASKED,
                    _ => merged,
                };
            }
        }
        self.send_due(&mut state);
    }
}
