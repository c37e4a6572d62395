//! A user's way into a graph of one node.

use std::sync::Arc;

use block_graph::{
    BlockBackend, Driver, Graph, InFlight, Node, NodeOptions, Permission, Permissions,
};

/// A backend over a node `disk` of its own, alone in its graph; without `is_writable` the node is read-only.
///
/// # Panics
/// If the graph refuses, which it has no reason to.
#[expect(clippy::expect_used, reason = "a double for tests")]
pub fn backend(
    driver: Box<dyn Driver>,
    options: NodeOptions,
    is_writable: bool,
) -> Arc<BlockBackend> {
    let graph = Graph::default();
    let counter = Arc::<InFlight>::default();
    let node = Node::new("disk".to_owned(), driver, options, !is_writable, counter);
    let place = graph.reserve_place();
    graph
        .insert(place, Arc::clone(&node))
        .expect("an empty graph takes a node");
    let mut required = Permission::CONSISTENT_READ;
    required.set(Permission::WRITE, is_writable);
    let asked = Permissions {
        required,
        shared: Permission::all(),
    };
    graph
        .attach_backend("a device", &node, asked)
        .expect("a node without users gives every permission it has")
}
