use device::conformance::{self, Subject};
use device::doubles::RecordingPins;
use device::{Clock, IoPart};
use proptest::prelude::*;

use super::*;

struct Bench {
    pic: Arc<Pic>,
    pins: Arc<RecordingPins>,
}

impl Bench {
    /// Vectors 0x20 and 0x28, cascaded, 8086 mode, all unmasked.
    fn ready() -> Bench {
        Bench::with_icw4(1, 1)
    }

    fn with_icw4(master: u8, slave: u8) -> Bench {
        let pins = Arc::new(RecordingPins::default());
        let pic = Pic::new(IrqLine::new(pins.clone(), 0));
        pic.reset(ResetKind::PowerOn);
        let bench = Bench { pic, pins };
        bench.write(0x20, &[0x11]);
        bench.write(0x21, &[0x20, 0x04, master]);
        bench.write(0xa0, &[0x11]);
        bench.write(0xa1, &[0x28, 0x02, slave]);
        bench
    }

    fn part(port: u64) -> (PicPart, u64) {
        match port {
            0x20 | 0x21 => (PicPart::Master, port - 0x20),
            0xa0 | 0xa1 => (PicPart::Slave, port - 0xa0),
            _ => (PicPart::EdgeLevel, port - 0x4d0),
        }
    }

    fn write(&self, port: u64, bytes: &[u8]) {
        let (part, offset) = Bench::part(port);
        for byte in bytes {
            self.pic
                .write_part(part, offset, Width::Byte, u64::from(*byte));
        }
    }

    fn read(&self, port: u64) -> u8 {
        let (part, offset) = Bench::part(port);
        self.pic.read_part(part, offset, Width::Byte) as u8
    }

    fn pulse(&self, irq: u32) {
        self.pic.set_level(irq, true);
        self.pic.set_level(irq, false);
    }
}

#[test]
fn an_edge_is_delivered_once() {
    let bench = Bench::ready();
    bench.pic.set_level(1, true);
    assert!(bench.pins.level(0));
    assert_eq!(bench.pic.acknowledge(), 0x21);
    assert!(!bench.pins.level(0));
    bench.write(0x20, &[0x20]);
    assert!(!bench.pic.has_request());
    bench.pic.set_level(1, false);
    bench.pic.set_level(1, true);
    assert!(bench.pic.has_request());
}

#[test]
fn a_level_asks_as_long_as_it_stands() {
    let bench = Bench::ready();
    bench.write(0x4d0, &[0xff]);
    assert_eq!(bench.read(0x4d0), 0xf8);
    bench.write(0x4d1, &[0xff]);
    assert_eq!(bench.read(0x4d1), 0xde);
    bench.pic.set_level(5, true);
    assert_eq!(bench.pic.acknowledge(), 0x25);
    bench.write(0x20, &[0x20]);
    assert_eq!(bench.pic.acknowledge(), 0x25);
    bench.pic.set_level(5, false);
    bench.write(0x20, &[0x20]);
    assert!(!bench.pic.has_request());
}

#[test]
fn a_level_that_falls_before_the_acknowledgement_is_spurious() {
    let bench = Bench::ready();
    bench.write(0x4d1, &[0x08]);
    bench.pic.set_level(11, true);
    bench.pic.set_level(11, false);
    // The edge that the slave made at the master stays latched: the slave has nothing and says 15.
    assert_eq!(bench.pic.acknowledge(), 0x2f);
    bench.write(0x20, &[0x0b]);
    assert_eq!(bench.read(0x20), 0x04);
    bench.write(0xa0, &[0x0b]);
    assert_eq!(bench.read(0xa0), 0x00);
    bench.write(0x20, &[0x20]);
    assert_eq!(bench.pic.acknowledge(), 0x27);
    assert_eq!(bench.read(0x20), 0x00);
}

#[test]
fn priority_nests_and_the_slave_sits_at_input_2() {
    let bench = Bench::ready();
    bench.pulse(4);
    bench.pulse(10);
    bench.pulse(8);
    assert_eq!(bench.pic.acknowledge(), 0x28);
    // 10 waits for 8, and 4 for the cascade.
    assert!(!bench.pic.has_request());
    bench.write(0xa0, &[0x20]);
    bench.write(0x20, &[0x20]);
    assert_eq!(bench.pic.acknowledge(), 0x2a);
    bench.pulse(1);
    assert_eq!(bench.pic.acknowledge(), 0x21);
    bench.write(0x20, &[0x20, 0x20]);
    bench.write(0xa0, &[0x20]);
    assert_eq!(bench.pic.acknowledge(), 0x24);
}

#[test]
fn a_mask_holds_a_request_back() {
    let bench = Bench::ready();
    bench.write(0x21, &[0x02]);
    assert_eq!(bench.read(0x21), 0x02);
    bench.pulse(1);
    assert!(!bench.pic.has_request());
    bench.write(0x20, &[0x0a]);
    assert_eq!(bench.read(0x20), 0x02);
    bench.write(0x21, &[0]);
    assert_eq!(bench.pic.acknowledge(), 0x21);
}

#[test]
fn rotation_puts_the_served_input_last() {
    let bench = Bench::ready();
    bench.pulse(3);
    assert_eq!(bench.pic.acknowledge(), 0x23);
    bench.write(0x20, &[0xa0]);
    bench.pulse(3);
    bench.pulse(4);
    bench.pulse(1);
    assert_eq!(bench.pic.acknowledge(), 0x24);
    bench.write(0x20, &[0x64]);
    assert_eq!(bench.pic.acknowledge(), 0x21);
    // Set priority: 0 is lowest, so 1 is highest again.
    bench.write(0x20, &[0x61, 0xc0]);
    assert_eq!(bench.pic.acknowledge(), 0x23);
}

#[test]
fn automatic_end_of_interrupt_leaves_nothing_in_service() {
    let bench = Bench::with_icw4(3, 1);
    bench.write(0x20, &[0x80]);
    bench.pulse(0);
    bench.pulse(5);
    assert_eq!(bench.pic.acknowledge(), 0x20);
    bench.pulse(0);
    // Rotation: 0 is last now.
    assert_eq!(bench.pic.acknowledge(), 0x25);
    assert_eq!(bench.pic.acknowledge(), 0x20);
    bench.write(0x20, &[0x0b]);
    assert_eq!(bench.read(0x20), 0);
}

#[test]
fn special_mask_mode_lets_lower_levels_in() {
    let bench = Bench::ready();
    bench.pulse(1);
    assert_eq!(bench.pic.acknowledge(), 0x21);
    bench.pulse(6);
    assert!(!bench.pic.has_request());
    bench.write(0x21, &[0x02]);
    bench.write(0x20, &[0x68]);
    assert_eq!(bench.pic.acknowledge(), 0x26);
    // 6 is not masked: it holds back what is lower, not what is higher.
    bench.pulse(7);
    assert!(!bench.pic.has_request());
    bench.pulse(3);
    assert_eq!(bench.pic.acknowledge(), 0x23);
    // The non-specific end passes over the masked level.
    bench.write(0x20, &[0x20, 0x20, 0x0b]);
    assert_eq!(bench.read(0x20), 0x02);
    assert_eq!(bench.pic.acknowledge(), 0x27);
    bench.write(0x20, &[0x20]);
    bench.write(0x20, &[0x48]);
    bench.pulse(6);
    assert!(!bench.pic.has_request());
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    let bench = Bench::with_icw4(0x11, 1);
    bench.pulse(12);
    assert_eq!(bench.pic.acknowledge(), 0x2c);
    bench.pulse(9);
    assert_eq!(bench.pic.acknowledge(), 0x29);
}

#[test]
fn the_poll_command_acknowledges() {
    let bench = Bench::ready();
    bench.write(0x20, &[0x0c]);
    assert_eq!(bench.read(0x20), 0);
    bench.pulse(6);
    bench.write(0x20, &[0x0c]);
    assert_eq!(bench.read(0x20), 0x86);
    assert!(!bench.pic.has_request());
    bench.write(0x20, &[0x0b]);
    assert_eq!(bench.read(0x20), 0x40);
}

#[test]
fn initialisation_clears_the_latch_and_the_mask() {
    let bench = Bench::ready();
    bench.write(0x21, &[0xff]);
    bench.pulse(3);
    bench.write(0x20, &[0x11]);
    assert!(!bench.pic.has_request());
    bench.write(0x21, &[0x40, 4, 1]);
    assert_eq!(bench.read(0x21), 0);
    assert!(!bench.pic.has_request());
    bench.pulse(3);
    assert_eq!(bench.pic.acknowledge(), 0x43);
}

#[test]
fn pins_that_do_not_exist_are_ignored() {
    let bench = Bench::ready();
    bench.pic.set_level(2, true);
    bench.pic.set_level(16, true);
    bench.pic.set_level(u32::MAX, true);
    assert!(!bench.pic.has_request());
}

/// What software and devices do.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pulse(u32),
    Acknowledge,
    End,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let irq = prop::sample::select((0..16_u32).filter(|irq| *irq != 2).collect::<Vec<_>>());
    let step = prop_oneof![
        3 => irq.prop_map(Step::Pulse),
        2 => Just(Step::Acknowledge),
        2 => Just(Step::End),
    ];
    prop::collection::vec(step, 1..120)
}

/// Fully nested mode, by a list: the level of a slave's input is that of the cascade, and a request is taken if its
/// level is higher than all that are in service.
#[derive(Default)]
struct Nested {
    requests: Vec<u32>,
    service: Vec<u32>,
}

impl Nested {
    fn level(irq: u32) -> u32 {
        if irq >= 8 { 2 } else { irq }
    }

    fn pending(&self, mask: u16) -> Option<u32> {
        let order = [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7];
        order.into_iter().find(|irq| {
            let free = |served: &u32| Nested::level(*irq) < Nested::level(*served);
            mask & 1 << irq == 0 && self.requests.contains(irq) && self.service.iter().all(free)
        })
    }
}

proptest! {
    #[test]
    fn fully_nested_mode_agrees_with_a_list(steps in steps(), mask: u16) {
        let mask = mask & !4;
        let bench = Bench::ready();
        bench.write(0x21, &[mask as u8]);
        bench.write(0xa1, &[(mask >> 8) as u8]);
        let mut model = Nested::default();
        for step in steps {
            match step {
                Step::Pulse(irq) => {
                    bench.pulse(irq);
                    if !model.requests.contains(&irq) {
                        model.requests.push(irq);
                    }
                }
                Step::Acknowledge => {
                    if let Some(irq) = model.pending(mask) {
                        prop_assert_eq!(u32::from(bench.pic.acknowledge()), 0x20 + irq);
                        model.requests.retain(|known| *known != irq);
                        model.service.push(irq);
                    }
                }
                Step::End => {
                    if let Some(irq) = model.service.pop() {
                        if irq >= 8 {
                            bench.write(0xa0, &[0x20]);
                        }
                        bench.write(0x20, &[0x20]);
                    }
                }
            }
            prop_assert_eq!(bench.pic.has_request(), model.pending(mask).is_some());
            prop_assert_eq!(bench.pins.level(0), bench.pic.has_request());
        }
    }
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let device = Pic::new(IrqLine::unconnected());
        Subject {
            ranges: vec![
                (IoPart::new(device.clone(), PicPart::Master), 2),
                (IoPart::new(device.clone(), PicPart::Slave), 2),
                (IoPart::new(device.clone(), PicPart::EdgeLevel), 2),
            ],
            device,
            clock: Clock::stepped(),
            kept_by_reset: &[],
        }
    });
}
