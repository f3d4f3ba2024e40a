//! Tests of starting the far end, with shell scripts that stand in for ssh.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::line::Line;
use super::message::{ApplyOptions, Done, Message, OPERATION_APPLY, Open, Ready};
use super::remote::{OnLine, RemoteEnd, RemoteOptions, quote, remote_command};
use crate::cancel::Cancel;
use crate::error::{Error, ExitCode};

/// A program that gets `[OPTIONS] HOST COMMAND`, as ssh does.
struct FakeRsh {
    directory: tempfile::TempDir,
    heard: Arc<Mutex<Vec<String>>>,
}

impl FakeRsh {
    fn new(body: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rsh");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            directory,
            heard: Arc::default(),
        }
    }

    fn options(&self) -> RemoteOptions {
        let script = self.directory.path().join("rsh");
        // Through sh: a script that was just written may still be open in a child of another test.
        let rsh = format!("/bin/sh '{}'", script.display());
        RemoteOptions {
            rsh: Some(rsh),
            ..RemoteOptions::default()
        }
    }

    fn on_line(&self) -> OnLine {
        let heard = Arc::clone(&self.heard);
        Box::new(move |line| heard.lock().unwrap().push(line.to_owned()))
    }

    fn start(&self, arguments: &[&str]) -> RemoteEnd {
        RemoteEnd::start("box", &self.options(), arguments, self.on_line()).unwrap()
    }

    /// The error of a far end that never becomes a session.
    fn diagnosis(&self) -> String {
        let mut end = self.start(&["serve"]);
        let error = end
            .connect(&Line::new(Cancel::new(), None), &[], Arc::new(()))
            .err()
            .unwrap();
        assert_eq!(error.exit_code(), ExitCode::Remote, "{error}");
        let (Error::Remote { host, .. } | Error::Lost { host, .. }) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(host, "box");
        error.to_string()
    }
}

fn assert_has(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "`{wanted}` is missing in: {text}");
    }
}

#[test]
fn ssh_failures_are_told_in_its_own_words() {
    for words in [
        "ssh: connect to host box port 22: Connection refused",
        "ssh: Could not resolve hostname box: Name or service not known",
        "Host key verification failed.",
        "root@box: Permission denied (publickey).",
    ] {
        let text = FakeRsh::new(&format!("echo '{words}' >&2; exit 255")).diagnosis();
        assert_has(&text, &["box: cannot connect", words]);
    }
}

#[test]
fn a_missing_lvmsync_is_named_with_the_way_out() {
    for body in [
        "echo 'bash: line 1: lvmsync: command not found' >&2; exit 127",
        "echo 'sh: 1: lvmsync: not found' >&2; exit 127",
        "echo 'sudo: lvmsync: command not found' >&2; exit 1",
        "echo 'Last login: today'; echo 'lvmsync: not found' >&2; exit 127",
    ] {
        let text = FakeRsh::new(body).diagnosis();
        assert_has(
            &text,
            &["lvmsync was not found there", "--remote-path", "not found"],
        );
    }
    // The real thing, through a real shell.
    let text = FakeRsh::new("shift; PATH=/nonexistent exec /bin/sh -c \"$*\"").diagnosis();
    assert_has(&text, &["was not found there", "It said:"]);
}

#[test]
fn the_original_is_recognised_and_compat_offered() {
    let text =
        FakeRsh::new("echo 'FATAL ERROR: No destination specified.' >&2; exit 1").diagnosis();
    assert_has(
        &text,
        &["original", "--compat", "No destination specified."],
    );
}

#[test]
fn sudo_that_wants_a_password_is_named() {
    let text = FakeRsh::new("echo 'sudo: a password is required' >&2; exit 1").diagnosis();
    assert_has(&text, &["NOPASSWD", "sudo: a password is required"]);
}

#[test]
fn any_other_end_shows_code_and_words() {
    let text = FakeRsh::new("echo one >&2; echo two >&2; exit 3").diagnosis();
    assert_has(
        &text,
        &["ended with code 3 before the session began", "one\ntwo"],
    );
    let text = FakeRsh::new("kill -9 $$").diagnosis();
    assert_has(&text, &["signal 9"]);
    let text = FakeRsh::new("exit 0").diagnosis();
    assert_has(&text, &["ended without an error before the session began"]);
}

#[test]
fn noise_is_shown_and_the_program_that_made_it_is_ended() {
    let start = Instant::now();
    let text = FakeRsh::new("echo 'Welcome!'; exec cat >/dev/null").diagnosis();
    assert_has(&text, &["Welcome!", "start-up files"]);
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "its input was closed, so it ended"
    );
}

#[test]
fn an_rsh_that_is_missing_is_named() {
    let rsh = Some("no-such-ssh -p 22".to_owned());
    let options = RemoteOptions {
        rsh,
        ..RemoteOptions::default()
    };
    let error = RemoteEnd::start("box", &options, &["serve"], Box::new(|_| ()))
        .err()
        .unwrap();
    assert_eq!(error.exit_code(), ExitCode::Remote);
    assert_has(&error.to_string(), &["box: ", "`no-such-ssh`", "--rsh"]);
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let start = |host: &str, options: &RemoteOptions, argument: &str| {
        RemoteEnd::start(host, options, &[argument], Box::new(|_| ()))
            .err()
            .unwrap()
            .exit_code()
    };
    let plain = RemoteOptions {
        rsh: Some("/bin/true".into()),
        ..RemoteOptions::default()
    };
    for host in ["", "-oProxyCommand=id", "u@-x", "a b", "a\nb"] {
        assert_eq!(start(host, &plain, "serve"), ExitCode::Usage, "{host}");
    }
    for rsh in ["", "  ", "ssh 'open", "''"] {
        let options = RemoteOptions {
            rsh: Some(rsh.into()),
            ..RemoteOptions::default()
        };
        assert_eq!(start("box", &options, "serve"), ExitCode::Usage, "{rsh}");
    }
    let options = RemoteOptions {
        remote_path: Some("-x".into()),
        ..plain.clone()
    };
    assert_eq!(start("box", &options, "serve"), ExitCode::Usage);
    assert_eq!(start("box", &plain, "a\0b"), ExitCode::Usage);
}

#[test]
fn stderr_is_relayed_line_by_line_and_not_lost_when_it_is_long() {
    let rsh = FakeRsh::new(
        "i=0; while [ $i -lt 2000 ]; do echo \"line $i of many words\" >&2; i=$((i+1)); done\n\
         printf 'the \\033[31mlast words' >&2; exit 9",
    );
    let text = rsh.diagnosis();
    assert_has(
        &text,
        &["line 1999 of many words\nthe \u{fffd}[31mlast words"],
    );
    assert!(text.len() < 20_000, "the end is kept: {}", text.len());
    let heard = rsh.heard.lock().unwrap();
    assert_eq!(heard.len(), 2001);
    assert_eq!(heard[0], "box: line 0 of many words");
    assert_eq!(heard[2000], "box: the \u{fffd}[31mlast words");
}

#[test]
fn host_options_and_command_arrive_as_words() {
    let rsh = FakeRsh::new("for word; do printf '<%s>' \"$word\" >&2; done; exit 4");
    let base = rsh.options();
    let options = RemoteOptions {
        rsh: base.rsh.map(|rsh| format!("{rsh} -p 22 -o 'A B'")),
        remote_path: Some("/opt/my tools/lvmsync".into()),
        sudo: true,
    };
    let mut end = RemoteEnd::start("u@box", &options, &["serve", "it's"], rsh.on_line()).unwrap();
    let error = end
        .connect(&Line::new(Cancel::new(), None), &[], Arc::new(()))
        .err()
        .unwrap();
    let command = r"<-p><22><-o><A B><u@box><sudo -n '/opt/my tools/lvmsync' serve 'it'\''s'>";
    assert_has(&error.to_string(), &[command]);
}

/// A far end that speaks: the script plays recorded bytes, whatever it is sent.
fn recorded(directory: &std::path::Path, messages: &[Message]) -> String {
    let mut bytes = super::handshake::GREETING.to_vec();
    for message in messages {
        bytes.extend(message.encode().unwrap());
    }
    let path = directory.join("recorded");
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn open() -> Open {
    let destination = "vg/lv".to_owned();
    Open {
        operation: OPERATION_APPLY.into(),
        destination,
        options: ApplyOptions::default(),
        source: None,
        ..Open::default()
    }
}

#[test]
fn a_session_runs_through_a_child_and_a_lost_one_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let hello = Message::Hello(super::message::Hello::ours(&[]));
    let spoken = [hello, Message::Ready(Ready::default())];
    let recorded = recorded(directory.path(), &spoken);

    let lost = "echo 'client_loop: send disconnect: Broken pipe' >&2; exit 255";
    let rsh = FakeRsh::new(&format!(
        "cat '{recorded}'; head -c 100000 >/dev/null; {lost}"
    ));
    let mut end = rsh.start(&["serve"]);
    let client = end
        .connect(&Line::new(Cancel::new(), None), &[], Arc::new(()))
        .unwrap();
    let (_, mut out) = client.open(open()).unwrap();
    let failure = loop {
        if out.write_all(&[7; 1 << 20]).is_err() {
            break out.abort("x").unwrap();
        }
    };
    let text = end.explain(failure).to_string();
    assert_has(&text, &["box: the connection was lost", "client_loop"]);
}

#[test]
fn done_is_enough_even_if_the_child_is_slow_to_end() {
    // Done may come only after End, so the script waits for the end of its input's first message.
    let directory = tempfile::tempdir().unwrap();
    let hello = Message::Hello(super::message::Hello::ours(&[]));
    let recorded = recorded(
        directory.path(),
        &[hello.clone(), Message::Ready(Ready::default())],
    );
    let done_path = directory.path().join("done");
    std::fs::write(&done_path, Message::Done(Done::default()).encode().unwrap()).unwrap();
    let client_bytes = hello.encode().unwrap().len()
        + Message::Open(open()).encode().unwrap().len()
        + Message::Data(vec![7; 10]).encode().unwrap().len()
        + Message::End.encode().unwrap().len();
    let done = done_path.display();
    let rsh = FakeRsh::new(&format!(
        "cat '{recorded}'; head -c {client_bytes} >/dev/null; sleep 0.1; cat '{done}'; cat >/dev/null"
    ));
    let mut end = rsh.start(&["serve"]);
    let client = end
        .connect(&Line::new(Cancel::new(), None), &[], Arc::new(()))
        .unwrap();
    let (_, mut out) = client.open(open()).unwrap();
    out.write_all(&[7; 10]).unwrap();
    let done = out.finish();
    assert!(done.is_ok(), "{done:?}");
    end.close();
}

#[test]
fn compat_writes_to_stdin_and_judges_by_the_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let got = directory.path().join("got");
    let rsh = FakeRsh::new(&format!(
        "echo \"$2\" >&2; cat > '{}'; echo fine",
        got.display()
    ));
    let mut end = rsh.start(&["--apply", "-", "/dev/my vg"]);
    end.take_stdin()
        .unwrap()
        .write_all(b"lvmsync PROTO[3]\n")
        .unwrap();
    end.wait(&|| false).unwrap();
    assert_eq!(std::fs::read(&got).unwrap(), b"lvmsync PROTO[3]\n");
    let heard = rsh.heard.lock().unwrap().clone();
    assert!(
        heard.contains(&"box: lvmsync --apply - '/dev/my vg'".to_owned()),
        "{heard:?}"
    );
    assert!(heard.contains(&"box: fine".to_owned()), "{heard:?}");

    let rsh =
        FakeRsh::new("cat >/dev/null; sleep 0.3; echo 'FATAL ERROR: APPLY FAILED.' >&2; exit 1");
    let mut end = rsh.start(&["--apply", "-", "d"]);
    drop(end.take_stdin().unwrap());
    let error = end.wait(&|| false).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Remote);
    assert_has(
        &error.to_string(),
        &["ended with code 1", "FATAL ERROR: APPLY FAILED."],
    );

    let rsh = FakeRsh::new("exec sleep 60");
    let end = rsh.start(&["--apply", "-", "d"]);
    let start = Instant::now();
    assert!(matches!(end.wait(&|| true), Err(Error::Interrupted)));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "the child is ended at once"
    );
}

#[test]
fn a_child_is_ended_and_reaped_on_drop() {
    let rsh = FakeRsh::new("echo $$ >&2; exec sleep 60");
    let end = rsh.start(&["serve"]);
    let pid = loop {
        if let Some(line) = rsh.heard.lock().unwrap().first() {
            break line.trim_start_matches("box: ").to_owned();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(std::path::Path::new("/proc").join(&pid).exists());
    drop(end);
    assert!(
        !std::path::Path::new("/proc").join(&pid).exists(),
        "gone, and no zombie"
    );
}

#[test]
fn words_that_a_forced_command_compares_stay_plain() {
    let options = RemoteOptions::default();
    assert_eq!(
        remote_command(&options, &["serve"]).unwrap(),
        "lvmsync serve"
    );
    assert_eq!(quote(""), Some("''".into()));
    assert_eq!(quote("a=b"), Some("'a=b'".into()));
    assert_eq!(quote("~"), Some("'~'".into()));
    assert_eq!(quote("a\0"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_shell_gets_back_the_words_that_were_quoted(
        words in prop::collection::vec("[ -~\\n\\t'\"$`\\\\!é]{0,12}", 1..5),
    ) {
        let quoted: Vec<String> = words.iter().map(|word| quote(word).unwrap()).collect();
        let command = format!("printf '%s\\0' {}", quoted.join(" "));
        let output = Command::new("/bin/sh").arg("-c").arg(command).output().unwrap();
        let mut expected = words.join("\0").into_bytes();
        expected.push(0);
        prop_assert_eq!(output.stdout, expected);
    }
}

#[test]
fn a_stderr_held_open_by_someone_else_does_not_hang_us() {
    let start = Instant::now();
    let text = FakeRsh::new("sleep 20 >/dev/null & echo lost >&2; exit 255").diagnosis();
    assert_has(&text, &["lost"]);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_rsh_that_connects_to_nothing_is_given_up_and_can_be_cancelled() {
    let rsh = FakeRsh::new("exec cat 3>&1 >/dev/null");
    let start = Instant::now();
    let line = Line::new(Cancel::new(), Some(Duration::from_millis(300)));
    let mut end = rsh.start(&["serve"]);
    let error = end.connect(&line, &[], Arc::new(())).err().unwrap();
    assert!(error.is_lost(), "{error:?}");
    assert_eq!(error.exit_code(), ExitCode::Remote);
    let words = ["box: ", "within 0.3 s", "the greeting", "--timeout"];
    assert_has(&error.to_string(), &words);

    let cancel = Cancel::new();
    cancel.cancel();
    let mut end = rsh.start(&["serve"]);
    let line = Line::new(cancel, None);
    let error = end.connect(&line, &[], Arc::new(())).err().unwrap();
    assert_has(&error.to_string(), &["interrupted"]);
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn only_what_another_attempt_may_mend_is_lost() {
    for (body, lost) in [
        ("echo 'Connection refused' >&2; exit 255", true),
        ("echo 'sh: 1: lvmsync: not found' >&2; exit 127", false),
        ("echo 'sudo: a password is required' >&2; exit 1", false),
        ("echo Welcome", false),
    ] {
        let rsh = FakeRsh::new(body);
        let mut end = rsh.start(&["serve"]);
        let line = Line::new(Cancel::new(), None);
        let error = end.connect(&line, &[], Arc::new(())).err().unwrap();
        assert_eq!(error.is_lost(), lost, "{body}: {error}");
    }
}
