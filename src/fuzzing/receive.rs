//! Fuzzing of the whole receive path: any bytes, onto a volume, with an undo and a record.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    reason = "what does not hold is what a fuzzer looks for, and volumes here are small"
)]

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use super::delta::{frames_of, with_right_checksums};
use crate::cancel::Cancel;
use crate::delta::codec::Compression;
use crate::delta::reader::DeltaReader;
use crate::engine::receive::Receiving;
use crate::engine::target::{ReceiveOptions, Target};
use crate::engine::undo::{DurableWrite, FoundUndo, NoUndo, UndoPlace, Undoes};
use crate::error::Result;
use crate::monitor::Silent;
use crate::record::Record;
use crate::record::keeper::Keeper;
use crate::volume::memory::MemoryVolume;

const VOLUME_BYTES: usize = 48 << 10;
/// No volume in memory grows beyond this.
const MOST_BYTES: u64 = 1 << 20;

/// A delta of version 4 or a stream of version 3, applied to a volume; its first byte says what is allowed.
///
/// Holds: no panic; what is applied is what the frames say and nothing else; an error leaves no record of a state;
/// the undo, of a run that failed as well, brings every byte back.
pub fn fuzz_receive(data: &[u8]) {
    let Some((flags, data)) = data.split_first() else {
        return;
    };
    for delta in [data.to_vec(), with_right_checksums(data)] {
        receive_and_take_back(&delta, *flags);
    }
}

fn receive_and_take_back(delta: &[u8], flags: u8) {
    let base: Vec<u8> = (0..VOLUME_BYTES)
        .map(|at| (at / 512 + at) as u8 & 0x7f)
        .collect();
    let volume = MemoryVolume::new(base.clone());
    let undo = Kept::default();
    let mut keeper = Keeper::in_memory(None);
    let applied = run(delta, &volume, &undo, &mut keeper, flags);
    let allow_smaller = flags & 2 != 0;
    if applied.is_ok()
        && let Some((size, frames)) = frames_of(delta)
    {
        let mut expected = base.clone();
        // Where the header names no base size a file grows, whatever is allowed.
        if expected.len() < size && (!allow_smaller || volume.bytes().len() == size) {
            expected.resize(size, 0);
        }
        for (extent, bytes) in frames {
            let start = (extent.offset() as usize).min(expected.len());
            let end = (extent.end() as usize).min(expected.len());
            match bytes {
                Some(bytes) => expected[start..end].copy_from_slice(&bytes[..end - start]),
                None => expected[start..end].fill(0),
            }
        }
        assert!(volume.bytes() == expected, "what the frames say");
    }
    if applied.is_err() {
        let holds = keeper.record().and_then(|record| record.holds.as_ref());
        assert!(holds.is_none(), "a run that failed leads to no state");
    }
    let undo = undo.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    if undo.is_empty() {
        if applied.is_err() {
            assert!(
                volume.bytes() == base,
                "without an undo nothing was written"
            );
        }
        return;
    }
    // Samples say nothing where they were overruled.
    run(&undo, &volume, &NoUndo, &mut keeper, flags | 1).expect("an undo applies");
    assert!(volume.bytes() == base, "taken back");
}

fn run(
    delta: &[u8],
    volume: &MemoryVolume,
    undo: &dyn UndoPlace,
    keeper: &mut Keeper,
    flags: u8,
) -> Result<()> {
    let cancel = Cancel::new();
    let size = DeltaReader::new(delta).map_or(0, |reader| reader.header().volume_size);
    let receiving = Receiving {
        what: "delta",
        target: &Target {
            volume,
            name: "volume",
            is_file: size <= MOST_BYTES,
            room_bytes: None,
        },
        undo,
        options: &ReceiveOptions {
            force: flags & 1 != 0,
            allow_smaller: flags & 2 != 0,
            unfinished: false,
            compared: false,
            undo_compression: Compression::Lz4,
            cancel: &cancel,
            monitor: &Silent,
        },
        keeper,
    };
    receiving.run(delta, &mut |_, _| Ok(())).map(|_| ())
}

/// The file of a record.
///
/// Holds: no panic; what is read is written and read the same.
pub fn fuzz_state_record(data: &[u8]) {
    // A fuzzer cannot guess the checksum.
    let mut right = format!("lvmsync state 1 {:08x}\n", crc32c::crc32c(data)).into_bytes();
    right.extend_from_slice(data);
    for bytes in [data, &right] {
        if let Ok(record) = Record::decode(bytes) {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }
}

/// An undo in memory; what was written before the last sync is what is left.
#[derive(Default)]
struct Kept(Mutex<Vec<u8>>);

struct Writing<'a>(&'a Kept);

impl Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DurableWrite for Writing<'_> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self) {
        let mut kept = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clear();
    }
}

impl UndoPlace for Kept {
    fn asked(&self) -> Option<&str> {
        Some("undo")
    }

    fn create(&self, _: &str, _: Option<&Undoes>) -> Result<Box<dyn DurableWrite + '_>> {
        Ok(Box::new(Writing(self)))
    }

    fn find(&self, _: &str, _: &Undoes) -> Result<FoundUndo<'_>> {
        Ok(FoundUndo::Gone)
    }

    fn spool(&self, _: &str) -> io::Result<std::fs::File> {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        Ok(rustix::fs::open(std::env::temp_dir(), flags, mode)?.into())
    }
}
