//! The undo: what a destination held, saved before it is overwritten.
//!
//! Guarantees: when [`UndoRecorder::save`] returns, the old content of these extents is durable in the undo
//! file; an undo that ends early, because the apply did, is a whole delta for what was written so far.

use std::fs::File;
use std::io::{self, Write};

use super::zeroes;
use crate::delta::codec::{Compression, Compressor};
use crate::delta::header::{Header, Source, State};
use crate::delta::resume::SoundPart;
use crate::delta::samples::Samples;
use crate::delta::stream::StreamId;
use crate::delta::trailer::Counts;
use crate::delta::writer::DeltaWriter;
use crate::error::{Error, Result};
use crate::extent::{Extent, Kind};
use crate::record::keeper::now;
use crate::volume::ReadAt;

/// Where an undo is written: anything that can be made durable.
pub trait DurableWrite: Write + Send {
    /// Returns when everything written so far is on stable storage.
    fn sync(&mut self) -> io::Result<()>;

    /// Called when the undo is not needed: nothing was overwritten.
    fn discard(&mut self) {}

    /// Called once, when the undo is whole and synced: a file takes its name now.
    fn complete(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where undos are kept.
pub trait UndoPlace {
    /// The name of the undo that was asked for.
    fn asked(&self) -> Option<&str>;

    /// Begins the undo that will have this name. What a run that was cut has left under it is replaced only if it
    /// is `of_no_use`.
    fn create(&self, name: &str, of_no_use: Option<&Undoes>) -> Result<Box<dyn DurableWrite + '_>>;

    /// Finds what a run that was cut left of its undo.
    fn find(&self, name: &str, undoes: &Undoes) -> Result<FoundUndo<'_>>;

    /// An empty temporary file where there is room for the undo.
    fn spool(&self, name: &str) -> io::Result<File>;
}

/// What an undo takes back, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undoes {
    /// The delta that was applied.
    pub stream: StreamId,
    /// Identity of the destination; `None` where no record is kept.
    pub destination: Option<String>,
}

impl Undoes {
    /// True if an undo with this header takes back just that.
    pub fn is(&self, header: &Header) -> bool {
        header.undoes(&self.stream) && header.undo_for == self.destination
    }
}

/// What a destination was before a delta was first begun on it.
#[derive(Clone, Debug, Default)]
pub struct Old {
    /// Its size.
    pub size_bytes: u64,
    /// The state that it held, as far as that is known.
    pub holds: Option<State>,
    /// It was not in the delta's base state: what the delta makes of it is not the target.
    pub is_other: bool,
}

/// What a run that was cut left of its undo.
pub enum FoundUndo<'a> {
    /// Nothing, although it was there when the run began.
    Gone,
    /// Its beginning, which saves nothing: nothing was overwritten. When it was made, if its header can be read: one that
    /// takes its place is the same then, and the one that is on record.
    Empty(Option<i64>),
    /// Its sound part.
    Part(Box<PartOfUndo<'a>>),
    /// All of it, under its name: everything was saved and everything was written. Which delta it is.
    Whole(StreamId),
}

/// The sound part of an undo that was cut.
pub struct PartOfUndo<'a> {
    /// What to go on writing to: it stands behind the part.
    pub out: Box<dyn DurableWrite + 'a>,
    /// What is there.
    pub part: SoundPart,
    /// Has seen all bytes of it.
    pub hasher: blake3::Hasher,
}

/// Keeps no undo.
pub struct NoUndo;

impl UndoPlace for NoUndo {
    fn asked(&self) -> Option<&str> {
        None
    }

    fn create(&self, name: &str, _: Option<&Undoes>) -> Result<Box<dyn DurableWrite + '_>> {
        let error = io::ErrorKind::Unsupported.into();
        Err(Error::io(
            format!("cannot keep the undo {name} here"),
            error,
        ))
    }

    fn find(&self, _: &str, _: &Undoes) -> Result<FoundUndo<'_>> {
        Ok(FoundUndo::Gone)
    }

    fn spool(&self, _: &str) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl DurableWrite for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl DurableWrite for Vec<u8> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: DurableWrite + ?Sized> DurableWrite for Box<W> {
    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }

    fn discard(&mut self) {
        (**self).discard();
    }

    fn complete(&mut self) -> io::Result<()> {
        (**self).complete()
    }
}

impl<W: DurableWrite + ?Sized> DurableWrite for &mut W {
    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }

    fn discard(&mut self) {
        (**self).discard();
    }

    fn complete(&mut self) -> io::Result<()> {
        (**self).complete()
    }
}

/// The header of the undo of the delta with `header`, which `undoes` names, for a destination that is what `old` says and
/// has `new_size_bytes` while the delta is applied.
pub fn undo_header(header: &Header, undoes: &Undoes, old: Old, new_size_bytes: u64) -> Header {
    // A file that the delta makes longer gets its old size back; of a larger device only the part that
    // the delta knows is concerned.
    let touched = header.volume_size.max(header.base_size.unwrap_or(0));
    Header {
        volume_size: old.size_bytes.min(touched),
        base_size: Some(header.volume_size.min(new_size_bytes)),
        base: header.target.clone().filter(|_| !old.is_other),
        target: old.holds,
        source: Source::Undo,
        created: now(),
        list: None,
        run: None,
        undo_of: Some(undoes.stream.as_str().to_owned()),
        undo_for: undoes.destination.clone(),
        from_offset: 0,
        required_features: Vec::new(),
        features: Vec::new(),
        ..header.clone()
    }
}

/// Saves old content as a delta.
pub struct UndoRecorder<W: DurableWrite> {
    writer: DeltaWriter<W>,
    name: String,
    compressor: Compressor,
    /// Content beyond the old end cannot be saved: there was none.
    old_size_bytes: u64,
    old: Vec<u8>,
    packed: Vec<u8>,
    /// Everything in the list before this volume offset was saved by an earlier run.
    saved_to: u64,
    /// It is the undo of a run that goes on: what that one has written before needs it.
    stays: bool,
    /// A save failed: what stands at the end of the file is not known.
    broken: bool,
}

impl<W: DurableWrite> UndoRecorder<W> {
    /// Begins an undo with [`undo_header`] and the delta's own samples. `name` is for messages. When this returns the
    /// header is durable: the record that names the undo may come, and after a power cut the undo can be read.
    pub fn new(
        out: W,
        name: &str,
        header: &Header,
        samples: &Samples,
        compression: Compression,
    ) -> Result<Self> {
        let failed = |error| Error::io(format!("cannot write the undo file {name}"), error);
        let mut writer = DeltaWriter::new(out, header, samples).map_err(failed)?;
        if samples.is_empty() {
            // A reader looks for samples: without them an undo that saves nothing yet could not be read.
            writer.no_samples().map_err(failed)?;
        }
        let synced = writer.flush().and_then(|()| writer.get_mut().sync());
        if let Err(error) = synced {
            writer.get_mut().discard();
            return Err(failed(error));
        }
        Ok(Self {
            writer,
            name: name.to_owned(),
            compressor: Compressor::new(compression).map_err(failed)?,
            old_size_bytes: header.volume_size,
            old: Vec::new(),
            packed: Vec::new(),
            saved_to: 0,
            stays: false,
            broken: false,
        })
    }

    /// From now on it stays, even if this run overwrites nothing.
    #[must_use]
    pub fn staying(mut self) -> Self {
        self.stays = true;
        self
    }

    /// Saves what `target`, called `name` in messages, holds in `extents` (ascending, each at most 1 MiB of data or any length of
    /// what will be zeroed), durably.
    pub fn save(&mut self, target: &dyn ReadAt, name: &str, extents: &[Extent]) -> Result<()> {
        let saved = self.save_all(target, name, extents);
        self.broken |= saved.is_err();
        saved
    }

    fn save_all(&mut self, target: &dyn ReadAt, name: &str, extents: &[Extent]) -> Result<()> {
        for extent in extents {
            let end = extent.end().min(self.old_size_bytes);
            let mut position = extent.offset().max(self.saved_to);
            while position < end {
                let boundary = (position / crate::units::MIB + 1) * crate::units::MIB;
                let Some(piece) = Extent::from_range(position, end.min(boundary)) else {
                    break;
                };
                self.save_piece(target, name, piece)?;
                position = piece.end();
            }
        }
        self.make_durable()
    }

    /// Returns when all that was saved so far is durable.
    pub fn make_durable(&mut self) -> Result<()> {
        self.writer
            .flush()
            .and_then(|()| self.writer.get_mut().sync())
            .map_err(|e| self.failed(e))
    }

    /// Volume offset of the end of what was saved last.
    pub fn saved_end(&self) -> u64 {
        self.writer.frames_end()
    }

    fn save_piece(&mut self, target: &dyn ReadAt, name: &str, piece: Extent) -> Result<()> {
        self.old
            .resize(usize::try_from(piece.length()).unwrap_or(0), 0);
        target
            .read_exact_at(&mut self.old, piece.offset())
            .map_err(|error| {
                Error::io(
                    format!("cannot read the old content of {name} at {piece} for the undo"),
                    error,
                )
            })?;
        for (range, kind) in zeroes::split(&self.old) {
            let at = piece.offset() + range.start as u64;
            let Some(extent) = Extent::new(at, range.len() as u64) else {
                continue;
            };
            let data = &self.old[range];
            let written = match kind {
                Kind::Zero => self.writer.zero(extent),
                Kind::Data => match self.compressor.compress(data, &mut self.packed) {
                    Some(codec) => self.writer.data(extent, codec, &self.packed),
                    None => self
                        .writer
                        .data(extent, crate::delta::codec::Codec::None, data),
                },
            };
            written
                .map_err(|e| Error::io(format!("cannot write the undo file {}", self.name), e))?;
        }
        Ok(())
    }

    /// An earlier run has written what it takes back.
    pub fn stays(&self) -> bool {
        self.stays
    }

    /// Gives the undo up: nothing was overwritten.
    pub fn discard(mut self) {
        self.writer.get_mut().discard();
    }

    /// Closes the undo of an apply that is done, durably: it takes its name.
    pub fn finish(self) -> Result<Counts> {
        let name = self.name.clone();
        let failed = |error| Error::io(format!("cannot write the undo file {name}"), error);
        let (counts, mut out) = self.close()?;
        out.complete().map_err(failed)?;
        Ok(counts)
    }

    /// Leaves the undo of an apply that failed, durably and without its end: the destination is not what a
    /// finished undo would say it is, and only its record knows what this one is good for.
    pub fn leave(mut self) -> Result<()> {
        if self.broken {
            return Err(self.failed(io::Error::other("an earlier write failed")));
        }
        self.make_durable()
    }

    fn close(self) -> Result<(Counts, W)> {
        let name = self.name;
        let failed = |error| Error::io(format!("cannot write the undo file {name}"), error);
        if self.broken {
            // A torn record may stand at its end: nothing that follows could be read.
            return Err(failed(io::Error::other("an earlier write failed")));
        }
        let (counts, mut out) = self.writer.finish().map_err(failed)?;
        out.sync().map_err(failed)?;
        Ok((counts, out))
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(format!("cannot write the undo file {}", self.name), error)
    }
}

impl<'a> UndoRecorder<Box<dyn DurableWrite + 'a>> {
    /// Goes on with the undo of a run that was cut. What that run saved may be overwritten by now, so nothing of
    /// it is saved again.
    pub fn resume(found: PartOfUndo<'a>, name: &str, compression: Compression) -> Result<Self> {
        let failed = |error| Error::io(format!("cannot write the undo file {name}"), error);
        let PartOfUndo { out, part, hasher } = found;
        Ok(Self {
            name: name.to_owned(),
            compressor: Compressor::new(compression).map_err(failed)?,
            old_size_bytes: part.header.volume_size,
            old: Vec::new(),
            packed: Vec::new(),
            saved_to: part.frames_end,
            stays: true,
            broken: false,
            writer: DeltaWriter::resume(out, part, hasher),
        })
    }
}
