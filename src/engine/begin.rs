//! Before the first write: where does the run begin, what is kept for the way back, and is it on record?
//!
//! Guarantees: when [`begin`] returns, the record says *incomplete*, durably, and nothing was written but the size of a file;
//! if it fails, the record is what it was.

use super::examine::{Beginning, Examined, examine, undo_too_late};
use super::target::{Target, grow, size_while_written};
use super::undo::{DurableWrite, FoundUndo, Old, UndoRecorder, Undoes, undo_header};
use crate::delta::header::{Header, Source, State};
use crate::delta::stream::StreamId;
use crate::error::{Error, Result};
use crate::record::admission::Admission;
use crate::record::keeper::{Keeper, Kept, Resume};

/// How a run begins.
pub enum Begun<'a> {
    /// The destination holds the target already.
    Already,
    /// Frames may be applied.
    Ready(Box<Ready<'a>>),
}

/// What a run needs to know that may write.
pub struct Ready<'a> {
    /// Frames that end at or before this volume offset are there already.
    pub offset: u64,
    /// The undo that is being kept.
    pub undo: Option<UndoRecorder<Box<dyn DurableWrite + 'a>>>,
    /// Size of the destination when this run began.
    pub size_before: u64,
    /// An undo that was cut is good if it saved at least up to here.
    pub good_from: Option<u64>,
    /// The state that the destination holds when all is done; `None` where it has no identity.
    pub result: Option<State>,
}

fn tell(beginning: &Beginning<'_, '_>, admission: &Admission) {
    let Beginning {
        target, options, ..
    } = *beginning;
    let name = target.name;
    match admission {
        Admission::Forced { remark } => options.monitor.warn(&format!("{name}: {remark}")),
        Admission::Already { remark }
        | Admission::Again { remark }
        | Admission::Fresh {
            remark: Some(remark),
        } => options.monitor.remark(&format!("{name}: {remark}")),
        Admission::Resume { offset } => options.monitor.note(&format!(
            "{name}: goes on at byte {offset}, where it was cut"
        )),
        Admission::Fresh { remark: None } | Admission::UndoUnfinished => {}
    }
}

/// Checks everything, begins the undo, and puts on record that the destination is incomplete.
pub fn begin<'u>(beginning: &Beginning<'_, 'u>, keeper: &mut Keeper) -> Result<Begun<'u>> {
    let Beginning {
        header,
        target,
        options,
        ..
    } = *beginning;
    let Examined {
        admission,
        stream,
        offset,
        is_base,
        is_too_short,
        is_put_back,
    } = examine(beginning, keeper)?;
    if matches!(admission, Admission::Already { .. }) {
        undo_of_before(beginning, keeper, &stream)?;
        tell(beginning, &admission);
        return Ok(Begun::Already);
    }
    if was_compared_with_this_undo(beginning, keeper, &stream)? {
        options.monitor.remark(&format!(
            "{}: on record as equal since this undo was kept; nothing was written",
            target.name
        ));
        return Ok(Begun::Already);
    }
    if is_put_back {
        refuse_to_replace(beginning, &keeper.undoes(&stream))?;
    }
    refuse_undo_over_others(beginning, keeper, &admission)?;
    tell(beginning, &admission);
    let resumes = matches!(admission, Admission::Resume { .. });
    let stays_foreign = keeper.keeps_what_others_wrote(header);
    if stays_foreign {
        options.monitor.warn(&format!(
            "{}: something other than lvmsync wrote to it since the run was cut: where this delta writes nothing that stays, \
             and the result is no state on record",
            target.name
        ));
    }
    let forced = matches!(admission, Admission::Forced { .. })
        || (stays_foreign && !matches!(admission, Admission::UndoUnfinished));
    let old_size_bytes = match keeper
        .record()
        .and_then(|record| record.incomplete.as_ref())
    {
        Some(cut) if resumes => cut.old_size_bytes,
        _ if keeper.is_new_file() => 0,
        _ => target.volume.size_bytes(),
    };
    let is_longer_file = header.source == Source::Full
        && target.is_file
        && !keeper.is_new_file()
        && target.volume.size_bytes() > header.volume_size;
    if is_longer_file {
        options.monitor.warn(&format!(
            "{}: this file is longer than the volume ({} and {} bytes); what is behind stays, so that it is not \
             the same file in the end",
            target.name,
            target.volume.size_bytes(),
            header.volume_size
        ));
    }
    // A run that goes on was perhaps forced where it began, and so was one that left what this one finds.
    let is_short = is_too_short || (options.unfinished && options.force);
    let is_other = !is_base || forced || is_short || keeper.stays_forced(header, &stream);
    let base = header.base.as_ref().filter(|_| !is_other);
    // Whether somebody has put back the base, or wrote to what was applied, nobody knows.
    let is_neither = (keeper.was_incomplete() && !resumes) || is_put_back;
    let holds = keeper.held(base).filter(|_| !is_neither);
    let old = Old {
        size_bytes: old_size_bytes,
        holds: holds.clone(),
        is_other,
    };
    let OpenUndo {
        recorder: undo,
        name,
        stream: undo_stream,
    } = if matches!(admission, Admission::Again { .. }) {
        let found = undo_of_before(beginning, keeper, &stream)?;
        OpenUndo {
            stream: found.as_ref().map(|(_, stream)| stream.clone()),
            ..OpenUndo::named(found.map(|(name, _)| name))
        }
    } else {
        open_undo(beginning, keeper, &stream, resumes, old)?
    };
    // What else was written stays, and nothing can tell whether there is any.
    let rests_on_nothing = header.source == Source::Undo
        && beginning.samples.is_empty()
        && matches!(admission, Admission::Fresh { remark: Some(_) });
    let is_nameless = rests_on_nothing || stays_foreign || keeper.leads_nowhere(header, &stream);
    let kept = Kept {
        undo: name,
        undo_stream,
        has_own_undo: undo.is_some(),
        old_size_bytes,
        holds,
        is_proven: header.is_full_copy() || is_proven(keeper, header, &stream, &admission),
        offset,
        forced: is_other,
        // Nothing on record says how far its run got.
        is_unfinished: options.unfinished,
        is_nameless,
    };
    let mut size_before = target.volume.size_bytes();
    let begun = keeper.begin(header, &stream, kept).and_then(|()| {
        // What a copy that is not this one has left there.
        if keeper.is_new_file() && !resumes && target.volume.size_bytes() > 0 {
            keeper.was_emptied();
            let emptied = target.volume.set_size(0);
            emptied.map_err(|error| Error::io(format!("cannot empty {}", target.name), error))?;
            size_before = 0;
        }
        grow(header, target)
    });
    if let Err(error) = begun {
        if !resumes {
            if let Some(undo) = undo {
                undo.discard();
            }
            keeper.put_back()?;
        }
        return Err(error);
    }
    Ok(Begun::Ready(Box::new(Ready {
        offset,
        undo,
        size_before,
        good_from: keeper
            .record()
            .and_then(|record| record.incomplete.as_ref()?.good_from)
            .map(|good_from| good_from.min(header.volume_size)),
        result: header
            .target
            .clone()
            .filter(|_| !is_other && !keeper.is_forced() && !is_longer_file && !is_nameless),
    })))
}

/// What begins anew over what others wrote would save that for what was there before.
fn refuse_undo_over_others(
    beginning: &Beginning<'_, '_>,
    keeper: &Keeper,
    admission: &Admission,
) -> Result<()> {
    let goes_on = matches!(admission, Admission::Resume { .. });
    let Some(way_back) = keeper.way_back().filter(|_| goes_on) else {
        return Ok(());
    };
    if !keeper.was_written_since_cut() || beginning.undo.asked().is_none() {
        return Ok(());
    }
    Err(Error::refused(
        beginning.target.name,
        "something other than lvmsync wrote to it since the run was cut: its undo would not lead back to what was there before \
         that. Nothing was written",
        format!(
            "Take back what was cut: {way_back}\nOr run the same without --undo: all is made equal, and nothing leads back."
        ),
    ))
}

/// A comparison is made each time it is asked for. But where this very one was done, its undo included, and the connection
/// was lost before that could be said, there is nothing left to save, and nothing to replace that undo by.
fn was_compared_with_this_undo(
    beginning: &Beginning<'_, '_>,
    keeper: &Keeper,
    stream: &StreamId,
) -> Result<bool> {
    let kept = keeper
        .record()
        .and_then(|record| record.undo_stream.as_ref());
    let (Some(name), Some(kept)) = (beginning.undo.asked(), kept) else {
        return Ok(false);
    };
    let is_compared = beginning.header.source == Source::Compare;
    if !is_compared || keeper.resume_offset(stream) != Resume::Done {
        return Ok(false);
    }
    let found = beginning.undo.find(name, &keeper.undoes(stream))?;
    Ok(matches!(found, FoundUndo::Whole(found) if found == *kept))
}

/// A delta that is put once more on what holds it already needs no new undo, and one that was made now would not
/// lead back.
fn undo_of_before(
    beginning: &Beginning<'_, '_>,
    keeper: &Keeper,
    stream: &StreamId,
) -> Result<Option<(String, StreamId)>> {
    let Some(name) = beginning.undo.asked() else {
        return Ok(None);
    };
    let kept = keeper
        .record()
        .and_then(|record| record.undo_stream.as_ref());
    match beginning.undo.find(name, &keeper.undoes(stream))? {
        // An older one of the same delta saved what was there then.
        FoundUndo::Whole(found) if kept.is_none_or(|kept| *kept == found) => {
            Ok(Some((name.to_owned(), found)))
        }
        _ => Err(undo_too_late(beginning.target.name)),
    }
}

/// What leads back from where this delta was applied for the first time is not replaced by what saves who knows what.
fn refuse_to_replace(beginning: &Beginning<'_, '_>, undoes: &Undoes) -> Result<()> {
    let Some(name) = beginning.undo.asked() else {
        return Ok(());
    };
    if !matches!(beginning.undo.find(name, undoes)?, FoundUndo::Whole(_)) {
        return Ok(());
    }
    Err(Error::refused(
        beginning.target.name,
        format!(
            "this delta was applied already, something wrote to it since, and {name} is the undo of that first time: the \
             only way back if it was not put back already"
        ),
        "Give another --undo, or remove that one. If it was put back: lvmsync state adopt DEST STATE",
    ))
}

/// What the delta begins from is the base because it was copied or adopted, and not because samples say so. Of what an undo
/// holds that was not kept by the last run nobody knows where it comes from.
fn is_proven(keeper: &Keeper, header: &Header, stream: &StreamId, admission: &Admission) -> bool {
    let Some(record) = keeper.record() else {
        return false;
    };
    let kept = record.way_back().1;
    match admission {
        Admission::Fresh { remark: None } if header.source == Source::Undo => {
            record.is_proven && kept == Some(stream)
        }
        Admission::Fresh { remark: None } => record.is_proven,
        Admission::Again { .. } => record.is_proven && record.stream.as_ref() == Some(stream),
        Admission::UndoUnfinished => {
            let cut = record.incomplete.as_ref();
            cut.is_some_and(|cut| cut.is_proven) && kept == Some(stream)
        }
        _ => false,
    }
}

/// The undo of a run that begins, or goes on.
struct OpenUndo<'a> {
    recorder: Option<UndoRecorder<Box<dyn DurableWrite + 'a>>>,
    name: Option<String>,
    /// Which delta it is, if it begins now.
    stream: Option<StreamId>,
}

impl OpenUndo<'_> {
    /// One that nothing is added to, or none.
    fn named(name: Option<String>) -> Self {
        Self {
            recorder: None,
            name,
            stream: None,
        }
    }
}

fn open_undo<'u>(
    beginning: &Beginning<'_, 'u>,
    keeper: &Keeper,
    stream: &StreamId,
    resumes: bool,
    old: Old,
) -> Result<OpenUndo<'u>> {
    let Beginning {
        header,
        samples,
        target,
        undo: place,
        options,
    } = *beginning;
    let record = keeper.record();
    let cut = record
        .and_then(|record| record.incomplete.as_ref())
        .filter(|_| resumes);
    let kept = cut.map(|cut| cut.undo.clone());
    let name = match (kept, place.asked()) {
        // Not a resumed run.
        (None, None) | (Some(None), None) => return Ok(OpenUndo::named(None)),
        (None, Some(asked)) => asked.to_owned(),
        (Some(Some(kept)), None) => kept,
        (Some(Some(kept)), Some(asked)) if kept == asked => kept,
        (Some(Some(kept)), Some(asked)) => {
            let reason = format!("the run that was cut keeps its undo in {kept}, not in {asked}");
            return Err(Error::refused(
                target.name,
                reason,
                "Give that name, or none.",
            ));
        }
        (Some(None), Some(_)) => {
            return Err(Error::refused(
                target.name,
                "the run that was cut kept no undo; one that begins now would not lead back",
                "Finish it without --undo.",
            ));
        }
    };
    let undoes = keeper.undoes(stream);
    let is_own = record.is_some_and(|record| record.run_with_own_undo().is_some());
    let mut created = None;
    if let Some(cut) = cut {
        match place.find(&name, &undoes)? {
            FoundUndo::Part(part)
                if cut
                    .saved_offset
                    .is_some_and(|saved| part.part.frames_end < saved) =>
            {
                return Err(damaged_undo(target, &name));
            }
            FoundUndo::Part(part) => {
                let undo = UndoRecorder::resume(*part, &name, options.undo_compression)?;
                return Ok(OpenUndo {
                    recorder: Some(undo),
                    ..OpenUndo::named(Some(name))
                });
            }
            FoundUndo::Whole(found)
                if cut.undo_stream.as_ref().is_none_or(|kept| *kept == found) =>
            {
                return Ok(OpenUndo::named(Some(name)));
            }
            // Nothing was overwritten yet: a new one leads back as well. What a repetition found has been overwritten before.
            FoundUndo::Gone if is_own && cut.saved_offset == Some(0) => {}
            FoundUndo::Empty(_) if cut.undo_good_from() > 0 => {
                return Err(damaged_undo(target, &name));
            }
            FoundUndo::Gone | FoundUndo::Whole(_) if place.asked().is_some() => {
                let reason = format!("the undo {name} of the run that was cut is gone");
                return Err(Error::refused(
                    target.name,
                    reason,
                    "Finish it without --undo.",
                ));
            }
            FoundUndo::Gone | FoundUndo::Whole(_) => {
                options.monitor.warn(&format!(
                    "{name}: this undo of the run that was cut is gone"
                ));
                return Ok(OpenUndo::named(Some(name)));
            }
            FoundUndo::Empty(when) => created = when,
        }
    }
    // Where the record says that nothing is under way, what an older run left is of no use to anybody.
    let is_complete = record.is_some_and(|record| record.incomplete.is_none());
    let of_no_use = (is_complete || resumes).then_some(&undoes);
    let out = place.create(&name, of_no_use)?;
    let new_size_bytes = size_while_written(header, target);
    // Of a destination that is not the base only itself can tell what it will be again.
    let samples = if old.is_other {
        samples.retaken(&target.volume).map_err(|error| {
            let action = format!("cannot read the sampled blocks of {}", target.name);
            Error::io(action, error)
        })?
    } else {
        samples.clone()
    };
    let mut header = undo_header(header, &undoes, old, new_size_bytes);
    header.created = created.unwrap_or(header.created);
    let samples = samples.below(header.volume_size);
    // Durable: from the moment in which the destination is on record as incomplete, the undo can be applied.
    let undo = UndoRecorder::new(out, &name, &header, &samples, options.undo_compression)?;
    // A file that the run before has only made longer is made shorter by it.
    let undo = if resumes { undo.staying() } else { undo };
    Ok(OpenUndo {
        recorder: Some(undo),
        name: Some(name),
        stream: Some(StreamId::of(&header, &samples)),
    })
}

fn damaged_undo(target: &Target<'_>, name: &str) -> Error {
    let reason = format!(
        "the undo {name} of the run that was cut is damaged: what that run has overwritten is not in it any more"
    );
    let way_out = format!(
        "To finish without a way back, remove {name}.partial and run the same without --undo."
    );
    Error::refused(target.name, reason, way_out)
}
