//! What a volume held in some places at an era: whether somebody wrote there past the era device can be seen later.
//!
//! Pure but for the volume that blocks are read from. Guarantees: where only the era device was written through there is no
//! contradiction; eras that were found to be contradicted once stay so. It sees a write only in the places that it has looked
//! at: the ends of the volume, where superblocks are, copies of them, and some blocks in between.

use std::io;

use serde::{Deserialize, Serialize};

use crate::change_list::ChangeList;
use crate::extent::Extent;
use crate::sys::aligned::AlignedBuffer;
use crate::volume::ReadAt;

/// Bytes of a block that is looked at. Blocks of the record are multiples of it.
const BLOCK_BYTES: u64 = BLOCK as u64;
const BLOCK: usize = 4096;
/// 128 KiB: the superblocks of ext4, XFS, btrfs, LUKS, LVM and swap, and partition tables.
const HEAD_BLOCKS: u64 = 32;
/// 64 KiB: what md and GPT keep at the end.
const TAIL_BLOCKS: u64 = 16;
/// Of btrfs.
const MIRRORS: [u64; 2] = [64 << 20, 256 << 30];
/// Blocks in between.
const SCATTERED: u64 = 256;
/// Parts of the volume for a seed to choose from: 2^24 is more than enough of them.
const CHOICES: u32 = 24;

/// A block, as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// In bytes.
    offset: u64,
    /// Half of its BLAKE3.
    digest: String,
}

/// What is kept from one run to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// What was looked at when this era began, or later.
    pub era: u32,
    /// When that was, in seconds since 1970; 0 where it was not kept.
    #[serde(default)]
    pub at: i64,
    /// Ascending.
    pub blocks: Vec<Block>,
    /// What is named by this era or an earlier one is no base any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_until: Option<u32>,
}

impl Witness {
    /// Nothing proves what was written since this era.
    pub fn is_lost(&self, era: u32) -> bool {
        self.lost_until.is_some_and(|until| era <= until)
    }

    /// The first block that is another one now although it is not in `list`, which begins in the era before or earlier. `now`
    /// are the same places, read before the list was.
    pub fn contradiction(&self, now: &[Block], list: &ChangeList) -> Option<u64> {
        let is_listed = |block: &Block| {
            Extent::new(block.offset, BLOCK_BYTES).is_none_or(|extent| list.touches(extent))
        };
        let mut pairs = self.blocks.iter().zip(now);
        pairs
            .find(|(then, now)| then != now && !is_listed(then))
            .map(|(then, _)| then.offset)
    }

    /// Where to look in a volume of this size, to compare.
    pub fn places(&self, size_bytes: u64) -> Vec<u64> {
        let offsets = self.blocks.iter().map(|block| block.offset);
        let is_whole = |offset: &u64| offset.saturating_add(BLOCK_BYTES) <= size_bytes;
        offsets.take_while(is_whole).collect()
    }

    /// Both, of which the other was kept by another run meanwhile.
    pub fn joined(self, other: Self) -> Self {
        let lost_until = self.lost_until.max(other.lost_until);
        let newer = if other.era > self.era { other } else { self };
        Self {
            lost_until,
            ..newer
        }
    }
}

/// Where to look in a volume of this size; ascending. Another seed chooses other blocks in between.
pub fn places(seed: &[u8], size_bytes: u64) -> Vec<u64> {
    let blocks = size_bytes / BLOCK_BYTES;
    let head = 0..HEAD_BLOCKS.min(blocks);
    let tail = blocks.saturating_sub(TAIL_BLOCKS)..blocks;
    let mut found: Vec<u64> = head.chain(tail).collect();
    found.extend(MIRRORS.map(|offset| offset / BLOCK_BYTES));
    let mut choices = blake3::Hasher::new_derive_key("lvmsync places of a witness")
        .update(seed)
        .finalize_xof();
    // One in each of as many parts of the volume.
    for part in 0..SCATTERED {
        let mut bytes = [0; 4];
        choices.fill(&mut bytes);
        let within = u64::from(u32::from_le_bytes(bytes) >> (32 - CHOICES));
        let at = u128::from((part << CHOICES) + within) * u128::from(blocks);
        let block = at / u128::from(SCATTERED << CHOICES);
        found.extend(u64::try_from(block));
    }
    found.retain(|block| *block < blocks);
    found.sort_unstable();
    found.dedup();
    found.iter().map(|block| block * BLOCK_BYTES).collect()
}

/// What is there now.
pub fn look(volume: &dyn ReadAt, places: &[u64]) -> io::Result<Vec<Block>> {
    let mut bytes = AlignedBuffer::new(BLOCK);
    let mut read = |offset: u64| {
        volume.read_exact_at(&mut bytes[..BLOCK], offset)?;
        let digest = blake3::hash(&bytes[..BLOCK]).to_hex();
        Ok(Block {
            offset,
            digest: digest[..32].to_owned(),
        })
    };
    places.iter().map(|offset| read(*offset)).collect()
}

/// One word for all of it.
pub fn word(blocks: &[Block]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("lvmsync witness of a volume at rest");
    for block in blocks {
        hasher.update(&block.offset.to_le_bytes());
        hasher.update(block.digest.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change_list::ChangeListBuilder;
    use crate::extent::Kind;
    use crate::volume::memory::MemoryVolume;

    const SIZE: u64 = 80 << 20;

    fn seen(volume: &MemoryVolume, era: u32) -> Witness {
        Witness {
            era,
            blocks: look(volume, &places(b"seed", SIZE)).unwrap(),
            ..Witness::default()
        }
    }

    #[test]
    fn superblocks_are_looked_at_and_every_part_of_the_volume() {
        for size in [0, 4095, 4096, 12_288, 1 << 20, SIZE, 1 << 50, u64::MAX] {
            let found = places(b"seed", size);
            assert!(found.is_sorted_by(|a, b| a < b), "{size}");
            assert!(found.iter().all(|offset| size - offset >= BLOCK_BYTES));
            assert!(found.len() <= 320 && found.contains(&0) == (size >= 4096));
        }
        let found = places(b"seed", SIZE);
        for offset in [0, 4096, 64 << 10, 64 << 20, SIZE - 4096, SIZE - (64 << 10)] {
            assert!(found.contains(&offset), "{offset}");
        }
        let quiet = (0..16).all(|part| {
            let part = part * SIZE / 16..(part + 1) * SIZE / 16;
            found.iter().any(|offset| part.contains(offset))
        });
        assert!(quiet && found != places(b"another", SIZE));
    }

    #[test]
    fn a_write_that_no_list_has_is_a_contradiction_and_one_that_it_has_is_none() {
        let mut bytes = vec![3; usize::try_from(SIZE).unwrap()];
        let then = seen(&MemoryVolume::new(bytes.clone()), 7);
        let at = then.places(SIZE)[100];
        bytes[usize::try_from(at).unwrap() + 4095] = 4;
        let now = seen(&MemoryVolume::new(bytes), 9);
        let list = |offset, length| {
            let mut list = ChangeListBuilder::default();
            list.push(Extent::new(offset, length).unwrap(), Kind::Data);
            list.finish()
        };
        assert_eq!(then.contradiction(&now.blocks, &list(at, 65536)), None);
        assert_eq!(
            then.contradiction(&now.blocks, &list(at + 4096, 65536)),
            Some(at)
        );
        assert_eq!(
            then.contradiction(&now.blocks, &ChangeList::default()),
            Some(at)
        );
        assert_eq!(
            then.contradiction(&then.blocks, &ChangeList::default()),
            None
        );
        assert_ne!(word(&then.blocks), word(&now.blocks));
    }

    #[test]
    fn what_was_lost_stays_lost_whoever_writes_last() {
        let old = Witness {
            era: 7,
            lost_until: Some(6),
            ..Witness::default()
        };
        let new = Witness {
            era: 9,
            ..Witness::default()
        };
        for joined in [old.clone().joined(new.clone()), new.joined(old)] {
            assert_eq!((joined.era, joined.lost_until), (9, Some(6)));
            assert!(joined.is_lost(6) && !joined.is_lost(7));
        }
    }
}
