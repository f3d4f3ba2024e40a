//! lvmsync: moving, replicating and keeping the history of block devices.
//!
//! The library is the binary's; its interface may change with any release. Dependencies point one way:
//!
//! ```text
//! cli → { source, destination, comparand } → { engine, dm } → { changes, delta, session, volume }
//!     → { extent, blocks, units, error }
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`extent`], [`change_list`], [`units`], [`error`] | the words: extents and lists of them, sizes, what can go wrong |
//! | [`blocks`] | what volumes are compared by: pieces, blocks, digests (pure) |
//! | [`changes`] | change sources: bytes of kernel metadata in, change lists out (pure) |
//! | [`delta`] | the delta format, `docs/format.md` (pure but for Read and Write) |
//! | [`volume`], [`sys`] | block devices, files, their twins for tests; the ioctls and buffers below them |
//! | [`dm`] | device-mapper and LVM: names, UUIDs, tables, who is open |
//! | [`engine`] | the data path: plan, pump, apply, undo |
//! | [`source`], [`destination`], [`comparand`] | from what the user typed to what the engine moves |
//! | [`doctor`] | what a machine can do, what is missing, what is stale (pure but for its `gather`) |
//! | [`history`] | deltas that follow each other: one made of several, the way back before an apply, pictures |
//! | [`gate`] | what a server with limits lets in |
//! | [`hold`] | what is held for a while and given back whatever happens: reservations, activations |
//! | [`record`] | which state each destination holds, and whether a write is under way |
//! | [`cancel`], [`monitor`] | stopping cleanly, telling |
//! | [`partial_file`], [`undo_file`], [`write_behind`], [`pipe`] | files that appear when whole, one that stays when it is needed, one that goes to the disk while it is written; pipes that hold much |

// A model in a test counts in whatever is handy.
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::redundant_clone
    )
)]

pub mod blocks;
pub mod cancel;
pub mod change_list;
pub mod changes;
pub mod cli;
pub mod commands;
pub mod comparand;
pub mod delta;
pub mod destination;
pub mod dm;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod extent;
#[doc(hidden)]
pub mod fuzzing;
pub mod gate;
pub mod history;
pub mod hold;
pub mod job;
pub mod monitor;
pub mod partial_file;
pub mod pipe;
pub mod record;
pub mod session;
pub mod source;
pub mod spool_file;
pub mod sys;
pub mod track;
pub mod undo_file;
pub mod units;
pub mod view;
pub mod volume;
pub mod write_behind;

/// Name and version, as written into deltas and said in handshakes.
pub const PROGRAM: &str = concat!("lvmsync ", env!("CARGO_PKG_VERSION"));
