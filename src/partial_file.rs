//! Files that appear under their name only when they are whole and durable.
//!
//! Guarantees: a reader of the name never sees half a file, power cut or not; what is not finished is
//! removed on every way out, and what SIGKILL leaves under `NAME.partial` is taken over by the next run.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};

/// Files to remove should the run have to be ended by force.
fn registered() -> &'static Mutex<BTreeSet<PathBuf>> {
    static FILES: OnceLock<Mutex<BTreeSet<PathBuf>>> = OnceLock::new();
    FILES.get_or_init(Mutex::default)
}

/// Removes what is not finished: for the way out that runs no destructors.
pub(crate) fn remove_unfinished() {
    let files = registered().lock().unwrap_or_else(PoisonError::into_inner);
    for file in files.iter() {
        let _ = std::fs::remove_file(file);
    }
}

/// A file that is not finished: it is written beside its name and takes the name when it is durable.
///
/// Dropped before [`PartialFile::persist`], it is removed.
#[derive(Debug)]
pub struct PartialFile {
    file: Option<File>,
    partial: PathBuf,
    name: PathBuf,
    stays: bool,
}

impl PartialFile {
    /// Begins to write `name` as `name.partial`. An older `name.partial`, which only a killed run leaves, is
    /// taken over; one that another run is writing now is an error. Unless `overwrite`, an existing `name`
    /// is an error, too.
    pub fn create(name: &Path, overwrite: bool) -> Result<Self> {
        refuse_existing(name, overwrite)?;
        let partial = partial_name(name);
        let action = || format!("cannot create {}", partial.display());
        let file = open_alone(&partial).map_err(|error| Error::io(action(), error))?;
        let Some(file) = file else {
            return Err(being_written(&partial));
        };
        file.set_len(0)
            .map_err(|error| Error::io(action(), error))?;
        registered()
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(partial.clone());
        Ok(Self {
            file: Some(file),
            partial,
            name: name.to_owned(),
            stays: false,
        })
    }

    /// Goes on with a `name.partial` that a run that was cut has left.
    pub fn reopen(name: &Path) -> Result<Self> {
        let partial = partial_name(name);
        let file = open_alone(&partial)
            .map_err(|error| Error::io(format!("cannot open {}", partial.display()), error))?;
        let Some(file) = file else {
            return Err(being_written(&partial));
        };
        Ok(Self {
            file: Some(file),
            partial,
            name: name.to_owned(),
            stays: true,
        })
    }

    /// Cuts it to its first bytes and stands at their end; gives the hasher that has seen them.
    pub fn cut_to(&mut self, bytes: u64) -> io::Result<blake3::Hasher> {
        let mut file = self.file()?;
        file.set_len(bytes)?;
        file.rewind()?;
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut io::Read::take(file, bytes), &mut hasher)?;
        file.seek(SeekFrom::Start(bytes))?;
        Ok(hasher)
    }

    /// Writes back what is in memory alone and gives up the copies there: what is read next comes from the disk.
    pub fn forget_cached(&self) -> io::Result<()> {
        use rustix::fs::{Advice, fadvise};
        let file = self.file()?;
        file.sync_data()?;
        // Advice: where it is not taken there is nothing else to do.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        Ok(())
    }

    /// The file under its partial name.
    pub fn file(&self) -> io::Result<&File> {
        self.file
            .as_ref()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// From now on it stays under its partial name if it is not finished, whatever ends the run.
    pub fn keep_unfinished(&mut self) {
        self.stays = true;
        self.unregister();
    }

    /// Removes it.
    pub fn discard(mut self) {
        self.stays = false;
    }

    fn unregister(&self) {
        registered()
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.partial);
    }

    /// Makes the content durable, gives the file its name, and makes that durable, too.
    pub fn persist(mut self) -> Result<()> {
        let action = || format!("cannot finish {}", self.name.display());
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let result = file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.partial, &self.name))
            .and_then(|()| sync_directory_of(&self.name));
        if result.is_err() {
            self.file = Some(file);
        }
        result.map_err(|error| Error::io(action(), error))
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.file.take().is_some() && !self.stays {
            let _ = std::fs::remove_file(&self.partial);
        }
        self.unregister();
    }
}

fn being_written(partial: &Path) -> Error {
    Error::held(
        partial.display().to_string(),
        "another run is writing this file",
        "",
    )
}

/// A rename would replace a device node or a pipe by a file.
pub fn refuse_other_than_file(name: &Path) -> Result<()> {
    let shown = name.display();
    if std::fs::metadata(name).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Error::Usage(format!(
            "{shown} is not a regular file: to write into a pipe or a device use --stdout > {shown}, to \
             write to a volume give it as DEST"
        )));
    }
    Ok(())
}

fn refuse_existing(name: &Path, overwrite: bool) -> Result<()> {
    let shown = name.display().to_string();
    refuse_other_than_file(name)?;
    if !overwrite && name.symlink_metadata().is_ok() {
        let way_out = "Choose another name, or replace it with --overwrite.";
        return Err(Error::refused(shown, "this file exists", way_out));
    }
    Ok(())
}

/// Opens or makes a file for us alone; `None` if another run has it. What it holds are the contents of
/// disks, so nobody else may read it.
fn open_alone(partial: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_follow)
        .open(partial)?;
    // A filesystem without locks has no other run that could hold one.
    if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        return Ok(None);
    }
    // Between open and lock the other run may have finished: then this file has its name by now.
    let ours = file.metadata()?;
    let is_still_there = std::fs::symlink_metadata(partial)
        .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
    Ok((is_still_there && ours.is_file()).then_some(file))
}

/// What is added to a name while the file is not finished.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// The name of `name` while it is not finished.
pub fn partial_name(name: &Path) -> PathBuf {
    let mut partial = name.as_os_str().to_owned();
    partial.push(PARTIAL_SUFFIX);
    PathBuf::from(partial)
}

/// Makes the names in the directory of `path` durable.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn a_partial_file_takes_its_name_only_when_finished() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("delta");
        let partial = directory.path().join("delta.partial");

        let file = PartialFile::create(&name, false).unwrap();
        assert!(partial.exists());
        assert!(
            PartialFile::create(&name, false).is_err(),
            "locked by the first"
        );
        drop(file);
        assert!(!partial.exists() && !name.exists());

        std::fs::write(&partial, "left by a killed run").unwrap();
        let file = PartialFile::create(&name, false).unwrap();
        file.file().unwrap().write_all(b"whole").unwrap();
        file.persist().unwrap();
        assert_eq!(std::fs::read(&name).unwrap(), b"whole");
        assert!(!partial.exists());

        let error = PartialFile::create(&name, false).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Refused);
        assert!(PartialFile::create(&name, true).is_ok());
        assert_eq!(std::fs::read(&name).unwrap(), b"whole");
    }
}
