//! The run state of a machine: one table of what may follow what.

use std::fmt;

use api::{PanicAction, RebootAction, ShutdownAction, WatchdogAction};

/// What the machine is doing, by QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Made, and not yet started: `-S`, or before the first `cont`.
    Prelaunch,
    /// The guest runs.
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Stopped since a disk failed and its policy says stop.
    IoError,
    /// Stopped since the accelerator failed; only a reset helps.
    InternalError,
    /// Stopped since the guest has switched off and the machine is to stay.
    Shutdown,
    /// The guest sleeps (ACPI S3).
    Suspended,
    /// Stopped since the watchdog ran out and its action is to pause.
    Watchdog,
    /// Stopped since the guest's kernel panicked.
    GuestPanicked,
}

impl RunState {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Prelaunch,
        Self::Running,
        Self::Paused,
        Self::IoError,
        Self::InternalError,
        Self::Shutdown,
        Self::Suspended,
        Self::Watchdog,
        Self::GuestPanicked,
    ];

    /// Its name in QMP.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::IoError => "io-error",
            Self::InternalError => "internal-error",
            Self::Shutdown => "shutdown",
            Self::Suspended => "suspended",
            Self::Watchdog => "watchdog",
            Self::GuestPanicked => "guest-panicked",
        }
    }

    /// The state in the protocol's type.
    #[must_use]
    pub fn to_api(self) -> api::RunState {
        match self {
            Self::Prelaunch => api::RunState::Prelaunch,
            Self::Running => api::RunState::Running,
            Self::Paused => api::RunState::Paused,
            Self::IoError => api::RunState::IoError,
            Self::InternalError => api::RunState::InternalError,
            Self::Shutdown => api::RunState::Shutdown,
            Self::Suspended => api::RunState::Suspended,
            Self::Watchdog => api::RunState::Watchdog,
            Self::GuestPanicked => api::RunState::GuestPanicked,
        }
    }

    /// Whether guest instructions may be executed.
    #[must_use]
    pub fn is_running(self) -> bool {
        self == Self::Running
    }

    /// Whether time passes for the guest: it runs, or it sleeps and something may wake it.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Suspended)
    }

    /// Whether `cont` is refused until a reset.
    #[must_use]
    pub fn needs_reset(self) -> bool {
        matches!(self, Self::InternalError | Self::Shutdown)
    }

    /// The states that may follow this one.
    fn successors(self) -> &'static [Self] {
        use RunState::{
            GuestPanicked, InternalError, IoError, Paused, Prelaunch, Running, Shutdown, Suspended,
            Watchdog,
        };
        match self {
            Prelaunch => &[Running, Suspended],
            Running => &[
                Paused,
                IoError,
                InternalError,
                Shutdown,
                Suspended,
                Watchdog,
                GuestPanicked,
            ],
            Paused | IoError | Watchdog => &[Running, Suspended, Prelaunch],
            GuestPanicked => &[Running, Suspended, Prelaunch, Shutdown],
            // After a reset only.
            InternalError | Shutdown => &[Prelaunch, Paused],
            Suspended => &[Running, Paused, Shutdown, Prelaunch, InternalError],
        }
    }

    /// Whether `next` may follow.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        self == next || self.successors().contains(&next)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A change of state that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid runstate transition: '{from}' -> '{to}'")]
pub struct IllegalTransition {
    /// The state the machine is in.
    pub from: RunState,
    /// The state that was asked for.
    pub to: RunState,
}

/// What a guest's or an operator's wish leads to: `-action`, `set-action`.
#[derive(Clone, Debug, PartialEq)]
pub struct Actions {
    /// When the guest asks for a reset.
    pub reboot: RebootAction,
    /// When the guest switches off.
    pub shutdown: ShutdownAction,
    /// When the guest's kernel panics.
    pub panic: PanicAction,
    /// When the watchdog runs out.
    pub watchdog: WatchdogAction,
}

impl Default for Actions {
    fn default() -> Self {
        Self {
            reboot: RebootAction::Reset,
            shutdown: ShutdownAction::Poweroff,
            panic: PanicAction::Shutdown,
            watchdog: WatchdogAction::Reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_can_be_left_and_running_reaches_all_but_prelaunch() {
        for state in RunState::ALL {
            assert!(
                RunState::ALL
                    .iter()
                    .any(|next| *next != state && state.may_become(*next)),
                "{state}"
            );
            let reached = RunState::Running.may_become(state);
            assert_eq!(reached, state != RunState::Prelaunch, "{state}");
        }
    }

    #[test]
    fn a_machine_that_needs_a_reset_does_not_run_on() {
        for state in RunState::ALL {
            if state.needs_reset() {
                assert!(!state.may_become(RunState::Running), "{state}");
            }
        }
    }
}
