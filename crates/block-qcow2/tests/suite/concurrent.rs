//! Many requests at once, failing storage, and requests that are dropped half way.

use std::sync::Arc;

use block_doubles::{Faults, Rng};
use block_graph::{ExtentKind, Node, WriteFlags};
use block_qcow2::OpenOptions;
use host_io::{IoBuf, spawn_local};

use crate::model::check_reference;
use crate::reference;
use crate::support::{Variant, bytes, noise, read, run, small_caches};

const PIECE: usize = 3000;

/// Eight tasks, each with every eighth piece of the disk for itself: clusters are shared, bytes
/// are not.
async fn writer(node: Arc<Node>, task: usize, content_len: usize, seed: u64) -> Vec<(usize, u8)> {
    let mut rng = Rng::new(seed * 100 + task as u64);
    let pieces = content_len / PIECE;
    let mut last = vec![0u8; pieces];
    for _ in 0..60 {
        let piece = rng.below((pieces / 8) as u64) as usize * 8 + task;
        let at = (piece * PIECE) as u64;
        match rng.below(5) {
            0..=2 => {
                let value = rng.next_u64() as u8 | 1;
                let data = bytes(&[value; PIECE]);
                node.write(at, data, WriteFlags::empty()).await.unwrap();
                last[piece] = value;
            }
            3 => {
                node.write_zeroes(at, PIECE as u64, WriteFlags::MAY_UNMAP)
                    .await
                    .unwrap();
                last[piece] = 0;
            }
            _ => {
                if rng.one_in(4) {
                    node.flush().await.unwrap();
                }
                let found = read(&node, at, PIECE).await;
                assert!(found.iter().all(|&byte| byte == last[piece]), "task {task}");
            }
        }
    }
    (0..pieces / 8)
        .map(|group| (group * 8 + task, last[group * 8 + task]))
        .collect()
}

async fn eight_at_once(variant: Variant, options: OpenOptions, seed: u64) {
    let disk = variant.create().await;
    disk.file.set_faults(Faults {
        yielding: Some(seed),
        ..Faults::default()
    });
    let node = disk.open_with(options, Arc::default()).await.unwrap();
    let len = variant.size as usize;
    let tasks: Vec<_> = (0..8)
        .map(|task| spawn_local(writer(Arc::clone(&node), task, len, seed)))
        .collect();
    let mut content = vec![0; len];
    for task in tasks {
        for (piece, value) in task.await.unwrap() {
            content[piece * PIECE..(piece + 1) * PIECE].fill(value);
        }
    }
    assert!(read(&node, 0, len).await == content);
    node.driver().close().await.unwrap();
    check_reference(&disk, &content, false);
}

#[test]
fn requests_at_once_do_not_disturb_each_other() {
    for seed in 0..6 {
        let variant = Variant {
            cluster_size: [4096, 16384, 65536][seed as usize % 3],
            extended_l2: seed == 1,
            ..Variant::default()
        };
        let options = if seed < 3 {
            small_caches()
        } else {
            OpenOptions::default()
        };
        run(move || eight_at_once(variant, options, seed));
    }
}

/// Discards and writes at once, with clusters freed and used again all the time.
#[test]
fn freed_clusters_are_not_used_while_somebody_may_touch_them() {
    run(|| async {
        let variant = Variant::default();
        let disk = variant.create().await;
        disk.file.set_faults(Faults {
            yielding: Some(3),
            ..Faults::default()
        });
        let node = disk.open().await.unwrap();
        let task = |task: u64| {
            let node = Arc::clone(&node);
            async move {
                let mut rng = Rng::new(task);
                for round in 0..80u8 {
                    let at = task * 65536 + rng.below(8) * 4096;
                    let data = bytes(&[round | 1; 4096]);
                    node.write(at, data, WriteFlags::empty()).await.unwrap();
                    assert!(read(&node, at, 4096).await == [round | 1; 4096]);
                    node.discard(at, 4096).await.unwrap();
                    assert!(read(&node, at, 4096).await == [0; 4096]);
                    if round % 8 == 0 {
                        node.flush().await.unwrap();
                    }
                }
            }
        };
        let tasks: Vec<_> = (0..8).map(|n| spawn_local(task(n))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        node.driver().close().await.unwrap();
        let content = disk.file.content();
        let image = reference::Image::new(&content, None, &[]).unwrap();
        assert_eq!(image.check().unwrap(), 0);
        // Freed space was used again: 8 tasks use 8 clusters each at most, not 80.
        assert!(content.len() < 400 * 4096, "{}", content.len());
    });
}

/// A read that is slow must not see what its cluster was given to meanwhile.
#[test]
fn a_slow_read_does_not_see_the_next_owner_of_its_cluster() {
    run(|| async {
        let variant = Variant::default();
        let disk = variant.create().await;
        let node = disk.open().await.unwrap();
        let write = async |at: u64, value: u8| {
            let data = bytes(&[value; 4096]);
            node.write(at, data, WriteFlags::empty()).await.unwrap();
        };
        write(0, 1).await;
        node.flush().await.unwrap();
        let extent = node.extent(0, 4096).await.unwrap();
        let ExtentKind::Data {
            offset: Some(host), ..
        } = extent.kind
        else {
            panic!("{extent:?}");
        };
        disk.file.hold_at_offset(host);
        let slow = Arc::clone(&node);
        let slow = spawn_local(async move { read(&slow, 0, 4096).await });
        while !disk.file.is_holding() {
            host_io::yield_now().await;
        }
        node.discard(0, 4096).await.unwrap();
        for round in 0..6 {
            node.flush().await.unwrap();
            write(100 * 4096 + round * 4096, 3).await;
        }
        disk.file.release();
        let found = slow.await.unwrap();
        assert!(found == [1; 4096] || found == [0; 4096], "{}", found[0]);
        for round in 0..6 {
            let found = read(&node, 100 * 4096 + round * 4096, 4096).await;
            assert!(found == [3; 4096], "round {round}");
        }
        // When it has ended, the cluster comes back into use.
        for round in 0..6 {
            node.flush().await.unwrap();
            write(50 * 4096 + round * 4096, 4).await;
        }
        let used_again = disk.file.content()[host as usize] == 4;
        assert!(used_again);
        node.driver().close().await.unwrap();
    });
}

/// Every change fails once, in turn: the request that needs it fails, nothing else breaks.
#[test]
fn failing_storage_never_corrupts() {
    for variant in [
        Variant {
            cluster_size: 512,
            ..Variant::default()
        },
        Variant {
            lazy: true,
            ..Variant::default()
        },
    ] {
        for failing in 0..60 {
            let variant = variant.clone();
            run(move || one_failure(variant, failing));
        }
    }
}

async fn one_failure(variant: Variant, failing: u64) {
    let disk = variant.create().await;
    let node = disk.open().await.unwrap();
    disk.file.set_faults(Faults {
        fail_only: Some(failing),
        ..Faults::default()
    });
    let mut content = vec![None; variant.size as usize];
    let mut rng = Rng::new(1);
    for step in 0..14 {
        let at = rng.below(variant.size - 20_000) as usize;
        let data = noise(step, 100 + rng.below(10_000) as usize);
        let flags = if rng.one_in(4) {
            WriteFlags::COMPRESSED
        } else {
            WriteFlags::empty()
        };
        let result = node.write(at as u64, bytes(&data), flags).await;
        for (known, &byte) in content[at..].iter_mut().zip(&data) {
            *known = if result.is_ok() { Some(byte) } else { None };
        }
        if step % 3 == 0 {
            let _ = node.flush().await;
        }
    }
    let failed = disk.file.changes() > failing;
    disk.file.set_faults(Faults::default());
    let found = read(&node, 0, content.len()).await;
    for (at, (found, known)) in found.iter().zip(&content).enumerate() {
        assert!(known.is_none_or(|known| known == *found), "byte {at}");
    }
    node.driver().close().await.unwrap();
    let image = disk.file.content();
    let reference = reference::Image::new(&image, None, &[]).unwrap();
    assert!(!reference.dirty && !reference.corrupt);
    let leaks = reference.check().unwrap();
    assert!(failed || leaks == 0);
    assert!(reference.read().unwrap() == found);
}

/// A request whose future is dropped goes on by itself: afterwards all is as if it had ended.
#[test]
fn dropped_requests_leave_nothing_half_done() {
    run(|| async {
        let variant = Variant::default();
        let disk = variant.create().await;
        disk.file.set_faults(Faults {
            yielding: Some(9),
            ..Faults::default()
        });
        let node = disk.open().await.unwrap();
        let mut rng = Rng::new(5);
        for step in 0..150 {
            let at = rng.below(variant.size - 20_000);
            let data = bytes(&noise(step, 1 + rng.below(20_000) as usize));
            let turns = rng.below(12);
            let dropped = async {
                match rng.below(4) {
                    0 => node.write_zeroes(at, 9000, WriteFlags::MAY_UNMAP).await,
                    1 => node.discard(at, 9000).await,
                    2 => node.flush().await,
                    _ => node.write(at, data, WriteFlags::empty()).await,
                }
            };
            poll_some(dropped, turns).await;
            let reading = node.read(at, IoBuf::with_len(5000));
            poll_some(reading, turns / 2).await;
        }
        node.in_flight().idle().await;
        let found = read(&node, 0, variant.size as usize).await;
        node.driver().close().await.unwrap();
        check_reference(&disk, &found, false);
    });
}

/// Polls a future a few times and drops it.
async fn poll_some<T>(future: impl Future<Output = T>, turns: u64) {
    let mut future = std::pin::pin!(future);
    for _ in 0..turns {
        let done =
            std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready()))
                .await;
        if done {
            return;
        }
        host_io::yield_now().await;
    }
}

/// Deep chains: each image reads through the nodes below it.
#[test]
fn chains_of_images_read_through() {
    run(|| async {
        let base = Variant {
            backing_len: Some(200_000),
            ..Variant::default()
        };
        let mut content = base.fresh_content();
        let disk = base.create().await;
        let mut below = disk.open().await.unwrap();
        for depth in 0..3u64 {
            let at = 20_000 + depth as usize * 60_000;
            let data = noise(depth, 100_000);
            below
                .write(at as u64, bytes(&data), WriteFlags::empty())
                .await
                .unwrap();
            content[at..at + data.len()].copy_from_slice(&data);
            assert!(read(&below, 0, content.len()).await == content);
            // The next one is longer than what it stands upon, then shorter.
            let size = [700u64 << 10, 500 << 10, 600 << 10][depth as usize];
            let over = Variant {
                size,
                cluster_size: 16384 << depth,
                ..Variant::default()
            };
            let disk = over.create().await;
            content.resize(size as usize, 0);
            below = disk.open_over(below).await;
        }
        let status = below.status(0, 4096).await.unwrap();
        assert_eq!(status.depth, 5);
        // Half a cluster: the rest is copied from the nodes below.
        below
            .write(30_000, bytes(&[7; 10]), WriteFlags::empty())
            .await
            .unwrap();
        content[30_000..30_010].fill(7);
        assert!(read(&below, 0, content.len()).await == content);
    });
}
