//! What lvmsync must not do, on real devices: every refusal leaves everything as it was and says the way out.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;

use lab::Guest;
use lab_kit::{Random, Tool, assert_same, content, open_count, setup, write};

const MIB: usize = 1 << 20;

/// `vg/data` of 8 MiB with the snapshots `s1` and `s2`, between which some of it changed. Returns the old and
/// the new state.
fn two_states(guest: &Guest, chunk_kib: u64) -> (Vec<u8>, Vec<u8>) {
    let mut random = Random::new(3);
    guest.volume("vg", "data", "8M");
    write("/dev/vg/data", &random.bytes(8 * MIB), 0);
    guest.sh(&format!(
        "lvcreate -qq -s -c {chunk_kib}k -L 12M -n s1 vg/data 2>&1"
    ));
    for n in 0..12 {
        write("/dev/vg/data", &random.bytes(70_000), n * 650_000 + 12_345);
    }
    guest.sh(&format!(
        "lvcreate -qq -s -c {chunk_kib}k -L 12M -n s2 vg/data 2>&1"
    ));
    (content("/dev/vg/s1"), content("/dev/vg/s2"))
}

#[test]
fn unsafe_destinations_are_refused() {
    let setup = setup().disk("64M").disk("64M");
    lab::test("unsafe_destinations_are_refused", setup, |guest| {
        let tool = Tool::new(guest);
        guest.volume_group("vg", 0);
        let (old, new) = two_states(guest, 4);
        guest.volume_group("other", 1);
        for lv in ["copy", "mounted", "swap", "held", "ro"] {
            guest.volume("other", lv, "8M");
            write(format!("/dev/other/{lv}"), &old, 0);
        }
        guest.volume("other", "small", "4M");
        write("/dev/other/small", &old[..4 * MIB], 0);
        guest.sh(
            "mkfs.ext4 -q /dev/other/mounted; mount -o ro /dev/other/mounted /mnt
             mkswap -q /dev/other/swap; swapon /dev/other/swap
             dmsetup create top --table '0 8192 linear /dev/other/held 0'
             lvchange -qq -pr other/ro 2>&1",
        );

        // Refused, in so many words, and not a byte of it is different afterwards.
        let refused = |destination: &str, words: &[&str]| {
            let path = if destination.starts_with('/') {
                destination.to_owned()
            } else {
                format!("/dev/{destination}")
            };
            let before = content(&path);
            for send in ["send --from vg/s1 vg/s2", "send -n vg/s2"] {
                tool.run(&format!("{send} {destination}")).ends(5, words);
            }
            assert_same(&path, &before, "refused");
        };
        refused(
            "other/small",
            &["4194304 bytes", "8388608", "--allow-smaller"],
        );
        refused("other/mounted", &["mounted on /mnt", "--allow-in-use"]);
        refused("other/swap", &["in use as swap", "--allow-in-use"]);
        refused("other/held", &["held by top (dm)", "--allow-in-use"]);
        refused("other/ro", &["read-only", "lvchange"]);
        refused("vg/s2", &["cannot be the destination"]);
        refused("/dev/mapper/vg-s2", &["cannot be the destination"]);
        refused("vg/data", &["cannot be the destination"]);
        refused("/dev/mapper/vg-data-real", &["cannot be the destination"]);
        refused("/dev/mapper/vg-s2-cow", &["cannot be the destination"]);
        refused(
            &guest.disk(0).display().to_string(),
            &["cannot be the destination"],
        );
        for own in ["vg/s2", "vg/data", "/dev/mapper/vg-s2-cow"] {
            // No override makes the source a destination.
            let command = format!("send vg/s2 {own} --force --allow-in-use --allow-smaller");
            tool.run(&command).ends(5, &["cannot be the destination"]);
        }
        assert_same("/dev/vg/s1", &old, "all refused");
        assert_same("/dev/vg/s2", &new, "all refused");

        // Not the base: its sampled blocks say so. Everything but what changes is different in it.
        let stranger: Vec<u8> = old.iter().map(|byte| !byte).collect();
        write("/dev/other/copy", &stranger, 0);
        let run = "send --from vg/s1 vg/s2 other/copy";
        tool.run(run)
            .ends(5, &["not in the state", "Nothing was written", "--force"]);
        tool.run("send --from vg/s1 vg/s2 -o delta").ok();
        tool.run("apply delta other/copy")
            .ends(5, &["vg/s1", "--force"]);
        tool.run("apply delta other/copy --check")
            .ends(5, &["--force"]);
        assert_same("/dev/other/copy", &stranger, "not the base");
        tool.run(&format!("{run} --force")).ok();
        let forced = content("/dev/other/copy");
        let (_, changed) = tool.diff("vg/s1", "vg/s2");
        for (offset, length) in changed {
            let range = offset as usize..(offset + length) as usize;
            assert!(forced[range.clone()] == new[range], "forced means applied");
        }

        // Each override does what it says.
        let skipped = "past the end of the destination were left out";
        tool.run("send --from vg/s1 vg/s2 other/small --allow-smaller")
            .ends(0, &[skipped]);
        assert_same("/dev/other/small", &new[..4 * MIB], "the part that fits");
        tool.run("send vg/s2 other/held --allow-in-use").ok();
        assert_same("/dev/other/held", &new, "in use, and asked for");
        guest.sh("dmsetup remove top; swapoff -a; umount /mnt");
        write("/dev/other/mounted", &old, 0);
        tool.run("send --from vg/s1 vg/s2 other/mounted").ok();
        assert_same("/dev/other/mounted", &new, "not in use any more");

        // An undo or a delta that exists is not overwritten by accident.
        fs::write(tool.path("undo"), "precious").unwrap();
        write("/dev/other/copy", &old, 0);
        tool.run("send --from vg/s1 vg/s2 other/copy --undo undo")
            .ends(5, &["--overwrite"]);
        tool.run("send --from vg/s1 vg/s2 -o undo")
            .ends(5, &["--overwrite"]);
        assert_eq!(fs::read(tool.path("undo")).unwrap(), b"precious");
        assert_same("/dev/other/copy", &old, "refused for its undo");
        assert_eq!(tool.partial_files(), [""; 0]);
    });
}

#[test]
fn lost_tracking_is_code_4() {
    lab::test("lost_tracking_is_code_4", setup().disk("256M"), |guest| {
        let tool = Tool::new(guest);
        guest.volume_group("vg", 0);
        let (old, _) = two_states(guest, 4);
        guest.volume("vg", "copy", "8M");
        write("/dev/vg/copy", &old, 0);
        let lost = |old: &str, new: &str| {
            let words = ["incomplete", "To recover", "lvmsync"];
            for to in ["vg/copy", "-o delta", "--stdout", "vg/copy -n"] {
                let run = tool
                    .run(&format!("send --from {old} {new} {to}"))
                    .ends(4, &words);
                assert!(run.stdout.is_empty(), "half a stream");
            }
            let run = tool
                .run(&format!("diff --from {old} {new} --json"))
                .ends(4, &words);
            assert!(run.stdout.is_empty(), "half a list");
            assert!(!tool.path("delta").exists());
            assert_eq!(tool.partial_files(), [""; 0]);
        };

        // Invalid: the store was too small for what was written to the origin.
        guest.sh("lvcreate -qq -s -c 4k -L 4M -n full vg/data 2>&1");
        guest.try_sh("dd if=/dev/urandom of=/dev/vg/data bs=1M count=6 oflag=direct");
        lost("vg/full", "vg/data");
        lost("vg/full", "vg/s2");
        lost("vg/s1", "vg/full");
        tool.run("send vg/full vg/copy").ends(4, &["To recover"]);
        tool.run("vg/full vg/copy").ends(4, &["To recover"]);
        guest.sh("lvremove -qq -y vg/full");

        // Overflowed by its own writes, with a table that keeps it readable.
        guest.sh("lvcreate -qq -s -c 4k -L 4M -n full vg/data 2>&1
             t=$(dmsetup table vg-full); dmsetup suspend vg-full
             dmsetup load vg-full --table \"${t/ P / PO }\"; dmsetup resume vg-full");
        guest.try_sh("dd if=/dev/urandom of=/dev/vg/full bs=1M count=8 oflag=direct");
        lost("vg/full", "vg/data");
        lost("vg/s1", "vg/full");
        guest.sh("lvremove -qq -y vg/full");

        // What LVM does to merge, but frozen in the middle.
        guest.sh(
            "real=$(dmsetup table vg-data | cut -d' ' -f4); s=$(dmsetup table vg-s1)
             dmsetup suspend vg-data; dmsetup suspend vg-s1
             dmsetup load vg-data --table \"${s/snapshot/snapshot-merge}\"
             dmsetup load vg-s1 --table \"${s%% snapshot*} error\"
             dmsetup resume vg-data; dmsetup resume vg-s1",
        );
        lost("vg/s1", "vg/data");
        lost("vg/s1", "vg/s2");
        lost("vg/s2", "vg/data");
        tool.run("send vg/s2 vg/data --allow-in-use").ends(5, &[]);
        assert_same("/dev/vg/copy", &old, "never written");

        // What is no snapshot at all is an ordinary failure.
        for new in ["vg/copy", "vg/s2"] {
            tool.run(&format!("diff --from vg/copy {new}"))
                .ends(1, &["lvcreate -s"]);
        }
        tool.run("diff --from vg/none vg/data")
            .ends(1, &["no logical volume none"]);
        tool.run("send --from vg/s2 vg/none vg/copy")
            .ends(1, &["no logical volume none"]);
        for absent in ["vg/none", "/dev/vg/none"] {
            tool.run(&format!("send vg/data {absent}"))
                .ends(1, &["no logical volume none"]);
        }
        tool.run("send --from vg/s2 vg/copy delta")
            .ends(1, &["snapshot of vg/data"]);
        tool.run("send --from nope/x vg/s2 vg/copy")
            .ends(1, &["nope"]);
    });
}

#[test]
fn damage_undo_and_warnings() {
    lab::test("damage_undo_and_warnings", setup().disk("256M"), |guest| {
        let tool = Tool::new(guest);
        guest.volume_group("vg", 0);
        let (old, new) = two_states(guest, 16);
        let copy = guest.volume("vg", "copy", "8M");
        write(&copy, &old, 0);

        // Undo after send, after apply, and of the undo.
        tool.run("send --from vg/s1 vg/s2 vg/copy --undo u1").ok();
        assert_same(&copy, &new, "sent");
        tool.run("apply u1 vg/copy --undo redo").ok();
        assert_same(&copy, &old, "undone");
        tool.run("apply redo vg/copy").ok();
        assert_same(&copy, &new, "undone twice");
        tool.run("apply redo vg/copy").ok();
        tool.run("--apply u1 vg/copy --snapback back").ok();
        assert_same(&copy, &old, "the original's words");

        // Damage: found before or while it is applied, and always before success.
        tool.run("send --from vg/s1 vg/s2 -o delta").ok();
        tool.run("vg/s1 --stdout --format proto3 -r vg/s2 -q").ok();
        let proto3 = tool
            .command("vg/s1 --stdout --format proto3 -r vg/s2 -q")
            .output()
            .unwrap()
            .stdout;
        let delta = fs::read(tool.path("delta")).unwrap();
        let length = delta.len();
        for cut in [0, 5, 17, 40, 3000, length / 2, length - 129, length - 1] {
            fs::write(tool.path("bad"), &delta[..cut]).unwrap();
            tool.run("apply bad vg/copy")
                .ends(6, &["not a whole, sound delta"]);
            tool.run("apply bad vg/copy --check").ends(6, &[]);
            tool.run("inspect bad").ends(6, &[]);
            tool.reset(&copy.to_string_lossy(), &old);
        }
        for at in [3, 30, 70, length / 3, length - 40] {
            let mut bad = delta.clone();
            bad[at] ^= 0x10;
            fs::write(tool.path("bad"), &bad).unwrap();
            tool.run("apply bad vg/copy --undo undo").ends(6, &[]);
            // What was written before the damage was seen can be undone.
            if tool.path("undo.partial").exists() {
                tool.run("apply undo vg/copy").ok();
            }
            assert_same(&copy, &old, &format!("damaged at {at}"));
        }
        fs::write(tool.path("bad"), &proto3[..proto3.len() - 5]).unwrap();
        tool.run("--apply bad vg/copy --snapback undo").ends(6, &[]);
        assert_same(&copy, &old, "a cut stream with an undo is read whole first");
        fs::write(tool.path("whole"), &proto3).unwrap();
        tool.run("--apply whole vg/copy").ends(0, &["PROTO[3]"]);
        assert_same(&copy, &new, "proto3");
        assert_eq!(tool.partial_files(), [""; 0]);

        // A live origin: a warning as soon as somebody may write to it, and none from a snapshot.
        let warning = "what is written while it is sent may or may not be in the copy";
        let quiet = |arguments: &str| {
            let run = tool.run(arguments).ok();
            assert!(!run.stderr.contains(warning), "{}", run.stderr);
        };
        quiet("send --from vg/s1 vg/data -o d1");
        guest.sh("mkfs.ext4 -q /dev/vg/data; mount /dev/vg/data /mnt");
        tool.run("send --from vg/s1 vg/data -o d2")
            .ends(0, &[warning, "/mnt"]);
        tool.run("send vg/data -o d3").ends(0, &[warning]);
        tool.run("vg/s1 --stdout").ends(0, &[warning]);
        quiet("send --from vg/s1 vg/s2 -o d4");
        guest.sh("umount /mnt");
        for device in ["vg-s1", "vg-s2", "vg-copy", "vg-data"] {
            assert_eq!(open_count(guest, device), "0", "{device}");
        }
    });
}

/// A snapshot keeps its UUID when somebody writes to it, so that UUID alone must not say what a copy holds.
#[test]
fn a_snapshot_that_was_written_to_is_not_there_already() {
    let setup = setup().disk("64M").disk("64M");
    lab::test(
        "a_snapshot_that_was_written_to_is_not_there_already",
        setup,
        |guest| {
            let tool = Tool::new(guest);
            guest.volume_group("vg", 0);
            two_states(guest, 4);
            guest.volume_group("other", 1);
            guest.volume("other", "copy", "8M");
            tool.run("send vg/s2 other/copy").ok();
            let again = tool.run("send vg/s2 other/copy").ok();
            assert!(again.stderr.contains("already"), "{}", again.stderr);
            write("/dev/vg/s2", &[7; 5000], 3_000_000);
            for bytes in [[7; 5000], [8; 5000]] {
                write("/dev/vg/s2", &bytes, 3_000_000);
                tool.run("send vg/s2 other/copy").ok();
                assert_same("/dev/other/copy", &content("/dev/vg/s2"), "sent again");
            }
        },
    );
}

#[test]
fn what_code_4_says_to_run_leads_back_to_increments() {
    let name = "what_code_4_says_to_run_leads_back_to_increments";
    lab::test(name, setup().disk("256M"), |guest| {
        let tool = Tool::new(guest);
        guest.volume_group("vg", 0);
        let (old, _) = two_states(guest, 4);
        guest.volume("vg", "copy", "8M");
        write("/dev/vg/copy", &old, 0);
        // The base is given up, and a later snapshot is what somebody wants to send.
        guest.sh("lvcreate -qq -s -c 4k -L 4M -n full vg/data 2>&1");
        guest.try_sh("dd if=/dev/urandom of=/dev/vg/data bs=1M count=6 oflag=direct");
        // What is compared with it is told what can be: nothing that is written to DEST makes that whole.
        guest.host("far");
        let dest = "no sync makes it whole";
        for (pair, words) in [
            ("vg/full vg/copy", ["", "sync vg/data vg/copy"]),
            ("far:vg/full vg/copy", ["far: ", "sync far:vg/data vg/copy"]),
            ("vg/full far:vg/copy", ["", "sync vg/data far:vg/copy"]),
            ("vg/copy vg/full", [dest, "compare vg/copy vg/data"]),
            ("vg/copy far:vg/full", [dest, "compare vg/copy far:vg/data"]),
            ("far:vg/copy vg/full", [dest, "compare far:vg/copy vg/data"]),
            ("vg/data vg/full", [dest, "compare vg/data NEW"]),
        ] {
            let [found, line] = words;
            let line = format!("\nTo recover: lvmsync {line}\n");
            let run = tool
                .run(&format!("compare {pair}"))
                .ends(4, &[found, &line]);
            assert!(run.stdout.is_empty(), "{pair}: {}", run.stdout);
        }
        tool.run("sync vg/data vg/copy").ok();
        tool.run("compare vg/data vg/copy").ends(0, &["equal"]);
        tool.reset("/dev/vg/copy", &old);

        guest.sh("lvcreate -qq -s -c 4k -L 12M -n s3 vg/data 2>&1");
        let run = tool.run("send --from vg/full vg/s3 vg/copy").ends(4, &[]);
        let line = run
            .stderr
            .lines()
            .find_map(|line| line.split_once("To recover: lvmsync "));
        let (_, line) = line.unwrap();
        assert!(line.starts_with("sync vg/s3 vg/copy"), "{line}");
        tool.run(line).ok();
        assert_same("/dev/vg/copy", &content("/dev/vg/s3"), "as it says");
        let state = tool.run("state show vg/copy").ok();
        assert!(state.stdout.contains("vg/s3"), "{}", state.stdout);

        let mut random = Random::new(4);
        write("/dev/vg/data", &random.bytes(100_000), 3_000_777);
        guest.sh("lvcreate -qq -s -c 4k -L 12M -n s4 vg/data 2>&1");
        let sent = tool.run("send --from vg/s3 vg/s4 vg/copy --json").ok();
        assert_same("/dev/vg/copy", &content("/dev/vg/s4"), "an increment");
        let sent: serde_json::Value = serde_json::from_str(&sent.stdout).unwrap();
        assert!(sent["data_bytes"].as_u64().unwrap() < MIB as u64, "{sent}");
    });
}
