//! The graph: nodes by name, the edges between them, and who may do what.
//!
//! The control side owns it and changes it step by step; each step here is one short critical
//! section. Requests never come here: they hold their edges.

use std::sync::Arc;

use indexmap::IndexMap;
use parking_lot::Mutex;

use crate::backend::BlockBackend;
use crate::edge::{ChildRole, Edge, ParentName};
use crate::error::GraphError;
use crate::node::Node;
use crate::permissions::{Permission, Permissions};

/// The longest node name, in bytes.
pub const MAX_NODE_NAME: usize = 31;

#[derive(Default)]
struct State {
    // With the place in the order of queries.
    nodes: IndexMap<String, (u64, Arc<Node>)>,
    next_place: u64,
    backends: Vec<Arc<BlockBackend>>,
    next_auto_name: u64,
}

/// The block graph of one daemon or machine.
#[derive(Default)]
pub struct Graph {
    state: Mutex<State>,
}

impl Graph {
    /// The node called `name`.
    ///
    /// # Errors
    /// [`GraphError::NoSuchNode`].
    pub fn node(&self, name: &str) -> Result<Arc<Node>, GraphError> {
        let found = self
            .state
            .lock()
            .nodes
            .get(name)
            .map(|(_, node)| Arc::clone(node));
        found.ok_or_else(|| GraphError::NoSuchNode(name.to_owned()))
    }

    /// All nodes, newest first as queries list them.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<_> = self.state.lock().nodes.values().cloned().collect();
        nodes.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// A place in the order of [`Graph::nodes`] for a node whose opening begins now: what it opens
    /// below itself counts as newer.
    pub fn reserve_place(&self) -> u64 {
        let mut state = self.state.lock();
        state.next_place += 1;
        state.next_place
    }

    /// All backends.
    pub fn backends(&self) -> Vec<Arc<BlockBackend>> {
        self.state.lock().backends.clone()
    }

    /// Checks that `name` may be given to a new node.
    ///
    /// # Errors
    /// [`GraphError::InvalidName`], [`GraphError::DuplicateNode`].
    pub fn check_new_name(&self, name: &str) -> Result<(), GraphError> {
        if !api::is_well_formed_id(name) {
            return Err(GraphError::InvalidName(name.to_owned()));
        }
        if name.len() > MAX_NODE_NAME {
            return Err(GraphError::NameTooLong);
        }
        if self.state.lock().nodes.contains_key(name) {
            return Err(GraphError::DuplicateNode(name.to_owned()));
        }
        Ok(())
    }

    /// A name for a node that nobody named: `#block` and a number. No client can choose it.
    pub fn auto_name(&self) -> String {
        let mut state = self.state.lock();
        let number = state.next_auto_name;
        state.next_auto_name += 1;
        format!("#block{number:03}")
    }

    /// Takes a node in, at a place from [`Graph::reserve_place`].
    ///
    /// # Errors
    /// [`GraphError::DuplicateNode`].
    pub fn insert(&self, place: u64, node: Arc<Node>) -> Result<(), GraphError> {
        let mut state = self.state.lock();
        if state.nodes.contains_key(node.name()) {
            return Err(GraphError::DuplicateNode(node.name().to_owned()));
        }
        state.nodes.insert(node.name().to_owned(), (place, node));
        Ok(())
    }

    /// Takes a node out that nobody uses. The caller closes it and detaches its children.
    ///
    /// # Errors
    /// [`GraphError::NoSuchNode`], [`GraphError::InUse`].
    pub fn remove(&self, name: &str) -> Result<Arc<Node>, GraphError> {
        let mut state = self.state.lock();
        let Some((_, node)) = state.nodes.get(name) else {
            return Err(GraphError::NoSuchNode(name.to_owned()));
        };
        if !node.parents().is_empty() {
            return Err(GraphError::InUse(name.to_owned()));
        }
        let node = Arc::clone(node);
        state.nodes.shift_remove(name);
        Ok(node)
    }

    /// Makes an edge from a parent to `node` with `asked` permissions, if nobody else's exclude
    /// them and the driver can take what that needs (a lock that other processes see).
    ///
    /// # Errors
    /// [`GraphError::Conflict`], [`GraphError::ReadOnly`], [`GraphError::Driver`]; nothing has
    /// changed then.
    pub fn attach(
        &self,
        parent: ParentName,
        name: &str,
        role: ChildRole,
        node: &Arc<Node>,
        asked: Permissions,
    ) -> Result<Arc<Edge>, GraphError> {
        let _serialised = self.state.lock();
        let edge = Arc::new(Edge::new(parent, name, role, Arc::clone(node), asked));
        node.add_parent(Arc::clone(&edge));
        if let Err(error) = update_permissions(node) {
            node.remove_parent(&edge);
            restore_permissions(node);
            return Err(error);
        }
        Ok(edge)
    }

    /// Ends an edge; what it had asked for is given up.
    pub fn detach(&self, edge: &Edge) {
        let _serialised = self.state.lock();
        let node = edge.node_arc();
        node.remove_parent(edge);
        restore_permissions(&node);
    }

    /// Changes what an edge's parent asks for.
    ///
    /// # Errors
    /// As [`Graph::attach`]; nothing has changed then.
    pub fn change_permissions(&self, edge: &Edge, asked: Permissions) -> Result<(), GraphError> {
        let _serialised = self.state.lock();
        let before = edge.permissions();
        let node = edge.node_arc();
        edge.set_permissions(asked);
        if let Err(error) = update_permissions(&node) {
            edge.set_permissions(before);
            restore_permissions(&node);
            return Err(error);
        }
        Ok(())
    }

    /// Points an edge at another node. The caller has drained both.
    ///
    /// # Errors
    /// As [`Graph::attach`]; the edge is as before then.
    pub fn replace_child(&self, edge: &Arc<Edge>, node: &Arc<Node>) -> Result<(), GraphError> {
        let _serialised = self.state.lock();
        let before = edge.node_arc();
        before.remove_parent(edge);
        edge.set_node(Arc::clone(node));
        node.add_parent(Arc::clone(edge));
        if let Err(error) = update_permissions(node) {
            node.remove_parent(edge);
            edge.set_node(Arc::clone(&before));
            before.add_parent(Arc::clone(edge));
            restore_permissions(node);
            restore_permissions(&before);
            return Err(error);
        }
        restore_permissions(&before);
        Ok(())
    }

    /// Makes a user's way in: an edge with the role `Root`, and a backend over it.
    ///
    /// # Errors
    /// As [`Graph::attach`].
    pub fn attach_backend(
        &self,
        user: &str,
        node: &Arc<Node>,
        asked: Permissions,
    ) -> Result<Arc<BlockBackend>, GraphError> {
        let parent = ParentName::User(user.to_owned());
        let edge = self.attach(parent, "root", ChildRole::Root, node, asked)?;
        let writable = asked.required.contains(Permission::WRITE);
        let backend = BlockBackend::new(edge, writable);
        self.state.lock().backends.push(Arc::clone(&backend));
        Ok(backend)
    }

    /// Ends a user's way in. The caller has seen to it that no request is under way.
    pub fn detach_backend(&self, backend: &Arc<BlockBackend>) {
        self.state
            .lock()
            .backends
            .retain(|known| !Arc::ptr_eq(known, backend));
        self.detach(backend.edge());
    }

    /// Holds off all requests that could reach `node` but those of `except`, waits for those
    /// under way, and lets them go on when the guard is dropped.
    pub async fn drain(&self, node: &Arc<Node>, except: Option<&Arc<BlockBackend>>) -> Drained {
        let backends: Vec<_> = self
            .backends()
            .into_iter()
            .filter(|backend| !except.is_some_and(|except| Arc::ptr_eq(except, backend)))
            .filter(|backend| reaches(&backend.edge().node_arc(), node))
            .collect();
        for backend in &backends {
            backend.close_gate();
        }
        let drained = Drained { backends };
        for backend in &drained.backends {
            backend.idle().await;
        }
        drained
    }
}

/// A drained part of the graph; requests go on when it is dropped.
#[must_use]
pub struct Drained {
    backends: Vec<Arc<BlockBackend>>,
}

impl Drop for Drained {
    fn drop(&mut self) {
        for backend in &self.backends {
            backend.open_gate();
        }
    }
}

/// Whether `target` is `from` or lies below it.
fn reaches(from: &Arc<Node>, target: &Arc<Node>) -> bool {
    Arc::ptr_eq(from, target)
        || from
            .driver()
            .children()
            .iter()
            .any(|edge| reaches(&edge.node_arc(), target))
}

/// What all parents of a node together ask of it.
fn asked_of(node: &Node) -> Permissions {
    node.parents()
        .iter()
        .fold(Permissions::NONE, |sum, edge| sum.and(edge.permissions()))
}

/// What a node asks of one of its children, given what its own parents ask of it.
fn child_permissions(node: &Node, edge: &Edge, asked: Permissions) -> Permissions {
    let mut child_asked = node.driver().child_permissions(edge, asked);
    if node.options().force_share {
        child_asked.shared = Permission::all();
    }
    child_asked
}

/// Brings a node and everything below it in line with what its parents ask.
///
/// Lower nodes may be left half way on an error; `restore_permissions` puts them right.
fn update_permissions(node: &Arc<Node>) -> Result<(), GraphError> {
    check_conflicts(node)?;
    let asked = asked_of(node);
    let writes = Permission::WRITE | Permission::RESIZE;
    if node.is_read_only() && asked.required.intersects(writes) {
        return Err(GraphError::ReadOnly);
    }
    node.driver()
        .permissions_wanted(asked)
        .map_err(GraphError::Driver)?;
    for edge in node.driver().children() {
        let child_asked = child_permissions(node, &edge, asked);
        if child_asked != edge.permissions() {
            edge.set_permissions(child_asked);
            update_permissions(&edge.node_arc())?;
        }
    }
    node.driver().permissions_settled(asked);
    Ok(())
}

/// Gives up what nobody asks for any more. Asking for less cannot conflict.
fn restore_permissions(node: &Arc<Node>) {
    let asked = asked_of(node);
    for edge in node.driver().children() {
        let child_asked = child_permissions(node, &edge, asked);
        edge.set_permissions(child_asked);
        restore_permissions(&edge.node_arc());
    }
    node.driver().permissions_settled(asked);
}

/// Finds two parents of which one needs what the other refuses.
///
/// The newest parent brought the conflict. Like QEMU, messages name a new user outside the graph
/// for what it needs, and a new node for what it refuses.
fn check_conflicts(node: &Node) -> Result<(), GraphError> {
    let parents = node.parents();
    for (index, newer) in parents.iter().enumerate().rev() {
        for older in parents.iter().take(index).rev() {
            let pairs = match newer.role() {
                ChildRole::Root => [(newer, older), (older, newer)],
                _ => [(older, newer), (newer, older)],
            };
            for (needs, refuses) in pairs {
                check_pair(node, needs, refuses)?;
            }
        }
    }
    Ok(())
}

fn check_pair(node: &Node, needs: &Edge, refuses: &Edge) -> Result<(), GraphError> {
    let clash = needs.permissions().required - refuses.permissions().shared;
    if clash.is_empty() {
        return Ok(());
    }
    Err(GraphError::Conflict {
        node: node.name().to_owned(),
        permissions: clash.to_string(),
        required_by: needs.describe(),
        unshared_by: refuses.describe(),
    })
}
