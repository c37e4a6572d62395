//! The other CPUs: started by INIT and start-up messages, each says that it is there and stops.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::acpi::Acpi;
use crate::serial::say;
use crate::{cpu, entry, interrupts};

const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;
/// The largest identity that a message in xAPIC mode reaches.
const MAX_ID: u32 = 254;
/// Interrupts of the timer to wait for an answer: half a second.
const PATIENCE: u64 = 10;

static ANSWERED: AtomicBool = AtomicBool::new(false);

extern "C" fn other_cpu(number: u64) -> ! {
    interrupts::prepare_other_cpu();
    say!("cpu {number}: started, APIC id {}", interrupts::local_id());
    ANSWERED.store(true, Ordering::Release);
    loop {
        cpu::halt_for_good();
    }
}

pub fn start_others(acpi: &Acpi) {
    let own = interrupts::local_id();
    for (number, id) in acpi.cpus().iter().enumerate() {
        if *id == own {
            say!("cpu {number}: boot CPU, APIC id {id}");
        } else if *id > MAX_ID {
            say!("cpu {number}: APIC id {id} is out of reach");
        } else if !start(number as u64, *id) {
            say!("cpu {number}: APIC id {id} does not answer");
        }
    }
}

fn start(number: u64, id: u32) -> bool {
    let stack = (&raw const entry::other_stack_end) as u64;
    entry::set_trampoline(other_cpu, stack, number);
    ANSWERED.store(false, Ordering::Relaxed);
    interrupts::send(id, INIT);
    let page = (entry::TRAMPOLINE >> 12) as u32;
    for _ in 0..2 {
        interrupts::send(id, START_UP | page);
        let until = interrupts::timer_interrupts() + PATIENCE;
        while interrupts::timer_interrupts() < until {
            if ANSWERED.load(Ordering::Acquire) {
                return true;
            }
            interrupts::breathe();
        }
    }
    false
}
