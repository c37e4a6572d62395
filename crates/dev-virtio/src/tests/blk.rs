use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::{BlockErrorAction, BlockdevOnError, IoOperationType};
use block_doubles::{Change, Faults, Storage};
use block_drivers::{FileDriver, FileOptions, HostOpener, HostProtocol};
use block_graph::{BlockBackend, BlockErrorSink, BlockIoError, NodeOptions};
use device::conformance::{self, Subject};
use device::{Clock, Device, Width};
use host_io::{Engine, Executor, ExecutorHandle};
use parking_lot::Mutex;
use proptest::prelude::*;

use crate::test_driver::*;
use crate::{BlkOptions, MMIO_BYTES, VirtioBlk};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const FLUSH_FEATURE: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;

#[derive(Default)]
struct Errors(Mutex<Vec<BlockIoError>>);

impl BlockErrorSink for Errors {
    fn block_io_error(&self, error: &BlockIoError) {
        self.0.lock().push(error.clone());
    }
}

struct Rig {
    driver: Driver,
    storage: Storage,
    device: Arc<VirtioBlk>,
    backend: Arc<BlockBackend>,
    errors: Arc<Errors>,
    _executors: Vec<Executor>,
}

pub fn backend_over(storage: &Storage, is_writable: bool) -> Arc<BlockBackend> {
    backend(Box::new(storage.clone()), is_writable)
}

fn backend(driver: Box<dyn block_graph::Driver>, is_writable: bool) -> Arc<BlockBackend> {
    let options = NodeOptions {
        discard_unmap: true,
        ..NodeOptions::default()
    };
    block_doubles::backend(driver, options, is_writable)
}

impl Rig {
    fn new(bytes: usize, options: BlkOptions) -> Rig {
        Rig::with_memory(bytes, options, guest_memory())
    }

    fn with_memory(
        bytes: usize,
        options: BlkOptions,
        memory: Arc<guest_memory::GuestMemory>,
    ) -> Rig {
        let content = (0..bytes).map(|at| (at / 512) as u8).collect();
        Rig::over(Storage::new(content), options, memory)
    }

    fn over(storage: Storage, options: BlkOptions, memory: Arc<guest_memory::GuestMemory>) -> Rig {
        let backend = backend_over(&storage, options.is_writable);
        let executors: Vec<_> = (0..options.queues.min(2))
            .map(|_| Executor::start("disk", Engine::Threads).unwrap())
            .collect();
        let handles = executors.iter().map(Executor::handle).collect();
        let errors = Arc::<Errors>::default();
        let device = VirtioBlk::new(backend.clone(), options, handles, errors.clone()).unwrap();
        Rig {
            driver: Driver::over(device.clone(), memory),
            storage,
            device,
            backend,
            errors,
            _executors: executors,
        }
    }

    fn start(&mut self) {
        self.driver.start(FLUSH_FEATURE | EVENT_IDX);
    }

    /// Puts a header at `BUFFERS + 0x100 * slot`; the status comes 16 bytes later.
    fn header(&self, slot: u64, kind: u32, sector: u64) -> (Buffer, Buffer) {
        let at = BUFFERS + 0x100 * slot;
        self.driver.put(at, &kind.to_le_bytes());
        self.driver.put(at + 4, &[0; 4]);
        self.driver.put(at + 8, &sector.to_le_bytes());
        self.driver.put(at + 16, &[0xff]);
        (readable(at, 16), writable(at + 16, 1))
    }

    fn status(&self, slot: u64) -> u8 {
        self.driver.get(BUFFERS + 0x100 * slot + 16, 1)[0]
    }

    fn send(&mut self, slot: u64, kind: u32, sector: u64, data: &[Buffer]) -> u16 {
        let (header, status) = self.header(slot, kind, sector);
        let mut chain = vec![header];
        chain.extend(data);
        chain.push(status);
        self.driver.send(0, &chain)
    }

    /// Sends a request and waits for its answer.
    fn call(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        let head = self.send(0, kind, sector, data);
        assert_eq!(self.driver.wait_used(0).0, head);
        self.status(0)
    }

    fn errors(&self) -> Vec<BlockIoError> {
        std::mem::take(&mut self.errors.0.lock())
    }
}

/// A disk for tests that do not look at what is on it.
pub fn small_disk(executor: ExecutorHandle) -> Arc<VirtioBlk> {
    let backend = backend_over(&Storage::new(vec![0; 1 << 20]), true);
    let errors = Arc::<Errors>::default();
    VirtioBlk::new(backend, BlkOptions::default(), vec![executor], errors).unwrap()
}

/// Where tests put data.
const DATA: u64 = BUFFERS + 0x1_0000;

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn reads_and_writes() {
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.start();
    rig.driver.put(DATA, &[7; 1024]);
    let pieces = [readable(DATA, 300), readable(DATA + 300, 724)];
    assert_eq!(rig.call(OUT, 3, &pieces), 0);
    assert_eq!(rig.storage.content()[3 * 512..5 * 512], [7; 1024]);
    let pieces = [
        writable(DATA, 512),
        writable(DATA + 4096, 512),
        writable(DATA + 8192, 512),
    ];
    assert_eq!(rig.call(IN, 4, &pieces), 0);
    assert_eq!(rig.driver.get(DATA, 512), [7; 512]);
    assert_eq!(rig.driver.get(DATA + 4096, 512), [5; 512]);
    assert_eq!(rig.driver.get(DATA + 8192, 512), [6; 512]);
    assert_eq!(rig.backend.stats().read.bytes.load(Ordering::Relaxed), 1536);
    assert_ne!(rig.driver.take_interrupt(), 0);
}

#[test]
fn the_header_may_be_cut_anywhere() {
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.start();
    let (header, status) = rig.header(0, IN, 9);
    let chain = [
        readable(header.address, 5),
        readable(header.address + 5, 11),
        writable(DATA, 100),
        // The last byte is the status.
        writable(DATA + 100, 413),
    ];
    let head = rig.driver.send(0, &chain);
    assert_eq!(rig.driver.wait_used(0), (head, 513));
    assert_eq!(rig.driver.get(DATA, 513)[510..], [9, 9, 0]);
    assert_eq!(rig.driver.get(status.address, 1), [0xff]);
}

#[test]
fn other_requests() {
    let options = BlkOptions {
        serial: "a serial number of more than twenty".to_owned(),
        ..BlkOptions::default()
    };
    let mut rig = Rig::new(1 << 20, options);
    rig.start();
    assert_eq!(rig.call(GET_ID, 0, &[writable(DATA, 20)]), 0);
    assert_eq!(rig.driver.get(DATA, 20), b"a serial number of m");
    rig.storage.record();
    assert_eq!(rig.call(FLUSH, 0, &[]), 0);
    rig.driver.put(DATA, &range(8, 8, 0));
    assert_eq!(rig.call(DISCARD, 0, &[readable(DATA, 16)]), 0);
    rig.driver.put(DATA, &range(100, 2, 1));
    assert_eq!(rig.call(WRITE_ZEROES, 0, &[readable(DATA, 16)]), 0);
    let changes = rig.storage.take_log().changes;
    assert!(matches!(
        changes.as_slice(),
        [
            Change::Flush,
            Change::Zero {
                offset: 4096,
                len: 4096
            },
            Change::Zero {
                offset: 51200,
                len: 1024
            }
        ]
    ));
    assert_eq!(rig.errors(), []);
}

#[test]
fn what_is_refused() {
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.start();
    let before = rig.storage.content();
    assert_eq!(
        rig.call(IN, 2048, &[writable(DATA, 512)]),
        1,
        "behind the end"
    );
    assert_eq!(
        rig.call(IN, 2047, &[writable(DATA, 1024)]),
        1,
        "over the end"
    );
    assert_eq!(rig.call(IN, u64::MAX, &[writable(DATA, 512)]), 1);
    assert_eq!(rig.call(OUT, u64::MAX / 512, &[readable(DATA, 512)]), 1);
    assert_eq!(
        rig.call(OUT, 0, &[readable(DATA, 100)]),
        1,
        "no whole sector"
    );
    assert_eq!(rig.call(2, 0, &[]), 2, "SCSI");
    assert_eq!(rig.call(0xffff_fff0, 0, &[readable(DATA, 512)]), 2);
    for (what, range, status) in [
        ("an unknown flag", range(0, 1, 2), 2),
        ("beyond the end", range(2048, 1, 0), 1),
        ("too many", range(0, 0x40_0000, 0), 1),
        ("overflow", range(u64::MAX, 1, 0), 1),
    ] {
        rig.driver.put(DATA, &range);
        let data = [readable(DATA, 16)];
        assert_eq!(rig.call(WRITE_ZEROES, 0, &data), status, "{what}");
        assert_eq!(rig.call(DISCARD, 0, &data), status, "{what}");
    }
    rig.driver.put(DATA, &range(0, 1, 1));
    assert_eq!(
        rig.call(DISCARD, 0, &[readable(DATA, 16)]),
        2,
        "discard has no flag"
    );
    assert_eq!(rig.call(DISCARD, 0, &[readable(DATA, 15)]), 1);
    assert_eq!(rig.call(DISCARD, 0, &[readable(DATA, 32)]), 1);
    assert_eq!(rig.storage.content(), before);
    assert_eq!(
        rig.errors(),
        [],
        "these are the guest's errors, not the disk's"
    );
    assert!(rig.backend.stats().read.invalid.load(Ordering::Relaxed) >= 3);
}

#[test]
fn a_read_only_disk() {
    let options = BlkOptions {
        is_writable: false,
        ..BlkOptions::default()
    };
    let mut rig = Rig::new(1 << 20, options);
    assert_eq!(rig.driver.offered() >> 5 & 1, 1);
    rig.start();
    assert_eq!(rig.call(OUT, 0, &[readable(DATA, 512)]), 1);
    rig.driver.put(DATA, &range(0, 1, 0));
    assert_eq!(rig.call(WRITE_ZEROES, 0, &[readable(DATA, 16)]), 1);
    assert_eq!(rig.call(DISCARD, 0, &[readable(DATA, 16)]), 1);
    assert_eq!(rig.call(FLUSH, 0, &[]), 0);
    assert_eq!(rig.call(IN, 0, &[writable(DATA, 512)]), 0);
}

/// What QEMU 7.2 shows of a disk of 8 MiB with two queues, in its first 57 bytes.
#[test]
fn the_configuration_is_qemus() {
    let options = BlkOptions {
        queues: 2,
        ..BlkOptions::default()
    };
    let rig = Rig::new(8 << 20, options);
    let seen: Vec<u8> = (0..57)
        .map(|at| rig.driver.config(at, Width::Byte) as u8)
        .collect();
    let wanted = [
        0x00, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0, 0, 0, 0x10, 0, 0x10, 0x3f, 0, 2, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0xff, 0xff, 0x3f, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0xff,
        0xff, 0x3f, 0, 1, 0, 0, 0, 1,
    ];
    assert_eq!(seen, wanted);
    assert_eq!(rig.driver.offered() as u32, 0x3000_7e54);
}

#[test]
fn a_node_that_grows_is_told() {
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.start();
    let executor = Executor::start("resize", Engine::Threads).unwrap();
    let backend = rig.backend.clone();
    let resize = executor.handle().spawn(move || async move {
        backend
            .resize(2 << 20, true, block_graph::Preallocation::Off)
            .await
    });
    resize.wait().unwrap().unwrap();
    rig.device.length_changed();
    assert_eq!(rig.driver.take_interrupt() & 2, 2);
    assert_eq!(rig.driver.config(0, Width::Qword), 4096);
    assert_eq!(rig.call(IN, 4095, &[writable(DATA, 512)]), 0);
}

#[test]
fn answers_come_as_requests_end() {
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.start();
    rig.storage.hold_at_offset(512);
    let slow = rig.send(1, IN, 1, &[writable(DATA, 512)]);
    let fast = rig.send(2, IN, 2, &[writable(DATA + 512, 512)]);
    assert_eq!(rig.driver.wait_used(0).0, fast);
    rig.storage.release();
    assert_eq!(rig.driver.wait_used(0).0, slow);
    assert_eq!(rig.driver.get(DATA, 1024)[511..513], [1, 2]);
}

#[test]
fn a_request_of_pieces() {
    const BYTES: usize = 10 << 20;
    let memory = guest_memory_of(16 << 20);
    let mut rig = Rig::with_memory(12 << 20, BlkOptions::default(), memory);
    rig.start();
    assert_eq!(rig.call(IN, 8, &[writable(DATA, BYTES as u32)]), 0);
    let read = rig.driver.get(DATA, BYTES);
    assert!(read == rig.storage.content()[4096..4096 + BYTES]);
    let new: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    rig.driver.put(DATA, &new);
    assert_eq!(rig.call(OUT, 16, &[readable(DATA, BYTES as u32)]), 0);
    assert!(new == rig.storage.content()[8192..8192 + BYTES]);
}

#[test]
fn a_reset_leaves_what_is_under_way_behind() {
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.start();
    rig.storage.hold_at_offset(512);
    rig.send(1, IN, 1, &[writable(DATA, 512)]);
    eventually("held", || rig.storage.is_holding());
    rig.start();
    // The new driver waits for the old one's request, so that an old write cannot come after a new one.
    let head = rig.send(2, IN, 2, &[writable(DATA + 512, 512)]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(rig.driver.take_used(0), None);
    rig.storage.release();
    assert_eq!(rig.driver.wait_used(0).0, head);
    assert_eq!(rig.driver.get(DATA, 512), [0; 512], "nothing late");
    assert_eq!(rig.status(1), 0xff, "nothing late");
    assert_eq!(rig.driver.take_used(0), None);
}

#[test]
fn answers_wait_while_the_machine_is_paused() {
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.start();
    rig.storage.hold_at_offset(512);
    let head = rig.send(1, IN, 1, &[writable(DATA, 512)]);
    eventually("held", || rig.storage.is_holding());
    rig.driver.mmio.core().pause();
    rig.storage.release();
    eventually("read", || rig.storage.reads() == 1);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(rig.driver.take_used(0), None);
    assert_eq!(rig.driver.get(DATA, 512), [0; 512]);

    // Another machine with the same memory does the request again.
    let saved = rig.driver.mmio.save().unwrap();
    let other_storage = Storage::new(vec![9; 1 << 20]);
    let memory = rig.driver.memory.clone();
    let mut other = Rig::over(other_storage, BlkOptions::default(), memory);
    other.driver.mmio.core().pause();
    other.driver.mmio.restore(&saved).unwrap();
    other.driver.mmio.core().resume();
    assert_eq!(other.driver.wait_used(0).0, head);
    assert_eq!(other.driver.get(DATA, 512), [9; 512]);
    assert_eq!(other.status(1), 0);
}

#[test]
fn policies_for_errors() {
    let told = |action, operation| BlockIoError {
        node_name: "disk".to_owned(),
        operation,
        action,
        no_space: false,
        reason: "Input/output error".to_owned(),
    };
    let cases = [
        (BlockdevOnError::Auto, BlockErrorAction::Report, 1),
        (BlockdevOnError::Enospc, BlockErrorAction::Report, 1),
        (BlockdevOnError::Report, BlockErrorAction::Report, 1),
        (BlockdevOnError::Ignore, BlockErrorAction::Ignore, 0),
    ];
    for (werror, action, status) in cases {
        let options = BlkOptions {
            werror,
            ..BlkOptions::default()
        };
        let mut rig = Rig::new(1 << 20, options);
        rig.start();
        rig.storage.set_faults(Faults {
            fail_only: Some(0),
            ..Faults::default()
        });
        assert_eq!(rig.call(OUT, 0, &[readable(DATA, 512)]), status);
        assert_eq!(rig.errors(), [told(action, IoOperationType::Write)]);
    }
}

#[test]
fn a_request_that_stops_the_machine_is_tried_again() {
    let options = BlkOptions {
        werror: BlockdevOnError::Stop,
        ..BlkOptions::default()
    };
    let mut rig = Rig::new(1 << 20, options);
    rig.start();
    let fail = Faults {
        fail_from: Some(0),
        ..Faults::default()
    };
    rig.storage.set_faults(fail);
    rig.driver.put(DATA, &[0xaa; 512]);
    let head = rig.send(1, OUT, 1, &[readable(DATA, 512)]);
    eventually("told", || rig.errors.0.lock().len() == 1);
    assert_eq!(rig.errors()[0].action, BlockErrorAction::Stop);
    rig.driver.mmio.core().pause();
    rig.driver.mmio.core().resume();
    eventually("told again", || rig.errors.0.lock().len() == 1);
    assert_eq!(rig.driver.take_used(0), None);
    rig.driver.mmio.core().pause();
    rig.storage.set_faults(Faults::default());
    rig.driver.mmio.core().resume();
    assert_eq!(rig.driver.wait_used(0).0, head);
    assert_eq!(rig.status(1), 0);
    assert_eq!(rig.storage.content()[512..1024], [0xaa; 512]);
    // A request that is kept is dropped by a reset.
    rig.storage.set_faults(Faults {
        fail_only: Some(0),
        ..Faults::default()
    });
    rig.send(1, OUT, 1, &[readable(DATA, 512)]);
    eventually("told", || rig.errors.0.lock().len() == 2);
    rig.start();
    assert_eq!(rig.call(IN, 0, &[writable(DATA, 512)]), 0);
    assert_eq!(rig.storage.changes(), 1);
}

#[test]
fn the_write_cache_is_the_drivers_choice() {
    let flushes = |rig: &mut Rig| {
        rig.storage.record();
        assert_eq!(rig.call(OUT, 0, &[readable(DATA, 512)]), 0);
        let changes = rig.storage.take_log().changes;
        changes.iter().any(|change| matches!(change, Change::Flush))
    };
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.driver.start(FLUSH_FEATURE);
    assert!(!flushes(&mut rig));
    rig.driver.start(0);
    assert!(flushes(&mut rig), "a driver that cannot flush");
    assert_eq!(rig.driver.config(32, Width::Byte), 0);
    rig.driver.start(FLUSH_FEATURE | CONFIG_WCE);
    assert!(!flushes(&mut rig));
    rig.driver.mmio_config(32, Width::Byte, 0);
    assert!(flushes(&mut rig));
    rig.driver.mmio_config(32, Width::Byte, 1);
    assert!(!flushes(&mut rig));
    // Nothing else can be written.
    for at in 0..70 {
        for width in Width::ALL {
            if at != 32 || width != Width::Byte {
                rig.driver.mmio_config(at, width, u64::MAX);
            }
        }
    }
    assert_eq!(rig.driver.config(0, Width::Qword), 2048);
}

#[test]
fn chains_that_are_no_requests() {
    for chain in [
        vec![readable(BUFFERS, 15), writable(DATA, 513)],
        vec![writable(DATA, 513)],
        vec![readable(BUFFERS, 16)],
        vec![readable(BUFFERS, 16), readable(DATA, 512)],
    ] {
        let mut rig = Rig::new(1 << 20, BlkOptions::default());
        rig.start();
        rig.driver.send(0, &chain);
        eventually("broken", || rig.driver.is_broken());
        rig.start();
        assert_eq!(rig.call(IN, 0, &[writable(DATA, 512)]), 0);
    }
}

#[test]
fn shutting_down_waits_for_the_disk() {
    let mut rig = Rig::new(1 << 20, BlkOptions::default());
    rig.start();
    rig.storage.hold_at_offset(512);
    rig.send(1, OUT, 1, &[readable(DATA, 512)]);
    eventually("held", || rig.storage.is_holding());
    let (storage, device) = (rig.storage.clone(), rig.device.clone());
    let executor = Executor::start("shutdown", Engine::Threads).unwrap();
    let shutdown = executor.handle().spawn(move || async move {
        device.shutdown().await;
        storage.is_holding()
    });
    std::thread::sleep(std::time::Duration::from_millis(10));
    rig.storage.release();
    assert!(!shutdown.wait().unwrap());
    assert_eq!(rig.status(1), 0xff);
}

#[test]
fn many_requests_on_many_queues() {
    let options = BlkOptions {
        queues: 4,
        ..BlkOptions::default()
    };
    let mut rig = Rig::new(1 << 20, options);
    rig.storage.set_faults(Faults {
        yielding: Some(1),
        ..Faults::default()
    });
    rig.driver.start(FLUSH_FEATURE | EVENT_IDX);
    for round in 0..60_u64 {
        let mut heads = Vec::new();
        for queue in 0..4_u16 {
            for index in 0..4_u64 {
                let slot = u64::from(queue) * 4 + index;
                let data = DATA + 512 * slot;
                let (kind, buffer) = if round % 2 == 0 {
                    rig.driver.put(data, &[(round * 16 + slot) as u8; 512]);
                    (OUT, readable(data, 512))
                } else {
                    rig.driver.put(data, &[0; 512]);
                    (IN, writable(data, 512))
                };
                let (header, status) = rig.header(slot, kind, slot * 3);
                heads.push((queue, rig.driver.offer(queue, &[header, buffer, status])));
            }
            rig.driver.notify(queue);
        }
        for queue in 0..4 {
            let mut wanted: Vec<u16> = heads
                .iter()
                .filter(|(of, _)| *of == queue)
                .map(|(_, head)| *head)
                .collect();
            let mut seen: Vec<u16> = (0..4).map(|_| rig.driver.wait_used(queue).0).collect();
            wanted.sort_unstable();
            seen.sort_unstable();
            assert_eq!(seen, wanted);
        }
        for slot in 0..16 {
            assert_eq!(rig.status(slot), 0);
            let byte = (round / 2 * 2 * 16 + slot) as u8;
            assert_eq!(rig.driver.get(DATA + 512 * slot, 512), [byte; 512]);
        }
    }
}

#[test]
fn options_that_cannot_be() {
    let storage = Storage::new(vec![0; 512]);
    let executor = Executor::start("disk", Engine::Threads).unwrap();
    let good = BlkOptions::default;
    for options in [
        BlkOptions {
            queues: 0,
            ..good()
        },
        BlkOptions {
            queues: 257,
            ..good()
        },
        BlkOptions {
            queue_size: 100,
            ..good()
        },
        BlkOptions {
            queue_size: 2,
            ..good()
        },
        BlkOptions {
            queue_size: 2048,
            ..good()
        },
        BlkOptions {
            logical_block_bytes: 256,
            ..good()
        },
        BlkOptions {
            physical_block_bytes: Some(1000),
            ..good()
        },
        BlkOptions {
            logical_block_bytes: 4096,
            physical_block_bytes: Some(512),
            ..good()
        },
    ] {
        let backend = backend_over(&storage, true);
        let errors = Arc::<Errors>::default();
        assert!(VirtioBlk::new(backend, options, vec![executor.handle()], errors).is_err());
    }
}

#[test]
fn conforms() {
    let executor = Executor::start("disk", Engine::Threads).unwrap();
    conformance::check(|| {
        let driver = Driver::new(small_disk(executor.handle()));
        Subject {
            device: driver.mmio.clone(),
            ranges: vec![(driver.mmio.clone(), MMIO_BYTES)],
            clock: Clock::stepped(),
            kept_by_reset: &[],
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever requests come, a disk of the same content that does them one after the other agrees, and the disk
    /// works on.
    #[test]
    fn any_requests(
        requests in proptest::collection::vec(
            (
                prop_oneof![Just(IN), Just(OUT), Just(FLUSH), Just(DISCARD), Just(WRITE_ZEROES), any::<u32>()],
                prop_oneof![8 => 0_u64..40, 1 => any::<u64>()],
                prop_oneof![4 => (0_u32..5).prop_map(|blocks| blocks * 512), 1 => 0_u32..2000],
                any::<bool>(),
                any::<u8>(),
            ),
            1..20,
        )
    ) {
        let mut rig = Rig::new(32 * 512, BlkOptions::default());
        rig.start();
        let mut model = rig.storage.content();
        for (kind, sector, bytes, is_writable, fill) in requests {
            rig.driver.put(DATA, &vec![fill; 2048]);
            let is_range = kind == DISCARD || kind == WRITE_ZEROES;
            let sectors = bytes / 512;
            if is_range {
                rig.driver.put(DATA, &range(sector, sectors, 0));
            }
            let bytes = if is_range { 16 } else { bytes };
            let data = Buffer { address: DATA, bytes, is_writable };
            let data = if bytes == 0 { vec![] } else { vec![data] };
            let status = rig.call(kind, sector, &data);
            let length = if is_range { u64::from(sectors) * 512 } else { u64::from(bytes) };
            let fits = sector.checked_mul(512).and_then(|at| at.checked_add(length)).is_some_and(|end| end <= 32 * 512);
            let is_whole = length % 512 == 0;
            let start = (sector as usize).wrapping_mul(512);
            let part = start..start.wrapping_add(length as usize);
            let has_data = bytes > 0 && !is_writable;
            match kind {
                OUT if has_data && fits && is_whole => {
                    prop_assert_eq!(status, 0);
                    model[part].fill(fill);
                }
                DISCARD | WRITE_ZEROES if has_data && fits => {
                    prop_assert_eq!(status, 0);
                    model[part].fill(0);
                }
                IN if bytes > 0 && is_writable && fits && is_whole => {
                    prop_assert_eq!(status, 0);
                    prop_assert_eq!(&rig.driver.get(DATA, bytes as usize), &model[part]);
                }
                FLUSH | GET_ID => prop_assert_eq!(status, 0),
                // Nothing to read or write.
                IN if bytes == 0 || !is_writable => prop_assert!(status < 2),
                OUT if !has_data => prop_assert!(status < 2),
                IN | OUT | DISCARD | WRITE_ZEROES => prop_assert_eq!(status, 1),
                _ => prop_assert_eq!(status, 2),
            }
            prop_assert!(rig.storage.content() == model);
        }
    }
}

#[test]
fn a_file_through_io_uring() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let options = FileOptions {
        protocol: HostProtocol::File,
        filename: file.path().to_str().unwrap().to_owned(),
        read_only: false,
        auto_read_only: false,
        direct: false,
        locking: true,
    };
    let file_driver = FileDriver::open(options, Arc::new(HostOpener)).unwrap();
    let backend = backend(Box::new(file_driver), true);
    let executor = Executor::start("disk", Engine::Uring).unwrap();
    let handles = vec![executor.handle()];
    let errors = Arc::<Errors>::default();
    let device = VirtioBlk::new(backend, BlkOptions::default(), handles, errors).unwrap();
    let mut driver = Driver::new(device);
    driver.start(FLUSH_FEATURE | EVENT_IDX);
    let header = |driver: &Driver, kind: u32, sector: u64| {
        driver.put(BUFFERS, &kind.to_le_bytes());
        driver.put(BUFFERS + 8, &sector.to_le_bytes());
    };
    let status = writable(BUFFERS + 16, 1);
    for round in 0..20_u8 {
        let at = 16 * 4096 * usize::from(round % 15);
        driver.put(DATA, &[round + 1; 4096 * 16]);
        header(&driver, OUT, at as u64 / 512);
        let data = [
            readable(DATA, 4096 * 7),
            readable(DATA + 4096 * 7, 4096 * 9),
        ];
        driver.send(0, &[readable(BUFFERS, 16), data[0], data[1], status]);
        driver.wait_used(0);
        assert_eq!(driver.get(BUFFERS + 16, 1), [0]);
        let content = std::fs::read(file.path()).unwrap();
        assert!(content[at..at + 4096 * 16] == [round + 1; 4096 * 16]);
        header(&driver, IN, at as u64 / 512 + 1);
        driver.send(
            0,
            &[
                readable(BUFFERS, 16),
                writable(DATA + 0x2_0000, 1024),
                status,
            ],
        );
        driver.wait_used(0);
        assert_eq!(driver.get(DATA + 0x2_0000, 1024), [round + 1; 1024]);
    }
}

/// After a pause nothing moves in guest memory, whatever was under way; afterwards nothing is missing.
#[test]
fn pauses_in_the_middle_of_requests() {
    let options = BlkOptions {
        queues: 2,
        ..BlkOptions::default()
    };
    let mut rig = Rig::new(1 << 20, options);
    rig.driver.start(FLUSH_FEATURE | EVENT_IDX);
    let ram = |rig: &Rig| {
        rig.driver
            .get(RAM_START, (DATA - RAM_START) as usize + 0x4000)
    };
    let mut caught = 0;
    for round in 0..150_u64 {
        rig.storage.set_faults(Faults {
            yielding: Some(round + 1),
            ..Faults::default()
        });
        for queue in 0..2_u16 {
            for index in 0..4 {
                let slot = u64::from(queue) * 4 + index;
                rig.driver.put(DATA + 512 * slot, &[0xff; 512]);
                let (header, status) = rig.header(slot, IN, slot + round);
                let data = writable(DATA + 512 * slot, 512);
                rig.driver.offer(queue, &[header, data, status]);
            }
            rig.driver.notify(queue);
        }
        for _ in 0..round % 7 * 300 {
            std::hint::spin_loop();
        }
        rig.driver.mmio.core().pause();
        let before = ram(&rig);
        std::thread::sleep(std::time::Duration::from_micros(300));
        assert!(ram(&rig) == before, "round {round}: something moved");
        caught += (0..8).filter(|slot| rig.status(*slot) == 0xff).count();
        if round % 3 == 0 {
            // Saved, and restored into the same device: the requests are done again.
            let saved = rig.driver.mmio.save().unwrap();
            rig.driver.mmio.restore(&saved).unwrap();
        }
        rig.driver.mmio.core().resume();
        for queue in 0..2 {
            for _ in 0..4 {
                rig.driver.wait_used(queue);
            }
            assert_eq!(rig.driver.take_used(queue), None);
        }
        for slot in 0..8 {
            assert_eq!(rig.status(slot), 0);
            let wanted = [(slot + round) as u8; 512];
            assert_eq!(rig.driver.get(DATA + 512 * slot, 512), wanted);
        }
    }
    assert!(caught > 0, "no pause fell between a request and its answer");
}
