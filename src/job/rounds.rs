//! When does a migration stop making rounds and begin its pause?
//!
//! Pure. Each round sends what was written while the one before was under way, so rounds get shorter as long as the link
//! is faster than the service writes. Guarantees: at least one increment is made before a pause, for only increments tell
//! how much the service writes; and there is an end of rounds whatever the figures are.

/// One increment that was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// Bytes of the volume in it.
    pub bytes: u64,
    /// How long it took, snapshot included.
    pub seconds: f64,
    /// How long the snapshot took, which no increment is without.
    pub snapshot_seconds: f64,
    /// How long that was collected: from snapshot to snapshot.
    pub collected_seconds: f64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another round.
    Again,
    /// The pause.
    Pause(Why),
}

/// Why there is no point in another round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The last one is predicted to take no longer than allowed.
    Fits,
    /// Rounds do not get smaller any more.
    NotShrinking,
    /// There were as many as allowed.
    Limit,
}

/// A round that is not at least so much smaller than the one before is none that shrinks.
const SHRINKS: f64 = 0.9;

/// Decides, after the increments `rounds`.
pub fn next(rounds: &[Round], max_pause_seconds: f64, limit: usize) -> Next {
    let Some(last) = rounds.last() else {
        return Next::Again;
    };
    if predicted_seconds(rounds).is_some_and(|seconds| seconds <= max_pause_seconds) {
        return Next::Pause(Why::Fits);
    }
    if rounds.len() >= limit {
        return Next::Pause(Why::Limit);
    }
    let before = rounds.len().checked_sub(2).and_then(|at| rounds.get(at));
    match before {
        Some(before) if last.bytes as f64 >= before.bytes as f64 * SHRINKS => {
            Next::Pause(Why::NotShrinking)
        }
        _ => Next::Again,
    }
}

/// How long the increment of a pause would take that began now: what every round takes, and what was written while the last
/// one was under way, at the speed of the fastest. `None` before any.
pub fn predicted_seconds(rounds: &[Round]) -> Option<f64> {
    let last = rounds.last()?;
    let sent_in = |round: &Round| (round.seconds - round.snapshot_seconds).max(1e-3);
    let speed = |round: &Round| round.bytes as f64 / sent_in(round);
    let fastest = rounds.iter().map(speed).fold(1.0, f64::max);
    let without_data = |round: &Round| round.seconds - round.bytes as f64 / fastest;
    let least = rounds
        .iter()
        .map(without_data)
        .fold(f64::INFINITY, f64::min)
        .max(0.0);
    let written_a_second = last.bytes as f64 / last.collected_seconds.max(1e-3);
    Some(least + written_a_second * last.seconds / fastest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round(bytes: u64, seconds: f64, collected_seconds: f64) -> Round {
        Round {
            bytes,
            seconds,
            snapshot_seconds: 0.0,
            collected_seconds,
        }
    }

    #[test]
    fn what_every_increment_takes_is_not_taken_for_sending() {
        // One round tells what the link gives and what the snapshot takes.
        let only = Round {
            snapshot_seconds: 1.0,
            ..round(100, 11.0, 110.0)
        };
        let seconds = predicted_seconds(&[only]).unwrap();
        // 10 bytes are written meanwhile, and the link takes 10 a second.
        assert!((1.9..2.1).contains(&seconds), "{seconds}");
    }

    #[test]
    fn rounds_go_on_while_they_shrink_and_end_when_the_last_one_fits() {
        const MIB: u64 = 1 << 20;
        assert_eq!(next(&[], 5.0, 20), Next::Again);
        // A link of 100 MiB/s, a service that writes 20 MiB/s, a first copy of 1000 s.
        let mut rounds = vec![round(20_000 * MIB, 200.5, 1000.0)];
        assert_eq!(next(&rounds, 5.0, 20), Next::Again);
        rounds.push(round(4010 * MIB, 40.6, 200.5));
        assert_eq!(next(&rounds, 5.0, 20), Next::Again);
        rounds.push(round(812 * MIB, 8.6, 40.6));
        assert_eq!(next(&rounds, 5.0, 20), Next::Pause(Why::Fits));
        let seconds = predicted_seconds(&rounds).unwrap();
        assert!((1.5..3.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_service_that_writes_faster_than_the_link_ends_the_rounds() {
        let rounds = [round(1 << 30, 100.0, 80.0), round(1 << 30, 100.0, 100.0)];
        assert_eq!(next(&rounds, 5.0, 20), Next::Pause(Why::NotShrinking));
    }

    #[test]
    fn what_is_never_written_to_needs_one_round() {
        let rounds = [round(0, 0.4, 1000.0)];
        assert_eq!(next(&rounds, 5.0, 20), Next::Pause(Why::Fits));
        assert_eq!(next(&rounds, 0.1, 1), Next::Pause(Why::Limit));
    }

    proptest! {
        #[test]
        fn there_is_an_end(
            figures in prop::collection::vec((any::<u32>(), 0.0..1e6f64, 0.0..1e6f64), 1..60),
            limit in 1..30usize,
        ) {
            let rounds: Vec<Round> = figures
                .iter()
                .map(|&(bytes, seconds, collected)| round(u64::from(bytes), seconds, collected))
                .collect();
            let seconds = predicted_seconds(&rounds).unwrap();
            prop_assert!(seconds >= 0.0 && !seconds.is_nan());
            if rounds.len() >= limit {
                prop_assert_ne!(next(&rounds, 0.0, limit), Next::Again);
            }
        }
    }
}
