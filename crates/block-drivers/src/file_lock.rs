//! The locks by which processes that use one image file know of each other.
//!
//! The layout is QEMU's, so that the two refuse each other's conflicting uses both ways: byte
//! 100 + n is read-locked by whoever holds permission n, byte 200 + n by whoever does not let
//! others have it. Before a permission is used, nobody else may hold the byte that refuses it.

use block_graph::{Permission, Permissions};
use host_io::{File, LockKind};
use parking_lot::Mutex;

/// First byte of the locks that say "I have this permission".
const HELD_BASE: u64 = 100;
/// First byte of the locks that say "nobody else may have this permission".
const REFUSED_BASE: u64 = 200;

/// The locks of one open file.
pub(crate) struct FileLocks {
    file: File,
    taken: Mutex<Taken>,
}

#[derive(Clone, Copy, Default)]
struct Taken {
    held: Permission,
    refused: Permission,
}

fn bytes_of(set: Permission, base: u64) -> impl Iterator<Item = (Permission, &'static str, u64)> {
    Permission::NAMES
        .into_iter()
        .filter(move |(permission, _)| set.contains(*permission))
        .map(move |(permission, name)| {
            (
                permission,
                name,
                base + u64::from(permission.bits().trailing_zeros()),
            )
        })
}

impl FileLocks {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            taken: Mutex::default(),
        }
    }

    /// Takes what `wanted` needs beyond what is held already.
    ///
    /// # Errors
    /// Words for the client; what was held stays held, and nothing more.
    pub(crate) fn want(&self, wanted: Permissions) -> Result<(), String> {
        let mut taken = self.taken.lock();
        let before = *taken;
        let refused = Permission::all() - wanted.shared;
        let result = self.take(&mut taken, wanted.required, refused);
        if result.is_err() {
            self.give_up(&mut taken, before);
        }
        result
    }

    /// Gives up whatever `settled` does not need.
    pub(crate) fn settle(&self, settled: Permissions) {
        let mut taken = self.taken.lock();
        let refused = Permission::all() - settled.shared;
        let keep = Taken {
            held: settled.required,
            refused,
        };
        self.give_up(&mut taken, keep);
    }

    fn take(&self, taken: &mut Taken, held: Permission, refused: Permission) -> Result<(), String> {
        // First the own bytes, then a look at the others': whoever comes second sees the first.
        for (permission, name, byte) in bytes_of(held - taken.held, HELD_BASE) {
            self.lock_byte(byte, name)?;
            taken.held |= permission;
        }
        for (permission, name, byte) in bytes_of(refused - taken.refused, REFUSED_BASE) {
            self.lock_byte(byte, name)?;
            taken.refused |= permission;
        }
        for (_, name, byte) in bytes_of(held, REFUSED_BASE) {
            self.check_byte(byte, format!("Failed to get \"{name}\" lock"))?;
        }
        for (_, name, byte) in bytes_of(refused, HELD_BASE) {
            self.check_byte(byte, format!("Failed to get shared \"{name}\" lock"))?;
        }
        Ok(())
    }

    fn lock_byte(&self, byte: u64, name: &str) -> Result<(), String> {
        self.file
            .lock_range(byte, 1, LockKind::Shared)
            .map_err(|_| format!("Failed to get \"{name}\" lock"))
    }

    fn check_byte(&self, byte: u64, message: String) -> Result<(), String> {
        match self.file.could_lock_range(byte, 1, LockKind::Exclusive) {
            Ok(true) => Ok(()),
            Ok(false) => Err(message),
            Err(error) => Err(format!("{message}: {}", host_io::strerror(&error))),
        }
    }

    fn give_up(&self, taken: &mut Taken, keep: Taken) {
        for (_, _, byte) in bytes_of(taken.held - keep.held, HELD_BASE) {
            self.unlock_byte(byte);
        }
        for (_, _, byte) in bytes_of(taken.refused - keep.refused, REFUSED_BASE) {
            self.unlock_byte(byte);
        }
        taken.held &= keep.held;
        taken.refused &= keep.refused;
    }

    fn unlock_byte(&self, byte: u64) {
        if let Err(error) = self.file.unlock_range(byte, 1) {
            tracing::warn!(%error, byte, "cannot give up a lock; it ends when the file is closed");
        }
    }
}
