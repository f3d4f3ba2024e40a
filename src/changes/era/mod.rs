//! Reads the metadata of dm-era: which blocks of a device were written since an era began.
//!
//! Guarantees: what is reported is all there is, or there is an error; every block that is used has the right
//! checksum and is the one that was expected there; memory is below 32 MiB beside the list, whatever the metadata
//! says; nothing is written.
//!
//! On a live device, read a metadata snapshot ([`Root::Held`]), with O_DIRECT, because the page cache of these
//! devices is stale, and ask [`EraMetadata::check_unchanged`] at the end.
//!
//! An era is the time between two checkpoints; each activation begins one as well. For each era the kernel keeps a
//! *writeset*, a bit for each block. In time it digests old ones into the *era array*, which has for each block the
//! last era in which it was written. The bit is on the disk before the block is written.
//!
//! ```text
//! superblock, block 0 ── writeset_tree_root → era → {blocks, root → array of bits}
//!   │                ├── era_array_root     → array of eras, one for each block
//!   │                └── current_writeset   {blocks, root → array of bits}
//!   └── metadata_snap → a copy of the superblock whose first two roots are those of a metadata snapshot
//! ```
//!
//! Taking a metadata snapshot ends the era: what was the current writeset is in the tree then.

mod array;
#[doc(hidden)]
pub mod build;
mod error;
mod superblock;
mod written;

#[cfg(test)]
mod tests;

pub use super::btree::{METADATA_BLOCK_BYTES, ReadError, TreeError};
pub use error::{EraError, Tree};
pub use superblock::{Superblock, Writeset};

use super::btree::{Blocks, Head, Horizon, OneBlock, TreeKind, Walk};
use crate::volume::ReadAt;
use array::Array;
use error::Result;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// The superblock: for copies in files, and devices that are not active.
    Live,
    /// The metadata snapshot that the superblock names.
    Snapshot,
    /// A metadata snapshot in this block, as `dmsetup status` of the device says.
    Held(u64),
}

/// The kernel digests one after the other; a device that is reloaded without end has some more.
const MAX_WRITESETS: u64 = 1 << 20;

/// The metadata of an era device. `device` is read when asked, and never changed.
pub struct EraMetadata<'a> {
    blocks: Blocks<'a>,
    superblock: Superblock,
    /// Where the superblock is.
    block: u64,
}

impl<'a> EraMetadata<'a> {
    /// Reads and checks a superblock.
    pub fn open(device: &'a dyn ReadAt, root: Root) -> Result<Self> {
        let blocks = Blocks::new(device);
        let block = match root {
            Root::Live => 0,
            Root::Snapshot => read_superblock(&blocks, 0)?.snapshot,
            Root::Held(block) => block,
        };
        if block == 0 && root != Root::Live {
            return Err(EraError::NoSnapshot);
        }
        let mut superblock = read_superblock(&blocks, block)?;
        if block != 0 {
            // It was archived when the snapshot was made; what is copied here is the new era's, which goes on.
            superblock.current = None;
        }
        Ok(Self {
            blocks,
            superblock,
            block,
        })
    }

    /// What the superblock said when it was opened.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> u64 {
        self.superblock.block_bytes
    }

    /// An error if the superblock is not what it was, or the metadata snapshot is no longer the device's.
    ///
    /// What was read from a live device counts only after this: a snapshot that somebody dropped may have been
    /// written over with blocks that look sound. On a live device, read with O_DIRECT.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = read_superblock(&self.blocks, self.block)?;
        if now.checksum != self.superblock.checksum {
            let field = "the superblock";
            return Err(EraError::Changed { field });
        }
        if self.block != 0 && read_superblock(&self.blocks, 0)?.snapshot != self.block {
            let field = "the metadata snapshot";
            return Err(EraError::Changed { field });
        }
        Ok(())
    }

    /// All writesets with this era or a later one.
    fn writesets(&self, since: u32) -> Result<Vec<Writeset>> {
        let current = self.superblock.current_era;
        let most = MAX_WRITESETS.min(self.blocks.count);
        let root = self.superblock.writesets_root;
        let mut walk = Walk::new(&self.blocks, Tree::Writesets, root)?;
        let mut found: Vec<Writeset> = self.superblock.current.into_iter().collect();
        let alone = Horizon::default();
        loop {
            match walk.head() {
                Head::End => return Ok(found),
                Head::Subtree(child) if child.last < since.into() => walk.skip(),
                Head::Subtree(_) => walk.enter(&alone)?,
                Head::Entries(_) => {
                    let (keys, values) = walk.entries();
                    let length = Tree::Writesets.leaf_value_bytes() as usize;
                    for (key, value) in keys.iter().zip(values.chunks_exact(length)) {
                        let writeset = writeset(u64::from_le_bytes(*key), value, current)?;
                        if writeset.era >= since {
                            found.push(writeset);
                        }
                    }
                    if found.len() as u64 > most {
                        return Err(EraError::TooManyWritesets { most });
                    }
                    let count = keys.len();
                    walk.consume(count);
                }
            }
        }
    }

    fn era_array(&self) -> Array {
        Array {
            tree: Tree::EraArray,
            root: self.superblock.array_root,
            length: self.superblock.blocks.into(),
            value_bytes: 4,
        }
    }
}

impl Writeset {
    /// Its bits, 64 in each number.
    fn bits(self) -> Array {
        Array {
            tree: Tree::Bitset,
            root: self.root,
            length: u64::from(self.blocks).div_ceil(64),
            value_bytes: 8,
        }
    }
}

/// `struct writeset_disk`, under its era.
fn writeset(era: u64, value: &[u8], current: u32) -> Result<Writeset> {
    let known = u32::try_from(era).ok().filter(|era| *era <= current);
    let era = known.ok_or(EraError::EraToCome {
        tree: Tree::Writesets,
        found: era,
        current,
    })?;
    let number = |bytes: Option<&[u8; 4]>| bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let root = value.get(4..).and_then(<[u8]>::first_chunk);
    Ok(Writeset {
        era,
        blocks: number(value.first_chunk()),
        root: root.map_or(0, |root| u64::from_le_bytes(*root)),
    })
}

fn read_superblock(blocks: &Blocks<'_>, block: u64) -> Result<Superblock> {
    if block >= blocks.count {
        return Err(EraError::CutShort {
            block,
            blocks: blocks.count,
        });
    }
    let mut one = OneBlock::default();
    Superblock::parse(one.read(blocks, block)?, block)
}
