use device::Clock;
use device::conformance::{self, Subject};

use super::*;
use crate::apic::{ApicPlace, CpuPort, CpuSignal, LocalApic, Pending, TscClock};

struct Cpu;

impl CpuPort for Cpu {
    fn wake(&self) {}

    fn signal(&self, _signal: CpuSignal) {}
}

impl TscClock for Cpu {
    fn ns_at(&self, tsc: u64) -> u64 {
        tsc
    }
}

struct Bench {
    ioapic: Arc<IoApic>,
    local: Arc<LocalApic>,
}

impl Bench {
    fn new() -> Bench {
        let bus = ApicBus::new();
        let place = ApicPlace {
            id: 0,
            bootstrap: true,
        };
        let local = LocalApic::new(place, &bus, Arc::new(Cpu), Arc::new(Cpu), &Clock::stepped());
        local.write(0xf0, Width::Dword, 0x1ff);
        let ioapic = IoApic::new(&bus);
        Bench { ioapic, local }
    }

    fn read(&self, index: u8) -> u32 {
        self.ioapic.write(0, Width::Dword, u64::from(index));
        self.ioapic.read(0x10, Width::Dword) as u32
    }

    fn write(&self, index: u8, value: u32) {
        self.ioapic.write(0, Width::Dword, u64::from(index));
        self.ioapic.write(0x10, Width::Dword, u64::from(value));
    }

    /// Takes the pending vector and ends it.
    fn take(&self) -> Option<u8> {
        let Some(Pending::Vector(vector)) = self.local.pending() else {
            return None;
        };
        self.local.accept(vector);
        self.local.write(0xb0, Width::Dword, 0);
        Some(vector)
    }
}

#[test]
fn registers() {
    let bench = Bench::new();
    assert_eq!(bench.read(1), 0x0017_0020);
    bench.write(0, 0xffff_ffff);
    assert_eq!(bench.read(0), 0x0f00_0000);
    assert_eq!(bench.read(2), 0x0f00_0000);
    assert_eq!(bench.read(0x10), 0x10000);
    bench.write(0x3e, 0xffff_ffff);
    bench.write(0x3f, 0xffff_ffff);
    assert_eq!(
        (bench.read(0x3e), bench.read(0x3f)),
        (0x1_afff, 0xff00_0000)
    );
    assert_eq!(bench.read(0x40), 0);
}

#[test]
fn an_edge_is_sent_once() {
    let bench = Bench::new();
    bench.write(0x12, 0x31);
    bench.ioapic.set_level(1, true);
    assert_eq!(bench.take(), Some(0x31));
    assert_eq!(bench.take(), None);
    bench.ioapic.set_level(1, false);
    bench.ioapic.set_level(1, true);
    assert_eq!(bench.take(), Some(0x31));
}

#[test]
fn an_edge_at_a_masked_input_is_lost() {
    let bench = Bench::new();
    bench.ioapic.set_level(4, true);
    bench.write(0x18, 0x34);
    assert_eq!(bench.take(), None);
}

#[test]
fn a_level_is_sent_again_after_its_end() {
    let bench = Bench::new();
    bench.write(0x1a, 0x8035);
    bench.ioapic.set_level(5, true);
    assert_eq!(bench.read(0x1a), 0xc035);
    assert_eq!(bench.take(), Some(0x35));
    // The end cleared the remote IRR, the level set it again.
    assert_eq!(bench.read(0x1a), 0xc035);
    bench.ioapic.set_level(5, false);
    assert_eq!(bench.take(), Some(0x35));
    assert_eq!(bench.take(), None);
    assert_eq!(bench.read(0x1a), 0x8035);
}

#[test]
fn a_level_waits_behind_its_mask() {
    let bench = Bench::new();
    bench.write(0x1a, 0x1_8035);
    bench.ioapic.set_level(5, true);
    assert_eq!(bench.take(), None);
    bench.write(0x1a, 0x8035);
    assert_eq!(bench.take(), Some(0x35));
}

#[test]
fn the_eoi_register_ends_directly() {
    let bench = Bench::new();
    bench.write(0x1a, 0x8035);
    bench.ioapic.set_level(5, true);
    bench.ioapic.set_level(5, false);
    bench.ioapic.write(0x40, Width::Dword, 0x35);
    assert_eq!(bench.read(0x1a), 0x8035);
}

#[test]
fn the_message_of_an_input() {
    let bench = Bench::new();
    assert_eq!(bench.ioapic.message(9), None);
    bench.write(0x23, 0x0200_0000);
    bench.write(0x22, 0x8859);
    assert_eq!(
        bench.ioapic.message(9),
        Some(InterruptMessage {
            destination: Destination::Logical(2),
            delivery: Delivery::Fixed,
            vector: 0x59,
            level: true,
        })
    );
    assert_eq!(bench.ioapic.message(24), None);
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let device = IoApic::new(&ApicBus::new());
        Subject {
            ranges: vec![(device.clone(), 0x1000)],
            device,
            clock: Clock::stepped(),
            kept_by_reset: &[],
        }
    });
}
