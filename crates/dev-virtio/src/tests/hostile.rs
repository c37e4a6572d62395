//! Drivers that do what they must not.

use std::sync::{Arc, LazyLock};

use device::{Clock, Device, IoHandler, Width};
use guest_memory::{GuestPhysAddr, RamOffset, RegionKind};
use host_io::{Engine, Executor};
use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;

use crate::test_driver::*;
use crate::{HostEntropy, VirtioConsole, VirtioDevice, VirtioRng};

fn driver() -> Driver {
    Driver::new(rng())
}

fn rng() -> Arc<VirtioRng> {
    VirtioRng::new(Box::new(HostEntropy), None, &Clock::stepped())
}

/// The device is broken, says so, and is as good as new after a reset.
fn is_broken_until_reset(mut driver: Driver, what: &str) {
    assert!(driver.is_broken(), "{what}");
    assert_eq!(driver.take_interrupt() & 2, 2, "{what}");
    // A broken device does nothing more.
    while driver.take_used(0).is_some() {}
    driver.put_descriptor(Driver::table(0), BUFFERS, 4, WRITE, 0);
    driver.offer_head(0, 0);
    driver.notify(0);
    assert_eq!(driver.take_used(0), None, "{what}");
    driver.start(0);
    let head = driver.send(0, &[writable(BUFFERS, 4)]);
    assert_eq!(driver.take_used(0), Some((head, 4)), "{what}");
}

#[test]
fn features_must_be_agreed_on() {
    let driver = driver();
    assert_eq!(driver.offered() & VERSION_1, VERSION_1);
    assert!(!driver.negotiate(0), "without VERSION_1");
    assert!(!driver.negotiate(VERSION_1 | 1 << 40), "not offered");
    assert!(driver.negotiate(VERSION_1 | EVENT_IDX));
    // Agreed is agreed.
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    driver.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
    driver.write(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(driver.status(), 15);
}

#[test]
fn beginning_without_features_breaks_the_device() {
    let mut driver = driver();
    driver.set_up_queue(0);
    driver.write(VIRTIO_MMIO_STATUS, 7);
    assert_eq!(driver.status(), 0x43);
}

#[test]
fn status_bits_stay_until_reset() {
    let driver = driver();
    driver.write(VIRTIO_MMIO_STATUS, 3);
    driver.write(VIRTIO_MMIO_STATUS, 1);
    driver.write(VIRTIO_MMIO_STATUS, 0x7fff_ff70);
    assert_eq!(driver.status(), 3);
    driver.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn chains_that_cannot_be() {
    let table = Driver::table(0);
    type Damage = fn(&mut Driver);
    let cases: &[(&str, Damage)] = &[
        ("a loop", |driver| {
            driver.put_descriptor(Driver::table(0), BUFFERS, 1, NEXT | WRITE, 1);
            driver.put_descriptor(Driver::table(0) + 16, BUFFERS, 1, NEXT | WRITE, 0);
            driver.offer_head(0, 0);
        }),
        ("next out of the table", |driver| {
            driver.put_descriptor(Driver::table(0), BUFFERS, 1, NEXT | WRITE, 16);
            driver.offer_head(0, 0);
        }),
        ("head out of the table", |driver| driver.offer_head(0, 8)),
        ("a buffer in a hole", |driver| {
            driver.offer(0, &[writable(0x1000, 4)]);
        }),
        ("a buffer that leaves RAM", |driver| {
            driver.offer(0, &[writable(RAM_START + RAM_BYTES - 4, 5)]);
        }),
        ("a buffer beyond the address space", |driver| {
            driver.offer(0, &[writable(u64::MAX - 3, 5)]);
        }),
        ("a readable buffer behind a writable one", |driver| {
            driver.offer(0, &[writable(BUFFERS, 4), readable(BUFFERS, 4)]);
        }),
        ("an indirect table of odd length", |driver| {
            driver.put_descriptor(Driver::table(0), BUFFERS, 17, INDIRECT, 0);
            driver.offer_head(0, 0);
        }),
        ("an empty indirect table", |driver| {
            driver.put_descriptor(Driver::table(0), BUFFERS, 0, INDIRECT, 0);
            driver.offer_head(0, 0);
        }),
        ("an indirect table in a hole", |driver| {
            driver.put_descriptor(Driver::table(0), 0x1000, 32, INDIRECT, 0);
            driver.offer_head(0, 0);
        }),
        ("an indirect table in an indirect table", |driver| {
            driver.put_descriptor(BUFFERS, BUFFERS, 16, INDIRECT, 0);
            driver.put_descriptor(Driver::table(0), BUFFERS, 16, INDIRECT, 0);
            driver.offer_head(0, 0);
        }),
        ("an indirect table of more buffers than may be", |driver| {
            for index in 0..1025_u16 {
                let at = BUFFERS + 16 * u64::from(index);
                let flags = WRITE | if index < 1024 { NEXT } else { 0 };
                driver.put_descriptor(at, BUFFERS, 1, flags, index + 1);
            }
            driver.put_descriptor(Driver::table(0), BUFFERS, 16 * 1025, INDIRECT, 0);
            driver.offer_head(0, 0);
        }),
        ("a loop in an indirect table", |driver| {
            driver.put_descriptor(BUFFERS, BUFFERS, 1, WRITE | NEXT, 0);
            driver.put_descriptor(Driver::table(0), BUFFERS, 16 * 64, INDIRECT, 0);
            driver.offer_head(0, 0);
        }),
        ("an index that runs ahead", |driver| {
            driver.put(Driver::available(0) + 2, &500_u16.to_le_bytes());
        }),
        ("more than 4 GiB", |driver| {
            for index in 0..8_u16 {
                let at = Driver::table(0) + 16 * u64::from(index);
                driver.put_descriptor(at, RAM_START, u32::MAX, WRITE | NEXT, index + 1);
            }
            driver.offer_head(0, 0);
        }),
    ];
    assert_eq!(table, RAM_START);
    for (what, damage) in cases {
        let mut driver = driver();
        driver.start(0);
        damage(&mut driver);
        driver.notify(0);
        is_broken_until_reset(driver, what);
    }
}

#[test]
fn an_indirect_table_of_the_largest_size_is_taken() {
    let mut driver = driver();
    driver.start(0);
    for index in 0..1024_u16 {
        let at = BUFFERS + 16 * u64::from(index);
        let flags = WRITE | if index < 1023 { NEXT } else { 0 };
        driver.put_descriptor(at, BUFFERS + 0x8000 + u64::from(index), 1, flags, index + 1);
    }
    driver.put_descriptor(Driver::table(0), BUFFERS, 16 * 1024, INDIRECT, 0);
    driver.offer_head(0, 0);
    driver.notify(0);
    assert_eq!(driver.take_used(0), Some((0, 1024)));
    let bytes = driver.get(BUFFERS + 0x8000, 1024);
    assert!(bytes.iter().any(|byte| *byte != 0));
}

#[test]
fn queues_that_cannot_be() {
    type SetUp = fn(&Driver);
    let cases: &[(&str, SetUp)] = &[
        ("size 0", |driver| driver.write(VIRTIO_MMIO_QUEUE_NUM, 0)),
        ("no power of two", |driver| {
            driver.write(VIRTIO_MMIO_QUEUE_NUM, 3)
        }),
        ("too large", |driver| {
            driver.write(VIRTIO_MMIO_QUEUE_NUM, 16)
        }),
        ("beyond 16 bits", |driver| {
            driver.write(VIRTIO_MMIO_QUEUE_NUM, 0x1_0008)
        }),
        ("table in a hole", |driver| {
            driver.set_address(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000)
        }),
        ("ring in a hole", |driver| {
            driver.set_address(VIRTIO_MMIO_QUEUE_USED_LOW, 0x1000)
        }),
        ("ring over the end", |driver| {
            driver.set_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, RAM_START + RAM_BYTES - 8);
        }),
        ("odd table", |driver| {
            driver.set_address(VIRTIO_MMIO_QUEUE_DESC_LOW, Driver::table(0) + 8);
        }),
        ("end of the address space", |driver| {
            driver.set_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, u64::MAX - 1);
        }),
    ];
    for (what, set_up) in cases {
        let driver = driver();
        assert!(driver.negotiate(VERSION_1));
        driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        driver.write(VIRTIO_MMIO_QUEUE_NUM, 8);
        driver.set_address(VIRTIO_MMIO_QUEUE_DESC_LOW, Driver::table(0));
        driver.set_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, Driver::available(0));
        driver.set_address(VIRTIO_MMIO_QUEUE_USED_LOW, Driver::used(0));
        set_up(&driver);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write(VIRTIO_MMIO_STATUS, 15);
        assert_eq!(driver.status(), 15 | 64, "{what}");
        is_broken_until_reset(driver, what);
    }
}

#[test]
fn what_is_set_up_stays_while_the_queue_runs() {
    let mut driver = driver();
    driver.start(0);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.set_address(VIRTIO_MMIO_QUEUE_USED_LOW, 0);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 2);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    let head = driver.send(0, &[writable(BUFFERS, 4)]);
    assert_eq!(driver.take_used(0), Some((head, 4)));
}

#[test]
fn queues_that_are_not_there() {
    let mut driver = driver();
    driver.start(0);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 7);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 4);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    for index in [1, 7, 0xffff, 0x1_0000, u32::MAX] {
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, index);
    }
    assert!(!driver.is_broken());
}

#[test]
fn memory_that_goes_away_breaks_the_device() {
    let mut driver = driver();
    driver.start(0);
    driver.memory.remove(GuestPhysAddr(RAM_START)).unwrap();
    driver.notify(0);
    assert!(driver.is_broken());
}

#[test]
fn a_ring_that_goes_away_in_part_breaks_the_device() {
    let memory = guest_memory_of(RAM_BYTES + 0x1000);
    let end = RAM_START + RAM_BYTES;
    let region = memory.remove(GuestPhysAddr(RAM_START)).unwrap();
    let kind = RegionKind::Ram;
    let second = RamOffset(region.ram.0 + RAM_BYTES);
    memory
        .add_alias(GuestPhysAddr(RAM_START), RAM_BYTES, region.ram, kind)
        .unwrap();
    memory
        .add_alias(GuestPhysAddr(end), 0x1000, second, kind)
        .unwrap();
    let driver = Driver::over(rng(), memory);
    assert!(driver.negotiate(VERSION_1));
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 8);
    driver.set_address(VIRTIO_MMIO_QUEUE_DESC_LOW, Driver::table(0));
    // Flags and index in one region, the entries in the next.
    driver.set_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, end - 4);
    driver.set_address(VIRTIO_MMIO_QUEUE_USED_LOW, Driver::used(0));
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.write(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(driver.status(), 15);
    driver.memory.remove(GuestPhysAddr(end)).unwrap();
    driver.put(end - 2, &1_u16.to_le_bytes());
    driver.notify(0);
    assert!(driver.is_broken());
}

#[derive(Clone, Debug)]
enum Step {
    Memory(u16, u64),
    Descriptor(u8, u64, u32, u16, u16),
    Available(u8, u16),
    Index(u16),
    Register(u16, u32),
    Notify,
    Start,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..RAM_BYTES).prop_map(|offset| RAM_START + offset),
        3 => (0_u64..8).prop_map(|index| RAM_START + index * 0x800),
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<u16>(), any::<u64>()).prop_map(|(at, value)| Step::Memory(at % 0x2000, value)),
        (
            0_u8..8,
            address(),
            prop_oneof![0_u32..64, any::<u32>()],
            0_u16..8,
            0_u16..9
        )
            .prop_map(|(at, address, bytes, flags, next)| {
                Step::Descriptor(at, address, bytes, flags, next)
            }),
        (0_u8..8, 0_u16..9).prop_map(|(at, head)| Step::Available(at, head)),
        prop_oneof![0_u16..20, any::<u16>()].prop_map(Step::Index),
        (0_u16..0x80, any::<u32>()).prop_map(|(at, value)| Step::Register(at * 4, value)),
        Just(Step::Notify),
        Just(Step::Start),
    ]
}

/// One of each kind of device.
fn devices() -> Vec<Arc<dyn VirtioDevice>> {
    let console = VirtioConsole::new(2, RUNTIME.handle().clone()).unwrap();
    vec![
        rng(),
        super::blk::small_disk(EXECUTOR.handle()),
        super::balloon::small_balloon(),
        console,
    ]
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap()
});
static EXECUTOR: LazyLock<Executor> =
    LazyLock::new(|| Executor::start("disk", Engine::Threads).unwrap());

fn run(driver: &mut Driver, steps: &[Step], queue: u16) {
    let features = (1 << 9 | 2) & driver.offered();
    driver.start(features);
    for step in steps {
        match *step {
            Step::Memory(at, value) => {
                driver.put(RAM_START + u64::from(at), &value.to_le_bytes());
            }
            Step::Descriptor(at, address, bytes, flags, next) => {
                let at = Driver::table(queue) + 16 * u64::from(at);
                driver.put_descriptor(at, address, bytes, flags, next);
            }
            Step::Available(at, head) => {
                let at = Driver::available(queue) + 4 + 2 * u64::from(at);
                driver.put(at, &head.to_le_bytes());
            }
            Step::Index(index) => driver.put(Driver::available(queue) + 2, &index.to_le_bytes()),
            Step::Register(at, value) => driver.write(at.into(), value),
            Step::Notify => driver.notify(queue),
            Step::Start => driver.start(EVENT_IDX),
        }
        driver.mmio.read(0x70, Width::Dword);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a driver writes, every kind of device answers, writes nothing outside RAM, and begins anew after a reset.
    #[test]
    fn any_driver(steps in proptest::collection::vec(step(), 1..80), queue in 0_u16..4) {
        for device in devices() {
            let queues = device.queue_sizes().len() as u16;
            let mut driver = Driver::new(device);
            run(&mut driver, &steps, queue % queues);
            driver.start(0);
            driver.mmio.core().pause();
            let saved = driver.mmio.save().unwrap();
            driver.mmio.restore(&saved).unwrap();
        }
        let mut driver = driver();
        run(&mut driver, &steps, 0);
        driver.start(0);
        let head = driver.send(0, &[writable(BUFFERS, 4)]);
        prop_assert_eq!(driver.take_used(0), Some((head, 4)));
    }
}
