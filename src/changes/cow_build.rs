//! Writes an exception store as the kernel would have: for tests, and for showing a set of chunks as a
//! snapshot that the kernel can load.
//!
//! Guarantees: chunks are allocated in the kernel's order; the store ends with an area that has a free
//! slot, as the kernel demands; the header is written last, so that an unfinished store is no store;
//! nothing but header, areas and data is written, so a sparse file stays sparse.

use std::io;

use super::cow::{ENTRY_BYTES, HEADER_BYTES, Layout, MAGIC, VERSION};
use crate::volume::WriteAt;
use crate::volume::memory::MemoryVolume;

/// Writes one store, exception by exception.
pub struct StoreBuilder<'a> {
    target: &'a dyn WriteAt,
    layout: Layout,
    /// The area that is being filled: one chunk.
    area: Vec<u8>,
    exceptions: u64,
}

impl<'a> StoreBuilder<'a> {
    /// Begins a store in `target`, which must be empty or read as zeroes where nothing is written. A
    /// target that cannot grow must have [`store_bytes`] for the exceptions to come.
    pub fn new(target: &'a dyn WriteAt, layout: Layout) -> Self {
        let area = vec![0; usize::try_from(layout.chunk_bytes()).unwrap_or(0)];
        Self {
            target,
            layout,
            area,
            exceptions: 0,
        }
    }

    /// Adds an exception: `old_chunk` of the origin has `data` in the snapshot. A `data` shorter than a
    /// chunk leaves the rest of its chunk as it is; an empty one leaves a hole.
    pub fn push(&mut self, old_chunk: u64, data: &[u8]) -> io::Result<()> {
        let new_chunk = self
            .layout
            .data_chunk(self.exceptions)
            .ok_or_else(too_large)?;
        if data.len() as u64 > self.layout.chunk_bytes() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more data than a chunk holds",
            ));
        }
        self.write(new_chunk, data)?;
        let slot = usize::try_from(self.exceptions % self.layout.entries_per_area()).unwrap_or(0);
        let entry = &mut self.area[slot * ENTRY_BYTES..][..ENTRY_BYTES];
        entry[..8].copy_from_slice(&old_chunk.to_le_bytes());
        entry[8..].copy_from_slice(&new_chunk.to_le_bytes());
        self.exceptions += 1;
        if self
            .exceptions
            .is_multiple_of(self.layout.entries_per_area())
        {
            self.write_area(self.exceptions / self.layout.entries_per_area() - 1)?;
            self.area.fill(0);
        }
        Ok(())
    }

    /// Number of exceptions so far.
    pub fn exceptions(&self) -> u64 {
        self.exceptions
    }

    /// Completes the store and makes it durable. Returns its size in bytes.
    pub fn finish(self) -> io::Result<u64> {
        // Also when it is empty: the zero entry in it is what ends the table.
        self.write_area(self.exceptions / self.layout.entries_per_area())?;
        let size = store_bytes(self.layout, self.exceptions).ok_or_else(too_large)?;
        self.reserve(size)?;
        self.target.sync()?;
        self.write(0, &header(self.layout, true))?;
        self.target.sync()?;
        Ok(size)
    }

    fn write_area(&self, area: u64) -> io::Result<()> {
        self.write(
            self.layout.area_chunk(area).ok_or_else(too_large)?,
            &self.area,
        )
    }

    fn write(&self, chunk: u64, bytes: &[u8]) -> io::Result<()> {
        let chunk_bytes = self.layout.chunk_bytes();
        let offset = chunk.checked_mul(chunk_bytes).ok_or_else(too_large)?;
        self.reserve(offset.checked_add(chunk_bytes).ok_or_else(too_large)?)?;
        if bytes.is_empty() {
            Ok(())
        } else {
            self.target.write_all_at(bytes, offset)
        }
    }

    fn reserve(&self, size_bytes: u64) -> io::Result<()> {
        if self.target.size_bytes() < size_bytes {
            self.target.set_size(size_bytes)
        } else {
            Ok(())
        }
    }
}

/// The size of a store with so many exceptions, its closing area included; `None` if no device could
/// hold it.
pub fn store_bytes(layout: Layout, exceptions: u64) -> Option<u64> {
    let last_area = layout.area_chunk(exceptions / layout.entries_per_area())?;
    let data_in_it = exceptions % layout.entries_per_area();
    last_area
        .checked_add(1 + data_in_it)?
        .checked_mul(layout.chunk_bytes())
}

/// The header of a store, without the padding that fills its chunk.
pub fn header(layout: Layout, valid: bool) -> [u8; HEADER_BYTES] {
    let sectors = u32::try_from(layout.chunk_bytes() / crate::units::SECTOR_BYTES).unwrap_or(0);
    let mut bytes = [0; HEADER_BYTES];
    let fields = [MAGIC, u32::from(valid), VERSION, sectors];
    for (place, field) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
        *place = field.to_le_bytes();
    }
    bytes
}

/// A whole store in memory, from `(old_chunk, data)` in allocation order.
pub fn store_of<'d>(
    layout: Layout,
    exceptions: impl IntoIterator<Item = (u64, &'d [u8])>,
) -> io::Result<Vec<u8>> {
    let memory = MemoryVolume::default();
    let mut builder = StoreBuilder::new(&memory, layout);
    for (old_chunk, data) in exceptions {
        builder.push(old_chunk, data)?;
    }
    builder.finish()?;
    Ok(memory.bytes())
}

fn too_large() -> io::Error {
    io::ErrorKind::FileTooLarge.into()
}
