//! The areas of an exception store: read ahead on one thread, checked on another.
//!
//! Guarantees: entries and errors come in the table's order; every entry was held against the bounds of
//! origin and store; what lies behind the end of the table is no error, and next to nothing of it is read.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::cow::{BLOCK_BYTES, ENTRY_BYTES, Layout, StoreError};
use crate::sys::aligned::AlignedBuffer;
use crate::units::MIB;
use crate::volume::ReadAt;

/// What was read.
pub(super) struct Counts {
    pub(super) exceptions: u64,
    pub(super) areas: u64,
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
/// this one looks at what was read, if there is a processor for it; errors come in the table's order, whoever
/// found them.
pub(super) fn read_areas(
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
    let count = || thread::available_parallelism().map_or(1, usize::from);
    let mut processors = None;
    loop {
        reader.fill(&mut batch);
        if parser.parse(&mut batch)? == Table::Ends {
            return Ok(parser.counts);
        }
        if layout.chunk_bytes() <= MAX_AHEAD_CHUNK_BYTES
            && *processors.get_or_insert_with(count) > 1
        {
            break;
        }
    }
    thread::scope(|scope| {
        let (to_parser, batches) = sync_channel(BATCHES_AHEAD);
        // Room for all that there are: two more are being filled and looked at.
        let (give_back, empty) = sync_channel::<Batch>(BATCHES_AHEAD + 2);
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

pub(super) fn read(store: &dyn ReadAt, buffer: &mut [u8], offset: u64) -> Result<(), StoreError> {
    let length = buffer.len() as u64;
    store
        .read_exact_at(buffer, offset)
        .map_err(|source| StoreError::Read {
            offset,
            length,
            source,
        })
}
