//! The superblock of dm-era's metadata (pure, over bytes).
//!
//! Guarantees: what is returned has the right checksum, place, magic and version, and a block size that an era
//! device can have. Layout: `struct superblock_disk` in drivers/md/dm-era-target.c, little-endian.

use super::super::btree::{Block, metadata_checksum, u32_at, u64_at};
use super::error::{EraError, Result};
use crate::units::SECTOR_BYTES;

/// `SUPERBLOCK_MAGIC`.
pub(super) const MAGIC: u64 = 2_126_579_579;
/// The only version of the format since 2014.
pub(super) const VERSION: u32 = 1;
/// Blocks are multiples of 4 KiB.
pub(super) const BLOCK_UNIT_SECTORS: u32 = 8;
/// Mixed into the checksum of a superblock.
pub(super) const SUPERBLOCK_SALT: u32 = 146_538_381;

pub(super) const BLOCK: usize = 8;
pub(super) const MAGIC_AT: usize = 32;
pub(super) const VERSION_AT: usize = 40;
pub(super) const BLOCK_SECTORS: usize = 172;
pub(super) const METADATA_BLOCK_SECTORS: usize = 176;
pub(super) const BLOCKS: usize = 180;
pub(super) const CURRENT_ERA: usize = 184;
pub(super) const CURRENT_BITS: usize = 188;
pub(super) const CURRENT_ROOT: usize = 192;
pub(super) const WRITESETS_ROOT: usize = 200;
pub(super) const ARRAY_ROOT: usize = 208;
pub(super) const SNAPSHOT: usize = 216;

/// Which blocks were written in one era.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writeset {
    /// The era.
    pub era: u32,
    /// How many blocks the device had then.
    pub blocks: u32,
    /// Root of the bitset.
    pub root: u64,
}

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The checksum that was found, and found right.
    pub checksum: u32,
    /// Bytes of a block of the device: a multiple of 4 KiB.
    pub block_bytes: u64,
    /// Blocks of the device.
    pub blocks: u32,
    /// Counts up, from 1.
    pub current_era: u32,
    /// What was written in the current era, unless that is among the writesets already, as it is while the device
    /// is not active.
    pub current: Option<Writeset>,
    /// Root of the tree of writesets.
    pub writesets_root: u64,
    /// Root of the era array.
    pub array_root: u64,
    /// The block of the metadata snapshot's superblock; 0 if there is none.
    pub snapshot: u64,
}

impl Superblock {
    /// Checks and reads a superblock that was found in `block`.
    pub(super) fn parse(bytes: &Block, block: u64) -> Result<Self> {
        let wrong = |field, found: u64, expected: String| EraError::Superblock {
            block,
            field,
            found,
            expected,
        };
        let must_be = |field, found: u64, expected: u64| match found == expected {
            true => Ok(()),
            false => Err(wrong(field, found, expected.to_string())),
        };
        // The magic first: "not a superblock" says more than "damaged".
        must_be("magic", u64_at(bytes, MAGIC_AT), MAGIC)?;
        let expected = metadata_checksum(bytes, SUPERBLOCK_SALT);
        let checksum = u32_at(bytes, 0);
        must_be("checksum", checksum.into(), expected.into())?;
        must_be("block number", u64_at(bytes, BLOCK), block)?;
        must_be("version", u32_at(bytes, VERSION_AT).into(), VERSION.into())?;
        let sectors = u32_at(bytes, METADATA_BLOCK_SECTORS);
        must_be("metadata block size in sectors", sectors.into(), 8)?;
        let sectors = u32_at(bytes, BLOCK_SECTORS);
        if sectors == 0 || !sectors.is_multiple_of(BLOCK_UNIT_SECTORS) {
            let expected = format!("a multiple of {BLOCK_UNIT_SECTORS}");
            return Err(wrong("block size in sectors", sectors.into(), expected));
        }
        let current_era = u32_at(bytes, CURRENT_ERA);
        let root = u64_at(bytes, CURRENT_ROOT);
        Ok(Self {
            checksum,
            block_bytes: u64::from(sectors) * SECTOR_BYTES,
            blocks: u32_at(bytes, BLOCKS),
            current_era,
            // The kernel writes 0 for "none": the superblock is there.
            current: (root != 0).then(|| Writeset {
                era: current_era,
                blocks: u32_at(bytes, CURRENT_BITS),
                root,
            }),
            writesets_root: u64_at(bytes, WRITESETS_ROOT),
            array_root: u64_at(bytes, ARRAY_ROOT),
            snapshot: u64_at(bytes, SNAPSHOT),
        })
    }
}
