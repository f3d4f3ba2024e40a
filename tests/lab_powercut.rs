//! The power goes, processes die and cables are pulled, at any moment of a send between two hosts with real LVM.
//!
//! Whatever the moment: the record at the destination tells the truth, and the same command then completes, or the
//! undo brings back the base. `LVMSYNC_SEED` repeats a run as far as time lets it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Child;
use std::time::{Duration, Instant};

use lab::{Guest, Peer, Script};
use lab_kit::two_rounds::truth;
use lab_kit::{
    Random, Run, Tool, content, long, lvmsync_processes, seed, setup, write, wrong_blocks,
};
use rustix::process::{Pid, Signal, kill_process};

/// Mounted from a disk of the lab, before the far host is there: it sees it, too.
const STATE: &str = "/var/lib/lvmsync";
const SEEN: &str = "--state-dir /var/lib/lvmsync";
const DESTINATION: &str = "there/copy";

/// Size of the volume in MiB; with full counts enough for two rounds of saving and writing.
fn size() -> usize {
    if long() { 20 } else { 8 }
}

/// Both hosts' disks; `s1` and `s2` here, `copy` holds `s1` over there and that is on record.
fn make(guest: &Guest) {
    let mut random = Random::new(23);
    guest.volume_group("vg", 0);
    guest.sh(&format!(
        "vgcreate -qq --yes -s 1M there {}",
        guest.disk(1).display()
    ));
    let mebibytes = format!("{}M", size());
    guest.volume("vg", "data", &mebibytes);
    guest.volume("there", "copy", &mebibytes);
    guest.volume("there", "keep", "48M");
    guest.sh("mkfs.ext4 -q -b 4096 -J size=4 /dev/there/keep");
    write("/dev/vg/data", &random.bytes(size() << 20), 0);
    guest.sh("lvcreate -qq -s -pr -c 64k -L 24M -n s1 vg/data 2>&1");
    // All but a mebibyte, which is there to be sampled.
    write("/dev/vg/data", &random.bytes((size() - 1) << 20), 0);
    guest.sh("lvcreate -qq -s -pr -c 64k -L 24M -n s2 vg/data 2>&1");
}

/// Both ends, after they were started.
struct Ends<'a> {
    guest: &'a Guest,
    far: Peer<'a>,
    tool: Tool,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl<'a> Ends<'a> {
    fn start(guest: &'a Guest) -> Self {
        guest.sh(&format!(
            "vgchange -qq -ay vg there 2>&1; mkdir -p {STATE}; mount /dev/there/keep {STATE}"
        ));
        Self {
            guest,
            far: guest.host("far"),
            tool: Tool::new(guest),
            old: content("/dev/vg/s1"),
            new: content("/dev/vg/s2"),
        }
    }

    fn truth(&self, when: &str) -> String {
        truth(&self.tool, DESTINATION, SEEN, (&self.old, &self.new), when)
    }

    /// What the record says, as the command that leads on: from one state to the other, or out of an incomplete one.
    fn next(&self, random: &mut Random) -> String {
        let shown = self
            .tool
            .run(&format!("state show {DESTINATION} --json {SEEN}"))
            .ok()
            .stdout;
        let records: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let record = &records[0];
        let ends_with = |value: &serde_json::Value, name: &str| {
            value.as_str().is_some_and(|text| text.ends_with(name))
        };
        let undo = format!("{STATE}/undo");
        let cut = &record["incomplete"];
        if cut.is_object() {
            if !cut["undo_of"].is_null() {
                return format!("apply {undo} {DESTINATION} {SEEN}");
            }
            if ends_with(&cut["target"]["name"], "s1") {
                return format!("send vg/s1 far:{DESTINATION}");
            }
            let kept = cut["undo"].is_string();
            if kept && random.below(2) == 0 {
                return format!("apply {undo} {DESTINATION} {SEEN}");
            }
            // The same options as the run that was cut: it may have replaced an older undo, or not come to that.
            let undo = if kept {
                format!("--undo {undo} --overwrite")
            } else {
                String::new()
            };
            return format!("send --from vg/s1 vg/s2 far:{DESTINATION} {undo}");
        }
        if ends_with(&record["holds"]["name"], "s1") {
            let undo = if random.below(2) == 0 {
                format!("--undo {undo} --overwrite")
            } else {
                String::new()
            };
            return format!("send --from vg/s1 vg/s2 far:{DESTINATION} {undo}");
        }
        if record["undo"].is_string() {
            return format!("apply {undo} {DESTINATION} {SEEN}");
        }
        format!("send vg/s1 far:{DESTINATION}")
    }

    /// Runs the next command to its end, which must be a good one.
    fn goes_on(&self, random: &mut Random) -> String {
        let line = self.next(random);
        self.guest.announce(&format!("RUN {line}"));
        let run = self.tool.run(&line).ok();
        let when = format!("after {line}\n{}", run.stderr);
        assert_eq!(self.truth(&when), "complete", "{when}");
        line
    }
}

#[test]
fn a_power_cut_leaves_the_truth_and_a_way() {
    let cuts = if long() { 50 } else { 2 };
    let limit = Duration::from_secs(300);
    let setup = setup()
        .disk("96M")
        .disk("80M")
        .memory_mib(768)
        .time_limit(limit);
    Script::new("a_power_cut_leaves_the_truth_and_a_way", setup)
        .phase("make", |guest| {
            make(guest);
            let ends = Ends::start(guest);
            assert_eq!(
                wrong_blocks(&content("/dev/there/copy"), &ends.new).min(1),
                1
            );
            ends.tool.run(&format!("send vg/s1 far:{DESTINATION}")).ok();
            fs::write(guest.shared().join("old"), &ends.old).unwrap();
            fs::write(guest.shared().join("new"), &ends.new).unwrap();
            guest.sh("sync");
        })
        .phase("run", |guest| {
            let ends = Ends::start(guest);
            // The snapshots came through the cut.
            for (name, expected) in [("old", &ends.old), ("new", &ends.new)] {
                let there = fs::read(guest.shared().join(name)).unwrap();
                assert_eq!(
                    wrong_blocks(expected, &there),
                    0,
                    "the snapshot of the {name} state"
                );
            }
            let status = ends.truth("after the cut");
            let mut random = Random::new(seed(guest));
            guest.announce(&format!("TRUE: {status}"));
            let mut other = Random::new(random.below(u64::MAX));
            let runs = other.below(3);
            std::thread::spawn(move || {
                for _ in 0..=runs {
                    some_moment(&mut other, || false);
                }
                let _ = say("NOW");
            });
            for _ in 0..1000 {
                ends.goes_on(&mut random);
            }
        })
        .drive(|driver| {
            driver.run("make");
            let boot = |driver: &mut lab::Driver<'_>| {
                let mut guest = driver.boot("run");
                driver.wait_for(&mut guest, "TRUE: ", Duration::from_secs(60));
                guest
            };
            for number in 0..cuts {
                let mut guest = boot(driver);
                // A guest whose promise was broken ends by itself: its console says how.
                if guest.wait_for("NOW", Duration::from_secs(240)).is_err() {
                    let outcome = guest.wait().unwrap();
                    driver.check("run", &outcome);
                    panic!("it ended well, and was not cut");
                }
                guest.cut().unwrap();
                let _ = say(&format!("power cut {number}"));
            }
            // And after the last one.
            boot(driver).cut().unwrap();
        });
}

/// To the test's output.
fn say(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    std::writeln!(std::io::stderr(), "{text}")
}

/// Sectors that were written to a device.
fn written(device: &str) -> u64 {
    let number = fs::metadata(device).unwrap().rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap();
    stat.split_whitespace().nth(6).unwrap().parse().unwrap()
}

/// Waits for a moment in the middle, however slow the machine is today: until so much is written to the destination,
/// or beside the records and undos, or it is `over`.
fn some_moment(random: &mut Random, mut over: impl FnMut() -> bool) {
    let all = (size() as u64) << 11;
    let (device, sectors) = match random.below(4) {
        0 => ("/dev/there/keep", random.below(64)),
        1 => ("/dev/there/keep", random.below(all)),
        _ => ("/dev/there/copy", random.below(all)),
    };
    let enough = written(device) + sectors;
    let deadline = Instant::now() + Duration::from_secs(60);
    while written(device) < enough && !over() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ids of the processes of one command line.
fn processes(part: &str) -> Vec<Pid> {
    let is_wanted = |directory: &fs::DirEntry| {
        let line = fs::read(directory.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .contains(part)
    };
    let found = fs::read_dir("/proc")
        .unwrap()
        .map(Result::unwrap)
        .filter(is_wanted);
    found
        .filter_map(|directory| {
            Pid::from_raw(directory.file_name().to_string_lossy().parse().ok()?)
        })
        .collect()
}

fn kill_all(part: &str, signal: Signal) {
    for pid in processes(part) {
        // It may have ended by now.
        let _ = kill_process(pid, signal);
    }
}

#[test]
fn killed_processes_and_pulled_cables_leave_the_truth_and_a_way() {
    let limit = Duration::from_secs(if long() { 3000 } else { 400 });
    let setup = setup()
        .disk("96M")
        .disk("80M")
        .memory_mib(768)
        .time_limit(limit);
    let name = "killed_processes_and_pulled_cables_leave_the_truth_and_a_way";
    lab::test(name, setup, |guest| {
        make(guest);
        let ends = Ends::start(guest);
        ends.tool.run(&format!("send vg/s1 far:{DESTINATION}")).ok();
        let mut random = Random::new(seed(guest));
        let times = if long() { 20 } else { 1 };
        for what in ["sender", "receiver", "ssh", "stopped", "cable"] {
            let mut codes = Vec::new();
            for number in 0..times {
                let when = format!("{what}, number {number}");
                // From the first state, and as often with an undo as without.
                while !ends.next(&mut random).contains("--from") {
                    ends.goes_on(&mut random);
                }
                let line = ends.next(&mut random);
                let mut child = ends.tool.start(&line);
                some_moment(&mut random, || child.try_wait().unwrap().is_some());
                disturb(what, &child, &ends.far);
                let run = Run::of(child);
                codes.push(run.code);
                settle();
                let status = ends.truth(&format!("{when}: {line}\n{}", run.stderr));
                if run.code == Some(0) {
                    let found = content("/dev/there/copy");
                    assert_eq!(
                        wrong_blocks(&found, &ends.new),
                        0,
                        "{when}: success, and it is not"
                    );
                } else {
                    // A connection that was there and comes back is made again; one that was lost before the far end
                    // knew what was wanted is not.
                    let found = content("/dev/there/copy");
                    let early = status == "complete" && wrong_blocks(&found, &ends.old) == 0;
                    assert!(
                        early || ["sender", "stopped"].contains(&what),
                        "{when}: {status}\n{}",
                        run.stderr
                    );
                }
                ends.goes_on(&mut random);
            }
            guest.announce(&format!("{what}: {codes:?}"));
        }
    });
}

fn disturb(what: &str, child: &Child, far: &Peer<'_>) {
    let sender = Pid::from_raw(child.id().cast_signed()).unwrap();
    match what {
        "sender" => drop(kill_process(sender, Signal::KILL)),
        "stopped" => drop(kill_process(sender, Signal::TERM)),
        "receiver" => kill_all("lvmsync serve", Signal::KILL),
        "ssh" => kill_all("ssh far ", Signal::KILL),
        "cable" => {
            far.link_down();
            std::thread::sleep(Duration::from_secs(2));
            far.link_up();
        }
        other => panic!("{other}"),
    }
}

/// Waits until nobody writes any more.
fn settle() {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !lvmsync_processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", lvmsync_processes());
        std::thread::sleep(Duration::from_millis(50));
    }
}
