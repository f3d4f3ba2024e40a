//! The session between two lvmsyncs: what they say to each other, and how the far one is started.
//!
//! Guarantees: both ends agree on version and features before anything else is said; a stream that does
//! not reach its end is an error on both sides; *done* is said once, by the receiver, last; the words of
//! a failing end reach the other in full. Everything but [`remote`] works over any `Read` and `Write`.
//! `docs/protocol.md` is the specification.

pub mod asker;
pub mod client;
pub mod compare_wire;
mod contents;
pub mod endpoint;
pub mod handshake;
pub mod limits;
pub mod line;
pub mod message;
mod relay;
pub mod remote;
mod remote_words;
pub mod server;
pub mod text;
pub mod transport;

#[cfg(test)]
mod line_tests;
#[cfg(test)]
mod message_tests;
#[cfg(test)]
mod remote_tests;
#[cfg(test)]
mod session_tests;

use std::io;

use crate::error::{Error, ExitCode};
use compare_wire::RequestError;
use line::{Seconds, Silence};
use message::{Failure, MessageError};
use text::sanitise;

/// What ends a session without success, as seen by one end.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Reading or writing failed.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The peer closed the connection between two messages.
    #[error("the connection was closed while waiting for {expected}")]
    Closed {
        /// What should have come.
        expected: &'static str,
    },
    /// The peer was not heard of for too long.
    #[error(
        "{}. If the way there is that slow, wait longer with --timeout SECONDS",
        silence_in_words(.silence, .expected)
    )]
    Silent {
        /// What should have come.
        expected: &'static str,
        /// For how long.
        silence: Silence,
    },
    /// The peer does what the protocol forbids, in well-formed messages.
    #[error("the far end breaks the protocol: {0}")]
    Violation(String),
    /// What arrived first is not the greeting of a session.
    #[error(
        "the far end does not speak this protocol; it began with:\n{found}\n\
         If that is the greeting of a login shell, keep the shell's start-up files silent when they \
         are not run in a terminal"
    )]
    NotASession {
        /// The first bytes, made fit to be shown.
        found: String,
    },
    /// The two ends have no version, or not all required features, in common.
    #[error("{0}")]
    Incompatible(String),
    /// Bytes that are no message.
    #[error("the connection carried a damaged message")]
    Message(#[from] MessageError),
    /// A message that may not come here.
    #[error("the far end sent {found} where {expected} was expected")]
    Order {
        /// What may come.
        expected: &'static str,
        /// What came.
        found: &'static str,
    },
    /// A request that must not be made.
    #[error("the far end asks what it may not ask")]
    Request(#[from] RequestError),
    /// An answer that is not the one to the request.
    #[error("the far end sent {found} bytes of digests where {expected} were expected")]
    Digests {
        /// Bytes asked for.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// The peer stopped of its own will and said why.
    #[error("the far end stopped: {reason}")]
    Stopped {
        /// Its words, made fit to be shown.
        reason: String,
        /// The exit code of what stopped it; 0 where it says none.
        code: u8,
        /// As in [`Failure::recover`].
        recover: String,
    },
    /// The peer reported an error: its message is all there is to say.
    #[error("{}", .0.message)]
    Reported(Failure),
}

impl SessionError {
    /// True when the way to the peer was lost: it broke, was closed, or fell silent. Trying again later may
    /// succeed. False when the peer reported an error, does not fit, or breaks the protocol.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            SessionError::Io { .. } | SessionError::Closed { .. } | SessionError::Silent { .. }
        )
    }

    /// What the peer says to name as SRC of the sync that helps where its list of changes is lost.
    pub fn recover(&self) -> Option<&str> {
        let recover = match self {
            SessionError::Reported(failure) => &failure.recover,
            SessionError::Stopped { recover, .. } => recover,
            _ => return None,
        };
        Some(recover.as_str()).filter(|recover| !recover.is_empty())
    }

    /// The run's error: a reported refusal or damage keeps its code, the rest is [`ExitCode::Remote`].
    pub fn into_error(self, host: &str) -> Error {
        match self {
            SessionError::Reported(failure) => reported(host, &failure),
            SessionError::Stopped {
                reason,
                code,
                recover,
            } if code != 0 => stopped(host, reason, code, &recover),
            other if other.is_lost() => Error::Lost {
                host: sanitise(host),
                reason: self_and_sources(&other),
            },
            other => Error::Remote {
                host: sanitise(host),
                reason: self_and_sources(&other),
            },
        }
    }

    /// With the name of what was waited for, if that is what ended.
    fn waiting_for(self, expected: &'static str) -> Self {
        match self {
            SessionError::Silent { silence, .. } => SessionError::Silent { expected, silence },
            other => other,
        }
    }

    /// The same in words as an I/O error, for `Read` and `Write`; the value itself stays with the end
    /// that had it. Never of the kind `UnexpectedEof`: a lost peer is not a short file.
    fn as_io(&self) -> io::Error {
        let kind = match self {
            SessionError::Io { .. } => io::ErrorKind::Other,
            SessionError::Silent { .. } => io::ErrorKind::TimedOut,
            SessionError::Closed { .. } | SessionError::Stopped { .. } => {
                io::ErrorKind::ConnectionAborted
            }
            SessionError::Reported(_) => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, self_and_sources(self))
    }
}

fn silence_in_words(silence: &Silence, expected: &str) -> String {
    let seconds = Seconds(silence.waited);
    if silence.at_the_start {
        format!("the session did not begin within {seconds}: {expected} did not come")
    } else {
        format!("nothing was heard of the far end for {seconds} while waiting for {expected}")
    }
}

fn reported(host: &str, failure: &Failure) -> Error {
    // What is true of the volume or the delta wherever it was found keeps its code. Everything else that
    // happened over there, a full disk or a signal, is to us that the far end failed.
    let code = match ExitCode::from_number(failure.code) {
        Some(
            code @ (ExitCode::Usage
            | ExitCode::Differ
            | ExitCode::TrackingLost
            | ExitCode::Refused
            | ExitCode::Damaged),
        ) => code,
        _ => ExitCode::Remote,
    };
    Error::RemoteFailed {
        host: sanitise(host),
        message: sanitise(&failure.message),
        code,
        recover: sanitise(&failure.recover),
    }
}

/// A sender's own failure has the code that it has there: what it read, it read for this end. But nothing that was
/// stopped is success, and its signal is not ours.
fn stopped(host: &str, message: String, code: u8, recover: &str) -> Error {
    let code = ExitCode::from_number(code)
        .filter(|code| !matches!(code, ExitCode::Done | ExitCode::Interrupted))
        .unwrap_or(ExitCode::Remote);
    Error::RemoteFailed {
        host: sanitise(host),
        message,
        code,
        recover: sanitise(recover),
    }
}

fn self_and_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
