//! Nodes over the drivers here, where their own files do not test them.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block_graph::{InFlight, Node, NodeOptions, WriteFlags};
use host_io::{Engine, Executor, IoBytes};

use crate::{FileDriver, FileOptions, HostOpener, HostProtocol};

fn file_node(path: &std::path::Path) -> Arc<Node> {
    let options = FileOptions {
        protocol: HostProtocol::File,
        filename: path.display().to_string(),
        read_only: false,
        auto_read_only: false,
        direct: false,
        locking: false,
    };
    let driver = FileDriver::open(options, Arc::new(HostOpener)).unwrap();
    let in_flight = Arc::<InFlight>::default();
    let name = "file".to_owned();
    Node::new(
        name,
        Box::new(driver),
        NodeOptions::default(),
        false,
        in_flight,
    )
}

/// Whoever waits for a node's requests must not go on while the kernel still writes for one that
/// nobody waits for any more.
fn a_dropped_write_counts_until_the_kernel_is_done(engine: Engine) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path().to_owned();
    let executor = Executor::start("test", engine).unwrap();
    let done = executor.handle().spawn(move || async move {
        let node = file_node(&path);
        let data = IoBytes::copy_of(&[7; 4096]);
        let mut write = Box::pin(node.write(0, data, WriteFlags::empty()));
        let polled = write.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending));
        drop(write);
        let before = node.in_flight().count_now();
        node.in_flight().idle().await;
        let written = std::fs::read(&path).unwrap();
        (before, written.first().copied())
    });
    let (before, after) = done.wait().unwrap();
    assert_eq!(before, 1);
    assert_eq!(after, Some(7));
}

#[test]
fn a_dropped_write_counts_until_the_ring_is_done() {
    a_dropped_write_counts_until_the_kernel_is_done(Engine::Uring);
}

#[test]
fn a_dropped_write_counts_until_the_thread_is_done() {
    a_dropped_write_counts_until_the_kernel_is_done(Engine::Threads);
}
