#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::qcow2_image(data));
