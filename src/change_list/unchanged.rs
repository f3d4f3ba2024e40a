//! What a change list leaves alone, and blocks at even distances in it.
//!
//! Guarantees: a block that comes out lies wholly below the given size and outside the list.

use crate::extent::Extent;
use crate::sys::ones::count_ones;

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
pub(super) struct Stretch<'a> {
    start: u64,
    blocks: u64,
    block_bytes: u64,
    /// If there are any: the bits of chunks from `start` on of which those are unchanged that are not set;
    /// else it is blocks that follow each other.
    changed: &'a [u64],
    /// In a chunk.
    blocks_each: u64,
}

impl<'a> Stretch<'a> {
    /// The whole blocks of a gap.
    pub(super) fn of_gap(gap: Extent, block_bytes: u64) -> Self {
        let start = gap.offset().next_multiple_of(block_bytes);
        Self {
            start,
            blocks: gap.end().saturating_sub(start) / block_bytes,
            block_bytes,
            changed: &[],
            blocks_each: 1,
        }
    }

    /// Chunks of so many blocks each, from `start` on, of which some are changed.
    pub(super) fn of_bits(
        start: u64,
        changed: &'a [u64],
        blocks_each: u64,
        block_bytes: u64,
    ) -> Self {
        let chunks = changed.len() as u64 * 64;
        Self {
            start,
            blocks: (chunks - count_ones(changed)) * blocks_each,
            block_bytes,
            changed,
            blocks_each,
        }
    }

    /// Where the block with this number, which is one of them, begins.
    fn offset(&self, block: u64) -> u64 {
        let mut chunks = block / self.blocks_each;
        for (word, number) in self.changed.iter().zip(0_u64..) {
            let mut unchanged = !word;
            let here = u64::from(unchanged.count_ones());
            if chunks >= here {
                chunks -= here;
                continue;
            }
            for _ in 0..chunks {
                unchanged &= unchanged - 1;
            }
            let chunk = number * 64 + u64::from(unchanged.trailing_zeros());
            let blocks = chunk * self.blocks_each + block % self.blocks_each;
            return self.start + blocks * self.block_bytes;
        }
        self.start + block * self.block_bytes
    }
}

/// Every n-th block, where n is as small as gives no more than `most`.
pub(super) fn spread<'a, I: Iterator<Item = Stretch<'a>>>(
    most: u64,
    stretches: impl Fn() -> I,
) -> Vec<u64> {
    let total: u64 = stretches().map(|stretch| stretch.blocks).sum();
    let step = total.div_ceil(most.max(1)).max(1);
    let mut found = Vec::new();
    let mut skip = step / 2;
    for stretch in stretches() {
        while skip < stretch.blocks {
            found.push(stretch.offset(skip));
            skip += step;
        }
        skip -= stretch.blocks;
    }
    found
}
