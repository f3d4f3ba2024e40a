//! What makes a destination this destination, whatever it is called today.
//!
//! Guarantees: a logical volume has its UUID, another device-mapper device its dm UUID, a disk what it says of
//! itself, a partition its disk and place, a loop device its file, a file its inode and birth. What has
//! nothing of that goes by its kernel name, which is the best there is.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::dm::resolve::Resolved;
use crate::dm::uuid::DmUuid;
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
        let below = match VolumeIdentity::of_path(Path::new(&file)) {
            Ok(VolumeIdentity::Block(device)) => of_device(root, device),
            _ => of_file(Path::new(&file)),
        };
        return format!("{below}:offset={offset}");
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

/// The identity of what is at `path`, and of all that its data lies on: the disk of a partition, the file of a loop
/// device, what a mapped device is made of.
pub fn with_below(path: &Path) -> Vec<String> {
    match VolumeIdentity::of_path(path) {
        Ok(VolumeIdentity::Block(device)) => {
            let mut found = Vec::new();
            add_with_below(Path::new("/"), device, &mut found);
            found
        }
        _ => vec![of_file(path)],
    }
}

/// True if a record of `part` is about a piece of `whole`: a partition of it, or a loop device on it.
pub fn is_part(part: &str, whole: &str) -> bool {
    let rest = part.strip_prefix(whole);
    rest.is_some_and(|rest| rest.starts_with(":start=") || rest.starts_with(":offset="))
}

/// True if `part` is about a partition beside one that is among `identities`, and not about that one or a piece of it: they
/// lie on one disk and share nothing.
pub fn is_beside(part: &str, identities: &[String]) -> bool {
    identities.iter().any(|own| {
        let Some((disk, _)) = own.rsplit_once(":start=") else {
            return false;
        };
        let is_on_disk = part
            .strip_prefix(disk)
            .is_some_and(|rest| rest.starts_with(":start="));
        is_on_disk && part != own && !is_part(part, own)
    })
}

/// What is below what is below, and so on: more than this is a loop in what sysfs says.
const MOST_BELOW: usize = 1000;

fn add_with_below(root: &Path, device: DeviceNumber, found: &mut Vec<String>) {
    let directory = root.join(format!("sys/dev/block/{}:{}", device.major, device.minor));
    let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
    let uuid = read("dm/uuid").and_then(|uuid| DmUuid::parse(uuid.trim()));
    let known_as = match uuid.filter(|uuid| uuid.layer().is_none()) {
        Some(uuid) => of_logical_volume(&uuid.lv_uuid()),
        None => of_device(root, device),
    };
    if found.contains(&known_as) || found.len() >= MOST_BELOW {
        return;
    }
    found.push(known_as);
    if read("partition").is_some()
        && let Some(disk) = disk_of(&directory)
    {
        add_with_below(root, disk, found);
    }
    if let Some(file) = read("loop/backing_file") {
        let file = Path::new(file.trim_end_matches('\n'));
        match VolumeIdentity::of_path(file) {
            Ok(VolumeIdentity::Block(device)) => add_with_below(root, device, found),
            _ => found.push(of_file(file)),
        }
    }
    let slaves = fs::read_dir(directory.join("slaves"));
    for slave in slaves.into_iter().flatten().flatten() {
        let number = fs::read_to_string(slave.path().join("dev")).ok();
        if let Some(number) = number.and_then(|text| text.trim().parse().ok()) {
            add_with_below(root, number, found);
        }
    }
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

        // A volume on a mapped device on a loop device on a file, and on a partition.
        let image = root.path().join("image");
        fs::write(&image, "x").unwrap();
        put("loop0/dev", "7:0\n");
        put("loop0/loop/backing_file", &format!("{}\n", image.display()));
        put("loop0/loop/offset", "0\n");
        let uuid = format!("LVM-{}{}", "v".repeat(32), "l".repeat(32));
        put("dm-2/dev", "253:2\n");
        put("dm-2/dm/uuid", &uuid);
        put("dm-2/slaves/loop0/dev", "7:0\n");
        put("dm-2/slaves/sda1/dev", "8:1\n");
        link("7:0", "loop0");
        link("253:2", "dm-2");
        let mut found = Vec::new();
        let device = DeviceNumber {
            major: 253,
            minor: 2,
        };
        add_with_below(root.path(), device, &mut found);
        assert!(found[0].starts_with("lvm:llllll-llll-"), "{found:?}");
        found.sort();
        let file = of_path(&image);
        for known_as in [
            format!("{file}:offset=0"),
            file,
            "disk:wwid:naa.5000".to_owned(),
            "disk:wwid:naa.5000:start=2048".to_owned(),
        ] {
            assert!(found.contains(&known_as), "{known_as} in {found:?}");
        }
    }
}
