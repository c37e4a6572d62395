//! What each program serves of the schema.

use crate::generated::{COMMAND_NAMES, EVENT_NAMES, MACHINE_COMMAND_NAMES, MACHINE_EVENT_NAMES};

/// What `query-qmp-schema` answers in the storage daemon, as one line of ASCII JSON text.
#[cfg(not(feature = "tls-anon-psk"))]
pub const INTROSPECTION: &str = include_str!("generated/introspection.json").trim_ascii();
/// What `query-qmp-schema` answers in the storage daemon, as one line of ASCII JSON text.
#[cfg(feature = "tls-anon-psk")]
pub const INTROSPECTION: &str =
    include_str!("generated/introspection-tls-anon-psk.json").trim_ascii();

/// What `query-qmp-schema` answers in the machine, as one line of ASCII JSON text.
#[cfg(not(feature = "tls-anon-psk"))]
pub const MACHINE_INTROSPECTION: &str =
    include_str!("generated/machine-introspection.json").trim_ascii();
/// What `query-qmp-schema` answers in the machine, as one line of ASCII JSON text.
#[cfg(feature = "tls-anon-psk")]
pub const MACHINE_INTROSPECTION: &str =
    include_str!("generated/machine-introspection-tls-anon-psk.json").trim_ascii();

/// What a program tells of itself when it is asked for its commands, events and schema.
///
/// The types of this crate are those of all programs together: that a type, a trait of handlers or
/// an event exists says nothing about a program; that its interface has the name does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// The names of its commands, in ascending order (`query-commands`).
    pub command_names: &'static [&'static str],
    /// The names of its events (`query-events`).
    pub event_names: &'static [&'static str],
    /// Its schema, as one line of ASCII JSON text (`query-qmp-schema`).
    pub introspection: &'static str,
}

impl Interface {
    /// That of the storage daemon (`schema/schema.json`).
    pub const STORAGE_DAEMON: Self = Self {
        command_names: COMMAND_NAMES,
        event_names: EVENT_NAMES,
        introspection: INTROSPECTION,
    };

    /// That of the machine (`schema/machine.json`): all that the storage daemon has, and more.
    pub const MACHINE: Self = Self {
        command_names: MACHINE_COMMAND_NAMES,
        event_names: MACHINE_EVENT_NAMES,
        introspection: MACHINE_INTROSPECTION,
    };
}
