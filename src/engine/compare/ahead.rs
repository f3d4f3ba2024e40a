//! How much is asked for before the answers are there.
//!
//! Pure. Guarantees: at least [`LEAST_BYTES`], which is enough on a short way; at most what the protocol allows; more than the
//! least only where more than that is answered in the time that a question and its answer take.
//!
//! Little is better where it is enough: what was read last is still in memory when a closer look is asked for.

use std::time::Duration;

use crate::session::asker::MAX_UNANSWERED;
use crate::session::compare_wire::MAX_BYTES;

/// Two requests: one that is read for, and one that waits for this.
pub(super) const LEAST_BYTES: u64 = 8 << 20;
/// What is asked for at once, where no more than the least is under way.
pub(super) const LEAST_AT_ONCE_BYTES: u64 = 4 << 20;
const MOST_BYTES: u64 = MAX_UNANSWERED as u64 * MAX_BYTES;
/// What was faster or slower before so much is soon forgotten.
const RECENT: Duration = Duration::from_secs(1);

/// What is known of both ends and the way between.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    answered_bytes: u64,
    /// What these took.
    time: Duration,
    /// The shortest time from a question to its answer.
    round_trip: Option<Duration>,
}

impl Ahead {
    /// An answer about `bytes` came after `round_trip`, and `time` after the one before.
    pub(super) fn answered(&mut self, bytes: u64, round_trip: Duration, time: Duration) {
        if self.time > RECENT {
            self.answered_bytes /= 2;
            self.time /= 2;
        }
        self.answered_bytes += bytes;
        self.time += time;
        let shortest = self
            .round_trip
            .map_or(round_trip, |before| before.min(round_trip));
        self.round_trip = Some(shortest);
    }

    /// Bytes of the volume that may be under way: a quarter more than is answered in a round trip, so that it grows as long as
    /// the way is what is waited for.
    pub(super) fn bytes(&self) -> u64 {
        let Some(round_trip) = self.round_trip else {
            return LEAST_BYTES;
        };
        let product = u128::from(self.answered_bytes).saturating_mul(round_trip.as_nanos());
        let in_a_trip = product / self.time.as_nanos().max(1);
        let more = u64::try_from(in_a_trip / 4 * 5).unwrap_or(u64::MAX);
        more.clamp(LEAST_BYTES, MOST_BYTES)
    }

    /// Bytes that are asked for at once, where `bytes` may be under way. Closer looks take up to two requests more for each.
    pub(super) fn at_once(bytes: u64) -> u64 {
        (bytes / 4).clamp(LEAST_AT_ONCE_BYTES, MAX_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// What is under way in the end, where reading goes at `mib_per_s`, a question takes `way_ms` there and back, and the
    /// first answer takes `first_ms` more.
    fn settles_at(mib_per_s: u64, way_ms: u64, first_ms: u64) -> u64 {
        let mut ahead = Ahead::default();
        let mut under_way = LEAST_BYTES;
        for round in 0..1000 {
            let at_once = Ahead::at_once(under_way);
            let micros = |bytes: u64| bytes * 1_000_000 / MIB / mib_per_s;
            let first = if round == 0 { first_ms * 1000 } else { 0 };
            // It waits for what was asked for before, unless that is done before it arrives.
            let queued = if round == 0 { at_once } else { under_way };
            let trip = first + (way_ms * 1000 + micros(at_once)).max(micros(queued));
            // As much as is under way for each trip, or what is read meanwhile.
            let time = micros(at_once).max(trip * at_once / under_way);
            ahead.answered(
                at_once,
                Duration::from_micros(trip),
                Duration::from_micros(time),
            );
            under_way = ahead.bytes();
        }
        under_way
    }

    #[test]
    fn the_least_is_enough_on_a_disk_and_on_a_short_way() {
        for mib_per_s in [50, 150, 500, 2000] {
            assert_eq!(settles_at(mib_per_s, 0, 0), LEAST_BYTES, "{mib_per_s}");
        }
        assert_eq!(settles_at(150, 10, 0), LEAST_BYTES);
        let found = settles_at(1000, 0, 500);
        assert!(found <= 10 * MIB, "the first was slow: {found}");
    }

    #[test]
    fn a_long_way_has_as_much_under_way_as_it_takes_and_little_more() {
        // 500 MiB/s and 50 ms: 25 MiB are on their way at any moment, beside what is read for.
        let found = settles_at(500, 50, 0);
        assert!((29 * MIB..=45 * MIB).contains(&found), "{found}");
        assert_eq!(settles_at(2000, 200, 0), MOST_BYTES);
    }

    #[test]
    fn what_was_slow_for_an_hour_is_forgotten_in_seconds() {
        let mut ahead = Ahead::default();
        let (way, piece) = (Duration::from_millis(200), 4 * MIB);
        for _ in 0..10_000 {
            ahead.answered(piece, way, Duration::from_millis(400));
        }
        assert_eq!(ahead.bytes(), LEAST_BYTES);
        for _ in 0..100 {
            ahead.answered(piece, way, Duration::from_millis(20));
        }
        assert!(ahead.bytes() > 40 * MIB, "{}", ahead.bytes());
    }

    proptest! {
        #[test]
        fn it_is_never_less_or_more_than_it_may_be(
            answers in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 0..20),
        ) {
            let mut ahead = Ahead::default();
            for (bytes, trip, time) in answers {
                let [trip, time] = [trip, time].map(|micros| Duration::from_micros(micros.into()));
                ahead.answered(bytes.into(), trip, time);
            }
            let bytes = ahead.bytes();
            prop_assert!((LEAST_BYTES..=MOST_BYTES).contains(&bytes));
            let at_once = Ahead::at_once(bytes);
            prop_assert!((LEAST_AT_ONCE_BYTES..=MAX_BYTES).contains(&at_once));
            prop_assert!(bytes / at_once <= MAX_UNANSWERED as u64);
        }
    }
}
