use device::conformance::{self, Subject};
use device::doubles::{RecordingMachine, RecordingPins};
use device::{Clock, IoPart};

use super::*;

struct Bench {
    controller: Arc<I8042>,
    pins: Arc<RecordingPins>,
    machine: Arc<RecordingMachine>,
}

impl Bench {
    fn new() -> Bench {
        let pins = Arc::new(RecordingPins::default());
        let machine = Arc::new(RecordingMachine::default());
        let line = |pin| IrqLine::new(pins.clone(), pin);
        let lines = I8042Lines {
            keyboard: line(1),
            mouse: line(12),
            a20: line(20),
        };
        let controller = I8042::new(lines, machine.clone());
        controller.reset(ResetKind::PowerOn);
        Bench {
            controller,
            pins,
            machine,
        }
    }

    fn status(&self) -> u8 {
        self.controller
            .read_part(I8042Part::Command, 0, Width::Byte) as u8
    }

    fn data(&self) -> u8 {
        self.controller.read_part(I8042Part::Data, 0, Width::Byte) as u8
    }

    fn command(&self, byte: u8) {
        self.controller
            .write_part(I8042Part::Command, 0, Width::Byte, u64::from(byte));
    }

    fn write(&self, byte: u8) {
        self.controller
            .write_part(I8042Part::Data, 0, Width::Byte, u64::from(byte));
    }

    /// All bytes that wait.
    fn drain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.status() & STATUS_FULL != 0 {
            bytes.push(self.data());
        }
        bytes
    }
}

#[test]
fn a_key_arrives_translated_with_one_edge_per_byte() {
    let bench = Bench::new();
    let up = Key::from_qcode("up").unwrap();
    assert!(bench.controller.key(up, true));
    assert_eq!(bench.pins.take(), [(1, true)]);
    assert_eq!(bench.status() & 0x21, 1);
    assert_eq!(bench.data(), 0xe0);
    assert_eq!(bench.pins.take(), [(1, false), (1, true)]);
    assert_eq!(bench.data(), 0x48);
    assert_eq!(bench.pins.take(), [(1, false)]);
    assert_eq!(bench.data(), 0x48);
    bench.controller.key(up, false);
    assert_eq!(bench.drain(), [0xe0, 0xc8]);
}

#[test]
fn without_translation_set_2_comes_through() {
    let bench = Bench::new();
    bench.command(0x60);
    bench.write(0x01);
    bench.controller.key(Key::from_qcode("a").unwrap(), false);
    assert_eq!(bench.drain(), [0xf0, 0x1c]);
    bench.write(0xf2);
    assert_eq!(bench.drain(), [0xfa, 0xab, 0x83]);
}

#[test]
fn the_identity_is_translated_too() {
    let bench = Bench::new();
    bench.write(0xf2);
    assert_eq!(bench.drain(), [0xfa, 0xab, 0x41]);
}

#[test]
fn controller_commands() {
    let bench = Bench::new();
    let ask = |command| {
        bench.command(command);
        bench.drain()
    };
    assert_eq!(bench.status(), 0x10);
    assert_eq!(ask(0xaa), [0x55]);
    assert_eq!(bench.status(), 0x1c);
    assert_eq!(ask(0x20), [0x47]);
    assert_eq!(ask(0xab), [0]);
    assert_eq!(ask(0xa9), [0]);
    assert_eq!(ask(0xa4), [0xf1]);
    bench.command(0xad);
    bench.command(0xa7);
    assert_eq!(ask(0x20), [0x77]);
    assert_eq!(ask(0xe0), [0]);
    bench.command(0xae);
    bench.command(0xa8);
    assert_eq!(ask(0x20), [0x47]);
    bench.command(0x65);
    bench.write(0x99);
    assert_eq!(ask(0x25), [0x99]);
    assert!(ask(0x00).is_empty());
}

#[test]
fn a_switched_off_keyboard_keeps_its_bytes() {
    let bench = Bench::new();
    bench.command(0xad);
    bench.controller.key(Key::from_qcode("a").unwrap(), true);
    assert!(bench.drain().is_empty());
    bench.command(0xae);
    assert_eq!(bench.drain(), [0x1e]);
}

#[test]
fn the_mouse_answers_on_irq_12() {
    let bench = Bench::new();
    bench.command(0xd4);
    bench.write(0xf4);
    assert_eq!(bench.status() & 0x21, 0x21);
    assert!(bench.pins.level(12));
    assert!(!bench.pins.level(1));
    assert_eq!(bench.drain(), [0xfa]);
    bench.controller.move_mouse(2, -1, 0);
    bench.controller.mouse_button(MouseButton::Left, true);
    assert_eq!(bench.drain(), [0x08, 2, 1, 0x09, 0, 0]);
    bench.command(0xd3);
    bench.write(0x77);
    assert_eq!(bench.status() & 0x21, 0x21);
    assert_eq!(bench.drain(), [0x77]);
}

#[test]
fn the_output_port_drives_a20_and_reset() {
    let bench = Bench::new();
    assert!(!bench.pins.level(20));
    bench.command(0xd1);
    bench.write(0xdf);
    assert!(bench.pins.level(20));
    bench.command(0xd0);
    assert_eq!(bench.drain(), [0xcf]);
    bench.command(0xdd);
    assert!(!bench.pins.level(20));
    bench.command(0xff);
    assert_eq!(bench.machine.take(), []);
    bench.command(0xfe);
    assert_eq!(
        bench.machine.take(),
        [MachineRequest::Reset(ResetKind::System)]
    );
    bench.command(0xd1);
    bench.write(0x02);
    assert_eq!(bench.machine.take().len(), 1);
}

#[test]
fn interrupts_can_be_switched_off() {
    let bench = Bench::new();
    bench.command(0x60);
    bench.write(0x40);
    bench.write(0xee);
    assert!(!bench.pins.level(1));
    assert_eq!(bench.status() & 1, 1);
    bench.command(0x60);
    bench.write(0x41);
    assert!(bench.pins.level(1));
}

#[test]
fn lights() {
    let bench = Bench::new();
    bench.write(0xed);
    bench.write(0x02);
    assert_eq!(bench.drain(), [0xfa, 0xfa]);
    assert_eq!(bench.controller.leds(), 2);
}

#[test]
fn it_conforms() {
    conformance::check(|| {
        let device = I8042::new(
            I8042Lines {
                keyboard: IrqLine::unconnected(),
                mouse: IrqLine::unconnected(),
                a20: IrqLine::unconnected(),
            },
            Arc::new(RecordingMachine::default()),
        );
        Subject {
            ranges: vec![
                (IoPart::new(device.clone(), I8042Part::Data), 1),
                (IoPart::new(device.clone(), I8042Part::Command), 1),
            ],
            device,
            clock: Clock::stepped(),
            kept_by_reset: &[],
        }
    });
}
