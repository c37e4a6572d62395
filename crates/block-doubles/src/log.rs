//! What was done to a storage, and what a power failure can leave of it.

use std::sync::Arc;

/// The unit that a disk writes whole or not at all, in bytes.
pub const SECTOR: usize = 512;

/// One thing that was done.
#[derive(Clone, Debug)]
pub enum Change {
    /// Bytes were written.
    Write {
        /// Where.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// A range was made zero.
    Zero {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// The length was set.
    Resize(u64),
    /// Everything before became durable.
    Flush,
    /// A test's own mark.
    Mark(u64),
}

/// Everything that was done since recording began, and what was there before.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The content when recording began.
    pub start: Vec<u8>,
    /// The changes in order.
    pub changes: Vec<Change>,
    /// For each change, when it was done: counted over all storages that were recorded together.
    pub times: Vec<u64>,
}

/// A small random number generator, the same everywhere for the same seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        // splitmix64, by Sebastiano Vigna, in the public domain.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Which of the changes that were not flushed a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// A random part, sector by sector.
    Some(u64),
    /// All but one change, which is lost.
    AllBut(u64),
    /// One change only.
    Only(u64),
}

impl Log {
    /// What the storage may hold after a power failure right before change number `at`.
    pub fn crash_at(&self, at: usize, survivors: Survivors) -> Vec<u8> {
        let done = &self.changes[..at.min(self.changes.len())];
        let flushed = done
            .iter()
            .rposition(|change| matches!(change, Change::Flush))
            .map_or(0, |last| last + 1);
        let mut content = self.start.clone();
        for change in &done[..flushed] {
            apply(&mut content, change, |_| true);
        }
        let pending = &done[flushed..];
        let mut rng = Rng::new(match survivors {
            Survivors::Some(seed) | Survivors::AllBut(seed) | Survivors::Only(seed) => seed,
            _ => 0,
        });
        let chosen = rng.below(pending.len().max(1) as u64) as usize;
        for (number, change) in pending.iter().enumerate() {
            match survivors {
                Survivors::Nothing => {}
                Survivors::Everything => apply(&mut content, change, |_| true),
                Survivors::Some(_) => apply(&mut content, change, |_| rng.one_in(2)),
                Survivors::AllBut(_) if number == chosen => {}
                Survivors::AllBut(_) => apply(&mut content, change, |_| true),
                Survivors::Only(_) if number == chosen => apply(&mut content, change, |_| true),
                Survivors::Only(_) => {}
            }
        }
        content
    }

    /// The number of the first change that was done at `time` or later.
    pub fn first_at(&self, time: u64) -> usize {
        self.times.partition_point(|at| *at < time)
    }

    /// What lies between the last flush before `at` and `at`.
    pub fn pending_at(&self, at: usize) -> usize {
        self.changes[..at]
            .iter()
            .rev()
            .take_while(|change| !matches!(change, Change::Flush))
            .count()
    }
}

/// Applies the sectors of a change that `keep` says yes to.
pub(crate) fn apply(content: &mut Vec<u8>, change: &Change, mut keep: impl FnMut(usize) -> bool) {
    match change {
        Change::Write { offset, bytes } => {
            let mut at = *offset as usize;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let len = (SECTOR - at % SECTOR).min(rest.len());
                let (part, behind) = rest.split_at(len);
                if keep(at) {
                    put(content, at, part);
                }
                at += len;
                rest = behind;
            }
        }
        Change::Zero { offset, len } => {
            let (mut at, end) = (*offset as usize, (*offset + *len) as usize);
            while at < end {
                let len = (SECTOR - at % SECTOR).min(end - at);
                if keep(at) {
                    put(content, at, &[0; SECTOR][..len]);
                }
                at += len;
            }
        }
        Change::Resize(len) => {
            if keep(0) {
                content.resize(*len as usize, 0);
            }
        }
        Change::Flush | Change::Mark(_) => {}
    }
}

pub(crate) fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_survives_and_the_rest_may() {
        let write = |offset, byte| Change::Write {
            offset,
            bytes: vec![byte; 1024].into(),
        };
        let log = Log {
            start: vec![0; 4096],
            changes: vec![write(0, 1), Change::Flush, write(1024, 2), write(2048, 3)],
            times: vec![0, 1, 5, 6],
        };
        assert_eq!(log.first_at(5), 2);
        assert_eq!(log.first_at(7), 4);
        let none = log.crash_at(4, Survivors::Nothing);
        assert!(none[..1024].iter().all(|&b| b == 1));
        assert!(none[1024..].iter().all(|&b| b == 0));
        assert_eq!(log.crash_at(4, Survivors::Everything)[2048], 3);
        let torn: Vec<_> = (0..50)
            .map(|s| log.crash_at(4, Survivors::Some(s)))
            .collect();
        assert!(torn.iter().all(|c| c[0] == 1));
        assert!(torn.iter().any(|c| c[1024] == 2 && c[1536] == 0));
        assert!(torn.iter().any(|c| c[1024] == 0 && c[2048] == 3));
        assert_eq!(log.crash_at(1, Survivors::Nothing)[0], 0);
        assert_eq!(log.pending_at(4), 2);
    }
}
