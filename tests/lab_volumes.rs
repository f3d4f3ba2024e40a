//! Reading, writing and claiming real devices, and knowing who else uses them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

use std::fs;
use std::path::Path;

use lab::Setup;
use lvmsync::dm::{LogicalVolume, Resolved, SnapshotStatus, resolve, writers_open};
use lvmsync::error::ExitCode;
use lvmsync::extent::Extent;
use lvmsync::units::MIB;
use lvmsync::volume::in_use::{Holder, Overlap, holders_of, overlap};
use lvmsync::volume::{ReadAt, Volume, VolumeIdentity, WriteAt, WriteOptions};

fn volume(arg: &str) -> LogicalVolume {
    match resolve(arg) {
        Ok(Resolved::LogicalVolume(volume)) => *volume,
        other => panic!("{arg}: {other:?}"),
    }
}

fn status(arg: &str) -> SnapshotStatus {
    volume(arg).thick_snapshot().unwrap().status
}

fn identity(path: impl AsRef<Path>) -> VolumeIdentity {
    VolumeIdentity::of_path(path).unwrap()
}

/// A DOS partition table: sfdisk is not everywhere.
fn partition(disk: &Path, parts: &[(u32, u32)]) {
    let mut sector = [0; 512];
    for (number, (start, length)) in parts.iter().enumerate() {
        let entry = &mut sector[446 + 16 * number..][..16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&length.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let volume = Volume::open_writable(disk, &WriteOptions::default()).unwrap();
    volume.write_all_at(&sector, 0).unwrap();
    volume.sync().unwrap();
}

#[test]
fn volumes_in_use_are_seen() {
    lab::test(
        "volumes_in_use_are_seen",
        Setup::new().disk("256M").disk("64M"),
        |guest| {
            guest.must_be_guest("it needs disks with names of its own");
            guest.volume_group("vg", 0);
            for lv in ["data", "swap", "held", "free"] {
                guest.volume("vg", lv, "16M");
            }
            guest.sh("lvcreate -qq -s -c 4k -L 8M -n s1 vg/data 2>&1");
            guest.sh("lvcreate -qq -s -c 4k -L 8M -n s2 vg/data 2>&1");
            guest.sh(
                "mkfs.ext4 -q /dev/vg/data; mkdir '/mnt/a b'; mount /dev/vg/data '/mnt/a b'
             mkswap -q /dev/vg/swap; swapon /dev/vg/swap
             dmsetup create top --table '0 8192 linear /dev/vg/held 0'
             truncate -s 4M image; losetup /dev/loop0 image",
            );
            partition(guest.disk(1), &[(2048, 8192), (16384, 8192)]);
            guest.sh("blockdev --rereadpt /dev/ubdc");
            let image = guest.scratch().join("image");
            let held = |path: &Path| {
                let held = holders_of(identity(path))
                    .iter()
                    .map(Holder::to_string)
                    .collect::<Vec<_>>();
                held.join(", ")
            };
            let dev = |lv: &str| Path::new("/dev/vg").join(lv);
            assert_eq!(held(&dev("data")), "mounted on /mnt/a b");
            assert_eq!(held(&dev("swap")), "in use as swap");
            assert_eq!(held(&dev("held")), "held by top (dm)");
            assert_eq!(held(&image), "held by loop0 (loop)");
            assert_eq!(held(&dev("free")), "");
            assert_eq!(held(&dev("s1")), "");

            let options = WriteOptions::default();
            for path in [dev("data"), dev("swap"), dev("held"), image.clone()] {
                let error = Volume::open_writable(&path, &options).unwrap_err();
                assert_eq!(
                    error.exit_code(),
                    ExitCode::Refused,
                    "{}: {error}",
                    path.display()
                );
            }
            let forced = WriteOptions {
                allow_in_use: true,
                ..options
            };
            drop(Volume::open_writable(dev("held"), &forced).unwrap());

            // One writer at a time; the lock holds where the claim was waived.
            let first = Volume::open_writable(dev("free"), &options).unwrap();
            let second = Volume::open_writable(dev("free"), &options).unwrap_err();
            assert_eq!(second.exit_code(), ExitCode::Refused);
            let second = Volume::open_writable(dev("free"), &forced).unwrap_err();
            assert!(second.to_string().contains("lvmsync"), "{second}");
            drop(first);
            drop(Volume::open_writable(dev("free"), &options).unwrap());

            // The file below a loop device has one writer, too, whichever of the two it is opened by.
            let below = Volume::open_writable(&image, &forced).unwrap();
            let above = Volume::open_writable("/dev/loop0", &options).unwrap_err();
            assert!(above.to_string().contains("image: another"), "{above}");
            drop(below);
            let above = Volume::open_writable("/dev/loop0", &options).unwrap();
            let below = Volume::open_writable(&image, &forced).unwrap_err();
            assert!(below.to_string().contains("image: another"), "{below}");
            drop(above);

            // A partition and its disk.
            guest.sh("mkfs.ext4 -q /dev/ubdc1; mkdir /mnt/p; mount /dev/ubdc1 /mnt/p");
            assert_eq!(held(Path::new("/dev/ubdc")), "ubdc1 is mounted on /mnt/p");
            assert_eq!(held(Path::new("/dev/ubdc2")), "");
            assert!(Volume::open_writable("/dev/ubdc", &options).is_err());

            let clash = |source: &str, destination: &str| {
                overlap(identity(source), identity(destination)).map(|overlap| match overlap {
                    Overlap::Same => "same",
                    Overlap::DestinationUnderSource => "under",
                    Overlap::SourceUnderDestination => "over",
                    Overlap::SharedOrigin { .. } => "shared",
                })
            };
            let image = image.to_str().unwrap();
            assert_eq!(clash("/dev/vg/s1", "/dev/mapper/vg-s1"), Some("same"));
            assert_eq!(clash("/dev/vg/s1", "/dev/vg/data"), Some("shared"));
            assert_eq!(clash("/dev/vg/s1", "/dev/vg/s2"), Some("shared"));
            assert_eq!(clash("/dev/vg/s1", "/dev/mapper/vg-s1-cow"), Some("under"));
            assert_eq!(clash("/dev/vg/s1", "/dev/ubdb"), Some("under"));
            assert_eq!(clash("/dev/vg/held", "/dev/mapper/top"), Some("over"));
            assert_eq!(clash("/dev/loop0", image), Some("under"));
            assert_eq!(clash(image, "/dev/loop0"), Some("over"));
            assert_eq!(clash("/dev/ubdc1", "/dev/ubdc"), Some("under"));
            assert_eq!(clash("/dev/ubdc1", "/dev/ubdc2"), None);
            assert_eq!(clash("/dev/vg/s1", "/dev/vg/free"), None);
            assert_eq!(clash("/dev/vg/s1", image), None);

            // Who may be writing, without counting ourselves.
            let writers = |lv: &str| writers_open(volume(lv).device).unwrap();
            let mine = Volume::open(dev("data")).unwrap();
            assert_eq!(writers("vg/data").mounted_rw, ["/mnt/a b"]);
            assert_eq!(writers("vg/data").others, 1);
            assert!(writers("vg/data").may_write());
            guest.sh("umount '/mnt/a b'");
            assert!(
                !writers("vg/data").may_write(),
                "only our own descriptor is left"
            );
            drop(mine);
            guest.sh("mount -o ro,noload /dev/vg/data '/mnt/a b'");
            assert!(!writers("vg/data").may_write(), "read-only");
            guest.sh("sleep 60 < /dev/vg/data > /dev/null 2>&1 & echo $! > pid; sleep 0.2");
            assert!(writers("vg/data").may_write(), "an open of unknown purpose");
            guest.sh("kill $(cat pid); umount '/mnt/a b'; umount /mnt/p; swapoff -a; losetup -d /dev/loop0");
        },
    );
}

#[test]
fn device_io_is_direct_and_exact() {
    lab::test(
        "device_io_is_direct_and_exact",
        Setup::new().disk("256M"),
        |guest| {
            let disk = guest.disk(0).display().to_string();
            guest.sh(&format!("vgcreate -qq --yes -s 1k vg {disk}"));
            // 1 MiB and 3 sectors' worth of no multiple of 4 KiB.
            guest.volume("vg", "odd", "1027k");
            guest.volume("vg", "data", "16M");
            guest.sh("lvcreate -qq -s -c 4k -L 8M -n s1 vg/data 2>&1");

            // The page cache of a live snapshot's store is stale; direct reads are not.
            let store = volume("vg/s1").thick_snapshot().unwrap().store.clone();
            let mut buffered = vec![0; 8192];
            let open = fs::File::open(&store).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&open, &mut buffered, 0).unwrap();
            guest.sh("dd if=/dev/urandom of=/dev/vg/data bs=4k count=3 oflag=direct status=none");
            let direct = Volume::open(&store).unwrap();
            let mut seen = vec![0; 8192];
            direct.read_exact_at(&mut seen, 0).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&open, &mut buffered, 0).unwrap();
            assert_eq!(
                buffered[4096..],
                [0; 4096],
                "the control: a buffered read misses them"
            );
            let exceptions = seen[4096..]
                .chunks(16)
                .filter(|entry| entry[8..] != [0; 8])
                .count();
            assert_eq!(exceptions, 3);

            let size = 1027 << 10;
            let model: Vec<u8> = (0..size as u32)
                .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect();
            let mut model = model;
            let odd = Volume::open_writable("/dev/vg/odd", &WriteOptions::default()).unwrap();
            assert_eq!(odd.size_bytes(), size as u64);
            odd.write_all_at(&model, 0).unwrap();
            let edges = [
                (0, 1),
                (511, 2),
                (1, 4095),
                (4097, 300_000),
                (size - 1, 1),
                (size - 700, 700),
            ];
            for (number, (offset, length)) in edges.into_iter().enumerate() {
                let byte = u8::try_from(number).unwrap() + 100;
                odd.write_all_at(&vec![byte; length], offset as u64)
                    .unwrap();
                model[offset..offset + length].fill(byte);
                let mut back = vec![0; length + 1];
                odd.read_exact_at(&mut back[1..], offset as u64).unwrap();
                assert_eq!(back[1..], model[offset..offset + length]);
            }
            for (offset, length) in [
                (700_000, 200_000),
                (10_000, 100),
                (size - 3000, 3000),
                (5 << 9, 512),
            ] {
                odd.zero_at(Extent::new(offset as u64, length as u64).unwrap())
                    .unwrap();
                model[offset..offset + length].fill(0);
            }
            assert!(odd.write_all_at(&[1; 2], size as u64 - 1).is_err());
            assert!(odd.set_size(1).is_err());
            odd.sync().unwrap();
            let mut all = vec![0; size];
            odd.read_exact_at(&mut all, 0).unwrap();
            assert!(all == model, "what was read is what was written");
            drop(odd);
            assert!(
                fs::read("/dev/vg/odd").unwrap() == model,
                "and a plain read agrees"
            );

            // Zeroing an origin is tracked like any write.
            let used = |status| match status {
                SnapshotStatus::Valid { used_sectors, .. } => used_sectors,
                other => panic!("{other:?}"),
            };
            let before = used(status("vg/s1"));
            let data = Volume::open_writable("/dev/vg/data", &WriteOptions::default()).unwrap();
            data.zero_at(Extent::new(MIB, 64 << 10).unwrap()).unwrap();
            assert_eq!(used(status("vg/s1")), before + 16 * 8);
            drop(data);

            guest.sh("blockdev --setro /dev/vg/odd");
            let error = Volume::open_writable("/dev/vg/odd", &WriteOptions::default()).unwrap_err();
            assert!(error.to_string().contains("read-only"), "{error}");
            Volume::open("/dev/vg/odd").unwrap();
        },
    );
}
