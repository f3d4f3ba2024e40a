//! Change sources: what tells which extents differ between an old and a new state.
//!
//! Guarantees: each reader is pure over bytes or [`ReadAt`](crate::volume::ReadAt), so it works the same
//! on a live device and on a copy in a file; each refuses rather than return a list that may be short.

mod btree;
mod chunk_set;
pub mod cow;
mod cow_areas;
pub mod cow_build;
mod cow_error;
pub mod era;
pub mod thin;

#[cfg(test)]
mod cow_tests;
