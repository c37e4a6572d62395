use std::sync::Arc;

use device::conformance::{self, Subject};
use device::{Clock, Device, WallClock, Width};
use parking_lot::Mutex;

use crate::test_driver::*;
use crate::{
    BALLOON_STAT_NAMES, BalloonOptions, BalloonSink, MAX_BALLOON_CHAIN_BYTES, MMIO_BYTES,
    VirtioBalloon,
};

const STATS_FEATURE: u64 = 2;
const PAGE: u64 = 4096;

#[derive(Default)]
struct Changes(Mutex<Vec<u64>>);

impl BalloonSink for Changes {
    fn memory_changed(&self, actual_bytes: u64) {
        self.0.lock().push(actual_bytes);
    }
}

struct Rig {
    driver: Driver,
    balloon: Arc<VirtioBalloon>,
    changes: Arc<Changes>,
    clock: Clock,
}

impl Rig {
    fn new() -> Rig {
        let (balloon, changes, clock) = balloon();
        Rig {
            driver: Driver::new(balloon.clone()),
            balloon,
            changes,
            clock,
        }
    }

    /// Sends page numbers on a queue.
    fn send(&mut self, queue: u16, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.driver.put(BUFFERS, &bytes);
        let head = self
            .driver
            .send(queue, &[readable(BUFFERS, bytes.len() as u32)]);
        assert_eq!(self.driver.take_used(queue), Some((head, 0)));
    }

    fn send_stats(&mut self, stats: &[(u16, u64)]) -> u16 {
        let mut bytes = Vec::new();
        for (tag, value) in stats {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        self.driver.put(BUFFERS, &bytes);
        self.driver
            .send(2, &[readable(BUFFERS, bytes.len() as u32)])
    }
}

fn balloon() -> (Arc<VirtioBalloon>, Arc<Changes>, Clock) {
    let changes = Arc::<Changes>::default();
    let clock = Clock::stepped();
    let options = BalloonOptions {
        ram_bytes: RAM_BYTES,
        deflate_on_oom: true,
        sink: changes.clone(),
    };
    let wall_clock = WallClock::Guest {
        clock: clock.clone(),
        start_unix_ns: 1_000_000_000_000,
    };
    let balloon = VirtioBalloon::new(options, &clock, wall_clock);
    (balloon, changes, clock)
}

/// A balloon for tests that do not look at what it does.
pub fn small_balloon() -> Arc<VirtioBalloon> {
    balloon().0
}

#[test]
fn pages_in_the_balloon_are_given_back() {
    let mut rig = Rig::new();
    rig.driver.start(STATS_FEATURE);
    let first = (RAM_START + 0x20_0000) / PAGE;
    rig.driver.put(first * PAGE, &[7; 8 * 4096]);
    let pages = [first + 1, first + 2, first + 4, first + 6, first + 5].map(|page| page as u32);
    rig.send(0, &pages);
    for index in 0..8 {
        let byte = rig.driver.get((first + index) * PAGE + 100, 1)[0];
        let is_given = [1, 2, 4, 5, 6].contains(&index);
        assert_eq!(byte, if is_given { 0 } else { 7 }, "page {index}");
    }
    // Pages that are no RAM, and page numbers beyond everything.
    rig.send(0, &[0, 1, u32::MAX, u32::MAX - 1]);
    rig.send(1, &pages);
    rig.driver.put((first + 1) * PAGE, &[1]);
    assert!(!rig.driver.is_broken());
    assert_eq!(rig.driver.take_interrupt(), 1);
}

#[test]
fn the_host_asks_and_the_driver_answers() {
    let mut rig = Rig::new();
    assert_eq!(rig.driver.offered() as u32, 0x3000_0006);
    rig.driver.start(STATS_FEATURE);
    rig.balloon.set_target(RAM_BYTES - 10 * PAGE);
    assert_eq!(rig.driver.take_interrupt(), 2);
    assert_eq!(rig.driver.config(0, Width::Dword), 10);
    assert_eq!(rig.balloon.actual_bytes(), RAM_BYTES);
    rig.driver.mmio_config(4, Width::Dword, 4);
    rig.driver.mmio_config(4, Width::Dword, 4);
    rig.driver.mmio_config(4, Width::Byte, 10);
    assert_eq!(
        *rig.changes.0.lock(),
        [RAM_BYTES - 4 * PAGE, RAM_BYTES - 10 * PAGE]
    );
    assert_eq!(rig.balloon.actual_bytes(), RAM_BYTES - 10 * PAGE);
    // The target is the host's.
    rig.driver.mmio_config(0, Width::Dword, 99);
    assert_eq!(rig.driver.config(0, Width::Qword), 10 << 32 | 10);
    rig.driver.mmio_config(4, Width::Dword, u64::MAX);
    assert_eq!(rig.balloon.actual_bytes(), 0);
    rig.balloon.set_target(u64::MAX);
    assert_eq!(rig.driver.config(0, Width::Dword), 0);
    rig.balloon.set_target(0);
    assert_eq!(rig.driver.config(0, Width::Dword), RAM_BYTES / PAGE);
}

#[test]
fn statistics_are_asked_for_at_intervals() {
    let mut rig = Rig::new();
    rig.driver.start(STATS_FEATURE);
    assert_eq!(rig.balloon.stats().updated_unix_s, 0);
    let head = rig.send_stats(&[(4, 1000), (5, 2000), (99, 5), (15, 3)]);
    let stats = rig.balloon.stats();
    let told: Vec<_> = BALLOON_STAT_NAMES
        .iter()
        .zip(stats.values)
        .filter_map(|(name, value)| Some((*name, value?)))
        .collect();
    let wanted = [
        ("stat-free-memory", 1000),
        ("stat-total-memory", 2000),
        ("stat-direct-reclaims", 3),
    ];
    assert_eq!(told, wanted);
    assert_eq!(stats.updated_unix_s, 1000);
    rig.clock.step(5_000_000_000);
    assert_eq!(rig.driver.take_used(2), None);
    rig.balloon.set_polling_interval_s(2);
    rig.clock.step(1_900_000_000);
    assert_eq!(rig.driver.take_used(2), None);
    rig.clock.step(200_000_000);
    assert_eq!(rig.driver.take_used(2), Some((head, 0)));
    let head = rig.send_stats(&[(4, 900)]);
    assert_eq!(rig.balloon.stats().values[4], Some(900));
    assert_eq!(rig.balloon.stats().values[5], None);
    rig.clock.step(2_000_000_000);
    assert_eq!(rig.driver.take_used(2), Some((head, 0)));
    rig.balloon.set_polling_interval_s(0);
    rig.send_stats(&[(4, 800)]);
    rig.clock.step(9_000_000_000);
    assert_eq!(rig.driver.take_used(2), None);
    // A driver that sends a second buffer gets the first one back.
    rig.send_stats(&[(4, 700)]);
    assert!(rig.driver.take_used(2).is_some());
    assert_eq!(rig.driver.take_used(2), None);
}

#[test]
fn a_waiting_buffer_is_polled_after_a_restore() {
    let mut rig = Rig::new();
    rig.driver.start(STATS_FEATURE);
    let head = rig.send_stats(&[(4, 1000)]);
    rig.driver.mmio_config(4, Width::Dword, 3);
    rig.driver.mmio.core().pause();
    let saved = rig.driver.mmio.save().unwrap();
    rig.driver.mmio.restore(&saved).unwrap();
    assert_eq!(rig.driver.mmio.save().unwrap(), saved);
    rig.driver.mmio.core().resume();
    assert_eq!(rig.balloon.actual_bytes(), RAM_BYTES - 3 * PAGE);
    assert_eq!(rig.balloon.stats().values[4], Some(1000));
    rig.balloon.set_polling_interval_s(1);
    rig.clock.step(1_000_000_000);
    assert_eq!(rig.driver.take_used(2), Some((head, 0)));
}

#[test]
fn a_chain_that_is_too_long_breaks_the_device() {
    let mut rig = Rig::new();
    rig.driver.start(0);
    let bytes = MAX_BALLOON_CHAIN_BYTES as u32;
    let head = rig.driver.send(1, &[readable(BUFFERS, bytes)]);
    assert_eq!(rig.driver.take_used(1), Some((head, 0)));
    rig.driver
        .send(0, &[readable(BUFFERS, bytes), readable(BUFFERS, 1)]);
    assert!(rig.driver.is_broken());
}

#[test]
fn conforms() {
    conformance::check(|| {
        let rig = Rig::new();
        Subject {
            device: rig.driver.mmio.clone(),
            ranges: vec![(rig.driver.mmio.clone(), MMIO_BYTES)],
            clock: rig.clock,
            kept_by_reset: &[],
        }
    });
}
