//! Who holds a volume, and whether two volumes are one.
//!
//! Guarantees: pure over a [`Host`]; the same answer for every name of a device. Sharing a disk or a
//! thin pool is not an overlap; sharing the data of an origin is.

use std::collections::BTreeSet;
use std::fmt;

use super::host::{Device, Host, VolumeIdentity};
use crate::sys::device::DeviceNumber;

/// Something that uses a volume, so that writing to it would do harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A mounted filesystem.
    Mounted {
        /// Where.
        mount_point: String,
        /// Writes go through.
        read_write: bool,
    },
    /// An active swap.
    Swap,
    /// A device that stands on it.
    Device {
        /// Its name, as people know it.
        name: String,
        /// The driver: `dm`, `md`, `loop`; empty if it is another.
        kind: &'static str,
    },
    /// A partition of it, or the disk it is a partition of, is in use.
    Part {
        /// The other device.
        name: String,
        /// What holds that one.
        holder: Box<Holder>,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { mount_point, .. } => write!(f, "mounted on {mount_point}"),
            Self::Swap => write!(f, "in use as swap"),
            Self::Device { name, kind: "" } => write!(f, "held by {name}"),
            Self::Device { name, kind } => write!(f, "held by {name} ({kind})"),
            Self::Part { name, holder } => write!(f, "{name} is {holder}"),
        }
    }
}

/// Why two volumes must not be source and destination of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// They are one device or file.
    Same,
    /// The source stands on the destination.
    DestinationUnderSource,
    /// The destination stands on the source.
    SourceUnderDestination,
    /// Two of an origin and its classic snapshots: they share the origin's data.
    SharedOrigin {
        /// The device with that data.
        real: String,
    },
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => write!(f, "it is the source itself"),
            Self::DestinationUnderSource => write!(f, "the source stands on it"),
            Self::SourceUnderDestination => write!(f, "it stands on the source"),
            Self::SharedOrigin { real } => {
                write!(
                    f,
                    "it shares its data ({real}) with the source: an origin and its snapshots"
                )
            }
        }
    }
}

/// An active thin pool, and where its maps are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivePool {
    /// Its name, as people know it.
    pub name: String,
    /// The pool's device.
    pub device: DeviceNumber,
    /// The device that it keeps its maps on.
    pub metadata: DeviceNumber,
}

/// All that holds a volume on this host, now.
pub fn holders_of(volume: VolumeIdentity) -> Vec<Holder> {
    Host::load().holders_of(volume)
}

/// Whether writing `destination` would touch what `source` is read from, on this host, now.
pub fn overlap(source: VolumeIdentity, destination: VolumeIdentity) -> Option<Overlap> {
    Host::load().overlap(source, destination)
}

impl Host {
    /// All that holds a volume: itself, its partitions, and the disk that it is a partition of.
    pub fn holders_of(&self, volume: VolumeIdentity) -> Vec<Holder> {
        let mut holders = self.direct_holders_of(volume);
        let VolumeIdentity::Block(number) = volume else {
            return holders;
        };
        let disk = self
            .devices
            .get(&number)
            .and_then(|device| device.partition_of);
        let parts = self
            .devices
            .iter()
            .filter(|(_, device)| device.partition_of == Some(number));
        for relative in parts.map(|(part, _)| *part).chain(disk) {
            let name = self.name_of(relative);
            let wrap = |holder| Holder::Part {
                name: name.clone(),
                holder: Box::new(holder),
            };
            let relative = VolumeIdentity::Block(relative);
            holders.extend(self.direct_holders_of(relative).into_iter().map(wrap));
        }
        holders
    }

    /// Why `source` and `destination` must not be used together.
    pub fn overlap(&self, source: VolumeIdentity, destination: VolumeIdentity) -> Option<Overlap> {
        if source == destination {
            return Some(Overlap::Same);
        }
        if self.all_under(source).contains(&destination) {
            return Some(Overlap::DestinationUnderSource);
        }
        if self.all_under(destination).contains(&source) {
            return Some(Overlap::SourceUnderDestination);
        }
        let of_source = self.directly_under(source);
        self.directly_under(destination)
            .into_iter()
            .filter(|under| of_source.contains(under))
            .find_map(|under| self.origin_data_name(under))
            .map(|real| Overlap::SharedOrigin { real })
    }

    /// The pool among `pools` whose live metadata `volume` is, or shows, or is shown by: a loop device on it or the file
    /// below one, a partition, a device that is mapped to it. A volume that only takes its space from a pool, as a copy
    /// on a thin volume does, is none of that, nor is its neighbour on one disk.
    pub fn pool_that_changes<'a>(
        &self,
        volume: VolumeIdentity,
        pools: &'a [ActivePool],
    ) -> Option<&'a ActivePool> {
        let is_pool = |number| pools.iter().any(|pool| pool.device == number);
        let below = self.under_but_for(volume, &is_pool);
        let shown = self.shown_by(volume);
        pools.iter().find(|pool| {
            let metadata = VolumeIdentity::Block(pool.metadata);
            metadata == volume
                || below.contains(&metadata)
                || self.under_but_for(metadata, &is_pool).contains(&volume)
                || self.is_shown_twice(&shown, &self.shown_by(metadata))
        })
    }

    /// What a loop device or a partition shows, and so on, each with the word whether it is a part of that only.
    fn shown_by(&self, volume: VolumeIdentity) -> Vec<(VolumeIdentity, bool)> {
        let mut found = vec![(volume, false)];
        while let Some((VolumeIdentity::Block(number), is_part)) = found.last().copied() {
            let Some(device) = self.devices.get(&number) else {
                break;
            };
            let next = match (device.partition_of, device.backing) {
                (Some(disk), _) => (VolumeIdentity::Block(disk), true),
                (None, Some(backing)) => (backing, is_part),
                (None, None) => break,
            };
            if found.iter().any(|(seen, _)| *seen == next.0) {
                break;
            }
            found.push(next);
        }
        found
    }

    /// Whether both show one thing. Two parts of one disk are two things.
    fn is_shown_twice(
        &self,
        one: &[(VolumeIdentity, bool)],
        other: &[(VolumeIdentity, bool)],
    ) -> bool {
        one.iter().any(|(seen, is_part)| {
            let also = other.iter().find(|(also, _)| also == seen);
            also.is_some_and(|(_, is_part_too)| !(*is_part && *is_part_too))
        })
    }

    fn direct_holders_of(&self, volume: VolumeIdentity) -> Vec<Holder> {
        let mut holders = Vec::new();
        if let VolumeIdentity::Block(number) = volume {
            holders.extend(
                self.mounts
                    .iter()
                    .filter(|mount| mount.is_of(number))
                    .map(|mount| Holder::Mounted {
                        mount_point: mount.mount_point.clone(),
                        read_write: mount.read_write,
                    }),
            );
        }
        if self.swaps.iter().any(|swap| swap.identity == Some(volume)) {
            holders.push(Holder::Swap);
        }
        let stands_on_it = |device: &&Device| {
            let slave = device
                .slaves
                .iter()
                .any(|slave| VolumeIdentity::Block(*slave) == volume);
            slave || device.backing == Some(volume)
        };
        holders.extend(
            self.devices
                .values()
                .filter(stands_on_it)
                .map(|device| Holder::Device {
                    name: device.shown_name().to_owned(),
                    kind: kind_of(device),
                }),
        );
        holders
    }

    /// Everything that a volume stands on, however deep.
    fn all_under(&self, volume: VolumeIdentity) -> BTreeSet<VolumeIdentity> {
        self.under_but_for(volume, &|_| false)
    }

    /// The same without what is below the devices that `is_end` names.
    fn under_but_for(
        &self,
        volume: VolumeIdentity,
        is_end: &dyn Fn(DeviceNumber) -> bool,
    ) -> BTreeSet<VolumeIdentity> {
        let mut found = BTreeSet::new();
        let mut to_visit = self.directly_under(volume);
        while let Some(next) = to_visit.pop() {
            let goes_on = !matches!(next, VolumeIdentity::Block(number) if is_end(number));
            if found.insert(next) && goes_on {
                to_visit.extend(self.directly_under(next));
            }
        }
        found
    }

    fn directly_under(&self, volume: VolumeIdentity) -> Vec<VolumeIdentity> {
        let VolumeIdentity::Block(number) = volume else {
            return Vec::new();
        };
        let Some(device) = self.devices.get(&number) else {
            return Vec::new();
        };
        let devices = device.slaves.iter().copied().chain(device.partition_of);
        devices
            .map(VolumeIdentity::Block)
            .chain(device.backing)
            .collect()
    }

    /// The name of a device that holds an origin's data (`-real`), and nothing for other devices.
    fn origin_data_name(&self, volume: VolumeIdentity) -> Option<String> {
        let VolumeIdentity::Block(number) = volume else {
            return None;
        };
        let device = self.devices.get(&number)?;
        let uuid = device.dm_uuid.as_deref().unwrap_or_default();
        let is_real = uuid.starts_with("LVM-") && uuid.ends_with("-real");
        is_real.then(|| device.shown_name().to_owned())
    }

    fn name_of(&self, number: DeviceNumber) -> String {
        let device = self.devices.get(&number);
        device.map_or_else(
            || number.to_string(),
            |device| device.shown_name().to_owned(),
        )
    }
}

fn kind_of(device: &Device) -> &'static str {
    match device.name.as_str() {
        _ if device.dm_name.is_some() => "dm",
        name if name.starts_with("md") => "md",
        name if name.starts_with("loop") => "loop",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::host::{Mount, Swap};

    const IMAGE: VolumeIdentity = VolumeIdentity::File {
        filesystem: 1,
        inode: 42,
    };

    fn block(major: u32, minor: u32) -> VolumeIdentity {
        VolumeIdentity::Block(DeviceNumber::new(major, minor))
    }

    /// sda(1: PV, 2: swap, 3: root); vg on sda1: data with snapshots s1 and s2, other, thin t1 and t2 on
    /// a pool; loop0 on IMAGE; loop1 on vg-other; crypt on vg-other.
    fn host() -> Host {
        let mut host = Host::default();
        let mut add = |name: &str, (major, minor): (u32, u32), device: Device| {
            host.devices.insert(
                DeviceNumber::new(major, minor),
                Device {
                    name: name.into(),
                    ..device
                },
            );
        };
        let sda = Some(DeviceNumber::new(8, 0));
        add("sda", (8, 0), Device::default());
        for minor in 1..=3 {
            let part = Device {
                partition_of: sda,
                ..Device::default()
            };
            add(&format!("sda{minor}"), (8, minor), part);
        }
        let mut dm = |minor: u32, name: &str, layer: &str, slaves: &[(u32, u32)]| {
            let device = Device {
                dm_name: Some(name.into()),
                dm_uuid: Some(format!("LVM-{minor}{layer}")),
                slaves: slaves
                    .iter()
                    .map(|(a, b)| DeviceNumber::new(*a, *b))
                    .collect(),
                ..Device::default()
            };
            add(&format!("dm-{minor}"), (253, minor), device);
        };
        dm(0, "vg-data-real", "-real", &[(8, 1)]);
        dm(1, "vg-data", "", &[(253, 0)]);
        dm(2, "vg-s1-cow", "-cow", &[(8, 1)]);
        dm(3, "vg-s1", "", &[(253, 0), (253, 2)]);
        dm(4, "vg-s2-cow", "-cow", &[(8, 1)]);
        dm(5, "vg-s2", "", &[(253, 0), (253, 4)]);
        dm(6, "vg-other", "", &[(8, 1)]);
        dm(7, "vg-pool-tpool", "-tpool", &[(8, 1)]);
        dm(8, "vg-t1", "", &[(253, 7)]);
        dm(9, "vg-t2", "", &[(253, 7)]);
        dm(10, "luks", "", &[(253, 6)]);
        add(
            "loop0",
            (7, 0),
            Device {
                backing: Some(IMAGE),
                ..Device::default()
            },
        );
        add(
            "loop1",
            (7, 1),
            Device {
                backing: Some(block(253, 6)),
                ..Device::default()
            },
        );
        host.mounts.push(Mount {
            device: DeviceNumber::new(8, 3),
            mount_point: "/srv".into(),
            filesystem: "ext4".into(),
            source: "/dev/sda3".into(),
            source_device: None,
            read_write: true,
        });
        host.swaps.push(Swap {
            path: "/dev/sda2".into(),
            identity: Some(block(8, 2)),
        });
        host
    }

    fn holders(volume: VolumeIdentity) -> Vec<String> {
        host()
            .holders_of(volume)
            .iter()
            .map(Holder::to_string)
            .collect()
    }

    #[test]
    fn each_kind_of_holder_is_named() {
        assert_eq!(holders(block(8, 3)), ["mounted on /srv"]);
        assert_eq!(holders(block(8, 2)), ["in use as swap"]);
        assert_eq!(
            holders(block(253, 6)),
            ["held by loop1 (loop)", "held by luks (dm)"]
        );
        assert_eq!(holders(IMAGE), ["held by loop0 (loop)"]);
        assert_eq!(
            holders(block(253, 3)),
            [""; 0],
            "a snapshot that nobody uses"
        );
        assert_eq!(
            holders(block(253, 1)),
            [""; 0],
            "an origin that nobody uses"
        );
        assert_eq!(holders(block(99, 9)), [""; 0], "a device that is not there");
    }

    #[test]
    fn a_disk_is_in_use_when_its_partitions_are() {
        let shown = holders(block(8, 0));
        assert!(
            shown.contains(&"sda3 is mounted on /srv".to_owned()),
            "{shown:?}"
        );
        assert!(
            shown.contains(&"sda2 is in use as swap".to_owned()),
            "{shown:?}"
        );
        assert!(
            shown.contains(&"sda1 is held by vg-data-real (dm)".to_owned()),
            "{shown:?}"
        );
    }

    #[test]
    fn a_filesystem_with_an_anonymous_device_is_found_by_its_source() {
        let mut host = host();
        host.mounts[0].device = DeviceNumber::new(0, 45);
        host.mounts[0].source_device = Some(DeviceNumber::new(8, 3));
        assert_eq!(host.holders_of(block(8, 3)).len(), 1);
    }

    #[test]
    fn overlaps_are_found_in_both_directions() {
        use Overlap::*;
        let real = || {
            Some(SharedOrigin {
                real: "vg-data-real".into(),
            })
        };
        for (what, source, destination, expected) in [
            ("itself", block(253, 3), block(253, 3), Some(Same)),
            ("snapshot to origin", block(253, 3), block(253, 1), real()),
            ("origin to snapshot", block(253, 1), block(253, 3), real()),
            ("two snapshots", block(253, 3), block(253, 5), real()),
            (
                "snapshot to its store",
                block(253, 3),
                block(253, 2),
                Some(DestinationUnderSource),
            ),
            (
                "volume to its disk",
                block(253, 6),
                block(8, 0),
                Some(DestinationUnderSource),
            ),
            (
                "disk to a volume on it",
                block(8, 0),
                block(253, 6),
                Some(SourceUnderDestination),
            ),
            (
                "partition to disk",
                block(8, 2),
                block(8, 0),
                Some(DestinationUnderSource),
            ),
            (
                "loop to its file",
                block(7, 0),
                IMAGE,
                Some(DestinationUnderSource),
            ),
            (
                "file to its loop",
                IMAGE,
                block(7, 0),
                Some(SourceUnderDestination),
            ),
            (
                "volume to a loop on it",
                block(253, 6),
                block(7, 1),
                Some(SourceUnderDestination),
            ),
            ("two partitions", block(8, 1), block(8, 2), None),
            ("two volumes of a group", block(253, 1), block(253, 6), None),
            (
                "snapshot to another volume",
                block(253, 3),
                block(253, 6),
                None,
            ),
            ("two thin volumes", block(253, 8), block(253, 9), None),
            ("a snapshot to a file", block(253, 3), IMAGE, None),
        ] {
            assert_eq!(host().overlap(source, destination), expected, "{what}");
        }
    }

    #[test]
    fn live_metadata_is_known_under_every_name_and_copies_are_not() {
        let mut host = host();
        let mut add = |(major, minor): (u32, u32), device: Device| {
            host.devices.insert(DeviceNumber::new(major, minor), device);
        };
        let on = |slaves: &[(u32, u32)]| Device {
            dm_name: Some("x".into()),
            slaves: slaves
                .iter()
                .map(|(major, minor)| DeviceNumber::new(*major, *minor))
                .collect(),
            ..Device::default()
        };
        let shows = |backing| Device {
            backing: Some(backing),
            ..Device::default()
        };
        let part_of = |major, minor| Device {
            partition_of: Some(DeviceNumber::new(major, minor)),
            ..Device::default()
        };
        // LVM's pool, on the disk that the other volumes are on; one that dmsetup made, on a loop device.
        add((253, 20), on(&[(8, 1)]));
        add((253, 7), on(&[(253, 20), (8, 1)]));
        add((253, 21), on(&[(7, 0), (253, 6)]));
        add((7, 2), shows(block(253, 20)));
        add((259, 1), part_of(7, 2));
        add((253, 22), on(&[(253, 20)]));
        add((7, 3), shows(IMAGE));
        add((259, 2), part_of(7, 3));
        // A copy on a thin volume, under a loop device.
        add((7, 4), shows(block(253, 8)));
        let pool = |device, metadata: (u32, u32)| ActivePool {
            name: format!("pool {device}"),
            device: DeviceNumber::new(253, device),
            metadata: DeviceNumber::new(metadata.0, metadata.1),
        };
        let pools = [pool(7, (253, 20)), pool(21, (7, 0))];
        let found = |volume| {
            let pool = host.pool_that_changes(volume, &pools);
            pool.map_or(0, |pool| pool.device.minor)
        };
        for (what, volume, expected) in [
            ("itself", block(253, 20), 7),
            ("a loop device on it", block(7, 2), 7),
            ("a partition of that", block(259, 1), 7),
            ("a device mapped to it", block(253, 22), 7),
            ("the disk below it", block(8, 1), 7),
            ("a loop device", block(7, 0), 21),
            ("the file below it", IMAGE, 21),
            ("another loop device on that", block(7, 3), 21),
            ("a partition of that one", block(259, 2), 21),
            ("a volume beside it", block(253, 10), 0),
            ("another on the same disk", block(253, 1), 0),
            ("a thin volume", block(253, 8), 0),
            ("a loop device on a thin volume", block(7, 4), 0),
            ("another partition", block(8, 2), 0),
            ("another file", other_file(), 0),
        ] {
            assert_eq!(found(volume), expected, "{what}");
        }
        assert_eq!(host.pool_that_changes(IMAGE, &[]), None);
        // Parts of one disk.
        let parts = [pool(30, (8, 1))];
        assert!(host.pool_that_changes(block(8, 2), &parts).is_none());
        assert!(host.pool_that_changes(block(8, 0), &parts).is_some());
    }

    fn other_file() -> VolumeIdentity {
        VolumeIdentity::File {
            filesystem: 1,
            inode: 43,
        }
    }
}
