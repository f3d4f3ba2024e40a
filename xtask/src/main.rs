//! `cargo xtask`: the project's own commands (test, lab, demo, bench).

fn main() {}
