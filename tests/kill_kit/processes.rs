//! Finding and signalling processes that a test has started, however deep below ssh they run.
//!
//! Guarantees: only a process with the test's own mark in its environment is ever signalled.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The variable that holds the mark.
pub(crate) const MARK: &str = "LVMSYNC_KILL_MARK";

/// A process with the mark.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Its command line, words separated by blanks.
    pub(crate) line: String,
    /// The program that it runs.
    pub(crate) program: String,
}

/// All processes with this mark. Those that are gone and not yet reaped have no environment any more.
pub(crate) fn marked(mark: &str) -> Vec<Process> {
    let wanted = format!("{MARK}={mark}").into_bytes();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let process = |name: std::ffi::OsString| {
        let pid: u32 = name.to_str()?.parse().ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        if !environment
            .split(|byte| *byte == 0)
            .any(|word| word == wanted)
        {
            return None;
        }
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        Some(Process {
            pid,
            line: super::text(&line).replace('\0', " ").trim().to_owned(),
            program: program.file_name()?.to_string_lossy().into_owned(),
        })
    };
    entries
        .filter_map(|entry| process(entry.file_name()))
        .collect()
}

pub(crate) fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Waits until no process with the mark is left; fails with those that stay.
#[track_caller]
pub(crate) fn wait_until_gone(mark: &str) {
    let start = Instant::now();
    loop {
        let left = marked(mark);
        if left.is_empty() {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "left behind: {left:?}"
        );
        std::thread::sleep(Duration::from_millis(15));
    }
}
