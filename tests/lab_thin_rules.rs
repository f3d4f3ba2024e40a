//! What is refused and what is warned of with thin volumes, and what has to work all the same: external origins, the
//! original's command line, copies that read only what is mapped, pools that are not in order.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs::File;

use lab::Guest;
use lab_kit::thin::{self, held_root, is_active, list_by_thin_delta, lvm, thin_volumes};
use lab_kit::two_rounds::noise;
use lab_kit::{Run, Tool, assert_same, content, setup, write};
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;

/// `vg/data` of 8 MiB and an eighth, with `s1` and `s2`, inactive; some of it changed and some discarded between them.
fn two_states(guest: &Guest) {
    thin::group(guest, "vg", 0);
    thin::pool(guest, "vg/pool", 100, 64, "");
    lvm(guest, "lvcreate -qq -y -T -V 8320k -n data vg/pool");
    write("/dev/vg/data", &noise(3 << 20, "a"), 0);
    write("/dev/vg/data", &noise(70_000 / 512 * 512, "b"), 8 * MIB);
    lvm(guest, "lvcreate -qq -y -s -n s1 vg/data");
    write("/dev/vg/data", &noise(300 << 10, "c"), MIB + 512);
    guest.sh(&format!(
        "blkdiscard -o {MIB}  -l 262144 /dev/vg/data; blkdiscard -o {} -l 65536 /dev/vg/data",
        2 * MIB
    ));
    write("/dev/vg/data", &noise(4096, "d"), 5 * MIB);
    lvm(guest, "lvcreate -qq -y -s -n s2 vg/data");
}

/// The content of a volume that is not active, and is not afterwards.
fn inactive(guest: &Guest, name: &str) -> Vec<u8> {
    lvm(guest, &format!("lvchange -qq -ay -K vg/{name}"));
    let bytes = content(format!("/dev/vg/{name}"));
    lvm(guest, &format!("lvchange -qq -an vg/{name}"));
    bytes
}

#[test]
fn bases_that_may_not_hold_what_was_sent_are_refused() {
    let name = "bases_that_may_not_hold_what_was_sent_are_refused";
    lab::test(name, setup().disk("128M").disk("96M"), |guest| {
        let tool = Tool::new(guest);
        two_states(guest);
        let protect = "lvchange -pr vg/s1";
        tool.run("diff --from vg/s1 vg/s2").ends(0, &[protect]);
        lvm(guest, "lvchange -qq -pr vg/s1");
        let run = tool.run("diff --from vg/s1 vg/s2").ok();
        assert!(
            !run.stderr.contains("warning") && !run.stderr.contains("lvchange"),
            "{}",
            run.stderr
        );

        // Open for writing: by a mount, by a process.
        lvm(
            guest,
            "lvcreate -qq -y -s -n base vg/data; lvcreate -qq -y -s -kn -n later vg/data",
        );
        lvm(guest, "lvchange -qq -ay -K vg/base");
        let file = File::options().write(true).open("/dev/vg/base").unwrap();
        let lost = |arguments: &str, words: &[&str]| {
            let words = [
                words,
                &["may not hold what was sent", "To recover: ", "lvmsync sync"],
            ]
            .concat();
            tool.run(&format!("diff --from {arguments}"))
                .ends(4, &words);
            tool.run(&format!("send --from {arguments} -o no"))
                .ends(4, &words);
            assert!(!tool.path("no").exists());
            assert_eq!(held_root(guest, "vg/pool"), "-");
        };
        lost("vg/base vg/later", &["open by 1 other user"]);
        drop(file);
        tool.run("diff --from vg/base vg/later").ok();
        lvm(guest, "lvcreate -qq -y -T -V 8M -n files vg/pool");
        guest.sh("mkfs.ext4 -q /dev/vg/files");
        lvm(guest, "lvcreate -qq -y -s -kn -n mounted vg/files");
        guest.sh("mount /dev/vg/mounted /mnt");
        lost("vg/mounted vg/files", &["mounted for writing on /mnt"]);
        guest.sh("umount /mnt");

        // Written after it was made, and put away; the mark stays when a snapshot of it is made.
        write("/dev/vg/base", &noise(4096, "e"), 7 * MIB);
        let written = ["blocks of it were written after it was made"];
        lost("vg/base vg/later", &written);
        lvm(guest, "lvchange -qq -an vg/base");
        lost("vg/base vg/later", &written);
        lvm(guest, "lvcreate -qq -y -s -n child vg/base");
        lost("vg/base vg/child", &written);
        lost("vg/base vg/later", &written);
        // A mount writes, too.
        lost("vg/mounted vg/files", &written);
        // No snapshot at all.
        lost("vg/data vg/s2", &["it is no snapshot"]);
        // What is no base may be new.
        tool.run("diff --from vg/s1 vg/base").ok();

        // Not of one pool, not of one kind, not two.
        thin::group(guest, "other", 1);
        thin::pool(guest, "other/pool", 40, 64, "");
        lvm(guest, "lvcreate -qq -y -T -V 8320k -n data other/pool");
        lvm(guest, "lvcreate -qq -y -s -n s1 other/data");
        guest.volume("other", "thick", "8M");
        lvm(guest, "lvcreate -qq -s -L 4M -n t1 other/thick");
        let ends = |arguments: &str, code, words: &[&str]| {
            tool.run(&format!("diff --from {arguments}"))
                .ends(code, words);
            tool.run(&format!("send --from {arguments} -o no"))
                .ends(code, words);
        };
        ends(
            "other/s1 vg/s2",
            1,
            &["only volumes of one pool", "lvmsync compare other/s1 vg/s2"],
        );
        ends(
            "vg/s1 other/thick",
            1,
            &["vg/s1 is a thin volume, so NEW must be one"],
        );
        ends(
            "vg/s1 other/t1",
            1,
            &["vg/s1 is a thin volume, so NEW must be one"],
        );
        ends(
            "other/t1 vg/data",
            1,
            &["other/t1 is a snapshot of other/thick"],
        );
        ends("other/t1 vg/s2", 1, &["vg/s2"]);
        ends("vg/s1 vg/s1", 2, &["are the same volume"]);
        ends("vg/s1 /dev/vg/s1", 2, &["are the same volume"]);
        ends("vg/nothing vg/s2", 1, &["vg/nothing"]);
        ends("vg/s1 vg/nothing", 1, &["vg/nothing"]);

        // NEW is live.
        let writer = File::options().write(true).open("/dev/vg/data").unwrap();
        tool.run("diff --from vg/s1 vg/data")
            .ends(0, &["Stop the writers, or send from a snapshot"]);
        tool.run("send vg/data -o live")
            .ends(0, &["Stop the writers, or send from a snapshot"]);
        drop(writer);
        let run = tool.run("diff --from vg/s1 vg/data").ok();
        assert!(!run.stderr.contains("Stop the writers"), "{}", run.stderr);

        // Half-written: neither old nor new.
        lvm(guest, "lvcreate -qq -y -T -V 8320k -n half vg/pool");
        let mut child = tool.start("send vg/s2 vg/half --bwlimit 500k");
        while content("/dev/vg/half").iter().all(|byte| *byte == 0) {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        kill_process(
            Pid::from_raw(child.id().cast_signed()).unwrap(),
            Signal::INT,
        )
        .unwrap();
        Run::of(child).ends(130, &["partly written"]);
        ends("vg/half vg/s2", 5, &["vg/half"]);
        ends("vg/s1 vg/half", 5, &["vg/half"]);
        tool.run("send vg/half -o no").ends(5, &["vg/half"]);
        assert_eq!(tool.held(), [""; 0]);
        assert_eq!(held_root(guest, "vg/pool"), "-");
    });
}

#[test]
fn new_volumes_are_active_only_while_they_are_read_and_only_what_is_mapped_is() {
    let name = "new_volumes_are_active_only_while_they_are_read_and_only_what_is_mapped_is";
    lab::test(name, setup().disk("256M").disk("96M"), |guest| {
        let tool = Tool::new(guest);
        two_states(guest);
        lvm(guest, "lvchange -qq -pr vg/s1");
        let child = tool.start("send --from vg/s1 vg/s2 -o slow --bwlimit 200k");
        while !tool.path("slow.partial").exists() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(guest.sh("blockdev --getro /dev/mapper/vg-s2").trim(), "1");
        assert!(
            !guest
                .try_sh("dd if=/dev/zero of=/dev/mapper/vg-s2 bs=4k count=1 oflag=direct")
                .status
                .success()
        );
        assert!(!is_active("vg/s1"), "the base stays where it is");
        Run::of(child).ok();
        assert!(!is_active("vg/s2"));
        let (old, new) = (inactive(guest, "s1"), inactive(guest, "s2"));
        lvm(guest, "lvchange -qq -ay -K vg/s1 vg/s2");
        tool.run("diff --from vg/s1 vg/s2").ok();
        tool.run("send vg/s2 -o active").ok();
        assert!(is_active("vg/s1") && is_active("vg/s2"), "they were before");
        assert_eq!(
            guest.sh("blockdev --getro /dev/vg/s2").trim(),
            "0",
            "nor protected"
        );
        lvm(guest, "lvchange -qq -an vg/s1 vg/s2");

        // The original's command line. Without a data source it is the origin's.
        guest.volume_group("far", 1);
        guest.volume("far", "copy", "12M");
        let begin = |content: &[u8]| tool.reset("/dev/far/copy", content);
        let is_now = |expected: &[u8], when: &str| {
            assert!(
                content("/dev/far/copy")[..expected.len()] == *expected,
                "{when}"
            );
        };
        begin(&old);
        write("/dev/vg/data", &noise(8192, "after"), 6 * MIB + 8192);
        tool.run("/dev/vg/s1 /dev/far/copy").ok();
        is_now(&content("/dev/vg/data"), "from the origin");
        begin(&old);
        tool.run("/dev/vg/s1 /dev/far/copy -r /dev/vg/s2").ok();
        is_now(&new, "from the later snapshot");
        begin(&old);
        tool.run("vg/s1 far/copy -r vg/s2 --snapback undo").ok();
        is_now(&new, "by names");
        tool.run("apply undo far/copy").ok();
        is_now(&old, "undone");

        // A tenth is mapped: no more than that is read.
        lvm(guest, "lvcreate -qq -y -T -V 60M -n sparse vg/pool");
        for n in 0..6 {
            write(
                "/dev/vg/sparse",
                &noise(MIB as usize, &n.to_string()),
                n * 10 * MIB + CHUNK,
            );
        }
        lvm(
            guest,
            "lvcreate -qq -y -s -n sparse1 vg/sparse; lvchange -qq -pr vg/sparse1",
        );
        let read = || -> u64 {
            let number = guest.sh("dmsetup info -c --noheadings -o minor vg-pool_tdata");
            let stat =
                std::fs::read_to_string(format!("/sys/block/dm-{}/stat", number.trim())).unwrap();
            stat.split_whitespace()
                .nth(2)
                .unwrap()
                .parse::<u64>()
                .unwrap()
                * 512
        };
        let before = read();
        let run = tool.run("send vg/sparse1 copy.img --json").ok();
        let bytes = read() - before;
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(
            (&json["data_bytes"], &json["zero_bytes"]),
            (&(6 * MIB).into(), &(54 * MIB).into())
        );
        assert!(bytes < 7 * MIB, "{bytes} bytes were read");
        assert_same(
            tool.path("copy.img"),
            &content("/dev/vg/sparse"),
            "the sparse copy",
        );
        guest.announce(&format!(
            "{bytes} bytes read for 60 MiB of which 6 are mapped"
        ));
        assert_eq!(tool.held(), [""; 0]);
    });
}

/// A discard is no write: a snapshot keeps its UUID, and all its mappings their times.
#[test]
fn a_snapshot_that_was_discarded_in_is_not_there_already() {
    let name = "a_snapshot_that_was_discarded_in_is_not_there_already";
    lab::test(name, setup().disk("192M").disk("64M"), |guest| {
        let tool = Tool::new(guest);
        two_states(guest);
        thin::group(guest, "far", 1);
        guest.volume("far", "copy", "12M");
        // One that reads through to a volume outside of the pool, where all is listed as data.
        guest.volume("vg", "was", "8M");
        write("/dev/vg/was", &noise(8 << 20, "was"), 0);
        lvm(
            guest,
            "lvconvert -qq -y --type thin --thinpool vg/pool --originname origin vg/was",
        );
        write("/dev/vg/was", &noise(1 << 20, "x"), 2 * MIB);
        lvm(guest, "lvcreate -qq -y -s -pr -n w1 vg/was");
        write("/dev/vg/was", &noise(1 << 20, "y"), 2 * MIB);
        lvm(guest, "lvcreate -qq -y -s -n w2 vg/was");
        for (send, new, at) in [
            ("vg/s1", "s1", MIB),
            ("vg/w2", "w2", 2 * MIB),
            ("--from vg/w1 vg/w2", "w2", 2 * MIB + CHUNK),
        ] {
            if let Some(base) = send.strip_prefix("--from ") {
                let base = base.split(' ').next().unwrap();
                tool.run(&format!("send {base} far/copy")).ok();
            }
            let send = format!("send {send} far/copy");
            let is_now = |when: &str| {
                let now = inactive(guest, new);
                let copy = content("/dev/far/copy");
                assert!(copy[..now.len()] == now, "{send}: {when}");
                now
            };
            tool.run(&send).ok();
            let before = is_now("first");
            let again = tool.run(&send).ok();
            assert!(again.stderr.contains("already"), "{send}: {}", again.stderr);
            lvm(guest, &format!("lvchange -qq -ay -K vg/{new}"));
            guest.sh(&format!("blkdiscard -o {at} -l {CHUNK} /dev/vg/{new}"));
            lvm(guest, &format!("lvchange -qq -an vg/{new}"));
            let run = tool.run(&send);
            if send.contains("--from") {
                // It may begin from the base alone, and that is not there any more.
                run.ends(5, &["this delta begins from", "vg/w1"]);
            } else {
                assert!(!run.stderr.contains("already"), "{send}: {}", run.stderr);
                run.ok();
                assert!(is_now("after the discard") != before);
            }
        }

        // Cut, and discarded in: what is there is not gone on with.
        let cut = |send: &str| {
            let mut child = tool.start(&format!("{send} --bwlimit 500k"));
            let partial = tool.path("cut.img.partial");
            while !std::fs::metadata(&partial).is_ok_and(|file| file.len() > 0) {
                assert!(child.try_wait().unwrap().is_none());
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            std::thread::sleep(std::time::Duration::from_secs(3));
            let id = Pid::from_raw(child.id().cast_signed()).unwrap();
            kill_process(id, Signal::INT).unwrap();
            Run::of(child).ends(130, &[]);
        };
        cut("send vg/s2 cut.img");
        lvm(guest, "lvchange -qq -ay -K vg/s2");
        guest.sh(&format!("blkdiscard -o 0 -l {CHUNK} /dev/vg/s2"));
        lvm(guest, "lvchange -qq -an vg/s2");
        let run = tool.run("send vg/s2 cut.img -v").ok();
        assert!(!run.stderr.contains("goes on"), "{}", run.stderr);
        assert_same(
            tool.path("cut.img"),
            &inactive(guest, "s2"),
            "cut, and discarded in",
        );
        assert_eq!(tool.held(), [""; 0]);
    });
}

#[test]
fn live_metadata_is_refused_under_every_name() {
    let name = "live_metadata_is_refused_under_every_name";
    lab::test(name, setup().disk("192M"), |guest| {
        let tool = Tool::new(guest);
        two_states(guest);
        let known = thin_volumes(guest, "vg");
        let ids = |old: u64, new: u64| format!("--from thin:{old} thin:{new}");
        let of_lvm = ids(known["s1"].id, known["s2"].id);
        let refused = |place: &str, ids: &str, pool: &str| {
            let in_use = format!("in use by the active pool {pool}");
            tool.run(&format!("diff --thin-metadata {place} {ids}"))
                .ends(5, &[place, &in_use, "lvmsync diff --from"]);
        };
        guest.sh("losetup /dev/loop0 /dev/mapper/vg-pool_tmeta
             sectors=$(blockdev --getsz /dev/mapper/vg-pool_tmeta)
             dmsetup create again --table \"0 $sectors linear /dev/mapper/vg-pool_tmeta 0\"");
        for place in [
            "/dev/mapper/vg-pool_tmeta",
            "/dev/loop0",
            "/dev/mapper/again",
        ] {
            refused(place, &of_lvm, "vg-pool-tpool");
        }
        guest.sh("losetup -d /dev/loop0; dmsetup remove again");

        // A pool that LVM knows nothing of, with its metadata in a file.
        guest.volume("vg", "blocks", "8M");
        guest.sh(
            "truncate -s 4M meta.img; ln meta.img link.img; losetup /dev/loop0 meta.img
             dmsetup create handmade --table '0 16384 thin-pool /dev/loop0 /dev/vg/blocks 128 0'
             dmsetup message handmade 0 'create_thin 1'
             dmsetup message handmade 0 'create_snap 2 1'
             losetup -r /dev/loop1 meta.img",
        );
        for place in ["meta.img", "link.img", "/dev/loop0", "/dev/loop1"] {
            refused(place, &ids(1, 2), "handmade");
        }
        // Not any more; and a copy, also on a volume of a pool that is active.
        guest.sh("dmsetup remove handmade; cp meta.img copy.img");
        lvm(guest, "lvcreate -qq -y -T -V 4M -n stored vg/pool");
        write("/dev/vg/stored", &content(tool.path("meta.img")), 0);
        for place in ["meta.img", "/dev/loop1", "copy.img", "/dev/vg/stored"] {
            tool.run(&format!("diff --thin-metadata {place} {}", ids(1, 2)))
                .ok();
        }
        guest.sh("losetup -d /dev/loop0; losetup -d /dev/loop1");
    });
}

#[test]
fn external_origins_and_pools_out_of_order() {
    let name = "external_origins_and_pools_out_of_order";
    lab::test(name, setup().disk("256M"), |guest| {
        let tool = Tool::new(guest);
        two_states(guest);
        // One that was a thick volume; one that is a snapshot of a thick one, and longer than it.
        guest.volume("vg", "was", "8M");
        write("/dev/vg/was", &noise(8 << 20, "was"), 0);
        lvm(
            guest,
            "lvconvert -qq -y --type thin --thinpool vg/pool --originname origin vg/was",
        );
        guest.volume("vg", "thick", "6M");
        write("/dev/vg/thick", &noise(6 << 20, "thick"), 0);
        lvm(
            guest,
            "lvchange -qq -an vg/thick; lvchange -qq -pr vg/thick",
        );
        lvm(
            guest,
            "lvcreate -qq -y -s --thinpool vg/pool -n on vg/thick; lvextend -qq -L +2M vg/on",
        );
        let mut pairs = 0;
        for volume in ["was", "on"] {
            let device = format!("/dev/vg/{volume}");
            lvm(guest, &format!("lvchange -qq -ay -K vg/{volume}"));
            write(&device, &noise(200 << 10, "x"), MIB);
            write(&device, &noise(4096, "y"), 7 * MIB);
            lvm(
                guest,
                &format!("lvcreate -qq -y -s -pr -n {volume}1 vg/{volume}"),
            );
            write(&device, &noise(4096, "z"), 3 * MIB + 4096);
            // The origin shines through again.
            guest.sh(&format!("blkdiscard -o {MIB} -l 65536 {device}"));
            lvm(
                guest,
                &format!("lvcreate -qq -y -s -pr -n {volume}2 vg/{volume}"),
            );
            let copy = tool.path(&format!("{volume}.img"));
            tool.run(&format!("send vg/{volume}1 {volume}.img")).ok();
            assert_same(&copy, &inactive(guest, &format!("{volume}1")), "full");
            let list = tool.thin_diff(&format!("--from vg/{volume}1 vg/{volume}2"));
            assert!(list.iter().all(|(_, _, kind)| kind == "data"), "{list:?}");
            let bytes: u64 = list.iter().map(|(_, length, _)| length).sum();
            assert_eq!(bytes, 2 * CHUNK, "{list:?}");
            tool.run(&format!(
                "send --from vg/{volume}1 vg/{volume}2 {volume}.img"
            ))
            .ok();
            let new = inactive(guest, &format!("{volume}2"));
            assert_same(&copy, &new, "increment");
            // From one without an external origin, from one with another: all is listed.
            let before = tool.path("other.img");
            for old in ["s1", "was1", "on1"] {
                if old.starts_with(volume) {
                    continue;
                }
                lvm(guest, "lvchange -qq -pr vg/s1 || true");
                let _ = std::fs::remove_file(&before);
                tool.run(&format!("send vg/{old} other.img")).ends(0, &[]);
                tool.run(&format!("send --from vg/{old} vg/{volume}2 other.img"))
                    .ok();
                let found = content(&before);
                assert!(found[..new.len()] == new[..], "{old} → {volume}2");
                pairs += 1;
                if volume == "was" {
                    break;
                }
            }
            // And back to one without.
            let _ = std::fs::remove_file(&before);
            tool.run(&format!("send vg/{volume}2 other.img")).ok();
            lvm(guest, &format!("lvchange -qq -pr vg/{volume}2 || true"));
            tool.run(&format!("send --from vg/{volume}2 vg/s2 other.img"))
                .ok();
            let new = inactive(guest, "s2");
            assert!(content(&before)[..new.len()] == new[..], "{volume}2 → s2");
            pairs += 1;
        }
        guest.announce(&format!("{pairs} pairs with different external origins"));
        for name in ["was1", "was2", "on1", "on2", "s1", "s2"] {
            assert!(!is_active(&format!("vg/{name}")), "{name}");
        }
        let known = thin_volumes(guest, "vg");
        assert_eq!(
            tool.thin_diff("--from vg/s1 vg/s2"),
            list_by_thin_delta(guest, "vg/pool", known["s1"], known["s2"])
        );

        // A pool that may not write cannot make a metadata snapshot.
        lvm(guest, "lvchange -qq -ay -K vg/s1 vg/s2");
        guest.sh("set -- $(dmsetup table vg-pool-tpool)
             dmsetup load vg-pool-tpool --table \"$1 $2 $3 $4 $5 $6 $7 1 read_only\"
             dmsetup suspend vg-pool-tpool; dmsetup resume vg-pool-tpool");
        assert_eq!(thin::status(guest, "vg/pool")[4], "ro");
        for command in ["diff --from vg/s1 vg/s2", "send vg/s2 -o no"] {
            tool.run(command).ends(
                5,
                &["thin pool vg/pool is read-only", "lvchange -an vg/pool"],
            );
        }
        assert_eq!(tool.held(), [""; 0]);
        assert!(!tool.path("no").exists());
    });
}
