//! `lvmsync rollback`: a target of a job goes back to one of its points in time.
//!
//! Guarantees: before anything is written it is on record here that the target is put back, so that no run of the job sends
//! to it before somebody says so; what is overwritten is kept, as one more point; a rollback that was cut goes on when it is
//! asked for again.

use clap::Args;
use serde::Serialize;

use super::apply::StateArgs;
use super::history::{find, keeps_none, only};
use super::points::there::{There, unexpected};
use super::replicate::cycle::refused_as_put_back;
use super::replicate::{JobsArgs, directory_of};
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::commands::word;
use crate::error::{Error, ExitCode, Result};
use crate::job::config::Target;
use crate::job::points::{Back, Listing, Point, Reply, UNDO_SUFFIX, Wish, choose, file_name};
use crate::job::state::JobState;
use crate::job::store::Held;
use crate::record::keeper::{now, shown_time};
use crate::units::{Bytes, count};

const AFTER_HELP: &str = "\
Examples:
  lvmsync history data                                which points are there?
  lvmsync rollback data --to 3 -n                     would it work, and how much would be written?
  lvmsync rollback data --to 3
  lvmsync rollback data --to '2026-11-26 01:23'       the newest point that is not later (UTC)
  lvmsync rollback data --to 2026-11-26T01:23:40Z --target backup:vg/data
  lvmsync replicate data --resume                     afterwards: make the target as the source is again

What the target holds now becomes a point in time as well, so that it can be gone back to in the same way. Until
--resume, or until the target is where it was, runs of the job send nothing to it.";

/// Put a target of a job back to an earlier point in time
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct RollbackArgs {
    /// Which job
    #[arg(value_name = "JOB")]
    job: String,

    /// The point: its number in `lvmsync history`, or a time, which means the newest point that is not later
    #[arg(long, value_name = "TIME")]
    to: String,

    /// Which target, as the job's file names it; needed if there are several
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,

    /// Show what would happen, check that it would work, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Print the result as a JSON object on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    place: JobsArgs,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    job: &'a str,
    target: &'a str,
    /// When the state was taken: seconds since 1970 UTC.
    to: i64,
    files: &'a [String],
    /// Bytes of the volume that were written, or would be.
    volume_bytes: u64,
    dry_run: bool,
}

pub(super) fn run(args: &RollbackArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = args.talk.terminal();
    let wanted = choose(&args.to).map_err(Error::Usage)?;
    let job = args.place.load_only(&args.job)?;
    let target = only(&args.job, &job, args.target.as_deref())?;
    let there = There::of((&args.job, &job), target, &args.state, &terminal, cancel)?;
    let there = there.ok_or_else(|| keeps_none(&args.job))?;
    let directory = directory_of(&args.state)?;
    let held = Held::take(&directory, &args.job, &format!("job {}", args.job))?;
    let mut state: JobState = held.load()?.unwrap_or_default();
    let listing = there.list()?;
    // One of which nobody here was told how it ended.
    if let Some(known) = state.targets.get_mut(&target.to)
        && !listing.incomplete
    {
        known.was_put_back(listing.held.as_deref());
        held.save(&state)?;
    }
    let known = state.targets.get(&target.to);
    let of_held = format!(
        "lvmsync history {} shows what it can go back to. Runs of the job go on to send to it.",
        args.job
    );
    let point = find(&listing, wanted, known, (&args.job, target), &of_held)?;
    if target.collects() {
        return Err(to_be_applied(&there, point, target));
    }
    let known = state.targets.entry(target.to.clone()).or_default();
    let holds = listing.held.as_deref().unwrap_or_default();
    let since = known.taken(holds);
    let wish = Wish::Back {
        to: point.files.last().cloned().unwrap_or_default(),
        undo: file_name(since, &tag(&point.files), UNDO_SUFFIX),
        dry_run: args.dry_run,
    };
    let before = known.clone();
    if !args.dry_run {
        known.put_back((point.at, &point.id), now(), holds);
        known.error = known
            .rolled_back
            .as_ref()
            .map(|rolled_back| refused_as_put_back(&args.job, target, rolled_back).chain());
        held.save(&state)?;
    }
    let done = match there.ask(wish) {
        Ok(Reply::Back(done)) => Ok(done),
        Ok(_) => Err(unexpected(target)),
        Err(error) => Err(error),
    };
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            // Refused, or failed before anything was written: then nothing was put back.
            let is_as_before = |now: Listing| !now.incomplete && now.held == listing.held;
            if !args.dry_run && there.list().is_ok_and(is_as_before) {
                state.targets.insert(target.to.clone(), before);
                held.save(&state)?;
            }
            return Err(error);
        }
    };
    if !args.dry_run {
        let known = state.targets.entry(target.to.clone()).or_default();
        known.was_put_back(done.held.as_deref());
        held.save(&state)?;
    }
    terminal.finish();
    if args.json {
        output::json(&Report {
            job: &args.job,
            target: &target.to,
            to: point.at,
            files: &done.files,
            volume_bytes: done.volume_bytes,
            dry_run: args.dry_run,
        })?;
    }
    terminal.summary(&sentence(args, target, point, &done));
    let is_put_back = state
        .targets
        .get(&target.to)
        .is_some_and(|known| known.rolled_back.is_some());
    if !args.dry_run {
        terminal.summary(&format!(
            "to come back: lvmsync rollback {} --target {} --to {}",
            args.job,
            word(&target.to),
            shown_time(since)
        ));
        terminal.summary(&if is_put_back {
            format!(
                "no run sends to it until: lvmsync replicate {} --resume",
                args.job
            )
        } else {
            format!(
                "it is where the runs of {} had left it: they go on from there",
                args.job
            )
        });
    }
    Ok(ExitCode::Done)
}

/// Of the same way the same: a rollback that was cut goes on with the undo that it has begun.
fn tag(files: &[String]) -> String {
    let digest = blake3::hash(files.join("/").as_bytes()).to_hex();
    format!("back-{}", &digest[..8])
}

/// Nothing is applied to a directory.
fn to_be_applied(there: &There<'_>, point: &Point, target: &Target) -> Error {
    let files = there.files_of(point);
    let files: Vec<String> = files.iter().map(|file| word(file)).collect();
    Error::refused(
        target.to.clone(),
        "it collects deltas, and there is no volume that could be put back",
        format!(
            "To make a volume of that moment: lvmsync apply {} NEW-VOLUME",
            files.join(" ")
        ),
    )
}

fn sentence(args: &RollbackArgs, target: &Target, point: &Point, done: &Back) -> String {
    let what = if args.dry_run { "would hold" } else { "holds" };
    format!(
        "{}: {} {what} what it held of {}: {} of the volume, from {}",
        args.job,
        target.to,
        shown_time(point.at),
        Bytes(done.volume_bytes),
        count(done.files.len() as u64, "file")
    )
}
