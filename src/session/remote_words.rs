//! Why the far end could not be used: from exit status and words to a sentence with a way out.
//!
//! Guarantees: pure; what was found is always shown; the words of ssh, sudo, a shell or lvmsync are
//! quoted in full and never only interpreted.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::{SessionError, self_and_sources};

/// How far the far end had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing was heard of it yet.
    Starting,
    /// It had greeted.
    Running,
    /// It is driven without a session and never greets.
    Compat,
}

/// ssh's own exit code, for anything that is wrong with the connection.
const SSH_FAILED: i32 = 255;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// One paragraph for the user. `status` is `None` for a child that did not end by itself; `session` is
/// what the session saw.
pub(super) fn diagnose(
    stage: Stage,
    rsh_program: &str,
    status: Option<ExitStatus>,
    words: &str,
    session: Option<&SessionError>,
) -> String {
    let code = status.and_then(|status| status.code());
    let headline = match (code, session) {
        (Some(SSH_FAILED), _) if stage == Stage::Running => {
            format!("the connection was lost: {rsh_program} ended with code 255")
        }
        (Some(SSH_FAILED), _) => format!("cannot connect: {rsh_program} ended with code 255"),
        _ if stage != Stage::Running && is_original(words) => ORIGINAL.to_owned(),
        _ if stage != Stage::Running && is_missing(code, words) => MISSING.to_owned(),
        _ if stage != Stage::Running && sudo_wants_password(words) => SUDO.to_owned(),
        (_, Some(SessionError::Closed { .. })) | (_, None) => match stage {
            Stage::Starting => format!("lvmsync there {} before the session began", ended(status)),
            Stage::Running => {
                format!(
                    "lvmsync there {} in the middle of the session",
                    ended(status)
                )
            }
            Stage::Compat => format!("lvmsync there {}", ended(status)),
        },
        (_, Some(session)) => {
            let mut text = self_and_sources(session);
            if status.is_some_and(|status| !status.success()) {
                text.push_str(&format!("\nIt {}", ended(status)));
            }
            text
        }
    };
    let mut text = headline;
    // With a diagnosis by exit code, what stood in the place of the greeting is still worth seeing.
    if let Some(SessionError::NotASession { found }) = session
        && !text.contains(found.as_str())
    {
        text.push_str(&format!("\nIt printed: {}", found.trim()));
    }
    if !words.is_empty() {
        text.push_str(&format!("\nIt said:\n{words}"));
    }
    text
}

/// True when trying again later may succeed. A far end that ends before it greets, unless it is ssh that
/// cannot connect, does so every time: it is not installed, or asks for a password.
pub(super) fn is_lost(stage: Stage, status: Option<ExitStatus>, session: &SessionError) -> bool {
    let code = status.and_then(|status| status.code());
    let greeted = stage == Stage::Running || matches!(session, SessionError::Silent { .. });
    session.is_lost() && (greeted || code == Some(SSH_FAILED))
}

const MISSING: &str = "lvmsync was not found there. Install it there, or say where it is with \
    --remote-path PATH: the PATH of a command that ssh starts is often shorter than that of a login";
const ORIGINAL: &str = "the lvmsync there is the original one (written in Ruby), which does not know \
    this protocol. Install this lvmsync there, or use --compat to send what the original understands, \
    without its safety checks";
const SUDO: &str = "sudo there asks for a password, which `sudo -n` cannot give. Allow the command \
    without one: in sudoers, USER ALL=(root) NOPASSWD: /path/to/lvmsync serve. docs/security.md has one that \
    permits less";

/// The words that the original prints when it takes `serve` for the name of a snapshot.
fn is_original(words: &str) -> bool {
    words.contains("No destination specified.")
}

fn is_missing(code: Option<i32>, words: &str) -> bool {
    let named = |words: &str| {
        let lower = words.to_ascii_lowercase();
        lower.contains("not found") || lower.contains("no such file")
    };
    // sudo, doas and some restricted shells say it with exit code 1.
    let first_line = words.lines().next_back().unwrap_or("");
    match code {
        Some(NOT_FOUND | NOT_EXECUTABLE) => true,
        Some(code) => {
            code != 0
                && words.contains("lvmsync")
                && named(first_line)
                && words.lines().count() <= 3
        }
        None => false,
    }
}

fn sudo_wants_password(words: &str) -> bool {
    words
        .lines()
        .any(|line| line.starts_with("sudo: ") && line.contains("password"))
}

fn ended(status: Option<ExitStatus>) -> String {
    match status {
        None => "did not answer".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(0), _) => "ended without an error".to_owned(),
            (Some(code), _) => format!("ended with code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        },
    }
}
