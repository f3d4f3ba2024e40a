//! A machine that can be switched on: its disks stay what they are from one boot to the next, and are gone with it.

use crate::boot::{Running, start};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::needs;
use crate::setup::Setup;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Where a guest's console goes. The log has it in each case but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// Into the log only.
    Log,
    /// Into the log and, as it comes, to standard output.
    Show,
    /// It is the caller's terminal, for a shell.
    Terminal,
}

/// A machine with disks of its own.
#[derive(Debug)]
pub struct Machine {
    job: Job,
    setup: Setup,
}

impl Machine {
    /// Makes the disks. Fails with what to install when the lab cannot run here.
    pub fn new(name: &str, setup: Setup) -> Result<Self> {
        if let Some(complaint) = needs::complaint() {
            return Err(Error::new(complaint));
        }
        let job = Job::create(name, &setup)?;
        Ok(Self { job, setup })
    }

    /// A directory that host and guest share, at the same path: `LAB_JOB` in the guest.
    pub fn directory(&self) -> &Path {
        self.job.directory()
    }

    /// The disks' files. Not to be written while a guest runs.
    pub fn disks(&self) -> &[PathBuf] {
        self.job.disks()
    }

    /// Everything that the guests of this machine said.
    pub fn log(&self) -> PathBuf {
        self.job.log()
    }

    /// Keeps the directory without the disks when the machine is dropped.
    pub fn keep_log(&mut self) {
        self.job.keep();
    }

    /// Switches it on, to run a shell command as root and then halt. Waits while too many guests run on this host.
    pub fn boot(&self, command: &str, screen: Screen) -> Result<Running> {
        self.job.write("env", &self.environment())?;
        self.job.write("command", command)?;
        start(&self.job, &self.setup, screen)
    }

    fn environment(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for (name, value) in std::env::vars().filter(|(name, _)| passed_on(name)) {
            let _ = writeln!(text, "export {name}={}", quote(&value));
        }
        for (name, value) in &self.setup.env {
            let _ = writeln!(text, "export {name}={}", quote(value));
        }
        let disks: Vec<_> = (0..self.setup.disks.len()).map(guest_disk).collect();
        let _ = writeln!(text, "export LAB_DISKS={}", quote(&disks.join(" ")));
        for program in &self.setup.programs {
            let _ = writeln!(
                text,
                "ln -sf {} /run/lab/bin/",
                quote(&program.to_string_lossy())
            );
        }
        text
    }
}

/// Where the guest sees disk number `n`. It starts at b: `ubda` is the root device of an ordinary boot.
pub(crate) fn guest_disk(n: usize) -> String {
    let letter = (b'b'..=b'p').nth(n).map_or('?', char::from);
    format!("/dev/ubd{letter}")
}

/// What a developer sets for a test run is meant for the guest too: LVMSYNC_LONG, PROPTEST_CASES and the like.
fn passed_on(name: &str) -> bool {
    ["LVMSYNC_", "PROPTEST_", "RUST_BACKTRACE", "RUST_LOG"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// One word for the shell.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::{guest_disk, quote};

    #[test]
    fn words_and_names() {
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(guest_disk(0), "/dev/ubdb");
        assert_eq!(guest_disk(2), "/dev/ubdd");
    }
}
