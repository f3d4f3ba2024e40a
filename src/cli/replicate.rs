//! `lvmsync replicate`: the periodic cycle, from files that say what is replicated where.
//!
//! Guarantees: one run of a job is one snapshot and one increment for each target; jobs that fail do not keep others from
//! running, and the exit code is that of the worst; a run is told to stop between two steps and leaves everything as the
//! next run wants it.

pub(super) mod cycle;
mod several;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;

use super::apply::StateArgs;
use super::progress::Terminal;
use super::{TalkArgs, output};
use crate::cancel::Cancel;
use crate::error::{Error, ExitCode, Result};
use crate::job::config::{JobConfig, is_job_name};
use crate::job::state::JobState;
use crate::job::store::load;
use crate::monitor::Monitor;
use crate::record::keeper::now;
use cycle::Again;
use several::{Turn, Turns, hold, run_each, with_threads};

const AFTER_HELP: &str = "\
A job is a file: /etc/lvmsync/jobs.d/NAME.toml
  source = \"vg/data\"              # a logical volume, thick or thin
  interval = \"15m\"
  [[target]]
  to = \"backup:vg/data\"           # one or more
  create = \"auto\"                 # for the first copy: make the volume there
With `history = true` each target keeps the way back to earlier points in time: lvmsync history, lvmsync rollback.
All keys are in docs/replicate.md.

Examples:
  lvmsync replicate data                  one run of the job `data`, now
  lvmsync replicate --all                 of all that are due, as from a timer
  lvmsync replicate --all --jobs 4        four of them at a time
  lvmsync replicate --watch               stay, and run each on time, as a service
  lvmsync replicate --check               are all files in order?
  lvmsync replicate data --resume         after a rollback of a target: send to it again
  lvmsync replicate data --compare        after something else wrote to a target: make it as the source is
  lvmsync status                          how far is everything?

Each run makes a snapshot, sends what changed since the one that the target holds, and removes that one when the far
side has said that the new one is on its disk. The first run copies everything.";

/// Replicate volumes as jobs say
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ReplicateArgs {
    /// Which jobs, due or not
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,

    /// All jobs that are due
    #[arg(long, conflicts_with_all = ["jobs", "watch", "check"])]
    all: bool,

    /// So many jobs at a time; with more than one no progress is shown
    #[arg(long = "jobs", value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64), conflicts_with = "check")]
    at_once: u16,

    /// Stay, and run jobs when they are due: those named, or all
    #[arg(long, conflicts_with = "check")]
    watch: bool,

    /// Read the files, say what is wrong with them, and do nothing
    #[arg(long)]
    check: bool,

    /// Send again to targets that were put back with `lvmsync rollback`: they are compared and made as the source is
    #[arg(long, conflicts_with_all = ["all", "watch", "check"])]
    resume: bool,

    /// Whatever the targets hold, compare them with the source and send what differs: after something else wrote to one
    #[arg(long, conflicts_with_all = ["all", "watch", "check", "resume"])]
    compare: bool,

    #[command(flatten)]
    place: JobsArgs,

    #[command(flatten)]
    state: StateArgs,

    #[command(flatten)]
    talk: TalkArgs,
}

/// Where jobs are.
#[derive(Args, Debug, Clone)]
pub(super) struct JobsArgs {
    /// Directory of the jobs' files
    #[arg(long, value_name = "DIR", default_value = "/etc/lvmsync/jobs.d")]
    jobs_dir: PathBuf,
}

impl JobsArgs {
    /// The jobs called `names`, or all; what cannot be read is an error of its own.
    pub(super) fn load(&self, names: &[String]) -> Result<Vec<(String, Result<JobConfig>)>> {
        if !names.is_empty() {
            return Ok(names
                .iter()
                .map(|name| (name.clone(), self.load_only(name)))
                .collect());
        }
        let shown = self.jobs_dir.display();
        let action = || {
            format!("cannot read the jobs in {shown}; another directory is named with --jobs-dir")
        };
        let entries =
            std::fs::read_dir(&self.jobs_dir).map_err(|error| Error::io(action(), error))?;
        let mut found: Vec<String> = entries
            .flatten()
            .filter_map(|entry| {
                Some(
                    entry
                        .file_name()
                        .to_str()?
                        .strip_suffix(".toml")?
                        .to_owned(),
                )
            })
            .collect();
        found.sort();
        Ok(found
            .into_iter()
            .map(|name| {
                let job = self.load_only(&name);
                (name, job)
            })
            .collect())
    }

    /// The job of this name.
    pub(super) fn load_only(&self, name: &str) -> Result<JobConfig> {
        if !is_job_name(name) {
            return Err(Error::Usage(format!(
                "`{name}` cannot be the name of a job: letters, digits and _ . - only, 60 at most"
            )));
        }
        let path = self.jobs_dir.join(format!("{name}.toml"));
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Error::io(format!("job {name}: cannot read {shown}"), error))?;
        JobConfig::parse(&text, &shown)
    }
}

/// Where the jobs' states are kept; made where there is no such directory.
pub(super) fn directory_of(state: &StateArgs) -> Result<PathBuf> {
    Ok(state.directory().make()?.join("jobs"))
}

/// What is on record of a job.
pub(super) fn state_of(state: &StateArgs, name: &str) -> Result<JobState> {
    let path = state
        .directory()
        .path()
        .join("jobs")
        .join(format!("{name}.json"));
    Ok(load(Path::new(&path))?.unwrap_or_default())
}

/// Seconds until the next run of a job; none where it is due.
pub(super) fn due_in(job: &JobConfig, state: &JobState, now: i64) -> f64 {
    if state.started == 0 {
        return 0.0;
    }
    // A clock that was put back must not keep a job from running.
    let since = now.saturating_sub(state.started);
    if since < 0 {
        return 0.0;
    }
    (job.interval - since as f64).max(0.0)
}

pub(super) fn run(args: &ReplicateArgs, cancel: &Cancel) -> Result<ExitCode> {
    let terminal = match args.at_once {
        1 => args.talk.terminal(),
        // Two bars would tear each other.
        _ => args.talk.terminal_without_progress(),
    };
    if args.check {
        return check(args);
    }
    if args.watch {
        return watch(args, &terminal, cancel);
    }
    if args.resume && args.jobs.is_empty() {
        return Err(Error::Usage(
            "--resume is about targets that somebody put back: name their JOB".to_owned(),
        ));
    }
    if args.compare && args.jobs.is_empty() {
        return Err(Error::Usage(
            "--compare reads whole volumes: name their JOB".to_owned(),
        ));
    }
    let again = match (args.resume, args.compare) {
        (true, _) => Again::Resume,
        (_, true) => Again::Compare,
        _ => Again::No,
    };
    if args.jobs.is_empty() && !args.all {
        return Err(Error::Usage(
            "name a job, or --all for those that are due, or --watch to stay".to_owned(),
        ));
    }
    let jobs = args.place.load(&args.jobs)?;
    let code = run_each(jobs, args.at_once.into(), cancel, |name, job| {
        let job = job?;
        if args.all && due_in(&job, &state_of(&args.state, name)?, now()) > 0.0 {
            return Ok(());
        }
        let done = cycle::run(name, &job, again, &args.state, &terminal, cancel);
        terminal.finish();
        done
    });
    cancel.check()?;
    Ok(code)
}

fn check(args: &ReplicateArgs) -> Result<ExitCode> {
    let jobs = args.place.load(&args.jobs)?;
    let wrong = jobs.iter().filter(|(_, job)| job.is_err()).count();
    output::listing(|out| {
        for (name, job) in &jobs {
            match job {
                Ok(job) => writeln!(
                    out,
                    "{name}: in order: {} to {}",
                    job.source,
                    shown_targets(job)
                )?,
                Err(error) => writeln!(out, "{name}: {}", error.chain())?,
            }
        }
        if jobs.is_empty() {
            writeln!(
                out,
                "there are no jobs in {}",
                args.place.jobs_dir.display()
            )?;
        }
        Ok(())
    })?;
    Ok(if wrong == 0 {
        ExitCode::Done
    } else {
        ExitCode::Usage
    })
}

fn shown_targets(job: &JobConfig) -> String {
    let targets: Vec<&str> = job.targets.iter().map(|target| &*target.to).collect();
    targets.join(", ")
}

/// How often files are looked at again.
const LOOK_AGAIN: f64 = 10.0;

/// Until told to stop. Files are read each time, so that what is changed holds from the next run on.
fn watch(args: &ReplicateArgs, terminal: &Terminal, cancel: &Cancel) -> Result<ExitCode> {
    let turns = Mutex::new(Turns::default());
    // What is wrong with a file is said once.
    let told: Mutex<Vec<String>> = Mutex::new(Vec::new());
    // A directory that cannot be read ends it all.
    let ended: Mutex<Option<Error>> = Mutex::new(None);
    with_threads(args.at_once.into(), || {
        while !cancel.is_cancelled() && hold(&ended).is_none() {
            match watch_once(args, terminal, cancel, (&turns, &told)) {
                Ok(wait) => {
                    cancel.sleep(Duration::try_from_secs_f64(wait).unwrap_or_default());
                }
                Err(error) => {
                    hold(&ended).get_or_insert(error);
                }
            }
        }
    });
    cancel.check()?;
    let ended = ended.into_inner().ok().flatten();
    ended.map_or(Ok(ExitCode::Done), Err)
}

/// Runs the job that has waited longest, if one is due; seconds until the next look.
fn watch_once(
    args: &ReplicateArgs,
    terminal: &Terminal,
    cancel: &Cancel,
    (turns, told): (&Mutex<Turns>, &Mutex<Vec<String>>),
) -> Result<f64> {
    let tell = |name: &str, error: &Error| {
        let text = format!("{name}: {}", error.chain());
        let mut told = hold(told);
        if !cancel.is_cancelled() && !told.contains(&text) {
            terminal.warn(&text);
            told.push(text);
        }
    };
    let mut jobs = Vec::new();
    for (name, job) in args.place.load(&args.jobs)? {
        match job.and_then(|job| Ok((state_of(&args.state, &name)?, job))) {
            Ok((state, job)) => {
                jobs.push((name, due_in(&job, &state, now()), state.started, job));
            }
            Err(error) => tell(&name, &error),
        }
    }
    let looks: Vec<(&str, f64, i64)> = jobs
        .iter()
        .map(|(name, due_in, began, _)| (name.as_str(), *due_in, *began))
        .collect();
    let turn = hold(turns).next(&looks, Instant::now(), LOOK_AGAIN);
    let (name, job) = match turn {
        Turn::Wait(seconds) => return Ok(seconds.max(1.0)),
        Turn::Run(number) => match jobs.get(number) {
            Some((name, _, _, job)) => (name, job),
            None => return Ok(LOOK_AGAIN),
        },
    };
    // Between the look and its turn another thread may have run it.
    let is_due = state_of(&args.state, name).map(|state| due_in(job, &state, now()) <= 0.0);
    let done = is_due.and_then(|is_due| match is_due {
        true => cycle::run(name, job, Again::No, &args.state, terminal, cancel),
        false => Ok(()),
    });
    terminal.finish();
    let again = match &done {
        Ok(()) => {
            let of_it = format!("{name}: ");
            hold(told).retain(|text| !text.starts_with(&of_it));
            None
        }
        Err(error) => {
            tell(name, error);
            Instant::now().checked_add(Duration::from_secs_f64(LOOK_AGAIN))
        }
    };
    hold(turns).ended(name, again);
    Ok(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_due_an_interval_after_it_began_and_when_the_clock_was_put_back() {
        let text = "source = \"vg/x\"\ninterval = \"15m\"\n[[target]]\nto = \"h:vg/x\"\n";
        let job = JobConfig::parse(text, "x").unwrap();
        let started = |started| JobState {
            started,
            ..JobState::default()
        };
        assert_eq!(due_in(&job, &started(0), 1000), 0.0);
        assert_eq!(due_in(&job, &started(1000), 1100), 800.0);
        assert_eq!(due_in(&job, &started(1000), 1900), 0.0);
        assert_eq!(due_in(&job, &started(5000), 1000), 0.0);
    }
}
