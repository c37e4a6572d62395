use device::conformance::{self, Subject};
use device::doubles::RecordingPins;

use super::*;

struct Bench {
    hpet: Arc<Hpet>,
    clock: Clock,
    pins: Arc<RecordingPins>,
    gate: Arc<IrqGate>,
}

impl Bench {
    /// Inputs are pins 0 to 23, the legacy lines 100 and 108, the gated line 50.
    fn new() -> Bench {
        let clock = Clock::stepped();
        let pins = Arc::new(RecordingPins::default());
        let line = |pin| IrqLine::new(pins.clone(), pin);
        let gate = IrqGate::new(line(50));
        let lines = HpetLines {
            inputs: (0..24).map(line).collect(),
            routes: 0x00ff_0000,
            legacy_timer: line(100),
            legacy_rtc: line(108),
            gates: vec![gate.clone()],
            messages: pins.clone(),
        };
        let hpet = Hpet::new(&clock, lines);
        hpet.reset(ResetKind::PowerOn);
        Bench {
            hpet,
            clock,
            pins,
            gate,
        }
    }

    fn read(&self, offset: u64) -> u64 {
        self.hpet.read(offset, Width::Qword)
    }

    fn write(&self, offset: u64, value: u64) {
        self.hpet.write(offset, Width::Qword, value);
    }
}

#[test]
fn capabilities() {
    let bench = Bench::new();
    assert_eq!(bench.read(0), 0x0098_9680_8086_a201);
    assert_eq!(bench.hpet.read(4, Width::Dword), 10_000_000);
    assert_eq!(bench.read(0x120), 0x00ff_0000_0000_8030);
    assert_eq!(bench.read(0x160), 0);
}

#[test]
fn the_counter_runs_while_enabled() {
    let bench = Bench::new();
    bench.write(0xf0, 1000);
    bench.clock.step(1000);
    assert_eq!(bench.read(0xf0), 1000);
    bench.write(0x10, 1);
    bench.clock.step(1005);
    assert_eq!(bench.read(0xf0), 1100);
    bench.clock.step(5);
    assert_eq!(bench.read(0xf0), 1101);
    bench.write(0xf0, 5);
    assert_eq!(bench.read(0xf0), 1101);
    bench.write(0x10, 0);
    bench.clock.step(1000);
    assert_eq!(bench.read(0xf0), 1101);
}

#[test]
fn a_one_shot_fires_once_at_its_comparator() {
    let bench = Bench::new();
    bench.write(0x100, 17 << 9 | T_INTERRUPTS);
    bench.write(0x108, 500);
    bench.write(0x10, 1);
    bench.clock.step(4990);
    assert!(bench.pins.take().is_empty());
    bench.clock.step(10);
    assert_eq!(bench.pins.take(), [(17, true), (17, false)]);
    bench.clock.step(1_000_000);
    assert!(bench.pins.take().is_empty());
}

#[test]
fn a_periodic_timer_as_linux_programs_it() {
    let bench = Bench::new();
    bench.write(0x10, 1);
    bench.write(
        0x120,
        20 << 9 | T_INTERRUPTS | T_PERIODIC | T_SET_VALUE | T_32_BITS,
    );
    bench.hpet.write(0x128, Width::Dword, 2000);
    bench.hpet.write(0x128, Width::Dword, 5000);
    bench.clock.step(20_000);
    assert_eq!(bench.pins.take(), [(20, true), (20, false)]);
    assert_eq!(bench.read(0x128), 7000);
    bench.clock.step(500_000);
    assert_eq!(bench.pins.take().len(), 20);
}

#[test]
fn a_level_stands_until_its_status_is_cleared() {
    let bench = Bench::new();
    bench.write(0x140, 16 << 9 | T_INTERRUPTS | T_LEVEL);
    bench.write(0x148, 100);
    bench.write(0x10, 1);
    bench.clock.step(1000);
    assert_eq!(bench.pins.take(), [(16, true)]);
    assert_eq!(bench.read(0x20), 4);
    bench.hpet.write(0x24, Width::Dword, 0xffff_ffff);
    assert_eq!(bench.read(0x20), 4);
    bench.write(0x20, 4);
    assert_eq!(bench.pins.take(), [(16, false)]);
}

#[test]
fn legacy_replacement_takes_the_old_lines() {
    use device::InterruptController;

    let bench = Bench::new();
    bench.gate.set_level(0, true);
    bench.pins.take();
    bench.write(0x100, T_INTERRUPTS);
    bench.write(0x108, 100);
    bench.write(0x120, T_INTERRUPTS);
    bench.write(0x128, 200);
    bench.write(0x10, 3);
    assert_eq!(bench.pins.take(), [(50, false)]);
    bench.clock.step(2000);
    assert_eq!(
        bench.pins.take(),
        [(100, true), (100, false), (108, true), (108, false)]
    );
    bench.write(0x10, 1);
    assert_eq!(bench.pins.take(), [(50, true)]);
}

#[test]
fn a_message() {
    let bench = Bench::new();
    bench.write(0x100, T_INTERRUPTS | T_MESSAGE);
    bench.write(0x110, 0xfee0_1000_0000_4055);
    bench.write(0x108, 10);
    bench.write(0x10, 1);
    bench.clock.step(100);
    assert_eq!(
        bench.pins.take_messages(),
        [MsiMessage {
            address: 0xfee0_1000,
            data: 0x4055
        }]
    );
    assert!(bench.pins.take().is_empty());
}

#[test]
fn a_route_that_is_not_allowed_goes_nowhere() {
    let bench = Bench::new();
    bench.write(0x100, 3 << 9 | T_INTERRUPTS);
    bench.write(0x108, 10);
    bench.write(0x10, 1);
    bench.clock.step(1000);
    assert!(bench.pins.take().is_empty());
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let Bench { hpet, clock, .. } = Bench::new();
        Subject {
            ranges: vec![(hpet.clone(), 0x400)],
            device: hpet,
            clock,
            kept_by_reset: &["since_ns"],
        }
    });
}
