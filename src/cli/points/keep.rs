//! Retention: points that are not kept are folded into their neighbours, or dropped.
//!
//! Guarantees: a fold is durable under its name before its parts go, and what is removed first is what leads the furthest,
//! so that every point that is kept can be reached whenever it ends ([`Paths::plan`]); nothing is done while it is not
//! known what the destination holds, or while that is half-written.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::chain::Files;
use super::Place;
use crate::cancel::Cancel;
use crate::error::{Error, ExitCode, Result};
use crate::history::combine::{Options, check, combine};
use crate::history::paths::{Paths, Step};
use crate::job::grid::Grid;
use crate::job::points::{Kept, taken_at};
use crate::monitor::Silent;
use crate::partial_file::{PARTIAL_SUFFIX, PartialFile, sync_directory_of};
use crate::write_behind::WriteBehind;

/// Gives up what `grid` does not keep and what leads to none of the states `also`.
pub(super) fn keep(
    place: &Place<'_>,
    grid: &Grid,
    also: &[String],
    cancel: &Cancel,
) -> Result<Kept> {
    let mut kept = Kept::default();
    let record = place.record()?;
    let is_cut = record
        .as_ref()
        .is_some_and(|record| record.incomplete.is_some());
    let held = Place::held(record.as_ref(), place.destination).filter(|_| !is_cut);
    let Some(held) = held else {
        let reason = "it is not known which state the destination holds, or it is half-written: nothing is given up";
        kept.remarks.push(reason.to_owned());
        return Ok(kept);
    };
    remove_what_was_killed(place)?;
    let (found, unusable) = place.files()?;
    kept.remarks.extend(unusable);
    let before: u64 = found.iter().map(|found| found.bytes).sum();
    let paths = Paths::of(
        found.iter().map(|found| found.edge.clone()).collect(),
        &held,
    );
    let is_missing = |id: &&String| !paths.reached().any(|edge| edge.to == **id);
    kept.missing = also.iter().filter(is_missing).cloned().collect();
    let times: Vec<i64> = paths.reached().map(|edge| edge.at).collect();
    let keeps = grid.keeps(&times);
    let kept_files: BTreeSet<&str> = paths
        .reached()
        .zip(keeps)
        .filter(|(edge, keep)| *keep || also.contains(&edge.to))
        .map(|(edge, _)| edge.file.as_str())
        .collect();
    for step in paths.plan(&|edge| kept_files.contains(edge.file.as_str())) {
        cancel.check()?;
        match step {
            Step::Drop(file) => {
                remove(place, &file)?;
                kept.given_up += 1;
            }
            Step::Fold(parts) => match fold(place, &parts, cancel) {
                Ok(()) => kept.given_up += parts.len() as u64 - 1,
                // Files that cannot be one stay several: that costs room, and no point.
                Err(error) if error.exit_code() == ExitCode::Refused => {
                    kept.remarks.push(error.chain());
                }
                Err(error) => return Err(error),
            },
        }
    }
    drop_old_strays(place, grid, &paths, &times)?;
    let after: u64 = place.files()?.0.iter().map(|found| found.bytes).sum();
    kept.freed_bytes =
        i64::try_from(before).unwrap_or(i64::MAX) - i64::try_from(after).unwrap_or(i64::MAX);
    Ok(kept)
}

/// One file in place of `parts`, with the name of the last.
fn fold(place: &Place<'_>, parts: &[String], cancel: &Cancel) -> Result<()> {
    let Some((last, others)) = parts.split_last() else {
        return Ok(());
    };
    let name = place.path_of(last);
    write_combined(place, parts, Path::new(&name), cancel)?;
    for part in others.iter().rev() {
        remove(place, part)?;
    }
    Ok(())
}

/// Writes what `parts` do one after another to `path`, durably, in place of what may be there.
pub(super) fn write_combined(
    place: &Place<'_>,
    parts: &[String],
    path: &Path,
    cancel: &Cancel,
) -> Result<()> {
    let names: Vec<String> = parts.iter().map(|part| place.path_of(part)).collect();
    let files = Files::open(&names)?;
    let chain = files.chain()?;
    check(&chain)?;
    let name = path.display().to_string();
    let out = PartialFile::create(path, true)?;
    let file = out
        .file()
        .and_then(WriteBehind::new)
        .map_err(|error| Error::io(format!("cannot write {name}"), error))?;
    let options = Options {
        compression: None,
        cancel,
        // That no sampled block is left alone is no news where a record is asked for.
        monitor: &Silent,
    };
    combine(&chain, file, &name, &options)?;
    files.check_unchanged(&names)?;
    drop(chain);
    drop(files);
    out.persist()
}

fn remove(place: &Place<'_>, file: &str) -> Result<()> {
    let path = place.directory.join(file);
    std::fs::remove_file(&path)
        .and_then(|()| sync_directory_of(&path))
        .map_err(|error| Error::io(format!("cannot remove {}", path.display()), error))
}

/// A fold that was killed has left the beginning of what would replace a file that is there. That of a run, which may be a
/// way back, has no whole file beside it.
fn remove_what_was_killed(place: &Place<'_>) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(place.directory) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let Ok(partial) = entry.file_name().into_string() else {
            continue;
        };
        let whole = partial.strip_suffix(PARTIAL_SUFFIX);
        let is_fold = |whole: &&str| {
            taken_at(whole).is_some()
                && whole.ends_with(place.suffix())
                && place.directory.join(whole).is_file()
        };
        if whole.filter(is_fold).is_some() {
            remove(place, &partial)?;
        }
    }
    Ok(())
}

/// What cannot be reached may be by other means, and goes when it is older than everything that a grid keeps.
fn drop_old_strays(place: &Place<'_>, grid: &Grid, paths: &Paths, times: &[i64]) -> Result<()> {
    let Some(newest) = times.iter().max() else {
        return Ok(());
    };
    let oldest = newest.saturating_sub(grid.span_seconds());
    let is_there = |file: &str| place.directory.join(file).is_file();
    for stray in paths.strays().iter().filter(|stray| stray.at < oldest) {
        if is_there(&stray.file) {
            remove(place, &stray.file)?;
        }
    }
    Ok(())
}
