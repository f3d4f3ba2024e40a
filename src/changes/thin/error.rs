//! What can be wrong with the metadata of a thin pool, as data.
//!
//! Guarantees: each value says where in the metadata, what was found and what was expected.

use std::fmt;
use std::io;

use super::super::btree::{ReadError, TreeError, TreeKind};
use crate::error::ExitCode;

/// The trees that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Device id to the root of that device's mappings.
    Devices,
    /// Thin block to data block and time, for one device.
    Mappings,
    /// Device id to what is known about the device.
    Details,
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tree::Devices => "the tree of devices",
            Tree::Mappings => "a tree of mappings",
            Tree::Details => "the tree of device details",
        })
    }
}

impl TreeKind for Tree {
    fn leaf_value_bytes(self) -> u32 {
        match self {
            Tree::Devices | Tree::Mappings => 8,
            Tree::Details => 24,
        }
    }
}

/// What makes metadata unusable. Blocks are numbered in units of 4096 bytes from the start of the
/// metadata device.
#[derive(Debug, thiserror::Error)]
pub enum ThinError {
    /// A superblock, or the one of a metadata snapshot, that is damaged or not known.
    #[error(
        "block {block} is no usable superblock of a thin pool: \
         its {field} is {found}, expected {expected}"
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
    /// There is no metadata snapshot, where one was asked for.
    #[error("the pool has no metadata snapshot")]
    NoSnapshot,
    /// The superblock was written again, or the metadata snapshot was released, while it was being read.
    #[error(
        "the metadata changed while it was being read: {field} was {expected}, and is {found} now"
    )]
    Changed {
        /// Which field.
        field: &'static str,
        /// What it is now.
        found: u64,
        /// What it was.
        expected: u64,
    },
    /// The copy was written, anywhere in it, while it was being read.
    #[error(
        "it was written while it was being read, so it may be of no moment at all; run this again when that is done"
    )]
    Written,
    /// A node that is damaged, or not the node that its parent promised.
    #[error(
        "block {block} is no usable node of {tree}: its {field} is {found}, expected {expected}"
    )]
    Node {
        /// Which tree was walked.
        tree: Tree,
        /// Where the node is.
        block: u64,
        /// Which of its fields.
        field: &'static str,
        /// The field's value.
        found: u64,
        /// What it should have been.
        expected: String,
    },
    /// A superblock or a node names a block that cannot be a node.
    #[error(
        "{tree} has a node in block {block}, but nodes are in the blocks from 1 up to {blocks}: \
         the metadata is damaged or cut short"
    )]
    Outside {
        /// Which tree was walked.
        tree: Tree,
        /// The block that is named.
        block: u64,
        /// Number of blocks that the metadata has.
        blocks: u64,
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
    /// More nodes than there are blocks: a tree that holds itself.
    #[error("{tree} has more nodes than the metadata has blocks ({blocks})")]
    TooManyNodes {
        /// Which tree was walked.
        tree: Tree,
        /// Number of blocks that the metadata has.
        blocks: u64,
    },
    /// A device that the pool does not have.
    #[error("the pool has no thin device with the id {device}")]
    NoSuchDevice {
        /// The id.
        device: u64,
    },
    /// One of the two trees of devices knows the device, the other does not.
    #[error("the thin device with the id {device} is missing in {missing_in}: damaged")]
    HalfADevice {
        /// The id.
        device: u64,
        /// Where it is not.
        missing_in: Tree,
    },
    /// The caller's size cannot be the size of a device.
    #[error("a volume's size of {found} bytes is larger than a device can be")]
    VolumeSize {
        /// What was passed in.
        found: u64,
    },
    /// Reading failed.
    #[error("cannot read block {block} of the metadata")]
    Read {
        /// Which block.
        block: u64,
        /// The system's answer.
        source: io::Error,
    },
}

/// Shorthand used by the readers here.
pub(super) type Result<T> = std::result::Result<T, ThinError>;

impl ThinError {
    /// Tracking lost for metadata that says too little; failed where it could not be read at all.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            ThinError::Read { .. } | ThinError::VolumeSize { .. } => ExitCode::Failed,
            _ => ExitCode::TrackingLost,
        }
    }
}

impl From<TreeError<Tree>> for ThinError {
    fn from(error: TreeError<Tree>) -> Self {
        match error {
            TreeError::Node {
                tree,
                block,
                field,
                found,
                expected,
            } => Self::Node {
                tree,
                block,
                field,
                found,
                expected,
            },
            TreeError::Outside {
                tree,
                block,
                blocks,
            } => Self::Outside {
                tree,
                block,
                blocks,
            },
            TreeError::TooManyNodes { tree, blocks } => Self::TooManyNodes { tree, blocks },
            TreeError::Read(error) => error.into(),
        }
    }
}

impl From<ReadError> for ThinError {
    fn from(ReadError { block, source }: ReadError) -> Self {
        Self::Read { block, source }
    }
}
