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

/// Those that are on record in `directory`, the devices that show others, and the snapshots that nobody knows.
pub(super) fn look(
    directory: &StateDir,
    here: &Here,
) -> (Vec<ViewFacts>, Vec<String>, Looked<Vec<String>>) {
    let blocks = names_in("/sys/block");
    let mapped: Vec<Mapped> = blocks
        .iter()
        .filter_map(|name| Mapped::load(name))
        .collect();
    let on_record = shown::all(directory);
    let known = on_record.iter().flatten();
    let mut known: BTreeSet<String> = known.map(|shown| shown.id.clone()).collect();
    let devices = stray_devices(&mapped, &mut known, here);
    let held = record::snapshots(directory).into_iter();
    known.extend(held.map(|(_, held)| held.of));
    let snapshots = stray_snapshots(&mapped, &known, here);
    (views(on_record, &mapped, here), devices, snapshots)
}

fn views(on_record: Vec<Looked<Shown>>, mapped: &[Mapped], here: &Here) -> Vec<ViewFacts> {
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
    on_record.into_iter().map(look).collect()
}

/// The store's loop device is always read-only.
fn stands_on_writable(device: &Mapped) -> bool {
    let mut below = sysfs_slaves(device.number).into_iter();
    below.any(|number| {
        let path = format!("/sys/dev/block/{number}/ro");
        fs::read_to_string(Path::new(&path)).is_ok_and(|text| text.trim() == "0")
    })
}

/// Devices that carry our mark, and are neither on record nor a running command's. Their ids are known from now on.
fn stray_devices(mapped: &[Mapped], known: &mut BTreeSet<String>, here: &Here) -> Vec<String> {
    let mut devices = Vec::new();
    for device in mapped {
        let Some(id) = device.uuid.strip_prefix(UUID_PREFIX) else {
            continue;
        };
        let is_busy = here.is_locked(&lock::path_of(&shown::lock_name(&device.name)));
        if known.insert(id.to_owned()) && !is_busy {
            devices.push(device.name.clone());
        }
    }
    devices
}

/// The same for snapshots.
fn stray_snapshots(
    mapped: &[Mapped],
    known: &BTreeSet<String>,
    here: &Here,
) -> Looked<Vec<String>> {
    let is_stray = |row: &LvRow| {
        run_of(row).is_some_and(|id| {
            let lock = lock::path_of(&name_of("snapshot", id));
            !known.contains(id) && !here.is_locked(&lock) && !here.is_open(&row.lv_name)
        })
    };
    let strays = tagged(mapped)?.into_iter().filter(is_stray);
    Ok(strays.map(|row| row.lv_name).collect())
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
