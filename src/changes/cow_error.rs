//! What can be wrong with an exception store, as data.
//!
//! Guarantees: each value says where in the store, what was found and what was expected.

use std::io;

use super::cow::{MAGIC, MAX_CHUNK_BYTES, VERSION};
use crate::error::ExitCode;
use crate::units::SECTOR_BYTES;

/// What makes a store unusable. Offsets are bytes in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// All-zero magic: the kernel would format it on first use.
    #[error(
        "it was never written: the snapshot has not been active yet, so it has tracked nothing"
    )]
    NeverWritten,
    /// Some other magic.
    #[error(
        "it does not begin with the magic of an exception store \
         (found {found:#010x}, expected {MAGIC:#010x})"
    )]
    WrongMagic {
        /// The four bytes at offset 0.
        found: u32,
    },
    /// The kernel clears `valid` when a snapshot overflows or fails.
    #[error(
        "it is marked invalid ({found}): the snapshot overflowed or failed, and stopped tracking"
    )]
    Invalid {
        /// The field's value.
        found: u32,
    },
    /// Not version 1.
    #[error("it has format version {found}; only version {VERSION} is known")]
    UnknownVersion {
        /// The field's value.
        found: u32,
    },
    /// Not a power of two, or outside 512 B to 16 MiB.
    #[error(
        "its chunk size of {found_sectors} sectors is not a power of two from 1 to {max}",
        max = MAX_CHUNK_BYTES / SECTOR_BYTES
    )]
    ChunkSize {
        /// The field's value.
        found_sectors: u32,
    },
    /// The caller's origin size cannot be the size of a device.
    #[error("the origin's size of {found} bytes is larger than a device can be")]
    OriginSize {
        /// What was passed in.
        found: u64,
    },
    /// The store ends inside the header or inside an area, or before an area that must be there.
    #[error(
        "it is cut short: {part} needs the bytes from {offset} to {expected_end}, \
         but the store ends at {found_end}"
    )]
    Truncated {
        /// `the header` or `area N of the table`.
        part: String,
        /// Where the part begins.
        offset: u64,
        /// Where the part should end.
        expected_end: u64,
        /// Size of the store in bytes.
        found_end: u64,
    },
    /// An entry names a chunk that the origin does not have.
    #[error(
        "the entry at offset {offset} names chunk {found} of the origin, \
         which has only {expected_below} chunks"
    )]
    OldChunk {
        /// Where the entry is.
        offset: u64,
        /// The entry's `old_chunk`.
        found: u64,
        /// Number of chunks of the origin, the last one perhaps partial.
        expected_below: u64,
    },
    /// An entry's saved data would lie outside the store.
    #[error(
        "the entry at offset {offset} says its data is in chunk {found}, \
         but the store ends after {expected_below} chunks: it is damaged or cut short"
    )]
    NewChunk {
        /// Where the entry is.
        offset: u64,
        /// The entry's `new_chunk`.
        found: u64,
        /// Number of whole chunks in the store.
        expected_below: u64,
    },
    /// An entry's saved data would lie on the header or on an area.
    #[error("the entry at offset {offset} says its data is in chunk {found}, which holds metadata")]
    NewChunkIsMetadata {
        /// Where the entry is.
        offset: u64,
        /// The entry's `new_chunk`.
        found: u64,
    },
    /// Reading failed.
    #[error("cannot read {length} bytes at offset {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// The system's answer.
        source: io::Error,
    },
}

impl StoreError {
    /// Tracking lost for a store that says too little; failed where the store could not be read at all.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            StoreError::Read { .. } | StoreError::OriginSize { .. } => ExitCode::Failed,
            _ => ExitCode::TrackingLost,
        }
    }
}
