//! dm-era on top of a logical volume: what is there, what has to be done, and doing it.
//!
//! Guarantees: what is to be done is planned by pure code, from what was seen, and can be printed before it is done;
//! each step leaves something that the same command finishes or undoes; a record that may have a hole is marked as
//! void before it could be taken for a whole one. Nothing of this ever waits for a suspended device.
//!
//! | file | idea |
//! |---|---|
//! | [`names`] | what device, metadata and tags are called (pure) |
//! | [`size`] | blocks, and room for the record (pure) |
//! | [`seen`] | what was seen (pure) |
//! | [`plan`] | from that to steps (pure); `refusals`: why not |
//! | [`step`] | one step: its words, and doing it |
//! | [`look`] | what is there |
//! | [`witness`] | whether somebody wrote past the era device |
//! | [`kernel`] | which kernels can be trusted with it (pure) |

pub mod kernel;
pub mod look;
pub mod names;
pub mod plan;
mod refusals;
pub mod seen;
pub mod size;
pub mod step;
pub mod witness;
