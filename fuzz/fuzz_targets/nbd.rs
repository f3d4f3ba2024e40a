//! What a client of a network block device sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lvmsync::fuzzing::fuzz_nbd(data));
