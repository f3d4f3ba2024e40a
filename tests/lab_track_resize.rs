//! A tracked volume that is extended: it stays in use, its record follows, and copies get what it was extended by.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab_kit::eras::{DEVICE, row, send};
use lab_kit::{Random, Tool, assert_same, content, long, seed, setup, write};

const BELOW: &str = "/dev/vg/data";

/// Bytes of the volume that are not below the era device.
fn tail(tool: &Tool) -> u64 {
    row(tool, "track status vg/data --json")["untracked_tail_bytes"]
        .as_u64()
        .unwrap()
}

#[test]
fn a_tracked_volume_is_extended_while_it_is_in_use() {
    lab::test(
        "a_tracked_volume_is_extended_while_it_is_in_use",
        setup().disk("512M"),
        |guest| {
            let tool = Tool::new(guest);
            let mut random = Random::new(seed(guest));
            guest.volume_group("vg", 0);
            // What is free is not zero.
            guest.volume("vg", "junk", "400M");
            let junk = random.bytes(1 << 20);
            (0..400).for_each(|at| write("/dev/vg/junk", &junk, at << 20));
            guest.sh("lvremove -qq -y vg/junk");
            for name in ["data", "copy", "other"] {
                guest.volume("vg", name, "32M");
            }
            guest.sh("mkfs.ext4 -q /dev/vg/data; mkdir -p /tmp/m");
            tool.run("track enable vg/data").ok();
            for copy in ["vg/copy", "vg/other"] {
                tool.run(&format!("send {DEVICE} {copy}")).ok();
            }
            assert_eq!(tool.run("track resize vg/data").ok().stdout, "");
            guest.sh(&format!("mount {DEVICE} /tmp/m; echo before >/tmp/m/file"));
            guest.sh("lvextend -qq -L 48M vg/data");
            send(&tool, "vg/copy").ends(4, &["was extended", "track resize vg/data"]);
            let plan = tool.run("track resize vg/data -n").ok().stdout;
            assert!(
                plan.contains("lvmsync_era_grown_") && plan.contains("dmsetup suspend"),
                "{plan}"
            );
            assert_eq!(tail(&tool), 16 << 20);
            assert_eq!(tool.run("track resize vg/data").ok().stdout, plan);
            let status = row(&tool, "track status vg/data --json");
            assert_eq!(
                (&status["state"], &status["discards"]),
                (&"up".into(), &false.into())
            );
            assert_eq!(tail(&tool), 0);
            guest.sh(&format!("resize2fs {DEVICE} 2>/dev/null; dd if=/dev/urandom of=/tmp/m/more bs=1M count=20 conv=fsync 2>/dev/null; umount /tmp/m"));
            // What nobody wrote to is in the list as well, for every copy from before.
            send(&tool, "vg/copy").ends(5, &["vg/copy"]);
            guest.sh("for v in copy other; do lvextend -qq -L 48M vg/$v; dd if=/dev/zero of=/dev/vg/$v bs=1M seek=32 oflag=direct 2>/dev/null || true; done");
            for copy in ["copy", "other"] {
                send(&tool, &format!("vg/{copy}")).ok();
                assert_same(
                    format!("/dev/vg/{copy}"),
                    &content(BELOW),
                    "after it was extended",
                );
            }
            write(DEVICE, &random.bytes(8192), 47 << 20);
            let sent = send(&tool, "vg/copy").ok();
            assert_same("/dev/vg/copy", &content(BELOW), "written where it is new");
            assert!(!sent.stderr.contains("16 MiB"), "{}", sent.stderr);

            // Killed anywhere: never suspended for long, and the same command ends it; the era goes on.
            let mut at_work = 0;
            for (round, delay) in (20..700).step_by(if long() { 20 } else { 90 }).enumerate() {
                guest.sh("lvextend -qq -l +1 vg/data");
                write(DEVICE, &random.bytes(4096), (round as u64) << 20);
                let mut run = tool.start("track resize vg/data");
                sleep(Duration::from_millis(delay));
                at_work += u32::from(run.try_wait().unwrap().is_none());
                run.kill().unwrap();
                run.wait().unwrap();
                let began = Instant::now();
                while guest.sh("cat /sys/block/dm-*/dm/suspended").contains('1') {
                    assert!(began.elapsed() < Duration::from_secs(10), "suspended");
                    sleep(Duration::from_millis(20));
                }
                tool.run("track resize vg/data").ok();
                assert_eq!(tail(&tool), 0);
            }
            assert!(at_work > 2, "{at_work}");
            guest.sh("lvextend -qq -L $(lvs --noheadings --units b -o lv_size vg/data) vg/copy");
            send(&tool, "vg/copy").ok();
            assert_same("/dev/vg/copy", &content(BELOW), "in the end");
        },
    );
}
