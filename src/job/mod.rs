//! What takes more than one transfer: a migration. What is decided is pure; what is to be known after a power cut lies in
//! small files of the state directory.

pub mod hooks;
pub mod rounds;
pub mod store;
