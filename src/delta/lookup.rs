//! What a stored delta says of a part of the volume, found through its index.
//!
//! Guarantees: [`Lookup::open`] reads the index alone, checked as every reader checks it, and holds 16 bytes for each of
//! its entries; a look reads the record headers from the nearest entry on and no payload. A record header that is damaged hides
//! what follows it up to the next entry, and nothing else: that much is given out as unknown, never as unchanged.

use super::FormatError;
use super::index::{ENTRY_BYTES, Entry, IndexChecker, MAX_ENTRIES, entries};
use super::record::{RECORD_HEADER_BYTES, RecordType, check_payload};
use super::stored::{StoredDelta, StoredFrame, read_at, record_at};
use crate::extent::Extent;
use crate::volume::ReadAt;

/// The index of a stored delta.
#[derive(Debug)]
pub struct Lookup {
    entries: Vec<Entry>,
}

/// What a look has found.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// A frame that reaches into the part that was asked for.
    Frame(StoredFrame),
    /// Here the delta says something that cannot be read.
    Unknown(Extent),
}

impl Lookup {
    /// Reads and checks the index of `delta`.
    pub fn open<V: ReadAt>(delta: &StoredDelta<V>) -> Result<Self, FormatError> {
        let counts = &delta.counts;
        let is_empty = counts.index_at == 0;
        let has_frames = delta.frames_begin < delta.frames_stop();
        if is_empty != (counts.index_entries == 0) || is_empty == has_frames {
            return Err(FormatError::Field {
                at: counts.trailer_at,
                field: "number of index entries",
                found: counts.index_entries.to_string(),
                expected: if has_frames { "some" } else { "none" }.to_owned(),
            });
        }
        let mut lookup = Self {
            entries: Vec::new(),
        };
        if is_empty {
            return Ok(lookup);
        }
        lookup.read(delta)?;
        Ok(lookup)
    }

    fn read<V: ReadAt>(&mut self, delta: &StoredDelta<V>) -> Result<(), FormatError> {
        let (begin, end) = (delta.counts.index_at, delta.counts.trailer_at);
        let wanted = delta.counts.index_entries;
        let too_many = |found: u64, at| FormatError::Field {
            at,
            field: "number of index entries",
            found: found.to_string(),
            expected: format!("{wanted}, and at most {MAX_ENTRIES}"),
        };
        if wanted > MAX_ENTRIES as u64 {
            return Err(too_many(wanted, end));
        }
        let mut checker = IndexChecker::default();
        let mut first = None;
        let mut payload = Vec::new();
        let mut at = begin;
        while at < end {
            let record = record_at(&delta.file, at)?;
            if record.kind != RecordType::Index {
                return Err(FormatError::OutOfOrder {
                    at,
                    found: record.kind.name().to_owned(),
                    expected: RecordType::Index.name().to_owned(),
                });
            }
            payload.resize(record.stored_length as usize, 0);
            let payload_at = at.saturating_add(RECORD_HEADER_BYTES as u64);
            read_at(&delta.file, &mut payload, payload_at, "an index")?;
            check_payload(&record, &payload, at)?;
            // The first frame has an entry; where on the volume it lies, its own record says to who reads it.
            let first = *first.get_or_insert_with(|| Entry {
                volume_offset: entries(&payload).next().map_or(0, |e| e.volume_offset),
                delta_offset: delta.frames_begin,
            });
            checker.payload(&payload, at, first, begin)?;
            if checker.entries() > wanted {
                return Err(too_many(checker.entries(), at));
            }
            self.entries.reserve(payload.len() / ENTRY_BYTES);
            self.entries.extend(entries(&payload));
            at = payload_at.saturating_add(u64::from(record.stored_length));
        }
        if checker.entries() != wanted || at != end {
            return Err(too_many(checker.entries(), at));
        }
        Ok(())
    }

    /// Tells `tell` in ascending order what `delta` says of `part`. Only a file that cannot be read is an error.
    pub fn look<V: ReadAt>(
        &self,
        delta: &StoredDelta<V>,
        part: Extent,
        tell: &mut dyn FnMut(Found),
    ) -> Result<(), FormatError> {
        let at_or_before = |entry: &Entry| entry.volume_offset <= part.offset();
        let mut place = self.entries.partition_point(at_or_before).saturating_sub(1);
        while let Some(entry) = self.entries.get(place).copied() {
            if entry.volume_offset >= part.end() {
                break;
            }
            match walk(delta, entry, part, tell) {
                Ok(()) => break,
                Err((_, FormatError::Io(error))) => return Err(FormatError::Io(error)),
                Err((known_to, _)) => {
                    // Everything up to the next entry that is behind what was read.
                    let behind = |entry: &Entry| entry.volume_offset <= known_to;
                    place = self.entries.partition_point(behind).max(place + 1);
                    let next = self.entries.get(place).map(|entry| entry.volume_offset);
                    let to = next.unwrap_or(delta.header().volume_size).max(known_to);
                    let unknown = Extent::from_range(known_to, to);
                    if let Some(unknown) = unknown.and_then(|unknown| unknown.intersect(part)) {
                        tell(Found::Unknown(unknown));
                    }
                }
            }
        }
        Ok(())
    }

    /// Why what the delta says of `part` is unknown.
    pub fn fault<V: ReadAt>(&self, delta: &StoredDelta<V>, part: Extent) -> Option<FormatError> {
        let at_or_before = |entry: &Entry| entry.volume_offset <= part.offset();
        let place = self.entries.partition_point(at_or_before).saturating_sub(1);
        let entry = self.entries.get(place).copied()?;
        let found = walk(delta, entry, part, &mut |_| {});
        found.err().map(|(_, error)| error)
    }
}

/// From `entry` to the end of `part`. What cannot be read comes with the end of what was.
fn walk<V: ReadAt>(
    delta: &StoredDelta<V>,
    entry: Entry,
    part: Extent,
    tell: &mut dyn FnMut(Found),
) -> Result<(), (u64, FormatError)> {
    let mut known_to = entry.volume_offset;
    let mut is_first = true;
    for frame in delta.frames_from(entry) {
        let frame = frame.map_err(|error| (known_to, error))?;
        if is_first && frame.extent.offset() != entry.volume_offset {
            let error = FormatError::OutOfOrder {
                at: frame.at,
                found: format!("a frame {}", frame.extent),
                expected: format!("one at {}, as the index says", entry.volume_offset),
            };
            return Err((known_to, error));
        }
        is_first = false;
        if frame.extent.offset() >= part.end() {
            return Ok(());
        }
        known_to = frame.extent.end();
        if frame.extent.end() > part.offset() {
            tell(Found::Frame(frame));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::codec::Codec;
    use crate::delta::header::tests::header;
    use crate::delta::samples::Samples;
    use crate::delta::writer::DeltaWriter;
    use crate::volume::memory::MemoryVolume;

    /// Frames of 4 KiB at every second 4 KiB.
    fn delta(frames: u64) -> Vec<u8> {
        let mut writer =
            DeltaWriter::new(Vec::new(), &header(1 << 30), &Samples::default()).unwrap();
        for frame in 0..frames {
            let extent = Extent::new(frame * 8192, 4096).unwrap();
            let data = vec![frame as u8; 4096];
            writer.data(extent, Codec::None, &data).unwrap();
        }
        writer.finish().unwrap().1
    }

    fn open(bytes: Vec<u8>) -> (StoredDelta<MemoryVolume>, Lookup) {
        let delta = StoredDelta::open(MemoryVolume::new(bytes)).unwrap();
        let lookup = Lookup::open(&delta).unwrap();
        (delta, lookup)
    }

    fn look(of: &(StoredDelta<MemoryVolume>, Lookup), from: u64, to: u64) -> Vec<(Extent, bool)> {
        let mut found = Vec::new();
        let part = Extent::from_range(from, to).unwrap();
        let mut tell = |what| {
            found.push(match what {
                Found::Frame(frame) => (frame.extent, true),
                Found::Unknown(extent) => (extent, false),
            });
        };
        of.1.look(&of.0, part, &mut tell).unwrap();
        found
    }

    #[test]
    fn a_look_finds_what_a_walk_finds() {
        let of = open(delta(100));
        assert!(of.1.entries.len() > 3);
        let all: Vec<Extent> = of.0.frames().map(|frame| frame.unwrap().extent).collect();
        for (from, to) in [
            (0, 1),
            (4096, 8192),
            (5000, 70_000),
            (400_000, 400_001),
            (0, 1 << 30),
            (900_000, 1 << 30),
        ] {
            let part = Extent::from_range(from, to).unwrap();
            let expected: Vec<_> = all
                .iter()
                .filter(|extent| extent.intersect(part).is_some())
                .map(|extent| (*extent, true))
                .collect();
            assert_eq!(look(&of, from, to), expected, "{from} {to}");
        }
        assert!(look(&open(delta(0)), 0, 1 << 30).is_empty());
    }

    #[test]
    fn a_damaged_record_hides_what_follows_up_to_the_next_entry() {
        let mut bytes = delta(100);
        let (sound, lookup) = open(bytes.clone());
        let (second, third) = (lookup.entries[1], lookup.entries[2]);
        let frame = sound
            .frames()
            .nth(second.volume_offset as usize / 8192 + 2)
            .unwrap()
            .unwrap();
        bytes[frame.at as usize + 9] ^= 1;
        let of = open(bytes);
        let found = look(&of, 0, 1 << 30);
        let unknown: Vec<_> = found.iter().filter(|(_, known)| !known).collect();
        let hidden = Extent::from_range(frame.extent.offset() - 4096, third.volume_offset).unwrap();
        assert_eq!(unknown, [&(hidden, false)]);
        let error = of.1.fault(&of.0, frame.extent).unwrap();
        assert!(
            matches!(error, FormatError::Checksum { at, .. } if at == frame.at),
            "{error}"
        );
        assert_eq!(
            found.len(),
            101 - ((hidden.end() - hidden.offset()) / 8192) as usize
        );
    }

    #[test]
    fn a_damaged_index_is_an_error() {
        let bytes = delta(100);
        let (sound, _) = open(bytes.clone());
        let at = sound.counts.index_at as usize;
        for place in [at + 3, at + 40] {
            let mut bad = bytes.clone();
            bad[place] ^= 1;
            let delta = StoredDelta::open(MemoryVolume::new(bad)).unwrap();
            assert!(Lookup::open(&delta).is_err(), "{place}");
        }
    }
}
