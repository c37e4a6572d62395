//! Reading files of bounded size.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{ObjectError, PathBufDisplay};

/// A file's content of at most `max_bytes`; it may be secret, so it is overwritten when dropped.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Zeroizing<Vec<u8>>, ObjectError> {
    let shown = || PathBufDisplay(path.to_owned());
    let file = File::open(path).map_err(|source| ObjectError::Open {
        path: shown(),
        source,
    })?;
    read_open(file, max_bytes).map_err(|error| match error {
        ReadError::Io(source) => ObjectError::Read {
            path: shown(),
            source,
        },
        ReadError::TooLarge => ObjectError::FileTooLarge {
            path: shown(),
            max_bytes,
        },
    })
}

pub(crate) enum ReadError {
    Io(io::Error),
    TooLarge,
}

/// The rest of an open file.
pub(crate) fn read_open(file: File, max_bytes: u64) -> Result<Zeroizing<Vec<u8>>, ReadError> {
    // Room for what the file says it has, so that growing does not leave copies of a secret behind.
    let expected = file.metadata().map_err(ReadError::Io)?.len();
    if expected > max_bytes {
        return Err(ReadError::TooLarge);
    }
    let room = usize::try_from(expected).unwrap_or(0).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(ReadError::Io)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max_bytes {
        return Err(ReadError::TooLarge);
    }
    Ok(bytes)
}
