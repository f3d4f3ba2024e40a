//! lvmsync: moving, replicating and keeping the history of block devices.
//!
//! The library is the binary's; its interface may change with any release. Dependencies point one way:
//!
//! ```text
//! cli → engine → { changes, delta, session, volume, dm } → { extent, units, error }
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`extent`], [`units`], [`error`] | the words: extents and change lists, sizes, what can go wrong |
//! | [`changes`] | change sources: bytes of kernel metadata in, change lists out (pure) |
//! | [`delta`] | the delta format, `docs/format.md` (pure but for Read and Write) |
//! | [`volume`] | block devices, files, and their twins for tests |

pub mod cancel;
pub mod changes;
pub mod delta;
pub mod engine;
pub mod error;
pub mod extent;
pub mod monitor;
pub mod partial_file;
pub mod sys;
pub mod units;
pub mod volume;

/// Name and version, as written into deltas and said in handshakes.
pub const PROGRAM: &str = concat!("lvmsync ", env!("CARGO_PKG_VERSION"));
