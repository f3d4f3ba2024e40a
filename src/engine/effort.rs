//! How much is worth spending on compression: `--compress auto`.
//!
//! Pure but for a clock that the caller reads. Guarantees: what is fixed stays as it was asked for; what is not goes
//! up a step while the sink is waited for, down a step while compression is, and stays while the source is. Data
//! that does not shrink is not tried again and again.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::delta::codec::{Codec, Compression, Compressor};
use crate::error::{Error, Result};

/// From nothing to what a slow link is worth.
const STEPS: [Compression; 5] = [
    Compression::None,
    Compression::Lz4,
    Compression::Zstd(1),
    Compression::Zstd(3),
    Compression::Zstd(7),
];
/// Where a run begins: it costs little, and a pipe that is nearly full shows soon.
const FIRST_STEP: usize = 1;
/// Waits are summed up for so long before anything is changed.
const JUDGED_EVERY: Duration = Duration::from_millis(100);
/// Payloads in a row that did not shrink before some are not tried, and how many of those at most.
const HOPELESS: u32 = 4;
const MOST_SKIPPED: u32 = 64;

/// What was asked for, and, where that is `auto`, what came of it so far.
#[derive(Debug)]
pub struct Effort {
    asked: Compression,
    step: AtomicUsize,
    compressing_ns: AtomicU64,
    working_ns: AtomicU64,
}

/// Who waited for whom, since it was judged last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waits {
    /// For what is read and compressed.
    pub(super) for_workers: Duration,
    /// For the link, or whatever takes the frames.
    pub(super) for_sink: Duration,
}

impl Effort {
    /// What the user asked for.
    pub fn new(asked: Compression) -> Self {
        Self {
            asked,
            step: AtomicUsize::new(FIRST_STEP),
            compressing_ns: AtomicU64::new(0),
            working_ns: AtomicU64::new(0),
        }
    }

    fn is_auto(&self) -> bool {
        self.asked == Compression::Auto
    }

    fn now(&self) -> Compression {
        if self.is_auto() {
            STEPS[self.step.load(Ordering::Relaxed).min(STEPS.len() - 1)]
        } else {
            self.asked
        }
    }

    /// A worker took so long for a step, and so much of that for compression.
    pub(super) fn worked(&self, all: Duration, compressing: Duration) {
        let add = |sum: &AtomicU64, time: Duration| {
            sum.fetch_add(nanoseconds(time), Ordering::Relaxed);
        };
        add(&self.working_ns, all);
        add(&self.compressing_ns, compressing);
    }

    /// Changes the step where there is a reason, and then forgets `waits`.
    pub(super) fn judge(&self, waits: &mut Waits) {
        let sum = waits.for_workers + waits.for_sink;
        if !self.is_auto() || sum < JUDGED_EVERY {
            return;
        }
        let compressing = self.compressing_ns.swap(0, Ordering::Relaxed);
        let working = self.working_ns.swap(0, Ordering::Relaxed);
        let step = self.step.load(Ordering::Relaxed);
        let next = if waits.for_sink > waits.for_workers * 2 {
            (step + 1).min(STEPS.len() - 1)
        } else if waits.for_workers > waits.for_sink * 2 && compressing * 2 > working {
            step.saturating_sub(1)
        } else {
            step
        };
        self.step.store(next, Ordering::Relaxed);
        *waits = Waits::default();
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One worker's compressor.
pub(super) struct Packer<'a> {
    effort: &'a Effort,
    /// For the compression that it was made for.
    compressor: Compressor,
    made_for: Compression,
    in_vain: u32,
    skip: u32,
}

impl<'a> Packer<'a> {
    pub(super) fn new(effort: &'a Effort) -> Result<Self> {
        let made_for = effort.now();
        Ok(Self {
            effort,
            compressor: compressor(made_for)?,
            made_for,
            in_vain: 0,
            skip: 0,
        })
    }

    pub(super) fn effort(&self) -> &'a Effort {
        self.effort
    }

    /// Before a step: what is right by now?
    pub(super) fn prepare(&mut self) -> Result<()> {
        let now = self.effort.now();
        if now != self.made_for {
            self.compressor = compressor(now)?;
            self.made_for = now;
        }
        Ok(())
    }

    /// See [`Compressor::compress`].
    pub(super) fn compress(&mut self, data: &[u8], out: &mut Vec<u8>) -> Option<Codec> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let codec = self.compressor.compress(data, out);
        // What was asked for by name is done.
        if self.effort.is_auto() && self.made_for != Compression::None {
            let in_vain = codec.is_none() || out.len() * 16 > data.len() * 15;
            self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
            if self.in_vain >= HOPELESS {
                self.skip = (1 << (self.in_vain - HOPELESS + 3).min(6)).min(MOST_SKIPPED);
            }
        }
        codec
    }
}

fn compressor(compression: Compression) -> Result<Compressor> {
    Compressor::new(compression).map_err(|error| Error::io("cannot start zstd", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(for_workers: u64, for_sink: u64) -> Waits {
        Waits {
            for_workers: Duration::from_millis(for_workers),
            for_sink: Duration::from_millis(for_sink),
        }
    }

    #[test]
    fn a_slow_link_is_worth_more_and_a_fast_one_less() {
        let effort = Effort::new(Compression::Auto);
        for _ in 0..10 {
            effort.judge(&mut waits(1, 200));
        }
        assert_eq!(effort.now(), Compression::Zstd(7));
        // The source is what is waited for: nothing would be gained.
        effort.worked(Duration::from_millis(100), Duration::from_millis(10));
        effort.judge(&mut waits(200, 1));
        assert_eq!(effort.now(), Compression::Zstd(7));
        for _ in 0..10 {
            effort.worked(Duration::from_millis(100), Duration::from_millis(90));
            effort.judge(&mut waits(200, 1));
        }
        assert_eq!(effort.now(), Compression::None);
        let mut few = waits(0, 99);
        effort.judge(&mut few);
        assert_eq!(few.for_sink, Duration::from_millis(99), "too early to tell");
    }

    #[test]
    fn what_was_asked_for_by_name_stays() {
        let effort = Effort::new(Compression::Zstd(19));
        effort.judge(&mut waits(1, 2000));
        assert_eq!(effort.now(), Compression::Zstd(19));
    }

    #[test]
    fn what_does_not_shrink_is_tried_now_and_then() {
        let mut noise = vec![0; 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let effort = Effort::new(Compression::Auto);
        let mut packer = Packer::new(&effort).unwrap();
        let mut out = Vec::new();
        for _ in 0..20 {
            assert_eq!(packer.compress(&noise, &mut out), None);
        }
        assert!(packer.skip > 0);
        let tried = (0..100).find(|_| packer.compress(&[0; 4096], &mut out).is_some());
        assert!(tried.is_some_and(|number| number > 0), "{tried:?}");
        assert!(packer.compress(&[0; 4096], &mut out).is_some());
    }
}
