//! What a machine is made from.

use accel_kvm::{IrqchipMode, KvmAccelerator};
use device::{Clock, WallClock};

use crate::board::Board;
use crate::error::MachineError;
use crate::guest_file::GuestFile;
use crate::run_state::Actions;

/// Processors, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// How many there are.
    pub cpus: u32,
    /// Sockets, dies, cores and threads: their product is the most there may be.
    pub sockets: u32,
    /// Dies of a socket.
    pub dies: u32,
    /// Cores of a die.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl Topology {
    /// So many sockets of one core each, as `-smp N` says.
    #[must_use]
    pub fn of(cpus: u32) -> Self {
        Self {
            cpus,
            sockets: cpus,
            dies: 1,
            cores: 1,
            threads: 1,
        }
    }
}

/// How the guest's time of day begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RtcBase {
    /// The host's, in UTC.
    #[default]
    Utc,
    /// A date, in seconds since 1970.
    UnixSeconds(i64),
}

/// An executor of guest instructions that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceleratorKind {
    /// The host's processor.
    Kvm,
    /// The software CPU.
    Tcg,
    /// No processor runs; registers are driven from outside.
    Qtest,
}

impl AcceleratorKind {
    /// Whether this host has it.
    ///
    /// # Errors
    /// What it lacks, and what to do.
    pub fn probe(self) -> Result<(), MachineError> {
        match self {
            Self::Kvm => Ok(KvmAccelerator::probe()?),
            Self::Tcg | Self::Qtest => Ok(()),
        }
    }

    /// Its name in options.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Qtest => "qtest",
        }
    }
}

/// What the guest starts with.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    /// bzImage, PVH ELF or multiboot ELF.
    pub kernel: Option<GuestFile>,
    /// The initial RAM disk.
    pub initrd: Option<GuestFile>,
    /// The kernel's command line.
    pub command_line: String,
    /// Firmware that starts at the reset vector.
    pub firmware: Option<GuestFile>,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The board.
    pub board: &'static Board,
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// Processors.
    pub topology: Topology,
    /// The name of the CPU model.
    pub cpu_model: String,
    /// Who executes.
    pub accelerator: AcceleratorKind,
    /// Which interrupt controllers are KVM's. Without a wish all are, unless the kernel has none.
    pub kernel_irqchip: Option<IrqchipMode>,
    /// What the guest starts with.
    pub payload: Payload,
    /// The machine's name, for people.
    pub name: Option<String>,
    /// The machine's UUID, in its usual form.
    pub uuid: Option<String>,
    /// Whether firmware shows its boot menu.
    pub boot_menu: bool,
    /// The time of day.
    pub rtc: RtcBase,
    /// What wishes lead to.
    pub actions: Actions,
}

impl MachineConfig {
    /// The guest's clock and its time of day.
    pub(crate) fn clocks(&self) -> (Clock, WallClock) {
        let clock = match self.accelerator {
            AcceleratorKind::Qtest => Clock::stepped(),
            AcceleratorKind::Kvm | AcceleratorKind::Tcg => Clock::real(),
        };
        self.wall_clock_of(&clock)
    }

    /// A clock with the time of day that goes with it.
    pub(crate) fn wall_clock_of(&self, clock: &Clock) -> (Clock, WallClock) {
        let wall = match self.rtc {
            RtcBase::Utc => WallClock::Host,
            RtcBase::UnixSeconds(seconds) => WallClock::Guest {
                clock: clock.clone(),
                start_unix_ns: u64::try_from(seconds)
                    .unwrap_or(0)
                    .saturating_mul(1_000_000_000),
            },
        };
        (clock.clone(), wall)
    }
}
