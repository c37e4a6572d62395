//! Files and block devices: asynchronous data operations, and the calls around them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::buf::{IoBuf, IoBytes};
use crate::executor::blocking;
use crate::op::{Operation, Request, Resources};

/// How a file is to be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// For writing too.
    pub writable: bool,
    /// Past the page cache (`O_DIRECT`).
    pub direct: bool,
}

/// What lies behind a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// Anything else.
    Other,
}

/// An open file or block device.
///
/// The asynchronous methods run on an executor's thread; the others block the caller.
#[derive(Clone, Debug)]
pub struct File {
    fd: Arc<OwnedFd>,
    /// Whether reads try the host's page cache first: not past it, and not where the host cannot.
    tries_cache: Arc<AtomicBool>,
}

impl File {
    /// Opens `path`. Blocks: call it where blocking is fine.
    ///
    /// # Errors
    /// The host's.
    pub fn open(path: &Path, mode: OpenMode) -> io::Result<Self> {
        let mut flags = libc::O_CLOEXEC;
        if mode.direct {
            flags |= libc::O_DIRECT;
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(mode.writable)
            .custom_flags(flags)
            .open(path)?;
        Ok(Self::from_fd(file.into()))
    }

    /// Takes over a descriptor.
    pub fn from_fd(fd: OwnedFd) -> Self {
        let is_direct = rustix::fs::fcntl_getfl(&fd)
            .is_ok_and(|flags| flags.contains(rustix::fs::OFlags::DIRECT));
        Self {
            fd: Arc::new(fd),
            tries_cache: Arc::new(AtomicBool::new(!is_direct)),
        }
    }

    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What lies behind it.
    ///
    /// # Errors
    /// The host's.
    pub fn kind(&self) -> io::Result<FileKind> {
        let file_type = self.std_file()?.metadata()?.file_type();
        Ok(if file_type.is_file() {
            FileKind::Regular
        } else if file_type.is_block_device() {
            FileKind::BlockDevice
        } else if file_type.is_char_device() {
            FileKind::CharDevice
        } else {
            FileKind::Other
        })
    }

    /// Length in bytes, of a device too. Blocks briefly.
    ///
    /// # Errors
    /// The host's.
    pub fn length(&self) -> io::Result<u64> {
        let end = rustix::fs::seek(&*self.fd, rustix::fs::SeekFrom::End(0))?;
        Ok(end)
    }

    /// How many bytes the host has allocated for it.
    ///
    /// # Errors
    /// The host's.
    pub fn allocated(&self) -> io::Result<u64> {
        Ok(self.std_file()?.metadata()?.blocks().saturating_mul(512))
    }

    fn std_file(&self) -> io::Result<fs::File> {
        Ok(self.fd.try_clone()?.into())
    }

    /// Reads up to `buf.len()` bytes at `offset` (in bytes); fewer only at the end of the file.
    ///
    /// The buffer comes back in either case, with the byte count or the host's error.
    pub async fn read_at(&self, buf: IoBuf, offset: u64) -> (io::Result<usize>, IoBuf) {
        let wanted = buf.len();
        let (mut result, mut buf) = self.read_once(buf, offset).await;
        let mut done = match &result {
            Ok(count) if *count > 0 && *count < wanted => *count,
            _ => return (result, buf),
        };
        // A short read is the end of the file, or a signal, or the limit of one call: ask again.
        let mut front = buf.split_to(done);
        while done < wanted {
            let (again, rest) = self
                .read_once(buf, offset.saturating_add(done as u64))
                .await;
            buf = rest;
            match again {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    let read = buf.split_to(count);
                    if front.join(read).is_err() {
                        result = Err(io::Error::other("buffer parts do not join"));
                        return (result, front);
                    }
                }
                Err(error) => {
                    let _ = front.join(buf);
                    return (Err(error), front);
                }
            }
        }
        let _ = front.join(buf);
        (Ok(done), front)
    }

    async fn read_once(&self, mut buf: IoBuf, offset: u64) -> (io::Result<usize>, IoBuf) {
        if let Some(count) = self.read_cached(&mut buf, offset) {
            return (Ok(count), buf);
        }
        let request = Request::ReadAt { offset };
        let outcome = Operation::start(&self.fd, request, Resources::Buf(buf)).await;
        match outcome.resources {
            Resources::Buf(buf) => (outcome.result, buf),
            _ => (outcome.result, IoBuf::with_len(0)),
        }
    }

    /// Reads what the host has in its page cache, which needs neither a completion nor another turn
    /// of the loop. None if that is nothing: then a disk has to be waited for.
    fn read_cached(&self, buf: &mut IoBuf, offset: u64) -> Option<usize> {
        // The kernel takes -1 for the descriptor's own position.
        if !self.tries_cache.load(Ordering::Relaxed) || i64::try_from(offset).is_err() {
            return None;
        }
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        match rustix::io::preadv2(&*self.fd, &mut [io::IoSliceMut::new(buf)], offset, flags) {
            Ok(count) => Some(count),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => {
                self.tries_cache.store(false, Ordering::Relaxed);
                None
            }
            // Any other error shows itself again, to the operation that follows.
            Err(_) => None,
        }
    }

    /// Writes all of `bytes` at `offset` (in bytes).
    ///
    /// # Errors
    /// The host's; part of the bytes may have been written then.
    pub async fn write_at(&self, bytes: IoBytes, offset: u64) -> io::Result<()> {
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let request = Request::WriteAt { offset: at };
            let outcome = Operation::start(&self.fd, request, Resources::Bytes(rest.clone())).await;
            let count = outcome.result?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero));
            }
            rest = rest.slice(count..);
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Makes what was written before durable: data and the metadata needed to read it.
    ///
    /// # Errors
    /// The host's.
    pub async fn sync_data(&self) -> io::Result<()> {
        let request = Request::Sync { data_only: true };
        Operation::start(&self.fd, request, Resources::None)
            .await
            .result
            .map(drop)
    }

    /// fallocate with the mode flags of `mode`, over `len` bytes from `offset`.
    ///
    /// # Errors
    /// The host's; `EOPNOTSUPP` where the filesystem cannot.
    pub async fn fallocate(&self, mode: AllocateMode, offset: u64, len: u64) -> io::Result<()> {
        let request = Request::Fallocate {
            mode: mode.flags(),
            offset,
            len,
        };
        Operation::start(&self.fd, request, Resources::None)
            .await
            .result
            .map(drop)
    }

    /// Sets the length in bytes, growing with a hole or cutting off.
    ///
    /// # Errors
    /// The host's.
    pub async fn set_len(&self, len: u64) -> io::Result<()> {
        let fd = Arc::clone(&self.fd);
        run_blocking(move || rustix::fs::ftruncate(&*fd, len).map_err(io::Error::from)).await
    }

    /// Whether `offset` lies in data or in a hole, and where that ends (at most at the end of
    /// the file, which counts as a hole).
    ///
    /// # Errors
    /// The host's; filesystems that know no holes answer that all is data.
    pub async fn extent_at(&self, offset: u64) -> io::Result<FileExtent> {
        let fd = Arc::clone(&self.fd);
        run_blocking(move || extent_at(&fd, offset)).await
    }

    /// Length in bytes, asked without blocking the executor.
    ///
    /// # Errors
    /// The host's.
    pub async fn length_async(&self) -> io::Result<u64> {
        let file = self.clone();
        run_blocking(move || file.length()).await
    }
}

async fn run_blocking<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    blocking(call).await.map_err(io::Error::other)?
}

/// What `fallocate` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Reserve space, growing the file where it is shorter.
    Reserve,
    /// Free the space; reads give zeroes afterwards; the length stays.
    PunchHole,
    /// Read as zeroes afterwards, with the space kept; grows the file where it is shorter.
    Zero,
    /// Read as zeroes afterwards, with the space kept; the length stays.
    ZeroKeepSize,
}

impl AllocateMode {
    fn flags(self) -> i32 {
        match self {
            Self::Reserve => 0,
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Self::Zero => libc::FALLOC_FL_ZERO_RANGE,
            Self::ZeroKeepSize => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

/// A run of data or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Whether it holds data; a hole otherwise.
    pub data: bool,
    /// First byte behind it.
    pub end: u64,
}

fn extent_at(fd: &OwnedFd, offset: u64) -> io::Result<FileExtent> {
    use rustix::fs::SeekFrom;
    match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
        Ok(data) if data == offset => {
            let end = rustix::fs::seek(fd, SeekFrom::Hole(offset))?;
            Ok(FileExtent { data: true, end })
        }
        Ok(data) => Ok(FileExtent {
            data: false,
            end: data,
        }),
        // Nothing but a hole up to the end, or beyond the end.
        Err(rustix::io::Errno::NXIO) => {
            let end = rustix::fs::seek(fd, SeekFrom::End(0))?;
            Ok(FileExtent {
                data: false,
                end: end.max(offset),
            })
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
            let end = rustix::fs::seek(fd, SeekFrom::End(0))?;
            Ok(FileExtent {
                data: offset < end,
                end: end.max(offset),
            })
        }
        Err(error) => Err(error.into()),
    }
}

/// The kinds of open-file-description lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Others may hold the same.
    Shared,
    /// Nobody else may hold any.
    Exclusive,
}

impl File {
    /// Takes an open-file-description lock on `len` bytes from `start`, without waiting.
    ///
    /// # Errors
    /// `EAGAIN` when somebody else's lock is in the way.
    pub fn lock_range(&self, start: u64, len: u64, kind: LockKind) -> io::Result<()> {
        let lock_type = match kind {
            LockKind::Shared => libc::F_RDLCK,
            LockKind::Exclusive => libc::F_WRLCK,
        };
        fcntl_lock(&self.fd, libc::F_OFD_SETLK, lock_type, start, len).map(drop)
    }

    /// Gives up the locks on `len` bytes from `start`.
    ///
    /// # Errors
    /// The host's.
    pub fn unlock_range(&self, start: u64, len: u64) -> io::Result<()> {
        fcntl_lock(&self.fd, libc::F_OFD_SETLK, libc::F_UNLCK, start, len).map(drop)
    }

    /// Whether a lock of `kind` could be taken by us now.
    ///
    /// # Errors
    /// The host's.
    pub fn could_lock_range(&self, start: u64, len: u64, kind: LockKind) -> io::Result<bool> {
        let lock_type = match kind {
            LockKind::Shared => libc::F_RDLCK,
            LockKind::Exclusive => libc::F_WRLCK,
        };
        let found = fcntl_lock(&self.fd, libc::F_OFD_GETLK, lock_type, start, len)?;
        Ok(found == libc::F_UNLCK)
    }
}

fn fcntl_lock(fd: &OwnedFd, call: i32, kind: i32, start: u64, len: u64) -> io::Result<i32> {
    // SAFETY: `flock` is plain data for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = libc::off_t::try_from(start).map_err(io::Error::other)?;
    lock.l_len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the third argument is a live `flock`, as these calls want.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), call, &raw mut lock) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(i32::from(lock.l_type))
    }
}

impl File {
    /// The device and inode numbers: equal for two descriptors of one file.
    ///
    /// # Errors
    /// The host's.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.std_file()?.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// What offset, length and memory of a direct request must be aligned to, in bytes.
    ///
    /// # Errors
    /// The host's.
    pub fn direct_alignment(&self) -> io::Result<u32> {
        use rustix::fs::{AtFlags, StatxFlags};
        /// Enough for every disk, where the host does not say.
        const SAFE: u32 = 4096;
        let asked = rustix::fs::statx(
            &*self.fd,
            "",
            AtFlags::EMPTY_PATH,
            StatxFlags::from_bits_retain(libc::STATX_DIOALIGN),
        );
        let Ok(answer) = asked else { return Ok(SAFE) };
        let alignment = answer.stx_dio_offset_align.max(answer.stx_dio_mem_align);
        let usable = alignment.is_power_of_two() && alignment <= SAFE;
        Ok(if usable { alignment.max(512) } else { SAFE })
    }
}

/// A duplicate of a descriptor that this process inherited, named by its number.
///
/// # Errors
/// `EBADF` when there is none.
pub fn duplicate_inherited_fd(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC only looks the number up; it touches no memory, and what it returns
    // is a new descriptor.
    let raw = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just made and is owned by nobody.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) })
}
