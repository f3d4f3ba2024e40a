//! Locks between runs: exclusive for what only one may have, shared for what the last one gives back.
//!
//! Guarantees: a lock ends with the process that has it; the file stays, since removing it would let two hold
//! "the" lock at once, unless its name is never used again.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Locks are for processes that live now: where nothing outlives a boot.
const DIRECTORY: &str = "/run/lvmsync";

/// Where locks are, and what is on record of this boot alone.
pub fn directory() -> &'static Path {
    Path::new(DIRECTORY)
}

/// Where the lock called `name` is.
pub fn path_of(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("{name}.lock"))
}

/// An open lock file.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Opens, and makes, the lock called `name`: a word without slashes.
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name);
        let open = || {
            // Whoever can open a lock can take it, and keep everybody waiting.
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(DIRECTORY)?;
            File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
        };
        let file = open().map_err(|error| {
            Error::io(format!("cannot open the lock {}", path.display()), error)
        })?;
        Ok(Self { file, path })
    }

    /// Takes it alone; false while anybody else has it.
    pub fn try_alone(&self) -> Result<bool> {
        self.attempt(FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes it together with others; false while somebody has it alone. A lock that was taken alone becomes
    /// a shared one.
    pub fn try_shared(&self) -> Result<bool> {
        self.attempt(FlockOperation::NonBlockingLockShared)
    }

    /// The same lock for a child, which then holds it, too, until it ends.
    pub fn share(&self) -> Result<File> {
        self.file.try_clone().map_err(|error| {
            let action = format!("cannot hand on the lock {}", self.path.display());
            Error::io(action, error)
        })
    }

    /// Removes its file. Only for a name that nobody takes anew: two who hold "the" lock then find nothing that they
    /// could quarrel over.
    pub fn remove(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let action = format!("cannot remove the lock {}", self.path.display());
                Err(Error::io(action, error))
            }
            _ => Ok(()),
        }
    }

    fn attempt(&self, operation: FlockOperation) -> Result<bool> {
        match flock(&self.file, operation) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => {
                let action = format!("cannot lock {}", self.path.display());
                Err(Error::io(action, io::Error::from(error)))
            }
        }
    }
}
