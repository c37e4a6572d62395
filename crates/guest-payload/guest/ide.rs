//! The first drive of a PC's IDE controller, by programmed I/O, one sector at a time (ATA-6, 8.34
//! and 8.62; 9.5 and 9.6 for the protocols).

use crate::cpu::{in8, in16, out8, out16};
use crate::disk::{Operation, Sector};
use crate::interrupts;

const COMMANDS: u16 = 0x1f0;
const CONTROL: u16 = 0x3f6;
const READ: u8 = 0x20;
const WRITE: u8 = 0x30;
const FLUSH: u8 = 0xe7;
const BUSY: u8 = 0x80;
const DATA_REQUEST: u8 = 8;
const ERROR: u8 = 1;
const NOBODY: [u8; 2] = [0, 0xff];
const NO_INTERRUPTS: u8 = 2;
const FIRST_DRIVE_LBA: u8 = 0xe0;

/// Waits until the drive is no more busy: its error register, if it has failed.
fn wait() -> Result<u8, u8> {
    loop {
        let status = in8(COMMANDS + 7);
        match status {
            status if status & BUSY != 0 => interrupts::wait(),
            status if status & ERROR != 0 => return Err(in8(COMMANDS + 1)),
            status => return Ok(status),
        }
    }
}

/// Reads or writes a sector; none if there is no drive.
pub fn transfer(operation: Operation, number: u64, sector: &mut Sector) -> Option<Result<(), u8>> {
    out8(COMMANDS + 6, FIRST_DRIVE_LBA | (number >> 24) as u8 & 15);
    if NOBODY.contains(&in8(COMMANDS + 7)) {
        return None;
    }
    out8(CONTROL, NO_INTERRUPTS);
    out8(COMMANDS + 2, 1);
    for part in 0..3 {
        out8(COMMANDS + 3 + part, (number >> (8 * part)) as u8);
    }
    Some(match operation {
        Operation::Read => read(sector),
        Operation::Write => write(sector),
    })
}

fn read(sector: &mut Sector) -> Result<(), u8> {
    out8(COMMANDS + 7, READ);
    if wait()? & DATA_REQUEST == 0 {
        return Err(0);
    }
    for pair in sector.0.chunks_exact_mut(2) {
        pair.copy_from_slice(&in16(COMMANDS).to_le_bytes());
    }
    Ok(())
}

fn write(sector: &Sector) -> Result<(), u8> {
    out8(COMMANDS + 7, WRITE);
    if wait()? & DATA_REQUEST == 0 {
        return Err(0);
    }
    for pair in sector.0.chunks_exact(2) {
        out16(COMMANDS, u16::from_le_bytes([pair[0], pair[1]]));
    }
    wait()?;
    out8(COMMANDS + 7, FLUSH);
    wait().map(|_| ())
}
