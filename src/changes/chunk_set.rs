//! A set of chunk numbers that arrive in any order and leave as a change list.
//!
//! Guarantees: no chunk that was added is missing from the list; chunks below the limit cost at most
//! 32 MiB beside the list, however many there are and however often they come.

use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::extent::{Extent, Kind, MAX_OFFSET};

/// A volume of up to 2^28 chunks (1 TiB of 4 KiB chunks) is a bitmap of at most 32 MiB.
const MAX_BITMAP_WORDS: usize = (32 << 20) / 8;
/// Above that, chunk numbers are collected and sorted in batches of 32 MiB.
const BATCH_CHUNKS: usize = (32 << 20) / 8;

/// Chunks of one size.
pub(super) enum ChunkSet {
    /// For a volume that fits a bitmap: time linear in chunks added and in the bitmap.
    Bits(Bits),
    /// For a larger one.
    Sorted(Sorted),
}

impl ChunkSet {
    /// An empty set of chunks below `limit`.
    pub(super) fn new(chunk_bytes: u64, limit: u64) -> Self {
        match usize::try_from(limit.div_ceil(64)) {
            Ok(words) if words <= MAX_BITMAP_WORDS => ChunkSet::Bits(Bits {
                chunk_bytes,
                words: vec![0; words],
            }),
            _ => ChunkSet::Sorted(Sorted {
                chunk_bytes,
                batch: Vec::new(),
                builder: ChangeListBuilder::default(),
            }),
        }
    }

    /// The chunks as data, each whole.
    pub(super) fn into_changes(self) -> ChangeList {
        match self {
            ChunkSet::Bits(bits) => bits.into_changes(),
            ChunkSet::Sorted(sorted) => sorted.into_changes(),
        }
    }
}

/// One bit for each chunk.
pub(super) struct Bits {
    chunk_bytes: u64,
    words: Vec<u64>,
}

impl Bits {
    /// Adds a chunk, which must be below the set's limit.
    #[inline]
    pub(super) fn add(&mut self, chunk: u64) {
        let index = usize::try_from(chunk / 64).unwrap_or(usize::MAX);
        debug_assert!(
            index < self.words.len(),
            "chunk {chunk} is checked by the caller"
        );
        if let Some(word) = self.words.get_mut(index) {
            *word |= 1 << (chunk % 64);
        }
    }

    fn into_changes(self) -> ChangeList {
        ChangeList::from_chunks(self.chunk_bytes, self.words)
    }
}

/// Chunk numbers, sorted a batch at a time.
pub(super) struct Sorted {
    chunk_bytes: u64,
    batch: Vec<u64>,
    builder: ChangeListBuilder,
}

impl Sorted {
    /// Adds a chunk.
    #[inline]
    pub(super) fn add(&mut self, chunk: u64) {
        if self.batch.len() == BATCH_CHUNKS {
            self.flush();
        }
        self.batch.push(chunk);
    }

    fn flush(&mut self) {
        self.batch.sort_unstable();
        let mut chunks = self.batch.iter().copied().peekable();
        while let Some(start) = chunks.next() {
            let mut end = start.saturating_add(1);
            while let Some(next) = chunks.next_if(|next| *next <= end) {
                end = next.saturating_add(1);
            }
            if let Some(extent) = extent_of_chunks(start, end, self.chunk_bytes) {
                self.builder.push(extent, Kind::Data);
            }
        }
        self.batch.clear();
    }

    fn into_changes(mut self) -> ChangeList {
        self.flush();
        drop(self.batch);
        self.builder.finish()
    }
}

/// Only the round-up of a volume's last chunk can pass the largest offset, and then it is cut there.
#[inline]
fn extent_of_chunks(start: u64, end: u64, chunk_bytes: u64) -> Option<Extent> {
    let end = end.saturating_mul(chunk_bytes).min(MAX_OFFSET);
    Extent::from_range(start.saturating_mul(chunk_bytes), end)
}
