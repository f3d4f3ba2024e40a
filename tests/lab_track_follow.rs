//! Copies that follow a tracked volume by its eras, through what goes wrong: the power, a run that is killed in the middle, a
//! volume that is extended.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::thread::sleep;
use std::time::Duration;

use lab::{Guest, Script};
use lab_kit::eras::{DEVICE, base, era_of, held, record, row};
use lab_kit::{Random, Tool, assert_same, content, seed, setup, write};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn status(tool: &Tool) -> Value {
    row(tool, "track status vg/data --json")
}

fn volumes(guest: &Guest) {
    guest.volume_group("vg", 0);
    guest.volume("vg", "data", "24M");
    guest.volume("vg", "copy", "24M");
}

/// Records are kept on a disk.
fn keep_state(guest: &Guest, tool: &Tool) {
    let state = tool.path("state");
    let state = state.display();
    guest.sh(&format!("mkdir -p {state}; mount /dev/vg/keep {state}"));
}

/// Nor does it where nobody writes, so that no block is recorded in the eras that begin.
#[test]
fn a_power_cut_takes_no_era_back_that_a_copy_is_named_by() {
    Script::new(
        "a_power_cut_takes_no_era_back_that_a_copy_is_named_by",
        setup().disk("256M"),
    )
    .phase("copies", |guest| {
        let tool = Tool::new(guest);
        volumes(guest);
        guest.volume("vg", "keep", "32M");
        guest.sh("mkfs.ext4 -q /dev/vg/keep");
        keep_state(guest, &tool);
        tool.run("track enable vg/data").ok();
        for _ in 0..3 {
            tool.run(&format!("send {DEVICE} vg/copy")).ok();
        }
        guest.sh("sync");
        guest.announce("COPIED");
        sleep(Duration::from_secs(60));
    })
    .phase("check", |guest| {
        let tool = Tool::new(guest);
        guest.sh("vgchange -qq -ay vg 2>&1");
        keep_state(guest, &tool);
        tool.run("track up --all").ok();
        let era = base(&tool, "vg/copy");
        let now = status(&tool)["era"].as_u64().unwrap();
        assert!(
            now > era,
            "a copy holds era {era}, and the record is at {now}"
        );
        write(DEVICE, &[7; 8192], 9 * MIB);
        tool.run(&format!("send --from era:{era} {DEVICE} vg/copy"))
            .ok();
        assert_same("/dev/vg/copy", &content("/dev/vg/data"), "after the cut");
    })
    .drive(|driver| {
        let mut guest = driver.boot("copies");
        driver.wait_for(&mut guest, "COPIED", Duration::from_secs(60));
        guest.cut().unwrap();
        driver.run("check");
    });
}

#[test]
fn an_increment_that_was_cut_begins_anew_and_never_over_its_undo() {
    lab::test(
        "an_increment_that_was_cut_begins_anew_and_never_over_its_undo",
        setup().disk("512M"),
        |guest| {
            let tool = Tool::new(guest);
            volumes(guest);
            tool.run("track enable vg/data").ok();
            tool.run(&format!("send {DEVICE} vg/copy")).ok();
            let mut random = Random::new(seed(guest));
            for undo in ["", " --undo /tmp/undo"] {
                let before = content("/dev/vg/copy");
                let id = held(&tool, "vg/copy");
                let era = era_of(&id);
                write(DEVICE, &random.bytes(8 << 20), 4 * MIB);
                let line = format!("send --from era:{era} {DEVICE} vg/copy{undo}");
                let mut run = tool.start(&format!("{line} --bwlimit 512K"));
                while !record(&tool, "vg/copy")["incomplete"].is_object() {
                    assert!(run.try_wait().unwrap().is_none(), "it was done at once");
                }
                sleep(Duration::from_secs(3));
                assert!(run.try_wait().unwrap().is_none(), "it was done");
                run.kill().unwrap();
                run.wait().unwrap();
                // Longer, and with other content in what the first run has sent.
                write(DEVICE, &random.bytes(1 << 20), 4 * MIB);
                write(DEVICE, &random.bytes(1 << 20), 20 * MIB);
                if undo.is_empty() {
                    let run = tool.run(&line).ok();
                    assert!(run.stderr.contains("begins anew"), "{}", run.stderr);
                } else {
                    tool.run(&line).ends(5, &["apply /tmp/undo"]);
                    tool.run(&format!("{line} --overwrite"))
                        .ends(5, &["apply /tmp/undo"]);
                    tool.run("apply /tmp/undo vg/copy").ok();
                    assert_same("/dev/vg/copy", &before, "taken back");
                    assert_eq!(held(&tool, "vg/copy"), id);
                    tool.run(&line.replace("/tmp/undo", "/tmp/undo2")).ok();
                }
                assert_same("/dev/vg/copy", &content("/dev/vg/data"), "in the end");
                assert!(base(&tool, "vg/copy") > era);
            }
        },
    );
}

#[test]
fn what_a_volume_was_extended_by_is_not_tracked_by_a_boot() {
    lab::test(
        "what_a_volume_was_extended_by_is_not_tracked_by_a_boot",
        setup().disk("256M"),
        |guest| {
            let tool = Tool::new(guest);
            volumes(guest);
            tool.run("track enable vg/data").ok();
            tool.run(&format!("send {DEVICE} vg/copy")).ok();
            let era = base(&tool, "vg/copy");
            guest.sh("dmsetup remove vg-data-era; lvextend -qq -L +8M vg/data");
            tool.run("track up vg/data").ok();
            assert_eq!(status(&tool)["untracked_tail_bytes"], 8 << 20);
            tool.run(&format!("diff --from era:{era} vg/data"))
                .ends(4, &["was extended", "lvmsync track resize vg/data"]);
            guest.sh("dmsetup remove vg-data-era; lvreduce -qq -f -y -L 16M vg/data");
            tool.run("track up vg/data").ends(4, &["became smaller"]);
        },
    );
}
