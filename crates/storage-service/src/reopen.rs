//! `blockdev-reopen`: other options for nodes that are in use.
//!
//! A node is never changed. For each one a new instance of its driver is opened with the new
//! options while the old one rests, and all of them change places at once; whatever fails on the
//! way leaves the old ones where they are.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use api::{
    BlockdevOptions, BlockdevOptionsBranch, BlockdevOptionsFile, BlockdevOptionsQcow2, BlockdevRef,
    BlockdevRefOrNull, QmpError, ToQapi,
};
use block_drivers::{FileDriver, HostProtocol, RawDriver};
use block_graph::{
    BlockErrorKind, ChildRole, Driver, Edge, InFlight, Node, ParentName, Replacement,
};
use block_qcow2::{Children, ImageHeader, Qcow2};
use indexmap::IndexMap;
use serde_json::Value;

use crate::open::{
    Inherited, Settings, file_options, graph_words, keep_caches_clean, open_null, raw_window, words,
};
use crate::qcow2_options::open_options;
use crate::service::Inner;

/// Members of `BlockdevOptions` that may change for every driver.
const CHANGEABLE: [&str; 5] = [
    "read-only",
    "auto-read-only",
    "cache",
    "discard",
    "detect-zeroes",
];

/// Members that name children, or the node itself, and have rules of their own.
const APART: [&str; 4] = ["node-name", "file", "backing", "data-file"];

/// Members that may change for one driver.
fn changeable_for(driver: &str) -> &'static [&'static str] {
    match driver {
        "raw" => &["offset", "size"],
        "qcow2" => &[
            "lazy-refcounts",
            "pass-discard-request",
            "pass-discard-snapshot",
            "pass-discard-other",
            "discard-no-unref",
            "overlap-check",
            "cache-size",
            "l2-cache-size",
            "l2-cache-entry-size",
            "refcount-cache-size",
            "cache-clean-interval",
        ],
        _ => &[],
    }
}

/// One node that is to be opened anew.
struct Step {
    old: Arc<Node>,
    options: BlockdevOptions,
    settings: Settings,
    /// The children to be, by their names in the parent.
    children: IndexMap<&'static str, Child>,
}

/// A child of a node that is opened anew.
enum Child {
    /// The one that is there. It may be opened anew itself.
    Kept(Arc<Edge>),
    /// Another node.
    New(Arc<Node>, ChildRole),
}

impl Child {
    fn node(&self) -> Arc<Node> {
        match self {
            Self::Kept(edge) => edge.node_arc(),
            Self::New(node, _) => Arc::clone(node),
        }
    }
}

/// What the options say of a child.
enum Wanted {
    Unsaid,
    None,
    Node(String),
    Options(Box<BlockdevOptions>),
}

impl From<BlockdevRef> for Wanted {
    fn from(reference: BlockdevRef) -> Self {
        match reference {
            BlockdevRef::Reference(name) => Self::Node(name),
            BlockdevRef::Definition(options) => Self::Options(options),
        }
    }
}

impl From<BlockdevRefOrNull> for Wanted {
    fn from(reference: BlockdevRefOrNull) -> Self {
        match reference {
            BlockdevRefOrNull::Null(_) => Self::None,
            BlockdevRefOrNull::Reference(name) if name.is_empty() => Self::None,
            BlockdevRefOrNull::Reference(name) => Self::Node(name),
            BlockdevRefOrNull::Definition(options) => Self::Options(options),
        }
    }
}

fn cannot_change(option: &str) -> QmpError {
    QmpError::generic(format!("Cannot change the option '{option}'"))
}

fn cycle(child: &Node, name: &str, parent: &Node) -> QmpError {
    QmpError::generic(format!(
        "Making '{}' a {name} child of '{}' would create a cycle",
        child.name(),
        parent.name()
    ))
}

/// Refuses options that cannot be given anew: those that differ from what the node was opened
/// with, and those that are left out now.
fn check_unchanged(old: &Node, new: &Value) -> Result<(), QmpError> {
    let (Some(before), Some(now)) = (old.options().given.as_object(), new.as_object()) else {
        return Ok(());
    };
    let of_driver = changeable_for(old.driver().name());
    let fixed = |name: &str| {
        !CHANGEABLE.contains(&name) && !APART.contains(&name) && !of_driver.contains(&name)
    };
    let lost = before
        .keys()
        .find(|name| fixed(name) && !now.contains_key(*name));
    if let Some(name) = lost {
        return Err(QmpError::generic(format!(
            "Option '{name}' cannot be reset to its default value"
        )));
    }
    let changed = now
        .iter()
        .find(|(name, value)| fixed(name) && before.get(*name) != Some(value));
    if let Some((name, _)) = changed {
        return Err(cannot_change(name));
    }
    match now.get("node-name") {
        Some(name) if name != old.name() => Err(cannot_change("node-name")),
        _ => Ok(()),
    }
}

/// Whether an image names a backing file of its own.
fn names_backing(node: &Node) -> bool {
    node.driver().info().backing_file.is_some()
}

/// The nodes that are to be opened anew.
struct Plan<'a> {
    inner: &'a Inner,
    steps: IndexMap<String, Step>,
}

impl Plan<'_> {
    /// Takes in a node that the client names.
    fn add(&mut self, options: BlockdevOptions) -> Result<(), QmpError> {
        let Some(name) = &options.node_name else {
            return Err(QmpError::generic("node-name not specified"));
        };
        let node = self.inner.graph.node(name).map_err(|_| {
            QmpError::generic(format!("Failed to find node with node-name='{name}'"))
        })?;
        self.add_changed(&node, options, Inherited::TOP)
    }

    /// A node for which all options were given anew.
    fn add_changed(
        &mut self,
        node: &Arc<Node>,
        options: BlockdevOptions,
        inherited: Inherited,
    ) -> Result<(), QmpError> {
        let given = options.to_qapi();
        let has_backing = node.driver().backing_edge().is_some() || names_backing(node);
        if has_backing && given.get("backing").is_none() {
            return Err(QmpError::generic(format!(
                "backing is missing for '{}'",
                node.name()
            )));
        }
        check_unchanged(node, &given)?;
        let wanted = match &options.driver {
            BlockdevOptionsBranch::Raw(raw) => vec![("file", raw.file.clone().into())],
            BlockdevOptionsBranch::Qcow2(qcow2) => wanted_of_qcow2(qcow2),
            _ => Vec::new(),
        };
        self.add_step(node, options, inherited, wanted)
    }

    /// A node that keeps the options it was given, below a parent that hands down others.
    fn add_kept(&mut self, node: &Arc<Node>, inherited: Inherited) -> Result<(), QmpError> {
        let options: BlockdevOptions = api::from_json(node.options().given.clone())?;
        let children = node.driver().children();
        let wanted = children
            .iter()
            .filter_map(|edge| {
                let name = ["file", "backing", "data-file"]
                    .into_iter()
                    .find(|name| *name == edge.name())?;
                Some((name, Wanted::Node(edge.node().name().to_owned())))
            })
            .collect();
        self.add_step(node, options, inherited, wanted)
    }

    fn add_step(
        &mut self,
        node: &Arc<Node>,
        options: BlockdevOptions,
        inherited: Inherited,
        wanted: Vec<(&'static str, Wanted)>,
    ) -> Result<(), QmpError> {
        let settings = Settings::of(&options, inherited)?;
        let mut children = IndexMap::new();
        for (name, wanted) in wanted {
            if let Some(child) = self.child(node, &settings, name, wanted)? {
                children.insert(name, child);
            }
        }
        let step = Step {
            old: Arc::clone(node),
            options,
            settings,
            children,
        };
        self.steps.insert(node.name().to_owned(), step);
        Ok(())
    }

    fn child(
        &mut self,
        parent: &Arc<Node>,
        settings: &Settings,
        name: &'static str,
        wanted: Wanted,
    ) -> Result<Option<Child>, QmpError> {
        let edges = parent.driver().children();
        let current = edges.into_iter().find(|edge| edge.name() == name);
        let below = match name {
            "backing" => settings.below_backing(),
            _ => settings.below(),
        };
        let opened_with = current
            .as_ref()
            .is_some_and(|edge| self.was_opened_with(parent, &edge.node()));
        match (wanted, current) {
            (Wanted::Node(node), Some(edge)) if edge.node().name() == node => {
                if opened_with {
                    self.add_kept(&edge.node_arc(), below)?;
                }
                Ok(Some(Child::Kept(edge)))
            }
            (Wanted::Node(_), _) if name == "data-file" => Err(cannot_change(name)),
            (Wanted::Node(node), _) => self.other_child(parent, name, &node).map(Some),
            (Wanted::Options(options), Some(edge)) if opened_with => {
                self.add_changed(&edge.node_arc(), *options, below)?;
                Ok(Some(Child::Kept(edge)))
            }
            (Wanted::Options(_), _) => Err(cannot_change(&format!("{name}.driver"))),
            // The image itself names the data file, so that is its default.
            (Wanted::Unsaid, Some(edge)) if opened_with => {
                self.add_kept(&edge.node_arc(), below)?;
                Ok(Some(Child::Kept(edge)))
            }
            (Wanted::Unsaid, Some(_)) => Err(QmpError::generic(format!(
                "Option '{name}' cannot be reset to its default value"
            ))),
            (Wanted::None | Wanted::Unsaid, _) => Ok(None),
        }
    }

    fn other_child(
        &self,
        parent: &Arc<Node>,
        name: &'static str,
        node: &str,
    ) -> Result<Child, QmpError> {
        let found = self.inner.graph.node(node);
        let node = found.map_err(|error| QmpError::generic(error.to_string()))?;
        if node.reaches(parent) {
            return Err(cycle(&node, name, parent));
        }
        let role = match name {
            "backing" => ChildRole::Backing,
            _ => ChildRole::Image,
        };
        Ok(Child::New(node, role))
    }

    /// The nodes below `node` as the plan has them.
    fn below(&self, node: &Arc<Node>) -> Vec<Arc<Node>> {
        match self.steps.get(node.name()) {
            Some(step) => step.children.values().map(Child::node).collect(),
            None => {
                let edges = node.driver().children();
                edges.iter().map(|edge| edge.node_arc()).collect()
            }
        }
    }

    /// Refuses what would be a cycle only together: each of two nodes below the other.
    fn check_cycles(&self) -> Result<(), QmpError> {
        for step in self.steps.values() {
            for (name, child) in &step.children {
                let Child::New(child, _) = child else {
                    continue;
                };
                let mut seen = HashSet::new();
                let mut waiting = vec![Arc::clone(child)];
                while let Some(node) = waiting.pop() {
                    if node.name() == step.old.name() {
                        return Err(cycle(child, name, &step.old));
                    }
                    if seen.insert(node.name().to_owned()) {
                        waiting.extend(self.below(&node));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether `child` was opened along with `parent` and not by a client on its own.
    fn was_opened_with(&self, parent: &Node, child: &Node) -> bool {
        if self.inner.owned.lock().contains(child.name()) {
            return false;
        }
        let parents = child.parents();
        let first = parents.first().map(|edge| edge.parent());
        matches!(first, Some(ParentName::Node(name)) if name == parent.name())
    }
}

fn wanted_of_qcow2(options: &BlockdevOptionsQcow2) -> Vec<(&'static str, Wanted)> {
    let backing = options.backing.clone();
    let data_file = options.data_file.clone();
    vec![
        ("file", options.file.clone().into()),
        ("backing", backing.map_or(Wanted::None, Wanted::from)),
        ("data-file", data_file.map_or(Wanted::Unsaid, Wanted::from)),
    ]
}

impl Inner {
    /// Opens nodes anew with other options: all of them, or none.
    pub(crate) async fn reopen_nodes(
        self: &Arc<Self>,
        all: Vec<BlockdevOptions>,
    ) -> Result<(), QmpError> {
        let mut plan = Plan {
            inner: self,
            steps: IndexMap::new(),
        };
        for options in all {
            plan.add(options)?;
        }
        plan.check_cycles()?;
        let steps: Vec<_> = plan.steps.into_values().collect();
        let in_use = |step: &&Step| self.graph.has_user_beyond_drain(&step.old);
        if let Some(step) = steps.iter().find(in_use) {
            return Err(QmpError::generic(format!(
                "Node '{}' is busy: block device is in use by block job: create",
                step.old.name()
            )));
        }
        let mut drained = Vec::new();
        for step in &steps {
            drained.push(self.graph.drain(&step.old, None).await);
        }
        let inner = Arc::clone(self);
        let done = self.data_side.spawn(move || exchange(inner, steps)).await;
        let left = done.map_err(|error| QmpError::generic(error.to_string()))??;
        drop(drained);
        for node in left {
            let owned = self.owned.lock().contains(node.name());
            if !owned && node.parents().is_empty() {
                self.release(node).await;
            }
        }
        Ok(())
    }
}

/// Does it, on the data side, and tells which nodes have lost a parent.
async fn exchange(inner: Arc<Inner>, steps: Vec<Step>) -> Result<Vec<Arc<Node>>, QmpError> {
    let old: Vec<_> = steps.iter().map(|step| Arc::clone(&step.old)).collect();
    let result = try_exchange(&inner, steps).await;
    if result.is_err() {
        for node in old.iter().filter(|node| !node.is_read_only()) {
            // What was found to be corrupt before has been told before.
            if let Err(error) = node.driver().activate().await
                && error.kind != BlockErrorKind::Corrupt
            {
                tracing::error!(%error, node = node.name(), "cannot go on with a node as it was");
            }
        }
    }
    result
}

async fn try_exchange(inner: &Arc<Inner>, steps: Vec<Step>) -> Result<Vec<Arc<Node>>, QmpError> {
    for step in &steps {
        step.old.in_flight().idle().await;
        let closed = step.old.driver().close().await;
        closed.map_err(|error| words(&error))?;
    }
    let mut replacements = Vec::new();
    for step in steps {
        let old = Arc::clone(&step.old);
        let new = step.open(inner).await?;
        new.follow(&old);
        replacements.push(Replacement { old, new });
    }
    let replaced = inner.graph.replace_nodes(&replacements);
    replaced.map_err(|error| graph_words(&error))?;
    let left = replacements.iter().flat_map(Replacement::ended_edges);
    let left = left.map(|edge| edge.node_arc()).collect();
    for one in replacements.iter().filter(|one| !one.new.is_read_only()) {
        if let Err(error) = one.new.driver().activate().await {
            go_back(inner, &replacements);
            return Err(words(&error));
        }
    }
    Ok(left)
}

/// Puts the old nodes back. They were there a moment ago, so nothing stands in their way but,
/// perhaps, another process.
fn go_back(inner: &Inner, replacements: &[Replacement]) {
    let back: Vec<_> = replacements.iter().map(Replacement::reversed).collect();
    if let Err(error) = inner.graph.replace_nodes(&back) {
        tracing::error!(%error, "cannot put nodes back as they were");
    }
}

impl Step {
    /// Opens the new instance.
    async fn open(self, inner: &Inner) -> Result<Arc<Node>, QmpError> {
        let Self {
            old,
            options,
            settings,
            children,
        } = self;
        let edge = |name: &str| -> Option<Arc<Edge>> {
            Some(match children.get(name)? {
                Child::Kept(edge) => Arc::clone(edge),
                Child::New(node, role) => {
                    let parent = ParentName::Node(old.name().to_owned());
                    inner.graph.loose_edge(parent, name, *role, node)
                }
            })
        };
        let file_edge = || edge("file").ok_or_else(|| QmpError::generic("'file' is required"));
        let in_flight = Arc::<InFlight>::default();
        let driver: Box<dyn Driver> = match options.driver {
            BlockdevOptionsBranch::File(file) => {
                reopen_file(&old, HostProtocol::File, *file, &settings).await?
            }
            BlockdevOptionsBranch::HostDevice(file) => {
                reopen_file(&old, HostProtocol::HostDevice, *file, &settings).await?
            }
            BlockdevOptionsBranch::NullCo(null) => open_null("null-co", &null)?,
            BlockdevOptionsBranch::NullAio(null) => open_null("null-aio", &null)?,
            BlockdevOptionsBranch::Raw(raw) => {
                let window = raw_window(raw.offset, raw.size)?;
                Box::new(RawDriver::new(file_edge()?, window).map_err(|error| words(&error))?)
            }
            BlockdevOptionsBranch::Qcow2(qcow2) => {
                let below = Children {
                    file: file_edge()?,
                    data_file: edge("data-file"),
                    backing: edge("backing"),
                };
                let in_flight = Arc::clone(&in_flight);
                reopen_qcow2(inner, old.name(), &qcow2, &settings, below, in_flight).await?
            }
        };
        let name = old.name().to_owned();
        let read_only = settings.read_only;
        let node = Node::new(name, driver, settings.node_options, read_only, in_flight);
        keep_caches_clean(&node, settings.clean_interval);
        Ok(node)
    }
}

async fn reopen_file(
    old: &Arc<Node>,
    protocol: HostProtocol,
    options: BlockdevOptionsFile,
    settings: &Settings,
) -> Result<Box<dyn Driver>, QmpError> {
    let options = file_options(protocol, options, settings)?;
    let old = Arc::clone(old);
    let reopened = host_io::blocking(move || {
        let driver: &dyn Any = old.driver();
        driver
            .downcast_ref::<FileDriver>()
            .map(|driver| driver.reopen(options))
    });
    let reopened = reopened.await;
    match reopened.map_err(|error| QmpError::generic(error.to_string()))? {
        Some(Ok(driver)) => Ok(Box::new(driver)),
        Some(Err(error)) => Err(words(&error)),
        None => Err(cannot_change("driver")),
    }
}

async fn reopen_qcow2(
    inner: &Inner,
    name: &str,
    options: &BlockdevOptionsQcow2,
    settings: &Settings,
    children: Children,
    in_flight: Arc<InFlight>,
) -> Result<Box<dyn Driver>, QmpError> {
    let unmap = settings.node_options.discard_unmap;
    let open = open_options(options, settings.read_only, unmap)?;
    let header = ImageHeader::read(&children.file).await;
    let header = header.map_err(|error| words(&error))?;
    let events = Arc::clone(&inner.block_events);
    let opened = Qcow2::open(header, children, open, name, in_flight, events).await;
    Ok(Box::new(opened.map_err(|error| words(&error))?))
}
