//! What a guest says of itself when the host has waited for it in vain: what each of its threads waits for.
//!
//! The host asks by a file, for a guest that hangs may not read a console. Its answer is in the log. The kernel's own list
//! (sysrq) is no help: user-mode Linux ends in a panic over it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// In the directory that all boots of a machine share.
const QUESTION: &str = "stuck";
/// There, too, once a guest would answer: not every job of a guest is a test's.
const LISTENS: &str = "listens";
/// The last line of the answer.
pub(crate) const ANSWERED: &str = "lab: that is all that runs";
/// How long the host waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How often the guest looks for the question.
const EVERY: Duration = Duration::from_secs(1);

/// On the host: asks the guest whose directory this is. False if it is one that does not answer.
pub(crate) fn ask(directory: &Path) -> bool {
    // Who cannot ask hears nothing, and fails for the reason it has.
    directory.join(LISTENS).exists() && fs::write(directory.join(QUESTION), "").is_ok()
}

/// On the host, before a boot: an earlier one was asked, perhaps.
pub(crate) fn ask_nothing(directory: &Path) {
    for file in [QUESTION, LISTENS] {
        let _ = fs::remove_file(directory.join(file));
    }
}

/// In the guest: answers once, from a thread of its own.
pub(crate) fn answer_when_asked(directory: &Path) {
    let question = directory.join(QUESTION);
    // Who cannot say so is not asked.
    let _ = fs::write(directory.join(LISTENS), "");
    spawn(move || {
        while !question.exists() {
            sleep(EVERY);
        }
        eprintln!("{}{ANSWERED}", all_that_runs());
    });
}

/// A line for each process, and below it what each of its threads waits for, as far as the kernel tells.
fn all_that_runs() -> String {
    let mut text = String::new();
    for process in numbered(Path::new("/proc")) {
        let words = read(&process, "cmdline").replace('\0', " ");
        // Of the kernel's own threads those that cannot be woken.
        let threads = numbered(&process.join("task"));
        let waiting: Vec<String> = threads.iter().map(|thread| waits_for(thread)).collect();
        if words.is_empty() && !waiting.iter().any(|line| line.contains("D (disk sleep)")) {
            continue;
        }
        let _ = writeln!(text, "{}: {words}", process.display());
        for line in waiting {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

fn waits_for(thread: &Path) -> String {
    let status = read(thread, "status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    let state = state.unwrap_or_default().trim();
    let name = read(thread, "comm");
    // Innermost first.
    let stack = read(thread, "stack").replace("[<0>]", "");
    let stack: Vec<&str> = stack.split_whitespace().collect();
    format!("{}, {state}: {}", name.trim(), stack.join(" "))
}

fn numbered(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_number = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.parse::<u32>().is_ok())
    };
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(is_number)
        .collect();
    found.sort();
    found
}

fn read(directory: &Path, file: &str) -> String {
    let bytes = fs::read(directory.join(file)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_told_with_what_it_waits_for() {
        let told = all_that_runs();
        let me = format!("/proc/{}: ", std::process::id());
        let mut lines = told.lines().skip_while(|line| !line.starts_with(&me));
        assert!(lines.next().is_some(), "{told}");
        assert!(
            lines.next().is_some_and(|line| line.starts_with("    ")),
            "{told}"
        );
    }
}
