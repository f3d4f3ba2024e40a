//! `lvmsync track` on a real kernel: what is set up, what is refused, and that a run that is killed anywhere is finished
//! or undone by the same command.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab_kit::eras::{DEVICE, era_of, held, row};
use lab_kit::{Tool, assert_same, long, setup, write};
use lvmsync::dm::device::DeviceMapper;
use lvmsync::dm::era::status_of;
use lvmsync::dm::wire::Selector;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The only volume that `status` is asked for.
fn status(tool: &Tool) -> Value {
    let began = Instant::now();
    let row = row(tool, "track status vg/data --json");
    assert!(began.elapsed() < Duration::from_secs(20), "it waited");
    row
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
            // LVM would find its group on the era device.
            guest.volume("vg", "guest", "4M");
            write("/dev/vg/guest", b"LABELONE", 512);
            tool.run("track enable vg/guest")
                .ends(5, &["physical volume", "global_filter", "--force"]);
            tool.run("track enable vg/guest --force -n").ok();
            guest.sh("lvremove -qq -y vg/guest");

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
            let began = Instant::now();
            tool.run("doctor").ends(1, &[]);
            let found = tool.run("doctor").stdout;
            assert!(found.contains("dmsetup resume vg-data-era"), "{found}");
            assert!(began.elapsed() < Duration::from_secs(40), "it waited");
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
            // What lvmsync itself would write now is on no record either.
            let held = lab_kit::content("/dev/vg/data");
            guest.sh("cp --sparse=always /dev/vg/data /tmp/other");
            tool.run("send /tmp/other -o /tmp/other.delta").ok();
            for line in [
                "sync /tmp/other vg/data --force",
                "apply /tmp/other.delta vg/data --preview",
            ] {
                tool.run(line)
                    .ends(5, &["is on no record", "lvmsync track up vg/data", DEVICE]);
            }
            guest.sh("lvchange -an vg/data_era");
            tool.run("sync /tmp/other vg/data --force")
                .ends(5, &["is on no record"]);
            assert!(lab_kit::content("/dev/vg/data") == held);
            // One that refuses writes takes none through an era device.
            guest.sh("lvchange -pr vg/data");
            tool.run("track up --all")
                .ends(0, &["read-only; stays down"]);
            tool.run("track up vg/data")
                .ends(5, &["lvchange -prw vg/data"]);
            assert_eq!(status(&tool)["state"], "down");
            guest.sh("lvchange -prw vg/data");
            // A directory of that name is where it runs: /srv/data for the volume data of a group srv.
            std::fs::create_dir_all(tool.path("vg/data")).unwrap();
            tool.run("track up --all").ok();
            tool.run("track down --all").ok();
            std::fs::remove_dir_all(tool.path("vg")).unwrap();
            // A run that was killed had made the device, and given it no table.
            guest.sh("dmsetup create vg-data-era --notable --uuid LVMSYNC-ERA-$(lvs --noheadings -o lv_uuid vg/data | tr -d ' ')");
            tool.run("track up --all").ok();
            assert!(status(&tool)["era"].as_u64().unwrap() > before);
            assert_eq!(status(&tool)["discards"], false);

            // Mounted past it before it came up: the record proves nothing any more, and says so.
            let uuid = guest.sh("lvs --noheadings -o lv_uuid vg/data_era");
            guest.sh("dmsetup remove vg-data-era; mount /dev/vg/data /tmp/m");
            let run = tool.run("track up --all -n");
            run.ends(4, &["would be marked", "Before anything else"]);
            assert_eq!(status(&tool)["state"], "down");
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
            // The record is made anew where that can be.
            tool.run("track enable vg/data").ok();
            assert_eq!(status(&tool)["state"], "up");
            assert_ne!(guest.sh("lvs --noheadings -o lv_uuid vg/data_era"), uuid);
            // One that is not finished is none: its device would stand in the way.
            guest.sh("dmsetup remove vg-data-era; lvchange --addtag lvmsync_era_void vg/data_era");
            tool.run("track up vg/data").ends(5, &["proves nothing"]);
            tool.run("track enable vg/data").ok();

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

/// Every block of 4 KiB that a live list leaves out is the same in both.
fn assert_listed(tool: &Tool, from: u64, before: &[u8], now: &[u8]) {
    let (size, listed) = tool.diff(&format!("era:{from}"), DEVICE);
    assert_eq!(size, now.len() as u64);
    for (number, (before, now)) in (0u64..).zip(before.chunks(4096).zip(now.chunks(4096))) {
        let is_listed = listed
            .iter()
            .any(|(offset, length)| (*offset..offset + length).contains(&(number * 4096)));
        assert!(
            before == now || is_listed,
            "block {number} since era {from}"
        );
    }
}

#[test]
fn a_live_volume_is_followed_by_its_eras() {
    lab::test(
        "a_live_volume_is_followed_by_its_eras",
        setup().disk("512M").time_limit(Duration::from_secs(300)),
        |guest| {
            let tool = Tool::new(guest);
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "48M");
            guest.volume("vg", "copy", "48M");
            tool.run("diff --from era:1 vg/data")
                .ends(5, &["none is up on it", "track up"]);
            tool.run("track enable vg/data").ok();
            guest.sh(&format!("mkfs.ext4 -q {DEVICE}; mkdir -p /tmp/m; mount {DEVICE} /tmp/m; dd if=/dev/urandom of=/tmp/m/a bs=1M count=4 2>/dev/null; sync"));
            assert_eq!(status(&tool)["checkpoint"], Value::Null);
            let run = tool.run(&format!("send {DEVICE} vg/copy")).ok();
            let last = &status(&tool)["checkpoint"];
            assert!(last["era"].as_u64() > Some(0) && last["at"].as_i64() > Some(1 << 30));
            assert!(run.stderr.contains("--from era:"), "{}", run.stderr);
            let mut id = held(&tool, "vg/copy");
            assert!(id.starts_with("era:"), "{id}");
            assert_same("/dev/vg/copy", &lab_kit::content("/dev/vg/data"), "at rest");

            // Somebody writes all the time. Each increment makes the copy a moment of the volume: its filesystem is whole.
            let mut writer = std::process::Command::new("sh")
                .args(["-c", "i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=/tmp/m/f$((i%5)) bs=64k count=7 conv=fsync 2>/dev/null; done"])
                .spawn()
                .unwrap();
            for _ in 0..2 {
                sleep(Duration::from_millis(400));
                let from = era_of(&id);
                tool.run(&format!("send --from era:{from} {DEVICE} vg/copy"))
                    .ok();
                let next = held(&tool, "vg/copy");
                assert!(era_of(&next) > from, "{next}");
                id = next;
                assert_eq!(
                    guest
                        .sh("lvs --noheadings -o lv_name vg")
                        .split_whitespace()
                        .count(),
                    3
                );
                assert!(guest.sh("dmsetup status vg-data-era").trim().ends_with('-'));
                guest.sh("lvcreate -qq -s -L 16M -n look vg/copy; e2fsck -fp /dev/vg/look || test $? -le 1; lvremove -qq -y vg/look");
            }
            writer.kill().unwrap();
            writer.wait().unwrap();
            guest.sh("while ! umount /tmp/m; do sleep 0.1; done");
            let before = lab_kit::content("/dev/vg/copy");
            let now = lab_kit::content("/dev/vg/data");
            assert!(before != now);
            assert_listed(&tool, era_of(&id), &before, &now);
            tool.run(&format!(
                "send --from era:{} vg/data vg/copy --verify",
                era_of(&id)
            ))
            .ok();
            assert_same("/dev/vg/copy", &now, "after the last increment");

            // Another era than the copy's is another base.
            let run = format!("send --from era:{} vg/data vg/copy", era_of(&id));
            tool.run(&run).ends(5, &["era:"]);
            tool.run(&format!(
                "diff --from era:{} vg/data",
                era_of(&held(&tool, "vg/copy")) + 50
            ))
            .ends(
                4,
                &["has not begun", &format!("lvmsync sync {DEVICE} DEST")],
            );
            // A foreign metadata snapshot is left alone.
            guest.sh("dmsetup message vg-data-era 0 take_metadata_snap");
            let line = format!(
                "diff --from era:{} vg/data",
                era_of(&held(&tool, "vg/copy"))
            );
            tool.run(&line)
                .ends(5, &["drop_metadata_snap", "era_invalidate"]);
            guest.sh("dmsetup message vg-data-era 0 drop_metadata_snap");
            tool.run(&line).ok();
            // Suspended: no question, no wait.
            guest.sh("dmsetup suspend vg-data-era");
            let began = Instant::now();
            tool.run(&line).ends(5, &["is suspended"]);
            tool.run(&format!("send --from era:1 {DEVICE} vg/copy"))
                .ends(5, &["is suspended"]);
            for line in [
                format!("compare {DEVICE} vg/copy"),
                format!("compare vg/copy {DEVICE}"),
                format!("sync -n {DEVICE} vg/copy"),
                format!("sync --no-snapshot {DEVICE} vg/copy"),
                format!("sync vg/copy {DEVICE}"),
            ] {
                tool.run(&line).ends(5, &["is suspended", "dmsetup resume"]);
            }
            assert!(began.elapsed() < Duration::from_secs(40), "it waited");
            guest.sh("dmsetup resume vg-data-era");
            // Discards that got through are not all on record: told.
            guest.sh("dmsetup load vg-data-era --table \"$(dmsetup table vg-data-era)\"; dmsetup suspend vg-data-era; dmsetup resume vg-data-era");
            tool.run(&line).ends(0, &["lets discards through"]);
            tool.run("track up vg/data").ok();

            // Made anew, the record is another one, even where the number is one that it had.
            let id = held(&tool, "vg/copy");
            tool.run("track disable vg/data").ok();
            tool.run("track enable vg/data").ok();
            for _ in 0..era_of(&id) {
                guest.sh("dmsetup message vg-data-era 0 checkpoint");
            }
            tool.run(&format!("send --from era:{} vg/data vg/copy", era_of(&id)))
                .ends(5, &["sync"]);
            // The way out leads back to eras.
            write(DEVICE, &[7; 8192], 1 << 20);
            tool.run(&format!("sync {DEVICE} vg/copy")).ok();
            let id = held(&tool, "vg/copy");
            assert!(id.starts_with("era:"), "{id}");
            write(DEVICE, &[8; 8192], 3 << 20);
            tool.run(&format!("send --from era:{} vg/data vg/copy", era_of(&id)))
                .ok();
            assert_same(
                "/dev/vg/copy",
                &lab_kit::content("/dev/vg/data"),
                "after the sync",
            );
        },
    );
}

#[test]
fn what_a_killed_run_holds_of_an_era_device_is_given_back() {
    lab::test(
        "what_a_killed_run_holds_of_an_era_device_is_given_back",
        setup().disk("512M"),
        |guest| {
            let tool = Tool::new(guest);
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "48M");
            tool.run("track enable vg/data").ok();
            write(DEVICE, &[5; 1 << 20], 0);
            let mut at_work = 0;
            for delay in (20..900).step_by(if long() { 20 } else { 110 }) {
                let line = format!("send --from era:1 {DEVICE} -o /tmp/{delay}.delta");
                let mut run = tool.start(&line);
                sleep(Duration::from_millis(delay));
                at_work += u32::from(run.try_wait().unwrap().is_none());
                run.kill().unwrap();
                run.wait().unwrap();
                // The guard outlives it, and tidies up.
                let began = Instant::now();
                let is_clean = || {
                    guest.sh("dmsetup status vg-data-era").trim().ends_with('-')
                        && volumes(guest) == "data data_era"
                };
                while !is_clean() {
                    assert!(
                        began.elapsed() < Duration::from_secs(20),
                        "left after {delay} ms"
                    );
                    sleep(Duration::from_millis(100));
                }
            }
            assert!(at_work > 2, "{at_work}");
        },
    );
}

#[test]
fn what_a_killed_guard_holds_of_an_era_device_the_next_run_gives_back() {
    lab::test(
        "what_a_killed_guard_holds_of_an_era_device_the_next_run_gives_back",
        setup().disk("512M"),
        |guest| {
            let tool = Tool::new(guest);
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "48M");
            tool.run("track enable vg/data --block-size 4K").ok();
            write(DEVICE, &[5; 1 << 20], 0);
            let dm = DeviceMapper::open().unwrap();
            let device = dm
                .info(Selector::Name("vg-data-era"))
                .unwrap()
                .unwrap()
                .device;
            let is_held = || {
                status_of(&dm, device, "vg/data")
                    .unwrap()
                    .held_root
                    .is_some()
            };
            let mut mended = 0;
            for _ in 0..20 {
                let mut run = tool.start("diff --from era:1 vg/data");
                while !is_held() && run.try_wait().unwrap().is_none() {}
                // The run stands still, so its guard holds on; it puts that on record meanwhile.
                let pid = Pid::from_raw(run.id().cast_signed()).unwrap();
                kill_process(pid, Signal::STOP).unwrap();
                sleep(Duration::from_millis(500));
                if !is_held() {
                    kill_process(pid, Signal::KILL).unwrap();
                    run.wait().unwrap();
                    continue;
                }
                let guards = guest.sh("pgrep -f 'internal-[g]uard'");
                guest.sh(&format!("kill -9 {}", guards.trim()));
                run.kill().unwrap();
                run.wait().unwrap();
                assert!(is_held(), "nobody was there to give it back");
                let found = tool.run("doctor").ok().stdout;
                for words in ["this era device's metadata snapshot", "drop_metadata_snap"] {
                    assert!(found.contains(words), "{found}");
                }
                let next = tool.run("diff --from era:1 vg/data").ok();
                assert!(
                    next.stderr.contains("that a killed run has left"),
                    "{}",
                    next.stderr
                );
                assert!(!is_held());
                mended += 1;
                if mended > 2 {
                    break;
                }
            }
            guest.announce(&format!("{mended} mended"));
            assert!(mended > 0);
        },
    );
}

const MIB: u64 = 1 << 20;
const SIZE: u64 = 48 * MIB;

/// Writes its number to the first block, to one that nobody has written before, and to the last, in this order.
fn generation(number: u64) {
    let bytes: Vec<u8> = number.to_le_bytes().repeat(512);
    let fresh = MIB + number * 65536;
    for offset in [0, fresh, SIZE - 4096] {
        write(DEVICE, &bytes, offset);
    }
}

/// The last generation of which all is in `content`, which must be of one moment.
fn moment(content: &[u8]) -> u64 {
    let at = |offset: u64| {
        let bytes = content[usize::try_from(offset).unwrap()..]
            .first_chunk()
            .unwrap();
        u64::from_le_bytes(*bytes)
    };
    let (first, last) = (at(0), at(SIZE - 4096));
    assert!(
        first == last || first == last + 1,
        "{first} and {last} are of two moments"
    );
    for number in 1..=last {
        assert_eq!(
            at(MIB + number * 65536),
            number,
            "missing at generation {last}"
        );
    }
    last
}

#[test]
fn what_is_sent_of_a_tracked_volume_is_one_moment() {
    lab::test(
        "what_is_sent_of_a_tracked_volume_is_one_moment",
        setup().disk("512M").time_limit(Duration::from_secs(300)),
        |guest| {
            let tool = Tool::new(guest);
            guest.volume_group("vg", 0);
            guest.volume("vg", "data", "48M");
            guest.volume("vg", "copy", "48M");
            tool.run("track enable vg/data").ok();
            generation(1);
            tool.run(&format!("send {DEVICE} vg/copy")).ok();
            assert_eq!(moment(&lab_kit::content("/dev/vg/copy")), 1);
            let done = AtomicBool::new(false);
            let mut seen = 1;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut number = 2;
                    while !done.load(Ordering::Relaxed) && number < 440 {
                        generation(number);
                        number += 1;
                        sleep(Duration::from_millis(30));
                    }
                });
                for round in 0..3 {
                    // So much that it is read for a second or two.
                    write(DEVICE, &vec![round + 1; 6 << 20], 32 * MIB);
                    let from = era_of(&held(&tool, "vg/copy"));
                    tool.run(&format!(
                        "send --from era:{from} {DEVICE} vg/copy --bwlimit 4M"
                    ))
                    .ok();
                    let now = moment(&lab_kit::content("/dev/vg/copy"));
                    assert!(now > seen, "{now}: nobody wrote meanwhile");
                    seen = now;
                }
                done.store(true, Ordering::Relaxed);
            });
            guest.announce(&format!("{seen} generations"));
        },
    );
}
