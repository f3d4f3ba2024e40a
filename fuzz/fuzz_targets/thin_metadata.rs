//! The metadata of a thin pool.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lvmsync::fuzzing::fuzz_thin(data));
