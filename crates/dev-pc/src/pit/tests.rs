use device::IoPart;
use device::conformance::{self, Subject};
use device::doubles::RecordingPins;
use proptest::prelude::*;

use super::*;

struct Bench {
    pit: Arc<Pit>,
    clock: Clock,
    pins: Arc<RecordingPins>,
}

impl Bench {
    fn new() -> Bench {
        let clock = Clock::stepped();
        let pins = Arc::new(RecordingPins::default());
        let pit = Pit::new(&clock, IrqLine::new(pins.clone(), 0));
        pit.reset(ResetKind::PowerOn);
        Bench { pit, clock, pins }
    }

    fn write(&self, port: u64, byte: u8) {
        let part = if port == 0x61 {
            PitPart::Port61
        } else {
            PitPart::Counters
        };
        self.pit.write_part(
            part,
            port.saturating_sub(0x40) & 3,
            Width::Byte,
            u64::from(byte),
        );
    }

    fn write_61(&self, byte: u8) {
        self.pit
            .write_part(PitPart::Port61, 0, Width::Byte, u64::from(byte));
    }

    fn read(&self, counter: u64) -> u8 {
        self.pit.read_part(PitPart::Counters, counter, Width::Byte) as u8
    }

    fn read_61(&self) -> u8 {
        self.pit.read_part(PitPart::Port61, 0, Width::Byte) as u8
    }

    fn load(&self, counter: u64, control: u8, count: u16) {
        self.write(0x43, control);
        let [low, high] = count.to_le_bytes();
        self.write(0x40 + counter, low);
        self.write(0x40 + counter, high);
    }

    fn count(&self, counter: u64) -> u16 {
        self.write(0x43, (counter as u8) << 6);
        u16::from_le_bytes([self.read(counter), self.read(counter)])
    }

    /// To the first nanosecond of a tick, counted from the start of the clock.
    fn go_to_tick(&self, tick: u64) {
        self.clock.step(ns_of(tick) - self.clock.now_ns());
    }
}

#[test]
fn mode_0_raises_the_line_at_the_terminal_count() {
    let bench = Bench::new();
    bench.load(0, 0x30, 1000);
    bench.go_to_tick(999);
    assert_eq!(bench.count(0), 1);
    assert_eq!(bench.pins.take(), []);
    bench.go_to_tick(1000);
    assert_eq!(bench.pins.take(), [(0, true)]);
    bench.go_to_tick(1003);
    assert_eq!(bench.count(0), 0xfffd);
    bench.load(0, 0x30, 5);
    assert_eq!(bench.pins.take(), [(0, false)]);
}

#[test]
fn mode_2_gives_an_edge_each_period() {
    let bench = Bench::new();
    bench.load(0, 0x34, 11932);
    assert_eq!(bench.pins.take(), [(0, true)]);
    bench.clock.step(100_000_000);
    // 100 ms are 119318 ticks: nine periods.
    assert_eq!(bench.pins.take().len(), 18);
    bench.go_to_tick(119_320);
    assert_eq!(bench.pins.take(), [(0, false), (0, true)]);
    assert_eq!(bench.count(0), 11932);
    bench.go_to_tick(119_321);
    assert_eq!(bench.count(0), 11931);
}

#[test]
fn mode_3_is_a_square_and_counts_by_two() {
    let bench = Bench::new();
    bench.load(0, 0x36, 9);
    assert_eq!(bench.pins.take(), [(0, true)]);
    assert_eq!(bench.count(0), 8);
    bench.go_to_tick(1);
    assert_eq!(bench.count(0), 6);
    bench.go_to_tick(4);
    assert!(bench.pins.level(0));
    assert_eq!(bench.count(0), 0);
    bench.go_to_tick(5);
    assert!(!bench.pins.level(0));
    assert_eq!(bench.count(0), 8);
    bench.go_to_tick(9);
    assert!(bench.pins.level(0));
}

#[test]
fn mode_1_waits_for_the_gate() {
    let bench = Bench::new();
    bench.load(2, 0xb2, 100);
    assert_eq!(bench.read_61() & 0x20, 0x20);
    bench.write_61(1);
    assert_eq!(bench.read_61() & 0x21, 0x01);
    bench.go_to_tick(99);
    assert_eq!(bench.read_61() & 0x20, 0);
    bench.go_to_tick(100);
    assert_eq!(bench.read_61() & 0x20, 0x20);
}

#[test]
fn a_closed_gate_holds_mode_0() {
    let bench = Bench::new();
    bench.write_61(1);
    bench.load(2, 0xb0, 1000);
    bench.go_to_tick(400);
    bench.write_61(0);
    bench.go_to_tick(5000);
    assert_eq!(bench.count(2), 600);
    bench.write_61(1);
    bench.go_to_tick(5599);
    assert_eq!(bench.read_61() & 0x20, 0);
    bench.go_to_tick(5601);
    assert_eq!(bench.read_61() & 0x20, 0x20);
}

#[test]
fn modes_4_and_5_strobe_for_one_clock() {
    let bench = Bench::new();
    bench.load(0, 0x38, 10);
    assert!(bench.pins.level(0));
    bench.go_to_tick(10);
    assert!(!bench.pins.level(0));
    bench.go_to_tick(11);
    assert!(bench.pins.level(0));
    bench.load(2, 0xba, 10);
    bench.write_61(1);
    // Ticks are counted from the trigger, which lies up to a nanosecond behind a tick.
    bench.clock.step(ns_of(10));
    assert_eq!(bench.read_61() & 0x20, 0);
    bench.clock.step(ns_of(1));
    assert_eq!(bench.read_61() & 0x20, 0x20);
}

#[test]
fn the_read_back_command_latches_status_then_count() {
    let bench = Bench::new();
    bench.write(0x43, 0x34);
    bench.write(0x43, 0xe2);
    // No count yet: null count; output high in mode 2; both bytes; mode 2.
    assert_eq!(bench.read(0), 0xf4);
    bench.load(0, 0x34, 0x1234);
    bench.write(0x43, 0xc2);
    bench.go_to_tick(50);
    assert_eq!(bench.read(0), 0xb4);
    assert_eq!(bench.read(0), 0x34);
    assert_eq!(bench.read(0), 0x12);
    // Unlatched again.
    assert_eq!(bench.read(0), 0x02);
}

#[test]
fn a_latch_stays_until_it_is_read() {
    let bench = Bench::new();
    bench.load(0, 0x34, 0x1000);
    bench.write(0x43, 0);
    bench.go_to_tick(0x10);
    bench.write(0x43, 0);
    assert_eq!(bench.read(0), 0x00);
    assert_eq!(bench.read(0), 0x10);
    bench.write(0x43, 0);
    assert_eq!(bench.read(0), 0xf0);
    assert_eq!(bench.read(0), 0x0f);
}

#[test]
fn decimal_counts() {
    let bench = Bench::new();
    bench.load(0, 0x31, 0x1000);
    bench.go_to_tick(1);
    assert_eq!(bench.count(0), 0x0999);
    bench.go_to_tick(1001);
    assert_eq!(bench.count(0), 0x9999);
}

#[test]
fn one_byte_counts() {
    let bench = Bench::new();
    bench.write(0x43, 0x10);
    bench.write(0x40, 5);
    assert_eq!(bench.read(0), 5);
    bench.write(0x43, 0x20);
    bench.write(0x40, 5);
    assert_eq!(bench.read(0), 5);
    bench.go_to_tick(1);
    assert_eq!(bench.read(0), 4);
}

#[test]
fn a_new_count_waits_for_the_end_of_the_period() {
    let bench = Bench::new();
    bench.load(0, 0x34, 100);
    bench.go_to_tick(50);
    bench.write(0x40, 10);
    bench.write(0x40, 0);
    bench.write(0x43, 0xe2);
    assert_eq!(bench.read(0) & 0x40, 0x40);
    assert_eq!(bench.count(0), 50);
    bench.go_to_tick(101);
    bench.clock.step(1);
    assert_eq!(bench.count(0), 9);
    bench.write(0x43, 0xe2);
    assert_eq!(bench.read(0) & 0x40, 0);
}

#[test]
fn the_speaker_sounds_with_both_bits() {
    let bench = Bench::new();
    bench.load(2, 0xb6, 1193);
    assert_eq!(bench.pit.speaker_hz(), None);
    bench.write_61(3);
    assert_eq!(bench.pit.speaker_hz(), Some(1000));
    assert_eq!(bench.read_61() & 0x0f, 3);
}

#[test]
fn the_refresh_bit_toggles() {
    let bench = Bench::new();
    assert_eq!(bench.read_61() & 0x10, 0);
    bench.clock.step(REFRESH_NS);
    assert_eq!(bench.read_61() & 0x10, 0x10);
    bench.clock.step(REFRESH_NS);
    assert_eq!(bench.read_61() & 0x10, 0);
}

proptest! {
    /// The edges that the timer gives in mode 2 are as many as periods fit into the time.
    #[test]
    fn mode_2_counts_right(count in 20_u16..2000, steps in prop::collection::vec(1_u64..3_000_000, 1..20)) {
        let bench = Bench::new();
        bench.load(0, 0x34, count);
        bench.pins.take();
        let mut rises = 0;
        for step in &steps {
            bench.clock.step(*step);
            rises += bench.pins.take().iter().filter(|(_, level)| *level).count() as u64;
        }
        prop_assert_eq!(rises, ticks_of(steps.iter().sum()) / u64::from(count));
    }
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let clock = Clock::stepped();
        let device = Pit::new(&clock, IrqLine::unconnected());
        Subject {
            ranges: vec![
                (IoPart::new(device.clone(), PitPart::Counters), 4),
                (IoPart::new(device.clone(), PitPart::Port61), 1),
            ],
            device,
            clock,
            kept_by_reset: &[],
        }
    });
}
