//! Ratite's QMP schema and the Rust types generated from it.
