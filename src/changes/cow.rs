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
use std::sync::mpsc::sync_channel;
use std::thread;

use super::chunk_set::ChunkSet;
pub use super::cow_error::StoreError;
use crate::extent::{ChangeList, MAX_OFFSET};
use crate::sys::aligned::AlignedBuffer;
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
/// One pass over the metadata; each area is read once, in one piece, and none past the table's end. On a live store the caller reads
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
    let mut changed = ChunkSet::new(layout.chunk_bytes(), origin_chunks);
    let counts = match &mut changed {
        // One loop for each kind of set, so that the choice is not made again for each entry.
        ChunkSet::Bits(bits) => read_areas(store, layout, origin_chunks, |chunk| bits.add(chunk))?,
        ChunkSet::Sorted(sorted) => {
            read_areas(store, layout, origin_chunks, |chunk| sorted.add(chunk))?
        }
    };
    let changes = changed.into_changes();
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
    read(store, &mut buffer, 0)?;
    parse_header(&buffer)
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

/// Areas are read and handed over in batches of about this size.
const BATCH_BYTES: u64 = 256 << 10;
/// Larger areas are not read ahead: they need no help, and two of them would be too much memory.
const MAX_AHEAD_CHUNK_BYTES: u64 = MIB;
/// Batches that are read but not looked at yet.
const BATCHES_AHEAD: usize = 4;

/// Calls `add` with the checked `old_chunk` of every entry, in the table's order.
///
/// The first batch is read here, and for most tables that is all. For longer ones a thread reads on while
/// this one looks at what was read; errors come in the table's order, whoever found them.
fn read_areas(
    store: &dyn ReadAt,
    layout: Layout,
    origin_chunks: u64,
    add: impl FnMut(u64),
) -> Result<Counts, StoreError> {
    let mut parser = AreaParser {
        check: EntryCheck {
            layout,
            origin_chunks,
            store_chunks: store.size_bytes() / layout.chunk_bytes(),
            window_start: 0,
            window_length: 0,
        },
        counts: Counts {
            exceptions: 0,
            areas: 0,
        },
        add,
    };
    let mut reader = AreaReader {
        store,
        layout,
        next_area: 0,
    };
    let mut batch = reader.new_batch();
    loop {
        reader.fill(&mut batch);
        if parser.parse(&mut batch)? == Table::Ends {
            return Ok(parser.counts);
        }
        if layout.chunk_bytes() <= MAX_AHEAD_CHUNK_BYTES {
            break;
        }
    }
    thread::scope(|scope| {
        let (to_parser, batches) = sync_channel(BATCHES_AHEAD);
        let (give_back, empty) = sync_channel::<Batch>(BATCHES_AHEAD);
        scope.spawn(move || {
            loop {
                let mut batch = empty.try_recv().unwrap_or_else(|_| reader.new_batch());
                reader.fill(&mut batch);
                let is_last = batch.is_last;
                if to_parser.send(batch).is_err() || is_last {
                    return;
                }
            }
        });
        // The channel closes only after a last batch, which ends the table or is an error.
        while let Ok(mut batch) = batches.recv() {
            if parser.parse(&mut batch)? == Table::Ends {
                return Ok(parser.counts);
            }
            let _ = give_back.try_send(batch);
        }
        Err(StoreError::Read {
            offset: 0,
            length: 0,
            source: io::Error::other("the reading thread ended early"),
        })
    })
}

/// Some areas that follow each other.
struct Batch {
    bytes: AlignedBuffer,
    /// Where in the store each one was.
    offsets: Vec<u64>,
    /// What stopped the reading after these.
    error: Option<StoreError>,
    /// Nothing will be read after these.
    is_last: bool,
}

struct AreaReader<'a> {
    store: &'a dyn ReadAt,
    layout: Layout,
    next_area: u64,
}

impl AreaReader<'_> {
    fn new_batch(&self) -> Batch {
        let bytes = self.layout.chunk_bytes().max(BATCH_BYTES);
        Batch {
            bytes: AlignedBuffer::new(usize::try_from(bytes).unwrap_or(BLOCK_BYTES)),
            offsets: Vec::new(),
            error: None,
            is_last: false,
        }
    }

    /// Reads the next areas, up to one that holds the end of the table for certain: an area whose last
    /// entry is free. So nothing after the table is read, where the areas are as the kernel leaves them.
    fn fill(&mut self, batch: &mut Batch) {
        batch.offsets.clear();
        let length = usize::try_from(self.layout.chunk_bytes()).unwrap_or(usize::MAX);
        for area in batch.bytes.chunks_exact_mut(length) {
            let done = area_offset(self.store, self.layout, self.next_area).and_then(|offset| {
                read(self.store, area, offset)?;
                Ok(offset)
            });
            match done {
                Ok(offset) => batch.offsets.push(offset),
                Err(error) => {
                    batch.error = Some(error);
                    batch.is_last = true;
                    return;
                }
            }
            self.next_area += 1;
            let (entries, _) = area.as_chunks::<ENTRY_BYTES>();
            if entries
                .last()
                .is_some_and(|entry| split_entry(entry)[1] == 0)
            {
                batch.is_last = true;
                return;
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Table {
    GoesOn,
    Ends,
}

/// Checks entries and passes them on.
struct AreaParser<F> {
    check: EntryCheck,
    counts: Counts,
    add: F,
}

impl<F: FnMut(u64)> AreaParser<F> {
    /// An error that stopped the reading counts only if the table does not end before it.
    fn parse(&mut self, batch: &mut Batch) -> Result<Table, StoreError> {
        let length = usize::try_from(self.check.layout.chunk_bytes()).unwrap_or(usize::MAX);
        for (area, offset) in batch.bytes.chunks_exact(length).zip(&batch.offsets) {
            self.counts.areas += 1;
            let (entries, _) = area.as_chunks::<ENTRY_BYTES>();
            for (slot, entry) in entries.iter().enumerate() {
                let [old_chunk, new_chunk] = split_entry(entry);
                if new_chunk == 0 {
                    self.counts.exceptions += slot as u64;
                    return Ok(Table::Ends);
                }
                self.check.entry(old_chunk, new_chunk, || {
                    offset + (slot * ENTRY_BYTES) as u64
                })?;
                (self.add)(old_chunk);
            }
            self.counts.exceptions += entries.len() as u64;
        }
        batch.error.take().map_or(Ok(Table::GoesOn), Err)
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
