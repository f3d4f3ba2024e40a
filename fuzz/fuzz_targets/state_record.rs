//! The record of a destination.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lvmsync::fuzzing::fuzz_state_record(data));
