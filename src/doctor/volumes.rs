//! Findings on mapped devices: snapshots that are full or lost, devices that are suspended, thin pools.
//!
//! Guarantees: pure; a device that could not be asked is named with the reason.

use super::facts::{Device, Kind, PoolStatus};
use super::{Check, word};
use crate::dm::SnapshotStatus;
use crate::dm::name::{LvName, split_dm_name};
use crate::dm::pool_status::check_commands;
use crate::units::{Bytes, MIB, count, sectors_to_bytes};

/// In hundredths: above it a snapshot or a pool is nearly full.
const NEARLY_FULL: u64 = 80;

/// So many of those that were not looked at are named.
const MOST_NAMES: usize = 10;

const SNAPSHOT: &str = "volumes.snapshot";
const POOL: &str = "volumes.thin-pool";
const ERA: &str = "volumes.era";

/// What the devices' facts mean.
pub(super) fn findings(devices: &[Device]) -> Vec<Check> {
    let mut checks: Vec<Check> = devices.iter().filter_map(suspended).collect();
    let is_snapshot = |device: &&Device| matches!(device.kind, Ok(Kind::Snapshot(_)));
    let snapshots = devices.iter().filter(is_snapshot).count();
    let bad: Vec<Check> = devices.iter().filter_map(of_kind).collect();
    if snapshots > 0 && bad.iter().all(|check| check.id != SNAPSHOT) {
        let shown = count(snapshots as u64, "snapshot");
        checks.push(Check::ok(
            SNAPSHOT,
            format!("{shown}, none of them lost or nearly full"),
        ));
    }
    checks.extend(bad);
    checks.extend(unread(devices));
    checks
}

fn suspended(device: &Device) -> Option<Check> {
    let is_era = matches!(device.kind, Ok(Kind::Era { .. }));
    if !(device.suspended && (device.of_lvm || is_era)) {
        return None;
    }
    let check = Check::problem(
        "volumes.suspended",
        format!(
            "{} is suspended: whatever reads or writes it waits until it is resumed. A tool that stopped half-way \
             leaves that behind; make sure that none is at work",
            shown(device)
        ),
    );
    Some(check.way_out(format!("dmsetup resume {}", word(&device.name))))
}

fn of_kind(device: &Device) -> Option<Check> {
    match device.kind.as_ref().ok()? {
        Kind::Snapshot(status) => snapshot(device, *status),
        Kind::Merge(SnapshotStatus::MergeFailed) => Some(
            Check::problem(
                SNAPSHOT,
                format!(
                    "{}: merging a snapshot into it failed half-way, so part of what it should be is still in that one alone; once \
                     the disk that failed (see the kernel's log) is in order, the merge goes on when it is activated anew",
                    shown(device)
                ),
            )
            .way_out(anew(device)),
        ),
        Kind::Merge(SnapshotStatus::Invalid) => Some(
            Check::problem(
                SNAPSHOT,
                format!(
                    "{}: the snapshot that was to be merged into it overflowed, and nothing of it was merged; if that was a preview, \
                     lvmsync apply --discard {0} removes it, else lvremove",
                    shown(device)
                ),
            )
            .way_out(anew(device)),
        ),
        Kind::Merge(_) | Kind::Other => None,
        Kind::ThinPool(status) => pool(device, *status),
        Kind::Era { held_root } => held_root.then(|| era(device)),
    }
}

fn anew(device: &Device) -> String {
    let name = word(&shown(device));
    format!("lvchange -an {name} && lvchange -ay {name}")
}

fn snapshot(device: &Device, status: SnapshotStatus) -> Option<Check> {
    let name = shown(device);
    match status {
        SnapshotStatus::Valid {
            used_sectors,
            total_sectors,
            ..
        } if is_nearly_full(used_sectors, total_sectors) => {
            let store = sectors_to_bytes(total_sectors).unwrap_or(u64::MAX);
            // Half as much again, in whole MiB: every volume group takes that, rounded up to its extents.
            let more = (store / 2).div_ceil(MIB).max(1);
            let check = Check::warning(
                SNAPSHOT,
                format!(
                    "{name}: {} % of its {} are used; when it is full it is lost, and with it the list of changes",
                    percent(used_sectors, total_sectors),
                    Bytes(store)
                ),
            );
            Some(check.way_out(format!("lvextend -L +{more}m {}", word(&name))))
        }
        SnapshotStatus::Valid { .. } | SnapshotStatus::Merging => None,
        SnapshotStatus::Unknown => {
            Some(Check::warning(SNAPSHOT, format!("{name}: {}", why(status))))
        }
        _ => {
            let check = Check::problem(
                SNAPSHOT,
                format!(
                    "{name}: {}. Its list of changes is not complete, so nothing can be sent from it",
                    why(status)
                ),
            );
            Some(check.way_out(format!(
                "lvremove {}; then make another and send a full copy",
                word(&name)
            )))
        }
    }
}

fn why(status: SnapshotStatus) -> &'static str {
    status.why_untrusted().unwrap_or("it is in order")
}

fn pool(device: &Device, status: PoolStatus) -> Option<Check> {
    let name = shown(device);
    let repair = || match LvName::parse(&name) {
        Some(pool) => format!(
            "{}; if that finds damage: lvconvert --repair {pool}, and the last of these again",
            check_commands(&pool)
        ),
        None => format!("lvconvert --repair {}", word(&name)),
    };
    let PoolStatus::Running {
        metadata,
        data,
        held_root,
        restricted,
        needs_check,
    } = status
    else {
        let found =
            format!("{name}: the kernel gave this thin pool up: its volumes cannot be used");
        return Some(Check::problem(POOL, found).way_out(repair()));
    };
    if needs_check {
        let found = format!("{name}: the metadata of this thin pool must be checked");
        return Some(Check::problem(POOL, found).way_out(repair()));
    }
    if restricted {
        let found = format!(
            "{name}: this thin pool takes no new blocks: it is read-only or out of space ({} % of data, {} % of \
             metadata used)",
            percent(data.0, data.1),
            percent(metadata.0, metadata.1)
        );
        return Some(Check::problem(POOL, found).way_out(extend(&name, metadata)));
    }
    if is_nearly_full(data.0, data.1) || is_nearly_full(metadata.0, metadata.1) {
        let found = format!(
            "{name}: this thin pool is nearly full: {} % of data, {} % of metadata used; when it is full, writes to \
             its volumes fail",
            percent(data.0, data.1),
            percent(metadata.0, metadata.1)
        );
        return Some(Check::warning(POOL, found).way_out(extend(&name, metadata)));
    }
    held_root.then(|| {
        Check::warning(
            POOL,
            format!(
                "{name}: a frozen copy of this thin pool's metadata is held. Whoever reads it (a tool that lists \
                 what changed) holds it for as long as that takes; one that was killed leaves it behind, and then \
                 nobody else can take one"
            ),
        )
        .way_out(format!(
            "Only if nobody uses it: dmsetup message {} 0 release_metadata_snap",
            word(&device.name)
        ))
    })
}

fn era(device: &Device) -> Check {
    let found = format!(
        "{}: a frozen copy of this era device's record is held. Whoever reads it (a tool that lists what changed) holds it \
         for as long as that takes; one that was killed leaves it behind, and then nobody else can take one",
        device.name
    );
    Check::warning(ERA, found).way_out(format!(
        "Only if nobody uses it: dmsetup message {} 0 drop_metadata_snap",
        word(&device.name)
    ))
}

fn extend(name: &str, (used, total): (u64, u64)) -> String {
    if is_nearly_full(used, total) {
        format!("lvextend --poolmetadatasize +256m {}", word(name))
    } else {
        format!("lvextend -l +20%LV {}", word(name))
    }
}

fn is_nearly_full(used: u64, total: u64) -> bool {
    percent_exactly(used, total) > u128::from(NEARLY_FULL) * 100
}

fn percent(used: u64, total: u64) -> u128 {
    percent_exactly(used, total) / 100
}

/// In hundredths of a percent. Nothing of nothing is full.
fn percent_exactly(used: u64, total: u64) -> u128 {
    (u128::from(used) * 10_000)
        .checked_div(u128::from(total))
        .unwrap_or(10_000)
}

/// `vg/lv` where it is one, and else device-mapper's name.
fn shown(device: &Device) -> String {
    match split_dm_name(&device.name).filter(|_| device.of_lvm) {
        Some((name, None)) => name.to_string(),
        // The pool below a pool's public device: LVM's commands take the pool.
        Some((name, Some(layer))) if layer == "tpool" => name.to_string(),
        _ => device.name.clone(),
    }
}

/// One finding for all that could not be asked for the same reason.
fn unread(devices: &[Device]) -> Vec<Check> {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for device in devices {
        let Err(reason) = &device.kind else { continue };
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, names)) => names.push(shown(device)),
            None => reasons.push((reason, vec![shown(device)])),
        }
    }
    let tell = |(reason, mut names): (&str, Vec<String>)| {
        let shown = count(names.len() as u64, "mapped device");
        if names.len() > MOST_NAMES {
            names.truncate(MOST_NAMES);
            names.push("…".to_owned());
        }
        let names = names.join(", ");
        Check::note(
            "volumes.unread",
            format!("not looked at: {shown} ({names}): {reason}"),
        )
    };
    reasons.into_iter().map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn device(name: &str, kind: Kind) -> Device {
        Device {
            name: name.into(),
            of_lvm: true,
            suspended: false,
            kind: Ok(kind),
        }
    }

    fn valid(used_sectors: u64, total_sectors: u64) -> Kind {
        Kind::Snapshot(SnapshotStatus::Valid {
            used_sectors,
            total_sectors,
            metadata_sectors: 16,
        })
    }

    fn only(devices: &[Device]) -> Check {
        let checks = findings(devices);
        assert_eq!(checks.len(), 1, "{checks:?}");
        checks.into_iter().next().unwrap()
    }

    #[test]
    fn snapshots_are_in_order_nearly_full_or_lost() {
        let total = 20 * 2048; // 20 MiB
        let good = only(&[
            device("vg-s1", valid(total * 8 / 10, total)),
            device("vg-data", Kind::Other),
        ]);
        assert_eq!(good.status, Status::Ok);
        assert!(good.found.starts_with("1 snapshot,"), "{good:?}");
        let full = only(&[device("my--vg-s1", valid(total * 8 / 10 + 8, total))]);
        assert_eq!(full.status, Status::Warning);
        assert!(full.found.contains("my-vg/s1: 80 %"), "{full:?}");
        assert_eq!(full.way_out.as_deref(), Some("lvextend -L +10m my-vg/s1"));
        for status in [SnapshotStatus::Invalid, SnapshotStatus::Overflow] {
            let lost = only(&[device("vg-s1", Kind::Snapshot(status))]);
            assert_eq!(lost.status, Status::Problem);
            assert!(lost.way_out.unwrap().starts_with("lvremove vg/s1"));
        }
        let unknown = only(&[device("vg-s1", Kind::Snapshot(SnapshotStatus::Unknown))]);
        assert_eq!(unknown.status, Status::Warning);
        let failed = only(&[device("vg-data", Kind::Merge(SnapshotStatus::MergeFailed))]);
        assert_eq!(failed.status, Status::Problem);
        assert_eq!(
            failed.way_out.as_deref(),
            Some("lvchange -an vg/data && lvchange -ay vg/data")
        );
        let merging = device("vg-data", Kind::Merge(SnapshotStatus::Merging));
        assert!(findings(&[merging]).is_empty());
        // A store of no size, which no kernel has, is not a division by zero.
        only(&[device("vg-s1", valid(0, 0))]);
        only(&[device("vg-s1", valid(u64::MAX, u64::MAX))]);
    }

    #[test]
    fn a_suspended_volume_of_lvm_is_resumed_by_its_device() {
        let mut data = device("vg-data-real", Kind::Other);
        data.suspended = true;
        let check = only(&[data.clone()]);
        assert_eq!(check.status, Status::Problem);
        assert_eq!(
            check.way_out.as_deref(),
            Some("dmsetup resume vg-data-real")
        );
        data.of_lvm = false;
        assert!(findings(&[data]).is_empty());
    }

    #[test]
    fn era_devices_are_held_or_suspended() {
        let era = |held_root| Device {
            of_lvm: false,
            ..device("vg-data-era", Kind::Era { held_root })
        };
        assert!(findings(&[era(false)]).is_empty());
        let held = findings(&[era(true)]).remove(0);
        let way_out = held.way_out.unwrap();
        assert!(
            way_out.ends_with("dmsetup message vg-data-era 0 drop_metadata_snap"),
            "{way_out}"
        );
        let suspended = Device {
            suspended: true,
            ..era(false)
        };
        let check = findings(&[suspended]).remove(0);
        assert_eq!(check.way_out.as_deref(), Some("dmsetup resume vg-data-era"));
    }

    #[test]
    fn pools_are_held_full_or_broken() {
        let running = PoolStatus::Running {
            metadata: (10, 100),
            data: (10, 100),
            held_root: false,
            restricted: false,
            needs_check: false,
        };
        let with = |status| findings(&[device("vg-pool-tpool", Kind::ThinPool(status))]);
        assert!(with(running).is_empty());
        let change = |change: fn(&mut PoolStatus)| {
            let mut status = running;
            change(&mut status);
            with(status).remove(0)
        };
        let held = change(|status| {
            if let PoolStatus::Running { held_root, .. } = status {
                *held_root = true;
            }
        });
        assert_eq!(held.status, Status::Warning);
        let way_out = held.way_out.unwrap();
        assert!(
            way_out.ends_with("dmsetup message vg-pool-tpool 0 release_metadata_snap"),
            "{way_out}"
        );
        let full = change(|status| {
            if let PoolStatus::Running { data, .. } = status {
                *data = (81, 100);
            }
        });
        assert_eq!(full.status, Status::Warning);
        assert_eq!(full.way_out.as_deref(), Some("lvextend -l +20%LV vg/pool"));
        let stuck = change(|status| {
            if let PoolStatus::Running {
                restricted,
                metadata,
                ..
            } = status
            {
                (*restricted, *metadata) = (true, (99, 100));
            }
        });
        assert_eq!(stuck.status, Status::Problem);
        assert!(stuck.way_out.unwrap().contains("--poolmetadatasize"));
        let sick = change(|status| {
            if let PoolStatus::Running { needs_check, .. } = status {
                *needs_check = true;
            }
        });
        let way_out = sick.way_out.unwrap();
        for part in ["--clear-needs-check-flag", "lvconvert --repair vg/pool"] {
            assert!(way_out.contains(part), "{way_out}");
        }
        assert_eq!(with(PoolStatus::Failed)[0].status, Status::Problem);
    }

    #[test]
    fn what_was_not_looked_at_is_said_once_for_each_reason() {
        let unread = |name: &str| Device {
            kind: Err("it needs root".into()),
            ..device(name, Kind::Other)
        };
        let check = only(&[unread("vg-a"), unread("crypt")]);
        assert_eq!(check.status, Status::Note);
        assert!(
            check
                .found
                .contains("2 mapped devices (vg/a, crypt): it needs root"),
            "{check:?}"
        );
        let many: Vec<Device> = (0..100).map(|n| unread(&format!("vg-v{n}"))).collect();
        let check = only(&many);
        assert!(
            check.found.contains("100 mapped devices") && check.found.contains("vg/v9, …"),
            "{check:?}"
        );
    }
}
