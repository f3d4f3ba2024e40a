//! Jobs as services of a real systemd, by the units in `contrib`: what they are not allowed is nothing that a run needs, and
//! when they are stopped, nothing is left halfway.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Guest;
use lab_kit::{Random, content, lvmsync_processes, write};

const MIB: usize = 1 << 20;

const JOB: &str = r#"source = "vg/data"
interval = "5s"
[[target]]
to = "there/copy"
create = "thick"
"#;

/// Runs before systemd: the units and the job.
fn before() -> String {
    let units = [
        (
            "lvmsync-replicate.service",
            include_str!("../contrib/lvmsync-replicate.service"),
        ),
        (
            "lvmsync-replicate-due.service",
            include_str!("../contrib/lvmsync-replicate-due.service"),
        ),
        (
            "lvmsync-replicate-due.timer",
            include_str!("../contrib/lvmsync-replicate-due.timer"),
        ),
    ];
    let files = units.map(|(name, text)| (format!("/etc/systemd/system/{name}"), text));
    let job = ("/etc/lvmsync/jobs.d/data.toml".to_owned(), JOB);
    let write = |(path, text): &(String, &str)| format!("cat > {path} <<'END'\n{text}END\n");
    let written: String = files.iter().chain([&job]).map(write).collect();
    format!(
        "mkdir -p /etc/lvmsync/jobs.d\nln -s /run/lab/bin/lvmsync /usr/local/bin/lvmsync\n{written}"
    )
}

fn is_copied() -> bool {
    std::path::Path::new("/dev/there/copy").exists()
        && content("/dev/there/copy") == content("/dev/vg/data")
}

#[track_caller]
fn wait_until_copied(guest: &Guest, unit: &str) {
    let began = Instant::now();
    while !is_copied() {
        let log = || guest.sh(&format!("journalctl -b -u {unit} --no-pager"));
        assert!(began.elapsed() < Duration::from_secs(60), "{}", log());
        sleep(Duration::from_millis(500));
    }
}

#[test]
fn jobs_run_as_services() {
    let setup = lab_kit::setup()
        .disk("128M")
        .disk("128M")
        .time_limit(Duration::from_secs(240))
        .systemd(&before());
    lab::test("jobs_run_as_services", setup, |guest| {
        guest.sh("systemd-analyze verify --man=no /etc/systemd/system/lvmsync-*.* 2>&1");
        guest.volume_group("vg", 0);
        guest.volume_group("there", 1);
        guest.volume("vg", "data", "24M");
        let mut random = Random::new(5);
        write("/dev/vg/data", &random.bytes(20 * MIB), 0);

        let unit = "lvmsync-replicate.service";
        guest.sh(&format!("systemctl start {unit}"));
        wait_until_copied(guest, unit);
        write("/dev/vg/data", &random.bytes(MIB), 3 << 20);
        wait_until_copied(guest, unit);
        // All devices are there for it, whatever its kernel can enforce.
        let policy = guest.sh(&format!(
            "systemctl show -p DevicePolicy -p DeviceAllow {unit}"
        ));
        assert_eq!(policy.trim(), "DevicePolicy=auto");
        guest.sh(&format!("systemctl stop {unit}"));
        let result = guest.sh(&format!("systemctl show -P Result {unit}"));
        assert_eq!(result.trim(), "success");
        assert_eq!(lvmsync_processes(), [""; 0]);
        let alarms = guest.sh(&format!(
            "journalctl -b -u {unit} -p warning -o cat --no-pager"
        ));
        let alarms = alarms
            .lines()
            .filter(|line| *line != "lvmsync: interrupted");
        assert_eq!(alarms.collect::<Vec<_>>(), [""; 0]);

        let unit = "lvmsync-replicate-due.service";
        write("/dev/vg/data", &random.bytes(MIB), 7 << 20);
        sleep(Duration::from_secs(5));
        guest.sh(&format!("systemctl start {unit}"));
        assert!(is_copied(), "the job was due");
        let snapshots = guest.sh("lvs --noheadings -o lv_name -S lv_tags=lvmsync_base vg");
        assert_eq!(snapshots.split_whitespace().count(), 1, "{snapshots}");
        let left = guest.sh("systemctl list-units --failed --no-legend --plain");
        assert_eq!(left, "");
    });
}
