//! Copies of live volumes: of a volume that is mounted and written to a snapshot is made, read, and removed whatever ends
//! the run, thick or thin; and what stands in the way of it is refused.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs::{self, File};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::{Guest, Script};
use lab_kit::live::{
    Bench, Kind, LVS, MIB, StopAtEnd, Writer, is_of_one_moment, kill, kill_guards, make, settle,
    setup, temporary, volume_of, wait_until,
};
use lab_kit::thin::{self, held_in, lvm};
use lab_kit::{Random, Run, Tool, assert_same, content, long, seed, write};
use rustix::process::Signal;

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
            for copy in ["there/copy", "far:there/copy"] {
                let before = writer.rounds.load(Ordering::Relaxed);
                let run = tool.run(&format!("sync vg/data {copy} --verify -v")).ok();
                let words = "vg/data: read from vg/data-lvmsync-";
                assert!(run.stderr.contains(words), "{}", run.stderr);
                assert!(!run.stderr.contains("may or may not"), "{}", run.stderr);
                assert!(writer.rounds.load(Ordering::Relaxed) > before);
                is_of_one_moment(guest, "/dev/there/copy");
                bench.nothing_left(copy);
            }
            // Kept, it is what the copy holds, and increments go on from it.
            tool.run("sync vg/data there/copy --keep-snapshot s1").ok();
            assert_same("/dev/there/copy", &content("/dev/vg/s1"), "kept");
            is_of_one_moment(guest, "/dev/there/copy");
            bench.nothing_on_record("kept");
            assert_eq!(guest.sh("lvs --noheadings -o lv_tags vg/s1").trim(), "");
            writer.wait_for_more();
            let size = if kind == Kind::Thin { "-kn" } else { "-L 16M" };
            lvm(guest, &format!("lvcreate -qq -s -pr {size} -n s2 vg/data"));
            tool.run("send --from vg/s1 vg/s2 there/copy").ok();
            assert_same("/dev/there/copy", &content("/dev/vg/s2"), "the increment");
            lvm(guest, "lvremove -qq -y vg/s1 vg/s2");
            // For the brave.
            tool.run("sync vg/data there/copy --no-snapshot")
                .ends(0, &["mounted for writing", "may or may not be in the copy"]);
            bench.nothing_left("without a snapshot");
        });
        guest.sh("umount m");
    });
}

#[test]
fn a_mounted_thick_volume_is_copied_as_of_one_moment() {
    live(
        "a_mounted_thick_volume_is_copied_as_of_one_moment",
        Kind::Thick,
    );
}

#[test]
fn a_mounted_thin_volume_is_copied_as_of_one_moment() {
    live(
        "a_mounted_thin_volume_is_copied_as_of_one_moment",
        Kind::Thin,
    );
}

fn killed(name: &str, kind: Kind) {
    let limit = Duration::from_secs(if long() { 600 } else { 180 });
    lab::test(name, setup().time_limit(limit), |guest| {
        make(guest, kind);
        let state = Random::new(9).bytes(24 * MIB);
        write("/dev/vg/data", &state, 0);
        let bench = Bench::new(guest);
        let tool = &bench.tool;
        for (signal, options) in [
            (Signal::INT, ""),
            (Signal::TERM, "--keep-snapshot s1"),
            (Signal::KILL, ""),
        ] {
            let child = match options {
                "" => bench.reading(options),
                _ => {
                    let child =
                        tool.start(&format!("sync vg/data there/copy --bwlimit 1M {options}"));
                    wait_until("it reads", || {
                        thin::is_active("vg/s1") && lab_kit::open_count(guest, "vg-s1") != "0"
                    });
                    child
                }
            };
            kill(&child, signal);
            let run = Run::of(child);
            let code = (signal != Signal::KILL).then_some(130);
            assert_eq!(run.code, code, "{signal:?}: {}", run.stderr);
            bench.nothing_left(&format!("{signal:?}"));
        }
        let kill_both = |child: Child| {
            kill_guards();
            kill(&child, Signal::KILL);
            Run::of(child);
            settle();
        };
        // Nobody is left to remove it: the doctor knows, and so does the next run.
        kill_both(bench.reading(""));
        let left = volume_of(&temporary().unwrap());
        let command = format!("lvremove -y {left}");
        let doctor = tool.run("doctor");
        assert!(doctor.stdout.contains(&command), "{}", doctor.stdout);
        let words = format!("{left}: removed the temporary snapshot that a killed run has left");
        tool.run("sync vg/data there/copy").ends(0, &[&words]);
        assert_same("/dev/there/copy", &state, "after it");
        bench.nothing_left("the next run");
        write("/dev/there/copy", &vec![0; 24 * MIB], 0);
        kill_both(bench.reading(""));
        let doctor = tool.run("doctor");
        let command = format!("lvremove -y {}", volume_of(&temporary().unwrap()));
        assert!(doctor.stdout.contains(&command), "{}", doctor.stdout);
        guest.sh(&format!("{command} 2>&1"));
        // One that somebody reads, or has made theirs, stays.
        kill_both(bench.reading(""));
        let device = temporary().unwrap();
        let open = File::open(format!("/dev/mapper/{device}")).unwrap();
        tool.run("sync vg/data there/copy").ok();
        assert_eq!(temporary().as_deref(), Some(&*device), "it is open");
        drop(open);
        let theirs = volume_of(&device);
        lvm(
            guest,
            &format!("lvchange --deltag lvmsync_temporary {theirs}"),
        );
        tool.run("sync vg/data there/copy").ok();
        assert_eq!(temporary().as_deref(), Some(&*device), "it is theirs");
        bench.nothing_on_record("it is theirs");
        lvm(guest, &format!("lvremove -qq -y {theirs}"));
        bench.nothing_left("theirs");

        // At any moment, LVM's own work included.
        let mut random = Random::new(seed(guest));
        let start = Instant::now();
        tool.run("sync vg/data there/copy").ok();
        let whole = start.elapsed().as_millis() as u64;
        let mut left = 0;
        let times = if long() { 40 } else { 2 };
        for number in 0..times {
            let child = tool.start("sync vg/data there/copy");
            std::thread::sleep(Duration::from_millis(random.below(whole)));
            kill_both(child);
            left += u64::from(temporary().is_some());
            tool.run("sync vg/data there/copy").ok();
            bench.nothing_left(&format!("number {number}"));
        }
        guest.announce(&format!("{left} of {times} left a snapshot"));
    });
}

#[test]
fn whatever_ends_a_run_no_thick_snapshot_stays() {
    killed("whatever_ends_a_run_no_thick_snapshot_stays", Kind::Thick);
}

#[test]
fn whatever_ends_a_run_no_thin_snapshot_stays() {
    killed("whatever_ends_a_run_no_thin_snapshot_stays", Kind::Thin);
}

#[test]
fn a_snapshot_that_overflows_or_has_no_room_is_told() {
    let name = "a_snapshot_that_overflows_or_has_no_room_is_told";
    lab::test(name, setup(), |guest| {
        make(guest, Kind::Thick);
        let mut random = Random::new(11);
        let state = random.bytes(24 * MIB);
        write("/dev/vg/data", &state, 0);
        let bench = Bench::new(guest);
        let tool = &bench.tool;

        let child = bench.reading("--snapshot-size 1M");
        write("/dev/vg/data", &state[..8 * MIB], 0);
        let words = [
            "vg/data: the snapshot",
            "is lost",
            "--snapshot-size 4194304",
        ];
        Run::of(child).ends(1, &words);
        bench.nothing_left("overflow");
        // One that has room for all of it does not.
        let child = bench.reading("--snapshot-size 1G --bwlimit 4M");
        write("/dev/vg/data", &random.bytes(24 * MIB), 0);
        Run::of(child).ok();
        assert_same("/dev/there/copy", &state, "before it was written");
        bench.nothing_left("no overflow");

        // What cannot be meant, or must not be.
        tool.run("sync vg/data vg/data")
            .ends(5, &["vg/data: cannot be the destination"]);
        tool.run("sync vg/data there/copy --keep-snapshot data")
            .ends(5, &["vg/data: there is a volume of that name"]);
        tool.run("sync vg/data there/none").ends(1, &["there/none"]);
        tool.run("sync vg/data there/copy --keep-snapshot other/s")
            .ends(2, &["vg/NAME"]);
        bench.nothing_left("refused");
        lvm(guest, "lvcreate -qq -s -pr -L 8M -n s1 vg/data");
        tool.run("sync vg/s1 there/copy --keep-snapshot s2")
            .ends(2, &["a snapshot already"]);
        tool.run("sync vg/s1 there/copy").ok();
        lvm(guest, "lvremove -qq -y vg/s1");
        // Nobody can write to it.
        lvm(guest, "lvchange -qq -pr vg/data");
        let run = tool.run("sync vg/data there/copy -v").ok();
        assert!(!run.stderr.contains("read from"), "{}", run.stderr);
        lvm(guest, "lvchange -qq -prw vg/data");

        lvm(guest, "lvcreate -qq -l 100%FREE -n filler vg");
        let words = ["vg has 0 extents", "--no-snapshot", "vgextend vg"];
        tool.run("sync vg/data there/copy").ends(5, &words);
        tool.run("sync vg/data there/copy --no-snapshot").ok();
        lvm(guest, "lvreduce -qq -y -L -2M vg/filler");
        let words = ["vg has 2 extents (2.0 MiB) free", "--snapshot-size 2097152"];
        tool.run("sync vg/data there/copy --snapshot-size 8M")
            .ends(5, &words);
        tool.run("sync vg/data there/copy")
            .ends(0, &["gets all that is free in volume group vg, 2.0 MiB"]);
        lvm(guest, "lvremove -qq -y vg/filler");
        bench.nothing_left("at the end");
    });
}

#[test]
fn a_lost_connection_goes_on_from_the_same_snapshot() {
    const RECORDS: &str = "/var/lib/lvmsync/destinations";
    let name = "a_lost_connection_goes_on_from_the_same_snapshot";
    lab::test(name, setup(), |guest| {
        make(guest, Kind::Thick);
        guest.host("far");
        let mut random = Random::new(13);
        write("/dev/vg/data", &random.bytes(24 * MIB), 0);
        let bench = Bench::new(guest);
        let line = "sync vg/data far:there/copy --bwlimit 2M --keep-snapshot s1 --json";
        let child = bench.tool.start(line);
        let durable = || {
            let records = fs::read_dir(RECORDS).into_iter().flatten().flatten();
            let texts = records.filter_map(|record| fs::read_to_string(record.path()).ok());
            let number = |text: String| {
                let rest = text.split_once("\"durable_offset\":")?.1.trim_start();
                let digits = rest.split(|end: char| !end.is_ascii_digit());
                digits.into_iter().next()?.parse().ok()
            };
            texts.filter_map(number).max().unwrap_or(0)
        };
        // Much more than what is on its way at any moment.
        wait_until("a third of it is durable", || durable() >= 8 << 20);
        write("/dev/vg/data", &random.bytes(8 * MIB), 16 * MIB as u64);
        guest.sh(&format!("kill -9 $(pgrep -P {} -x ssh)", child.id()));
        let run = Run::of(child).ends(0, &["trying again"]);
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        // Of all connections. What was durable was not sent again.
        let sent = json["data_bytes"].as_u64().unwrap();
        assert!((24 << 20..32 << 20).contains(&sent), "{json}");
        assert_same("/dev/there/copy", &content("/dev/vg/s1"), "one snapshot");
        lvm(guest, "lvremove -qq -y vg/s1");
        bench.nothing_left("a lost connection");
    });
}

#[test]
fn what_a_power_cut_leaves_the_next_run_removes() {
    const STATE: &str = "/var/lib/lvmsync";
    let data = || Random::new(17).bytes(24 * MIB);
    let begin = |guest: &Guest| {
        guest.sh(&format!(
            "vgchange -qq -ay vg there 2>&1; mkdir -p {STATE}; mount {} {STATE}",
            guest.disk(2).display()
        ));
    };
    let name = "what_a_power_cut_leaves_the_next_run_removes";
    Script::new(name, setup().disk("32M"))
        .phase("make", move |guest| {
            make(guest, Kind::Thick);
            write("/dev/vg/data", &data(), 0);
            guest.sh(&format!("mkfs.ext4 -q {}; sync", guest.disk(2).display()));
        })
        .phase("read", move |guest| {
            begin(guest);
            let bench = Bench::new(guest);
            let child = bench.reading(&format!("--state-dir {STATE}"));
            guest.announce("READING NOW");
            Run::of(child);
            panic!("it was not cut");
        })
        .phase("mend", move |guest| {
            begin(guest);
            let tool = Tool::new(guest);
            let left = guest.sh(LVS);
            let left = left.lines().find(|name| name.contains("-lvmsync-"));
            let left = format!("vg/{}", left.unwrap().trim());
            let doctor = tool.run(&format!("doctor --state-dir {STATE}"));
            let command = format!("lvremove -y {left}");
            assert!(doctor.stdout.contains(&command), "{}", doctor.stdout);
            let words = format!("{left}: removed the temporary snapshot");
            tool.run(&format!("sync vg/data there/copy --state-dir {STATE}"))
                .ends(0, &[&words]);
            assert_same("/dev/there/copy", &data(), "after the cut");
            assert!(!guest.sh(LVS).contains("lvmsync"));
            assert_eq!(held_in(Path::new(STATE)), [""; 0]);
        })
        .drive(|driver| {
            driver.run("make");
            let mut guest = driver.boot("read");
            driver.wait_for(&mut guest, "READING NOW", Duration::from_secs(60));
            guest.cut().unwrap();
            driver.run("mend");
        });
}
