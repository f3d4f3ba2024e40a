//! Removing a preview: one that is not wanted, or what a run that was cut has left.
//!
//! Guarantees: one that is being merged is never removed, and one that somebody has open stays; the destination is on record
//! as what it was; of the undo that was kept with it nothing stays, for it leads back from nowhere.

use std::path::{Path, PathBuf};

use super::super::apply::{ApplyArgs, stream_of};
use super::super::progress::Terminal;
use super::{Origin, Report, is_merging};
use crate::dm::SnapshotStatus;
use crate::dm::preview::{self, Preview};
use crate::error::{Error, ExitCode, Result};
use crate::monitor::Monitor;
use crate::partial_file::partial_name;
use crate::record::Record;

pub(super) fn discard(args: &ApplyArgs, origin: &Origin, terminal: &Terminal) -> Result<ExitCode> {
    let name = origin.name();
    let Some(found) = origin.preview()? else {
        terminal.summary(&format!("{name}: there is no preview of it"));
        return Ok(ExitCode::Done);
    };
    let status = match found.merges {
        true => preview::merge_status(&origin.volume.name, &found.name)?,
        false => None,
    };
    // Of one that overflowed before the volume was activated anew LVM merges nothing.
    let is_lost = status == Some(SnapshotStatus::Invalid);
    if found.merges && !is_lost {
        return Err(Error::refused(
            name,
            format!(
                "LVM merges {} into it, and that cannot be stopped",
                found.name
            ),
            format!("Let it finish: {}", origin.command("--commit")),
        ));
    }
    let record = origin.record.load()?;
    if !args.check {
        if let Some(record) = record.clone().filter(is_merging) {
            origin.record.save(&as_before(record, is_lost))?;
        }
        remove(origin, &found, terminal)?;
    }
    Report {
        destination: name.clone(),
        preview: found.name.to_string(),
        outcome: "discarded",
        holds: record
            .as_ref()
            .filter(|_| !is_lost)
            .and_then(|record| record.holds.as_ref()),
        dry_run: args.check,
    }
    .print(args)?;
    let said = match (args.check, is_lost) {
        (true, _) => "would be removed; nothing was".to_owned(),
        (false, false) => format!("was removed; {name} is as it was"),
        (false, true) => format!("was removed; nothing of it was merged into {name}"),
    };
    terminal.summary(&format!("{}: {said}", found.name));
    Ok(ExitCode::Done)
}

/// LVM was about to be told, and never was; or nothing came of it, and what made it overflow is on the volume now.
fn as_before(record: Record, was_written: bool) -> Record {
    let record = Record {
        incomplete: None,
        ..record
    };
    if !was_written {
        return record;
    }
    Record {
        holds: None,
        stream: None,
        list: None,
        undo: None,
        undo_stream: None,
        witness: None,
        is_proven: false,
        marks: Vec::new(),
        ..record
    }
}

/// What a run that was killed has left.
pub(super) fn half(origin: &Origin, terminal: &Terminal) -> Result<()> {
    let Some(found) = origin.preview()? else {
        return Ok(());
    };
    remove(origin, &found, terminal)?;
    terminal.remark(&format!(
        "{}: half a preview, left by a run that was cut; it was removed",
        found.name
    ));
    Ok(())
}

/// The preview, its undo, and its record, which comes last: until then it says what is to be removed.
pub(super) fn remove(origin: &Origin, preview: &Preview, terminal: &Terminal) -> Result<()> {
    let file = origin.record_of(&preview.uuid);
    let record = file.load()?;
    preview::discard(preview)?;
    if let Some(record) = &record {
        remove_undo(record, terminal)?;
    }
    file.remove()
}

/// What has the name of the undo may be another one by now, and somebody's only way back.
fn remove_undo(record: &Record, monitor: &dyn Monitor) -> Result<()> {
    let of = record.preview_of.as_ref();
    let whole = of.and_then(|of| of.undo.as_ref()).map(PathBuf::from);
    let cut = record.incomplete.as_ref();
    let begun = cut
        .and_then(|cut| cut.undo.as_ref())
        .map(|undo| partial_name(Path::new(undo)));
    let cut_stream = cut.and_then(|cut| cut.undo_stream.as_ref());
    let known = [
        (whole, record.undo_stream.as_ref(), true),
        (begun, cut_stream.or(record.undo_stream.as_ref()), false),
    ];
    for (path, stream, is_whole) in known {
        let Some(path) = path.filter(|path| path.exists()) else {
            continue;
        };
        let found = stream_of(&path);
        // One that was cut may have no header yet.
        let is_cut = found.is_none() && !is_whole;
        if !is_cut && found.as_ref() != stream {
            monitor.remark(&format!(
                "{}: kept, for it is not the undo that the preview had",
                path.display()
            ));
            continue;
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let action = format!(
                    "cannot remove {}, the undo of a preview that is gone",
                    path.display()
                );
                return Err(Error::io(action, error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change_list::ChangeList;
    use crate::delta::header::tests::header;
    use crate::delta::samples::Samples;
    use crate::delta::stream::StreamId;
    use crate::delta::writer::DeltaWriter;
    use crate::monitor::Silent;
    use crate::record::PreviewOf;
    use crate::volume::memory::MemoryVolume;

    #[test]
    fn of_what_has_the_name_of_the_undo_only_the_undo_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("back.undo");
        let volume = MemoryVolume::new((0..1 << 20).map(|n| (n / 4096 % 251) as u8 + 1).collect());
        let samples = Samples::take(&volume, &ChangeList::default()).unwrap();
        assert!(!samples.is_empty());
        let undo = |size: u64| {
            let writer = DeltaWriter::new(Vec::new(), &header(size), &samples).unwrap();
            std::fs::write(&path, writer.finish().unwrap().1).unwrap();
        };
        let record = Record {
            undo_stream: Some(StreamId::of(&header(1 << 20), &samples)),
            preview_of: Some(PreviewOf {
                undo: Some(path.display().to_string()),
                ..PreviewOf::default()
            }),
            ..Record::default()
        };
        undo(1 << 20);
        remove_undo(&record, &Silent).unwrap();
        assert!(!path.exists());
        undo(2 << 20);
        remove_undo(&record, &Silent).unwrap();
        assert!(path.exists(), "another undo");
        std::fs::write(&path, "a letter").unwrap();
        remove_undo(&record, &Silent).unwrap();
        assert!(path.exists(), "no undo");
    }
}
