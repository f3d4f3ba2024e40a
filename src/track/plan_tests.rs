//! The plans, without a kernel: from everything that a killed run can leave, the same command ends where it should.

use super::*;
use crate::dm::name::LvName;
use crate::error::ExitCode;
use crate::track::seen::SeenDevice;

fn seen() -> Seen {
    Seen {
        volume: LvName::new("vg", "data").unwrap(),
        uuid: "u-1".into(),
        size_bytes: 64 << 20,
        unfit: None,
        merge: Merge::No,
        thin_id: None,
        read_only: false,
        is_only_open: false,
        holders: Vec::new(),
        metadata: None,
        device: None,
        name_is_taken: false,
    }
}

/// What is there after a step. Tags and devices are all that counts.
fn after(mut seen: Seen, step: &Step) -> Seen {
    match step {
        Step::MakeMetadata {
            name,
            size_bytes,
            tags,
        } => {
            assert!(seen.metadata.is_none(), "two records");
            assert!(tags.iter().any(|tag| tag == VOID_TAG));
            seen.metadata = Some(Metadata {
                name: name.clone(),
                uuid: "m".into(),
                of: seen.uuid.clone(),
                size_bytes: *size_bytes,
                block_sectors: Some(128),
                sectors: Some(131_072),
                grown: Vec::new(),
                rest: None,
                is_void: true,
                has_hole: false,
                lost_until: None,
                thin_id: tags
                    .iter()
                    .find_map(|tag| tag.strip_prefix("lvmsync_era_thin_")?.parse().ok()),
                is_active: true,
            });
            seen.name_is_taken = true;
        }
        Step::StartDevice {
            device, sectors, ..
        } => {
            assert!(seen.metadata.as_ref().is_some_and(|found| found.is_active));
            assert!(seen.device.is_none(), "two devices");
            seen.device = Some(SeenDevice {
                name: device.clone(),
                is_ours: true,
                has_table: true,
                sectors: *sectors,
                ..SeenDevice::default()
            });
        }
        Step::StopDevice { .. } => {
            let device = seen.device.take().unwrap();
            let counts = |found: &Metadata| !found.is_void && found.rest.is_none();
            let is_whole = seen.metadata.as_ref().is_some_and(counts);
            assert!(
                !(device.has_table && is_whole),
                "a whole record without its device"
            );
        }
        Step::Unvoid { gone, come, .. } | Step::Void { gone, come, .. } => {
            let metadata = seen.metadata.as_mut().unwrap();
            for (tags, is_there) in [(gone, false), (come, true)] {
                let has = |tag: &str| tags.iter().any(|found| found == tag);
                let number = |prefix: &str| {
                    tags.iter()
                        .find_map(|tag| Some(tag.strip_prefix(prefix)?.parse().unwrap()))
                        .filter(|_| is_there)
                };
                metadata.is_void = if has(VOID_TAG) {
                    is_there
                } else {
                    metadata.is_void
                };
                metadata.has_hole = if has(HOLE_TAG) {
                    is_there
                } else {
                    metadata.has_hole
                };
                metadata.lost_until = number("lvmsync_era_lost_").or(metadata.lost_until);
                metadata.thin_id = number("lvmsync_era_thin_").or(metadata.thin_id);
            }
            assert!(
                metadata.is_void || seen.device.is_some(),
                "whole before its device is up"
            );
        }
        Step::RemoveMetadata { .. } => {
            assert!(seen.device.is_none() && seen.metadata.take().unwrap().is_void);
            seen.name_is_taken = false;
        }
        Step::Activate(_) => seen.metadata.as_mut().unwrap().is_active = true,
        Step::Rest { tag, .. } => {
            assert!(seen.device.is_some(), "nobody keeps count");
            seen.metadata.as_mut().unwrap().rest =
                tag.strip_prefix("lvmsync_era_rest_").map(str::to_owned);
        }
        Step::Grow { tags, old, .. } => {
            let metadata = seen.metadata.as_mut().unwrap();
            assert_eq!(Some(old.clone()), metadata.sectors.map(size_tag));
            let [size, _] = tags;
            metadata.sectors = size.rsplit('_').next().unwrap().parse().ok();
            metadata.grown.push((0, 0));
        }
        Step::Reload { tables, .. } => {
            let metadata = seen.metadata.as_ref().unwrap();
            let sectors = tables[0].split(' ').nth(1).unwrap().parse().ok();
            assert_eq!(metadata.sectors, sectors, "longer, and on no record");
            seen.device.as_mut().unwrap().sectors = sectors.unwrap();
        }
        Step::Unrest { .. } => {
            assert!(seen.device.is_some(), "nobody keeps count");
            seen.metadata.as_mut().unwrap().rest = None;
        }
        Step::RefuseDiscards { .. } => assert!(seen.device.is_some()),
    }
    seen
}

fn all_after(seen: Seen, steps: &[Step]) -> Seen {
    steps.iter().fold(seen, after)
}

/// What is there when a run that follows these steps is killed, before each of them and inside of those that have parts.
fn killed(seen: &Seen, steps: &[Step]) -> Vec<Seen> {
    let mut found = vec![seen.clone()];
    let mut now = seen.clone();
    for step in steps {
        if let Step::StartDevice { device, .. } = step {
            found.push(Seen {
                device: Some(SeenDevice {
                    name: device.clone(),
                    is_ours: true,
                    ..SeenDevice::default()
                }),
                ..now.clone()
            });
        }
        now = after(now, step);
        found.push(now.clone());
    }
    found
}

fn is_tracked(seen: &Seen) -> bool {
    seen.device.as_ref().is_some_and(|device| device.has_table)
        && seen
            .metadata
            .as_ref()
            .is_some_and(|metadata| !metadata.is_void)
}

#[test]
fn a_run_that_was_killed_anywhere_is_finished_or_undone_by_either_command() {
    let steps = enable(&seen(), None, 5).unwrap();
    let tracked = all_after(seen(), &steps);
    assert!(is_tracked(&tracked));
    let removal = disable(&tracked).unwrap();
    assert_eq!(all_after(tracked.clone(), &removal), seen());
    let left = killed(&seen(), &steps)
        .into_iter()
        .chain(killed(&tracked, &removal));
    let mut count = 0;
    for left in left {
        count += 1;
        let again = all_after(left.clone(), &enable(&left, None, 5).unwrap());
        assert!(is_tracked(&again), "{left:?}");
        let gone = all_after(left.clone(), &disable(&left).unwrap());
        assert_eq!(gone, seen(), "{left:?}");
    }
    assert!(count >= 9, "{count}");
}

#[test]
fn enabling_twice_changes_nothing_but_what_was_let_through() {
    let tracked = all_after(seen(), &enable(&seen(), None, 5).unwrap());
    let again = enable(&tracked, None, 5).unwrap();
    assert!(
        matches!(again.as_slice(), [Step::RefuseDiscards { .. }]),
        "{again:?}"
    );
    assert_eq!(disable(&seen()).unwrap(), []);
}

fn refused<T: std::fmt::Debug>(result: Result<T>, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Refused, "{}", error.chain());
    assert!(error.chain().contains(words), "{}", error.chain());
}

#[test]
fn what_is_in_use_is_left_alone() {
    let used = Seen {
        holders: vec!["mounted on /srv".into()],
        ..seen()
    };
    refused(enable(&used, None, 5), "mounted on /srv");
    let mut tracked = all_after(seen(), &enable(&seen(), None, 5).unwrap());
    let device = tracked.device.as_mut().unwrap();
    device.open_count = 1;
    refused(disable(&tracked), "open by 1 process(es)");
    let device = tracked.device.as_mut().unwrap();
    (device.open_count, device.is_ours) = (0, false);
    refused(disable(&tracked), "has not made that");
    refused(enable(&tracked, None, 5), "has not made that");
    let taken = Seen {
        name_is_taken: true,
        ..seen()
    };
    refused(enable(&taken, None, 5), "lvrename vg/data_era");
    let unfit = Seen {
        unfit: Some("it is a thin pool".into()),
        ..seen()
    };
    refused(enable(&unfit, None, 5), "it is a thin pool");
}

#[test]
fn a_record_whose_device_is_down_comes_up_only_if_nobody_got_past_it() {
    let tracked = all_after(seen(), &enable(&seen(), None, 5).unwrap());
    let mut booted = Seen {
        device: None,
        ..tracked
    };
    booted.metadata.as_mut().unwrap().is_active = false;
    refused(enable(&booted, None, 5), "lvmsync track up vg/data");
    let Up::Steps(steps) = up(&booted, None).unwrap() else {
        panic!("a hole");
    };
    assert_eq!(steps.len(), 3);
    assert!(is_tracked(&all_after(booted.clone(), &steps)));
    // Extended meanwhile: nobody has put on record yet since when it is longer.
    let longer = Seen {
        size_bytes: booted.size_bytes * 2,
        ..booted.clone()
    };
    assert_eq!(up(&longer, None).unwrap(), Up::Steps(steps));
    let shorter = Seen {
        size_bytes: booted.size_bytes / 2,
        ..booted.clone()
    };
    assert_eq!(
        up(&shorter, None).unwrap_err().exit_code(),
        ExitCode::TrackingLost
    );
    // Mounted by its label before that: the record has a hole, and says so from then on.
    booted.holders = vec!["mounted on /srv".into()];
    let (steps, by, is_up) = hole(&booted, None);
    assert!(by.contains("mounted on /srv") && !is_up, "{by}");
    let mut marked = all_after(booted, &steps);
    assert!(marked.device.is_none());
    marked.holders.clear();
    // Begun anew, with another volume for the record.
    let steps = enable(&marked, None, 5).unwrap();
    assert!(matches!(
        &steps[..2],
        [Step::RemoveMetadata { .. }, Step::MakeMetadata { .. }]
    ));
    assert!(up(&seen(), None).is_err());
}

/// The steps of a hole, what is said of it, and whether the device is up then.
fn hole(seen: &Seen, rest: Option<&str>) -> (Vec<Step>, String, bool) {
    match up(seen, rest).unwrap() {
        Up::Hole {
            steps,
            reason,
            is_up,
        } => {
            let is_void = seen.metadata.as_ref().is_some_and(|found| found.is_void);
            let marks = matches!(steps.first(), Some(Step::Void { .. }));
            assert!(is_void || marks, "a device is up before the mark is made");
            (steps, reason, is_up)
        }
        found => panic!("no hole: {found:?}"),
    }
}

fn is_void(seen: &Seen) -> bool {
    seen.metadata.as_ref().unwrap().is_void
}

#[test]
fn a_volume_with_a_hole_in_its_record_comes_up_at_every_boot() {
    let tracked = all_after(seen(), &enable(&seen(), None, 0).unwrap());
    assert_eq!(tracked.metadata.as_ref().unwrap().lost_until, None);
    let resting = all_after(tracked.clone(), &down(&tracked, "was").unwrap());
    for left in killed(&resting, &hole(&resting, Some("is")).0) {
        let (steps, _, is_up) = hole(&left, Some("is"));
        let up_again = all_after(left, &steps);
        assert!(is_up && is_void(&up_again) && up_again.device.is_some());
        // In use, which its record is begun anew in: nothing from before it counts.
        let mut used = up_again.clone();
        used.device.as_mut().unwrap().open_count = 1;
        let begun = all_after(used.clone(), &enable(&used, None, 9).unwrap());
        let record = begun.metadata.as_ref().unwrap();
        assert!(is_tracked(&begun) && record.is_lost(9) && !record.is_lost(10));
        assert!(!record.has_hole);
        // Down and up again, and a second time.
        let down_again = all_after(up_again.clone(), &down(&up_again, "x").unwrap());
        assert!(hole(&down_again, None).2);
        let again = all_after(down_again.clone(), &hole(&down_again, None).0);
        assert!(is_void(&again));
        refused(resize(&again, 9), "proves nothing");
        // Given up, wherever that was killed: nothing brings it up any more.
        let removal = disable(&again).unwrap();
        for left in killed(&again, &removal).into_iter().skip(2) {
            let booted = Seen {
                device: None,
                ..left
            };
            up(&booted, None).unwrap_err();
        }
        assert_eq!(all_after(again, &removal), seen());
    }
    // A later hole counts, and an earlier one goes on to.
    let mut twice = tracked;
    let record = twice.metadata.as_mut().unwrap();
    (record.is_void, record.has_hole, record.lost_until) = (true, true, Some(20));
    let begun = all_after(twice.clone(), &enable(&twice, None, 9).unwrap());
    assert!(begun.metadata.unwrap().is_lost(20));
    let begun = all_after(twice.clone(), &enable(&twice, None, 30).unwrap());
    assert!(begun.metadata.unwrap().is_lost(30));
    // What is not finished is no hole: its device would stand in the way of the mount.
    let made = enable(&seen(), None, 0).unwrap();
    let made = all_after(seen(), &made[..1]);
    refused(up(&made, None), "proves nothing");
    let record = Seen {
        merge: Merge::Running,
        ..made
    };
    refused(up(&record, None), "proves nothing");
}

#[test]
fn a_snapshot_that_is_merged_into_the_volume_is_a_hole() {
    let thin = Seen {
        thin_id: Some(3),
        ..seen()
    };
    let tracked = all_after(thin.clone(), &enable(&thin, None, 0).unwrap());
    assert_eq!(tracked.metadata.as_ref().unwrap().thin_id, Some(3));
    let booted = Seen {
        device: None,
        ..tracked.clone()
    };
    assert!(matches!(up(&booted, None), Ok(Up::Steps(_))));
    let merging = |seen: &Seen| Seen {
        merge: Merge::Running,
        ..seen.clone()
    };
    let swapped = |seen: &Seen| Seen {
        thin_id: Some(4),
        ..seen.clone()
    };
    for seen in [merging(&booted), merging(&tracked), swapped(&booted)] {
        let (steps, reason, is_up) = hole(&seen, None);
        assert!(reason.contains("merged into it"), "{reason}");
        let marked = all_after(seen, &steps);
        assert!(is_up && is_void(&marked) && marked.device.is_some());
        let begun = all_after(marked.clone(), &enable(&marked, None, 9).unwrap());
        assert_eq!(begun.metadata.as_ref().unwrap().thin_id, begun.thin_id);
        assert!(begun.metadata.unwrap().is_lost(9));
    }
    // It may be done before the device comes up.
    let due = Seen {
        merge: Merge::Due,
        ..tracked
    };
    let resting = all_after(due.clone(), &down(&due, "was").unwrap());
    assert!(is_void(&resting) && resting.metadata.unwrap().has_hole);
}

#[test]
fn the_device_of_another_volume_with_this_uuid_is_left_alone() {
    let mut twin = all_after(seen(), &enable(&seen(), None, 0).unwrap());
    let device = twin.device.as_mut().unwrap();
    (device.is_ours, device.is_elsewhere) = (false, true);
    for result in [enable(&twin, None, 0), resize(&twin, 5)] {
        refused(result, "stands on another volume");
    }
    refused(up(&twin, None), "stands on another volume");
    assert_eq!(down(&twin, "x").unwrap(), []);
    let steps = disable(&twin).unwrap();
    let stops = |step: &Step| matches!(step, Step::StopDevice { .. });
    assert!(!steps.iter().any(stops), "{steps:?}");
}

#[test]
fn what_was_written_while_the_device_was_down_is_a_hole() {
    let tracked = all_after(seen(), &enable(&seen(), None, 5).unwrap());
    let steps = down(&tracked, "was").unwrap();
    let resting = all_after(tracked.clone(), &steps);
    assert!(resting.device.is_none());
    assert_eq!(
        resting.metadata.as_ref().unwrap().rest.as_deref(),
        Some("was")
    );
    assert_eq!(down(&resting, "is").unwrap(), []);
    let Up::Steps(steps) = up(&resting, Some("was")).unwrap() else {
        panic!("a hole");
    };
    assert_eq!(all_after(resting.clone(), &steps), tracked);
    for now in [Some("is"), None] {
        let (steps, reason, is_up) = hole(&resting, now);
        assert!(
            reason.contains("when its era device was taken down"),
            "{reason}"
        );
        let up = all_after(resting.clone(), &steps);
        assert!(is_up && up.device.is_some() && up.metadata.unwrap().is_void);
    }
    // One that was moved away stays down, and one that is up stays up.
    let read_only = |seen: &Seen| Seen {
        read_only: true,
        ..seen.clone()
    };
    assert_eq!(up(&read_only(&resting), Some("was")).unwrap(), Up::ReadOnly);
    assert!(matches!(up(&read_only(&tracked), None), Ok(Up::Steps(_))));
    // What could not be put up again is not taken down by a migration.
    refuse_lost_record(&tracked).unwrap();
    refused(refuse_lost_record(&read_only(&tracked)), "read-only");
    let mut void = tracked.clone();
    void.metadata.as_mut().unwrap().is_void = true;
    refused(refuse_lost_record(&void), "proves nothing");
    let mut foreign = tracked.clone();
    foreign.device.as_mut().unwrap().is_ours = false;
    refused(refuse_lost_record(&foreign), "dmsetup remove");
    void.metadata = None;
    refused(refuse_lost_record(&void), "no volume of group");
    // Killed in between: the device is up, and what is on record of the volume at rest is of no use any more.
    let stale = Seen {
        device: tracked.device.clone(),
        ..resting
    };
    for steps in [
        enable(&stale, None, 5).unwrap(),
        match up(&stale, None).unwrap() {
            Up::Steps(steps) => steps,
            found => panic!("{found:?}"),
        },
    ] {
        assert_eq!(all_after(stale.clone(), &steps), tracked);
    }
    let again = all_after(stale.clone(), &down(&stale, "is").unwrap());
    assert_eq!(again.metadata.unwrap().rest.as_deref(), Some("is"));
    let mut open = tracked;
    open.device.as_mut().unwrap().open_count = 1;
    refused(down(&open, "is"), "open by 1 process(es)");
}

#[test]
fn what_a_volume_was_extended_by_is_tracked_wherever_a_run_was_killed() {
    let tracked = all_after(seen(), &enable(&seen(), None, 5).unwrap());
    assert_eq!(resize(&tracked, 7).unwrap(), []);
    let longer = Seen {
        size_bytes: 96 << 20,
        ..tracked.clone()
    };
    let steps = resize(&longer, 7).unwrap();
    assert!(
        steps[0].to_string().contains("lvmsync_era_grown_7_131072"),
        "{}",
        steps[0]
    );
    let mut root = longer.clone();
    root.device.as_mut().unwrap().is_root = true;
    refused(resize(&root, 7), "rescue system");
    for left in killed(&longer, &steps) {
        let again = all_after(left.clone(), &resize(&left, 8).unwrap());
        assert_eq!(again.device.as_ref().unwrap().sectors, 196_608);
        assert_eq!(again.metadata.as_ref().unwrap().grown.len(), 1);
        assert_eq!(resize(&again, 9).unwrap(), []);
        // Or it is booted.
        let booted = Seen {
            device: None,
            ..left
        };
        let Up::Steps(steps) = up(&booted, None).unwrap() else {
            panic!("a hole");
        };
        let up = all_after(booted, &steps);
        assert_eq!(
            up.device.unwrap().sectors,
            up.metadata.unwrap().sectors.unwrap()
        );
    }
    let shorter = Seen {
        size_bytes: 32 << 20,
        ..tracked.clone()
    };
    assert_eq!(
        resize(&shorter, 7).unwrap_err().exit_code(),
        ExitCode::TrackingLost
    );
    refused(
        resize(
            &Seen {
                size_bytes: 1 << 50,
                ..tracked
            },
            7,
        ),
        "too small",
    );
    refused(resize(&seen(), 7), "track up");
}
