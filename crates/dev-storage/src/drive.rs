//! A drive: what the board chooses, and the registers and buffers it has.

use std::sync::Arc;

use api::{BlockErrorAction, BlockdevOnError};
use block_graph::{BlockBackend, BlockError, BlockErrorSink, ErrorPolicy};
use host_io::ExecutorHandle;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::MAX_PIECE_BYTES;

/// Bytes of a sector of a disk.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Bytes of a sector of a CD-ROM.
pub(crate) const CD_SECTOR_BYTES: u64 = 2048;
/// Most sectors of one block of READ MULTIPLE.
pub(crate) const MAX_MULTIPLE: u8 = 16;
/// The geometry that drives have that are larger than it can say.
pub(crate) const HEADS: u8 = 16;
/// Sectors of a track.
pub(crate) const SECTORS: u8 = 63;

/// Bits of the status register.
pub(crate) mod status {
    pub(crate) const BUSY: u8 = 0x80;
    pub(crate) const READY: u8 = 0x40;
    pub(crate) const SEEK_DONE: u8 = 0x10;
    pub(crate) const DATA: u8 = 0x08;
    pub(crate) const ERROR: u8 = 0x01;
}

/// Bits of the error register.
pub(crate) mod error {
    pub(crate) const CRC: u8 = 0x80;
    pub(crate) const UNCORRECTABLE: u8 = 0x40;
    pub(crate) const NOT_FOUND: u8 = 0x10;
    pub(crate) const ABORTED: u8 = 0x04;
}

/// What a drive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveKind {
    /// An ATA disk.
    Disk,
    /// An ATAPI CD-ROM.
    CdRom,
}

/// What a drive tells its owner, from an executor's or a vCPU's thread. The owner acts on it soon, not from inside.
pub trait DriveEvents: BlockErrorSink {
    /// The guest has opened or closed the tray.
    fn tray_moved(&self, is_open: bool);
}

/// What a board chooses about a drive.
pub struct DriveOptions {
    /// What it is.
    pub kind: DriveKind,
    /// The medium; a CD-ROM may be empty.
    pub medium: Option<Arc<BlockBackend>>,
    /// Where its requests are served.
    pub executor: ExecutorHandle,
    /// Serial number; 20 ASCII characters of it count.
    pub serial: String,
    /// Model; 40 ASCII characters of it count.
    pub model: String,
    /// Version of its firmware; 8 ASCII characters of it count.
    pub version: String,
    /// Whether writes may wait for a flush, until the guest chooses.
    pub write_cache: bool,
    /// What is done when a read fails.
    pub rerror: BlockdevOnError,
    /// What is done when anything else fails.
    pub werror: BlockdevOnError,
    /// Who hears of failures and of the tray.
    pub events: Arc<dyn DriveEvents>,
}

/// A drive, apart from its registers.
pub(crate) struct Drive {
    pub(crate) options: DriveOptions,
    medium: Mutex<Option<Arc<BlockBackend>>>,
}

impl Drive {
    pub(crate) fn new(mut options: DriveOptions) -> Drive {
        let medium = Mutex::new(options.medium.take());
        Drive { options, medium }
    }

    pub(crate) fn is_cdrom(&self) -> bool {
        self.options.kind == DriveKind::CdRom
    }

    pub(crate) fn medium(&self) -> Option<Arc<BlockBackend>> {
        self.medium.lock().clone()
    }

    pub(crate) fn set_medium(
        &self,
        medium: Option<Arc<BlockBackend>>,
    ) -> Option<Arc<BlockBackend>> {
        std::mem::replace(&mut self.medium.lock(), medium)
    }

    /// Whole sectors of the medium; none without one.
    pub(crate) fn sectors(&self) -> u64 {
        let bytes = if self.is_cdrom() {
            CD_SECTOR_BYTES
        } else {
            SECTOR_BYTES
        };
        self.medium().map_or(0, |medium| medium.length() / bytes)
    }

    /// Decides what is done about an error, and tells the owner.
    pub(crate) fn report(&self, error: &BlockError, is_read: bool) -> BlockErrorAction {
        let policy = ErrorPolicy {
            rerror: self.options.rerror,
            werror: self.options.werror,
        };
        let node_name = self
            .medium()
            .map_or_else(String::new, |medium| medium.edge().node().name().to_owned());
        let judged = policy.judge(node_name, error, is_read);
        self.options.events.block_io_error(&judged);
        judged.action
    }
}

/// What a task does for a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum JobKind {
    /// From the medium to the guest.
    Read,
    /// From the guest to the medium.
    Write,
    /// Make durable what was written.
    Flush,
    /// Move the buffer to guest memory; no medium takes part.
    Reply,
}

/// A request that is under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    pub(crate) kind: JobKind,
    /// The next byte of the medium.
    pub(crate) offset: u64,
    /// Bytes left.
    pub(crate) remaining: u64,
    /// Bytes of a block: what moves at once without DMA.
    pub(crate) block: u32,
    /// By the bus master.
    pub(crate) is_dma: bool,
    /// Durable before it is done.
    pub(crate) is_durable: bool,
}

impl Job {
    /// Bytes that move next.
    pub(crate) fn next_bytes(&self) -> u32 {
        let most = if self.is_dma {
            MAX_PIECE_BYTES
        } else {
            self.block.min(MAX_PIECE_BYTES)
        };
        u32::try_from(self.remaining).unwrap_or(u32::MAX).min(most)
    }
}

/// What the data register is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// The guest reads the buffer.
    Give,
    /// The guest fills the buffer; then the job writes it.
    Take,
    /// The guest writes a packet.
    TakePacket,
    /// The guest reads the buffer in pieces of its own choice.
    GiveReply,
}

/// What a command or a step leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing to tell.
    Quiet,
    /// The drive interrupts.
    Interrupt,
    /// The drive interrupts, and the tray has moved.
    Tray {
        /// Where to.
        is_open: bool,
    },
}

/// What a CD-ROM keeps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PacketState {
    /// Sense key, additional code and qualifier.
    pub(crate) sense: (u8, u8, u8),
    /// A unit attention that nobody has heard of.
    pub(crate) attention: Option<(u8, u8)>,
    /// The guest does not want the medium to go.
    pub(crate) is_locked: bool,
    pub(crate) is_open: bool,
    /// A media event that nobody has asked for yet (MMC: 1 eject request, 2 new medium, 3 removal).
    pub(crate) event: u8,
    /// Bytes that the guest takes at once.
    pub(crate) limit: u16,
    /// Data moves by the bus master.
    pub(crate) is_dma: bool,
}

/// Registers and buffers of a drive. Of a register that takes two writes the second place is the older one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriveState {
    pub(crate) features: u8,
    pub(crate) count: [u8; 2],
    pub(crate) low: [u8; 2],
    pub(crate) mid: [u8; 2],
    pub(crate) high: [u8; 2],
    pub(crate) status: u8,
    pub(crate) error: u8,
    pub(crate) phase: Phase,
    pub(crate) buffer: Vec<u8>,
    /// The next byte of the buffer.
    pub(crate) position: u32,
    /// Where the piece ends that the guest reads now.
    pub(crate) piece_end: u32,
    pub(crate) job: Option<Job>,
    /// Sectors of a block; 0: READ MULTIPLE is off.
    pub(crate) multiple: u8,
    pub(crate) write_cache: bool,
    /// As SET FEATURES says it: 0x20 to 0x22 multiword DMA, 0x40 to 0x45 ultra DMA.
    pub(crate) transfer_mode: u8,
    pub(crate) heads: u8,
    pub(crate) sectors: u8,
    pub(crate) packet: PacketState,
}

impl DriveState {
    /// After the power came on.
    pub(crate) fn new(drive: Option<&Drive>) -> DriveState {
        let is_cdrom = drive.is_some_and(Drive::is_cdrom);
        let mut state = DriveState {
            features: 0,
            count: [0; 2],
            low: [0; 2],
            mid: [0; 2],
            high: [0; 2],
            status: 0,
            error: 0,
            phase: Phase::Idle,
            buffer: Vec::new(),
            position: 0,
            piece_end: 0,
            job: None,
            multiple: MAX_MULTIPLE,
            write_cache: drive.is_some_and(|drive| drive.options.write_cache),
            transfer_mode: 0x22,
            heads: HEADS,
            sectors: SECTORS,
            packet: PacketState::default(),
        };
        if is_cdrom {
            state.packet.attention = Some((0x29, 0x00));
        }
        state.sign(drive);
        state
    }

    /// Shows what the drive is, as after a reset (ATA-6, 9.12), and lets go of whatever was under way.
    pub(crate) fn sign(&mut self, drive: Option<&Drive>) {
        self.stop_transfer();
        let Some(drive) = drive else {
            self.status = 0;
            return;
        };
        (self.count, self.low) = ([1, 0], [1, 0]);
        (self.mid, self.high) = ([0; 2], [0; 2]);
        self.error = 1;
        self.status = status::READY | status::SEEK_DONE;
        if drive.is_cdrom() {
            (self.mid, self.high) = ([0x14, 0], [0xeb, 0]);
            self.status = 0;
        }
    }

    /// Lets go of the buffer and of the request.
    pub(crate) fn stop_transfer(&mut self) {
        self.phase = Phase::Idle;
        self.buffer = Vec::new();
        (self.position, self.piece_end) = (0, 0);
        self.job = None;
    }

    /// The command has ended well.
    pub(crate) fn finish(&mut self) -> Outcome {
        self.stop_transfer();
        self.status = status::READY | status::SEEK_DONE;
        self.error = 0;
        Outcome::Interrupt
    }

    /// The command has failed.
    pub(crate) fn fail(&mut self, error: u8) -> Outcome {
        self.stop_transfer();
        self.status = status::READY | status::SEEK_DONE | status::ERROR;
        self.error = error;
        Outcome::Interrupt
    }

    /// The guest is to read these bytes as one block.
    pub(crate) fn give(&mut self, bytes: Vec<u8>) -> Outcome {
        self.position = 0;
        self.piece_end = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.buffer = bytes;
        self.phase = Phase::Give;
        self.status = status::READY | status::SEEK_DONE | status::DATA;
        Outcome::Interrupt
    }

    /// The guest is to write so many bytes.
    pub(crate) fn take(&mut self, bytes: u32, phase: Phase) {
        self.position = 0;
        self.piece_end = bytes;
        self.buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.phase = phase;
        self.status = status::READY | status::SEEK_DONE | status::DATA;
    }

    /// A task is to do this.
    pub(crate) fn begin(&mut self, job: Job) -> Outcome {
        self.phase = Phase::Idle;
        self.status = status::READY | status::SEEK_DONE | status::BUSY;
        self.error = 0;
        self.job = Some(job);
        Outcome::Quiet
    }

    /// The job goes on with the medium.
    pub(crate) fn go_on(&mut self) {
        self.phase = Phase::Idle;
        self.status = status::READY | status::SEEK_DONE | status::BUSY;
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.status & status::BUSY != 0
    }

    /// A job that a task can do now.
    pub(crate) fn ready_job(&self) -> Option<&Job> {
        self.job.as_ref().filter(|_| self.is_busy())
    }

    /// Whether a state from outside can be. Bounds that the code counts on.
    pub(crate) fn is_sound(&self) -> bool {
        let length = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let wants_data = self.phase != Phase::Idle;
        let packet = self.phase == Phase::TakePacket;
        length <= MAX_PIECE_BYTES
            && self.position <= self.piece_end
            && self.piece_end <= length
            && (!wants_data || self.position < self.piece_end)
            && (!packet || length == 12)
            && self.multiple <= MAX_MULTIPLE
            && (1..=HEADS).contains(&self.heads)
            && (1..=SECTORS).contains(&self.sectors)
            && self.job.as_ref().is_none_or(|job| {
                let is_data = matches!(job.kind, JobKind::Read | JobKind::Write);
                (job.block > 0 && job.block <= MAX_PIECE_BYTES)
                    && (!is_data || job.remaining > 0 || !self.is_busy())
                    && job.offset.checked_add(job.remaining).is_some()
            })
    }
}
