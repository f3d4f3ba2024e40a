//! Blocks that a run has written, as they were when it was done: does the destination still hold what it made of it?
//!
//! Guarantees: pure but for the volume that blocks are read from. Whatever took the run back, a snapshot that was
//! merged, a copy from below, a restored image, changes just these blocks, whether or not anybody counted writes.

use std::io;

use serde::{Deserialize, Serialize};

use crate::extent::Extent;
use crate::volume::ReadAt;

/// Bytes of a block that is looked at.
const BLOCK_BYTES: u64 = 4096;
/// Blocks that are kept.
const MOST: usize = 64;

/// Where a run wrote: at most 64 places, spread over all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    offsets: Vec<u64>,
    /// Of how many writes one is kept.
    step: u64,
    seen: u64,
}

impl Places {
    /// Notes a write.
    pub fn note(&mut self, extent: Extent) {
        let step = self.step.max(1);
        if self.seen.is_multiple_of(step) {
            if self.offsets.len() == MOST {
                let mut position = 0u64;
                self.offsets.retain(|_| {
                    position += 1;
                    position % 2 == 1
                });
                self.step = step * 2;
            }
            self.offsets.push(extent.offset());
        }
        self.seen += 1;
    }
}

/// One block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Volume offset.
    pub offset: u64,
    /// Bytes that were looked at: fewer than 4096 at the end of a volume.
    pub length: u64,
    /// First half of their BLAKE3, hexadecimal.
    pub digest: String,
}

/// Looks at the blocks at `places`.
pub fn take(volume: &dyn ReadAt, places: &Places) -> io::Result<Vec<Mark>> {
    let size = volume.size_bytes();
    let lengths = places
        .offsets
        .iter()
        .map(|offset| (*offset, size.saturating_sub(*offset).min(BLOCK_BYTES)));
    lengths
        .filter(|(_, length)| *length > 0)
        .map(|(offset, length)| {
            let digest = digest(volume, offset, length)?;
            Ok(Mark {
                offset,
                length,
                digest,
            })
        })
        .collect()
}

/// The same places, as they are now.
pub fn again(volume: &dyn ReadAt, marks: &[Mark]) -> io::Result<Vec<Mark>> {
    let places = Places {
        offsets: marks.iter().map(|mark| mark.offset).collect(),
        ..Places::default()
    };
    take(volume, &places)
}

/// True if all of `marks` are as they were. A block past the end is not.
pub fn hold(volume: &dyn ReadAt, marks: &[Mark]) -> io::Result<bool> {
    for mark in marks {
        let end = mark.offset.checked_add(mark.length);
        let is_sane =
            mark.length <= BLOCK_BYTES && end.is_some_and(|end| end <= volume.size_bytes());
        if !is_sane || digest(volume, mark.offset, mark.length)? != mark.digest {
            return Ok(false);
        }
    }
    Ok(true)
}

fn digest(volume: &dyn ReadAt, offset: u64, length: u64) -> io::Result<String> {
    let mut block = vec![0; usize::try_from(length).unwrap_or(0)];
    volume.read_exact_at(&mut block, offset)?;
    let mut text = blake3::hash(&block).to_hex().to_string();
    text.truncate(32);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::WriteAt;
    use crate::volume::memory::MemoryVolume;

    #[test]
    fn places_are_few_and_spread() {
        let mut places = Places::default();
        for number in 0..10_000u64 {
            places.note(Extent::new(number * 8192, 4096).unwrap());
            assert!(places.offsets.len() <= MOST);
        }
        assert!(places.offsets.len() >= MOST / 2);
        assert_eq!(places.offsets[0], 0);
        assert!(*places.offsets.last().unwrap() > 9_000 * 8192, "{places:?}");
    }

    #[test]
    fn marks_hold_until_one_of_their_blocks_changes() {
        let volume = MemoryVolume::new(vec![7; 20_000]);
        let mut places = Places::default();
        for offset in [0, 8192, 19_000] {
            places.note(Extent::new(offset, 1000).unwrap());
        }
        let marks = take(&volume, &places).unwrap();
        assert_eq!(marks.len(), 3);
        assert!(hold(&volume, &marks).unwrap());
        volume.write_all_at(&[1; 4000], 4096).unwrap();
        assert!(hold(&volume, &marks).unwrap(), "none of theirs");
        volume.write_all_at(&[1], 19_500).unwrap();
        assert!(!hold(&volume, &marks).unwrap());
        let now = again(&volume, &marks).unwrap();
        assert!(hold(&volume, &now).unwrap() && now.len() == 3);
        assert!(
            !hold(&MemoryVolume::new(vec![7; 9000]), &marks).unwrap(),
            "past the end"
        );
    }
}
