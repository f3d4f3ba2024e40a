//! Whether deltas are sound, found out while something else is done with them.
//!
//! Guarantees: what is done counts only if every byte of every delta was read and every checksum compared. The first failure
//! stops everything, and is the one that is told. Memory: a frame for each processor.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::combine::{Input, damaged};
use crate::cancel::Cancel;
use crate::delta::record::RECORD_HEADER_BYTES;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::volume::ReadAt;

/// Does `meanwhile`, and reads every delta of `chain` whole, the newest first, on the other processors.
pub(super) fn while_read_whole<V: ReadAt, T>(
    chain: &[&Input<V>],
    (cancel, monitor): (&Cancel, &dyn Monitor),
    meanwhile: impl FnOnce(&GoOn<'_>) -> Result<T>,
) -> Result<T> {
    let failure = OnceLock::new();
    let go_on = GoOn {
        cancel,
        failure: &failure,
    };
    let begun = AtomicUsize::new(0);
    let next = || {
        chain
            .iter()
            .rev()
            .nth(begun.fetch_add(1, Ordering::Relaxed))
    };
    let read = || {
        while let Some(input) = next() {
            if let Err(error) = read_whole(input, &go_on, monitor) {
                // Who is stopped by another one's failure comes too late to say so.
                let _ = failure.set(error);
            }
        }
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let readers = processors.saturating_sub(1).clamp(1, chain.len().max(1));
    let done = thread::scope(|scope| {
        for number in 1..=readers {
            // Where no thread can be started, all is read afterwards.
            let _ = thread::Builder::new()
                .name(format!("reader {number}"))
                .spawn_scoped(scope, read);
        }
        match meanwhile(&go_on) {
            Ok(done) => {
                read();
                Some(done)
            }
            Err(error) => {
                let _ = failure.set(error);
                None
            }
        }
    });
    match (failure.into_inner(), done) {
        (None, Some(done)) => Ok(done),
        (failure, _) => Err(failure.unwrap_or(Error::Interrupted)),
    }
}

/// Whether there is still a reason to go on.
pub(super) struct GoOn<'a> {
    cancel: &'a Cancel,
    failure: &'a OnceLock<Error>,
}

impl GoOn<'_> {
    /// An error as soon as the run was told to stop, or anything else has failed.
    pub(super) fn check(&self) -> Result<()> {
        match self.failure.get() {
            Some(_) => Err(Error::Interrupted),
            None => self.cancel.check(),
        }
    }
}

fn read_whole<V: ReadAt>(input: &Input<V>, go_on: &GoOn<'_>, monitor: &dyn Monitor) -> Result<()> {
    let damaged = damaged(input);
    let mut reader = input.delta.read_all().map_err(&damaged)?;
    let mut told = 0;
    while let Some(frame) = reader.next_frame().map_err(&damaged)? {
        go_on.check()?;
        let length = RECORD_HEADER_BYTES as u64 + u64::from(frame.record.stored_length);
        told += length;
        monitor.advance(length);
    }
    monitor.advance(input.delta.bytes().saturating_sub(told));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::codec::Codec;
    use crate::delta::header::tests::header;
    use crate::delta::samples::Samples;
    use crate::delta::stored::StoredDelta;
    use crate::delta::writer::DeltaWriter;
    use crate::extent::Extent;
    use crate::monitor::Silent;
    use crate::volume::memory::MemoryVolume;
    use std::time::{Duration, Instant};

    /// Of three frames, sound but for a bit of byte `flipped`.
    fn input(name: &str, flipped: Option<usize>) -> Input<MemoryVolume> {
        let mut writer =
            DeltaWriter::new(Vec::new(), &header(1 << 30), &Samples::default()).unwrap();
        for frame in 0..3 {
            let extent = Extent::new(frame * 8192, 4096).unwrap();
            writer.data(extent, Codec::None, &[7; 4096]).unwrap();
        }
        let mut bytes = writer.finish().unwrap().1;
        if let Some(place) = flipped {
            bytes[place] ^= 1;
        }
        Input {
            name: name.to_owned(),
            delta: StoredDelta::open(MemoryVolume::new(bytes)).unwrap(),
        }
    }

    fn run<T>(
        inputs: &[Input<MemoryVolume>],
        meanwhile: impl FnOnce(&GoOn<'_>) -> Result<T>,
    ) -> Result<T> {
        let chain: Vec<_> = inputs.iter().collect();
        while_read_whole(&chain, (&Cancel::new(), &Silent), meanwhile)
    }

    #[test]
    fn what_is_done_counts_only_if_all_are_sound() {
        let sound = [input("a", None), input("b", None)];
        assert_eq!(run(&sound, |_| Ok(5)).unwrap(), 5);
        let middle = sound[0].delta.counts().trailer_at as usize / 2;
        for bad in 0..2 {
            let inputs = [0, 1].map(|n| input(["a", "b"][n], (n == bad).then_some(middle)));
            let error = run(&inputs, |_| Ok(5)).unwrap_err();
            let name = ["a", "b"][bad];
            assert!(
                matches!(&error, Error::Damaged { what, .. } if what == name),
                "{error:?}"
            );
        }
    }

    #[test]
    fn the_first_failure_stops_the_rest_and_is_told() {
        let middle = input("a", None).delta.counts().trailer_at as usize / 2;
        let error = run(&[input("a", Some(middle))], |go_on| -> Result<()> {
            let deadline = Instant::now() + Duration::from_secs(60);
            while Instant::now() < deadline {
                go_on.check()?;
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        assert!(matches!(error, Err(Error::Damaged { .. })), "{error:?}");
        let full = || Error::io("cannot write", std::io::ErrorKind::StorageFull.into());
        let error = run(&[input("a", None)], |_| -> Result<()> { Err(full()) });
        assert!(matches!(error, Err(Error::Io { .. })), "{error:?}");
    }

    #[test]
    fn a_run_that_was_told_to_stop_stops() {
        let (input, cancel) = (input("a", None), Cancel::new());
        cancel.cancel();
        let error = while_read_whole(&[&input], (&cancel, &Silent), |go_on| go_on.check());
        assert!(matches!(error, Err(Error::Interrupted)), "{error:?}");
    }
}
