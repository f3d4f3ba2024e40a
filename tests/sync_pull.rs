//! Pulls through a session whose shell is no ssh: what the far end fails of has its code and words here, an older far end
//! is refused before it could read a blur, and what the far end says is not believed further than it has to be.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests: what does not hold fails the test"
)]

mod record_kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lvmsync::delta::header::Header;
use lvmsync::delta::samples::Samples;
use lvmsync::delta::stream::StreamId;
use lvmsync::session::handshake::{FEATURE_PULL_DRY_RUN, FEATURE_PULL_SNAPSHOT, GREETING};
use lvmsync::session::message::{Bye, Failure, Hello, Message, OPERATION_SYNC, Open, Ready};
use serde_json::Value;

use record_kit::noise;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lvmsync");
const MIB: usize = 1 << 20;

struct Ends {
    directory: tempfile::TempDir,
}

impl Ends {
    fn new() -> Self {
        let ends = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        // The far end's process is the one that the shell was.
        let id = ends.path("id");
        ends.shell(&format!(
            "shift\necho $$ > {}\neval \"exec $*\"",
            id.display()
        ));
        fs::write(ends.path("source"), noise(8 * MIB, "source")).unwrap();
        ends
    }

    /// What stands in the place of ssh.
    fn shell(&self, script: &str) {
        let path = self.path("shell");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A far end that says this, whatever it hears, and reads on to the end.
    fn far_end(&self, messages: &[Message]) {
        let mut bytes = GREETING.to_vec();
        for message in messages {
            bytes.extend(message.encode().unwrap());
        }
        fs::write(self.path("script"), bytes).unwrap();
        self.shell(&format!(
            "cat {}; cat > /dev/null",
            self.path("script").display()
        ));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, more: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .arg("sync")
            .arg(format!("host:{}", self.path("source").display()))
            .arg(self.path("destination"))
            .args(["-e", self.path("shell").to_str().unwrap()])
            .args(["--remote-path", PROGRAM])
            .args(more.split_whitespace())
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    #[track_caller]
    fn ends(&self, more: &str, code: i32, words: &[&str]) -> String {
        ended(&self.command(more).output().unwrap(), code, words)
    }

    /// Starts a slow one, and waits until something of it was written.
    fn reading(&self) -> Child {
        let child = self.command("--bwlimit 1M").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let begun = || {
            let written = fs::read(self.path("destination")).unwrap_or_default();
            written.iter().any(|byte| *byte != 0 && *byte != 7)
        };
        while !begun() {
            assert!(Instant::now() < deadline, "nothing is written");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    #[track_caller]
    fn status(&self) -> String {
        let output = Command::new(PROGRAM)
            .args(["state", "show", "--json"])
            .arg(self.path("destination"))
            .env("LVMSYNC_STATE_DIR", self.path("state"))
            .output()
            .unwrap();
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0]["status"].as_str().unwrap_or("none").to_owned()
    }

    #[track_caller]
    fn completes(&self) {
        assert_eq!(self.status(), "incomplete");
        self.ends("", 0, &[]);
        assert!(
            fs::read(self.path("destination")).unwrap() == fs::read(self.path("source")).unwrap()
        );
        assert_eq!(self.status(), "complete");
    }
}

#[track_caller]
fn ended(output: &Output, code: i32, words: &[&str]) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    said
}

#[test]
fn a_source_that_cannot_be_read_to_its_end_is_1_and_the_same_again_completes() {
    let ends = Ends::new();
    fs::write(ends.path("destination"), vec![7; 8 * MIB]).unwrap();
    let child = ends.reading();
    let whole = fs::read(ends.path("source")).unwrap();
    let file = fs::File::options().write(true).open(ends.path("source"));
    file.unwrap().set_len(2 * MIB as u64).unwrap();
    let output = child.wait_with_output().unwrap();
    ended(&output, 1, &["host: ", "source"]);
    fs::write(ends.path("source"), whole).unwrap();
    ends.completes();
}

#[test]
fn a_far_end_that_is_told_to_stop_is_7_and_not_tried_again() {
    let ends = Ends::new();
    fs::write(ends.path("destination"), vec![7; 8 * MIB]).unwrap();
    let child = ends.reading();
    let id = fs::read_to_string(ends.path("id")).unwrap();
    let id = rustix::process::Pid::from_raw(id.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let said = ended(
        &child.wait_with_output().unwrap(),
        7,
        &["host: interrupted"],
    );
    assert!(!said.contains("trying again"), "{said}");
    ends.completes();
}

#[test]
fn an_older_far_end_is_refused_before_it_reads_a_blur() {
    let ends = Ends::new();
    let mut hello = Hello::ours(&[]);
    hello
        .features
        .retain(|name| ![FEATURE_PULL_SNAPSHOT, FEATURE_PULL_DRY_RUN].contains(&name.as_str()));
    ends.far_end(&[Message::Hello(hello)]);
    for (more, feature) in [
        ("", FEATURE_PULL_SNAPSHOT),
        ("--snapshot-size 1G", FEATURE_PULL_SNAPSHOT),
        ("-n --no-snapshot", FEATURE_PULL_DRY_RUN),
    ] {
        ends.ends(more, 7, &[feature]);
        assert!(!ends.path("destination").exists());
    }
}

/// What every far end here says first.
fn begins(snapshot: &str) -> Vec<Message> {
    let text = format!(r#"{{"volume_size": {}, "source": "full"}}"#, 8 * MIB);
    let header = Header::decode(text.as_bytes(), 0).unwrap();
    vec![
        Message::Hello(Hello::ours(&[])),
        Message::Ready(Ready {
            size_bytes: 8 * MIB as u64,
            snapshot: snapshot.to_owned(),
            ..Ready::default()
        }),
        Message::Open(Open {
            operation: OPERATION_SYNC.to_owned(),
            stream: Some(StreamId::of(&header, &Samples::default())),
            ..Open::default()
        }),
    ]
}

/// A far end whose snapshot is lost, and what it says to name in its place.
fn lost(recover: &str) -> [Message; 2] {
    let failure = Failure {
        code: 4,
        message: "vg/s1: it is full".to_owned(),
        held: false,
        recover: recover.to_owned(),
    };
    [Message::Hello(Hello::ours(&[])), Message::Error(failure)]
}

/// The far end names what can be read in place of its snapshot: for a sync where that is SRC, and where it is DEST, which no
/// sync would make whole, for another comparison.
#[test]
fn a_comparison_with_a_lost_snapshot_ends_with_what_leads_on() {
    let ends = Ends::new();
    let file = ends.path("source").display().to_string();
    let way = format!(
        "-e {} --remote-path {PROGRAM}",
        ends.path("shell").display()
    );
    for (recover, source, destination) in
        [("vg/data", "vg/data", "vg/data"), ("", "vg/s1", "ORIGIN")]
    {
        ends.far_end(&lost(recover));
        for (pair, no_sync, line) in [
            (
                ["host:vg/s1", &file],
                false,
                format!("sync host:{source} {file} {way}"),
            ),
            (
                [&file, "host:vg/s1"],
                true,
                format!("compare {file} host:{destination} {way}"),
            ),
        ] {
            let output = Command::new(PROGRAM)
                .arg("compare")
                .args(pair)
                .args(way.split_whitespace())
                .env("LVMSYNC_STATE_DIR", ends.path("state"))
                .output()
                .unwrap();
            let line = format!("\nTo recover: lvmsync {line}\n");
            let said = ended(&output, 4, &["host: vg/s1: it is full", &line]);
            assert_eq!(said.contains("no sync makes it whole"), no_sync, "{said}");
        }
    }
}

#[test]
fn a_lost_list_of_changes_ends_with_the_sync_that_the_user_can_run() {
    let ends = Ends::new();
    fs::write(ends.path("destination"), vec![7; 8 * MIB]).unwrap();
    let line = |source: &str| {
        format!(
            "\nTo recover: lvmsync sync {source} {} -e {} --remote-path {PROGRAM}\n",
            ends.path("destination").display(),
            ends.path("shell").display()
        )
    };
    let source = format!("host:{}", ends.path("source").display());
    for (recover, source) in [
        ("vg/data", "host:vg/data"),
        ("", &source),
        ("a b", "'host:a b'"),
    ] {
        let words = ["host: vg/s1: it is full", &line(source)];
        ends.far_end(&lost(recover));
        ends.ends("", 4, &words);
        // Without these, if they are needed, it would be refused.
        let options = "--timeout 30 --no-snapshot --allow-smaller --allow-in-use";
        let with_options = format!("{} {options}\n", line(source).trim_end());
        ends.ends(options, 4, &[&with_options]);
        let mut messages = begins("");
        messages.push(Message::Bye(Bye {
            reason: "vg/s1: it is full".to_owned(),
            code: 4,
            recover: recover.to_owned(),
        }));
        ends.far_end(&messages);
        ends.ends("", 4, &words);
    }
    assert!(fs::read(ends.path("destination")).unwrap() == vec![7; 8 * MIB]);
}

#[test]
fn what_a_far_end_claims_is_no_success_and_no_signal_of_ours() {
    let ends = Ends::new();
    fs::write(ends.path("destination"), vec![7; 8 * MIB]).unwrap();
    for code in [0, 130, 99, 7] {
        let mut messages = begins("");
        messages.push(Message::Bye(Bye {
            reason: "that was it".to_owned(),
            code,
            recover: String::new(),
        }));
        ends.far_end(&messages);
        ends.ends("--retries 0", 7, &["host: ", "that was it"]);
    }
    // A name of a snapshot that would move the cursor is shown, and nothing else.
    let mut messages = begins("vg/\u{1b}[2J");
    messages.push(Message::bye("that was it"));
    ends.far_end(&messages);
    let said = ends.ends("-v", 7, &["that was it"]);
    assert!(!said.contains('\u{1b}'), "{said}");
}

#[test]
fn a_far_end_with_limits_that_may_be_read_needs_no_more_for_what_is_not_live() {
    let ends = Ends::new();
    let source = fs::canonicalize(ends.path("source")).unwrap();
    for limits in [
        format!("--allow {} --permit read", source.display()),
        "--read-only --permit read --permit snapshot".to_owned(),
    ] {
        ends.shell(&format!("exec {PROGRAM} serve {limits}"));
        ends.ends("-n", 0, &["would send 8.0 MiB data"]);
        assert!(!ends.path("destination").exists());
        ends.ends("--verify", 0, &["verified"]);
        ends.ends("--keep-snapshot s1", 2, &["host: ", "--keep-snapshot"]);
        fs::remove_file(ends.path("destination")).unwrap();
    }
    for limits in [
        "--permit snapshot",
        "--read-only --permit snapshot",
        "--allow /x --permit snapshot",
    ] {
        let output = Command::new(PROGRAM)
            .arg("serve")
            .args(limits.split(' '))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        ended(&output, 2, &["--permit"]);
    }
}
