//! `--bwlimit`: a rate that is kept on average, smooth over a fraction of a second.
//!
//! Guarantees: never sleeps past a cancel; no limit costs nothing.

use std::time::{Duration, Instant};

use crate::cancel::Cancel;

/// Idle time that may be caught up with, so that a pause is not followed by a flood.
const BURST: Duration = Duration::from_millis(100);
/// Bytes that are not worth being cut, however slow it goes.
const LEAST: usize = 1024;

/// Slows a sender down to a number of bytes a second.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: Option<u64>,
    /// When the bytes so far should have gone out.
    due: Instant,
    cancel: Cancel,
}

impl Throttle {
    /// `None` is no limit.
    pub fn new(bytes_per_second: Option<u64>, cancel: &Cancel) -> Self {
        let bytes_per_second = bytes_per_second.filter(|rate| *rate > 0);
        Self {
            bytes_per_second,
            due: Instant::now(),
            cancel: cancel.clone(),
        }
    }

    /// So many bytes may go out at once: what a twentieth of a second has, and not less than a KiB.
    pub fn at_once(&self) -> usize {
        self.bytes_per_second.map_or(usize::MAX, |rate| {
            usize::try_from(rate / 20).unwrap_or(usize::MAX).max(LEAST)
        })
    }

    /// Called after `bytes` went out; returns when the next may go.
    pub fn spent(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rate needs no more than 52 bits"
        )]
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.due = self.due.max(earliest) + cost;
        self.cancel.sleep(self.due.saturating_duration_since(now));
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers of our own")]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept() {
        let mut throttle = Throttle::new(Some(1 << 20), &Cancel::new());
        let start = Instant::now();
        for _ in 0..10 {
            throttle.spent(32 << 10);
        }
        assert!(
            start.elapsed() >= Duration::from_millis(180),
            "{:?}",
            start.elapsed()
        );
    }

    #[test]
    fn no_stretch_of_time_has_more_than_its_share_and_a_tenth_of_a_second() {
        const RATE: u64 = 1 << 20;
        const PIECE: u64 = 20_000;
        let mut throttle = Throttle::new(Some(RATE), &Cancel::new());
        let mut spent = Vec::new();
        for round in 0..20 {
            if round == 5 {
                // What was not used is not saved up.
                std::thread::sleep(3 * BURST);
            }
            let before = Instant::now();
            throttle.spent(PIECE);
            spent.push((before, Instant::now()));
        }
        for (first, (before, _)) in spent.iter().enumerate() {
            for (last, (_, after)) in spent.iter().enumerate().skip(first) {
                let pieces = (last - first + 1) as u32;
                let cost = Duration::from_secs(PIECE) / RATE as u32 * pieces;
                let share = after.duration_since(*before) + BURST + Duration::from_millis(1);
                assert!(cost <= share, "{first} to {last}: {cost:?} in {share:?}");
            }
        }
    }

    #[test]
    fn a_cancel_ends_the_sleep() {
        let cancel = Cancel::new();
        cancel.cancel();
        let start = Instant::now();
        Throttle::new(Some(1), &cancel).spent(1 << 30);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
