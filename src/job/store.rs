//! Small files that tell how far something was when its run ended, however it ended.
//!
//! Guarantees: a file is written beside, synced and renamed; one that is there and cannot be understood is an error that
//! names it; only one run at a time works on it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::partial_file::{PartialFile, sync_directory_of};
use crate::record::store::make_directory;

/// No file of this kind comes near this.
const MAX_BYTES: u64 = 1 << 20;

/// One file, held by this run alone.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    /// Locked as long as it lives.
    lock: File,
}

impl Held {
    /// Takes `NAME.json` in `directory`, which is made where there is none. `what` is what it is about.
    pub fn take(directory: &Path, name: &str, what: &str) -> Result<Self> {
        make_directory(directory)?;
        let path = directory.join(format!("{name}.json"));
        let lock = directory.join(format!("{name}.lock"));
        let action = || format!("cannot lock {}", lock.display());
        let failed = |error| Error::io(action(), error);
        loop {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&lock)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::held(
                        what,
                        "another run of lvmsync is at it",
                        "Wait until that one is done.",
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // Between open and lock the run that had it may have removed it: then it locks nobody out.
            if is_at(&file, &lock).map_err(failed)? {
                return Ok(Self { path, lock: file });
            }
        }
    }

    /// What it says; `None` where there is nothing.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        load(&self.path)
    }

    /// Replaces it, durably.
    pub fn save<T: Serialize>(&self, content: &T) -> Result<()> {
        save(&self.path, content)
    }

    /// Removes it, durably.
    pub fn remove(&self) -> Result<()> {
        let removed = match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_directory_of(&self.path),
        };
        let action = || format!("cannot remove {}", self.path.display());
        removed.map_err(|error| Error::io(action(), error))
    }
}

/// Where nothing is on record there is nothing to lock: a run that was refused leaves nothing either.
impl Drop for Held {
    fn drop(&mut self) {
        let lock = self.path.with_extension("lock");
        // Only who holds the lock removes it. Whoever waits for it finds another file under its name, or none, and takes
        // that one.
        if !self.path.exists() && is_at(&self.lock, &lock).unwrap_or(false) {
            let _ = fs::remove_file(lock);
        }
    }
}

/// Whether `file` is the one of this name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    let there = fs::metadata(path);
    Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
}

/// Writes a file of this kind, durably, for whoever holds it.
pub fn save<T: Serialize>(path: &Path, content: &T) -> Result<()> {
    use io::Write;
    let failed = |error| Error::io(format!("cannot write {}", path.display()), error);
    let mut json = serde_json::to_vec_pretty(content).map_err(|error| failed(error.into()))?;
    json.push(b'\n');
    let file = PartialFile::create(path, true)?;
    file.file()
        .and_then(|mut file| file.write_all(&json))
        .map_err(failed)?;
    file.persist()
}

/// Reads a file of this kind, whoever holds it; `None` where there is none.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    use io::Read;
    let shown = path.display();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("cannot read {shown}"), error)),
    };
    let mut text = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| Error::io(format!("cannot read {shown}"), error))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::refused(
            shown.to_string(),
            format!("this file cannot be understood: {error}"),
            "It tells how far a run was. If you move it away, the next one begins anew.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn what_is_saved_comes_back_and_only_one_run_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("migrations");
        let held = Held::take(&below, "x", "vg/x").unwrap();
        assert_eq!(held.load::<Vec<u32>>().unwrap(), None);
        held.save(&vec![1, 2]).unwrap();
        assert_eq!(held.load::<Vec<u32>>().unwrap(), Some(vec![1, 2]));
        let other = Held::take(&below, "x", "vg/x").unwrap_err();
        assert_eq!(other.exit_code(), ExitCode::Refused);
        drop(held);
        drop(Held::take(&below, "refused", "vg/y").unwrap());
        let held = Held::take(&below, "x", "vg/x").unwrap();
        fs::write(below.join("x.json"), "{").unwrap();
        let error = held.load::<Vec<u32>>().unwrap_err();
        assert!(error.chain().contains("x.json"), "{}", error.chain());
        held.remove().unwrap();
        drop(held);
        assert_eq!(fs::read_dir(&below).unwrap().count(), 0);
    }
}
