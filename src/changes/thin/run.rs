//! Runs of thin blocks, joined as single blocks arrive in order.
//!
//! Guarantees: what comes out is what was pushed, in order, in as few runs as there can be.

use super::diff::{Difference, Now};
use crate::extent::Extent;

/// Thin blocks that follow each other. A thin block is a piece of a thin device, as large as a block of its
/// pool; the first is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first one.
    pub start: u64,
    /// How many; never 0.
    pub blocks: u64,
}

impl Run {
    /// The bytes of a volume of `size_bytes` that these blocks are; `None` if they are all past its end.
    pub fn extent(self, block_bytes: u64, size_bytes: u64) -> Option<Extent> {
        // No volume has the bytes that do not fit the number.
        let start = self.start.checked_mul(block_bytes)?;
        let length = self.blocks.saturating_mul(block_bytes);
        Extent::from_range(start, start.saturating_add(length).min(size_bytes))
    }
}

/// Joins neighbours of one kind and passes the runs on.
pub(super) struct Joiner<F: FnMut(Difference)> {
    open: Option<Difference>,
    visit: F,
}

impl<F: FnMut(Difference)> Joiner<F> {
    pub(super) fn new(visit: F) -> Self {
        Self { open: None, visit }
    }

    #[inline]
    pub(super) fn push(&mut self, now: Now, block: u64) {
        if let Some(open) = &mut self.open
            && open.now == now
            && open.run.start.checked_add(open.run.blocks) == Some(block)
        {
            open.run.blocks += 1;
            return;
        }
        self.finish();
        let run = Run {
            start: block,
            blocks: 1,
        };
        self.open = Some(Difference { run, now });
    }

    /// Passes the last run on.
    pub(super) fn finish(&mut self) {
        if let Some(open) = self.open.take() {
            (self.visit)(open);
        }
    }
}
