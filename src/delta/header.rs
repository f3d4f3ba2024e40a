//! The header: what a delta is about, as JSON.
//!
//! Pure. Guarantees: a parsed header has a usable size and asks for no feature that is not known.

use serde::{Deserialize, Serialize};

use super::FormatError;
use super::record::MAX_CONTROL_BYTES;
use super::stream::StreamId;
#[cfg(doc)]
use crate::change_list::ChangeList;
use crate::extent::MAX_OFFSET;

/// The delta begins at [`Header::from_offset`]: what lies before is already at the other end of a session.
pub const FEATURE_CONTINUED: &str = "continued";

/// There are positions among the frames, see [`super::record::RecordType::Position`]: the stream of a sync, which is
/// made while both ends are compared.
pub const FEATURE_POSITIONS: &str = "positions";

/// The delta was made of several: its content is not of the moment in which it was made. A reader may ignore it.
pub const FEATURE_COMBINED: &str = "combined";

/// Features that this version can honour when a delta requires them.
const KNOWN_FEATURES: [&str; 2] = [FEATURE_CONTINUED, FEATURE_POSITIONS];

/// A state of a volume: the id is compared, the name is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `lvm:` and the LV's UUID, or `file:` and an identity.
    pub id: String,
    /// As the user named it.
    #[serde(default)]
    pub name: String,
}

/// What told which extents differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Classic snapshot's exception table.
    Cow,
    /// Thin pool's mappings.
    Thin,
    /// dm-era's written-since record.
    Era,
    /// Comparing both sides.
    Compare,
    /// None: everything.
    Full,
    /// The reverse of another delta.
    Undo,
}

impl Source {
    /// The word in the header and in listings.
    pub fn word(self) -> &'static str {
        match self {
            Source::Cow => "cow",
            Source::Thin => "thin",
            Source::Era => "era",
            Source::Compare => "compare",
            Source::Full => "full",
            Source::Undo => "undo",
        }
    }
}

/// Begins the [`Header::run`] of an increment whose target is the origin itself.
pub const ORIGIN_RUN: &str = "origin ";

/// What the writer set out to send; for progress only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Extents in the change list.
    pub extents: u64,
    /// Bytes to be read and sent.
    pub data_bytes: u64,
    /// Bytes known to be zero.
    pub zero_bytes: u64,
}

/// The `H` record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Size of the target state in bytes.
    pub volume_size: u64,
    /// Size of the base state in bytes; `None` in a full copy.
    #[serde(default)]
    pub base_size: Option<u64>,
    /// The base state; `None` in a full copy or where it has no identity.
    #[serde(default)]
    pub base: Option<State>,
    /// The target state; `None` where it has no identity.
    #[serde(default)]
    pub target: Option<State>,
    /// What found the changes.
    pub source: Source,
    /// Bytes that the source calls changed at once.
    #[serde(default = "one")]
    pub granularity: u64,
    /// Seconds since 1970 UTC.
    #[serde(default)]
    pub created: i64,
    /// Compression that was asked for.
    #[serde(default)]
    pub codec: String,
    /// Writer's name and version.
    #[serde(default)]
    pub program: String,
    /// The writer's plan.
    #[serde(default)]
    pub planned: Planned,
    /// Digest of the change list, see [`ChangeList::digest`]: two runs with the same one send the same extents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// What tells two deltas apart that have the same target: where that has no identity, something that no other run
    /// has, since its content may be another at the next run; of a thin volume, what is mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// In an undo: the stream (see [`super::stream`]) that it undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_of: Option<String>,
    /// In an undo: the identity of the destination whose content it saves (see [`crate::record::identity`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_for: Option<String>,
    /// Volume offset at which this delta goes on; 0 but in a session that resumes. Needs
    /// [`FEATURE_CONTINUED`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub from_offset: u64,
    /// Features without which the delta cannot be understood.
    #[serde(default)]
    pub required_features: Vec<String>,
    /// Features that may be ignored.
    #[serde(default)]
    pub features: Vec<String>,
}

fn one() -> u64 {
    1
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Header {
    /// The header of the same delta without its part before `offset`.
    #[must_use]
    pub fn continued_at(&self, offset: u64) -> Self {
        let mut header = self.clone();
        if offset > 0 {
            header.from_offset = offset;
            header.required_features.push(FEATURE_CONTINUED.to_owned());
        }
        header
    }

    /// True when this delta stands on no base: it carries everything, or what differed when both ends were compared.
    pub fn is_full_copy(&self) -> bool {
        matches!(self.source, Source::Full | Source::Compare)
    }

    /// It takes back what this delta did.
    pub fn undoes(&self, stream: &StreamId) -> bool {
        self.undo_of.as_deref() == Some(stream.as_str())
    }

    /// It was made of several deltas.
    pub fn is_combined(&self) -> bool {
        self.features.iter().any(|name| name == FEATURE_COMBINED)
    }

    /// There may be positions among the frames.
    pub fn has_positions(&self) -> bool {
        let is_it = |name: &String| name == FEATURE_POSITIONS;
        self.required_features.iter().any(is_it)
    }

    /// The header of the same copy, made by comparing.
    #[must_use]
    pub fn by_comparing(mut self) -> Self {
        self.source = Source::Compare;
        self.required_features.push(FEATURE_POSITIONS.to_owned());
        self
    }

    /// The payload of the record.
    pub fn encode(&self) -> Vec<u8> {
        // Numbers, strings and lists only: this cannot fail, and an empty payload is refused by readers.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the payload of an `H` record at delta offset `at`.
    pub fn decode(payload: &[u8], at: u64) -> Result<Self, FormatError> {
        let field = |field, found: String, expected: &str| FormatError::Field {
            at,
            field,
            found,
            expected: expected.to_owned(),
        };
        let header: Header = serde_json::from_slice(payload)
            .map_err(|error| field("header", error.to_string(), "the JSON object of the format"))?;
        if let Some(name) = header
            .required_features
            .iter()
            .find(|name| !KNOWN_FEATURES.contains(&name.as_str()))
        {
            return Err(FormatError::UnknownFeature { name: name.clone() });
        }
        let sizes = [Some(header.volume_size), header.base_size];
        if let Some(size) = sizes.into_iter().flatten().find(|size| *size > MAX_OFFSET) {
            return Err(field("volume_size", size.to_string(), "a size below 2^63"));
        }
        let continued = header
            .required_features
            .iter()
            .any(|name| name == FEATURE_CONTINUED);
        if header.from_offset > header.volume_size || (header.from_offset > 0 && !continued) {
            let expected = "an offset in the volume, and the feature \"continued\"";
            return Err(field(
                "from_offset",
                header.from_offset.to_string(),
                expected,
            ));
        }
        if header.base.is_some() && header.is_full_copy() {
            return Err(field("base", "a state".to_owned(), "none in a full copy"));
        }
        Ok(header)
    }

    /// True if the payload keeps the format's limit.
    pub fn fits(&self) -> bool {
        self.encode().len() <= MAX_CONTROL_BYTES as usize
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn header(volume_size: u64) -> Header {
        Header {
            volume_size,
            base_size: Some(volume_size),
            base: Some(State {
                id: "lvm:base".into(),
                name: "vg/s1".into(),
            }),
            target: Some(State {
                id: "lvm:target".into(),
                name: "vg/s2".into(),
            }),
            source: Source::Cow,
            granularity: 4096,
            created: 1_700_000_000,
            codec: "none".into(),
            program: "lvmsync test".into(),
            planned: Planned {
                extents: 1,
                data_bytes: 4096,
                zero_bytes: 0,
            },
            list: None,
            run: None,
            undo_of: None,
            undo_for: None,
            from_offset: 0,
            required_features: vec![],
            features: vec![],
        }
    }

    #[test]
    fn a_header_comes_back() {
        let header = header(1 << 40);
        assert_eq!(Header::decode(&header.encode(), 0).unwrap(), header);
    }

    #[test]
    fn unknown_keys_are_ignored_and_unknown_required_features_are_named() {
        let minimal = br#"{"volume_size": 512, "source": "full", "colour": [1, {"x": null}]}"#;
        assert_eq!(Header::decode(minimal, 0).unwrap().volume_size, 512);
        let asking =
            br#"{"volume_size": 512, "source": "full", "required_features": ["time-travel"]}"#;
        let error = Header::decode(asking, 0).unwrap_err();
        assert!(error.to_string().contains("time-travel"), "{error}");
        assert_eq!(error.exit_code(), crate::error::ExitCode::Refused);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"volume_size": -1, "source": "full"}"#,
            r#"{"volume_size": 9223372036854775808, "source": "full"}"#,
            r#"{"volume_size": 1, "source": "guess"}"#,
            r#"{"volume_size": 1, "source": "full", "base": {"id": "x"}}"#,
        ] {
            assert!(Header::decode(text.as_bytes(), 0).is_err(), "{text}");
        }
    }
}
