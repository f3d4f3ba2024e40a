//! What can be wrong with the metadata of dm-era, as data.
//!
//! Guarantees: each value says where in the metadata, what was found and what was expected.

use std::fmt;

use super::super::btree::{ReadError, TreeError, TreeKind};
use crate::error::ExitCode;

/// The trees that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Era to the blocks that were written in it.
    Writesets,
    /// Index of an array block to where it is: for each block, the era in which it was last written.
    EraArray,
    /// The same of a bitset: which blocks were written in one era.
    Bitset,
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tree::Writesets => "the tree of writesets",
            Tree::EraArray => "the era array",
            Tree::Bitset => "the bitset of a writeset",
        })
    }
}

impl TreeKind for Tree {
    fn leaf_value_bytes(self) -> u32 {
        match self {
            Tree::Writesets => 12,
            Tree::EraArray | Tree::Bitset => 8,
        }
    }
}

/// What makes metadata unusable. Blocks are numbered in units of 4096 bytes from the start of the metadata device.
#[derive(Debug, thiserror::Error)]
pub enum EraError {
    /// A superblock, or the one of a metadata snapshot, that is damaged or not known.
    #[error(
        "block {block} is no usable superblock of dm-era: its {field} is {found}, expected {expected}"
    )]
    Superblock {
        /// 0, or the block of the metadata snapshot.
        block: u64,
        /// Which of its fields.
        field: &'static str,
        /// The field's value.
        found: u64,
        /// What it should have been.
        expected: String,
    },
    /// The metadata ends before its superblock does.
    #[error(
        "it is cut short: the superblock is in block {block}, but there are only {blocks} blocks"
    )]
    CutShort {
        /// Where the superblock should be.
        block: u64,
        /// Number of blocks that the metadata has.
        blocks: u64,
    },
    /// There is no metadata snapshot, where one was asked for.
    #[error("there is no metadata snapshot")]
    NoSnapshot,
    /// The superblock was written again, or the metadata snapshot was dropped, while it was being read.
    #[error("the metadata changed while it was being read: {field} is not what it was")]
    Changed {
        /// What is another.
        field: &'static str,
    },
    /// The copy was written, anywhere in it, while it was being read.
    #[error(
        "it was written while it was being read, so it may be of no moment at all; run this again when that is done"
    )]
    Written,
    /// A tree, or a node of one.
    #[error(transparent)]
    Tree(#[from] TreeError<Tree>),
    /// A block of an array that is damaged, or not the one that its tree promised.
    #[error(
        "block {block} is no usable block of {tree}: its {field} is {found}, expected {expected}"
    )]
    ArrayBlock {
        /// Which array.
        tree: Tree,
        /// Where the block is.
        block: u64,
        /// Which of its fields.
        field: &'static str,
        /// The field's value.
        found: u64,
        /// What it should have been.
        expected: String,
    },
    /// An array with more or fewer blocks than its length needs.
    #[error("{tree} (root in block {root}) has {found} where its block {expected} should be")]
    ArrayLength {
        /// Which array.
        tree: Tree,
        /// Where its root is.
        root: u64,
        /// The index that was found, in words.
        found: String,
        /// The index that was expected, in words.
        expected: String,
    },
    /// More array blocks than there are blocks: arrays that share what arrays never share.
    #[error("its arrays have more blocks than the metadata has ({blocks})")]
    TooManyBlocks {
        /// Number of blocks that the metadata has.
        blocks: u64,
    },
    /// More writesets than the kernel would leave undigested.
    #[error("it has more than {most} writesets")]
    TooManyWritesets {
        /// How many are read.
        most: u64,
    },
    /// An era that has not come yet, as the key of a writeset or in the era array.
    #[error("{tree} names era {found}, but the current era is {current}: damaged")]
    EraToCome {
        /// Where it is named.
        tree: Tree,
        /// The era.
        found: u64,
        /// The current era, as the superblock says.
        current: u32,
    },
    /// What was asked for has not begun: the metadata was made anew, or is that of another device.
    #[error(
        "era {since} has not begun: the current era is {current}. The metadata was formatted anew, or is not that of \
         the device which gave this number"
    )]
    NotBegun {
        /// What was asked for.
        since: u32,
        /// The current era.
        current: u32,
    },
    /// Era 0 stands for "never written".
    #[error("there is no era 0: the first one is 1")]
    EraZero,
    /// The volume has a part that no writes were recorded for.
    #[error(
        "it records writes to {blocks} blocks of {block_bytes} bytes, and the volume has {size_bytes} bytes: writes \
         past the end of the record are not known"
    )]
    VolumeSize {
        /// How many blocks are tracked.
        blocks: u32,
        /// Bytes of each.
        block_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Shorthand used by the readers here.
pub(super) type Result<T> = std::result::Result<T, EraError>;

impl EraError {
    /// Tracking lost for metadata that says too little; failed where it could not be read at all.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            EraError::Read(_) | EraError::Tree(TreeError::Read(_)) => ExitCode::Failed,
            EraError::EraZero => ExitCode::Usage,
            _ => ExitCode::TrackingLost,
        }
    }
}
