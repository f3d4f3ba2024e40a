//! Replication jobs on the command line: files that are wrong, what there is to say of jobs that never ran.
#![allow(
    clippy::unwrap_used,
    reason = "tests: what does not hold fails the test"
)]

use std::fs;
use std::process::{Command, Output};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("jobs")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join("jobs").join(name), text).unwrap();
        }
        Self(dir)
    }

    fn run(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lvmsync"))
            .args(line.split_whitespace())
            .args(["--jobs-dir"])
            .arg(self.0.path().join("jobs"))
            .args(["--state-dir"])
            .arg(self.0.path().join("state"))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ends(&self, line: &str, code: i32, words: &[&str]) -> String {
        let output = self.run(line);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        for word in words {
            assert!(said.contains(word), "{line}: no `{word}` in: {said}");
        }
        said
    }

    /// What `lvmsync status --json` says, which ends with `code`.
    #[track_caller]
    fn rows(&self, code: i32) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.ends("status --json", code, &[])).unwrap()
    }

    /// Puts on record how far a job is.
    fn put_state(&self, name: &str, text: &str) {
        let directory = self.0.path().join("state/jobs");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{name}.json")), text).unwrap();
    }
}

const GOOD: &str =
    "source = \"vg/data\"\ninterval = \"15m\"\n[[target]]\nto = \"backup:vg/data\"\n";

#[test]
fn files_that_are_wrong_are_named_with_line_and_what_was_meant() {
    let bad = GOOD.replace("interval", "intervall");
    let dir = Dir::new(&[("good.toml", GOOD), ("bad.toml", &bad), ("notes.txt", "")]);
    let said = dir.ends(
        "replicate --check",
        2,
        &[
            "good: in order: vg/data to backup:vg/data",
            "bad.toml",
            "line 2",
            "interval",
        ],
    );
    assert!(!said.contains("notes"), "{said}");
    dir.ends("replicate --check good", 0, &["in order"]);
    dir.ends("replicate bad", 2, &["bad.toml", "line 2"]);
    dir.ends("replicate nothing", 1, &["nothing.toml"]);
    dir.ends("replicate ../good", 2, &["cannot be the name of a job"]);
    dir.ends("replicate", 2, &["--all", "--watch"]);
    let none = Dir::new(&[]);
    none.ends("replicate --check", 0, &["there are no jobs"]);
}

#[test]
fn the_status_of_a_job_that_never_ran_is_no_failure_and_of_one_that_is_wrong_it_is() {
    let dir = Dir::new(&[("good.toml", GOOD)]);
    dir.ends(
        "status",
        0,
        &["good", "vg/data", "backup:vg/data", "due", "not yet run"],
    );
    dir.ends(
        "status --prometheus",
        0,
        &["lvmsync_late{job=\"good\"", "} 0"],
    );
    let said = dir.ends("status --json", 0, &[]);
    let rows: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(
        rows[0]["holds_since"].is_null() && rows[0]["late"] == false,
        "{rows}"
    );
    fs::write(dir.0.path().join("jobs/bad.toml"), "x = 1").unwrap();
    dir.ends("status", 1, &["bad.toml", "unknown field `x`"]);
}

/// No volume, but a file: a run of that fails before it comes to a target.
fn of_no_volume() -> String {
    GOOD.replacen("vg/data", "/etc/hostname", 1)
}

#[test]
fn a_job_that_fails_before_its_first_target_alarms_and_is_tried_again_after_its_interval() {
    let two = format!("{}[[target]]\nto = \"vg2/data\"\n", of_no_volume());
    let hook = "[hooks]\non_failure = \"echo failed >> $HOOK\"\n";
    let dir = Dir::new(&[]);
    let hooked = dir.0.path().join("hooked");
    let hook = hook.replace("$HOOK", &hooked.display().to_string());
    fs::write(dir.0.path().join("jobs/data.toml"), two + &hook).unwrap();
    dir.ends("replicate --all", 2, &["no logical volume"]);
    // As a timer does it: not before the interval is over.
    dir.ends("replicate --all", 0, &[]);
    assert_eq!(fs::read_to_string(&hooked).unwrap(), "failed\n");
    dir.ends("status", 1, &["no logical volume"]);
    for (target, row) in dir.rows(1).iter().enumerate() {
        assert_eq!(row["late"], true, "{target}: {row}");
        assert!(row["failed_at"].is_i64(), "{target}: {row}");
        assert!(row["last_run"].is_string(), "{target}: {row}");
        let error = row["error"].as_str().unwrap();
        assert!(error.contains("no logical volume"), "{target}: {row}");
    }
    let said = dir.ends("status --prometheus", 1, &[]);
    for metric in ["lvmsync_late", "lvmsync_failed"] {
        for target in ["backup:vg/data", "vg2/data"] {
            let line =
                format!("{metric}{{job=\"data\",source=\"/etc/hostname\",target=\"{target}\"}} 1");
            assert!(said.contains(&line), "{line}: {said}");
        }
    }
}

#[test]
fn a_job_that_worked_before_says_why_it_does_not_follow_any_more_before_it_is_late() {
    let dir = Dir::new(&[("data.toml", &of_no_volume())]);
    let now = jiff::Timestamp::now().as_second();
    let held = |since: i64| {
        serde_json::json!({"started": since, "targets":
            {"backup:vg/data": {"holds_since": since, "succeeded": since, "error": null}}})
    };
    dir.put_state("data", &held(now).to_string());
    dir.ends("status", 0, &["ok"]);
    dir.ends("replicate data", 2, &[]);
    dir.ends("status", 0, &["no logical volume"]);
    dir.ends(
        "status --prometheus",
        0,
        &["target=\"backup:vg/data\"} 1\n"],
    );
    let row = &dir.rows(0)[0];
    assert!(row["late"] == false && row["error"].is_string(), "{row}");
    dir.put_state("data", &held(now - 3000).to_string());
    dir.ends("status", 1, &["LATE"]);
    dir.ends("replicate data", 2, &[]);
    dir.ends("status", 1, &["no logical volume"]);
}

#[test]
fn a_job_of_which_every_run_is_killed_is_late_however_late_the_last_one_began() {
    let dir = Dir::new(&[("data.toml", GOOD)]);
    let now = jiff::Timestamp::now().as_second();
    let tried = |first: i64| serde_json::json!({"started": now, "first_tried": first}).to_string();
    dir.put_state("data", &tried(now - 60));
    dir.ends("status", 0, &["not yet run"]);
    dir.put_state("data", &tried(now - 3000));
    dir.ends("status", 1, &["LATE"]);
}

#[test]
fn a_state_that_cannot_be_read_is_a_row_that_alarms_and_hides_no_other_job() {
    let dir = Dir::new(&[("data.toml", GOOD), ("other.toml", GOOD)]);
    dir.put_state("data", "{");
    dir.ends("status", 1, &["data.json", "other", "not yet run"]);
    let rows = dir.rows(1);
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(
        rows[0]["late"] == true && rows[0]["target"] == "backup:vg/data",
        "{rows:?}"
    );
    assert!(rows[1]["late"] == false && rows[1]["error"].is_null());
}

#[test]
fn a_job_without_a_history_says_how_to_keep_one_and_of_one_that_never_ran_nothing_is_known() {
    let with = GOOD.replace(
        "interval",
        "history = true\nkeep = \"24x1h 7x1d\"\ninterval",
    );
    let dir = Dir::new(&[("good.toml", GOOD), ("with.toml", &with)]);
    dir.ends("history good", 5, &["keeps no history", "history = true"]);
    dir.ends("rollback good --to 1", 5, &["keeps no history"]);
    dir.ends(
        "history with",
        0,
        &["backup:vg/data: nothing is known here of what it holds"],
    );
    let said = dir.ends("history with --json", 0, &[]);
    let rows: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(rows[0]["points"], serde_json::json!([]));
    dir.ends(
        "history with --target x",
        2,
        &["no target `x`", "backup:vg/data"],
    );
    dir.ends("history nothing", 1, &["nothing.toml"]);
    dir.ends(
        "rollback with --to yesterday",
        2,
        &["no point in time", "UTC"],
    );
    dir.ends("rollback with --to 0", 2, &["counted from 1"]);
    dir.ends("rollback with", 2, &["--to"]);
    dir.ends("replicate --resume", 2, &["name their JOB"]);
    dir.ends("replicate --all --resume", 2, &["cannot be used with"]);
    dir.ends("history --help", 0, &["Examples", "lvmsync rollback"]);
    dir.ends("rollback --help", 0, &["Examples", "--resume"]);
    let two = format!("{with}[[target]]\nto = \"vg/other\"\n");
    fs::write(dir.0.path().join("jobs/two.toml"), two).unwrap();
    dir.ends(
        "rollback two --to 1",
        2,
        &["--target", "backup:vg/data, vg/other"],
    );
}

#[test]
fn a_key_that_cannot_be_meant_is_named() {
    let keep = GOOD.replace("interval", "keep = \"24x1h\"\ninterval");
    let collects = GOOD.replace("backup:vg/data", "backup:/srv/deltas/");
    let source = GOOD.replacen("vg/data", "vg", 1);
    let create = format!("{GOOD}create = \"thinpool\"\n");
    let dir = Dir::new(&[
        ("keep.toml", &keep),
        ("far.toml", &collects),
        ("source.toml", &source),
        ("create.toml", &create),
    ]);
    for (job, words) in [
        ("keep", ["keep.toml: line 2: ", "add history = true"]),
        (
            "far",
            ["far.toml: line 4: ", "absolute path of this machine"],
        ),
        ("source", ["source.toml: line 1: ", "`vg` is no logical"]),
        ("create", ["create.toml: line 5: ", "thin:POOL"]),
    ] {
        dir.ends(&format!("replicate --check {job}"), 2, &words);
        // Nothing of it is begun, and status tells the same.
        dir.ends(&format!("replicate {job}"), 2, &words);
        dir.ends(&format!("status {job}"), 1, &words);
    }
}

#[test]
fn metrics_for_a_collector_are_whole_or_as_they_were() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new(&[("good.toml", GOOD)]);
    let file = dir.0.path().join("lvmsync.prom");
    let line = format!("status --prometheus --textfile {}", file.display());
    let said = dir.ends(&line, 0, &[]);
    assert_eq!(said, "", "all of it is in the file");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("lvmsync_late{job=\"good\""), "{text}");
    assert!(text.ends_with('\n'), "{text}");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "node_exporter is another user");
    // Another one takes its place: who has it open reads the old one to its end.
    let old = fs::File::open(&file).unwrap();
    fs::write(dir.0.path().join("jobs/second.toml"), GOOD).unwrap();
    dir.ends(&line, 0, &[]);
    assert_eq!(std::io::read_to_string(old).unwrap(), text);
    let new = fs::read_to_string(&file).unwrap();
    assert!(new.contains("job=\"second\""), "{new}");
    let names: Vec<_> = fs::read_dir(dir.0.path()).unwrap().flatten().collect();
    let names: Vec<_> = names.iter().map(fs::DirEntry::file_name).collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().contains("partial")),
        "{names:?}"
    );
    // One that cannot be written leaves what was there.
    fs::create_dir(dir.0.path().join("lvmsync.prom.partial")).unwrap();
    dir.ends(&line, 1, &["lvmsync.prom"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), new);
    dir.ends("status --textfile x", 2, &["--prometheus"]);
    dir.ends("status --help", 0, &["--textfile"]);
}

#[test]
fn jobs_that_run_at_once_all_run_and_say_so_line_by_line() {
    let bad = GOOD.replace("interval", "intervall");
    let names: Vec<String> = (0..12).map(|number| format!("j{number}.toml")).collect();
    let file = of_no_volume();
    let mut files: Vec<(&str, &str)> = names
        .iter()
        .map(|name| (name.as_str(), file.as_str()))
        .collect();
    files.push(("bad.toml", &bad));
    let dir = Dir::new(&files);
    // A job that was tried is due after its interval, and not before.
    let state = dir.0.path().join("state/jobs");
    for at_once in [1, 4, 64] {
        let _ = fs::remove_dir_all(&state);
        let said = dir.ends(
            &format!("replicate --all --quiet --jobs {at_once}"),
            2,
            &["lvmsync: bad: "],
        );
        for number in 0..12 {
            let begins = format!("lvmsync: j{number}: ");
            let lines = said.lines().filter(|line| line.starts_with(&begins));
            assert_eq!(lines.count(), 1, "{at_once}: {number}: {said}");
        }
    }
    for wrong in ["0", "65", "many"] {
        dir.ends(&format!("replicate --all --jobs {wrong}"), 2, &["--jobs"]);
    }
    // The worst code is that of the run, wherever in the order it comes.
    for at_once in [1, 4] {
        fs::remove_dir_all(&state).unwrap();
        fs::create_dir(&state).unwrap();
        fs::write(state.join("j5.json"), "{").unwrap();
        let line = format!("replicate --all --jobs {at_once}");
        dir.ends(&line, 5, &["lvmsync: bad: ", "j5.json", "lvmsync: j6: "]);
    }
    dir.ends("replicate --help", 0, &["--jobs", "of them at a time"]);
}

/// What is said on a stderr of which systemd says that its journal listens, or says nothing.
fn logged(dir: &Dir, line: &str, is_journal: bool) -> String {
    use std::os::unix::fs::MetadataExt;
    let path = dir.0.path().join("log");
    let log = fs::File::create(&path).unwrap();
    let stat = log.metadata().unwrap();
    let (device, inode) = (stat.dev(), stat.ino() + u64::from(!is_journal));
    Command::new(env!("CARGO_BIN_EXE_lvmsync"))
        .args(line.split_whitespace())
        .arg("--jobs-dir")
        .arg(dir.0.path().join("jobs"))
        .arg("--state-dir")
        .arg(dir.0.path().join("state"))
        .env("JOURNAL_STREAM", format!("{device}:{inode}"))
        .stderr(log)
        .status()
        .unwrap();
    fs::read_to_string(path).unwrap()
}

#[test]
fn lines_of_a_run_have_its_id_and_a_priority_for_the_journal() {
    let file = of_no_volume();
    let hook = "[hooks]\non_failure = \"echo hook $LVMSYNC_RUN >&2\"\n";
    let dir = Dir::new(&[("data.toml", &format!("{file}{hook}"))]);
    let said = logged(&dir, "replicate data", true);
    let steps: Vec<&str> = said.lines().filter(|line| line.contains(" run=")).collect();
    let id = |line: &str| {
        let id = line.split(" run=").nth(1).unwrap();
        id.split(' ').next().unwrap().to_owned()
    };
    let run = id(steps[0]);
    assert_eq!(
        steps[0],
        format!("<6>lvmsync: data: begins job=data run={run} source=/etc/hostname")
    );
    assert!(
        steps[1].starts_with("<6>lvmsync: data: failed: ") && steps[1].contains(" code=2"),
        "{said}"
    );
    assert!(steps.iter().all(|line| id(line) == run), "{said}");
    assert!(said.contains(&format!("hook {run}\n")), "{said}");
    let error = said.lines().find(|line| line.starts_with("<3>"));
    assert!(
        error.is_some_and(|line| line.contains("no logical volume")),
        "{said}"
    );
    // Another run has another id, and where no journal listens there are no priorities.
    let again = logged(&dir, "replicate data", false);
    assert!(
        again.starts_with("lvmsync: data: begins job=data run="),
        "{again}"
    );
    assert_ne!(id(again.lines().next().unwrap()), run);
    // Who asked for quiet hears of what is wrong alone.
    let quiet = logged(&dir, "replicate data --quiet", true);
    let ours: Vec<&str> = quiet
        .lines()
        .filter(|line| line.contains("lvmsync:"))
        .collect();
    assert!(ours.iter().all(|line| line.starts_with("<3>")), "{quiet}");
}

#[test]
fn a_job_that_another_run_is_at_has_not_failed() {
    let hook = "[hooks]\non_failure = \"echo the hook ran >&2\"\n";
    let dir = Dir::new(&[(
        "data.toml",
        &GOOD.replace("[[target]]", &format!("{hook}[[target]]")),
    )]);
    dir.put_state("data", "{}");
    let lock = fs::File::create(dir.0.path().join("state/jobs/data.lock")).unwrap();
    lock.lock().unwrap();
    let said = dir.ends("replicate data", 5, &["another run of lvmsync is at it"]);
    assert!(!said.contains("the hook ran"), "{said}");
    assert_eq!(dir.rows(0)[0]["error"], serde_json::Value::Null);
}
