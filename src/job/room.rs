//! How much room a thick snapshot of a job gets, and when it gets more.
//!
//! Pure. Guarantees: never more than a snapshot can use, and never beyond the limit that the user has set; what is asked for
//! before anything was seen is left to the default; a snapshot that is about to fill is told before it is full, the earlier
//! the faster it fills.

use serde::{Deserialize, Serialize};

/// So much more than what was seen: writes come in bursts.
const MARGIN: u64 = 4;
/// Fewer rounds tell nothing.
const ENOUGH_ROUNDS: usize = 3;
/// Older ones are forgotten.
const MOST_ROUNDS: usize = 16;
/// A small volume may be written over and over.
const LEAST_BYTES: u64 = 1 << 30;
/// It is made larger by no less than this.
const LEAST_STEP_BYTES: u64 = 64 << 20;
/// In hundredths.
const FULL_ENOUGH: u64 = 75;
/// What would be full after so many more looks is extended, however empty it is.
pub const LOOKS_AHEAD: u64 = 3;

/// What the store of one snapshot took in while it was the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Bytes of the store.
    pub bytes: u64,
    /// Since it was made.
    pub seconds: f64,
}

/// Remembers one more round.
pub fn remember(rounds: &mut Vec<Seen>, new: Seen) {
    rounds.push(new);
    let too_many = rounds.len().saturating_sub(MOST_ROUNDS);
    rounds.drain(..too_many);
}

/// What is likely to be written in an interval: at the fastest rate that was seen, and no less than was once seen. `None`
/// before enough was seen.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "never negative, and what is too large becomes the largest number"
)]
pub fn expected_bytes(rounds: &[Seen], interval_seconds: f64) -> Option<u64> {
    if rounds.len() < ENOUGH_ROUNDS {
        return None;
    }
    let of = |round: &Seen| {
        let longer = (interval_seconds / round.seconds.max(1.0)).max(1.0);
        round.bytes as f64 * longer
    };
    Some(rounds.iter().map(of).fold(0.0, f64::max) as u64)
}

/// Room for the next snapshot, by what was seen.
pub fn wanted_bytes(rounds: &[Seen], interval_seconds: f64, limits: Limits) -> Option<u64> {
    let expected = expected_bytes(rounds, interval_seconds)?;
    let wanted = expected.saturating_mul(MARGIN);
    Some(wanted.max(LEAST_BYTES).min(limits.largest()))
}

/// How large one may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// More it cannot use.
    pub useful_bytes: u64,
    /// More it may not take.
    pub allowed_bytes: Option<u64>,
}

impl Limits {
    /// The smaller of both.
    pub fn largest(self) -> u64 {
        self.useful_bytes
            .min(self.allowed_bytes.unwrap_or(u64::MAX))
    }
}

/// What is to be done about a snapshot that fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// It is to get so many bytes more.
    More(u64),
    /// It would have to, and may not.
    AtLimit,
}

/// Of one that has `used` of `total` bytes in use, and takes in `coming` more before anybody can do something about it.
pub fn due((used, total): (u64, u64), coming: u64, limits: Limits) -> Due {
    if total >= limits.useful_bytes {
        return Due::Nothing;
    }
    let soon = used.saturating_add(coming);
    let is_full_enough = used.saturating_mul(100) >= total.saturating_mul(FULL_ENOUGH);
    if !is_full_enough && soon < total {
        return Due::Nothing;
    }
    let step = (total / 2)
        .max(LEAST_STEP_BYTES)
        .max(coming.saturating_mul(2));
    match step.min(limits.largest().saturating_sub(total)) {
        0 => Due::AtLimit,
        more => Due::More(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn limits(useful_bytes: u64, allowed_bytes: Option<u64>) -> Limits {
        Limits {
            useful_bytes,
            allowed_bytes,
        }
    }

    fn seen(bytes: u64, seconds: f64) -> Seen {
        Seen { bytes, seconds }
    }

    #[test]
    fn room_follows_the_fastest_rate_seen() {
        let wide = limits(1 << 50, None);
        let mut rounds = vec![seen(GIB, 900.0); 2];
        assert_eq!(wanted_bytes(&rounds, 900.0, wide), None, "not yet");
        remember(&mut rounds, seen(2 * GIB, 900.0));
        assert_eq!(wanted_bytes(&rounds, 900.0, wide), Some(8 * GIB));
        // A run that came early says less of what an interval brings, one that came late no more than that.
        remember(&mut rounds, seen(GIB, 90.0));
        assert_eq!(wanted_bytes(&rounds, 900.0, wide), Some(40 * GIB));
        let late = vec![seen(30 * GIB, 9000.0); 3];
        assert_eq!(wanted_bytes(&late, 900.0, wide), Some(120 * GIB));
        // Next to nothing.
        let idle = vec![seen(4096, 900.0); 3];
        assert_eq!(wanted_bytes(&idle, 900.0, wide), Some(GIB));
        assert_eq!(
            wanted_bytes(&late, 900.0, limits(50 * GIB, None)),
            Some(50 * GIB)
        );
        let allowed = limits(50 * GIB, Some(20 * GIB));
        assert_eq!(wanted_bytes(&late, 900.0, allowed), Some(20 * GIB));
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut rounds = vec![seen(100 * GIB, 1.0)];
        for _ in 0..MOST_ROUNDS {
            remember(&mut rounds, seen(GIB, 60.0));
        }
        assert_eq!(expected_bytes(&rounds, 60.0), Some(GIB));
    }

    #[test]
    fn it_gets_more_before_it_is_full_and_within_the_limit() {
        let wide = limits(1 << 50, None);
        assert_eq!(due((74, 100), 0, wide), Due::Nothing);
        assert_eq!(due((75, 100), 0, wide), Due::More(LEAST_STEP_BYTES));
        assert_eq!(due((3 * GIB, 4 * GIB), 0, wide), Due::More(2 * GIB));
        // Half full, and as much is coming.
        assert_eq!(due((500 * MIB, 1000 * MIB), 499 * MIB, wide), Due::Nothing);
        assert_eq!(
            due((500 * MIB, 1000 * MIB), 500 * MIB, wide),
            Due::More(1000 * MIB)
        );
        let narrow = limits(1 << 50, Some(5 * GIB));
        assert_eq!(due((3 * GIB, 4 * GIB), 0, narrow), Due::More(GIB));
        assert_eq!(due((4 * GIB, 5 * GIB), 0, narrow), Due::AtLimit);
        assert_eq!(due((5 * GIB, 6 * GIB), 0, narrow), Due::AtLimit);
        // As large as can be used: it never overflows.
        let whole = limits(4 * GIB, Some(GIB));
        assert_eq!(due((4 * GIB, 4 * GIB), 0, whole), Due::Nothing);
    }

    proptest! {
        #[test]
        fn no_figures_lead_beyond_the_limits(
            used: u64, total: u64, coming: u64, useful: u64, allowed: Option<u64>, bytes: u64, seconds: f64, interval: f64,
        ) {
            let limits = limits(useful, allowed);
            if let Due::More(more) = due((used, total), coming, limits) {
                prop_assert!(more > 0 && total.checked_add(more).is_some_and(|all| all <= limits.largest()));
            }
            let rounds = [Seen { bytes, seconds }; ENOUGH_ROUNDS];
            prop_assert!(wanted_bytes(&rounds, interval, limits).is_some_and(|wanted| wanted <= limits.largest()));
        }
    }
}
