//! The record of a destination: which state it holds, where that came from, and whether a write is under way.
//!
//! Guarantees: a record is replaced whole and durably or not at all; from before the first write to a
//! destination until after its last sync its record says *incomplete*; one that cannot be read is an error,
//! never "no record". This file and [`admission`] are pure; [`store`] is the only one that opens files.

pub mod admission;
pub mod as_opened;
pub mod half_written;
pub mod identity;
pub mod keeper;
pub mod marks;
pub mod store;
pub mod witness;

use serde::{Deserialize, Serialize};

use crate::delta::header::State;
use crate::delta::stream::StreamId;
use marks::Mark;

/// The version of the record's file.
const VERSION: u32 = 1;
const FIRST_WORDS: &str = "lvmsync state";
/// [`Incomplete::source`] while LVM merges a preview: nothing may be written to the destination before that is done.
pub const MERGE: &str = "merge";
/// [`Incomplete::source`] of a version 3 stream, which says nothing of itself.
pub const ANONYMOUS: &str = "proto3";
/// No record comes near this; a longer file is none.
pub const MAX_BYTES: u64 = 1 << 20;

/// What is known of one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What makes it this destination, see [`identity`].
    pub identity: String,
    /// Its name when it was last written. For people.
    #[serde(default)]
    pub name: String,
    /// The state that it holds (while a write is under way: that it held before). `None`: one without an
    /// identity, or none that has one.
    #[serde(default)]
    pub holds: Option<State>,
    /// The delta that made it so.
    #[serde(default)]
    pub stream: Option<StreamId>,
    /// Digest of that one's list, as in its header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// What it holds rests on a full copy or on what somebody adopted, and on what was applied to that: not on samples alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_proven: bool,
    /// Where that came from. For people.
    #[serde(default)]
    pub from: String,
    /// Its undo, as a path on this machine.
    #[serde(default)]
    pub undo: Option<String>,
    /// When: seconds since 1970 UTC.
    #[serde(default)]
    pub since: i64,
    /// What tells whether others wrote to it since, see [`witness`].
    #[serde(default)]
    pub witness: Option<String>,
    /// The delta was forced onto another state than its base: the result is no state of its own.
    #[serde(default)]
    pub forced: bool,
    /// Blocks that the last run wrote, as they were when it was done.
    #[serde(default)]
    pub marks: Vec<Mark>,
    /// What the destination lay on when a write to it was last begun, as identities: its data is also theirs. One that is
    /// closed later (LUKS, a mapped partition) does not tell any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lies_on: Vec<String>,
    /// It was forced already before the last run: its undo leads back to that.
    #[serde(default, skip_serializing_if = "is_false")]
    pub was_forced: bool,
    /// Which delta the undo of the last run is, if it kept one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_stream: Option<StreamId>,
    /// A write that is under way, or was cut.
    #[serde(default)]
    pub incomplete: Option<Incomplete>,
    /// A comparison that was cut before it found anything to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
    /// It is a preview.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview_of: Option<PreviewOf>,
}

/// What a preview is of, and what tells whether it still is what was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewOf {
    /// The identity of the volume.
    pub identity: String,
    /// Its name. For people.
    pub name: String,
    /// [`Record::since`] of the volume's record when the preview was made.
    #[serde(default)]
    pub since: Option<i64>,
    /// [`Record::witness`] of the volume then.
    #[serde(default)]
    pub witness: Option<String>,
    /// All deltas are on it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_whole: bool,
    /// The undo that was kept with them, as a path on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
    /// What LVM had given it by then: a write anywhere else makes that more, and that shows after a reboot, too.
    #[serde(default)]
    pub used_bytes: Option<u64>,
}

/// How far a destination was compared and found equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The copy that it was compared for.
    pub stream: Option<StreamId>,
    /// All of the volume before this offset is as in that copy's target.
    pub offset: u64,
    /// That holds as long as nobody writes: see [`witness`].
    pub witness: Option<String>,
}

/// A write that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// The delta that is being applied.
    pub stream: Option<StreamId>,
    /// If that is an undo: what it undoes.
    #[serde(default)]
    pub undo_of: Option<StreamId>,
    /// The state that it begins from.
    #[serde(default)]
    pub base: Option<State>,
    /// The destination was proven to hold that, see [`Record::is_proven`]; else samples alone say so, or nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_proven: bool,
    /// The state that it leads to.
    #[serde(default)]
    pub target: Option<State>,
    /// What found the changes, as in the header.
    #[serde(default)]
    pub source: String,
    /// When it was made, as in the header: of two lists of one live snapshot the later one holds all of the other.
    #[serde(default)]
    pub created: i64,
    /// What tells this run from others, as in the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Digest of its list, as in the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// Where it comes from. For people.
    #[serde(default)]
    pub from: String,
    /// The undo that is being kept, as a path on this machine; called so when it is whole.
    #[serde(default)]
    pub undo: Option<String>,
    /// [`Record::forced`] before this run.
    #[serde(default, skip_serializing_if = "is_false")]
    pub was_forced: bool,
    /// Which delta that undo is: there may be an older one of the same delta, from when it was applied before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_stream: Option<StreamId>,
    /// This run has begun that undo. What repeats a run may name the one of the run that it repeats, and a record of an lvmsync
    /// that did not keep this does not tell which.
    #[serde(default, skip_serializing_if = "is_false")]
    pub has_own_undo: bool,
    /// Every frame that ends at or before this volume offset is durable.
    #[serde(default)]
    pub durable_offset: u64,
    /// Volume offset up to which the undo was durable before anything there was overwritten: what it holds beyond
    /// was not overwritten. `None`: no undo, or a record of an lvmsync that did not keep this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_offset: Option<u64>,
    /// If the delta is itself the undo of a run that was cut, and was cut with it: it is whole enough if it goes up
    /// to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_from: Option<u64>,
    /// Some of the blocks up to there, as they were written.
    #[serde(default)]
    pub marks: Vec<Mark>,
    /// Where some of what lies before was only compared: `durable_offset` holds as long as nobody writes, see
    /// [`witness`]. Blocks that were not written have no marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<String>,
    /// What there was to tell writes by when the run had ended, with all that it wrote durable. `None` while it goes on, and
    /// where it was killed: then its own writes look like those of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
    /// Size of the destination before.
    #[serde(default)]
    pub old_size_bytes: u64,
    /// When it began: seconds since 1970 UTC.
    #[serde(default)]
    pub since: i64,
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl Incomplete {
    /// The undo takes everything back if it is sound up to here.
    pub fn undo_good_from(&self) -> u64 {
        self.saved_offset.unwrap_or(self.durable_offset)
    }
}

/// Why the bytes of a record cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// Not the first line of a record.
    #[error("it does not begin as a record does")]
    NotARecord,
    /// Of a version that this program does not know.
    #[error("it has version {0}, and this lvmsync knows version {VERSION}: use a newer one")]
    Version(u32),
    /// Changed since it was written.
    #[error("its checksum is {found}, expected {expected}: bytes were changed")]
    Checksum {
        /// As computed.
        found: String,
        /// As written in the first line.
        expected: String,
    },
    /// The JSON cannot be read.
    #[error("it cannot be understood: {0}")]
    Contents(String),
}

impl Record {
    /// The bytes of the file: a line with version and checksum, then JSON.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and options only: this cannot fail, and what is empty is refused by the reader.
        let mut json = serde_json::to_string_pretty(self).unwrap_or_default();
        json.push('\n');
        let crc = crc32c::crc32c(json.as_bytes());
        format!("{FIRST_WORDS} {VERSION} {crc:08x}\n{json}").into_bytes()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let text = std::str::from_utf8(bytes).map_err(|_| RecordError::NotARecord)?;
        let (first, json) = text.split_once('\n').ok_or(RecordError::NotARecord)?;
        let words: Vec<&str> = first
            .strip_prefix(FIRST_WORDS)
            .ok_or(RecordError::NotARecord)?
            .split_whitespace()
            .collect();
        let version = words.first().and_then(|word| word.parse().ok());
        match (version, words.as_slice()) {
            (Some(VERSION), [_, expected]) => {
                let found = format!("{:08x}", crc32c::crc32c(json.as_bytes()));
                if found != *expected {
                    let expected = (*expected).to_owned();
                    return Err(RecordError::Checksum { found, expected });
                }
            }
            (Some(version), _) if version != VERSION => return Err(RecordError::Version(version)),
            _ => return Err(RecordError::NotARecord),
        }
        serde_json::from_str(json).map_err(|error| RecordError::Contents(error.to_string()))
    }

    /// What it held, or what was done to it, is on record: not only how far it was compared.
    pub fn knows(&self) -> bool {
        self.holds.is_some() || self.stream.is_some()
    }

    /// The undo that takes back the run that is under way, or else the last one: where it is, and which delta. A run that
    /// repeats the one before and keeps none is taken back by that one's.
    pub fn way_back(&self) -> (Option<&str>, Option<&StreamId>) {
        match self.run_with_undo() {
            None => (self.undo.as_deref(), self.undo_stream.as_ref()),
            Some(cut) => (cut.undo.as_deref(), cut.undo_stream.as_ref()),
        }
    }

    /// What that leads back to was forced onto another state than its base.
    pub fn was_forced_before(&self) -> bool {
        self.run_with_undo()
            .map_or(self.was_forced, |cut| cut.was_forced)
    }

    /// The run that is under way, unless it repeats the one before and keeps no undo.
    fn run_with_undo(&self) -> Option<&Incomplete> {
        let cut = self.incomplete.as_ref();
        cut.filter(|cut| cut.undo.is_some() || self.stream != cut.stream)
    }

    /// The run that is under way, if it has begun the undo that it keeps: that one holds what this run has overwritten, and
    /// need hold no more. Where a run repeats the one before it is known of some alone.
    pub fn run_with_own_undo(&self) -> Option<&Incomplete> {
        let cut = self.incomplete.as_ref()?;
        let is_own = cut.has_own_undo || self.stream != cut.stream;
        (cut.undo.is_some() && is_own).then_some(cut)
    }

    /// The state that it holds, in words.
    pub fn shown_state(&self) -> String {
        shown(self.holds.as_ref())
    }
}

/// A state in words.
pub fn shown(state: Option<&State>) -> String {
    match state {
        Some(state) if state.name.is_empty() => state.id.clone(),
        Some(state) => format!("{} ({})", state.name, state.id),
        None => "a state without an identity".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let state = |name: &str| State {
            id: format!("lvm:{name}"),
            name: format!("vg/{name}"),
        };
        Record {
            identity: "lvm:x".into(),
            name: "vg/copy".into(),
            holds: Some(state("s1")),
            stream: Some(StreamId::from("b3:1".to_owned())),
            incomplete: Some(Incomplete {
                target: Some(state("s2")),
                durable_offset: 64 << 20,
                ..Incomplete::default()
            }),
            ..Record::default()
        }
    }

    #[test]
    fn a_record_comes_back() {
        assert_eq!(Record::decode(&record().encode()), Ok(record()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let bytes = record().encode();
        for at in 0..bytes.len() {
            assert!(Record::decode(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                // A blank between the words of the first line may become another blank.
                if let Ok(found) = Record::decode(&damaged) {
                    assert_eq!(found, record(), "byte {at} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn another_version_is_named() {
        let text = String::from_utf8(record().encode()).unwrap();
        let newer = text.replacen("state 1", "state 2", 1);
        assert_eq!(
            Record::decode(newer.as_bytes()),
            Err(RecordError::Version(2))
        );
    }
}
