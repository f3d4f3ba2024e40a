//! One record of a delta: its header and the payloads that are not frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lvmsync::fuzzing::fuzz_record(data));
