//! The delta format: `docs/format.md` in code.
//!
//! Guarantees: what a reader returns has passed its checksums; nothing is allocated before its length was
//! checked against a constant; a delta without a whole, matching trailer is never reported as read.
//! The modules below `reader` and `writer` are pure: bytes in, values out.

pub mod codec;
pub mod header;
pub mod index;
pub mod lookup;
pub mod proto3;
pub mod reader;
pub mod record;
pub mod resume;
pub mod samples;
pub mod stored;
pub mod stream;
pub mod trailer;
pub mod writer;

use std::io;

use crate::error::ExitCode;

/// The line that opens a delta of version 4.
pub const MAGIC_LINE: &[u8; 17] = b"lvmsync PROTO[4]\n";

/// Most bytes of the volume in one data frame.
pub const MAX_FRAME_BYTES: u64 = 1 << 20;

/// Why a delta is not usable. `at` is always the delta offset of the record in question.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The first line is something else.
    #[error("not a delta: it begins with {found:?}, and a delta begins with \"lvmsync PROTO[4]\"")]
    NotADelta {
        /// Up to 40 characters of what was found.
        found: String,
    },

    /// A version of the format that this program does not read.
    #[error("{line:?} is a version of the format that is not read: {reason}")]
    UnsupportedVersion {
        /// The first line as found.
        line: String,
        /// Why, and what to do.
        reason: &'static str,
    },

    /// The header asks for what this program does not know.
    #[error(
        "this delta needs {name:?}, which this version of lvmsync does not know: use a newer one"
    )]
    UnknownFeature {
        /// The feature's name.
        name: String,
    },

    /// The delta ends before it is whole.
    #[error("it ends at byte {at}, in the middle of {inside}: a part is missing")]
    Truncated {
        /// Delta offset at which bytes were wanted and none came.
        at: u64,
        /// What was being read.
        inside: &'static str,
    },

    /// A checksum does not match.
    #[error(
        "the checksum of {what} at byte {at} is {found}, expected {expected}: bytes were changed"
    )]
    Checksum {
        /// Delta offset.
        at: u64,
        /// What the checksum covers.
        what: &'static str,
        /// Computed from the bytes.
        found: String,
        /// Recorded in the delta.
        expected: String,
    },

    /// A field holds what it must not.
    #[error("byte {at}: {field} is {found}, expected {expected}")]
    Field {
        /// Delta offset.
        at: u64,
        /// Name of the field as in `docs/format.md`.
        field: &'static str,
        /// Found value.
        found: String,
        /// What is allowed.
        expected: String,
    },

    /// A record stands where it may not.
    #[error("byte {at}: {found}, expected {expected}")]
    OutOfOrder {
        /// Delta offset.
        at: u64,
        /// What was found.
        found: String,
        /// What may stand here.
        expected: String,
    },

    /// A payload does not decompress to what its frame says.
    #[error("byte {at}: the {codec} payload does not decompress to {length} bytes: {reason}")]
    Payload {
        /// Delta offset.
        at: u64,
        /// Codec's name.
        codec: &'static str,
        /// Expected length in bytes.
        length: u64,
        /// The codec's words.
        reason: String,
    },

    /// Bytes follow the trailer.
    #[error("bytes follow the trailer that ends at byte {at}: this is more than one delta")]
    Trailing {
        /// Delta offset of the first of them.
        at: u64,
    },

    /// The bytes could not be read at all.
    #[error("cannot read the delta")]
    Io(#[source] io::Error),
}

impl FormatError {
    /// 6, except that a failed read is 1 and an unknown feature is a refusal.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            FormatError::Io(_) => ExitCode::Failed,
            FormatError::UnknownFeature { .. } => ExitCode::Refused,
            _ => ExitCode::Damaged,
        }
    }
}
