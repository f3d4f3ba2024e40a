//! Pulls of live volumes: the far end makes the snapshot that it reads, and whatever ends either end, none of it stays.
//! What it may not make it refuses, and what it fails of has its own code here.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lab_kit::live::{
    Bench, Kind, MIB, StopAtEnd, Writer, is_of_one_moment, kill, make, setup, temporary, wait_until,
};
use lab_kit::thin::lvm;
use lab_kit::{LVMSYNC, Random, Run, assert_same, content, lvmsync_processes, write};
use rustix::process::{Pid, Signal, kill_process};

fn live(name: &str, kind: Kind) {
    lab::test(name, setup(), |guest| {
        make(guest, kind);
        guest.host("far");
        let mount = guest.scratch().join("m");
        guest.sh("mkfs.ext4 -q /dev/vg/data 2>&1; mkdir m; mount /dev/vg/data m");
        fs::write(mount.join("much"), Random::new(5).bytes(4 * MIB)).unwrap();
        let bench = Bench::new(guest);
        let tool = &bench.tool;
        let writer = Writer {
            directory: &mount,
            stop: AtomicBool::new(false),
            rounds: AtomicU64::new(0),
        };
        std::thread::scope(|scope| {
            let _guard = StopAtEnd(&writer.stop);
            scope.spawn(|| writer.run());
            writer.wait_for_more();
            // Only a look: no snapshot, and nothing written.
            let before = content("/dev/there/copy");
            tool.run("sync far:vg/data there/copy -n")
                .ends(0, &["would write"]);
            bench.nothing_left("a look");
            // What is gone afterwards cannot be compared once more.
            tool.run("sync far:vg/data there/copy --verify").ends(
                5,
                &["far: vg/data: it is a live volume", "--keep-snapshot NAME"],
            );
            bench.nothing_left("verify");
            assert_same("/dev/there/copy", &before, "refused");

            let rounds = writer.rounds.load(Ordering::Relaxed);
            let run = tool.run("sync far:vg/data there/copy -v").ok();
            let words = "far: vg/data: read from vg/data-lvmsync-";
            assert!(run.stderr.contains(words), "{}", run.stderr);
            assert!(!run.stderr.contains("may or may not"), "{}", run.stderr);
            assert!(writer.rounds.load(Ordering::Relaxed) > rounds);
            is_of_one_moment(guest, "/dev/there/copy");
            bench.nothing_left("pulled");

            // Kept, it is what the copy holds, and increments go on from it.
            writer.wait_for_more();
            let run = tool.run("sync far:vg/data there/copy --keep-snapshot s1 --verify --json");
            let json: serde_json::Value = serde_json::from_str(&run.ok().stdout).unwrap();
            assert_eq!(json["verified"], true, "{json}");
            assert_same("/dev/there/copy", &content("/dev/vg/s1"), "kept");
            is_of_one_moment(guest, "/dev/there/copy");
            bench.nothing_on_record("kept");
            assert_eq!(guest.sh("lvs --noheadings -o lv_tags vg/s1").trim(), "");
            tool.run("sync far:vg/data there/copy --keep-snapshot s1")
                .ends(5, &["far: vg/s1: there is a volume of that name"]);
            tool.run("sync far:vg/data there/copy --keep-snapshot other/s")
                .ends(2, &["far: ", "vg/NAME"]);
            writer.wait_for_more();
            let size = if kind == Kind::Thin { "-kn" } else { "-L 16M" };
            lvm(guest, &format!("lvcreate -qq -s -pr {size} -n s2 vg/data"));
            tool.run("send --from vg/s1 vg/s2 there/copy").ok();
            assert_same("/dev/there/copy", &content("/dev/vg/s2"), "the increment");
            lvm(guest, "lvremove -qq -y vg/s1 vg/s2");
            // For the brave.
            tool.run("sync far:vg/data there/copy --no-snapshot").ends(
                0,
                &["far: warning: vg/data: ", "may or may not be in the copy"],
            );
            bench.nothing_left("without a snapshot");
        });
        guest.sh("umount m");
    });
}

#[test]
fn a_mounted_thick_volume_is_pulled_as_of_one_moment() {
    live(
        "a_mounted_thick_volume_is_pulled_as_of_one_moment",
        Kind::Thick,
    );
}

#[test]
fn a_mounted_thin_volume_is_pulled_as_of_one_moment() {
    live(
        "a_mounted_thin_volume_is_pulled_as_of_one_moment",
        Kind::Thin,
    );
}

/// The end that reads and sends.
fn kill_far(signal: Signal) {
    let serves = lvmsync_processes();
    let serves = serves.iter().filter(|line| line.ends_with("serve "));
    for line in serves {
        let id = line.split([':', '/']).nth(2).unwrap().parse().unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }
}

fn killed(name: &str, kind: Kind) {
    lab::test(name, setup(), |guest| {
        make(guest, kind);
        guest.host("far");
        let state = Random::new(9).bytes(24 * MIB);
        write("/dev/vg/data", &state, 0);
        let bench = Bench::new(guest);
        let reading = |options: &str| -> Child {
            bench.reading_from("far:vg/data", &format!("--bwlimit 1M {options}"))
        };
        for (signal, code) in [(Signal::KILL, None), (Signal::INT, Some(130))] {
            let child = reading("");
            kill(&child, signal);
            assert_eq!(Run::of(child).code, code, "{signal:?}");
            bench.nothing_left(&format!("{signal:?} of the one that pulls"));
        }
        // It cannot say why: the connection is lost.
        let child = reading("--retries 0");
        kill_far(Signal::KILL);
        Run::of(child).ends(7, &["far: "]);
        bench.nothing_left("the far end was killed");
        // It can.
        let child = reading("");
        kill_far(Signal::TERM);
        Run::of(child).ends(7, &["far: interrupted"]);
        bench.nothing_left("the far end was told to stop");
        // A lost connection is made again, with another snapshot, of the same name, too.
        let child = bench
            .tool
            .start("sync far:vg/data there/copy --bwlimit 4M --keep-snapshot s1 --timeout 5");
        wait_until("it reads", || {
            fs::exists("/dev/vg/s1").unwrap() && lab_kit::open_count(guest, "vg-s1") != "0"
        });
        guest.sh(&format!("kill -9 $(pgrep -P {} -x ssh)", child.id()));
        Run::of(child).ends(0, &["trying again"]);
        assert_same(
            "/dev/there/copy",
            &content("/dev/vg/s1"),
            "another snapshot",
        );
        assert_same("/dev/there/copy", &state, "another snapshot");
        lvm(guest, "lvremove -qq -y vg/s1");
        // Of another snapshot an undo would lead back to the middle: the one that there is leads back to the beginning.
        bench.tool.reset("/dev/there/copy", &vec![7; 24 * MIB]);
        let child = reading("--undo undo");
        wait_until("something is written", || {
            content("/dev/there/copy")[..4096] != [7; 4096]
        });
        guest.sh(&format!("kill -9 $(pgrep -P {} -x ssh)", child.id()));
        Run::of(child).ends(5, &["trying again", "an undo would lead back to that"]);
        bench.tool.run("apply undo there/copy").ok();
        assert_same("/dev/there/copy", &vec![7; 24 * MIB], "taken back");
        bench.nothing_left("at the end");
    });
}

#[test]
fn whatever_ends_a_pull_no_thick_snapshot_stays() {
    killed("whatever_ends_a_pull_no_thick_snapshot_stays", Kind::Thick);
}

#[test]
fn whatever_ends_a_pull_no_thin_snapshot_stays() {
    killed("whatever_ends_a_pull_no_thin_snapshot_stays", Kind::Thin);
}

#[test]
fn what_the_far_end_of_a_pull_fails_of_has_its_code_here() {
    let name = "what_the_far_end_of_a_pull_fails_of_has_its_code_here";
    lab::test(name, setup(), |guest| {
        make(guest, Kind::Thick);
        guest.host("far");
        let state = Random::new(11).bytes(24 * MIB);
        write("/dev/vg/data", &state, 0);
        let bench = Bench::new(guest);
        let tool = &bench.tool;

        // The snapshot that was made is full.
        let child = bench.reading_from("far:vg/data", "--bwlimit 1M --snapshot-size 1M");
        write("/dev/vg/data", &state[..8 * MIB], 0);
        let words = [
            "far: vg/data: the snapshot",
            "is lost",
            "--snapshot-size 4194304",
        ];
        Run::of(child).ends(1, &words);
        bench.nothing_left("overflow");

        // One that the user has made is.
        lvm(guest, "lvcreate -qq -s -pr -L 1M -n s1 vg/data");
        let child = tool.start("sync far:vg/s1 there/copy --bwlimit 1M");
        wait_until("it reads", || lab_kit::open_count(guest, "vg-s1") != "0");
        write("/dev/vg/data", &state[..8 * MIB], 0);
        let recover = "\nTo recover: lvmsync sync far:vg/data there/copy\n";
        Run::of(child).ends(4, &["far: vg/s1: ", recover]);
        // And known to be before anything is read.
        tool.run("sync far:vg/s1 there/copy")
            .ends(4, &["far: vg/s1: ", recover]);
        lvm(guest, "lvremove -qq -y vg/s1");

        // A place that cannot be read.
        let (half, whole) = (12 * MIB / 512, 24 * MIB / 512);
        guest.sh(&format!(
            "printf '0 {half} linear /dev/vg/data 0\\n{half} 8 error\\n{} {} linear /dev/vg/data {}\\n' > table
             dmsetup create bad < table",
            half + 8,
            whole - half - 8,
            half + 8
        ));
        let run = tool.run("sync far:/dev/mapper/bad there/copy");
        run.ends(1, &["far: ", "/dev/mapper/bad"]);
        guest.sh("dmsetup remove --retry bad");
        tool.run("sync far:vg/data there/copy").ok();
        assert_same("/dev/there/copy", &state, "after all that");
        bench.nothing_left("at the end");
    });
}

#[test]
fn a_far_end_with_limits_makes_snapshots_only_where_that_is_permitted() {
    let name = "a_far_end_with_limits_makes_snapshots_only_where_that_is_permitted";
    lab::test(name, setup(), |guest| {
        make(guest, Kind::Thick);
        let state = Random::new(13).bytes(24 * MIB);
        write("/dev/vg/data", &state, 0);
        let bench = Bench::new(guest);
        let tool = &bench.tool;
        // In the place of ssh and its forced command.
        let forced = |name: &str, limits: &str| {
            let path = tool.path(name);
            fs::write(&path, format!("#!/bin/sh\nexec {LVMSYNC} serve {limits}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path.display().to_string()
        };
        let read = forced("read", "--allow 'vg/d*' --permit read");
        let both = forced("both", "--allow 'vg/d*' --permit read --permit snapshot");
        let only = forced("only", "--read-only --permit read --permit snapshot");
        let pull = |shell: &str, more: &str| {
            tool.run(&format!("sync far:vg/data there/copy -e {shell} {more}"))
        };
        let ways_out = ["far: vg/data: ", "--permit snapshot", "--no-snapshot"];
        for more in ["", "-n", "--keep-snapshot d1"] {
            pull(&read, more).ends(5, &ways_out);
        }
        pull(&read, "--no-snapshot").ok();
        assert_same("/dev/there/copy", &state, "as it is");
        bench.nothing_left("not permitted");
        for shell in [&both, &only] {
            write("/dev/there/copy", &[7; MIB], 0);
            pull(shell, "-n").ends(0, &["would write 1.0 MiB"]);
            pull(shell, "--snapshot-size 18446744073709551615").ok();
            assert_same("/dev/there/copy", &state, "permitted");
            bench.nothing_left("permitted");
        }
        // A kept one needs a name that is allowed, and is then what can be compared.
        for name in ["other", "../d", "-d", "snapshot1", &"d".repeat(4000)] {
            let run = pull(&both, &format!("--keep-snapshot={name}"));
            assert!(matches!(run.code, Some(2 | 5)), "{name}: {}", run.stderr);
            bench.nothing_left(name);
        }
        pull(&both, "--keep-snapshot d1 --verify").ok();
        assert_same("/dev/there/copy", &content("/dev/vg/d1"), "kept");
        lvm(guest, "lvremove -qq -y vg/d1");
        // By another name of it, and of another volume.
        tool.run(&format!(
            "sync far:/dev/mapper/vg-data there/copy -e {both}"
        ))
        .ok();
        tool.run(&format!("sync far:there/copy vg/data -e {both}"))
            .ends(5, &["not allowed here"]);
        bench.nothing_left("at the end");
        assert!(temporary().is_none());
    });
}
