//! The graph: permissions, replacing, draining, and what is counted and locked for requests.

mod draining;
mod permissions;
mod replacing;
mod turns;

use std::path::Path;
use std::sync::Arc;

use block_drivers::{
    FileDriver, FileOptions, HostOpener, HostProtocol, NullDriver, NullOptions, RawDriver,
    RawOptions,
};
use block_graph::{
    BlockBackend, ChildRole, Driver, Edge, Graph, GraphError, Node, NodeOptions, ParentName,
    Permission, Permissions,
};

const READ: Permission = Permission::CONSISTENT_READ;
const WRITE: Permission = Permission::WRITE;
const RESIZE: Permission = Permission::RESIZE;

fn asks(required: Permission, shared: Permission) -> Permissions {
    Permissions { required, shared }
}

/// Needs to write and lets everybody do everything.
fn easy_writer() -> Permissions {
    asks(READ | WRITE, Permission::all())
}

fn new_node(name: &str, driver: impl Driver, read_only: bool) -> Arc<Node> {
    let options = NodeOptions::default();
    let driver = Box::new(driver);
    Node::new(name.to_owned(), driver, options, read_only, Arc::default())
}

fn null(name: &str, read_only: bool) -> Arc<Node> {
    let driver = NullDriver::new(NullOptions {
        name: "null-co",
        size: 1 << 20,
        latency_ns: 0,
        read_zeroes: true,
    });
    new_node(name, driver, read_only)
}

fn file_options(path: &Path, read_only: bool) -> FileOptions {
    FileOptions {
        protocol: HostProtocol::File,
        filename: path.display().to_string(),
        read_only,
        auto_read_only: false,
        direct: false,
        locking: true,
    }
}

fn file(name: &str, path: &Path, read_only: bool) -> Arc<Node> {
    let driver = FileDriver::open(file_options(path, read_only), Arc::new(HostOpener));
    new_node(name, driver.unwrap(), read_only)
}

/// The same file under the same name, sharing its locks.
fn reopened(node: &Node, path: &Path, read_only: bool) -> Arc<Node> {
    let driver: &dyn std::any::Any = node.driver();
    let driver: &FileDriver = driver.downcast_ref().unwrap();
    let driver = driver.reopen(file_options(path, read_only)).unwrap();
    new_node(node.name(), driver, read_only)
}

fn raw_over(name: &str, edge: Arc<Edge>, window: bool, read_only: bool) -> Arc<Node> {
    let options = RawOptions {
        offset: 0,
        size: window.then_some(512),
    };
    new_node(name, RawDriver::new(edge, options).unwrap(), read_only)
}

fn insert(graph: &Graph, node: &Arc<Node>) {
    let place = graph.reserve_place();
    graph.insert(place, Arc::clone(node)).unwrap();
}

fn file_edge(graph: &Graph, parent: &str, child: &Arc<Node>) -> Result<Arc<Edge>, GraphError> {
    let parent = ParentName::Node(parent.to_owned());
    graph.attach(parent, "file", ChildRole::Image, child, Permissions::NONE)
}

/// A raw node over `child`, in the graph; with a window it lets nobody resize the child.
fn raw(graph: &Graph, name: &str, child: &Arc<Node>, window: bool) -> Arc<Node> {
    let edge = file_edge(graph, name, child).unwrap();
    let node = raw_over(name, edge, window, false);
    insert(graph, &node);
    node
}

fn user(
    graph: &Graph,
    name: &str,
    node: &Arc<Node>,
    asked: Permissions,
) -> Result<Arc<BlockBackend>, GraphError> {
    graph.attach_backend(name, node, asked)
}

/// Everything that a refused change must leave as it was, in words.
fn picture(graph: &Graph, also: &[&Arc<Node>]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for node in graph.nodes().iter().chain(also.iter().copied()) {
        let read_only = node.is_read_only();
        writeln!(text, "{:p} {} {read_only}", Arc::as_ptr(node), node.name()).unwrap();
        for (way, edges) in [("up", node.parents()), ("down", node.driver().children())] {
            for edge in edges {
                writeln!(
                    text,
                    "  {way} {:p} {:?} -> {:p} asks {:?}",
                    Arc::as_ptr(&edge),
                    edge.parent(),
                    Arc::as_ptr(&edge.node_arc()),
                    edge.permissions()
                )
                .unwrap();
            }
        }
    }
    text
}

/// What another process could still have of a file: each permission, and each refusal of it.
fn locks_of(path: &Path) -> Vec<bool> {
    let mut free = Vec::new();
    for permission in [READ, WRITE, RESIZE] {
        for asked in [
            asks(permission, Permission::all()),
            asks(Permission::empty(), Permission::all() - permission),
        ] {
            let graph = Graph::default();
            let probe = file("probe", path, false);
            let backend = user(&graph, "a probe", &probe, asked);
            free.push(backend.is_ok());
            if let Ok(backend) = backend {
                graph.detach_backend(&backend);
            }
        }
    }
    free
}

fn temporary() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    (folder, path)
}
