//! Moving a live volume to another host: what was acknowledged is there, whatever fails leaves the service where it is, and
//! the same command goes on.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and figures are told"
)]

mod lab_kit;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab::{Guest, Setup};
use lab_kit::live::{self, Kind, LVS, MIB, wait_until};
use lab_kit::{Random, Run, Tool, assert_same, content, long, lvmsync_processes, seed, write};
use rustix::process::{Pid, Signal, kill_process};

fn setup() -> Setup {
    live::setup().time_limit(Duration::from_secs(if long() { 3000 } else { 180 }))
}

/// What the service opens of `vg/data`, and of the same while dm-era tracks it.
const DATA: &str = "/dev/vg/data";
const ERA: &str = "/dev/mapper/vg-data-era";

/// `vg/data` of 24 MiB with a filesystem at `m`, mostly cold; `there` for the host `far`.
fn make(guest: &Guest, kind: Kind) {
    live::groups(guest, kind, "24M");
    fill(guest, DATA);
}

fn fill(guest: &Guest, device: &str) {
    guest.host("far");
    guest.sh(&format!(
        "mkfs.ext4 -q {device} 2>&1; mkdir m; mount {device} m"
    ));
    let mount = guest.scratch().join("m");
    fs::write(mount.join("cold"), Random::new(5).bytes(8 * MIB)).unwrap();
}

/// Numbered lines, each acknowledged when it is on the disk. It stops where `stop` is, and says so by `stopped`.
struct Service {
    directory: PathBuf,
    acknowledged: AtomicU64,
}

impl Service {
    fn new(guest: &Guest) -> Self {
        Self {
            directory: guest.scratch().to_owned(),
            acknowledged: AtomicU64::new(0),
        }
    }

    fn run(&self) {
        let mut log = File::options()
            .append(true)
            .create(true)
            .open(self.directory.join("m/log"))
            .unwrap();
        let first = self.acknowledged.load(Ordering::Relaxed) + 1;
        for number in first.. {
            if self.directory.join("stop").exists() {
                break;
            }
            writeln!(log, "{number} {}", "x".repeat(200)).unwrap();
            log.sync_data().unwrap();
            self.acknowledged.store(number, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(log);
        fs::write(self.directory.join("stopped"), "").unwrap();
    }

    fn wait_for_more(&self) {
        let until = self.acknowledged.load(Ordering::Relaxed) + 5;
        wait_until("more is written", || {
            self.acknowledged.load(Ordering::Relaxed) >= until
        });
    }
}

/// Ends the service however the test ends.
struct Stops<'a>(&'a Service);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.0.directory.join("stop"), "");
    }
}

/// Two scripts: the one stops the service, the other says that it was started again on `device`.
fn scripts(tool: &Tool, guest: &Guest, device: &str) -> String {
    let put = |name: &str, text: &str| {
        let path = tool.path(name);
        fs::write(
            &path,
            format!("set -e\ncd {}\n{text}\n", guest.scratch().display()),
        )
        .unwrap();
        path.display().to_string()
    };
    let stop = put(
        "pause.sh",
        "touch stop; while [ ! -e stopped ]; do sleep 0.02; done; umount m; touch paused",
    );
    let back = put(
        "back.sh",
        &format!("mountpoint -q m || mount {device} m; touch back"),
    );
    fs::write(tool.path("stop-it"), format!("sh {stop}")).unwrap();
    fs::set_permissions(tool.path("stop-it"), mode(0o755)).unwrap();
    fs::write(tool.path("start-it"), format!("sh {back}")).unwrap();
    fs::set_permissions(tool.path("start-it"), mode(0o755)).unwrap();
    let path = |name: &str| tool.path(name).display().to_string();
    format!(
        "--pause-cmd {} --back-cmd {}",
        path("stop-it"),
        path("start-it")
    )
}

fn mode(mode: u32) -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    fs::Permissions::from_mode(mode)
}

/// Every line that was acknowledged is in the copy, which is a sound filesystem.
#[track_caller]
fn holds_everything(guest: &Guest, service: &Service) {
    guest.sh("e2fsck -fn /dev/there/data 2>&1; mkdir -p c; mount -o ro,noload /dev/there/data c");
    let log = fs::read_to_string(guest.scratch().join("c/log")).unwrap();
    let cold = fs::read(guest.scratch().join("c/cold")).unwrap();
    guest.sh("umount c");
    assert!(cold == Random::new(5).bytes(8 * MIB));
    let last = log.lines().last().unwrap().split(' ').next().unwrap();
    let acknowledged = service.acknowledged.load(Ordering::Relaxed);
    assert!(
        last.parse::<u64>().unwrap() >= acknowledged,
        "{last} of {acknowledged}"
    );
    assert_eq!(log.lines().count().to_string(), last, "each once");
}

/// No snapshot, and nothing on record of the migration.
#[track_caller]
fn nothing_left(guest: &Guest, tool: &Tool, volumes: &str) {
    assert_eq!(guest.sh(LVS), volumes);
    let left = fs::read_dir(tool.path("state/migrations")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

fn moved(name: &str, kind: Kind) {
    lab::test(name, setup(), |guest| {
        make(guest, kind);
        let tool = Tool::new(guest);
        moved_from(DATA, guest, &tool);
    });
}

/// By a service that has `device` open.
fn moved_from(device: &str, guest: &Guest, tool: &Tool) {
    let commands = scripts(tool, guest, device);
    let volumes = guest.sh(LVS);
    let service = Service::new(guest);
    let line = format!("migrate vg/data far:there/data --create=thick --max-pause 3s {commands}");
    std::thread::scope(|scope| {
        let _stops = Stops(&service);
        scope.spawn(|| service.run());
        service.wait_for_more();
        let plan = tool.run(&format!("{line} -n")).ok();
        for words in [
            "vg/data",
            "far:there/data: is not there yet: it is made",
            "stop-it",
            concat!(
                "lvmsync ",
                env!("CARGO_PKG_VERSION"),
                " here, lvmsync ",
                env!("CARGO_PKG_VERSION"),
                " there"
            ),
            "nothing was done",
            "mounted for writing on",
        ] {
            assert!(plan.stdout.contains(words), "{}", plan.stdout);
        }
        assert_eq!(guest.sh(LVS), volumes, "a look");
        let run = tool.run(&format!("{line} --json")).ok();
        let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert!(!report["rounds"].as_array().unwrap().is_empty(), "{report}");
        assert!(
            report["first_copy_bytes"].as_u64().unwrap() > 8 << 20,
            "{report}"
        );
        assert!(
            report["pause"]["bytes"].as_u64().unwrap() < 8 << 20,
            "{report}"
        );
        assert!(
            report["pause"]["seconds"].as_f64().unwrap() > 0.0,
            "{report}"
        );
        println!("migrate: {device}: {report}");
    });
    assert!(!guest.scratch().join("back").exists());
    holds_everything(guest, &service);
    assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
    nothing_left(guest, tool, &volumes);
    // It cannot be started here by mistake.
    let attributes = guest.sh("lvs --noheadings -o lv_permissions,lv_tags vg/data");
    assert!(attributes.contains("read-only"), "{attributes}");
    assert!(attributes.contains("lvmsync_migrated"), "{attributes}");
}

#[test]
fn a_thick_volume_in_use_is_moved() {
    moved("a_thick_volume_in_use_is_moved", Kind::Thick);
}

#[test]
fn a_thin_volume_in_use_is_moved() {
    moved("a_thin_volume_in_use_is_moved", Kind::Thin);
}

/// A volume that dm-era tracks is followed by its eras, and can be started here again until it is handed over.
#[test]
fn a_tracked_volume_in_use_is_moved() {
    lab::test("a_tracked_volume_in_use_is_moved", setup(), |guest| {
        live::groups(guest, Kind::Thick, "24M");
        let tool = Tool::new(guest);
        tool.run("track enable vg/data").ok();
        fill(guest, ERA);
        // A snapshot of what is below the era device has no filesystem put on the disk before.
        guest.sh("sync");
        let volumes = guest.sh(LVS);
        let back = guest.scratch().join("back");

        // The service writes on, and does not let go of it: it is started again where it was.
        scripts(&tool, guest, ERA);
        let start = tool.path("start-it").display().to_string();
        let line = "migrate vg/data far:there/data --create=thick";
        tool.run(&format!("{line} --pause-cmd true --back-cmd {start} -v"))
            .ends(5, &["still mounted for writing", "was started here again"]);
        // Of the first copy and the rounds nothing stays here but what is on record.
        assert_eq!(guest.sh(LVS), volumes);
        fs::remove_file(&back).unwrap();

        // Somebody has it open who writes nothing: the era device cannot go, so nothing is handed over.
        guest.sh(&format!(
            "sleep 1000 < {ERA} > /dev/null 2>&1 & echo $! > user"
        ));
        let let_go = tool.path("let-go");
        let umount = format!("umount {}/m", guest.scratch().display());
        fs::write(&let_go, umount).unwrap();
        fs::set_permissions(&let_go, mode(0o755)).unwrap();
        let pause = format!("--pause-cmd {}", let_go.display());
        tool.run(&format!("{line} {pause} --back-cmd {start}"))
            .ends(
                5,
                &["its era device", "is in use", "was started here again"],
            );
        assert!(back.exists());
        guest.sh("kill $(cat user); mountpoint m; touch m/writable");
        fs::remove_file(&back).unwrap();

        // The next one goes on from what is there; or begins anew, if it is given up.
        let plan = tool.run(&format!("{line} --pause-cmd true -n")).ok().stdout;
        assert!(plan.contains("goes on from era:"), "{plan}");
        tool.run("migrate vg/data --abort far:there/data").ok();
        guest.sh("lvremove -qq -y there/data");
        moved_from(ERA, guest, &tool);
        // As at the next boot: it is not started a second time.
        tool.run("track up --all")
            .ends(0, &["vg/data: read-only; stays down"]);
        let state = tool.run("track status vg/data --json").ok().stdout;
        assert!(state.contains("\"down\""), "{state}");
    });
}

/// Killed in the hand-over, when the era device is down already.
#[test]
fn a_tracked_volume_that_was_not_handed_over_is_given_back() {
    let name = "a_tracked_volume_that_was_not_handed_over_is_given_back";
    lab::test(name, setup(), |guest| {
        live::groups(guest, Kind::Thick, "24M");
        let tool = Tool::new(guest);
        tool.run("track enable vg/data").ok();
        write(ERA, &Random::new(5).bytes(4 * MIB), 0);
        let line = "migrate vg/data there/data --create=thick --pause-cmd true";
        let killed_when_it_is_down = || {
            let child = tool.start(line);
            while fs::exists(ERA).unwrap() {
                std::thread::sleep(Duration::from_millis(1));
            }
            live::kill(&child, Signal::KILL);
            Run::of(child);
            wait_until("nothing of it runs", || lvmsync_processes().is_empty());
            assert!(!is_handed_over(&tool), "it was killed too late");
        };
        let is_writable = || {
            let attributes = guest.sh("lvs --noheadings -o lv_permissions,lv_tags vg/data");
            attributes.contains("writeable") && !attributes.contains("lvmsync_migrated")
        };
        killed_when_it_is_down();
        tool.run("migrate vg/data --abort there/data").ok();
        assert!(is_writable() && fs::exists(ERA).unwrap());
        write(ERA, &[1; 4096], 8 << 20);

        // Something wrote to it past the era device: it is given back all the same, and its record proves nothing any more.
        killed_when_it_is_down();
        guest.sh("lvchange -prw vg/data 2>&1 || true");
        write(DATA, &[2; 4096], 0);
        tool.run("migrate vg/data --abort there/data")
            .ends(0, &["is here, and writable, but its era device is not up"]);
        assert!(is_writable() && !fs::exists(ERA).unwrap());
        tool.run(line).ok();
        assert_same("/dev/there/data", &content(DATA), "followed by snapshots");
    });
}

#[test]
fn what_fails_leaves_the_service_here_and_the_same_command_goes_on() {
    let name = "what_fails_leaves_the_service_here_and_the_same_command_goes_on";
    lab::test(name, setup(), |guest| {
        make(guest, Kind::Thick);
        let tool = Tool::new(guest);
        let commands = scripts(&tool, guest, DATA);
        let volumes = guest.sh(LVS);
        // Without ssh, which takes most of the time here.
        let far = "there/data --create=thick";
        let back = guest.scratch().join("back");
        // The command that stops it fails.
        let start = tool.path("start-it").display().to_string();
        tool.run(&format!(
            "migrate vg/data {far} --pause-cmd false --back-cmd {start}"
        ))
        .ends(1, &["`false`", "was started here again"]);
        assert!(back.exists());
        fs::remove_file(&back).unwrap();
        let kept = guest.sh(LVS);
        assert_ne!(kept, volumes, "the base");
        // It still writes after it was stopped: the filesystem stays mounted, and something writes on.
        let log = guest.scratch().join("m/more");
        let writes = "while [ ! -e enough ]; do date >> m/more; sync; sleep 0.1; done";
        guest.sh(&format!("sh -c '{writes}' >/dev/null 2>&1 </dev/null &"));
        wait_until("it writes", || log.exists());
        tool.run(&format!(
            "migrate vg/data {far} --pause-cmd true --back-cmd {start}"
        ))
        .ends(5, &["still mounted for writing", "was started here again"]);
        guest.sh("touch enough; sleep 1");
        assert!(back.exists());
        assert!(
            guest
                .sh("lvs --noheadings -o lv_permissions vg/data")
                .contains("writeable")
        );
        // Another destination is not meant.
        tool.run("migrate vg/data there/other --pause-cmd true")
            .ends(5, &["there/data was cut", "--abort"]);
        // Nobody says how.
        tool.run(&format!("migrate vg/data {far}"))
            .ends(2, &["--pause-cmd", "--vm"]);
        fs::write(guest.scratch().join("stopped"), "").unwrap();
        let run = tool
            .run(&format!("migrate vg/data {far} -v {commands}"))
            .ok();
        assert!(
            run.stderr.contains("goes on from vg/data-lvmsync-"),
            "{}",
            run.stderr
        );
        assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
        nothing_left(guest, &tool, &volumes);
    });
}

#[test]
fn a_migration_is_given_up_and_leaves_nothing() {
    lab::test(
        "a_migration_is_given_up_and_leaves_nothing",
        setup(),
        |guest| {
            make(guest, Kind::Thin);
            let tool = Tool::new(guest);
            let volumes = guest.sh(LVS);
            tool.run("migrate vg/data --abort far:there/data")
                .ends(0, &["there is no migration of it"]);
            tool.run("migrate vg/data far:there/data --remote-path /nowhere --pause-cmd true")
                .ends(7, &["far"]);
            assert_eq!(guest.sh(LVS), volumes, "nothing was begun");
            tool.run("migrate vg/data far:there/data --create=thick --pause-cmd false")
                .ends(1, &["start the service here again"]);
            assert_ne!(guest.sh(LVS), volumes);
            tool.run("migrate vg/data far:there/data --abort")
                .ends(0, &["is given up"]);
            nothing_left(guest, &tool, &volumes);
            assert!(
                guest
                    .sh("lvs --noheadings -o lv_permissions vg/data")
                    .contains("writeable")
            );
        },
    );
}

/// By what is on record of it here.
fn is_handed_over(tool: &Tool) -> bool {
    let files = fs::read_dir(tool.path("state/migrations"))
        .into_iter()
        .flatten();
    let mut texts = files.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
    texts.any(|text| text.contains("\"HandedOver\""))
}

/// Killed at random moments, until it is done.
#[test]
fn a_migration_that_is_killed_goes_on() {
    lab::test("a_migration_that_is_killed_goes_on", setup(), |guest| {
        let mut random = Random::new(seed(guest));
        let kills = if long() { 50 } else { 2 };
        make(guest, Kind::Thick);
        guest.sh("umount m");
        let tool = Tool::new(guest);
        let volumes = guest.sh(LVS);
        let mut killed = 0;
        while killed < kills {
            let line = "migrate vg/data far:there/data --create=thick --keep-writable --pause-cmd true --bwlimit 6M";
            let mut child = tool.start(line);
            if killed + 1 == kills {
                // The last one after the volume was handed over, and before what was needed for it is gone.
                wait_until("it is handed over", || {
                    is_handed_over(&tool) || child.try_wait().unwrap().is_some()
                });
            } else {
                std::thread::sleep(Duration::from_millis(300 + random.below(9000)));
            }
            let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
            if child.try_wait().unwrap().is_none() {
                kill_process(pid, Signal::KILL).unwrap();
                killed += 1;
            }
            let ended = Run::of(child);
            wait_until("nothing of it runs", || lvmsync_processes().is_empty());
            if ended.stderr.contains("is moved to") {
                assert_same("/dev/there/data", &content("/dev/vg/data"), "moved");
                nothing_left(guest, &tool, &volumes);
            }
            if ended.code == Some(0) {
                // All begins anew.
                guest.sh("lvchange -qq --deltag lvmsync_migrated vg/data");
                continue;
            }
            if is_handed_over(&tool) {
                // From here on what is written here is not sent: the volume is there.
                assert_same("/dev/there/data", &content("/dev/vg/data"), "handed over");
                continue;
            }
            let at = random.below(20 * MIB as u64);
            write("/dev/vg/data", &random.bytes(50_000), at);
        }
        let line = "migrate vg/data far:there/data --create=thick --pause-cmd true";
        let last = tool.run(line).ok();
        assert_same("/dev/there/data", &content("/dev/vg/data"), &last.stderr);
        nothing_left(guest, &tool, &volumes);
        println!("migrate: killed {killed} times");
    });
}
