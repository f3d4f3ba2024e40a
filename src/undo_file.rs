//! The undo on disk: the only way back while a destination is neither in its old state nor in the new one.
//!
//! Guarantees: it takes its name when it is whole. Once a part of it was made durable, something may have
//! been overwritten, and from then on it is never removed before it is whole: after a power cut, or when
//! the disk below it is full, `NAME.partial` stays. Only a run that finishes the one that was cut goes on with
//! it, and only where the record says that nothing is under way is it replaced.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::commands::Caller;
use crate::delta::FormatError;
use crate::delta::header::Header;
use crate::delta::reader::DeltaReader;
use crate::delta::resume::SoundPart;
use crate::delta::stream::StreamId;
use crate::engine::undo::{DurableWrite, FoundUndo, PartOfUndo, UndoPlace, Undoes};
use crate::error::{Error, Result};
use crate::partial_file::{PartialFile, partial_name, refuse_other_than_file, sync_directory_of};
use crate::volume::VolumeIdentity;

/// Undos as files on this machine.
pub struct UndoFiles {
    asked: Option<String>,
    overwrite: bool,
    /// What may not become an undo: the destination, and what is read.
    volumes: Vec<VolumeIdentity>,
    /// Who is told which commands to run.
    caller: Caller,
}

impl UndoFiles {
    /// For a run that reads and writes `volumes`; `asked` is the undo that was asked for.
    pub fn new(
        asked: Option<&Path>,
        overwrite: bool,
        volumes: Vec<VolumeIdentity>,
        caller: Caller,
    ) -> Result<Self> {
        let absolute = |path: &Path| {
            let path = std::path::absolute(path);
            let path =
                path.map_err(|error| Error::io("cannot tell the current directory", error))?;
            // A record holds it as text; a path that is only like it would be another file.
            path.to_str().map(str::to_owned).ok_or_else(|| {
                Error::Usage(format!(
                    "{}: the path of an undo, its directory included, has to be UTF-8",
                    path.display()
                ))
            })
        };
        if asked.is_some_and(|path| path == Path::new("-")) {
            return Err(Error::Usage(
                "--undo -: an undo is a file, which is there when it is needed: give it a name (./- is a file)"
                    .to_owned(),
            ));
        }
        let asked = asked.map(absolute).transpose()?;
        if let Some(asked) = &asked {
            refuse_other_than_file(Path::new(asked))?;
        }
        Ok(Self {
            asked,
            overwrite,
            volumes,
            caller,
        })
    }
}

impl UndoPlace for UndoFiles {
    fn asked(&self) -> Option<&str> {
        self.asked.as_deref()
    }

    fn create(&self, name: &str, of_no_use: Option<&Undoes>) -> Result<Box<dyn DurableWrite + '_>> {
        let path = Path::new(name);
        if VolumeIdentity::of_path(path).is_ok_and(|undo| self.volumes.contains(&undo)) {
            return Err(Error::Usage(format!(
                "{name}: the undo cannot be the destination itself, nor what is read"
            )));
        }
        refuse_needed(path, of_no_use, &self.caller)?;
        Ok(Box::new(UndoFile::create(path, self.overwrite)?))
    }

    fn find(&self, name: &str, undoes: &Undoes) -> Result<FoundUndo<'_>> {
        let (path, partial) = (Path::new(name), partial_name(Path::new(name)));
        if !partial.exists() {
            let whole = File::open(path)
                .ok()
                .and_then(|file| SoundPart::with_samples_of(file).ok());
            let whole =
                whole.filter(|(part, _)| part.whole_bytes.is_some() && undoes.is(&part.header));
            return Ok(whole.map_or(FoundUndo::Gone, |(part, samples)| {
                FoundUndo::Whole(StreamId::of(&part.header, &samples))
            }));
        }
        let failed = |error| Error::io(format!("cannot go on with {}", partial.display()), error);
        let mut file = PartialFile::reopen(path)?;
        // What could not be written when it was synced is still in memory, and sound there alone.
        file.forget_cached().map_err(failed)?;
        let part = match file.file().map(SoundPart::of).map_err(failed)? {
            Ok(part) => part,
            // It cannot be read now: that does not make it nothing.
            Err(FormatError::Io(error)) => return Err(failed(error)),
            Err(_) => return Ok(FoundUndo::Empty(None)),
        };
        if part.frames() == 0 {
            let created = undoes.is(&part.header).then_some(part.header.created);
            return Ok(FoundUndo::Empty(created));
        }
        file.keep_unfinished();
        if !undoes.is(&part.header) {
            return Err(way_back_in_the_way(&partial, &self.caller));
        }
        let hasher = file.cut_to(part.delta_bytes).map_err(failed)?;
        Ok(FoundUndo::Part(Box::new(PartOfUndo {
            out: Box::new(UndoFile { file: Some(file) }),
            part,
            hasher,
        })))
    }

    fn spool(&self, name: &str) -> io::Result<File> {
        spool_beside(Path::new(name))
    }
}

/// An undo that is being written.
struct UndoFile {
    file: Option<PartialFile>,
}

impl UndoFile {
    /// Begins the undo that will be `path`.
    fn create(path: &Path, overwrite: bool) -> Result<Self> {
        let file = PartialFile::create(path, overwrite)?;
        // Without its name in the directory the undo would not survive a power cut, synced or not.
        sync_directory_of(path)
            .map_err(|error| Error::io(format!("cannot make {} durable", path.display()), error))?;
        Ok(Self { file: Some(file) })
    }

    fn open(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or(io::ErrorKind::NotFound)?.file()
    }
}

/// What a run that was cut has left under the name of the undo `path` is replaced only if it is `of_no_use`.
fn refuse_needed(path: &Path, of_no_use: Option<&Undoes>, caller: &Caller) -> Result<()> {
    let partial = partial_name(path);
    match (left_in(&partial), of_no_use) {
        (Left::Nothing, _) => Ok(()),
        (Left::Undo(header), Some(undoes)) if undoes.is(&header) => Ok(()),
        (Left::Undo(header), Some(undoes)) if header.undo_for == undoes.destination => {
            Err(Error::refused(
                partial.display().to_string(),
                "this is what was left of the undo of another delta that was cut here, and is whole by now",
                "It leads nowhere any more: remove it, or give another --undo.",
            ))
        }
        _ => Err(way_back_in_the_way(&partial, caller)),
    }
}

fn way_back_in_the_way(partial: &Path, caller: &Caller) -> Error {
    let shown = partial.display().to_string();
    let put_back = caller.command("apply --unfinished", &[&shown, "DEST"]);
    Error::refused(
        shown,
        "this is the undo of a run that was cut, perhaps the only way back",
        format!("Put the old state back: {put_back}\nOr, if it is not needed any more, remove it."),
    )
}

/// A file without a name, beside `path`: there is room for it where there is room for the undo.
pub fn spool_beside(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(rustix::fs::open(directory.unwrap_or(Path::new(".")), flags, mode)?.into())
}

/// What stands under the name of an undo that has not got its name.
enum Left {
    /// Nothing that anybody needs.
    Nothing,
    /// An undo with at least one sound frame.
    Undo(Box<Header>),
    /// What cannot be read.
    Unreadable,
}

fn left_in(partial: &Path) -> Left {
    let Ok(file) = File::open(partial) else {
        return Left::Nothing;
    };
    let first = DeltaReader::new(file).and_then(|mut reader| {
        let frame = reader.next_frame()?;
        Ok(frame.map(|_| reader.header().clone()))
    });
    match first {
        Ok(Some(header)) => Left::Undo(Box::new(header)),
        Err(FormatError::Io(_)) => Left::Unreadable,
        Ok(None) | Err(_) => Left::Nothing,
    }
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
