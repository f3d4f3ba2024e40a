//! A read-only device-mapper device that shows a state: what differs lies in an exception store in a file, all else is read
//! from the volume below.
//!
//! Guarantees: the device refuses writes, and so does the loop device between it and the file, which goes with it; names were
//! checked. What is there is found by UUID and by file, never by name alone. `dmsetup` and `losetup` do the work, for they
//! know how to wait for udev.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::device::{DeviceMapper, sysfs_slaves};
use super::lvm::{lvm_command, run};
use super::name::is_valid;
use super::wire::{DeviceInfo, Selector};
use crate::error::{Error, Result};
use crate::sys::device::DeviceNumber;
use crate::sys::ioctl;
use crate::units::SECTOR_BYTES;

/// Begins the UUID of each.
pub const UUID_PREFIX: &str = "LVMSYNC-view-";
/// Room is left for what udev and others append.
const MAX_NAME_BYTES: usize = 100;

/// The UUID of the one with this id.
pub fn uuid_of(id: &str) -> String {
    format!("{UUID_PREFIX}{id}")
}

/// The name that a user has chosen.
pub fn parse_name(text: &str) -> std::result::Result<String, String> {
    if is_valid(text) && text.len() <= MAX_NAME_BYTES && text != "control" {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` cannot be the name of a device: letters, digits and + _ . -, not - first, at most {MAX_NAME_BYTES}"
    ))
}

/// What a device is to show.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Its size.
    pub size_bytes: u64,
    /// What is below.
    pub base: DeviceNumber,
    /// The device with the exception store.
    pub store: &'a Path,
    /// Bytes of its chunks.
    pub chunk_bytes: u64,
}

impl Table<'_> {
    /// As device-mapper is told.
    fn line(&self) -> String {
        format!(
            "0 {} snapshot {} {} P {}",
            self.size_bytes / SECTOR_BYTES,
            self.base,
            self.store.display(),
            self.chunk_bytes / SECTOR_BYTES
        )
    }
}

/// Makes the device. `lock` is held until that is done, whatever becomes of the run.
pub fn create(name: &str, id: &str, table: Table<'_>, lock: File) -> Result<()> {
    let mut command = lvm_command("dmsetup");
    command.stdin(lock);
    command.args(["create", name, "--readonly", "--uuid", &uuid_of(id)]);
    command.args(["--table", &table.line()]);
    run(command, "dmsetup", name).map(|_| ())
}

/// The device with this id.
pub fn find(id: &str) -> Result<Option<DeviceInfo>> {
    DeviceMapper::open()?.info(Selector::Uuid(&uuid_of(id)))
}

/// True of a device that shows a state; of one that is not known, false.
pub fn is_view(name: &str) -> bool {
    let info = DeviceMapper::open().and_then(|dm| dm.info(Selector::Name(name)));
    info.is_ok_and(|info| info.is_some_and(|info| info.uuid.starts_with(UUID_PREFIX)))
}

/// True if any device has this name.
pub fn is_taken(name: &str) -> Result<bool> {
    let found = DeviceMapper::open()?.info(Selector::Name(name))?;
    Ok(found.is_some())
}

/// Removes the device with this id, if there is one.
pub fn remove(id: &str) -> Result<()> {
    let Some(info) = find(id)? else {
        return Ok(());
    };
    let mut command = lvm_command("dmsetup");
    command.args(["remove", "--retry", &info.name]);
    match run(command, "dmsetup", &info.name) {
        Err(_) if find(id)?.is_some_and(|info| info.open_count > 0) => Err(Error::held(
            format!("/dev/mapper/{}", info.name),
            "it is in use",
            "Unmount it, or stop what uses it; then run this again.",
        )),
        removed => removed.map(|_| ()),
    }
}

/// Makes a read-only loop device of a file, while `lock` is held.
pub fn attach(file: &Path, lock: File) -> Result<PathBuf> {
    let mut command = lvm_command("losetup");
    command.stdin(lock);
    command.args(["--find", "--show", "--read-only"]).arg(file);
    let said = run(command, "losetup", &file.display().to_string())?;
    Ok(PathBuf::from(said.trim()))
}

/// Gives a loop device back: at once, or as soon as nothing uses it any more.
pub fn detach(device: &Path) -> Result<()> {
    let mut command = lvm_command("losetup");
    command.arg("--detach").arg(device);
    run(command, "losetup", &device.display().to_string()).map(|_| ())
}

/// The loop devices of a file.
pub fn attached(file: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let node = |entry: fs::DirEntry| {
        let node = Path::new("/dev").join(entry.file_name());
        let backing = backing_file(&entry.path())?;
        (backing == file && is_behind(file, &node)).then_some(node)
    };
    entries.filter_map(node).collect()
}

/// A path may mean another file by now, or in another mount namespace.
fn is_behind(file: &Path, node: &Path) -> bool {
    let behind = File::open(node).and_then(ioctl::loop_file);
    let found = fs::symlink_metadata(file);
    match (behind, found) {
        (Ok(behind), Ok(found)) => behind == (found.dev(), found.ino()),
        _ => false,
    }
}

/// What is behind a loop device, which is this directory of sysfs.
fn backing_file(block: &Path) -> Option<PathBuf> {
    let path = fs::read_to_string(block.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(path.trim_end_matches('\n')))
}

/// What the device itself tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What was made for it is tagged with that.
    pub id: String,
    /// The file below it, by the name that it had, and whether that name means this file here and now.
    pub store: Option<(PathBuf, bool)>,
}

/// The device that shows a state under this name.
pub fn look(name: &str) -> Result<Option<Found>> {
    let Some(info) = DeviceMapper::open()?.info(Selector::Name(name))? else {
        return Ok(None);
    };
    let Some(id) = info.uuid.strip_prefix(UUID_PREFIX) else {
        return Ok(None);
    };
    let below = sysfs_slaves(info.device);
    let store = below.iter().find_map(|device| {
        let sysfs = fs::canonicalize(format!("/sys/dev/block/{device}")).ok()?;
        let file = backing_file(&sysfs)?;
        let is_it = is_behind(&file, &Path::new("/dev").join(sysfs.file_name()?));
        Some((file, is_it))
    });
    Ok(Some(Found {
        id: id.to_owned(),
        store,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_in_sectors() {
        let table = Table {
            size_bytes: 25 << 20,
            base: DeviceNumber {
                major: 254,
                minor: 3,
            },
            store: Path::new("/dev/loop0"),
            chunk_bytes: 4096,
        };
        assert_eq!(table.line(), "0 51200 snapshot 254:3 /dev/loop0 P 8");
    }

    #[test]
    fn names_are_words() {
        for name in ["tuesday", "a.b+c_d-e"] {
            assert_eq!(parse_name(name).unwrap(), name);
        }
        for name in ["", "-x", "a b", "a/b", "control", "..", &"x".repeat(101)] {
            assert!(parse_name(name).is_err(), "{name}");
        }
    }
}
