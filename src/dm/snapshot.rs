//! An active logical volume and, for a classic snapshot, its origin and exception store.
//!
//! Guarantees: found by UUID and cross-checked against the table, never by name; an arrangement that
//! does not add up is an error; the status says by itself whether the exception table can be trusted.

use std::path::PathBuf;

use super::device::{DeviceMapper, sysfs_holders, sysfs_name_and_uuid};
use super::examine::examine;
use super::name::{LvName, split_dm_name};
use super::table::SnapshotStatus;
use super::uuid::DmUuid;
use super::wire::Selector;
use crate::error::{Error, Result};
use crate::sys::device::DeviceNumber;

/// An active logical volume: its public device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Volume group and name.
    pub name: LvName,
    /// LVM's UUID of the logical volume, with dashes.
    pub uuid: String,
    /// What to open.
    pub path: PathBuf,
    /// Its number.
    pub device: DeviceNumber,
    /// Its size.
    pub size_bytes: u64,
    /// What it is.
    pub role: Role,
    /// How often it is open, by us too.
    pub open_count: u32,
    /// Refuses writes.
    pub read_only: bool,
    /// I/O is held back.
    pub suspended: bool,
}

/// What a logical volume is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Linear, striped, mirrored: no record of changes.
    Plain,
    /// The origin of classic snapshots.
    ThickOrigin {
        /// The device with its data.
        real: DeviceNumber,
        /// True while a snapshot is merged into it.
        merging: bool,
    },
    /// A classic snapshot.
    ThickSnapshot(Box<ThickSnapshot>),
    /// A thin volume.
    Thin {
        /// Its pool's device.
        pool: DeviceNumber,
        /// Its id there: reused after deletion, so never an identity.
        device_id: u32,
        /// The pool's block size.
        block_bytes: u64,
        /// Where the pool's maps are (`_tmeta`).
        metadata: DeviceNumber,
        /// A read-only device that unmapped blocks are read from: with one, they are not zero.
        external_origin: Option<DeviceNumber>,
    },
    /// A thin pool.
    ThinPool,
    /// A device that lvmsync cannot say anything about.
    Other {
        /// Its target type.
        kind: String,
    },
}

/// A classic snapshot with everything that is needed to read its exception table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThickSnapshot {
    /// The origin's public device.
    pub origin: OriginVolume,
    /// The device with the origin's data, shared by all its snapshots.
    pub real: DeviceNumber,
    /// Size that the snapshot covers: smaller than the origin's if the origin was extended since.
    pub origin_size_bytes: u64,
    /// Device number of the exception store.
    pub store_device: DeviceNumber,
    /// What to open to read the exception store.
    pub store: PathBuf,
    /// Chunk size in the table; the store's own header overrides it.
    pub chunk_bytes: u64,
    /// The kernel's word on it when it was looked at.
    pub status: SnapshotStatus,
}

/// The origin of a classic snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginVolume {
    /// Volume group and name.
    pub name: LvName,
    /// LVM's UUID, with dashes.
    pub uuid: String,
    /// What to open.
    pub path: PathBuf,
    /// Its number.
    pub device: DeviceNumber,
    /// Its size now.
    pub size_bytes: u64,
}

impl LogicalVolume {
    /// The classic snapshot that this volume is, or an error that says what it is instead.
    pub fn thick_snapshot(&self) -> Result<&ThickSnapshot> {
        let reason = match &self.role {
            Role::ThickSnapshot(snapshot) => return Ok(snapshot),
            Role::ThickOrigin { merging: true, .. } => {
                "it is an origin that a snapshot is being merged into, not a snapshot; wait for the \
                 end of the merge"
                    .to_owned()
            }
            Role::ThickOrigin { real, .. } => {
                let names: Vec<_> = snapshots_on(*real, self.device);
                let names = names.iter().map(LvName::to_string).collect::<Vec<_>>().join(", ");
                format!("it is an origin, not a snapshot; its snapshots: {names}")
            }
            Role::Plain => {
                format!(
                    "it is a plain logical volume without snapshots; \
                     make one: lvcreate -s -n NAME -L SIZE {}",
                    self.name
                )
            }
            Role::Thin { .. } => {
                "it is a thin volume, not a classic snapshot: thin volumes have no exception store"
                    .to_owned()
            }
            Role::ThinPool => "it is a thin pool, not a snapshot".to_owned(),
            Role::Other { kind } => format!("it is a device of type `{kind}`, not a snapshot"),
        };
        Err(Error::Lvm {
            what: self.name.to_string(),
            reason,
        })
    }
}

/// The snapshots that share an origin's data.
fn snapshots_on(real: DeviceNumber, origin: DeviceNumber) -> Vec<LvName> {
    let public_name = |device: DeviceNumber| {
        let (name, uuid) = sysfs_name_and_uuid(device)?;
        DmUuid::parse(&uuid).filter(|uuid| uuid.layer().is_none())?;
        Some(split_dm_name(&name)?.0)
    };
    let mut names: Vec<_> = sysfs_holders(real)
        .into_iter()
        .filter(|device| *device != origin)
        .filter_map(public_name)
        .collect();
    names.sort();
    names
}

/// The status words again, after the table was read: only if both looks are in order, and the device
/// is still the same, was the table complete.
pub fn recheck(volume: &LogicalVolume) -> Result<SnapshotStatus> {
    let before = volume.thick_snapshot()?;
    let dm = DeviceMapper::open()?;
    let gone = |reason: &str| Error::Lvm {
        what: volume.name.to_string(),
        reason: reason.to_owned(),
    };
    let info = dm
        .info(Selector::Device(volume.device))?
        .ok_or_else(|| gone("the snapshot was removed while its exception table was read"))?;
    let now = examine(&dm, &info)?;
    if now.uuid != volume.uuid {
        return Err(gone(
            "another volume took its place while its exception table was read",
        ));
    }
    let Role::ThickSnapshot(after) = now.role else {
        return Err(gone(
            "it stopped being a snapshot while its exception table was read",
        ));
    };
    if after.real != before.real || after.store_device != before.store_device {
        return Err(gone(
            "its origin or exception store was replaced while its table was read",
        ));
    }
    Ok(after.status)
}
