//! The unit in `contrib` under a real systemd, with udev, and LVM as Debian configures it: what is mounted by `/etc/fstab` is
//! the era device after every boot, a clean shutdown keeps in mind what the volume holds, and what was written past the era
//! device by a system without the unit is found.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and figures are told"
)]

mod lab_kit;

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use lab::{Driver, Guest, Script, Setup};
use lab_kit::eras::{DEVICE, send, state};
use lab_kit::{Random, Tool, any_seed, assert_same, content, long};

const UNIT: &str = include_str!("../contrib/lvmsync-track.service");
const LATE: &str = include_str!("../contrib/lvmsync-track@.service");
const DROP_IN: &str = include_str!("../contrib/lvmsync-track.service.d/blk-availability.conf");

/// Runs before systemd. The state directory is on what stands for the root file system: there from the beginning of a boot to
/// the end of a shutdown.
const BEFORE: &str = r#"
mkdir -p "$LAB_JOB/state" /srv
ln -s "$LAB_JOB/state" /var/lib/lvmsync
ln -sf /run/lab/bin/lvmsync /usr/local/bin/lvmsync
kept=/etc/systemd/system/$(systemd-escape --path --suffix=mount "$LAB_JOB").d
mkdir -p "$kept"
printf '%s\n' '[Unit]' 'DefaultDependencies=no' > "$kept/root.conf"
# A service that takes its time to stop: until then nothing may be unmounted or deactivated.
printf '%s\n' '[Unit]' 'After=local-fs.target' '[Service]' 'Type=oneshot' 'RemainAfterExit=yes' 'ExecStart=/bin/true' \
  'ExecStop=/bin/sleep 3' '[Install]' 'WantedBy=lab.target' > /etc/systemd/system/slow.service
systemctl enable slow.service
if [ -e "$LAB_JOB/late" ]; then
  cp /run/unit/lvmsync-track@.service /etc/systemd/system/
  mkdir /etc/systemd/system/lvmsync-track@.service.d
  cp /run/unit/blk-availability.conf /etc/systemd/system/lvmsync-track@.service.d/
  printf '%s\n' '[Unit]' 'DefaultDependencies=no' 'After=systemd-udev-settle.service' 'Wants=systemd-udev-settle.service' \
    '[Service]' 'Type=oneshot' 'ExecStart=/bin/sh -c "sleep 5; vgchange -ay vg"' '[Install]' 'WantedBy=lab.target' \
    > /etc/systemd/system/passphrase.service
  systemctl enable passphrase.service
  echo '/dev/mapper/vg-data-era /srv ext4 x-systemd.requires=lvmsync-track@vg-data.service 0 2' >> /etc/fstab
elif [ ! -e "$LAB_JOB/without-unit" ]; then
  systemctl enable /run/unit/lvmsync-track.service
  mkdir /etc/systemd/system/lvmsync-track.service.d
  cp /run/unit/blk-availability.conf /etc/systemd/system/lvmsync-track.service.d/
fi
if [ -e "$LAB_JOB/made" ]; then
  echo '/dev/mapper/vg-data-era /srv ext4 defaults 0 2' >> /etc/fstab
fi
"#;

fn machine() -> Setup {
    let unit = format!(
        "mkdir /run/unit\ncat > /run/unit/lvmsync-track.service <<'UNIT'\n{UNIT}UNIT\n\
         cat > /run/unit/lvmsync-track@.service <<'UNIT'\n{LATE}UNIT\n\
         cat > /run/unit/blk-availability.conf <<'UNIT'\n{DROP_IN}UNIT\n"
    );
    lab_kit::setup()
        .disk("256M")
        .time_limit(Duration::from_secs(180))
        .systemd(&(unit + BEFORE))
}

/// The one whose state the unit uses.
fn tool(guest: &Guest) -> Tool {
    let tool = Tool::new(guest);
    std::os::unix::fs::symlink("/var/lib/lvmsync", tool.path("state")).unwrap();
    tool
}

fn make(guest: &Guest) {
    let tool = tool(guest);
    guest.volume_group("vg", 0);
    guest.volume("vg", "data", "24M");
    guest.volume("vg", "copy", "24M");
    tool.run("track enable vg/data").ok();
    guest.sh(&format!("mkfs.ext4 -q {DEVICE}"));
    tool.run(&format!("send {DEVICE} vg/copy")).ok();
    // One that does not come up any more: the other goes down in order all the same.
    guest.volume("vg", "other", "8M");
    tool.run("track enable vg/other").ok();
    guest.sh("lvchange --addtag lvmsync_era_void vg/other_era");
    fs::write(guest.shared().join("made"), "").unwrap();
}

/// As a machine that is used; what it writes last goes with the next boot's send.
fn used(guest: &Guest) {
    let tool = tool(guest);
    let source = guest.sh("findmnt -no SOURCE /srv");
    assert_eq!(source.trim(), DEVICE);
    let unit = match guest.shared().join("late").exists() {
        true => "lvmsync-track@vg-data",
        false => "lvmsync-track",
    };
    let is_active = guest.sh(&format!("systemctl is-active {unit}"));
    assert_eq!(is_active.trim(), "active");
    assert_eq!(state(&tool), "up");
    send(&tool, "vg/copy").ok();
    guest.sh("head -c 200K /dev/urandom > /srv/file; sync");
    send(&tool, "vg/copy").ok();
    guest.sh("fsfreeze -f /srv");
    send(&tool, "vg/copy").ok();
    assert_same("/dev/vg/copy", &content("/dev/vg/data"), "of this boot");
    guest.sh("fsfreeze -u /srv; head -c 200K /dev/urandom > /srv/last");
    guest.announce("USED");
    if guest.shared().join("to-be-cut").exists() {
        sleep(Duration::from_secs(60));
        panic!("nobody cut the power");
    }
}

fn cut(driver: &mut Driver<'_>, random: &mut Random) {
    let sign = driver.machine().directory().join("to-be-cut");
    fs::write(&sign, "").unwrap();
    let mut guest = driver.boot("used");
    driver.wait_for(&mut guest, "USED", Duration::from_secs(180));
    sleep(Duration::from_millis(random.below(1000)));
    guest.cut().unwrap();
    fs::remove_file(&sign).unwrap();
}

/// What systemd says of a boot of a machine with iSCSI, on which blk-availability comes after the network.
fn said_of_a_boot_with_iscsi(drop_in: bool) -> String {
    let directory = std::env::temp_dir().join(format!("lvmsync-units-{}", std::process::id()));
    let service = |order: &str| {
        format!(
            "[Unit]\nDefaultDependencies=no\n{order}\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
        )
    };
    let after = |units: &str| service(&format!("After={units}"));
    let mut units = vec![
        (
            "lvmsync-track.service",
            UNIT.replace("/usr/local/bin/lvmsync", "/bin/true")
                .replace("/sbin/vgchange", "/bin/true"),
        ),
        ("blk-availability.service", after("iscsi.service")),
        ("iscsi.service", after("network-online.target")),
        (
            "networking.service",
            service("After=local-fs.target\nBefore=network.target network-online.target\nWants=network.target"),
        ),
        (
            "all.target",
            "[Unit]\nWants=lvmsync-track.service blk-availability.service iscsi.service networking.service\n\
             Wants=local-fs.target network-online.target\nAfter=local-fs.target\n"
                .to_owned(),
        ),
    ];
    if drop_in {
        let name = "lvmsync-track.service.d/blk-availability.conf";
        units.push((name, DROP_IN.to_owned()));
    }
    fs::create_dir_all(directory.join("lvmsync-track.service.d")).unwrap();
    for (name, text) in units {
        fs::write(directory.join(name), text).unwrap();
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(directory.join("all.target"))
        .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()))
        .output()
        .unwrap();
    fs::remove_dir_all(directory).unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_unit_is_in_no_circle_where_there_is_iscsi() {
    let said = said_of_a_boot_with_iscsi(false);
    assert!(!said.contains("ordering cycle"), "{said}");
    // Which is why the drop-in is not for these.
    let said = said_of_a_boot_with_iscsi(true);
    assert!(said.contains("ordering cycle"), "{said}");
}

#[test]
fn what_is_mounted_is_tracked_after_every_boot() {
    let boots = if long() { 20 } else { 2 };
    Script::new("what_is_mounted_is_tracked_after_every_boot", machine())
        .phase("make", make)
        .phase("used", used)
        .phase("past", |guest| {
            // A clean shutdown has kept in mind what the volume holds.
            let tool = tool(guest);
            let activated = "until [ -e /dev/vg/data ]; do sleep 0.1; done; udevadm settle";
            guest.sh(activated);
            let tags = guest.sh("lvs --noheadings -o lv_tags vg/data_era");
            assert!(tags.contains("lvmsync_era_rest_"), "{tags}");
            assert_eq!(state(&tool), "down");
            guest.sh("mount /dev/vg/data /srv; echo past > /srv/past; umount /srv");
        })
        .phase("found", |guest| {
            let tool = tool(guest);
            let log = guest.sh("journalctl -b -u lvmsync-track --no-pager");
            assert!(log.contains("when its era device was taken down"), "{log}");
            assert!(log.contains("lvmsync track enable vg/data"), "{log}");
            assert_eq!(state(&tool), "void");
            // It is up all the same, or what is mounted from it would not be.
            assert_eq!(
                guest.sh("systemctl is-active lvmsync-track").trim(),
                "active"
            );
            guest.sh(&format!("mount {DEVICE} /srv"));
            tool.run("track enable vg/data").ok();
            guest.sh("umount /srv");
            assert_eq!(state(&tool), "up");
            send(&tool, "vg/copy").ends(4, &["is no base any more", "lvmsync sync"]);
            tool.run(&format!("sync {DEVICE} vg/copy")).ok();
            assert_same("/dev/vg/copy", &content("/dev/vg/data"), "in the end");
        })
        .drive(|driver| {
            let directory = driver.machine().directory().to_owned();
            let seed = any_seed();
            println!("LVMSYNC_SEED={seed}");
            let mut random = Random::new(seed);
            driver.run("make");
            for boot in 0..boots {
                match boot % 4 {
                    1 => cut(driver, &mut random),
                    _ => driver.run("used"),
                }
            }
            driver.run("used");
            fs::write(directory.join("without-unit"), "").unwrap();
            fs::remove_file(directory.join("made")).unwrap();
            driver.run("past");
            fs::remove_file(directory.join("without-unit")).unwrap();
            driver.run("found");
        });
}

/// A group that somebody has to type a passphrase for: the unit of the volume comes with it, and the mount after that.
#[test]
fn a_volume_that_is_there_late_is_tracked_before_it_is_mounted() {
    let name = "a_volume_that_is_there_late_is_tracked_before_it_is_mounted";
    Script::new(name, machine())
        .phase("make", |guest| {
            make(guest);
            fs::remove_file(guest.shared().join("made")).unwrap();
            guest.sh("vgchange -qq --setautoactivation n vg");
        })
        .phase("used", used)
        .phase("rests", |guest| {
            let tags = guest.sh("lvs --noheadings -o lv_tags vg/data_era");
            assert!(tags.contains("lvmsync_era_rest_"), "{tags}");
        })
        .drive(|driver| {
            let late = driver.machine().directory().join("late");
            driver.run("make");
            fs::write(&late, "").unwrap();
            driver.run("used");
            driver.run("used");
            fs::remove_file(&late).unwrap();
            driver.run("rests");
        });
}
