//! What can go wrong with a request or with the graph.

use std::io;

/// The kinds of failure that callers treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockErrorKind {
    /// The host said no; the errno tells why.
    Host,
    /// The request lies outside the node.
    OutOfRange,
    /// The node cannot be written.
    ReadOnly,
    /// The image's own structures are wrong.
    Corrupt,
    /// The node cannot do this.
    NotSupported,
    /// The request makes no sense.
    Invalid,
    /// The request was stopped on purpose.
    Cancelled,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOperation {
    /// Opening or activating.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Writing zeroes.
    WriteZeroes,
    /// Discarding.
    Discard,
    /// Flushing.
    Flush,
    /// Changing the length.
    Resize,
    /// Asking what is allocated.
    BlockStatus,
}

impl BlockOperation {
    /// A word for messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Resize => "resize",
            Self::BlockStatus => "block-status",
        }
    }
}

/// A request that failed: kind, operation, errno, and words for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BlockError {
    /// The kind.
    pub kind: BlockErrorKind,
    /// What was being done.
    pub operation: BlockOperation,
    /// The positive errno that stands for it towards guests and peers.
    pub errno: i32,
    /// What happened, in words.
    pub message: String,
}

impl BlockError {
    /// A failure of the host.
    pub fn host(operation: BlockOperation, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Self {
            kind: BlockErrorKind::Host,
            operation,
            errno,
            message: host_io::strerror(error),
        }
    }

    /// A request outside the node.
    pub fn out_of_range(operation: BlockOperation, offset: u64, len: u64, length: u64) -> Self {
        Self {
            kind: BlockErrorKind::OutOfRange,
            operation,
            errno: libc::EIO,
            message: format!(
                "{} of {len} bytes at {offset} lies outside the node's {length} bytes",
                operation.as_str()
            ),
        }
    }

    /// A change to a read-only node.
    pub fn read_only(operation: BlockOperation) -> Self {
        Self {
            kind: BlockErrorKind::ReadOnly,
            operation,
            errno: libc::EPERM,
            message: format!("{}: the node is read-only", operation.as_str()),
        }
    }

    /// An image whose structures are wrong.
    pub fn corrupt(operation: BlockOperation, message: impl Into<String>) -> Self {
        Self {
            kind: BlockErrorKind::Corrupt,
            operation,
            errno: libc::EIO,
            message: message.into(),
        }
    }

    /// Something that the node cannot do.
    pub fn not_supported(operation: BlockOperation, message: impl Into<String>) -> Self {
        Self {
            kind: BlockErrorKind::NotSupported,
            operation,
            errno: libc::ENOTSUP,
            message: message.into(),
        }
    }

    /// A request that makes no sense.
    pub fn invalid(operation: BlockOperation, message: impl Into<String>) -> Self {
        Self {
            kind: BlockErrorKind::Invalid,
            operation,
            errno: libc::EINVAL,
            message: message.into(),
        }
    }

    /// Out of space, or past a limit that counts as such.
    pub fn no_space(operation: BlockOperation, message: impl Into<String>) -> Self {
        Self {
            kind: BlockErrorKind::Host,
            operation,
            errno: libc::ENOSPC,
            message: message.into(),
        }
    }
}

/// A change to the graph that was refused, in the words that clients read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// No such node.
    #[error("Cannot find device='' nor node-name='{0}'")]
    NoSuchNode(String),
    /// The name is in use.
    #[error("Duplicate nodes with node-name='{0}'")]
    DuplicateNode(String),
    /// The name is longer than names may be.
    #[error("Node name too long")]
    NameTooLong,
    /// The name breaks the rules for identifiers.
    #[error("Invalid node-name: '{0}'")]
    InvalidName(String),
    /// Somebody uses the node.
    #[error("Node {0} is in use")]
    InUse(String),
    /// Two parents' permissions exclude each other.
    #[error(
        "Permission conflict on node '{node}': permissions '{permissions}' are both required by \
         {required_by} and unshared by {unshared_by}."
    )]
    Conflict {
        /// The node.
        node: String,
        /// The permissions at issue.
        permissions: String,
        /// Who needs them.
        required_by: String,
        /// Who refuses them.
        unshared_by: String,
    },
    /// The node is read-only and somebody wants to write it.
    #[error("Block node is read-only")]
    ReadOnly,
    /// The node was to become read-only and somebody writes it.
    #[error("Read-only block node '{0}' cannot support read-write users")]
    ReadOnlyUsers(String),
    /// The driver refused, for example because another process holds the image.
    #[error("{0}")]
    Driver(String),
}
