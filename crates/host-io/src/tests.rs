//! The same cases on both engines.

use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::*;

fn engines() -> [Engine; 2] {
    [Engine::Uring, Engine::Threads]
}

fn on<T, F>(engine: Engine, make: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let executor = Executor::start("test", engine).unwrap();
    assert_eq!(
        executor.handle().engine(),
        engine,
        "the kernel gives the engine asked for"
    );
    executor.handle().spawn(make).wait().unwrap()
}

fn scratch() -> (tempfile::TempDir, File) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, b"").unwrap();
    let file = File::open(
        &path,
        OpenMode {
            writable: true,
            direct: false,
        },
    )
    .unwrap();
    (dir, file)
}

#[test]
fn what_is_written_is_read_back() {
    for engine in engines() {
        let (_dir, file) = scratch();
        on(engine, move || async move {
            file.write_at(IoBytes::copy_of(&[7; 10_000]), 5000)
                .await
                .unwrap();
            file.sync_data().await.unwrap();
            let (count, buf) = file.read_at(IoBuf::zeroed(20_000), 0).await;
            assert_eq!(count.unwrap(), 15_000);
            assert_eq!(buf.len(), 20_000);
            assert!(buf[..5000].iter().all(|&b| b == 0));
            assert!(buf[5000..15_000].iter().all(|&b| b == 7));
            assert_eq!(file.length_async().await.unwrap(), 15_000);
        });
    }
}

#[test]
fn holes_are_found_and_made() {
    for engine in engines() {
        let (_dir, file) = scratch();
        on(engine, move || async move {
            file.set_len(4 << 20).await.unwrap();
            file.write_at(IoBytes::copy_of(&[1; 1 << 20]), 1 << 20)
                .await
                .unwrap();
            let hole = file.extent_at(0).await.unwrap();
            assert_eq!(
                hole,
                FileExtent {
                    data: false,
                    end: 1 << 20
                }
            );
            let data = file.extent_at(1 << 20).await.unwrap();
            assert_eq!(
                data,
                FileExtent {
                    data: true,
                    end: 2 << 20
                }
            );
            let tail = file.extent_at(2 << 20).await.unwrap();
            assert_eq!(
                tail,
                FileExtent {
                    data: false,
                    end: 4 << 20
                }
            );
            file.fallocate(AllocateMode::PunchHole, 1 << 20, 1 << 20)
                .await
                .unwrap();
            let all = file.extent_at(0).await.unwrap();
            assert_eq!(
                all,
                FileExtent {
                    data: false,
                    end: 4 << 20
                }
            );
        });
    }
}

#[test]
fn a_socket_carries_batches_in_order() {
    for engine in engines() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        on(engine, move || async move {
            let ours = Stream::from_fd(ours.into());
            let theirs = Stream::from_fd(theirs.into());
            let writer = spawn_local(async move {
                let mut batch = Box::<SendBatch>::default();
                for round in 0..50_u8 {
                    for part in 0..5_u8 {
                        batch.push(IoBytes::copy_of(&vec![round * 5 + part; 3000]));
                    }
                    batch = ours.send_batch(batch).await.unwrap();
                    assert!(batch.is_empty());
                }
            });
            let mut got = Vec::new();
            while got.len() < 250 * 3000 {
                let (count, buf) = theirs.recv(IoBuf::with_len(65_536)).await;
                got.extend_from_slice(&buf[..count.unwrap()]);
            }
            writer.await.unwrap();
            for (index, chunk) in got.chunks(3000).enumerate() {
                assert!(chunk.iter().all(|&b| usize::from(b) == index));
            }
            assert_eq!(theirs.recv(IoBuf::with_len(16)).await.0.unwrap(), 0);
        });
    }
}

#[test]
fn more_than_a_socket_holds_is_sent_whole_to_a_slow_reader() {
    for engine in engines() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            let mut part = [0; 10_007];
            loop {
                std::thread::sleep(Duration::from_micros(50));
                match std::io::Read::read(&mut theirs, &mut part).unwrap() {
                    0 => return got,
                    count => got.extend_from_slice(&part[..count]),
                }
            }
        });
        let sent: Vec<u8> = (0..3_000_000_u32).map(|byte| (byte % 251) as u8).collect();
        let all = IoBytes::copy_of(&sent);
        on(engine, move || async move {
            let stream = Stream::from_fd(ours.into());
            stream.send_all(all.slice(..1_000_000)).await.unwrap();
            let mut batch = Box::<SendBatch>::default();
            // More parts than one system call takes.
            for start in (1_000_000..3_000_000).step_by(5_000) {
                batch.push(all.slice(start..start + 5_000));
            }
            assert!(batch.parts() > MAX_BATCH_PARTS);
            assert!(stream.send_batch(batch).await.unwrap().is_empty());
        });
        assert!(reader.join().unwrap() == sent);
    }
}

#[test]
fn a_whole_receive_takes_what_comes_in_parts() {
    for engine in engines() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            for part in 0..10_u8 {
                std::io::Write::write_all(&mut theirs, &[part; 1000]).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        on(engine, move || async move {
            let stream = Stream::from_fd(ours.into());
            let (mut got, mut receives) = (Vec::new(), 0);
            while got.len() < 10_000 {
                let room = IoBuf::with_len(10_000 - got.len());
                let (count, buf) = stream.recv_whole(room).await;
                let count = count.unwrap();
                assert!(count > 0);
                got.extend_from_slice(&buf[..count]);
                receives += 1;
            }
            if engine == Engine::Uring {
                assert_eq!(receives, 1, "one completion for all of it");
            }
            let parts = got.chunks(1000).enumerate();
            assert!(parts.clone().count() == 10);
            for (index, part) in parts {
                assert!(part.iter().all(|&byte| usize::from(byte) == index));
            }
            // The peer has gone: less than the buffer holds is the end, not an error.
            assert_eq!(stream.recv_whole(IoBuf::with_len(16)).await.0.unwrap(), 0);
        });
        writer.join().unwrap();
    }
}

#[test]
fn reads_agree_whether_the_host_has_them_cached_or_not() {
    const LEN: usize = 1 << 20;
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..LEN as u32).map(|byte| (byte / 7 % 253) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path, OpenMode::default()).unwrap();
        on(engine, move || async move {
            for part in 0..64 {
                // What is dropped from the cache has to come from the disk: all, a part, nothing.
                rustix::fs::fsync(file.as_fd()).unwrap();
                let from = part * 4096 % LEN as u64;
                let dropped = std::num::NonZero::new(part % 3 * 8192);
                if dropped.is_some() {
                    let advice = rustix::fs::Advice::DontNeed;
                    rustix::fs::fadvise(file.as_fd(), from, dropped, advice).unwrap();
                }
                let (count, buf) = file.read_at(IoBuf::zeroed(20_000), from).await;
                let expected = &bytes[from as usize..from as usize + 20_000];
                assert_eq!(count.unwrap(), 20_000);
                assert!(buf[..] == *expected);
            }
            // Over the end, and beyond it.
            let (count, buf) = file.read_at(IoBuf::zeroed(4096), LEN as u64 - 100).await;
            assert_eq!(count.unwrap(), 100);
            assert_eq!(buf[..100], bytes[LEN - 100..]);
            let beyond = file.read_at(IoBuf::zeroed(16), 2 * LEN as u64).await;
            assert_eq!(beyond.0.unwrap(), 0);
        });
    }
}

#[test]
fn a_dropped_receive_is_cancelled_and_its_buffer_stays_valid() {
    for engine in engines() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        on(engine, move || async move {
            let stream = Stream::from_fd(ours.into());
            for _ in 0..100 {
                let mut waiting = Box::pin(stream.recv(IoBuf::with_len(4096)));
                std::future::poll_fn(|cx| {
                    assert!(waiting.as_mut().poll(cx).is_pending());
                    std::task::Poll::Ready(())
                })
                .await;
                drop(waiting);
                yield_now().await;
            }
            // The cancelled receives took nothing of what comes now.
            sleep(Duration::from_millis(20)).await;
            Stream::from_fd(theirs.into())
                .send_all(IoBytes::copy_of(b"hello"))
                .await
                .unwrap();
            let (count, buf) = stream.recv(IoBuf::with_len(4096)).await;
            assert_eq!(&buf[..count.unwrap()], b"hello");
        });
    }
}

#[test]
fn timers_fire_in_order_and_can_be_dropped() {
    for engine in engines() {
        on(engine, || async {
            let began = Instant::now();
            let order = Rc::new(Cell::new(0));
            let late = spawn_local({
                let order = Rc::clone(&order);
                async move {
                    sleep(Duration::from_millis(40)).await;
                    assert_eq!(order.replace(2), 1);
                }
            });
            let early = spawn_local({
                let order = Rc::clone(&order);
                async move {
                    sleep(Duration::from_millis(10)).await;
                    assert_eq!(order.replace(1), 0);
                }
            });
            drop(sleep(Duration::from_secs(3600)));
            early.await.unwrap();
            late.await.unwrap();
            assert!(began.elapsed() >= Duration::from_millis(40));
        });
    }
}

#[test]
fn a_panicking_task_harms_nobody_else() {
    let executor = Executor::start("test", Engine::Uring).unwrap();
    let handle = executor.handle();
    let bad = handle.spawn(|| async { panic!("on purpose") });
    assert_eq!(bad.wait(), Err::<(), _>(Gone));
    assert_eq!(handle.spawn(|| async { 7 }).wait(), Ok(7));
    drop(executor);
    assert_eq!(handle.spawn(|| async { 7 }).wait(), Err(Gone));
}

#[test]
fn blocking_calls_do_not_stop_the_executor() {
    for engine in engines() {
        on(engine, || async {
            let slow = spawn_local(blocking(|| {
                std::thread::sleep(Duration::from_millis(100));
                5
            }));
            let began = Instant::now();
            yield_now().await;
            assert!(began.elapsed() < Duration::from_millis(90));
            assert_eq!(slow.await.unwrap(), Ok(5));
        });
    }
}

#[test]
fn locks_of_two_descriptors_conflict() {
    let (dir, file) = scratch();
    let other = File::open(
        &dir.path().join("file"),
        OpenMode {
            writable: true,
            direct: false,
        },
    )
    .unwrap();
    file.lock_range(100, 1, LockKind::Shared).unwrap();
    other.lock_range(100, 1, LockKind::Shared).unwrap();
    assert!(!other.could_lock_range(100, 1, LockKind::Exclusive).unwrap());
    assert!(other.lock_range(100, 1, LockKind::Exclusive).is_err());
    file.unlock_range(100, 1).unwrap();
    assert!(other.could_lock_range(100, 1, LockKind::Exclusive).unwrap());
}
