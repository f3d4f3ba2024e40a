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
    /// Reserve the metadata snapshot of the pool, or era device, with this number.
    Reserve {
        /// The `-tpool` device or the era device, `major:minor`.
        pool: String,
    },
    /// Release it again.
    Release {},
    /// Make a snapshot of this logical volume, to be removed at the end.
    Snapshot {
        /// Volume group and name.
        volume: String,
        /// LVM's UUID of it.
        uuid: String,
        /// The name that the user has chosen for it.
        name: Option<String>,
        /// Its size, if the user has chosen that.
        size_bytes: Option<u64>,
    },
    /// Do not remove it.
    Keep {},
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
    /// The snapshot of the volume is there, and active.
    Made {
        /// Volume group and name.
        name: String,
        /// LVM's UUID of it.
        uuid: String,
        /// Of a thick one: the room for what is written to its origin.
        store_bytes: Option<u64>,
    },
    /// It stays.
    Kept {},
    /// Not done.
    Failed {
        /// Exit code of the error.
        code: u8,
        /// Its whole text.
        text: String,
        /// What is in the way may be gone in a moment.
        #[serde(default)]
        held: bool,
    },
}

impl Answer {
    /// An error, as it travels.
    pub fn failed(error: &Error) -> Self {
        Self::Failed {
            code: error.exit_code() as u8,
            text: error.chain(),
            held: error.is_held(),
        }
    }
}

/// The error that a [`Answer::Failed`] was: the same code, the same words.
pub fn error_of(code: u8, text: &str, held: bool) -> Error {
    match ExitCode::from_number(code) {
        Some(ExitCode::Interrupted) => Error::Interrupted,
        // Nothing that failed ends in success, whatever the guard says.
        code => Error::Guard {
            text: text.to_owned(),
            held,
            code: code
                .filter(|code| *code != ExitCode::Done)
                .unwrap_or(ExitCode::Failed),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io;

    use super::*;
    use crate::changes::thin::ThinError;

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
            Error::refused("vg/pool: a", "no way out", ""),
            Error::held("vg/pool", "held", "Wait."),
            Error::Lvm {
                what: "vg/pool".into(),
                reason: "no such thing".into(),
            },
            Error::Usage("that cannot be meant".into()),
            Error::TrackingLost {
                volume: "vg/s1".into(),
                reason: "it was written".into(),
            },
            Error::ThinMetadata {
                what: "/dev/mapper/vg-pool_tmeta".into(),
                source: ThinError::NoSnapshot,
            },
            Error::io("cannot lock it", io::ErrorKind::PermissionDenied.into()),
            Error::Interrupted,
        ];
        let mut codes = BTreeSet::new();
        for error in errors {
            let line = serde_json::to_string(&Answer::failed(&error)).unwrap();
            let Answer::Failed { code, text, held } = serde_json::from_str(&line).unwrap() else {
                panic!("not failed");
            };
            let again = error_of(code, &text, held);
            assert_eq!(again.is_held(), error.is_held());
            assert_eq!(again.exit_code(), error.exit_code());
            assert_eq!(again.chain(), error.chain());
            codes.insert(code);
        }
        assert_eq!(codes.into_iter().collect::<Vec<_>>(), [1, 2, 4, 5, 130]);
        for odd in [0, 99] {
            assert_eq!(error_of(odd, "what?", false).exit_code(), ExitCode::Failed);
        }
    }
}
