//! What goes wrong in the middle, on real devices: signals, bad disks, full ones. Nothing may be left behind, and
//! what was overwritten can be brought back.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::process::Child;
use std::time::{Duration, Instant};

use lab::Guest;
use lab_kit::{
    Random, Run, Tool, assert_same, content, lvmsync_processes, open_count, setup, write,
};
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;

/// `vg/data` of 8 MiB, all of it changed between `s1` and `s2`; `vg/copy` is in the old state.
fn states(guest: &Guest) -> (Vec<u8>, Vec<u8>) {
    let mut random = Random::new(5);
    guest.volume_group("vg", 0);
    guest.volume("vg", "data", "8M");
    guest.volume("vg", "copy", "8M");
    write("/dev/vg/data", &random.bytes(8 << 20), 0);
    guest.sh("lvcreate -qq -s -c 64k -L 12M -n s1 vg/data 2>&1");
    // Not quite all: samples need something.
    write("/dev/vg/data", &random.bytes(7 << 20), MIB / 2);
    guest.sh("lvcreate -qq -s -c 64k -L 12M -n s2 vg/data 2>&1");
    let old = content("/dev/vg/s1");
    write("/dev/vg/copy", &old, 0);
    (old, content("/dev/vg/s2"))
}

fn nothing_left(guest: &Guest, tool: &Tool) {
    assert_eq!(lvmsync_processes(), [""; 0]);
    assert_eq!(tool.partial_files(), [""; 0]);
    for device in ["vg-s1", "vg-s2", "vg-copy", "vg-s1-cow"] {
        // The -cow device is open once: by the snapshot itself.
        let expected = if device.ends_with("-cow") { "1" } else { "0" };
        assert_eq!(open_count(guest, device), expected, "{device}");
    }
}

/// Waits until `child` has `done`, or fails with what it said.
fn wait_until(child: &mut Child, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_none() && Instant::now() < deadline,
            "it did not get there: {ended:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn signals_leave_nothing_behind() {
    lab::test(
        "signals_leave_nothing_behind",
        setup().disk("64M"),
        |guest| {
            let tool = Tool::new(guest);
            let (old, new) = states(guest);
            let first_changed = |path: &str| content(path)[MIB as usize] != old[MIB as usize];

            // In the middle of writing to a volume: 7 MiB at 1 MiB/s.
            for stop in [Signal::INT, Signal::TERM, Signal::HUP] {
                let mut child = tool.start("send --from vg/s1 vg/s2 vg/copy --bwlimit 1M");
                wait_until(&mut child, || first_changed("/dev/vg/copy"));
                let told = Instant::now();
                signal(&child, stop);
                Run::of(child).ends(130, &["interrupted", "partly written"]);
                assert!(
                    told.elapsed() < Duration::from_secs(5),
                    "{:?}",
                    told.elapsed()
                );
                nothing_left(guest, &tool);
                assert!(content("/dev/vg/copy") != new, "it was in the middle");
                tool.reset("/dev/vg/copy", &old);
            }
            // With an undo, while it is still being saved: nothing was overwritten, so there is none to keep.
            let mut child = tool.start("send --from vg/s1 vg/s2 vg/copy --undo undo --bwlimit 1M");
            wait_until(&mut child, || tool.path("undo.partial").exists());
            signal(&child, Signal::INT);
            Run::of(child).ends(130, &["interrupted"]);
            nothing_left(guest, &tool);
            assert!(!tool.path("undo.partial").exists());
            assert_same("/dev/vg/copy", &old, "not touched");

            // In the middle of what an undo was saved for: the undo is there. The disk takes its time for all but the first
            // that is written, and there is more than is written at once.
            guest.sh("modprobe dm-delay; blockdev --flushbufs /dev/vg/copy
                 printf '0 4096 linear /dev/vg/copy 0\\n4096 12288 delay /dev/vg/copy 4096 0 /dev/vg/copy 4096 500\\n' > table
                 dmsetup create slow < table");
            tool.run("send --from vg/s1 vg/s2 -o whole").ok();
            for (stop, arguments) in [
                (Signal::INT, "send --from vg/s1 vg/s2 /dev/mapper/slow"),
                (Signal::TERM, "apply whole /dev/mapper/slow"),
            ] {
                let mut child = tool.start(&format!("{arguments} --undo undo --overwrite"));
                wait_until(&mut child, || first_changed("/dev/vg/copy"));
                signal(&child, stop);
                Run::of(child).ends(130, &["interrupted", "take it back: lvmsync apply"]);
                assert_eq!(open_count(guest, "slow"), "0");
                assert_eq!(lvmsync_processes(), [""; 0]);
                assert!(content("/dev/vg/copy") != new, "it was in the middle");
                tool.run("apply undo.partial /dev/mapper/slow").ok();
                assert_same("/dev/vg/copy", &old, "undone");
                assert!(!tool.path("undo.partial").exists(), "it has done its work");
            }
            guest.sh("dmsetup remove slow");

            // In the middle of a file, of stdout, of an input that does not come.
            for to in ["-o delta", "--stdout"] {
                let mut child = tool.start(&format!("send vg/s2 {to} --bwlimit 100k"));
                let partial = tool.path("delta.partial");
                let start = Instant::now();
                wait_until(&mut child, || {
                    if to == "--stdout" {
                        start.elapsed() > Duration::from_millis(500)
                    } else {
                        partial.exists()
                    }
                });
                signal(&child, Signal::INT);
                Run::of(child).ends(130, &["interrupted"]);
                assert!(!tool.path("delta").exists());
                nothing_left(guest, &tool);
            }
            let mut command = tool.command("apply - vg/copy");
            command
                .stdin(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            let input = child.stdin.take().unwrap();
            wait_until(&mut child, || open_count(guest, "vg-copy") == "1");
            signal(&child, Signal::TERM);
            Run::of(child).ends(130, &["interrupted"]);
            drop(input);
            nothing_left(guest, &tool);
            assert_same("/dev/vg/copy", &old, "nothing came");
        },
    );
}

#[test]
fn bad_disks_are_reported() {
    lab::test("bad_disks_are_reported", setup().disk("128M"), |guest| {
        let tool = Tool::new(guest);
        let (old, new) = states(guest);
        guest.sh("modprobe dm-flakey");
        let good = "0 16384 linear /dev/vg/copy 0";
        let load = |table: &str| {
            guest.sh(&format!(
                "printf '{table}\\n' > table
                 if dmsetup info bad > info 2>&1; then
                     dmsetup suspend bad; dmsetup load bad < table; dmsetup resume bad
                 else dmsetup create bad < table; fi"
            ));
        };

        // Writes fail in one place in the middle, reads do not.
        load(
            "0 8192 linear /dev/vg/copy 0
8192 1024 flakey /dev/vg/copy 8192 0 1000 1 error_writes
9216 7168 linear /dev/vg/copy 9216",
        );
        let failed = ["cannot write", "/dev/mapper/bad", "partly written"];
        let run = "send --from vg/s1 vg/s2 /dev/mapper/bad --undo undo";
        tool.run(run).ends(1, &failed);
        tool.run("send --from vg/s1 vg/s2 -o delta").ok();
        tool.run("apply delta /dev/mapper/bad").ends(1, &failed);
        nothing_left_but(guest, &tool);
        load(good);
        assert!(content("/dev/vg/copy") != old && content("/dev/vg/copy") != new);
        tool.run("apply undo.partial /dev/mapper/bad").ok();
        assert_same(
            "/dev/vg/copy",
            &old,
            "the undo is valid for what was written",
        );
        tool.run("apply delta /dev/mapper/bad").ok();
        assert_same("/dev/vg/copy", &new, "the repaired disk");
        tool.reset("/dev/vg/copy", &old);

        // Reads and writes fail: with an undo, before anything there is overwritten.
        load(
            "0 8192 linear /dev/vg/copy 0
8192 1024 error
9216 7168 linear /dev/vg/copy 9216",
        );
        tool.run("apply delta /dev/mapper/bad --undo undo2")
            .ends(1, &["/dev/mapper/bad"]);
        load(good);
        if tool.path("undo2.partial").exists() {
            tool.run("apply undo2.partial /dev/mapper/bad").ok();
        }
        assert_same("/dev/vg/copy", &old, "an unreadable place");
        load("0 16384 error");
        tool.run("apply delta /dev/mapper/bad")
            .ends(1, &["cannot read", "/dev/mapper/bad"]);
        tool.run(run).ends(1, &["cannot read", "/dev/mapper/bad"]);

        // A source that cannot be read: no file, no half of one, and it is said where.
        load(
            "0 8192 linear /dev/vg/s2 0
8192 1024 error
9216 7168 linear /dev/vg/s2 9216",
        );
        tool.run("send /dev/mapper/bad -o broken")
            .ends(1, &["cannot read", "/dev/mapper/bad"]);
        assert!(!tool.path("broken").exists());
        let cut = tool
            .command("send /dev/mapper/bad --stdout")
            .output()
            .unwrap();
        assert_eq!(cut.status.code(), Some(1));
        std::fs::write(tool.path("cut"), cut.stdout).unwrap();
        tool.run("inspect cut").ends(6, &[]);
        tool.run("vg/s1 vg/copy -r /dev/mapper/bad --snapback undo3")
            .ends(1, &["cannot read"]);
        // What had not been overwritten yet needs no undo.
        if tool.path("undo3.partial").exists() {
            tool.run("apply undo3.partial vg/copy").ok();
        }
        assert_same("/dev/vg/copy", &old, "undone after a read error");

        // No room for the undo: what has no way back is not overwritten.
        guest.sh("mkdir tiny; mount -t tmpfs -o size=1M tiny tiny");
        let run = tool.run("send --from vg/s1 vg/s2 vg/copy --undo tiny/undo");
        run.ends(1, &["undo", "No space left"]);
        let left = guest.sh("ls -A tiny");
        assert!(!left.contains("partial"), "{left}");
        if left.contains("undo") {
            tool.run("apply tiny/undo vg/copy").ok();
        }
        assert_same("/dev/vg/copy", &old, "a full disk under the undo");
        tool.run("send --from vg/s1 vg/s2 -o tiny/delta")
            .ends(1, &["No space left"]);
        assert!(!guest.sh("ls -A tiny").contains("delta"));
        guest.sh("umount tiny; dmsetup remove bad");
        nothing_left(guest, &tool);
    });
}

/// As [`nothing_left`], while `bad` stands on the copy.
fn nothing_left_but(guest: &Guest, tool: &Tool) {
    assert_eq!(lvmsync_processes(), [""; 0]);
    assert_eq!(tool.partial_files(), [""; 0]);
    assert_eq!(open_count(guest, "bad"), "0");
}
