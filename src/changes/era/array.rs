//! Arrays of the kernel's persistent-data library: numbers of one size, packed into blocks that a tree lists.
//!
//! Guarantees: an array that was read has exactly the length that was promised, and every block of it that was
//! used has the right checksum and is the one that its tree named; a part of a long array can be read alone.
//! Layout: `struct array_block` in drivers/md/persistent-data/dm-array.c, little-endian: a header of 24 bytes,
//! then the numbers. All blocks but the last are full.

use std::ops::Range;

use super::super::btree::{
    BATCH, Batch, Block, Blocks, Head, Horizon, METADATA_BLOCK_BYTES, OneBlock, TreeError, Walk,
    last_key, metadata_checksum, u32_at, u64_at,
};
use super::error::{EraError, Result, Tree};

/// Mixed into the checksum of an array block.
pub(super) const ARRAY_SALT: u32 = 595_846_735;
pub(super) const HEADER_BYTES: usize = 24;
pub(super) const MAX_ENTRIES: usize = 4;
pub(super) const ENTRIES: usize = 8;
pub(super) const VALUE_BYTES: usize = 12;
pub(super) const BLOCK: usize = 16;

/// An array of numbers of `value_bytes` each, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Array {
    pub(super) tree: Tree,
    pub(super) root: u64,
    pub(super) length: u64,
    pub(super) value_bytes: u64,
}

impl Array {
    /// Numbers in a full block.
    pub(super) fn room(self) -> u64 {
        (METADATA_BLOCK_BYTES - HEADER_BYTES) as u64 / self.value_bytes
    }

    /// Passes on the blocks that hold the numbers in `part`, in order: the index of each one's first number, and
    /// the bytes of all of its numbers. `left` is how many array blocks may still be read.
    pub(super) fn read(
        self,
        blocks: &Blocks<'_>,
        part: Range<u64>,
        left: &mut u64,
        mut visit: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let room = self.room();
        let count = self.length.div_ceil(room);
        self.check_end(blocks, count)?;
        let end = part.end.min(self.length).div_ceil(room);
        let mut next = part.start / room;
        let mut walk = Walk::new(blocks, self.tree, self.root)?;
        let alone = Horizon::default();
        let mut batch = Batch::default();
        let mut wanted = Vec::new();
        while next < end {
            match walk.head() {
                Head::End => return Err(self.wrong_length(None, next)),
                Head::Subtree(child) if child.last < next => walk.skip(),
                Head::Subtree(_) => walk.enter(&alone)?,
                Head::Entries(_) => {
                    let (keys, values) = walk.entries();
                    let before = keys.partition_point(|key| u64::from_le_bytes(*key) < next);
                    let entries = keys.iter().zip(values.as_chunks().0).skip(before);
                    let entries = entries.take(BATCH);
                    let mut used = before;
                    wanted.clear();
                    for (key, block) in entries.clone() {
                        let (key, block) = (u64::from_le_bytes(*key), u64::from_le_bytes(*block));
                        if next + wanted.len() as u64 == end {
                            break;
                        }
                        if key != next + wanted.len() as u64 {
                            return Err(self.wrong_length(Some(key), next + wanted.len() as u64));
                        }
                        self.inside(blocks, block)?;
                        wanted.push(block);
                    }
                    let found = wanted.len();
                    *left = left
                        .checked_sub(found as u64)
                        .ok_or(EraError::TooManyBlocks {
                            blocks: blocks.count,
                        })?;
                    used += found;
                    batch.fill(blocks, &mut wanted);
                    for (_, block) in entries.take(found) {
                        let block = u64::from_le_bytes(*block);
                        let mut one = OneBlock::default();
                        let bytes = match batch.slot(block) {
                            Some(slot) => batch.bytes(slot),
                            // It could not be read with the others. Alone, for the error.
                            None => one.read(blocks, block)?,
                        };
                        let first = next * room;
                        let numbers = (self.length - first).min(room);
                        visit(first, self.numbers(bytes, block, numbers)?)?;
                        next += 1;
                    }
                    walk.consume(used);
                }
            }
        }
        Ok(())
    }

    /// The last key of the tree says how many blocks there are: one more or less is another array.
    fn check_end(self, blocks: &Blocks<'_>, count: u64) -> Result<()> {
        let last = last_key(blocks, self.tree, self.root)?;
        match last == count.checked_sub(1) {
            true => Ok(()),
            false => Err(EraError::ArrayLength {
                tree: self.tree,
                root: self.root,
                found: last.map_or("nothing".to_owned(), |last| format!("block {last}")),
                expected: match count {
                    0 => "none".to_owned(),
                    _ => format!("{} as its last", count - 1),
                },
            }),
        }
    }

    fn wrong_length(self, found: Option<u64>, expected: u64) -> EraError {
        EraError::ArrayLength {
            tree: self.tree,
            root: self.root,
            found: found.map_or("its end".to_owned(), |found| format!("block {found}")),
            expected: expected.to_string(),
        }
    }

    fn inside(self, blocks: &Blocks<'_>, block: u64) -> Result<()> {
        if block == 0 || block >= blocks.count {
            return Err(TreeError::Outside {
                tree: self.tree,
                block,
                blocks: blocks.count,
            }
            .into());
        }
        Ok(())
    }

    /// Checks an array block and returns the bytes of its numbers.
    fn numbers(self, bytes: &Block, block: u64, count: u64) -> Result<&[u8]> {
        let must_be = |field, found: u64, expected: u64| match found == expected {
            true => Ok(()),
            false => Err(EraError::ArrayBlock {
                tree: self.tree,
                block,
                field,
                found,
                expected: expected.to_string(),
            }),
        };
        let checksum = metadata_checksum(bytes, ARRAY_SALT);
        must_be("checksum", u32_at(bytes, 0).into(), checksum.into())?;
        must_be("block number", u64_at(bytes, BLOCK), block)?;
        let value_bytes = u32_at(bytes, VALUE_BYTES);
        must_be("value size", value_bytes.into(), self.value_bytes)?;
        let most = u32_at(bytes, MAX_ENTRIES);
        must_be("room for entries", most.into(), self.room())?;
        must_be("number of entries", u32_at(bytes, ENTRIES).into(), count)?;
        let length = usize::try_from(count * self.value_bytes).unwrap_or(usize::MAX);
        Ok(bytes[HEADER_BYTES..].get(..length).unwrap_or_default())
    }
}
