//! Jobs that follow a volume by dm-era: round after round the targets hold what the volume held, no snapshot stays, and where
//! the record proves nothing they are compared.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Guest;
use lab_kit::eras::{DEVICE, era_of, held};
use lab_kit::{
    Random, Run, Tool, assert_same, content, long, lvmsync_processes, seed, setup, write,
};

const MIB: u64 = 1 << 20;
const TARGETS: [&str; 2] = ["/dev/there/near", "/dev/there/second"];

struct Job<'a> {
    guest: &'a Guest,
    tool: Tool,
    line: String,
}

impl<'a> Job<'a> {
    fn new(guest: &'a Guest, more: &str) -> Self {
        let tool = Tool::new(guest);
        let directory = tool.path("jobs.d");
        fs::create_dir_all(&directory).unwrap();
        let targets = TARGETS.map(|path| {
            let to = path.strip_prefix("/dev/").unwrap();
            format!("[[target]]\nto = \"{to}\"\ncreate = \"thick\"\n")
        });
        let text = format!(
            "source = \"vg/data\"\ninterval = \"1h\"\n{more}\n{}",
            targets.join("\n")
        );
        fs::write(directory.join("data.toml"), text).unwrap();
        let line = format!("replicate data --jobs-dir {}", directory.display());
        Self { guest, tool, line }
    }

    fn run(&self) -> Run {
        self.tool.run(&self.line)
    }

    /// Both targets are equal, and nothing but the volume and its record is there.
    #[track_caller]
    fn is_there(&self, when: &str) {
        let now = content("/dev/vg/data");
        for target in TARGETS {
            assert_same(target, &now, when);
        }
        assert_eq!(self.volumes(), "data data_era", "{when}");
    }

    fn volumes(&self) -> String {
        let listed = self.guest.sh("lvs --noheadings -o lv_name vg");
        listed.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

fn make(guest: &Guest) {
    guest.volume_group("vg", 0);
    guest.sh(&format!(
        "vgcreate -qq --yes -s 1M there {}",
        guest.disk(1).display()
    ));
    guest.volume("vg", "data", "24M");
    write("/dev/vg/data", &Random::new(3).bytes(20 << 20), MIB);
}

fn change(random: &mut Random) {
    for _ in 0..1 + random.below(8) {
        let at = random.below(23 * MIB);
        let length = 1 + usize::try_from(random.below(60_000)).unwrap();
        write(DEVICE, &random.bytes(length), at);
    }
}

fn wait_until_quiet() {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lvmsync_processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", lvmsync_processes());
        sleep(Duration::from_millis(20));
    }
}

fn killed_rounds(name: &str, more: &'static str) {
    let setup = setup().disk("160M").disk("160M");
    let limit = Duration::from_secs(if long() { 3000 } else { 300 });
    lab::test(name, setup.time_limit(limit), |guest| {
        let mut random = Random::new(seed(guest));
        make(guest);
        let job = Job::new(guest, more);
        job.run().ends(5, &["track = \"era\"", "track up"]);
        job.tool.run("track enable vg/data").ok();
        job.run().ok();
        job.is_there("the first time");
        let mut killed = 0;
        for round in 0..if long() { 100 } else { 6 } {
            change(&mut random);
            if round % 2 == 1 {
                let mut run = job.tool.start(&job.line);
                sleep(Duration::from_millis(random.below(2500)));
                killed += u32::from(run.try_wait().unwrap().is_none());
                run.kill().unwrap();
                run.wait().unwrap();
                wait_until_quiet();
                change(&mut random);
            }
            let run = job.run();
            // What is half-written, and keeps a way back, is taken back first: by the run, or by the one after it.
            if run.code == Some(5) && round % 2 == 1 && !more.is_empty() {
                job.run().ok();
            } else {
                let run = run.ok();
                assert!(!run.stderr.contains("comparing"), "{}", run.stderr);
            }
            job.is_there(&format!("round {round}"));
        }
        guest.announce(&format!("{killed} were killed at work"));
    });
}

#[test]
fn a_job_follows_eras_whatever_is_killed() {
    killed_rounds("a_job_follows_eras_whatever_is_killed", "track = \"era\"");
}

#[test]
fn a_job_follows_eras_and_keeps_a_way_back() {
    killed_rounds(
        "a_job_follows_eras_and_keeps_a_way_back",
        "track = \"era\"\nhistory = true",
    );
}

#[test]
fn a_job_compares_where_eras_prove_nothing() {
    let setup = setup().disk("160M").disk("160M");
    lab::test("a_job_compares_where_eras_prove_nothing", setup, |guest| {
        let mut random = Random::new(seed(guest));
        make(guest);
        // Followed by snapshots before.
        let job = Job::new(guest, "");
        job.run().ok();
        assert!(job.volumes().contains("data-"), "{}", job.volumes());
        let hooks = "track = \"era\"\n[hooks]\nbefore_snapshot = \"echo before >>/tmp/said\"\nafter_snapshot = \"echo after >>/tmp/said\"";
        let job = Job::new(guest, hooks);
        job.tool.run("track enable vg/data").ok();
        let run = job.run().ok();
        assert!(run.stderr.contains("compared once"), "{}", run.stderr);
        job.is_there("by eras from now on");
        assert_eq!(guest.sh("cat /tmp/said"), "before\nafter\nbefore\nafter\n");

        // Something wrote past the era device.
        guest.sh("dmsetup remove vg-data-era");
        write("/dev/vg/data", &random.bytes(512), 1024);
        job.tool.run("track up vg/data").ok();
        change(&mut random);
        let run = job.run().ok();
        assert!(run.stderr.contains("comparing instead"), "{}", run.stderr);
        job.is_there("after a bypass");
        // The record was made anew.
        job.tool.run("track disable vg/data").ok();
        write("/dev/vg/data", &random.bytes(8192), 5 * MIB);
        job.tool.run("track enable vg/data").ok();
        for _ in 0..30 {
            guest.sh("dmsetup message vg-data-era 0 checkpoint");
        }
        job.run().ok();
        job.is_there("with another record");
        change(&mut random);
        let run = job.run().ok();
        assert!(!run.stderr.contains("compar"), "{}", run.stderr);
        job.is_there("and on");

        // One that is further than the job knows, as where a run was killed when all was done there.
        let era = era_of(&held(&job.tool, "there/near"));
        change(&mut random);
        let line = format!("send --from era:{era} {DEVICE} there/near");
        job.tool.run(&line).ok();
        change(&mut random);
        let run = job.run().ok();
        assert!(!run.stderr.contains("compar"), "{}", run.stderr);
        job.is_there("from where it was");

        // What a target holds it must say itself.
        job.tool.run("state forget there/near").ok();
        change(&mut random);
        let way_out = "lvmsync replicate data --compare";
        job.run().ends(5, &["there/near", way_out]);
        job.tool.run(&format!("{} --compare", job.line)).ok();
        change(&mut random);
        let run = job.run().ok();
        assert!(!run.stderr.contains("compar"), "{}", run.stderr);
        job.is_there("in the end");
    });
}
