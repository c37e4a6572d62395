use device::conformance::{self, Subject};
use device::doubles::RecordingPins;

use super::*;

/// 2023-11-14 22:13:20 UTC, a Tuesday.
const START_S: u64 = 1_700_000_000;

struct Bench {
    rtc: Arc<Rtc>,
    clock: Clock,
    pins: Arc<RecordingPins>,
}

impl Bench {
    fn new() -> Bench {
        let clock = Clock::stepped();
        let pins = Arc::new(RecordingPins::default());
        let wall = WallClock::Guest {
            clock: clock.clone(),
            start_unix_ns: START_S * SECOND_NS,
        };
        let rtc = Rtc::new(&clock, wall, IrqLine::new(pins.clone(), 8));
        rtc.reset(ResetKind::PowerOn);
        Bench { rtc, clock, pins }
    }

    fn read(&self, index: u8) -> u8 {
        self.rtc.write(0, Width::Byte, u64::from(index));
        self.rtc.read(1, Width::Byte) as u8
    }

    fn write(&self, index: u8, byte: u8) {
        self.rtc.write(0, Width::Byte, u64::from(index));
        self.rtc.write(1, Width::Byte, u64::from(byte));
    }

    fn time(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.read(index))
    }
}

#[test]
fn it_shows_the_time_of_day() {
    let bench = Bench::new();
    assert_eq!(
        bench.time(),
        [0x20, 0x23, 0x11, 0x14, 0x03, 0x22, 0x13, 0x20]
    );
    bench.clock.step(41 * SECOND_NS);
    assert_eq!(
        bench.time(),
        [0x20, 0x23, 0x11, 0x14, 0x03, 0x22, 0x14, 0x01]
    );
    bench.write(0x0b, 0x04);
    bench.clock.step(SECOND_NS);
    assert_eq!(bench.time(), [20, 23, 11, 14, 3, 0x80 | 10, 14, 2]);
}

#[test]
fn registers_a_and_d() {
    let bench = Bench::new();
    assert_eq!(bench.read(0x0d), 0x80);
    assert_eq!(bench.read(0x0a), 0x26);
    bench.clock.step(SECOND_NS - UIP_NS - 1);
    assert_eq!(bench.read(0x0a), 0x26);
    bench.clock.step(1);
    assert_eq!(bench.read(0x0a), 0xa6);
    bench.clock.step(UIP_NS);
    assert_eq!(bench.read(0x0a), 0x26);
}

#[test]
fn set_holds_the_time_while_it_is_written() {
    let bench = Bench::new();
    bench.write(0x0b, 0x82);
    for (index, byte) in [
        (0, 0x58),
        (2, 0x59),
        (4, 0x23),
        (6, 0x07),
        (7, 0x31),
        (8, 0x12),
        (9, 0x99),
        (0x32, 0x19),
    ] {
        bench.write(index, byte);
    }
    bench.clock.step(5 * SECOND_NS);
    assert_eq!(
        bench.time(),
        [0x19, 0x99, 0x12, 0x31, 0x07, 0x23, 0x59, 0x58]
    );
    bench.write(0x0b, 0x02);
    bench.clock.step(2 * SECOND_NS);
    assert_eq!(
        bench.time(),
        [0x20, 0x00, 0x01, 0x01, 0x01, 0x00, 0x00, 0x00]
    );
    assert!(bench.rtc.offset_s() < -700_000_000);
}

#[test]
fn a_byte_of_the_running_time_can_be_written() {
    let bench = Bench::new();
    bench.write(4, 0x07);
    assert_eq!(
        bench.time(),
        [0x20, 0x23, 0x11, 0x14, 0x03, 0x07, 0x13, 0x20]
    );
    bench.clock.step(SECOND_NS);
    assert_eq!(bench.read(0), 0x21);
    assert_eq!(bench.rtc.offset_s(), -15 * 3600);
}

#[test]
fn the_update_interrupt_comes_each_second() {
    let bench = Bench::new();
    bench.read(0x0c);
    bench.write(0x0b, 0x12);
    bench.clock.step(SECOND_NS - 1);
    assert!(!bench.pins.level(8));
    bench.clock.step(1);
    assert!(bench.pins.level(8));
    assert_eq!(bench.read(0x0c) & 0xb0, 0x90);
    assert!(!bench.pins.level(8));
    assert_eq!(bench.read(0x0c), 0);
    bench.clock.step(SECOND_NS);
    assert!(bench.pins.level(8));
}

#[test]
fn flags_are_set_without_interrupts_too() {
    let bench = Bench::new();
    bench.read(0x0c);
    bench.clock.step(3 * SECOND_NS);
    assert_eq!(bench.read(0x0c), 0x50);
    assert!(!bench.pins.level(8));
}

#[test]
fn the_alarm_rings_at_its_time() {
    let bench = Bench::new();
    bench.write(1, 0x30);
    bench.write(3, 0x13);
    bench.write(5, 0xff);
    bench.read(0x0c);
    bench.write(0x0b, 0x22);
    bench.clock.step(9_999_999_999);
    assert!(!bench.pins.level(8));
    bench.clock.step(1);
    assert!(bench.pins.level(8));
    assert_eq!(bench.read(0x0c) & 0xa0, 0xa0);
    // The next hour, because any hour will do.
    bench.clock.step(3599 * SECOND_NS);
    assert!(!bench.pins.level(8));
    bench.clock.step(SECOND_NS);
    assert!(bench.pins.level(8));
}

#[test]
fn the_periodic_interrupt_has_its_rate() {
    let bench = Bench::new();
    bench.write(0x0b, 0x42);
    // Rate 6: 1024 Hz.
    let mut count = 0;
    for _ in 0..1000 {
        bench.clock.step(1_000_000);
        if bench.pins.level(8) {
            count += 1;
            assert_eq!(bench.read(0x0c) & 0xc0, 0xc0);
        }
    }
    assert_eq!(count, 1000);
    bench.write(0x0a, 0x2f);
    bench.read(0x0c);
    bench.clock.step(499_000_000);
    assert!(!bench.pins.level(8));
    bench.clock.step(1_000_000);
    assert!(bench.pins.level(8));
    bench.write(0x0a, 0x20);
    bench.read(0x0c);
    bench.clock.step(10 * SECOND_NS);
    assert!(!bench.pins.level(8));
}

#[test]
fn the_first_update_comes_half_a_second_after_the_divider_starts() {
    let bench = Bench::new();
    bench.write(0x0a, 0x76);
    bench.clock.step(SECOND_NS / 3);
    let held = bench.read(0);
    bench.write(0x0a, 0x26);
    bench.clock.step(SECOND_NS / 2 - 1);
    assert_eq!(bench.read(0), held);
    bench.clock.step(1);
    assert_eq!(bench.read(0), held + 1);
}

#[test]
fn memory_is_kept_and_boards_can_fill_it() {
    let bench = Bench::new();
    bench.rtc.set_cmos(0x10, 0x44);
    bench.rtc.set_cmos(0x0b, 0xff);
    bench.write(0x7f, 0x12);
    bench.rtc.reset(ResetKind::System);
    assert_eq!(
        [0x10, 0x0b, 0x7f].map(|index| bench.read(index)),
        [0x44, 0x02, 0x12]
    );
    assert_eq!(bench.rtc.read(0, Width::Byte), 0xff);
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let clock = Clock::stepped();
        let wall = WallClock::Guest {
            clock: clock.clone(),
            start_unix_ns: START_S * SECOND_NS,
        };
        let device = Rtc::new(&clock, wall, IrqLine::unconnected());
        Subject {
            ranges: vec![(device.clone(), 2)],
            device,
            clock,
            // What the battery holds.
            kept_by_reset: &[
                "register_a",
                "register_b",
                "memory",
                "offset_s",
                "phase_ns",
                "weekday_shift",
                "settled_s",
                "settled_tick",
            ],
        }
    });
}
