//! Descriptors that clients passed in: named ones, and sets that `/dev/fdset/N` opens.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use api::{AddfdInfo, FdsetFdInfo, FdsetInfo, QmpError};
use parking_lot::Mutex;
use rustix::fs::OFlags;

/// The most descriptors that all sets together hold.
pub const MAX_FDSET_FDS: usize = 1024;

struct Member {
    fd: OwnedFd,
    opaque: Option<String>,
}

/// The descriptor sets of one daemon or machine.
#[derive(Default)]
pub struct FdSets {
    sets: Mutex<BTreeMap<i64, Vec<Member>>>,
}

impl FdSets {
    /// The command `add-fd`: puts `fd` into the set `id`, or into a new one.
    ///
    /// # Errors
    /// When `id` is negative or there are too many descriptors.
    pub fn add(
        &self,
        fd: OwnedFd,
        id: Option<i64>,
        opaque: Option<String>,
    ) -> Result<AddfdInfo, QmpError> {
        let mut sets = self.sets.lock();
        if sets.values().map(Vec::len).sum::<usize>() >= MAX_FDSET_FDS {
            return Err(QmpError::generic(format!(
                "There are {MAX_FDSET_FDS} descriptors in sets already"
            )));
        }
        let id = match id {
            Some(id) if id < 0 => {
                return Err(QmpError::invalid_parameter_value(
                    "fdset-id",
                    "a non-negative value",
                ));
            }
            Some(id) => id,
            // The lowest number that is free, as QEMU chooses it.
            None => (0..).find(|id| !sets.contains_key(id)).unwrap_or(i64::MAX),
        };
        let number = i64::from(fd.as_raw_fd());
        sets.entry(id).or_default().push(Member { fd, opaque });
        Ok(AddfdInfo {
            fdset_id: id,
            fd: number,
        })
    }

    /// The command `remove-fd`: takes one descriptor or all out of a set.
    ///
    /// # Errors
    /// No such set or descriptor.
    pub fn remove(&self, id: i64, fd: Option<i64>) -> Result<(), QmpError> {
        let mut sets = self.sets.lock();
        let not_found = || {
            let what = match fd {
                Some(fd) => format!("fdset-id:{id}, fd:{fd}"),
                None => format!("fdset-id:{id}"),
            };
            QmpError::generic(format!("File descriptor named '{what}' not found"))
        };
        let set = sets.get_mut(&id).ok_or_else(not_found)?;
        match fd {
            None => set.clear(),
            Some(fd) => {
                let position = set
                    .iter()
                    .position(|member| i64::from(member.fd.as_raw_fd()) == fd);
                set.remove(position.ok_or_else(not_found)?);
            }
        }
        if set.is_empty() {
            sets.remove(&id);
        }
        Ok(())
    }

    /// The command `query-fdsets`.
    pub fn query(&self) -> Vec<FdsetInfo> {
        let sets = self.sets.lock();
        sets.iter()
            .map(|(id, members)| FdsetInfo {
                fdset_id: *id,
                fds: members
                    .iter()
                    .map(|member| FdsetFdInfo {
                        fd: i64::from(member.fd.as_raw_fd()),
                        opaque: member.opaque.clone(),
                    })
                    .collect(),
            })
            .collect()
    }

    /// A duplicate of the descriptor of set `id` that was opened with the wanted access.
    ///
    /// # Errors
    /// `ENOENT` when there is no such set, `EACCES` when none of its descriptors fits.
    pub fn open(&self, id: i64, writable: bool) -> io::Result<OwnedFd> {
        let sets = self.sets.lock();
        let Some(members) = sets.get(&id) else {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::NOENT.raw_os_error(),
            ));
        };
        let wanted = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        for member in members {
            let flags = rustix::fs::fcntl_getfl(&member.fd)?;
            if flags & OFlags::RWMODE == wanted {
                return member.fd.try_clone();
            }
        }
        Err(io::Error::from_raw_os_error(
            rustix::io::Errno::ACCESS.raw_os_error(),
        ))
    }
}

/// The set number in `/dev/fdset/N`, for a path of that form.
pub fn fdset_number(path: &str) -> Option<i64> {
    path.strip_prefix("/dev/fdset/")?.parse().ok()
}

/// The descriptors that one client gave names with `getfd`.
#[derive(Default)]
pub struct NamedFds {
    fds: Mutex<BTreeMap<String, OwnedFd>>,
}

/// The most descriptors one client names at a time.
pub const MAX_NAMED_FDS: usize = 256;

impl NamedFds {
    /// Names `fd`, closing what had the name before.
    ///
    /// # Errors
    /// When the name begins with a digit, or there are too many.
    pub fn insert(&self, name: &str, fd: OwnedFd) -> Result<(), QmpError> {
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(QmpError::invalid_parameter_value(
                "fdname",
                "a name not starting with a digit",
            ));
        }
        let mut fds = self.fds.lock();
        if fds.len() >= MAX_NAMED_FDS && !fds.contains_key(name) {
            return Err(QmpError::generic(format!(
                "There are {MAX_NAMED_FDS} named descriptors already"
            )));
        }
        fds.insert(name.to_owned(), fd);
        Ok(())
    }

    /// Takes the descriptor out, to use or to close it.
    ///
    /// # Errors
    /// No such name.
    pub fn take(&self, name: &str) -> Result<OwnedFd, QmpError> {
        let found = self.fds.lock().remove(name);
        found.ok_or_else(|| QmpError::generic(format!("File descriptor named '{name}' not found")))
    }
}
