//! A job between two hosts, under a service that writes on: whatever is killed, cut, pulled, made larger, filled or removed,
//! the same command brings the target to what the snapshot held that was sent, and in the end nothing lies about.
//!
//! Each kind of mishap happens once in a random order, and then at random; `LVMSYNC_SEED` repeats that.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and figures are told"
)]

mod lab_kit;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::{Guest, Peer, Script};
use lab_kit::live::{self, Kind, LVS, MIB, StopAtEnd, bases, kill, settle};
use lab_kit::thin::{held_in, held_root, lvm};
use lab_kit::{Random, Run, Tool, assert_same, content, long, seed, write};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Of the far host, on a disk of the lab, so that it outlives a power cut.
const STATE: &str = "/var/lib/lvmsync";
/// Of this one, beside.
const HERE: &str = "/var/lib/lvmsync/here";
const TARGET: &str = "/dev/there/far";

/// What becomes of the volumes before a run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    /// The source is made larger.
    Extended,
    /// The base is removed by hand.
    Removed,
    /// The base overflows; only a thick one does.
    Overflowed,
}

/// What happens to a run; the same command follows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    Killed,
    FarKilled,
    Cable,
    PowerCut,
    Nothing,
}

const BEFORE: [Before; 4] = [
    Before::Nothing,
    Before::Extended,
    Before::Removed,
    Before::Overflowed,
];
const BLOWS: [Blow; 5] = [
    Blow::Killed,
    Blow::FarKilled,
    Blow::Cable,
    Blow::PowerCut,
    Blow::Nothing,
];

/// One of each in a random order, and then any, `count` in all. The first round makes the target.
fn plan(random: &mut Random, kind: Kind, count: usize) -> Vec<(Before, Blow)> {
    let befores = &BEFORE[..if kind == Kind::Thick { 4 } else { 3 }];
    let mut blows = BLOWS[..4].to_vec();
    shuffle(random, &mut blows);
    let mut first = befores[1..].to_vec();
    shuffle(random, &mut first);
    first.insert(0, Before::Nothing);
    first.resize(blows.len(), Before::Nothing);
    let mut plan: Vec<_> = first.into_iter().zip(blows).collect();
    let mut any = |limit: usize| usize::try_from(random.below(limit as u64)).unwrap();
    while plan.len() < count {
        plan.push((befores[any(befores.len())], BLOWS[any(BLOWS.len())]));
    }
    plan
}

fn shuffle<T>(random: &mut Random, list: &mut [T]) {
    for last in (1..list.len()).rev() {
        list.swap(
            last,
            usize::try_from(random.below(last as u64 + 1)).unwrap(),
        );
    }
}

/// `vg/data` of 16 MiB here, and what is kept over a power cut.
fn make(guest: &Guest, kind: Kind) {
    live::groups(guest, kind, "16M");
    guest.volume("there", "keep", "24M");
    guest.sh("mkfs.ext4 -q -b 4096 -J size=4 /dev/there/keep");
    write("/dev/vg/data", &Random::new(3).bytes(6 << 20), 1 << 20);
    fs::write(guest.shared().join("volumes"), guest.sh(LVS)).unwrap();
}

struct Bench<'a> {
    guest: &'a Guest,
    kind: Kind,
    far: Peer<'a>,
    tool: Tool,
    random: Random,
}

/// Held while nobody may have the volume open.
static PAUSE: Mutex<()> = Mutex::new(());

/// Writes to always the same few places, so that it fills no snapshot.
fn serve(stop: &AtomicBool) {
    let mut random = Random::new(77);
    while !stop.load(Ordering::Relaxed) {
        {
            let _runs = PAUSE.lock().unwrap();
            let at = random.below(200) * 4096;
            write("/dev/vg/data", &random.bytes(4096), at);
        }
        std::thread::sleep(Duration::from_millis(60));
    }
}

impl<'a> Bench<'a> {
    fn start(guest: &'a Guest, kind: Kind) -> Self {
        if guest.shared().join("volumes").exists() {
            guest.sh("vgchange -qq -ay vg there 2>&1");
        } else {
            make(guest, kind);
        }
        guest.sh(&format!(
            "mkdir -p {STATE}; mount /dev/there/keep {STATE}; mkdir -p {HERE}"
        ));
        let bench = Self {
            guest,
            kind,
            far: guest.host("far"),
            tool: Tool::new(guest),
            random: Random::new(seed(guest)),
        };
        fs::create_dir_all(bench.tool.path("jobs.d")).unwrap();
        let size = if kind == Kind::Thick {
            "snapshot_size = \"4M\""
        } else {
            ""
        };
        let text = format!(
            "source = \"vg/data\"\ninterval = \"1h\"\n{size}\n[[target]]\nto = \"far:there/far\"\ncreate = \"thick\"\n"
        );
        fs::write(bench.tool.path("jobs.d/data.toml"), text).unwrap();
        bench
    }

    fn line(&self, words: &str) -> String {
        let jobs = self.tool.path("jobs.d");
        format!("{words} --state-dir {HERE} --jobs-dir {}", jobs.display())
    }

    /// Some blocks, here and there.
    fn change(&mut self) {
        for _ in 0..1 + self.random.below(8) {
            let at = self.random.below(15 * MIB as u64);
            let length = 1 + usize::try_from(self.random.below(60_000)).unwrap();
            write("/dev/vg/data", &self.random.bytes(length), at);
        }
    }

    fn base(&self) -> Option<String> {
        bases(self.guest).into_iter().next()
    }

    /// A run to which something happens in the middle; it may have ended before.
    fn disturbed(&mut self, blow: Blow) -> Run {
        let child = self.tool.start(&self.line("replicate data"));
        std::thread::sleep(Duration::from_millis(self.random.below(2500)));
        match blow {
            Blow::Nothing => {}
            Blow::Killed => kill(&child, Signal::KILL),
            Blow::FarKilled => kill_all("lvmsync serve"),
            Blow::PowerCut => {
                self.guest.announce("POWER");
                std::thread::sleep(Duration::from_secs(60));
                panic!("nobody cut the power");
            }
            Blow::Cable => {
                self.far.link_down();
                let most = if long() { 20_000 } else { 3000 };
                std::thread::sleep(Duration::from_millis(self.random.below(most)));
                self.far.link_up();
            }
        }
        let run = Run::of(child);
        settle();
        run
    }

    /// The source grows: what the job says then is enough to go on.
    fn extend(&self) {
        {
            let _held = PAUSE.lock().unwrap();
            // LVM makes an origin larger only while it is not active.
            let switch = |to: &str| match self.kind {
                Kind::Thick => format!("lvchange -qq -a{to} vg/data 2>&1"),
                Kind::Thin => "true".to_owned(),
            };
            self.guest.sh(&format!(
                "{}; lvextend -qq -L +1M vg/data 2>&1; {}",
                switch("n"),
                switch("y")
            ));
        }
        let run = self.tool.run(&self.line("replicate data"));
        if run.code == Some(0) {
            panic!("the target is too small: {}", run.stderr);
        }
        run.ends(5, &["there/far: the destination has", "Make it larger"]);
        self.guest.sh("lvextend -qq -L +1M there/far 2>&1");
    }

    fn before(&mut self, before: Before) {
        self.change();
        match before {
            Before::Nothing => {}
            Before::Extended => self.extend(),
            Before::Removed => {
                if let Some(base) = self.base() {
                    lvm(self.guest, &format!("lvremove -qq -y vg/{base}"));
                }
            }
            Before::Overflowed => {
                write("/dev/vg/data", &self.random.bytes(9 << 20), 2 << 20);
                let status = self.guest.sh("dmsetup status --target snapshot");
                assert!(status.contains("Invalid"), "{status}");
            }
        }
    }

    fn round(&mut self, number: usize, (before, blow): (Before, Blow)) {
        let when = format!("round {number}, {before:?}, {blow:?}");
        self.before(before);
        let first = self.disturbed(blow);
        self.guest.announce(&format!("{when}: {:?}", first.code));
        let second = self.finish(&when);
        if matches!(before, Before::Removed | Before::Overflowed) {
            let said = format!("{}{}", first.stderr, second.stderr);
            assert!(said.contains(" compared"), "{when}: it says so: {said}");
        }
    }

    /// What is left of a round whose blow was dealt: the same command, which has to do it.
    fn finish(&mut self, when: &str) -> Run {
        self.change();
        let run = self.tool.run(&self.line("replicate data")).ok();
        let found = bases(self.guest);
        assert_eq!(found.len(), 1, "{when}: {found:?}\n{}", run.stderr);
        self.is_as_sent(&found[0], when);
        run
    }

    /// It follows, and says so.
    fn is_in_time(&self) {
        let status = self.tool.run(&self.line("status --json")).ok();
        let rows: Value = serde_json::from_str(&status.stdout).unwrap();
        let row = &rows[0];
        assert!(row["error"].is_null() && row["late"] == false, "{rows}");
        assert!(row["lag_seconds"].as_i64().unwrap() < 60, "{rows}");
    }

    fn is_as_sent(&self, snapshot: &str, when: &str) {
        let is_thin = self.kind == Kind::Thin;
        if is_thin {
            lvm(self.guest, &format!("lvchange -qq -K -ay vg/{snapshot}"));
        }
        assert_same(TARGET, &content(format!("/dev/vg/{snapshot}")), when);
        if is_thin {
            lvm(self.guest, &format!("lvchange -qq -an vg/{snapshot}"));
        }
    }

    fn nothing_left(&self) {
        settle();
        self.is_in_time();
        for state in [STATE, HERE] {
            assert_eq!(held_in(Path::new(state)), [""; 0]);
        }
        let partial = self.guest.sh(&format!("find {STATE} -name '*partial*'"));
        assert_eq!(partial, "");
        if self.kind == Kind::Thin {
            assert_eq!(held_root(self.guest, "vg/pool"), "-");
        }
        let shown = self
            .tool
            .run(&format!("state show there/far --json --state-dir {STATE}"))
            .ok();
        let records: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(records[0]["status"], "complete", "{records}");
        lvm(
            self.guest,
            "lvremove -qq -y --select 'lv_tags={lvmsync_of_job_data}' vg",
        );
        let volumes = fs::read_to_string(self.guest.shared().join("volumes")).unwrap();
        assert_eq!(self.guest.sh(LVS), volumes);
    }
}

fn kill_all(part: &str) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let pid = entry.file_name().to_string_lossy().parse().ok();
        if let Some(pid) = pid.and_then(Pid::from_raw).filter(|_| line.contains(part)) {
            // It may have ended by now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn mishaps(name: &str, kind: Kind) {
    let setup = lab_kit::setup()
        .disk("224M")
        .disk("128M")
        .time_limit(Duration::from_secs(if long() { 3000 } else { 180 }));
    Script::new(name, setup)
        .phase("run", |guest| {
            let mut bench = Bench::start(guest, kind);
            let (seed, next) = (guest.shared().join("seed"), guest.shared().join("next"));
            if !seed.exists() {
                fs::write(&seed, bench.random.below(1 << 40).to_string()).unwrap();
            }
            let number =
                |path: &Path| -> Option<u64> { fs::read_to_string(path).ok()?.parse().ok() };
            let mut random = Random::new(number(&seed).unwrap());
            let plan = plan(&mut random, kind, if long() { 100 } else { 0 });
            let first = usize::try_from(number(&next).unwrap_or(0)).unwrap();
            for (round, both) in plan.iter().copied().enumerate().skip(first) {
                let cut = guest.shared().join(format!("cut{round}"));
                let was_cut = cut.exists();
                if both.1 == Blow::PowerCut {
                    fs::write(&cut, "").unwrap();
                }
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let _stop = StopAtEnd(&stop);
                    scope.spawn(|| serve(&stop));
                    if was_cut {
                        bench.finish(&format!("round {round}, after the power cut, {both:?}"));
                    } else {
                        bench.round(round, both);
                    }
                });
                fs::write(&next, (round + 1).to_string()).unwrap();
            }
            bench.nothing_left();
            println!("replicate: {kind:?}: {} rounds: {plan:?}", plan.len());
        })
        .drive(|driver| {
            loop {
                let mut guest = driver.boot("run");
                let limit = Duration::from_secs(if long() { 3000 } else { 180 });
                if guest.wait_for("POWER", limit).is_err() {
                    let outcome = guest.wait().unwrap();
                    driver.check("run", &outcome);
                    return;
                }
                guest.cut().unwrap();
            }
        });
}

#[test]
fn a_thick_volume_is_followed_through_every_mishap() {
    mishaps(
        "a_thick_volume_is_followed_through_every_mishap",
        Kind::Thick,
    );
}

#[test]
fn a_thin_volume_is_followed_through_every_mishap() {
    mishaps("a_thin_volume_is_followed_through_every_mishap", Kind::Thin);
}
