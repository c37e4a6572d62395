//! `file` and `host_device`: a file or block device of the host.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use block_graph::{
    Access, BlockError, BlockFuture, BlockOperation, Driver, DriverInfo, Edge, Extent, ExtentKind,
    Limits, Mapping, Permission, Permissions, Preallocation, RangeGuard, RangeLocks, WriteFlags,
};
use host_io::{AllocateMode, File, FileKind, IoBuf, IoBytes, OpenMode};

use crate::file_lock::FileLocks;

/// How many zero bytes are written at a time where the host cannot make zeroes otherwise.
const ZERO_CHUNK: u64 = 1 << 20;

/// Opens names for the file driver. The daemon's opener knows `/dev/fdset/N` besides paths.
pub trait FileOpener: Send + Sync {
    /// Opens `path`; may block.
    ///
    /// # Errors
    /// The host's.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<File>;
}

/// Opens plain paths.
pub struct HostOpener;

impl FileOpener for HostOpener {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<File> {
        File::open(path, mode)
    }
}

/// Which of the two drivers of host files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostProtocol {
    /// `file`: a regular file.
    File,
    /// `host_device`: a block or character device.
    HostDevice,
}

impl HostProtocol {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::HostDevice => "host_device",
        }
    }
}

/// How a host file is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Which driver.
    pub protocol: HostProtocol,
    /// Its name.
    pub filename: String,
    /// Never for writing.
    pub read_only: bool,
    /// For writing only once somebody wants to write, and not at all where the host refuses.
    pub auto_read_only: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Whether to take part in the locks between processes.
    pub locking: bool,
}

impl FileOptions {
    /// How the file is opened at first.
    fn mode(&self) -> OpenMode {
        OpenMode {
            writable: !self.read_only && !self.auto_read_only,
            direct: self.direct,
        }
    }
}

/// An open host file.
pub struct FileDriver {
    options: FileOptions,
    opener: Arc<dyn FileOpener>,
    kind: FileKind,
    /// Opened first; for reading only if `writable` may follow.
    file: File,
    /// The same file for writing, where `file` is for reading only.
    writable: OnceLock<File>,
    file_is_writable: bool,
    locks: Option<Arc<FileLocks>>,
    length: AtomicU64,
    alignment: u32,
    /// Holds overlapping writes, zeroes and discards apart where unaligned writes are
    /// read-modify-writes.
    unaligned: RangeLocks,
    flush_failed: AtomicBool,
    can_zero: AtomicBool,
    can_punch: AtomicBool,
    discards: Arc<DiscardCounts>,
}

/// What became of discards.
#[derive(Default)]
struct DiscardCounts {
    good: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

impl DiscardCounts {
    fn as_json(&self, driver: &str) -> serde_json::Value {
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed);
        serde_json::json!({
            "driver": driver,
            "discard-nb-ok": count(&self.good),
            "discard-nb-failed": count(&self.failed),
            "discard-bytes-ok": count(&self.bytes),
        })
    }
}

impl FileDriver {
    /// Opens the file. Blocks: call it where blocking is fine.
    ///
    /// # Errors
    /// Words for the client.
    pub fn open(options: FileOptions, opener: Arc<dyn FileOpener>) -> Result<Self, BlockError> {
        let could_not = |error: io::Error| {
            let message = format!(
                "Could not open '{}': {}",
                options.filename,
                host_io::strerror(&error)
            );
            BlockError {
                message,
                ..BlockError::host(BlockOperation::Open, &error)
            }
        };
        let path = PathBuf::from(&options.filename);
        let file = opener.open(&path, options.mode()).map_err(could_not)?;
        let kind = file.kind().map_err(could_not)?;
        check_kind(&options, kind)?;
        let length = match kind {
            FileKind::Regular | FileKind::BlockDevice => file.length().map_err(could_not)?,
            FileKind::CharDevice | FileKind::Other => 0,
        };
        let alignment = if options.direct {
            file.direct_alignment().map_err(could_not)?
        } else {
            1
        };
        let locks = options
            .locking
            .then(|| Arc::new(FileLocks::new(file.clone())));
        Ok(Self {
            opener,
            kind,
            file,
            writable: OnceLock::new(),
            file_is_writable: options.mode().writable,
            options,
            locks,
            length: AtomicU64::new(length),
            alignment,
            unaligned: RangeLocks::default(),
            flush_failed: AtomicBool::new(false),
            can_zero: AtomicBool::new(true),
            can_punch: AtomicBool::new(true),
            discards: Arc::default(),
        })
    }

    /// The same file opened with other options; name, driver and locking are as they were. Both
    /// take part in the locks between processes as one. Blocks.
    ///
    /// # Errors
    /// Words for the client.
    pub fn reopen(&self, options: FileOptions) -> Result<Self, BlockError> {
        let opener = Arc::clone(&self.opener);
        let mut reopened = Self::open(options, opener)?;
        if reopened.file.identity().ok() != self.file.identity().ok() {
            let message = format!(
                "Could not reopen file: '{}' is another file now",
                self.options.filename
            );
            return Err(BlockError::invalid(BlockOperation::Open, message));
        }
        reopened.locks.clone_from(&self.locks);
        reopened.discards = Arc::clone(&self.discards);
        // What a failed flush lost is lost for whoever opens the file again, too.
        *reopened.flush_failed.get_mut() = self.flush_failed.load(Ordering::Acquire);
        Ok(reopened)
    }

    fn for_writing(&self) -> &File {
        if self.file_is_writable {
            &self.file
        } else {
            self.writable.get().unwrap_or(&self.file)
        }
    }

    /// Opens the file for writing too, if it is not yet.
    fn become_writable(&self) -> Result<(), String> {
        if self.file_is_writable || self.writable.get().is_some() {
            return Ok(());
        }
        let mode = OpenMode {
            writable: true,
            direct: self.options.direct,
        };
        let opened = self.opener.open(Path::new(&self.options.filename), mode);
        let file = opened
            .map_err(|error| format!("Could not reopen file: {}", host_io::strerror(&error)))?;
        // Somebody may have put another file under the name in the meantime.
        let same = file.identity().ok() == self.file.identity().ok();
        if !same {
            return Err(format!(
                "Could not reopen file: '{}' is another file now",
                self.options.filename
            ));
        }
        let _ = self.writable.set(file);
        Ok(())
    }

    fn is_aligned(&self, value: u64) -> bool {
        value.is_multiple_of(u64::from(self.alignment))
    }

    fn align_down(&self, value: u64) -> u64 {
        value - value % u64::from(self.alignment)
    }

    fn align_up(&self, value: u64) -> Option<u64> {
        value.checked_next_multiple_of(u64::from(self.alignment))
    }

    fn host(operation: BlockOperation) -> impl Fn(io::Error) -> BlockError {
        move |error| BlockError::host(operation, &error)
    }

    async fn read_direct(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, BlockError> {
        let len = buf.len() as u64;
        let memory_aligned = self.is_aligned(buf.as_ptr() as u64);
        if self.is_aligned(offset) && self.is_aligned(len) && memory_aligned {
            return self.read_plain(offset, buf).await;
        }
        let out_of_range =
            || BlockError::out_of_range(BlockOperation::Read, offset, len, self.length());
        let start = self.align_down(offset);
        let end = offset.checked_add(len).and_then(|end| self.align_up(end));
        let end = end.ok_or_else(out_of_range)?;
        let bounce_len = usize::try_from(end - start).map_err(|_| out_of_range())?;
        let bounce = self.read_plain(start, IoBuf::with_len(bounce_len)).await?;
        let skip = usize::try_from(offset - start).map_err(|_| out_of_range())?;
        let part = bounce
            .get(skip..skip + buf.len())
            .ok_or_else(out_of_range)?;
        buf.copy_from_slice(part);
        Ok(buf)
    }

    async fn read_plain(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let (result, mut buf) = self.file.read_at(buf, offset).await;
        let count = result.map_err(Self::host(BlockOperation::Read))?;
        buf.zero_from(count);
        Ok(buf)
    }

    async fn write_direct(&self, offset: u64, data: IoBytes) -> Result<(), BlockError> {
        let out_of_range = || {
            BlockError::out_of_range(
                BlockOperation::Write,
                offset,
                data.len() as u64,
                self.length(),
            )
        };
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or_else(out_of_range)?;
        let (start, stop) = (
            self.align_down(offset),
            self.align_up(end).ok_or_else(out_of_range)?,
        );
        let _turn = self.unaligned.lock(start, stop).await;
        let memory_aligned = self.is_aligned(data.as_ptr() as u64);
        if (start, stop) == (offset, end) && memory_aligned {
            return self.write_plain(offset, data).await;
        }
        let whole = usize::try_from(stop - start).map_err(|_| out_of_range())?;
        let mut bounce = if (start, stop) == (offset, end) {
            IoBuf::with_len(whole)
        } else {
            self.read_plain(start, IoBuf::with_len(whole)).await?
        };
        let skip = usize::try_from(offset - start).map_err(|_| out_of_range())?;
        let part = bounce
            .get_mut(skip..skip + data.len())
            .ok_or_else(out_of_range)?;
        part.copy_from_slice(&data);
        self.write_plain(start, bounce.freeze()).await
    }

    async fn write_plain(&self, offset: u64, data: IoBytes) -> Result<(), BlockError> {
        let end = offset.saturating_add(data.len() as u64);
        self.for_writing()
            .write_at(data, offset)
            .await
            .map_err(Self::host(BlockOperation::Write))?;
        self.length.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// Holds off read-modify-writes, which would bring back what lies in their blocks.
    async fn turn(&self, offset: u64, len: u64) -> Option<RangeGuard<'_>> {
        if self.alignment == 1 {
            return None;
        }
        let end = self.align_up(offset.saturating_add(len));
        let start = self.align_down(offset);
        Some(self.unaligned.lock(start, end.unwrap_or(u64::MAX)).await)
    }

    /// Asks the host to make zeroes; says whether it could.
    async fn zero_by_host(&self, offset: u64, len: u64, unmap: bool) -> io::Result<bool> {
        if unmap && self.can_punch.load(Ordering::Relaxed) {
            let file = self.for_writing();
            match file.fallocate(AllocateMode::PunchHole, offset, len).await {
                Ok(()) => return Ok(true),
                Err(error) if is_unsupported(&error) => {
                    self.can_punch.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        if self.can_zero.load(Ordering::Relaxed) {
            let file = self.for_writing();
            match file
                .fallocate(AllocateMode::ZeroKeepSize, offset, len)
                .await
            {
                Ok(()) => return Ok(true),
                Err(error) if is_unsupported(&error) => {
                    self.can_zero.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn make_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> Result<(), BlockError> {
        const OPERATION: BlockOperation = BlockOperation::WriteZeroes;
        let length = self.length();
        let Some(end) = offset.checked_add(len) else {
            return Err(BlockError::out_of_range(OPERATION, offset, len, length));
        };
        // Behind the end, growing the file makes the zeroes.
        if end > length && self.kind == FileKind::Regular {
            self.for_writing()
                .set_len(end)
                .await
                .map_err(Self::host(OPERATION))?;
            self.length.fetch_max(end, Ordering::AcqRel);
        }
        let inside_end = if self.kind == FileKind::Regular {
            end.min(length)
        } else {
            end
        };
        let Some(inside) = inside_end.checked_sub(offset).filter(|inside| *inside > 0) else {
            return Ok(());
        };
        let unmap = flags.contains(WriteFlags::MAY_UNMAP);
        let zeroed = {
            let _turn = self.turn(offset, inside).await;
            self.zero_by_host(offset, inside, unmap).await
        };
        if zeroed.map_err(Self::host(OPERATION))? {
            return Ok(());
        }
        if flags.contains(WriteFlags::NO_FALLBACK) {
            let message = "the host cannot make zeroes without writing them";
            return Err(BlockError::not_supported(OPERATION, message));
        }
        let mut at = offset;
        while at < inside_end {
            let chunk = (inside_end - at).min(ZERO_CHUNK);
            let zeroes = IoBuf::zeroed(usize::try_from(chunk).unwrap_or(0)).freeze();
            self.write_direct(at, zeroes).await?;
            at += chunk;
        }
        Ok(())
    }

    async fn change_length(
        &self,
        length: u64,
        exact: bool,
        how: Preallocation,
    ) -> Result<(), BlockError> {
        const OPERATION: BlockOperation = BlockOperation::Resize;
        let before = self.length();
        if self.kind != FileKind::Regular {
            if how != Preallocation::Off {
                let message = "Preallocation mode unsupported for this non-regular file";
                return Err(BlockError::not_supported(OPERATION, message));
            }
            if length != before && exact {
                let message = "Cannot resize device files";
                return Err(BlockError::not_supported(OPERATION, message));
            }
            if length > before {
                return Err(BlockError::invalid(OPERATION, "Cannot grow device files"));
            }
            return Ok(());
        }
        let file = self.for_writing();
        let grown = length.saturating_sub(before);
        match how {
            Preallocation::Off => {
                file.set_len(length).await.map_err(Self::host(OPERATION))?;
            }
            Preallocation::Metadata => {
                let message = "Unsupported preallocation mode 'metadata'";
                return Err(BlockError::invalid(OPERATION, message));
            }
            Preallocation::Falloc if grown > 0 => {
                file.fallocate(AllocateMode::Reserve, before, grown)
                    .await
                    .map_err(Self::host(OPERATION))?;
            }
            Preallocation::Full if grown > 0 => {
                let mut at = before;
                while at < length {
                    let chunk = (length - at).min(ZERO_CHUNK);
                    let zeroes = IoBuf::zeroed(usize::try_from(chunk).unwrap_or(0)).freeze();
                    self.write_direct(at, zeroes).await?;
                    at += chunk;
                }
            }
            Preallocation::Falloc | Preallocation::Full => {
                let message = "Preallocation can't be used for shrinking files";
                return Err(BlockError::invalid(OPERATION, message));
            }
        }
        self.length.store(length, Ordering::Release);
        Ok(())
    }

    async fn sync(&self) -> Result<(), BlockError> {
        let poisoned = || BlockError {
            message: "an earlier flush failed; what the host's cache holds cannot be trusted"
                .to_owned(),
            ..BlockError::host(
                BlockOperation::Flush,
                &io::Error::from_raw_os_error(libc::EIO),
            )
        };
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(poisoned());
        }
        let synced = self.for_writing().sync_data().await;
        synced.map_err(|error| {
            // After a failed sync the kernel counts the lost pages as clean: a second sync would
            // lie about them.
            self.flush_failed.store(true, Ordering::Release);
            BlockError::host(BlockOperation::Flush, &error)
        })
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

fn check_kind(options: &FileOptions, kind: FileKind) -> Result<(), BlockError> {
    let right = match options.protocol {
        HostProtocol::File => kind == FileKind::Regular,
        HostProtocol::HostDevice => matches!(kind, FileKind::BlockDevice | FileKind::CharDevice),
    };
    if right {
        return Ok(());
    }
    let message = match options.protocol {
        HostProtocol::File => {
            format!(
                "'file' driver requires '{}' to be a regular file",
                options.filename
            )
        }
        HostProtocol::HostDevice => format!(
            "'host_device' driver requires '{}' to be either a character or block device",
            options.filename
        ),
    };
    Err(BlockError::invalid(BlockOperation::Open, message))
}

impl Driver for FileDriver {
    fn name(&self) -> &'static str {
        self.options.protocol.name()
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.alignment,
            ..Limits::default()
        }
    }

    fn filename(&self) -> String {
        self.options.filename.clone()
    }

    fn info(&self) -> DriverInfo {
        DriverInfo {
            dirty: Some(false),
            allocated_bytes: self.file.allocated().ok(),
            statistics: Some(self.discards.as_json(self.name())),
            specific: Some(serde_json::json!({"type": "file", "data": {}})),
            ..DriverInfo::default()
        }
    }

    fn children(&self) -> Vec<Arc<Edge>> {
        Vec::new()
    }

    fn storage_edge(&self) -> Option<&Edge> {
        None
    }

    fn mappings_are_fixed(&self) -> bool {
        true
    }

    fn child_permissions(&self, _edge: &Edge, asked: Permissions) -> Permissions {
        asked
    }

    fn permissions_wanted(&self, wanted: Permissions) -> Result<(), String> {
        if let Some(locks) = &self.locks {
            locks.want(wanted)?;
        }
        if wanted
            .required
            .intersects(Permission::WRITE | Permission::RESIZE)
        {
            self.become_writable()?;
        }
        Ok(())
    }

    fn permissions_settled(&self, settled: Permissions) {
        if let Some(locks) = &self.locks {
            locks.settle(settled);
        }
    }

    fn map_now(&self, access: Access, offset: u64, len: u64) -> Mapping<'_> {
        let inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.length());
        if self.alignment > 1 || !inside {
            return Mapping::Ask;
        }
        let file = match access {
            Access::Read => &self.file,
            Access::Write => self.for_writing(),
        };
        Mapping::File { file, offset, len }
    }

    fn read(&self, offset: u64, buf: IoBuf) -> BlockFuture<'_, IoBuf> {
        if self.alignment > 1 {
            Box::pin(self.read_direct(offset, buf))
        } else {
            Box::pin(self.read_plain(offset, buf))
        }
    }

    fn write(&self, offset: u64, data: IoBytes, _flags: WriteFlags) -> BlockFuture<'_, ()> {
        if self.alignment > 1 {
            Box::pin(self.write_direct(offset, data))
        } else {
            Box::pin(self.write_plain(offset, data))
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: WriteFlags) -> BlockFuture<'_, ()> {
        Box::pin(self.make_zeroes(offset, len, flags))
    }

    fn discard(&self, offset: u64, len: u64) -> BlockFuture<'_, ()> {
        Box::pin(async move {
            if !self.can_punch.load(Ordering::Relaxed) {
                return Ok(());
            }
            let _turn = self.turn(offset, len).await;
            match self
                .for_writing()
                .fallocate(AllocateMode::PunchHole, offset, len)
                .await
            {
                Ok(()) => {
                    self.discards.good.fetch_add(1, Ordering::Relaxed);
                    self.discards.bytes.fetch_add(len, Ordering::Relaxed);
                    Ok(())
                }
                // A discard is a hint: where the host cannot, nothing is owed.
                Err(error) if is_unsupported(&error) => {
                    self.can_punch.store(false, Ordering::Relaxed);
                    Ok(())
                }
                Err(error) => {
                    self.discards.failed.fetch_add(1, Ordering::Relaxed);
                    Err(BlockError::host(BlockOperation::Discard, &error))
                }
            }
        })
    }

    fn flush(&self) -> BlockFuture<'_, ()> {
        Box::pin(self.sync())
    }

    fn extent(&self, offset: u64, len: u64) -> BlockFuture<'_, Extent> {
        Box::pin(async move {
            let found = self.file.extent_at(offset).await;
            let found = found.map_err(Self::host(BlockOperation::BlockStatus))?;
            let len = found.end.saturating_sub(offset).clamp(1, len.max(1));
            let kind = if found.data {
                ExtentKind::Data {
                    offset: Some(offset),
                    in_child: false,
                    compressed: false,
                }
            } else {
                ExtentKind::Zero {
                    allocated: false,
                    offset: Some(offset),
                }
            };
            Ok(Extent { len, kind })
        })
    }

    fn resize(&self, length: u64, exact: bool, how: Preallocation) -> BlockFuture<'_, ()> {
        Box::pin(self.change_length(length, exact, how))
    }

    fn activate(&self) -> BlockFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BlockFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
