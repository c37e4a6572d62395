//! IDE: the PIIX3's controller with ATA disks and ATAPI CD-ROMs over nodes of the block graph.
//!
//! | module | what |
//! |---|---|
//! | `ide` | [`Ide`], the PCI function: two channels, the bus master's registers |
//! | `channel` | registers of a channel, interrupts, and the task that moves data |
//! | `bus_master` | DMA by descriptor tables |
//! | `drive` | what a board chooses about a drive ([`DriveOptions`]), and the registers a drive has |
//! | `ata`, `identify` | commands of a disk; what drives say of themselves |
//! | `atapi`, `replies` | commands of a CD-ROM |
//!
//! Sources: ATA/ATAPI-6 (T13 1410D), SFF-8020i, MMC-3 to 5, "Programming Interface for Bus Master IDE Controller" 1.0, Intel
//! 82371SB datasheet (290550).
//!
//! # Lifecycle
//!
//! A board makes an [`Ide`], puts its handlers at 0x1f0, 0x3f6, 0x170 and 0x376, plugs it into the PCI bus, and attaches
//! drives ([`Ide::attach`]) before the machine starts. [`Ide::pause`] and [`Ide::resume`] go with the machine;
//! [`Ide::shutdown`] lets go of the backends.
//!
//! # Invariants
//!
//! - A channel has at most one task, which does one request at a time. A request is kept in the drive's state until it has
//!   ended: what a pause or a stop for an error interrupts is done again, from the start of the piece that was under way.
//! - After a reset nothing of a request from before it reaches guest memory or registers, and no other request begins before
//!   it has ended at the node.
//! - While the machine is paused no guest memory is touched and no interrupt raised.
//! - A guest gets at most [`MAX_PIECE_BYTES`] of memory of this process for each channel.
//!
//! # Where a new thing goes
//!
//! A command: `ata` or `atapi`. Another controller with the same drives (AHCI): beside `ide`, with `channel`'s task.

mod ata;
mod atapi;
mod bus_master;
mod channel;
mod drive;
mod ide;
mod identify;
mod replies;

#[cfg(test)]
mod tests;

pub use drive::{DriveEvents, DriveKind, DriveOptions};
pub use ide::{Ide, IdePart, IdePlace};

/// The most bytes that are under way at once on a channel.
pub const MAX_PIECE_BYTES: u32 = 256 << 10;

/// What cannot be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There are two channels with two places each.
    #[error(
        "IDE has channels 0 and 1 with units 0 and 1; there is no channel {channel} unit {unit}"
    )]
    NoSuchPlace {
        /// The channel.
        channel: u8,
        /// The unit.
        unit: u8,
    },
    /// Another drive sits there.
    #[error("IDE unit {unit} is in use")]
    Taken {
        /// The unit.
        unit: u8,
    },
    /// A disk is not removable: it is attached with its node.
    #[error("An IDE disk needs a drive; only a CD-ROM may be empty")]
    NoMedium,
}
