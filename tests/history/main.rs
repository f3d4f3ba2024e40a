//! Chains of deltas: made one, turned around, looked at.
//!
//! The model is a list of plain byte vectors, the states, and deltas that lead from one to the next, as senders write
//! them. Whatever is made of the deltas has to lead from and to these states.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod combining;
#[path = "../damage_kit/counting.rs"]
mod counting;
mod inverting;
mod line;
mod model;
mod recipes;
