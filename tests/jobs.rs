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

#[test]
fn a_job_without_a_history_says_how_to_keep_one_and_one_with_it_shows_that_it_is_empty() {
    let with = GOOD.replace(
        "interval",
        "history = true\nkeep = \"24x1h 7x1d\"\ninterval",
    );
    let dir = Dir::new(&[("good.toml", GOOD), ("with.toml", &with)]);
    dir.ends("history good", 5, &["keeps no history", "history = true"]);
    dir.ends("rollback good --to 1", 5, &["keeps no history"]);
    dir.ends("history with", 0, &["backup:vg/data holds nothing yet"]);
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
    let dir = Dir::new(&[("keep.toml", &keep), ("far.toml", &collects)]);
    dir.ends("replicate --check keep", 2, &["add history = true"]);
    dir.ends(
        "replicate --check far",
        2,
        &["absolute path of this machine"],
    );
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
    // No volume, but a file: refused for that, after its job was begun.
    let file = GOOD.replace("vg/data", "/etc/hostname");
    let mut files: Vec<(&str, &str)> = names
        .iter()
        .map(|name| (name.as_str(), file.as_str()))
        .collect();
    files.push(("bad.toml", &bad));
    let dir = Dir::new(&files);
    for at_once in [1, 4, 64] {
        let said = dir.ends(
            &format!("replicate --all --jobs {at_once}"),
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
    fs::create_dir_all(dir.0.path().join("state/jobs")).unwrap();
    fs::write(dir.0.path().join("state/jobs/j5.json"), "{").unwrap();
    for at_once in [1, 4] {
        let line = format!("replicate --all --jobs {at_once}");
        dir.ends(&line, 5, &["lvmsync: bad: ", "j5.json", "lvmsync: j6: "]);
    }
    dir.ends("replicate --help", 0, &["--jobs", "of them at a time"]);
}
