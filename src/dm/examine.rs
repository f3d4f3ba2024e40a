//! From a mapped device to the logical volume that it is.
//!
//! Guarantees: the parts of a snapshot are checked against each other by UUID; what does not add up is
//! an error, never a guess. Asks the kernel alone.

use super::device::{DeviceMapper, device_path, sysfs_holders};
use super::name::{LvName, split_dm_name};
use super::pool;
use super::snapshot::{LogicalVolume, OriginVolume, Role, ThickSnapshot};
use super::table::{SnapshotStatus, SnapshotTarget, Target, parse_snapshot_status, parse_target};
use super::uuid::DmUuid;
use super::wire::{DeviceInfo, Selector};
use crate::error::{Error, Result};
use crate::sys::device::DeviceNumber;
use crate::units::sectors_to_bytes;

/// Looks at an active logical volume's public device.
pub fn examine(dm: &DeviceMapper, info: &DeviceInfo) -> Result<LogicalVolume> {
    let unexpected = |reason: &str| Error::Lvm {
        what: info.name.clone(),
        reason: reason.to_owned(),
    };
    let uuid = DmUuid::parse(&info.uuid)
        .filter(DmUuid::is_public)
        .ok_or_else(|| unexpected("it is not a logical volume of LVM, or a hidden part of one"))?;
    let (name, None) = split_dm_name(&info.name)
        .ok_or_else(|| unexpected("its device-mapper name is not one that LVM makes"))?
    else {
        return Err(unexpected("it is a hidden part of a logical volume"));
    };
    let (targets, size_bytes) = targets_of(dm, info)?;
    let role = role_of(dm, &name, info, &uuid, &targets, size_bytes)?;
    Ok(LogicalVolume {
        uuid: uuid.lv_uuid(),
        path: device_path(info.device, &info.name),
        device: info.device,
        size_bytes,
        role,
        open_count: info.open_count,
        read_only: info.read_only,
        suspended: info.suspended,
        name,
    })
}

fn targets_of(dm: &DeviceMapper, info: &DeviceInfo) -> Result<(Vec<Target>, u64)> {
    let broken = |reason: String| Error::Lvm {
        what: info.name.clone(),
        reason,
    };
    let mut targets = Vec::new();
    let mut sectors = 0u64;
    for line in dm.table(info.device)? {
        sectors = line
            .start_sectors
            .checked_add(line.length_sectors)
            .ok_or_else(|| broken("its device-mapper table has an impossible size".into()))?;
        if line.kind == "thin" && line.params.trim() == "Fail" {
            let name = split_dm_name(&info.name).map(|(name, _)| name.to_string());
            pool::refuse_failed(dm, info.device, name.as_deref().unwrap_or(&info.name))?;
        }
        let target = parse_target(&line.kind, &line.params);
        targets.push(target.map_err(|error| broken(error.to_string()))?);
    }
    let size = sectors_to_bytes(sectors);
    let size =
        size.ok_or_else(|| broken("its device-mapper table has an impossible size".into()))?;
    Ok((targets, size))
}

fn role_of(
    dm: &DeviceMapper,
    name: &LvName,
    info: &DeviceInfo,
    uuid: &DmUuid,
    targets: &[Target],
    size_bytes: u64,
) -> Result<Role> {
    Ok(match targets {
        [Target::Snapshot(target)] => {
            let status = status_of(dm, info.device, name)?;
            let snapshot = thick_snapshot(dm, name, uuid, *target, size_bytes, status)?;
            Role::ThickSnapshot(Box::new(snapshot))
        }
        [Target::SnapshotOrigin { real }] => Role::ThickOrigin {
            real: *real,
            merging: false,
        },
        [Target::SnapshotMerge(target)] => Role::ThickOrigin {
            real: target.real,
            merging: true,
        },
        // While a snapshot is merged LVM replaces its public device by `error`; its store lives on.
        [Target::Error] => match merging_snapshot(dm, name, uuid, size_bytes)? {
            Some(snapshot) => Role::ThickSnapshot(Box::new(snapshot)),
            None => Role::Other {
                kind: "error".into(),
            },
        },
        [
            Target::Thin {
                pool,
                device_id,
                external_origin,
            },
        ] => {
            let (metadata, block_bytes) = pool_of(dm, *pool, name)?;
            Role::Thin {
                pool: *pool,
                device_id: *device_id,
                block_bytes,
                metadata,
                external_origin: *external_origin,
            }
        }
        [Target::ThinPool { .. }] => Role::ThinPool,
        _ if uuid.layer() == Some("pool") => Role::ThinPool,
        [Target::Era { .. }] => Role::Other { kind: "era".into() },
        [Target::Other(kind), ..] if !is_plain(kind) => Role::Other { kind: kind.clone() },
        [] => Role::Other {
            kind: "without a table".into(),
        },
        _ => Role::Plain,
    })
}

/// Target types under which a volume is just a volume.
fn is_plain(kind: &str) -> bool {
    [
        "striped",
        "raid",
        "mirror",
        "cache",
        "writecache",
        "integrity",
        "vdo",
    ]
    .contains(&kind)
}

/// Where a pool's maps are, and its block size.
fn pool_of(dm: &DeviceMapper, pool: DeviceNumber, name: &LvName) -> Result<(DeviceNumber, u64)> {
    let lines = dm.table(pool)?;
    let found = lines
        .first()
        .and_then(|line| match parse_target(&line.kind, &line.params) {
            Ok(Target::ThinPool {
                metadata,
                block_sectors,
                ..
            }) => Some((metadata, sectors_to_bytes(block_sectors)?)),
            _ => None,
        });
    found.ok_or_else(|| Error::Lvm {
        what: name.to_string(),
        reason: format!("its pool, device {pool}, has no thin-pool table"),
    })
}

fn status_of(dm: &DeviceMapper, device: DeviceNumber, name: &LvName) -> Result<SnapshotStatus> {
    let lines = dm.status(device)?;
    let words = lines.first().map_or("", |line| line.params.as_str());
    parse_snapshot_status(words).map_err(|error| Error::Lvm {
        what: name.to_string(),
        reason: error.to_string(),
    })
}

/// Puts a snapshot together from its table line, and checks by UUID that the parts belong to it.
fn thick_snapshot(
    dm: &DeviceMapper,
    name: &LvName,
    uuid: &DmUuid,
    target: SnapshotTarget,
    origin_size_bytes: u64,
    status: SnapshotStatus,
) -> Result<ThickSnapshot> {
    let wrong = |reason: String| Error::Lvm {
        what: name.to_string(),
        reason,
    };
    let uuid_of = |device: DeviceNumber, what: &str| {
        let info = dm.info(Selector::Device(device))?;
        let info =
            info.ok_or_else(|| wrong(format!("its {what}, device {device}, is not there")))?;
        let uuid = DmUuid::parse(&info.uuid);
        let uuid = uuid.ok_or_else(|| {
            wrong(format!(
                "its {what}, device {device} ({}), is not LVM's",
                info.name
            ))
        })?;
        Ok::<_, Error>((info, uuid))
    };

    let (store_info, store_uuid) = uuid_of(target.store, "exception store")?;
    if store_uuid != uuid.with_layer(Some("cow")) {
        let found = format!("device {} ({})", target.store, store_info.name);
        return Err(wrong(format!(
            "its table names {found} as exception store, which is not its own"
        )));
    }
    let (real_info, real_uuid) = uuid_of(target.real, "origin")?;
    if real_uuid.layer() != Some("real") {
        let found = format!("device {} ({})", target.real, real_info.name);
        return Err(wrong(format!(
            "its table names {found} as origin, which is not an origin's data"
        )));
    }
    if !target.persistent {
        return Err(wrong(
            "its exception store is not persistent, so there is nothing to read".into(),
        ));
    }
    let public = dm.info(Selector::Uuid(&real_uuid.with_layer(None).to_string()))?;
    let public = public.ok_or_else(|| {
        wrong(format!(
            "its origin has no device: activate {}",
            real_info.name.trim_end_matches("-real")
        ))
    })?;
    let (origin_name, _) = split_dm_name(&public.name).ok_or_else(|| {
        wrong(format!(
            "its origin's name `{}` is not one that LVM makes",
            public.name
        ))
    })?;
    let (origin_targets, origin_now_bytes) = targets_of(dm, &public)?;
    let merging = matches!(origin_targets.as_slice(),
        [Target::SnapshotMerge(merge)] if merge.store == target.store);
    let chunk_bytes = sectors_to_bytes(target.chunk_sectors)
        .ok_or_else(|| wrong("its table has an impossible chunk size".into()))?;
    Ok(ThickSnapshot {
        origin: OriginVolume {
            name: origin_name,
            uuid: real_uuid.lv_uuid(),
            path: device_path(public.device, &public.name),
            device: public.device,
            size_bytes: origin_now_bytes,
        },
        real: target.real,
        origin_size_bytes,
        store_device: target.store,
        store: device_path(target.store, &store_info.name),
        chunk_bytes,
        status: if merging {
            SnapshotStatus::Merging
        } else {
            status
        },
    })
}

/// The snapshot behind a public device that was replaced by `error`: its store is under a merge.
fn merging_snapshot(
    dm: &DeviceMapper,
    name: &LvName,
    uuid: &DmUuid,
    size_bytes: u64,
) -> Result<Option<ThickSnapshot>> {
    let Some(store) = dm.info(Selector::Uuid(&uuid.with_layer(Some("cow")).to_string()))? else {
        return Ok(None);
    };
    for holder in sysfs_holders(store.device) {
        let lines = dm.table(holder)?;
        let target = lines
            .first()
            .map(|line| parse_target(&line.kind, &line.params));
        if let Some(Ok(Target::SnapshotMerge(target))) = target {
            let status = SnapshotStatus::Merging;
            return thick_snapshot(dm, name, uuid, target, size_bytes, status).map(Some);
        }
    }
    Ok(None)
}
