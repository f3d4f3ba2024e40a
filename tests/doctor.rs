//! `lvmsync doctor` from outside: what it says, to people and to scripts, and how it ends.
//!
//! Everything here runs on files and needs neither root nor device-mapper, but a machine whose own volumes, if it
//! has any, are in order: `lvmsync doctor` says what is not. `tests/lab_doctor.rs` looks at real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use lvmsync::record::store::StateDir;
use lvmsync::record::{Incomplete, Record, identity};
use serde_json::Value;

const LVMSYNC: &str = env!("CARGO_BIN_EXE_lvmsync");

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn run(&self, line: &str) -> Output {
        Command::new(LVMSYNC)
            .current_dir(self.0.path())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Expects an exit code; gives stdout and stderr.
    #[track_caller]
    fn ends(&self, line: &str, code: i32) -> (String, String) {
        let output = self.run(line);
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{line}: {out}{said}");
        (out, said)
    }

    /// The report of `doctor --json`, whose form is checked.
    #[track_caller]
    fn report(&self, options: &str, code: i32) -> Vec<Value> {
        let (out, _) = self.ends(&format!("doctor --json {options}"), code);
        let report: Value = serde_json::from_str(&out).unwrap();
        let keys =
            |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(keys(&report), ["checks", "healthy"]);
        assert_eq!(report["healthy"], code == 0);
        let checks = report["checks"].as_array().unwrap().clone();
        for check in &checks {
            assert_eq!(keys(check), ["found", "id", "status", "way_out"], "{check}");
            let status = check["status"].as_str().unwrap();
            assert!(["ok", "note", "warning", "problem"].contains(&status));
            assert!(check["way_out"].is_string() || check["way_out"].is_null());
            assert!(check["id"].as_str().unwrap().contains('.'), "{check}");
        }
        checks
    }

    fn state(&self) -> StateDir {
        StateDir::choose(Some(&self.path("state")))
    }

    /// Puts on record that the file `name` is on the way to another state.
    fn cut(&self, name: &str, undo: Option<&str>) {
        let record = Record {
            identity: identity::of_path(&self.path(name)),
            name: self.shown(name),
            incomplete: Some(Incomplete {
                undo: undo.map(|undo| self.shown(undo)),
                since: 1_700_000_000,
                from: "source:vg/data".into(),
                ..Incomplete::default()
            }),
            ..Record::default()
        };
        self.state()
            .file_of(&record.identity)
            .save(&record)
            .unwrap();
    }

    /// A stand-in for ssh: `script` sees the far end's command line as `$@`.
    fn fake_ssh(&self, script: &str) -> String {
        let path = self.path("fake-ssh");
        fs::write(&path, format!("#!/bin/sh\nshift\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        format!("far -e ./fake-ssh --remote-path {LVMSYNC}")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one check with this id that is not in order.
#[track_caller]
fn bad<'a>(checks: &'a [Value], id: &str) -> &'a Value {
    let mut found = checks
        .iter()
        .filter(|check| check["id"] == id && check["status"] != "ok");
    let check = found.next();
    assert!(
        check.is_some() && found.next().is_none(),
        "{id}: {checks:?}"
    );
    check.unwrap()
}

#[track_caller]
fn has(check: &Value, key: &str, words: &[&str]) {
    let text = check[key].as_str().unwrap();
    for word in words {
        assert!(text.contains(word), "no `{word}` in {key} of {check}");
    }
}

#[test]
fn help_says_what_it_looks_at_and_how_it_ends() {
    let dir = Dir::new();
    let (help, _) = dir.ends("doctor --help", 0);
    for word in [
        "[USER@]HOST",
        "--json",
        "--state-dir",
        "Nothing is changed",
        "Exit code",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(!help.contains("--compat") && !help.contains("--retries"));
    assert!(dir.ends("--help", 0).0.contains("doctor"));
    dir.ends("doctor --compat", 2);
    dir.ends("doctor -- -oProxyCommand=x", 2);
}

#[test]
fn it_runs_without_root_and_device_mapper_and_says_what_it_did_not_look_at() {
    let dir = Dir::new();
    let checks = dir.report("", 0);
    let ids: Vec<&str> = checks.iter().map(|c| c["id"].as_str().unwrap()).collect();
    for id in [
        "machine.root",
        "machine.kernel",
        "device-mapper.control",
        "tools.ssh",
    ] {
        assert!(ids.contains(&id), "{id}: {ids:?}");
    }
    assert!(ids.contains(&"state.directory"), "{ids:?}");
    let (table, said) = dir.ends("doctor", 0);
    for word in ["This machine", "Device-mapper", "Tools", "Records", "✓ ok"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    assert!(said.contains("no problems, "), "{said}");
    // Only looked: not even the directory for records was made.
    assert!(!dir.path("state").exists());

    // The same as an ordinary user, where there is one to become.
    if is_root() && fs::metadata("/usr/bin/setpriv").is_ok() {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.0.path(), open).unwrap();
        let copy = dir.path("lvmsync");
        fs::copy(LVMSYNC, &copy).unwrap();
        let output = Command::new("/usr/bin/setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy)
            .args(["doctor", "--json", "--state-dir"])
            .arg(dir.path("state"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        has(
            bad(checks, "machine.root"),
            "found",
            &["not running as root"],
        );
        let place = bad(checks, "state.directory");
        has(place, "found", &["Permission denied"]);
        has(place, "way_out", &["--state-dir"]);
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

#[test]
fn a_place_where_no_record_can_be_kept_is_a_problem() {
    let dir = Dir::new();
    fs::write(dir.path("state"), "a file where the directory should be").unwrap();
    let place = dir.report("", 1);
    let check = bad(&place, "state.directory");
    assert_eq!(check["status"], "problem");
    has(check, "way_out", &["mv ", "state.old"]);
    dir.report("--state-dir elsewhere", 0);
    let (table, said) = dir.ends("doctor", 1);
    assert!(
        table.contains("✗ PROBLEM") && table.contains("→ mv"),
        "{table}"
    );
    assert!(said.contains("1 problem, "), "{said}");
}

#[test]
fn an_incomplete_destination_is_a_warning_with_both_ways_out() {
    let dir = Dir::new();
    fs::write(dir.path("copy.img"), "x").unwrap();
    fs::write(dir.path("back.partial"), "x").unwrap();
    dir.cut("copy.img", Some("back"));
    let checks = dir.report("", 0);
    let check = bad(&checks, "state.record");
    assert_eq!(check["status"], "warning");
    has(
        check,
        "found",
        &["copy.img", "incomplete", "source:vg/data"],
    );
    let apply = format!(
        "lvmsync apply {} {}",
        dir.shown("back"),
        dir.shown("copy.img")
    );
    has(
        check,
        "way_out",
        &["run the command that was cut again", &apply],
    );

    fs::remove_file(dir.path("back.partial")).unwrap();
    let checks = dir.report("", 0);
    let check = bad(&checks, "state.record");
    has(check, "found", &["its undo is gone", "back.partial"]);
    has(check, "way_out", &["lvmsync sync"]);

    // A run that is at work now has the destination locked.
    let file = fs::File::open(dir.path("copy.img")).unwrap();
    file.lock().unwrap();
    let checks = dir.report("", 0);
    let check = bad(&checks, "state.record");
    assert_eq!(check["status"], "note");
    has(check, "found", &["under way"]);
    drop(file);

    fs::remove_file(dir.path("copy.img")).unwrap();
    let checks = dir.report("", 0);
    let check = bad(&checks, "state.record");
    assert_eq!(check["status"], "note");
    let forget = check["way_out"].as_str().unwrap();
    assert!(forget.starts_with("lvmsync state forget "), "{forget}");
    dir.ends(forget.strip_prefix("lvmsync ").unwrap(), 0);
    assert!(dir.state().all().unwrap().is_empty(), "the way out works");
}

#[test]
fn a_damaged_record_is_a_problem_and_the_way_out_works() {
    let dir = Dir::new();
    let damage = |at: usize| {
        fs::write(dir.path("copy.img"), "x").unwrap();
        dir.cut("copy.img", None);
        let file = dir.state().all().unwrap().remove(0);
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.len() - at;
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
    };
    // In something that does not matter, and named by an option.
    damage(5);
    let checks = dir.report("--state-dir state", 1);
    let check = bad(&checks, "state.record");
    assert_eq!(check["status"], "problem");
    has(check, "found", &["damaged", "checksum"]);
    let way_out = check["way_out"].as_str().unwrap();
    assert!(way_out.starts_with("lvmsync state forget "), "{way_out}");
    assert!(way_out.ends_with(" --state-dir state"), "{way_out}");
    // Even where the destination is gone.
    fs::remove_file(dir.path("copy.img")).unwrap();
    dir.ends(way_out.strip_prefix("lvmsync ").unwrap(), 0);
    assert!(dir.state().all().unwrap().is_empty());

    // So that nothing tells any more whose it was.
    damage(5);
    let file = dir.state().all().unwrap().remove(0);
    fs::write(&file, "lvmsync").unwrap();
    let checks = dir.report("", 1);
    let way_out = format!("rm {}", file.display());
    assert_eq!(bad(&checks, "state.record")["way_out"], way_out.as_str());
}

#[test]
fn what_a_killed_run_left_beside_the_records_is_told() {
    let dir = Dir::new();
    fs::create_dir_all(dir.path("state/destinations")).unwrap();
    let left = dir.path("state/destinations/x.state.partial");
    fs::write(&left, "half").unwrap();
    let checks = dir.report("", 0);
    let check = bad(&checks, "state.partial");
    assert_eq!(check["status"], "note");
    assert_eq!(check["way_out"], format!("rm {}", left.display()).as_str());
    let file = fs::File::open(&left).unwrap();
    file.lock().unwrap();
    let checks = dir.report("", 0);
    assert!(checks.iter().all(|check| check["id"] != "state.partial"));
}

#[test]
fn a_far_end_that_works_is_described() {
    let dir = Dir::new();
    let ssh = dir.fake_ssh("exec sh -c \"$*\"");
    let checks = dir.report(&ssh, 0);
    let get = |id: &str| checks.iter().find(|check| check["id"] == id).unwrap();
    has(
        get("far.session"),
        "found",
        &["far: answers", " s; protocol 1"],
    );
    has(get("far.version"), "found", &[env!("CARGO_PKG_VERSION")]);
    has(
        get("far.features"),
        "found",
        &["apply", "compare", "record"],
    );
    let (table, said) = dir.ends(&format!("doctor {ssh}"), 0);
    assert!(table.contains("The other machine"), "{table}");
    assert_eq!(said.lines().count(), 1, "its farewell is not told: {said}");

    let ssh = dir.fake_ssh("echo 'Authorised use only' >&2; exec sh -c \"$*\"");
    let checks = dir.report(&ssh, 0);
    let words = bad(&checks, "far.words");
    has(words, "found", &["Authorised use only"]);
}

#[test]
fn a_far_end_that_cannot_be_used_is_a_problem_in_its_own_words() {
    let dir = Dir::new();
    let failed = |script: &str, words: &[&str]| {
        let ssh = dir.fake_ssh(script);
        let checks = dir.report(&ssh, 1);
        let check = bad(&checks, "far.session").clone();
        assert_eq!(check["status"], "problem");
        has(&check, "found", words);
        check
    };
    let missing = failed(
        "echo 'sh: 1: lvmsync: not found' >&2; exit 127",
        &[
            "far: lvmsync was not found there",
            "sh: 1: lvmsync: not found",
            "--remote-path",
        ],
    );
    has(&missing, "way_out", &["./fake-ssh far"]);
    let noise = failed(
        "echo 'Welcome to far!'; exec sh -c \"$*\"",
        &["Welcome to far!", "start-up files silent"],
    );
    has(&noise, "way_out", &["./fake-ssh far true"]);
    failed(
        "echo 'ssh: connect to host far port 22: Connection refused' >&2; exit 255",
        &["cannot connect", "Connection refused"],
    );
    failed("exit 0", &["before the session began"]);

    // With -q only that is left, and the exit code stays.
    let (table, said) = dir.ends(&format!("doctor -q {}", dir.fake_ssh("exit 255")), 1);
    assert!(
        table.contains("✗ PROBLEM") && !table.contains("✓"),
        "{table}"
    );
    assert!(said.is_empty(), "{said}");
    let checks = dir.report("far -e ./no-such-program", 1);
    has(
        bad(&checks, "far.session"),
        "found",
        &["no such program here"],
    );
}
