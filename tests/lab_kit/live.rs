//! What the lab tests of live volumes share: a volume that somebody writes to, and what a run may have left of the snapshot
//! that it was read from.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::{Guest, Setup};
use rustix::process::{Pid, Signal, kill_process};

use super::thin::{self, held_in, lvm};
use super::{Tool, lvmsync_processes, open_count};

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const LVS: &str = "lvs --noheadings -o lv_name vg";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Thick,
    Thin,
}

pub(crate) fn setup() -> Setup {
    super::setup().disk("160M").disk("64M")
}

/// `vg/data` of 24 MiB, and `there/copy`.
pub(crate) fn make(guest: &Guest, kind: Kind) {
    groups(guest, kind, "24M");
    guest.volume("there", "copy", "24M");
}

/// `vg/data` of this size; `there`, for copies.
pub(crate) fn groups(guest: &Guest, kind: Kind, size: &str) {
    match kind {
        Kind::Thick => {
            guest.sh(&format!(
                "vgcreate -qq --yes -s 1M vg {}",
                guest.disk(0).display()
            ));
            guest.volume("vg", "data", size);
        }
        Kind::Thin => {
            thin::group(guest, "vg", 0);
            thin::pool(guest, "vg/pool", 96, 64, "");
            lvm(
                guest,
                &format!("lvcreate -qq -y -T -V {size} -n data vg/pool"),
            );
        }
    }
    guest.sh(&format!(
        "vgcreate -qq --yes -s 1M there {}",
        guest.disk(1).display()
    ));
}

pub(crate) struct Bench<'a> {
    guest: &'a Guest,
    pub(crate) tool: Tool,
    /// What is in the group without a snapshot that somebody forgot.
    volumes: String,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(guest: &'a Guest) -> Self {
        Self {
            guest,
            tool: Tool::new(guest),
            volumes: guest.sh(LVS),
        }
    }

    /// No process, record, lock or snapshot.
    #[track_caller]
    pub(crate) fn nothing_left(&self, when: &str) {
        settle();
        assert_eq!(self.guest.sh(LVS), self.volumes, "{when}");
        self.nothing_on_record(when);
    }

    /// Of all volumes of the group this one alone is on record.
    #[track_caller]
    pub(crate) fn only_record_of(&self, volume: &str, when: &str) {
        let shown = self.tool.run("state show --json").ok().stdout;
        let records: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let names = records.as_array().unwrap().iter();
        let names: Vec<&str> = names
            .map(|record| record["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, [volume], "{when}");
    }

    #[track_caller]
    pub(crate) fn nothing_on_record(&self, when: &str) {
        assert_eq!(held_in(&self.tool.path("state")), [""; 0], "{when}");
        // The far end's own.
        assert_eq!(held_in(Path::new("/var/lib/lvmsync")), [""; 0], "{when}");
        let locks = fs::read_dir("/run/lvmsync").into_iter().flatten();
        let locks = locks.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = locks.filter(|name| name.contains("snapshot")).collect();
        assert_eq!(left, [""; 0], "{when}");
    }

    /// Starts a sync that takes its time, and waits until it reads the snapshot.
    pub(crate) fn reading(&self, options: &str) -> Child {
        let pace = match options.contains("--bwlimit") {
            true => "",
            false => "--bwlimit 1M",
        };
        self.reading_from("vg/data", &format!("{pace} {options}"))
    }

    /// The same, as `source` is called.
    pub(crate) fn reading_from(&self, source: &str, options: &str) -> Child {
        let mut child = self
            .tool
            .start(&format!("sync {source} there/copy {options}"));
        wait_until("it reads a snapshot", || {
            let ended = child.try_wait().unwrap().is_some();
            assert!(!ended || temporary().is_some(), "it ended");
            // It opens the destination when it knows what to read: until then it may hold the pool's metadata snapshot.
            temporary().is_some_and(|name| open_count(self.guest, &name) != "0")
                && open_count(self.guest, "there-copy") != "0"
        });
        child
    }
}

/// The snapshots that jobs and migrations keep in `vg`.
pub(crate) fn bases(guest: &Guest) -> Vec<String> {
    let rows = guest.sh("lvs --noheadings -o lv_name,lv_tags vg");
    rows.lines()
        .filter(|row| row.contains("lvmsync_base"))
        .map(|row| row.split_whitespace().next().unwrap().to_owned())
        .collect()
}

/// The device of a temporary snapshot.
pub(crate) fn temporary() -> Option<String> {
    let devices = fs::read_dir("/sys/block").unwrap();
    devices
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("dm/name")).ok())
        .map(|name| name.trim().to_owned())
        .find(|name| name.starts_with("vg-data--lvmsync--") && !name.ends_with("-cow"))
}

/// The name of the volume with this device.
pub(crate) fn volume_of(device: &str) -> String {
    format!("vg/{}", device["vg-".len()..].replace("--", "-"))
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until no lvmsync, guard or command of LVM is at work any more.
pub(crate) fn settle() {
    wait_until("all is quiet", || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let names = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
        let lvm = [
            "lvcreate",
            "lvconvert",
            "lvremove",
            "lvchange",
            "lvs",
            "vgs",
        ];
        let at_work = names.into_iter().any(|name| lvm.contains(&name.trim()));
        !at_work && lvmsync_processes().is_empty()
    });
}

pub(crate) fn kill(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

pub(crate) fn kill_guards() {
    for line in lvmsync_processes() {
        if line.contains("internal-guard") {
            let id = line.split([':', '/']).nth(2).unwrap().parse().unwrap();
            let _ = kill_process(Pid::from_raw(id).unwrap(), Signal::KILL);
        }
    }
}

/// Two files of a mounted filesystem that are written in turn: at any moment `a` is as far as `b`, or one ahead.
pub(crate) struct Writer<'a> {
    pub(crate) directory: &'a Path,
    pub(crate) stop: AtomicBool,
    pub(crate) rounds: AtomicU64,
}

impl Writer<'_> {
    pub(crate) fn run(&self) {
        let put = |name: &str, round: u64| {
            let path = self.directory.join(name);
            let temporary = self.directory.join(format!("{name}.new"));
            let mut file = File::create(&temporary).unwrap();
            write!(file, "{round} {}", "x".repeat(20_000)).unwrap();
            file.sync_all().unwrap();
            fs::rename(temporary, path).unwrap();
        };
        for round in 1.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            put("a", round);
            put("b", round);
            self.rounds.store(round, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn wait_for_more(&self) {
        let until = self.rounds.load(Ordering::Relaxed) + 5;
        wait_until("more is written", || {
            self.rounds.load(Ordering::Relaxed) >= until
        });
    }
}

pub(crate) struct StopAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The copy is a sound filesystem, without a look into its journal, and of one moment.
#[track_caller]
pub(crate) fn is_of_one_moment(guest: &Guest, volume: &str) {
    guest.sh(&format!("e2fsck -fn {volume} 2>&1"));
    guest.sh(&format!("mkdir -p c; mount -o ro,noload {volume} c"));
    let round = |name: &str| -> u64 {
        let text = fs::read_to_string(guest.scratch().join("c").join(name)).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let (a, b) = (round("a"), round("b"));
    guest.sh("umount c");
    assert!(a == b || a == b + 1, "{volume}: {a} and {b}");
}
