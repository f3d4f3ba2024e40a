//! Writes that go past the era device: they are on no record, and where the witness has looked they are found, in the run after
//! them and before the device comes up.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use lab::Guest;
use lab_kit::eras::{DEVICE, base, send, state};
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
            tool.run("track up --all").ends(5, &["proves nothing"]);
            tool.run("track enable vg/data").ok();
            send(&tool, "vg/copy").ends(4, &["has not begun", "lvmsync sync"]);
            tool.run(&format!("sync {DEVICE} vg/copy")).ok();
            write(DEVICE, &random.bytes(8192), 20 * MIB);
            send(&tool, "vg/copy").ok();
            assert_same("/dev/vg/copy", &content(BELOW), "in the end");
        },
    );
}
