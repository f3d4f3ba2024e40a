//! The handshake: the greeting and what two Hellos agree on.
//!
//! Guarantees: pure; the greeting's bytes never change; no version and no required feature is assumed:
//! what is not common to both ends ends the session, named.

use std::time::Duration;

use super::SessionError;
use super::message::Hello;
use super::text::{sanitise, shorten};

/// The first bytes that the server writes. The number is the framing's version: it changes only if a
/// message could no longer be read by those who know this one.
pub const GREETING: &[u8] = b"lvmsync session 1\n";

/// How much of something else is shown to the user.
pub const NOISE_SHOWN_BYTES: usize = 200;

/// How much of a name in the peer's Hello is.
const SHOWN_BYTES: usize = 100;

/// The only version of the protocol so far.
pub const PROTOCOL: u32 = 1;

/// A delta stream can be applied.
pub const FEATURE_APPLY: &str = "apply";
/// An undo file can be written while it is.
pub const FEATURE_UNDO: &str = "undo";
/// Everything can be checked without a write.
pub const FEATURE_DRY_RUN: &str = "dry-run";
/// Digests of what a destination holds can be asked for.
pub const FEATURE_COMPARE: &str = "compare";

/// A delta stream can be made while both ends are compared.
pub const FEATURE_SYNC: &str = "sync";

/// The ends can exchange their parts, so that what the server has comes to the client.
pub const FEATURE_PULL: &str = "pull";

/// In a pull a live volume is read from a snapshot that is made for it.
pub const FEATURE_PULL_SNAPSHOT: &str = "pull-snapshot";

/// A pull can be tried without a write.
pub const FEATURE_PULL_DRY_RUN: &str = "pull-dry-run";

/// A record is kept of the destination's state, and a stream that was cut goes on.
pub const FEATURE_RECORD: &str = "record";

/// A whole delta is kept beside the destination before it is applied.
pub const FEATURE_ATOMIC: &str = "atomic";

/// A logical volume can be made where there is none.
pub const FEATURE_CREATE_VOLUME: &str = "create-volume";

/// What this program has.
pub const FEATURES: &[&str] = &[
    FEATURE_APPLY,
    FEATURE_UNDO,
    FEATURE_DRY_RUN,
    FEATURE_COMPARE,
    FEATURE_SYNC,
    FEATURE_PULL,
    FEATURE_PULL_SNAPSHOT,
    FEATURE_PULL_DRY_RUN,
    FEATURE_RECORD,
    FEATURE_ATOMIC,
    FEATURE_CREATE_VOLUME,
];

impl Hello {
    /// This program's Hello; `requires` names what the peer must have for what will be asked.
    pub fn ours(requires: &[&str]) -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            program: "lvmsync".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            requires: owned(requires),
            features: owned(FEATURES),
            timeout_ms: 0,
        }
    }

    /// The same, of an end that gives up after so much silence.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        let milliseconds = timeout.map_or(0, |timeout| timeout.as_millis().max(1));
        self.timeout_ms = u64::try_from(milliseconds).unwrap_or(u64::MAX);
        self
    }

    /// After how much silence the speaker gives up; `None` for never.
    pub fn timeout(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.timeout_ms)).filter(|timeout| !timeout.is_zero())
    }

    /// True if it lists this feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }
}

/// What both ends know now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The newest version that both speak.
    pub protocol: u32,
    /// The peer's Hello.
    pub peer: Hello,
}

impl Hello {
    /// Program and version, as far as it tells them, fit to be shown and not too long.
    pub fn speaker(&self) -> String {
        let told = format!("{} {}", shown(&self.program), shown(&self.version));
        match told.trim() {
            "" => "a program that does not say what it is".to_owned(),
            told => told.to_owned(),
        }
    }
}

/// What a peer says of itself, on one line and not too long.
fn shown(text: &str) -> String {
    sanitise(&shorten(text, SHOWN_BYTES)).replace('\n', " ")
}

/// Compares two Hellos; both ends come to the same answer.
pub fn agree(ours: &Hello, theirs: Hello) -> Result<Agreed, SessionError> {
    let (us, them) = (ours.speaker(), theirs.speaker());
    let protocol = ours.protocol_max.min(theirs.protocol_max);
    if protocol < ours.protocol_min.max(theirs.protocol_min) {
        return Err(SessionError::Incompatible(format!(
            "no common version of the protocol: this is {us}, which speaks {} to {}; \
             the far end is {them}, which speaks {} to {}. Install the same release on both",
            ours.protocol_min, ours.protocol_max, theirs.protocol_min, theirs.protocol_max
        )));
    }
    if let Some(missing) = theirs.requires.iter().find(|name| !ours.has(name)) {
        return Err(SessionError::Incompatible(format!(
            "the far end ({them}) needs the feature `{}`, which {us} does not have. \
             Install the same release on both",
            shown(missing)
        )));
    }
    if let Some(missing) = ours.requires.iter().find(|name| !theirs.has(name)) {
        return Err(SessionError::Incompatible(format!(
            "the far end ({them}) does not have the feature `{missing}`. \
             Install the same release on both"
        )));
    }
    Ok(Agreed {
        protocol,
        peer: theirs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_pinned() {
        assert_eq!(GREETING, b"lvmsync session 1\n");
    }

    #[test]
    fn a_speaker_is_what_it_says_and_no_more() {
        let of = |program: &str, version: &str| {
            let hello = Hello {
                program: program.to_owned(),
                version: version.to_owned(),
                ..Hello::ours(&[])
            };
            hello.speaker()
        };
        assert_eq!(of("lvmsync", "4.0.0"), "lvmsync 4.0.0");
        assert_eq!(of("lvmsync", ""), "lvmsync");
        assert_eq!(of("", " "), "a program that does not say what it is");
        assert_eq!(of("two\nlines", "1"), "two lines 1");
        assert!(of(&"x".repeat(5000), "1").len() < 300);
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let with = |min, max| Hello {
            protocol_min: min,
            protocol_max: max,
            ..Hello::ours(&[])
        };
        assert_eq!(agree(&with(1, 3), with(2, 5)).unwrap().protocol, 3);
        assert_eq!(agree(&with(2, 5), with(1, 3)).unwrap().protocol, 3);
        for (ours, theirs) in [(with(1, 1), with(2, 3)), (with(2, 3), with(1, 1))] {
            let text = agree(&ours, theirs).unwrap_err().to_string();
            assert!(
                text.contains("speaks 1 to 1") && text.contains("speaks 2 to 3"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_missing_feature_is_named() {
        let needy = Hello::ours(&["teleport"]);
        for (ours, theirs) in [(Hello::ours(&[]), needy.clone()), (needy, Hello::ours(&[]))] {
            let text = agree(&ours, theirs).unwrap_err().to_string();
            assert!(text.contains("`teleport`"), "{text}");
        }
        assert!(agree(&Hello::ours(&[FEATURE_UNDO]), Hello::ours(&[FEATURE_APPLY])).is_ok());
    }
}
