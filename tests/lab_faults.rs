//! Disks that fail or fill up under a run: the destination, the undo, the record, the source; here and at the far end.
//!
//! Each time: the exit code says so, nothing is called done that is not, the record tells the truth, and when the disk
//! is well again the same command completes or the undo brings back the base.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use lab::Guest;
use lab_kit::two_rounds::{SIZE, contents, truth};
use lab_kit::{Random, Run, Tool, assert_same, content, long, setup, write, wrong_blocks};

/// Sectors of the destination, of the undo's filesystem, of the record's.
const DEST: u64 = SIZE as u64 / 512;
const KEPT: u64 = (36 << 20) / 512;
const STATE: u64 = (4 << 20) / 512;
const APPLY: &str = "apply delta /dev/mapper/dest --undo kept/undo --state-dir state/s";
const TAKE_BACK: &str = "apply kept/undo /dev/mapper/dest --state-dir state/s";

struct Bench<'a> {
    guest: &'a Guest,
    tool: Tool,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Bench<'_> {
    /// Gives the device `name` another table, while it is used.
    fn load(&self, name: &str, table: &str) {
        self.guest.sh(&format!(
            "printf '%s\\n' '{table}' > table
             if dmsetup info {name} > info 2>&1; then
                 dmsetup suspend --noflush --nolockfs {name}; dmsetup load {name} < table; dmsetup resume {name}
             else dmsetup create {name} < table; fi"
        ));
    }

    fn well(&self, name: &str, sectors: u64) {
        let device = format!("/dev/vg/{name}");
        self.load(name, &format!("0 {sectors} linear {device} 0"));
    }

    /// Writes fail from one sector to another; reads do not.
    fn bad(&self, name: &str, sectors: u64, from: u64, to: u64) {
        let device = format!("/dev/vg/{name}");
        let linear = |from: u64, to: u64| format!("{from} {} linear {device} {from}", to - from);
        let mut table = Vec::from([format!(
            "{from} {} flakey {device} {from} 0 1000 1 error_writes",
            to - from
        )]);
        if from > 0 {
            table.insert(0, linear(0, from));
        }
        if to < sectors {
            table.push(linear(to, sectors));
        }
        self.load(name, &table.join("\n"));
    }

    /// Every write takes its time, so that something can happen meanwhile.
    fn slow(&self) {
        self.load(
            "dest",
            &format!("0 {DEST} delay /dev/vg/dest 0 0 /dev/vg/dest 0 150"),
        );
    }

    /// Runs until something of the destination is overwritten.
    fn start(&self, arguments: &str) -> Child {
        let mut child = self.tool.start(arguments);
        let deadline = Instant::now() + Duration::from_secs(30);
        let first = || {
            let mut bytes = vec![0; 4096];
            let disk = fs::File::open("/dev/vg/dest").unwrap();
            rustix::fs::fadvise(&disk, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&disk, &mut bytes, 0).unwrap();
            bytes
        };
        while first() == self.old[..4096] {
            assert!(
                child.try_wait().unwrap().is_none() && Instant::now() < deadline,
                "not begun"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    fn truth(&self, when: &str) -> String {
        let contents = (&self.old[..], &self.new[..]);
        truth(
            &self.tool,
            "/dev/mapper/dest",
            "--state-dir state/s",
            contents,
            when,
        )
    }

    /// The disks are well again.
    fn recovers(&self, finish: bool, when: &str) {
        self.truth(when);
        if finish {
            self.tool.run(APPLY).ok();
            assert_same("/dev/mapper/dest", &self.new, when);
        }
        // Not from memory: what the disk has of the undo is what counts.
        self.guest.sh("sync; echo 3 > /proc/sys/vm/drop_caches");
        self.tool.run(TAKE_BACK).ok();
        assert_same("/dev/mapper/dest", &self.old, when);
        assert_eq!(self.truth(when), "complete", "{when}");
        self.guest
            .sh("rm -f kept/undo kept/undo.partial; rm -rf state/s");
    }
}

fn bench(guest: &Guest) -> Bench<'_> {
    let (old, new, delta) = contents();
    let tool = Tool::new(guest);
    fs::write(tool.path("delta"), delta).unwrap();
    guest.sh("modprobe -a dm-flakey dm-delay");
    guest.volume_group("vg", 0);
    for (name, size) in [("dest", "22M"), ("kept", "36M"), ("state", "4M")] {
        guest.volume("vg", name, size);
    }
    write("/dev/vg/dest", &old, 0);
    let bench = Bench {
        guest,
        tool,
        old,
        new,
    };
    for (name, sectors) in [("dest", DEST), ("kept", KEPT), ("state", STATE)] {
        bench.well(name, sectors);
    }
    guest.sh(
        "mkfs.ext4 -q -b 4096 -m 0 -J size=4 /dev/mapper/kept; mkfs.ext4 -q -b 1024 -O ^has_journal /dev/mapper/state
         mkdir kept state; mount /dev/mapper/kept kept; mount /dev/mapper/state state",
    );
    bench
}

/// Finished or taken back: one of the two, or with full counts both.
fn ways(finish: bool) -> Vec<bool> {
    if long() {
        vec![true, false]
    } else {
        vec![finish]
    }
}

#[test]
fn a_failing_disk_costs_neither_the_way_back_nor_the_truth() {
    let setup = setup().disk("128M").time_limit(Duration::from_secs(240));
    lab::test(
        "a_failing_disk_costs_neither_the_way_back_nor_the_truth",
        setup,
        |guest| {
            let bench = bench(guest);
            let tool = &bench.tool;

            // The destination fails in the second round, once finished and once taken back.
            for finish in ways(true) {
                bench.bad("dest", DEST, DEST * 9 / 10, DEST * 9 / 10 + 64);
                tool.run(APPLY)
                    .ends(1, &["cannot write", "Input/output error", "partly written"]);
                assert_eq!(bench.truth("a bad destination"), "incomplete");
                // And while it is bad it stays so.
                tool.run(APPLY).ends(1, &["cannot write"]);
                bench.well("dest", DEST);
                bench.recovers(finish, "a bad destination");
            }

            // No room for what the second round saves.
            for finish in ways(false) {
                guest.sh(
                    "fallocate -l $(( $(stat -f -c %a kept) * 4096 - 17800 * 1024 )) kept/filler",
                );
                tool.run(APPLY).ends(1, &["undo", "No space left"]);
                assert_eq!(bench.truth("a full disk below the undo"), "incomplete");
                tool.run(APPLY).ends(1, &["undo", "No space left"]);
                guest.sh("rm kept/filler");
                bench.recovers(finish, "a full disk below the undo");
            }

            // No room for the first: nothing is overwritten, and nothing is left.
            guest.sh("fallocate -l $(( $(stat -f -c %a kept) * 4096 - 1024 * 1024 )) kept/filler");
            tool.run(APPLY).ends(1, &["undo", "No space left"]);
            assert_eq!(bench.truth("no room for any undo"), "none");
            assert!(!fs::exists(tool.path("kept/undo.partial")).unwrap());
            guest.sh("rm kept/filler");

            // The undo's disk is gone in the second round.
            bench.slow();
            let child = bench.start(APPLY);
            bench.load("kept", &format!("0 {KEPT} error"));
            Run::of(child).ends(1, &["undo"]);
            bench.well("dest", DEST);
            bench.well("kept", KEPT);
            guest.sh("umount kept; fsck.ext4 -p /dev/mapper/kept > fsck || [ $? -le 2 ]; mount /dev/mapper/kept kept");
            assert_eq!(bench.truth("the undo's disk gone"), "incomplete");
            bench.recovers(true, "the undo's disk gone");

            // No room for the record: nothing is written.
            guest.sh("dd if=/dev/zero of=state/filler bs=1k status=none 2> dd || :");
            tool.run(APPLY).ends(1, &["No space left", "state"]);
            assert_same("/dev/mapper/dest", &bench.old, "no room for the record");
            guest.sh("rm state/filler; rm -rf state/s");
            assert!(!fs::exists(tool.path("kept/undo.partial")).unwrap());

            // No room for its end: it is done and not on record, so it is not called done.
            bench.slow();
            let child = bench.start(APPLY);
            guest.sh("dd if=/dev/zero of=state/filler bs=1k status=none 2> dd || :");
            Run::of(child).ends(1, &["No space left", "state"]);
            bench.well("dest", DEST);
            guest.sh("rm state/filler");
            assert_eq!(bench.truth("no room for the record's end"), "incomplete");
            bench.recovers(true, "no room for the record's end");

            // The record's disk fails.
            bench.bad("state", STATE, 0, STATE);
            tool.run(APPLY).ends(1, &["state"]);
            assert_same("/dev/mapper/dest", &bench.old, "no record");
            bench.well("state", STATE);
            guest.sh(
                "umount state; mkfs.ext4 -q -b 1024 -O ^has_journal /dev/mapper/state
                 mount /dev/mapper/state state",
            );
            tool.run(APPLY).ok();
            bench.recovers(false, "after all");
        },
    );
}

/// A file's writes fail when they are synced, and a second sync finds nothing to complain of.
#[test]
fn what_a_sync_lost_is_never_on_record_as_durable() {
    let setup = setup().disk("96M");
    lab::test(
        "what_a_sync_lost_is_never_on_record_as_durable",
        setup,
        |guest| {
            let (old, new, delta) = contents();
            let tool = Tool::new(guest);
            fs::write(tool.path("delta"), delta).unwrap();
            guest.sh("modprobe dm-flakey");
            guest.volume_group("vg", 0);
            guest.volume("vg", "kept", "36M");
            let bench = Bench {
                guest,
                tool,
                old,
                new,
            };
            bench.well("kept", KEPT);
            guest.sh("mkfs.ext4 -q -b 4096 -m 0 -J size=4 /dev/mapper/kept; mkdir kept; mount /dev/mapper/kept kept");
            let copy = bench.tool.path("kept/copy.img");
            fs::write(&copy, &bench.old).unwrap();
            guest.sh("sync");
            // Some of its blocks, in the middle: 256 KiB.
            let map = guest.sh("filefrag -v -b4096 kept/copy.img");
            let extent = map
                .lines()
                .find(|line| line.trim_start().starts_with("0:"))
                .unwrap();
            let words: Vec<&str> = extent
                .split(|c: char| !c.is_ascii_digit())
                .filter(|word| !word.is_empty())
                .collect();
            let (first, length): (u64, u64) =
                (words[3].parse().unwrap(), words[5].parse().unwrap());
            assert!(length > 128, "{map}");
            let from = (first + length / 2) * 8;
            bench.bad("kept", KEPT, from, from + 512);
            let run = "apply delta kept/copy.img";
            bench
                .tool
                .run(run)
                .ends(1, &["durable", "Input/output error"]);
            bench.well("kept", KEPT);
            let shown = bench
                .tool
                .run("state show kept/copy.img --json")
                .ok()
                .stdout;
            let records: serde_json::Value = serde_json::from_str(&shown).unwrap();
            assert_eq!(records[0]["status"], "incomplete");
            bench.tool.run(run).ok();
            guest.sh("umount kept; mount /dev/mapper/kept kept");
            assert_eq!(
                wrong_blocks(&content(&copy), &bench.new),
                0,
                "finished after a sync that failed"
            );
        },
    );
}

/// A snapshot that runs out of room, before and in the middle; and a disk that is full at the far end.
#[test]
fn sources_and_far_ends_that_fail() {
    let setup = setup()
        .disk("96M")
        .disk("64M")
        .time_limit(Duration::from_secs(180));
    lab::test("sources_and_far_ends_that_fail", setup, |guest| {
        let tool = Tool::new(guest);
        let mut random = Random::new(3);
        guest.volume_group("vg", 0);
        guest.sh(&format!(
            "vgcreate -qq --yes -s 1M there {}",
            guest.disk(1).display()
        ));
        guest.volume("vg", "data", "8M");
        guest.volume("there", "copy", "8M");
        guest.volume("there", "kept", "8M");
        write("/dev/vg/data", &random.bytes(8 << 20), 0);
        guest.sh("lvcreate -qq -s -c 16k -L 12M -n s1 vg/data 2>&1");
        // More than is read ahead.
        write("/dev/vg/data", &random.bytes(5 << 20), 1 << 20);
        guest.sh("lvcreate -qq -s -c 16k -L 4M -n s2 vg/data 2>&1");
        let (old, new) = (content("/dev/vg/s1"), content("/dev/vg/s2"));
        write("/dev/there/copy", &old, 0);
        guest.sh("mkfs.ext4 -q -b 1024 -O ^has_journal /dev/there/kept; mkdir kept; mount /dev/there/kept kept");
        guest.host("far");
        let undo = tool.path("kept/undo").display().to_string();

        // No room for the undo over there; that is the far end's failure, in its words.
        guest.sh("fallocate -l 5M kept/filler || dd if=/dev/zero of=kept/filler bs=1M count=5 status=none");
        let send = format!("send --from vg/s1 vg/s2 far:there/copy --undo {undo}");
        tool.run(&send).ends(7, &["far: ", "No space left", "undo"]);
        assert_same("/dev/there/copy", &old, "no room at the far end");
        guest.sh("rm kept/filler");
        tool.run(&send).ok();
        assert_same("/dev/there/copy", &new, "room at the far end");
        guest.sh(&format!("ssh far lvmsync apply {undo} there/copy 2>&1"));
        assert_same("/dev/there/copy", &old, "taken back");

        // The new state runs out of room while it is sent, and then is not there any more.
        let child = tool.start("send --from vg/s1 vg/s2 there/copy --bwlimit 1M");
        std::thread::sleep(Duration::from_millis(900));
        write("/dev/vg/data", &random.bytes(5 << 20), 3 << 20);
        Run::of(child).ends(4, &["vg/s2"]);
        let when = "an overflow in the middle";
        assert_eq!(
            truth(&tool, "there/copy", "", (&old, &new), when),
            "incomplete"
        );
        tool.run("send --from vg/s1 vg/s2 there/copy")
            .ends(4, &["vg/s2"]);
        tool.run("send --from vg/s1 vg/s2 -o delta")
            .ends(4, &["vg/s2"]);
        assert!(!fs::exists(tool.path("delta")).unwrap());
        // Everything again, from the origin that is left, mends it.
        tool.run("send vg/s1 there/copy").ok();
        assert_same("/dev/there/copy", &old, "a full copy");
        guest.sh("umount kept");
    });
}
