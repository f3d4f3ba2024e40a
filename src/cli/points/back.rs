//! Going back: the files on the way to a point are applied to the destination, as one.
//!
//! Guarantees: the destination has to be on record as holding the state from which the way begins; what is overwritten is
//! kept as an undo, which is one more way; a run that was cut goes on when it is asked for again.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::Place;
use super::keep::write_combined;
use crate::cancel::{Cancel, CancelableReader};
use crate::cli::apply::WriteArgs;
use crate::delta::codec::Compression;
use crate::delta::reader::DeltaReader;
use crate::destination::{Destination, DestinationOptions};
use crate::error::{Error, Result};
use crate::history::paths::Paths;
use crate::job::points::{Back, Prepared};
use crate::monitor::Monitor;
use crate::partial_file::partial_name;
use crate::volume::VolumeIdentity;

/// What several files are on the way to a point, while it is applied.
const COMBINED: &str = "rollback.delta";

/// Where to, and what for.
pub(super) struct Wished<'a> {
    pub(super) to: &'a str,
    pub(super) undo: &'a str,
    pub(super) dry_run: bool,
}

pub(super) fn back(
    place: &Place<'_>,
    wish: &Wished<'_>,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Back> {
    let destination = destination(place)?;
    let record = place.record()?;
    let held = Place::held(record.as_ref(), place.destination).ok_or_else(|| {
        Error::refused(
            destination,
            "it is not on record which state it holds, so nobody knows what leads back from it",
            "If you know it: lvmsync state adopt DEST STATE, at the machine of the target",
        )
    })?;
    let (found, _) = place.files()?;
    let paths = Paths::of(found.into_iter().map(|found| found.edge).collect(), &held);
    let way = paths.way_to(wish.to).ok_or_else(|| {
        let reason = format!("{} cannot be reached from the state that it holds", wish.to);
        Error::refused(
            destination,
            reason,
            "lvmsync history JOB shows what can be.",
        )
    })?;
    let files: Vec<String> = way.iter().map(|edge| edge.file.clone()).collect();
    let held = way.last().map(|edge| edge.to.clone());
    let combined = place.directory.join(COMBINED);
    let delta = match &files[..] {
        [only] => PathBuf::from(place.path_of(only)),
        several => {
            write_combined(place, several, &combined, cancel)?;
            combined.clone()
        }
    };
    let write = WriteArgs {
        undo: (!wish.dry_run).then(|| place.directory.join(wish.undo)),
        // It leads from the same state to the same state, if there is one of an earlier time.
        overwrite: true,
        require_record: true,
        state: place.state.clone(),
        ..WriteArgs::default()
    };
    let done = apply(&delta, destination, &write, wish.dry_run, cancel, monitor);
    // Where it was cut the same one is made again: of the same files comes the same.
    if files.len() > 1 {
        let _ = std::fs::remove_file(&combined);
    }
    Ok(Back {
        held,
        files,
        volume_bytes: done?,
    })
}

/// Bytes of the volume that were written, or would be.
fn apply(
    delta: &Path,
    destination: &str,
    write: &WriteArgs,
    dry_run: bool,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<u64> {
    let name = delta.display().to_string();
    let input = open(delta, cancel)?;
    let sources = [VolumeIdentity::of_path(delta)
        .map_err(|error| Error::io(format!("cannot look at {name}"), error))?];
    let options = DestinationOptions {
        from: name.clone(),
        ..write.options(Compression::None)
    };
    let mut destination = Destination::open(destination, &sources, &options)?;
    if dry_run {
        destination.rehearse(input, &name, cancel, monitor)?;
        let header = DeltaReader::new(open(delta, cancel)?)
            .map_err(|source| Error::Damaged { what: name, source })?
            .header()
            .planned;
        return Ok(header.data_bytes.saturating_add(header.zero_bytes));
    }
    let received = destination.receive(input, &name, cancel, monitor, &mut |_, _| Ok(()))?;
    Ok(received.applied.data_bytes + received.applied.zero_bytes)
}

fn open(delta: &Path, cancel: &Cancel) -> Result<CancelableReader<File>> {
    let file = File::open(delta)
        .map_err(|error| Error::io(format!("cannot open {}", delta.display()), error))?;
    Ok(CancelableReader::new(file, cancel.clone()))
}

fn destination<'a>(place: &Place<'a>) -> Result<&'a str> {
    place
        .destination
        .ok_or_else(|| Error::Usage("nothing is applied where deltas are collected".to_owned()))
}

/// Before a run that keeps its undo in the file `undo`. A destination that another run has left half-written is taken back
/// first, if there is a way: an undo that is begun there would lead back to that.
pub(super) fn prepare(
    place: &Place<'_>,
    undo: &str,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Prepared> {
    let wanted = place.directory.join(undo);
    let destination = destination(place)?;
    let Some(cut) = place.record()?.and_then(|record| record.incomplete) else {
        return Ok(match wanted.is_file() {
            true => Prepared::Whole,
            false => Prepared::Ready,
        });
    };
    let kept = cut.undo.map(PathBuf::from);
    if kept.as_ref() == Some(&wanted) {
        let is_there = partial_name(&wanted).is_file() || wanted.is_file();
        // From a base that is not proven a run with a longer list does not go on.
        if cut.is_proven || !is_there {
            return Ok(Prepared::Ready);
        }
    }
    let Some(kept) = kept.filter(|kept| kept.parent() == Some(place.directory)) else {
        return Ok(Prepared::Impossible {
            reason: "it is half-written, and no undo of that is kept here".to_owned(),
        });
    };
    let partial = partial_name(&kept);
    let way_back = if partial.is_file() { &partial } else { &kept };
    monitor.remark(&format!(
        "{destination}: is half-written; taking that back first, with {}",
        way_back.display()
    ));
    let write = WriteArgs {
        state: place.state.clone(),
        ..WriteArgs::default()
    };
    apply(way_back, destination, &write, false, cancel, monitor)?;
    let _ = std::fs::remove_file(way_back);
    Ok(Prepared::Ready)
}
