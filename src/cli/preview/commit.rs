//! Merging a preview into its destination.
//!
//! Guarantees: what the destination will hold is durably on record, as not reached yet, before LVM is told; once LVM is told
//! there is no way but forward, over crashes and reboots, and the same command says when that is done. LVM lets nobody
//! remove a snapshot that it merges: one that is gone was merged.

use std::time::{Duration, Instant};

use super::super::apply::ApplyArgs;
use super::super::progress::Terminal;
use super::ready::Ready;
use super::{Origin, Report, is_merging};
use crate::cancel::Cancel;
use crate::dm::SnapshotStatus;
use crate::dm::preview::{self, Preview};
use crate::dm::resolve::{active_volume, resolve};
use crate::dm::snapshot::Role;
use crate::error::{Error, ExitCode, Result};
use crate::monitor::Monitor;
use crate::record::keeper::{now, shown_time};
use crate::record::witness::{Touched, Watch, touched, was_written};
use crate::record::{Incomplete, MERGE, Record, marks, shown};
use crate::volume::Volume;

const PAUSE: Duration = Duration::from_millis(500);
/// LVM may be between two steps, but not for long.
const BETWEEN_STEPS: Duration = Duration::from_secs(5);
/// Whoever looks whether the kernel is done may have been killed.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

pub(super) fn commit(
    args: &ApplyArgs,
    origin: &Origin,
    cancel: &Cancel,
    terminal: &Terminal,
) -> Result<ExitCode> {
    let name = origin.name();
    let before = origin.record.load()?;
    let begun = before.as_ref().filter(|record| is_merging(record));
    let uuid = begun.and_then(|record| record.incomplete.as_ref()?.run.clone());
    let found = origin.preview()?;
    let mut is_this_run = false;
    match &found {
        _ if begun.is_some() && args.check => {
            terminal.summary(&format!(
                "{name}: a preview is being merged into it, or was; nothing was written"
            ));
            return Ok(ExitCode::Done);
        }
        None if begun.is_some() => {}
        // LVM was cut when it removed what it had merged.
        Some(found) if begun.is_some() && !found.is_snapshot => {}
        None => {
            return Err(Error::refused(
                name,
                "there is no preview of it",
                "Make one: lvmsync apply DELTA... DEST --preview",
            ));
        }
        Some(found) if !found.merges => {
            let ready = Ready::of(args, origin, before.as_ref(), found, terminal)?;
            if args.check {
                terminal.summary(&format!(
                    "{}: would be merged into {name}; nothing was written",
                    found.name
                ));
                return ready.report(origin).print(args).map(|()| ExitCode::Done);
            }
            begin(ready, origin, before.as_ref())?;
            is_this_run = true;
        }
        Some(found) if uuid.as_deref() != Some(&found.uuid) => {
            return Err(Error::refused(
                name,
                format!("LVM was told by somebody else to merge {}", found.name),
                "Wait until it is done; then tell what the volume holds with lvmsync state adopt.",
            ));
        }
        Some(_) => preview::poll(&origin.volume.name)?,
    }
    // Whatever it held is on record with the destination now.
    if let Some(uuid) = uuid.or(found.map(|found| found.uuid)) {
        origin.record_of(&uuid).remove()?;
    }
    wait(origin, cancel, terminal)?;
    finish(args, origin, is_this_run, terminal)
}

/// Puts on record that the destination is on its way, and tells LVM to merge.
fn begin(ready: Ready<'_>, origin: &Origin, before: Option<&Record>) -> Result<()> {
    let Ready {
        preview,
        record: made,
        is_as_made,
        marks,
        ..
    } = ready;
    // A run that has begun to write to it would put its own record over this one.
    let alone = Volume::lock_alone(&origin.volume.path)?;
    if origin.record.load()?.as_ref() != before {
        return Err(Error::refused(
            origin.name(),
            "its record was changed just now, by another run",
            format!(
                "See what it holds (lvmsync state show), and then: {}",
                origin.command("--commit")
            ),
        ));
    }
    origin.record.save(&Record {
        identity: origin.record.identity().to_owned(),
        name: origin.name(),
        forced: made.forced,
        incomplete: Some(Incomplete {
            source: MERGE.to_owned(),
            run: Some(preview.uuid.clone()),
            base: before.and_then(|record| record.holds.clone()),
            target: made.holds.filter(|_| is_as_made),
            stream: made.stream.filter(|_| is_as_made),
            list: made.list.filter(|_| is_as_made),
            undo: made.undo.filter(|_| is_as_made),
            undo_stream: made.undo_stream.filter(|_| is_as_made),
            was_forced: made.was_forced,
            is_proven: made.is_proven && is_as_made,
            from: preview.name.to_string(),
            marks,
            witness: origin.witness(),
            old_size_bytes: origin.volume.size_bytes,
            since: now(),
            ..Incomplete::default()
        }),
        ..before.cloned().unwrap_or_default()
    })?;
    // What is open is merged later.
    drop(alone);
    let told = preview::merge(preview);
    // Where nobody can say whether it is being merged, it stays on record as that.
    if told.is_err() && origin.preview()?.is_some_and(|found| !found.merges) {
        match before {
            Some(before) => origin.record.save(&Record {
                incomplete: None,
                ..before.clone()
            })?,
            None => origin.record.remove()?,
        }
    }
    told
}

/// Until LVM has merged.
fn wait(origin: &Origin, cancel: &Cancel, terminal: &Terminal) -> Result<()> {
    let name = origin.name();
    let again = origin.command("--commit");
    let start = Instant::now();
    let (mut seen_merging, mut looked) = (start, start);
    while let Some(found) = origin.preview()? {
        if let Err(error) = cancel.check() {
            terminal.remark(&format!(
                "{name}: the kernel goes on with the merge. To hear when it is done: {again}"
            ));
            return Err(error);
        }
        refuse_stuck(origin, &found)?;
        let now = active_volume(&origin.volume.name)?;
        let is_under_way = now.is_some_and(|now| match now.role {
            Role::ThickOrigin { merging, .. } => merging,
            _ => false,
        });
        if is_under_way {
            seen_merging = Instant::now();
        } else if seen_merging.elapsed() > BETWEEN_STEPS {
            match found.is_snapshot {
                true => return Err(put_off(origin)),
                false => preview::discard(&found)?,
            }
        }
        if looked.elapsed() > LOOK_AGAIN {
            looked = Instant::now();
            terminal.note(&format!("{name}: the kernel is merging"));
            preview::poll(&origin.volume.name)?;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn put_off(origin: &Origin) -> Error {
    let name = origin.name();
    Error::refused(
        name.clone(),
        "it is in use, so LVM merges the preview when it is activated next",
        format!(
            "Stop what uses it, {} (or start the machine anew), and then: {}",
            anew(&name),
            origin.command("--commit")
        ),
    )
}

fn anew(name: &str) -> String {
    format!("lvchange -an {name} && lvchange -ay {name}")
}

/// The kernel does not go on with the merge.
fn refuse_stuck(origin: &Origin, found: &Preview) -> Result<()> {
    let name = origin.name();
    match preview::merge_status(&origin.volume.name, &found.name)? {
        Some(SnapshotStatus::Invalid) => Err(Error::refused(
            name.clone(),
            format!(
                "so much was written to it that {} overflowed before LVM could merge it: it is lost, and the volume holds what \
                 it held, and what was written",
                found.name
            ),
            format!(
                "Stop what uses it, {}, and then: {}",
                anew(&name),
                origin.command("--discard")
            ),
        )),
        Some(SnapshotStatus::MergeFailed) => Err(Error::refused(
            name.clone(),
            format!(
                "the kernel could not go on with merging {} into it: part of what it should be is still in that one alone",
                found.name
            ),
            format!(
                "See the kernel's log for the disk that failed. Once it is in order: stop what uses the volume, {}, and then: {}\n\
                 The merge goes on where it stopped. If the disk is lost, restore the volume from a copy.",
                anew(&name),
                origin.command("--commit")
            ),
        )),
        _ => Ok(()),
    }
}

/// LVM is done: what the destination holds goes on record.
fn finish(
    args: &ApplyArgs,
    origin: &Origin,
    is_this_run: bool,
    terminal: &Terminal,
) -> Result<ExitCode> {
    let name = origin.name();
    let record = origin.record.load()?.unwrap_or_default();
    let Some(cut) = record.incomplete.clone() else {
        return Ok(ExitCode::Done);
    };
    // LVM has replaced the device of a thin one.
    let volume = Volume::open(resolve(&name)?.path())?;
    let seen = Watch::of(&volume).ok().and_then(|watch| watch.now());
    let (is_written, is_untouched) = match touched(cut.witness.as_deref(), seen.as_deref()) {
        Touched::No => (false, true),
        Touched::Yes => (true, false),
        Touched::Unknown => {
            let is_written = volume.device().is_some_and(was_written);
            (is_written, is_this_run && !is_written)
        }
    };
    let holds_marks = marks::hold(&volume, &cut.marks)
        .map_err(|error| Error::io(format!("cannot read {name}"), error))?;
    if !is_written && !holds_marks {
        return Err(Error::refused(
            name.clone(),
            format!(
                "{} is gone, and the volume does not hold what was in it",
                cut.from
            ),
            format!(
                "It was removed, or replaced by other means than LVM's merge. If the volume is what it was before: {}",
                origin
                    .caller
                    .command("state adopt --force", &[&name, "STATE"])
            ),
        ));
    }
    let is_it = !is_written;
    let holds = cut.target.filter(|_| is_it);
    let what = match (&holds, is_it) {
        (_, false) => {
            "something wrote to it meanwhile, so that what it holds has no name".to_owned()
        }
        (None, true) if cut.stream.is_none() => {
            "something wrote to the preview, so that what it holds has no name".to_owned()
        }
        (held, true) => format!("it holds {}", shown(held.as_ref())),
    };
    origin.record.save(&Record {
        stream: cut.stream.filter(|_| is_it),
        list: cut.list.filter(|_| is_it),
        undo: cut.undo.filter(|_| is_it),
        undo_stream: cut.undo_stream.filter(|_| is_it),
        was_forced: cut.was_forced,
        is_proven: cut.is_proven && is_it,
        marks: if is_it { cut.marks } else { Vec::new() },
        witness: seen.filter(|_| is_untouched || !is_it),
        from: cut.from.clone(),
        since: now(),
        holds: holds.clone(),
        incomplete: None,
        compared: None,
        ..record
    })?;
    Report {
        destination: name.clone(),
        preview: cut.from.clone(),
        outcome: "merged",
        holds: holds.as_ref(),
        dry_run: false,
    }
    .print(args)?;
    terminal.summary(&format!(
        "{name}: {} was merged into it (begun {}); {what}",
        cut.from,
        shown_time(cut.since)
    ));
    Ok(ExitCode::Done)
}
