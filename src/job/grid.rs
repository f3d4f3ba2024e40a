//! Which points in time are kept: `24x1h 14x1d 8x1w`.
//!
//! Pure, and without a clock: time is cut into periods that begin at fixed moments (hours, days and weeks of UTC), and of
//! each of the newest N periods in which there is a point, its first point is kept. Guarantees: the newest point is kept
//! whatever the grid says; a point that is dropped once is never one that would be kept later, so it does not matter when,
//! or how often, a grid is applied.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::units::parse_seconds;

const DAY_SECONDS: i64 = 86_400;
const WEEK_SECONDS: i64 = 7 * DAY_SECONDS;
/// 1970 began on a Thursday, and weeks begin on Mondays.
const MONDAY_SECONDS: i64 = 3 * DAY_SECONDS;
/// More periods than anybody keeps.
const MOST_PERIODS: usize = 100_000;

/// What is kept where nothing else is said.
pub const DEFAULT: &str = "24x1h 14x1d 8x1w";

/// One part of a grid: so many periods of such a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    periods: usize,
    period_seconds: i64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid(Vec<Rule>);

impl Default for Grid {
    fn default() -> Self {
        let rule = |periods, period_seconds| Rule {
            periods,
            period_seconds,
        };
        Self(vec![
            rule(24, 3600),
            rule(14, DAY_SECONDS),
            rule(8, WEEK_SECONDS),
        ])
    }
}

impl Grid {
    /// For each of `points`, which are seconds since 1970 UTC in any order, whether it is kept.
    pub fn keeps(&self, points: &[i64]) -> Vec<bool> {
        let sorted: BTreeSet<i64> = points.iter().copied().collect();
        let mut kept: BTreeSet<i64> = sorted.last().copied().into_iter().collect();
        for rule in &self.0 {
            // The first of each period: what comes later in it changes nothing.
            let mut firsts: Vec<i64> = Vec::new();
            for point in &sorted {
                if firsts.last().map(|last| rule.period_of(*last)) != Some(rule.period_of(*point)) {
                    firsts.push(*point);
                }
            }
            kept.extend(firsts.iter().rev().take(rule.periods));
        }
        points.iter().map(|point| kept.contains(point)).collect()
    }

    /// How far back it goes, in seconds.
    pub fn span_seconds(&self) -> i64 {
        let span = |rule: &Rule| {
            let periods = i64::try_from(rule.periods).unwrap_or(i64::MAX);
            periods.saturating_mul(rule.period_seconds)
        };
        self.0.iter().map(span).max().unwrap_or(0)
    }
}

impl Rule {
    fn period_of(self, point: i64) -> i64 {
        let begin = if self.period_seconds % WEEK_SECONDS == 0 {
            MONDAY_SECONDS
        } else {
            0
        };
        point
            .saturating_add(begin)
            .div_euclid(self.period_seconds.max(1))
    }
}

impl FromStr for Grid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rules = Vec::new();
        for word in text.split([' ', ',']).filter(|word| !word.is_empty()) {
            rules.push(rule(word).ok_or_else(|| {
                format!(
                    "`{word}` is no part of a grid: write NUMBERxPERIOD, such as {DEFAULT}; periods are whole seconds, \
                     as in 15m, 1h, 1d, 1w"
                )
            })?);
        }
        if rules.is_empty() {
            return Err(format!(
                "a grid without a period keeps nothing: write {DEFAULT}, say"
            ));
        }
        Ok(Self(rules))
    }
}

fn rule(word: &str) -> Option<Rule> {
    let (periods, period) = word.split_once('x')?;
    let periods = periods
        .parse()
        .ok()
        .filter(|periods| (1..=MOST_PERIODS).contains(periods))?;
    let length = std::time::Duration::try_from_secs_f64(parse_seconds(period).ok()?).ok()?;
    let period_seconds = i64::try_from(length.as_secs())
        .ok()
        .filter(|_| length.subsec_nanos() == 0)?;
    (1..=5000 * DAY_SECONDS)
        .contains(&period_seconds)
        .then_some(Rule {
            periods,
            period_seconds,
        })
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, rule) in self.0.iter().enumerate() {
            let units = [
                (WEEK_SECONDS, "w"),
                (DAY_SECONDS, "d"),
                (3600, "h"),
                (60, "m"),
            ];
            let fits = |(seconds, _): &&(i64, &str)| rule.period_seconds % seconds == 0;
            let (seconds, unit) = units.iter().find(fits).copied().unwrap_or((1, "s"));
            let blank = if number == 0 { "" } else { " " };
            let length = rule.period_seconds / seconds;
            write!(f, "{blank}{}x{length}{unit}", rule.periods)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: i64 = 3600;

    fn kept(grid: &str, points: &[i64]) -> Vec<i64> {
        let keeps = grid.parse::<Grid>().unwrap().keeps(points);
        let both = points.iter().zip(keeps);
        both.filter(|(_, keep)| *keep)
            .map(|(point, _)| *point)
            .collect()
    }

    #[test]
    fn a_grid_is_read_and_written() {
        assert_eq!(DEFAULT.parse::<Grid>().unwrap(), Grid::default());
        for text in [DEFAULT, "4x15m", "3x36h 2x2w"] {
            assert_eq!(text.parse::<Grid>().unwrap().to_string(), text);
        }
        assert_eq!(
            "24x1h,7x1d".parse::<Grid>().unwrap().to_string(),
            "24x1h 7x1d"
        );
        for text in [
            "",
            "24",
            "0x1h",
            "1x0s",
            "x1h",
            "24x",
            "1x1.0001h",
            "-1x1h",
            "1x1y",
            "2x0w",
        ] {
            assert!(text.parse::<Grid>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_point_of_each_of_the_newest_periods_is_kept_and_the_newest_point() {
        let quarters: Vec<i64> = (0..12).map(|quarter| quarter * HOUR / 4).collect();
        assert_eq!(kept("2x1h", &quarters), [HOUR, 2 * HOUR, 11 * HOUR / 4]);
        // Periods in which nothing was made do not count.
        let gaps = [5, HOUR + 5, 100 * HOUR, 1000 * HOUR];
        assert_eq!(kept("3x1h", &gaps), gaps[1..]);
        // A week begins on Monday: 1970-01-05.
        let days: Vec<i64> = (0..12).map(|day| day * DAY_SECONDS).collect();
        assert_eq!(kept("2x1w", &days), [4, 11].map(|day| day * DAY_SECONDS));
    }

    fn grid() -> impl Strategy<Value = Grid> {
        let rule = (
            1..6usize,
            prop::sample::select(vec![60, 300, 3600, 7200, 18_000, DAY_SECONDS, WEEK_SECONDS]),
        );
        prop::collection::vec(rule, 1..4).prop_map(|rules| {
            Grid(
                rules
                    .into_iter()
                    .map(|(periods, period_seconds)| Rule {
                        periods,
                        period_seconds,
                    })
                    .collect(),
            )
        })
    }

    proptest! {
        #[test]
        fn applied_after_every_point_it_keeps_what_it_keeps_of_all_together(
            grid in grid(),
            mut points in prop::collection::vec(0..40 * DAY_SECONDS, 1..60),
        ) {
            points.sort_unstable();
            points.dedup();
            let mut there: Vec<i64> = Vec::new();
            for point in &points {
                there.push(*point);
                let keeps = grid.keeps(&there);
                let mut keeps = keeps.into_iter();
                there.retain(|_| keeps.next() == Some(true));
            }
            let keeps = grid.keeps(&points);
            let at_once: Vec<i64> = points.iter().zip(keeps).filter(|(_, keep)| *keep).map(|(point, _)| *point).collect();
            prop_assert_eq!(&there, &at_once);
            prop_assert_eq!(there.last(), points.last());
            let most: usize = grid.0.iter().map(|rule| rule.periods).sum();
            prop_assert!(there.len() <= most + 1);
        }
    }
}
