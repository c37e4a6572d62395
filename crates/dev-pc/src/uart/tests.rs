use device::Clock;
use device::conformance::{self, Subject};
use device::doubles::RecordingPins;
use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Peer {
    sent: Mutex<Vec<u8>>,
    wanted: Mutex<u32>,
    breaks: Mutex<Vec<bool>>,
}

impl SerialLine for Peer {
    fn transmit(&self, byte: u8) {
        self.sent.lock().push(byte);
    }

    fn input_wanted(&self) {
        *self.wanted.lock() += 1;
    }

    fn set_break(&self, on: bool) {
        self.breaks.lock().push(on);
    }
}

struct Bench {
    uart: Arc<Uart>,
    peer: Arc<Peer>,
    pins: Arc<RecordingPins>,
}

impl Bench {
    fn new() -> Bench {
        let peer = Arc::new(Peer::default());
        let pins = Arc::new(RecordingPins::default());
        let uart = Uart::new(IrqLine::new(pins.clone(), 4), peer.clone());
        uart.reset(ResetKind::PowerOn);
        Bench { uart, peer, pins }
    }

    fn read(&self, offset: u64) -> u8 {
        self.uart.read(offset, Width::Byte) as u8
    }

    fn write(&self, offset: u64, byte: u8) {
        self.uart.write(offset, Width::Byte, u64::from(byte));
    }
}

#[test]
fn values_after_reset() {
    let bench = Bench::new();
    assert_eq!(
        [1, 2, 3, 4, 5, 6, 7].map(|offset| bench.read(offset)),
        [0x00, 0x01, 0x00, 0x00, 0x60, 0xb0, 0x00]
    );
}

#[test]
fn a_written_byte_is_sent() {
    let bench = Bench::new();
    bench.write(0, b'x');
    assert_eq!(bench.peer.sent.lock().as_slice(), b"x");
    assert_eq!(bench.read(5), 0x60);
}

#[test]
fn the_transmitter_asks_when_empty_until_identified() {
    let bench = Bench::new();
    bench.write(1, 2);
    assert!(bench.pins.level(4));
    assert_eq!(bench.read(2), 0x02);
    assert!(!bench.pins.level(4));
    assert_eq!(bench.read(2), 0x01);
    bench.write(0, b'y');
    assert!(bench.pins.level(4));
}

#[test]
fn without_fifo_there_is_room_for_one() {
    let bench = Bench::new();
    bench.write(1, 1);
    *bench.peer.wanted.lock() = 0;
    assert_eq!(bench.uart.receive(b"ab"), 1);
    assert!(bench.pins.level(4));
    assert_eq!(bench.read(2), 0x04);
    assert_eq!(bench.read(5), 0x61);
    assert_eq!(bench.read(0), b'a');
    assert_eq!(*bench.peer.wanted.lock(), 1);
    assert!(!bench.pins.level(4));
    assert_eq!(bench.read(5), 0x60);
}

#[test]
fn the_fifo_asks_at_its_trigger_level_and_by_timeout() {
    let bench = Bench::new();
    bench.write(2, 0x81);
    bench.write(1, 1);
    assert_eq!(bench.uart.receive(b"0123456789abcdefXYZ"), 16);
    assert_eq!(bench.read(2), 0xc4);
    for expected in b"012345678" {
        assert_eq!(bench.read(0), *expected);
    }
    assert_eq!(bench.read(2), 0xcc);
    bench.write(2, 0x83);
    assert_eq!(bench.read(2), 0xc1);
    assert_eq!(bench.read(5), 0x60);
}

#[test]
fn a_break_is_marked_and_asks_with_the_highest_priority() {
    let bench = Bench::new();
    bench.write(2, 0x01);
    bench.write(1, 0x05);
    bench.uart.receive_break();
    bench.uart.receive(b"z");
    assert_eq!(bench.read(2), 0xc6);
    assert_eq!(bench.read(5), 0xf1);
    assert_eq!(bench.read(5), 0x61);
    assert_eq!(bench.read(2), 0xc4);
    assert_eq!(bench.read(0), 0);
    assert_eq!(bench.read(0), b'z');
}

#[test]
fn loopback_returns_bytes_and_modem_lines() {
    let bench = Bench::new();
    bench.write(4, 0x1a);
    assert_eq!(bench.read(6) & 0xf0, 0x90);
    bench.write(0, 0xae);
    assert_eq!(bench.read(5), 0x61);
    assert_eq!(bench.uart.receive(b"x"), 0);
    bench.write(0, 0xaf);
    assert_eq!(bench.read(5), 0x63);
    assert_eq!(bench.read(0), 0xaf);
    assert_eq!(bench.peer.sent.lock().len(), 0);
}

#[test]
fn modem_changes_are_noted_once() {
    let bench = Bench::new();
    bench.write(1, 8);
    bench
        .uart
        .set_modem_lines(ModemLines::new(true, true, true, false));
    assert!(bench.pins.level(4));
    assert_eq!(bench.read(2), 0x00);
    assert_eq!(bench.read(6), 0x78);
    assert_eq!(bench.read(6), 0x70);
    bench.uart.set_modem_lines(ModemLines::NONE);
    assert_eq!(bench.read(6), 0x07);
    assert!(!bench.pins.level(4));
}

#[test]
fn the_divisor_hides_behind_dlab() {
    let bench = Bench::new();
    bench.write(3, 0x83);
    bench.write(0, 1);
    bench.write(1, 0);
    assert_eq!((bench.read(0), bench.read(1)), (1, 0));
    bench.write(3, 0x03);
    assert_eq!(bench.uart.baud(), 115_200);
    assert_eq!(bench.read(1), 0);
}

#[test]
fn break_and_scratch() {
    let bench = Bench::new();
    bench.write(3, 0x43);
    bench.write(3, 0x03);
    assert_eq!(bench.peer.breaks.lock().as_slice(), [true, false]);
    bench.write(7, 0xa5);
    assert_eq!(bench.read(7), 0xa5);
}

proptest! {
    /// What goes in comes out, once and in order; data ready and the line say whether something is there.
    #[test]
    fn input_arrives_in_order(
        fifo: bool,
        rounds in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0_usize..24), 1..20),
    ) {
        let bench = Bench::new();
        bench.write(2, u8::from(fifo));
        bench.write(1, 1);
        let room = if fifo { FIFO_BYTES } else { 1 };
        let mut waiting: VecDeque<u8> = VecDeque::new();
        for (input, reads) in rounds {
            let taken = bench.uart.receive(&input);
            waiting.extend(&input[..taken]);
            prop_assert!(waiting.len() <= room);
            prop_assert!(taken == input.len() || waiting.len() == room);
            for _ in 0..reads {
                prop_assert_eq!(bench.read(5) & 1 == 1, !waiting.is_empty());
                prop_assert_eq!(bench.pins.level(4), !waiting.is_empty());
                if let Some(expected) = waiting.pop_front() {
                    prop_assert_eq!(bench.read(0), expected);
                }
            }
        }
    }
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let device = Uart::new(IrqLine::unconnected(), Arc::new(Peer::default()));
        Subject {
            ranges: vec![(device.clone(), 8)],
            device,
            clock: Clock::stepped(),
            kept_by_reset: &[],
        }
    });
}
