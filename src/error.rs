//! What can go wrong, as one type with one exit code for each way.
//!
//! Guarantees: every error says what was being done, to what, what was found and what was expected;
//! `Display` never repeats its source (the chain is printed by `main` alone); the exit codes are part of
//! the command line's contract and are listed in [`ExitCode`].

use std::io;

use crate::changes::cow::StoreError;
use crate::changes::era::EraError;
use crate::changes::thin::ThinError;
use crate::delta::FormatError;

/// Shorthand used by everything that can end a run.
pub type Result<T> = std::result::Result<T, Error>;

/// The documented exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done, and is durable.
    Done = 0,
    /// Something failed that has no code of its own.
    Failed = 1,
    /// The command line was wrong.
    Usage = 2,
    /// `compare`: the volumes differ. `--verify`: what was written does not read back.
    Differ = 3,
    /// The change source cannot prove its list: a full compare is needed.
    TrackingLost = 4,
    /// Refused because it is not safe; nothing was written.
    Refused = 5,
    /// A delta is damaged or truncated.
    Damaged = 6,
    /// The remote end or the way to it failed.
    Remote = 7,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl ExitCode {
    /// How bad it is that one of several things ended with this: what may be wrong on a disk above what was not begun, and
    /// that above what comes back by itself.
    pub fn badness(self) -> u8 {
        use ExitCode::*;
        match self {
            Done => 0,
            Remote => 1,
            Usage => 2,
            Failed => 3,
            Refused => 4,
            TrackingLost => 5,
            Damaged => 6,
            Differ => 7,
            Interrupted => 8,
        }
    }

    /// The code with this number, for what a remote end reports.
    pub fn from_number(number: u8) -> Option<Self> {
        use ExitCode::*;
        [
            Done,
            Failed,
            Usage,
            Differ,
            TrackingLost,
            Refused,
            Damaged,
            Remote,
            Interrupted,
        ]
        .into_iter()
        .find(|code| *code as u8 == number)
    }
}

/// Any way in which a run ends without success.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line asks for something that cannot be meant.
    #[error("{0}")]
    Usage(String),

    /// The list of changes cannot be proved complete.
    #[error("{volume}: {reason}")]
    TrackingLost {
        /// The volume as the user named it.
        volume: String,
        /// What was found.
        reason: String,
    },

    /// The same, whatever found it out, with the command that makes both sides equal again.
    #[error("{error}")]
    ToRecover {
        /// What happened.
        error: Box<Error>,
        /// For the user's shell.
        command: String,
    },

    /// An exception store that cannot be trusted.
    #[error("{store}: cannot use this exception store")]
    Store {
        /// Path or device of the store.
        store: String,
        /// What is wrong with it.
        source: StoreError,
    },

    /// Metadata of a thin pool that cannot be trusted.
    #[error("{what}: cannot use this metadata of a thin pool")]
    ThinMetadata {
        /// Path or device.
        what: String,
        /// What is wrong with it.
        source: ThinError,
    },

    /// Metadata of an era device that cannot be trusted.
    #[error("{what}: cannot use this metadata of dm-era")]
    EraMetadata {
        /// Path or device.
        what: String,
        /// What is wrong with it.
        source: EraError,
    },

    /// A safety rule says no. `way_out` names the override or the repair.
    #[error("{what}: {reason}{}", way_out_line(.way_out))]
    Refused {
        /// What is protected: the destination, mostly.
        what: String,
        /// What was found and what was expected.
        reason: String,
        /// What to do about it; empty where nothing can be done.
        way_out: String,
    },

    /// The same because another process holds it at this moment: refused, too, but it may be free in a moment.
    #[error("{what}: {reason}{}", way_out_line(.way_out))]
    Held {
        /// What is held.
        what: String,
        /// By whom, as far as that can be seen.
        reason: String,
        /// What to do about it.
        way_out: String,
    },

    /// A delta that is damaged, truncated or not a delta.
    #[error("{what}: not a whole, sound delta")]
    Damaged {
        /// File name, `standard input` or the peer.
        what: String,
        /// Where and how.
        source: FormatError,
    },

    /// What was written does not read back as what was sent.
    #[error("{what}: {reason}")]
    Differ {
        /// The volume that was written.
        what: String,
        /// Where it differs, and what that may mean.
        reason: String,
    },

    /// The remote end, or the way to it.
    #[error("{host}: {reason}")]
    Remote {
        /// Host as the user wrote it.
        host: String,
        /// What happened, with the remote's own words.
        reason: String,
    },

    /// The way to the remote end was lost: unlike after [`Error::Remote`], trying again may succeed.
    #[error("{host}: {reason}")]
    Lost {
        /// Host as the user wrote it.
        host: String,
        /// What happened, with the remote's own words.
        reason: String,
    },

    /// The remote end stopped with an error of its own; its code is ours.
    #[error("{host}: {message}")]
    RemoteFailed {
        /// Host as the user wrote it.
        host: String,
        /// The remote's whole message.
        message: String,
        /// The remote's exit code.
        code: ExitCode,
        /// With the code of lost tracking: what it says to name in place of its volume; empty where it says nothing.
        recover: String,
    },

    /// The guard process stopped with an error, whose whole text and code these are: as if there were no guard.
    #[error("{text}")]
    Guard {
        /// The chain, way out and all.
        text: String,
        /// It was an [`Error::Held`].
        held: bool,
        /// The code that the error has.
        code: ExitCode,
    },

    /// An operating system call failed.
    #[error("{action}")]
    Io {
        /// What was being done to what: "cannot open /dev/vg/lv".
        action: String,
        /// The system's answer.
        source: io::Error,
    },

    /// LVM or device-mapper could not answer, or answered that there is no such thing.
    #[error("{what}: {reason}")]
    Lvm {
        /// Volume or command.
        what: String,
        /// What LVM or the kernel said, or what is missing.
        reason: String,
    },

    /// SIGINT, SIGTERM or SIGHUP.
    #[error("interrupted")]
    Interrupted,
}

/// How those refer to a comparison who do not know both ends by their names.
pub const SYNC: &str = "lvmsync sync NEW DEST";

/// With `command` in its place: what is copied from a line of its own has no full stop at its end.
fn with_command(text: &str, command: &str) -> String {
    text.replace(&format!("{SYNC}. "), &format!("{command}\n"))
        .replace(&format!("{SYNC}."), command)
        .replace(SYNC, command)
}

fn way_out_line(way_out: &str) -> String {
    if way_out.is_empty() {
        String::new()
    } else {
        format!("\n{way_out}")
    }
}

impl Error {
    /// An I/O error with what was being done.
    pub fn io(action: impl Into<String>, source: io::Error) -> Self {
        Error::Io {
            action: action.into(),
            source,
        }
    }

    /// A refusal.
    pub fn refused(
        what: impl Into<String>,
        reason: impl Into<String>,
        way_out: impl Into<String>,
    ) -> Self {
        Error::Refused {
            what: what.into(),
            reason: reason.into(),
            way_out: way_out.into(),
        }
    }

    /// A refusal that lasts as long as another process holds what is protected.
    pub fn held(
        what: impl Into<String>,
        reason: impl Into<String>,
        way_out: impl Into<String>,
    ) -> Self {
        Error::Held {
            what: what.into(),
            reason: reason.into(),
            way_out: way_out.into(),
        }
    }

    /// True when the way to the remote end was lost, so that trying again may succeed.
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::Lost { .. })
    }

    /// True when another process holds what is protected, which may be free in a moment.
    pub fn is_held(&self) -> bool {
        matches!(self, Error::Held { .. } | Error::Guard { held: true, .. })
    }

    /// What the remote end says to name in place of a volume of its own that is lost.
    pub fn recover(&self) -> Option<&str> {
        match self {
            Error::RemoteFailed { recover, .. } if !recover.is_empty() => Some(recover),
            _ => None,
        }
    }

    fn way_out_mut(&mut self) -> Option<&mut String> {
        match self {
            Error::Refused { way_out, .. } | Error::Held { way_out, .. } => Some(way_out),
            Error::Differ { reason, .. } => Some(reason),
            Error::RemoteFailed { message, .. } => Some(message),
            _ => None,
        }
    }

    /// The code that the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Error::Usage(_) => ExitCode::Usage,
            Error::TrackingLost { .. } => ExitCode::TrackingLost,
            Error::ToRecover { error, .. } => error.exit_code(),
            Error::Store { source, .. } => source.exit_code(),
            Error::ThinMetadata { source, .. } => source.exit_code(),
            Error::EraMetadata { source, .. } => source.exit_code(),
            Error::Refused { .. } | Error::Held { .. } => ExitCode::Refused,
            Error::Damaged { source, .. } => source.exit_code(),
            Error::Differ { .. } => ExitCode::Differ,
            Error::Remote { .. } | Error::Lost { .. } => ExitCode::Remote,
            Error::RemoteFailed { code, .. } | Error::Guard { code, .. } => *code,
            Error::Io { .. } | Error::Lvm { .. } => ExitCode::Failed,
            Error::Interrupted => ExitCode::Interrupted,
        }
    }

    /// The whole chain in one string, outermost first, and last the way out where there is one: what is
    /// printed, and what a session relays.
    pub fn chain(&self) -> String {
        if let Error::ToRecover { error, command } = self {
            return format!("{}\nTo recover: {command}", error.chain());
        }
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        let is_of_changes = matches!(
            self,
            Error::TrackingLost { .. }
                | Error::Store { .. }
                | Error::ThinMetadata { .. }
                | Error::EraMetadata { .. }
        );
        if is_of_changes && self.exit_code() == ExitCode::TrackingLost {
            text.push_str("\nThe list of changes would be incomplete.");
        }
        text
    }

    /// With `command`, where it is one after which only a comparison helps, or which names one as a way out.
    #[must_use]
    pub fn to_recover(mut self, command: impl FnOnce() -> String) -> Self {
        if self.exit_code() != ExitCode::TrackingLost || matches!(self, Error::ToRecover { .. }) {
            if let Some(text) = self.way_out_mut().filter(|text| text.contains(SYNC)) {
                *text = with_command(text, &command());
            }
            return self;
        }
        Error::ToRecover {
            error: Box::new(self),
            command: command(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(way_out: &str) -> Error {
        Error::refused("vg/copy", "it holds something else", way_out)
    }

    #[test]
    fn a_comparison_that_is_a_way_out_is_named_whole() {
        let line = || "lvmsync sync vg/data h:vg/copy".to_owned();
        let both = refused("Make it equal: lvmsync sync NEW DEST. If you know better: adopt it.");
        let both = both.to_recover(line).chain();
        assert!(both.ends_with(
            "Make it equal: lvmsync sync vg/data h:vg/copy\nIf you know better: adopt it."
        ));
        let far = Error::RemoteFailed {
            host: "h".to_owned(),
            message: "vg/copy: no\nTo be sure: lvmsync sync NEW DEST.".to_owned(),
            code: ExitCode::Refused,
            recover: String::new(),
        };
        let far = far.to_recover(line).chain();
        assert!(
            far.ends_with("To be sure: lvmsync sync vg/data h:vg/copy"),
            "{far}"
        );
        let differs = Error::Differ {
            what: "vg/copy".to_owned(),
            reason: "it differs. Make it equal: lvmsync sync NEW DEST".to_owned(),
        };
        let differs = differs.to_recover(line).chain();
        assert!(differs.ends_with("Make it equal: lvmsync sync vg/data h:vg/copy"));
        let other = refused("Umount it.").to_recover(|| unreachable!("nothing asks for it"));
        assert!(other.chain().ends_with("\nUmount it."));
    }
}
