#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::nbd_client_bytes(data));
