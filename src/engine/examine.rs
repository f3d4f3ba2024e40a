//! May this delta be put on this destination, as far as record, sizes and sampled blocks tell?
//!
//! Guarantees: nothing is changed; what is refused here is refused before anything is written, and so it is where somebody
//! only wants to know.

use super::target::{ReceiveOptions, Target, check, cuts_file};
use super::undo::UndoPlace;
use crate::delta::header::{Header, Source};
use crate::delta::samples::Samples;
use crate::delta::stream::StreamId;
use crate::error::{Error, Result};
use crate::record::admission::Admission;
use crate::record::keeper::Keeper;
use crate::record::shown;

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

/// What was found out before anything was changed.
pub struct Examined {
    /// May it be applied, and from where on?
    pub admission: Admission,
    pub(super) stream: StreamId,
    /// What ends at or before this volume offset is there.
    pub(super) offset: u64,
    /// The sampled blocks are those of the base.
    pub(super) is_base: bool,
    /// An undo that was cut does not lead all the way back.
    pub(super) is_too_short: bool,
    /// It is on record as applied already, and blocks of it are there no more.
    pub(super) is_put_back: bool,
}

/// Refuses what cannot be applied, or would have no way back that was asked for.
pub fn examine(beginning: &Beginning<'_, '_>, keeper: &Keeper) -> Result<Examined> {
    let Beginning {
        header,
        samples,
        target,
        undo,
        options,
    } = *beginning;
    let stream = StreamId::of(header, samples);
    let admission = keeper.admit(header, &stream)?;
    if matches!(admission, Admission::Already { .. }) {
        return Ok(Examined {
            admission,
            stream,
            offset: header.volume_size,
            is_base: true,
            is_too_short: false,
            is_put_back: false,
        });
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
    // An undo of what is there already would be called the way to the base. Samples are of what it does not change, and
    // cannot tell.
    let is_there = keeper.holds_target_of(header, &stream) && undo.asked().is_some();
    if is_there && !keeper.was_put_back() && !matches!(admission, Admission::Again { .. }) {
        return Err(undo_too_late(target.name));
    }
    let is_too_short = is_too_short(beginning, keeper, &admission);
    if is_too_short && !options.force {
        return Err(too_short(target.name, &admission));
    }
    let is_of_other = refuse_undo_of_other(beginning, keeper, &stream, &admission)?;
    let is_on_record = match &admission {
        Admission::Fresh { .. } | Admission::UndoUnfinished => keeper.names_undo(header, &stream),
        _ => false,
    };
    let is_base = check(header, samples, target, options, is_on_record)? && !is_of_other;
    if matches!(admission, Admission::Resume { .. }) && !is_base {
        keeper.refuse_other_list(header)?;
    }
    Ok(Examined {
        admission,
        stream,
        offset,
        is_base,
        is_too_short,
        is_put_back: is_there && keeper.was_put_back(),
    })
}

/// Of what its run has overwritten after it was cut, or after it was copied, an undo that was cut knows nothing.
fn is_too_short(beginning: &Beginning<'_, '_>, keeper: &Keeper, admission: &Admission) -> bool {
    if !beginning.options.unfinished {
        return false;
    }
    let record = keeper.record();
    match admission {
        Admission::Fresh { .. } | Admission::Forced { .. } => {
            record.is_some_and(|record| record.incomplete.is_none() && record.knows())
        }
        // It was begun as if it were whole.
        Admission::Resume { .. } => record
            .and_then(|record| record.incomplete.as_ref())
            .is_some_and(|cut| cut.good_from.is_none()),
        _ => false,
    }
}

fn too_short(name: &str, admission: &Admission) -> Error {
    let forced = "--force puts back what there is, and the result is neither state.";
    let (reason, way_out) = match admission {
        Admission::Resume { .. } => (
            "this undo was begun as a whole one, and what it does not hold would stay",
            "Run it without --unfinished. If it is not whole, make it equal: lvmsync sync NEW DEST.",
        ),
        _ => (
            "on record as whole, and an undo that was cut leads back only from where its run was cut",
            "If the undo is whole, apply it without --unfinished. If the record is wrong: lvmsync state forget DEST.",
        ),
    };
    Error::refused(name, reason, format!("{way_out} {forced}"))
}

/// An undo without samples fits everywhere by its looks, also on the source of what it undoes. So it needs a record: that of the
/// destination that it was made for, or one of what it leads back from. `true`: there is none, and `--force` says go on.
fn refuse_undo_of_other(
    beginning: &Beginning<'_, '_>,
    keeper: &Keeper,
    stream: &StreamId,
    admission: &Admission,
) -> Result<bool> {
    let Beginning {
        header,
        samples,
        target,
        options,
        ..
    } = *beginning;
    let is_known = !matches!(admission, Admission::Fresh { remark: Some(_) });
    if is_known || !samples.is_empty() {
        return Ok(false);
    }
    let Some(other) = keeper.other_destination(header, stream) else {
        return Ok(false);
    };
    if options.force {
        return Ok(true);
    }
    Err(Error::refused(
        target.name,
        format!(
            "this undo holds what was overwritten on another destination, {other}; it has no samples of what it leaves alone, \
             and nothing on record says that this one holds {}, which it leads back from. Nothing was written",
            shown(header.base.as_ref())
        ),
        "Apply it to the volume that it was made for. If this one is known to be a copy of that: --force applies it, and the \
         result has no name.",
    ))
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
    if shrinks {
        return Err(no_undo_of_what_is_cut_off(target.name));
    }
    if keeper.was_incomplete() && !matches!(admission, Admission::Resume { .. }) {
        return Err(no_undo_of_the_middle(target.name));
    }
    Ok(())
}

/// The refusal of an undo of what another run has left half-written.
pub(super) fn no_undo_of_the_middle(name: &str) -> Error {
    let reason = "it is incomplete now, and an undo would lead back to that";
    Error::refused(name, reason, "Do without --undo.")
}

/// The refusal of an undo of what is there already.
pub(super) fn undo_too_late(name: &str) -> Error {
    Error::refused(
        name,
        "this delta was applied already, so an undo that is made now would not lead back",
        "Apply it without --undo. If the record is wrong: lvmsync state forget DEST",
    )
}
