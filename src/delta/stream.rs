//! The identity of a delta: what two runs must have in common for one to go on where the other was cut.
//!
//! Pure. Guarantees: two deltas with the same id begin from the same base, end in the same target, and carry
//! the same extents with the same content, wherever and however often they are written, compressed or cut.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::header::{Header, Source};
use super::samples::Samples;

/// The id of a delta: `b3:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(String);

impl StreamId {
    /// The id of the delta that begins with this header and these samples.
    ///
    /// The content is that of the target state. Where that has no identity, the writer has put into
    /// [`Header::run`] what no other run has. A full copy covers the whole volume however its list is cut, so
    /// there the list does not count: a filesystem may report other holes for the same file a moment later. Where a
    /// hole is part of the content, as in a thin volume that may be discarded, the writer says so in [`Header::run`].
    /// Nor does it between two classic snapshots that have identities: a block that one list has and the other lacks is the same in
    /// both states. The tables of classic snapshots grow while their origin is written to, so a run that is resumed often
    /// has a longer list.
    pub fn of(header: &Header, samples: &Samples) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("lvmsync 4 identity of a delta");
        let mut put = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        put(&header.volume_size.to_le_bytes());
        put(&header.base_size.unwrap_or(u64::MAX).to_le_bytes());
        // Whether everything is sent or what differs: in the end it is the same, and so it is where either was cut.
        let source = match header.source {
            Source::Compare => Source::Full,
            source => source,
        };
        put(source.word().as_bytes());
        put(&header.granularity.to_le_bytes());
        for state in [&header.base, &header.target] {
            put(state.as_ref().map_or("", |state| &state.id).as_bytes());
        }
        for text in [&header.run, &header.undo_of] {
            put(text.as_deref().unwrap_or("").as_bytes());
        }
        if !header.is_full_copy() && !is_between_classic_snapshots(header) {
            put(header.list.as_deref().unwrap_or("").as_bytes());
            put(&samples.encode());
        }
        // What an undo holds depends on the destination and the moment. Older writers named no run: then only
        // the same file has the same second.
        if header.source == Source::Undo || (header.target.is_none() && header.run.is_none()) {
            put(&header.created.to_le_bytes());
        }
        Self(format!("b3:{}", hasher.finalize().to_hex()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Only the tables of classic snapshots grow by themselves. A list of a thin pool changes when a state does, as by a discard,
/// and what an undo holds is not what its states say, but what was overwritten.
fn is_between_classic_snapshots(header: &Header) -> bool {
    header.source == Source::Cow && header.base.is_some() && header.target.is_some()
}

impl From<String> for StreamId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::header::tests::header;
    use crate::delta::samples::Sample;

    fn id(header: &Header) -> StreamId {
        StreamId::of(header, &Samples::default())
    }

    #[test]
    fn what_does_not_change_the_effect_does_not_change_the_id() {
        let first = header(1 << 20);
        let mut second = first.continued_at(4096);
        second.created += 1;
        second.codec = "zstd:3".into();
        second.program = "another".into();
        second.planned.extents += 7;
        second.list = Some("b3:grown".into());
        let samples = Samples::of(vec![Sample {
            offset: 4096,
            digest: [7; 16],
        }]);
        assert_eq!(id(&first), StreamId::of(&second, &samples));
    }

    #[test]
    fn a_copy_by_comparing_goes_on_where_a_whole_one_was_cut() {
        let full = Header {
            source: Source::Full,
            base: None,
            base_size: None,
            ..header(1 << 20)
        };
        assert_eq!(id(&full), id(&full.clone().by_comparing()));
    }

    #[test]
    fn what_changes_the_effect_changes_the_id() {
        let first = header(1 << 20);
        let mut others = vec![first.clone(); 5];
        others[0].volume_size += 4096;
        others[1].base_size = None;
        others[2].base = None;
        if let Some(target) = &mut others[3].target {
            target.id.push('x');
        }
        others[4].run = Some("again".into());
        for other in &others {
            assert_ne!(id(&first), id(other), "{other:?}");
        }
    }

    #[test]
    fn only_between_two_named_classic_snapshots_does_the_list_not_count() {
        let nameless = |change: &dyn Fn(&mut Header)| {
            let mut first = header(1 << 20);
            change(&mut first);
            let mut second = first.clone();
            second.list = Some("b3:other".into());
            assert_ne!(id(&first), id(&second), "{first:?}");
        };
        nameless(&|header| header.base = None);
        nameless(&|header| header.target = None);
        nameless(&|header| header.source = Source::Undo);
        nameless(&|header| header.source = Source::Thin);
    }
}
