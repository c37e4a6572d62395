//! Commands of a CD-ROM: the packet interface (ATA-6, 8.23 and 9.8), and what packets ask for (MMC-5).

use crate::drive::{
    CD_SECTOR_BYTES, Drive, DriveState, Job, JobKind, Outcome, Phase, error, status,
};
use crate::{ata, identify, replies};

/// Bytes of a packet.
pub(crate) const PACKET_BYTES: u32 = 12;
/// What moves at once from the medium without DMA; the guest reads it in pieces of its own choice.
const READ_BYTES: u32 = 64 << 10;

/// The interrupt reason: what moves is a packet, or nothing more moves; it moves to the guest.
const REASON_COMMAND: u8 = 1;
const REASON_TO_GUEST: u8 = 2;

/// Sense key, additional code, qualifier.
type Sense = (u8, u8, u8);
const NOT_READY: u8 = 2;
const NO_MEDIUM: Sense = (NOT_READY, 0x3a, 0x00);
const TRAY_OPEN: Sense = (NOT_READY, 0x3a, 0x02);
const READ_ERROR: Sense = (3, 0x11, 0x00);
const BAD_COMMAND: Sense = (5, 0x20, 0x00);
const OUT_OF_RANGE: Sense = (5, 0x21, 0x00);
const BAD_FIELD: Sense = (5, 0x24, 0x00);
const LOCKED: Sense = (5, 0x53, 0x02);
const UNIT_ATTENTION: u8 = 6;

/// The medium has changed.
pub(crate) const MEDIUM_CHANGED: (u8, u8) = (0x28, 0x00);

/// A command register's value, for a CD-ROM.
pub(crate) fn command(state: &mut DriveState, drive: &Drive, command: u8) -> Outcome {
    match command {
        0xa0 => {
            let ([mid, _], [high, _]) = (state.mid, state.high);
            state.packet.limit = u16::from_le_bytes([mid, high]);
            state.packet.is_dma = state.features & 1 != 0;
            state.error = 0;
            state.count = [REASON_COMMAND, 0];
            state.take(PACKET_BYTES, Phase::TakePacket);
            Outcome::Quiet
        }
        0xa1 => {
            state.error = 0;
            let bytes = identify::cdrom(drive, state);
            state.give(bytes)
        }
        // A disk's commands: this is none, and says what it is (ATA-6, 8.15.5).
        0x20 | 0xec => {
            state.sign(Some(drive));
            state.fail(error::ABORTED)
        }
        _ => ata::either_command(state, command),
    }
}

impl DriveState {
    fn packet_done(&mut self) -> Outcome {
        let outcome = self.finish();
        self.count = [REASON_COMMAND | REASON_TO_GUEST, 0];
        outcome
    }

    fn packet_failed(&mut self, sense: Sense) -> Outcome {
        self.packet.sense = sense;
        let (key, ..) = sense;
        let outcome = self.fail(key << 4 | error::ABORTED);
        self.count = [REASON_COMMAND | REASON_TO_GUEST, 0];
        outcome
    }

    /// Shows the next piece of the buffer.
    fn give_piece(&mut self) -> Outcome {
        // A limit must be even, and 0xffff means 0xfffe.
        let limit = match self.packet.limit {
            0 | 1 => 0xfffe,
            limit => limit & !1,
        };
        let length = u32::try_from(self.buffer.len()).unwrap_or(0);
        let piece = (length - self.position.min(length)).min(u32::from(limit));
        self.piece_end = self.position + piece;
        let [mid, high, ..] = piece.to_le_bytes();
        (self.mid, self.high) = ([mid, 0], [high, 0]);
        self.count = [REASON_TO_GUEST, 0];
        self.phase = Phase::GiveReply;
        self.status = status::READY | status::SEEK_DONE | status::DATA;
        Outcome::Interrupt
    }

    /// Answers with at most `room` bytes of this.
    fn reply(&mut self, mut bytes: Vec<u8>, room: usize) -> Outcome {
        bytes.truncate(room);
        if bytes.is_empty() {
            return self.packet_done();
        }
        self.position = 0;
        self.buffer = bytes;
        if !self.packet.is_dma {
            return self.give_piece();
        }
        self.begin(Job {
            kind: JobKind::Reply,
            offset: 0,
            remaining: 0,
            block: 1,
            is_dma: true,
            is_durable: false,
        })
    }

    fn check_medium(&mut self, drive: &Drive) -> Result<(), Sense> {
        if self.packet.is_open {
            return Err(TRAY_OPEN);
        }
        match drive.medium() {
            Some(_) => Ok(()),
            None => Err(NO_MEDIUM),
        }
    }

    fn read(&mut self, drive: &Drive, first: u32, count: u32) -> Result<Outcome, Sense> {
        self.check_medium(drive)?;
        let end = u64::from(first) + u64::from(count);
        if end > drive.sectors() {
            return Err(OUT_OF_RANGE);
        }
        if count == 0 {
            return Ok(self.packet_done());
        }
        Ok(self.begin(Job {
            kind: JobKind::Read,
            offset: u64::from(first) * CD_SECTOR_BYTES,
            remaining: u64::from(count) * CD_SECTOR_BYTES,
            block: READ_BYTES,
            is_dma: self.packet.is_dma,
            is_durable: false,
        }))
    }

    fn start_stop(&mut self, action: u8) -> Result<Outcome, Sense> {
        let is_open = match action & 3 {
            2 if self.packet.is_locked => return Err(LOCKED),
            2 => true,
            3 => false,
            // The motor is the drive's own business.
            _ => return Ok(self.packet_done()),
        };
        self.packet_done();
        Ok(match self.move_tray(is_open) {
            true => Outcome::Tray { is_open },
            false => Outcome::Interrupt,
        })
    }

    /// Opens or closes the tray; says whether it has moved.
    pub(crate) fn move_tray(&mut self, is_open: bool) -> bool {
        if self.packet.is_open == is_open {
            return false;
        }
        self.packet.is_open = is_open;
        self.packet.event = if is_open { 3 } else { 2 };
        if !is_open {
            self.packet.attention = Some(MEDIUM_CHANGED);
        }
        true
    }
}

fn be16(packet: &[u8], at: usize) -> u16 {
    match packet.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(bytes) => u16::from_be_bytes(*bytes),
        None => 0,
    }
}

fn be32(packet: &[u8], at: usize) -> u32 {
    match packet.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(bytes) => u32::from_be_bytes(*bytes),
        None => 0,
    }
}

/// Does what the packet in the buffer asks for.
fn execute(state: &mut DriveState, drive: &Drive) -> Outcome {
    let packet = std::mem::take(&mut state.buffer);
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    let operation = byte(0);
    // These are answered whatever has happened (MMC-5, 4.1.6.1).
    if !matches!(operation, 0x03 | 0x12 | 0x46 | 0x4a) {
        state.packet.sense = (0, 0, 0);
        if let Some((code, qualifier)) = state.packet.attention.take() {
            return state.packet_failed((UNIT_ATTENTION, code, qualifier));
        }
    }
    match run(state, drive, &packet) {
        Ok(outcome) => outcome,
        Err(sense) => state.packet_failed(sense),
    }
}

fn run(state: &mut DriveState, drive: &Drive, packet: &[u8]) -> Result<Outcome, Sense> {
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    Ok(match byte(0) {
        0x00 => {
            state.check_medium(drive)?;
            state.packet_done()
        }
        0x03 => {
            let mut sense = std::mem::take(&mut state.packet.sense);
            if sense == (0, 0, 0)
                && let Some((code, qualifier)) = state.packet.attention.take()
            {
                sense = (UNIT_ATTENTION, code, qualifier);
            }
            state.reply(replies::sense(sense), usize::from(byte(4)))
        }
        0x12 => {
            if byte(1) & 1 != 0 || byte(2) != 0 {
                return Err(BAD_FIELD);
            }
            state.reply(replies::inquiry(drive), usize::from(be16(packet, 3)))
        }
        0x1b => state.start_stop(byte(4))?,
        0x1e => {
            state.packet.is_locked = byte(4) & 1 != 0;
            state.packet_done()
        }
        0x25 => {
            state.check_medium(drive)?;
            state.reply(replies::capacity(drive.sectors()), usize::MAX)
        }
        0x28 => state.read(drive, be32(packet, 2), u32::from(be16(packet, 7)))?,
        0xa8 => state.read(drive, be32(packet, 2), be32(packet, 6))?,
        0xbe => read_cd(state, drive, packet)?,
        0x2b => {
            state.check_medium(drive)?;
            if u64::from(be32(packet, 2)) >= drive.sectors() {
                return Err(OUT_OF_RANGE);
            }
            state.packet_done()
        }
        0x43 | 0x46 | 0x4a | 0x51 | 0x5a | 0xbd => describe(state, drive, packet)?,
        0xbb => state.packet_done(),
        _ => return Err(BAD_COMMAND),
    })
}

/// What tells of the medium and of the drive, in as many bytes as the packet has room for.
fn describe(state: &mut DriveState, drive: &Drive, packet: &[u8]) -> Result<Outcome, Sense> {
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    let room = usize::from(be16(packet, 7));
    Ok(match byte(0) {
        0x43 => {
            state.check_medium(drive)?;
            // Format in the place of now, else in that of SFF-8020i.
            let format = match byte(2) & 15 {
                0 => byte(9) >> 6,
                format => format,
            };
            let as_time = byte(1) & 2 != 0;
            let table = replies::table_of_contents(format, byte(6), as_time, drive.sectors());
            state.reply(table.ok_or(BAD_FIELD)?, room)
        }
        0x46 => {
            let reply = replies::configuration(drive, byte(1) & 3, be16(packet, 2));
            state.reply(reply, room)
        }
        0x4a => {
            if byte(1) & 1 == 0 {
                // The asynchronous form is not there.
                return Err(BAD_FIELD);
            }
            let reply = replies::event_status(drive, state, byte(4));
            state.reply(reply, room)
        }
        0x51 => {
            state.check_medium(drive)?;
            state.reply(replies::disc_information(), room)
        }
        0x5a => {
            // Saved values are not there.
            let (values, page) = (byte(2) >> 6, byte(2) & 0x3f);
            let pages = replies::mode_pages(state, page).filter(|_| values != 3);
            state.reply(pages.ok_or(BAD_FIELD)?, room)
        }
        0xbd => {
            let reply = replies::mechanism(state.packet.is_open);
            state.reply(reply, usize::from(be16(packet, 8)))
        }
        _ => return Err(BAD_COMMAND),
    })
}

/// READ CD, for sectors of user data only.
fn read_cd(state: &mut DriveState, drive: &Drive, packet: &[u8]) -> Result<Outcome, Sense> {
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    let [_, n0, n1, n2] = be32(packet, 5).to_be_bytes();
    let count = u32::from_be_bytes([0, n0, n1, n2]);
    match byte(9) & 0xf8 {
        0 => {
            state.check_medium(drive)?;
            Ok(state.packet_done())
        }
        0x10 => state.read(drive, be32(packet, 2), count),
        _ => Err(BAD_FIELD),
    }
}

/// A request of a CD-ROM has failed.
pub(crate) fn request_failed(state: &mut DriveState) -> Outcome {
    state.packet_failed(READ_ERROR)
}

/// A block of a CD-ROM's request is done; `bytes` is what a read has brought.
pub(crate) fn block_done(state: &mut DriveState, job: Job, bytes: Vec<u8>) -> Outcome {
    let is_last = job.remaining == 0;
    if job.kind == JobKind::Read && !job.is_dma {
        state.job = Some(job).filter(|_| !is_last);
        state.position = 0;
        state.buffer = bytes;
        return state.give_piece();
    }
    if is_last {
        return state.packet_done();
    }
    state.job = Some(job);
    Outcome::Quiet
}

/// The guest has read a piece, or written a packet.
pub(crate) fn buffer_done(state: &mut DriveState, drive: &Drive) -> Outcome {
    let length = u32::try_from(state.buffer.len()).unwrap_or(0);
    match state.phase {
        Phase::TakePacket => execute(state, drive),
        Phase::GiveReply if state.position < length => state.give_piece(),
        Phase::GiveReply if state.job.is_some() => {
            state.go_on();
            Outcome::Quiet
        }
        Phase::GiveReply => state.packet_done(),
        // What IDENTIFY PACKET DEVICE gave.
        _ => {
            state.stop_transfer();
            state.status = status::READY | status::SEEK_DONE;
            Outcome::Quiet
        }
    }
}
