//! Looking at logical volumes on a real kernel with real LVM: what they are, and whether to trust them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use lab::{Guest, Setup};
use lvmsync::dm::{LogicalVolume, Resolved, Role, SnapshotStatus, recheck, resolve};
use lvmsync::error::{Error, ExitCode};
use lvmsync::extent::Extent;
use lvmsync::units::MIB;
use lvmsync::volume::in_use::overlap;
use lvmsync::volume::open::Provisioning;
use lvmsync::volume::{ReadAt, Volume, VolumeIdentity, WriteAt, WriteOptions};

/// `SnAp`, the first bytes of an exception store.
const STORE_MAGIC: &[u8] = b"SnAp";

fn volume(arg: &str) -> LogicalVolume {
    match resolve(arg) {
        Ok(Resolved::LogicalVolume(volume)) => *volume,
        other => panic!("{arg}: {other:?}"),
    }
}

fn refusal(arg: &str) -> String {
    match resolve(arg).and_then(|found| match found {
        Resolved::LogicalVolume(volume) => volume.thick_snapshot().map(drop),
        other => panic!("{arg}: {other:?}"),
    }) {
        Err(error) => error.chain(),
        Ok(()) => panic!("{arg} was accepted"),
    }
}

fn status(arg: &str) -> SnapshotStatus {
    volume(arg).thick_snapshot().unwrap().status
}

fn identity(path: impl AsRef<Path>) -> VolumeIdentity {
    VolumeIdentity::of_path(path).unwrap()
}

fn lvs(guest: &Guest, column: &str, lv: &str) -> String {
    guest
        .sh(&format!("lvs --noheadings -o {column} {lv}"))
        .trim()
        .to_owned()
}

#[test]
fn snapshots_are_found_by_uuid() {
    lab::test(
        "snapshots_are_found_by_uuid",
        Setup::new().disk("512M"),
        |guest| {
            let (vg, lv) = ("my-vg.1+x", "da--ta.2+y-");
            guest.volume_group(vg, 0);
            guest.volume(vg, lv, "32M");
            let origin = format!("{vg}/{lv}");
            assert_eq!(volume(&origin).role, Role::Plain);
            assert!(
                refusal(&origin).contains("lvcreate -s"),
                "{}",
                refusal(&origin)
            );

            let chunks = [4, 8, 16, 32, 64, 128, 256, 512u64];
            for chunk in chunks {
                let create =
                    format!("lvcreate -qq -s -c {chunk}k -L 8M -n s-{chunk} {origin} 2>&1");
                guest.sh(&create);
            }
            let origin_uuid = lvs(guest, "lv_uuid", &origin);
            for chunk in chunks {
                let name = format!("{vg}/s-{chunk}");
                let found = volume(&name);
                let snapshot = found.thick_snapshot().unwrap();
                assert_eq!(found.name.to_string(), name);
                assert_eq!(found.uuid, lvs(guest, "lv_uuid", &name));
                assert_eq!(found.size_bytes, 32 * MIB);
                assert_eq!(snapshot.chunk_bytes, chunk * 1024);
                assert_eq!(snapshot.origin.uuid, origin_uuid);
                assert_eq!(snapshot.origin.name.to_string(), origin);
                assert_eq!(snapshot.origin.size_bytes, 32 * MIB);
                assert_eq!(snapshot.origin_size_bytes, 32 * MIB);
                assert!(
                    matches!(snapshot.status, SnapshotStatus::Valid { .. }),
                    "{snapshot:?}"
                );
                assert!(matches!(
                    recheck(&found).unwrap(),
                    SnapshotStatus::Valid { .. }
                ));
                let mut magic = [0; 4];
                Volume::open(&snapshot.store)
                    .unwrap()
                    .read_exact_at(&mut magic, 0)
                    .unwrap();
                assert_eq!(magic, STORE_MAGIC, "{}", snapshot.store.display());
                assert_eq!(
                    identity(&snapshot.origin.path),
                    identity(format!("/dev/{origin}"))
                );
            }

            // Every spelling is the same volume.
            let mangled = "/dev/mapper/my--vg.1+x-s--4";
            let by_number = format!("/dev/dm-{}", volume(mangled).device.minor);
            for spelling in [format!("/dev/{vg}/s-4"), mangled.to_owned(), by_number] {
                assert_eq!(
                    volume(&spelling),
                    volume(&format!("{vg}/s-4")),
                    "{spelling}"
                );
            }

            let listed = refusal(&origin);
            assert!(
                listed.contains("origin") && listed.contains(&format!("{vg}/s-512")),
                "{listed}"
            );
            let hidden = resolve("/dev/mapper/my--vg.1+x-s--4-cow").unwrap();
            assert!(matches!(hidden, Resolved::BlockDevice(_)), "{hidden:?}");
            assert!(matches!(
                resolve("/dev/ubdb").unwrap(),
                Resolved::BlockDevice(_)
            ));
        },
    );
}

#[test]
fn what_cannot_be_used_is_explained() {
    lab::test(
        "what_cannot_be_used_is_explained",
        Setup::new().disk("256M"),
        |guest| {
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "16M");
            guest.sh("lvcreate -qq -s -c 4k -L 8M -n s1 vg/data 2>&1");
            guest.sh("lvcreate -qq -an -Zn -Wn -L 4M -n off vg 2>&1");
            let says = |arg: &str, words: &str| {
                let error = resolve(arg).unwrap_err();
                let text = error.chain();
                assert_eq!(error.exit_code(), ExitCode::Failed, "{text}");
                assert!(text.contains(words), "{arg}: {text}");
            };
            says("vg/off", "lvchange -ay vg/off");
            says("/dev/vg/off", "lvchange -ay vg/off");
            says("vg/none", "no logical volume none");
            says("/dev/mapper/vg-none", "no logical volume none");
            says("nope/none", "no volume group");
            says("nope/none", "there is no directory nope");
            says("/dev/sdz", "cannot find /dev/sdz");
            guest.sh("lvchange -y -an vg/data 2>&1");
            says("vg/s1", "lvchange -ay vg/data");
            guest.sh("lvchange -y -ay vg/data 2>&1");
            for path in ["/dev", "/dev/null"] {
                assert_eq!(resolve(path).unwrap_err().exit_code(), ExitCode::Usage);
            }

            // A path and a volume of one name: neither is guessed.
            std::env::set_current_dir(guest.scratch()).unwrap();
            fs::create_dir("vg").unwrap();
            fs::write("vg/data", "x").unwrap();
            fs::write("vg/file", "x").unwrap();
            let both = resolve("vg/data").unwrap_err();
            assert_eq!(both.exit_code(), ExitCode::Usage);
            assert!(both.to_string().contains("./vg/data"), "{both}");
            assert_eq!(
                resolve("./vg/data").unwrap(),
                Resolved::File("./vg/data".into())
            );
            assert_eq!(
                resolve("vg/file").unwrap(),
                Resolved::File("vg/file".into())
            );
            assert!(matches!(
                resolve("/dev/vg/data").unwrap(),
                Resolved::LogicalVolume(_)
            ));

            // Pools and thin volumes are told apart, and sharing a pool is no overlap.
            guest.sh("lvcreate -qq --type thin-pool -L 32M -c 128k -Zn -n pool vg 2>&1");
            assert_eq!(volume("vg/pool").role, Role::ThinPool, "an empty pool");
            guest.sh(
                "lvcreate -qq -V 16M -Wn -T vg/pool -n t1 2>&1; lvcreate -qq -s -n t2 vg/t1 2>&1",
            );
            says("vg/t2", "lvchange -ay -K vg/t2");
            guest.sh("lvchange -ay -K vg/t2 2>&1");
            assert_eq!(volume("vg/pool").role, Role::ThinPool);
            let Role::Thin {
                device_id,
                block_bytes,
                ..
            } = volume("vg/t2").role
            else {
                panic!("{:?}", volume("vg/t2"))
            };
            assert_eq!((device_id, block_bytes), (2, 128 << 10));
            assert!(
                refusal("vg/t1").contains("thin volume"),
                "{}",
                refusal("vg/t1")
            );
            assert_eq!(
                overlap(identity("/dev/vg/t1"), identity("/dev/vg/t2")),
                None
            );

            // Zeroing a thin volume gives its blocks back.
            let t1 = volume("vg/t1");
            let mapped = || {
                guest
                    .sh("dmsetup status vg-t1")
                    .split(' ')
                    .nth(3)
                    .unwrap()
                    .to_owned()
            };
            let options = WriteOptions {
                provisioning: Some(Provisioning {
                    block_bytes: 128 << 10,
                    discard_zeroes: true,
                    stale_rest: true,
                }),
                ..WriteOptions::default()
            };
            let open = Volume::open_writable(&t1.path, &options).unwrap();
            open.write_all_at(&[7; 512 << 10], 0).unwrap();
            assert_eq!(mapped(), "1024");
            open.zero_at(Extent::new(1000, 400_000).unwrap()).unwrap();
            open.sync().unwrap();
            assert_eq!(mapped(), "512", "blocks 1 and 2 of four are whole");
            let mut bytes = vec![0; 512 << 10];
            open.read_exact_at(&mut bytes, 0).unwrap();
            let expected = |at: usize| if (1000..401_000).contains(&at) { 0 } else { 7 };
            assert!(
                bytes
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == expected(at))
            );
            drop(open);

            // Not root: said, not guessed.
            let output = Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
                .arg(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "resolve_without_root",
                    "--ignored",
                    "--nocapture",
                ])
                .output()
                .unwrap();
            let text =
                String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{text}");
        },
    );
}

/// The part of the test above that runs as another user.
#[test]
#[ignore = "run by what_cannot_be_used_is_explained, inside the guest"]
fn resolve_without_root() {
    if std::env::var_os("LAB_GUEST").is_none() {
        return; // somebody runs all ignored tests
    }
    for arg in ["vg/s1", "/dev/mapper/vg-s1"] {
        let text = resolve(arg).unwrap_err().chain();
        assert!(text.contains("needs root"), "{arg}: {text}");
    }
}

#[test]
fn lost_tracking_is_seen() {
    lab::test(
        "lost_tracking_is_seen",
        Setup::new().disk("512M"),
        |guest| {
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "32M");
            let fill = |lv: &str, size: &str| {
                guest.sh(&format!(
                    "dd if=/dev/urandom of=/dev/vg/{lv} bs={size} count=1 oflag=direct status=none"
                ))
            };

            guest.sh("lvcreate -qq -s -c 4k -L 4M -n full vg/data 2>&1");
            guest.sh("lvcreate -qq -s -c 4k -L 16M -n s1 vg/data 2>&1");
            let before = volume("vg/full");
            fill("data", "8M");
            assert_eq!(status("vg/full"), SnapshotStatus::Invalid);
            assert_eq!(recheck(&before).unwrap(), SnapshotStatus::Invalid);
            assert!(matches!(
                recheck(&volume("vg/s1")).unwrap(),
                SnapshotStatus::Valid { .. }
            ));
            guest.sh("lvremove -qq -y vg/full");
            assert!(recheck(&before).unwrap_err().chain().contains("removed"));

            // A new volume takes the freed number; it must not pass for the old one.
            guest.sh("lvcreate -qq -s -c 4k -L 4M -n other vg/data 2>&1");
            assert!(recheck(&before).is_err());

            // LVM never asks for it, but a table may say that a snapshot that is full of its own writes
            // stays readable.
            guest.sh("t=$(dmsetup table vg-other); dmsetup suspend vg-other
             dmsetup load vg-other --table \"${t/ P / PO }\"; dmsetup resume vg-other");
            guest.try_sh("dd if=/dev/urandom of=/dev/vg/other bs=1M count=8 oflag=direct");
            assert_eq!(status("vg/other"), SnapshotStatus::Overflow);
            guest.sh("lvremove -qq -y vg/other");

            // What LVM does to merge, except that nobody waits for the end: the tables stay as they are
            // during a merge, which by itself would be over too soon to be looked at.
            let looked_at = volume("vg/s1");
            guest.sh(
                "real=$(dmsetup table vg-data | cut -d' ' -f4); s=$(dmsetup table vg-s1)
             dmsetup suspend vg-data; dmsetup suspend vg-s1
             dmsetup load vg-data --table \"${s/snapshot/snapshot-merge}\"
             dmsetup load vg-s1 --table \"${s%% snapshot*} error\"
             dmsetup resume vg-data; dmsetup resume vg-s1",
            );
            assert_eq!(status("vg/s1"), SnapshotStatus::Merging);
            assert_eq!(recheck(&looked_at).unwrap(), SnapshotStatus::Merging);
            assert!(matches!(
                volume("vg/data").role,
                Role::ThickOrigin { merging: true, .. }
            ));
            assert!(
                refusal("vg/data").contains("merged"),
                "{}",
                refusal("vg/data")
            );
            guest.sh(
                "dmsetup remove_all --force || true; vgchange -an vg 2>&1; vgchange -ay vg 2>&1",
            );

            // An origin may grow while it is inactive; the snapshot does not cover the new part.
            guest.sh(
                "lvchange -y -an vg/data 2>&1; lvextend -qq -L +16M vg/data 2>&1
             lvchange -y -ay vg/data 2>&1",
            );
            let grown = volume("vg/s1");
            let snapshot = grown.thick_snapshot().unwrap();
            assert_eq!(
                (grown.size_bytes, snapshot.origin_size_bytes),
                (32 * MIB, 32 * MIB)
            );
            assert_eq!(snapshot.origin.size_bytes, 48 * MIB);

            // A merge by LVM itself, seen at whatever moment: never in order.
            fill("data", "8M");
            guest.sh("lvconvert -qq --merge -b vg/s1 >/dev/null 2>&1");
            match resolve("vg/s1") {
                Ok(Resolved::LogicalVolume(found)) => {
                    let status = found.thick_snapshot().map(|s| s.status);
                    assert!(
                        matches!(status, Ok(SnapshotStatus::Merging) | Err(_)),
                        "{status:?}"
                    );
                }
                other => assert!(matches!(other, Err(Error::Lvm { .. })), "{other:?}"),
            }
        },
    );
}
