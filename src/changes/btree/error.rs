//! What can be wrong with a tree, as data.
//!
//! Guarantees: each value says which tree, where, what was found and what was expected.

use std::io;

use super::TreeKind;

/// A metadata block that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read block {block} of the metadata")]
pub struct ReadError {
    /// Which block.
    pub block: u64,
    /// The system's answer.
    pub source: io::Error,
}

/// What makes a tree unusable. Blocks are numbered in units of 4096 bytes from the start of the metadata device.
#[derive(Debug, thiserror::Error)]
pub enum TreeError<T: TreeKind> {
    /// A node that is damaged, or not the node that its parent promised.
    #[error(
        "block {block} is no usable node of {tree}: its {field} is {found}, expected {expected}"
    )]
    Node {
        /// Which tree was walked.
        tree: T,
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
        tree: T,
        /// The block that is named.
        block: u64,
        /// Number of blocks that the metadata has.
        blocks: u64,
    },
    /// More nodes than there are blocks: a tree that holds itself.
    #[error("{tree} has more nodes than the metadata has blocks ({blocks})")]
    TooManyNodes {
        /// Which tree was walked.
        tree: T,
        /// Number of blocks that the metadata has.
        blocks: u64,
    },
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Shorthand used by the readers here.
pub(super) type Result<V, T> = std::result::Result<V, TreeError<T>>;
