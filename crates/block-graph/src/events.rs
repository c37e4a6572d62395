//! What the data side has to tell the world.

/// An image's own structures turned out to be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageCorrupted {
    /// The node.
    pub node_name: String,
    /// What is wrong, in words.
    pub message: String,
    /// Byte offset of the request or structure, where that makes sense.
    pub offset: Option<u64>,
    /// Length in bytes, likewise.
    pub size: Option<u64>,
    /// Whether the image must not be written any more.
    pub fatal: bool,
}

/// Takes the block layer's events; handed in when a driver is made.
pub trait BlockEvents: Send + Sync + 'static {
    /// An image is corrupt.
    fn image_corrupted(&self, event: ImageCorrupted);
}
