//! States that are shown as devices, on record: what there is of each, and how it goes again.
//!
//! Guarantees: the record is durable before anything is made, and goes last; only what record and device, file or tags
//! together prove to be ours is removed. A part that is not there is no error: after a power cut the device is gone, and its
//! file and its snapshot are not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dm::lvm::has_group;
use crate::dm::name::LvName;
use crate::dm::{shown, temporary};
use crate::error::{Error, Result};
use crate::hold::lock::LockFile;
use crate::job::store::save;
use crate::partial_file::sync_directory_of;
use crate::record::identity;
use crate::record::store::{StateDir, make_directory};

/// A file of this size is no record.
const MAX_BYTES: u64 = 64 << 10;
const SUFFIX: &str = ".json";

/// One that is shown, or was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The device's name.
    pub name: String,
    /// In its UUID, and in the tag of its snapshot.
    pub id: String,
    /// What it is over, as the user named it; of one that is on no record here, nothing.
    pub base: String,
    /// The snapshot that was made of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The file with the exception store.
    pub store: PathBuf,
    /// What makes that file this file, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_identity: Option<String>,
    /// Since when: seconds since 1970 UTC.
    pub since: i64,
}

/// Where they are on record.
pub fn directory(state: &StateDir) -> PathBuf {
    state.path().join("views")
}

/// The lock of whoever makes or removes the one of this name.
pub fn lock(name: &str) -> Result<Option<LockFile>> {
    let lock = LockFile::open(&lock_name(name))?;
    Ok(lock.try_alone()?.then_some(lock))
}

/// What that lock is called.
pub fn lock_name(name: &str) -> String {
    format!("view-{name}")
}

fn path_of(state: &StateDir, name: &str) -> PathBuf {
    directory(state).join(format!("{name}{SUFFIX}"))
}

/// The one of this name; `None` where there is none on record.
pub fn load(state: &StateDir, name: &str) -> Result<Option<Shown>> {
    read(&path_of(state, name))
}

fn read(path: &Path) -> Result<Option<Shown>> {
    let failed = |error| {
        let action = format!("cannot read the record of a view {}", path.display());
        Error::io(action, error)
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(found) if found.len() > MAX_BYTES => {
            return Err(failed(io::Error::other("it is too long for one")));
        }
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(failed)?;
    let shown = serde_json::from_slice(&text);
    shown
        .map(Some)
        .map_err(|error| failed(io::Error::other(error)))
}

/// All that are on record, with what is wrong with those that cannot be read.
pub fn all(state: &StateDir) -> Vec<std::result::Result<Shown, String>> {
    let entries = fs::read_dir(directory(state))
        .into_iter()
        .flatten()
        .flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(SUFFIX))
        .collect();
    paths.sort();
    let one = |path: &PathBuf| read(path).map_err(|error| error.chain()).transpose();
    paths.iter().filter_map(one).collect()
}

/// The one that is there under this name, and on no record that we have: what its device and the tags of LVM tell of it.
pub fn found(name: &str) -> Result<Option<Shown>> {
    let Some(device) = shown::look(name)? else {
        return Ok(None);
    };
    let snapshot = temporary::find_anywhere(&device.id)?;
    let (store, is_there) = device.store.unwrap_or_default();
    let known_as = match is_there {
        true => identity::of_path(&store),
        false => "another file".to_owned(),
    };
    Ok(Some(Shown {
        name: name.to_owned(),
        snapshot: snapshot.map(|snapshot| snapshot.to_string()),
        store_identity: store.is_absolute().then_some(known_as),
        store,
        id: device.id,
        ..Shown::default()
    }))
}

/// What a teardown did not find.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The file, which may be on a filesystem that is not mounted.
    pub store: Option<PathBuf>,
    /// The snapshot, which is not where it was made, or whose volume group is not there.
    pub snapshot: Option<String>,
}

impl Shown {
    /// Puts it on record, durably.
    pub fn save(&self, state: &StateDir) -> Result<()> {
        state.make()?;
        make_directory(&directory(state))?;
        save(&path_of(state, &self.name), self)
    }

    /// Removes the device, its file, the snapshot, and the record, and tells what was not found where it was made.
    pub fn tear_down(&self, state: &StateDir) -> Result<Left> {
        shown::remove(&self.id)?;
        let is_ours = self.is_store_ours(state);
        if is_ours {
            for device in shown::attached(&self.store) {
                shown::detach(&device)?;
            }
            self.remove_store()?;
        }
        let snapshot = self.snapshot.as_deref().and_then(LvName::parse);
        let snapshot = snapshot
            .map(|snapshot| self.remove_snapshot(&snapshot))
            .transpose()?
            .flatten();
        let path = path_of(state, &self.name);
        gone(fs::remove_file(&path).and_then(|()| sync_directory_of(&path)))
            .map_err(|error| Error::io(format!("cannot remove {}", path.display()), error))?;
        let was_made = self.store_identity.is_some();
        Ok(Left {
            store: (was_made && !is_ours).then(|| self.store.clone()),
            snapshot,
        })
    }

    /// Its name, if it was not removed, for it is not where it was made.
    fn remove_snapshot(&self, snapshot: &LvName) -> Result<Option<String>> {
        let is_elsewhere = || temporary::find_anywhere(&self.id);
        match temporary::remove(snapshot, &self.id) {
            Ok(true) => Ok(None),
            // Removed already; what has its marks elsewhere may be that of a group that was cloned.
            Ok(false) => is_elsewhere().map(|found| found.map(|name| name.to_string())),
            Err(error) if has_group(snapshot.vg())? => Err(error),
            // The group has another name by now.
            Err(_) => match is_elsewhere()? {
                Some(name) => temporary::remove(&name, &self.id).map(|_| None),
                None => Ok(Some(snapshot.to_string())),
            },
        }
    }

    /// Before its identity was on record nothing was written to the file.
    fn is_store_ours(&self, state: &StateDir) -> bool {
        let Ok(found) = fs::symlink_metadata(&self.store) else {
            return false;
        };
        let is_it = match &self.store_identity {
            Some(known_as) => *known_as == identity::of_path(&self.store),
            None => self.store.starts_with(directory(state)) || found.len() == 0,
        };
        is_it && found.is_file()
    }

    fn remove_store(&self) -> Result<()> {
        gone(fs::remove_file(&self.store))
            .map_err(|error| Error::io(format!("cannot remove {}", self.store.display()), error))
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_kept_and_listed_and_its_file_alone_goes() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(&directory.path().join("state")));
        assert!(load(&state, "tuesday").unwrap().is_none() && all(&state).is_empty());
        let store = directory.path().join("store");
        let mut shown = Shown {
            name: "tuesday".into(),
            store: store.clone(),
            ..Shown::default()
        };
        shown.save(&state).unwrap();
        assert_eq!(load(&state, "tuesday").unwrap().as_ref(), Some(&shown));
        assert_eq!(all(&state), [Ok(shown.clone())]);
        // Somebody's file, which came there before the identity of ours was on record.
        fs::write(&store, "x").unwrap();
        assert!(!shown.is_store_ours(&state));
        shown.store_identity = Some("file:0:0.0".into());
        assert!(!shown.is_store_ours(&state));
        shown.store_identity = Some(identity::of_path(&store));
        assert!(shown.is_store_ours(&state));
        shown.remove_store().unwrap();
        assert!(!store.exists());
        fs::write(path_of(&state, "tuesday"), "{").unwrap();
        assert!(load(&state, "tuesday").is_err());
        assert!(matches!(all(&state).as_slice(), [Err(_)]));
    }
}
