//! A volume for other programs: a network block device (NBD).
//!
//! Guarantees: fixed newstyle negotiation, structured replies and the allocation context `base:allocation`; nothing that a
//! client sends is allocated before it was held against a limit; a client that is silent in the middle of something is
//! given up, and one that misbehaves ends its own connection and no other.
//!
//! - [`wire`]: the numbers, and messages from and to bytes (pure)
//! - [`negotiation`]: options and their answers (pure)
//! - [`request`]: what a request may ask for (pure)
//! - [`client`]: one connection, over anything that reads and writes
//! - [`address`], [`socket`], [`tls`], [`server`]: where it listens, and for whom

pub mod address;
pub mod client;
pub mod negotiation;
pub mod request;
pub mod server;
pub mod socket;
pub mod tls;
pub mod wire;

use std::io;

use crate::extent::{Change, Extent};

/// What is served.
pub trait Export: Sync {
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;
    /// True where clients may write.
    fn is_writable(&self) -> bool {
        false
    }
    /// Fills `buffer` from `offset`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// What is in a range: joined, in order, without gaps; not more than `most` extents.
    fn map(&self, extent: Extent, most: usize) -> io::Result<Vec<Change>>;
    /// Writes `data` at `offset`.
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let _ = (data, offset);
        Err(io::ErrorKind::PermissionDenied.into())
    }
    /// Makes a range read as zeroes.
    fn zero(&self, extent: Extent) -> io::Result<()> {
        let _ = extent;
        Err(io::ErrorKind::PermissionDenied.into())
    }
    /// Returns when what was written is durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
