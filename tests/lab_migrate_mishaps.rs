//! Migrations to another host that are hit at any moment, the pause included: killed here and there, cut off, without power,
//! without room. Until the volume is handed over it stays here, takes writes, and loses nothing; the same command completes.
//!
//! `LVMSYNC_SEED` repeats the choices, not what the scheduler does.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and figures are told"
)]

mod lab_kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use lab::{Guest, Peer, Script};
use lab_kit::live::{self, Kind, LVS, kill, settle};
use lab_kit::thin::{held_in, held_root, lvm};
use lab_kit::{Random, Run, Tool, assert_same, content, long, seed, write};
use rustix::process::{Pid, Signal, kill_process};

const STATE: &str = "/var/lib/lvmsync";
const HERE: &str = "/var/lib/lvmsync/here";
const SIZE: usize = 8 << 20;

struct Bench<'a> {
    guest: &'a Guest,
    far: Peer<'a>,
    tool: Tool,
    kind: Kind,
    random: Random,
    /// What the service here has written.
    model: Vec<u8>,
    handed_over: u32,
}

impl<'a> Bench<'a> {
    fn start(guest: &'a Guest, kind: Kind) -> Self {
        if guest.shared().join("volumes").exists() {
            guest.sh("vgchange -qq -ay vg there 2>&1");
        } else {
            live::groups(guest, kind, &format!("{}M", SIZE >> 20));
            guest.volume("there", "keep", "16M");
            guest.sh("mkfs.ext4 -q -b 4096 -J size=4 /dev/there/keep");
            write("/dev/vg/data", &Random::new(3).bytes(SIZE), 0);
            fs::write(guest.shared().join("volumes"), guest.sh(LVS)).unwrap();
        }
        guest.sh(&format!(
            "mkdir -p {STATE}; mount /dev/there/keep {STATE}; mkdir -p {HERE}"
        ));
        let tool = Tool::new(guest);
        // Says that the service is stopped.
        let pause = tool.path("pause");
        fs::write(
            &pause,
            format!("#!/bin/sh\ntouch {}\n", tool.path("PAUSED").display()),
        )
        .unwrap();
        fs::set_permissions(&pause, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            guest,
            far: guest.host("far"),
            tool,
            kind,
            random: Random::new(seed(guest)),
            model: content("/dev/vg/data"),
            handed_over: 0,
        }
    }

    fn line(&self) -> String {
        format!(
            "migrate vg/data far:there/data --create=thick --state-dir {HERE} --pause-cmd {}",
            self.tool.path("pause").display()
        )
    }

    fn start_run(&self) -> Child {
        let _ = fs::remove_file(self.tool.path("PAUSED"));
        self.tool.start(&format!("{} --bwlimit 20M", self.line()))
    }

    /// Some moment of a run: anywhere in it, or in the pause.
    fn some_moment(&mut self, child: &mut Child) {
        if self.random.below(2) == 0 {
            std::thread::sleep(Duration::from_millis(200 + self.random.below(7000)));
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(300);
        while !self.tool.path("PAUSED").exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "no pause");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(self.random.below(2500)));
    }

    fn is_read_only(&self) -> bool {
        let found = self.guest.sh("lvs --noheadings -o lv_permissions vg/data");
        found.contains("read-only")
    }

    /// Who has the volume, by what is on record.
    fn is_handed_over(&self) -> bool {
        let files = fs::read_dir(format!("{HERE}/migrations"))
            .into_iter()
            .flatten();
        let texts = files.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
        texts
            .into_iter()
            .any(|text| text.contains("\"HandedOver\""))
    }

    /// The service goes on here, and what it writes counts.
    fn serve(&mut self) {
        let at = self.random.below((SIZE - 100_000) as u64);
        let bytes = self.random.bytes(60_000);
        write("/dev/vg/data", &bytes, at);
        let at = usize::try_from(at).unwrap();
        self.model[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    /// After a blow: it is here, whole, and takes writes; or it is there.
    fn look(&mut self, ended: &Run, when: &str) {
        settle();
        assert_same("/dev/vg/data", &self.model, when);
        if ended.code == Some(0) || self.is_handed_over() {
            assert_same("/dev/there/data", &self.model, when);
            self.handed_over += 1;
            return;
        }
        if self.is_read_only() {
            // Killed while it was being made safe: only that cannot give it back by itself.
            assert!(ended.code.is_none(), "{when}: {}", ended.stderr);
            if self.random.below(2) == 0 {
                return;
            }
            self.tool.run(&format!("{} --abort", self.line())).ok();
            let tags = self.guest.sh("lvs --noheadings -o lv_tags vg/data");
            assert!(!self.is_read_only() && tags.trim().is_empty(), "{when}");
        }
        self.serve();
    }

    /// The same command does it; then all begins anew.
    fn completes(&mut self, when: &str) {
        let run = self.tool.run(&self.line());
        if run.stderr.contains("it was moved away") {
            // The run that was hit had done it all.
            run.ends(5, &["--deltag lvmsync_migrated"]);
        } else {
            run.ok();
        }
        assert_same("/dev/there/data", &self.model, when);
        assert!(self.is_read_only(), "{when}");
        self.nothing_left(when);
        lvm(
            self.guest,
            "lvchange -qq -prw --deltag lvmsync_migrated vg/data",
        );
        self.serve();
    }

    #[track_caller]
    fn nothing_left(&self, when: &str) {
        settle();
        let volumes = fs::read_to_string(self.guest.shared().join("volumes")).unwrap();
        assert_eq!(self.guest.sh(LVS), volumes, "{when}");
        let left = fs::read_dir(format!("{HERE}/migrations")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{when}");
        for state in [STATE, HERE] {
            assert_eq!(held_in(Path::new(state)), [""; 0], "{when}");
        }
        if self.kind == Kind::Thin {
            assert_eq!(held_root(self.guest, "vg/pool"), "-", "{when}");
        }
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

fn hit(name: &str, kind: Kind) {
    let setup = lab_kit::setup()
        .disk("160M")
        .disk("64M")
        .time_limit(Duration::from_secs(if long() { 6000 } else { 180 }));
    lab::test(name, setup, |guest| {
        let mut bench = Bench::start(guest, kind);
        let times = if long() { 50 } else { 1 };
        let blows = match (long(), kind) {
            (true, _) => &["killed", "far end", "cable"][..],
            (false, Kind::Thick) => &["killed", "cable"],
            (false, Kind::Thin) => &["killed", "far end"],
        };
        for what in blows {
            let mut codes = Vec::new();
            for number in 0..times {
                let when = format!("{what}, number {number}");
                let mut child = bench.start_run();
                bench.some_moment(&mut child);
                match *what {
                    "killed" => kill(&child, Signal::KILL),
                    "far end" => kill_all("lvmsync serve"),
                    _ => {
                        bench.far.link_down();
                        std::thread::sleep(Duration::from_millis(bench.random.below(3000)));
                        bench.far.link_up();
                    }
                }
                let ended = Run::of(child);
                codes.push(ended.code);
                bench.look(&ended, &when);
                bench.completes(&when);
            }
            println!("migrate: {kind:?}: {what}: {codes:?}");
        }
        println!(
            "migrate: {kind:?}: done or handed over before: {}",
            bench.handed_over
        );
    });
}

#[test]
fn a_thick_volume_stays_whole_whatever_hits_its_migration() {
    hit(
        "a_thick_volume_stays_whole_whatever_hits_its_migration",
        Kind::Thick,
    );
}

#[test]
fn a_thin_volume_stays_whole_whatever_hits_its_migration() {
    hit(
        "a_thin_volume_stays_whole_whatever_hits_its_migration",
        Kind::Thin,
    );
}

#[test]
fn a_power_cut_in_a_migration_leaves_the_volume_here_or_there() {
    let name = "a_power_cut_in_a_migration_leaves_the_volume_here_or_there";
    let cuts = if long() { 30 } else { 1 };
    let setup = lab_kit::setup()
        .disk("160M")
        .disk("64M")
        .time_limit(Duration::from_secs(180));
    Script::new(name, setup)
        .phase("run", |guest| {
            let mut bench = Bench::start(guest, Kind::Thick);
            let (begun, model) = (guest.shared().join("begun"), guest.shared().join("model"));
            if begun.exists() {
                bench.model = fs::read(&model).unwrap();
                let when = "after a power cut";
                assert_same("/dev/vg/data", &bench.model, when);
                if bench.is_handed_over() {
                    assert_same("/dev/there/data", &bench.model, when);
                }
                bench.completes(when);
                fs::remove_file(&begun).unwrap();
            }
            let done = fs::read_to_string(guest.shared().join("cuts")).map_or(0, |text| text.len());
            if done >= cuts {
                return;
            }
            fs::write(guest.shared().join("cuts"), "x".repeat(done + 1)).unwrap();
            fs::write(&model, &bench.model).unwrap();
            fs::write(&begun, "").unwrap();
            let mut child = bench.start_run();
            bench.some_moment(&mut child);
            guest.announce("POWER");
            std::thread::sleep(Duration::from_secs(60));
            panic!("nobody cut the power");
        })
        .drive(|driver| {
            loop {
                let mut guest = driver.boot("run");
                if guest.wait_for("POWER", Duration::from_secs(180)).is_err() {
                    let outcome = guest.wait().unwrap();
                    driver.check("run", &outcome);
                    return;
                }
                guest.cut().unwrap();
            }
        });
}

/// When the volume is to be made there, and in the middle of the copy: the volume stays, and room is all it takes.
#[test]
fn a_far_side_without_room_leaves_the_volume_here() {
    let name = "a_far_side_without_room_leaves_the_volume_here";
    let setup = lab_kit::setup()
        .disk("160M")
        .disk("64M")
        .time_limit(Duration::from_secs(180));
    lab::test(name, setup, |guest| {
        let mut bench = Bench::start(guest, Kind::Thick);
        let thin = bench.line().replace("--create=thick", "--create=thin:pool");
        guest.sh(
            "lvcreate -qq -y --type thin-pool -L 6M -c 64k --poolmetadatasize 4M --poolmetadataspare n \
             -n pool there 2>&1; lvchange -qq --errorwhenfull y there/pool 2>&1; \
             lvcreate -qq -y -an -Zn -Wn -l 100%FREE -n full there 2>&1",
        );
        // Before anything is done, the service's volume is left alone.
        for options in ["-n", ""] {
            let line = format!("{} {options}", bench.line());
            bench
                .tool
                .run(&line)
                .ends(5, &["far: there/data", "it would be made", "free"]);
        }
        bench.tool.run(&format!("{} --abort", bench.line())).ok();
        bench.nothing_left("no room for it");
        let ended = bench.tool.run(&thin);
        assert!(ended.code != Some(0), "{}", ended.stderr);
        println!(
            "migrate: a pool that is full: {:?}: {}",
            ended.code, ended.stderr
        );
        bench.look(&ended, "a pool that is full");
        guest.sh("lvremove -qq -y there/full; lvextend -qq -L +14M there/pool 2>&1");
        bench.tool.run(&thin).ok();
        assert_same("/dev/there/data", &bench.model, "with room");
        bench.nothing_left("with room");
    });
}
