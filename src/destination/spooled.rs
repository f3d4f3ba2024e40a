//! `--atomic`: the whole delta beside the destination first.
//!
//! Guarantees: nothing of the destination is touched before the delta is whole, checked and durable. One that comes
//! through a session, and was announced, is kept when its connection is lost: what is there is not sent again.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use super::Destination;
use crate::cancel::Cancel;
use crate::delta::header::Header;
use crate::delta::reader::DeltaReader;
use crate::delta::samples::Samples;
use crate::delta::stream::StreamId;
use crate::engine::receive::{OnDurable, Received};
use crate::engine::spool::{Begun, Keep, keep, spool};
use crate::error::{Error, Result};
use crate::monitor::{Monitor, Silent};
use crate::record::keeper::Resume;
use crate::record::store::{StateDir, spool_in};
use crate::spool_file::SpoolFile;
use crate::undo_file::spool_beside;

/// Where an announced delta is kept.
pub(super) struct Place {
    path: PathBuf,
    /// Which delta was announced.
    stream: StreamId,
    /// What a run that was cut left there.
    begun: Option<Begun<SpoolFile>>,
}

impl Destination {
    /// Where a run of `stream`, which is about to come, goes on. With `--atomic` it is kept until it is whole.
    pub fn announce(&mut self, stream: &StreamId) -> Result<Resume> {
        let resume = self.keeper.resume_offset(stream);
        if !self.options.atomic || self.options.compared {
            return Ok(resume);
        }
        let written = match resume {
            Resume::Done => {
                self.remove_stale_spool();
                return Ok(resume);
            }
            Resume::At(offset) => offset,
            Resume::Begin => 0,
        };
        let path = self.spool_path();
        if self.options.spool.is_none() {
            StateDir::choose(self.options.state_dir.as_deref()).make_spools()?;
        }
        let begun = SpoolFile::find(&path, stream)?;
        // One that itself goes on somewhere is of no use once what was before is gone.
        let begun =
            begun.filter(|begun| begun.end() > written && begun.part.header.from_offset <= written);
        let end = begun.as_ref().map(Begun::end);
        let stream = stream.clone();
        self.spool = Some(Place {
            path,
            stream,
            begun,
        });
        Ok(end.map_or(resume, Resume::At))
    }

    /// The delta from `input`, as [`Destination::receive_now`], after it was kept beside.
    pub(super) fn receive_whole(
        &mut self,
        input: impl Read,
        what: &str,
        cancel: &Cancel,
        monitor: &dyn Monitor,
        on_durable: OnDurable<'_>,
    ) -> Result<Received> {
        let Some(place) = self.spool.take() else {
            let admit = |header: &Header, samples: &Samples| {
                self.examine(header, samples, cancel, &Silent).map(drop)
            };
            let file = spool(input, what, self.spool_file()?, admit, cancel)?;
            self.note_whole(what, monitor);
            return self.receive_now(file, what, cancel, monitor, on_durable);
        };
        let mut reader = DeltaReader::new(input).map_err(|source| Error::Damaged {
            what: what.to_owned(),
            source,
        })?;
        // What comes may be another one than what was announced.
        let is_announced = StreamId::of(reader.header(), reader.samples()) == place.stream;
        let begun = place.begun.filter(|_| is_announced);
        // What is applied has the header of its beginning.
        let goes_on = |begun: &&Begun<_>| begun.end() == reader.header().from_offset;
        let header = begun.as_ref().filter(goes_on);
        let header = header.map_or(reader.header(), |begun| &begun.part.header);
        self.examine(header, reader.samples(), cancel, &Silent)?;
        let place = match begun {
            Some(begun) => Keep::Behind(Box::new(begun)),
            None => Keep::New(SpoolFile::create(&place.path)?),
        };
        let kept = keep(&mut reader, what, place, SpoolFile::empty, cancel)?;
        self.note_whole(what, monitor);
        let file = kept
            .input()
            .map_err(|error| Error::io("cannot read what was kept", error))?;
        let received = self.receive_now(file, what, cancel, monitor, on_durable)?;
        kept.discard();
        Ok(received)
    }

    fn note_whole(&self, what: &str, monitor: &dyn Monitor) {
        monitor.note(&format!(
            "{what}: whole and sound; {} is written now",
            self.name
        ));
    }

    /// An empty file without a name where deltas are kept beside.
    pub fn spool_file(&self) -> Result<File> {
        let state_dir = StateDir::choose(self.options.state_dir.as_deref());
        let directory = match &self.options.spool {
            Some(directory) => directory.clone(),
            None => state_dir.make()?.to_owned(),
        };
        spool_beside(&directory.join("spool")).map_err(|error| {
            let action = format!("cannot make a file in {}", directory.display());
            Error::io(action, error)
        })
    }

    /// A run is done. What is kept for another one begins from a state that is no more, or leads to where all is already.
    pub(super) fn remove_stale_spool(&self) {
        SpoolFile::remove_stale(&self.spool_path());
    }

    /// By the name of the destination: what was made for a copy that was cut is gone, and gets another identity.
    fn spool_path(&self) -> PathBuf {
        let path = self.made.as_deref().unwrap_or(self.volume().path());
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let directory = self
            .options
            .spool
            .clone()
            .unwrap_or_else(|| StateDir::choose(self.options.state_dir.as_deref()).spools());
        spool_in(&directory, &path.to_string_lossy())
    }
}
