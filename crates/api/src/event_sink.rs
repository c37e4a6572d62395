//! Where subsystems put their events.

use crate::generated::Event;

/// Takes events; handed to each subsystem when it is made. Emitting never waits and may happen
/// on any thread.
pub trait EventSink: Send + Sync + 'static {
    /// Something happened.
    fn emit(&self, event: Event);
}

/// Whether `id` follows the rules for identifiers that clients choose: a letter first, then
/// letters, digits, `-`, `.` and `_`.
pub fn is_well_formed_id(id: &str) -> bool {
    let mut chars = id.chars();
    chars
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}
