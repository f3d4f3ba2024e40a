//! `lvmsync track` on a real kernel: what is set up, what is refused, and that a run that is killed anywhere is finished
//! or undone by the same command.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab_kit::{Tool, assert_same, long, setup};
use serde_json::Value;

const DEVICE: &str = "/dev/mapper/vg-data-era";

/// The only volume that `status` is asked for.
fn status(tool: &Tool) -> Value {
    let began = Instant::now();
    let run = tool.run("track status vg/data --json").ok();
    assert!(began.elapsed() < Duration::from_secs(20), "it waited");
    let rows: Value = serde_json::from_str(&run.stdout).unwrap();
    rows[0].clone()
}

fn volumes(guest: &lab::Guest) -> String {
    let listed = guest.sh("lvs --noheadings -o lv_name vg");
    listed.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn tracking_is_set_up_looked_at_and_taken_away() {
    lab::test(
        "tracking_is_set_up_looked_at_and_taken_away",
        setup().disk("256M"),
        |guest| {
            let tool = Tool::new(guest);
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "64M");
            guest.sh("mkfs.ext4 -q /dev/vg/data; mkdir -p /tmp/m; mount /dev/vg/data /tmp/m; echo old >/tmp/m/old");
            assert_eq!(status(&tool)["state"], "untracked");
            tool.run("track enable vg/data")
                .ends(5, &["mounted on /tmp/m", "past the era device"]);
            guest.sh("umount /tmp/m");

            // What would be done, and nothing else.
            let plan = tool.run("track enable vg/data -n").ok().stdout;
            let lines: Vec<&str> = plan.lines().collect();
            assert!(
                lines[0].starts_with("lvcreate ") && lines[0].contains("data_era"),
                "{plan}"
            );
            assert!(
                lines[1].starts_with("dmsetup create vg-data-era "),
                "{plan}"
            );
            assert!(lines[2].contains("discard_max_bytes"), "{plan}");
            assert_eq!((lines.len(), volumes(guest).as_str()), (4, "data"));

            let run = tool.run("track enable vg/data").ok();
            assert_eq!(run.stdout, plan);
            assert!(run.stderr.contains(DEVICE), "{}", run.stderr);
            let row = status(&tool);
            assert_eq!(
                (&row["state"], &row["device"]),
                (&"up".into(), &DEVICE.into())
            );
            assert_eq!(
                (&row["block_bytes"], &row["discards"]),
                (&65536.into(), &false.into())
            );
            let first = row["era"].as_u64().unwrap();
            tool.run("track enable vg/data").ok();
            assert_eq!(status(&tool)["era"], first, "looking ends no era");

            // The kernel lets nobody mount what is below.
            guest.sh("! mount /dev/vg/data /tmp/m");
            guest.sh(&format!(
                "mount {DEVICE} /tmp/m; test $(cat /tmp/m/old) = old; echo new >/tmp/m/new"
            ));
            guest.sh("! fstrim /tmp/m");
            guest.sh("dmsetup message vg-data-era 0 checkpoint");
            assert_eq!(status(&tool)["era"], first + 1);
            tool.run("track disable vg/data")
                .ends(5, &["mounted on /tmp/m"]);
            tool.run(&format!("track disable {DEVICE}"))
                .ends(5, &["mounted on /tmp/m"]);
            guest.sh("umount /tmp/m");

            // A suspended device answers nobody: nothing of ours asks it.
            guest.sh("dmsetup suspend vg-data-era");
            assert_eq!(status(&tool)["state"], "suspended");
            tool.run("track disable vg/data")
                .ends(5, &["is suspended", "dmsetup resume vg-data-era"]);
            guest.sh("dmsetup resume vg-data-era");
            // A table that is loaded anew lets discards through again, until somebody says otherwise.
            guest.sh("dmsetup load vg-data-era --table \"$(dmsetup table vg-data-era)\"; dmsetup suspend vg-data-era; dmsetup resume vg-data-era");
            assert_eq!(status(&tool)["discards"], true);
            tool.run("track up vg/data").ok();
            assert_eq!(status(&tool)["discards"], false);

            // As after a boot.
            let before = status(&tool)["era"].as_u64().unwrap();
            guest.sh("dmsetup remove vg-data-era");
            assert_eq!(status(&tool)["state"], "down");
            tool.run("track enable vg/data")
                .ends(5, &["lvmsync track up vg/data"]);
            guest.sh("lvchange -an vg/data_era");
            tool.run("track up --all").ok();
            assert!(status(&tool)["era"].as_u64().unwrap() > before);
            assert_eq!(status(&tool)["discards"], false);

            // Mounted past it before it came up: the record proves nothing any more, and says so.
            let uuid = guest.sh("lvs --noheadings -o lv_uuid vg/data_era");
            guest.sh("dmsetup remove vg-data-era; mount /dev/vg/data /tmp/m");
            tool.run("track up --all").ends(
                4,
                &[
                    "mounted on /tmp/m",
                    "marked as void",
                    "track enable vg/data",
                ],
            );
            guest.sh("umount /tmp/m");
            assert_eq!(status(&tool)["state"], "void");
            tool.run("track up vg/data").ends(5, &["proves nothing"]);
            tool.run("track enable vg/data").ok();
            assert_eq!(status(&tool)["state"], "up");
            assert_ne!(guest.sh("lvs --noheadings -o lv_uuid vg/data_era"), uuid);

            tool.run("track disable vg/data -n").ok();
            assert_eq!(status(&tool)["state"], "up");
            tool.run("track disable vg/data").ok();
            assert_eq!(volumes(guest), "data");
            assert!(!guest.sh("dmsetup ls").contains("era"));
            guest.sh("mount /dev/vg/data /tmp/m; test $(cat /tmp/m/old /tmp/m/new | wc -l) = 2; umount /tmp/m");
            assert!(
                tool.run("track disable vg/data")
                    .ok()
                    .stderr
                    .contains("not tracked")
            );
        },
    );
}

#[test]
fn a_killed_track_is_finished_or_undone() {
    lab::test(
        "a_killed_track_is_finished_or_undone",
        setup().disk("256M"),
        |guest| {
            let tool = Tool::new(guest);
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "32M");
            let held = lab_kit::content("/dev/vg/data");
            let step = if long() { 20 } else { 150 };
            let mut unfinished = 0;
            for delay in (30..1100).step_by(step) {
                for (verb, other, goal) in [
                    ("enable", "disable", "up"),
                    ("disable", "enable", "untracked"),
                ] {
                    let mut run = tool.start(&format!("track {verb} vg/data"));
                    sleep(Duration::from_millis(delay));
                    let was_at_work = run.try_wait().unwrap().is_none();
                    run.kill().unwrap();
                    run.wait().unwrap();
                    // Undone by the other in every second round, finished by the same in all.
                    if was_at_work {
                        unfinished += 1;
                        if unfinished % 2 == 0 {
                            tool.run(&format!("track {other} vg/data")).ok();
                        }
                    }
                    tool.run(&format!("track {verb} vg/data")).ok();
                    assert_eq!(
                        status(&tool)["state"],
                        goal,
                        "{verb} killed after {delay} ms"
                    );
                }
                assert_eq!(volumes(guest), "data");
            }
            assert!(unfinished > 4, "{unfinished}");
            guest.announce(&format!("{unfinished} runs were killed at work"));
            assert_same("/dev/vg/data", &held, "nothing is written to the volume");
        },
    );
}
