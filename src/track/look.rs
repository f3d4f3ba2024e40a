//! What is there: a volume, the era device on it, and the record of that.
//!
//! Guarantees: changes nothing. Whether the era device is suspended is the first question, and if it is there is no other:
//! it would answer none, and LVM's commands, which look at all devices, would wait for it.

use super::names::{self, Metadata, device_uuid, metadata_in, metadata_name, volume_of_device};
use super::refusals;
use super::seen::{Merge, Seen, SeenDevice};
use super::step::discard_bytes;
use crate::dm::device::{DeviceMapper, sysfs_name_and_uuid};
use crate::dm::era::{EraDevice, era_device, era_device_on, status_of, suspended};
use crate::dm::lvm::{LABEL_BYTES, LvRow, all_volumes, has_label, is_installed, volumes_of};
use crate::dm::name::LvName;
use crate::dm::openers::writers_open;
use crate::dm::resolve::{Resolved, resolve};
use crate::dm::snapshot::{LogicalVolume, Role};
use crate::dm::wire::{DeviceInfo, Selector};
use crate::error::{Error, Result};
use crate::sys::device::DeviceNumber;
use crate::track::witness;
use crate::volume::ReadAt;
use crate::volume::host::{Host, VolumeIdentity};
use crate::volume::in_use::Holder;
use crate::volume::open::Volume;

/// The volume that `name` means: the logical volume, or the one below the era device of this name.
pub fn volume(dm: &DeviceMapper, name: &str) -> Result<LogicalVolume> {
    match resolve(name)? {
        Resolved::LogicalVolume(volume) => Ok(*volume),
        Resolved::BlockDevice(path) => {
            let not_one = || {
                Error::Usage(format!(
                    "{name} is neither a logical volume nor an era device on one"
                ))
            };
            let identity = VolumeIdentity::of_path(&path)
                .map_err(|error| Error::io(format!("cannot look at {name}"), error))?;
            let VolumeIdentity::Block(device) = identity else {
                return Err(not_one());
            };
            let found = era_device(dm, device)?.ok_or_else(not_one)?;
            let (below, _) = sysfs_name_and_uuid(found.origin).ok_or_else(not_one)?;
            match resolve(&format!("/dev/mapper/{below}"))? {
                Resolved::LogicalVolume(volume) => Ok(*volume),
                _ => Err(not_one()),
            }
        }
        Resolved::File(_) => Err(Error::Usage(format!(
            "{name} is a file; dm-era tracks logical volumes"
        ))),
    }
}

/// Everything that a plan needs to know of a volume.
pub fn look(dm: &DeviceMapper, volume: &LogicalVolume) -> Result<Seen> {
    if let Some(device) = suspended_device_on(dm, volume)? {
        return Err(suspended(&volume.name.to_string(), &device.name));
    }
    let rows = volumes_of(volume.name.vg())?;
    let metadata = rows.iter().filter_map(metadata_in);
    let metadata = metadata.filter(|found| found.of == volume.uuid);
    let metadata = at_most_one(volume, metadata.collect())?;
    let host = Host::load();
    let device = device_on(dm, &host, volume)?;
    let shown = |holder: &Holder| holder.to_string();
    let is_device = |holder: &Holder| matches!((holder, &device), (Holder::Device { name, .. }, Some(device)) if *name == device.name);
    let mut holders: Vec<String> = host
        .holders_of(VolumeIdentity::Block(volume.device))
        .iter()
        .filter(|holder| !is_device(holder))
        .map(shown)
        .collect();
    let open = writers_open(volume.device)?.others;
    let is_only_open = device.is_none() && holders.is_empty() && open > 0;
    if is_only_open {
        holders.push(format!("open by {open} process(es)"));
    }
    let taken = metadata_name(&volume.name);
    let has_name = |row: &LvRow| taken.as_ref().is_some_and(|name| row.name() == name.lv());
    Ok(Seen {
        volume: volume.name.clone(),
        uuid: volume.uuid.clone(),
        size_bytes: volume.size_bytes,
        unfit: unfit(volume, &rows),
        merge: merge(volume, &rows),
        thin_id: thin_id(volume),
        read_only: volume.read_only,
        holders,
        is_only_open,
        metadata,
        device,
        name_is_taken: rows.iter().any(has_name),
    })
}

/// Refuses to have `volume` written to below its era device, which would not hear of it.
pub fn refuse_tracked(volume: &LogicalVolume, called: &str) -> Result<()> {
    let dm = DeviceMapper::open()?;
    // LVM would wait for it.
    if let Some(device) = suspended_device_on(&dm, volume)? {
        return Err(suspended(called, &device.name));
    }
    let found = era_device_on(&dm, volume.device)?;
    if found.is_none() && !is_installed() {
        return Ok(());
    }
    match (record_of(volume)?, found) {
        (Some(record), None) if record.is_void => Ok(()),
        (Some(record), _) => Err(refusals::past_the_record(called, volume, &record)),
        (None, Some(device)) => Err(refusals::stands_on(called, &device.name)),
        (None, None) => Ok(()),
    }
}

/// The era device on a volume, if that is suspended. LVM's commands would wait for it then, too.
pub fn suspended_device_on(dm: &DeviceMapper, volume: &LogicalVolume) -> Result<Option<EraDevice>> {
    let Some(found) = era_device_on(dm, volume.device)? else {
        return Ok(None);
    };
    let info = dm.info(Selector::Device(found.device))?;
    Ok(info.is_some_and(|info| info.suspended).then_some(found))
}

fn at_most_one(volume: &LogicalVolume, mut found: Vec<Metadata>) -> Result<Option<Metadata>> {
    if let [first, second, ..] = found.as_slice() {
        return Err(Error::refused(
            volume.name.to_string(),
            format!(
                "two volumes are tagged as its record: {} and {}",
                first.name, second.name
            ),
            format!(
                "Take the tag off the wrong one: lvchange --deltag {} VG/NAME",
                names::TAG
            ),
        ));
    }
    Ok(found.pop())
}

fn device_on(dm: &DeviceMapper, host: &Host, volume: &LogicalVolume) -> Result<Option<SeenDevice>> {
    let ours = device_uuid(&volume.uuid);
    let found = era_device_on(dm, volume.device)?;
    let info: Option<DeviceInfo> = match &found {
        Some(found) => dm.info(Selector::Device(found.device))?,
        None => dm.info(Selector::Uuid(&ours))?,
    };
    let Some(info) = info else {
        return Ok(None);
    };
    let holders = host.holders_of(VolumeIdentity::Block(info.device));
    // Found by its UUID alone, and not without a table, which a killed run has left.
    let is_elsewhere = found.is_none() && info.has_table;
    Ok(Some(SeenDevice {
        is_ours: info.uuid == ours && !is_elsewhere,
        is_elsewhere,
        has_table: info.has_table,
        open_count: info.open_count,
        is_root: holders.iter().any(is_root),
        holders: holders.iter().map(ToString::to_string).collect(),
        sectors: found.map_or(0, |found| found.sectors),
        name: info.name,
    }))
}

/// `/usr` is mounted by the initramfs as well, and stays mounted as long.
fn is_root(holder: &Holder) -> bool {
    matches!(holder, Holder::Mounted { mount_point, .. } if mount_point == "/" || mount_point == "/usr")
}

fn merge(volume: &LogicalVolume, rows: &[LvRow]) -> Merge {
    if matches!(volume.role, Role::ThickOrigin { merging: true, .. }) {
        return Merge::Running;
    }
    // LVM's letter for an origin with a snapshot that is to be merged into it, classic or thin.
    let is_due = |row: &LvRow| row.lv_uuid == volume.uuid && row.lv_attr.starts_with('O');
    match rows.iter().any(is_due) {
        true => Merge::Due,
        false => Merge::No,
    }
}

fn thin_id(volume: &LogicalVolume) -> Option<u32> {
    match &volume.role {
        Role::Thin { device_id, .. } => Some(*device_id),
        _ => None,
    }
}

fn unfit(volume: &LogicalVolume, rows: &[LvRow]) -> Option<String> {
    if volume.read_only {
        return Some("it is read-only, so nothing will be written to it".to_owned());
    }
    let is_record = |row: &LvRow| row.lv_uuid == volume.uuid && metadata_in(row).is_some();
    if rows.iter().any(is_record) {
        return Some("it holds the record of another volume".to_owned());
    }
    match merge(volume, rows) {
        Merge::No => {}
        Merge::Due => {
            return Some(
                "a snapshot will be merged into it when it is activated the next time".to_owned(),
            );
        }
        Merge::Running => return Some("a snapshot is being merged into it".to_owned()),
    }
    match &volume.role {
        Role::Plain | Role::Thin { .. } | Role::ThickOrigin { .. } => None,
        Role::ThickSnapshot(_) => Some("it is a classic snapshot".to_owned()),
        Role::ThinPool => Some("it is a thin pool".to_owned()),
        Role::Other { kind } => Some(format!("it is a device of kind {kind}")),
    }
}

/// All volumes that are tracked and active: those with a record, and those with an era device of ours.
pub fn all_tracked() -> Result<Vec<LvName>> {
    let rows = all_volumes()?;
    let mut uuids: Vec<String> = rows
        .iter()
        .filter_map(metadata_in)
        .map(|found| found.of)
        .collect();
    for device in Host::load().devices.values() {
        let uuid = device.dm_uuid.as_deref().and_then(volume_of_device);
        uuids.extend(uuid.map(str::to_owned));
    }
    let named = rows
        .iter()
        .filter(|row| row.is_active() && uuids.contains(&row.lv_uuid));
    let mut names: Vec<LvName> = named
        .filter_map(|row| LvName::new(&row.vg_name, row.name()))
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// LVM scans era devices, which it does not know: it would find the group of a guest on the guest's disk.
pub fn refuse_physical_volume(seen: &Seen) -> Result<()> {
    let name = &seen.volume;
    let volume = Volume::open(format!("/dev/{name}"))?;
    let length = LABEL_BYTES.min(volume.size_bytes());
    let mut beginning = vec![0; usize::try_from(length).unwrap_or(0)];
    volume
        .read_exact_at(&mut beginning, 0)
        .map_err(|error| Error::io(format!("cannot read the beginning of {name}"), error))?;
    if !has_label(&beginning) {
        return Ok(());
    }
    let device = seen.device_name()?;
    Err(Error::refused(
        name.to_string(),
        "it is a physical volume of LVM itself, the disk of a guest perhaps, and LVM would find its group on the era device",
        format!(
            "Let LVM not look there: global_filter = [ \"r|^/dev/mapper/{device}$|\" ] in /etc/lvm/lvm.conf, and the same for \
             other names of it in /dev; then --force"
        ),
    ))
}

/// The word for what the volume holds, as far as a witness looks at it. Of use while nobody writes to it.
pub fn rest(seen: &Seen) -> Result<String> {
    let name = &seen.volume;
    let volume = Volume::open(format!("/dev/{name}"))?;
    let size = seen.tracked_bytes().min(volume.size_bytes());
    let blocks = witness::look(&volume, &witness::places(seen.uuid.as_bytes(), size));
    let blocks = blocks
        .map_err(|error| Error::io(format!("cannot read sampled blocks of {name}"), error))?;
    Ok(witness::word(&blocks))
}

/// The era that goes on; 0 where the era device is not up.
pub fn era(dm: &DeviceMapper, seen: &Seen) -> Result<u32> {
    let device = seen.device.as_ref().filter(|device| device.has_table);
    let Some(device) = device else {
        return Ok(0);
    };
    match dm.info(Selector::Name(&device.name))? {
        Some(info) => Ok(status_of(dm, info.device, &seen.volume.to_string())?.era),
        None => Ok(0),
    }
}

/// The record of a volume, as LVM knows it.
pub fn record_of(volume: &LogicalVolume) -> Result<Option<Metadata>> {
    Ok(known_of(volume)?.record)
}

/// What LVM knows of a tracked volume.
#[derive(Debug)]
pub struct Known {
    /// Its record, where that is one of ours.
    pub record: Option<Metadata>,
    /// Whether a snapshot is merged into it.
    pub merge: Merge,
}

impl Known {
    /// The tracked volume is another one of its thin pool than it was.
    pub fn is_swapped(&self, volume: &LogicalVolume) -> bool {
        let record = self.record.as_ref();
        record.is_some_and(|record| record.was_swapped(thin_id(volume)))
    }
}

/// What LVM knows of a volume that may be tracked.
pub fn known_of(volume: &LogicalVolume) -> Result<Known> {
    let rows = volumes_of(volume.name.vg())?;
    let metadata = rows.iter().filter_map(metadata_in);
    let metadata = metadata.filter(|found| found.of == volume.uuid);
    Ok(Known {
        record: at_most_one(volume, metadata.collect())?,
        merge: merge(volume, &rows),
    })
}

/// Whether discards get through an era device; `None` where that cannot be seen.
pub fn lets_discards_through(device: DeviceNumber) -> Option<bool> {
    discard_bytes(device).map(|bytes| bytes > 0)
}
