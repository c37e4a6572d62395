//! Instructions that Rust has no words for, and registers in memory.

use core::arch::asm;

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        pub fn $read(port: u16) -> $type {
            let value;
            // SAFETY: reading a port changes no memory of this program.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), out($register) value, in("dx") port,
                    options(nostack, preserves_flags));
            }
            value
        }

        pub fn $write(port: u16, value: $type) {
            // SAFETY: devices write only where queues tell them.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}

port_access!(in8, out8, u8, "al");
port_access!(in16, out16, u16, "ax");
port_access!(in32, out32, u32, "eax");

/// A value anywhere in the first 4 GiB, which are mapped to themselves; it need not be aligned.
pub fn peek<T: Copy>(address: u64) -> T {
    // SAFETY: all of that is mapped, and any bytes are a value of the types that are read.
    unsafe { (address as *const T).read_unaligned() }
}

/// A register in memory.
pub fn read_register<T: Copy>(address: u64) -> T {
    // SAFETY: as for `peek`; registers are aligned.
    unsafe { (address as *const T).read_volatile() }
}

/// A register in memory.
pub fn write_register<T>(address: u64, value: T) {
    // SAFETY: as for `peek`; who calls names a register or memory that nobody else has.
    unsafe { (address as *mut T).write_volatile(value) }
}

pub fn bytes_at(address: u64, length: usize) -> &'static [u8] {
    // SAFETY: tables and texts that the machine left; nothing writes there.
    unsafe { core::slice::from_raw_parts(address as *const u8, length) }
}

/// Waits for an interrupt with interrupts on; none is lost between the two instructions.
pub fn wait_for_interrupt() {
    // SAFETY: handlers touch only what is theirs.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

pub fn let_interrupts_in() {
    // SAFETY: as above.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) }
}

pub fn halt_for_good() {
    // SAFETY: nothing happens any more.
    unsafe { asm!("cli", "hlt", options(nostack)) }
}

/// An exception without a table of handlers: a triple fault. UD2, since a KVM that emulates has no INT3 in long mode.
pub fn triple_fault() -> ! {
    let nothing = [0_u16; 5];
    loop {
        // SAFETY: the machine is reset.
        unsafe { asm!("lidt [{}]", "ud2", in(reg) &nothing, options(nostack)) }
    }
}
