//! The timer and whatever else wakes the guest.
//!
//! On a PC: the 8254 at 20 Hz through the 8259s, which the local APIC lets pass; lines 4 (serial)
//! and 9 (ACPI) too. Where there are no 8259s: the local APIC's own timer, taken to count at 1 GHz
//! as those of KVM and QEMU do, and the serial line and ACPI's through the I/O APIC.

use crate::acpi::Acpi;
use crate::cpu::{self, in8, out8, read_register, write_register};
use crate::entry::{self, STUB_BYTES};
use crate::serial::say;

const LOCAL_APIC: u64 = 0xfee0_0000;
const PIT_HZ: u32 = 1_193_182;
const TIMER_HZ: u32 = 20;
const LOCAL_TIMER_HZ: u32 = 1_000_000_000;
const SERIAL_LINE: u16 = 4;
const CASCADE: u16 = 1 << 2;
const TIMER: u16 = 1 << 0;

#[repr(C, align(16))]
struct Table([[u64; 2]; 256]);

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Task state: only the interrupt stack in it is used. `core` uses the red zone below the stack
/// pointer, so that handlers must not run on the same stack.
#[repr(C, packed)]
struct TaskState {
    reserved: u32,
    stacks: [u64; 3],
    reserved_too: u64,
    interrupt_stacks: [u64; 7],
    rest: [u8; 12],
}

static mut TABLE: Table = Table([[0; 2]; 256]);
/// The same for CPUs without a task state.
static mut OTHER_TABLE: Table = Table([[0; 2]; 256]);
static mut TASK_STATE: TaskState = TaskState {
    reserved: 0,
    stacks: [0; 3],
    reserved_too: 0,
    interrupt_stacks: [0; 7],
    rest: [0; 12],
};
/// The lines that are open while the guest waits.
static mut OPEN_LINES: u16 = 0;

fn gate(handler: u64, stack: u64) -> [u64; 2] {
    let low =
        handler & 0xffff | 8 << 16 | stack << 32 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

fn handler(vector: usize) -> u64 {
    let vector64 = vector as u64;
    // SAFETY: addresses only.
    let address = |symbol: *const u8| symbol as u64;
    match vector {
        2 => address(&raw const entry::nmi_stub),
        0..32 => address(&raw const entry::exception_stubs) + vector64 * STUB_BYTES,
        entry::FIRST_IRQ_VECTOR => address(&raw const entry::timer_stub),
        33..48 => address(&raw const entry::interrupt_stubs) + (vector64 - 32) * STUB_BYTES,
        entry::LOCAL_TIMER_VECTOR => address(&raw const entry::local_timer_stub),
        entry::SERIAL_VECTOR => address(&raw const entry::local_stub),
        _ => address(&raw const entry::spurious_stub),
    }
}

/// Loads the table of handlers; `stack` 0 keeps the stack.
fn load(table: *const Table) {
    let pointer = TablePointer {
        limit: 4095,
        base: table as u64,
    };
    // SAFETY: the table lives as long as the program.
    unsafe { core::arch::asm!("lidt [{}]", in(reg) &pointer, options(nostack)) }
}

/// For CPUs other than the boot CPU.
pub fn prepare_other_cpu() {
    load(&raw const OTHER_TABLE);
}

fn prepare_tables() {
    // SAFETY: interrupts are off, and no other CPU runs yet.
    unsafe {
        let tables = [(&raw mut TABLE, 1), (&raw mut OTHER_TABLE, 0)];
        for (table, stack) in tables {
            for (vector, entry) in (*table).0.iter_mut().enumerate() {
                // An NMI comes inside other handlers too, and must leave their stack alone.
                let stack = if vector == 2 { 2 * stack } else { stack };
                *entry = gate(handler(vector), stack);
            }
        }
        TASK_STATE.interrupt_stacks[0] = (&raw const entry::interrupt_stack_end) as u64;
        TASK_STATE.interrupt_stacks[1] = (&raw const entry::nmi_stack_end) as u64;
        let base = (&raw const TASK_STATE) as u64;
        let limit = size_of::<TaskState>() as u64 - 1;
        let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        let descriptors = &raw mut entry::descriptors;
        (*descriptors)[4] = low;
        (*descriptors)[5] = base >> 32;
        core::arch::asm!("ltr {:x}", in(reg) 0x20_u16, options(nostack));
    }
    load(&raw const TABLE);
}

fn local(register: u64, value: u32) {
    write_register(LOCAL_APIC + register, value);
}

pub fn local_id() -> u32 {
    read_register::<u32>(LOCAL_APIC + 0x20) >> 24
}

/// Sends a command to a CPU.
pub fn send(id: u32, command: u32) {
    local(0x310, id << 24);
    local(0x300, command);
    while read_register::<u32>(LOCAL_APIC + 0x300) & 1 << 12 != 0 {
        core::hint::spin_loop();
    }
}

pub fn prepare(acpi: &Acpi) {
    prepare_tables();
    // On, with spurious interrupts at their vector; NMI at LINT1.
    local(0xf0, 0x100 | entry::SPURIOUS_VECTOR as u32);
    local(0x360, 0x400);
    if prepare_pit() && prepare_pics(acpi.sci()) {
        local(0x350, 0x700);
    } else {
        local(0x3e0, 0x0b);
        local(0x320, 1 << 17 | entry::LOCAL_TIMER_VECTOR as u32);
        local(0x380, LOCAL_TIMER_HZ / TIMER_HZ);
        for line in [SERIAL_LINE].into_iter().chain(acpi.sci()) {
            open_at_io_apic(acpi.io_apic(), line);
        }
    }
}

/// Lets an edge-triggered line wake the guest.
fn open_at_io_apic(io_apic: u64, line: u16) {
    let redirection = 0x10 + u32::from(line) * 2;
    let halves = [
        (redirection + 1, local_id() << 24),
        (redirection, entry::SERIAL_VECTOR as u32),
    ];
    for (register, value) in halves {
        write_register(io_apic, register);
        write_register(io_apic + 0x10, value);
    }
}

/// Starts the 8254, if it is there: it reads its own mode back.
fn prepare_pit() -> bool {
    const RATE: u8 = 0x34;
    let divisor = (PIT_HZ / TIMER_HZ) as u16;
    let [low, high] = divisor.to_le_bytes();
    out8(0x43, RATE);
    out8(0x40, low);
    out8(0x40, high);
    // Status of channel 0; its upper two bits change.
    out8(0x43, 0xe2);
    in8(0x40) & 0x3f == RATE
}

/// Prepares the 8259s, if they are there: their masks can be read.
fn prepare_pics(sci: Option<u16>) -> bool {
    let first = entry::FIRST_IRQ_VECTOR as u8;
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, first),
        (0xa1, first + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
    ] {
        out8(port, value);
    }
    let mut open = TIMER | CASCADE | 1 << SERIAL_LINE;
    if let Some(sci) = sci.filter(|sci| *sci < 16) {
        open |= 1 << sci;
        // Level-triggered.
        let port = 0x4d0 + sci / 8;
        out8(port, in8(port) | 1 << (sci % 8));
    }
    let [low, high] = (!open).to_le_bytes();
    out8(0x21, low);
    out8(0xa1, high);
    let are_there = in8(0x21) == low;
    // SAFETY: interrupts are off.
    unsafe { OPEN_LINES = if are_there { open } else { 0 } };
    are_there
}

fn open_lines() {
    // SAFETY: interrupts are off, and only the boot CPU comes here.
    let open = unsafe { OPEN_LINES };
    if open != 0 {
        let [low, high] = (!open).to_le_bytes();
        out8(0x21, low);
        out8(0xa1, high);
    }
}

/// Waits for the next interrupt.
pub fn wait() {
    open_lines();
    cpu::wait_for_interrupt();
}

/// Lets waiting interrupts be handled, without waiting for one.
pub fn breathe() {
    open_lines();
    cpu::let_interrupts_in();
}

/// Interrupts of the timer so far; [`TIMER_HZ`] a second.
pub fn timer_interrupts() -> u64 {
    read_register((&raw const entry::timer_count_all) as u64)
}

/// Sleeps, in steps of the timer.
pub fn wait_ms(ms: u64) {
    let until = timer_interrupts() + (ms * u64::from(TIMER_HZ)).div_ceil(1000);
    while timer_interrupts() < until {
        wait();
    }
}

/// How many NMIs came since this was asked last.
pub fn take_nmis() -> u32 {
    let at = (&raw const entry::nmi_count) as u64;
    let count: u32 = read_register(at);
    if count != 0 {
        write_register(at, 0_u32);
    }
    count
}

/// An exception. `stack` is its vector, its error code if it has one, RIP.
pub extern "C" fn fault(stack: u64) -> ! {
    let words: [u64; 3] = cpu::peek(stack);
    let has_error = matches!(words[0], 8 | 10..=14 | 17 | 21);
    let (error, rip) = if has_error {
        (words[1], words[2])
    } else {
        (0, words[1])
    };
    say!("exception {} error {error:#x} at {rip:#x}", words[0]);
    loop {
        cpu::halt_for_good();
    }
}
