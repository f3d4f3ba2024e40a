//! The lab: a throwaway machine with a real kernel, real device-mapper and real LVM, on any Debian machine and
//! without virtualisation. It is user-mode Linux, booted in about two seconds with the host's root file system as its
//! own, so the test binary and the host's tools are simply there; what it writes stays in its memory.
//!
//! Three ways in:
//! - [`test()`]: the body of an ordinary `#[test]` runs as root inside a guest;
//! - [`Script`]: a test that boots several times on the same disks, and cuts the power in between;
//! - [`Machine`]: boots a guest with a shell command; the other two and `cargo xtask lab` are made of it.
//!
//! `LVMSYNC_LAB` chooses: unset, a guest; `direct`, on this machine (root and device-mapper needed), with loop devices
//! as disks; `off`, lab tests say that they were skipped and pass.
#![allow(
    clippy::panic,
    clippy::print_stderr,
    reason = "a harness for tests: what it cannot do fails the test, and its words go to the test's own output"
)]

mod boot;
mod direct;
mod error;
mod inside;
mod job;
mod machine;
mod needs;
mod setup;
mod slots;
mod stuck;
mod testing;

pub use boot::{Outcome, Running};
pub use error::{Error, Result};
pub use inside::{Guest, Peer};
pub use machine::{Machine, Screen};
pub use needs::{Need, missing};
pub use setup::{Setup, parse_size};
pub use testing::{Driver, Script, test};
