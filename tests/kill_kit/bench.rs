//! What the killed runs work on: one volume in two states, what tells the difference, and how long and how many
//! bytes an undisturbed run takes.

use std::fs;
use std::path::PathBuf;

use lvmsync::changes::cow::Layout;
use lvmsync::changes::cow_build::store_of;

use super::noise;

/// Bytes that change at once.
pub(crate) const CHUNK: usize = 64 << 10;

/// Sources, which no run writes to.
pub(crate) struct Bench {
    directory: tempfile::TempDir,
    pub(crate) base: Vec<u8>,
    pub(crate) target: Vec<u8>,
    /// The remote shell, where one is used.
    pub(crate) rsh: Option<String>,
    /// Chunks that differ.
    changed: Vec<bool>,
}

impl Bench {
    /// A volume of so many mebibytes; nearly all of it changes, some of it to and from zeroes.
    pub(crate) fn new(mebibytes: usize, rsh: Option<String>) -> Self {
        let chunks = (mebibytes << 20) / CHUNK;
        let (mut base, mut target) = (
            noise(chunks * CHUNK, "base"),
            noise(chunks * CHUNK, "target"),
        );
        let changed: Vec<bool> = (0..chunks).map(|chunk| chunk % 16 != 5).collect();
        for (chunk, changes) in changed.iter().enumerate() {
            let range = chunk * CHUNK..(chunk + 1) * CHUNK;
            match chunk % 8 {
                _ if !changes => target[range.clone()].copy_from_slice(&base[range]),
                3 => base[range].fill(0),
                6 => target[range].fill(0),
                _ => {}
            }
        }
        let entries = (0..chunks).filter(|chunk| changed[*chunk]);
        let entries = entries.map(|chunk| (chunk as u64, &[][..]));
        let store = store_of(Layout::new(CHUNK as u64).unwrap(), entries).unwrap();
        let bench = Self {
            directory: tempfile::tempdir().unwrap(),
            base,
            target,
            rsh,
            changed,
        };
        fs::write(bench.path("new.img"), &bench.target).unwrap();
        fs::write(bench.path("store.img"), store).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Bytes before `end` that travel as data: in a full copy, or in an increment.
    pub(crate) fn data_before(&self, end: usize, full: bool) -> u64 {
        let chunks = self.target.chunks(CHUNK).zip(&self.changed).enumerate();
        let travels = chunks.filter(|(number, (bytes, changed))| {
            (number + 1) * CHUNK <= end && (full || **changed) && bytes.iter().any(|b| *b != 0)
        });
        (travels.count() * CHUNK) as u64
    }
}
