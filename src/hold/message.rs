//! What a run and its guard say to each other: one JSON object a line.
//!
//! Pure. Guarantees: a line that is not one of these is an error; no line is longer than [`MAX_LINE_BYTES`].

use serde::{Deserialize, Serialize};

use crate::error::{Error, ExitCode};

/// Names and error texts are far shorter.
pub const MAX_LINE_BYTES: u64 = 64 << 10;

/// What the run asks for. The end of input asks for the end of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Activate this logical volume, read-only, until the end.
    Activate {
        /// Volume group and name.
        volume: String,
        /// LVM's UUID of it.
        uuid: String,
    },
    /// Reserve the metadata snapshot of the pool with this device.
    Reserve {
        /// The `-tpool` device, `major:minor`.
        pool: String,
    },
    /// Release it again.
    Release {},
}

/// What the guard answers. Each request has one answer that is no note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Answer {
    /// For the user, while an answer takes time.
    Note {
        /// Why.
        text: String,
    },
    /// The volume is active.
    Active {},
    /// The snapshot is taken.
    Reserved {
        /// The block of the pool's metadata where its superblock is.
        root: u64,
    },
    /// The snapshot was still ours, and is released.
    Released {},
    /// Not done.
    Failed {
        /// Exit code of the error.
        code: u8,
        /// Its whole text.
        text: String,
    },
}

impl Answer {
    /// An error, as it travels.
    pub fn failed(error: &Error) -> Self {
        Self::Failed {
            code: error.exit_code() as u8,
            text: error.chain(),
        }
    }
}

/// The error that a [`Answer::Failed`] was.
pub fn error_of(code: u8, text: &str) -> Error {
    match ExitCode::from_number(code) {
        Some(ExitCode::Refused) => {
            // What is refused, and why, stands in the first line: the rest is the way out.
            let (reason, way_out) = text.split_once('\n').unwrap_or((text, ""));
            let (what, reason) = reason.split_once(": ").unwrap_or(("the pool", reason));
            Error::refused(what, reason, way_out)
        }
        _ => {
            let (what, reason) = text.split_once(": ").unwrap_or(("the guard process", text));
            Error::Lvm {
                what: what.to_owned(),
                reason: reason.to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_the_other_side_reads() {
        let reserve = Request::Reserve {
            pool: "254:3".into(),
        };
        let text = serde_json::to_string(&reserve).unwrap();
        assert_eq!(text, r#"{"reserve":{"pool":"254:3"}}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), reserve);
        let text = serde_json::to_string(&Answer::Released {}).unwrap();
        assert_eq!(text, r#"{"released":{}}"#);
        for wrong in ["", "{}", r#"{"reserve":{}}"#, r#"{"release":{"x":1}}"#, "7"] {
            assert!(serde_json::from_str::<Request>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_error_keeps_code_and_words() {
        let errors = [
            Error::refused("vg/pool", "held by another", "Wait."),
            Error::Lvm {
                what: "vg/pool".into(),
                reason: "no such thing".into(),
            },
        ];
        for error in errors {
            let Answer::Failed { code, text } = Answer::failed(&error) else {
                panic!("not failed");
            };
            let again = error_of(code, &text);
            assert_eq!(again.exit_code(), error.exit_code());
            assert_eq!(again.chain(), error.chain());
        }
    }
}
