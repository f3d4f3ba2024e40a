//! A database that is moved while it is written to: every commit that was acknowledged is there afterwards, and the pause
//! is short beside the ways without `migrate`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and figures are told"
)]

mod lab_kit;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::{Guest, Setup};
use lab_kit::{Random, Tool, long};

const MIB: usize = 1 << 20;

/// A volume that is mostly cold: a filesystem, a large file, and a database that is written to.
struct Sizes {
    volume_mib: usize,
    cold_mib: usize,
    row_bytes: usize,
}

fn setup(sizes: &Sizes) -> Setup {
    let disk = format!("{}M", 2 * sizes.volume_mib + 64);
    lab_kit::setup()
        .disk(&disk)
        .disk(&disk)
        .memory_mib(768)
        .time_limit(Duration::from_secs(if long() { 2400 } else { 240 }))
}

fn make(guest: &Guest, sizes: &Sizes) {
    guest.volume_group("vg", 0);
    guest.volume_group("there", 1);
    guest.volume("vg", "data", &format!("{}M", sizes.volume_mib));
    guest.host("far");
    guest.sh("mkfs.ext4 -q /dev/vg/data 2>&1; mkdir m");
    guest.sh("mount /dev/vg/data m");
    let cold = Random::new(7).bytes(sizes.cold_mib * MIB);
    fs::write(guest.scratch().join("m/cold"), cold).unwrap();
    guest.sh("sqlite3 m/db 'PRAGMA synchronous=FULL; CREATE TABLE t(n INTEGER PRIMARY KEY, x BLOB)'; sync");
}

/// `sqlite3`, which commits one numbered row after the other, until there is a file `stop`; then it says `stopped`.
struct Database {
    directory: PathBuf,
    row_bytes: usize,
    acknowledged: AtomicU64,
}

impl Database {
    fn of(guest: &Guest, sizes: &Sizes) -> Self {
        Self {
            directory: guest.scratch().to_owned(),
            row_bytes: sizes.row_bytes,
            acknowledged: AtomicU64::new(0),
        }
    }

    fn serve(&self) {
        let mut shell = Command::new("sqlite3")
            .arg(self.directory.join("m/db"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ask = shell.stdin.take().unwrap();
        let mut answers = BufReader::new(shell.stdout.take().unwrap()).lines();
        writeln!(ask, "PRAGMA synchronous=FULL;").unwrap();
        for number in self.acknowledged.load(Ordering::Relaxed) + 1.. {
            if self.directory.join("stop").exists() {
                break;
            }
            writeln!(
                ask,
                "INSERT INTO t VALUES({number}, randomblob({})); SELECT {number};",
                self.row_bytes
            )
            .unwrap();
            // The answer to what follows the commit: that one is durable.
            assert_eq!(answers.next().unwrap().unwrap(), number.to_string());
            self.acknowledged.store(number, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(ask);
        assert!(shell.wait().unwrap().success());
        fs::write(self.directory.join("stopped"), "").unwrap();
    }

    /// Runs `work` while rows are committed. Who stops the service in `work` has to wait for `stopped`.
    fn serving<T>(&self, work: impl FnOnce() -> T) -> T {
        for name in ["stop", "stopped"] {
            let _ = fs::remove_file(self.directory.join(name));
        }
        std::thread::scope(|scope| {
            let _stops = Stops(self);
            scope.spawn(|| self.serve());
            let enough = self.acknowledged.load(Ordering::Relaxed) + 5;
            while self.acknowledged.load(Ordering::Relaxed) < enough {
                std::thread::sleep(Duration::from_millis(10));
            }
            work()
        })
    }

    /// Every acknowledged row is in `device`, which is a sound filesystem with a sound database.
    #[track_caller]
    fn is_whole_on(&self, guest: &Guest, device: &str) {
        guest.sh(&format!(
            "e2fsck -fn {device} 2>&1; mkdir -p c; mount -o ro,noload {device} c"
        ));
        let ask = "PRAGMA integrity_check; SELECT count(*), max(n) FROM t";
        let said = guest.sh(&format!("sqlite3 'file:c/db?immutable=1' '{ask}'"));
        guest.sh("umount c");
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("ok"), "{said}");
        let (count, last) = lines.next().unwrap().split_once('|').unwrap();
        assert_eq!(count, last, "each once");
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        assert!(
            last.parse::<u64>().unwrap() >= acknowledged,
            "{said} of {acknowledged}"
        );
    }
}

/// Ends the service however the test ends.
struct Stops<'a>(&'a Database);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.0.directory.join("stop"), "");
    }
}

const STOP: &str = "touch stop; while [ ! -e stopped ]; do sleep 0.02; done; umount m";

/// The pause of a migration, in seconds.
fn migrate(guest: &Guest, tool: &Tool, database: &Database) -> f64 {
    let stop = tool.path("stop-it");
    let directory = guest.scratch().display();
    fs::write(
        &stop,
        format!("#!/bin/sh\nset -e\ncd {directory}\n{STOP}\n"),
    )
    .unwrap();
    fs::set_permissions(&stop, fs::Permissions::from_mode(0o755)).unwrap();
    let line = format!(
        "migrate vg/data far:there/data --create=thick --max-pause 1s --json --keep-writable --pause-cmd {}",
        stop.display()
    );
    let run = database.serving(|| tool.run(&line).ok());
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    println!("migrate: {report}");
    database.is_whole_on(guest, "/dev/there/data");
    report["pause"]["seconds"].as_f64().unwrap()
}

/// The same volume, moved by `migrate`, and, in the long tier, where there is enough to copy, as the original lvmsync
/// documents it, and by stopping and copying.
#[test]
fn a_database_is_moved_while_it_commits() {
    let sizes = match long() {
        true => Sizes {
            volume_mib: 16 << 10,
            cold_mib: 512,
            row_bytes: 40_000,
        },
        false => Sizes {
            volume_mib: 32,
            cold_mib: 8,
            row_bytes: 2000,
        },
    };
    let name = "a_database_is_moved_while_it_commits";
    lab::test(name, setup(&sizes), |guest| {
        make(guest, &sizes);
        let database = Database::of(guest, &sizes);
        let tool = Tool::new(guest);
        let ours = migrate(guest, &tool, &database);
        assert!(ours > 0.0);
        if !long() {
            return;
        }
        let anew = format!(
            "lvremove -qq -y there/data; lvcreate -qq -y -Wn -Zn -L {}M -n data there; mount /dev/vg/data m",
            sizes.volume_mib
        );

        // Snapshot, copy of it, stop, what has changed since: sent by us, for the original takes many times as long.
        guest.sh(&anew);
        let store_mib = sizes.volume_mib / 2;
        guest.sh(&format!(
            "lvcreate -qq -s -L {store_mib}M -n s vg/data 2>&1"
        ));
        let original = database.serving(|| {
            copy(guest, "/dev/vg/s", "");
            stopped_for(|| {
                guest.sh(STOP);
                tool.run("vg/s far:/dev/there/data").ok();
            })
        });
        database.is_whole_on(guest, "/dev/there/data");
        guest.sh("lvremove -qq -y vg/s");

        guest.sh(&anew);
        let plain = database.serving(|| {
            stopped_for(|| {
                guest.sh(STOP);
                copy(guest, "/dev/vg/data", "conv=fsync");
            })
        });
        database.is_whole_on(guest, "/dev/there/data");
        println!(
            "pause: migrate {ours:.1} s; snapshot, dd, stop, send {original:.1} s ({:.1}x); stop, dd {plain:.1} s ({:.0}x)",
            original / ours,
            plain / ours
        );
        // A program that was not optimised is not what anybody is compared with.
        if !cfg!(debug_assertions) {
            assert!(original >= 5.0 * ours, "{original} {ours}");
            assert!(plain >= 50.0 * ours, "{plain} {ours}");
        }
    });
}

fn copy(guest: &Guest, from: &str, how: &str) {
    let to = format!("dd of=/dev/there/data bs=1M status=none {how}");
    guest.sh(&format!("dd if={from} bs=1M status=none | ssh far '{to}'"));
}

fn stopped_for(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}
