//! The plans, without a kernel: from everything that a killed run can leave, the same command ends where it should.

use super::*;
use crate::error::ExitCode;

fn seen() -> Seen {
    Seen {
        volume: LvName::new("vg", "data").unwrap(),
        uuid: "u-1".into(),
        size_bytes: 64 << 20,
        unfit: None,
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
        Step::Unvoid { .. } => {
            assert!(seen.device.is_some(), "whole before its device is up");
            seen.metadata.as_mut().unwrap().is_void = false;
        }
        Step::Void { .. } => seen.metadata.as_mut().unwrap().is_void = true,
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
    let steps = enable(&seen(), None).unwrap();
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
        let again = all_after(left.clone(), &enable(&left, None).unwrap());
        assert!(is_tracked(&again), "{left:?}");
        let gone = all_after(left.clone(), &disable(&left).unwrap());
        assert_eq!(gone, seen(), "{left:?}");
    }
    assert!(count >= 9, "{count}");
}

#[test]
fn enabling_twice_changes_nothing_but_what_was_let_through() {
    let tracked = all_after(seen(), &enable(&seen(), None).unwrap());
    let again = enable(&tracked, None).unwrap();
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
    refused(enable(&used, None), "mounted on /srv");
    let mut tracked = all_after(seen(), &enable(&seen(), None).unwrap());
    let device = tracked.device.as_mut().unwrap();
    device.open_count = 1;
    refused(disable(&tracked), "open by 1 process(es)");
    let device = tracked.device.as_mut().unwrap();
    (device.open_count, device.is_ours) = (0, false);
    refused(disable(&tracked), "has not made that");
    refused(enable(&tracked, None), "has not made that");
    let taken = Seen {
        name_is_taken: true,
        ..seen()
    };
    refused(enable(&taken, None), "lvrename vg/data_era");
    let unfit = Seen {
        unfit: Some("it is a thin pool".into()),
        ..seen()
    };
    refused(enable(&unfit, None), "it is a thin pool");
}

#[test]
fn a_record_whose_device_is_down_comes_up_only_if_nobody_got_past_it() {
    let tracked = all_after(seen(), &enable(&seen(), None).unwrap());
    let mut booted = Seen {
        device: None,
        ..tracked
    };
    booted.metadata.as_mut().unwrap().is_active = false;
    refused(enable(&booted, None), "lvmsync track up vg/data");
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
    let Up::Hole(steps, by) = up(&booted, None).unwrap() else {
        panic!("no hole");
    };
    assert!(by.contains("mounted on /srv"), "{by}");
    let mut marked = all_after(booted, &steps);
    marked.holders.clear();
    let error = up(&marked, None).unwrap_err();
    assert!(
        error.chain().contains("proves nothing"),
        "{}",
        error.chain()
    );
    // Begun anew, with another volume for the record.
    let steps = enable(&marked, None).unwrap();
    assert!(matches!(
        &steps[..2],
        [Step::RemoveMetadata { .. }, Step::MakeMetadata { .. }]
    ));
    assert!(up(&seen(), None).is_err());
}

#[test]
fn what_was_written_while_the_device_was_down_is_a_hole() {
    let tracked = all_after(seen(), &enable(&seen(), None).unwrap());
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
        let Up::Hole(steps, reason) = up(&resting, now).unwrap() else {
            panic!("no hole");
        };
        assert!(
            reason.contains("when its era device was taken down"),
            "{reason}"
        );
        assert!(all_after(resting.clone(), &steps).metadata.unwrap().is_void);
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
        enable(&stale, None).unwrap(),
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
    let tracked = all_after(seen(), &enable(&seen(), None).unwrap());
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
