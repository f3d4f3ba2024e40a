//! The undo on disk: the only way back while a destination is neither in its old state nor in the new one.
//!
//! Guarantees: it takes its name when it is whole. Once a part of it was made durable, something may have
//! been overwritten, and from then on it is never removed before it is whole: after a power cut, or when
//! the disk below it is full, `NAME.partial` stays, and no later run takes it over.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::delta::reader::DeltaReader;
use crate::engine::undo::DurableWrite;
use crate::error::{Error, Result};
use crate::partial_file::{PartialFile, partial_name, sync_directory_of};

/// An undo that is being written.
pub struct UndoFile {
    file: Option<PartialFile>,
}

impl UndoFile {
    /// Begins the undo that will be `path`.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        let partial = partial_name(path);
        if holds_a_way_back(&partial) {
            let shown = partial.display();
            return Err(Error::refused(
                shown.to_string(),
                "this is the undo of a run that was cut, perhaps the only way back",
                format!(
                    "Put the old state back with `lvmsync apply --unfinished {shown} DEST`, or, if it is \
                     not needed any more, remove it."
                ),
            ));
        }
        let file = PartialFile::create(path, overwrite)?;
        // Without its name in the directory the undo would not survive a power cut, synced or not.
        sync_directory_of(path)
            .map_err(|error| Error::io(format!("cannot make {} durable", path.display()), error))?;
        Ok(Self { file: Some(file) })
    }

    /// A file without a name, beside the undo: there is room for it where there is room for the undo.
    pub fn spool_beside(path: &Path) -> io::Result<File> {
        use rustix::fs::{Mode, OFlags};
        let directory = path.parent().filter(|parent| *parent != Path::new(""));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(rustix::fs::open(directory.unwrap_or(Path::new(".")), flags, mode)?.into())
    }

    fn open(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or(io::ErrorKind::NotFound)?.file()
    }
}

/// True for an undo with at least one sound frame.
fn holds_a_way_back(partial: &PathBuf) -> bool {
    let reader = File::open(partial)
        .ok()
        .and_then(|file| DeltaReader::new(file).ok());
    reader.is_some_and(|mut reader| matches!(reader.next_frame(), Ok(Some(_))))
}

impl Write for UndoFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DurableWrite for UndoFile {
    fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.keep_unfinished();
        }
        self.open()?.sync_data()
    }

    fn complete(&mut self) -> io::Result<()> {
        match self.file.take() {
            Some(file) => file.persist().map_err(io::Error::other),
            None => Ok(()),
        }
    }

    fn discard(&mut self) {
        if let Some(file) = self.file.take() {
            file.discard();
        }
    }
}
