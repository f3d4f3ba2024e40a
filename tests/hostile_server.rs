//! Servers that mean harm, against the real `lvmsync send`: a script in the place of ssh says raw bytes.
//!
//! Whatever they say, the client ends within seconds, with a documented code, in little memory; nothing that a
//! terminal would act upon comes through, and only Done after End is success.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod hostile_kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hostile_kit::{Ended, Peer, bytes, data, hello};
use lvmsync::session::handshake::GREETING;
use lvmsync::session::message::{Ack, ApplyOptions, Done, Message, OPERATION_APPLY, Open, Ready};

fn request() -> Open {
    Open {
        operation: OPERATION_APPLY.into(),
        destination: "/x".into(),
        options: ApplyOptions::default(),
        ..Open::default()
    }
}

/// What a hostile server says, as a program in the place of ssh. `more` says how it goes on when that was said.
struct Server {
    directory: tempfile::TempDir,
}

impl Server {
    fn new(said: &[u8], more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("said"), said).unwrap();
        fs::write(path("new.img"), vec![3; 4 << 20]).unwrap();
        let script = format!(
            "#!/bin/sh\ncd {}\ncat said\n{more}\n",
            directory.path().display()
        );
        fs::write(path("rsh"), script).unwrap();
        fs::set_permissions(path("rsh"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    fn send(&self, timeout: &str) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        command
            .args([
                "send",
                "--retries",
                "0",
                "--timeout",
                timeout,
                "-e",
                &format!("/bin/sh {}", path("rsh")),
            ])
            .args([&path("new.img"), "far:/x"]);
        let peer = Peer::start(&mut command);
        let ended = peer.end(true);
        assert!(ended.stdout.is_empty());
        ended
    }
}

/// Takes what it is sent, so that the client can end in its own time.
const DRAIN: &str = "exec cat >/dev/null";

#[test]
fn a_hostile_server_gets_an_error_and_no_success() {
    let greeted = [GREETING, &hello()].concat();
    let ready = [greeted.clone(), bytes(&Message::Ready(Ready::default()))].concat();
    let ack = |offset| {
        bytes(&Message::Ack(Ack {
            offset,
            frames: 1,
            bytes: 1,
        }))
    };
    let done = bytes(&Message::Done(Done::default()));
    let warning = bytes(&Message::warning("w\x1b[2J"));
    for (what, said, words) in [
        ("nothing", vec![], "before the session began"),
        (
            "noise without end",
            vec![b'x'; 1 << 20],
            "does not speak this protocol",
        ),
        (
            "control characters",
            b"\x1b[2J\x1b]0;x\x07".repeat(100),
            "does not speak this protocol",
        ),
        (
            "greeting twice",
            [GREETING, GREETING].concat(),
            "damaged message",
        ),
        (
            "hello twice",
            [greeted.clone(), hello()].concat(),
            "sent Hello where Ready",
        ),
        (
            "ready twice",
            [ready.clone(), bytes(&Message::Ready(Ready::default()))].concat(),
            "sent Ready",
        ),
        (
            "open from a server",
            [ready.clone(), bytes(&Message::Open(request()))].concat(),
            "sent Open",
        ),
        (
            "data from a server",
            [ready.clone(), data(b"x")].concat(),
            "sent Data",
        ),
        (
            "done at once",
            [greeted.clone(), done.clone()].concat(),
            "sent Done where Ready",
        ),
        (
            "done before the end",
            [ready.clone(), done.clone(), done].concat(),
            "Done before End",
        ),
        (
            "an ack that goes back",
            [ready.clone(), ack(9), ack(8)].concat(),
            "must not go down",
        ),
        (
            "an ack past the volume",
            [ready.clone(), ack(5 << 20)].concat(),
            "the volume ends at 4194304",
        ),
        (
            "an ack past everything",
            [ready.clone(), ack(u64::MAX)].concat(),
            "the volume ends at",
        ),
        (
            "a flood of warnings",
            [ready, warning.repeat(20_000)].concat(),
            "more than 10000 warnings",
        ),
        (
            "a flood before ready",
            [greeted.clone(), warning.repeat(20_000)].concat(),
            "more than 10000 warnings",
        ),
    ] {
        let ended = Server::new(&said, DRAIN).send("10");
        assert_eq!(ended.code, Some(7), "{what}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{what}: {}", ended.stderr);
        assert!(
            !ended.stderr.contains('\x1b') && !ended.stderr.contains('\x07'),
            "{what}"
        );
        assert!(
            ended.stderr.lines().count() < 120,
            "{what}: {}",
            ended.stderr.len()
        );
    }
    // A code of its own for everything that a server may report, and none is success.
    for (code, expected) in [(0, 7), (1, 7), (5, 5), (6, 6), (77, 7), (130, 7)] {
        let failed = [
            greeted.clone(),
            bytes(&Message::failure(code, "no\x1b[2J", false)),
        ]
        .concat();
        let ended = Server::new(&failed, DRAIN).send("10");
        assert_eq!(ended.code, Some(expected), "{}", ended.stderr);
        assert!(ended.stderr.contains("far: no\u{fffd}"), "{}", ended.stderr);
    }
}

#[test]
fn a_server_that_falls_silent_or_never_reads_is_given_up() {
    let greeted = [GREETING, &hello()].concat();
    let ready = [greeted.clone(), bytes(&Message::Ready(Ready::default()))].concat();
    for (said, more, words) in [
        (vec![], "exec sleep 30", "did not begin within 1 s"),
        (
            GREETING[..5].to_vec(),
            "exec sleep 30",
            "did not begin within 1 s",
        ),
        (greeted, "exec sleep 30", "while waiting for Ready"),
        (
            ready.clone(),
            "exec sleep 30",
            "nothing was heard of the far end for 1 s",
        ),
        (ready, "exec cat >/dev/null", "closed"),
    ] {
        let start = Instant::now();
        let ended = Server::new(&said, more).send("1");
        assert_eq!(ended.code, Some(7), "{}", ended.stderr);
        if words == "closed" {
            continue;
        }
        let told = ended.stderr.contains(words) && ended.stderr.contains("--timeout");
        assert!(told, "{words}: {}", ended.stderr);
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}

#[test]
fn a_flood_on_stderr_is_cut() {
    let said = [GREETING, &hello()].concat();
    let ended = Server::new(&said, "yes 'a line of words' | head -n 100000 >&2; exit 3").send("10");
    assert_eq!(ended.code, Some(7));
    assert!(ended.stderr.contains("[further lines are not shown]"));
    assert!(
        ended.stderr.lines().count() < 7000,
        "{}",
        ended.stderr.lines().count()
    );
}

#[test]
fn a_signal_ends_a_send_whose_write_blocks() {
    let said = [
        GREETING,
        &hello(),
        &bytes(&Message::Ready(Ready::default())),
    ]
    .concat();
    let server = Server::new(&said, "exec sleep 30");
    let path = |name: &str| server.directory.path().join(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
    command
        .args([
            "send",
            "--timeout",
            "0",
            "-e",
            &format!("/bin/sh {}", path("rsh")),
        ])
        .args([&path("new.img"), "far:/x"]);
    let peer = Peer::start(&mut command);
    thread::sleep(Duration::from_millis(700));
    let start = Instant::now();
    let kill = Command::new("kill")
        .args(["-INT", &peer.child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let ended = peer.end(false);
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "not by force: {:?}",
        start.elapsed()
    );
}

#[test]
fn sudo_gets_exactly_the_words_of_the_documented_line() {
    let server = Server::new(&[], "echo \"<$2>\" >&2; exit 1");
    let path = |name: &str| server.directory.path().join(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lvmsync"));
    command
        .args(["send", "--sudo", "-e", &format!("/bin/sh {}", path("rsh"))])
        .args([&path("new.img"), "far:/x", "--undo", "u", "--force"]);
    let ended = Peer::start(&mut command).end(true);
    assert!(
        ended.stderr.contains("<sudo -n lvmsync serve>"),
        "{}",
        ended.stderr
    );
}
