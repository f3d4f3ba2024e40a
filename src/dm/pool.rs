//! The thin pool below a volume.
//!
//! Guarantees: found through the tables that are active now; what is not proved to be a thin volume, right
//! below, has no pool here that anything but its state is taken from. Only looks.

use super::device::{DeviceMapper, sysfs_name_and_uuid, sysfs_slaves};
use super::name::{LvName, split_dm_name};
use super::pool_status::{PoolStatus, parse_mapped_bytes, parse_pool_status};
use super::snapshot::{LogicalVolume, Role};
use super::table::{PoolFeatures, Target, parse_target};
use super::wire::Selector;
use crate::error::{Error, Result};
use crate::sys::device::DeviceNumber;
use crate::units::sectors_to_bytes;
use crate::volume::host::{Device, Host};
use crate::volume::in_use::ActivePool;

/// The thin pools that are active on `host`, LVM's and others. Where device-mapper cannot be asked, LVM's are known by
/// their UUIDs, and what others made may be a pool, on whatever it stands.
pub fn active_pools(host: &Host) -> Vec<ActivePool> {
    let dm = DeviceMapper::open().ok();
    let mapped = host.devices.iter();
    let mapped = mapped.filter(|(_, device)| device.dm_name.is_some());
    let mut pools = Vec::new();
    for (number, device) in mapped {
        let metadata = match &dm {
            None if may_be_pool(device) => device.slaves.clone(),
            None => Vec::new(),
            Some(dm) => match only_target(dm, *number) {
                Ok(Some(Target::ThinPool { metadata, .. })) => vec![metadata],
                _ => Vec::new(),
            },
        };
        pools.extend(metadata.into_iter().map(|metadata| ActivePool {
            name: device.shown_name().to_owned(),
            device: *number,
            metadata,
        }));
    }
    pools
}

fn may_be_pool(device: &Device) -> bool {
    let uuid = device.dm_uuid.as_deref().unwrap_or_default();
    uuid.ends_with("-tpool") || !uuid.starts_with("LVM-")
}

/// A thin volume's pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: LvName,
    /// The unit in which it gives space.
    pub block_bytes: u64,
    /// How it was set up.
    pub features: PoolFeatures,
    /// Unmapped blocks of the volume are read from another device: they are not zero.
    pub has_external_origin: bool,
    /// The volume is the origin of classic snapshots, which stand between it and whoever writes.
    pub below_snapshots: bool,
    /// The pool's device.
    device: DeviceNumber,
    /// The thin volume's.
    thin: DeviceNumber,
}

impl Pool {
    /// The pool that `volume` takes its space from, directly or below its classic snapshots.
    pub fn of(volume: &LogicalVolume) -> Result<Option<Self>> {
        let (thin, below_snapshots) = match volume.role {
            Role::Thin { .. } => (volume.device, false),
            Role::ThickOrigin { real, .. } => (real, true),
            _ => return Ok(None),
        };
        let dm = DeviceMapper::open()?;
        Self::of_thin(&dm, thin, below_snapshots, &volume.name.to_string())
    }

    /// A pool that takes part in what stands at `device`, called `what`: encryption or a partition on a thin volume. What
    /// it does to a write is known, and not how: good for its state, and for nothing else.
    pub fn below(device: DeviceNumber, what: &str) -> Result<Option<Self>> {
        let mut found = sysfs_slaves(device);
        let mut next = 0;
        while let Some(device) = found.get(next).copied() {
            next += 1;
            // What does not answer is no pool: without it a failure says less, and that is all.
            if sysfs_name_and_uuid(device).is_some()
                && let Ok(dm) = DeviceMapper::open()
            {
                if let Err(error @ Error::Refused { .. }) = refuse_failed(&dm, device, what) {
                    return Err(error);
                }
                if let Ok(Some(pool)) = Self::of_thin(&dm, device, false, what) {
                    return Ok(Some(pool));
                }
            }
            for below in sysfs_slaves(device) {
                if !found.contains(&below) {
                    found.push(below);
                }
            }
        }
        Ok(None)
    }

    /// The pool of what may be a thin volume, called `what`.
    fn of_thin(
        dm: &DeviceMapper,
        thin: DeviceNumber,
        below_snapshots: bool,
        what: &str,
    ) -> Result<Option<Self>> {
        let Some(Target::Thin {
            pool,
            external_origin,
            ..
        }) = only_target(dm, thin)?
        else {
            return Ok(None);
        };
        let wrong = |reason: String| Error::Lvm {
            what: what.to_owned(),
            reason,
        };
        let found = match only_target(dm, pool)? {
            Some(Target::ThinPool {
                block_sectors,
                features,
                ..
            }) => sectors_to_bytes(block_sectors).zip(Some(features)),
            _ => None,
        };
        let (block_bytes, features) = found
            .ok_or_else(|| wrong(format!("its pool, device {pool}, has no thin-pool table")))?;
        let info = dm.info(Selector::Device(pool))?;
        let name = info.and_then(|info| split_dm_name(&info.name));
        let (name, _) =
            name.ok_or_else(|| wrong(format!("its pool, device {pool}, is not LVM's")))?;
        Ok(Some(Self {
            name,
            block_bytes,
            features,
            has_external_origin: external_origin.is_some(),
            below_snapshots,
            device: pool,
            thin,
        }))
    }

    /// A block that was discarded reads as zeroes.
    pub fn discard_zeroes(&self) -> bool {
        !self.has_external_origin && !self.below_snapshots && !self.features.ignores_discards
    }

    /// What the kernel says of it now.
    pub fn status(&self) -> Result<PoolStatus> {
        status_of(&DeviceMapper::open()?, self.device, &self.name)
    }

    /// Up to how many bytes the volume can hold: what is mapped already, and what is free in the pool.
    pub fn room_bytes(&self) -> Result<Option<u64>> {
        let PoolStatus::Working(figures) = self.status()? else {
            return Ok(None);
        };
        let lines = DeviceMapper::open()?.status(self.thin)?;
        let words = lines.first().map_or("", |line| line.params.as_str());
        let free = figures.data.free().saturating_mul(self.block_bytes);
        Ok(parse_mapped_bytes(words).map(|mapped| mapped.saturating_add(free)))
    }
}

/// What the kernel says of the pool called `name`; `None` while it is not active.
pub fn status_by_name(name: &LvName) -> Result<Option<PoolStatus>> {
    let dm = DeviceMapper::open()?;
    let device_name = format!("{}-tpool", name.dm_name());
    match dm.info(Selector::Name(&device_name))? {
        Some(info) => status_of(&dm, info.device, name).map(Some),
        None => Ok(None),
    }
}

/// The refusal of `what`, a volume whose pool has failed. The kernel then does not even tell its table, so the pool is
/// found by what the volume stands on.
pub(super) fn refuse_failed(dm: &DeviceMapper, thin: DeviceNumber, what: &str) -> Result<()> {
    for below in sysfs_slaves(thin) {
        let info = dm.info(Selector::Device(below))?;
        let name = info.and_then(|info| split_dm_name(&info.name));
        let Some((name, Some(layer))) = name else {
            continue;
        };
        if layer == "tpool"
            && let Some(trouble) = status_of(dm, below, &name)?.trouble(&name)
        {
            return Err(Error::refused(what, trouble.reason, trouble.way_out));
        }
    }
    Ok(())
}

fn status_of(dm: &DeviceMapper, pool: DeviceNumber, name: &LvName) -> Result<PoolStatus> {
    let lines = dm.status(pool)?;
    let words = lines.first().map_or("", |line| line.params.as_str());
    parse_pool_status(words).map_err(|error| Error::Lvm {
        what: name.to_string(),
        reason: error.to_string(),
    })
}

fn only_target(dm: &DeviceMapper, device: DeviceNumber) -> Result<Option<Target>> {
    match dm.table(device)?.as_slice() {
        [line] => Ok(parse_target(&line.kind, &line.params).ok()),
        _ => Ok(None),
    }
}
