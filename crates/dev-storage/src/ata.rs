//! Commands of a disk (ATA-6, 8), and those that a CD-ROM has as well.

use crate::drive::{
    Drive, DriveState, HEADS, Job, JobKind, MAX_MULTIPLE, Outcome, Phase, SECTOR_BYTES, SECTORS,
    error, status,
};
use crate::identify::{self, MAX_SECTORS_28};

const LBA: u8 = 0x40;

/// What a command that moves data wants.
#[derive(Clone, Copy)]
struct Transfer {
    kind: JobKind,
    is_48_bit: bool,
    is_dma: bool,
    is_multiple: bool,
    is_durable: bool,
}

impl Transfer {
    fn of(command: u8) -> Option<Transfer> {
        let transfer = |kind, is_48_bit, is_dma, is_multiple| Transfer {
            kind,
            is_48_bit,
            is_dma,
            is_multiple,
            is_durable: false,
        };
        let (read, write) = (JobKind::Read, JobKind::Write);
        Some(match command {
            0x20 | 0x21 => transfer(read, false, false, false),
            0x24 => transfer(read, true, false, false),
            0x25 => transfer(read, true, true, false),
            0x29 => transfer(read, true, false, true),
            0xc4 => transfer(read, false, false, true),
            0xc8 | 0xc9 => transfer(read, false, true, false),
            0x30 | 0x31 => transfer(write, false, false, false),
            0x34 => transfer(write, true, false, false),
            0x35 => transfer(write, true, true, false),
            0x39 => transfer(write, true, false, true),
            0x3d => Transfer {
                is_durable: true,
                ..transfer(write, true, true, false)
            },
            0xc5 => transfer(write, false, false, true),
            0xca | 0xcb => transfer(write, false, true, false),
            0xce => Transfer {
                is_durable: true,
                ..transfer(write, true, false, true)
            },
            _ => return None,
        })
    }
}

impl DriveState {
    /// The sector that the registers name; `None` if there is none of that name.
    fn sector(&self, device: u8, is_48_bit: bool) -> Option<u64> {
        let place = |[now, before]: [u8; 2], shift: u32| {
            let older = if is_48_bit {
                u64::from(before) << 24
            } else {
                0
            };
            (u64::from(now) | older) << shift
        };
        if is_48_bit {
            return Some(place(self.low, 0) | place(self.mid, 8) | place(self.high, 16));
        }
        let below = place(self.low, 0) | place(self.mid, 8) | place(self.high, 16);
        if device & LBA != 0 {
            return Some(below | u64::from(device & 15) << 24);
        }
        let [number, ..] = self.low;
        let (heads, sectors) = (u64::from(self.heads), u64::from(self.sectors));
        let (head, cylinder) = (u64::from(device & 15), below >> 8);
        let exists = number > 0 && number <= self.sectors && head < heads;
        exists.then(|| (cylinder * heads + head) * sectors + u64::from(number) - 1)
    }

    fn sector_count(&self, is_48_bit: bool) -> u64 {
        let [now, before] = self.count.map(u64::from);
        match (is_48_bit, before << 8 | now, now) {
            (true, 0, _) => 0x1_0000,
            (true, count, _) => count,
            (false, _, 0) => 0x100,
            (false, _, count) => count,
        }
    }

    /// Puts a sector's number into the registers.
    fn show_sector(&mut self, sector: u64, is_48_bit: bool) {
        let [low, mid, high, low2, mid2, high2, ..] = sector.to_le_bytes();
        let older = |byte: u8| if is_48_bit { byte } else { 0 };
        self.low = [low, older(low2)];
        self.mid = [mid, older(mid2)];
        self.high = [high, older(high2)];
    }

    /// The sectors of the command, as bytes; an error if they are not all there.
    fn range(&self, drive: &Drive, device: u8, is_48_bit: bool) -> Result<(u64, u64), u8> {
        let count = self.sector_count(is_48_bit);
        let first = self.sector(device, is_48_bit).ok_or(error::NOT_FOUND)?;
        match first.checked_add(count) {
            Some(end) if end <= drive.sectors() => Ok((first * SECTOR_BYTES, count * SECTOR_BYTES)),
            _ => Err(error::NOT_FOUND),
        }
    }

    fn transfer(&mut self, drive: &Drive, device: u8, transfer: Transfer) -> Outcome {
        if transfer.is_multiple && self.multiple == 0 {
            return self.fail(error::ABORTED);
        }
        let is_write = transfer.kind == JobKind::Write;
        if is_write && !drive.medium().is_some_and(|medium| medium.is_writable()) {
            return self.fail(error::ABORTED);
        }
        let (offset, remaining) = match self.range(drive, device, transfer.is_48_bit) {
            Ok(range) => range,
            Err(error) => return self.fail(error),
        };
        let sectors = match transfer.is_multiple {
            true => self.multiple,
            false => 1,
        };
        let job = Job {
            kind: transfer.kind,
            offset,
            remaining,
            block: u32::from(sectors) * 512,
            is_dma: transfer.is_dma,
            is_durable: transfer.is_durable,
        };
        if is_write && !transfer.is_dma {
            // The first block is asked for without an interrupt (ATA-6, 9.6).
            self.error = 0;
            self.take(job.next_bytes(), Phase::Take);
            self.job = Some(job);
            return Outcome::Quiet;
        }
        self.begin(job)
    }

    fn set_features(&mut self) -> Outcome {
        let [mode, _] = self.count;
        match self.features {
            0x02 => self.write_cache = true,
            0x82 => self.write_cache = false,
            // PIO modes; multiword and ultra DMA modes.
            0x03 => match mode {
                0x00 | 0x01 | 0x08..=0x0c => {}
                0x20..=0x22 | 0x40..=0x45 => self.transfer_mode = mode,
                _ => return self.fail(error::ABORTED),
            },
            // Read ahead, and what a reset does to the settings: nothing to choose here.
            0x55 | 0xaa | 0x66 | 0xcc => {}
            _ => return self.fail(error::ABORTED),
        }
        self.finish()
    }

    fn set_multiple(&mut self) -> Outcome {
        let [count, _] = self.count;
        if count > MAX_MULTIPLE || count != 0 && !count.is_power_of_two() {
            return self.fail(error::ABORTED);
        }
        self.multiple = count;
        self.finish()
    }

    /// What a drive without a medium to write, or nothing to flush, does at once.
    fn flush(&mut self, drive: &Drive) -> Outcome {
        if drive.medium().is_none() {
            return self.finish();
        }
        self.begin(Job {
            kind: JobKind::Flush,
            offset: 0,
            remaining: 0,
            block: 512,
            is_dma: false,
            is_durable: true,
        })
    }

    fn power(&mut self, command: u8) -> Outcome {
        if matches!(command, 0x98 | 0xe5) {
            // Active, or idle.
            self.count = [0xff, 0];
        }
        self.finish()
    }
}

/// A command for a disk.
pub(crate) fn command(state: &mut DriveState, drive: &Drive, device: u8, command: u8) -> Outcome {
    if let Some(transfer) = Transfer::of(command) {
        return state.transfer(drive, device, transfer);
    }
    match command {
        // RECALIBRATE and SEEK: nothing moves.
        0x10..=0x1f | 0x70..=0x7f => state.finish(),
        0x27 | 0xf8 => {
            let is_48_bit = command == 0x27;
            let most = if is_48_bit { u64::MAX } else { MAX_SECTORS_28 };
            let last = drive.sectors().min(most).saturating_sub(1);
            state.show_sector(last, is_48_bit);
            state.finish()
        }
        0x40..=0x42 => match state.range(drive, device, command == 0x42) {
            Ok(_) => state.finish(),
            Err(error) => state.fail(error),
        },
        0x91 => {
            let [sectors, _] = state.count;
            let heads = (device & 15) + 1;
            if sectors == 0 || sectors > SECTORS || heads > HEADS {
                return state.fail(error::ABORTED);
            }
            (state.sectors, state.heads) = (sectors, heads);
            state.finish()
        }
        0xc6 => state.set_multiple(),
        0xe7 | 0xea => state.flush(drive),
        0xec => {
            state.error = 0;
            let bytes = identify::disk(drive, state);
            state.give(bytes)
        }
        _ => either_command(state, command),
    }
}

/// A command that disks and CD-ROMs have.
pub(crate) fn either_command(state: &mut DriveState, command: u8) -> Outcome {
    match command {
        0x94..=0x99 | 0xe0..=0xe3 | 0xe5 | 0xe6 => state.power(command),
        0xef => state.set_features(),
        _ => state.fail(error::ABORTED),
    }
}

/// A request of a disk has failed at `job`.
pub(crate) fn request_failed(state: &mut DriveState, job: &Job) -> Outcome {
    state.show_sector(job.offset / SECTOR_BYTES, true);
    state.fail(match job.kind {
        JobKind::Read => error::UNCORRECTABLE,
        _ => error::ABORTED,
    })
}

/// A block of a disk's request is done; `bytes` is what a read has brought.
pub(crate) fn block_done(state: &mut DriveState, job: Job, bytes: Vec<u8>) -> Outcome {
    let is_last = job.remaining == 0;
    match job.kind {
        JobKind::Read if !job.is_dma => {
            state.job = Some(job).filter(|_| !is_last);
            state.give(bytes)
        }
        JobKind::Write if !job.is_dma && !is_last => {
            state.take(job.next_bytes(), Phase::Take);
            state.job = Some(job);
            Outcome::Interrupt
        }
        _ if is_last => state.finish(),
        _ => {
            state.job = Some(job);
            Outcome::Quiet
        }
    }
}

/// The guest has read a block, or filled one.
pub(crate) fn buffer_done(state: &mut DriveState) -> Outcome {
    match (state.phase, &state.job) {
        (Phase::Give, None) => {
            state.stop_transfer();
            state.status = status::READY | status::SEEK_DONE;
        }
        _ => state.go_on(),
    }
    Outcome::Quiet
}
