//! `blockdev-add`, `-del`, `-reopen` and `block_resize`.

use std::sync::Arc;

use api::{
    BlockResizeArgs, BlockdevCommands, BlockdevDelArgs, BlockdevOptions, BlockdevReopenArgs,
    QmpError,
};
use block_graph::{
    ChildRole, GraphError, MAX_LENGTH_BYTES, Node, ParentName, Permission, Permissions,
    Preallocation,
};
use monitor::Caller;

use crate::open::{graph_words, open_node};
use crate::service::{Handlers, Inner};

impl Inner {
    /// Opens a node for a client or the command line.
    pub(crate) async fn add_node(
        self: &Arc<Self>,
        options: BlockdevOptions,
    ) -> Result<(), QmpError> {
        let Some(name) = options.node_name.clone() else {
            return Err(QmpError::generic(
                "'node-name' must be specified for the root node",
            ));
        };
        let inner = Arc::clone(self);
        self.sequence
            .run(async move {
                let opening = Arc::clone(&inner);
                let opened = inner
                    .data_side
                    .spawn(move || open_node(opening, options))
                    .await;
                opened.map_err(|error| QmpError::generic(error.to_string()))??;
                inner.owned.lock().insert(name);
                Ok(())
            })
            .await
    }

    /// Removes a node and whatever below it nobody else uses.
    async fn remove_node(self: &Arc<Self>, name: &str) -> Result<(), QmpError> {
        let not_found =
            || QmpError::generic(format!("Failed to find node with node-name='{name}'"));
        let node = self.graph.node(name).map_err(|_| not_found())?;
        let parents = node.parents();
        if parents.iter().any(|edge| edge.role() == ChildRole::Root) {
            return Err(QmpError::generic(format!("Node {name} is in use")));
        }
        check_not_backing(&node)?;
        if !self.owned.lock().contains(name) {
            return Err(QmpError::generic(format!(
                "Node {name} is not owned by the monitor"
            )));
        }
        if !parents.is_empty() {
            return Err(QmpError::generic(format!("Block device {name} is in use")));
        }
        self.owned.lock().remove(name);
        self.release(node).await;
        Ok(())
    }

    /// Closes a node that has no parents, and the children that had only it.
    pub(crate) async fn release(self: &Arc<Self>, top: Arc<Node>) {
        let mut released = vec![top];
        while let Some(node) = released.pop() {
            if self.graph.remove(node.name()).is_err() {
                continue;
            }
            let closing = Arc::clone(&node);
            let closed = self
                .data_side
                .spawn(move || async move { closing.driver().close().await })
                .await;
            match closed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, node = node.name(), "closing a node failed");
                }
                Err(error) => tracing::error!(%error, node = node.name(), "closing a node failed"),
            }
            for edge in node.driver().children() {
                let child = edge.node_arc();
                self.graph.detach(&edge);
                let owned = self.owned.lock().contains(child.name());
                if !owned && child.parents().is_empty() {
                    released.push(child);
                }
            }
        }
    }

    /// Closes every node, parents before children.
    pub(crate) async fn close_all_nodes(self: &Arc<Self>) {
        self.owned.lock().clear();
        loop {
            let top = self
                .graph
                .nodes()
                .into_iter()
                .find(|node| node.parents().is_empty());
            let Some(top) = top else { return };
            self.release(top).await;
        }
    }

    /// The node behind a machine's device, by the name of its drive, its id or its path.
    fn node_of_device(&self, device: &str) -> Option<Arc<Node>> {
        let backends = self.graph.backends();
        let backend = backends.iter().find(|backend| {
            let frontend = backend.frontend();
            frontend.is_some_and(|it| it.device_name() == device || it.qdev() == device)
        })?;
        Some(backend.edge().node_arc())
    }

    async fn resize(self: &Arc<Self>, arguments: BlockResizeArgs) -> Result<(), QmpError> {
        let by_name = arguments.node_name.as_deref();
        let by_device = arguments.device.as_deref();
        let found = match by_name.map(|name| self.graph.node(name)) {
            Some(found) => found.ok(),
            None => by_device.and_then(|device| self.node_of_device(device)),
        };
        let Some(node) = found else {
            return Err(QmpError::generic(format!(
                "Cannot find device='{}' nor node-name='{}'",
                arguments.device.unwrap_or_default(),
                arguments.node_name.unwrap_or_default()
            )));
        };
        let Ok(size) = u64::try_from(arguments.size) else {
            return Err(QmpError::generic("Parameter 'size' expects a >0 size"));
        };
        if size > MAX_LENGTH_BYTES {
            return Err(QmpError::generic(format!(
                "offset({size}) exceeds maximum({MAX_LENGTH_BYTES})"
            )));
        }
        check_not_backing(&node)?;
        let asked = Permissions {
            required: Permission::RESIZE,
            shared: Permission::all(),
        };
        let backend = self
            .graph
            .attach_backend("an unnamed block device", &node, asked)
            .map_err(|error| match error {
                GraphError::ReadOnly => QmpError::generic("Image is read-only"),
                other => graph_words(&other),
            })?;
        let drained = self.graph.drain(&node, Some(&backend)).await;
        let resizing = Arc::clone(&backend);
        let resized = self
            .data_side
            .spawn(move || async move { resizing.resize(size, false, Preallocation::Off).await })
            .await;
        drop(drained);
        self.graph.detach_backend(&backend);
        match resized {
            Ok(Ok(())) => {
                self.graph.tell_length_changed();
                Ok(())
            }
            Ok(Err(error)) => Err(QmpError::generic(error.message)),
            Err(error) => Err(QmpError::generic(error.to_string())),
        }
    }

    pub(crate) async fn resize_in_turn(
        self: &Arc<Self>,
        arguments: BlockResizeArgs,
    ) -> Result<(), QmpError> {
        let inner = Arc::clone(self);
        self.sequence
            .run(async move { inner.resize(arguments).await })
            .await
    }
}

/// Refuses what would pull the ground from under an overlay.
fn check_not_backing(node: &Node) -> Result<(), QmpError> {
    let parents = node.parents();
    let backing = parents
        .iter()
        .find(|edge| edge.role() == ChildRole::Backing);
    match backing.map(|edge| edge.parent()) {
        Some(ParentName::Node(parent)) => Err(QmpError::generic(format!(
            "Node '{}' is busy: node is used as backing hd of '{parent}'",
            node.name()
        ))),
        _ => Ok(()),
    }
}

impl BlockdevCommands<Caller> for Handlers {
    async fn blockdev_add(
        &self,
        _caller: Arc<Caller>,
        options: BlockdevOptions,
    ) -> Result<(), QmpError> {
        self.inner.add_node(options).await
    }

    async fn blockdev_reopen(
        &self,
        _caller: Arc<Caller>,
        arguments: BlockdevReopenArgs,
    ) -> Result<(), QmpError> {
        let inner = Arc::clone(&self.inner);
        self.inner
            .sequence
            .run(async move { inner.reopen_nodes(arguments.options).await })
            .await
    }

    async fn blockdev_del(
        &self,
        _caller: Arc<Caller>,
        arguments: BlockdevDelArgs,
    ) -> Result<(), QmpError> {
        let inner = Arc::clone(&self.inner);
        let name = arguments.node_name;
        self.inner
            .sequence
            .run(async move { inner.remove_node(&name).await })
            .await
    }
}
