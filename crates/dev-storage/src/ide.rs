//! The PIIX3's IDE function.
//!
//! | configuration | register |
//! |---|---|
//! | 0x20 | BMIBA: sixteen ports, eight for each channel |
//! | 0x40, 0x42 | IDETIM of the two channels; bit 15 says that a channel's ports are decoded, as firmware leaves it |
//! | 0x44 | SIDETIM |
//!
//! Timings are scratch, and the ports of the channels are decoded whatever bit 15 says.

use std::sync::Arc;

use block_graph::BlockBackend;
use device::pci::{
    Bar, BarKind, HeaderSaved, PciAddress, PciBus, PciFunction, PciHeader, PciIdentity,
};
use device::{
    Device, DmaSpace, Error as DeviceError, IoHandler, IrqLine, ResetKind, SavedState, Width,
    read_bytes, write_bytes,
};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::atapi::MEDIUM_CHANGED;
use crate::channel::{Channel, ChannelState};
use crate::drive::{Drive, DriveKind, DriveOptions};

const NAME: &str = "piix3-ide";
const VERSION: u32 = 1;
const TIMING: u8 = 0x40;
const SLAVE_TIMING: u8 = 0x44;
const MASTER_BAR: u8 = 4;
/// Ports of one channel's bus master.
const MASTER_PORTS: u64 = 8;

/// The ranges of ports that a board places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdePart {
    /// Eight ports: 0x1f0, or 0x170.
    Command,
    /// One port: 0x3f6, or 0x376.
    Control,
}

/// Where a drive sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdePlace {
    /// 0 or 1: the primary or the secondary channel.
    pub channel: u8,
    /// 0 or 1: device 0 ("master") or 1 ("slave").
    pub unit: u8,
}

struct Ports {
    channel: Arc<Channel>,
    part: IdePart,
}

impl IoHandler for Ports {
    fn read(&self, offset: u64, width: Width) -> u64 {
        match self.part {
            IdePart::Command => self.channel.read_command(offset, width),
            IdePart::Control => read_bytes(offset, width, |at| match at {
                0 => self.channel.read_control(),
                _ => 0xff,
            }),
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        match self.part {
            IdePart::Command => self.channel.write_command(offset, width, value),
            IdePart::Control => write_bytes(offset, width, value, |at, byte| {
                if at == 0 {
                    self.channel.write_control(byte);
                }
            }),
        }
    }
}

/// The bus masters of both channels.
struct Masters([Arc<Channel>; 2]);

impl Masters {
    fn at(&self, offset: u64) -> Option<(&Arc<Channel>, u64)> {
        let index = usize::try_from(offset / MASTER_PORTS).ok()?;
        Some((self.0.get(index)?, offset % MASTER_PORTS))
    }
}

impl IoHandler for Masters {
    fn read(&self, offset: u64, width: Width) -> u64 {
        read_bytes(offset, width, |at| {
            self.at(at)
                .map_or(0xff, |(channel, at)| channel.read_master(at))
        })
    }

    fn write(&self, offset: u64, width: Width, value: u64) {
        write_bytes(offset, width, value, |at, byte| {
            if let Some((channel, at)) = self.at(at) {
                channel.write_master(at, byte);
            }
        });
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdeSaved {
    header: HeaderSaved,
    channels: [ChannelState; 2],
}

/// The function with its two channels.
pub struct Ide {
    header: Arc<PciHeader>,
    channels: [Arc<Channel>; 2],
}

impl Ide {
    /// A controller without drives, whose channels interrupt by `irqs` (14 and 15) and whose bus masters move data in
    /// `memory`.
    pub fn new(
        bus: &PciBus,
        address: PciAddress,
        memory: &Arc<dyn DmaSpace>,
        irqs: [IrqLine; 2],
    ) -> Arc<Ide> {
        let identity = PciIdentity {
            vendor: 0x8086,
            device: 0x7010,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            // A bus master, both channels at their ports of old.
            class: 0x01_0180,
            revision: 0,
            pin: 0,
            multifunction: false,
        };
        let header = Arc::new(PciHeader::new(&identity, bus, address));
        header.set_register(TIMING, &[0, 0x80, 0, 0x80], &[0xff; 4]);
        header.set_register(SLAVE_TIMING, &[0], &[0xff]);
        let channels =
            irqs.map(|irq| Channel::new(Arc::downgrade(&header), irq, Arc::clone(memory)));
        header.add_bar(Bar {
            index: MASTER_BAR,
            kind: BarKind::Ports,
            length: 2 * MASTER_PORTS,
            handler: Arc::new(Masters(channels.clone())),
            name: "piix-bmdma".to_owned(),
        });
        Arc::new(Ide { header, channels })
    }

    /// The handler of a range that the board places; `None` beyond channel 1.
    pub fn handler(&self, channel: u8, part: IdePart) -> Option<Arc<dyn IoHandler>> {
        let channel = Arc::clone(self.channel(channel)?);
        Some(Arc::new(Ports { channel, part }))
    }

    fn channel(&self, number: u8) -> Option<&Arc<Channel>> {
        self.channels.get(usize::from(number))
    }

    /// Puts a drive into a place, before the machine starts.
    ///
    /// # Errors
    /// There is no such place, it is taken, or a disk has no medium.
    pub fn attach(&self, place: IdePlace, options: DriveOptions) -> Result<(), Error> {
        let IdePlace { channel, unit } = place;
        let nowhere = Error::NoSuchPlace { channel, unit };
        if unit > 1 {
            return Err(nowhere);
        }
        if options.kind == DriveKind::Disk && options.medium.is_none() {
            return Err(Error::NoMedium);
        }
        let channel = self.channel(channel).ok_or(nowhere)?;
        match channel.attach(unit, Drive::new(options)) {
            true => Ok(()),
            false => Err(Error::Taken { unit }),
        }
    }

    fn with<T>(
        &self,
        place: IdePlace,
        work: impl FnOnce(&Drive, &mut crate::drive::DriveState) -> T,
    ) -> Option<T> {
        self.channel(place.channel)?.with_drive(place.unit, work)
    }

    /// Puts another medium into a CD-ROM, or takes it out; gives the one before. Where the tray is does not matter; the
    /// guest hears of the change. The owner waits for requests at the old one ([`BlockBackend::idle`]) before it lets go
    /// of it. `None` if there is no CD-ROM.
    pub fn set_medium(
        &self,
        place: IdePlace,
        medium: Option<Arc<BlockBackend>>,
    ) -> Option<Option<Arc<BlockBackend>>> {
        self.with(place, |drive, state| {
            drive.is_cdrom().then(|| {
                state.packet.attention = Some(MEDIUM_CHANGED);
                state.packet.event = if medium.is_some() { 2 } else { 3 };
                drive.set_medium(medium)
            })
        })
        .flatten()
    }

    /// Opens or closes the tray of a CD-ROM, also a locked one; says whether it has moved.
    pub fn move_tray(&self, place: IdePlace, is_open: bool) -> bool {
        let moved = self.with(place, |drive, state| {
            drive.is_cdrom() && state.move_tray(is_open)
        });
        moved == Some(true)
    }

    /// Somebody presses the button of a CD-ROM: a guest that has locked the tray is asked to open it.
    pub fn request_eject(&self, place: IdePlace) {
        self.with(place, |_, state| state.packet.event = 1);
    }

    /// Whether the tray of a CD-ROM is open.
    pub fn is_tray_open(&self, place: IdePlace) -> bool {
        self.with(place, |_, state| state.packet.is_open) == Some(true)
    }

    /// Whether the guest keeps the tray shut.
    pub fn is_locked(&self, place: IdePlace) -> bool {
        self.with(place, |_, state| state.packet.is_locked) == Some(true)
    }

    /// The machine stands: no guest memory is touched and no interrupt raised until [`Ide::resume`].
    pub fn pause(&self) {
        for channel in &self.channels {
            channel.pause();
        }
    }

    /// The machine goes on; requests that had failed, or were under way, are done again.
    pub fn resume(&self) {
        for channel in &self.channels {
            channel.resume();
        }
    }

    /// Takes no more requests and waits for the end of those under way; after that backends may be detached. The
    /// controller is dead then.
    pub async fn shutdown(&self) {
        for channel in &self.channels {
            channel.shutdown().await;
        }
    }

    #[cfg(test)]
    pub(crate) fn is_quiet(&self) -> bool {
        self.channels.iter().all(|channel| channel.is_quiet())
    }
}

impl Device for Ide {
    fn reset(&self, _kind: ResetKind) {
        self.header.reset();
        for channel in &self.channels {
            channel.reset();
        }
    }

    fn save(&self) -> Result<SavedState, DeviceError> {
        let [primary, secondary] = &self.channels;
        let saved = IdeSaved {
            header: self.header.save(),
            channels: [primary.save(), secondary.save()],
        };
        SavedState::of(NAME, VERSION, &saved)
    }

    fn restore(&self, state: &SavedState) -> Result<(), DeviceError> {
        let saved: IdeSaved = state.read(NAME, VERSION)?;
        for (channel, saved) in self.channels.iter().zip(&saved.channels) {
            channel.check(NAME, saved)?;
        }
        self.header.restore(NAME, saved.header)?;
        for (channel, saved) in self.channels.iter().zip(saved.channels) {
            channel.restore(saved);
        }
        Ok(())
    }
}

impl PciFunction for Ide {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn config_written(&self, _first: u8, _last: u8) {}
}
