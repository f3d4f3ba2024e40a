//! From thin blocks to bytes of volumes: what has to be sent.
//!
//! Guarantees: a list holds every byte in which the new volume may differ from the old one, and ends where
//! the new volume ends.

use super::diff::Now;
use super::error::{Result, ThinError};
use super::run::Run;
use super::{DiffSummary, ThinMetadata};
use crate::change_list::{ChangeList, ChangeListBuilder};
use crate::extent::{Extent, Kind, MAX_OFFSET};

/// A thin volume, as LVM knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinVolume {
    /// Its id in the pool.
    pub device: u64,
    /// Its size, which the pool does not know: mappings may lie past it.
    pub size_bytes: u64,
    /// Blocks that are not mapped are those of another volume, and not zero.
    pub external_origin: bool,
}

impl ThinVolume {
    /// What an unmapped block holds, as far as this is known without reading it.
    fn unmapped(self) -> Kind {
        if self.external_origin {
            Kind::Data
        } else {
            Kind::Zero
        }
    }

    fn check(self) -> Result<()> {
        if self.size_bytes > MAX_OFFSET {
            return Err(ThinError::VolumeSize {
                found: self.size_bytes,
            });
        }
        Ok(())
    }
}

/// What differs between two thin volumes.
#[derive(Clone, Debug)]
pub struct ThinChanges {
    /// Extents of the new volume.
    pub changes: ChangeList,
    /// What the trees say beside that.
    pub summary: DiffSummary,
}

impl ThinMetadata<'_> {
    /// What has to be sent to turn `old` into `new`: what is mapped in `new` and not the same in `old` as
    /// data, what is unmapped since as zeroes, or as data where it is read from an external origin.
    ///
    /// Where `new` is longer, all from the end of `old` on is in the list. Where only one of them has an
    /// external origin, all of `new` is. Time and reads follow what differs, not the size of the volumes.
    pub fn changes(&self, old: ThinVolume, new: ThinVolume) -> Result<ThinChanges> {
        old.check()?;
        new.check()?;
        let mut list = Listed::new(self, new);
        let summary = self.diff(old.device, new.device, |difference| {
            let kind = match difference.now {
                Now::Mapped => Kind::Data,
                Now::Unmapped => new.unmapped(),
            };
            list.push(difference.run, kind);
        })?;
        let same_origin = old.external_origin == new.external_origin;
        let from = if same_origin { old.size_bytes } else { 0 };
        self.list_all(&mut list, from)?;
        Ok(ThinChanges {
            changes: list.builder.finish(),
            summary,
        })
    }

    /// All of a volume, for a full copy: what is mapped as data, what is not as zeroes, or as data where
    /// it is read from an external origin.
    pub fn mapped_changes(&self, volume: ThinVolume) -> Result<ChangeList> {
        volume.check()?;
        let mut list = Listed::new(self, volume);
        self.list_all(&mut list, 0)?;
        Ok(list.builder.finish())
    }

    /// Which blocks of a device are mapped, as `b3:` and 64 hexadecimal digits: BLAKE3 over first block and number of
    /// blocks (both little-endian) of each run. A discard changes this, even where it changes no list and no time.
    pub fn mapped_digest(&self, id: u64) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        self.mapped(id, |run| {
            hasher.update(&run.start.to_le_bytes());
            hasher.update(&run.blocks.to_le_bytes());
        })?;
        Ok(format!("b3:{}", hasher.finalize().to_hex()))
    }

    /// All of the volume from the byte `from` on.
    fn list_all(&self, list: &mut Listed, from: u64) -> Result<()> {
        let volume = list.volume;
        let Some(all) = Extent::from_range(from, volume.size_bytes) else {
            return Ok(());
        };
        if volume.external_origin {
            list.builder.push(all, Kind::Data);
            return Ok(());
        }
        let mut position = from;
        let builder = &mut list.builder;
        let first = from / list.block_bytes;
        self.mapped_from(volume.device, first, |run| {
            let extent = run.extent(list.block_bytes, volume.size_bytes);
            let Some(data) = extent.and_then(|extent| extent.intersect(all)) else {
                return;
            };
            if let Some(gap) = Extent::from_range(position, data.offset()) {
                builder.push(gap, Kind::Zero);
            }
            builder.push(data, Kind::Data);
            position = data.end();
        })?;
        if let Some(gap) = Extent::from_range(position, volume.size_bytes) {
            builder.push(gap, Kind::Zero);
        }
        Ok(())
    }
}

/// A list of a volume's extents that is being made.
struct Listed {
    volume: ThinVolume,
    block_bytes: u64,
    builder: ChangeListBuilder,
}

impl Listed {
    fn new(metadata: &ThinMetadata<'_>, volume: ThinVolume) -> Self {
        Self {
            volume,
            block_bytes: metadata.block_bytes(),
            builder: ChangeListBuilder::default(),
        }
    }

    fn push(&mut self, run: Run, kind: Kind) {
        if let Some(extent) = run.extent(self.block_bytes, self.volume.size_bytes) {
            self.builder.push(extent, kind);
        }
    }
}
