//! What stops a job, and that what its message or the documentation names gets it going again: a target that somebody wrote
//! to or lost, a hook that fails halfway, a snapshot that is in use, other names, another source.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: what does not hold fails the test"
)]

mod lab_kit;

use std::fs;

use lab::{Guest, Setup};
use lab_kit::thin::lvm;
use lab_kit::{Random, Run, Tool, assert_same, content, setup, write};

const MIB: u64 = 1 << 20;
const COPY: &str = "/dev/there/copy";

fn machine() -> Setup {
    setup().disk("160M").disk("96M")
}

struct Job<'a> {
    guest: &'a Guest,
    tool: Tool,
    random: Random,
}

impl<'a> Job<'a> {
    fn new(guest: &'a Guest) -> Self {
        guest.volume_group("vg", 0);
        guest.volume("vg", "data", "16M");
        guest.volume_group("there", 1);
        let job = Self {
            guest,
            tool: Tool::new(guest),
            random: Random::new(7),
        };
        write("/dev/vg/data", &Random::new(3).bytes(6 << 20), MIB);
        job.put("vg/data", "");
        job
    }

    fn put(&self, source: &str, more: &str) {
        let directory = self.tool.path("jobs.d");
        fs::create_dir_all(&directory).unwrap();
        let text = format!(
            "source = \"{source}\"\ninterval = \"1h\"\n{more}\n[[target]]\nto = \"there/copy\"\ncreate = \"thick\"\n"
        );
        fs::write(directory.join("data.toml"), text).unwrap();
    }

    fn run(&self, options: &str) -> Run {
        let directory = self.tool.path("jobs.d");
        let line = format!(
            "replicate data --jobs-dir {} {options}",
            directory.display()
        );
        self.tool.run(&line)
    }

    fn change(&mut self, volume: &str) {
        let at = self.random.below(15 * MIB);
        write(volume, &self.random.bytes(60_000), at);
    }

    /// A run that sends an increment of `volume`, and compares nothing.
    #[track_caller]
    fn goes_on(&mut self, volume: &str, when: &str) {
        self.change(volume);
        let run = self.run("").ok();
        assert!(!run.stderr.contains("compar"), "{when}: {}", run.stderr);
        assert_same(COPY, &content(volume), when);
        let bases = self.bases(volume);
        assert_eq!(bases.len(), 1, "{when}: {bases:?}");
    }

    fn bases(&self, volume: &str) -> Vec<String> {
        let group = volume.split('/').nth(2).unwrap();
        let line = format!("lvs --noheadings -o lv_name -S lv_tags=lvmsync_base {group}");
        let listed = self.guest.sh(&line);
        listed.split_whitespace().map(str::to_owned).collect()
    }
}

#[test]
fn a_target_that_something_else_wrote_to_is_compared_when_that_is_asked_for() {
    let name = "a_target_that_something_else_wrote_to_is_compared_when_that_is_asked_for";
    lab::test(name, machine(), |guest| {
        let mut job = Job::new(guest);
        job.run("").ok();
        job.goes_on("/dev/vg/data", "the second run");
        let way_out = "lvmsync replicate data --compare";
        for cut in [false, true] {
            job.tool.run("state forget there/copy").ok();
            write(COPY, &job.random.bytes(100_000), 9 * MIB);
            job.change("/dev/vg/data");
            job.run("").ends(5, &["there/copy", way_out]);
            if cut {
                // Again, with what was pending.
                job.change("/dev/vg/data");
                job.run("").ends(5, &["there/copy", way_out]);
            }
            job.run("--compare").ok();
            assert_same(COPY, &content("/dev/vg/data"), "compared");
            job.goes_on("/dev/vg/data", "after it was compared");
        }
        // Made equal by hand: it holds a state that the job does not know.
        job.tool.run("sync vg/data there/copy").ok();
        job.change("/dev/vg/data");
        job.run("").ends(5, &["there/copy", way_out]);
        job.run("--compare").ok();
        job.goes_on("/dev/vg/data", "after a sync by hand");
        // Lost, and made anew.
        guest.sh("lvremove -qq -y there/copy");
        let run = job.run("");
        assert!(run.code != Some(0), "{}", run.stderr);
        job.run("--compare").ok();
        assert_same(COPY, &content("/dev/vg/data"), "made anew");
        job.goes_on("/dev/vg/data", "after it was made anew");
    });
}

#[test]
fn what_a_hook_has_stopped_goes_on_if_the_hook_fails_or_is_told_to_stop() {
    let name = "what_a_hook_has_stopped_goes_on_if_the_hook_fails_or_is_told_to_stop";
    lab::test(name, machine(), |guest| {
        let mut job = Job::new(guest);
        let said = job.tool.path("said");
        let hooks = |before: &str| {
            let said = said.display();
            format!(
                "[hooks]\nbefore_snapshot = \"echo stopped >>{said}; {before}\"\nafter_snapshot = \"echo started >>{said}\""
            )
        };
        for track in ["", "track = \"era\"\n"] {
            if !track.is_empty() {
                job.tool.run("track enable vg/data").ok();
            }
            job.put("vg/data", &format!("{track}{}", hooks("false")));
            job.run("").ends(1, &["before_snapshot"]);
            assert_eq!(fs::read_to_string(&said).unwrap(), "stopped\nstarted\n");
            fs::remove_file(&said).unwrap();
            // While the hook is at work; all that it may have done is undone, although the run is told to stop.
            job.put("vg/data", &format!("{track}{}", hooks("sleep 30")));
            let directory = job.tool.path("jobs.d");
            let line = format!("replicate data --jobs-dir {}", directory.display());
            let run = job.tool.start(&line);
            while !said.exists() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            guest.sh(&format!("kill -TERM {0}; kill -TERM {0}", run.id()));
            Run::of(run).ends(130, &[]);
            assert_eq!(fs::read_to_string(&said).unwrap(), "stopped\nstarted\n");
            fs::remove_file(&said).unwrap();
            job.put("vg/data", &format!("{track}{}", hooks("true")));
            job.run("").ok();
            assert_eq!(fs::read_to_string(&said).unwrap(), "stopped\nstarted\n");
            fs::remove_file(&said).unwrap();
        }
        job.change("/dev/mapper/vg-data-era");
        job.run("").ok();
        assert_same(COPY, &content("/dev/vg/data"), "in the end");
    });
}

#[test]
fn a_job_goes_on_whatever_its_snapshots_are_called_and_whoever_uses_them() {
    let name = "a_job_goes_on_whatever_its_snapshots_are_called_and_whoever_uses_them";
    lab::test(name, machine(), |guest| {
        let mut job = Job::new(guest);
        job.run("").ok();
        // Somebody looks into the base.
        let base = job.bases("/dev/vg/data").remove(0);
        let open = fs::File::open(format!("/dev/vg/{base}")).unwrap();
        job.change("/dev/vg/data");
        let run = job.run("").ok();
        assert!(
            run.stderr.contains("stays until the next run"),
            "{}",
            run.stderr
        );
        assert_same(COPY, &content("/dev/vg/data"), "while the base is open");
        job.change("/dev/vg/data");
        job.run("").ok();
        assert_eq!(job.bases("/dev/vg/data").len(), 2, "it is open");
        drop(open);
        job.goes_on("/dev/vg/data", "when it is closed");

        let base = job.bases("/dev/vg/data").remove(0);
        lvm(guest, &format!("lvrename -qq vg {base} other"));
        job.goes_on("/dev/vg/data", "another name of the base");
        guest.sh("vgchange -qq -an vg; vgrename -qq vg new; vgchange -qq -ay new");
        job.put("new/data", "");
        job.goes_on("/dev/new/data", "another name of the group");

        // Another source, here and in another group.
        guest.volume("new", "second", "16M");
        write("/dev/new/second", &Random::new(4).bytes(6 << 20), MIB);
        for (volume, left) in [("new/second", "new/data"), ("there/third", "new/second")] {
            if volume == "there/third" {
                guest.volume("there", "third", "16M");
            }
            job.put(volume, "");
            let run = job.run("").ok();
            assert!(
                run.stderr.contains("followed another volume before"),
                "{}",
                run.stderr
            );
            let path = format!("/dev/{volume}");
            assert_same(COPY, &content(&path), "another source");
            let line = format!("lvs --noheadings -o origin,lv_name -S lv_tags=lvmsync_base {left}");
            let origins = guest.try_sh(&line);
            assert!(!String::from_utf8_lossy(&origins.stdout).contains("data-"));
            job.goes_on(&path, "of another source");
        }
        assert_eq!(job.bases("/dev/new/second"), [""; 0]);
    });
}

/// What is written to it at the other machine never comes here.
#[test]
fn a_source_that_was_moved_away_is_refused() {
    let name = "a_source_that_was_moved_away_is_refused";
    lab::test(name, machine(), |guest| {
        let mut job = Job::new(guest);
        job.run("").ok();
        lvm(guest, "lvchange -qq --addtag lvmsync_migrated vg/data");
        job.run("").ends(
            5,
            &["moved to another machine", "--deltag lvmsync_migrated"],
        );
        lvm(guest, "lvchange -qq --deltag lvmsync_migrated vg/data");
        job.goes_on("/dev/vg/data", "it is used here again");
    });
}
