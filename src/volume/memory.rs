//! A volume in memory: the model's twin of a block device, for tests and for callers that have bytes.
//!
//! Guarantees: same rules as a device of fixed size; its size may be set, as a file's.

use std::io;
use std::sync::{Mutex, PoisonError};

use super::{ReadAt, WriteAt};
use crate::extent::Extent;

/// A byte vector behind the volume traits.
#[derive(Debug, Default)]
pub struct MemoryVolume {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryVolume {
    /// A volume that holds these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: Mutex::new(bytes),
        }
    }

    /// A copy of what it holds now.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range(
    offset: u64,
    length: usize,
    size: usize,
    past: io::ErrorKind,
) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| past)?;
    let end = start
        .checked_add(length)
        .filter(|end| *end <= size)
        .ok_or(past)?;
    Ok(start..end)
}

impl ReadAt for MemoryVolume {
    fn size_bytes(&self) -> u64 {
        self.lock().len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.lock();
        let range = range(
            offset,
            buffer.len(),
            bytes.len(),
            io::ErrorKind::UnexpectedEof,
        )?;
        buffer.copy_from_slice(&bytes[range]);
        Ok(())
    }
}

impl WriteAt for MemoryVolume {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.lock();
        let range = range(
            offset,
            buffer.len(),
            bytes.len(),
            io::ErrorKind::StorageFull,
        )?;
        bytes[range].copy_from_slice(buffer);
        Ok(())
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        let mut bytes = self.lock();
        let length = usize::try_from(extent.length()).map_err(|_| io::ErrorKind::StorageFull)?;
        let range = range(
            extent.offset(),
            length,
            bytes.len(),
            io::ErrorKind::StorageFull,
        )?;
        bytes[range].fill(0);
        Ok(())
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        let size = usize::try_from(size_bytes).map_err(|_| io::ErrorKind::StorageFull)?;
        self.lock().resize(size, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
