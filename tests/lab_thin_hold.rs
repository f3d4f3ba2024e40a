//! The metadata snapshot of a pool, and volumes that are active only to be read: whatever ends a run or its guard, and
//! whenever, nothing of it stays, or the next run finds it and gives it back. What is not ours is left alone.
//!
//! The pool's metadata lies on a device that takes its time, so that a moment in the middle is one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use lab::{Guest, Script};
use lab_kit::thin::{self, List, held_in, held_root, is_active, lvm, status};
use lab_kit::two_rounds::noise;
use lab_kit::{Random, Run, Tool, long, lvmsync_processes, seed, setup, write};
use rustix::process::{Pid, Signal, kill_process};

const POOL: &str = "vg/pool";
const DIFF: &str = "diff --from vg/s1 vg/s2 --json";
const SLOW: &str = "slow";
const RELEASE: &str = "dmsetup message /dev/mapper/vg-pool-tpool 0 release_metadata_snap";
const RESERVE: &str = "dmsetup message /dev/mapper/vg-pool-tpool 0 reserve_metadata_snap";

/// `vg/s1` and `vg/s2`, inactive, in `vg/pool`: many mappings, half of them different.
fn make(guest: &Guest) {
    find_slow(guest);
    thin::group(guest, "vg", 0);
    lvm(
        guest,
        &format!(
            "pvcreate -qq --metadatacopies 0 /dev/mapper/{SLOW}; vgextend -qq vg /dev/mapper/{SLOW}"
        ),
    );
    lvm(
        guest,
        &format!("lvcreate -qq -y -Wn -Zn -L 8M -n meta vg /dev/mapper/{SLOW}"),
    );
    lvm(
        guest,
        &format!(
            "lvcreate -qq -y -Wn -Zn -L 96M -n pool vg {}",
            guest.disk(0).display()
        ),
    );
    lvm(
        guest,
        "lvconvert -qq -y --type thin-pool -c 64k --poolmetadataspare n --poolmetadata meta vg/pool",
    );
    lvm(guest, "lvcreate -qq -y -T -V 64M -n data vg/pool");
    let mut random = Random::new(7);
    let some = |random: &mut Random, count| {
        let file = fs::File::options()
            .write(true)
            .open("/dev/vg/data")
            .unwrap();
        for _ in 0..count {
            let block = noise(4096, &random.below(u64::MAX).to_string());
            let at = random.below((64 << 20) / 4096) * 4096;
            std::os::unix::fs::FileExt::write_all_at(&file, &block, at).unwrap();
        }
        file.sync_all().unwrap();
    };
    some(&mut random, 600);
    lvm(guest, "lvcreate -qq -y -s -n s1 vg/data");
    some(&mut random, 300);
    lvm(guest, "lvcreate -qq -y -s -n s2 vg/data");
    lvm(guest, "lvchange -qq -pr vg/s1 vg/s2");
}

/// Where the pool's metadata lies: at first no slower than anything else. Not from the disk's begin, or LVM would find
/// the same physical volume on the disk itself.
fn find_slow(guest: &Guest) {
    guest.sh(&format!(
        "modprobe dm-delay; dmsetup create {SLOW} --table '0 32768 linear {} 2048'",
        guest.disk(1).display()
    ));
}

struct Bench<'a> {
    guest: &'a Guest,
    tool: Tool,
    state: PathBuf,
    list: List,
}

impl<'a> Bench<'a> {
    fn new(guest: &'a Guest) -> Self {
        let tool = Tool::new(guest);
        let list = tool.thin_diff("--from vg/s1 vg/s2");
        assert!(list.len() > 50);
        let state = tool.path("state");
        Self {
            guest,
            tool,
            state,
            list,
        }
    }

    /// Each read of the pool's metadata takes so long from now on. Zero ends that. Writes do not, or the kernel would be
    /// at work on the reservation for most of the time: a guard that is killed then is a case by itself.
    fn slow_metadata(&self, milliseconds: u64) {
        let table = match milliseconds {
            0 => format!("linear {} 2048", self.guest.disk(1).display()),
            _ => format!(
                "delay {0} 2048 {milliseconds} {0} 2048 0",
                self.guest.disk(1).display()
            ),
        };
        self.guest.sh(&format!(
            "dmsetup load {SLOW} --table '0 32768 {table}'
             dmsetup suspend --noflush --nolockfs {SLOW}; dmsetup resume {SLOW}"
        ));
    }

    /// Nothing is there that was not there before.
    #[track_caller]
    fn nothing_left(&self, when: &str) {
        let processes = lvmsync_processes();
        assert!(processes.is_empty(), "{when}: {processes:?}");
        assert_eq!(held_in(&self.state), [""; 0], "{when}");
        assert_eq!(held_root(self.guest, POOL), "-", "{when}");
        for name in ["vg/s1", "vg/s2"] {
            assert!(!is_active(name), "{when}: {name} is active");
        }
        let info = self
            .guest
            .sh("dmsetup info -c --noheadings -o name,suspended");
        assert!(!info.contains("Suspended"), "{when}: {info}");
    }

    /// The next run, which nobody helps, is right, and leaves nothing.
    #[track_caller]
    fn next_run_is_right(&self, when: &str) {
        let list = self.tool.thin_diff("--from vg/s1 vg/s2");
        assert!(list == self.list, "{when}: another list");
        self.nothing_left(when);
    }

    fn start(&self) -> Child {
        self.tool.start(DIFF)
    }
}

/// Processes with this in their command line.
fn processes(part: &str) -> Vec<Pid> {
    let lines = lvmsync_processes();
    let wanted = lines.iter().filter(|line| line.contains(part));
    wanted
        .map(|line| {
            let id = line.split([':', '/']).nth(2).unwrap();
            Pid::from_raw(id.parse().unwrap()).unwrap()
        })
        .collect()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).unwrap()
}

/// Waits until no lvmsync, guard or command of LVM is at work any more.
fn settle() {
    let deadline = Instant::now() + Duration::from_secs(30);
    let lvm_at_work = || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
            .any(|name| ["lvchange", "lvs"].contains(&name.trim()))
    };
    while !lvmsync_processes().is_empty() || lvm_at_work() {
        assert!(Instant::now() < deadline, "{:?}", lvmsync_processes());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_reserved(guest: &Guest) -> bool {
    held_root(guest, POOL) != "-"
}

#[test]
fn a_killed_run_leaves_nothing() {
    killed("a_killed_run_leaves_nothing", "run");
}

#[test]
fn what_a_killed_guard_leaves_the_next_run_mends() {
    killed("what_a_killed_guard_leaves_the_next_run_mends", "guard");
}

#[test]
fn what_a_run_killed_with_its_guard_leaves_the_next_run_mends() {
    killed(
        "what_a_run_killed_with_its_guard_leaves_the_next_run_mends",
        "both",
    );
}

/// How often what happened.
#[derive(Debug, Default)]
struct Kills {
    reserved_after_it: u64,
    active_after_it: u64,
    mended_by_hand: u64,
    done_before: u64,
}

fn killed(name: &str, what: &str) {
    let limit = Duration::from_secs(if long() { 1200 } else { 240 });
    let setup = setup().disk("160M").disk("20M").time_limit(limit);
    lab::test(name, setup, |guest| {
        make(guest);
        let bench = Bench::new(guest);
        let mut random = Random::new(seed(guest));
        bench.slow_metadata(20);
        let before = Instant::now();
        let right = bench.tool.run(DIFF).ok().stdout;
        let whole = before.elapsed().as_millis() as u64;
        let times = if long() { 50 } else { 6 };
        let mut kills = Kills::default();
        for number in 0..times {
            let mut child = bench.start();
            // Half at any moment, half while the snapshot is held or about to be asked for.
            if number % 2 == 1 {
                wait_until("active", || {
                    is_active("vg/s2") || child.try_wait().unwrap().is_some()
                });
                std::thread::sleep(Duration::from_millis(random.below(whole / 3)));
            } else {
                std::thread::sleep(Duration::from_millis(random.below(whole)));
            }
            if what != "run" {
                for guard in processes("internal-guard") {
                    let _ = kill_process(guard, Signal::KILL);
                }
            }
            if what != "guard" {
                let _ = kill_process(pid(&child), Signal::KILL);
            }
            let run = Run::of(child);
            let when = format!("number {number}: {:?} {}", run.code, run.stderr);
            settle();
            if run.code == Some(0) {
                assert_eq!(run.stdout, right, "{when}");
                kills.done_before += 1;
            }
            if what == "run" {
                // The guard has seen to it: no next run is needed.
                bench.nothing_left(&when);
            }
            kills.reserved_after_it += u64::from(is_reserved(guest));
            kills.active_after_it += u64::from(is_active("vg/s2"));
            let next = bench.tool.run(DIFF);
            if next.code == Some(5) {
                // Killed between the question and the record of the answer: that cannot be proved.
                assert!(what != "run", "{when}");
                next.ends(5, &["was killed while it asked for it", RELEASE]);
                guest.sh(RELEASE);
                kills.mended_by_hand += 1;
                bench.next_run_is_right(&when);
            } else {
                assert_eq!(next.ok().stdout, right, "{when}");
                bench.nothing_left(&when);
            }
        }
        guest.announce(&format!("SIGKILL of {what}, {times} times: {kills:?}"));
        // Of a handful any share may fall into that moment.
        if long() {
            assert!(kills.mended_by_hand * 5 <= times, "{kills:?}");
        }
    });
}

#[test]
fn a_run_that_is_told_to_stop_gives_everything_back_at_once() {
    let name = "a_run_that_is_told_to_stop_gives_everything_back_at_once";
    lab::test(name, setup().disk("160M").disk("20M"), |guest| {
        make(guest);
        let bench = Bench::new(guest);
        bench.slow_metadata(150);
        let told = |signal, what: &str, child: Child| {
            let start = Instant::now();
            kill_process(pid(&child), signal).unwrap();
            Run::of(child).ends(130, &["interrupted"]);
            let seconds = start.elapsed();
            assert!(seconds < Duration::from_secs(5), "{what}: {seconds:?}");
            bench.nothing_left(what);
            guest.announce(&format!("{what}: gone after {seconds:?}"));
        };
        for signal in [Signal::INT, Signal::TERM] {
            let child = bench.start();
            wait_until("reserved", || is_reserved(guest));
            told(signal, "while it reads the metadata", child);
        }
        // While it waits for another one: that goes on, and is right.
        let first = bench.start();
        wait_until("reserved", || is_reserved(guest));
        kill_process(pid(&first), Signal::STOP).unwrap();
        let second = bench.start();
        wait_until("a second guard", || processes("internal-guard").len() == 2);
        std::thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        kill_process(pid(&second), Signal::INT).unwrap();
        Run::of(second).ends(130, &["interrupted"]);
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        kill_process(pid(&first), Signal::CONT).unwrap();
        Run::of(first).ok();
        bench.nothing_left("one waited");
        bench.slow_metadata(0);
        // While data is sent, when only the activation is left.
        for signal in [Signal::INT, Signal::TERM] {
            let child = bench
                .tool
                .start("send --from vg/s1 vg/s2 -o delta --bwlimit 500k");
            wait_until("sending", || bench.tool.path("delta.partial").exists());
            assert_eq!(held_root(guest, POOL), "-");
            assert!(is_active("vg/s2"));
            told(signal, "while it sends", child);
        }
        bench.next_run_is_right("at the end");
    });
}

#[test]
fn what_others_hold_is_left_alone_and_two_runs_take_turns() {
    let name = "what_others_hold_is_left_alone_and_two_runs_take_turns";
    lab::test(name, setup().disk("160M").disk("20M"), |guest| {
        make(guest);
        let bench = Bench::new(guest);
        lvm(guest, "lvcreate -qq -y -T -V 4M -n other vg/pool");
        let refused = |command: &str| {
            let root = held_root(guest, POOL);
            assert!(root != "-");
            bench.tool.run(command).ends(
                5,
                &["metadata snapshot is held", "no record proves", RELEASE],
            );
            assert_eq!(held_root(guest, POOL), root, "still held");
            assert!(!is_active("vg/s2"), "{command}");
        };
        let commands = [
            DIFF,
            "send --from vg/s1 vg/s2 -o delta",
            "send vg/s2 -o delta",
        ];
        guest.sh(RESERVE);
        commands.into_iter().for_each(refused);
        guest.sh(RELEASE);
        bench.next_run_is_right("after a foreign one");

        // A record of ours that tells of another moment, as a killed run leaves it.
        bench.slow_metadata(100);
        let child = bench.start();
        wait_until("reserved", || is_reserved(guest));
        let file = held_in(&bench.state);
        let record = |part: &str| file.iter().find(|name| name.starts_with(part)).unwrap();
        let record = bench.state.join("held").join(record("pool-"));
        wait_until("on record", || {
            fs::read_to_string(&record).is_ok_and(|text| text.contains("digest"))
        });
        for guard in processes("internal-guard") {
            kill_process(guard, Signal::KILL).unwrap();
        }
        Run::of(child).ends(1, &["guard process is gone"]);
        settle();
        let kept = fs::read(&record).unwrap();
        guest.sh(RELEASE);
        write("/dev/vg/other", &noise(4096, "a"), 0);
        guest.sh(RESERVE);
        bench.slow_metadata(0);
        assert_eq!(fs::read(&record).unwrap(), kept);
        bench.tool.run(DIFF).ends(5, &["no record proves", RELEASE]);
        assert!(is_reserved(guest));
        guest.sh(RELEASE);
        bench.next_run_is_right("after a stale record");

        // Two at once, and three.
        bench.slow_metadata(40);
        let first = bench.start();
        wait_until("reserved", || is_reserved(guest));
        kill_process(pid(&first), Signal::STOP).unwrap();
        let others = [bench.start(), bench.start()];
        wait_until("three guards", || processes("internal-guard").len() == 3);
        std::thread::sleep(Duration::from_millis(500));
        kill_process(pid(&first), Signal::CONT).unwrap();
        let runs = others.map(|child| Run::of(child).ok());
        Run::of(first).ok();
        let waited = runs
            .iter()
            .filter(|run| run.stderr.contains("waiting for it"));
        assert!(waited.count() > 0, "{}", runs[0].stderr);
        bench.nothing_left("three at once");

        // Somebody takes it away while it is read: no success, whatever was read.
        bench.slow_metadata(100);
        for again in [false, true] {
            let child = bench.start();
            wait_until("reserved", || is_reserved(guest));
            std::thread::sleep(Duration::from_millis(150));
            guest.sh(RELEASE);
            if again {
                write("/dev/vg/other", &noise(4096, "b"), 65536);
                guest.sh(RESERVE);
            }
            let run = Run::of(child);
            let run = run.ends(1, &["somebody released the pool's metadata snapshot"]);
            assert_eq!(run.stdout, "");
            if again {
                assert!(is_reserved(guest), "theirs");
                guest.sh(RELEASE);
            }
            bench.nothing_left("taken away");
        }
        bench.slow_metadata(0);
        bench.next_run_is_right("at the end");
        assert_eq!(status(guest, POOL)[4], "rw");
    });
}

/// A guard that was killed and whose volume is gone, or not asked for again, is cleaned up after as well.
#[test]
fn any_next_run_deactivates_what_a_killed_guard_left() {
    let name = "any_next_run_deactivates_what_a_killed_guard_left";
    lab::test(name, setup().disk("160M").disk("20M"), |guest| {
        make(guest);
        let bench = Bench::new(guest);
        let leave = || {
            let child = bench.tool.start("send vg/s2 -o delta --bwlimit 100k");
            wait_until("sending", || bench.tool.path("delta.partial").exists());
            for guard in processes("internal-guard") {
                kill_process(guard, Signal::KILL).unwrap();
            }
            kill_process(pid(&child), Signal::KILL).unwrap();
            Run::of(child);
            settle();
            guest.sh("rm -f *.partial");
            assert!(is_active("vg/s2") && held_in(&bench.state).len() == 1);
        };
        leave();
        // It reads the other one.
        bench.tool.run("send vg/s1 -o other").ok();
        bench.nothing_left("another run");
        // Somebody uses it now: it stays.
        leave();
        let open = fs::File::open("/dev/vg/s2").unwrap();
        bench.tool.run("send vg/s1 -o other2").ok();
        assert!(is_active("vg/s2") && held_in(&bench.state).len() == 1);
        drop(open);
        bench.tool.run("send vg/s1 -o other3").ok();
        bench.nothing_left("used for a while");
        // Another volume has its name now.
        leave();
        lvm(guest, "lvchange -qq -an vg/s2");
        lvm(
            guest,
            "lvrename -qq vg/s2 vg/s3; lvrename -qq vg/data vg/s2",
        );
        bench.tool.run("send vg/s1 -o other4").ok();
        assert!(is_active("vg/s2"), "it is not the one of the record");
        assert_eq!(held_in(&bench.state), [""; 0]);
    });
}

/// Who keeps records elsewhere reads the same volume all the same.
#[test]
fn runs_with_different_state_directories_share_what_is_active() {
    let name = "runs_with_different_state_directories_share_what_is_active";
    let limit = Duration::from_secs(240);
    let setup = setup().disk("160M").disk("20M").time_limit(limit);
    lab::test(name, setup, |guest| {
        make(guest);
        let bench = Bench::new(guest);
        let send = |name: &str, option: &str| {
            let line = format!("send vg/s2 -o {name} --bwlimit 300k {option}");
            let child = bench.tool.start(&line);
            let partial = bench.tool.path(&format!("{name}.partial"));
            wait_until("sending", || partial.exists());
            child
        };
        let stop = |child: Child| {
            kill_process(pid(&child), Signal::INT).unwrap();
            let run = Run::of(child).ends(130, &["interrupted"]);
            assert!(!run.stderr.contains("vg/s2"), "{}", run.stderr);
        };
        let goes_on = |child: &mut Child| {
            std::thread::sleep(Duration::from_secs(1));
            assert!(child.try_wait().unwrap().is_none());
            assert!(is_active("vg/s2"));
        };
        for first_ends_first in [true, false] {
            let mut first = send("one", "");
            let second = send("two", "--state-dir elsewhere");
            goes_on(&mut first);
            let (ends, mut stays) = match first_ends_first {
                true => (first, second),
                false => (second, first),
            };
            stop(ends);
            goes_on(&mut stays);
            stop(stays);
            let when = format!("the first one ends first: {first_ends_first}");
            bench.nothing_left(&when);
            assert_eq!(held_in(&bench.tool.path("elsewhere")), [""; 0], "{when}");
        }
        // One is killed with its guard: the other one sees to what it has left.
        let killed = send("one", "");
        for guard in processes("internal-guard") {
            kill_process(guard, Signal::KILL).unwrap();
        }
        kill_process(pid(&killed), Signal::KILL).unwrap();
        Run::of(killed);
        settle();
        guest.sh("rm -f *.partial");
        assert!(is_active("vg/s2"));
        bench
            .tool
            .run("send vg/s1 -o three --state-dir elsewhere")
            .ok();
        bench.nothing_left("killed");
    });
}

#[test]
fn what_somebody_else_uses_or_makes_theirs_stays_active() {
    let name = "what_somebody_else_uses_or_makes_theirs_stays_active";
    let limit = Duration::from_secs(240);
    let setup = setup().disk("160M").disk("20M").time_limit(limit);
    lab::test(name, setup, |guest| {
        make(guest);
        lvm(guest, "lvchange -qq -prw vg/s2");
        let bench = Bench::new(guest);
        let sending = || {
            let child = bench.tool.start("send vg/s2 -o delta --bwlimit 300k");
            wait_until("sending", || bench.tool.path("delta.partial").exists());
            child
        };
        let stop = |child: Child, words: &[&str]| {
            kill_process(pid(&child), Signal::INT).unwrap();
            Run::of(child).ends(130, words);
            settle();
        };
        let stays = "stays active: somebody else";
        // Open: it is ours still, and goes when it is closed.
        let child = sending();
        let open = fs::File::open("/dev/mapper/vg-s2").unwrap();
        stop(child, &[stays, "has it open", "blockdev --setrw"]);
        assert!(is_active("vg/s2") && held_in(&bench.state).len() == 1);
        drop(open);
        bench.tool.run("send vg/s1 -o other --overwrite").ok();
        bench.nothing_left("it was open");

        let is_theirs = |when: &str| {
            bench.tool.run("send vg/s2 -o other --overwrite").ok();
            assert!(is_active("vg/s2"), "{when}");
            assert_eq!(held_in(&bench.state), [""; 0], "{when}");
            lvm(guest, "lvchange -qq -an vg/s2");
            bench.next_run_is_right(when);
        };
        let child = sending();
        guest.sh("blockdev --setrw /dev/mapper/vg-s2");
        stop(child, &[stays, "made it writable"]);
        is_theirs("made writable");
        // A run that comes later sees it, too, and the one that had activated it hears of it.
        let child = sending();
        guest.sh("blockdev --setrw /dev/mapper/vg-s2");
        bench.tool.run("send vg/s2 -o other --overwrite").ok();
        stop(child, &[]);
        is_theirs("made writable, and read");

        // Left by a run that was killed with its guard, deactivated and activated by hand.
        let child = sending();
        for guard in processes("internal-guard") {
            kill_process(guard, Signal::KILL).unwrap();
        }
        kill_process(pid(&child), Signal::KILL).unwrap();
        Run::of(child);
        settle();
        guest.sh("rm -f *.partial");
        assert_eq!(held_in(&bench.state).len(), 1);
        lvm(guest, "lvchange -qq -an vg/s2; lvchange -qq -ay -K vg/s2");
        bench.tool.run("send vg/s1 -o other --overwrite").ok();
        is_theirs("active anew");

        // What LVM does with one that is active already leaves no trace; see docs/thin.md.
        let child = sending();
        lvm(guest, "lvchange -qq -ay -K vg/s2");
        let is_read_only = guest.sh("blockdev --getro /dev/mapper/vg-s2").trim() == "1";
        guest.announce(&format!(
            "lvchange -ay -K of what is active: still read-only: {is_read_only}"
        ));
        stop(child, &[]);
        assert_eq!(is_active("vg/s2"), !is_read_only);
    });
}

#[test]
fn a_power_cut_while_reserved_is_mended_by_the_next_run() {
    const STATE: &str = "/var/lib/lvmsync";
    let cuts = if long() { 5 } else { 1 };
    let setup = setup().disk("160M").disk("20M").disk("32M");
    Script::new(
        "a_power_cut_while_reserved_is_mended_by_the_next_run",
        setup,
    )
    .phase("make", |guest| {
        make(guest);
        guest.sh(&format!("mkfs.ext4 -q {}; sync", guest.disk(2).display()));
    })
    .phase("hold", |guest| {
        find_slow(guest);
        guest.sh(&format!(
            "vgchange -qq -ay vg 2>&1; mkdir -p {STATE}; mount {} {STATE}",
            guest.disk(2).display()
        ));
        let mut bench = Bench::new(guest);
        bench.state = STATE.into();
        bench.slow_metadata(300);
        let child = bench.tool.start(&format!("{DIFF} --state-dir {STATE}"));
        wait_until("reserved", || is_reserved(guest));
        wait_until("on record", || {
            let files = held_in(Path::new(STATE));
            // Not what is being written: a cut leaves that as it is.
            let whole = files.iter().filter(|name| name.ends_with(".json"));
            let texts = whole.map(|name| {
                fs::read_to_string(Path::new(STATE).join("held").join(name)).unwrap_or_default()
            });
            texts.filter(|text| text.contains("digest")).count() > 0
        });
        guest.announce("RESERVED NOW");
        Run::of(child);
        panic!("it was not cut");
    })
    .phase("mend", |guest| {
        find_slow(guest);
        guest.sh(&format!(
            "vgchange -qq -ay vg 2>&1; mkdir -p {STATE}; mount {} {STATE}",
            guest.disk(2).display()
        ));
        let left = held_root(guest, POOL);
        guest.announce(&format!(
            "after the cut: root {left}, {:?}",
            held_in(Path::new(STATE))
        ));
        let tool = Tool::new(guest);
        let run = tool.run(&format!("{DIFF} --state-dir {STATE}")).ok();
        if left != "-" {
            assert!(
                run.stderr.contains("a killed run has left"),
                "{}",
                run.stderr
            );
        }
        let mut bench = Bench::new(guest);
        bench.state = STATE.into();
        bench.nothing_left("after the cut");
        guest.sh(&format!("umount {STATE}; sync"));
        // The kernel writes it when the pool commits: a cut may take it back. Not in every boot.
        fs::write(guest.shared().join(format!("left-{left}")), "").unwrap();
    })
    .drive(|driver| {
        driver.run("make");
        for _ in 0..cuts {
            let mut guest = driver.boot("hold");
            driver.wait_for(&mut guest, "RESERVED NOW", Duration::from_secs(60));
            guest.cut().unwrap();
            driver.run("mend");
        }
        let directory = driver.machine().directory();
        assert!(
            !directory.join("left--").exists(),
            "nothing was left by a cut"
        );
    });
}
