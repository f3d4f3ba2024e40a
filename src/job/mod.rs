//! What takes more than one transfer: a migration, a replication job. What is decided is pure; what is to be known after a power cut lies in
//! small files of the state directory.

pub mod config;
pub mod grid;
pub mod hooks;
pub mod points;
pub mod room;
pub mod rounds;
pub mod state;
pub mod store;
