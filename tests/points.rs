//! The points in time of a target, on files: what is kept, folded and dropped, and that every way leads to exactly the bytes
//! of its moment, whatever was killed in between.
#![allow(
    clippy::unwrap_used,
    reason = "tests: what does not hold fails the test"
)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lvmsync::job::points::directory_name;
use lvmsync::record::keeper::shown_time;
use serde_json::{Value, json};

const BLOCK: usize = 4096;
const BLOCKS: usize = 64;

/// A destination that was synced to several states, with the undo of each run in the directory of its points.
struct Line {
    temporary: tempfile::TempDir,
    /// What the destination held: the oldest first, and last what it holds.
    states: Vec<Vec<u8>>,
    /// When, in seconds since 1970.
    times: Vec<i64>,
}

fn name_of(at: i64, tag: &str) -> String {
    lvmsync::job::points::file_name(at, tag, ".undo")
}

impl Line {
    /// States that are `times` old.
    fn new(times: &[i64]) -> Self {
        let mut line = Self {
            temporary: tempfile::tempdir().unwrap(),
            states: Vec::new(),
            times: times.to_vec(),
        };
        let history = line.path("history/data");
        let points = history.join(directory_name(&line.copy()));
        fs::create_dir_all(points).unwrap();
        fs::create_dir(line.path("jobs")).unwrap();
        let job = format!(
            "source = \"vg/data\"\ninterval = \"1h\"\nhistory = {:?}\n[[target]]\nto = {:?}\n",
            line.path("history"),
            line.copy()
        );
        fs::write(line.path("jobs/data.toml"), job).unwrap();
        let mut state = vec![7; BLOCK * BLOCKS];
        for number in 0..times.len() {
            // Some blocks again and again, some once.
            for block in [0, 1 + number, 20 + number % 3, 40 + number / 2] {
                let fill = u8::try_from(number * 16 + block % 16).unwrap();
                state[block * BLOCK..(block + 1) * BLOCK].fill(fill);
            }
            line.sync(&state, number);
        }
        line
    }

    fn sync(&mut self, state: &[u8], number: usize) {
        let source = self.path(&format!("s{number}"));
        fs::write(&source, state).unwrap();
        let (source, copy) = (source.display().to_string(), self.copy());
        let mut arguments = vec!["sync", source.as_str(), copy.as_str()];
        let undo;
        if number > 0 {
            let name = name_of(self.times[number - 1], &number.to_string());
            undo = self.points_in().join(name).display().to_string();
            arguments.extend(["--undo", &undo]);
        }
        succeeded(&self.run(&arguments));
        self.states.push(state.to_vec());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    fn points_in(&self) -> PathBuf {
        let of_job = self.path("history/data");
        of_job.join(directory_name(&self.copy()))
    }

    /// What the target held at that moment, as `view JOB --at` shows it.
    fn look(&self, at: &str) -> Output {
        let jobs = self.path("jobs").display().to_string();
        self.run(&[
            "view",
            "data",
            "--jobs-dir",
            &jobs,
            "--at",
            at,
            "--cat",
            "0:",
        ])
    }

    #[track_caller]
    fn shows(&self, times: &[i64]) {
        for at in times {
            let output = self.look(&shown_time(*at));
            succeeded(&output);
            let number = self.times.iter().position(|time| time == at).unwrap();
            assert!(output.stdout == self.states[number], "as it was at {at}");
        }
    }

    fn copy(&self) -> String {
        self.path("copy").display().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
        command.args(arguments).arg("--state-dir");
        command.arg(self.path("state")).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn request(&self, wish: &Value) -> String {
        json!({"directory": self.points_in(), "destination": self.copy(), "wish": wish}).to_string()
    }

    fn ask(&self, wish: &Value) -> Value {
        let output = self.run(&["internal-points", &self.request(wish)]);
        succeeded(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn points(&self) -> Vec<(i64, String)> {
        let reply = self.ask(&json!("list"));
        let points = reply["listing"]["points"].as_array().unwrap().iter();
        let file = |point: &Value| point["files"].as_array().unwrap().last().unwrap().clone();
        points
            .map(|point| {
                let file = file(point).as_str().unwrap().to_owned();
                (point["at"].as_i64().unwrap(), file)
            })
            .collect()
    }

    fn keep(&self, grid: &str) -> Value {
        self.ask(&json!({"keep": {"grid": grid, "also": []}}))
    }

    /// Goes to each of `times` from where it is, the undo of each step being kept, and sees that it is there.
    fn visit(&self, times: &[i64]) {
        for at in times {
            let points = self.points();
            let (_, to) = points.iter().find(|(there, _)| there == at).unwrap();
            let held = self.held();
            let undo = name_of(held, &format!("from{held}to{at}"));
            let back =
                |dry_run: bool| json!({"back": {"to": to, "undo": undo, "dry_run": dry_run}});
            self.ask(&back(true));
            assert_eq!(self.held(), held, "-n writes nothing");
            let reply = self.ask(&back(false));
            assert!(reply["back"].is_object(), "{reply}");
            assert_eq!(self.held(), *at);
        }
    }

    /// When the state was that it holds, by its bytes.
    fn held(&self) -> i64 {
        let copy = fs::read(self.copy()).unwrap();
        let number = self.states.iter().position(|state| *state == copy);
        self.times[number.unwrap()]
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.points_in())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        names.sort();
        names
    }
}

#[track_caller]
fn succeeded(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

const HOUR: i64 = 3600;

/// Four in each of four hours, and what is held.
fn quarters() -> Vec<i64> {
    (0..15)
        .map(|quarter| 100 * HOUR + quarter * HOUR / 4)
        .collect()
}

#[test]
fn what_the_grid_keeps_can_be_gone_to_and_what_it_does_not_is_gone() {
    let line = Line::new(&quarters());
    let held = *line.times.last().unwrap();
    assert_eq!(line.points().len(), 14);
    let reply = line.keep("3x1h");
    assert_eq!(reply["kept"]["given_up"], 10, "{reply}");
    let kept = [103, 102, 101].map(|hour| hour * HOUR);
    let newest = held - HOUR / 4;
    let mut expected = vec![newest];
    expected.extend(kept);
    let times: Vec<i64> = line.points().iter().map(|(at, _)| *at).collect();
    assert_eq!(times, expected);
    assert_eq!(line.files().len(), 4, "{:?}", line.files());
    // The same again does nothing.
    assert_eq!(line.keep("3x1h")["kept"]["given_up"], 0);
    line.visit(&[kept[1], kept[2], held, newest, kept[0], held]);
}

#[test]
fn a_fold_that_is_killed_anywhere_costs_no_point_that_is_kept() {
    let line = Line::new(&quarters());
    let held = *line.times.last().unwrap();
    let kept = [held - HOUR / 4, 103 * HOUR, 102 * HOUR, 101 * HOUR];
    let request = line.request(&json!({"keep": {"grid": "3x1h", "also": []}}));
    let whole = line.files().len();
    let mut in_between = 0;
    let kills = if long() { 200 } else { 60 };
    for number in 0..kills {
        let mut child = line
            .command(&["internal-points", &request])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(2000 + number * 24_000 / kills));
        child.kill().unwrap();
        child.wait().unwrap();
        let there: Vec<i64> = line.points().iter().map(|(at, _)| *at).collect();
        assert!(kept.iter().all(|at| there.contains(at)), "{there:?}");
        line.shows(&kept);
        let files = line.files().len();
        in_between += u32::from(files > kept.len() && files < whole);
    }
    assert!(
        in_between > 0,
        "none was killed in the middle: choose other delays"
    );
    line.keep("3x1h");
    let files = line.files();
    assert_eq!(files.len(), kept.len(), "{files:?}");
    line.visit(&[101 * HOUR, held, 102 * HOUR, 103 * HOUR, held]);
}

#[test]
fn every_point_can_be_looked_at_by_its_number_or_its_time() {
    let line = Line::new(&quarters());
    let held = *line.times.last().unwrap();
    line.shows(&line.times[..14]);
    let before = line.files();
    // The newest that is not later, and the first of the table.
    for at in [&*shown_time(held - 1), "1"] {
        let output = line.look(at);
        succeeded(&output);
        assert!(output.stdout == line.states[13], "{at}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&shown_time(line.times[13])), "{said}");
    }
    let fails = |at: &str, words: &str| {
        let output = line.look(at);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{said}");
    };
    fails("15", "lvmsync history data");
    fails(&shown_time(line.times[0] - 1), "the oldest is");
    fails("yesterday", "is no point in time");
    assert_eq!((line.held(), line.files()), (held, before));
}

#[test]
fn a_time_that_means_what_the_target_holds_leads_to_no_point_before_that() {
    let line = Line::new(&quarters()[..3]);
    let copy = fs::read(line.copy()).unwrap();
    let (held, jobs) = (line.held(), line.path("jobs").display().to_string());
    // As runs of the job have left it.
    let known = json!({"targets": {line.copy(): {"holds_since": held, "succeeded": held}}});
    fs::create_dir_all(line.path("state/jobs")).unwrap();
    fs::write(line.path("state/jobs/data.json"), known.to_string()).unwrap();
    let back = |to: &str| line.run(&["rollback", "data", "--jobs-dir", &jobs, "--to", to]);
    for time in [held, held + 1, held + 1_000_000].map(shown_time) {
        for (output, leads_on) in [
            (line.look(&time), line.copy()),
            (back(&time), "lvmsync history data".to_owned()),
        ] {
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(5), "{time}: {said}");
            for words in ["holds that already", &shown_time(held), &leads_on] {
                assert!(said.contains(words), "{time}: {said}");
            }
        }
    }
    assert!(fs::read(line.copy()).unwrap() == copy);
    succeeded(&back(&shown_time(held - 1)));
    assert!(fs::read(line.copy()).unwrap() == line.states[1]);
    // Put back, what it held before is a point, and newer than what it holds.
    succeeded(&back(&shown_time(held + 1)));
    assert!(fs::read(line.copy()).unwrap() == copy);
}

#[test]
fn what_a_far_target_held_is_looked_at_there() {
    let line = Line::new(&quarters()[..2]);
    // In the place of ssh: what is started there runs here, on the files of the same name.
    let ssh = line.path("ssh");
    let words = format!(
        "#!/bin/sh\nwhile [ \"$1\" != far ]; do shift; done\nshift\nexec sh -c \"export LVMSYNC_STATE_DIR={}; $*\"\n",
        line.path("state").display()
    );
    fs::write(&ssh, words).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&ssh, mode).unwrap();
    let job = format!(
        "source = \"vg/data\"\ninterval = \"1h\"\nhistory = {:?}\n[[target]]\nto = \"far:{}\"\nrsh = {ssh:?}\nremote_path = {:?}\n",
        line.path("history"),
        line.copy(),
        env!("CARGO_BIN_EXE_lvmsync"),
    );
    fs::write(line.path("jobs/data.toml"), job).unwrap();
    let output = line.look("1");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    let command = said
        .lines()
        .find_map(|words| words.strip_prefix("Look there: "));
    let command = command.unwrap_or_else(|| panic!("{said}"));
    // As it is printed: by the job's ssh, and the lvmsync that the job names.
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    succeeded(&output);
    assert!(output.stdout == line.states[0]);
}

fn long() -> bool {
    std::env::var_os("LVMSYNC_LONG").is_some_and(|value| value == "1")
}

#[test]
fn a_way_back_that_is_killed_goes_on_and_nothing_is_given_up_meanwhile() {
    let line = Line::new(&quarters()[..6]);
    let oldest = line.times[0];
    let (_, to) = line.points().pop().unwrap();
    let held = line.held();
    let back = json!({"back": {"to": to, "undo": name_of(held, "back-1"), "dry_run": false}});
    let request = line.request(&back);
    let mut cut = 0;
    for delay in 0..40 {
        let mut child = line
            .command(&["internal-points", &request])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(2000 + delay * 300));
        child.kill().unwrap();
        child.wait().unwrap();
        let reply = line.ask(&json!("list"));
        if reply["listing"]["incomplete"] == true {
            cut += 1;
            let before = line.files();
            assert_eq!(line.keep("1x1h")["kept"]["given_up"], 0);
            assert_eq!(line.files(), before);
        }
        if line.run(&["state", "show"]).stdout.is_empty()
            || fs::read(line.copy()).unwrap() == line.states[0]
        {
            break;
        }
    }
    println_cut(cut);
    let reply = line.ask(&back);
    // Whichever of the two it was: it is done, or was.
    assert!(
        reply["back"].is_object() || line.held() == oldest,
        "{reply}"
    );
    assert_eq!(line.held(), oldest);
    line.visit(&[held]);
}

#[allow(clippy::print_stdout, reason = "a figure of a test")]
fn println_cut(cut: u32) {
    println!("cut in the middle: {cut}");
}

#[test]
fn what_is_asked_from_outside_names_no_other_file_and_what_cannot_be_reached_is_refused() {
    let line = Line::new(&quarters()[..3]);
    let failed = |wish: Value, code: u64, words: &str| {
        let reply = line.ask(&wish);
        assert_eq!(reply["failed"]["code"], code, "{reply}");
        let message = reply["failed"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    };
    let undo = name_of(0, "1");
    for name in ["../x", "/etc/passwd", "20261126T012340Z-../../x", ""] {
        failed(
            json!({"back": {"to": name, "undo": undo, "dry_run": false}}),
            2,
            "cannot be the name",
        );
        failed(json!({"prepare": {"undo": name}}), 2, "cannot be the name");
    }
    failed(
        json!({"keep": {"grid": "all", "also": []}}),
        2,
        "no part of a grid",
    );
    failed(
        json!({"back": {"to": undo, "undo": undo, "dry_run": false}}),
        5,
        "cannot be reached",
    );
    // Something else wrote to it: the record counts for nothing any more.
    let (_, to) = line.points().pop().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let mut copy = fs::read(line.copy()).unwrap();
    copy[0] ^= 1;
    fs::write(line.copy(), &copy).unwrap();
    let undo = name_of(5, "1");
    failed(
        json!({"back": {"to": to, "undo": undo, "dry_run": false}}),
        5,
        "wrote to it",
    );
    assert_eq!(fs::read(line.copy()).unwrap(), copy);
}

#[test]
fn a_full_copy_and_what_follows_it_make_a_new_file_in_one_go() {
    let line = Line::new(&quarters()[..3]);
    let full = line.path("full.delta").display().to_string();
    let source = line.path("s2").display().to_string();
    succeeded(&line.run(&["send", &source, "-o", &full]));
    let points = line.points();
    let path = |number: usize| {
        line.points_in()
            .join(&points[number].1)
            .display()
            .to_string()
    };
    let new = line.path("new.img").display().to_string();
    succeeded(&line.run(&["apply", &full, &path(0), &path(1), &new]));
    assert!(
        fs::read(&new).unwrap() == line.states[0],
        "all three were applied"
    );
}
