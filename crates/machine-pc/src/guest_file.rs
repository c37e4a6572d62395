//! Files that a guest starts with. They are read again at each reset rather than kept: a kernel and its initial RAM disk
//! are large, and needed for a moment.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The largest file that is read: what 32 bits can count.
pub const MAX_FILE_BYTES: u64 = 0xffff_ffff;

/// A file, or bytes that are part of this program.
#[derive(Clone, Debug)]
pub enum GuestFile {
    /// An open file with its path for messages.
    File {
        /// The path.
        path: String,
        /// The file; it stays the same if another takes its path.
        file: Arc<File>,
    },
    /// Bytes of this program.
    Embedded(&'static [u8]),
}

impl GuestFile {
    /// Opens a file.
    ///
    /// # Errors
    /// What the host says.
    pub fn open(path: &str) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        Ok(Self::File {
            path: path.to_owned(),
            file: Arc::new(file),
        })
    }

    /// Its path, or what it is.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::File { path, .. } => path,
            Self::Embedded(_) => "(built in)",
        }
    }

    /// All of its bytes as they are now.
    ///
    /// # Errors
    /// What the host says, or a file that is too large.
    pub fn read(&self) -> io::Result<Cow<'static, [u8]>> {
        let file = match self {
            Self::Embedded(bytes) => return Ok(Cow::Borrowed(bytes)),
            Self::File { file, .. } => file,
        };
        let length = file.metadata()?.len();
        if length > MAX_FILE_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Cow::Owned(bytes))
    }
}
