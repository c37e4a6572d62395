use std::sync::Arc;

use device::conformance::{self, Subject};
use device::{Clock, Device, InterruptController, IoHandler, ResetKind, Width};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Cpu {
    wakes: Mutex<u32>,
    signals: Mutex<Vec<CpuSignal>>,
}

impl CpuPort for Cpu {
    fn wake(&self) {
        *self.wakes.lock() += 1;
    }

    fn signal(&self, signal: CpuSignal) {
        self.signals.lock().push(signal);
    }
}

/// A counter at 2 GHz.
struct Tsc;

impl TscClock for Tsc {
    fn ns_at(&self, tsc: u64) -> u64 {
        tsc / 2
    }
}

#[derive(Default)]
struct Ends(Mutex<Vec<u8>>);

impl EoiListener for Ends {
    fn end_of_interrupt(&self, vector: u8) {
        self.0.lock().push(vector);
    }
}

struct Bench {
    bus: Arc<ApicBus>,
    clock: Clock,
    ends: Arc<Ends>,
    cpus: Vec<Arc<Cpu>>,
    locals: Vec<Arc<LocalApic>>,
}

impl Bench {
    /// So many processors, all APICs switched on.
    fn new(count: u32) -> Bench {
        let bus = ApicBus::new();
        let clock = Clock::stepped();
        let ends = Arc::new(Ends::default());
        let listener: Arc<dyn EoiListener> = ends.clone();
        bus.add_eoi_listener(Arc::downgrade(&listener));
        let mut bench = Bench {
            bus,
            clock,
            ends,
            cpus: Vec::new(),
            locals: Vec::new(),
        };
        for id in 0..count {
            let cpu = Arc::new(Cpu::default());
            let place = ApicPlace {
                id,
                bootstrap: id == 0,
            };
            let local = LocalApic::new(place, &bench.bus, cpu.clone(), Arc::new(Tsc), &bench.clock);
            local.reset(ResetKind::PowerOn);
            bench.cpus.push(cpu);
            bench.locals.push(local);
            bench.write(id, 0xf0, 0x1ff);
        }
        bench
    }

    fn read(&self, cpu: u32, offset: u64) -> u32 {
        self.locals[cpu as usize].read(offset, Width::Dword) as u32
    }

    fn write(&self, cpu: u32, offset: u64, value: u32) {
        self.locals[cpu as usize].write(offset, Width::Dword, u64::from(value));
    }

    fn pending(&self, cpu: u32) -> Option<Pending> {
        self.locals[cpu as usize].pending()
    }

    fn ipi(&self, from: u32, to: u32, command: u32) {
        self.write(from, 0x310, to << 24);
        self.write(from, 0x300, command);
    }

    fn send(&self, vector: u8, level: bool) {
        self.bus.deliver(&InterruptMessage {
            destination: Destination::Physical(0),
            delivery: Delivery::Fixed,
            vector,
            level,
        });
    }
}

#[test]
fn values_after_reset() {
    let bench = Bench::new(2);
    bench.locals[1].reset(ResetKind::System);
    let read = |offset| bench.read(1, offset);
    assert_eq!(read(0x20), 0x0100_0000);
    assert_eq!(read(0x30), 0x0105_0014);
    assert_eq!(read(0xf0), 0xff);
    assert_eq!(read(0xe0), 0xffff_ffff);
    for lvt in [0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
        assert_eq!(read(lvt), 0x10000);
    }
    assert_eq!(bench.locals[1].base(), 0xfee0_0800);
    assert_eq!(bench.locals[0].base(), 0xfee0_0900);
}

#[test]
fn an_interrupt_is_taken_and_ended() {
    let bench = Bench::new(1);
    bench.send(0x41, false);
    assert_eq!(*bench.cpus[0].wakes.lock(), 1);
    assert_eq!(bench.pending(0), Some(Pending::Vector(0x41)));
    assert_eq!(bench.read(0, 0x220), 2);
    assert!(bench.locals[0].accept(0x41));
    assert!(!bench.locals[0].accept(0x41));
    assert_eq!(bench.read(0, 0x120), 2);
    assert_eq!(bench.read(0, 0xa0), 0x40);
    bench.send(0x45, false);
    assert_eq!(bench.pending(0), None);
    bench.send(0x51, false);
    assert_eq!(bench.pending(0), Some(Pending::Vector(0x51)));
    assert!(bench.locals[0].accept(0x51));
    bench.write(0, 0xb0, 0);
    assert_eq!(bench.read(0, 0xa0), 0x40);
    bench.write(0, 0xb0, 0);
    assert_eq!(bench.pending(0), Some(Pending::Vector(0x45)));
    assert!(bench.ends.0.lock().is_empty());
}

#[test]
fn the_task_priority_holds_vectors_back() {
    let bench = Bench::new(1);
    bench.locals[0].set_cr8(4);
    assert_eq!(bench.read(0, 0x80), 0x40);
    bench.send(0x4f, false);
    assert_eq!(bench.pending(0), None);
    bench.write(0, 0x80, 0x3f);
    assert_eq!(bench.locals[0].cr8(), 3);
    assert_eq!(bench.pending(0), Some(Pending::Vector(0x4f)));
    assert_eq!(bench.read(0, 0xa0), 0x3f);
}

#[test]
fn the_end_of_a_level_interrupt_is_told() {
    let bench = Bench::new(1);
    bench.send(0x61, true);
    bench.locals[0].accept(0x61);
    assert_eq!(bench.read(0, 0x1b0), 2);
    bench.write(0, 0xb0, 0);
    assert_eq!(bench.ends.0.lock().as_slice(), [0x61]);
    bench.write(0, 0xf0, 0x11ff);
    bench.send(0x61, true);
    bench.locals[0].accept(0x61);
    bench.write(0, 0xb0, 0);
    assert_eq!(bench.ends.0.lock().len(), 1);
}

#[test]
fn interprocessor_interrupts_reach_whom_they_name() {
    let bench = Bench::new(3);
    bench.ipi(0, 2, 0x50);
    assert_eq!(
        [0, 1, 2].map(|cpu| bench.pending(cpu)),
        [None, None, Some(Pending::Vector(0x50))]
    );
    bench.ipi(1, 0, 0xc_0051);
    let waits = |cpu, vector: u32| {
        bench.read(cpu, 0x200 + u64::from(vector / 32) * 16) & 1 << (vector % 32) != 0
    };
    assert_eq!([0, 1, 2].map(|cpu| waits(cpu, 0x51)), [true, false, true]);
    bench.ipi(1, 0, 0x4_0052);
    assert_eq!([0, 1, 2].map(|cpu| waits(cpu, 0x52)), [false, true, false]);
    bench.ipi(1, 0, 0x8_0053);
    assert_eq!([0, 1, 2].map(|cpu| waits(cpu, 0x53)), [true; 3]);
    bench.ipi(1, 0xff, 0x54);
    assert_eq!([0, 1, 2].map(|cpu| waits(cpu, 0x54)), [true; 3]);
}

#[test]
fn logical_destinations() {
    let bench = Bench::new(3);
    for cpu in 0..3 {
        bench.write(cpu, 0xd0, 1 << (24 + cpu));
    }
    bench.ipi(0, 0b110, 0x850);
    assert_eq!(
        [0, 1, 2].map(|cpu| bench.pending(cpu).is_some()),
        [false, true, true]
    );
    // Clusters: processor 2 in cluster 1.
    for (cpu, ldr) in [(0, 0x01), (1, 0x02), (2, 0x11)] {
        bench.write(cpu, 0xe0, 0x0fff_ffff);
        bench.write(cpu, 0xd0, ldr << 24);
    }
    bench.ipi(0, 0x11, 0x861);
    assert_eq!(
        [0, 1, 2].map(|cpu| bench.read(cpu, 0x230) == 2),
        [false, false, true]
    );
    bench.ipi(0, 0x03, 0x862);
    assert_eq!(
        [0, 1, 2].map(|cpu| bench.read(cpu, 0x230) & 4 != 0),
        [true, true, false]
    );
}

#[test]
fn the_lowest_priority_takes_it() {
    let bench = Bench::new(3);
    bench.write(0, 0x80, 0x20);
    bench.write(2, 0x80, 0x10);
    bench.write(1, 0x80, 0x30);
    bench.bus.deliver(&InterruptMessage {
        destination: Destination::All,
        delivery: Delivery::LowestPriority,
        vector: 0x90,
        level: false,
    });
    assert_eq!(
        [0, 1, 2].map(|cpu| bench.pending(cpu).is_some()),
        [false, false, true]
    );
}

#[test]
fn init_and_start_up_are_signals() {
    let bench = Bench::new(2);
    bench.write(1, 0x80, 0x70);
    bench.ipi(0, 1, 0xc500);
    bench.ipi(0, 1, 0x8500);
    bench.ipi(0, 1, 0x0699);
    bench.ipi(0, 1, 0x0400);
    assert_eq!(
        bench.cpus[1].signals.lock().as_slice(),
        [CpuSignal::Init, CpuSignal::StartUp(0x99), CpuSignal::Nmi]
    );
    assert_eq!((bench.read(1, 0x80), bench.read(1, 0xf0)), (0, 0xff));
    assert_eq!(bench.read(1, 0x20), 0x0100_0000);
}

#[test]
fn a_software_disabled_apic_takes_no_vectors() {
    let bench = Bench::new(1);
    bench.write(0, 0x350, 0x700);
    bench.write(0, 0xf0, 0xff);
    assert_eq!(bench.read(0, 0x350), 0x10700);
    bench.send(0x41, false);
    assert_eq!(bench.pending(0), None);
    bench.write(0, 0x350, 0x700);
    assert_eq!(bench.read(0, 0x350), 0x10700);
}

#[test]
fn errors_are_noted_and_told() {
    let bench = Bench::new(1);
    bench.write(0, 0x370, 0xfe);
    bench.send(0x0f, false);
    assert_eq!(bench.pending(0), Some(Pending::Vector(0xfe)));
    assert_eq!(bench.read(0, 0x280), 0);
    bench.write(0, 0x280, 0);
    assert_eq!(bench.read(0, 0x280), 0x40);
    bench.ipi(0, 0, 0x03);
    bench.read(0, 0x40);
    bench.write(0, 0x280, 0);
    assert_eq!(bench.read(0, 0x280), 0xa0);
}

#[test]
fn a_one_shot_timer() {
    let bench = Bench::new(1);
    bench.write(0, 0x3e0, 0x3);
    bench.write(0, 0x320, 0x40);
    bench.write(0, 0x380, 1000);
    bench.clock.step(8000);
    assert_eq!(bench.read(0, 0x390), 500);
    bench.clock.step(7999);
    assert_eq!(bench.pending(0), None);
    bench.clock.step(1);
    assert_eq!(bench.pending(0), Some(Pending::Vector(0x40)));
    assert_eq!(bench.read(0, 0x390), 0);
    bench.locals[0].accept(0x40);
    bench.write(0, 0xb0, 0);
    bench.clock.step(100_000);
    assert_eq!(bench.pending(0), None);
}

#[test]
fn a_periodic_timer() {
    let bench = Bench::new(1);
    bench.write(0, 0x3e0, 0xb);
    bench.write(0, 0x320, 0x2_0040);
    bench.write(0, 0x380, 100_000);
    let mut count = 0;
    for _ in 0..1000 {
        bench.clock.step(10_000);
        if bench.pending(0).is_some() {
            bench.locals[0].accept(0x40);
            bench.write(0, 0xb0, 0);
            count += 1;
        }
    }
    assert_eq!(count, 100);
    bench.write(0, 0x320, 0x3_0040);
    bench.clock.step(1_000_000);
    assert_eq!(bench.pending(0), None);
    bench.write(0, 0x380, 0);
    assert_eq!(bench.read(0, 0x390), 0);
}

#[test]
fn changing_the_divider_keeps_the_count() {
    let bench = Bench::new(1);
    bench.write(0, 0x3e0, 0xb);
    bench.write(0, 0x320, 0x40);
    bench.write(0, 0x380, 1000);
    bench.clock.step(400);
    bench.write(0, 0x3e0, 0x0);
    assert_eq!(bench.read(0, 0x390), 600);
    bench.clock.step(1200);
    assert_eq!(bench.pending(0), Some(Pending::Vector(0x40)));
}

#[test]
fn a_deadline_of_the_time_stamp_counter() {
    let bench = Bench::new(1);
    let local = &bench.locals[0];
    local.set_tsc_deadline(77);
    assert_eq!(local.tsc_deadline(), 0);
    bench.write(0, 0x320, 0x4_0042);
    bench.write(0, 0x380, 5);
    assert_eq!(bench.read(0, 0x380), 0);
    local.set_tsc_deadline(2000);
    bench.clock.step(999);
    assert_eq!(bench.pending(0), None);
    assert_eq!(local.tsc_deadline(), 2000);
    bench.clock.step(1);
    assert_eq!(bench.pending(0), Some(Pending::Vector(0x42)));
    assert_eq!(local.tsc_deadline(), 0);
    local.set_tsc_deadline(9000);
    local.set_tsc_deadline(0);
    local.accept(0x42);
    bench.write(0, 0xb0, 0);
    bench.clock.step(10_000);
    assert_eq!(bench.pending(0), None);
}

#[test]
fn local_interrupt_pins() {
    let bench = Bench::new(1);
    let local = &bench.locals[0];
    bench.write(0, 0x350, 0x700);
    bench.write(0, 0x360, 0x400);
    local.set_level(0, true);
    assert_eq!(local.pending(), Some(Pending::External));
    local.set_level(0, false);
    assert_eq!(local.pending(), None);
    local.set_level(1, true);
    assert_eq!(bench.cpus[0].signals.lock().as_slice(), [CpuSignal::Nmi]);
    // A level interrupt by LINT0.
    bench.write(0, 0x350, 0x8044);
    local.set_level(0, true);
    assert_eq!(local.pending(), Some(Pending::Vector(0x44)));
    assert_eq!(bench.read(0, 0x350), 0xc044);
    local.accept(0x44);
    bench.write(0, 0xb0, 0);
    assert_eq!(local.pending(), Some(Pending::Vector(0x44)));
    local.set_level(0, false);
    local.accept(0x44);
    bench.write(0, 0xb0, 0);
    assert_eq!(local.pending(), None);
    assert_eq!(bench.read(0, 0x350), 0x8044);
}

#[test]
fn an_apic_that_is_off_passes_the_pins_through() {
    let bench = Bench::new(1);
    let local = &bench.locals[0];
    local.set_base(0xfee0_0000).unwrap();
    local.set_level(0, true);
    local.set_level(1, true);
    assert_eq!(local.pending(), Some(Pending::External));
    assert_eq!(bench.cpus[0].signals.lock().as_slice(), [CpuSignal::Nmi]);
    assert_eq!(bench.read(0, 0x30), 0xffff_ffff);
}

#[test]
fn x2apic_mode() {
    let bench = Bench::new(1);
    let local = &bench.locals[0];
    assert_eq!(local.read_msr(0x802), Err(GeneralProtection));
    local.set_base(0xfee0_0d00).unwrap();
    assert_eq!(local.base(), 0xfee0_0d00);
    assert_eq!(local.read_msr(0x802), Ok(0));
    assert_eq!(local.read_msr(0x80d), Ok(1));
    assert_eq!(local.read_msr(0x80b), Err(GeneralProtection));
    assert_eq!(local.read_msr(0x80e), Err(GeneralProtection));
    assert_eq!(local.write_msr(0x80b, 1), Err(GeneralProtection));
    assert_eq!(local.write_msr(0x802, 0), Err(GeneralProtection));
    assert_eq!(
        local.write_msr(0x808, 0x1_0000_0000),
        Err(GeneralProtection)
    );
    local.write_msr(0x80f, 0x1ff).unwrap();
    local.write_msr(0x83f, 0x55).unwrap();
    assert_eq!(local.pending(), Some(Pending::Vector(0x55)));
    local.accept(0x55);
    local.write_msr(0x80b, 0).unwrap();
    local.write_msr(0x830, 0x66).unwrap();
    assert_eq!(local.pending(), Some(Pending::Vector(0x66)));
    assert_eq!(local.read_msr(0x830), Ok(0x66));
    assert_eq!(bench.read(0, 0x30), 0xffff_ffff);
    // Back to xAPIC only through off.
    assert_eq!(local.set_base(0xfee0_0900), Err(GeneralProtection));
    assert_eq!(local.set_base(0xfee0_0400), Err(GeneralProtection));
    local.set_base(0xfee0_0000).unwrap();
    local.set_base(0xfee0_0800).unwrap();
    assert_eq!(local.base(), 0xfee0_0900);
    assert_eq!(bench.read(0, 0xf0), 0xff);
}

#[test]
fn x2apic_clusters() {
    let bench = Bench::new(18);
    for local in &bench.locals {
        local.set_base(0xfee0_0c00).unwrap();
    }
    bench.locals[0]
        .write_msr(0x830, 0x0001_0003_0000_0877)
        .unwrap();
    let waits: Vec<usize> = (0..18)
        .filter(|cpu| bench.pending(*cpu as u32).is_some())
        .collect();
    assert_eq!(waits, [16, 17]);
}

proptest! {
    /// Vectors are taken highest class first, and each exactly once.
    #[test]
    fn priority_order(vectors in prop::collection::btree_set(16_u8..=255, 1..30)) {
        let bench = Bench::new(1);
        for vector in &vectors {
            bench.send(*vector, false);
        }
        let mut taken = Vec::new();
        while let Some(Pending::Vector(vector)) = bench.pending(0) {
            prop_assert!(bench.locals[0].accept(vector));
            bench.write(0, 0xb0, 0);
            taken.push(vector);
        }
        let expected: Vec<u8> = vectors.into_iter().rev().collect();
        prop_assert_eq!(taken, expected);
    }
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let bus = ApicBus::new();
        let clock = Clock::stepped();
        let place = ApicPlace {
            id: 3,
            bootstrap: true,
        };
        let device = LocalApic::new(place, &bus, Arc::new(Cpu::default()), Arc::new(Tsc), &clock);
        Subject {
            ranges: vec![(device.clone(), 0x1000)],
            device,
            clock,
            kept_by_reset: &[],
        }
    });
}
