#![no_main]
#![allow(dead_code)] // the rest of the program

#[path = "../../src/cli/mod.rs"]
mod cli;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cli::fuzzing::batch_lines(data));
