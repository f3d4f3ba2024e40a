//! A state as a read-only device: what the kernel reads through the exception store is what the view is, over a base that
//! cannot change below it, and nothing is left in the end, whatever ended it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use lab::{Guest, Script};
use lab_kit::live::{Bench, Kind, MIB, kill, make, settle, setup, wait_until};
use lab_kit::{Random, Run, Tool, assert_same, content, write};
use rustix::process::Signal;

const DATA: &str = "/dev/vg/data";
const DEVICE: &str = "/dev/mapper/tuesday";
const VIEW: &str = "view old.undo --base vg/data";
const SHOW: &str = "view old.undo --base vg/data --device tuesday";
const STOP: &str = "view --stop tuesday";

/// `vg/data` holds `new`, and `old.undo` leads back to `old`: in many small places, over areas of the exception table, with
/// zeroes, and up to the end of a volume that ends inside of a large chunk.
struct States<'a> {
    bench: Bench<'a>,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl<'a> States<'a> {
    fn make(guest: &'a Guest, kind: Kind) -> Self {
        make(guest, kind);
        let bench = Bench::new(guest);
        let mut random = Random::new(11);
        let old = random.bytes(24 * MIB);
        let mut new = old.clone();
        for number in 0..900 {
            let at = (number * 199_999) % (24 * MIB - 70_000);
            let length = [512, 4096, 512, 9000, 512][number % 5];
            new[at..at + length].copy_from_slice(&random.bytes(length));
        }
        new[5 * MIB..7 * MIB].fill(0);
        new[24 * MIB - 1000..].fill(1);
        let mut old = old;
        old[9 * MIB..10 * MIB].fill(0);
        for (name, state) in [("old", &old), ("new", &new)] {
            fs::write(guest.scratch().join(name), state).unwrap();
            let undo = if name == "new" { "--undo old.undo" } else { "" };
            bench.tool.run(&format!("sync {name} vg/data {undo}")).ok();
        }
        Self { bench, old, new }
    }

    /// Names of mapped devices, loop devices, and what there is of views.
    fn left(guest: &Guest) -> String {
        let mapped = guest.sh("dmsetup ls | grep tuesday || :");
        let loops = guest.sh("losetup --noheadings --list --output BACK-FILE");
        let tagged = guest.sh("lvs -a --noheadings -o lv_name -S 'lv_tags=lvmsync_temporary'");
        format!("{}{}{}", mapped.trim(), loops.trim(), tagged.trim())
    }

    #[track_caller]
    fn nothing_left(&self, guest: &Guest, when: &str) {
        settle();
        assert_eq!(Self::left(guest), "", "{when}");
        self.bench.nothing_left(when);
        let files = fs::read_dir(self.bench.tool.path("state/views"));
        let files = files.into_iter().flatten().count();
        assert_eq!(files, 0, "{when}");
        assert_same(DATA, &self.new, when);
    }
}

fn shown(kind: Kind, name: &str) {
    let setup = setup().time_limit(Duration::from_secs(180));
    lab::test(name, setup, |guest| {
        let states = States::make(guest, kind);
        let tool = &states.bench.tool;
        tool.run(&format!("{VIEW} --to state.img")).ok();
        let state = fs::read(guest.scratch().join("state.img")).unwrap();
        assert!(state == states.old);

        // A base that can be written to is read through a snapshot of it; one that cannot be, as it is.
        for (number, chunk) in ["4k", "8k", "16k", "32k", "64k"].iter().enumerate() {
            let is_read_only = number % 2 == 1;
            if is_read_only {
                guest.sh("lvchange -qq -pr vg/data 2>&1");
            }
            let said = tool
                .run(&format!("{SHOW} --chunk-size {chunk}"))
                .ok()
                .stderr;
            assert!(said.contains("lvmsync view --stop tuesday"), "{said}");
            assert_eq!(said.contains("in its snapshot"), !is_read_only, "{said}");
            assert_same(DEVICE, &state, chunk);
            let written = File::options().write(true).open(DEVICE).and_then(|file| {
                file.write_all_at(&[7; 4096], 0)?;
                file.sync_all()
            });
            assert!(written.is_err(), "{chunk}");
            assert_eq!(guest.sh(&format!("blockdev --getro {DEVICE}")).trim(), "1");
            let table = guest.sh("dmsetup table tuesday");
            let sectors: u64 = table.trim().rsplit(' ').next().unwrap().parse().unwrap();
            let kib: u64 = chunk.trim_end_matches('k').parse().unwrap();
            assert_eq!(sectors, 2 * kib, "{table}");
            if *chunk == "4k" {
                // What is written to the volume now does not show.
                let (_, chunks) = lab_kit::exceptions(
                    &tool.path("state/views/tuesday.store").display().to_string(),
                );
                assert!(chunks.len() > 3 * 256, "{} exceptions", chunks.len());
                write(DATA, &vec![5; 2 * MIB], 0);
                assert_same(DEVICE, &state, "written below");
                write(DATA, &states.new[..2 * MIB], 0);
            }
            tool.run(SHOW)
                .ends(5, &["shows a state over vg/data already", "--stop tuesday"]);
            let said = tool.run("doctor").stdout;
            assert!(said.contains("lvmsync view --stop tuesday"), "{said}");
            assert!(!said.contains("lvextend"), "{said}");
            let user = File::open(DEVICE).unwrap();
            tool.run(STOP).ends(5, &["it is in use"]);
            assert_same(DEVICE, &state, "in use, and not stopped");
            drop(user);
            tool.run(STOP).ok();
            if is_read_only {
                guest.sh("lvchange -qq -prw vg/data 2>&1");
            }
            states.nothing_left(guest, chunk);
        }
        tool.run(STOP)
            .ends(5, &["no state is shown under this name", "doctor"]);

        // Who has opened a volume before it refused writes may write to it all the same.
        let writer = File::options().write(true).open(DATA).unwrap();
        guest.sh("lvchange -qq -pr vg/data 2>&1");
        let said = tool.run(SHOW).ok().stderr;
        assert!(said.contains("in its snapshot"), "{said}");
        drop(writer);
        tool.run(STOP).ok();
        // Nobody has it open: any number of views may be over it, and none needs a snapshot.
        tool.run(SHOW).ok();
        let said = tool.run(&SHOW.replace("tuesday", "tuesday2")).ok().stderr;
        assert!(!said.contains("in its snapshot"), "{said}");
        tool.run(&format!("{VIEW} --to again.img")).ok();
        assert_same("/dev/mapper/tuesday2", &state, "the second one");
        tool.run("view --stop tuesday2").ok();
        tool.run(STOP).ok();
        guest.sh("lvchange -qq -prw vg/data 2>&1");
        states.nothing_left(guest, "over a volume that was read-only");

        // In a file of the user's, which has to be new.
        tool.run(&format!("{SHOW} --store here")).ok();
        assert_same(DEVICE, &state, "--store");
        assert!(guest.scratch().join("here").exists());
        tool.run(STOP).ok();
        assert!(!guest.scratch().join("here").exists());
        states.nothing_left(guest, "--store");
        tool.run(&format!("{SHOW} --store old"))
            .ends(5, &["there is a file of that name"]);
        states.nothing_left(guest, "--store old");

        // Refused before anything is made, or with nothing left of it.
        tool.run("view old.undo --base new --device tuesday")
            .ends(5, &["no logical volume", "--nbd"]);
        tool.run("view old.undo --base vg/data --device vg-data")
            .ends(5, &["there is a device of that name"]);
        tool.run("state adopt vg/data lvm:another").ok();
        tool.run(SHOW).ends(5, &["begins from"]);
        states.nothing_left(guest, "refused");
        tool.run(&format!("{SHOW} --force")).ok();
        tool.run(STOP).ok();
        states.nothing_left(guest, "forced");

        // Stopped in the middle nothing is left; of one that was killed the next one of that name removes what is left, or
        // what doctor says.
        for (signal, ends) in [
            (Signal::INT, ""),
            (Signal::KILL, STOP),
            (
                Signal::KILL,
                "view old.undo --base vg/data --force --device tuesday",
            ),
        ] {
            let child = tool.start(&format!("{SHOW} --force"));
            let store = tool.path("state/views/tuesday.store");
            wait_until("it writes the store", || {
                fs::metadata(&store).is_ok_and(|found| found.len() > 0)
            });
            kill(&child, signal);
            let run = Run::of(child);
            settle();
            if signal == Signal::INT {
                run.ends(130, &[]);
            } else {
                assert_eq!(run.code, None);
                assert_ne!(States::left(guest), "");
                let said = tool.run("doctor").stdout;
                assert!(said.contains("lvmsync view --stop tuesday"), "{said}");
                tool.run(ends).ok();
                if Path::new(DEVICE).exists() {
                    assert_same(DEVICE, &state, "after a kill");
                    tool.run(STOP).ok();
                }
            }
            states.nothing_left(guest, &format!("{signal:?} {ends}"));
        }
    });
}

#[test]
fn a_state_over_a_thick_volume_is_a_device() {
    shown(Kind::Thick, "a_state_over_a_thick_volume_is_a_device");
}

#[test]
fn a_state_over_a_thin_volume_is_a_device() {
    shown(Kind::Thin, "a_state_over_a_thin_volume_is_a_device");
}

/// Records that outlive a power cut.
const KEEP: &str = "/keep";

fn kept(line: &str) -> String {
    format!("{line} --state-dir {KEEP}/state")
}

/// The power is cut while it is shown: the volume is as it was, and what is left goes with one command.
fn cut(kind: Kind, name: &'static str) {
    Script::new(name, setup().time_limit(Duration::from_secs(120)))
        .phase("show", move |guest| {
            let states = States::make(guest, kind);
            guest.sh(&format!(
                "lvcreate -qq -y -n keep -L 32M there; mkfs.ext4 -q -b 4096 -J size=4 /dev/there/keep; \
                 mkdir -p {KEEP}; mount /dev/there/keep {KEEP}"
            ));
            fs::write(guest.shared().join("new"), &states.new).unwrap();
            states.bench.tool.run(&kept(SHOW)).ok();
            assert_same(DEVICE, &states.old, "shown");
            guest.announce("CUT");
            std::thread::sleep(Duration::from_secs(60));
        })
        .phase("after", move |guest| {
            guest.sh(&format!(
                "vgchange -qq -ay vg there 2>&1; mkdir -p {KEEP}; mount /dev/there/keep {KEEP}"
            ));
            let tool = Tool::new(guest);
            assert_ne!(States::left(guest), "", "the snapshot is there");
            let said = tool.run(&kept("doctor")).stdout;
            let way_out = said.lines().find(|line| line.contains("lvmsync view --stop"));
            let command = way_out.unwrap().split("lvmsync ").nth(1).unwrap();
            tool.run(command).ok();
            assert_eq!(States::left(guest), "");
            let views = fs::read_dir(format!("{KEEP}/state/views")).unwrap();
            assert_eq!(views.count(), 0);
            let said = tool.run(&kept("doctor")).stdout;
            assert!(!said.contains("view --stop"), "{said}");
            let new = fs::read(guest.shared().join("new")).unwrap();
            assert_same(DATA, &new, "after the cut");
            assert!(content(DATA) == new);
        })
        .drive(|driver| {
            let mut guest = driver.boot("show");
            driver.wait_for(&mut guest, "CUT", Duration::from_secs(60));
            guest.cut().unwrap();
            driver.run("after");
        });
}

#[test]
fn a_power_cut_leaves_of_a_device_over_a_thick_volume_what_one_command_removes() {
    let name = "a_power_cut_leaves_of_a_device_over_a_thick_volume_what_one_command_removes";
    cut(Kind::Thick, name);
}

#[test]
fn a_power_cut_leaves_of_a_device_over_a_thin_volume_what_one_command_removes() {
    let name = "a_power_cut_leaves_of_a_device_over_a_thin_volume_what_one_command_removes";
    cut(Kind::Thin, name);
}

/// A state that LVM would take for a disk of its own is shown only to who says so.
#[test]
fn a_physical_volume_is_not_shown_to_lvm_by_mistake() {
    let name = "a_physical_volume_is_not_shown_to_lvm_by_mistake";
    lab::test(name, setup(), |guest| {
        make(guest, Kind::Thick);
        let bench = Bench::new(guest);
        let mut image = Random::new(3).bytes(24 * MIB);
        fs::write(guest.scratch().join("other"), &image).unwrap();
        image[512..520].copy_from_slice(b"LABELONE");
        fs::write(guest.scratch().join("disk"), &image).unwrap();
        bench.tool.run("sync disk vg/data").ok();
        bench.tool.run("sync other vg/data --undo old.undo").ok();
        bench.tool.run(SHOW).ends(
            5,
            &["is a physical volume of LVM", "global_filter", "--nbd"],
        );
        bench.nothing_left("refused");
        bench.tool.run(&format!("{SHOW} --force")).ok();
        assert_same(DEVICE, &image, "with --force");
        bench.tool.run(STOP).ok();
        bench.nothing_left("stopped");
    });
}

/// What is on record elsewhere, or stands on what has another name by now, is found by what it carries.
#[test]
fn a_device_on_no_record_here_and_one_over_a_renamed_group_go_with_the_same_command() {
    let name = "a_device_on_no_record_here_and_one_over_a_renamed_group_go_with_the_same_command";
    let setup = setup().time_limit(Duration::from_secs(120));
    lab::test(name, setup, |guest| {
        let states = States::make(guest, Kind::Thick);
        let tool = &states.bench.tool;
        let elsewhere = format!("--state-dir {}", tool.path("elsewhere").display());
        let said = tool
            .run(&format!("{SHOW} --json --force {elsewhere}"))
            .ok()
            .stdout;
        let told: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(told["device"], DEVICE);
        assert_eq!(told["base"], "vg/data");
        assert_eq!(told["size_bytes"], 24 * MIB);
        assert!(
            told["snapshot"]
                .as_str()
                .unwrap()
                .starts_with("vg/data-lvmsync-"),
            "{said}"
        );

        let said = tool.run("doctor").stdout;
        assert!(
            said.contains("on record in another state directory"),
            "{said}"
        );
        assert!(!said.contains("lvremove"), "{said}");
        tool.run(SHOW)
            .ends(5, &["another state directory", "view --stop tuesday"]);
        let said = tool.run(&format!("{STOP} --json")).ok().stdout;
        let told: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(told["left"]["store"], serde_json::Value::Null, "{said}");
        states.nothing_left(guest, "stopped from elsewhere");
        let said = tool.run(&format!("doctor {elsewhere}")).stdout;
        assert!(said.contains("lvmsync view --stop tuesday"), "{said}");
        tool.run(&format!("{STOP} {elsewhere}")).ok();

        // The record is lost, and the device with it: what LVM knows is left.
        tool.run(SHOW).ok();
        guest.sh("dmsetup remove tuesday");
        for name in ["tuesday.json", "tuesday.store"] {
            fs::remove_file(tool.path("state/views").join(name)).unwrap();
        }
        let said = tool.run("doctor").stdout;
        let way_out = said.lines().find(|line| line.contains("lvremove")).unwrap();
        guest.sh(&way_out[way_out.find("lvremove").unwrap()..]);
        states.nothing_left(guest, "removed by hand");

        tool.run(SHOW).ok();
        guest.sh("vgrename -qq vg renamed");
        tool.run(STOP).ok();
        assert_eq!(States::left(guest), "");
        guest.sh("vgrename -qq renamed vg");
        states.nothing_left(guest, "over a group that was renamed");
    });
}

/// What would end badly is refused before anything is made, and what goes wrong below a device is told.
#[test]
fn names_of_volumes_and_full_disks_are_refused_and_a_base_that_moves_is_told() {
    let name = "names_of_volumes_and_full_disks_are_refused_and_a_base_that_moves_is_told";
    let setup = setup().time_limit(Duration::from_secs(120));
    lab::test(name, setup, |guest| {
        let states = States::make(guest, Kind::Thick);
        let tool = &states.bench.tool;
        guest.sh("lvcreate -qq -y -n idle -L 4M vg && lvchange -qq -an vg/idle");
        tool.run(&SHOW.replace("tuesday", "vg-idle"))
            .ends(5, &["logical volume vg/idle", "another name"]);
        guest.sh("lvremove -qq -y vg/idle");

        fs::create_dir_all(tool.path("state/views")).unwrap();
        let views = tool.path("state/views").display().to_string();
        guest.sh(&format!("mount -t tmpfs -o size=2M none {views}"));
        tool.run(SHOW).ends(5, &["are free there", "--store"]);
        assert_eq!(States::left(guest), "");
        tool.run(&format!("{SHOW} --store here")).ok();
        tool.run(STOP).ok();
        guest.sh(&format!("umount {views}"));
        states.nothing_left(guest, "no space");

        // Over a volume that is read-only, until it is not.
        guest.sh("lvchange -qq -pr vg/data 2>&1");
        tool.run(SHOW).ok();
        assert!(
            !tool
                .run("doctor")
                .stdout
                .contains("can be written to again")
        );
        guest.sh("lvchange -qq -prw vg/data 2>&1");
        let said = tool.run("doctor").stdout;
        assert!(said.contains("can be written to again"), "{said}");
        tool.run(STOP).ok();
        states.nothing_left(guest, "over a volume that was read-only for a while");

        // A snapshot that is full is lost, and so is what is shown over it.
        tool.run(&format!("{SHOW} --snapshot-size 4m")).ok();
        write(DATA, &vec![9; 8 * MIB], 0);
        let run = tool.run("doctor");
        assert!(
            run.stdout.contains("answers with I/O errors"),
            "{}",
            run.stdout
        );
        assert!(!run.stdout.contains("lvremove"), "{}", run.stdout);
        tool.run(STOP).ok();
        write(DATA, &states.new[..8 * MIB], 0);
        states.nothing_left(guest, "over a snapshot that overflowed");
    });
}

/// The state has the UUID of the volume: udev makes no link to it, and looks for nothing on it, while it is shown or after.
#[test]
fn udev_takes_a_state_for_no_disk() {
    lab::test("udev_takes_a_state_for_no_disk", setup(), |guest| {
        make(guest, Kind::Thick);
        let bench = Bench::new(guest);
        guest.sh("truncate -s 24M old; mkfs.ext4 -q -U 11111111-2222-3333-4444-555555555555 old");
        let old = fs::read(guest.scratch().join("old")).unwrap();
        let mut new = old.clone();
        new[20 * MIB..21 * MIB].fill(7);
        fs::write(guest.scratch().join("new"), &new).unwrap();
        bench.tool.run("sync old vg/data").ok();
        bench.tool.run("sync new vg/data --undo old.undo").ok();

        guest.sh("/lib/systemd/systemd-udevd --daemon");
        let settled = "udevadm settle --timeout 30";
        let links = |device: &str| {
            let node = format!("dmsetup info -c --noheadings -o blkdevname {device}");
            let find = format!("{settled}; find /dev/disk -lname \"*/$({node})\"");
            guest.sh(&find).trim().to_owned()
        };
        let found = |device: &str| guest.sh(&format!("udevadm info --query property {device}"));
        // Any other device with these bytes gets its links, so udev is at work.
        guest.sh("dmsetup create plain --readonly --table \"0 49152 linear /dev/vg/data 0\"");
        assert!(links("/dev/mapper/plain").contains("/by-uuid/"));
        assert!(found("/dev/mapper/plain").contains("ID_FS_UUID=11111111"));
        guest.sh("dmsetup remove --retry plain");

        bench.tool.run(SHOW).ok();
        for when in ["shown", "looked at again"] {
            assert_eq!(links(DEVICE), "", "{when}");
            let said = found(DEVICE);
            assert!(
                said.contains("DM_NAME=tuesday") && !said.contains("ID_FS"),
                "{when}: {said}"
            );
            guest.sh(&format!(
                "udevadm trigger --settle --action change {DEVICE}"
            ));
        }
        assert_same(DEVICE, &old, "under udev");
        bench.tool.run(STOP).ok();
        assert!(!Path::new(DEVICE).exists());
        bench.nothing_left("stopped");
        guest.sh("udevadm control --exit");
    });
}
