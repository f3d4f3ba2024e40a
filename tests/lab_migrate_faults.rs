//! What could lose a block of a volume that is moved, or have two services write to it: runs that are made once more, writes at
//! the worst moment, destinations that others wrote to, snapshots that are lost, Ctrl-C in the pause.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::{Guest, Setup};
use lab_kit::live;
use lab_kit::{Random, Run, Tool, assert_same, content, write};
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;

fn setup() -> Setup {
    lab_kit::setup()
        .disk("160M")
        .disk("160M")
        .time_limit(Duration::from_secs(180))
}

fn make(guest: &Guest, size: &str) {
    guest.sh(&format!(
        "vgcreate -qq --yes -s 1M vg {}",
        guest.disk(0).display()
    ));
    guest.volume("vg", "data", size);
    guest.sh(&format!(
        "vgcreate -qq --yes -s 1M there {}",
        guest.disk(1).display()
    ));
    write("/dev/vg/data", &Random::new(5).bytes(8 << 20), 0);
}

fn script(tool: &Tool, name: &str, text: &str) -> String {
    let path = tool.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

const MIGRATE: &str = "migrate vg/data there/data --create=thick";

#[test]
fn what_was_moved_is_not_moved_again_nor_started_here() {
    let name = "what_was_moved_is_not_moved_again_nor_started_here";
    lab::test(name, setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        let back = script(
            &tool,
            "back",
            &format!("touch {}", tool.path("BACK").display()),
        );
        let line = format!("{MIGRATE} --pause-cmd true --back-cmd {back}");
        let read_only = || {
            guest
                .sh("lvs --noheadings -o lv_permissions vg/data")
                .contains("read-only")
        };
        // The service does not start there: the volume is there all the same.
        tool.run(&format!("{line} --resume-cmd false"))
            .ends(1, &["all is moved", "was not started there"]);
        write("/dev/there/data", &[0x5a; 4096], MIB);
        let there = content("/dev/there/data");
        tool.run(&format!("{line} --resume-cmd 'true'"))
            .ends(0, &["was moved to there/data by an earlier run"]);
        assert!(read_only());
        // And once more, when nothing is left of it but the tag.
        for more in ["", " -n"] {
            tool.run(&format!("{line}{more}"))
                .ends(5, &["it was moved away", "--deltag lvmsync_migrated"]);
        }
        assert!(read_only() && !tool.path("BACK").exists());
        assert_same("/dev/there/data", &there, "what was written there since");
    });
}

/// The service did not start there, and goes on here as the docs say it may: what is there is old by then.
#[test]
fn what_was_moved_and_is_used_here_again_is_not_started_there() {
    let name = "what_was_moved_and_is_used_here_again_is_not_started_there";
    lab::test(name, setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        let started = tool.path("STARTED");
        let resume = script(&tool, "resume", &format!("touch {}", started.display()));
        let line = format!("{MIGRATE} --pause-cmd true");
        let fails_to_start = |more: &str| {
            tool.run(&format!("{line} --resume-cmd false {more}"))
                .ends(1, &["was not started there"]);
        };
        let refused = |found: &str| {
            for more in ["", " -n"] {
                tool.run(&format!("{line} --resume-cmd {resume}{more}"))
                    .ends(5, &["has moved it to there/data", found, "--abort"]);
            }
            assert!(!started.exists());
        };
        let attributes = || guest.sh("lvs --noheadings -o lv_permissions,lv_tags vg/data");
        fails_to_start("");
        guest.sh("lvchange -qq -prw vg/data");
        refused("it takes writes again");
        guest.sh("lvchange -qq --deltag lvmsync_migrated vg/data");
        write("/dev/vg/data", &[0x5a; 4096], MIB);
        refused("it has lost the tag");
        // To give it up tells where it is, whatever destination is named, and touches neither volume.
        let there = content("/dev/there/data");
        let run = tool.run("migrate vg/data there/other --abort --json").ok();
        assert!(
            run.stdout.contains(r#""outcome":"stays_moved""#),
            "{}",
            run.stdout
        );
        assert!(
            run.stdout.contains(r#""destination":"there/data""#),
            "{}",
            run.stdout
        );
        assert!(
            run.stderr.contains("was moved to there/data already"),
            "{}",
            run.stderr
        );
        assert!(!run.stderr.contains("lvchange"), "{}", run.stderr);
        assert_same("/dev/there/data", &there, "as it was");
        fails_to_start("");
        assert_same("/dev/there/data", &content("/dev/vg/data"), "moved anew");

        // What nobody has taken back stays safe when it is given up, and the way back is told.
        tool.run(&format!("{MIGRATE} --abort")).ends(
            0,
            &[
                "was moved to there/data already",
                "lvchange -prw --deltag lvmsync_migrated vg/data",
            ],
        );
        assert!(attributes().contains("read-only"), "{}", attributes());
        tool.run(&line).ends(5, &["it was moved away"]);
        guest.sh("lvchange -qq -prw --deltag lvmsync_migrated vg/data");

        // What was to stay writable is not taken for used again.
        fails_to_start("--keep-writable");
        tool.run(&format!("{line} --resume-cmd {resume} -n"))
            .ends(0, &[]);
        assert!(!started.exists());
        let run = tool.run(&format!("{line} --resume-cmd {resume} --json"));
        assert!(
            run.stdout.contains(r#""outcome":"moved_earlier""#),
            "{}",
            run.stdout
        );
        run.ends(0, &["was moved to there/data by an earlier run"]);
        assert!(started.exists());
    });
}

/// What is used there since is not overwritten, even though the volume here takes writes.
#[test]
fn what_was_moved_and_stays_writable_is_not_moved_again() {
    let name = "what_was_moved_and_stays_writable_is_not_moved_again";
    lab::test(name, setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        let line = format!("{MIGRATE} --pause-cmd true --keep-writable");
        tool.run(&line).ok();
        let attributes = || guest.sh("lvs --noheadings -o lv_permissions,lv_tags vg/data");
        assert!(attributes().contains("writeable"), "{}", attributes());
        assert!(
            attributes().contains("lvmsync_migrated"),
            "{}",
            attributes()
        );
        write("/dev/there/data", &[0x5a; 4096], MIB);
        let there = content("/dev/there/data");
        for more in ["", " -n"] {
            tool.run(&format!("{line}{more}")).ends(
                5,
                &[
                    "it was moved away",
                    "lvchange --deltag lvmsync_migrated vg/data",
                ],
            );
        }
        assert_same("/dev/there/data", &there, "what was written there since");
        guest.sh("lvchange -qq --deltag lvmsync_migrated vg/data");
        tool.run(&line).ok();
        assert_same("/dev/there/data", &content("/dev/vg/data"), "as was said");
    });
}

/// By whoever writes right after the last snapshot was made.
#[test]
fn no_write_in_the_pause_is_lost() {
    lab::test("no_write_in_the_pause_is_lost", setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        let flag = tool.path("STOPPED");
        let pause = script(&tool, "pause", &format!("touch {}", flag.display()));
        let snapshots = || -> BTreeSet<String> {
            fs::read_dir("/sys/block")
                .unwrap()
                .flatten()
                .filter_map(|entry| fs::read_to_string(entry.path().join("dm/name")).ok())
                .filter(|name| {
                    name.starts_with("vg-data--lvmsync") && name.trim().ends_with("-cow")
                })
                .collect()
        };
        let child = tool.start(&format!("{MIGRATE} --pause-cmd {pause}"));
        while !flag.exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let before = snapshots();
        while snapshots().is_subset(&before) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(60));
        write("/dev/vg/data", &Random::new(9).bytes(4096), 2 * MIB);
        Run::of(child).ends(0, &["another one is made", "is moved to"]);
        assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
    });
}

/// Each increment of a pause keeps the snapshot before it, for there is no time to remove it then.
#[test]
fn a_pause_that_fails_leaves_no_snapshot_but_the_last() {
    let name = "a_pause_that_fails_leaves_no_snapshot_but_the_last";
    lab::test(name, setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        let (flag, enough) = (tool.path("STOPPED"), AtomicBool::new(false));
        let pause = script(&tool, "pause", &format!("touch {}", flag.display()));
        let line = format!("{MIGRATE} --snapshot-size 8M --pause-cmd");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                    if !flag.exists() {
                        continue;
                    }
                    // It takes none while it is made safe.
                    if let Ok(volume) = File::options().write(true).open("/dev/vg/data") {
                        let _ = volume.write_all_at(&[7; 4096], 2 * MIB);
                        let _ = volume.sync_data();
                    }
                }
            });
            let run = tool.run(&format!("{line} {pause}"));
            enough.store(true, Ordering::Relaxed);
            run.ends(5, &["another one is made", "still written to"]);
        });
        let left = guest.sh("lvs --noheadings -o lv_name vg");
        assert_eq!(left.matches("data-lvmsync-").count(), 1, "{left}");
        let plan = tool.run(&format!("{line} true -n --json")).ok().stdout;
        for words in [
            r#""outcome":"planned""#,
            "goes on from vg/data-lvmsync-",
            "gets what was written since",
        ] {
            assert!(plan.contains(words), "{plan}");
        }
        tool.run(&format!("{line} true")).ok();
        assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
    });
}

/// Whoever is asked to stop the service may take an hour: what is written meanwhile is not left for the pause.
#[test]
fn rounds_go_on_while_somebody_is_asked_to_stop_the_service() {
    let name = "rounds_go_on_while_somebody_is_asked_to_stop_the_service";
    lab::test(name, setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        let line = format!("{MIGRATE} --max-pause 300ms --json");
        let said = tool.path("SAID");
        let mut child = Command::new("script")
            .args(["-qec", &format!("{} {line}", lab_kit::LVMSYNC), "/dev/null"])
            .env("LVMSYNC_STATE_DIR", tool.path("state"))
            .stdin(Stdio::piped())
            .stdout(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        let text = || fs::read_to_string(&said).unwrap();
        live::wait_until("it asks", || {
            assert!(child.try_wait().unwrap().is_none(), "{}", text());
            text().contains("press Enter")
        });
        let snapshots = || guest.sh("lvs --noheadings -o lv_name -S lv_name=~lvmsync vg");
        write("/dev/vg/data", &Random::new(9).bytes(3 << 20), 10 * MIB);
        let before = snapshots();
        live::wait_until("a round is made", || {
            let now = snapshots();
            now.lines().count() == 1 && now != before
        });
        child.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
        assert!(child.wait().unwrap().success(), "{}", text());
        let text = text();
        // The terminal has it after what takes the bar away.
        let report = &text[text.find(r#"{"outcome""#).unwrap()..];
        let report: serde_json::Value =
            serde_json::from_str(report.lines().next().unwrap()).unwrap();
        assert!(
            report["pause"]["bytes"].as_u64().unwrap() < 3 << 20,
            "{report}"
        );
        assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
    });
}

#[test]
fn a_destination_that_others_wrote_to_is_compared() {
    let name = "a_destination_that_others_wrote_to_is_compared";
    lab::test(name, setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        tool.run(&format!("{MIGRATE} --pause-cmd false"))
            .ends(1, &["`false`"]);
        write("/dev/there/data", &[0x5a; 4096], 3 * MIB + 8192);
        tool.run(&format!("{MIGRATE} --pause-cmd true"))
            .ends(0, &["comparing instead", "is moved to"]);
        assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
    });
}

#[test]
fn room_for_both_snapshots_is_looked_for_before_anything_is_copied() {
    let name = "room_for_both_snapshots_is_looked_for_before_anything_is_copied";
    lab::test(name, setup(), |guest| {
        // 64 MiB are left: half of it for each.
        make(guest, "90M");
        let tool = Tool::new(guest);
        tool.run(&format!("{MIGRATE} --pause-cmd true --snapshot-size 60M"))
            .ends(5, &["no room", "two of them"]);
        assert!(!fs::exists("/dev/there/data").unwrap());
        tool.run(&format!("{MIGRATE} --pause-cmd true")).ok();
        assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
    });
}

#[test]
fn a_snapshot_that_overflows_costs_a_comparison() {
    let name = "a_snapshot_that_overflows_costs_a_comparison";
    lab::test(name, setup(), |guest| {
        make(guest, "60M");
        let tool = Tool::new(guest);
        let line = format!("{MIGRATE} --pause-cmd true --snapshot-size 2M");
        let child = tool.start(&format!("{line} --bwlimit 4M"));
        live::wait_until("the snapshot is there", || {
            guest
                .sh("lvs --noheadings -o lv_name vg")
                .contains("data-lvmsync-")
        });
        std::thread::sleep(Duration::from_millis(500));
        // Fills the group, so that nothing can be made larger, and then the snapshot.
        guest.sh("lvcreate -qq -y -an -Zn -Wn -l 100%FREE -n full vg");
        write("/dev/vg/data", &Random::new(6).bytes(8 << 20), 40 * MIB);
        Run::of(child).ends(4, &["lvmsync sync"]);
        guest.sh("lvremove -qq -y vg/full");
        tool.run(&line).ok();
        assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
    });
}

/// With a virsh of our own: what cannot be stopped is found before hours of copying, and what was not stopped is not waited for.
#[test]
fn a_virtual_machine_that_cannot_be_stopped_is_left_as_it_is() {
    let name = "a_virtual_machine_that_cannot_be_stopped_is_left_as_it_is";
    lab::test(name, setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        script(
            &tool,
            "virsh",
            &format!(
                "cd {}; case $2 in vm|gone) ;; *) exit 1 ;; esac\n\
                 case $1 in domstate) cat domain ;; dominfo) echo \"Persistent:     $(test $2 = vm && echo yes || echo no)\" ;;\n\
                 shutdown) test ! -e refuses && echo 'shut off' > domain ;; start) echo running > domain ;; esac",
                guest.scratch().display()
            ),
        );
        let domain = tool.path("domain");
        fs::write(&domain, "running\n").unwrap();
        let path = format!(
            "{}:{}",
            guest.scratch().display(),
            std::env::var("PATH").unwrap()
        );
        let run = |more: &str| {
            let line = format!("{MIGRATE} {more}");
            let output = tool.command(&line).env("PATH", &path).output().unwrap();
            Run::new(&line, &output)
        };
        for more in ["", " -n"] {
            run(&format!("--vm typo{more}")).ends(5, &["typo", "virsh list --all"]);
            run(&format!("--vm gone{more}")).ends(5, &["not persistent", "virsh define"]);
        }
        assert!(
            !fs::exists("/dev/there/data").unwrap(),
            "nothing was copied"
        );

        fs::write(tool.path("refuses"), "").unwrap();
        let begun = Instant::now();
        let refused = run("--vm vm --vm-timeout 100s");
        assert!(!refused.stderr.contains("start"), "{}", refused.stderr);
        refused.ends(1, &["virsh shutdown vm", "is left as it is"]);
        assert!(
            begun.elapsed() < Duration::from_secs(90),
            "it was waited for"
        );
        assert_eq!(fs::read_to_string(&domain).unwrap(), "running\n");

        // It is started here again, once it is off, if the volume stays here.
        fs::remove_file(tool.path("refuses")).unwrap();
        guest.sh("mkfs.ext4 -q /dev/vg/data 2>&1; mkdir m; mount /dev/vg/data m");
        run("--vm vm").ends(5, &["still mounted for writing", "was started here again"]);
        assert_eq!(fs::read_to_string(&domain).unwrap(), "running\n");
        guest.sh("umount m");
        run("--vm vm").ends(0, &["is moved to"]);
        assert_eq!(fs::read_to_string(&domain).unwrap(), "shut off\n");
        assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
    });
}

/// The command that stops the service takes its time, and does not want to be stopped itself.
#[test]
fn ctrl_c_in_the_pause_starts_the_service_after_all_that_stops_it_has_ended() {
    let name = "ctrl_c_in_the_pause_starts_the_service_after_all_that_stops_it_has_ended";
    lab::test(name, setup(), |guest| {
        make(guest, "24M");
        let tool = Tool::new(guest);
        let path = |name: &str| tool.path(name).display().to_string();
        let pause = script(
            &tool,
            "pause",
            &format!(
                "trap 'sleep 2; touch {}; exit 1' TERM; touch {}; sleep 100 & wait",
                path("ENDED"),
                path("BEGUN")
            ),
        );
        let back = script(
            &tool,
            "back",
            &format!(
                "test -e {} && sleep 12 && touch {}",
                path("ENDED"),
                path("BACK")
            ),
        );
        let child = tool.start(&format!("{MIGRATE} --pause-cmd {pause} --back-cmd {back}"));
        while !tool.path("BEGUN").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        for _ in 0..2 {
            kill_process(pid, Signal::INT).unwrap();
            std::thread::sleep(Duration::from_millis(500));
        }
        Run::of(child).ends(130, &["was started here again"]);
        assert!(tool.path("BACK").exists(), "it was waited for");
        assert!(
            guest
                .sh("lvs --noheadings -o lv_permissions vg/data")
                .contains("writeable")
        );
    });
}

#[test]
fn what_another_migration_needs_is_left_alone() {
    lab::test(
        "what_another_migration_needs_is_left_alone",
        setup(),
        |guest| {
            make(guest, "24M");
            let tool = Tool::new(guest);
            tool.run(&format!("{MIGRATE} --pause-cmd false"))
                .ends(1, &[]);
            let before = guest.sh("lvs --noheadings -o lv_name vg");
            let other = tool.path("other-state").display().to_string();
            tool.run(&format!("{MIGRATE} --pause-cmd true --state-dir {other}"))
                .ends(
                    5,
                    &[
                        "another migration of it",
                        "--state-dir",
                        "lvremove vg/data-lvmsync-",
                    ],
                );
            tool.run(&format!("{MIGRATE} --abort --state-dir {other}"))
                .ok();
            assert_eq!(guest.sh("lvs --noheadings -o lv_name vg"), before);
            tool.run(&format!("{MIGRATE} --pause-cmd true")).ok();
            assert_same("/dev/there/data", &content("/dev/vg/data"), "all of it");
        },
    );
}
