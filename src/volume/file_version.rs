//! The content of a regular file at one moment, by what the filesystem tells of it.
//!
//! Guarantees: two equal versions are the same file with nothing written in between, as far as its filesystem keeps
//! times; other volumes have no version. The time of the last write can be put back (`touch -r`, `cp -p`, `rsync -t`),
//! that of the last change of the inode cannot, and every write changes it. So do a new name and new permissions:
//! then the same content counts as another version, which costs a run that begins anew and is never wrong.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;

use super::open::Volume;
use crate::error::{Error, Result};

/// Inode, size, and the times of the last write and of the last change of the inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileVersion {
    inode: u64,
    size_bytes: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl FileVersion {
    /// The version of an open volume; `None` if it is no regular file.
    pub fn of(volume: &Volume) -> Result<Option<Self>> {
        let metadata = volume.metadata().map_err(|error| {
            Error::io(format!("cannot look at {}", volume.path().display()), error)
        })?;
        Ok(metadata.is_file().then(|| Self {
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The id of this content as a state.
    pub fn id(&self) -> String {
        format!(
            "file:{}:{}:{}.{:09}:{}.{:09}",
            self.inode,
            self.size_bytes,
            self.written.0,
            self.written.1,
            self.changed.0,
            self.changed.1
        )
    }
}

/// What no other run has.
pub fn run_id() -> String {
    let mut id = String::new();
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid");
    match random.as_deref().map(str::trim) {
        Ok(uuid) if !uuid.is_empty() => id.push_str(uuid),
        _ => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let nanoseconds = now.map_or(0, |since| since.as_nanos());
            // Writing to a string does not fail.
            let _ = write!(id, "{nanoseconds}-{}", std::process::id());
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn a_write_whose_time_is_put_back_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("volume");
        fs::write(&path, "one").unwrap();
        let volume = Volume::open(&path).unwrap();
        let before = FileVersion::of(&volume).unwrap().unwrap();
        assert_eq!(FileVersion::of(&volume).unwrap().as_ref(), Some(&before));
        std::thread::sleep(std::time::Duration::from_millis(20));
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "two").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(modified).unwrap();
        let after = FileVersion::of(&volume).unwrap().unwrap();
        assert_eq!(after.written, before.written);
        assert_ne!(after.id(), before.id());
    }
}
