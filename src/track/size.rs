//! How large a block of the record is, and how much room the record needs.
//!
//! Pure. Guarantees: the number of blocks fits what dm-era can count; there is room for the era array, for a copy of it
//! while it is rewritten under a metadata snapshot, and for the bitsets of more eras than the kernel leaves undigested.

use crate::error::{Error, Result};
use crate::units::{Bytes, SECTOR_BYTES};

/// A block of a volume of ordinary size.
const USUAL_BLOCK_BYTES: u64 = 64 << 10;
/// Beyond that many blocks larger ones are chosen: their array has 256 MiB.
const MANY_BLOCKS: u64 = 1 << 26;
/// dm-era counts no more.
const MOST_BLOCKS: u64 = (1 << 31) - 1;
/// dm-era takes multiples of that.
const BLOCK_UNIT_BYTES: u64 = 4096;
/// Larger ones would make each list coarser than is of any use.
const MOST_BLOCK_BYTES: u64 = 1 << 30;

/// A block of metadata.
const METADATA_BLOCK_BYTES: u64 = 4096;
/// Numbers of eras, and words of a bitset, in one block of an array.
const ERAS_IN_BLOCK: u64 = 1018;
const BITS_IN_BLOCK: u64 = 509 * 64;
/// The array, a copy under a metadata snapshot, and one more while blocks are rewritten; bitsets of eras that are not digested
/// yet.
const USUAL: Parts = Parts {
    arrays: 3,
    bitsets: 16,
};
/// Array and copy, and bitsets of the eras of one run.
const LEAST: Parts = Parts {
    arrays: 2,
    bitsets: 8,
};
/// The record cannot grow, and the volume may become so many times as large.
const GROWTH: u64 = 2;
/// Superblock, space maps, trees.
const FIXED_BYTES: u64 = 4 << 20;
/// The kernel uses no more (255 index entries of its space map).
const MOST_METADATA_BYTES: u64 = 255 * ((1 << 14) - 64) * METADATA_BLOCK_BYTES;

/// The size of a block for a volume of this size: `asked`, if that can be.
pub fn block_bytes(size_bytes: u64, asked: Option<u64>) -> Result<u64> {
    let Some(asked) = asked else {
        let least = size_bytes.div_ceil(MANY_BLOCKS).max(USUAL_BLOCK_BYTES);
        return Ok(least.next_power_of_two());
    };
    let can_be = asked.is_multiple_of(BLOCK_UNIT_BYTES)
        && (BLOCK_UNIT_BYTES..=MOST_BLOCK_BYTES).contains(&asked);
    if !can_be {
        return Err(Error::Usage(format!(
            "a block of {asked} bytes: it must be a multiple of 4K, and at most 1G"
        )));
    }
    if size_bytes.div_ceil(asked) > MOST_BLOCKS {
        return Err(Error::Usage(format!(
            "blocks of {}: the volume would have more of them than dm-era can count (2^31)",
            Bytes(asked)
        )));
    }
    Ok(asked)
}

struct Parts {
    arrays: u64,
    bitsets: u64,
}

impl Parts {
    fn bytes(&self, size_bytes: u64, block_bytes: u64) -> u64 {
        let blocks = size_bytes.div_ceil(block_bytes.max(1));
        let array = blocks.div_ceil(ERAS_IN_BLOCK).saturating_mul(self.arrays);
        let bits = blocks.div_ceil(BITS_IN_BLOCK).saturating_mul(self.bitsets);
        array
            .saturating_add(bits)
            .saturating_mul(METADATA_BLOCK_BYTES)
            .saturating_add(FIXED_BYTES)
    }
}

/// What a record of this size must have at least for a volume of that size.
pub fn least_metadata_bytes(size_bytes: u64, block_bytes: u64) -> u64 {
    LEAST.bytes(size_bytes, block_bytes)
}

/// Room for the record of a volume of this size, which may grow.
pub fn metadata_bytes(size_bytes: u64, block_bytes: u64) -> Result<u64> {
    let bytes = USUAL.bytes(size_bytes, block_bytes);
    if bytes > MOST_METADATA_BYTES {
        return Err(Error::Usage(format!(
            "blocks of {}: their record would need {}, and dm-era uses at most {}; choose larger ones: --block-size",
            Bytes(block_bytes),
            Bytes(bytes),
            Bytes(MOST_METADATA_BYTES)
        )));
    }
    let grown = USUAL.bytes(size_bytes.saturating_mul(GROWTH), block_bytes);
    Ok(grown.min(MOST_METADATA_BYTES))
}

/// Whole sectors.
pub fn sectors(bytes: u64) -> u64 {
    bytes / SECTOR_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    #[test]
    fn blocks_grow_with_the_volume_and_can_be_chosen() {
        assert_eq!(block_bytes(1 << 30, None).unwrap(), 64 << 10);
        assert_eq!(block_bytes(4 * TIB, None).unwrap(), 64 << 10);
        assert_eq!(block_bytes(4 * TIB + 1, None).unwrap(), 128 << 10);
        assert_eq!(block_bytes(TIB, Some(192 << 10)).unwrap(), 192 << 10);
        for asked in [0, 512, 4097, 2 << 30] {
            assert!(block_bytes(TIB, Some(asked)).is_err(), "{asked}");
        }
        assert!(block_bytes(8 * TIB, Some(4096)).is_err());
        assert!(block_bytes(8 * TIB - 4096, Some(4096)).is_ok());
    }

    #[test]
    fn the_record_has_room_and_stays_small() {
        assert!(metadata_bytes(64 << 20, 64 << 10).unwrap() < 5 << 20);
        let bytes = metadata_bytes(TIB, 64 << 10).unwrap();
        assert!((400 << 20..500 << 20).contains(&bytes), "{bytes}");
        for grown in [TIB, 2 * TIB, 2 * TIB + TIB / 2] {
            assert!(least_metadata_bytes(grown, 64 << 10) <= bytes);
        }
        assert!(least_metadata_bytes(4 * TIB, 64 << 10) > bytes);
        for exponent in 20..60 {
            let size = 1u64 << exponent;
            let block = block_bytes(size, None).unwrap();
            let bytes = metadata_bytes(size, block).unwrap();
            // A word for each block, twice, is the least that a metadata snapshot needs.
            assert!(bytes > 8 * size.div_ceil(block) && bytes <= 1 << 31);
        }
        assert!(metadata_bytes(16 * TIB, 4096).is_err());
    }
}
