//! The content of a regular file at one moment, by what the filesystem tells of it.
//!
//! Guarantees: two equal versions are the same file with nothing written in between, as far as its filesystem
//! keeps the time of the last write; other volumes have no version.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;

use super::open::Volume;
use crate::error::{Error, Result};

/// Inode, size and time of the last write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileVersion {
    inode: u64,
    size_bytes: u64,
    written: (i64, i64),
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
        }))
    }

    /// The id of this content as a state.
    pub fn id(&self) -> String {
        format!(
            "file:{}:{}:{}.{:09}",
            self.inode, self.size_bytes, self.written.0, self.written.1
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
