//! The blocks that were written since an era: the union of its writeset, all later ones, and what the era array
//! says.
//!
//! Guarantees: every block that may have been written is in a run; runs ascend and do not touch; memory is one
//! bitmap of a part of the device, however large the device is; a list ends where the volume ends.

use std::ops::Range;

use super::error::{EraError, Result, Tree};
use super::{EraMetadata, Writeset};
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::extent::{Extent, Kind};

/// Blocks that are looked at together: a bitmap of 16 MiB.
const WINDOW_BLOCKS: u64 = 1 << 27;

impl EraMetadata<'_> {
    /// What may differ in a volume of `size_bytes` from what it held when era `since` began: what was written in
    /// that era or later, and all from `base_bytes` on, which was its size then.
    pub fn changes(&self, since: u32, base_bytes: u64, size_bytes: u64) -> Result<ChangeList> {
        let (blocks, block_bytes) = (self.superblock.blocks, self.block_bytes());
        if size_bytes.div_ceil(block_bytes) > blocks.into() {
            return Err(EraError::VolumeSize {
                blocks,
                block_bytes,
                size_bytes,
            });
        }
        let mut list = ChangeListBuilder::default();
        self.written_since(since, |run| {
            // A number of blocks has 32 bits, and one of bytes in a block 41.
            let [start, end] = [run.start, run.end].map(|block| block.saturating_mul(block_bytes));
            if let Some(extent) = Extent::from_range(start, end.min(size_bytes)) {
                list.push(extent, Kind::Data);
            }
        })?;
        if let Some(tail) = Extent::from_range(base_bytes, size_bytes) {
            list.push(tail, Kind::Data);
        }
        Ok(list.finish())
    }

    /// Every run of blocks that were written in era `since` or later, ascending.
    pub fn written_since(&self, since: u32, visit: impl FnMut(Range<u64>)) -> Result<()> {
        self.written_in_windows(since, WINDOW_BLOCKS, visit)
    }

    /// `window` is a multiple of 64.
    pub(super) fn written_in_windows(
        &self,
        since: u32,
        window: u64,
        mut visit: impl FnMut(Range<u64>),
    ) -> Result<()> {
        if since == 0 {
            return Err(EraError::EraZero);
        }
        let current = self.superblock.current_era;
        if since > current {
            return Err(EraError::NotBegun { since, current });
        }
        let writesets = self.writesets(since)?;
        let blocks = u64::from(self.superblock.blocks);
        let mut open: Option<Range<u64>> = None;
        let mut start = 0;
        loop {
            let part = start..blocks.min(start + window);
            let set = self.part(since, &writesets, part.clone())?;
            set.runs(|run| match &mut open {
                Some(open) if open.end == run.start => open.end = run.end,
                _ => {
                    if let Some(run) = open.replace(run) {
                        visit(run);
                    }
                }
            });
            if part.end == blocks {
                break;
            }
            start = part.end;
        }
        open.into_iter().for_each(visit);
        Ok(())
    }

    fn part(&self, since: u32, writesets: &[Writeset], part: Range<u64>) -> Result<Part> {
        let mut set = Part::new(part.clone());
        // No two arrays of one moment share a block, so all of them together have fewer than there are.
        let mut left = self.blocks.count;
        let current = self.superblock.current_era;
        let mut newest = 0;
        let array = self.era_array();
        array.read(&self.blocks, part.clone(), &mut left, |first, values| {
            for (block, era) in (first..).zip(values.as_chunks().0) {
                let era = u32::from_le_bytes(*era);
                newest = newest.max(era);
                if era >= since {
                    set.add(block);
                }
            }
            Ok(())
        })?;
        if newest > current {
            return Err(EraError::EraToCome {
                tree: Tree::EraArray,
                found: newest.into(),
                current,
            });
        }
        for writeset in writesets {
            let words = part.start / 64..part.end.div_ceil(64);
            let bits = writeset.bits();
            bits.read(&self.blocks, words, &mut left, |first, values| {
                for (word, bits) in (first..).zip(values.as_chunks().0) {
                    set.add_word(word, u64::from_le_bytes(*bits));
                }
                Ok(())
            })?;
            // The device has grown since that era: what it has more was not in its old state.
            set.add_from(writeset.blocks.into());
        }
        Ok(set)
    }
}

/// Blocks of a part of the device, one bit for each. What is not in the part is left out.
struct Part {
    blocks: Range<u64>,
    words: Vec<u64>,
}

impl Part {
    fn new(blocks: Range<u64>) -> Self {
        let words = blocks.end.div_ceil(64) - blocks.start / 64;
        let words = vec![0; usize::try_from(words).unwrap_or(usize::MAX)];
        Self { blocks, words }
    }

    #[inline]
    fn add(&mut self, block: u64) {
        self.add_word(block / 64, 1 << (block % 64));
    }

    /// The word with this index in a bitmap of the whole device.
    #[inline]
    fn add_word(&mut self, index: u64, bits: u64) {
        let here = index.checked_sub(self.blocks.start / 64);
        let here = here.and_then(|here| usize::try_from(here).ok());
        if let Some(word) = here.and_then(|here| self.words.get_mut(here)) {
            *word |= bits;
        }
    }

    /// All blocks from this one on.
    fn add_from(&mut self, block: u64) {
        let mut block = block.max(self.blocks.start);
        while block < self.blocks.end {
            self.add_word(block / 64, u64::MAX << (block % 64));
            block = (block / 64 + 1) * 64;
        }
    }

    fn runs(&self, mut visit: impl FnMut(Range<u64>)) {
        let first_word = self.blocks.start / 64;
        for (index, word) in (first_word..).zip(&self.words) {
            let mut word = *word;
            while word != 0 {
                let start = word.trailing_zeros();
                let ones = (word >> start).trailing_ones();
                let end = start + ones;
                word = if end == 64 { 0 } else { word >> end << end };
                let run = index * 64 + u64::from(start)..index * 64 + u64::from(end);
                // A last word may have bits past the end of the device.
                let run = run.start..run.end.min(self.blocks.end);
                if !run.is_empty() {
                    visit(run);
                }
            }
        }
    }
}
