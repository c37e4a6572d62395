//! Draining: requests under way are waited for, new ones wait, and all go on afterwards.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use block_doubles::Storage;
use block_graph::{BlockError, WriteFlags};
use host_io::{Engine, Executor, IoBuf, IoBytes, spawn_local, yield_now};

use super::*;

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let executor = Executor::start("draining", Engine::Threads).unwrap();
    executor.handle().spawn(test).wait().unwrap();
}

/// Polls once; the answer if there is one.
async fn poll_once<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}

async fn some_turns() {
    for _ in 0..20 {
        yield_now().await;
    }
}

struct Scene {
    graph: Graph,
    storage: Storage,
    bottom: Arc<Node>,
    top: Arc<Node>,
    backend: Arc<BlockBackend>,
    beside: Arc<BlockBackend>,
}

/// A backend over raw over storage, and one over something else.
fn scene() -> Scene {
    let graph = Graph::default();
    let storage = Storage::new(vec![0; 65_536]);
    let bottom = new_node("bottom", storage.clone(), false);
    insert(&graph, &bottom);
    let top = raw(&graph, "top", &bottom, false);
    let backend = user(&graph, "a writer", &top, easy_writer()).unwrap();
    let other = null("other", false);
    let beside = user(&graph, "another", &other, easy_writer()).unwrap();
    Scene {
        graph,
        storage,
        bottom,
        top,
        backend,
        beside,
    }
}

async fn write(backend: &BlockBackend, at: u64, byte: u8) -> Result<(), BlockError> {
    let data = IoBytes::copy_of(&[byte; 512]);
    backend.write(at, data, WriteFlags::empty()).await
}

#[test]
fn what_is_under_way_ends_and_what_is_new_waits() {
    run(|| async {
        let scene = scene();
        scene.storage.hold_at_offset(0);
        let mut under_way = Box::pin(write(&scene.backend, 0, 1));
        assert!(poll_once(&mut under_way).await.is_none());
        assert!(scene.storage.is_holding());
        let mut drain = Box::pin(scene.graph.drain(&scene.bottom, None));
        assert!(poll_once(&mut drain).await.is_none());
        // New ones wait, also for a node far below; others are not concerned.
        let waiting = Arc::clone(&scene.backend);
        let waiting = spawn_local(async move { write(&waiting, 512, 2).await });
        write(&scene.beside, 0, 3).await.unwrap();
        some_turns().await;
        assert_eq!(scene.storage.changes(), 0);
        assert!(poll_once(&mut drain).await.is_none());
        scene.storage.release();
        under_way.await.unwrap();
        let drained = drain.await;
        some_turns().await;
        assert_eq!(
            scene.storage.changes(),
            1,
            "a request came through the drain"
        );
        assert_eq!(scene.bottom.in_flight().count_now(), 0);
        drop(drained);
        waiting.await.unwrap().unwrap();
        assert_eq!(scene.storage.content()[512], 2);
    });
}

#[test]
fn nested_drains_end_with_the_last_one() {
    run(|| async {
        for outer_first in [false, true] {
            let scene = scene();
            let outer = scene.graph.drain(&scene.top, None).await;
            let inner = scene.graph.drain(&scene.bottom, None).await;
            let backend = Arc::clone(&scene.backend);
            let waiting = spawn_local(async move { write(&backend, 0, 1).await });
            some_turns().await;
            let (first, last) = if outer_first {
                (outer, inner)
            } else {
                (inner, outer)
            };
            drop(first);
            some_turns().await;
            assert_eq!(scene.storage.changes(), 0);
            drop(last);
            waiting.await.unwrap().unwrap();
            assert_eq!(scene.storage.changes(), 1);
        }
    });
}

#[test]
fn only_the_excepted_backend_goes_on() {
    run(|| async {
        let scene = scene();
        let mine = user(
            &scene.graph,
            "the one who drains",
            &scene.bottom,
            easy_writer(),
        )
        .unwrap();
        let drained = scene.graph.drain(&scene.bottom, Some(&mine)).await;
        write(&mine, 0, 1).await.unwrap();
        let mut held = Box::pin(write(&scene.backend, 0, 2));
        assert!(poll_once(&mut held).await.is_none());
        some_turns().await;
        assert_eq!(scene.storage.content()[0], 1);
        drop(drained);
        held.await.unwrap();
        assert_eq!(scene.storage.content()[0], 2);
    });
}

#[test]
fn given_up_drains_and_requests_hold_nothing_up() {
    run(|| async {
        let scene = scene();
        scene.storage.hold_at_offset(0);
        let mut under_way = Box::pin(write(&scene.backend, 0, 1));
        assert!(poll_once(&mut under_way).await.is_none());
        let mut drain = Box::pin(scene.graph.drain(&scene.top, None));
        assert!(poll_once(&mut drain).await.is_none());
        let mut waiting = Box::pin(write(&scene.backend, 512, 2));
        assert!(poll_once(&mut waiting).await.is_none());
        // The request that waits is dropped, then the drain itself.
        drop(waiting);
        drop(drain);
        write(&scene.backend, 1024, 3).await.unwrap();
        scene.storage.release();
        under_way.await.unwrap();
        let _drained = scene.graph.drain(&scene.top, None).await;
        assert_eq!(scene.storage.content()[512], 0);
    });
}

#[test]
fn every_kind_of_request_waits() {
    run(|| async {
        let scene = scene();
        let drained = scene.graph.drain(&scene.bottom, None).await;
        let backend = &scene.backend;
        let none = WriteFlags::empty();
        let mut all: Vec<Pin<Box<dyn Future<Output = bool>>>> = vec![
            Box::pin(async { backend.read(0, IoBuf::with_len(1)).await.is_ok() }),
            Box::pin(async { write(backend, 0, 1).await.is_ok() }),
            Box::pin(async { backend.write_zeroes(0, 512, none).await.is_ok() }),
            Box::pin(async { backend.discard(0, 512).await.is_ok() }),
            Box::pin(async { backend.flush().await.is_ok() }),
            Box::pin(async { backend.status(0, 512).await.is_ok() }),
            Box::pin(async {
                let how = block_graph::Preallocation::Off;
                backend.resize(65_536, true, how).await.is_ok()
            }),
        ];
        for one in &mut all {
            assert!(poll_once(one).await.is_none());
        }
        assert_eq!((scene.storage.changes(), scene.storage.reads()), (0, 0));
        drop(drained);
        for one in all {
            assert!(one.await);
        }
    });
}

/// Drains from the control side while executors write: nothing is under way while it holds.
#[test]
fn drains_hold_off_other_executors() {
    const ROUNDS: usize = 200;
    let scene = scene();
    let executors: Vec<_> = (0..2)
        .map(|_| Executor::start("writer", Engine::Threads).unwrap())
        .collect();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = executors
        .iter()
        .map(|executor| {
            let (backend, stop) = (Arc::clone(&scene.backend), Arc::clone(&stop));
            executor.handle().spawn(move || async move {
                let mut done = 0u64;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    write(&backend, 0, 1).await.unwrap();
                    done += 1;
                    yield_now().await;
                }
                done
            })
        })
        .collect();
    let control = Executor::start("control", Engine::Threads).unwrap();
    let (graph, bottom, storage) = (scene.graph, scene.bottom, scene.storage);
    let drains = control.handle().spawn(move || async move {
        while storage.changes() < 100 {
            yield_now().await;
        }
        for _ in 0..ROUNDS {
            let drained = graph.drain(&bottom, None).await;
            let before = storage.changes();
            assert_eq!(bottom.in_flight().count_now(), 0);
            some_turns().await;
            assert_eq!(storage.changes(), before);
            drop(drained);
            some_turns().await;
        }
    });
    let drained = drains.wait();
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    drained.unwrap();
    let written: u64 = writers
        .into_iter()
        .map(|writer| writer.wait().unwrap())
        .sum();
    assert!(written >= 100);
}
