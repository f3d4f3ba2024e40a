//! Finding zeroes in what was read, so that they travel and arrive as zeroes.
//!
//! Pure. Guarantees: the pieces of a buffer cover it exactly, in order, and every piece called zero is.

use std::ops::Range;

pub use crate::blocks::is_zero;
use crate::extent::Kind;

/// Zeroes are looked for in units of this many bytes.
const UNIT_BYTES: usize = 4096;
/// A shorter run of zeroes inside data stays data: another frame would cost more than it saves.
const MIN_RUN_BYTES: usize = 64 << 10;

/// Cuts `bytes` into data and runs of zeroes that are worth a frame of their own. All-zero input is one run,
/// however short.
pub fn split(bytes: &[u8]) -> Vec<(Range<usize>, Kind)> {
    let mut pieces: Vec<(Range<usize>, Kind)> = Vec::with_capacity(1);
    for (number, unit) in bytes.chunks(UNIT_BYTES).enumerate() {
        let start = number * UNIT_BYTES;
        let end = start + unit.len();
        let kind = if is_zero(unit) {
            Kind::Zero
        } else {
            Kind::Data
        };
        match pieces.last_mut() {
            Some((range, last)) if *last == kind => range.end = end,
            _ => pieces.push((start..end, kind)),
        }
    }
    if pieces.len() <= 1 {
        return pieces;
    }
    let mut joined: Vec<(Range<usize>, Kind)> = Vec::with_capacity(pieces.len());
    for (range, kind) in pieces {
        let kind = if range.len() < MIN_RUN_BYTES {
            Kind::Data
        } else {
            kind
        };
        match joined.last_mut() {
            Some((last_range, last)) if *last == kind => last_range.end = range.end,
            _ => joined.push((range, kind)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_last_byte_that_is_not_zero_is_seen() {
        for length in [1, 63, 64, 65, 4095, 4096, 4097] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for position in [0, length / 2, length - 1] {
                bytes[position] = 1;
                assert!(!is_zero(&bytes), "{position} of {length}");
                bytes[position] = 0;
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_and_zeroes_are_zero(
            runs in prop::collection::vec((1usize..150_000, any::<bool>()), 0..8),
        ) {
            let mut bytes = Vec::new();
            for (length, zero) in runs {
                bytes.resize(bytes.len() + length, u8::from(!zero));
            }
            let mut position = 0;
            for (range, kind) in split(&bytes) {
                prop_assert_eq!(range.start, position);
                position = range.end;
                prop_assert!(kind == Kind::Data || is_zero(&bytes[range]));
            }
            prop_assert_eq!(position, bytes.len());
        }
    }
}
