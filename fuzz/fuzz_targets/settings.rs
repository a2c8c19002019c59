#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| genesys_attributes_fuzz::settings(data));
