//! The data path under every verb: plan, read, compress, deliver; receive, check, save, write.
//!
//! Guarantees: order is kept; memory is bounded by a few buffers of 1 MiB a thread, and 20 more in a comparison; success is reported
//! only after sync. The engine knows volumes by their traits alone: no paths, no LVM.

pub mod apply;
mod batch;
pub mod begin;
pub mod behind;
pub mod compare;
pub mod conclude;
pub mod copy_list;
pub mod deliver;
pub mod digester;
pub mod effort;
pub mod examine;
pub mod in_flight;
pub mod order;
pub mod plan;
pub mod pump;
pub mod read_back;
pub mod receive;
pub mod remembering;
pub mod spool;
mod step_reader;
pub mod target;
pub mod throttle;
pub mod undo;
pub mod zeroes;

use crate::delta::codec::Codec;
use crate::error::Result;
use crate::extent::Extent;

/// Where frames go: into a delta, or onto a volume. Frames come in ascending order.
pub trait FrameSink {
    /// A data frame. `stored` is compressed by `codec` and has the checksum `crc` (crc32c), which was
    /// computed where the data was read.
    fn data(&mut self, extent: Extent, codec: Codec, stored: &[u8], crc: u32) -> Result<()>;

    /// A zero frame, of any length.
    fn zero(&mut self, extent: Extent) -> Result<()>;

    /// Up to this volume offset nothing more comes: what no frame covered is there already. Said now and then, where
    /// both ends are compared.
    fn position(&mut self, offset: u64) -> Result<()> {
        let _ = offset;
        Ok(())
    }

    /// True if frames are written to a device while the caller waits, so that reading on meanwhile gains much.
    /// A stream has a buffer behind it that somebody else empties.
    fn waits_for_device(&self) -> bool {
        false
    }
}
