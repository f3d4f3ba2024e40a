//! What has no safe wrapper: block-device and device-mapper ioctls, aligned memory, what of a file is in memory and how it
//! gets to the disk, an instruction.
//!
//! Guarantees: the only place with `unsafe`; every function here is safe to call with any argument, and
//! each `unsafe` block says why.
#![allow(unsafe_code)] // ioctls, page-aligned allocations, mappings, two calls and an instruction cannot be expressed without it

pub mod aligned;
pub mod device;
pub mod ioctl;
pub mod ones;
pub mod resident;
pub mod write_out;
