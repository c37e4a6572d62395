//! Registers of a whole PC, driven as a guest would, with time passing.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use api::{Event, EventSink};
use machine_pc::board::Board;
use machine_pc::devices::DeviceServices;
use machine_pc::{AcceleratorKind, Actions, Machine, MachineConfig, Payload, RtcBase, Topology};

/// The most accesses of one input.
const ACCESSES_MAX: usize = 4096;
/// Time passes by at most 4 ms at once: the shortest periods are 10 µs, and each has its call.
const CLOCK_SHIFT: u32 = 10;
const BYTES_OF_AN_ACCESS: usize = 8;

/// What a board's devices say to clients goes nowhere.
struct Silence;

impl EventSink for Silence {
    fn emit(&self, _event: Event) {}
}

struct Around {
    runtime: tokio::runtime::Runtime,
    executor: host_io::Executor,
}

fn around() -> &'static Around {
    static AROUND: OnceLock<Around> = OnceLock::new();
    AROUND.get_or_init(|| Around {
        runtime: tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime"),
        executor: host_io::Executor::start("fuzz", host_io::Engine::Uring).expect("an executor"),
    })
}

fn machine(board: &'static Board) -> Machine {
    let around = around();
    let mut types = objects::standard_types();
    machine_pc::register_types(&mut types);
    let services = DeviceServices {
        chardevs: Arc::default(),
        graph: Arc::default(),
        data_side: around.executor.handle(),
        drives: BTreeMap::new(),
        objects: Arc::new(objects::ObjectTree::new(types)),
        runtime: around.runtime.handle().clone(),
    };
    let config = MachineConfig {
        board,
        ram_bytes: 2 << 20,
        topology: Topology::of(2),
        cpu_model: "max".to_owned(),
        accelerator: AcceleratorKind::Qtest,
        kernel_irqchip: None,
        payload: Payload::default(),
        name: None,
        uuid: None,
        boot_menu: false,
        rtc: RtcBase::UnixSeconds(1_000_000_000),
        actions: Actions::default(),
    };
    Machine::new(config, Arc::new(Silence), services).expect("a machine")
}

/// The first byte chooses the board; then each eight bytes are an access: what and how wide, which range of registers,
/// where in it (two bytes), and the value (four bytes). After them every device's state is saved and restored, and is the
/// same.
pub fn pc_registers(data: &[u8]) {
    let Some((choice, accesses)) = data.split_first() else {
        return;
    };
    let name = if choice & 1 == 0 { "pc" } else { "microvm" };
    let machine = machine(Board::find(name).expect("a board of this name"));
    let accesses = accesses.to_vec();
    let done = machine.ask(move |control| {
        if control.has_pci() {
            for driver in [
                "i6300esb",
                "pvpanic-pci",
                "virtio-rng-pci",
                "isa-serial",
                "pvpanic",
            ] {
                let added = control.add_device(driver, None, BTreeMap::new());
                added.expect("a device that every pc takes");
            }
        }
        control.power_on().expect("power");
        for access in accesses.chunks_exact(BYTES_OF_AN_ACCESS).take(ACCESSES_MAX) {
            perform(control, access);
        }
        control
            .check_saved_states()
            .expect("states that were saved are restored");
    });
    around().runtime.block_on(done).expect("the machine lives");
    machine.close();
}

fn perform(control: &mut machine_pc::Control, access: &[u8]) {
    let [what, range, at0, at1, value @ ..] = access else {
        return;
    };
    let value = value
        .iter()
        .fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
    let is_port = what & 4 != 0;
    let ranges = control.register_ranges(is_port);
    let Some((start, length)) = ranges.get(usize::from(*range) % ranges.len().max(1)) else {
        return;
    };
    let offset = u64::from(u16::from_be_bytes([*at0, *at1])) % length;
    let address = start + offset;
    let width = match what & 3 {
        0 => 'b',
        1 => 'w',
        2 => 'l',
        _ if is_port => 'l',
        _ => 'q',
    };
    let line = match (what >> 3 & 7, is_port) {
        (0, _) => format!("clock_step {}", value >> CLOCK_SHIFT),
        (1..=4, true) => format!("out{width} {address} {value}"),
        (1..=4, false) => format!("write{width} {address} {value}"),
        (_, true) => format!("in{width} {address}"),
        (_, false) => format!("read{width} {address}"),
    };
    let answer = machine_pc::qtest::execute(control, &line);
    assert!(answer.contains("OK"), "{line}: {answer}");
}
