//! How the program is linked.

fn main() {
    // Relative relocations take a tenth of the room this way; glibc knows them since 2.36.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo:rerun-if-changed=build.rs");
}
