//! Chunks of one size as a bitmap: a change list in which all is data and only the last chunk may be cut.
//!
//! Guarantees: extents come out ascending, disjoint and coalesced; every chunk whose bit is set is in one of
//! them, up to the end of the list.

use std::slice;

use super::ChangeList;
use super::unchanged::{Stretch, gaps};
use crate::extent::{Change, Extent, Kind, MAX_OFFSET};
use crate::sys::ones::count_ones;

/// Words that are counted in one go.
const GROUP_WORDS: usize = 64;

/// One bit for each chunk.
#[derive(Clone)]
pub(super) struct ChunkBits {
    chunk_bytes: u64,
    /// Where the last chunk is cut. No bit is set for a chunk that begins here or later.
    end: u64,
    words: Vec<u64>,
}

impl ChunkBits {
    /// The first chunk is the lowest bit of the first word.
    pub(super) fn new(chunk_bytes: u64, words: Vec<u64>) -> Self {
        let mut chunks = Self {
            chunk_bytes: chunk_bytes.max(1),
            end: u64::MAX,
            words,
        };
        chunks.clip(MAX_OFFSET);
        chunks
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    pub(super) fn extents(&self) -> Extents<'_> {
        self.extents_from(0)
    }

    /// Those that begin in this word, and what is left from there on of one that begins before.
    fn extents_from(&self, word: usize) -> Extents<'_> {
        let words = self.words.get(word..).unwrap_or_default();
        Extents {
            runs: Runs {
                words: words.iter(),
                word: 0,
                next_chunk: word as u64 * 64,
            },
            chunk_bytes: self.chunk_bytes,
            end: self.end,
        }
    }

    pub(super) fn count_extents(&self) -> usize {
        // A chunk goes on what the one before it began.
        let mut going_on = [0; GROUP_WORDS];
        let mut carry = 0;
        let mut count = 0;
        for group in self.words.chunks(GROUP_WORDS) {
            for (place, word) in going_on.iter_mut().zip(group) {
                *place = word & (word << 1 | carry);
                carry = word >> 63;
            }
            count += count_ones(group) - count_ones(&going_on[..group.len()]);
        }
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes_between(0, self.end)
    }

    pub(super) fn bytes_between(&self, start: u64, end: u64) -> u64 {
        let end = end.min(self.end);
        if start >= end {
            return 0;
        }
        let (first, last) = (start / self.chunk_bytes, (end - 1) / self.chunk_bytes);
        let mut bytes = self.count(first, last) * self.chunk_bytes;
        if self.count(first, first) == 1 {
            bytes -= start - first * self.chunk_bytes;
        }
        if self.count(last, last) == 1 {
            bytes -= last * self.chunk_bytes + (self.chunk_bytes - 1) - (end - 1);
        }
        bytes
    }

    /// Chunks from `first` to `last`, both included.
    fn count(&self, first: u64, last: u64) -> u64 {
        let Some((first_word, first_bit)) = self.place(first) else {
            return 0;
        };
        let from_first = u64::MAX << first_bit;
        let (last_word, up_to_last) = match self.place(last) {
            Some((word, bit)) => (word, u64::MAX >> (63 - bit)),
            None => (self.words.len() - 1, u64::MAX),
        };
        let ones = |word: u64| u64::from(word.count_ones());
        if first_word == last_word {
            return ones(self.words[first_word] & from_first & up_to_last);
        }
        ones(self.words[first_word] & from_first)
            + count_ones(&self.words[first_word + 1..last_word])
            + ones(self.words[last_word] & up_to_last)
    }

    /// Word and bit of a chunk, if there is one for it.
    fn place(&self, chunk: u64) -> Option<(usize, u64)> {
        let word = usize::try_from(chunk / 64).ok()?;
        (word < self.words.len()).then_some((word, chunk % 64))
    }

    /// Adds all of `other`, or nothing and says so: where not all of it is whole chunks of this size.
    pub(super) fn add(&mut self, other: &ChangeList) -> bool {
        if let super::Form::Chunks(other) = &other.form
            && (other.chunk_bytes, other.end, other.words.len())
                == (self.chunk_bytes, self.end, self.words.len())
        {
            for (word, more) in self.words.iter_mut().zip(&other.words) {
                *word |= more;
            }
            return true;
        }
        if !other.iter().all(|change| self.holds_exactly(change)) {
            return false;
        }
        for Change { extent, .. } in other.iter() {
            let chunks =
                extent.offset() / self.chunk_bytes..extent.end().div_ceil(self.chunk_bytes);
            for chunk in chunks {
                if let Some((word, bit)) = self.place(chunk) {
                    self.words[word] |= 1 << bit;
                }
            }
        }
        true
    }

    /// True for whole chunks of data for which there are bits.
    fn holds_exactly(&self, change: Change) -> bool {
        let (start, end) = (change.extent.offset(), change.extent.end());
        let ends_well = end.is_multiple_of(self.chunk_bytes) || end == self.end;
        change.kind == Kind::Data
            && start.is_multiple_of(self.chunk_bytes)
            && ends_well
            && end <= self.end
            && self.place((end - 1) / self.chunk_bytes).is_some()
    }

    /// Takes off what is at `size_bytes` and above. False if there is nothing.
    pub(super) fn clip(&mut self, size_bytes: u64) -> bool {
        if size_bytes >= self.end {
            return false;
        }
        self.end = size_bytes;
        let chunks = size_bytes.div_ceil(self.chunk_bytes);
        if let Some((word, bit)) = self.place(chunks) {
            self.words.truncate(word + 1);
            self.words[word] &= (1 << bit) - 1;
        }
        true
    }

    /// What is not in the list, below `size_bytes`, as whole blocks.
    pub(super) fn unchanged(
        &self,
        size_bytes: u64,
        block_bytes: u64,
    ) -> impl Iterator<Item = Stretch<'_>> {
        // Words of which every chunk is whole, and whole blocks.
        let words = if self.chunk_bytes.is_multiple_of(block_bytes) {
            let whole = size_bytes.min(self.end) / self.chunk_bytes / 64;
            usize::try_from(whole).map_or(0, |whole| whole.min(self.words.len()))
        } else {
            0
        };
        let word_bytes = 64 * self.chunk_bytes;
        let groups = self.words[..words].chunks(GROUP_WORDS).zip(0_u64..);
        let groups = groups.map(move |(group, number)| {
            Stretch::of_bits(
                number * GROUP_WORDS as u64 * word_bytes,
                group,
                self.chunk_bytes / block_bytes,
                block_bytes,
            )
        });
        let rest = gaps(
            self.extents_from(words),
            words as u64 * word_bytes,
            size_bytes,
        );
        groups.chain(rest.map(move |gap| Stretch::of_gap(gap, block_bytes)))
    }
}

/// The extents of a bitmap in ascending order.
#[derive(Clone)]
pub(super) struct Extents<'a> {
    runs: Runs<'a>,
    chunk_bytes: u64,
    end: u64,
}

impl Extents<'_> {
    #[inline]
    fn extent(&self, (first, end): (u64, u64)) -> Option<Extent> {
        let end = end.saturating_mul(self.chunk_bytes).min(self.end);
        Extent::from_range(first.saturating_mul(self.chunk_bytes), end)
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    #[inline]
    fn next(&mut self) -> Option<Extent> {
        let run = self.runs.next()?;
        self.extent(run)
    }

    fn nth(&mut self, n: usize) -> Option<Extent> {
        let run = self.runs.nth(n)?;
        self.extent(run)
    }
}

/// The runs of set bits, as (first, one past the last), in ascending order.
#[derive(Clone)]
struct Runs<'a> {
    words: slice::Iter<'a, u64>,
    /// What is left of the current word.
    word: u64,
    /// The number of the bit after the current word.
    next_chunk: u64,
}

impl Runs<'_> {
    #[inline]
    fn next_word(&mut self) -> Option<()> {
        self.word = *self.words.next()?;
        self.next_chunk += 64;
        Some(())
    }

    /// Goes on to where the run ends that reaches the end of the current word, and gives that place.
    fn end_of_run(&mut self) -> u64 {
        loop {
            let end_so_far = self.next_chunk;
            self.word = 0;
            if self.next_word().is_none() {
                return end_so_far;
            }
            let ones = self.word.trailing_ones();
            if ones < 64 {
                self.word &= self.word.wrapping_add(1);
                return end_so_far + u64::from(ones);
            }
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    #[inline]
    fn next(&mut self) -> Option<(u64, u64)> {
        while self.word == 0 {
            self.next_word()?;
        }
        let first = self.word.trailing_zeros();
        let start = self.next_chunk - 64 + u64::from(first);
        // Adding the lowest set bit carries through its run: what comes out set first is the run's end.
        let (carried, past_the_word) = self.word.overflowing_add(1 << first);
        if past_the_word {
            return Some((start, self.end_of_run()));
        }
        self.word &= carried;
        let end = self.next_chunk - 64 + u64::from(carried.trailing_zeros());
        Some((start, end))
    }

    /// Counts the runs in a word instead of going through them.
    fn nth(&mut self, mut n: usize) -> Option<(u64, u64)> {
        loop {
            let runs = (self.word & !(self.word << 1)).count_ones() as usize;
            if n < runs {
                break;
            }
            n -= runs;
            if self.word >> 63 == 1 {
                self.end_of_run();
            } else {
                self.word = 0;
                self.next_word()?;
            }
        }
        for _ in 0..n {
            self.next()?;
        }
        self.next()
    }
}
