//! Commands of the user that are run at certain moments.
//!
//! Guarantees: a shell runs them, with what they need in the environment; one that fails is an error that says which and how
//! it ended; a run that is told to stop does not wait for one, but tells it to stop, too.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// So long what was told to stop may take, before it is killed.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// Runs `command` by `sh -c`; `what` is what it is for, in messages.
pub fn run(command: &str, what: &str, environment: &[(&str, &str)], cancel: &Cancel) -> Result<()> {
    let failed = |reason: String| {
        Error::io(
            format!("{what} (`{command}`)"),
            std::io::Error::other(reason),
        )
    };
    cancel.check()?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        // What it prints is no answer of ours.
        .stdout(std::io::stderr())
        // All that it starts is told to stop with it; and Ctrl-C on the terminal is for us alone.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let group = Pid::from_raw(child.id().cast_signed());
    let mut told: Option<Instant> = None;
    loop {
        match child.try_wait() {
            // What a script has started may go on without it.
            Ok(Some(_)) if told.is_some() => {
                wait_for_group(group);
                return Err(Error::Interrupted);
            }
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(format!("it ended with {status}"))),
            Ok(None) => {}
            Err(error) => return Err(failed(format!("cannot wait for it: {error}"))),
        }
        match told {
            None if cancel.is_cancelled() => {
                told = Some(Instant::now());
                signal(group, Signal::TERM);
            }
            Some(since) if since.elapsed() > STOPS_WITHIN => signal(group, Signal::KILL),
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // Gone already is what is wanted.
        let _ = kill_process_group(group, signal);
    }
}

fn wait_for_group(group: Option<Pid>) {
    let Some(group) = group else { return };
    let since = Instant::now();
    while test_kill_process_group(group).is_ok() && since.elapsed() < 2 * STOPS_WITHIN {
        if since.elapsed() > STOPS_WITHIN {
            signal(Some(group), Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn a_command_that_fails_is_named() {
        let cancel = Cancel::new();
        run(
            "test \"$LVMSYNC_X\" = 1",
            "the hook",
            &[("LVMSYNC_X", "1")],
            &cancel,
        )
        .unwrap();
        let error = run("exit 3", "the pause command", &[], &cancel).unwrap_err();
        let text = error.chain();
        assert!(text.contains("the pause command (`exit 3`)"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn a_run_that_is_told_to_stop_waits_for_all_that_the_command_has_started() {
        let cancel = Cancel::new();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        let to_cancel = cancel.clone();
        let begun = format!("{path}/begun");
        let stop = std::thread::spawn(move || {
            while !std::path::Path::new(&begun).exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            to_cancel.cancel();
        });
        // The shell has a child of its own, which would go on without it.
        let script = format!("(touch {path}/begun; sleep 1; sleep 60; touch {path}/on); true");
        let error = run(&script, "the pause command", &[], &cancel).unwrap_err();
        stop.join().unwrap();
        assert_eq!(error.exit_code(), ExitCode::Interrupted);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!directory.path().join("on").exists());
        let error = run("true", "the pause command", &[], &cancel).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Interrupted, "not even begun");
    }
}
