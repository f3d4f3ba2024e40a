//! What the tests of killed runs share: numbers from a seed, processes that are found by a mark in their
//! environment, and a sshd of their own.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests: what does not hold fails the test, and each test file uses its part of this"
)]

pub(crate) mod bench;
pub(crate) mod case;
pub(crate) mod network;
pub(crate) mod processes;
pub(crate) mod sshd;

use std::time::{SystemTime, UNIX_EPOCH};

/// Full counts were asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("LVMSYNC_LONG").is_some_and(|value| value == "1")
}

/// The first of these variables that is a number, or one that nobody knows. Say it, so that it can be repeated.
pub(crate) fn seed() -> u64 {
    let asked = |name| std::env::var(name).ok()?.parse().ok();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    asked("LVMSYNC_KILL_SEED")
        .or_else(|| asked("PROPTEST_RNG_SEED"))
        .unwrap_or_else(|| u64::from(now().subsec_nanos()))
}

/// Numbers that look random and are the same for the same seed.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, words: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(words.as_bytes());
        let start = hasher.finalize().as_bytes()[..8].try_into().unwrap();
        Self(u64::from_le_bytes(start) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub(crate) fn one_in(&mut self, parts: u64) -> bool {
        self.below(parts) == 0
    }
}

/// Bytes that look random.
pub(crate) fn noise(length: usize, words: &str) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(words.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
