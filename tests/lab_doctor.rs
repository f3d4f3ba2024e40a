//! `lvmsync doctor` on real LVM: in order, a nearly full snapshot, one that is lost, a suspended volume, a thin
//! pool whose metadata somebody holds. Every command that it names is run, and mends what it was named for.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use lab_kit::{Random, Tool, setup, write};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// The checks with this id that are not in order.
fn bad(tool: &Tool, options: &str, code: i32, id: &str) -> Vec<Value> {
    let run = tool
        .run(&format!("doctor --json {options}"))
        .ends(code, &[]);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .filter(|check| check["id"] == id && check["status"] != "ok")
        .cloned()
        .collect()
}

#[track_caller]
fn is(check: &Value, status: &str, word: &str) {
    assert_eq!(check["status"], status, "{check}");
    assert!(check["found"].as_str().unwrap().contains(word), "{check}");
}

fn way_out(check: &Value) -> String {
    check["way_out"].as_str().unwrap().to_owned()
}

#[test]
fn every_way_out_of_the_doctor_mends() {
    let setup = setup().disk("256M");
    lab::test("every_way_out_of_the_doctor_mends", setup, |guest| {
        let tool = Tool::new(guest);
        let mut random = Random::new(7);
        guest.volume_group("my-vg", 0);
        guest.volume("my-vg", "data", "32M");
        guest.sh("lvcreate -qq -s -c 4k -L 12M -n s1 my-vg/data 2>&1");
        guest.sh("lvcreate -qq -s -c 4k -L 32M -n s2 my-vg/data 2>&1");
        guest.host("far");

        let run = tool.run("doctor far").ok();
        for words in [
            "✓ ok       root",
            "✓ ok       control",
            "interface 4.",
            "✓ ok       snapshot-merge",
            "lvm 2.",
            "2 snapshots, none of them",
            "far: answers",
        ] {
            assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
        }
        let json = tool.run("doctor far --json").ok();
        assert!(json.stdout.starts_with("{\"healthy\":true,"));
        assert!(!json.stdout.contains("\"problem\""), "{}", json.stdout);

        // 11 of 12 MiB.
        write("/dev/my-vg/data", &random.bytes(11 * MIB), 0);
        let full = bad(&tool, "", 0, "volumes.snapshot").remove(0);
        is(&full, "warning", "my-vg/s1: 9");
        guest.sh(&format!("{} 2>&1", way_out(&full)));
        assert!(bad(&tool, "", 0, "volumes.snapshot").is_empty());

        // More than it has now, and less than the other one has.
        write("/dev/my-vg/data", &random.bytes(22 * MIB), 0);
        let lost = bad(&tool, "", 1, "volumes.snapshot");
        assert_eq!(lost.len(), 1, "{lost:?}");
        is(&lost[0], "problem", "my-vg/s1: the snapshot is invalid");
        let remove = way_out(&lost[0]);
        guest.sh(&format!("{} -y 2>&1", remove.split(';').next().unwrap()));
        assert!(bad(&tool, "", 0, "volumes.snapshot").is_empty());

        guest.volume("my-vg", "other", "8M");
        guest.sh("dmsetup suspend my--vg-other");
        let suspended = bad(&tool, "", 1, "volumes.suspended").remove(0);
        is(&suspended, "problem", "my-vg/other is suspended");
        guest.sh(&way_out(&suspended));
        assert!(bad(&tool, "", 0, "volumes.suspended").is_empty());

        guest.sh("lvcreate -qq -L 16M -T my-vg/pool 2>&1; lvcreate -qq -V 64M -T my-vg/pool -n thin 2>&1");
        assert!(bad(&tool, "", 0, "volumes.thin-pool").is_empty());
        guest.sh("dmsetup message my--vg-pool-tpool 0 reserve_metadata_snap");
        let held = bad(&tool, "", 0, "volumes.thin-pool").remove(0);
        is(&held, "warning", "my-vg/pool: a frozen copy");
        let command = way_out(&held);
        guest.sh(command.split_once(": ").unwrap().1);
        assert!(bad(&tool, "", 0, "volumes.thin-pool").is_empty());

        // Records: one of a volume that is there, inactive and gone.
        guest.volume("my-vg", "copy", "32M");
        tool.run("send my-vg/s2 my-vg/copy").ok();
        assert!(bad(&tool, "", 0, "state.record").is_empty());
        guest.sh("lvchange -an my-vg/copy 2>&1");
        assert!(bad(&tool, "", 0, "state.record").is_empty());
        guest.sh("lvremove -qq -y my-vg/copy 2>&1");
        let gone = bad(&tool, "", 0, "state.record").remove(0);
        is(&gone, "note", "my-vg/copy: on record, and gone");
        let forget = way_out(&gone);
        tool.run(forget.strip_prefix("lvmsync ").unwrap()).ok();
        assert!(bad(&tool, "", 0, "state.record").is_empty());

        // A far end without lvmsync.
        let none = bad(&tool, "far --remote-path /none/lvmsync", 1, "far.session").remove(0);
        is(&none, "problem", "lvmsync was not found there");
        tool.run("doctor -q").ok();
    });
}
