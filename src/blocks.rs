//! What two volumes are compared by: pieces, blocks in them, and digests of both.
//!
//! Pure. Guarantees: parts cover an extent exactly and in order, cut at multiples of their size from byte 0 of
//! the volume, so that both ends cut alike; readings are the parts in their order, none left out.

use std::iter::from_fn;

use crate::extent::Extent;

/// What is compared first, and read at most in one go.
pub const PIECE_BYTES: u64 = 1 << 20;
/// What is looked at closer in a piece that differs. To make digests of parts of this size costs hardly more than of
/// the whole piece; of blocks it would cost twice as much.
pub const PART_BYTES: u64 = 16 << 10;
/// What a difference is told by.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes of a digest.
pub const DIGEST_BYTES: usize = blake3::OUT_LEN;

/// BLAKE3 of some bytes of a volume.
pub type Digest = [u8; DIGEST_BYTES];

/// The digest of `bytes`, which are no more than a part.
pub fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

/// The digest of what is more than a part: of the digests of its parts.
pub fn digest_of_parts(parts: &[Digest]) -> Digest {
    digest(parts.as_flattened())
}

/// The parts of `extent`, cut at the multiples of `size`.
pub fn cut(extent: Extent, size: u64) -> impl Iterator<Item = Extent> + Clone {
    let size = size.max(1);
    let mut position = extent.offset();
    from_fn(move || {
        let boundary = (position / size + 1).saturating_mul(size);
        let part = Extent::from_range(position, extent.end().min(boundary))?;
        position = part.end();
        Some(part)
    })
}

/// How many parts [`cut`] makes.
pub fn parts(extent: Extent, size: u64) -> u64 {
    let size = size.max(1);
    (extent.end() - 1) / size - extent.offset() / size + 1
}

/// Adds the runs of blocks of `extent` in which its bytes in `one` and in `other` differ.
pub fn differing_runs(extent: Extent, one: &[u8], other: &[u8], runs: &mut Vec<Extent>) {
    if one == other {
        return;
    }
    let mut rest = (one, other);
    let mut run: Option<Extent> = None;
    for block in cut(extent, BLOCK_BYTES) {
        let length = usize_of(block.length());
        let (a, after_a) = rest.0.split_at(length.min(rest.0.len()));
        let (b, after_b) = rest.1.split_at(length.min(rest.1.len()));
        if a != b {
            run = Extent::from_range(run.map_or(block.offset(), |run| run.offset()), block.end());
        } else {
            runs.extend(run.take());
        }
        rest = (after_a, after_b);
    }
    runs.extend(run);
}

/// Some parts that are near each other, to be read in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What to read: from the first part to the end of the last.
    pub span: Extent,
    /// What of it is wanted, ascending.
    pub parts: Vec<Extent>,
}

impl Reading {
    /// The bytes of each part in `buffer`, which holds the span.
    pub fn bytes_of<'a>(&'a self, buffer: &'a [u8]) -> impl Iterator<Item = (Extent, &'a [u8])> {
        self.parts.iter().map(|part| {
            let start = usize_of(part.offset() - self.span.offset());
            let bytes = buffer.get(start..start + usize_of(part.length()));
            (*part, bytes.unwrap_or_default())
        })
    }
}

/// Ascending parts, put together where they are at most `gap` bytes apart and fit a piece.
pub fn readings(parts: impl Iterator<Item = Extent>, gap: u64) -> impl Iterator<Item = Reading> {
    let mut parts = parts.peekable();
    from_fn(move || {
        let first = parts.next()?;
        let mut reading = Reading {
            span: first,
            parts: vec![first],
        };
        let fits = |span: Extent, next: &Extent| {
            next.offset().saturating_sub(span.end()) <= gap
                && next.end() - span.offset() <= PIECE_BYTES
        };
        while let Some(next) = parts.next_if(|next| fits(reading.span, next)) {
            reading.span = Extent::from_range(first.offset(), next.end()).unwrap_or(reading.span);
            reading.parts.push(next);
        }
        Some(reading)
    })
}

/// Lengths here are at most a few MiB.
pub fn usize_of(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// True if every byte is zero. Written so that the compiler makes wide instructions of it.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut wide = bytes.chunks_exact(64);
    wide.by_ref()
        .all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
        && wide.remainder().iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_and_begin_at_multiples(
            offset in 0u64..100_000, length in 1u64..50_000, size in 1u64..9000,
        ) {
            let extent = Extent::new(offset, length).unwrap();
            let all: Vec<Extent> = cut(extent, size).collect();
            prop_assert_eq!(all.len() as u64, parts(extent, size));
            prop_assert_eq!(all[0].offset(), offset);
            prop_assert_eq!(all[all.len() - 1].end(), extent.end());
            for pair in all.windows(2) {
                prop_assert_eq!(pair[0].end(), pair[1].offset());
                prop_assert_eq!(pair[1].offset() % size, 0);
            }
            prop_assert!(all.iter().all(|part| part.length() <= size));
        }

        #[test]
        fn readings_are_the_parts_and_short(
            gaps in prop::collection::vec((0u64..70_000, 1u64..=PIECE_BYTES, any::<bool>()), 0..30),
        ) {
            let mut position = 0;
            let mut all = Vec::new();
            for (gap, length, small) in gaps {
                let length = if small { length % 5000 + 1 } else { length };
                all.push(Extent::new(position + gap, length).unwrap());
                position += gap + length;
            }
            let mut seen = Vec::new();
            for reading in readings(all.iter().copied(), 16 << 10) {
                prop_assert!(reading.span.length() <= PIECE_BYTES);
                prop_assert_eq!(reading.span.offset(), reading.parts[0].offset());
                prop_assert_eq!(reading.span.end(), reading.parts[reading.parts.len() - 1].end());
                let buffer = vec![0; usize_of(reading.span.length())];
                for (part, bytes) in reading.bytes_of(&buffer) {
                    prop_assert_eq!(part.length(), bytes.len() as u64);
                }
                seen.extend(reading.parts);
            }
            prop_assert_eq!(seen, all);
        }
    }

    #[test]
    fn the_end_of_what_an_offset_can_be_is_no_special_place() {
        let last = Extent::from_range(i64::MAX as u64 - 5000, i64::MAX as u64).unwrap();
        let all: Vec<Extent> = cut(last, PIECE_BYTES).collect();
        assert_eq!(all.iter().map(|part| part.length()).sum::<u64>(), 5000);
    }
}
