//! `lvmsync history`: the points in time that each target of a job can go back to.
//!
//! Guarantees: changes nothing; says only of points that they can be reached whose whole way is there.

use std::io::Write;

use clap::Args;
use serde::Serialize;

use super::apply::StateArgs;
use super::points::there::There;
use super::progress::Terminal;
use super::replicate::{JobsArgs, state_of};
use super::status::shown_lag;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::error::{Error, ExitCode, Result};
use crate::job::config::{JobConfig, Target};
use crate::job::points::{Chosen, Listing, Meant, Point};
use crate::job::state::TargetState;
use crate::monitor::Monitor;
use crate::record::keeper::{now, shown_time};
use crate::units::{Bytes, count};

const AFTER_HELP: &str = "\
Examples:
  lvmsync history data                       what can the targets of this job go back to?
  lvmsync history data --target backup:vg/data
  lvmsync history data --json                for a script
  lvmsync rollback data --to 3 -n            the number is that of this table
  lvmsync rollback data --to '2026-11-26 01:23'

A job keeps a history if its file says `history = true`, and `keep` says of what. SIZE is that of all files that are
applied to go there, OWN what giving up this point alone would make free at most.";

/// Show the points in time that the targets of a job can go back to
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct HistoryArgs {
    /// Which job
    #[arg(value_name = "JOB")]
    job: String,

    /// Of this target alone, as the job's file names it
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,

    /// A JSON array: one entry for each target
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: JobsArgs,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

/// Times are seconds since 1970 UTC.
#[derive(Serialize)]
struct OfTarget<'a> {
    job: &'a str,
    target: &'a str,
    /// Directory of the files, at the machine of the target.
    directory: String,
    /// When the state was taken that it holds; null where nothing is known here of that: then it was not asked.
    holds_since: Option<i64>,
    /// It was put back, and runs do not send to it.
    rolled_back: bool,
    /// The newest first; `--to` takes the place in this list, from 1.
    #[serde(flatten)]
    listing: Listing,
}

pub(super) fn run(args: &HistoryArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let job = args.place.load_only(&args.job)?;
    let state = state_of(&args.state, &args.job)?;
    let targets = chosen(&args.job, &job, args.target.as_deref())?;
    let (mut found, mut first_error) = (Vec::new(), None);
    for target in targets {
        cancel.check()?;
        let known = state.targets.get(&target.to).cloned().unwrap_or_default();
        match of_target(args, &job, target, &known, &terminal, cancel) {
            Ok(of_target) => found.push(of_target),
            Err(error) => {
                output::message(&format!("lvmsync: {}: {}", args.job, error.chain()));
                first_error.get_or_insert(error);
            }
        }
    }
    cancel.check()?;
    if args.json {
        output::json(&found)?;
    } else {
        let now = now();
        output::listing(|out| {
            for (number, found) in found.iter().enumerate() {
                if number > 0 {
                    writeln!(out)?;
                }
                table(found, now, out)?;
            }
            Ok(())
        })?;
    }
    for found in &found {
        for unusable in &found.listing.unusable {
            terminal.warn(&format!("{}: {unusable}", found.target));
        }
    }
    Ok(first_error.map_or(ExitCode::Done, |error| error.exit_code()))
}

/// The target that was named, or all.
pub(super) fn chosen<'a>(
    name: &str,
    job: &'a JobConfig,
    wanted: Option<&str>,
) -> Result<Vec<&'a Target>> {
    let is_wanted = |target: &&Target| wanted.is_none_or(|wanted| wanted == target.to);
    let found: Vec<&Target> = job.targets.iter().filter(is_wanted).collect();
    if found.is_empty() {
        let names: Vec<&str> = job.targets.iter().map(|target| &*target.to).collect();
        return Err(Error::Usage(format!(
            "job {name} has no target `{}`; it has {}",
            wanted.unwrap_or_default(),
            names.join(", ")
        )));
    }
    Ok(found)
}

/// The target that is meant.
pub(super) fn only<'a>(name: &str, job: &'a JobConfig, wanted: Option<&str>) -> Result<&'a Target> {
    let targets = chosen(name, job, wanted)?;
    let [target] = targets[..] else {
        let names: Vec<&str> = targets.iter().map(|target| &*target.to).collect();
        return Err(Error::Usage(format!(
            "job {name} has several targets; say which with --target: {}",
            names.join(", ")
        )));
    };
    Ok(target)
}

/// The point that is meant. Where that is what the target holds already, `of_held` leads on.
pub(super) fn find<'a>(
    listing: &'a Listing,
    wanted: Chosen,
    known: Option<&TargetState>,
    (job, target): (&str, &Target),
    of_held: &str,
) -> Result<&'a Point> {
    // What is half-written holds nothing.
    let held = listing.held.as_deref().filter(|_| !listing.incomplete);
    let held_at = known
        .zip(held)
        .and_then(|(known, held)| known.surely_taken(held));
    let reason = match (listing.find(wanted, held_at), listing.points.last()) {
        (Meant::Point(point), _) => return Ok(point),
        (Meant::Held(at), _) => {
            let reason = format!(
                "it holds that already: what it holds is of {}, and nothing newer is not later than that time",
                shown_time(at)
            );
            return Err(Error::refused(target.to.clone(), reason, of_held));
        }
        (Meant::Nothing, None) => "there is no point in time that it can go back to".to_owned(),
        (Meant::Nothing, Some(oldest)) => format!(
            "there is no such point: there are {}, the oldest is {}",
            listing.points.len(),
            shown_time(oldest.at)
        ),
    };
    let way_out = format!("lvmsync history {job} shows them.");
    Err(Error::refused(target.to.clone(), reason, way_out))
}

/// What a job says that keeps no history.
pub(super) fn keeps_none(name: &str) -> Error {
    Error::refused(
        format!("job {name}"),
        "keeps no history, so there is nothing to go back to",
        "Add `history = true` to its file: from the next run on the way back is kept.",
    )
}

fn of_target<'a>(
    args: &'a HistoryArgs,
    job: &JobConfig,
    target: &'a Target,
    known: &TargetState,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<OfTarget<'a>> {
    let there = There::of((&args.job, job), target, &args.state, terminal, cancel)?;
    let there = there.ok_or_else(|| keeps_none(&args.job))?;
    // Where nothing was sent as far as is known here there may be no volume yet.
    let listing = if known.holds_since == 0 {
        Listing::default()
    } else {
        there.list()?
    };
    Ok(OfTarget {
        job: &args.job,
        target: &target.to,
        directory: there.directory().display().to_string(),
        holds_since: (known.holds_since > 0).then_some(known.holds_since),
        rolled_back: known.rolled_back.is_some(),
        listing,
    })
}

fn table(found: &OfTarget<'_>, now: i64, out: &mut dyn Write) -> std::io::Result<()> {
    let listing = &found.listing;
    // Then it was not asked: there may be no volume yet. Or what is on record here was lost, and it holds a lot.
    let Some(since) = found.holds_since else {
        return writeln!(
            out,
            "{}: nothing is known here of what it holds: no run of {} is on record that was done; it was not asked. \
             Its points would be in {}",
            found.target, found.job, found.directory
        );
    };
    let holds = if listing.incomplete {
        "is half-written: run what was cut again, or take it back".to_owned()
    } else {
        let put_back = if found.rolled_back {
            ", to which it was put back"
        } else {
            ""
        };
        format!("holds {}{put_back}", shown_time(since))
    };
    writeln!(
        out,
        "{} {holds}; {} of history in {}",
        found.target,
        Bytes(listing.bytes),
        found.directory
    )?;
    if !listing.points.is_empty() {
        writeln!(
            out,
            "{:>4}  {:<20}  {:>8}  {:>10}  {:>10}  FILES",
            "#", "TIME", "AGE", "SIZE", "OWN"
        )?;
    }
    for (number, point) in listing.points.iter().enumerate() {
        writeln!(out, "{}", row(number + 1, point, now))?;
    }
    if !listing.strays.is_empty() {
        writeln!(
            out,
            "      {} beside begin from a state that cannot be reached",
            count(listing.strays.len() as u64, "file")
        )?;
    }
    Ok(())
}

fn row(number: usize, point: &Point, now: i64) -> String {
    format!(
        "{number:>4}  {:<20}  {:>8}  {:>10}  {:>10}  {}",
        shown_time(point.at),
        shown_lag(now.saturating_sub(point.at).max(0)),
        Bytes(point.bytes),
        Bytes(point.own_bytes),
        point.files.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_target_that_was_not_asked_nothing_is_said_but_that() {
        let found = OfTarget {
            job: "data",
            target: "backup:vg/data",
            directory: "/srv/undo".into(),
            holds_since: None,
            rolled_back: false,
            listing: Listing::default(),
        };
        let mut text = Vec::new();
        table(&found, 7200, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with(
                "backup:vg/data: nothing is known here of what it holds: no run of data"
            ),
            "{text}"
        );
        assert!(!text.contains("0 B"), "{text}");
    }

    #[test]
    fn the_table_has_a_line_for_each_point_and_says_what_is_held() {
        let point = |at: i64, files: usize| Point {
            at,
            id: "lvm:x".into(),
            name: String::new(),
            files: vec!["f".into(); files],
            own_bytes: 1024,
            bytes: 1024 * files as u64,
        };
        let found = OfTarget {
            job: "data",
            target: "backup:vg/data",
            directory: "/srv/undo".into(),
            holds_since: Some(7200),
            rolled_back: true,
            listing: Listing {
                points: vec![point(3600, 1), point(0, 2)],
                strays: vec!["x".into()],
                bytes: 2048,
                ..Listing::default()
            },
        };
        let mut text = Vec::new();
        table(&found, 7200, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("holds 1970-01-01T02:00:00Z, to which it was put back; 2.0 KiB"),
            "{text}"
        );
        assert!(lines[1].starts_with("   #  TIME"), "{text}");
        assert_eq!(
            lines[3],
            "   2  1970-01-01T00:00:00Z     2.0 h     2.0 KiB     1.0 KiB  2"
        );
        assert!(lines[4].contains("1 file beside"), "{text}");
    }
}
