//! Commands of the user that are run at certain moments.
//!
//! Guarantees: a shell runs them, with what they need in the environment; one that fails is an error that says which and how
//! it ended; a run that is told to stop does not wait for one, but tells it to stop, too.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// Runs `command` by `sh -c`; `what` is what it is for, in messages.
pub fn run(command: &str, what: &str, environment: &[(&str, &str)], cancel: &Cancel) -> Result<()> {
    let failed = |reason: String| {
        Error::io(
            format!("{what} (`{command}`)"),
            std::io::Error::other(reason),
        )
    };
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        // What it prints is no answer of ours.
        .stdout(std::io::stderr())
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let mut told = false;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) if told => return Err(Error::Interrupted),
            Ok(Some(status)) => return Err(failed(format!("it ended with {status}"))),
            Ok(None) => {}
            Err(error) => return Err(failed(format!("cannot wait for it: {error}"))),
        }
        if cancel.is_cancelled() && !told {
            told = true;
            if let Some(id) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
            }
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
    fn a_run_that_is_told_to_stop_does_not_wait() {
        let cancel = Cancel::new();
        cancel.cancel();
        let error = run("sleep 60", "the pause command", &[], &cancel).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Interrupted);
    }
}
