//! Findings on states that are shown as devices, and on what is left of those that were.
//!
//! Guarantees: pure; whatever is on record is named, with the command that removes all of it.

use super::facts::{Device, Kind, Looked, Records, ViewFacts};
use super::records::state_dir_option;
use super::{Check, word};
use crate::dm::name::LvName;
use crate::hold::temporary::remove_command;
use crate::record::keeper::shown_time;

const VIEW: &str = "state.view";
const STRAY: &str = "state.stray";

/// What the facts mean. `lost` are the snapshots of which [`is_lost_below`] holds.
pub(super) fn findings(facts: &Records, lost: &[Device]) -> Vec<Check> {
    let option = state_dir_option(facts);
    let views = facts.views.iter();
    let mut checks: Vec<Check> = views
        .filter_map(|view| finding(view, lost, &option))
        .collect();
    checks.extend(facts.stray_devices.iter().map(|name| stray_device(name)));
    checks.extend(facts.stray_snapshots.iter().flat_map(stray_snapshots));
    checks
}

/// True of a snapshot that a state is shown over, and that is no snapshot any more: what ends it ends the view first.
pub(super) fn is_lost_below(device: &Device, views: &[ViewFacts]) -> bool {
    let is_lost = match device.kind {
        Ok(Kind::Snapshot(status)) => status.why_untrusted().is_some(),
        _ => false,
    };
    is_lost
        && views
            .iter()
            .any(|view| view.is_there && is_over(view, device))
}

fn is_over(view: &ViewFacts, device: &Device) -> bool {
    let snapshot = view
        .shown
        .as_ref()
        .ok()
        .and_then(|shown| shown.snapshot.as_deref());
    let snapshot = snapshot.and_then(LvName::parse);
    snapshot.is_some_and(|snapshot| snapshot.dm_name() == device.name)
}

fn finding(view: &ViewFacts, lost: &[Device], option: &str) -> Option<Check> {
    let shown = match &view.shown {
        Ok(shown) => shown,
        Err(reason) => return Some(Check::problem(VIEW, reason.clone())),
    };
    let stop = format!("lvmsync view --stop {}{option}", word(&shown.name));
    let beside = match &shown.snapshot {
        Some(snapshot) => format!(
            "the snapshot {snapshot} and the file {}",
            shown.store.display()
        ),
        None => format!("the file {}", shown.store.display()),
    };
    let name = &shown.name;
    if view.is_there && lost.iter().any(|device| is_over(view, device)) {
        let found = format!(
            "/dev/mapper/{name}: answers with I/O errors: {beside} are what it is over, and that snapshot has overflowed, for \
             more was written to {} than it had room for",
            shown.base
        );
        return Some(Check::problem(VIEW, found).way_out(stop));
    }
    if view.is_there && view.is_base_writable {
        let found = format!(
            "/dev/mapper/{name}: {}, which it is over, can be written to again; what is written there changes what is seen",
            shown.base
        );
        return Some(Check::warning(VIEW, found).way_out(stop));
    }
    if view.is_there {
        let found = format!(
            "/dev/mapper/{name}: shows a state over {} since {}, with {beside}",
            shown.base,
            shown_time(shown.since)
        );
        return Some(Check::note(VIEW, found).way_out(stop));
    }
    if view.busy {
        return None;
    }
    let found = format!(
        "/dev/mapper/{name}: has shown a state over {}, and is gone: a run was killed, or the machine was started anew. What \
         may be left of it: {beside}",
        shown.base
    );
    Some(Check::warning(VIEW, found).way_out(stop))
}

fn stray_device(name: &str) -> Check {
    let found = format!(
        "/dev/mapper/{name}: shows a state, and is on record in another state directory, or in none"
    );
    Check::note(VIEW, found).way_out(format!("lvmsync view --stop {}", word(name)))
}

fn stray_snapshots(found: &Looked<Vec<String>>) -> Vec<Check> {
    let names = match found {
        Ok(names) => names,
        Err(reason) => {
            let found = format!("temporary snapshots of others not looked for: {reason}");
            return vec![Check::note(STRAY, found)];
        }
    };
    let stray = |name: &String| {
        let found = format!(
            "{name}: a temporary snapshot that lvmsync has made, on no record in this state directory; it takes room and \
             slows down writes"
        );
        Check::warning(STRAY, found).way_out(format!(
            "If it is of a command that was killed, or of a record that was lost: {}",
            remove_command(name)
        ))
    };
    names.iter().map(stray).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::dm::SnapshotStatus;
    use crate::view::shown::Shown;

    fn on_record(views: Vec<ViewFacts>) -> Records {
        Records {
            directory: "/s".into(),
            named: true,
            views,
            ..Records::default()
        }
    }

    #[test]
    fn what_is_shown_is_a_note_and_what_is_left_a_warning() {
        let with = |is_there, busy, snapshot: Option<&str>| {
            let shown = Shown {
                name: "tuesday".into(),
                base: "vg/copy".into(),
                snapshot: snapshot.map(str::to_owned),
                store: "/s/views/tuesday.store".into(),
                ..Shown::default()
            };
            let view = ViewFacts {
                shown: Ok(shown),
                is_there,
                is_base_writable: false,
                busy,
            };
            findings(&on_record(vec![view]), &[]).pop()
        };
        let check = with(true, true, None).unwrap();
        assert_eq!(check.status, Status::Note);
        assert!(
            check
                .found
                .contains("/dev/mapper/tuesday: shows a state over vg/copy")
        );
        let check = with(false, false, Some("vg/copy-lvmsync-1")).unwrap();
        assert_eq!(check.status, Status::Warning);
        assert!(
            check
                .found
                .contains("the snapshot vg/copy-lvmsync-1 and the file")
        );
        assert_eq!(
            check.way_out.as_deref(),
            Some("lvmsync view --stop tuesday --state-dir /s")
        );
        assert!(with(false, true, None).is_none());
        let unread = ViewFacts {
            shown: Err("cannot read".into()),
            is_there: false,
            is_base_writable: false,
            busy: false,
        };
        let checks = findings(&on_record(vec![unread]), &[]);
        assert_eq!(checks[0].status, Status::Problem);
    }

    #[test]
    fn a_view_whose_ground_moves_is_told() {
        let device = |status| Device {
            name: "vg-copy--lvmsync--1".into(),
            of_lvm: true,
            suspended: false,
            kind: Ok(Kind::Snapshot(status)),
        };
        let view = |is_there, is_base_writable, snapshot: Option<&str>| ViewFacts {
            shown: Ok(Shown {
                name: "tuesday".into(),
                base: "vg/copy".into(),
                snapshot: snapshot.map(str::to_owned),
                ..Shown::default()
            }),
            is_there,
            is_base_writable,
            busy: false,
        };
        let over = view(true, false, Some("vg/copy-lvmsync-1"));
        let lost = device(SnapshotStatus::Invalid);
        assert!(is_lost_below(&lost, std::slice::from_ref(&over)));
        assert!(!is_lost_below(
            &lost,
            &[view(true, false, Some("vg/other"))]
        ));
        assert!(!is_lost_below(
            &lost,
            &[view(false, false, Some("vg/copy-lvmsync-1"))]
        ));
        let whole = SnapshotStatus::Valid {
            used_sectors: 1,
            total_sectors: 9,
            metadata_sectors: 1,
        };
        assert!(!is_lost_below(&device(whole), std::slice::from_ref(&over)));
        let check = findings(&on_record(vec![over]), &[lost]).remove(0);
        assert_eq!(check.status, Status::Problem);
        assert_eq!(
            check.way_out.as_deref(),
            Some("lvmsync view --stop tuesday --state-dir /s")
        );
        let check = findings(&on_record(vec![view(true, true, None)]), &[]).remove(0);
        assert_eq!(check.status, Status::Warning);
        assert!(
            check
                .found
                .contains("vg/copy, which it is over, can be written to")
        );
    }

    #[test]
    fn what_is_on_no_record_here_is_told_with_what_removes_it() {
        let facts = Records {
            stray_devices: vec!["monday".into()],
            stray_snapshots: Some(Ok(vec!["vg/data-lvmsync-12".into()])),
            ..Records::default()
        };
        let found = findings(&facts, &[]);
        let ways_out: Vec<&str> = found
            .iter()
            .filter_map(|check| check.way_out.as_deref())
            .collect();
        assert_eq!(ways_out[0], "lvmsync view --stop monday");
        assert!(
            ways_out[1].ends_with("lvremove -y vg/data-lvmsync-12"),
            "{ways_out:?}"
        );
        assert_eq!(
            found.iter().map(|check| check.status).max(),
            Some(Status::Warning)
        );
        assert!(stray_snapshots(&Ok(vec![])).is_empty());
        let unasked = stray_snapshots(&Err("asking LVM needs root".into()));
        assert_eq!(unasked[0].status, Status::Note);
    }
}
