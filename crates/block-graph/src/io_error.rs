//! What devices do when a request fails: the policies `rerror` and `werror`, and what BLOCK_IO_ERROR tells.

use api::{BlockErrorAction, BlockdevOnError, IoOperationType};

use crate::error::BlockError;

/// A request of a device that failed, with what BLOCK_IO_ERROR tells; the device's path and name are its owner's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIoError {
    /// The node.
    pub node_name: String,
    /// What failed: a read, or anything else.
    pub operation: IoOperationType,
    /// What is done about it.
    pub action: BlockErrorAction,
    /// Whether the host has no space left.
    pub no_space: bool,
    /// Why, for people.
    pub reason: String,
}

/// Hears of requests that failed, from an executor's thread. With [`BlockErrorAction::Stop`] it has the machine stopped,
/// soon, not from inside; the request is done again when the machine goes on.
pub trait BlockErrorSink: Send + Sync + 'static {
    /// A request failed.
    fn block_io_error(&self, error: &BlockIoError);
}

/// What is done when requests of a device fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorPolicy {
    /// When a read fails. `auto` reports.
    pub rerror: BlockdevOnError,
    /// When anything else fails. `auto` stops when the host has no space, and else reports.
    pub werror: BlockdevOnError,
}

impl ErrorPolicy {
    /// Decides what is done about an error at this node.
    pub fn judge(&self, node_name: String, error: &BlockError, is_read: bool) -> BlockIoError {
        let no_space = error.errno == libc::ENOSPC;
        let policy = match (is_read, self.rerror, self.werror) {
            (true, BlockdevOnError::Auto, _) => BlockdevOnError::Report,
            (false, _, BlockdevOnError::Auto) => BlockdevOnError::Enospc,
            (true, policy, _) | (false, _, policy) => policy,
        };
        let action = match policy {
            BlockdevOnError::Ignore => BlockErrorAction::Ignore,
            BlockdevOnError::Stop => BlockErrorAction::Stop,
            BlockdevOnError::Enospc if no_space => BlockErrorAction::Stop,
            BlockdevOnError::Enospc | BlockdevOnError::Report | BlockdevOnError::Auto => {
                BlockErrorAction::Report
            }
        };
        let operation = match is_read {
            true => IoOperationType::Read,
            false => IoOperationType::Write,
        };
        BlockIoError {
            node_name,
            operation,
            action,
            no_space,
            reason: error.message.clone(),
        }
    }
}
