//! The header of a delta.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lvmsync::fuzzing::fuzz_header(data));
