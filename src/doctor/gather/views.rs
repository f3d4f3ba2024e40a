//! Looking at states that are shown as devices, and at what lvmsync has made and no record here knows.
//!
//! Guarantees: changes nothing and takes no lock; devices are looked for in sysfs, which needs no privilege.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::super::facts::{Looked, ViewFacts};
use super::super::parse;
use super::records::{Here, LVS_LIMIT};
use super::{Mapped, find_program, names_in, output_of};
use crate::dm::device::sysfs_slaves;
use crate::dm::lvm::LvRow;
use crate::dm::shown::{UUID_PREFIX, uuid_of};
use crate::dm::temporary::{TEMPORARY_TAG, run_of};
use crate::hold::lock;
use crate::hold::record::{self, name_of};
use crate::record::store::StateDir;
use crate::view::shown::{self, Shown};

/// Those that are on record in `directory`.
pub(super) fn views(directory: &StateDir, here: &Here) -> Vec<ViewFacts> {
    let mapped = mapped();
    let look = |shown: Looked<Shown>| {
        let known = shown.as_ref().ok();
        let uuid = known.map(|shown| uuid_of(&shown.id));
        let lock = known.map(|shown| lock::path_of(&shown::lock_name(&shown.name)));
        let device = uuid.and_then(|uuid| mapped.iter().find(|device| device.uuid == uuid));
        ViewFacts {
            is_there: device.is_some(),
            is_base_writable: device.is_some_and(stands_on_writable),
            busy: lock.is_some_and(|path| here.is_locked(&path)),
            shown,
        }
    };
    shown::all(directory).into_iter().map(look).collect()
}

fn mapped() -> Vec<Mapped> {
    let blocks = names_in("/sys/block");
    blocks
        .iter()
        .filter_map(|name| Mapped::load(name))
        .collect()
}

/// The store's loop device is always read-only.
fn stands_on_writable(device: &Mapped) -> bool {
    let mut below = sysfs_slaves(device.number).into_iter();
    below.any(|number| {
        let path = format!("/sys/dev/block/{number}/ro");
        fs::read_to_string(Path::new(&path)).is_ok_and(|text| text.trim() == "0")
    })
}

/// Devices and snapshots that carry our marks, and are neither on record in `directory` nor a running command's.
pub(super) fn strays(directory: &StateDir, here: &Here) -> (Vec<String>, Looked<Vec<String>>) {
    let mapped = mapped();
    let on_record = shown::all(directory).into_iter().flatten();
    let on_record: Vec<Shown> = on_record.collect();
    let mut known: BTreeSet<String> = on_record.iter().map(|shown| shown.id.clone()).collect();
    let mut devices = Vec::new();
    for device in &mapped {
        let Some(id) = device.uuid.strip_prefix(UUID_PREFIX) else {
            continue;
        };
        let is_busy = here.is_locked(&lock::path_of(&shown::lock_name(&device.name)));
        if known.insert(id.to_owned()) && !is_busy {
            devices.push(device.name.clone());
        }
    }
    let held = record::snapshots(directory).into_iter();
    known.extend(held.map(|(_, held)| held.of));
    let is_loose = |row: &LvRow| {
        run_of(row).is_some_and(|id| {
            let lock = lock::path_of(&name_of("snapshot", id));
            !known.contains(id) && !here.is_locked(&lock) && !here.is_open(&row.lv_name)
        })
    };
    let loose = tagged(&mapped).map(|rows| {
        let loose = rows.into_iter().filter(is_loose);
        loose.map(|row| row.lv_name).collect()
    });
    (devices, loose)
}

/// The volumes that are tagged as temporary, each as `vg/lv`.
fn tagged(mapped: &[Mapped]) -> Looked<Vec<LvRow>> {
    // A snapshot that was left is active, as its origin is.
    if !mapped.iter().any(|device| device.uuid.starts_with("LVM-")) {
        return Ok(Vec::new());
    }
    if !rustix::process::geteuid().is_root() {
        return Err("asking LVM needs root".to_owned());
    }
    if let Some(device) = mapped.iter().find(|device| device.is_suspended()) {
        return Err(format!(
            "asking LVM may wait for {}, which is suspended",
            device.name
        ));
    }
    let lvm = find_program("lvm").ok_or("there is no lvm")?;
    let select = format!("lv_tags={TEMPORARY_TAG}");
    let columns = "lv_full_name,lv_uuid,lv_tags";
    let form = ["--noheadings", "--separator", "|", "-o", columns];
    let arguments = [&["lvs", "--select", &select], &form[..]].concat();
    let (text, succeeded) = output_of(&lvm, &arguments, LVS_LIMIT)?;
    if !succeeded {
        return Err(format!("lvs failed: {}", text.trim()));
    }
    Ok(parse::tagged(&text))
}
