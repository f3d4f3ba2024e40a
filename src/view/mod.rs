//! A look into a past or future state: a chain of deltas over their base, as a volume that is only read.
//!
//! Guarantees: neither the base nor a delta is written, and nothing is unpacked, but for what is shown as a device: frames are read where they stand, when
//! somebody asks for what is in them. What cannot be read is an error, never old content.
//!
//! - [`window`]: which frame holds what, in a part of the volume
//! - [`frames`]: the bytes of frames, checked; a few are kept
//! - [`state`]: the volume
//! - [`scratch`]: what is written over it, in a file of its own
//! - [`store`]: the same as an exception store, which the kernel reads
//! - [`shown`]: what is shown as a device, on record
//! - [`nbd`]: the same for other programs, as a network block device

pub mod frames;
mod kept;
pub mod nbd;
pub mod scratch;
pub mod shown;
pub mod state;
pub mod store;
pub mod window;
