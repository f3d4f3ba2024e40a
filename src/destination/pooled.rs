//! A destination that may take its space from a thin pool.
//!
//! Guarantees: nothing is written to a volume of a pool that is in trouble; a discard that the kernel calls done
//! was done; a write that fails is reported with the pool's state and the command that mends it.

use std::io;
use std::path::Path;

use crate::dm::pool::Pool;
use crate::dm::pool_status::{Mode, PoolStatus, Trouble};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::volume::host::VolumeIdentity;
use crate::volume::open::{Provisioning, Volume};
use crate::volume::{ReadAt, WriteAt};

/// The open volume, and its pool if it has one.
#[derive(Debug)]
pub(super) struct Pooled {
    pub(super) volume: Volume,
    pub(super) pool: Option<Pool>,
    /// Instead of that: a pool further below, which can break under it.
    pub(super) stands_on: Option<Pool>,
}

/// A pool below what is at `path`, called `name`.
pub(super) fn pool_below(path: &Path, name: &str) -> Result<Option<Pool>> {
    match VolumeIdentity::of_path(path) {
        Ok(VolumeIdentity::Block(device)) => Pool::below(device, name),
        _ => Ok(None),
    }
}

/// Refuses a volume called `name` whose pool is in trouble.
pub(super) fn refuse_trouble(pool: &Pool, name: &str) -> Result<()> {
    match pool.status()?.trouble(&pool.name) {
        Some(Trouble { reason, way_out }) => Err(Error::refused(name, reason, way_out)),
        None => Ok(()),
    }
}

/// How a volume of this pool is to be written.
pub(super) fn provisioning(pool: &Pool) -> Provisioning {
    Provisioning {
        block_bytes: pool.block_bytes,
        discard_zeroes: pool.discard_zeroes(),
        // With an external origin the rest of a block is copied from there.
        stale_rest: pool.features.skips_zeroing && !pool.has_external_origin,
    }
}

impl Pooled {
    /// Up to how many bytes it can hold. That is for a warning, so not to know is no failure.
    pub(super) fn room_bytes(&self) -> Option<u64> {
        self.pool.as_ref()?.room_bytes().ok()?
    }

    /// Adds what the pool says to a failure.
    fn explain(&self, error: io::Error) -> io::Error {
        let Some(pool) = self.pool.as_ref().or(self.stands_on.as_ref()) else {
            return error;
        };
        let Ok(status) = pool.status() else {
            return error;
        };
        let Trouble { reason, way_out } = status.after_failure(&pool.name);
        let way_out = if way_out.is_empty() {
            way_out
        } else {
            format!("\n{way_out}")
        };
        io::Error::new(error.kind(), format!("{error}; {reason}{way_out}"))
    }

    /// A pool that became read-only answers each discard with success and does nothing.
    fn check_discards(&self) -> io::Result<()> {
        let Some(pool) = self.pool.as_ref().filter(|pool| pool.discard_zeroes()) else {
            return Ok(());
        };
        let status = pool
            .status()
            .map_err(|error| io::Error::other(error.chain()))?;
        match status {
            PoolStatus::Working(figures) if figures.mode != Mode::ReadOnly => Ok(()),
            _ => Err(io::Error::other("its space was not given back")),
        }
    }
}

impl ReadAt for Pooled {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.volume.read_exact_at(buffer, offset)
    }

    fn enough_at_once(&self, extent: Extent) -> u64 {
        self.volume.enough_at_once(extent)
    }

    fn gap_worth_reading(&self) -> u64 {
        self.volume.gap_worth_reading()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        self.volume.next_data(offset)
    }
}

impl WriteAt for Pooled {
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.volume
            .write_all_at(buffer, offset)
            .map_err(|error| self.explain(error))
    }

    fn zero_at(&self, extent: Extent) -> io::Result<()> {
        self.volume
            .zero_at(extent)
            .and_then(|()| self.check_discards())
            .map_err(|error| self.explain(error))
    }

    fn zero_block_bytes(&self) -> u64 {
        self.volume.zero_block_bytes()
    }

    fn writes_at_once(&self) -> usize {
        self.volume.writes_at_once()
    }

    fn waits_for_device(&self, extent: Extent) -> bool {
        self.volume.waits_for_device(extent)
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.volume.set_size(size_bytes)
    }

    /// A pool that cannot write its maps any more fails this, and then what was written is lost.
    fn sync(&self) -> io::Result<()> {
        self.volume
            .sync()
            .and_then(|()| self.check_discards())
            .map_err(|error| self.explain(error))
    }
}
