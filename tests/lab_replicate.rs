//! Replication jobs: round after round the target holds what the snapshot held, whatever was killed, removed or lost in
//! between, and in the end nothing lies about. Targets that are away, and jobs that run at the same time.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and figures are told"
)]

mod lab_kit;

use std::fs;
use std::time::{Duration, Instant};

use lab::{Guest, Setup};
use lab_kit::live::{self, bases};
use lab_kit::thin::{self, lvm};
use lab_kit::{Random, Run, Tool, assert_same, content, long, lvmsync_processes, seed, write};
use rustix::process::{Pid, Signal, kill_process};

const MIB: u64 = 1 << 20;
const LVS: &str = "lvs --noheadings -o lv_name vg";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Thick,
    Thin,
}

fn setup() -> Setup {
    lab_kit::setup()
        .disk("160M")
        .disk("96M")
        .time_limit(Duration::from_secs(if long() { 3000 } else { 180 }))
}

/// `vg/data` of 16 MiB; `there`, for its copies.
fn make(guest: &Guest, kind: Kind) {
    match kind {
        Kind::Thick => {
            guest.sh(&format!(
                "vgcreate -qq --yes -s 1M vg {}",
                guest.disk(0).display()
            ));
            guest.volume("vg", "data", "16M");
        }
        Kind::Thin => {
            thin::group(guest, "vg", 0);
            thin::pool(guest, "vg/pool", 96, 64, "");
            lvm(guest, "lvcreate -qq -y -T -V 16M -n data vg/pool");
        }
    }
    guest.sh(&format!(
        "vgcreate -qq --yes -s 1M there {}",
        guest.disk(1).display()
    ));
    write("/dev/vg/data", &Random::new(3).bytes(6 << 20), MIB);
}

fn put_job(tool: &Tool, name: &str, text: &str) {
    fs::create_dir_all(tool.path("jobs.d")).unwrap();
    fs::write(tool.path("jobs.d").join(format!("{name}.toml")), text).unwrap();
}

fn line(tool: &Tool, words: &str) -> String {
    format!("{words} --jobs-dir {}", tool.path("jobs.d").display())
}

/// Some blocks, here and there.
fn change(random: &mut Random) {
    for _ in 0..1 + random.below(8) {
        let at = random.below(15 * MIB);
        let length = 1 + usize::try_from(random.below(60_000)).unwrap();
        write("/dev/vg/data", &random.bytes(length), at);
    }
}

fn wait_until_quiet() {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lvmsync_processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", lvmsync_processes());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn rounds(name: &str, kind: Kind) {
    lab::test(name, setup(), |guest| {
        let mut random = Random::new(seed(guest));
        make(guest, kind);
        let tool = Tool::new(guest);
        let volumes = guest.sh(LVS);
        let size = if kind == Kind::Thick {
            "snapshot_size = \"4M\"\n"
        } else {
            ""
        };
        put_job(
            &tool,
            "data",
            &format!(
                "source = \"vg/data\"\ninterval = \"1h\"\n{size}\n[[target]]\nto = \"there/near\"\ncreate = \"thick\"\n\n\
                 [[target]]\nto = \"there/second\"\ncreate = \"thick\"\nverify = true\n"
            ),
        );
        let run = line(&tool, "replicate data");
        let targets = ["/dev/there/near", "/dev/there/second"];
        let count = if long() { 100 } else { 4 };
        let mut faults = [0; 4];
        for round in 0..count {
            change(&mut random);
            let fault = if round == 0 {
                3
            } else {
                usize::try_from(random.below(4)).unwrap()
            };
            faults[fault] += 1;
            match fault {
                // Killed somewhere.
                0 => {
                    let mut child = tool.start(&run);
                    std::thread::sleep(Duration::from_millis(random.below(4000)));
                    if child.try_wait().unwrap().is_none() {
                        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
                        kill_process(pid, Signal::KILL).unwrap();
                    }
                    drop(Run::of(child));
                    wait_until_quiet();
                    change(&mut random);
                }
                // A base is removed by hand.
                1 => {
                    if let Some(base) = bases(guest).first() {
                        lvm(guest, &format!("lvremove -qq -y vg/{base}"));
                    }
                }
                // A base overflows; a thin one cannot.
                2 if kind == Kind::Thick => {
                    write("/dev/vg/data", &random.bytes(9 << 20), 2 * MIB);
                }
                _ => {}
            }
            let done = tool.run(&run).ok();
            let now = content("/dev/vg/data");
            for target in targets {
                assert_same(target, &now, &format!("round {round}, fault {fault}"));
            }
            assert_eq!(bases(guest).len(), 1, "round {round}: one base for both");
            let status = tool.run(&line(&tool, "status --json")).ok();
            let rows: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
            for row in rows.as_array().unwrap() {
                assert!(
                    row["error"].is_null() && row["lag_seconds"].as_i64().unwrap() < 120,
                    "{row}"
                );
                assert_eq!(row["last_run"], row["last_success_run"], "{row}");
            }
            // Each step is a line that has the id of its run.
            let id = format!(" run={}", rows[0]["last_run"].as_str().unwrap());
            for step in [
                "begins",
                "made snapshot vg/data",
                "to there/near",
                "there/second holds vg/data",
                "removed snapshot vg/data",
                "done",
            ] {
                // The first run has no base that could go; another one may have been removed by hand.
                if step.starts_with("removed") && (round == 0 || fault != 3) {
                    continue;
                }
                let is = |line: &str| line.contains(step) && line.contains(&id);
                assert!(done.stderr.lines().any(is), "{step}: {}", done.stderr);
            }
        }
        println!(
            "replicate: {kind:?}: {count} rounds; killed, removed, overflowed, nothing: {faults:?}"
        );
        // A job that is not wanted any more keeps nothing: its bases have its tag.
        lvm(
            guest,
            "lvremove -qq -y --select 'lv_tags={lvmsync_of_job_data}' vg",
        );
        assert_eq!(guest.sh(LVS), volumes);
    });
}

#[test]
fn rounds_of_a_thick_volume() {
    rounds("rounds_of_a_thick_volume", Kind::Thick);
}

#[test]
fn rounds_of_a_thin_volume() {
    rounds("rounds_of_a_thin_volume", Kind::Thin);
}

/// Two targets of one source; one is away for some rounds, and the other one is served.
fn away(name: &str, kind: Kind) {
    lab::test(name, setup(), |guest| {
        let mut random = Random::new(seed(guest));
        make(guest, kind);
        let tool = Tool::new(guest);
        let size = if kind == Kind::Thick {
            "snapshot_size = \"24M\"\n"
        } else {
            ""
        };
        put_job(
            &tool,
            "data",
            &format!(
                "source = \"vg/data\"\ninterval = \"1h\"\n{size}[hooks]\n\
                 on_failure = \"echo $LVMSYNC_JOB >> failed\"\n\n\
                 [[target]]\nto = \"far:there/far\"\ncreate = \"thick\"\n\n\
                 [[target]]\nto = \"there/near\"\ncreate = \"thick\"\n"
            ),
        );
        let far = guest.host("far");
        let run = line(&tool, "replicate data");
        tool.run(&run).ok();
        assert_same("/dev/there/far", &content("/dev/vg/data"), "first");
        let old = content("/dev/there/far");
        let lag = || {
            let status = tool.run(&line(&tool, "status --json")).ok();
            let rows: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
            let rows = rows.as_array().unwrap().iter();
            let found: Vec<i64> = rows
                .map(|row| row["lag_seconds"].as_i64().unwrap())
                .collect();
            (found[0], found[1])
        };
        far.stop();
        let rounds = if long() { 10 } else { 2 };
        for round in 0..rounds {
            change(&mut random);
            tool.run(&run).ends(7, &["far:there/far"]);
            assert_same(
                "/dev/there/near",
                &content("/dev/vg/data"),
                "the other one goes on",
            );
            assert_same("/dev/there/far", &old, "away");
            // What it holds, what it was to get first, and what the other one holds.
            let found = bases(guest).len();
            assert_eq!(found, if round == 0 { 2 } else { 3 }, "round {round}");
        }
        let failed = fs::read_to_string(guest.scratch().join("failed")).unwrap();
        assert_eq!(failed.lines().count(), rounds, "{failed}");
        let status = tool.run(&line(&tool, "status")).ends(0, &[]);
        assert!(status.stdout.contains("far:there/far"), "{}", status.stdout);
        let (behind, near) = lag();
        assert!(behind > near, "{behind} {near}");
        far.start();
        change(&mut random);
        let caught_up = tool.run(&run).ok();
        assert!(
            !caught_up.stderr.contains("compared"),
            "from the base that was kept: {}",
            caught_up.stderr
        );
        for target in ["/dev/there/near", "/dev/there/far"] {
            assert_same(target, &content("/dev/vg/data"), "caught up");
        }
        assert_eq!(bases(guest).len(), 1);
        let (recovered, near) = lag();
        assert!(recovered == near && recovered < 60, "{recovered} {near}");
    });
}

#[test]
fn a_target_of_a_thin_volume_that_is_away_is_caught_up_with() {
    away(
        "a_target_of_a_thin_volume_that_is_away_is_caught_up_with",
        Kind::Thin,
    );
}

#[test]
fn a_target_of_a_thick_volume_that_is_away_is_caught_up_with() {
    away(
        "a_target_of_a_thick_volume_that_is_away_is_caught_up_with",
        Kind::Thick,
    );
}

/// Two volumes of one pool, whose metadata one of them at a time may hold; and two jobs of one volume.
#[test]
fn jobs_of_one_pool_and_of_one_volume_run_at_the_same_time() {
    let name = "jobs_of_one_pool_and_of_one_volume_run_at_the_same_time";
    lab::test(name, setup(), |guest| {
        let mut random = Random::new(seed(guest));
        make(guest, Kind::Thin);
        lvm(guest, "lvcreate -qq -y -T -V 8M -n more vg/pool");
        write("/dev/vg/more", &random.bytes(3 << 20), MIB);
        let tool = Tool::new(guest);
        let volumes = guest.sh(LVS);
        let jobs = [("one", "data"), ("two", "more"), ("three", "data")];
        for (job, source) in jobs {
            put_job(
                &tool,
                job,
                &format!(
                    "source = \"vg/{source}\"\ninterval = \"1h\"\n[[target]]\nto = \"there/{job}\"\n\
                     create = \"thick\"\n"
                ),
            );
        }
        for round in 0..if long() { 20 } else { 2 } {
            change(&mut random);
            let at = random.below(7 * MIB);
            write("/dev/vg/more", &random.bytes(50_000), at);
            if round % 2 == 0 {
                let started =
                    jobs.map(|(job, _)| tool.start(&line(&tool, &format!("replicate {job}"))));
                for child in started {
                    Run::of(child).ok();
                }
            } else {
                let run = tool
                    .run(&line(&tool, "replicate one two three --jobs 3"))
                    .ok();
                for (job, _) in jobs {
                    assert!(
                        run.stderr.contains(&format!("there/{job} holds")),
                        "{}",
                        run.stderr
                    );
                }
            }
            for (job, source) in jobs {
                let now = content(format!("/dev/vg/{source}"));
                assert_same(format!("/dev/there/{job}"), &now, &format!("round {round}"));
            }
            assert_eq!(bases(guest).len(), 3, "round {round}: one of each");
            assert_eq!(thin::held_root(guest, "vg/pool"), "-", "round {round}");
            assert_eq!(tool.held(), [""; 0], "round {round}");
        }
        lvm(guest, "lvremove -qq -y --select 'lv_tags=lvmsync_base' vg");
        assert_eq!(guest.sh(LVS), volumes);
    });
}

#[test]
fn a_snapshot_that_fills_is_made_larger_up_to_the_limit() {
    let name = "a_snapshot_that_fills_is_made_larger_up_to_the_limit";
    lab::test(name, setup(), |guest| {
        make(guest, Kind::Thick);
        let tool = Tool::new(guest);
        put_job(
            &tool,
            "data",
            "source = \"vg/data\"\ninterval = \"1h\"\nsnapshot_size = \"4M\"\nextend_limit = \"7M\"\n\
             bwlimit = \"1M\"\n[[target]]\nto = \"there/near\"\ncreate = \"thick\"\n",
        );
        let run = line(&tool, "replicate data");
        let size = || guest.sh("lvs --noheadings --units m -o lv_size vg/data-data-1");
        let before = content("/dev/vg/data");
        let child = tool.start(&run);
        live::wait_until("there is a snapshot", || {
            guest
                .try_sh("dmsetup status vg-data--data--1")
                .status
                .success()
        });
        write("/dev/vg/data", &Random::new(4).bytes(3200 << 10), 8 * MIB);
        live::wait_until("it is made larger", || size().contains("7.00m"));
        Run::of(child).ends(0, &["vg/data-data-1", "it was made larger"]);
        assert_same("/dev/there/near", &before, "what the snapshot held");
        // Three quarters of what it may be.
        write("/dev/vg/data", &Random::new(5).bytes(2400 << 10), 2 * MIB);
        tool.run(&run).ends(
            0,
            &["vg/data-data-1", "has reached its limit", "extend_limit"],
        );
        assert_same("/dev/there/near", &content("/dev/vg/data"), "the next one");
        assert_eq!(bases(guest).len(), 1);
    });
}
