//! A delta on its way onto a volume, with its undo.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lvmsync::fuzzing::fuzz_receive(data));
