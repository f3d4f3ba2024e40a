//! The superblock of a thin pool's metadata (pure, over bytes).
//!
//! Guarantees: what is returned has the right checksum, place, magic and version, and a block size that a
//! pool can have. Layout: `struct thin_disk_superblock` in drivers/md/dm-thin-metadata.c, little-endian.

use super::super::btree::{METADATA_BLOCK_BYTES, metadata_checksum, u32_at, u64_at};
use super::error::{Result, ThinError};
use crate::units::SECTOR_BYTES;

/// `THIN_SUPERBLOCK_MAGIC`.
pub(super) const MAGIC: u64 = 27_022_010;
/// The only version of the format since 2011.
pub(super) const VERSION: u32 = 2;
/// Times in mappings have this many bits.
pub(super) const TIME_BITS: u32 = 24;
/// A pool's blocks are multiples of 64 KiB ...
pub(super) const MIN_BLOCK_SECTORS: u32 = 128;
/// ... up to 1 GiB.
pub(super) const MAX_BLOCK_SECTORS: u32 = 2 << 20;

/// Mixed into the checksum of a superblock.
pub(super) const SUPERBLOCK_SALT: u32 = 160_774;
/// Bit of `flags`: the kernel found damage, and wants thin_check to be run.
pub(super) const NEEDS_CHECK: u32 = 1;

pub(super) const FLAGS: usize = 4;
pub(super) const BLOCK: usize = 8;
pub(super) const MAGIC_AT: usize = 32;
pub(super) const VERSION_AT: usize = 40;
pub(super) const TIME: usize = 44;
pub(super) const TRANSACTION: usize = 48;
pub(super) const HELD_ROOT: usize = 56;
pub(super) const MAPPING_ROOT: usize = 320;
pub(super) const DETAILS_ROOT: usize = 328;
pub(super) const BLOCK_SECTORS: usize = 336;
pub(super) const METADATA_BLOCK_SECTORS: usize = 340;
pub(super) const METADATA_BLOCKS: usize = 344;
pub(super) const INCOMPATIBLE: usize = 360;

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The checksum that was found, and found right.
    pub checksum: u32,
    /// The kernel found damage, and will let nobody write before thin_check was run.
    pub needs_check: bool,
    /// Counts snapshots: the time of a mapping is the pool's time when it was made.
    pub time: u32,
    /// Counts what userspace did to the pool.
    pub transaction_id: u64,
    /// The block of the metadata snapshot's superblock; 0 if there is none. Always 0 in that one.
    pub held_root: u64,
    /// Root of the tree of devices.
    pub mapping_root: u64,
    /// Root of the tree of device details.
    pub details_root: u64,
    /// Bytes of a block of the pool: a multiple of 64 KiB, at most 1 GiB.
    pub block_bytes: u64,
}

impl Superblock {
    /// Checks and reads a superblock that was found in `block`.
    pub fn parse(bytes: &[u8; METADATA_BLOCK_BYTES], block: u64) -> Result<Self> {
        let wrong = |field, found: u64, expected: String| ThinError::Superblock {
            block,
            field,
            found,
            expected,
        };
        let must_be = |field, found: u64, expected: u64| {
            if found == expected {
                Ok(())
            } else {
                Err(wrong(field, found, expected.to_string()))
            }
        };
        // The magic first: "not a superblock" says more than "damaged".
        must_be("magic", u64_at(bytes, MAGIC_AT), MAGIC)?;
        let checksum = u32_at(bytes, 0);
        let expected = metadata_checksum(bytes, SUPERBLOCK_SALT);
        must_be("checksum", checksum.into(), expected.into())?;
        must_be("block number", u64_at(bytes, BLOCK), block)?;
        must_be("version", u32_at(bytes, VERSION_AT).into(), VERSION.into())?;
        let features = u32_at(bytes, INCOMPATIBLE);
        must_be("set of incompatible features", features.into(), 0)?;
        let sectors = u32_at(bytes, METADATA_BLOCK_SECTORS);
        must_be("metadata block size in sectors", sectors.into(), 8)?;
        let sectors = u32_at(bytes, BLOCK_SECTORS);
        if !(MIN_BLOCK_SECTORS..=MAX_BLOCK_SECTORS).contains(&sectors)
            || !sectors.is_multiple_of(MIN_BLOCK_SECTORS)
        {
            let expected = format!("a multiple of {MIN_BLOCK_SECTORS} up to {MAX_BLOCK_SECTORS}");
            return Err(wrong("block size in sectors", sectors.into(), expected));
        }
        let time = u32_at(bytes, TIME);
        if time >> TIME_BITS != 0 {
            // The kernel would have added what does not fit to the number of the data block.
            let expected = format!("less than {}", 1 << TIME_BITS);
            return Err(wrong("time", time.into(), expected));
        }
        Ok(Self {
            checksum,
            needs_check: u32_at(bytes, FLAGS) & NEEDS_CHECK != 0,
            time,
            transaction_id: u64_at(bytes, TRANSACTION),
            held_root: u64_at(bytes, HELD_ROOT),
            mapping_root: u64_at(bytes, MAPPING_ROOT),
            details_root: u64_at(bytes, DETAILS_ROOT),
            block_bytes: u64::from(sectors) * SECTOR_BYTES,
        })
    }
}
