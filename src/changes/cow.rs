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

use super::chunk_set::ChunkSet;
use super::cow_areas::{read, read_areas};
pub use super::cow_error::StoreError;
use crate::change_list::ChangeList;
use crate::extent::MAX_OFFSET;
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
pub(super) const BLOCK_BYTES: usize = 4096;

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
    pub(super) fn data_chunks_around(self, chunk: u64) -> Option<std::ops::Range<u64>> {
        let stride = self.entries_per_area() + 1;
        let position = chunk.checked_sub(1)? % stride;
        let start = chunk - position + 1;
        (position != 0).then(|| start..start.saturating_add(stride - 1))
    }
}
