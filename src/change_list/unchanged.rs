//! What a change list leaves alone, and blocks at even distances in it.
//!
//! Guarantees: a block that comes out lies wholly below the given size and outside the list.

use crate::extent::Extent;

/// The parts of `position..size_bytes` outside of `extents`, which are ascending.
pub(super) fn gaps(
    extents: impl Iterator<Item = Extent>,
    mut position: u64,
    size_bytes: u64,
) -> impl Iterator<Item = Extent> {
    let bounds = extents.map(|extent| (extent.offset(), extent.end()));
    let end = std::iter::once((size_bytes, size_bytes));
    bounds.chain(end).filter_map(move |(start, end)| {
        let gap = Extent::from_range(position, start.min(size_bytes));
        position = position.max(end);
        gap
    })
}

/// Some unchanged blocks that can be counted without looking at each.
#[derive(Clone, Copy)]
pub(super) enum Stretch {
    /// Blocks that follow each other.
    Run {
        start: u64,
        blocks: u64,
        block_bytes: u64,
    },
    /// The chunks at `start` whose bits are set, each of so many blocks.
    Bits {
        start: u64,
        bits: u64,
        blocks_each: u64,
        block_bytes: u64,
    },
}

impl Stretch {
    /// The whole blocks of a gap.
    pub(super) fn of_gap(gap: Extent, block_bytes: u64) -> Self {
        let start = gap.offset().next_multiple_of(block_bytes);
        Self::Run {
            start,
            blocks: gap.end().saturating_sub(start) / block_bytes,
            block_bytes,
        }
    }

    #[inline]
    fn blocks(self) -> u64 {
        match self {
            Self::Run { blocks, .. } => blocks,
            Self::Bits {
                bits, blocks_each, ..
            } => u64::from(bits.count_ones()) * blocks_each,
        }
    }

    /// Where the block with this number, which is below [`blocks`](Self::blocks), begins.
    fn offset(self, block: u64) -> u64 {
        match self {
            Self::Run {
                start, block_bytes, ..
            } => start + block * block_bytes,
            Self::Bits {
                start,
                mut bits,
                blocks_each,
                block_bytes,
            } => {
                for _ in 0..block / blocks_each {
                    bits &= bits.wrapping_sub(1);
                }
                let chunk = u64::from(bits.trailing_zeros());
                start + (chunk * blocks_each + block % blocks_each) * block_bytes
            }
        }
    }
}

/// Every n-th block, where n is as small as gives no more than `most`.
pub(super) fn spread<I: Iterator<Item = Stretch>>(
    most: u64,
    stretches: impl Fn() -> I,
) -> Vec<u64> {
    let total: u64 = stretches().map(Stretch::blocks).sum();
    let step = total.div_ceil(most.max(1)).max(1);
    let mut found = Vec::new();
    let mut skip = step / 2;
    for stretch in stretches() {
        let blocks = stretch.blocks();
        while skip < blocks {
            found.push(stretch.offset(skip));
            skip += step;
        }
        skip -= blocks;
    }
    found
}
