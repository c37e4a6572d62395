//! What each fuzz target does with its input.
//!
//! A body is a plain function over bytes that panics when something is wrong, so the same code runs
//! under libFuzzer (`fuzz/fuzz_targets`, started by `cargo xtask soak`) and in `cargo test`
//! (`tests/corpus.rs`: every file of `fuzz/corpus`, and mutations of them).
//!
//! Each body has an oracle besides "no panic":
//!
//! | body | what has to hold |
//! |---|---|
//! | [`qapi_text`] | loading twice gives the same introspection, documents and code; the introspection names no type that it lacks |
//! | [`qmp_bytes`] | how the stream is cut changes nothing; parse, encode, parse is identity |
//! | [`qcow2_image`] | a naive reader of the format agrees on every byte that both accept; writing to a sound image leaves it sound, with the content that was written |
//! | [`nbd_client_bytes`] | how the stream is cut changes nothing; output is bounded; a request that may run is within the export; headers survive encoding |
//! | [`kernel_image`] | what is loaded lies in free RAM and not on itself, and is the same each time |
//! | [`option_text`] | `key=value` text written out again parses the same; typed options survive JSON; sizes agree with floating point |
//! | [`pc_registers`] | every access has its answer; a restored state is the saved one |
//! | [`virtio_driver`] | nothing is written but what the driver named; a restored state is the saved one; after a reset the device works |
//!
//! A new target is a file here, a line in the table, a binary in `fuzz/Cargo.toml`, a folder of
//! seeds in `fuzz/corpus`, and a line in `tests/corpus.rs` and `xtask/src/soak.rs`.

#![expect(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a fuzz target tells of a fault"
)]

mod kernel_image;
mod nbd_client_bytes;
mod option_text;
mod pc_registers;
mod pieces;
mod qapi_text;
mod qcow2_image;
mod qcow2_reference;
mod qmp_bytes;
mod virtio_driver;

pub use kernel_image::kernel_image;
pub use nbd_client_bytes::nbd_client_bytes;
pub use option_text::option_text;
pub use pc_registers::pc_registers;
pub use qapi_text::qapi_text;
pub use qcow2_image::{Compared, compare_and_write, pack_image, qcow2_image, unpack_image};
pub use qmp_bytes::qmp_bytes;
pub use virtio_driver::virtio_driver;
