//! Rust types and handler traits from a checked QAPI schema.
