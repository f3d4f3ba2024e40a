//! `lvmsync replicate`: the periodic cycle, from files that say what is replicated where.
//!
//! Guarantees: one run of a job is one snapshot and one increment for each target; jobs that fail do not keep others from
//! running; a run is told to stop between two steps and leaves everything as the next run wants it.

pub(super) mod cycle;

use std::path::{Path, PathBuf};
use std::time::Duration;

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
  lvmsync replicate --watch               stay, and run each on time, as a service
  lvmsync replicate --check               are all files in order?
  lvmsync replicate data --resume         after a rollback of a target: send to it again
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

    /// Stay, and run jobs when they are due: those named, or all
    #[arg(long, conflicts_with = "check")]
    watch: bool,

    /// Read the files, say what is wrong with them, and do nothing
    #[arg(long)]
    check: bool,

    /// Send again to targets that were put back with `lvmsync rollback`: they are compared and made as the source is
    #[arg(long, conflicts_with_all = ["all", "watch", "check"])]
    resume: bool,

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
    let terminal = args.talk.terminal();
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
    if args.jobs.is_empty() && !args.all {
        return Err(Error::Usage(
            "name a job, or --all for those that are due, or --watch to stay".to_owned(),
        ));
    }
    let mut first_error = None;
    for (name, job) in args.place.load(&args.jobs)? {
        cancel.check()?;
        let done = job.and_then(|job| {
            if args.all && due_in(&job, &state_of(&args.state, &name)?, now()) > 0.0 {
                return Ok(());
            }
            cycle::run(&name, &job, args.resume, &args.state, &terminal, cancel)
        });
        terminal.finish();
        if let Err(error) = done {
            output::message(&format!("lvmsync: {name}: {}", error.chain()));
            first_error.get_or_insert(error);
        }
    }
    cancel.check()?;
    Ok(first_error.map_or(ExitCode::Done, |error| error.exit_code()))
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
    // What is wrong with a file is said once.
    let mut told: Vec<String> = Vec::new();
    loop {
        let mut wait = LOOK_AGAIN;
        for (name, job) in args.place.load(&args.jobs)? {
            cancel.check()?;
            let done = job.and_then(|job| {
                let left = due_in(&job, &state_of(&args.state, &name)?, now());
                if left > 0.0 {
                    wait = wait.min(left);
                    return Ok(false);
                }
                cycle::run(&name, &job, false, &args.state, terminal, cancel).map(|()| true)
            });
            terminal.finish();
            match done {
                Err(error) => {
                    cancel.check()?;
                    let text = format!("{name}: {}", error.chain());
                    if !told.contains(&text) {
                        terminal.warn(&text);
                        told.push(text);
                    }
                }
                Ok(true) => told.retain(|text| !text.starts_with(&format!("{name}: "))),
                Ok(false) => {}
            }
        }
        cancel.check()?;
        cancel.sleep(Duration::try_from_secs_f64(wait.max(1.0)).unwrap_or_default());
        cancel.check()?;
    }
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
