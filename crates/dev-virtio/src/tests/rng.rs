use std::io;
use std::sync::Arc;

use device::Clock;
use device::conformance::{self, Subject};

use guest_memory::{GuestPhysAddr, RamOffset, RegionKind};

use crate::test_driver::*;
use crate::{EntropySource, HostEntropy, MMIO_BYTES, RngLimit, VirtioRng};

/// Counts up, so that it can be seen what came from where.
struct Counting(parking_lot::Mutex<u8>);

impl EntropySource for Counting {
    fn fill(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut next = self.0.lock();
        for byte in into.iter_mut() {
            *byte = *next;
            *next = next.wrapping_add(1);
        }
        Ok(into.len())
    }
}

fn counting(limit: Option<RngLimit>, clock: &Clock) -> Arc<VirtioRng> {
    VirtioRng::new(Box::new(Counting(parking_lot::Mutex::new(1))), limit, clock)
}

#[test]
fn a_chain_is_filled_over_its_buffers() {
    let mut driver = Driver::new(counting(None, &Clock::stepped()));
    driver.start(0);
    let head = driver.send(0, &[writable(BUFFERS, 3), writable(BUFFERS + 0x100, 5)]);
    assert_eq!(driver.take_used(0), Some((head, 8)));
    assert_eq!(driver.get(BUFFERS, 4), [1, 2, 3, 0]);
    assert_eq!(driver.get(BUFFERS + 0x100, 6), [4, 5, 6, 7, 8, 0]);
    assert_eq!(driver.take_interrupt(), 1);
}

#[test]
fn a_buffer_may_lie_in_two_regions() {
    let memory = guest_memory_of(RAM_BYTES + 0x1000);
    let end = GuestPhysAddr(RAM_START + RAM_BYTES);
    let region = memory.remove(GuestPhysAddr(RAM_START)).unwrap();
    let second = RamOffset(region.ram.0 + RAM_BYTES);
    let kind = RegionKind::Ram;
    memory
        .add_alias(GuestPhysAddr(RAM_START), RAM_BYTES, region.ram, kind)
        .unwrap();
    memory.add_alias(end, 0x1000, second, kind).unwrap();
    let mut driver = Driver::over(counting(None, &Clock::stepped()), memory);
    driver.start(0);
    let head = driver.send(0, &[writable(end.0 - 2, 5)]);
    assert_eq!(driver.take_used(0), Some((head, 5)));
    assert_eq!(driver.get(end.0 - 2, 6), [1, 2, 3, 4, 5, 0]);
}

#[test]
fn a_limit_holds_chains_back_until_its_period_is_over() {
    let clock = Clock::stepped();
    let limit = RngLimit {
        max_bytes: 10,
        period_ms: 100,
    };
    let mut driver = Driver::new(counting(Some(limit), &clock));
    driver.start(0);
    let first = driver.offer(0, &[writable(BUFFERS, 6)]);
    let second = driver.offer(0, &[writable(BUFFERS + 16, 6)]);
    let third = driver.send(0, &[writable(BUFFERS + 32, 6)]);
    assert_eq!(driver.take_used(0), Some((first, 6)));
    assert_eq!(driver.take_used(0), Some((second, 4)));
    assert_eq!(driver.take_used(0), None);
    clock.step(99_000_000);
    assert_eq!(driver.take_used(0), None);
    clock.step(1_000_000);
    assert_eq!(driver.take_used(0), Some((third, 6)));
    assert_eq!(driver.get(BUFFERS + 32, 6), [11, 12, 13, 14, 15, 16]);
}

#[test]
fn the_hosts_numbers_are_not_all_the_same() {
    let device = VirtioRng::new(Box::new(HostEntropy), None, &Clock::stepped());
    let mut driver = Driver::new(device);
    driver.start(EVENT_IDX);
    driver.send(0, &[writable(BUFFERS, 64)]);
    assert_eq!(driver.take_used(0).unwrap().1, 64);
    let bytes = driver.get(BUFFERS, 64);
    assert!(bytes.iter().any(|byte| *byte != bytes[0]));
}

#[test]
fn a_guest_with_more_chains_than_a_round_gets_them_all() {
    let clock = Clock::stepped();
    let mut driver = Driver::new(counting(None, &clock));
    driver.start(0);
    for round in 0..3 {
        for index in 0..8 {
            driver.offer(0, &[writable(BUFFERS + 16 * index, 1)]);
        }
        driver.notify(0);
        clock.step(1);
        for _ in 0..8 {
            assert!(driver.take_used(0).is_some(), "round {round}");
        }
    }
}

#[test]
fn conforms() {
    conformance::check(|| {
        let clock = Clock::stepped();
        let limit = RngLimit {
            max_bytes: 10,
            period_ms: 1,
        };
        let driver = Driver::new(counting(Some(limit), &clock));
        Subject {
            device: driver.mmio.clone(),
            ranges: vec![(driver.mmio.clone(), MMIO_BYTES)],
            clock,
            kept_by_reset: &[],
        }
    });
}
