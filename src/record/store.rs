//! Where records lie: one small file for each destination.
//!
//! Guarantees: a record is written beside, synced and renamed, so that a reader and a power cut see the old
//! one or the new one; a file that is there and cannot be read or understood is an error that names it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{MAX_BYTES, Record};
use crate::error::{Error, Result};
use crate::partial_file::{PartialFile, sync_directory_of};

/// Names the directory in the environment.
pub const ENVIRONMENT: &str = "LVMSYNC_STATE_DIR";
const SYSTEM_DIRECTORY: &str = "/var/lib/lvmsync";
const SUFFIX: &str = ".state";

/// The directory that lvmsync keeps its state in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The one that was asked for, or that of the environment, or `/var/lib/lvmsync`; for a user who is not
    /// root the one below the home directory that is meant for such things.
    pub fn choose(asked: Option<&Path>) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = || {
            let state = set("XDG_STATE_HOME").map(PathBuf::from);
            let state = state.or_else(|| Some(PathBuf::from(set("HOME")?).join(".local/state")));
            state.map(|state| state.join("lvmsync"))
        };
        let default = || {
            if rustix::process::geteuid().is_root() {
                return PathBuf::from(SYSTEM_DIRECTORY);
            }
            home().unwrap_or_else(|| PathBuf::from(SYSTEM_DIRECTORY))
        };
        let asked = asked.map(Path::to_owned);
        Self(
            asked
                .or_else(|| set(ENVIRONMENT).map(PathBuf::from))
                .unwrap_or_else(default),
        )
    }

    /// As a path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory where there is none.
    pub fn make(&self) -> Result<&Path> {
        make_directory(&self.0)?;
        Ok(&self.0)
    }

    /// The file of the destination with this identity.
    pub fn file_of(&self, identity: &str) -> RecordFile {
        RecordFile {
            path: self
                .destinations()
                .join(format!("{}{SUFFIX}", file_name(identity))),
            identity: identity.to_owned(),
        }
    }

    /// The files of all destinations that have one.
    pub fn all(&self) -> Result<Vec<PathBuf>> {
        let directory = self.destinations();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                let action = format!("cannot read {}", directory.display());
                return Err(Error::io(action, error));
            }
        };
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.to_string_lossy().ends_with(SUFFIX))
            .collect();
        files.sort();
        Ok(files)
    }

    /// Makes that directory where there is none.
    pub fn make_spools(&self) -> Result<()> {
        self.make()?;
        make_directory(&self.spools())
    }

    /// Where the deltas of runs with `--atomic` are kept.
    pub fn spools(&self) -> PathBuf {
        self.0.join("spool")
    }

    fn destinations(&self) -> PathBuf {
        self.0.join("destinations")
    }
}

/// Readable, and different for different identities.
fn file_name(identity: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let readable: String = identity.chars().take(80).map(plain).collect();
    let digest = blake3::hash(identity.as_bytes()).to_hex();
    format!("{readable}-{}", &digest[..12])
}

/// Where in `directory` the delta for the destination of this name is kept.
pub fn spool_in(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{}.spool", file_name(name)))
}

/// Reads the record in `path`; `None` where there is no such file.
pub fn read(path: &Path) -> Result<Option<Record>> {
    let shown = path.display();
    let failed = |error| {
        let action = format!(
            "cannot read the record {shown}; another state directory can be named with --state-dir"
        );
        Error::io(action, error)
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Record::decode(&bytes).map(Some).map_err(|error| {
        Error::refused(
            shown.to_string(),
            format!("this record of a destination cannot be used: {error}"),
            "Remove it with lvmsync state forget DEST: then only the sampled blocks say what the destination \
             holds.",
        )
    })
}

/// The file of one destination, which may not be there.
#[derive(Clone, Debug)]
pub struct RecordFile {
    path: PathBuf,
    identity: String,
}

impl RecordFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The one of another destination, in the same directory.
    pub fn of_other(&self, identity: &str) -> Self {
        let name = format!("{}{SUFFIX}", file_name(identity));
        Self {
            path: self.path.with_file_name(name),
            identity: identity.to_owned(),
        }
    }

    /// What it says.
    pub fn load(&self) -> Result<Option<Record>> {
        read(&self.path)
    }

    /// Replaces it, durably.
    pub fn save(&self, record: &Record) -> Result<()> {
        if let Some(directory) = self.path.parent() {
            make_directory(directory)?;
        }
        let file = PartialFile::create(&self.path, true)?;
        file.file()
            .and_then(|mut file| file.write_all(&record.encode()))
            .map_err(|error| self.failed("write", error))?;
        file.persist()
    }

    /// Removes it, durably.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Ok(()) => sync_directory_of(&self.path).map_err(|error| self.failed("remove", error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failed("remove", error)),
        }
    }

    fn failed(&self, verb: &str, error: io::Error) -> Error {
        Error::io(
            format!("cannot {verb} the record {}", self.path.display()),
            error,
        )
    }
}

/// Makes a directory that only its owner can look into, durably.
pub(crate) fn make_directory(directory: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if directory.is_dir() {
        return Ok(());
    }
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.and_then(|()| directory.parent().map_or(Ok(()), sync_directory_of))
        .and_then(|()| sync_directory_of(directory))
        .map_err(|error| {
            let action = format!(
                "cannot make the state directory {}; another can be named with --state-dir",
                directory.display()
            );
            Error::io(action, error)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_kept_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(&directory.path().join("a/b")));
        let file = state.file_of("lvm:abc/def");
        assert_eq!(file.load().unwrap(), None);
        file.remove().unwrap();
        let record = Record {
            identity: "lvm:abc/def".into(),
            ..Record::default()
        };
        file.save(&record).unwrap();
        assert_eq!(file.load().unwrap(), Some(record.clone()));
        file.save(&Record { since: 5, ..record }).unwrap();
        assert_eq!(state.all().unwrap(), [file.path()]);
        assert_eq!(
            state.file_of("x").of_other("lvm:abc/def").path(),
            file.path()
        );
        file.remove().unwrap();
        assert!(state.all().unwrap().is_empty());
    }

    #[test]
    fn what_is_damaged_is_refused_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateDir::choose(Some(directory.path())).file_of("x");
        file.save(&Record::default()).unwrap();
        fs::write(file.path(), "lvmsync state 1 00000000\n{}\n").unwrap();
        let error = file.load().unwrap_err();
        assert_eq!(error.exit_code(), crate::error::ExitCode::Refused);
        assert!(error.chain().contains("state forget"), "{}", error.chain());
    }

    #[test]
    fn names_differ_where_identities_do() {
        assert_ne!(file_name("a:b"), file_name("a-b"));
        assert!(file_name(&"ä/".repeat(200)).len() < 120);
    }
}
