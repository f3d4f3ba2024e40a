//! History: deltas that follow each other, as one chain.
//!
//! Guarantees: deltas are held against each other by the ids of their states alone, never by names, times or the order
//! in which they were named. What is made of several has the effect that they have one after another, or is not made.
//!
//! - [`chain`]: what follows what, and where a link is missing (pure)
//! - [`overlay`]: which part of which frame is still there in the end (pure)
//! - [`sizes`]: the size of the volume along a chain (pure)
//! - [`heading`]: header and samples of what several deltas make together (pure)
//! - [`combine`]: reads a chain and writes one delta: `soundness` reads all of it whole, `copying` writes what survives
//! - [`invert`]: the undo of a delta that was not applied yet
//! - [`paths`]: where one can go from a state, and how points on the way are given up (pure)
//! - [`map`]: where on the volume each delta changes something (pure)

pub mod chain;
pub mod combine;
mod copying;
pub mod heading;
pub mod invert;
pub mod map;
pub mod overlay;
pub mod paths;
pub mod sizes;
mod soundness;
