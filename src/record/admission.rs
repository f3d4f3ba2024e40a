//! May this delta be put on a destination with this record, and from where on?
//!
//! Pure. Guarantees: a delta whose base is not the recorded state is refused with both named; a destination
//! that is incomplete takes only what completes it, undoes it, or replaces everything.

use std::path::Path;

use super::witness::Touched;
use super::{ANONYMOUS, Incomplete, MERGE, Record, shown};
use crate::commands::{Caller, word};
use crate::delta::header::{Header, ORIGIN_RUN, Source, State};
use crate::delta::stream::StreamId;
use crate::partial_file::PARTIAL_SUFFIX;

/// What may be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Applied from its beginning. `remark` says how much is known of the base.
    Fresh {
        /// For the user.
        remark: Option<String>,
    },
    /// Goes on where it was cut: what ends at or before this volume offset is there.
    Resume {
        /// In bytes.
        offset: u64,
    },
    /// Takes back a write that was cut: an undo that was cut with it is as good as a whole one.
    UndoUnfinished,
    /// Applied against the record, as asked: the result has no name.
    Forced {
        /// For the user.
        remark: String,
    },
    /// The destination holds the target already, unless somebody wrote to it: it is written once more.
    Again {
        /// For the user.
        remark: String,
    },
    /// The destination holds the target already, and nobody wrote to it since.
    Already {
        /// For the user.
        remark: String,
    },
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was found and what was expected.
    pub reason: String,
    /// What to do.
    pub way_out: String,
}

/// How a destination is called, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// As the user named it.
    pub name: &'a str,
    /// Who is told what to do with it.
    pub caller: &'a Caller,
}

impl<'a> Called<'a> {
    /// By somebody at this machine.
    pub fn here(name: &'a str) -> Self {
        static HERE: Caller = Caller::HERE;
        let caller = &HERE;
        Self { name, caller }
    }

    /// The command that puts back what the undo `undo` has saved.
    pub fn take_back(self, undo: &str) -> String {
        self.caller.command("apply", &[undo, self.name])
    }

    fn command(self, verb: &str, behind: &[&str]) -> String {
        self.caller.command(verb, &[&[self.name], behind].concat())
    }
}

/// What the caller allows, and what is known beside the record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Writes by others since the record was made.
    pub touched: Touched,
    /// Go on whatever the record says.
    pub force: bool,
    /// A delta without a record that names its base is refused.
    pub require_record: bool,
}

/// Decides. `record` is the record of the destination.
pub fn admit(
    record: Option<&Record>,
    header: &Header,
    stream: &StreamId,
    called: Called<'_>,
    policy: Policy,
) -> Result<Admission, Refusal> {
    let Some(record) = record else {
        return unknown(
            header,
            policy,
            "there is no record of the state that it holds",
        );
    };
    refuse_merging(record, called)?;
    if record.incomplete.is_some() {
        return to_incomplete(record, header, stream, called, policy);
    }
    let is_this = record.stream.as_ref() == Some(stream) && !record.forced;
    // Who asks for a comparison wants to see it.
    let is_there = is_this && policy.touched == Touched::No && header.source != Source::Compare;
    if header.is_full_copy() && (policy.force || !is_there) {
        return Ok(Admission::Fresh { remark: None });
    }
    // Two runs have one undo, by its name. Where the base was not the base, the older one does not know what only the other
    // list overwrites.
    let is_proven = record.is_proven && !record.forced;
    let is_other_list = record.stream.as_ref() == Some(stream) && record.list != header.list;
    if is_other_list
        && !is_proven
        && (!is_there || policy.force)
        && let Some(undo) = record.undo.as_deref()
    {
        return Err(Refusal {
            reason: format!(
                "this delta was applied already, {}, and its list is another one now: no undo would lead back. Nothing was \
                 written",
                why_unproven(record.forced)
            ),
            way_out: format!(
                "If nobody wrote to it, nothing is to be done. {}",
                back_or_equal(called, undo)
            ),
        });
    }
    // An older undo of the same delta, from when it was applied before, holds what was there then.
    let undoes_last = record
        .stream
        .as_ref()
        .is_some_and(|last| header.undoes(last))
        && record.way_back().1 == Some(stream);
    if policy.touched == Touched::Yes {
        let why = "something other than lvmsync wrote to it since its record was made";
        let admission = unknown(header, policy, why)?;
        // That it began from what this undo leads back from needs no samples.
        return Ok(match undoes_last {
            true => Admission::Fresh {
                remark: Some(format!(
                    "{why}: what this undo does not hold stays as it is"
                )),
            },
            false => admission,
        });
    }
    // What the last run overwrote is taken back even where that was, by its name, the same state.
    let undone = !undoes_last
        && header.source == Source::Undo
        && header.target.is_some()
        && same_id(record, header.target.as_ref());
    if (is_this || undone) && !policy.force {
        let remark = format!(
            "on record since {} as holding {} already",
            super::keeper::shown_time(record.since),
            record.shown_state()
        );
        return Ok(match policy.touched {
            Touched::No => Admission::Already {
                remark: format!("{remark}; nothing was written"),
            },
            _ if is_this => Admission::Again {
                remark: format!("{remark}; written once more"),
            },
            // What it saved is not what the last run wrote, only called so.
            _ => Admission::Already {
                remark: format!(
                    "{remark}: if somebody wrote to it, lvmsync sync NEW DEST; nothing was written"
                ),
            },
        });
    }
    if undoes_last {
        return Ok(Admission::Fresh { remark: None });
    }
    if header.source == Source::Cow
        && header.run.is_some()
        && header.target.is_some()
        && same_id(record, header.target.as_ref())
    {
        let reason = format!(
            "on record since {} as holding {} already; that one could be written to, and may have been activated anew since",
            super::keeper::shown_time(record.since),
            record.shown_state()
        );
        if policy.touched == Touched::No && !policy.force {
            let remark = format!(
                "{reason}: if somebody wrote to it, lvmsync sync NEW DEST; nothing was written"
            );
            return Ok(Admission::Already { remark });
        }
        return forced_or(policy, reason, || {
            "If nobody wrote to either, nothing is to be done. To be sure: lvmsync sync NEW DEST."
                .to_owned()
        });
    }
    match (&header.base, &record.holds) {
        (Some(base), Some(held)) if base.id == held.id => Ok(Admission::Fresh { remark: None }),
        (Some(base), Some(_)) => {
            let reason = format!(
                "this delta begins from {}, and the destination holds, on record since {}, {}. Nothing was written",
                shown(Some(base)),
                super::keeper::shown_time(record.since),
                record.shown_state()
            );
            forced_or(policy, reason, || {
                format!(
                    "Apply the deltas that are missing in between, or make it equal: lvmsync sync NEW DEST. \
                     If the record is wrong: {}, or {}",
                    called.command("state adopt", &["STATE"]),
                    called.command("state forget", &[])
                )
            })
        }
        (None, _) => unknown(
            header,
            policy,
            "this delta does not name the state that it begins from",
        ),
        (Some(_), None) => unknown(header, policy, "the state that it holds has no identity"),
    }
}

/// A version 3 stream, which says nothing of itself, may not be put on what is incomplete.
pub fn admit_anonymous(
    record: Option<&Record>,
    called: Called<'_>,
    policy: Policy,
) -> Result<(), Refusal> {
    let is_anonymous = |cut: &Incomplete| cut.source == ANONYMOUS;
    record.map_or(Ok(()), |record| refuse_merging(record, called))?;
    match record {
        // Nothing else can finish what such a stream began.
        Some(record) if record.incomplete.as_ref().is_some_and(is_anonymous) => Ok(()),
        Some(record) if record.incomplete.is_some() => {
            forced_or(policy, incomplete_reason(record), || {
                ways_out(record, called)
            })
            .map(|_| ())
        }
        _ if policy.require_record && !policy.force => Err(Refusal {
            reason: "a PROTO[3] stream names no base, and --require-record asks for one".to_owned(),
            way_out: String::new(),
        }),
        _ => Ok(()),
    }
}

/// What is written before LVM has merged would be overwritten by that, whatever it is, and whoever insists.
fn refuse_merging(record: &Record, called: Called<'_>) -> Result<(), Refusal> {
    match record.incomplete.as_ref() {
        Some(cut) if cut.source == MERGE => Err(Refusal {
            reason: incomplete_reason(record),
            way_out: ways_out(record, called),
        }),
        _ => Ok(()),
    }
}

/// What stands in the way of using a volume with this record as a source or as a base.
pub fn refuse_as_source(record: &Record, called: Called<'_>) -> Option<Refusal> {
    record.incomplete.as_ref().map(|cut| {
        // Into it: the sync that was asked for, if one was, is the one from it, and refused just now.
        let source = copied_volume(cut).unwrap_or("NEW");
        let into = called.caller.command("sync", &[source, called.name]);
        Refusal {
            reason: incomplete_reason(record),
            way_out: ways_out_by(record, called, &format!("{into}\n")),
        }
    })
}

/// The logical volume of this machine that was being copied, by a name that means the same wherever the user is.
fn copied_volume(cut: &Incomplete) -> Option<&str> {
    let state = cut.target.as_ref()?;
    let is_here = cut.from.is_empty() && cut.source != Source::Undo.word();
    (is_here && state.id.starts_with("lvm:") && state.name.contains('/')).then_some(&state.name)
}

fn to_incomplete(
    record: &Record,
    header: &Header,
    stream: &StreamId,
    called: Called<'_>,
    policy: Policy,
) -> Result<Admission, Refusal> {
    let Some(cut) = &record.incomplete else {
        return Ok(Admission::Fresh { remark: None });
    };
    if cut.stream.as_ref() == Some(stream) {
        if (record.forced || !cut.is_proven)
            && let Some(refusal) = refuse_other_list(record, header, called)
        {
            return Err(refusal);
        }
        let offset = cut.durable_offset;
        return Ok(Admission::Resume { offset });
    }
    if cut.stream.as_ref().is_some_and(|cut| header.undoes(cut)) {
        let saved = header.undo_for.as_ref();
        if saved.is_some_and(|saved| *saved != record.identity) && !policy.force {
            return Err(Refusal {
                reason: "this undo holds what another destination held, where the same delta was cut elsewhere"
                    .to_owned(),
                way_out: ways_out(record, called),
            });
        }
        let (leads_to, held) = (header.target.as_ref(), record.holds.as_ref());
        let is_kept = record.way_back().1 == Some(stream);
        // What was made of several leads further back, from the same state.
        let is_further = header.is_combined()
            && !record.forced
            && cut.base.as_ref().map(|base| &base.id) == held.map(|held| &held.id)
            && header.base.is_some()
            && header.base.as_ref().map(|base| &base.id) == cut.target.as_ref().map(|to| &to.id);
        // The run was a repetition, and held its target when it began.
        let is_base = record.stream == cut.stream
            && !record.forced
            && leads_to.map(|to| &to.id) == cut.base.as_ref().map(|base| &base.id);
        if !is_kept
            && !is_further
            && !is_base
            && leads_to
                .zip(held)
                .is_some_and(|(to, held)| to.id != held.id)
        {
            let reason = format!(
                "{}; this undo, which that run did not keep, leads to {}, and not to what it held: {}",
                incomplete_reason(record),
                shown(leads_to),
                shown(held)
            );
            return forced_or(policy, reason, || ways_out(record, called));
        }
        return Ok(Admission::UndoUnfinished);
    }
    if header.is_full_copy() {
        return Ok(Admission::Fresh {
            remark: Some("was on record as incomplete; a full copy replaces everything".to_owned()),
        });
    }
    if is_later_list(header, cut) {
        let Some(undo) = cut.undo.as_deref() else {
            return Ok(Admission::Fresh {
                remark: Some(
                    "a run from the same state was cut; what is sent may have changed since, so this one begins anew"
                        .to_owned(),
                ),
            });
        };
        let (why, next) = match header.source {
            Source::Era => (
                "the volume was written to, and its list is another one now",
                "",
            ),
            _ => (
                "it is no snapshot, or one that can be written to, or could be, and was activated anew",
                " The next one, if it is read-only (lvcreate -s -pr), goes on where it was cut.",
            ),
        };
        let reason = format!(
            "{}. What is sent may have changed since: {why}",
            incomplete_reason(record)
        );
        return forced_or(policy, reason, || {
            format!("{}{next}", back_or_equal(called, undo))
        });
    }
    forced_or(policy, incomplete_reason(record), || {
        ways_out(record, called)
    })
}

fn is_of_origin(run: &Option<String>) -> bool {
    run.as_deref()
        .is_some_and(|run| run.starts_with(ORIGIN_RUN))
}

/// It comes from the same snapshots as what was cut, or from the same one and its origin, or lists what was written since the
/// same era of the same record. Tables and records only grow, so that its list holds every block that the other one had. That
/// one was made of several deltas says nothing of when they were read.
fn is_later_list(header: &Header, cut: &Incomplete) -> bool {
    let id = |state: &Option<State>| state.as_ref().map(|state| state.id.clone());
    let is_same = match header.source {
        Source::Cow => {
            id(&header.target) == id(&cut.target)
                && (header.target.is_some()
                    || (is_of_origin(&header.run) && is_of_origin(&cut.run)))
        }
        // The base names the record; the target is another with every run.
        Source::Era => true,
        _ => false,
    };
    is_same
        && !header.is_combined()
        && cut.source == header.source.word()
        && header.base.is_some()
        && id(&header.base) == id(&cut.base)
        // A stored one may be older.
        && header.created >= cut.created
}

/// The refusal of a run that was cut, keeps an undo, and comes again with another list, on what is not known to be its base.
/// What only one list has is the same in base and target, so that on the base nothing is lost if the undo has not saved it;
/// on anything else it would be. `None` for a run that is no such one.
pub fn refuse_other_list(record: &Record, header: &Header, called: Called<'_>) -> Option<Refusal> {
    let cut = record.incomplete.as_ref()?;
    let undo = record.way_back().0?;
    if header.is_full_copy() || cut.list == header.list {
        return None;
    }
    Some(Refusal {
        reason: format!(
            "{}, {}, and its list is another one now: its undo would not lead back",
            incomplete_reason(record),
            why_unproven(record.forced)
        ),
        way_out: back_or_equal(called, undo),
    })
}

fn back_or_equal(called: Called<'_>, undo: &str) -> String {
    format!(
        "Take it back first: {} Or, where that undo is gone, make it equal: lvmsync sync NEW DEST.",
        called.take_back(undo)
    )
}

fn why_unproven(forced: bool) -> &'static str {
    match forced {
        true => "forced onto another state than its base",
        false => "with nothing on record to say that it began from its base",
    }
}

fn unknown(header: &Header, policy: Policy, why: &str) -> Result<Admission, Refusal> {
    if header.is_full_copy() {
        return Ok(Admission::Fresh { remark: None });
    }
    if policy.require_record && !policy.force {
        return Err(Refusal {
            reason: format!("{why}, and --require-record asks for one"),
            way_out: "Tell what it holds with lvmsync state adopt, or make it equal: lvmsync sync NEW DEST.".to_owned(),
        });
    }
    Ok(Admission::Fresh {
        remark: Some(format!(
            "{why}: that it is the base rests on the sampled blocks alone"
        )),
    })
}

fn forced_or(
    policy: Policy,
    reason: String,
    way_out: impl FnOnce() -> String,
) -> Result<Admission, Refusal> {
    if policy.force {
        let remark =
            format!("{reason}; applied all the same, as --force asks: the result is neither state");
        return Ok(Admission::Forced {
            remark: remark.replace(". Nothing was written", ""),
        });
    }
    Err(Refusal {
        reason,
        way_out: way_out(),
    })
}

fn same_id(record: &Record, state: Option<&State>) -> bool {
    match (&record.holds, state) {
        (Some(held), Some(state)) => held.id == state.id,
        _ => false,
    }
}

fn incomplete_reason(record: &Record) -> String {
    let Some(cut) = &record.incomplete else {
        return String::new();
    };
    let from = if cut.from.is_empty() {
        String::new()
    } else {
        format!(" from {}", cut.from)
    };
    if cut.source == MERGE {
        return format!(
            "on record as incomplete: since {} LVM merges {} into it, on the way from {} to {}",
            super::keeper::shown_time(cut.since),
            cut.from,
            shown(cut.base.as_ref().or(record.holds.as_ref())),
            shown(cut.target.as_ref())
        );
    }
    format!(
        "on record as incomplete: a write{from} that began {} was cut on the way from {} to {}",
        super::keeper::shown_time(cut.since),
        shown(cut.base.as_ref().or(record.holds.as_ref())),
        shown(cut.target.as_ref())
    )
}

fn ways_out(record: &Record, called: Called<'_>) -> String {
    ways_out_by(record, called, "lvmsync sync NEW DEST. ")
}

/// `sync` makes it equal to what it may be a copy of.
fn ways_out_by(record: &Record, called: Called<'_>, sync: &str) -> String {
    let undo = record.way_back().0;
    if (record.incomplete.as_ref()).is_some_and(|cut| cut.source == MERGE) {
        let commit = called.caller.command("apply", &["--commit", called.name]);
        return format!("Finish it: {commit}");
    }
    let finish = "Finish it: run the command that was cut again, it goes on where it was.";
    if let Some(whole) = first_copy_in(record, called.name) {
        return format!(
            "{finish} It is the beginning of a first copy that will be called {whole}; if that is not wanted any more, \
             remove it: rm {}",
            word(called.name)
        );
    }
    match undo {
        Some(undo) => format!("{finish} Or take it back: {}", called.take_back(undo)),
        None => format!(
            "{finish} It kept no undo; comparing also mends it: {sync}If you know what it holds: {}",
            called.command("state adopt --force", &["STATE"])
        ),
    }
}

/// The name that a first copy gets which is called `NAME.partial` until it is whole.
fn first_copy_in<'a>(record: &Record, name: &'a str) -> Option<&'a str> {
    let whole = name.strip_suffix(PARTIAL_SUFFIX)?;
    let last = |name: &str| Path::new(name).file_name().map(ToOwned::to_owned);
    let is_first = record
        .incomplete
        .as_ref()
        .is_some_and(|cut| cut.source == Source::Full.word() && cut.old_size_bytes == 0);
    (is_first && last(whole) == last(&record.name)).then_some(whole)
}

#[cfg(test)]
mod tests;
