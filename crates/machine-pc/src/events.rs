//! What clients hear of the machine.

use api::{
    BlockErrorAction, BlockIoErrorEvent, Event, EventSink, GuestPanicAction, PanicAction,
    ShutdownCause, WatchdogAction,
};

use crate::machine::IoErrorNote;

/// Whether the guest itself is behind it.
pub(crate) fn is_guests(cause: ShutdownCause) -> bool {
    matches!(
        cause,
        ShutdownCause::GuestShutdown | ShutdownCause::GuestReset | ShutdownCause::GuestPanic
    )
}

pub(crate) fn stop(events: &dyn EventSink) {
    events.emit(Event::Stop);
}

pub(crate) fn resume(events: &dyn EventSink) {
    events.emit(Event::Resume);
}

pub(crate) fn reset(events: &dyn EventSink, reason: ShutdownCause) {
    let guest = is_guests(reason);
    events.emit(Event::Reset(api::ResetEvent { guest, reason }));
}

pub(crate) fn shutdown(events: &dyn EventSink, reason: ShutdownCause) {
    let guest = is_guests(reason);
    events.emit(Event::Shutdown(api::ShutdownEvent { guest, reason }));
}

pub(crate) fn powerdown(events: &dyn EventSink) {
    events.emit(Event::Powerdown);
}

pub(crate) fn suspend(events: &dyn EventSink) {
    events.emit(Event::Suspend);
}

pub(crate) fn suspend_disk(events: &dyn EventSink) {
    events.emit(Event::SuspendDisk);
}

pub(crate) fn wakeup(events: &dyn EventSink) {
    events.emit(Event::Wakeup);
}

pub(crate) fn panicked(events: &dyn EventSink, action: PanicAction) {
    let action = match action {
        PanicAction::None => GuestPanicAction::Run,
        PanicAction::Pause => GuestPanicAction::Pause,
        PanicAction::Shutdown | PanicAction::ExitFailure => GuestPanicAction::Poweroff,
    };
    let event = api::GuestPanickedEvent { action, info: None };
    events.emit(Event::GuestPanicked(event));
}

pub(crate) fn crash_loaded(events: &dyn EventSink) {
    let action = GuestPanicAction::Run;
    let event = api::GuestCrashloadedEvent { action, info: None };
    events.emit(Event::GuestCrashloaded(event));
}

pub(crate) fn pvshutdown(events: &dyn EventSink) {
    events.emit(Event::GuestPvshutdown);
}

pub(crate) fn watchdog(events: &dyn EventSink, action: WatchdogAction) {
    events.emit(Event::Watchdog(api::WatchdogEvent { action }));
}

pub(crate) fn block_io_error(events: &dyn EventSink, note: IoErrorNote) {
    let IoErrorNote {
        qom_path,
        device,
        error,
    } = note;
    let stops = error.action == BlockErrorAction::Stop;
    events.emit(Event::BlockIoError(BlockIoErrorEvent {
        qom_path,
        device,
        node_name: Some(error.node_name),
        operation: error.operation,
        action: error.action,
        nospace: stops.then_some(error.no_space),
        reason: error.reason,
    }));
}
