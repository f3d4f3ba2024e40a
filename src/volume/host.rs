//! This host's block devices, mounts and swaps, as data.
//!
//! Guarantees: loaded once into plain values by [`Host::load`], so that every question about them is a
//! pure function; text that cannot be understood is skipped, never guessed at. It is a picture of one
//! moment and of this mount namespace: opening with `O_EXCL` is what makes a claim.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::sys::device::DeviceNumber;

/// What makes two paths the same volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VolumeIdentity {
    /// A block device, under whatever name.
    Block(DeviceNumber),
    /// A file, under whatever link.
    File {
        /// `st_dev` of its filesystem.
        filesystem: u64,
        /// Its inode.
        inode: u64,
    },
}

impl VolumeIdentity {
    /// The identity of what was looked at.
    pub fn of(metadata: &fs::Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Self::Block(DeviceNumber::from_stat(metadata.rdev()))
        } else {
            Self::File {
                filesystem: metadata.dev(),
                inode: metadata.ino(),
            }
        }
    }

    /// The identity of what is at `path`, links followed.
    pub fn of_path(path: impl AsRef<Path>) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of(&metadata))
    }
}

/// What no other running kernel has, and this one has until it stops; `None` where /proc is not there.
pub fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// What no device had before under this kernel, and none gets again: a volume that is activated anew has another one.
/// `None` before Linux 5.15.
pub fn disk_sequence(device: DeviceNumber) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/dev/block/{device}/diskseq")).ok()?;
    Some(text.trim().to_owned())
}

impl fmt::Display for VolumeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(device) => write!(f, "device {device}"),
            Self::File { filesystem, inode } => write!(f, "file {inode} on {filesystem:#x}"),
        }
    }
}

/// Everything that may stand in the way of writing to a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// All block devices, partitions included.
    pub devices: BTreeMap<DeviceNumber, Device>,
    /// All mounts of this mount namespace.
    pub mounts: Vec<Mount>,
    /// All active swaps.
    pub swaps: Vec<Swap>,
}

/// One block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name: `sda1`, `dm-3`.
    pub name: String,
    /// Device-mapper's name.
    pub dm_name: Option<String>,
    /// Device-mapper's UUID.
    pub dm_uuid: Option<String>,
    /// The whole disk, for a partition.
    pub partition_of: Option<DeviceNumber>,
    /// The devices it stands on.
    pub slaves: Vec<DeviceNumber>,
    /// What a loop device shows.
    pub backing: Option<VolumeIdentity>,
}

impl Device {
    /// The name that people know it by.
    pub fn shown_name(&self) -> &str {
        self.dm_name.as_deref().unwrap_or(&self.name)
    }
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device of the filesystem; anonymous for some (btrfs).
    pub device: DeviceNumber,
    /// Where.
    pub mount_point: String,
    /// Type of filesystem.
    pub filesystem: String,
    /// What was given to `mount`.
    pub source: String,
    /// Device at `source`, if it is one.
    pub source_device: Option<DeviceNumber>,
    /// Writes go through.
    pub read_write: bool,
}

impl Mount {
    /// True if this mount uses the device.
    pub fn is_of(&self, device: DeviceNumber) -> bool {
        self.device == device || self.source_device == Some(device)
    }
}

/// One line of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Device or file.
    pub path: String,
    /// What it is.
    pub identity: Option<VolumeIdentity>,
}

impl Host {
    /// This host, now.
    pub fn load() -> Self {
        Self::load_from(Path::new("/"))
    }

    /// The host whose `/proc` and `/sys` are under `root`. Paths that those name are looked up as they
    /// are, not under `root`.
    pub fn load_from(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let mut host = Self {
            devices: load_devices(&root.join("sys/block")),
            mounts: load_mounts(&root.join("proc/self/mountinfo")),
            swaps: parse_swaps(&text("proc/swaps")),
        };
        for swap in &mut host.swaps {
            swap.identity = VolumeIdentity::of_path(&swap.path).ok();
        }
        host
    }

    /// True if device-mapper shows anything at all, pools among it.
    pub fn has_mapped_devices() -> bool {
        names_in(Path::new("/sys/block")).any(|name| name.starts_with("dm-"))
    }

    /// The mounts alone: looking at all devices takes many times as long.
    pub fn mounts_now() -> Vec<Mount> {
        load_mounts(Path::new("/proc/self/mountinfo"))
    }
}

fn load_mounts(mountinfo: &Path) -> Vec<Mount> {
    let mut mounts = parse_mountinfo(&fs::read_to_string(mountinfo).unwrap_or_default());
    for mount in mounts
        .iter_mut()
        .filter(|mount| mount.source.starts_with('/'))
    {
        if let Ok(VolumeIdentity::Block(device)) = VolumeIdentity::of_path(&mount.source) {
            mount.source_device = Some(device);
        }
    }
    mounts
}

fn load_devices(block: &Path) -> BTreeMap<DeviceNumber, Device> {
    let mut devices = BTreeMap::new();
    for name in names_in(block) {
        let directory = block.join(&name);
        let Some((disk, device)) = load_device(&directory, None) else {
            continue;
        };
        // The kernel begins the name of a partition with that of its disk; to ask each of the thirty things that a disk
        // has whether it is one costs more than all the rest.
        for part in names_in(&directory).filter(|part| part.starts_with(&name)) {
            let part = directory.join(part);
            if part.join("partition").exists() {
                devices.extend(load_device(&part, Some(disk)));
            }
        }
        devices.insert(disk, device);
    }
    devices
}

fn load_device(directory: &Path, disk: Option<DeviceNumber>) -> Option<(DeviceNumber, Device)> {
    let read = |file: &str| {
        fs::read_to_string(directory.join(file))
            .ok()
            .map(|text| text.trim_end().to_owned())
    };
    let number = |text: String| text.parse().ok();
    let name = directory.file_name()?.to_string_lossy().into_owned();
    let slaves = directory.join("slaves");
    let slaves = names_in(&slaves)
        .filter_map(|slave| fs::read_to_string(slaves.join(slave).join("dev")).ok())
        .filter_map(number)
        .collect();
    let of_kind = |kind: &str, file: &str| name.starts_with(kind).then(|| read(file)).flatten();
    let backing = of_kind("loop", "loop/backing_file");
    let device = Device {
        dm_name: of_kind("dm-", "dm/name"),
        dm_uuid: of_kind("dm-", "dm/uuid"),
        partition_of: disk,
        slaves,
        backing: backing.and_then(|path| VolumeIdentity::of_path(path).ok()),
        name,
    };
    Some((read("dev").and_then(number)?, device))
}

/// Entries whose names are no text are none of the kernel's.
fn names_in(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Reads `/proc/self/mountinfo`.
pub fn parse_mountinfo(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    let (filesystem, source, super_options) = (right.next()?, right.next()?, right.next()?);
    let writable = |options: &str| options.split(',').next() == Some("rw");
    Some(Mount {
        device: left.get(2)?.parse().ok()?,
        mount_point: unescape(left.get(4)?),
        filesystem: filesystem.to_owned(),
        source: unescape(source),
        source_device: None,
        // The mount may be read-only over a filesystem that still writes its journal and other mounts.
        read_write: writable(left.get(5)?) || writable(super_options),
    })
}

/// Reads `/proc/swaps`.
pub fn parse_swaps(text: &str) -> Vec<Swap> {
    let path = |line: &str| Some(unescape(line.split_ascii_whitespace().next()?));
    text.lines()
        .skip(1)
        .filter_map(path)
        .map(|path| Swap {
            path,
            identity: None,
        })
        .collect()
}

/// Undoes the kernel's `\ooo` for blanks, line ends and backslashes.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn mounts_parse_with_blanks_and_optional_fields() {
        let text = "\
36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
22 36 0:21 / /proc ro - proc proc ro
23 36 0:45 /@ / ro,relatime shared:1 - btrfs /dev/mapper/vg-root rw,space_cache=v2
garbage
";
        let mounts = parse_mountinfo(text);
        let short: Vec<_> = mounts
            .iter()
            .map(|m| {
                (
                    m.device.to_string(),
                    m.mount_point.as_str(),
                    m.source.as_str(),
                    m.read_write,
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                ("98:0".to_owned(), "/mnt 2", "/dev/root", true),
                ("0:21".to_owned(), "/proc", "proc", false),
                ("0:45".to_owned(), "/", "/dev/mapper/vg-root", true),
            ]
        );
    }

    #[test]
    fn swaps_parse_without_their_heading() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/dm-1                               partition\t1048572\t\t0\t\t-2\n\
                    /swap\\040file                           file\t\t524284\t\t0\t\t-3\n";
        let paths: Vec<_> = parse_swaps(text)
            .into_iter()
            .map(|swap| swap.path)
            .collect();
        assert_eq!(paths, ["/dev/dm-1", "/swap file"]);
        assert_eq!(parse_swaps(""), []);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[\\\\0-9 a-z:,é\n-]{0,80}") {
            let _ = (parse_mountinfo(&text), parse_swaps(&text), unescape(&text));
        }
    }

    #[test]
    fn a_tree_of_devices_loads() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join("sys/block").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("sda/dev", "8:0\n");
        put("sda/sda1/dev", "8:1\n");
        put("sda/sda1/partition", "1\n");
        put("sda/queue/rotational", "0\n");
        put("dm-0/dev", "253:0\n");
        put("dm-0/dm/name", "vg-lv\n");
        put("dm-0/dm/uuid", "LVM-x\n");
        fs::create_dir_all(root.path().join("sys/block/dm-0/slaves")).unwrap();
        symlink(
            "../../sda/sda1",
            root.path().join("sys/block/dm-0/slaves/sda1"),
        )
        .unwrap();
        let image = root.path().join("image");
        fs::write(&image, "").unwrap();
        put("loop0/dev", "7:0\n");
        put("loop0/loop/backing_file", &format!("{}\n", image.display()));

        let host = Host::load_from(root.path());
        let get = |major, minor| &host.devices[&DeviceNumber::new(major, minor)];
        assert_eq!(host.devices.len(), 4);
        assert_eq!(get(8, 1).partition_of, Some(DeviceNumber::new(8, 0)));
        assert_eq!(get(253, 0).slaves, [DeviceNumber::new(8, 1)]);
        assert_eq!(get(253, 0).shown_name(), "vg-lv");
        assert_eq!(
            get(7, 0).backing,
            Some(VolumeIdentity::of_path(&image).unwrap())
        );
    }
}
