//! Findings on states that are shown as devices, and on what is left of those that were.
//!
//! Guarantees: pure; whatever is on record is named, with the command that removes all of it.

use super::facts::ViewFacts;
use super::{Check, word};
use crate::record::keeper::shown_time;

const VIEW: &str = "state.view";

/// What the facts mean. `option` names the state directory, where that has to be named.
pub(super) fn findings(views: &[ViewFacts], option: &str) -> Vec<Check> {
    views
        .iter()
        .filter_map(|view| finding(view, option))
        .collect()
}

fn finding(view: &ViewFacts, option: &str) -> Option<Check> {
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

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::view::shown::Shown;

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
                busy,
            };
            findings(&[view], " --state-dir /s").pop()
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
            busy: false,
        };
        assert_eq!(findings(&[unread], "")[0].status, Status::Problem);
    }
}
