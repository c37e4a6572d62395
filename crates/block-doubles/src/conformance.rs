//! One table of cases that every block driver passes.
//!
//! A driver's test says how its disks are made ([`DiskMaker`]) and what they can
//! ([`Abilities`]), and calls [`check`]. No case is left out: where a disk cannot do a thing, the
//! case looks that it says so and changes nothing.
//!
//! Each case runs on an executor of its own, whose thread bears the case's name, so that every
//! panic says where it comes from. A new case is a function in one of the files below and a line
//! in the table there.

mod concurrent;
mod layout;
mod requests;
mod trial;

use std::pin::Pin;
use std::sync::Arc;

use block_graph::{BlockFuture, Node};
use host_io::{Engine, Executor};

/// The length of the disks that most cases use, in bytes: it spans two clusters of 2 MiB and ends
/// in the middle of a cluster of every size but 512.
pub const DISK_BYTES: u64 = (4 << 20) + (64 << 10) + 3 * 512;

/// What a disk can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Reads give what was written; else they give what a fresh disk gives.
    pub keeps_data: bool,
    /// The length can be changed both ways; else doing so is refused as not supported.
    pub resizable: bool,
    /// Lengths are multiples of this many bytes; a divisor of 512.
    pub length_unit: u64,
}

impl Default for Abilities {
    /// Everything, with lengths in sectors of 512 bytes.
    fn default() -> Self {
        Self {
            keeps_data: true,
            resizable: true,
            length_unit: 512,
        }
    }
}

/// Makes fresh disks of one kind.
pub trait DiskMaker: Send + Sync + 'static {
    /// What its disks can.
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    /// What a fresh disk of `size` bytes reads as; at least `size` bytes of it are looked at.
    fn fresh_content(&self, size: u64) -> Vec<u8> {
        vec![0; usize::try_from(size).unwrap_or(usize::MAX)]
    }

    /// Makes a fresh disk of `size` bytes, a multiple of the length unit.
    fn make(&self, size: u64) -> BlockFuture<'_, Box<dyn MadeDisk>>;
}

/// A disk that can be opened again and again, one time after the other.
pub trait MadeDisk {
    /// Opens it as a node with `discard=unmap`, with permission to write to all below it unless
    /// `read_only`. [`check`] activates the node, and closes it and all below it.
    fn open(&self, read_only: bool) -> BlockFuture<'_, Arc<Node>>;

    /// Called while the disk is closed, with what it holds: may look at the storage behind the
    /// driver's back, and panics where something is wrong.
    fn verify(&self, _content: &[u8]) {}
}

type CaseFuture = Pin<Box<dyn Future<Output = ()>>>;

/// A case of the table.
struct Case {
    name: &'static str,
    run: fn(Arc<dyn DiskMaker>) -> CaseFuture,
}

/// Runs the whole table on disks of one kind, called `disk` in messages.
///
/// # Panics
/// When cases fail: each has said why before, the last message names all.
pub fn check(disk: &str, engine: Engine, maker: impl DiskMaker) {
    let maker: Arc<dyn DiskMaker> = Arc::new(maker);
    let mut failed = cases();
    failed.retain(|case| !passes(case, disk, engine, &maker));
    let names: Vec<_> = failed.iter().map(|case| case.name).collect();
    assert!(names.is_empty(), "{disk} fails: {}", names.join("; "));
}

/// The whole table.
fn cases() -> Vec<&'static Case> {
    let tables = [requests::CASES, layout::CASES, concurrent::CASES];
    tables.into_iter().flatten().collect()
}

fn passes(case: &Case, disk: &str, engine: Engine, maker: &Arc<dyn DiskMaker>) -> bool {
    let thread = format!("{disk}: {}", case.name);
    let executor = Executor::start(&thread, engine).unwrap();
    let (maker, run) = (Arc::clone(maker), case.run);
    executor.handle().spawn(move || run(maker)).wait().is_ok()
}

#[cfg(test)]
mod tests;
