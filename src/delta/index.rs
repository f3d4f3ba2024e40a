//! The sparse index: where in a stored delta the frames around a volume offset stand.
//!
//! Pure. Guarantees: at most [`MAX_ENTRIES`] entries are held, whatever the delta's size; the first frame
//! always has one; entries ascend in both columns.

use super::FormatError;
use super::record::{MAX_INDEX_BYTES, u64_at};

/// Entries held at most: 16 MiB of them.
pub const MAX_ENTRIES: usize = 1 << 20;
const FIRST_SPACING: u64 = 64 << 10;
/// Bytes of one entry in a record.
pub const ENTRY_BYTES: usize = 16;

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Volume offset of a frame.
    pub volume_offset: u64,
    /// Delta offset of its record.
    pub delta_offset: u64,
}

/// Builds the index while frames go by.
#[derive(Debug)]
pub struct IndexBuilder {
    entries: Vec<Entry>,
    spacing: u64,
    capacity: usize,
}

impl Default for IndexBuilder {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            spacing: FIRST_SPACING,
            capacity: MAX_ENTRIES,
        }
    }
}

impl IndexBuilder {
    /// Notes a frame; frames come in ascending order.
    pub fn frame(&mut self, entry: Entry) {
        let due = self
            .entries
            .last()
            .is_none_or(|last| entry.delta_offset - last.delta_offset >= self.spacing);
        if !due {
            return;
        }
        if self.entries.len() == self.capacity {
            let mut position = 0;
            self.entries.retain(|_| {
                position += 1;
                position % 2 == 1
            });
            self.spacing *= 2;
        }
        self.entries.push(entry);
    }

    /// The payloads of the `I` records, and the number of entries in them.
    pub fn finish(self) -> (Vec<Vec<u8>>, u64) {
        let per_record = MAX_INDEX_BYTES as usize / ENTRY_BYTES;
        let payload = |entries: &[Entry]| {
            let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES);
            for entry in entries {
                bytes.extend_from_slice(&entry.volume_offset.to_le_bytes());
                bytes.extend_from_slice(&entry.delta_offset.to_le_bytes());
            }
            bytes
        };
        (
            self.entries.chunks(per_record).map(payload).collect(),
            self.entries.len() as u64,
        )
    }
}

/// Checks index payloads as they come by, and keeps none of them.
#[derive(Debug, Default)]
pub struct IndexChecker {
    last: Option<Entry>,
    entries: u64,
}

impl IndexChecker {
    /// Entries seen so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Takes the payload of the `I` record at delta offset `at`; `first` is the delta's first frame and
    /// `frames_end` the delta offset after the last one.
    pub fn payload(
        &mut self,
        payload: &[u8],
        at: u64,
        first: Entry,
        frames_end: u64,
    ) -> Result<(), FormatError> {
        for entry in entries(payload) {
            let right = match self.last {
                None => entry == first,
                Some(last) => {
                    entry.volume_offset > last.volume_offset
                        && entry.delta_offset > last.delta_offset
                        && entry.delta_offset < frames_end
                }
            };
            if !right {
                return Err(FormatError::Field {
                    at,
                    field: "index entry",
                    found: format!("{} at {}", entry.volume_offset, entry.delta_offset),
                    expected: "a frame of this delta, in ascending order".to_owned(),
                });
            }
            self.last = Some(entry);
            self.entries += 1;
        }
        Ok(())
    }
}

/// The entries in the payload of an `I` record.
pub fn entries(payload: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    payload.chunks_exact(ENTRY_BYTES).map(|entry| Entry {
        volume_offset: u64_at(entry, 0),
        delta_offset: u64_at(entry, 8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_index_halves_itself_and_keeps_the_first_frame() {
        let mut builder = IndexBuilder {
            capacity: 8,
            ..IndexBuilder::default()
        };
        for frame in 0..1000u64 {
            builder.frame(Entry {
                volume_offset: frame * 4096,
                delta_offset: 100 + frame * 70_000,
            });
            assert!(builder.entries.len() <= 8);
        }
        let (payloads, count) = builder.finish();
        let found: Vec<Entry> = entries(&payloads[0]).collect();
        assert_eq!(found.len() as u64, count);
        assert!(count >= 4);
        let first = Entry {
            volume_offset: 0,
            delta_offset: 100,
        };
        assert_eq!(found[0], first);
        let mut checker = IndexChecker::default();
        checker
            .payload(&payloads[0], 0, first, 100 + 1000 * 70_000)
            .unwrap();
        assert_eq!(checker.entries(), count);
    }

    #[test]
    fn a_wrong_entry_is_found() {
        let first = Entry {
            volume_offset: 4096,
            delta_offset: 60,
        };
        let mut builder = IndexBuilder::default();
        builder.frame(first);
        builder.frame(Entry {
            volume_offset: 9 << 20,
            delta_offset: 90_000,
        });
        let (payloads, _) = builder.finish();
        let check =
            |payload: &[u8], first, end| IndexChecker::default().payload(payload, 0, first, end);
        check(&payloads[0], first, 100_000).unwrap();
        check(&payloads[0], first, 90_000).unwrap_err();
        check(
            &payloads[0],
            Entry {
                delta_offset: 61,
                ..first
            },
            100_000,
        )
        .unwrap_err();
        let swapped = [&payloads[0][..16], &payloads[0][..16]].concat();
        check(&swapped, first, 100_000).unwrap_err();
    }
}
