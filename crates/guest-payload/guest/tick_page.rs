//! The page at 0x9000 that says how the guest fares, for who reads its memory from outside.
//! `src/lib.rs` has its layout.

use crate::cpu::{read_register, write_register};

const PAGE: u64 = 0x9000;
const MAGIC: u64 = u64::from_le_bytes(*b"RATITEGP");
const VERSION: u32 = 1;
const TICK_MS: u32 = 250;
/// Where the handlers of the timer count.
pub const TICKS: u64 = PAGE + 16;
const DISK_COUNTER: u64 = PAGE + 24;
const BALLOON_PAGES: u64 = PAGE + 32;
const CPUS: u64 = PAGE + 36;
pub const TICKS_A_SECOND: u64 = 4;

pub fn prepare(cpus: usize) {
    write_register(PAGE, MAGIC);
    write_register(PAGE + 8, VERSION);
    write_register(PAGE + 12, TICK_MS);
    write_register(TICKS, 0_u64);
    write_register(DISK_COUNTER, 0_u64);
    write_register(BALLOON_PAGES, 0_u32);
    write_register(CPUS, cpus as u32);
}

pub fn ticks() -> u64 {
    read_register(TICKS)
}

pub fn set_disk_counter(count: u64) {
    write_register(DISK_COUNTER, count);
}

pub fn set_balloon_pages(pages: u32) {
    write_register(BALLOON_PAGES, pages);
}
