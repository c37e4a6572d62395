//! The QMP protocol as a pure state machine: bytes in, messages out.
