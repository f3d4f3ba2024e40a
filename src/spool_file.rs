//! Where a delta is kept beside its destination until it is whole, however many connections that takes.
//!
//! Guarantees: a place belongs to one run at a time and to one user; what a run that was cut left there is gone on with
//! only if it is the same delta, and only with what is sound of it. Where the place itself fails nothing is left.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::delta::resume::SoundPart;
use crate::delta::stream::StreamId;
use crate::engine::spool::Begun;
use crate::engine::undo::DurableWrite;
use crate::error::{Error, Result};
use crate::partial_file::{PartialFile, partial_name, sync_directory_of};

/// An open place. It stays when it is dropped, unless it was discarded or failed.
pub struct SpoolFile {
    /// `None` once it is gone.
    file: Option<PartialFile>,
}

impl SpoolFile {
    /// Begins at the place `path`; what is there is of no use.
    pub fn create(path: &Path) -> Result<Self> {
        // Before it is emptied.
        refuse_foreign(path)?;
        let mut file = PartialFile::create(path, false)?;
        file.keep_unfinished();
        refuse_foreign(path)?;
        sync_directory_of(path).map_err(|error| failed(path, error))?;
        Ok(Self { file: Some(file) })
    }

    /// What a run that was cut left of the delta `stream` at the place `path`. The reading finds damage, but not what never
    /// reached the disk, so what is in memory alone is written back before.
    pub fn find(path: &Path, stream: &StreamId) -> Result<Option<Begun<Self>>> {
        if !partial_name(path).is_file() {
            return Ok(None);
        }
        let mut file = PartialFile::reopen(path)?;
        refuse_foreign(path)?;
        let failed = |error| failed(path, error);
        file.forget_cached().map_err(failed)?;
        let Ok((part, samples)) = SoundPart::with_samples_of(file.file().map_err(failed)?) else {
            return Ok(None);
        };
        if StreamId::of(&part.header, &samples) != *stream {
            return Ok(None);
        }
        let hasher = file.cut_to(part.bytes_to_keep()).map_err(failed)?;
        let out = Self { file: Some(file) };
        Ok(Some(Begun { out, part, hasher }))
    }

    /// Removes what a run that was cut left at the place `path`, unless somebody is at it.
    pub fn remove_stale(path: &Path) {
        if partial_name(path).is_file()
            && let Ok(file) = PartialFile::reopen(path)
            && refuse_foreign(path).is_ok()
        {
            file.discard();
        }
    }

    /// Nothing is there any more.
    pub fn empty(&mut self) -> io::Result<()> {
        let mut file = self.open()?;
        file.set_len(0)?;
        file.rewind()
    }

    /// All of it, from its beginning.
    pub fn input(&self) -> io::Result<File> {
        let mut file = self.open()?.try_clone()?;
        file.rewind()?;
        Ok(file)
    }

    /// It has done its work.
    pub fn discard(mut self) {
        self.remove();
    }

    fn remove(&mut self) {
        if let Some(file) = self.file.take() {
            file.discard();
        }
    }

    fn open(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or(io::ErrorKind::NotFound)?.file()
    }

    /// What could not be written or synced may be anything, and takes room that others miss.
    fn or_remove<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if result
            .as_ref()
            .is_err_and(|error| error.kind() != io::ErrorKind::Interrupted)
        {
            self.remove();
        }
        result
    }
}

impl Write for SpoolFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.open()?.write(bytes);
        self.or_remove(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DurableWrite for SpoolFile {
    fn sync(&mut self) -> io::Result<()> {
        let synced = self.open()?.sync_data();
        self.or_remove(synced)
    }
}

/// The directory may be one where others make files, too, or links to ours.
fn refuse_foreign(path: &Path) -> Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(partial_name(path)) else {
        return Ok(());
    };
    if metadata.uid() == rustix::process::geteuid().as_raw() && metadata.nlink() == 1 {
        return Ok(());
    }
    Err(Error::refused(
        partial_name(path).display().to_string(),
        "this is where the delta is to be kept, and the file of that name is another user's, or has another name as well",
        "Remove it, or name another directory with --spool.",
    ))
}

fn failed(path: &Path, error: io::Error) -> Error {
    let shown = path.display();
    let action =
        format!("cannot keep the delta in {shown}; another directory can be named with --spool");
    Error::io(action, error)
}
