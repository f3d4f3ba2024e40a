//! What makes a destination this destination, whatever it is called today.
//!
//! Guarantees: a logical volume has its UUID, another device-mapper device its dm UUID, a disk what it says of
//! itself, a partition its disk and place, a loop device its file, a file its inode and birth. What has
//! nothing of that goes by its kernel name, which is the best there is.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::dm::resolve::Resolved;
use crate::sys::device::DeviceNumber;
use crate::volume::host::{Host, VolumeIdentity};

/// The identity of a volume that was resolved.
pub fn of_resolved(resolved: &Resolved) -> String {
    match resolved {
        Resolved::LogicalVolume(volume) => of_logical_volume(&volume.uuid),
        Resolved::BlockDevice(path) | Resolved::File(path) => of_path(path),
    }
}

/// The identity of the logical volume with this UUID.
pub fn of_logical_volume(uuid: &str) -> String {
    format!("lvm:{uuid}")
}

/// The identity of what is at `path`: a file, or a device that is no logical volume.
pub fn of_path(path: &Path) -> String {
    match VolumeIdentity::of_path(path) {
        Ok(VolumeIdentity::Block(device)) => of_device(Path::new("/"), device),
        _ => of_file(path),
    }
}

/// Inode and time of birth: the number of a filesystem may change from boot to boot, these do not.
fn of_file(path: &Path) -> String {
    let flags = StatxFlags::INO | StatxFlags::BTIME;
    match statx(CWD, path, AtFlags::empty(), flags) {
        Ok(found) if found.stx_mask & StatxFlags::BTIME.bits() != 0 => format!(
            "file:{}:{}.{:09}",
            found.stx_ino, found.stx_btime.tv_sec, found.stx_btime.tv_nsec
        ),
        // Nothing but the name tells such a file from one that had its inode before.
        _ => {
            let path: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            format!("path:{}", path.display())
        }
    }
}

/// `root` is where `sys` is.
fn of_device(root: &Path, device: DeviceNumber) -> String {
    let directory = root.join(format!("sys/dev/block/{}:{}", device.major, device.minor));
    let read = |name: &str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    if let Some(uuid) = read("dm/uuid") {
        return format!("dm:{uuid}");
    }
    // Made by hand: its name is all that stays.
    if let Some(name) = read("dm/name") {
        return format!("dm-name:{name}");
    }
    let place = (read("partition"), read("start"), disk_of(&directory));
    if let (Some(_), Some(start), Some(disk)) = place {
        return format!("{}:start={start}", of_device(root, disk));
    }
    if let (Some(file), Some(offset)) = (read("loop/backing_file"), read("loop/offset")) {
        return format!("{}:offset={offset}", of_file(Path::new(&file)));
    }
    let ids = [
        "wwid",
        "device/wwid",
        "serial",
        "device/serial",
        "uuid",
        "md/uuid",
    ];
    if let Some((name, id)) = ids.iter().find_map(|name| Some((name, read(name)?))) {
        let kind = name.rsplit('/').next().unwrap_or(name);
        return format!("disk:{kind}:{id}");
    }
    let host = Host::load_from(root);
    let name = host.devices.get(&device).map(|device| device.name.clone());
    format!("device:{}", name.unwrap_or_else(|| device.to_string()))
}

/// A partition's directory in sysfs is inside that of its disk.
fn disk_of(partition: &Path) -> Option<DeviceNumber> {
    let directory = fs::canonicalize(partition).ok()?;
    let text = fs::read_to_string(directory.parent()?.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(DeviceNumber {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_keeps_its_identity_when_it_is_renamed_and_a_new_one_has_another() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&a, "x").unwrap();
        let first = of_path(&a);
        if first.starts_with("path:") {
            return; // this filesystem does not know when a file was born
        }
        fs::rename(&a, &b).unwrap();
        fs::write(&b, "other content").unwrap();
        assert_eq!(of_path(&b), first);
        fs::write(&a, "x").unwrap();
        assert_ne!(of_path(&a), first);
    }

    #[test]
    fn devices_are_known_by_what_stays() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join("sys/devices").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let link = |number: &str, path: &str| {
            let directory = root.path().join("sys/dev/block");
            fs::create_dir_all(&directory).unwrap();
            symlink(
                root.path().join("sys/devices").join(path),
                directory.join(number),
            )
            .unwrap();
        };
        put("sda/dev", "8:0\n");
        put("sda/device/wwid", "naa.5000\n");
        put("sda/sda1/dev", "8:1\n");
        put("sda/sda1/partition", "1\n");
        put("sda/sda1/start", "2048\n");
        put("vda/serial", "disk-7\n");
        put("dm-0/dm/uuid", "mpath-36\n");
        put("dm-0/dm/name", "mpatha\n");
        put("dm-1/dm/uuid", "\n");
        put("dm-1/dm/name", "slow\n");
        for (number, path) in [
            ("8:0", "sda"),
            ("8:1", "sda/sda1"),
            ("252:0", "vda"),
            ("253:0", "dm-0"),
            ("253:1", "dm-1"),
        ] {
            link(number, path);
        }
        let of = |major, minor| of_device(root.path(), DeviceNumber { major, minor });
        assert_eq!(of(8, 0), "disk:wwid:naa.5000");
        assert_eq!(of(8, 1), "disk:wwid:naa.5000:start=2048");
        assert_eq!(of(252, 0), "disk:serial:disk-7");
        assert_eq!(of(253, 0), "dm:mpath-36");
        assert_eq!(of(253, 1), "dm-name:slow");
        assert_eq!(of(9, 9), "device:9:9");
    }
}
