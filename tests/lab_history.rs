//! Points in time of the targets of jobs: each one that is kept gives exactly the bytes of its moment, whatever was killed;
//! and after a way back nothing is sent before somebody says so.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and figures are told"
)]

mod lab_kit;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use lab::{Guest, Setup};
use lab_kit::thin::{self, lvm};
use lab_kit::{Random, Run, Tool, assert_same, content, long, lvmsync_processes, seed, write};
use lvmsync::job::grid::Grid;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const NEAR: &str = "/dev/there/near";

fn setup() -> Setup {
    lab_kit::setup()
        .disk("160M")
        .disk("96M")
        .time_limit(Duration::from_secs(if long() { 3000 } else { 240 }))
}

/// A job, and what its volume held when.
struct Bench<'a> {
    guest: &'a Guest,
    tool: Tool,
    random: Random,
    /// Of all contents that a snapshot may have been made of, the oldest first.
    contents: Vec<blake3::Hash>,
}

impl<'a> Bench<'a> {
    /// `vg/data` of 16 MiB, thin or thick; `there`, for its copies.
    fn new(guest: &'a Guest, is_thin: bool) -> Self {
        if is_thin {
            thin::group(guest, "vg", 0);
            thin::pool(guest, "vg/pool", 96, 64, "");
            lvm(guest, "lvcreate -qq -y -T -V 16M -n data vg/pool");
        } else {
            let disk = guest.disk(0).display().to_string();
            guest.sh(&format!("vgcreate -qq --yes -s 1M vg {disk}"));
            guest.volume("vg", "data", "16M");
        }
        let disk = guest.disk(1).display().to_string();
        guest.sh(&format!("vgcreate -qq --yes -s 1M there {disk}"));
        write("/dev/vg/data", &Random::new(3).bytes(3 << 20), MIB);
        let bench = Self {
            guest,
            tool: Tool::new(guest),
            random: Random::new(seed(guest)),
            contents: Vec::new(),
        };
        fs::create_dir_all(bench.tool.path("jobs.d")).unwrap();
        bench
    }

    fn put_job(&self, keys: &str, targets: &str) {
        let text = format!("source = \"vg/data\"\ninterval = \"1h\"\n{keys}\n{targets}");
        fs::write(self.tool.path("jobs.d").join("data.toml"), text).unwrap();
    }

    fn line(&self, words: &str) -> String {
        format!("{words} --jobs-dir {}", self.tool.path("jobs.d").display())
    }

    fn run(&self, words: &str) -> Run {
        self.tool.run(&self.line(words))
    }

    /// Some blocks, here and there, and often the same ones.
    fn change(&mut self) {
        for _ in 0..1 + self.random.below(6) {
            let at = self.random.below(60) * 0x4_0000 + self.random.below(8) * 1000;
            let length = 1 + usize::try_from(self.random.below(30_000)).unwrap();
            write("/dev/vg/data", &self.random.bytes(length), at);
        }
        self.contents.push(blake3::hash(&content("/dev/vg/data")));
    }

    /// What `lvmsync history` says of one target.
    fn history(&self, target: &str) -> Value {
        let run = self
            .run(&format!("history data --target {target} --json"))
            .ok();
        let rows: Value = serde_json::from_str(&run.stdout).unwrap();
        rows[0].clone()
    }

    fn times(&self, target: &str) -> Vec<i64> {
        let history = self.history(target);
        let points = history["points"].as_array().unwrap().iter();
        points.map(|point| point["at"].as_i64().unwrap()).collect()
    }

    /// How many undo files there are.
    fn undos(&self) -> usize {
        let history = self.history("there/near");
        let entries = fs::read_dir(history["directory"].as_str().unwrap()).unwrap();
        let is_undo = |entry: &fs::DirEntry| entry.path().extension() == Some("undo".as_ref());
        entries
            .filter(|entry| is_undo(entry.as_ref().unwrap()))
            .count()
    }

    /// Which of the contents a volume holds.
    fn number_of(&self, volume: &str) -> usize {
        let now = blake3::hash(&content(volume));
        let number = self.contents.iter().position(|content| *content == now);
        number.unwrap_or_else(|| panic!("{volume} holds nothing that there ever was"))
    }

    /// A point in time as a device, over the volume as it is now.
    fn shown(&self, target: &str, to: &str) -> Vec<u8> {
        self.run(&format!(
            "view data --target {target} --at {to} --device then"
        ))
        .ok();
        let shown = content("/dev/mapper/then");
        self.tool.run("view --stop then").ok();
        shown
    }

    /// Goes to every point in time, and to what was held before: the bytes have to be those of that moment, and later ones
    /// of later moments.
    fn visit_all(&mut self, target: &str, volume: &str) {
        let before = self.history(target)["holds_since"].as_i64().unwrap();
        let mut times = self.times(target);
        let mut found = BTreeMap::from([(before, self.number_of(volume))]);
        times.sort_by_key(|at| (at * 7919) % 101);
        for (number, at) in times.iter().enumerate() {
            let to = lvmsync::record::keeper::shown_time(*at);
            let held = content(volume);
            let is_near = !target.contains(':');
            let shown = (is_near && number < 2).then(|| self.shown(target, &to));
            self.run(&format!("rollback data --target {target} --to {to} -n"))
                .ok();
            assert_same(volume, &held, "-n writes nothing");
            self.run(&format!("rollback data --target {target} --to {to}"))
                .ok();
            assert_eq!(self.history(target)["holds_since"].as_i64(), Some(*at));
            found.insert(*at, self.number_of(volume));
            if let Some(shown) = shown {
                assert_same(volume, &shown, "as it was shown");
            }
        }
        let numbers: Vec<usize> = found.values().copied().collect();
        assert!(numbers.is_sorted(), "{found:?}");
        println!("points: {target}: {found:?}");
        let to = lvmsync::record::keeper::shown_time(before);
        let run = self
            .run(&format!("rollback data --target {target} --to {to}"))
            .ok();
        assert!(
            times.is_empty() || run.stderr.contains("they go on from there"),
            "{}",
            run.stderr
        );
        self.stays(target, volume, before);
    }

    /// What it holds is the newest of all: whatever time is asked for, it does not go back behind that.
    fn stays(&self, target: &str, volume: &str, holds: i64) {
        // Two runs in one second cannot be told apart by a time.
        if self.times(target).iter().any(|at| *at >= holds) {
            return;
        }
        let held = content(volume);
        let exactly = lvmsync::record::keeper::shown_time(holds);
        for time in [exactly.as_str(), "2999-01-01"] {
            self.run(&format!("rollback data --target {target} --to {time}"))
                .ends(5, &["holds that already", &exactly, "lvmsync history data"]);
            self.run(&format!(
                "view data --target {target} --at {time} --device then"
            ))
            .ends(5, &["holds that already", &exactly, "/dev/there/near"]);
        }
        assert_same(volume, &held, "it stays where it is");
        assert_eq!(self.history(target)["rolled_back"], false);
    }
}

fn rounds(name: &str, is_thin: bool) {
    lab::test(name, setup(), |guest| {
        let mut bench = Bench::new(guest, is_thin);
        let grid = "3x5s 4x15s";
        let deltas = bench.tool.path("deltas").display().to_string();
        bench.put_job(
            &format!("history = true\nkeep = \"{grid}\"\n{}", if is_thin { "" } else { "snapshot_size = \"4M\"\n" }),
            &format!("[[target]]\nto = \"there/near\"\ncreate = \"thick\"\n[[target]]\nto = \"{deltas}/\"\n"),
        );
        let parsed: Grid = grid.parse().unwrap();
        // What the planner says, after each run.
        let (mut kept, mut held) = (Vec::new(), 0);
        for round in 0..if long() { 40 } else { 5 } {
            bench.change();
            bench.run("replicate data").ok();
            assert_same(NEAR, &content("/dev/vg/data"), &format!("round {round}"));
            if held > 0 {
                kept.push(held);
                let mut keeps = parsed.keeps(&kept).into_iter();
                kept.retain(|_| keeps.next() == Some(true));
            }
            held = bench.history("there/near")["holds_since"].as_i64().unwrap();
            let expected: Vec<i64> = kept.iter().rev().copied().collect();
            assert_eq!(bench.times("there/near"), expected, "round {round}");
            // The first run has nothing to go back to.
            if round > 0 {
                assert_eq!(bench.undos(), kept.len(), "round {round}");
            }
        }
        // Everywhere, and back: then increments go on.
        bench.visit_all("there/near", NEAR);
        bench.change();
        bench.run("replicate data").ok();
        assert_same(NEAR, &content("/dev/vg/data"), "after all ways");
        // Put back, nothing is sent to it.
        let oldest = *bench.times("there/near").last().unwrap();
        let to = lvmsync::record::keeper::shown_time(oldest);
        bench
            .run(&format!("rollback data --target there/near --to {to}"))
            .ok();
        let there = content(NEAR);
        bench.change();
        bench
            .run("replicate data")
            .ends(5, &["was put back to", "replicate data --resume"]);
        assert_same(NEAR, &there, "nothing was sent");
        let status = bench.run("status").stdout;
        assert!(status.contains("was put back to"), "{status}");
        bench.run("replicate data --resume").ok();
        assert_same(NEAR, &content("/dev/vg/data"), "resumed");
        // Unless it was so slow that four later periods have points.
        let times = bench.times("there/near");
        let newest = *times.iter().max().unwrap();
        let is_old = newest / 15 - oldest / 15 >= 4;
        assert!(is_old || times.contains(&oldest), "{oldest}: {times:?}");
        bench.visit_all("there/near", NEAR);
        // The directory: what leads to each point makes a volume of that moment.
        let name = format!("{deltas}/");
        let history = bench.history(&name);
        let mut numbers = Vec::new();
        for (number, point) in history["points"].as_array().unwrap().iter().enumerate() {
            let files = point["files"].as_array().unwrap().iter();
            let files: Vec<String> = files
                .map(|file| format!("{deltas}/{}", file.as_str().unwrap()))
                .collect();
            let made = bench.tool.path(&format!("made{number}.img"));
            bench
                .tool
                .run(&format!("apply {} {}", files.join(" "), made.display()))
                .ok();
            numbers.push(bench.number_of(&made.display().to_string()));
            fs::remove_file(made).unwrap();
        }
        numbers.reverse();
        assert!(
            numbers.is_sorted() && numbers.last() == Some(&(bench.contents.len() - 1)),
            "{numbers:?}"
        );
        println!("deltas: {numbers:?}");
        bench
            .run(&format!("rollback data --target {name} --to 1"))
            .ends(5, &["collects deltas", "lvmsync apply"]);
        assert_eq!(
            guest
                .sh("lvs --noheadings -o lv_name vg")
                .lines()
                .filter(|row| row.contains("data-data"))
                .count(),
            1
        );
    });
}

#[test]
fn points_in_time_of_a_thin_volume() {
    rounds("points_in_time_of_a_thin_volume", true);
}

#[test]
fn points_in_time_of_a_thick_volume() {
    rounds("points_in_time_of_a_thick_volume", false);
}

#[test]
fn runs_folds_and_ways_back_that_are_killed_cost_no_point() {
    lab::test(
        "runs_folds_and_ways_back_that_are_killed_cost_no_point",
        // The ways back are in the guest's memory.
        setup().memory_mib(if long() { 3072 } else { 512 }),
        |guest| {
            let mut bench = Bench::new(guest, true);
            bench.put_job(
                "history = true\nkeep = \"1000x1s\"",
                "[[target]]\nto = \"there/near\"\ncreate = \"thick\"\n",
            );
            bench.change();
            bench.run("replicate data").ok();
            let mut killed = 0;
            for _ in 0..if long() { 60 } else { 4 } {
                bench.change();
                std::thread::sleep(Duration::from_millis(1100));
                let before = bench.times("there/near");
                let mut child = bench.tool.start(&bench.line("replicate data"));
                std::thread::sleep(Duration::from_millis(bench.random.below(3000)));
                killed += u32::from(kill(&mut child));
                drop(Run::of(child));
                wait_until_quiet();
                // Ways back are asked for by the second in which a state was taken.
                std::thread::sleep(Duration::from_millis(1100));
                bench.run("replicate data").ok();
                assert_same(NEAR, &content("/dev/vg/data"), "after a kill");
                let after = bench.times("there/near");
                assert!(
                    before.iter().all(|at| after.contains(at)),
                    "{before:?} {after:?}"
                );
                // A way back that is killed: asked for again it is done, and so is the one that comes back.
                let number = 1 + bench.random.below(after.len() as u64);
                let held = bench.history("there/near")["holds_since"].as_i64().unwrap();
                let to = |at: i64| {
                    format!(
                        "rollback data --to {}",
                        lvmsync::record::keeper::shown_time(at)
                    )
                };
                let at = after[usize::try_from(number).unwrap() - 1];
                let mut child = bench.tool.start(&bench.line(&to(at)));
                std::thread::sleep(Duration::from_millis(bench.random.below(900)));
                killed += u32::from(kill(&mut child));
                drop(Run::of(child));
                wait_until_quiet();
                if bench.history("there/near")["holds_since"].as_i64() != Some(at) {
                    let done = bench.run(&to(at));
                    // It may be there, and only this end was not told.
                    assert!(
                        done.code == Some(0) || done.stderr.contains("holds that already"),
                        "{}",
                        done.stderr
                    );
                }
                let came = bench.run(&to(held));
                assert!(
                    came.code == Some(0) || bench.number_of(NEAR) == bench.contents.len() - 1,
                    "{}",
                    came.stderr
                );
            }
            println!("killed: {killed}");
            bench.put_job(
                "history = true\nkeep = \"3x5s\"",
                "[[target]]\nto = \"there/near\"\ncreate = \"thick\"\n",
            );
            bench.change();
            let mut child = bench.tool.start(&bench.line("replicate data"));
            std::thread::sleep(Duration::from_millis(1500));
            kill(&mut child);
            drop(Run::of(child));
            wait_until_quiet();
            bench.run("replicate data").ok();
            bench.visit_all("there/near", NEAR);
        },
    );
}

/// The source's machine is set up anew: older points stay reachable.
#[test]
fn points_in_time_outlive_what_is_known_of_the_job_here() {
    let name = "points_in_time_outlive_what_is_known_of_the_job_here";
    lab::test(name, setup(), |guest| {
        let mut bench = Bench::new(guest, true);
        bench.put_job(
            "history = true\nkeep = \"1000x1s\"",
            "[[target]]\nto = \"there/near\"\ncreate = \"thick\"\n",
        );
        let rounds = |bench: &mut Bench<'_>, count: u32| {
            for _ in 0..count {
                bench.change();
                bench.run("replicate data").ok();
                std::thread::sleep(Duration::from_millis(1100));
            }
        };
        rounds(&mut bench, 3);
        let before = bench.times("there/near");
        assert_eq!(before.len(), 2);
        fs::remove_file(bench.tool.path("state/jobs/data.json")).unwrap();
        rounds(&mut bench, 2);
        let after = bench.times("there/near");
        assert!(before.iter().all(|at| after.contains(at)), "{after:?}");
        assert_eq!(after.len(), 4, "{after:?}");
        bench.visit_all("there/near", NEAR);
    });
}

/// False if it had ended.
fn kill(child: &mut std::process::Child) -> bool {
    if child.try_wait().unwrap().is_some() {
        return false;
    }
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).is_ok()
}

fn wait_until_quiet() {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lvmsync_processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", lvmsync_processes());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_far_target_goes_back_over_the_jobs_own_ssh() {
    lab::test(
        "a_far_target_goes_back_over_the_jobs_own_ssh",
        setup(),
        |guest| {
            let mut bench = Bench::new(guest, true);
            guest.host("far");
            let undo = bench.tool.path("undo").display().to_string();
            bench.put_job(
                &format!("history = \"{undo}\"\nkeep = \"100x1s\""),
                "[[target]]\nto = \"far:there/near\"\ncreate = \"thick\"\n",
            );
            for _ in 0..3 {
                bench.change();
                bench.run("replicate data").ok();
            }
            assert_eq!(bench.times("far:there/near").len(), 2);
            bench.visit_all("far:there/near", NEAR);
            // A second one that asks what nobody may ask.
            bench
                .run("rollback data --to 9")
                .ends(5, &["no such point"]);
            bench.run("rollback data --to 2").ok();
            bench.run("replicate data").ends(5, &["was put back"]);
            // That was a run like any other: the next one is due an interval later.
            let rows: Value =
                serde_json::from_str(&bench.run("status --json").ok().stdout).unwrap();
            assert_ne!(rows[0]["last_run"], rows[0]["last_success_run"], "{rows}");
            assert!(rows[0]["failed_at"].is_i64(), "{rows}");
            assert!(
                bench
                    .guest
                    .sh("lvs --noheadings -o lv_name vg")
                    .contains("data-data")
            );
        },
    );
}
