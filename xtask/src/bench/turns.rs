//! Ours and what it is held against, in turn: each begins as often as the others, so that a slow minute hits all.

use super::measure::Sample;
use super::{Bar, Figure};

type Run<'a> = Box<dyn FnMut() -> lab::Result<Sample> + 'a>;

/// One of those that take turns.
pub(crate) struct Contestant<'a> {
    name: String,
    part: Part,
    bar: Bar,
    run: Run<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Its value is the speed of the limit that it reaches. The first one is what peers are held against.
    Ours,
    /// Its value says how many times as fast the first of ours is.
    Peer,
    /// What the hardware gives for the same job. The first one counts.
    Limit,
}

impl<'a> Contestant<'a> {
    fn new(name: &str, part: Part, bar: Bar, run: Run<'a>) -> Self {
        Self {
            name: name.to_owned(),
            part,
            bar,
            run,
        }
    }

    pub(crate) fn ours(
        name: &str,
        bar: Bar,
        run: impl FnMut() -> lab::Result<Sample> + 'a,
    ) -> Self {
        Self::new(name, Part::Ours, bar, Box::new(run))
    }

    pub(crate) fn peer(
        name: &str,
        bar: Bar,
        run: impl FnMut() -> lab::Result<Sample> + 'a,
    ) -> Self {
        Self::new(name, Part::Peer, bar, Box::new(run))
    }

    pub(crate) fn limit(name: &str, run: impl FnMut() -> lab::Result<Sample> + 'a) -> Self {
        Self::new(name, Part::Limit, Bar::None, Box::new(run))
    }
}

/// Runs all of them, so often as asked, and makes a line of each. `bytes` is what the job is about.
pub(crate) fn in_turns(
    runs: usize,
    bench: &'static str,
    case: &str,
    bytes: u64,
    mut contestants: Vec<Contestant<'_>>,
) -> lab::Result<Vec<Figure>> {
    println!("{bench}: {case}");
    let count = contestants.len();
    let mut samples = vec![Vec::new(); count];
    for turn in 0..runs {
        for place in 0..count {
            let who = (turn + place) % count;
            let contestant = &mut contestants[who];
            let sample = (contestant.run)()?;
            println!("  {}: {:.3} s", contestant.name, sample.time.as_secs_f64());
            samples[who].push(sample);
        }
    }
    let medians: Vec<Sample> = samples.iter().map(|all| Sample::median(all)).collect();
    let time_of = |part| {
        let found = contestants.iter().position(|one| one.part == part);
        found.map(|who| medians[who].time.as_secs_f64())
    };
    let (ours, limit) = (time_of(Part::Ours), time_of(Part::Limit));
    let lines = contestants.iter().zip(&medians).map(|(one, median)| {
        let time = median.time.as_secs_f64();
        let (mark, value) = match one.part {
            Part::Ours => ("", limit.map(|limit| limit / time)),
            Part::Peer => ("vs ", ours.map(|ours| time / ours)),
            Part::Limit => ("limit: ", None),
        };
        Figure {
            bench,
            what: format!("{case}: {mark}{}", one.name),
            measured: with_speed(time, bytes),
            usage: Some(*median),
            ours: one.part == Part::Ours,
            value,
            bar: one.bar,
        }
    });
    Ok(lines.collect())
}

/// "1.250 s, 1.72 GB/s"; of no bytes only the time.
pub(crate) fn with_speed(seconds: f64, bytes: u64) -> String {
    if bytes == 0 {
        return format!("{seconds:.3} s");
    }
    #[expect(clippy::cast_precision_loss, reason = "a speed of three digits")]
    let speed = bytes as f64 / seconds / 1e9;
    format!("{seconds:.3} s, {speed:.2} GB/s")
}

#[cfg(test)]
mod tests {
    use super::{Contestant, in_turns};
    use crate::bench::Bar;
    use crate::bench::measure::Sample;
    use std::cell::RefCell;
    use std::time::Duration;

    #[test]
    fn all_begin_in_turn_and_ratios_are_of_ours() {
        let order = RefCell::new(String::new());
        let taking = |name: char, seconds| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                Ok(Sample {
                    time: Duration::from_secs(seconds),
                    ..Sample::default()
                })
            }
        };
        let contestants = vec![
            Contestant::limit("plain", taking('l', 2)),
            Contestant::ours("ours", Bar::AtLeast(0.85), taking('o', 4)),
            Contestant::peer("cmp", Bar::None, taking('p', 20)),
        ];
        let lines = in_turns(3, "compare", "equal", 8_000_000_000, contestants).unwrap();
        assert_eq!(*order.borrow(), "lopoplplo");
        let values: Vec<_> = lines.iter().map(|line| line.value).collect();
        assert_eq!(values, [None, Some(0.5), Some(5.0)]);
        assert_eq!(lines[1].measured, "4.000 s, 2.00 GB/s");
        assert_eq!(lines[2].what, "equal: vs cmp");
        assert!(lines[1].ours && !lines[2].ours);
    }
}
