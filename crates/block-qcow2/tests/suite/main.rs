//! Tests of whole images: against a model, a naive reader, QEMU's tools, crashes and mutations.

mod crash;
mod differential;
mod hostile;
mod model;
mod reference;
mod support;
