//! Findings on what lvmsync keeps on this machine: its directory, the records in it, what killed runs left.
//!
//! Guarantees: pure; a record that says nothing is a problem, one of a cut write a warning with both ways out,
//! and one of a destination that is gone a note. Whether a destination is gone is never guessed.

use super::facts::{
    HeldFacts, HeldKind, Looked, Partial, Place, Presence, RecordFacts, Records, Undo, Unusable,
};
use super::{Check, word};
use crate::hold::temporary::remove_command;
use crate::record::admission::{Called, refuse_as_source};
use crate::record::keeper::shown_time;
use crate::record::{MERGE, PreviewOf, Record, RecordError};
use crate::units::{Bytes, count};

const DIRECTORY: &str = "state.directory";
const RECORD: &str = "state.record";
const PARTIAL: &str = "state.partial";
const SPOOL: &str = "state.spool";
const HELD: &str = "state.held";

/// What the facts mean; of states that are shown, see [`super::views`].
pub(super) fn findings(facts: &Records, root: bool) -> Vec<Check> {
    let mut checks = vec![directory(facts, root)];
    match &facts.records {
        None => {}
        Some(Err(reason)) => checks.push(Check::note(
            RECORD,
            format!("records not looked at: {reason}"),
        )),
        Some(Ok(records)) => {
            checks.extend(summary(records));
            let option = state_dir_option(facts);
            checks.extend(
                records
                    .iter()
                    .filter_map(|record| of_record(record, &option)),
            );
        }
    }
    checks.extend(facts.partials.iter().filter_map(partial));
    checks.extend(facts.spools.iter().filter_map(spool));
    checks.extend(facts.held.iter().filter_map(held));
    checks
}

/// What a run held when it was killed: the next one gives it back, and nothing is broken meanwhile.
fn held(facts: &HeldFacts) -> Option<Check> {
    let name = &facts.held.name;
    if facts.busy {
        return None;
    }
    if let HeldKind::Snapshot(found) = &facts.kind {
        return Some(snapshot(name, found));
    }
    let of = match facts.kind {
        HeldKind::Pool => Some(("pool", "of a volume in that pool")),
        HeldKind::Era => Some(("era device", "since an era of that volume")),
        _ => None,
    };
    if let Some((noun, which)) = of {
        let found = match facts.held.root {
            Some(root) => format!(
                "{name}: a run of lvmsync was killed while it read this {noun}'s metadata snapshot (block {root})"
            ),
            None => format!(
                "{name}: a run of lvmsync was killed while it asked for this {noun}'s metadata snapshot; if one is held, \
                 it may be that run's"
            ),
        };
        let way_out =
            format!("The next lvmsync diff or send {which} releases it, if it is lvmsync's");
        return Some(Check::warning(HELD, found).way_out(way_out));
    }
    if !facts.this_boot {
        return None;
    }
    let found = format!(
        "{name}: active only because a run of lvmsync that read it was killed, or could not deactivate it"
    );
    Some(Check::warning(HELD, found).way_out(format!("lvchange -an {}", word(name))))
}

/// A snapshot that was made to be read, and was not removed.
fn snapshot(name: &str, found: &Looked<bool>) -> Check {
    match found {
        Ok(true) => {
            let found = format!(
                "{name}: a temporary snapshot that a run of lvmsync has left, which was killed; it takes room and slows \
                 down writes, and the next lvmsync sync removes it"
            );
            Check::warning(HELD, found).way_out(remove_command(name))
        }
        Ok(false) => Check::note(
            HELD,
            format!(
                "{name}: on record as a temporary snapshot, and gone, or somebody's own by now; the next lvmsync sync \
                 forgets it"
            ),
        ),
        Err(reason) => Check::note(
            HELD,
            format!("{name}: on record as a temporary snapshot; not looked at: {reason}"),
        ),
    }
}

/// What a command needs to find the same directory.
pub(super) fn state_dir_option(facts: &Records) -> String {
    if facts.named {
        format!(" --state-dir {}", word(&facts.directory))
    } else {
        String::new()
    }
}

fn directory(facts: &Records, root: bool) -> Check {
    let directory = &facts.directory;
    let another = "Name another directory with --state-dir.";
    match &facts.place {
        Place::Writable => Check::ok(DIRECTORY, format!("{directory}: can be written")),
        Place::CanBeMade => Check::ok(
            DIRECTORY,
            format!("{directory}: not there yet; the first run that writes makes it"),
        ),
        Place::NotADirectory(path) => Check::problem(
            DIRECTORY,
            format!("{directory}: {path} is no directory, so no destination can be written"),
        )
        .way_out(format!("mv {0} {0}.old", word(path))),
        Place::NotWritable(path, reason) => Check::problem(
            DIRECTORY,
            format!(
                "{directory}: records cannot be kept, so no destination can be written: {path}: {reason}"
            ),
        )
        .way_out(if root {
            another.to_owned()
        } else {
            format!("Run lvmsync as root (sudo lvmsync doctor). Or: {another}")
        }),
    }
}

fn summary(records: &[RecordFacts]) -> Option<Check> {
    let usable = records.iter().filter(|facts| facts.content.is_ok());
    let unknown = records
        .iter()
        .filter(|facts| facts.content.is_ok() && facts.destination == Presence::Unknown);
    let (usable, unknown) = (usable.count() as u64, unknown.count() as u64);
    if usable == 0 {
        return None;
    }
    let mut found = format!("{} on record", count(usable, "destination"));
    if unknown > 0 {
        found.push_str(&format!(
            "; whether {unknown} of them are there cannot be told from here"
        ));
    }
    Some(Check::ok(RECORD, found))
}

fn of_record(facts: &RecordFacts, option: &str) -> Option<Check> {
    match &facts.content {
        Err(unusable) => Some(damaged(&facts.file, unusable, option)),
        Ok(record) => of_usable(facts, record, option),
    }
}

fn damaged(file: &str, unusable: &Unusable, option: &str) -> Check {
    match unusable {
        Unusable::Unread(reason) => Check::note(RECORD, format!("{file}: not looked at: {reason}")),
        Unusable::Damaged(error @ RecordError::Version(_), _) => Check::problem(
            RECORD,
            format!("{file}: this record cannot be used: {error}"),
        )
        .way_out("Install the lvmsync that wrote it, or a newer one."),
        Unusable::Damaged(error, identity) => {
            let check = Check::problem(
                RECORD,
                format!(
                    "{file}: this record is damaged, and its destination is refused until it is forgotten: {error}"
                ),
            );
            check.way_out(match identity {
                Some(identity) => format!("lvmsync state forget {}{option}", word(identity)),
                None => format!("rm {}", word(file)),
            })
        }
    }
}

fn of_usable(facts: &RecordFacts, record: &Record, option: &str) -> Option<Check> {
    let name = &record.name;
    let forget = || format!("lvmsync state forget {}{option}", word(&record.identity));
    match facts.destination {
        Presence::Gone => {
            let found = format!("{name}: on record, and gone");
            return Some(Check::note(RECORD, found).way_out(forget()));
        }
        Presence::Replaced => {
            let found = format!("{name}: on record, and gone; something else has that name now");
            return Some(Check::note(RECORD, found).way_out(forget()));
        }
        Presence::Here | Presence::Unknown => {}
    }
    if let Some(of) = &record.preview_of {
        return preview(facts, record, of, option);
    }
    let refusal = refuse_as_source(record, Called::here(name))?;
    if (record.incomplete.as_ref()).is_some_and(|cut| cut.source == MERGE) {
        let commit = format!("lvmsync apply --commit {}{option}", word(name));
        let found = format!("{name}: {}", refusal.reason);
        return Some(Check::warning(RECORD, found).way_out(commit));
    }
    if facts.busy {
        let found = format!("{name}: a write to it is under way");
        return Some(Check::note(RECORD, found));
    }
    let mut found = format!("{name}: {}", refusal.reason);
    let undo = record.incomplete.as_ref()?.undo.as_deref();
    let finish = "Finish it: run the command that was cut again. Or";
    let way_out = match (undo, facts.undo) {
        (Some(undo), Some(Undo::Gone)) => {
            found.push_str(&format!(
                "; its undo is gone: neither {undo} nor {undo}.partial is there"
            ));
            format!("{finish} make it equal: lvmsync sync NEW {}", word(name))
        }
        (Some(undo), _) => {
            format!(
                "{finish} take it back: lvmsync apply {} {}{option}",
                word(undo),
                word(name)
            )
        }
        (None, _) => {
            found.push_str("; it kept no undo");
            format!("{finish} make it equal: lvmsync sync NEW {}", word(name))
        }
    };
    Some(Check::warning(RECORD, found).way_out(way_out))
}

/// It is somebody's if it is whole, and else of no use.
fn preview(facts: &RecordFacts, record: &Record, of: &PreviewOf, option: &str) -> Option<Check> {
    let (name, volume) = (&record.name, word(&of.name));
    let discard = format!("lvmsync apply --discard {volume}{option}");
    if of.is_whole {
        let found = format!(
            "{name}: a preview of {}, made {}; it takes room, and slows down writes to the volume",
            of.name,
            shown_time(record.since)
        );
        let way_out = format!("lvmsync apply --commit {volume}{option}, or: {discard}");
        return Some(Check::note(RECORD, found).way_out(way_out));
    }
    if facts.busy {
        return None;
    }
    let found = format!(
        "{name}: half a preview of {}, left by a run that was killed",
        of.name
    );
    Some(Check::warning(RECORD, found).way_out(discard))
}

fn partial(partial: &Partial) -> Option<Check> {
    if partial.busy {
        return None;
    }
    let found = format!(
        "{}: left by a run that was killed while it wrote a record; harmless, the next one takes it over",
        partial.path
    );
    Some(Check::note(PARTIAL, found).way_out(format!("rm {}", word(&partial.path))))
}

fn spool(spool: &Partial) -> Option<Check> {
    if spool.busy {
        return None;
    }
    let found = format!(
        "{}: {} of a delta whose connection was lost, kept for --atomic; the same command sends the rest, and if that \
         is not to be, it only takes room",
        spool.path,
        Bytes(spool.bytes)
    );
    Some(Check::note(SPOOL, found).way_out(format!("rm {}", word(&spool.path))))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::record::Incomplete;

    fn record(incomplete: Option<Option<&str>>) -> RecordFacts {
        let cut = |undo: Option<&str>| Incomplete {
            undo: undo.map(str::to_owned),
            ..Incomplete::default()
        };
        RecordFacts {
            file: "/s/destinations/x.state".into(),
            content: Ok(Record {
                identity: "lvm:abc".into(),
                name: "vg/copy".into(),
                incomplete: incomplete.map(cut),
                ..Record::default()
            }),
            destination: Presence::Here,
            busy: false,
            undo: None,
        }
    }

    fn facts(records: Vec<RecordFacts>) -> Records {
        Records {
            directory: "/s".into(),
            records: Some(Ok(records)),
            ..Records::default()
        }
    }

    /// The findings on one record.
    fn found(record: RecordFacts) -> Vec<Check> {
        let all = findings(&facts(vec![record]), true);
        let bad = |check: &Check| check.id == RECORD && check.status != Status::Ok;
        all.into_iter().filter(bad).collect()
    }

    #[test]
    fn a_place_for_records_is_needed() {
        let with = |place| {
            let facts = Records {
                directory: "/s".into(),
                place,
                ..Records::default()
            };
            findings(&facts, false).remove(0)
        };
        assert_eq!(with(Place::Writable).status, Status::Ok);
        assert_eq!(with(Place::CanBeMade).status, Status::Ok);
        let file = with(Place::NotADirectory("/s".into()));
        assert_eq!(file.way_out.as_deref(), Some("mv /s /s.old"));
        let closed = with(Place::NotWritable("/".into(), "Permission denied".into()));
        assert_eq!(closed.status, Status::Problem);
        assert!(closed.found.contains("/: Permission denied"), "{closed:?}");
        assert!(closed.way_out.unwrap().contains("--state-dir"));
    }

    #[test]
    fn complete_records_of_what_is_here_are_only_counted() {
        let checks = findings(&facts(vec![record(None), record(None)]), true);
        assert_eq!(checks.len(), 2);
        assert_eq!(checks[1].found, "2 destinations on record");
        let mut unknown = record(None);
        unknown.destination = Presence::Unknown;
        let checks = findings(&facts(vec![unknown]), true);
        assert!(checks[1].found.contains("cannot be told"), "{checks:?}");
    }

    #[test]
    fn a_preview_is_shown_with_what_ends_it() {
        let with = |change: &dyn Fn(&mut Record)| {
            let mut facts = record(None);
            change(facts.content.as_mut().unwrap());
            let check = found(facts).remove(0);
            (check.status, check.found, check.way_out.unwrap())
        };
        let preview = |is_whole| PreviewOf {
            name: "vg/copy".into(),
            is_whole,
            ..PreviewOf::default()
        };
        let (status, said, way_out) = with(&|record| record.preview_of = Some(preview(true)));
        assert!(status == Status::Note && said.contains("a preview of vg/copy"));
        let both = "lvmsync apply --commit vg/copy, or: lvmsync apply --discard vg/copy";
        assert_eq!(way_out, both);
        let (status, said, way_out) = with(&|record| {
            record.preview_of = Some(preview(false));
            record.incomplete = Some(Incomplete::default());
        });
        assert!(status == Status::Warning && said.contains("half a preview"));
        assert_eq!(way_out, "lvmsync apply --discard vg/copy");
        let (status, said, way_out) = with(&|record| {
            record.incomplete = Some(Incomplete {
                source: MERGE.to_owned(),
                from: "vg/copy-preview".into(),
                ..Incomplete::default()
            });
        });
        assert!(status == Status::Warning && said.contains("LVM merges vg/copy-preview"));
        assert_eq!(way_out, "lvmsync apply --commit vg/copy");
    }

    #[test]
    fn an_incomplete_destination_has_two_ways_out() {
        let mut cut = record(Some(Some("/u/back")));
        cut.undo = Some(Undo::Partial);
        let check = found(cut.clone()).remove(0);
        assert_eq!(check.status, Status::Warning);
        assert!(check.found.contains("vg/copy: on record as incomplete"));
        let way_out = check.way_out.unwrap();
        assert!(way_out.contains("run the command that was cut again"));
        assert!(
            way_out.ends_with("lvmsync apply /u/back vg/copy"),
            "{way_out}"
        );

        cut.undo = Some(Undo::Gone);
        let check = found(cut.clone()).remove(0);
        assert!(check.found.contains("its undo is gone"), "{check:?}");
        assert!(check.way_out.unwrap().ends_with("sync NEW vg/copy"));

        let check = found(record(Some(None))).remove(0);
        assert!(check.found.contains("kept no undo"), "{check:?}");

        cut.busy = true;
        let check = found(cut).remove(0);
        assert!(check.status == Status::Note && check.found.contains("under way"));
    }

    #[test]
    fn records_of_what_is_gone_are_notes() {
        for presence in [Presence::Gone, Presence::Replaced] {
            // Cut or not: nothing is left to be mended.
            let mut gone = record(Some(None));
            gone.destination = presence;
            let check = found(gone).remove(0);
            assert_eq!(check.status, Status::Note);
            assert_eq!(
                check.way_out.as_deref(),
                Some("lvmsync state forget lvm:abc")
            );
        }
    }

    #[test]
    fn damaged_records_are_problems_that_can_be_forgotten() {
        let damaged = |error, identity: Option<&str>| RecordFacts {
            content: Err(Unusable::Damaged(error, identity.map(str::to_owned))),
            ..record(None)
        };
        let check = found(damaged(RecordError::NotARecord, Some("file:7:1.2"))).remove(0);
        assert_eq!(check.status, Status::Problem);
        assert_eq!(
            check.way_out.as_deref(),
            Some("lvmsync state forget file:7:1.2")
        );
        let check = found(damaged(RecordError::NotARecord, None)).remove(0);
        assert_eq!(check.way_out.as_deref(), Some("rm /s/destinations/x.state"));
        let check = found(damaged(RecordError::Version(2), None)).remove(0);
        assert!(check.way_out.unwrap().contains("newer"));
        let named = Records {
            named: true,
            directory: "/my state".into(),
            ..facts(vec![damaged(RecordError::NotARecord, Some("x"))])
        };
        let check = findings(&named, true).pop().unwrap();
        assert!(
            check
                .way_out
                .unwrap()
                .ends_with("forget x --state-dir '/my state'")
        );
        let unread = RecordFacts {
            content: Err(Unusable::Unread("Permission denied".into())),
            ..record(None)
        };
        assert_eq!(found(unread)[0].status, Status::Note);
    }

    #[test]
    fn what_a_killed_run_held_is_told_with_who_gives_it_back() {
        let held = |kind, root, busy, this_boot| HeldFacts {
            held: crate::hold::record::Held {
                name: "vg/x".into(),
                root,
                ..Default::default()
            },
            kind,
            busy,
            this_boot,
        };
        let check = |facts: HeldFacts| super::held(&facts);
        let pool = || HeldKind::Pool;
        assert!(check(held(pool(), Some(7), true, true)).is_none());
        let left = check(held(pool(), Some(7), false, false)).unwrap();
        assert!(
            left.found
                .contains("this pool's metadata snapshot (block 7)"),
            "{}",
            left.found
        );
        let era = check(held(HeldKind::Era, Some(7), false, false)).unwrap();
        assert!(
            era.found.contains("this era device's metadata snapshot"),
            "{}",
            era.found
        );
        assert!(era.way_out.unwrap().contains("since an era of that volume"));
        assert!(check(held(HeldKind::Era, Some(7), true, true)).is_none());
        let asked = check(held(pool(), None, false, true)).unwrap();
        assert!(asked.found.contains("may be that run's"), "{}", asked.found);
        let active = check(held(HeldKind::Volume, None, false, true)).unwrap();
        assert_eq!(active.way_out.as_deref(), Some("lvchange -an vg/x"));
        assert!(check(held(HeldKind::Volume, None, false, false)).is_none());
        let snapshot =
            |found: Looked<bool>, busy| check(held(HeldKind::Snapshot(found), None, busy, false));
        let left = snapshot(Ok(true), false).unwrap();
        assert_eq!(left.way_out.as_deref(), Some("lvremove -y vg/x"));
        for found in [Ok(false), Err("no lvm".to_owned())] {
            let check = snapshot(found, false).unwrap();
            assert!(check.status == Status::Note && check.way_out.is_none());
        }
        assert!(snapshot(Ok(true), true).is_none());
    }

    #[test]
    fn what_a_killed_run_left_is_told_and_what_is_being_written_is_not() {
        let left = |busy| Records {
            partials: vec![Partial {
                path: "/s/destinations/x.state.partial".into(),
                bytes: 1,
                busy,
            }],
            ..facts(vec![])
        };
        let checks = findings(&left(false), true);
        let check = checks.last().unwrap();
        assert_eq!((check.id, check.status), (PARTIAL, Status::Note));
        assert_eq!(findings(&left(true), true).len(), 1);
    }
}
