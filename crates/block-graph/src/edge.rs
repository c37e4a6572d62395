//! The edge from a parent (a node, or a user outside the graph) to a node.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::node::Node;
use crate::permissions::Permissions;

/// What a child is to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildRole {
    /// Stores the parent's metadata and data.
    Image,
    /// Stores metadata only; the data is elsewhere.
    Metadata,
    /// Stores data only.
    Data,
    /// Answers for what the parent has not allocated.
    Backing,
    /// The parent is a filter over it.
    Filtered,
    /// The parent is outside the graph: an export, a device, a job.
    Root,
}

/// Who stands at an edge's upper end, in words for messages and queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentName {
    /// A node of the graph.
    Node(String),
    /// A user outside, as clients know it: "block export 'e0'", "block device 'ide0'".
    User(String),
}

/// An edge of the graph.
///
/// The node at its lower end changes only while the graph is drained, so requests under way hold
/// it safely. The edge lives as long as its parent; [`crate::Graph::detach`] ends it.
pub struct Edge {
    name: String,
    role: ChildRole,
    parent: ParentName,
    node: ArcSwap<Node>,
    permissions: Mutex<Permissions>,
}

impl Edge {
    pub(crate) fn new(
        parent: ParentName,
        name: &str,
        role: ChildRole,
        node: Arc<Node>,
        permissions: Permissions,
    ) -> Self {
        Self {
            name: name.to_owned(),
            role,
            parent,
            node: ArcSwap::new(node),
            permissions: Mutex::new(permissions),
        }
    }

    /// The child's name within its parent: `file`, `backing`, `data-file`, `root` ...
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the child is to the parent.
    pub fn role(&self) -> ChildRole {
        self.role
    }

    /// Who stands at the upper end.
    pub fn parent(&self) -> &ParentName {
        &self.parent
    }

    /// The node at the lower end, for the duration of a request.
    pub fn node(&self) -> Guard<Arc<Node>> {
        self.node.load()
    }

    /// The node at the lower end, to keep.
    pub fn node_arc(&self) -> Arc<Node> {
        self.node.load_full()
    }

    /// What the parent asks of the node now.
    pub fn permissions(&self) -> Permissions {
        *self.permissions.lock()
    }

    pub(crate) fn set_permissions(&self, permissions: Permissions) {
        *self.permissions.lock() = permissions;
    }

    pub(crate) fn set_node(&self, node: Arc<Node>) {
        self.node.store(node);
    }

    /// The parent and the edge, as conflict messages name them.
    pub(crate) fn describe(&self) -> String {
        let node = self.node();
        match &self.parent {
            ParentName::Node(parent) => format!(
                "node '{parent}' (uses node '{}' as '{}' child)",
                node.name(),
                self.name
            ),
            ParentName::User(user) => format!(
                "{user} (uses node '{}' as '{}' child)",
                node.name(),
                self.name
            ),
        }
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge")
            .field("parent", &self.parent)
            .field("name", &self.name)
            .field("node", &self.node().name())
            .finish()
    }
}
