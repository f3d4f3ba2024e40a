//! How much is asked for before the answers are there.
//!
//! Pure. Guarantees: at least [`LEAST_BYTES`], so that neither end waits for a link of this building; at most what the
//! protocol allows; more than the least only where a round trip takes longer than reading as much.
//!
//! Little is better where it is enough: what was read last is still in memory when a closer look is asked for.

use std::time::Duration;

use crate::session::asker::MAX_UNANSWERED;
use crate::session::compare_wire::MAX_BYTES;

/// Three requests: one that is read for, one that waits for this, and one on its way.
pub(super) const LEAST_BYTES: u64 = 12 << 20;
const MOST_BYTES: u64 = MAX_UNANSWERED as u64 * MAX_BYTES;
const LEAST_AT_ONCE_BYTES: u64 = 4 << 20;

/// What is known of both ends and the way between.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    answered_bytes: u64,
    /// The shortest time from a question to its answer.
    round_trip: Option<Duration>,
}

impl Ahead {
    /// An answer about `bytes` came after `round_trip`.
    pub(super) fn answered(&mut self, bytes: u64, round_trip: Duration) {
        self.answered_bytes += bytes;
        let shortest = self
            .round_trip
            .map_or(round_trip, |before| before.min(round_trip));
        self.round_trip = Some(shortest);
    }

    /// Bytes of the volume that may be under way, `elapsed` after the first question: twice what is answered in a round trip,
    /// which doubles it as long as that is what is waited for.
    pub(super) fn bytes(&self, elapsed: Duration) -> u64 {
        let Some(round_trip) = self.round_trip else {
            return LEAST_BYTES;
        };
        let trips = elapsed.as_nanos() / round_trip.as_nanos().max(1);
        let in_a_trip = u128::from(self.answered_bytes) / trips.max(1);
        let twice = u64::try_from(in_a_trip.saturating_mul(2)).unwrap_or(u64::MAX);
        twice.clamp(LEAST_BYTES, MOST_BYTES)
    }

    /// Bytes that are asked for at once, where `bytes` may be under way.
    pub(super) fn at_once(bytes: u64) -> u64 {
        (bytes / MAX_UNANSWERED as u64).clamp(LEAST_AT_ONCE_BYTES, MAX_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// What is under way in the end, where reading goes at `bytes_per_ms` and a question takes `way_ms` there and back.
    fn settles_at(bytes_per_ms: u64, way_ms: u64) -> u64 {
        let mut ahead = Ahead::default();
        let mut elapsed_ms = 0;
        let mut under_way = LEAST_BYTES;
        for _ in 0..1000 {
            let at_once = Ahead::at_once(under_way);
            let reading_ms = (at_once / bytes_per_ms).max(1);
            // As much as is under way for each way, or what is read meanwhile.
            let waiting_ms = (way_ms + reading_ms) * at_once / under_way;
            elapsed_ms += reading_ms.max(waiting_ms);
            ahead.answered(at_once, Duration::from_millis(way_ms + reading_ms));
            under_way = ahead.bytes(Duration::from_millis(elapsed_ms));
        }
        under_way
    }

    #[test]
    fn the_least_is_enough_on_a_disk_and_on_a_short_way() {
        for mib_per_s in [50, 150, 500] {
            assert_eq!(settles_at(mib_per_s * MIB / 1000, 0), LEAST_BYTES);
        }
        assert_eq!(settles_at(2 * MIB, 0), LEAST_BYTES);
    }

    #[test]
    fn a_long_way_has_more_under_way() {
        // 500 MiB/s and 50 ms: 25 MiB are on their way at any moment.
        let found = settles_at(500 * MIB / 1000, 50);
        assert!((25 * MIB..=80 * MIB).contains(&found), "{found}");
        assert_eq!(settles_at(2 * MIB, 200), MOST_BYTES);
    }

    proptest! {
        #[test]
        fn it_is_never_less_or_more_than_it_may_be(
            answers in prop::collection::vec((any::<u32>(), any::<u64>()), 0..20), elapsed in any::<u64>(),
        ) {
            let mut ahead = Ahead::default();
            for (bytes, nanos) in answers {
                ahead.answered(bytes.into(), Duration::from_nanos(nanos));
            }
            let bytes = ahead.bytes(Duration::from_nanos(elapsed));
            prop_assert!((LEAST_BYTES..=MOST_BYTES).contains(&bytes));
            let at_once = Ahead::at_once(bytes);
            prop_assert!((LEAST_AT_ONCE_BYTES..=MAX_BYTES).contains(&at_once));
            prop_assert!(bytes / at_once <= MAX_UNANSWERED as u64);
        }
    }
}
