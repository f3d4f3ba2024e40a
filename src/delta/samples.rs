//! Samples: digests of blocks that a delta leaves alone, by which a receiver knows its base.
//!
//! Pure but for the volume that blocks are read from. Guarantees: every sampled block lies wholly in the
//! base and outside the change list, so it is equal in base and target whatever the delta holds.

use std::io;

use super::FormatError;
use super::record::{u32_at, u64_at};
use crate::change_list::ChangeList;
use crate::extent::{Change, Extent};
use crate::sys::aligned::AlignedBuffer;
use crate::volume::ReadAt;

/// Bytes of a sampled block.
pub const BLOCK_BYTES: u64 = BLOCK as u64;
const BLOCK: usize = 4096;
/// Most samples that a reader accepts.
const MAX_SAMPLES: usize = 2048;
/// Samples that a writer takes where there are enough unchanged blocks.
const SAMPLES: usize = 128;
/// Blocks that a writer looks at to find ones that are not zero.
const CANDIDATES: usize = 2 * SAMPLES;
const ENTRY_BYTES: usize = 24;
/// Between two blocks that are read in one go, whatever the volume would have.
const MAX_GAP_BYTES: u64 = 64 << 10;
const ZEROES: [u8; BLOCK] = [0; BLOCK];

/// One sampled block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sample {
    /// Volume offset in bytes, a multiple of nothing in particular.
    pub offset: u64,
    /// First half of the block's BLAKE3.
    pub digest: [u8; 16],
}

/// The `S` record: sorted by offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples(Vec<Sample>);

impl Samples {
    /// These samples, of which no two are of the same block.
    pub(crate) fn of(mut samples: Vec<Sample>) -> Self {
        samples.sort_unstable();
        samples.dedup_by_key(|sample| sample.offset);
        samples.truncate(MAX_SAMPLES);
        Self(samples)
    }

    /// In ascending order of their offsets.
    pub fn iter(&self) -> impl Iterator<Item = Sample> + '_ {
        self.0.iter().copied()
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when nothing could be sampled.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The payload of the record.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + self.0.len() * ENTRY_BYTES);
        bytes.extend_from_slice(&4096u32.to_le_bytes());
        bytes.extend_from_slice(
            &u32::try_from(self.0.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        for sample in &self.0 {
            bytes.extend_from_slice(&sample.offset.to_le_bytes());
            bytes.extend_from_slice(&sample.digest);
        }
        bytes
    }

    /// Reads the payload of an `S` record at delta offset `at`.
    pub fn decode(payload: &[u8], at: u64) -> Result<Self, FormatError> {
        let field = |field, found: String, expected: String| FormatError::Field {
            at,
            field,
            found,
            expected,
        };
        let block_bytes = u64::from(u32_at(payload, 0));
        if block_bytes != BLOCK_BYTES {
            return Err(field(
                "block_bytes",
                block_bytes.to_string(),
                BLOCK_BYTES.to_string(),
            ));
        }
        let count = u32_at(payload, 4) as usize;
        if count > MAX_SAMPLES || payload.len() != 8 + count * ENTRY_BYTES {
            let expected = format!("at most {MAX_SAMPLES} and as many as the record holds");
            return Err(field("count", count.to_string(), expected));
        }
        let mut samples = Vec::with_capacity(count);
        for entry in payload[8..].chunks_exact(ENTRY_BYTES) {
            let mut digest = [0; 16];
            digest.copy_from_slice(&entry[8..]);
            samples.push(Sample {
                offset: u64_at(entry, 0),
                digest,
            });
        }
        if let Some(pair) = samples
            .windows(2)
            .find(|pair| pair[0].offset >= pair[1].offset)
        {
            let expected = format!("more than {}", pair[0].offset);
            return Err(field("sample offset", pair[1].offset.to_string(), expected));
        }
        Ok(Self(samples))
    }

    /// Chooses and reads samples from `base`, which must hold the base state.
    pub fn take(base: &dyn ReadAt, changes: &ChangeList) -> io::Result<Self> {
        let mut full = Vec::new();
        let mut zero = Vec::new();
        let of_zeroes = digest(&ZEROES);
        each_block(
            base,
            candidates(changes, base.size_bytes()),
            |offset, block| {
                if *block == ZEROES {
                    let digest = of_zeroes;
                    zero.push(Sample { offset, digest });
                } else {
                    let digest = digest(block);
                    full.push(Sample { offset, digest });
                }
                full.len() < SAMPLES
            },
        )?;
        // Zero blocks say little, but a volume that is zero where the delta says so is still some proof.
        full.extend(zero.into_iter().take(SAMPLES - full.len()));
        full.sort_unstable();
        full.dedup_by_key(|sample| sample.offset);
        Ok(Self(full))
    }

    /// The samples of blocks that end at or before `size_bytes`.
    pub fn below(&self, size_bytes: u64) -> Self {
        let fits = |sample: &&Sample| {
            sample
                .offset
                .checked_add(BLOCK_BYTES)
                .is_some_and(|end| end <= size_bytes)
        };
        Self(self.0.iter().filter(fits).copied().collect())
    }

    /// The same blocks as `volume` holds them; those past its end are left out.
    pub fn retaken(&self, volume: &dyn ReadAt) -> io::Result<Self> {
        let offsets = self.below(volume.size_bytes()).0;
        let offsets = offsets.iter().map(|sample| sample.offset).collect();
        let mut samples = Vec::with_capacity(self.0.len());
        each_block(volume, offsets, |offset, block| {
            let digest = digest(block);
            samples.push(Sample { offset, digest });
            true
        })?;
        Ok(Self(samples))
    }

    /// The offset of the first sample that `volume` does not hold; `None` when all match. A sample past
    /// the end of `volume` counts as different.
    pub fn first_mismatch(&self, volume: &dyn ReadAt) -> io::Result<Option<u64>> {
        let ends_inside = |sample: &Sample| {
            let end = sample.offset.checked_add(BLOCK_BYTES);
            end.is_some_and(|end| end <= volume.size_bytes())
        };
        // They ascend: what ends past the end comes last.
        let inside = self.0.iter().take_while(|sample| ends_inside(sample));
        let mut digests = inside.clone().map(|sample| sample.digest);
        let mut different = None;
        let offsets = inside.clone().map(|sample| sample.offset).collect();
        each_block(volume, offsets, |offset, block| {
            if digests.next() != Some(digest(block)) {
                different = Some(offset);
            }
            different.is_none()
        })?;
        let past = || self.0.get(inside.count()).map(|sample| sample.offset);
        Ok(different.or_else(past))
    }
}

/// Shows blocks to `look`, in the order of `offsets`, as long as it says to go on. Two that follow each other
/// and are near are read in one go: where each read waits for a device, it is the reads that cost.
fn each_block(
    volume: &dyn ReadAt,
    offsets: Vec<u64>,
    mut look: impl FnMut(u64, &[u8; BLOCK]) -> bool,
) -> io::Result<()> {
    let most = volume.gap_worth_reading().min(MAX_GAP_BYTES);
    let mut buffer = AlignedBuffer::new(usize_of(most) + 2 * BLOCK);
    let mut offsets = offsets.into_iter().peekable();
    while let Some(first) = offsets.next() {
        let near = |next: &u64| {
            let gap = next.checked_sub(first.saturating_add(BLOCK_BYTES));
            gap.is_some_and(|gap| gap <= most)
        };
        let second = offsets.next_if(near);
        let distance = second.map_or(0, |second| usize_of(second - first));
        let both = &mut buffer[..distance + BLOCK];
        // What cannot be read may be what nobody asked for, between them.
        let read = distance == 0 || volume.read_exact_at(both, first).is_err();
        for (offset, at) in [(Some(first), 0), (second, distance)] {
            let Some(offset) = offset else { continue };
            let Some(block) = buffer[at..].first_chunk_mut::<BLOCK>() else {
                continue;
            };
            if read {
                volume.read_exact_at(block, offset)?;
            }
            if !look(offset, block) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// For lengths that are at most a few blocks more than [`MAX_GAP_BYTES`].
fn usize_of(length: u64) -> usize {
    usize::try_from(length).unwrap_or(0)
}

fn digest(block: &[u8; BLOCK]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(block).as_bytes()[..16]);
    short
}

/// Offsets of unchanged blocks in the order in which they are worth reading: by turns some beside a changed
/// extent and as many from the rest, each kind spread over the whole volume.
fn candidates(changes: &ChangeList, size_bytes: u64) -> Vec<u64> {
    let mut spread = changes.unchanged_blocks(size_bytes, BLOCK_BYTES, CANDIDATES as u64);
    scatter(&mut spread, |offset| *offset);
    let mut spread = spread.into_iter();
    let mut all = Vec::with_capacity(2 * CANDIDATES);
    for beside in beside_changes(changes, size_bytes) {
        let found = beside.iter().flatten();
        let before = all.len();
        all.extend(found);
        all.extend(spread.by_ref().take(all.len() - before));
    }
    all.extend(spread);
    let mut seen = std::collections::HashSet::new();
    // Blocks from the two lists may overlap without being equal; the same whole block is enough to avoid.
    all.retain(|offset| seen.insert(*offset));
    all
}

/// The block before and the block after some of the changed extents, where these are unchanged.
fn beside_changes(changes: &ChangeList, size_bytes: u64) -> Vec<[Option<u64>; 2]> {
    let step = changes.len().div_ceil(CANDIDATES / 2).max(1);
    let is_unchanged = |offset: &u64| {
        Extent::new(*offset, BLOCK_BYTES)
            .is_some_and(|block| block.end() <= size_bytes && !changes.touches(block))
    };
    let beside = |change: Change| {
        let before = (change.extent.offset() / BLOCK_BYTES)
            .checked_sub(1)
            .map(|block| block * BLOCK_BYTES);
        let after = change.extent.end().next_multiple_of(BLOCK_BYTES);
        [before, Some(after)].map(|offset| offset.filter(is_unchanged))
    };
    let mut found: Vec<_> = changes.iter().step_by(step).map(beside).collect();
    scatter(&mut found, |[before, after]| {
        before.or(*after).unwrap_or_default()
    });
    found
}

/// Puts them in an order of which every beginning is spread over the whole.
fn scatter<T>(places: &mut [T], offset: impl Fn(&T) -> u64) {
    places.sort_by_cached_key(|place| {
        let mut key = [0; 8];
        let hash = blake3::hash(&offset(place).to_le_bytes());
        key.copy_from_slice(&hash.as_bytes()[..8]);
        key
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Kind;
    use crate::volume::memory::MemoryVolume;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn changes(extents: &[(u64, u64)]) -> ChangeList {
        let change = |(offset, length): &(u64, u64)| Change {
            extent: Extent::new(*offset, *length).unwrap(),
            kind: Kind::Data,
        };
        extents.iter().map(change).collect()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new()
            .update(b"noise")
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn samples_never_touch_what_changes(
            extents in prop::collection::vec((0u64..1_000_000, 1u64..60_000), 0..12), size in 0u64..1_000_000,
        ) {
            let list = changes(&extents);
            let volume = MemoryVolume::new(noise(usize::try_from(size).unwrap()));
            let samples = Samples::take(&volume, &list).unwrap();
            for sample in &samples.0 {
                let block = Extent::new(sample.offset, BLOCK_BYTES).unwrap();
                prop_assert!(block.end() <= size && !list.touches(block));
            }
            prop_assert!(samples.len() <= SAMPLES);
            prop_assert_eq!(samples.first_mismatch(&volume).unwrap(), None);
            prop_assert_eq!(Samples::decode(&samples.encode(), 0).unwrap(), samples);
        }
    }

    #[test]
    fn a_different_base_is_found_and_a_shorter_one_too() {
        let bytes = noise(4 << 20);
        let list = changes(&[(40_960, 8192)]);
        let samples = Samples::take(&MemoryVolume::new(bytes.clone()), &list).unwrap();
        assert_eq!(samples.len(), SAMPLES);
        let mut other = bytes.clone();
        other[40_959] ^= 1; // the block just before the change is always among the samples
        assert!(
            samples
                .first_mismatch(&MemoryVolume::new(other))
                .unwrap()
                .is_some()
        );
        let short = bytes[..1 << 20].to_vec();
        assert!(
            samples
                .first_mismatch(&MemoryVolume::new(short))
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn blocks_with_content_are_preferred() {
        let mut bytes = vec![0; 64 << 20];
        for block in bytes.chunks_mut(4096).step_by(64) {
            block[7] = 1;
        }
        let samples = Samples::take(&MemoryVolume::new(bytes), &ChangeList::default()).unwrap();
        assert_eq!(samples.len(), SAMPLES);
    }

    /// Counts reads, and has a block that cannot be read.
    struct Reads {
        volume: MemoryVolume,
        count: AtomicUsize,
        bad: u64,
    }

    impl ReadAt for Reads {
        fn size_bytes(&self) -> u64 {
            self.volume.size_bytes()
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.count.fetch_add(1, Ordering::Relaxed);
            if (offset..offset + buffer.len() as u64).contains(&self.bad) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.volume.read_exact_at(buffer, offset)
        }
    }

    #[test]
    fn two_near_blocks_are_one_read_unless_what_is_between_cannot_be_read() {
        let bytes = noise(1 << 20);
        let take = |bad, offsets: &[u64]| {
            let volume = Reads {
                volume: MemoryVolume::new(bytes.clone()),
                count: AtomicUsize::new(0),
                bad,
            };
            let mut seen = Vec::new();
            let done = each_block(&volume, offsets.to_vec(), |offset, block| {
                let at = usize::try_from(offset).unwrap();
                assert_eq!(block[..], bytes[at..at + BLOCK]);
                seen.push(offset);
                seen.len() < 4
            });
            (done.is_ok(), seen, volume.count.into_inner())
        };
        let far = 700_000;
        let offsets = [4096, 12_288, far, 0, 8192, 20_480];
        let seen = vec![4096, 12_288, far, 0];
        assert_eq!(take(u64::MAX, &offsets), (true, seen.clone(), 3));
        assert_eq!(take(9000, &offsets[..4]), (true, seen, 5));
        assert_eq!(take(far, &offsets), (false, vec![4096, 12_288], 2));
        assert_eq!(take(13_000, &offsets), (false, vec![4096], 3));
    }

    #[test]
    fn damaged_samples_are_refused() {
        assert!(Samples::decode(&[], 0).is_err());
        let sample = |offset| Sample {
            offset,
            digest: [1; 16],
        };
        let good = Samples(vec![sample(0), sample(4096)]).encode();
        assert!(Samples::decode(&good[..good.len() - 1], 0).is_err());
        assert!(Samples::decode(&Samples(vec![sample(4096), sample(0)]).encode(), 0).is_err());
        assert!(Samples::decode(&Samples(vec![sample(0); 2049]).encode(), 0).is_err());
    }
}
