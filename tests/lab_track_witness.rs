//! Writes that go past the era device: they are on no record, and where the witness has looked they are found, in the run after
//! them and before the device comes up.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::time::Duration;

use lab::Guest;
use lab_kit::eras::{DEVICE, base, row, send, state};
use lab_kit::{Random, Tool, assert_same, content, long, seed, setup, write};
use serde_json::Value;

const BELOW: &str = "/dev/vg/data";
const MIB: u64 = 1 << 20;

/// One that the witness looks at, in the middle of the volume.
fn sampled(tool: &Tool) -> u64 {
    let entries = std::fs::read_dir(tool.path("state").join("eras")).unwrap();
    let path = entries.map(|entry| entry.unwrap().path()).next().unwrap();
    let kept: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let blocks = kept["blocks"].as_array().unwrap();
    let offsets = blocks.iter().map(|block| block["offset"].as_u64().unwrap());
    offsets
        .min_by_key(|offset| offset.abs_diff(12 * MIB))
        .unwrap()
}

/// As after a boot of a system that knows of no era device. Nothing keeps in mind what the volume holds: as after a power cut.
fn past(guest: &Guest, tool: &Tool, bytes: &[u8], offset: u64) {
    guest.sh("dmsetup remove vg-data-era");
    write(BELOW, bytes, offset);
    tool.run("track up vg/data").ok();
}

#[test]
fn a_write_past_the_era_device_ends_what_follows_it() {
    lab::test(
        "a_write_past_the_era_device_ends_what_follows_it",
        setup().disk("512M"),
        |guest| {
            let tool = Tool::new(guest);
            let mut random = Random::new(seed(guest));
            guest.volume_group("vg", 0);
            for name in ["data", "copy", "other"] {
                guest.volume("vg", name, "24M");
            }
            write(BELOW, &random.bytes(24 << 20), 0);
            tool.run("track enable vg/data").ok();
            for copy in ["vg/copy", "vg/other"] {
                tool.run(&format!("send {DEVICE} {copy}")).ok();
            }
            // What goes through the era device is no contradiction, be it where the witness looks.
            for offset in [0, sampled(&tool)] {
                write(DEVICE, &random.bytes(8192), offset);
                guest.sh("dmsetup remove vg-data-era");
                tool.run("track up vg/data").ok();
                send(&tool, "vg/copy").ok();
                assert_same("/dev/vg/copy", &content(BELOW), "nobody wrote past it");
            }
            for superblock in [true, false] {
                let offset = match superblock {
                    true => 1024,
                    false => sampled(&tool),
                };
                past(guest, &tool, &random.bytes(512), offset);
                write(DEVICE, &random.bytes(8192), 20 * MIB);
                let listed = tool.run(&format!(
                    "diff --from era:{} {DEVICE}",
                    base(&tool, "vg/copy")
                ));
                listed.ends(4, &["past its era device", "lvmsync sync"]);
                // From then on it is on record.
                let held = content("/dev/vg/copy");
                send(&tool, "vg/copy").ends(4, &["is no base any more", "lvmsync sync"]);
                assert_same("/dev/vg/copy", &held, "nothing was written");
                tool.run(&format!("sync {DEVICE} vg/copy")).ok();
                write(DEVICE, &random.bytes(8192), 21 * MIB);
                send(&tool, "vg/copy").ok();
                assert_same("/dev/vg/copy", &content(BELOW), "after the sync");
                // The other copy is from before it.
                send(&tool, "vg/other").ends(4, &["is no base any more"]);
                tool.run(&format!("sync {DEVICE} vg/other")).ok();
                send(&tool, "vg/other").ok();
                assert_same("/dev/vg/other", &content(BELOW), "after its sync");
            }
            // A sync is as good as an increment to find it: the others are lost from then on.
            past(guest, &tool, &random.bytes(512), 1024);
            let synced = tool.run(&format!("sync {DEVICE} vg/copy")).ok();
            assert!(
                synced.stderr.contains("past its era device"),
                "{}",
                synced.stderr
            );
            send(&tool, "vg/other").ends(4, &["is no base any more"]);
            send(&tool, "vg/copy").ok();

            // The record itself is put back.
            guest.sh("dmsetup remove vg-data-era; dd if=/dev/vg/data_era of=/tmp/record bs=1M iflag=direct 2>/dev/null");
            tool.run("track up vg/data").ok();
            for _ in 0..2 {
                send(&tool, "vg/copy").ok();
            }
            let held = base(&tool, "vg/copy");
            guest.sh("dmsetup remove vg-data-era; dd if=/tmp/record of=/dev/vg/data_era bs=1M oflag=direct 2>/dev/null");
            tool.run("track up vg/data").ok();
            let line = format!("send --from era:{held} {DEVICE} vg/copy");
            tool.run(&line)
                .ends(4, &["was put back", "track enable vg/data"]);
            for _ in 0..10 {
                guest.sh("dmsetup message vg-data-era 0 checkpoint");
            }
            tool.run(&line).ends(4, &["is no base any more"]);
        },
    );
}

#[test]
fn what_was_written_while_the_era_device_was_down_makes_the_record_void() {
    lab::test(
        "what_was_written_while_the_era_device_was_down_makes_the_record_void",
        setup().disk("512M"),
        |guest| {
            let tool = Tool::new(guest);
            let mut random = Random::new(seed(guest));
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "24M");
            guest.volume("vg", "copy", "24M");
            guest.sh("mkfs.ext4 -q /dev/vg/data; mkdir -p /tmp/m");
            tool.run("track enable vg/data").ok();
            tool.run(&format!("send {DEVICE} vg/copy")).ok();
            // What the unit does at shutdown and boot.
            for round in 0..if long() { 20 } else { 3 } {
                guest.sh(&format!(
                    "mount {DEVICE} /tmp/m; echo {round} >/tmp/m/round"
                ));
                tool.run("track down --all").ends(5, &["mounted on /tmp/m"]);
                guest.sh("umount /tmp/m");
                let plan = tool.run("track down vg/data -n").ok().stdout;
                assert!(
                    plan.contains("lvmsync_era_rest_") && plan.contains("dmsetup remove"),
                    "{plan}"
                );
                assert_eq!(tool.run("track down --all").ok().stdout, plan);
                assert_eq!(state(&tool), "down");
                assert_eq!(tool.run("track down vg/data").ok().stdout, "");
                guest.sh("vgchange -qq -an vg; vgchange -qq -ay vg");
                tool.run("track up --all").ok();
                assert!(
                    !guest
                        .sh("lvs --noheadings -o lv_tags vg")
                        .contains("_rest_")
                );
                send(&tool, "vg/copy").ok();
                assert_same("/dev/vg/copy", &content(BELOW), "after a boot");
            }
            // Mounted without the era device and unmounted again, before the unit ran.
            tool.run("track down --all").ok();
            guest.sh("mount /dev/vg/data /tmp/m; echo past >/tmp/m/past; umount /tmp/m");
            tool.run("track up --all")
                .ends(4, &["when its era device was taken down", "marked as void"]);
            assert_eq!(state(&tool), "void");
            assert!(guest.sh("dmsetup table vg-data-era").contains(" era "));
            // Its device comes up at every boot, or the machine might not.
            for _ in 0..2 {
                tool.run("track down --all").ok();
                tool.run("track up --all")
                    .ends(4, &["is up all the same", "track enable vg/data"]);
            }
            guest.sh(&format!("mount {DEVICE} /tmp/m; echo more >/tmp/m/more"));
            // Nothing but the record tells: another state directory.
            let eras = tool.path("state").join("eras");
            std::fs::remove_dir_all(&eras).unwrap();
            for line in [
                format!("send --from era:{} vg/data vg/copy", base(&tool, "vg/copy")),
                format!("diff --from era:{} vg/data", base(&tool, "vg/copy")),
                format!("sync {DEVICE} vg/copy"),
            ] {
                let run = tool
                    .run(&line)
                    .ends(4, &["is void", "To recover: lvmsync track enable vg/data"]);
                assert!(!run.stderr.contains("lvmsync sync"), "{}", run.stderr);
            }
            // While it is in use. What was written past it is in no list from before.
            tool.run("track enable vg/data").ok();
            assert_eq!(state(&tool), "up");
            guest.sh("umount /tmp/m");
            assert!(!eras.exists());
            send(&tool, "vg/copy").ends(
                4,
                &[
                    "is no base any more",
                    &format!("lvmsync sync {DEVICE} vg/copy"),
                ],
            );
            tool.run(&format!("sync {DEVICE} vg/copy")).ok();
            write(DEVICE, &random.bytes(8192), 20 * MIB);
            send(&tool, "vg/copy").ok();
            assert_same("/dev/vg/copy", &content(BELOW), "in the end");
        },
    );
}

/// Until LVM has ended the merge, as it does in the background of any machine.
fn merged(guest: &Guest) {
    guest.sh("lvchange --poll y vg/data; while lvs --noheadings -a -o lv_name vg | grep -q old; do sleep 0.2; done");
}

#[test]
fn a_snapshot_that_is_merged_into_a_tracked_volume_ends_what_follows_it() {
    lab::test(
        "a_snapshot_that_is_merged_into_a_tracked_volume_ends_what_follows_it",
        setup().disk("512M").time_limit(Duration::from_secs(240)),
        |guest| {
            let tool = Tool::new(guest);
            let mut random = Random::new(seed(guest));
            guest.volume_group("vg", 0);
            for name in ["data", "copy"] {
                guest.volume("vg", name, "24M");
            }
            tool.run("track enable vg/data").ok();
            write(DEVICE, &random.bytes(1 << 20), 3 * MIB);
            tool.run(&format!("send {DEVICE} vg/copy")).ok();
            // A merge is due while the device is up; it begins with the next activation.
            for was_seen in [true, false] {
                guest.sh("lvcreate -qq -s -L 8M -n old vg/data");
                write(DEVICE, &random.bytes(1 << 20), 9 * MIB);
                send(&tool, "vg/copy").ok();
                assert_same("/dev/vg/copy", &content(BELOW), "before the merge");
                guest.sh("lvconvert -qq --merge vg/old");
                if was_seen {
                    for line in [
                        format!("send --from era:{} vg/data vg/copy", base(&tool, "vg/copy")),
                        format!("send {DEVICE} vg/copy --force"),
                    ] {
                        tool.run(&line).ends(4, &["will be merged into it"]);
                    }
                    // Nobody sees the merge itself.
                    guest
                        .sh("dmsetup remove vg-data-era; vgchange -qq -an vg; vgchange -qq -ay vg");
                    merged(guest);
                    tool.run("track up vg/data").ok();
                } else {
                    // It runs when the device comes up, and nothing was kept in mind.
                    guest.sh("dmsetup remove vg-data-era; vgchange -qq -an vg; vgchange -qq -ay --poll n vg");
                    std::fs::remove_dir_all(tool.path("state").join("eras")).unwrap();
                    tool.run("track up vg/data")
                        .ends(4, &["is being merged into it", "is up all the same"]);
                    assert_eq!(state(&tool), "void");
                    tool.run("track enable vg/data")
                        .ends(5, &["is being merged into it"]);
                    merged(guest);
                    tool.run("track enable vg/data").ok();
                }
                assert!(
                    content("/dev/vg/copy") != content(BELOW),
                    "nothing was merged"
                );
                send(&tool, "vg/copy").ends(4, &["is no base any more"]);
                tool.run(&format!("sync {DEVICE} vg/copy")).ok();
                write(DEVICE, &random.bytes(8192), 20 * MIB);
                send(&tool, "vg/copy").ok();
                assert_same("/dev/vg/copy", &content(BELOW), "after the merge");
            }
            // Taken down with one that is due.
            guest.sh("lvcreate -qq -s -L 8M -n old vg/data; lvconvert -qq --merge vg/old");
            tool.run("track down vg/data").ok();
            assert_eq!(state(&tool), "void");
            guest.sh("vgchange -qq -an vg; vgchange -qq -ay vg");
            merged(guest);
            tool.run("track up vg/data")
                .ends(4, &["is up all the same"]);

            // Of a thin volume the number in its pool is another one then.
            guest.sh("lvcreate -qq -L 32M -T vg/pool; lvcreate -qq -V 16M -T vg/pool -n thin");
            tool.run("track enable vg/thin").ok();
            guest.sh("lvcreate -qq -s -n told vg/thin");
            write("/dev/mapper/vg-thin-era", &random.bytes(1 << 20), 3 * MIB);
            guest.sh("dmsetup remove vg-thin-era; lvchange -an vg/thin; lvconvert -qq --merge vg/told; lvchange -ay vg/thin");
            tool.run("track up vg/thin").ends(
                4,
                &["another volume of its thin pool", "is up all the same"],
            );
            tool.run("track enable vg/thin").ok();
            let status = row(&tool, "track status vg/thin --json");
            assert_eq!(status["state"], "up");
            guest.sh("dmsetup remove vg-thin-era");
            tool.run("track up vg/thin").ok();
        },
    );
}
