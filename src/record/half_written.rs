//! Is a volume that is to be read half-written, itself or in what it consists of?
//!
//! Guarantees: nothing is opened but records; what is on record as incomplete is found under every name and layer that
//! leads to its data: a loop device shows its file, a partition is a part of its disk, and a mapped device lies on
//! what is below it; and the other way round, a volume, file or disk holds what was written through a loop device, into
//! a partition, or through whatever was mapped to it (LUKS, for one), even if that is closed by now.

use std::path::Path;

use super::Record;
use super::admission::{Called, Refusal, refuse_as_source};
use super::identity;
use super::keeper::shown_time;
use super::store::{StateDir, read};
use crate::dm::resolve::Resolved;
use crate::dm::snapshot::LogicalVolume;
use crate::error::{Error, Result, SYNC};
use crate::partial_file::partial_name;

/// Refuses a volume that cannot be a source or a base.
pub fn refuse(state: &StateDir, resolved: &Resolved, called: Called<'_>) -> Result<()> {
    let mut identities = vec![identity::of_resolved(resolved)];
    identities.extend(identity::with_below(resolved.path()));
    refuse_any(state, &identities, called)
}

/// The same for the logical volume with this UUID, which need not be active.
pub fn refuse_logical_volume(state: &StateDir, uuid: &str, called: Called<'_>) -> Result<()> {
    let identity = identity::of_logical_volume(uuid);
    refuse_any(state, &[identity], called)
}

/// The same for what is at `path`.
pub fn refuse_path(state: &StateDir, path: &Path, called: Called<'_>) -> Result<()> {
    refuse_any(state, &identity::with_below(path), called)
}

fn refuse_any(state: &StateDir, identities: &[String], called: Called<'_>) -> Result<()> {
    match find(state, identities, called)? {
        Some(refusal) => Err(Error::refused(called.name, refusal.reason, refusal.way_out)),
        None => Ok(()),
    }
}

/// What there is to say of the origin of a snapshot, which may have been made before its origin was written, or in the
/// middle: nobody can tell.
pub fn origin_of(state: &StateDir, volume: &LogicalVolume) -> Result<Option<String>> {
    let Ok(snapshot) = volume.thick_snapshot() else {
        return Ok(None);
    };
    let file = state.file_of(&identity::of_logical_volume(&snapshot.origin.uuid));
    let cut = file.load()?.and_then(|record| record.incomplete);
    Ok(cut.map(|cut| {
        format!(
            "{}: its origin {} is on record as incomplete since {}: a snapshot that was made after that holds \
             neither its old state nor its new one",
            volume.name,
            snapshot.origin.name,
            shown_time(cut.since)
        )
    }))
}

/// What is said to who only wants to know what a volume holds.
pub fn remark(state: &StateDir, path: &Path, called: Called<'_>) -> Result<Option<String>> {
    let found = find(state, &identity::with_below(path), called)?;
    Ok(found.map(|refusal| {
        format!(
            "{}: {}. What is compared is neither its old state nor its new one. {}",
            called.name, refusal.reason, refusal.way_out
        )
    }))
}

/// What there is in place of the file `called`, which is not there: the beginning of a copy that was cut.
pub fn instead_of(state: &StateDir, called: Called<'_>) -> Result<Option<Refusal>> {
    let partial = partial_name(Path::new(called.name));
    if !partial.is_file() {
        return Ok(None);
    }
    let (partial, name) = (partial.as_path(), partial.display().to_string());
    let beginning = Called {
        name: &name,
        ..called
    };
    let found = find_from(state, &[identity::of_path(partial)], 0, beginning)?;
    Ok(found.map(|refusal| Refusal {
        reason: format!(
            "it is not whole yet: {name} is there, half-written, and {}",
            refusal.reason
        ),
        way_out: format!("Finish it: {SYNC}\nTo compare it as it is, name {name}."),
    }))
}

/// What stands in the way of writing to a volume, under whatever name that is on record; its own record is not looked at.
pub fn elsewhere(state: &StateDir, path: &Path, called: Called<'_>) -> Result<Option<Refusal>> {
    find_from(state, &identity::with_below(path), 1, called)
}

fn find(state: &StateDir, identities: &[String], called: Called<'_>) -> Result<Option<Refusal>> {
    find_from(state, identities, 0, called)
}

/// The first of `identities` is that of the volume; the first `known` are not looked for.
fn find_from(
    state: &StateDir,
    identities: &[String],
    known: usize,
    called: Called<'_>,
) -> Result<Option<Refusal>> {
    let Some(own) = identities.first() else {
        return Ok(None);
    };
    for known_as in identities.iter().skip(known) {
        let Some(record) = state.file_of(known_as).load()? else {
            continue;
        };
        let name = if known_as == own {
            called.name
        } else {
            &record.name
        };
        if let Some(refusal) = refuse_as_source(&record, Called { name, ..called }) {
            return Ok(Some(if known_as == own {
                refusal
            } else {
                of_part(&record, "lies on", &refusal, called)
            }));
        }
    }
    for path in state.all()? {
        // One that cannot be read is refused when it is its own destination that is used.
        let Ok(Some(record)) = read(&path) else {
            continue;
        };
        let is_part = |whole: &String| identity::is_part(&record.identity, whole);
        // Of what others lie on it says nothing of itself: they share the pool or the disk, and not the data.
        let lies_on_it = record.lies_on.contains(own);
        if (lies_on_it || identities.iter().any(is_part))
            && !identity::is_beside(&record.identity, identities)
            && let Some(refusal) = refuse_as_source(
                &record,
                Called {
                    name: &record.name,
                    ..called
                },
            )
        {
            return Ok(Some(of_part(
                &record,
                "shares its data with",
                &refusal,
                called,
            )));
        }
    }
    Ok(None)
}

fn of_part(other: &Record, how: &str, refusal: &Refusal, called: Called<'_>) -> Refusal {
    let name = &other.name;
    let forget = called.caller.command("state forget", &[name]);
    Refusal {
        reason: format!("it {how} {name}, which is {}", refusal.reason),
        way_out: format!(
            "{}\nOr, if {name} is there no more and what it held is of no use: {forget}",
            refusal.way_out
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Incomplete;

    #[test]
    fn what_is_half_written_below_or_within_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(directory.path()));
        let put = |identity: &str, name: &str, incomplete: bool| {
            let record = Record {
                identity: identity.to_owned(),
                name: name.to_owned(),
                incomplete: incomplete.then(Incomplete::default),
                ..Record::default()
            };
            state.file_of(identity).save(&record).unwrap();
        };
        put("file:7:1.0", "disk.img", true);
        put("disk:serial:a:start=2048", "/dev/vda1", true);
        put("disk:serial:b", "/dev/vdb", false);
        let upper = Record {
            identity: "dm:CRYPT-LUKS2-x".to_owned(),
            name: "/dev/mapper/secret".to_owned(),
            lies_on: vec!["lvm:below".to_owned(), "disk:serial:c".to_owned()],
            incomplete: Some(Incomplete::default()),
            ..Record::default()
        };
        state.file_of(&upper.identity).save(&upper).unwrap();
        let reason = |identities: &[&str]| {
            let identities: Vec<String> = identities.iter().map(|&id| id.to_owned()).collect();
            find(&state, &identities, Called::here("x"))
                .unwrap()
                .map(|refusal| refusal.reason)
        };
        let said = reason(&["file:7:1.0:offset=0", "file:7:1.0"]).unwrap();
        assert!(
            said.starts_with("it lies on disk.img, which is on record as incomplete"),
            "{said}"
        );
        let said = reason(&["disk:serial:a"]).unwrap();
        assert!(
            said.starts_with("it shares its data with /dev/vda1"),
            "{said}"
        );
        assert!(
            reason(&["file:7:1.0"])
                .unwrap()
                .starts_with("on record as incomplete")
        );
        // Another partition of the same disk, below a volume on it or not, is none of its data; a piece of its own is.
        let beside = |start: u64| format!("disk:serial:a:start={start}");
        let (own, mine) = (beside(20_480), beside(2048));
        assert_eq!(reason(&["lvm:x", &own, "disk:serial:a"]), None);
        assert_eq!(reason(&[&own, "disk:serial:a"]), None);
        assert!(reason(&["lvm:x", &own, "disk:serial:a", &mine]).is_some());
        put(&format!("{own}:start=8"), "/dev/mapper/nested", true);
        assert!(reason(&["lvm:x", &own, "disk:serial:a"]).is_some());
        // What was written through a mapped device is in all that it lies on, and in none of its neighbours.
        for below in ["lvm:below", "disk:serial:c"] {
            let said = reason(&[below]).unwrap();
            assert!(
                said.starts_with("it shares its data with /dev/mapper/secret"),
                "{said}"
            );
        }
        assert_eq!(reason(&["lvm:beside", "disk:serial:c"]), None);
        for other in [
            "disk:serial:b",
            "disk:serial:aa",
            "file:7:1.00",
            "file:7:1.0x:offset=0",
        ] {
            assert_eq!(reason(&[other]), None, "{other}");
        }
    }
}
