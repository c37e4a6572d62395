//! Tests of whole images: against a model, a naive reader, QEMU's tools, crashes and mutations.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod concurrent;
mod conformance;
mod crash;
mod crash_at_birth;
mod differential;
mod hostile;
mod model;
mod reference;
mod support;
