//! Volumes: block devices and regular files, and their twins in memory for tests.
//!
//! Guarantees: I/O is positional and whole (a short read or write is an error); [`WriteAt::sync`] returns
//! only when everything written is on stable storage; nothing here decides *what* to write.

pub mod block;
mod direct;
pub mod faulty;
pub mod file;
pub mod file_version;
pub mod host;
pub mod in_use;
pub mod memory;
pub mod open;
mod past_cache;

use std::io;

pub use host::VolumeIdentity;
pub use open::{Volume, WriteOptions};

use crate::extent::Extent;

/// What is enough to copy at once from the page cache.
const FROM_MEMORY_BYTES: u64 = 256 << 10;
/// What is enough to read at once from a device.
const FROM_DEVICE_BYTES: u64 = 1 << 20;

/// Something with a size that can be read at any place.
pub trait ReadAt: Send + Sync {
    /// Size in bytes, fixed while it is open.
    fn size_bytes(&self) -> u64;

    /// Fills all of `buffer` from `offset`, or fails: past the end is `UnexpectedEof`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Up to how many bytes that nobody asked for are cheaper to read along than a second read is.
    fn gap_worth_reading(&self) -> u64 {
        16 << 10
    }

    /// Reads of more bytes than this gain nothing in `extent`. What is copied from the page cache is best used while the
    /// processor's own cache still has it; what comes from a device is waited for each time.
    fn enough_at_once(&self, extent: Extent) -> u64 {
        let _ = extent;
        FROM_MEMORY_BYTES
    }

    /// The next extent at or after `offset` that may hold anything but zeroes; `None` when only
    /// zeroes follow. What cannot tell calls everything data.
    fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        Ok(Extent::from_range(offset, self.size_bytes()))
    }
}

/// A volume that can be written.
pub trait WriteAt: ReadAt {
    /// Writes all of `buffer` at `offset`, or fails.
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()>;

    /// Makes `extent` read as zeroes, as a hole or discard where the volume guarantees zeroes for it.
    fn zero_at(&self, extent: Extent) -> io::Result<()>;

    /// Zeroing costs least in whole blocks of this size, and only those give their space back.
    fn zero_block_bytes(&self) -> u64 {
        1
    }

    /// So many writes at the same time are of use: where each waits for a device, and none for what another has written.
    fn writes_at_once(&self) -> usize {
        1
    }

    /// Whether a write of `extent` is one of those: others go into memory, and to hand them over costs more than to make them.
    fn waits_for_device(&self, extent: Extent) -> bool {
        let _ = extent;
        self.writes_at_once() > 1
    }

    /// Makes a regular file longer or shorter. Volumes of fixed size answer `Unsupported`.
    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        let _ = size_bytes;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Returns when all that was written is durable.
    fn sync(&self) -> io::Result<()>;
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<V: ReadAt + ?Sized> ReadAt for $pointer {
            fn size_bytes(&self) -> u64 {
                (**self).size_bytes()
            }
            fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read_exact_at(buffer, offset)
            }
            fn gap_worth_reading(&self) -> u64 {
                (**self).gap_worth_reading()
            }
            fn enough_at_once(&self, extent: Extent) -> u64 {
                (**self).enough_at_once(extent)
            }
            fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
                (**self).next_data(offset)
            }
        }
        impl<V: WriteAt + ?Sized> WriteAt for $pointer {
            fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
                (**self).write_all_at(buffer, offset)
            }
            fn zero_at(&self, extent: Extent) -> io::Result<()> {
                (**self).zero_at(extent)
            }
            fn zero_block_bytes(&self) -> u64 {
                (**self).zero_block_bytes()
            }
            fn writes_at_once(&self) -> usize {
                (**self).writes_at_once()
            }
            fn waits_for_device(&self, extent: Extent) -> bool {
                (**self).waits_for_device(extent)
            }
            fn set_size(&self, size_bytes: u64) -> io::Result<()> {
                (**self).set_size(size_bytes)
            }
            fn sync(&self) -> io::Result<()> {
                (**self).sync()
            }
        }
    )*};
}
forward!(&V, Box<V>, std::sync::Arc<V>);
