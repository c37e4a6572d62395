//! Many requests at once, and requests that nobody waits for any more.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use block_graph::{BlockBackend, BlockErrorKind, Preallocation, WriteFlags};
use host_io::{Executor, IoBuf, IoBytes, spawn_local};

use super::trial::{Trial, noise, read};
use super::{Case, DISK_BYTES, DiskMaker};
use crate::Rng;

/// The unit that concurrent writes replace whole, in bytes.
const BLOCK: u64 = 512;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "overlapping writes end as one of them",
        run: |maker| Box::pin(overlapping(maker)),
    },
    Case {
        name: "neighbouring writes do not lose each other's bytes",
        run: |maker| Box::pin(neighbours(maker)),
    },
    Case {
        name: "several executors at once",
        run: |maker| Box::pin(executors(maker)),
    },
    Case {
        name: "dropped requests change nothing but their range",
        run: |maker| Box::pin(dropped(maker)),
    },
    Case {
        name: "dropped resizes leave one of the two lengths",
        run: |maker| Box::pin(dropped_resize(maker)),
    },
];

/// One of the writes under way at once: blocks and the byte that fills them, 0 for zeroes.
#[derive(Clone, Copy, Debug)]
struct Fill {
    first: u64,
    blocks: u64,
    byte: u8,
}

async fn fill(backend: Arc<BlockBackend>, base: u64, fill: Fill) {
    let (at, len) = (base + fill.first * BLOCK, fill.blocks * BLOCK);
    if fill.byte == 0 {
        let flags = WriteFlags::MAY_UNMAP;
        backend.write_zeroes(at, len, flags).await.unwrap();
    } else {
        let data = IoBytes::copy_of(&vec![fill.byte; len as usize]);
        backend.write(at, data, WriteFlags::empty()).await.unwrap();
    }
}

async fn overlapping(maker: Arc<dyn DiskMaker>) {
    const BLOCKS: u64 = 400;
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    for round in 0..24u64 {
        let base = [0, 65_536 - 10 * BLOCK, (2 << 20) - 100 * BLOCK][round as usize % 3];
        let mut fills = Vec::new();
        for number in 1..=12u8 {
            let first = trial.rng.below(BLOCKS - 1);
            let most = [4, 30, 300][trial.rng.below(3) as usize];
            fills.push(Fill {
                first,
                blocks: 1 + trial.rng.below(most.min(BLOCKS - first)),
                byte: if number % 5 == 0 { 0 } else { number },
            });
        }
        let mut tasks = Vec::new();
        for one in &fills {
            tasks.push(spawn_local(fill(Arc::clone(trial.backend()), base, *one)));
            let backend = Arc::clone(trial.backend());
            let at = base + one.first * BLOCK;
            tasks.push(spawn_local(async move {
                read(&backend, at, BLOCK).await;
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let before = trial.content[base as usize..][..(BLOCKS * BLOCK) as usize].to_vec();
        let found = trial.adopt(base, BLOCKS * BLOCK).await;
        if trial.abilities.keeps_data {
            check_fills(round, &fills, &before, &found);
        }
        trial.check_around(base, BLOCKS * BLOCK).await;
    }
    trial.end().await;
}

fn check_fills(round: u64, fills: &[Fill], before: &[u8], found: &[u8]) {
    let blocks = found.chunks(BLOCK as usize);
    for (number, (found, before)) in blocks.zip(before.chunks(BLOCK as usize)).enumerate() {
        let number = number as u64;
        let mut over = fills
            .iter()
            .filter(|one| (one.first..one.first + one.blocks).contains(&number))
            .peekable();
        let good = if over.peek().is_none() {
            found == before
        } else {
            over.any(|one| found.iter().all(|byte| *byte == one.byte))
        };
        assert!(good, "round {round}: block {number} is none of {fills:?}");
    }
}

async fn neighbours(maker: Arc<dyn DiskMaker>) {
    const PIECES: u64 = 60;
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    for (round, (base, piece)) in [(0, 100), (65_500, 333), ((2 << 20) - 3000, 100), (7, 4097)]
        .into_iter()
        .enumerate()
    {
        trial.write_noise(base, 1).await;
        let data = noise(round as u64, PIECES * piece);
        let mut tasks = Vec::new();
        // First the even pieces, then the odd ones between them.
        for number in (0..PIECES).step_by(2).chain((1..PIECES).step_by(2)) {
            let backend = Arc::clone(trial.backend());
            let part = &data[(number * piece) as usize..][..piece as usize];
            let part = IoBytes::copy_of(part);
            tasks.push(spawn_local(async move {
                let at = base + number * piece;
                backend.write(at, part, WriteFlags::empty()).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        if trial.abilities.keeps_data {
            trial.content[base as usize..][..data.len()].copy_from_slice(&data);
        }
        trial.check_around(base, PIECES * piece).await;
    }
    trial.end().await;
}

/// The disk in pieces that fit no cluster, of which every writer has its own.
const PIECE: u64 = 3000;
const WRITERS: u64 = 6;

/// Fills pieces with bytes or zeroes, and says which byte each ended with.
async fn writer(backend: Arc<BlockBackend>, own: u64, keeps_data: bool) -> Vec<(u64, u8)> {
    let mut rng = Rng::new(own);
    let groups = backend.length() / PIECE / WRITERS;
    let mut filled = BTreeMap::new();
    for _ in 0..60 {
        let piece = rng.below(groups) * WRITERS + own;
        let at = piece * PIECE;
        match rng.below(6) {
            0..=2 => {
                let byte = rng.next_u64() as u8 | 1;
                let data = IoBytes::copy_of(&[byte; PIECE as usize]);
                backend.write(at, data, WriteFlags::empty()).await.unwrap();
                filled.insert(piece, byte);
            }
            3 => {
                let flags = WriteFlags::MAY_UNMAP;
                backend.write_zeroes(at, PIECE, flags).await.unwrap();
                filled.insert(piece, 0);
            }
            4 => backend.flush().await.unwrap(),
            _ => {
                let found = read(&backend, at, PIECE).await;
                if let (Some(byte), true) = (filled.get(&piece), keeps_data) {
                    let good = found.iter().all(|found| found == byte);
                    assert!(good, "writer {own}: piece {piece} is not all {byte}");
                }
            }
        }
    }
    filled.into_iter().collect()
}

async fn executors(maker: Arc<dyn DiskMaker>) {
    let engine = host_io::current().unwrap().engine();
    let others: Vec<_> = (0..3)
        .map(|_| Executor::start("an executor of several", engine).unwrap())
        .collect();
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    trial.write_noise(1 << 20, 2 << 20).await;
    let keeps_data = trial.abilities.keeps_data;
    let writers: Vec<_> = (0..WRITERS)
        .zip(others.iter().cycle())
        .map(|(own, executor)| {
            let backend = Arc::clone(trial.backend());
            let work = move || writer(backend, own, keeps_data);
            executor.handle().spawn(work)
        })
        .collect();
    for writer in writers {
        let filled = writer.await.unwrap();
        for (piece, byte) in filled.into_iter().filter(|_| keeps_data) {
            trial.content[(piece * PIECE) as usize..][..PIECE as usize].fill(byte);
        }
    }
    trial.end().await;
}

/// Polls a request so often at most, and drops it.
async fn poll_and_drop<T>(request: impl Future<Output = T>, times: u64) {
    let mut request = pin!(request);
    for _ in 0..times {
        let ended = poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx).is_ready())).await;
        if ended {
            return;
        }
        host_io::yield_now().await;
    }
}

/// Waits until nothing is under way any more.
async fn settle(trial: &Trial) {
    trial.backend().idle().await;
    trial.node().in_flight().idle().await;
}

async fn dropped(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    trial.write_noise(0, 3 << 20).await;
    for step in 0..80u64 {
        let at = trial.rng.below(trial.len() - 200_000);
        let len = 1 + trial.rng.below([100, 9000, 150_000][step as usize % 3]);
        let times = if step < 40 { 1 } else { trial.rng.below(6) };
        let data = noise(step, len);
        let backend = Arc::clone(trial.backend());
        match step % 5 {
            0 => poll_and_drop(backend.discard(at, len), times).await,
            1 => {
                let flags = [WriteFlags::empty(), WriteFlags::MAY_UNMAP][step as usize % 2];
                poll_and_drop(backend.write_zeroes(at, len, flags), times).await;
            }
            2 => {
                poll_and_drop(backend.flush(), times).await;
                let buf = IoBuf::with_len(len as usize);
                poll_and_drop(backend.read(at, buf), times).await;
            }
            _ => {
                let data = IoBytes::copy_of(&data);
                let flags = [WriteFlags::empty(), WriteFlags::FUA][step as usize % 2];
                poll_and_drop(backend.write(at, data, flags), times).await;
            }
        }
        settle(&trial).await;
        let before = trial.content[at as usize..][..len as usize].to_vec();
        let found = trial.adopt(at, len).await;
        let new = |index: usize| match step % 5 {
            0 | 1 => 0,
            2 => before[index],
            _ => data[index],
        };
        let wrong = (0..found.len())
            .find(|&index| found[index] != before[index] && found[index] != new(index));
        assert_eq!(wrong, None, "step {step}: {len} bytes at {at}");
        trial.check_around(at, len).await;
    }
    trial.end().await;
}

async fn dropped_resize(maker: Arc<dyn DiskMaker>) {
    let mut trial = Trial::begin(maker, DISK_BYTES).await;
    trial.furnish().await;
    for step in 0..12 {
        let before = trial.len();
        let lengths = [1 << 20, DISK_BYTES + (1 << 20), 2 << 20, DISK_BYTES];
        let length = lengths[step as usize % 4];
        let backend = Arc::clone(trial.backend());
        let resize = backend.resize(length, true, Preallocation::Off);
        poll_and_drop(resize, 1 + step / 4).await;
        settle(&trial).await;
        let found = trial.backend().length();
        assert!(found == before || found == length, "{found}");
        assert!(found == before || trial.abilities.resizable);
        trial.content.resize(found as usize, 0);
        // Whatever became of it: it can be done again.
        let again = backend.resize(length, true, Preallocation::Off).await;
        match again {
            Ok(()) => trial.content.resize(length as usize, 0),
            Err(error) => {
                assert!(!trial.abilities.resizable, "{error}");
                assert_eq!(error.kind, BlockErrorKind::NotSupported);
            }
        }
        trial.check_all().await;
        trial.write_noise(trial.len() - 50_000, 50_000).await;
    }
    trial.end().await;
}
