//! Runs one target over files: `cargo run -p fuzz-bodies --example replay TARGET FILE...`.
//!
//! For what `cargo xtask soak` left in `fuzz/artifacts`; needs neither nightly nor cargo-fuzz.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let body = match arguments.next().as_deref() {
        Some("qapi_text") => fuzz_bodies::qapi_text,
        Some("qmp_bytes") => fuzz_bodies::qmp_bytes,
        Some("qcow2_image") => fuzz_bodies::qcow2_image,
        Some("nbd_client_bytes") => fuzz_bodies::nbd_client_bytes,
        Some("kernel_image") => fuzz_bodies::kernel_image,
        Some("option_text") => fuzz_bodies::option_text,
        Some("pc_registers") => fuzz_bodies::pc_registers,
        Some("virtio_driver") => fuzz_bodies::virtio_driver,
        _ => {
            eprintln!("usage: replay TARGET FILE...");
            return ExitCode::FAILURE;
        }
    };
    for path in arguments {
        match std::fs::read(&path) {
            Ok(bytes) => body(&bytes),
            Err(error) => {
                eprintln!("{path}: {error}");
                return ExitCode::FAILURE;
            }
        }
        println!("{path}: holds");
    }
    ExitCode::SUCCESS
}
