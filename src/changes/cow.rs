//! Reads the exception store of a classic snapshot (dm-snapshot, persistent, version 1).
//!
//! Guarantees: the list holds every chunk that the table names, or there is no list. A store that the
//! kernel has given up on, that is damaged, or that is a cut copy is an error, never a shorter list.
//! Memory is at most 48 MiB plus 16 bytes for each extent. Nothing is written.
//!
//! The format is the kernel's (drivers/md/dm-snap-persistent.c), all little-endian:
//!
//! ```text
//! chunk 0            header: u32 magic "SnAp", u32 valid, u32 version, u32 chunk size in sectors
//! chunk 1            area 0: one chunk of entries {u64 old_chunk, u64 new_chunk}
//! chunk 2 ..         the data of area 0, one chunk for each entry
//! chunk 1 + k*(e+1)  area k, where e = chunk size / 16 is the number of entries in an area
//! ```
//!
//! The first entry with `new_chunk` 0 ends the table.

use std::io;

use crate::error::ExitCode;
use crate::extent::{ChangeList, ChangeListBuilder, Extent, Kind, MAX_OFFSET};
use crate::units::{MIB, SECTOR_BYTES};
use crate::volume::ReadAt;

/// The bytes `SnAp`, read as a little-endian number.
pub const MAGIC: u32 = 0x7041_6e53;
/// The only version of the format that the kernel has ever written.
pub const VERSION: u32 = 1;
/// Bytes of the header that mean something; the rest of its chunk is padding.
pub const HEADER_BYTES: usize = 16;
/// Bytes of one entry of an area.
pub const ENTRY_BYTES: usize = 16;
/// The largest chunk that is accepted. LVM stops at 512 KiB; the kernel would take 1 GiB, but one chunk
/// has to fit in memory.
pub const MAX_CHUNK_BYTES: u64 = 16 * MIB;

/// Reads with O_DIRECT want memory, offsets and lengths that are multiples of the logical block.
const BLOCK_BYTES: usize = 4096;
/// An origin of up to 2^28 chunks (1 TiB of 4 KiB chunks) is collected in a bitmap of at most 32 MiB.
const MAX_BITMAP_WORDS: usize = (32 << 20) / 8;
/// Above that, chunk numbers are collected and sorted in batches of 32 MiB.
const BATCH_CHUNKS: usize = (32 << 20) / 8;

/// What makes a store unusable. Offsets are bytes in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// All-zero magic: the kernel would format it on first use.
    #[error(
        "it was never written: the snapshot has not been active yet, so it has tracked nothing"
    )]
    NeverWritten,
    /// Some other magic.
    #[error(
        "it does not begin with the magic of an exception store \
         (found {found:#010x}, expected {MAGIC:#010x})"
    )]
    WrongMagic {
        /// The four bytes at offset 0.
        found: u32,
    },
    /// The kernel clears `valid` when a snapshot overflows or fails.
    #[error(
        "it is marked invalid ({found}): the snapshot overflowed or failed, and stopped tracking"
    )]
    Invalid {
        /// The field's value.
        found: u32,
    },
    /// Not version 1.
    #[error("it has format version {found}; only version {VERSION} is known")]
    UnknownVersion {
        /// The field's value.
        found: u32,
    },
    /// Not a power of two, or outside 512 B to 16 MiB.
    #[error(
        "its chunk size of {found_sectors} sectors is not a power of two from 1 to {max}",
        max = MAX_CHUNK_BYTES / SECTOR_BYTES
    )]
    ChunkSize {
        /// The field's value.
        found_sectors: u32,
    },
    /// The caller's origin size cannot be the size of a device.
    #[error("the origin's size of {found} bytes is larger than a device can be")]
    OriginSize {
        /// What was passed in.
        found: u64,
    },
    /// The store ends inside the header or inside an area, or before an area that must be there.
    #[error(
        "it is cut short: {part} needs the bytes from {offset} to {expected_end}, \
         but the store ends at {found_end}"
    )]
    Truncated {
        /// `the header` or `area N of the table`.
        part: String,
        /// Where the part begins.
        offset: u64,
        /// Where the part should end.
        expected_end: u64,
        /// Size of the store in bytes.
        found_end: u64,
    },
    /// An entry names a chunk that the origin does not have.
    #[error(
        "the entry at offset {offset} names chunk {found} of the origin, \
         which has only {expected_below} chunks"
    )]
    OldChunk {
        /// Where the entry is.
        offset: u64,
        /// The entry's `old_chunk`.
        found: u64,
        /// Number of chunks of the origin, the last one perhaps partial.
        expected_below: u64,
    },
    /// An entry's saved data would lie outside the store.
    #[error(
        "the entry at offset {offset} says its data is in chunk {found}, \
         but the store ends after {expected_below} chunks: it is damaged or cut short"
    )]
    NewChunk {
        /// Where the entry is.
        offset: u64,
        /// The entry's `new_chunk`.
        found: u64,
        /// Number of whole chunks in the store.
        expected_below: u64,
    },
    /// An entry's saved data would lie on the header or on an area.
    #[error("the entry at offset {offset} says its data is in chunk {found}, which holds metadata")]
    NewChunkIsMetadata {
        /// Where the entry is.
        offset: u64,
        /// The entry's `new_chunk`.
        found: u64,
    },
    /// Reading failed.
    #[error("cannot read {length} bytes at offset {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// The system's answer.
        source: io::Error,
    },
}

impl StoreError {
    /// Tracking lost for a store that says too little; failed where the store could not be read at all.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            StoreError::Read { .. } | StoreError::OriginSize { .. } => ExitCode::Failed,
            _ => ExitCode::TrackingLost,
        }
    }
}

/// What a store says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExceptionTable {
    /// The snapshot's unit of tracking.
    pub chunk_bytes: u64,
    /// Entries in the table, duplicates included.
    pub exceptions: u64,
    /// Entries whose `old_chunk` was named before. The kernel lets the first win; for a list of what
    /// changed it makes no difference.
    pub duplicates: u64,
    /// Areas that were read.
    pub areas: u64,
    /// The chunks of the origin that are named, as data, clipped to the origin's size.
    pub changes: ChangeList,
}

/// Reads the whole table of `store`, the snapshot of an origin of `origin_size_bytes` (the size that the
/// *snapshot* has, which is what the kernel tracked, even if the origin has grown since).
///
/// One pass over the metadata; each area is read once, in one piece. On a live store the caller reads
/// with O_DIRECT, because the page cache of these devices is stale.
pub fn read_exceptions(
    store: &dyn ReadAt,
    origin_size_bytes: u64,
) -> Result<ExceptionTable, StoreError> {
    if origin_size_bytes > MAX_OFFSET {
        return Err(StoreError::OriginSize {
            found: origin_size_bytes,
        });
    }
    let layout = read_header(store)?;
    let origin_chunks = origin_size_bytes.div_ceil(layout.chunk_bytes());
    let words = usize::try_from(origin_chunks.div_ceil(64)).unwrap_or(usize::MAX);
    let (counts, changes) = if words <= MAX_BITMAP_WORDS {
        let mut bitmap = vec![0u64; words];
        let counts = read_areas(store, layout, origin_chunks, |chunk| {
            set_bit(&mut bitmap, chunk);
        })?;
        (counts, list_of_bits(&bitmap, layout.chunk_bytes()))
    } else {
        let mut batches = Batches::new(layout.chunk_bytes());
        let counts = read_areas(store, layout, origin_chunks, |chunk| batches.add(chunk))?;
        (counts, batches.finish())
    };
    // Every extent is a run of whole chunks here, so the distinct chunks can be counted from the bytes.
    let distinct = changes.total_bytes() / layout.chunk_bytes();
    Ok(ExceptionTable {
        chunk_bytes: layout.chunk_bytes(),
        exceptions: counts.exceptions,
        duplicates: counts.exceptions.saturating_sub(distinct),
        areas: counts.areas,
        changes: changes.clip(origin_size_bytes),
    })
}

/// Reads and checks the header of `store`.
pub fn read_header(store: &dyn ReadAt) -> Result<Layout, StoreError> {
    // A whole block where there is one, because O_DIRECT reads nothing smaller.
    let length = store.size_bytes().min(BLOCK_BYTES as u64);
    let mut buffer = AlignedBuffer::new(usize::try_from(length).unwrap_or(BLOCK_BYTES));
    read(store, buffer.bytes_mut(), 0)?;
    parse_header(buffer.bytes_mut())
}

/// Checks the first bytes of a store; at least [`HEADER_BYTES`] of them.
pub fn parse_header(bytes: &[u8]) -> Result<Layout, StoreError> {
    let (fields, _) = bytes.as_chunks::<4>();
    let [magic, valid, version, chunk_sectors, ..] = fields else {
        return Err(StoreError::Truncated {
            part: "the header".into(),
            offset: 0,
            expected_end: HEADER_BYTES as u64,
            found_end: bytes.len() as u64,
        });
    };
    match u32::from_le_bytes(*magic) {
        MAGIC => {}
        0 => return Err(StoreError::NeverWritten),
        found => return Err(StoreError::WrongMagic { found }),
    }
    let valid = u32::from_le_bytes(*valid);
    if valid != 1 {
        return Err(StoreError::Invalid { found: valid });
    }
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(StoreError::UnknownVersion { found: version });
    }
    let found_sectors = u32::from_le_bytes(*chunk_sectors);
    Layout::new(u64::from(found_sectors) * SECTOR_BYTES)
        .ok_or(StoreError::ChunkSize { found_sectors })
}

/// Where things are in a store: arithmetic over chunk numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    chunk_bytes: u64,
}

impl Layout {
    /// A store of chunks of this size; `None` unless it is a power of two from 512 B to 16 MiB.
    pub fn new(chunk_bytes: u64) -> Option<Self> {
        let allowed = SECTOR_BYTES..=MAX_CHUNK_BYTES;
        (chunk_bytes.is_power_of_two() && allowed.contains(&chunk_bytes))
            .then_some(Self { chunk_bytes })
    }

    /// Bytes of one chunk.
    pub fn chunk_bytes(self) -> u64 {
        self.chunk_bytes
    }

    /// Entries in one area.
    pub fn entries_per_area(self) -> u64 {
        self.chunk_bytes / ENTRY_BYTES as u64
    }

    /// The chunk that holds an area.
    pub fn area_chunk(self, area: u64) -> Option<u64> {
        area.checked_mul(self.entries_per_area() + 1)?
            .checked_add(1)
    }

    /// The chunk that the kernel gives to the exception with this index (from 0) in allocation order.
    pub fn data_chunk(self, index: u64) -> Option<u64> {
        let area = self.area_chunk(index / self.entries_per_area())?;
        area.checked_add(1 + index % self.entries_per_area())
    }

    /// The range of data chunks that `chunk` belongs to; `None` for the header and for areas.
    fn data_chunks_around(self, chunk: u64) -> Option<std::ops::Range<u64>> {
        let stride = self.entries_per_area() + 1;
        let position = chunk.checked_sub(1)? % stride;
        let start = chunk - position + 1;
        (position != 0).then(|| start..start.saturating_add(stride - 1))
    }
}

struct Counts {
    exceptions: u64,
    areas: u64,
}

/// Calls `add` with the checked `old_chunk` of every entry, in the table's order.
fn read_areas(
    store: &dyn ReadAt,
    layout: Layout,
    origin_chunks: u64,
    mut add: impl FnMut(u64),
) -> Result<Counts, StoreError> {
    let mut check = EntryCheck {
        layout,
        origin_chunks,
        store_chunks: store.size_bytes() / layout.chunk_bytes(),
        window_start: 0,
        window_length: 0,
    };
    let mut buffer =
        AlignedBuffer::new(usize::try_from(layout.chunk_bytes()).unwrap_or(BLOCK_BYTES));
    let mut counts = Counts {
        exceptions: 0,
        areas: 0,
    };
    loop {
        let offset = area_offset(store, layout, counts.areas)?;
        read(store, buffer.bytes_mut(), offset)?;
        counts.areas += 1;
        let (entries, _) = buffer.bytes_mut().as_chunks::<ENTRY_BYTES>();
        for (slot, entry) in entries.iter().enumerate() {
            let [old_chunk, new_chunk] = split_entry(entry);
            if new_chunk == 0 {
                return Ok(counts);
            }
            check.entry(old_chunk, new_chunk, || {
                offset + (slot * ENTRY_BYTES) as u64
            })?;
            add(old_chunk);
            counts.exceptions += 1;
        }
    }
}

/// Where an area begins, if all of it is inside the store.
///
/// This is also where a store stops that ends exactly after a full area. It has lost its tail: before
/// the kernel commits the entry that fills an area, it writes zeroes to the next one, and where that
/// fails it invalidates the snapshot instead. So a valid store with a full area had another one after
/// it, which may have held more entries. The kernel refuses to load such a store as well.
fn area_offset(store: &dyn ReadAt, layout: Layout, area: u64) -> Result<u64, StoreError> {
    let offset = layout
        .area_chunk(area)
        .and_then(|chunk| chunk.checked_mul(layout.chunk_bytes()));
    let end = offset.and_then(|offset| offset.checked_add(layout.chunk_bytes()));
    match (offset, end) {
        (Some(offset), Some(end)) if end <= store.size_bytes() => Ok(offset),
        _ => Err(StoreError::Truncated {
            part: format!("area {area} of the table"),
            offset: offset.unwrap_or(u64::MAX),
            expected_end: end.unwrap_or(u64::MAX),
            found_end: store.size_bytes(),
        }),
    }
}

fn split_entry(entry: &[u8; ENTRY_BYTES]) -> [u64; 2] {
    let both = u128::from_le_bytes(*entry);
    #[allow(clippy::cast_possible_truncation, reason = "the two halves are meant")]
    [both as u64, (both >> 64) as u64]
}

/// The bounds that each entry is held against. They also enforce the kernel's limit of 56 bits for a
/// chunk number: no device has that many chunks.
struct EntryCheck {
    layout: Layout,
    origin_chunks: u64,
    /// Whole chunks only: saved data always fills its chunk.
    store_chunks: u64,
    /// Data chunks known to be good. Entries come in allocation order, nearly all in the window of the
    /// one before, and that saves a division for each of millions of entries.
    window_start: u64,
    window_length: u64,
}

impl EntryCheck {
    #[inline]
    fn entry(
        &mut self,
        old_chunk: u64,
        new_chunk: u64,
        offset: impl Fn() -> u64,
    ) -> Result<(), StoreError> {
        if old_chunk >= self.origin_chunks {
            return Err(StoreError::OldChunk {
                offset: offset(),
                found: old_chunk,
                expected_below: self.origin_chunks,
            });
        }
        if new_chunk.wrapping_sub(self.window_start) < self.window_length {
            return Ok(());
        }
        self.move_window(new_chunk, offset())
    }

    #[cold]
    fn move_window(&mut self, new_chunk: u64, offset: u64) -> Result<(), StoreError> {
        if new_chunk >= self.store_chunks {
            return Err(StoreError::NewChunk {
                offset,
                found: new_chunk,
                expected_below: self.store_chunks,
            });
        }
        let window =
            self.layout
                .data_chunks_around(new_chunk)
                .ok_or(StoreError::NewChunkIsMetadata {
                    offset,
                    found: new_chunk,
                })?;
        self.window_start = window.start;
        self.window_length = window.end.min(self.store_chunks) - window.start;
        Ok(())
    }
}

#[inline]
fn set_bit(bitmap: &mut [u64], chunk: u64) {
    if let Some(word) = usize::try_from(chunk / 64)
        .ok()
        .and_then(|index| bitmap.get_mut(index))
    {
        *word |= 1 << (chunk % 64);
    }
}

fn list_of_bits(bitmap: &[u64], chunk_bytes: u64) -> ChangeList {
    let runs = Runs {
        words: bitmap.iter(),
        word: 0,
        next_chunk: 0,
    };
    let extents = runs.filter_map(|(start, end)| extent_of_chunks(start, end, chunk_bytes));
    ChangeList::from_ascending(extents, Kind::Data, count_runs(bitmap))
}

/// The runs of set bits, as (first, one past the last), in ascending order.
struct Runs<'a> {
    words: std::slice::Iter<'a, u64>,
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
        if !past_the_word {
            self.word &= carried;
            return Some((
                start,
                self.next_chunk - 64 + u64::from(carried.trailing_zeros()),
            ));
        }
        loop {
            // The run reaches the end of its word, and goes on as long as the next ones begin with it.
            let end_so_far = self.next_chunk;
            self.word = 0;
            if self.next_word().is_none() {
                return Some((start, end_so_far));
            }
            let ones = self.word.trailing_ones();
            if ones < 64 {
                self.word &= self.word.wrapping_add(1);
                return Some((start, end_so_far + u64::from(ones)));
            }
        }
    }
}

/// Number of runs of set bits, so that the list is allocated once and at its size.
fn count_runs(bitmap: &[u64]) -> usize {
    let mut carry = 0;
    let mut runs = 0;
    for word in bitmap {
        runs += (word & !(word << 1 | carry)).count_ones() as usize;
        carry = word >> 63;
    }
    runs
}

/// Collects chunk numbers of an origin that is too large for a bitmap.
struct Batches {
    chunk_bytes: u64,
    batch: Vec<u64>,
    builder: ChangeListBuilder,
}

impl Batches {
    fn new(chunk_bytes: u64) -> Self {
        Self {
            chunk_bytes,
            batch: Vec::new(),
            builder: ChangeListBuilder::default(),
        }
    }

    #[inline]
    fn add(&mut self, chunk: u64) {
        if self.batch.len() == BATCH_CHUNKS {
            self.flush();
        }
        self.batch.push(chunk);
    }

    fn flush(&mut self) {
        self.batch.sort_unstable();
        let mut chunks = self.batch.iter().copied().peekable();
        while let Some(start) = chunks.next() {
            let mut end = start + 1;
            while let Some(next) = chunks.next_if(|next| *next <= end) {
                end = next + 1;
            }
            if let Some(extent) = extent_of_chunks(start, end, self.chunk_bytes) {
                self.builder.push(extent, Kind::Data);
            }
        }
        self.batch.clear();
    }

    fn finish(mut self) -> ChangeList {
        self.flush();
        drop(self.batch);
        self.builder.finish()
    }
}

/// The caller has checked `end` against the origin, whose size fits an extent; only the last chunk's
/// round-up could pass the largest offset, and then the chunk is cut there.
#[inline]
fn extent_of_chunks(start: u64, end: u64, chunk_bytes: u64) -> Option<Extent> {
    let end = end.saturating_mul(chunk_bytes).min(MAX_OFFSET);
    Extent::from_range(start.saturating_mul(chunk_bytes), end)
}

fn read(store: &dyn ReadAt, buffer: &mut [u8], offset: u64) -> Result<(), StoreError> {
    let length = buffer.len() as u64;
    store
        .read_exact_at(buffer, offset)
        .map_err(|source| StoreError::Read {
            offset,
            length,
            source,
        })
}

/// Memory that begins at a multiple of the block, so that a direct read needs no copy.
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    fn new(length: usize) -> Self {
        let memory = vec![0; length + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Self {
            memory,
            start,
            length,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}
