//! What devices ask of the whole machine.

use crate::ResetKind;

/// A device's request to whoever owns the machine's run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineRequest {
    /// Reset the machine (keyboard controller, port 92, reset control register, triple fault).
    Reset(ResetKind),
    /// The guest switched the power off (ACPI S5).
    PowerOff,
    /// The guest went to sleep (ACPI S3).
    Suspend,
    /// The guest went to hibernation (ACPI S4).
    Hibernate,
    /// The guest wants the process to end with this status (debug exit device).
    Exit(u8),
    /// The guest says that its kernel panicked.
    GuestPanicked,
    /// The guest's kernel panicked, and a crash kernel has been started in its place.
    GuestCrashLoaded,
    /// The guest says it has shut down (pvpanic).
    GuestShutdown,
    /// A watchdog ran out.
    WatchdogExpired,
    /// The machine cannot go on: an accelerator failed.
    InternalError,
}

/// Takes devices' requests.
///
/// Called from a vCPU's or the clock's thread, possibly with a device's lock held: it notes the request and returns; it
/// does not call any device from inside.
pub trait MachineSink: Send + Sync {
    /// Notes a request.
    fn request(&self, request: MachineRequest);
}
