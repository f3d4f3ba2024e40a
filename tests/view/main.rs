//! A look into the state behind a chain of deltas: against a plain `Vec<u8>`, by the command line, and through clients of
//! network block devices that others wrote.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod bench;
mod clients;
mod command;
mod core;
mod hostile;
#[allow(dead_code)]
#[path = "../history/model.rs"]
mod model;
mod recipes;
mod secure;
