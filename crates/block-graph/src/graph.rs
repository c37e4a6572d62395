//! The graph: nodes by name, the edges between them, and who may do what.
//!
//! The control side owns it and changes it step by step; each step here is one short critical
//! section. Requests never come here: they hold their edges.

use std::collections::HashSet;
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

    /// Takes a node in, at a place from [`Graph::reserve_place`], and lets its driver ask of its
    /// children what it needs while nobody uses it.
    ///
    /// # Errors
    /// [`GraphError::DuplicateNode`]; as [`Graph::attach`] for the children.
    pub fn insert(&self, place: u64, node: Arc<Node>) -> Result<(), GraphError> {
        let mut state = self.state.lock();
        if state.nodes.contains_key(node.name()) {
            return Err(GraphError::DuplicateNode(node.name().to_owned()));
        }
        let roots = [Arc::clone(&node)];
        if let Err(error) = update_permissions(&roots, &[]) {
            restore_permissions(&roots);
            return Err(error);
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
        let roots = [Arc::clone(node)];
        if let Err(error) = update_permissions(&roots, &[]) {
            node.remove_parent(&edge);
            restore_permissions(&roots);
            return Err(error);
        }
        Ok(edge)
    }

    /// An edge for a node that is being made anew: it asks for nothing and does not count as a
    /// user of `node` before [`Graph::replace_nodes`] takes it in.
    pub fn loose_edge(
        &self,
        parent: ParentName,
        name: &str,
        role: ChildRole,
        node: &Arc<Node>,
    ) -> Arc<Edge> {
        Arc::new(Edge::new(
            parent,
            name,
            role,
            Arc::clone(node),
            Permissions::NONE,
        ))
    }

    /// Ends an edge; what it had asked for is given up.
    pub fn detach(&self, edge: &Edge) {
        let _serialised = self.state.lock();
        let node = edge.node_arc();
        node.remove_parent(edge);
        restore_permissions(&[node]);
    }

    /// Changes what an edge's parent asks for.
    ///
    /// # Errors
    /// As [`Graph::attach`]; nothing has changed then.
    pub fn change_permissions(&self, edge: &Edge, asked: Permissions) -> Result<(), GraphError> {
        let _serialised = self.state.lock();
        let before = edge.permissions();
        let roots = [edge.node_arc()];
        edge.set_permissions(asked);
        if let Err(error) = update_permissions(&roots, &[]) {
            edge.set_permissions(before);
            restore_permissions(&roots);
            return Err(error);
        }
        Ok(())
    }

    /// Puts new nodes in the places of old ones with the same names: parents and place in queries
    /// stay. Edges to children that both have stay too, those that only the old node had are
    /// ended, those that only the new one has begin. All or nothing, so that what the nodes ask
    /// of each other is judged by how they will be together.
    ///
    /// The caller has drained all of them, and closes what nobody uses any more.
    ///
    /// # Errors
    /// As [`Graph::attach`], or [`GraphError::ReadOnlyUsers`]; nothing has changed then.
    pub fn replace_nodes(&self, replacements: &[Replacement]) -> Result<(), GraphError> {
        let mut state = self.state.lock();
        let before = Before::of(replacements);
        exchange(&mut state, replacements);
        let roots: Vec<_> = replacements
            .iter()
            .map(|one| Arc::clone(&one.new))
            .collect();
        let updated = update_permissions(&roots, replacements);
        if updated.is_err() {
            before.restore(&mut state, replacements);
        }
        // What nobody asks for any more is given up, but not by a node that is out of the graph
        // now: it may share what it holds (the locks of a file) with the one in its place.
        let mut left = before.below;
        for one in replacements {
            let (gone, stays) = match updated {
                Ok(()) => (&one.old, &one.new),
                Err(_) => (&one.new, &one.old),
            };
            left.retain(|node| !Arc::ptr_eq(node, gone));
            left.push(Arc::clone(stays));
        }
        restore_permissions(&left);
        updated
    }

    /// Guests hear of lengths that have changed; what lies above a node follows it.
    pub fn tell_length_changed(&self) {
        for backend in self.backends() {
            if let Some(frontend) = backend.frontend() {
                frontend.length_changed();
            }
        }
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

    /// Whether somebody outside the graph uses `node`, or what lies above it, in a way that
    /// [`Graph::drain`] cannot hold off: by an edge without a backend, as work does that makes an
    /// image.
    pub fn has_user_beyond_drain(&self, node: &Arc<Node>) -> bool {
        let backends = self.backends();
        let is_beyond = |edge: &Arc<Edge>| {
            edge.role() == ChildRole::Root
                && !backends
                    .iter()
                    .any(|backend| Arc::ptr_eq(backend.edge(), edge))
        };
        self.nodes()
            .iter()
            .filter(|above| above.parents().iter().any(is_beyond))
            .any(|above| above.reaches(node))
    }

    /// Holds off all requests that could reach `node` but those of `except`, waits for those
    /// under way, and lets them go on when the guard is dropped.
    pub async fn drain(&self, node: &Arc<Node>, except: Option<&Arc<BlockBackend>>) -> Drained {
        let backends: Vec<_> = self
            .backends()
            .into_iter()
            .filter(|backend| !except.is_some_and(|except| Arc::ptr_eq(except, backend)))
            .filter(|backend| backend.edge().node_arc().reaches(node))
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

/// `roots` and all that lies below them, parents before their children.
fn with_everything_below(roots: &[Arc<Node>]) -> Vec<Arc<Node>> {
    fn visit(node: &Arc<Node>, found: &mut Vec<Arc<Node>>, seen: &mut HashSet<*const Node>) {
        if !seen.insert(Arc::as_ptr(node)) {
            return;
        }
        for edge in node.driver().children() {
            visit(&edge.node_arc(), found, seen);
        }
        found.push(Arc::clone(node));
    }
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for root in roots {
        visit(root, &mut found, &mut seen);
    }
    found.reverse();
    found
}

/// Lets each of `nodes`, which come parents first, ask of its children what it needs now.
fn ask_children(nodes: &[Arc<Node>]) {
    for node in nodes {
        let asked = asked_of(node);
        for edge in node.driver().children() {
            edge.set_permissions(child_permissions(node, &edge, asked));
        }
    }
}

/// Brings nodes and everything below them in line with what their parents ask.
///
/// On an error more may be asked and held than before; `restore_permissions` puts that right once
/// the cause is taken back.
fn update_permissions(roots: &[Arc<Node>], replacements: &[Replacement]) -> Result<(), GraphError> {
    let nodes = with_everything_below(roots);
    ask_children(&nodes);
    for node in &nodes {
        check_conflicts(node)?;
        let asked = asked_of(node);
        let writes = Permission::WRITE | Permission::RESIZE;
        if node.is_read_only() && asked.required.intersects(writes) {
            let becomes_so = replacements
                .iter()
                .any(|one| Arc::ptr_eq(&one.new, node) && !one.old.is_read_only());
            return Err(if becomes_so {
                GraphError::ReadOnlyUsers(node.name().to_owned())
            } else {
                GraphError::ReadOnly
            });
        }
        node.driver()
            .permissions_wanted(asked)
            .map_err(GraphError::Driver)?;
    }
    settle(&nodes);
    Ok(())
}

fn settle(nodes: &[Arc<Node>]) {
    for node in nodes {
        node.driver().permissions_settled(asked_of(node));
    }
}

/// Gives up what nobody asks for any more. Asking for less cannot conflict.
fn restore_permissions(roots: &[Arc<Node>]) {
    let nodes = with_everything_below(roots);
    ask_children(&nodes);
    settle(&nodes);
}

/// One node in the place of another; see [`Graph::replace_nodes`].
pub struct Replacement {
    /// The node that is in the graph.
    pub old: Arc<Node>,
    /// The node of the same name that is to be there.
    pub new: Arc<Node>,
}

impl Replacement {
    /// The edges that the old node has and the new one has not.
    pub fn ended_edges(&self) -> Vec<Arc<Edge>> {
        let kept = self.new.driver().children();
        let mut edges = self.old.driver().children();
        edges.retain(|edge| !kept.iter().any(|other| Arc::ptr_eq(edge, other)));
        edges
    }

    /// The same the other way round: back to the old node.
    pub fn reversed(&self) -> Self {
        Self {
            old: Arc::clone(&self.new),
            new: Arc::clone(&self.old),
        }
    }
}

/// Which edges led where before nodes were replaced, to go back to exactly that.
struct Before {
    parents: Vec<(Arc<Node>, Vec<Arc<Edge>>)>,
    /// The nodes to which edges that end or begin led.
    below: Vec<Arc<Node>>,
    begun: Vec<(Arc<Edge>, Arc<Node>)>,
}

impl Before {
    fn of(replacements: &[Replacement]) -> Self {
        let begun: Vec<_> = replacements
            .iter()
            .flat_map(|one| one.reversed().ended_edges())
            .map(|edge| (Arc::clone(&edge), edge.node_arc()))
            .collect();
        let mut below: Vec<_> = replacements
            .iter()
            .flat_map(Replacement::ended_edges)
            .map(|edge| edge.node_arc())
            .collect();
        below.extend(begun.iter().map(|(_, node)| Arc::clone(node)));
        let both = replacements.iter().flat_map(|one| [&one.old, &one.new]);
        let parents = both
            .chain(&below)
            .map(|node| (Arc::clone(node), node.parents()))
            .collect();
        Self {
            parents,
            below,
            begun,
        }
    }

    fn restore(&self, state: &mut State, replacements: &[Replacement]) {
        for (node, parents) in &self.parents {
            node.set_parents(parents.clone());
            for edge in parents {
                edge.set_node(Arc::clone(node));
            }
        }
        for (edge, node) in &self.begun {
            edge.set_node(Arc::clone(node));
        }
        for one in replacements {
            if let Some((_, node)) = state.nodes.get_mut(one.old.name()) {
                *node = Arc::clone(&one.old);
            }
        }
    }
}

fn exchange(state: &mut State, replacements: &[Replacement]) {
    // First all edges downwards, so that those that begin at a node that goes away move with the
    // others to the one that takes its place.
    for one in replacements {
        for edge in one.ended_edges() {
            edge.node_arc().remove_parent(&edge);
        }
        for edge in one.reversed().ended_edges() {
            edge.node_arc().add_parent(edge);
        }
    }
    for one in replacements {
        for edge in one.old.take_parents() {
            edge.set_node(Arc::clone(&one.new));
            one.new.add_parent(edge);
        }
        if let Some((_, node)) = state.nodes.get_mut(one.old.name()) {
            *node = Arc::clone(&one.new);
        }
    }
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
