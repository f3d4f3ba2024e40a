//! The `lvmsync` command.
fn main() {}
