//! What is held, on disk: how the next run knows that what it finds is ours.
//!
//! A pool's metadata snapshot and a snapshot that was made to be read outlive a power cut, so their records are in the
//! state directory. A volume that is active does
//! not, and belongs to all runs of this machine, whatever directories they were told: its record is beside its lock.
//!
//! Guarantees: a record is written before what it describes is taken, and removed after it was given back; one
//! that cannot be read proves nothing.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lock;
use crate::error::{Error, ExitCode, Result};
use crate::partial_file::{PartialFile, sync_directory_of};
use crate::record::store::{StateDir, make_directory};

/// A file of this size is no record.
const MAX_BYTES: u64 = 64 << 10;

/// A record takes milliseconds, and a slow disk seconds.
const ATTEMPTS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(20);

/// What is held, by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The pool's device-mapper UUID, or the volume's LVM UUID, or the id in the tag of a snapshot.
    pub of: String,
    /// `vg/pool`.
    pub name: String,
    /// The boot in which it was taken.
    pub boot: String,
    /// The process that took it.
    pub process: u32,
    /// Of a reservation: the block where the kernel put the snapshot's superblock. None until it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<u64>,
    /// BLAKE3 of that block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Of a volume: its device was made read-only. Not until it is active.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The number that the kernel gave to that device alone, where it does so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<String>,
}

/// The file of one record.
#[derive(Clone, Debug)]
pub struct HeldFile {
    path: PathBuf,
}

impl HeldFile {
    /// The record of the metadata snapshot of the pool with this UUID.
    pub fn of_pool(state: &StateDir, uuid: &str) -> Self {
        Self::within(&in_state(state), &name_of("pool", uuid))
    }

    /// The record of the metadata snapshot of the era device with this UUID.
    pub fn of_era_device(state: &StateDir, uuid: &str) -> Self {
        Self::within(&in_state(state), &name_of("era", uuid))
    }

    /// The record of the volume with this UUID, which is active to be read.
    pub fn of_volume(uuid: &str) -> Self {
        Self::within(lock::directory(), &name_of("volume", uuid))
    }

    /// The record of the snapshot that carries this id.
    pub fn of_snapshot(state: &StateDir, id: &str) -> Self {
        Self::within(&in_state(state), &name_of("snapshot", id))
    }

    fn within(directory: &Path, name: &str) -> Self {
        let path = directory.join(format!("{name}.json"));
        Self { path }
    }

    /// What it says; `None` where there is none, or none that can be understood.
    pub fn load(&self) -> Option<Held> {
        let metadata = fs::metadata(&self.path).ok()?;
        let text = (metadata.len() <= MAX_BYTES).then(|| fs::read(&self.path));
        serde_json::from_slice(&text?.ok()?).ok()
    }

    /// Writes it, durably.
    pub fn save(&self, held: &Held) -> Result<()> {
        let failed = |error| {
            let action = format!("cannot write the record {}", self.path.display());
            Error::io(action, error)
        };
        let text = serde_json::to_vec(held).map_err(|error| failed(io::Error::other(error)))?;
        if let Some(directory) = self.path.parent() {
            make_directory(directory)?;
        }
        let file = self.alone()?;
        file.file()
            .and_then(|mut file| file.write_all(&text))
            .map_err(failed)?;
        file.persist()
    }

    /// Several runs that read one volume write the same record, at the same time perhaps: each has its turn.
    fn alone(&self) -> Result<PartialFile> {
        let mut attempts = 0;
        loop {
            match PartialFile::create(&self.path, true) {
                Err(error) if error.exit_code() == ExitCode::Refused && attempts < ATTEMPTS => {
                    attempts += 1;
                    thread::sleep(PAUSE);
                }
                result => return result,
            }
        }
    }

    /// Removes it, durably.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result
                .and_then(|()| sync_directory_of(&self.path))
                .map_err(|error| {
                    let action = format!("cannot remove the record {}", self.path.display());
                    Error::io(action, error)
                }),
        }
    }
}

/// All pools whose metadata snapshot is on record as held, each with the name of its lock.
pub fn pools(state: &StateDir) -> Vec<(String, Held)> {
    of_kind(state, "pool-")
}

/// The same of era devices.
pub fn era_devices(state: &StateDir) -> Vec<(String, Held)> {
    of_kind(state, "era-")
}

/// All snapshots that were made to be read and are on record, each with the name of its lock.
pub fn snapshots(state: &StateDir) -> Vec<(String, Held)> {
    of_kind(state, "snapshot-")
}

fn of_kind(state: &StateDir, begin: &str) -> Vec<(String, Held)> {
    let mut held = all_in(&in_state(state));
    held.retain(|(name, _)| name.starts_with(begin));
    held
}

/// All volumes that are on record as active to be read, each with the name of its lock.
pub fn volumes() -> Vec<(String, Held)> {
    all_in(lock::directory())
}

fn all_in(directory: &Path) -> Vec<(String, Held)> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut held: Vec<(String, Held)> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .filter_map(|path| {
            let name = path.file_stem()?.to_str()?.to_owned();
            Some((name, HeldFile { path }.load()?))
        })
        .collect();
    held.sort_by(|a, b| a.0.cmp(&b.0));
    held
}

fn in_state(state: &StateDir) -> PathBuf {
    state.path().join("held")
}

/// A word for file names. UUIDs of LVM are plain; other device-mapper UUIDs may hold anything.
pub fn name_of(kind: &str, uuid: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if !uuid.is_empty() && uuid.len() < 100 && uuid.bytes().all(is_plain) {
        return format!("{kind}-{uuid}");
    }
    format!("{kind}-{}", &blake3::hash(uuid.as_bytes()).to_hex()[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_kept_and_removed_and_damage_proves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(directory.path()));
        let file = HeldFile::of_pool(&state, "LVM-abc-tpool");
        assert_eq!(file.load(), None);
        file.remove().unwrap();
        let held = Held {
            of: "LVM-abc-tpool".into(),
            root: Some(7),
            ..Held::default()
        };
        file.save(&held).unwrap();
        assert_eq!(file.load(), Some(held.clone()));
        let made = HeldFile::of_snapshot(&state, "0a");
        made.save(&held).unwrap();
        assert_eq!(
            snapshots(&state),
            [("snapshot-0a".to_owned(), held.clone())]
        );
        assert_eq!(pools(&state), [("pool-LVM-abc-tpool".to_owned(), held)]);
        fs::write(&file.path, "{\"of\":").unwrap();
        assert_eq!(file.load(), None);
        file.remove().unwrap();
        assert!(pools(&state).is_empty());
    }

    #[test]
    fn runs_that_write_one_record_at_the_same_time_take_turns() {
        let directory = tempfile::tempdir().unwrap();
        let file = HeldFile::within(directory.path(), &name_of("volume", "abc"));
        file.save(&Held::default()).unwrap();
        thread::scope(|scope| {
            for process in 0..4 {
                let file = &file;
                let held = Held {
                    process,
                    ..Held::default()
                };
                scope.spawn(move || (0..20).for_each(|_| file.save(&held).unwrap()));
            }
        });
        assert!(file.load().is_some());
    }

    #[test]
    fn names_are_words() {
        assert_eq!(name_of("pool", "LVM-a-tpool"), "pool-LVM-a-tpool");
        for odd in ["", "../../etc/passwd", "a b", &"x".repeat(200)] {
            let name = name_of("pool", odd);
            assert!(name.len() < 60 && !name.contains(['/', '.', ' ']), "{name}");
        }
    }
}
