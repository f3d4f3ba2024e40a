//! Who might be writing to a device right now.
//!
//! Guarantees: our own opens are not counted, nor are states that are shown over it; what cannot be told (an open by a
//! process may be for reading) is reported as possible, never left out.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::device::{DeviceMapper, sysfs_holders, sysfs_name_and_uuid};
use super::shown;
use super::wire::Selector;
use crate::error::Result;
use crate::sys::device::DeviceNumber;
use crate::volume::host::Host;

/// What holds a device open besides ourselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Openers {
    /// Opens by others: processes, mounts, devices on top.
    pub others: u32,
    /// Where it is mounted for writing.
    pub mounted_rw: Vec<String>,
    /// Where it is mounted read-only.
    pub mounted_ro: Vec<String>,
}

impl Openers {
    /// True if somebody may be writing: mounted for writing, or open by more than its read-only mounts.
    pub fn may_write(&self) -> bool {
        // However many mount points a filesystem has, it opens its device once.
        let read_only = u32::from(!self.mounted_ro.is_empty());
        !self.mounted_rw.is_empty() || self.others > read_only
    }
}

impl fmt::Display for Openers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.mounted_rw.as_slice(), self.may_write()) {
            ([], false) => write!(f, "not open for writing"),
            ([], true) => write!(f, "open by {} other user(s)", self.others),
            (mounts, _) => write!(f, "mounted for writing on {}", mounts.join(", ")),
        }
    }
}

/// Who has this mapped device open.
pub fn writers_open(device: DeviceNumber) -> Result<Openers> {
    let info = DeviceMapper::open()?.info(Selector::Device(device))?;
    let open_count = info.map_or(0, |info| info.open_count);
    let mut openers = Openers {
        others: open_count
            .saturating_sub(own_opens(device))
            .saturating_sub(views_on(device)),
        ..Openers::default()
    };
    let mounts = Host::mounts_now().into_iter();
    for mount in mounts.filter(|mount| mount.is_of(device)) {
        let list = if mount.read_write {
            &mut openers.mounted_rw
        } else {
            &mut openers.mounted_ro
        };
        list.push(mount.mount_point);
    }
    Ok(openers)
}

/// How many states are shown over it: those devices were made read-only, and write to nothing.
fn views_on(device: DeviceNumber) -> u32 {
    let is_view = |holder: &DeviceNumber| {
        sysfs_name_and_uuid(*holder).is_some_and(|(_, uuid)| uuid.starts_with(shown::UUID_PREFIX))
    };
    let count = sysfs_holders(device).iter().filter(|h| is_view(h)).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// How many of this process's descriptors are this device.
fn own_opens(device: DeviceNumber) -> u32 {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let is_it = |entry: &fs::DirEntry| {
        fs::metadata(entry.path()).is_ok_and(|m| {
            m.file_type().is_block_device() && DeviceNumber::from_stat(m.rdev()) == device
        })
    };
    let count = entries.flatten().filter(is_it).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}
