//! The b-trees of the kernel's persistent-data library, which thin pools and dm-era keep their metadata in.
//!
//! Guarantees: every node that is entered was checked; depth, nodes and memory are bounded, whatever the bytes
//! are; a tree is left, or read to its end, or there is an error that says where and why.
//!
//! The format is the kernel's (drivers/md/persistent-data/dm-btree-internal.h): blocks of 4096 bytes,
//! little-endian, each with a checksum of its own. What keys and values mean is for whoever owns the tree.

mod blocks;
pub(super) mod build;
mod error;
pub(super) mod node;
mod walk;

pub(super) use blocks::{BATCH, Batch, Blocks, OneBlock};
pub use error::{ReadError, TreeError};
pub(super) use node::Block;
pub(super) use walk::{Head, Horizon, Walk, last_key, look_up};

use std::fmt;

/// Bytes of a metadata block. The kernel knows no other size.
pub const METADATA_BLOCK_BYTES: usize = 4096;

/// The trees of one kind of metadata: what they are called, and what their leaves hold.
pub trait TreeKind: Copy + fmt::Debug + fmt::Display + PartialEq {
    /// Bytes of a value in a leaf.
    fn leaf_value_bytes(self) -> u32;
}

/// The checksum of every kind of metadata block: of all but the first four bytes, where it is kept. The
/// kernel's crc32c does not invert its result.
pub(super) fn metadata_checksum(block: &[u8], salt: u32) -> u32 {
    !crc32c::crc32c(block.get(4..).unwrap_or_default()) ^ salt
}

/// A field of a block; offsets are constants below the block's size.
pub(super) fn u32_at(block: &Block, at: usize) -> u32 {
    block[at..]
        .first_chunk()
        .map_or(0, |field| u32::from_le_bytes(*field))
}

/// As [`u32_at`].
pub(super) fn u64_at(block: &Block, at: usize) -> u64 {
    block[at..]
        .first_chunk()
        .map_or(0, |field| u64::from_le_bytes(*field))
}
