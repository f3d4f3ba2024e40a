//! The witness of a tracked volume, from one run to the next: kept in the state directory, one for each record.
//!
//! Guarantees: a contradiction is on record before it is told, so that no later run takes an era from before it as a base; a
//! record that is older than it was, and a witness that cannot be read, prove nothing. What was found on the same volume by
//! several runs at a time is joined.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::era::overlapping;
use super::{SourceRequest, lost};
use crate::change_list::ChangeList;
use crate::changes::era::{EraError, EraMetadata};
use crate::error::{Error, Result};
use crate::hold::lock::LockFile;
use crate::hold::record::name_of;
use crate::job::store::save;
use crate::record::keeper::now;
use crate::record::store::{StateDir, make_directory};
use crate::track::witness::{Block, Witness, look, places};
use crate::volume::ReadAt;

/// A file of this size is no witness.
const MAX_BYTES: u64 = 256 << 10;
const PAUSE: Duration = Duration::from_millis(20);

/// What is kept, and what was found now.
pub(super) struct Watch {
    /// The volume, for messages.
    name: String,
    record: String,
    path: PathBuf,
    before: Before,
    now: Vec<Block>,
    next: Vec<Block>,
}

enum Before {
    Nothing,
    Unreadable,
    Kept(Witness),
}

impl Watch {
    /// What was kept of the volume `name` with this record.
    pub(super) fn open(request: &SourceRequest<'_>, name: &str, record: &str) -> Result<Self> {
        let path = path_of(&request.state, record);
        Ok(Self {
            name: name.to_owned(),
            record: record.to_owned(),
            before: read(&path)?,
            path,
            now: Vec::new(),
            next: Vec::new(),
        })
    }

    /// There is something to compare with.
    pub(super) fn is_there(&self) -> bool {
        matches!(self.before, Before::Kept(_))
    }

    /// Refuses a record that is older than it was. `current` is its era now.
    pub(super) fn refuse_older(&self, current: u32) -> Result<()> {
        let kept = match &self.before {
            Before::Kept(kept) if kept.era > current => kept,
            _ => return Ok(()),
        };
        // Its eras will come to these numbers again.
        self.keep(Witness {
            lost_until: Some(kept.era),
            ..Witness::default()
        })?;
        let reason = format!(
            "its record is at era {current} and was at era {} before: it was put back, so it lacks what was written since, and \
             its eras are no names of states any more",
            kept.era
        );
        // A comparison would be refused as well until these were run.
        Err(Error::ToRecover {
            error: Box::new(lost(&self.name, &reason)),
            command: format!(
                "lvmsync track disable {0}; lvmsync track enable {0}",
                self.name
            ),
        })
    }

    /// Refuses an era of which was found before that not all that was written since is on record.
    pub(super) fn refuse_lost(&self, from: u32) -> Result<()> {
        let reason = match &self.before {
            Before::Unreadable => format!(
                "what was seen of it before cannot be read any more ({}), so that nothing shows whether something wrote past \
                 its era device",
                self.path.display()
            ),
            Before::Kept(kept) if kept.is_lost(from) => format!(
                "it was found before that something wrote past its era device, so era {from} is no base any more"
            ),
            _ => return Ok(()),
        };
        Err(lost(&self.name, &reason))
    }

    /// Looks at the data, before the list is read: whatever was written to it by then is in the list.
    pub(super) fn look(&mut self, data: &dyn ReadAt, era: Option<u32>) -> Result<()> {
        let failed = |error| {
            Error::io(
                format!("cannot read sampled blocks of {}", self.name),
                error,
            )
        };
        if let Before::Kept(kept) = &self.before {
            self.now = look(data, &kept.places(data.size_bytes())).map_err(failed)?;
        }
        if let Some(era) = era {
            let seed = format!("{}:{era}", self.record);
            self.next = look(data, &places(seed.as_bytes(), data.size_bytes())).map_err(failed)?;
        }
        Ok(())
    }

    /// The first block that contradicts the record. `list` begins in era `since`.
    pub(super) fn compare(
        &self,
        record: &EraMetadata<'_>,
        size_bytes: u64,
        (list, since): (Option<&ChangeList>, u32),
    ) -> std::result::Result<Option<u64>, EraError> {
        let Before::Kept(kept) = &self.before else {
            return Ok(None);
        };
        let from = overlapping(kept.era);
        match list.filter(|_| since == from) {
            Some(list) => Ok(kept.contradiction(&self.now, list)),
            None => {
                let list = record.changes(from, size_bytes, size_bytes)?;
                Ok(kept.contradiction(&self.now, &list))
            }
        }
    }

    /// That something wrote past the era device: no state that is named by `until` or an earlier era is a base any more.
    pub(super) fn contradicted(&self, offset: u64, until: u32) -> Result<Error> {
        self.lose(until)?;
        Ok(lost(
            &self.name,
            &format!("{}, so no era until now is a base any more", past(offset)),
        ))
    }

    /// No state that is named by `until` or an earlier era is a base any more.
    pub(super) fn lose(&self, until: u32) -> Result<()> {
        self.keep(Witness {
            lost_until: Some(until),
            ..Witness::default()
        })
    }

    /// Keeps what was seen at the beginning of `era`, for the next run.
    pub(super) fn seen(&mut self, era: u32) -> Result<()> {
        let blocks = std::mem::take(&mut self.next);
        self.keep(Witness {
            era,
            at: now(),
            blocks,
            lost_until: None,
        })
    }

    /// The same where everything is copied: a contradiction is of no consequence for that copy, and told. Others are lost.
    pub(super) fn seen_all(
        &mut self,
        request: &SourceRequest<'_>,
        era: u32,
        contradiction: Option<u64>,
    ) -> Result<()> {
        let reason = match (&self.before, contradiction) {
            (Before::Unreadable, _) => Some("what was seen of it before cannot be read".to_owned()),
            (_, Some(offset)) => Some(past(offset)),
            _ => None,
        };
        if let Some(reason) = reason {
            self.contradicted(contradiction.unwrap_or(0), era.saturating_sub(1))?;
            request.monitor.warn(&format!(
                "{}: {reason}. Only what is sent now is a base again; other copies: lvmsync sync",
                self.name
            ));
        }
        self.seen(era)
    }

    fn keep(&self, witness: Witness) -> Result<()> {
        let lock = LockFile::open(&name_of("witness", &self.record))?;
        while !lock.try_alone()? {
            thread::sleep(PAUSE);
        }
        let witness = match read(&self.path)? {
            Before::Kept(kept) => witness.joined(kept),
            Before::Nothing | Before::Unreadable => witness,
        };
        if let Some(directory) = self.path.parent() {
            make_directory(directory)?;
        }
        save(&self.path, &witness)
    }
}

/// The last era of this record that lvmsync began, and when, in seconds since 1970: what a copy holds is named by it.
pub fn last_checkpoint(state: &StateDir, record: &str) -> Result<Option<(u32, i64)>> {
    Ok(match read(&path_of(state, record))? {
        Before::Kept(kept) if kept.at > 0 => Some((kept.era, kept.at)),
        _ => None,
    })
}

fn path_of(state: &StateDir, record: &str) -> PathBuf {
    let file = format!("{}.json", name_of("witness", record));
    state.path().join("eras").join(file)
}

fn past(offset: u64) -> String {
    format!(
        "the block at {offset} is another one than it was, and its record says that nobody wrote there: something wrote past \
         its era device (mounted without it, from a rescue system, by a program that opens the volume itself)"
    )
}

fn read(path: &PathBuf) -> Result<Before> {
    let failed = |error| Error::io(format!("cannot read {}", path.display()), error);
    let length = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Before::Nothing),
        result => result.map_err(failed)?.len(),
    };
    if length > MAX_BYTES {
        return Ok(Before::Unreadable);
    }
    let text = fs::read(path).map_err(failed)?;
    Ok(serde_json::from_slice(&text).map_or(Before::Unreadable, Before::Kept))
}
