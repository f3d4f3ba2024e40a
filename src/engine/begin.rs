//! Before the first write: is this the base, where does the run begin, what is kept for the way back, and is it
//! on record?
//!
//! Guarantees: when [`begin`] returns, the record says *incomplete*, durably, and nothing was written but the
//! size of a file; if it fails, the record is what it was.

use super::target::{ReceiveOptions, Target, check, cuts_file, grow, size_while_written};
use super::undo::{DurableWrite, FoundUndo, Old, UndoPlace, UndoRecorder, Undoes, undo_header};
use crate::delta::header::{Header, Source, State};
use crate::delta::samples::Samples;
use crate::delta::stream::StreamId;
use crate::error::{Error, Result};
use crate::record::Record;
use crate::record::admission::Admission;
use crate::record::keeper::{Keeper, Kept};

/// A delta that is to be applied, and onto what.
pub struct Beginning<'a, 'u> {
    /// Its header.
    pub header: &'a Header,
    /// Its samples.
    pub samples: &'a Samples,
    /// The destination.
    pub target: &'a Target<'a>,
    /// Where an undo is kept, if one is.
    pub undo: &'u dyn UndoPlace,
    /// What is allowed.
    pub options: &'a ReceiveOptions<'a>,
}

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

/// Checks everything, begins the undo, and puts on record that the destination is incomplete.
pub fn begin<'u>(beginning: &Beginning<'_, 'u>, keeper: &mut Keeper) -> Result<Begun<'u>> {
    let Beginning {
        header,
        samples,
        target,
        options,
        ..
    } = *beginning;
    let stream = StreamId::of(header, samples);
    let admission = keeper.admit(header, &stream)?;
    let told = |remark: &str| {
        options
            .monitor
            .remark(&format!("{}: {remark}", target.name));
    };
    match &admission {
        Admission::Already { remark } => {
            undo_of_before(beginning, &keeper.undoes(&stream))?;
            told(remark);
            return Ok(Begun::Already);
        }
        Admission::Forced { remark } => {
            options.monitor.warn(&format!("{}: {remark}", target.name));
        }
        Admission::Again { remark }
        | Admission::Fresh {
            remark: Some(remark),
        } => told(remark),
        Admission::Resume { offset } => options.monitor.note(&format!(
            "{}: goes on at byte {offset}, where it was cut",
            target.name
        )),
        Admission::Fresh { remark: None } | Admission::UndoUnfinished => {}
    }
    let offset = match &admission {
        Admission::Resume { offset } => *offset,
        _ if header.is_full_copy() => keeper.compared_offset(&stream),
        _ => 0,
    };
    if header.from_offset > offset {
        let reason = format!(
            "this stream goes on at byte {}, and the destination has it only up to {offset}",
            header.from_offset
        );
        return Err(Error::refused(
            target.name,
            reason,
            "Send it from its beginning.",
        ));
    }
    refuse_hopeless_undo(beginning, keeper, &admission)?;
    if is_there_already(beginning, keeper, &stream) && !matches!(admission, Admission::Again { .. })
    {
        return Err(undo_too_late(target.name));
    }
    let is_new = matches!(
        admission,
        Admission::Fresh { .. } | Admission::Forced { .. }
    );
    // Of what its run has overwritten after it was cut, or after it was copied, it knows nothing.
    let is_too_short = options.unfinished && is_new && keeper.is_whole();
    if is_too_short && !options.force {
        return Err(Error::refused(
            target.name,
            "on record as whole, and an undo that was cut leads back only from where its run was cut",
            "If the undo is whole, apply it without --unfinished. If the record is wrong: lvmsync state forget DEST. \
             --force puts back what there is, and the result is neither state.",
        ));
    }
    let matched = check(header, samples, target, options)?;
    let resumes = matches!(admission, Admission::Resume { .. });
    if resumes && !matched {
        keeper.refuse_other_list(header)?;
    }
    let forced = matches!(admission, Admission::Forced { .. });
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
    let is_other = !matched || forced || keeper.stays_forced(header);
    let base = header.base.as_ref().filter(|_| !is_other);
    let is_neither = keeper.was_incomplete() && !resumes;
    let holds = keeper.held(base).filter(|_| !is_neither);
    let old = Old {
        size_bytes: old_size_bytes,
        holds: holds.clone(),
        is_other,
    };
    let (undo, undo_name) = if matches!(admission, Admission::Again { .. }) {
        (None, undo_of_before(beginning, &keeper.undoes(&stream))?)
    } else {
        open_undo(beginning, keeper, &stream, resumes, old)?
    };
    let kept = Kept {
        undo: undo_name,
        old_size_bytes,
        holds,
        is_proven: header.is_full_copy() || is_proven(keeper, &admission),
        offset,
        forced: is_other,
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
            .filter(|_| !is_other && !keeper.is_forced() && !is_longer_file && !is_too_short),
    })))
}

const CUTS_OFF: &str =
    "what is applied makes the file shorter, and an undo would not hold what is cut off";

/// The refusal of an undo for a file that becomes shorter; for who only looks what would happen.
pub fn no_undo_of_what_is_cut_off(name: &str) -> Error {
    Error::refused(name, CUTS_OFF, "Do without --undo.")
}

/// An undo that would not lead back is worse than none.
fn refuse_hopeless_undo(
    beginning: &Beginning<'_, '_>,
    keeper: &Keeper,
    admission: &Admission,
) -> Result<()> {
    let Beginning { header, target, .. } = *beginning;
    let resumes = matches!(admission, Admission::Resume { .. });
    let cut = keeper
        .record()
        .and_then(|record| record.incomplete.as_ref());
    if resumes && cut.is_some_and(|cut| cut.undo.is_some()) && cuts_file(header, target) {
        return Err(Error::refused(
            target.name,
            "the run that was cut keeps an undo, and it would not hold what is cut off from this longer file",
            "Finish it with the send that was cut, or take it back with its undo, and sync then.",
        ));
    }
    if beginning.undo.asked().is_none() {
        return Ok(());
    }
    let shrinks = header.source == Source::Undo
        && target.is_file
        && header
            .base_size
            .is_some_and(|size| size > header.volume_size)
        || cuts_file(header, target);
    let reason = if shrinks {
        CUTS_OFF
    } else if keeper.was_incomplete() && !matches!(admission, Admission::Resume { .. }) {
        "it is incomplete now, and an undo would lead back to that"
    } else {
        return Ok(());
    };
    Err(Error::refused(target.name, reason, "Do without --undo."))
}

/// A delta that is put once more on what holds it already needs no new undo, and one that was made now would not
/// lead back.
fn undo_of_before(beginning: &Beginning<'_, '_>, undoes: &Undoes) -> Result<Option<String>> {
    let Some(name) = beginning.undo.asked() else {
        return Ok(None);
    };
    if matches!(beginning.undo.find(name, undoes)?, FoundUndo::Whole) {
        return Ok(Some(name.to_owned()));
    }
    Err(undo_too_late(beginning.target.name))
}

fn undo_too_late(name: &str) -> Error {
    Error::refused(
        name,
        "this delta was applied already, so an undo that is made now would not lead back",
        "Apply it without --undo. If the record is wrong: lvmsync state forget DEST",
    )
}

/// An undo is asked for of what is on record as applied, whoever wrote there since: the samples are of what it does not
/// change, and cannot tell. That undo would be called the way to the base.
fn is_there_already(beginning: &Beginning<'_, '_>, keeper: &Keeper, stream: &StreamId) -> bool {
    let Beginning { header, undo, .. } = *beginning;
    let target = header.target.as_ref().map(|state| &state.id);
    let record = keeper.record().filter(|record| record.incomplete.is_none());
    let is_it = |record: &Record| {
        let held = record.holds.as_ref().map(|state| &state.id);
        record.stream.as_ref() == Some(stream) || (held.is_some() && held == target)
    };
    // Put back by other means, it is perhaps the base again.
    let is_there = record.is_some_and(is_it) && !keeper.was_put_back();
    undo.asked().is_some() && !header.is_full_copy() && is_there
}

/// What the delta begins from is the base because it was copied or adopted, and not because samples say so.
fn is_proven(keeper: &Keeper, admission: &Admission) -> bool {
    let record = keeper.record();
    match admission {
        Admission::Fresh { remark: None } | Admission::Again { .. } => {
            record.is_some_and(|record| record.is_proven)
        }
        Admission::UndoUnfinished => record
            .and_then(|record| record.incomplete.as_ref())
            .is_some_and(|cut| cut.is_proven),
        _ => false,
    }
}

type OpenUndo<'a> = (
    Option<UndoRecorder<Box<dyn DurableWrite + 'a>>>,
    Option<String>,
);

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
        (None, None) | (Some(None), None) => return Ok((None, None)),
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
                return Ok((Some(undo), Some(name)));
            }
            FoundUndo::Whole => return Ok((None, Some(name))),
            // Nothing was overwritten yet: a new one leads back as well.
            FoundUndo::Gone | FoundUndo::Empty if cut.saved_offset == Some(0) => {}
            FoundUndo::Empty if cut.undo_good_from() > 0 => {
                return Err(damaged_undo(target, &name));
            }
            FoundUndo::Gone if place.asked().is_some() => {
                let reason = format!("the undo {name} of the run that was cut is gone");
                return Err(Error::refused(
                    target.name,
                    reason,
                    "Finish it without --undo.",
                ));
            }
            FoundUndo::Gone => {
                options.monitor.warn(&format!(
                    "{name}: this undo of the run that was cut is gone"
                ));
                return Ok((None, Some(name)));
            }
            FoundUndo::Empty => {}
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
    let header = undo_header(header, &undoes, old, new_size_bytes);
    let samples = samples.below(header.volume_size);
    // Durable: from the moment in which the destination is on record as incomplete, the undo can be applied.
    let undo = UndoRecorder::new(out, &name, &header, &samples, options.undo_compression)?;
    // A file that the run before has only made longer is made shorter by it.
    let undo = if resumes { undo.staying() } else { undo };
    Ok((Some(undo), Some(name)))
}

fn damaged_undo(target: &Target<'_>, name: &str) -> Error {
    let reason = format!(
        "the undo {name} of the run that was cut is damaged: what that run has overwritten is not in it any more"
    );
    let way_out =
        format!("To finish without a way back, remove {name}.partial and run the same again.");
    Error::refused(target.name, reason, way_out)
}
