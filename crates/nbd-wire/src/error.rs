//! What can be wrong with a peer's bytes.

/// Errors after which a connection cannot go on: where the next message begins is not known, or the
/// peer does not speak the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Another number stands where a magic should.
    #[error("bad magic {found:#x} in {place}, expected {expected:#x}")]
    BadMagic {
        /// Which message.
        place: &'static str,
        /// What was there.
        found: u64,
        /// What belongs there.
        expected: u64,
    },
    /// A message is shorter or longer than its contents.
    #[error("{0} has a wrong length")]
    BadLength(&'static str),
    /// A string is over 4096 bytes, not UTF-8, or has a NUL in it.
    #[error("{0} is no valid NBD string (UTF-8 without NUL, at most 4096 bytes)")]
    BadString(&'static str),
    /// More data than is taken at once.
    #[error("{place} of {bytes} bytes is over the limit of {limit} bytes")]
    TooLong {
        /// What is too long.
        place: &'static str,
        /// How long it is.
        bytes: u64,
        /// How long it may be.
        limit: u64,
    },
    /// A message that does not belong where it came.
    #[error("unexpected {0}")]
    Unexpected(String),
    /// The server refused, in its words where it had some.
    #[error("the server refused option {option}: {reason}")]
    Refused {
        /// The option's number.
        option: u32,
        /// The reply type's name and the server's message.
        reason: String,
    },
    /// The server cannot do what this client needs.
    #[error("the server lacks {0}")]
    Lacking(&'static str),
}
