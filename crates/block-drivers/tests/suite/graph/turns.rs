//! Counting requests, and taking turns on ranges.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block_doubles::Rng;
use block_graph::{InFlight, RangeLocks};
use host_io::{Engine, Executor, spawn_local, yield_now};

use super::*;

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let executor = Executor::start("turns", Engine::Threads).unwrap();
    executor.handle().spawn(test).wait().unwrap();
}

fn overlap(one: (u64, u64), other: (u64, u64)) -> bool {
    one.0 < other.1 && other.0 < one.1
}

/// What the locks are held against: everybody who asked, in order.
#[derive(Default)]
struct Ledger {
    asked: Vec<(u64, (u64, u64))>,
    holders: Vec<(u64, u64)>,
    granted: u64,
}

async fn take_turn(locks: Rc<RangeLocks>, ledger: Rc<RefCell<Ledger>>, number: u64, seed: u64) {
    let mut rng = Rng::new(seed * 1000 + number);
    for _ in 0..rng.below(30) {
        yield_now().await;
    }
    let start = rng.below(40);
    let range = (start, start + 1 + rng.below(12));
    ledger.borrow_mut().asked.push((number, range));
    let gives_up = rng.one_in(5);
    let held = {
        let mut lock = Box::pin(locks.lock(range.0, range.1));
        let mut turns = rng.below(8);
        std::future::poll_fn(|cx| match lock.as_mut().poll(cx) {
            std::task::Poll::Ready(guard) => std::task::Poll::Ready(Some(guard)),
            std::task::Poll::Pending if gives_up && turns == 0 => std::task::Poll::Ready(None),
            std::task::Poll::Pending => {
                if gives_up {
                    turns -= 1;
                    cx.waker().wake_by_ref();
                }
                std::task::Poll::Pending
            }
        })
        .await
    };
    let Some(guard) = held else {
        ledger.borrow_mut().asked.retain(|(one, _)| *one != number);
        return;
    };
    {
        let mut ledger = ledger.borrow_mut();
        let held = ledger.holders.iter().find(|one| overlap(**one, range));
        assert_eq!(held, None, "{range:?} is held twice");
        let first = ledger
            .asked
            .iter()
            .find(|(_, other)| overlap(*other, range));
        assert_eq!(first.unwrap().0, number, "{range:?} overtook");
        ledger.holders.push(range);
        ledger.granted += 1;
    }
    for _ in 0..rng.below(6) {
        yield_now().await;
    }
    {
        let mut ledger = ledger.borrow_mut();
        let place = ledger.holders.iter().position(|one| *one == range).unwrap();
        ledger.holders.remove(place);
        ledger.asked.retain(|(one, _)| *one != number);
    }
    drop(guard);
}

#[test]
fn overlapping_ranges_are_held_in_turn_in_order_of_asking() {
    for seed in 0..30 {
        run(move || async move {
            let locks = Rc::new(RangeLocks::default());
            let ledger = Rc::new(RefCell::new(Ledger::default()));
            let tasks: Vec<_> = (0..60)
                .map(|number| {
                    spawn_local(take_turn(
                        Rc::clone(&locks),
                        Rc::clone(&ledger),
                        number,
                        seed,
                    ))
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let ledger = ledger.borrow();
            assert!(ledger.holders.is_empty() && ledger.asked.is_empty());
            assert!(ledger.granted >= 30, "seed {seed}");
        });
    }
}

#[test]
fn ranges_are_held_in_turn_across_threads() {
    let locks = Arc::new(RangeLocks::default());
    let cells: Arc<Vec<AtomicBool>> = Arc::new((0..16).map(|_| AtomicBool::new(false)).collect());
    let executors: Vec<_> = (0..3)
        .map(|_| Executor::start("turns", Engine::Threads).unwrap())
        .collect();
    let tasks: Vec<_> = executors
        .iter()
        .zip(0u64..)
        .map(|(executor, seed)| {
            let (locks, cells) = (Arc::clone(&locks), Arc::clone(&cells));
            executor.handle().spawn(move || async move {
                let mut rng = Rng::new(seed);
                for _ in 0..2000 {
                    let start = rng.below(15);
                    let end = start + 1 + rng.below(16 - start);
                    let _turn = locks.lock(start, end).await;
                    let mine = &cells[start as usize..end as usize];
                    assert!(mine.iter().all(|cell| !cell.swap(true, Ordering::SeqCst)));
                    mine.iter()
                        .for_each(|cell| cell.store(false, Ordering::SeqCst));
                }
            })
        })
        .collect();
    for task in tasks {
        task.wait().unwrap();
    }
}

/// A grace period outlasts what began before it and is not held up by what begins later.
#[test]
fn grace_periods_wait_for_what_began_before_and_no_more() {
    for seed in 0..30 {
        run(move || async move {
            let in_flight = Arc::<InFlight>::default();
            let ended = Rc::new(RefCell::new(vec![false; 400]));
            let next = Rc::new(Cell::new(0));
            let stop = Rc::new(Cell::new(false));
            // Requests without a gap: each begins before the one before it ends.
            let chains: Vec<_> = (0..3)
                .map(|chain| {
                    let (in_flight, ended) = (Arc::clone(&in_flight), Rc::clone(&ended));
                    let (next, stop) = (Rc::clone(&next), Rc::clone(&stop));
                    spawn_local(async move {
                        let mut rng = Rng::new(seed * 10 + chain);
                        let mut held = None;
                        while !stop.get() && next.get() < 400 {
                            let number = next.replace(next.get() + 1);
                            let guard = in_flight.enter();
                            if let Some((before, guard)) = held.replace((number, guard)) {
                                let before: usize = before;
                                ended.borrow_mut()[before] = true;
                                drop(guard);
                            }
                            for _ in 0..1 + rng.below(5) {
                                yield_now().await;
                            }
                        }
                        if let Some((before, guard)) = held {
                            ended.borrow_mut()[before] = true;
                            drop(guard);
                        }
                    })
                })
                .collect();
            let mut rng = Rng::new(seed);
            let mut marks = Vec::new();
            for _ in 0..12 {
                for _ in 0..rng.below(6) {
                    yield_now().await;
                }
                let begun: usize = next.get();
                marks.push((in_flight.mark(), begun));
                let two = (in_flight.grace_period(), in_flight.grace_period());
                two.0.await;
                assert!(
                    ended.borrow()[..begun].iter().all(|ended| *ended),
                    "seed {seed}"
                );
                if rng.one_in(3) {
                    two.1.await;
                }
                for (mark, begun) in &marks {
                    let all = ended.borrow()[..*begun].iter().all(|ended| *ended);
                    assert!(all || !in_flight.has_passed(*mark), "seed {seed}");
                }
                assert!(next.get() < 400, "seed {seed}: a grace period was held up");
            }
            stop.set(true);
            for chain in chains {
                chain.await.unwrap();
            }
            in_flight.idle().await;
            assert_eq!(in_flight.count_now(), 0);
            assert!(marks.iter().all(|(mark, _)| in_flight.has_passed(*mark)));
        });
    }
}

/// Requests on two threads, and grace periods on two more at once.
#[test]
fn grace_periods_hold_across_threads() {
    let in_flight = Arc::<InFlight>::default();
    let stop = Arc::new(AtomicBool::new(false));
    // What each requester is at: odd while a request is under way.
    let at: Arc<[AtomicU64; 2]> = Arc::default();
    let requesters: Vec<_> = (0..2)
        .map(|index| {
            let (in_flight, stop, at) =
                (Arc::clone(&in_flight), Arc::clone(&stop), Arc::clone(&at));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let guard = in_flight.enter();
                    at[index].fetch_add(1, Ordering::SeqCst);
                    std::hint::spin_loop();
                    at[index].fetch_add(1, Ordering::SeqCst);
                    drop(guard);
                }
            })
        })
        .collect();
    let executors: Vec<_> = (0..2)
        .map(|_| Executor::start("grace", Engine::Threads).unwrap())
        .collect();
    let waits: Vec<_> = executors
        .iter()
        .map(|executor| {
            let (in_flight, at) = (Arc::clone(&in_flight), Arc::clone(&at));
            executor.handle().spawn(move || async move {
                for _ in 0..300 {
                    let before: Vec<_> = at.iter().map(|one| one.load(Ordering::SeqCst)).collect();
                    in_flight.grace_period().await;
                    for (one, before) in at.iter().zip(before) {
                        let still = before % 2 == 1 && one.load(Ordering::SeqCst) == before;
                        assert!(!still, "a request from before is still under way");
                    }
                }
            })
        })
        .collect();
    let waited: Vec<_> = waits.into_iter().map(|wait| wait.wait()).collect();
    stop.store(true, Ordering::SeqCst);
    for requester in requesters {
        requester.join().unwrap();
    }
    for wait in waited {
        wait.unwrap();
    }
}
