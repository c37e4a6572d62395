//! Block status: what the metadata contexts say of a range.

use block_graph::{BlockBackend, BlockError, BlockStatus};
use nbd_wire::MetaContext;
use nbd_wire::protocol::AllocationFlags;
use nbd_wire::reply::Extent;

/// The context of the NBD specification.
pub(crate) const ALLOCATION_CONTEXT: &str = "base:allocation";
/// QEMU's: which layer of the backing chain has the data.
pub(crate) const DEPTH_CONTEXT: &str = "qemu:allocation-depth";

/// The most extents of one context in one reply. A client that needs more asks again from where
/// the reply ends.
const MAX_REPLY_EXTENTS: usize = 4096;
/// How often the node is asked for one reply.
const MAX_REPLY_QUERIES: usize = 16_384;

/// What a context says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContextKind {
    Allocation,
    Depth,
}

impl ContextKind {
    fn of(name: &str) -> Option<Self> {
        match name {
            ALLOCATION_CONTEXT => Some(Self::Allocation),
            DEPTH_CONTEXT => Some(Self::Depth),
            _ => None,
        }
    }

    fn status(self, status: &BlockStatus) -> u64 {
        match self {
            Self::Allocation => {
                let mut flags = AllocationFlags::empty();
                flags.set(AllocationFlags::HOLE, !status.data);
                flags.set(AllocationFlags::ZERO, status.zero);
                flags.bits().into()
            }
            Self::Depth => status.depth.into(),
        }
    }
}

/// One context's part of a reply.
pub(crate) struct ContextExtents {
    /// Its number on this connection.
    pub(crate) id: u32,
    kind: ContextKind,
    /// From the request's offset on, neighbours of one kind put together.
    pub(crate) extents: Vec<Extent>,
}

/// The negotiated contexts, or those of them that the client has listed.
pub(crate) fn selected(negotiated: &[MetaContext], ids: Option<&[u32]>) -> Vec<ContextExtents> {
    let wanted = |context: &&MetaContext| ids.is_none_or(|ids| ids.contains(&context.id));
    let empty = |context: &MetaContext| {
        Some(ContextExtents {
            id: context.id,
            kind: ContextKind::of(&context.name)?,
            extents: Vec::new(),
        })
    };
    negotiated.iter().filter(wanted).filter_map(empty).collect()
}

/// Fills in what `contexts` say of `length` bytes from `offset`, or of a part from the beginning;
/// with `one`, of one extent.
///
/// # Errors
/// The node's.
pub(crate) async fn extents(
    backend: &BlockBackend,
    mut contexts: Vec<ContextExtents>,
    offset: u64,
    length: u64,
    one: bool,
) -> Result<Vec<ContextExtents>, BlockError> {
    let end = offset.saturating_add(length);
    let queries = if one { 1 } else { MAX_REPLY_QUERIES };
    let mut at = offset;
    for _ in 0..queries {
        if at >= end
            || contexts
                .iter()
                .any(|context| context.extents.len() >= MAX_REPLY_EXTENTS)
        {
            break;
        }
        let status = backend.status(at, end - at).await?;
        let length = status.len.clamp(1, end - at);
        for context in &mut contexts {
            context.append(length, context.kind.status(&status));
        }
        at += length;
    }
    Ok(contexts)
}

impl ContextExtents {
    fn append(&mut self, length: u64, status: u64) {
        match self.extents.last_mut() {
            Some(last) if last.status == status => last.length += length,
            _ => self.extents.push(Extent { length, status }),
        }
    }
}
