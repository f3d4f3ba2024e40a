//! Reads the metadata of a thin pool (dm-thin-pool, version 2): which blocks of its devices are mapped, and
//! in which two of its devices differ.
//!
//! Guarantees: what is reported is all there is, or there is an error; every block that is used has the right
//! checksum and is the node that was expected there; finding a difference reads what differs, not all that
//! is mapped; memory is below 2 MiB, whatever the pool's size; nothing is written.
//!
//! On a live pool, read a metadata snapshot ([`Root::Snapshot`]), with O_DIRECT, because the page cache of
//! these devices is stale, and ask [`ThinMetadata::check_unchanged`] at the end. Compare snapshots that
//! nobody writes to: a block that was discarded in the old one is no longer known to have been there.
//!
//! The format is the kernel's (drivers/md/dm-thin-metadata.c and persistent-data/dm-btree-internal.h): blocks
//! of 4096 bytes, little-endian, each with a checksum of its own.
//!
//! ```text
//! superblock, block 0 ── device_details_root → device id → {mapped blocks, transaction, created, snapshotted}
//!   │                └── data_mapping_root   → device id → root → thin block → data block << 24 | time
//!   └── held_root → a copy of the superblock with the roots of a metadata snapshot
//! ```

#[doc(hidden)]
pub mod build;
mod changes;
mod diff;
mod error;
mod run;
mod superblock;

#[cfg(test)]
mod tests;

pub use super::btree::METADATA_BLOCK_BYTES;
pub use changes::{ThinChanges, ThinVolume};
pub use diff::{Difference, Now};
pub use error::{ThinError, Tree};
pub use run::Run;
pub use superblock::Superblock;

use std::ops::ControlFlow;

use super::btree::{self, Blocks, Head, Horizon, OneBlock, TreeKind, Walk, last_key};
use crate::volume::ReadAt;
use diff::time_of;
use error::Result;
use run::Joiner;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// The superblock: for copies in files, and pools that are not active.
    Live,
    /// The metadata snapshot that the superblock names.
    Snapshot,
    /// A metadata snapshot in this block, as `dmsetup status` of the pool says.
    Held(u64),
}

/// What the pool knows of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceDetails {
    /// How many of its blocks are mapped.
    pub mapped_blocks: u64,
    /// The pool's transaction in which it was made.
    pub transaction_id: u64,
    /// The pool's time when it was made.
    pub creation_time: u32,
    /// The pool's time when a snapshot of it was last made, or it of another device.
    pub snapshotted_time: u32,
}

/// What a comparison of two devices shows beside the differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffSummary {
    /// Thin blocks that are mapped in the new device and not the same in the old one.
    pub mapped_blocks: u64,
    /// Thin blocks that are mapped in the old device only.
    pub unmapped_blocks: u64,
    /// The old device has mappings that are not older than itself: it was written to after it was made, or
    /// it is no snapshot. What it holds is then not what it held when it was made. A discard in it does
    /// not show.
    pub old_was_written: bool,
    /// The same of the new device: what it holds now it may not hold tomorrow, under the same name.
    pub new_was_written: bool,
}

/// The metadata of a thin pool. `device` is read when asked, and never changed.
pub struct ThinMetadata<'a> {
    blocks: Blocks<'a>,
    superblock: Superblock,
    /// Where the superblock is.
    block: u64,
}

impl<'a> ThinMetadata<'a> {
    /// Reads and checks a superblock.
    pub fn open(device: &'a dyn ReadAt, root: Root) -> Result<Self> {
        let blocks = Blocks::new(device);
        let block = match root {
            Root::Live => 0,
            Root::Snapshot => read_superblock(&blocks, 0)?.held_root,
            Root::Held(block) => block,
        };
        if block == 0 && root != Root::Live {
            return Err(ThinError::NoSnapshot);
        }
        Ok(Self {
            blocks,
            superblock: read_superblock(&blocks, block)?,
            block,
        })
    }

    /// What the superblock said when it was opened.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Bytes of a thin block.
    pub fn block_bytes(&self) -> u64 {
        self.superblock.block_bytes
    }

    /// The block of the superblock that is read: 0, or that of a metadata snapshot.
    pub fn root_block(&self) -> u64 {
        self.block
    }

    /// An error if the superblock is not what it was, or the metadata snapshot is no longer the pool's.
    ///
    /// What was read from a live pool counts only after this: a snapshot that somebody released may have
    /// been written over with nodes that look sound. On a live pool, read with O_DIRECT.
    pub fn check_unchanged(&self) -> Result<()> {
        let same = |field, found: u64, expected: u64| {
            if found == expected {
                Ok(())
            } else {
                Err(ThinError::Changed {
                    field,
                    found,
                    expected,
                })
            }
        };
        let now = read_superblock(&self.blocks, self.block)?;
        let then = &self.superblock;
        same("the transaction", now.transaction_id, then.transaction_id)?;
        same("the checksum", now.checksum.into(), then.checksum.into())?;
        if self.block == 0 {
            return Ok(());
        }
        let held = read_superblock(&self.blocks, 0)?.held_root;
        same("the metadata snapshot", held, self.block)
    }

    /// What the pool knows of the device with this id; `None` if there is no such device.
    pub fn device(&self, id: u64) -> Result<Option<DeviceDetails>> {
        let root = self.superblock.details_root;
        let found = look_up(&self.blocks, Tree::Details, root, id)?;
        Ok(found.map(DeviceDetails::of))
    }

    /// Every device, in the order of their ids.
    pub fn devices(&self, mut visit: impl FnMut(u64, DeviceDetails)) -> Result<()> {
        let root = self.superblock.details_root;
        let mut walk = Walk::new(&self.blocks, Tree::Details, root)?;
        let alone = Horizon::default();
        loop {
            match walk.head() {
                Head::End => return Ok(()),
                Head::Subtree(_) => walk.enter(&alone)?,
                Head::Entries(_) => {
                    let (keys, values) = walk.entries();
                    let length = Tree::Details.leaf_value_bytes() as usize;
                    for (key, value) in keys.iter().zip(values.chunks_exact(length)) {
                        visit(u64::from_le_bytes(*key), DeviceDetails::of(words(value)));
                    }
                    let count = keys.len();
                    walk.consume(count);
                }
            }
        }
    }

    /// One more than the last block of a device that is mapped; 0 where none is.
    pub fn end_of_mappings(&self, id: u64) -> Result<u64> {
        let root = self.known(id)?.1;
        let last = last_key(&self.blocks, Tree::Mappings, root)?;
        Ok(last.map_or(0, |last| last.saturating_add(1)))
    }

    /// Every run of mapped blocks of a device, ascending.
    pub fn mapped(&self, id: u64, visit: impl FnMut(Run)) -> Result<()> {
        self.mapped_from(id, 0, visit)
    }

    /// Every run of mapped blocks of a device, ascending, without what is before the block `first`.
    pub fn mapped_from(&self, id: u64, first: u64, mut visit: impl FnMut(Run)) -> Result<()> {
        let root = self.known(id)?.1;
        let mut joiner = Joiner::new(|found: Difference| visit(found.run));
        self.mappings(root, first, |key, _| {
            joiner.push(Now::Mapped, key);
            ControlFlow::Continue(())
        })?;
        joiner.finish();
        Ok(())
    }

    /// In which blocks the device `new` differs from the device `old`, ascending.
    ///
    /// Reads what the trees of the two do not share, at most twice as many blocks, and a few. Only where a
    /// snapshot of one of them was made, that one is read as well, to tell whether it was written to before.
    pub fn diff(
        &self,
        old: u64,
        new: u64,
        mut visit: impl FnMut(Difference),
    ) -> Result<DiffSummary> {
        let (details, old_root) = self.known(old)?;
        let (new_details, new_root) = self.known(new)?;
        let mut summary = DiffSummary::default();
        let [newest_old, newest_new] =
            diff::diff(&self.blocks, [old_root, new_root], |difference| {
                match difference.now {
                    Now::Mapped => summary.mapped_blocks += difference.run.blocks,
                    Now::Unmapped => summary.unmapped_blocks += difference.run.blocks,
                }
                visit(difference);
            })?;
        // What is written to a snapshot later is mapped at its creation time or later, in nodes that are its
        // own alone, and so were compared; unless it handed them on to a snapshot of itself.
        let may_share = |of: DeviceDetails| old == new || of.snapshotted_time > of.creation_time;
        let written = |of: DeviceDetails, root, newest: Option<u32>| -> Result<bool> {
            let seen = newest.is_some_and(|time| of.is_later(time));
            Ok(seen || (may_share(of) && self.is_written(of, root)?))
        };
        summary.old_was_written = written(details, old_root, newest_old)?;
        summary.new_was_written = written(new_details, new_root, newest_new)?;
        Ok(summary)
    }

    /// Whether a device has mappings that are not older than itself: see [`DiffSummary::old_was_written`]. Reads its
    /// tree up to the first of them.
    pub fn was_written(&self, id: u64) -> Result<bool> {
        let (details, root) = self.known(id)?;
        self.is_written(details, root)
    }

    fn is_written(&self, details: DeviceDetails, root: u64) -> Result<bool> {
        let mut found = false;
        self.mappings(root, 0, |_, value| {
            found = details.is_later(time_of(value));
            match found {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        Ok(found)
    }

    /// A device that must be there, and the root of its mappings.
    fn known(&self, id: u64) -> Result<(DeviceDetails, u64)> {
        let root = self.superblock.mapping_root;
        let root = look_up(&self.blocks, Tree::Devices, root, id)?;
        match (self.device(id)?, root) {
            (Some(details), Some([root, ..])) => Ok((details, root)),
            (None, None) => Err(ThinError::NoSuchDevice { device: id }),
            (details, _) => Err(ThinError::HalfADevice {
                device: id,
                missing_in: if details.is_some() {
                    Tree::Devices
                } else {
                    Tree::Details
                },
            }),
        }
    }

    /// Every mapping from the key `first` on, until `visit` has seen enough.
    fn mappings(
        &self,
        root: u64,
        first: u64,
        mut visit: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut walk = Walk::new(&self.blocks, Tree::Mappings, root)?;
        let alone = Horizon::default();
        loop {
            match walk.head() {
                Head::End => return Ok(()),
                Head::Subtree(child) if child.last < first => walk.skip(),
                Head::Subtree(_) => walk.enter(&alone)?,
                Head::Entries(_) => {
                    let (keys, values) = walk.entries();
                    for (key, value) in keys.iter().zip(values.as_chunks().0) {
                        let key = u64::from_le_bytes(*key);
                        if key >= first && visit(key, u64::from_le_bytes(*value)).is_break() {
                            return Ok(());
                        }
                    }
                    let count = keys.len();
                    walk.consume(count);
                }
            }
        }
    }
}

impl DeviceDetails {
    /// `struct disk_device_details`.
    #[allow(clippy::cast_possible_truncation, reason = "the two halves are meant")]
    fn of([mapped_blocks, transaction_id, times]: [u64; 3]) -> Self {
        Self {
            mapped_blocks,
            transaction_id,
            creation_time: times as u32,
            snapshotted_time: (times >> 32) as u32,
        }
    }

    /// Whether a mapping of this time was made after the device was.
    fn is_later(self, time: u32) -> bool {
        time >= self.creation_time
    }
}

/// The value of a key as numbers, if it is in the tree.
fn look_up(blocks: &Blocks<'_>, tree: Tree, root: u64, key: u64) -> Result<Option<[u64; 3]>> {
    Ok(btree::look_up(blocks, tree, root, key, words)?)
}

/// A value as numbers; what it does not have is 0.
fn words(value: &[u8]) -> [u64; 3] {
    let mut numbers = [0; 3];
    for (number, bytes) in numbers.iter_mut().zip(value.as_chunks().0) {
        *number = u64::from_le_bytes(*bytes);
    }
    numbers
}

fn read_superblock(blocks: &Blocks<'_>, block: u64) -> Result<Superblock> {
    if block >= blocks.count {
        return Err(ThinError::CutShort {
            block,
            blocks: blocks.count,
        });
    }
    let mut one = OneBlock::default();
    Superblock::parse(one.read(blocks, block)?, block)
}
